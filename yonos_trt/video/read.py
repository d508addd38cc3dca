"""Decode stage: a video file or y4m pipe in, RGB frames with their timestamps out, none lost unnoticed.

Every packet announces the frame it must yield (its presentation time). The decoder's frames are ticked off
against that list in presentation order; what is never ticked off was lost, and is an error naming its time,
or, with ``on_error="repeat"``, a repetition of its neighbour that is counted and listed.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from numpy.typing import NDArray

from yonos_trt.errors import ConfigError, InputError
from yonos_trt.video.color import planes_to_rgb
from yonos_trt.video.info import color_tags, exact_seconds, frame_planes, inspect, open_input, require_av
from yonos_trt.video.layouts import REPACKED
from yonos_trt.video.packets import UNCOUNTED_CODECS, PacketDecoder, Tally

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = ["Frame", "VideoReader", "main_video_stream"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame on its way through the stages."""

    index: int  # 0 = first frame of the output
    pts: int  # presentation time in ticks of the input's time base
    rgb: NDArray[Any] | None  # (H, W, 3) uint8 or uint16, host or device; None for frames that were skipped
    duration: int = 0  # ticks, as far as the input says
    repeated: bool = False  # the frame at this time could not be decoded; this is its neighbour's picture


def main_video_stream(container: Any, name: str) -> VideoStream:
    """Return the largest video stream that is not a cover picture, the first of equals."""
    cover = require_av().stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & cover]
    if not streams:
        kinds = sorted({s.type for s in container.streams}) or ["nothing"]
        raise InputError(f"{name} holds no video stream (found: {', '.join(kinds)}); expected at least one")
    best: VideoStream = max(streams, key=lambda s: (s.width or 0) * (s.height or 0))
    return best


class VideoReader:
    """Opens a video and yields its frames once, in presentation order.

    Parameters
    ----------
    source
        Path, or a binary stream (a pipe), which is then read as y4m and cannot be sought.
    start_s, end_s
        Keep frames with start <= time < end, in seconds since the start of the file.
    on_error
        ``"stop"``: a frame that cannot be decoded is an error; ``"repeat"``: its neighbour is shown instead.
    force
        Go on with interlaced frames (their lines are treated as one progressive picture) and without
        per-frame HDR metadata, which is then dropped.
    siting
        Place of the chroma samples, ``"auto"`` or a key of `yonos_trt.video.color.SITINGS`.

    Raises
    ------
    InputError
        Not a video, nothing decodable, or something that could not be converted correctly.
    """

    _container: Any = None

    def __init__(
        self,
        source: str | Path | BinaryIO,
        *,
        start_s: float | None = None,
        end_s: float | None = None,
        on_error: str = "stop",
        force: bool = False,
        siting: str = "auto",
    ) -> None:
        if on_error not in ("stop", "repeat"):
            raise ConfigError(f"on_error must be 'stop' or 'repeat', got {on_error!r}")
        if start_s is not None and end_s is not None and end_s <= start_s:
            raise ConfigError(f"--end must lie after --start, got {start_s} .. {end_s} s")
        av = require_av()
        piped = not isinstance(source, (str, Path))
        self.name = "standard input" if piped else str(source)
        self._error_types = (av.error.FFmpegError, OSError)
        self._on_error = on_error
        self._force = force
        self._interval_s = (start_s, end_s)
        #: presentation times (seconds) of frames that are repetitions
        self.repeated_s: list[float] = []
        self._source = source
        #: whether the input is a stream that cannot be read again
        self.piped = piped
        self._decoder: PacketDecoder | None = None  # None: FFmpeg's own
        try:
            self._open()
            container_tags = color_tags(self._stream.codec_context)
            clock = Fraction(self._container.start_time or 0, av.time_base)
            base = self._stream.time_base or Fraction(1, 90000)
            self._decoded = self._decode()
            first = next(self._decoded, None)
            if first is None:
                raise InputError(
                    f"{self.name} has a {self._stream.codec_context.name} stream, but no frame of it can be "
                    f"decoded: {self._reason}"
                )
            self._first: VideoFrame | None = first
            self.info = inspect(
                self._stream,
                first,
                name=self.name,
                siting=siting,
                container_start=round(clock / base),
                container_tags=container_tags,
            )
            if self.info.interlaced:
                self._tally.enabled = False
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        """Open the file and go to the key frame before the interval; nothing is decoded yet."""
        piped, start_s = self.piped, self._interval_s[0]
        self._container = open_input(
            self._source if piped else str(self._source),
            name=self.name,
            format="yuv4mpegpipe" if piped else None,
        )
        self._stream = main_video_stream(self._container, self.name)
        self._stream.thread_type = "AUTO"
        self._stream.codec_context.options = {"err_detect": "explode"}
        self._tally = Tally(self._stream.codec_context.name not in UNCOUNTED_CODECS)
        self._reason = "the decoder gave no frame for it"
        self._packets = 0
        if start_s and not piped:
            clock = Fraction(self._container.start_time or 0, require_av().time_base)
            offset = math.floor(
                (clock + exact_seconds(start_s)) / (self._stream.time_base or Fraction(1, 90000))
            )
            with contextlib.suppress(*self._error_types):
                self._container.seek(offset, stream=self._stream, backward=True)

    def decode_with(self, make: Callable[[VideoStream], PacketDecoder]) -> None:
        """Start over, with another decoder than FFmpeg's; before the first of `frames`.

        Parameters
        ----------
        make
            Opens the decoder for the stream.

        Raises
        ------
        InputError
            The file is a pipe, which cannot be read again, or the decoder does not open.
        """
        if self.piped:
            raise InputError(f"{self.name} cannot be read a second time, so FFmpeg has to decode it")
        self.close()
        self._first = None
        self._open()
        self._decoder = make(self._stream)
        self._decoded = self._decode()

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._container is not None:
            self._container.close()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decode(self) -> Iterator[VideoFrame]:
        """Yield what the decoder yields; a packet it refuses leaves its announcement in the tally."""
        packets = self._container.demux(self._stream)
        errors = self._error_types + (self._decoder.errors if self._decoder is not None else ())
        while True:
            try:
                packet = next(packets, None)
            except self._error_types as error:
                raise InputError(
                    f"{self.name} cannot be read on after {self._packets} packets: {error}; "
                    f"is the disk or network share still there?"
                ) from error
            if packet is None:
                return
            if packet.size and not packet.is_discard:
                self._packets += 1
                self._tally.announce(packet.pts)
            try:
                frames = packet.decode() if self._decoder is None else self._decoder.decode(packet)
            except InputError:
                raise
            except errors as error:
                self._reason = str(getattr(error, "strerror", None) or error)
                continue
            for frame in frames:
                if frame.is_corrupt and self._tally.enabled:
                    self._reason = "its data is damaged"
                    continue
                yield frame

    def _check(self, frame: VideoFrame, pts: int) -> None:
        info, when = self.info, f"at {self.info.seconds(pts):.3f} s"
        if frame.interlaced_frame and not self._force:
            raise InputError(
                f"{self.name} is interlaced ({when}): two half pictures a frame, which upscaling would comb "
                f"together; deinterlace it first (ffmpeg -i IN -vf bwdif ...) or pass --force"
            )
        if (frame.height, frame.width, frame.format.name) != (info.height_px, info.width_px, info.pix_fmt):
            raise InputError(
                f"{self.name} changes {when} from {info.height_px} x {info.width_px} {info.pix_fmt} to "
                f"{frame.height} x {frame.width} {frame.format.name}; split it there and upscale the parts"
            )
        if info.dynamic_hdr and not self._force:
            raise InputError(
                f"{self.name} carries per-frame HDR metadata ({', '.join(info.dynamic_hdr)}), which would "
                f"not fit the new picture; pass --force to drop it and keep the base layer with its static "
                f"tags"
            )

    def _timed(self) -> Iterator[tuple[int, VideoFrame, bool]]:
        """Yield (pts, frame, repeated) with every announced time filled."""
        previous: VideoFrame | None = None
        ticks = max(1, round(1 / (self.info.rate * self.info.time_base)))
        last: int | None = None
        while True:
            frame, self._first = self._first, None
            if frame is None:
                frame = next(self._decoded, None)
            pts = None
            if frame is not None:
                pts = frame.pts if frame.pts is not None else frame.dts
                if pts is None:
                    pts = 0 if last is None else last + ticks
                self._check(frame, pts)
            for lost in self._tally.lost_before(pts):
                if not self._inside(lost):
                    continue
                stand_in = previous if previous is not None else frame
                if self._on_error == "stop" or stand_in is None:
                    raise InputError(
                        f"{self.name}: the frame at {self.info.seconds(lost):.3f} s cannot be decoded "
                        f"({self._reason}); pass --on-error repeat to show its neighbour there"
                    )
                if last is None or lost > last:
                    last = lost
                    self.repeated_s.append(round(self.info.seconds(lost), 6))
                    yield lost, stand_in, True
            if frame is None or pts is None:
                self._check_complete()
                return
            if last is not None and pts <= last:
                log.warning(
                    "%s: frame at %.6f s comes late; moved by one tick", self.name, self.info.seconds(pts)
                )
                pts = last + 1
            last = pts
            yield pts, frame, False
            previous = frame

    def _check_complete(self) -> None:
        # only this family's index is exact: AVI, for one, may list a frame that was never there
        exact = self._container.format.name.startswith("mov")
        declared = self.info.frames_declared if exact else None
        if declared is None or self._interval_s != (None, None) or self._packets >= declared:
            return
        message = (
            f"{self.name} ends early: {self._packets} of the {declared} frames its index lists are there"
        )
        if self._on_error == "stop":
            raise InputError(f"{message}; pass --on-error repeat to upscale what there is")
        log.warning("%s", message)

    def _inside(self, pts: int) -> bool:
        start_s, end_s = self._interval_s
        time_s = Fraction(pts - self.info.start_time) * self.info.time_base
        return (start_s is None or time_s >= exact_seconds(start_s)) and (
            end_s is None or time_s < exact_seconds(end_s)
        )

    def frames(self, *, skip: int = 0) -> Iterator[Frame]:
        """Yield the frames, the first ``skip`` of them without a picture (decoded but not converted).

        Raises
        ------
        InputError
            See the class; the message names the time.
        """
        index = 0
        end_s = self._interval_s[1]
        for pts, frame, repeated in self._timed():
            if not self._inside(pts):
                if end_s is not None and self.info.seconds(pts) >= end_s:
                    return
                continue
            rgb = self._rgb(frame) if index >= skip else None
            yield Frame(index, pts, rgb, frame.duration or 0, repeated)
            index += 1

    def _rgb(self, frame: VideoFrame) -> NDArray[Any]:
        layout = self.info.layout
        if self._decoder is not None:
            on_device: Any = frame
            rgb: NDArray[Any] = on_device.rgb(layout, self.info.coding)
            return rgb
        if frame.format.name in REPACKED:
            frame = frame.reformat(format=layout.name)
        return planes_to_rgb(frame_planes(frame, layout), layout, self.info.coding)
