"""Takes away what only Linux has; to be imported before anything of the project, as `test_portable` does.

What is left is what macOS and Windows have in common with it. ``os.getuid`` stays.
"""

# ruff: noqa: SIM905
from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any

OS = (
    "O_CLOEXEC O_DIRECT O_DIRECTORY O_NOFOLLOW chown copy_file_range eventfd fchmod fchown fork "
    "forkpty getloadavg getpgid getpriority killpg lchown memfd_create mkfifo mknod nice "
    "pidfd_open posix_fadvise posix_fallocate pread preadv process_cpu_count pwrite pwritev "
    "sched_getaffinity sched_setaffinity sendfile setsid splice statvfs sysconf"
).split()
MODULES = "fcntl grp pwd resource syslog termios tty pty".split()
SIGNALS = "SIGHUP SIGQUIT SIGTSTP SIGUSR1 SIGUSR2 SIGWINCH pthread_sigmask sigwait sigtimedwait".split()

for name in OS:
    if hasattr(os, name):
        delattr(os, name)
for name in SIGNALS:
    if hasattr(signal, name):
        delattr(signal, name)
for name in MODULES:
    sys.modules[name] = None  # type: ignore[assignment]

_load, _open, _read_text = ctypes.CDLL.__init__, os.open, Path.read_text


def _ours() -> bool:
    """Tell whether the project's own code made the call: its dependencies have other builds elsewhere."""
    return str(sys._getframe(2).f_globals.get("__name__")).startswith("yonos_")


def _load_named(self: Any, name: Any, *args: Any, **options: Any) -> None:
    if name is None and _ours():  # Windows: there is no library of the process itself
        raise TypeError("bad argument type for built-in operation")
    _load(self, name, *args, **options)


def _open_file(path: Any, *args: Any, **options: Any) -> int:
    if os.path.isdir(path) and _ours():  # Windows: folders cannot be opened, and so not synchronised
        raise PermissionError(13, "Permission denied", path)
    return _open(path, *args, **options)


def _read_elsewhere(self: Path, *args: Any, **options: Any) -> str:
    if str(self).startswith(("/proc/", "/sys/")) and _ours():
        raise FileNotFoundError(2, "No such file or directory", str(self))
    return _read_text(self, *args, **options)


ctypes.CDLL.__init__ = _load_named  # type: ignore[method-assign]
os.open = _open_file
Path.read_text = _read_elsewhere  # type: ignore[method-assign]
