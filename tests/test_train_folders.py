"""Bundles appear whole, equal files are stored once, and a run that was stopped writes what is missing."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

pytest.importorskip("torch")

from helpers import write_training_pictures
from yonos_train import run as run_module
from yonos_train.folders import share_equal_files
from yonos_train.loop import TrainingError
from yonos_train.presets import PRESETS
from yonos_train.run import Run

SMOKE = PRESETS["smoke"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_of_equal_bytes_and_name_are_stored_once(tmp_path: Path) -> None:
    contents = {"a/same": ("x" * 100, "x" * 100), "changed": ("old", "new"), "b/same": ("y", "y")}
    for name, pair in contents.items():
        for folder, text in zip(("one", "two"), pair, strict=True):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_text(text)
    (tmp_path / "two" / "own").write_text("only here")
    assert share_equal_files(tmp_path / "two", tmp_path / "one") == 101
    assert share_equal_files(tmp_path / "two", tmp_path / "one") == 0
    for name, pair in contents.items():
        one, two = tmp_path / "one" / name, tmp_path / "two" / name
        assert (one.read_text(), two.read_text()) == pair
        assert one.samefile(two) == (pair[0] == pair[1])
    assert share_equal_files(tmp_path / "two", tmp_path / "none") == 0


def test_without_hard_links_the_copies_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same").write_text("x")

    def refuse(source: Path, target: Path) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    assert share_equal_files(tmp_path / "two", tmp_path / "one") == 0
    assert (tmp_path / "two" / "same").read_text() == "x"
    assert names(tmp_path / "two") == ["same"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_run_stopped_before_its_bundle_writes_it_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    write_training_pictures(pictures, 2)
    loop = dataclasses.replace(SMOKE.loop, precision="fp32")
    wanted = ("autoencoder", "x2", "decoder-x2", "encoder-x2")
    config = dataclasses.replace(
        SMOKE, loop=loop, stages=tuple(stage for stage in SMOKE.stages if stage.name in wanted)
    )

    def run() -> None:
        Run(config, tmp_path / "run", data=str(pictures), weights={}).run()

    bundles = tmp_path / "run" / "bundles"
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise OSError("disk full")

        patch.setattr(run_module, "save_bundle", full)
        with pytest.raises(TrainingError, match=r"disk full\. What is done stays"):
            run()
    assert names(bundles) == []  # no half of one
    run()
    assert names(bundles) == ["smoke-x2", "smoke-x2-lr"]
    whole = {p: p.read_bytes() for p in bundles.rglob("*") if p.is_file()}
    times = {p: p.stat().st_mtime_ns for p in whole}
    run()
    assert times == {p: p.stat().st_mtime_ns for p in whole}  # nothing is written again

    # one is lost, the other does not know the last stage yet
    for path in (bundles / "smoke-x2").iterdir():
        path.unlink()
    facts = json.loads((bundles / "smoke-x2-lr" / "config.json").read_text())
    del facts["training"]["stages"]["encoder-x2"]
    (bundles / "smoke-x2-lr" / "config.json").write_text(json.dumps(facts))
    run()
    assert whole == {p: p.read_bytes() for p in bundles.rglob("*") if p.is_file()}
