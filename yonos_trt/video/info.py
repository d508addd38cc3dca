"""What a video stream is: size, time base, colour tags, rotation, interlacing, HDR; the output keeps it."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from yonos_trt.errors import ConfigError, InputError, MissingExtraError
from yonos_trt.video.color import Coding
from yonos_trt.video.layouts import ALIASES, WITH_ALPHA, Layout, layout_of
from yonos_trt.video.sidedata import StreamSideData, frame_side_data, read_side_data
from yonos_trt.video.webp import animated_webp

if TYPE_CHECKING:
    import av
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

UNSPECIFIED = 2  # H.273: primaries, transfer and matrix
MATRIX_RGB = 0
FULL, LIMITED = 2, 1  # FFmpeg's colour range numbers; 0 is "not said"
TRANSFER_PQ, TRANSFER_HLG = 16, 18  # H.273 numbers of the two HDR transfer functions
LAST_S = 36_000_000  # times up to here fit every time base in 64 bits
HD_LINES = 720  # untagged video from this height on is taken as BT.709, below as BT.601: what players assume


def exact_seconds(seconds: float) -> Fraction:
    """Return the time a user means by a decimal number: 0.2 is one fifth, not the nearest binary fraction."""
    return Fraction(seconds).limit_denominator(1_000_000)


def check_interval(start_s: float | None, end_s: float | None) -> None:
    """Refuse an interval that is none.

    Raises
    ------
    ConfigError
        A time is negative, infinite, not a number, or beyond 10000 hours; or the end is not after the start.
    """
    for option, time in (("--start", start_s), ("--end", end_s)):
        if time is not None and not 0 <= time <= LAST_S:
            raise ConfigError(f"{option} is {time} s, expected a time from 0 to {LAST_S} s")
    if start_s is not None and end_s is not None and end_s <= start_s:
        raise ConfigError(f"--end must lie after --start, got {start_s} .. {end_s} s")


def require_av() -> Any:
    """Import PyAV, or say how to install it.

    PyAV's log level is left as it is (off): its callback takes the interpreter's lock in FFmpeg's threads,
    which can wait for ever on a thread that closes a decoder while holding it.
    """
    try:
        import av
    except ImportError as error:
        raise MissingExtraError("video", package="av", extra="video", reason=str(error)) from error
    return av


@dataclass(frozen=True, slots=True)
class ColorTags:
    """H.273 numbers as they stand in the stream (2 = unspecified) and FFmpeg's range (0 = not said)."""

    color_range: int
    primaries: int
    transfer: int
    matrix: int

    @property
    def hdr(self) -> bool:
        return self.transfer in (TRANSFER_PQ, TRANSFER_HLG)


@dataclass(frozen=True, slots=True)
class HdrMetadata:
    """Static HDR metadata (SMPTE ST 2086, CTA-861.3) in the integer units of their bitstream messages."""

    #: x, y of green, blue, red, white in 0.00002, then the largest and smallest luminance in 0.0001 cd/m2.
    mastering: tuple[int, ...] | None
    #: largest content light level, largest frame-average light level, in cd/m2.
    light: tuple[int, int] | None

    def encoder_params(self) -> dict[str, str]:
        """Return libx265's options; libx264 has other names for the same values, see `format`."""
        params = {}
        if self.mastering:
            g, b, r, w, lum = (self.mastering[i : i + 2] for i in range(0, 10, 2))
            params["master-display"] = (
                f"G({g[0]},{g[1]})B({b[0]},{b[1]})R({r[0]},{r[1]})WP({w[0]},{w[1]})L({lum[0]},{lum[1]})"
            )
        if self.light:
            params["max-cll"] = f"{self.light[0]},{self.light[1]}"
        return params


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """One video stream, as its header and its first frame describe it."""

    name: str  # what messages call the input
    codec: str
    height_px: int
    width_px: int
    pix_fmt: str
    layout: Layout
    coding: Coding
    tags: ColorTags
    sample_aspect_ratio: Fraction | None
    display_matrix: tuple[int, ...] | None  # 9 integers in FFmpeg's layout; None: shown as stored
    rate: Fraction  # average, a hint for encoders and y4m; frames carry their own times
    time_base: Fraction
    start_time: int  # ticks of time_base at which the file's clock starts
    frames_declared: int | None  # as the container's index says
    interlaced: bool
    hdr: HdrMetadata | None
    dynamic_hdr: tuple[str, ...]  # per-frame HDR metadata that could not be kept
    side: StreamSideData = field(default_factory=StreamSideData)
    survey: Any = (
        None  # a `yonos_trt.video.survey.Survey`: what a reading of all packets found; None for a pipe
    )

    def seconds(self, pts: int) -> float:
        """Return the time of ``pts`` since the start of the file, in seconds."""
        return float((pts - self.start_time) * self.time_base)


def frame_planes(frame: VideoFrame, layout: Layout) -> list[NDArray[Any]]:
    """Return writable views (rows, columns) of a frame's planes; they live as long as the frame does."""
    views = []
    for plane in frame.planes:
        stride = plane.line_size // np.dtype(layout.dtype).itemsize
        view = np.frombuffer(memoryview(plane), layout.dtype).reshape(-1, stride)
        views.append(view[: plane.height, : plane.width])
    return views


def _name_unknown_side_data() -> None:
    """Let PyAV number the kinds of side data that FFmpeg has and it has no name for.

    PyAV 18.1 ends at 27 (FFmpeg 8.1 has EXIF as 31) and raises ValueError at the first one beyond.
    """
    from av.sidedata.sidedata import Type

    def number(cls: Any, value: Any) -> Any:
        if not isinstance(value, int):
            return None
        member = object.__new__(cls)
        member._name_, member._value_ = f"UNKNOWN_{value}", value
        return member

    Type._missing_ = classmethod(number)  # type: ignore[assignment, method-assign]


def _side_data(frame: VideoFrame) -> dict[str, bytes]:
    return {entry.type.name: bytes(entry) for entry in frame_side_data(frame)}


def color_tags(context: Any) -> ColorTags:
    """Return the tags a codec context or a container's header gives."""
    return ColorTags(
        int(context.color_range),
        int(context.color_primaries),
        int(context.color_trc),
        int(context.colorspace),
    )


def _rationals(raw: bytes, count: int) -> list[Fraction]:
    numbers = struct.unpack_from(f"={2 * count}i", raw)
    return [Fraction(n, d) if d else Fraction(0) for n, d in zip(numbers[::2], numbers[1::2], strict=True)]


def _hdr_metadata(side: dict[str, bytes]) -> HdrMetadata | None:
    mastering: tuple[int, ...] | None = None
    light: tuple[int, int] | None = None
    raw = side.get("MASTERING_DISPLAY_METADATA")
    if raw is not None and len(raw) >= 88:
        # AVMasteringDisplayMetadata: R, G, B, white as (x, y), min and max luminance: 10 rationals, 2 flags
        values = _rationals(raw, 10)
        r, g, b, white = (values[i : i + 2] for i in range(0, 8, 2))
        chroma = [round(v * 50000) for pair in (g, b, r, white) for v in pair]
        mastering = (*chroma, round(values[9] * 10000), round(values[8] * 10000))
    raw = side.get("CONTENT_LIGHT_LEVEL")
    if raw is not None and len(raw) >= 8:
        cll, fall = struct.unpack_from("=2I", raw)
        light = (cll, fall)
    return HdrMetadata(mastering, light) if mastering or light else None


def color_tags_of_frame(frame: Any) -> ColorTags:
    """Return the tags a frame carries by itself."""
    return ColorTags(
        int(frame.color_range), int(frame.color_primaries), int(frame.color_trc), int(frame.colorspace)
    )


def decide_coding(
    tags: ColorTags,
    layout: Layout,
    pix_fmt: str,
    codec: str,
    height_px: int,
    siting: str,
    said: str | None = None,
) -> Coding:
    """Decide how to read the samples; the tag wins, and what is missing follows the stated conventions.

    ``siting`` is what the user said, ``"auto"`` if nothing; ``said`` is the stream's tag.
    """
    if layout.kind == "rgb" or (tags.matrix == MATRIX_RGB and layout.kind == "gray"):
        matrix = 1
    elif tags.matrix in (UNSPECIFIED, 3):
        matrix = 1 if height_px >= HD_LINES else 6
    else:
        matrix = tags.matrix
    full = tags.color_range == FULL or (pix_fmt in ALIASES and tags.color_range != LIMITED)
    if siting == "auto":
        siting = said or ("center" if codec in ("mjpeg", "mpeg1video") else "left")
    return Coding(matrix, full, siting)


def inspect(
    stream: VideoStream,
    frame: VideoFrame,
    *,
    name: str,
    siting: str,
    container_start: int,
    container_tags: ColorTags,
) -> VideoInfo:
    """Describe a stream from its header and its first decoded frame.

    Parameters
    ----------
    stream, frame
        PyAV's stream and the first frame decoded from it.
    name
        What error messages call the input.
    siting
        ``"auto"`` or a key of `yonos_trt.video.color.SITINGS`.
    container_start
        Start of the file's clock, in ticks of the stream's time base.
    container_tags
        The tags as they were before decoding; they fill in what the bitstream leaves unspecified.

    Raises
    ------
    InputError
        The pixel format or the matrix is not one that can be converted correctly.
    """
    context = stream.codec_context
    pix_fmt = frame.format.name
    stream_side = read_side_data(stream)
    try:
        layout = layout_of(WITH_ALPHA.get(pix_fmt, pix_fmt))
        tags = color_tags(context)
        tags = ColorTags(
            int(frame.color_range) or tags.color_range or container_tags.color_range,
            tags.primaries if tags.primaries != UNSPECIFIED else container_tags.primaries,
            tags.transfer if tags.transfer != UNSPECIFIED else container_tags.transfer,
            tags.matrix if tags.matrix != UNSPECIFIED else container_tags.matrix,
        )
        coding = decide_coding(tags, layout, pix_fmt, context.name, frame.height, siting, stream_side.siting)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    side = _side_data(frame)
    matrix = side.get("DISPLAYMATRIX")
    display = struct.unpack("=9i", matrix[:36]) if matrix is not None else None
    if display is not None and display == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30):
        display = None
    time_base = stream.time_base or Fraction(1, 90000)
    return VideoInfo(
        name=name,
        codec=context.name,
        height_px=frame.height,
        width_px=frame.width,
        pix_fmt=pix_fmt,
        layout=layout,
        coding=coding,
        tags=tags,
        sample_aspect_ratio=stream.sample_aspect_ratio or context.sample_aspect_ratio or None,
        display_matrix=display,
        rate=Fraction(stream.average_rate or stream.guessed_rate or stream.base_rate or 25),
        time_base=time_base,
        start_time=container_start,
        frames_declared=stream.frames or None,
        interlaced=bool(frame.interlaced_frame),
        hdr=_hdr_metadata(side),
        dynamic_hdr=tuple(k for k in side if k.startswith(("DOVI", "DYNAMIC_HDR"))),
        side=stream_side,
    )


def open_input(source: Any, *, name: str, format: str | None = None) -> av.container.InputContainer:
    """Open a file or a binary stream for reading; every failure is an `InputError` with the reason."""
    lib = require_av()
    _name_unknown_side_data()
    try:
        if isinstance(source, (str, Path)):
            source = animated_webp(Path(source)) or f"file:{source}"  # a name with a colon is no protocol
        container: av.container.InputContainer = lib.open(source, "r", format=format)
    except InputError:
        raise
    except (lib.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        expected = "expected a readable media file"
        if not isinstance(source, (str, Path)) and format is not None:
            expected = "expected y4m: ffmpeg -i IN -f yuv4mpegpipe -strict -1 - | yonos video -i - -o OUT.mkv"
        raise InputError(f"{name} cannot be opened as video: {reason}; {expected}") from error
    return container
