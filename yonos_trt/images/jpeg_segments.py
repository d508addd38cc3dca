"""What stands in a JPEG beside its pixels: application segments, comments, and what follows the picture.

A decoder gets the segments that it needs for the pixels alone. ITU-T T.81 annex B; Exif 2.32; XMP
specification part 3; CIPA DC-007 (multi-picture format).
"""

from __future__ import annotations

import hashlib
import re
import struct

from yonos_trt.images.jpeg_header import scans, segments
from yonos_trt.images.metadata import Metadata
from yonos_trt.images.photoshop import parse_resources
from yonos_trt.images.xmp_parts import merged
from yonos_trt.images.xmp_tree import XmpError

XMP_LABEL = b"http://ns.adobe.com/xap/1.0/\0"
EXTENDED_XMP_LABEL = b"http://ns.adobe.com/xmp/extension/\0"
PHOTOSHOP_LABEL = b"Photoshop 3.0\0"
_ICC_LABEL = b"ICC_PROFILE\0"
# Segments of the picture's own coding, or which only index what follows it.
_CODING = (
    (0xEC, b"Ducky"),
    (0xEE, b"Adobe"),
    (0xED, b"Adobe_CM\0"),
    (0xE2, b"MPF\0"),
    (0xE2, b"urn:iso:std:iso:ts:21496:-1\0"),
)
_GAIN_MAP_MARKS = (b"urn:iso:std:iso:ts:21496", b"http://ns.adobe.com/hdr-gain-map/", b"HDRGainMap")
_DEPTH_MARKS = (
    b"http://ns.apple.com/depthData/",
    b"ns.google.com/photos/1.0/depthmap",
    b"PortraitEffectsMatte",
)
_CM_PER_INCH = 2.54


def pixel_segments(data: bytes) -> bytes:
    """Return the JPEG without everything that is not needed to decode its pixels."""
    parts, scan_at = [data[:2]], len(data)
    for marker, begin, end in segments(data):
        body = data[begin + 4 : begin + 9]
        is_jfif, is_adobe = marker == 0xE0 and body == b"JFIF\0", marker == 0xEE and body == b"Adobe"
        if marker == 0xDA:
            scan_at = begin
        elif is_jfif or is_adobe or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            parts.append(data[begin:end])
    return b"".join([*parts, data[scan_at:]])


def _end_of_picture(data: bytes) -> int:
    """Return where the first picture ends, after all of its scans."""
    *_, (_, _, scan_at) = segments(data)
    return scans(data, scan_at)[-1][1] + 2


def jpeg_metadata(data: bytes) -> Metadata:
    """Read everything but the pixels; what cannot be carried or read is named in ``left_out``."""
    found = Metadata()
    profile: dict[tuple[int, int], bytes] = {}
    extended: dict[bytes, dict[int, bytes]] = {}
    photoshop, comments, unknown = b"", [], []
    has_gain_map = False
    for marker, begin, end in segments(data):
        body = data[begin + 4 : end]
        if marker == 0xE0 and body.startswith(b"JFIF\0") and len(body) >= 12:
            unit, x, y = struct.unpack_from(">BHH", body, 7)
            if unit in (1, 2) and x and y:
                factor = 1.0 if unit == 1 else _CM_PER_INCH
                found.dpi = (x * factor, y * factor)
            if len(body) > 14:
                found.left_out.append("JFIF thumbnail, which shows the old picture")
        elif marker == 0xE0 and body.startswith(b"JFXX\0"):
            found.left_out.append("JFIF thumbnail, which shows the old picture")
        elif marker == 0xE1 and body.startswith(b"Exif\0"):
            found.exif = found.exif or body
        elif marker == 0xE1 and body.startswith(XMP_LABEL):
            found.xmp = found.xmp or body.removeprefix(XMP_LABEL)
        elif marker == 0xE1 and body.startswith(EXTENDED_XMP_LABEL):
            head = len(EXTENDED_XMP_LABEL)
            (offset,) = struct.unpack_from(">I", body, head + 36)
            extended.setdefault(body[head : head + 32], {})[offset] = body[head + 40 :]
        elif marker == 0xE2 and body.startswith(_ICC_LABEL):
            profile[body[12], body[13]] = body[14:]
        elif marker == 0xED and body.startswith(PHOTOSHOP_LABEL):
            photoshop += body.removeprefix(PHOTOSHOP_LABEL)
        elif marker == 0xFE:
            comments.append(body.rstrip(b"\0").decode("utf-8", "replace"))
        elif 0xE0 <= marker <= 0xEF:
            has_gain_map = has_gain_map or body.startswith(b"urn:iso:std:iso:ts:21496:-1\0")
            if not any(marker == number and body.startswith(label) for number, label in _CODING):
                unknown.append(f"APP{marker - 0xE0} ({_label(body)})")
    if sorted(profile) == [(number, len(profile)) for number in range(1, len(profile) + 1)]:
        found.icc = b"".join(profile[key] for key in sorted(profile)) or None
    else:
        found.left_out.append("ICC profile, of which parts are missing")
    if comments:
        found.text["comment"] = "\n".join(comments)
    if photoshop:
        try:
            found.resources = parse_resources(photoshop)
        except ValueError as error:
            found.left_out.append(f"Photoshop resources and IPTC, which cannot be read ({error})")
    _extend(found, extended)
    if unknown:
        found.left_out.append(f"JPEG segments {', '.join(unknown)}")
    trailer = data[_end_of_picture(data) :].strip(b"\0")
    has_gain_map = has_gain_map or b"http://ns.adobe.com/hdr-gain-map/" in (found.xmp or b"")
    found.left_out += _named_trailer(trailer, has_gain_map=has_gain_map)
    return found


def _label(body: bytes) -> str:
    word = re.match(rb"[ -~]{2,40}", body)
    return word[0].decode().strip() if word else f"{len(body)} bytes"


def _extend(found: Metadata, extended: dict[bytes, dict[int, bytes]]) -> None:
    """Merge the parts of an XMP packet that was too long for one segment."""
    if not extended and b"HasExtendedXMP" not in (found.xmp or b""):
        return
    for digest, parts in extended.items():
        if digest not in (found.xmp or b""):
            continue  # belongs to another packet: to be ignored, says the specification
        whole = b"".join(parts[offset] for offset in sorted(parts))
        if hashlib.md5(whole, usedforsecurity=False).hexdigest().upper().encode() == digest.upper():
            try:
                found.xmp = merged(found.xmp or b"", whole)
                return
            except XmpError:
                break
    found.left_out.append("extended XMP, which is missing or damaged")


def _named_trailer(trailer: bytes, *, has_gain_map: bool) -> list[str]:
    """Say what follows the picture in the file."""
    named = []
    pictures = trailer.count(b"\xff\xd8\xff")
    if has_gain_map or any(mark in trailer for mark in _GAIN_MAP_MARKS):
        named.append("HDR gain map: the result is the standard-range picture")
        pictures -= 1
    if any(mark in trailer for mark in _DEPTH_MARKS):
        named.append("depth map")
        pictures -= 1
    if b"ftyp" in trailer or b"MotionPhoto_Data" in trailer:
        named.append("video of a motion photo")
    elif pictures > 0:
        named.append("further pictures in the same file")
    elif trailer and not named:
        named.append(f"{len(trailer)} bytes behind the end of the picture ({_label(trailer)})")
    return named
