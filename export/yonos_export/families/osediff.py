"""OSEDiff: Stable Diffusion 2.1-base with LoRA weights in the VAE's encoder and in the U-Net.

The picture's own latent takes the place of the noised one: one U-Net call at t = 999 predicts what is taken
away from it. The file ``osediff.pkl`` is what the authors' code saves: ranks, lists of adapted layers, and
two state dictionaries with the LoRA weights of PEFT adapters and the U-Net's first convolution.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from yonos_export.families.files import read_weights, require_keys, tensors_of
from yonos_export.families.lora import ALPHA, merge, rank_of, read_adapters
from yonos_export.families.sd21 import latent_source, read_base
from yonos_export.source import Source

if TYPE_CHECKING:
    from yonos_export.config import ExportConfig
    from yonos_export.families import Family

_WHAT = "osediff.pkl as OSEDiff's code saves it"
_KEYS = (
    "rank_unet", "rank_vae", "unet_lora_encoder_modules", "unet_lora_decoder_modules",
    "unet_lora_others_modules", "vae_lora_encoder_modules", "state_dict_unet", "state_dict_vae",
)  # fmt: skip


def open_family(family: Family, config: ExportConfig) -> Source:
    """Merge the adapters into the base and fold time step and prompt.

    Raises
    ------
    ConfigError
        The base is another one, or the file is not what the authors' code saves.
    """
    assert config.base is not None
    assert family.timestep is not None
    unet, vae, scheduler = read_base(config.base)
    document = read_weights(config.source, _WHAT)
    require_keys(document, _KEYS, str(config.source), _WHAT)
    apply(document, unet, vae, str(config.source))
    alpha2 = float(scheduler.alphas_cumprod[round(family.timestep)])
    return latent_source(
        family, config, [(unet, 1.0)], vae, alpha_1=math.sqrt(alpha2), sigma_1=math.sqrt(1 - alpha2)
    )


def apply(document: dict[str, Any], unet: Any, vae: Any, where: str) -> None:
    """Merge the file's weights into the base networks."""
    for part, network, adapters in (
        ("unet", unet, ("encoder", "decoder", "others")),
        ("vae", vae, ("encoder",)),
    ):
        rank, here = rank_of(document, f"rank_{part}", where), f"{where}: state_dict_{part}"
        loras, others = read_adapters(
            tensors_of(document[f"state_dict_{part}"], here),
            network,
            {f"default_{name}": (document[f"{part}_lora_{name}_modules"], rank) for name in adapters},
            here,
        )
        expected = ("conv_in.weight", "conv_in.bias") if part == "unet" else ()
        require_keys(others, expected, here, "LoRA weights and the U-Net's conv_in")
        merge(network, [(found, ALPHA / rank) for found in loras.values()], others, here)
