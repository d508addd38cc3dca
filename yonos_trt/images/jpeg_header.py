"""Walk a JPEG's segments: size and completeness; and ask a second decoder whether its pixels are whole.

ITU-T T.81, annex B. Pillow hides the warnings of its decoder, which goes on after damage with whatever comes:
grey areas, shifted rows. libvips tells them.
"""

from __future__ import annotations

import logging
import re
import struct
import threading
from collections.abc import Iterator

from yonos_trt.host import require_bytes
from yonos_trt.images.header import Header, MalformedError

__all__ = ["check_jpeg_pixels", "jpeg_header", "segments"]

_SOS, _EOI, _APP0, _APP15, _COM = 0xDA, 0xD9, 0xE0, 0xEF, 0xFE
_DECODER_BYTES = 48 << 20  # buffers and threads of libvips
_ASKING = threading.Lock()
_BASELINE = (0xC0, 0xC1)  # sequential, Huffman coded
_TAIL_BYTES = 16
# A progressive picture has some ten scans; each costs the time of a whole picture.
_MOST_SCANS = 100
_DAMAGE = re.compile(r"(Corrupt JPEG data: (?!bad ICC)|Premature end of JPEG|Inconsistent progression)[^\n]*")


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end) of the segments up to the first scan's own, SOS, included.

    Bytes between segments that belong to none are passed over, as decoders do.
    """
    position = 2
    while True:
        position = data.find(b"\xff", position)
        if position < 0:
            raise MalformedError("the JPEG is truncated inside its headers")
        marker = data[position + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:  # fill bytes, markers without a length
            position += 1 if marker == 0xFF else 2
            continue
        if marker == _EOI:
            raise MalformedError("the JPEG ends before its pixels")
        (length,) = struct.unpack_from(">H", data, position + 2)
        end = position + 2 + length
        if end > len(data) or length < 2:
            raise MalformedError(f"the JPEG is truncated inside its headers at byte {position}")
        yield marker, position, end
        if marker == _SOS:
            return
        position = end


def jpeg_header(data: bytes) -> Header:
    """Return the header of the main picture; behind its end marker anything may follow.

    Raises
    ------
    MalformedError
        Truncated, without a frame header, or of more scans than any picture needs.
    """
    size, scan_at = None, 0
    for marker, start, end in segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits, height_px, width_px, channels = struct.unpack_from(">BHHB", data, start + 4)
            size = (height_px, width_px, bits, channels)
        scan_at = end
    if size is None:
        raise MalformedError("the JPEG has no frame header")
    # Inside the coded data FF is always followed by 00 or a restart marker, so the first FFD9 is the end.
    end_at = data.find(b"\xff\xd9", scan_at)
    if end_at < 0:
        raise MalformedError("the JPEG is truncated: its end marker is missing")
    if data.count(b"\xff\xda", scan_at, end_at) >= _MOST_SCANS:
        raise MalformedError(f"the JPEG has more than {_MOST_SCANS} scans, which no picture needs")
    return Header("JPEG", *size)


def check_jpeg_pixels(data: bytes, header: Header) -> None:
    """Decode a JPEG that passed ``jpeg_header`` with libvips; refuse it if that decoder warns of damage.

    A baseline picture is decoded a second time without the last of its coded bytes: if nothing is missing
    then, they belong to no pixel, and the decoder lost its way before them. Memory stays at some rows.
    Application segments are left out, so that only what is said about the pixels counts. Without pyvips (the
    extra ``images``) nothing is checked.

    Raises
    ------
    MalformedError
        Names the damage in the decoder's words.
    MemoryError
        There is no room for the decoding.
    """
    require_bytes(_DECODER_BYTES + 8 * header.height_px * header.width_px)  # the coefficients, if progressive
    kept, scan_at, frame = [data[:2]], 2, 0
    for marker, start, scan_at in segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = marker
        if not _APP0 <= marker <= _APP15 and marker != _COM:
            kept.append(data[start:scan_at])
    head = b"".join(kept)
    damage = _damage(head + data[scan_at:])
    end_at = data.find(b"\xff\xd9", scan_at)
    coded = data[scan_at:end_at].rstrip(b"\0\xff")  # some devices pad
    if damage == "" and frame in _BASELINE and len(coded) > 2 * _TAIL_BYTES and b"\xff\xda" not in coded:
        cut = coded[:-_TAIL_BYTES].rstrip(b"\xff")
        if _damage(head + cut + b"\xff\xd9") == "":
            damage = "coded bytes that belong to no pixel"
    if damage:
        raise MalformedError(
            f"the JPEG is damaged ({damage}), its picture is wrong from there on; to use it all the same, "
            "save it anew with a program that opens it"
        )


class _Said(logging.Handler):
    """Collect what libvips says while it is asked about one file."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += f"{record.getMessage()}\n"


def _damage(data: bytes) -> str | None:
    """Return what libvips says is damaged, "" if nothing is, None without it or if it fails otherwise."""
    try:
        import pyvips
    except (ImportError, OSError):
        return None
    pyvips.cache_set_max(0)  # it would keep the last hundred files in memory
    log, said = logging.getLogger("pyvips"), _Said()
    if log.manager.disable >= logging.WARNING:
        return None
    with _ASKING:  # warnings about the last rows are not raised but logged, without the name of the file
        before = log.level, log.propagate
        log.addHandler(said)
        log.setLevel(logging.WARNING)
        log.propagate = False
        try:
            pyvips.Image.new_from_buffer(data, "", fail_on="warning", access="sequential").avg()
        except pyvips.Error as error:
            said.text += str(error)
            if not _DAMAGE.search(said.text):
                return None
        finally:
            log.removeHandler(said)
            log.setLevel(before[0])
            log.propagate = before[1]
    damage = _DAMAGE.search(said.text)
    return damage[0].removeprefix("Corrupt JPEG data: ") if damage else ""
