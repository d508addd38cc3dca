"""Time-aware distillation (TAD-SR) for a variance-preserving, v-predicting teacher.

s = student's one step from z_1;  r = teacher's deterministic sample from the SAME z_1, several steps
L_reg  = mean (s - r)^2
L_hfsd = mean g s,  g = stopgrad(eps_teacher(s_t) - eps_teacher(r_t)),  one Gaussian noise for s_t and r_t
L_gan  = hinge loss of a discriminator that judges noised latents and knows t
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..schedule import Schedule, eps_from_v
from .adversarial import Adversarial, Parts
from .base import STUDENT, Latents, noised, predict
from .references import References


class TadSr(Adversarial):
    """TAD-SR; a weight of 0 switches its part off.

    Parameters
    ----------
    reg, hfsd, gan
        Weights of the three parts; the defaults are the paper's for SD.
    teacher_steps
        DDIM steps of the reference.
    references
        Folder where the teacher's references are kept between runs; None: computed for every batch.
    t_last, t_step
        The times of L_hfsd and L_gan are ``t_step, 2 t_step, ..., t_last``: the paper's 20, 40, ..., 880 of
        1000.
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
        reg: float = 0.2,
        hfsd: float = 1.0,
        gan: float = 0.2,
        teacher_steps: int = 8,
        t_last: float = 0.88,
        t_step: float = 0.02,
        references: str | None = None,
    ) -> None:
        if min(reg, hfsd, gan) < 0 or reg + hfsd + gan <= 0:
            raise ValueError(f"TadSr: weights must be >= 0 and not all 0; got {reg}, {hfsd}, {gan}.")
        if not 0 < t_step <= t_last <= 1:
            raise ValueError(f"TadSr: needs 0 < t_step <= t_last <= 1; got {t_step} and {t_last}.")
        times = t_step * torch.arange(1, round(t_last / t_step) + 1)
        super().__init__(schedule, teacher, channels=channels, gan=gan, times=times)
        self.reg, self.hfsd = reg, hfsd
        assert teacher is not None
        self.references = References(teacher, schedule, teacher_steps, references)

    @torch.no_grad()
    def prepare(self, latents: Latents, rng: torch.Generator, group: str = STUDENT) -> Latents:
        latents, key = super().prepare(latents, rng, group), rng.initial_seed()
        if group != STUDENT or self.reg + self.hfsd == 0:
            return latents
        assert latents.noise is not None
        return replace(latents, reference=self.references.sample(latents.noise, latents.z_l, key))

    def parts(self, s: Tensor, latents: Latents, eps: Tensor, t: Tensor) -> Parts:
        r, parts = latents.reference, Parts()
        if r is not None and self.reg > 0:
            parts["reg"] = self.reg, (s - r).square().mean()
        if r is not None and self.hfsd > 0:
            parts["hfsd"] = self.hfsd, (self.score_difference(s.detach(), latents, r, eps, t) * s).mean()
        return parts

    @torch.no_grad()
    def score_difference(self, s: Tensor, latents: Latents, r: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return ``eps_teacher(s_t) - eps_teacher(r_t)``; the teacher's bias cancels."""
        s_t, r_t = (noised(self.schedule, z, eps, t) for z in (s, r))
        eps_s, eps_r = (
            eps_from_v(self.schedule, z_t, predict(self.guide, z_t, latents.z_l, t), t) for z_t in (s_t, r_t)
        )
        return eps_s - eps_r
