"""Mutated run folders of the trainer: it goes on, begins a part again, or says what is wrong."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from hypothesis import strategies as st

pytest.importorskip("torch")
pytest.importorskip("accelerate")

from helpers import write_training_pictures
from yonos_train.data import DataError
from yonos_train.folders import RunFileError
from yonos_train.loop import LoopConfig, TrainingError
from yonos_train.model import load_bundle
from yonos_train.presets import PRESETS, RunConfig
from yonos_train.run import Run

from fuzz.mutate import Mutation, fuzz, mutate, mutations, told

SMOKE = PRESETS["smoke"]
CONFIG = dataclasses.replace(
    SMOKE,
    loop=LoopConfig(precision="fp32", log_steps=1, sample_steps=0, checkpoint_steps=1),
    stages=tuple(s for s in SMOKE.stages if s.name in ("autoencoder", "x2", "decoder-x2")),
)


def test_a_mutated_run_folder_goes_on_or_says_why_not(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    data = write_training_pictures(tmp_path / "data", 2)
    whole = tmp_path / "whole"
    Run(CONFIG, whole, data=str(data), weights={}).run()
    files = sorted(
        str(p.relative_to(whole)) for p in whole.rglob("*") if p.suffix in (".json", ".jsonl", ".safetensors")
    )

    def check(drawn: tuple[str, list[Mutation], bool]) -> None:
        name, changes, unfinished = drawn
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(whole, copy)
        (copy / name).write_bytes(mutate((copy / name).read_bytes(), changes))
        if unfinished:  # its last stage still has to be trained, from the folder's files
            (copy / "decoder-x2" / "decoder.safetensors").unlink(missing_ok=True)
        try:
            Run(CONFIG, copy, data=str(data), weights={}).run()
            load_bundle(copy / "bundles" / "smoke-x2")
        except (TrainingError, DataError, RunFileError) as error:
            named = str(copy) in told(error)
            assert named

    assert fuzz(st.tuples(st.sampled_from(files), mutations(2), st.booleans()), check) >= 10


def test_a_mutated_config_is_read_or_refused(tmp_path: Path) -> None:
    text, file = CONFIG.to_json().encode(), tmp_path / "config.json"

    def check(changes: list[Mutation]) -> None:
        file.write_bytes(mutate(text, changes))
        try:
            RunConfig.load(file)
        except RunFileError as error:
            named = str(file) in told(error)
            assert named

    assert fuzz(mutations(), check, share=0.2) >= 10
