"""AdcSR: a pruned Stable Diffusion U-Net on the unshuffled LR picture, straight into half a decoder.

::

    encoder   LR picture (N, 3, H/4, W/4)  -> its pixels, unshuffled by 2 (N, 12, H/8, W/8)
    step      U-Net without time and without cross-attention, 3/4 as wide -> features (N, 256, H/8, W/8)
    decoder   the half-width VAE decoder from its middle block on         -> image (N, 3, H, W)

Files: ``net_params_*.pkl`` (the U-Net and the middle block, keys ``module.body.1.*`` and ``module.body.2.*``)
and ``halfDecoder.ckpt`` (``state_dict`` with ``decoder.*``). Widths are read from the tensors; only the
number of attention heads is not in them: Stable Diffusion 2.1's, or those of
``--base``'s ``unet/config.json``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from yonos_export.families.files import read_weights, require_keys, tensors_of
from yonos_export.families.sd21 import latent_info
from yonos_export.source import Source, digests_of
from yonos_export.stages import DecoderStage, EncoderStage, hash_tensors, wrap_stages
from yonos_trt.engine.manifest import Origin
from yonos_trt.errors import ConfigError

if TYPE_CHECKING:
    from yonos_export.config import ExportConfig
    from yonos_export.families import Family

State = dict[str, Tensor]
UNSHUFFLE = 2
HEADS = (5, 10, 20, 20)  # attention heads by level, of Stable Diffusion 2.1's U-Net
_NET = "net_params_*.pkl as AdcSR's training saves it"
_HALF = "halfDecoder.ckpt: state_dict with decoder.*"


def open_family(family: Family, config: ExportConfig) -> Source:
    """Build the three stages from the two files.

    Raises
    ------
    ConfigError
        A file is damaged, or its tensors do not make such a network.
    """
    assert config.half_decoder is not None
    unet_state, middle = read_net(config.source)
    half = read_half(config.half_decoder)
    heads = read_heads(config.base)
    unet = _filled(lambda: PrunedUNet(unet_state, heads), unet_state, str(config.source))
    decoder = half_decoder(half, middle, str(config.half_decoder))
    features = int(unet.conv_out.out_channels)
    if features != decoder.width:
        raise ConfigError(
            f"{config.source} gives {features} channels, {config.half_decoder} takes {decoder.width}: they "
            "do not belong together"
        )
    info = latent_info(
        family,
        factor=decoder.factor,
        levels=len(unet.down_blocks),
        scale=decoder.factor // UNSHUFFLE,
        latent_channels=3 * UNSHUFFLE**2,
        output_channels=features,
        alpha_1=1.0,
        sigma_1=0.0,
        weights_sha256=hash_tensors({"unet": unet, "decoder": decoder}),
        origin=Origin(
            family=family.name,
            adapter=digests_of((config.source, config.half_decoder)),
            command=config.command,
        ),
    )
    stages = wrap_stages(EncoderStage(nn.PixelUnshuffle(UNSHUFFLE)), unet, DecoderStage(decoder), info)
    return Source.of(stages, config.source)


# ---------------------------------------------------------------------------------------------------------
# The files


def read_net(path: Path) -> tuple[State, State]:
    """Return the tensors of the U-Net and of the decoder's middle block."""
    document = {key.removeprefix("module."): value for key, value in read_weights(path, _NET).items()}
    require_keys([k for k in document if not k.startswith(("body.1.", "body.2."))], (), str(path), _NET)
    plain = tensors_of(document, str(path))
    unet: State = {}
    middle: State = {}
    aliases: State = {}
    for key, value in plain.items():
        if key.startswith("body.1.body."):  # the same layers again, in the order in which they run
            aliases[key.removeprefix("body.1.body.")] = value
        elif key.startswith("body.1."):
            unet[key.removeprefix("body.1.")] = value
        else:
            middle[key.removeprefix("body.2.")] = value
    if not unet or not middle:
        raise ConfigError(f"{path} has no body.1.* or no body.2.*; expected {_NET}")
    levels = 1 + max((int(m[1]) for k in unet if (m := re.match(r"down_blocks\.(\d+)\.", k))), default=0)
    order = [f"down_blocks.{i}" for i in range(levels)] + ["mid_block"]
    order += [f"up_blocks.{i}" for i in range(levels)] + ["conv_norm_out", "conv_act", "conv_out"]
    for key, value in aliases.items():
        place, _, rest = key.partition(".")
        own = f"{order[int(place)]}.{rest}" if place.isdecimal() and int(place) < len(order) else ""
        if own not in unet or not torch.equal(unet[own], value):
            raise ConfigError(
                f"{path}: body.1.body.{key} is not the layer that stands there; expected {_NET}"
            )
    return unet, middle


def read_half(path: Path) -> State:
    """Return the decoder's tensors, without their prefix."""
    document = read_weights(path, _HALF)
    if "state_dict" not in document:
        require_keys(document, ["state_dict"], str(path), _HALF)
    tensors = {key: value for key, value in document["state_dict"].items() if "decoder" in str(key)}
    if not tensors:
        raise ConfigError(f"{path}: no tensor of its state_dict is called decoder.*; expected {_HALF}")
    return {k.replace("decoder.", ""): v for k, v in tensors_of(tensors, f"{path}: state_dict").items()}


def read_heads(base: Path | None) -> tuple[int, ...]:
    """Return the attention heads by level: Stable Diffusion 2.1's, or the base folder's."""
    if base is None:
        return HEADS
    path = base / "unet" / "config.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        found = document.get("num_attention_heads") or document["attention_head_dim"]
        count = len(document["block_out_channels"])
        heads = (int(found),) * count if isinstance(found, int) else tuple(int(n) for n in found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} does not say how many attention heads the U-Net has ({error!r}); expected a U-Net's "
            "config.json of diffusers"
        ) from error
    if len(heads) != count or min(heads) < 1:
        raise ConfigError(f"{path}: attention_head_dim is {heads}, expected {count} numbers from 1 up")
    return heads


def _filled(make: Any, state: State, where: str) -> Any:
    """Build a network by the shapes of its tensors and fill it; all that does not fit is named."""
    try:
        network = make()
    except KeyError as error:
        raise ConfigError(f"{where} does not make AdcSR's network: it has no {error.args[0]}") from error
    except (ValueError, RuntimeError, IndexError, ZeroDivisionError) as error:
        raise ConfigError(f"{where} does not make AdcSR's network: {error}") from error
    own = network.state_dict()
    require_keys(state, own, where, "the tensors of AdcSR's network")
    wrong = [k for k, v in state.items() if v.shape != own[k].shape]
    if wrong:
        key = wrong[0]
        raise ConfigError(
            f"{where}: {key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)} by its neighbours"
        )
    network.load_state_dict(state)
    bare = {key: value.to("meta") for key, value in own.items()}
    try:  # on the meta device nothing is computed, but what does not fit its neighbours is found
        functional_call(network, bare, torch.empty(1, network.width, 256, 256, device="meta"))
    except (RuntimeError, IndexError) as error:
        raise ConfigError(f"{where} does not make AdcSR's network: {error}") from error
    return network


# ---------------------------------------------------------------------------------------------------------
# The pruned U-Net: names as in diffusers, widths from the tensors


def _shape(state: State, name: str, dimensions: int) -> list[int]:
    shape = list(state[name].shape)
    if len(shape) != dimensions:
        raise ValueError(f"{name} is {tuple(shape)}, expected {dimensions} dimensions")
    return shape


def _conv(state: State, name: str, stride: int = 1) -> nn.Conv2d:
    out, into, size, _ = _shape(state, f"{name}.weight", 4)
    return nn.Conv2d(into, out, size, stride, size // 2)


def _linear(state: State, name: str) -> nn.Linear:
    out, into = _shape(state, f"{name}.weight", 2)
    return nn.Linear(into, out, bias=f"{name}.bias" in state)


def _norm(state: State, name: str, eps: float) -> nn.GroupNorm:
    """Make a GroupNorm with the groups that the pruning chose: as many as divide the channels, at most 32."""
    (channels,) = _shape(state, f"{name}.weight", 1)
    groups = next(g for g in (32, 24, 16, 12, 8, 6, 4, 2, 1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, eps)


class ResBlock(nn.Module):
    """``x -> skip(x) + conv2(act(norm2(conv1(act(norm1(x))))))``."""

    def __init__(self, state: State, name: str) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(state, f"{name}.norm1", 1e-5), _conv(state, f"{name}.conv1")
        self.norm2, self.conv2 = _norm(state, f"{name}.norm2", 1e-5), _conv(state, f"{name}.conv2")
        self.conv_shortcut: nn.Module | None = None
        if f"{name}.conv_shortcut.weight" in state:
            self.conv_shortcut = _conv(state, f"{name}.conv_shortcut")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        skip: Tensor = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return skip + y


class SelfAttention(nn.Module):
    """Attention of ``(N, L, D)`` to itself."""

    def __init__(self, state: State, name: str, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (_linear(state, f"{name}.to_{k}") for k in "qkv")
        self.to_out = nn.ModuleList([_linear(state, f"{name}.to_out.0")])
        if self.to_q.out_features % heads:
            raise ValueError(
                f"{name}: {self.to_q.out_features} channels in {heads} heads; name the right --base"
            )

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = (
            f(x).view(n, length, self.heads, -1).transpose(1, 2) for f in (self.to_q, self.to_k, self.to_v)
        )
        y = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.to_out[0](y.transpose(1, 2).reshape(n, length, -1))
        return out


class _Gated(nn.Module):
    def __init__(self, state: State, name: str) -> None:
        super().__init__()
        self.proj = _linear(state, f"{name}.proj")

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        out: Tensor = value * F.gelu(gate)
        return out


class _FeedForward(nn.Module):
    def __init__(self, state: State, name: str) -> None:
        super().__init__()
        self.net = nn.ModuleList(
            [_Gated(state, f"{name}.net.0"), nn.Identity(), _linear(state, f"{name}.net.2")]
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net[2](self.net[0](x))
        return out


class _Block(nn.Module):
    def __init__(self, state: State, name: str, heads: int) -> None:
        super().__init__()
        (width,) = _shape(state, f"{name}.norm1.weight", 1)
        self.norm1, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn1 = SelfAttention(state, f"{name}.attn1", heads)
        self.ff = _FeedForward(state, f"{name}.ff")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        out: Tensor = x + self.ff(self.norm3(x))
        return out


class Transformer(nn.Module):
    """Self-attention over all places of ``(N, C, h, w)``; nothing reads a prompt."""

    def __init__(self, state: State, name: str, heads: int) -> None:
        super().__init__()
        self.norm = _norm(state, f"{name}.norm", 1e-6)
        self.proj_in, self.proj_out = _linear(state, f"{name}.proj_in"), _linear(state, f"{name}.proj_out")
        blocks = _count(state, f"{name}.transformer_blocks")
        self.transformer_blocks = nn.ModuleList(
            [_Block(state, f"{name}.transformer_blocks.{i}", heads) for i in range(blocks)]
        )

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        y = self.proj_in(self.norm(x).permute(0, 2, 3, 1).reshape(n, h * w, c))
        for block in self.transformer_blocks:
            y = block(y)
        out: Tensor = self.proj_out(y).reshape(n, h, w, c).permute(0, 3, 1, 2) + x
        return out


def _count(state: State, prefix: str) -> int:
    """Return how many numbered layers stand under a name."""
    start = len(prefix) + 1
    numbers = {key[start:].partition(".")[0] for key in state if key.startswith(prefix + ".")}
    return len([n for n in numbers if n.isdecimal()])


class _Resample(nn.Module):
    def __init__(self, state: State, name: str, stride: int) -> None:
        super().__init__()
        self.conv = _conv(state, f"{name}.conv", stride)

    def forward(self, x: Tensor) -> Tensor:
        if self.conv.stride == (1, 1):
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        out: Tensor = self.conv(x)
        return out


class _Level(nn.Module):
    """One level of the U-Net: blocks, each with attention or not, and a change of resolution or none."""

    def __init__(self, state: State, name: str, heads: int) -> None:
        super().__init__()
        count, attended = _count(state, f"{name}.resnets"), _count(state, f"{name}.attentions")
        self.resnets = nn.ModuleList([ResBlock(state, f"{name}.resnets.{i}") for i in range(count)])
        self.attentions = nn.ModuleList(
            [Transformer(state, f"{name}.attentions.{i}", heads) for i in range(attended)]
        )
        self.downsamplers, self.upsamplers = (
            nn.ModuleList(
                [_Resample(state, f"{name}.{kind}.0", stride)]
                if f"{name}.{kind}.0.conv.weight" in state
                else []
            )
            for kind, stride in (("downsamplers", 2), ("upsamplers", 1))
        )

    def block(self, index: int, x: Tensor) -> Tensor:
        """Run one block, and its attention where the level has any."""
        out: Tensor = self.resnets[index](x)
        if self.attentions:
            out = self.attentions[index](out)
        return out


class PrunedUNet(nn.Module):
    """``z_l (N, 12, h, w) -> features (N, C, h, w)``."""

    def __init__(self, state: State, heads: tuple[int, ...]) -> None:
        super().__init__()
        levels = _count(state, "down_blocks")
        if _count(state, "up_blocks") != levels or len(heads) != levels:
            raise ValueError(
                f"{levels} levels down, {_count(state, 'up_blocks')} up, attention heads for {len(heads)}; "
                "name the right --base"
            )
        self.conv_in, self.width = _conv(state, "conv_in"), 3 * UNSHUFFLE**2
        if self.conv_in.in_channels != self.width:
            raise ValueError(f"conv_in reads {self.conv_in.in_channels} channels, expected {self.width}")
        self.down_blocks = nn.ModuleList([_Level(state, f"down_blocks.{i}", heads[i]) for i in range(levels)])
        self.mid_block = _Level(state, "mid_block", heads[-1])
        self.up_blocks = nn.ModuleList(
            [_Level(state, f"up_blocks.{i}", heads[levels - 1 - i]) for i in range(levels)]
        )
        self.conv_norm_out, self.conv_out = _norm(state, "conv_norm_out", 1e-5), _conv(state, "conv_out")

    def forward(self, z_l: Tensor) -> Tensor:
        x = self.conv_in(z_l)
        skips = [x]
        for level in cast("list[_Level]", list(self.down_blocks)):
            for i in range(len(level.resnets)):
                x = level.block(i, x)
                skips.append(x)
            for down in level.downsamplers:
                x = down(x)
                skips.append(x)
        middle = self.mid_block
        x = middle.resnets[1](middle.attentions[0](middle.resnets[0](x)))
        for level in cast("list[_Level]", list(self.up_blocks)):
            for i in range(len(level.resnets)):
                x = level.block(i, torch.cat([x, skips.pop()], dim=1))
            for up in level.upsamplers:
                x = up(x)
        features: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return features


# ---------------------------------------------------------------------------------------------------------
# Half the decoder


class HalfDecoder(nn.Module):
    """``features (N, C, h, w) -> image (N, 3, f h, f w)``: a VAE decoder without its first convolution."""

    def __init__(self, state: State) -> None:
        super().__init__()
        from diffusers.models.autoencoders.vae import Decoder

        blocks, self.width = (
            _count(state, "up_blocks"),
            _shape(state, "mid_block.resnets.0.conv1.weight", 4)[0],
        )
        widths = [_shape(state, f"up_blocks.{i}.resnets.0.conv2.weight", 4)[0] for i in range(blocks)]
        self.factor = 2 ** (blocks - 1)
        whole: Any = Decoder(
            in_channels=4,
            out_channels=_shape(state, "conv_out.weight", 4)[0],
            up_block_types=("UpDecoderBlock2D",) * blocks,
            block_out_channels=tuple(reversed(widths)),
            layers_per_block=_count(state, "up_blocks.0.resnets") - 1,
            norm_num_groups=32,
            act_fn="silu",
            norm_type="group",
            mid_block_add_attention=any(key.startswith("mid_block.attentions.") for key in state),
        )
        self.mid_block, self.up_blocks = whole.mid_block, whole.up_blocks
        self.conv_norm_out, self.conv_out = whole.conv_norm_out, whole.conv_out

    def forward(self, z_0: Tensor) -> Tensor:
        x: Tensor = self.mid_block(z_0)
        for block in self.up_blocks:
            x = block(x)
        image: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return image


def half_decoder(half: State, middle: State, where: str) -> HalfDecoder:
    """Build the decoder: its middle block was trained with the U-Net and comes from that file."""
    kept = {k: v for k, v in half.items() if not k.startswith(("conv_in.", "mid_block."))}
    state = {**kept, **{f"mid_block.{key}": value for key, value in middle.items()}}
    decoder: HalfDecoder = _filled(lambda: HalfDecoder(state), state, where)
    if decoder.factor % UNSHUFFLE or decoder.conv_out.out_channels != 3:
        raise ConfigError(
            f"{where}: enlarges by {decoder.factor} into {decoder.conv_out.out_channels} channels, expected "
            "8 into 3"
        )
    return decoder
