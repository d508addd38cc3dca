"""Measure upscalers on pairs of LR and HR pictures; write JSON and Markdown.

Two protocols: ``whole_pairs`` takes the pictures of a data set as they are; ``crop_pairs`` is the papers':
seeded random crops of HR pictures (30 of 512 px each), degraded by :mod:`yonos_train.degrade`.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from .data import SUFFIXES
from .degrade import degrade
from .metrics import HIGHER_IS_BETTER, SET_METRICS, MetricError, Metrics, Picture, as_tensor

log = logging.getLogger(__name__)

Upscaler = Callable[[Picture], Picture]
REFERENCE: Final = "bicubic"  # the method that ratios in the Markdown table refer to


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
    """Return the file's picture as uint8 RGB (H, W, 3)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=np.uint8)


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
    with Image.open(lr) as small, Image.open(hr) as large:
        return all(a * scale == b // scale * scale for a, b in zip(small.size, large.size, strict=True))


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
        with Image.open(whole.hr) as image:
            width, height = image.size
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


# ----------------------------------------------------------------------------------------------------------
# Measuring


@dataclass(frozen=True, slots=True)
class Report:
    """What an evaluation found.

    Attributes
    ----------
    metrics
        Names, in the order of columns.
    rows
        One per picture and method: set, name, method, seconds, and the metrics.
    means
        One per set and method, and per method over all pictures (set ``all``).
    settings
        Protocol, scale, seed and machine, for the record.
    """

    metrics: tuple[str, ...]
    rows: list[dict[str, Any]]
    means: list[dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """Return a table of means; in brackets the ratio to bicubic where lower is better."""
        lines = [
            "| set | pictures | method | " + " | ".join(self.metrics) + " | s / picture |",
            "|---" * (len(self.metrics) + 4) + "|",
        ]
        base = {row["set"]: row for row in self.means if row["method"] == REFERENCE}
        for row in self.means:
            cells = []
            for name in self.metrics:
                value = row.get(name)
                if value is None:
                    cells.append("-")
                    continue
                text = f"{value:.2f}" if name in ("psnr_y", "fid") else f"{value:.4f}"
                reference = base.get(row["set"], {}).get(name)
                if reference and name not in HIGHER_IS_BETTER and row["method"] != REFERENCE:
                    text += f" ({value / reference:.2f})"
                cells.append(text)
            head = f"| {row['set']} | {row['pictures']} | {row['method']} | "
            lines.append(head + " | ".join(cells) + f" | {row['seconds']:.2f} |")
        return "\n".join(lines) + "\n"

    def write(self, stem: str | Path) -> tuple[Path, Path]:
        """Write ``<stem>.json`` and ``<stem>.md``, each complete or not at all."""
        paths = Path(f"{stem}.json"), Path(f"{stem}.md")
        for path, text in zip(paths, (self.to_json(), self.to_markdown()), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(path.name + ".part")
            part.write_text(text, encoding="utf-8")
            os.replace(part, path)
        return paths


def evaluate(
    upscalers: Mapping[str, Upscaler],
    pairs: Sequence[Pair],
    metrics: Metrics,
    *,
    results: Mapping[str, Path] | None = None,
    save: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[Iterable[Pair]], Iterable[Pair]] = iter,
) -> Report:
    """Run every upscaler on every pair and measure.

    Parameters
    ----------
    upscalers
        By name: LR uint8 (h, w, 3) -> SR uint8 (s h, s w, 3).
    results
        Folders of pictures that another program made, by method name: ``<folder>/<set>/<name>.png``.
    save
        Folder for the SR pictures, ``<save>/<method>/<set>/<name>.png``.
    progress
        Wraps the iteration over pairs.

    Raises
    ------
    EvaluationError
        A method's picture has the wrong size, or a result is missing.
    """
    folders = dict(results or {})
    if clash := sorted(set(folders) & set(upscalers)):
        raise EvaluationError(f"methods {clash} are both upscalers and folders of results; rename one.")
    rows: list[dict[str, Any]] = []
    pictures: dict[tuple[str, str], list[tuple[Picture, Picture]]] = {}
    keep = any(name in SET_METRICS for name in metrics.names)
    for pair in progress(pairs):
        lr, hr = pair.load()
        for method in [*upscalers, *folders]:
            start = time.perf_counter()
            if method in upscalers:
                sr = upscalers[method](lr)
            else:
                sr = _result(folders[method], pair)
            seconds = time.perf_counter() - start
            if sr.shape != hr.shape:
                raise EvaluationError(
                    f"{method} on {pair.set}/{pair.name}: got {sr.shape}, expected {hr.shape}; "
                    f"check that it upscales by {pair.scale}."
                )
            try:
                values = metrics.pair(sr, hr, border_px=pair.scale)
            except MetricError as error:
                raise MetricError(f"{pair.set}/{pair.name}: {error}") from error
            rows.append({"set": pair.set, "name": pair.name, "method": method, "seconds": seconds, **values})
            if keep:
                pictures.setdefault((pair.set, method), []).append((sr, hr))
            if save is not None:
                target = save / method / pair.set / f"{pair.name}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(sr).save(target)
    means = _means(rows, metrics, pictures)
    record = {"machine": platform.machine(), "torch": torch.__version__, **dict(settings or {})}
    return Report(metrics.names, rows, means, record)


def _result(folder: Path, pair: Pair) -> Picture:
    for candidate in (folder / pair.set / f"{pair.name}.png", folder / f"{pair.name}.png"):
        if candidate.is_file():
            return read_picture(candidate)
    raise EvaluationError(f"{folder}: no {pair.set}/{pair.name}.png; make it, or leave the set out.")


def _means(
    rows: list[dict[str, Any]],
    metrics: Metrics,
    pictures: Mapping[tuple[str, str], list[tuple[Picture, Picture]]],
) -> list[dict[str, Any]]:
    methods = list(dict.fromkeys(row["method"] for row in rows))
    sets = list(dict.fromkeys(row["set"] for row in rows))
    means = []
    for name in [*sets, "all"] if len(sets) > 1 else sets:
        for method in methods:
            own = [row for row in rows if row["method"] == method and name in (row["set"], "all")]
            keys = [key for key in own[0] if key not in ("set", "name", "method")]
            mean = {key: float(np.mean([row[key] for row in own])) for key in keys}
            for (owner, by), shown in pictures.items():
                if by == method and name in (owner, "all"):
                    for sr, hr in shown:
                        metrics.add_to_set(sr, hr)
            mean.update(metrics.finish_set())
            means.append({"set": name, "method": method, "pictures": len(own), **mean})
    return means
