"""Making a finished picture smaller, row by row: the way from a model's own factor to any other size.

One antialiased separable filter (Keys' cubic, a = -0.5, as wide as the reduction needs), first down the rows,
then along them. Every output row is a sum in a fixed order over its own input rows, so the result does not
depend on how many rows come at once: streamed and whole are the same bits. Memory is O(width).

    y_out = sum_k w[y, k] x[lo[y] + k],   w[y, k] ~ K((lo[y] + k + 0.5 - centre) / r),   r = n_in / n_out >= 1
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yonos_trt.errors import ConfigError
from yonos_trt.images.picture import Pixels

_BLOCK_ROWS = 32
"""Output rows made at once; changes the speed only."""


def _keys(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic convolution kernel, a = -0.5 (IEEE Trans. ASSP 29, 1981, equation 15)."""
    a = np.abs(x)
    near = (1.5 * a - 2.5) * a * a + 1
    far = ((-0.5 * a + 2.5) * a - 4) * a + 2
    return np.where(a < 1, near, np.where(a < 2, far, 0.0))


@lru_cache(maxsize=8)
def taps(count_in: int, count_out: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return first input index (count_out,) and weights (K, count_out) of every output sample.

    Weights of samples outside the input are zero and the rest sums to one, so a flat picture stays as it is
    up to its border. Indices are such that ``first + K <= count_in``.

    Raises
    ------
    ConfigError
        `count_out` is not from 1 to `count_in`.
    """
    if not 1 <= count_out <= count_in:
        raise ConfigError(f"{count_in} samples cannot be reduced to {count_out}, expected 1 to {count_in}")
    ratio = count_in / count_out
    support = 2 * ratio
    width = min(count_in, math.ceil(2 * support) + 1)
    centre = (np.arange(count_out) + 0.5) * ratio
    first = np.clip(np.ceil(centre - support - 0.5), 0, count_in - width).astype(np.int64)
    at = first + np.arange(width)[:, None]
    weights = _keys((at + 0.5 - centre) / ratio)
    weights /= weights.sum(axis=0)
    if count_in == count_out:  # nothing to do: exactly the input
        first, weights = np.arange(count_out), np.ones((1, count_out))
    return first, weights.astype(np.float32)


def reduce_rows(
    blocks: Iterable[Pixels], from_px: tuple[int, int], to_px: tuple[int, int]
) -> Generator[Pixels, None, None]:
    """Yield the rows of the smaller picture as soon as they are complete.

    Parameters
    ----------
    blocks
        Rows of the larger picture from its top, (any number, width, C) or without C; uint8, uint16 or float32
        in [0, 1]. They may be overwritten once the next are asked for.
    from_px
        (height, width) of the larger picture.
    to_px
        (height, width) of the smaller one, each 1 or more and not above the larger one's.

    Yields
    ------
    ndarray
        (any number, width, C), dtype of the input, rounded to the nearest (half to even), in range.
    """
    height_px = to_px[0]
    first_y, weights_y = taps(from_px[0], height_px)
    first_x, weights_x = taps(from_px[1], to_px[1])
    count = len(weights_y)
    kept: Pixels | None = None  # rows from `top` on
    top = done = 0
    for block in blocks:
        kept = block.copy() if kept is None else np.concatenate((kept, block))
        while done < height_px:
            ready = int(np.searchsorted(first_y[done : done + _BLOCK_ROWS], top + len(kept) - count, "right"))
            if not ready:
                break
            down = np.stack(
                [_row(kept, first_y[y] - top, weights_y[:, y]) for y in range(done, done + ready)]
            )
            yield _rounded(_across(down, first_x, weights_x), kept.dtype)
            done += ready
        needed = first_y[done] - top if done < height_px else len(kept)
        kept, top = kept[needed:].copy(), top + int(needed)


def _row(rows: Pixels, first: int, weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sum the rows from `first` on, one after the other."""
    out: NDArray[np.float32] = rows[first] * weights[0]
    for offset in range(1, len(weights)):
        out += rows[first + offset] * weights[offset]
    return out


def _across(
    rows: NDArray[np.float32], first: NDArray[np.int64], weights: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Sum along every row, one tap after the other."""
    shape = (1, -1) + (1,) * (rows.ndim - 2)
    out: NDArray[np.float32] = np.take(rows, first, axis=1) * weights[0].reshape(shape)
    for offset in range(1, len(weights)):
        out += np.take(rows, first + offset, axis=1) * weights[offset].reshape(shape)
    return out


def _rounded(values: NDArray[np.float32], dtype: np.dtype[Any]) -> Pixels:
    if dtype == np.float32:
        return np.clip(values, 0, 1, out=values)
    return np.clip(np.rint(values, out=values), 0, np.iinfo(dtype).max, out=values).astype(dtype)
