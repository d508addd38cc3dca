"""The one prompt of a family that has one: its embedding, computed here or read from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yonos_export.families.files import read_weights, require_keys, tensors_of
from yonos_trt.errors import ConfigError, install_command


def read_prompt(base: Path, prompt: str | None, embeds: Path | None) -> Tensor:
    """Return the embedding ``(1, L, D)`` of the prompt, of the empty one where nothing is said.

    Raises
    ------
    ConfigError
        The file has no tensor ``context`` of that shape; or there is no file, and the base folder has no text
        encoder or the package transformers is not installed.
    """
    if embeds is not None:
        if embeds.suffix != ".safetensors":
            raise ConfigError(f"prompt_embeds is {embeds}, expected a .safetensors file")
        what = "one tensor 'context' (1, L, D), the text encoder's output"
        context = read_weights(embeds, what).get("context")
        if context is None or context.ndim != 3 or context.shape[0] != 1 or not context.shape[1]:
            shape = None if context is None else tuple(context.shape)
            raise ConfigError(f"{embeds}: context is {shape}, expected {what}")
        return tensors_of({"context": context}, str(embeds))["context"]
    missing = [part for part in ("tokenizer", "text_encoder") if not (base / part).is_dir()]
    if missing:
        raise ConfigError(
            f"{base} has no {' and no '.join(missing)} to compute the prompt's embedding with; expected the "
            "whole diffusers folder, or name a file with the embedding: --prompt-embeds FILE.safetensors "
            "(docs/models.md)"
        )
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            "computing a prompt's embedding, even the empty one's, needs the package transformers, which "
            f"cannot be imported ({error}); install it with: {install_command('prompt')}; or name a file "
            "with the embedding: --prompt-embeds FILE.safetensors (docs/models.md)"
        ) from error
    library: Any = transformers
    try:
        tokenizer = library.CLIPTokenizer.from_pretrained(base / "tokenizer", local_files_only=True)
        encoder, found = library.CLIPTextModel.from_pretrained(
            base / "text_encoder", local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"the text encoder of {base} cannot be loaded: {error}") from error
    where, what = str(base / "text_encoder"), "the weights of the network of config.json"
    require_keys((), found["missing_keys"], where, what)
    tokens = tokenizer(
        prompt or "",
        max_length=tokenizer.model_max_length,
        padding="max_length",
        truncation=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        embedding: Tensor = encoder.eval()(tokens.input_ids)[0]
    return embedding.float()
