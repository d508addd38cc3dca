"""Training objectives of the one-step U-Net, one file each, behind :class:`Objective`.

    raw                  data only                                  first teacher
    scale_distillation   teacher of scale s / 2 (YONOS-SR, Alg. 1)  the product
    tad_sr               regression + HFSD + latent discriminator
    sinsr                deterministic map, inverse, agreement
    boot                 bootstrapping along the teacher's ODE
    add                  adversarial diffusion distillation
    oftsr                one step onto the teacher's flow; fidelity-realism dial
    sfddm                T teacher steps into T' student steps, in one fold
    flow_trajectory      the teacher's flow made straight (FluxSR)
    one_step             no distillation

A new one is a file with a subclass, and a line in ``OBJECTIVES``.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from ..schedule import Schedule
from .add import Add
from .base import STUDENT, Latents, Logs, Objective
from .boot import Boot
from .flow_trajectory import FlowTrajectory
from .oftsr import Oftsr
from .one_step import OneStep
from .raw import Raw
from .scale_distillation import ScaleDistillation
from .sfddm import Sfddm
from .sinsr import SinSr
from .tad_sr import TadSr

__all__ = ["OBJECTIVES", "STUDENT", "Latents", "Logs", "Objective", "make_objective"]

OBJECTIVES: dict[str, type[Objective]] = {
    "raw": Raw,
    "scale_distillation": ScaleDistillation,
    "tad_sr": TadSr,
    "sinsr": SinSr,
    "boot": Boot,
    "add": Add,
    "oftsr": Oftsr,
    "sfddm": Sfddm,
    "flow_trajectory": FlowTrajectory,
    "one_step": OneStep,
}


def make_objective(
    name: str, schedule: Schedule, *, channels: int, teacher: nn.Module | None = None, **options: Any
) -> Objective:
    """Return the objective called ``name``.

    Parameters
    ----------
    channels
        Latent channels C, for objectives with a discriminator.
    teacher
        Frozen network of the student's shape.
    options
        The objective's own keyword parameters.

    Raises
    ------
    ValueError
        For an unknown name or option, or a missing teacher.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"unknown objective {name!r}; expected one of {', '.join(OBJECTIVES)}.")
    kind = OBJECTIVES[name]
    known = set(inspect.signature(kind).parameters) - {"schedule", "teacher"}
    if unknown := sorted(set(options) - known):
        raise ValueError(f"objective {name} has no option {unknown}; it has {sorted(known - {'channels'})}.")
    if "channels" in known:
        options["channels"] = channels
    return kind(schedule, teacher, **options)
