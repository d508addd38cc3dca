"""What the boxes of AVIF and HEIC say beside the pixels: colour code points, and parts that are not carried.

Also the way back: Pillow writes every AVIF as BT.709 primaries with sRGB transfer; ``with_nclx`` corrects the
two code points in the box and in the AV1 sequence header. ISO/IEC 14496-12 and 23008-12; AV1 bitstream
specification 5.5. Standard library only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from yonos_trt.images.color_space import ColorSpace
from yonos_trt.images.heif_header import boxes, primary_properties

_AUXILIARY = {
    b"hdrgainmap": "HDR gain map: the result is the standard-range picture",
    b"depth": "depth map",
    b"disparity": "depth map",
    b"matte": "portrait matte",
    b"skymatte": "portrait matte",
}
_PROPERTIES = {b"clli": "content light level", b"mdcv": "mastering display", b"pasp": "pixel aspect ratio"}


def _below(data: bytes, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (type, begin, end) of the bodies of all boxes, those inside containers included."""
    for kind, body, last in boxes(data, begin, end):
        yield kind, body, last
        if kind in (b"meta", b"iprp", b"ipco", b"iinf"):
            skip = {b"meta": 4, b"iinf": 6 if data[body : body + 1] == b"\0" else 8}.get(kind, 0)
            yield from _below(data, body + skip, last)


def avif_color(data: bytes) -> ColorSpace | None:
    """Return the code points of an AVIF or HEIC, from the nclx colour box or else AV1's sequence header.

    None for sRGB and beside a profile.
    """
    found = None
    properties = primary_properties(data)
    for kind, begin, end in properties:
        if kind == b"colr":
            if data[begin : begin + 4] in (b"prof", b"rICC"):
                return None
            if data[begin : begin + 4] == b"nclx" and end - begin >= 8 and found is None:
                found = struct.unpack_from(">HH", data, begin + 4)
    for kind, begin, end in properties if found is None else ():
        if kind == b"av1C":
            for at in _sequence_headers(data, begin + 4, end):
                found = (_bits(data, at, 8), _bits(data, at + 8, 8))
    return ColorSpace.from_nclx(*found) if found is not None else None


def avif_left_out(data: bytes) -> list[str]:
    """Name the further pictures and the properties that no output of this program has."""
    named = []
    for kind, begin, end in _below(data, 0, len(data)):
        if kind == b"auxC":
            word = data[begin + 4 : end].split(b"\0")[0].rsplit(b":", 1)[-1]
            if word in _AUXILIARY:
                named.append(_AUXILIARY[word])
        elif kind == b"infe" and b"tmap" in data[begin:end]:
            named.append(_AUXILIARY[b"hdrgainmap"])
        elif kind == b"iref" and b"thmb" in data[begin:end]:
            named.append("thumbnail, which shows the old picture")
    for kind, begin, end in primary_properties(data):
        is_square = kind == b"pasp" and data[begin : begin + 4] == data[begin + 4 : end]
        if kind in _PROPERTIES and not is_square:
            named.append(f"{_PROPERTIES[kind]} ({kind.decode()})")
    return list(dict.fromkeys(named))


def with_nclx(data: bytes, primaries: int, transfer: int) -> bytes:
    """Return an AVIF that Pillow wrote with other code points; its matrix, which the pixels need, stays."""
    changed = bytearray(data)
    places = [(begin + 4, end) for kind, begin, end in primary_properties(data) if kind == b"av1C"]
    for begin, end in [*places, *_primary_extents(data)]:
        for at in _sequence_headers(data, begin, end):
            _set_bits(changed, at, 8, primaries)
            _set_bits(changed, at + 8, 8, transfer)
    for kind, begin, _ in primary_properties(data):
        if kind == b"colr" and data[begin : begin + 4] == b"nclx":
            struct.pack_into(">HH", changed, begin + 4, primaries, transfer)
    return bytes(changed)


def _primary_extents(data: bytes) -> list[tuple[int, int]]:
    """(begin, end) of the parts of the primary picture's data in the file (``iloc``, 14496-12 8.11.3)."""
    parts = {kind: begin for kind, begin, _ in _below(data, 0, len(data))}
    if b"pitm" not in parts or b"iloc" not in parts:
        return []
    at = parts[b"pitm"]
    (primary,) = struct.unpack_from(">H" if data[at] == 0 else ">I", data, at + 4)
    at = parts[b"iloc"]
    version, sizes = data[at], int.from_bytes(data[at + 4 : at + 6], "big")
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version else 0
    at += 6

    def take(count: int) -> int:
        nonlocal at
        at += count
        return int.from_bytes(data[at - count : at], "big")

    for _ in range(take(4 if version == 2 else 2)):
        item = take(4 if version == 2 else 2)
        in_file = (take(2) & 15 if version else 0) == 0
        take(2)
        base = take(base_size)
        extents = []
        for _ in range(take(2)):
            take(index_size)
            begin = base + take(offset_size)
            extents.append((begin, begin + take(length_size)))
        if item == primary:
            return extents if in_file else []
    return []


# -- AV1 -------------------------------------------------------------------------------------------


def _sequence_headers(data: bytes, begin: int, end: int) -> Iterator[int]:
    """Yield the bit at which each colour description of coded colour (not of a grey alpha) begins."""
    while begin < end:
        at, begin = _next_unit(data, begin, end)
        if at is not None and (bit := _color_description(data[at:begin])) is not None:
            yield 8 * at + bit


def _next_unit(data: bytes, begin: int, end: int) -> tuple[int | None, int]:
    """Return (begin of the payload if it is a sequence header, end) of one open bitstream unit."""
    head = data[begin]
    kind, at = head >> 3 & 15, begin + 1 + (head >> 2 & 1)
    if not head & 2:
        return (at if kind == 1 else None), end
    size = 0
    for shift in range(0, 56, 7):
        if at >= end:
            return None, end
        byte = data[at]
        at += 1
        size |= (byte & 127) << shift
        if not byte & 128:
            break
    return (at if kind == 1 else None), min(at + size, end)


class _Reader:
    """Bits, most significant first."""

    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    def take(self, count: int) -> int:
        """The next ``count`` bits as a number."""
        value = _bits(self._data, self.at, count)
        self.at += count
        return value


def _bits(data: bytes, at: int, count: int) -> int:
    if at + count > 8 * len(data):
        raise ValueError("the AV1 sequence header is cut off")
    whole = int.from_bytes(data[at // 8 : (at + count + 7) // 8], "big")
    return whole >> -(at + count) % 8 & (1 << count) - 1


def _set_bits(data: bytearray, at: int, count: int, value: int) -> None:
    for index in range(count):
        place, mask = (at + index) // 8, 0x80 >> (at + index) % 8
        data[place] = data[place] & ~mask | (mask if value >> (count - 1 - index) & 1 else 0)


def _color_description(data: bytes) -> int | None:
    """Return the bit at which a sequence header has primaries, transfer and matrix, a byte each, or None."""
    read = _Reader(data)
    profile, _, reduced = read.take(3), read.take(1), read.take(1)
    if reduced:
        read.take(5)
    else:
        _skip_operating_points(read)
    width_bits, height_bits = read.take(4) + 1, read.take(4) + 1
    read.take(width_bits + height_bits)
    if not reduced and read.take(1):  # frame numbers
        read.take(7)
    read.take(3)
    if not reduced:
        read.take(4)
        order_hint = read.take(1)
        read.take(2 * order_hint)
        # screen content tools: chosen for each frame, or always; then the same of integer motion
        if (read.take(1) or read.take(1)) and not read.take(1):
            read.take(1)
        read.take(3 * order_hint)
    read.take(3)
    high_depth = read.take(1)
    if profile == 2 and high_depth:
        read.take(1)
    grey = read.take(1) if profile != 1 else 0
    has_description = read.take(1)
    return read.at if has_description and not grey else None


def _skip_operating_points(read: _Reader) -> None:
    delay_bits = None
    if read.take(1):  # timing
        read.take(64)
        if read.take(1):
            zeros = 0
            while not read.take(1):
                zeros += 1
            read.take(zeros)
        if read.take(1):  # decoder model
            delay_bits = read.take(5) + 1
            read.take(42)
    display_delay = read.take(1)
    for _ in range(read.take(5) + 1):
        read.take(12)
        if read.take(5) > 7:
            read.take(1)
        if delay_bits is not None and read.take(1):
            read.take(2 * delay_bits + 1)
        if display_delay and read.take(1):
            read.take(4)
