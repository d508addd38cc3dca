"""What a timing has to be read beside: the machine, and the memory that was used."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from yonos_trt.host import cpu_fields, physical_bytes, usable_cpus

_PACKAGES = ("yonos-trt", "numpy", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx-cu13", "torch")
# Instruction sets that decide what a CPU can do for a network, as /proc/cpuinfo spells them.
_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")

_RESET_PEAK = "5"  # written to /proc/self/clear_refs: forget the high-water mark (proc(5))


# ---------------------------------------------------------------------------------------------------------
# The machine


def describe_machine() -> dict[str, Any]:
    """Return processor, cores, clocks, memory, load, GPU and the versions of what computes.

    Clocks are those of the moment, in MHz; `load_1min` above the number of cores says that other programs ran
    and the figures are worth little.
    """
    info = cpu_fields()
    flags = set(str(info.get("flags") or info.get("Features") or "").split())
    found: dict[str, Any] = {
        "processor": info.get("model name") or platform.processor() or platform.machine(),
        "cores": usable_cpus(),
        "instructions": [flag for flag in _FLAGS if flag in flags],
        "clock_mhz": _number(info.get("cpu MHz")),
        "memory_gib": round((physical_bytes() or 0) / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "load_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "gpu": _gpu(),
    }
    return found


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu() -> str | None:
    from yonos_trt.cuda.probe import probe_driver

    devices = probe_driver().devices
    return ", ".join(device.name for device in devices) or None


# ---------------------------------------------------------------------------------------------------------
# Memory


class PeakMemory:
    """Highest resident size of this process while the ``with`` runs.

    On Linux the high-water mark is reset on entry, so that `peak_bytes` belongs to the body alone; elsewhere
    it is that of the process so far. Memory that earlier work freed and the allocator kept counts as used
    before (`before_bytes`).
    """

    def __init__(self) -> None:
        self.before_bytes = 0
        self.peak_bytes = 0

    def __enter__(self) -> PeakMemory:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text(_RESET_PEAK, encoding="ascii")
        self.before_bytes = _status_bytes("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.peak_bytes = _status_bytes("VmHWM")

    def as_dict(self) -> dict[str, float]:
        """Return peak and what was there before, in MiB."""
        return {
            "peak_rss_mib": round(self.peak_bytes / 2**20, 1),
            "added_mib": round((self.peak_bytes - self.before_bytes) / 2**20, 1),
        }


class DeviceMemory:
    """Most memory in use on a GPU while the ``with`` runs, by whatever process, as nvidia-smi says.

    It is asked again and again in a thread; what an engine allocates it keeps until it is closed, so the peak
    is not missed. Without nvidia-smi there is nothing to report.
    """

    _PAUSE_S = 0.05

    def __init__(self, device: int = 0) -> None:
        self._command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        self._command += ["-i", str(device)]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="yonos-device-memory", daemon=True)
        self.before_mib: float | None = None
        self.peak_mib: float | None = None

    def __enter__(self) -> DeviceMemory:
        self.before_mib = self.peak_mib = self._used_mib()
        if self.before_mib is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
            self._note()

    def _watch(self) -> None:
        while not self._ended.wait(self._PAUSE_S):
            self._note()

    def _note(self) -> None:
        self.peak_mib = max(self.peak_mib or 0.0, self._used_mib() or 0.0)

    def _used_mib(self) -> float | None:
        try:
            done = subprocess.run(self._command, capture_output=True, text=True, check=True, timeout=10)
            return float(done.stdout.strip())
        except (OSError, subprocess.SubprocessError, ValueError):
            return None

    def as_dict(self) -> dict[str, float] | None:
        """Return peak and what this process added to it, in MiB; None where nothing could be asked."""
        if self.peak_mib is None or self.before_mib is None:
            return None
        return {"peak_mib": self.peak_mib, "added_mib": self.peak_mib - self.before_mib}


def _status_bytes(field: str) -> int:
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else highest << 10
