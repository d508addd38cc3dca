"""Which models a benchmark takes when none is named: every one that ships, at every scale."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from helpers import make_engine_dir, picture
from PIL import Image

from benchmarks import models, quality, speed
from benchmarks.models import bundle_for, engine_or_shipped, engines_or_shipped
from yonos_trt.backends.choose import shipped_models
from yonos_trt.bench.peaks import Peaks


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Models of three scales, in the order of their names, as the package finds them."""
    found = {f"lite-x{s}": make_engine_dir(tmp_path / f"lite-x{s}", scale=s) for s in (2, 4, 8)}
    names = sorted([*found, "lite-x16"])  # as text, 16 comes before 2
    found["lite-x16"] = make_engine_dir(tmp_path / "lite-x16", scale=16)
    monkeypatch.setattr(models, "shipped_models", lambda: {name: found[name] for name in names})
    monkeypatch.setattr("benchmarks.machine._peaks", lambda: Peaks(10.0, ()))
    return found


def test_every_shipped_scale_is_taken_by_rising_scale_unless_something_is_named(
    shipped: dict[str, Path], tmp_path: Path
) -> None:
    assert [path.name for path in engines_or_shipped((), ())] == ["lite-x2", "lite-x4", "lite-x8", "lite-x16"]
    assert engines_or_shipped((), (8, 2)) == [shipped["lite-x8"], shipped["lite-x2"]]
    assert engines_or_shipped((tmp_path / "own",), ()) == [tmp_path / "own"]
    assert engine_or_shipped(None, 4) == shipped["lite-x4"]
    with pytest.raises(click.ClickException, match="no shipped model enlarges by 3"):
        engines_or_shipped((), (3,))


def test_nothing_shipped_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "shipped_models", dict)
    with pytest.raises(click.ClickException, match="no model ships"):
        engines_or_shipped((), ())


def test_what_ships_now_is_taken_whole() -> None:
    assert set(engines_or_shipped((), ())) == set(shipped_models().values())
    assert engines_or_shipped((Path("lite-x2"),), ()) == [shipped_models()["lite-x2"]]
    assert engine_or_shipped(Path("lite-x8"), 4) == shipped_models()["lite-x8"]


def test_a_checkpoint_goes_with_the_model_of_its_scale(tmp_path: Path) -> None:
    for name, text in (("two", '{"scale": 2}'), ("four", '{"scale": 4}'), ("silent", "{}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    two, four, silent = (tmp_path / name for name in ("two", "four", "silent"))
    assert bundle_for([two, four], 4) == four
    assert bundle_for([two, four], 8) is None
    assert bundle_for([two, silent], 8) == silent
    assert bundle_for([], 4) is None


def test_speed_measures_every_shipped_scale_on_its_own(shipped: dict[str, Path], tmp_path: Path) -> None:
    target = tmp_path / "speed.json"
    arguments = ["--peers", "bicubic,onnx,realesrgan-x4plus", "--size", "12x16", "--rounds", "2"]
    result = CliRunner().invoke(speed.main, [*arguments, "--threads", "1", "--json", str(target)])
    assert result.exit_code == 0, result.output
    parts = json.loads(target.read_text())["parts"]
    assert [part["model"]["scale"] for part in parts] == [2, 4, 8, 16]
    assert "enlarges by 4, this run by 8" in parts[2]["not_run"]["realesrgan-x4plus"]
    keys = [row["key"] for part in parts for row in part["rows"]]
    assert len(set(keys)) == len(keys)
    assert "speed/tiny-x8/12x16/bicubic over onnx" in keys


def test_quality_measures_bicubic_and_ours_at_every_shipped_scale(
    shipped: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(picture(96, 128)).save(folder / "a.png")
    arguments = [str(folder), "--peers", "bicubic,onnx", "--degradation", "bicubic", "--threads", "1"]
    arguments += ["--scale", "2", "--scale", "4", "--scale", "8", "--out", str(tmp_path / "quality")]
    result = CliRunner().invoke(quality.main, arguments)
    assert result.exit_code == 0, result.output
    parts = json.loads((tmp_path / "quality.json").read_text())["parts"]
    assert [part["model"]["name"] for part in parts] == ["tiny-x2", "tiny-x4", "tiny-x8"]
    bicubic: list[float] = []
    for part in parts:
        means: dict[str, Any] = {mean["method"]: mean for mean in part["means"]}
        assert set(means) == {"bicubic", "onnx"}
        bicubic.append(means["bicubic"]["psnr_y"])
        assert part["gflop_per_mpx"]["onnx"] > part["gflop_per_mpx"]["bicubic"]
    assert np.all(np.diff(bicubic) < 0)  # the larger the scale, the less is left
