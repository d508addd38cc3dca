"""A teacher's multi-step samples: computed on the fly, or once and kept on disk.

One file a batch, ``<key>.safetensors``, where the key is the seed of the batch's noise and so stands for run
seed, step, process and crops. Each file says what it was made with; one that does not fit is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from ..folders import save_tensors
from ..schedule import Schedule, ddim

log = logging.getLogger(__name__)

LARGEST_RMS = (
    0.02  # of z_l against the file's: bf16 on another machine stays below, another picture is near 1
)


class StaleReferencesError(ValueError):
    """A file of references was made with something else; the message says with what."""


class References:
    """Deterministic samples of a frozen teacher.

    Parameters
    ----------
    teacher, schedule, steps
        Network, its schedule, and the number of DDIM steps.
    folder
        Where references are kept; None: nowhere. Created when missing; several runs may share it.
    """

    def __init__(
        self, teacher: nn.Module, schedule: Schedule, steps: int, folder: str | os.PathLike[str] | None = None
    ) -> None:
        if steps < 1:
            raise ValueError(f"teacher_steps: got {steps}, expected >= 1")
        self.teacher, self.schedule, self.steps = teacher, schedule, steps
        self.folder = None if folder is None else Path(folder)
        self._weights: str | None = None

    @torch.no_grad()
    def sample(self, noise: Tensor, z_l: Tensor, key: int) -> Tensor:
        """Return the teacher's ``z_0 (N, C, h, w)`` float32 for ``noise`` and condition ``z_l``.

        ``key`` names the batch: the seed that ``noise`` was drawn with.

        Raises
        ------
        StaleReferencesError
            The folder's file for ``key`` was made with another teacher, schedule, number of steps, precision,
            noise or LR picture.
        """
        if self.folder is None:
            return self._compute(noise, z_l)
        path = self.folder / f"{key:016x}.safetensors"
        record = {**self._config(noise.device), "noise": _digest([noise])}
        kept = self._read(path, record, z_l)
        if kept is None:
            kept = self._compute(noise, z_l)
            self._write(path, record, kept, z_l)
        return kept.to(noise.device)

    def _compute(self, noise: Tensor, z_l: Tensor) -> Tensor:
        return ddim(self.teacher, self.schedule, z_l, noise, steps=self.steps).float()

    def _config(self, device: torch.device) -> dict[str, str]:
        if self._weights is None:  # at first use, when the weights are loaded and on their device
            self._weights = _digest(list(self.teacher.state_dict().values()))
        autocast = torch.is_autocast_enabled(device.type)
        return {
            "teacher": self._weights,
            "schedule": json.dumps(dataclasses.asdict(self.schedule)),
            "steps": str(self.steps),
            "precision": str(torch.get_autocast_dtype(device.type)) if autocast else "torch.float32",
        }

    def _read(self, path: Path, record: dict[str, str], z_l: Tensor) -> Tensor | None:
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as handle:
                found = handle.metadata() or {}
                reference: Tensor = handle.get_tensor("reference")
                seen: Tensor = handle.get_tensor("z_l")
        except (SafetensorError, OSError) as error:
            log.warning("%s cannot be read (%s); computing it again", path, error)
            return None
        wrong = [
            f"{name} {found.get(name)}, now {value}"
            for name, value in record.items()
            if found.get(name) != value
        ]
        if not wrong and (
            seen.shape != z_l.shape or _rms(seen.float() - z_l.detach().float().cpu()) > LARGEST_RMS
        ):
            wrong = ["other LR pictures: data, degradation or encoder changed"]
        if wrong:
            raise StaleReferencesError(
                f"{path}: made with {'; '.join(wrong)}. "
                "Name another folder in 'references', or delete this one"
            )
        return reference

    def _write(self, path: Path, record: dict[str, str], reference: Tensor, z_l: Tensor) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"reference": reference, "z_l": z_l.to(torch.float16)}
        save_tensors(tensors, path, metadata=record)


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def _digest(tensors: list[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
