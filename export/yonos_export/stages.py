"""The three stages as torch modules, with everything constant folded in.

::

    encoder   image (N, 3, H, W) in [-1, 1]      -> z_l (N, C, H/f, W/f), scaled, mode of the posterior
    step      noise, z_l (N, C, h, w)            -> z_0 (N, C, h, w),     one DDIM step from t = 1 to 0
    decoder   z_0 (N, C, h, w), scaled           -> image (N, 3, H, W),   about [-1, 1], not clamped

A step that starts from the latent takes no noise: ``z_l -> z_0``, where the two may differ in channels.
An encoder with ``encoder_input = "lr"`` reads the LR tile ``(N, 3, H/s, W/s)`` instead. Time step, schedule
and prompt are constants: whatever depends on them alone is folded away when the graph is optimised.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from yonos_export.model_info import ModelInfo, licence_chain
from yonos_trt.engine.manifest import STAGE_TENSORS, Model, Tiles
from yonos_trt.errors import ConfigError

if TYPE_CHECKING:
    from yonos_train.model import Bundle

STAGES = tuple(STAGE_TENSORS)


# ---------------------------------------------------------------------------------------------------------
# Wrappers


class EncoderStage(nn.Module):
    """``image (N, 3, H, W)`` in [-1, 1] -> ``z_l (N, C, H/f, W/f)``."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> Tensor:
        z_l: Tensor = self.encoder(image)
        return z_l


class StepStage(nn.Module):
    """``(noise, z_l) -> z_0 = alpha_1 noise - sigma_1 v(concat(noise, z_l), t)``, all ``(N, C, h, w)``.

    t is a constant of shape ``(1,)``: the network broadcasts it over the batch, so that its embedding and
    every modulation computed from it is a constant of the graph whatever N is.
    """

    def __init__(self, unet: nn.Module, *, alpha_1: float, sigma_1: float, timestep: float) -> None:
        super().__init__()
        self.unet = unet
        self.alpha_1 = alpha_1
        self.sigma_1 = sigma_1
        self.t: Tensor
        self.register_buffer("t", torch.tensor([timestep], dtype=torch.float32), persistent=False)

    def forward(self, noise: Tensor, z_l: Tensor) -> Tensor:
        v: Tensor = self.unet(torch.cat([noise, z_l], dim=1), self.t)
        z_0 = v * -self.sigma_1
        # The lite schedule ends in pure noise: alpha_1 = 0, and the noise enters through the network alone.
        return z_0 if self.alpha_1 == 0.0 else z_0 + self.alpha_1 * noise


class LatentStepStage(nn.Module):
    """``z_l -> z_0 = (z_l - sigma_1 eps(z_l, t)) / alpha_1``: the picture's own latent stands for z_t."""

    def __init__(self, unet: nn.Module, *, alpha_1: float, sigma_1: float, timestep: float) -> None:
        super().__init__()
        self.unet = unet
        self.signal, self.noise = 1 / alpha_1, sigma_1 / alpha_1
        self.t: Tensor
        self.register_buffer("t", torch.tensor([timestep], dtype=torch.float32), persistent=False)

    def forward(self, z_l: Tensor) -> Tensor:
        eps: Tensor = self.unet(z_l, self.t)
        return z_l * self.signal - eps * self.noise


class DecoderStage(nn.Module):
    """``z_0 (N, C, h, w)`` -> ``image (N, 3, H, W)``."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, z_0: Tensor) -> Tensor:
        image: Tensor = self.decoder(z_0)
        return image


# ---------------------------------------------------------------------------------------------------------
# The three together


@dataclass(frozen=True)
class StageSet:
    """The three stages (evaluation mode, CPU, FP32) and what is known about them."""

    encoder: nn.Module
    step: nn.Module
    decoder: nn.Module
    info: ModelInfo

    def module(self, stage: str) -> nn.Module:
        """Return the module of ``"encoder"``, ``"step"`` or ``"decoder"``."""
        module: nn.Module = getattr(self, stage)
        return module


# ---------------------------------------------------------------------------------------------------------
# Sources


def stages_from_bundle(bundle: Bundle) -> StageSet:
    """Wrap the three networks of a checkpoint; the modules are shared, not copied."""
    from yonos_train.model import weights_sha256

    config = bundle.config
    alpha_1, sigma_1 = bundle.schedule.alpha(config.timestep), bundle.schedule.sigma(config.timestep)
    encoder_input = config.encoder_input
    if encoder_input not in ("upsampled", "lr"):
        raise ConfigError(
            f"encoder_input of the checkpoint is {encoder_input!r}, expected 'upsampled' or 'lr'"
        )
    model = Model(
        name=config.name,
        scale=config.scale,
        latent_channels=config.latent_channels,
        latent_factor=config.latent_factor,
        timestep=config.timestep,
        alpha_1=alpha_1,
        sigma_1=sigma_1,
        weights_sha256=weights_sha256(bundle),
        training=dict(config.training),
        licences=licence_chain(config.licence),
    )
    tiles = Tiles(
        smallest_px=config.smallest_tile_px,
        default_px=config.tile_px,
        largest_px=config.largest_tile_px,
        multiple_px=config.multiple_px,
        overlap_px=config.overlap_px,
        encoder_input="lr" if encoder_input == "lr" else "upsampled",
    )
    return make_stages(bundle.encoder, bundle.unet, bundle.decoder, ModelInfo(model, tiles, config.card))


def make_stages(encoder: nn.Module, unet: nn.Module, decoder: nn.Module, info: ModelInfo) -> StageSet:
    """Wrap three networks; `unet` is called with ``(concat(z_t, z_l), t)``, or with ``(z_l, t)``.

    The latter where the step starts from the latent (``info.model.start``); it then predicts the noise.
    """
    model = info.model
    kind = StepStage if model.start == "noise" else LatentStepStage
    step = kind(unet, alpha_1=model.alpha_1, sigma_1=model.sigma_1, timestep=model.timestep)
    return wrap_stages(EncoderStage(encoder), step, DecoderStage(decoder), info)


def wrap_stages(encoder: nn.Module, step: nn.Module, decoder: nn.Module, info: ModelInfo) -> StageSet:
    """Put three finished stages together, in evaluation mode and FP32.

    Raises
    ------
    ConfigError
        A weight is NaN or infinite.
    """
    stages = StageSet(encoder, step, decoder, info)
    for name in STAGES:
        module = stages.module(name).eval().float().requires_grad_(False)
        for key, value in module.state_dict().items():
            if not torch.isfinite(value).all():
                raise ConfigError(f"the {name}'s {key} has NaN or infinity; the weights are damaged")
    return stages


def hash_tensors(modules: dict[str, nn.Module]) -> str:
    """Hash all tensors (name, shape, FP32 bytes), independent of any file layout."""
    digest = hashlib.sha256()
    for name, module in modules.items():
        for key, value in sorted(module.state_dict().items()):
            digest.update(f"{name}.{key}{tuple(value.shape)}".encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
