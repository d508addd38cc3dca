"""Two runs of one config are compared stage by stage, as far as both went."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("safetensors")

from safetensors.numpy import save_file

from benchmarks.studies.reproduction import compare_runs, main


def make_run(folder: Path, stages: dict[str, list[float]], weights: dict[str, float]) -> Path:
    """A run folder with one loss every 50 steps a stage, and one tensor in each finished stage."""
    folder.mkdir()
    config = {"stages": [{"name": name} for name in ("first", "second", "third")]}
    (folder / "config.json").write_text(json.dumps(config))
    for name, losses in stages.items():
        (folder / name).mkdir()
        rows = [{"step": 50 * (i + 1), "loss": loss} for i, loss in enumerate(losses)]
        (folder / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if name in weights:
            save_file({"w": np.full(3, weights[name], np.float32)}, folder / name / "unet.safetensors")
            save_file({"w": np.zeros(1, np.float32)}, folder / name / "checkpoint-50.safetensors")
    return folder


def test_equal_runs_are_the_same_as_far_as_both_went(tmp_path: Path) -> None:
    one = make_run(
        tmp_path / "one", {"first": [0.5, 0.4], "second": [0.3, 0.2]}, {"first": 1.0, "second": 2.0}
    )
    other = make_run(tmp_path / "other", {"first": [0.5, 0.4], "second": [0.3]}, {"first": 1.0})
    first, second = compare_runs(one, other)
    assert (first.name, first.steps, first.equal_losses, first.weight_difference) == (
        "first",
        (50, 100),
        2,
        0.0,
    )
    assert (second.name, second.steps, second.weight_difference) == ("second", (50,), None)
    assert first.same
    assert second.same
    done = CliRunner().invoke(main, [str(one), str(other)])
    assert done.exit_code == 0, done.output
    assert "| second | 50 | 1 of 1 | 0 % | not finished |" in done.output


def test_what_differs_is_measured_and_fails(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", {"first": [0.5, 0.4]}, {"first": 1.0})
    other = make_run(tmp_path / "other", {"first": [0.5, 0.3]}, {"first": 1.25})
    (stage,) = compare_runs(one, other)
    assert not stage.same
    assert stage.equal_losses == 1
    assert stage.loss_difference == pytest.approx(0.25)
    assert stage.weight_difference == pytest.approx(0.25)
    done = CliRunner().invoke(main, [str(one), str(other)])
    assert done.exit_code == 1
    assert "| first | 100 | 1 of 2 | 25 % | 0.25 |" in done.output


def test_what_cannot_be_compared_is_named(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", {"first": [0.5]}, {"first": 1.0})
    with pytest.raises(ValueError, match="not a run folder of yonos-train"):
        compare_runs(tmp_path, one)
    with pytest.raises(ValueError, match="no stage with a logged step in both"):
        compare_runs(one, make_run(tmp_path / "empty", {}, {}))
    other = make_run(tmp_path / "other", {"first": [0.5]}, {})
    save_file({"v": np.zeros(3, np.float32)}, other / "first" / "unet.safetensors")
    done = CliRunner().invoke(main, [str(one), str(other)])
    assert done.exit_code == 1
    assert "hold different networks" in done.output
