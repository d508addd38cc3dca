"""Files of every kind through `SR` and back: mode, depth, profile, metadata and size of the result."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from yonos_trt.errors import ConfigError, InputError
from yonos_trt.images import from_array, read_image, write_image
from yonos_trt.sr import SR

SCALE = 4
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
RGB = np.dstack([np.add.outer(np.arange(18) * a, np.arange(22) * b) for a, b in ((9, 3), (2, 6), (5, 1))])
RGB = RGB.astype(np.uint8)


def source(folder: Path, name: str) -> Path:
    """Write a picture of the kind that ``name`` says: MODE.suffix, a leading 16 or f for the depth."""
    path = folder / name.replace("16-", "").replace("f-", "")
    mode, depth = (
        path.stem,
        np.uint16 if name.startswith("16-") else np.float32 if name.startswith("f-") else np.uint8,
    )
    alpha = np.full(RGB.shape[:2], 255, np.uint8)
    alpha[:, :8] = 0
    rgba = np.dstack([RGB, alpha])
    if depth is not np.uint8:
        array = {"L": RGB[..., 0], "RGB": RGB, "RGBA": rgba}[mode]
        deep = (array / 255).astype(np.float32) if depth is np.float32 else array.astype(depth) * 257
        write_image(from_array(deep), path)
        return path
    image = Image.fromarray(rgba)
    if mode == "Pt":
        image = image.quantize(32)
    else:
        image = image.convert(mode) if mode in ("LA", "RGBA") else Image.fromarray(RGB).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, icc_profile=None if mode == "CMYK" else SRGB, exif=exif)
    return path


CASES = {
    "RGB.png": ("RGB", "uint8"), "RGBA.png": ("RGBA", "uint8"), "L.png": ("L", "uint8"),
    "LA.png": ("LA", "uint8"), "P.png": ("P", "uint8"), "Pt.png": ("P", "uint8"), "1.png": ("1", "uint8"),
    "RGB.jpg": ("RGB", "uint8"), "L.jpg": ("L", "uint8"), "CMYK.jpg": ("CMYK", "uint8"),
    "RGB.webp": ("RGB", "uint8"), "RGBA.webp": ("RGBA", "uint8"), "RGB.avif": ("RGB", "uint8"),
    "RGBA.tif": ("RGBA", "uint8"), "CMYK.tif": ("CMYK", "uint8"), "16-RGB.png": ("RGB", "uint16"),
    "16-RGBA.png": ("RGBA", "uint16"), "16-L.png": ("L", "uint16"), "16-RGB.tif": ("RGB", "uint16"),
    "f-RGB.tif": ("RGB", "float32"), "f-L.tif": ("L", "float32"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_comes_in_goes_out(sr: SR, tmp_path: Path, name: str) -> None:
    path = source(tmp_path, name)
    before = read_image(path)
    target = tmp_path / f"out{path.suffix}"
    sr.upscale_file(path, target)
    after = read_image(target)
    assert (after.kind.mode, after.kind.dtype) == CASES[name]
    assert after.rgb.shape == (before.height_px * SCALE, before.width_px * SCALE, 3)
    assert after.icc == before.icc
    turned = CASES[name][1] == "uint8"  # those were saved with orientation 6
    assert before.rgb.shape[:2] == ((22, 18) if turned else (18, 22))
    if before.alpha is not None:
        assert after.alpha is not None
        top = np.iinfo(before.kind.dtype).max
        shape = (
            after.alpha.astype(float).reshape(before.height_px, SCALE, before.width_px, SCALE).mean((1, 3))
            / top
        )
        assert np.abs(shape - before.alpha / top).mean() < 0.05
    if after.kind.is_grey:
        assert (after.rgb[..., 0] == after.rgb[..., 2]).all()


def test_alpha_into_jpeg_is_refused_before_the_work(sr: SR, tmp_path: Path) -> None:
    path = source(tmp_path, "RGBA.png")
    worked: list[int] = []
    with pytest.raises(InputError, match="transparency"):
        sr.upscale_file(path, tmp_path / "out.jpg", on_tiles=lambda done, _: worked.append(done))
    assert not worked
    sr.upscale_file(path, tmp_path / "out.jpg", alpha="drop")
    assert read_image(tmp_path / "out.jpg").kind.mode == "RGB"


@pytest.mark.data
def test_a_real_photograph_as_16_bit_and_as_8_bit_agree(sr: SR, tmp_path: Path, data_dir: Path) -> None:
    file = sorted((data_dir / "dev" / "set5_x4" / "LR").glob("*.png"))[0]
    rgb = read_image(file).rgb
    write_image(from_array(rgb.astype(np.uint16) * 257), tmp_path / "deep.png")
    sr.upscale_file(file, tmp_path / "a.png")
    sr.upscale_file(tmp_path / "deep.png", tmp_path / "b.png")
    eight, sixteen = read_image(tmp_path / "a.png").rgb, read_image(tmp_path / "b.png").rgb
    assert sixteen.dtype == np.uint16
    assert np.abs(sixteen / 257 - eight).max() <= 0.51


@pytest.mark.parametrize("kind", ["text", "closed", "read-only"])
def test_a_file_object_that_takes_no_bytes_is_an_input_error(sr: SR, tmp_path: Path, kind: str) -> None:
    result = sr.upscale(source(tmp_path, "RGB.png"))
    with open(tmp_path / "RGB.png", "rb") as file:
        target: Any = {"text": io.StringIO(), "closed": io.BytesIO(), "read-only": file}[kind]
        if kind == "closed":
            target.close()
        with pytest.raises(InputError, match=r"takes no bytes: .*'wb'"):
            result.save(target, format="png")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quality": 90.5}, "quality is 90.5, expected a whole number from 1 to 100"),
        ({"quality": True}, "quality is True"),
        ({"compression": 10}, "compression is 10, expected a whole number from 0 to 9"),
        ({"lossless": "no"}, "lossless is 'no', expected True or False"),
        ({"drop_alpha": "no"}, "drop_alpha is 'no'"),
        ({"drop_depth": None}, "drop_depth is None"),
        ({"options": {"quality": 5}}, "options is {'quality': 5}, expected SaveOptions"),
    ],
)
def test_save_options_are_of_their_kind(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        write_image(from_array(RGB), tmp_path / "out.webp", **options)
    assert not list(tmp_path.iterdir())


def test_numbers_of_numpy_are_save_options(tmp_path: Path) -> None:
    for name, choices in (("a", {"quality": 60}), ("b", {"quality": np.int64(60), "lossless": np.False_})):
        write_image(from_array(RGB), tmp_path / f"{name}.webp", **choices)
    assert (tmp_path / "a.webp").read_bytes() == (tmp_path / "b.webp").read_bytes()
