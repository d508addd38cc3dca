"""Who of several processes does a file: `take` a claim on its target, and `Claim.release` it.

A claim is a locked file beside the target, named ``.yonos-<16 hex digits of the target's name>.part``. The
lock ends with the process that holds it; what a dead one leaves is taken over, or removed by
`yonos_trt.atomic.remove_leftovers`, which knows such names.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: no claims; two processes do the same file, and the later one's result stays
    fcntl = None  # type: ignore[assignment]

_LOCKS = fcntl is not None

_TRIES = 3  # a cleaner holds the lock of a dead claim for a moment
_PAUSE_S = 0.02


class Claim:
    """A target that this process, and no other, is to write."""

    def __init__(self, path: Path | None = None, lock: int = -1) -> None:
        self._path, self._lock = path, lock

    def release(self) -> None:
        """Let others have it. Idempotent."""
        path, self._path = self._path, None
        if path is not None:
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(self._lock)


def take(target: Path) -> Claim | None:
    """Claim ``target``, whose folder exists; None where a living process has it.

    Where the folder cannot be written or has no locks the claim holds nothing: whoever asks gets one.
    """
    if not _LOCKS:
        return Claim()
    real = os.path.realpath(target)
    digest = hashlib.sha256(os.fsencode(os.path.basename(real))).hexdigest()[:16]
    path = Path(os.path.dirname(real)) / f".yonos-{digest}.part"
    for attempt in range(_TRIES):
        try:
            lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o666)
        except OSError:
            return Claim()
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            time.sleep(_PAUSE_S * attempt)
            continue
        except OSError:
            return Claim(path, lock)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), os.lstat(path)):
                return Claim(path, lock)
        os.close(lock)  # its holder removed it between the two calls
    return None
