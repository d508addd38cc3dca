"""`Session`: options, life cycle and array work of `yonos_trt.SR`, without files and kinds of pictures."""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from yonos_trt import pipeline
from yonos_trt.backends.base import Array, Backend
from yonos_trt.backends.choose import Request, find_model, open_backend, shipped_model, shipped_models
from yonos_trt.choices import is_number, whole_number
from yonos_trt.engine.manifest import EngineManifest, Precision, load_manifest
from yonos_trt.engine.restore import dial_of
from yonos_trt.errors import ClosedError, ConfigError, OutOfMemoryError, memory_that_runs_out
from yonos_trt.host import available_bytes, usable_cpus
from yonos_trt.images.reading import MAX_PIXELS
from yonos_trt.images.reduction import reduce_rows
from yonos_trt.planning import PicturePlan, plan_picture, smaller
from yonos_trt.tiles.color import MODES
from yonos_trt.tiles.noise import LARGEST_SEED

if TYPE_CHECKING:
    from yonos_trt.backends.ort_providers import Provider

_log = logging.getLogger(__name__)

_DEFAULT_SCALE = 4

_WHOLE_OR_NONE = ("lanes", "tile_px", "overlap_px", "batch", "threads", "memory_limit_mb",
                  "device_memory_limit_mb", "max_pixels")  # fmt: skip

LARGEST_BATCH = 1024
"""Beyond that a batch is a mistake, not a wish."""

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
        scale: float | None = None,
        runtime: str = "auto",
        device: int = 0,
        lanes: int | None = None,
        tile_px: int | None = None,
        overlap_px: int | None = None,
        batch: int | None = None,
        color_fix: str | None = None,
        seed: int = 0,
        memory_limit_mb: int | None = None,
        device_memory_limit_mb: int | None = None,
        threads: int | None = None,
        precision: Precision | None = None,
        providers: Sequence[Provider] | None = None,
        restore: float | None = None,
        max_pixels: int | None = MAX_PIXELS,
    ) -> None:
        if color_fix is not None and color_fix not in MODES:
            raise ConfigError(f"color_fix is {color_fix!r}, expected one of {', '.join(MODES)}")
        self._options: dict[str, Any] = {k: v for k, v in locals().items() if k != "self"}  # for pickling
        seed, device = whole_number("seed", seed), whole_number("device", device)
        lanes, tile_px, overlap_px, batch, threads, memory_limit_mb, device_memory_limit_mb, max_pixels = (
            None if self._options[name] is None else whole_number(name, self._options[name])
            for name in _WHOLE_OR_NONE
        )
        if not 0 <= seed <= LARGEST_SEED:
            raise ConfigError(f"seed is {seed}, expected 0 to 2^64 - 1")
        if scale is not None and not is_number(scale):
            raise ConfigError(f"scale is {scale!r}, expected a number from 1 up")
        if isinstance(providers, str):
            raise ConfigError(f"providers is {providers!r}, expected a list of names: [{providers!r}]")
        for name, limit in (
            ("memory_limit_mb", memory_limit_mb),
            ("device_memory_limit_mb", device_memory_limit_mb),
        ):
            if limit is not None and limit < 1:
                raise ConfigError(f"{name} is {limit}, expected at least 1")
        if batch is not None and not 1 <= batch <= LARGEST_BATCH:
            raise ConfigError(f"batch is {batch}, expected 1 to {LARGEST_BATCH}")
        self._host_limit_bytes = None if memory_limit_mb is None else memory_limit_mb << 20
        self._device_limit_bytes = None if device_memory_limit_mb is None else device_memory_limit_mb << 20
        if max_pixels is not None and max_pixels < 1:
            raise ConfigError(f"max_pixels is {max_pixels}, expected at least 1, or None for no limit")
        self.max_pixels = max_pixels
        self._request = Request(
            runtime=runtime,
            device=device,
            lanes=lanes,
            threads=threads,
            precision=precision,
            providers=None if providers is None else tuple(providers),
            restore=restore,
        )
        self.threads = self._request.threads or usable_cpus()
        self._wanted = {"tile_px": tile_px, "overlap_px": overlap_px, "batch": batch}
        self._seed = seed
        self.engine_dir = (
            shipped_model(scale or _DEFAULT_SCALE) if engine_dir is None else find_model(Path(engine_dir))
        )
        self._any_model = engine_dir is None and scale is None  # a size may take another one
        self._others: dict[str, Session] = {}  # those, by name; opened at first use
        self.manifest: EngineManifest = load_manifest(self.engine_dir, verify=False)
        if scale is not None and not 1 <= scale <= self.scale:
            raise ConfigError(
                f"scale is {scale}, expected 1 to {self.scale}, by which the model in {self.engine_dir} "
                "enlarges; leave the scale out, or name the engine directory of another model"
            )
        self.factor = self.scale if scale is None or scale == self.scale else scale
        self._color_fix: str = self.manifest.model.color_fix_or(color_fix)
        self.restore = dial_of(self.manifest, restore)
        self._backend: Backend | None = None
        self._at_most: tuple[int, int] | None = None
        self._closed = self._entered = False
        self._lock = threading.RLock()
        self.plan(1, 1)  # refuses a tile, overlap or batch that is not legal

    # -- Life cycle ---------------------------------------------------------------------------------------

    @property
    def scale(self) -> int:
        """Enlargement by the model, in both directions; `factor` is that of the results."""
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
            others, self._others = self._others, {}
        for other in others.values():
            other.close()

    def __enter__(self) -> Self:
        with self._lock:
            if self._entered:
                raise ClosedError(
                    "this SR is, or was, in a with block, whose end closes it for good; make a new one for "
                    "each block: with SR(engine_dir) as sr"
                )
            self.open()
            self._entered = True
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Give the options only: engines do not travel, the copy opens its own at first use."""
        if self._closed:
            raise ClosedError("this SR is closed and cannot be copied; make a new one: SR(engine_dir)")
        named = self._options["engine_dir"]
        if named is None or os.fspath(named) in shipped_models():
            return dict(self._options)
        return self._options | {"engine_dir": os.fspath(self.engine_dir.absolute())}

    def __setstate__(self, options: dict[str, Any]) -> None:
        type(self).__init__(self, **options)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _opened(self) -> Backend:
        with self._lock:
            if self._closed:
                raise ClosedError(
                    "this SR is closed, by close() or by the end of its with block; make a new one: "
                    "SR(engine_dir)"
                )
            if self._backend is None:
                with memory_that_runs_out(f"opening {self.engine_dir}"):
                    self._backend = open_backend(self.engine_dir, self.manifest, self._request)
            return self._backend

    # -- What it will do ----------------------------------------------------------------------------------

    def plan(self, height_lr_px: int, width_lr_px: int) -> PicturePlan:
        """Return tiles, lanes and predicted working memory for an input of this size; opens nothing.

        Device memory is predicted from the engines' own figures, so it is 0 before TensorRT engines are open.
        After memory ran out, no plan has larger tiles or batches than those that were enough.

        Raises
        ------
        ConfigError
            Nothing fits `memory_limit_mb` or `device_memory_limit_mb`.
        """
        backend = self._backend
        on_host = not self._request.runtime.startswith("tensorrt")
        return plan_picture(
            self.manifest,
            height_lr_px,
            width_lr_px,
            lanes=backend.lanes if backend is not None else self._request.lanes or 1,
            host_limit_bytes=self._host_limit_bytes,
            device_limit_bytes=self._device_limit_bytes,
            working_bytes=(
                None if backend is None else partial(backend.working_bytes, color_fix=self._color_fix)
            ),
            shrink=on_host if backend is None else backend.any_tile,
            best_batch=1 if backend is None else backend.best_batch,
            at_most=self._at_most,
            **self._wanted,
        )

    def free_bytes(self) -> int:
        """Return the host memory a picture's result and the work on it may take: free, and in the limit."""
        return min(available_bytes(), self._host_limit_bytes or sys.maxsize)

    def info(self) -> dict[str, Any]:
        """Describe the model, its licence chain, the artifacts and the options; opens nothing."""
        model, tiles = self.manifest.model, self.manifest.tiles
        return {
            "engine_dir": str(self.engine_dir),
            "model": model.name,
            "scale": model.scale,
            "latent": {"channels": model.latent_channels, "factor": model.latent_factor,
                       "output_channels": model.channels("z_0")},
            "start": model.start,
            "timestep": model.timestep,
            "origin": None if (origin := model.origin) is None else {
                name: getattr(origin, name) for name in origin.__struct_fields__},
            "weights_sha256": model.weights_sha256,
            "training": model.training,
            "licences": [{"part": x.part, "licence": x.licence, "source": x.source} for x in model.licences],
            "tiles": {name: getattr(tiles, name) for name in tiles.__struct_fields__},
            "artifacts": {
                name: [
                    {"runtime": a.runtime, "precision": a.precision, "file": a.file, "bytes": a.bytes,
                     "dial": None if a.dial is None else a.dial.file, "restore": a.restore,
                     "compute_capability": list(a.compute_capability), "tensorrt_version": a.tensorrt_version}
                    for a in stage.artifacts
                ]
                for name, stage in self.manifest.stages.items()
            },
            "end_to_end_psnr_db": dict(self.manifest.parity.end_to_end_psnr_db),
            "runtime": self._request.runtime,
            "backend": type(self._backend).__name__ if self._backend is not None else None,
            "computes_in": getattr(self._backend, "precision", None),
            "color_fix": self._color_fix,
            "seed": self._seed,
            "restore": self.restore,
            "threads": self.threads,
        }  # fmt: skip

    # -- Arrays -------------------------------------------------------------------------------------------

    def _array(
        self,
        rgb: Array,
        on_tiles: OnTiles | None,
        *,
        size_px: tuple[int, int],
        color_fix: str | None = None,
    ) -> Array:
        shape = (*size_px, 3)
        try:
            out = np.empty(shape, rgb.dtype)
        except MemoryError as error:
            raise OutOfMemoryError(
                f"the result of {shape[0]} x {shape[1]} px does not fit into host memory",
                asked_bytes=math.prod(shape) * rgb.dtype.itemsize,
                free_bytes=available_bytes(),
                hint="use upscale_file with rows='always' (--stream always), which writes row by row",
            ) from error
        y = 0
        with closing(
            self._sized_rows(rgb, on_tiles, size_px=size_px, color_fix=color_fix, lend=True)
        ) as blocks:
            for rows in blocks:
                out[y : y + len(rows)] = rows
                y += len(rows)
        return out

    def _sized_rows(
        self,
        rgb: Array,
        on_tiles: OnTiles | None,
        *,
        size_px: tuple[int, int],
        color_fix: str | None = None,
        lend: bool = False,
    ) -> Generator[Array, None, None]:
        """Yield finished rows of the result, reduced to `size_px` where that is not the model's own size."""
        full_px = (rgb.shape[0] * self.scale, rgb.shape[1] * self.scale)
        reduced = size_px != full_px
        with closing(self._rows(rgb, on_tiles, color_fix=color_fix, lend=lend or reduced)) as blocks:
            yield from reduce_rows(blocks, full_px, size_px) if reduced else blocks

    def _rows(
        self,
        rgb: Any,
        on_tiles: OnTiles | None,
        *,
        color_fix: str | None = None,
        backend: Backend | None = None,
        lend: bool = False,
    ) -> Generator[Any, None, None]:
        """Yield finished rows; when memory runs out, go on from the next row with a smaller plan."""
        backend = backend or self._opened()
        emitted = 0
        while True:
            planned = self.plan(*rgb.shape[:2])
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
                        first_row_px=emitted,
                        on_tiles=on_tiles,
                        lend=lend,
                    )
                ) as blocks:
                    for rows in blocks:
                        emitted += len(rows)
                        yield rows
                return
            except (OutOfMemoryError, MemoryError) as error:
                self._shrink(planned, error)

    def _shrink(self, planned: PicturePlan, error: OutOfMemoryError | MemoryError) -> None:
        """Plan smaller from now on, for this picture and all later ones.

        Raises
        ------
        OutOfMemoryError
            `planned` was the smallest.
        """
        at_most = smaller(planned.tiles, self.manifest)
        if at_most is None:
            if isinstance(error, OutOfMemoryError):
                raise error
            raise OutOfMemoryError(
                f"host memory ran out with the smallest tiles ({str(error) or 'no size was named'})",
                free_bytes=available_bytes(),
            ) from error
        self._at_most = at_most
        _log.warning(
            "%s; going on with tiles of at most %d px, batch %d, for this picture and later ones",
            str(error) or "host memory ran out", *at_most,
        )  # fmt: skip
