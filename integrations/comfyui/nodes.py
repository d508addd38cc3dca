"""Two nodes: load a model or engine directory, and upscale images with it, frame after frame."""

from __future__ import annotations

import os
from typing import Any

import torch

from yonos_trt import SR
from yonos_trt.backends.choose import shipped_models
from yonos_trt.sizing import Sizing

CATEGORY = "image/upscaling"


class YonosLoad:
    """Open a shipped model or an engine directory; it stays open until the graph no longer uses it."""

    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = ("YONOS_SR",)
    RETURN_NAMES = ("model",)
    DESCRIPTION = "A shipped model of yonos-trt, or an engine directory that yonos-export wrote."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Describe the widgets."""
        names = list(shipped_models())
        default = "lite-x4" if "lite-x4" in names else names[0]
        return {
            "required": {
                "model": (names, {"default": default}),
                "runtime": (["auto", "onnx", "openvino", "tensorrt", "tensorrt-rtx"],),
                "color_fix": (["wavelet", "adain", "none"],),
                "seed": ("INT", {"default": 0, "min": 0, "max": 0xFFFF_FFFF_FFFF_FFFF}),
            },
            "optional": {
                "engine_dir": ("STRING", {"default": "", "tooltip": "A path; goes before the model's name."}),
                "restore": (
                    "FLOAT",
                    {"default": -1.0, "min": -1.0, "max": 1.0, "step": 0.05,
                     "tooltip": "Dial, if there is one: 0 keeps every grain, 1 cleans; -1: the default."},
                ),
            },
        }  # fmt: skip

    def load(
        self,
        model: str,
        runtime: str = "auto",
        color_fix: str = "wavelet",
        seed: int = 0,
        engine_dir: str = "",
        restore: float = -1.0,
    ) -> tuple[SR]:
        """Return the opened model; ComfyUI keeps it while the widgets stay as they are."""
        sr = SR(
            os.path.expanduser(engine_dir.strip()) or model,
            runtime=runtime,
            color_fix=color_fix,
            seed=seed,
            restore=None if restore < 0 else restore,
        )
        return (sr.open(),)


class YonosUpscale:
    """Upscale a batch of images; a mask grows with them."""

    CATEGORY = CATEGORY
    FUNCTION = "upscale"
    RETURN_TYPES = ("IMAGE", "MASK")
    DESCRIPTION = "Tiles without seams, one noise field for all frames, any factor up to the model's."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Describe the inputs."""
        return {
            "required": {
                "model": ("YONOS_SR",),
                "image": ("IMAGE",),
                "factor": (
                    "FLOAT",
                    {"default": 0.0, "min": 0.0, "max": 16.0, "step": 0.05,
                     "tooltip": "Enlargement, such as 2.5; 0: the model's own."},
                ),
            },
            "optional": {"mask": ("MASK",)},
        }  # fmt: skip

    def upscale(
        self, model: SR, image: torch.Tensor, factor: float = 0.0, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Upscale.

        Parameters
        ----------
        model
            From `YonosLoad`.
        image
            (B, H, W, 3 or 4) float in [0, 1]: ComfyUI's IMAGE; values beyond are clipped.
        factor
            Enlargement; 0: the model's own.
        mask
            (B or 1, any height, any width) float in [0, 1], or None.

        Returns
        -------
        (B, s H, s W, C) float32 and (B, s H, s W) float32 on the CPU; without `mask` the second is zero.
        """
        frames = image.detach().to("cpu", torch.float32).clamp(0, 1)
        height, width = model.size_of(
            frames.shape[1], frames.shape[2], Sizing(factor=factor) if factor else None
        )
        tell = _teller(len(frames))
        out = torch.empty((len(frames), height, width, frames.shape[3]))
        for index, frame in enumerate(frames):
            grown = model.upscale(
                frame.contiguous().numpy(),
                size=(height, width),
                on_tiles=lambda done, total, index=index: tell(index + done / total),
            )
            out[index] = torch.from_numpy(grown)
        return out, _grown_mask(mask, len(frames), height, width)


def _grown_mask(mask: torch.Tensor | None, count: int, height: int, width: int) -> torch.Tensor:
    """(B or 1, h, w) -> (count, height, width); LoadImage gives 64 x 64 zeros for pictures without alpha."""
    if mask is None:
        return torch.zeros((count, height, width))
    mask = mask.detach().to("cpu", torch.float32)
    mask = mask[None] if mask.ndim == 2 else mask
    grown = torch.nn.functional.interpolate(
        mask[:, None], size=(height, width), mode="bicubic", antialias=True, align_corners=False
    )[:, 0].clamp(0, 1)
    return grown.expand(count, -1, -1).clone() if len(grown) == 1 else grown


def _teller(count: int) -> Any:
    """Return what moves ComfyUI's bar, and ends the work when its user cancels; outside of it nothing."""
    try:
        from comfy.model_management import throw_exception_if_processing_interrupted
        from comfy.utils import ProgressBar
    except ImportError:
        return lambda done: None
    bar = ProgressBar(1000 * count)

    def tell(done: float) -> None:
        throw_exception_if_processing_interrupted()
        bar.update_absolute(round(1000 * done), 1000 * count)

    return tell
