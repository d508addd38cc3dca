"""The `yonos` command line, one to one with the API.

Results go to stdout, progress and errors to stderr. Exit codes: 0 ok, 1 some files failed, 2 usage, 3 engine
or missing package, 4 no device, 5 memory, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import logging
import time
import traceback
from pathlib import Path
from typing import Any

import click

import yonos_trt
from yonos_trt import errors
from yonos_trt.cli import options

# Commands that live in modules of their own and are imported when they are called.
LAZY_COMMANDS = {
    name: f"yonos_trt.cli.{name}" for name in ("batch", "bench", "models", "upscale", "video", "web")
}

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

    sr, problem = SR(engine_dir), ""
    if verify:
        load_manifest(sr.engine_dir, verify=True)
    try:
        if verify or warm_up:
            sr.open()
    except errors.YonosError as error:
        if warm_up:
            raise
        problem = str(error)
    with contextlib.closing(sr):
        began = time.perf_counter()
        if warm_up:
            sr.warm_up(warm_up)
        seconds = time.perf_counter() - began
        facts = sr.info() | {"problem": problem}
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
    if facts["backend"] or problem:
        what = f"{facts['backend']}, {facts['computes_in']}, chosen by --runtime auto"
        click.echo(f"runs on     {f'nothing that is here: {problem}' if problem else what}")
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
