"""Options that several commands of `yonos` share: one definition, one help text, one order.

`compose` turns a row of options into one decorator; the rows below are what `upscale` and `video` have in
common, the single options are also used by `bench`. A command lists them where its ``--help`` shows them.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from yonos_trt.choices import (
    ALPHA_MODES,
    COLOR_FIXES,
    LARGEST_LANES,
    MAX_PIXELS,
    PRECISIONS,
    RUNTIMES,
    no_path,
)

if TYPE_CHECKING:
    from yonos_trt.images import SaveOptions
    from yonos_trt.sizing import Sizing

_log = logging.getLogger(__name__)

ARGUMENTS = "yonos_trt.cli.arguments"
"""Where a command leaves what was typed in ``click.Context.meta``."""

LARGEST_TILE_PX = 1 << 16
LARGEST_THREADS = 1024  # more are a slip of the finger, not a machine


def compose(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a decorator that adds ``options`` in the order in which they are named."""

    def add(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return add


class LocalPath(click.Path):
    """A path of this machine: not empty (an unset variable of a shell), no address, no NUL, not ``-``.

    Every option that names a file or folder has this type, in all three programs.

    Parameters
    ----------
    dash
        ``-`` is taken: the command knows what it means.
    text
        The value is a string, not a `Path`.
    checks
        Of `click.Path`: ``exists``, ``file_okay``, ``dir_okay``.
    """

    def __init__(self, *, dash: bool = False, text: bool = False, **checks: bool) -> None:
        super().__init__(path_type=str if text else Path, readable=False, **checks)
        self._dash = dash

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Make it a path."""
        name = os.fsdecode(value)
        if not (self._dash and name == "-") and (problem := no_path(name)):
            self.fail(problem, param, ctx)
        return super().convert(value, param, ctx)


class Finite(click.FloatRange):
    """A range of numbers, to which neither "nan" nor "inf" belongs."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Make it a number."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is no number to count with", param, ctx)
        return number


class Factor(Finite):
    """An enlargement: a whole number stays one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Make it a number."""
        number = super().convert(value, param, ctx)
        return int(number) if number == int(number) else number


class Size(click.ParamType[tuple[int, int]]):
    """WIDTHxHEIGHT, as people write it; (height, width) as the project has it."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Make it (height, width)."""
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"([1-9]\d{0,6})[xX]([1-9]\d{0,6})", str(value).strip())
        if not found:
            self.fail(f"{value!r} is no size; expected WIDTHxHEIGHT in px, for example 3840x2160", param, ctx)
        return int(found[2]), int(found[1])


class Devices(click.ParamType["int | tuple[int, ...]"]):
    """A CUDA device number, -1 for the CPU, "auto" for the first GPU if there is one; or a list of these."""

    name = "N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | tuple[int, ...]:
        """Make it a number, or a tuple of two or more."""
        if isinstance(value, (int, tuple)):
            return value
        if value.strip().lower() == "auto":
            return 0
        try:
            numbers = tuple(int(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is no device; expected a number, auto, or a list such as 0,1", param, ctx)
        for number in numbers:
            if number < -1:
                self.fail(f"{number} is not in the range x>=-1.", param, ctx)
        if len(numbers) > LARGEST_LANES:
            self.fail(f"{len(numbers)} devices, expected at most {LARGEST_LANES}", param, ctx)
        return numbers if len(numbers) > 1 else numbers[0]


class Lanes(click.IntRange):
    """A number of lanes; or LOAD:PROC:SAVE of the ncnn tools, of which PROC is that number."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Make it a number."""
        parts: list[Any] = value.split(":") if isinstance(value, str) else [value]
        if len(parts) not in (1, 3):
            self.fail(f"{value!r} is no number of lanes; expected N, or LOAD:PROC:SAVE such as 1:2:2", param)
        first = [part.split(",")[0] if len(parts) == 3 else part for part in parts]  # PROC: one for each GPU
        numbers = [int(super(Lanes, self).convert(part, param, ctx)) for part in first]
        return numbers[len(numbers) // 2]


class Format(click.Choice[str]):
    """A format of pictures; jpeg and tif are other names of jpg and tiff."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Make it a name of ours."""
        value = value.lower()
        return super().convert({"jpeg": "jpg", "tif": "tiff"}.get(value, value), param, ctx)


def _no_averaging(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        raise click.UsageError(
            "-x, averaging the results of eight turned copies, is not there: it would take eight times as "
            "long and blur the detail that a diffusion model adds; leave it out. Calmer or sharper results: "
            "another --seed, --restore 0 to 1 where the model has that dial, or another model (yonos models)"
        )


model = click.option(
    "-m",
    "--model",
    "engine_dir",
    type=LocalPath(),
    metavar="ENGINE_DIR",
    help="Engine directory, or a shipped model's name, such as lite-x2; default: the shipped lite model.",
)
#: the same and what the ncnn tools call it; `model_of` understands both
named_model = compose(
    model,
    click.option(
        "-n",
        "--model-name",
        metavar="NAME",
        help="Shipped model by name, see `yonos models`; with -m the engine directory NAME in that folder.",
    ),
    click.option("-x", is_flag=True, hidden=True, expose_value=False, callback=_no_averaging),
)
scale = click.option(
    "-s",
    "--scale",
    "--outscale",
    "scale",
    type=Factor(1, 64),
    metavar="N",
    help="Enlargement, 2.5 too; picks the next larger shipped model.  [default: 4]",
)
#: what `sizing_of` understands
sizing = compose(
    click.option(
        "--long-edge",
        type=click.IntRange(1, 1 << 20),
        metavar="PX",
        help="Make the longer side this long, in place of -s.",
    ),
    click.option("--size", type=Size(), metavar="WxH", help="Make it this large, in place of -s; see --fit."),
    click.option(
        "--fit",
        type=click.Choice(["inside", "outside", "exact"]),
        default="inside",
        show_default=True,
        help="Of --size: nowhere larger, nowhere smaller (proportions kept), or both sides as they are.",
    ),
)

batch = click.option("--batch", type=click.IntRange(1, 1024), metavar="N", help="Tiles per batch.")
tiling = compose(
    click.option(
        "-t",
        "--tile",
        "tile_px",
        type=click.IntRange(0, LARGEST_TILE_PX),
        metavar="PX",
        help="Tile side in output pixels (input pixels times the model's factor), taken to the next legal "
        "one; 0: the model's own.",
    ),
    click.option("--overlap", "overlap_px", type=int, metavar="PX", help="Overlap of neighbouring tiles."),
    batch,
)

threads = click.option(
    "--threads",
    type=click.IntRange(1, LARGEST_THREADS),
    metavar="N",
    help="Host threads; default: all usable CPUs.",
)
precision = click.option("--precision", type=click.Choice(PRECISIONS), help="Which artifacts to use.")
#: what runs the networks, and with how much; `on_cpu` understands its ``-g -1``
machine = compose(
    click.option(
        "-g",
        "--gpu",
        "device",
        type=Devices(),
        metavar="N",
        default=0,
        show_default=True,
        help="CUDA device number, or auto; -1 runs on the CPU. Pictures: 0,1 starts a worker for each.",
    ),
    click.option(
        "-j",
        "--lanes",
        type=Lanes(1, LARGEST_LANES),
        metavar="N",
        help="Tile batches worked on at the same time; of LOAD:PROC:SAVE the middle one.",
    ),
    threads,
    click.option(
        "--runtime",
        type=click.Choice(RUNTIMES),
        default="auto",
        show_default=True,
        help="What runs the networks; auto: the fastest that is there, onnx: float32 on every CPU.",
    ),
    precision,
    click.option(
        "--providers",
        callback=lambda _context, _option, value: value and tuple(p.strip() for p in value.split(",")),
        metavar="NAME[,NAME]",
        help="ONNX Runtime's execution providers, such as CUDAExecutionProvider; with the CPU's named last, "
        "one that does not load is a warning instead of an error.",
    ),
    click.option(
        "--memory-limit",
        "memory_limit_mb",
        type=click.IntRange(1, 1 << 30),
        metavar="MIB",
        help="Bound on the host's working memory; tiles shrink to fit.",
    ),
    click.option(
        "--device-memory-limit",
        "device_memory_limit_mb",
        type=click.IntRange(1, 1 << 30),
        metavar="MIB",
        help="Bound on the GPU's memory; tiles shrink to fit.",
    ),
)

alpha = click.option(
    "--alpha",
    type=click.Choice(ALPHA_MODES),
    default="bicubic",
    show_default=True,
    help="How transparency grows.",
)


def color_fix(text: str | None = "Keep the colours of the input.") -> Callable[[Any], Any]:
    """Return ``--color-fix`` with this help."""
    return click.option(
        "--color-fix",
        type=click.Choice(COLOR_FIXES),
        help=f"{text or ''} Default: the model's own, mostly wavelet.".lstrip(),
    )


restore = click.option(
    "--restore",
    type=click.FloatRange(0.0, 1.0),
    help="Dial of the model: 0 keeps every grain, 1 cleans and sharpens; default: the model's own.",
)


def seed(text: str) -> Callable[[Any], Any]:
    """Return ``--seed`` with this help, which says what the seed is for."""
    return click.option("--seed", type=int, default=0, show_default=True, help=text)


def saving(default: str) -> Callable[[Any], Any]:
    """Return how pictures are named and written, with what ``-f`` says of its default; see `save_of`."""
    return compose(
        click.option(
            "-f",
            "--format",
            type=Format(["png", "jpg", "webp", "tiff", "avif"]),
            help=f"Output format; default: {default}.",
        ),
        click.option(
            "--quality",
            type=click.IntRange(1, 100),
            default=95,
            show_default=True,
            help="For jpg, webp and avif.",
        ),
        click.option(
            "--drop-depth", is_flag=True, help="Round to the format's depth: 16 bits into jpg or webp."
        ),
        click.option(
            "--suffix", default="_x{scale}", show_default=True, help="Added to derived output names."
        ),
    )


#: how the result of a picture is made
looks = compose(
    alpha,
    color_fix(),
    restore,
    click.option(
        "--stream",
        type=click.Choice(["auto", "always", "never"]),
        default="auto",
        show_default=True,
        help="Write rows as they are finished (png, tiff).",
    ),
    seed("Names the noise field."),
    click.option(
        "--max-pixels",
        type=click.IntRange(1, 1 << 40),
        default=MAX_PIXELS,
        show_default=True,
        metavar="N",
        help="Refuse files that declare more pixels, before they are decoded.",
    ),
)

cluster = compose(
    click.option("--workers", type=click.IntRange(1, 100_000), metavar="N",
                 help="Workers; default: one for each GPU, else one for each node."),
    click.option("--gpus-per-worker", type=Finite(0, 64), metavar="N",
                 help="GPUs of each worker, 0.5 too; default: 1 where there are GPUs."),
    click.option("--address", metavar="ADDRESS",
                 help="Ray cluster: auto, HOST:PORT or ray://HOST:PORT; default: this machine."),
)  # fmt: skip

reporting = compose(
    click.option(
        "--progress",
        type=click.Choice(["auto", "bar", "json", "none"]),
        default="auto",
        show_default=True,
        help="What to show on stderr.",
    ),
    click.option("--dry-run", is_flag=True, help="Print what would be done as JSON and stop."),
    click.option("-v", "--verbose", count=True, help="Log more; twice for everything."),
    click.option("-q", "--quiet", is_flag=True, help="Log and print errors only."),
)


def begin(progress: str, verbose: int, *, quiet: bool) -> None:
    """Set up what the options of `reporting` ask for."""
    from yonos_trt.cli.progress import META_KEY, set_up_logging

    click.get_current_context().meta[META_KEY] = progress
    set_up_logging(verbose, quiet=quiet, mode=progress)


def model_options(given: dict[str, Any]) -> tuple[Path | None, dict[str, Any], Sizing | None]:
    """Return the model, the other options of `SR`, and the size that was asked for in place of a factor.

    `given` has what `named_model`, `scale`, `sizing`, `tiling` and `machine` read; the rest passes unchanged.

    Raises
    ------
    click.UsageError
        No such model, several sizes, or ``-g`` and ``--runtime`` contradict each other.
    """
    given = dict(given)
    engine_dir = model_of(given.pop("engine_dir"), given.pop("model_name"))
    given = on_cpu(given)
    sizing = sizing_of(given["scale"], given.pop("long_edge"), given.pop("size"), given.pop("fit"))
    return engine_dir, given | {"tile_px": legal_tile(given["tile_px"], engine_dir, given)}, sizing


def save_of(*, quality: int, drop_depth: bool, alpha: str, stream: str) -> SaveOptions:
    """Return what `saving` and `looks` say of the file."""
    from yonos_trt.images import SaveOptions

    return SaveOptions(
        quality=quality,
        drop_alpha=alpha == "drop",
        drop_depth=drop_depth,
        palette="rgb" if stream == "always" else "adaptive",
    )


def sizing_of(
    scale: float | None, long_edge: int | None, size: tuple[int, int] | None, fit: str
) -> Sizing | None:
    """Return the size that was asked for in place of a factor.

    Raises
    ------
    click.UsageError
        More than one of the three was named.
    """
    from yonos_trt.sizing import Sizing

    named = [n for n, v in (("-s", scale), ("--long-edge", long_edge), ("--size", size)) if v is not None]
    if len(named) > 1:
        raise click.UsageError(f"{' and '.join(named)} name different sizes; leave all but one of them out")
    if long_edge is None and size is None:
        return None
    return Sizing(long_edge=long_edge, size=size, fit=fit)  # type: ignore[arg-type]  # a click.Choice


def model_of(engine_dir: Path | None, name: str | None) -> Path | None:
    """Return what ``-m`` and ``-n`` name together.

    Raises
    ------
    click.BadParameter
        There is no such model.
    """
    if name is None:
        return engine_dir
    from yonos_trt.backends.choose import shipped_models

    if engine_dir is not None:
        if not os.path.isdir(engine_dir / name):
            raise click.BadParameter(f"{engine_dir} has no folder {name!r}", param_hint="'-n'")
        return engine_dir / name
    shipped = shipped_models()
    if name not in shipped:
        raise click.BadParameter(
            f"{name!r} is no shipped model; expected one of {', '.join(shipped)} (yonos models), or name an "
            "engine directory with -m",
            param_hint="'-n'",
        )
    return Path(name)


def legal_tile(tile_px: int | None, engine_dir: Path | None, options: dict[str, Any]) -> int | None:
    """Return the legal tile side next to the one that was asked for, and say so; None lets the model choose.

    `engine_dir` and `options` are those of the `SR` to come.
    """
    from yonos_trt.sr import SR

    if not tile_px:
        return None
    tiles = SR(engine_dir, **options | {"tile_px": None}).manifest.tiles
    multiple = tiles.multiple_px
    legal = (tile_px + multiple // 2) // multiple * multiple
    legal = min(max(legal, -(-tiles.smallest_px // multiple) * multiple), tiles.largest_px)
    if legal != tile_px:
        _log.warning(
            "-t %d: tiles of this model are multiples of %d from %d to %d px of the output; %d px are taken",
            tile_px, multiple, tiles.smallest_px, tiles.largest_px, legal,
        )  # fmt: skip
    return legal


def on_cpu(options: dict[str, Any]) -> dict[str, Any]:
    """Translate ``-g -1`` into a runtime that needs no GPU; other options pass unchanged.

    Raises
    ------
    click.UsageError
        The runtime that was asked for needs a GPU, or there are several devices.
    """
    if isinstance(options["device"], tuple):
        raise click.UsageError(
            "a list of devices (-g 0,1) shares out the pictures of yonos upscale; here it is one device"
        )
    if options["device"] >= 0:
        return options
    runtime = options["runtime"]
    if runtime.startswith("tensorrt"):
        raise click.UsageError(
            f"-g -1 runs on the CPU, but --runtime {runtime} needs a GPU; leave one of them out"
        )
    if runtime == "auto":
        from yonos_trt.backends.choose import cpu_runtime

        runtime = "onnx" if options.get("providers") else cpu_runtime(options.get("precision"))
    return options | {"device": 0, "runtime": runtime}
