"""The shipped model over tiles: no line where two tiles meet, in photographs or in smooth pictures."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import make_engine_dir, shipped_model
from PIL import Image

from yonos_trt.backends.base import Array
from yonos_trt.backends.numpy import NumpyBackend
from yonos_trt.pipeline import upscale_array
from yonos_trt.sr import SR
from yonos_trt.tiles.plan import TilePlan

_log = logging.getLogger(__name__)  # figures: pytest tests/test_seams.py --log-cli-level=INFO

DEMO_PHOTO = Path(__file__).parent.parent / "examples" / "chelsea.png"
TILE_PX = 256
LARGEST_RATIO = 1.02
FOLDERS = ("kodak", "bsd100_x4")
PERIOD_PX = 16
"""Rows this far apart have the same place in the pixel grid of input and network."""


@pytest.fixture(scope="module")
def sr() -> Iterator[SR]:
    with SR(shipped_model("lite-x4"), tile_px=TILE_PX, color_fix="wavelet") as opened:
        yield opened


def borders(origins: tuple[int, ...], tile: int, size: int) -> list[int]:
    """Return the lines a tiling can show along one axis: first and last line of tiles, middle of overlaps."""
    lines = set(origins[1:]) | {o + tile for o in origins[:-1]}
    lines |= {(a + b + tile) // 2 for a, b in pairwise(origins)}
    return sorted(y for y in lines if 2 * PERIOD_PX < y < size - 2 * PERIOD_PX)


def gradients(image: Array, axis: int) -> Any:
    """Return the mean absolute difference between line y - 1 and line y, for y from 1 up (entry 0 is 0)."""
    difference = np.abs(np.diff(image.astype(np.float64), axis=axis)).mean(axis=(1 - axis, 2))
    return np.concatenate([[0.0], difference])


def border_and_neighbour_gradients(image: Array, plan: TilePlan) -> tuple[list[float], list[float]]:
    """Return the gradients across all borders and the means over the neighbouring lines of the same phase."""
    across, beside = [], []
    for axis, origins, tile in ((0, plan.ys, plan.tile_h_px), (1, plan.xs, plan.tile_w_px)):
        profile = gradients(image, axis)
        lines = borders(origins, tile, image.shape[axis])
        for y in lines:
            near = [y + k * PERIOD_PX for k in (-2, -1, 1, 2)]
            across.append(float(profile[y]))
            beside.append(float(np.mean([profile[n] for n in near if n not in lines])))
    return across, beside


def photographs(data_dir: Path) -> list[Array]:
    """Return quarter-size photographs of which each needs several tiles."""
    found = [p for name in FOLDERS for p in sorted((data_dir / "dev" / name / "HR").glob("*.png"))]
    if len(found) < 10:
        pytest.skip(f"fewer than 10 photographs in {data_dir / 'dev'}")
    images = []
    for path in found:
        with Image.open(path) as opened:
            whole = opened.convert("RGB")
        quarter = whole.resize((whole.width // 4, whole.height // 4), Image.Resampling.BICUBIC)
        images.append(np.asarray(quarter))
    return images


@pytest.mark.data
@pytest.mark.slow
def test_photographs_show_no_seams(sr: SR, data_dir: Path, record_property: Any) -> None:
    across: list[float] = []
    beside: list[float] = []
    for image in photographs(data_dir):
        plan = sr.plan(*image.shape[:2]).tiles
        assert plan.tiles >= 4
        a, b = border_and_neighbour_gradients(sr.upscale(image), plan)
        across += a
        beside += b
    ratio = sum(across) / sum(beside)
    record_property("seam_ratio", float(ratio))  # plain numbers travel between pytest's processes
    _log.info("gradient across %d borders: %.4f times that of their neighbours", len(across), ratio)
    assert len(across) >= 60
    assert ratio <= LARGEST_RATIO, f"{len(across)} borders, ratio {ratio:.4f}"


def _step(image: Array, plan: TilePlan) -> float:
    """Return the largest step, in grey levels, of a line's mean over what its neighbours on both sides do."""
    worst = 0.0
    for axis, origins, tile in ((0, plan.ys, plan.tile_h_px), (1, plan.xs, plan.tile_w_px)):
        means = image.astype(np.float64).mean(axis=(1 - axis, 2))
        for y in borders(origins, tile, image.shape[axis]):
            left, right = means[y - PERIOD_PX : y], means[y : y + PERIOD_PX]
            slope = (right.mean() - left.mean()) / PERIOD_PX
            worst = max(worst, abs(float(right[0] - left[-1] - slope)))
    return worst


def _flat() -> Array:
    return np.broadcast_to(np.array([96, 128, 200], np.uint8), (150, 150, 3)).copy()


def _gradient() -> Array:
    y, x = np.mgrid[0:150, 0:150]
    return np.stack([40 + y, 30 + x, 20 + (x + y) // 2], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("draw", [_flat, _gradient])
def test_flat_and_smooth_pictures_have_no_step_at_a_border(sr: SR, draw: Any, record_property: Any) -> None:
    image = draw()
    step = _step(sr.upscale(image), sr.plan(*image.shape[:2]).tiles)
    record_property("largest_step", float(step))
    _log.info("%s: largest step at a border %.3f / 255", draw.__name__, step)
    assert step <= 1.0


@pytest.mark.parametrize("name", ["lite-x2", "lite-x4", "lite-x8"])
def test_small_tiles_and_one_large_tile_agree_to_55_db(name: str, record_property: Any) -> None:
    """The networks have no normalisation, so a tile depends only on what lies in its receptive field."""
    with Image.open(DEMO_PHOTO) as opened:
        photo = opened.convert("RGB")
    side = 800 // int(name[-1])
    lr = np.asarray(photo.resize((side, side), Image.Resampling.BICUBIC))
    results = []
    for tile_px in (TILE_PX, 1024):
        with SR(shipped_model(name), tile_px=tile_px, color_fix="none") as sr:
            tiles = sr.plan(*lr.shape[:2]).tiles
            results.append(sr.upscale(lr).astype(np.float64))
        assert (tiles.tiles == 1) == (tile_px == 1024)
    tiled, whole = results
    psnr_db = 10 * np.log10(255**2 / np.square(tiled - whole).mean())
    record_property("psnr_db", float(psnr_db))
    _log.info("%s: tiles of %d px against one: %.1f dB", name, TILE_PX, psnr_db)
    assert whole.std() > 10
    assert psnr_db >= 55


# ---------------------------------------------------------------------------------------------------------
# The measures themselves: they see a seam when there is one


def _plan(sr_dir: Path, image: Array) -> TilePlan:
    return SR(sr_dir).plan(*image.shape[:2]).tiles


def test_the_measures_are_quiet_without_and_loud_with_seams(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (20, 20, 3), np.uint8)
    image = np.asarray(Image.fromarray(small).resize((100, 100), Image.Resampling.BICUBIC))
    plan = _plan(make_engine_dir(tmp_path / "engine"), image)  # tiles of 64 px, overlap 16
    clean = upscale_array(image, NumpyBackend(), plan=plan, color_fix="none")
    checker = clean.astype(int)
    for i, y in enumerate(plan.ys):
        for j, x in enumerate(plan.xs):
            checker[y + 8 : y + 56, x + 8 : x + 56] += 6 * ((i + j) % 2)
    ratios = []
    for result in (clean, np.clip(checker, 0, 255)):
        across, beside = border_and_neighbour_gradients(result, plan)
        ratios.append(sum(across) / sum(beside))
    assert ratios[0] < 1.1
    assert ratios[1] > ratios[0] * 1.1
    flat = np.full((400, 400, 3), 100.0)
    assert _step(flat, plan) == 0
    flat[plan.ys[1] :] += 2.0
    assert _step(flat, plan) > 1.5
