"""Work in progress on disk: a folder of finished segments, so that a killed job goes on where it was.

::

    OUT.parts/
        job.json               what is being made from what; a resume must be for the same
        segment-000000         packets of frames 0 .. n-1, starting with a key frame
        segment-000001         packets of frames n .. 2n-1, ...

A segment is written under another name, synced, and renamed when it is complete, and it ends in an index with
a checksum: what has the name `segment-...` is whole, or is noticed. Segments start at multiples of a fixed
number of frames and each has an encoder of its own, so their bits do not depend on where a job was killed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

from yonos_trt.errors import ConfigError, InputError

__all__ = ["Job", "PacketRecord", "Segment", "SegmentWriter", "read_segment"]

log = logging.getLogger(__name__)

MAGIC = b"YONOSEG1"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class PacketRecord:
    """One compressed packet as stored."""

    pts: int
    key: bool
    size: int


@dataclass(frozen=True, slots=True)
class Segment:
    """Index of one finished segment."""

    path: Path
    first_frame: int
    packets: tuple[PacketRecord, ...]  # in decoding order
    extradata: bytes
    last_duration: int  # ticks the segment's last frame is shown, as far as the input says; 0: unknown
    repeated_s: tuple[float, ...]  # times of frames in it that repeat a neighbour

    @property
    def frames(self) -> int:
        return len(self.packets)

    def payloads(self) -> Iterator[tuple[PacketRecord, bytes]]:
        """Yield each packet with its bytes."""
        with self.path.open("rb") as file:
            for record in self.packets:
                yield record, file.read(record.size)


def _trouble(path: Path, error: OSError, doing: str) -> InputError:
    return InputError(
        f"{path}: {doing} failed: {error.strerror or error}; free space or fix the folder, then run the same "
        f"command "
        f"with --resume (finished segments are kept)"
    )


class SegmentWriter:
    """Writes one segment; ``finish`` gives it its name, anything else leaves no segment behind."""

    def __init__(self, path: Path, first_frame: int) -> None:
        self.path = path
        self._part = path.with_name(path.name + ".part")
        self._first_frame = first_frame
        self._records: list[PacketRecord] = []
        self._crc = 0
        try:
            self._file: BinaryIO = self._part.open("wb")
        except OSError as error:
            raise _trouble(self._part, error, "creating a segment") from error

    def add(self, pts: int, key: bool, payload: bytes) -> None:
        """Append one packet.

        Raises
        ------
        InputError
            The disk is full or gone.
        """
        try:
            self._file.write(payload)
        except OSError as error:
            self.abort()
            raise _trouble(self.path, error, "writing a segment") from error
        self._crc = zlib.crc32(payload, self._crc)
        self._records.append(PacketRecord(pts, key, len(payload)))

    def finish(self, *, extradata: bytes, last_duration: int, repeated_s: list[float]) -> Segment:
        """Write the index, sync, rename.

        Raises
        ------
        InputError
            The disk is full or gone.
        """
        index = json.dumps(
            {
                "first_frame": self._first_frame,
                "packets": [[r.pts, int(r.key), r.size] for r in self._records],
                "extradata": extradata.hex(),
                "last_duration": last_duration,
                "repeated_s": repeated_s,
                "crc32": self._crc,
            }
        ).encode()
        try:
            self._file.write(index + struct.pack("<QI", len(index), zlib.crc32(index)) + MAGIC)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._part, self.path)
        except OSError as error:
            self.abort()
            raise _trouble(self.path, error, "writing a segment") from error
        return Segment(
            self.path, self._first_frame, tuple(self._records), extradata, last_duration, tuple(repeated_s)
        )

    def abort(self) -> None:
        """Remove what was written. Idempotent."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._part.unlink()


def read_segment(path: Path) -> Segment | None:
    """Read a segment's index and check every byte; None if the file is not a whole segment."""
    tail = struct.calcsize("<QI") + len(MAGIC)
    try:
        with path.open("rb") as file:
            file.seek(-tail, os.SEEK_END)
            index_at = file.tell()
            raw = file.read(tail)
            length, index_crc = struct.unpack_from("<QI", raw)
            if raw[-len(MAGIC) :] != MAGIC or length > index_at:
                return None
            file.seek(index_at - length)
            text = file.read(length)
            if zlib.crc32(text) != index_crc:
                return None
            index: dict[str, Any] = json.loads(text)
            records = tuple(PacketRecord(pts, bool(key), size) for pts, key, size in index["packets"])
            if sum(r.size for r in records) != index_at - length:
                return None
            file.seek(0)
            crc = 0
            for record in records:
                crc = zlib.crc32(file.read(record.size), crc)
            if crc != index["crc32"]:
                return None
    except (OSError, ValueError, KeyError, struct.error):
        return None
    return Segment(
        path,
        index["first_frame"],
        records,
        bytes.fromhex(index["extradata"]),
        index["last_duration"],
        tuple(index["repeated_s"]),
    )


def _lock(folder: Path) -> IO[bytes] | None:
    """Hold the folder for this process; the system lets go when the process dies, however it dies."""
    try:
        import fcntl
    except ImportError:  # Windows: two jobs on one output are the user's to avoid
        return None
    handle = (folder / "lock").open("wb")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.close()
        raise ConfigError(
            f"{folder} is in use by another process that makes the same output; wait for it or choose "
            f"another -o"
        ) from error
    return handle


class Job:
    """The folder of one output in the making.

    Parameters
    ----------
    output
        The file to be made; the folder is its name with ``.parts`` appended.
    identity
        JSON-able description of everything the segments depend on.
    resume
        Go on with what is there (nothing there is fine too).
    overwrite
        Throw away what is there.

    Raises
    ------
    ConfigError
        There is unfinished work and neither is asked for, or it is for another job, or in use.
    InputError
        The folder cannot be made.
    """

    def __init__(self, output: Path, identity: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
        self.folder = output.with_name(output.name + ".parts")
        record = self.folder / "job.json"
        wanted = json.loads(json.dumps({"format": FORMAT, **identity}))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._handle = _lock(self.folder)
        except OSError as error:
            raise _trouble(self.folder, error, "creating the work folder") from error
        try:
            found = json.loads(record.read_text()) if record.exists() else None
        except (OSError, ValueError):
            found = {}
        if found is not None and not self.path_of(0).exists():
            found = None  # begun, but nothing finished
        if found is not None and not resume:
            if not overwrite:
                self._unlock()
                raise ConfigError(
                    f"{self.folder} holds unfinished work; pass --resume to go on with it or --overwrite to "
                    f"start again"
                )
            self._clear()
            found = None
        if found is not None and found != wanted:
            differing = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
            self._unlock()
            raise ConfigError(
                f"{self.folder} was begun with another {', '.join(differing)}; repeat the first command's "
                f"options to "
                f"resume it, or pass --overwrite without --resume to start again"
            )
        if found is None:
            self._clear()
            try:
                part = record.with_name("job.json.part")
                part.write_text(json.dumps(wanted, indent=1))
                os.replace(part, record)
            except OSError as error:
                raise _trouble(record, error, "writing the job's description") from error
        #: finished segments, in order, without gaps
        self.segments: list[Segment] = []
        while (path := self.path_of(len(self.segments))).exists():
            segment = read_segment(path)
            if segment is None or segment.first_frame != self.frames:
                log.warning("%s is damaged; it and what follows is made again", path)
                break
            self.segments.append(segment)

    @property
    def frames(self) -> int:
        """Frames in finished segments."""
        return sum(segment.frames for segment in self.segments)

    def path_of(self, number: int) -> Path:
        return self.folder / f"segment-{number:06d}"

    def begin(self, number: int, first_frame: int) -> SegmentWriter:
        """Open segment ``number`` for writing; finished ones are appended to ``segments`` by the caller."""
        return SegmentWriter(self.path_of(number), first_frame)

    def _clear(self) -> None:
        for path in self.folder.glob("segment-*"):
            path.unlink(missing_ok=True)

    def _unlock(self) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def close(self) -> None:
        """Let go of the folder, which stays if there is a finished segment in it. Idempotent."""
        if self._handle is not None and not self.path_of(0).exists():
            shutil.rmtree(self.folder, ignore_errors=True)
        self._unlock()

    def remove(self) -> None:
        """Delete the folder: the output is complete."""
        self._unlock()
        shutil.rmtree(self.folder, ignore_errors=True)
