"""Walk the boxes of an AVIF or HEIC file: which of the two, completeness, size, depth and the clean aperture.

ISO/IEC 23008-12 (HEIF), 14496-12 (boxes), AV1-ISOBMFF 2.3.3. Decoders of AVIF leave the cropping that a file
asks for, its clean aperture, to the caller. Standard library only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction
from mmap import mmap

from yonos_trt.images.header import Header, MalformedError, quoted

_AVIF_BRANDS = (b"avif", b"avis")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_MOST_PROPERTIES = 10_000


def boxes(data: bytes | mmap, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (kind, start, end) of the bodies of the boxes between two positions."""
    position = start
    while position < end:
        length, kind = struct.unpack_from(">I4s", data, position)
        body = position + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, body)
            body += 8
        elif length == 0:
            length = end - position
        if position + length > end or position + length < body:
            raise MalformedError(f"the file is truncated inside box {quoted(kind)} at byte {position}")
        yield kind, body, position + length
        position += length


def heif_header(data: bytes) -> Header:
    """Return the header of the primary picture: size as stored, and the part of it that is to be shown.

    Raises
    ------
    MalformedError
        Another kind of ISO media, truncated, without pixels, or with an aperture that is no part of it.
    struct.error, IndexError
        Truncated inside a number.
    """
    (brands_end,) = struct.unpack_from(">I", data)
    brands = {data[at : at + 4] for at in (8, *range(16, min(brands_end, len(data)), 4))}
    if brands.intersection(_AVIF_BRANDS):
        format_ = "AVIF"
    elif brands.intersection(_HEIC_BRANDS):
        format_ = "HEIC"
    else:
        raise MalformedError(
            f"the file is ISO media of kind {quoted(data[8:12])}, such as video, expected a picture; "
            "for videos there is `yonos video`"
        )
    if not any(kind in (b"mdat", b"idat", b"meta") for kind, _, _ in boxes(data, 0, len(data))):
        raise MalformedError(f"the {format_} holds no pixels")
    properties = primary_properties(data)
    height_px = width_px = 0
    crop = None
    bits = 8
    for kind, start, end in properties:
        if kind == b"ispe":
            width_px, height_px = struct.unpack_from(">II", data, start + 4)
        elif kind == b"pixi" and end - start > 5:
            bits = max(data[start + 5 : start + 5 + data[start + 4]], default=8)
        elif kind == b"clap":
            crop = _aperture(struct.unpack_from(">IIIIiIiI", data, start), height_px, width_px)
    configuration = data.find(b"av1C") if format_ == "AVIF" else -1
    if configuration >= 0:  # third byte: tier, high_bitdepth, twelve_bit, ...
        flags = data[configuration + 6]
        bits = (12 if flags & 0x20 else 10) if flags & 0x40 else 8
    return Header(format_, height_px, width_px, bits=bits, crop=crop)


def primary_properties(data: bytes) -> list[tuple[bytes, int, int]]:
    """Properties of the primary item in the order in which they are to be applied, size first."""
    meta = next(((s + 4, e) for kind, s, e in boxes(data, 0, len(data)) if kind == b"meta"), None)
    if meta is None:
        return []
    parts = {kind: (s, e) for kind, s, e in boxes(data, *meta)}  # behind version and flags
    if b"pitm" not in parts or b"iprp" not in parts:
        return []
    at = parts[b"pitm"][0]
    (primary,) = struct.unpack_from(">H" if data[at] == 0 else ">I", data, at + 4)
    properties: list[tuple[bytes, int, int]] = []
    numbers: list[int] = []
    for kind, s, e in boxes(data, *parts[b"iprp"]):
        if kind == b"ipco":
            properties += boxes(data, s, e)
        elif kind == b"ipma":
            numbers += _associated(data, s, primary)
        if len(properties) > _MOST_PROPERTIES or len(numbers) > _MOST_PROPERTIES:
            raise MalformedError("the file is damaged: it has more properties than any picture needs")
    found = [properties[n - 1] for n in numbers if 0 < n <= len(properties)]
    return sorted(found, key=lambda box: box[0] != b"ispe")


def _associated(data: bytes, start: int, item: int) -> list[int]:
    """Numbers, from 1, of the properties that an ``ipma`` box gives to an item."""
    version, wide = data[start], data[start + 3] & 1
    (entries,) = struct.unpack_from(">I", data, start + 4)
    at = start + 8
    for _ in range(entries):
        (name,) = struct.unpack_from(">H" if version < 1 else ">I", data, at)
        at += 2 if version < 1 else 4
        count, at = data[at], at + 1
        if name == item:
            numbers = struct.unpack_from(f">{count}{'H' if wide else 'B'}", data, at)
            return [number & (0x7FFF if wide else 0x7F) for number in numbers]
        at += count * (2 if wide else 1)
    return []


def _aperture(values: tuple[int, ...], height_px: int, width_px: int) -> tuple[int, int, int, int]:
    """Width, height and offsets of the centre as fractions -> (top, left, height, width) in pixels."""
    if 0 in values[1::2]:
        raise MalformedError("the file is damaged: its clean aperture divides by zero")
    width, height, x, y = (Fraction(n, d) for n, d in zip(values[::2], values[1::2], strict=True))
    left, top = x + (width_px - width) / 2, y + (height_px - height) / 2
    numbers = (top, left, height, width)
    if any(number.denominator != 1 for number in numbers):
        raise MalformedError(
            "the file asks for a part of its picture that ends inside pixels; convert it to PNG"
        )
    if min(top, left) < 0 or min(height, width) < 1 or top + height > height_px or left + width > width_px:
        raise MalformedError("the file is damaged: its clean aperture is no part of its picture")
    return int(top), int(left), int(height), int(width)
