"""Time peers in turns on one picture and report ratios with intervals.

::

    python -m benchmarks.speed [--engine DIR]... [--bundle DIR]... [--size 192x192]... [--json FILE]

Every model that ships is measured, or those that are named. Every peer sees the same picture and the same
number of threads; in every round all of them run, forwards and backwards in turns (`benchmarks.alternate`).
All peers are open at the same time, so nothing is measured here about memory. Peers that cannot run are
listed with the reason.

``--clock cpu`` counts the CPU seconds of all threads of the process instead of wall time: what an upscaled
picture costs, even on a machine that is busy with other work. Threads that wait by spinning pay for it there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.alternate import alternate, estimate, ratio
from benchmarks.machine import command_line, describe_model, header
from benchmarks.models import bundle_for, engines_or_shipped
from benchmarks.peer_types import Picture, Setting, Upscaler
from benchmarks.peers import PEERS, open_peers
from yonos_trt.host import usable_cpus

_CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
_OURS = ("onnx", "openvino", "openvino-fp32", "tensorrt", "tensorrt-rtx")


def measure(
    upscalers: Mapping[str, Upscaler],
    lr: Picture,
    *,
    scale: int,
    rounds: int,
    warm_up: int = 1,
    budget_s: float | None = None,
    label: str = "",
    clock: str = "wall",
) -> dict[str, Any]:
    """Time the upscalers on one picture.

    Returns
    -------
    Plain values: ``seconds`` per peer and round, ``times`` with intervals, ``ratios`` of every peer's time to
    that of each of our runtimes, and the ``rows`` that `benchmarks.compare` matches.

    Raises
    ------
    ValueError
        A result has the wrong size.
    """
    expected = (lr.shape[0] * scale, lr.shape[1] * scale, 3)

    def run(upscaler: Upscaler) -> None:
        if (shape := upscaler(lr).shape) != expected:
            raise ValueError(f"got a picture of {shape}, expected {expected}")

    seconds = alternate(
        {name: partial(run, upscaler) for name, upscaler in upscalers.items()},
        rounds=rounds,
        warm_up=warm_up,
        budget_s=budget_s,
        clock=_CLOCKS[clock],
    )
    size = f"{lr.shape[0]}x{lr.shape[1]}"
    times = {name: estimate([1e3 * s for s in values]) for name, values in seconds.items()}
    bases = [name for name in _OURS if name in seconds]
    ratios = [
        {"peer": name, "to": base, **ratio(values, seconds[base]).as_dict()}
        for base in bases
        for name, values in seconds.items()
        if name != base
    ]
    where = f"speed/{label}{size}" + (f"/{clock}" if clock != "wall" else "")
    rows = [
        {"key": f"{where}/{name}", **t.as_dict(), "unit": "ms", "better": "lower"}
        for name, t in times.items()
    ]
    rows += [
        {**r, "key": f"{where}/{r['peer']} over {r['to']}", "unit": "x", "better": "higher"}
        for r in ratios
        if r["peer"] not in _OURS
    ]
    return {
        "size_lr_px": list(lr.shape[:2]),
        "clock": clock,
        "rounds": len(next(iter(seconds.values()))),
        "seconds": seconds,
        "times": {name: t.as_dict() for name, t in times.items()},
        "ratios": ratios,
        "rows": rows,
    }


def table(document: Mapping[str, Any]) -> str:
    """Lay a document out as Markdown: time, output rate, and the ratio to each of our runtimes."""
    times = document["times"]
    pixels = np.prod(document["size_lr_px"]) * document["model"]["scale"] ** 2
    bases = list(dict.fromkeys(r["to"] for r in document["ratios"]))
    found = {(r["peer"], r["to"]): r for r in document["ratios"]}
    lines = [
        "| | ms, median | 95 % interval | Mpx/s out | "
        + " | ".join(f"time / {base}" for base in bases)
        + " |",
        "|---" * (4 + len(bases)) + "|",
    ]
    for name in sorted(times, key=lambda n: times[n]["value"]):
        t = times[name]
        cells = []
        for base in bases:
            r = found.get((name, base))
            cells.append(
                "1" if name == base else f"{r['value']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" if r else "-"
            )
        head = f"{t['value']:.1f} | {t['low']:.1f} - {t['high']:.1f} | {pixels / t['value'] / 1e3:.2f}"
        lines.append(f"| {name} | {head} | {' | '.join(cells)} |")
    lines += [
        f"| {name} | not run | {reason} |" + " |" * (1 + len(bases))
        for name, reason in document["not_run"].items()
    ]
    return "\n".join(lines)


def size(text: str) -> tuple[int, int]:
    """Parse HEIGHTxWIDTH."""
    try:
        height, width = (int(part) for part in text.split("x"))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a size, expected for example 192x192") from None
    return height, width


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--engine",
    "engine_dirs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="May be repeated; default: every shipped model.",
)
@click.option(
    "--bundle",
    "bundles",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Checkpoint for the torch peers; one per scale.",
)
@click.option("--scale", "scales", multiple=True, type=int, help="Shipped models; may be repeated.")
@click.option("--peers", default=",".join(PEERS), help="Comma-separated; default: all.")
@click.option("--size", "sizes", multiple=True, default=["192x192"], show_default=True, help="Input picture.")
@click.option("--tile", "tile_px", type=int, help="Tile side in output pixels; default: the model's.")
@click.option("--threads", type=int, help="Threads of every peer; default: all usable CPUs.")
@click.option("--rounds", default=7, show_default=True)
@click.option("--warm-up", default=1, show_default=True, help="Untimed rounds.")
@click.option("--budget", type=float, metavar="SECONDS", help="Begin no further round after this time.")
@click.option("--clock", type=click.Choice(list(_CLOCKS)), default="wall", show_default=True)
@click.option("--note", default="", help="Said in the document, e.g. that the weights are random.")
@click.option("--peaks/--no-peaks", default=True, help="Measure the machine's peaks as well.")
@click.option("--json", "target", type=click.Path(path_type=Path, dir_okay=False), help="Write this file.")
def main(
    engine_dirs: Sequence[Path],
    bundles: Sequence[Path],
    scales: Sequence[int],
    peers: str,
    sizes: Sequence[str],
    tile_px: int | None,
    threads: int | None,
    rounds: int,
    warm_up: int,
    budget: float | None,
    clock: str,
    note: str,
    peaks: bool,
    target: Path | None,
) -> None:
    """Time peers in turns on a random picture."""
    names = [name.strip() for name in peers.split(",")]
    parts = []
    for engine_dir in engines_or_shipped(engine_dirs, scales):
        setting = Setting(engine_dir, threads=threads or usable_cpus(), tile_px=tile_px)
        manifest = setting.manifest
        setting = replace(setting, bundle=bundle_for(bundles, manifest.model.scale))
        try:
            upscalers, missing = open_peers(names, setting)
        except ValueError as error:
            raise click.ClickException(str(error)) from error
        for text in sizes:
            lr = np.random.default_rng(0).integers(0, 256, (*size(text), 3), np.uint8)
            part = {
                **header("speed", command_line("benchmarks.speed"), peaks=peaks),
                "model": describe_model(manifest),
                "threads": setting.threads,
                "tile_px": tile_px or manifest.tiles.default_px,
                "note": note,
                "not_run": missing,
                **measure(
                    upscalers,
                    lr,
                    scale=manifest.model.scale,
                    rounds=rounds,
                    warm_up=warm_up,
                    budget_s=budget,
                    label=f"{manifest.model.name}/",
                    clock=clock,
                ),
            }
            parts.append(part)
            click.echo(
                f"\n{manifest.model.name}, {text}, {part['rounds']} rounds, {clock} time\n\n{table(part)}"
            )
    if target is not None:
        target.write_text(json.dumps({"kind": "parts", "parts": parts}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
