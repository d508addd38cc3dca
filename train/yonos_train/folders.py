"""Safetensors files that appear whole or not at all, and copies that take no space."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from yonos_trt.atomic import atomic_file


class RunFileError(ValueError):
    """A file of a run's folder, or of a bundle, cannot be used; the message names it."""


def save_tensors(
    tensors: Mapping[str, Tensor], target: Path, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors, of any device, by way of `atomic_file`.

    Raises
    ------
    OSError
        Full disk, or a folder that cannot be written; the message names ``target``.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with atomic_file(target) as part:
        try:
            save_file(plain, part, metadata=None if metadata is None else dict(metadata))
        except SafetensorError as error:
            raise OSError(f"{target} cannot be written: {error}") from error


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
        size = path.stat().st_size
        try:
            with atomic_file(path) as part:
                part.unlink()
                os.link(twin, part)
        except OSError:
            return saved
        saved += size
    return saved
