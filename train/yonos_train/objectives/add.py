"""Adversarial diffusion distillation (ADD) in latent space: hinge GAN, teacher's denoising as target."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..schedule import Denoiser, Schedule, x0_from_v
from .base import STUDENT, Latents, Logs, Objective, choose, finite_logs, gaussian, noised, one_step, predict
from .latent_gan import LatentGan


class Add(Objective):
    """``L_gan + weight * alpha_t * || s - stopgrad x0_teacher(s_t, t) ||^2`` (Sauer et al. 2023, eq. 1 and
    4).

    ``s`` is the student's one-step latent, ``s_t`` the same noised to a drawn t. The weight ``alpha_t``
    makes late, noisy times count less. The projected features of the discriminator are the frozen teacher's
    own, as in the latent-space successor of the method.

    Parameters
    ----------
    distillation
        Weight of the second part; 2.5 is the paper's.
    gan
        Weight of the first.
    t_last
        Latest time drawn.
    channels
        Latent channels C.
    """

    needs_teacher = True

    def __init__(
        self,
        schedule: Schedule,
        teacher: nn.Module | None = None,
        *,
        channels: int,
        distillation: float = 2.5,
        gan: float = 1.0,
        t_last: float = 0.9,
    ) -> None:
        super().__init__(schedule, teacher)
        if min(distillation, gan) < 0 or not 0 < t_last < 1:
            raise ValueError(
                f"Add: needs weights >= 0 and 0 < t_last < 1; got {distillation}, {gan}, {t_last}."
            )
        self.distillation, self.gan = distillation, gan
        self.times = t_last * torch.arange(1, 51) / 50
        assert teacher is not None
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
        with torch.no_grad():
            teacher: Denoiser = self.teacher  # type: ignore[assignment]
            s_t = noised(self.schedule, s, eps, t)
            target = x0_from_v(self.schedule, s_t, predict(teacher, s_t, latents.z_l, t), t)
            weight = self.schedule.alpha_sigma(t)[0].view(-1, 1, 1, 1)
        parts = {
            "distillation": (weight * (s - target).square()).mean(),
            "gan": self.adversary.generate(s, latents.z_l, eps, t),
        }
        return self.distillation * parts["distillation"] + self.gan * parts["gan"], finite_logs(parts)
