"""Finished rows: canvas rows that no later tile touches get their colours fixed and are rounded.

`Finish` is what the pipeline asks for; `HostFinish` downloads float32 rows and does it on the host. A back
end with a method ``finish(source, canvas, plan, *, color_fix)`` brings its own, for example
`yonos_trt.trt.finish.DeviceFinish`, from which only pixels of the picture's dtype come down.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from yonos_trt.backends.base import Array, Backend
from yonos_trt.tiles.color import RowColorFix
from yonos_trt.tiles.kernels import host_kernels
from yonos_trt.tiles.plan import TilePlan

__all__ = ["Clock", "Finish", "HostFinish"]

Clock = Callable[[str], AbstractContextManager[None]]
"""``with clock("download"): ...`` adds to the seconds of a stage."""

# Rows are downloaded in blocks of about this size, so that no second canvas is needed.
_BLOCK_BYTES = 4 << 20
_BLOCK_ROWS = 16


class Finish(Protocol):
    """Turns final canvas rows into rows of the picture's dtype, from the top down."""

    block_rows: int
    """Rows to push at a time, at most."""

    def push(self, y0_px: int, y1_px: int, clock: Clock) -> Array:
        """Take the canvas rows [y0, y1), which follow the rows pushed before and are final.

        Returns the rows that this finishes, (n, width_px, 3) with n >= 0: a colour fix may hold some back,
        but none after the last push. The caller owns them.
        """


class HostFinish:
    """Colour fix and rounding on the host; parameters as in `yonos_trt.pipeline.upscale`."""

    def __init__(
        self,
        image: Array,
        backend: Backend,
        canvas: Any,
        plan: TilePlan,
        *,
        color_fix: str,
        threads: int,
        first_row_px: int = 0,
    ) -> None:
        scale = backend.manifest.model.scale
        self._fix = RowColorFix(
            image, plan, scale, mode=color_fix, threads=threads, first_row_px=first_row_px
        )
        self._backend, self._canvas, self._plan = backend, canvas, plan
        self._dtype, self._threads = image.dtype, threads
        self._kernels = host_kernels()
        self.block_rows = max(_BLOCK_ROWS, _BLOCK_BYTES // (12 * plan.width_px))

    def push(self, y0_px: int, y1_px: int, clock: Clock) -> Array:
        """See `Finish`."""
        with clock("download"):
            rows = self._backend.download(self._canvas, self._plan, y0_px, y1_px)
        with clock("color"):
            fixed = self._fix.push(rows)
            if y1_px == self._plan.height_px:
                self._fix.flush()  # says so if rows are missing
            return self._kernels.finalize(fixed, self._dtype, threads=self._threads)
