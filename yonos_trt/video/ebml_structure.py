"""The row of elements of a Matroska or WebM file, walked from one to the next; see `structure`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO


class Broken(Exception):
    """The first thing that is wrong, as the end of a sentence."""


def read_exactly(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at)
    data = file.read(count)
    if len(data) < count:
        raise Broken(f"it ends inside a header, at byte {at + len(data)}")
    return data


def whole_part(at: int, length: int, size: int, part: str) -> int:
    """Return the end of a part that has to lie within ``size``."""
    if at + length > size:
        raise Broken(
            f"{at + length - size} bytes are missing at its end ({part} declares {length}, "
            f"{max(0, size - at)} are there)"
        )
    return at + length


SEGMENT, CLUSTER, TRACKS, INFO, VOID, CRC32 = 0x18538067, 0x1F43B675, 0x1654AE6B, 0x1549A966, 0xEC, 0xBF
SIMPLE_BLOCK, BLOCK_GROUP, BLOCK, TRACK_ENTRY, TRACK_NUMBER = 0xA3, 0xA0, 0xA1, 0xAE, 0xD7
#: seek head, info, tracks, clusters, cues, attachments, chapters, tags
LEVEL_1 = {
    0x114D9B74,
    INFO,
    TRACKS,
    CLUSTER,
    0x1C53BB6B,
    0x1941A469,
    0x1043A770,
    0x1254C367,
    VOID,
    CRC32,
}
TIMESTAMP, SILENT_TRACKS, POSITION, PREVIOUS_SIZE = 0xE7, 0x5854, 0xA7, 0xAB
#: each once at most; the timestamp has to be there
OF_CLUSTER = (TIMESTAMP, SILENT_TRACKS, POSITION, PREVIOUS_SIZE)
IN_CLUSTER = {*OF_CLUSTER, SIMPLE_BLOCK, BLOCK_GROUP, VOID, CRC32}

# Numbers, which have a most length (RFC 8794, 7; RFC 9559, 5): of clusters, block groups, info, tracks,
# video and audio.
_INTEGERS = {TIMESTAMP, POSITION, PREVIOUS_SIZE, 0x9B, 0xFA, 0xFB, 0x75A2, 0xEE, 0x2AD7B1, TRACK_NUMBER,
             0x73C5, 0x83, 0xB9, 0x88, 0x55AA, 0x9C, 0x6DE7, 0x6DF8, 0x23E383, 0x234E7A, 0x55EE, 0x56AA,
             0x56BB, 0xB0, 0xBA, 0x54B0, 0x54BA, 0x54B2, 0x9A, 0x9D, 0x53B8, 0x53C0, 0x9F,
             0x6264}  # fmt: skip
_FLOATS = {0x4489, 0x23314F, 0xB5, 0x78B5}
_WITH_NUMBERS = {0xE0, 0xE1}  # of a track: video, audio


def _fits(name: int, length: int) -> bool:
    """Tell whether an element of that name can have that length."""
    if name in _INTEGERS:
        return length <= 8
    if name in _FLOATS:
        return length in (0, 4, 8)
    return length == 4 if name == CRC32 else True


def _number(data: bytes, at: int, *, marker: bool) -> tuple[int, int]:
    """Return an EBML number and where it ends; sizes lose their length marker, identifiers keep it."""
    first = data[at]
    length = 9 - first.bit_length()
    if length > 8 or at + length > len(data):
        raise Broken("a number in it is damaged")
    value = int.from_bytes(data[at : at + length], "big")
    return (value if marker else value & ((1 << 7 * length) - 1)), at + length


def _element(file: BinaryIO, at: int, size: int) -> tuple[int, int, int | None]:
    """Return (identifier, start of the content, its length or None where it is not known)."""
    file.seek(at)
    data = file.read(12)
    if not data:
        raise Broken(f"it ends at byte {size}, where a part should begin")
    try:
        name, end = _number(data, 0, marker=True)
        length, after = _number(data, end, marker=False)
    except (Broken, IndexError):
        raise Broken(f"its structure is damaged at byte {at}") from None
    unknown = length == (1 << 7 * (after - end)) - 1
    return name, at + after, None if unknown else length


def _children(
    file: BinaryIO, at: int, end: int, known: set[int] | None = None
) -> Iterator[tuple[int, int, int]]:
    while at < end:
        name, begin, length = _element(file, at, end)
        if (
            length is None
            or begin + length > end
            or (known is not None and name not in known)
            or not _fits(name, length)
        ):
            raise Broken(f"its structure is damaged at byte {at}")
        yield name, begin, begin + length
        at = begin + length


def walk_matroska(file: BinaryIO, size: int) -> None:
    _, begin, length = _element(file, 0, size)
    at = whole_part(begin, length or 0, size, "its header")
    name, begin, length = _element(file, at, size)
    while name in (VOID, CRC32):
        name, begin, length = _element(file, begin + (length or 0), size)
    if name != SEGMENT:
        raise Broken(f"its structure is damaged at byte {at}")
    end = size if length is None else whole_part(begin, length, size, "the segment")
    tracks: set[int] = set()
    at = begin
    while at < end:
        name, begin, length = _element(file, at, end)
        if name == CLUSTER and length is None:
            at = _open_cluster(file, begin, end, tracks)
            continue
        if name not in LEVEL_1 or length is None:
            raise Broken(f"its structure is damaged at byte {at}")
        after = whole_part(begin, length, end, f"the part at byte {at}")
        if name == TRACKS:
            tracks |= _track_numbers(file, begin, after)
        elif name == INFO:
            for _ in _children(file, begin, after):
                pass
        elif name == CLUSTER:
            met = []
            for child, start, stop in _children(file, begin, after, IN_CLUSTER):
                met.append(child)
                _check_block(file, child, start, stop, tracks)
            _check_once(met, at)
        at = after


def _open_cluster(file: BinaryIO, at: int, end: int, tracks: set[int]) -> int:
    """Walk a cluster whose length is not known (live streams) and return where it ends."""
    met, first = [], at
    while at < end:
        name, begin, length = _element(file, at, end)
        if name not in IN_CLUSTER:
            break
        if length is None or not _fits(name, length):
            raise Broken(f"its structure is damaged at byte {at}")
        after = whole_part(begin, length, end, f"the part at byte {at}")
        met.append(name)
        _check_block(file, name, begin, after, tracks)
        at = after
    _check_once(met, first)
    return at


def _check_once(met: list[int], at: int) -> None:
    """Check what a cluster has besides blocks; one without anything is the end of a live stream."""
    if met and (TIMESTAMP not in met or any(met.count(name) > 1 for name in OF_CLUSTER)):
        raise Broken(f"its structure is damaged at byte {at} (the cluster has not one timestamp)")


def _track_numbers(file: BinaryIO, begin: int, end: int) -> set[int]:
    found = set()
    for name, start, stop in _children(file, begin, end):
        if name == TRACK_ENTRY:
            for child, at, after in _children(file, start, stop):
                if child in _WITH_NUMBERS:
                    for _ in _children(file, at, after):
                        pass
                elif child == TRACK_NUMBER:
                    found.add(int.from_bytes(read_exactly(file, at, after - at), "big"))
    return found


def _check_block(file: BinaryIO, name: int, begin: int, end: int, tracks: set[int]) -> None:
    if name == BLOCK_GROUP:
        blocks = 0
        for child, start, stop in _children(file, begin, end):
            if child == BLOCK:
                blocks += 1
                _check_block(file, SIMPLE_BLOCK, start, stop, tracks)
        if blocks != 1:
            raise Broken(f"its structure is damaged at byte {begin} (a group of {blocks} blocks)")
    elif name == SIMPLE_BLOCK:
        track, _ = _number(read_exactly(file, begin, min(8, end - begin)), 0, marker=False)
        if track not in tracks:
            raise Broken(
                f"its structure is damaged at byte {begin} (a block of track {track}, which it has not)"
            )
