"""Options shared by the commands mean the same everywhere."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from helpers import commands

from yonos_trt.cli import options
from yonos_trt.cli.bench import bench
from yonos_trt.cli.main import cli
from yonos_trt.cli.upscale import upscale
from yonos_trt.cli.video import video


def by_name(command: click.Command) -> dict[str, click.Option]:
    return {str(p.name): p for p in command.params if isinstance(p, click.Option)}


def test_pictures_and_videos_take_the_same_model_options() -> None:
    pictures, videos = by_name(upscale), by_name(video)
    own = {"inputs", "output", "existing", "format", "quality", "suffix", "recursive", "stream", "alpha"}
    own |= {"drop_depth", "max_pixels", "watching", "shared_by"}
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


@pytest.mark.parametrize(
    ("device", "asked", "runtime"),
    [(-1, "auto", "onnx"), (-1, "onnx", "onnx"), (-1, "openvino", "openvino"), (0, "auto", "auto"),
     (2, "tensorrt", "tensorrt")],
)  # fmt: skip
def test_gpu_minus_one_is_the_cpu(device: int, asked: str, runtime: str) -> None:
    given = {"device": device, "runtime": asked, "seed": 3}
    assert options.on_cpu(given) == {"device": max(device, 0), "runtime": runtime, "seed": 3}
    assert given["device"] == device


@pytest.mark.parametrize("command", [upscale, video])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-g", "-1", "--runtime", "tensorrt"], "--runtime tensorrt needs a GPU"),
        (["-g", "-1", "--runtime", "tensorrt-rtx"], "--runtime tensorrt-rtx needs a GPU"),
        (["-g", "-2"], "-2 is not in the range x>=-1"),
    ],
)
def test_a_gpu_that_contradicts_is_a_usage_error(
    command: click.Command, arguments: list[str], words: str
) -> None:
    result = CliRunner().invoke(cli, [str(command.name), "-i", "a.png", *arguments])
    assert result.exit_code == 2
    assert words in result.stderr


# ---------------------------------------------------------------------------------------------------------
# Absurd values

ABSURD = ["nan", "inf", "-inf", "-99", "1e308", "9" * 30, "9" * 5000, "1x", "\u0663\u0663x"]
# One argument that names an input; it is not there, and nobody gets as far as looking for it.
BASE = {"upscale": ["-i", "none.png"], "video": ["-i", "none.mkv", "-o", "none_x4.mkv"], "bench": []}


def numeric(command: click.Command) -> list[click.Option]:
    texts = (click.Choice, click.types.StringParamType, options.LocalPath, click.Path)
    return [
        p
        for p in command.params
        if isinstance(p, click.Option) and not p.is_flag and not p.count and not isinstance(p.type, texts)
    ]


@pytest.mark.parametrize(
    ("name", "option"),
    [(str(c.name), p.opts[-1]) for c in (upscale, video, bench) for p in numeric(c)],
)
def test_absurd_numbers_are_usage_errors(
    name: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if option in ("--runtime", "-i", "--input"):
        pytest.skip("takes words")
    for value in ABSURD:
        if option == "--crf" and value == "-99":  # encoders say themselves how far down theirs goes
            continue
        result = CliRunner().invoke(cli, [name, *BASE[name], f"{option}={value}"])
        no_device = option == "--gpu" and value == "9" * 30  # a number, and no device has it
        expected = 4 if no_device and name != "bench" else 2
        assert result.exit_code == expected, (option, value[:40], result.output)
        assert isinstance(result.exception, SystemExit)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", ["", "a\0b", "\0"])
@pytest.mark.parametrize("option", ["-m", "-i"])
def test_what_cannot_be_a_path_is_a_usage_error(option: str, value: str) -> None:
    result = CliRunner().invoke(cli, ["upscale", "-i", "none.png", option, value])
    assert (result.exit_code, "cannot be the name" in result.output) == (2, True)
    assert CliRunner().invoke(cli, ["info", value]).exit_code == 2


# ---------------------------------------------------------------------------------------------------------
# Addresses and dashes, which as paths would be folders named "s3:" and "-"

ADDRESSES = ["s3://bucket/x.png", "https://x.org/a.mkv", "file:///x", "-"]


def test_every_option_for_a_file_or_folder_takes_no_address() -> None:
    paths = {
        (name, parameter.opts[-1]): parameter.type
        for name, command in commands().items()
        for parameter in command.params
        if isinstance(parameter.type, click.Path)
    }
    assert {("yonos bench", "--json"), ("yonos-export", "--engine-dir"), ("yonos-train", "--run")} < set(
        paths
    )
    loose = {where for where, kind in paths.items() if not isinstance(kind, options.LocalPath)}
    assert loose == {("yonos-train", o) for o in ("--config", "--licence", "--card")}  # files that are there


LINES = [
    "yonos upscale -i ?", "yonos upscale a.png -m ?", "yonos bench --json ?",
    "yonos batch photos big --report ?",
    "yonos-export lite-x4 -o ?", "yonos-export lite-x4 -o e --onnx-dir ?", "yonos-export ?",
    "yonos-export lite-x4 -o e --timing-cache ?", "yonos-export lite-x4 --triton ?",
    "yonos-train --preset smoke --data . --run ?", "yonos-train --preset smoke --data ? --run r",
    "yonos-train eval --data . --scale 4 -o ?", "yonos-train eval --data . --scale 4 --save-images ?",
    "yonos-train weights -o ?",
]  # fmt: skip
STREAMS = ["yonos upscale -i a.png -o ?", "yonos video -i a.mkv -o ?", "yonos video -i a.mkv -o ? --dry-run"]
BUCKETS = ["yonos batch photos ?", "yonos batch ? big"]


@pytest.mark.parametrize(
    ("line", "value"),
    [(line, value) for line in LINES for value in ADDRESSES]
    + [(line, value) for line in STREAMS for value in ADDRESSES if value != "-"]
    + [(line, "-") for line in BUCKETS],
)
def test_an_address_or_a_dash_makes_no_folder(
    line: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program, *words = line.replace("?", value).split()
    result = CliRunner().invoke(commands()[program], words)
    assert result.exit_code == 2, result.output
    text = " ".join(result.output.split())
    assert ("no path of this machine" in text) == (value != "-"), text
    assert ("stdin or stdout" in text) == (value == "-"), text
    assert not list(tmp_path.iterdir())


def test_upscale_video_makes_no_folder_of_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from yonos_trt.errors import ConfigError
    from yonos_trt.video import upscale_video

    monkeypatch.chdir(tmp_path)
    for value in ADDRESSES:
        with pytest.raises(ConfigError, match=r"no path of this machine|stdin or stdout"):
            upscale_video("a.mkv", value, lambda rgb: rgb, scale=1)
    assert not list(tmp_path.iterdir())
