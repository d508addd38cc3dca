"""The stage that trains the autoencoder, from nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .data import Batch
from .losses import gradient_l1
from .model import Bundle, set_latent_stats
from .stage import Logs, Stage, StageConfig


class AutoencoderStage(Stage):
    """Train encoder and decoder: ``L1 + w_grad gradient L1``, latent kept smooth by noise and small by an L2
    penalty.

    The penalty and the fixed noise together are a VAE's KL term with a fixed posterior variance (constants
    dropped).
    """

    def __init__(self, config: StageConfig, bundle: Bundle) -> None:
        self.config, self.encoder, self.decoder = config, bundle.encoder, bundle.decoder
        self.w_grad = float(config.loss.get("gradient", 0.3))
        self.w_latent = float(config.loss.get("latent", 1e-4))
        self.noise = float(config.loss.get("noise", 0.05))
        self.groups = {"autoencoder": {"encoder": self.encoder, "decoder": self.decoder}}

    def loss(self, group: str, batch: Batch, rng: torch.Generator, step: int) -> tuple[Tensor, Logs]:
        z = self.encoder(batch.x_h)
        noise = torch.randn(z.shape, generator=rng).to(z)
        y = self.decoder(z + self.noise * noise).float()
        l1, grad = (y - batch.x_h).abs().mean(), gradient_l1(y, batch.x_h)
        latent = z.float().square().mean()
        mse = (y.detach() - batch.x_h).square().mean() / 4
        total = l1 + self.w_grad * grad + self.w_latent * latent
        return total, {
            "l1": l1.item(),
            "gradient": grad.item(),
            "latent": latent.item(),
            "psnr_db": -10 * mse.log10().item(),
        }

    def samples(self, batch: Batch, rng: torch.Generator) -> list[Tensor]:
        return [self.decoder(self.encoder(batch.x_h)).float(), batch.x_h]

    @torch.no_grad()
    def finish(self, batches: Any) -> None:
        """Measure the latent's mean and standard deviation per channel over 64 batches and record them in
        both networks."""
        channels = len(self.encoder.get_buffer("mean"))
        total, square, count = torch.zeros(channels).double(), torch.zeros(channels).double(), 0
        for step in range(64):
            x_h = batches(step).x_h
            z = self.encoder(x_h).double().cpu()
            total += z.sum(dim=(0, 2, 3))
            square += z.square().sum(dim=(0, 2, 3))
            count += z.numel() // channels
        mean = total / count
        std = (square / count - mean.square()).clamp_min(1e-8).sqrt()
        set_latent_stats(self.encoder, self.decoder, mean.float(), std.float())
