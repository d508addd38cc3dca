"""Walk a JPEG's segments and scans: size and completeness. ITU-T T.81, annex B."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from yonos_trt.images.header import Header, MalformedError

_SOS, _EOI = 0xDA, 0xD9
# A progressive picture has some ten scans; each costs the time of a whole picture.
_MOST_SCANS = 100
# Inside the coded data FF is followed by 00, a restart marker or more FF; anything else is a marker.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
# Between scans: tables, restart interval, number of lines, comments and application segments.
_BETWEEN = frozenset((_SOS, 0xC4, 0xCC, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)))
_TEM = 0x01  # has no length


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end) of the segments up to the first scan's own, SOS, included.

    Bytes between segments that belong to none are passed over, as decoders do.
    """
    position = 2
    while True:
        position = data.find(b"\xff", position)
        if position < 0:
            raise MalformedError("the JPEG is truncated inside its headers")
        marker = data[position + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:  # fill bytes, markers without a length
            position += 1 if marker == 0xFF else 2
            continue
        if marker == _EOI:
            raise MalformedError("the JPEG ends before its pixels")
        (length,) = struct.unpack_from(">H", data, position + 2)
        end = position + 2 + length
        if end > len(data) or length < 2:
            raise MalformedError(f"the JPEG is truncated inside its headers at byte {position}")
        yield marker, position, end
        if marker == _SOS:
            return
        position = end


def scans(data: bytes, position: int) -> list[tuple[int, int]]:
    """Return (start, end) of every scan's coded data; the last one ends at the picture's end marker.

    Parameters
    ----------
    data
        The file.
    position
        Where the first scan's coded data begin: the end of the last of ``segments``.

    Raises
    ------
    MalformedError
        The file ends, or something begins that is no scan, before the end marker; or more scans than any
        picture needs.
    """
    found: list[tuple[int, int]] = []
    start: int | None = position
    while (match := _MARKER.search(data, position)) is not None:
        marker, position = data[match.end() - 1], match.end()
        if marker == _TEM:
            continue
        if start is not None:
            found.append((start, match.start()))
            start = None
        if marker == _EOI:
            return found
        if marker not in _BETWEEN:
            raise MalformedError(
                f"the JPEG is damaged: marker FF{marker:02X} stands in front of its end marker"
            )
        position += int.from_bytes(data[position : position + 2], "big")
        if marker == _SOS:
            start = position
            if len(found) >= _MOST_SCANS:
                raise MalformedError(f"the JPEG has more than {_MOST_SCANS} scans, which no picture needs")
    raise MalformedError("the JPEG is truncated: its end marker is missing")


def is_frame(marker: int) -> bool:
    """Tell whether a segment is a frame header."""
    return 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)


def jpeg_header(data: bytes) -> Header:
    """Return the header of the main picture; behind its end marker anything may follow.

    Raises
    ------
    MalformedError
        Truncated, without a frame header, or of more scans than any picture needs.
    """
    size, scan_at = None, 0
    for marker, start, end in segments(data):
        if is_frame(marker):
            bits, height_px, width_px, channels = struct.unpack_from(">BHHB", data, start + 4)
            size = (height_px, width_px, bits, channels)
        scan_at = end
    if size is None:
        raise MalformedError("the JPEG has no frame header")
    scans(data, scan_at)
    return Header("JPEG", *size)
