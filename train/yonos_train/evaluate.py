"""Measure upscalers on :mod:`yonos_train.pairs`; write JSON and Markdown."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from yonos_trt.atomic import atomic_file, write_file

from .metrics import HIGHER_IS_BETTER, SET_METRICS, MetricError, Metrics, Picture
from .pairs import EvaluationError, Pair, crop_pairs, read_picture, whole_pairs

__all__ = ["EvaluationError", "Pair", "Report", "crop_pairs", "evaluate", "read_picture", "whole_pairs"]

Upscaler = Callable[[Picture], Picture]
REFERENCE: Final = "bicubic"  # the method that ratios in the Markdown table refer to


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
            write_file(path, text)
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
                with atomic_file(target) as part:
                    Image.fromarray(sr).save(part, format="PNG")
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
