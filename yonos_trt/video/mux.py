"""Put the output file together: new video packets, everything else copied packet by packet, then checked.

Copied streams are not decoded. After writing, the file is read back: packet counts must agree, and the
bytes of each copied stream are compared with the source's.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from pathlib import Path

from yonos_trt.atomic import atomic_file, sync
from yonos_trt.errors import ConfigError, InputError
from yonos_trt.video.encode import open_encoder
from yonos_trt.video.format import OutputFormat
from yonos_trt.video.info import VideoInfo, open_input, require_av
from yonos_trt.video.ledger import CopiedStream, Stamp, read_back, write_stamp
from yonos_trt.video.muxing import Muxing
from yonos_trt.video.read import main_video_stream
from yonos_trt.video.segments import Segment, going_on, remedy, work_folder

CONTAINERS = {".mkv": "matroska", ".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".webm": "webm"}


def container_of(target: Path) -> str:
    """Return FFmpeg's name of the container that a file name asks for.

    Raises
    ------
    ConfigError
        The suffix names no container that keeps timestamps and tags as promised.
    """
    if "\0" in str(target):
        raise ConfigError(f"{str(target)!r} has a NUL in it and names no file; choose another -o")
    name = CONTAINERS.get(target.suffix.lower())
    if name is None:
        raise ConfigError(
            f"{target}: suffix {target.suffix!r} is not one of {', '.join(CONTAINERS)}; use .mkv"
        )
    return name


def count_frames(path: Path) -> int:
    """Return the number of packets of a file's main video stream: its frames."""
    with open_input(str(path), name=str(path)) as clip:
        return sum(1 for packet in clip.demux(main_video_stream(clip, str(path))) if packet.size)


@dataclass(slots=True)
class MuxReport:
    """What is in the finished file."""

    frames: int = 0
    copied: list[CopiedStream] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    shift_s: float = 0.0  # added to every time; not 0 only with --start or for times below zero in Matroska


class _Nowhere:
    """A file that keeps nothing, to try what a muxer accepts."""

    def __init__(self) -> None:
        self._at = 0

    def write(self, data: bytes) -> int:
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset if whence == 0 else self._at + offset
        return self._at

    def tell(self) -> int:
        return self._at


def rehearse(
    target: Path,
    source_path: Path,
    info: VideoInfo,
    form: OutputFormat,
    plan_options: dict[str, bool],
    *,
    start_s: float | None,
    end_s: float | None,
) -> list[str]:
    """Write everything but the new video to nowhere: what the container refuses is known before the work.

    Parameters are those of `mux_video`.

    Returns
    -------
    list of str
        Streams that will be left out.

    Raises
    ------
    ConfigError
        The container does not hold the video, a stream, or something of them.
    InputError
        The source cannot be read.
    """
    av = require_av()
    if not form.nvenc:
        open_encoder(form)
    try:
        job = Muxing(container_of(target), source_path, info, form, [], plan_options, start_s, end_s)
        job.write(_Nowhere())
        return job.plan.left_out
    except (OSError, av.error.FFmpegError) as error:
        raise ConfigError(
            f"{target}: {_reason(error, container_of(target))}leave streams out "
            "(--no-copy-audio, --no-copy-subtitles)"
        ) from error


def mux_video(
    target: Path,
    source_path: Path | None,
    info: VideoInfo,
    form: OutputFormat,
    segments: list[Segment],
    plan_options: dict[str, bool],
    *,
    stamp: Stamp,
    start_s: float | None,
    end_s: float | None,
) -> MuxReport:
    """Write ``target`` (under another name, synced, renamed when checked) from segments and source.

    Parameters
    ----------
    target
        Final path; its suffix chooses the container.
    source_path
        Where the other streams, chapters and metadata come from; None copies nothing (a pipe was read).
    info, form, segments
        The video.
    plan_options
        Keywords for `plan_copies`.
    stamp
        Which job's result this is; written into the file.
    start_s, end_s
        The interval of the source that was taken.

    Raises
    ------
    InputError
        The source is gone, the disk is full, or the written file does not check out. Segments stay.
    """
    av = require_av()
    container = container_of(target)
    job = Muxing(container_of(target), source_path, info, form, segments, plan_options, start_s, end_s)
    again = going_on(work_folder(target))
    try:
        with atomic_file(target) as part:
            with part.open("wb+") as file:
                job.write(file)
            sync(part)
            frames = sum(segment.frames for segment in segments)
            copied = read_back(part, target.name, frames, job.video_index, job.ledger, again)
            left_out = job.plan.left_out + job.lost(part)
            write_stamp(part, container, stamp)
    except (OSError, av.error.FFmpegError) as error:
        raise InputError(f"{target} cannot be written: {_reason(error, container)}{again}") from error
    return MuxReport(frames, copied, left_out, float(job.shift))


def _reason(error: BaseException, container: str) -> str:
    """Return what went wrong and what helps, up to "run again".

    PyAV wraps errors of our file in one of its own, as the context; an error that is only FFmpeg's is about
    what it was given, and no disk's.
    """
    av = require_av()
    inner: BaseException | None = error
    while inner is not None:
        system = isinstance(inner, OSError) and not isinstance(inner, av.error.FFmpegError)
        if isinstance(inner, OSError) and (system or inner.errno in (errno.ENOSPC, errno.EFBIG, errno.EIO)):
            return f"{inner.strerror or inner}; {remedy(inner)}"
        inner = inner.__cause__ or inner.__context__
    text = getattr(error, "strerror", None) or error
    other = "" if container == "matroska" else "choose an .mkv output, or "
    return f"FFmpeg's {container} writer refuses what it is given ({text}); {other}"
