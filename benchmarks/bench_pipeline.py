"""Whole pictures: by size, tile, batch and lanes, what they cost beside the networks, folders, and memory.

    python -m pytest benchmarks/bench_pipeline.py
    YONOS_BENCH_FULL=1 python -m pytest benchmarks/bench_pipeline.py

The first takes some points of the sweep and small pictures, two minutes; the second all of them and a picture
of 6 000 x 4 500 px. Uses the shipped x4 model; YONOS_BENCH_ENGINE names another engine directory. A call
returns when its result is in host memory, so nothing runs on behind the clock; every result is checked.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import machine
from PIL import Image

from benchmarks.alternate import alternate, estimate, ratio
from benchmarks.machine import commit, describe_model
from benchmarks.sweep import FULL, QUICK, Point, check, drawing, exponent, measured_memory, opened
from yonos_trt.backends.choose import shipped_models
from yonos_trt.bench.machine import describe_machine
from yonos_trt.cli.file_stages import FileStages
from yonos_trt.cli.job_run import run_jobs
from yonos_trt.cli.jobs import Job
from yonos_trt.cli.progress import Silent
from yonos_trt.errors import YonosError
from yonos_trt.host import usable_cpus
from yonos_trt.pipeline import Timings, upscale
from yonos_trt.sr import SR

ALL = os.environ.get("YONOS_BENCH_FULL") == "1"
SESSIONS = ("encode", "step", "decode")
LARGEST_OVERHEAD = 0.08
"""Share of the wall time that may be spent outside the ONNX Runtime sessions."""
LARGEST_EXTRA_MB = 400
"""Memory a large picture may take above the decoded input."""
LARGEST_EXPONENT = 1.15
"""Of the size, in the time: 1 is linear cost."""
LARGEST_FOLDER_RATIO = 1.1
"""Time of a folder over the sum of its files' parts: overlapping may gain nothing, but not cost."""


@pytest.fixture(scope="module")
def engine_dir() -> Path:
    """The shipped x4 model, or the directory named by YONOS_BENCH_ENGINE."""
    named = os.environ.get("YONOS_BENCH_ENGINE")
    found = Path(named) if named else shipped_models().get("lite-x4")
    if found is None:
        pytest.skip("no shipped x4 model; name an engine directory with YONOS_BENCH_ENGINE")
    return found


@pytest.fixture(scope="module")
def origin() -> dict[str, Any]:
    """What every row says about where it comes from."""
    return {**describe_machine(), "commit": commit()}


# ---------------------------------------------------------------------------------------------------------
# The sweep


@pytest.mark.parametrize("point", FULL if ALL else QUICK, ids=str)
def bench_picture(benchmark: Any, engine_dir: Path, origin: dict[str, Any], point: Point) -> None:
    image = drawing(point.height_lr_px, point.width_lr_px)
    threads = usable_cpus()
    memory: dict[str, Any] = {}
    try:
        with opened(engine_dir, point, threads=threads) as sr:
            planned = sr.plan(*image.shape[:2])
            with measured_memory(memory):
                out = benchmark.pedantic(sr.upscale, (image,), rounds=3, warmup_rounds=1)
            manifest, precision = sr.manifest, getattr(sr.backend, "precision", "fp32")
    except YonosError as error:
        pytest.skip(f"not run: {error}")
    pixels = planned.tiles.height_px * planned.tiles.width_px
    seconds = benchmark.stats.stats.median
    tile_px = planned.tiles.tile_h_px * planned.tiles.tile_w_px
    benchmark.extra_info |= {
        **origin,
        **point.as_dict(),
        **memory,
        "model": describe_model(manifest),
        "precision": precision,
        "threads": threads,
        "tiles": planned.tiles.tiles,
        "tile_size_px": [planned.tiles.tile_h_px, planned.tiles.tile_w_px],
        "overlap_px": planned.tiles.overlap_px,
        "mpx_s": pixels / seconds / 1e6,
        "tile_pixels_per_pixel": planned.tiles.tiles * tile_px / pixels,
        "predicted_mib": planned.host_bytes / 2**20,
        "psnr_to_input_db": check(image, out, manifest.model.scale),
    }
    print(
        f"\n{point}: {1e3 * seconds:.0f} ms, {pixels / seconds / 1e6:.2f} Mpx/s, {planned.tiles.tiles} tiles "
        f"of {planned.tiles.tile_h_px} x {planned.tiles.tile_w_px}, peak {memory['peak_rss_mib']:.0f} MiB"
    )


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def bench_cost_is_linear(benchmark: Any, engine_dir: Path, origin: dict[str, Any], runtime: str) -> None:
    """Pictures of 1, 4 and 16 times the pixels in turns; the smallest has several tiles already.

    The exponent is that of the CPU seconds, the rates are of the wall time.
    """
    sides = (256, 512, 1024) if ALL else (192, 384)
    pictures = {side: drawing(side, side) for side in sides}
    try:
        with opened(engine_dir, Point(runtime=runtime), threads=usable_cpus()) as sr:
            cpu_seconds: dict[int, list[float]] = {side: [] for side in sides}

            def call(side: int) -> None:
                start = time.process_time()
                sr.upscale(pictures[side])
                cpu_seconds[side].append(time.process_time() - start)

            calls: dict[str, Callable[[], object]] = {str(side): partial(call, side) for side in sides}
            seconds = benchmark.pedantic(alternate, (calls,), {"rounds": 5}, rounds=1)
            check(pictures[sides[0]], sr.upscale(pictures[sides[0]]), sr.scale)
            pixels = {side: (side * sr.scale) ** 2 for side in sides}
            model = describe_model(sr.manifest)
    except YonosError as error:
        pytest.skip(f"not run: {error}")
    medians = {side: estimate(seconds[str(side)]) for side in sides}
    # CPU seconds: other work on the machine adds little to them, and much to the wall time of a long run
    power = exponent([pixels[side] for side in sides], [min(cpu_seconds[side]) for side in sides])
    rates = {side: pixels[side] / medians[side].value / 1e6 for side in sides}
    benchmark.extra_info |= {
        **origin,
        "model": model,
        "runtime": runtime,
        "exponent": power,
        "sizes": {
            f"{side}x{side}": {"seconds": medians[side].as_dict(), "mpx_s": rates[side]} for side in sides
        },
    }
    listed = ", ".join(f"{side} x {side} px {rate:.2f} Mpx/s" for side, rate in rates.items())
    print(f"\n{runtime}: {listed}; the CPU seconds grow with size^{power:.3f}")
    assert power <= LARGEST_EXPONENT


# ---------------------------------------------------------------------------------------------------------
# Folders


def bench_folder(benchmark: Any, engine_dir: Path, origin: dict[str, Any], tmp_path: Path) -> None:
    """Time a folder with overlapping stages, over the same files one by one and over the sum of parts."""
    count, side = (8, 384) if ALL else (4, 160)
    jobs = []
    for index in range(count):
        Image.fromarray(drawing(side, side + 8 * index)).save(tmp_path / f"{index}.png")
        jobs.append(Job(tmp_path / f"{index}.png", tmp_path / "out" / f"{index}.png"))
    parts: list[float] = []

    class Seconds(Silent):
        def finish(self, name: str, **facts: Any) -> None:
            parts.append(facts["seconds"])

    with SR(engine_dir, runtime="onnx") as sr:
        stages = FileStages(sr)

        def run(*, overlap: bool) -> dict[str, bytes]:
            parts.clear()
            outcome = run_jobs(jobs, stages, Seconds(), existing="overwrite", overlap=overlap)
            assert len(outcome.done) == count
            return {job.target.name: job.target.read_bytes() for job in jobs}

        sums = []

        def plain() -> dict[str, bytes]:
            files = run(overlap=False)
            sums.append(sum(parts))
            return files

        assert run(overlap=True) == plain()  # also the warm-up
        sums.clear()
        subjects: dict[str, Callable[[], object]] = {
            "overlapped": lambda: run(overlap=True),
            "one by one": plain,
        }
        rounds = {"rounds": 5, "warm_up": 0}
        seconds = benchmark.pedantic(alternate, (subjects,), rounds, rounds=1)
        model = describe_model(sr.manifest)
    over_parts = ratio(seconds["overlapped"], sums)
    over_plain = ratio(seconds["overlapped"], seconds["one by one"])
    benchmark.extra_info |= {
        **origin,
        "model": model,
        "files": count,
        "side_lr_px": side,
        "seconds": {name: estimate(values).as_dict() for name, values in seconds.items()},
        "over_sum_of_parts": over_parts.as_dict(),
        "over_one_by_one": over_plain.as_dict(),
    }
    print(
        f"\n{count} files: {np.median(seconds['overlapped']):.2f} s overlapped, {over_parts} x the sum of "
        f"their parts, {over_plain} x one by one"
    )
    assert over_parts.low <= LARGEST_FOLDER_RATIO


# ---------------------------------------------------------------------------------------------------------
# Beside the networks


@pytest.mark.parametrize("size_px", [1024 if ALL else 512])
def test_the_networks_take_at_least_92_percent_of_the_wall_time(
    benchmark: Any, engine_dir: Path, origin: dict[str, Any], size_px: int
) -> None:
    image = drawing(size_px, size_px)
    with SR(engine_dir, lanes=1) as sr:
        planned = sr.plan(*image.shape[:2])
        backend = sr.backend
        timings = Timings()

        def whole() -> np.ndarray:
            out = np.empty((planned.tiles.height_px, planned.tiles.width_px, 3), np.uint8)
            y = 0
            for rows in upscale(image, backend, plan=planned.tiles, threads=sr.threads, timings=timings):
                out[y : y + len(rows)] = rows
                y += len(rows)
            return out

        whole()
        timings = Timings()
        out = benchmark.pedantic(whole, rounds=1)
        model = describe_model(sr.manifest)
    wall = benchmark.stats.stats.total
    inside = sum(timings.seconds[stage] for stage in SESSIONS)
    share = (wall - inside) / wall
    benchmark.extra_info |= {
        **origin,
        "model": model,
        "size_px": size_px,
        "tiles": planned.tiles.tiles,
        "overhead_percent": round(100 * share, 2),
        "seconds": {stage: round(s, 3) for stage, s in timings.seconds.items()},
    }
    print(
        f"\n{size_px} x {size_px} x{sr.scale}: {wall:.1f} s, {planned.tiles.tiles} tiles, "
        f"{share:.2%} outside the sessions"
    )
    check(image, out, sr.scale)
    assert share <= LARGEST_OVERHEAD


# ---------------------------------------------------------------------------------------------------------
# Memory

_LARGE = """
import json, sys, time
from pathlib import Path
import numpy, PIL.Image, tifffile
from yonos_trt.backends.numpy import NumpyBackend
from yonos_trt.images import open_row_writer, read_image
from yonos_trt.pipeline import upscale
from yonos_trt.planning import plan_picture

def status_kb(field):
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1])

source, target = sys.argv[1:]
backend = NumpyBackend(kernels="native", threads=2)
picture = read_image(source)
h, w = picture.rgb.shape[:2]
before = status_kb("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from here
start = time.perf_counter()
plan = plan_picture(backend.manifest, h, w).tiles
with open_row_writer(target, picture, 4 * h, 4 * w, compression=1) as writer:
    for rows in upscale(picture.rgb, backend, plan=plan, threads=2):
        writer.write_rows(rows)
seconds = time.perf_counter() - start
extra = status_kb("VmHWM") - before
print(json.dumps({"before_mb": before / 1024, "extra_mb": extra / 1024, "seconds": seconds}))
"""


@pytest.mark.parametrize("size_px", [(4500, 6000) if ALL else (1500, 2000)])
def test_a_large_picture_is_streamed_into_a_tiled_tiff_in_bounded_memory(
    benchmark: Any, tmp_path: Path, size_px: tuple[int, int]
) -> None:
    tifffile = pytest.importorskip("tifffile", reason="needs tifffile: pip install '.[images]'")
    height, width = size_px
    image = drawing(height, width)
    Image.fromarray(image).save(tmp_path / "in.png", compress_level=1)

    def child() -> dict[str, float]:
        done = subprocess.run(
            [sys.executable, "-c", _LARGE, str(tmp_path / "in.png"), str(tmp_path / "out.tiff")],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        return dict(json.loads(done.stdout))

    figures = benchmark.pedantic(child, rounds=1)
    benchmark.extra_info |= machine() | figures
    print(
        f"\n{width} x {height} x4 into {4 * width} x {4 * height}: {figures['extra_mb']:.0f} MB above "
        f"{figures['before_mb']:.0f} MB, {figures['seconds']:.1f} s"
    )
    with tifffile.TiffFile(tmp_path / "out.tiff") as tiff:
        page = tiff.pages[0]
        assert page.is_tiled
        assert page.shape == (4 * height, 4 * width, 3)
        corner = _first_tile(page)[:64, :64]
    bicubic = Image.fromarray(image[:32, :32]).resize((128, 128), Image.Resampling.BICUBIC)
    assert np.abs(corner.astype(int) - np.asarray(bicubic)[:64, :64]).max() <= 1
    assert figures["extra_mb"] <= LARGEST_EXTRA_MB


def _first_tile(page: Any) -> np.ndarray:
    """Decode one tile of a TIFF page without reading the others."""
    segment, _, _ = next(page.segments())
    return np.asarray(segment).squeeze()


_PEAK = """
import json, sys
from pathlib import Path
import numpy
from yonos_trt.pipeline import upscale
from yonos_trt.sr import SR

def status_kb(field):
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1])

directory, lanes, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
image = numpy.random.default_rng(0).integers(0, 256, (300, 400, 3), numpy.uint8)
with SR(directory, lanes=lanes, batch=batch) as sr:
    plan = sr.plan(300, 400)
    backend = sr.backend
    before = status_kb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    for rows in upscale(image, backend, plan=plan.tiles, threads=sr.threads):
        del rows
measured = (status_kb("VmHWM") - before) / 1024
print(json.dumps({"predicted_mb": plan.host_bytes / 2**20, "measured_mb": measured}))
"""


@pytest.mark.parametrize(("lanes", "batch"), [(1, 1), (1, 2), (2, 1)])
def test_the_predicted_memory_is_an_upper_bound(
    benchmark: Any, engine_dir: Path, lanes: int, batch: int
) -> None:
    def child() -> dict[str, float]:
        done = subprocess.run(
            [sys.executable, "-c", _PEAK, str(engine_dir), str(lanes), str(batch)],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        return dict(json.loads(done.stdout))

    figures = benchmark.pedantic(child, rounds=1)
    benchmark.extra_info |= figures
    print(
        f"\nlanes {lanes}, batch {batch}: {figures['measured_mb']:.0f} MiB measured, "
        f"{figures['predicted_mb']:.0f} MiB predicted"
    )
    assert 0.4 * figures["predicted_mb"] <= figures["measured_mb"] <= figures["predicted_mb"]
