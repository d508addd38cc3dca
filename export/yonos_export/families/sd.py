"""Stages from a local diffusers folder: a Stable-Diffusion-shaped U-Net and AutoencoderKL.

::

    FOLDER/unet/                 UNet2DConditionModel, 2 C input channels, v-prediction
    FOLDER/vae/                  AutoencoderKL
    FOLDER/small/                small encoder, decoder or both in the autoencoder's place (optional)
    FOLDER/scheduler/            scheduler_config.json: where alpha_1 and sigma_1 come from
    FOLDER/context.safetensors   the prompt embedding of its training, tensor "context" (1, L, D)
    FOLDER/yonos.json            name, scale, timestep, tiles, training, licence, card (all optional)

The networks themselves, with their constants folded in, are :mod:`yonos_export.diffusers_networks`. The
other families that start from a diffusers folder read its parts with `load_part`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from yonos_train.sd_folder import read_part

from yonos_export.diffusers_networks import Constant, ConstantUNet, KLDecoder, KLEncoder
from yonos_export.families.files import require_keys
from yonos_export.model_info import ModelInfo, licence_chain
from yonos_export.source import Source
from yonos_export.stages import StageSet, hash_tensors, make_stages
from yonos_trt.engine.manifest import Model, Tiles
from yonos_trt.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from yonos_export.config import ExportConfig
    from yonos_export.families import Family

FACTS_NAME = "yonos.json"
CONTEXT_NAME = "context.safetensors"
_FACTS = {"name", "scale", "timestep", "tile_px", "overlap_px", "smallest_tile_px", "largest_tile_px"}
_FREE = {"training", "licence", "card"}


def open_family(family: Family, config: ExportConfig) -> Source:
    """Load the folder."""
    return open_folder(config.source)


def open_folder(folder: Path) -> Source:
    """Load a diffusers folder."""
    return Source.of(load_diffusers_stages(folder), folder)


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
        unet = load_part(library.UNet2DConditionModel, folder, "unet")
        vae = load_part(library.AutoencoderKL, folder, "vae")
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
    timestep = float(facts.get("timestep", scheduler.config.num_train_timesteps - 1))
    alpha2 = float(scheduler.alphas_cumprod[round(timestep)])
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    levels = len(unet.config.block_out_channels) - 1
    scale = int(facts.get("scale", 4))
    multiple = math.lcm(factor * 2**levels, scale)
    default = int(facts.get("tile_px", max(512 // multiple, 1) * multiple))
    model = Model(
        name=str(facts.get("name", name)),
        scale=scale,
        latent_channels=channels,
        latent_factor=factor,
        timestep=timestep,
        alpha_1=math.sqrt(alpha2),
        sigma_1=math.sqrt(1 - alpha2),
        weights_sha256=hash_tensors({"unet": unet, "vae": vae, "context": Constant(context), **small}),
        training=dict(facts.get("training", {})),
        licences=licence_chain(dict(facts.get("licence", {}))),
    )
    tiles = Tiles(
        smallest_px=int(facts.get("smallest_tile_px", max(256 // multiple, 1) * multiple)),
        default_px=default,
        largest_px=int(facts.get("largest_tile_px", max(1024 // multiple, 1) * multiple)),
        multiple_px=multiple,
        overlap_px=int(facts.get("overlap_px", default // 8)),
        encoder_input="lr" if "encoder" in small else "upsampled",
    )
    info = ModelInfo(model, tiles, str(facts.get("card", "")))
    encoder, decoder = small.get("encoder") or KLEncoder(vae), small.get("decoder") or KLDecoder(vae)
    return make_stages(encoder, ConstantUNet(unet, context, timestep), decoder, info)


def _read_small(folder: Path, vae: Any, scale: int) -> dict[str, nn.Module]:
    """Return the small networks that ``yonos-train`` put beside the autoencoder, by part."""
    from yonos_train.sd import SdFolderError
    from yonos_train.small import read_small

    channels, factor = int(vae.config.latent_channels), 2 ** (len(vae.config.block_out_channels) - 1)
    try:
        return read_small(folder, scale=scale, latent_channels=channels, latent_factor=factor)[0]
    except SdFolderError as error:
        raise ConfigError(str(error)) from error


def load_part(kind: Any, folder: Path, part: str) -> Any:
    """Load a network of a diffusers folder, as `read_part` does, whole.

    Raises
    ------
    ConfigError
        Tensors are missing, in whose place diffusers would leave random numbers, with a warning.
    """
    network, found = read_part(kind, folder, part)
    require_keys((), found["missing_keys"], str(folder / part), "the weights of the network of config.json")
    return network


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
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / CONTEXT_NAME
    if not path.is_file():
        raise ConfigError(
            f"{path} is missing: the U-Net needs the one prompt embedding it was trained with; save it as "
            "the tensor 'context' (1, L, D), for example the text encoder's output for the empty prompt"
        )
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if "context" not in tensors or tensors["context"].ndim not in (2, 3):
        raise ConfigError(f"{path} holds {sorted(tensors)}, expected one tensor 'context' (1, L, D)")
    context = tensors["context"].float()
    return context if context.ndim == 3 else context[None]
