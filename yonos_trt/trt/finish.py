"""Finished rows on the device: colour fix, clamp, rounding, packing; only the picture's own bytes come down.

The canvas stays as it is. Rows that the wavelet fix holds back lie in the canvas' halo, above its band; the
adain fix keeps a copy of all rows until it has seen the last. All work is queued on the canvas stream, and
every call can be repeated with the same result, which is what happens when a tile had to be run again.

Rows go to two page-locked buffers in turn. With `ahead`, a push queues its copy and waits for that of the
push before, so that the device has a band of work while the host waits; else it waits for its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from yonos_trt.backends.base import Array, stage
from yonos_trt.cuda.arrays import DeviceArray
from yonos_trt.cuda.device import Driver, Memory
from yonos_trt.cuda.kernels import TileKernels
from yonos_trt.cuda.lanes import LaneScheduler, PictureOrder
from yonos_trt.cuda.launches import (
    Affine,
    BicubicMoments,
    ColorBlur,
    ColorCells,
    DevicePicture,
    Finish,
    Fold,
    Moments,
)
from yonos_trt.errors import ConfigError
from yonos_trt.tiles.color import MODES, finished_rows
from yonos_trt.tiles.color_cells import BLOCK_PX, cell_taps, progress
from yonos_trt.tiles.plan import TilePlan
from yonos_trt.trt.buffers import Canvas, PlanBuffers, QueuedBatch
from yonos_trt.trt.memory import finish_layout, fold_counts, grid_shape
from yonos_trt.trt.ranges import Nvtx
from yonos_trt.trt.repair import Repair


@dataclass(slots=True)
class Target:
    """Device memory that takes the rows, packed, in place of the host; it outlives runs that go on in it.

    Attributes
    ----------
    array
        The whole result.
    check
        Whether flags are waited for; else nothing is.
    told
        Rows of which nothing can change any more, and which later runs leave alone.
    """

    array: DeviceArray
    check: bool
    told: int = 0


@dataclass(frozen=True, slots=True)
class _Sent:
    """Rows, and the flags of the batches they come from, on their way to one of the host's two buffers."""

    buffer: int
    rows: range
    batches: list[QueuedBatch]


class DeviceFinish:
    """One picture's rows on their way from the canvas to the host, or to device memory.

    Implements `yonos_trt.backends.base.RowFinish`. With a target in device memory rows are handed out by
    their numbers, a ``range``.

    Parameters
    ----------
    picture, scale
        The input on the device; the colour fix takes its colours.
    order
        Order of the picture's memory.
    color_fix
        "wavelet", "adain" or "none".
    enter
        Called first by `push`: raises if the canvas is no longer there.
    """

    lend = ahead = False

    def __init__(
        self,
        driver: Driver,
        kernels: TileKernels,
        scheduler: LaneScheduler,
        buffers: PlanBuffers,
        pictures: Memory,
        repair: Repair,
        nvtx: Nvtx,
        *,
        canvas: Canvas,
        picture: DevicePicture,
        scale: int,
        order: PictureOrder,
        color_fix: str,
        enter: Callable[[Canvas], None],
    ) -> None:
        if color_fix not in MODES:
            raise ConfigError(f"color_fix must be one of {', '.join(MODES)}, got {color_fix!r}")
        self._driver, self._kernels, self._scheduler = driver, kernels, scheduler
        self._buffers, self._pictures, self._repair, self._nvtx = buffers, pictures, repair, nvtx
        self._canvas, self._picture, self._scale, self._order = canvas, picture, scale, order
        self._mode, self._enter = color_fix, enter
        self._plan: TilePlan = canvas.plan
        self.dtype = np.dtype(picture.dtype)
        self._row_bytes = 3 * self._plan.width_px * self.dtype.itemsize
        self._at = buffers.for_finish(color_fix, self.dtype.itemsize, order)
        sizes = finish_layout(self._plan, scale, color_fix=color_fix, item_bytes=self.dtype.itemsize)
        self._block_bytes = sizes["finished"]
        if any(pictures.outgrown(("rows", buffer), self._block_bytes) for buffer in (0, 1)):
            scheduler.drain()  # a copy of a picture that was given up may still be on its way there
            for buffer in (0, 1):
                self._pinned(buffer)
        self.block_rows = min(self._plan.height_px, self._plan.tile_h_px)
        self._target: Target | None = None
        self._next = self._end = 0  # finished rows that are not on their way yet
        self._sent: _Sent | None = None  # with `ahead`, what nobody has waited for
        self._buffer = 0

    def into(self, target: Target) -> None:
        """Let the rows stay on the device, those above ``target.told`` as they are there."""
        self._target, self.block_rows = target, self._plan.height_px

    def push(self, y0_px: int, y1_px: int) -> Array | range:
        """See `yonos_trt.backends.base.RowFinish`. Tiles with NaN or infinity run again, but with `ahead`.

        Raises
        ------
        NumericError
            A tile is not finite, and there are no FP32 engines to run it again.
        RowsSpoilt
            With `ahead`, a tile of the push before is not finite.
        """
        with stage("download"), self._driver.current():
            self._enter(self._canvas)
            self._next, self._end = self.finished(y0_px), self.finished(y1_px)
            sent = self._send(lambda: self.take(y0_px, y1_px))
            if self._target is not None and not self._target.check:
                return self._rows(sent)
            if self.ahead:
                earlier, self._sent = self._sent, sent
                return self._arrived(earlier)
            while self._repaired(sent):  # the canvas has changed: once more
                self._next = sent.rows.start
                sent = self._send(lambda: self.take(y0_px, y1_px))
            return self._rows(sent)

    def rest(self) -> Array | range | None:
        """See `yonos_trt.backends.base.RowFinish`."""
        with stage("download"), self._driver.current():
            self._enter(self._canvas)
            sent = self._send() if self._next < self._end else None
            if self.ahead:
                sent, self._sent = self._sent, sent
            return None if sent is None else self._arrived(sent)

    def _send(self, before: Callable[[], None] = lambda: None) -> _Sent:
        """Queue `before` and a copy of the next rows to the host; does not wait."""
        first, end, target = self._next, self._end, self._target
        if target is None:
            end = min(end, first + self._block_bytes // self._row_bytes)
        self._buffer = buffer = 1 - self._buffer
        with self._nvtx.range(f"download rows {first}-{end}"), self._scheduler.sending(buffer) as stream:
            before()
            if target is not None:
                begin = max(first, target.told)
                if end > begin:
                    self.write(begin, end, target.array.address + begin * self._row_bytes)
            elif end > first:
                self.write(first, end, self._at["finished"])
                nbytes = (end - first) * self._row_bytes
                self._driver.copy_out(self._pinned(buffer), self._at["finished"], nbytes, stream)
            fetched = []
            if target is None or target.check:
                fetched = self._repair.fetch_flags(self._canvas, stream, buffer)
        self._next = end
        return _Sent(buffer, range(first, end), fetched)

    def _pinned(self, buffer: int) -> int:
        return self._pictures.pinned(("rows", buffer), self._block_bytes)

    def _repaired(self, sent: _Sent) -> bool:
        self._scheduler.arrived(sent.buffer)
        return self._repair.done(self._canvas, sent.batches, sent.buffer)

    def _arrived(self, sent: _Sent | None) -> Array | range:
        """Wait for rows and their flags, not for what was queued after them."""
        if sent is None:
            return np.empty((0, self._plan.width_px, 3), self.dtype)
        self._scheduler.arrived(sent.buffer)
        self._repair.refuse(self._canvas, sent.batches, sent.buffer)
        return self._rows(sent)

    def _rows(self, sent: _Sent) -> Array | range:
        if self._target is not None:
            self._target.told = max(self._target.told, sent.rows.stop)
            return sent.rows
        nbytes = len(sent.rows) * self._row_bytes
        if not nbytes:
            return np.empty((0, self._plan.width_px, 3), self.dtype)
        raw = self._driver.host_view(self._pinned(sent.buffer), nbytes).view(self.dtype)
        rows = raw.reshape(len(sent.rows), self._plan.width_px, 3)
        return rows if self.lend else rows.copy()

    def finished(self, end_px: int) -> int:
        """Return how many rows are finished when the canvas rows [0, end_px) are final."""
        return finished_rows(self._mode, self._plan.height_px, end_px)

    def take(self, y0_px: int, y1_px: int) -> None:
        """Queue what the colour fix computes of the canvas rows [y0, y1), which follow those taken before."""
        with self._driver.current(), self._scheduler.finishing(self._order) as stream:
            if self._mode == "wavelet":
                self._extend_grid(y0_px, y1_px, stream)
            elif self._mode == "adain":
                self._hold(y0_px, y1_px, stream)
                if y1_px == self._plan.height_px:
                    self._measure(stream)

    def write(self, y0_px: int, y1_px: int, out: int) -> None:
        """Queue finished rows [y0, y1) for the device address `out`, packed."""
        plan, at = self._plan, self._at
        if self._mode == "adain":
            acc, acc_w_px = at["held"] + y0_px * 12 * plan.width_px, plan.width_px
        else:
            acc = self._buffers.row(self._canvas.front, self._canvas.band, y0_px)
            acc_w_px = plan.padded_w_px
        rows, _, ring = grid_shape(plan)
        finish = Finish(
            acc,
            acc_w_px,
            out,
            dtype=self.dtype.name,
            rows=y1_px - y0_px,
            width_px=plan.width_px,
            y0_px=y0_px,
            grid=at.get("grid", 0),
            grid_rows=rows,
            ring=ring,
            affine=at.get("affine", 0),
        )
        with self._driver.current():
            self._kernels.launch(finish, stream=self._scheduler.canvas_stream)

    def _extend_grid(self, y0_px: int, y1_px: int, stream: int) -> None:
        plan, at = self._plan, self._at
        _, _, ring = grid_shape(plan)
        before, now = progress(plan.height_px, y0_px), progress(plan.height_px, y1_px)
        if now.cells > before.cells:
            launch = ColorCells(
                self._buffers.row(self._canvas.front, self._canvas.band, before.cells * BLOCK_PX),
                plan.padded_w_px,
                self._picture,
                base_y=at["base y"],
                weight_y=at["weight y"],
                taps_y=self._taps(plan.height_px),
                base_x=at["base x"],
                weight_x=at["weight x"],
                taps_x=self._taps(plan.width_px),
                out=at["difference"],
                ring=ring,
                first=before.cells,
                last=now.cells,
                height_px=plan.height_px,
                width_px=plan.width_px,
            )
            self._kernels.launch(launch, stream=stream)
            self._blur("difference", "smooth", before.cells, now.cells, stream)
        if now.blurred > before.blurred:
            self._blur("smooth", "grid", before.blurred, now.blurred, stream)

    def _taps(self, size_px: int) -> int:
        return int(cell_taps(size_px, size_px // self._scale, self._scale).weight.shape[1])

    def _blur(self, source: str, out: str, first: int, last: int, stream: int) -> None:
        rows, columns, ring = grid_shape(self._plan)
        launch = ColorBlur(
            self._at[source],
            self._at[out],
            along_y=out == "grid",
            ring=ring,
            rows=rows,
            columns=columns,
            first=first,
            last=last,
        )
        self._kernels.launch(launch, stream=stream)

    def _hold(self, y0_px: int, y1_px: int, stream: int) -> None:
        plan = self._plan
        self._driver.copy_rows(
            self._at["held"] + y0_px * 12 * plan.width_px,
            12 * plan.width_px,
            self._buffers.row(self._canvas.front, self._canvas.band, y0_px),
            12 * plan.padded_w_px,
            12 * plan.width_px,
            y1_px - y0_px,
            stream,
        )

    def _measure(self, stream: int) -> None:
        """Queue moments of both pictures, their sums, gain and offset."""
        plan, at, kernels = self._plan, self._at, self._kernels
        ours = Moments(at["held"], at["ours"], plan.height_px, plan.width_px)
        kernels.launch(ours, stream=stream)
        kernels.launch(BicubicMoments(self._picture, at["wanted"], self._scale), stream=stream)
        counts = fold_counts(plan)
        done = 0
        for count, _ in pairwise(counts):
            for name in ("ours", "wanted"):
                parts = at[name] + 48 * done
                kernels.launch(Fold(parts, parts + 48 * count, count), stream=stream)
            done += count
        total = 48 * done
        pixels = plan.height_px * plan.width_px
        kernels.launch(Affine(at["wanted"] + total, at["ours"] + total, pixels, at["affine"]), stream=stream)
