"""The stages of a training run: what is trained, on which loss, from which earlier stage.

    autoencoder     encoder + decoder   L1 + gradient L1, latent regularised
    diffusion       U-Net               raw v loss (first scale) or scale distillation from the previous scale
    decoder         decoder             one-step latents -> HR picture; encoder and U-Net frozen
    one_step_pixels all three           LR picture -> HR picture, through the one step
    encoder         LR encoder          matches E(resize_like(x_l)) reading the LR picture itself
    small_decoder   small decoder       matches the decoder's pictures

A stage owns its modules and answers ``loss(group, batch, rng)``; the loop owns optimisers, EMA and
checkpoints.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from .autoencoder_stage import AutoencoderStage
from .data import Batch, generator
from .decoder_stage import DecoderStage, OneStepPixelsStage, SmallDecoderStage
from .encoder_stage import EncoderStage
from .model import Bundle
from .objectives import STUDENT, Latents, make_objective
from .schedule import ddim
from .stage import Conditioned, Logs, Stage, StageConfig, resize_like

__all__ = [
    "AutoencoderStage",
    "DecoderStage",
    "DiffusionStage",
    "EncoderStage",
    "OneStepPixelsStage",
    "SmallDecoderStage",
    "Stage",
    "StageConfig",
    "frozen_copy",
]


class DiffusionStage(Conditioned):
    """Train the U-Net on one of :mod:`yonos_train.objectives`.

    Without ``config.objective``: raw diffusion where the stage has no teacher, scale distillation (YONOS-SR,
    Algorithm 1) where it has one. ``config.loss`` holds the objective's options.
    """

    def __init__(
        self, config: StageConfig, bundle: Bundle, *, teacher: nn.Module | None, teacher_scale: int | None
    ) -> None:
        super().__init__(config, bundle)
        self.teacher, self.teacher_scale = teacher, teacher_scale
        self.objective = make_objective(
            config.objective or ("raw" if teacher is None else "scale_distillation"),
            self.schedule,
            channels=bundle.config.latent_channels,
            teacher=teacher,
            **config.loss,
        )
        for modules in self.objective.groups.values():
            vars(self).update(modules)  # as attributes, which the loop moves to its device
        self.groups = {**self.objective.groups, STUDENT: {"unet": self.unet}}

    def loss(self, group: str, batch: Batch, rng: torch.Generator, step: int) -> tuple[Tensor, Logs]:
        x_h, needs_previous = batch.x_h, self.objective.needs_previous
        with torch.no_grad():
            x_l, x_prev = self.lr_images(batch, previous=self.teacher_scale if needs_previous else None)
            z_h, z_l = self.encoder(x_h).float(), self.latent(x_l, x_h)
            latents = Latents(z_h, z_l, None if x_prev is None else self.latent(x_prev, x_h))
        latents = self.objective.prepare(latents, generator(*batch.seeds), group)
        return self.objective.loss(self.unet, latents, rng, group=group)

    def samples(self, batch: Batch, rng: torch.Generator) -> list[Tensor]:
        x_l, _ = self.lr_images(batch)
        z_l = self.latent(x_l, batch.x_h)
        z_0 = ddim(self.unet, self.schedule, z_l, torch.randn(z_l.shape, generator=rng).to(z_l))
        return [resize_like(x_l, batch.x_h), self.decoder(z_0.float()).float(), batch.x_h]


def frozen_copy(module: nn.Module) -> nn.Module:
    """Return a copy that no optimiser touches."""
    return copy.deepcopy(module).requires_grad_(False).eval()
