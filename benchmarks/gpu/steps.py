"""What every step shares: paths, the machine's description, one JSON per step, exit codes.

A step is a function ``run(options) -> dict``. Its JSON is written in any case, with the error if it failed,
so that an unattended run leaves a trace. Without a GPU nothing is written: exit code 2.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), *(str(REPOSITORY / part) for part in ("export", "train", "tests"))]

RESULTS = REPOSITORY / "benchmarks" / "results" / "gpu"
OK, FAILED, NO_GPU = 0, 1, 2


def command(*words: str) -> str:
    """Return what a program prints, or why it cannot be asked."""
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({error})"


def machine() -> dict[str, Any]:
    """Describe the GPU and the software, for the reader of a figure."""
    from yonos_trt.cuda.driver import CudaDriver

    driver = CudaDriver()
    info = driver.info
    driver.close()
    found: dict[str, Any] = {
        "gpu": info.name,
        "compute_capability": "{}.{}".format(*info.compute_capability),
        "gpu_memory_mib": info.total_bytes >> 20,
        "cuda_of_driver": "{}.{}".format(*info.driver_version),
        "driver": command("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "clocks_mhz": command("nvidia-smi", "--query-gpu=clocks.sm,clocks.mem", "--format=csv,noheader"),
        "python": platform.python_version(),
        "commit": command("git", "-C", str(REPOSITORY), "rev-parse", "HEAD"),
    }
    for package in ("torch", "tensorrt", "tensorrt_rtx", "numpy"):
        try:
            found[package] = str(__import__(package).__version__)
        except (ImportError, OSError) as error:
            found[package] = f"not importable ({error})"
    return found


def main(
    step: str,
    run: Callable[[argparse.Namespace], dict[str, Any]],
    options: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> int:
    """Run a step from the command line and write its JSON; returns the exit code."""
    from yonos_trt.cuda.probe import probe_driver

    parser = argparse.ArgumentParser(description=run.__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON files")
    options(parser)
    chosen = parser.parse_args()
    found = probe_driver()
    if not found.devices:
        print(f"{step}: not run, {found.problem}", file=sys.stderr)
        return NO_GPU
    start = time.perf_counter()
    report: dict[str, Any] = {
        "step": step,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.argv]),
        "machine": machine(),
    }
    try:
        report["result"] = run(chosen)
        report["ok"] = True
    except Exception as error:
        report["error"] = {"type": type(error).__name__, "text": str(error), "trace": traceback.format_exc()}
        report["ok"] = False
    report["seconds"] = round(time.perf_counter() - start, 3)
    chosen.out.mkdir(parents=True, exist_ok=True)
    path = chosen.out / f"{step}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{step}: {'ok' if report['ok'] else 'FAILED: ' + report['error']['text']} -> {path}")
    return OK if report["ok"] else FAILED


def median(values: list[float]) -> float:
    """The middle value."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def milliseconds(
    driver: Any, stream: int, call: Callable[[], None], *, warmup: int, repeats: int
) -> list[float]:
    """Time what `call` queues on a stream, by events on the device."""
    start, end = driver.event_create(timing=True), driver.event_create(timing=True)
    times = []
    for index in range(warmup + repeats):
        driver.event_record(start, stream)
        call()
        driver.event_record(end, stream)
        driver.event_synchronize(end)
        if index >= warmup:
            times.append(driver.elapsed_ms(start, end))
    driver.event_destroy(start)
    driver.event_destroy(end)
    return times
