"""PiSA-SR: Stable Diffusion 2.1-base with two sets of LoRA weights in the U-Net, for pixels and for meaning.

The U-Net is called at t = 1 on the picture's own latent, and what it predicts is taken away from it as it is:
``z_0 = z_l - eps``. The strengths weigh predictions, not weights, as in the authors' code::

    eps = pixel * eps_pixel + semantic * (eps_both - eps_pixel)

Equal strengths (the default: 1 and 1) need one call, ``pixel * eps_both``, and so does ``semantic = 0``;
any others need both networks in the graph and two calls a tile. The file ``pisa_sr.pkl`` is what the authors'
code saves; the VAE is the base's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from yonos_export.families.files import read_weights, require_keys, tensors_of
from yonos_export.families.lora import ALPHA, merge, rank_of, read_adapters
from yonos_export.families.sd21 import latent_source, read_base
from yonos_export.source import Source

if TYPE_CHECKING:
    from yonos_export.config import ExportConfig
    from yonos_export.families import Family

_WHAT = "pisa_sr.pkl as PiSA-SR's code saves it"
_PARTS = ("encoder", "decoder", "others")
_KEYS = (
    *(f"unet_lora_{part}_modules_{kind}" for kind in ("pix", "sem") for part in _PARTS),
    "lora_rank_unet_pix", "lora_rank_unet_sem", "state_dict_unet",
)  # fmt: skip


def open_family(family: Family, config: ExportConfig) -> Source:
    """Merge the adapters into the base and fold time step and prompt.

    Raises
    ------
    ConfigError
        The base is another one, or the file is not what the authors' code saves.
    """
    assert config.base is not None
    pixel, semantic = (1.0 if x is None else x for x in (config.pixel, config.semantic))
    document = read_weights(config.source, _WHAT)
    require_keys(document, _KEYS, str(config.source), _WHAT)
    unet, vae, _ = read_base(config.base)
    if semantic == pixel:
        unets = [(merged(document, unet, ("pix", "sem"), str(config.source)), pixel)]
    else:
        unets = [(merged(document, unet, ("pix",), str(config.source)), pixel - semantic)]
        if semantic:
            other = read_base(config.base)[0]
            unets.append((merged(document, other, ("pix", "sem"), str(config.source)), semantic))
    return latent_source(
        family, config, unets, vae, alpha_1=1.0, sigma_1=1.0, said=f"pixel {pixel:g}, semantic {semantic:g}"
    )


def merged(document: dict[str, Any], unet: Any, kinds: tuple[str, ...], where: str) -> Any:
    """Return the U-Net with the adapters of some kinds merged; the others are looked at too."""
    here = f"{where}: state_dict_unet"
    ranks = {kind: rank_of(document, f"lora_rank_unet_{kind}", where) for kind in ("pix", "sem")}
    adapters = {
        f"default_{part}_{kind}": (document[f"unet_lora_{part}_modules_{kind}"], rank)
        for kind, rank in ranks.items()
        for part in _PARTS
    }
    loras, others = read_adapters(tensors_of(document["state_dict_unet"], here), unet, adapters, here)
    require_keys(others, (), here, "LoRA weights alone")
    chosen = [(loras[f"default_{part}_{kind}"], ALPHA / ranks[kind]) for kind in kinds for part in _PARTS]
    merge(unet, chosen, others, here)
    return unet
