"""Output files: which suffix means which format, what each can hold, and writing that never leaves half a
file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from yonos_trt.errors import ConfigError, InputError

__all__ = [
    "SUPPORTED_SUFFIXES",
    "FileFormat",
    "SaveOptions",
    "atomic_path",
    "cannot_write",
    "chosen",
    "format_of",
    "tell_left_out",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FileFormat:
    """What an output format can hold.

    Parameters
    ----------
    name
        Pillow's name.
    modes
        Kinds it can hold as they are; palette, CMYK and YCbCr become RGB elsewhere.
    dtypes
        Depths it can hold, deepest last.
    max_side_px
        Largest height or width.
    streams
        Rows can be written one after another in O(width) memory.
    """

    name: str
    modes: tuple[str, ...]
    dtypes: tuple[str, ...]
    max_side_px: int
    streams: bool

    @property
    def holds_alpha(self) -> bool:
        """True if transparency can be written."""
        return "RGBA" in self.modes


_FORMATS = {
    "PNG": FileFormat("PNG", ("1", "L", "LA", "P", "RGB", "RGBA"), ("uint8", "uint16"), 2**31 - 1, True),
    # 65 535 by the format, 65 500 by libjpeg
    "JPEG": FileFormat("JPEG", ("L", "RGB", "CMYK", "YCbCr"), ("uint8",), 65_500, False),
    "WEBP": FileFormat("WEBP", ("RGB", "RGBA"), ("uint8",), 16_383, False),
    "TIFF": FileFormat(
        "TIFF", ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"), ("uint8", "uint16", "float32"), 2**31 - 1, True
    ),
    "AVIF": FileFormat("AVIF", ("RGB", "RGBA"), ("uint8",), 16_384, False),
}

SUPPORTED_SUFFIXES: dict[str, str] = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".avif": "AVIF",
}
"""Suffixes that can be written -> format name."""


@dataclass(frozen=True, slots=True)
class SaveOptions:
    """How to write.

    Parameters
    ----------
    quality
        1..100 for JPEG, WebP and AVIF.
    subsampling
        JPEG and AVIF chroma: ``"4:4:4"``, ``"4:2:2"`` or ``"4:2:0"``.
    lossless
        WebP without loss.
    compression
        0..9, effort of PNG and of TIFF's deflate; 0 writes TIFF uncompressed. 6 is zlib's own default.
    drop_alpha
        Allow a format without transparency; without it alpha into JPEG is an error.
    drop_depth
        Allow a format with less depth, which is then rounded; without it 16 bits into JPEG is an error.
    palette
        ``"adaptive"``: palette in, palette out (256 colours chosen anew); ``"rgb"``: write RGB(A) instead.
    """

    quality: int = 95
    subsampling: str = "4:4:4"
    lossless: bool = False
    compression: int = 6
    drop_alpha: bool = False
    drop_depth: bool = False
    palette: str = "adaptive"

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("quality", self.quality, 1, 100),
            ("compression", self.compression, 0, 9),
        ):
            if not isinstance(value, int) or not low <= value <= high:
                raise ConfigError(f"{name} is {value!r}, expected a whole number from {low} to {high}")
        for name, word, words in (
            ("subsampling", self.subsampling, ("4:4:4", "4:2:2", "4:2:0")),
            ("palette", self.palette, ("adaptive", "rgb")),
        ):
            if word not in words:
                raise ConfigError(f"{name} is {word!r}, expected one of {', '.join(words)}")


def chosen(options: SaveOptions | None, choices: dict[str, Any]) -> SaveOptions:
    """Return ``options`` with single choices replaced, for functions that take both.

    Raises
    ------
    ConfigError
        No option has such a name, or the value is out of range.
    """
    known = [field.name for field in fields(SaveOptions)]
    for name in choices:
        if name not in known:
            raise ConfigError(f"there is no option {name!r} for saving; options: {', '.join(known)}")
    return replace(options or SaveOptions(), **choices)


def format_of(path: str | os.PathLike[str], format: str | None = None) -> FileFormat:
    """Return the format a path's suffix names, or ``format`` ("png", "jpg", "PNG", ...) if given.

    Raises
    ------
    InputError
        Unknown; lists what is supported.
    """
    word = f".{format.lower().lstrip('.')}" if format else Path(path).suffix.lower()
    if word not in SUPPORTED_SUFFIXES:
        what = f"format {format!r}" if format else f"suffix {word!r}" if word else "a name without suffix"
        raise InputError(
            f"{os.fspath(path)}: cannot write {what}; supported: {', '.join(SUPPORTED_SUFFIXES)}"
        )
    return _FORMATS[SUPPORTED_SUFFIXES[word]]


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty, new ``.part`` file beside ``path``; on success it is fsynced and takes the name in one
    step.

    On any error, KeyboardInterrupt included, the ``.part`` file is removed and what stood at ``path`` stays.

    Raises
    ------
    InputError
        The folder is missing or not writable, ``path`` is a directory, the disk is full.
    """
    try:
        target = Path(os.path.realpath(path))
        part = target.with_name(f"{target.name[:120]}.{secrets.token_hex(4)}.part")
        if target.is_dir():
            raise InputError(f"{target}: is a directory, expected the name of a file to write")
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise cannot_write(path, error) from error
    try:
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise cannot_write(path, error) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def tell_left_out(name: str, left_out: Sequence[str]) -> None:
    """Log one warning that names what of ``name`` its result does not carry; none if all is there."""
    if left_out:
        logger.warning("%s: left out: %s", name, "; ".join(left_out))


def cannot_write(path: str | os.PathLike[str], error: Exception) -> InputError:
    """Say why ``path`` cannot be written, in the system's words."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return InputError(f"{os.fspath(path)}: cannot be written: {reason}")


def _sync_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut, where the system lets a folder be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
