"""The colour fix's coarse grid: cells of BLOCK_PX x BLOCK_PX canvas pixels, and what is computed per cell.

    means, bicubic_means   mean colour of our canvas and of the bicubic picture, for the wavelet fix
    blur                   binomial 1 4 6 4 1, twice: the low pass on the grid
    moments, fold, affine  sums and squares of whole pictures, for the adain fix

Everything is float32 or float64 in a fixed order, so that the CUDA kernels (csrc/tiles_color.h) give the same
bits, and the size of the row blocks does not change one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from yonos_trt.tiles.bicubic import Float, Index, Pixels, bicubic_taps, white

Double = NDArray[np.float64]

BLOCK_PX: Final = 8
"""Side of a cell, in output px."""

_BINOMIAL: Final = tuple(np.float32(n / 256) for n in (1, 8, 28, 56, 70, 56, 28, 8, 1))
REACH: Final = len(_BINOMIAL) // 2
"""Cells to each side that the blur of one cell reads."""

HALO_ROWS_PX: Final = REACH * BLOCK_PX + BLOCK_PX // 2 + BLOCK_PX - 1
"""The wavelet fix holds back at most this many rows."""

FOLD: Final = 64
"""Partial sums that one step of `fold_moments` adds."""


# ---------------------------------------------------------------------------------------------------------
# How far the grid is, when so many rows of the canvas are there


@dataclass(frozen=True, slots=True)
class CellRows:
    """What is known when the canvas rows [0, n) are final."""

    cells: int
    """Grid rows whose cells are complete."""
    blurred: int
    """Grid rows that the low pass is known for."""
    finished_px: int
    """Canvas rows that lie between known grid rows: they can be fixed."""


def progress(height_px: int, end_px: int) -> CellRows:
    """Return how far the wavelet fix gets with the canvas rows [0, end_px) of height_px."""
    rows = -(-height_px // BLOCK_PX)
    cells = rows if end_px == height_px else end_px // BLOCK_PX
    blurred = rows if cells == rows else max(cells - REACH, 0)
    finished = height_px if blurred == rows else max(blurred * BLOCK_PX - BLOCK_PX // 2, 0)
    return CellRows(cells, blurred, finished)


# ---------------------------------------------------------------------------------------------------------
# Means of cells


def block_means(rows: Float) -> Float:
    """Return the means of BLOCK_PX x BLOCK_PX cells of rows (n, width, 3), (ceil(n / 8), ceil(width / 8), 3).

    The last cells may be smaller.  Rows are added first, then columns.
    """
    height, width, _ = rows.shape
    sums = _cell_sums(rows)
    tall = np.minimum(BLOCK_PX, height - np.arange(sums.shape[0]) * BLOCK_PX)
    wide = np.minimum(BLOCK_PX, width - np.arange(sums.shape[1]) * BLOCK_PX)
    share = np.float32(1) / (tall[:, None] * wide).astype(np.float32)
    return np.asarray(sums * share[..., None], np.float32)


def _cell_sums(rows: NDArray[Any]) -> NDArray[Any]:
    """Add up the pixels of each cell, rows first; (n, width, 3) -> (ceil(n / 8), ceil(width / 8), 3)."""
    height, width, _ = rows.shape
    gh, gw = -(-height // BLOCK_PX), -(-width // BLOCK_PX)
    full = np.zeros((gh * BLOCK_PX, gw * BLOCK_PX, 3), rows.dtype)
    full[:height, :width] = rows
    sums = full[0::BLOCK_PX].copy()
    for k in range(1, BLOCK_PX):
        sums += full[k::BLOCK_PX]
    total = sums[:, 0::BLOCK_PX].copy()
    for k in range(1, BLOCK_PX):
        total += sums[:, k::BLOCK_PX]
    return total


@dataclass(frozen=True, slots=True)
class CellTaps:
    """Along one axis, the input pixels and weights whose sum is a cell's mean of the bicubic picture."""

    base: Index
    """(cells,) first input pixel; tap t is pixel base + t, clamped to the last one."""
    weight: Float
    """(cells, taps)."""


@lru_cache(maxsize=16)
def cell_taps(size: int, size_lr: int, scale: int) -> CellTaps:
    """Return the taps of an axis of ``size`` canvas px over ``size_lr`` input px. Not to be written to."""
    index, weight = bicubic_taps(np.arange(size), size_lr, scale)
    cell = np.arange(size) // BLOCK_PX
    cells = int(cell[-1]) + 1
    base = index[np.arange(cells) * BLOCK_PX].min(axis=1)
    offset = index - base[cell, None]
    total = np.zeros((cells, int(offset.max()) + 1))
    np.add.at(total, (np.broadcast_to(cell[:, None], offset.shape), offset), weight)
    return CellTaps(base, (total / np.bincount(cell)[:, None]).astype(np.float32))


def bicubic_means(image: Pixels, taps_y: CellTaps, taps_x: CellTaps, begin: int, end: int) -> Float:
    """Return the cell means of the bicubic picture for grid rows [begin, end), (end - begin, columns, 3).

    They come straight from the input: the bicubic picture is never made.
    """
    last_y, last_x = image.shape[0] - 1, image.shape[1] - 1
    rows: Float = np.zeros((end - begin, *image.shape[1:]), np.float32)
    for t in range(taps_y.weight.shape[1]):
        index = np.minimum(taps_y.base[begin:end] + t, last_y)
        rows += taps_y.weight[begin:end, t, None, None] * image[index].astype(np.float32)
    total: Float = np.zeros((end - begin, len(taps_x.base), 3), np.float32)
    for t in range(taps_x.weight.shape[1]):
        total += taps_x.weight[:, t, None] * rows[:, np.minimum(taps_x.base + t, last_x)]
    return total * np.float32(2 / white(image.dtype)) - np.float32(1)


# ---------------------------------------------------------------------------------------------------------
# Low pass, and lines between the cells' centres


def blur_along_x(grid: Float) -> Float:
    """Blur grid rows (n, columns, 3) along x; the outermost cells continue outside."""
    wide = np.pad(grid, ((0, 0), (REACH, REACH), (0, 0)), mode="edge")
    total: Float = np.zeros_like(grid)
    for k, share in enumerate(_BINOMIAL):
        total += share * wide[:, k : k + grid.shape[1]]
    return total


def blur_along_y(known: Float, first: int, begin: int, end: int, rows: int) -> Float:
    """Blur the grid rows [begin, end) of ``rows`` along y; ``known`` are the grid rows from ``first`` on."""
    place = np.arange(begin, end)
    total: Float = np.zeros((end - begin, *known.shape[1:]), np.float32)
    for k, share in enumerate(_BINOMIAL):
        total += share * known[np.clip(place + (k - REACH), 0, rows - 1) - first]
    return total


def grid_rows(positions: Index, cells: int) -> tuple[Index, Index, Float]:
    """Return the two grid lines around canvas rows or columns, clamped to [0, cells), and the second one's
    share.
    """
    numerator = 2 * positions + 1 - BLOCK_PX
    base = numerator // (2 * BLOCK_PX)
    share = (numerator - base * (2 * BLOCK_PX)).astype(np.float32) / np.float32(2 * BLOCK_PX)
    return np.clip(base, 0, cells - 1), np.clip(base + 1, 0, cells - 1), share


def add_grid(
    rows: Float, grid: Float, upper: Index, lower: Index, weight: Float, *, threads: int = 1
) -> None:
    """Add the grid to rows (n, width, 3) in place, on straight lines between cell centres.

    ``upper``, ``lower`` and ``weight`` (n,) name the two grid rows of each row and the lower one's share.
    ``threads`` is for the native twin.
    """
    left, right, share = grid_rows(np.arange(rows.shape[1]), grid.shape[1])
    for row, a, b, w in zip(rows, upper, lower, weight, strict=True):
        cells = grid[a] + (grid[b] - grid[a]) * w
        row += cells[left] + (cells[right] - cells[left]) * share[:, None]


# ---------------------------------------------------------------------------------------------------------
# Moments of whole pictures


def cell_moments(rows: Float) -> Double:
    """Return sum and sum of squares of each cell's pixels, float64 (cells, 6): three sums, three squares."""
    values = rows.astype(np.float64)
    both = np.concatenate((_cell_sums(values), _cell_sums(values * values)), axis=2)
    return both.reshape(-1, 6)


def fold_moments(parts: Double) -> Double:
    """Add up partial sums (n, 6), FOLD neighbours at a time, until one (6,) is left."""
    while len(parts) > 1:
        count = -(-len(parts) // FOLD)
        full = np.zeros((count * FOLD, 6))
        full[: len(parts)] = parts
        parts = full[0::FOLD].copy()
        for k in range(1, FOLD):
            parts += full[k::FOLD]
    folded: Double = parts[0]
    return folded


def affine(wanted: Double, ours: Double, count: int) -> tuple[Float, Float]:
    """Return gain and offset (3,) that give pictures with the sums `ours` mean and deviation of `wanted`.

    Huang & Belongie 2017, eq. 8.  ``count`` is the number of pixels of each picture.
    """
    (wanted_mean, wanted_deviation), (mean, deviation) = _statistics(wanted, count), _statistics(ours, count)
    gain = np.where(deviation > 0, wanted_deviation / np.where(deviation > 0, deviation, 1), 1)
    return gain.astype(np.float32), (wanted_mean - mean * gain).astype(np.float32)


def _statistics(moments: Double, count: int) -> tuple[Double, Double]:
    mean = moments[:3] / count
    return mean, np.sqrt(np.maximum(moments[3:] / count - mean * mean, 0))
