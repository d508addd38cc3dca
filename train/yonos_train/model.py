"""A trained model: its three networks, its config, and the folder they are kept in."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from yonos_trt.atomic import write_file

from .folders import RunFileError, save_tensors
from .networks import Decoder, Encoder, LiteConfig, UNet, set_latent_stats
from .schedule import Schedule

__all__ = [
    "Bundle",
    "BundleConfig",
    "Decoder",
    "Encoder",
    "LiteConfig",
    "ModelFacts",
    "UNet",
    "load_bundle",
    "new_bundle",
    "save_bundle",
    "set_latent_stats",
    "weights_sha256",
    "with_decoder",
]

BUNDLE_FORMAT = 1


@dataclass(frozen=True)
class ModelFacts:
    """What an exporter has to know about a trained model of any profile.

    Attributes
    ----------
    name
        Model name, e.g. ``lite-x4``.
    scale
        Upscaling factor s.
    timestep
        t of the single step, in [0, 1].
    encoder_input
        ``"upsampled"``: the encoder reads the bicubic canvas; ``"lr"``: it reads the LR picture.
    tile_px, overlap_px, smallest_tile_px, largest_tile_px
        Tile sizes for inference, in output pixels.
    training, licence, card
        Free-form facts for the manifest: what was trained on what, under which licences, limits.
    """

    name: str
    scale: int
    _: KW_ONLY
    timestep: float = 1.0
    encoder_input: str = "upsampled"
    tile_px: int = 512
    overlap_px: int = 64
    smallest_tile_px: int = 64
    largest_tile_px: int = 1024
    training: dict[str, Any] = field(default_factory=dict)
    licence: dict[str, Any] = field(default_factory=dict)
    card: str = ""


@dataclass(frozen=True)
class BundleConfig(ModelFacts):
    """``config.json`` of a bundle: the facts, sizes of the networks (lite profile), noise schedule."""

    architecture: LiteConfig = field(default_factory=LiteConfig)
    schedule: Schedule = field(default_factory=Schedule)

    @property
    def latent_channels(self) -> int:
        return self.architecture.latent_channels

    @property
    def latent_factor(self) -> int:
        return self.architecture.latent_factor

    @property
    def multiple_px(self) -> int:
        """Granularity of tile origins and sizes: a common multiple of the networks' and of the scale."""
        return math.lcm(self.architecture.multiple_px, self.scale)

    def to_json(self) -> str:
        return json.dumps({"format": BUNDLE_FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> BundleConfig:
        raw = json.loads(text)
        found = raw.pop("format", None)
        if found != BUNDLE_FORMAT:
            raise ValueError(f"bundle format: got {found!r}, expected {BUNDLE_FORMAT}")
        arch = raw.pop("architecture")
        arch["unet_widths"] = tuple(arch["unet_widths"])
        return cls(architecture=LiteConfig(**arch), schedule=Schedule(**raw.pop("schedule")), **raw)


@dataclass
class Bundle:
    """The three networks of one scale, in evaluation mode, with their config."""

    encoder: nn.Module
    unet: nn.Module
    decoder: nn.Module
    config: BundleConfig

    @property
    def schedule(self) -> Schedule:
        return self.config.schedule


def new_bundle(config: BundleConfig) -> Bundle:
    """Make randomly initialised networks for ``config`` (torch's global generator)."""
    arch = config.architecture
    lr_scale = config.scale if config.encoder_input == "lr" else None
    return Bundle(Encoder(arch, lr_scale=lr_scale).eval(), UNet(arch).eval(), Decoder(arch).eval(), config)


def with_decoder(bundle: Bundle, network: Mapping[str, Any]) -> Bundle:
    """Return the bundle with the changes ``network`` made to its decoder, which keeps its weights.

    Raises
    ------
    ValueError
        The bundle's decoder is not the lite profile's, or the weights do not fit the changed one.
    """
    if not network:
        return bundle
    if not isinstance(bundle.decoder, Decoder):
        raise ValueError(
            f"decoder: got changes {dict(network)} for a {type(bundle.decoder).__name__}, expected none; "
            f"only the lite profile's decoder has them"
        )
    sizes = dataclasses.replace(bundle.config.architecture, **network)
    decoder = Decoder(sizes).eval()
    try:
        decoder.load_state_dict(bundle.decoder.state_dict())
    except RuntimeError as error:
        raise ValueError(f"decoder: weights do not fit the changes {dict(network)}: {error}") from error
    config = dataclasses.replace(bundle.config, architecture=sizes)
    return dataclasses.replace(bundle, decoder=decoder, config=config)


def save_bundle(bundle: Bundle, folder: str | os.PathLike[str]) -> Path:
    """Write ``config.json`` and three safetensors files; each file appears complete or not at all."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    for name in ("encoder", "unet", "decoder"):
        module: nn.Module = getattr(bundle, name)
        save_tensors({k: v.float() for k, v in module.state_dict().items()}, path / f"{name}.safetensors")
    write_file(path / "config.json", bundle.config.to_json())
    return path


def load_bundle(folder: str | os.PathLike[str]) -> Bundle:
    """Read a bundle folder written by :func:`save_bundle`; networks are FP32, on the CPU, in evaluation mode.

    Raises
    ------
    RunFileError
        A file is missing, damaged or of another format, or weights do not fit the architecture; the message
        names it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(folder)
    config_path = path / "config.json"
    if not config_path.is_file():
        raise RunFileError(f"{config_path}: not found; expected a checkpoint folder written by yonos-train")
    try:
        bundle = new_bundle(BundleConfig.from_json(config_path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFileError(
            f"{config_path}: not a lite bundle's ({error!r}); expected a folder that yonos-train wrote below "
            f"RUN/bundles"
        ) from error
    for name in ("encoder", "unet", "decoder"):
        file = path / f"{name}.safetensors"
        if not file.is_file():
            raise RunFileError(f"{file}: not found; expected encoder, unet and decoder beside config.json")
        module: nn.Module = getattr(bundle, name)
        try:
            module.load_state_dict(load_file(file))
        except (SafetensorError, OSError) as error:
            raise RunFileError(f"{file}: cannot be read: {error}") from error
        except RuntimeError as error:
            raise RunFileError(
                f"{file}: weights do not fit the architecture in config.json: {error}"
            ) from error
        module.requires_grad_(False)
    return bundle


def weights_sha256(bundle: Bundle) -> str:
    """Hash every tensor of the three networks (name, shape, FP32 bytes), independent of file layout."""
    digest = hashlib.sha256()
    for part in ("encoder", "unet", "decoder"):
        module: nn.Module = getattr(bundle, part)
        for key, value in sorted(module.state_dict().items()):
            digest.update(f"{part}.{key}{tuple(value.shape)}".encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
