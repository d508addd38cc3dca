"""Files and directories that appear whole or not at all: the one place of the project that writes and renames.

What is being written has a name of its own beside its target, ``.yonos-<16 hex digits>.part`` (a file) or
``.yonos-<16 hex digits>.parts`` (a directory), and is locked by the process that writes it. A name like that
whose lock is free was left by a process that died: `remove_leftovers` removes such names and no others. The
names do not grow with the target's, and nobody else's file has one.

Standard library only; loaded by all three packages.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, and so nothing is ever taken for a leftover
    fcntl = None  # type: ignore[assignment]

__all__ = ["atomic_directory", "atomic_file", "remove_leftovers", "sync", "write_file"]

StrPath = str | os.PathLike[str]

_LEFTOVER = re.compile(r"\.yonos-[0-9a-f]{16}\.parts?")
_OLD, _NEW, _TARGET = "old", "new", "target"  # inside a ``.parts`` directory
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # fcntl.h and linux/fs.h
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


# ---------------------------------------------------------------------------------------------------------
# Files


@contextlib.contextmanager
def atomic_file(target: StrPath) -> Iterator[Path]:
    """Yield the path of an empty file beside ``target``; when the block ends it is fsynced and takes the name.

    A link is followed: the file that it names is replaced. Where ``target`` exists, the new file has its
    permissions, otherwise those that the umask gives. After an exception in the block (KeyboardInterrupt
    too) what stood at ``target`` stays and the part is removed. The block may open the path as often as it
    likes, and may replace the file.

    Raises
    ------
    OSError
        The folder is missing or not writable, ``target`` is a directory, the disk is full; its ``filename``
        is ``target``, not the part.
    """
    real = Path(os.path.realpath(target))
    with _named(target):
        if real.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        part, lock = _new_part(real.parent)
    try:
        yield part
        with _named(target, part):
            with contextlib.suppress(FileNotFoundError):
                old = os.stat(real)
                if stat.S_ISREG(old.st_mode):
                    os.chmod(part, stat.S_IMODE(old.st_mode))
            sync(part)
            os.replace(part, real)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    finally:
        os.close(lock)
    with contextlib.suppress(OSError):
        sync(real.parent)


def write_file(target: StrPath, data: bytes | str) -> None:
    """Write ``data`` (str: as UTF-8) by way of `atomic_file`."""
    raw = data.encode("utf-8") if isinstance(data, str) else data
    with atomic_file(target) as part, _named(target, part):
        part.write_bytes(raw)


# ---------------------------------------------------------------------------------------------------------
# Directories


@contextlib.contextmanager
def atomic_directory(target: StrPath) -> Iterator[Path]:
    """Yield an empty directory that takes the place of ``target`` when the block ends.

    Every file in it is fsynced first. An old ``target`` stays until then and is removed afterwards; after an
    exception in the block it stays for good. Where the system can exchange two names in one step (Linux,
    most file systems), no moment is without one of the two; elsewhere the old directory is for a moment
    inside the ``.parts`` directory, from where the next `remove_leftovers` (or call of this function) beside
    it brings it back after a crash.

    Raises
    ------
    OSError
        The parent is missing or not writable, ``target`` is a file, the disk is full.
    """
    real = Path(os.path.realpath(target))
    with _named(target):
        if real.exists() and not real.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        real.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(real.parent)
        work, lock = _new_parts(real.parent)
    new, old = work / _NEW, work / _OLD
    try:
        with _named(target, new):
            new.mkdir()
        yield new
        with _named(target, new):
            _sync_tree(new)
            if not real.exists():
                os.rename(new, real)
            elif not _exchange(new, real):
                (work / _TARGET).write_bytes(os.fsencode(real.name))
                sync(work / _TARGET)
                os.rename(real, old)
                try:
                    os.rename(new, real)
                except OSError:
                    os.rename(old, real)
                    raise
    finally:
        _remove_parts(work)
        os.close(lock)
    with contextlib.suppress(OSError):
        sync(real.parent)


def remove_leftovers(folder: StrPath) -> list[Path]:
    """Remove what dead processes left in ``folder`` while they wrote; return the removed paths.

    Only names of this module whose lock is free; a directory that such a process had moved aside is put back
    first. What cannot be looked at, or belongs to a living process, stays.
    """
    removed: list[Path] = []
    try:
        names = [name for name in os.listdir(folder) if _LEFTOVER.fullmatch(name)]
    except OSError:
        return removed
    for name in sorted(names):
        path = Path(folder) / name
        lock = _lock(path)
        if lock is None:
            continue
        try:
            if path.is_dir() and not path.is_symlink():
                _remove_parts(path)
            else:
                path.unlink(missing_ok=True)
            removed.append(path)
        except OSError:
            continue
        finally:
            os.close(lock)
    return removed


def sync(path: StrPath) -> None:
    """Flush a file or directory to disk; a directory that the system does not open is skipped.

    Raises
    ------
    OSError
        Full or broken disk.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # file systems without fsync for directories
            raise
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------------------------------------------
# Pieces


def _new_part(folder: Path) -> tuple[Path, int]:
    """Create and lock a part; anew where somebody took it for a leftover before it was locked."""
    while True:
        part = folder / f".yonos-{secrets.token_hex(8)}.part"
        descriptor = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        if _locked(descriptor, part):
            return part, descriptor
        os.close(descriptor)


def _new_parts(folder: Path) -> tuple[Path, int]:
    while True:
        parts = folder / f".yonos-{secrets.token_hex(8)}.parts"
        parts.mkdir()
        try:
            descriptor = os.open(parts, os.O_RDONLY)
        except FileNotFoundError:
            continue
        except PermissionError:  # Windows does not open directories
            descriptor = os.open(os.devnull, os.O_RDONLY)
            return parts, descriptor
        if _locked(descriptor, parts):
            return parts, descriptor
        os.close(descriptor)


def _locked(descriptor: int, path: Path) -> bool:
    """Lock what was just created; False where it is gone by now. Without locks there is no cleaner either."""
    if fcntl is None:
        return True
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _lock(path: Path) -> int | None:
    """Open ``path`` and take its lock; None where a living process has it, or where that cannot be known."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_parts(work: Path) -> None:
    """Put back what was moved aside, where its place is empty, and remove the rest."""
    old, record = work / _OLD, work / _TARGET
    if old.is_dir() and record.is_file():
        home = work.parent / os.fsdecode(record.read_bytes())
        if not home.exists():
            os.rename(old, home)
    shutil.rmtree(work, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(other))


def _sync_tree(root: Path) -> None:
    for folder, _, files in os.walk(root):
        for name in files:
            sync(Path(folder) / name)
        sync(folder)


@contextlib.contextmanager
def _named(target: StrPath, part: Path | None = None) -> Iterator[None]:
    """Let errors of the system name ``target``: nobody looks for a name that is gone by then."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        if part is None or error.filename in (None, str(part), part):
            raise OSError(error.errno, error.strerror, os.fspath(target)) from error
        raise
