"""Frames to RGB and back: matrix, range, bit depth and the place of the chroma samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yonos_trt.errors import ConfigError, InputError
from yonos_trt.video.color import MATRICES, SITINGS, Coding, planes_to_rgb, rgb_to_planes
from yonos_trt.video.layouts import ALIASES, LAYOUTS, REPACKED, layout_of

CODINGS = [Coding(m, f, s) for m in MATRICES for f in (False, True) for s in SITINGS]


def empty_planes(name: str, height: int, width: int) -> list[np.ndarray]:
    layout = layout_of(name)
    shapes = [(height, width)]
    if layout.kind != "gray":
        shapes += [(height // layout.sub_h, width // layout.sub_w)] * 2
    return [np.zeros(shape, layout.dtype) for shape in shapes]


@pytest.mark.parametrize(
    ("rgb", "matrix", "full", "bits", "expected"),
    [
        ((255, 255, 255), 1, False, 8, (235, 128, 128)),  # nominal white and black of BT.601 / BT.709
        ((0, 0, 0), 1, False, 8, (16, 128, 128)),
        ((255, 0, 0), 1, False, 8, (63, 102, 240)),  # 75 % / 100 % bar tables: BT.709 red
        ((255, 0, 0), 6, False, 8, (81, 90, 240)),  # BT.601 red
        ((0, 0, 255), 6, False, 8, (41, 240, 110)),  # BT.601 blue
        ((255, 0, 0), 5, True, 8, (76, 85, 255)),  # JFIF red
        ((65535, 65535, 65535), 9, False, 10, (940, 512, 512)),  # BT.2020 10-bit white
        ((0, 0, 0), 9, False, 10, (64, 512, 512)),
    ],
)
def test_known_colours_get_the_code_values_of_the_standards(
    rgb: tuple[int, ...], matrix: int, full: bool, bits: int, expected: tuple[int, ...]
) -> None:
    name = "yuv444p" if bits == 8 else f"yuv444p{bits}le"
    picture = np.full((2, 2, 3), rgb, np.uint8 if bits == 8 else np.uint16)
    planes = empty_planes(name, 2, 2)
    rgb_to_planes(picture, planes, layout_of(name), Coding(matrix, full))
    assert tuple(int(p[0, 0]) for p in planes) == expected


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize(
    "name", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv444p12le", "yuv422p16le"]
)
def test_a_flat_colour_survives_the_way_there_and_back(name: str, coding: Coding) -> None:
    layout = layout_of(name)
    peak = 255 if layout.bits == 8 else 65535
    for colour in ([0.2, 0.5, 0.8], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.9, 0.1, 0.3]):
        dtype = np.uint8 if layout.bits == 8 else np.uint16
        rgb = np.broadcast_to((np.array(colour) * peak).round().astype(dtype), (6, 8, 3))
        planes = empty_planes(name, 6, 8)
        rgb_to_planes(rgb, planes, layout, coding)
        back = planes_to_rgb(planes, layout, coding)
        # one step of luma and one of chroma, the largest gain being 2 (1 - Kb) = 1.89, 219 codes a span
        step = peak / (219 * 2 ** (layout.bits - 8))
        assert np.abs(back.astype(int) - rgb.astype(int)).max() <= np.ceil(1.5 * step)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    coding=st.sampled_from(CODINGS),
    name=st.sampled_from(["yuv444p", "yuv444p10le", "gbrp", "gbrp10le"]),
)
def test_unsubsampled_pictures_come_back_within_rounding(seed: int, coding: Coding, name: str) -> None:
    layout = layout_of(name)
    peak = 255 if layout.bits == 8 else 65535
    rgb = np.random.default_rng(seed).integers(0, peak + 1, (7, 70, 3), dtype=layout.dtype)
    planes = empty_planes(name, 7, 70)
    rgb_to_planes(rgb, planes, layout, coding)
    back = planes_to_rgb(planes, layout, coding)
    if name == "gbrp":
        np.testing.assert_array_equal(back, rgb)
    else:
        step = peak / (219 * 2 ** (layout.bits - 8))
        assert np.abs(back.astype(int) - rgb.astype(int)).max() <= np.ceil(1.5 * step)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), bits=st.sampled_from([8, 10, 12, 16]), full=st.booleans())
def test_grey_video_is_grey_rgb_and_comes_back_exactly(seed: int, bits: int, full: bool) -> None:
    name = "gray" if bits == 8 else f"gray{bits}le"
    layout = layout_of(name)
    unit = 1 << (bits - 8)
    low, high = (0, (1 << bits) - 1) if full else (16 * unit, 235 * unit)
    plane = np.random.default_rng(seed).integers(low, high + 1, (4, 6)).astype(layout.dtype)
    rgb = planes_to_rgb([plane], layout, Coding(1, full))
    assert (rgb[..., 0] == rgb[..., 1]).all()
    assert (rgb[..., 0] == rgb[..., 2]).all()
    back = np.zeros_like(plane)
    rgb_to_planes(rgb, [back], layout, Coding(1, full))
    np.testing.assert_array_equal(back, plane)


@pytest.mark.parametrize("siting", sorted(SITINGS))
@pytest.mark.parametrize("name", ["yuv420p16le", "yuv422p16le"])
def test_a_chroma_ramp_stays_in_its_place(name: str, siting: str) -> None:
    """Linear up-interpolation and the symmetric down filters leave a ramp alone, if and only if both use the
    same true positions. A wrong siting shifts it by half a luma sample."""
    layout, coding = layout_of(name), Coding(1, False, siting)
    height, width = 24, 32
    y, x = np.mgrid[0:height, 0:width]
    planes = empty_planes(name, height, width)
    planes[0][...] = 30000
    vertical, horizontal = SITINGS[siting]
    cy = np.arange(height // layout.sub_h) * layout.sub_h + (0.5 * vertical if layout.sub_h == 2 else 0)
    cx = np.arange(width // 2) * 2 + 0.5 * horizontal
    planes[1][...] = 30000 + 100 * cx[None, :] + 60 * cy[:, None]
    planes[2][...] = 34000 - 80 * cx[None, :]
    rgb = planes_to_rgb(planes, layout, coding)
    full = empty_planes("yuv444p16le", height, width)
    rgb_to_planes(rgb, full, layout_of("yuv444p16le"), coding)
    inner = np.s_[2:-2, 2:-2]
    np.testing.assert_allclose(full[1][inner], (30000 + 100 * x + 60 * y)[inner], atol=2)
    back = [np.zeros_like(p) for p in planes]
    rgb_to_planes(rgb, back, layout, coding)
    for got, expected in zip(back[1:], planes[1:], strict=True):
        np.testing.assert_allclose(got[1:-1, 1:-1].astype(int), expected[1:-1, 1:-1].astype(int), atol=2)


@pytest.mark.parametrize("siting", sorted(SITINGS))
@pytest.mark.parametrize("name", ["yuv420p", "yuv422p10le", "yuv444p", "gray"])
def test_bands_do_not_show(siting: str, name: str) -> None:
    """Rows are converted a band at a time; neither direction may depend on where bands begin."""
    rng = np.random.default_rng(3)
    layout, coding = layout_of(name), Coding(1, False, siting)
    rgb = rng.integers(0, 256 if layout.bits == 8 else 65536, (86, 38, 3))
    rgb = rgb.astype(np.uint8 if layout.bits == 8 else np.uint16)
    whole, banded = empty_planes(name, 86, 38), empty_planes(name, 86, 38)
    rgb_to_planes(rgb, whole, layout, coding, band_rows=1000)
    rgb_to_planes(rgb, banded, layout, coding, band_rows=16)
    for one, other in zip(whole, banded, strict=True):
        np.testing.assert_array_equal(one, other)
    at_once = planes_to_rgb(whole, layout, coding, band_rows=1000)
    np.testing.assert_array_equal(planes_to_rgb(whole, layout, coding, band_rows=16), at_once)


@pytest.mark.parametrize("siting", sorted(SITINGS))
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (67, 2), (2, 7)])
def test_chroma_goes_up_as_the_equation_says_at_odd_sizes_too(height: int, width: int, siting: str) -> None:
    """Against linear interpolation at the stated positions, sample by sample, edges held."""
    rng = np.random.default_rng(5)
    layout, coding = layout_of("yuv420p16le"), Coding(1, True, siting)
    small = ((height + 1) // 2, (width + 1) // 2)
    planes = [rng.integers(0, 65536, shape).astype(np.uint16) for shape in ((height, width), small, small)]
    vertical, horizontal = SITINGS[siting]

    def up(plane: np.ndarray) -> np.ndarray:
        ys = np.clip((np.arange(height) - 0.5 * vertical) / 2, 0, small[0] - 1)
        xs = np.clip((np.arange(width) - 0.5 * horizontal) / 2, 0, small[1] - 1)
        columns = np.array([np.interp(xs, np.arange(small[1]), row) for row in plane.astype(float)])
        return np.array([np.interp(ys, np.arange(small[0]), column) for column in columns.T]).T

    luma, cb, cr = planes[0].astype(float), up(planes[1]) - 32768, up(planes[2]) - 32768
    kr, kb = MATRICES[1]
    green = luma - (2 * kr * (1 - kr) * cr + 2 * kb * (1 - kb) * cb) / (1 - kr - kb)
    expected = np.stack((luma + 2 * (1 - kr) * cr, green, luma + 2 * (1 - kb) * cb), axis=-1)
    found = planes_to_rgb(planes, layout, coding)
    np.testing.assert_allclose(found, np.clip(expected, 0, 65535), atol=1.0)


@pytest.mark.parametrize("matrix", sorted(MATRICES))
@pytest.mark.parametrize("full", [False, True])
def test_444_agrees_with_ffmpegs_scaler_given_the_same_constants(matrix: int, full: bool) -> None:
    """FFmpeg's scaler in its accurate mode is an independent implementation of the same equations."""
    av = pytest.importorskip("av")
    scaler_matrix = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}[matrix]
    rng = np.random.default_rng(matrix)
    rgb = rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)
    planes = empty_planes("yuv444p", 32, 48)
    rgb_to_planes(rgb, planes, layout_of("yuv444p"), Coding(matrix, full))
    frame = av.VideoFrame.from_ndarray(np.stack(planes), format="yuv444p")
    flags = av.video.reformatter.Interpolation
    theirs = frame.to_ndarray(
        format="rgb24",
        src_colorspace=scaler_matrix,
        src_color_range=2 if full else 1,
        dst_color_range=2,
        interpolation=int(flags.BILINEAR | flags.ACCURATE_RND | flags.FULL_CHR_H_INT | flags.BITEXACT),
    )
    ours = planes_to_rgb(planes, layout_of("yuv444p"), Coding(matrix, full))
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 2


def test_unknown_matrix_siting_and_format_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="matrix coefficients 8 are not supported"):
        Coding(8)
    with pytest.raises(ConfigError, match="chroma siting 'middle' is unknown"):
        Coding(1, False, "middle")
    with pytest.raises(InputError, match="pixel format pal8 is not supported"):
        layout_of("pal8")
    with pytest.raises(InputError, match="alpha channel"):
        layout_of("yuva420p")


def test_an_odd_size_does_not_fit_subsampled_chroma() -> None:
    with pytest.raises(ConfigError, match="multiple of 2, got 3 x 5"):
        rgb_to_planes(
            np.zeros((3, 5, 3), np.uint8), empty_planes("yuv420p", 4, 6), layout_of("yuv420p"), Coding()
        )


def test_every_name_is_a_format_ffmpeg_knows_with_the_same_subsampling() -> None:
    av = pytest.importorskip("av")
    for name in [*LAYOUTS, *REPACKED, *ALIASES]:
        layout = layout_of(name)
        theirs = av.VideoFormat(name, 64, 64)
        assert theirs.components[0].bits == layout.bits, name
        if layout.kind == "yuv":
            assert (theirs.chroma_height(64), theirs.chroma_width(64)) == (
                64 // layout.sub_h,
                64 // layout.sub_w,
            )
