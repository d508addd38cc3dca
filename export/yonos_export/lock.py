"""One exporter per engine directory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from yonos_trt.errors import BuildError


@contextmanager
def only_builder(engine_dir: Path) -> Iterator[None]:
    """Hold the lock of an engine directory: a hidden file beside it, gone again afterwards.

    Raises
    ------
    BuildError
        Another process is exporting into the directory.
    """
    from filelock import FileLock, Timeout, UnixFileLock

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
        if isinstance(lock, UnixFileLock):
            # While it is held: whoever opened the file meanwhile finds it without a name and starts over.
            # Elsewhere what is open keeps its name, and the library removes the file as far as that goes.
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
