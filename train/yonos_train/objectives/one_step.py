"""One-step training without distillation: start from diffusion weights, learn from data only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..schedule import Schedule
from .adversarial import Adversarial, Parts
from .base import Latents


class OneStep(Adversarial):
    """Reconstruction of ``z_h`` in one step, and a discriminator over diffusion times.

    No network's output is a target. With ``gan > 0`` the frozen network only lends its features to the
    discriminator, as in "Towards training one-step diffusion models without distillation" (2025), where the
    diffusion weights matter as an initialisation.

    Parameters
    ----------
    reconstruction, gan
        Weights.
    channels
        Latent channels C.
    t_last
        Latest time at which the discriminator looks.
    """

    def __init__(
        self,
        schedule: Schedule,
        teacher: nn.Module | None = None,
        *,
        channels: int,
        reconstruction: float = 1.0,
        gan: float = 0.0,
        t_last: float = 0.88,
    ) -> None:
        times = t_last * torch.arange(1, 51) / 50
        super().__init__(schedule, teacher, channels=channels, gan=gan, times=times)
        self.reconstruction = reconstruction

    def parts(self, s: Tensor, latents: Latents, eps: Tensor, t: Tensor) -> Parts:
        return {"reconstruction": (self.reconstruction, (s - latents.z_h).square().mean())}
