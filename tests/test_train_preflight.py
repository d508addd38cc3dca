"""What a run refuses before its first step: other settings than it was trained with, and what stages lack."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from click.testing import CliRunner, Result  # noqa: E402
from helpers import write_training_pictures  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from test_train_losses import random_lpips  # noqa: E402
from yonos_train.cli import main  # noqa: E402
from yonos_train.presets import PRESETS, RunConfig  # noqa: E402
from yonos_train.run import Run  # noqa: E402

FULL = PRESETS["smoke"]
SMOKE = dataclasses.replace(
    FULL,
    loop=dataclasses.replace(FULL.loop, precision="fp32", sample_steps=0, checkpoint_steps=1),
    stages=tuple(stage for stage in FULL.stages if stage.name in ("autoencoder", "x2", "decoder-x2")),
)


def write_pictures(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    return write_training_pictures(folder, count)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures/ and a finished run/; tests copy what they change."""
    root = tmp_path_factory.mktemp("finished")
    Run(SMOKE, root / "run", data=str(write_pictures(root / "pictures", 3)), weights={}).run()
    return root


def command(finished: Path, *more: str, run: Path | None = None, config: RunConfig = SMOKE) -> Result:
    file = finished / "given.json"
    file.write_text(config.to_json())
    args = [
        "--config",
        str(file),
        "--data",
        str(finished / "pictures"),
        "--run",
        str(run or finished / "run"),
    ]
    return CliRunner().invoke(main, [*args, *more])


def files(folder: Path) -> dict[Path, tuple[int, int]]:
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*") if p.is_file()}


# ----------------------------------------------------------------------------------------------------------
# The same run


CHANGES = [
    ("degradation=bicubic", 'degradation was "mixed", now "bicubic"'),
    ("steps=3", "steps was 2, now 3"),
    ("batch=3", "batch was 2, now 3"),
    ("lr=0.5", "lr was 0.001, now 0.5"),
    ("ema=0.5", "ema was 0.999, now 0.5"),
    ("crop_px=96", "crop_px was 64, now 96"),
    ("repeat=2", "repeat was 0, now 2"),
    ('loss={"one_probability": 1.0}', "loss.one_probability was null, now 1.0"),
    ("objective=one_step", 'objective was null, now "one_step"'),
]


@pytest.mark.parametrize(("change", "text"), CHANGES, ids=[change for change, _ in CHANGES])
def test_a_finished_stage_goes_on_with_all_of_its_settings(finished: Path, change: str, text: str) -> None:
    before = files(finished / "run")
    result = command(finished, "--set", f"x2.{change}")
    assert result.exit_code == 1
    assert f"stage x2 is finished, and its {text}" in result.output
    assert files(finished / "run") == before


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--steps", "7"), "stage autoencoder is finished, and its steps was 2, now 7"),
        (("--minutes", "7"), "minutes was null, now 7.0"),
        (("--seed", "5"), "seed was 0, now 5"),
        (("--set", "crops.flip=false"), "crops.flip was true, now false"),
        (("--limit", "2"), 'data was "3 files of '),
    ],
)
def test_a_finished_run_refuses_another_budget_seed_or_data(
    finished: Path, more: tuple[str, ...], text: str
) -> None:
    before = files(finished / "run")
    result = command(finished, *more)
    assert result.exit_code == 1
    assert text in result.output
    assert files(finished / "run") == before


def test_a_finished_run_refuses_other_pictures_and_takes_the_same_elsewhere(
    finished: Path, tmp_path: Path
) -> None:
    other = write_pictures(tmp_path / "other", 2)
    with pytest.raises(ValueError, match=r"stage autoencoder is finished, and its data was .*3 files of"):
        Run(SMOKE, finished / "run", data=str(other), weights={}).run()
    moved = write_pictures(tmp_path / "moved", 3)
    before = files(finished / "run")
    Run(SMOKE, finished / "run", data=str(moved), weights={}).run()
    assert files(finished / "run") == before


def test_the_same_command_and_other_precision_are_taken(finished: Path) -> None:
    assert command(finished).exit_code == 0
    result = command(finished, "--set", "loop.precision=bf16")  # what the message of a diverged stage says
    assert result.exit_code == 0, result.output


def stopped(folder: Path, pictures: Path) -> Path:
    """Leave a run with a finished autoencoder and one checkpoint of x2."""
    run = Run(SMOKE, folder, data=str(pictures), weights={})
    run.run(("autoencoder", "x2"))
    (folder / "x2" / "unet.safetensors").unlink()
    (folder / "x2" / "checkpoint-00000002.safetensors").unlink()
    return folder


def test_a_begun_stage_may_change_its_budget_and_rate_but_not_what_bundles_state(
    finished: Path, tmp_path: Path
) -> None:
    folder = stopped(tmp_path / "run", finished / "pictures")
    for change in ("degradation=bicubic", "batch=1", 'loss={"one_probability": 1.0}'):
        result = command(finished, "--set", f"x2.{change}", run=folder)
        assert result.exit_code == 1
        assert "stage x2 is begun" in result.output
    result = command(finished, "--set", "x2.steps=3", "--set", "x2.lr=0.0005", run=folder)
    assert result.exit_code == 0, result.output
    facts = json.loads((folder / "bundles" / "smoke-x2" / "config.json").read_text())["training"]["stages"]
    assert facts["x2"]["steps"] == 3
    assert json.loads((folder / "x2" / "stage.json").read_text())["stage"]["lr"] == 0.0005
    assert command(finished, run=folder).exit_code == 1  # it was 3 steps, not the preset's 2


def test_a_run_without_records_is_compared_with_its_config(finished: Path, tmp_path: Path) -> None:
    run = Run(SMOKE, tmp_path / "run", data=str(finished / "pictures"), weights={})
    run.run(("autoencoder",))
    (tmp_path / "run" / "autoencoder" / "stage.json").unlink()  # as runs of earlier versions are
    result = command(finished, "--set", "autoencoder.lr=0.5", run=tmp_path / "run")
    assert result.exit_code == 1
    assert "stage autoencoder is finished, and its lr was 0.001, now 0.5" in result.output


def test_a_stage_dropped_from_the_config_and_taken_in_again_is_still_known(
    finished: Path, tmp_path: Path
) -> None:
    folder, pictures = tmp_path / "run", str(finished / "pictures")
    Run(SMOKE, folder, data=pictures, weights={}).run(("autoencoder", "x2"))
    without = dataclasses.replace(SMOKE, stages=SMOKE.stages[:1])
    Run(without, folder, data=pictures, weights={}).run()
    changed = dataclasses.replace(SMOKE.stages[1], degradation="bicubic")
    other = dataclasses.replace(SMOKE, stages=(SMOKE.stages[0], changed))
    with pytest.raises(ValueError, match="stage x2 is finished, and its degradation was"):
        Run(other, folder, data=pictures, weights={})


def test_a_new_card_reaches_the_bundles_of_a_finished_run(finished: Path, tmp_path: Path) -> None:
    run = Run(SMOKE, tmp_path / "run", data=str(finished / "pictures"), weights={})
    run.run()
    (tmp_path / "card.md").write_text("# New\n")
    assert command(finished, "--card", str(tmp_path / "card.md"), run=run.folder).exit_code == 0
    assert json.loads((run.folder / "bundles/smoke-x2/config.json").read_text())["card"] == "# New\n"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"architecture": 3}'])
def test_a_damaged_config_is_named(finished: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(text)
    result = command(finished, run=tmp_path / "run")
    assert result.exit_code == 1
    assert "config.json: not a run's config" in result.output
    (tmp_path / "run.json").write_text(text)
    assert CliRunner().invoke(main, ["--config", str(tmp_path / "run.json")]).exit_code == 2


# ----------------------------------------------------------------------------------------------------------
# What stages need


def refused(finished: Path, folder: Path, *more: str, config: RunConfig = SMOKE) -> str:
    """Return what a new run says that stops before any stage."""
    result = command(finished, *more, run=folder, config=config)
    assert result.exit_code in (1, 2), result.output
    assert not isinstance(result.exception, Exception)  # SystemExit, no traceback
    assert not list(folder.glob("*/checkpoint-*")), "a step was made"
    return result.output


def decoder_loss(**loss: Any) -> RunConfig:
    *first, decoder = SMOKE.stages
    return dataclasses.replace(SMOKE, stages=(*first, dataclasses.replace(decoder, loss=loss)))


def test_weights_that_a_late_stage_needs_are_asked_for_first(finished: Path, tmp_path: Path) -> None:
    text = refused(finished, tmp_path / "run", config=decoder_loss(lpips_alex=1.0))
    assert "--weights lpips_alex=FILE" in text
    (tmp_path / "bad").write_bytes(b"no tensors")
    given = ("--weights", f"lpips_alex={tmp_path / 'bad'}")
    assert "is not a readable safetensors file" in refused(
        finished, tmp_path / "run", *given, config=decoder_loss(lpips_alex=1.0)
    )


def test_the_readme_command_without_weights_stops_at_once(finished: Path, tmp_path: Path) -> None:
    args = ["--preset", "lite", "--data", str(finished / "pictures"), "--run", str(tmp_path / "run")]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 1
    assert "--weights lpips_alex=FILE" in result.output
    assert not list((tmp_path / "run").glob("*/*"))


@pytest.mark.parametrize("given", ["lpips_alex", "lpips_alex=", "alex=/dev/null", "lpips_alex=/none"])
def test_weights_options_that_name_nothing_are_refused(finished: Path, tmp_path: Path, given: str) -> None:
    assert "--weights" in refused(finished, tmp_path / "run", "--weights", given)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("x2.objective=nonsense", "unknown objective 'nonsense'"),
        ('x2.loss={"no_such": 1}', "no option"),
        ("x2.objective=boot", "distils from a teacher; got none"),
        ('decoder-x2.loss={"gan": "much"}', "much"),
        ('decoder-x2.loss={"gan": [1]}', "stage decoder-x2"),
        ("x2.steps=many", "steps got 'many', expected a whole number"),
        ("x2.minutes=long", "minutes got 'long', expected a number"),
        ("x2.batch=1.5", "batch got 1.5, expected a whole number"),
        ("x2.lr=NaN", "lr got nan, expected a number"),
        ("x2.steps=0", "steps got 0, expected > 0"),
        ("x2.batch=99999999999999999999", "expected <= 65536"),
        ("loop.seed=-1", "loop.seed: got -1"),
        ("loop.seed=99999999999999999999999", "expected a whole number, 0 to 2^63 - 1"),
        ("loop.checkpoint_steps=0", "loop.checkpoint_steps: got 0"),
        ("loop.log_steps=some", "loop.log_steps: got 'some'"),
        ("loop.checkpoint_minutes=NaN", "loop.checkpoint_minutes: got nan"),
        ("crops.smallest_scale=0", "crops.smallest_scale: got 0"),
        ("crops.downscale_probability=NaN", "crops.downscale_probability: got nan"),
    ],
)
def test_settings_that_a_late_stage_refuses_are_refused_first(
    finished: Path, tmp_path: Path, change: str, text: str
) -> None:
    assert text in refused(finished, tmp_path / "run", "--set", change)


@pytest.mark.parametrize("place", ["bundles", "decoder-x2", "x2/samples", "decoder-x2/metrics.jsonl/"])
def test_places_that_a_late_stage_cannot_write_are_refused_first(
    finished: Path, tmp_path: Path, place: str
) -> None:
    blocked = tmp_path / "run" / place
    blocked.parent.mkdir(parents=True)
    if place.endswith("/"):
        blocked.mkdir()
    else:
        blocked.write_text("in the way")
    assert str(blocked) in refused(finished, tmp_path / "run")


def test_references_that_cannot_be_written_are_refused_first(finished: Path, tmp_path: Path) -> None:
    teacher = dataclasses.replace(
        SMOKE.stages[1], name="tad", init="x2", teacher="x2", objective="sinsr",
        loss={"references": str(tmp_path / "file" / "deep")},
    )  # fmt: skip
    (tmp_path / "file").write_text("in the way")
    config = dataclasses.replace(SMOKE, stages=(*SMOKE.stages[:2], teacher))
    assert str(tmp_path / "file") in refused(finished, tmp_path / "run", config=config)


def test_stages_without_what_they_rest_on_are_refused_first(finished: Path, tmp_path: Path) -> None:
    for only, text in (
        (("x2",), "stage x2 rests on autoencoder, which is not trained; add --stage autoencoder"),
        (("autoencoder", "decoder-x2"), "stage decoder-x2 rests on x2"),
    ):
        more = [part for name in only for part in ("--stage", name)]
        assert text in refused(finished, tmp_path / "run", *more)
    x4 = next(stage for stage in FULL.stages if stage.name == "x4")
    config = dataclasses.replace(SMOKE, stages=(*SMOKE.stages[:2], x4))
    text = refused(finished, tmp_path / "run", "--stage", "autoencoder", "--stage", "x4", config=config)
    assert "stage x4 rests on x2" in text


def test_crops_and_weights_that_do_not_fit_a_perceptual_loss_are_refused_first(
    finished: Path, tmp_path: Path
) -> None:
    path = tmp_path / "alex.safetensors"
    tensors = random_lpips("alex", torch.Generator().manual_seed(0))
    save_file(tensors, path)
    config = decoder_loss(lpips_alex=1.0)
    small = dataclasses.replace(config.stages[-1], crop_px=32)
    config = dataclasses.replace(config, stages=(*config.stages[:-1], small))
    text = refused(finished, tmp_path / "run", "--weights", f"lpips_alex={path}", config=config)
    assert "crop_px got 32; lpips_alex needs at least 34" in text
    save_file(
        {**tensors, "conv4.weight": tensors["conv3.weight"].clone()}, path
    )  # a late layer of other shape
    text = refused(finished, tmp_path / "run", "--weights", f"lpips_alex={path}", config=config)
    assert "tensor conv4.weight has shape (256, 384, 3, 3)" in text


def test_a_missing_package_is_named_first(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "matplotlib" else find(name, *more)
    )
    text = refused(finished, tmp_path / "run")
    assert "needs the package 'matplotlib'" in text
    assert "'.[train]'" in text


# ----------------------------------------------------------------------------------------------------------
# Command line


def printed(*args: str) -> RunConfig:
    result = CliRunner().invoke(main, ["--preset", "smoke", "--dry-run", *args])
    assert result.exit_code == 0, result.output
    return RunConfig.from_json(result.output)


def test_a_setting_of_every_stage_keeps_the_budget() -> None:
    config = printed("--steps", "7", "--set", "*.batch=3")
    assert {(stage.steps, stage.batch) for stage in config.stages} == {(7, 3)}
    config = printed("--minutes", "2", "--set", "*.batch=3", "--set", "x4.minutes=9", "--set", "*.lr=1")
    assert {(s.minutes, s.batch, s.lr) for s in config.stages if s.name != "x4"} == {(2.0, 3, 1)}
    assert next(s.minutes for s in config.stages if s.name == "x4") == 9
    config = printed("--set", "x4.lr=0.5", "--set", "*.lr=0.25")  # what is said of one goes before
    assert {s.name: s.lr for s in config.stages if s.lr != 0.25} == {"x4": 0.5}


def test_budgets_that_contradict_each_other_are_refused() -> None:
    for option, change in (("--steps", "*.steps=5"), ("--minutes", "*.minutes=1")):
        result = CliRunner().invoke(main, ["--preset", "smoke", option, "7", "--set", change, "--dry-run"])
        assert result.exit_code == 2
        assert f"{change} and {option} 7" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--minutes", "nan"], "minutes got nan, expected a number"),
        (["--limit", "-5"], "--limit"),
        (["--licence", "/dev/zero"], "is a device or a pipe"),
        (["--card", "/dev/zero"], "is a device or a pipe"),
        (["--config", "/dev/zero"], "is a device or a pipe"),
    ],
)
def test_options_that_have_no_meaning_are_usage_errors(arguments: list[str], said: str) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, before[1]))  # /dev/zero has no end
    try:
        result = CliRunner().invoke(main, ["--preset", "smoke", "--dry-run", *arguments])
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert result.exit_code == 2
    assert said in result.output


def test_losses_of_one_stage_do_not_reach_the_next() -> None:
    config = printed("--set", 'decoder-x2.loss={"l1": 2}', "--set", '*.loss={"gradient": 1}')
    losses = {stage.name: stage.loss for stage in config.stages}
    assert losses.pop("decoder-x2") == {"gradient": 1, "l1": 2}
    assert {json.dumps(loss) for loss in losses.values()} == {'{"gradient": 1}'}
    preset = CliRunner().invoke(main, ["--preset", "lite", "--dry-run", "--set", '*.loss={"shift": 1}'])
    stages = {stage.name: stage for stage in RunConfig.from_json(preset.output).stages}
    assert "gan" not in stages["decoder-x2"].loss  # the stage before has one
