"""Pillow's modes to RGB planes and back."""

from __future__ import annotations

import io
import logging
from typing import TYPE_CHECKING

import numpy as np

from yonos_trt.errors import InputError
from yonos_trt.images.picture import Kind, Picture, Pixels, channels_of, checked_float

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

_READABLE = (
    "1",
    "L",
    "LA",
    "P",
    "RGB",
    "RGBX",
    "RGBA",
    "CMYK",
    "YCbCr",
    "I;16",
    "I;16L",
    "I;16B",
    "I;16N",
    "F",
)


def planes_from_pil(image: Image.Image, name: str) -> tuple[Pixels, Kind]:
    """Loaded PIL image -> ((H, W, 1|2|3|4) straight channels, Kind without format and source)."""
    mode = image.mode
    if mode not in _READABLE:
        hint = "I;16 or F" if mode == "I" else "RGBA" if mode in ("RGBa", "La", "PA") else "RGB"
        raise InputError(f"{name}: PIL mode {mode!r} is not supported; convert it to {hint!r} first")
    if min(image.size) < 1:
        raise InputError(f"{name}: the picture is {image.width} x {image.height}, it holds no pixels")
    if mode.startswith("I;16"):
        return _grey16(image)
    if mode == "F":
        grey = checked_float(np.asarray(image, dtype=np.float32), name)
        return grey[..., None], Kind("L", "float32")
    if mode == "1" and "transparency" not in image.info:
        return np.asarray(image.convert("L"))[..., None], Kind("1")
    if mode == "CMYK":
        profile = image.info.get("icc_profile")
        return np.asarray(_rgb_from_cmyk(image, profile)), Kind("CMYK")
    if mode == "YCbCr":
        return np.asarray(image.convert("RGB")), Kind("YCbCr")
    if mode == "P":
        if not image.has_transparency_data:
            return np.asarray(image.convert("RGB")), Kind("P")
        rgba = np.asarray(image.convert("RGBA"))
        binary = bool(np.isin(rgba[..., 3], (0, 255)).all())
        return rgba, Kind("P", palette_alpha="binary" if binary else "soft")
    if mode == "RGBX":
        return np.asarray(image.convert("RGB")), Kind("RGB")
    if mode in ("1", "L", "RGB") and "transparency" in image.info:  # one colour declared transparent
        mode = "RGBA" if mode == "RGB" else "LA"
        image = image.convert(mode)
    array = np.asarray(image)
    return (array if array.ndim == 3 else array[..., None]), Kind(mode)


def _grey16(image: Image.Image) -> tuple[Pixels, Kind]:
    grey = np.asarray(image).astype(np.uint16)[..., None]
    key = image.info.get("transparency")
    if not isinstance(key, int):
        return grey, Kind("L", "uint16")
    alpha = np.where(grey == key, np.uint16(0), np.uint16(65535))
    return np.concatenate([grey, alpha], axis=2), Kind("LA", "uint16")


def _through_profile(image: Image.Image, profile: bytes | None, *, to_cmyk: bool) -> Image.Image | None:
    """CMYK <-> sRGB by the picture's own profile; None if it has none that works."""
    if not profile:
        return None
    from PIL import ImageCms

    try:
        cmyk = ImageCms.getOpenProfile(io.BytesIO(profile))
        srgb = ImageCms.createProfile("sRGB")
        source, target = (srgb, cmyk) if to_cmyk else (cmyk, srgb)
        return ImageCms.profileToProfile(
            image,
            source,
            target,
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,  # printable colours come back as they were
            outputMode="CMYK" if to_cmyk else "RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        logger.warning("the CMYK profile cannot be used, converting without it: %s", error)
        return None


def _rgb_from_cmyk(image: Image.Image, profile: bytes | None) -> Image.Image:
    return _through_profile(image, profile, to_cmyk=False) or image.convert("RGB")


def cmyk_from_rgb(rgb: Pixels, profile: bytes | None) -> Image.Image:
    """(H, W, 3) uint8 sRGB -> CMYK image, by the profile or else by Pillow's profile-free formula."""
    from PIL import Image

    image = Image.fromarray(rgb)
    return _through_profile(image, profile, to_cmyk=True) or image.convert("CMYK")


def _palette_image(rgb: Pixels, alpha: Pixels | None, *, binary_alpha: bool) -> Image.Image:
    """Quantise to an adaptive palette of 256 colours, with Floyd-Steinberg dithering where alpha allows it.

    With binary alpha one entry is kept for "transparent"; with soft alpha colours and alpha share the
    palette.
    """
    from PIL import Image

    if alpha is not None and not binary_alpha:
        return Image.fromarray(np.dstack([rgb, alpha])).quantize(256, method=Image.Quantize.FASTOCTREE)
    colour = Image.fromarray(rgb)
    colours = 256 if alpha is None else 255
    exact = colour.getcolors(colours)
    if exact is not None:  # few colours: no need to approximate any
        palette = Image.new("P", (1, 1))
        palette.putpalette([channel for _, entry in exact for channel in entry])  # type: ignore[union-attr]
        image = colour.quantize(palette=palette, dither=Image.Dither.NONE)
    else:
        palette = colour.quantize(colours, method=Image.Quantize.MEDIANCUT)
        image = colour.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    if alpha is None:
        return image
    index = np.array(image)
    index[alpha < 128] = 255
    entries = (image.getpalette("RGB") or [])[: 3 * 255]
    out = Image.fromarray(index).convert("P")
    out.putpalette(entries + [0] * (3 * 256 - len(entries)))
    out.info["transparency"] = 255
    return out


def to_pil(picture: Picture) -> Image.Image:
    """Return a PIL image of the mode that came in, with ``info`` (icc_profile, exif, xmp, dpi, text) filled.

    Raises
    ------
    InputError
        16-bit or float with colour or alpha: Pillow has no such mode; use ``to_array`` or ``write_image``.
    """
    from yonos_trt.images.files import tell_left_out
    from yonos_trt.images.metadata import grown_metadata
    from yonos_trt.images.photoshop import parse_resources

    color = picture.kind.color
    lost = (
        () if color is None or color.fits_icc else (f"the colour space, {color}, which no ICC profile says",)
    )
    tell_left_out(picture.name, (*picture.left_out, *lost))
    image = pil_pixels(picture)
    info = image.info
    exif, xmp = grown_metadata(picture, picture.height_px, picture.width_px)
    for name, block in (("icc_profile", _pil_profile(picture)), ("exif", exif), ("xmp", xmp)):
        if block is not None:
            info[name] = block
    if picture.resources is not None:
        info["photoshop"] = {number: data for number, _, data in parse_resources(picture.resources)}
    if picture.dpi is not None:
        info["dpi"] = picture.dpi
    info.update(picture.text)
    return image


def _pil_profile(picture: Picture) -> bytes | None:
    color = picture.kind.color
    if color is None or not color.fits_icc:
        return picture.icc
    return color.profile(picture.icc, grey=picture.kind.is_grey)


def pil_pixels(picture: Picture) -> Image.Image:
    """Return the pixels alone as a PIL image of ``picture.kind``."""
    from PIL import Image

    kind, rgb, alpha = picture.kind, picture.rgb, picture.alpha
    if kind.dtype != "uint8":
        if kind.mode != "L":
            raise InputError(
                f"{picture.name}: Pillow has no {kind.bits}-bit {kind.mode} mode; "
                "use to_array() or write_image()"
            )
        return Image.fromarray(channels_of(rgb, kind)[..., 0])
    if kind.mode == "P":
        return _palette_image(rgb, alpha, binary_alpha=kind.palette_alpha == "binary")
    if kind.mode == "CMYK":
        return cmyk_from_rgb(rgb, picture.icc)
    if kind.mode == "YCbCr":
        return Image.fromarray(rgb).convert("YCbCr")
    colour = channels_of(rgb, kind)
    if kind.is_grey:
        grey = colour[..., 0]
        if alpha is not None:
            return Image.fromarray(np.dstack([grey, alpha]))
        image = Image.fromarray(grey)
        return image.convert("1", dither=Image.Dither.NONE) if kind.mode == "1" else image
    return Image.fromarray(rgb if alpha is None else np.dstack([rgb, alpha]))
