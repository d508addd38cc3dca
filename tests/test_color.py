"""The colour fix on rows of the stitched canvas."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yonos_trt.errors import ConfigError
from yonos_trt.tiles import color, color_cells
from yonos_trt.tiles.bicubic import upscale_bicubic
from yonos_trt.tiles.plan import TilePlan, plan_tiles


def plan_of(height_px: int, width_px: int) -> TilePlan:
    return plan_tiles(height_px, width_px, tile_px=64, overlap_px=16, multiple_px=8, smallest_px=16)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def fixed(image: np.ndarray, ours: np.ndarray, blocks: list[int], scale: int, mode: str) -> np.ndarray:
    """Push blocks of the given heights, then the rest; check the halo on the way."""
    fix = color.RowColorFix(image, plan_of(*ours.shape[:2]), scale, mode=mode)
    out, y, emitted = [], 0, 0
    for block in [*blocks, ours.shape[0]]:
        rows = ours[y : y + block]
        y += len(rows)
        out.append(fix.push(rows))
        emitted += len(out[-1])
        if mode == "wavelet" and y < ours.shape[0]:
            assert y - emitted <= color.HALO_ROWS_PX
    out.append(fix.flush())
    return np.concatenate(out)


@pytest.fixture(params=["native", "numpy"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType | None:
    """Run with the compiled kernels, where built, and with the twins."""
    if request.param == "numpy":
        monkeypatch.setattr(color, "native", None)
    elif color.native is None:
        pytest.skip("native kernels are not built; run `make native`")
    return color.native


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("mode", color.MODES)
@pytest.mark.parametrize("size", [(1, 1), (2, 17), (31, 5), (40, 33)])
def test_row_blocks_do_not_change_a_bit(mode: str, size: tuple[int, int]) -> None:
    scale = 4
    image = picture(*size)
    ours = np.random.default_rng(1).standard_normal((size[0] * 4, size[1] * 4, 3), dtype=np.float32)
    before = ours.copy()
    whole = fixed(image, ours, [], scale, mode)
    assert whole.shape == ours.shape
    for blocks in ([1] * 20, [7, 1, 30, 8], [64, 64], [3, 0, 50]):
        assert np.array_equal(fixed(image, ours, blocks, scale, mode), whole)
    assert np.array_equal(ours, before)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_wavelet_removes_a_constant_shift_of_our_output(scale: int) -> None:
    image = picture(21, 19)
    bicubic = upscale_bicubic(image, 0, 21 * scale, scale=scale)
    shifted = bicubic + np.array([0.1, -0.2, 0.05], np.float32)
    np.testing.assert_allclose(fixed(image, shifted, [10], scale, "wavelet"), bicubic, atol=2e-6, rtol=0)


@pytest.mark.usefixtures("kernels")
def test_wavelet_removes_a_slow_drift_and_keeps_detail() -> None:
    image = np.full((64, 64, 3), 128, np.uint8)
    bicubic = upscale_bicubic(image, 0, 256, scale=4)
    y, x = np.mgrid[:256, :256].astype(np.float32)
    drift = 0.2 * np.sin(2 * np.pi * y / 256)[..., None]
    detail = 0.2 * np.cos(np.pi * x / 4)[..., None]  # a period of one cell
    out = fixed(image, (bicubic + drift + detail).astype(np.float32), [100], 4, "wavelet")
    inner = (slice(48, -48), slice(48, -48))
    left = (out - bicubic - detail)[inner]
    # transmission of the low pass at a period of 256 px: about exp(-(2 pi 12 / 256)^2 / 2) = 0.96
    assert np.abs(left).max() < 0.06 * 0.2 + 1e-3


def test_wavelet_has_no_seam_on_a_step_of_our_colours() -> None:
    """A colour cast of half the picture fades over the low pass' width: no pixel steps further."""
    image = np.full((64, 64, 3), 100, np.uint8)
    bicubic = upscale_bicubic(image, 0, 256, scale=4)
    cast = np.zeros((1, 256, 1), np.float32)
    cast[:, 128:] = 0.3
    out = fixed(image, bicubic + cast, [], 4, "wavelet")
    steps = np.abs(np.diff(out - cast, axis=1))
    # a blurred step of 0.3 has a slope of at most 0.3 / (sqrt(2 pi) 12 px); cells make it a little steeper
    assert steps.max() < 1.3 * 0.3 / (np.sqrt(2 * np.pi) * 12)


def test_cell_means_of_the_bicubic_picture_come_from_the_input() -> None:
    for scale, size in ((1, (40, 37)), (2, (20, 23)), (3, (14, 9)), (4, (11, 13)), (8, (5, 6))):
        image = picture(*size)
        bicubic = upscale_bicubic(image, 0, size[0] * scale, scale=scale)
        taps = (color_cells.cell_taps(scale * n, n, scale) for n in size)
        grid = color_cells.bicubic_means(image, *taps, 0, -(-bicubic.shape[0] // 8))
        np.testing.assert_allclose(grid, color_cells.block_means(bicubic), atol=1e-6, rtol=0)


@given(st.integers(1, 30), st.integers(1, 30))
def test_block_means_are_means_of_the_pixels_there_are(height: int, width: int) -> None:
    rows = np.random.default_rng(height).random((height, width, 3), dtype=np.float32)
    means = color_cells.block_means(rows)
    for gy, gx in np.ndindex(means.shape[:2]):
        cell = rows[8 * gy : 8 * gy + 8, 8 * gx : 8 * gx + 8].astype(np.float64)
        np.testing.assert_allclose(means[gy, gx], cell.mean(axis=(0, 1)), atol=1e-6)


@pytest.mark.usefixtures("kernels")
def test_adain_gives_the_mean_and_deviation_of_the_bicubic_picture() -> None:
    image = picture(30, 30)
    bicubic = upscale_bicubic(image, 0, 120, scale=4)
    ours = np.random.default_rng(3).standard_normal(bicubic.shape).astype(np.float32) * 2 + 1
    out = fixed(image, ours, [50], 4, "adain")
    np.testing.assert_allclose(out.mean(axis=(0, 1)), bicubic.mean(axis=(0, 1)), atol=1e-5)
    np.testing.assert_allclose(out.std(axis=(0, 1)), bicubic.std(axis=(0, 1)), atol=1e-5)


def test_adain_keeps_a_flat_picture_finite() -> None:
    image = np.full((4, 4, 3), 255, np.uint8)
    out = fixed(image, np.zeros((8, 8, 3), np.float32), [], 2, "adain")
    np.testing.assert_allclose(out, 1, atol=1e-6)


def test_adain_is_refused_when_rows_are_streamed() -> None:
    with pytest.raises(ConfigError, match="needs the whole picture"):
        color.RowColorFix(picture(4, 4), plan_of(16, 16), 4, mode="adain", streaming=True)


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="one of wavelet, adain, none, got 'magic'"):
        color.RowColorFix(picture(4, 4), plan_of(16, 16), 4, mode="magic")


def test_too_many_and_missing_rows_are_refused() -> None:
    fix = color.RowColorFix(picture(4, 4), plan_of(16, 16), 4)
    fix.push(np.zeros((10, 16, 3), np.float32))
    with pytest.raises(ValueError, match="10 of 16 rows"):
        fix.flush()
    with pytest.raises(ValueError, match="at most 6 rows left"):
        fix.push(np.zeros((7, 16, 3), np.float32))
