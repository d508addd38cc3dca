"""One writing of an output file: new video packets, and everything else copied packet by packet."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from yonos_trt.errors import InputError
from yonos_trt.video.copies import (
    CopyPlan,
    Window,
    add_copied_streams,
    chapters,
    copied_packets,
    fits,
    lowest_time,
    plan_copies,
    read_covers,
)
from yonos_trt.video.encode import add_video_stream, described_with, opening
from yonos_trt.video.format import OutputFormat
from yonos_trt.video.info import VideoInfo, exact_seconds, open_input, require_av
from yonos_trt.video.layers import alpha_streams
from yonos_trt.video.ledger import Entry, Ledger
from yonos_trt.video.read import main_video_stream
from yonos_trt.video.segments import Segment
from yonos_trt.video.sidedata import StreamSideData, correct_boxes, read_side_data
from yonos_trt.video.source import is_cover
from yonos_trt.video.survey import Survey
from yonos_trt.video.tags import file_tags, fits_timecode, lost_tags, needs_keys, stream_tags
from yonos_trt.video.timing import video_packets


def _beginning(segment: Segment) -> bytes:
    """Return a segment's header and its first packets, up to a few hundred kB: enough to tell what it is."""
    data = segment.extradata
    for _, payload in segment.payloads():
        data += payload
        if len(data) > 1 << 18:
            break
    return data


class Muxing:
    """One writing of a file: what is taken from where, and what became of it."""

    def __init__(
        self,
        container: str,
        source_path: Path | None,
        info: VideoInfo,
        form: OutputFormat,
        segments: list[Segment],
        plan_options: dict[str, bool],
        start_s: float | None,
        end_s: float | None,
    ) -> None:
        self._container = container
        self._source_path, self._info, self._form, self._segments = source_path, info, form, segments
        self._plan_options = plan_options
        self._survey = info.survey or Survey()
        clock = info.start_time * info.time_base
        self._window: Window = (
            clock + exact_seconds(start_s) if start_s is not None else None,
            clock + exact_seconds(end_s) if end_s is not None else None,
        )
        #: whether the file begins or ends elsewhere than the source
        self._begins, self._cut = start_s is None, self._window != (None, None)
        self.shift = -self._window[0] if self._window[0] is not None else Fraction(0)
        self.plan = CopyPlan()
        self.ledger: Ledger = {}
        self.video_index = 0
        self._streams: dict[int, int] = {}  # index in the file by index in the source

    def _open(self) -> Any:
        return open_input(str(self._source_path), name=str(self._source_path))

    def write(self, file: Any) -> None:
        """Write the file, the new video included if there are segments."""
        av = require_av()
        container = self._container
        with contextlib.ExitStack() as stack:
            source, covers, options = None, {}, {}
            if self._source_path is not None:
                with self._open() as source:
                    main = main_video_stream(source, str(self._source_path))
                    alpha = [stream.index for stream in alpha_streams(source, self._source_path)]
                    self.plan = plan_copies(source, main.index, container, alpha, **self._plan_options)
                    # Matroska has no negative times: move everything by the same whole milliseconds
                    lowest = None
                    if container == "matroska":
                        lowest = lowest_time(source, self.plan, self._window, self._survey)
                    if lowest is not None and lowest + self.shift < 0:
                        self.shift += Fraction(math.ceil(-(lowest + self.shift) * 1000), 1000)
                if self.plan.covers:
                    with self._open() as source:
                        covers = read_covers(source, self.plan)
                source = stack.enter_context(self._open())
                # FFmpeg writes a cover beside the classic atoms only; the tags that those lack are named then
                covered = any(is_cover(source.streams[index]) for index in self.plan.packets)
                if not covered and needs_keys(file_tags(source.metadata, cut=not self._begins), container):
                    options["movflags"] = "use_metadata_tags"
            if container in ("matroska", "webm"):
                options["avoid_negative_ts"] = "disabled"
            template, extradata, boxes = self._template(stack)
            if boxes:
                options["strict"] = "unofficial"  # without it MP4's boxes for panoramas are not written
            out = av.open(file, "w", format=container, container_options=options)
            try:
                self._fill(out, source, covers, template, extradata)
            finally:
                out.close()
            if boxes and container in ("mp4", "mov"):
                correct_boxes(file, container)

    def _template(self, stack: contextlib.ExitStack) -> tuple[Any, bytes, bool]:
        """Return a stream that describes the new video where an encoder alone does not.

        With it come the encoder's header, and whether there is side data in the description.
        """
        form, template = self._form, None
        if not self._segments:
            return None, b"", False
        if form.nvenc:
            from yonos_trt.video.nvidia.nvenc import stream_template

            described = stack.enter_context(stream_template(form, _beginning(self._segments[0])))
            template = described.streams.video[0]
        side = replace(self._side_wanted(), siting=None)
        if side != StreamSideData():
            packets = video_packets(self._segments[:1], form.time_base, 0)
            first = [packet for _, packet in itertools.islice(packets, 2)]
            described, header = described_with(form, template, side, first)
            stream = stack.enter_context(described).streams.video[0]
            if fits(stream, self._container):  # WebM, for one, has not all of Matroska's stereo layouts
                return stream, header, True
        return template, b"", False

    def _timecode_fits(self, source: Any, main: Any) -> bool:
        found = [m["timecode"] for m in (main.metadata, source.metadata) if "timecode" in m]
        return all(fits_timecode(code, self._form.rate, self._container) for code in found)

    def _side_wanted(self) -> StreamSideData:
        """Return the source's side data as it is true of the larger picture."""
        form, info = self._form, self._info
        high, wide = Fraction(form.height_px, info.height_px), Fraction(form.width_px, info.width_px)
        side = info.side.scaled(high, wide)
        return replace(side, siting=self._form.coding.siting if side.siting else None)

    def _fill(self, out: Any, source: Any, covers: dict[int, bytes], template: Any, extradata: bytes) -> None:
        """Write header and packets."""
        form, segments, streams = self._form, self._segments, {}
        copies: Iterator[tuple[Fraction, int, Any]] = iter(())

        def add_main() -> Any:
            if form.nvenc and template is None:  # a rehearsal: headers of the device's codecs need a packet
                codec = "vp9" if self._container == "webm" else "mpeg4"
                return out.add_mux_stream(codec, width=form.width_px, height=form.height_px)
            return add_video_stream(out, form, template, extradata)

        if source is None:
            video = add_main()
        else:
            main = main_video_stream(source, "the source")
            streams = add_copied_streams(out, source, self.plan, main.index, add_main, covers)
            cut = not self._begins or not self._timecode_fits(source, main)
            for index, stream in streams.items():
                tags = source.streams[index].metadata
                recoded = index == main.index
                stream.metadata.update(stream_tags(tags, self._container, recoded=recoded, cut=cut))
                stream.disposition = source.streams[index].disposition
            video = streams.pop(main.index)
            out.metadata.update(file_tags(source.metadata, cut=cut))
            out.set_chapters(chapters(source, self.shift, self._window))
            copies = copied_packets(source, self.plan, self._window, self._survey)
            self._streams = {main.index: video.index}
        with opening():
            out.start_encoding()
        # FFmpeg's muxer has a device's header in its own form, but all segments must have begun alike
        wanted = b""
        if segments:
            wanted = segments[0].extradata if form.nvenc else bytes(video.codec_context.extradata or b"")
        if any(segment.extradata != wanted for segment in segments):
            raise InputError(
                "the encoder describes itself differently than when the segments were made (another FFmpeg "
                "or machine?); start again with --overwrite without --resume"
            )
        self.video_index, self.ledger = video.index, {}
        for index, stream in streams.items():
            context = source.streams[index].codec_context
            entry = Entry(stream.type, context.name if context is not None else "")
            self.ledger[stream.index] = (index, entry)
            self._streams[index] = stream.index

        def copy(entry: tuple[Fraction, int, Any]) -> None:
            _, index, packet = entry
            self.ledger[streams[index].index][1].add(bytes(packet))
            ticks = round(self.shift / packet.time_base)
            if ticks:
                packet.pts = packet.pts + ticks if packet.pts is not None else None
                packet.dts = packet.dts + ticks if packet.dts is not None else None
            packet.stream = streams[index]
            out.mux_one(packet)

        waiting = self._next(copies)
        for when, packet in video_packets(segments, form.time_base, round(self.shift / form.time_base)):
            while waiting is not None and waiting[0] <= when:
                copy(waiting)
                waiting = self._next(copies)
            packet.stream = video
            out.mux_one(packet)
        while waiting is not None:
            copy(waiting)
            waiting = self._next(copies)

    def _next(self, copies: Iterator[tuple[Fraction, int, Any]]) -> tuple[Fraction, int, Any] | None:
        """Return the next packet to copy; an error in reading it is not one of the output."""
        try:
            return next(copies, None)
        except (OSError, require_av().error.FFmpegError) as error:
            raise InputError(
                f"{self._source_path} cannot be read on: {getattr(error, 'strerror', None) or error}; is the "
                f"disk or network share still there? If other streams are damaged, leave them out with "
                f"--no-copy-audio or --no-copy-subtitles"
            ) from error

    def lost(self, part: Path) -> list[str]:
        """Return what of the source the written file does not have, beside the streams left out."""
        if self._source_path is None:
            return []
        with self._open() as before, open_input(str(part), name=str(part)) as after:
            main = main_video_stream(before, str(self._source_path))
            return [
                *self._side_wanted().lost(read_side_data(after.streams[self.video_index])),
                *lost_tags(before, after, self._streams, main.index, cut=self._cut),
            ]
