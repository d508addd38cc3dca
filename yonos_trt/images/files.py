"""Output files: which suffix means which format, what each can hold, and writing that never leaves half a
file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from yonos_trt.atomic import atomic_file
from yonos_trt.choices import whole_number
from yonos_trt.errors import ConfigError, InputError, YonosError

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
        for name, low, high in (("quality", 1, 100), ("compression", 0, 9)):
            expected = f"a whole number from {low} to {high}"
            value = whole_number(name, getattr(self, name), expected)
            if not low <= value <= high:
                raise ConfigError(f"{name} is {value}, expected {expected}")
            object.__setattr__(self, name, value)
        for name in ("lossless", "drop_alpha", "drop_depth"):
            if (flag := getattr(self, name)) not in (True, False):
                raise ConfigError(f"{name} is {flag!r}, expected True or False")
            object.__setattr__(self, name, bool(flag))
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
        No option has such a name, the value is out of range, or ``options`` are no `SaveOptions`.
    """
    if not isinstance(options, SaveOptions | None):
        raise ConfigError(f"options is {options!r}, expected SaveOptions(quality=...), or None")
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
    """Yield an empty, new file beside ``path`` that takes its name when the block ends: `atomic_file`.

    On any error, KeyboardInterrupt included, it is removed and what stood at ``path`` stays.

    Raises
    ------
    InputError
        The folder is missing or not writable, ``path`` is a directory, the disk is full.
    """
    part: Path | None = None
    try:
        with atomic_file(path) as part, _told_if_full(part):
            yield part
    except OSError as error:
        raise cannot_write(path, error) from error
    except ValueError as error:  # a NUL, or half a character, in the name
        if part is not None or isinstance(error, YonosError):
            raise
        raise cannot_write(path, error) from error


@contextlib.contextmanager
def _told_if_full(part: Path) -> Iterator[None]:
    """Say "No space left on device" where an encoder met that and says "encoder error -2"."""
    try:
        yield
    except OSError as error:
        if error.errno is None and (code := _full(part)):
            raise OSError(code, os.strerror(code)) from error
        raise


def _full(part: Path) -> int | None:
    """Return the system's reason why a few more pages cannot be written, or None."""
    try:
        with tempfile.TemporaryFile(dir=part.parent) as file:
            file.seek(part.stat().st_size)
            file.write(bytes(1 << 16))
    except OSError as error:
        return error.errno
    return None


def tell_left_out(name: str, left_out: Sequence[str]) -> None:
    """Log one warning that names what of ``name`` its result does not carry; none if all is there."""
    if left_out:
        logger.warning("%s: left out: %s", name, "; ".join(left_out))


def cannot_write(path: str | os.PathLike[str], error: Exception) -> InputError:
    """Say why ``path`` cannot be written, in the system's words."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return InputError(f"{os.fspath(path)}: cannot be written: {reason or type(error).__name__}")
