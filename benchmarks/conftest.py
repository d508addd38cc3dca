"""What every benchmark needs: the machine it ran on, and timings of rivals inside the same run."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yonos_trt.host import cpu_fields, usable_cpus

REPOSITORY = Path(__file__).resolve().parents[1]


def processor() -> str:
    """Return the processor's name as the operating system gives it."""
    return cpu_fields().get("model name") or platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """Return what a reader needs to judge a figure."""
    return {
        "processor": processor(),
        "cores": usable_cpus(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def best_of(call: Callable[[], Any], repeats: int) -> float:
    """Return the shortest of ``repeats`` wall times, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.fixture(autouse=True)
def _record_machine(request: pytest.FixtureRequest) -> None:
    if "benchmark" in request.fixturenames:
        request.getfixturevalue("benchmark").extra_info.update(machine())
