"""Read and write the ``sd`` profile: a local diffusers folder of the Stable Diffusion 1.x / 2.x kind.

    FOLDER/unet, FOLDER/vae, FOLDER/scheduler   as diffusers writes them; safetensors, full or half precision
    FOLDER/context.safetensors                  tensor "context" (1, L, D); or text_encoder/ and tokenizer/
    FOLDER/small                                small networks in the autoencoder's place (``small``), or none

A checkpoint that predicts noise becomes a v-predicting student, with the same weights as its start; the first
stage trains it. Nothing is downloaded.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from yonos_trt.atomic import write_file
from yonos_trt.errors import install_command, listed

from .folders import save_tensors
from .model import Bundle
from .schedule import Schedule
from .sd import Prediction, SdConfig, SdDecoder, SdEncoder, SdFolderError, SdUNet, grow_input
from .small import read_small

log = logging.getLogger(__name__)

CONTEXT_FILE = "context.safetensors"
FACTS_FILE = "yonos.json"
_KEPT_FACTS = (
    "name", "scale", "tile_px", "overlap_px", "smallest_tile_px", "largest_tile_px",
    "training", "licence", "card",
)  # fmt: skip


def load_sd(
    folder: str | os.PathLike[str],
    scale: int,
    *,
    name: str | None = None,
    learn_context: bool = False,
    small: bool = True,
    keep_epsilon: bool = False,
    gradient_checkpointing: bool = False,
) -> Bundle:
    """Load a diffusers folder as encoder, 2C-channel U-Net and decoder; float32, on the CPU.

    Parameters
    ----------
    name
        Model name; None takes the folder's.
    learn_context
        Train the context; it starts from the folder's, or from zeros (1, 77, D) where there is none.
    small
        Put the small networks beside the autoencoder, where there are any, into its place.
    keep_epsilon
        Leave a noise-predicting network as it is and convert its output (a teacher); otherwise it becomes a
        v-predicting student that starts from the same weights.
    gradient_checkpointing
        Less memory, about a third more time.

    Raises
    ------
    SdFolderError
        A part is missing, or is not of the Stable Diffusion 1.x / 2.x kind.
    """
    path = Path(folder)
    for part in ("unet", "vae", "scheduler"):
        if not (path / part).is_dir():
            raise SdFolderError(
                f"{path}: no {part}/ in it; expected a diffusers folder (unet, vae, scheduler)."
            )
    unet, vae = _load_part(path, "unet", "UNet2DConditionModel"), _load_part(path, "vae", "AutoencoderKL")
    schedule, prediction = _read_scheduler(path / "scheduler" / "scheduler_config.json")
    channels = int(vae.config.latent_channels)
    if unet.config.out_channels != channels or unet.config.in_channels not in (channels, 2 * channels):
        raise SdFolderError(
            f"{path}: U-Net with {unet.config.in_channels} -> {unet.config.out_channels} channels, but the "
            f"autoencoder has {channels}; expected {channels} or {2 * channels} -> {channels}."
        )
    grow_input(unet, 2 * channels)
    if gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    facts = _read_facts(path)
    config = SdConfig(
        name=name or str(facts.get("name", path.resolve().name)),
        scale=scale,
        latent_channels=channels,
        latent_factor=2 ** (len(vae.config.block_out_channels) - 1),
        unet_factor=2 ** (len(unet.config.block_out_channels) - 1),
        schedule=schedule,
        base_prediction=prediction,
        training=dict(facts.get("training", {})),
        licence=dict(facts.get("licence", {})),
        card=str(facts.get("card", "")),
    )
    context = _read_context(path, int(unet.config.cross_attention_dim), optional=learn_context)
    if prediction == "epsilon" and not keep_epsilon:
        log.info("%s predicts noise; training moves it to v-prediction from the same weights", path)
        prediction = "v_prediction"
    wrapped = SdUNet(unet, context, schedule, prediction=prediction, learn_context=learn_context)
    bundle = Bundle(SdEncoder(vae).eval(), wrapped.eval(), SdDecoder(vae).eval(), cast(Any, config))
    bundle.encoder.requires_grad_(False)
    if not small:
        return bundle
    modules, sizes = read_small(
        path, scale=scale, latent_channels=channels, latent_factor=config.latent_factor
    )
    if modules:
        reads = "lr" if "encoder" in modules else config.encoder_input
        config = dataclasses.replace(config, small=sizes, encoder_input=reads)
        bundle = dataclasses.replace(bundle, config=cast(Any, config), **modules)
    return bundle


def save_sd(bundle: Bundle, base: str | os.PathLike[str], target: str | os.PathLike[str]) -> Path:
    """Write a trained bundle as the diffusers folder that ``yonos-export`` takes.

    The autoencoder's and scheduler's configs come from ``base``, the folder that training started from.
    """
    path, config = Path(target), bundle.config
    unet, encoder, decoder = bundle.unet, bundle.encoder, bundle.decoder
    if (
        not isinstance(unet, SdUNet)
        or not isinstance(encoder, SdEncoder)
        or not isinstance(decoder, SdDecoder)
    ):
        raise SdFolderError("save_sd writes what load_sd made; got other networks. Use save_bundle.")
    if unet.prediction != "v_prediction":
        raise SdFolderError("the U-Net still predicts noise; train it to v-prediction before saving.")
    path.mkdir(parents=True, exist_ok=True)
    vae = _load_part(Path(base), "vae", "AutoencoderKL")
    vae.encoder.load_state_dict(encoder.encoder.state_dict())
    vae.decoder.load_state_dict(decoder.decoder.state_dict())
    for part, module in (("quant_conv", encoder.quant_conv), ("post_quant_conv", decoder.post_quant_conv)):
        if module is not None:
            getattr(vae, part).load_state_dict(module.state_dict())
    vae.save_pretrained(path / "vae")
    unet.unet.save_pretrained(path / "unet")
    scheduler = json.loads((Path(base) / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    scheduler["prediction_type"] = "v_prediction"
    (path / "scheduler").mkdir(exist_ok=True)
    write_file(path / "scheduler" / "scheduler_config.json", json.dumps(scheduler, indent=2) + "\n")
    save_tensors({"context": unet.context}, path / CONTEXT_FILE)
    facts = {key: value for key, value in dataclasses.asdict(config).items() if key in _KEPT_FACTS}
    facts["timestep"] = round(config.timestep * (bundle.schedule.num_timesteps - 1))
    write_file(path / FACTS_FILE, json.dumps(facts, indent=2) + "\n")
    return path


def read_part(kind: Any, folder: Path, part: str) -> Any:
    """Return a network from safetensors in FP32, and diffusers' report on its tensors.

    Half-precision files are taken where there are no others.
    """
    files = {path.name for path in (folder / part).iterdir()} if (folder / part).is_dir() else set()
    full = any(name.endswith(("model.safetensors", ".index.json")) for name in files)
    half = not full and any(name.endswith(".fp16.safetensors") for name in files)
    return kind.from_pretrained(
        folder,
        subfolder=part,
        local_files_only=True,
        use_safetensors=True,
        torch_dtype=torch.float32,
        variant="fp16" if half else None,
        output_loading_info=True,
    )


def _load_part(folder: Path, part: str, kind: str) -> Any:
    import diffusers

    try:
        network, found = read_part(getattr(diffusers, kind), folder, part)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise SdFolderError(
            f"{folder / part} cannot be loaded as {kind} from safetensors: {error}"
        ) from error
    _require_whole(found, folder / part)
    return network


def _require_whole(found: Mapping[str, Any], folder: Path) -> None:
    """Refuse weights with tensors missing: the libraries put random numbers there, with a warning."""
    if missing := sorted(found["missing_keys"]):
        raise SdFolderError(
            f"{folder} lacks {listed(missing)}, which the network of its config.json has; the weights are "
            "another network's, or part of them."
        )


def _read_scheduler(path: Path) -> tuple[Schedule, Prediction]:
    """Return the schedule and what the checkpoint predicts, from ``scheduler_config.json``."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError(f"got a {type(raw).__name__}, expected an object")
    except (OSError, ValueError) as error:
        raise SdFolderError(f"{path} cannot be read: {error}") from error
    if raw.get("beta_schedule") != "scaled_linear" or raw.get("trained_betas") is not None:
        raise SdFolderError(
            f"{path}: beta_schedule {raw.get('beta_schedule')!r} (trained_betas: "
            f"{raw.get('trained_betas')!r}), expected 'scaled_linear' (None)."
        )
    if raw.get("rescale_betas_zero_snr"):
        raise SdFolderError(f"{path}: rescale_betas_zero_snr is set; expected the plain schedule.")
    prediction = raw.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise SdFolderError(f"{path}: prediction_type {prediction!r}, expected 'epsilon' or 'v_prediction'.")
    try:
        start, end, count = float(raw["beta_start"]), float(raw["beta_end"]), int(raw["num_train_timesteps"])
    except (KeyError, TypeError, ValueError) as error:
        raise SdFolderError(
            f"{path}: {error!r}; expected beta_start, beta_end and num_train_timesteps, each a number."
        ) from error
    schedule = Schedule(kind="scaled_linear", beta_start=start, beta_end=end, num_timesteps=count)
    return schedule, prediction


def _read_context(folder: Path, width: int, *, optional: bool) -> Tensor:
    """Return the constant prompt embedding (1, L, D): the file's, the empty prompt's, or zeros."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / CONTEXT_FILE
    if path.is_file():
        try:
            context = load_file(path).get("context")
        except (SafetensorError, OSError) as error:
            raise SdFolderError(f"{path} cannot be read: {error}") from error
        if context is None or context.ndim != 3 or context.shape[0] != 1 or context.shape[2] != width:
            raise SdFolderError(f"{path}: expected one tensor 'context' (1, L, {width}).")
        return context.float()
    if (folder / "text_encoder").is_dir() and (folder / "tokenizer").is_dir():
        return _empty_prompt(folder)
    if optional:
        return torch.zeros(1, 77, width)
    raise SdFolderError(
        f"{folder}: neither {CONTEXT_FILE} nor text_encoder/ and tokenizer/. "
        "Add one of them, or learn the context."
    )


def _empty_prompt(folder: Path) -> Tensor:
    """Return the text encoder's output for the empty prompt."""
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError as error:
        raise SdFolderError(
            "the empty prompt's embedding needs the package transformers, which cannot be imported "
            f"({error}). Install it with: {install_command('prompt')}; or save the embedding as "
            f"{folder / CONTEXT_FILE}."
        ) from error
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        loaded: Any = CLIPTextModel.from_pretrained(
            folder / "text_encoder", local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        encoder, found = loaded
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise SdFolderError(
            f"{folder / 'text_encoder'} cannot be loaded from safetensors: {error}. Save the text encoder "
            f"with safe_serialization=True, or its embedding as {folder / CONTEXT_FILE}."
        ) from error
    _require_whole(found, folder / "text_encoder")
    tokens = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt")
    with torch.no_grad():
        context: Tensor = encoder.eval()(tokens.input_ids)[0].float()
    return context


def _read_facts(folder: Path) -> dict[str, Any]:
    path = folder / FACTS_FILE
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SdFolderError(f"{path} cannot be read: {error}") from error
    return facts if isinstance(facts, dict) else {}
