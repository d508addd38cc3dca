"""SinSR: a deterministic sampler ties z_1 to z_0; learn the map, its inverse, and their agreement."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..schedule import Denoiser, Schedule
from .base import STUDENT, Latents, Logs, Objective, finite_logs, gaussian, one_step, predict
from .references import References


def invert(student: Denoiser, z_0: Tensor, z_l: Tensor) -> Tensor:
    """Return the noise that leads to ``z_0``: the network's v at t = 0, where v is the noise itself."""
    return predict(student, z_0, z_l, torch.zeros(len(z_0), device=z_0.device))


class SinSr(Objective):
    """SinSR's three losses for one network that maps z_1 to z_0 at t = 1 and back at t = 0.

    Parameters
    ----------
    distillation
        Weight of ``|| f(z_1) - teacher's z_0 ||^2``.
    inverse
        Weight of ``|| f^-1(teacher's z_0) - z_1 ||^2``.
    truth
        Weight of ``|| f(stopgrad f^-1(z_h)) - z_h ||^2``, which lets the ground truth in without breaking the
        noise-to-picture correspondence.
    teacher_steps
        DDIM steps of the teacher.
    references
        Folder where the teacher's samples are kept between runs; None: computed for every batch.
    """

    needs_teacher = True

    def __init__(
        self,
        schedule: Schedule,
        teacher: nn.Module | None = None,
        *,
        distillation: float = 1.0,
        inverse: float = 1.0,
        truth: float = 1.0,
        teacher_steps: int = 8,
        references: str | None = None,
    ) -> None:
        super().__init__(schedule, teacher)
        self.distillation, self.inverse, self.truth = distillation, inverse, truth
        assert teacher is not None
        self.references = References(teacher, schedule, teacher_steps, references)

    @torch.no_grad()
    def prepare(self, latents: Latents, rng: torch.Generator, group: str = STUDENT) -> Latents:
        noise = gaussian(latents.z_h, rng)
        reference = self.references.sample(noise, latents.z_l, rng.initial_seed())
        return replace(latents, noise=noise, reference=reference)

    def loss(
        self, student: Denoiser, latents: Latents, rng: torch.Generator, *, group: str = STUDENT
    ) -> tuple[Tensor, Logs]:
        z_l, z_1, r = latents.z_l, latents.noise, latents.reference
        assert z_1 is not None, "prepare comes first"
        assert r is not None, "prepare comes first"
        parts = {
            "distillation": (one_step(student, self.schedule, z_1, z_l) - r).square().mean(),
            "inverse": (invert(student, r, z_l) - z_1).square().mean(),
        }
        total = self.distillation * parts["distillation"] + self.inverse * parts["inverse"]
        if self.truth > 0:
            with torch.no_grad():
                own_noise = invert(student, latents.z_h, z_l)
            parts["truth"] = (one_step(student, self.schedule, own_noise, z_l) - latents.z_h).square().mean()
            total = total + self.truth * parts["truth"]
        return total, finite_logs(parts)
