"""Add descriptive tags to a finished TIFF: EXIF and GPS directories, XMP, IPTC, Photoshop resources.

A TIFF is a linked structure, so they can be put behind everything else: the sub-directories, then a new copy
of the first directory that has the new tags and points at them, then the header's pointer to it. Classic and
BigTIFF, either byte order. What the writer of the pixels put into the first directory always wins.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from yonos_trt.images.carried import Carried
from yonos_trt.images.exif import (
    EXIF_IFD,
    GPS_IFD,
    INTEROP_IFD,
    YCBCR_POSITIONING,
    Directory,
    Entry,
    Exif,
    directory_bytes,
)
from yonos_trt.images.photoshop import iptc_of, parse_resources, resource_bytes

_BYTE, _LONG, _LONG8 = 1, 4, 16
_XMP, _IPTC, _PHOTOSHOP = 700, 33723, 34377


def tiff_blocks(given: Carried) -> dict[int, bytes]:
    """Return XMP, IPTC and Photoshop's resources by their tags."""
    resources = parse_resources(given.resources or b"")
    iptc = iptc_of(resources)
    others = resource_bytes(entry for entry in resources if entry[2] != iptc)  # IPTC has a tag of its own
    return {tag: raw for tag, raw in ((_XMP, given.xmp), (_IPTC, iptc), (_PHOTOSHOP, others)) if raw}


def add_tags(path: Path, exif: bytes | None, blocks: dict[int, bytes]) -> None:
    """Put EXIF's tags and directories, and blocks of bytes, into the first directory of the TIFF at ``path``.

    Parameters
    ----------
    path
        Rewritten in place.
    exif
        As ``Picture.exif``: descriptive tags only.
    blocks
        Tag -> its bytes (700 XMP, 33723 IPTC, 34377 Photoshop resources).
    """
    if not exif and not blocks:
        return
    with path.open("rb+") as file:
        head = file.read(16)
        order = "<" if head[:1] == b"I" else ">"
        big = head[2:4] in (b"+\0", b"\0+")
        word, count_word, pointer_at = ("Q", "Q", 8) if big else ("I", "H", 4)
        entry_bytes = 20 if big else 12
        new = Exif.parse(exif).in_order(order) if exif else Exif(order)
        new.main.pop(YCBCR_POSITIONING, None)  # of a JPEG's pixels
        new.exif = {tag: entry.for_tiff() for tag, entry in new.exif.items()}
        added: Directory = {tag: entry.for_tiff() for tag, entry in new.main.items()}
        added |= {tag: Entry(_BYTE, raw) for tag, raw in blocks.items()}
        if new.interop:
            at = _append(file, directory_bytes(new.interop, _align(file), order, big=big))
            new.exif[INTEROP_IFD] = _pointer(at, order, big=big)
        for tag, directory in ((EXIF_IFD, new.exif), (GPS_IFD, new.gps)):
            if directory:
                at = _append(file, directory_bytes(directory, _align(file), order, big=big))
                added[tag] = _pointer(at, order, big=big)
        file.seek(struct.unpack_from(order + word, head, pointer_at)[0])
        (count,) = struct.unpack(order + count_word, file.read(struct.calcsize(count_word)))
        raw = file.read(count * entry_bytes + struct.calcsize(word))
        old = {}
        for start in range(0, count * entry_bytes, entry_bytes):
            entry = raw[start : start + entry_bytes]
            old[struct.unpack_from(order + "H", entry)[0]] = entry
        added = {tag: entry for tag, entry in added.items() if tag not in old}
        at = _align(file)
        # The values of new tags stand behind the directory; those of old ones stay where they are.
        inline = struct.calcsize(word)
        values_at = at + struct.calcsize(count_word) + (len(old) + len(added)) * entry_bytes + inline
        values = b""
        for tag, value in added.items():
            place = value.raw.ljust(inline, b"\0")
            if len(value.raw) > inline:
                place = struct.pack(order + word, values_at + len(values))
                values += value.raw + bytes(len(value.raw) % 2)
            old[tag] = struct.pack(f"{order}HH{word}", tag, value.kind, value.count) + place
        end = values_at + len(values)
        if end >= 2 ** (64 if big else 32):
            raise OverflowError("the metadata ends behind 4 GiB; write it without, or as BigTIFF")
        file.write(struct.pack(order + count_word, len(old)))
        file.write(b"".join(old[tag] for tag in sorted(old)))
        file.write(raw[count * entry_bytes :] + values)
        file.seek(pointer_at)
        file.write(struct.pack(order + word, at))


def _pointer(at: int, order: str, *, big: bool) -> Entry:
    return Entry(_LONG8, struct.pack(order + "Q", at)) if big else Entry(_LONG, struct.pack(order + "I", at))


def _append(file: BinaryIO, block: bytes) -> int:
    at = _align(file)
    file.write(block)
    return at


def _align(file: BinaryIO) -> int:
    """Go to the end of the file, on an even offset as TIFF wants it."""
    at = file.seek(0, 2)
    if at % 2:
        at += file.write(b"\0")
    return at
