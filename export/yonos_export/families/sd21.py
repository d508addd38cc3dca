"""What the families on Stable Diffusion 2.1-base share: its parts, and a step from the canvas' latent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from yonos_export.diffusers_networks import Constant, ConstantUNet, KLDecoder, KLEncoder, Weighted
from yonos_export.families.prompt import read_prompt
from yonos_export.families.sd import load_part
from yonos_export.model_info import ModelInfo, licence_chain
from yonos_export.source import Source, digests_of
from yonos_export.stages import hash_tensors, make_stages
from yonos_trt.engine.manifest import Model, Origin, Tiles
from yonos_trt.errors import ConfigError

if TYPE_CHECKING:
    from yonos_export.config import ExportConfig
    from yonos_export.families import Family

OVERLAP_PX = 128


def latent_source(
    family: Family,
    config: ExportConfig,
    unets: Sequence[tuple[Any, float]],
    vae: Any,
    *,
    alpha_1: float,
    sigma_1: float,
    files: Sequence[Path] = (),
    said: str = "",
) -> Source:
    """Make the source of a model whose step starts from the latent of the canvas.

    Parameters
    ----------
    unets
        With the weight of what each predicts; time step and prompt are folded into them.
    files
        Of the adapter, for the manifest; none: the source itself.
    said
        What else the manifest says of the adapter.
    """
    assert config.base is not None
    context = read_prompt(config.base, config.prompt, config.prompt_embeds)
    check_context(context, unets[0][0], config.base)
    prompt = (
        f"embedding of {config.prompt_embeds.name}" if config.prompt_embeds else config.prompt or "(empty)"
    )
    adapter = digests_of(files or (config.source,))
    hashed = {"unet": unets[0][0], "vae": vae, "context": Constant(context)}
    if len(unets) > 1 or unets[0][1] != 1:
        hashed |= {f"unet-{i}": unet for i, (unet, _) in enumerate(unets[1:], 1)}
        hashed["weights"] = Constant(torch.tensor([weight for _, weight in unets]))
    info = latent_info(
        family,
        factor=2 ** (len(vae.config.block_out_channels) - 1),
        levels=len(unets[0][0].config.block_out_channels),
        scale=config.scale or family.scale or 4,
        latent_channels=int(vae.config.latent_channels),
        alpha_1=alpha_1,
        sigma_1=sigma_1,
        weights_sha256=hash_tensors(hashed),
        origin=Origin(
            family=family.name,
            base=config.base.resolve().name,
            adapter=f"{adapter}; {said}" if said else adapter,
            prompt=prompt,
            command=config.command,
        ),
    )
    folded = [(ConstantUNet(unet, context, info.model.timestep), weight) for unet, weight in unets]
    network = folded[0][0] if len(folded) == 1 and folded[0][1] == 1 else Weighted(folded)
    stages = make_stages(KLEncoder(vae), network, KLDecoder(vae), info)
    return Source.of(stages, config.source)


def read_base(folder: Path) -> tuple[Any, Any, Any]:
    """Load U-Net, VAE and scheduler of a Stable Diffusion folder whose U-Net predicts noise.

    Raises
    ------
    ConfigError
        A part is missing, or the folder is another kind of model.
    """
    import diffusers

    library: Any = diffusers
    if missing := [f"{part}/" for part in ("unet", "vae", "scheduler") if not (folder / part).is_dir()]:
        raise ConfigError(
            f"{folder} has no {' and no '.join(missing)}; expected the diffusers folder of the base"
        )
    try:
        unet = load_part(library.UNet2DConditionModel, folder, "unet")
        vae = load_part(library.AutoencoderKL, folder, "vae")
        scheduler = library.DDPMScheduler.from_pretrained(
            folder, subfolder="scheduler", local_files_only=True
        )
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(
            f"{folder} cannot be loaded as a diffusers folder with unet/, vae/ and scheduler/: {error}"
        ) from error
    kind, channels = scheduler.config.prediction_type, vae.config.latent_channels
    if kind != "epsilon":
        raise ConfigError(
            f"{folder}: its scheduler says prediction_type {kind!r}, expected 'epsilon': the base is Stable "
            "Diffusion 2.1-base (512 px), not 2.1 (768 px)"
        )
    if (unet.config.in_channels, unet.config.out_channels) != (channels, channels):
        raise ConfigError(
            f"{folder}: the U-Net has {unet.config.in_channels} -> {unet.config.out_channels} channels, "
            f"expected {channels} -> {channels}, those of the VAE's latent"
        )
    return unet, vae, scheduler


def check_context(context: Tensor, unet: Any, base: Path) -> None:
    """Refuse an embedding of another width than the U-Net's."""
    if context.shape[-1] != unet.config.cross_attention_dim:
        raise ConfigError(
            f"the prompt's embedding is {context.shape[-1]} wide, the U-Net of {base} expects "
            f"{unet.config.cross_attention_dim}: it comes from another text encoder"
        )


def latent_info(family: Family, *, factor: int, levels: int, scale: int, **facts: Any) -> ModelInfo:
    """Return the facts of a model whose step starts from the latent of the canvas.

    `factor` are the canvas px of a latent cell, `levels` those of the U-Net; `facts` are further fields of
    the manifest's model.
    """
    multiple = math.lcm(factor * 2 ** (levels - 1), scale)
    smallest, default, largest = (-(-side // multiple) * multiple for side in (256, 512, 1024))
    model = Model(
        name=f"{family.name}-x{scale}",
        scale=scale,
        latent_factor=factor,
        timestep=family.timestep or 0.0,
        licences=licence_chain(family.licences),
        start="latent",
        color_fix=family.color_fix,
        **facts,
    )
    tiles = Tiles(
        smallest_px=smallest,
        default_px=default,
        largest_px=largest,
        multiple_px=multiple,
        overlap_px=OVERLAP_PX,
        encoder_input=family.encoder_input or "upsampled",
    )
    return ModelInfo(model, tiles)
