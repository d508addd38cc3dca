"""Arrays and PIL images: what comes in goes out."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, scalar_dtypes
from PIL import Image

from yonos_trt.errors import InputError
from yonos_trt.images import (
    Kind,
    Picture,
    fill_hidden,
    from_array,
    from_pil,
    luma,
    read_image,
    to_array,
    to_pil,
    upscale_alpha,
)

DTYPES = (np.uint8, np.uint16, np.float32)


def opaque_noise(shape: tuple[int, ...], dtype: type, seed: int = 0) -> np.ndarray:
    """Random pixels whose alpha, if any, is never 0."""
    rng = np.random.default_rng(seed)
    if dtype is np.float32:
        return rng.uniform(0.01, 1, shape).astype(np.float32)
    return rng.integers(1, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def grown(picture: Picture, scale: int = 3) -> Picture:
    """Upscale by repetition, as any upscaler would hand the pixels back."""
    alpha = None if picture.alpha is None else picture.alpha.repeat(scale, 0).repeat(scale, 1)
    return picture.with_pixels(picture.rgb.repeat(scale, 0).repeat(scale, 1), alpha)


# -- Arrays -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(5, 7), (5, 7, 1), (5, 7, 2), (5, 7, 3), (5, 7, 4), (1, 1), (1, 1, 4), (1, 9, 3)]
)
def test_array_comes_back_with_shape_dtype_and_values(shape: tuple[int, ...], dtype: type) -> None:
    array = opaque_noise(shape, dtype)
    picture = from_array(array)
    assert picture.rgb.shape == (*shape[:2], 3)
    assert picture.rgb.flags.c_contiguous
    np.testing.assert_array_equal(to_array(picture), array, strict=True)
    assert to_array(grown(picture)).shape == (3 * shape[0], 3 * shape[1], *shape[2:])


def test_contiguous_rgb_array_is_not_copied() -> None:
    array = opaque_noise((4, 4, 3), np.uint8)
    assert np.shares_memory(from_array(array).rgb, array)


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[::-1],
        lambda a: a[:, ::2],
        lambda a: np.asfortranarray(a),
        lambda a: a.astype(">u2"),
    ],
)
def test_strided_and_big_endian_arrays_are_read_right(view: object) -> None:
    array = view(opaque_noise((6, 8, 3), np.uint16))  # type: ignore[operator]
    picture = from_array(array)
    assert picture.rgb.flags.c_contiguous
    assert picture.rgb.dtype == np.dtype(np.uint16)
    np.testing.assert_array_equal(to_array(picture), array)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        ([[1, 2]], "expected a NumPy array"),
        (None, "expected a NumPy array"),
        (np.ma.masked_array(np.zeros((4, 4), np.uint8)), "masked"),
        (np.zeros((4, 4, 3), np.float64), "dtype float64"),
        (np.zeros((4, 4, 3), np.int32), "dtype int32"),
        (np.zeros((4, 4), bool), "dtype bool"),
        (np.zeros((4, 4), complex), "dtype complex128"),
        (np.zeros((4, 4), object), "dtype object"),
        (np.zeros(4, np.uint8), "shape"),
        (np.zeros((), np.uint8), "shape"),
        (np.zeros((1, 3, 4, 4), np.uint8), "shape"),
        (np.zeros((4, 4, 5), np.uint8), "channels last"),
        (np.zeros((4, 4, 0), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((4, 0), np.float32), "no pixels"),
        (np.full((4, 4), np.nan, np.float32), "NaN"),
        (np.full((4, 4, 3), np.inf, np.float32), "NaN or infinity"),
        (np.full((4, 4, 3), -np.inf, np.float32), "NaN or infinity"),
        (np.full((4, 4, 3), 255, np.float32), "expected \\[0, 1\\]"),
        (np.full((4, 4, 3), -0.01, np.float32), "expected \\[0, 1\\]"),
    ],
)
def test_bad_arrays_are_refused_with_the_reason(array: object, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        from_array(array)  # type: ignore[arg-type]


@settings(max_examples=200)
@given(
    array=arrays(
        dtype=st.one_of(scalar_dtypes(), st.sampled_from(["u1", "<u2", ">u2", "<f4", ">f4"]).map(np.dtype)),
        shape=array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    )
)
def test_any_array_comes_back_or_is_an_input_error(array: np.ndarray) -> None:
    try:
        picture = from_array(array)
    except InputError as error:
        assert str(error).startswith("array: ")  # noqa: PT017
        return
    back = to_array(picture)
    assert back.shape == array.shape
    assert back.dtype == array.dtype.newbyteorder("=")


def test_first_nan_is_located() -> None:
    array = np.zeros((4, 5, 3), np.float32)
    array[2, 3, 1] = np.nan
    with pytest.raises(InputError, match=r"first at \(2, 3, 1\)"):
        from_array(array)


def test_floats_a_rounding_error_outside_are_clipped_in_a_copy() -> None:
    array = np.array([[-5e-4, 0.5, 1 + 5e-4]], np.float32)
    np.testing.assert_array_equal(to_array(from_array(array)), np.array([[0, 0.5, 1]], np.float32))
    assert array[0, 0] < 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_luma_of_equal_channels_is_exact(dtype: type) -> None:
    grey = opaque_noise((64, 1024), dtype)
    np.testing.assert_array_equal(luma(np.repeat(grey[..., None], 3, 2)), grey, strict=True)


def test_luma_agrees_with_pillow() -> None:
    rgb = opaque_noise((50, 60, 3), np.uint8)
    ours = luma(rgb).astype(int)
    assert np.abs(ours - np.asarray(Image.fromarray(rgb).convert("L")).astype(int)).max() <= 1


def test_coloured_result_of_a_grey_picture_is_grey_again() -> None:
    picture = from_array(opaque_noise((4, 4), np.uint8))
    tinted = picture.with_pixels(opaque_noise((8, 8, 3), np.uint8, seed=1))
    assert to_array(tinted).shape == (8, 8)
    np.testing.assert_array_equal(to_array(tinted), luma(tinted.rgb))


def test_inconsistent_pictures_cannot_be_made() -> None:
    rgb = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(InputError, match="rgb is"):
        Picture(rgb.astype(np.uint16), None, Kind("RGB"))
    with pytest.raises(InputError, match="rgb is"):
        Picture(rgb[..., :1], None, Kind("RGB"))
    with pytest.raises(InputError, match="alpha is"):
        Picture(rgb, np.zeros((4, 5), np.uint8), Kind("RGBA"))
    with pytest.raises(InputError, match="without alpha"):
        Picture(rgb, None, Kind("RGBA"))
    with pytest.raises(InputError, match="with alpha"):
        Picture(rgb, rgb[..., 0], Kind("RGB"))
    with pytest.raises(InputError, match="HSV"):
        Kind("HSV")


def test_alpha_is_dropped_only_explicitly() -> None:
    picture = from_array(opaque_noise((4, 4, 4), np.uint8))
    assert to_array(picture).shape == (4, 4, 4)
    assert to_array(picture.without_alpha()).shape == (4, 4, 3)
    assert to_array(from_array(opaque_noise((4, 4, 2), np.uint8)).without_alpha()).shape == (4, 4, 1)


# -- PIL --------------------------------------------------------------------------------------------------


def pil_of(mode: str) -> Image.Image:
    rgba = Image.fromarray(opaque_noise((6, 9, 4), np.uint8))
    if mode == "I;16":
        return Image.fromarray(opaque_noise((6, 9), np.uint16))
    if mode == "F":
        return Image.fromarray(opaque_noise((6, 9), np.float32))
    return rgba.convert("RGB").convert(mode) if mode in ("1", "P", "CMYK", "YCbCr") else rgba.convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F"])
def test_pil_image_comes_back_in_its_mode_and_with_its_info(mode: str) -> None:
    image = pil_of(mode)
    before = image.copy()
    image.info["icc_profile"] = b"profile" if mode != "CMYK" else None
    image.info["dpi"] = (300.0, 150.0)
    result = to_pil(grown(from_pil(image)))
    assert result.mode == mode
    assert result.size == (27, 18)
    assert result.info.get("icc_profile") == image.info["icc_profile"]
    assert result.info["dpi"] == (300.0, 150.0)
    if mode in ("1", "L", "LA", "RGB", "RGBA", "I;16", "F", "P"):  # exact, the others convert colours
        small = result.resize((9, 6), Image.Resampling.NEAREST)
        form = "RGB" if mode == "P" else mode
        np.testing.assert_array_equal(np.asarray(small.convert(form)), np.asarray(before.convert(form)))
    assert image.tobytes() == before.tobytes()


@pytest.mark.parametrize("mode", ["HSV", "LAB", "I", "RGBa", "La"])
def test_pil_modes_without_a_plain_meaning_are_refused(mode: str) -> None:
    with pytest.raises(InputError, match=f"PIL mode '{mode}'.*convert"):
        from_pil(Image.new(mode, (4, 4)))


def test_pil_image_is_turned_upright_once() -> None:
    array = opaque_noise((3, 5, 3), np.uint8)
    image = Image.fromarray(array)
    image.getexif()[0x0112] = 6
    result = to_pil(from_pil(image))
    np.testing.assert_array_equal(np.asarray(result), np.rot90(array, -1))
    assert result.getexif()[0x0112] == 1
    again = to_pil(from_pil(result))
    np.testing.assert_array_equal(np.asarray(again), np.asarray(result))


def test_empty_and_foreign_objects_are_refused() -> None:
    with pytest.raises(InputError, match="no pixels"):
        from_pil(Image.new("RGB", (0, 4)))
    with pytest.raises(InputError, match="expected a path"):
        read_image(17)  # type: ignore[arg-type]


def test_16_bit_colour_has_no_pil_image_but_an_array() -> None:
    picture = from_array(opaque_noise((4, 4, 3), np.uint16))
    with pytest.raises(InputError, match="to_array"):
        to_pil(picture)


def test_few_colours_of_a_palette_survive_exactly() -> None:
    image = Image.new("P", (8, 8))
    image.putpalette([10, 20, 30, 200, 100, 50, 0, 255, 1])
    image.frombytes(bytes(i % 3 for i in range(64)))
    result = to_pil(grown(from_pil(image)))
    assert result.mode == "P"
    colours = np.unique(np.asarray(result.convert("RGB")).reshape(-1, 3), axis=0)
    assert colours.tolist() == [[0, 255, 1], [10, 20, 30], [200, 100, 50]]


def test_many_colours_of_a_palette_become_an_adaptive_one() -> None:
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    rgb = np.dstack([*np.meshgrid(ramp, ramp), np.full((64, 64), 128, np.uint8)])
    picture = from_pil(Image.fromarray(rgb).convert("P", palette=Image.Palette.ADAPTIVE))
    result = to_pil(picture.with_pixels(rgb))
    assert result.mode == "P"
    assert len(result.getcolors(256) or []) > 100
    assert np.abs(np.asarray(result.convert("RGB")).astype(float) - rgb).mean() < 8


def test_binary_transparency_of_a_palette_stays_binary() -> None:
    rgba = opaque_noise((16, 16, 4), np.uint8)
    rgba[..., 3] = 255
    rgba[:8, :, 3] = 0
    image = Image.fromarray(rgba[..., :3]).quantize(200)
    index = np.array(image)
    index[:8] = 255
    image.frombytes(index.tobytes())
    image.info["transparency"] = 255
    picture = from_pil(image)
    assert picture.kind.palette_alpha == "binary"
    soft_edge = upscale_alpha(picture.alpha, 4)  # type: ignore[arg-type]
    result = to_pil(picture.with_pixels(picture.rgb.repeat(4, 0).repeat(4, 1), soft_edge))
    assert result.mode == "P"
    alpha = np.asarray(result.convert("RGBA"))[..., 3]
    assert set(np.unique(alpha)) == {0, 255}
    assert (alpha[:31] == 0).all()
    assert (alpha[33:] == 255).all()


def test_soft_transparency_of_a_palette_stays_soft() -> None:
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[..., 3] = np.arange(64) * 4
    image = Image.fromarray(rgba).quantize(64)
    picture = from_pil(image)
    assert picture.kind.palette_alpha == "soft"
    result = to_pil(picture)
    assert result.mode == "P"
    alpha = np.asarray(result.convert("RGBA"))[..., 3].astype(int)
    assert np.abs(alpha - rgba[..., 3]).max() <= 24


# -- Alpha ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(1, 2), (2, 1), (7, 5), (64, 64), (33, 47)])
def test_hidden_colour_is_replaced_by_the_visible_one(size: tuple[int, int], dtype: type) -> None:
    top = 1 if dtype is np.float32 else np.iinfo(dtype).max
    rgb = np.zeros((*size, 3), dtype)
    alpha = np.zeros(size, dtype)
    rgb[0, 0], alpha[0, 0] = (top // 2 if top > 1 else 0.5, top, 0), top
    filled = fill_hidden(rgb, alpha)
    expected = np.broadcast_to(rgb[0, 0], filled.shape)
    np.testing.assert_allclose(filled, expected, atol=1e-6 if dtype is np.float32 else 0)
    assert (rgb[-1, -1] == 0).all()  # the input is not written


def test_visible_pixels_do_not_change_and_holes_take_near_colours() -> None:
    rgb = opaque_noise((40, 60, 3), np.uint8)
    alpha = opaque_noise((40, 60), np.uint8)
    alpha[10:30, 20:40] = 0
    rgb[:, :30], rgb[:, 30:] = (200, 0, 0), (0, 0, 200)
    rgb[10:30, 20:40] = 255
    filled = fill_hidden(rgb, alpha)
    np.testing.assert_array_equal(filled[alpha > 0], rgb[alpha > 0])
    assert (filled[10:30, 20:40, 1] == 0).all()  # nothing of the hidden white
    assert filled[20, 20, 0] > 150 > 50 > filled[20, 39, 0]


def test_fully_opaque_and_fully_hidden_pictures_stay_as_they_are() -> None:
    rgb = opaque_noise((4, 4, 3), np.uint8)
    assert fill_hidden(rgb, np.full((4, 4), 9, np.uint8)) is rgb
    assert fill_hidden(rgb, np.zeros((4, 4), np.uint8)) is rgb


def filled_plainly(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Push-pull filling by whole-array sums, as one would write it down."""
    if alpha.all():
        return rgb
    even = [(0, n % 2) for n in alpha.shape]
    weight, sums = np.pad(alpha.astype(np.float32), even), rgb.astype(np.float32) * alpha[..., None]
    sums = np.pad(sums.astype(np.float32), (*even, (0, 0)))
    small = weight.reshape(len(weight) // 2, 2, -1, 2).sum(axis=(1, 3))
    total = sums[::2, ::2] + sums[::2, 1::2] + sums[1::2, ::2] + sums[1::2, 1::2]
    coarse = filled_plainly(total / np.maximum(small, np.float32(1e-20))[..., None], small)
    if rgb.dtype != np.float32:
        coarse = np.rint(coarse).astype(rgb.dtype)
    near = coarse.repeat(2, 0).repeat(2, 1)[: rgb.shape[0], : rgb.shape[1]]
    return np.where((alpha == 0)[..., None], near, rgb)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_filling_channel_by_channel_gives_the_same_bits_and_is_faster(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    limit = 1.0 if dtype is np.float32 else np.iinfo(dtype).max
    for height, width in ((1, 7), (65, 131), (1024, 768)):
        rgb = (rng.random((height, width, 3)) * limit).astype(dtype)
        alpha = (rng.random((height, width)) * limit).astype(dtype)
        alpha[rng.random(alpha.shape) < 0.5] = 0
        alpha[height // 4 : height // 2] = 0
        alpha[0, 0] = limit
        np.testing.assert_array_equal(fill_hidden(rgb, alpha), filled_plainly(rgb, alpha))
    seconds = []
    for fill in (fill_hidden, filled_plainly):
        began_s = time.process_time()
        for _ in range(3):
            fill(rgb, alpha)
        seconds.append(time.process_time() - began_s)
    assert seconds[0] < 0.7 * seconds[1]


def test_colour_under_transparency_does_not_bleed_into_an_upscaled_rim() -> None:
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[..., :3] = 255  # hidden white around a green disc
    y, x = np.mgrid[:32, :32]
    disc = (y - 16) ** 2 + (x - 16) ** 2 < 100
    rgba[disc] = (0, 160, 0, 255)
    picture = from_array(rgba)
    rgb = np.asarray(Image.fromarray(picture.rgb).resize((128, 128), Image.Resampling.BICUBIC))
    assert picture.alpha is not None
    alpha = upscale_alpha(picture.alpha, 4)
    visible = rgb[alpha > 0]
    assert visible[:, 0].max() == 0
    assert visible[:, 1].min() == 160
    naive = np.asarray(Image.fromarray(rgba[..., :3]).resize((128, 128), Image.Resampling.BICUBIC))
    assert naive[alpha > 0][:, 0].max() > 100  # what would have happened


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_alpha_rows_put_together_equal_the_whole(scale: int, dtype: type) -> None:
    alpha = opaque_noise((23, 17), dtype)
    whole = upscale_alpha(alpha, scale)
    assert whole.shape == (23 * scale, 17 * scale)
    assert whole.dtype == dtype
    for step in (1, 5, 16):
        parts = [
            upscale_alpha(alpha, scale, y0_px=y, y1_px=min(y + step, 23 * scale))
            for y in range(0, 23 * scale, step)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_alpha_is_pillows_bicubic() -> None:
    alpha = opaque_noise((13, 21), np.uint16)
    ours = upscale_alpha(alpha, 4).astype(float)
    theirs = Image.fromarray(alpha.astype(np.float32)).resize((84, 52), Image.Resampling.BICUBIC)
    assert np.abs(ours - np.clip(np.asarray(theirs), 0, 65535)).max() <= 0.51


def test_alpha_rows_outside_are_refused() -> None:
    for y0, y1 in ((-1, 2), (0, 9), (3, 3)):
        with pytest.raises(InputError, match="outside"):
            upscale_alpha(np.zeros((4, 4), np.uint8), 2, y0_px=y0, y1_px=y1)


def test_opaque_alpha_stays_opaque() -> None:
    assert (upscale_alpha(np.full((5, 5), 65535, np.uint16), 4) == 65535).all()


# -- Import -----------------------------------------------------------------------------------------------


def test_import_loads_numpy_only() -> None:
    code = (
        "import sys, yonos_trt.images\n"
        "extra = {m.split('.')[0] for m in sys.modules} & {'PIL', 'pyvips', 'tifffile', 'imagecodecs'}\n"
        "assert not extra, extra\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
