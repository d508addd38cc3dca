"""The `yonos` command line, one to one with the API.

Results go to stdout, progress and errors to stderr. Exit codes: 0 ok, 1 some files failed, 2 usage, 3 engine,
4 no device, 5 memory, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import logging
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

import yonos_trt
from yonos_trt import console, errors
from yonos_trt.choices import MAX_PIXELS
from yonos_trt.cli import options

__all__ = ["cli", "exit_code"]

# Commands that live in modules of their own and are imported when they are called.
LAZY_COMMANDS = {"bench": "yonos_trt.cli.bench", "video": "yonos_trt.cli.video", "web": "yonos_trt.cli.web"}

_INTERRUPTED = 130

_EXIT_CODES: tuple[tuple[tuple[type[BaseException], ...], int], ...] = (
    ((errors.ConfigError,), 2),
    ((errors.OutOfMemoryError, MemoryError), 5),
    ((errors.EngineDeviceError, errors.CudaError), 4),
    (
        (
            errors.ManifestError,
            errors.EngineNotFoundError,
            errors.EngineIntegrityError,
            errors.EngineVersionError,
            errors.ProfileError,
            errors.BuildError,
            errors.MissingExtraError,
        ),
        3,
    ),
    ((errors.YonosError,), 1),
)


def exit_code(error: BaseException) -> int:
    """Return the exit code for an error that ends the program."""
    for kinds, code in _EXIT_CODES:
        if isinstance(error, kinds):
            return code
    return _INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


class _Group(click.Group):
    """Turn our errors and Ctrl-C into exit codes, and import some commands on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        there = [n for n, module in LAZY_COMMANDS.items() if importlib.util.find_spec(module) is not None]
        return sorted([*super().list_commands(ctx), *there])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = LAZY_COMMANDS.get(cmd_name)
        if module is None or importlib.util.find_spec(module) is None:
            return super().get_command(ctx, cmd_name)
        command = getattr(importlib.import_module(module), cmd_name)
        return command if isinstance(command, click.Command) else None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (errors.YonosError, MemoryError) as error:
            _say(ctx, "error", str(error) or "memory ran out")
            ctx.exit(exit_code(error))
        except KeyboardInterrupt:
            _say(ctx, "interrupted", "no unfinished file was left")
            ctx.exit(_INTERRUPTED)
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            about = "" if error.filename is None else f"{error.filename}: "
            _say(ctx, "error", f"{about}{error.strerror or error}")
            ctx.exit(1)
        except Exception as error:
            if isinstance(error, (click.ClickException, click.exceptions.Exit, click.Abort)):
                raise
            logging.getLogger("yonos_trt").debug("not expected", exc_info=True)
            _say(ctx, "error", _unexpected(error))
            ctx.exit(5 if "start new thread" in str(error) else 1)


def _unexpected(error: Exception) -> str:
    """Tell a fault of the program in one line."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(frame.filename).name}:{frame.lineno}"
    if "start new thread" in str(error):
        return "the system starts no more threads (a limit of memory or of processes)"
    return f"not expected: {type(error).__name__}: {error} (at {where}; -vv of upscale and video tells more)"


def _say(ctx: click.Context, event: str, message: str) -> None:
    from yonos_trt.cli.progress import META_KEY, last_line

    last_line(ctx.meta.get(META_KEY), event, message)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(yonos_trt.__version__, prog_name="yonos")
def cli() -> None:
    """One-step diffusion super-resolution: pictures and videos, on GPUs and CPUs."""


# ---------------------------------------------------------------------------------------------------------
# yonos upscale


@cli.command()
@click.argument("more", nargs=-1, type=options.LocalPath(), metavar="[INPUT]...")
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
@options.model
@options.scale
@options.sizing
@options.tiling
@options.machine
@click.option(
    "-f",
    "--format",
    type=click.Choice(["png", "jpg", "webp", "tiff", "avif"]),
    help="Output format; default: as the input, or as the output's suffix says.",
)
@click.option(
    "--quality", type=click.IntRange(1, 100), default=95, show_default=True, help="For jpg, webp and avif."
)
@click.option("--drop-depth", is_flag=True, help="Round to the format's depth: 16 bits into jpg or webp.")
@click.option("--suffix", default="_x{scale}", show_default=True, help="Added to derived output names.")
@click.option("--overwrite", "existing", flag_value="overwrite", help="Replace outputs that exist.")
@click.option("--skip-existing", "existing", flag_value="skip", help="Leave out inputs whose output exists.")
@click.option("--recursive", is_flag=True, help="Go into sub-folders and keep the tree.")
@options.alpha
@options.color_fix()
@options.restore
@click.option(
    "--stream",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Write rows as they are finished (png, tiff).",
)
@options.seed("Names the noise field.")
@click.option(
    "--max-pixels",
    type=click.IntRange(1, 1 << 40),
    default=MAX_PIXELS,
    show_default=True,
    metavar="N",
    help="Refuse files that declare more pixels, before they are decoded.",
)
@options.reporting
def upscale(
    more: tuple[Path, ...],
    inputs: tuple[Path, ...],
    output: str | None,
    existing: str | None,
    recursive: bool,
    suffix: str,
    format: str | None,
    quality: int,
    drop_depth: bool,
    alpha: str,
    stream: Any,
    long_edge: int | None,
    size: tuple[int, int] | None,
    fit: str,
    progress: str,
    dry_run: bool,
    verbose: int,
    quiet: bool,
    **chosen: Any,
) -> None:
    """Upscale pictures: files, lists of files, folders.

    \b
    yonos upscale -i photo.jpg                        writes photo_x4.jpg
    yonos upscale -i photo.jpg -o big.png -s 2.5
    yonos upscale -i photo.jpg --long-edge 3840       writes photo_3840px.jpg
    yonos upscale -i photos/ -o big/ --recursive --skip-existing
    """
    from yonos_trt.atomic import remove_leftovers
    from yonos_trt.cli.file_stages import FileStages
    from yonos_trt.cli.job_run import run_jobs
    from yonos_trt.cli.jobs import DEFAULT_SUFFIX, plan_jobs
    from yonos_trt.cli.progress import META_KEY, make_progress, set_up_logging
    from yonos_trt.console import quiet_libraries
    from yonos_trt.images import SaveOptions
    from yonos_trt.sr import SR

    paths = (*inputs, *more)
    if not paths:
        raise click.UsageError("no input; name files or folders with -i")
    click.get_current_context().meta[META_KEY] = progress
    set_up_logging(verbose, quiet=quiet, mode=progress)
    chosen = options.on_cpu(chosen)
    sizing = options.sizing_of(chosen["scale"], long_edge, size, fit)
    sr = SR(chosen.pop("engine_dir"), **chosen)
    to_stdout = output == "-"
    if to_stdout:
        _check_stdout(paths)
        output = None
    if sizing is not None and suffix == DEFAULT_SUFFIX:
        suffix = "_{scale}"
    label = str(sizing or f"{sr.factor:g}")
    plan = plan_jobs(paths, output, scale=label, suffix=suffix, format=format, recursive=recursive)
    jobs = plan.jobs
    save = SaveOptions(
        quality=quality,
        drop_alpha=alpha == "drop",
        drop_depth=drop_depth,
        palette="rgb" if stream == "always" else "adaptive",
    )
    if dry_run:
        if to_stdout:
            jobs = [dataclasses.replace(job, target=Path("-")) for job in jobs]
        asked = chosen | {"alpha": alpha, "stream": stream, "save": dataclasses.asdict(save)}
        _print_dry_run(sr, jobs, asked | ({} if sizing is None else {"size": str(sizing)}))
        return
    reporter = make_progress(progress, quiet=quiet)
    for folder in {job.target.parent for job in jobs}:
        remove_leftovers(folder)
    names = _Names(quiet=quiet or to_stdout or console.stdout_closed)
    with contextlib.ExitStack() as stack:
        if to_stdout:
            jobs = [stack.enter_context(_before_stdout(jobs[0]))]
        stack.enter_context(quiet_libraries())
        stages = FileStages(
            stack.enter_context(sr), rows=stream, alpha=alpha, format=format, options=save, sizing=sizing
        )
        outcome = run_jobs(
            jobs,
            stages,
            reporter,
            existing=existing or "refuse",
            written=names,
            passed_over=plan.passed_over,
        )
        if to_stdout and outcome.done:
            with open(jobs[0].target, "rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
    failed = [str(p.path) for p in plan.passed_over if p.failed]
    failed += [str(job.source) for job, _ in outcome.failed]
    count = len(jobs) + sum(p.failed for p in plan.passed_over)
    if failed and count > 1 and progress != "json":
        click.echo(f"{len(failed)} of {count} failed:", err=True)
        for name in failed:
            click.echo(f"  {name}", err=True)
    if names.problem:
        _say(click.get_current_context(), "error", f"stdout: {names.problem}; the files are written")
    if code := outcome.exit_code or int(bool(names.problem)):
        click.get_current_context().exit(code)


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


# ---------------------------------------------------------------------------------------------------------
# yonos info, yonos doctor


@cli.command()
@click.argument("engine_dir", required=False, type=options.LocalPath())
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--verify/--no-verify", default=True, help="Hash every file.")
@click.option(
    "--warm-up",
    "warm_up",
    type=options.Size(),
    metavar="WxH",
    multiple=True,
    help="Compile and keep what inputs of this size need (TensorRT-RTX: on disk, for later runs too), and "
    "say how long it took; may be given several times.",
)
def info(engine_dir: Path | None, as_json: bool, verify: bool, warm_up: tuple[tuple[int, int], ...]) -> None:
    """Describe an engine directory and check its files.

    ENGINE_DIR may be the name of a shipped model, such as lite-x2. The default is the shipped x4 model.
    """
    from yonos_trt.engine.manifest import load_manifest
    from yonos_trt.sr import SR

    with SR(engine_dir) as sr:
        if verify:
            load_manifest(sr.engine_dir, verify=True)
        began = time.perf_counter()
        if warm_up:
            sr.warm_up(warm_up)
        seconds = time.perf_counter() - began
        facts = sr.info()
    if warm_up:
        facts["warm_up_s"] = round(seconds, 3)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    tiles = facts["tiles"]
    click.echo(f"model       {facts['model']}, x{facts['scale']}, in {facts['engine_dir']}")
    click.echo(f"weights     {facts['weights_sha256']}")
    latent, origin = facts["latent"], facts["origin"]
    out = "" if latent["output_channels"] == latent["channels"] else f" in, {latent['output_channels']} out"
    click.echo(
        f"latent      {latent['channels']}{out} channels, 1/{latent['factor']} of the output; "
        f"the step starts from {'noise' if facts['start'] == 'noise' else 'the picture, without noise'}"
    )
    for name, value in (origin or {}).items():
        click.echo(f"{name:<11} {value}")
    click.echo(f"color fix   {facts['color_fix']}")
    click.echo(
        f"tiles       {tiles['smallest_px']} to {tiles['largest_px']} px, default {tiles['default_px']}, "
        f"multiple of {tiles['multiple_px']}, overlap {tiles['overlap_px']}, input {tiles['encoder_input']}"
    )
    for stage, artifacts in facts["artifacts"].items():
        for a in artifacts:
            size = a["bytes"] / 2**20
            click.echo(f"{stage:<11} {a['runtime']} {a['precision']}  {a['file']}  {size:.1f} MiB")
    if facts["restore"] is not None:
        click.echo(f"dial        --restore 0 (every grain) to 1 (clean, sharp), default {facts['restore']:g}")
    for precision, psnr in facts["end_to_end_psnr_db"].items():
        click.echo(
            f"parity      {precision}: {'exact' if psnr is None else f'{psnr:.1f} dB'} against the reference"
        )
    for x in facts["licences"]:
        click.echo(f"licence     {x['part']}: {x['licence']}{'  ' + x['source'] if x['source'] else ''}")
    if warm_up:
        click.echo(f"warm-up     {len(warm_up)} sizes in {seconds:.1f} s on {facts['backend']}")
    click.echo(f"files       {'complete, all hashes right' if verify else 'sizes right, hashes not checked'}")


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Say what this machine can run.

    Works, and ends, on machines without a driver or GPU.
    """
    from yonos_trt.cli.doctor import examine, lines

    facts = examine()
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        for line in lines(facts):
            click.echo(line)
    if not facts["onnxruntime"]["version"]:
        click.get_current_context().exit(3)
