"""Stages from a local diffusers folder: a Stable-Diffusion-shaped U-Net and AutoencoderKL.

::

    FOLDER/unet/                 UNet2DConditionModel, 2 C input channels, v-prediction
    FOLDER/vae/                  AutoencoderKL
    FOLDER/small/                small encoder, decoder or both in the autoencoder's place (optional)
    FOLDER/scheduler/            scheduler_config.json: where alpha_1 and sigma_1 come from
    FOLDER/context.safetensors   the prompt embedding of its training, tensor "context" (1, L, D)
    FOLDER/yonos.json            name, scale, timestep, tiles, training, licence, card (all optional)

What depends on time step and prompt alone is computed here, once: the time embedding with its projection in
every residual block, and keys and values of every cross-attention. The latent's scaling factor and the mode
of the posterior become part of the autoencoder's own convolutions.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yonos_export.model_info import ModelInfo
from yonos_export.stages import StageSet, hash_tensors, make_stages
from yonos_trt.errors import ConfigError, MissingExtraError

FACTS_NAME = "yonos.json"
CONTEXT_NAME = "context.safetensors"
_FACTS = {"name", "scale", "timestep", "tile_px", "overlap_px", "smallest_tile_px", "largest_tile_px"}
_FREE = {"training", "licence", "card"}


# ---------------------------------------------------------------------------------------------------------
# Constants in the U-Net


class Constant(nn.Module):
    """A layer whose input never changes: returns what it returned then, whatever it is given."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value: Tensor
        self.register_buffer("value", value.detach().clone())

    def forward(self, *ignored: Any) -> Tensor:
        return self.value


class ConstantContext:
    """Cross-attention to one prompt that never changes; its keys and values are ``(1, heads, L, D)``."""

    def __init__(self, key: Tensor, value: Tensor) -> None:
        self.key, self.value = key, value

    def __call__(self, attn: Any, hidden_states: Tensor, *ignored: Any, **also_ignored: Any) -> Tensor:
        batch, length, _ = hidden_states.shape
        head = self.key.shape[-1]
        q = attn.to_q(hidden_states).view(batch, length, attn.heads, head).transpose(1, 2)
        weights = torch.softmax(q @ (self.key.transpose(2, 3) * head**-0.5), dim=-1)
        out = (weights @ self.value).transpose(1, 2).reshape(batch, length, attn.heads * head)
        result: Tensor = attn.to_out[0](out)
        return result


class ConstantUNet(nn.Module):
    """``(concat(z_t, z_l), t) -> v`` with the time step and the prompt of construction; `t` is not looked at.

    Parameters
    ----------
    unet
        ``UNet2DConditionModel``; its layers are taken over and changed.
    context
        Prompt embedding ``(1, L, D)``.
    timestep
        As the network saw it in training.
    """

    def __init__(self, unet: Any, context: Tensor, timestep: float) -> None:
        super().__init__()
        unet = unet.eval().float().requires_grad_(False)
        config = unet.config
        for option in (
            "class_embed_type",
            "addition_embed_type",
            "encoder_hid_dim_type",
            "time_cond_proj_dim",
        ):
            if getattr(config, option, None) is not None:
                raise ConfigError(
                    f"unet: {option} = {getattr(config, option)!r} is not supported; expected None"
                )
        self.unet = unet
        self.context: Tensor
        self.register_buffer("context", context.float())
        with torch.no_grad():
            emb = unet.time_embedding(unet.time_proj(torch.tensor([timestep])).float())
            unet.time_embedding = Constant(emb)
            for module in unet.modules():
                if getattr(module, "time_emb_proj", None) is not None:
                    active = emb if module.skip_time_act else module.nonlinearity(emb)
                    module.time_emb_proj = Constant(module.time_emb_proj(active))
                elif getattr(module, "is_cross_attention", False):
                    self._fold_attention(module)

    def _fold_attention(self, attn: Any) -> None:
        """Replace keys and values of the prompt by constants."""
        plain = attn.spatial_norm is None and attn.group_norm is None and attn.norm_q is None
        if not plain or attn.residual_connection or attn.rescale_output_factor != 1 or attn.norm_cross:
            raise ConfigError("unet: only plain cross-attention (Stable Diffusion 1.x, 2.x) can be exported")
        key, value = attn.to_k(self.context), attn.to_v(self.context)
        shape = (1, self.context.shape[1], attn.heads, key.shape[-1] // attn.heads)
        attn.set_processor(
            ConstantContext(key.view(shape).transpose(1, 2), value.view(shape).transpose(1, 2))
        )
        attn.to_k, attn.to_v = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        v: Tensor = self.unet(x, t[0], encoder_hidden_states=self.context, return_dict=False)[0]
        return v


# ---------------------------------------------------------------------------------------------------------
# Autoencoder with the scaling inside


def _scaled_conv(conv: nn.Conv2d, channels: int, gain: float, shift: float) -> nn.Conv2d:
    """Return the convolution's first `channels` outputs as ``(y - shift) * gain``."""
    new = nn.Conv2d(conv.in_channels, channels, conv.kernel_size, conv.stride, conv.padding)  # type: ignore[arg-type]
    with torch.no_grad():
        bias = conv.bias if conv.bias is not None else torch.zeros(conv.out_channels)
        new.weight.copy_(conv.weight[:channels] * gain)
        assert new.bias is not None
        new.bias.copy_((bias[:channels] - shift) * gain)
    return new


class KLEncoder(nn.Module):
    """``image (N, 3, H, W)`` -> ``scaling_factor (mode - shift_factor) (N, C, H/f, W/f)``."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        channels, gain = vae.config.latent_channels, vae.config.scaling_factor
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        self.encoder = vae.encoder
        self.quant_conv: nn.Module = nn.Identity()
        if getattr(vae, "quant_conv", None) is not None:
            self.quant_conv = _scaled_conv(vae.quant_conv, channels, gain, shift)
        else:
            self.encoder.conv_out = _scaled_conv(vae.encoder.conv_out, channels, gain, shift)

    def forward(self, image: Tensor) -> Tensor:
        z: Tensor = self.quant_conv(self.encoder(image))
        return z


class KLDecoder(nn.Module):
    """``z (N, C, h, w)``, scaled -> ``D(z / scaling_factor + shift_factor) (N, 3, f h, f w)``."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        scaling = vae.config.scaling_factor
        self.shift = float(getattr(vae.config, "shift_factor", None) or 0.0)
        self.decoder = vae.decoder
        self.post_quant_conv: nn.Module = nn.Identity()
        first = self.decoder.conv_in
        if getattr(vae, "post_quant_conv", None) is not None:
            self.post_quant_conv = first = vae.post_quant_conv
        with torch.no_grad():
            # The shift stays an addition: behind zero padding it cannot become part of a bias.
            first.weight.div_(scaling)
        self.shift *= scaling

    def forward(self, z_0: Tensor) -> Tensor:
        image: Tensor = self.decoder(self.post_quant_conv(z_0 + self.shift if self.shift else z_0))
        return image


# ---------------------------------------------------------------------------------------------------------
# The folder


def load_diffusers_stages(folder: Path) -> StageSet:
    """Load ``unet/``, ``vae/`` and ``scheduler/`` of a local diffusers folder; nothing is downloaded.

    Raises
    ------
    ConfigError
        A part is missing or does not fit the others.
    MissingExtraError
        diffusers is not installed.
    """
    try:
        import diffusers
    except ImportError as error:
        raise MissingExtraError(
            "exporting a diffusers folder", package="diffusers", extra="export", reason=str(error)
        ) from error
    facts = _read_facts(folder)
    library: Any = diffusers
    try:
        unet = _load_part(library.UNet2DConditionModel, folder, "unet")
        vae = _load_part(library.AutoencoderKL, folder, "vae")
        scheduler = library.DDIMScheduler.from_pretrained(
            folder, subfolder="scheduler", local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} cannot be loaded as a diffusers folder: {error}") from error
    small = _read_small(folder, vae, int(facts.get("scale", 4)))
    context = _read_context(folder)
    return stages_from_diffusers(unet, vae, scheduler, context, facts, name=folder.name, small=small)


def stages_from_diffusers(
    unet: Any,
    vae: Any,
    scheduler: Any,
    context: Tensor,
    facts: dict[str, Any],
    *,
    name: str = "sd",
    small: dict[str, nn.Module] | None = None,
) -> StageSet:
    """Fold and wrap the three networks. Their layers are taken over: a copy would double the memory.

    `small` holds networks that take the autoencoder's place: an `encoder` that reads LR tiles, a `decoder`.
    """
    small = small or {}
    channels = int(vae.config.latent_channels)
    if unet.config.in_channels != 2 * channels or unet.config.out_channels != channels:
        raise ConfigError(
            f"unet: {unet.config.in_channels} -> {unet.config.out_channels} channels, expected "
            f"{2 * channels} -> {channels} (noise and the low-resolution latent of the vae, side by side)"
        )
    if scheduler.config.prediction_type != "v_prediction":
        raise ConfigError(
            f"scheduler: prediction_type is {scheduler.config.prediction_type!r}, expected 'v_prediction'; "
            "train the one-step student with yonos-train first"
        )
    if context.shape[-1] != unet.config.cross_attention_dim:
        raise ConfigError(
            f"context: width {context.shape[-1]}, expected the U-Net's {unet.config.cross_attention_dim}"
        )
    digest = hash_tensors({"unet": unet, "vae": vae, **small})
    timestep = float(facts.get("timestep", scheduler.config.num_train_timesteps - 1))
    alpha2 = float(scheduler.alphas_cumprod[round(timestep)])
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    levels = len(unet.config.block_out_channels) - 1
    scale = int(facts.get("scale", 4))
    multiple = math.lcm(factor * 2**levels, scale)
    default = int(facts.get("tile_px", max(512 // multiple, 1) * multiple))
    info = ModelInfo(
        name=str(facts.get("name", name)),
        scale=scale,
        latent_channels=channels,
        latent_factor=factor,
        timestep=timestep,
        alpha_1=math.sqrt(alpha2),
        sigma_1=math.sqrt(1 - alpha2),
        smallest_px=int(facts.get("smallest_tile_px", max(256 // multiple, 1) * multiple)),
        default_px=default,
        largest_px=int(facts.get("largest_tile_px", max(1024 // multiple, 1) * multiple)),
        multiple_px=multiple,
        overlap_px=int(facts.get("overlap_px", default // 8)),
        encoder_input="lr" if "encoder" in small else "upsampled",
        training=dict(facts.get("training", {})),
        licence=dict(facts.get("licence", {})),
        card=str(facts.get("card", "")),
    )
    encoder, decoder = small.get("encoder") or KLEncoder(vae), small.get("decoder") or KLDecoder(vae)
    return make_stages(encoder, ConstantUNet(unet, context, timestep), decoder, info, weights_sha256=digest)


def _read_small(folder: Path, vae: Any, scale: int) -> dict[str, nn.Module]:
    """Return the small networks that ``yonos-train`` put beside the autoencoder, by part."""
    from yonos_train.sd import SdFolderError
    from yonos_train.small import read_small

    channels, factor = int(vae.config.latent_channels), 2 ** (len(vae.config.block_out_channels) - 1)
    try:
        return read_small(folder, scale=scale, latent_channels=channels, latent_factor=factor)[0]
    except SdFolderError as error:
        raise ConfigError(str(error)) from error


def _load_part(kind: Any, folder: Path, part: str) -> Any:
    """Load from safetensors in FP32; half-precision files are taken where there are no others."""
    full = any((folder / part).glob("*model.safetensors")) or any((folder / part).glob("*.index.json"))
    half = not full and any((folder / part).glob("*.fp16.safetensors"))
    return kind.from_pretrained(
        folder,
        subfolder=part,
        local_files_only=True,
        use_safetensors=True,
        torch_dtype=torch.float32,
        variant="fp16" if half else None,
    )


def _read_facts(folder: Path) -> dict[str, Any]:
    path = folder / FACTS_NAME
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(facts, dict) or not set(facts) <= _FACTS | _FREE:
        known = ", ".join(sorted(_FACTS | _FREE))
        raise ConfigError(f"{path} holds {sorted(facts)}, expected an object with any of: {known}")
    return facts


def _read_context(folder: Path) -> Tensor:
    from safetensors.torch import load_file

    path = folder / CONTEXT_NAME
    if not path.is_file():
        raise ConfigError(
            f"{path} is missing: the U-Net needs the one prompt embedding it was trained with; save it as "
            "the tensor 'context' (1, L, D), for example the text encoder's output for the empty prompt"
        )
    tensors = load_file(path)
    if "context" not in tensors or tensors["context"].ndim not in (2, 3):
        raise ConfigError(f"{path} holds {sorted(tensors)}, expected one tensor 'context' (1, L, D)")
    context = tensors["context"].float()
    return context if context.ndim == 3 else context[None]
