"""EXIF of the upscaled picture: cut down to what describes it, and made true for its size.

Standard library only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from fractions import Fraction

from yonos_trt.errors import listed
from yonos_trt.images.exif import (
    ORIENTATION,
    RESOLUTION_UNIT,
    X_RESOLUTION,
    Y_RESOLUTION,
    YCBCR_POSITIONING,
    Directory,
    Entry,
    Exif,
)
from yonos_trt.images.exif_tags import CODING, DESCRIPTIVE, name_of
from yonos_trt.images.georeference import GEO_TAGS, grown_georeference, is_georeference

IMAGE_DESCRIPTION = 0x010E
IMAGE_WIDTH, IMAGE_LENGTH = 0x0100, 0x0101
PIXEL_X_DIMENSION, PIXEL_Y_DIMENSION = 0xA002, 0xA003
FOCAL_PLANE_X_RESOLUTION, FOCAL_PLANE_Y_RESOLUTION = 0xA20E, 0xA20F
SUBJECT_AREA, SUBJECT_LOCATION = 0x9214, 0xA214
MAKER_NOTE = 0x927C
_PADDING = (0xEA1C, 0xEA1D)  # Microsoft's room for edits

_SHORT, _LONG, _RATIONAL = 3, 4, 5
_BIG_TYPES = (16, 17, 18)  # of BigTIFF, which EXIF is not
# Type and count of the numbers that travel in a first directory; readers of TIFF stumble over others.
_SHAPES = {
    ORIENTATION: (_SHORT, 1), X_RESOLUTION: (_RATIONAL, 1), Y_RESOLUTION: (_RATIONAL, 1),
    RESOLUTION_UNIT: (_SHORT, 1), YCBCR_POSITIONING: (_SHORT, 1), 0x0129: (_SHORT, 2),  # page number
    0x013E: (_RATIONAL, 2), 0x013F: (_RATIONAL, 6),  # white point, primaries
}  # fmt: skip


def upright_exif(
    block: bytes, orientation: int, stored_px: tuple[int, int], *, is_tiff: bool = False
) -> tuple[bytes | None, tuple[str, ...]]:
    """Cut EXIF down to what describes the picture, for pixels that have been turned upright.

    Parameters
    ----------
    block
        EXIF as a file holds it, or a whole TIFF file.
    orientation
        1..8, which has been applied to the pixels.
    stored_px
        (height, width) before that.
    is_tiff
        ``block`` is a picture itself: its further pages are not a thumbnail's.

    Returns
    -------
    EXIF with orientation 1, or None if nothing is left; and what was removed, for ``Picture.left_out``.
    """
    try:
        exif = Exif.parse(block)
    except (ValueError, struct.error) as error:
        return None, (f"EXIF, which cannot be read ({error})",)
    for directory in (exif.main, exif.exif, exif.gps, exif.interop):
        for tag in [tag for tag, entry in directory.items() if entry.kind in _BIG_TYPES]:
            if is_tiff and directory is exif.main and tag not in DESCRIPTIVE | GEO_TAGS:
                continue  # a BigTIFF's own, which does not travel: places of strips, of directories
            del directory[tag]
            exif.is_damaged = True
    for tag, (kind, count) in _SHAPES.items():
        if (entry := exif.main.get(tag)) is not None and (entry.kind, entry.count) != (kind, count):
            del exif.main[tag]
            exif.is_damaged = True
    if exif.is_damaged and not (exif.main or exif.exif or exif.gps):
        return None, ("EXIF, which cannot be read (its directory is damaged)",)
    left_out = ["damaged entries of EXIF"] if exif.is_damaged else []
    if exif.has_thumbnail:
        copies = "smaller copies in the TIFF, which show" if is_tiff else "EXIF thumbnail, which shows"
        left_out.append(f"{copies} the old picture")
    travelling = DESCRIPTIVE
    if is_tiff and orientation == 1 and is_georeference(exif.main, exif.order):
        travelling = DESCRIPTIVE | GEO_TAGS
    unknown = [tag for tag in exif.main if tag not in travelling and tag not in CODING]
    if unknown:
        left_out.append(f"tags that may describe the old pixels: {_names(unknown)}")
    kept = {tag: entry for tag, entry in exif.main.items() if tag in travelling}
    if not is_tiff:  # their size entries are made true later
        kept |= {tag: exif.main[tag] for tag in (IMAGE_WIDTH, IMAGE_LENGTH) if tag in exif.main}
    if ORIENTATION in kept:
        kept[ORIENTATION] = Entry(_SHORT, struct.pack(exif.order + "H", 1))
    if (what := _machine_description(kept.get(IMAGE_DESCRIPTION))) is not None:
        del kept[IMAGE_DESCRIPTION]
        left_out.append(f"{what} in the image description, which lists the old file's pixels")
    exif.main = kept
    if exif.exif.pop(MAKER_NOTE, None) is not None:
        left_out.append("EXIF maker note, whose offsets and positions belong to the old file")
    for tag in (*_PADDING, *(tag for tag in exif.exif if tag in CODING)):
        exif.exif.pop(tag, None)
    _turn_subject(exif, orientation, stored_px)
    if orientation >= 5:
        for one, other in (
            (FOCAL_PLANE_X_RESOLUTION, FOCAL_PLANE_Y_RESOLUTION),
            (PIXEL_X_DIMENSION, PIXEL_Y_DIMENSION),
        ):
            _swap(exif.exif, one, other)
        _swap(exif.main, X_RESOLUTION, Y_RESOLUTION)
    return exif.tobytes() or None, tuple(left_out)


def _machine_description(entry: Entry | None) -> str | None:
    """Say which program's own notes an image description holds, None for words of people."""
    text = entry.raw.strip(b"\0 \r\n") if entry is not None else b""
    for what, is_it in (
        ("OME-XML", b"<OME" in text[:4096] or b":OME" in text[:4096]),
        ("ImageJ's notes", text.startswith(b"ImageJ=")),
        ("tifffile's shape", text.startswith((b'{"shape":', b"shape=("))),
        ("scanner's notes", text.startswith(b"Aperio ")),
    ):
        if is_it:
            return what
    return None


def _names(tags: Iterable[int]) -> str:
    return listed(name_of(tag) for tag in sorted(tags))


def _swap(directory: Directory, one: int, other: int) -> None:
    first, second = directory.pop(one, None), directory.pop(other, None)
    directory |= {tag: e for tag, e in ((one, second), (other, first)) if e is not None}


def _turn_subject(exif: Exif, orientation: int, stored_px: tuple[int, int]) -> None:
    """Move the subject's place, which EXIF gives in stored pixels, to where it is seen."""
    height_px, width_px = stored_px
    for tag in (SUBJECT_AREA, SUBJECT_LOCATION):
        entry = exif.exif.get(tag)
        values = entry.numbers(exif.order) if entry is not None else ()
        if entry is None or orientation == 1:
            continue
        if not 2 <= len(values) <= 4:
            del exif.exif[tag]
            continue
        x, y, *size = values
        if orientation in (2, 3, 7, 8):
            x = width_px - 1 - x
        if orientation in (3, 4, 6, 7):
            y = height_px - 1 - y
        if orientation >= 5:
            x, y, size = y, x, size[::-1]
        exif.exif[tag] = _longs(exif.order, [max(0, x), max(0, y), *size])


def _longs(order: str, values: Iterable[int]) -> Entry:
    values = [min(value, 2**32 - 1) for value in values]
    letter, kind = ("H", _SHORT) if max(values) < 2**16 else ("I", _LONG)
    return Entry(kind, struct.pack(f"{order}{len(values)}{letter}", *values))


def grown(block: bytes, height_px: int, width_px: int, source_px: tuple[int, int]) -> bytes:
    """Return EXIF (from ``upright_exif``) made true for a picture grown from ``source_px`` to a new size.

    Sizes, the subject's place and the focal plane's resolution, where there are any.
    """
    exif = Exif.parse(block)
    for directory, tags in (
        (exif.exif, (PIXEL_X_DIMENSION, PIXEL_Y_DIMENSION)),
        (exif.main, (IMAGE_WIDTH, IMAGE_LENGTH)),
    ):
        for tag, value in zip(tags, (width_px, height_px), strict=True):
            if tag in directory:
                directory[tag] = _longs(exif.order, [value])
    scale_x, scale_y = Fraction(width_px, source_px[1]), Fraction(height_px, source_px[0])
    if scale_x == scale_y == 1:
        return exif.tobytes()
    exif.main = grown_georeference(exif.main, exif.order, float(scale_x), float(scale_y))
    for tag in (SUBJECT_AREA, SUBJECT_LOCATION):
        values = exif.exif[tag].numbers(exif.order) if tag in exif.exif else ()
        if 2 <= len(values) <= 4:
            x, y = ((2 * values[0] + 1) * scale_x // 2, (2 * values[1] + 1) * scale_y // 2)
            size = [round(v * s) for v, s in zip(values[2:], (scale_x, scale_y), strict=False)]
            exif.exif[tag] = _longs(exif.order, [int(x), int(y), *size])
    for tag, scale in ((FOCAL_PLANE_X_RESOLUTION, scale_x), (FOCAL_PLANE_Y_RESOLUTION, scale_y)):
        entry = exif.exif.get(tag)
        if entry is not None and entry.kind == _RATIONAL and len(entry.raw) == 8:
            top, bottom = struct.unpack(exif.order + "II", entry.raw)
            if bottom:
                exact = _fitting(Fraction(top, bottom) * scale)
                exif.exif[tag] = Entry(_RATIONAL, struct.pack(exif.order + "II", *exact))
    return exif.tobytes()


def with_resolution(block: bytes | None, dpi: tuple[float, float]) -> bytes:
    """Return EXIF that says a resolution; one that does already stays as it is."""
    exif = Exif.parse(block) if block else Exif()
    if X_RESOLUTION not in exif.main and Y_RESOLUTION not in exif.main:
        for tag, value in zip((X_RESOLUTION, Y_RESOLUTION), dpi, strict=True):
            exact = _fitting(Fraction(value).limit_denominator(10_000))
            exif.main[tag] = Entry(_RATIONAL, struct.pack(exif.order + "II", *exact))
        exif.main[RESOLUTION_UNIT] = Entry(_SHORT, struct.pack(exif.order + "H", 2))
    return exif.tobytes()


def _fitting(value: Fraction) -> tuple[int, int]:
    """Return numerator and denominator in 32 bits, as near as they get."""
    limit = 2**32 - 1
    if value.numerator > limit or value.denominator > limit:
        value = value.limit_denominator(max(1, limit // max(1, int(value) + 1)))
    return min(value.numerator, limit), value.denominator


def without_georeference(block: bytes) -> tuple[bytes | None, bool]:
    """Return EXIF without GeoTIFF's tags, which only a TIFF holds, and whether there were any."""
    exif = Exif.parse(block)
    if not GEO_TAGS & exif.main.keys():
        return block, False
    exif.main = {tag: entry for tag, entry in exif.main.items() if tag not in GEO_TAGS}
    return exif.tobytes() or None, True
