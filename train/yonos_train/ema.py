"""Exponential moving average of trained weights."""

from __future__ import annotations

import torch
from torch import nn


class Ema:
    """Moving average of a module's parameters; its decay warms up as ``min(decay, (1 + n) / (10 + n))``."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        params = [p.detach() for _, p in module.named_parameters()]
        torch._foreach_lerp_(list(self.values.values()), params, weight)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        for name, p in module.named_parameters():
            p.copy_(self.values[name])
