"""Options that several commands of `yonos` share: one definition, one help text, one order.

`compose` turns a row of options into one decorator; the rows below are what `upscale` and `video` have in
common, the single options are also used by `bench`. A command lists them where its ``--help`` shows them.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from yonos_trt.choices import ALPHA_MODES, COLOR_FIXES, LARGEST_LANES, PRECISIONS, RUNTIMES

if TYPE_CHECKING:
    from yonos_trt.sizing import Sizing

__all__ = [
    "Factor",
    "Finite",
    "LocalPath",
    "Size",
    "alpha",
    "batch",
    "color_fix",
    "compose",
    "machine",
    "model",
    "on_cpu",
    "precision",
    "reporting",
    "restore",
    "scale",
    "seed",
    "sizing",
    "sizing_of",
    "threads",
    "tiling",
]

LARGEST_THREADS = 1024  # more are a slip of the finger, not a machine

F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[F], F]


def compose(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a decorator that adds ``options`` in the order in which they are named."""

    def add(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return add


class LocalPath(click.ParamType[Path]):
    """A path that can exist: not empty (an unset variable of a shell), no NUL."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Make it a path."""
        if not isinstance(value, (str, os.PathLike)) or not os.fspath(value) or "\0" in os.fspath(value):
            self.fail(f"{value!r} cannot be the name of a file or folder", param, ctx)
        return Path(value)


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


model = click.option(
    "-m",
    "--model",
    "engine_dir",
    type=LocalPath(),
    metavar="ENGINE_DIR",
    help="Engine directory, or a shipped model's name, such as lite-x2; default: the shipped lite model.",
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
    click.option("-t", "--tile", "tile_px", type=int, metavar="PX", help="Tile side in output pixels."),
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
        type=click.IntRange(min=-1),
        metavar="N",
        default=0,
        show_default=True,
        help="CUDA device number; -1 runs on the CPU.",
    ),
    click.option(
        "-j",
        "--lanes",
        type=click.IntRange(1, LARGEST_LANES),
        metavar="N",
        help="Tile batches worked on at the same time.",
    ),
    threads,
    click.option(
        "--runtime",
        type=click.Choice(RUNTIMES),
        default="auto",
        show_default=True,
        help="What runs the networks.",
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


def on_cpu(options: dict[str, Any]) -> dict[str, Any]:
    """Translate ``-g -1`` into a runtime that needs no GPU; other options pass unchanged.

    Raises
    ------
    click.UsageError
        The runtime that was asked for needs a GPU.
    """
    if options["device"] >= 0:
        return options
    runtime = options["runtime"]
    if runtime.startswith("tensorrt"):
        raise click.UsageError(
            f"-g -1 runs on the CPU, but --runtime {runtime} needs a GPU; leave one of them out"
        )
    return options | {"device": 0, "runtime": "onnx" if runtime == "auto" else runtime}
