"""Encode stage: RGB frames in, compressed packets out, carrying every tag of the input."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from yonos_trt.errors import ConfigError
from yonos_trt.host import scheduling_kept
from yonos_trt.video.color import rgb_to_planes
from yonos_trt.video.format import OutputFormat, new_context
from yonos_trt.video.info import frame_planes, require_av
from yonos_trt.video.layouts import REPACKED
from yonos_trt.video.sidedata import StreamSideData, with_side_data

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame


@contextmanager
def opening() -> Iterator[None]:
    """Keep an encoder's library to itself while it opens: our threads' scheduling and stderr stay ours."""
    os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 prints its settings otherwise; 1: errors alone
    with scheduling_kept():
        yield


def configure(context: Any, form: OutputFormat, *, global_header: bool) -> None:
    """Set an unopened encoder context up as ``form`` says."""
    from av.codec.context import Flags

    context.width, context.height, context.pix_fmt = form.width_px, form.height_px, form.pix_fmt
    context.time_base, context.framerate = form.time_base, form.rate
    context.bit_rate = 0
    tags = form.tags
    context.color_range, context.color_primaries = tags.color_range, tags.primaries
    context.color_trc, context.colorspace = tags.transfer, tags.matrix
    if form.sample_aspect_ratio:
        context.sample_aspect_ratio = form.sample_aspect_ratio
    if global_header:
        context.flags |= int(Flags.global_header)
    context.options = dict(form.options)


def open_encoder(form: OutputFormat, *, global_header: bool = True) -> VideoCodecContext:
    """Open an encoder.

    Raises
    ------
    ConfigError
        The encoder refuses the format, or does not know an option.
    """
    av = require_av()
    context: VideoCodecContext = new_context(form.vcodec)
    configure(context, form, global_header=global_header)
    try:
        with opening():
            context.open()
    except (av.error.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"encoder {form.vcodec} does not open for {form.height_px} x {form.width_px} {form.pix_fmt} with "
            f"{dict(form.options)}: {reason}; check -c, --pix-fmt, --preset and -e"
        ) from error
    unknown = sorted(set(context.options) & {k for k, _ in form.options})
    if unknown:
        raise ConfigError(
            f"encoder {form.vcodec} does not know the options {', '.join(unknown)} given with -e"
        )
    return context


def add_video_stream(out: Any, form: OutputFormat, template: Any = None, extradata: bytes = b"") -> Any:
    """Add the new video stream to an output; no frame goes through its encoder.

    The container's header needs what the encoder says of itself, so an encoder is opened as for the segments.
    Where FFmpeg was not the encoder, or more is to be said, ``template`` is a stream that says it, and
    ``extradata`` the encoder's global header if the template has it in another form.

    Raises
    ------
    ConfigError
        The container does not hold the codec.
    """
    try:
        if template is not None:
            video = out.add_stream_from_template(template, opaque=True)
        else:
            video = out.add_stream(form.vcodec, rate=form.rate)
    except ValueError as error:
        raise ConfigError(
            f"{out.format.name} cannot hold what {form.vcodec} makes ({error}); choose another -c, or an "
            f".mkv output"
        ) from error
    context = video.codec_context
    if template is None:
        configure(context, form, global_header=True)
    else:
        context.framerate = form.rate
    if extradata:
        context.extradata = extradata
        context.sample_aspect_ratio = form.sample_aspect_ratio or 0
    video.time_base = form.time_base
    if form.display_matrix is not None:
        video.set_display_matrix(form.display_matrix)
    return video


def described_with(
    form: OutputFormat, template: Any, side: StreamSideData, packets: Iterable[Any]
) -> tuple[Any, bytes]:
    """Return an open input whose only video stream is the new one with side data, for `add_video_stream`.

    Parameters
    ----------
    form, template
        As for `add_video_stream`.
    side
        What PyAV cannot set.
    packets
        The first of the new stream, for what readers take from there.

    Returns
    -------
    container, bytes
        The input, to be closed by the caller, and the encoder's global header.
    """
    av = require_av()
    file = io.BytesIO()
    with av.open(file, "w", format="matroska", container_options={"avoid_negative_ts": "disabled"}) as out:
        video = add_video_stream(out, form, template)
        with opening():
            out.start_encoding()
        extradata = bytes(video.codec_context.extradata or b"")
        for packet in packets:
            packet.stream = video
            out.mux_one(packet)
    return av.open(io.BytesIO(with_side_data(file.getvalue(), side)), format="matroska"), extradata


def make_frame(rgb: NDArray[Any], form: OutputFormat, pts: int) -> VideoFrame:
    """Convert an RGB picture to a frame of the output format.

    Raises
    ------
    ConfigError
        The picture does not have the output's size.
    """
    av = require_av()
    if rgb.shape != (form.height_px, form.width_px, 3):
        raise ConfigError(
            f"the upscaler gave a picture of shape {rgb.shape}, expected ({form.height_px}, {form.width_px}, "
            f"3)"
        )
    frame: VideoFrame = av.VideoFrame(form.width_px, form.height_px, form.layout.name)
    rgb_to_planes(rgb, frame_planes(frame, form.layout), form.layout, form.coding)
    if form.pix_fmt in REPACKED:
        frame = frame.reformat(format=form.pix_fmt)
    frame.pts, frame.time_base = pts, form.time_base
    frame.color_range, frame.colorspace = form.tags.color_range, form.tags.matrix
    return frame


class FrameEncoder:
    """One encoder from its first frame, which becomes a key frame, to its end."""

    def __init__(self, form: OutputFormat) -> None:
        self.form = form
        self._context = open_encoder(form)

    @property
    def extradata(self) -> bytes:
        """The encoder's global header."""
        return bytes(self._context.extradata or b"")

    def encode(self, rgb: NDArray[Any], pts: int) -> Iterator[Packet[Any]]:
        """Encode one picture shown at ``pts``; yield the packets that are ready."""
        yield from self._context.encode(make_frame(rgb, self.form, pts))

    def finish(self) -> Iterator[Packet[Any]]:
        """Yield the packets the encoder still holds. No frame may follow."""
        yield from self._context.encode(None)
