"""The picture's bicubic enlargement, the function that gather cuts tiles out of.

Keys' kernel with a = -0.5 (R. Keys 1981, eq. 4), taps outside the picture dropped and the rest renormalised:
torch's bicubic with antialias=True and Pillow's BICUBIC for enlargements.  Positions outside the picture are
reflected.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Index = NDArray[np.int64]
Pixels = NDArray[Any]

LARGEST_VALUE: Final = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0, np.dtype(np.float32): 1.0}
"""Value that stands for white, by picture dtype."""


def bicubic_taps(positions: Index, size_lr: int, scale: int) -> tuple[Index, Float]:
    """Return indices (n, 4) into the LR axis and weights (n, 4) of canvas positions, reflected first.

    The source coordinate of canvas position y is (y + 0.5) / scale - 0.5; its fraction is a ratio of small
    integers and everything after it float32, so that every implementation gets the same bits.
    """
    y = reflect(positions, size_lr * scale)
    numerator = 2 * y + 1 - scale
    base = numerator // (2 * scale)
    t = (numerator - base * (2 * scale)).astype(np.float32) / np.float32(2 * scale)
    one, half = np.float32(1), np.float32(0.5)
    w = np.stack(
        (
            ((-half * t + one) * t - half) * t,
            (np.float32(1.5) * t - np.float32(2.5)) * t * t + one,
            ((np.float32(-1.5) * t + np.float32(2)) * t + half) * t,
            (half * t - half) * t * t,
        ),
        axis=1,
    )
    index = base[:, None] + np.arange(-1, 3)
    w[(index < 0) | (index >= size_lr)] = 0
    total = ((w[:, 0] + w[:, 1]) + w[:, 2]) + w[:, 3]
    return np.clip(index, 0, size_lr - 1), w / total[:, None]


def reflect(positions: Index, size: int) -> Index:
    """Return positions reflected into [0, size), half-sample symmetric: NumPy's mode "symmetric"."""
    wrapped = positions % (2 * size)
    return np.where(wrapped < size, wrapped, 2 * size - 1 - wrapped)


def white(dtype: np.dtype[Any]) -> float:
    """Return the value that stands for white in pictures of this dtype."""
    if dtype not in LARGEST_VALUE:
        raise ValueError(f"picture must be uint8, uint16 or float32, got {dtype}")
    return LARGEST_VALUE[dtype]


def gain_of(dtype: np.dtype[Any]) -> np.float32:
    """Return 2 / white: [0, white] times it, minus 1, is [-1, 1]."""
    return np.float32(2) / np.float32(white(dtype))


def check_picture(image: Pixels) -> None:
    """Raise ValueError unless the picture is (H, W, 3) and not empty."""
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"picture must be (H, W, 3) with H, W >= 1, got shape {image.shape}")


def weighted_rows(image: Pixels, index: Index, weight: Float) -> Float:
    """Return sum_k weight[:, k] * image[index[:, k]] in float32, k ascending."""
    w = weight.reshape(*weight.shape, *(1,) * (image.ndim - 1))
    total: Float = w[:, 0] * image[index[:, 0]].astype(np.float32)
    for k in range(1, 4):
        total = total + w[:, k] * image[index[:, k]].astype(np.float32)
    return total


def upscale_bicubic(
    image: Pixels, y0_px: int, y1_px: int, *, scale: int, threads: int = 1, out: Float | None = None
) -> Float:
    """Return the canvas rows [y0_px, y1_px) of the picture's bicubic enlargement, float32 (rows, scale * W,
    3).
    """
    check_picture(image)
    gain = gain_of(image.dtype)
    height, width = image.shape[0] * scale, image.shape[1] * scale
    if not 0 <= y0_px <= y1_px <= height:
        raise ValueError(f"rows must satisfy 0 <= y0_px <= y1_px <= {height}, got {y0_px} and {y1_px}")
    out = output_array(out, (y1_px - y0_px, width, 3))
    iy, wy = bicubic_taps(np.arange(y0_px, y1_px), image.shape[0], scale)
    ix, wx = bicubic_taps(np.arange(width), image.shape[1], scale)
    for first in range(0, y1_px - y0_px, 64):
        part = slice(first, first + 64)
        columns = weighted_rows(image, iy[part], wy[part]).transpose(1, 0, 2)
        rows = weighted_rows(columns, ix, wx)
        out[part] = (rows * gain - np.float32(1)).transpose(1, 0, 2)
    return out


def output_array(out: Float | None, shape: tuple[int, ...]) -> Float:
    """Return ``out`` if it is float32 of this shape, a new array if it is None, else raise ValueError."""
    if out is None:
        return np.empty(shape, np.float32)
    if out.shape != shape or out.dtype != np.float32:
        raise ValueError(f"out must be float32 {shape}, got {out.dtype} {out.shape}")
    return out
