"""A time-aware discriminator of noised latents, on features of a frozen denoiser (TAD-SR)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from ..schedule import Denoiser, Schedule
from .base import Latents, finite_logs, noised, one_step


def encoder_taps(unet: nn.Module) -> list[nn.Module]:
    """Return the modules whose outputs are the features: the end of each down block, and the mid block.

    Knows the lite U-Net and diffusers' U-Nets, bare or inside a wrapper's ``unet``.
    """
    net: Any = getattr(unet, "unet", unet)
    if hasattr(net, "mid_block"):
        return [*net.down_blocks, net.mid_block]
    if hasattr(net, "mid_blocks"):
        return [*(blocks[-1] for blocks in net.down_blocks), net.mid_blocks[-1]]
    raise TypeError(
        f"cannot find the encoder of {type(net).__name__}; expected down_blocks and mid_block(s)."
    )


def encoder_features(unet: nn.Module, z_t: Tensor, z_l: Tensor, t: Tensor) -> list[Tensor]:
    """Run ``unet`` and return its encoder's maps, float32. Gradients flow to ``z_t``."""
    maps: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        maps.append((output[0] if isinstance(output, tuple) else output).float())

    handles = [module.register_forward_hook(keep) for module in encoder_taps(unet)]
    try:
        unet(torch.cat([z_t, z_l], dim=1), t)
    finally:
        for handle in handles:
            handle.remove()
    return maps


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, channels), channels)


class _Head(nn.Module):
    """``h = f + conv0(silu(film(norm(f), t)))``, conv0 starting at zero; then a spectral-norm 1x1 conv."""

    def __init__(self, channels: int, time_dim: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.film = nn.Linear(time_dim, 2 * channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)
        self.logit = spectral_norm(nn.Conv2d(channels, 1, 1))

    def forward(self, f: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
        h = f + self.conv(functional.silu(self.norm(f) * (1 + scale) + shift))
        logits: Tensor = self.logit(h)
        return logits


class LatentDiscriminator(nn.Module):
    """Judge noised latents: one map of logits per feature map of a frozen denoiser.

    Parameters
    ----------
    denoiser
        Frozen U-Net; kept outside the module's own state, so that it is neither trained nor saved with it.
    channels
        Latent channels C.
    time_dim
        Length of the sinusoidal time features.
    """

    def __init__(self, denoiser: nn.Module, channels: int, *, time_dim: int = 64) -> None:
        super().__init__()
        self.__dict__["denoiser"] = denoiser
        self.time_dim = time_dim
        device = next(denoiser.parameters()).device
        with torch.no_grad():
            probe = torch.zeros(1, channels, 16, 16, device=device)
            widths = [
                f.shape[1] for f in encoder_features(denoiser, probe, probe, torch.ones(1, device=device))
            ]
        self.heads = nn.ModuleList(_Head(width, time_dim) for width in widths)

    def forward(self, z_t: Tensor, z_l: Tensor, t: Tensor) -> list[Tensor]:
        """Return logits (N, 1, h_k, w_k) for ``z_t, z_l (N, C, h, w)`` at times ``t (N,)`` in [0, 1]."""
        frequencies = torch.exp(torch.linspace(0.0, math.log(1000.0), self.time_dim // 2, device=t.device))
        phase = t.float()[:, None] * frequencies
        embedding = torch.cat([phase.cos(), phase.sin()], dim=1)
        # torch 2.13's channels-last group norm crashes in backward where its input needs no gradient
        maps = [f.contiguous() for f in encoder_features(self.__dict__["denoiser"], z_t, z_l, t)]
        with torch.autocast(z_t.device.type, enabled=False):
            return [head(f, embedding) for head, f in zip(self.heads, maps, strict=True)]


def discriminator_loss(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Hinge loss, mean over the feature maps."""
    pairs = zip(real, fake, strict=True)
    terms = [functional.relu(1 - r).mean() + functional.relu(1 + f).mean() for r, f in pairs]
    return 0.5 * torch.stack(terms).mean()


def generator_loss(fake: list[Tensor]) -> Tensor:
    """``-mean`` of the logits, mean over the feature maps."""
    return -torch.stack([f.mean() for f in fake]).mean()


class LatentGan:
    """The adversarial part of an objective: both players' losses, at drawn times.

    Parameters
    ----------
    schedule
        Noise schedule.
    denoiser
        Frozen U-Net that lends its features.
    channels
        Latent channels C.
    """

    def __init__(self, schedule: Schedule, denoiser: nn.Module, channels: int) -> None:
        self.schedule = schedule
        self.discriminator = LatentDiscriminator(denoiser, channels)
        self.groups: dict[str, dict[str, nn.Module]] = {
            "discriminator": {"discriminator": self.discriminator}
        }

    def judge(self, z: Tensor, z_l: Tensor, eps: Tensor, t: Tensor) -> list[Tensor]:
        """Return the logits of ``z`` noised to time ``t``."""
        logits: list[Tensor] = self.discriminator(noised(self.schedule, z, eps, t), z_l, t)
        return logits

    def discriminate(
        self, student: Denoiser, latents: Latents, eps: Tensor, t: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the discriminator's loss: HR latents are real, the student's one-step latents are not."""
        assert latents.noise is not None, "prepare comes first"
        with torch.no_grad():
            fake = one_step(student, self.schedule, latents.noise, latents.z_l)
        value = discriminator_loss(
            self.judge(latents.z_h, latents.z_l, eps, t), self.judge(fake, latents.z_l, eps, t)
        )
        return value, finite_logs({"disc": value})

    def generate(self, s: Tensor, z_l: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return the student's loss for its latents ``s``."""
        return generator_loss(self.judge(s, z_l, eps, t))
