"""What a file is given beside its pixels: all that its format can hold, made true; the rest is named.

======================  =====  =====  =====  =====  =====
                        PNG    JPEG   TIFF   WebP   AVIF
======================  =====  =====  =====  =====  =====
ICC profile             yes    yes    yes    yes    yes
colour code points      yes    ICC    ICC    ICC    yes
EXIF, XMP               yes    yes    yes    yes    yes
IPTC, Photoshop         yes    yes    yes    -      -
resolution              yes    yes    yes    EXIF   EXIF
text                    yes    one    -      -      -
======================  =====  =====  =====  =====  =====
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from yonos_trt.errors import listed
from yonos_trt.images.exif import Exif
from yonos_trt.images.exif_upright import with_resolution, without_georeference
from yonos_trt.images.icc import adobe_rgb_profile
from yonos_trt.images.metadata import grown_metadata, tidy
from yonos_trt.images.photoshop import iptc_of, parse_resources
from yonos_trt.images.picture import Picture
from yonos_trt.images.xmp_parts import split
from yonos_trt.images.xmp_tree import XmpError

# A JPEG segment holds 65 533 bytes, of which XMP's own label takes 29.
JPEG_SEGMENT_BYTES = 65_504
_EXTENSION_BYTES = 65_400
_XMP_LABEL = b"http://ns.adobe.com/xap/1.0/\0"
_EXTENSION_LABEL = b"http://ns.adobe.com/xmp/extension/\0"
_PHOTOSHOP_LABEL = b"Photoshop 3.0\0"
_HOLDS_RESOURCES = ("PNG", "JPEG", "TIFF")
_HOLDS_DPI = ("PNG", "JPEG", "TIFF")


@dataclass(slots=True)
class Carried:
    """What goes into one file; ``left_out`` names what does not, with what reading left out in front.

    Parameters
    ----------
    icc, exif, xmp, dpi, resources
        As in ``Picture``, or None.
    text
        PNG: all; JPEG: one entry, "comment".
    chunks
        PNG: further chunks, (type, body), in their order.
    nclx
        AVIF: colour primaries and transfer, or None for sRGB or a profile.
    """

    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    resources: bytes | None = None
    text: dict[str, str] = field(default_factory=dict)
    chunks: list[tuple[bytes, bytes]] = field(default_factory=list)
    nclx: tuple[int, int] | None = None
    left_out: tuple[str, ...] = ()

    def jpeg_segments(self) -> bytes:
        """XMP, its extension where it is long, and Photoshop's resources as segments of a JPEG."""
        parts = []
        if self.xmp:
            main, extension = split(self.xmp, JPEG_SEGMENT_BYTES)
            parts.append(_segment(0xE1, _XMP_LABEL + main))
            if extension is not None:
                head = _EXTENSION_LABEL + _digest_in(main)
                for at in range(0, len(extension), _EXTENSION_BYTES):
                    place = struct.pack(">II", len(extension), at)
                    parts.append(_segment(0xE1, head + place + extension[at : at + _EXTENSION_BYTES]))
        for at in range(0, len(self.resources or b""), _EXTENSION_BYTES):
            piece = (self.resources or b"")[at : at + _EXTENSION_BYTES]
            parts.append(_segment(0xED, _PHOTOSHOP_LABEL + piece))
        return b"".join(parts)


def _segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def _digest_in(main: bytes) -> bytes:
    _, _, rest = main.partition(b'xmpNote:HasExtendedXMP="')
    return rest[:32]


def is_adobe_rgb(exif: bytes | None) -> bool:
    """True if EXIF says Adobe RGB in the way of Exif 2.32 (interoperability index R03)."""
    if not exif:
        return False
    entry = Exif.parse(exif).interop.get(1)
    return entry is not None and entry.raw.startswith(b"R03")


def carried(picture: Picture, format_: str, height_px: int, width_px: int) -> Carried:
    """Decide what a file of this format and size is given.

    Parameters
    ----------
    picture
        In the kind that is written.
    format_
        ``FileFormat.name``, which ``fit_kind`` has accepted.
    height_px, width_px
        Size of the file.
    """
    exif, xmp = grown_metadata(picture, height_px, width_px)
    out = Carried(exif=exif, xmp=xmp, dpi=picture.dpi, resources=picture.resources)
    left_out = list(picture.left_out)
    if out.exif and format_ != "TIFF":
        out.exif, had_any = without_georeference(out.exif)
        left_out += [f"georeference (GeoTIFF), which {format_} cannot hold"] if had_any else []
    _color(picture, format_, out)
    if format_ == "PNG":
        out.text, out.chunks = dict(picture.text), [*out.chunks, *picture.chunks]
    else:
        _text(picture, format_, out, left_out)
    if out.resources and format_ not in _HOLDS_RESOURCES:
        has_iptc = iptc_of(parse_resources(out.resources)) is not None
        what = "IPTC (captions, keywords and the like)" if has_iptc else "Photoshop resources"
        left_out.append(f"{what}, which {format_} cannot hold")
        out.resources = None
    if out.dpi and format_ not in _HOLDS_DPI:
        out.exif = with_resolution(out.exif, out.dpi)
    if format_ == "JPEG":
        if out.exif and len(out.exif) > JPEG_SEGMENT_BYTES:
            left_out.append(f"EXIF of {len(out.exif)} bytes, which does not fit into a JPEG")
            out.exif = None
        try:
            split(out.xmp or b"", JPEG_SEGMENT_BYTES)
        except XmpError as error:
            left_out.append(f"XMP of {len(out.xmp or b'')} bytes, which does not fit into a JPEG ({error})")
            out.xmp = None
    out.left_out = tidy(left_out)
    return out


def _color(picture: Picture, format_: str, out: Carried) -> None:
    """Say the colour space as the format can: numbers, or a profile that is equal to them."""
    kind, color = picture.kind, picture.kind.color
    out.icc = picture.icc
    if color is not None:
        if format_ == "PNG":
            if kind.format != "PNG" and picture.icc is None and color.fits_icc:
                out.icc = color.profile(None, grey=kind.is_grey)  # for programs that do not know cICP
            # A PNG has a profile or the sRGB chunk, not both.
            out.chunks = [chunk for chunk in color.png_chunks() if not (out.icc and chunk[0] == b"sRGB")]
        elif format_ == "AVIF" and color.nclx is not None:
            out.icc, out.nclx = None, color.nclx
        else:
            has_tags = format_ == "TIFF" and kind.format == "TIFF"  # which says it in tags of its own
            out.icc = picture.icc if has_tags else color.profile(picture.icc, grey=kind.is_grey)
    elif out.icc is None and format_ != "JPEG" and not kind.is_grey and is_adobe_rgb(picture.exif):
        out.icc = adobe_rgb_profile()  # only in a JPEG is EXIF's word for it heard


def _text(picture: Picture, format_: str, out: Carried, left_out: list[str]) -> None:
    others = []
    for key, value in picture.text.items():
        if format_ == "JPEG" and key.lower() == "comment" and not out.text:
            out.text["comment"] = value
            if len(value.encode()) > JPEG_SEGMENT_BYTES:
                left_out.append(f"the end of a comment of {len(value)} characters")
        else:
            others.append(key)
    if others:
        left_out.append(f"text ({listed(sorted(others))}), which {format_} cannot hold")
    if picture.chunks:
        kinds = sorted({kind.decode("latin-1") for kind, _ in picture.chunks})
        left_out.append(f"PNG chunks {listed(kinds)}, which {format_} cannot hold")
