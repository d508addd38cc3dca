"""Transparency: colour next to hidden pixels must not bleed, and alpha grows with the picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from yonos_trt.errors import InputError
from yonos_trt.tiling import bicubic_taps

__all__ = ["fill_hidden", "unpremultiply", "upscale_alpha"]

Pixels = NDArray[Any]

_TAPS = 4
_BLOCK_ROWS = 64  # bounds the temporary memory


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
    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return rgb
    filled = _push_pull(rgb.astype(np.float32), alpha.astype(np.float32))
    if rgb.dtype != np.float32:
        filled = np.rint(filled)
    out = rgb.copy()
    out[hidden] = filled[hidden].astype(rgb.dtype)
    return out


def _push_pull(colour: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """(h, w, 3), (h, w) -> (h, w, 3) with cells of weight 0 filled from coarser levels."""
    empty = weight == 0
    if not empty.any():
        return colour
    h, w = weight.shape
    even = ((0, h % 2), (0, w % 2))
    weights = np.pad(weight, even)  # padding weighs nothing
    sums = np.pad(colour * weight[..., None], (*even, (0, 0)))
    blocks = (weights.shape[0] // 2, 2, weights.shape[1] // 2, 2)
    coarse_weight = weights.reshape(blocks).sum(axis=(1, 3))
    coarse = (
        sums.reshape(*blocks, 3).sum(axis=(1, 3)) / np.maximum(coarse_weight, np.float32(1e-20))[..., None]
    )
    coarse = _push_pull(coarse, coarse_weight)
    ys, xs = np.nonzero(empty)
    out = colour.copy()
    out[ys, xs] = coarse[ys // 2, xs // 2]
    return out


def unpremultiply(rgb: Pixels, alpha: Pixels) -> Pixels:
    """Colour multiplied by alpha -> straight colour, same dtype; 0 where alpha is 0."""
    limit = 1.0 if rgb.dtype == np.float32 else float(np.iinfo(rgb.dtype).max)
    scale = np.where(alpha > 0, limit / np.maximum(alpha.astype(np.float64), 1e-12), 0.0)
    straight = np.minimum(rgb * scale[..., None], limit)
    rounded = straight if rgb.dtype == np.float32 else np.rint(straight)
    return np.asarray(rounded.astype(rgb.dtype))


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
