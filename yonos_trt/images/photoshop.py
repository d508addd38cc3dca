"""Photoshop's image resources, among them IPTC: which of them are true of the new picture.

JPEG keeps them in its APP13 segment, TIFF in tag 34377 (and IPTC once more in 33723). Adobe Photoshop File
Formats Specification, "Image Resource Blocks". Standard library only.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

from yonos_trt.errors import listed

Resource = tuple[int, bytes, bytes]
"""Number, name (a Pascal string without its length), data."""

_IPTC, _IPTC_DIGEST = 0x0404, 0x0425
# Resolution, caption, copyright flag, URL, name of the clipping path: true of any size. Paths are in parts of
# the picture's sides, and true unless it was turned.
_KEPT = frozenset((_IPTC, _IPTC_DIGEST, 0x03ED, 0x03F0, 0x040A, 0x040B, 0x0BB7))
_PATHS = range(0x07D0, 0x0BB7)


def parse_resources(block: bytes) -> list[Resource]:
    """Read a sequence of ``8BIM`` resources.

    Raises
    ------
    ValueError
        It is damaged.
    """
    found, at = [], 0
    while at + 12 <= len(block):
        signature, number, length = struct.unpack_from(">4sHB", block, at)
        if signature not in (b"8BIM", b"MeSa", b"AgHg", b"PHUT", b"DCSR"):
            raise ValueError(f"Photoshop resources are damaged at byte {at}")
        name = block[at + 7 : at + 7 + length]
        at += 6 + (1 + length + 1) // 2 * 2
        if at + 4 > len(block):
            raise ValueError("Photoshop resources are cut off")
        (size,) = struct.unpack_from(">I", block, at)
        data = block[at + 4 : at + 4 + size]
        if len(data) < size:
            raise ValueError("Photoshop resources are cut off")
        found.append((number, name, data))
        at += 4 + size + size % 2
    return found


def resources_of_iptc(iptc: bytes) -> list[Resource]:
    """Return bare IPTC as the one resource it is."""
    return [(_IPTC, b"", iptc)]


def iptc_of(resources: Iterable[Resource]) -> bytes | None:
    """Return the IPTC records, or None."""
    return next((data for number, _, data in resources if number == _IPTC and data), None)


def kept_resources(resources: Iterable[Resource], *, turned: bool) -> tuple[list[Resource], tuple[str, ...]]:
    """Return the resources that are true of the upscaled picture, and words for those that are not."""
    kept: dict[int, Resource] = {}
    removed = set()
    for resource in resources:
        number = resource[0]
        if number in _KEPT or (number in _PATHS and not turned):
            kept.setdefault(number, resource)
        else:
            removed.add(number)
    if _IPTC_DIGEST in kept:  # says that XMP was in step with exactly these bytes
        iptc = iptc_of(kept.values()) or b""
        if kept[_IPTC_DIGEST][2] != hashlib.md5(iptc, usedforsecurity=False).digest():
            del kept[_IPTC_DIGEST]
    if not removed:
        return list(kept.values()), ()
    what = "thumbnail, guides, slices and the like of the old picture"
    numbers = listed(sorted(removed))
    return list(kept.values()), (f"Photoshop resources {numbers} ({what})",)


def resource_bytes(resources: Iterable[Resource]) -> bytes:
    """Return resources as files hold them."""
    parts = []
    for number, name, data in resources:
        label = bytes([len(name)]) + name
        label += bytes(len(label) % 2)
        parts.append(b"8BIM" + struct.pack(">H", number) + label + struct.pack(">I", len(data)) + data)
        parts.append(bytes(len(data) % 2))
    return b"".join(parts)
