"""Compiled twins of the kernels in `tiling`, `noise` and `color`: same meaning, same bits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_Float = NDArray[np.float32]
_Index = NDArray[np.int64]

def variant() -> str: ...
def gather(
    image: NDArray[Any],
    ys: _Index,
    xs: _Index,
    *,
    tile_h_px: int,
    tile_w_px: int,
    scale: int,
    threads: int = 1,
    out: _Float | None = None,
) -> _Float: ...
def gather_lr(
    image: NDArray[Any],
    ys: _Index,
    xs: _Index,
    *,
    tile_h_px: int,
    tile_w_px: int,
    scale: int,
    threads: int = 1,
    out: _Float | None = None,
) -> _Float: ...
def upscale_bicubic(
    image: NDArray[Any],
    y0_px: int,
    y1_px: int,
    *,
    scale: int,
    threads: int = 1,
    out: _Float | None = None,
) -> _Float: ...
def blend(
    acc: _Float, tiles: _Float, acc_ys: _Index, xs: _Index, wy: _Float, wx: _Float, *, threads: int = 1
) -> None: ...
def finalize(
    acc: _Float,
    dtype: DTypeLike,
    *,
    delta: _Float | None = None,
    threads: int = 1,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]: ...
def noise_tiles(
    seed: int,
    ys_lat: _Index,
    xs_lat: _Index,
    *,
    channels: int,
    h_lat: int,
    w_lat: int,
    threads: int = 1,
    out: _Float | None = None,
) -> _Float: ...
def philox(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]: ...
def block_means(rows: _Float, *, threads: int = 1) -> _Float: ...
def add_grid(
    rows: _Float, grid: _Float, upper: _Index, lower: _Index, weight: _Float, *, threads: int = 1
) -> None: ...
