"""Transparency: colour next to hidden pixels must not bleed, and alpha grows with the picture."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from yonos_trt.errors import InputError
from yonos_trt.tiles.bicubic import Pixels, bicubic_taps

_TAPS = 4
_BLOCK_ROWS = 64  # bounds the temporary memory
_BLOCK_PIXELS = 1 << 16


def fill_hidden(rgb: Pixels, alpha: Pixels) -> Pixels:
    """Replace colour where alpha is 0 by the visible colour around it.

    Programs leave anything under transparency, mostly black or white; an upscaler would mix it into the rim
    of the visible part. A pyramid of alpha-weighted means is built until every cell has seen a visible
    pixel, and holes take the value of the finest level that knows one (push-pull filling, Gortler et al.
    1996).

    Parameters
    ----------
    rgb
        (H, W, 3) uint8, uint16 or float32.
    alpha
        (H, W), same dtype.

    Returns
    -------
    ndarray
        (H, W, 3), same dtype. Pixels with alpha above 0 are unchanged, bit for bit; the input itself comes
        back if there is nothing to fill or nothing visible.
    """
    if alpha.all() or not alpha.any():
        return rgb
    return _filled(rgb.copy(), alpha)


def _filled(colour: Pixels, weight: Pixels) -> Pixels:
    """(h, w, 3), (h, w) -> ``colour`` with cells of weight 0 filled from coarser levels, in place.

    Beside its argument this takes 5.4 bytes a pixel, for the coarser levels, and some rows.
    """
    if weight.all():
        return colour
    coarse, coarse_weight = _halved(colour, weight)
    coarse = _filled(coarse, coarse_weight)
    for rows in _blocks(weight):
        holes = weight[rows] == 0
        if not holes.any():
            continue
        block, near = colour[rows], coarse[rows.start // 2 : (rows.stop + 1) // 2]
        if colour.dtype != np.float32:
            near = np.rint(near).astype(colour.dtype)
        for y, x, channel in np.ndindex(2, 2, 3):  # the four pixels of every cell
            where = holes[y::2, x::2]
            known = near[: where.shape[0], : where.shape[1], channel]
            np.copyto(block[y::2, x::2, channel], known, where=where)
    return colour


def _blocks(weight: Pixels) -> Iterator[slice]:
    """Yield an even number of rows at a time, few enough for a processor's cache."""
    height, width = weight.shape
    step = max(2, min(_BLOCK_ROWS, _BLOCK_PIXELS // width // 2 * 2))
    for first in range(0, height, step):
        yield slice(first, min(first + step, height))


def _halved(colour: Pixels, weight: Pixels) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(h, w, 3), (h, w) -> weighted means and sums of the weights of 2 x 2 cells, float32.

    Channel by channel: loops over three neighbouring values take several times as long.
    """
    h, w = weight.shape
    small = np.empty(((h + 1) // 2, (w + 1) // 2), np.float32)
    means = np.empty((*small.shape, 3), np.float32)
    for rows in _blocks(weight):
        weights = weight[rows].astype(np.float32)
        cells = slice(rows.start // 2, (rows.stop + 1) // 2)
        a, b, c, d = _quarters(weights)
        np.add(a + b, c + d, out=small[cells])
        divisor = np.maximum(small[cells], np.float32(1e-20))
        for channel in range(3):
            a, b, c, d = _quarters(colour[rows, :, channel] * weights)
            np.divide(a + b + c + d, divisor, out=means[cells, :, channel])
    return means, small


def _quarters(plane: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
    """(h, w) -> four views (ceil(h / 2), ceil(w / 2)), one of each pixel of 2 x 2 cells; 0 outside."""
    height, width = plane.shape
    if height % 2 or width % 2:
        plane = np.pad(plane, ((0, height % 2), (0, width % 2)))
    return plane[::2, ::2], plane[::2, 1::2], plane[1::2, ::2], plane[1::2, 1::2]


def unpremultiply(rgb: Pixels, alpha: Pixels) -> None:
    """Colour multiplied by alpha -> straight colour, in place; 0 where alpha is 0."""
    limit = 1.0 if rgb.dtype == np.float32 else float(np.iinfo(rgb.dtype).max)
    for first in range(0, len(rgb), _BLOCK_ROWS):
        rows = slice(first, first + _BLOCK_ROWS)
        weight = alpha[rows]
        scale = np.where(weight > 0, limit / np.maximum(weight.astype(np.float64), 1e-12), 0.0)
        straight = np.minimum(rgb[rows] * scale[..., None], limit)
        rgb[rows] = straight if rgb.dtype == np.float32 else np.rint(straight)


def upscale_alpha(alpha: Pixels, scale: int, *, y0_px: int = 0, y1_px: int | None = None) -> Pixels:
    """Upscale alpha by bicubic interpolation (Keys a = -0.5, borders renormalised): all rows or some.

    Parameters
    ----------
    alpha
        (H, W) uint8, uint16 or float32.
    scale
        Integer factor.
    y0_px, y1_px
        Output rows wanted, ``0 <= y0_px < y1_px <= H * scale``; blocks put together
        are the whole, bit for bit.

    Returns
    -------
    ndarray
        (y1_px - y0_px, W * scale), same dtype, clipped to its range. Works on the rows it needs only.
    """
    height, width = alpha.shape
    y1_px = height * scale if y1_px is None else y1_px
    if not 0 <= y0_px < y1_px <= height * scale:
        raise InputError(f"alpha rows [{y0_px}, {y1_px}) lie outside the picture's {height * scale} rows")
    limit = 1 if alpha.dtype == np.float32 else np.iinfo(alpha.dtype).max
    index_y, weight_y = bicubic_taps(np.arange(y0_px, y1_px), height, scale)
    index_x, weight_x = bicubic_taps(np.arange(width * scale), width, scale)
    out = np.empty((y1_px - y0_px, width * scale), alpha.dtype)
    for first in range(0, len(out), _BLOCK_ROWS):
        part = slice(first, first + _BLOCK_ROWS)
        rows = np.zeros((len(out[part]), width), np.float32)
        grown = np.zeros(out[part].shape, np.float32)
        for k in range(_TAPS):
            rows += weight_y[part, k, None] * alpha[index_y[part, k]]
        for k in range(_TAPS):
            grown += weight_x[:, k] * rows[:, index_x[:, k]]
        if alpha.dtype != np.float32:
            grown = np.rint(grown)
        out[part] = np.clip(grown, 0, limit)
    return out
