"""A stage's checkpoints: safetensors files that appear complete or not at all, the two newest kept."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .ema import Ema

log = logging.getLogger(__name__)


class Checkpoint(NamedTuple):
    """What a file holds: tensors by name, steps done, seconds spent."""

    tensors: dict[str, Tensor]
    step: int
    elapsed_s: float
    path: Path


class Checkpoints:
    """The files ``checkpoint-<step>.safetensors`` of a folder.

    Parameters
    ----------
    folder
        The stage's folder.
    keep
        So many of the newest are kept.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def paths(self) -> list[Path]:
        """Return the files, oldest first."""
        return sorted(self.folder.glob("checkpoint-*.safetensors"))

    def write(self, tensors: Mapping[str, Tensor], step: int, elapsed_s: float) -> Path:
        """Write a checkpoint (temporary file, fsync, rename) and drop the oldest beyond ``keep``."""
        from safetensors.torch import save_file

        path = self.folder / f"checkpoint-{step:08d}.safetensors"
        part = path.with_suffix(".part")
        save_file(
            {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
            part,
            metadata={"step": str(step), "elapsed_s": repr(elapsed_s)},
        )
        with open(part, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(part, path)
        for old in self.paths()[: -self.keep]:
            old.unlink()
        return path

    def read(self) -> Checkpoint | None:
        """Return the newest checkpoint that can be read; None where there is none."""
        from safetensors import SafetensorError, safe_open

        for path in reversed(self.paths()):
            try:
                with safe_open(path, framework="pt") as handle:
                    tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
                    meta = handle.metadata()
            except (SafetensorError, OSError) as error:
                log.warning("%s cannot be read (%s); trying the one before", path, error)
                continue
            return Checkpoint(tensors, int(meta["step"]), float(meta["elapsed_s"]), path)
        return None

    def progress(self) -> tuple[int, float]:
        """Return (steps, seconds) of the newest checkpoint, (0, 0) where there is none."""
        from safetensors import safe_open

        if not self.paths():
            return 0, 0.0
        with safe_open(self.paths()[-1], framework="pt") as handle:
            meta = handle.metadata()
        return int(meta["step"]), float(meta["elapsed_s"])


@dataclass(frozen=True)
class TrainingState:
    """What a checkpoint keeps of a stage: weights, their EMA and the optimisers' moments, by group.

    Attributes
    ----------
    groups
        Group -> name -> trained module.
    optimisers, emas
        By group, and by group and name.
    """

    groups: Mapping[str, Mapping[str, nn.Module]]
    optimisers: Mapping[str, torch.optim.Optimizer]
    emas: Mapping[str, Mapping[str, Ema]]

    def tensors(self) -> dict[str, Tensor]:
        """Return everything by name, ``<group>/<module>/weight/<key>`` and so on; not copied."""
        out: dict[str, Tensor] = {}
        for group, modules in self.groups.items():
            for name, module in modules.items():
                for key, value in module.state_dict().items():
                    out[f"{group}/{name}/weight/{key}"] = value
                for key, value in self.emas[group][name].values.items():
                    out[f"{group}/{name}/ema/{key}"] = value
            state = self.optimisers[group].state_dict()["state"]
            for index, entry in state.items():
                for key, value in entry.items():
                    out[f"{group}/optimiser/{index}/{key}"] = torch.as_tensor(value)
        return out

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put the tensors of :meth:`tensors` back."""
        for group, modules in self.groups.items():
            for name, module in modules.items():
                prefix = f"{group}/{name}/weight/"
                weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
                module.load_state_dict(weights)
                for key, value in self.emas[group][name].values.items():
                    value.copy_(tensors[f"{group}/{name}/ema/{key}"])
            state: dict[int, dict[str, Tensor]] = {}
            prefix = f"{group}/optimiser/"
            for key, value in tensors.items():
                if key.startswith(prefix):
                    index, entry = key.removeprefix(prefix).split("/", 1)
                    state.setdefault(int(index), {})[entry] = value
            optimiser = self.optimisers[group]
            optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
