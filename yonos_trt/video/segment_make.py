"""Make single segments of a clip in whatever order they are asked for: what one of several machines does."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from yonos_trt.video.device import device_path
from yonos_trt.video.options import VideoOptions
from yonos_trt.video.read import Frame
from yonos_trt.video.segment_encode import OpenSegment
from yonos_trt.video.segments import SegmentWriter
from yonos_trt.video.stages import Stopwatch, Upscale, open_reader, upscaled


class SegmentMaker:
    """Makes segments of a clip, with the bits that `upscale_video` gives them.

    The clip is decoded from its beginning, once as long as the numbers go up, since what a frame is called
    depends on those before; frames between are not converted. A context manager.

    Parameters
    ----------
    source, upscale, scale, options
        As `yonos_trt.video.upscale_video`.

    Raises
    ------
    InputError, ConfigError
        As `upscale_video`.
    """

    def __init__(self, source: Path, upscale: Upscale, *, scale: int, options: VideoOptions) -> None:
        self._source, self._upscale, self._scale, self._options = source, upscale, scale, options
        self._open()

    def _open(self) -> None:
        self._reader = open_reader(self._source, self._options)
        self._path = device_path(self._options, self._reader, self._scale)
        self._wanted = range(0)
        self._next = 0
        self._last: Frame | None = None
        self._frames: Iterator[Frame] = self._reader.frames(wanted=lambda index: index in self._wanted)

    def make(self, path: Path, number: int) -> int:
        """Write segment `number` under the name `path`; return its frames, 0 where the clip ends before.

        Raises
        ------
        InputError
            A frame of it, or before, cannot be decoded; or the segment cannot be written.
        """
        count = self._options.segment_frames
        first = number * count
        begin = max(0, first - 1) if self._options.stabilize else first  # the frame before is a state
        state = [] if self._last is None or self._last.index != begin or begin == first else [self._last]
        begin += len(state)
        if begin < self._next:
            self.close()
            self._open()
        self._wanted = range(begin, first + count)
        before = begin - self._next
        if sum(1 for _ in islice(self._frames, before)) < before:
            return 0
        frames = chain(state, self._noted(islice(self._frames, first + count - begin)))
        self._next = first + count
        segment: OpenSegment | None = None
        try:
            with upscaled(
                frames, self._upscale, self._scale, self._options, self._path, Stopwatch()
            ) as results:
                for frame in results:
                    if frame.index < first:
                        continue
                    if segment is None:
                        writer = SegmentWriter(path, first)
                        segment = OpenSegment(self._path.open_encoder(self._path.form), writer)
                    segment.add(frame, round(self._reader.info.seconds(frame.pts), 6))
            if segment is not None:
                segment.finish()
        except BaseException:
            self._next = 1 << 62  # the reader stands anywhere
            if segment is not None:
                segment.writer.abort()
            raise
        return segment.frames if segment is not None else 0

    def _noted(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        for frame in frames:
            self._last = frame
            yield frame

    def close(self) -> None:
        """Close the clip. Idempotent."""
        self._reader.close()

    def __enter__(self) -> SegmentMaker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
