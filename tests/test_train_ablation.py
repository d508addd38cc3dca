"""The ablation runs from pictures to tables on tiny networks, and judges orders as the paper's table does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("safetensors")

from PIL import Image
from yonos_train.presets import PRESETS

from benchmarks.studies.ablation import TAD, ablation, configs, copy_autoencoder
from benchmarks.studies.ablation_report import PAPER, orders

LABELS = [f"{decoder} decoder, {run}" for decoder in ("original", "tuned") for run in ("without", "with")]


def test_both_runs_spend_the_same_unet_budget_per_scale() -> None:
    made = configs(PRESETS["smoke"], 100, "average", 2, 64)
    stages = {name: {stage.name: stage for stage in config.stages} for name, config in made.items()}
    chain = stages["with"]
    assert chain["x4"].teacher == "x2"
    assert chain["x8"].teacher == "x4"
    assert all(stage.teacher is None for stage in stages["without"].values())
    until = {"x4": ("x2", "x4"), "x8": ("x2", "x4", "x8")}
    for scale, names in until.items():
        assert stages["without"][scale].steps == sum(chain[name].steps for name in names)
        assert stages["without"][f"decoder-{scale}"].steps == chain[f"decoder-{scale}"].steps


def test_paper_prefers_distillation_in_every_comparison() -> None:
    """The comparison code, fed with the paper's own cells, agrees with the paper everywhere."""
    for scale, table in PAPER.items():
        cells = {
            label: {
                "psnr_y": [table["psnr_y"][k]],
                "lpips_alex": [table["lpips"][k]],
                "fid": [table["fid"][k]],
            }
            for k, label in enumerate(LABELS)
        }
        rows = orders(cells, scale)
        assert len(rows) == 12
        assert all(row["agrees"] == "yes" for row in rows)
        by_distillation = [
            row for row in rows if row["from"].endswith("without") and row["to"].endswith(", with")
        ]
        assert all(row["paper_gain"] > 0 for row in by_distillation)
        swapped = {label: cells[LABELS[(k + 1) % 4]] for k, label in enumerate(LABELS)}
        assert any(row["agrees"] == "no" for row in orders(swapped, scale))


def test_an_order_within_the_noise_of_the_pictures_is_undecided() -> None:
    """Five pictures, PSNR: distillation gains 1 dB on each with the original decoder, with the tuned one
    1 dB on average but between -8 and +9."""
    hard = np.array([20.0, 22.0, 25.0, 28.0, 31.0])
    gains = {LABELS[0]: 0 * hard, LABELS[1]: 1 + 0.1 * (hard - hard.mean()) / hard, LABELS[2]: 0 * hard,
             LABELS[3]: np.array([9.0, -8.0, 1.0, 9.0, -6.0])}  # fmt: skip
    values = {label: {"psnr_y": list(hard + gain)} for label, gain in gains.items()}
    rows = {(row["from"], row["to"]): row for row in orders(values, 4)}
    sure, unsure = rows[LABELS[0], LABELS[1]], rows[LABELS[2], LABELS[3]]
    assert sure["agrees"] == "yes"
    assert 0.8 < sure["low"] < sure["gain"] < sure["high"] < 1.2
    assert unsure["agrees"] == "undecided"
    assert unsure["gain"] == pytest.approx(1.0)
    assert unsure["low"] < 0 < unsure["high"]
    # mean of five with t(4 degrees, 97.5 %) = 2.776 standard errors
    error = gains[LABELS[3]].std(ddof=1) / 5**0.5
    assert unsure["high"] - unsure["gain"] == pytest.approx(2.7764 * error, rel=1e-4)


def test_ablation_writes_every_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.studies.ablation.STEPS", (1, 3))
    rng = np.random.default_rng(0)
    for folder in ("train", "dev/one/HR"):
        (tmp_path / folder).mkdir(parents=True)
        for k in range(2):
            coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
            coarse.resize((80, 80), Image.Resampling.BICUBIC).save(tmp_path / folder / f"{k}.png")
    arguments: dict[str, Any] = {
        "data": str(tmp_path / "train"), "dev": str(tmp_path / "dev"), "folder": tmp_path / "run",
        "weights": {}, "unit_steps": 1, "perceptual": False, "batch": 1, "crop_px": 64,
        "metric_names": ("psnr_y",), "crops": 1, "hr_px": 64,
    }  # fmt: skip
    report = ablation(PRESETS["smoke"], **arguments)
    assert json.loads((tmp_path / "run" / "ablation.json").read_text())["table4"] == report["table4"]
    for scale in ("x4", "x8"):
        assert set(report["table4"][scale]["cells"]) == {
            "bicubic",
            "original decoder, without",
            "original decoder, with",
            "tuned decoder, without",
            "tuned decoder, with",
        }
    assert list(report["figure3"]["with"]) == ["1", "3"]
    assert set(report["tad_sr"]) == {"x4", *TAD}
    text = (tmp_path / "run" / "ablation.md").read_text()
    assert text.count("| tuned decoder, with |") >= 2
    assert report["sets"] == ["one"]
    with Image.open(tmp_path / "run" / "steps.png") as plot:
        assert plot.size == (504, 384)
    shared = [tmp_path / "run" / name / "autoencoder" / "decoder.safetensors" for name in ("with", "without")]
    assert shared[0].read_bytes() == shared[1].read_bytes()
    assert report["autoencoder"] == "2 steps"

    given = {**arguments, "folder": tmp_path / "other", "autoencoder": shared[0].parent}
    again = ablation(PRESETS["smoke"], **given)
    assert again["autoencoder"] == "given"
    for scale in ("x4", "x8"):  # the same networks, one of them not trained again
        assert again["table4"][scale]["orders"] == report["table4"][scale]["orders"]
    taken = tmp_path / "other" / "without" / "autoencoder" / "decoder.safetensors"
    assert taken.read_bytes() == shared[0].read_bytes()
    assert not list(taken.parent.glob("checkpoint-*"))


def test_only_the_stages_that_the_asked_parts_need_are_trained() -> None:
    made = configs(PRESETS["smoke"], 100, "average", 2, 64, one_probability=0.0, parts=("figure3",))
    names = {run: [stage.name for stage in config.stages] for run, config in made.items()}
    assert names == {"with": ["autoencoder", "x2", "x4"], "without": ["autoencoder", "x4"]}
    assert all(
        stage.loss == {"one_probability": 0.0} for config in made.values() for stage in config.stages[1:]
    )
    with pytest.raises(ValueError, match="parts: got table5, expected some of table4, figure3, tad_sr"):
        ablation(
            PRESETS["smoke"], data="", dev="", folder=Path(), weights={}, unit_steps=1, parts=("table5",)
        )


def test_a_folder_without_an_autoencoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no encoder\.safetensors; give the autoencoder folder"):
        copy_autoencoder(tmp_path, tmp_path / "target")
    assert not (tmp_path / "target").exists()
    (tmp_path / "encoder.safetensors").touch()  # half of one is none, and nothing is copied
    with pytest.raises(FileNotFoundError, match=r"has no decoder\.safetensors"):
        copy_autoencoder(tmp_path, tmp_path / "target")
    assert not (tmp_path / "target").exists()
