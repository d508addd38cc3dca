"""A real Triton server for tests: the one inside NVIDIA's package nvidia-pytriton, in `.venv-triton`.

Its Python backend loads ``libpython3.N.so.1.0``, which has to fit the standard library it finds. So what runs
in it is a virtual environment of an interpreter that has that file: the one of the tests, or the system's.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import site
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from helpers import skip_or_fail

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv-triton" / "bin" / "python"
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
_LIBRARY = """
import sysconfig
from pathlib import Path
of = sysconfig.get_config_var
folders = (of("LIBDIR"), f"{of('LIBDIR')}/{of('MULTIARCH')}")
print(next((f for f in folders if Path(f, f"libpython{of('VERSION')}.so.1.0").is_file()), ""), of("VERSION"))
"""


@cache
def package() -> Path | None:
    """Return the folder with the server and its backends, or None."""
    found = sorted((ROOT / ".venv-triton").glob("lib/python3.*/site-packages/pytriton/tritonserver"))
    return found[0] if found and PYTHON.is_file() else None


@cache
def interpreter() -> tuple[str, str] | None:
    """Return (interpreter, folder of its libpython) of the version of the tests, or None."""
    for python in (sys.executable, f"/usr/bin/python{VERSION}"):
        if not Path(python).exists():
            continue
        run = subprocess.run([python, "-c", _LIBRARY], capture_output=True, text=True)
        if run.returncode == 0:
            folder, version = run.stdout.rstrip("\n").rsplit(" ", 1)
            if folder and version == VERSION:
                return python, folder
    return None


def needed() -> None:
    """Skip where the server cannot run, and say why."""
    reason = None
    if package() is None:
        reason = "Triton is not installed: make .venv-triton/.ready"
    elif interpreter() is None:
        reason = f"no Python {VERSION} with libpython{VERSION}.so.1.0, which Triton's Python backend loads"
    if reason is not None:
        skip_or_fail("YONOS_REQUIRE_TRITON", reason)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class Answer:
    """What one job came to."""

    seconds: float
    outputs: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    status: str = ""


class Server:
    """tritonserver on a repository; ports are the same after `start` once more."""

    def __init__(self, repository: Path, work: Path) -> None:
        self.repository, self.work = repository, work
        self.ports = {name: free_port() for name in ("http", "grpc", "metrics")}
        self.process: subprocess.Popen[bytes] | None = None
        self._prepare()

    def _prepare(self) -> None:
        folder, found = package(), interpreter()
        assert folder is not None
        assert found is not None
        python, library = found
        environment = self.work / "python"
        subprocess.run([python, "-m", "venv", "--without-pip", environment], check=True)
        packages = next(environment.glob("lib/python3.*/site-packages"))
        lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
        packages.joinpath("tests.pth").write_text("\n".join(lines))
        backend = self.work / "backends" / "python"
        shutil.copytree(folder / "backends" / "python", backend)
        stub = folder / "python_backend_stubs" / VERSION / "triton_python_backend_stub"
        shutil.copy(stub, backend)
        own = {"LD_LIBRARY_PATH": f"{library}:{folder.parents[1] / 'nvidia_pytriton.libs'}"}
        own["PATH"] = f"{environment / 'bin'}:{os.environ['PATH']}"
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | own
        self.command = [
            folder / "bin" / "tritonserver",
            f"--model-repository={self.repository}",
            f"--backend-directory={backend.parent}",
            "--http-address=127.0.0.1",
            "--grpc-address=127.0.0.1",
            f"--http-port={self.ports['http']}",
            f"--grpc-port={self.ports['grpc']}",
            f"--metrics-port={self.ports['metrics']}",
            "--metrics-address=127.0.0.1",
            "--exit-timeout-secs=5",
        ]

    @property
    def log(self) -> str:
        return (self.work / "log.txt").read_text(errors="replace")

    def start(self) -> None:
        """Start it and wait until all models are ready; an AssertionError has the log."""
        with (self.work / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdout=log, stderr=log, cwd=self.work
            )
        until = time.monotonic() + 90
        while not self.ready():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < until, self.log
            time.sleep(0.1)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(30)

    def ready(self, model: str = "") -> bool:
        path = f"v2/models/{model}/ready" if model else "v2/health/ready"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['http']}/{path}", timeout=10) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def metrics(self) -> dict[str, float]:
        """Return name{labels} -> value."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['metrics']}/metrics", timeout=10) as reply:
            lines = reply.read().decode().splitlines()
        return {
            name: float(value) for name, value in (x.rsplit(" ", 1) for x in lines if x[:1] not in ("#", ""))
        }

    def stubs(self) -> list[psutil.Process]:
        """Return the processes of the model instances."""
        assert self.process is not None
        children = [c for c in psutil.Process(self.process.pid).children() if c.status() != "zombie"]
        return [child for child in children if "triton_python_backend_stub" in " ".join(child.cmdline())]

    def stub_of(self, model: str) -> psutil.Process:
        return next(s for s in self.stubs() if f"/{model}/1/model.py" in " ".join(s.cmdline()))

    def resident_bytes(self) -> int:
        assert self.process is not None
        return sum(p.memory_info().rss for p in (psutil.Process(self.process.pid), *self.stubs()))

    def ask(self, folder: Path, jobs: list[dict[str, Any]], *, clients: int = 1) -> list[Answer]:
        """Send jobs as `triton_client.py` describes them, with arrays in place of files."""
        folder.mkdir(parents=True)
        for number, job in enumerate(jobs):
            files = {}
            for name, array in job["inputs"].items():
                files[name] = f"job-{number}-{name}.npy"
                np.save(folder / files[name], array)
            jobs[number] = {**job, "inputs": files}
        order = {k: f"127.0.0.1:{self.ports[k]}" for k in ("http", "grpc")} | {
            "clients": clients,
            "jobs": jobs,
        }
        (folder / "jobs.json").write_text(json.dumps(order))
        run = subprocess.run(
            [PYTHON, ROOT / "tests" / "triton_client.py", folder], capture_output=True, text=True, timeout=300
        )
        assert run.returncode == 0, run.stderr + self.log
        answers = [Answer(**answer) for answer in json.loads((folder / "answers.json").read_text())]
        for answer in answers:
            answer.outputs = {name: np.load(folder / file) for name, file in answer.outputs.items()}
        return answers
