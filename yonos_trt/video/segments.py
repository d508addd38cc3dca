"""Work in progress on disk: a folder of finished segments, so that a killed job goes on where it was.

::

    .yonos-<16 hex digits>.resume/   beside the output; the digits are the hash of its name
        job.json               what is being made from what; a resume must be for the same
        lock                   held by the process at work
        segment-000000         packets of frames 0 .. n-1, starting with a key frame
        segment-000001         packets of frames n .. 2n-1, ...

A segment is written by `yonos_trt.atomic`, so it has its name when it is complete and synced, and it ends in
an index with a checksum: what has the name `segment-...` is whole, or is noticed. Segments start at multiples
of a fixed number of frames and each has an encoder of its own, so their bits do not depend on where a job was
killed.
A folder is this program's if ``job.json`` says so, and of its files only those with the names above are ever
removed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import secrets
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

from yonos_trt.atomic import atomic_file, remove_leftovers, write_file
from yonos_trt.errors import ConfigError, InputError

log = logging.getLogger(__name__)

MAGIC = b"YONOSEG1"
FORMAT = 2
MADE_BY = "yonos video"  # in job.json: the folder is ours
OWN_NAMES = re.compile(r"job\.json|lock|segment-\d{6}(\.part)?|\.yonos-[0-9a-f]{16}\.part")

_REMEDIES = {
    errno.ENOSPC: "free space",
    errno.EDQUOT: "free space",
    errno.EFBIG: "the file system or a limit (ulimit -f) allows no larger file; choose another -o",
    errno.EROFS: "the file system is read-only; choose another -o",
    errno.EACCES: "make the folder writable",
    errno.EPERM: "make the folder writable",
}


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

    @property
    def times(self) -> list[int]:
        """Presentation times of the frames, in ticks, in that order."""
        return sorted(record.pts for record in self.packets)

    def payloads(self) -> Iterator[tuple[PacketRecord, bytes]]:
        """Yield each packet with its bytes."""
        with self.path.open("rb") as file:
            for record in self.packets:
                yield record, file.read(record.size)


def remedy(error: BaseException) -> str:
    """Return what helps against an error of the system, ending in a comma for what follows; may be empty."""
    words = _REMEDIES.get(getattr(error, "errno", None) or 0)
    return f"{words}, then " if words else ""


def has_segments(folder: Path) -> bool:
    """Whether there is a finished one; the first may be missing where several machines make them."""
    try:
        return any(re.fullmatch(r"segment-\d{6}", name) for name in os.listdir(folder))
    except FileNotFoundError:
        return False


def going_on(folder: Path) -> str:
    """Say how to go on with the work in a folder after an error: --resume only where something is kept."""
    if not has_segments(folder):
        return "run the same command again (no segment was finished)"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        if json.loads((folder / "job.json").read_text(encoding="utf-8"))["identity"]["input"] is None:
            return "run the same command again (what came from a pipe is not kept)"
    return "run the same command with --resume (finished segments are kept)"


def _trouble(path: Path, error: OSError, doing: str, folder: Path) -> InputError:
    return InputError(f"{path}: {doing} failed: {error.strerror or error}; {remedy(error)}{going_on(folder)}")


class _Dropped(Exception):
    """A segment is not finished."""


class SegmentWriter:
    """Writes one segment; ``finish`` gives it its name, anything else leaves no segment behind."""

    def __init__(self, path: Path, first_frame: int) -> None:
        self.path = path
        self._first_frame = first_frame
        self._records: list[PacketRecord] = []
        self._crc = 0
        self._whole = contextlib.ExitStack()
        try:
            self._file: BinaryIO = self._whole.enter_context(atomic_file(path)).open("wb")
        except OSError as error:
            self.abort()
            raise _trouble(path, error, "creating a segment", path.parent) from error

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
            raise _trouble(self.path, error, "writing a segment", self.path.parent) from error
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
            self._file.close()
            self._whole.close()
        except OSError as error:
            self.abort()
            raise _trouble(self.path, error, "writing a segment", self.path.parent) from error
        return Segment(
            self.path, self._first_frame, tuple(self._records), extradata, last_duration, tuple(repeated_s)
        )

    def abort(self) -> None:
        """Remove what was written. Idempotent."""
        with contextlib.suppress(OSError, AttributeError):  # it may never have been opened
            self._file.close()
        with contextlib.suppress(_Dropped, OSError), self._whole:
            raise _Dropped


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


def work_folder(output: Path) -> Path:
    """Return the folder of an output in the making: always the same, and never the name of a user's file."""
    real = Path(os.path.realpath(output))
    return real.with_name(f".yonos-{hashlib.sha256(os.fsencode(real.name)).hexdigest()[:16]}.resume")


def segment_path(folder: Path, number: int) -> Path:
    """Return the name of a segment in a work folder."""
    return folder / f"segment-{number:06d}"


def _read_record(folder: Path) -> dict[str, Any] | None:
    """Return what ``job.json`` says; None where there is none.

    Raises
    ------
    ConfigError
        The folder is not this program's: nothing in it may be touched.
    """
    foreign = ConfigError(
        f"{folder} was not made by this program, which would keep its unfinished work there; move it away"
    )
    if folder.is_symlink() or not folder.is_dir():
        raise foreign
    try:
        record = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        # killed between making the folder and describing it: at most a lock and a description's part
        for path in folder.iterdir():
            if path.name.startswith("segment-") or not OWN_NAMES.fullmatch(path.name) or path.is_dir():
                raise foreign from None
        return None
    except ValueError:
        raise foreign from None
    wanted = {"made_by", "output", "job", "replaces", "identity"}
    if not isinstance(record, dict) or record.keys() != wanted or record["made_by"] != MADE_BY:
        raise foreign
    return record


def _lock(folder: Path) -> IO[bytes] | None:
    """Hold the folder for this process; the system lets go when the process dies, however it dies."""
    try:
        import fcntl
    except ImportError:  # Windows: two jobs on one output are the user's to avoid
        return None
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = (folder / "lock").open("ab")
        except FileNotFoundError:  # removed by the process that was at work until now
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.close()
            raise ConfigError(
                f"{folder} is in use by another process that makes the same output; wait for it or choose "
                f"another -o"
            ) from error
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle.fileno()), os.stat(folder / "lock")):
                return handle
        handle.close()


class SegmentFolder:
    """The folder of one output in the making.

    Parameters
    ----------
    output
        The file to be made; the folder is `work_folder` of it.
    identity
        JSON-able description of everything the segments depend on.
    resume
        Go on with what is there (nothing there is fine too).
    overwrite
        Replace an existing output when done; without ``resume``, also throw away what is there.
    anew
        Throw away what is there: it comes from a pipe, and nobody can go on with it.

    Raises
    ------
    ConfigError
        There is unfinished work and neither is asked for, or it is for another job, or in use; or the folder
        is not this program's.
    InputError
        The folder cannot be made.
    """

    def __init__(
        self, output: Path, identity: dict[str, Any], *, resume: bool, overwrite: bool, anew: bool = False
    ) -> None:
        self.folder = work_folder(output)
        self._output, self._anew = output, anew
        wanted = json.loads(json.dumps({"format": FORMAT, **identity}))
        #: digest of what the output is made from and how, in hexadecimal
        self.identity = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _read_record(self.folder)  # nothing is written into a folder of somebody else's
            self._handle, self._open = _lock(self.folder), True
            try:
                found = None if anew else _read_record(self.folder)
                remove_leftovers(self.folder)
                record = self._take(found, wanted, resume=resume, overwrite=overwrite)
            except BaseException:
                self._unlock()
                raise
        except OSError as error:
            raise _trouble(self.folder, error, "creating the work folder", self.folder) from error
        #: names this job, from its beginning through every resume, in hexadecimal
        self.id: str = record["job"]
        #: whether an output that exists is to be replaced
        self.replaces: bool = record["replaces"]
        #: finished segments, in order, without gaps
        self.segments: list[Segment] = []
        while (path := self.path_of(len(self.segments))).exists():
            segment = read_segment(path)
            if segment is None or segment.first_frame != self.frames:
                log.warning("%s is damaged; it and what follows is made again", path)
                break
            self.segments.append(segment)

    def _take(
        self, found: dict[str, Any] | None, wanted: dict[str, Any], *, resume: bool, overwrite: bool
    ) -> dict[str, Any]:
        """Decide between going on and starting anew; return the record that is now in the folder."""
        segments = has_segments(self.folder)
        if found is not None and segments and not (resume or overwrite):
            raise ConfigError(
                f"{self.folder} holds unfinished work; pass --resume to go on with it or --overwrite to "
                f"start again"
            )
        #: whether this run goes on with what an earlier one began
        self.begun = resume and found is not None and (segments or found["replaces"])
        if found is not None and self.begun:
            old = found["identity"]
            if old != wanted:
                differing = sorted(k for k in {*old, *wanted} if old.get(k) != wanted.get(k))
                raise ConfigError(
                    f"{self.folder} was begun with another {', '.join(differing)}; repeat the first "
                    f"command's options to resume it, or pass --overwrite without --resume to start again"
                )
            record = {**found, "replaces": found["replaces"] or overwrite}
        else:
            self._clear()
            record = {
                "made_by": MADE_BY,
                "output": self._output.name.encode("utf-8", "replace").decode(),
                "job": secrets.token_hex(16),
                "replaces": overwrite,
                "identity": wanted,
            }
        if record != found:
            write_file(self.folder / "job.json", json.dumps(record, indent=1))
        return record

    @property
    def frames(self) -> int:
        """Frames in finished segments."""
        return sum(segment.frames for segment in self.segments)

    def path_of(self, number: int) -> Path:
        return segment_path(self.folder, number)

    def begin(self, number: int, first_frame: int) -> SegmentWriter:
        """Open segment ``number`` for writing; finished ones are appended to ``segments`` by the caller."""
        return SegmentWriter(self.path_of(number), first_frame)

    def _clear(self) -> None:
        for name in os.listdir(self.folder):
            if OWN_NAMES.fullmatch(name) and name not in ("lock", "job.json"):
                (self.folder / name).unlink(missing_ok=True)

    def _unlock(self) -> None:
        self._open = False
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def close(self) -> None:
        """Let go of the folder, which stays if there is something in it to go on from. Idempotent."""
        if self._open:
            pending = self.replaces and self._output.exists()  # a resume must not take the old file for ours
            if self._anew or not (has_segments(self.folder) or pending):
                self.remove()
        self._unlock()

    def remove(self) -> None:
        """Delete the folder, the output being complete; what somebody else put into it stays."""
        try:
            self._clear()
            for name in ("lock", "job.json"):  # the description last: until then the folder is known as ours
                (self.folder / name).unlink(missing_ok=True)
            self.folder.rmdir()
        except OSError as error:
            log.warning("%s is no longer needed and stays: %s", self.folder, error.strerror or error)
        self._unlock()
