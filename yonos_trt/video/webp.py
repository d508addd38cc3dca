"""Animated WebP, which FFmpeg does not decode: Pillow's frames as lossless Matroska in memory."""

from __future__ import annotations

import functools
import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from yonos_trt.errors import InputError
from yonos_trt.images.header import quoted

MILLISECONDS = Fraction(1, 1000)
_PARTS = (b"VP8X", b"ICCP", b"ANIM", b"ANMF", b"ALPH", b"VP8 ", b"VP8L", b"EXIF", b"XMP ")
_FRAMES = (b"ALPH", b"VP8 ", b"VP8L")  # what the part of a frame begins with, behind its 16 bytes


def animated_webp(path: Path) -> io.BytesIO | None:
    """Return an animated WebP file as Matroska with FFV1 (RGB and alpha); None for any other file.

    Raises
    ------
    InputError
        The file is cut off or damaged.
    OSError
        It cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(21)
    if head[:4] != b"RIFF" or head[8:16] != b"WEBPVP8X" or not head[20] & 2:
        return None
    state = path.stat()
    declared = int.from_bytes(head[4:8], "little") + 8
    if declared > state.st_size:
        raise InputError(
            f"{path} is not whole: {declared - state.st_size} bytes of the {declared} it declares are missing"
        )
    _check_parts(path, declared)
    return io.BytesIO(_converted(path, state.st_mtime_ns, state.st_size))


def _check_parts(path: Path, end: int) -> None:
    """Refuse what is no part of a WebP and may be a damaged frame: decoders pass over it.

    Parts with names of other programs are allowed (WebP Container Specification, "Unknown Chunks").
    """
    at = 12
    with path.open("rb") as file:
        while at < end:
            file.seek(at)
            head = file.read(28)
            size = int.from_bytes(head[4:8], "little")
            named = all(32 <= byte < 127 for byte in head[:4]) and head[24:28] not in _FRAMES
            if head[:4] not in _PARTS and not (named and at + 8 + size <= end):
                raise InputError(
                    f"{path} is not whole: what begins at byte {at} ({quoted(head[:4])}) is no part of a "
                    f"WebP, so that a frame may be lost; get the file again"
                )
            at += 8 + (size + 1 & ~1)


@functools.lru_cache(maxsize=1)
def _converted(path: Path, time_ns: int, size: int) -> bytes:
    """Convert the file once, as long as its time and size stay the same."""
    import av
    from PIL import Image

    buffer = io.BytesIO()
    try:
        with Image.open(path, formats=["WEBP"]) as image, av.open(buffer, "w", format="matroska") as out:
            stream: Any = out.add_stream("ffv1", rate=Fraction(1000))
            stream.width, stream.height, stream.pix_fmt = image.width, image.height, "bgra"
            stream.time_base = stream.codec_context.time_base = MILLISECONDS
            begin_ms = 0
            for index in range(getattr(image, "n_frames", 1)):
                image.seek(index)
                frame: Any = av.VideoFrame.from_ndarray(np.asarray(image.convert("RGBA")), "rgba")
                frame = frame.reformat(format="bgra")
                duration_ms = max(1, round(image.info.get("duration") or 0))
                frame.pts, frame.duration, frame.time_base = begin_ms, duration_ms, MILLISECONDS
                begin_ms += duration_ms
                out.mux(stream.encode(frame))
            out.mux(stream.encode())
    except (OSError, EOFError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read: {error}; expected a whole animated WebP") from error
    return buffer.getvalue()
