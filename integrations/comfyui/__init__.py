"""The nodes of yonos-trt for ComfyUI; link this folder into ``custom_nodes``."""

from .nodes import YonosLoad, YonosUpscale

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

NODE_CLASS_MAPPINGS = {"YonosLoad": YonosLoad, "YonosUpscale": YonosUpscale}
NODE_DISPLAY_NAME_MAPPINGS = {"YonosLoad": "Load yonos model", "YonosUpscale": "Upscale (yonos)"}
