"""Scale distillation (YONOS-SR, Algorithm 1): the teacher of scale s / 2 guides the student of scale s."""

from __future__ import annotations

from torch import Tensor, nn

from ..schedule import Schedule
from .base import Latents, predict
from .raw import Raw


class ScaleDistillation(Raw):
    """``|| student(z_t, z_l, t) - teacher(z_t, z_l', t) ||^2`` with one ``z_t`` for both.

    ``z_l'`` is the less degraded view of the same picture, at the teacher's scale: an easier task with a
    sharper answer, of the same architecture and shape.

    Parameters
    ----------
    one_probability
        Share of samples at exactly t = 1.
    truth
        Share of the data's own v mixed into the target; 0 is the paper's.
    """

    needs_teacher = True
    needs_previous = True

    def __init__(
        self,
        schedule: Schedule,
        teacher: nn.Module | None = None,
        *,
        one_probability: float = 0.5,
        truth: float = 0.0,
    ) -> None:
        super().__init__(schedule, teacher, one_probability=one_probability)
        if not 0 <= truth <= 1:
            raise ValueError(f"truth is a share in [0, 1]; got {truth}.")
        self.truth = truth

    def target(self, z_t: Tensor, latents: Latents, eps: Tensor, t: Tensor) -> Tensor:
        if latents.z_l_previous is None:
            raise ValueError(
                "ScaleDistillation needs z_l_previous, the view at the teacher's scale; got None."
            )
        guided = predict(self.guide, z_t, latents.z_l_previous, t)
        if self.truth == 0:
            return guided
        return self.truth * super().target(z_t, latents, eps, t) + (1 - self.truth) * guided
