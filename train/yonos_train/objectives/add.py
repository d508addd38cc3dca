"""Adversarial diffusion distillation (ADD) in latent space: hinge GAN, teacher's denoising as target."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..schedule import Schedule, x0_from_v
from .adversarial import Adversarial, Parts
from .base import Latents, noised, predict


class Add(Adversarial):
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
        if min(distillation, gan) < 0 or not 0 < t_last < 1:
            raise ValueError(
                f"Add: needs weights >= 0 and 0 < t_last < 1; got {distillation}, {gan}, {t_last}."
            )
        times = t_last * torch.arange(1, 51) / 50
        super().__init__(schedule, teacher, channels=channels, gan=gan, times=times)
        self.distillation = distillation

    def parts(self, s: Tensor, latents: Latents, eps: Tensor, t: Tensor) -> Parts:
        with torch.no_grad():
            s_t = noised(self.schedule, s, eps, t)
            target = x0_from_v(self.schedule, s_t, predict(self.guide, s_t, latents.z_l, t), t)
            weight = self.schedule.alpha_sigma(t)[0].view(-1, 1, 1, 1)
        return {"distillation": (self.distillation, (weight * (s - target).square()).mean())}
