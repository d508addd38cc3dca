"""How many CPUs this process may keep busy."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path

__all__ = ["startable_threads", "usable_cpus"]


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
    for folder in _groups(root):
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


def _groups(root: Path) -> Iterator[Path]:
    """Yield this process's control groups for CPUs, and all above them.

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
        if controllers and "cpu" not in controllers.split(","):
            continue
        for mount in (controllers, "cpu") if controllers else ("", "unified"):
            group = root / "sys/fs/cgroup" / mount
            yield group
            for part in Path(path.lstrip("/")).parts:
                if part == "..":  # the group lies above what a namespace shows
                    break
                group /= part
                yield group
