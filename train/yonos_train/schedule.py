"""Variance-preserving noise schedule, v-parameterisation, and the deterministic (DDIM) sampler.

Notation of Salimans & Ho 2022: ``z_t = alpha_t z + sigma_t eps``, ``v = alpha_t eps - sigma_t z``,
``z = alpha_t z_t - sigma_t v``, ``eps = sigma_t z_t + alpha_t v``. Time t runs over [0, 1]; t = 1 is noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]  # (concat(z_t, z_l) (N, 2C, h, w), t (N,)) -> v (N, C, h, w)


@dataclass(frozen=True)
class Schedule:
    """A variance-preserving schedule, ``alpha_t^2 + sigma_t^2 = 1``.

    Attributes
    ----------
    kind
        ``"cosine"``: ``alpha_t = cos(pi t / 2)`` with ``alpha_1 = 0`` (zero terminal SNR), the lite
        profile's;
        ``"scaled_linear"``: Stable Diffusion's, ``beta`` linear in its square root over ``num_timesteps``,
        ``alpha_1`` about 0.068.
    beta_start, beta_end, num_timesteps
        Parameters of ``"scaled_linear"`` (defaults: the SD 1.5 / 2.1 model cards' ``scheduler_config.json``).
    """

    kind: str = "cosine"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    num_timesteps: int = 1000

    def __post_init__(self) -> None:
        if self.kind not in ("cosine", "scaled_linear"):
            raise ValueError(f"schedule kind: got {self.kind!r}, expected 'cosine' or 'scaled_linear'")

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(alpha_t, sigma_t)`` for t in [0, 1], same shape and device, computed in float64, as t's
        dtype."""
        if self.kind == "cosine":
            angle = t.double() * (math.pi / 2)
            alpha, sigma = torch.where(t >= 1, 0.0, angle.cos()), angle.sin()
        else:
            root = torch.linspace(
                self.beta_start**0.5, self.beta_end**0.5, self.num_timesteps, dtype=torch.float64
            )
            alpha2 = torch.cumprod(1 - root**2, 0).to(t.device)
            position = t.double().clamp(0, 1) * (self.num_timesteps - 1)
            low = position.floor().long().clamp(max=self.num_timesteps - 2)
            weight = position - low
            a2 = alpha2[low] * (1 - weight) + alpha2[low + 1] * weight
            alpha, sigma = a2.sqrt(), (1 - a2).sqrt()
        return alpha.to(t.dtype), sigma.to(t.dtype)

    def alpha(self, t: float) -> float:
        """Return alpha_t for one t."""
        return float(self.alpha_sigma(torch.tensor([t], dtype=torch.float64))[0])

    def sigma(self, t: float) -> float:
        """Return sigma_t for one t."""
        return float(self.alpha_sigma(torch.tensor([t], dtype=torch.float64))[1])


def _expand(value: Tensor, like: Tensor) -> Tensor:
    return value.view(-1, *([1] * (like.ndim - 1)))


def add_noise(schedule: Schedule, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Return ``z_t = alpha_t z + sigma_t eps`` for ``z, eps (N, C, h, w)``, ``t (N,)``."""
    alpha, sigma = schedule.alpha_sigma(t)
    return _expand(alpha, z) * z + _expand(sigma, z) * eps


def v_target(schedule: Schedule, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Return ``v = alpha_t eps - sigma_t z``."""
    alpha, sigma = schedule.alpha_sigma(t)
    return _expand(alpha, z) * eps - _expand(sigma, z) * z


def x0_from_v(schedule: Schedule, z_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """Return the clean latent ``z = alpha_t z_t - sigma_t v``."""
    alpha, sigma = schedule.alpha_sigma(t)
    return _expand(alpha, z_t) * z_t - _expand(sigma, z_t) * v


def eps_from_v(schedule: Schedule, z_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """Return the noise ``eps = sigma_t z_t + alpha_t v``."""
    alpha, sigma = schedule.alpha_sigma(t)
    return _expand(sigma, z_t) * z_t + _expand(alpha, z_t) * v


def ddim_step(unet: Denoiser, schedule: Schedule, z_l: Tensor, z_t: Tensor, t: Tensor, u: Tensor) -> Tensor:
    """Move ``z_t (N, C, h, w)`` from t to u < t, both ``(N,)``, by one DDIM step (Song et al. 2021).

    u = 0 means the clean latent itself, also where the schedule leaves some noise at t = 0.
    """
    v = unet(torch.cat([z_t, z_l], dim=1), t)
    x0, eps = x0_from_v(schedule, z_t, v, t), eps_from_v(schedule, z_t, v, t)
    return torch.where(_expand(u, z_t) <= 0, x0, add_noise(schedule, x0, eps, u))


def ddim(
    unet: Denoiser,
    schedule: Schedule,
    z_l: Tensor,
    noise: Tensor,
    *,
    steps: int = 1,
    start: float = 1.0,
) -> Tensor:
    """Sample deterministically (DDIM) from ``noise`` at t = 1 to t = 0 in equal time steps.

    Parameters
    ----------
    unet
        ``(concat(z_t, z_l), t) -> v``.
    z_l, noise
        Condition and ``z_1 ~ N(0, I)``, both ``(N, C, h, w)`` float32.
    steps
        Number of U-Net calls, >= 1. One step is the product's ``z_0 = alpha_1 z_1 - sigma_1 v``.
    start
        Time that the noise is said to be at; below 1 only for networks trained so (a bundle's ``timestep``).

    Returns
    -------
    Tensor
        ``z_0 (N, C, h, w)``.
    """
    if steps < 1:
        raise ValueError(f"steps: got {steps}, expected >= 1")
    z = noise
    for index in range(steps):
        t, u = (torch.full((len(z),), start * (1 - k / steps), device=z.device) for k in (index, index + 1))
        z = ddim_step(unet, schedule, z_l, z, t, u)
    return z
