"""Malformed input: one InputError with path and reason, and nothing incomplete is ever accepted."""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from yonos_trt.errors import InputError, OutOfMemoryError
from yonos_trt.host import require_bytes
from yonos_trt.images import Picture, from_array, from_pil, read_image, read_rgb8, write_image

RGB = np.random.default_rng(3).integers(0, 256, (24, 31, 3), dtype=np.uint8)
SMALL = 1 << 16  # max_pixels in the fuzz loops: a flipped size must not cost gigabytes


def chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def interlaced() -> bytes:
    """An Adam7 PNG, which Pillow reads but does not write."""
    rows = b""
    steps = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    for x, y, dx, dy in steps:
        rows += b"".join(b"\0" + row.tobytes() for row in RGB[y::dy, x::dx])
    head = struct.pack(">IIBBBBB", 31, 24, 8, 2, 0, 0, 1)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def encoded(name: str) -> bytes:
    """A small picture in the format and flavour of ``name``."""
    buffer = io.BytesIO()
    image = Image.fromarray(RGB)
    if name == "interlaced.png":
        return interlaced()
    if name == "deep.png":
        return _written(RGB.astype(np.uint16) * 257, ".png")
    if name == "deep.tiff":
        return _written(RGB.astype(np.uint16) * 257, ".tif")
    if name == "float.tiff":
        return _written(RGB.astype(np.float32) / 255, ".tif")
    flavours: dict[str, tuple[Image.Image, dict[str, object]]] = {
        "png": (image, {}),
        "palette.png": (image.quantize(200), {}),
        "baseline.jpeg": (image, {"quality": 90}),
        "progressive.jpeg": (image, {"quality": 90, "progressive": True}),
        "restart.jpeg": (image, {"quality": 90, "restart_marker_blocks": 1}),
        "lossy.webp": (image, {}),
        "lossless.webp": (image, {"lossless": True}),
        "alpha.webp": (image.convert("RGBA").rotate(20), {}),
        "raw.tiff": (image, {}),
        "lzw.tiff": (image, {"compression": "tiff_lzw"}),
        "deflate.tiff": (image, {"compression": "tiff_adobe_deflate"}),
        "big.tiff": (image, {"big_tiff": True}),
        "bilevel.tiff": (image.convert("1"), {"compression": "group4"}),
        "avif": (image, {}),
        "gif": (image.quantize(100), {}),
        "bmp": (image, {}),
        "palette.bmp": (image.quantize(100), {}),
    }
    picture, options = flavours[name]
    picture.save(buffer, format=name.rpartition(".")[2].upper(), **options)
    return buffer.getvalue()


def _written(array: np.ndarray, suffix: str) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x{suffix}"
        write_image(from_array(array), path)
        return path.read_bytes()


NAMES = [
    "png", "palette.png", "interlaced.png", "deep.png", "baseline.jpeg", "progressive.jpeg", "restart.jpeg",
    "lossy.webp", "lossless.webp", "alpha.webp", "raw.tiff", "lzw.tiff", "deflate.tiff", "big.tiff",
    "bilevel.tiff", "deep.tiff", "float.tiff", "avif", "gif", "bmp", "palette.bmp",
]  # fmt: skip
FILES = {name: encoded(name) for name in NAMES}


def opened(data: bytes) -> Picture | None:
    """The picture, or None for an InputError; any other exception escapes and fails the test."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of corrupt EXIF; here only exceptions count
            return read_image(data, max_pixels=SMALL)
    except InputError as error:
        message = str(error)
    assert message.startswith("<bytes>: ")
    assert len(message) > len("<bytes>: ") + 10
    return None


@pytest.mark.parametrize("name", NAMES)
def test_whole_file_is_accepted(name: str) -> None:
    picture = opened(FILES[name])
    assert picture is not None
    assert picture.rgb.shape == (24, 31, 3)


# -- Truncation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_truncated_file_is_never_accepted(name: str) -> None:
    data = FILES[name]
    points = set(range(min(len(data), 96))) | set(range(max(0, len(data) - 96), len(data)))
    points |= {int(p) for p in np.linspace(96, len(data) - 1, 60)}
    accepted = [n for n in sorted(points) if n < len(data) and opened(data[:n]) is not None]
    assert not accepted


@pytest.mark.parametrize("name", NAMES)
def test_truncated_file_is_refused_even_where_the_host_program_tells_pillow_to_accept_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = FILES[name]
    for n in (len(data) // 2, len(data) * 9 // 10, len(data) - 20, len(data) - 1):
        assert opened(data[:n]) is None


@pytest.mark.parametrize("name", NAMES)
def test_missing_tail_filled_with_zeros_raises_nothing_else(name: str) -> None:
    data = FILES[name]
    for n in np.linspace(1, len(data) - 1, 25).astype(int):
        opened(data[:n] + bytes(len(data) - n))


def test_png_with_all_check_sums_right_but_too_few_rows_is_refused() -> None:
    for bits in (8, 16):
        rows = zlib.compress(bytes(10 * (1 + 20 * 3 * bits // 8)))
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 20, 40, bits, 2, 0, 0, 0))
        assert opened(data + chunk(b"IDAT", rows) + chunk(b"IEND", b"")) is None


def test_damaged_png_pixels_are_refused_by_their_check_sum() -> None:
    data = bytearray(FILES["png"])
    data[len(data) // 2] ^= 1
    with pytest.raises(InputError, match="damaged: check sum of chunk 'IDAT'"):
        read_image(bytes(data))


# -- Flipped bytes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_flipped_bytes_give_a_picture_or_an_input_error(name: str) -> None:
    rng = np.random.default_rng(NAMES.index(name))
    for _ in range(120):
        data = bytearray(FILES[name])
        reach = len(data) if rng.random() < 0.5 else min(len(data), 200)  # headers are hit often enough
        for position in rng.integers(0, reach, rng.integers(1, 6)):
            data[position] = rng.integers(256)
        opened(bytes(data))


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(NAMES),
    cuts=st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 12), st.binary(max_size=12)), min_size=1, max_size=4
    ),
)
def test_spliced_files_give_a_picture_or_an_input_error(
    name: str, cuts: list[tuple[float, int, bytes]]
) -> None:
    data = FILES[name]
    for where, removed, inserted in cuts:
        at = int(where * len(data))
        data = data[:at] + inserted + data[at + removed :]
    opened(data)


@settings(max_examples=100)
@given(
    data=st.binary(max_size=200),
    magic=st.sampled_from([FILES[name][:n] for name in NAMES for n in (4, 12, 30)]),
)
def test_garbage_behind_a_valid_beginning_is_refused(data: bytes, magic: bytes) -> None:
    assert opened(magic + data) is None


# -- Declared sizes ---------------------------------------------------------------------------------------


def huge(name: str) -> bytes:
    data = bytearray(FILES[name])
    if name == "png":
        data[16:24] = struct.pack(">II", 65_535, 65_535)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif name == "baseline.jpeg":
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", 65_535, 65_535)
    elif name == "gif":
        data[6:10] = struct.pack("<HH", 65_535, 65_535)
    elif name == "bmp":
        data[18:26] = struct.pack("<ii", 65_535, 65_535)
    elif name == "lossless.webp":
        data[21:25] = b"\xff\xff\xff\x0f"
    else:
        for tag in (256, 257):
            at = data.index(struct.pack("<HH", tag, 4 if struct.pack("<HH", tag, 4) in data else 3))
            data[at : at + 12] = struct.pack("<HHII", tag, 4, 1, 65_535)
    return bytes(data)


@pytest.mark.parametrize(
    "name", ["png", "baseline.jpeg", "gif", "bmp", "lossless.webp", "lzw.tiff", "deep.tiff"]
)
def test_decompression_bomb_is_refused_before_it_is_decoded(name: str) -> None:
    with pytest.raises(
        InputError, match=r"declares \d+ x \d+ pixels, the limit is 1000|truncated|pieces where"
    ):
        read_image(huge(name), max_pixels=1000)
    with pytest.raises(InputError):
        read_image(huge(name))


def test_pixel_limit_can_be_raised_and_lifted() -> None:
    with pytest.raises(InputError, match="raise max_pixels"):
        read_image(FILES["png"], max_pixels=24 * 31 - 1)
    assert read_image(FILES["png"], max_pixels=24 * 31).height_px == 24
    assert read_image(FILES["png"], max_pixels=None).height_px == 24


# -- Files that are no pictures ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"just some words, saved as a picture\n", "text, not a picture"),
        ("Текст".encode(), "not a picture of a known format|text"),
        (b"\x00" * 100, "not a picture of a known format"),
        (b"%PDF-1.7 ...", "PDF files are not supported"),
        (b"PK\x03\x04....", "ZIP files are not supported"),
        (b"\x00\x00\x00\x1cftypheic\x00\x00\x00\x00mif1heic", "truncated inside box 'ftyp' at"),
        (b"\x00\x00\x00\x10ftypisom\x00\x00\x00\x00", "of kind 'isom', such as video"),
        (b"8BPS\x00\x01", "Photoshop files are not supported"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (b"\xff\xd8\xff", "truncated"),
        (b"II*\x00\x08\x00\x00\x00", "truncated"),
        (b"GIF89a", "truncated"),
        (b"RIFF\x00\x00\x00\x00WEBP", "no pixels|truncated"),
    ],
)
def test_no_picture_is_named_for_what_it_is(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"x\.png: .*({reason})"):
        read_image(path)


def test_wrong_extension_is_a_warning_and_the_content_decides(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, suffix, format_ in (
        ("png", ".jpg", "PNG"),
        ("baseline.jpeg", ".png", "JPEG"),
        ("lossy.webp", ".JPG", "WEBP"),
        ("raw.tiff", ".txt", "TIFF"),
    ):
        path = tmp_path / f"x{suffix}"
        path.write_bytes(FILES[name])
        caplog.clear()
        assert read_image(path).kind.format == format_
        assert f"x{suffix}: the file is {format_}, its name says {suffix.lower()}" in caplog.text
    caplog.clear()
    for good in ("x.PNG", "no_suffix"):
        (tmp_path / good).write_bytes(FILES["png"])
        assert read_image(tmp_path / good).kind.format == "PNG"
    assert not caplog.text


# -- The reader for programs that want 8-bit RGB ----------------------------------------------------------


def test_rgb8_reader_gives_what_pillow_gives_for_ordinary_pictures(tmp_path: Path) -> None:
    for name in ("png", "baseline.jpeg", "lossless.webp", "lzw.tiff", "gif", "bmp"):
        expected = np.asarray(Image.open(io.BytesIO(FILES[name])).convert("RGB"))
        path = tmp_path / "x"
        path.write_bytes(FILES[name])
        for source in (path, FILES[name]):
            np.testing.assert_array_equal(read_rgb8(source), expected, strict=True)


def test_rgb8_reader_rounds_depth_drops_alpha_and_turns_upright(tmp_path: Path) -> None:
    deep = np.array([[0, 257, 65535, 32768]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_rgb8(tmp_path / "deep.png")[..., 1], [[0, 1, 255, 128]])
    rgba = np.full((4, 4, 4), 200, np.uint8)
    rgba[0, 0] = 0
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    assert (read_rgb8(tmp_path / "rgba.png") == 200).all()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_rgb8(tmp_path / "turned.png"), np.rot90(RGB, -1))


@pytest.mark.parametrize("kind", ["EPS", "WMF", "PCX", "TGA", "PPM", "ICO", "SGI", "FLI", "PSD", "FITS"])
def test_rgb8_reader_hands_no_other_format_to_pillow(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = io.BytesIO()
    if kind in ("WMF", "FLI", "PSD", "FITS"):
        head = {"WMF": b"\xd7\xcd\xc6\x9a", "FLI": bytes(4) + b"\x11\xaf", "PSD": b"8BPS\0\1",
                "FITS": b"SIMPLE  =                    T"}[kind]  # fmt: skip
        data.write(head + bytes(200))
    else:
        Image.fromarray(RGB).save(data, kind)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a decoder outside the list was asked")

    for plugin in ("EpsImagePlugin.Ghostscript", "Image.open"):
        monkeypatch.setattr(f"PIL.{plugin}", never)
    for name in ("x.png", "x.jpg", f"x.{kind.lower()}"):
        (tmp_path / name).write_bytes(data.getvalue())
        with pytest.raises(
            InputError, match=rf"{re.escape(name)}: .*(not supported|formats that can be read)"
        ):
            read_rgb8(tmp_path / name)


def test_memory_that_ran_out_is_told_as_such_not_as_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", short)
    with pytest.raises(OutOfMemoryError, match="<bytes>: memory ran out while the picture was read"):
        read_image(FILES["png"])
    image = Image.open(io.BytesIO(FILES["png"]))
    with pytest.raises(OutOfMemoryError, match="memory ran out"):
        from_pil(image)


def test_paths_that_cannot_be_read_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.png: cannot be read: No such file"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(InputError, match="is a directory"):
        read_image(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        read_image("null\0byte.png")
    with pytest.raises(InputError, match="cannot be read"):
        read_image(tmp_path / ("n" * 300 + ".png"))
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match="special file"):
        read_image(tmp_path / "pipe.png")  # and does not wait for a writer
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    with pytest.raises(InputError, match="cannot be read"):
        read_image(loop)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(FILES["png"])
    path.chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        read_image(path)


def test_refused_permission_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(FILES["png"])

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(InputError, match=r"x\.png: cannot be read: Permission denied"):
        read_image(path)


# -- Animations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff", "avif"])
def test_animated_and_many_page_files_are_refused(tmp_path: Path, suffix: str) -> None:
    frames = [Image.fromarray(np.roll(RGB, k, 0)) for k in range(3)]
    path = tmp_path / f"x.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match=r"holds 3 frames or pages.*(yonos video -i|save the page you want)"):
        read_image(path)
    with Image.open(path) as image, pytest.raises(InputError, match="holds 3 frames or pages"):
        from_pil(image)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff", "avif"])
def test_animation_of_one_frame_is_a_picture(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(RGB).save(path, save_all=True)
    assert read_image(path).rgb.shape == RGB.shape


# -- PIL images of broken files ---------------------------------------------------------------------------


def test_truncated_file_opened_by_the_caller_is_an_input_error() -> None:
    image = Image.open(io.BytesIO(FILES["baseline.jpeg"][:-200]))
    with pytest.raises(InputError, match="Pillow cannot load it"):
        from_pil(image)


def test_depth_that_pillow_dropped_is_told(caplog: pytest.LogCaptureFixture) -> None:
    image = Image.open(io.BytesIO(FILES["deep.png"]))
    assert from_pil(image).kind.dtype == "uint8"
    assert "16-bit file as 8 bits" in caplog.text


@pytest.mark.data
def test_real_photograph_cut_anywhere_is_refused(data_dir: Path) -> None:
    files = (
        sorted((data_dir / "dev").rglob("*.png"))[:3]
        + sorted((data_dir / "train" / "images").glob("*.webp"))[:3]
    )
    for file in files:
        data = file.read_bytes()
        for n in np.linspace(1, len(data) - 1, 20).astype(int):
            with pytest.raises(InputError):
                read_image(data[:n])


@pytest.mark.parametrize(("width_px", "height_px"), [(-5, 7), (0, 7), (5, 0), (0, 0), (-(2**31), 2**31 - 1)])
def test_sizes_below_one_are_damage_not_memory(tmp_path: Path, width_px: int, height_px: int) -> None:
    """BMP has signed sides; their product would pass every limit of pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (5, 7)).save(buffer, "BMP")
    raw = bytearray(buffer.getvalue())
    raw[18:26] = struct.pack("<ii", width_px, height_px)
    path = tmp_path / "odd.bmp"
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"odd\.bmp: (declares|.*damaged|.*truncated)"):
        read_image(path)


def test_more_memory_than_there_are_addresses_is_not_to_be_had() -> None:
    with pytest.raises(MemoryError):
        require_bytes(1 << 70)
