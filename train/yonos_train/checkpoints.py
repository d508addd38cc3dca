"""A stage's checkpoints: safetensors files that appear complete or not at all, the two newest kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .ema import Ema
from .folders import save_tensors

log = logging.getLogger(__name__)

_MOMENTS = {"step", "exp_avg", "exp_avg_sq"}  # of AdamW, for each parameter that ever had a gradient


class TrainingError(RuntimeError):
    """Training cannot go on; the message says where it stopped and which checkpoint is good."""


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
        """Write a checkpoint whole and drop the oldest beyond ``keep``."""
        path = self.folder / f"checkpoint-{step:08d}.safetensors"
        facts = {"step": str(step), "elapsed_s": repr(elapsed_s), "tensors": str(len(tensors))}
        save_tensors({k: v.detach().cpu().clone() for k, v in tensors.items()}, path, metadata=facts)
        for old in self.paths()[: -self.keep]:
            old.unlink()
        return path

    def read(self, misfit: Callable[[Mapping[str, Tensor]], str | None] | None = None) -> Checkpoint | None:
        """Return the newest checkpoint that can be used; None where there is none at all.

        ``misfit`` says why a file's tensors cannot be used, or None.

        Raises
        ------
        TrainingError
            There are checkpoints, and none of them can be used.
        """
        from safetensors import SafetensorError, safe_open

        why = ""
        for path in reversed(self.paths()):
            try:
                with safe_open(path, framework="pt") as handle:
                    tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
                    found = Checkpoint(tensors, *_progress(handle.metadata()), path)
                    count = int(handle.metadata().get("tensors", len(tensors)))
                if len(tensors) != count:
                    raise ValueError(f"{len(tensors)} tensors, expected {count}")
                if misfit is not None and (reason := misfit(tensors)):
                    raise ValueError(reason)
            except (SafetensorError, OSError, ValueError) as error:
                log.warning("%s cannot be used (%s); trying the one before", path, error)
                why = why or f"{path}: {error}"
                continue
            return found
        if why:
            raise TrainingError(
                f"none of the checkpoints in {self.folder} can be used; {why}. Remove them to train the "
                f"stage from its start, or restore one"
            )
        return None

    def progress(self) -> tuple[int, float]:
        """Return (steps, seconds) of the newest checkpoint that can be read, (0, 0) where there is none."""
        from safetensors import SafetensorError, safe_open

        for path in reversed(self.paths()):
            try:
                with safe_open(path, framework="pt") as handle:
                    return _progress(handle.metadata())
            except (SafetensorError, OSError, ValueError) as error:
                log.warning("%s cannot be read (%s); trying the one before", path, error)
        return 0, 0.0


def _progress(metadata: Mapping[str, str] | None) -> tuple[int, float]:
    """Return a checkpoint's (steps, seconds)."""
    try:
        step, elapsed_s = int((metadata or {})["step"]), float((metadata or {})["elapsed_s"])
    except KeyError as error:
        raise ValueError(f"its metadata have no {error}") from error
    return step, elapsed_s


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

    def misfit(self, tensors: Mapping[str, Tensor]) -> str | None:
        """Return why `restore` cannot take ``tensors``, the first reason; None where it can."""
        own = {name: value for name, value in self.tensors().items() if name.split("/")[1] != "optimiser"}
        for name, value in own.items():
            if name not in tensors:
                return f"{name} is missing"
            if tensors[name].shape != value.shape:
                return f"{name} has shape {tuple(tensors[name].shape)}, expected {tuple(value.shape)}"
        entries: dict[tuple[str, int], set[str]] = {}
        for name, value in tensors.items():
            if name in own:
                continue
            group, kind, *rest = name.split("/")
            if group not in self.groups or kind != "optimiser" or len(rest) != 2 or not rest[0].isdigit():
                return f"{name} is none of this stage's tensors"
            params, index = self._parameters(group), int(rest[0])
            shape = params[index].shape if index < len(params) and rest[1] != "step" else torch.Size()
            if index >= len(params) or rest[1] not in _MOMENTS or value.shape != shape:
                return f"{name} has shape {tuple(value.shape)}, expected {tuple(shape)}"
            entries.setdefault((group, index), set()).add(rest[1])
        for (group, index), names in entries.items():
            if names != _MOMENTS:
                return f"{group}/optimiser/{index}/{min(_MOMENTS - names)} is missing"
        return None

    def _parameters(self, group: str) -> list[nn.Parameter]:
        return [p for entry in self.optimisers[group].param_groups for p in entry["params"]]

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put the tensors of :meth:`tensors` back; :meth:`misfit` says beforehand whether that goes."""
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
