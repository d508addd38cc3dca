"""Tiles on the canvas: where they lie, what they see, and how they are put together again.

The canvas is the output picture, (scale * H, scale * W) px, padded to the right and below.  The functions
here are the definition of correct for the native and the CUDA kernels (``yonos_trt._native``, ``csrc/``),
which repeat the same float32 operations in the same order and therefore agree bit for bit.

    plan_tiles    sizes -> TilePlan
    window        partition of unity along one axis
    gather        picture -> tiles in [-1, 1]        (bicubic upsampling included)
    blend         tiles -> canvas                    (weighted sum in plan order)
    finalize      canvas -> picture
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from yonos_trt.bicubic import (
    LARGEST_VALUE,
    Float,
    Image,
    Index,
    bicubic_taps,
    check_picture,
    gain_of,
    output_array,
    reflect,
    upscale_bicubic,
    weighted_rows,
    white,
)

__all__ = [
    "LARGEST_VALUE",
    "WINDOW_STEPS",
    "Float",
    "Image",
    "Index",
    "TilePlan",
    "bicubic_taps",
    "blend",
    "finalize",
    "gather",
    "gather_lr",
    "plan_tiles",
    "reflect",
    "rows_final_after_band",
    "upscale_bicubic",
    "white",
    "window",
]

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
    level: bool = False,
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
    level : shrink the tiles, per axis, to the least side at which as many of them still cover the canvas. A
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
    ys, tile_h, padded_h = _plan_axis(height_px, tile_px, overlap_px, multiple_px, smallest_px, level)
    xs, tile_w, padded_w = _plan_axis(width_px, tile_px, overlap_px, multiple_px, smallest_px, level)
    return TilePlan(height_px, width_px, padded_h, padded_w, tile_h, tile_w, overlap_px, ys, xs, batch)


def _ceil_to(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _plan_axis(
    size: int, tile_px: int, overlap: int, multiple: int, smallest: int, level: bool
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
    if level:
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
# Kernels


def gather(
    image: Image,
    ys: Index,
    xs: Index,
    *,
    tile_h_px: int,
    tile_w_px: int,
    scale: int,
    threads: int = 1,
    out: Float | None = None,
) -> Float:
    """Cut tiles out of the picture's bicubic enlargement.

    Parameters
    ----------
    image : (H, W, 3) uint8, uint16 or float32 in [0, 1]; any strides.
    ys, xs : (N,) canvas origins; positions beyond the picture are reflected.
    scale : enlargement, at least 1.
    threads : ignored here; the native kernel uses it.
    out : filled and returned when given, float32 (N, 3, tile_h_px, tile_w_px).

    Returns
    -------
    float32 (N, 3, tile_h_px, tile_w_px), black = -1, white = 1, not clamped.
    """
    check_picture(image)
    gain = gain_of(image.dtype)
    out = output_array(out, (len(ys), 3, tile_h_px, tile_w_px))
    for n, (y0, x0) in enumerate(zip(ys, xs, strict=True)):
        iy, wy = bicubic_taps(y0 + np.arange(tile_h_px), image.shape[0], scale)
        ix, wx = bicubic_taps(x0 + np.arange(tile_w_px), image.shape[1], scale)
        left, right = int(ix.min()), int(ix.max()) + 1
        columns = weighted_rows(image[:, left:right], iy, wy).transpose(1, 2, 0)
        tile = weighted_rows(columns, ix - left, wx)
        out[n] = (tile * gain - np.float32(1)).transpose(1, 2, 0)
    return out


def gather_lr(
    image: Image,
    ys: Index,
    xs: Index,
    *,
    tile_h_px: int,
    tile_w_px: int,
    scale: int,
    threads: int = 1,
    out: Float | None = None,
) -> Float:
    """Cut tiles out of the picture itself, for encoders that read the LR grid.

    As :func:`gather`, with origins and sizes in canvas px that must be multiples of ``scale``.

    Returns
    -------
    float32 (N, 3, tile_h_px / scale, tile_w_px / scale) in [-1, 1].
    """
    check_picture(image)
    gain = gain_of(image.dtype)
    for name, values in (("ys", ys), ("xs", xs), ("tile size", np.array([tile_h_px, tile_w_px]))):
        if np.any(values % scale):
            raise ValueError(f"{name} must be multiples of the scale ({scale}), got {values.tolist()}")
    h, w = tile_h_px // scale, tile_w_px // scale
    out = output_array(out, (len(ys), 3, h, w))
    for n, (y0, x0) in enumerate(zip(ys // scale, xs // scale, strict=True)):
        rows = reflect(y0 + np.arange(h), image.shape[0])
        columns = reflect(x0 + np.arange(w), image.shape[1])
        tile = image[rows[:, None], columns[None, :]].astype(np.float32)
        out[n] = (tile * gain - np.float32(1)).transpose(2, 0, 1)
    return out


def blend(
    acc: Float,
    tiles: Float,
    acc_ys: Index,
    xs: Index,
    wy: Float,
    wx: Float,
    *,
    threads: int = 1,
) -> None:
    """Add weighted tiles to the accumulator, in index order: ``acc += outer(wy, wx) * tile``.

    Parameters
    ----------
    acc : float32 (rows, padded_w_px, 3), changed in place.
    tiles : float32 (N, 3, h, w).
    acc_ys, xs : (N,) row in ``acc`` and column of each tile; where the weight is not 0 the tile must lie
    inside. wy, wx : float32 (N, h) and (N, w).  Outer rows and columns of weight 0 are not touched; a tile
    whose weights are
        all 0 (a repeated one that fills a batch) adds nothing.
    """
    if acc.ndim != 3 or acc.shape[2] != 3:
        raise ValueError(f"acc must be (rows, width, 3), got shape {acc.shape}")
    count, _, h, w = tiles.shape
    expected = ((count, 3, h, w), (count,), (count,), (count, h), (count, w))
    got = (tiles.shape, acc_ys.shape, xs.shape, wy.shape, wx.shape)
    if got != expected:
        raise ValueError(f"tiles, acc_ys, xs, wy, wx must have shapes {expected}, got {got}")
    for n in range(count):
        rows, columns = np.flatnonzero(wy[n]), np.flatnonzero(wx[n])
        if not rows.size or not columns.size:
            continue
        a, b, c, d = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
        y, x = int(acc_ys[n]), int(xs[n])
        if y + a < 0 or y + b > acc.shape[0] or x + c < 0 or x + d > acc.shape[1]:
            raise ValueError(
                f"tile {n} at ({y}, {x}) with weighted part [{a}, {b}) x [{c}, {d}) leaves the accumulator "
                f"of {acc.shape[0]} x {acc.shape[1]} px"
            )
        weight = wy[n, a:b, None] * wx[n, None, c:d]
        acc[y + a : y + b, x + c : x + d] += weight[..., None] * tiles[n, :, a:b, c:d].transpose(1, 2, 0)


def finalize(
    acc: Float,
    dtype: DTypeLike,
    *,
    delta: Float | None = None,
    threads: int = 1,
    out: Image | None = None,
) -> Image:
    """Turn finished rows into the picture's dtype: ``(acc + delta + 1) / 2 * white``, clamped, rounded half
    to even.

    Parameters
    ----------
    acc : float32 (rows, width, 3), black = -1, white = 1; values outside are clamped and NaN becomes black.
    dtype : uint8, uint16 or float32.
    delta : added first when given, same shape as ``acc``.

    Returns
    -------
    ``dtype`` (rows, width, 3).
    """
    kind = np.dtype(dtype)
    half = np.float32(white(kind) / 2)
    value = acc if delta is None else acc + delta
    value = (value + np.float32(1)) * half
    value = np.fmin(np.fmax(value, np.float32(0)), np.float32(white(kind)))
    if kind != np.float32:
        value = np.rint(value)
    if out is None:
        return value.astype(kind)
    if out.shape != acc.shape or out.dtype != kind:
        raise ValueError(f"out must be {kind} {acc.shape}, got {out.dtype} {out.shape}")
    out[...] = value
    return out
