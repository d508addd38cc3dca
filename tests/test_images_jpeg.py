"""JPEGs that are whole are read, however odd; those whose decoder warns of damage are refused."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from PIL import Image

from yonos_trt.errors import InputError
from yonos_trt.images import read_image

pytest.importorskip("pyvips")

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
def test_whole_files_are_read_whatever_stands_around_the_pixels(name: str, mode: str) -> None:
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


def test_small_and_odd_sizes_are_read() -> None:
    for height, width in ((1, 1), (7, 9), (8, 8), (17, 16), (1, 300)):
        for options in SAVED.values():
            out = io.BytesIO()
            Image.fromarray(NOISE[:height, :width]).save(out, "JPEG", **options)
            assert read_image(out.getvalue()).rgb.shape == (height, NOISE[:height, :width].shape[1], 3)


@pytest.mark.parametrize("name", SAVED)
def test_pixels_that_end_early_are_refused(name: str) -> None:
    data = jpeg(**SAVED[name])
    start = scan_at(data)
    for share in (0.1, 0.5, 0.9):
        cut = data[: start + int((len(data) - start) * share)]
        with pytest.raises(InputError, match=r"the JPEG is damaged \(.*save it anew"):
            read_image(cut.rstrip(b"\xff") + b"\xff\xd9")


@pytest.mark.parametrize("name", SAVED)
def test_a_part_lost_or_overwritten_is_refused(name: str) -> None:
    data = jpeg(**SAVED[name])
    start = scan_at(data)
    middle = start + (len(data) - start) // 4
    lost = data[:middle].rstrip(b"\xff") + data[-1000:]
    zeros = data[:middle] + bytes(3000) + data[middle + 3000 :]
    for broken in (lost, zeros):
        with pytest.raises(InputError, match=r"the JPEG is damaged"):
            read_image(broken)


def test_restart_markers_out_of_order_are_refused() -> None:
    data = bytearray(jpeg(restart_marker_blocks=4))
    at = data.index(b"\xff\xd3")
    data[at + 1] = 0xD6
    with pytest.raises(InputError, match="the JPEG is damaged"):
        read_image(bytes(data))


def test_thousands_of_scans_are_refused() -> None:
    data = jpeg(progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(InputError, match="more than 100 scans"):
        read_image(data[:-2] + 5000 * scan + data[-2:])


def test_base_install_reads_jpegs_without_the_second_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyvips", None)
    assert read_image(jpeg()).rgb.shape == NOISE.shape
