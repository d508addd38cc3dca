"""What a stage leaves to look at: averaged metrics, grids of samples, and curves of what was logged."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


class MetricsLog:
    """A ``metrics.jsonl``: values are averaged between rows; what is not finite is left out.

    Parameters
    ----------
    path
        Rows are appended; None writes nothing, for all processes but the first.
    """

    def __init__(self, path: Path | None) -> None:
        self._sums: dict[str, list[float]] = {}
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
            self._file.write(json.dumps({**head, **averages}) + "\n")
            self._file.flush()
        return averages

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def write_grid(columns: list[Tensor], path: Path) -> Path:
    """Write pictures ``(N, 3, P, P)`` in [-1, 1] as one PNG: a sample a row, ``columns`` side by side."""
    import numpy as np
    from PIL import Image

    rows = torch.cat([c.float().cpu() for c in columns], dim=3)
    pixels = ((rows.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.concatenate(list(pixels), axis=0)).save(path)
    return path


def write_curves(metrics: Path, target: Path, *, title: str) -> None:
    """Plot every metric of a ``metrics.jsonl`` over steps into one PNG; does nothing where no row was
    logged."""
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines() if line.strip()]
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
        points = [(row["step"], row[key]) for row in rows if key in row]
        axis.plot(*zip(*points, strict=True), linewidth=1)
        axis.set_title(key, fontsize=9)
    for axis in list(axes.flat)[len(keys) :]:
        axis.axis("off")
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(target, dpi=100)
    plt.close(figure)
