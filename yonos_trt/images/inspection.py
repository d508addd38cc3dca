"""Look at a picture file before any decoder does: format, size, depth, frames, and whether it is whole.

Decoders forgive: Pillow takes a PNG without its end, reads 16-bit colour as 8 bits, and shows the first
frame of an animation as if there were no other. The walk over each format's outermost structure here finds
that out. Standard library only.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import BinaryIO

from yonos_trt.images.header import FORMAT_SUFFIXES, Header, MalformedError, quoted
from yonos_trt.images.heif_header import heif_header
from yonos_trt.images.jpeg_header import jpeg_header
from yonos_trt.images.tiff_header import tiff_header

_LOOK_BYTES = 1 << 20
_TIFF_PIXELS = ((273, 279), (324, 325))  # offsets and lengths of strips, and of tiles

# Recognised only to say so.
_FOREIGN = (
    (b"%PDF", "PDF"),
    (b"8BPS", "Photoshop"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"PK\x03\x04", "ZIP"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
)


def inspect(data: bytes) -> Header:
    """Return the header of a whole, well-formed picture file.

    Raises
    ------
    MalformedError
        Empty, text, of an unsupported format, truncated, or damaged where the format has check sums.
    """
    if not data:
        raise MalformedError("the file is empty")
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return _png(data)
        if data.startswith(b"\xff\xd8\xff"):
            return jpeg_header(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data)
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return tiff_header(data)
        if data[:6] in (b"GIF87a", b"GIF89a"):
            return _gif(data)
        if data[4:8] == b"ftyp":
            return heif_header(data)
        if data[:2] == b"BM":
            return _bmp(data)
    except (struct.error, IndexError) as error:
        raise MalformedError("the file is truncated inside a header") from error
    for magic, what in _FOREIGN:
        if data.startswith(magic):
            raise MalformedError(f"{what} files are not supported; convert it to PNG or TIFF first")
    what = "text, not a picture" if _is_text(data[:512]) else "not a picture of a known format, or truncated"
    raise MalformedError(f"the file is {what}; formats that can be read: {', '.join(FORMAT_SUFFIXES)}")


def seems_whole(path: Path) -> bool:
    """Tell whether a file reaches the end that its format has, from its first and last bytes.

    At most 2 MiB are read, whatever its size; `inspect` looks at all of it. Small files are inspected.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if size <= 2 * _LOOK_BYTES:
                inspect(file.read())
                return True
            head = file.read(32)
            file.seek(size - _LOOK_BYTES)
            tail = file.read(_LOOK_BYTES)
            return _reaches_its_end(file, head, tail, size)
    except Exception:  # it is gone, or still being written: whatever is wrong, the reader says it later
        return False


def _reaches_its_end(file: BinaryIO, head: bytes, tail: bytes, size: int) -> bool:
    if head.startswith(b"\x89PNG"):
        return b"IEND\xaeB`\x82" in tail
    if head.startswith(b"\xff\xd8"):
        return b"\xff\xd9" in tail
    if head.startswith(b"GIF8"):
        return tail.rstrip(b"\0").endswith(b";")
    if head.startswith(b"RIFF"):
        return int.from_bytes(head[4:8], "little") + 8 <= size
    if head.startswith(b"BM"):
        return int.from_bytes(head[2:6], "little") <= size
    if head.startswith((b"II", b"MM")):
        from PIL import TiffImagePlugin

        file.seek(0)
        tags = TiffImagePlugin.TiffImageFile(file).tag_v2  # reads the directory alone
        places = next((tags[at], tags[count]) for at, count in _TIFF_PIXELS if at in tags and count in tags)
        return all(at + count <= size for at, count in zip(*places, strict=True))
    at = 0
    while head[4:8] == b"ftyp" and at < size:  # boxes of HEIF
        file.seek(at)
        length, name, wide = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
        length = {0: size - at, 1: wide}.get(length, length)
        if length < 8 or not name.isascii():
            return False
        at += length
    return at == size


def _is_text(head: bytes) -> bool:
    return all(byte >= 32 or byte in b"\t\n\r\f" for byte in head) and 0x7F not in head


def _png(data: bytes) -> Header:
    position, frames, has_data = 8, 1, False
    header = None
    while True:
        if position + 12 > len(data):
            raise MalformedError("the PNG is truncated: its end chunk IEND is missing")
        length, kind = struct.unpack_from(">I4s", data, position)
        body, end = position + 8, position + 12 + length
        if end > len(data):
            raise MalformedError(f"the PNG is truncated inside chunk {quoted(kind)} at byte {position}")
        critical = not kind[0] & 0x20
        if critical and zlib.crc32(data[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
            raise MalformedError(f"the PNG is damaged: check sum of chunk {quoted(kind)} at byte {position}")
        if header is None:
            if kind != b"IHDR" or length != 13:
                raise MalformedError("the PNG does not start with the chunk IHDR")
            width_px, height_px, bits, colour = struct.unpack_from(">IIBB", data, body)
            channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour)
            if channels is None:
                raise MalformedError(f"the PNG has the unknown colour type {colour}")
            header = (height_px, width_px, bits, channels)
        if kind == b"acTL":
            frames = max(1, struct.unpack_from(">I", data, body)[0])
        has_data = has_data or kind == b"IDAT"
        position = end
        if kind == b"IEND":
            break
    if not has_data:
        raise MalformedError("the PNG holds no pixels (no IDAT chunk)")
    return Header("PNG", *header, frames=frames)


# Adam7 passes: first column and row, step between columns and rows.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_INFLATE_BYTES = 1 << 20


def check_png_pixels(data: bytes, header: Header) -> None:
    """Inflate a PNG that passed ``inspect``; refuse it if rows are missing, which Pillow would leave black.

    Costs about a third of decoding it; memory stays at 1 MiB.

    Raises
    ------
    MalformedError, zlib.error
        Fewer bytes than the size needs, or a damaged stream.
    """
    passes = _ADAM7 if data[28] else ((0, 0, 1, 1),)
    expected = 0
    for x0, y0, dx, dy in passes:
        columns, rows = (-(-(size - start) // step) for size, start, step in
                         ((header.width_px, x0, dx), (header.height_px, y0, dy)))  # fmt: skip
        if columns > 0 and rows > 0:
            expected += rows * (1 + (columns * header.channels * header.bits + 7) // 8)
    inflate, total, position = zlib.decompressobj(), 0, 8
    while position < len(data) and total < expected:
        length, kind = struct.unpack_from(">I4s", data, position)
        pending = data[position + 8 : position + 8 + length] if kind == b"IDAT" else b""
        while pending and total < expected:
            total += len(inflate.decompress(pending, _INFLATE_BYTES))
            pending = inflate.unconsumed_tail
        position += 12 + length
    while total < expected and (rest := inflate.decompress(b"", _INFLATE_BYTES)):
        total += len(rest)
    if total < expected:
        raise MalformedError(f"the PNG is truncated: {total} of {expected} bytes of pixels")


def _webp(data: bytes) -> Header:
    size = struct.unpack_from("<I", data, 4)[0] + 8
    if size > len(data):
        raise MalformedError(f"the WebP is truncated: {len(data)} of {size} bytes")
    position, frames, has_data = 12, 0, False
    height_px = width_px = 0
    while position + 8 <= size:
        kind, length = struct.unpack_from("<4sI", data, position)
        body = position + 8
        if body + length > size:
            raise MalformedError(f"the WebP is truncated inside chunk {quoted(kind)} at byte {position}")
        if kind == b"VP8X":
            width_px = int.from_bytes(data[body + 4 : body + 7], "little") + 1
            height_px = int.from_bytes(data[body + 7 : body + 10], "little") + 1
        elif kind == b"VP8L" and not has_data:
            packed = int.from_bytes(data[body + 1 : body + 5], "little")
            width_px, height_px = (
                width_px or (packed & 0x3FFF) + 1,
                height_px or ((packed >> 14) & 0x3FFF) + 1,
            )
        elif kind == b"VP8 " and not has_data:
            w, h = struct.unpack_from("<HH", data, body + 6)
            width_px, height_px = width_px or w & 0x3FFF, height_px or h & 0x3FFF
        frames += kind == b"ANMF"
        has_data = has_data or kind in (b"VP8L", b"VP8 ", b"ANMF")
        position = body + length + length % 2
    if not has_data:
        raise MalformedError("the WebP holds no pixels")
    return Header("WEBP", height_px, width_px, frames=max(frames, 1))


def _gif(data: bytes) -> Header:
    width_px, height_px, flags = struct.unpack_from("<HHB", data, 6)
    position, frames = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0), 0
    while (block := data[position]) != 0x3B:
        if block == 0x21:
            position += 2
        elif block == 0x2C:
            flags = data[position + 9]
            position += 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
            frames += 1
        else:
            raise MalformedError(f"the GIF is damaged at byte {position}")
        while length := data[position]:
            position += length + 1
        position += 1
    if not frames:
        raise MalformedError("the GIF holds no pixels")
    return Header("GIF", height_px, width_px, channels=1, frames=frames)


def _bmp(data: bytes) -> Header:
    """Size and completeness of the uncompressed kinds; the others are left to the decoder."""
    (pixels_at,) = struct.unpack_from("<I", data, 10)
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    if header_bytes == 12:  # OS/2
        width_px, height_px, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    else:
        width_px, height_px, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
        height_px = abs(height_px)
    expected = pixels_at + (width_px * bits + 31) // 32 * 4 * height_px
    if compression in (0, 3) and expected > len(data):
        raise MalformedError(f"the BMP is truncated: {len(data)} of {expected} bytes")
    return Header("BMP", height_px, width_px)
