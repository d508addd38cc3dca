"""Walk a TIFF's directories: what it holds, and whether everything it points at is there.

TIFF 6.0 and BigTIFF. Decoders fill missing strips with zeros or read the first page only; this finds out
before. Standard library only.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from yonos_trt.errors import listed
from yonos_trt.images.header import Header, MalformedError

# TIFF 6.0 field types: code -> (bytes, struct letter of unsigned integers or None).
_TIFF_TYPES: dict[int, tuple[int, str | None]] = {
    1: (1, "B"), 2: (1, None), 3: (2, "H"), 4: (4, "I"), 5: (8, None), 6: (1, None), 7: (1, None),
    8: (2, None), 9: (4, None), 10: (8, None), 11: (4, None), 12: (8, None), 13: (4, "I"), 16: (8, "Q"),
    17: (8, None), 18: (8, "Q"),
}  # fmt: skip
# What the reader needs to know of the first picture. Nothing else is unpacked: any number of tags may point
# at the same bytes.
_STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES = 273, 279, 324, 325
_LOCATIONS = (_STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES)
_STRUCTURE = (
    254,
    256,
    257,
    258,
    259,
    262,
    266,
    274,
    277,
    278,
    284,
    317,
    322,
    323,
    332,
    338,
    339,
    32997,
    32998,
)
_MOST_VALUES = 65_535  # of a tag with a value for each sample
# A tile may be larger than a small picture, but not by so much that memory is taken for nothing.
_LARGEST_TILE_PX = 2048
# PhotometricInterpretation -> (name, samples without alpha).
_COLOURS = {
    0: ("grey", 1), 1: ("grey", 1), 2: ("RGB", 3), 3: ("palette", 1), 5: ("CMYK", 4), 6: ("YCbCr", 3),
}  # fmt: skip
_FOREIGN_COLOURS = {
    4: "a transparency mask", 8: "CIE L*a*b*", 9: "ICC L*a*b*", 10: "ITU L*a*b*",
    32803: "a sensor's colour mosaic", 32844: "LogL", 32845: "LogLuv", 34892: "linear raw",
}  # fmt: skip
_SAMPLE_FORMATS = {2: "signed integer", 5: "complex integer", 6: "complex float"}
_ALPHA = (1, 2)  # ExtraSamples: premultiplied, straight


def tiff_header(data: bytes) -> Header:
    """Return the header of the first directory, after checking that all of the file's data lie inside it.

    Time and memory are bounded by the size of the file, whatever its directories point at.

    Raises
    ------
    MalformedError
        Truncated, directories or values that overlap, missing pixels, or samples whose meaning or values
        could not be kept: signed, complex, of mixed depths, or more of them than colour and one alpha.
    struct.error, IndexError
        Truncated inside a number.
    """
    order = "<" if data[:1] == b"I" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    word, entry_bytes = ("Q", 20) if big else ("I", 12)
    (offset,) = struct.unpack_from(order + word, data, 8 if big else 4)
    page: dict[int, _Field] | None = None
    pages = directory_bytes = 0
    seen: set[int] = set()
    while offset:
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, offset)
        first = offset + (8 if big else 2)
        end = first + count * entry_bytes
        directory_bytes += end - offset
        if offset in seen or directory_bytes > len(data):
            raise MalformedError("the TIFF is damaged: its directories overlap or form a loop")
        seen.add(offset)
        if end + struct.calcsize(word) > len(data):
            raise MalformedError(f"the TIFF is truncated inside the directory at byte {offset}")
        fields = _fields(data, first, end, order, word)
        kind = fields.get(254)
        if kind is None or not kind.numbers(data)[0] & 1:  # reduced-size copies do not count
            pages += 1
            page = page or fields
        elif page is None:
            raise MalformedError("the TIFF starts with a reduced copy of its picture, which is not supported")
        (offset,) = struct.unpack_from(order + word, data, end)
    if page is None:
        raise MalformedError("the TIFF holds no picture")
    return _page(data, page, pages)


@dataclass(frozen=True, slots=True)
class _Field:
    """Where the numbers of a tag are; they are unpacked when they are wanted."""

    tag: int
    at: int
    values: int
    letter: str
    order: str

    def numbers(self, data: bytes) -> tuple[int, ...]:
        return struct.unpack_from(f"{self.order}{self.values}{self.letter}", data, self.at)


def _fields(data: bytes, first: int, end: int, order: str, word: str) -> dict[int, _Field]:
    """Check where every tag of a directory points; return those the reader needs."""
    inline = struct.calcsize(word)
    entry_bytes = 4 + 2 * inline
    fields: dict[int, _Field] = {}
    outside = 0
    for entry in range(first, end, entry_bytes):
        tag, kind, values = struct.unpack_from(f"{order}HH{word}", data, entry)
        size, letter = _TIFF_TYPES.get(kind, (0, None))
        at = entry + entry_bytes - inline
        if size * values > inline:
            (at,) = struct.unpack_from(order + word, data, at)
            outside += size * values
        if at + size * values > len(data):
            raise MalformedError(f"the TIFF is truncated: tag {tag} points behind the end of the file")
        if outside > 2 * len(data):  # two tags may share a value, thousands of them do not
            raise MalformedError("the TIFF is damaged: the values of its tags overlap")
        if tag not in _STRUCTURE and tag not in _LOCATIONS:
            continue
        if tag in fields:
            raise MalformedError(f"the TIFF is damaged: tag {tag} occurs twice")
        if letter is None or not values or (tag in _STRUCTURE and values > _MOST_VALUES):
            raise MalformedError(f"the TIFF is damaged: tag {tag} holds no number of a kind it may hold")
        fields[tag] = _Field(tag, at, values, letter, order)
    return fields


def _page(data: bytes, fields: dict[int, _Field], frames: int) -> Header:
    tags = {tag: fields[tag].numbers(data) for tag in _STRUCTURE if tag in fields}
    width_px, height_px = (tags.get(tag, (0,))[0] for tag in (256, 257))
    bits, channels = tags.get(258, (1,)), tags.get(277, (1,))[0]
    if min(width_px, height_px, channels, *bits) < 1:
        raise MalformedError(f"the TIFF is damaged: {width_px} x {height_px} pixels of {channels} samples")
    if any(tags.get(tag, (1,))[0] != 1 for tag in (32997, 32998)):
        raise MalformedError(
            "the TIFF holds a volume (ImageDepth), expected one picture; extract a slice of it"
        )
    for location in (_STRIPS, _STRIP_BYTES) if _TILES not in fields else (_TILES, _TILE_BYTES):
        expected = _pieces(tags, height_px, width_px, channels, tiled=_TILES in fields)
        found = fields[location].values if location in fields else 0
        if found != expected:
            raise MalformedError(
                f"the TIFF is damaged: it says of {found} pieces where their pixels are, expected {expected}"
            )
        tags[location] = fields[location].numbers(data)
    offsets, counts = (tags.get(tag, tags.get(other, ())) for tag, other in ((273, 324), (279, 325)))
    if any(at + size > len(data) or size == 0 for at, size in zip(offsets, counts, strict=True)):
        raise MalformedError("the TIFF is truncated: pixels are missing at the end of the file")
    _check_samples(tags, channels, bits)
    if tags.get(259, (1,))[0] == 1 and _TILES not in tags:
        samples = 1 if tags.get(284, (1,))[0] == 2 else channels
        least = (width_px * samples * bits[0] + 7) // 8 * height_px * (channels // samples)
        subsampled = tags.get(262, (0,))[0] == 6  # YCbCr rows are shorter
        if sum(counts) < least and not subsampled:
            raise MalformedError(f"the TIFF is truncated: {sum(counts)} of {least} bytes of pixels")
    is_float = tags.get(339, (1,))[0] == 3
    return Header("TIFF", height_px, width_px, bits[0], channels, frames, is_float, tags=tags)


def _pieces(
    tags: dict[int, tuple[int, ...]], height_px: int, width_px: int, channels: int, *, tiled: bool
) -> int:
    """Number of strips or tiles that a picture of this size has."""
    planes = channels if tags.get(284, (1,))[0] == 2 else 1
    if not tiled:
        rows = tags.get(278, (height_px,))[0]
        if rows < 1:
            raise MalformedError("the TIFF is damaged: its strips have no rows")
        return planes * -(-height_px // rows)
    for tag, size in ((322, width_px), (323, height_px)):
        tile_px = tags.get(tag, (0,))[0]
        if not 1 <= tile_px <= max(_LARGEST_TILE_PX, -(-size // 16) * 16):
            raise MalformedError(f"the TIFF is damaged: tiles of {tile_px} px for a side of {size} px")
    return planes * -(-width_px // tags[322][0]) * -(-height_px // tags[323][0])


def _check_samples(tags: dict[int, tuple[int, ...]], channels: int, bits: tuple[int, ...]) -> None:
    """Refuse samples that nothing here could keep, by their name."""
    if len(set(bits)) != 1:
        raise MalformedError(f"the TIFF mixes {listed(bits)} bits per sample, which is not supported")
    formats = set(tags.get(339, (1,)))
    for code in formats:
        if code in _SAMPLE_FORMATS:
            raise MalformedError(
                f"the TIFF holds {_SAMPLE_FORMATS[code]} samples, expected unsigned integers or floats; "
                "convert them, with an offset where they are negative"
            )
    if len(formats) != 1:
        raise MalformedError(
            f"the TIFF mixes sample formats {listed(sorted(formats))}, which is not supported"
        )
    photometric = tags.get(262, (1,))[0]
    if photometric not in _COLOURS:
        what = _FOREIGN_COLOURS.get(photometric, f"of photometric interpretation {photometric}")
        raise MalformedError(f"the TIFF's colours are {what}, which is not supported; convert it to RGB")
    if photometric == 5 and tags.get(332, (1,))[0] != 1:
        raise MalformedError("the TIFF holds inks other than CMYK, which is not supported; convert it to RGB")
    colour, samples = _COLOURS[photometric]
    extra, meanings = channels - samples, tags.get(338, ())
    if extra < 0:
        raise MalformedError(f"the TIFF is damaged: {channels} samples a pixel for {colour}")
    if extra and not (extra == 1 and colour in ("grey", "RGB") and meanings[:1] and meanings[0] in _ALPHA):
        names = {1: "premultiplied alpha", 2: "alpha"}
        kinds = [names.get(code, "unspecified") for code in (meanings + (0,) * extra)[:extra]]
        raise MalformedError(
            f"the TIFF holds {extra} sample(s) beside {colour} ({listed(kinds)}), which would be lost; "
            f"write the {colour} sample(s), and each band that is wanted, into files of their own"
        )
