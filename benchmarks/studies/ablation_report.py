"""What the ablation found: the order of its cells beside the paper's, its tables and its plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy import stats
from yonos_train.metrics import HIGHER_IS_BETTER

CELLS: Final = (
    ("original decoder", "without"),
    ("original decoder", "with"),
    ("tuned decoder", "without"),
    ("tuned decoder", "with"),
)
# YONOS-SR, Table 4, in the order of CELLS.
PAPER: Final[dict[int, dict[str, tuple[float, float, float, float]]]] = {
    4: {
        "fid": (27.93, 21.63, 16.77, 12.25),
        "lpips": (0.227, 0.210, 0.162, 0.145),
        "psnr_y": (24.25, 25.06, 24.21, 25.19),
    },
    8: {
        "fid": (102.92, 56.84, 41.54, 21.48),
        "lpips": (0.541, 0.378, 0.305, 0.217),
        "psnr_y": (21.08, 23.20, 21.53, 23.14),
    },
}
# (worse, better) pairs of cells whose order is compared with the paper's: by distillation, then by decoder.
ORDERS: Final = ((0, 1), (2, 3), (0, 2), (1, 3))
CONFIDENCE: Final = 0.95


def orders(values: Mapping[str, Mapping[str, Sequence[float]]], scale: int) -> list[dict[str, Any]]:
    """Compare the order of pairs of cells with the paper's, metric by metric.

    Parameters
    ----------
    values
        Per cell (``"<decoder>, <run>"``) and metric one value a picture, pictures in the same order.
    scale
        4 or 8.

    Returns
    -------
    list
        One dict a comparison: ``gain`` (mean, positive is better) with the ends ``low`` and ``high`` of its
        95 % interval (paired t over pictures; None for a single one), ``paper_gain``, and ``agrees``:
        ``"yes"``, ``"no"``, or ``"undecided"`` where the interval holds zero.
    """
    labels = [f"{decoder}, {run}" for decoder, run in CELLS]
    rows = []
    for name in values[labels[0]]:
        paper = PAPER[scale].get("lpips" if name.startswith("lpips") else name)
        if paper is None:
            continue
        sign = 1 if name in HIGHER_IS_BETTER else -1
        for a, b in ORDERS:
            before, after = (np.asarray(values[labels[k]][name], np.float64) for k in (a, b))
            gains = sign * (after - before)
            gain, low, high = float(gains.mean()), None, None
            if len(gains) > 1 and np.ptp(gains) > 0:
                interval = stats.ttest_1samp(gains, 0.0).confidence_interval(CONFIDENCE)
                low, high = float(interval.low), float(interval.high)
            theirs = sign * (paper[b] - paper[a])
            decided = low is None or high is None or low > 0 or high < 0
            same = "yes" if (gain > 0) == (theirs > 0) else "no"
            rows.append(
                {
                    "metric": name,
                    "from": labels[a],
                    "to": labels[b],
                    "gain": gain,
                    "low": low,
                    "high": high,
                    "paper_gain": theirs,
                    "agrees": same if decided else "undecided",
                }
            )
    return rows


def markdown(report: Mapping[str, Any]) -> str:
    """Return the report's tables."""
    lines = ["# Ablation at small scale", "", f"`{' '.join(report['command'])}`", ""]
    machine = report["machine"]
    lines += [f"{machine['processor']}, {machine['cores']} cores, {report['created'][:10]}.", ""]
    for scale, part in report.get("table4", {}).items():
        lines += [f"## {scale}: decoder and scale distillation", "", *_table(part["cells"]), ""]
        lines += ["| metric | from | to | gain [95 %] | paper's gain | same order |", "|---" * 6 + "|"]
        lines += [
            f"| {r['metric']} | {r['from']} | {r['to']} | {_gain(r)} | {r['paper_gain']:+.4g} "
            f"| {r['agrees']} |"
            for r in part["orders"]
        ]
        lines.append("")
    if "figure3" in report:
        lines += ["## Quality against DDIM steps, x4, original decoder", ""]
    for name, curve in report.get("figure3", {}).items():
        lines += [f"{name} scale distillation:", "", *_table(curve), ""]
    if "tad_sr" in report:
        lines += ["## TAD-SR part by part, x4, original decoder, one step", "", *_table(report["tad_sr"])]
    return "\n".join(lines) + "\n"


def _gain(row: Mapping[str, Any]) -> str:
    digits = 2 if row["metric"] == "psnr_y" else 4
    text = f"{row['gain']:+.{digits}f}"
    return text if row["low"] is None else f"{text} [{row['low']:+.{digits}f}, {row['high']:+.{digits}f}]"


def _table(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    names = [key for key in next(iter(rows.values())) if key not in ("pictures", "seconds")]
    head = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    digits = {"psnr_y": 2}
    return head + [
        f"| {label} | " + " | ".join(f"{row[n]:.{digits.get(n, 4)}f}" for n in names) + " |"
        for label, row in rows.items()
    ]


def plot_steps(figure3: Mapping[str, Mapping[str, Mapping[str, float]]], path: Path) -> None:
    """Draw every metric against the number of DDIM steps, with and without scale distillation, as PNG."""
    from matplotlib.figure import Figure

    first = next(iter(next(iter(figure3.values())).values()))
    names = [key for key in first if key not in ("pictures", "seconds")]
    figure = Figure(figsize=(4.2 * len(names), 3.2), dpi=120, layout="constrained")
    for name, axes in zip(names, np.atleast_1d(figure.subplots(1, len(names))), strict=True):
        for run, curve in figure3.items():
            steps = [int(n) for n in curve]
            axes.plot(steps, [row[name] for row in curve.values()], marker="o", label=f"{run} distillation")
        axes.set_xscale("log", base=2)
        axes.set_xticks(steps, [str(n) for n in steps])
        axes.set_xlabel("DDIM steps")
        axes.set_ylabel(f"{name} ({'higher' if name in HIGHER_IS_BETTER else 'lower'} is better)")
        axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path)
