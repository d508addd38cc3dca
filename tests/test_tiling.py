"""The NumPy kernels: plan, windows, gather, blend, finalize."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from yonos_trt.tiles import kernels
from yonos_trt.tiles.bicubic import upscale_bicubic
from yonos_trt.tiles.plan import TilePlan, plan_tiles, rows_final_after_band, window

SIZES = st.integers(1, 700)


@st.composite
def plans(draw: st.DrawFn) -> TilePlan:
    multiple = draw(st.sampled_from([1, 4, 8, 12, 16]))
    tile = multiple * draw(st.integers(2, 12))
    return plan_tiles(
        draw(SIZES),
        draw(SIZES),
        tile_px=tile,
        overlap_px=draw(st.integers(0, tile // 2)),
        multiple_px=multiple,
        smallest_px=draw(st.integers(1, tile)),
        batch=draw(st.integers(1, 5)),
        shrink=draw(st.booleans()),
    )


def axes(plan: TilePlan) -> list[tuple[tuple[int, ...], int, int, int]]:
    return [
        (plan.ys, plan.tile_h_px, plan.padded_h_px, plan.height_px),
        (plan.xs, plan.tile_w_px, plan.padded_w_px, plan.width_px),
    ]


@given(plans())
def test_tiles_cover_the_padded_canvas_with_at_least_the_overlap_asked_for(plan: TilePlan) -> None:
    for origins, tile, padded, size in axes(plan):
        assert origins[0] == 0
        assert origins[-1] + tile == padded >= size
        steps = np.diff(origins)
        assert np.all(steps > 0)
        assert np.all(steps <= tile - plan.overlap_px)


@given(plans())
def test_last_tile_is_shifted_inside_and_every_origin_is_a_multiple(plan: TilePlan) -> None:
    for origins, tile, padded, _ in axes(plan):
        step = np.gcd.reduce(np.array([*origins, padded, tile]))
        assert max(origins) + tile <= padded
        assert len(set(np.diff(origins[:-1]).tolist())) <= 1
        assert padded % step == 0


def test_origins_are_multiples_of_the_multiple() -> None:
    plan = plan_tiles(1000, 333, tile_px=256, overlap_px=50, multiple_px=16, smallest_px=64)
    assert (plan.padded_h_px, plan.padded_w_px) == (1008, 336)
    assert all(origin % 16 == 0 for origin in plan.ys + plan.xs)
    assert plan.ys == (0, 192, 384, 576, 752)
    assert plan.xs == (0, 80)
    assert plan.tiles == 10


@given(SIZES, SIZES, st.integers(4, 12), st.integers(0, 32), st.sampled_from([4, 16]))
def test_level_tiles_are_as_many_and_no_larger(
    height: int, width: int, count: int, overlap: int, multiple: int
) -> None:
    sizes = {"tile_px": 16 * count, "overlap_px": overlap, "multiple_px": multiple, "smallest_px": 16}
    plain = plan_tiles(height, width, **sizes)
    shrunk = plan_tiles(height, width, shrink=True, **sizes)
    assert (len(shrunk.ys), len(shrunk.xs)) == (len(plain.ys), len(plain.xs))
    for tile, most in ((shrunk.tile_h_px, plain.tile_h_px), (shrunk.tile_w_px, plain.tile_w_px)):
        assert tile <= most
        assert tile % multiple == 0


def test_level_tiles_spare_work_where_the_last_tile_would_overlap_most() -> None:
    sizes = {"tile_px": 512, "overlap_px": 64, "multiple_px": 16, "smallest_px": 64}
    plan = plan_tiles(640, 513, shrink=True, **sizes)
    assert (plan.tile_h_px, plan.tile_w_px) == (352, 304)
    assert plan.ys == (0, 288)
    assert plan.xs == (0, 224)
    assert plan_tiles(400, 2000, shrink=True, **sizes).tile_h_px == 400


def test_small_picture_is_padded_to_the_smallest_tile() -> None:
    plan = plan_tiles(3, 70, tile_px=256, overlap_px=32, multiple_px=16, smallest_px=50)
    assert (plan.tile_h_px, plan.padded_h_px, plan.ys) == (64, 64, (0,))
    assert (plan.tile_w_px, plan.padded_w_px, plan.xs) == (80, 80, (0,))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"tile_px": 100}, "multiple of 16, got 100; use 112"),
        ({"overlap_px": 129}, "at most half of tile_px"),
        ({"overlap_px": -1}, "overlap_px must be at least 0, got -1"),
        ({"smallest_px": 512}, "at least 512"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"tile_px": 16, "overlap_px": 8, "smallest_px": 16}, "leave no step of 16 px"),
    ],
)
def test_contradicting_sizes_are_refused(change: dict[str, int], text: str) -> None:
    sizes = {"tile_px": 256, "overlap_px": 32, "multiple_px": 16, "smallest_px": 64} | change
    with pytest.raises(ValueError, match=text):
        plan_tiles(900, 900, **sizes)


@given(plans())
def test_windows_are_a_partition_of_unity_exact_in_float32(plan: TilePlan) -> None:
    for origins, tile, padded, _ in axes(plan):
        total = np.zeros(padded, np.float32)
        for k, origin in enumerate(origins):
            weight = window(origins, tile, plan.overlap_px, k)
            assert weight.min() >= 0
            total[origin : origin + tile] += weight
        assert np.all(total == 1)


def test_outer_quarter_of_an_overlap_has_no_weight() -> None:
    origins, tile, overlap = (0, 192, 384), 256, 64
    middle = window(origins, tile, overlap, 1)
    assert np.all(middle[: overlap // 4] == 0)
    assert np.all(middle[-overlap // 4 :] == 0)
    assert np.all(middle[overlap : tile - overlap] == 1)
    assert np.all(np.diff(middle[:overlap]) >= 0)


@given(plans())
def test_rows_final_after_a_band_get_no_weight_from_later_bands(plan: TilePlan) -> None:
    ends = [rows_final_after_band(plan, band) for band in range(plan.bands)]
    assert ends == sorted(ends)
    assert ends[-1] == plan.height_px
    for band, end in enumerate(ends[:-1]):
        for later in range(band + 1, plan.bands):
            start = plan.ys[later]
            assert not plan.window_y(later)[: max(0, end - start)].any()


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (13, 17)])
def test_bicubic_agrees_with_pillow(scale: int, size: tuple[int, int]) -> None:
    plane = np.random.default_rng(1).random(size, dtype=np.float32)
    height, width = size[0] * scale, size[1] * scale
    theirs = np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC))
    ours = upscale_bicubic(np.repeat(plane[..., None], 3, axis=2), 0, height, scale=scale)
    # Pillow interpolates columns first; both round in float32: a few units in the last place of 2
    np.testing.assert_allclose(ours, np.repeat(theirs[..., None] * 2 - 1, 3, axis=2), atol=4e-6, rtol=0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_gather_cuts_the_reflected_bicubic_picture(dtype: type) -> None:
    image = picture(11, 7, dtype)
    whole = upscale_bicubic(image, 0, 44, scale=4)
    padded = np.pad(whole, ((0, 56), (0, 40), (0, 0)), mode="symmetric").transpose(2, 0, 1)
    ys, xs = np.array([0, 8, 60]), np.array([0, 36, 20])
    tiles = kernels.gather(image, ys, xs, tile_h_px=40, tile_w_px=32, scale=4)
    for tile, y, x in zip(tiles, ys, xs, strict=True):
        assert np.array_equal(tile, padded[:, y : y + 40, x : x + 32])


def test_gather_lr_agrees_with_gather_at_scale_1() -> None:
    image = picture(9, 13, np.uint8)
    ys, xs = np.array([0, 16, 32]), np.array([8, 40, 24])
    small = kernels.gather_lr(image, ys, xs, tile_h_px=32, tile_w_px=40, scale=4)
    same = kernels.gather(image, ys // 4, xs // 4, tile_h_px=8, tile_w_px=10, scale=1)
    assert np.array_equal(small, same)
    assert small[0, 0, 0, 0] == np.float32(image[0, 2, 0]) * np.float32(2 / 255) - np.float32(1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_finalize_undoes_the_normalisation_exactly(dtype: type) -> None:
    values = np.arange(np.iinfo(dtype).max + 1, dtype=dtype)
    image = np.repeat(values[None, :, None], 3, axis=2)
    tile = kernels.gather_lr(image, np.array([0]), np.array([0]), tile_h_px=1, tile_w_px=values.size, scale=1)
    assert np.array_equal(kernels.finalize(tile[0].transpose(1, 2, 0), dtype), image)


def test_finalize_clamps_and_rounds_half_to_even() -> None:
    step = np.float32(2 / 255)
    acc = np.array([-7, -1, -1 + 0.49 * step, 1, 1.01, np.nan], np.float32)[:, None, None].repeat(3, axis=2)
    assert kernels.finalize(acc, np.uint8)[:, 0, 0].tolist() == [0, 0, 0, 255, 255, 0]
    halves = np.array([0.5, 1.5, 2.5, 3.5], np.float32) / np.float32(127.5) - np.float32(1)
    halves = halves[:, None, None].repeat(3, axis=2)
    back = (halves[:, 0, 0] + np.float32(1)) * np.float32(127.5)
    assert np.array_equal(kernels.finalize(halves, np.uint8)[:, 0, 0], np.rint(back).astype(np.uint8))
    assert kernels.finalize(acc, np.float32)[:, 0, 0].tolist()[:2] == [0.0, 0.0]


def test_finalize_adds_the_delta() -> None:
    acc = np.full((2, 3, 3), -0.5, np.float32)
    delta = np.full((2, 3, 3), 0.5, np.float32)
    assert np.all(kernels.finalize(acc, np.uint8, delta=delta) == 128)


@given(plans(), st.sampled_from([1, 2, 4]))
def test_gather_then_blend_gives_the_bicubic_picture(plan: TilePlan, scale: int) -> None:
    h, w = -(-plan.height_px // scale), -(-plan.width_px // scale)
    image = picture(h, w, np.uint8)
    acc = np.zeros((plan.padded_h_px, plan.padded_w_px, 3), np.float32)
    for band, y in enumerate(plan.ys):
        for column, x in enumerate(plan.xs):
            tile = kernels.gather(
                image,
                np.array([y]),
                np.array([x]),
                tile_h_px=plan.tile_h_px,
                tile_w_px=plan.tile_w_px,
                scale=scale,
            )
            weights = plan.window_y(band)[None], plan.window_x(column)[None]
            kernels.blend(acc, tile, np.array([y]), np.array([x]), *weights)
    rows = min(plan.height_px, h * scale)
    expected = upscale_bicubic(image, 0, rows, scale=scale)[:, : plan.width_px]
    # weights are exact; what is left is the rounding of at most nine products
    np.testing.assert_allclose(acc[:rows, : expected.shape[1]], expected, atol=1e-6, rtol=0)


def test_blend_ignores_what_has_no_weight_even_nan() -> None:
    acc = np.zeros((4, 4, 3), np.float32)
    tiles = np.ones((2, 3, 4, 4), np.float32)
    tiles[0, :, 3] = np.nan
    tiles[1] = np.nan
    wy = np.array([[1, 1, 1, 0], [0, 0, 0, 0]], np.float32)
    kernels.blend(acc, tiles, np.array([0, 0]), np.array([0, 0]), wy, np.ones((2, 4), np.float32))
    assert np.all(acc[:3] == 1)
    assert np.all(acc[3] == 0)


def test_blend_refuses_a_tile_outside_the_accumulator() -> None:
    acc = np.zeros((4, 4, 3), np.float32)
    one = np.ones((1, 4), np.float32)
    with pytest.raises(ValueError, match="leaves the accumulator"):
        kernels.blend(acc, np.ones((1, 3, 4, 4), np.float32), np.array([1]), np.array([0]), one, one)


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (np.zeros((4, 4), np.uint8), "must be"),
        (np.zeros((4, 4, 4), np.uint8), "must be"),
        (np.zeros((4, 4, 3), np.float64), "uint8, uint16 or float32, got float64"),
        (np.zeros((0, 4, 3), np.uint8), "H, W >= 1"),
    ],
)
def test_wrong_pictures_are_refused(image: np.ndarray, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        kernels.gather(image, np.array([0]), np.array([0]), tile_h_px=4, tile_w_px=4, scale=1)


def picture(height: int, width: int, dtype: type) -> np.ndarray:
    rng = np.random.default_rng(height * 1000 + width)
    values = rng.random((height, width, 3), dtype=np.float32)
    if dtype is np.float32:
        return values
    return (values * np.iinfo(dtype).max).astype(dtype)
