"""Several devices on one folder: a process each (`Workers`), which share the files out by their claims.

Every worker is ``yonos upscale --skip-existing --progress json`` on one device (`yonos_trt.cli.claims`). What
they say comes together here: each file is told once, and what a worker that died had at work is named.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import click
from click.core import ParameterSource

from yonos_trt.cli import options
from yonos_trt.cli.job_run import check_target
from yonos_trt.cli.jobs import Job
from yonos_trt.cli.progress import JsonLines, Progress
from yonos_trt.errors import EngineDeviceError, InputError
from yonos_trt.host import python_command, usable_cpus

_COMMAND = "from yonos_trt.console import yonos; yonos()"


def options_of(context: click.Context, leave_out: Sequence[str]) -> list[str]:
    """Return the options that were typed, as they were, without arguments and those named in `leave_out`."""
    typed, _, _ = context.command.make_parser(context).parse_args(args=list(context.meta[options.ARGUMENTS]))
    found: list[str] = []
    for param in context.command.params:
        name = str(param.name)
        if not isinstance(param, click.Option) or name in leave_out or name not in typed:
            continue
        if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        value, option = typed[name], param.opts[-1]
        if param.count:
            found += [option] * value
        elif param.is_flag:
            found += [option] if value in (True, param.flag_value) else []
        else:
            found += [f"{option}={one}" for one in (value if param.multiple else [value])]
    return found


class Workers:
    """Processes that do one plan together.

    Parameters
    ----------
    arguments
        Of ``yonos upscale``, without ``-g``, ``--progress`` and what becomes of existing results.
    devices
        CUDA device numbers; -1 is the CPU, whose threads are shared out among the workers on it unless
        `threads` is given.
    progress
        Is told about files, not tiles; JSON lines are passed on with the device as "gpu".
    written
        Called with the path of every file that is complete.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        devices: Sequence[int],
        progress: Progress,
        *,
        threads: int | None = None,
        written: Callable[[Path], object] | None = None,
    ) -> None:
        self._progress, self._written = progress, written
        self._json = progress if isinstance(progress, JsonLines) else None
        self._events: queue.SimpleQueue[tuple[int, dict[str, Any] | None]] = queue.SimpleQueue()
        self._told: set[tuple[str, ...]] = set()
        self._skipped: dict[str, str] = {}
        self._passed_over = self._total = 0
        self._label = ""
        self.done: set[str] = set()
        self.failed: dict[str, str] = {}
        self._ended_early: set[int] = set()  # indices of workers that said so
        share = max(1, usable_cpus() // max(1, list(devices).count(-1)))
        self._devices = list(devices)
        self._commands = []
        for device in devices:
            count = threads or (share if device < 0 else None)
            own = ["--gpu", str(device), "--skip-existing", "--progress", "json"]
            own += ["--workers", str(len(devices))]
            own += [] if count is None else ["--threads", str(count)]
            self._commands.append(python_command(_COMMAND, "upscale", *arguments, *own, package=True))
        self._processes: list[subprocess.Popen[str]] = []

    def run(self, jobs: Sequence[Job], *, existing: str, watching: bool) -> int:
        """Do the jobs, or, `watching`, whatever comes, and return the exit code.

        A target that exists is a failure unless `existing` is "skip".
        """
        self._total = 0 if watching else len(jobs)
        self._label = f"{len(self._devices)} workers"
        if existing == "refuse" and not watching:
            for job in jobs:
                try:
                    check_target(job, existing)
                except InputError as error:
                    self._fail(str(job.source), error, None)
        self._start_bar()
        readers = []
        try:
            for index, command in enumerate(self._commands):
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                    text=True, encoding="utf-8", errors="replace",
                    start_new_session=True,  # a Ctrl-C of the terminal comes by way of this process, once
                )  # fmt: skip
                self._processes.append(process)
                assert process.stderr is not None
                readers.append(threading.Thread(target=self._read, args=(index, process.stderr)))
                readers[-1].start()
            ended = 0
            while ended < len(readers):
                index, event = self._events.get()
                if event is None:
                    ended += 1
                else:
                    self._take(index, event)
        except BaseException:
            for process in self._processes:
                process.terminate()  # not SIGINT: in the background of a shell that is ignored
            raise
        finally:
            for process in self._processes:
                process.wait()
                assert process.stdin is not None
                process.stdin.close()
            for reader in readers:
                reader.join()
        return self._settle(jobs)

    def _read(self, index: int, lines: IO[str]) -> None:
        with lines:
            for line in lines:
                try:
                    event = json.loads(line)
                except ValueError:
                    event = None
                if not isinstance(event, dict):
                    event = {"event": "log", "level": "info", "logger": "worker", "message": line.rstrip()}
                self._events.put((index, event))
        self._events.put((index, None))

    # -- What the workers say ------------------------------------------------------------------------------

    def _take(self, index: int, event: dict[str, Any]) -> None:
        kind, name, device = event["event"], event.get("name", ""), self._devices[index]
        if kind == "skip" and not event.get("passed_over"):
            self._skipped[name] = event["reason"]  # most often the other worker has it
        elif kind == "skip":
            if self._first("skip", name):
                self._passed_over += 1
                self._progress.pass_over(name, event["reason"])
        elif kind == "fail":
            if self._first("fail", name, event["message"]) and name not in self.failed:
                self._fail(name, InputError(event["message"]), event | {"gpu": device})
        elif kind == "finish":
            self.done.add(name)
            self.failed.pop(name, None)
            if self._json is not None:
                self._pass_on(device, event)
            if self._written is not None:
                self._written(Path(event["target"]))
            self._step()
        elif kind == "log":
            if self._first("log", event["logger"], event["message"]):
                self._log(device, event)
        elif kind == "error":
            self._ended_early.add(index)
            self._say(device, "error", event["message"])
        elif kind in ("start", "step") and self._json is not None:
            self._pass_on(device, event)

    def _first(self, *what: str) -> bool:
        new = what not in self._told
        self._told.add(what)
        return new

    def _pass_on(self, device: int, event: dict[str, Any]) -> None:
        if self._json is not None:
            rest = {k: v for k, v in event.items() if k not in ("event", "elapsed_s", "eta_s", "gpu")}
            self._json.write(event["event"], **rest, gpu=device)

    def _log(self, device: int, event: dict[str, Any]) -> None:
        if self._json is not None:
            self._pass_on(device, event)
        elif event["logger"] != "worker":
            sys.stderr.write(f"{event['level'].upper()} {event['logger']}: {event['message']}\n")

    def _say(self, device: int, kind: str, message: str) -> None:
        where = "the CPU" if device < 0 else f"GPU {device}"
        if self._json is not None:
            self._json.write(kind, message=f"worker on {where}: {message}", gpu=device)
        else:
            sys.stderr.write(f"{kind}: worker on {where}: {message}\n")

    def _fail(self, name: str, error: BaseException, event: dict[str, Any] | None) -> None:
        self.failed[name] = str(error)
        self._told.add(("fail", name, str(error)))
        if self._json is not None and event is not None:
            self._pass_on(event["gpu"], event)
        else:
            self._progress.fail(name, error)
        self._start_bar()

    def _start_bar(self) -> None:
        """Draw one bar over the files; whatever was printed has removed it."""
        if self._json is None and self._total:
            self._progress.start(self._label, 0, 1)
            self._step()

    def _step(self) -> None:
        if self._json is None and self._total:
            self._progress.step(len(self.done) + len(self.failed), self._total)

    # -- The end -------------------------------------------------------------------------------------------

    def _settle(self, jobs: Sequence[Job]) -> int:
        """Tell what nobody did, and return the exit code."""
        codes = [process.returncode for process in self._processes]
        for index, code in enumerate(codes):
            if code < 0:
                self._ended_early.add(index)
                self._say(self._devices[index], "error", f"ended by signal {-code}")
        left = [job for job in jobs if not {str(job.source)} & (self.done | set(self.failed))]
        for job in left:
            name = str(job.source)
            if self._ended_early and not job.target.exists():
                said = f"{name}: not done, its worker ended early; run it again with --skip-existing"
                self._fail(name, InputError(said), None)
            else:
                self._progress.skip(name, self._skipped.get(name, f"{job.target} exists"))
        lost = sum(str(job.source) in self.failed for job in left)
        self._progress.end(
            done=len(self.done), skipped=self._passed_over + len(left) - lost, failed=len(self.failed)
        )
        if self._ended_early:
            return max(1, *(codes[index] for index in self._ended_early))
        return max(1, min(filter(None, codes), default=1)) if self.failed else 0


def end_with_parent() -> None:
    """End this process, as SIGTERM does, when the one that started it is gone and its end of stdin closes."""

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def check_devices(devices: Sequence[int]) -> None:
    """Refuse a list of devices one of which is not there.

    Raises
    ------
    EngineDeviceError
        With the numbers of those that are.
    """
    from yonos_trt.cuda.probe import probe_driver

    wanted = {device for device in devices if device >= 0}
    if not wanted:
        return
    driver = probe_driver()
    there = {device.index for device in driver.devices}
    if missing := sorted(wanted - there):
        have = ", ".join(map(str, sorted(there))) or f"none ({driver.problem})"
        raise EngineDeviceError(
            f"-g names the devices {', '.join(map(str, missing))}, but this machine's GPUs are: {have}; name "
            "others, or run on the CPU with -g -1"
        )
