"""How much host memory this process may still take."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

__all__ = ["available_bytes", "physical_bytes", "require_bytes"]

_ASSUMED_BYTES = 4 << 30


def available_bytes(root: Path = Path("/")) -> int:
    """Return the bytes that can be taken without swapping, within the limit of the control group.

    Linux: ``MemAvailable``, and for a container ``memory.max - memory.current + inactive_file`` (page cache
    counts as used there, but gives way). Where nothing of that can be read: half of the physical memory, and
    2 GiB where the system does not tell that either (Windows).
    """
    known = [value for value in (_meminfo(root), _cgroup(root)) if value is not None]
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


def _cgroup(root: Path) -> int | None:
    """Return what is left of a version 2 control group; None without a limit."""
    folder = root / "sys/fs/cgroup"
    try:
        limit = int((folder / "memory.max").read_text())
        current = int((folder / "memory.current").read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return None
    return max(0, limit - current + (_field(folder / "memory.stat", "inactive_file") or 0))


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
