"""Encode frames into segments, one encoder each; ending one segment overlaps with beginning the next.

An encoder with look-ahead holds dozens of frames back and does most of its work when it is told that no more
will come. That is done in a thread, at most one segment at a time, while the next segment takes frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from yonos_trt.video.encode import FrameEncoder
from yonos_trt.video.format import OutputFormat
from yonos_trt.video.read import Frame
from yonos_trt.video.segments import Segment, SegmentFolder, SegmentWriter


class VideoEncoder(Protocol):
    """What `FrameEncoder` and `yonos_trt.video.nvidia.nvenc.NvencEncoder` have in common."""

    @property
    def extradata(self) -> bytes:
        """The encoder's global header."""

    def encode(self, rgb: Any, pts: int) -> Iterator[Any]:
        """Encode one picture; yield the packets that are ready."""

    def finish(self) -> Iterator[Any]:
        """Yield what is left."""


class OpenSegment:
    """A segment being written: its own encoder, its own file."""

    def __init__(self, encoder: VideoEncoder, writer: SegmentWriter) -> None:
        self.encoder, self.writer = encoder, writer
        self.frames = 0
        self.repeated_s: list[float] = []
        self.last_duration = 0

    def add(self, frame: Frame, time_s: float) -> None:
        """Encode the next frame; ``time_s`` is its time for the list of repeated frames."""
        assert frame.rgb is not None, "only frames of finished segments come without a picture"
        for packet in self.encoder.encode(frame.rgb, frame.pts):
            self._store(packet)
        self.frames += 1
        self.last_duration = frame.duration
        if frame.repeated:
            self.repeated_s.append(time_s)

    def _store(self, packet: Any) -> None:
        self.writer.add(packet.pts, packet.is_keyframe, bytes(packet))

    def finish(self) -> Segment:
        """Encode what the encoder holds, and give the segment its name."""
        try:
            for packet in self.encoder.finish():
                self._store(packet)
            return self.writer.finish(
                extradata=self.encoder.extradata,
                last_duration=self.last_duration,
                repeated_s=self.repeated_s,
            )
        except BaseException:
            self.writer.abort()
            raise


class SegmentedEncoder:
    """Takes frames in order and appends finished segments to a job, in order.

    Parameters
    ----------
    job
        Where segments go; frames are those after ``job.frames``.
    form
        Output format of every segment's encoder.
    segment_frames
        Frames a segment.
    open_encoder
        Makes each segment's encoder.

    Notes
    -----
    A context manager. Leaving it on an error lets a segment that is being finished finish (that work is
    complete) and drops the one that was still taking frames.
    """

    def __init__(
        self,
        job: SegmentFolder,
        form: OutputFormat,
        segment_frames: int,
        open_encoder: Callable[[OutputFormat], VideoEncoder] = FrameEncoder,
    ) -> None:
        self._job, self._form, self._segment_frames = job, form, segment_frames
        self._open_encoder = open_encoder
        self._number, self._first_frame = len(job.segments), job.frames
        self._open: OpenSegment | None = None
        self._ending: Future[Segment] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="yonos-segment")

    def encode(self, frame: Frame, time_s: float) -> None:
        """Encode the next frame; ``time_s`` is its time for the list of repeated frames.

        Raises
        ------
        InputError
            This or the segment before cannot be written.
        """
        if self._open is None:
            encoder = self._open_encoder(self._form)
            self._open = OpenSegment(encoder, self._job.begin(self._number, self._first_frame))
        self._open.add(frame, time_s)
        if self._open.frames == self._segment_frames:
            self._end()

    def _end(self) -> None:
        self._collect()
        if self._open is not None:
            self._number += 1
            self._first_frame += self._open.frames
            self._ending = self._pool.submit(self._open.finish)
            self._open = None

    def _collect(self) -> None:
        """Wait for the segment that is being finished and append it to the job."""
        ending, self._ending = self._ending, None
        if ending is not None:
            self._job.segments.append(ending.result())

    def finish(self) -> None:
        """Finish the last segment, which may be short.

        Raises
        ------
        InputError
            A segment cannot be written.
        """
        self._end()
        self._collect()

    def __enter__(self) -> SegmentedEncoder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._open is not None:
            self._open.writer.abort()
            self._open = None
        self._pool.shutdown(wait=True)
