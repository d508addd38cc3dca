"""Write one self-contained HTML file from benchmark documents: figures, sliders, tables, machine, commands.

::

    python -m benchmarks.report RESULTS.json... -o report.html

The file needs no network and no server; its content security policy forbids both. Documents come from
``yonos bench --json``, `benchmarks.speed`, `benchmarks.quality` and `benchmarks.results`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import click

from benchmarks import report_plots, report_tables
from benchmarks.models import engine_or_shipped
from benchmarks.photos import Photo, sample_photos
from benchmarks.report_pictures import Pair, make_pair
from benchmarks.report_tables import OURS

_PAGE = Path(__file__).parent / "report_page"
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_KINDS = ("yonos-bench", "speed", "quality", "sweep")
_PERCEPTUAL = ("lpips_alex", "dists", "lpips_vgg")  # the first one that was measured is drawn


def flat_parts(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the documents inside a document, and itself if it is one."""
    for part in document.get("parts", []):
        yield from flat_parts(part)
    if document.get("kind") in _KINDS:
        yield dict(document)


def build(parts: Sequence[Mapping[str, Any]], pairs: Sequence[Pair] = (), *, title: str = "yonos-trt") -> str:
    """Return the page.

    Raises
    ------
    ValueError
        There is nothing to show.
    """
    if not parts:
        raise ValueError(
            "no documents, expected the JSON of yonos bench, benchmarks.speed or benchmarks.quality"
        )
    of = {kind: [p for p in parts if p["kind"] == kind] for kind in _KINDS}
    sections = [
        _figures(of["speed"], of["quality"], of["yonos-bench"]),
        _notes(parts),
        _sliders(pairs),
        _quality(of["quality"]),
        _speed(of["speed"]),
        _stages(of["yonos-bench"]),
        _sweep(of["sweep"]),
        _origin(parts),
    ]
    style = (_PAGE / "page.css").read_text(encoding="utf-8")
    script = (_PAGE / "page.js").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(title)}: benchmarks</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<header>
<div><h1>{escape(title)}: how fast, how good</h1>
<p class="lead">One-step super-resolution, measured beside its peers in the same run.</p></div>
<button type="button" id="theme" aria-label="Switch between light and dark">Dark</button>
</header>
<main>
{"".join(sections)}
</main>
<footer>Made by <code>python -m benchmarks.report</code>. Times are medians with 95 % bootstrap intervals over
rounds in which all peers take turns.</footer>
<script>
{script}</script>
</body>
</html>
"""


# ---------------------------------------------------------------------------------------------------------
# Sections


def _figures(
    speed: Sequence[Mapping[str, Any]],
    quality: Sequence[Mapping[str, Any]],
    bench: Sequence[Mapping[str, Any]],
) -> str:
    """Return the few numbers that say most; each only if it was measured."""
    found: list[tuple[str, str]] = []
    best = _best_ratio([p for p in speed if p["clock"] == "wall"] or speed, "realesrgan-x4plus")
    if best is not None:
        interval = f"[{best['low']:.1f}, {best['high']:.1f}]"
        text = f"as fast as Real-ESRGAN x4plus (ncnn) {interval}, with {best['to']}"
        found.append((f"{best['value']:.1f}x", text))
    wall = [part for part in speed if part["clock"] == "wall"]
    if wall:
        part = max(wall, key=lambda p: p["size_lr_px"][0] * p["size_lr_px"][1])
        ours = {name: t for name, t in part["times"].items() if name in OURS}
        if ours:
            name, time = min(ours.items(), key=lambda item: item[1]["value"])
            height, width = (side * part["model"]["scale"] for side in part["size_lr_px"])
            found.append(
                (
                    f"{time['value'] / 1e3:.2f} s",
                    f"for a picture of {height} x {width} px, {part['model']['name']} on {name}",
                )
            )
    for part in quality[:1]:
        metric = next((m for m in _PERCEPTUAL if m in part["metrics"]), None)
        means = {m["method"]: m for m in part["means"] if m["set"] == part["means"][-1]["set"]}
        method = next((name for name in OURS if name in means), None)
        if metric and method and "bicubic" in means:
            reference = f"bicubic {means['bicubic'][metric]:.3f}; lower is better"
            text = f"{metric} of {part['model']['name']} ({part['degradation']} degradation), {reference}"
            found.append((f"{means[method][metric]:.3f}", text))
    overheads = [e["overhead"] for p in bench for e in p["entries"] if e["overhead"] is not None]
    if overheads:
        found.append((f"{min(overheads):.1%}", "of the time is spent beside the networks"))
    items = "".join(f"<li><b>{escape(number)}</b><span>{escape(text)}</span></li>" for number, text in found)
    return f'<ul class="figures">{items}</ul>' if items else ""


def _best_ratio(speed: Sequence[Mapping[str, Any]], peer: str) -> Mapping[str, Any] | None:
    ratios = [r for p in speed for r in p["ratios"] if r["peer"] == peer and r["to"] in OURS]
    return max(ratios, key=lambda r: r["value"], default=None)


def _notes(parts: Sequence[Mapping[str, Any]]) -> str:
    notes = dict.fromkeys(p["note"] for p in parts if p.get("note"))
    return "".join(f'<p class="note">{escape(note)}</p>' for note in notes)


def _sliders(pairs: Sequence[Pair]) -> str:
    if not pairs:
        return ""
    figures = []
    for pair in pairs:
        name, before, after = escape(pair.name), escape(pair.before), escape(pair.after)
        size = f'width="{pair.width_px}" height="{pair.height_px}"'
        style = f"--width: {pair.width_px}px; --height: {pair.height_px}px"
        figures.append(
            f'<figure class="pair"><div class="stack" style="{style}">'
            f'<img alt="{name}, {before}" src="{pair.before_uri}" {size}>'
            f'<img class="after" alt="{name}, {after}" src="{pair.after_uri}" {size}>'
            f'<span class="tag left">{before}</span><span class="tag right">{after}</span>'
            '<span class="line"></span><span class="knob" aria-hidden="true">&#8596;</span>'
            f'<input type="range" min="0" max="100" value="50" data-before="{before}" '
            f'aria-label="{name}: how much of the width shows {before}"></div>'
            f"<figcaption><b>{name}</b>: {escape(pair.caption)}{_credit(pair)}</figcaption></figure>"
        )
    return (
        "<h2>Before and after</h2><p>At 100 %. Drag, or use the arrow keys.</p>"
        f'<div class="pairs">{"".join(figures)}</div>'
    )


def _credit(pair: Pair) -> str:
    return f' <span class="credit">{escape(pair.credit)}.</span>' if pair.credit else ""


def _quality(parts: Sequence[Mapping[str, Any]]) -> str:
    if not parts:
        return ""
    found = ["<h2>Quality</h2>"]
    for part in parts:
        metric = next((m for m in _PERCEPTUAL if m in part["metrics"]), part["metrics"][0])
        found.append(
            f"<h3>{escape(part['model']['name'])}, {escape(part['degradation'])} degradation</h3>"
            f'<div class="card" tabindex="0">{report_plots.quality_scatter(part, metric)}</div>'
            f"{report_tables.quality_table(part)}"
            f"<details><summary>Every picture</summary>{report_tables.picture_table(part)}</details>"
        )
    return "".join(found)


def _clock(part: Mapping[str, Any]) -> str:
    return "CPU seconds of all threads" if part["clock"] == "cpu" else "wall time"


def _speed(parts: Sequence[Mapping[str, Any]]) -> str:
    if not parts:
        return ""
    found = ["<h2>Speed</h2>"]
    for part in parts:
        height, width = part["size_lr_px"]
        found.append(
            f"<h3>{escape(part['model']['name'])}, input {height} x {width} px, {_clock(part)}, "
            f"{part['rounds']} rounds</h3>"
            f'<div class="card" tabindex="0">{report_plots.latency_bars(part)}</div>'
            + report_tables.speed_table(part)
        )
    wall = [part for part in parts if part["clock"] == "wall"] or parts
    for name in dict.fromkeys(part["model"]["name"] for part in wall):
        own = [part for part in wall if part["model"]["name"] == name]
        if len({tuple(part["size_lr_px"]) for part in own}) > 1:
            found.append(
                f"<h3>{escape(name)}, time against size</h3>"
                f'<div class="card" tabindex="0">{report_plots.scaling(own)}</div>'
            )
    return "".join(found)


def _stages(parts: Sequence[Mapping[str, Any]]) -> str:
    found = []
    for part in parts:
        if any(entry["stages"] for entry in part["entries"]):
            found.append(f'<div class="card" tabindex="0">{report_plots.stage_bars(part)}</div>')
        found.append(report_tables.stage_tables(part))
    return "<h2>Where the time goes</h2>" + "".join(found) if found else ""


def _sweep(parts: Sequence[Mapping[str, Any]]) -> str:
    found = []
    for part in parts:
        found.append(f"<h3>{escape(part['model']['name'])}</h3>{report_tables.sweep_table(part)}")
        for linear in part["linear"]:
            sizes = ", ".join(f"{size} px {facts['mpx_s']:.2f}" for size, facts in linear["sizes"].items())
            found.append(
                f"<p>{escape(linear['runtime'])}, Mpx/s by input size: {escape(sizes)}. "
                f"The CPU seconds grow with size<sup>{linear['exponent']:.2f}</sup>.</p>"
            )
        for folder in part["folders"]:
            over = folder["over_sum_of_parts"]
            found.append(
                f"<p>A folder of {folder['files']} files takes {over['value']:.2f} [{over['low']:.2f}, "
                f"{over['high']:.2f}] times the sum of reading, upscaling and writing them.</p>"
            )
    return "<h2>Whole pictures by size, tile, batch and lanes</h2>" + "".join(found) if found else ""


def _origin(parts: Sequence[Mapping[str, Any]]) -> str:
    machines = dict.fromkeys(report_tables.machine_list(part) for part in parts if "peaks" in part)
    if not machines:
        machines = dict.fromkeys(report_tables.machine_list(part) for part in parts)
    shown = next(iter(machines))
    commands = dict.fromkeys(
        f"{shlex.join(part['command'])}   # {part['created']}, commit {part.get('commit') or 'unknown'}"
        for part in parts
    )
    models = dict.fromkeys(
        f"{part['model']['name']}, x{part['model']['scale']}, weights {part['model']['weights_sha256'][:12]}"
        for part in parts
    )
    listed = "".join(f"<li>{escape(model)}</li>" for model in models)
    return (
        f"<h2>Machine, models and commands</h2>{shown}<ul>{listed}</ul>"
        f'<pre tabindex="0">{escape(chr(10).join(commands))}</pre>'
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument(
    "results", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False)
)
@click.option(
    "--photo",
    "photos",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Photograph for a slider; may be repeated.  [default: some that scikit-image brings]",
)
@click.option("--engine", "engine_dir", type=click.Path(path_type=Path), help="Model of the sliders.")
@click.option(
    "--scale", "scales", multiple=True, type=int, help="Shipped models of the sliders.  [default: 4]"
)
@click.option(
    "--reduce/--as-is",
    default=True,
    help="Make photographs smaller by the model's scale first, or enlarge them as they are.",
)
@click.option("--title", default="yonos-trt", show_default=True)
@click.option("-o", "--out", default="report.html", show_default=True, type=click.Path(path_type=Path))
def main(
    results: Sequence[Path],
    photos: Sequence[Path],
    engine_dir: Path | None,
    scales: Sequence[int],
    reduce: bool,
    title: str,
    out: Path,
) -> None:
    """Write a report from RESULTS."""
    parts = [p for path in results for p in flat_parts(json.loads(path.read_text(encoding="utf-8")))]
    shown = [Photo(path, path.stem) for path in photos] or sample_photos()
    if not shown:
        click.echo("no sliders: scikit-image is not installed and no --photo was named", err=True)
    pairs = []
    for scale in (scales or (4,)) if shown else ():
        from yonos_trt.sr import SR

        with SR(engine_or_shipped(engine_dir, scale)) as sr:
            pairs += [make_pair(photo, sr, reduce=reduce) for photo in shown]
    try:
        page = build(parts, pairs, title=title)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    out.write_text(page, encoding="utf-8")
    click.echo(f"{out}: {len(page) / 2**20:.1f} MiB, {len(parts)} documents, {len(pairs)} sliders")


if __name__ == "__main__":
    main()
