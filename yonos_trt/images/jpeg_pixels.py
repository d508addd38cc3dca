"""Tell whether a JPEG's coded data are whole. Decoders go on after damage with whatever comes: grey areas,
shifted rows. ITU-T T.81, annexes B and F.

libvips (the extra ``images``) passes the warnings of its decoder on. Pillow hides them: there, the picture is
decoded again with other bytes behind its coded data and in the place of the last of them.
"""

from __future__ import annotations

import functools
import io
import logging
import re
import struct
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yonos_trt.host import require_bytes
from yonos_trt.images.header import Header, MalformedError
from yonos_trt.images.jpeg_header import is_frame, scans, segments

logger = logging.getLogger(__name__)

_APP0, _APP15, _COM, _DRI = 0xE0, 0xEF, 0xFE, 0xDD
_BASELINE = (0xC0, 0xC1)  # sequential, Huffman coded
_DECODER_BYTES = 48 << 20  # buffers and threads of libvips
_ASKING = threading.Lock()
_TAIL_BYTES = 16
_RESTART = re.compile(rb"\xff+[\xd0-\xd7]")
_DAMAGE = re.compile(r"(Corrupt JPEG data: (?!bad ICC)|Premature end of JPEG|Inconsistent progression)[^\n]*")
_PAD = b"\0\xff"  # some devices pad the coded data
_LEFT_OVER = "coded bytes that belong to no pixel"


def check_jpeg_pixels(data: bytes, header: Header) -> None:
    """Refuse a JPEG that passed ``jpeg_header`` if its coded data are not those of all of its pixels.

    Application segments are left out, so that only what is said about the pixels counts. With libvips its
    decoder's warnings are asked for, whatever the settings of `logging` are, and memory stays at some rows.
    Without it a picture is decoded up to three times; what a progressive picture has too much, and bits that
    turned without a change of length, go unseen then, which is told once a process.

    Raises
    ------
    MalformedError
        Names the damage.
    MemoryError
        There is no room for the decoding.
    """
    pyvips = _pyvips()
    # the coefficients, if progressive; without libvips Pillow's picture and three arrays
    bytes_per_px = 8 if pyvips is not None else max(8, 4 + 3 * (header.channels or 4))
    require_bytes(_DECODER_BYTES + bytes_per_px * header.height_px * header.width_px)
    damage = _order(data) or (_without_warnings(data) if pyvips is None else _warned(data, pyvips))
    if damage:
        raise MalformedError(
            f"the JPEG is damaged ({damage}), its picture is wrong from there on; to use it all the same, "
            "save it anew with a program that opens it"
        )


@functools.cache
def _pyvips() -> Any:
    try:
        import pyvips
    except (ImportError, OSError):  # OSError: the bindings are there, the library is not
        logger.warning(
            "JPEGs are checked without a decoder that tells what is wrong, so that some damage goes unseen; "
            "pip install '.[images]' brings one"
        )
        return None
    pyvips.cache_set_max(0)  # it would keep the last hundred files in memory
    return pyvips


def _frame(data: bytes) -> tuple[int, int, int, int]:
    """Return (frame marker, where its header's body begins, restart interval, where the coded data begin)."""
    marker, body_at, interval, found = 0, 0, 0, list(segments(data))
    for kind, start, _ in found:
        if is_frame(kind):
            marker, body_at = kind, start + 4
        elif kind == _DRI:
            interval = int.from_bytes(data[start + 4 : start + 6], "big")
    return marker, body_at, interval, found[-1][2]


def _order(data: bytes) -> str:
    """Return what is wrong with the restart markers, which count from 0 to 7 again and again."""
    for start, end in scans(data, _frame(data)[3]):
        numbers = [match[-1] & 7 for match in _RESTART.findall(data, start, end)]
        if numbers != [k % 8 for k in range(len(numbers))]:
            return "restart markers that are lost or out of order"
    return ""


# ---------------------------------------------------------------------------------------------------------
# With the decoder's warnings


def _warned(data: bytes, pyvips: Any) -> str:
    """Return what libvips says is damaged, "" if nothing is or if it fails otherwise.

    A baseline picture is decoded a second time without the last of its coded bytes: if nothing is missing
    then, they belong to no pixel, and the decoder lost its way before them.
    """
    frame, _, _, scan_at = _frame(data)
    kept = [data[:2]]
    for marker, start, end in segments(data):
        if not _APP0 <= marker <= _APP15 and marker != _COM:
            kept.append(data[start:end])
    head = b"".join(kept)
    damage = _said(head + data[scan_at:], pyvips)
    found = scans(data, scan_at)
    coded = data[slice(*found[0])].rstrip(_PAD)
    if damage == "" and frame in _BASELINE and len(coded) > 2 * _TAIL_BYTES and len(found) == 1:
        cut = coded[:-_TAIL_BYTES].rstrip(b"\xff")
        if _said(head + cut + b"\xff\xd9", pyvips) == "":
            damage = _LEFT_OVER
    return damage or ""


class _Said:
    """What pyvips logs libvips' warnings with while it is asked about one file."""

    def __init__(self) -> None:
        self.text = ""

    def log(self, level: int, message: str) -> None:
        """Keep a warning; whether `logging` would is no matter."""
        if level >= logging.WARNING:
            self.text += f"{message}\n"


def _said(data: bytes, pyvips: Any) -> str | None:
    """Return what libvips says is damaged, "" if nothing is, None if it fails otherwise."""
    said = _Said()
    with _ASKING:  # warnings about the last rows are not raised but logged, without the name of the file
        before, pyvips.logger = pyvips.logger, said
        try:
            pyvips.Image.new_from_buffer(data, "", fail_on="warning", access="sequential").avg()
        except pyvips.Error as error:
            said.text += str(error)
            if not _DAMAGE.search(said.text):
                return None
        finally:
            pyvips.logger = before
    damage = _DAMAGE.search(said.text)
    return damage[0].removeprefix("Corrupt JPEG data: ") if damage else ""


# ---------------------------------------------------------------------------------------------------------
# Without them

_OTHERS = tuple(np.random.default_rng(k).integers(1, 254, 32, np.uint8).tobytes() for k in range(3))
_SHORTEST = 16  # bytes of an interval whose last ones are replaced


def _without_warnings(data: bytes) -> str:
    """Return what other bytes show to be damaged, "" if nothing.

    Bytes behind the coded data of whole pixels change no pixel. Other bytes in the place of the last ones do,
    in every restart interval; where they do not, the decoder had its pixels together before, from wrong
    codes. An interval whose last block is of one colour proves nothing.
    """
    marker, frame_at, interval, scan_at = _frame(data)
    height, width, channels = struct.unpack_from(">HHB", data, frame_at + 1)
    factors = [data[frame_at + 7 + 3 * k] for k in range(channels)] if channels > 1 else [0x11]
    high, wide = 8 * max(f & 15 for f in factors), 8 * max(f >> 4 for f in factors)
    rows, cols = -(-height // high), -(-width // wide)  # of minimum coded units
    found = scans(data, scan_at)
    in_order = marker in _BASELINE and len(found) == 1 and max(rows * high, cols * wide) < 1 << 16
    if in_order:  # then what lies outside of the picture can be looked at, too
        size = struct.pack(">HH", rows * high, cols * wide)
        data = data[: frame_at + 1] + size + data[frame_at + 5 :]
    whole = _decoded(data)
    if whole is None:  # the picture's own decoding says why
        return ""
    behind = _decoded(_with(data, found, lambda coded: coded.rstrip(b"\xff") + _OTHERS[0]))
    if behind is not None and not np.array_equal(behind, whole):
        return "coded data that end early"
    del behind
    if not in_order:
        return ""
    blocks = whole.reshape(rows, high, cols, wide, -1)
    count = len(_RESTART.findall(data, *found[0])) + 1
    ends = [min((k + 1) * interval, rows * cols) - 1 for k in range(count - 1)] + [rows * cols - 1]
    proved = np.array([bool(np.ptp(blocks[e // cols, :, e % cols], axis=(0, 1)).max() == 0) for e in ends])
    proved |= [len(c.rstrip(_PAD)) < _SHORTEST for c in _RESTART.split(data[slice(*found[0])])]
    for others in _OTHERS:
        if proved.all():
            break
        other = _decoded(_with(data, found, functools.partial(_replaced, others=others)))
        if other is None:
            return ""
        changed = (other != whole).reshape(rows, high, cols, wide, -1)
        units = changed[:, 2:-2, :, 2:-2].any((1, 3, 4)).ravel()  # chroma spreads into the neighbours' rim
        proved |= [units[begin + 1 : end + 1].any() for begin, end in zip([-1, *ends], ends, strict=False)]
    return "" if proved.all() else _LEFT_OVER


def _replaced(coded: bytes, others: bytes) -> bytes:
    coded = coded.rstrip(_PAD)
    count = min(len(others), len(coded) // 2)
    return coded[: len(coded) - count].rstrip(b"\xff") + others[:count]


def _with(data: bytes, found: list[tuple[int, int]], change: Callable[[bytes], bytes]) -> bytes:
    """Return the file with the coded data of every restart interval changed."""
    parts, at = [], 0
    for start, end in found:
        parts.append(data[at:start])
        for k, coded in enumerate(_RESTART.split(data[start:end])):
            if k:
                parts.append(bytes((0xFF, 0xD0 + (k - 1) % 8)))
            parts.append(change(coded))
        at = end
    return b"".join([*parts, data[at:]])


def _decoded(data: bytes) -> NDArray[np.uint8] | None:
    from PIL import JpegImagePlugin

    try:
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
        image.load()
    except (OSError, SyntaxError, ValueError):
        return None
    return np.asarray(image)
