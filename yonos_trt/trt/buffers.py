"""The device buffers of one plan: allocated from the table in `yonos_trt.trt.memory` and filled once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yonos_trt.cuda.device import Driver, Memory
from yonos_trt.cuda.kernels import TileKernels
from yonos_trt.cuda.lanes import LaneScheduler, PictureOrder, Slot
from yonos_trt.cuda.launches import Blend, DevicePicture
from yonos_trt.engine.manifest import EngineManifest
from yonos_trt.errors import OutOfMemoryError
from yonos_trt.tiles.color_cells import HALO_ROWS_PX, cell_taps
from yonos_trt.tiles.plan import TileBatch, TilePlan, batches
from yonos_trt.trt.lane import LaneNetworks
from yonos_trt.trt.memory import BatchShape, BufferLayout, finish_layout, layout


@dataclass(frozen=True, slots=True)
class Source:
    """A picture on the device; `owner` keeps the memory alive that it is being copied from."""

    picture: DevicePicture
    number: int
    owner: Any = None


@dataclass(frozen=True, slots=True)
class QueuedBatch:
    """A batch whose tiles a lane is computing, or has computed, into a slot."""

    slot: Slot
    source: Source
    batch: TileBatch
    seed: int


@dataclass(slots=True)
class Canvas:
    """State of one run's accumulator."""

    plan: TilePlan
    number: int
    band: int = 0
    front: int = 0
    blended: list[QueuedBatch] = field(default_factory=list)
    """Batches blended since their flags were looked at last."""
    count: int = 0
    """Batches blended in all."""


def batch_index(plan: TilePlan, batch: TileBatch) -> int:
    """Position of a batch in the plan's order."""
    return batch.band * plan.batches_per_band + batch.first % len(plan.xs) // plan.batch


class PlanBuffers:
    """Canvas, windows, origins, flags, slots and the lanes' buffers for the plan that was prepared last."""

    def __init__(self, driver: Driver, scheduler: LaneScheduler, manifest: EngineManifest) -> None:
        self._driver, self._scheduler, self._manifest = driver, scheduler, manifest
        self.memory = Memory(driver)
        """Of lanes and slots, whose addresses graphs hold."""
        self._tables = Memory(driver)
        self.plan: TilePlan | None = None
        self.lanes = 0
        self._sizes = BufferLayout({}, {}, {})
        self._shared: dict[str, int] = {}
        self._taps_placed = False

    def prepare(self, plan: TilePlan, networks: list[LaneNetworks], order: PictureOrder) -> None:
        """Make the buffers those of `plan`; they only grow. Nothing may be running.

        Raises
        ------
        OutOfMemoryError
            The plan does not fit; nothing stays allocated.
        """
        self.plan = None
        self._taps_placed = False
        try:
            self._make(plan, networks, order)
        except OutOfMemoryError:
            self.free_all()
            try:  # without what other plans have left
                self._make(plan, networks, order)
            except OutOfMemoryError:
                self.free_all()
                raise
        self.plan, self.lanes = plan, len(networks)

    def free_all(self) -> None:
        """Give everything back. Idempotent."""
        self.plan = None
        self.memory.free_all()
        self._tables.free_all()

    def _make(self, plan: TilePlan, networks: list[LaneNetworks], order: PictureOrder) -> None:
        shape = BatchShape.of(plan)
        scratch = max(
            lane.set_shapes(shape, self._scheduler.lane_stream(index)) for index, lane in enumerate(networks)
        )
        self._sizes = layout(plan, self._manifest, scratch_bytes=scratch, dtypes=networks[0].dtypes)
        for lane in networks:
            lane.allocate(self.memory, self._sizes)
        for index in range(len(networks)):
            for slot in self._scheduler.slots(index):
                self.slot(slot)
        self._shared = {
            name: self._tables.device(name, nbytes)
            for name, nbytes in self._sizes.shared.items()
            if name != "picture"
        }
        self._fill_tables(plan, order)

    def _fill_tables(self, plan: TilePlan, order: PictureOrder) -> None:
        """Put windows and origins of all batches on the device, so that a batch needs no host memory."""
        todo = list(batches(plan))
        tables: dict[str, NDArray[Any]] = {
            "windows y": np.repeat(
                np.stack([plan.window_y(band) for band in range(plan.bands)]), plan.batch, axis=0
            ),
            "windows x": np.stack([b.weights(plan)[1] for b in todo[: plan.batches_per_band]]),
            "origins": np.stack([np.stack((b.ys, b.xs)) for b in todo]),
            "rows": np.zeros(plan.batch, np.int64),
        }
        self._upload({name: (self._shared[name], table) for name, table in tables.items()}, order)

    def _upload(self, tables: dict[str, tuple[int, NDArray[Any]]], order: PictureOrder) -> None:
        """Queue copies of host tables; their page-locked memory lives as long as the plan's buffers."""
        with self._scheduler.uploading(order) as stream:
            for name, (address, table) in tables.items():
                pinned = self._tables.pinned(name, table.nbytes)
                raw = np.ascontiguousarray(table).reshape(-1).view(np.uint8)
                self._driver.host_view(pinned, table.nbytes)[:] = raw
                self._driver.copy_in(address, pinned, table.nbytes, stream)

    def for_finish(self, color_fix: str, item_bytes: int, order: PictureOrder) -> dict[str, int]:
        """Return the buffers of `yonos_trt.trt.memory.finish_layout`; the wavelet fix's taps are in place.

        Raises
        ------
        OutOfMemoryError
            They do not fit; nothing of the plan stays allocated.
        """
        plan, scale = self.plan, self._manifest.model.scale
        assert plan is not None
        sizes = finish_layout(plan, scale, color_fix=color_fix, item_bytes=item_bytes)
        try:
            found = {name: self._tables.device(("finish", name), nbytes) for name, nbytes in sizes.items()}
        except OutOfMemoryError:
            self.free_all()
            raise
        if color_fix == "wavelet" and not self._taps_placed:
            self._taps_placed = True
            tables: dict[str, tuple[int, NDArray[Any]]] = {}
            for axis, size in (("y", plan.height_px), ("x", plan.width_px)):
                taps = cell_taps(size, size // scale, scale)
                tables[f"base {axis}"] = found[f"base {axis}"], taps.base
                tables[f"weight {axis}"] = found[f"weight {axis}"], taps.weight
            self._upload(tables, order)
        return found

    def slot(self, slot: Slot) -> tuple[int, int]:
        """Return where a slot's tiles and their flags lie."""
        tiles, flags = (
            self.memory.device((name, slot.lane, slot.index), self._sizes.slot[name])
            for name in ("tiles", "flags")
        )
        return tiles, flags

    def flags(self, index: int) -> int:
        """Return where the flags of batch `index` are kept."""
        assert self.plan is not None
        return self._shared["flags"] + 4 * self.plan.batch * index

    @property
    def redo(self) -> int:
        """Where the flags of a repair lie: 1 for the tiles of the batch that are to be left alone."""
        return self._shared["redo"]

    def _canvas(self, front: int) -> int:
        return self._shared[f"canvas {front}"]

    def row(self, front: int, band: int, y_px: int) -> int:
        """Return where canvas row `y_px` lies while a canvas shows `band`.

        A canvas begins HALO_ROWS_PX above its band: there are the rows that the colour fix holds back.
        """
        assert self.plan is not None
        above = y_px - self.plan.ys[band] + HALO_ROWS_PX
        assert 0 <= above <= HALO_ROWS_PX + self.plan.tile_h_px, (band, y_px)
        return self._canvas(front) + above * 12 * self.plan.padded_w_px

    def clear(self, front: int, stream: int) -> None:
        """Queue zeros for a canvas."""
        self._driver.fill(self._canvas(front), 0, self._sizes.shared[f"canvas {front}"], stream)

    def place_origins(self, networks: LaneNetworks, index: int, stream: int) -> None:
        """Queue a copy of batch `index`'s origins into the lane."""
        nbytes = self._sizes.lane["origins"]
        self._driver.copy(
            networks.buffers["origins"], self._shared["origins"] + index * nbytes, nbytes, stream
        )

    def add(
        self,
        kernels: TileKernels,
        front: int,
        batch: TileBatch,
        tiles: int,
        skip: int,
        *,
        half: bool,
        stream: int,
    ) -> None:
        """Queue the blend of a batch into a canvas whose first row is the batch's band."""
        plan = self.plan
        assert plan is not None
        index, n = batch_index(plan, batch), plan.batch
        blend = Blend(
            self.row(front, batch.band, plan.ys[batch.band]),
            tiles,
            self._shared["rows"],
            self._shared["origins"] + (2 * index + 1) * 8 * n,
            self._shared["windows y"] + batch.band * 4 * n * plan.tile_h_px,
            self._shared["windows x"] + index % plan.batches_per_band * 4 * n * plan.tile_w_px,
            skip,
            count=batch.live,
            tile_h_px=plan.tile_h_px,
            tile_w_px=plan.tile_w_px,
            canvas_h_px=plan.tile_h_px,
            canvas_w_px=plan.padded_w_px,
            first_px=int(batch.xs[0]),
            span_px=int(batch.xs[-1] - batch.xs[0]) + plan.tile_w_px,
            half=half,
        )
        kernels.launch(blend, stream=stream)

    def move(self, front: int, from_band: int, to_band: int, stream: int) -> None:
        """Queue the other canvas as this one moved down: rows at the top dropped, as many zero rows added."""
        plan = self.plan
        assert plan is not None
        row_bytes = 12 * plan.padded_w_px
        shift = plan.ys[to_band] - plan.ys[from_band]
        keep = HALO_ROWS_PX + plan.tile_h_px - shift
        old, new = self._canvas(front), self._canvas(1 - front)
        self._driver.copy(new, old + shift * row_bytes, keep * row_bytes, stream)
        self._driver.fill(new + keep * row_bytes, 0, shift * row_bytes, stream)
