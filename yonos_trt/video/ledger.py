"""What went into an output file: its streams, compared when it is read back, and the job that made it.

A finished file ends in a *stamp*: an element that players skip (``free`` in MP4 and MOV, ``Void`` in Matroska
and WebM) naming the job, what it was made from, and the SHA-256 of all bytes before. So a resume can tell its
own finished file from any other that has the name.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yonos_trt.errors import InputError
from yonos_trt.video.info import open_input

#: MP4 timed text: muxers add and drop such samples as the gaps between texts need them.
EMPTY_TEXT = b"\0\0"


@dataclass(frozen=True, slots=True)
class CopiedStream:
    """One stream in the finished file that was copied."""

    source_index: int
    kind: str
    codec: str
    packets: int
    identical: bool  # all bytes equal; False: the container repackaged them (for example ADTS to raw AAC)


@dataclass(slots=True)
class Entry:
    """What went into one stream of the output."""

    kind: str
    codec: str
    packets: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def add(self, payload: bytes) -> None:
        """Count a packet."""
        if payload == EMPTY_TEXT:
            return
        self.packets += 1
        self.digest.update(payload)


#: by stream index in the output: index in the source, and what was written
Ledger = dict[int, tuple[int, Entry]]


def read_back(
    part: Path, name: str, frames: int, video_index: int, ledger: Ledger, again: str
) -> list[CopiedStream]:
    """Read the written file and compare it with the ledger.

    Parameters
    ----------
    part
        The file.
    name
        What messages call it.
    frames
        Packets that the stream `video_index` must have.
    video_index
        The new video stream, which the ledger does not list.
    ledger
        The copied streams.
    again
        How to go on where it does not agree.

    Raises
    ------
    InputError
        Packets are missing, or there are too many.
    """
    found: dict[int, Entry] = {}
    with open_input(str(part), name=name) as written:
        for packet in written.demux():
            if packet.size:
                found.setdefault(packet.stream.index, Entry("", "")).add(bytes(packet))
    counts = {index: entry.packets for index, entry in found.items()}
    expected = {index: entry.packets for index, (_, entry) in ledger.items() if entry.packets}
    expected[video_index] = frames
    if {index: counts.get(index) for index in expected} != expected:
        raise InputError(
            f"{name} does not hold what was written: packets by stream {counts}, expected {expected}; is the "
            f"disk sound? Then {again}"
        )
    copied = []
    for index, (source_index, entry) in ledger.items():
        identical = not entry.packets or entry.digest.digest() == found[index].digest.digest()
        copied.append(CopiedStream(source_index, entry.kind, entry.codec, entry.packets, identical))
    return copied


_STAMP = b"YONOS-VIDEO-JOB1"
_STAMP_SIZE = len(_STAMP) + 16 + 32 + 32
_FRAMES = {  # a container's element that holds anything, up to its payload
    "mp4": (8 + _STAMP_SIZE).to_bytes(4, "big") + b"free",
    "matroska": b"\xec" + (0x4000 | _STAMP_SIZE).to_bytes(2, "big"),
}
_FRAMES |= {"mov": _FRAMES["mp4"], "webm": _FRAMES["matroska"]}


@dataclass(frozen=True, slots=True)
class Stamp:
    """Which job made a file."""

    job: str  # 16 bytes in hexadecimal
    identity: str  # SHA-256 of what it was made from and how, in hexadecimal


def write_stamp(path: Path, container: str, stamp: Stamp) -> None:
    """Append ``stamp`` to a finished file of FFmpeg's format ``container``.

    Raises
    ------
    OSError
        The disk is full or broken.
    """
    with path.open("rb+") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        file.seek(0, os.SEEK_END)
        file.write(_FRAMES[container] + _STAMP + bytes.fromhex(stamp.job + stamp.identity) + digest)


def read_stamp(path: Path, container: str) -> Stamp | None:
    """Return the stamp of a file whose bytes are those it was written with; None for any other file."""
    frame = _FRAMES[container]
    size = len(frame) + _STAMP_SIZE
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END) - size
            if end < 0:
                return None
            file.seek(end)
            raw = file.read(size)
            if not raw.startswith(frame + _STAMP):
                return None
            file.seek(0)
            digest, left = hashlib.sha256(), end
            while left and (block := file.read(min(left, 1 << 20))):
                digest.update(block)
                left -= len(block)
    except OSError:
        return None
    if raw[-32:] != digest.digest():
        return None
    names = raw[len(frame) + len(_STAMP) : -32].hex()
    return Stamp(names[:32], names[32:])
