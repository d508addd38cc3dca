"""Small networks that stand in for a bundle's own: an encoder that reads LR pictures, a decoder of less work.

Both are the lite profile's classes, on the latents of either profile. In a lite bundle they simply are the
encoder and the decoder, of other sizes; in a diffusers folder they lie beside the autoencoder::

    <folder>/small/config.json             sizes, scale, parts
    <folder>/small/<part>.safetensors      part: encoder, decoder
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import nn

from yonos_trt.atomic import write_file

from .folders import save_tensors
from .model import Bundle, BundleConfig, Decoder, Encoder, LiteConfig, set_latent_stats
from .sd import SdConfig, SdFolderError

FOLDER: Final = "small"
# What a stage's ``network`` may set, by the stage's kind.
SIZES: Final[Mapping[str, tuple[str, ...]]] = {
    "encoder": ("encoder_width", "encoder_blocks"),
    "small_decoder": ("decoder_width", "decoder_blocks", "decoder_fine_width", "decoder_fine_blocks"),
}
PARTS: Final[Mapping[str, str]] = {"encoder": "encoder", "small_decoder": "decoder"}
SUFFIXES: Final[Mapping[str, str]] = {"encoder": "-lr", "small_decoder": "-small"}


def architecture(config: BundleConfig | SdConfig, network: Mapping[str, Any]) -> LiteConfig:
    """Return the sizes of small networks on the latents of ``config``, with the changes ``network``."""
    if isinstance(config, SdConfig):
        own = config.small or LiteConfig(config.latent_channels, config.latent_factor)
    else:
        own = config.architecture
    return dataclasses.replace(own, **network)


def make_small(kind: str, bundle: Bundle, network: Mapping[str, Any]) -> nn.Module:
    """Return a small network to train: as much of the bundle's own as fits, the rest random."""
    sizes = architecture(bundle.config, network)
    own: nn.Module = getattr(bundle, PARTS[kind])
    small = _build(PARTS[kind], sizes, bundle.config.scale)
    if isinstance(own, (Encoder, Decoder)):
        set_latent_stats(small, small, own.get_buffer("mean"), own.get_buffer("std"))
    if kind == "encoder" and isinstance(own, Encoder) and sizes == bundle.config.architecture:
        for part in ("blocks", "conv_out"):  # they work on the same latent grid
            small.get_submodule(part).load_state_dict(own.get_submodule(part).state_dict())
    return small


def with_small(kind: str, bundle: Bundle, small: nn.Module, network: Mapping[str, Any]) -> Bundle:
    """Return the bundle with a small network in its place, and a name that says so."""
    sizes = architecture(bundle.config, network)
    changes: dict[str, Any] = {"name": bundle.config.name + SUFFIXES[kind]}
    changes["small" if isinstance(bundle.config, SdConfig) else "architecture"] = sizes
    if kind == "encoder":
        changes["encoder_input"] = "lr"
    config = dataclasses.replace(bundle.config, **changes)
    return dataclasses.replace(bundle, config=config, **{PARTS[kind]: small.eval()})


# ----------------------------------------------------------------------------------------------------------
# Beside a diffusers autoencoder


def save_small(bundle: Bundle, folder: str | os.PathLike[str]) -> None:
    """Write the small networks of a diffusers bundle into ``<folder>/small``, ``config.json`` last."""
    sizes = architecture(bundle.config, {})
    path = Path(folder) / FOLDER
    path.mkdir(parents=True, exist_ok=True)
    modules = {part: getattr(bundle, part) for part in PARTS.values()}
    parts = [part for part, module in modules.items() if isinstance(module, (Encoder, Decoder))]
    for part in parts:
        save_tensors(
            {k: v.float() for k, v in modules[part].state_dict().items()}, path / f"{part}.safetensors"
        )
    facts = {"architecture": dataclasses.asdict(sizes), "scale": bundle.config.scale, "parts": parts}
    write_file(path / "config.json", json.dumps(facts, indent=2) + "\n")


def read_small(
    folder: str | os.PathLike[str], *, scale: int, latent_channels: int, latent_factor: int
) -> tuple[dict[str, nn.Module], LiteConfig | None]:
    """Return the small networks beside an autoencoder by part, in evaluation mode, and their sizes.

    None and no network where ``<folder>/small`` is not there.

    Raises
    ------
    SdFolderError
        They are damaged, or made for another scale or latent.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(folder) / FOLDER
    if not path.is_dir():
        return {}, None
    try:
        raw = json.loads((path / "config.json").read_text(encoding="utf-8"))
        raw["architecture"]["unet_widths"] = tuple(raw["architecture"]["unet_widths"])
        sizes, parts, made_for = LiteConfig(**raw["architecture"]), list(raw["parts"]), int(raw["scale"])
        got = (made_for, sizes.latent_channels, sizes.latent_factor)
        if got != (scale, latent_channels, latent_factor):
            raise SdFolderError(
                f"{path}: made for scale, latent channels and factor {got}, "
                f"expected {(scale, latent_channels, latent_factor)}."
            )
        modules = {part: _build(part, sizes, scale) for part in parts}
        for part, module in modules.items():
            module.load_state_dict(load_file(path / f"{part}.safetensors"))
            module.requires_grad_(False).eval()
    except SdFolderError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise SdFolderError(
            f"{path} cannot be read: {error}. Train it again, or remove it to use the autoencoder."
        ) from error
    return modules, sizes


def _build(part: str, sizes: LiteConfig, scale: int) -> nn.Module:
    if part == "encoder":
        return Encoder(sizes, lr_scale=scale)
    if part == "decoder":
        return Decoder(sizes)
    raise ValueError(f"part: got {part!r}, expected encoder or decoder")
