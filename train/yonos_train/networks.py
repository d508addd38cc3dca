"""The three networks of the lite profile.

No normalisation layers: a tile then depends on nothing outside its receptive field, so tiled and whole
pictures agree; GroupNorm would tie every tile to its own statistics. Almost all work is done on the latent
grid (``latent_factor`` times coarser than the picture), because convolutions at picture resolution with few
channels are the slow case on a CPU.

    encoder   image (N, 3, H, W) in [-1, 1]            -> z (N, C, H/f, W/f), about unit variance a channel
    unet      concat(z_t, z_l) (N, 2C, h, w), t (N,)   -> v (N, C, h, w)
    decoder   z (N, C, h, w)                           -> image (N, 3, f h, f w), about [-1, 1]
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Of the leaky ReLU: ONNX Runtime, OpenVINO and TensorRT all fuse it into the convolution before it.
SLOPE = 0.1


# ------------------------------------------------------------------------------------------------------------
# Architecture as values


@dataclass(frozen=True)
class LiteConfig:
    """Sizes of the three networks.

    Attributes
    ----------
    latent_channels, latent_factor
        C and f: the latent is ``(N, C, H / f, W / f)``.
    encoder_width, encoder_blocks
        Channels and residual blocks on the latent grid.
    decoder_width, decoder_blocks
        The same for the decoder's coarse part (latent grid).
    decoder_fine_width, decoder_fine_blocks
        Channels and blocks of its fine part, at ``latent_factor / 2`` times the latent grid.
    decoder_anti_imaging
        Whether the decoder filters what each of its pixel-shuffles writes (:func:`anti_image`): where the
        latent is flat, its picture then is flat, too. Adds no weights. For ``latent_factor`` 2 and 4.
    unet_widths, unet_blocks
        Channels per level (each level halves the grid) and residual blocks per level and direction.
    time_dim
        Width of the time embedding.
    """

    latent_channels: int = 16
    latent_factor: int = 4
    encoder_width: int = 64
    encoder_blocks: int = 3
    decoder_width: int = 64
    decoder_blocks: int = 6
    decoder_fine_width: int = 32
    decoder_fine_blocks: int = 3
    unet_widths: tuple[int, ...] = (64, 96, 128)
    unet_blocks: int = 2
    time_dim: int = 128
    decoder_anti_imaging: bool = False

    def __post_init__(self) -> None:
        if self.latent_factor < 2 or self.latent_factor % 2:
            raise ValueError(f"latent_factor: got {self.latent_factor}, expected an even number >= 2")
        for name in ("latent_channels", "encoder_width", "decoder_width", "decoder_fine_width", "time_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a positive number")
        if self.decoder_anti_imaging and self.latent_factor > 4:
            raise ValueError(
                f"decoder_anti_imaging: got latent_factor {self.latent_factor}, expected 2 or 4; the filter "
                f"is made for pixel-shuffles by 2"
            )
        if not self.unet_widths:
            raise ValueError("unet_widths: got no level, expected at least one width")

    @property
    def multiple_px(self) -> int:
        """Image side granularity in pixels: latent factor times the U-Net's total downsampling."""
        return int(self.latent_factor * 2 ** (len(self.unet_widths) - 1))


# ------------------------------------------------------------------------------------------------------------
# Building blocks


def conv(cin: int, cout: int, size: int = 3, *, stride: int = 1, gain: float = 1.0) -> nn.Conv2d:
    """Make a zero-padded convolution with He initialisation for the leaky ReLU times ``gain`` (0: starts at
    zero)."""
    layer = nn.Conv2d(cin, cout, size, stride=stride, padding=size // 2)
    nn.init.kaiming_normal_(layer.weight, a=SLOPE, nonlinearity="leaky_relu")
    with torch.no_grad():
        layer.weight.mul_(gain)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class ResBlock(nn.Module):
    """Residual block ``x + conv(act(film(conv(x), t)))``; the last convolution starts at zero, so the block
    starts as x.

    The stream itself stays linear: without normalisation this keeps activations from growing with depth.
    """

    def __init__(self, width: int, time_dim: int = 0) -> None:
        super().__init__()
        self.conv1 = conv(width, width)
        self.conv2 = conv(width, width, gain=0.0)
        self.film = nn.Linear(time_dim, 2 * width) if time_dim else None
        if self.film is not None:
            nn.init.zeros_(self.film.weight)
            nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        h = self.conv1(x)
        if self.film is not None:
            assert emb is not None
            scale, shift = self.film(emb)[:, :, None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        out: Tensor = x + self.conv2(F.leaky_relu(h, SLOPE))
        return out


# ------------------------------------------------------------------------------------------------------------
# Autoencoder


class Encoder(nn.Module):
    """Image ``(N, 3, H, W)`` in [-1, 1] -> latent ``(N, C, H/f, W/f)``, centred and scaled per channel.

    Pictures on the canvas are pixel-unshuffled by ``f`` at the entrance. An encoder that reads the LR picture
    itself (``lr_scale``) unshuffles by ``f / scale``; where that is below one, a pixel-shuffle follows the
    first convolution instead.
    """

    def __init__(self, config: LiteConfig, *, lr_scale: int | None = None) -> None:
        super().__init__()
        f, width = config.latent_factor, config.encoder_width
        if lr_scale is not None and max(f, lr_scale) % min(f, lr_scale):
            raise ValueError(f"lr_scale: got {lr_scale}, expected a divisor or multiple of latent_factor {f}")
        self.unshuffle = f if lr_scale is None else max(1, f // lr_scale)
        self.shuffle = 1 if lr_scale is None else max(1, lr_scale // f)
        self.conv_in = conv(3 * self.unshuffle**2, width * self.shuffle**2)
        self.blocks = nn.ModuleList(ResBlock(width) for _ in range(config.encoder_blocks))
        self.conv_out = conv(width, config.latent_channels)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(config.latent_channels))
        self.register_buffer("std", torch.ones(config.latent_channels))

    def forward(self, x: Tensor) -> Tensor:
        h = F.pixel_unshuffle(x, self.unshuffle) if self.unshuffle > 1 else x
        h = self.conv_in(h)
        if self.shuffle > 1:
            h = F.pixel_shuffle(h, self.shuffle)
        for block in self.blocks:
            h = block(h)
        z = self.conv_out(h)
        out: Tensor = (z - self.mean[None, :, None, None]) / self.std[None, :, None, None]
        return out


# The symmetric filter of five taps whose frequency response is 1 at 0, flat there to third order, and 0 at
# the Nyquist frequency (maximally flat): H(w) = (3 - cos w)(1 + cos w) / 4.
_TAPS = (-1 / 16, 4 / 16, 10 / 16, 4 / 16, -1 / 16)


def anti_image(x: Tensor) -> Tensor:
    """Filter ``x (N, C, H, W)`` after a pixel-shuffle by 2: a pattern of period 2 along an axis vanishes.

    A pixel-shuffle writes every value of its 2 x 2 blocks from weights of its own, so even a constant map
    can come out as a checkerboard or as stripes. Those are the only patterns that it makes from a constant,
    and this filter (anti-imaging, in the language of interpolation) has its zeros exactly there; what it
    takes from the frequencies below, the convolution before it learns to give more of. Borders are
    replicated: a constant stays constant up to them.
    """
    taps = torch.tensor(_TAPS, dtype=x.dtype, device=x.device)
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, 5, 5)
    if torch.compiler.is_compiling():  # torch 2.13 cannot compile the other form for a CPU
        x = torch.cat((x[:, :, :1], x[:, :, :1], x, x[:, :, -1:], x[:, :, -1:]), 2)
        x = torch.cat((x[..., :1], x[..., :1], x, x[..., -1:], x[..., -1:]), 3)
    else:  # what the shipped weights were trained with: gradients round alike
        x = F.pad(x, (2, 2, 2, 2), mode="replicate")
    return F.conv2d(x, kernel, groups=x.shape[1])


class Decoder(nn.Module):
    """Latent ``(N, C, h, w)`` -> image ``(N, 3, f h, f w)``, about [-1, 1], not clamped."""

    def __init__(self, config: LiteConfig) -> None:
        super().__init__()
        width, fine = config.decoder_width, config.decoder_fine_width
        self.anti_imaging = config.decoder_anti_imaging
        self.up1 = config.latent_factor // 2
        self.conv_in = conv(config.latent_channels, width)
        self.blocks = nn.ModuleList(ResBlock(width) for _ in range(config.decoder_blocks))
        self.conv_up = conv(width, fine * self.up1**2)
        self.fine_blocks = nn.ModuleList(ResBlock(fine) for _ in range(config.decoder_fine_blocks))
        self.conv_out = conv(fine, 3 * 4, gain=0.3)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(config.latent_channels))
        self.register_buffer("std", torch.ones(config.latent_channels))

    def forward(self, z: Tensor) -> Tensor:
        h = self.conv_in(z * self.std[None, :, None, None] + self.mean[None, :, None, None])
        for block in self.blocks:
            h = block(h)
        h = self.conv_up(F.leaky_relu(h, SLOPE))
        if self.up1 > 1:
            h = F.pixel_shuffle(h, self.up1)
            h = anti_image(h) if self.anti_imaging else h
        for block in self.fine_blocks:
            h = block(h)
        x = F.pixel_shuffle(self.conv_out(F.leaky_relu(h, SLOPE)), 2)
        return anti_image(x) if self.anti_imaging else x


def set_latent_stats(encoder: nn.Module, decoder: nn.Module, mean: Tensor, std: Tensor) -> None:
    """Record the raw latent's per-channel ``mean`` and ``std`` ``(C,)``: encoder output becomes zero-mean,
    unit-variance.

    Takes the place of Stable Diffusion's single ``scaling_factor``; the pair cancels, the autoencoder is
    unchanged.
    """
    for module in (encoder, decoder):
        module.get_buffer("mean").copy_(mean)
        module.get_buffer("std").copy_(std)


# ------------------------------------------------------------------------------------------------------------
# One-step U-Net


def time_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal features of t in [0, 1]: ``(N,) -> (N, dim)``; frequencies 1 .. 1000 (Ho et al. 2020)."""
    freqs = torch.exp(torch.linspace(0.0, math.log(1000.0), dim // 2, device=t.device, dtype=torch.float32))
    phase = t.float()[:, None] * freqs[None, :]
    return torch.cat([phase.cos(), phase.sin()], dim=1)


class UNet(nn.Module):
    """``(concat(z_t, z_l) (N, 2C, h, w), t (N,)) -> v (N, C, h, w)``; h and w multiples of ``2 ** (levels -
    1)``."""

    def __init__(self, config: LiteConfig) -> None:
        super().__init__()
        widths, blocks, dim = config.unet_widths, config.unet_blocks, config.time_dim
        self.time_dim = dim
        self.time_mlp = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU())
        self.conv_in = conv(2 * config.latent_channels, widths[0])
        self.down_blocks = nn.ModuleList(
            nn.ModuleList(ResBlock(w, dim) for _ in range(blocks)) for w in widths[:-1]
        )
        self.downs = nn.ModuleList(conv(a, b, stride=2) for a, b in itertools.pairwise(widths))
        self.mid_blocks = nn.ModuleList(ResBlock(widths[-1], dim) for _ in range(blocks))
        self.ups = nn.ModuleList(conv(b, 4 * a, 1) for a, b in itertools.pairwise(widths))
        self.merges = nn.ModuleList(conv(2 * w, w, 1, gain=0.7) for w in widths[:-1])
        self.up_blocks = nn.ModuleList(
            nn.ModuleList(ResBlock(w, dim) for _ in range(blocks)) for w in widths[:-1]
        )
        self.conv_out = conv(widths[0], config.latent_channels, gain=0.0)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        emb = self.time_mlp(time_embedding(t, self.time_dim))
        h, skips = self.conv_in(x), []
        for blocks, down in zip(self.down_blocks, self.downs, strict=True):
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, emb)
            skips.append(h)
            h = down(h)
        for block in self.mid_blocks:
            h = block(h, emb)
        for level in reversed(range(len(self.ups))):
            h = F.pixel_shuffle(self.ups[level](h), 2)
            h = self.merges[level](torch.cat([h, skips[level]], dim=1))
            for block in self.up_blocks[level]:  # type: ignore[attr-defined]
                h = block(h, emb)
        out: Tensor = self.conv_out(h)
        return out
