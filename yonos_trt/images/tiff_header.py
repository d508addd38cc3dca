"""Walk a TIFF's directories: what it holds, and whether everything it points at is there.

TIFF 6.0 and BigTIFF. Decoders fill missing strips with zeros or read the first page only; this finds out
before. Standard library only.
"""

from __future__ import annotations

import struct

from yonos_trt.images.header import Header, MalformedError

__all__ = ["tiff_header"]

# TIFF 6.0 field types: code -> (bytes, struct letter of unsigned integers or None).
_TIFF_TYPES: dict[int, tuple[int, str | None]] = {
    1: (1, "B"), 2: (1, None), 3: (2, "H"), 4: (4, "I"), 5: (8, None), 6: (1, None), 7: (1, None),
    8: (2, None), 9: (4, None), 10: (8, None), 11: (4, None), 12: (8, None), 13: (4, "I"), 16: (8, "Q"),
    17: (8, None), 18: (8, "Q"),
}  # fmt: skip
_MOST_PAGES = 4096
# A tile may be larger than a small picture, but not by so much that memory is taken for nothing.
_LARGEST_TILE_PX = 2048


def tiff_header(data: bytes) -> Header:
    """Return the header of the first directory, after checking that all of the file's data lie inside it.

    Raises
    ------
    MalformedError
        Truncated, a loop of directories, missing pixels, mixed depths.
    struct.error, IndexError
        Truncated inside a number.
    """
    order = "<" if data[:1] == b"I" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    word, entry_bytes = ("Q", 20) if big else ("I", 12)
    inline = struct.calcsize(word)
    (offset,) = struct.unpack_from(order + word, data, 8 if big else 4)
    pages: list[dict[int, tuple[int, ...]]] = []
    seen: set[int] = set()
    while offset:
        if offset in seen or len(seen) > _MOST_PAGES:
            raise MalformedError("the TIFF is damaged: its directories form a loop")
        seen.add(offset)
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, offset)
        first = offset + (8 if big else 2)
        if first + count * entry_bytes + inline > len(data):
            raise MalformedError(f"the TIFF is truncated inside the directory at byte {offset}")
        tags = {}
        for entry in range(first, first + count * entry_bytes, entry_bytes):
            tag, kind, values = struct.unpack_from(f"{order}HH{word}", data, entry)
            size, letter = _TIFF_TYPES.get(kind, (0, None))
            at = entry + entry_bytes - inline
            if size * values > inline:
                (at,) = struct.unpack_from(order + word, data, at)
            if at + size * values > len(data):
                raise MalformedError(f"the TIFF is truncated: tag {tag} points behind the end of the file")
            if letter is not None:
                tags[tag] = struct.unpack_from(f"{order}{values}{letter}", data, at)
        if not tags.get(254, (0,))[0] & 1:  # reduced-size copies do not count
            pages.append(tags)
        elif not pages:
            raise MalformedError("the TIFF starts with a reduced copy of its picture, which is not supported")
        (offset,) = struct.unpack_from(order + word, data, first + count * entry_bytes)
    if not pages:
        raise MalformedError("the TIFF holds no picture")
    return _page(data, pages[0], len(pages))


def _page(data: bytes, tags: dict[int, tuple[int, ...]], frames: int) -> Header:
    offsets, counts = (tags.get(tag, tags.get(other, ())) for tag, other in ((273, 324), (279, 325)))
    width_px, height_px = (tags.get(tag, (0,))[0] for tag in (256, 257))
    bits, channels = tags.get(258, (1,)), tags.get(277, (1,))[0]
    if not offsets or len(offsets) != len(counts):
        raise MalformedError("the TIFF is damaged: it does not say where its pixels are")
    if any(at + size > len(data) or size == 0 for at, size in zip(offsets, counts, strict=True)):
        raise MalformedError("the TIFF is truncated: pixels are missing at the end of the file")
    if any(
        value > max(_LARGEST_TILE_PX, -(-size // 16) * 16)
        for tag, size in ((322, width_px), (323, height_px))
        for value in tags.get(tag, ())
    ):
        raise MalformedError("the TIFF is damaged: its tiles are larger than the picture")
    if len(set(bits)) != 1:
        raise MalformedError(f"the TIFF mixes {bits} bits per sample, which is not supported")
    if tags.get(259, (1,))[0] == 1 and 324 not in tags:
        samples = 1 if tags.get(284, (1,))[0] == 2 else channels
        expected = (width_px * samples * bits[0] + 7) // 8 * height_px * (channels // samples)
        subsampled = tags.get(262, (0,))[0] == 6  # YCbCr rows are shorter
        if sum(counts) < expected and not subsampled:
            raise MalformedError(f"the TIFF is truncated: {sum(counts)} of {expected} bytes of pixels")
    is_float = tags.get(339, (1,))[0] == 3
    return Header("TIFF", height_px, width_px, bits[0], channels, frames, is_float, tags)
