"""EXIF as what it is, a small TIFF: read without trust, cut down to what describes the picture, made true.

Values are kept as the bytes they were, with their type, so that nothing is reinterpreted on its way. Every
offset is checked; what points outside the block is skipped. Standard library only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction

from yonos_trt.images.exif_tags import CODING, DESCRIPTIVE, name_of

__all__ = [
    "EXIF_IFD",
    "GPS_IFD",
    "INTEROP_IFD",
    "ORIENTATION",
    "YCBCR_POSITIONING",
    "Directory",
    "Entry",
    "Exif",
    "directory_bytes",
    "grown",
    "upright_exif",
    "with_resolution",
]

# EXIF 2.32 tag numbers.
ORIENTATION, YCBCR_POSITIONING = 0x0112, 0x0213
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 0x011A, 0x011B, 0x0128
IMAGE_DESCRIPTION = 0x010E
IMAGE_WIDTH, IMAGE_LENGTH = 0x0100, 0x0101
EXIF_IFD, GPS_IFD, INTEROP_IFD = 0x8769, 0x8825, 0xA005
PIXEL_X_DIMENSION, PIXEL_Y_DIMENSION = 0xA002, 0xA003
FOCAL_PLANE_X_RESOLUTION, FOCAL_PLANE_Y_RESOLUTION = 0xA20E, 0xA20F
SUBJECT_AREA, SUBJECT_LOCATION = 0x9214, 0xA214
MAKER_NOTE, USER_COMMENT = 0x927C, 0x9286
_PADDING = (0xEA1C, 0xEA1D)  # Microsoft's room for edits

# TIFF 6.0 field types -> (bytes of one value, bytes that change places with the byte order).
_TYPES = {
    1: (1, 1), 2: (1, 1), 3: (2, 2), 4: (4, 4), 5: (8, 4), 6: (1, 1), 7: (1, 1), 8: (2, 2), 9: (4, 4),
    10: (8, 4), 11: (4, 4), 12: (8, 8), 13: (4, 4), 16: (8, 8), 17: (8, 8), 18: (8, 8), 129: (1, 1),
}  # fmt: skip
_SHORT, _LONG, _RATIONAL, _LONG8 = 3, 4, 5, 16
_BIG_TYPES = (16, 17, 18)  # of BigTIFF, which EXIF is not
_UTF8, _ASCII = 129, 2  # Exif 3.0
_MOST_ENTRIES = 4096
# Type and count of the numbers that travel in a first directory; readers of TIFF stumble over others.
_SHAPES = {
    ORIENTATION: (_SHORT, 1), X_RESOLUTION: (_RATIONAL, 1), Y_RESOLUTION: (_RATIONAL, 1),
    RESOLUTION_UNIT: (_SHORT, 1), YCBCR_POSITIONING: (_SHORT, 1), 0x0129: (_SHORT, 2),  # page number
    0x013E: (_RATIONAL, 2), 0x013F: (_RATIONAL, 6),  # white point, primaries
}  # fmt: skip


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


# -- Made true -------------------------------------------------------------------------------------


def upright_exif(
    block: bytes, orientation: int, stored_px: tuple[int, int], *, is_tiff: bool = False
) -> tuple[bytes | None, tuple[str, ...]]:
    """Cut EXIF down to what describes the picture, for pixels that have been turned upright.

    Parameters
    ----------
    block
        EXIF as a file holds it, or a whole TIFF file.
    orientation
        1..8, which has been applied to the pixels.
    stored_px
        (height, width) before that.
    is_tiff
        ``block`` is a picture itself: its further pages are not a thumbnail's.

    Returns
    -------
    EXIF with orientation 1, or None if nothing is left; and what was removed, for ``Picture.left_out``.
    """
    try:
        exif = Exif.parse(block)
    except (ValueError, struct.error) as error:
        return None, (f"EXIF, which cannot be read ({error})",)
    for directory in (exif.main, exif.exif, exif.gps, exif.interop):
        for tag in [tag for tag, entry in directory.items() if entry.kind in _BIG_TYPES]:
            del directory[tag]
            exif.is_damaged = True
    for tag, (kind, count) in _SHAPES.items():
        if (entry := exif.main.get(tag)) is not None and (entry.kind, entry.count) != (kind, count):
            del exif.main[tag]
            exif.is_damaged = True
    if exif.is_damaged and not (exif.main or exif.exif or exif.gps):
        return None, ("EXIF, which cannot be read (its directory is damaged)",)
    left_out = ["damaged entries of EXIF"] if exif.is_damaged else []
    if exif.has_thumbnail:
        copies = "smaller copies in the TIFF, which show" if is_tiff else "EXIF thumbnail, which shows"
        left_out.append(f"{copies} the old picture")
    unknown = [tag for tag in exif.main if tag not in DESCRIPTIVE and tag not in CODING]
    if unknown:
        left_out.append(f"tags that may describe the old pixels: {_names(unknown)}")
    kept = {tag: entry for tag, entry in exif.main.items() if tag in DESCRIPTIVE}
    if not is_tiff:  # their size entries are made true later
        kept |= {tag: exif.main[tag] for tag in (IMAGE_WIDTH, IMAGE_LENGTH) if tag in exif.main}
    if ORIENTATION in kept:
        kept[ORIENTATION] = Entry(_SHORT, struct.pack(exif.order + "H", 1))
    if (what := _machine_description(kept.get(IMAGE_DESCRIPTION))) is not None:
        del kept[IMAGE_DESCRIPTION]
        left_out.append(f"{what} in the image description, which lists the old file's pixels")
    exif.main = kept
    if exif.exif.pop(MAKER_NOTE, None) is not None:
        left_out.append("EXIF maker note, whose offsets and positions belong to the old file")
    for tag in (*_PADDING, *(tag for tag in exif.exif if tag in CODING)):
        exif.exif.pop(tag, None)
    _turn_subject(exif, orientation, stored_px)
    if orientation >= 5:
        for one, other in (
            (FOCAL_PLANE_X_RESOLUTION, FOCAL_PLANE_Y_RESOLUTION),
            (PIXEL_X_DIMENSION, PIXEL_Y_DIMENSION),
        ):
            _swap(exif.exif, one, other)
        _swap(exif.main, X_RESOLUTION, Y_RESOLUTION)
    return exif.tobytes() or None, tuple(left_out)


def _machine_description(entry: Entry | None) -> str | None:
    """Say which program's own notes an image description holds, None for words of people."""
    text = entry.raw.strip(b"\0 \r\n") if entry is not None else b""
    for what, is_it in (
        ("OME-XML", b"<OME" in text[:4096] or b":OME" in text[:4096]),
        ("ImageJ's notes", text.startswith(b"ImageJ=")),
        ("tifffile's shape", text.startswith((b'{"shape":', b"shape=("))),
        ("scanner's notes", text.startswith(b"Aperio ")),
    ):
        if is_it:
            return what
    return None


def _names(tags: Iterable[int]) -> str:
    return ", ".join(name_of(tag) for tag in sorted(tags))


def _swap(directory: Directory, one: int, other: int) -> None:
    first, second = directory.pop(one, None), directory.pop(other, None)
    directory |= {tag: e for tag, e in ((one, second), (other, first)) if e is not None}


def _turn_subject(exif: Exif, orientation: int, stored_px: tuple[int, int]) -> None:
    """Move the subject's place, which EXIF gives in stored pixels, to where it is seen."""
    height_px, width_px = stored_px
    for tag in (SUBJECT_AREA, SUBJECT_LOCATION):
        entry = exif.exif.get(tag)
        values = entry.numbers(exif.order) if entry is not None else ()
        if entry is None or orientation == 1:
            continue
        if not 2 <= len(values) <= 4:
            del exif.exif[tag]
            continue
        x, y, *size = values
        if orientation in (2, 3, 7, 8):
            x = width_px - 1 - x
        if orientation in (3, 4, 6, 7):
            y = height_px - 1 - y
        if orientation >= 5:
            x, y, size = y, x, size[::-1]
        exif.exif[tag] = _longs(exif.order, [max(0, x), max(0, y), *size])


def _longs(order: str, values: Iterable[int]) -> Entry:
    values = [min(value, 2**32 - 1) for value in values]
    letter, kind = ("H", _SHORT) if max(values) < 2**16 else ("I", _LONG)
    return Entry(kind, struct.pack(f"{order}{len(values)}{letter}", *values))


def grown(block: bytes, height_px: int, width_px: int, source_px: tuple[int, int]) -> bytes:
    """Return EXIF (from ``upright_exif``) made true for a picture grown from ``source_px`` to a new size.

    Sizes, the subject's place and the focal plane's resolution, where there are any.
    """
    exif = Exif.parse(block)
    for directory, tags in (
        (exif.exif, (PIXEL_X_DIMENSION, PIXEL_Y_DIMENSION)),
        (exif.main, (IMAGE_WIDTH, IMAGE_LENGTH)),
    ):
        for tag, value in zip(tags, (width_px, height_px), strict=True):
            if tag in directory:
                directory[tag] = _longs(exif.order, [value])
    scale_x, scale_y = Fraction(width_px, source_px[1]), Fraction(height_px, source_px[0])
    if scale_x == scale_y == 1:
        return exif.tobytes()
    for tag in (SUBJECT_AREA, SUBJECT_LOCATION):
        values = exif.exif[tag].numbers(exif.order) if tag in exif.exif else ()
        if 2 <= len(values) <= 4:
            x, y = ((2 * values[0] + 1) * scale_x // 2, (2 * values[1] + 1) * scale_y // 2)
            size = [round(v * s) for v, s in zip(values[2:], (scale_x, scale_y), strict=False)]
            exif.exif[tag] = _longs(exif.order, [int(x), int(y), *size])
    for tag, scale in ((FOCAL_PLANE_X_RESOLUTION, scale_x), (FOCAL_PLANE_Y_RESOLUTION, scale_y)):
        entry = exif.exif.get(tag)
        if entry is not None and entry.kind == _RATIONAL and len(entry.raw) == 8:
            top, bottom = struct.unpack(exif.order + "II", entry.raw)
            if bottom:
                exact = _fitting(Fraction(top, bottom) * scale)
                exif.exif[tag] = Entry(_RATIONAL, struct.pack(exif.order + "II", *exact))
    return exif.tobytes()


def with_resolution(block: bytes | None, dpi: tuple[float, float]) -> bytes:
    """Return EXIF that says a resolution; one that does already stays as it is."""
    exif = Exif.parse(block) if block else Exif()
    if X_RESOLUTION not in exif.main and Y_RESOLUTION not in exif.main:
        for tag, value in zip((X_RESOLUTION, Y_RESOLUTION), dpi, strict=True):
            exact = _fitting(Fraction(value).limit_denominator(10_000))
            exif.main[tag] = Entry(_RATIONAL, struct.pack(exif.order + "II", *exact))
        exif.main[RESOLUTION_UNIT] = Entry(_SHORT, struct.pack(exif.order + "H", 2))
    return exif.tobytes()


def _fitting(value: Fraction) -> tuple[int, int]:
    """Return numerator and denominator in 32 bits, as near as they get."""
    limit = 2**32 - 1
    if value.numerator > limit or value.denominator > limit:
        value = value.limit_denominator(max(1, limit // max(1, int(value) + 1)))
    return min(value.numerator, limit), value.denominator
