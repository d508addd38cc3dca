"""The stages that train decoders on one-step latents: fine-tuning, and the distillation of a small one."""

from __future__ import annotations

import dataclasses
import math
from typing import get_args

import torch
from torch import Tensor, nn

from .blur import bell_kernel, blur
from .data import Batch
from .degrade import Kind, drawn_kind
from .losses import Network, gradient_l1
from .model import Bundle
from .schedule import ddim
from .small import make_small
from .stage import Conditioned, Logs, StageConfig, resize_like

NETWORKS: tuple[Network, ...] = ("alex", "vgg")
Pictures = tuple[Tensor, Tensor]  # the decoder's, and the truth


class DecoderStage(Conditioned):
    """Fine-tune the decoder on one-step latents: L1 + gradient L1 + LPIPS (mixed networks) + PatchGAN, and
    DISTS where ``loss`` has ``dists``. VGG16, the slow one, sees the share ``vgg_share`` of the crops.

    The GAN's loss is ``adversarial``: "hinge" (default) or "relativistic". ``r1`` and ``r2``, where above 0,
    are the factors of half the gradient penalty on true and on made pictures, in place of spectral norms. The
    discriminator starts at ``disc_start`` (a step number); ``disc_lead`` (default 0) steps later the GAN term
    does, with the LDM autoencoder's adaptive weight ``||grad rec|| / ||grad gan||`` at the decoder's last
    layer. Encoder and U-Net stay as they are.

    LPIPS (AlexNet) and the discriminator sample with strides, a decoder writes blocks of f px, and crops
    start on block borders: seen always at the same phase, a pattern of period f costs little and grows. So
    both see the pictures from a random offset below ``shift`` px (default 4, AlexNet's stride; 1: none).

    ``truth_blur`` (default {}) is by kind of degradation the sigma in px of a Gaussian that the truth of
    crops degraded so is blurred with, ``{"lens": 1.0}``: pictures that were reduced are sharper from pixel to
    pixel than what a camera with a longer lens would give.
    """

    def __init__(self, config: StageConfig, bundle: Bundle, *, weights: dict[str, str]) -> None:
        from .adversarial import ADVERSARIES, PatchDiscriminator
        from .losses import Dists, Lpips

        super().__init__(config, bundle)
        loss = config.loss
        self.w_grad = float(loss.get("gradient", 0.3))
        self.w_l1 = float(loss.get("l1", 1.0))
        self.w_lpips: dict[Network, float] = {net: float(loss.get(f"lpips_{net}", 0.0)) for net in NETWORKS}
        self.lpips = nn.ModuleDict(
            {n: Lpips(n, required(weights, f"lpips_{n}")) for n, w in self.w_lpips.items() if w > 0}
        )
        self.w_dists = float(loss.get("dists", 0.0))
        if self.w_dists > 0:
            self.dists = Dists(required(weights, "lpips_vgg"), required(weights, "dists")).requires_grad_(
                False
            )
        self.vgg_share = float(loss.get("vgg_share", 1.0))
        self.w_gan, self.disc_start = float(loss.get("gan", 0.0)), int(loss.get("disc_start", 0))
        self.gan_start = self.disc_start + int(loss.get("disc_lead", 0))
        self.shift_px = int(loss.get("shift", 4))
        self.blur_px = {kind: float(px) for kind, px in loss.get("truth_blur", {}).items()}
        kinds = [kind for kind in get_args(Kind) if kind != "mixed"]
        for kind, px in self.blur_px.items():
            if kind not in kinds or not 0 <= px < math.inf:
                raise ValueError(
                    f"stage {config.name}: loss truth_blur got {kind!r}: {px}, expected a sigma in px, at "
                    f"least 0, for one of {', '.join(kinds)}"
                )
        for name, network in self.lpips.items():
            if isinstance(network, Lpips) and config.crop_px - self.shift_px + 1 < network.smallest_px:
                raise ValueError(
                    f"stage {config.name}: crop_px got {config.crop_px}; lpips_{name} needs at least "
                    f"{network.smallest_px + self.shift_px - 1}"
                )
        self._shared: tuple[object, Pictures] | None = None
        self.groups = {"decoder": {"decoder": self.decoder}}
        if self.w_gan > 0:
            if (kind := loss.get("adversarial", "hinge")) not in ADVERSARIES:
                raise ValueError(
                    f"stage {config.name}: loss adversarial got {kind!r}, expected one of "
                    f"{', '.join(ADVERSARIES)}"
                )
            self.relativistic = kind == "relativistic"
            self.r1, self.r2 = float(loss.get("r1", 0.0)), float(loss.get("r2", 0.0))
            self.discriminator = PatchDiscriminator(
                width=int(loss.get("disc_width", 32)), spectral=self.r1 <= 0 and self.r2 <= 0
            )
            self.groups = {"discriminator": {"discriminator": self.discriminator}, **self.groups}
        for module in (self.encoder, self.unet):
            module.requires_grad_(False).eval()

    def inputs(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``x_l``, the encoder's ``z_l``, and noise of its shape."""
        x_l, _ = self.lr_images(batch)
        z_l = self.latent(x_l, batch.x_h)
        return x_l, z_l, torch.randn(z_l.shape, generator=rng).to(z_l)

    @torch.no_grad()
    def one_step(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return ``z_0`` of the one step, and ``x_l``, without gradients."""
        x_l, z_l, noise = self.inputs(batch, rng)
        return ddim(self.unet, self.schedule, z_l, noise).float(), x_l

    def truth(self, batch: Batch, z_0: Tensor) -> Tensor:
        """Return what the decoder should make of ``z_0``, ``(N, 3, H, W)``."""
        return self.true_pictures(batch)

    def true_pictures(self, batch: Batch) -> Tensor:
        """Return the pictures of a batch, ``(N, 3, H, W)``, as soft as ``truth_blur`` wants their kinds."""
        kinds = [drawn_kind(self.config.degradation, seed) for seed in batch.seeds] if self.blur_px else []
        x = batch.x_h.clone() if kinds else batch.x_h
        for index, kind in enumerate(kinds):
            if (sigma_px := self.blur_px.get(kind, 0.0)) > 0:
                kernel = bell_kernel(2 * math.ceil(3 * sigma_px) + 1, sigma_px, sigma_px, 0.0)
                x[index] = torch.from_numpy(blur(x[index].cpu().numpy(), kernel)).to(x)
        return x

    def _pictures(self, batch: Batch, rng: torch.Generator) -> Pictures:
        z_0, _ = self.one_step(batch, rng)
        return self.decoder(z_0).float(), self.truth(batch, z_0)

    def loss(self, group: str, batch: Batch, rng: torch.Generator, step: int) -> tuple[Tensor, Logs]:
        from .adversarial import gradient_ratio, hinge_generator, relativistic_generator

        if group == "discriminator":
            if step < self.disc_start:
                return sum((p.sum() * 0 for p in self.discriminator.parameters()), torch.zeros(())), {}
            y, truth = self._pictures(batch, rng)
            self._shared = ((step, batch.seeds), (y, truth))
            return self._judge(*shifted(self.shift_px, rng, truth, y.detach()))
        # The discriminator's step, which comes first, made this batch's pictures with the same decoder.
        shared, self._shared = self._shared, None
        if shared is not None and shared[0] == (step, batch.seeds):
            y, truth = shared[1]
        else:
            y, truth = self._pictures(batch, rng)
        l1, grad = (y - truth).abs().mean(), gradient_l1(y, truth)
        total = self.w_l1 * l1 + self.w_grad * grad
        logs = {"l1": l1.item(), "gradient": grad.item()}
        seen, true = shifted(self.shift_px, rng, y, truth)
        for net in (name for name, weight in self.w_lpips.items() if weight > 0):
            count = len(y) if net == "alex" else max(1, round(self.vgg_share * len(y)))
            distance = self.lpips[net](seen[:count], true[:count]).float().mean()
            total = total + self.w_lpips[net] * distance
            logs[f"lpips_{net}"] = distance.item()
        if self.w_dists > 0:
            count = max(1, round(self.vgg_share * len(y)))
            distance = self.dists(seen[:count], true[:count]).mean()
            total, logs["dists"] = total + self.w_dists * distance, distance.item()
        logs["psnr_db"] = -10 * ((y.detach().clamp(-1, 1) - truth).square().mean() / 4).log10().item()
        if self.w_gan <= 0 or step < self.gan_start:
            return total, logs
        # Adaptive weight. Both losses reach the decoder through y alone: their gradients at y are taken once,
        # carried to the last layer for the weight, and handed on as one linear loss with the same gradient.
        if self.relativistic:
            with torch.no_grad():
                of_true = self.discriminator(true)
            gan = relativistic_generator(of_true, self.discriminator(seen))
        else:
            gan = hinge_generator(self.discriminator(seen))
        at_y = [torch.autograd.grad(loss, y)[0] for loss in (total, gan)]
        last = last_layer(self.decoder)
        weight = gradient_ratio(*(torch.autograd.grad(y, last, g, retain_graph=True)[0] for g in at_y))
        linear = (y * (at_y[0] + self.w_gan * weight * at_y[1])).sum()
        logs.update(gan=gan.item(), gan_weight=float(weight))
        return linear - linear.detach() + total.detach() + self.w_gan * weight * gan.detach(), logs

    def _judge(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Logs]:
        """Return the discriminator's loss on true and made pictures, its penalties within, and the logs."""
        from .adversarial import gradient_penalty, hinge_discriminator, relativistic_discriminator

        real, fake = real.requires_grad_(self.r1 > 0), fake.requires_grad_(self.r2 > 0)
        of_real, of_fake = self.discriminator(real), self.discriminator(fake)
        d = (relativistic_discriminator if self.relativistic else hinge_discriminator)(of_real, of_fake)
        logs = {"disc": d.item()}
        for name, factor, logits, seen in (("r1", self.r1, of_real, real), ("r2", self.r2, of_fake, fake)):
            if factor > 0:
                penalty = gradient_penalty(logits, seen)
                d, logs[name] = d + factor / 2 * penalty, penalty.item()
        return d, logs

    def samples(self, batch: Batch, rng: torch.Generator) -> list[Tensor]:
        z_0, x_l = self.one_step(batch, rng)
        return [resize_like(x_l, batch.x_h), self.decoder(z_0).float(), batch.x_h]


class OneStepPixelsStage(DecoderStage):
    """Train encoder, U-Net and decoder together through the picture, at t = 1: one step without a teacher.

    The losses are the decoder stage's. Where the chain of stages asks the U-Net for the mean of the possible
    latents and leaves it to the decoder to invent, here the U-Net may choose one.

    ``loss`` may have ``tiles``, the weight of how much tiles disagree: half of a batch's crops are also seen
    with a quarter of one side cut off, and the root mean square of the difference counts, weighted as the run
    time weights tiles, by a ramp of ``ramp`` px (default 64) from the cut on.
    """

    def __init__(self, config: StageConfig, bundle: Bundle, *, weights: dict[str, str]) -> None:
        super().__init__(config, bundle, weights=weights)
        networks = {"encoder": self.encoder, "unet": self.unet, "decoder": self.decoder}
        del self.groups["decoder"]
        self.groups["generator"] = networks
        self.w_tiles, self.ramp_px = float(config.loss.get("tiles", 0.0)), int(config.loss.get("ramp", 64))
        unit = bundle.config.multiple_px
        self.cut_px = config.crop_px // 4 // unit * unit
        if self.w_tiles > 0 and self.cut_px < 1:
            raise ValueError(
                f"stage {config.name}: crop_px got {config.crop_px}; the loss tiles cuts a quarter off, in "
                f"steps of {unit} px, and needs at least {4 * unit}"
            )
        self._whole: tuple[Tensor, Tensor, Tensor] | None = None  # LR pictures, noise and pictures of a step

    def _pictures(self, batch: Batch, rng: torch.Generator) -> Pictures:
        x_l, z_l, noise = self.inputs(batch, rng)
        y = self._decoded(z_l, noise)
        if self.w_tiles > 0:
            self._whole = (x_l, noise, y)
        return y, self.true_pictures(batch)

    def _decoded(self, z_l: Tensor, noise: Tensor) -> Tensor:
        y: Tensor = self.decoder(ddim(self.unet, self.schedule, z_l, noise).float()).float()
        return y

    def loss(self, group: str, batch: Batch, rng: torch.Generator, step: int) -> tuple[Tensor, Logs]:
        total, logs = super().loss(group, batch, rng, step)
        if group != "generator" or self.w_tiles <= 0:
            return total, logs
        difference = self._tile_difference(rng)
        return total + self.w_tiles * difference, {**logs, "tiles": difference.item()}

    def _tile_difference(self, rng: torch.Generator) -> Tensor:
        """Return the RMS, in pictures' units, of what cutting a quarter off the last pictures changes."""
        assert self._whole is not None
        half = max(1, len(self._whole[0]) // 2)
        x_l, noise, y = (t[-half:] for t in self._whole)
        self._whole = None
        axis, at_end = torch.randint(2, (2,), generator=rng).tolist()

        def tile(t: Tensor) -> Tensor:
            cut = t.shape[axis - 2] * self.cut_px // y.shape[-1]
            return t.narrow(axis - 2, 0 if at_end else cut, t.shape[axis - 2] - cut)

        whole = tile(y)
        part = self._decoded(self.latent(tile(x_l), whole), tile(noise))
        ramp = ((torch.arange(whole.shape[axis - 2], device=y.device) + 0.5) / self.ramp_px).clamp(max=1)
        ramp = (ramp.flip(0) if at_end else ramp).view((-1, 1) if axis == 0 else (1, -1))
        return (ramp * (part - whole)).square().mean((1, 2, 3)).add(1e-10).sqrt().mean()


class SmallDecoderStage(DecoderStage):
    """Distil a small decoder (sizes: ``network``) on one-step latents: ``D_small(z_0) ~ D(z_0)``.

    The losses are the decoder stage's, with the large decoder's picture as the truth; that decoder and the
    other networks stay as they are.
    """

    def __init__(self, config: StageConfig, bundle: Bundle, *, weights: dict[str, str]) -> None:
        small = make_small("small_decoder", bundle, config.network)
        super().__init__(config, dataclasses.replace(bundle, decoder=small), weights=weights)
        if self.blur_px:
            raise ValueError(
                f"stage {config.name}: loss truth_blur got {self.blur_px}, expected none: the truth is what "
                "the large decoder makes"
            )
        self.teacher = bundle.decoder.requires_grad_(False).eval()

    @torch.no_grad()
    def truth(self, batch: Batch, z_0: Tensor) -> Tensor:
        y: Tensor = self.teacher(z_0).float()
        return y.clamp(-1, 1)


def shifted(below_px: int, rng: torch.Generator, *pictures: Tensor) -> list[Tensor]:
    """Return ``pictures`` ``(N, 3, H, W)`` from one random offset in [0, below_px) a side on, all of
    ``H - below_px + 1`` rows and as many columns less, channels last."""
    top, left = torch.randint(below_px, (2,), generator=rng).tolist()
    height, width = (side - below_px + 1 for side in pictures[0].shape[-2:])
    return [
        x[..., top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
        for x in pictures
    ]


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
