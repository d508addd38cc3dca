"""What the TensorRT back end holds, from opening to closing."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from yonos_trt.cuda.arrays import Stream
from yonos_trt.cuda.device import Driver, Graphs, Memory, Results
from yonos_trt.cuda.kernels import TileKernels
from yonos_trt.cuda.lanes import LaneScheduler
from yonos_trt.engine.manifest import EngineManifest, Precision, Runtime, load_manifest
from yonos_trt.errors import (
    ClosedError,
    ConfigError,
    CudaError,
    EngineDeviceError,
    EngineNotFoundError,
    EngineVersionError,
)
from yonos_trt.planning import WorkingBytes
from yonos_trt.tiles.plan import TilePlan
from yonos_trt.trt.artifacts import pick_engines, read_engine
from yonos_trt.trt.buffers import PlanBuffers, Source
from yonos_trt.trt.engines import Engine, check_dtypes
from yonos_trt.trt.kernel_cache import KernelCache
from yonos_trt.trt.lane import LaneNetworks, buffer_dtypes, stage_inputs
from yonos_trt.trt.memory import CONTEXT_BYTES, SLOTS_PER_LANE, BatchShape, finish_layout, layout
from yonos_trt.trt.module import TensorRT
from yonos_trt.trt.ranges import Nvtx
from yonos_trt.trt.refit import weights_of
from yonos_trt.trt.repair import Repair

_log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Self = TypeVar("_Self", bound="TrtResources")


def on_device(method: Callable[Concatenate[_Self, _P], _T]) -> Callable[Concatenate[_Self, _P], _T]:
    """Refuse after `close`; else run with the device current, and afterwards what was current before."""

    @functools.wraps(method)
    def run(self: _Self, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        self._enter()
        with self._driver.current():
            return method(self, *args, **kwargs)

    return run


class TrtResources:
    """Driver, engines, lanes and buffers of `TrtBackend`, whose parameters these are."""

    any_tile = False

    def __init__(
        self,
        engine_dir: str | os.PathLike[str],
        manifest: EngineManifest | None = None,
        *,
        runtime: Runtime = "tensorrt",
        precision: Precision | None = None,
        device: int = 0,
        lanes: int = 2,
        graphs: bool = True,
        module: Any = None,
        driver: Driver | None = None,
        kernels: TileKernels | None = None,
    ) -> None:
        if lanes < 1:
            raise ConfigError(f"lanes is {lanes}, expected at least 1")
        self.lanes = lanes
        self._root, self._runtime = Path(engine_dir), runtime
        self.manifest = manifest or load_manifest(self._root, verify=False)
        self._closed = False
        self._turn = self._next_turn = self._uploads = self._runs = 0
        self._source: Source | None = None
        self._scratch: dict[BatchShape, int] = {}
        self._shaped: dict[BatchShape, list[LaneNetworks]] = {}
        self._staging: list[int] = []
        self._fallback: dict[str, Engine] | None = None
        if driver is None:
            from yonos_trt.cuda.driver import CudaDriver

            driver = CudaDriver(device)
        self._driver = driver
        try:
            if kernels is None:
                from yonos_trt.cuda.kernels import CudaKernels

                kernels = CudaKernels()
            self._kernels = kernels
            self._trt = TensorRT(runtime, module=module)
            with driver.current():
                self._engines = self._open(precision)
                self.best_batch = min(engine.best_batch for engine in self._engines.values())
                self._scheduler = LaneScheduler(driver, lanes, slots=SLOTS_PER_LANE)
                self._order = self._scheduler.picture()
                self._networks = self._new_lanes()
        except BaseException:
            driver.close()
            raise
        self._active = lanes
        self._graphs = Graphs(driver, enabled=graphs)
        self._buffers = PlanBuffers(driver, self._scheduler, self.manifest)
        self._pictures = Memory(driver)
        self._moves = 0
        self.results = Results(driver)
        self._repair = Repair(
            driver,
            self._kernels,
            self._scheduler,
            self._buffers,
            self.manifest,
            self._networks,
            self._order,
            self._open_fp32,
        )
        self._nvtx = Nvtx()
        _log.info(
            "opened %s with %s %s on %s: %s, %d lanes",
            self.manifest.model.name, runtime, self._trt.version, driver.info.name,
            self._engines["step"].artifact.precision, lanes,
        )  # fmt: skip

    def _open(self, precision: Precision | None) -> dict[str, Engine]:
        info = self._driver.info
        picked = pick_engines(
            self.manifest,
            self._root,
            runtime=self._runtime,
            tensorrt_version=self._trt.version,
            compute_capability=info.compute_capability,
            gpu=info.name,
            precision=precision,
        )
        engines = {}
        for name, artifact in picked.items():
            raw = read_engine(self._root, artifact)
            cache = KernelCache(self._root, artifact, self._trt.version, info.name)
            stage = getattr(self.manifest.stages, name)
            weights = weights_of(self._root, name, stage, artifact)
            engines[name] = Engine(self._trt, name, stage, artifact, raw, cache=cache, weights=weights)
        check_dtypes(engines)
        return engines

    def _new_lanes(self) -> list[LaneNetworks]:
        return [LaneNetworks(self._engines, self.manifest, ("lane", i)) for i in range(self.lanes)]

    def _open_fp32(self) -> dict[str, Engine] | None:
        if all(engine.artifact.precision == "fp32" for engine in self._engines.values()):
            return None
        try:
            self._fallback = self._open("fp32")
        except (EngineNotFoundError, EngineVersionError, EngineDeviceError) as error:
            _log.info("no fp32 engines to fall back to: %s", error)
        return self._fallback

    def _enter(self) -> None:
        if self._closed:
            raise ClosedError("the TensorRT back end is closed; open the engine directory again")

    def close(self) -> None:
        """Wait for what is running and release everything; may be called twice."""
        if self._closed:
            return
        self._closed = True
        with self._driver.current():
            self._release()
        self._driver.close()

    def _release(self) -> None:
        with suppress(CudaError):  # a device that has failed cannot be waited for, but is let go all the same
            self._scheduler.drain()
        for engine in (*self._engines.values(), *(self._fallback or {}).values()):
            engine.save_cache()
        self._networks.clear()
        self._shaped.clear()
        self._engines, self._fallback = {}, None
        with suppress(CudaError):
            self._graphs.clear()
            for event in self._staging:
                self._driver.event_destroy(event)
            self._scheduler.close()
            self._buffers.free_all()
            self._pictures.free_all()

    @property
    def stream(self) -> Stream:
        """Our stream that results are complete on, for callers who order their work by events."""
        return Stream(self._scheduler.canvas_stream)

    @property
    def precision(self) -> str:
        """Precision of the engines."""
        self._enter()
        return str(self._engines["step"].artifact.precision)

    def use_lanes(self, lanes: int) -> None:
        """Use only the first `lanes` from the next canvas on; the others hold no buffers then."""
        self._active = max(1, min(lanes, self.lanes))

    @on_device
    def working_bytes(
        self, plan: TilePlan, lanes: int | None = None, *, color_fix: str = "wavelet"
    ) -> WorkingBytes:
        """Predict the memory that `plan` takes for an 8-bit picture, from the engines' own numbers.

        Host: page-locked copies of the picture and of finished rows. Device: buffers, weights and context.
        """
        shape = BatchShape.of(plan)
        if shape not in self._scratch:
            inputs, stream = stage_inputs(self.manifest, shape), self._scheduler.canvas_stream
            # Contexts for this question alone: those of the lanes keep their shapes.
            self._scratch[shape] = max(
                engine.context().set_shapes(inputs[name], stream) for name, engine in self._engines.items()
            )
        sizes = layout(
            plan,
            self.manifest,
            scratch_bytes=self._scratch[shape],
            dtypes=buffer_dtypes(self._engines),
        )
        weights = sum(engine.weights_bytes for engine in self._engines.values())
        finish = finish_layout(plan, self.manifest.model.scale, color_fix=color_fix)
        device = CONTEXT_BYTES + weights + sizes.total_bytes(lanes or self.lanes) + sum(finish.values())
        return WorkingBytes(2 * (sizes.shared["picture"] + finish["finished"]), device)
