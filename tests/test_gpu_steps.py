"""The scripts of benchmarks/gpu: they say so where there is no GPU, and what they do is run on stand-ins."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import FakeKernels
from simulated_device import SimulatedDriver

from yonos_trt.cuda.launches import Gather, Launch, Noise
from yonos_trt.cuda.probe import Device as Gpu
from yonos_trt.cuda.probe import DriverFacts, probe_driver

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu"
SCRIPTS = sorted(path.name for path in FOLDER.glob("step_*.py"))


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def test_there_is_a_script_for_every_step() -> None:
    assert [name[:7] for name in SCRIPTS] == [f"step_0{i}" for i in range(1, 6)]


@pytest.mark.parametrize("script", [*SCRIPTS, "run_all.py"])
def test_without_a_gpu_a_step_says_so_and_writes_nothing(script: str, tmp_path: Path) -> None:
    if probe_driver().devices:
        pytest.skip("this machine has a GPU")
    done = subprocess.run(
        [sys.executable, str(FOLDER / script), "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "not run, no driver library" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_fails_leaves_its_error_in_the_json(
    step: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = step("steps")
    gpu = Gpu(0, "Test GPU", "8.6", 1 << 30)
    monkeypatch.setattr("yonos_trt.cuda.probe.probe_driver", lambda: DriverFacts("13.0", (gpu,), ""))
    monkeypatch.setattr(steps, "machine", lambda: {"gpu": "none"})
    monkeypatch.setattr(sys, "argv", ["step", "--out", str(tmp_path)])

    def broken(options: argparse.Namespace) -> dict[str, Any]:
        """Fail."""
        raise ValueError("the reason")

    assert steps.main("99_broken", broken) == 1
    report = json.loads((tmp_path / "99_broken.json").read_text())
    assert (report["ok"], report["error"]["text"]) == (False, "the reason")
    assert steps.main("98_fine", lambda options: {"x": 1}) == 0
    assert json.loads((tmp_path / "98_fine.json").read_text())["result"] == {"x": 1}


def test_all_steps_run_within_a_time_and_what_happened_is_written_after_each(
    step: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = step("run_all")
    scripts, out = tmp_path / "scripts", tmp_path / "out"
    scripts.mkdir()
    (scripts / "good.py").write_text("import sys, pathlib; pathlib.Path(sys.argv[2]).mkdir(parents=True)")
    (scripts / "bad.py").write_text("import sys; sys.stderr.write('the reason'); sys.exit(1)")
    (scripts / "hangs.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(runner, "HERE", scripts)
    plan = [runner.Step(f"{name}.py", ("--x", "1"), 10.0) for name in ("bad", "good", "hangs", "good")]
    plan[2] = runner.Step("hangs.py", (), 11.0)
    monkeypatch.setattr(runner.time, "perf_counter", iter(range(0, 400, 3)).__next__)
    limits: list[float] = []
    real = subprocess.run

    def quick(*arguments: Any, timeout: float, **options: Any) -> Any:
        limits.append(timeout)
        return real(*arguments, timeout=20 if timeout <= 10 else 1.5, **options)

    monkeypatch.setattr(runner.subprocess, "run", quick)
    done = runner.run_all(plan, out, 36.0)
    assert [record.get("exit_code", "not run") for record in done] == [1, 0, None, "not run"]
    assert done[0]["stderr"] == "the reason"
    assert done[3]["not run"].endswith("s are left")
    assert json.loads((out / "run_all.json").read_text()) == done
    assert (out / "01_good").is_dir()
    assert limits == [10.0, 10.0, 11.0]
    assert sum(s.seconds for s in runner.planned(None, None)) == 660


def test_wheels_in_parts_are_joined(step: Any, tmp_path: Path) -> None:
    first = step("step_01_tensorrt_rtx")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a-1.whl.part-ab").write_bytes(b"world")
    (tmp_path / "in" / "a-1.whl.part-aa").write_bytes(b"hello ")
    (tmp_path / "in" / "b-1.whl").write_bytes(b"whole")
    wheels = first.join_parts(tmp_path / "in", tmp_path)
    assert sorted(w.name for w in wheels) == ["a-1.whl", "b-1.whl"]
    assert (tmp_path / "a-1.whl").read_bytes() == b"hello world"


def test_the_small_engine_of_step_1_builds_without_a_gpu(step: Any) -> None:
    module = pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx")
    from yonos_trt.trt.artifacts import read_header

    raw = step("step_01_tensorrt_rtx").small_plan(module, "SM86")
    header = read_header(raw)
    assert header is not None
    assert header.length_bytes == len(raw)


class Device(SimulatedDriver):
    def elapsed_ms(self, start: int, end: int) -> float:
        return 2.0


def test_the_kernel_checks_of_step_2_pass_on_the_twins(step: Any) -> None:
    driver = Device()
    results = step("step_02_kernels").measure(driver, FakeKernels(driver), size=32)
    assert len(results) == 12 + 6 + 9
    assert all(result["equal"] and result["median_ms"] == 2.0 for result in results.values())
    assert driver.live["allocations"] == 0


def test_the_kernel_checks_of_step_2_find_a_wrong_kernel(step: Any) -> None:
    class Wrong(FakeKernels):
        def launch(self, call: Launch, *, stream: int) -> None:
            wrong = replace(call, scale=3, lr=False) if isinstance(call, Gather) else call
            super().launch(wrong, stream=stream)

    driver = Device()
    with pytest.raises(AssertionError, match="gather uint8 -> fp32"):
        step("step_02_kernels").measure(driver, Wrong(driver), size=32)


def test_the_comparison_of_step_3_runs_and_finds_other_bits(step: Any) -> None:
    lanes = step("step_03_lanes")

    def open_device() -> tuple[SimulatedDriver, FakeKernels]:
        driver = SimulatedDriver()
        return driver, FakeKernels(driver)

    image = lanes.picture(20, 30)
    results = lanes.copies(image, open_device, repeats=3)
    assert len(results) == 6
    assert set(results["lanes 2, graphs"]["waits"]) == {"a row of tiles ahead", "each at once"}

    class Wrong(FakeKernels):
        def launch(self, call: Launch, *, stream: int) -> None:
            wrong = replace(call, seed=call.seed + 1) if isinstance(call, Noise) else call
            super().launch(wrong, stream=stream)

    def open_wrong() -> tuple[SimulatedDriver, FakeKernels]:
        driver = SimulatedDriver()
        return driver, Wrong(driver)

    with pytest.raises(AssertionError, match="lanes=1, graphs=False: other bits"):
        lanes.copies(image, open_wrong, repeats=3)
    assert np.array_equal(image, lanes.picture(20, 30))
