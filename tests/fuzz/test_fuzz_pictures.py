"""Mutated pictures of every format that is read."""

from __future__ import annotations

import importlib.util
import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import picture
from hypothesis import strategies as st
from PIL import Image

from fuzz.mutate import Mutation, fuzz, mutate, mutations, told
from yonos_trt.errors import YonosError
from yonos_trt.images import read_image, write_image

LONGEST_S = 20.0  # of one small file, on a machine with other work


def corpus() -> list[tuple[str, bytes]]:
    """Small valid pictures: (suffix, contents)."""
    rgb = Image.fromarray(picture(23, 31))
    rgba = Image.fromarray(picture(23, 31, channels=4))
    files: list[tuple[str, bytes]] = []

    def add(suffix: str, image: Image.Image, format: str, **options: object) -> None:
        buffer = io.BytesIO()
        image.save(buffer, format, **options)
        files.append((suffix, buffer.getvalue()))

    exif = rgb.getexif()
    exif[0x010E], exif[0x0112] = "a picture", 6
    for mode in ("L", "LA", "P", "RGB", "RGBA", "1", "I;16"):
        deep = Image.fromarray(picture(23, 31, dtype=np.uint16, channels=1)[..., 0])
        add(".png", deep if mode == "I;16" else rgba.convert(mode), "PNG", exif=exif)
    for mode in ("L", "RGB", "CMYK"):
        add(".jpg", rgb.convert(mode), "JPEG", exif=exif, quality=80)
    add(".jpg", rgb, "JPEG", progressive=True)
    add(".webp", rgba, "WEBP", exif=exif)
    add(".webp", rgb, "WEBP", lossless=True)
    add(".avif", rgb, "AVIF", exif=exif)
    add(".gif", rgb.convert("P"), "GIF")
    add(".bmp", rgb, "BMP")
    for compression in (None, "tiff_lzw", "jpeg", "tiff_adobe_deflate"):
        add(".tif", rgb, "TIFF", compression=compression)
    add(".tif", rgba, "TIFF")
    if importlib.util.find_spec("tifffile"):
        add_deep_tiffs(files)
    if importlib.util.find_spec("pillow_heif"):  # an extra of its own: its wheels are GPL
        import pillow_heif

        buffer = io.BytesIO()
        pillow_heif.from_pillow(rgb).save(buffer, exif=exif.tobytes())
        files.append((".heic", buffer.getvalue()))
    return files


def add_deep_tiffs(files: list[tuple[str, bytes]]) -> None:
    """16 bits, floats, tiles, planes, big-endian and BigTIFF."""
    import tifffile

    deep, grey = picture(23, 31, dtype=np.uint16), picture(23, 31, dtype=np.uint16, channels=1)[..., 0]
    rgb: dict[str, Any] = {"photometric": "rgb"}
    for pixels, options in (
        (deep, rgb | {"compression": "lzw", "byteorder": ">"}),
        (grey, {}),
        (picture(23, 31, dtype=np.float32), rgb),
        (picture(23, 31, dtype=np.float32, channels=1)[..., 0], {}),
        (picture(23, 31), rgb | {"tile": (16, 16)}),
        (np.moveaxis(picture(23, 31), 2, 0), rgb | {"planarconfig": "separate"}),
        (deep, rgb | {"bigtiff": True, "tile": (16, 16), "compression": "zlib", "predictor": True}),
    ):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, pixels, **options)
        files.append((".tif", buffer.getvalue()))


@pytest.mark.filterwarnings("ignore")
def test_a_mutated_picture_is_read_or_refused(tmp_path: Path) -> None:
    files = corpus()

    def check(drawn: tuple[tuple[str, bytes], list[Mutation]]) -> None:
        (suffix, raw), changes = drawn
        for left in tmp_path.iterdir():  # of an example that failed
            left.unlink()
        path = tmp_path / f"mutated{suffix}"
        path.write_bytes(mutate(raw, changes))
        start = time.monotonic()
        try:
            read = read_image(path)
        except YonosError as error:
            named = path.name in told(error)
            assert named
        else:
            assert read.height_px >= 1
            assert read.width_px >= 1
            if read.height_px * read.width_px < 10**6:
                target = tmp_path / "out.png"
                try:
                    write_image(read, target)
                except YonosError:
                    assert not target.exists()
                else:
                    with Image.open(target) as back:
                        assert back.size == (read.width_px, read.height_px)
                    target.unlink()
        assert time.monotonic() - start < LONGEST_S
        assert [p.name for p in tmp_path.iterdir()] == [path.name]
        path.unlink()

    assert fuzz(st.tuples(st.sampled_from(files), mutations()), check) >= 10


@pytest.mark.filterwarnings("ignore")
def test_every_file_of_the_corpus_is_read(tmp_path: Path) -> None:
    for index, (suffix, raw) in enumerate(corpus()):
        path = tmp_path / f"{index}{suffix}"
        path.write_bytes(raw)
        read = read_image(path)
        assert {read.height_px, read.width_px} == {23, 31}
