"""What every stage of a training run has in common: its config, its interface, its degraded inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .data import Batch
from .degrade import Degradation, Kind, degrade, degrade_pair
from .model import Bundle
from .schedule import Schedule
from .small import SIZES

Logs = dict[str, float]
_NUMBERS: dict[str, Any] = {
    **dict.fromkeys(("scale", "steps", "batch", "accumulate", "crop_px", "repeat", "warmup_steps"), int),
    **dict.fromkeys(("minutes", "lr", "weight_decay", "clip", "ema"), int | float),
}
KINDS = ("autoencoder", "diffusion", "decoder", "one_step_pixels", "encoder", "small_decoder")


@dataclass(frozen=True)
class StageConfig:
    """One stage of a preset.

    Attributes
    ----------
    name, kind
        Folder name in the run, and which class of :mod:`yonos_train.stages` does it (``autoencoder``,
        ``diffusion``, ``decoder``, ``one_step_pixels``, ``encoder``, ``small_decoder``).
    scale
        Upscaling factor s (0 for the autoencoder).
    init
        Name of the earlier stage whose trained module this one starts from (``None``: fresh, or the
        autoencoder's; always so for ``encoder`` and ``small_decoder``).
    teacher
        Name of the earlier stage that is the frozen teacher (scale distillation).
    steps, minutes
        Budget: whichever is reached first ends the stage; one of the two must be given. Only ``steps`` gives
        bit-exact reruns, because with ``minutes`` the learning rate follows the clock.
    batch, accumulate, crop_px
        Samples a step and process, gradient accumulation, HR crop side.
    repeat
        The batches come again after so many (0: never), with the same noise where an objective keeps a
        teacher's references for them; other randomness stays fresh.
    lr, warmup_steps, weight_decay, clip, ema
        AdamW's learning rate (cosine to 2 % of it), linear warm-up, decay, gradient-norm clip, EMA decay.
    degradation
        Name for :mod:`yonos_train.degrade`, or a mixture: ``{"bicubic": 0.2, "camera": 0.8}``.
    objective
        Name in :mod:`yonos_train.objectives` (diffusion stages; None: by whether there is a teacher).
    loss
        Loss weights and switches of the stage.
    network
        What differs from the run's architecture in the network that the stage trains. ``encoder``:
        ``encoder_width``, ``encoder_blocks``; ``small_decoder``: ``decoder_width``, ``decoder_blocks``,
        ``decoder_fine_width``, ``decoder_fine_blocks``; ``decoder``, lite profile: ``decoder_anti_imaging``.
    """

    name: str
    kind: str
    scale: int = 0
    init: str | None = None
    teacher: str | None = None
    steps: int | None = None
    minutes: float | None = None
    batch: int = 16
    accumulate: int = 1
    crop_px: int = 128
    repeat: int = 0
    lr: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 1e-4
    clip: float = 1.0
    ema: float = 0.999
    degradation: Kind | dict[str, float] = "mixed"
    objective: str | None = None
    loss: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"stage {self.name}: kind got {self.kind!r}, expected one of {', '.join(KINDS)}")
        if self.steps is None and self.minutes is None:
            raise ValueError(f"stage {self.name}: neither steps nor minutes given; give at least one")
        if self.kind in SIZES and self.init is not None:
            raise ValueError(
                f"stage {self.name}: init got {self.init!r}, expected none; {self.kind} stages start from "
                "the networks they distil"
            )
        may_set = {**SIZES, "decoder": ("decoder_anti_imaging",)}.get(self.kind, ())
        if unknown := sorted(set(self.network) - set(may_set)):
            allowed = ", ".join(may_set) or "nothing for this kind of stage"
            raise ValueError(f"stage {self.name}: network got {', '.join(unknown)}, expected {allowed}")
        for name, kind in _NUMBERS.items():
            value = getattr(self, name)
            if value is None and name in ("steps", "minutes"):
                continue
            if not isinstance(value, kind) or isinstance(value, bool) or not math.isfinite(value):
                what = "a whole number" if kind is int else "a number"
                raise ValueError(f"stage {self.name}: {name} got {value!r}, expected {what}")
        Degradation.of(self.degradation)  # refuses unknown names
        for name in ("steps", "minutes", "batch", "accumulate", "crop_px", "lr", "clip"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"stage {self.name}: {name} got {getattr(self, name)}, expected > 0")
        for name in ("batch", "accumulate", "crop_px"):
            if getattr(self, name) > 65536:
                raise ValueError(f"stage {self.name}: {name} got {getattr(self, name)}, expected <= 65536")
        if self.repeat < 0:
            raise ValueError(f"stage {self.name}: repeat got {self.repeat}, expected >= 0")


class Stage:
    """Base: the trained modules by optimiser group, and the loss of a group on a batch."""

    groups: dict[str, dict[str, nn.Module]]  # group -> name -> module; one AdamW a group, in this order

    def loss(self, group: str, batch: Batch, rng: torch.Generator, step: int) -> tuple[Tensor, Logs]:
        """Return the scalar loss of ``group`` and what to log."""
        raise NotImplementedError

    def samples(self, batch: Batch, rng: torch.Generator) -> list[Tensor]:
        """Return pictures ``(N, 3, P, P)`` in [-1, 1] to show side by side: input, output, truth."""
        raise NotImplementedError

    def finish(self, batches: Any) -> None:
        """Do what remains after the last step (``batches(step) -> Batch``); the EMA weights are in the
        modules then."""


class Conditioned(Stage):
    """What the later stages share: degraded inputs and latents from the frozen encoder."""

    config: StageConfig
    encoder: nn.Module
    schedule: Schedule

    def __init__(self, config: StageConfig, bundle: Bundle) -> None:
        self.config, self.schedule = config, bundle.schedule
        self.encoder, self.unet, self.decoder = bundle.encoder, bundle.unet, bundle.decoder
        self.reads_lr = bundle.config.encoder_input == "lr"

    def lr_images(self, batch: Batch, *, previous: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Return ``x_l`` at the stage's scale and, when asked, the less degraded view at the ``previous``
        scale."""
        kind, scale = Degradation.of(self.config.degradation), self.config.scale
        if previous is None:
            return quantise(degrade(batch.x_h, scale, kind, batch.seeds)), None
        x_l, x_prev = degrade_pair(batch.x_h, scale, previous, kind, batch.seeds)
        return quantise(x_l), quantise(x_prev)

    def latent(self, x_l: Tensor, x_h: Tensor) -> Tensor:
        out: Tensor = self.encoder(x_l if self.reads_lr else resize_like(x_l, x_h)).float()
        return out


def resize_like(x_l: Tensor, x_h: Tensor) -> Tensor:
    """Bicubic (Keys a = -0.5) from LR to the HR size: ``(N, 3, H/s, W/s) -> (N, 3, H, W)``; the SDK's gather
    computes the same."""
    return F.interpolate(x_l.float(), size=x_h.shape[-2:], mode="bicubic", antialias=True)


def quantise(x: Tensor) -> Tensor:
    """Round to the 256 levels of an 8-bit picture, clamp to [-1, 1]: what the product is fed."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
