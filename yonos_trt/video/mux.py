"""Put the output file together: new video packets, everything else copied packet by packet, then checked.

Copied streams are not decoded. After writing, the file is read back: packet counts must agree, and the
bytes of each copied stream are compared with the source's.
"""

from __future__ import annotations

import contextlib
import errno
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from yonos_trt.atomic import atomic_file, sync
from yonos_trt.errors import ConfigError, InputError
from yonos_trt.video.copies import (
    CopyPlan,
    Window,
    add_copied_streams,
    chapters,
    copied_packets,
    lowest_time,
    plan_copies,
    read_covers,
)
from yonos_trt.video.encode import configure
from yonos_trt.video.format import OutputFormat
from yonos_trt.video.info import VideoInfo, exact_seconds, open_input, require_av
from yonos_trt.video.ledger import CopiedStream, Entry, Ledger, Stamp, read_back, write_stamp
from yonos_trt.video.read import main_video_stream
from yonos_trt.video.segments import Segment, remedy
from yonos_trt.video.timing import video_packets

__all__ = ["CONTAINERS", "MuxReport", "container_of", "count_frames", "mux_video"]

CONTAINERS = {".mkv": "matroska", ".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".webm": "webm"}

#: Written by every muxer for its own file; the source's values would be wrong in ours.
OWN_METADATA = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration"}
#: Per-stream statistics some muxers leave as tags; they describe the old video stream.
STATISTICS = ("BPS", "DURATION", "NUMBER_OF_", "_STATISTICS_")


def container_of(target: Path) -> str:
    """Return FFmpeg's name of the container that a file name asks for.

    Raises
    ------
    ConfigError
        The suffix names no container that keeps timestamps and tags as promised.
    """
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


def _add_video(out: Any, form: OutputFormat, main: Any, template: Any) -> Any:
    """Add the new video stream; ``main`` is the source's, None for a pipe.

    The container's header needs what the encoder says of itself, so an encoder is opened as for the segments;
    no frame goes through it. Where FFmpeg was not the encoder, ``template`` is a stream that says it.
    """
    if template is not None:
        video = out.add_stream_from_template(template, opaque=True)
        video.codec_context.framerate = form.rate
    else:
        video = out.add_stream(form.vcodec, rate=form.rate)
        configure(video.codec_context, form, global_header=True)
    video.time_base = form.time_base
    if form.display_matrix is not None:
        video.set_display_matrix(form.display_matrix)
    if main is not None:
        tags = {k: v for k, v in main.metadata.items() if not k.upper().startswith(STATISTICS)}
        tags.pop("encoder", None)
        video.metadata.update(tags)
        video.disposition = main.disposition
    return video


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
    report = MuxReport()
    with contextlib.ExitStack() as stack:
        source = None
        plan = CopyPlan()
        if source_path is not None:
            source = stack.enter_context(open_input(str(source_path), name=str(source_path)))
            main = main_video_stream(source, str(source_path))
            plan = plan_copies(source, main.index, container, **plan_options)
        report.left_out = plan.left_out
        clock = info.start_time * info.time_base
        window = (
            clock + exact_seconds(start_s) if start_s is not None else None,
            clock + exact_seconds(end_s) if end_s is not None else None,
        )
        shift = -window[0] if window[0] is not None else Fraction(0)
        options = {}
        covers: dict[int, bytes] = {}
        if container == "matroska" and source is not None:
            # Matroska has no negative times: move everything by the same whole milliseconds
            lowest = lowest_time(source, plan, window)
            if lowest is not None and lowest + shift < 0:
                shift += Fraction(math.ceil(-(lowest + shift) * 1000), 1000)
            if plan.covers:
                source.close()
                source = stack.enter_context(open_input(str(source_path), name=str(source_path)))
                covers = read_covers(source, plan)
            source.close()
            source = stack.enter_context(open_input(str(source_path), name=str(source_path)))
        if container in ("matroska", "webm"):
            options["avoid_negative_ts"] = "disabled"
        report.shift_s = float(shift)
        template = None
        if form.nvenc:
            from yonos_trt.video.nvenc import stream_template

            described = stack.enter_context(stream_template(form, _beginning(segments[0])))
            template = described.streams.video[0]
        try:
            part = stack.enter_context(atomic_file(target))
            with part.open("wb+") as file:
                out = av.open(file, "w", format=container, container_options=options)
                try:
                    video_index, ledger = _write(
                        out, source, plan, covers, form, segments, shift, window, template
                    )
                finally:
                    out.close()
            sync(part)
            report.frames = sum(segment.frames for segment in segments)
            report.copied = read_back(part, target.name, report.frames, video_index, ledger)
            write_stamp(part, container, stamp)
            stack.close()
        except (OSError, av.error.FFmpegError) as error:
            raise InputError(
                f"{target} cannot be written: {_reason(error, container)}run the same command with --resume "
                "(all frames are done and kept)"
            ) from error
    return report


def _beginning(segment: Segment) -> bytes:
    """Return a segment's header and its first packets, up to a few hundred kB: enough to tell what it is."""
    data = segment.extradata
    for _, payload in segment.payloads():
        data += payload
        if len(data) > 1 << 18:
            break
    return data


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
    return f"FFmpeg's {container} writer refuses what it is given ({text}); choose an .mkv output, or "


def _write(
    out: Any,
    source: Any,
    plan: CopyPlan,
    covers: dict[int, bytes],
    form: OutputFormat,
    segments: list[Segment],
    shift: Fraction,
    window: Window,
    template: Any,
) -> tuple[int, Ledger]:
    """Write header and packets; return the video's stream index and what the other streams got."""
    streams: dict[int, Any] = {}
    copies: Iterator[tuple[Fraction, int, Any]] = iter(())
    if source is None:
        video = _add_video(out, form, None, template)
    else:
        main = main_video_stream(source, "the source")
        streams = add_copied_streams(
            out, source, plan, main.index, lambda: _add_video(out, form, main, template), covers
        )
        video = streams.pop(main.index)
        out.metadata.update({k: v for k, v in source.metadata.items() if k.lower() not in OWN_METADATA})
        out.set_chapters(chapters(source, shift, window))
        copies = copied_packets(source, plan, window)
    out.start_encoding()
    extradata = bytes(video.codec_context.extradata or b"")
    if template is not None:  # the muxer has it in its own form; all segments must have begun alike
        extradata = segments[0].extradata
    if any(segment.extradata != extradata for segment in segments):
        raise InputError(
            "the encoder describes itself differently than when the segments were made (another FFmpeg or "
            "machine?); start again with --overwrite without --resume"
        )
    ledger: Ledger = {}
    for index, stream in streams.items():
        context = source.streams[index].codec_context
        ledger[stream.index] = (index, Entry(stream.type, context.name if context is not None else ""))

    def copy(entry: tuple[Fraction, int, Any]) -> None:
        _, index, packet = entry
        ledger[streams[index].index][1].add(bytes(packet))
        ticks = round(shift / packet.time_base)
        if ticks:
            packet.pts = packet.pts + ticks if packet.pts is not None else None
            packet.dts = packet.dts + ticks if packet.dts is not None else None
        packet.stream = streams[index]
        out.mux_one(packet)

    waiting = next(copies, None)
    for when, packet in video_packets(segments, form.time_base, round(shift / form.time_base)):
        while waiting is not None and waiting[0] <= when:
            copy(waiting)
            waiting = next(copies, None)
        packet.stream = video
        out.mux_one(packet)
    while waiting is not None:
        copy(waiting)
        waiting = next(copies, None)
    return video.index, ledger
