"""Pairs of LR and HR pictures to measure on.

Two protocols: ``whole_pairs`` takes the pictures of a data set as they are; ``crop_pairs`` is the papers':
seeded random crops of HR pictures (30 of 512 px each), degraded by :mod:`yonos_train.degrade`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yonos_trt.images import read_rgb8

from .data import SUFFIXES
from .degrade import degrade
from .metrics import Picture, as_tensor

log = logging.getLogger(__name__)


class EvaluationError(ValueError):
    """The pairs or the upscalers cannot be evaluated; the message says why."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One LR and HR picture, read or made when asked for.

    Attributes
    ----------
    set, name
        What tables call it.
    hr
        File of the HR picture.
    lr
        File of the LR picture; None: made from the HR picture by ``degradation``.
    scale
        HR size over LR size.
    crop_px
        (top, left, side) of the part of ``hr`` that is used; None: all of it, cut to a multiple of ``scale``.
    degradation, seed
        For :func:`yonos_train.degrade.degrade`.
    """

    set: str
    name: str
    hr: Path
    lr: Path | None
    scale: int
    crop_px: tuple[int, int, int] | None = None
    degradation: str = "bicubic"
    seed: tuple[int, ...] = (0,)

    def load(self) -> tuple[Picture, Picture]:
        """Return LR (h, w, 3) and HR (s h, s w, 3), uint8 RGB."""
        hr = read_picture(self.hr)
        if self.crop_px is not None:
            top, left, side = self.crop_px
            hr = hr[top : top + side, left : left + side]
        hr = hr[: hr.shape[0] // self.scale * self.scale, : hr.shape[1] // self.scale * self.scale]
        if self.lr is not None:
            lr = read_picture(self.lr)
            if (lr.shape[0] * self.scale, lr.shape[1] * self.scale) != hr.shape[:2]:
                raise EvaluationError(
                    f"{self.lr}: {lr.shape[:2]} px times {self.scale} is not the HR size {hr.shape[:2]} px."
                )
            return lr, hr
        x_l = degrade(as_tensor(hr), self.scale, self.degradation, [self.seed])
        return _pixels(x_l[0].permute(1, 2, 0).numpy()), hr


def read_picture(path: Path) -> Picture:
    """Return the file's picture as uint8 RGB (H, W, 3), upright; `InputError` where it cannot be read."""
    return read_rgb8(path)


def _pixels(x: np.ndarray[Any, Any]) -> Picture:
    """[-1, 1] to 0..255, half to even."""
    return ((x.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)


# ----------------------------------------------------------------------------------------------------------
# Protocols


def whole_pairs(
    root: str | Path,
    scale: int,
    *,
    sets: Sequence[str] = (),
    degradation: str = "bicubic",
    seed: int = 0,
    limit: int = 0,
) -> list[Pair]:
    """Return the pairs of a folder of sets ``<set>/HR/*`` with, where there are any, ``<set>/LR/*``.

    An LR file of the same name is used where its size fits ``scale``; otherwise the LR picture is made from
    the HR one by ``degradation``. ``root`` may also be one set. ``limit`` keeps the first so many pictures a
    set (0: all).
    """
    base = Path(root)
    if not base.is_dir():
        raise EvaluationError(f"{base}: not a folder; expected a folder of sets, each with an HR folder.")
    if (base / "HR").is_dir():
        folders = [base]
    else:
        folders = [base / name for name in sets] if sets else sorted(base.iterdir())
    pairs: list[Pair] = []
    for folder in folders:
        files = _files(folder / "HR")
        if not files and sets:
            raise EvaluationError(f"{folder / 'HR'}: no pictures; expected a set with an HR folder.")
        for hr in files[: limit or None]:
            lr: Path | None = folder / "LR" / hr.name
            if lr is not None and not (lr.is_file() and _fits(lr, hr, scale)):
                lr = None
            pairs.append(
                Pair(folder.name, hr.stem, hr, lr, scale, degradation=degradation, seed=(seed, len(pairs)))
            )
    if not pairs:
        raise EvaluationError(f"{base}: no pictures; expected <set>/HR/*{SUFFIXES[0]} (and <set>/LR).")
    return pairs


def _fits(lr: Path, hr: Path, scale: int) -> bool:
    small, large = read_picture(lr).shape[:2], read_picture(hr).shape[:2]
    return all(a * scale == b // scale * scale for a, b in zip(small, large, strict=True))


def crop_pairs(
    root: str | Path,
    scale: int,
    *,
    crops: int = 30,
    hr_px: int = 512,
    sets: Sequence[str] = (),
    degradation: str = "realesrgan",
    seed: int = 0,
    limit: int = 0,
) -> list[Pair]:
    """Return ``crops`` seeded random crops of ``hr_px`` px of every large enough HR picture below ``root``.

    Pictures with a side below ``hr_px`` are left out and logged.
    """
    if hr_px % scale:
        raise EvaluationError(f"crop side {hr_px} px is no multiple of the scale {scale}.")
    pairs: list[Pair] = []
    for whole in whole_pairs(root, scale, sets=sets, limit=limit):
        height, width = read_picture(whole.hr).shape[:2]
        if min(width, height) < hr_px:
            log.info("%s: %d x %d px, the crop has %d px; left out", whole.hr, width, height, hr_px)
            continue
        for k in range(crops):
            key = (seed, len(pairs))
            rng = np.random.default_rng(key)
            top, left = int(rng.integers(height - hr_px + 1)), int(rng.integers(width - hr_px + 1))
            pairs.append(
                Pair(
                    whole.set, f"{whole.name}_{k:02d}", whole.hr, None, scale,
                    (top, left, hr_px), degradation, (*key, 1),
                )
            )  # fmt: skip
    if not pairs:
        raise EvaluationError(f"{root}: no picture has {hr_px} px a side; give larger pictures or hr_px.")
    return pairs
