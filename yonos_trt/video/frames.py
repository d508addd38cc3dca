"""Upscale one PyAV frame: same pixel format, times and tags, more pixels."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from yonos_trt.errors import ConfigError
from yonos_trt.video.color import planes_to_rgb, rgb_to_planes
from yonos_trt.video.info import MATRIX_RGB, UNSPECIFIED, color_tags_of_frame, decide_coding, frame_planes
from yonos_trt.video.layouts import REPACKED, layout_of

if TYPE_CHECKING:
    from av.video.frame import VideoFrame


def is_video_frame(item: Any) -> bool:
    """Return whether ``item`` is a PyAV frame; does not import PyAV."""
    module = sys.modules.get("av.video.frame")
    return module is not None and isinstance(item, module.VideoFrame)


def upscale_frame(
    frame: VideoFrame, upscale: Callable[[NDArray[Any]], NDArray[Any]], *, siting: str = "left"
) -> VideoFrame:
    """Upscale a frame through RGB.

    Parameters
    ----------
    frame
        Grey, 4:2:0, 4:2:2, 4:4:4 or RGB, 8 to 16 bits. An untagged matrix is taken as BT.709 from 720 lines
        on and as BT.601 below, and the result is tagged with it.
    upscale
        RGB (H, W, 3) uint8 or uint16 -> the same type, larger by one whole factor.
    siting
        Place of the chroma samples, a key of `yonos_trt.video.color.SITINGS`.

    Returns
    -------
    VideoFrame
        A new frame of the same pixel format with the same ``pts``, ``time_base`` and colour tags.

    Raises
    ------
    InputError
        The pixel format or the matrix cannot be converted correctly.
    """
    import av

    layout = layout_of(frame.format.name)
    tags = color_tags_of_frame(frame)
    coding = decide_coding(tags, layout, frame.format.name, "", frame.height, siting)
    planar = frame.reformat(format=layout.name) if frame.format.name in REPACKED else frame
    rgb = upscale(planes_to_rgb(frame_planes(planar, layout), layout, coding))
    height_px, width_px = rgb.shape[:2]
    if height_px % frame.height or width_px % frame.width:
        raise ConfigError(
            f"the upscaler turned {frame.height} x {frame.width} into {height_px} x {width_px}, expected a "
            f"whole multiple"
        )
    result: VideoFrame = av.VideoFrame(width_px, height_px, layout.name)
    rgb_to_planes(rgb, frame_planes(result, layout), layout, coding)
    if frame.format.name in REPACKED:
        result = result.reformat(format=frame.format.name)
    result.pts = frame.pts
    if frame.time_base is not None:
        result.time_base = frame.time_base
    result.color_range = frame.color_range
    result.color_primaries, result.color_trc = frame.color_primaries, frame.color_trc
    unsaid = layout.kind == "yuv" and tags.matrix in (UNSPECIFIED, MATRIX_RGB)
    result.colorspace = coding.matrix if unsaid else frame.colorspace
    return result
