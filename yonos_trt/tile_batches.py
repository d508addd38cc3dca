"""Batches of tiles: a plan's tiles in the order in which they are worked on and blended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from yonos_trt import tiling
from yonos_trt.tiling import TilePlan

__all__ = ["TileBatch", "batches"]


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
    weights = tiling.window(origins, tile, overlap, k)
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
                first=band * columns + start,
                ys=np.full(plan.batch, y, np.int64),
                xs=np.asarray(xs, np.int64),
                live=live,
            )
