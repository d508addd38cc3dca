"""Read a picture from a file, from bytes or from PIL. Whatever is wrong with it becomes one InputError."""

from __future__ import annotations

import io
import logging
import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from yonos_trt.choices import MAX_PIXELS
from yonos_trt.errors import InputError, MissingExtraError, OutOfMemoryError, is_of_memory
from yonos_trt.host import require_bytes
from yonos_trt.images.header import FORMAT_SUFFIXES, Header, MalformedError
from yonos_trt.images.high_depth import high_depth_png, high_depth_tiff, pillow_keeps_tiff
from yonos_trt.images.inspection import check_png_pixels, inspect
from yonos_trt.images.jpeg_pixels import check_jpeg_pixels
from yonos_trt.images.metadata import Metadata, color_of, picture_fields, upright
from yonos_trt.images.metadata_reading import pil_metadata, pixels_alone, read_metadata
from yonos_trt.images.modes import planes_from_pil
from yonos_trt.images.picture import Kind, Picture, Pixels, picture_from_channels, to_depth

if TYPE_CHECKING:
    from PIL import Image, ImageFile

__all__ = ["MAX_PIXELS", "from_pil", "read_image", "read_rgb8"]

logger = logging.getLogger(__name__)


# What reading an 8-bit picture takes at most (docs/images.md).
_DECODER_BYTES_PER_PIXEL = 32


def read_image(
    source: str | os.PathLike[str] | bytes | Image.Image, *, max_pixels: int | None = MAX_PIXELS
) -> Picture:
    """Read one still picture, upright, with everything that has to go out again.

    Parameters
    ----------
    source
        Path, the bytes of a file, or a PIL image (then as ``from_pil``). PNG, JPEG, WebP, TIFF, AVIF, GIF,
        BMP, and HEIC with the extra ``heic``; the content decides, and a name whose suffix says something
        else is told in the log.
    max_pixels
        Refuse pictures that declare more, before anything is decoded; None for no limit.

    Returns
    -------
    Picture
        Owns its memory.

    Raises
    ------
    InputError
        Not readable, not a picture, truncated, damaged, animated, too large, or a depth that cannot be kept.
    MissingExtraError
        16-bit colour without the extra ``images``.
    OutOfMemoryError
        The picture may be good, but does not fit into the memory.
    """
    if not isinstance(source, (str, bytes, os.PathLike)):
        return from_pil(source)
    name = "<bytes>" if isinstance(source, bytes) else os.fspath(source)
    header = None
    try:
        data = source if isinstance(source, bytes) else _file_bytes(Path(source))
        header = inspect(data)
        if not isinstance(source, bytes):
            _check_suffix(Path(source), header)
        return _decode(data, header, name, max_pixels)
    except (InputError, MissingExtraError, OutOfMemoryError):
        raise
    except MalformedError as error:
        raise InputError(f"{name}: {error}") from error
    except (
        Exception
    ) as error:  # decoders raise OSError, ValueError, SyntaxError, TypeError, struct.error, ...
        if _memory_is_short(error, header):
            raise out_of_memory(name) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{name}: cannot be decoded, the file is damaged or unsupported: {reason}"
        ) from error


def read_rgb8(source: str | os.PathLike[str] | bytes, *, max_pixels: int | None = MAX_PIXELS) -> Pixels:
    """Read one still picture as 8-bit RGB for programs that look at colours only, such as training.

    The same reader and the same refusals as ``read_image``: only the formats listed there, whatever Pillow
    could open besides. Deeper pixels are rounded to 8 bits; grey becomes three equal channels; alpha is
    dropped, colour under it having been replaced by the visible colour next to it.

    Returns
    -------
    ndarray
        (H, W, 3) uint8, upright, in the picture's own colour space (CMYK: sRGB); owns its memory.

    Raises
    ------
    InputError, MissingExtraError, OutOfMemoryError
        As ``read_image``.
    """
    return to_depth(read_image(source, max_pixels=max_pixels).rgb, "uint8")


def from_pil(image: Image.Image, *, name: str | None = None) -> Picture:
    """Take a PIL image: any of 1, L, LA, P, RGB, RGBA, CMYK, YCbCr, I;16 and F (floats in [0, 1]).

    It is turned upright as its EXIF says, as a file would be. It is loaded if it was not; otherwise
    untouched. Pillow itself opens 16-bit colour as 8 bits: pass the path instead of an opened image to keep
    the depth.

    Raises
    ------
    InputError
        Not a PIL image, another mode, an animation, or a file that fails while Pillow loads it.
    """
    from PIL import Image

    if not isinstance(image, Image.Image):
        raise InputError(f"got {type(image).__name__}, expected a path, bytes, a PIL image or an array")
    label = name or str(getattr(image, "filename", "")) or "PIL image"
    try:
        if getattr(image, "is_animated", False) and image.format != "MPO":
            raise _animated(label, getattr(image, "n_frames", 2), image.format or "")
        if ";16" in str(getattr(image, "tile", "")) and not image.mode.startswith("I;16"):
            logger.warning("%s: Pillow reads this 16-bit file as 8 bits; pass the path to keep 16", label)
        tiles = getattr(image, "tile", None)
        rawmode = str(tiles[0][3]) if tiles else ""
        image.load()
        found = pil_metadata(image)
        if image.format == "PNG" and rawmode in ("L;2", "L;4"):
            image = image.copy()
            _widen_transparent_grey(image, int(rawmode[-1]))
        return _from_loaded(image, found, label, format_=image.format, source="pil")
    except InputError:
        raise
    except MemoryError as error:
        raise out_of_memory(label) from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{label}: Pillow cannot load it: {reason}") from error


# -- Files -----------------------------------------------------------------------------------------


def _file_bytes(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise InputError(
                f"{path}: is a {'directory' if path.is_dir() else 'special file'}, expected a picture file"
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name; InputError is one too
        if isinstance(error, InputError):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{path}: cannot be read: {reason}") from error


def out_of_memory(name: str) -> OutOfMemoryError:
    """Say that memory ran out while ``name`` was read, which is no fault of the file."""
    return OutOfMemoryError(
        f"{name}: memory ran out while the picture was read",
        hint="free some memory, raise the limit of the process, or cut the picture into parts",
    )


def _memory_is_short(error: Exception, header: Header | None) -> bool:
    """Tell a decoder that ran out of memory from one that met damage: few raise MemoryError."""
    if is_of_memory(error):  # a decoder's library cannot be mapped
        return True
    if "memory" in str(error).lower() or header is None:
        return header is not None
    try:
        require_bytes(_DECODER_BYTES_PER_PIXEL * header.height_px * header.width_px)
    except MemoryError:
        return True
    return False


def _check_suffix(path: Path, header: Header) -> None:
    suffix, fitting = path.suffix.lower(), FORMAT_SUFFIXES[header.format]
    if suffix and suffix not in fitting:
        logger.warning(
            "%s: the file is %s, its name says %s; it is read as what it is", path, header.format, suffix
        )


def _animated(name: str, frames: int, format: str) -> InputError:
    advice = f"upscale it as a video: yonos video -i {shlex.quote(name)}"
    if format == "TIFF":
        advice = "save the page you want as a file of its own"
    return InputError(f"{name}: holds {frames} frames or pages, expected one picture; {advice}")


def _check_size(name: str, height_px: int, width_px: int, max_pixels: int | None) -> None:
    if min(height_px, width_px) < 1:
        raise InputError(f"{name}: declares {width_px} x {height_px} pixels; the file is damaged")
    if max_pixels is not None and height_px * width_px > max_pixels:
        raise InputError(
            f"{name}: declares {width_px} x {height_px} pixels, the limit is {max_pixels}; "
            "if the picture is what it says, raise max_pixels (--max-pixels)"
        )


def _decode(data: bytes, header: Header, name: str, max_pixels: int | None) -> Picture:
    if header.frames > 1:
        raise _animated(name, header.frames, header.format)
    if header.height_px or header.width_px:  # HEIF need not say it here; what is decoded is checked, too
        _check_size(name, header.height_px, header.width_px, max_pixels)
    if header.format == "PNG":
        check_png_pixels(data, header)
    if header.format == "TIFF" and not pillow_keeps_tiff(data, header):
        return high_depth_tiff(data, header, name)
    if header.format == "HEIC":
        return _heic(data, header, name, max_pixels)
    if header.format in ("JPEG", "AVIF") and header.bits > 8:
        raise InputError(
            f"{name}: {header.bits}-bit {header.format} is not supported; convert it to a 16-bit PNG"
        )
    if header.format == "JPEG":
        check_jpeg_pixels(data, header)
    image = _open_pillow(pixels_alone(data, header.format), header.format)
    _check_size(name, image.height, image.width, max_pixels)
    if header.format == "AVIF" and getattr(image, "n_frames", 1) > 1:
        raise _animated(name, getattr(image, "n_frames", 2), header.format)
    if header.format == "PNG" and header.bits == 16 and header.channels > 1:
        pixels = high_depth_png(data, header)
        mode = {2: "LA", 3: "RGB", 4: "RGBA"}[pixels.shape[2]]
        found = read_metadata(data, header, None)
        return _finish(pixels, Kind(mode, "uint16"), found, name, format_="PNG", source="file")
    image.load()
    if header.format == "PNG" and image.mode in ("L", "RGB"):
        _widen_transparent_grey(image, header.bits)
    found = read_metadata(data, header, image)
    if found.icc:
        image.info["icc_profile"] = found.icc  # CMYK pixels go through it
    picture = _from_loaded(_cropped(image, header, name), found, name, format_=header.format, source="file")
    if header.format == "TIFF" and header.bits > 8 and header.tags.get(262) == (0,):
        # Pillow turns "white is zero" round for 8 bits only.
        white = np.float32(1) if header.is_float else np.uint16(65535)
        return picture.with_pixels(white - picture.rgb)
    return picture


def _cropped(image: ImageFile.ImageFile, header: Header, name: str) -> Image.Image:
    """Cut out the part that an AVIF says is to be shown; turning and mirroring come after it."""
    if header.crop is None:
        return image
    if image.size != (header.width_px, header.height_px):
        raise InputError(f"{name}: decodes to {image.size}, its crop is one of a picture of another size")
    top, left, height, width = header.crop
    part = image.crop((left, top, left + width, top + height))
    part.format = image.format
    return part


def _heic(data: bytes, header: Header, name: str, max_pixels: int | None) -> Picture:
    """Read the primary picture of a HEIC; its decoder crops and turns it."""
    try:
        import pillow_heif
    except (ImportError, OSError) as error:  # OSError: the bindings are there, the library is not
        raise MissingExtraError(
            f"{name}: reading HEIC", package="pillow_heif", extra="heic", reason=str(error)
        ) from error
    image = pillow_heif.HeifImageFile(io.BytesIO(data))
    image.format = "HEIC"
    _check_size(name, image.height, image.width, max_pixels)
    found = read_metadata(data, header, image)
    left_out = [f"{image.n_frames - 1} further picture(s) of the file"] if image.n_frames > 1 else []
    for key, what in (("depth_images", "depth map"), ("aux", "auxiliary pictures, such as a gain map")):
        if image.info.get(key):
            left_out.append(what)
    if image.info.get("bit_depth", 8) > 8:
        whole = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)
        pixels = np.asarray(whole)
        if pixels.dtype != np.uint16:
            raise InputError(f"{name}: a HEIC of this depth cannot be read; convert it to a 16-bit PNG")
        pixels = pixels if pixels.ndim == 3 else pixels[..., None]
        mode = ("L", "LA", "RGB", "RGBA")[pixels.shape[2] - 1]
        picture = _finish(pixels, Kind(mode, "uint16"), found, name, format_="HEIC", source="file")
    else:
        image.load()
        picture = _from_loaded(image, found, name, format_="HEIC", source="file")
    return replace(picture, left_out=(*picture.left_out, *left_out))


def _widen_transparent_grey(image: Image.Image, bits: int) -> None:
    """Bring the colour that a PNG declares transparent to the 8 bits to which Pillow brings its pixels.

    Only the lowest ``bits`` of the stored numbers count (PNG third edition, 11.3.1.1).
    """
    key = image.info.get("transparency")
    if isinstance(key, int):
        image.info["transparency"] = (key & (1 << bits) - 1) * 255 // ((1 << bits) - 1)
    elif isinstance(key, tuple):
        image.info["transparency"] = tuple(int(value) & 255 for value in key)


def _open_pillow(data: bytes, format_: str) -> ImageFile.ImageFile:
    """Open with the one plugin the content asks for: no guessing, no global registry, no size warning."""
    from PIL import (
        AvifImagePlugin,
        BmpImagePlugin,
        GifImagePlugin,
        JpegImagePlugin,
        PngImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )

    plugin: dict[str, type[ImageFile.ImageFile]] = {
        "PNG": PngImagePlugin.PngImageFile,
        "JPEG": JpegImagePlugin.JpegImageFile,  # of a multi-picture JPEG this is the main picture
        "WEBP": WebPImagePlugin.WebPImageFile,
        "TIFF": TiffImagePlugin.TiffImageFile,
        "AVIF": AvifImagePlugin.AvifImageFile,
        "GIF": GifImagePlugin.GifImageFile,
        "BMP": BmpImagePlugin.BmpImageFile,
    }
    image = plugin[format_](io.BytesIO(data))
    image.format = format_
    if format_ == "TIFF":
        image.info.pop("xmp", None)  # Pillow would turn the pixels by it
    return image


def _from_loaded(
    image: Image.Image, found: Metadata, name: str, *, format_: str | None, source: str
) -> Picture:
    channels, kind = planes_from_pil(image, name)
    return _finish(channels, kind, found, name, format_=format_, source=source)


def _finish(
    channels: Pixels, kind: Kind, found: Metadata, name: str, *, format_: str | None, source: str
) -> Picture:
    """Attach metadata and turn upright; Pillow has turned the pixels of a TIFF when it loaded them."""
    orientation, stored_px = found.orientation, channels.shape[:2]
    if found.is_tiff:
        stored_px = stored_px[::-1] if orientation >= 5 else stored_px
    else:
        channels = upright(channels, orientation)
    return picture_from_channels(
        channels,
        replace(
            kind, format="JPEG" if format_ == "MPO" else format_, source=source, color=color_of(found, kind)
        ),
        name=name,
        **picture_fields(found, stored_px, orientation),
    )
