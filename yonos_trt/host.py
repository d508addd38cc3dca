"""What this machine gives the process: CPUs, memory, interpreters of its own."""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

# ---------------------------------------------------------------------------------------------------------
# CPUs


def usable_cpus(root: Path = Path("/")) -> int:
    """Return the CPUs of this process's affinity, within the CPU quota of its control groups; at least 1.

    A container with ``--cpus 1.5`` sees every CPU of its host and is stopped for the rest of each period once
    its threads have used 1.5 of them together. Part of a CPU counts as one. Both versions of control groups
    are read, and those above this process's own as well: the smallest quota holds.

    Parameters
    ----------
    root
        Where ``proc`` and ``sys`` are.
    """
    # macOS and Windows have neither affinity nor control groups
    present = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([present, *(math.ceil(quota) for quota in _quotas(root))]))


@contextmanager
def scheduling_kept() -> Iterator[None]:
    """Undo what a library does to the scheduling of this process's threads; new ones run as the caller.

    SVT-AV1, started as root (in most containers), puts the calling thread and its own at real-time priority
    99: everything else on the machine would wait for them. Until the context ends (10 to 20 ms) they are so;
    other threads of the process are not. Linux alone.
    """
    if not sys.platform.startswith("linux") or not hasattr(os, "sched_getscheduler"):
        yield
        return
    before = _scheduling()
    own = before.get(threading.get_native_id())
    try:
        yield
    finally:
        for thread, now in _scheduling().items():
            policy, priority = before.get(thread) or own or now
            if now != (policy, priority):
                with suppress(OSError):  # the thread has ended, or the process gave up its rights
                    os.sched_setscheduler(thread, policy, os.sched_param(priority))


def _scheduling() -> dict[int, tuple[int, int]]:
    """Return policy and priority of every thread of this process."""
    found: dict[int, tuple[int, int]] = {}
    try:
        names = os.listdir("/proc/self/task")
    except OSError:  # not mounted
        return found
    for name in names:
        with suppress(OSError):
            found[int(name)] = os.sched_getscheduler(int(name)), os.sched_getparam(int(name)).sched_priority
    return found


def has_bf16(root: Path = Path("/")) -> bool:
    """Tell whether the CPU multiplies in bfloat16 (x86: AVX512-BF16 or AMX); False where nobody says so.

    Parameters
    ----------
    root
        Where ``proc`` is.
    """
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(cpu_fields(root).get("flags", "").split())


def cpu_fields(root: Path = Path("/")) -> dict[str, str]:
    """Return what the system says of the first processor: ``flags`` (Arm: ``Features``), ``model name`` ...

    Empty where there is no ``/proc/cpuinfo`` (macOS, Windows).
    """
    try:
        block = (root / "proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except (OSError, ValueError):
        return {}
    pairs = (line.partition(":") for line in block.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def startable_threads(count: int) -> int:
    """Return how many of ``count`` threads can be alive at once, by starting them for a moment."""
    started: list[threading.Thread] = []
    end = threading.Event()
    try:
        for _ in range(count):
            thread = threading.Thread(target=end.wait, daemon=True)
            thread.start()
            started.append(thread)
    except (RuntimeError, MemoryError):
        pass
    finally:
        end.set()
        for thread in started:
            thread.join()
    return len(started)


def _quotas(root: Path) -> Iterator[float]:
    """Yield every quota that holds for this process, in CPUs."""
    for folder in _groups(root, "cpu"):
        try:
            if (folder / "cpu.max").exists():  # version 2: "QUOTA PERIOD" or "max PERIOD", in microseconds
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota = (folder / "cpu.cfs_quota_us").read_text()
                period = (folder / "cpu.cfs_period_us").read_text()
            cpus = int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):  # no such group, or "max"
            continue
        if cpus > 0:  # version 1 writes -1 for no limit
            yield cpus


def _groups(root: Path, kind: str) -> Iterator[Path]:
    """Yield this process's control groups for `kind` ("cpu" or "memory"), and all above them.

    Inside a container the path in ``/proc/self/cgroup`` can be the host's, and the container's own group is
    then what is mounted at the top: folders that do not exist are passed over by the caller.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):
        lines = ["0::/"]
    for line in lines:  # "ID:CONTROLLERS:PATH", without controllers for version 2
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and kind not in controllers.split(","):
            continue
        for mount in (controllers, kind) if controllers else ("", "unified"):
            group = root / "sys/fs/cgroup" / mount
            yield group
            for part in Path(path.lstrip("/")).parts:
                if part == "..":  # the group lies above what a namespace shows
                    break
                group /= part
                yield group


# ---------------------------------------------------------------------------------------------------------
# Memory

_ASSUMED_BYTES = 4 << 30


def available_bytes(root: Path = Path("/")) -> int:
    """Return the bytes that can be taken without swapping, within the limit of the control group.

    Linux: ``MemAvailable``, and for a container ``memory.max - memory.current + inactive_file`` (page cache
    counts as used there, but gives way), or what version 1 of control groups calls these, of the process's
    own group and all above it: the smallest rest holds. Where nothing of that can be read: half of the
    physical memory, and 2 GiB where the system does not tell that either (Windows).
    """
    known = [*_rests(root)]
    if (free := _meminfo(root)) is not None:
        known.append(free)
    return min(known) if known else (physical_bytes() or _ASSUMED_BYTES) // 2


def physical_bytes() -> int | None:
    """Return the bytes of memory in this machine; None where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows has no such call
        return None


def _meminfo(root: Path) -> int | None:
    found = _field(root / "proc/meminfo", "MemAvailable:")
    return None if found is None else found << 10


_MEMORY_FILES = (  # limit, use, and the page cache in the statistics, by version of control groups
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def _rests(root: Path) -> Iterator[int]:
    """Yield what is left of every limit that holds for this process."""
    for folder in _groups(root, "memory"):
        for limit_file, current_file, cache in _MEMORY_FILES:
            try:
                limit = int((folder / limit_file).read_text())
                current = int((folder / current_file).read_text())
            except (OSError, ValueError):  # no such group, or "max"
                continue
            yield max(0, limit - current + (_field(folder / "memory.stat", cache) or 0))


def _field(path: Path, name: str) -> int | None:
    """Return the number behind `name` in a file of ``name value`` lines."""
    try:
        for line in path.read_text().splitlines():
            words = line.split()
            if len(words) >= 2 and words[0] == name:
                return int(words[1])
    except (OSError, ValueError):
        pass
    return None


def require_bytes(count: int) -> None:
    """Raise MemoryError unless `count` bytes can be taken now; nothing is kept, no page is touched.

    For libraries that end the process, or blame the file, when memory runs out.
    """
    if count > sys.maxsize:  # NumPy has another error for what no address reaches
        raise MemoryError
    np.empty(count, np.uint8)


# ---------------------------------------------------------------------------------------------------------
# Interpreters


def python_command(code: str, *arguments: str, package: bool = False) -> list[str]:
    """Return the command that runs `code` in this interpreter, isolated, with this process's import path.

    Isolated (``-I``): the current directory is not on the import path, so that a file that happens to lie
    there cannot take a module's place, and no ``PYTHON*`` variable has a say. What this process imports from,
    ``PYTHONPATH`` and the user's own site-packages among it, is handed over without the current directory.

    Parameters
    ----------
    code
        Python source.
    arguments
        Its ``sys.argv[1:]``.
    package
        Whether `code` imports this package: the folder it lies in then comes last on the path, also when
        that is the current directory.
    """
    path = _import_path()
    if package:
        root = str(Path(__file__).resolve().parents[1])
        path = [*(entry for entry in path if entry != root), root]
    return [sys.executable, "-I", "-c", f"import sys; sys.path[:] = {path!a}\n{code}", *arguments]


def _import_path() -> list[str]:
    """Return ``sys.path`` with absolute entries, without the current directory."""
    try:
        here = os.path.realpath(os.getcwd())
    except OSError:  # it was removed
        return [entry for entry in sys.path if os.path.isabs(entry)]
    entries = (os.path.abspath(entry) for entry in sys.path if entry)
    return [entry for entry in entries if os.path.realpath(entry) != here]
