"""Folders that appear whole or not at all, and copies that take no space."""

from __future__ import annotations

import filecmp
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["share_equal_files", "whole_folder"]


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of ``target`` when the block ends.

    An old ``target`` stays until then; after an error in the block it stays for good.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    new, old = work / "new", work / "old"
    try:
        new.mkdir()
        yield new
        if target.exists():
            os.rename(target, old)
        try:
            os.rename(new, target)
        except OSError:
            if old.exists():
                os.rename(old, target)
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def share_equal_files(folder: Path, other: Path) -> int:
    """Make hard links of the files of ``folder`` that have the same name and bytes in ``other``.

    Where the file system has no hard links, the copies stay.

    Returns
    -------
    int
        The bytes that are stored once now and were stored twice.
    """
    saved = 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        twin = other / path.relative_to(folder)
        if not twin.is_file() or path.samefile(twin) or not filecmp.cmp(path, twin, shallow=False):
            continue
        link = path.with_name(path.name + ".part")
        try:
            os.link(twin, link)
        except OSError:
            return saved
        saved += path.stat().st_size
        os.replace(link, path)
    return saved
