"""Write YUV4MPEG2 ("y4m"), the uncompressed stream that ffmpeg, mpv, x264 and vspipe read from a pipe."""

from __future__ import annotations

import errno
import logging
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from yonos_trt.errors import ConfigError, InputError
from yonos_trt.video.format import OutputFormat
from yonos_trt.video.info import FULL, UNSPECIFIED, VideoInfo
from yonos_trt.video.layouts import Layout
from yonos_trt.video.sidedata import StreamSideData
from yonos_trt.video.tags import file_tags

log = logging.getLogger(__name__)


def _colour_space(layout: Layout, siting: str) -> str:
    """Return the header's C parameter."""
    depth = "" if layout.bits == 8 else f"p{layout.bits}"
    if layout.kind == "gray":
        return "mono" if layout.bits == 8 else f"mono{layout.bits}"
    if layout.kind == "yuv" and layout.bits <= 16:
        chroma = {(2, 2): "420", (1, 2): "422", (1, 1): "444"}[layout.sub_h, layout.sub_w]
        if chroma == "420" and not depth:
            return {"left": "420mpeg2", "center": "420jpeg", "topleft": "420paldv"}.get(siting, "420mpeg2")
        return chroma + depth
    raise ConfigError(f"y4m cannot hold {layout.name}; choose --pix-fmt yuv444p or yuv444p10le")


def broken_pipe(error: OSError) -> InputError:
    """Say why a stream could not be written on."""
    if error.errno == errno.ENOSPC:
        return InputError(f"the output cannot be written: {error.strerror}; free space where it goes")
    return InputError(
        f"the output pipe broke: {error.strerror or error}; the program that reads it has ended, see its "
        f"message"
    )


def lost_in_y4m(info: VideoInfo, form: OutputFormat, source: Any, main_index: int) -> list[str]:
    """Return what of a source a y4m stream does not carry.

    Parameters
    ----------
    info, form
        The video as it was read and as it is written.
    source, main_index
        PyAV's open input, and its stream that is upscaled.
    """
    lost = []
    for stream in source.streams:
        if stream.index != main_index:
            name = stream.codec_context.name if stream.codec_context is not None else "no codec"
            lost.append(f"stream {stream.index} ({stream.type}, {name})")
    if tags := sorted(file_tags(source.metadata, cut=False)):
        lost.append(f"tags {', '.join(tags)}")
    if source.chapters():
        lost.append("chapters")
    if info.display_matrix is not None:
        lost.append("rotation")
    said = (info.tags.primaries, info.tags.transfer, info.tags.matrix)
    if any(number != UNSPECIFIED for number in said) and form.layout.kind == "yuv":
        lost.append("colour tags (primaries {}, transfer {}, matrix {})".format(*said))
    named = form.layout.bits == 8 and (form.layout.sub_h, form.layout.sub_w) == (2, 2)
    written = StreamSideData(form.coding.siting if named else None)
    return lost + info.side.lost(written)


class Y4mWriter:
    """Writes frames of one format to a binary stream.

    y4m has one frame rate and no timestamps, no matrix and no transfer function: what follows the pipe has to
    be told those that are not its defaults.

    Raises
    ------
    ConfigError
        The format is not one y4m has.
    """

    def __init__(self, sink: BinaryIO, form: OutputFormat) -> None:
        self._sink = sink
        self._form = form
        self._last: tuple[int, int] | None = None  # time and interval
        self.irregular = 0  # frames whose interval differs from the one before: lost on the way
        aspect = form.sample_aspect_ratio
        fields = [
            "YUV4MPEG2",
            f"W{form.width_px}",
            f"H{form.height_px}",
            f"F{form.rate.numerator}:{form.rate.denominator}",
            "Ip",
            f"A{aspect.numerator}:{aspect.denominator}" if aspect else "A0:0",
            f"C{_colour_space(form.layout, form.coding.siting)}",
            f"XCOLORRANGE={'FULL' if form.tags.color_range == FULL else 'LIMITED'}",
        ]
        self._write(" ".join(fields).encode() + b"\n")

    def _write(self, data: Any) -> None:
        try:
            self._sink.write(data)
        except OSError as error:
            raise broken_pipe(error) from error

    def write(self, planes: list[NDArray[Any]], pts: int) -> None:
        """Write one frame.

        Raises
        ------
        InputError
            The reader of the pipe is gone.
        """
        if self._last is not None:
            interval = pts - self._last[0]
            # one tick of rounding is what integer timestamps of a constant rate have
            if self._last[1] and abs(interval - self._last[1]) > 1:
                if not self.irregular:
                    log.warning(
                        "the input's frame rate varies; y4m has one rate, so times change: write a file "
                        "instead"
                    )
                self.irregular += 1
            self._last = (pts, interval)
        else:
            self._last = (pts, 0)
        self._write(b"FRAME\n")
        for plane in planes:
            self._write(np.ascontiguousarray(plane).data)
