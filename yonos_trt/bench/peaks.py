"""What the machine can do at most: the best rate of every precision, and of copying, measured in this run.

A share of a peak says something only if nothing that runs here can be faster. So the peak of a precision is
the largest of many probes: every library that could run the networks times the kernels the networks are made
of (`yonos_trt.bench.probes`), over several shapes and thread counts, and NumPy a matrix product. A network's
rate is an average over its kernels, so it stays below the fastest of them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np

from yonos_trt.bench.probes import LIBRARIES, best_seconds
from yonos_trt.host import python_command, usable_cpus

# Large enough to reach the peak, short enough (2 ms) to fit between two interruptions by other programs.
_MATMUL_SIZE = 512
_MATMUL = """
import sys, time, numpy
size, seconds = int(sys.argv[1]), float(sys.argv[2])
a, b = numpy.random.default_rng(0).standard_normal((2, size, size), numpy.float32)
out = numpy.empty_like(a)
best, end = 1e9, time.perf_counter() + seconds
while best == 1e9 or time.perf_counter() < end:
    start = time.perf_counter()
    numpy.matmul(a, b, out=out)
    best = min(best, time.perf_counter() - start)
assert abs(float(out[0, 0]) - float(a[0].astype(float) @ b[:, 0])) < 1e-2
print(2e-9 * size**3 / best)
"""
_PROBES = "from yonos_trt.bench.probes import main; main()"
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_COPY_BYTES = 256 << 20
_LIBRARY_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class Probe:
    """One kernel of one library.

    Attributes
    ----------
    library : str
        Name and version.
    precision : str
        What it computes in: "fp32", "bf16" or "fp16".
    kernel : str
        Kind and shape.
    threads : int
        Threads it ran on.
    gflops : float
        10^9 operations per second of its shortest run.
    """

    library: str
    precision: str
    kernel: str
    threads: int
    gflops: float

    def __str__(self) -> str:
        return f"{self.library}, {self.kernel}, {self.threads} thread{'s' * (self.threads > 1)}"


@dataclass(frozen=True, slots=True)
class Peaks:
    """Best rates reached on the host.

    Attributes
    ----------
    copy_gbytes_s : float
        Bytes read plus bytes written while copying 256 MiB, all usable CPUs.
    probes : tuple of Probe
        Everything that was timed.
    not_run : dict
        Library -> why it was not timed.
    """

    copy_gbytes_s: float
    probes: tuple[Probe, ...]
    not_run: dict[str, str] = field(default_factory=dict)

    def best(self, precision: str) -> Probe | None:
        """Return the fastest probe of a precision; None where nothing here computes in it."""
        own = [probe for probe in self.probes if probe.precision == precision]
        return max(own, key=lambda probe: probe.gflops, default=None)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON.

        ``gflops`` and ``probe`` hold the peak of every precision and what reached it; ``matmul_gflops`` is
        NumPy's matrix product alone, by which documents of two machines are scaled.
        """
        named = {p: self.best(p) for p in dict.fromkeys(probe.precision for probe in self.probes)}
        best = {precision: probe for precision, probe in named.items() if probe is not None}
        numpy = [probe.gflops for probe in self.probes if probe.library.startswith("numpy ")]
        return {
            "copy_gbytes_s": self.copy_gbytes_s,
            "gflops": {precision: probe.gflops for precision, probe in best.items()},
            "probe": {precision: str(probe) for precision, probe in best.items()},
            **({"matmul_gflops": max(numpy)} if numpy else {}),
            "probes": [asdict(probe) for probe in self.probes],
            "not_run": self.not_run,
        }


def measure_peaks(
    *,
    seconds: float = 0.1,
    libraries: Sequence[str] = tuple(LIBRARIES),
    matmul_size: int = _MATMUL_SIZE,
    copy_bytes: int = _COPY_BYTES,
) -> Peaks:
    """Time everything, one after the other; some 15 seconds with all libraries.

    Parameters
    ----------
    seconds
        Per probe of a library; NumPy's product and the copy get five times as long.
    libraries
        Python packages out of `yonos_trt.bench.probes.LIBRARIES`; those that are not installed are listed in
        ``not_run``.
    matmul_size, copy_bytes
        Size of NumPy's matrices and of the block that is copied.
    """
    probes = [_numpy_probe(5 * seconds, matmul_size)]
    not_run = {}
    for library in libraries:
        found = _library_probes(library, seconds)
        if isinstance(found, str):
            not_run[library] = found
        else:
            probes += found
    return Peaks(_copy_gbytes_s(5 * seconds, copy_bytes), tuple(probes), not_run)


def _numpy_probe(seconds: float, size: int) -> Probe:
    """Time NumPy's product in one process per usable CPU, one thread each, at the same time."""
    cores = usable_cpus()
    command = python_command(_MATMUL, str(size), str(seconds))
    workers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | _ONE_THREAD)
        for _ in range(cores)
    ]
    gflops = sum(float(worker.communicate()[0]) for worker in workers)
    return Probe(f"numpy {version('numpy')}", "fp32", f"matrix product of {size} x {size}", cores, gflops)


def _library_probes(library: str, seconds: float) -> list[Probe] | str:
    """Return a library's probes, or why there are none."""
    if importlib.util.find_spec(library) is None:
        return "not installed"
    cores = usable_cpus()
    counts = ",".join(map(str, dict.fromkeys((cores, max(1, cores // 2)))))
    command = python_command(_PROBES, library, str(seconds), counts, package=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(cores)}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=_LIBRARY_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return f"its probes did not end within {_LIBRARY_TIMEOUT_S} s"
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return f"its probes failed: {lines[-1]}"
    return [Probe(**probe) for probe in json.loads(done.stdout)["probes"]]


def _copy_gbytes_s(seconds: float, count: int) -> float:
    cores = usable_cpus()
    source = np.ones(count, np.uint8)
    target = np.zeros_like(source)
    edges = [count * i // cores for i in range(cores + 1)]

    def copy(part: int) -> None:
        np.copyto(target[edges[part] : edges[part + 1]], source[edges[part] : edges[part + 1]])

    with ThreadPoolExecutor(cores) as pool:
        elapsed = best_seconds(lambda: list(pool.map(copy, range(cores))), seconds)
    assert target[-1] == 1
    return 2e-9 * count / elapsed
