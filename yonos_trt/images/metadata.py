"""What a file says about its picture: found by format, then made to fit the upright pixels."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from yonos_trt.images.color_space import ColorSpace
from yonos_trt.images.exif import ORIENTATION, Exif
from yonos_trt.images.exif_upright import grown, upright_exif
from yonos_trt.images.photoshop import (
    Resource,
    kept_resources,
    resource_bytes,
)
from yonos_trt.images.xmp import grown_xmp, orientation_in, upright_xmp

if TYPE_CHECKING:
    from yonos_trt.images.picture import Kind, Picture, Pixels

_MOST_WORDS, _MOST_LETTERS = 30, 300  # of what is left out

_CM_PER_INCH = 2.54
_ICC, _XMP, _IPTC, _PHOTOSHOP, _DESCRIPTION = 34675, 700, 33723, 34377, 270


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turn stored pixels (H, W, ...) the way EXIF orientation 1..8 says they are to be seen; contiguous."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)  # 5: transposed; 6, 7, 8 follow by mirroring it
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


@dataclass(slots=True)
class Metadata:
    """What was found; ``exif`` and ``xmp`` as they stand in the file, for its stored pixels.

    Parameters
    ----------
    icc, exif, xmp
        Raw bytes or None; ``exif`` may be a whole TIFF file.
    resources
        Photoshop's, IPTC among them.
    dpi
        (x, y) of the stored pixels.
    text
        PNG text, or ``{"comment": ...}``.
    color
        Code points or curves.
    chunks
        PNG chunks that a PNG gets again: (type, body).
    is_tiff
        ``exif`` is a TIFF file.
    turned_by_xmp
        XMP says the orientation where EXIF does not.
    left_out
        What cannot be carried.
    """

    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    resources: list[Resource] = field(default_factory=list)
    dpi: tuple[float, float] | None = None
    text: dict[str, str] = field(default_factory=dict)
    color: ColorSpace | None = None
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    is_tiff: bool = False
    turned_by_xmp: bool = True
    left_out: list[str] = field(default_factory=list)

    @property
    def orientation(self) -> int:
        """1..8 as EXIF says, or XMP where EXIF is silent; 1 for anything invalid."""
        try:
            exif = Exif.parse(self.exif) if self.exif else Exif()
        except (ValueError, struct.error):
            exif = Exif()
        if ORIENTATION in exif.main:
            values = exif.main[ORIENTATION].numbers(exif.order)
            return values[0] if values and 1 <= values[0] <= 8 else 1
        return orientation_in(self.xmp) if self.xmp and self.turned_by_xmp else 1


def color_of(found: Metadata, kind: Kind) -> ColorSpace | None:
    """Return the numbers that say the pixels' colours; of CMYK, which is read as sRGB, none."""
    return found.color if kind.mode != "CMYK" else None


def picture_fields(found: Metadata, stored_px: tuple[int, int], orientation: int) -> dict[str, Any]:
    """Return fields of ``Picture`` (not ``kind``, pixels and name) for pixels turned by ``orientation``.

    Parameters
    ----------
    found
        What the file says.
    stored_px
        (height, width) before turning.
    orientation
        What was applied, 1..8.
    """
    left_out = list(found.left_out)
    exif = xmp = None
    if found.exif:
        exif, gone = upright_exif(found.exif, orientation, stored_px, is_tiff=found.is_tiff)
        left_out += gone
    if found.xmp:
        xmp, gone = upright_xmp(found.xmp, orientation)
        left_out += gone
    resources, gone = kept_resources(found.resources, turned=orientation != 1)
    dpi = found.dpi
    if dpi is not None:
        dpi = dpi[::-1] if orientation >= 5 else dpi
        dpi = dpi if all(0 < value < 1e6 for value in dpi) else None
    return {
        "icc": found.icc or None,
        "exif": exif,
        "xmp": xmp,
        "resources": resource_bytes(resources) or None,
        "dpi": dpi,
        "text": found.text,
        "chunks": found.chunks,
        "left_out": tidy((*left_out, *gone)),
    }


def tidy(left_out: Iterable[str]) -> tuple[str, ...]:
    """Return words fit to be printed: none twice, without control characters, and not too many."""
    words = list(dict.fromkeys("".join(c if c.isprintable() else "?" for c in entry) for entry in left_out))
    if len(words) > _MOST_WORDS:
        words[_MOST_WORDS - 1 :] = [f"{len(words) - _MOST_WORDS + 1} further things"]
    return tuple(word if len(word) <= _MOST_LETTERS else f"{word[:_MOST_LETTERS]} ..." for word in words)


def grown_metadata(picture: Picture, height_px: int, width_px: int) -> tuple[bytes | None, bytes | None]:
    """EXIF and XMP of the picture, made true for a file of this size."""
    source_px = picture.source_px or (picture.height_px, picture.width_px)
    exif = grown(picture.exif, height_px, width_px, source_px) if picture.exif else None
    xmp = grown_xmp(picture.xmp, height_px, width_px, source_px) if picture.xmp else None
    return exif, xmp
