"""Files in and out: kinds, depth, metadata, orientation, profiles."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, TiffImagePlugin

from yonos_trt.errors import ConfigError, InputError, MissingExtraError
from yonos_trt.images import (
    SUPPORTED_SUFFIXES,
    Picture,
    SaveOptions,
    check_output,
    from_array,
    from_pil,
    read_image,
    to_array,
    write_image,
)

RNG = np.random.default_rng(7)
RGBA = RNG.integers(1, 255, (11, 13, 4), dtype=np.uint8)
SMOOTH = np.dstack([np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8) + k for k in (0, 40, 90)])


def deep(channels: int, dtype: type) -> np.ndarray:
    if dtype is np.float32:
        return RNG.uniform(0.01, 1, (11, 13, channels)).astype(np.float32)
    return RNG.integers(1, 65535, (11, 13, channels), dtype=np.uint16)


def twice(picture: Picture) -> Picture:
    alpha = None if picture.alpha is None else picture.alpha.repeat(2, 0).repeat(2, 1)
    return picture.with_pixels(picture.rgb.repeat(2, 0).repeat(2, 1), alpha)


# -- What each format keeps -------------------------------------------------------------------------------

KEPT = {  # mode in -> mode after writing and reading again
    ".png": {"1": "1", "L": "L", "LA": "LA", "P": "P", "RGB": "RGB", "RGBA": "RGBA", "CMYK": "RGB"},
    ".tif": {"1": "1", "L": "L", "LA": "LA", "P": "P", "RGB": "RGB", "RGBA": "RGBA", "CMYK": "CMYK"},
    ".jpg": {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB", "CMYK": "CMYK"},
    ".webp": {"1": "RGB", "L": "RGB", "LA": "RGBA", "P": "RGB", "RGB": "RGB", "RGBA": "RGBA", "CMYK": "RGB"},
    ".avif": {"1": "RGB", "L": "RGB", "LA": "RGBA", "P": "RGB", "RGB": "RGB", "RGBA": "RGBA", "CMYK": "RGB"},
}


@pytest.mark.parametrize(
    ("suffix", "mode"), [(suffix, mode) for suffix, modes in KEPT.items() for mode in modes]
)
def test_mode_after_a_round_trip(tmp_path: Path, suffix: str, mode: str) -> None:
    image = Image.fromarray(SMOOTH)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(SMOOTH[..., 0] // 2 + 100))
    picture = from_pil(image.convert(mode))
    path = tmp_path / f"x{suffix}"
    write_image(picture, path)
    again = read_image(path)
    assert again.kind.mode == KEPT[suffix][mode]
    assert again.kind.dtype == "uint8"
    assert again.kind.format == SUPPORTED_SUFFIXES[suffix]
    if suffix in (".png", ".tif"):
        np.testing.assert_array_equal(again.rgb, picture.rgb)
        if picture.alpha is not None:
            np.testing.assert_array_equal(again.alpha, picture.alpha)
    else:
        difference = np.abs(again.rgb.astype(int) - picture.rgb)
        assert difference.mean() < {"1": 30, "P": 20}.get(mode, 4)  # dithered pictures suffer most
        if picture.alpha is not None:
            assert again.alpha is not None
            assert np.abs(again.alpha.astype(int) - picture.alpha).max() <= 8
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_depth_survives_bit_for_bit(tmp_path: Path, suffix: str, channels: int, dtype: type) -> None:
    array = deep(channels, dtype)
    picture = from_array(array)
    if suffix == ".png" and dtype is np.float32:
        with pytest.raises(InputError, match=r"PNG cannot hold 32 bits.*\.tiff.*drop_depth"):
            write_image(picture, tmp_path / "x.png")
        write_image(picture, tmp_path / "x.png", drop_depth=True)
        rounded = to_array(read_image(tmp_path / "x.png"))
        np.testing.assert_array_equal(rounded.reshape(array.shape), np.rint(array.astype(float) * 65535))
        return
    path = tmp_path / f"x{suffix}"
    write_image(picture, path)
    again = read_image(path)
    assert again.kind.dtype == array.dtype.name
    assert again.kind.mode == ("L", "LA", "RGB", "RGBA")[channels - 1]
    np.testing.assert_array_equal(to_array(again).reshape(array.shape), array)


def test_our_16_bit_png_is_what_libpng_and_tifffile_write(tmp_path: Path) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    tifffile = pytest.importorskip("tifffile")
    for channels in (2, 3, 4):
        array = deep(channels, np.uint16)
        write_image(from_array(array), tmp_path / "ours.png")
        np.testing.assert_array_equal(imagecodecs.png_decode((tmp_path / "ours.png").read_bytes()), array)
        (tmp_path / "theirs.png").write_bytes(imagecodecs.png_encode(array))
        np.testing.assert_array_equal(to_array(read_image(tmp_path / "theirs.png")), array)
        write_image(from_array(array), tmp_path / "ours.tif")
        np.testing.assert_array_equal(tifffile.imread(tmp_path / "ours.tif"), array)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize(
    "layout",
    [
        {"compression": None},
        {"compression": "lzw"},
        {"compression": "zlib", "predictor": True},
        {"compression": "zlib", "tile": (16, 16)},
        {"planarconfig": "separate"},
        {"bigtiff": True},
        {"byteorder": ">"},
        {"rowsperstrip": 3},
    ],
)
def test_deep_tiff_of_any_layout(tmp_path: Path, layout: dict[str, object], dtype: type) -> None:
    tifffile = pytest.importorskip("tifffile")
    array = deep(3, dtype)
    stored = np.moveaxis(array, -1, 0) if "planarconfig" in layout else array
    tifffile.imwrite(tmp_path / "x.tif", stored, photometric="rgb", metadata=None, **layout)
    np.testing.assert_array_equal(to_array(read_image(tmp_path / "x.tif")), array)


def test_premultiplied_deep_tiff_is_made_straight(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    straight = deep(4, np.float32)
    stored = straight.copy()
    stored[..., :3] *= stored[..., 3:]
    tifffile.imwrite(
        tmp_path / "x.tif", stored, photometric="rgb", extrasamples=["assocalpha"], metadata=None
    )
    np.testing.assert_allclose(to_array(read_image(tmp_path / "x.tif")), straight, rtol=1e-5)


def test_white_is_zero_tiff_is_inverted(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    for array in (deep(1, np.uint16)[..., 0], RGBA[..., 0]):
        tifffile.imwrite(tmp_path / "x.tif", array, photometric="miniswhite", metadata=None)
        result = to_array(read_image(tmp_path / "x.tif"))
        np.testing.assert_array_equal(result, np.iinfo(array.dtype).max - array)


@pytest.mark.parametrize("array", [np.zeros((4, 4, 3), np.int32), np.zeros((4, 4, 3), np.float64)])
def test_depths_that_cannot_be_kept_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "x.tif", array, photometric="rgb", metadata=None)
    with pytest.raises(InputError, match=r"not supported; convert|signed integer"):
        read_image(tmp_path / "x.tif")


def test_float_tiff_outside_the_unit_range_is_refused(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    for array in (deep(3, np.float32) * 4, np.full((4, 4, 3), np.nan, np.float32)):
        tifffile.imwrite(tmp_path / "x.tif", array, photometric="rgb", metadata=None)
        with pytest.raises(InputError, match=r"x\.tif: (float pixels span|holds NaN)"):
            read_image(tmp_path / "x.tif")


def test_ten_bit_avif_is_refused_not_reduced(tmp_path: Path) -> None:
    pyvips = pytest.importorskip("pyvips")
    image = pyvips.Image.new_from_array(np.full((64, 64, 3), 30000, np.uint16), interpretation="rgb16")
    (tmp_path / "x.avif").write_bytes(image.heifsave_buffer(compression="av1", bitdepth=10))
    with pytest.raises(InputError, match="10-bit AVIF"):
        read_image(tmp_path / "x.avif")


def test_declared_transparent_colour_becomes_alpha(tmp_path: Path) -> None:
    grey = np.array([[0, 50, 100]], np.uint8)
    Image.fromarray(grey).save(tmp_path / "l.png", transparency=50)
    picture = read_image(tmp_path / "l.png")
    assert picture.kind.mode == "LA"
    assert picture.alpha is not None
    assert picture.alpha.tolist() == [[255, 0, 255]]
    Image.fromarray(np.dstack([grey, grey, grey])).save(tmp_path / "rgb.png", transparency=(100, 100, 100))
    assert read_image(tmp_path / "rgb.png").kind.mode == "RGBA"
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "i16.png", transparency=50 * 257)
    picture = read_image(tmp_path / "i16.png")
    assert (picture.kind.mode, picture.kind.dtype) == ("LA", "uint16")
    assert picture.alpha is not None
    assert picture.alpha.tolist() == [[65535, 0, 65535]]


def png_of_bits(rows: np.ndarray, bits: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of 1, 2, 4, 8 or 16 bits a sample, from samples (H, W) or (H, W, C) that are that small."""
    height, width = rows.shape[:2]
    flat = rows.reshape(height, -1)
    shifts = np.arange(bits - 1, -1, -1)
    packed = np.packbits((flat[..., None] >> shifts & 1).reshape(height, -1).astype(np.uint8), axis=1)
    pixels = np.concatenate([np.zeros((height, 1), np.uint8), packed], axis=1).tobytes()
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = ((b"IHDR", head), *chunks, (b"IDAT", zlib.compress(pixels)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )


@pytest.mark.parametrize(
    ("bits", "surplus", "opened"),
    [(b, 0, False) for b in (1, 2, 4, 8, 16)]
    + [(b, 1, False) for b in (1, 2, 4, 8)]  # numbers above the sample's bits do not count
    + [(b, 0, True) for b in (1, 2, 4, 8, 16)],
)
def test_transparent_grey_of_every_depth(bits: int, surplus: int, opened: bool) -> None:
    grey = np.arange(64).reshape(4, 16) % (1 << bits)
    hidden = 5 % (1 << bits)
    key = struct.pack(">H", hidden | (surplus << bits))
    data = png_of_bits(grey, bits, 0, (b"tRNS", key))
    picture = from_pil(Image.open(io.BytesIO(data))) if opened else read_image(data)
    top = 65535 if bits == 16 else 255
    assert picture.kind.mode == "LA"
    np.testing.assert_array_equal(picture.alpha == 0, grey == hidden)
    seen = grey != hidden
    np.testing.assert_array_equal(picture.rgb[seen][:, 0], (grey * top // ((1 << bits) - 1))[seen])


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("alphas", [[0], [255, 0], [10, 200], [255, 128, 0], [0, 0, 0, 0]])
def test_transparent_palette_entries_of_every_depth(bits: int, alphas: list[int]) -> None:
    entries = 1 << bits
    alphas = alphas[:entries]
    index = np.arange(64).reshape(4, 16) % entries
    palette = np.random.default_rng(1).integers(0, 256, (entries, 3), dtype=np.uint8)
    data = png_of_bits(index, bits, 3, (b"PLTE", palette.tobytes()), (b"tRNS", bytes(alphas)))
    picture = read_image(data)
    expected = np.array(alphas + [255] * (entries - len(alphas)))[index]
    np.testing.assert_array_equal(picture.alpha, expected)
    seen = expected > 0
    np.testing.assert_array_equal(picture.rgb[seen], palette[index][seen])


@pytest.mark.parametrize(("bits", "surplus"), [(8, 0), (8, 1), (16, 0)])
def test_transparent_rgb_of_every_depth(bits: int, surplus: int) -> None:
    if bits == 16:
        pytest.importorskip("pyvips")
    rgb = np.arange(4 * 5 * 3).reshape(4, 5, 3) * (1 if bits == 8 else 1000)
    key = struct.pack(">HHH", *(int(v) | (surplus << 8 if bits == 8 else 0) for v in rgb[2, 3]))
    picture = read_image(png_of_bits(rgb, bits, 2, (b"tRNS", key)))
    hidden = np.zeros((4, 5), bool)
    hidden[2, 3] = True
    np.testing.assert_array_equal(picture.alpha == 0, hidden)
    np.testing.assert_array_equal(picture.rgb[~hidden], rgb[~hidden])


def test_sixteen_bit_png_with_a_transparent_colour(tmp_path: Path) -> None:
    pytest.importorskip("pyvips")
    array = deep(3, np.uint16)
    write_image(from_array(array), tmp_path / "x.png")
    data = (tmp_path / "x.png").read_bytes()
    key = b"tRNS" + array[2, 3].astype(">u2").tobytes()
    import zlib

    chunk = (6).to_bytes(4) + key + zlib.crc32(key).to_bytes(4)
    picture = read_image(data[:33] + chunk + data[33:])
    assert (picture.kind.mode, picture.kind.dtype) == ("RGBA", "uint16")
    assert picture.alpha is not None
    assert picture.alpha[2, 3] == 0
    assert (picture.alpha == 0).sum() == 1


def test_missing_extra_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = deep(3, np.uint16)
    write_image(from_array(array), tmp_path / "x.png")  # writing needs no extra
    write_image(from_array(array), tmp_path / "x.tif")
    monkeypatch.setitem(sys.modules, "pyvips", None)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    for name in ("x.png", "x.tif"):
        with pytest.raises(MissingExtraError, match=r"'\.\[images\]'"):
            read_image(tmp_path / name)
    with pytest.raises(MissingExtraError, match=r"'\.\[images\]'"):
        write_image(from_array(array), tmp_path / "y.tif")
    with pytest.raises(MissingExtraError, match="tifffile"):
        check_output(from_array(array).kind, 11, 13, tmp_path / "y.tif")
    assert not (tmp_path / "y.tif").exists()
    write_image(from_array(array[..., 0]), tmp_path / "grey.tif")  # grey needs none
    assert read_image(tmp_path / "grey.tif").kind.dtype == "uint16"


# -- Orientation ------------------------------------------------------------------------------------------

UPRIGHT = np.dstack(
    [np.add.outer(np.arange(16) * a, np.arange(24) * b) for a, b in ((9, 3), (2, 6), (5, 1))]
).astype(np.uint8)
# How a camera stores UPRIGHT under each orientation: the inverse of the turn the tag asks for.
INVERSE = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}


def stored(orientation: int) -> np.ndarray:
    image = Image.fromarray(UPRIGHT)
    image.getexif()[0x0112] = INVERSE[orientation]
    return np.asarray(ImageOps.exif_transpose(image))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".avif", "deep.tif", "deep.png"])
def test_orientation_is_applied_once_and_reset(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"x{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Camera"
    pixels = stored(orientation)
    if suffix == "deep.tif":
        tifffile = pytest.importorskip("tifffile")
        tags = [(0x0112, "H", 1, orientation, True), (0x010F, "s", 0, "Camera", True)]
        tifffile.imwrite(
            path, pixels.astype(np.uint16) * 257, photometric="rgb", metadata=None, extratags=tags
        )
    elif suffix == "deep.png":
        pytest.importorskip("pyvips")
        from yonos_trt.images.carried import Carried
        from yonos_trt.images.png_rows import PngRows

        with path.open("wb") as file:
            given = Carried(exif=exif.tobytes())
            writer = PngRows(file, *pixels.shape[:2], channels=3, bits=16, given=given)
            writer.write(pixels.astype(np.uint16) * 257)
            writer.finish()
    else:
        options = {
            ".jpg": {"quality": 100, "subsampling": 0},
            ".webp": {"lossless": True},
            ".avif": {"quality": 100},
        }
        Image.fromarray(pixels).save(path, exif=exif, **options.get(suffix, {}))
    picture = read_image(path)
    exact = suffix not in (".jpg", ".avif")
    assert picture.rgb.shape == UPRIGHT.shape
    got = picture.rgb // 257 if picture.kind.dtype == "uint16" else picture.rgb
    assert np.abs(got.astype(int) - UPRIGHT).max() <= (0 if exact else 12)
    result = tmp_path / f"result{path.suffix}"
    write_image(twice(picture), result, lossless=True)
    with Image.open(result) as image:
        image.load()
        assert image.getexif().get(0x0112, 1) == 1
        assert image.getexif()[0x010F] == "Camera"
        assert image.size == (48, 32)
        shown = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))[::2, ::2]
    assert np.abs(shown.astype(int) - UPRIGHT).max() <= (0 if exact else 16)
    assert read_image(result).rgb.shape == (32, 48, 3)


# -- Metadata ---------------------------------------------------------------------------------------------

XMP = (
    b'<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:exif="http://ns.adobe.com/exif/1.0/" '
    b'tiff:Orientation="6" exif:PixelXDimension="11" dc:creator="somebody">'
    b"<exif:PixelYDimension>13</exif:PixelYDimension></rdf:Description></rdf:RDF></x:xmpmeta>"
    b'<?xpacket end="w"?>'
)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def camera_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F] = "Camera"
    exif[0x0112] = 1
    exif.get_ifd(0x8769).update(
        {0x829A: TiffImagePlugin.IFDRational(1, 50), 0xA002: 13, 0xA003: 11, 0x9003: "2026:11:21 10:00:00"}
    )
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 30.0, 0.0)})
    written = Image.Exif()  # as read from a file: Pillow's TIFF writer skips directories that are new
    written.load(exif.tobytes())
    return written


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".avif"])
@pytest.mark.parametrize("target", [".png", ".jpg", ".webp", ".tif", ".avif"])
def test_icc_exif_xmp_and_dpi_are_kept(tmp_path: Path, suffix: str, target: str) -> None:
    image = Image.fromarray(RGBA[..., :3])
    parameters: dict[str, object] = {"exif": camera_exif(), "icc_profile": SRGB, "dpi": (300, 150)}
    if suffix == ".png":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", XMP.decode())
        parameters["pnginfo"] = info
    elif suffix == ".tif":
        exif = camera_exif()
        exif[700] = XMP
        parameters.update(
            exif=exif, compression="raw"
        )  # Pillow's own writer is the one that takes directories
    else:
        parameters["xmp"] = XMP
    image.save(tmp_path / f"in{suffix}", **parameters)
    picture = read_image(tmp_path / f"in{suffix}")
    write_image(twice(picture), tmp_path / f"out{target}")
    again = read_image(tmp_path / f"out{target}")
    assert again.icc == SRGB
    assert again.exif is not None
    exif = Image.Exif()
    exif.load(again.exif)
    assert exif[0x010F] == "Camera"
    details = exif.get_ifd(0x8769)
    assert (details[0xA002], details[0xA003]) == (26, 22)
    assert details[0x9003] == "2026:11:21 10:00:00"
    assert float(details[0x829A]) == pytest.approx(1 / 50)
    assert exif.get_ifd(0x8825)[1] == "N"
    assert again.xmp is not None
    for part in (
        b'tiff:Orientation="1"',
        b'PixelXDimension="26"',
        b"Dimension>22<",
        b'dc:creator="somebody"',
    ):
        assert part in again.xmp
    if {suffix, target} <= {".png", ".jpg", ".tif"}:  # WebP and AVIF have no such field
        assert again.dpi == pytest.approx((300, 150), rel=1e-3)


def test_text_is_kept_from_png_to_png_and_the_comment_from_jpeg_to_jpeg(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Title", "a title")
    info.add_itxt("Author", "Зоя")
    image = Image.fromarray(RGBA[..., :3])
    image.save(tmp_path / "in.png", pnginfo=info)
    write_image(twice(read_image(tmp_path / "in.png")), tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as result:
        assert result.text == {"Title": "a title", "Author": "Зоя"}
    image.save(tmp_path / "in.jpg", comment="by hand")
    write_image(twice(read_image(tmp_path / "in.jpg")), tmp_path / "out.jpg")
    with Image.open(tmp_path / "out.jpg") as result:
        assert result.info["comment"] == b"by hand"


def test_deep_files_keep_icc_xmp_dpi_and_text_tags(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    array = deep(3, np.uint16)
    tags = [(700, "B", len(XMP), XMP, True), (0x013B, "s", 0, "An Artist", True)]
    tifffile.imwrite(
        tmp_path / "in.tif", array, photometric="rgb", metadata=None, iccprofile=SRGB, extratags=tags,
        resolution=(300, 150), resolutionunit="inch",
    )  # fmt: skip
    picture = read_image(tmp_path / "in.tif")
    for name in ("out.tif", "out.png"):
        write_image(twice(picture), tmp_path / name)
        again = read_image(tmp_path / name)
        assert again.kind.dtype == "uint16"
        assert again.icc == SRGB
        assert again.xmp is not None
        assert b'PixelXDimension="26"' in again.xmp
        assert again.dpi == pytest.approx((300, 150), rel=1e-3)
        assert again.exif is not None
        exif = Image.Exif()
        exif.load(again.exif)
        assert exif[0x013B] == "An Artist"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's own warning
def test_broken_exif_costs_the_exif_not_the_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = Image.fromarray(RGBA[..., :3])
    image.save(
        tmp_path / "x.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff garbage", quality=100, subsampling=0
    )
    picture = read_image(tmp_path / "x.jpg")
    assert picture.rgb.shape == (11, 13, 3)
    write_image(picture, tmp_path / "y.jpg")
    assert read_image(tmp_path / "y.jpg").rgb.shape == (11, 13, 3)


def test_metadata_too_long_for_jpeg_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exif = Image.Exif()
    exif[0x010E] = "d" * 70_000
    Image.fromarray(RGBA[..., :3]).save(tmp_path / "x.png", exif=exif)
    write_image(read_image(tmp_path / "x.png"), tmp_path / "x.jpg")
    assert "does not fit into a JPEG" in caplog.text
    assert read_image(tmp_path / "x.jpg").exif is None


# -- CMYK and profiles ------------------------------------------------------------------------------------


def test_cmyk_without_profile_goes_through_pillow_and_back(tmp_path: Path) -> None:
    image = Image.fromarray(RGBA[..., :3]).convert("CMYK")
    image.save(tmp_path / "in.tif")
    picture = read_image(tmp_path / "in.tif")
    np.testing.assert_array_equal(picture.rgb, np.asarray(image.convert("RGB")))
    write_image(picture, tmp_path / "out.tif")
    with Image.open(tmp_path / "out.tif") as result:
        assert result.mode == "CMYK"
        np.testing.assert_array_equal(np.asarray(result.convert("RGB")), picture.rgb)


def test_cmyk_goes_through_its_profile_and_back(tmp_path: Path) -> None:
    pyvips = pytest.importorskip("pyvips")
    colour = pyvips.Image.new_from_array(SMOOTH).copy(interpretation="srgb")
    profile = colour.icc_transform("cmyk", input_profile="srgb").get("icc-profile-data")
    assert profile[16:20] == b"CMYK"
    flat = Image.fromarray(SMOOTH)
    srgb = ImageCms.createProfile("sRGB")
    cmyk = ImageCms.profileToProfile(flat, srgb, io.BytesIO(profile), outputMode="CMYK")
    cmyk.save(tmp_path / "in.tif", icc_profile=profile)
    picture = read_image(tmp_path / "in.tif")
    by_formula = np.asarray(cmyk.convert("RGB")).astype(int)
    assert np.abs(picture.rgb.astype(int) - SMOOTH).mean() < 12 < np.abs(by_formula - SMOOTH).mean()
    assert picture.dpi is None  # Pillow would say 1 dpi
    for name, limit in (("out.tif", 1), ("out.jpg", 3)):
        write_image(picture, tmp_path / name, quality=100)
        again = read_image(tmp_path / name)
        assert (again.kind.mode, again.icc) == ("CMYK", profile)
        assert np.abs(again.rgb.astype(int) - picture.rgb).mean() < limit
    write_image(picture, tmp_path / "out.png")
    again = read_image(tmp_path / "out.png")
    assert (again.kind.mode, again.icc) == ("RGB", None)
    np.testing.assert_array_equal(again.rgb, picture.rgb)


def test_cmyk_profile_that_is_none_is_not_trusted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = Image.fromarray(RGBA[..., :3]).convert("CMYK")
    image.save(tmp_path / "in.tif", icc_profile=SRGB)  # an RGB profile on CMYK pixels
    picture = read_image(tmp_path / "in.tif")
    assert "cannot be used" in caplog.text
    np.testing.assert_array_equal(picture.rgb, np.asarray(image.convert("RGB")))
    write_image(picture, tmp_path / "out.tif")
    assert read_image(tmp_path / "out.tif").kind.mode == "CMYK"


def test_cmyk_jpeg_keeps_mode_and_colours(tmp_path: Path) -> None:
    Image.fromarray(SMOOTH).convert("CMYK").save(tmp_path / "in.jpg", quality=100, subsampling=0)
    picture = read_image(tmp_path / "in.jpg")
    write_image(picture, tmp_path / "out.jpg", quality=100)
    again = read_image(tmp_path / "out.jpg")
    assert again.kind.mode == "CMYK"
    assert np.abs(again.rgb.astype(int) - picture.rgb).mean() < 3


def test_grey_profile_is_not_attached_to_rgb_pixels(tmp_path: Path) -> None:
    grey_profile = SRGB[:16] + b"GRAY" + SRGB[20:]
    Image.fromarray(RGBA[..., 0]).save(tmp_path / "in.png", icc_profile=grey_profile)
    picture = read_image(tmp_path / "in.png")
    write_image(picture, tmp_path / "out.png")
    assert read_image(tmp_path / "out.png").icc == grey_profile
    write_image(picture, tmp_path / "out.webp")
    assert read_image(tmp_path / "out.webp").icc is None


# -- Refusals on the way out ------------------------------------------------------------------------------


def test_alpha_into_jpeg_is_refused_or_dropped_on_request(tmp_path: Path) -> None:
    picture = from_array(RGBA)
    with pytest.raises(InputError, match=r"JPEG cannot hold the picture's transparency.*drop_alpha"):
        write_image(picture, tmp_path / "x.jpg")
    with pytest.raises(InputError, match="transparency"):
        check_output(picture.kind, 11, 13, tmp_path / "x.jpg")
    assert not list(tmp_path.iterdir())
    write_image(picture, tmp_path / "x.jpg", drop_alpha=True)
    write_image(picture.without_alpha(), tmp_path / "y.jpg")
    assert (tmp_path / "x.jpg").read_bytes() == (tmp_path / "y.jpg").read_bytes()


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".avif"])
def test_depth_into_an_8_bit_format_is_refused_or_rounded_on_request(tmp_path: Path, suffix: str) -> None:
    picture = from_array(np.full((16, 16, 3), 257 * 100 + 3, np.uint16))
    with pytest.raises(InputError, match=r"cannot hold 16 bits.*\.png or \.tiff.*drop_depth"):
        write_image(picture, tmp_path / f"x{suffix}")
    write_image(picture, tmp_path / f"x{suffix}", drop_depth=True)
    assert np.abs(read_image(tmp_path / f"x{suffix}").rgb.astype(int) - 100).max() <= 1


@pytest.mark.parametrize("name", ["x.bmp", "x.gif", "x", "x.pngg", "x.heic", ".png"])
def test_unknown_suffix_lists_what_is_supported(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"supported: \.png, \.jpg, \.jpeg, \.webp, \.tif, \.tiff, \.avif"):
        write_image(from_array(RGBA), tmp_path / name)


def test_format_overrides_the_suffix(tmp_path: Path) -> None:
    write_image(from_array(RGBA), tmp_path / "x.out", format="png")
    assert read_image((tmp_path / "x.out").read_bytes()).kind.format == "PNG"
    with pytest.raises(InputError, match="format 'gif'"):
        write_image(from_array(RGBA), tmp_path / "x.out", format="gif")


@pytest.mark.parametrize(("suffix", "side"), [(".jpg", 65_501), (".webp", 16_384), (".avif", 16_385)])
def test_pictures_too_large_for_the_format_are_refused_before_encoding(
    tmp_path: Path, suffix: str, side: int
) -> None:
    with pytest.raises(InputError, match="too large"):
        write_image(from_array(np.zeros((1, side, 3), np.uint8)), tmp_path / f"x{suffix}")
    write_image(from_array(np.zeros((1, side - 1, 3), np.uint8)), tmp_path / f"x{suffix}")
    assert read_image(tmp_path / f"x{suffix}").width_px == side - 1


@pytest.mark.parametrize(
    "choice",
    [{"quality": 0}, {"quality": 101}, {"compression": 10}, {"subsampling": "4:1:1"}, {"palette": "web"}],
)
def test_options_out_of_range_are_refused(choice: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(choice))):
        SaveOptions(**choice)  # type: ignore[arg-type]


def test_unknown_option_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'qualty'.*quality, subsampling"):
        write_image(from_array(RGBA), tmp_path / "x.png", qualty=3)


def test_quality_changes_the_file(tmp_path: Path) -> None:
    picture = from_array(np.asarray(Image.fromarray(RGBA[..., :3]).resize((128, 128))))
    for suffix in (".jpg", ".webp", ".avif"):
        sizes = []
        for quality in (30, 95):
            write_image(picture, tmp_path / f"{quality}{suffix}", quality=quality)
            sizes.append((tmp_path / f"{quality}{suffix}").stat().st_size)
        assert sizes[0] < sizes[1]
    write_image(picture, tmp_path / "lossless.webp", lossless=True)
    np.testing.assert_array_equal(read_image(tmp_path / "lossless.webp").rgb, picture.rgb)


def test_palette_may_be_given_up_for_rgb(tmp_path: Path) -> None:
    picture = from_pil(Image.fromarray(RGBA[..., :3]).quantize(64))
    write_image(picture, tmp_path / "x.png", palette="rgb")
    again = read_image(tmp_path / "x.png")
    assert again.kind.mode == "RGB"
    np.testing.assert_array_equal(again.rgb, picture.rgb)


# -- Sources ----------------------------------------------------------------------------------------------


def test_path_string_bytes_and_pil_give_the_same_picture(tmp_path: Path) -> None:
    path = tmp_path / "ünïcode name.png"
    Image.fromarray(RGBA).save(path)
    pictures = [read_image(path), read_image(str(path)), read_image(path.read_bytes())]
    with Image.open(path) as image:
        pictures.append(read_image(image))
    for picture in pictures:
        np.testing.assert_array_equal(to_array(picture), RGBA)
        assert picture.kind.mode == "RGBA"


def test_main_picture_of_a_multi_picture_jpeg_is_read(tmp_path: Path) -> None:
    first, second = Image.fromarray(SMOOTH), Image.fromarray(255 - SMOOTH)
    buffer = io.BytesIO()
    first.save(buffer, format="MPO", save_all=True, append_images=[second], quality=95)
    (tmp_path / "x.jpg").write_bytes(buffer.getvalue())
    picture = read_image(tmp_path / "x.jpg")
    assert picture.kind.format == "JPEG"
    assert np.abs(picture.rgb.astype(int) - SMOOTH).mean() < 8
    with Image.open(tmp_path / "x.jpg") as image:
        np.testing.assert_array_equal(read_image(image).rgb, picture.rgb)


def test_threads_read_and_write_different_pictures(tmp_path: Path) -> None:
    def round_trip(k: int) -> bool:
        rng = np.random.default_rng(k)
        array = rng.integers(1, 65535, (40 + k, 50, 3 + k % 2), dtype=np.uint16)
        path = tmp_path / f"{k}{('.png', '.tif')[k % 2]}"
        write_image(from_array(array), path)
        return bool(np.array_equal(to_array(read_image(path)), array))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(round_trip, range(32)))


# -- Real files -------------------------------------------------------------------------------------------


@pytest.mark.data
def test_every_development_picture_opens_as_pillow_shows_it(data_dir: Path) -> None:
    files = sorted((data_dir / "dev").rglob("*.png"))
    assert len(files) >= 100
    for file in files:
        picture = read_image(file)
        with Image.open(file) as image:
            assert (picture.width_px, picture.height_px) == image.size
            if picture.alpha is None:
                np.testing.assert_array_equal(picture.rgb, np.asarray(image.convert("RGB")))


@pytest.mark.data
def test_real_photographs_survive_every_format(data_dir: Path, tmp_path: Path) -> None:
    source = sorted((data_dir / "train" / "images").glob("*.webp"))[0]
    picture = read_image(source)
    for suffix in (".png", ".tif", ".jpg", ".webp", ".avif"):
        write_image(picture, tmp_path / f"x{suffix}")
        again = read_image(tmp_path / f"x{suffix}")
        error = np.abs(again.rgb.astype(int) - picture.rgb).mean()
        assert error == 0 if suffix in (".png", ".tif") else error < 3
