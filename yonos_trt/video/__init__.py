"""Video files and y4m pipes: decoded, upscaled and encoded again, with all else of the file kept.

`upscale_video` joins the stages; each module here is one of them and knows none of the others.
"""

from __future__ import annotations

from yonos_trt.video.options import VideoOptions, VideoReport
from yonos_trt.video.upscale import Progress, Upscale, upscale_video

__all__ = ["Progress", "Upscale", "VideoOptions", "VideoReport", "upscale_video"]
