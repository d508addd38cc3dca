"""EXIF as what it is, a small TIFF: read without trust, and written.

Values are kept as the bytes they were, with their type, so that nothing is reinterpreted on its way. Every
offset is checked; what points outside the block is skipped. Standard library only.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

# EXIF 2.32 tag numbers.
ORIENTATION, YCBCR_POSITIONING = 0x0112, 0x0213
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 0x011A, 0x011B, 0x0128
EXIF_IFD, GPS_IFD, INTEROP_IFD = 0x8769, 0x8825, 0xA005
USER_COMMENT = 0x9286

# TIFF 6.0 field types -> (bytes of one value, bytes that change places with the byte order).
_TYPES = {
    1: (1, 1), 2: (1, 1), 3: (2, 2), 4: (4, 4), 5: (8, 4), 6: (1, 1), 7: (1, 1), 8: (2, 2), 9: (4, 4),
    10: (8, 4), 11: (4, 4), 12: (8, 8), 13: (4, 4), 16: (8, 8), 17: (8, 8), 18: (8, 8), 129: (1, 1),
}  # fmt: skip
_LONG = 4
_UTF8, _ASCII = 129, 2  # Exif 3.0
_MOST_ENTRIES = 4096


@dataclass(frozen=True, slots=True)
class Entry:
    """One value: its TIFF type and its bytes, in the byte order of the block it belongs to."""

    kind: int
    raw: bytes

    @property
    def count(self) -> int:
        """Values in it."""
        return len(self.raw) // _TYPES[self.kind][0]

    def numbers(self, order: str) -> tuple[int, ...]:
        """Return unsigned integers; empty for another type."""
        letter = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}.get(self.kind)
        if letter is None:
            return ()
        return struct.unpack(f"{order}{len(self.raw) // struct.calcsize(letter)}{letter}", self.raw)

    def for_tiff(self) -> Entry:
        """Return the value in a type that TIFF knows."""
        return Entry(_ASCII, self.raw) if self.kind == _UTF8 else self

    def swapped(self) -> Entry:
        """Return the value in the other byte order."""
        size = _TYPES[self.kind][1]
        return Entry(self.kind, _swapped(self.raw, size)) if size > 1 else self


Directory = dict[int, Entry]


def _swapped(raw: bytes, size: int) -> bytes:
    whole = len(raw) // size * size
    swapped = bytearray(raw)
    for byte in range(size):
        swapped[byte:whole:size] = raw[size - 1 - byte : whole : size]
    return bytes(swapped)


@dataclass(slots=True)
class Exif:
    """The directories of an EXIF block.

    Parameters
    ----------
    order
        ``"<"`` or ``">"``.
    main, exif, gps, interop
        Tag -> entry; pointers between directories are not in them.
    has_thumbnail
        A second picture follows the first directory.
    is_damaged
        Something was skipped: it points outside the block, or has a type that does not exist.
    """

    order: str = "<"
    main: Directory = field(default_factory=dict)
    exif: Directory = field(default_factory=dict)
    gps: Directory = field(default_factory=dict)
    interop: Directory = field(default_factory=dict)
    has_thumbnail: bool = False
    is_damaged: bool = False

    @classmethod
    def parse(cls, block: bytes) -> Exif:
        """Read a block with or without its ``Exif\\0\\0``, or a whole TIFF or BigTIFF file.

        Raises
        ------
        ValueError
            Not a TIFF structure at all.
        """
        block = block.removeprefix(b"Exif\0\0")
        if block[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            raise ValueError("it does not start as TIFF")
        order = "<" if block[:1] == b"I" else ">"
        big = block[2:4] in (b"+\0", b"\0+")
        exif = cls(order)
        word, at = ("Q", 8) if big else ("I", 4)
        if len(block) < 16 and (big or len(block) < 8):
            raise ValueError("it is cut off inside its header")
        (first,) = struct.unpack_from(order + word, block, at)
        exif.main, following = exif._directory(block, first, big=big)
        exif.has_thumbnail = following != 0
        exif.exif = exif._below(block, exif.main, EXIF_IFD, big=big)
        exif.gps = exif._below(block, exif.main, GPS_IFD, big=big)
        exif.interop = exif._below(block, exif.exif, INTEROP_IFD, big=big)
        return exif

    def _below(self, block: bytes, directory: Directory, pointer: int, *, big: bool) -> Directory:
        entry = directory.pop(pointer, None)
        if entry is None:
            return {}
        offsets = entry.numbers(self.order)
        if len(offsets) != 1:
            self.is_damaged = True
            return {}
        return self._directory(block, offsets[0], big=big)[0]

    def _directory(self, block: bytes, offset: int, *, big: bool) -> tuple[Directory, int]:
        """Return the entries at ``offset`` and the offset of the directory after it (0: none)."""
        count_word, word = ("Q", "Q") if big else ("H", "I")
        inline, entry_bytes = struct.calcsize(word), 4 + 2 * struct.calcsize(word)
        entries: Directory = {}
        first = offset + struct.calcsize(count_word)
        if offset < 8 or first > len(block):
            self.is_damaged = True
            return entries, 0
        (count,) = struct.unpack_from(self.order + count_word, block, offset)
        fitting = min(count, _MOST_ENTRIES, (len(block) - first) // entry_bytes)
        self.is_damaged = self.is_damaged or fitting < count
        for at in range(first, first + fitting * entry_bytes, entry_bytes):
            tag, kind, values = struct.unpack_from(f"{self.order}HH{word}", block, at)
            size = _TYPES.get(kind, (0, 0))[0] * values
            begin = at + entry_bytes - inline
            if size > inline:
                (begin,) = struct.unpack_from(self.order + word, block, begin)
            if size == 0 or begin + size > len(block):
                self.is_damaged = self.is_damaged or kind not in _TYPES or size > 0
            else:
                entries.setdefault(tag, Entry(kind, block[begin : begin + size]))
        end = first + fitting * entry_bytes
        following = 0
        if fitting == count and end + inline <= len(block):
            (following,) = struct.unpack_from(self.order + word, block, end)
        return entries, following

    def in_order(self, order: str) -> Exif:
        """Return the same values in byte order ``order``."""
        if order == self.order:
            return self
        directories = [
            {tag: entry.swapped() for tag, entry in directory.items()}
            for directory in (self.main, self.exif, self.gps, self.interop)
        ]
        comment = directories[1].get(USER_COMMENT)
        if comment is not None and comment.raw.startswith(b"UNICODE\0"):  # UTF-16 in the block's byte order
            text = comment.raw[:8] + _swapped(comment.raw[8:], 2)
            directories[1][USER_COMMENT] = Entry(comment.kind, text)
        return Exif(order, directories[0], directories[1], directories[2], directories[3])

    def tobytes(self) -> bytes:
        """Return the block as files hold it, with ``Exif\\0\\0`` in front; empty without any entry."""
        if not (self.main or self.exif or self.gps or self.interop):
            return b""
        main, inner = dict(self.main), dict(self.exif)
        blank = Entry(_LONG, bytes(4))
        if self.interop:
            inner[INTEROP_IFD] = blank
        if inner:
            main[EXIF_IFD] = blank
        if self.gps:
            main[GPS_IFD] = blank
        at = 8 + len(directory_bytes(main, 8, self.order))
        places = {}
        for pointer, directory in ((EXIF_IFD, inner), (GPS_IFD, self.gps), (INTEROP_IFD, self.interop)):
            if directory:
                places[pointer] = at
                at += len(directory_bytes(directory, at, self.order))
        for directory in (main, inner):
            for pointer in places.keys() & directory.keys():
                directory[pointer] = Entry(_LONG, struct.pack(self.order + "I", places[pointer]))
        head = (b"II*\0" if self.order == "<" else b"MM\0*") + struct.pack(self.order + "I", 8)
        parts = [directory_bytes(main, 8, self.order)]
        for pointer, directory in ((EXIF_IFD, inner), (GPS_IFD, self.gps), (INTEROP_IFD, self.interop)):
            if directory:
                parts.append(directory_bytes(directory, places[pointer], self.order))
        return b"Exif\0\0" + head + b"".join(parts)


def directory_bytes(
    directory: Directory, at: int, order: str, *, big: bool = False, following: int = 0
) -> bytes:
    """Return a directory and its values as they stand at offset ``at`` of a TIFF, of an even length."""
    count_word, word = ("Q", "Q") if big else ("H", "I")
    inline = struct.calcsize(word)
    head = struct.calcsize(count_word) + len(directory) * (4 + 2 * inline) + inline
    entries, values = [], b""
    for tag in sorted(directory):
        kind, raw = directory[tag].kind, directory[tag].raw
        place = raw.ljust(inline, b"\0")
        if len(raw) > inline:
            place = struct.pack(order + word, at + head + len(values))
            values += raw + bytes(len(raw) % 2)
        entries.append(struct.pack(f"{order}HH{word}", tag, kind, directory[tag].count) + place)
    body = struct.pack(order + count_word, len(directory)) + b"".join(entries)
    whole = body + struct.pack(order + word, following) + values
    return whole + bytes(len(whole) % 2)
