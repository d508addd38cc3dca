"""Many pictures on many machines: Ray Data distributes, one `Upscaler` a worker does the work (extra
``ray``).

`upscale` is what `yonos batch` calls, `upscale_video` is ``yonos video --ray``; `Upscaler` is a callable
class for the ``map_batches`` of datasets of one's own.
"""

from yonos_trt.ray_data.run import BatchOutcome, upscale
from yonos_trt.ray_data.video import upscale_video
from yonos_trt.ray_data.worker import Upscaler

__all__ = ["BatchOutcome", "Upscaler", "upscale", "upscale_video"]
