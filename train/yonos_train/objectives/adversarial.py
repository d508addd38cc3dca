"""What one-step objectives with a latent discriminator have in common."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..schedule import Denoiser, Schedule
from .base import STUDENT, Latents, Logs, Objective, choose, finite_logs, gaussian, one_step
from .latent_gan import LatentGan

Parts = dict[str, tuple[float, Tensor]]  # name -> (weight, value); the loss is their weighted sum


class Adversarial(Objective):
    """Judge the student's one-step latent ``s`` by parts of its own, and by a discriminator of noised
    latents.

    Parameters
    ----------
    channels
        Latent channels C.
    gan
        Weight of the adversarial part; 0 makes no discriminator.
    times
        Times at which latents are noised for the discriminator and for the parts.
    """

    def __init__(
        self, schedule: Schedule, teacher: nn.Module | None, *, channels: int, gan: float, times: Tensor
    ) -> None:
        super().__init__(schedule, teacher)
        self.gan, self.times = gan, times
        if gan > 0:
            if teacher is None:
                raise ValueError(
                    f"{type(self).__name__}: gan > 0 needs a frozen denoiser for its features; "
                    "got teacher None."
                )
            self.adversary = LatentGan(schedule, teacher, channels)
            self.groups = self.adversary.groups

    def prepare(self, latents: Latents, rng: torch.Generator, group: str = STUDENT) -> Latents:
        return replace(latents, noise=gaussian(latents.z_h, rng))

    @abstractmethod
    def parts(self, s: Tensor, latents: Latents, eps: Tensor, t: Tensor) -> Parts:
        """Return the parts beside the adversarial one, for ``s (N, C, h, w)`` and one noise ``eps`` at ``t
        (N,)``."""

    def loss(
        self, student: Denoiser, latents: Latents, rng: torch.Generator, *, group: str = STUDENT
    ) -> tuple[Tensor, Logs]:
        assert latents.noise is not None, "prepare comes first"
        eps = gaussian(latents.z_h, rng)
        t = choose(self.times, len(eps), rng).to(eps)
        if group == "discriminator":
            return self.adversary.discriminate(student, latents, eps, t)
        s = one_step(student, self.schedule, latents.noise, latents.z_l)
        parts = self.parts(s, latents, eps, t)
        if self.gan > 0:
            parts["gan"] = self.gan, self.adversary.generate(s, latents.z_l, eps, t)
        total = sum((weight * value for weight, value in parts.values()), s.new_zeros(()))
        return total, finite_logs({name: value for name, (_, value) in parts.items()})
