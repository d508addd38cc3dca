"""A PNG written row by row: chunks, filters and zlib, in O(width) memory.

No library takes rows one by one (Pillow and libvips want the whole picture or pull it), and this also writes
16-bit colour without an extra. PNG specification, third edition, sections 9 (filters), 10 (compression), 11
(chunks).
"""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO

import numpy as np

from yonos_trt.images.carried import Carried
from yonos_trt.images.picture import Pixels

_COLOUR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}
_METRES_PER_INCH = 0.0254
# Filtered in blocks of about this many bytes: numpy's overhead is gone, temporaries stay small.
_BLOCK_BYTES = 1 << 19


class PngRows:
    """Write one PNG to an open binary file.

    Parameters
    ----------
    file
        Open for writing; not closed.
    height_px, width_px
        Size.
    channels
        1 grey, 2 grey + alpha, 3 RGB, 4 RGBA.
    bits
        1 (grey only), 8 or 16.
    compression
        zlib level 0..9.
    given
        Metadata, written before the pixels.
    """

    def __init__(
        self,
        file: BinaryIO,
        height_px: int,
        width_px: int,
        *,
        channels: int,
        bits: int,
        compression: int = 6,
        given: Carried | None = None,
    ) -> None:
        self._file = file
        self._bits = bits
        self._pixel_bytes = max(1, channels * bits // 8)
        self._above: Pixels = np.zeros((width_px * channels * bits + 7) // 8, np.uint8)
        self._deflate = zlib.compressobj(compression, zlib.DEFLATED, 15, 9, zlib.Z_FILTERED)
        file.write(b"\x89PNG\r\n\x1a\n")
        self._chunk(
            b"IHDR", struct.pack(">IIBBBBB", width_px, height_px, bits, _COLOUR_TYPE[channels], 0, 0, 0)
        )
        if given is None:
            return
        if given.icc:
            self._chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(given.icc))
        if given.dpi:
            metric = (round(value / _METRES_PER_INCH) for value in given.dpi)
            self._chunk(b"pHYs", struct.pack(">IIB", *metric, 1))
        if given.exif:
            self._chunk(b"eXIf", given.exif.removeprefix(b"Exif\0\0"))
        for kind, body in png_metadata_chunks(given):
            self._chunk(kind, body)

    def _chunk(self, kind: bytes, body: bytes) -> None:
        self._file.write(
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    def write(self, rows: Pixels) -> None:
        """Write (n, W, channels) uint8 (1 bit: 0 or 255) or uint16 rows, in order."""
        step = max(1, _BLOCK_BYTES // len(self._above))
        for start in range(0, rows.shape[0], step):
            block = self._packed(rows[start : start + step])
            if data := self._deflate.compress(self._filtered(block).tobytes()):
                self._chunk(b"IDAT", data)

    def _packed(self, rows: Pixels) -> Pixels:
        """(n, W, channels) -> (n, bytes) as the file has them: big endian, or eight pixels a byte."""
        count = rows.shape[0]
        if self._bits == 1:
            return np.packbits(rows.reshape(count, -1) >= 128, axis=1)
        ordered = rows.astype(">u2" if self._bits == 16 else np.uint8, copy=False)
        return np.ascontiguousarray(ordered).reshape(count, -1).view(np.uint8)

    def finish(self) -> None:
        """Write what the compressor still holds and the end chunk."""
        self._chunk(b"IDAT", self._deflate.flush())
        self._chunk(b"IEND", b"")

    def _filtered(self, rows: Pixels) -> Pixels:
        """(n, bytes) -> (n, 1 + bytes): per row the filter with the smallest sum of absolute differences."""
        count, length = rows.shape
        out = np.empty((count, 1 + length), np.uint8)
        above = np.concatenate([self._above[None], rows[:-1]])
        self._above = rows[-1].copy()
        if self._bits == 1:  # filters do not help packed pixels
            out[:, 0], out[:, 1:] = 0, rows
            return out
        step = min(self._pixel_bytes, length)
        left, corner = np.zeros_like(rows), np.zeros_like(rows)
        left[:, step:], corner[:, step:] = rows[:, :-step], above[:, :-step]
        best = np.full(count, np.iinfo(np.int64).max)
        for number, guess in ((1, left), (2, above), (4, _paeth(left, above, corner))):
            difference = rows - guess  # modulo 256, as the format wants it
            cost = np.minimum(difference, -difference).sum(axis=1, dtype=np.int64)
            better = cost < best
            best = np.where(better, cost, best)
            out[better, 0] = number
            out[better, 1:] = difference[better]
        return out


def png_metadata_chunks(given: Carried) -> list[tuple[bytes, bytes]]:
    """Return (type, body) of colour, text, XMP, IPTC and further chunks: all but ICC, resolution and EXIF."""
    chunks = list(given.chunks)
    texts = dict(given.text)
    if given.xmp:
        texts["XML:com.adobe.xmp"] = given.xmp.decode("utf-8", "replace")
    for key, value in texts.items():
        text = value.encode("utf-8", "replace").replace(b"\0", b"")
        chunks.append((b"iTXt", keyword(key).encode("latin-1") + b"\0\0\0\0\0" + text))
    if given.resources:  # ImageMagick's way, which other programs read
        digits = given.resources.hex()
        lines = "\n".join(digits[at : at + 72] for at in range(0, len(digits), 72))
        profile = f"\niptc\n{len(given.resources):8d}\n{lines}\n".encode()
        chunks.append((b"zTXt", b"Raw profile type iptc\0\0" + zlib.compress(profile)))
    return chunks


def keyword(key: str) -> str:
    """A text key as PNG allows it: Latin-1, 1 to 79 characters, no zero byte."""
    return key.encode("latin-1", "replace").decode("latin-1").replace("\0", "")[:79] or "Comment"


def _paeth(left: Pixels, above: Pixels, corner: Pixels) -> Pixels:
    """The neighbour nearest to left + above - corner (ties: left, then above)."""
    a, b, c = (part.astype(np.int16) for part in (left, above, corner))
    to_left, to_above = np.abs(b - c), np.abs(a - c)
    to_corner = np.abs(a + b - 2 * c)
    guess = np.where(to_above <= to_corner, above, corner)
    return np.where((to_left <= to_above) & (to_left <= to_corner), left, guess)
