"""The sweep over whole pictures: its points, what it refuses, and one row from start to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import make_engine_dir

from benchmarks.sweep import FULL, QUICK, Point, check, drawing, exponent, measured_memory

REPOSITORY = Path(__file__).parents[1]


def differences(point: Point, base: Point) -> set[str]:
    size = {"height_lr_px": "size", "width_lr_px": "size"}
    mine, others = asdict(point), asdict(base)
    return {size.get(name, name) for name in mine if mine[name] != others[name]}


@pytest.mark.parametrize("points", [QUICK, FULL], ids=["quick", "full"])
def test_every_point_differs_from_the_base_in_one_respect(points: list[Point]) -> None:
    assert len(set(points)) == len(points)
    for runtime in {point.runtime for point in points}:
        base = Point(runtime=runtime)
        own = [point for point in points if point.runtime == runtime]
        found = [differences(point, base) for point in own]
        assert base in own
        assert max(map(len, found)) == 1
        assert set().union(*found) == {"size", "tile_px", "batch", "lanes"}


def test_a_picture_that_is_not_the_inputs_is_refused() -> None:
    lr = drawing(40, 56)
    good = lr.repeat(4, 0).repeat(4, 1)
    assert check(lr, good, 4) > 60
    shifted = np.roll(good, 24, axis=1)
    torn = good.copy()
    torn[:, 96:128] = 0
    for bad in (np.zeros_like(good), shifted, torn, good[:-4], good.astype(np.float32)):
        with pytest.raises(AssertionError):
            check(lr, bad, 4)


def test_exponent_is_the_power_of_the_size() -> None:
    pixels = [1e4, 4e4, 9e4]
    assert exponent(pixels, [3e-6 * n for n in pixels]) == pytest.approx(1)
    assert exponent(pixels, [1e-9 * n**1.5 for n in pixels]) == pytest.approx(1.5)


def test_memory_of_the_body_is_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    found: dict[str, Any] = {}
    with measured_memory(found):
        block = np.ones(100 << 20, np.uint8)
        del block
    assert found["added_mib"] > 90
    assert found["device_memory"] is None


def test_a_row_says_where_it_comes_from(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    engine_dir = make_engine_dir(tmp_path / "engine")
    command = [
        *(sys.executable, "-m", "pytest", "-q", "benchmarks/bench_pipeline.py", "-p", "no:cacheprovider"),
        *("-k", "64x64 or bench_folder", "--benchmark-json", str(tmp_path / "rows.json")),
    ]
    environment = os.environ | {
        "YONOS_BENCH_ENGINE": str(engine_dir),
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path]),
    }
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    rows = {b["name"]: b for b in json.loads((tmp_path / "rows.json").read_text())["benchmarks"]}
    whole = rows["bench_picture[onnx 64x64 default tile batch 1 lanes 1]"]
    facts = whole["extra_info"]
    assert facts["mpx_s"] == pytest.approx(256 * 256 / whole["stats"]["median"] / 1e6)
    assert (facts["tile_px"], facts["lanes"], facts["runtime"]) == (None, 1, "onnx")
    assert facts["model"]["weights_sha256"] == "ab" * 32
    assert facts["peak_rss_mib"] > facts["added_mib"] >= 0
    for name in ("processor", "versions", "commit", "clock_mhz", "load_1min", "threads", "overlap_px"):
        assert name in facts
    folder = rows["bench_folder"]["extra_info"]
    assert 0 < folder["over_sum_of_parts"]["low"] <= folder["over_sum_of_parts"]["value"]
    assert folder["files"] >= 4
