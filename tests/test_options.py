"""Options shared by the commands mean the same everywhere."""

from __future__ import annotations

from typing import get_args

import click
import pytest

from yonos_trt import options
from yonos_trt.bench.cli import bench
from yonos_trt.cli import upscale
from yonos_trt.color import MODES
from yonos_trt.runtimes import RUNTIMES
from yonos_trt.sr import AlphaMode
from yonos_trt.video.cli import video


def by_name(command: click.Command) -> dict[str, click.Option]:
    return {str(p.name): p for p in command.params if isinstance(p, click.Option)}


def test_choices_are_those_of_the_api() -> None:
    """The lists are written out in `options` because --help must not load what owns them."""
    assert options.RUNTIMES == RUNTIMES
    assert options.COLOR_FIXES == MODES
    assert get_args(AlphaMode) == options.ALPHA_MODES


def test_pictures_and_videos_take_the_same_model_options() -> None:
    pictures, videos = by_name(upscale), by_name(video)
    own = {"inputs", "output", "existing", "format", "quality", "suffix", "recursive", "stream", "alpha"}
    for name in set(pictures) - own - {"seed"}:
        one, other = pictures[name], videos[name]
        assert (one.opts, one.default, one.help) == (other.opts, other.default, other.help), name
    for name in ("engine_dir", "precision", "batch", "threads"):
        assert by_name(bench)[name].help == pictures[name].help


def test_options_come_in_the_order_in_which_they_are_named() -> None:
    @click.command()
    @options.compose(click.option("--first"), click.option("--second"))
    @click.option("--third")
    def command() -> None: ...

    assert [p.name for p in command.params] == ["first", "second", "third"]


@pytest.mark.parametrize(("device", "runtime"), [(-1, "onnx"), (0, "auto"), (2, "auto")])
def test_a_negative_gpu_is_the_cpu(device: int, runtime: str) -> None:
    given = {"device": device, "runtime": "auto", "seed": 3}
    assert options.on_cpu(given) == {"device": max(device, 0), "runtime": runtime, "seed": 3}
    assert given["device"] == device
