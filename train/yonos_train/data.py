"""Training pictures: a folder decoded into memory, and crops that depend only on (seed, step, index).

Nothing here keeps state between batches: batch ``step`` is the same in an interrupted and an uninterrupted
run, on one
process or on several, which is what makes an exact resume possible.
"""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif")


class DataError(ValueError):
    """The image folder cannot be trained on; the message says why and what to do."""


@dataclass(frozen=True)
class Skipped:
    """A file that was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """One batch of HR crops.

    Attributes
    ----------
    x_h
        ``(N, 3, P, P)`` float32 in [-1, 1].
    seeds
        N integers, one a sample: all further randomness of the sample (degradation, noise) derives from them.
    """

    x_h: Tensor
    seeds: tuple[int, ...]


def picture_files(root: Path, *, limit: int = 0) -> list[Path]:
    """Return the files below ``root`` that have a picture's suffix, in sorted order, the first ``limit``.

    Raises
    ------
    DataError
        No such folder, or no such file in it.
    """
    if not root.is_dir():
        raise DataError(f"{root}: not a folder; expected a folder with images ({', '.join(SUFFIXES)})")
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES)[: limit or None]
    if not files:
        raise DataError(f"{root}: no image in it; expected files ending in {', '.join(SUFFIXES)}")
    return files


class ImageFolder:
    """All pictures below a folder, decoded once to uint8 RGB and kept in memory.

    Parameters
    ----------
    folder
        Searched recursively, files taken in sorted order.
    smallest_px
        Pictures whose shorter side is below this are skipped (counted and listed in ``skipped``).
    limit
        Use only the first ``limit`` files (0: all); for smoke runs.

    Raises
    ------
    DataError
        No such folder, no image in it, or none large enough.
    """

    def __init__(self, folder: str | os.PathLike[str], *, smallest_px: int, limit: int = 0) -> None:
        root = Path(folder)
        files = picture_files(root, limit=limit)
        self.root, self.skipped, self.images = root, list[Skipped](), list[NDArray[np.uint8]]()
        with ThreadPoolExecutor() as pool:
            for path, result in zip(files, pool.map(_decode, files), strict=True):
                if isinstance(result, str):
                    self.skipped.append(Skipped(str(path), result))
                elif min(result.shape[:2]) < smallest_px:
                    size = f"{result.shape[1]} x {result.shape[0]}"
                    self.skipped.append(
                        Skipped(str(path), f"{size} px, expected at least {smallest_px} px a side")
                    )
                else:
                    self.images.append(result)
        for item in self.skipped:
            log.warning("skipped %s: %s", item.path, item.reason)
        if not self.images:
            raise DataError(
                f"{root}: none of {len(files)} files is usable, the first because: {self.skipped[0].reason}; "
                f"give larger pictures or a smaller crop"
            )

    def __len__(self) -> int:
        return len(self.images)


def _decode(path: Path) -> NDArray[np.uint8] | str:
    from yonos_trt.errors import YonosError
    from yonos_trt.images import read_rgb8

    try:
        return read_rgb8(path)
    except (YonosError, OSError) as error:
        return f"cannot be decoded ({error})"


@dataclass(frozen=True)
class CropConfig:
    """How crops are cut.

    Attributes
    ----------
    crop_px
        Side P of the HR crop.
    downscale_probability, smallest_scale
        With this probability a larger region is cut and reduced (antialiased bicubic) by a factor drawn
        uniformly from
        [smallest_scale, 1]: pictures from the web are soft at 100 %, and reduction gives sharp per-pixel
        detail.
    flip
        Random flips and quarter turns.
    """

    crop_px: int = 128
    downscale_probability: float = 0.3
    smallest_scale: float = 0.5
    flip: bool = True

    def __post_init__(self) -> None:
        for name, least in (("downscale_probability", 0.0), ("smallest_scale", 0.01)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= 1:
                raise ValueError(f"crops.{name}: got {value!r}, expected a number, {least:g} to 1")


class Crops:
    """Random crops of an :class:`ImageFolder`, a pure function of (seed, step, index)."""

    def __init__(self, folder: ImageFolder, config: CropConfig, *, seed: int) -> None:
        self.folder, self.config, self.seed = folder, config, seed
        areas = np.array([im.shape[0] * im.shape[1] for im in folder.images], dtype=np.float64)
        self._cumulative = np.cumsum(
            np.sqrt(areas)
        )  # larger pictures hold more different crops, but not proportionally

    def batch(self, step: int, size: int, *, rank: int = 0, world: int = 1) -> Batch:
        """Return batch number ``step`` of ``size`` crops a process; processes get disjoint samples."""
        first = (step * world + rank) * size
        crops, seeds = [], []
        for index in range(first, first + size):
            rng = np.random.default_rng((self.seed, index))
            crops.append(self._crop(rng))
            seeds.append(int(rng.integers(2**62)))
        return Batch(torch.stack(crops), tuple(seeds))

    def _crop(self, rng: np.random.Generator) -> Tensor:
        cfg = self.config
        pick = int(np.searchsorted(self._cumulative, rng.uniform(0, self._cumulative[-1]), side="right"))
        image = self.folder.images[min(pick, len(self.folder.images) - 1)]
        side = cfg.crop_px
        if rng.uniform() < cfg.downscale_probability:
            side = round(cfg.crop_px / rng.uniform(cfg.smallest_scale, 1.0))
            side = min(side, *image.shape[:2])
        y = int(rng.integers(image.shape[0] - side + 1))
        x = int(rng.integers(image.shape[1] - side + 1))
        crop = image[y : y + side, x : x + side]
        if cfg.flip:
            crop = np.rot90(crop, int(rng.integers(4)))
            if rng.integers(2):
                crop = crop[:, ::-1]
        out = torch.from_numpy(np.array(crop, order="C")).permute(2, 0, 1).float()
        if side != cfg.crop_px:
            out = F.interpolate(out[None], size=(cfg.crop_px, cfg.crop_px), mode="bicubic", antialias=True)[0]
            out = out.round_().clamp_(0, 255)
        return out.div_(127.5).sub_(1.0)


def generator(*key: Any) -> torch.Generator:
    """Return a CPU generator seeded by ``key`` (integers and strings), the same on every machine and run."""
    words = [
        int.from_bytes(part.encode(), "little") % 2**63 if isinstance(part, str) else int(part)
        for part in key
    ]
    state = np.random.SeedSequence(words).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) % 2**63)
