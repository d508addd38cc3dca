"""Read a shipped model, or any engine directory of the lite profile, back into the torch networks.

An exported graph holds everything at its one time step: the time embedding is folded into the convolutions
it modulates. Read back, the networks compute the same at that time (FiLM layers zero, so that t changes
nothing), and objectives that need other times cannot go on from them. Undone on the way: SpaceToDepth's
channel order in the encoder's first convolution, and the sign and factor of the step in the U-Net's last one.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .model import Bundle, BundleConfig, Encoder, LiteConfig, load_bundle, new_bundle
from .schedule import Schedule

if TYPE_CHECKING:
    from yonos_trt.engine.manifest import EngineManifest
    from yonos_trt.engine.schema import Model

STAGES = {"encoder": "encoder", "step": "unet", "decoder": "decoder"}


def find_start(what: str | os.PathLike[str]) -> Path:
    """Return the folder of a bundle, an engine directory or a shipped model.

    Raises
    ------
    FileNotFoundError
        It is none of them.
    """
    from yonos_trt.backends.choose import find_model, shipped_models

    folder = find_model(Path(what))
    if not any((folder / file).is_file() for file in ("config.json", "manifest.json")):
        raise FileNotFoundError(
            f"{os.fspath(what)}: got neither a bundle (config.json), an engine directory (manifest.json) nor "
            f"a shipped model's name ({', '.join(shipped_models())}); expected one of them"
        )
    return folder


def load_start(what: str | os.PathLike[str], scale: int | None = None) -> Bundle:
    """Return the networks to start training from, FP32.

    Parameters
    ----------
    what
        A bundle folder, an engine directory, or the name of a shipped model; ``{scale}`` in it is replaced.
    scale
        Upscaling factor that it must have; None: any.

    Raises
    ------
    FileNotFoundError
        There is no such folder or model.
    ValueError
        Another scale or time step, or not a model of the lite profile.
    """
    name = os.fspath(what) if scale is None else os.fspath(what).replace("{scale}", str(scale))
    folder = find_start(name)
    if (folder / "config.json").is_file():
        bundle = load_bundle(folder)
    else:
        bundle = bundle_from_engine(folder)
    if scale is not None and bundle.config.scale != scale:
        raise ValueError(f"{name}: its scale is {bundle.config.scale}, expected {scale}")
    if bundle.config.timestep != 1:
        raise ValueError(f"{name}: its one step is at t = {bundle.config.timestep}, expected 1")
    return bundle


def require_times(what: str, scale: int) -> None:
    """Refuse a start that knows t = 1 alone, for a stage that trains at other times.

    Raises
    ------
    ValueError
        It is an engine directory or a shipped model; a bundle has its time layers.
    """
    name = what.replace("{scale}", str(scale))
    if not (find_start(name) / "config.json").is_file():
        raise ValueError(
            f"{name}: an exported model knows t = 1 only (its time layers are folded into its graphs), and "
            f"diffusion stages need other times; start from its bundle (RUN/bundles of its training), or "
            f"train one_step_pixels, decoder, encoder or small_decoder stages"
        )


def bundle_from_engine(folder: str | os.PathLike[str]) -> Bundle:
    """Return an engine directory's networks, FP32; see the module's text for what they can do.

    A model with a dial is read where its dial stands by default.

    Raises
    ------
    ValueError
        The graphs are not those of the lite profile at alpha_1 = 0.
    """
    from yonos_trt.engine.manifest import load_manifest
    from yonos_trt.errors import YonosError

    root = Path(folder)
    try:
        manifest = load_manifest(root, verify=False)
        model = manifest.model
        if model.alpha_1 != 0 or model.timestep != 1:
            raise ValueError(f"its step starts at t = {model.timestep}, alpha = {model.alpha_1}")
        graphs = {stage: _tensors(root, manifest, stage) for stage in STAGES}
        config = BundleConfig(
            name=model.name,
            scale=model.scale,
            architecture=_architecture(graphs, model),
            schedule=Schedule(),
            timestep=model.timestep,
            encoder_input=manifest.tiles.encoder_input,
            tile_px=manifest.tiles.default_px,
            overlap_px=manifest.tiles.overlap_px,
            smallest_tile_px=manifest.tiles.smallest_px,
            largest_tile_px=manifest.tiles.largest_px,
            training=model.training,
            licence=_licence(model),
        )
        bundle = new_bundle(config)
        for stage, name in STAGES.items():
            _fill(getattr(bundle, name), graphs[stage], name, sigma_1=model.sigma_1)
    except (YonosError, KeyError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{root}: its graphs cannot be read back into networks of the lite profile ({error}); expected "
            f"an engine directory that yonos-export wrote from a lite bundle"
        ) from error
    return bundle


def _licence(model: Model) -> dict[str, list[dict[str, str]]]:
    """Return the manifest's licence chain as a bundle keeps it."""
    licence: dict[str, list[dict[str, str]]] = {}
    for link in model.licences:
        licence.setdefault(link.part, []).append({"licence": link.licence, "source": link.source})
    return licence


def _tensors(root: Path, manifest: EngineManifest, stage: str) -> dict[str, Tensor]:
    """Return the tensors of a stage's FP32 graph; every byte of them was hashed."""
    import onnx
    from onnx import numpy_helper

    from yonos_trt.engine.onnx_graph import read_graph

    found = getattr(manifest.stages, stage).find("onnx", "fp32")
    if not found:
        raise ValueError(f"stage {stage} has no FP32 ONNX graph to read weights from")
    read = read_graph(root, found[0], restore=manifest.model.restore)
    graph = onnx.load_from_string(read.inlined()).graph
    return {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}


def _count(tensors: dict[str, Tensor], pattern: str) -> int:
    found = [int(m[1]) for name in tensors if (m := re.match(pattern, name))]
    return max(found, default=-1) + 1


def _architecture(graphs: dict[str, dict[str, Tensor]], model: Model) -> LiteConfig:
    encoder, unet, decoder = (graphs[stage] for stage in STAGES)
    levels = _count(unet, r"unet\.downs\.(\d+)\.")
    widths = [len(unet["unet.conv_in.bias"])] + [len(unet[f"unet.downs.{i}.bias"]) for i in range(levels)]
    return LiteConfig(
        latent_channels=model.latent_channels,
        latent_factor=model.latent_factor,
        encoder_width=len(encoder["encoder.blocks.0.conv1.bias"]),
        encoder_blocks=_count(encoder, r"encoder\.blocks\.(\d+)\."),
        decoder_width=len(decoder["decoder.conv_in.bias"]),
        decoder_blocks=_count(decoder, r"decoder\.blocks\.(\d+)\."),
        decoder_fine_width=decoder["decoder.conv_out.weight"].shape[1],
        decoder_fine_blocks=_count(decoder, r"decoder\.fine_blocks\.(\d+)\."),
        unet_widths=tuple(widths),
        unet_blocks=_count(unet, r"unet\.mid_blocks\.(\d+)\."),
        decoder_anti_imaging=any(t.ndim == 4 and t.shape[1:] == (1, 5, 5) for t in decoder.values()),
    )


def _fill(network: nn.Module, tensors: dict[str, Tensor], name: str, *, sigma_1: float) -> None:
    """Put the graph's tensors into the network; what was folded away keeps the value that changes nothing."""
    found = {
        key.removeprefix(f"{name}."): t.float() for key, t in tensors.items() if key.startswith(f"{name}.")
    }
    if isinstance(network, Encoder) and network.unshuffle > 1:
        weight, cells = found["conv_in.weight"], network.unshuffle**2
        colours = weight.shape[1] // cells
        order = [cell * colours + c for c in range(colours) for cell in range(cells)]
        found["conv_in.weight"] = weight[:, order]
    if name == "unet":
        for part in ("conv_out.weight", "conv_out.bias"):
            found[part] = found[part] / -sigma_1
    state = network.state_dict()
    if name == "decoder":
        per_channel = {key: t for key, t in tensors.items() if t.ndim == 4 and t.shape[0] == t.shape[2] == 1}
        for key, t in per_channel.items():  # z * std + mean, the first two nodes of the graph
            part = "std" if "Mul" in key else "mean"
            found[part] = t.flatten().float()
    folded = [key for key in state if key not in found]
    if unknown := set(found) - set(state):
        raise ValueError(f"{name} has tensors {sorted(unknown)[:3]} that the lite network has not")
    wrong = [key for key in folded if not re.search(r"(^|\.)(film|time_mlp)\.|^(mean|std)$", key)]
    if wrong:
        raise ValueError(f"{name} lacks {wrong[:3]}")
    for key in folded:
        if ".film." in key:
            found[key] = torch.zeros_like(state[key])
        else:
            found[key] = state[key]
    network.load_state_dict(found)
