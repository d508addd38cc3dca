"""The stage that distils an encoder for LR pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from .data import Batch
from .model import Bundle
from .schedule import ddim
from .small import make_small
from .stage import Conditioned, Logs, StageConfig, resize_like


class EncoderStage(Conditioned):
    """Distil an encoder that reads the LR picture itself: ``E_lr(x_l) ~ E(resize_like(x_l))``, and through
    the U-Net.

    In the lite profile it starts from the canvas encoder's blocks, which work on the same latent grid, and
    only its first convolution is new. Beside a diffusers autoencoder all of it is (sizes: ``network``). The
    other networks stay as they are.
    """

    def __init__(self, config: StageConfig, bundle: Bundle) -> None:
        super().__init__(config, bundle)
        for module in (self.encoder, self.unet, self.decoder):
            module.requires_grad_(False).eval()
        self.lr_encoder = make_small("encoder", bundle, config.network)
        self.w_step = float(config.loss.get("step", 1.0))
        self.groups = {"encoder": {"encoder": self.lr_encoder}}

    def loss(self, group: str, batch: Batch, rng: torch.Generator, step: int) -> tuple[Tensor, Logs]:
        with torch.no_grad():
            x_l, _ = self.lr_images(batch)
            target = self.latent(x_l, batch.x_h)
        z_l = self.lr_encoder(x_l).float()
        latent = (z_l - target).square().mean()
        if self.w_step <= 0:
            return latent, {"latent": latent.item()}
        noise = torch.randn(target.shape, generator=rng).to(target)
        with torch.no_grad():
            target_0 = ddim(self.unet, self.schedule, target, noise).float()
        after = (ddim(self.unet, self.schedule, z_l, noise).float() - target_0).square().mean()
        return latent + self.w_step * after, {"latent": latent.item(), "after_step": after.item()}

    def samples(self, batch: Batch, rng: torch.Generator) -> list[Tensor]:
        x_l, _ = self.lr_images(batch)
        z_l = self.lr_encoder(x_l).float()
        z_0 = ddim(self.unet, self.schedule, z_l, torch.randn(z_l.shape, generator=rng).to(z_l))
        return [resize_like(x_l, batch.x_h), self.decoder(z_0.float()).float(), batch.x_h]
