"""Weight files of others: hostile until proven, read as tensors and plain values only."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yonos_trt.errors import ConfigError, listed


def read_weights(path: Path, what: str) -> dict[str, Any]:
    """Read a ``torch.save`` file (tensors, numbers, text, lists and dictionaries only) or safetensors.

    Parameters
    ----------
    path
        The file; nothing in it is ever executed.
    what
        For messages: what the file should be.

    Raises
    ------
    ConfigError
        The file is damaged, holds anything else, or is no dictionary with text for keys.
    """
    if not path.is_file():
        raise ConfigError(f"{path} is not a file; expected {what}")
    with path.open("rb") as stream:
        start = stream.read(40)
    if start.startswith(b"version https://git-lfs"):
        raise ConfigError(
            f"{path} is a pointer of Git LFS, not the file: `git lfs pull` brings it; expected {what}"
        )
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except (SafetensorError, OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read as safetensors: {error}; expected {what}") from error
    if not start.startswith((b"PK", b"\x80")):  # zip file and pickle: the two forms of torch.save
        raise ConfigError(f"{path} is no torch file, it begins with {start[:16]!r}; expected {what}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's guesses about what the file might be
            document = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of zip files, pickles and torch alike; all of them mean the same
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        code = next((line for line in lines if "GLOBAL" in line or "Unsupported" in line), None)
        if isinstance(error, pickle.UnpicklingError) and code is not None:
            raise ConfigError(
                f"{path} holds more than tensors and plain values ({code}); such a file can run any code "
                f"when it is loaded, so it is not; expected {what}. If you trust it, save its tensors alone "
                "with torch.save, or as safetensors"
            ) from error
        reason = lines[0] if lines else type(error).__name__
        raise ConfigError(f"{path} is damaged or no torch file ({reason}); expected {what}") from error
    if not isinstance(document, Mapping) or not all(isinstance(key, str) for key in document):
        raise ConfigError(f"{path} holds {type(document).__name__}, expected a dictionary: {what}")
    return dict(document)


def tensors_of(part: Any, where: str) -> dict[str, Tensor]:
    """Return a state dictionary in FP32; anything that is no finite floating-point tensor is refused."""
    if not isinstance(part, Mapping):
        raise ConfigError(f"{where} is {type(part).__name__}, expected a dictionary of tensors")
    found = {}
    for key, value in part.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ConfigError(f"{where}: {key!r} is {type(value).__name__}, expected a tensor")
        if not value.is_floating_point() or value.layout != torch.strided:
            raise ConfigError(f"{where}: {key!r} is {value.dtype}, expected floating point")
        if not torch.isfinite(value).all():
            raise ConfigError(f"{where}: {key!r} has NaN or infinity; the file is damaged")
        found[key] = value.detach().float()
    return found


def require_keys(
    found: Iterable[str], expected: Iterable[str], where: str, what: str, *, optional: Iterable[str] = ()
) -> None:
    """Refuse missing and unknown keys by name.

    Raises
    ------
    ConfigError
        Names up to twenty of each.
    """
    have, want = set(found), set(expected)
    missing, unknown = sorted(want - have), sorted(have - want - set(optional))
    said = [
        f"{word} {listed(names)}" for word, names in (("lacks", missing), ("has unknown", unknown)) if names
    ]
    if said:
        raise ConfigError(f"{where} {' and '.join(said)}; expected {what}")
