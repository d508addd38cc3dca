"""AVIF and HEIC: what is shown of the stored picture, which way up, and what else is in the file."""

from __future__ import annotations

import io
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from yonos_trt.errors import InputError, MissingExtraError
from yonos_trt.images import check_output, read_image
from yonos_trt.images.metadata import upright

# 48 rows and 64 columns, and no two corners alike.
RGB = np.zeros((48, 64, 3), np.uint8)
RGB[..., 0] = np.arange(64) * 3
RGB[..., 1] = np.arange(48)[:, None] * 5
RGB[:16, :16, 2] = 200


def avif(pixels: np.ndarray = RGB, **options: object) -> bytes:
    """The picture as an AVIF."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "AVIF", quality=100, subsampling="4:4:4", **options)
    return out.getvalue()


def boxes(data: bytes, start: int, end: int) -> dict[bytes, tuple[int, int]]:
    """Kind -> (start, end) of the whole boxes between two positions."""
    found = {}
    while start < end:
        length, kind = struct.unpack_from(">I4s", data, start)
        found[kind] = (start, start + length)
        start += length
    return found


def with_aperture(data: bytes, *values: int) -> bytes:
    """The AVIF with a clean aperture box for every item that has properties."""
    clap = struct.pack(">I4sIIIIiIiI", 40, b"clap", *values)
    meta, meta_end = boxes(data, 0, len(data))[b"meta"]
    inside = boxes(data, meta + 12, meta_end)
    iprp, iprp_end = inside[b"iprp"]
    parts = boxes(data, iprp + 8, iprp_end)
    ipco, ipco_end = parts[b"ipco"]
    count, at = 0, ipco + 8
    while at < ipco_end:
        count, at = count + 1, at + struct.unpack_from(">I", data, at)[0]
    number = count + 1
    ipma, _ = parts[b"ipma"]
    assert data[ipma + 8] == 0
    assert not data[ipma + 11] & 1
    (entries,) = struct.unpack_from(">I", data, ipma + 12)
    body, at = data[ipma + 8 : ipma + 16], ipma + 16
    for _ in range(entries):
        n = data[at + 2]
        old = data[at + 3 : at + 3 + n]
        # After the descriptive properties, before rotation and mirror, which come last.
        turned = sum(1 for p in old if property_kind(data, ipco, p & 0x7F) in (b"irot", b"imir"))
        new = old[: n - turned] + bytes([0x80 | number]) + old[n - turned :]
        body, at = body + data[at : at + 2] + bytes([n + 1]) + new, at + 3 + n
    grown_ipco = struct.pack(">I4s", ipco_end - ipco + 40, b"ipco") + data[ipco + 8 : ipco_end] + clap
    grown_ipma = struct.pack(">I4s", len(body) + 8, b"ipma") + body
    grown_iprp = struct.pack(">I4s", 8 + len(grown_ipco) + len(grown_ipma), b"iprp") + grown_ipco + grown_ipma
    more = len(grown_iprp) - (iprp_end - iprp)
    out = bytearray(data[:iprp] + grown_iprp + data[iprp_end:])
    struct.pack_into(">I", out, meta, meta_end - meta + more)
    iloc, _ = inside[b"iloc"]  # lies before iprp or behind it: find it again
    iloc += more if iloc > iprp else 0
    assert out[iloc + 8] == 0
    assert out[iloc + 12] == 0x44
    (items,) = struct.unpack_from(">H", out, iloc + 14)
    at = iloc + 16
    for _ in range(items):
        base = out[iloc + 13] >> 4
        (extents,) = struct.unpack_from(">H", out, at + 4 + base)
        at += 6 + base
        for _ in range(extents):
            (offset,) = struct.unpack_from(">I", out, at)
            struct.pack_into(">I", out, at, offset + more)
            at += 8
    return bytes(out)


def property_kind(data: bytes, ipco: int, number: int) -> bytes:
    at = ipco + 8
    for _ in range(number - 1):
        at += struct.unpack_from(">I", data, at)[0]
    return data[at + 4 : at + 8]


def near(pixels: np.ndarray, expected: np.ndarray) -> None:
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= 8


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ((32, 1, 24, 1, 0, 1, 0, 1), (slice(12, 36), slice(16, 48))),  # the middle
        ((32, 1, 24, 1, -16, 1, -12, 1), (slice(0, 24), slice(0, 32))),  # the top left corner
        ((63, 1, 47, 1, 1, 2, 1, 2), (slice(1, 48), slice(1, 64))),  # offsets of half a pixel, odd sizes
        ((64, 1, 48, 1, 0, 1, 0, 1), (slice(0, 48), slice(0, 64))),  # all of it
        ((20, 2, 4, 2, 0, 3, 46, 2), (slice(46, 48), slice(27, 37))),  # fractions that are whole numbers
    ],
)
def test_only_the_clean_aperture_is_shown(values: tuple[int, ...], part: tuple[slice, slice]) -> None:
    near(read_image(with_aperture(avif(), *values)).rgb, RGB[part])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotation_and_mirror_come_after_the_aperture(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = avif(exif=exif.tobytes())
    near(read_image(data).rgb, upright(RGB, orientation))
    cut = with_aperture(data, 32, 1, 24, 1, -16, 1, -12, 1)
    near(read_image(cut).rgb, upright(RGB[:24, :32], orientation))


def test_alpha_is_cut_as_well() -> None:
    alpha = np.full((48, 64, 1), 255, np.uint8)
    alpha[:, :32] = 100
    data = with_aperture(avif(np.dstack([RGB, alpha])), 32, 1, 48, 1, -16, 1, 0, 1)
    picture = read_image(data)
    assert picture.kind.mode == "RGBA"
    assert picture.alpha is not None
    assert picture.alpha.shape == (48, 32)
    assert np.abs(picture.alpha.astype(int) - 100).max() <= 3


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ((65, 1, 48, 1, 0, 1, 0, 1), "inside pixels|no part of its picture"),
        ((66, 1, 48, 1, 0, 1, 0, 1), "no part of its picture"),
        ((32, 1, 24, 1, 40, 1, 0, 1), "no part of its picture"),
        ((32, 1, 24, 1, 1, 3, 0, 1), "ends inside pixels"),
        ((0, 1, 24, 1, 0, 1, 0, 1), "no part of its picture"),
        ((32, 0, 24, 1, 0, 1, 0, 1), "divides by zero"),
    ],
)
def test_apertures_that_are_none_are_refused(values: tuple[int, ...], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        read_image(with_aperture(avif(), *values))


def test_size_is_refused_before_decoding() -> None:
    with pytest.raises(InputError, match="declares 64 x 48 pixels, the limit is 100"):
        read_image(avif(), max_pixels=100)


# -- HEIC -------------------------------------------------------------------------------------------------


def heic(pixels: np.ndarray = RGB, mode: str = "RGB", **options: object) -> bytes:
    """The picture as a HEIC; skips where the extra is not installed."""
    pillow_heif = pytest.importorskip("pillow_heif")
    out = io.BytesIO()
    pillow_heif.encode(
        mode, (pixels.shape[1], pixels.shape[0]), pixels.tobytes(), out, quality=100, chroma="444", **options
    )
    return out.getvalue()


def test_heic_without_the_extra_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    data = avif()
    data = data[:8] + b"heic" + data[12:16] + b"mif1miafheic" + data[28:]
    (tmp_path / "x.heic").write_bytes(data.replace(b"avif", b"heic"))
    with pytest.raises(MissingExtraError, match=r"x\.heic: reading HEIC .*pip install .*'\.\[heic\]'"):
        read_image(tmp_path / "x.heic")


def test_heic_is_read_and_its_result_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "x.heic").write_bytes(heic())
    picture = read_image(tmp_path / "x.heic")
    assert (picture.kind.mode, picture.kind.format) == ("RGB", "HEIC")
    near(picture.rgb, RGB)
    check_output(picture.kind, 48, 64, tmp_path / "x.png")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_is_turned_upright_once(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    near(read_image(heic(exif=exif.tobytes())).rgb, upright(RGB, orientation))


def test_heic_of_ten_bits_keeps_them() -> None:
    ramp = np.broadcast_to((np.arange(64, dtype=np.uint16) * 1023 // 63)[None, :, None], (48, 64, 3))
    picture = read_image(heic(np.ascontiguousarray(ramp << 6), "RGB;16"))
    assert picture.kind.dtype == "uint16"
    assert np.abs(picture.rgb.astype(int) - (ramp << 6)).max() < 1000
    assert len(np.unique(picture.rgb)) > 60


def test_truncated_heic_is_an_input_error() -> None:
    data = heic()
    for share in (0.1, 0.5, 0.95):
        with pytest.raises(InputError):
            read_image(data[: int(len(data) * share)])
