"""OFTSR: one step that lands on the teacher's flow, with a dial between fidelity and realism.

Stage one trains the teacher (:class:`Raw`), stage two distils it here. A variance-preserving diffusion is a
straight flow in other coordinates: with ``c = alpha_t + sigma_t``, ``tau = sigma_t / c`` and ``x = z_t / c``

    x_tau = (1 - tau) z_0 + tau eps,      dx / dtau = u = eps - z_0,

where the teacher's own estimates of ``eps`` and ``z_0`` give ``u``. Its trajectory runs from
``x_1 = z_1 / c_1`` at ``tau_1`` to the sample at ``tau = 0``. For every t the student predicts, from ``z_1``
alone, the mean velocity from the start to the trajectory's point at t; continued to ``tau = 0`` that gives:

    y_1   one step of the teacher: its mean over all pictures that fit the input      (fidelity)
    y_0   the end of the trajectory: one of those pictures                            (realism)
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..schedule import Denoiser, Schedule, eps_from_v, x0_from_v
from .base import STUDENT, Latents, Logs, Objective, finite_logs, gaussian, one_step, per_sample, predict


class Oftsr(Objective):
    """Make the student's predictions for one input lie on one trajectory of the teacher (Zhu et al. 2024).

    From ``y_t``, which names the point ``x_t`` of the trajectory, the teacher takes one step to u < t; the
    student's ``y_u`` is to agree. The start, where no earlier point exists, is the teacher's own first
    estimate. The paper starts its flow at the LR picture with noise on it; here it starts at noise alone and
    the LR picture is the condition, because the product's step does.

    The dial is the network's time: ``y_t`` is what the step at time ``k = low + (1 - low) (1 - t)`` gives,
    ``alpha_k z_1 - sigma_k v(z_1, z_l, k)``. A bundle with ``timestep`` k is a product with the dial at k.

    Parameters
    ----------
    step
        Length of the teacher's step in t.
    fidelity
        Weight of the start, ``|| y_1 - teacher's one step ||^2``.
    low
        Network time of the most faithful end, in (0, 1); the most realistic is 1.
    """

    needs_teacher = True

    def __init__(
        self,
        schedule: Schedule,
        teacher: nn.Module | None = None,
        *,
        step: float = 0.05,
        fidelity: float = 1.0,
        low: float = 0.5,
    ) -> None:
        super().__init__(schedule, teacher)
        if not (0 < step < 1 and 0 < low < 1 and fidelity >= 0):
            raise ValueError(
                f"Oftsr: needs step and low in (0, 1), fidelity >= 0; got {step}, {low}, {fidelity}."
            )
        self.step, self.fidelity, self.low = step, fidelity, low

    def prepare(self, latents: Latents, rng: torch.Generator, group: str = STUDENT) -> Latents:
        return replace(latents, noise=gaussian(latents.z_l, rng))

    def flow_time(self, t: Tensor) -> Tensor:
        """Return ``tau (N, 1, 1, 1)`` of ``t (N,)``; 0 at t = 0 although SD's schedule leaves noise there."""
        return torch.where(t <= 0, 0.0, self.schedule.alpha_sigma(t)[1] / self.norm(t)).view(-1, 1, 1, 1)

    def norm(self, t: Tensor) -> Tensor:
        """Return ``c (N,)``."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        return alpha + sigma

    def answer(self, student: Denoiser, z_1: Tensor, z_l: Tensor, t: Tensor) -> Tensor:
        """Return the student's ``y_t``."""
        k = self.low + (1 - self.low) * (1 - t)
        return x0_from_v(self.schedule, z_1, predict(student, z_1, z_l, k), k)

    @torch.no_grad()
    def next_answer(self, y_t: Tensor, z_1: Tensor, z_l: Tensor, t: Tensor, u: Tensor) -> Tensor:
        """Return ``y_u`` when the teacher moves the point that ``y_t`` names from t to u < t."""
        tau_1, tau_t, tau_u = (self.flow_time(time) for time in (torch.ones_like(t), t, u))
        start = z_1 / self.norm(torch.ones_like(t)).view(-1, 1, 1, 1)
        x_t = y_t + tau_t / tau_1 * (start - y_t)
        z_t = x_t * self.norm(t).view(-1, 1, 1, 1)
        v = predict(self.guide, z_t, z_l, t)
        velocity = eps_from_v(self.schedule, z_t, v, t) - x0_from_v(self.schedule, z_t, v, t)
        x_u = x_t + (tau_u - tau_t) * velocity
        return start - tau_1 * (x_u - start) / (tau_u - tau_1)

    def loss(
        self, student: Denoiser, latents: Latents, rng: torch.Generator, *, group: str = STUDENT
    ) -> tuple[Tensor, Logs]:
        z_1, z_l = latents.noise, latents.z_l
        assert z_1 is not None, "prepare comes first"
        # a share ``step`` of the samples ends at u = 0 exactly: the product with the dial at realism
        t = torch.rand(len(z_1), generator=rng).clamp_min(self.step).to(z_1)
        u = (t - self.step).clamp_min(0)
        with torch.no_grad():
            target = self.next_answer(self.answer(student, z_1, z_l, t), z_1, z_l, t, u)
            first = one_step(self.guide, self.schedule, z_1, z_l)
        parts = {
            "trajectory": per_sample(self.answer(student, z_1, z_l, u) - target).mean(),
            "fidelity": per_sample(self.answer(student, z_1, z_l, torch.ones_like(t)) - first).mean(),
        }
        return parts["trajectory"] + self.fidelity * parts["fidelity"], finite_logs(parts)
