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

from yonos_trt.video.ebml_structure import Broken, read_exactly, walk_matroska, whole_part
from yonos_trt.video.sample_tables import TABLES, check_places, check_track, movie_scale


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
        except Broken as broken:
            return str(broken)
        except (struct.error, IndexError):
            return f"it ends inside a header, at byte {file.tell()} of {size}"
    return None


# -- MP4, MOV: boxes ---------------------------------------------------------------------------------------


def _boxes(file: BinaryIO, at: int, end: int, size: int) -> Iterator[tuple[bytes, int, int]]:
    while at < end:
        head = read_exactly(file, at, 8)
        length, begin = int.from_bytes(head[:4], "big"), at + 8
        if length == 1:
            length, begin = int.from_bytes(read_exactly(file, at + 8, 8), "big"), at + 16
        elif head == bytes(8):
            return  # padding
        elif length == 0:
            length = end - at
        if length < begin - at or not all(32 <= b < 127 or b == 0xA9 for b in head[4:]):
            raise Broken(f"its structure is damaged at byte {at}")
        yield head[4:], begin, whole_part(at, length, size, f"the part {head[4:].decode('latin-1')!r}")
        at += length


def _mov(file: BinaryIO, size: int) -> None:
    media, chunks = [], []
    for name, begin, end in _boxes(file, 0, size, size):
        if name == b"moov":
            chunks += _check_movie(file, begin, end)
        elif name == b"mdat":
            media.append((begin, end))
        elif name == b"sidx":
            _check_segment_index(read_exactly(file, begin, end - begin), end, size)
    check_places(chunks, media)


def _check_movie(file: BinaryIO, begin: int, end: int) -> list[tuple[int, int]]:
    """Walk down to the tables of every track, compare those with each other, and return the chunks."""
    scale, chunks = 0, []
    for name, at, after in _boxes(file, begin, end, end):
        if name == b"mvhd":
            scale = movie_scale(read_exactly(file, at, after - at))
        elif name == b"trak":
            found: dict[bytes, bytes] = {}
            _collect(file, at, after, found)
            chunks += check_track(found, scale)
    return chunks


def _collect(file: BinaryIO, begin: int, end: int, found: dict[bytes, bytes]) -> None:
    """Read the boxes of a track that have to agree."""
    for name, at, after in _boxes(file, begin, end, end):
        if name in (b"mdia", b"minf", b"stbl", b"edts"):
            _collect(file, at, after, found)
        elif name in TABLES:
            found[name] = read_exactly(file, at, after - at)


def _check_segment_index(data: bytes, end: int, size: int) -> None:
    """Check that the segments that an index of a fragmented file lists are there."""
    wide = data[0] != 0
    offset, at = (
        (struct.unpack_from(">Q", data, 20)[0], 28) if wide else (struct.unpack_from(">I", data, 16)[0], 20)
    )
    count = struct.unpack_from(">H", data, at + 2)[0]
    listed = [struct.unpack_from(">I", data, at + 4 + 12 * i)[0] & 0x7FFFFFFF for i in range(count)]
    whole_part(end + offset, sum(listed), size, "its segment index")


# -- AVI: RIFF chunks --------------------------------------------------------------------------------------


def _avi(file: BinaryIO, size: int) -> None:
    at = streams = 0
    while at + 12 <= size:
        name, length, kind = struct.unpack("<4sI4s", read_exactly(file, at, 12))
        if name != b"RIFF" or kind not in (b"AVI ", b"AVIX"):
            if at == 0:
                raise Broken("its structure is damaged at byte 0")
            return  # what others appended
        if length in (0, 0xFFFFFFFF):
            return  # written to a pipe: it says nothing
        end = whole_part(at + 8, length, size, "its RIFF part")
        streams = _chunks(file, at + 12, end, streams, media=False)
        at = end + length % 2


#: ends of the names of chunks with a stream's data, after its number
AVI_DATA = {b"dc", b"db", b"wb", b"tx", b"sb", b"pc", b"__"}


def _chunks(file: BinaryIO, at: int, end: int, streams: int, *, media: bool) -> int:
    """Walk chunks and the lists in them; return how many streams the header has."""
    while at + 8 <= end:
        name, length = struct.unpack("<4sI", read_exactly(file, at, 8))
        known = all(32 <= b < 127 for b in name)
        if media and name not in (b"LIST", b"JUNK", b"idx1"):
            number, kind = (name[2:], name[:2]) if name[:2] == b"ix" else (name[:2], name[2:])
            known = number.isdigit() and int(number) < streams and kind in AVI_DATA | {b"ix"}
        if not known or at + 8 + length > end:
            raise Broken(f"its structure is damaged at byte {at}")
        if name == b"LIST":
            kind = read_exactly(file, at + 8, 4)
            streams += kind == b"strl"
            streams = _chunks(file, at + 12, at + 8 + length, streams, media=media or kind == b"movi")
        at += 8 + length + length % 2
    return streams


# -- FLV: tags ---------------------------------------------------------------------------------------------


def _flv(file: BinaryIO, size: int) -> None:
    at = int.from_bytes(read_exactly(file, 5, 4), "big") + 4
    while at < size:
        head = read_exactly(file, at, 11)
        if head[0] & 0x1F not in (8, 9, 18):
            raise Broken(f"its structure is damaged at byte {at}")
        length = int.from_bytes(head[1:4], "big") + 11
        end = whole_part(at, length + 4, size, f"the part at byte {at}")
        damaged = int.from_bytes(read_exactly(file, end - 4, 4), "big") not in (0, length)
        if head[0] & 0x1F == 9 and length > 11:
            kind = read_exactly(file, at + 11, 1)[
                0
            ]  # frame type 1 to 5 and codec; bit 7: the codec comes later
            damaged |= not kind & 0x80 and (kind & 15 == 0 or kind >> 4 not in range(1, 6))
        if damaged:
            raise Broken(f"its structure is damaged at byte {at}")
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
        head = read_exactly(file, at, 27)
        if head[:5] != b"OggS\0":
            raise Broken(f"its structure is damaged at byte {at}")
        flags, serial, number, checksum, segments = struct.unpack("<B8xIIIB", head[5:])
        table = read_exactly(file, at + 27, segments)
        end = whole_part(at, 27 + segments + sum(table), size, f"the page at byte {at}")
        page = read_exactly(file, at, end - at)
        if _checksum(page[:22] + bytes(4) + page[26:]) != checksum:
            raise Broken(f"the page at byte {at} is damaged (its checksum does not fit)")
        if number != numbers.get(serial, number - 1) + 1 and not flags & 2:
            raise Broken(f"a page is missing before byte {at}")
        numbers[serial], ended[serial] = number, bool(flags & 4)
        at = end
    if not all(ended.values()):
        raise Broken("its end is missing: the last page is not marked as the last")


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
                raise Broken(f"its structure is damaged at byte {at + place}")
            if place + 188 <= len(block) and block[place + 1] & 0x40:  # a part of a stream begins here
                number = (block[place + 1] & 0x1F) << 8 | block[place + 2]
                begin = place + 4 + (1 + block[place + 4] if block[place + 3] & 0x20 else 0)
                if block[begin : begin + 3] == b"\0\0\1":
                    carriers.add(number)
                elif number in carriers:
                    raise Broken(f"a part of a stream that begins at byte {at + place} is damaged")
        if len(block) % step and at + len(block) == size:
            missing = step - len(block) % step
            if missing > step - 188:  # the last may come without what follows the 188 bytes
                raise Broken(f"it ends inside a packet, {missing} bytes are missing")
        at += len(block)


def _packet_size(file: BinaryIO) -> tuple[int, int]:
    """Return the distance of packets and where the first synchronising byte is."""
    file.seek(0)
    head = file.read(4096)
    for step, first in ((188, 0), (192, 4), (192, 0), (204, 0)):
        places = range(first, len(head), step)
        if len(places) > 1 and sum(head[i] == 0x47 for i in places) > 0.7 * len(places):
            return step, first
    raise Broken("its structure is damaged at its beginning")


# -- pictures in a row: GIF blocks, PNG chunks -------------------------------------------------------------


def _gif(file: BinaryIO, size: int) -> None:
    head = read_exactly(file, 0, 13)
    at = 13 + (3 * 2 ** ((head[10] & 7) + 1) if head[10] & 0x80 else 0)
    while True:
        kind = read_exactly(file, at, 1)[0]
        if kind == 0x3B:
            return
        if kind == 0x21:
            at += 2
        elif kind == 0x2C:
            flags = read_exactly(file, at + 9, 1)[0]
            at += 11 + (3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0)
        else:
            raise Broken(f"its structure is damaged at byte {at}")
        while length := read_exactly(file, at, 1)[0]:
            at += 1 + length
        at += 1


def _png(file: BinaryIO, size: int) -> None:
    at, declared, frames = 8, None, 0
    while True:
        length, name = struct.unpack(">I4s", read_exactly(file, at, 8))
        end = whole_part(at, length + 12, size, f"the part at byte {at}")
        data = read_exactly(file, at + 4, length + 8)
        if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "big"):
            raise Broken(f"the part at byte {at} is damaged (its checksum does not fit)")
        if name == b"acTL":
            declared = int.from_bytes(data[4:8], "big")
        frames += name == b"fcTL"
        at = end
        if name == b"IEND":
            break
    if declared is not None and declared != frames:
        raise Broken(f"{frames} of the {declared} frames that it declares are there")


_WALKS: dict[str, Callable[[BinaryIO, int], None]] = {
    "matroska": walk_matroska,
    "mov": _mov,
    "avi": _avi,
    "flv": _flv,
    "ogg": _ogg,
    "mpegts": _ts,
    "gif": _gif,
    "apng": _png,
}
