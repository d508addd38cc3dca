"""`yonos batch`: the command line of `yonos_trt.ray_data`."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click

from yonos_trt.choices import ADDRESS, no_path
from yonos_trt.cli import options
from yonos_trt.cli.progress import JsonLines, Pace, Silent
from yonos_trt.errors import ConfigError


@click.command(short_help="Upscale a folder or bucket of any size, with Ray.")
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@options.cluster
@click.option("--report", type=options.LocalPath(), metavar="FILE",
              help="Where failures are reported; default: yonos-report.jsonl in DST.")  # fmt: skip
@click.option("--recursive", is_flag=True, help="Go into sub-folders and keep the tree.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist; without it they are left out.")
@options.named_model
@options.scale
@options.sizing
@options.tiling
@options.machine
@options.saving("as the input")
@options.looks
@options.reporting
def batch(
    source: str,
    target: str,
    workers: int | None,
    gpus_per_worker: float | None,
    address: str | None,
    report: Any,
    recursive: bool,
    overwrite: bool,
    suffix: str,
    format: str | None,
    quality: int,
    drop_depth: bool,
    alpha: str,
    stream: str,
    progress: str,
    dry_run: bool,
    verbose: int,
    quiet: bool,
    **chosen: Any,
) -> None:
    """Upscale the pictures of a folder, or below a URI, on this machine or a Ray cluster (extra ray).

    \b
    yonos batch photos/ big/ --recursive --workers 2
    yonos batch s3://bucket/photos s3://bucket/big --address auto

    What exists in DST is left out: a run that was stopped is said again. --threads and --memory-limit are of
    each worker.
    """
    from yonos_trt.console import quiet_libraries
    from yonos_trt.ray_data import places, run

    options.begin(progress, verbose, quiet=quiet)
    for name in (source, target):
        if not ADDRESS.match(name) and (problem := no_path(name)):
            raise ConfigError(problem)
    engine_dir, chosen, sizing = options.model_options(chosen)
    chosen["engine_dir"] = engine_dir
    names: dict[str, Any] = {"recursive": recursive, "suffix": suffix, "format": format, "size": sizing}
    if dry_run:
        todo, wanted = run.plan_batch(source, target, **names, **chosen)
        there = set() if overwrite else set(todo.there)
        jobs = [
            {"source": places.shown(s), "target": places.shown(t)}
            for i, (s, t) in enumerate(zip(todo.sources, todo.targets, strict=True))
            if i not in there
        ]
        click.echo(
            json.dumps({"options": wanted, "skipped": len(there), "jobs": jobs}, indent=2, default=str)
        )
        return
    save = options.save_of(quality=quality, drop_depth=drop_depth, alpha=alpha, stream=stream)
    with quiet_libraries():
        outcome = run.upscale(
            source,
            target,
            overwrite=overwrite,
            alpha=alpha,
            rows=stream,
            save=save,
            workers=workers,
            gpus_per_worker=gpus_per_worker,
            address=address,
            report=None if report is None else str(report),
            progress=_progress(progress, quiet=quiet),
            **names,
            **chosen,
        )
    if not quiet and progress != "json":
        counts = f"{outcome.done} done, {outcome.skipped} skipped, {len(outcome.failed)} failed"
        click.echo(f"{counts}, {outcome.seconds:.1f} s", err=True)
    if outcome.exit_code:
        click.get_current_context().exit(outcome.exit_code)


def _progress(mode: str, *, quiet: bool) -> Silent | JsonLines:
    if mode == "json":
        return _Lines()
    if mode == "bar" or (mode == "auto" and not quiet and sys.stderr.isatty()):
        return _Bar(quiet=quiet)
    return Silent(quiet=quiet)


class _Lines(JsonLines):
    """The events of `yonos upscale`; times count from the first picture on, as Ray takes a while to start.

    "start" comes when a picture is finished, whichever that is; "finish" has the pictures per second so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self._done, self._first_s = 0, 0.0

    def start(self, name: str, index: int, count: int) -> None:
        """Write a "start" line."""
        if not self._done:
            self._first_s, self._pace = time.monotonic(), Pace()
        self._done = index + 1
        super().start(name, index, count)

    def finish(self, name: str, **facts: Any) -> None:
        """Write a "finish" line."""
        elapsed_s = time.monotonic() - self._first_s
        rate = round((self._done - 1) / elapsed_s, 3) if self._done > 1 and elapsed_s else None
        super().finish(name, **facts, pictures_per_s=rate)


class _Bar(Silent):
    """Draw one bar for all pictures, with pictures/s and the time that is left."""

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__(quiet=quiet)
        self._bar: Any = None

    def start(self, name: str, index: int, count: int) -> None:
        """Move the bar."""
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(total=count, unit="picture", file=sys.stderr)
        self._bar.update(index + 1 - self._bar.n)

    def fail(self, name: str, error: BaseException) -> None:
        """Print the error above the bar."""
        if self._bar is not None:
            self._bar.clear()
        super().fail(name, error)

    def end(self, **totals: int) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
