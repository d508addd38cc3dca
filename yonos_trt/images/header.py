"""What the bytes of a picture file say about it before they are decoded."""

from __future__ import annotations

from dataclasses import dataclass, field

FORMAT_SUFFIXES = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff", ".btf", ".tf8"),
    "AVIF": (".avif",),
    "HEIC": (".heic", ".heif", ".hif"),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
}


def quoted(name: bytes) -> str:
    """Return the name of a part of a file as messages show it: 'mdat'."""
    return repr(name.decode("latin-1"))


class MalformedError(Exception):
    """The bytes are not a whole picture of a supported kind; the message is the reason, without the path."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the outermost structure says.

    Parameters
    ----------
    format
        Key of ``FORMAT_SUFFIXES``.
    height_px, width_px
        As stored, before any crop and orientation; 0 where only the decoder knows.
    bits
        Bits per sample.
    channels
        Samples per pixel, palette index counted as one; 0 where only the decoder knows.
    frames
        Pictures inside; 1 for a still picture.
    is_float
        Samples are floating point.
    crop
        AVIF and HEIC: (top, left, height, width) of the part to be shown, None for all.
    tags
        TIFF only: the first full-size directory, tag -> numbers.
    """

    format: str
    height_px: int = 0
    width_px: int = 0
    bits: int = 8
    channels: int = 0
    frames: int = 1
    is_float: bool = False
    crop: tuple[int, int, int, int] | None = None
    tags: dict[int, tuple[int, ...]] = field(default_factory=dict)
