"""Write a whole picture: the same kind in the format the suffix names, or an error that says what would be
lost.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from yonos_trt.errors import InputError, YonosError
from yonos_trt.images.avif_boxes import with_nclx
from yonos_trt.images.carried import JPEG_SEGMENT_BYTES, Carried, carried
from yonos_trt.images.files import (
    FileFormat,
    SaveOptions,
    atomic_path,
    cannot_write,
    chosen,
    format_of,
    tell_left_out,
)
from yonos_trt.images.modes import pil_pixels
from yonos_trt.images.picture import Kind, Picture, Pixels, channels_of, to_depth
from yonos_trt.images.png_rows import PngRows, png_metadata_chunks
from yonos_trt.images.tiff_exif import add_tags, tiff_blocks
from yonos_trt.images.tiff_rows import BIG_TIFF_BYTES, TiffRows, import_tifffile

logger = logging.getLogger(__name__)


def write_image(
    picture: Picture,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    options: SaveOptions | None = None,
    **choices: Any,
) -> tuple[str, ...]:
    """Write through a file of another name beside ``path``, fsynced and renamed: the whole file or none.

    Parameters
    ----------
    picture
        Any size; EXIF and XMP size entries are updated to it.
    path
        The suffix decides the format: png, jpg, jpeg, webp, tif, tiff, avif.
    format
        Overrides the suffix.
    options, choices
        Quality and what may be dropped, as ``SaveOptions`` or by name: ``quality=90, drop_alpha=True``.

    Returns
    -------
    tuple of str
        What of the source the file does not carry, in a few words each; logged as one warning as well.

    Raises
    ------
    InputError
        Unknown suffix, path not writable, or the format cannot hold the alpha, the depth or the size.
    MissingExtraError
        Float or 16-bit colour TIFF without the extra ``images``.
    """
    options = chosen(options, choices)
    target = format_of(path, format)
    kind = fit_kind(picture.kind, picture.height_px, picture.width_px, target, options, os.fspath(path))
    picture = as_kind(picture, kind)
    given = carried(picture, target.name, picture.height_px, picture.width_px)
    with atomic_path(path) as part, _encoding(os.fspath(path), target):
        if target.name == "PNG" and (kind.dtype == "uint16" or (kind.mode != "P" and _is_hdr(given))):
            _save_png_rows(picture, part, options, given)
        elif target.name == "TIFF" and kind.dtype != "uint8" and kind.mode != "L":
            _save_deep_tiff(picture, part, options, given)
        else:
            _save_with_pillow(picture, part, target, options, given)
    tell_left_out(picture.name, given.left_out)
    return given.left_out


def _is_hdr(given: Carried) -> bool:
    """True for chunks that Pillow does not write."""
    return any(kind in (b"mDCV", b"cLLI") for kind, _ in given.chunks)


@contextlib.contextmanager
def _encoding(name: str, target: FileFormat) -> Iterator[None]:
    """Turn what an encoder raises into InputError; OSError is the file system's and passes."""
    try:
        yield
    except (YonosError, OSError):
        raise
    except Exception as error:
        raise InputError(
            f"{name}: cannot be encoded as {target.name}: {' '.join(str(error).split())}"
        ) from error


def check_output(
    kind: Kind,
    height_px: int,
    width_px: int,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    options: SaveOptions | None = None,
    **choices: Any,
) -> None:
    """Refuse before the work what ``write_image`` would refuse after it: suffix, folder, alpha, depth, size.

    Raises
    ------
    InputError, ConfigError, MissingExtraError
        As ``write_image``. Writes nothing.
    """
    options = chosen(options, choices)
    target = format_of(path, format)
    kind = fit_kind(kind, height_px, width_px, target, options, os.fspath(path))
    try:
        folder = Path(os.path.realpath(path)).parent
    except (OSError, ValueError) as error:
        raise cannot_write(path, error) from error
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        reason = "is not writable" if folder.is_dir() else "is missing"
        raise InputError(f"{os.fspath(path)}: the folder {folder} {reason}")
    if Path(path).is_dir():
        raise InputError(f"{os.fspath(path)}: is a directory, expected the name of a file to write")
    if target.name == "TIFF" and kind.dtype != "uint8" and kind.mode != "L":
        import_tifffile()


def fit_kind(
    kind: Kind, height_px: int, width_px: int, target: FileFormat, options: SaveOptions, name: str
) -> Kind:
    """Return the kind that will be written, or refuse what would be lost without the caller's word."""
    if max(height_px, width_px) > target.max_side_px:
        raise InputError(
            f"{name}: {width_px} x {height_px} px is too large for {target.name}, which ends at "
            f"{target.max_side_px} a side; write .png or .tiff"
        )
    if kind.has_alpha and not target.holds_alpha:
        if not options.drop_alpha:
            raise InputError(
                f"{name}: {target.name} cannot hold the picture's transparency; "
                "write .png, .webp, .avif or .tiff, or drop it explicitly (drop_alpha=True, --alpha drop)"
            )
        kind = kind.without_alpha()
    if kind.color is not None and target.name not in ("PNG", "AVIF") and not kind.color.fits_icc:
        raise InputError(
            f"{name}: {target.name} cannot say the picture's colour space, {kind.color}; write .png or .avif"
        )
    if (
        kind.color is not None
        and target.name == "AVIF"
        and kind.color.nclx is None
        and not kind.color.fits_icc
    ):
        raise InputError(f"{name}: AVIF cannot say the picture's colour space, {kind.color}; write .png")
    if kind.dtype not in target.dtypes:
        deepest = target.dtypes[-1]
        if not options.drop_depth:
            raise InputError(
                f"{name}: {target.name} cannot hold {kind.bits} bits per sample; write "
                f"{'.png or .tiff' if kind.dtype == 'uint16' else '.tiff'}, "
                f"or round to {deepest} explicitly (drop_depth=True, --drop-depth)"
            )
        kind = replace(kind, dtype=deepest)
    no_palette = options.palette == "rgb" or "P" not in target.modes
    if kind.mode == "P" and (
        no_palette or (kind.has_alpha and target.name == "TIFF")
    ):  # TIFF palettes are opaque
        kind = replace(kind, mode="RGBA" if kind.has_alpha else "RGB", palette_alpha=None)
    if kind.mode not in target.modes:
        kind = replace(kind, mode={"1": "L", "CMYK": "RGB", "YCbCr": "RGB"}.get(kind.mode, kind.mode))
    if kind.mode not in target.modes:  # grey into WebP and AVIF: three equal channels
        kind = replace(kind, mode={"L": "RGB", "LA": "RGBA"}[kind.mode])
    return kind


def as_kind(picture: Picture, kind: Kind) -> Picture:
    """Return the picture as ``kind`` (from ``fit_kind``): grey made of colour, depth rounded, alpha
    dropped.
    """
    if kind == picture.kind:
        return picture
    rgb = picture.rgb
    if picture.kind.is_grey and not kind.is_grey:
        rgb = np.repeat(channels_of(rgb, picture.kind), 3, axis=2)
    alpha = picture.alpha if kind.has_alpha else None
    return replace(
        picture,
        rgb=to_depth(rgb, kind.dtype),
        alpha=None if alpha is None else to_depth(alpha, kind.dtype),
        kind=kind,
        icc=picture.icc if _profile_fits(picture, kind) else None,
    )


def _profile_fits(picture: Picture, kind: Kind) -> bool:
    """False if the pixels change from grey, RGB or CMYK to another of them and the profile does not."""
    before, after = (
        b"GRAY" if k.is_grey else b"CMYK" if k.mode == "CMYK" else b"RGB " for k in (picture.kind, kind)
    )
    return picture.icc is None or before == after or picture.icc[16:20] == after  # ICC.1:2010, 7.2.6


# -- One function for each encoder -----------------------------------------------------------------


def _save_with_pillow(
    picture: Picture, part: Path, target: FileFormat, options: SaveOptions, given: Carried
) -> None:
    from PIL import PngImagePlugin

    image = pil_pixels(picture)
    parameters: dict[str, Any] = {"icc_profile": given.icc, "exif": given.exif, "dpi": given.dpi}
    if target.name == "PNG":
        text = PngImagePlugin.PngInfo()
        for kind, body in png_metadata_chunks(given):
            text.add(kind, body)
        parameters |= {"pnginfo": text, "compress_level": options.compression}
    elif target.name == "JPEG":
        parameters |= {"quality": options.quality, "subsampling": options.subsampling}
        parameters["extra"] = given.jpeg_segments()
        if "comment" in given.text:
            parameters["comment"] = given.text["comment"].encode()[:JPEG_SEGMENT_BYTES]
    elif target.name == "WEBP":
        parameters |= {
            "quality": options.quality,
            "lossless": options.lossless,
            "method": 4,
            "xmp": given.xmp,
        }
    elif target.name == "AVIF":
        parameters |= {"quality": options.quality, "subsampling": options.subsampling, "xmp": given.xmp}
    else:
        parameters = {**tiff_parameters(picture, options), "icc_profile": given.icc, "dpi": given.dpi}
    with open(part, "wb") as file:
        image.save(
            file,
            format=target.name,
            **{name: entry for name, entry in parameters.items() if entry is not None},
        )
    if target.name == "TIFF":
        add_tags(part, given.exif, tiff_blocks(given))
    if given.nclx is not None:
        part.write_bytes(with_nclx(part.read_bytes(), *given.nclx))


def tiff_parameters(picture: Picture, options: SaveOptions) -> dict[str, Any]:
    """Pillow's options of a TIFF; BigTIFF from 4 GB on."""
    compression = "tiff_adobe_deflate" if options.compression else "raw"
    return {"compression": compression, "big_tiff": picture.rgb.nbytes > BIG_TIFF_BYTES}


def _save_png_rows(picture: Picture, part: Path, options: SaveOptions, given: Carried) -> None:
    pixels = stacked(picture.rgb, picture.alpha, picture.kind)
    with open(part, "wb") as file:
        writer = PngRows(
            file,
            picture.height_px,
            picture.width_px,
            channels=pixels.shape[2],
            bits=picture.kind.bits,
            compression=options.compression,
            given=given,
        )
        writer.write(pixels)
        writer.finish()


def _save_deep_tiff(picture: Picture, part: Path, options: SaveOptions, given: Carried) -> None:
    with TiffRows(part, picture, picture.height_px, picture.width_px, options, given) as writer:
        writer.write(stacked(picture.rgb, picture.alpha, picture.kind))
        writer.finish()


def stacked(rgb: Pixels, alpha: Pixels | None, kind: Kind) -> Pixels:
    """(rows, W, 3) and alpha -> (rows, W, channels of the file)."""
    colour = channels_of(rgb, kind)
    return colour if alpha is None else np.concatenate([colour, alpha[..., None]], axis=2)
