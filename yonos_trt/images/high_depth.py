"""Decode what Pillow would reduce to 8 bits or refuse: 16-bit colour PNG, 16-bit and float colour TIFF."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np

from yonos_trt.errors import InputError, MissingExtraError
from yonos_trt.host import require_bytes
from yonos_trt.images.alpha import unpremultiply
from yonos_trt.images.header import Header, MalformedError
from yonos_trt.images.metadata import color_of, picture_fields, upright
from yonos_trt.images.metadata_reading import read_metadata
from yonos_trt.images.picture import Kind, Picture, Pixels, checked_float, picture_from_channels

# TIFF 6.0: PhotometricInterpretation 0 white is zero, 1 black is zero, 2 RGB; ExtraSamples 1 premultiplied,
# 2 straight.
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PREMULTIPLIED = 0, 1, 2, 1
# None, CCITT, LZW, JPEG, deflate, PackBits, ThunderScan and SGI codes, LZMA, Zstandard. The others that exist
# (JPEG 2000, WebP, LERC, JPEG XL ...) are read by tifffile.
_PILLOW_COMPRESSIONS = (1, 2, 3, 4, 5, 6, 7, 8, 32771, 32773, 32809, 32946, 34676, 34677, 34925, 50000)


def high_depth_png(data: bytes, header: Header) -> Pixels:
    """16-bit PNG with colour or alpha -> (H, W, 2|3|4) uint16, transparent colour resolved to alpha."""
    try:
        import pyvips
    except (ImportError, OSError) as error:  # OSError: the bindings are there, the library is not
        raise MissingExtraError(
            "reading 16-bit colour PNG", package="pyvips", extra="images", reason=str(error)
        ) from error
    require_bytes((48 << 20) + 2 * header.channels * header.height_px * header.width_px)
    image = pyvips.Image.new_from_buffer(data, "", access="sequential", fail_on="warning")
    pixels = np.asarray(image.numpy())
    if pixels.dtype != np.uint16 or pixels.ndim != 3:
        raise MalformedError(f"the PNG declares 16 bits but decodes to {pixels.dtype} {pixels.shape}")
    return pixels


def pillow_keeps_tiff(data: bytes, header: Header) -> bool:
    """True if Pillow decodes this TIFF without losing depth: up to 8 bits, or one 16-bit or float channel."""
    if header.tags.get(259, (1,))[0] not in _PILLOW_COMPRESSIONS:
        return False
    white_is_zero = header.tags.get(262) == (_WHITE_IS_ZERO,)
    if data[:4] == b"MM\0+" or (data[:2] == b"MM" and header.bits == 16 and white_is_zero):
        return False  # Pillow 13 does not know these of this byte order
    if header.bits <= 8:
        return True
    return header.channels == 1 and (
        (header.bits == 16 and not header.is_float) or (header.bits == 32 and header.is_float)
    )


def high_depth_tiff(data: bytes, header: Header, name: str) -> Picture:
    photometric = header.tags.get(262, (_BLACK_IS_ZERO,))[0]
    is_float = header.bits == 32 and header.is_float
    if (
        not (is_float or (header.bits in (8, 16) and not header.is_float))
        or header.channels not in (1, 2, 3, 4)
        or photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB)
    ):
        kind = "float" if header.is_float else "integer"
        raise InputError(
            f"{name}: TIFF with {header.channels} channels of {header.bits}-bit {kind}, photometric "
            f"{photometric} is not supported; convert it to 16-bit or 32-bit float RGB(A) or grey"
        )
    try:
        import tifffile
    except ImportError as error:
        raise MissingExtraError(
            f"reading {header.bits}-bit TIFF with {header.channels} channels",
            package="tifffile",
            extra="images",
            reason=str(error),
        ) from error
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        if page.size != header.height_px * header.width_px * header.channels:  # before anything is allocated
            raise MalformedError(f"the TIFF's tags contradict each other: {page.shape} samples")
        pixels = page.asarray()
    if header.tags.get(284, (1,))[0] == 2 and pixels.ndim == 3:
        pixels = np.moveaxis(pixels, 0, -1)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.shape[:2] != (header.height_px, header.width_px) or pixels.shape[2] > 4:
        raise InputError(f"{name}: TIFF decodes to {pixels.shape}, expected (H, W, 1..4)")
    pixels = pixels.astype(np.float32 if is_float else np.dtype(f"u{header.bits // 8}"), copy=False)
    if is_float:
        pixels = checked_float(pixels, name)
    if photometric == _WHITE_IS_ZERO:
        top = np.float32(1) if is_float else pixels.dtype.type(np.iinfo(pixels.dtype).max)
        pixels[..., :1] = top - pixels[..., :1]
    channels = int(pixels.shape[2])
    if channels in (2, 4) and header.tags.get(338, (0,))[0] == _PREMULTIPLIED:
        unpremultiply(pixels[..., :-1], pixels[..., -1])
    found = read_metadata(data, header, None)
    kind_out = Kind(("L", "LA", "RGB", "RGBA")[channels - 1], pixels.dtype.name, format="TIFF", source="file")
    return picture_from_channels(
        upright(pixels, found.orientation),
        replace(kind_out, color=color_of(found, kind_out)),
        name=name,
        **picture_fields(found, pixels.shape[:2], found.orientation),
    )
