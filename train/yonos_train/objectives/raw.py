"""Diffusion training from data alone: the first teacher, and the ablation without scale distillation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..schedule import Denoiser, Schedule, v_target
from .base import STUDENT, Latents, Logs, Objective, draw_t, gaussian, noised, per_sample, predict


class Raw(Objective):
    """``|| student(z_t, z_l, t) - (alpha_t eps - sigma_t z_h) ||^2`` (Salimans & Ho 2022).

    Parameters
    ----------
    one_probability
        Share of samples at exactly t = 1, the only time that the one-step product uses.
    """

    def __init__(
        self, schedule: Schedule, teacher: nn.Module | None = None, *, one_probability: float = 0.5
    ) -> None:
        super().__init__(schedule, teacher)
        if not 0 <= one_probability <= 1:
            raise ValueError(f"one_probability is a share in [0, 1]; got {one_probability}.")
        self.one_probability = one_probability

    def target(self, z_t: Tensor, latents: Latents, eps: Tensor, t: Tensor) -> Tensor:
        """Return the v that the student should predict at ``z_t``."""
        return v_target(self.schedule, latents.z_h, eps, t)

    def loss(
        self, student: Denoiser, latents: Latents, rng: torch.Generator, *, group: str = STUDENT
    ) -> tuple[Tensor, Logs]:
        eps = gaussian(latents.z_h, rng)
        t = draw_t(len(eps), rng, one_probability=self.one_probability).to(eps)
        z_t = noised(self.schedule, latents.z_h, eps, t)
        with torch.no_grad():
            target = self.target(z_t, latents, eps, t)
        error = per_sample(predict(student, z_t, latents.z_l, t) - target)
        at_one = error[t >= 1].mean() if bool((t >= 1).any()) else error.new_tensor(float("nan"))
        return error.mean(), {"v_mse": float(error.mean().detach()), "v_mse_t1": float(at_one.detach())}
