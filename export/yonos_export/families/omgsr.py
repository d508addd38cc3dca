"""OMGSR-S: Stable Diffusion 2.1-base with LoRA in the VAE's encoder and the U-Net, entered in the middle.

The picture's own latent stands for z_t at t = 273, where noise and degradation are about equally strong. The
adapter is a folder as PEFT saves it::

    FOLDER/unet_lora_adapter/           adapter_config.json, adapter_model.safetensors (or .bin)
    FOLDER/vae_encoder_lora_adapter/    the same, for the VAE's encoder
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yonos_export.families.files import read_weights, require_keys, tensors_of
from yonos_export.families.lora import merge, rank_of, read_adapters
from yonos_export.families.sd21 import latent_source, read_base
from yonos_export.source import Source
from yonos_trt.errors import ConfigError

if TYPE_CHECKING:
    from yonos_export.config import ExportConfig
    from yonos_export.families import Family

UNET, ENCODER = "unet_lora_adapter", "vae_encoder_lora_adapter"
_PREFIX = "base_model.model."
# What PEFT can do to a layer beside alpha / rank * B A, and the value that means: nothing of it.
_PLAIN: dict[str, Any] = {
    "peft_type": "LORA", "use_dora": False, "use_rslora": False, "fan_in_fan_out": False, "bias": "none",
    "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None, "lora_bias": False,
}  # fmt: skip


def open_family(family: Family, config: ExportConfig) -> Source:
    """Merge the adapters into the base and fold time step and prompt.

    Raises
    ------
    ConfigError
        The base is another one, or the folder is not what the authors' code saves.
    """
    assert config.base is not None
    assert family.timestep is not None
    unet, vae, scheduler = read_base(config.base)
    files = [
        merge_folder(config.source / name, network)
        for name, network in ((UNET, unet), (ENCODER, vae.encoder))
    ]
    alpha2 = float(scheduler.alphas_cumprod[round(family.timestep)])
    return latent_source(
        family,
        config,
        [(unet, 1.0)],
        vae,
        alpha_1=math.sqrt(alpha2),
        sigma_1=math.sqrt(1 - alpha2),
        files=files,
    )


def merge_folder(folder: Path, network: Any) -> Path:
    """Merge a folder that PEFT saved into the network; return its file of weights.

    Raises
    ------
    ConfigError
        The folder is another one, or its adapter does more than LoRA.
    """
    path = folder / "adapter_config.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        alpha, listed = float(document["lora_alpha"]), document["target_modules"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is no adapter_config.json of PEFT ({error!r}); expected OMGSR-S's folder with {UNET}/ "
            f"and {ENCODER}/"
        ) from error
    for key, plain in _PLAIN.items():
        if document.get(key, plain) not in (plain, None):
            raise ConfigError(f"{path}: {key} is {document[key]!r}, expected {plain!r}: plain LoRA weights")
    if not math.isfinite(alpha):
        raise ConfigError(f"{path}: lora_alpha is {alpha}, expected a finite number")
    rank, found = rank_of({"r": None, **document}, "r", str(path)), folder / "adapter_model.safetensors"
    if not found.is_file() and (folder / "adapter_model.bin").is_file():
        found = folder / "adapter_model.bin"
    where = str(found)
    tensors = tensors_of(read_weights(found, "PEFT's LoRA weights"), where)
    require_keys([k for k in tensors if not k.startswith(_PREFIX)], (), where, f"{_PREFIX}*")
    named = {
        key.removeprefix(_PREFIX)
        .replace(".lora_A.weight", ".lora_A.default.weight")
        .replace(".lora_B.weight", ".lora_B.default.weight"): value
        for key, value in tensors.items()
    }
    if isinstance(listed, list):  # names of kinds of layers, of which a network need not have every one
        layers = [f".{name}" for name, _ in network.named_modules()]
        listed = [kind for kind in listed if any(name.endswith(f".{kind}") for name in layers)]
    loras, others = read_adapters(named, network, {"default": (listed, rank)}, where)
    require_keys(others, (), where, "LoRA weights alone")
    merge(network, [(loras["default"], alpha / rank)], others, where)
    return found
