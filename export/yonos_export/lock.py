"""One exporter per engine directory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from yonos_trt.errors import BuildError


@contextmanager
def only_builder(engine_dir: Path) -> Iterator[None]:
    """Hold the lock of an engine directory; the lock file stays beside it.

    Raises
    ------
    BuildError
        Another process is exporting into the directory.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(engine_dir.parent / f".{engine_dir.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BuildError(
            f"another export is writing {engine_dir} (it holds {lock.lock_file}); wait for it, or choose "
            "another --engine-dir"
        ) from error
    try:
        yield
    finally:
        lock.release()
