"""The tile kernels of the host: their NumPy twins, and the choice between those and the compiled ones.

The functions here are the definition of correct for the native and the CUDA kernels (``yonos_trt._native``,
``csrc/``), which repeat the same float32 operations in the same order and therefore agree bit for bit.

    gather        picture -> tiles in [-1, 1]        (bicubic upsampling included)
    blend         tiles -> canvas                    (weighted sum in plan order)
    finalize      canvas -> picture
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from yonos_trt.errors import install_command
from yonos_trt.tiles import noise
from yonos_trt.tiles.bicubic import (
    Float,
    Index,
    Pixels,
    bicubic_taps,
    check_picture,
    gain_of,
    output_array,
    reflect,
    weighted_rows,
    white,
)

_log = logging.getLogger(__name__)


# ---------------------------------------------------------------------------------------------------------
# The choice

HOW_TO_COMPILE: Final = (
    f"with GCC 12, Clang 14 or newer: {install_command(settings='--force-reinstall --no-deps')}"
)
"""How to get the compiled kernels where the package was installed without them."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """The tile functions of the host, compiled or NumPy; signatures as in this module and `noise`."""

    name: str  # "native" or "numpy"
    gather: Callable[..., NDArray[np.float32]]
    gather_lr: Callable[..., NDArray[np.float32]]
    blend: Callable[..., None]
    finalize: Callable[..., NDArray[Any]]
    noise_tiles: Callable[..., NDArray[np.float32]]


@cache
def host_kernels(prefer: str = "native") -> Kernels:
    """Return the compiled kernels where they are built, else (or with ``prefer="numpy"``) their twins.

    That the twins stand in is logged as a warning, once a process.
    """
    if prefer == "native":
        try:
            native: Any = importlib.import_module("yonos_trt._native")
        except ImportError as error:
            _log.warning(
                "NumPy computes the tiles, some 20 to 40 times as slow as the compiled kernels would (%s); "
                "to get those, %s",
                error,
                HOW_TO_COMPILE,
            )
        else:
            return Kernels(
                "native", native.gather, native.gather_lr, native.blend, native.finalize, native.noise_tiles
            )
    return Kernels("numpy", gather, gather_lr, blend, finalize, noise.tiles)


# ---------------------------------------------------------------------------------------------------------
# NumPy


def gather(
    image: Pixels,
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
    image: Pixels,
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
    out: Pixels | None = None,
) -> Pixels:
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
