"""What a message tells the reader to do exists: every option, command, extra and parameter that one names."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import commands, make_engine_dir, picture
from PIL import Image

from yonos_trt import images
from yonos_trt.cli.main import cli
from yonos_trt.images import SaveOptions, read_image
from yonos_trt.sr import SR
from yonos_trt.video.options import VideoOptions

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("yonos_trt", "export/yonos_export", "train/yonos_train")
FOREIGN = {  # options of other programs
    "--no-deps", "--force-reinstall",  # pip
    "--query-gpu",  # nvidia-smi
    "--cpus",  # docker
    "--model-repository",  # tritonserver
    "--at", "--ratio",  # CSS of the page
    "--trt", "--strongly-typed", "--load-inputs", "--load-outputs",  # polygraphy run
    "--compare", "--psnr-threshold",
}  # fmt: skip


def texts(*, raised: bool) -> Iterator[tuple[str, str]]:
    """Yield (file, text) of every string of the sources but docstrings; ``raised``: of messages alone."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            docstrings = {
                id(node.body[0].value)
                for node in ast.walk(tree)
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
                and node.body
                and isinstance(node.body[0], ast.Expr)
            }
            tops = [n for n in ast.walk(tree) if isinstance(n, ast.Raise)] if raised else [tree]
            for top in tops:
                for node in ast.walk(top):
                    if id(node) not in docstrings and isinstance(getattr(node, "value", 0), str):
                        yield path.relative_to(ROOT).as_posix(), node.value


def test_every_option_that_a_message_names_is_one_of_a_command() -> None:
    known = {o for c in commands().values() for p in c.params for o in (*p.opts, *p.secondary_opts)}
    known |= {"--help", "--version"}
    named = [
        (f, o) for f, t in texts(raised=False) for o in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9]", t)
    ]
    assert len(named) > 100
    # an f-string may put the end: --no-copy-{audio,subtitles}
    missing = {
        (file, option)
        for file, option in named
        if option not in known | FOREIGN and not any(k.startswith(f"{option}-") for k in known)
    }
    assert missing == set()


def test_every_command_that_a_message_names_exists() -> None:
    pattern = re.compile(r"\b(yonos(?:-export|-train)?)(?: ([a-z]+))?\b")
    named = [(f, *m) for f, t in texts(raised=True) for m in pattern.findall(t)]
    assert len(named) > 5
    for file, program, sub in named:
        assert program in commands(), (file, program)
        if program == "yonos" and sub:
            assert f"yonos {sub}" in commands(), (file, sub)


def test_every_extra_that_is_named_is_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(project["optional-dependencies"])
    named = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            source = path.read_text(encoding="utf-8")
            for group in re.findall(r"(?:yonos-trt|\.)\[([a-z,]+)\]'", source):
                named |= {(path.name, extra) for extra in group.split(",")}
            named |= {(path.name, extra) for extra in re.findall(r"\bextra=['\"]([a-z]+)['\"]", source)}
    assert len(named) > 5
    assert {(file, extra) for file, extra in named if extra not in extras} == set()


def test_every_parameter_that_a_message_names_can_be_given() -> None:
    """``name=value`` in the messages of `yonos_trt` is a parameter of something public."""
    callables = [SR, SR.upscale, SR.upscale_file, SR.stream, SaveOptions, VideoOptions]
    callables += [getattr(images, n) for n in images.__all__ if inspect.isfunction(getattr(images, n))]
    known = {name for c in callables for name in inspect.signature(c).parameters}
    known |= {name for c in callables for name in getattr(c, "__dataclass_fields__", ())}
    pattern = re.compile(r"\b([a-z][a-z0-9_]+)=(?:['\"{\d]|True|False|None)")
    ours = ((f, t) for f, t in texts(raised=True) if f.startswith("yonos_trt/"))
    named = {(file, name) for file, text in ours for name in pattern.findall(text)}
    assert len(named) > 3
    missing = {(file, name) for file, name in named if name not in known}
    assert missing - {("yonos_trt/trt/device.py", "check")} == set()  # of `upscale_on_device`, public too


# ---------------------------------------------------------------------------------------------------------
# Tried: the command line refuses, names an option, and with it goes on

DEEP = np.uint16


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_engine_dir(tmp_path_factory.mktemp("remedies") / "engine")


def deep(path: Path) -> None:
    Image.fromarray(picture(8, 8, dtype=DEEP)[..., 0]).save(path)


def clear(path: Path) -> None:
    Image.fromarray(picture(8, 8, channels=4)).save(path)


@pytest.mark.parametrize(
    ("make", "format", "remedy", "options"),
    [
        (deep, "jpg", "--drop-depth", ["--drop-depth"]),
        (deep, "webp", "--drop-depth", ["--drop-depth"]),
        (clear, "jpg", "--alpha drop", ["--alpha", "drop"]),
    ],
)
def test_what_is_refused_goes_on_with_the_option_that_is_named(
    engine_dir: Path, tmp_path: Path, make: object, format: str, remedy: str, options: list[str]
) -> None:
    source = tmp_path / "a.png"
    assert callable(make)
    make(source)
    arguments = ["upscale", "-m", str(engine_dir), "--threads", "1", "-i", str(source), "-f", format]
    refused = CliRunner().invoke(cli, arguments)
    assert (refused.exit_code, remedy in refused.stderr) == (1, True), refused.output
    done = CliRunner().invoke(cli, [*arguments, *options])
    assert done.exit_code == 0, done.output
    assert read_image(tmp_path / f"a_x4.{format}").rgb.dtype == np.uint8
