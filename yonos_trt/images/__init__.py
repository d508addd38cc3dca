"""Pictures in and out: the door to everything about files, modes, depth, alpha and metadata.

What comes in goes out: same kind, mode, depth and profile. ::

    picture = read_image("photo.png")                   # or from_pil(image), from_array(array)
    result = picture.with_pixels(rgb, alpha)            # (s H, s W, 3) and (s H, s W), same dtype
    write_image(result, "photo_x4.png")                 # or to_pil(result), to_array(result)

    with open_row_writer("big.tiff", picture, s * H, s * W) as writer:      # O(width) memory
        writer.write_rows(rgb_rows, alpha_rows)

Importing this module loads NumPy only; Pillow, pyvips and tifffile are loaded by the first function that
needs them. All functions may be called from several threads at once, on different pictures.
"""

from __future__ import annotations

from yonos_trt.images.alpha import fill_hidden, upscale_alpha
from yonos_trt.images.files import SUPPORTED_SUFFIXES, SaveOptions, atomic_path, format_of
from yonos_trt.images.header import FORMAT_SUFFIXES
from yonos_trt.images.modes import to_pil
from yonos_trt.images.picture import Kind, Picture, from_array, luma, to_array
from yonos_trt.images.reading import MAX_PIXELS, from_pil, read_image, read_rgb8
from yonos_trt.images.rows import (
    STREAMING_SUFFIXES,
    OutputEstimate,
    RowWriter,
    estimate_output,
    open_row_writer,
)
from yonos_trt.images.writing import check_output, write_image

__all__ = [
    "MAX_PIXELS",
    "READABLE_SUFFIXES",
    "STREAMING_SUFFIXES",
    "SUPPORTED_SUFFIXES",
    "Kind",
    "OutputEstimate",
    "Picture",
    "RowWriter",
    "SaveOptions",
    "atomic_path",
    "check_output",
    "estimate_output",
    "fill_hidden",
    "format_of",
    "from_array",
    "from_pil",
    "luma",
    "open_row_writer",
    "read_image",
    "read_rgb8",
    "to_array",
    "to_pil",
    "upscale_alpha",
    "write_image",
]

READABLE_SUFFIXES: tuple[str, ...] = tuple(suffix for group in FORMAT_SUFFIXES.values() for suffix in group)
"""Suffixes of files that can be read; a folder run picks these."""
