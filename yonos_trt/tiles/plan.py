"""Tiles on the canvas: where they lie, in which order they are worked on, and how they overlap.

The canvas is the output picture, (scale * H, scale * W) px, padded to the right and below.

    plan_tiles    sizes -> TilePlan
    batches       TilePlan -> TileBatch, in the order of work and of blending
    window        partition of unity along one axis
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from yonos_trt.tiles.bicubic import Float

WINDOW_STEPS: Final = 4096
"""Window weights are multiples of 1 / WINDOW_STEPS: their sums and products are then exact in float32."""


# ---------------------------------------------------------------------------------------------------------
# Plan


@dataclass(frozen=True, slots=True)
class TilePlan:
    """Equal tiles that cover a padded canvas.  All sizes in output px, (height, width)."""

    height_px: int
    """Height of the picture on the canvas, scale * H: what is returned."""
    width_px: int
    """Width of the picture on the canvas, scale * W: what is returned."""
    padded_h_px: int
    """Canvas height after padding."""
    padded_w_px: int
    """Canvas width after padding."""
    tile_h_px: int
    """Height of every tile."""
    tile_w_px: int
    """Width of every tile."""
    overlap_px: int
    """Overlap asked for; neighbours share at least this much. 2 * overlap_px <= tile size."""
    ys: tuple[int, ...]
    """Row origins, ascending; the last one is shifted inside."""
    xs: tuple[int, ...]
    """Column origins, ascending; the last one is shifted inside."""
    batch: int = 1
    """Tiles per batch.  Batches never straddle a band; a short last batch is padded by repeating its last
    tile.
    """
    first_tile: int = 0
    """Number of the first tile, where rows of tiles above it were left out."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")

    @property
    def bands(self) -> int:
        """Number of tile rows."""
        return len(self.ys)

    @property
    def tiles(self) -> int:
        """Number of tiles on the canvas, without the repeated ones of short batches."""
        return len(self.ys) * len(self.xs)

    @property
    def batches_per_band(self) -> int:
        """Number of batches in one tile row."""
        return -(-len(self.xs) // self.batch)

    def window_y(self, band: int) -> Float:
        """Return the weights of a tile's rows, (tile_h_px,)."""
        return window(self.ys, self.tile_h_px, self.overlap_px, band)

    def window_x(self, column: int) -> Float:
        """Return the weights of a tile's columns, (tile_w_px,)."""
        return window(self.xs, self.tile_w_px, self.overlap_px, column)


def plan_tiles(
    height_px: int,
    width_px: int,
    *,
    tile_px: int,
    overlap_px: int,
    multiple_px: int,
    smallest_px: int,
    batch: int = 1,
    shrink: bool = False,
) -> TilePlan:
    """Lay equal tiles over a canvas.

    Parameters
    ----------
    height_px, width_px : size of the output picture, at least 1.
    tile_px : wanted tile side, a multiple of ``multiple_px``; a smaller canvas gets one smaller tile per
        axis.
    overlap_px : least overlap of neighbours, at most ``tile_px / 2``.
    multiple_px : every origin and every tile side is a multiple of it.
    smallest_px : smallest legal tile side; smaller pictures are padded up to it.
    batch : tiles per batch.
    shrink : shrink the tiles, per axis, to the least side at which as many of them still cover the canvas. A
        canvas of 640 px then takes two tiles of 352 px instead of two of 512: the same overlap, less work.

    Raises
    ------
    ValueError
        For sizes that contradict each other; the text names got, expected and the remedy.
    """
    for name, value, least in (
        ("height_px", height_px, 1),
        ("width_px", width_px, 1),
        ("tile_px", tile_px, 1),
        ("overlap_px", overlap_px, 0),
        ("multiple_px", multiple_px, 1),
        ("smallest_px", smallest_px, 1),
        ("batch", batch, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if tile_px % multiple_px:
        raise ValueError(
            f"tile_px must be a multiple of {multiple_px}, got {tile_px}; "
            f"use {_ceil_to(tile_px, multiple_px)} instead"
        )
    if tile_px < smallest_px:
        raise ValueError(f"tile_px must be at least {smallest_px}, the smallest legal tile, got {tile_px}")
    if 2 * overlap_px > tile_px:
        raise ValueError(
            f"overlap_px must be at most half of tile_px ({tile_px}), got {overlap_px}; "
            f"use at most {tile_px // 2}"
        )
    ys, tile_h, padded_h = _plan_axis(height_px, tile_px, overlap_px, multiple_px, smallest_px, shrink)
    xs, tile_w, padded_w = _plan_axis(width_px, tile_px, overlap_px, multiple_px, smallest_px, shrink)
    return TilePlan(height_px, width_px, padded_h, padded_w, tile_h, tile_w, overlap_px, ys, xs, batch)


def _ceil_to(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _plan_axis(
    size: int, tile_px: int, overlap: int, multiple: int, smallest: int, shrink: bool
) -> tuple[tuple[int, ...], int, int]:
    """Return (origins, tile side, padded size) of one axis."""
    padded = max(_ceil_to(size, multiple), _ceil_to(smallest, multiple))
    tile = min(tile_px, padded)
    if padded <= tile:
        return (0,), tile, padded
    stride = (tile - overlap) // multiple * multiple
    if stride < multiple:
        raise ValueError(
            f"tiles of {tile} px with {overlap} px of overlap leave no step of {multiple} px; "
            f"use tile_px >= {2 * multiple} or overlap_px = 0"
        )
    if shrink:
        strides = -(-(padded - tile) // stride)
        tile = max(_ceil_to(smallest, multiple), _ceil_to(max(2 * overlap, 1), multiple))
        while tile < tile_px and strides * ((tile - overlap) // multiple * multiple) + tile < padded:
            tile += multiple
        stride = (tile - overlap) // multiple * multiple
    origins = (*range(0, padded - tile, stride), padded - tile)
    return origins, tile, padded


def window(origins: tuple[int, ...], tile: int, overlap: int, k: int) -> Float:
    """Return the weights of tile ``k`` along one axis, (tile,), in [0, 1].

    Partition of unity by construction: with H_k a raised-cosine step from 0 to 1 centred in the overlap of
    tiles k and k + 1 and ``overlap / 2`` wide, the weight is H_{k-1} - H_k (H before the first tile is 1,
    after the last 0).  The outer quarter of an overlap, where a network's zero padding shows, has weight 0.
    """
    if not 0 <= k < len(origins):
        raise ValueError(f"tile index must be in [0, {len(origins)}), got {k}")
    x = (np.arange(tile) + (origins[k] + 0.5)).astype(np.float64)
    before = np.ones(tile) if k == 0 else _step(x, origins[k - 1], origins[k], tile, overlap)
    after = np.zeros(tile) if k == len(origins) - 1 else _step(x, origins[k], origins[k + 1], tile, overlap)
    return (before - after).astype(np.float32)


def _step(x: NDArray[np.float64], left: int, right: int, tile: int, overlap: int) -> NDArray[np.float64]:
    """Return H(x), 0 -> 1, between the tiles at ``left`` and ``right``, in multiples of 1 / WINDOW_STEPS."""
    centre = (left + right + tile) / 2
    width = overlap / 2
    if width == 0:
        return (x >= centre).astype(np.float64)
    t = np.clip((x - centre) / width + 0.5, 0.0, 1.0)
    return np.rint((0.5 - 0.5 * np.cos(np.pi * t)) * WINDOW_STEPS) / WINDOW_STEPS


def rows_final_after_band(plan: TilePlan, band: int) -> int:
    """Return n: no tile below ``band`` gives weight to the canvas rows [0, n).  At most
    ``plan.height_px``.
    """
    for later in range(band + 1, plan.bands):
        weighted = np.flatnonzero(plan.window_y(later))
        if weighted.size:
            return min(plan.height_px, plan.ys[later] + int(weighted[0]))
    return plan.height_px


# ---------------------------------------------------------------------------------------------------------
# Batches


@dataclass(frozen=True, slots=True, eq=False)
class TileBatch:
    """`plan.batch` tiles of one band, in row-major order; a short last batch repeats its last tile.

    Attributes
    ----------
    band : int
        Row of tiles the batch belongs to; batches never straddle a band.
    first : int
        Index of the first tile in the plan's row-major order.
    ys, xs : int64 (N,)
        Origins of the tiles in canvas px.
    live : int
        How many of them count; the others are padding and are blended with weight 0.
    """

    band: int
    first: int
    ys: NDArray[np.int64]
    xs: NDArray[np.int64]
    live: int

    def weights(self, plan: TilePlan) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the blend windows ``wy (N, tile_h_px)`` and ``wx (N, tile_w_px)``, 0 for padding."""
        count = len(self.xs)
        wy = np.zeros((count, plan.tile_h_px), np.float32)
        wx = np.zeros((count, plan.tile_w_px), np.float32)
        wy[: self.live] = _window(plan.ys, plan.tile_h_px, plan.overlap_px, self.band)
        column = self.first % len(plan.xs)
        for i in range(self.live):
            wx[i] = _window(plan.xs, plan.tile_w_px, plan.overlap_px, column + i)
        return wy, wx


@lru_cache(maxsize=4096)
def _window(origins: tuple[int, ...], tile: int, overlap: int, k: int) -> NDArray[np.float32]:
    # Every row of tiles, and every frame of a video, asks for the same windows.
    weights = window(origins, tile, overlap, k)
    weights.setflags(write=False)
    return weights


def batches(plan: TilePlan) -> Iterator[TileBatch]:
    """Cut a plan into batches, band by band and from left to right."""
    columns = len(plan.xs)
    for band, y in enumerate(plan.ys):
        for start in range(0, columns, plan.batch):
            live = min(plan.batch, columns - start)
            xs = list(plan.xs[start : start + live])
            xs += xs[-1:] * (plan.batch - live)
            yield TileBatch(
                band=band,
                first=plan.first_tile + band * columns + start,
                ys=np.full(plan.batch, y, np.int64),
                xs=np.asarray(xs, np.int64),
                live=live,
            )
