"""Fixtures and skips shared by all tests.

Skips are visible and countable: `data` tests need YONOS_DATA (default ../shared/data beside the checkout),
`gpu` tests a CUDA driver with a device.  YONOS_REQUIRE_GPU=1 and YONOS_REQUIRE_DATA=1 turn the skip into a
failure.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import hypothesis
import pytest
from helpers import make_engine_dir, skip_or_fail

from yonos_trt import SR

# Bits and bounds of the tests are ONNX Runtime's; what "auto" takes without this has tests of its own.
os.environ["YONOS_CPU_RUNTIME"] = "onnx"

REPOSITORY = Path(__file__).resolve().parents[1]

# A shell's background jobs begin with Ctrl-C ignored, those of nohup with SIGHUP, and so would every command
# that the tests interrupt.
for _number, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)

hypothesis.settings.register_profile("project", deadline=None, max_examples=60, derandomize=True)
hypothesis.settings.load_profile("project")


def pytest_sessionstart() -> None:
    """Let the benchmarks that tests start measure: pytest-benchmark does not in a process of pytest-xdist."""
    os.environ.pop("PYTEST_XDIST_WORKER", None)


def data_path() -> Path:
    """Return the folder of the picture sets, which may not exist."""
    return Path(os.environ.get("YONOS_DATA", REPOSITORY.parent / "shared" / "data"))


@cache
def missing_gpu() -> str | None:
    """Return why no GPU can be used, or None.  Asks the driver only, which cannot hang."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver (libcuda.so.1) on this machine"
    status = driver.cuInit(0)
    count = ctypes.c_int()
    if status == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0:
        return None
    return f"the NVIDIA driver reports no device (cuInit: {status})"


def pytest_runtest_setup(item: pytest.Item) -> None:
    wanting = []
    if item.get_closest_marker("gpu"):
        wanting.append(("YONOS_REQUIRE_GPU", missing_gpu()))
    if item.get_closest_marker("data"):
        path = data_path()
        wanting.append(("YONOS_REQUIRE_DATA", None if path.is_dir() else f"no picture sets at {path}"))
    for switch, reason in wanting:
        if reason is not None:
            skip_or_fail(switch, reason)


@pytest.fixture(autouse=True)
def plain_logging() -> None:
    """Undo what a command run in this process before has set up (`yonos_trt.cli.progress.set_up_logging`)."""
    for name in ("yonos_trt", "yonos_export", "py.warnings"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)
        logger.propagate = True


@pytest.fixture(scope="session")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The engine directory of `helpers.make_engine_dir`, the same for all tests: none may write there."""
    engine = make_engine_dir(tmp_path_factory.mktemp("shared") / "engine")
    made = sorted((path.name, path.read_bytes()) for path in engine.iterdir())
    yield engine
    assert sorted((path.name, path.read_bytes()) for path in engine.iterdir()) == made


@pytest.fixture(scope="module")
def sr(engine_dir: Path) -> Iterator[SR]:
    """The model of `engine_dir`, opened."""
    with SR(engine_dir, threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the picture sets; use with the `data` mark."""
    return data_path()
