"""Familiar doors: what people from other upscalers type does what they mean, or is answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from helpers import make_engine_dir, picture
from PIL import Image

from yonos_trt.cli.main import cli


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two pictures of 10 x 12 and 11 x 13 px, and one of 40 x 48."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture(10, 12)).save("in.jpg")
    Image.fromarray(picture(11, 13)).save("other.jpg")
    Image.fromarray(picture(40, 48)).save("large.jpg")
    return tmp_path


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def upscale(engine_dir: Path, *arguments: Any) -> Result:
    return run("upscale", "-m", engine_dir, "--threads", 1, *arguments)


def dry(*arguments: Any) -> dict[str, Any]:
    result = run("upscale", *arguments, "--dry-run")
    assert result.exit_code == 0, result.output
    done: dict[str, Any] = json.loads(result.stdout)
    return done


def names(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


BEFORE = {"in.jpg", "other.jpg", "large.jpg"}


# ---------------------------------------------------------------------------------------------------------
# Flags of the ncnn tools


def test_a_command_of_realesrgan_ncnn_vulkan_runs_as_it_is(here: Path) -> None:
    result = run(
        "upscale", "-i", "in.jpg", "-s", 4, "-t", 0, "-n", "lite-x4", "-g", "auto", "-j", "1:2:2",
        "-f", "jpeg", "--threads", 1,
    )  # fmt: skip
    assert (result.exit_code, result.stderr) == (0, "")
    with Image.open("in_x4.jpg") as image:
        assert (image.format, image.size) == ("JPEG", (48, 40))


@pytest.mark.parametrize(
    ("asked", "taken"), [(0, None), (64, 64), (200, 208), (199, 192), (1, 64), (33, 64), (9999, 1024)]
)
def test_any_tile_is_taken_to_a_legal_one_and_that_is_said_once(
    here: Path, asked: int, taken: int | None
) -> None:
    result = run("upscale", "-i", "in.jpg", "-i", "other.jpg", "-n", "lite-x4", "-t", asked, "--dry-run")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["options"]["tile_px"] == taken
    said = [] if asked in (0, taken) else [f"-t {asked}: tiles of this model are multiples of 16"]
    assert [line.split(": ", 1)[1][: len(said[0])] for line in result.stderr.splitlines()] == said


def test_a_rounded_tile_runs_and_negative_ones_are_refused(engine_dir: Path, here: Path) -> None:
    result = upscale(engine_dir, "-i", "in.jpg", "-t", 7, "--progress", "json")
    assert result.exit_code == 0, result.output
    events = [json.loads(line) for line in result.stderr.splitlines()]
    assert [e["event"] for e in events].count("log") == 1
    assert upscale(engine_dir, "-i", "in.jpg", "-t", -1).exit_code == 2


def test_video_takes_the_same_tiles_and_names(here: Path) -> None:
    result = run(
        *["video", "-i", "in.mkv", "-n", "lite-x2", "-t", "100", "-j", "1:2,2:2", "-g", "auto", "--dry-run"]
    )
    assert result.exit_code == 0, result.output
    model = json.loads(result.stdout)["model"]
    assert (model["tile_px"], model["lanes"], model["device"]) == (96, 2, 0)
    assert json.loads(result.stdout)["scale"] == 2
    refused = run(*["video", "-i", "in.mkv", "-g", "0,1"])
    assert (refused.exit_code, "one device" in refused.stderr) == (2, True)


def test_a_model_is_taken_by_name(engine_dir: Path, here: Path) -> None:
    assert dry("-i", "in.jpg", "-n", "lite-x2")["scale"] == 2
    assert dry("-i", "in.jpg", "-m", engine_dir.parent, "-n", engine_dir.name)["engine_dir"] == str(
        engine_dir
    )
    refused = run("upscale", "-i", "in.jpg", "-n", "realesrgan-x4plus")
    assert refused.exit_code == 2
    assert "lite-x2, lite-x4, lite-x8" in refused.stderr
    refused = run("upscale", "-i", "in.jpg", "-m", engine_dir.parent, "-n", "none")
    assert (refused.exit_code, "has no folder 'none'" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    ("option", "value", "field", "expected"),
    [("-j", "3", "lanes", 3), ("-j", "1:2:2", "lanes", 2), ("-j", "4:3,3:4", "lanes", 3),
     ("-g", "auto", "device", 0), ("--outscale", "2.5", "scale", 2.5)],
)  # fmt: skip
def test_values_of_other_tools(here: Path, option: str, value: str, field: str, expected: object) -> None:
    assert dry("-i", "in.jpg", option, value)["options"][field] == expected


@pytest.mark.parametrize(
    ("option", "value"),
    [("-j", "1:2"), ("-j", "1:0:2"), ("-j", "a:2:2"), ("-j", "::"), ("-g", "0,"), ("-g", "0,x"),
     ("-g", "0,-2"), ("-f", "bmp"), ("-t", "-5")],
)  # fmt: skip
def test_values_that_mean_nothing_are_usage_errors(here: Path, option: str, value: str) -> None:
    result = run("upscale", "-i", "in.jpg", option, value)
    assert (result.exit_code, names(here)) == (2, BEFORE), result.output


@pytest.mark.parametrize("written", ["jpeg", "JPEG", "jpg"])
def test_jpeg_is_jpg(here: Path, written: str) -> None:
    assert dry("-i", "in.jpg", "-f", written)["jobs"][0]["target"] == "in_x4.jpg"


@pytest.mark.parametrize("command", ["upscale", "video"])
def test_averaging_is_answered_with_what_to_do_instead(here: Path, command: str) -> None:
    result = run(command, "-i", "in.jpg", "-x")
    assert result.exit_code == 2
    assert "leave it out" in result.stderr
    assert "--restore" in result.stderr


# ---------------------------------------------------------------------------------------------------------
# IN OUT


@pytest.mark.parametrize("target", ["out.png", "new.jpg", "big/", "big", "sub/out.png"])
def test_in_out_is_one_input_and_one_output(engine_dir: Path, here: Path, target: str) -> None:
    result = upscale(engine_dir, "in.jpg", target)
    assert result.exit_code == 0, result.output
    made = f"{target.rstrip('/')}/in_x4.jpg" if target.startswith("big") else target
    assert names(here) == {*BEFORE, made}
    with Image.open(made) as image:
        assert image.size == (48, 40)


def test_folder_folder_goes_into_the_second(engine_dir: Path, here: Path) -> None:
    (here / "photos").mkdir()
    for name in ("in.jpg", "other.jpg"):
        (here / name).rename(here / "photos" / name)
    assert upscale(engine_dir, "photos", "big").exit_code == 0
    assert {n for n in names(here) if n.startswith("big")} == {"big/in_x4.jpg", "big/other_x4.jpg"}


@pytest.mark.parametrize(
    ("second", "why"),
    [("out.png", "of another kind"), ("large.jpg", "as large as its result"), ("folder", "a folder")],
)
def test_a_second_name_that_exists_and_may_be_either_is_refused(
    engine_dir: Path, here: Path, second: str, why: str
) -> None:
    (here / "folder").mkdir()
    Image.fromarray(picture(9, 9)).save("out.png")
    before = {p: p.read_bytes() for p in here.rglob("*") if p.is_file()}
    for more in ((), ("--overwrite",)):
        result = upscale(engine_dir, "in.jpg", second, *more)
        assert (result.exit_code, why in result.stderr, "-o" in result.stderr) == (2, True, True), (
            result.output
        )
    assert {p: p.read_bytes() for p in here.rglob("*") if p.is_file()} == before


def test_two_pictures_of_one_kind_are_two_inputs(engine_dir: Path, here: Path) -> None:
    assert upscale(engine_dir, "in.jpg", "other.jpg").exit_code == 0
    assert names(here) == {*BEFORE, "in_x4.jpg", "other_x4.jpg"}


# ---------------------------------------------------------------------------------------------------------
# yonos models


def test_models_are_listed_and_each_can_be_named(here: Path) -> None:
    result = run("models")
    assert result.exit_code == 0
    listed = [line.split()[0] for line in result.output.splitlines()[1:]]
    assert {"lite-x2", "lite-x4", "lite-x8"} <= set(listed)
    for name in listed:
        assert dry("-i", "in.jpg", "-n", name)["engine_dir"].endswith(name)
    facts = {x["name"]: x for x in json.loads(run("models", "--json").output)}
    assert (facts["lite-x4"]["scale"], facts["lite-x4"]["speed"]) == (4, "light")
    assert 10 << 20 < facts["lite-x4"]["bytes"] < 11 << 20
    assert "crisp" in facts["lite-x4"]["look"]


def test_engine_directories_of_a_folder_are_listed_and_timed(engine_dir: Path, here: Path) -> None:
    made = make_engine_dir(here / "engines" / "mine")
    facts = json.loads(run("models", "engines", "--json").output)
    assert facts[-1]["name"] == str(made.relative_to(here))
    assert run("models", "engines").output.splitlines()[-1].startswith("engines/mine")
    refused = run("models", here / "nothing")
    assert (refused.exit_code, "no engine directory" in refused.stderr) == (2, True)


def test_models_measures_seconds_per_megapixel(engine_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yonos_trt.backends.choose.shipped_models", lambda: {"tiny": engine_dir})
    (facts,) = json.loads(run("models", "--measure", "--json").output)
    assert facts["s_per_mpx"] > 0
    assert "s/Mpx" in run("models", "--measure").output
