"""The ``sd`` profile's networks: diffusers' U-Net and autoencoder in the shapes the trainer works with.

The U-Net's first convolution grows from C to 2C input channels; the new weights start at zero, so the network
first does what it did before. Scaling factors are inside; the prompt is one constant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .model import ModelFacts
from .networks import LiteConfig
from .schedule import Schedule

Prediction = Literal["epsilon", "v_prediction"]


class SdFolderError(ValueError):
    """A diffusers folder cannot be trained from; the message says why."""


@dataclass(frozen=True)
class SdConfig(ModelFacts):
    """Facts of an sd-profile model.

    Attributes
    ----------
    latent_channels, latent_factor, unet_factor
        C, f, and how much coarser the U-Net's deepest level is than the latent.
    schedule
        Of the scheduler's config.
    base_prediction
        What the loaded checkpoint predicted; what is trained and saved always predicts v.
    small
        Sizes of the small networks that take the autoencoder's place, where there are any.
    """

    latent_channels: int
    latent_factor: int
    unet_factor: int
    schedule: Schedule
    base_prediction: Prediction = "v_prediction"
    smallest_tile_px: int = field(default=256, kw_only=True)
    small: LiteConfig | None = None

    @property
    def multiple_px(self) -> int:
        """Granularity of tile origins and sizes."""
        return math.lcm(self.latent_factor * self.unet_factor, self.scale)


# ----------------------------------------------------------------------------------------------------------
# The networks


class SdEncoder(nn.Module):
    """Image (N, 3, H, W) in [-1, 1] -> ``scaling_factor * (posterior mode - shift)`` (N, C, H / f, W / f)."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv
        self.channels, self.scaling = int(vae.config.latent_channels), float(vae.config.scaling_factor)
        self.shift = float(getattr(vae.config, "shift_factor", None) or 0.0)

    def forward(self, image: Tensor) -> Tensor:
        h = self.encoder(image)
        h = h if self.quant_conv is None else self.quant_conv(h)
        mode: Tensor = h[:, : self.channels]
        return (mode - self.shift) * self.scaling


class SdDecoder(nn.Module):
    """Scaled latent (N, C, h, w) -> image (N, 3, f h, f w), about [-1, 1]."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = vae.decoder, vae.post_quant_conv
        self.scaling = float(vae.config.scaling_factor)
        self.shift = float(getattr(vae.config, "shift_factor", None) or 0.0)

    def forward(self, z: Tensor) -> Tensor:
        z = z / self.scaling + self.shift
        image: Tensor = self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))
        return image


class SdUNet(nn.Module):
    """``(concat(z_t, z_l) (N, 2C, h, w), t (N,) in [0, 1]) -> v (N, C, h, w)`` with one constant context.

    Parameters
    ----------
    unet
        ``UNet2DConditionModel`` with 2C input channels.
    context
        Prompt embedding (1, L, D): a constant, or a parameter where ``learn_context``.
    schedule
        For the step numbers, and for turning noise into v.
    prediction
        What the network's output is. A frozen ``epsilon`` network still answers v, by
        ``v = (eps - sigma_t z_t) / alpha_t``: well behaved but for the last few steps, where alpha is small.
    """

    def __init__(
        self,
        unet: Any,
        context: Tensor,
        schedule: Schedule,
        *,
        prediction: Prediction = "v_prediction",
        learn_context: bool = False,
    ) -> None:
        super().__init__()
        self.unet, self.schedule, self.prediction = unet, schedule, prediction
        self.channels = int(unet.config.out_channels)
        if learn_context:
            self.context = nn.Parameter(context.float().clone())
        else:
            self.register_buffer("context", context.float().clone())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        step = t.float() * (self.schedule.num_timesteps - 1)
        context = self.context.expand(len(x), -1, -1)
        out: Tensor = self.unet(x, step, encoder_hidden_states=context, return_dict=False)[0]
        if self.prediction == "v_prediction":
            return out
        alpha, sigma = (value.view(-1, 1, 1, 1) for value in self.schedule.alpha_sigma(t.float()))
        return (out.float() - sigma * x[:, : self.channels].float()) / alpha


def grow_input(unet: Any, channels: int) -> None:
    """Give ``unet.conv_in`` ``channels`` input channels; the new weights are zero."""
    old = unet.conv_in
    if old.in_channels == channels:
        return
    if old.in_channels > channels:
        raise SdFolderError(f"unet: {old.in_channels} input channels, expected at most {channels}.")
    new = nn.Conv2d(channels, old.out_channels, old.kernel_size, old.stride, old.padding)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_channels] = old.weight
        assert new.bias is not None
        new.bias.copy_(old.bias)
    unet.conv_in = new
    unet.register_to_config(in_channels=channels)
