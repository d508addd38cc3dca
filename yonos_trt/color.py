"""The colour fix: the stitched canvas gets the colours of the input back, row by row.

    wavelet   ours + lowpass(bicubic - ours), the default
    adain     mean and deviation of the whole picture, per channel
    none      nothing

The low pass is evaluated on a coarse grid: means of BLOCK_PX x BLOCK_PX cells, two passes of the binomial 1 4
6 4 1, and straight lines between the cells' centres; its standard deviation is about 12 output px (Wang et
al. 2023, StableSR, take five levels of an a-trous wavelet: about 13 px).  It works on the picture as a whole,
never on a tile, so it cannot make a seam.  The cell means of the bicubic picture come straight from the
input: the bicubic picture is never made.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from yonos_trt.errors import ConfigError
from yonos_trt.tiling import Float, Image, Index, TilePlan, bicubic_taps, upscale_bicubic, white

native: ModuleType | None
try:
    native = importlib.import_module("yonos_trt._native")
except ImportError:
    native = None

ColorFix = Literal["wavelet", "adain", "none"]
MODES: Final[tuple[str, ...]] = get_args(ColorFix)

BLOCK_PX: Final = 8
"""Side of a cell of the coarse grid, in output px."""

_BINOMIAL: Final = tuple(np.float32(n / 256) for n in (1, 8, 28, 56, 70, 56, 28, 8, 1))
_REACH: Final = len(_BINOMIAL) // 2

HALO_ROWS_PX: Final = _REACH * BLOCK_PX + BLOCK_PX // 2 + BLOCK_PX - 1
"""The wavelet fix holds back at most this many rows."""


class RowColorFix:
    """Fixes the colours of a canvas that arrives as blocks of rows.

    Parameters
    ----------
    image : the input, (H, W, 3) uint8, uint16 or float32.
    plan : names the size of the output, (height_px, width_px).
    scale : output px per input px.
    mode : "wavelet", "adain" or "none".
    threads : for the native kernels; the result does not depend on it.
    streaming : the caller cannot hold the picture in memory.

    Raises
    ------
    ConfigError
        For an unknown mode, and for "adain" with ``streaming``: it needs the whole picture.
    """

    def __init__(
        self,
        image: Image,
        plan: TilePlan,
        scale: int,
        *,
        mode: str = "wavelet",
        threads: int = 1,
        streaming: bool = False,
    ) -> None:
        if mode not in MODES:
            raise ConfigError(f"color_fix must be one of {', '.join(MODES)}, got {mode!r}")
        if mode == "adain" and streaming:
            raise ConfigError(
                "color_fix='adain' needs the whole picture in memory, got a picture that is streamed; "
                "use color_fix='wavelet' or an output that fits in memory"
            )
        self._image, self._scale, self._mode, self._threads = image, scale, mode, threads
        self._height, self._width = plan.height_px, plan.width_px
        self._received = 0
        self._held: Float = np.empty((0, self._width, 3), np.float32)
        if mode == "wavelet":
            self._wavelet = _Wavelet(image, self._height, self._width, scale, threads)

    def push(self, rows: Float) -> Float:
        """Take the next rows, float32 (n, width_px, 3) in [-1, 1]; return the finished ones, at least 0 of
        them.

        The result is C-contiguous and belongs to the caller; ``rows`` is not changed.
        """
        if rows.shape[1:] != (self._width, 3) or self._received + len(rows) > self._height:
            raise ValueError(
                f"rows must be (n, {self._width}, 3) with at most {self._height - self._received} rows left, "
                f"got shape {rows.shape}"
            )
        first = self._received - len(self._held)
        self._received += len(rows)
        if self._mode == "none":
            return np.ascontiguousarray(rows, np.float32)
        rows = np.concatenate([self._held, rows])
        if self._mode == "adain":
            self._held = rows
            if self._received < self._height or not len(rows):
                return rows[:0]
            self._held = rows[:0]
            return self._adain(rows)
        done = self._wavelet.add_to(rows, first)
        self._held = rows[done:].copy()
        return rows[:done]

    def flush(self) -> Float:
        """Return what is left after the last row (nothing: the last push gives it all).

        Raises
        ------
        ValueError
            If rows are missing.
        """
        if self._received != self._height:
            raise ValueError(f"colour fix got {self._received} of {self._height} rows before flush()")
        return np.empty((0, self._width, 3), np.float32)

    def _adain(self, rows: Float) -> Float:
        """Match mean and deviation (Huang & Belongie 2017, eq. 8) to those of the bicubic picture."""
        enlarge: Any = upscale_bicubic if native is None else native.upscale_bicubic
        wanted, ours = _Moments(), _Moments()
        for y0 in range(0, self._height, 64):
            y1 = min(y0 + 64, self._height)
            wanted.add(enlarge(self._image, y0, y1, scale=self._scale, threads=self._threads))
            ours.add(rows[y0:y1])
        mean, deviation = ours.result()
        wanted_mean, wanted_deviation = wanted.result()
        gain = np.where(deviation > 0, wanted_deviation / np.where(deviation > 0, deviation, 1), 1)
        rows *= gain.astype(np.float32)
        rows += (wanted_mean - mean * gain).astype(np.float32)
        return rows


class _Moments:
    """Mean and deviation per channel, in float64."""

    def __init__(self) -> None:
        self._count = 0
        self._sum = np.zeros(3)
        self._squares = np.zeros(3)

    def add(self, rows: Float) -> None:
        flat = rows.reshape(-1, 3).astype(np.float64)
        self._count += len(flat)
        self._sum += flat.sum(axis=0)
        self._squares += (flat * flat).sum(axis=0)

    def result(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        mean = self._sum / self._count
        return mean, np.sqrt(np.maximum(self._squares / self._count - mean * mean, 0))


# ---------------------------------------------------------------------------------------------------------
# wavelet: everything below is elementwise over rows in a fixed order, so that the size of the row blocks does
# not change a bit


class _Wavelet:
    """lowpass(bicubic - ours) on the coarse grid, a few grid rows at a time."""

    def __init__(self, image: Image, height: int, width: int, scale: int, threads: int) -> None:
        self._image, self._threads = image, threads
        self._height = height
        self._rows, self._columns = -(-height // BLOCK_PX), -(-width // BLOCK_PX)
        self._taps_y = _cell_taps(height, image.shape[0], scale)
        self._taps_x = _cell_taps(width, image.shape[1], scale)
        self._cells = 0  # grid rows whose difference is known
        self._smooth: Float = np.empty((0, self._columns, 3), np.float32)  # blurred along x: the last ones
        self._grid: Float = np.empty((0, self._columns, 3), np.float32)  # blurred along both: the last ones
        self._blurred = 0

    def add_to(self, rows: Float, first: int) -> int:
        """Add the low pass to the leading finished rows of ``rows``, which start at canvas row ``first``.

        Returns how many rows are finished.
        """
        end = first + len(rows)
        cells = self._rows if end == self._height else end // BLOCK_PX
        if cells > self._cells:
            self._take(rows[self._cells * BLOCK_PX - first :][: (cells - self._cells) * BLOCK_PX], cells)
        if self._blurred == self._rows:
            finished = self._height
        else:
            finished = max(first, self._blurred * BLOCK_PX - BLOCK_PX // 2)
        upper, lower, weight = grid_rows(np.arange(first, finished), self._rows)
        if finished > first:
            offset = self._blurred - len(self._grid)
            add = add_grid if native is None else native.add_grid
            add(
                rows[: finished - first],
                self._grid,
                upper - offset,
                lower - offset,
                weight,
                threads=self._threads,
            )
        return finished - first

    def _take(self, rows: Float, cells: int) -> None:
        """Extend the grid by the cells of ``rows``."""
        means = block_means(rows) if native is None else native.block_means(rows, threads=self._threads)
        difference = self._bicubic_means(self._cells, cells) - means
        self._cells = cells
        self._smooth = np.concatenate([self._smooth, _blur_along_x(difference)])
        offset = cells - len(self._smooth)
        ready = cells if cells == self._rows else max(cells - _REACH, 0)
        if ready > self._blurred:
            place = np.arange(self._blurred, ready)
            total: Float = np.zeros((len(place), self._columns, 3), np.float32)
            for k, share in enumerate(_BINOMIAL):
                source = np.clip(place + (k - _REACH), 0, self._rows - 1) - offset
                total += share * self._smooth[source]
            self._grid = np.concatenate([self._grid[-2:], total])
            self._blurred = ready
        self._smooth = self._smooth[-2 * _REACH - 1 :]

    def _bicubic_means(self, begin: int, end: int) -> Float:
        """Return the cell means of the bicubic picture for grid rows [begin, end), (end - begin, columns,
        3).
        """
        (base_y, weight_y), (base_x, weight_x) = self._taps_y, self._taps_x
        last_y, last_x = self._image.shape[0] - 1, self._image.shape[1] - 1
        rows: Float = np.zeros((end - begin, *self._image.shape[1:]), np.float32)
        for t in range(weight_y.shape[1]):
            index = np.minimum(base_y[begin:end] + t, last_y)
            rows += weight_y[begin:end, t, None, None] * self._image[index].astype(np.float32)
        total: Float = np.zeros((end - begin, self._columns, 3), np.float32)
        for t in range(weight_x.shape[1]):
            total += weight_x[:, t, None] * rows[:, np.minimum(base_x + t, last_x)]
        return total * np.float32(2 / white(self._image.dtype)) - np.float32(1)


def _cell_taps(size: int, size_lr: int, scale: int) -> tuple[Index, Float]:
    """Return, for each cell, the first input pixel and the weights whose sum gives the mean bicubic value.

    Shapes (cells,) and (cells, taps).
    """
    index, weight = bicubic_taps(np.arange(size), size_lr, scale)
    cell = np.arange(size) // BLOCK_PX
    cells = int(cell[-1]) + 1
    base = index[np.arange(cells) * BLOCK_PX].min(axis=1)
    offset = index - base[cell, None]
    total = np.zeros((cells, int(offset.max()) + 1))
    np.add.at(total, (np.broadcast_to(cell[:, None], offset.shape), offset), weight)
    return base, (total / np.bincount(cell)[:, None]).astype(np.float32)


def _blur_along_x(grid: Float) -> Float:
    wide = np.pad(grid, ((0, 0), (_REACH, _REACH), (0, 0)), mode="edge")
    total: Float = np.zeros_like(grid)
    for k, share in enumerate(_BINOMIAL):
        total += share * wide[:, k : k + grid.shape[1]]
    return total


def block_means(rows: Float) -> Float:
    """Return the means of BLOCK_PX x BLOCK_PX cells of rows (n, width, 3), (ceil(n / 8), ceil(width / 8), 3).

    The last cells may be smaller.  Rows are added first, then columns.
    """
    height, width, _ = rows.shape
    gh, gw = -(-height // BLOCK_PX), -(-width // BLOCK_PX)
    full = np.zeros((gh * BLOCK_PX, gw * BLOCK_PX, 3), np.float32)
    full[:height, :width] = rows
    sums = full[0::BLOCK_PX].copy()
    for k in range(1, BLOCK_PX):
        sums += full[k::BLOCK_PX]
    total = sums[:, 0::BLOCK_PX].copy()
    for k in range(1, BLOCK_PX):
        total += sums[:, k::BLOCK_PX]
    tall = np.minimum(BLOCK_PX, height - np.arange(gh) * BLOCK_PX)
    wide = np.minimum(BLOCK_PX, width - np.arange(gw) * BLOCK_PX)
    share = np.float32(1) / (tall[:, None] * wide).astype(np.float32)
    return np.asarray(total * share[..., None], np.float32)


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
