"""Figures of the report as inline SVG whose colours are CSS variables: one drawing for light and dark.

Matplotlib draws with stand-in colours; afterwards each is replaced by ``var(--name)`` of the page's style
sheet. Text stays text, in the page's font.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

# stand-in colour -> CSS variable; none of them is used for anything else
_INK, _MUTED, _GRID, _OURS, _OTHER = "#010101", "#020202", "#030303", "#040404", "#050505"
_STAGES = {
    "gather": "#060101",
    "encode": "#060202",
    "noise": "#060303",
    "step": "#060404",
    "decode": "#060505",
    "blend": "#060606",
    "color": "#060707",
    "rest": "#060808",
}
_VARIABLES = {_INK: "ink", _MUTED: "muted", _GRID: "grid", _OURS: "ours", _OTHER: "other"}
_VARIABLES |= {value: f"stage-{name}" for name, value in _STAGES.items()}

_OUR_PEERS = ("onnx", "openvino", "openvino-fp32", "tensorrt", "tensorrt-rtx")
_SAME_PLACE = 0.02  # points closer than this share of the value are one point with two names


def latency_bars(part: Mapping[str, Any]) -> str:
    """Draw the median time of every peer, with its interval, on a logarithmic axis."""
    times = sorted(part["times"].items(), key=lambda item: item[1]["value"], reverse=True)
    figure, axes = _figure(0.42 * len(times) + 0.9)
    for y, (name, time) in enumerate(times):
        colour = _OURS if name in _OUR_PEERS else _OTHER
        axes.barh(y, time["value"], color=colour, height=0.62)
        axes.plot([time["low"], time["high"]], [y, y], color=_INK, linewidth=1.4)
        axes.annotate(
            _milliseconds(time["value"]), (time["high"], y), (6, 0), textcoords="offset points",
            va="center", color=_INK, fontsize=9,
        )  # fmt: skip
    axes.set_yticks(range(len(times)), [name for name, _ in times])
    axes.set_xscale("log")
    low = min(time["low"] for _, time in times)
    axes.set_xlim(low / 2, max(time["high"] for _, time in times) * 3)
    what = "CPU milliseconds" if part["clock"] == "cpu" else "milliseconds"
    axes.set_xlabel(f"{what} per picture, logarithmic")
    height, width = part["size_lr_px"]
    name = part["model"]["name"]
    return _svg(figure, f"{what.capitalize()} of every peer for a picture of {height} x {width} px, {name}")


def stage_bars(part: Mapping[str, Any]) -> str:
    """Draw where the time of a picture goes, one stacked bar per timed combination."""
    shown = [entry for entry in part["entries"] if entry["stages"]]
    figure, axes = _figure(0.55 * len(shown) + 1.3)
    seen = set()
    for y, entry in enumerate(reversed(shown)):
        shares = dict.fromkeys(_STAGES, 0.0)
        for stage in entry["stages"]:
            shares[stage["stage"] if stage["stage"] in shares else "rest"] += stage["share"]
        left = 0.0
        for name, share in shares.items():
            label = name if name not in seen else None
            seen.add(name)
            axes.barh(y, 100 * share, left=left, color=_STAGES[name], height=0.6, label=label)
            if share > 0.08:
                axes.text(
                    left + 50 * share, y, f"{share:.0%}", ha="center", va="center", fontsize=9, color=_INK
                )
            left += 100 * share
    labels = [f"{e['runtime']} {e['precision']}, tile {e['tile_px']}" for e in reversed(shown)]
    axes.set_yticks(range(len(shown)), labels)
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the time of a picture")
    legend = axes.legend(ncols=4, loc="lower left", bbox_to_anchor=(0, 1.0), frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_color(_INK)
    height, width = part["options"]["size_lr_px"]
    name = part["model"]["name"]
    return _svg(figure, f"Share of every stage in the time of a picture of {height} x {width} px, {name}")


def scaling(parts: Sequence[Mapping[str, Any]]) -> str:
    """Draw time against output size of one model, for the peers that were timed at more than one size."""
    series: dict[str, list[tuple[float, float]]] = {}
    for part in parts:
        pixels = math.prod(part["size_lr_px"]) * part["model"]["scale"] ** 2 / 1e6
        for name, time in part["times"].items():
            series.setdefault(name, []).append((pixels, time["value"]))
    lines = {name: sorted(points) for name, points in series.items() if len(points) > 1}
    figure, axes = _figure(0.2 * len(lines) + 2.2)
    beside = _spread([math.log10(points[-1][1]) for points in lines.values()], least=0.17)
    for (name, points), height in zip(lines.items(), beside, strict=True):
        x, y = zip(*points, strict=True)
        ours = name in _OUR_PEERS
        axes.plot(
            x, y, marker="o", markersize=5, color=_OURS if ours else _OTHER, linewidth=2 if ours else 1.3
        )
        axes.annotate(
            name,
            points[-1],
            (1.12 * points[-1][0], 10**height),
            va="center",
            color=_INK,
            fontsize=9,
            arrowprops={"arrowstyle": "-", "color": _GRID, "linewidth": 0.6},
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    left, right = axes.get_xlim()
    axes.set_xlim(left, right * 2.2)
    axes.set_xlabel("output, megapixels")
    axes.set_ylabel("milliseconds")
    return _svg(figure, f"Time against output size, {parts[0]['model']['name']}")


def _spread(places: Sequence[float], *, least: float) -> list[float]:
    """Move labels apart: the same order, at least `least` between neighbours, the middle kept."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = [places[i] for i in order]
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + least)
    shift = (sum(moved) - sum(places)) / max(1, len(places))
    found = [0.0] * len(places)
    for place, index in zip(moved, order, strict=True):
        found[index] = place - shift
    return found


def quality_scatter(part: Mapping[str, Any], metric: str) -> str:
    """Draw the quality of every peer over its arithmetic per megapixel."""
    means = {m["method"]: m for m in part["means"] if m["set"] in ("all", part["means"][-1]["set"])}
    points: list[tuple[float, float, list[str]]] = []
    for name, mean in means.items():
        x, y = part["gflop_per_mpx"].get(name), mean.get(metric)
        if x is None or y is None:
            continue
        for px, py, names in points:
            if abs(px - x) <= _SAME_PLACE * px and abs(py - y) <= _SAME_PLACE * abs(py):
                names.append(name)
                break
        else:
            points.append((x, y, [name]))
    figure, axes = _figure(3.6)
    for x, y, names in points:
        ours = any(name in _OUR_PEERS for name in names)
        axes.scatter([x], [y], s=110 if ours else 60, color=_OURS if ours else _OTHER, zorder=3)
        text = " = ".join(names)
        where = {"xytext": (0, 10), "textcoords": "offset points", "ha": "center"}
        axes.annotate(text, (x, y), color=_INK, fontsize=9, **where)
    axes.set_xscale("log")
    axes.margins(0.22, 0.25)
    axes.set_xlabel("GFLOP per output megapixel, logarithmic")
    better = "higher" if metric in ("psnr_y", "ssim_y") else "lower"
    axes.set_ylabel(f"{metric}, {better} is better")
    origin = f"{part['model']['name']}, {part['degradation']} degradation"
    return _svg(figure, f"{metric} over arithmetic per megapixel, {origin}")


# ---------------------------------------------------------------------------------------------------------
# Drawing


def _figure(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, height), layout="constrained")
    axes = figure.subplots()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_GRID)
    axes.tick_params(which="both", color=_GRID, labelcolor=_MUTED, labelsize=9)
    axes.xaxis.label.set_color(_MUTED)
    axes.yaxis.label.set_color(_MUTED)
    axes.grid(visible=True, axis="x", color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Any, title: str) -> str:
    """Return the figure as an ``<svg>`` element that scales with the page and has a spoken name."""
    import matplotlib

    buffer = io.StringIO()
    salt = re.sub(r"\W+", "-", title).lower()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for colour, name in _VARIABLES.items():
        text = text.replace(colour, f"var(--{name})")
    # ids are unique within one figure only
    text = re.sub(r'(\bid="|xlink:href="#|url\(#)', lambda m: f"{m.group(1)}{salt}-", text)
    text = re.sub(r"<svg ", f'<svg role="img" aria-label="{title}" class="plot" ', text, count=1)
    return re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)


def _milliseconds(value: float) -> str:
    return (
        f"{value / 1e3:.1f} s" if value >= 1e4 else f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"
    )
