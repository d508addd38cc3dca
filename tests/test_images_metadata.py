"""What travels with a picture, what is made true, and what is named as left out."""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from yonos_trt.errors import InputError
from yonos_trt.images import (
    Picture,
    check_output,
    from_array,
    from_pil,
    open_row_writer,
    read_image,
    to_pil,
    write_image,
)
from yonos_trt.images.avif_boxes import avif_color, avif_left_out
from yonos_trt.images.carried import Carried
from yonos_trt.images.color_space import ColorSpace
from yonos_trt.images.exif import Entry, Exif
from yonos_trt.images.icc import SRGB_CURVE, adobe_rgb_profile, matrix_profile
from yonos_trt.images.photoshop import iptc_of, parse_resources
from yonos_trt.images.png_rows import PngRows
from yonos_trt.images.xmp import grown_xmp
from yonos_trt.images.xmp_parts import split

RNG = np.random.default_rng(5)
RGB = (np.indices((20, 30)).sum(0)[..., None] * np.array([3, 4, 5]) % 256).astype(np.uint8)
FORMATS = [".png", ".jpg", ".tif", ".webp", ".avif"]
P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.3127, 0.3290))


def grown(picture: Picture, scale: int = 2) -> Picture:
    def larger(plane: Any) -> Any:
        return None if plane is None else plane.repeat(scale, 0).repeat(scale, 1)

    return picture.with_pixels(larger(picture.rgb), larger(picture.alpha))


def result_of(source: Path, target: Path, **choices: Any) -> tuple[Picture, tuple[str, ...]]:
    """Write the twofold picture of ``source`` to ``target``; read it again."""
    left_out = write_image(grown(read_image(source)), target, **choices)
    return read_image(target), left_out


def png_with(path: Path, *chunks: tuple[bytes, bytes], bits: int = 8) -> Path:
    """Write RGB with further chunks in front of its pixels."""
    pixels = RGB if bits == 8 else RGB.astype(np.uint16) * 257
    with path.open("wb") as file:
        writer = PngRows(file, 20, 30, channels=3, bits=bits, given=Carried(chunks=list(chunks)))
        writer.write(pixels)
        writer.finish()
    return path


def jpeg_with(path: Path, *segments: tuple[int, bytes], trailer: bytes = b"", **options: Any) -> Path:
    """Write RGB with further segments."""
    extra = b"".join(bytes((0xFF, m)) + struct.pack(">H", len(b) + 2) + b for m, b in segments)
    Image.fromarray(RGB).save(path, extra=extra, quality=95, subsampling=0, **options)
    path.write_bytes(path.read_bytes() + trailer)
    return path


def xmp_of(body: str, **namespaces: str) -> bytes:
    declared = "".join(f' xmlns:{prefix}="{uri}"' for prefix, uri in namespaces.items())
    return (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about=""{declared} {body}</rdf:Description></rdf:RDF></x:xmpmeta>'
    ).encode()


XMP_LABEL = b"http://ns.adobe.com/xap/1.0/\0"


# -- EXIF --------------------------------------------------------------------------------------------------


STRUCTURAL = {
    "photometric": (262, 3, struct.pack("<H", 6)),
    "planar": (284, 3, struct.pack("<H", 2)),
    "rows per strip": (278, 3, struct.pack("<H", 0)),
    "samples": (277, 3, struct.pack("<H", 1)),
    "bits": (258, 3, struct.pack("<3H", 4, 4, 4)),
    "compression": (259, 3, struct.pack("<H", 6)),
    "strips": (273, 4, struct.pack("<I", 8)),
    "sample format": (339, 3, struct.pack("<H", 3)),
    "tiles": (322, 3, struct.pack("<H", 16)),
    "predictor": (317, 3, struct.pack("<H", 2)),
    "extra samples": (338, 3, struct.pack("<H", 1)),
    "unknown": (65000, 4, struct.pack("<I", 7)),
}


@pytest.mark.parametrize("name", STRUCTURAL)
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_exif_that_describes_storage_does_not_get_into_a_tiff(tmp_path: Path, name: str, mode: str) -> None:
    tifffile = pytest.importorskip("tifffile")
    tag, kind, raw = STRUCTURAL[name]
    exif = Exif("<", main={tag: Entry(kind, raw), 0x010F: Entry(2, b"Camera\0")}).tobytes()
    Image.fromarray(RGB).convert(mode).save(tmp_path / "in.png", exif=exif)
    picture = grown(read_image(tmp_path / "in.png"))
    write_image(picture, tmp_path / "whole.tif")
    with open_row_writer(tmp_path / "rows.tif", picture, 40, 60) as writer:
        writer.write_rows(picture.rgb, picture.alpha)
    for path in (tmp_path / "whole.tif", tmp_path / "rows.tif"):
        expected = np.asarray(Image.fromarray(RGB).convert(mode)).repeat(2, 0).repeat(2, 1)
        with Image.open(path) as image:
            assert image.mode == mode
            np.testing.assert_array_equal(np.asarray(image), expected)
            assert image.getexif()[0x010F] == "Camera"
        np.testing.assert_array_equal(tifffile.imread(path), expected)


def test_numbers_of_a_wrong_type_or_count_are_named(tmp_path: Path) -> None:
    main = {0x011A: Entry(5, bytes(32)), 0x0128: Entry(3, b"\2\0\2\0"), 0x010F: Entry(2, b"Camera\0")}
    Image.fromarray(RGB).save(tmp_path / "in.png", exif=Exif("<", main=main).tobytes())
    result, left_out = result_of(tmp_path / "in.png", tmp_path / "out.tif")
    assert left_out == ("damaged entries of EXIF",)
    assert result.exif is not None
    with warnings.catch_warnings(), Image.open(tmp_path / "out.tif") as image:
        warnings.simplefilter("error")
        assert image.getexif()[0x010F] == "Camera"


@pytest.mark.parametrize("suffix", FORMATS)
def test_exif_is_made_true_or_removed_by_name(tmp_path: Path, suffix: str) -> None:
    exif = Exif(
        ">",
        main={0x0112: Entry(3, struct.pack(">H", 1)), 0x9C9B: Entry(1, "Titel".encode("utf-16-le"))},
        exif={
            0xA002: Entry(4, struct.pack(">I", 30)),
            0xA003: Entry(4, struct.pack(">I", 20)),
            0x9214: Entry(3, struct.pack(">4H", 10, 5, 6, 4)),
            0xA20E: Entry(5, struct.pack(">2I", 3000, 7)),
            0x927C: Entry(7, b"MAKER\0offsets"),
            0x9286: Entry(7, b"UNICODE\0" + "né".encode("utf-16-be")),
        },
        gps={1: Entry(2, b"N\0")},
        interop={1: Entry(2, b"R98\0")},
    ).tobytes()
    inner = exif.removeprefix(b"Exif\0\0")
    (first,) = struct.unpack_from(">H", inner, 8)
    at = 10 + 12 * first
    inner = inner[:at] + struct.pack(">I", len(inner)) + inner[at + 4 :]  # a thumbnail's directory follows
    inner += struct.pack(">HHHIII", 1, 0x0103, 3, 1, 6 << 16, 0)
    Image.fromarray(RGB).save(tmp_path / "in.jpg", exif=b"Exif\0\0" + inner)
    result, left_out = result_of(tmp_path / "in.jpg", tmp_path / f"out{suffix}")
    assert any("thumbnail" in entry for entry in left_out)
    assert any("maker note" in entry for entry in left_out)
    assert result.exif is not None
    found = Exif.parse(result.exif)
    assert not found.has_thumbnail
    assert not found.is_damaged
    assert 0x927C not in found.exif
    values = {tag: found.exif[tag].numbers(found.order) for tag in (0xA002, 0xA003, 0x9214)}
    assert values == {0xA002: (60,), 0xA003: (40,), 0x9214: (21, 11, 12, 8)}
    top, bottom = struct.unpack(found.order + "II", found.exif[0xA20E].raw)
    assert top * 7 == 6000 * bottom
    assert found.main[0x9C9B].raw == "Titel".encode("utf-16-le")
    text = found.exif[0x9286].raw
    assert text.startswith(b"UNICODE\0")
    assert text[8:].decode("utf-16-le" if found.order == "<" else "utf-16-be") == "né"
    assert found.gps
    assert found.interop[1].raw == b"R98\0"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_subject_stays_where_it_is_seen(tmp_path: Path, orientation: int) -> None:
    stored = np.zeros((20, 30, 3), np.uint8)
    stored[4, 7] = 255
    exif = Exif(
        "<",
        main={0x0112: Entry(3, struct.pack("<H", orientation))},
        exif={0x9214: Entry(3, struct.pack("<2H", 7, 4))},
    )
    Image.fromarray(stored).save(tmp_path / "in.png", exif=exif.tobytes())
    picture = read_image(tmp_path / "in.png")
    result, _ = result_of(tmp_path / "in.png", tmp_path / "out.png")
    assert picture.exif is not None
    assert result.exif is not None
    x, y = Exif.parse(picture.exif).exif[0x9214].numbers("<")
    assert picture.rgb[y, x].min() == 255
    x, y = Exif.parse(result.exif).exif[0x9214].numbers("<")
    assert result.rgb[y, x].min() == 255


@pytest.mark.parametrize(
    "block",
    [
        b"MM\0*\0\0\0\x08\xff\xff garbage",
        b"II*\0\x08\0\0\0\x01\0\x0f\x01\x02\0\xff\xff\xff\xff\x00\x00\x00\x10\0\0\0\0",
        b"not tiff at all",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
    ],
)
@pytest.mark.parametrize("suffix", FORMATS)
def test_broken_exif_is_named_and_makes_no_python_warning(tmp_path: Path, block: bytes, suffix: str) -> None:
    png_with(tmp_path / "in.png", (b"eXIf", block))
    jpeg_with(tmp_path / "in.jpg", (0xE1, b"Exif\0\0" + block))
    for name in ("in.png", "in.jpg"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result, left_out = result_of(tmp_path / name, tmp_path / f"out{suffix}")
        assert any("EXIF" in entry for entry in left_out)
        assert result.rgb.shape == (40, 60, 3)


# -- PNG chunks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keyword",
    ["icc_profile", "dpi", "exif", "xmp", "transparency", "gamma", "chromaticity", "srgb", "aspect"],
)
@pytest.mark.parametrize("bits", [8, 16])
def test_text_is_text_whatever_it_is_called(tmp_path: Path, keyword: str, bits: int) -> None:
    png_with(tmp_path / "in.png", (b"tEXt", keyword.encode() + b"\0hello"), bits=bits)
    result, left_out = result_of(tmp_path / "in.png", tmp_path / "out.png")
    assert dict(result.text) == {keyword: "hello"}
    assert (result.icc, result.exif, result.xmp, result.dpi) == (None, None, None, None)
    assert left_out == ()


def test_chunks_are_kept_or_named(tmp_path: Path) -> None:
    kept = [(b"tIME", bytes((7, 230, 1, 2, 3, 4, 5))), (b"cLLI", struct.pack(">II", 10, 20))]
    kept += [(b"mDCV", struct.pack(">8H2I", *range(8), 10_000_000, 1))]
    named = [(b"sBIT", b"\5\5\5"), (b"bKGD", bytes(6)), (b"prVt", b"private"), (b"caBX", b"jumb")]
    png_with(tmp_path / "in.png", *kept, *named, (b"pHYs", struct.pack(">IIB", 3, 4, 0)))
    result, left_out = result_of(tmp_path / "in.png", tmp_path / "out.png")
    assert sorted(result.chunks) == sorted([*kept, (b"pHYs", struct.pack(">IIB", 3, 4, 0))])
    assert [word for word in ("sBIT", "bKGD", "prVt", "caBX") if not any(word in e for e in left_out)] == []
    _, left_out = result_of(tmp_path / "in.png", tmp_path / "out.jpg")
    assert any("tIME" in entry and "JPEG" in entry for entry in left_out)


def test_text_goes_where_it_can(tmp_path: Path) -> None:
    chunks = [
        (b"tEXt", b"Title\0One"),
        (b"tEXt", b"Comment\0a"),
        (b"zTXt", b"Comment\0\0" + zlib.compress(b"b")),
    ]
    png_with(tmp_path / "in.png", *chunks)
    result, left_out = result_of(tmp_path / "in.png", tmp_path / "out.png")
    assert dict(result.text) == {"Title": "One", "Comment": "a\nb"}
    assert left_out == ()
    result, left_out = result_of(tmp_path / "in.png", tmp_path / "out.jpg")
    assert dict(result.text) == {"comment": "a\nb"}
    assert left_out == ("text (Title), which JPEG cannot hold",)
    _, left_out = result_of(tmp_path / "in.png", tmp_path / "out.webp")
    assert left_out == ("text (Comment, Title), which WEBP cannot hold",)


@pytest.mark.parametrize("suffix", FORMATS)
def test_resolution_is_carried_by_every_format(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(RGB).save(tmp_path / "in.png", dpi=(300, 150))
    result, left_out = result_of(tmp_path / "in.png", tmp_path / f"out{suffix}")
    assert left_out == ()
    if suffix in (".webp", ".avif"):
        assert result.exif is not None
        found = Exif.parse(result.exif)
        values = [Entry.numbers(Entry(4, found.main[tag].raw), found.order) for tag in (0x011A, 0x011B)]
        assert [a / b for a, b in values] == pytest.approx([300, 150], rel=1e-3)
    else:
        assert result.dpi == pytest.approx((300, 150), rel=1e-3)


# -- Colour ------------------------------------------------------------------------------------------------


def shown(icc: bytes | None, rgb: tuple[int, int, int]) -> list[int]:
    """What a viewer that follows the profile shows in sRGB."""
    image = Image.new("RGB", (1, 1), rgb)
    if icc is None:
        return list(rgb)
    profile = ImageCms.getOpenProfile(io.BytesIO(icc))
    srgb = ImageCms.createProfile("sRGB")
    out = ImageCms.profileToProfile(
        image, profile, srgb, renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC
    )
    assert out is not None
    return [int(value) for value in np.asarray(out)[0, 0]]


def test_profiles_made_from_numbers_are_those_that_lcms_makes() -> None:
    srgb = matrix_profile("x", ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), (0.3127, 0.3290)), SRGB_CURVE)
    for color in ((200, 30, 90), (5, 250, 128), (128, 128, 128)):
        assert np.abs(np.subtract(shown(srgb, color), color)).max() <= 1
    p3_to_srgb = [[1.2249, -0.2247, 0], [-0.0420, 1.0419, 0], [-0.0197, -0.0786, 1.0979]]  # CSS Color 4, 10.8
    light = ((np.array([200, 100, 50]) / 255 + 0.055) / 1.055) ** 2.4
    expected = (1.055 * np.clip(p3_to_srgb @ light, 0.004, 1) ** (1 / 2.4) - 0.055) * 255
    assert np.abs(shown(matrix_profile("p3", P3, SRGB_CURVE), (200, 100, 50)) - expected).max() <= 1.5
    assert shown(adobe_rgb_profile(), (128, 128, 128)) == pytest.approx([127, 127, 127], abs=2)
    grey = ImageCms.getOpenProfile(io.BytesIO(matrix_profile("g", P3, (1.0,), grey=True)))
    assert grey.profile.xcolor_space.strip() == "GRAY"


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("cicp", [(12, 13, 0, 1), (9, 16, 0, 1), (9, 18, 0, 1), (1, 8, 0, 1), (9, 1, 0, 1)])
def test_cicp_stays_in_png_and_becomes_nclx_in_avif(tmp_path: Path, cicp: tuple[int, ...], bits: int) -> None:
    png_with(tmp_path / "in.png", (b"cICP", bytes(cicp)), bits=bits)
    expected = ColorSpace((cicp[0], cicp[1], 1))
    for name in ("out.png", "out.avif"):
        result, left_out = result_of(tmp_path / "in.png", tmp_path / name, drop_depth=name == "out.avif")
        assert result.kind.color == expected
        assert left_out == ()
    picture = read_image(tmp_path / "in.png")
    with open_row_writer(tmp_path / "rows.png", picture, 40, 60) as writer:
        writer.write_rows(grown(picture).rgb)
    assert read_image(tmp_path / "rows.png").kind.color == expected
    back, _ = result_of(tmp_path / "out.avif", tmp_path / "back.png")
    assert back.kind.color == expected


def test_nclx_is_corrected_beside_alpha_exif_and_xmp(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    rgba = np.dstack([RGB, RGB[..., :1]])
    exif = Exif("<", main={0x010E: Entry(2, bytes(range(1, 200)) + b"\0")}).tobytes()
    Image.fromarray(rgba).save(tmp_path / "in.png", exif=exif)
    picture = read_image(tmp_path / "in.png")
    picture = replace(picture, kind=replace(picture.kind, color=ColorSpace((12, 13, 1))), xmp=MAIN)
    write_image(picture, tmp_path / "out.avif")
    with Image.open(tmp_path / "out.avif") as image:
        plain = np.asarray(image)
    write_image(replace(picture, kind=replace(picture.kind, color=None)), tmp_path / "plain.avif")
    with Image.open(tmp_path / "plain.avif") as image:
        np.testing.assert_array_equal(np.asarray(image), plain)
    result = read_image(tmp_path / "out.avif")
    assert result.kind.color == ColorSpace((12, 13, 1))
    assert result.exif is not None
    assert Exif.parse(result.exif).main[0x010E].raw == bytes(range(1, 200)) + b"\0"
    with av.open(str(tmp_path / "out.avif")) as clip:  # FFmpeg asks the sequence header, not the box
        frame = next(clip.decode(video=0))
    assert (frame.color_primaries, frame.color_trc) == (12, 13)


@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".webp"])
def test_code_points_become_an_equal_profile(tmp_path: Path, suffix: str) -> None:
    png_with(tmp_path / "in.png", (b"cICP", bytes((12, 13, 0, 1))))
    result, left_out = result_of(tmp_path / "in.png", tmp_path / f"out{suffix}")
    assert left_out == ()
    assert shown(result.icc, (200, 100, 50)) == shown(matrix_profile("p3", P3, SRGB_CURVE), (200, 100, 50))
    write_image(grown(read_image(tmp_path / "in.png")), tmp_path / "in.avif")
    result, _ = result_of(tmp_path / "in.avif", tmp_path / f"out{suffix}")
    assert shown(result.icc, (200, 100, 50)) == shown(matrix_profile("p3", P3, SRGB_CURVE), (200, 100, 50))


@pytest.mark.parametrize("cicp", [(9, 16, 0, 1), (9, 18, 0, 1), (12, 13, 0, 0), (1, 10, 0, 1)])
@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".webp"])
def test_what_no_profile_can_say_is_refused_before_the_work(
    tmp_path: Path, cicp: tuple[int, ...], suffix: str
) -> None:
    png_with(tmp_path / "in.png", (b"cICP", bytes(cicp)))
    kind = read_image(tmp_path / "in.png").kind
    with pytest.raises(InputError, match=r"cannot say the picture's colour space.*write \.png"):
        check_output(kind, 40, 60, tmp_path / f"out{suffix}")
    check_output(kind, 40, 60, tmp_path / "out.png")


@pytest.mark.parametrize("suffix", FORMATS)
def test_gamma_is_kept_or_becomes_a_profile(tmp_path: Path, suffix: str) -> None:
    png_with(tmp_path / "in.png", (b"gAMA", struct.pack(">I", 100_000)), bits=16)
    result, left_out = result_of(tmp_path / "in.png", tmp_path / f"out{suffix}", drop_depth=True)
    assert left_out == ()
    if suffix == ".png":
        assert result.kind.color == ColorSpace(gamma=1.0)
    else:
        assert (
            np.abs(np.subtract(shown(result.icc, (55, 55, 55)), (127, 127, 127))).max() <= 2
        )  # linear light


def test_the_order_of_colour_chunks(tmp_path: Path) -> None:
    p3 = matrix_profile("p3", P3, SRGB_CURVE)
    linear, srgb = (b"gAMA", struct.pack(">I", 100_000)), (b"sRGB", b"\0")
    profile = (b"iCCP", b"x\0\0" + zlib.compress(p3))
    rec2020 = (b"cICP", bytes((9, 1, 0, 1)))
    wanted = {
        (rec2020, profile, srgb, linear): ColorSpace((9, 1, 1)).profile(None, grey=False),
        (profile, linear): p3,
        (srgb, linear): None,
        ((b"gAMA", struct.pack(">I", 45455)),): None,
    }
    for number, (chunks, icc) in enumerate(wanted.items()):
        png_with(tmp_path / f"{number}.png", *chunks)
        result, left_out = result_of(tmp_path / f"{number}.png", tmp_path / f"{number}.jpg")
        assert result.icc == icc, number
        assert left_out == ()
        again, _ = result_of(tmp_path / f"{number}.png", tmp_path / "again.png")
        before, after = read_image(tmp_path / f"{number}.png"), again
        assert after.icc == before.icc
        assert after.kind.color is not None
        assert before.kind.color is not None
        assert (after.kind.color.cicp, after.kind.color.gamma) == (
            before.kind.color.cicp,
            before.kind.color.gamma,
        )


def test_primaries_beyond_all_colours_are_primaries(tmp_path: Path) -> None:
    pro_photo = (34567, 35850, 73470, 26530, 15960, 84040, 3660, 10)
    png_with(tmp_path / "in.png", (b"cHRM", struct.pack(">8I", *pro_photo)))
    result, left_out = result_of(tmp_path / "in.png", tmp_path / "out.jpg")
    assert left_out == ()
    assert np.abs(np.subtract(shown(result.icc, (128, 128, 128)), (128, 128, 128))).max() <= 1
    assert shown(result.icc, (90, 130, 90))[1] > 133  # greener than in sRGB


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    "chunk",
    [
        (b"gAMA", struct.pack(">I", 1)),
        (b"gAMA", b"\xff" * 4),
        (b"gAMA", bytes(4)),
        (b"cHRM", bytes(32)),
        (b"cHRM", b"\xff" * 32),
        (b"cHRM", struct.pack(">8I", 31270, 32900, *(30000, 30000) * 3)),
    ],
)
def test_impossible_numbers_are_named(tmp_path: Path, chunk: tuple[bytes, bytes], suffix: str) -> None:
    png_with(tmp_path / "in.png", chunk)
    result, left_out = result_of(tmp_path / "in.png", tmp_path / f"out{suffix}")
    assert result.icc is None
    assert result.kind.color is None
    assert left_out == (() if chunk[1] == bytes(4) else ("gAMA or cHRM, whose numbers are impossible",))


def test_adobe_rgb_by_exif_alone_stays_in_jpeg_and_becomes_a_profile_elsewhere(tmp_path: Path) -> None:
    exif = Exif("<", exif={0xA001: Entry(3, b"\xff\xff")}, interop={1: Entry(2, b"R03\0")}).tobytes()
    Image.fromarray(RGB).save(tmp_path / "in.jpg", exif=exif)
    result, _ = result_of(tmp_path / "in.jpg", tmp_path / "out.jpg")
    assert result.icc is None
    assert result.exif is not None
    assert Exif.parse(result.exif).interop[1].raw == b"R03\0"
    for suffix in (".png", ".tif", ".webp", ".avif"):
        result, _ = result_of(tmp_path / "in.jpg", tmp_path / f"out{suffix}")
        assert result.icc == adobe_rgb_profile()


def test_grey_gets_a_grey_profile(tmp_path: Path) -> None:
    picture = read_image(png_with(tmp_path / "in.png", (b"gAMA", struct.pack(">I", 100_000))))
    Image.fromarray(RGB[..., 0]).save(tmp_path / "grey.png")
    data = (tmp_path / "grey.png").read_bytes()
    chunk = b"gAMA" + struct.pack(">I", 100_000)
    chunk = struct.pack(">I", 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "grey.png").write_bytes(data[:33] + chunk + data[33:])
    result, _ = result_of(tmp_path / "grey.png", tmp_path / "grey.jpg")
    assert result.kind.mode == "L"
    assert result.icc is not None
    assert result.icc[16:20] == b"GRAY"
    assert picture.kind.color == ColorSpace(gamma=1.0)


# -- IPTC and Photoshop ------------------------------------------------------------------------------------


IPTC = b"\x1c\x02\x00\x00\x02\x00\x04\x1c\x02\x19\x00\x07harbour\x1c\x02\x78\x00\x06A boat"


def resource(number: int, data: bytes) -> bytes:
    return b"8BIM" + struct.pack(">HHI", number, 0, len(data)) + data + bytes(len(data) % 2)


def jpeg_with_iptc(path: Path) -> Path:
    digest = hashlib.md5(IPTC, usedforsecurity=False).digest()
    block = (
        resource(0x0404, IPTC)
        + resource(0x0425, digest)
        + resource(0x040C, b"thumb")
        + resource(1032, b"grid")
    )
    return jpeg_with(path, (0xED, b"Photoshop 3.0\0" + block[:30]), (0xED, b"Photoshop 3.0\0" + block[30:]))


@pytest.mark.parametrize("target", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize("source", [".png", ".jpg", ".tif"])
def test_iptc_goes_wherever_it_can(tmp_path: Path, source: str, target: str) -> None:
    jpeg_with_iptc(tmp_path / "first.jpg")
    write_image(read_image(tmp_path / "first.jpg"), tmp_path / f"in{source}")
    result, left_out = result_of(tmp_path / f"in{source}", tmp_path / f"out{target}")
    assert left_out == ()
    assert iptc_of(parse_resources(result.resources or b"")) == IPTC
    if target == ".tif":
        with Image.open(tmp_path / "out.tif") as image:
            assert image.tag_v2[33723] == IPTC  # type: ignore[attr-defined]


def test_iptc_is_named_where_it_cannot_go_and_pictures_of_the_old_picture_are_removed(tmp_path: Path) -> None:
    jpeg_with_iptc(tmp_path / "in.jpg")
    result, left_out = result_of(tmp_path / "in.jpg", tmp_path / "out.jpg")
    assert [number for number, _, _ in parse_resources(result.resources or b"")] == [0x0404, 0x0425]
    assert left_out == (
        "Photoshop resources 1032, 1036 (thumbnail, guides, slices and the like of the old picture)",
    )
    for suffix in (".webp", ".avif"):
        _, left_out = result_of(tmp_path / "in.jpg", tmp_path / f"out{suffix}")
        assert any("IPTC" in entry and "cannot hold" in entry for entry in left_out)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_photoshop_resources_that_are_true_of_any_size_are_kept(tmp_path: Path, suffix: str) -> None:
    """Resolution, caption, copyright flag, URL, a path, the clipping path's name; no groups of layers."""
    kept = {
        0x03ED: b"r" * 16,
        0x03F0: b"\5hello",
        0x040A: b"\1",
        0x040B: b"https://example.org",
        0x07D0: b"p" * 26,
    }
    kept |= {0x0BB7: b"\4clip"}
    block = b"Photoshop 3.0\0" + b"".join(resource(n, d) for n, d in {**kept, 0x0402: b"xx"}.items())
    jpeg_with(tmp_path / "in.jpg", (0xED, block))
    result, left_out = result_of(tmp_path / "in.jpg", tmp_path / f"out{suffix}")
    found = {number: data for number, _, data in parse_resources(result.resources or b"")}
    if suffix == ".png":
        assert found == kept
    else:
        assert {n: d for n, d in found.items() if n != 0x03ED} == {
            n: d for n, d in kept.items() if n != 0x03ED
        }
    assert any("1026" in entry for entry in left_out)


def test_damaged_photoshop_resources_are_named(tmp_path: Path) -> None:
    jpeg_with(tmp_path / "in.jpg", (0xED, b"Photoshop 3.0\0" + resource(0x0404, IPTC)[:-9]))
    _, left_out = result_of(tmp_path / "in.jpg", tmp_path / "out.jpg")
    assert any("IPTC, which cannot be read" in entry for entry in left_out)


# -- XMP ---------------------------------------------------------------------------------------------------


def extended(main: bytes, extension: bytes) -> list[tuple[int, bytes]]:
    digest = hashlib.md5(extension, usedforsecurity=False).hexdigest().upper().encode()
    parts = [(0xE1, XMP_LABEL + main.replace(b"DIGEST", digest))]
    for at in (40, 0):  # parts may come in any order
        piece = extension[at : at + 40] if at == 0 else extension[40:]
        head = b"http://ns.adobe.com/xmp/extension/\0" + digest + struct.pack(">II", len(extension), at)
        parts.append((0xE1, head + piece))
    return parts


NOTE = {"xmpNote": "http://ns.adobe.com/xmp/note/", "dc": "http://purl.org/dc/elements/1.1/"}
MAIN = xmp_of('dc:source="main" xmpNote:HasExtendedXMP="DIGEST">', **NOTE)
EXTENSION = xmp_of('photoshop:History="&#10;edited">', photoshop="http://ns.adobe.com/photoshop/1.0/")


@pytest.mark.parametrize("suffix", FORMATS)
def test_extended_xmp_is_merged(tmp_path: Path, suffix: str) -> None:
    jpeg_with(tmp_path / "in.jpg", *extended(MAIN, EXTENSION))
    result, left_out = result_of(tmp_path / "in.jpg", tmp_path / f"out{suffix}")
    assert left_out == ()
    assert result.xmp is not None
    assert b'photoshop:History="&#10;edited"' in result.xmp
    assert b'dc:source="main"' in result.xmp
    assert b"HasExtendedXMP" not in result.xmp
    assert b"xmpNote" not in result.xmp


@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_extended_xmp_that_is_not_whole_is_named_and_not_pointed_at(tmp_path: Path, harm: str) -> None:
    parts = extended(MAIN, EXTENSION)
    jpeg_with(tmp_path / "in.jpg", *(parts[:1] if harm == "missing" else parts[:2]))
    result, left_out = result_of(tmp_path / "in.jpg", tmp_path / "out.jpg")
    assert left_out == ("extended XMP, which is missing or damaged",)
    assert b"HasExtendedXMP" not in (result.xmp or b"")
    assert b'dc:source="main"' in (result.xmp or b"")


def test_long_xmp_is_split_for_jpeg_and_comes_back(tmp_path: Path) -> None:
    long = xmp_of(
        f'dc:source="main" photoshop:History="{"edited;" * 20_000}"><dc:rights>mine</dc:rights>',
        dc=NOTE["dc"],
        photoshop="http://ns.adobe.com/photoshop/1.0/",
    )
    image = Image.fromarray(RGB)
    image.info["xmp"] = long
    image.save(tmp_path / "in.webp", xmp=long)
    result, left_out = result_of(tmp_path / "in.webp", tmp_path / "out.jpg")
    assert left_out == ()
    assert result.xmp is not None
    assert result.xmp.count(b"edited;") == 20_000
    assert b"mine" in result.xmp
    assert b"HasExtendedXMP" not in result.xmp
    main, extension = split(long, 60_000)
    assert len(main) <= 60_000
    assert b"mine" in main
    assert b"edited" not in main
    digest = hashlib.md5(extension or b"", usedforsecurity=False).hexdigest().upper()
    assert f'xmpNote:HasExtendedXMP="{digest}"'.encode() in main


PANO = (
    'GPano:FullPanoWidthPixels="100" GPano:CroppedAreaImageWidthPixels="30" '
    'GPano:CroppedAreaImageHeightPixels="20" GPano:ProjectionType="equirectangular">'
    "<GPano:CroppedAreaLeftPixels>7</GPano:CroppedAreaLeftPixels>"
)
REGIONS = (
    '><mwg-rs:Regions rdf:parseType="Resource">'
    '<mwg-rs:AppliedToDimensions stDim:w="30" stDim:h="20" stDim:unit="pixel"/><mwg-rs:RegionList><rdf:Bag>'
    '<rdf:li><rdf:Description mwg-rs:Name="Ann">'
    '<mwg-rs:Area stArea:x="0.5" stArea:w="0.25" stArea:unit="normalized"/></rdf:Description></rdf:li>'
    '<rdf:li><rdf:Description mwg-rs:Name="Bob">'
    '<mwg-rs:Area stArea:x="15" stArea:y="5" stArea:unit="pixel"/></rdf:Description></rdf:li>'
    "</rdf:Bag></mwg-rs:RegionList></mwg-rs:Regions>"
)
REGION_NAMES = {
    "mwg-rs": "http://www.metadataworkinggroup.com/schemas/regions/",
    "stDim": "http://ns.adobe.com/xap/1.0/sType/Dimensions#",
    "stArea": "http://ns.adobe.com/xmp/sType/Area#",
}


def xmp_result(tmp_path: Path, xmp: bytes, orientation: int = 1) -> tuple[bytes, tuple[str, ...]]:
    exif = Exif("<", main={0x0112: Entry(3, struct.pack("<H", orientation))}).tobytes()
    jpeg_with(tmp_path / "in.jpg", (0xE1, XMP_LABEL + xmp), exif=exif)
    result, left_out = result_of(tmp_path / "in.jpg", tmp_path / "out.jpg")
    return result.xmp or b"", left_out


def test_panorama_crops_are_scaled(tmp_path: Path) -> None:
    xmp, left_out = xmp_result(tmp_path, xmp_of(PANO, GPano="http://ns.google.com/photos/1.0/panorama/"))
    assert left_out == ()
    for word in (
        'FullPanoWidthPixels="200"',
        'ImageWidthPixels="60"',
        'ImageHeightPixels="40"',
        "LeftPixels>14<",
    ):
        assert word.encode() in xmp
    assert b'ProjectionType="equirectangular"' in xmp


def test_regions_in_pixels_are_scaled_and_those_in_parts_stay(tmp_path: Path) -> None:
    xmp, left_out = xmp_result(tmp_path, xmp_of(REGIONS, **REGION_NAMES))
    assert left_out == ()
    for word in (
        'stDim:w="60"',
        'stDim:h="40"',
        'stArea:x="0.5"',
        'stArea:w="0.25"',
        'stArea:x="30"',
        'stArea:y="10"',
    ):
        assert word.encode() in xmp


@pytest.mark.parametrize("body", [PANO, REGIONS])
def test_places_of_a_turned_picture_are_removed_by_name(tmp_path: Path, body: str) -> None:
    names = REGION_NAMES | {"GPano": "http://ns.google.com/photos/1.0/panorama/"}
    xmp, left_out = xmp_result(tmp_path, xmp_of(body, **names), orientation=6)
    assert any("unturned" in entry for entry in left_out)
    assert b"CroppedArea" not in xmp
    assert b"Regions" not in xmp


IPTC_REGIONS = (
    "><Iptc4xmpExt:ImageRegion><rdf:Bag><rdf:li><rdf:Description>"
    '<Iptc4xmpExt:RegionBoundary Iptc4xmpExt:rbUnit="pixel" Iptc4xmpExt:rbX="3" Iptc4xmpExt:rbY="4" '
    'Iptc4xmpExt:rbW="11" Iptc4xmpExt:rbH="12"/></rdf:Description></rdf:li>'
    '<rdf:li><rdf:Description><Iptc4xmpExt:RegionBoundary Iptc4xmpExt:rbUnit="relative" '
    'Iptc4xmpExt:rbX="0.25" Iptc4xmpExt:rbRx="0.125"/></rdf:Description></rdf:li>'
    "</rdf:Bag></Iptc4xmpExt:ImageRegion>"
)
IPTC_NAMES = {"Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"}
DRONE_NAMES = {
    "drone-dji": "http://www.dji.com/drone-dji/1.0/",
    "Camera": "http://pix4d.com/camera/1.0/",
}
DEWARP = "2018-09-04;3705.25,3695.5,-27.21,-13.5,-0.273189,0.10866,0.000189,-0.000144,-0.029036"
DRONE = (
    'drone-dji:CalibratedFocalLength="3666.5" drone-dji:CalibratedOpticalCenterX="15.5" '
    'drone-dji:CalibratedOpticalCenterY="10.25" drone-dji:RelativeOpticalCenterX="1.5" '
    f'drone-dji:DewarpData="{DEWARP}" drone-dji:DewarpFlag="0" '
    'drone-dji:CalibratedHMatrix="1,0.5,8,0.25,1,4,0.0625,0.125,1" '
    'drone-dji:VignettingData="0.5,0.25,0.125,1,1,1">'
    "<Camera:VignettingCenter><rdf:Seq><rdf:li>7</rdf:li><rdf:li>9</rdf:li></rdf:Seq></Camera:VignettingCenter>"
    "<Camera:VignettingPolynomial><rdf:Seq><rdf:li>0.5</rdf:li><rdf:li>0.25</rdf:li><rdf:li>1</rdf:li>"
    "<rdf:li>1</rdf:li></rdf:Seq></Camera:VignettingPolynomial>"
)


def test_iptc_regions_in_pixels_are_scaled_and_those_in_parts_stay(tmp_path: Path) -> None:
    xmp, left_out = xmp_result(tmp_path, xmp_of(IPTC_REGIONS, **IPTC_NAMES))
    assert left_out == ()
    for word in ('rbX="6"', 'rbY="8"', 'rbW="22"', 'rbH="24"', 'rbX="0.25"', 'rbRx="0.125"'):
        assert word.encode() in xmp


def test_the_calibration_of_a_drone_s_camera_is_made_true(tmp_path: Path) -> None:
    xmp, left_out = xmp_result(tmp_path, xmp_of(DRONE, **DRONE_NAMES))
    assert left_out == ()
    for word in (
        'CalibratedFocalLength="7333"', 'CalibratedOpticalCenterX="31"', 'CalibratedOpticalCenterY="20.5"',
        'RelativeOpticalCenterX="3"', 'DewarpFlag="0"',
        'DewarpData="2018-09-04;7410.5,7391,-54.42,-27,-0.273189,0.10866,0.000189,-0.000144,-0.029036"',
        'CalibratedHMatrix="1,0.5,16,0.25,1,8,0.03125,0.0625,1"',
        'VignettingData="0.25,0.0625,0.015625,0.0625,0.03125,0.015625"',
        "<rdf:li>14</rdf:li><rdf:li>18</rdf:li>", "<rdf:li>0.25</rdf:li><rdf:li>0.0625</rdf:li>",
    ):  # fmt: skip
        assert word in xmp.decode()
    wider = grown_xmp(xmp_of(DRONE, **DRONE_NAMES), 20, 90, (20, 30))
    assert b"11115.75,3695.5,-81.63,-13.5" in wider


@pytest.mark.parametrize("body", [IPTC_REGIONS, DRONE])
def test_iptc_regions_and_calibrations_of_a_turned_picture_are_named(tmp_path: Path, body: str) -> None:
    xmp, left_out = xmp_result(tmp_path, xmp_of(body, **IPTC_NAMES, **DRONE_NAMES), orientation=6)
    assert any("unturned" in entry for entry in left_out)
    for word in (b"rbX", b"DewarpData", b"OpticalCenter", b"HMatrix", b"VignettingCenter"):
        assert word not in xmp


@pytest.mark.parametrize("value", ["2018;a,b,c,d", "1,2", "", "nothing"])
def test_a_calibration_of_another_form_is_named(tmp_path: Path, value: str) -> None:
    xmp, left_out = xmp_result(tmp_path, xmp_of(f'drone-dji:DewarpData="{value}">', **DRONE_NAMES))
    assert left_out == ("XMP that counts pixels in a way that is not known: drone-dji",)
    assert b"DewarpData" not in xmp


def test_xmp_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for xmp in (b"<x:xmpmeta", b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/hostname">]><x>&e;</x>'):
        found, left_out = xmp_result(tmp_path, xmp)
        assert found == b""
        assert any("XMP, which cannot be read" in entry for entry in left_out)


@pytest.mark.parametrize(
    "xmp",
    [
        xmp_of(">" + "<a>" * 5000 + "</a>" * 5000),
        xmp_of(">" + "<a/>" * 60_000),
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/">' + b"x" * (1 << 25) + b"</x:xmpmeta>",
    ],
    ids=["deep", "many", "long"],
)
def test_xmp_that_would_take_the_stack_or_the_memory_is_named(tmp_path: Path, xmp: bytes) -> None:
    Image.fromarray(RGB).save(tmp_path / "in.webp", xmp=xmp)
    result, left_out = result_of(tmp_path / "in.webp", tmp_path / "out.png")
    assert result.xmp is None
    assert len(left_out) == 1
    assert left_out[0].startswith("XMP, which cannot be read")


def test_words_are_few_and_printable(tmp_path: Path) -> None:
    chunks = [(b"pr%c%c" % (65 + n % 26, 97 + n // 26), b"") for n in range(100)]
    png_with(tmp_path / "in.png", *chunks, (b"e\x1b[m", b""), (b"prAa", b""), (b"tEXt", b"\x1b[31m\0x"))
    _, left_out = result_of(tmp_path / "in.png", tmp_path / "out.jpg")
    assert len(left_out) <= 31
    assert len(set(left_out)) == len(left_out)
    assert "\x1b" not in "".join(left_out)


# -- Further pictures in the file --------------------------------------------------------------------------


def small_jpeg(**options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(RGB[:8, :8]).save(out, "JPEG", **options)
    return out.getvalue()


GAIN_MAP_XMP = xmp_of(
    'hdrgm:Version="1.0" dc:source="kept"><Container:Directory><rdf:Seq><rdf:li rdf:parseType="Resource">'
    '<Container:Item Item:Semantic="GainMap" Item:Length="388"/></rdf:li></rdf:Seq></Container:Directory>',
    hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/",
    Container="http://ns.google.com/photos/1.0/container/",
    Item="http://ns.google.com/photos/1.0/container/item/",
    dc=NOTE["dc"],
)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_gain_map_is_named_and_not_spoken_of_any_more(tmp_path: Path, suffix: str) -> None:
    jpeg_with(tmp_path / "in.jpg", (0xE1, XMP_LABEL + GAIN_MAP_XMP), trailer=small_jpeg())
    result, left_out = result_of(tmp_path / "in.jpg", tmp_path / f"out{suffix}")
    assert any("gain map" in entry for entry in left_out)
    data = (tmp_path / f"out{suffix}").read_bytes()
    assert b"hdr-gain-map" not in data
    assert b"container/" not in data
    assert b'dc:source="kept"' in (result.xmp or b"")


ISO_GAIN_MAP = (0xE2, b"urn:iso:std:iso:ts:21496:-1\0\0\0\0\0")
MOTION = xmp_of(
    'GCamera:MotionPhoto="1" GCamera:MotionPhotoVersion="1" GCamera:MicroVideoOffset="999">',
    GCamera="http://ns.google.com/photos/1.0/camera/",
)
APPLE = xmp_of('HDRGainMap:HDRGainMapVersion="65536">', HDRGainMap="http://ns.apple.com/HDRGainMap/1.0/")


@pytest.mark.parametrize(
    ("segments", "trailer", "word"),
    [
        ([ISO_GAIN_MAP], small_jpeg(), "gain map"),
        ([(0xE2, b"MPF\0" + bytes(40))], small_jpeg(xmp=APPLE), "gain map"),
        ([(0xE1, XMP_LABEL + MOTION)], b"\0\0\0\x18ftypmp42" + bytes(60), "motion photo"),
        ([(0xE2, b"MPF\0" + bytes(40))], small_jpeg(), "further pictures"),
        ([], b"SEFH private", "bytes behind the end"),
        ([(0xEB, b"JP\0\1jumb")], b"", "APP11"),
        ([(0xED, b"Adobe_Photoshop2.5:old")], b"", "APP13 (Adobe_Photoshop2.5"),
        ([(0xE1, b"QVCI\0private")], b"", "APP1 (QVCI"),
        ([(0xE0, b"JFXX\0\x10thumb")], b"", "JFIF thumbnail"),
    ],
)
def test_what_follows_the_picture_is_named(
    tmp_path: Path, segments: list[tuple[int, bytes]], trailer: bytes, word: str
) -> None:
    jpeg_with(tmp_path / "in.jpg", *segments, trailer=trailer, progressive=True)
    result, left_out = result_of(tmp_path / "in.jpg", tmp_path / "out.jpg")
    assert any(word in entry for entry in left_out), left_out
    assert b"MotionPhoto" not in (result.xmp or b"")
    assert b"MicroVideo" not in (result.xmp or b"")


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def heif(*properties: bytes, entry: bytes = b"") -> bytes:
    """Boxes of a picture, item 1, with properties; no pixels."""
    associated = struct.pack(">IIHB", 0, 1, 1, len(properties)) + bytes(range(1, len(properties) + 1))
    return box(b"ftyp", b"avif\0\0\0\0avif") + box(
        b"meta",
        bytes(4),
        box(b"pitm", struct.pack(">IH", 0, 1)),
        box(b"iinf", struct.pack(">IH", 0, 1), box(b"infe", struct.pack(">IHH", 2 << 24, 1, 0), entry)),
        box(b"iprp", box(b"ipco", *properties), box(b"ipma", associated)),
    )


def test_parts_of_an_avif_that_are_not_carried_are_named() -> None:
    gain_map = box(b"auxC", bytes(4), b"urn:com:apple:photo:2020:aux:hdrgainmap\0")
    depth = box(b"auxC", bytes(4), b"urn:mpeg:mpegB:cicp:systems:auxiliary:depth\0")
    alpha = box(b"auxC", bytes(4), b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0")
    light, wide = box(b"clli", bytes(4)), box(b"pasp", struct.pack(">II", 2, 1))
    square = box(b"pasp", struct.pack(">II", 1, 1))
    assert avif_left_out(heif(alpha, square, entry=b"av01\0")) == []
    found = avif_left_out(heif(gain_map, depth, light, wide, entry=b"tmap\0"))
    assert [word for word in ("gain map", "depth map", "clli", "pasp") if word not in " ".join(found)] == []
    assert len(found) == 4  # the gain map once


def test_colour_of_an_avif_is_that_of_its_profile_box_or_sequence_header() -> None:
    nclx = box(b"colr", b"nclx", struct.pack(">HHHB", 9, 16, 9, 0x80))
    profile = box(b"colr", b"prof", b"icc")
    assert avif_color(heif(nclx)) == ColorSpace((9, 16, 1))
    assert avif_color(heif(nclx, profile)) is None
    assert avif_color(heif(box(b"colr", b"nclx", struct.pack(">HHHB", 900, 13, 6, 0x80)))) is None
    assert avif_color(heif(box(b"colr", b"nclx", struct.pack(">HHHB", 1, 13, 6, 0x80)))) is None
    # A reduced still picture header: profile 0, level, sizes of 8 bits, no tools, 8 bit, described as P3.
    bits = "000110000001110111" + 16 * "0" + "000000001"
    bits += f"{12:08b}{13:08b}{6:08b}"
    payload = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    header = bytes((0x0A, len(payload))) + payload
    assert avif_color(heif(box(b"av1C", b"\x81\0\0\0", header))) == ColorSpace((12, 13, 1))


# -- TIFF --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("description", "word"),
    [
        (
            '<?xml version="1.0"?><OME xmlns="x"><Image><Pixels SizeX="30" SizeY="20"/></Image></OME>',
            "OME-XML",
        ),
        ("ImageJ=1.53\nimages=1\nslices=1\n", "ImageJ"),
        ('{"shape": [20, 30, 3]}', "tifffile"),
        ("A boat in the harbour", None),
    ],
)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_machines_notes_on_the_old_pixels_are_removed(
    tmp_path: Path, description: str, word: str | None, dtype: str
) -> None:
    tifffile = pytest.importorskip("tifffile")
    pixels = RGB.astype(dtype)
    tifffile.imwrite(tmp_path / "in.tif", pixels, photometric="rgb", metadata=None, description=description)
    result, left_out = result_of(tmp_path / "in.tif", tmp_path / "out.tif")
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        kept = file.pages.first.tags.get(270)
    if word is None:
        assert kept.value == description
        assert left_out == ()
    else:
        assert kept is None
        assert any(word in entry for entry in left_out)
    assert result.rgb.shape == (40, 60, 3)


GEO_KEYS = (34735, "H", 8, (1, 1, 0, 1, 1025, 0, 1, 1), True)


def place(path: Path, row: float, column: float) -> tuple[float, float]:
    """Where the GeoTIFF at ``path`` puts the middle of a pixel, in the words of the standard."""
    tifffile = pytest.importorskip("tifffile")
    with tifffile.TiffFile(path) as file:
        tags = {tag.code: tag.value for tag in file.pages.first.tags}
    middle = 0.5 if tags[34735][7] == 1 else 0.0
    i, j = column + middle, row + middle
    if 34264 in tags:
        m = tags[34264]
        return m[0] * i + m[1] * j + m[3], m[4] * i + m[5] * j + m[7]
    (sx, sy, _), (i0, j0, _, x, y, _) = tags[33550], tags[33922]
    return x + (i - i0) * sx, y - (j - j0) * sy


@pytest.mark.parametrize("raster", [1, 2])
@pytest.mark.parametrize("how", ["scale", "matrix"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_georeferences_stay_true_in_tiff_and_are_named_elsewhere(
    tmp_path: Path, raster: int, how: str, dtype: str
) -> None:
    tifffile = pytest.importorskip("tifffile")
    tags: list[Any] = [(*GEO_KEYS[:3], (*GEO_KEYS[3][:7], raster), True)]
    if how == "scale":
        tags += [
            (33550, "d", 3, (2.0, 3.0, 0.0), True),
            (33922, "d", 6, (4.0, 5.0, 0, 700.0, 900.0, 0), True),
        ]
    else:
        tags.append((34264, "d", 16, (2.0, 0.5, 0, 700.0, 0.25, -3.0, 0, 900.0, *(0.0,) * 7, 1.0), True))
    pixels = RGB.astype(dtype)
    tifffile.imwrite(tmp_path / "in.tif", pixels, photometric="rgb", metadata=None, extratags=tags)
    _, left_out = result_of(tmp_path / "in.tif", tmp_path / "out.tif")
    assert left_out == ()
    # The middle of an old pixel is the corner between four new ones: the mean of their middles.
    corners = [place(tmp_path / "out.tif", row, column) for row in (14, 15) for column in (20, 21)]
    assert np.mean(corners, axis=0) == pytest.approx(place(tmp_path / "in.tif", 7, 10))
    _, left_out = result_of(tmp_path / "in.tif", tmp_path / "out.png")
    assert left_out == ("georeference (GeoTIFF), which PNG cannot hold",)


def test_broken_or_turned_georeferences_and_layers_are_named(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    scale = (33550, "d", 3, (1.0, 1.0, 0.0), True)
    cases = {
        "layers": [(37724, "B", 4, b"Adob", True)],
        "keyless": [scale],
        "short": [GEO_KEYS, (33922, "d", 5, (0.0,) * 5, True)],
    }
    cases["turned"] = [GEO_KEYS, scale, (274, "H", 1, 6, True)]
    words = {"layers": "ImageSourceData", "short": "ModelTiepoint"}
    for name, tags in cases.items():
        tifffile.imwrite(tmp_path / "in.tif", RGB, photometric="rgb", metadata=None, extratags=tags)
        _, left_out = result_of(tmp_path / "in.tif", tmp_path / "out.tif")
        assert len(left_out) == 1
        assert words.get(name, "ModelPixelScale") in left_out[0]


def test_arrays_have_nothing_to_leave_out(tmp_path: Path) -> None:
    assert write_image(from_array(RGB), tmp_path / "x.png") == ()


@pytest.mark.parametrize("suffix", FORMATS)
def test_primaries_in_tiff_tags_stay_or_become_a_profile(tmp_path: Path, suffix: str) -> None:
    tifffile = pytest.importorskip("tifffile")
    points = [value for pair in (P3[3], *P3[:3]) for value in np.rint(np.multiply(pair, 1e4))]
    white, primaries = (
        [part for value in values for part in (int(value), 10_000)] for values in (points[:2], points[2:])
    )
    tags = [(318, "2I", 2, tuple(white), True), (319, "2I", 6, tuple(primaries), True)]
    tifffile.imwrite(tmp_path / "in.tif", RGB, photometric="rgb", metadata=None, extratags=tags)
    result, left_out = result_of(tmp_path / "in.tif", tmp_path / f"out{suffix}")
    assert left_out == ()
    if suffix == ".tif":
        assert result.icc is None
        assert result.kind.color is not None
        assert result.kind.color == read_image(tmp_path / "in.tif").kind.color
    else:
        wanted = shown(matrix_profile("p3", P3, SRGB_CURVE), (200, 100, 50))
        icc = result.icc or (result.kind.color and result.kind.color.profile(None, grey=False))
        assert np.abs(np.subtract(shown(icc or None, (200, 100, 50)), wanted)).max() <= 1


# -- WebP, GIF, BMP ----------------------------------------------------------------------------------------


def test_unknown_webp_chunks_are_named(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "in.webp", exif=Exif("<", main={0x010F: Entry(2, b"C\0")}).tobytes())
    data = (tmp_path / "in.webp").read_bytes() + b"prIV" + struct.pack("<I", 4) + b"data"
    (tmp_path / "in.webp").write_bytes(data[:4] + struct.pack("<I", len(data) - 8) + data[8:])
    _, left_out = result_of(tmp_path / "in.webp", tmp_path / "out.png")
    assert left_out == ("WebP chunk prIV",)


def test_xmp_profile_and_comment_of_a_gif_are_kept_and_other_extensions_named(tmp_path: Path) -> None:
    Image.fromarray(RGB[..., 0]).save(tmp_path / "in.gif", comment=b"a comment")
    data = (tmp_path / "in.gif").read_bytes()
    xmp = b"\x21\xff\x0bXMP DataXMP" + MAIN + b"\x01" + bytes(range(255, -1, -1)) + b"\0"
    icc = matrix_profile("p3", P3, SRGB_CURVE)
    pieces = b"".join(bytes([len(icc[at : at + 255])]) + icc[at : at + 255] for at in range(0, len(icc), 255))
    profile = b"\x21\xff\x0bICCRGBG1012" + pieces + b"\0"
    other = b"\x21\xff\x0bPRIVATE1234\x04data\0"
    (tmp_path / "in.gif").write_bytes(data[:-1] + xmp + profile + other + b";")
    result, left_out = result_of(tmp_path / "in.gif", tmp_path / "out.png")
    assert b'dc:source="main"' in (result.xmp or b"")
    assert result.icc == icc
    assert dict(result.text) == {"comment": "a comment"}
    assert left_out == ("GIF extension PRIVATE1234",)


@pytest.mark.parametrize("how", ["profile", "numbers", "sRGB", "linked"])
def test_colour_of_a_bmp_goes_into_a_png(tmp_path: Path, how: str) -> None:
    Image.fromarray(RGB).save(tmp_path / "in.bmp")
    old = (tmp_path / "in.bmp").read_bytes()
    icc = matrix_profile("p3", P3, SRGB_CURVE)
    kind = {"profile": 0x4D424544, "numbers": 0, "sRGB": 0x73524742, "linked": 0x4C494E4B}[how]
    header = struct.pack("<I", 124) + old[18:54] + bytes(16) + struct.pack("<I", kind)
    xyz = [(x * y / y, y, 1 - x - y) for x, y in P3[:3]]
    points = np.array(xyz).T
    light = np.linalg.solve(points, np.array([0.3127 / 0.329, 1, (1 - 0.3127 - 0.329) / 0.329]))
    ends = [round(float(value) * 2**30) for value in (points * light).T.ravel()]
    header += struct.pack("<9i", *ends) + struct.pack("<3I", *[round(2.2 * 65536)] * 3)
    header += struct.pack("<IIII", 4, 124 + len(old) - 54, len(icc), 0)
    whole = old[:10] + struct.pack("<I", 14 + 124) + header + old[54:] + icc
    (tmp_path / "in.bmp").write_bytes(whole[:2] + struct.pack("<I", len(whole)) + whole[6:])
    result, left_out = result_of(tmp_path / "in.bmp", tmp_path / "out.jpg")
    assert result.rgb.shape == (40, 60, 3)
    wanted = shown(icc if how in ("profile", "numbers") else None, (200, 100, 50))
    assert np.abs(np.subtract(shown(result.icc, (200, 100, 50)), wanted)).max() <= 1
    assert bool(left_out) == (how == "linked")


# -- PIL ---------------------------------------------------------------------------------------------------


def test_exif_that_a_program_changed_in_a_pil_image_counts(tmp_path: Path) -> None:
    exif = Exif("<", main={0x0112: Entry(3, b"\6\0"), 0x010F: Entry(2, b"Camera\0")}).tobytes()
    Image.fromarray(RGB).save(tmp_path / "in.jpg", exif=exif)
    with Image.open(tmp_path / "in.jpg") as image:
        assert from_pil(image).rgb.shape == (30, 20, 3)
    with Image.open(tmp_path / "in.jpg") as image:
        image.getexif()[0x0112] = 1
        picture = from_pil(image)
    assert picture.rgb.shape == (20, 30, 3)
    assert picture.exif is not None
    assert Exif.parse(picture.exif).main[0x010F].raw == b"Camera\0"


def test_pil_images_keep_iptc_gamma_and_text(tmp_path: Path) -> None:
    jpeg_with(tmp_path / "in.jpg", (0xED, b"Photoshop 3.0\0" + resource(0x0404, IPTC)))
    with Image.open(tmp_path / "in.jpg") as image:
        assert to_pil(grown(from_pil(image))).info["photoshop"][0x0404] == IPTC
    png_with(tmp_path / "in.png", (b"gAMA", struct.pack(">I", 100_000)))
    with Image.open(tmp_path / "in.png") as image:
        icc = to_pil(grown(from_pil(image))).info["icc_profile"]
    assert np.abs(np.subtract(shown(icc, (55, 55, 55)), (127, 127, 127))).max() <= 2
