"""What stands beside the pixels in WebP, GIF and BMP and is not told by Pillow: chunks, extensions, colour.

WebP container specification; GIF89a, section 26; BITMAPV5HEADER. Standard library only.
"""

from __future__ import annotations

import struct

from yonos_trt.images.color_space import ColorSpace
from yonos_trt.images.metadata import Metadata

_WEBP_KNOWN = (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ICCP", b"EXIF", b"XMP ", b"ANIM", b"ANMF")
_GIF_LOOPS = (b"NETSCAPE2.0", b"ANIMEXTS1.0")
_GIF_MAGIC_TRAILER = b"\x01\xff\xfe\xfd"
# bV5CSType, read as little endian.
_CALIBRATED, _LINKED, _EMBEDDED = 0, 0x4C494E4B, 0x4D424544


def webp_left_out(data: bytes) -> list[str]:
    """Name the chunks that no format has a place for."""
    named, position = [], 12
    end = min(len(data), struct.unpack_from("<I", data, 4)[0] + 8)
    while position + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, position)
        if kind not in _WEBP_KNOWN:
            named.append(f"WebP chunk {kind.decode('latin-1')}")
        position += 8 + length + length % 2
    return list(dict.fromkeys(named))


def add_gif_extensions(data: bytes, found: Metadata) -> None:
    """Take XMP and ICC from a GIF's application extensions, and name the others."""
    position = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    while position + 2 < len(data) and data[position] != 0x3B:
        is_application = data[position : position + 3] == b"\x21\xff\x0b"
        name, start = data[position + 3 : position + 14], position + 14
        if data[position] == 0x21:
            position += 2
        else:
            flags = data[position + 9]
            position += 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
        blocks = []
        while position < len(data) and (length := data[position]):
            blocks.append(data[position + 1 : position + 1 + length])
            position += length + 1
        position += 1
        if not is_application:
            continue
        if name == b"XMP DataXMP":  # not in blocks: the packet ends at a trailer that makes it look like them
            end = data.find(_GIF_MAGIC_TRAILER, start)
            found.xmp = data[start : end if end >= 0 else position]
        elif name == b"ICCRGBG1012":
            found.icc = b"".join(blocks[1:])
        elif name not in _GIF_LOOPS:
            found.left_out.append(f"GIF extension {name.decode('latin-1').strip()}")


def add_bmp_color(data: bytes, found: Metadata) -> None:
    """Take the profile or the primaries and gamma of a BMP's version 4 or 5 header."""
    (size,) = struct.unpack_from("<I", data, 14)
    if size < 108:
        return
    (kind,) = struct.unpack_from("<I", data, 14 + 56)
    if kind == _EMBEDDED and size >= 124:
        at, length = struct.unpack_from("<II", data, 14 + 112)
        found.icc = data[14 + at : 14 + at + length] or None
    elif kind == _LINKED:
        found.left_out.append("colour profile in another file")
    elif kind == _CALIBRATED:
        values = struct.unpack_from("<9i", data, 14 + 60)
        gammas = [value / 65536 for value in struct.unpack_from("<3I", data, 14 + 96)]
        corners = [values[at : at + 3] for at in (0, 3, 6)]
        corners.insert(0, tuple(sum(column) for column in zip(*corners, strict=True)))  # white
        points = tuple(part / sum(xyz) for xyz in corners if sum(xyz) > 0 for part in xyz[:2])
        if len(points) == 8 and min(gammas) > 0:
            found.color = ColorSpace(gamma=1 / gammas[1], chromaticities=points).possible()
