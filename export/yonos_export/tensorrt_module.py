"""The TensorRT modules, the GPU, and what a build reports through: log, progress, cancellation."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

from yonos_trt.choices import TENSORRT_MODULES
from yonos_trt.choices import EngineRuntime as EngineRuntime
from yonos_trt.errors import BuildError, EngineDeviceError, MissingExtraError, YonosError, install_command

log = logging.getLogger(__name__)

# From 10.13 on every precision is in the graph; 12 has not been seen.
TENSORRT_FROM, TENSORRT_BELOW = (10, 13), (12,)
OnBuild = Callable[[float], None]


def load_module(runtime: EngineRuntime) -> Any:
    """Import TensorRT or TensorRT-RTX and check its version.

    Raises
    ------
    MissingExtraError
        It is not installed; names the pip command.
    BuildError
        It is of a version this builder does not know.
    """
    name, extra = TENSORRT_MODULES[runtime]
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingExtraError(
            f"building engines for the runtime {runtime!r}", package=name, extra=extra, reason=str(error)
        ) from error
    return check_version(runtime, module)


def check_version(runtime: EngineRuntime, module: Any) -> Any:
    """Return the module if its version is one this builder knows."""
    version = tuple(int(part) for part in re.findall(r"\d+", str(module.__version__)))
    if runtime == "tensorrt" and not TENSORRT_FROM <= version < TENSORRT_BELOW:
        raise BuildError(
            f"tensorrt {module.__version__} is installed, expected at least 10.13 and below 12; install it "
            f"with: {install_command('tensorrt')}"
        )
    return module


def usable_runtimes(device: int = 0) -> list[EngineRuntime]:
    """Return the runtimes that can build engines here; what is installed and cannot is logged."""
    usable: list[EngineRuntime] = []
    for runtime in get_args(EngineRuntime):
        if importlib.util.find_spec(TENSORRT_MODULES[runtime][0]) is None:
            continue
        try:
            load_module(runtime)
            require_gpu(runtime, device)
        except YonosError as error:
            log.warning("no %s engines: %s", runtime, error)
            continue
        usable.append(runtime)
    return usable


def find_gpu(device: int = 0) -> tuple[str | None, tuple[str, ...]]:
    """Name and compute capability of a GPU; (None, ()) where there is none at all.

    Raises
    ------
    EngineDeviceError
        There are GPUs, but not this one.
    """
    from yonos_trt.cuda.probe import probe_driver

    devices = {found.index: found for found in probe_driver().devices}
    if devices and device not in devices:
        have = ", ".join(f"{found.index} ({found.name})" for found in devices.values())
        raise EngineDeviceError(
            f"device is {device}, but this machine's GPUs are: {have}; choose another --device"
        )
    return (devices[device].name, (devices[device].compute_capability,)) if devices else (None, ())


@contextmanager
def on_gpu(device: int) -> Iterator[None]:
    """Make a GPU the current one, which TensorRT builds on and for; without any GPU nothing is done."""
    from yonos_trt.cuda.driver import CudaDriver

    if find_gpu(device)[0] is None:
        yield
        return
    driver = CudaDriver(device)
    try:
        with driver.current():
            yield
    finally:
        driver.close()


def require_gpu(runtime: EngineRuntime, device: int = 0) -> None:
    """Refuse a TensorRT build on a machine without the GPU before any work is done.

    Raises
    ------
    EngineDeviceError
        There is no usable GPU, or not this one.
    """
    if runtime == "tensorrt" and find_gpu(device)[0] is None:
        raise EngineDeviceError(
            "runtime 'tensorrt' measures its kernels on the GPU while it builds, and no GPU can be used "
            "here; build on the target machine, or use --runtime tensorrt-rtx, which builds anywhere"
        )


class Log:
    """Everything the builder says: (severity, text)."""

    def __init__(self, module: Any) -> None:
        self.lines: list[tuple[int, str]] = []
        lines, severity = self.lines, module.ILogger.Severity

        class Logger(module.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                module.ILogger.__init__(self)

            def log(self, level: Any, text: str) -> None:
                if level in (severity.INTERNAL_ERROR, severity.ERROR):
                    lines.append((logging.ERROR, text.strip()))
                elif level == severity.WARNING:
                    lines.append((logging.WARNING, text.strip()))
                    log.info("%s", text.strip())

        self.logger = Logger()

    def errors(self) -> list[str]:
        return [text for level, text in self.lines if level == logging.ERROR]


def make_monitor(module: Any, stop: threading.Event, progress: OnBuild) -> Any:
    """Make a progress monitor: reports the outermost phase, and says no to going on once `stop` is set."""

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self._lock = threading.Lock()
            self._root: tuple[str, int] | None = None

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            with self._lock:
                if self._root is None:
                    self._root = (phase, max(steps, 1))

        def step_complete(self, phase: str, step: int) -> bool:
            with self._lock:
                root = self._root
            if root is not None and phase == root[0]:
                progress(min((step + 1) / root[1], 1.0))
            return not stop.is_set()

        def phase_finish(self, phase: str) -> None:
            with self._lock:
                if self._root is not None and phase == self._root[0]:
                    self._root = None

    return Monitor()


@contextmanager
def interruptible(stop: threading.Event) -> Iterator[None]:
    """Turn Ctrl-C into `stop` while the builder runs: an exception must not cross its C++ frames."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: stop.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
