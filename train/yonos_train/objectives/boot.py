"""BOOT-like bootstrapping: no HR latents; the student at one time teaches itself at the next.

For fixed noise ``eps`` the teacher's ODE, written for ``y_t = (z_t - sigma_t eps) / alpha_t``, moves by one
DDIM step from t to u < t as ``y_u = x0 + rho (y_t - x0)`` with ``x0`` the teacher's estimate at ``z_t`` and
``rho = sigma_u alpha_t / (alpha_u sigma_t)``. It starts at ``y_1 = x0(eps, 1)`` and ends at the sample
``y_0``.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..schedule import Denoiser, Schedule, x0_from_v
from .base import (
    STUDENT,
    Latents,
    Logs,
    Objective,
    finite_logs,
    gaussian,
    noised,
    one_step,
    per_sample,
    predict,
)


class Boot(Objective):
    """Learn ``y_t`` for all t from ``eps`` alone; the product reads off ``y_0``.

    The student sees ``concat(eps, z_l)`` and the network time ``1 - t``: its answer at network time 1, which
    is what the product evaluates, is the end of the trajectory.

    Parameters
    ----------
    step
        Length of one bootstrap step in t.
    boundary
        Weight of the start, ``|| y_1 - x0_teacher(eps, 1) ||^2``.
    """

    needs_teacher = True

    def __init__(
        self,
        schedule: Schedule,
        teacher: nn.Module | None = None,
        *,
        step: float = 0.05,
        boundary: float = 1.0,
    ) -> None:
        super().__init__(schedule, teacher)
        if not 0 < step < 1:
            raise ValueError(f"Boot: step must lie in (0, 1); got {step}.")
        self.step, self.boundary = step, boundary

    def prepare(self, latents: Latents, rng: torch.Generator, group: str = STUDENT) -> Latents:
        return replace(latents, noise=gaussian(latents.z_l, rng))

    def answer(self, student: Denoiser, eps: Tensor, z_l: Tensor, t: Tensor) -> Tensor:
        """Return the student's ``y_t``."""
        v = predict(student, eps, z_l, 1 - t)
        return self.schedule.alpha(1.0) * eps - self.schedule.sigma(1.0) * v

    @torch.no_grad()
    def next_state(self, y_t: Tensor, eps: Tensor, z_l: Tensor, t: Tensor, u: Tensor) -> Tensor:
        """Return ``y_u`` after the teacher's DDIM step from t to u < t."""
        z_t = noised(self.schedule, y_t, eps, t)
        x0 = x0_from_v(self.schedule, z_t, predict(self.guide, z_t, z_l, t), t)
        (alpha_t, sigma_t), (alpha_u, sigma_u) = self.schedule.alpha_sigma(t), self.schedule.alpha_sigma(u)
        rho = (sigma_u * alpha_t / (alpha_u * sigma_t)).view(-1, 1, 1, 1)
        return x0 + rho * (y_t - x0)

    def loss(
        self, student: Denoiser, latents: Latents, rng: torch.Generator, *, group: str = STUDENT
    ) -> tuple[Tensor, Logs]:
        eps, z_l = latents.noise, latents.z_l
        assert eps is not None, "prepare comes first"
        t = (self.step + (1 - self.step) * torch.rand(len(eps), generator=rng)).to(eps)
        u = (t - self.step).clamp_min(0)
        with torch.no_grad():
            target = self.next_state(self.answer(student, eps, z_l, t), eps, z_l, t, u)
            start = one_step(self.guide, self.schedule, eps, z_l)
        bootstrap = per_sample(self.answer(student, eps, z_l, u) - target).mean() / self.step**2
        boundary = per_sample(self.answer(student, eps, z_l, torch.ones_like(t)) - start).mean()
        return bootstrap * self.step + self.boundary * boundary, finite_logs(
            {"bootstrap": bootstrap, "boundary": boundary}
        )
