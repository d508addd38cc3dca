"""Upscale a video file or a y4m pipe: decode, upscale and encode overlap, and nothing of the file is lost.

::

    VideoReader.frames() -> prefetch -> upscale -> prefetch -> FrameEncoder -> segments -> mux_video
    (its own thread)                    (its own)              (the caller's)

This module only joins the stages. ``upscale`` is any callable from an RGB array to one ``scale`` times as
large, for example ``SR().upscale``. With ``hwaccel`` the reader decodes with NVDEC, and the encoder is NVENC
where it was named: then pictures are arrays in device memory all the way (`yonos_trt.video.nvidia.nvcodec`).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from yonos_trt.atomic import remove_leftovers
from yonos_trt.choices import no_path
from yonos_trt.errors import ConfigError, InputError
from yonos_trt.video.described import left_out_descriptions
from yonos_trt.video.device import DevicePath, device_path
from yonos_trt.video.encode import make_frame
from yonos_trt.video.format import HDR_ENCODERS, OutputFormat
from yonos_trt.video.info import VideoInfo, frame_planes
from yonos_trt.video.layers import left_out_layers
from yonos_trt.video.layouts import WITH_ALPHA
from yonos_trt.video.ledger import Stamp, read_stamp
from yonos_trt.video.mux import container_of, count_frames, mux_video, rehearse
from yonos_trt.video.options import VideoOptions, VideoReport
from yonos_trt.video.read import VideoReader
from yonos_trt.video.segment_encode import SegmentedEncoder
from yonos_trt.video.segments import SegmentFolder
from yonos_trt.video.sidedata import lost_frame_data
from yonos_trt.video.stages import Stopwatch, Upscale, open_reader, segments_identity, upscaled
from yonos_trt.video.y4m import Y4mWriter, broken_pipe

__all__ = [
    "MakeSegments",
    "OnFrames",
    "Upscale",
    "VideoOptions",
    "VideoReport",
    "Work",
    "check_same",
    "expected_frames",
    "to_file",
    "upscale_video",
]

log = logging.getLogger(__name__)

#: called with frames done so far and frames in all (None: not known)
OnFrames = Callable[[int, "int | None"], None]


@dataclass(frozen=True, slots=True)
class Work:
    """What the segments of a file are made from, and where they go."""

    reader: VideoReader
    path: DevicePath
    job: SegmentFolder
    options: VideoOptions
    scale: int
    watch: Stopwatch
    progress: OnFrames | None


MakeSegments = Callable[[Work], int]


def expected_frames(info: VideoInfo, options: VideoOptions) -> int | None:
    """Return how many frames to expect, for progress only: exact without an interval, else by the rate."""
    if options.start_s is None and options.end_s is None:
        return info.frames_declared
    if options.end_s is not None:
        expected = round((options.end_s - (options.start_s or 0)) * info.rate)
        return expected if info.frames_declared is None else min(expected, info.frames_declared)
    if info.frames_declared is not None and options.start_s is not None:
        return max(1, info.frames_declared - round(options.start_s * info.rate))
    return None


def upscale_video(
    source: str | Path | BinaryIO,
    target: str | Path | BinaryIO,
    upscale: Upscale,
    *,
    scale: int,
    upscaler_id: str = "",
    options: VideoOptions | None = None,
    progress: OnFrames | None = None,
) -> VideoReport:
    """Upscale every frame of a video and keep everything else of it.

    Parameters
    ----------
    source
        Path, or a binary stream with y4m.
    target
        Path (``.mkv``, ``.mp4``, ``.mov``, ``.webm``), or a binary stream for y4m. A file appears under its
        name only when it is complete and was read back.
    upscale
        RGB (H, W, 3) uint8 or uint16 -> (scale H, scale W, 3) of the same type; called from one thread. With
        ``options.sizing`` it takes ``size=(height, width)`` as well, and returns that size.
    scale
        Upscaling factor of ``upscale``.
    upscaler_id
        Says which model and settings ``upscale`` uses; a resume with another one is refused.
    options
        See `VideoOptions`.
    progress
        Called after every frame, from the calling thread.

    Returns
    -------
    VideoReport
        What was done.

    Raises
    ------
    InputError
        The input cannot be used as a whole, or the output cannot be written; finished segments are kept.
    ConfigError
        Options contradict each other or the input.
    """
    options = options or VideoOptions()
    if isinstance(target, str) and (problem := no_path(target)):
        raise ConfigError(f"the output {problem}")
    if isinstance(target, (str, Path)):
        return to_file(
            source,
            Path(target),
            partial(_here, upscale=upscale),
            scale=scale,
            upscaler_id=lambda: upscaler_id,
            options=options,
            progress=progress,
        )
    return _to_pipe(source, target, upscale, scale, options, progress)


def _to_pipe(
    source: str | Path | BinaryIO,
    sink: BinaryIO,
    upscale: Upscale,
    scale: int,
    options: VideoOptions,
    progress: OnFrames | None,
) -> VideoReport:
    if options.resume:
        raise ConfigError("--resume needs an output file; a pipe cannot be resumed")
    watch, report = Stopwatch(), VideoReport()
    with open_reader(source, options) as reader:
        layers = _left_out_before(reader, Path(source) if isinstance(source, (str, Path)) else None)
        raw = replace(options.encoder, vcodec="rawvideo", crf=None, preset=None, options=())
        path = device_path(replace(options, encoder=raw), reader, scale)
        form, report.on_device = path.form, path.stages
        if form.coding.siting == "top":  # which y4m has no word for
            form = replace(form, coding=replace(form.coding, siting="left"))
        report.left_out = layers + reader.lost_in_y4m(form)
        _tell_left_out(reader.name, report.left_out)
        writer = Y4mWriter(sink, form)
        total = expected_frames(reader.info, options)
        decoded = watch.each("decode", reader.frames())
        with upscaled(decoded, upscale, scale, options, path, watch) as frames:
            for frame in frames:
                begin = time.perf_counter()
                picture = make_frame(frame.rgb, form, frame.pts)
                writer.write(frame_planes(picture, form.layout), frame.pts)
                watch.seconds["encode"] += time.perf_counter() - begin
                report.frames += 1
                if progress is not None:
                    progress(report.frames, total)
        report.repeated_s, report.damage = list(reader.repeated_s), list(reader.damage)
        unseen = lost_frame_data(reader.frame_data, reader.info.side, hdr_kept=False)
        unseen = [entry for entry in unseen if entry not in report.left_out]
        _tell_left_out(reader.name, unseen)
        report.left_out += unseen
    try:
        sink.flush()
    except OSError as error:
        raise broken_pipe(error) from error
    report.seconds = {**watch.seconds, "wall": time.perf_counter() - watch.begin}
    return report


def to_file(
    source: str | Path | BinaryIO,
    target: Path,
    make: MakeSegments,
    *,
    scale: int,
    upscaler_id: Callable[[], str],
    options: VideoOptions,
    progress: OnFrames | None,
) -> VideoReport:
    """Make a file as `upscale_video` does, its segments wherever `make` has them made.

    Parameters
    ----------
    make
        Called with the work once everything that can be refused was; appends what is missing to
        ``work.job.segments``, whole and in order; returns how many frames were there already.
    upscaler_id
        Called when the input and the options are known to be usable.
    source, target, scale, options, progress
        As `upscale_video`.
    """
    container_of(target)
    file = Path(source) if isinstance(source, (str, Path)) else None
    if options.resume and file is None:
        raise ConfigError("--resume needs an input file; a pipe cannot be read again")
    if file is not None and target.exists() and file.exists() and target.samefile(file):
        raise ConfigError(f"{target} is the input itself; choose another -o")
    if target.is_dir():
        raise ConfigError(f"{target} is a folder; name a file with -o")
    if target.exists() and not (options.overwrite or options.resume):
        raise ConfigError(f"{target} exists; pass --overwrite to replace it")
    remove_leftovers(Path(os.path.realpath(target)).parent)
    watch, report = Stopwatch(), VideoReport()
    plan = {"audio": options.copy_audio, "subtitles": options.copy_subtitles, "force": options.force}
    with open_reader(source, options) as reader:
        layers = _left_out_before(reader, file)
        path = device_path(options, reader, scale)
        form, report.on_device = path.form, path.stages
        known = layers
        if file is not None:
            known = layers + rehearse(
                target, file, reader.info, form, plan, start_s=options.start_s, end_s=options.end_s
            )
            _tell_left_out(reader.name, known)
        identity: dict[str, Any] = {"input": None, "upscaler": upscaler_id()}
        if file is not None:
            identity = segments_identity(file, form, options, path, identity["upscaler"])
        job = SegmentFolder(
            target, identity, resume=options.resume, overwrite=options.overwrite, anew=file is None
        )
        try:
            if options.resume and _is_finished(target, job):
                log.info("%s is already complete", target)
                report.frames = report.frames_resumed = count_frames(target)
                job.remove()
                return report
            _check_free(target, job)
            report.frames_resumed = make(Work(reader, path, job, options, scale, watch, progress))
            if not job.segments:
                end = "its end" if options.end_s is None else f"{options.end_s} s"
                raise InputError(
                    f"{reader.name} has no frame from {options.start_s or 0} s to {end}; nothing was written"
                )
            report.frames = job.frames
            report.repeated_s = [t for segment in job.segments for t in segment.repeated_s]
            report.damage = list(reader.damage)
            _check_free(target, job)
            begin = time.perf_counter()
            report.mux = mux_video(
                target,
                file,
                reader.info,
                form,
                job.segments,
                plan,
                stamp=Stamp(job.id, job.identity),
                start_s=options.start_s,
                end_s=options.end_s,
            )
            after = report.mux.left_out + _lost_frame_data(reader, form)
            report.left_out = list(dict.fromkeys(layers + after))
            _tell_left_out(reader.name, [entry for entry in report.left_out if entry not in known])
            watch.seconds["mux"] = time.perf_counter() - begin
            job.remove()
        finally:
            job.close()
    report.seconds = {**watch.seconds, "wall": time.perf_counter() - watch.begin}
    return report


def _here(work: Work, upscale: Upscale) -> int:
    """Make the segments in this process; return how many frames were there already."""
    reader, job, options, watch = work.reader, work.job, work.options, work.watch
    done_times = [t for segment in job.segments for t in segment.times]
    # the frame before the first one wanted is the stabiliser's state
    skip = max(0, len(done_times) - 1) if options.stabilize else len(done_times)
    frames = watch.each("decode", reader.frames(wanted=lambda index: index >= skip))
    with (
        SegmentedEncoder(job, work.path.form, options.segment_frames, work.path.open_encoder) as encoder,
        upscaled(frames, upscale, work.scale, options, work.path, watch) as results,
    ):
        for frame in results:
            if frame.index < len(done_times):
                check_same(reader, frame.index, frame.pts, done_times[frame.index])
                continue
            begin = time.perf_counter()
            encoder.encode(frame, round(reader.info.seconds(frame.pts), 6))
            watch.seconds["encode"] += time.perf_counter() - begin
            if work.progress is not None:
                work.progress(frame.index + 1, expected_frames(reader.info, options))
        begin = time.perf_counter()
        encoder.finish()
        watch.seconds["encode"] += time.perf_counter() - begin
    if job.frames < len(done_times):
        raise InputError(f"{reader.name} has lost frames since the segments were made; start again")
    return len(done_times)


def _left_out_before(reader: VideoReader, file: Path | None) -> list[str]:
    """Return what of the pictures themselves is not upscaled; refuse alpha that would be lost."""
    found = [] if file is None else left_out_layers(file) + left_out_descriptions(file)
    if reader.info.pix_fmt in WITH_ALPHA:
        found.append("alpha channel, which is opaque in every pixel")
    return found


def _lost_frame_data(reader: VideoReader, form: OutputFormat) -> list[str]:
    told = reader.info.hdr is not None and form.vcodec in HDR_ENCODERS and not form.nvenc
    return lost_frame_data(reader.frame_data, reader.info.side, hdr_kept=told)


def _tell_left_out(name: str, left_out: list[str]) -> None:
    if left_out:
        log.warning("%s: left out: %s", name, "; ".join(left_out))


def _is_finished(target: Path, job: SegmentFolder) -> bool:
    """Whether ``target`` exists and is what ``job`` makes, by the stamp in it.

    Where the job was begun, only its own result will do: what it was begun to replace may be the result of an
    earlier job of the same kind.
    """
    stamp = read_stamp(target, container_of(target))
    if stamp is None:
        return False
    return stamp.job == job.id if job.begun else stamp.identity == job.identity


def _check_free(target: Path, job: SegmentFolder) -> None:
    """Refuse to replace a file that nobody said may go, at the beginning and again at the end."""
    if target.exists() and not job.replaces:
        raise ConfigError(
            f"{target} exists and is not the finished result of this command; to replace it, pass "
            "--overwrite (together with --resume, finished segments are used)"
        )


def check_same(reader: VideoReader, index: int, pts: int, expected_pts: int) -> None:
    """Refuse to resume on an input whose frames differ from what the finished segments show."""
    if pts != expected_pts:
        raise InputError(
            f"{reader.name} is not the file the finished segments were made from (frame {index} "
            "differs in time); start again with --overwrite without --resume"
        )
