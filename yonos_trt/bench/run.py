"""Time every stage of the data path on this machine: `measure`, behind ``yonos bench``.

What is inside the clock: one picture of random values in host memory goes through `yonos_trt.pipeline` and
comes back into host memory as uint8, colour fix included. Opening the engines, the warm-up and files are
outside. A stage's sample is one call for one batch of tiles on one lane; a picture's sample is the wall time
of the whole call, so it includes whatever lies between the stages. On a GPU the stages of a batch are one
CUDA graph, which has no stages to time from outside: only pictures are timed there.

Both conventions of NVIDIA's trtexec are reported. Version 10 counts the copies to and from the device,
version 11 leaves them out; the wall time of a picture is the first, the same without the stages upload and
download is the second.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from yonos_trt.backends.base import Array, Backend
from yonos_trt.backends.choose import Request, open_backend
from yonos_trt.backends.host import HostBackend
from yonos_trt.bench.machine import DeviceMemory, PeakMemory, describe_machine
from yonos_trt.bench.peaks import Peaks, measure_peaks
from yonos_trt.bench.stages import NETWORKS, Samples, latency, rows, stage_table
from yonos_trt.engine.manifest import EngineManifest, Precision, load_manifest
from yonos_trt.errors import ConfigError, EngineNotFoundError, YonosError
from yonos_trt.host import usable_cpus
from yonos_trt.pipeline import upscale_array
from yonos_trt.planning import plan_picture
from yonos_trt.tiles.noise import LARGEST_SEED
from yonos_trt.tiles.plan import TilePlan

CONVENTIONS = {
    "with_transfers": "trtexec 10: copies to and from the device are inside the clock",
    "without_transfers": "trtexec 11: copies to and from the device are outside the clock",
}


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """What to time.

    Attributes
    ----------
    engine_dir : Path
        Engine directory.
    runtimes, lanes, tiles_px : tuples
        Every combination is timed; None in `tiles_px` is the model's default.
    batch : int or None
        Tiles per batch.
    threads : int or None
        Host threads; None: all usable CPUs.
    precision : str or None
        Which artifacts.
    device : int
        CUDA device number.
    size_lr_px : (int, int)
        Height and width of the input picture.
    warm_up : int
        Pictures before the clock starts.
    iterations : int
        Pictures at least.
    duration_s : float
        Seconds at least; both have to be reached, as in trtexec.
    percentiles : tuple of float
        Which percentiles of the latencies to report.
    color_fix : str or None
        As in `SR`.
    seed : int
        Of the picture and of the noise field.
    gflop : bool
        Count the arithmetic of the networks (one run of each graph without optimisations, on the CPU).
    """

    engine_dir: Path
    runtimes: tuple[str, ...] = ("auto",)
    lanes: tuple[int | None, ...] = (None,)
    tiles_px: tuple[int | None, ...] = (None,)
    batch: int | None = None
    threads: int | None = None
    precision: Precision | None = None
    device: int = 0
    size_lr_px: tuple[int, int] = (256, 256)
    warm_up: int = 1
    iterations: int = 5
    duration_s: float = 3.0
    percentiles: tuple[float, ...] = (50.0, 90.0, 99.0)
    color_fix: str | None = None
    seed: int = 0
    gflop: bool = True

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.warm_up < 0 or self.duration_s < 0:
            raise ConfigError(
                f"iterations {self.iterations}, warm_up {self.warm_up} and duration_s {self.duration_s}, "
                "expected at least 1, 0 and 0"
            )
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ConfigError(f"seed is {self.seed}, expected 0 to 2^64 - 1")
        if not self.percentiles or not all(0 < p <= 100 for p in self.percentiles):
            raise ConfigError(f"percentiles are {self.percentiles}, expected numbers above 0, up to 100")
        if not (self.runtimes and self.lanes and self.tiles_px):
            raise ConfigError("runtimes, lanes and tiles_px name nothing, expected at least one of each")


def measure(config: BenchConfig) -> dict[str, Any]:
    """Time every combination and return a document of plain values, ready for JSON.

    Raises
    ------
    ConfigError
        An option is out of range.
    YonosError
        Not one runtime could be opened; the error is that of the last.
    """
    manifest = load_manifest(config.engine_dir, verify=False)
    requests = [_request(config, runtime, lanes) for runtime in config.runtimes for lanes in config.lanes]
    machine = describe_machine()
    peaks = measure_peaks()
    entries: list[dict[str, Any]] = []
    missing: list[dict[str, str]] = []
    error: YonosError | None = None
    for request in requests:
        if any(found["runtime"] == request.runtime for found in missing):
            continue
        try:
            entries += _runtime(config, manifest, request, peaks)
        except ConfigError:
            raise
        except YonosError as failure:
            error = failure
            reason = str(failure).replace(str(config.engine_dir), config.engine_dir.name)
            missing.append({"runtime": request.runtime, "reason": reason})
    if not entries:
        raise error or EngineNotFoundError(f"nothing to time in {config.engine_dir}")
    model = manifest.model
    return {
        "kind": "yonos-bench",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "peaks": peaks.as_dict(),
        "options": {**asdict(config), "engine_dir": config.engine_dir.name},
        "model": {"name": model.name, "scale": model.scale, "weights_sha256": model.weights_sha256},
        "picture": {"size_lr_px": list(config.size_lr_px), "dtype": "uint8", "seed": config.seed},
        "conventions": CONVENTIONS,
        "entries": entries,
        "not_run": missing,
        "rows": [row for entry in entries for row in rows(model.name, entry)],
    }


def _request(config: BenchConfig, runtime: str, lanes: int | None) -> Request:
    return Request(
        runtime=runtime,
        device=config.device,
        lanes=lanes,
        threads=config.threads,
        precision=config.precision,
    )


# ---------------------------------------------------------------------------------------------------------
# One combination


def _runtime(
    config: BenchConfig, manifest: EngineManifest, request: Request, peaks: Peaks
) -> Iterator[dict[str, Any]]:
    """Time all tile sizes with one opened backend."""
    with PeakMemory() as opening:
        backend = open_backend(config.engine_dir, manifest, request)
    precision = getattr(backend, "precision", request.precision) or "fp32"
    try:
        for tile_px in config.tiles_px:
            planned = plan_picture(
                manifest,
                *config.size_lr_px,
                tile_px=tile_px,
                batch=config.batch,
                lanes=backend.lanes,
                shrink=backend.any_tile,
            )
            entry = _picture(config, backend, planned.tiles, peaks, precision)
            yield {
                "runtime": request.runtime,
                "backend": type(backend).__name__,
                "precision": precision,
                "lanes": backend.lanes,
                "threads": request.threads or usable_cpus(),
                "tile_px": tile_px or manifest.tiles.default_px,
                "tile_size_px": [planned.tiles.tile_h_px, planned.tiles.tile_w_px],
                "overlap_px": planned.tiles.overlap_px,
                "batch": planned.tiles.batch,
                "tiles": len(planned.tiles.ys) * len(planned.tiles.xs),
                "opening_mib": opening.as_dict()["added_mib"],
                **entry,
            }
    finally:
        backend.close()


def _device_memory(config: BenchConfig, backend: Backend) -> AbstractContextManager[DeviceMemory | None]:
    """Watch the GPU's memory where one is used."""
    return nullcontext() if isinstance(backend, HostBackend) else DeviceMemory(config.device)


def _picture(
    config: BenchConfig, backend: Backend, plan: TilePlan, peaks: Peaks, precision: str
) -> dict[str, Any]:
    rng = np.random.default_rng(config.seed)
    image = rng.integers(0, 256, (*config.size_lr_px, 3), np.uint8)

    def run(samples: Samples) -> Array:
        return upscale_array(
            image,
            backend,
            plan=plan,
            seed=config.seed,
            color_fix=backend.manifest.model.color_fix_or(config.color_fix),
            threads=config.threads or usable_cpus(),
            timings=samples,
        )

    host = isinstance(backend, HostBackend)
    samples = Samples()
    wall: list[float] = []
    device: list[float] = []
    with PeakMemory() as memory, _device_memory(config, backend) as on_device:
        for _ in range(config.warm_up):
            run(Samples())
        end = time.perf_counter() + config.duration_s
        while len(wall) < config.iterations or time.perf_counter() < end:
            before = samples.seconds["upload"] + samples.seconds["download"]
            start = time.perf_counter()
            out = run(samples)
            wall.append(time.perf_counter() - start)
            device.append(wall[-1] - (samples.seconds["upload"] + samples.seconds["download"] - before))
    assert out.shape == (plan.height_px, plan.width_px, 3)
    stages = []
    if host:
        counted = config.engine_dir if config.gflop else None
        stages = stage_table(
            samples, backend.manifest, plan, peaks, config.percentiles, precision=precision, graphs=counted
        )
    networks = sum(samples.seconds[stage] for stage in NETWORKS)
    pixels = plan.height_px * plan.width_px
    return {
        "pictures": len(wall),
        "picture": {
            "with_transfers": latency(wall, config.percentiles, pixels),
            "without_transfers": latency(device, config.percentiles, pixels) if host else None,
        },
        "overhead": 1 - networks / sum(wall) if host and backend.lanes == 1 else None,
        "stages": stages,
        "memory": memory.as_dict() | {"device": on_device.as_dict() if on_device is not None else None},
    }
