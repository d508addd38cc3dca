"""``yonos bench``: the table and the JSON file of `yonos_trt.bench`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, cast

import click

from yonos_trt.backends.choose import RUNTIMES, find_model, shipped_model
from yonos_trt.bench import CONVENTIONS, BenchConfig, measure
from yonos_trt.cli import options
from yonos_trt.engine.manifest import Precision
from yonos_trt.images import atomic_path

LARGEST_SIDE_PX = 65_536


class _List(click.ParamType[Any]):
    """Comma-separated values."""

    def __init__(self, kind: type, metavar: str) -> None:
        self.name = metavar
        self._kind = kind

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        try:
            values = tuple(self._kind(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list such as {self.name}", param, ctx)
        if self._kind is int and not all(1 <= number <= LARGEST_SIDE_PX for number in values):
            self.fail(f"{value!r} is out of range; expected numbers of 1 to {LARGEST_SIDE_PX}", param, ctx)
        return values


class _Size(click.ParamType[Any]):
    name = "HxW"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        try:
            height, width = (int(part) for part in str(value).lower().split("x"))
        except ValueError:
            self.fail(f"{value!r} is not a size; expected HEIGHTxWIDTH, for example 256x256", param, ctx)
        if not (1 <= height <= LARGEST_SIDE_PX and 1 <= width <= LARGEST_SIDE_PX):
            self.fail(f"{value!r} is out of range; expected sides of 1 to {LARGEST_SIDE_PX} px", param, ctx)
        return height, width


@click.command(short_help="Time every stage and whole pictures on this machine.")
@options.model
@click.option(
    "-s", "--scale", type=click.IntRange(1, 64), default=4, show_default=True, help="Which shipped model."
)
@click.option(
    "--runtime",
    "runtimes",
    type=_List(str, "A,B"),
    default="auto",
    show_default=True,
    help=f"What runs the networks: {', '.join(RUNTIMES)}; several are timed one after the other.",
)
@options.precision
@click.option("-t", "--tile", "tiles_px", type=_List(int, "PX,PX"), help="Tile sides in output pixels.")
@click.option("-j", "--lanes", type=_List(int, "1,2,4"), help="Tile batches worked on at the same time.")
@options.batch
@options.threads
@click.option(
    "-g",
    "--gpu",
    "device",
    type=click.IntRange(0, 1023),
    metavar="N",
    default=0,
    show_default=True,
    help="CUDA device number; --runtime onnx runs on the CPU.",
)
@click.option(
    "--size", "size_lr_px", type=_Size(), default="256x256", show_default=True, help="Input picture."
)
@click.option(
    "--warm-up",
    type=click.IntRange(0, 1_000_000),
    default=1,
    show_default=True,
    help="Pictures before the clock starts.",
)
@click.option(
    "--iterations",
    type=click.IntRange(1, 1_000_000),
    default=5,
    show_default=True,
    help="Pictures at least.",
)
@click.option(
    "--duration",
    "duration_s",
    type=options.Finite(0, 86_400),
    default=3.0,
    show_default=True,
    help="Seconds at least.",
)
@click.option(
    "--percentile",
    "percentiles",
    type=_List(float, "50,90,99"),
    default="50,90,99",
    show_default=True,
    help="Percentiles of the latencies.",
)
@click.option(
    "--include-transfers/--no-transfers",
    "transfers",
    default=True,
    help="Whether the picture's row counts copies to and from the device (trtexec 10: yes, 11: no).",
)
@options.color_fix(None)
@options.seed("Of the picture and of the noise.")
@click.option(
    "--gflop/--no-gflop", default=True, help="Count the networks' arithmetic (slow for large ones)."
)
@click.option("--json", "target", type=options.LocalPath(dir_okay=False), help="Write this file too.")
def bench(
    engine_dir: Path | None,
    scale: int,
    precision: str | None,
    lanes: tuple[int, ...] | None,
    tiles_px: tuple[int, ...] | None,
    transfers: bool,
    target: Path | None,
    **chosen: Any,
) -> None:
    """Time every stage of the data path and whole pictures on this machine."""
    if target is not None and not target.parent.is_dir():
        raise click.BadParameter(f"the folder {target.parent} does not exist", param_hint="'--json'")
    if target is not None and (
        (target.exists() and not target.is_file()) or not os.access(target.parent, os.W_OK)
    ):
        raise click.BadParameter(f"{target} cannot be written; name a file", param_hint="'--json'")
    config = BenchConfig(
        engine_dir=shipped_model(scale) if engine_dir is None else find_model(engine_dir),
        precision=cast(Precision | None, precision),
        lanes=lanes or (None,),
        tiles_px=tiles_px or (None,),
        **chosen,
    )
    document = {**measure(config), "command": ["yonos", "bench", *map(_short, sys.argv[2:])]}
    click.echo(table(document, transfers=transfers))
    if target is not None:
        with atomic_path(target) as part:
            part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _short(argument: str) -> str:
    """Leave out the folders of this machine."""
    return Path(argument).name if argument.startswith("/") else argument


# ---------------------------------------------------------------------------------------------------------
# The table


def table(document: dict[str, Any], *, transfers: bool = True) -> str:
    """Lay a document of `measure` out as text."""
    machine, peaks, options = document["machine"], document["peaks"], document["options"]
    height, width = options["size_lr_px"]
    percentiles = [f"p{p:g}" for p in options["percentiles"]]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"model    {document['model']['name']}, x{document['model']['scale']}, input {height} x {width} px",
        f"machine  {machine['processor']}, {machine['cores']} cores"
        + (f", {machine['gpu']}" if machine["gpu"] else ", no GPU")
        + f", load {machine['load_1min']} before the run",
        f"         {versions}",
        f"peaks    {peaks['copy_gbytes_s']:.1f} GB/s (copy, read + written); all measured in this run",
        *(
            f"         {rate:.0f} GFLOP/s in {name} ({peaks['probe'][name]})"
            for name, rate in peaks["gflops"].items()
        ),
        *(f"         {library}: not probed, {reason}" for library, reason in peaks["not_run"].items()),
    ]
    for entry in document["entries"]:
        lines += ["", _title(entry)]
        header = "".join(f"{name + ' ms':>10}" for name in percentiles)
        lines.append(
            f"  {'stage':<10}{header}{'share':>8}{'1/s':>9}{'GFLOP':>9}{'GFLOP/s':>9}{'GB/s':>8}"
            f"{'of peak':>9}"
        )
        lines += [_stage_line(stage, percentiles) for stage in entry["stages"]]
        if entry["stages"] and entry["precision"] not in peaks["gflops"]:
            lines.append(f"  no share of a peak: nothing here could be probed in {entry['precision']}")
        kind = "with_transfers" if transfers else "without_transfers"
        latency = entry["picture"][kind]
        if latency is None:
            lines.append("  picture without transfers: not measured on this back end")
        else:
            cells = "".join(f"{latency[name + '_ms']:10.2f}" for name in percentiles)
            lines.append(
                f"  {'picture':<10}{cells}{'':8}{latency['images_s']:9.2f}   {latency['mpx_s']:.2f} Mpx/s out"
            )
        if entry["overhead"] is not None:
            lines.append(f"  beside the networks: {entry['overhead']:.1%} of the picture's time")
        memory = entry["memory"]
        lines.append(
            f"  memory: peak {memory['peak_rss_mib']:.0f} MiB resident, of it {memory['added_mib']:.0f} MiB "
            f"while running and {entry['opening_mib']:.0f} MiB for opening the model"
        )
        if (device := memory.get("device")) is not None:
            lines.append(
                f"  device memory: peak {device['peak_mib']:.0f} MiB on the GPU, of it "
                f"{device['added_mib']:.0f} MiB while running"
            )
    lines += [f"\nnot run: {missing['runtime']}: {missing['reason']}" for missing in document["not_run"]]
    kind = "with_transfers" if transfers else "without_transfers"
    lines += ["", f"picture: one input in host memory to one output in host memory; {CONVENTIONS[kind]}"]
    return "\n".join(lines)


def _title(entry: dict[str, Any]) -> str:
    height, width = entry["tile_size_px"]
    return (
        f"{entry['runtime']} ({entry['backend']}, {entry['precision']}), {entry['tiles']} tiles of "
        f"{height} x {width} px, overlap {entry['overlap_px']}, batch {entry['batch']}, "
        f"{entry['lanes']} lanes, {entry['threads']} threads, {entry['pictures']} pictures"
    )


def _stage_line(stage: dict[str, Any], percentiles: list[str]) -> str:
    cells = "".join(f"{stage[name + '_ms']:10.2f}" for name in percentiles)

    def optional(name: str, width: int, form: str) -> str:
        return f"{stage[name]:{width}{form}}" if name in stage else " " * width

    return (
        f"  {stage['stage']:<10}{cells}{stage['share']:8.1%}{stage['batches_s']:9.1f}"
        f"{optional('gflop', 9, '.2f')}{optional('gflops', 9, '.0f')}{optional('gbytes_s', 8, '.1f')}"
        f"{optional('of_peak', 9, '.0%')}"
    ).rstrip()
