"""Small models for the tests of the export: a lite bundle, and a Stable-Diffusion-shaped diffusers folder."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from yonos_train.model import Bundle, BundleConfig, LiteConfig, new_bundle, save_bundle
from yonos_train.schedule import Schedule

SMALL = LiteConfig(
    latent_channels=4,
    latent_factor=4,
    encoder_width=8,
    encoder_blocks=1,
    decoder_width=8,
    decoder_blocks=1,
    decoder_fine_width=8,
    decoder_fine_blocks=1,
    unet_widths=(8, 12),
    unet_blocks=1,
    time_dim=8,
)


def small_bundle(*, seed: int = 0, **changes: Any) -> Bundle:
    """Make a lite bundle in which every layer does something (fresh ones start some layers at zero)."""
    torch.manual_seed(seed)
    options: dict[str, Any] = {
        "name": "small-x4",
        "scale": 4,
        "architecture": SMALL,
        "tile_px": 64,
        "overlap_px": 16,
        "smallest_tile_px": 32,
        "largest_tile_px": 128,
        "training": {"steps": 3},
        "licence": {"code": "Apache-2.0", "data": {"licence": "CC0-1.0", "source": "made up"}},
        "card": "# small-x4\n",
    }
    bundle = new_bundle(BundleConfig(**{**options, **changes}))
    with torch.no_grad():
        for module in (bundle.encoder, bundle.unet, bundle.decoder):
            for parameter in module.parameters():
                if not parameter.any():
                    nn.init.normal_(parameter, std=0.1)
        bundle.encoder.get_buffer("mean").normal_()
        bundle.encoder.get_buffer("std").uniform_(0.5, 2.0)
        bundle.decoder.get_buffer("mean").copy_(bundle.encoder.get_buffer("mean"))
        bundle.decoder.get_buffer("std").copy_(bundle.encoder.get_buffer("std"))
    return bundle


def small_checkpoint(folder: Path, **changes: Any) -> Path:
    """Save `small_bundle` as a checkpoint folder."""
    return save_bundle(small_bundle(**changes), folder)


def sd_schedule() -> Schedule:
    """Stable Diffusion's schedule: alpha_1 is not zero."""
    return Schedule(kind="scaled_linear")


def small_sd_parts() -> tuple[Any, Any, Any, torch.Tensor]:
    """Make U-Net, autoencoder, scheduler and prompt embedding in Stable Diffusion's shape, tiny."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=4,
        block_out_channels=(8,),
        layers_per_block=1,
        cross_attention_dim=12,
        attention_head_dim=2,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("CrossAttnUpBlock2D",),
        use_linear_projection=True,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction"
    )
    return unet.eval(), vae.eval(), scheduler, torch.randn(1, 5, 12)


SD_FACTS = {
    "name": "small-sd",
    "scale": 4,
    "smallest_tile_px": 32,
    "tile_px": 64,
    "largest_tile_px": 128,
    "overlap_px": 16,
}


def small_sd_folder(folder: Path) -> Path:
    """Save `small_sd_parts` as a diffusers folder."""
    from safetensors.torch import save_file

    unet, vae, scheduler, context = small_sd_parts()
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    scheduler.save_pretrained(folder / "scheduler")
    save_file({"context": context}, folder / "context.safetensors")
    (folder / "yonos.json").write_text(json.dumps(SD_FACTS), encoding="utf-8")
    return folder


def random_feed(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Make Gaussian inputs."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
