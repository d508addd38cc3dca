"""Measure everything on this machine, one process after the other, and write one result file.

::

    python -m benchmarks.record benchmarks/results/DATE-MACHINE.json --data FOLDER --weights NAME=FILE ...

Runs ``yonos bench``, `benchmarks.speed` and `benchmarks.quality` (with ``--data``) for every model that ships
and the sweep of ``bench_pipeline`` for the x4 one, and merges their documents. Each step's document stays in
the work folder: a second call goes on after the last one that is there.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.machine import REPOSITORY
from benchmarks.models import engines_or_shipped
from benchmarks.results import merge
from benchmarks.sweep_document import sweep_part
from yonos_trt.engine.manifest import load_manifest

_SMALL_PEERS = "onnx,openvino,openvino-fp32,bare-loop-quiet,naive-loop"
"""Those worth timing on a larger picture as well; the others take minutes there and say nothing new."""


@dataclass(frozen=True, slots=True)
class Step:
    """One command and the document it writes.

    Attributes
    ----------
    name : str
        Of the document, without suffix.
    module : str
        What ``python -m`` runs.
    arguments : tuple of str
        Its arguments; ``{}`` stands for the document's path without the suffix ``.json``.
    environment : tuple of (str, str)
        Variables on top of those of this process.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()

    def command(self, folder: Path) -> list[str]:
        """Return the words after ``python``."""
        return ["-m", self.module, *(word.replace("{}", str(folder / self.name)) for word in self.arguments)]


def steps(
    engine_dirs: Sequence[Path],
    *,
    sweep: Sequence[Path] = (),
    data: Path | None = None,
    sets: str = "bsd100_x4",
    limit: int = 5,
    weights: Sequence[str] = (),
    bundles: Sequence[Path] = (),
    quick: bool = False,
) -> list[Step]:
    """Return what has to be run, in order; the models of `sweep` are swept as well."""
    engines = [word for path in engine_dirs for word in ("--engine", str(path))]
    torch = [word for path in bundles for word in ("--bundle", str(path))]
    few = ["--no-peaks", "--rounds", "2" if quick else "9"]  # the first documents have the peaks
    found = [
        Step(
            f"bench-{path.name}",
            "yonos_trt.cli",
            ("bench", "-m", str(path), "--runtime", "onnx,openvino", "--json", "{}.json",
             *(("--size", "32x32", "--iterations", "1", "--duration", "0") if quick else ())),
        )
        for path in engine_dirs
    ]  # fmt: skip
    small, large = ("24x24", "32x40") if quick else ("128x128", "256x256")
    found += [
        Step("speed", "benchmarks.speed", (*engines, *torch, "--size", small, *few, "--json", "{}.json")),
        Step(
            "speed-large",
            "benchmarks.speed",
            (*engines, "--peers", _SMALL_PEERS, "--size", large, *few, "--json", "{}.json"),
        ),
    ]
    if data is not None:
        named = [word for weight in weights for word in ("--weights", weight)]
        picked = ["--sets", sets] if sets else []
        arguments = (str(data), *engines, *picked, "--limit", str(limit), *named, "--out", "{}")
        found.append(Step("quality", "benchmarks.quality", arguments))
    found += [
        Step(
            f"sweep-{path.name}",
            "pytest",
            ("-q", "benchmarks/bench_pipeline.py", "-p", "no:cacheprovider", "--benchmark-json", "{}.json",
             *(("-k", "64x64 or bench_folder") if quick else ())),
            (("YONOS_BENCH_ENGINE", str(path.resolve())), ("YONOS_BENCH_FULL", "" if quick else "1")),
        )
        for path in sweep
    ]  # fmt: skip
    return found


def _run(step: Step, folder: Path) -> dict[str, Any]:
    target = folder / f"{step.name}.json"
    command = step.command(folder)
    if target.exists():
        click.echo(f"{target} is there already", err=True)
    else:
        click.echo(shlex.join(["python", *command]), err=True)
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        environment = os.environ | {"PYTHONPATH": path} | dict(step.environment)
        done = subprocess.run([sys.executable, *command], cwd=REPOSITORY, env=environment)
        if done.returncode:
            failed = target.with_suffix(".failed.json")
            if target.exists():
                target.replace(failed)
            raise click.ClickException(f"{step.name} failed with exit code {done.returncode}; see above")
    document: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
    if step.module != "pytest":
        return document
    shown = [f"YONOS_BENCH_FULL={dict(step.environment)['YONOS_BENCH_FULL']}", "python", "-m", "pytest"]
    return sweep_part(document, [*shown, "benchmarks/bench_pipeline.py"])


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--engine", "engine_dirs", multiple=True, type=click.Path(path_type=Path))
@click.option("--scale", "scales", multiple=True, type=int, help="Shipped models; default: all.")
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), help="For quality.")
@click.option("--sets", default="bsd100_x4", show_default=True, help="Sets of --data; empty: all.")
@click.option("--limit", default=5, show_default=True, help="Pictures of each set; 0: all.")
@click.option("--weights", multiple=True, metavar="NAME=FILE", help="lpips_alex, lpips_vgg, dists.")
@click.option("--bundle", "bundles", multiple=True, type=click.Path(path_type=Path), help="Checkpoints.")
@click.option("--quick", is_flag=True, help="Tiny sizes, to see that everything runs.")
@click.option(
    "--work", type=click.Path(path_type=Path), default=Path("runs/record"), show_default=True,
    help="Folder of the steps' documents.",
)  # fmt: skip
def main(
    out: Path,
    engine_dirs: Sequence[Path],
    scales: Sequence[int],
    work: Path,
    **options: Any,
) -> None:
    """Measure everything and write OUT."""
    work = work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    engines = [path.resolve() for path in engines_or_shipped(engine_dirs, scales)]
    # other scales differ from x4 in arithmetic, not in how it depends on tiles and lanes
    sweep = [path for path in engines if load_manifest(path, verify=False).model.scale == 4] or engines[:1]
    documents = [_run(step, work) for step in steps(engines, sweep=sweep, **options)]
    merged = merge(documents, label=out.stem)
    out.write_text(json.dumps(merged, indent=1) + "\n", encoding="utf-8")
    click.echo(f"{out}: {len(merged['parts'])} documents; {work} may go")


if __name__ == "__main__":
    main()
