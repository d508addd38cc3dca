"""The whole path on a CPU: what it costs beside the networks, and how much memory a large picture takes.

    python -m pytest benchmarks/bench_pipeline.py

Uses the shipped x4 model; YONOS_BENCH_ENGINE names another engine directory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import machine
from PIL import Image

from yonos_trt.pipeline import Timings, upscale
from yonos_trt.runtimes import shipped_models
from yonos_trt.sr import SR

SESSIONS = ("encode", "step", "decode")
LARGEST_OVERHEAD = 0.08
"""Share of the wall time that may be spent outside the ONNX Runtime sessions."""
LARGEST_EXTRA_MB = 400
"""Memory a 6 000 x 4 500 picture may take above the decoded input."""


def drawing(height: int, width: int) -> np.ndarray:
    """Return a smooth random picture, (height, width, 3) uint8."""
    small = np.random.default_rng(0).integers(0, 256, (height // 25 + 1, width // 25 + 1, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def engine_dir() -> Path:
    """The shipped x4 model, or the directory named by YONOS_BENCH_ENGINE."""
    named = os.environ.get("YONOS_BENCH_ENGINE")
    found = Path(named) if named else shipped_models().get("lite-x4")
    if found is None:
        pytest.skip("no shipped x4 model; name an engine directory with YONOS_BENCH_ENGINE")
    return found


@pytest.mark.parametrize("size_px", [1024])
def test_the_networks_take_at_least_92_percent_of_the_wall_time(
    benchmark: Any, engine_dir: Path, size_px: int
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

        out = benchmark.pedantic(whole, rounds=1)
    wall = benchmark.stats.stats.total
    inside = sum(timings.seconds[stage] for stage in SESSIONS)
    share = (wall - inside) / wall
    benchmark.extra_info |= {
        "tiles": planned.tiles.tiles,
        "overhead_percent": round(100 * share, 2),
        "seconds": {stage: round(s, 3) for stage, s in timings.seconds.items()},
    }
    print(
        f"\n{size_px} x {size_px} x{sr.scale}: {wall:.1f} s, {planned.tiles.tiles} tiles, "
        f"{share:.2%} outside the sessions"
    )
    assert out.shape == (size_px * sr.scale, size_px * sr.scale, 3)
    enlarged = np.asarray(Image.fromarray(image).resize(out.shape[1::-1], Image.Resampling.BICUBIC))
    assert out.std() > 0
    assert abs(float(out.mean()) - float(enlarged.mean())) < 2  # the colour fix keeps the mean
    assert share <= LARGEST_OVERHEAD


_LARGE = """
import json, sys, time
from pathlib import Path
import numpy, PIL.Image, tifffile
from yonos_trt.backend import NumpyBackend
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


@pytest.mark.parametrize("size_px", [(4500, 6000)])
def test_a_large_picture_is_streamed_into_a_tiled_tiff_in_bounded_memory(
    benchmark: Any, tmp_path: Path, size_px: tuple[int, int]
) -> None:
    tifffile = pytest.importorskip("tifffile", reason="needs tifffile: pip install 'yonos-trt[images]'")
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
print(json.dumps({"predicted_mb": plan.peak_bytes / 2**20, "measured_mb": measured}))
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
