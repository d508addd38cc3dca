"""EXIF, XMP and orientation: what has to change when a picture is turned upright and grows."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["exif_for_size", "orientation_of", "upright", "upright_exif", "upright_xmp", "xmp_for_size"]

logger = logging.getLogger(__name__)

Pixels = NDArray[Any]

# EXIF 2.32 tag numbers.
ORIENTATION = 0x0112
IMAGE_WIDTH, IMAGE_LENGTH = 0x0100, 0x0101
EXIF_IFD, GPS_IFD = 0x8769, 0x8825
PIXEL_X_DIMENSION, PIXEL_Y_DIMENSION = 0xA002, 0xA003

# Descriptive tags of a TIFF's own directory; all others there describe the storage of the pixels.
_DESCRIPTIVE = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298, EXIF_IFD, GPS_IFD)


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turn stored pixels (H, W, ...) the way EXIF orientation 1..8 says they are to be seen; contiguous."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)  # 5: transposed; 6, 7, 8 follow by mirroring it
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation of a PIL image, 1 if it has none or an invalid one. Call after ``load()``: Pillow has
    turned a TIFF by then and removed the tag."""
    try:
        if (
            image.format == "AVIF"
        ):  # its own rotation, which Pillow puts into the EXIF; XMP must not add another
            exif = type(image.getexif())()
            exif.load(image.info.get("exif", b""))
            value = exif.get(ORIENTATION, 1)
        else:
            value = image.getexif().get(ORIENTATION, 1)
    except Exception as error:  # broken EXIF must not cost the picture
        logger.warning("EXIF cannot be read and is treated as absent: %s", error)
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright_exif(source: Image.Image | bytes, *, is_tiff: bool = False) -> bytes | None:
    """EXIF with orientation 1 and without its thumbnail, or None if there is none or it is broken.

    ``source`` is a PIL image or a whole TIFF file (EXIF is TIFF in form); of a TIFF only what describes the
    picture is taken, not how it is stored.
    """
    from PIL import Image as PILImage

    try:
        if isinstance(source, bytes):
            old = PILImage.Exif()
            old.load(source)
        else:
            old = source.getexif()
        if not old:
            return None
        new = PILImage.Exif()
        new.endian = old.endian
        nested = False
        for tag, value in old.items():
            if tag in (EXIF_IFD, GPS_IFD):
                if directory := old.get_ifd(tag):  # an empty one would be written as a broken offset
                    new.get_ifd(tag).update(directory)
                    nested = True
            elif not is_tiff or tag in _DESCRIPTIVE:
                new[tag] = value
        if ORIENTATION in new:
            new[ORIENTATION] = 1
        return new.tobytes() if len(new) or nested else None
    except Exception as error:
        logger.warning("EXIF cannot be read and is dropped: %s", error)
        return None


def exif_for_size(exif: bytes, height_px: int, width_px: int) -> bytes:
    """Return EXIF whose size tags, where it has any, say (height_px, width_px)."""
    from PIL import Image as PILImage

    block = PILImage.Exif()
    block.load(exif)
    inner = block.get_ifd(EXIF_IFD) if EXIF_IFD in block else {}
    for directory, tags in (
        (inner, (PIXEL_X_DIMENSION, PIXEL_Y_DIMENSION)),
        (block, (IMAGE_WIDTH, IMAGE_LENGTH)),
    ):
        for tag, value in zip(tags, (width_px, height_px), strict=True):
            if tag in directory:
                directory[tag] = value
    return block.tobytes()


def _set_xmp(xmp: bytes, name: str, value: int) -> bytes:
    """Set a number in XMP, written as attribute or as element; no change where it is absent."""
    key = re.escape(name.encode())
    number = str(value).encode()
    xmp = re.sub(rb"(\b" + key + rb"\s*=\s*[\"'])\d+", rb"\g<1>" + number, xmp)
    return re.sub(rb"(<" + key + rb">\s*)\d+", rb"\g<1>" + number, xmp)


def upright_xmp(xmp: bytes) -> bytes:
    """XMP with ``tiff:Orientation`` 1 where it has one."""
    return _set_xmp(xmp, "tiff:Orientation", 1)


def xmp_for_size(xmp: bytes, height_px: int, width_px: int) -> bytes:
    """XMP whose size entries, where it has any, say (height_px, width_px)."""
    for name in ("exif:PixelXDimension", "tiff:ImageWidth"):
        xmp = _set_xmp(xmp, name, width_px)
    for name in ("exif:PixelYDimension", "tiff:ImageLength"):
        xmp = _set_xmp(xmp, name, height_px)
    return xmp
