"""One-step training without distillation: start from diffusion weights, learn from data only."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..schedule import Denoiser, Schedule
from .base import STUDENT, Latents, Logs, Objective, choose, finite_logs, gaussian, one_step
from .latent_gan import LatentGan


class OneStep(Objective):
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
        super().__init__(schedule, teacher)
        self.reconstruction, self.gan = reconstruction, gan
        self.times = t_last * torch.arange(1, 51) / 50
        if gan > 0:
            if teacher is None:
                raise ValueError(
                    "OneStep: gan > 0 needs a frozen denoiser for its features; got teacher None."
                )
            self.adversary = LatentGan(schedule, teacher, channels)
            self.groups = self.adversary.groups

    def prepare(self, latents: Latents, rng: torch.Generator, group: str = STUDENT) -> Latents:
        return replace(latents, noise=gaussian(latents.z_h, rng))

    def loss(
        self, student: Denoiser, latents: Latents, rng: torch.Generator, *, group: str = STUDENT
    ) -> tuple[Tensor, Logs]:
        assert latents.noise is not None, "prepare comes first"
        eps = gaussian(latents.z_h, rng)
        t = choose(self.times, len(eps), rng).to(eps)
        if group == "discriminator":
            return self.adversary.discriminate(student, latents, eps, t)
        s = one_step(student, self.schedule, latents.noise, latents.z_l)
        parts = {"reconstruction": (s - latents.z_h).square().mean()}
        total = self.reconstruction * parts["reconstruction"]
        if self.gan > 0:
            parts["gan"] = self.adversary.generate(s, latents.z_l, eps, t)
            total = total + self.gan * parts["gan"]
        return total, finite_logs(parts)
