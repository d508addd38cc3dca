"""``yonos-train --from``: what is shipped trained further, and exported again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from click.testing import CliRunner, Result  # noqa: E402
from export_models import small_bundle  # noqa: E402
from helpers import picture, shipped_model, write_training_pictures  # noqa: E402
from yonos_export.cli import main as yonos_export  # noqa: E402
from yonos_train.cli import main  # noqa: E402
from yonos_train.engine_weights import bundle_from_engine, load_start  # noqa: E402
from yonos_train.fine_tuning import fine_tuning  # noqa: E402
from yonos_train.model import Bundle, load_bundle, save_bundle, weights_sha256  # noqa: E402
from yonos_train.presets import RunConfig  # noqa: E402
from yonos_train.run import Run  # noqa: E402
from yonos_train.stages import StageConfig  # noqa: E402

from yonos_trt.engine.manifest import load_manifest  # noqa: E402
from yonos_trt.sr import SR  # noqa: E402

QUICK = (
    "--steps",
    "2",
    "--set",
    "*.batch=2",
    "--set",
    "*.crop_px=64",
    "--set",
    "loop.precision=fp32",
    "--set",
    "loop.sample_steps=0",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pictures/; bundle/, whose encoder reads the canvas, bundle-lr/, that reads LR; run/ from that one; its
    engine/."""
    root = tmp_path_factory.mktemp("from")
    (root / "pictures").mkdir()
    write_training_pictures(root / "pictures", 2)
    save_bundle(small_bundle(), root / "bundle")
    save_bundle(small_bundle(encoder_input="lr"), root / "bundle-lr")
    result = train(root, root / "run", root / "bundle-lr")
    assert result.exit_code == 0, result.output
    tuned, engine = root / "run" / "bundles" / "tuned-x4", root / "engine"
    result = CliRunner().invoke(yonos_export, [str(tuned), "-o", str(engine), "--onnx-only", "--no-verify"])
    assert result.exit_code == 0, result.output
    return root


def train(made: Path, run: Path, start: str | Path, *more: str) -> Result:
    data = ("--data", str(made / "pictures"), "--run", str(run))
    return CliRunner().invoke(main, ["--from", str(start), *data, *QUICK, *more])


def plan(*arguments: str) -> RunConfig:
    result = CliRunner().invoke(main, [*arguments, "--dry-run"])
    assert result.exit_code == 0, result.output
    return RunConfig.from_json(result.stdout[result.stdout.index("{") :])


def outputs(bundle: Bundle, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        z_0 = -bundle.unet(torch.cat([noise, bundle.encoder(x)], 1), torch.ones(1))
        return bundle.decoder(z_0)


def test_an_engine_directory_read_back_computes_what_its_graphs_do(made: Path) -> None:
    """With an encoder for LR pictures; the shipped models read the canvas: tests/test_train_loop.py."""
    engine = made / "engine"
    torch.manual_seed(0)
    x = torch.rand(1, 3, 16, 24) * 2 - 1
    noise = torch.randn(1, 4, 16, 24)
    run = {s: ort.InferenceSession(engine / f"{s}.onnx").run for s in ("encoder", "step", "decoder")}
    (z_l,) = run["encoder"](None, {"image": x.numpy()})
    (z_0,) = run["step"](None, {"noise": noise.numpy(), "z_l": z_l})
    (wanted,) = run["decoder"](None, {"z_0": z_0})
    back = load_start(engine, 4)
    assert back.config.encoder_input == "lr"
    for bundle in (back, load_bundle(made / "run" / "bundles" / "tuned-x4")):
        error = np.abs(outputs(bundle, x, noise).numpy() - wanted).max()
        assert error <= 1e-5 * max(1.0, np.abs(wanted).max())


def test_the_result_is_a_model_like_any_other_and_names_its_origin(made: Path) -> None:
    old, tuned = load_bundle(made / "bundle-lr"), load_bundle(made / "run" / "bundles" / "tuned-x4")
    origin = tuned.config.training["start"]
    assert (origin["model"], origin["weights_sha256"]) == ("small-x4", weights_sha256(old))
    assert origin["training"] == {"steps": 3}
    assert tuned.config.training["stages"]["pixels-x4"]["steps"] == 2
    assert (tuned.config.tile_px, tuned.config.overlap_px, tuned.config.largest_tile_px) == (64, 16, 128)
    assert set(tuned.config.licence) == {"small-x4: code", "small-x4: data"}
    for name in ("encoder", "unet", "decoder"):
        before, after = getattr(old, name).state_dict(), getattr(tuned, name).state_dict()
        assert not torch.equal(before["conv_in.weight"], after["conv_in.weight"]), name
    manifest = load_manifest(made / "engine", verify=True)
    assert manifest.model.name == "tuned-x4"
    assert ("small-x4: data", "CC0-1.0") in {(x.part, x.licence) for x in manifest.model.licences}
    with SR(made / "engine") as sr:
        assert sr.upscale(picture(20, 24)).shape == (80, 96, 3)


def test_an_engine_directory_is_trained_further_and_the_same_command_is_done(
    made: Path, tmp_path: Path
) -> None:
    bundle, written = tmp_path / "bundles" / "tuned-x4", []
    for _ in range(2):
        result = train(made, tmp_path, made / "engine", "--steps", "1")
        assert result.exit_code == 0, result.output
        written.append((bundle / "config.json").stat().st_mtime_ns)
    assert written[0] == written[1]
    origin = load_bundle(bundle).config.training["start"]
    start = load_manifest(made / "engine", verify=False).model
    assert (origin["model"], origin["weights_sha256"]) == ("tuned-x4", start.weights_sha256)


def test_an_interrupted_run_goes_on(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from yonos_train.stages import OneStepPixelsStage

    start, fresh = made / "bundle", tmp_path / "fresh"
    assert train(made, fresh, start).exit_code == 0
    more, cut = ("--set", "loop.checkpoint_steps=1"), tmp_path / "cut"
    loss = OneStepPixelsStage.loss

    def interrupted(self, group, batch, rng, step):  # type: ignore[no-untyped-def]
        if step == 1:
            raise KeyboardInterrupt
        return loss(self, group, batch, rng, step)

    with monkeypatch.context() as patch:
        patch.setattr(OneStepPixelsStage, "loss", interrupted)
        assert train(made, cut, start, *more).exit_code == 130
    assert not (cut / "bundles").exists()
    assert train(made, cut, start, *more).exit_code == 0
    sums = {weights_sha256(load_bundle(run / "bundles" / "tuned-x4")) for run in (fresh, cut)}
    assert len(sums) == 1


def test_the_plan_has_the_losses_whose_weights_are_there(tmp_path: Path) -> None:
    bare = plan("--from", "lite-x4")
    (stage,) = bare.stages
    assert (stage.name, stage.kind, stage.scale, stage.steps) == ("pixels-x4", "one_step_pixels", 4, 1000)
    assert stage.loss == {"l1": 1.0, "gradient": 0.3, "gan": 0.1, "disc_start": 0}
    assert (bare.start, bare.name) == ("lite-x4", "tuned")
    assert bare.architecture == bundle_from_engine(shipped_model("lite-x4")).config.architecture
    alex = plan("--from", "lite-x2", "--weights", "lpips_alex=a.safetensors").stages[0]
    assert (alex.scale, "lpips_alex" in alex.loss, "lpips_vgg" in alex.loss) == (2, True, False)
    both = plan(
        "--from", "lite-x8", "--weights", "lpips_alex=a.safetensors", "--weights", "lpips_vgg=v.safetensors"
    )
    assert {"lpips_alex", "lpips_vgg", "vgg_share"} <= set(both.stages[0].loss)


def test_the_licences_of_the_start_stay_beside_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "licence.json"
    file.write_text(json.dumps({"training pictures": "mine"}))
    licence = plan("--from", "lite-x4", "--licence", str(file)).licence
    assert licence["training pictures"] == "mine"
    assert licence["lite-x4: weights"][0]["licence"] == "Apache-2.0"


def test_a_config_gives_the_stages(made: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    stage = dataclasses.replace(plan("--from", "lite-x4").stages[0], name="mine", steps=7)
    file.write_text(RunConfig(name="own", start="lite-x{scale}", stages=(stage,)).to_json())
    config = plan("--config", str(file), "--from", str(made / "engine"))
    assert (config.name, config.stages[0].name, config.stages[0].steps) == ("own", "mine", 7)
    assert config.start == str(made / "engine")
    wrong = CliRunner().invoke(
        main,
        ["--config", str(file), "--from", "lite-x2", "--data", str(made / "pictures"), "--run",
         str(tmp_path / "run"), "--set", "*.crop_px=64"],
    )  # fmt: skip
    assert wrong.exit_code == 1
    assert "lite-x2: its scale is 2, expected 4" in wrong.output
    assert not list((tmp_path / "run").glob("*/checkpoint*"))


def test_a_bundle_has_its_time_layers_and_takes_a_diffusion_stage(made: Path, tmp_path: Path) -> None:
    stage = StageConfig("x4", "diffusion", 4, steps=2, batch=2, crop_px=64)
    file, run = tmp_path / "run.json", tmp_path / "run"
    file.write_text(RunConfig(name="times", stages=(stage,)).to_json())
    more = ("--config", str(file))
    result = train(made, run, made / "bundle", *more)
    assert result.exit_code == 0, result.output
    old, new = load_bundle(made / "bundle"), load_bundle(run / "bundles" / "times-x4")
    for name in ("encoder", "decoder"):
        assert_same(getattr(old, name), getattr(new, name))
    before, after = old.unet.state_dict(), new.unet.state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in before if "film" in k)
    assert train(made, run, made / "bundle", *more).exit_code == 0
    result = train(made, tmp_path / "never", made / "engine", *more)
    assert result.exit_code == 1
    assert "start from its bundle" in result.output
    assert not list((tmp_path / "never").glob("*/*"))


def assert_same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--preset", "lite"), "got --from lite-x4 and --preset lite, expected one of them"),
        (("--base", "sd"), "got --from lite-x4 and --base sd, expected one of them"),
        (("--stage", "x4"), "stage: got x4, expected one of pixels-x4"),
        (("--set", "pixels-x4.kind=diffusion"), "lite-x4: an exported model knows t = 1 only"),
        (("--set", "pixels-x4.kind=autoencoder"), "which has its autoencoder"),
        (("--set", "pixels-x4.loss={\"dists\": 0.5}"), "pass --weights lpips_vgg=FILE"),
        (("--weights", "lpips_alex=nothing.safetensors"), "no file 'nothing.safetensors'"),
        (("--set", "pixels-x4.network={\"decoder_blocks\": 2}"), "network got decoder_blocks"),
    ],
)  # fmt: skip
def test_what_does_not_go_is_refused_before_the_first_step(
    made: Path, tmp_path: Path, arguments: tuple[str, ...], text: str
) -> None:
    result = train(made, tmp_path / "run", "lite-x4", *arguments)
    assert result.exit_code in (1, 2)
    assert text in " ".join(result.output.split())
    assert not list((tmp_path / "run").glob("*/*"))


def test_a_model_with_a_dial_is_read_where_it_stands(made: Path, tmp_path: Path) -> None:
    ends = made / "bundle-lr", made / "run" / "bundles" / "tuned-x4"
    more = [
        "-o",
        str(tmp_path / "dial"),
        "--onnx-only",
        "--no-verify",
        "--restored",
        str(ends[1]),
        "--restore",
        "0.25",
    ]
    result = CliRunner().invoke(yonos_export, [str(ends[0]), *more])
    assert result.exit_code == 0, result.output
    low, high, got = (load_start(start).decoder.state_dict() for start in (*ends, tmp_path / "dial"))
    moved = {name: value for name, value in got.items() if not torch.equal(low[name], high[name])}
    assert moved
    for name, value in moved.items():
        expected = 0.75 * low[name] + 0.25 * high[name]
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-3 * float(expected.abs().max()) + 1e-6)


def test_a_model_that_cannot_be_trained_further_is_named(made: Path, tmp_path: Path) -> None:
    def refused(start: Path | str) -> str:
        result = train(made, tmp_path / "run", start)
        assert result.exit_code == 2
        assert not (tmp_path / "run").exists()
        return " ".join(result.output.split())

    assert "nothing: got neither a bundle" in refused("nothing")
    assert "lite-x2, lite-x4, lite-x8" in refused("lite-x{scale}")
    (tmp_path / "sd").mkdir()
    (tmp_path / "sd" / "config.json").write_text('{"format": 1, "scale": 4}')
    assert "not a lite bundle's" in refused(tmp_path / "sd")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{")
    assert "cannot be read back into networks of the lite profile" in refused(tmp_path / "broken")


def test_a_start_that_has_changed_since_is_refused(made: Path, tmp_path: Path) -> None:
    start = save_bundle(small_bundle(), tmp_path / "start")
    data = str(made / "pictures")
    Run(fine_tuning(start), tmp_path / "run", data=data, weights={})
    save_bundle(small_bundle(seed=1), start)
    with pytest.raises(ValueError, match=r"this run was started from .* with weights_sha256"):
        Run(fine_tuning(start), tmp_path / "run", data=data, weights={})
