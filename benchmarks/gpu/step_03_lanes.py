"""Step 3: the whole run time on the GPU: any number of lanes, with and without graphs, gives the same bits.

The networks only copy (tests/copy_networks.py), so nothing but the driver and the kernels is needed and the
NumPy back end tells the exact picture. With ``--engine-dir`` real engines run as well.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import steps

SCALE = 4


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def tiles_of(manifest: Any, image: np.ndarray, batch: int) -> Any:
    from yonos_trt.tiles.plan import plan_tiles

    tiles, scale = manifest.tiles, manifest.model.scale
    return plan_tiles(
        image.shape[0] * scale,
        image.shape[1] * scale,
        tile_px=tiles.default_px,
        overlap_px=tiles.overlap_px,
        multiple_px=tiles.multiple_px,
        smallest_px=tiles.smallest_px,
        batch=batch,
    )


def compare(
    make: Any, image: np.ndarray, plan: Any, expected: np.ndarray | None, repeats: int
) -> dict[str, Any]:
    """Run all combinations; every picture must be the first one (or `expected`)."""
    from yonos_trt import pipeline

    results: dict[str, Any] = {}
    for graphs in (False, True):
        for lanes in (1, 2, 4):
            backend = make(lanes, graphs)
            times = []
            for _ in range(repeats):
                start = time.perf_counter()
                got = pipeline.upscale_array(image, backend, plan=plan, seed=1, color_fix="wavelet")
                times.append(1e3 * (time.perf_counter() - start))
                if expected is None:
                    expected = got
                if not np.array_equal(got, expected):
                    where = np.argwhere(got != expected)[0].tolist()
                    raise AssertionError(f"lanes={lanes}, graphs={graphs}: other bits from {where} on")
            with backend.driver.current():
                free, total = backend.driver.memory()
            results[f"lanes {lanes}, {'graphs' if graphs else 'no graphs'}"] = {
                "first_ms": times[0],
                "median_ms": steps.median(times[1:]),
                "predicted_mib": backend.working_bytes(plan).device >> 20,
                "device_used_mib": (total - free) >> 20,
                "waits": waits(backend, image, plan, repeats),
            }
            backend.close()
    return results


def waits(backend: Any, image: np.ndarray, plan: Any, repeats: int) -> dict[str, Any]:
    """Time pictures whose host waits for a row of tiles when the next one is queued, and for each at once."""
    from yonos_trt import pipeline

    source, results, first = backend.upload(image), {}, None
    options = {"seed": 1, "color_fix": "wavelet", "lanes": backend.lanes, "threads": 1, "lend": True}
    out = np.empty((plan.height_px, plan.width_px, 3), image.dtype)
    for ahead in (True, False):
        times = []
        for _ in range(repeats):
            start, y = time.perf_counter(), 0
            blocks = pipeline._rows(
                source,
                backend,
                plan,
                0,
                pipeline.Timings(),
                ahead=ahead,
                on_tiles=None,
                cancel=None,
                **options,
            )
            for rows in blocks:
                out[y : y + len(rows)] = rows
                y += len(rows)
            times.append(1e3 * (time.perf_counter() - start))
        first = out.copy() if first is None else first
        if not np.array_equal(out, first):
            raise AssertionError("rows that were queued ahead have other bits")
        results["a row of tiles ahead" if ahead else "each at once"] = {"median_ms": steps.median(times[1:])}
    return results


def copies(image: np.ndarray, open_device: Any, *, repeats: int = 6) -> dict[str, Any]:
    """Networks that only copy, against the NumPy back end; `open_device` gives a driver and its kernels."""
    from copy_networks import CopyTensorRT, numpy_backend
    from fake_tensorrt import write_engines

    from yonos_trt import pipeline
    from yonos_trt.trt.backend import TrtBackend

    with tempfile.TemporaryDirectory() as folder:
        manifest = write_engines(Path(folder), capability=())
        plan = tiles_of(manifest, image, 2)
        expected = pipeline.upscale_array(
            image, numpy_backend(manifest), plan=plan, seed=1, color_fix="wavelet"
        )

        def make(lanes: int, graphs: bool) -> Any:
            driver, kernels = open_device()
            return TrtBackend(
                folder,
                lanes=lanes,
                graphs=graphs,
                driver=driver,
                kernels=kernels,
                module=CopyTensorRT(driver),
            )

        return compare(make, image, plan, expected, repeats)


def engines(image: np.ndarray, engine_dir: Path, runtime: str) -> dict[str, Any]:
    """Real engines, each combination against the first."""
    from yonos_trt.engine.manifest import load_manifest
    from yonos_trt.trt.backend import TrtBackend

    manifest = load_manifest(engine_dir)

    def make(lanes: int, graphs: bool) -> Any:
        return TrtBackend(engine_dir, manifest, runtime=runtime, lanes=lanes, graphs=graphs)  # type: ignore[arg-type]

    return compare(make, image, tiles_of(manifest, image, 1), None, 6)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine-dir", type=Path, help="engine directory to run as well")
    parser.add_argument("--runtime", default="tensorrt-rtx", choices=("tensorrt", "tensorrt-rtx"))
    parser.add_argument("--wheels", type=Path, help="folder of TensorRT-RTX wheels, as in step 1")


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Compare lanes and graphs bit for bit."""
    from yonos_trt.cuda.driver import CudaDriver
    from yonos_trt.cuda.kernels import CudaKernels

    result = {"copies": copies(picture(509, 701), lambda: (CudaDriver(), CudaKernels()))}
    if chosen.engine_dir:
        if chosen.wheels:
            from step_01_tensorrt_rtx import install

            install(chosen.wheels)
        result["engines"] = engines(picture(256, 384), chosen.engine_dir, chosen.runtime)
    return result


if __name__ == "__main__":
    sys.exit(steps.main("03_lanes", run, options))
