"""JPEGs that are whole are read, however odd; those whose decoder warns of damage are refused."""

from __future__ import annotations

import io
import logging
import sys

import numpy as np
import pytest
from PIL import Image

from yonos_trt.errors import InputError
from yonos_trt.images import jpeg_pixels, read_image


@pytest.fixture(params=["pyvips", "Pillow alone"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which decoder is asked about damage."""
    if request.param == "pyvips":
        pytest.importorskip("pyvips")
    else:
        monkeypatch.setattr(jpeg_pixels, "_pyvips", lambda: None)
    return str(request.param)


NOISE = np.cumsum(np.random.default_rng(0).integers(-3, 4, (150, 225, 3)), axis=1).astype(np.uint8)
SAVED = {
    "baseline": {},
    "quality 30": {"quality": 30},
    "4:4:4": {"subsampling": 0},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 4},
    "optimised": {"optimize": True},
}


def jpeg(mode: str = "RGB", **options: object) -> bytes:
    """The noise as a JPEG."""
    out = io.BytesIO()
    Image.fromarray(NOISE).convert(mode).save(out, "JPEG", **options)
    return out.getvalue()


def scan_at(data: bytes) -> int:
    """Where the coded data begin."""
    at = data.index(b"\xff\xda")
    return at + 2 + int.from_bytes(data[at + 2 : at + 4])


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_whole_files_are_read_whatever_stands_around_the_pixels(name: str, mode: str, decoder: str) -> None:
    data = jpeg(mode, **SAVED[name])
    expected = read_image(data).rgb
    quantisation = data.index(b"\xff\xdb")
    for odd in (
        data + b"trailing words",
        data + bytes(1000),
        data + jpeg(),  # a second picture, as in MPF and gain maps
        data[:-2] + b"\xff\xff\xff" + data[-2:],  # fill bytes
        data[:quantisation] + b"\xff\xff" + data[quantisation:],
        data[:quantisation] + b"xyz" + data[quantisation:],  # bytes between segments
        data[:2] + b"\xff\xfe\x00\x06\xff\xd8\xff\xd9" + data[2:],  # markers inside a comment
        data[:2] + b"\xff\xe2\x00\x10ICC_PROFILE\x00\x09" + data[2:],  # a piece of a profile, of none
    ):
        np.testing.assert_array_equal(read_image(odd).rgb, expected)


def test_small_and_odd_sizes_are_read(decoder: str) -> None:
    for height, width in ((1, 1), (7, 9), (8, 8), (17, 16), (1, 300)):
        for options in SAVED.values():
            out = io.BytesIO()
            Image.fromarray(NOISE[:height, :width]).save(out, "JPEG", **options)
            assert read_image(out.getvalue()).rgb.shape == (height, NOISE[:height, :width].shape[1], 3)


@pytest.mark.parametrize("name", SAVED)
def test_pixels_that_end_early_are_refused(name: str, decoder: str) -> None:
    data = jpeg(**SAVED[name])
    start = scan_at(data)
    for share in (0.1, 0.5, 0.9):
        cut = data[: start + int((len(data) - start) * share)]
        with pytest.raises(InputError, match=r"the JPEG is damaged \(.*save it anew"):
            read_image(cut.rstrip(b"\xff") + b"\xff\xd9")


@pytest.mark.parametrize("name", SAVED)
def test_a_part_lost_or_overwritten_is_refused(name: str, decoder: str) -> None:
    data = jpeg(**SAVED[name])
    start = scan_at(data)
    middle = start + (len(data) - start) // 4
    lost = data[:middle].rstrip(b"\xff") + data[-1000:]
    zeros = data[:middle] + bytes(3000) + data[middle + 3000 :]
    for broken in (lost, zeros):
        with pytest.raises(InputError, match=r"the JPEG is damaged"):
            read_image(broken)


def test_restart_markers_out_of_order_are_refused(decoder: str) -> None:
    data = bytearray(jpeg(restart_marker_blocks=4))
    at = data.index(b"\xff\xd3")
    data[at + 1] = 0xD6
    with pytest.raises(InputError, match="the JPEG is damaged"):
        read_image(bytes(data))


@pytest.mark.parametrize("colour", [0, 77, 128, 255])
def test_flat_pictures_are_no_damage(colour: int, decoder: str) -> None:
    picture = NOISE.copy()
    picture[40:] = colour
    for shown in (picture, picture[48:]):
        for options in SAVED.values():
            out = io.BytesIO()
            Image.fromarray(shown).save(out, "JPEG", **options)
            assert read_image(out.getvalue()).rgb.shape == shown.shape


def test_one_interval_that_ends_early_or_late_is_refused(decoder: str) -> None:
    data = jpeg(restart_marker_rows=1)
    begin, end = data.index(b"\xff\xd2") + 2, data.index(b"\xff\xd3")
    for coded in (data[begin : end - 60], data[begin:end] + data[begin : begin + 60]):
        with pytest.raises(InputError, match="the JPEG is damaged"):
            read_image(data[:begin] + coded.rstrip(b"\xff") + data[end:])


@pytest.mark.parametrize("behind", [b"", b"words", "picture"])
def test_a_missing_end_marker_is_noticed_whatever_follows(behind: bytes | str, decoder: str) -> None:
    with pytest.raises(InputError, match="end marker"):
        read_image(jpeg()[:-2] + (jpeg() if isinstance(behind, str) else behind))


def test_warnings_are_heard_whatever_logging_is_set_to() -> None:
    pytest.importorskip("pyvips")
    data = jpeg(progressive=True)
    end = data.rindex(b"\xff\xda") - 300
    end = data.index(b"\xff\xc4", end)  # the last scan but one lacks its last bytes
    broken = data[: end - 40].rstrip(b"\xff") + data[end:]
    logging.disable(logging.CRITICAL)
    try:
        with pytest.raises(InputError, match="the JPEG is damaged"):
            read_image(broken)
    finally:
        logging.disable(logging.NOTSET)


def test_thousands_of_scans_are_refused() -> None:
    data = jpeg(progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(InputError, match="more than 100 scans"):
        read_image(data[:-2] + 5000 * scan + data[-2:])


def test_the_base_install_says_once_that_it_sees_less(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pyvips", None)
    jpeg_pixels._pyvips.cache_clear()
    try:
        for _ in range(2):
            assert read_image(jpeg()).rgb.shape == NOISE.shape
    finally:
        jpeg_pixels._pyvips.cache_clear()
    assert len([m for m in caplog.messages if "pip install '.[images]'" in m]) == 1
