"""End a process before and after each of its system calls, for tests of what has to survive that.

The process under test is forked and traced (ptrace), so that the calls of C libraries count like Python's.
Run as a program, in a process without threads::

    python kill_points.py SCENARIO FOLDER SIGNAL

prints as JSON how many stops gave each ``[state, state after the next run, names left]``.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from yonos_trt import atomic

__all__ = ["can_trace", "kill_points"]

_TRACEME, _CONT, _SYSCALL, _SETOPTIONS = 0, 7, 24, 0x4200  # sys/ptrace.h
_SYSGOOD, _EXITKILL = 1, 0x100000
_STOP = signal.SIGTRAP | 0x80


def _ptrace(request: int, pid: int, data: int = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.restype = ctypes.c_long
    arguments = (ctypes.c_long(request), ctypes.c_long(pid), ctypes.c_void_p(0), ctypes.c_void_p(data))
    if libc.ptrace(*arguments) == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"ptrace {request}: {os.strerror(code)}")


def can_trace() -> bool:
    """Whether this system lets a process trace its child."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        return next(kill_points(lambda: None, os.getpid, signal.SIGKILL), None) is not None
    except OSError:
        return False


def kill_points(
    prepare: Callable[[], object], work: Callable[[], object], number: signal.Signals, stride: int = 1
) -> Iterator[int]:
    """Run ``work`` in a child again and again, and send it ``number`` at ``stride`` stops further each time.

    A system call has two stops, before and after it. ``prepare`` runs in this process before each child.
    Yields the number of the stop when the child is gone; ends with the first child that came to its end.
    """
    stop = 0
    while True:
        prepare()
        reached = _run_to(stop, work, number)
        yield stop
        if not reached:
            return
        stop += stride


def _run_to(stop: int, work: Callable[[], object], number: signal.Signals) -> bool:
    pid = os.fork()
    if pid == 0:
        _child(work)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSTOPPED(status):
        raise OSError(0, "the child may not be traced here")
    _ptrace(_SETOPTIONS, pid, _SYSGOOD | _EXITKILL)
    seen, pass_on, sent = 0, 0, False
    while True:
        _ptrace(_SYSCALL, pid, pass_on)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSTOPPED(status):
            if not sent and status != 0:
                raise RuntimeError(f"the work failed by itself: status {status}")
            return sent
        pass_on = 0 if os.WSTOPSIG(status) == _STOP else os.WSTOPSIG(status)
        if os.WSTOPSIG(status) == _STOP and not sent:
            if seen == stop:
                os.kill(pid, number)
                sent = True
                if number == signal.SIGKILL:
                    os.waitpid(pid, 0)
                    return True
            seen += 1


def _child(work: Callable[[], object]) -> None:
    code = 1
    try:
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            _ptrace(_TRACEME, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
            work()
            code = 0
        except Exception as error:
            sys.stderr.write(f"the work failed: {error!r}\n")
        finally:
            os._exit(code)
    finally:  # the signal came just now
        os._exit(code)


# ---------------------------------------------------------------------------------------------------------
# Scenarios

USERS_OWN = ("mine.part", ".yonos-mine.part", "target.parts", ".yonos-0123456789abcdef.part.txt")
"""Names that look like ours and are not."""

Scenario = tuple[Callable[[], object], Callable[[], object], Callable[[], str]]
"""Make the old state; do the work; say what is there: "nothing", "old", "new" or something broken."""

OLD, NEW = {"a": "old a", "sub/b": "old b"}, {"a": "new a", "sub/c": "new c"}


def _fill(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def _file(target: Path) -> Scenario:
    def state() -> str:
        return {"old": "old", "new" * 5000: "new"}.get(target.read_text(), "broken")

    return (
        lambda: target.write_text("old"),
        lambda: atomic.write_file(target, "new" * 5000),
        state,
    )


def _directory(target: Path) -> Scenario:
    def work() -> None:
        with atomic.atomic_directory(target) as new:
            _fill(new, NEW)

    def state() -> str:
        found = {str(p.relative_to(target)): p.read_text() for p in target.rglob("*") if p.is_file()}
        return "old" if found == OLD else "new" if found == NEW else f"broken: {sorted(found)}"

    return lambda: _fill(target, OLD), work, state


def _engine(target: Path) -> Scenario:
    from helpers import tiny_graphs, tiny_manifest

    from yonos_trt.engine.manifest import load_manifest, write_engine_dir
    from yonos_trt.errors import YonosError

    graphs = {name: tiny_graphs(seed=seed) for name, seed in (("old", 1), ("new", 2))}
    manifests = {name: tiny_manifest(*graph) for name, graph in graphs.items()}

    def write(name: str) -> None:
        write_engine_dir(target, graphs[name][0], manifests[name])

    def state() -> str:
        try:
            found = load_manifest(target, verify=True)
        except YonosError as error:
            return f"broken: {error}"
        return next((name for name, manifest in manifests.items() if manifest == found), "broken")

    return lambda: write("old"), lambda: write("new"), state


def _manifest(target: Path) -> Scenario:
    import msgspec
    from helpers import make_engine_dir, tiny_graphs, tiny_manifest

    from yonos_trt.engine.manifest import load_manifest, save_manifest

    new = msgspec.structs.replace(tiny_manifest(*tiny_graphs()), created_by="new")
    return (
        lambda: make_engine_dir(target),
        lambda: save_manifest(target, new),
        lambda: "new" if load_manifest(target).created_by == "new" else "old",
    )


def main(name: str, folder: str, number: str) -> None:
    target = Path(folder) / "target"
    kind, _, start = name.partition("-")
    scenarios = {"file": _file, "directory": _directory, "engine": _engine, "manifest": _manifest}
    make_old, work, state = scenarios[kind](target)
    if start == "renames":
        atomic._exchange = lambda one, other: False
    place = target if kind == "manifest" else target.parent  # where this kind leaves its parts

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        target.parent.mkdir()
        if start != "new":
            make_old()
        for own in USERS_OWN:
            (target.parent / own).write_text("the user's")

    def look() -> str:
        return state() if target.exists() else "nothing"

    found: Counter[tuple[str, str, tuple[str, ...]]] = Counter()
    # an engine directory makes ten times the calls of its pieces, which are stopped at every one
    stride = 11 if kind == "engine" else 1
    for _ in kill_points(prepare, work, signal.Signals[number], stride):
        before = look()
        atomic.remove_leftovers(place)
        left = [p.name for p in (*target.parent.iterdir(), *target.glob(".*")) if p != target]
        found[before, look(), tuple(sorted(left))] += 1
    sys.stdout.write(json.dumps([(*key, count) for key, count in found.items()]))


if __name__ == "__main__":
    main(*sys.argv[1:])
