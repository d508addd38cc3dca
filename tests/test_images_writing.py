"""Writing: the whole file or none, and rows in O(width) memory."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from yonos_trt import images
from yonos_trt.errors import ClosedError, InputError, MissingExtraError
from yonos_trt.images import (
    Kind,
    Picture,
    check_output,
    estimate_output,
    from_array,
    from_pil,
    open_row_writer,
    read_image,
    tiff_rows,
    to_array,
    write_image,
)

RNG = np.random.default_rng(11)


def noise(shape: tuple[int, ...], dtype: type = np.uint8) -> np.ndarray:
    if dtype is np.float32:
        return RNG.uniform(0.01, 1, shape).astype(np.float32)
    return RNG.integers(1, np.iinfo(dtype).max, shape, dtype=dtype)


def stream(picture: Picture, path: Path, step: int = 13, **choices: object) -> None:
    with open_row_writer(path, picture, picture.height_px, picture.width_px, **choices) as writer:
        for y in range(0, picture.height_px, step):
            alpha = None if picture.alpha is None else picture.alpha[y : y + step]
            writer.write_rows(picture.rgb[y : y + step], alpha)
        assert writer.rows_written == picture.height_px


# -- Rows give the same file as the whole -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize(("height_px", "width_px"), [(1, 1), (257, 300), (40, 513)])
def test_rows_and_whole_decode_to_the_same_pixels(
    tmp_path: Path, suffix: str, channels: int, dtype: type, height_px: int, width_px: int
) -> None:
    if suffix == ".tif":
        pytest.importorskip("tifffile")
    array = noise((height_px, width_px, channels), dtype)
    path = tmp_path / f"x{suffix}"
    if suffix == ".png" and dtype is np.float32:
        with pytest.raises(InputError, match="drop_depth"):
            stream(from_array(array), path)
        assert not list(tmp_path.iterdir())
        return
    stream(from_array(array), path)
    again = read_image(path)
    assert again.kind.dtype == array.dtype.name
    np.testing.assert_array_equal(to_array(again).reshape(array.shape), array)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("step", [1, 7, 256, 300, 600])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_size_of_the_row_blocks_does_not_change_the_file(tmp_path: Path, suffix: str, step: int) -> None:
    picture = from_array(noise((600, 70, 3)))
    stream(picture, tmp_path / f"a{suffix}", 256)
    stream(picture, tmp_path / f"b{suffix}", step)
    np.testing.assert_array_equal(read_image(tmp_path / f"b{suffix}").rgb, picture.rgb)
    if suffix == ".tif":
        assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


def test_bilevel_cmyk_and_palette_rows(tmp_path: Path) -> None:
    image = Image.fromarray(noise((30, 41, 3)))
    bilevel = from_pil(image.convert("1"))
    stream(bilevel, tmp_path / "1.png")
    again = read_image(tmp_path / "1.png")
    assert again.kind.mode == "1"
    np.testing.assert_array_equal(again.rgb, bilevel.rgb)
    cmyk = from_pil(image.convert("CMYK"))
    stream(cmyk, tmp_path / "cmyk.tif")
    again = read_image(tmp_path / "cmyk.tif")
    assert again.kind.mode == "CMYK"
    np.testing.assert_array_equal(again.rgb, cmyk.rgb)
    stream(cmyk, tmp_path / "cmyk.png")
    assert read_image(tmp_path / "cmyk.png").kind.mode == "RGB"
    palette = from_pil(image.quantize(50))
    with pytest.raises(InputError, match=r"palette needs the whole picture.*palette="):
        stream(palette, tmp_path / "p.png")
    stream(palette, tmp_path / "p.png", palette="rgb")
    np.testing.assert_array_equal(read_image(tmp_path / "p.png").rgb, palette.rgb)


def test_filters_make_photographs_as_small_as_pillow_does(tmp_path: Path) -> None:
    y, x = np.mgrid[:256, :256]
    rgb = np.dstack([np.sin(x / 17 + k) * 60 + np.cos(y / 23) * 60 + 120 for k in range(3)]).astype(np.uint8)
    stream(from_array(rgb), tmp_path / "rows.png")
    write_image(from_array(rgb), tmp_path / "whole.png")
    assert (tmp_path / "rows.png").stat().st_size < 1.1 * (tmp_path / "whole.png").stat().st_size


@pytest.mark.parametrize("suffix", [".png", ".tif", "big.tif"])
def test_streamed_files_keep_metadata(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if suffix == "big.tif":
        monkeypatch.setattr(tiff_rows, "BIG_TIFF_BYTES", 0)
    exif = Image.Exif()
    exif[0x010F] = "Camera"
    exif.get_ifd(0x8769).update({0xA002: 8, 0xA003: 8, 0x9003: "2026:11:21 10:00:00"})
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 30.0, 0.0)})
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a exif:PixelXDimension="8"/></x:xmpmeta>'
    Image.fromarray(noise((8, 8, 3))).save(tmp_path / "in.jpg", exif=exif, dpi=(300, 300), xmp=xmp)
    source = read_image(tmp_path / "in.jpg")
    path = tmp_path / f"out{suffix}"
    with open_row_writer(path, source, 24, 32) as writer:
        writer.write_rows(np.zeros((24, 32, 3), np.uint8))
    if suffix != ".png":
        assert (path.read_bytes()[2:4] == b"+\0") == (suffix == "big.tif")
    again = read_image(path)
    assert again.rgb.shape == (24, 32, 3)
    assert again.dpi == pytest.approx((300, 300), rel=1e-3)
    assert again.xmp is not None
    assert b'PixelXDimension="32"' in again.xmp
    with Image.open(path) as image:
        image.load()
        block = image.getexif()
        assert block[0x010F] == "Camera"
        assert block.get_ifd(0x8769)[0xA002] == 32
        assert block.get_ifd(0x8769)[0xA003] == 24
        assert block.get_ifd(0x8769)[0x9003] == "2026:11:21 10:00:00"
        assert block.get_ifd(0x8825)[1] == "N"
    tifffile = pytest.importorskip("tifffile")
    if suffix != ".png":
        with tifffile.TiffFile(path) as file:
            assert len(file.pages) == 1
            assert file.pages.first.is_tiled
            assert file.pages.first.tags["ExifTag"].value["PixelXDimension"] == 32


# -- Refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".avif"])
def test_formats_that_cannot_stream_name_those_that_can(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(InputError, match=r"row by row; formats that can: \.png, \.tif, \.tiff"):
        open_row_writer(tmp_path / f"x{suffix}", from_array(noise((4, 4, 3))), 4, 4)
    assert not list(tmp_path.iterdir())


def test_tiff_rows_without_tifffile_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(MissingExtraError, match=r"\.\[images\]"):
        open_row_writer(tmp_path / "x.tif", from_array(noise((4, 4, 3))), 4, 4)
    assert not list(tmp_path.iterdir())
    stream(from_array(noise((4, 4, 3), np.uint16)), tmp_path / "x.png")  # the base install is enough


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_missing_surplus_and_wrong_rows_are_refused_and_leave_nothing(tmp_path: Path, suffix: str) -> None:
    picture = from_array(noise((300, 8, 4)))
    rgb, alpha = picture.rgb, picture.alpha
    path = tmp_path / f"x{suffix}"
    with pytest.raises(InputError, match="260 of 300 rows"), open_row_writer(path, picture, 300, 8) as w:
        w.write_rows(rgb[:260], alpha[:260])  # type: ignore[index]
    with pytest.raises(InputError, match="after 0 rows"), open_row_writer(path, picture, 299, 8) as w:
        w.write_rows(rgb, alpha)
    with pytest.raises(InputError, match=r"\(n, 9, 3\)"), open_row_writer(path, picture, 300, 9) as w:
        w.write_rows(rgb, alpha)
    with pytest.raises(InputError, match="given without"), open_row_writer(path, picture, 300, 8) as w:
        w.write_rows(rgb)
    with (
        pytest.raises(InputError, match="expected uint8"),
        open_row_writer(path, picture, 300, 8) as w,
    ):
        w.write_rows(rgb.astype(np.uint16), alpha)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_abort_removes_the_file_and_closes_the_writer(tmp_path: Path, suffix: str) -> None:
    picture = from_array(noise((600, 8, 3)))
    threads = threading.active_count()
    writer = open_row_writer(tmp_path / f"x{suffix}", picture, 600, 8)
    writer.write_rows(picture.rgb[:400])
    assert [p.suffix for p in tmp_path.iterdir()] == [".part"]
    writer.abort()
    writer.abort()
    assert not list(tmp_path.iterdir())
    assert threading.active_count() == threads
    with pytest.raises(ClosedError):
        writer.write_rows(picture.rgb[:1])


# -- The whole file or none -------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError, ValueError, SystemExit])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_any_exception_between_rows_keeps_the_old_file(
    tmp_path: Path, suffix: str, failure: type[BaseException]
) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"old")
    picture = from_array(noise((600, 8, 3)))

    def blocks() -> Iterator[np.ndarray]:
        yield picture.rgb[:300]
        raise failure

    def run() -> None:
        with open_row_writer(path, picture, 600, 8) as writer:
            for rows in blocks():
                writer.write_rows(rows)

    with pytest.raises(failure):
        run()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "failure", [KeyboardInterrupt, OSError(28, "No space left on device"), RuntimeError("x")]
)
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp", ".avif"])
def test_any_exception_while_encoding_keeps_the_old_file(
    tmp_path: Path, suffix: str, failure: type[BaseException] | BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Image.Image, file: object, **_: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise failure

    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"old")
    monkeypatch.setattr(Image.Image, "save", broken)
    expected = KeyboardInterrupt if failure is KeyboardInterrupt else InputError
    with pytest.raises(expected) as caught:
        write_image(from_array(noise((8, 8, 3))), path)
    if expected is InputError:
        assert str(path) in str(caught.value)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_failing_rename_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(InputError, match="cannot be written: Permission denied"):
        write_image(from_array(noise((8, 8, 3))), tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_content_reaches_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("fsync"), sync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), replace(a, b))[1])
    write_image(from_array(noise((8, 8, 3))), tmp_path / "x.png")
    assert events == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_full_disk_is_an_input_error_and_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    code = """
        import resource, signal, sys, numpy as np
        from pathlib import Path
        from yonos_trt.errors import InputError
        from yonos_trt.images import from_array, open_row_writer, read_image, write_image
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        picture = from_array(np.random.default_rng(0).integers(0, 255, (700, 700, 3), dtype=np.uint8))
        path = Path(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        for streamed in (False, True)[: 1 if path.suffix == ".jpg" else 2]:
            try:
                if streamed:
                    with open_row_writer(path, picture, 700, 700) as writer:
                        for y in range(0, 700, 10):
                            writer.write_rows(picture.rgb[y : y + 10])
                else:
                    write_image(picture, path)
            except InputError as error:
                assert f"{path}: cannot be written: File too large" in str(error), error
            else:
                raise SystemExit("no error")
            assert not list(path.parent.iterdir()), list(path.parent.iterdir())
    """
    path = tmp_path / f"x{suffix}"
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(path)], check=True, timeout=120)


def test_targets_that_cannot_be_written_are_input_errors(tmp_path: Path) -> None:
    picture = from_array(noise((4, 4, 3)))
    (tmp_path / "folder.png").mkdir()
    for path, reason in (
        (tmp_path / "no" / "x.png", "No such file"),
        (tmp_path / "folder.png", "Is a directory"),
        (tmp_path / "x\0.png", "null"),
    ):
        with pytest.raises(InputError, match=reason):
            write_image(picture, path)
    with pytest.raises(InputError, match=r"folder .* is missing"):
        check_output(picture.kind, 4, 4, tmp_path / "no" / "x.png")
    with pytest.raises(InputError, match="is a directory"):
        check_output(picture.kind, 4, 4, tmp_path / "folder.png")
    check_output(picture.kind, 4, 4, tmp_path / "fine.png")
    assert [p.name for p in tmp_path.iterdir()] == ["folder.png"]


@pytest.mark.skipif(os.name != "posix", reason="permissions and limits are POSIX's")
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_a_replaced_file_keeps_its_permissions(tmp_path: Path, suffix: str, mode: int) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"old")
    path.chmod(mode)
    write_image(from_array(noise((4, 4, 3))), path)
    assert path.stat().st_mode & 0o777 == mode
    assert read_image(path).rgb.shape == (4, 4, 3)


@pytest.mark.parametrize("stem", ["写真" * 40 + "あ_x4", "é" * 125, "a" * 251, "🌄" * 62])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_names_may_be_as_long_as_the_file_system_allows(tmp_path: Path, stem: str, suffix: str) -> None:
    path = tmp_path / f"{stem}{suffix}"
    assert len(os.fsencode(path.name)) > 240
    write_image(from_array(noise((4, 4, 3))), path)
    stream(from_array(noise((4, 4, 3))), path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_files_of_the_user_are_never_taken_for_parts(tmp_path: Path) -> None:
    own = {name: name.encode() for name in ("x.png.part", "x.part", ".x.png.part", ".yonos-mine.part")}
    for name, raw in own.items():
        (tmp_path / name).write_bytes(raw)
    write_image(from_array(noise((4, 4, 3))), tmp_path / "x.png")
    stream(from_array(noise((4, 4, 3))), tmp_path / "x.png")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != "x.png"} == own


def test_file_has_ordinary_permissions_a_long_name_and_links_stay_links(tmp_path: Path) -> None:
    picture = from_array(noise((4, 4, 3)))
    mask = os.umask(0o022)
    try:
        write_image(picture, tmp_path / "x.png")
    finally:
        os.umask(mask)
    assert (tmp_path / "x.png").stat().st_mode & 0o777 == 0o644
    write_image(picture, tmp_path / ("n" * 251 + ".png"))
    (tmp_path / "link.png").symlink_to(tmp_path / "x.png")
    write_image(from_array(noise((9, 9, 3))), tmp_path / "link.png")
    assert (tmp_path / "link.png").is_symlink()
    assert read_image(tmp_path / "x.png").height_px == 9


# -- Memory -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_streaming_takes_memory_for_rows_not_for_the_picture(tmp_path: Path, suffix: str) -> None:
    code = """
        import resource, sys, numpy as np
        from yonos_trt.images import from_array, open_row_writer, write_image
        path, kib = sys.argv[1], lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        small = from_array(np.zeros((300, 300, 3), np.uint8))
        with open_row_writer(path, small, 300, 300) as writer:  # load everything
            writer.write_rows(small.rgb)
        before = kib()
        block = np.arange(64 * 4000 * 3, dtype=np.uint8).reshape(64, 4000, 3)
        with open_row_writer(path, small, 16_000, 4000, compression=1) as writer:
            for _ in range(250):
                writer.write_rows(block)
        print(kib() - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / f"x{suffix}")],
        check=True, timeout=120, capture_output=True, text=True,
    )  # fmt: skip
    picture_kib = 16_000 * 4000 * 3 // 1024
    assert int(done.stdout) < picture_kib / 4
    with Image.open(tmp_path / f"x{suffix}") as image:
        assert image.size == (4000, 16_000)


# -- Estimates --------------------------------------------------------------------------------------------

KINDS = [Kind(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")]
KINDS += [
    Kind("P", palette_alpha="soft"),
    Kind("L", "uint16"),
    Kind("RGBA", "uint16"),
    Kind("RGB", "float32"),
]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".avif"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: f"{k.mode}-{k.dtype}")
def test_estimate_agrees_with_what_happens(tmp_path: Path, kind: Kind, suffix: str) -> None:
    dtype = np.dtype(kind.dtype).type
    alpha = noise((64, 80), dtype) if kind.has_alpha else None
    picture = Picture(noise((64, 80, 3), dtype), alpha, kind)
    path = tmp_path / f"x{suffix}"
    choices = {"drop_alpha": True, "drop_depth": True, "lossless": True, "compression": 9}
    estimate = estimate_output(kind, 64, 80, path, **choices)
    assert estimate.array_bytes == picture.rgb.nbytes + (0 if alpha is None else alpha.nbytes)
    assert estimate.peak_bytes > estimate.array_bytes
    try:
        stream(picture, path, **choices)
        streamed = True
    except InputError:
        streamed = False
    assert streamed == estimate.can_stream
    write_image(picture, path, **choices)
    assert path.stat().st_size <= estimate.file_bytes_max


def test_door_lists_what_it_offers() -> None:
    assert all(hasattr(images, name) for name in images.__all__)
    assert set(images.SUPPORTED_SUFFIXES) <= set(images.READABLE_SUFFIXES)
