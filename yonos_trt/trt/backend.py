"""`TrtBackend`: the data path on TensorRT or TensorRT-RTX, tile batches on CUDA streams.

`run` queues a whole batch on the next lane in turn, as one CUDA graph from its second use on; `blend` queues
an addition on the canvas stream; what `finish` gives fixes colours and rounds on the device, and its `push`
waits, as nothing else does while a picture runs. Order and slots are `yonos_trt.cuda.lanes`, buffers
`yonos_trt.trt.memory`.

A tile with NaN or infinity is left out of the canvas by the blend kernel, found at the next push, and run
again on the directory's FP32 engines if it has any; otherwise it is a `NumericError`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from yonos_trt.backends.base import Array, Backend, stage
from yonos_trt.cuda.arrays import DeviceView, device_index, view_of
from yonos_trt.cuda.device import Driver
from yonos_trt.cuda.launches import DevicePicture
from yonos_trt.errors import (
    ClosedError,
    ConfigError,
    InputError,
    OutOfMemoryError,
)
from yonos_trt.tiles.plan import TileBatch, TilePlan
from yonos_trt.trt.buffers import Canvas, QueuedBatch, Source, batch_index
from yonos_trt.trt.finish import DeviceFinish
from yonos_trt.trt.memory import BatchShape
from yonos_trt.trt.resources import TrtResources, on_device

_log = logging.getLogger(__name__)

_GRAPHS_PER_LANE = 16
_SHAPES = 8
"""Batch shapes whose contexts are kept."""


class TrtBackend(TrtResources):
    """Run an engine directory's TensorRT engines; the methods are those of `yonos_trt.backends.base.Backend`.

    Parameters
    ----------
    engine_dir, manifest
        The engine directory, and its manifest if it was loaded already.
    runtime
        "tensorrt" or "tensorrt-rtx".
    precision
        None takes fp16, else bf16, else fp32.
    device
        Index of the GPU.
    lanes
        Tile batches that run at the same time.
    graphs
        Whether to capture batches into CUDA graphs.
    module, driver, kernels
        Stand-ins for the TensorRT module, the CUDA driver and the tile kernels.

    Raises
    ------
    EngineDeviceError
        No GPU, or no engine for this one.
    EngineNotFoundError, EngineVersionError, EngineIntegrityError, ManifestError
        No engine fits, or one is damaged; each message names the command that builds it.
    MissingExtraError
        The TensorRT module cannot be imported.
    """

    # --- the data path ------------------------------------------------------------------------------------

    @on_device
    def upload(self, image: Array) -> Source:
        """Copy a picture through page-locked memory to the device; does not wait for the copy."""
        image = np.ascontiguousarray(image)
        nbytes = image.nbytes
        address = self._picture_buffer(nbytes)
        pinned, copied = self._staging_for(nbytes)
        self._driver.host_view(pinned, nbytes)[:] = image.reshape(-1).view(np.uint8)
        with self._nvtx.range("upload"), self._scheduler.uploading(self._order) as stream:
            self._driver.copy_in(address, pinned, nbytes, stream)
            self._driver.event_record(copied, stream)
        height, width = image.shape[:2]
        return self._uploaded(
            DevicePicture(address, height, width, str(image.dtype), width * 3 * image.itemsize)
        )

    def _take_lanes(self, shape: BatchShape) -> None:
        """Let the lanes be those of a batch shape: a graph is tied to the contexts it was captured from."""
        if shape not in self._shaped:
            while len(self._shaped) >= _SHAPES:
                self._graphs.clear()
                del self._shaped[next(iter(self._shaped))]
            self._shaped[shape] = self._new_lanes() if self._shaped else list(self._networks)
        self._networks[:] = self._shaped[shape]

    def _picture_buffer(self, nbytes: int) -> int:
        if nbytes > self._pictures.device_bytes:
            self._scheduler.drain()  # the old buffer may still be read by a picture that was given up
        try:
            return self._pictures.device("picture", nbytes)
        except OutOfMemoryError:
            self.give_back()
            return self._pictures.device("picture", nbytes)

    @on_device
    def give_back(self) -> None:
        """Let go of what plans hold, after memory ran out; waits. The next `canvas` makes its own anew."""
        self._scheduler.drain()
        self._graphs.clear()
        self._buffers.free_all()

    def _uploaded(self, picture: DevicePicture, owner: Any = None) -> Source:
        self._uploads += 1
        self._source = Source(picture, self._uploads, owner)
        return self._source

    def _staging_for(self, nbytes: int) -> tuple[int, int]:
        """Return a page-locked buffer that no copy is reading, and the event of its next copy."""
        for index, event in enumerate(self._staging):
            if self._driver.event_query(event):
                return self._pictures.pinned(("staging", index), nbytes), event
        self._staging.append(self._driver.event_create())
        return self._pictures.pinned(("staging", len(self._staging) - 1), nbytes), self._staging[-1]

    @on_device
    def canvas(self, plan: TilePlan) -> Canvas:
        """Return a zeroed canvas; a canvas handed out before is no longer usable.

        Waits for earlier work if `plan` differs from the one before, and only then. Buffers grow where they
        have to; lanes are kept by batch shape, so that a size that comes again finds its graphs.

        Raises
        ------
        OutOfMemoryError
            The plan does not fit; nothing of it stays allocated.
        ProfileError
            The engines were not built for this tile size or batch.
        """
        self._runs += 1
        self._scheduler.abandon()
        changed = plan != self._buffers.plan or self._active != self._buffers.lanes
        if changed or len(self._graphs) > _GRAPHS_PER_LANE * self.lanes:
            self._scheduler.drain()
        if len(self._graphs) > _GRAPHS_PER_LANE * self.lanes:
            self._graphs.clear()
        if changed:
            self._take_lanes(BatchShape.of(plan))
            try:
                self._buffers.prepare(plan, self._networks[: self._active], self._order)
            finally:
                if self._moves != self._buffers.memory.moves:  # graphs hold addresses
                    self._graphs.clear()
                self._moves = self._buffers.memory.moves
            stream = self._scheduler.lane_stream(0)
            if self._graphs.enabled and not self._networks[0].capturable(stream):
                _log.info("TensorRT says that these engines cannot be captured: running without CUDA graphs")
                self._graphs.enabled = False
        self._buffers.clear(0, self._scheduler.canvas_stream)
        self._turn, self._next_turn = self._next_turn, self._next_turn + plan.bands * plan.batches_per_band
        return Canvas(plan, self._runs)

    @on_device
    def run(self, source: Source, plan: TilePlan, batch: TileBatch, seed: int, lane: int) -> QueuedBatch:
        """Queue a whole batch on the lane whose turn it is; `lane` (the calling thread's) has no effect.

        Lane and slot follow from the batch's place among all of this back end: graphs are tied to both, and a
        warm-up that went by who came first would leave some to be captured later.

        Counts as "decode" in `yonos_trt.pipeline.Timings`: only the device knows what its stages take.
        """
        self._check_source(source)
        index = batch_index(plan, batch)
        turn, number = divmod(self._turn + index, self._buffers.lanes)
        networks, picture = self._networks[number], source.picture
        with stage("decode"), self._scheduler.batch(number, self._order, turn=turn) as (stream, slot):
            if plan != self._buffers.plan or source is not self._source:
                raise ConfigError("the plan or the picture was replaced while a batch of it was on its way")
            tiles, flags = self._buffers.slot(slot)
            self._buffers.place_origins(networks, index, stream)
            # Origins reach a graph through memory. All else that it bakes in is in the key, or belongs to the
            # plan, at whose change all graphs go.
            ranges = self._nvtx.of(batch)
            with ranges("batch"):
                self._graphs.run(
                    (BatchShape.of(plan), number, slot.index, picture, seed),
                    stream,
                    lambda: networks.enqueue(self._kernels, picture, seed, tiles, flags, stream, ranges),
                )
        return QueuedBatch(slot, source, batch, seed)

    def _check_source(self, source: Source) -> None:
        if source is not self._source:
            raise InputError("this picture was replaced by a later upload; upload it again")

    @on_device
    def blend(self, canvas: Canvas, tiles: QueuedBatch, plan: TilePlan, batch: TileBatch) -> None:
        """Queue the addition of a batch to the canvas."""
        self._enter_canvas(canvas)
        index = batch_index(plan, batch)
        if index != canvas.count:
            raise ConfigError(
                f"batch {index} is blended after {canvas.count} others, expected plan order: the sum depends "
                "on it"
            )
        address, flags = self._buffers.slot(tiles.slot)
        with self._nvtx.of(batch)("blend"), self._scheduler.blending(tiles.slot) as stream:
            if batch.band != canvas.band:
                self._buffers.move(canvas.front, canvas.band, batch.band, stream)
                canvas.band, canvas.front = batch.band, 1 - canvas.front
            half = self._networks[0].dtypes["tiles"] == "float16"
            self._buffers.add(self._kernels, canvas.front, batch, address, flags, half=half, stream=stream)
            self._driver.copy(self._buffers.flags(index), flags, 4 * plan.batch, stream)
        canvas.count += 1
        canvas.blended.append(tiles)

    def _enter_canvas(self, canvas: Canvas) -> None:
        self._enter()
        if canvas.number != self._runs:
            raise ClosedError("this canvas was replaced by a later run; make a new one")

    @on_device
    def finish(
        self,
        source: Source,
        canvas: Canvas,
        plan: TilePlan,
        *,
        color_fix: str,
        threads: int = 1,
        first_row_px: int = 0,
    ) -> DeviceFinish:
        """Fix the colours of this canvas and round its rows on the device; needs neither threads nor the row.

        Raises
        ------
        OutOfMemoryError
            The colour fix's buffers do not fit; nothing of the plan stays allocated.
        """
        self._enter_canvas(canvas)
        self._check_source(source)
        return DeviceFinish(
            self._driver,
            self._kernels,
            self._scheduler,
            self._buffers,
            self._pictures,
            self._repair,
            self._nvtx,
            canvas=canvas,
            picture=source.picture,
            scale=self.manifest.model.scale,
            order=self._order,
            color_fix=color_fix,
            enter=self._enter_canvas,
        )

    # --- pictures that stay on the device (yonos_trt.trt.device) ------------------------------------------

    @property
    def driver(self) -> Driver:
        """The device."""
        return self._driver

    @on_device
    def look_at(self, image: Any) -> DeviceView:
        """Return a view of a picture in device memory, ready for `adopt`.

        Raises
        ------
        InputError
            It lies on another GPU, or has another shape, type or layout.
        """
        own = self._driver.info.index
        self._check_device(device_index(image), own)
        view = view_of(image, consumer=self._scheduler.copy_stream)
        self._check_device(self._driver.device_of(view.address), own)
        return view

    @staticmethod
    def _check_device(found: int | None, own: int) -> None:
        if found not in (None, own):
            raise InputError(
                f"the array lies on GPU {found}, the engines run on GPU {own}; copy it there, or open the "
                f"engines with SR(..., device={found})"
            )

    @on_device
    def adopt(self, view: DeviceView, *, after: int | None) -> Source:
        """Copy a picture on the device, after the work that the stream `after` has; does not wait."""
        row_bytes = view.width * 3 * np.dtype(view.dtype).itemsize
        address = self._picture_buffer(view.height * row_bytes)
        with self._scheduler.uploading(self._order, after=after) as stream:
            self._driver.copy_rows(
                address, row_bytes, view.address, view.pitch_bytes, row_bytes, view.height, stream
            )
        picture = DevicePicture(address, view.height, view.width, view.dtype, row_bytes)
        return self._uploaded(picture, owner=view.owner)

    @on_device
    def hand_over(self, caller: int | None) -> None:
        """Let later work of the caller's stream come after ours; without one, wait."""
        if caller is None:
            with self._scheduler.downloading():
                pass
        else:
            with self._scheduler.handing_over(caller):
                pass


if TYPE_CHECKING:

    def _is_a_backend(backend: TrtBackend) -> Backend:
        return backend
