"""Files and directories that appear whole or not at all: the one place that writes and renames.

What is being written has a name of its own beside its target, ``.yonos-<16 hex digits>.part`` (a file) or
``.yonos-<16 hex digits>.parts`` (a directory), and is locked by the process that writes it. A name like that
whose lock is free was left by a process that died: `remove_leftovers` removes such names and no others, and
only those of its own user. The names do not grow with the target's, and nobody else's file has one.

Standard library only; loaded by all three packages.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl as _fcntl

    fcntl: Any = _fcntl
except ImportError:  # Windows: nothing is locked, and so nothing is ever taken for a leftover
    fcntl = None

_log = logging.getLogger(__name__)

StrPath = str | os.PathLike[str]

_LEFTOVER = re.compile(r"\.yonos-[0-9a-f]{16}\.(parts?)")
_OLD, _NEW, _TARGET = "old", "new", "target"  # inside a ``.parts`` directory
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # fcntl.h and linux/fs.h
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)  # how a rename says that a directory has the name


# ---------------------------------------------------------------------------------------------------------
# Files


@contextlib.contextmanager
def atomic_file(target: StrPath) -> Iterator[Path]:
    """Yield the path of an empty file beside ``target``; when the block ends it takes the name, fsynced.

    A link is followed: the file that it names is replaced. Where ``target`` exists, the new file gets its
    permissions (and its owner, where the system lets us) and can be read by nobody else before that;
    otherwise it has those that the umask gives. After an exception in the block (KeyboardInterrupt too) what
    stood at ``target`` stays and the part is removed. The block may open the path as often as it likes, but
    must not put another file in its place.

    Raises
    ------
    OSError
        The folder is missing or not writable, ``target`` is a directory, a device or a pipe, the disk is
        full; its ``filename`` is ``target``, not the part.
    """
    real = Path(os.path.realpath(target))
    with _named(target):
        old = _status(target, real)
        if old is not None and stat.S_ISDIR(old.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if old is not None and not stat.S_ISREG(old.st_mode):
            raise OSError(errno.EINVAL, "Not a regular file, so it cannot be replaced")
        part, lock = _new_part(real.parent, 0o666 if old is None else 0o600)
    try:
        with _named(target, part, unnamed=False):
            yield part
        with _named(target, part):
            sync(part)
            if old is not None:
                _inherit(part, old, 0o777)
            os.replace(part, real)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    finally:
        _unlock(lock)
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
    exception in the block it stays for good. The new one has its permissions. Where the system can exchange
    two names in one step (Linux, most file systems), no moment is without one of the two; elsewhere the old
    directory is for a moment inside the ``.parts`` directory, from where the next `remove_leftovers` (or call
    of this function) beside it brings it back after a crash. Missing parents are made.

    Raises
    ------
    OSError
        The parent is not writable, ``target`` is a file, the disk is full; its ``filename`` is ``target``.
    """
    real = Path(os.path.realpath(target))
    with _named(target):
        old = _status(target, real)
        if old is not None and not stat.S_ISDIR(old.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        real.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(real.parent)
        work, lock = _new_parts(real.parent)
    new = work / _NEW
    try:
        with _named(target, new):
            new.mkdir()
        with _named(target, new, unnamed=False):
            yield new
        with _named(target, new):
            _sync_tree(new)
            if old is not None:
                _inherit(new, old, 0o7777)
            _take_place(work, real)
    finally:
        _remove_parts(work)
        _unlock(lock)
    with contextlib.suppress(OSError):
        sync(real.parent)


@contextlib.contextmanager
def scratch_directory(folder: StrPath) -> Iterator[Path]:
    """Yield an empty directory in ``folder`` for what is needed for a while; it is gone when the block ends.

    What a killed process leaves, the next call beside it (or `remove_leftovers`) removes.

    Raises
    ------
    OSError
        The folder is missing or not writable.
    """
    real = Path(os.path.realpath(folder))
    with _named(folder):
        remove_leftovers(real)
        work, lock = _new_parts(real)
    try:
        (work / _NEW).mkdir()
        yield work / _NEW
    finally:
        _remove_parts(work)
        os.close(lock)


def remove_leftovers(folder: StrPath) -> list[Path]:
    """Remove what dead processes of this user left in ``folder`` while they wrote; return the removed paths.

    Only names of this module whose lock is free; a directory that such a process had moved aside is put back
    first. What cannot be looked at, or belongs to a living process or to another user, stays.
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
            if name.endswith(".parts"):
                _remove_parts(path)
            else:
                path.unlink(missing_ok=True)
            if not path.exists():
                removed.append(path)
        except OSError:
            continue
        finally:
            _unlock(lock)
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


def _status(target: StrPath, real: Path) -> os.stat_result | None:
    """Look at what ``target`` leads to; None where there is nothing."""
    try:
        return os.stat(target)
    except FileNotFoundError:
        if real.is_symlink():  # a circle of links that was broken up while we looked
            raise
        return None


def _inherit(path: Path, old: os.stat_result, mask: int) -> None:
    """Give ``path`` owner and permissions of what it replaces."""
    if hasattr(os, "chown") and (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
        with contextlib.suppress(OSError):
            os.chown(path, old.st_uid, old.st_gid)
    os.chmod(path, stat.S_IMODE(old.st_mode) & mask)


def _new_part(folder: Path, mode: int) -> tuple[Path, int]:
    """Create and lock a part; anew where somebody took it for a leftover before it was locked."""
    while True:
        part = folder / f".yonos-{secrets.token_hex(8)}.part"
        descriptor = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
        if fcntl is None:  # Windows does not rename what is open
            os.close(descriptor)
            return part, -1
        if _locked(descriptor, part):
            return part, descriptor
        os.close(descriptor)


def _new_parts(folder: Path) -> tuple[Path, int]:
    while True:
        parts = folder / f".yonos-{secrets.token_hex(8)}.parts"
        parts.mkdir()
        if fcntl is None:
            return parts, -1
        try:
            descriptor = os.open(parts, os.O_RDONLY)
        except FileNotFoundError:
            continue
        if _locked(descriptor, parts):
            return parts, descriptor
        os.close(descriptor)


def _locked(descriptor: int, path: Path) -> bool:
    """Lock what was just created; False where it is gone by now.

    Waits for a cleaner that was quicker. Where the file system has no locks there is no cleaner either.
    """
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return _is(descriptor, path)


def _is(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _lock(path: Path) -> int | None:
    """Open a leftover and take its lock; None where it is no leftover, or where that cannot be known."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = os.fstat(descriptor)
        kind = stat.S_ISDIR if path.suffix == ".parts" else stat.S_ISREG
        if kind(found.st_mode) and found.st_uid == os.geteuid() and _is(descriptor, path):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def _unlock(lock: int) -> None:
    if lock >= 0:
        os.close(lock)


def _take_place(work: Path, real: Path) -> None:
    """Let ``work``'s new directory take the name ``real``; what had it ends inside ``work``.

    Other writers of the same name may come in between at any point, each with something whole.
    """
    new, old, record = work / _NEW, work / _OLD, work / _TARGET
    while True:
        try:
            os.rename(new, real)  # nothing, or an empty directory, has the name
            return
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
        try:
            if _exchange(new, real):
                return
            record.write_bytes(os.fsencode(real.name))
            sync(record)
            os.rename(real, old)
        except FileNotFoundError:  # the one that had the name was moved away
            if not new.exists():
                raise
            continue
        try:
            os.rename(new, real)
            return
        except OSError as error:
            if error.errno not in _TAKEN:
                os.rename(old, real)
                raise
        shutil.rmtree(old)  # somebody else's new one stands there: this one is no longer the latest


def _remove_parts(work: Path) -> None:
    """Put back what was moved aside, if nothing came in its place, and remove the rest."""
    new, old, record = work / _NEW, work / _OLD, work / _TARGET
    if old.is_dir() and new.is_dir() and record.is_file():  # died, or failed, between the two renames
        name = os.fsdecode(record.read_bytes())
        if name in ("", ".", "..") or name != os.path.basename(name):
            return
        home = work.parent / name
        try:
            os.rename(old, home)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            _log.warning("%s stood at %s before a crash, and something else does now; delete one", old, home)
            return
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
            path = Path(folder) / name
            if path.is_file() and not path.is_symlink():  # a pipe would wait for its other end
                sync(path)
        sync(folder)


@contextlib.contextmanager
def _named(target: StrPath, part: Path | None = None, *, unnamed: bool = True) -> Iterator[None]:
    """Let errors of the system name ``target``: nobody looks for a name that is gone by then."""
    try:
        yield
    except OSError as error:
        about = str(error.filename) if error.filename is not None else None
        ours = unnamed if about is None else part is None or _below(about, part)
        if error.errno is not None and ours:
            error.filename = os.fspath(target)
            del error.filename2  # None would be printed as a name
        raise


def _below(name: str, part: Path) -> bool:
    return name == str(part) or name.startswith(f"{part}{os.sep}")
