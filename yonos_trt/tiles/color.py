"""The colour fix: the stitched canvas gets the colours of the input back, row by row.

    wavelet   ours + lowpass(bicubic - ours), the default
    adain     mean and deviation of the whole picture, per channel
    none      nothing

The low pass is evaluated on a coarse grid: means of BLOCK_PX x BLOCK_PX cells, two passes of the binomial 1 4
6 4 1, and straight lines between the cells' centres; its standard deviation is about 12 output px (Wang et
al. 2023, StableSR, take five levels of an a-trous wavelet: about 13 px).  It works on the picture as a whole,
never on a tile, so it cannot make a seam.  The cell means of the bicubic picture come straight from the
input: the bicubic picture is never made.  The maths per cell is in `yonos_trt.tiles.color_cells`.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import numpy as np

from yonos_trt.choices import COLOR_FIXES, ColorFix
from yonos_trt.errors import ConfigError
from yonos_trt.tiles.bicubic import Float, Pixels, upscale_bicubic
from yonos_trt.tiles.color_cells import (
    BLOCK_PX,
    HALO_ROWS_PX,
    REACH,
    CellRows,
    add_grid,
    affine,
    bicubic_means,
    block_means,
    blur_along_x,
    blur_along_y,
    cell_moments,
    cell_taps,
    fold_moments,
    grid_rows,
    progress,
)
from yonos_trt.tiles.plan import TilePlan

__all__ = ["HALO_ROWS_PX", "MODES", "ColorFix", "RowColorFix", "finished_rows", "first_canvas_row"]

native: ModuleType | None
try:
    native = importlib.import_module("yonos_trt._native")
except ImportError:
    native = None

MODES = COLOR_FIXES


def first_canvas_row(mode: str, row_px: int) -> int:
    """Return the canvas row from which `RowColorFix` has to see the canvas, for `row_px` to come out right.

    Raises
    ------
    ConfigError
        For "adain" and a row that is not the first: it needs the whole picture.
    """
    if row_px and mode == "adain":
        raise ConfigError(f"color_fix='adain' needs the whole picture, it cannot begin at row {row_px}")
    if mode == "none":
        return row_px
    # the upper of the two grid lines around the row, and what its blur reads
    return max(0, (row_px - BLOCK_PX // 2) // BLOCK_PX - REACH) * BLOCK_PX


def finished_rows(mode: str, height_px: int, end_px: int) -> int:
    """Return how many rows of a picture are finished when the canvas rows [0, end_px) are final."""
    if mode == "wavelet":
        return progress(height_px, end_px).finished_px
    return end_px if mode == "none" or end_px == height_px else 0


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
    first_row_px : the canvas row at which the blocks begin, from `first_canvas_row`. As if black rows had
        come before: rows that depend on them come out wrong.

    Raises
    ------
    ConfigError
        For an unknown mode, and for "adain" with ``streaming``: it needs the whole picture.
    """

    def __init__(
        self,
        image: Pixels,
        plan: TilePlan,
        scale: int,
        *,
        mode: str = "wavelet",
        threads: int = 1,
        streaming: bool = False,
        first_row_px: int = 0,
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
        self._received = first_row_px
        held = first_row_px - finished_rows(mode, self._height, first_row_px)
        self._held: Float = np.zeros((held, self._width, 3), np.float32)
        if mode == "wavelet":
            self._wavelet = _Wavelet(image, self._height, self._width, scale, threads, first_row_px)

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
        """Match mean and deviation to those of the bicubic picture."""
        enlarge: Any = upscale_bicubic if native is None else native.upscale_bicubic
        wanted, ours = [], []
        for y0 in range(0, self._height, 64):  # whole cells
            y1 = min(y0 + 64, self._height)
            bicubic = enlarge(self._image, y0, y1, scale=self._scale, threads=self._threads)
            wanted.append(cell_moments(bicubic))
            ours.append(cell_moments(rows[y0:y1]))
        gain, offset = affine(
            fold_moments(np.concatenate(wanted)),
            fold_moments(np.concatenate(ours)),
            self._height * self._width,
        )
        rows *= gain
        rows += offset
        return rows


class _Wavelet:
    """lowpass(bicubic - ours) on the coarse grid, a few grid rows at a time."""

    def __init__(
        self, image: Pixels, height: int, width: int, scale: int, threads: int, first_row_px: int = 0
    ) -> None:
        self._image, self._threads = image, threads
        self._height = height
        self._rows, columns = -(-height // BLOCK_PX), -(-width // BLOCK_PX)
        self._taps_y = cell_taps(height, image.shape[0], scale)
        self._taps_x = cell_taps(width, image.shape[1], scale)
        before = progress(height, first_row_px)
        self._cells = before.cells  # grid rows whose difference is known
        # blurred along x, and along both: the last ones
        self._smooth: Float = np.zeros((min(before.cells, 2 * REACH + 1), columns, 3), np.float32)
        self._grid: Float = np.zeros((min(before.blurred, 2), columns, 3), np.float32)
        self._blurred = before.blurred

    def add_to(self, rows: Float, first: int) -> int:
        """Add the low pass to the leading finished rows of ``rows``, which start at canvas row ``first``.

        Returns how many rows are finished.
        """
        now = progress(self._height, first + len(rows))
        if now.cells > self._cells:
            start = self._cells * BLOCK_PX - first
            self._take(rows[start : start + (now.cells - self._cells) * BLOCK_PX], now)
        finished = max(first, now.finished_px)
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

    def _take(self, rows: Float, now: CellRows) -> None:
        """Extend the grid by the cells of ``rows``."""
        means = block_means(rows) if native is None else native.block_means(rows, threads=self._threads)
        wanted = bicubic_means(self._image, self._taps_y, self._taps_x, self._cells, now.cells)
        self._cells = now.cells
        self._smooth = np.concatenate([self._smooth, blur_along_x(wanted - means)])
        if now.blurred > self._blurred:
            first = now.cells - len(self._smooth)
            fresh = blur_along_y(self._smooth, first, self._blurred, now.blurred, self._rows)
            self._grid = np.concatenate([self._grid[-2:], fresh])
            self._blurred = now.blurred
        self._smooth = self._smooth[-2 * REACH - 1 :]
