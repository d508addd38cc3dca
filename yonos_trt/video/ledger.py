"""What went into each copied stream of an output file, and whether it is there when the file is read back."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yonos_trt.errors import InputError
from yonos_trt.video.info import open_input

__all__ = ["CopiedStream", "Entry", "Ledger", "read_back"]

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


def read_back(part: Path, frames: int, video_index: int, ledger: Ledger) -> list[CopiedStream]:
    """Read the written file and compare it with the ledger.

    Parameters
    ----------
    part
        The file.
    frames
        Packets that the stream `video_index` must have.
    video_index
        The new video stream, which the ledger does not list.
    ledger
        The copied streams.

    Raises
    ------
    InputError
        Packets are missing, or there are too many.
    """
    found: dict[int, Entry] = {}
    with open_input(str(part), name=str(part)) as written:
        for packet in written.demux():
            if packet.size:
                found.setdefault(packet.stream.index, Entry("", "")).add(bytes(packet))
    counts = {index: entry.packets for index, entry in found.items()}
    expected = {index: entry.packets for index, (_, entry) in ledger.items() if entry.packets}
    expected[video_index] = frames
    if {index: counts.get(index) for index in expected} != expected:
        raise InputError(
            f"{part} does not hold what was written: packets by stream {counts}, expected {expected}; it is "
            f"kept for inspection, run again with --resume to write it anew"
        )
    copied = []
    for index, (source_index, entry) in ledger.items():
        identical = not entry.packets or entry.digest.digest() == found[index].digest.digest()
        copied.append(CopiedStream(source_index, entry.kind, entry.codec, entry.packets, identical))
    return copied
