"""What every training objective of the U-Net has in common.

An objective turns a batch of latents into one scalar per trained group. All objectives see the networks as
``unet(concat(z_t, z_l), t) -> v`` and measure errors of v: at the same ``z_t`` the squared v error equals
the squared x0 error divided by ``sigma_t^2``, which is the weight the paper gives it, without a division.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..schedule import Denoiser, Schedule, add_noise

Logs = dict[str, float]
STUDENT = "unet"  # name of the group that holds the student


@dataclass(frozen=True)
class Latents:
    """A batch as the objectives see it; all (N, C, h, w) float32, zero mean and unit variance.

    Attributes
    ----------
    z_h
        Latents of the HR pictures.
    z_l
        Latents of the LR pictures brought to the HR size.
    z_l_previous
        The same for the less degraded view, where the objective asked for it.
    noise
        ``z_1 ~ N(0, I)``, filled in by ``prepare`` where an objective needs one noise for several networks.
    reference
        The teacher's output for ``noise``, filled in by ``prepare``.
    point, time
        A point between ``noise`` and ``reference`` on the teacher's way, and its t (N,); by ``prepare``.
    """

    z_h: Tensor
    z_l: Tensor
    z_l_previous: Tensor | None = None
    noise: Tensor | None = None
    reference: Tensor | None = None
    point: Tensor | None = None
    time: Tensor | None = None


class Objective(ABC):
    """One training objective.

    Parameters
    ----------
    schedule
        Noise schedule of student and teacher.
    teacher
        Frozen network of the student's shape; None where the objective needs none.

    Attributes
    ----------
    needs_teacher, needs_previous
        Whether the objective needs a teacher, and ``Latents.z_l_previous``.
    groups
        Further trained modules by group, stepped before the student in this order.
    """

    needs_teacher: ClassVar[bool] = False
    needs_previous: ClassVar[bool] = False

    def __init__(self, schedule: Schedule, teacher: nn.Module | None = None) -> None:
        self.schedule = schedule
        self.groups: dict[str, dict[str, nn.Module]] = {}
        if self.needs_teacher and teacher is None:
            raise ValueError(
                f"{type(self).__name__} distils from a teacher; got none. "
                "Name the earlier stage in this stage's 'teacher'."
            )
        self.teacher = teacher
        if teacher is not None:
            teacher.requires_grad_(False).eval()

    @property
    def guide(self) -> Denoiser:
        """The teacher as a function."""
        assert self.teacher is not None, "needs_teacher is set"
        return self.teacher

    def prepare(self, latents: Latents, rng: torch.Generator, group: str = STUDENT) -> Latents:
        """Return ``latents`` with what is computed without gradients, such as a teacher's sample.

        ``rng`` is fresh, its seed belongs to the batch's crops: the same for every group, and again when the
        batch comes again.
        """
        return latents

    @abstractmethod
    def loss(
        self, student: Denoiser, latents: Latents, rng: torch.Generator, *, group: str = STUDENT
    ) -> tuple[Tensor, Logs]:
        """Return the scalar loss of ``group`` for prepared ``latents``, and what to log.

        ``rng`` is a CPU generator: results do not depend on the device the networks are on.
        """


# ----------------------------------------------------------------------------------------------------------
# Pieces that objectives share


def gaussian(like: Tensor, rng: torch.Generator) -> Tensor:
    """Draw N(0, I) of ``like``'s shape, dtype and device."""
    return torch.randn(like.shape, generator=rng).to(like)


def draw_t(count: int, rng: torch.Generator, *, one_probability: float) -> Tensor:
    """Draw t (N,): exactly 1 with ``one_probability`` (the one step that is used), else uniform in [0, 1)."""
    t, one = torch.rand(count, generator=rng), torch.rand(count, generator=rng) < one_probability
    return torch.where(one, torch.ones(()), t)


def choose(values: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Draw ``count`` of ``values`` with replacement."""
    return values[torch.randint(len(values), (count,), generator=rng)]


def predict(network: Denoiser, z_t: Tensor, z_l: Tensor, t: Tensor) -> Tensor:
    """Return ``v (N, C, h, w)``, float32."""
    return network(torch.cat([z_t, z_l], dim=1), t).float()


def one_step(student: Denoiser, schedule: Schedule, noise: Tensor, z_l: Tensor) -> Tensor:
    """Return ``z_0 = alpha_1 z_1 - sigma_1 v(z_1, z_l, 1)``: what the product computes."""
    t = torch.ones(len(noise), device=noise.device)
    return schedule.alpha(1.0) * noise - schedule.sigma(1.0) * predict(student, noise, z_l, t)


def per_sample(error: Tensor) -> Tensor:
    """Return the mean square of ``error (N, ...)`` as (N,)."""
    return error.square().flatten(1).mean(1)


def noised(schedule: Schedule, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Return ``alpha_t z + sigma_t eps`` in float32."""
    return add_noise(schedule, z.float(), eps, t)


def finite_logs(values: Mapping[str, Tensor]) -> Logs:
    """Return the values as plain floats."""
    return {name: float(value.detach()) for name, value in values.items()}
