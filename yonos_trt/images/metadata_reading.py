"""Find what a file says about its picture: each format's own way, one ``Metadata`` for all."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from yonos_trt.images.avif_boxes import avif_color, avif_left_out
from yonos_trt.images.color_space import ColorSpace
from yonos_trt.images.exif import RESOLUTION_UNIT, X_RESOLUTION, Y_RESOLUTION, Exif
from yonos_trt.images.exif_tags import DESCRIPTIVE
from yonos_trt.images.jpeg_segments import jpeg_metadata, pixel_segments
from yonos_trt.images.metadata import Metadata
from yonos_trt.images.photoshop import parse_resources, resources_of_iptc
from yonos_trt.images.png_chunks import pixel_chunks, png_metadata
from yonos_trt.images.small_formats import add_bmp_color, add_gif_extensions, webp_left_out

if TYPE_CHECKING:
    from PIL import Image

    from yonos_trt.images.header import Header

_CM_PER_INCH = 2.54
_ICC, _XMP, _IPTC, _PHOTOSHOP = 34675, 700, 33723, 34377
_WHITE, _PRIMARIES = 318, 319


def read_metadata(data: bytes, header: Header, image: Image.Image | None) -> Metadata:
    """Find what stands beside the pixels.

    Parameters
    ----------
    data
        The file.
    header
        From ``inspect``.
    image
        Loaded by Pillow, for the formats whose entries are taken from it.
    """
    try:
        return _read(data, header, image)
    except (ValueError, IndexError, KeyError, struct.error) as error:
        return Metadata(left_out=[f"metadata, which cannot be read ({error})"])


def _read(data: bytes, header: Header, image: Image.Image | None) -> Metadata:
    if header.format == "PNG":
        return png_metadata(data)
    if header.format == "JPEG":
        found = jpeg_metadata(data)
        found.dpi = found.dpi or _exif_dpi(found.exif)
        return found
    if header.format == "TIFF":
        return _tiff_metadata(data)
    assert image is not None
    found = pil_metadata(image)
    if header.format == "WEBP":
        found.left_out += webp_left_out(data)
    elif header.format == "GIF":
        add_gif_extensions(data, found)
    elif header.format == "BMP":
        add_bmp_color(data, found)
    elif header.format in ("AVIF", "HEIC"):
        found.turned_by_xmp = False  # they turn by themselves; what was not done is said in EXIF
        found.color = avif_color(data) if found.icc is None else None
        found.left_out += avif_left_out(data)
    return found


def pixels_alone(data: bytes, format_: str) -> bytes:
    """Return a file without what a decoder of the pixels does not need, and might stumble over."""
    if format_ == "PNG":
        return pixel_chunks(data)
    if format_ == "JPEG":
        return pixel_segments(data)
    return data


def _exif_dpi(block: bytes | None) -> tuple[float, float] | None:
    """Resolution that EXIF, or a TIFF, gives; None for none, or one without a length."""
    try:
        exif = Exif.parse(block) if block else Exif()
    except (ValueError, struct.error):
        return None
    unit = exif.main[RESOLUTION_UNIT].numbers(exif.order) if RESOLUTION_UNIT in exif.main else (2,)
    values = []
    for tag in (X_RESOLUTION, Y_RESOLUTION):
        entry = exif.main.get(tag)
        if entry is not None and entry.kind == 5 and len(entry.raw) == 8:
            top, bottom = struct.unpack(exif.order + "II", entry.raw)
            values += [top / bottom] if top and bottom else []
    if len(values) != 2 or unit not in ((2,), (3,)):
        return None
    factor = _CM_PER_INCH if unit == (3,) else 1.0
    return values[0] * factor, values[1] * factor


def _tiff_metadata(data: bytes) -> Metadata:
    """ICC, XMP, IPTC, resolution and descriptive tags of a TIFF's first directory."""
    exif = Exif.parse(data)
    blocks = {tag: exif.main[tag].raw for tag in (_ICC, _XMP, _IPTC, _PHOTOSHOP) if tag in exif.main}
    found = Metadata(blocks.get(_ICC), data, blocks.get(_XMP), dpi=_exif_dpi(data), is_tiff=True)
    found.turned_by_xmp = False  # a TIFF without the tag is upright
    if found.icc is None and _WHITE in exif.main and _PRIMARIES in exif.main:
        found.color = _tiff_color(exif)
    if _PHOTOSHOP in blocks:
        try:
            found.resources = parse_resources(blocks[_PHOTOSHOP])
        except ValueError as error:
            found.left_out.append(f"Photoshop resources, which cannot be read ({error})")
    if _IPTC in blocks:
        iptc = blocks[_IPTC]
        if (
            not iptc.startswith(b"\x1c") and iptc[3:4] == b"\x1c"
        ):  # written as numbers of the other byte order
            iptc = exif.main[_IPTC].swapped().raw
        found.resources = [entry for entry in found.resources if entry[0] != 0x0404] + resources_of_iptc(iptc)
    return found


def _tiff_color(exif: Exif) -> ColorSpace | None:
    """White point and primaries of a TIFF; its curve is gamma 2.2 by default, which is taken for sRGB's."""
    points = []
    for tag, count in ((_WHITE, 2), (_PRIMARIES, 6)):
        entry = exif.main[tag]
        if entry.kind != 5 or entry.count != count:
            return None
        values = struct.unpack(f"{exif.order}{2 * count}I", entry.raw)
        if 0 in values[1::2]:
            return None
        points += [top / bottom for top, bottom in zip(values[::2], values[1::2], strict=True)]
    return ColorSpace(chromaticities=tuple(points)).possible()


def pil_metadata(image: Image.Image) -> Metadata:
    """Take what Pillow puts into ``info``, and the EXIF of a loaded image."""
    info = image.info
    found = Metadata()
    for name in ("icc_profile", "exif", "xmp"):
        value = info.get(name)
        if isinstance(value, bytes) and value:
            setattr(found, name.removesuffix("_profile"), value)
    dpi = info.get("dpi")
    # Pillow makes up 1 dpi for a TIFF that gives no resolution (tag 282).
    if X_RESOLUTION not in getattr(image, "tag_v2", {X_RESOLUTION: None}):
        dpi = None
    if isinstance(dpi, tuple) and len(dpi) == 2:
        found.dpi = (float(dpi[0]), float(dpi[1]))
    resources = info.get("photoshop")  # of a JPEG: number -> data
    if isinstance(resources, dict):
        found.resources = [(int(n), b"", v) for n, v in resources.items() if isinstance(v, bytes)]
    comment = info.get("comment")
    if image.format == "PNG":
        names = ("exif", "xmp", "XML:com.adobe.xmp", "icc_profile")
        found.text = {
            str(k): str(v)
            for k, v in info.items()
            if isinstance(v, str) and k not in names and not str(k).startswith("Raw profile type")
        }
        found.color = _pil_color(info)
    elif image.format in ("JPEG", "MPO", "GIF") and isinstance(comment, bytes) and comment:
        found.text["comment"] = comment.decode("utf-8", "replace")
    if found.exif is None or image.format == "TIFF" or _has_live_exif(image, found.exif):
        found.exif = _pil_exif(image)
    return found


def _pil_color(info: Mapping[Any, Any]) -> ColorSpace | None:
    gamma, intent, points = (info.get(name) for name in ("gamma", "srgb", "chromaticity"))
    gamma = gamma if isinstance(gamma, float) and gamma > 0 else None
    intent = intent if isinstance(intent, int) else None
    if not (isinstance(points, tuple) and len(points) == 8):
        points = None
    if gamma is None and intent is None and points is None:
        return None
    return ColorSpace(srgb_intent=intent, gamma=gamma, chromaticities=points).possible()


def _has_live_exif(image: Image.Image, block: bytes) -> bool:
    """True if EXIF was asked for already, so that a program may have changed it, and is whole."""
    if getattr(image, "_exif", None) is None:
        return False
    try:
        return not Exif.parse(block).is_damaged
    except (ValueError, struct.error):
        return False


def _pil_exif(image: Image.Image) -> bytes | None:
    """EXIF as Pillow holds it, of which a program may have changed entries."""
    try:
        held = image.getexif()
        if image.format == "TIFF":
            for tag in [tag for tag in held if tag not in DESCRIPTIVE and tag not in (0x8769, 0x8825)]:
                del held[tag]
        return held.tobytes() if len(held) else None
    except (
        Exception
    ):  # whatever a broken block or a foreign value makes Pillow raise: it is told as unreadable
        return b"broken"
