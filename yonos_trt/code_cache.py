"""Code that was compiled on this machine and is kept for the next start.

It is executable, and no manifest vouches for it: what is read has to belong to this user, or to whoever the
caller trusts as well. ``YONOS_CACHE_DIR`` names the folder; else it is the user's cache folder, which
``XDG_CACHE_HOME`` moves.
"""

from __future__ import annotations

import os
from pathlib import Path

from yonos_trt.atomic import atomic_file, remove_leftovers


def folder(name: str) -> Path:
    """Return where one kind of code is kept; it need not be there yet."""
    chosen = os.environ.get("YONOS_CACHE_DIR")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(chosen) if chosen else Path(base) / "yonos-trt") / name


def read(place: Path, *trusted: int) -> bytes:
    """Return a file's bytes.

    Raises
    ------
    PermissionError
        It belongs to neither this user nor one of the numbers in `trusted`.
    """
    if hasattr(os, "getuid"):  # Windows: files have no owner's number
        owner, owners = place.stat().st_uid, {os.getuid(), *trusted}
        if owner not in owners:
            raise PermissionError(f"it belongs to user {owner}, expected {sorted(owners)}; delete it")
    return place.read_bytes()


def write(place: Path, raw: bytes, *, mode: int) -> None:
    """Write a file, whole or not at all; a folder that is missing is made for this user alone."""
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    remove_leftovers(place.parent)
    with atomic_file(place) as part:
        part.write_bytes(raw)
        part.chmod(mode)
