"""What happens to a tile with NaN or infinity: once more in FP32, or an error that names stage and tile."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from yonos_trt.backends.base import RowsSpoilt
from yonos_trt.cuda.device import Driver
from yonos_trt.cuda.kernels import TileKernels
from yonos_trt.cuda.lanes import LaneScheduler, PictureOrder
from yonos_trt.cuda.launches import DevicePicture
from yonos_trt.engine.manifest import EngineManifest
from yonos_trt.errors import NumericError
from yonos_trt.tiles.plan import TileBatch
from yonos_trt.trt.buffers import Canvas, PlanBuffers, QueuedBatch, batch_index
from yonos_trt.trt.engines import Engine
from yonos_trt.trt.lane import LaneNetworks
from yonos_trt.trt.memory import BatchShape, layout, tensor_shapes

_log = logging.getLogger(__name__)

_STAGES = {"encode": "z_l", "step": "z_0", "decode": "tiles"}


class Repair:
    """Runs single batches again, beside the lanes; every call waits for the device.

    Parameters
    ----------
    lanes
        The lanes' networks; the first one's are run again to find the stage.
    order
        Order of the picture's memory.
    open_fp32
        Opens the FP32 engines, or returns None if the directory has none that fit.
    """

    def __init__(
        self,
        driver: Driver,
        kernels: TileKernels,
        scheduler: LaneScheduler,
        buffers: PlanBuffers,
        manifest: EngineManifest,
        lanes: list[LaneNetworks],
        order: PictureOrder,
        open_fp32: Callable[[], dict[str, Engine] | None],
    ) -> None:
        self._lanes, self._order = lanes, order
        self._driver, self._kernels, self._scheduler = driver, kernels, scheduler
        self._buffers, self._manifest, self._open_fp32 = buffers, manifest, open_fp32
        self._networks: LaneNetworks | None = None
        self._tried = False

    def fetch_flags(self, canvas: Canvas, stream: int, buffer: int = 0) -> list[QueuedBatch]:
        """Queue a copy of the flags of the batches that nobody has looked at yet; returns these batches.

        `buffer`, 0 or 1, is where the flags go on the host; no other copy into it may be on its way.
        """
        fresh, canvas.blended = canvas.blended, []
        if fresh:
            nbytes = 4 * canvas.plan.batch * len(fresh)
            pinned = self._buffers.memory.pinned(("flags", buffer), nbytes)
            self._driver.copy_out(pinned, self._buffers.flags(canvas.count - len(fresh)), nbytes, stream)
        return fresh

    def spoilt(
        self, canvas: Canvas, fetched: list[QueuedBatch], buffer: int = 0
    ) -> list[tuple[QueuedBatch, NDArray[np.bool_]]]:
        """Return the batches whose flags, which have arrived, name tiles that are not finite; and which."""
        if not fetched:
            return []
        nbytes = 4 * canvas.plan.batch * len(fetched)
        pinned = self._buffers.memory.pinned(("flags", buffer), nbytes)
        raised = self._driver.host_view(pinned, nbytes).view(np.int32).reshape(-1, canvas.plan.batch) != 0
        for tiles, bad in zip(fetched, raised, strict=True):
            bad[tiles.batch.live :] = False
        return [(tiles, bad) for tiles, bad in zip(fetched, raised, strict=True) if bad.any()]

    def done(self, canvas: Canvas, fetched: list[QueuedBatch], buffer: int = 0) -> bool:
        """Look at the flags that were fetched and repair what they say; True if the canvas has changed since.

        Raises
        ------
        NumericError
            As `run`.
        """
        spoilt = self.spoilt(canvas, fetched, buffer)
        for tiles, bad in spoilt:
            self.run(canvas, tiles, bad)
        return bool(spoilt)

    def refuse(self, canvas: Canvas, fetched: list[QueuedBatch], buffer: int) -> None:
        """Look at the flags that were fetched, after which the canvas may have moved on.

        Raises
        ------
        RowsSpoilt
            They name a tile.
        """
        numbers = [
            int(tiles.batch.first + i)
            for tiles, bad in self.spoilt(canvas, fetched, buffer)
            for i in np.flatnonzero(bad)
        ]
        if numbers:
            raise RowsSpoilt(f"NaN or infinity in the tiles {numbers}")

    def run(self, canvas: Canvas, tiles: QueuedBatch, bad: NDArray[np.bool_]) -> None:
        """Add the bad tiles of a batch to the canvas after all, computed in FP32.

        Nothing can be added when the canvas has moved on to another band.

        Raises
        ------
        NumericError
            There are no FP32 engines, or they give no finite numbers either.
        """
        lane, order, batch = self._lanes[0], self._order, tiles.batch
        picture, seed = tiles.source.picture, tiles.seed
        front = canvas.front if batch.band == canvas.band else None
        if not self._tried:
            self._tried = True
            engines = self._open_fp32()
            self._networks = LaneNetworks(engines, self._manifest, "fp32") if engines else None
        if self._networks is None or front is None:
            stage, again = self._first_bad_stage(lane, order, picture, seed, batch, bad)
            raise self._error(stage, batch, bad, again)
        numbers = [int(batch.first + i) for i in np.flatnonzero(bad)]
        _log.warning("NaN or infinity in the tiles %s: running them again in fp32", numbers)
        still_bad = self._redo(self._networks, order, picture, seed, front, batch, bad)
        if still_bad.any():
            stage, _ = self._first_bad_stage(self._networks, order, picture, seed, batch, still_bad)
            raise self._error(stage, batch, still_bad, "; the fp32 engines give no finite numbers either")

    def _prepare(self, networks: LaneNetworks) -> tuple[int, int]:
        """Make room for one batch; returns where its tiles and flags go."""
        plan, memory = self._buffers.plan, self._buffers.memory
        assert plan is not None
        if networks.key == "fp32":
            scratch = networks.set_shapes(BatchShape.of(plan), self._scheduler.lane_stream(0))
            sizes = layout(plan, self._manifest, scratch_bytes=scratch, dtypes=networks.dtypes)
            networks.allocate(memory, sizes)
        else:
            sizes = layout(plan, self._manifest, scratch_bytes=1, dtypes=networks.dtypes)
        tiles = memory.device(("repair tiles", networks.key), sizes.slot["tiles"])
        return tiles, memory.device(("repair flags", networks.key), sizes.slot["flags"])

    def _redo(
        self,
        networks: LaneNetworks,
        order: PictureOrder,
        picture: DevicePicture,
        seed: int,
        front: int,
        batch: TileBatch,
        bad: NDArray[np.bool_],
    ) -> NDArray[np.bool_]:
        buffers, driver = self._buffers, self._driver
        assert buffers.plan is not None
        nbytes = 4 * buffers.plan.batch
        index = batch_index(buffers.plan, batch)
        tiles, flags = self._prepare(networks)
        leave = buffers.memory.pinned("repair", nbytes)
        driver.host_view(leave, nbytes).view(np.int32)[:] = ~bad
        with self._scheduler.batch(0, order) as (stream, slot):
            buffers.place_origins(networks, index, stream)
            networks.enqueue(self._kernels, picture, seed, tiles, flags, stream)
        with self._scheduler.blending(slot) as stream:
            driver.copy_in(buffers.redo, leave, nbytes, stream)
            half = networks.dtypes["tiles"] == "float16"
            buffers.add(self._kernels, front, batch, tiles, buffers.redo, half=half, stream=stream)
        with self._scheduler.downloading() as stream:
            driver.copy_out(leave, flags, nbytes, stream)
        again = driver.host_view(leave, nbytes).view(np.int32)
        return np.asarray(bad & (again != 0))

    def _first_bad_stage(
        self,
        networks: LaneNetworks,
        order: PictureOrder,
        picture: DevicePicture,
        seed: int,
        batch: TileBatch,
        bad: NDArray[np.bool_],
    ) -> tuple[str, str]:
        """Run the batch once more and look at what each stage gives; returns the stage and a remark."""
        buffers, driver = self._buffers, self._driver
        assert buffers.plan is not None
        tiles, flags = self._prepare(networks)
        shapes = tensor_shapes(self._manifest, BatchShape.of(buffers.plan))
        found: dict[str, tuple[int, int]] = {}
        with self._scheduler.batch(0, order) as (stream, slot):
            buffers.place_origins(networks, batch_index(buffers.plan, batch), stream)
            networks.enqueue(self._kernels, picture, seed, tiles, flags, stream)
            for stage, name in _STAGES.items():
                source = tiles if name == "tiles" else networks.buffers[name]
                nbytes = int(np.prod(shapes[name])) * np.dtype(networks.dtypes[name]).itemsize
                pinned = buffers.memory.pinned(("repair", name), nbytes)
                driver.copy_out(pinned, source, nbytes, stream)
                found[stage] = pinned, nbytes
        with self._scheduler.blending(slot):
            pass
        with self._scheduler.downloading():
            pass
        for stage, (pinned, nbytes) in found.items():
            name = _STAGES[stage]
            values = driver.host_view(pinned, nbytes).view(networks.dtypes[name]).reshape(shapes[name])
            if not np.isfinite(values[bad]).all():
                return stage, ""
        return "decode", "; a second run was finite, so suspect the device (overclocking, memory)"

    @staticmethod
    def _error(stage: str, batch: TileBatch, bad: NDArray[np.bool_], remark: str) -> NumericError:
        i = int(np.flatnonzero(bad)[0])
        tile = batch.first + i
        return NumericError(
            f"the stage {stage!r} produced NaN or infinity in tile {tile} (origin y {batch.ys[i]}, x "
            f"{batch.xs[i]} px of the output), expected finite numbers{remark}; add fp32 engines to the "
            "directory with: yonos-export --fp32, or use precision='fp32'",
            stage=stage,
            tile=tile,
        )
