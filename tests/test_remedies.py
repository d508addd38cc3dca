"""What a message tells the reader to do exists: every option, command, extra and parameter that one names."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import commands, picture
from PIL import Image

from yonos_trt import images
from yonos_trt.cli.main import LAZY_COMMANDS, cli
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


OPTION = re.compile(r"(?<![\w+-])(?:--[a-z][a-z0-9-]*[a-z0-9]|-[a-zA-Z](?![\w:]))")
PROGRAM = re.compile(r"\b(yonos(?:-export|-train)?)(?: ([a-z]+)\b)?(?![/\w.-])")
OTHERS = re.compile(
    r"\b(ffmpeg|pip|docker|nvidia-smi|tritonserver|polygraphy|trtexec|ulimit|realesrgan|ncnn)\b"
)


ELSEWHERE = {("yonos_trt/cli/models.py", "--restore")}  # says what other commands can do with a model


@cache
def imports() -> dict[str, set[str]]:
    """File -> the files that it imports, also inside functions."""
    names: dict[str, str] = {}
    trees: dict[str, ast.Module] = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            file = path.relative_to(ROOT).as_posix()
            parts = path.relative_to((ROOT / package).parent).with_suffix("").parts
            names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
            trees[file] = ast.parse(path.read_text(encoding="utf-8"))
    module_of = {file: name for name, file in names.items()}
    found: dict[str, set[str]] = {}
    for file, tree in trees.items():
        wanted = set()
        own = module_of[file].split(".") + (["__init__"] if file.endswith("__init__.py") else [])
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = (
                    ".".join([*own[: -node.level], *filter(None, [node.module])])
                    if node.level
                    else node.module
                )
                wanted |= {str(base), *(f"{base}.{alias.name}" for alias in node.names)}
        found[file] = {names[name] for name in wanted if name in names}
    return found


@cache
def sources() -> dict[str, frozenset[str]]:
    """File -> the commands whose code can get there."""
    roots = {f"yonos {name}": f"{module.replace('.', '/')}.py" for name, module in LAZY_COMMANDS.items()}
    roots |= dict.fromkeys(("yonos", "yonos info", "yonos doctor"), "yonos_trt/cli/main.py")
    roots |= {"yonos-export": "export/yonos_export/cli.py", "yonos-train": "train/yonos_train/cli.py"}
    roots |= {"yonos-train eval": "train/yonos_train/evaluate_command.py"}
    roots |= {"yonos-train weights": "train/yonos_train/weights_command.py"}
    assert set(roots) == set(commands())
    found: dict[str, set[str]] = {}
    for command, root in roots.items():
        stack, seen = [root], set()
        while stack:
            if (file := stack.pop()) not in seen:
                seen.add(file)
                stack += imports()[file]
                found.setdefault(file, set()).add(command)
    return {file: frozenset(names) for file, names in found.items()}


@cache
def options_of(command: str) -> frozenset[str]:
    known = {o for p in commands()[command].params for o in (*p.opts, *p.secondary_opts)}
    return frozenset(known | {"--help", "-h", "--version"})


def unknown(option: str, known: Iterable[str]) -> bool:
    """An f-string may put the end: --no-copy-{audio,subtitles}."""
    return option not in FOREIGN and not any(k == option or k.startswith(f"{option}-") for k in known)


def test_every_option_is_one_of_the_commands_that_its_text_can_come_from() -> None:
    """Whatever says it: an error, a warning, the log, a line on stderr, a help text."""
    checked, missing = 0, set()
    for file, text in texts(raised=False):
        if OTHERS.search(text) or " " not in text:
            continue
        known = {o for command in sources().get(file, commands()) for o in options_of(command)}
        for option in OPTION.findall(text):
            checked += 1
            if unknown(option, known) and (file, option) not in ELSEWHERE:
                missing.add((file, option, text[:60]))
    assert checked > 100
    assert missing == set()


def lines(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (command, the options behind it) of every command line in a text."""
    found = list(PROGRAM.finditer(text))
    for match, end in zip(found, [m.start() for m in found[1:]] + [len(text)] * bool(found), strict=True):
        name = f"{match[1]} {match[2]}" if match[2] and f"{match[1]} {match[2]}" in commands() else match[1]
        rest = re.split(r"[`|;,()]| - |\. |: ", text[match.end() : end])[0]
        if name in commands():
            yield name, OPTION.findall(rest)


def test_every_command_line_in_a_message_takes_its_options() -> None:
    found = [(file, *line) for file, text in texts(raised=False) for line in lines(text)]
    assert sum(len(options) for _, _, options in found) > 10
    missing = {
        (file, name, option)
        for file, name, options in found
        for option in options
        if unknown(option, options_of(name))
    }
    assert missing == set()


def test_these_checks_notice() -> None:
    assert sources()["yonos_trt/video/segments.py"] >= {"yonos video"}
    assert "yonos-train" not in sources()["yonos_trt/video/segments.py"]
    assert unknown("--resume", options_of("yonos upscale"))
    assert not unknown("--no-copy", options_of("yonos video"))
    text = "say `yonos video -i IN --recursive`, or yonos-export --fp16; --overwrite"
    assert list(lines(text)) == [("yonos video", ["-i", "--recursive"]), ("yonos-export", ["--fp16"])]
    assert unknown("--recursive", options_of("yonos video"))


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
    named = [(f, *m) for f, t in texts(raised=False) if " " in t for m in pattern.findall(t)]
    assert len(named) > 20
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


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("av")
    from video_clips import write_clip

    return write_clip(tmp_path_factory.mktemp("clips") / "in.mkv", frames=4)


def invoked(*words: object) -> Any:
    return CliRunner().invoke(cli, [str(word) for word in words])


def goes_on(words: list[object], code: int, remedy: str, *further: object) -> None:
    """The command is refused with ``code`` and names ``remedy``; with ``further`` it is done."""
    refused = invoked(*words)
    assert (refused.exit_code, remedy in refused.stderr) == (code, True), refused.output
    done = invoked(*words, *further)
    assert done.exit_code == 0, done.output


def test_remedies_for_pictures_that_are_there_or_too_large(engine_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    Image.fromarray(picture(8, 8)).save(tmp_path / "in" / "sub" / "a.png")
    base = ["upscale", "-m", engine_dir, "--threads", "1"]
    goes_on([*base, "-i", tmp_path / "in"], 2, "--recursive", "--recursive")
    (tmp_path / "in" / "sub" / "a_x4.png").unlink()
    one = [*base, "-i", tmp_path / "in" / "sub" / "a.png"]
    goes_on([*one, "--max-pixels", 63], 1, "--max-pixels", "--max-pixels", 64)
    goes_on(one, 1, "--overwrite", "--overwrite")
    goes_on(one, 1, "--skip-existing", "--skip-existing")
    named = invoked("upscale", "-n", "nothing", "-i", "x.png")
    assert "yonos models" in named.stderr
    assert invoked("models").exit_code == 0


def test_remedies_for_videos(engine_dir: Path, clip: Path, tmp_path: Path) -> None:
    from video_clips import damage, write_clip

    fast = ["video", "-m", engine_dir, "--threads", "1", "--preset", "ultrafast"]
    out = tmp_path / "out.mkv"
    out.write_bytes(b"old")
    goes_on([*fast, "-i", clip, "-o", out], 2, "--overwrite", "--overwrite")
    laced = write_clip(tmp_path / "laced.mkv", frames=2, interlaced=True)
    goes_on([*fast, "-i", laced, "-o", tmp_path / "b.mkv"], 1, "--force", "--force")
    good = write_clip(tmp_path / "good.mkv", frames=4, codec="ffv1", options={"g": "1"})
    damage(good, tmp_path / "bad.mkv", 2)
    goes_on([*fast, "-i", tmp_path / "bad.mkv", "-o", tmp_path / "c.mkv"], 1, "--on-error repeat",
            "--on-error", "repeat")  # fmt: skip
