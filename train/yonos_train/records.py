"""What a stage leaves to look at: averaged metrics, grids of samples, and curves of what was logged."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yonos_trt.atomic import atomic_file

log = logging.getLogger(__name__)


class MetricsLog:
    """A ``metrics.jsonl``: values are averaged between rows; what is not finite is left out.

    Parameters
    ----------
    path
        Rows are appended, after a last row that a killed process left unfinished was cut off; None writes
        nothing, for all processes but the first.
    """

    def __init__(self, path: Path | None) -> None:
        self._sums: dict[str, list[float]] = {}
        self._path = path
        if path is not None:
            _cut_torn_row(path)
        self._file = None if path is None else open(path, "a", encoding="utf-8")  # noqa: SIM115 (close)

    def add(self, values: Mapping[str, float]) -> None:
        """Take one step's values into the averages."""
        for key, value in values.items():
            if math.isfinite(value):
                self._sums.setdefault(key, []).append(value)

    def row(self, head: Mapping[str, float]) -> dict[str, float]:
        """Write ``head`` and the averages since the last row; return the averages.

        Raises
        ------
        ValueError
            A metric has the name of one of ``head``, which it would hide.
        """
        if hidden := sorted(head.keys() & self._sums.keys()):
            raise ValueError(
                f"metrics: got {', '.join(hidden)}, a name of the row's own; expected another one"
            )
        averages = {key: sum(values) / len(values) for key, values in self._sums.items()}
        self._sums.clear()
        if self._file is not None:
            try:
                self._file.write(json.dumps({**head, **averages}) + "\n")
                self._file.flush()
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self._path)) from error
        return averages

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:  # the rest of a row that `row` could not write
                raise OSError(error.errno, error.strerror, str(self._path)) from error


def _cut_torn_row(path: Path) -> None:
    """Cut off what follows the last line end: a row that was being written when its process died."""
    if not path.is_file():
        return
    raw = path.read_bytes()
    whole = raw.rfind(b"\n") + 1
    if whole < len(raw):
        log.warning("%s: the last row is torn; it is cut off", path)
        with open(path, "r+b") as handle:
            handle.truncate(whole)


def _rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a ``metrics.jsonl``; a line that is none is left out and logged."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or "step" not in row:
                raise ValueError("no step in it")
        except ValueError as error:
            log.warning("%s: line %d is no row of metrics (%s); left out", path, number, error)
            continue
        rows.append(row)
    return rows


def write_grid(columns: list[Tensor], path: Path) -> Path:
    """Write pictures ``(N, 3, P, P)`` in [-1, 1] as one PNG: a sample a row, ``columns`` side by side."""
    import numpy as np
    from PIL import Image

    rows = torch.cat([c.float().cpu() for c in columns], dim=3)
    pixels = ((rows.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    path.parent.mkdir(exist_ok=True)
    with atomic_file(path) as part:
        Image.fromarray(np.concatenate(list(pixels), axis=0)).save(part, format="PNG")
    return path


def write_curves(metrics: Path, target: Path, *, title: str) -> None:
    """Plot every metric of a ``metrics.jsonl`` over steps into one PNG; does nothing where no row was
    logged."""
    rows = _rows(metrics)
    keys = sorted({key for row in rows for key in row} - {"step", "elapsed_s", "images_per_s"})
    if not rows:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        math.ceil(len(keys) / 3), 3, figsize=(12, 2.6 * math.ceil(len(keys) / 3)), squeeze=False
    )
    for axis, key in zip(axes.flat, keys, strict=False):
        points = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
        axis.plot(*zip(*points, strict=True), linewidth=1)
        axis.set_title(key, fontsize=9)
    for axis in list(axes.flat)[len(keys) :]:
        axis.axis("off")
    figure.suptitle(title)
    figure.tight_layout()
    try:
        with atomic_file(target) as part:
            figure.savefig(part, dpi=100, format="png")
    finally:
        plt.close(figure)
