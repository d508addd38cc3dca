"""What stands in a PNG beside its pixels: text, EXIF, colour, resolution, and chunks kept as they are.

Pillow puts text under the same names as its own entries, so that a text called ``icc_profile`` passes for
a profile: here every chunk is taken for what its type says, and a decoder gets the pixels' chunks alone.
PNG specification, third edition, section 11.
"""

from __future__ import annotations

import binascii
import struct
import zlib
from collections.abc import Iterator

from yonos_trt.images.color_space import ColorSpace
from yonos_trt.images.metadata import Metadata
from yonos_trt.images.photoshop import parse_resources, resources_of_iptc

_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
# Written into a PNG again as they are: time of change, mastering display, content light level.
_KEPT = (b"tIME", b"mDCV", b"cLLI")
# Describe how the old file is coded, or a sequence of one frame.
_CODING = (b"iDOT", b"acTL", b"fcTL", b"fdAT", b"hIST", b"dSIG")
_MEANINGS = {
    b"bKGD": "background colour", b"sBIT": "significant bits of the old samples",
    b"caBX": "content credentials (C2PA), which are signed for the old file", b"oFFs": "offset",
    b"pCAL": "scale", b"sCAL": "size of a pixel", b"sTER": "stereo layout", b"sPLT": "suggested palette",
}  # fmt: skip
_TEXT_BYTES = 1 << 24  # of one text or profile, inflated
_METRES_PER_INCH = 0.0254


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (type, body) of a PNG that passed ``inspect``."""
    position = 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        yield kind, data[position + 8 : position + 8 + length]
        if kind == b"IEND":
            return
        position += 12 + length


def pixel_chunks(data: bytes) -> bytes:
    """Return the PNG without everything that is not needed to decode its pixels."""
    parts, position = [data[:8]], 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind in _PIXELS:
            parts.append(data[position : position + 12 + length])
        if kind == b"IEND":
            break
        position += 12 + length
    return b"".join(parts)


def png_metadata(data: bytes) -> Metadata:
    """Read everything but the pixels; what cannot be read is named in ``left_out``."""
    found = Metadata()
    color: dict[bytes, bytes] = {}
    for kind, body in _chunks(data):
        if kind in _PIXELS or kind in _CODING:
            continue
        try:
            if kind in (b"cICP", b"sRGB", b"gAMA", b"cHRM"):
                color.setdefault(kind, body)
            elif kind == b"iCCP":
                found.icc = _inflated(body.partition(b"\0")[2][1:])
            elif kind in (b"tEXt", b"zTXt", b"iTXt"):
                _read_text(found, kind, body)
            elif kind == b"eXIf":
                found.exif = body
            elif kind == b"pHYs":
                x, y, unit = struct.unpack(">IIB", body)
                if unit == 1 and x and y:
                    found.dpi = (x * _METRES_PER_INCH, y * _METRES_PER_INCH)
                else:
                    found.chunks += ((kind, body),)
            elif kind in _KEPT:
                found.chunks += ((kind, body),)
            else:
                meaning = _MEANINGS.get(kind, "unknown to this program")
                found.left_out.append(f"PNG chunk {kind.decode('latin-1')!s} ({meaning})")
        except (ValueError, struct.error, zlib.error, binascii.Error) as error:
            found.left_out.append(f"PNG chunk {kind.decode('latin-1')}, which cannot be read ({error})")
    said = ColorSpace.from_png(color)
    found.color = said.possible() if said is not None else None
    if found.color != said:
        found.left_out.append("gAMA or cHRM, whose numbers are impossible")
    return found


def _inflated(packed: bytes) -> bytes:
    inflate = zlib.decompressobj()
    whole = inflate.decompress(packed, _TEXT_BYTES)
    if inflate.unconsumed_tail:
        raise ValueError(f"it is longer than {_TEXT_BYTES} bytes")
    return whole


def _read_text(found: Metadata, kind: bytes, body: bytes) -> None:
    label, _, rest = body.partition(b"\0")
    keyword = label.decode("latin-1")
    if kind == b"tEXt":
        text = rest.decode("latin-1")
    elif kind == b"zTXt":
        text = _inflated(rest[1:]).decode("latin-1")
    else:
        packed = rest[:1] == b"\1"
        language, _, rest = rest[2:].partition(b"\0")
        translated, _, value = rest.partition(b"\0")
        raw = _inflated(value) if packed else value
        if keyword == "XML:com.adobe.xmp":
            found.xmp = raw
            return
        if language or translated:
            found.chunks += ((kind, body),)
            return
        text = raw.decode("utf-8", "replace")
    if keyword.startswith("Raw profile type "):
        _read_profile(found, keyword.removeprefix("Raw profile type "), text)
    else:
        found.text[keyword] = f"{found.text[keyword]}\n{text}" if keyword in found.text else text


def _read_profile(found: Metadata, name: str, text: str) -> None:
    """ImageMagick's way to put other formats' metadata into a PNG: a name, a length, hexadecimal digits."""
    lines = text.split("\n")
    raw = binascii.unhexlify("".join(lines[3:]).replace(" ", ""))
    if name in ("exif", "APP1") and raw.startswith((b"Exif\0\0", b"II*\0", b"MM\0*")):
        found.exif = found.exif or raw
    elif name == "xmp" or raw.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
        found.xmp = found.xmp or raw.removeprefix(b"http://ns.adobe.com/xap/1.0/\0")
    elif name in ("iptc", "8bim"):
        raw = raw.removeprefix(b"Photoshop 3.0\0")
        found.resources += parse_resources(raw) if raw.startswith(b"8BIM") else resources_of_iptc(raw)
    elif name in ("icc", "icm"):
        found.icc = found.icc or raw
    else:
        raise ValueError(f"a profile of the unknown kind {name!r}")
