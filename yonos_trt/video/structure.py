"""What a container says of its own extent, against the bytes that are there.

FFmpeg reads damaged files on as well as it can and does not say what it skipped. The containers do: each is a
row of parts that name their sizes, and some have checksums and counts. Here that row is walked from part to
part, without reading what is in them; the first part that is not whole is named.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["ffv1_is_whole", "structural_damage"]


class _Broken(Exception):
    """The first thing that is wrong, as the end of a sentence."""


def structural_damage(path: Path, container: str) -> str | None:
    """Return what is missing or damaged by the container's own account; None where all is there.

    Parameters
    ----------
    path
        A file.
    container
        FFmpeg's name of its format, for example ``"matroska,webm"``. Those without an account of their own
        (raw streams, MPEG program streams) are never damaged.
    """
    walk = _WALKS.get(container.partition(",")[0])
    if walk is None:
        return None
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            walk(file, size)
        except _Broken as broken:
            return str(broken)
        except (struct.error, IndexError):
            return f"it ends inside a header, at byte {file.tell()} of {size}"
    return None


def _read(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at)
    data = file.read(count)
    if len(data) < count:
        raise _Broken(f"it ends inside a header, at byte {at + len(data)}")
    return data


def _whole(at: int, length: int, size: int, part: str) -> int:
    """Return the end of a part that has to lie within ``size``."""
    if at + length > size:
        raise _Broken(
            f"{at + length - size} bytes are missing at its end ({part} declares {length}, "
            f"{max(0, size - at)} are there)"
        )
    return at + length


# -- Matroska, WebM: EBML elements -------------------------------------------------------------------------

SEGMENT, CLUSTER, TRACKS, VOID, CRC32 = 0x18538067, 0x1F43B675, 0x1654AE6B, 0xEC, 0xBF
SIMPLE_BLOCK, BLOCK_GROUP, BLOCK, TRACK_ENTRY, TRACK_NUMBER = 0xA3, 0xA0, 0xA1, 0xAE, 0xD7
#: seek head, info, tracks, clusters, cues, attachments, chapters, tags
LEVEL_1 = {
    0x114D9B74,
    0x1549A966,
    TRACKS,
    CLUSTER,
    0x1C53BB6B,
    0x1941A469,
    0x1043A770,
    0x1254C367,
    VOID,
    CRC32,
}
#: timestamp, silent tracks, position, previous size, blocks, encrypted block
IN_CLUSTER = {0xE7, 0x5854, 0xA7, 0xAB, SIMPLE_BLOCK, BLOCK_GROUP, 0xAF, VOID, CRC32}


def _number(data: bytes, at: int, *, marker: bool) -> tuple[int, int]:
    """Return an EBML number and where it ends; sizes lose their length marker, identifiers keep it."""
    first = data[at]
    length = 9 - first.bit_length()
    if length > 8 or at + length > len(data):
        raise _Broken("a number in it is damaged")
    value = int.from_bytes(data[at : at + length], "big")
    return (value if marker else value & ((1 << 7 * length) - 1)), at + length


def _element(file: BinaryIO, at: int, size: int) -> tuple[int, int, int | None]:
    """Return (identifier, start of the content, its length or None where it is not known)."""
    file.seek(at)
    data = file.read(12)
    if not data:
        raise _Broken(f"it ends at byte {size}, where a part should begin")
    try:
        name, end = _number(data, 0, marker=True)
        length, after = _number(data, end, marker=False)
    except (_Broken, IndexError):
        raise _Broken(f"its structure is damaged at byte {at}") from None
    unknown = length == (1 << 7 * (after - end)) - 1
    return name, at + after, None if unknown else length


def _children(
    file: BinaryIO, at: int, end: int, known: set[int] | None = None
) -> Iterator[tuple[int, int, int]]:
    while at < end:
        name, begin, length = _element(file, at, end)
        if length is None or begin + length > end or (known is not None and name not in known):
            raise _Broken(f"its structure is damaged at byte {at}")
        yield name, begin, begin + length
        at = begin + length


def _matroska(file: BinaryIO, size: int) -> None:
    _, begin, length = _element(file, 0, size)
    at = _whole(begin, length or 0, size, "its header")
    name, begin, length = _element(file, at, size)
    while name in (VOID, CRC32):
        name, begin, length = _element(file, begin + (length or 0), size)
    if name != SEGMENT:
        raise _Broken(f"its structure is damaged at byte {at}")
    end = size if length is None else _whole(begin, length, size, "the segment")
    tracks: set[int] = set()
    at = begin
    while at < end:
        name, begin, length = _element(file, at, end)
        if name == CLUSTER and length is None:
            at = _open_cluster(file, begin, end, tracks)
            continue
        if name not in LEVEL_1 or length is None:
            raise _Broken(f"its structure is damaged at byte {at}")
        after = _whole(begin, length, end, f"the part at byte {at}")
        if name == TRACKS:
            tracks |= _track_numbers(file, begin, after)
        elif name == CLUSTER:
            for child, start, stop in _children(file, begin, after, IN_CLUSTER):
                _check_block(file, child, start, stop, tracks)
        at = after


def _open_cluster(file: BinaryIO, at: int, end: int, tracks: set[int]) -> int:
    """Walk a cluster whose length is not known (live streams) and return where it ends."""
    while at < end:
        name, begin, length = _element(file, at, end)
        if name not in IN_CLUSTER:
            break
        if length is None:
            raise _Broken(f"its structure is damaged at byte {at}")
        after = _whole(begin, length, end, f"the part at byte {at}")
        _check_block(file, name, begin, after, tracks)
        at = after
    return at


def _track_numbers(file: BinaryIO, begin: int, end: int) -> set[int]:
    found = set()
    for name, start, stop in _children(file, begin, end):
        if name == TRACK_ENTRY:
            for child, at, after in _children(file, start, stop):
                if child == TRACK_NUMBER:
                    found.add(int.from_bytes(_read(file, at, after - at), "big"))
    return found


def _check_block(file: BinaryIO, name: int, begin: int, end: int, tracks: set[int]) -> None:
    if name == BLOCK_GROUP:
        for child, start, stop in _children(file, begin, end):
            if child == BLOCK:
                _check_block(file, SIMPLE_BLOCK, start, stop, tracks)
    elif name == SIMPLE_BLOCK:
        track, _ = _number(_read(file, begin, min(8, end - begin)), 0, marker=False)
        if track not in tracks:
            raise _Broken(
                f"its structure is damaged at byte {begin} (a block of track {track}, which it has not)"
            )


# -- MP4, MOV: boxes ---------------------------------------------------------------------------------------


def _boxes(file: BinaryIO, at: int, end: int, size: int) -> Iterator[tuple[bytes, int, int]]:
    while at < end:
        head = _read(file, at, 8)
        length, begin = int.from_bytes(head[:4], "big"), at + 8
        if length == 1:
            length, begin = int.from_bytes(_read(file, at + 8, 8), "big"), at + 16
        elif length == 0:
            length = end - at
        if length == 0 and head == bytes(8):
            return
        if length < begin - at or not all(32 <= b < 127 or b == 0xA9 for b in head[4:]):
            raise _Broken(f"its structure is damaged at byte {at}")
        yield head[4:], begin, _whole(at, length, size, f"the part {head[4:].decode('latin-1')!r}")
        at += length


def _mov(file: BinaryIO, size: int) -> None:
    for name, begin, end in _boxes(file, 0, size, size):
        if name == b"moov":
            for _ in _boxes(file, begin, end, end):
                pass
        elif name == b"sidx":
            _check_segment_index(_read(file, begin, end - begin), end, size)


def _check_segment_index(data: bytes, end: int, size: int) -> None:
    """Check that the segments that an index of a fragmented file lists are there."""
    wide = data[0] != 0
    offset, at = (
        (struct.unpack_from(">Q", data, 20)[0], 28) if wide else (struct.unpack_from(">I", data, 16)[0], 20)
    )
    count = struct.unpack_from(">H", data, at + 2)[0]
    listed = [struct.unpack_from(">I", data, at + 4 + 12 * i)[0] & 0x7FFFFFFF for i in range(count)]
    _whole(end + offset, sum(listed), size, "its segment index")


# -- AVI: RIFF chunks --------------------------------------------------------------------------------------


def _avi(file: BinaryIO, size: int) -> None:
    at = streams = 0
    while at + 12 <= size:
        name, length, kind = struct.unpack("<4sI4s", _read(file, at, 12))
        if name != b"RIFF" or kind not in (b"AVI ", b"AVIX"):
            if at == 0:
                raise _Broken("its structure is damaged at byte 0")
            return  # what others appended
        if length in (0, 0xFFFFFFFF):
            return  # written to a pipe: it says nothing
        end = _whole(at + 8, length, size, "its RIFF part")
        streams = _chunks(file, at + 12, end, streams, media=False)
        at = end + length % 2


#: ends of the names of chunks with a stream's data, after its number
AVI_DATA = {b"dc", b"db", b"wb", b"tx", b"sb", b"pc", b"__"}


def _chunks(file: BinaryIO, at: int, end: int, streams: int, *, media: bool) -> int:
    """Walk chunks and the lists in them; return how many streams the header has."""
    while at + 8 <= end:
        name, length = struct.unpack("<4sI", _read(file, at, 8))
        known = all(32 <= b < 127 for b in name)
        if media and name not in (b"LIST", b"JUNK", b"idx1"):
            number, kind = (name[2:], name[:2]) if name[:2] == b"ix" else (name[:2], name[2:])
            known = number.isdigit() and int(number) < streams and kind in AVI_DATA | {b"ix"}
        if not known or at + 8 + length > end:
            raise _Broken(f"its structure is damaged at byte {at}")
        if name == b"LIST":
            kind = _read(file, at + 8, 4)
            streams += kind == b"strl"
            streams = _chunks(file, at + 12, at + 8 + length, streams, media=media or kind == b"movi")
        at += 8 + length + length % 2
    return streams


# -- FLV: tags ---------------------------------------------------------------------------------------------


def _flv(file: BinaryIO, size: int) -> None:
    at = int.from_bytes(_read(file, 5, 4), "big") + 4
    while at < size:
        head = _read(file, at, 11)
        if head[0] & 0x1F not in (8, 9, 18):
            raise _Broken(f"its structure is damaged at byte {at}")
        length = int.from_bytes(head[1:4], "big") + 11
        end = _whole(at, length + 4, size, f"the part at byte {at}")
        damaged = int.from_bytes(_read(file, end - 4, 4), "big") not in (0, length)
        if head[0] & 0x1F == 9 and length > 11:
            kind = _read(file, at + 11, 1)[0]  # frame type 1 to 5 and codec; bit 7: the codec comes later
            damaged |= not kind & 0x80 and (kind & 15 == 0 or kind >> 4 not in range(1, 6))
        if damaged:
            raise _Broken(f"its structure is damaged at byte {at}")
        at = end


# -- Ogg: pages with checksums and numbers -----------------------------------------------------------------

_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _checksum(data: bytes) -> int:
    """Return the CRC-32 of Ogg and FFV1: bits from the other end than zlib's, beginning with 0."""
    mirrored = zlib.crc32(data.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)


def _ogg(file: BinaryIO, size: int) -> None:
    at, numbers, ended = 0, dict[int, int](), dict[int, bool]()
    while at < size:
        head = _read(file, at, 27)
        if head[:5] != b"OggS\0":
            raise _Broken(f"its structure is damaged at byte {at}")
        flags, serial, number, checksum, segments = struct.unpack("<B8xIIIB", head[5:])
        table = _read(file, at + 27, segments)
        end = _whole(at, 27 + segments + sum(table), size, f"the page at byte {at}")
        page = _read(file, at, end - at)
        if _checksum(page[:22] + bytes(4) + page[26:]) != checksum:
            raise _Broken(f"the page at byte {at} is damaged (its checksum does not fit)")
        if number != numbers.get(serial, number - 1) + 1 and not flags & 2:
            raise _Broken(f"a page is missing before byte {at}")
        numbers[serial], ended[serial] = number, bool(flags & 4)
        at = end
    if not all(ended.values()):
        raise _Broken("its end is missing: the last page is not marked as the last")


def ffv1_is_whole(packet: bytes) -> bool:
    """Return whether all slices of an FFV1 packet (version 3) have sizes and checksums that fit.

    FFmpeg's decoder hides slices that are damaged. Each ends in its size, an error status and a CRC-32 that
    makes the checksum of the whole slice 0 (RFC 9043, 4.9).
    """
    end = len(packet)
    while end > 0:
        begin = end - 8 - int.from_bytes(packet[end - 8 : end - 5], "big") if end >= 8 else -1
        if begin < 0 or _checksum(packet[begin:end]) != 0:
            return False
        end = begin
    return True


# -- MPEG-TS: packets of 188 bytes -------------------------------------------------------------------------


def _ts(file: BinaryIO, size: int) -> None:
    step, first = _packet_size(file)
    at = first
    carriers: set[int] = set()  # numbers (PID) of the packets that carry a stream
    while at < size:
        file.seek(at)
        block = file.read(step * 4096)
        for place in range(0, len(block), step):
            if block[place] != 0x47:
                raise _Broken(f"its structure is damaged at byte {at + place}")
            if place + 188 <= len(block) and block[place + 1] & 0x40:  # a part of a stream begins here
                number = (block[place + 1] & 0x1F) << 8 | block[place + 2]
                begin = place + 4 + (1 + block[place + 4] if block[place + 3] & 0x20 else 0)
                if block[begin : begin + 3] == b"\0\0\1":
                    carriers.add(number)
                elif number in carriers:
                    raise _Broken(f"a part of a stream that begins at byte {at + place} is damaged")
        if len(block) % step and at + len(block) == size:
            missing = step - len(block) % step
            if missing > step - 188:  # the last may come without what follows the 188 bytes
                raise _Broken(f"it ends inside a packet, {missing} bytes are missing")
        at += len(block)


def _packet_size(file: BinaryIO) -> tuple[int, int]:
    """Return the distance of packets and where the first synchronising byte is."""
    file.seek(0)
    head = file.read(4096)
    for step, first in ((188, 0), (192, 4), (192, 0), (204, 0)):
        places = range(first, len(head), step)
        if len(places) > 1 and sum(head[i] == 0x47 for i in places) > 0.7 * len(places):
            return step, first
    raise _Broken("its structure is damaged at its beginning")


# -- pictures in a row: GIF blocks, PNG chunks -------------------------------------------------------------


def _gif(file: BinaryIO, size: int) -> None:
    head = _read(file, 0, 13)
    at = 13 + (3 * 2 ** ((head[10] & 7) + 1) if head[10] & 0x80 else 0)
    while True:
        kind = _read(file, at, 1)[0]
        if kind == 0x3B:
            return
        if kind == 0x21:
            at += 2
        elif kind == 0x2C:
            flags = _read(file, at + 9, 1)[0]
            at += 11 + (3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0)
        else:
            raise _Broken(f"its structure is damaged at byte {at}")
        while length := _read(file, at, 1)[0]:
            at += 1 + length
        at += 1


def _png(file: BinaryIO, size: int) -> None:
    at, declared, frames = 8, None, 0
    while True:
        length, name = struct.unpack(">I4s", _read(file, at, 8))
        end = _whole(at, length + 12, size, f"the part at byte {at}")
        data = _read(file, at + 4, length + 8)
        if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "big"):
            raise _Broken(f"the part at byte {at} is damaged (its checksum does not fit)")
        if name == b"acTL":
            declared = int.from_bytes(data[4:8], "big")
        frames += name == b"fcTL"
        at = end
        if name == b"IEND":
            break
    if declared is not None and declared != frames:
        raise _Broken(f"{frames} of the {declared} frames that it declares are there")


_WALKS: dict[str, Callable[[BinaryIO, int], None]] = {
    "matroska": _matroska,
    "mov": _mov,
    "avi": _avi,
    "flv": _flv,
    "ogg": _ogg,
    "mpegts": _ts,
    "gif": _gif,
    "apng": _png,
}
