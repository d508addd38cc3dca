"""`Session`: options, life cycle and array work of `yonos_trt.SR`, without files and kinds of pictures."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from yonos_trt import pipeline
from yonos_trt.backend import Array, Backend
from yonos_trt.color import MODES
from yonos_trt.errors import ClosedError, ConfigError, OutOfMemoryError
from yonos_trt.host_cpus import usable_cpus
from yonos_trt.host_memory import available_bytes
from yonos_trt.manifest import EngineManifest, Precision, load_manifest
from yonos_trt.noise import LARGEST_SEED
from yonos_trt.planning import PicturePlan, plan_picture, smaller
from yonos_trt.runtimes import Request, find_model, open_backend, shipped_model

__all__ = ["OnTiles", "Session"]

_log = logging.getLogger(__name__)

_DEFAULT_SCALE = 4

OnTiles = Callable[[int, int], None]
"""Called with (tiles done, tiles in all)."""


class Session:
    """An engine directory with the options it is run with; opened at first use.

    Parameters, errors and life cycle are those of `yonos_trt.SR`, which adds the kinds of pictures.
    """

    def __init__(
        self,
        engine_dir: str | os.PathLike[str] | None = None,
        *,
        scale: int | None = None,
        runtime: str = "auto",
        device: int = 0,
        lanes: int | None = None,
        tile_px: int | None = None,
        overlap_px: int | None = None,
        batch: int | None = None,
        color_fix: str = "wavelet",
        seed: int = 0,
        memory_limit_mb: int | None = None,
        threads: int | None = None,
        precision: Precision | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        if color_fix not in MODES:
            raise ConfigError(f"color_fix is {color_fix!r}, expected one of {', '.join(MODES)}")
        if not 0 <= seed <= LARGEST_SEED:
            raise ConfigError(f"seed is {seed}, expected 0 to 2^64 - 1")
        if memory_limit_mb is not None and memory_limit_mb < 1:
            raise ConfigError(f"memory_limit_mb is {memory_limit_mb}, expected at least 1")
        self._limit_bytes = None if memory_limit_mb is None else memory_limit_mb << 20
        self._request = Request(
            runtime=runtime,
            device=device,
            lanes=lanes,
            threads=threads,
            precision=precision,
            providers=tuple(providers),
            memory_limit_bytes=self._limit_bytes,
        )
        self.threads = threads or usable_cpus()
        self._wanted = {"tile_px": tile_px, "overlap_px": overlap_px, "batch": batch}
        self._color_fix = color_fix
        self._seed = seed
        self.engine_dir = (
            shipped_model(scale or _DEFAULT_SCALE) if engine_dir is None else find_model(Path(engine_dir))
        )
        self.manifest: EngineManifest = load_manifest(self.engine_dir, verify=False)
        if scale not in (None, self.scale):
            raise ConfigError(
                f"scale is {scale}, but the model in {self.engine_dir} enlarges by {self.scale}; leave the "
                "scale out, or name the engine directory of another model"
            )
        self._backend: Backend | None = None
        self._closed = False
        self._lock = threading.RLock()
        self.plan(1, 1)  # refuses a tile, overlap or batch that is not legal

    # -- Life cycle ---------------------------------------------------------------------------------------

    @property
    def scale(self) -> int:
        """Enlargement in both directions."""
        return self.manifest.model.scale

    @property
    def backend(self) -> Backend:
        """The opened backend, for callers of `yonos_trt.pipeline`; opens it if need be."""
        return self._opened()

    def open(self) -> Self:
        """Open the engines now rather than at first use."""
        self._opened()
        return self

    def close(self) -> None:
        """Release the engines; waits for a call that is running in another thread."""
        with self._lock:
            self._closed = True
            if self._backend is not None:
                self._backend.close()
                self._backend = None

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _opened(self) -> Backend:
        with self._lock:
            if self._closed:
                raise ClosedError("this SR is closed; make a new one: SR(engine_dir)")
            if self._backend is None:
                self._backend = open_backend(self.engine_dir, self.manifest, self._request)
            return self._backend

    # -- What it will do ----------------------------------------------------------------------------------

    def plan(self, height_lr_px: int, width_lr_px: int) -> PicturePlan:
        """Return tiles, lanes and predicted working memory for an input of this size; opens nothing.

        Once TensorRT engines are open, the prediction is of device memory and comes from their own figures.

        Raises
        ------
        ConfigError
            Nothing fits `memory_limit_mb`.
        """
        backend = self._backend
        peak = getattr(backend, "peak_bytes", None)
        on_host = not self._request.runtime.startswith("tensorrt")
        return plan_picture(
            self.manifest,
            height_lr_px,
            width_lr_px,
            lanes=backend.lanes if backend is not None else self._request.lanes or 1,
            limit_bytes=self._limit_bytes,
            peak_bytes=peak if peak is None else partial(peak, color_fix=self._color_fix),
            level=on_host if backend is None else getattr(backend, "any_tile", False),
            **self._wanted,
        )

    def free_bytes(self) -> int:
        """Return the host memory a picture's result and the work on it may take: free, and in the limit."""
        return min(available_bytes(), self._limit_bytes or sys.maxsize)

    def info(self) -> dict[str, Any]:
        """Describe the model, its licence chain, the artifacts and the options; opens nothing."""
        model, tiles = self.manifest.model, self.manifest.tiles
        return {
            "engine_dir": str(self.engine_dir),
            "model": model.name,
            "scale": model.scale,
            "latent": {"channels": model.latent_channels, "factor": model.latent_factor},
            "timestep": model.timestep,
            "weights_sha256": model.weights_sha256,
            "training": model.training,
            "licences": [{"part": x.part, "licence": x.licence, "source": x.source} for x in model.licences],
            "tiles": {name: getattr(tiles, name) for name in tiles.__struct_fields__},
            "artifacts": {
                name: [
                    {"runtime": a.runtime, "precision": a.precision, "file": a.file, "bytes": a.bytes,
                     "compute_capability": list(a.compute_capability), "tensorrt_version": a.tensorrt_version}
                    for a in stage.artifacts
                ]
                for name, stage in self.manifest.stages.items()
            },
            "end_to_end_psnr_db": dict(self.manifest.parity.end_to_end_psnr_db),
            "runtime": self._request.runtime,
            "backend": type(self._backend).__name__ if self._backend is not None else None,
            "color_fix": self._color_fix,
            "seed": self._seed,
            "threads": self.threads,
        }  # fmt: skip

    # -- Arrays -------------------------------------------------------------------------------------------

    def _array(self, rgb: Array, on_tiles: OnTiles | None, *, color_fix: str | None = None) -> Array:
        out = np.empty((rgb.shape[0] * self.scale, rgb.shape[1] * self.scale, 3), rgb.dtype)
        y = 0
        with closing(self._rows(rgb, on_tiles, color_fix=color_fix)) as blocks:
            for rows in blocks:
                out[y : y + len(rows)] = rows
                y += len(rows)
        return out

    def _rows(
        self, rgb: Array, on_tiles: OnTiles | None, *, color_fix: str | None = None
    ) -> Generator[Array, None, None]:
        """Yield finished rows; when memory runs out, go on from the same row with a smaller plan."""
        backend = self._opened()
        planned: PicturePlan | None = self.plan(*rgb.shape[:2])
        emitted = 0
        while planned is not None:
            y = 0
            try:
                with closing(
                    pipeline.upscale(
                        rgb,
                        backend,
                        plan=planned.tiles,
                        seed=self._seed,
                        color_fix=color_fix or self._color_fix,
                        lanes=planned.lanes,
                        threads=self.threads,
                        on_tiles=on_tiles,
                    )
                ) as blocks:
                    for rows in blocks:
                        fresh = rows[max(0, emitted - y) :]
                        y += len(rows)
                        if len(fresh):
                            emitted = y
                            yield fresh
                return
            except OutOfMemoryError as error:
                next_plan = smaller(planned, self.manifest)
                if next_plan is None:
                    raise
                _log.warning(
                    "%s; going on with tiles of %d x %d px, batch %d",
                    error, next_plan.tiles.tile_h_px, next_plan.tiles.tile_w_px, next_plan.tiles.batch,
                )  # fmt: skip
                planned = next_plan
