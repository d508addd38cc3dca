"""The stages of a training run: what is trained, on which loss, from which earlier stage.

    autoencoder   encoder + decoder        L1 + gradient L1, latent regularised
    diffusion     U-Net                    raw v loss (first scale) or scale distillation from the previous
    scale
    decoder       decoder                  one-step latents -> HR picture; encoder and U-Net frozen
    encoder       LR encoder               matches E(resize_like(x_l)) reading the LR picture itself

A stage owns its modules and answers ``loss(group, batch, rng)``; the loop owns optimisers, EMA and
checkpoints.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .data import Batch
from .degrade import Degradation, Kind, degrade, degrade_pair
from .losses import Network, gradient_l1
from .model import Bundle, Encoder, set_latent_stats
from .objectives import STUDENT, Latents, make_objective
from .schedule import Schedule, ddim

Logs = dict[str, float]
NETWORKS: tuple[Network, ...] = ("alex", "vgg")


@dataclass(frozen=True)
class StageConfig:
    """One stage of a preset.

    Attributes
    ----------
    name, kind
        Folder name in the run, and which class of this module does it (``autoencoder``, ``diffusion``,
        ``decoder``, ``encoder``).
    scale
        Upscaling factor s (0 for the autoencoder).
    init
        Name of the earlier stage whose trained module this one starts from (``None``: fresh, or the
        autoencoder's).
    teacher
        Name of the earlier stage that is the frozen teacher (scale distillation).
    steps, minutes
        Budget: whichever is reached first ends the stage; one of the two must be given. Only ``steps`` gives
        bit-exact reruns,
        because with ``minutes`` the learning rate follows the clock.
    batch, accumulate, crop_px
        Samples a step and process, gradient accumulation, HR crop side.
    lr, warmup_steps, weight_decay, clip, ema
        AdamW's learning rate (cosine to 2 % of it), linear warm-up, decay, gradient-norm clip, EMA decay.
    degradation
        Name for :mod:`yonos_train.degrade`.
    objective
        Name in :mod:`yonos_train.objectives` (diffusion stages; None: by whether there is a teacher).
    loss
        Loss weights and switches of the stage.
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
    lr: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 1e-4
    clip: float = 1.0
    ema: float = 0.999
    degradation: Kind = "mixed"
    objective: str | None = None
    loss: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in STAGES:
            raise ValueError(
                f"stage {self.name}: kind got {self.kind!r}, expected one of {', '.join(STAGES)}"
            )
        if self.steps is None and self.minutes is None:
            raise ValueError(f"stage {self.name}: neither steps nor minutes given; give at least one")
        Degradation(self.degradation)  # refuses unknown names
        for name in ("batch", "accumulate", "crop_px", "lr", "clip"):
            if getattr(self, name) <= 0:
                raise ValueError(f"stage {self.name}: {name} got {getattr(self, name)}, expected > 0")


def resize_like(x_l: Tensor, x_h: Tensor) -> Tensor:
    """Bicubic (Keys a = -0.5) from LR to the HR size: ``(N, 3, H/s, W/s) -> (N, 3, H, W)``; the SDK's gather
    computes the same."""
    return F.interpolate(x_l.float(), size=x_h.shape[-2:], mode="bicubic", antialias=True)


class Stage:
    """Base: the trained modules by optimiser group, and the loss of a group on a batch."""

    groups: dict[
        str, dict[str, nn.Module]
    ]  # group -> name -> module; one AdamW a group, stepped in this order

    def loss(self, group: str, batch: Batch, rng: torch.Generator, step: int) -> tuple[Tensor, Logs]:
        """Return the scalar loss of ``group`` and what to log."""
        raise NotImplementedError

    def samples(self, batch: Batch, rng: torch.Generator) -> list[Tensor]:
        """Return pictures ``(N, 3, P, P)`` in [-1, 1] to show side by side: input, output, truth."""
        raise NotImplementedError

    def finish(self, batches: Any) -> None:
        """Do what remains after the last step (``batches(step) -> Batch``); the EMA weights are in the
        modules then."""


# ------------------------------------------------------------------------------------------------------------


class AutoencoderStage(Stage):
    """Train encoder and decoder: ``L1 + w_grad gradient L1``, latent kept smooth by noise and small by an L2
    penalty.

    The penalty and the fixed noise together are a VAE's KL term with a fixed posterior variance (constants
    dropped).
    """

    def __init__(self, config: StageConfig, bundle: Bundle) -> None:
        self.config, self.encoder, self.decoder = config, bundle.encoder, bundle.decoder
        self.w_grad = float(config.loss.get("gradient", 0.3))
        self.w_latent = float(config.loss.get("latent", 1e-4))
        self.noise = float(config.loss.get("noise", 0.05))
        self.groups = {"autoencoder": {"encoder": self.encoder, "decoder": self.decoder}}

    def loss(self, group: str, batch: Batch, rng: torch.Generator, step: int) -> tuple[Tensor, Logs]:
        z = self.encoder(batch.x_h)
        noise = torch.randn(z.shape, generator=rng).to(z)
        y = self.decoder(z + self.noise * noise).float()
        l1, grad = (y - batch.x_h).abs().mean(), gradient_l1(y, batch.x_h)
        latent = z.float().square().mean()
        mse = (y.detach() - batch.x_h).square().mean() / 4
        total = l1 + self.w_grad * grad + self.w_latent * latent
        return total, {
            "l1": l1.item(),
            "gradient": grad.item(),
            "latent": latent.item(),
            "psnr_db": -10 * mse.log10().item(),
        }

    def samples(self, batch: Batch, rng: torch.Generator) -> list[Tensor]:
        return [self.decoder(self.encoder(batch.x_h)).float(), batch.x_h]

    @torch.no_grad()
    def finish(self, batches: Any) -> None:
        """Measure the latent's mean and standard deviation per channel over 64 batches and record them in
        both networks."""
        channels = len(self.encoder.get_buffer("mean"))
        total, square, count = torch.zeros(channels).double(), torch.zeros(channels).double(), 0
        for step in range(64):
            x_h = batches(step).x_h
            z = self.encoder(x_h).double().cpu()
            total += z.sum(dim=(0, 2, 3))
            square += z.square().sum(dim=(0, 2, 3))
            count += z.numel() // channels
        mean = total / count
        std = (square / count - mean.square()).clamp_min(1e-8).sqrt()
        set_latent_stats(self.encoder, self.decoder, mean.float(), std.float())


class _Conditioned(Stage):
    """What the later stages share: degraded inputs and latents from the frozen encoder."""

    config: StageConfig
    encoder: nn.Module
    schedule: Schedule

    def lr_images(self, batch: Batch, *, previous: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Return ``x_l`` at the stage's scale and, when asked, the less degraded view at the ``previous``
        scale."""
        kind, scale = Degradation(self.config.degradation), self.config.scale
        if previous is None:
            return quantise(degrade(batch.x_h, scale, kind, batch.seeds)), None
        x_l, x_prev = degrade_pair(batch.x_h, scale, previous, kind, batch.seeds)
        return quantise(x_l), quantise(x_prev)

    def latent(self, x_l: Tensor, x_h: Tensor) -> Tensor:
        out: Tensor = self.encoder(resize_like(x_l, x_h)).float()
        return out


def quantise(x: Tensor) -> Tensor:
    """Round to the 256 levels of an 8-bit picture, clamp to [-1, 1]: what the product is fed."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


class DiffusionStage(_Conditioned):
    """Train the U-Net on one of :mod:`yonos_train.objectives`.

    Without ``config.objective``: raw diffusion where the stage has no teacher, scale distillation (YONOS-SR,
    Algorithm 1) where it has one. ``config.loss`` holds the objective's options.
    """

    def __init__(
        self, config: StageConfig, bundle: Bundle, *, teacher: nn.Module | None, teacher_scale: int | None
    ) -> None:
        self.config, self.encoder, self.unet, self.decoder = (
            config,
            bundle.encoder,
            bundle.unet,
            bundle.decoder,
        )
        self.schedule = bundle.schedule
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
        latents = self.objective.prepare(latents, rng, group)
        return self.objective.loss(self.unet, latents, rng, group=group)

    def samples(self, batch: Batch, rng: torch.Generator) -> list[Tensor]:
        x_l, _ = self.lr_images(batch)
        z_l = self.latent(x_l, batch.x_h)
        z_0 = ddim(self.unet, self.schedule, z_l, torch.randn(z_l.shape, generator=rng).to(z_l))
        return [resize_like(x_l, batch.x_h), self.decoder(z_0.float()).float(), batch.x_h]


class DecoderStage(_Conditioned):
    """Fine-tune the decoder on one-step latents: L1 + gradient L1 + LPIPS (mixed networks) + hinge PatchGAN.

    The GAN term starts at ``disc_start`` (a step number) with the LDM autoencoder's
    adaptive weight
    ``||grad rec|| / ||grad gan||`` at the decoder's last layer. Encoder and U-Net stay as they are.

    LPIPS (AlexNet) and the discriminator sample with strides, a decoder writes blocks of f px, and crops
    start on block borders: seen always at the same phase, a pattern of period f costs little and grows. So
    both see the pictures from a random offset below ``shift`` px (default 4, AlexNet's stride; 1: none).
    """

    def __init__(self, config: StageConfig, bundle: Bundle, *, weights: dict[str, str]) -> None:
        from .losses import Lpips, PatchDiscriminator

        self.config, self.encoder, self.unet, self.decoder = (
            config,
            bundle.encoder,
            bundle.unet,
            bundle.decoder,
        )
        self.schedule = bundle.schedule
        loss = config.loss
        self.w_grad = float(loss.get("gradient", 0.3))
        self.w_l1 = float(loss.get("l1", 1.0))
        self.w_lpips: dict[Network, float] = {net: float(loss.get(f"lpips_{net}", 0.0)) for net in NETWORKS}
        self.lpips = nn.ModuleDict(
            {n: Lpips(n, required(weights, f"lpips_{n}")) for n, w in self.w_lpips.items() if w > 0}
        )
        self.vgg_share = float(loss.get("vgg_share", 1.0))
        self.w_gan, self.disc_start = float(loss.get("gan", 0.0)), int(loss.get("disc_start", 0))
        self.shift_px = int(loss.get("shift", 4))
        self.groups = {"decoder": {"decoder": self.decoder}}
        if self.w_gan > 0:
            self.discriminator = PatchDiscriminator(width=int(loss.get("disc_width", 32)))
            self.groups = {"discriminator": {"discriminator": self.discriminator}, **self.groups}
        for module in (self.encoder, self.unet):
            module.requires_grad_(False).eval()

    @torch.no_grad()
    def one_step(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        x_l, _ = self.lr_images(batch)
        z_l = self.latent(x_l, batch.x_h)
        noise = torch.randn(z_l.shape, generator=rng).to(z_l)
        return ddim(self.unet, self.schedule, z_l, noise).float(), x_l

    def loss(self, group: str, batch: Batch, rng: torch.Generator, step: int) -> tuple[Tensor, Logs]:
        from .losses import gradient_ratio, hinge_discriminator, hinge_generator

        x_h = batch.x_h
        z_0, _ = self.one_step(batch, rng)
        if group == "discriminator":
            if step < self.disc_start:
                return sum((p.sum() * 0 for p in self.discriminator.parameters()), torch.zeros(())), {}
            with torch.no_grad():
                fake = self.decoder(z_0).float()
            real, fake = shifted(self.shift_px, rng, x_h, fake)
            d = hinge_discriminator(self.discriminator(real).float(), self.discriminator(fake).float())
            return d, {"disc": d.item()}
        y = self.decoder(z_0).float()
        l1, grad = (y - x_h).abs().mean(), gradient_l1(y, x_h)
        total = self.w_l1 * l1 + self.w_grad * grad
        logs = {"l1": l1.item(), "gradient": grad.item()}
        seen, truth = shifted(self.shift_px, rng, y, x_h)
        for net in (name for name, weight in self.w_lpips.items() if weight > 0):
            count = len(y) if net == "alex" else max(1, round(self.vgg_share * len(y)))
            distance = self.lpips[net](seen[:count], truth[:count]).float().mean()
            total = total + self.w_lpips[net] * distance
            logs[f"lpips_{net}"] = distance.item()
        logs["psnr_db"] = -10 * ((y.detach().clamp(-1, 1) - x_h).square().mean() / 4).log10().item()
        if self.w_gan <= 0 or step < self.disc_start:
            return total, logs
        # Adaptive weight. Both losses reach the decoder through y alone: their gradients at y are taken once,
        # carried to the last layer for the weight, and handed on as one linear loss with the same gradient.
        gan = hinge_generator(self.discriminator(seen).float())
        at_y = [torch.autograd.grad(loss, y)[0] for loss in (total, gan)]
        last = last_layer(self.decoder)
        weight = gradient_ratio(*(torch.autograd.grad(y, last, g, retain_graph=True)[0] for g in at_y))
        linear = (y * (at_y[0] + self.w_gan * weight * at_y[1])).sum()
        logs.update(gan=gan.item(), gan_weight=float(weight))
        return linear - linear.detach() + total.detach() + self.w_gan * weight * gan.detach(), logs

    def samples(self, batch: Batch, rng: torch.Generator) -> list[Tensor]:
        z_0, x_l = self.one_step(batch, rng)
        return [resize_like(x_l, batch.x_h), self.decoder(z_0).float(), batch.x_h]


def shifted(below_px: int, rng: torch.Generator, *pictures: Tensor) -> list[Tensor]:
    """Return ``pictures`` ``(N, 3, H, W)`` from one random offset in [0, below_px) a side on, all of
    ``H - below_px + 1`` rows and as many columns less, channels last."""
    top, left = torch.randint(below_px, (2,), generator=rng).tolist()
    height, width = (side - below_px + 1 for side in pictures[0].shape[-2:])
    return [
        x[..., top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
        for x in pictures
    ]


class EncoderStage(_Conditioned):
    """Distil an encoder that reads the LR picture itself: ``E_lr(x_l) ~ E(resize_like(x_l))``, and through
    the U-Net."""

    def __init__(self, config: StageConfig, bundle: Bundle) -> None:
        self.config, self.encoder, self.unet, self.decoder = (
            config,
            bundle.encoder,
            bundle.unet,
            bundle.decoder,
        )
        self.schedule = bundle.schedule
        self.lr_encoder = Encoder(bundle.config.architecture, lr_scale=config.scale)
        set_latent_stats(
            self.lr_encoder, self.lr_encoder, self.encoder.get_buffer("mean"), self.encoder.get_buffer("std")
        )
        self.w_step = float(config.loss.get("step", 1.0))
        self.groups = {"encoder": {"encoder": self.lr_encoder}}

    def loss(self, group: str, batch: Batch, rng: torch.Generator, step: int) -> tuple[Tensor, Logs]:
        with torch.no_grad():
            x_l, _ = self.lr_images(batch)
            target = self.latent(x_l, batch.x_h)
            noise = torch.randn(target.shape, generator=rng).to(target)
            target_0 = ddim(self.unet, self.schedule, target, noise).float()
        z_l = self.lr_encoder(x_l).float()
        latent = (z_l - target).square().mean()
        after = (ddim(self.unet, self.schedule, z_l, noise).float() - target_0).square().mean()
        return latent + self.w_step * after, {"latent": latent.item(), "step": after.item()}

    def samples(self, batch: Batch, rng: torch.Generator) -> list[Tensor]:
        x_l, _ = self.lr_images(batch)
        z_l = self.lr_encoder(x_l).float()
        z_0 = ddim(self.unet, self.schedule, z_l, torch.randn(z_l.shape, generator=rng).to(z_l))
        return [resize_like(x_l, batch.x_h), self.decoder(z_0.float()).float(), batch.x_h]


STAGES: dict[str, type[Stage]] = {
    "autoencoder": AutoencoderStage,
    "diffusion": DiffusionStage,
    "decoder": DecoderStage,
    "encoder": EncoderStage,
}


def required(weights: dict[str, str], name: str) -> str:
    """Return the path of a perceptual network's weights, or refuse: a loss is never dropped silently."""
    if not weights.get(name):
        raise ValueError(
            f"{name}: the stage's loss uses this network but no weights file was given; "
            f"pass --weights {name}=FILE, or set the loss weight {name} to 0"
        )
    return weights[name]


def last_layer(decoder: nn.Module) -> Tensor:
    """Return the weight of a decoder's last convolution, lite or diffusers'."""
    inner = decoder.get_submodule("decoder") if hasattr(decoder, "decoder") else decoder
    return inner.get_submodule("conv_out").get_parameter("weight")


def frozen_copy(module: nn.Module) -> nn.Module:
    """Return a copy that no optimiser touches."""
    return copy.deepcopy(module).requires_grad_(False).eval()
