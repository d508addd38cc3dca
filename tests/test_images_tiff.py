"""TIFF samples: each keeps its meaning and its values, or the file is refused by name before any work."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from yonos_trt.errors import InputError
from yonos_trt.images import read_image, to_array

tifffile = pytest.importorskip("tifffile")

LAKE = np.full((12, 16, 3), 9, np.uint8)
LAKE[3:9, 4:12] = (8, 35, 117)


def written(array: np.ndarray, **options: Any) -> bytes:
    """A TIFF by tifffile, without its own description."""
    out = io.BytesIO()
    tifffile.imwrite(out, array, metadata=None, **options)
    return out.getvalue()


def handmade(tags: Sequence[tuple[int, int, int, int]], behind: bytes = b"") -> bytes:
    """A little-endian TIFF of one directory: (tag, type, count, value or offset), then other bytes."""
    body = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + bytes(4) + behind


def plain_tags(at: int, side: int = 4) -> list[tuple[int, int, int, int]]:
    """An uncompressed 8-bit grey picture whose pixels begin at ``at``."""
    return [(256, 3, 1, side), (257, 3, 1, side), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
            (273, 4, 1, at), (277, 3, 1, 1), (278, 3, 1, side), (279, 4, 1, side * side)]  # fmt: skip


# -- BigTIFF ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bigtiff", [False, True])
def test_a_whole_file_has_no_damaged_entries(order: str, bigtiff: bool) -> None:
    """BigTIFF's 64-bit places of strips are no entries of EXIF that went bad."""
    picture = read_image(written(LAKE, photometric="rgb", byteorder=order, bigtiff=bigtiff, software="lake"))
    assert picture.left_out == ()
    assert b"lake" in (picture.exif or b"")


def test_smaller_copies_of_a_bigtiff_are_named() -> None:
    out = io.BytesIO()
    with tifffile.TiffWriter(out, bigtiff=True) as writer:
        writer.write(LAKE, photometric="rgb", subifds=1, metadata=None)
        writer.write(LAKE[::2, ::2], photometric="rgb", subfiletype=1, metadata=None)
    assert read_image(out.getvalue()).left_out == ("tags that may describe the old pixels: SubIFDs",)


# -- Samples beside colour and alpha ----------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize(
    ("photometric", "colours", "extra"),
    [
        ("rgb", 3, ["unspecified"]),
        ("rgb", 3, ["unassalpha", "unspecified"]),
        ("rgb", 3, ["unspecified", "unassalpha"]),
        ("rgb", 3, ["unspecified"] * 5),
        ("minisblack", 1, ["unspecified"]),
        ("minisblack", 1, ["unassalpha", "unspecified"]),
        ("separated", 4, ["unspecified"]),
        ("separated", 4, ["unassalpha"]),
    ],
)
def test_samples_that_would_be_lost_are_refused_by_name(
    photometric: str, colours: int, extra: list[str], dtype: type, planar: str, compression: str | None
) -> None:
    pixels = np.zeros((12, 16, colours + len(extra)), dtype)
    if planar == "separate":
        pixels = np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
    data = written(
        pixels, photometric=photometric, planarconfig=planar, extrasamples=extra, compression=compression
    )
    with pytest.raises(InputError, match=rf"{len(extra)} sample\(s\) beside .*(unspecified|alpha)"):
        read_image(data)


def test_samples_that_no_tag_explains_are_refused() -> None:
    data = written(np.dstack([LAKE, LAKE[..., 0]]), photometric="rgb", extrasamples=["unassalpha"])
    at = data.index(struct.pack("<HHI", 338, 3, 1))
    with pytest.raises(InputError, match=r"1 sample\(s\) beside RGB \(unspecified\)"):
        read_image(data[:at] + struct.pack("<H", 60_000) + data[at + 2 :])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("extra", [None, "unassalpha"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_colour_and_alpha_of_any_layout_are_read_right(
    dtype: type, planar: str, extra: str | None, order: str, big: bool
) -> None:
    top = 1 if dtype is np.float32 else np.iinfo(dtype).max
    rng = np.random.default_rng(5)
    pixels = (rng.random((12, 16, 4 if extra else 3)) * 0.9 * top + 0.05 * top).astype(dtype)
    stored = pixels if planar == "contig" else np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
    data = written(
        stored, photometric="rgb", planarconfig=planar, extrasamples=[extra] if extra else None,
        byteorder=order, bigtiff=big,
    )  # fmt: skip
    np.testing.assert_array_equal(to_array(read_image(data)), pixels, strict=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("big", [False, True])
def test_big_endian_grey_is_read_right(dtype: type, big: bool) -> None:
    pixels = np.linspace(0, 1 if dtype is np.float32 else 255, 20).astype(dtype).reshape(4, 5)
    data = written(pixels, photometric="minisblack", byteorder=">", bigtiff=big)
    np.testing.assert_array_equal(to_array(read_image(data)), pixels, strict=True)
    white = written(pixels, photometric="miniswhite", byteorder=">", bigtiff=big)
    top = dtype(1) if dtype is np.float32 else np.iinfo(dtype).max
    np.testing.assert_array_equal(to_array(read_image(white)), top - pixels, strict=True)


@pytest.mark.parametrize(
    "compression", ["lzw", "zlib", "packbits", "lzma", "zstd", "jpeg2000", "lerc", "jpegxl"]
)
@pytest.mark.parametrize("grey", [False, True])
def test_compressions_without_loss_are_read_right(compression: str, grey: bool) -> None:
    pixels = LAKE[..., 0] if grey else LAKE
    options = (
        {"level": 0} if compression == "jpeg2000" else {"lossless": True} if compression == "jpegxl" else {}
    )
    data = written(
        np.ascontiguousarray(np.kron(pixels, np.ones((4, 4) if grey else (4, 4, 1), np.uint8))),
        photometric="minisblack" if grey else "rgb", compression=compression, compressionargs=options,
    )  # fmt: skip
    np.testing.assert_array_equal(to_array(read_image(data))[::4, ::4], pixels)


# -- Samples of other kinds -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32])
@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 3)])
def test_signed_samples_are_refused_by_name(dtype: type, shape: tuple[int, ...]) -> None:
    data = written(np.full(shape, -1, dtype), photometric="rgb" if len(shape) == 3 else "minisblack")
    with pytest.raises(InputError, match="signed integer samples, expected unsigned"):
        read_image(data)


@pytest.mark.parametrize(
    ("array", "photometric", "reason"),
    [
        (np.zeros((4, 4), np.complex64), "minisblack", "complex float"),
        (np.zeros((4, 4), np.float64), "minisblack", "64-bit float"),
        (np.zeros((4, 4), np.float16), "minisblack", "16-bit float"),
        (np.zeros((4, 4), np.uint32), "minisblack", "32-bit integer"),
        (np.zeros((4, 4, 3), np.uint8), 8, r"CIE L\*a\*b\*"),
        (np.zeros((4, 4, 3), np.uint16), 8, r"CIE L\*a\*b\*"),
        (np.zeros((4, 4), np.uint16), 32803, "colour mosaic"),
        (np.zeros((4, 4, 3), np.uint16), 34892, "linear raw"),
        (np.zeros((4, 4, 4), np.uint16), "separated", "16-bit integer"),
    ],
)
def test_other_samples_are_refused_by_name(array: np.ndarray, photometric: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        read_image(written(array, photometric=photometric))


def test_inks_other_than_cmyk_are_refused() -> None:
    data = written(np.zeros((4, 4, 4), np.uint8), photometric="separated", extratags=[(332, "H", 1, 2, True)])
    with pytest.raises(InputError, match="inks other than CMYK"):
        read_image(data)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_floats_that_are_no_colours_are_refused(bad: float, channels: int) -> None:
    pixels = np.full((4, 5, channels), 0.5, np.float32)
    pixels[2, 3, -1] = bad
    data = written(
        pixels[..., 0] if channels == 1 else pixels, photometric="minisblack" if channels == 1 else "rgb",
        extrasamples=["unassalpha"] if channels == 4 else None,
    )  # fmt: skip
    with pytest.raises(InputError, match="NaN or infinity"):
        read_image(data)


# -- Files that promise more than they hold ---------------------------------------------------------------


def refused_quickly(data: bytes, reason: str) -> None:
    """The file is refused within a second and 20 MB."""
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(InputError, match=reason):
            read_image(data)
        assert time.process_time() - start < 1
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_handmade_picture_is_read() -> None:
    data = handmade(plain_tags(122), bytes(range(16)))
    np.testing.assert_array_equal(to_array(read_image(data)).ravel(), np.arange(16))


@pytest.mark.parametrize("tag", [32997, 32998])
def test_depth_of_a_volume_is_refused_before_it_is_allocated(tag: int) -> None:
    data = handmade([*plain_tags(134), (tag, 4, 1, 60)], bytes(16))
    refused_quickly(data, "holds a volume")


def test_tiles_larger_than_the_picture_are_refused_before_they_are_allocated() -> None:
    tiled = [tag for tag in plain_tags(200) if tag[0] not in (273, 278, 279)]
    tiled += [(322, 4, 1, 1 << 24), (323, 4, 1, 1 << 24), (324, 4, 1, 200), (325, 4, 1, 16)]
    refused_quickly(handmade(tiled, bytes(300)), "tiles of 16777216 px")


@pytest.mark.parametrize("kind", [1, 2, 3, 4, 7, 12])
def test_tags_that_share_one_large_value_are_refused(kind: int) -> None:
    size = {1: 1, 2: 1, 3: 2, 4: 4, 7: 1, 12: 8}[kind]
    fan = [(40_000 + k, kind, 180_000 // size, 12 * 1100) for k in range(1000)]
    refused_quickly(handmade([*plain_tags(12 * 1100), *fan], bytes(200_000)), "values of its tags overlap")


def test_strips_of_a_small_picture_are_counted_before_they_are_unpacked() -> None:
    tags = [(t, k, 50_000 if t in (273, 279) else n, v) for t, k, n, v in plain_tags(300)]
    refused_quickly(handmade(tags, bytes(400_000)), "it says of 50000 pieces")


def test_directories_that_overlap_are_refused() -> None:
    entries, chain = 30_000, 2000  # each begins one entry behind the one before it
    data = bytearray(b"II*\0" + struct.pack("<I", 8) + bytes(12 * (entries + chain) + 100))
    for k in range(chain):
        struct.pack_into("<H", data, 8 + 12 * k, entries)
        struct.pack_into("<I", data, 10 + 12 * (k + entries), 8 + 12 * (k + 1))
    refused_quickly(bytes(data), "directories overlap or form a loop")


def test_a_loop_of_directories_ends() -> None:
    data = bytearray(handmade(plain_tags(122), bytes(16)))
    struct.pack_into("<I", data, 8 + 2 + 9 * 12, 8)
    refused_quickly(bytes(data), "form a loop")


def test_a_tag_given_twice_is_refused() -> None:
    tags = [*plain_tags(134), (257, 3, 1, 4)]
    refused_quickly(handmade(tags, bytes(16)), "tag 257 occurs twice")


def test_two_tags_may_share_their_value() -> None:
    tags = sorted([*plain_tags(170), (282, 5, 1, 158), (283, 5, 1, 158), (296, 3, 1, 2)])
    data = handmade(tags, struct.pack("<II", 300, 1) + bytes(20))
    assert read_image(data).dpi == (300, 300)


def test_a_thousand_bands_are_named_in_one_line() -> None:
    data = written(
        np.zeros((4, 4, 1003), np.uint8), photometric="rgb", planarconfig="contig", extrasamples=[0] * 1000
    )
    with pytest.raises(InputError, match=r"1000 sample\(s\) beside RGB \(1000 x unspecified\)") as caught:
        read_image(data)
    assert len(str(caught.value)) < 400
