"""SFDDM: distil a T-step teacher into a T'-step student in one fold instead of halving T again and again."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..schedule import Denoiser, Schedule, ddim_step
from .base import STUDENT, Latents, Logs, Objective, finite_logs, gaussian, noised, per_sample, predict


class Sfddm(Objective):
    """Make one of the student's ``steps`` cover ``teacher_steps / steps`` of the teacher's (Hong et al.
    2024).

    The student's grid is a part of the teacher's, so its inputs ``z_t`` have the teacher's own distribution
    and are drawn from data. From a drawn ``z_t`` the teacher walks its small deterministic steps to the
    student's next time u; the target is the one v whose single DDIM step from t ends at the same point.
    Agreeing at all grid times matches the hidden states as well as the output.

    Parameters
    ----------
    steps
        Steps T' of the student; 1 is the product.
    teacher_steps
        Steps T of the teacher, a multiple of ``steps``.
    """

    needs_teacher = True

    def __init__(
        self,
        schedule: Schedule,
        teacher: nn.Module | None = None,
        *,
        steps: int = 1,
        teacher_steps: int = 8,
    ) -> None:
        super().__init__(schedule, teacher)
        if steps < 1 or teacher_steps < 1 or teacher_steps % steps:
            raise ValueError(
                f"Sfddm: teacher_steps must be a multiple of steps >= 1; got {teacher_steps} and {steps}."
            )
        self.steps, self.fold = steps, teacher_steps // steps

    @torch.no_grad()
    def target(self, z_t: Tensor, z_l: Tensor, t: Tensor) -> Tensor:
        """Return the v that takes ``z_t`` from the grid time t to where the teacher gets in its own steps."""
        z_u, width = z_t, 1 / self.steps
        times = [(t - width * k / self.fold).clamp_min(0) for k in range(self.fold)]
        u = t - width
        u = torch.where(u < width / 2, 0.0, u)  # exactly 0 at the end, where u is rounding noise
        for now, then in zip(times, [*times[1:], u], strict=True):
            z_u = ddim_step(self.guide, self.schedule, z_l, z_u, now, then).float()
        alpha, sigma = (value.view(-1, 1, 1, 1) for value in self.schedule.alpha_sigma(t))
        alpha_u, sigma_u = (value.view(-1, 1, 1, 1) for value in self.schedule.alpha_sigma(u))
        clean = (u <= 0).view(-1, 1, 1, 1)
        alpha_u, sigma_u = torch.where(clean, 1.0, alpha_u), torch.where(clean, 0.0, sigma_u)
        # the student's step: z_u = (alpha_u alpha + sigma_u sigma) z_t + (sigma_u alpha - alpha_u sigma) v
        kept = alpha_u * alpha + sigma_u * sigma
        return (z_u - kept * z_t) / (sigma_u * alpha - alpha_u * sigma)

    def loss(
        self, student: Denoiser, latents: Latents, rng: torch.Generator, *, group: str = STUDENT
    ) -> tuple[Tensor, Logs]:
        eps = gaussian(latents.z_h, rng)
        t = (torch.randint(1, self.steps + 1, (len(eps),), generator=rng) / self.steps).to(eps)
        z_t = noised(self.schedule, latents.z_h, eps, t)
        target = self.target(z_t, latents.z_l, t)
        error = per_sample(predict(student, z_t, latents.z_l, t) - target).mean()
        return error, finite_logs({"v_mse": error})
