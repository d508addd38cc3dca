"""Encode stage: RGB frames in, compressed packets out, carrying every tag of the input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from yonos_trt.errors import ConfigError
from yonos_trt.video.color import rgb_to_planes
from yonos_trt.video.format import OutputFormat, new_context
from yonos_trt.video.info import frame_planes, require_av
from yonos_trt.video.layouts import REPACKED

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame

__all__ = ["FrameEncoder", "configure", "make_frame", "open_encoder"]


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
