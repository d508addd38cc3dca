"""Add EXIF and GPS directories to a finished TIFF.

Neither libtiff through Pillow nor tifffile writes them into a compressed file. A TIFF is a linked structure,
so they can be put behind everything else: the sub-directories, then a new copy of the first directory that
points at them, then the header's pointer to it. Classic and BigTIFF, either byte order.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from yonos_trt.images.metadata import EXIF_IFD, GPS_IFD

__all__ = ["add_exif_directories", "plain_tags"]

# Directories inside the EXIF directory, which are not carried over.
_NESTED = (0xA005,)
_LONG, _LONG8 = 4, 16
_XMP = 700


def plain_tags(exif: bytes | None, xmp: bytes | None) -> bytes | None:
    """Return XMP and the tags of EXIF that stand in a TIFF's first directory, as EXIF; None if there are
    none.
    """
    from PIL import Image

    block, plain = Image.Exif(), Image.Exif()
    if exif:
        block.load(exif)
    for tag, value in block.items():
        if tag not in (EXIF_IFD, GPS_IFD):
            plain[tag] = value
    if xmp:
        plain[_XMP] = xmp
    return plain.tobytes() if len(plain) else None


def add_exif_directories(path: Path, exif: bytes) -> None:
    """Append the EXIF and GPS directories of ``exif`` to the TIFF at ``path`` and link them from its first
    directory.

    No effect if ``exif`` has neither.
    """
    from PIL import Image

    block = Image.Exif()
    block.load(exif)
    inner = {tag: dict(block.get_ifd(tag)) for tag in (EXIF_IFD, GPS_IFD) if tag in block}
    with path.open("rb+") as file:
        head = file.read(16)
        order = "<" if head[:1] == b"I" else ">"
        big = head[2:4] in (b"+\0", b"\0+")
        word, count_word, pointer_at = ("Q", "Q", 8) if big else ("I", "H", 4)
        entry_bytes = 20 if big else 12
        (first,) = struct.unpack_from(order + word, head, pointer_at)
        file.seek(first)
        (count,) = struct.unpack(order + count_word, file.read(struct.calcsize(count_word)))
        raw = file.read(count * entry_bytes + struct.calcsize(word))
        entries = {}
        for start in range(0, count * entry_bytes, entry_bytes):
            entry = raw[start : start + entry_bytes]
            entries[struct.unpack_from(order + "H", entry)[0]] = entry
        for tag, directory in inner.items():
            at = _append_directory(file, head, tag, directory)
            if at:
                form = order + "HH" + word + word
                entries[tag] = struct.pack(form, tag, _LONG8 if big else _LONG, 1, at)
        at = _align(file)
        if not inner or at >= 2 ** (64 if big else 32):
            return
        file.write(struct.pack(order + count_word, len(entries)))
        file.write(b"".join(entries[tag] for tag in sorted(entries)))
        file.write(raw[count * entry_bytes :])
        file.seek(pointer_at)
        file.write(struct.pack(order + word, at))


def _align(file: BinaryIO) -> int:
    """Go to the end of the file, on an even offset as TIFF wants it."""
    at = file.seek(0, 2)
    if at % 2:
        at += file.write(b"\0")
    return at


def _append_directory(file: BinaryIO, head: bytes, group: int, values: dict[int, object]) -> int:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    big = head[2:4] in (b"+\0", b"\0+")
    directory = ImageFileDirectory_v2(head[: 16 if big else 8], group=group)
    for tag, value in values.items():
        if tag not in _NESTED:
            directory[tag] = value
    if not len(directory):
        return 0
    at = _align(file)
    file.write(directory.tobytes(at))
    return at
