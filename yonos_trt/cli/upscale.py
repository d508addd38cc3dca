"""`yonos upscale`: the command line of pictures, files and folders."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from yonos_trt import console, errors
from yonos_trt.choices import no_path
from yonos_trt.cli import options
from yonos_trt.cli.progress import last_line

if TYPE_CHECKING:
    from yonos_trt.cli.job_outcome import Outcome
    from yonos_trt.cli.jobs import Job, PassedOver, Plan


class _Command(click.Command):
    """Keep what was typed, for workers."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[options.ARGUMENTS] = tuple(args)
        return super().parse_args(ctx, args)


@click.command(cls=_Command, short_help="Upscale pictures: files, lists of files, folders.")
@click.argument("more", nargs=-1, type=options.LocalPath(dash=True), metavar="[INPUT]...")
@click.option(
    "-i",
    "--input",
    "inputs",
    multiple=True,
    type=options.LocalPath(),
    metavar="IN",
    help="File or folder; may be given several times.",
)
@click.option("-o", "--output", metavar="OUT", help="File or folder; default: beside each input.")
@options.named_model
@options.scale
@options.sizing
@options.tiling
@options.machine
@options.saving("as the input, or as the output's suffix says")
@click.option("--overwrite", "existing", flag_value="overwrite", help="Replace outputs that exist.")
@click.option("--skip-existing", "existing", flag_value="skip", help="Leave out inputs whose output exists.")
@click.option("--watch", "watching", is_flag=True, help="Keep input folders done, until Ctrl-C.")
@click.option("--workers", "shared_by", type=click.IntRange(0, 64), default=0, hidden=True)
@click.option("--recursive", is_flag=True, help="Go into sub-folders and keep the tree.")
@options.looks
@options.reporting
def upscale(
    more: tuple[Path, ...],
    inputs: tuple[Path, ...],
    output: str | None,
    existing: str | None,
    watching: bool,
    shared_by: int,
    recursive: bool,
    suffix: str,
    format: str | None,
    quality: int,
    drop_depth: bool,
    alpha: str,
    stream: Any,
    progress: str,
    dry_run: bool,
    verbose: int,
    quiet: bool,
    **chosen: Any,
) -> None:
    """Upscale pictures: files, lists of files, folders.

    \b
    yonos upscale photo.jpg                           writes photo_x4.jpg
    yonos upscale photo.jpg big.png -s 2.5
    yonos upscale -i photo.jpg --long-edge 3840       writes photo_3840px.jpg
    yonos upscale -i photos/ -o big/ --recursive --skip-existing
    yonos upscale -i photos/ -o big/ --watch
    """
    from yonos_trt.atomic import remove_leftovers
    from yonos_trt.cli.file_stages import FileStages
    from yonos_trt.cli.job_run import run_jobs
    from yonos_trt.cli.jobs import DEFAULT_SUFFIX, plan_jobs
    from yonos_trt.cli.progress import make_progress
    from yonos_trt.cli.watch import watch
    from yonos_trt.console import quiet_libraries
    from yonos_trt.sr import SR

    if not (inputs or more):
        raise click.UsageError("no input; name files or folders with -i")
    if any(os.fspath(path) == "-" for path in more[: 1 if len(more) == 2 else None]):  # not of IN OUT
        raise click.UsageError(f"{no_path('-')}")
    options.begin(progress, verbose, quiet=quiet)
    devices = chosen["device"] if isinstance(chosen["device"], tuple) else ()
    engine_dir, chosen, sizing = options.model_options(chosen | ({"device": devices[0]} if devices else {}))
    sr = SR(engine_dir, **chosen)
    if not inputs and output is None and len(more) == 2:
        more, output = _source_and_target(*more, partial(sr.size_of, size=sizing))
    paths = (*inputs, *more)
    to_stdout = output == "-"
    if to_stdout:
        _check_stdout(paths)
        output = None
    _check_existing(existing, watching=watching, devices=devices, paths=paths, to_stdout=to_stdout)
    if sizing is not None and suffix == DEFAULT_SUFFIX:
        suffix = "_{scale}"
    label = str(sizing or f"{sr.factor:g}")

    def look() -> Plan:
        inputs = [path for path in paths if path.is_dir()] if watching else paths
        return plan_jobs(
            inputs, output, scale=label, suffix=suffix, format=format, recursive=recursive, watching=watching
        )

    plan = look()
    jobs = plan.jobs
    save = options.save_of(quality=quality, drop_depth=drop_depth, alpha=alpha, stream=stream)
    if dry_run:
        if to_stdout:
            jobs = [dataclasses.replace(job, target=Path("-")) for job in jobs]
        asked = chosen | {"alpha": alpha, "stream": stream, "save": dataclasses.asdict(save)}
        asked |= {"device": list(devices)} if devices else {}
        _print_dry_run(sr, jobs, asked | ({} if sizing is None else {"size": str(sizing)}))
        return
    reporter = make_progress(progress, unit="file" if devices else "tile", quiet=quiet)
    for folder in {job.target.parent for job in jobs}:
        remove_leftovers(folder)
    names = _Names(quiet=quiet or to_stdout or console.stdout_closed)
    if shared_by:
        from yonos_trt.cli.workers import end_with_parent

        end_with_parent()
    if devices:
        from yonos_trt.cli.workers import Workers, check_devices, options_of

        check_devices(devices)
        given = options_of(click.get_current_context(), _OF_THE_PARENT)
        given += [] if output is None else [f"--output={output}"]
        given += [] if chosen["tile_px"] is None else [f"--tile={chosen['tile_px']}"]
        given += [f"--input={path}" for path in paths]
        count = len(devices) if watching else max(1, min(len(devices), len(jobs)))
        workers = Workers(given, devices[:count], reporter, threads=chosen["threads"], written=names)
        code = workers.run(jobs, existing=existing or "refuse", watching=watching)
        _list(list(workers.failed), len(jobs), progress)
        _end(names, code, progress)
        return
    with contextlib.ExitStack() as stack:
        if to_stdout:
            jobs = [stack.enter_context(_before_stdout(jobs[0]))]
        stack.enter_context(quiet_libraries())
        stages = FileStages(
            stack.enter_context(sr), rows=stream, alpha=alpha, format=format, options=save, sizing=sizing
        )

        def run(jobs: list[Job], passed_over: list[PassedOver]) -> Outcome:
            return run_jobs(
                jobs,
                stages,
                reporter,
                existing="skip" if watching else existing or "refuse",
                # a file that is read ahead is claimed: of a few it would be missing to another worker
                overlap=not shared_by or len(jobs) > _FEW * shared_by,
                written=names,
                passed_over=passed_over,
            )

        if watching:
            watch(look, run)
        outcome = run(jobs, plan.passed_over)
        if to_stdout and outcome.done:
            with open(jobs[0].target, "rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
    failed = [str(p.path) for p in plan.passed_over if p.failed]
    failed += [str(job.source) for job, _ in outcome.failed]
    _list(failed, len(jobs) + sum(p.failed for p in plan.passed_over), progress)
    _end(names, outcome.exit_code, progress)


_FEW = 4  # files for each worker

_OF_THE_PARENT = ("inputs", "output", "device", "tile_px", "threads", "existing", "progress")


def _list(failed: list[str], count: int, progress: str) -> None:
    if failed and count > 1 and progress != "json":
        click.echo(f"{len(failed)} of {count} failed:", err=True)
        for name in failed:
            click.echo(f"  {name}", err=True)


def _end(names: _Names, code: int, progress: str) -> None:
    if names.problem:
        last_line(progress, "error", f"stdout: {names.problem}; the files are written")
    if code := code or int(bool(names.problem)):
        click.get_current_context().exit(code)


def _check_existing(
    existing: str | None,
    *,
    watching: bool,
    devices: tuple[int, ...],
    paths: tuple[Path, ...],
    to_stdout: bool,
) -> None:
    """Refuse what a watched folder and a shared one cannot do."""
    if watching and not all(path.is_dir() for path in paths):
        raise click.UsageError("--watch keeps folders done, and not all inputs are folders; name folders")
    for asked, option in ((watching, "--watch"), (bool(devices), "a list of devices (-g 0,1)")):
        if asked and existing == "overwrite":
            raise click.UsageError(
                f"{option} leaves results that exist; leave --overwrite out, and remove the results that are "
                "to be made again"
            )
    if devices and to_stdout:
        raise click.UsageError("-o - writes one picture, which one device does; name it with -g N")


def _source_and_target(
    first: Path, second: Path, size_of: Callable[[int, int], tuple[int, int]]
) -> tuple[tuple[Path, ...], str | None]:
    """Read ``IN OUT`` as people mean it: return the inputs, and the output if there is one.

    Two files that are there are two inputs, as a pattern of the shell names them, unless the second one looks
    like the result of the first.

    Raises
    ------
    click.UsageError
        It could be either.
    """
    if not second.exists():
        return (first,), os.fspath(second) + (os.sep if first.is_dir() else "")
    if second.is_dir():
        why = "a folder"
    elif first.is_dir() or second.suffix.lower() != first.suffix.lower():
        why = "of another kind"
    elif _is_result(first, second, size_of):
        why = "as large as its result"
    else:
        return (first, second), None
    raise click.UsageError(
        f"{first} and {second}: the second one exists and is {why}; as the output name it with -o (a file "
        "with --overwrite too, to replace it), as an input name both with -i"
    )


def _is_result(first: Path, second: Path, size_of: Callable[[int, int], tuple[int, int]]) -> bool:
    """Tell whether one picture is as large as the result of the other; False where one cannot be read."""
    from yonos_trt.images.header import MalformedError
    from yonos_trt.images.inspection import inspect

    try:
        one, other = inspect(first.read_bytes()), inspect(second.read_bytes())
    except (OSError, MalformedError):
        return False
    wanted = size_of(one.height_px, one.width_px)
    return sorted(wanted) == sorted((other.height_px, other.width_px))  # stored upright or not


class _Names:
    """Print the path of every finished file; where stdout takes no more, the files go on all the same."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self.problem = ""

    def __call__(self, path: Path) -> None:
        if self._quiet or self.problem:
            return
        try:
            click.echo(os.fsencode(path))  # a name is bytes, whatever the terminal's encoding
        except BrokenPipeError:
            raise
        except OSError as error:
            self.problem = error.strerror or str(error)


def _check_stdout(paths: tuple[Path, ...]) -> None:
    if len(paths) != 1 or paths[0].is_dir():
        raise errors.ConfigError("-o - writes one picture to stdout; name one file with -i, or -o FOLDER")
    if console.stdout_closed:
        raise errors.ConfigError("-o - writes a picture, and stdout is closed; open it, or name a file")
    if sys.stdout.isatty():
        raise errors.ConfigError("-o - writes a picture, and stdout is a terminal; pipe it, or name a file")


@contextlib.contextmanager
def _before_stdout(job: Any) -> Iterator[Any]:
    """Let the job write into a folder that goes away; a half picture never gets to stdout."""
    with tempfile.TemporaryDirectory(prefix="yonos-") as folder:
        yield dataclasses.replace(job, target=Path(folder) / f"picture{job.target.suffix}")


def _print_dry_run(sr: Any, jobs: Any, options: dict[str, Any]) -> None:
    document = {
        "engine_dir": str(sr.engine_dir),
        "scale": sr.factor,
        "options": options,
        "jobs": [{"source": str(j.source), "target": str(j.target)} for j in jobs],
    }
    click.echo(json.dumps(document, indent=2))
