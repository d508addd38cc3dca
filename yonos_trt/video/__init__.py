"""Video files and y4m pipes: decoded, upscaled and encoded again, with all else of the file kept.

`upscale_video` joins the stages; each module here is one of them and knows none of the others.
"""

from __future__ import annotations

from yonos_trt.video.options import VideoOptions, VideoReport
from yonos_trt.video.upscale import OnFrames, Upscale, upscale_video

Progress = OnFrames
"""Its name of before, until 0.2."""

__all__ = ["OnFrames", "Progress", "Upscale", "VideoOptions", "VideoReport", "upscale_video"]
