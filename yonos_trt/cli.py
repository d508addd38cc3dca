"""The `yonos` command line, one to one with the API.

Results go to stdout, progress and errors to stderr. Exit codes: 0 ok, 1 some files failed, 2 usage, 3 engine,
4 no device, 5 memory, 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import signal
import sys
from pathlib import Path
from typing import Any

import click

import yonos_trt
from yonos_trt import errors, options

__all__ = ["cli", "exit_code", "main"]

# Commands that live in modules of their own and are imported when they are called.
LAZY_COMMANDS = {"bench": "yonos_trt.bench.cli", "video": "yonos_trt.video.cli"}

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
            _say(ctx, "error", str(error) or "out of memory")
            ctx.exit(exit_code(error))
        except KeyboardInterrupt:
            _say(ctx, "interrupted", "no unfinished file was left")
            ctx.exit(_INTERRUPTED)


def _say(ctx: click.Context, event: str, message: str) -> None:
    from yonos_trt.progress import META_KEY, last_line

    last_line(ctx.meta.get(META_KEY), event, message)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(yonos_trt.__version__, prog_name="yonos")
def cli() -> None:
    """One-step diffusion super-resolution: pictures and videos, on GPUs and CPUs."""


# ---------------------------------------------------------------------------------------------------------
# yonos upscale


@cli.command()
@click.argument("more", nargs=-1, type=click.Path(path_type=Path), metavar="[INPUT]...")
@click.option(
    "-i",
    "--input",
    "inputs",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="IN",
    help="File or folder; may be given several times.",
)
@click.option("-o", "--output", metavar="OUT", help="File or folder; default: beside each input.")
@options.model
@options.scale
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
@click.option("--suffix", default="_x{scale}", show_default=True, help="Added to derived output names.")
@click.option("--overwrite", "existing", flag_value="overwrite", help="Replace outputs that exist.")
@click.option("--skip-existing", "existing", flag_value="skip", help="Leave out inputs whose output exists.")
@click.option("--recursive", is_flag=True, help="Go into sub-folders and keep the tree.")
@options.alpha
@options.color_fix()
@click.option(
    "--stream",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Write rows as they are finished (png, tiff).",
)
@options.seed("Names the noise field.")
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
    yonos upscale -i photo.jpg                        writes photo_x4.jpg
    yonos upscale -i photo.jpg -o big.png -s 2
    yonos upscale -i photos/ -o big/ --recursive --skip-existing
    """
    from yonos_trt.file_stages import FileStages
    from yonos_trt.images import SaveOptions
    from yonos_trt.job_run import run_jobs
    from yonos_trt.jobs import plan_jobs
    from yonos_trt.progress import META_KEY, make_progress, set_up_logging
    from yonos_trt.sr import SR

    paths = (*inputs, *more)
    if not paths:
        raise click.UsageError("no input; name files or folders with -i")
    click.get_current_context().meta[META_KEY] = progress
    set_up_logging(verbose, quiet=quiet, mode=progress)
    chosen = options.on_cpu(chosen)
    sr = SR(chosen.pop("engine_dir"), **chosen)
    jobs = plan_jobs(paths, output, scale=sr.scale, suffix=suffix, format=format, recursive=recursive)
    save = SaveOptions(
        quality=quality, drop_alpha=alpha == "drop", palette="rgb" if stream == "always" else "adaptive"
    )
    if dry_run:
        _print_dry_run(
            sr, jobs, chosen | {"alpha": alpha, "stream": stream, "save": dataclasses.asdict(save)}
        )
        return
    reporter = make_progress(progress, quiet=quiet)

    stages = FileStages(sr, stream=stream, alpha=alpha, format=format, options=save)
    with _terminable(), sr:
        outcome = run_jobs(
            jobs, stages, reporter, existing=existing or "refuse", written=None if quiet else click.echo
        )
    if outcome.failed and len(jobs) > 1 and progress != "json":
        click.echo(f"{len(outcome.failed)} of {len(jobs)} failed:", err=True)
        for job, _ in outcome.failed:
            click.echo(f"  {job.source}", err=True)
    if outcome.exit_code:
        click.get_current_context().exit(outcome.exit_code)


def _print_dry_run(sr: Any, jobs: Any, options: dict[str, Any]) -> None:
    document = {
        "engine_dir": str(sr.engine_dir),
        "scale": sr.scale,
        "options": options,
        "jobs": [{"source": str(j.source), "target": str(j.target)} for j in jobs],
    }
    click.echo(json.dumps(document, indent=2))


class _terminable:
    """Treat SIGTERM as Ctrl-C while the body runs, so that it leaves no unfinished file either."""

    def __enter__(self) -> None:
        self._old = signal.signal(signal.SIGTERM, signal.default_int_handler)

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGTERM, self._old)


# ---------------------------------------------------------------------------------------------------------
# yonos info, yonos doctor


@cli.command()
@click.argument("engine_dir", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--verify/--no-verify", default=True, help="Hash every file.")
def info(engine_dir: Path | None, as_json: bool, verify: bool) -> None:
    """Describe an engine directory and check its files.

    ENGINE_DIR may be the name of a shipped model, such as lite-x2. The default is the shipped x4 model.
    """
    from yonos_trt.manifest import load_manifest
    from yonos_trt.sr import SR

    sr = SR(engine_dir)
    if verify:
        load_manifest(sr.engine_dir, verify=True)
    facts = sr.info()
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    tiles = facts["tiles"]
    click.echo(f"model       {facts['model']}, x{facts['scale']}, in {facts['engine_dir']}")
    click.echo(f"weights     {facts['weights_sha256']}")
    click.echo(
        f"latent      {facts['latent']['channels']} channels, 1/{facts['latent']['factor']} of the output"
    )
    click.echo(
        f"tiles       {tiles['smallest_px']} to {tiles['largest_px']} px, default {tiles['default_px']}, "
        f"multiple of {tiles['multiple_px']}, overlap {tiles['overlap_px']}, input {tiles['encoder_input']}"
    )
    for stage, artifacts in facts["artifacts"].items():
        for a in artifacts:
            size = a["bytes"] / 2**20
            click.echo(f"{stage:<11} {a['runtime']} {a['precision']}  {a['file']}  {size:.1f} MiB")
    for precision, psnr in facts["end_to_end_psnr_db"].items():
        click.echo(
            f"parity      {precision}: {'exact' if psnr is None else f'{psnr:.1f} dB'} against the reference"
        )
    for x in facts["licences"]:
        click.echo(f"licence     {x['part']}: {x['licence']}{'  ' + x['source'] if x['source'] else ''}")
    click.echo(f"files       {'complete, all hashes right' if verify else 'sizes right, hashes not checked'}")


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Say what this machine can run.

    Works, and ends, on machines without a driver or GPU.
    """
    from yonos_trt.doctor import examine, lines

    facts = examine()
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        for line in lines(facts):
            click.echo(line)
    if not facts["onnxruntime"]["version"]:
        click.get_current_context().exit(3)


def main() -> None:
    """Run the command line; entry point of the console script."""
    cli()


if __name__ == "__main__":
    sys.exit(cli())
