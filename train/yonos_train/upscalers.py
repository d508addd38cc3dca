"""Upscalers for the evaluation: a trained bundle at any number of DDIM steps, and bicubic interpolation.

Whole pictures in torch, for measuring; the product's tiled run time lives in ``yonos_trt``.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from .metrics import Picture, as_tensor
from .model import Bundle
from .schedule import ddim


class BicubicUpscaler:
    """Keys' bicubic interpolation (a = -0.5), uint8 (h, w, 3) -> (s h, s w, 3)."""

    def __init__(self, scale: int) -> None:
        self.scale = scale

    def __call__(self, lr: Picture) -> Picture:
        size = (lr.shape[0] * self.scale, lr.shape[1] * self.scale)
        return _picture(functional.interpolate(as_tensor(lr), size=size, mode="bicubic", antialias=True))


class BundleUpscaler:
    """A trained bundle on whole pictures, uint8 (h, w, 3) -> (s h, s w, 3).

    Parameters
    ----------
    bundle
        Encoder, U-Net and decoder of one scale.
    steps
        DDIM steps >= 1; the product uses 1.
    seed
        Of the noise ``z_1``.
    device
        Where the networks run; they are moved there.
    """

    def __init__(self, bundle: Bundle, *, steps: int = 1, seed: int = 0, device: str = "cpu") -> None:
        if steps < 1:
            raise ValueError(f"steps: got {steps}, expected >= 1")
        self.bundle, self.steps, self.seed, self.device = bundle, steps, seed, device
        for module in (bundle.encoder, bundle.unet, bundle.decoder):
            module.to(device).eval()

    @torch.inference_mode()
    def __call__(self, lr: Picture) -> Picture:
        config = self.bundle.config
        s, multiple = config.scale, config.multiple_px
        sides = [max(-(-n * s // multiple) * multiple, config.smallest_tile_px) // s for n in lr.shape[:2]]
        padding = [(0, side - n) for side, n in zip(sides, lr.shape[:2], strict=True)]
        x_l = as_tensor(np.pad(lr, (*padding, (0, 0)), mode="symmetric")).to(self.device)
        if config.encoder_input == "upsampled":
            x_l = functional.interpolate(x_l, scale_factor=s, mode="bicubic", antialias=True)
        z_l = self.bundle.encoder(x_l)
        noise = torch.randn(z_l.shape, generator=torch.Generator().manual_seed(self.seed)).to(z_l)
        unet, schedule, start = self.bundle.unet, self.bundle.schedule, config.timestep
        z_0 = ddim(unet, schedule, z_l, noise, steps=self.steps, start=start)
        return _picture(self.bundle.decoder(z_0)[:, :, : lr.shape[0] * s, : lr.shape[1] * s])


def _picture(x: torch.Tensor) -> Picture:
    pixels = ((x[0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
    result: Picture = pixels.cpu().numpy()
    return result
