"""Flow trajectory distillation: straighten the teacher's flow from noise to picture into one step.

After FluxSR (Li et al. 2025), whose LR -> HR flow is aligned with a text-to-image model's flow by means of
(noise, picture) pairs that this model made itself. Here that place is the teacher's flow for the LR picture:

    z_1 -> z_t1 -> z_t2 -> ... -> r        the teacher's deterministic sampling, given z_l
    v* = (alpha_t z_t - r) / sigma_t       the velocity that goes from any of its points straight to its end

At t = 1 that is the product's one step; at the other points it keeps the student's flow on the teacher's.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..schedule import Denoiser, Schedule, ddim_step, x0_from_v
from .base import STUDENT, Latents, Logs, Objective, finite_logs, gaussian, per_sample, predict


class FlowTrajectory(Objective):
    """``|| v(z_t, z_l, t) - v* ||^2`` at t = 1 and at one drawn later point of the teacher's trajectory.

    Needs no HR picture's latent: a target never leaves what the teacher can make. ``variation`` is the
    counterpart in latents of the paper's TV-LPIPS, against high-frequency artefacts: the total variation of
    what the one step gets wrong.

    Parameters
    ----------
    trajectory
        Weight of the drawn point; the start has weight 1.
    variation
        Weight of ``mean |gradient of (s - r)|``, s the student's one-step latent.
    teacher_steps
        DDIM steps of the trajectory.
    """

    needs_teacher = True

    def __init__(
        self,
        schedule: Schedule,
        teacher: nn.Module | None = None,
        *,
        trajectory: float = 1.0,
        variation: float = 0.1,
        teacher_steps: int = 8,
    ) -> None:
        super().__init__(schedule, teacher)
        if teacher_steps < 1 or min(trajectory, variation) < 0:
            raise ValueError(
                "FlowTrajectory: needs teacher_steps >= 1 and weights >= 0; "
                f"got {teacher_steps}, {trajectory}, {variation}."
            )
        self.trajectory, self.variation, self.teacher_steps = trajectory, variation, teacher_steps

    @torch.no_grad()
    def prepare(self, latents: Latents, rng: torch.Generator, group: str = STUDENT) -> Latents:
        noise = gaussian(latents.z_l, rng)
        picked = torch.randint(self.teacher_steps, (len(noise),), generator=rng).to(noise.device)
        z, point = noise, noise
        for k in range(self.teacher_steps):
            point = torch.where((picked == k).view(-1, 1, 1, 1), z, point)
            t, u = (torch.full_like(noise[:, 0, 0, 0], 1 - j / self.teacher_steps) for j in (k, k + 1))
            z = ddim_step(self.guide, self.schedule, latents.z_l, z, t, u).float()
        time = 1 - picked.to(noise) / self.teacher_steps
        return replace(latents, noise=noise, reference=z, point=point, time=time)

    def straight(self, z_t: Tensor, end: Tensor, t: Tensor) -> Tensor:
        """Return the v that goes from ``z_t`` to ``end`` in one step."""
        alpha, sigma = (value.view(-1, 1, 1, 1) for value in self.schedule.alpha_sigma(t))
        return (alpha * z_t - end) / sigma

    def loss(
        self, student: Denoiser, latents: Latents, rng: torch.Generator, *, group: str = STUDENT
    ) -> tuple[Tensor, Logs]:
        z_1, r, point, t = latents.noise, latents.reference, latents.point, latents.time
        assert z_1 is not None, "prepare comes first"
        assert r is not None, "prepare comes first"
        assert point is not None, "prepare comes first"
        assert t is not None, "prepare comes first"
        one = torch.ones_like(t)
        v = predict(student, z_1, latents.z_l, one)
        parts = {"start": per_sample(v - self.straight(z_1, r, one)).mean()}
        total = parts["start"]
        if self.trajectory > 0:
            along = predict(student, point, latents.z_l, t) - self.straight(point, r, t)
            parts["trajectory"] = per_sample(along).mean()
            total = total + self.trajectory * parts["trajectory"]
        if self.variation > 0:
            wrong = x0_from_v(self.schedule, z_1, v, one) - r
            parts["variation"] = wrong.diff(dim=-1).abs().mean() + wrong.diff(dim=-2).abs().mean()
            total = total + self.variation * parts["variation"]
        return total, finite_logs(parts)
