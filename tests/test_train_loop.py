"""Data, loop and run of the trainer: exact resume, crash safety, frozen parts, bad input."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from click.testing import CliRunner  # noqa: E402
from yonos_train.cli import main  # noqa: E402
from yonos_train.data import CropConfig, Crops, DataError, ImageFolder, generator  # noqa: E402
from yonos_train.loop import LoopConfig, Trainer, TrainingError, learning_rate  # noqa: E402
from yonos_train.model import BundleConfig, load_bundle, new_bundle  # noqa: E402
from yonos_train.presets import PRESETS, RunConfig  # noqa: E402
from yonos_train.records import MetricsLog  # noqa: E402
from yonos_train.run import Run  # noqa: E402
from yonos_train.stages import AutoencoderStage, StageConfig  # noqa: E402

SMOKE = PRESETS["smoke"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for index in range(3):
        noise = rng.uniform(0, 255, (12, 10, 3)).astype(np.uint8)
        Image.fromarray(noise).resize((100, 120), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return folder


def autoencoder(pictures, folder, *, steps=6, **loop):
    config = StageConfig("autoencoder", "autoencoder", steps=steps, batch=2, crop_px=64, warmup_steps=2)
    torch.manual_seed(0)
    bundle = new_bundle(BundleConfig("tiny", 4, SMOKE.architecture))
    crops = Crops(ImageFolder(pictures, smallest_px=64), CropConfig(64), seed=3)
    settings = LoopConfig(seed=3, precision="fp32", sample_steps=0, log_steps=1, **loop)
    return Trainer(AutoencoderStage(config, bundle), config, crops, Path(folder), settings), bundle


def state_bytes(bundle):
    return [v.numpy().tobytes() for m in (bundle.encoder, bundle.decoder) for v in m.state_dict().values()]


class Interrupted(Exception):
    pass


def test_resume_is_bit_exact(pictures, tmp_path):
    whole, bundle = autoencoder(pictures, tmp_path / "whole")
    whole.run()

    def stop(step):
        if step == 3:
            raise Interrupted

    first, _ = autoencoder(pictures, tmp_path / "cut", checkpoint_steps=1)
    with pytest.raises(Interrupted):
        first.run(on_step=stop)
    second, resumed = autoencoder(pictures, tmp_path / "cut")
    second.run()
    assert second.step == 6
    assert state_bytes(resumed) == state_bytes(bundle)
    fresh, other = autoencoder(pictures, tmp_path / "short", steps=3)
    fresh.run()
    assert state_bytes(other) != state_bytes(bundle)


def test_resume_falls_back_to_the_checkpoint_before_a_broken_one(pictures, tmp_path):
    trainer, _ = autoencoder(pictures, tmp_path, steps=3, checkpoint_steps=1)
    trainer.run()
    newest = trainer.checkpoints.paths()[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    again, _ = autoencoder(pictures, tmp_path, steps=3)
    assert again.resume()
    assert again.step == 2


def test_only_the_two_newest_checkpoints_are_kept(pictures, tmp_path):
    trainer, _ = autoencoder(pictures, tmp_path, steps=5, checkpoint_steps=1)
    trainer.run()
    kept = [path.name for path in trainer.checkpoints.paths()]
    assert kept == [f"checkpoint-{n:08d}.safetensors" for n in (4, 5)]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(pictures, tmp_path):
    trainer, bundle = autoencoder(pictures, tmp_path, checkpoint_steps=1)

    def poison(step):
        if step == 2:
            bundle.decoder.get_parameter("conv_in.weight").data.fill_(float("nan"))

    with pytest.raises(TrainingError, match=r"step 2: loss of autoencoder is nan.*checkpoint-00000002"):
        trainer.run(on_step=poison)
    again, restored = autoencoder(pictures, tmp_path)
    assert again.resume()
    assert again.step == 2
    assert all(torch.isfinite(p).all() for p in restored.decoder.parameters())


def test_metrics_samples_and_curves_are_written(pictures, tmp_path):
    trainer, _ = autoencoder(pictures, tmp_path, steps=2)
    trainer.run()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert {"loss", "l1", "psnr_db", "lr", "images_per_s"} <= rows[0].keys()
    with Image.open(tmp_path / "samples" / "step-00000002.png") as grid:
        assert grid.size == (2 * 64, 8 * 64)
    with Image.open(tmp_path / "curves.png") as curves:
        assert curves.size[0] > 500


def test_a_metric_that_would_hide_the_rows_own_is_refused(tmp_path):
    metrics = MetricsLog(tmp_path / "metrics.jsonl")
    metrics.add({"loss": 1.0, "step": 0.5})
    with pytest.raises(ValueError, match="got step, a name of the row's own"):
        metrics.row({"step": 50, "lr": 1e-3})
    metrics.close()


def test_batches_depend_only_on_seed_step_and_index(pictures):
    folder = ImageFolder(pictures, smallest_px=64)
    crops = Crops(folder, CropConfig(64), seed=1)
    whole = crops.batch(5, 4)
    halves = [crops.batch(5, 2, rank=r, world=2) for r in (0, 1)]
    assert torch.equal(whole.x_h, torch.cat([h.x_h for h in halves]))
    assert whole.seeds == halves[0].seeds + halves[1].seeds
    assert not torch.equal(whole.x_h, crops.batch(6, 4).x_h)
    assert not torch.equal(whole.x_h, Crops(folder, CropConfig(64), seed=2).batch(5, 4).x_h)
    assert whole.x_h.min() >= -1
    assert whole.x_h.max() <= 1


def test_generator_is_the_same_everywhere():
    a, b = (torch.rand(3, generator=generator(1, "x4", 7)) for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, torch.rand(3, generator=generator(1, "x2", 7)))


def test_bad_folders_are_refused_and_bad_files_listed(pictures, tmp_path):
    with pytest.raises(DataError, match="not a folder"):
        ImageFolder(tmp_path / "none", smallest_px=8)
    with pytest.raises(DataError, match="no image"):
        ImageFolder(tmp_path, smallest_px=8)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    with pytest.raises(DataError, match=r"none of 1 files is usable.*cannot be decoded"):
        ImageFolder(tmp_path, smallest_px=8)
    Image.new("RGB", (20, 70)).save(tmp_path / "narrow.png")
    Image.new("L", (70, 70)).save(tmp_path / "grey.png")
    folder = ImageFolder(tmp_path, smallest_px=64)
    assert len(folder) == 1
    assert folder.images[0].shape == (70, 70, 3)
    assert [Path(s.path).name for s in folder.skipped] == ["broken.png", "narrow.png"]
    assert "20 x 70 px" in folder.skipped[1].reason


def test_learning_rate_warms_up_and_falls():
    config = StageConfig("x", "autoencoder", steps=10, lr=1.0, warmup_steps=4)
    assert learning_rate(config, 0, 0.0) == pytest.approx(0.25)
    assert learning_rate(config, 9, 0.0) == pytest.approx(1.0)
    assert learning_rate(config, 9, 1.0) == pytest.approx(0.02)


def test_smoke_preset_runs_every_stage_and_leaves_bundles(pictures, tmp_path):
    run = tmp_path / "run"
    args = ["--preset", "smoke", "--data", str(pictures), "--run", str(run), "--set", "loop.precision=fp32"]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 0, result.output
    for scale in (2, 4, 8):
        for name, side_px in ((f"smoke-x{scale}", 32), (f"smoke-x{scale}-lr", 32 // scale)):
            bundle = load_bundle(run / "bundles" / name)
            assert bundle.config.scale == scale
            assert bundle.config.encoder_input == ("lr" if name.endswith("-lr") else "upsampled")
            out = bundle.decoder(bundle.encoder(torch.rand(1, 3, side_px, side_px)))
            assert out.shape == (1, 3, 32, 32)
            assert torch.isfinite(out).all()
    for rows in (p.read_text().splitlines() for p in run.glob("*/metrics.jsonl")):
        assert json.loads(rows[-1])["step"] == 2
    assert len(list(run.glob("*/metrics.jsonl"))) == len(SMOKE.stages)
    facts = load_bundle(run / "bundles" / "smoke-x4").config.training
    assert facts["pictures"] == 3
    assert list(facts["stages"]) == ["autoencoder", "x2", "x4", "decoder-x4"]  # what x4 rests on, not x8
    assert facts["stages"]["x4"]["steps"] == 2
    # all stages are done: a second call redoes nothing
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*.safetensors")}
    assert CliRunner().invoke(main, args).exit_code == 0
    assert before == {p: p.stat().st_mtime_ns for p in run.rglob("*.safetensors")}


def test_licence_and_card_reach_the_bundle(pictures, tmp_path):
    (tmp_path / "licence.json").write_text('{"training pictures": "CC0"}')
    (tmp_path / "card.md").write_text("# Smoke\n")
    args = ["--preset", "smoke", "--data", str(pictures), "--run", str(tmp_path / "r")]
    args += ["--set", "loop.precision=fp32", "--licence", str(tmp_path / "licence.json")]
    args += ["--stage", "autoencoder", "--stage", "x2", "--stage", "decoder-x2"]
    result = CliRunner().invoke(main, [*args, "--card", str(tmp_path / "card.md")])
    assert result.exit_code == 0, result.output
    config = load_bundle(tmp_path / "r" / "bundles" / "smoke-x2").config
    assert config.licence == {"training pictures": "CC0"}
    assert config.card == "# Smoke\n"


def test_decoder_stage_leaves_encoder_and_unet_untouched(pictures, tmp_path):
    config = dataclasses.replace(SMOKE, loop=dataclasses.replace(SMOKE.loop, precision="fp32"))
    run = Run(config, tmp_path, data=str(pictures), weights={})
    run.run(("autoencoder", "x2"))
    before = run.bundle(2)
    stage = run.build(config.stages[4])
    assert config.stages[4].kind == "decoder"
    run.run(("decoder-x2",))
    after = run.bundle(2)
    for name in ("encoder", "unet"):
        old, new = getattr(before, name).state_dict(), getattr(after, name).state_dict()
        assert all(torch.equal(old[k], new[k]) for k in old)
        assert not any(p.requires_grad for p in getattr(stage, name).parameters())
    old, new = before.decoder.state_dict(), after.decoder.state_dict()
    assert any(not torch.equal(old[k], new[k]) for k in old)


def test_a_perceptual_loss_without_weights_is_refused(pictures, tmp_path):
    args = [
        "--preset",
        "smoke",
        "--data",
        str(pictures),
        "--run",
        str(tmp_path / "r"),
        "--set",
        "loop.precision=fp32",
    ]
    result = CliRunner().invoke(main, [*args, "--set", 'decoder-x2.loss={"lpips_alex": 1}'])
    assert result.exit_code == 1
    assert "lpips_alex" in result.output
    assert "--weights lpips_alex=FILE" in result.output


def test_command_line_changes_are_in_the_printed_config():
    args = ["--preset", "lite", "--steps", "7", "--set", "x4.batch=4", "--set", "loop.seed=9", "--dry-run"]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 0, result.output
    config = RunConfig.from_json(result.output)
    stages = {stage.name: stage for stage in config.stages}
    assert stages["x4"].batch == 4
    assert stages["x2"].batch == PRESETS["lite"].stages[1].batch
    assert {stage.steps for stage in config.stages} == {7}
    assert config.loop.seed == 9


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "give --preset"),
        (["--preset", "big"], "expected one of lite"),
        (["--preset", "lite"], "give --data"),
        (["--preset", "lite", "--set", "x4"], "STAGE.FIELD=VALUE"),
        (["--preset", "lite", "--set", "x3.batch=1"], "no stage 'x3'"),
        (["--preset", "lite", "--set", "x4.nonsense=1"], "nonsense"),
        (["--preset", "lite", "--set", "x4.crop_px=100"], "expected a multiple of 16"),
        (["--preset", "lite", "--set", "x4.degradation=fog"], "fog"),
        (["--preset", "lite", "--set", "x4.batch=0"], "batch got 0"),
    ],
)
def test_command_line_mistakes_are_named(args, message):
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 2
    assert message in result.output


def test_a_run_folder_of_another_architecture_is_refused(pictures, tmp_path):
    Run(SMOKE, tmp_path, data=str(pictures), weights={})
    other = dataclasses.replace(
        SMOKE, architecture=dataclasses.replace(SMOKE.architecture, latent_channels=8)
    )
    with pytest.raises(ValueError, match="started with architecture"):
        Run(other, tmp_path, data=str(pictures), weights={})


def test_adaptive_gan_weight_gives_the_gradient_of_the_weighted_sum(pictures):
    from yonos_train.adversarial import adaptive_weight, hinge_generator
    from yonos_train.decoder_stage import DecoderStage, shifted
    from yonos_train.losses import gradient_l1

    torch.manual_seed(0)
    bundle = new_bundle(BundleConfig("tiny", 2, SMOKE.architecture))
    for p in bundle.decoder.parameters():
        torch.nn.init.normal_(p, std=0.1)
    config = StageConfig("d", "decoder", 2, steps=1, batch=2, crop_px=64, loss={"gan": 0.5, "disc_width": 4})
    stage = DecoderStage(config, bundle, weights={})
    batch = Crops(ImageFolder(pictures, smallest_px=64), CropConfig(64), seed=3).batch(0, 2)
    loss, logs = stage.loss("decoder", batch, generator(1), 0)
    bundle.decoder.zero_grad()
    loss.backward()
    got = [p.grad.clone() for p in bundle.decoder.parameters()]

    z_0, _ = stage.one_step(batch, generator(1))
    y = bundle.decoder(z_0)
    rec = (y - batch.x_h).abs().mean() + 0.3 * gradient_l1(y, batch.x_h)
    rng = generator(1)
    stage.one_step(batch, rng)  # the offset is drawn after the noise
    (seen,) = shifted(4, rng, y)
    gan = hinge_generator(stage.discriminator(seen))
    weight = adaptive_weight(rec, gan, bundle.decoder.conv_out.weight)
    bundle.decoder.zero_grad()
    (rec + 0.5 * weight * gan).backward()
    assert logs["gan_weight"] == pytest.approx(float(weight), rel=0.05)  # the spectral norm moves a little
    for a, b in zip(got, (p.grad for p in bundle.decoder.parameters()), strict=True):
        assert (a - b).norm() <= 0.05 * b.norm() + 1e-7


def test_perceptual_losses_see_every_phase_of_the_decoders_blocks():
    from yonos_train.decoder_stage import shifted

    x = torch.arange(2 * 3 * 12 * 16, dtype=torch.float32).reshape(2, 3, 12, 16)
    corners = set()
    rng = torch.Generator().manual_seed(0)
    for _ in range(300):
        a, b = shifted(4, rng, x, -x)
        assert a.shape == (2, 3, 9, 13)
        assert torch.equal(a, -b)  # both from the same place
        corners.add(a[0, 0, 0, 0].item())
    assert corners == {float(16 * top + left) for top in range(4) for left in range(4)}
    (same,) = shifted(1, rng, x)
    assert torch.equal(same, x)


@pytest.mark.data
def test_a_pattern_of_alexnets_stride_costs_alike_wherever_it_lies(data_dir):
    """Seen at one phase, AlexNet's strided first layer rates one pattern differently by where it starts."""
    from yonos_train.decoder_stage import shifted
    from yonos_train.losses import Lpips

    path = data_dir / "weights" / "lpips_alex.safetensors"
    pictures = sorted((data_dir / "train" / "images").glob("*"))
    if not path.is_file() or not pictures:
        pytest.skip(f"{path} or training pictures are not there")
    crop = np.array(Image.open(pictures[3]).convert("RGB").crop((100, 100, 228, 228)))
    x = torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 127.5 - 1
    lpips = Lpips("alex", path)
    fixed, moved = [], []
    for phase in range(4):
        y = x.clone()
        y[..., phase::4] += 0.1
        rng = torch.Generator().manual_seed(1)
        fixed.append(lpips(y, x).item())
        moved.append(np.mean([lpips(*shifted(4, rng, y, x)).item() for _ in range(32)]))
    assert max(fixed) / min(fixed) > 1.1
    assert max(moved) / min(moved) < 1.05


def test_discriminator_and_decoder_share_one_output_a_step(pictures):
    from yonos_train.stages import DecoderStage

    torch.manual_seed(0)
    bundle = new_bundle(BundleConfig("tiny", 2, SMOKE.architecture))
    config = StageConfig("d", "decoder", 2, steps=1, batch=2, crop_px=64, loss={"gan": 0.5, "disc_width": 4})
    stage = DecoderStage(config, bundle, weights={})
    calls = []
    bundle.decoder.register_forward_hook(lambda *_: calls.append(1))
    crops = Crops(ImageFolder(pictures, smallest_px=64), CropConfig(64), seed=3)
    for step, expected in ((0, 1), (1, 2)):
        for group in stage.groups:
            loss, _ = stage.loss(group, crops.batch(step, 2), generator(step), step)
            loss.backward()
        assert len(calls) == expected
    assert any(p.grad.abs().sum() > 0 for p in bundle.decoder.parameters())
    # what the discriminator left of another batch or step is not used
    stage.loss("discriminator", crops.batch(2, 2), generator(2), 2)
    stage.loss("decoder", crops.batch(3, 2), generator(3), 2)
    assert len(calls) == 4
    stage.loss("discriminator", crops.batch(4, 2), generator(2), 4)
    stage.loss("decoder", crops.batch(4, 2), generator(3), 5)
    assert len(calls) == 6


# One step through the picture, from a shipped model


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_a_shipped_model_read_back_gives_the_same_pictures(scale):
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from yonos_train.engine_weights import load_start

    bundle = load_start("lite-x{scale}", scale)
    root = Path(__file__).parents[1] / "yonos_trt" / "models" / f"lite-x{scale}"
    sessions = {s: ort.InferenceSession(root / f"{s}.onnx") for s in ("encoder", "step", "decoder")}
    torch.manual_seed(0)
    x = torch.rand(1, 3, 64, 96) * 2 - 1
    with torch.inference_mode():
        z_l = bundle.encoder(x)
        noise = torch.randn_like(z_l)
        z_0 = -bundle.unet(torch.cat([noise, z_l], 1), torch.ones(1))
        y = bundle.decoder(z_0)
    (onnx_l,) = sessions["encoder"].run(None, {"image": x.numpy()})
    (onnx_0,) = sessions["step"].run(None, {"noise": noise.numpy(), "z_l": onnx_l})
    (onnx_y,) = sessions["decoder"].run(None, {"z_0": onnx_0})
    for ours, theirs in ((z_l, onnx_l), (z_0, onnx_0), (y, onnx_y)):
        np.testing.assert_allclose(ours.numpy(), theirs, atol=5e-5)


def test_a_start_that_does_not_fit_is_refused(tmp_path):
    pytest.importorskip("onnx")
    from yonos_train.engine_weights import load_start, require_times

    with pytest.raises(ValueError, match="its scale is 2, expected 4"):
        load_start("lite-x2", 4)
    with pytest.raises(FileNotFoundError, match="nothing-x4: got neither a bundle"):
        load_start("nothing-x{scale}", 4)
    with pytest.raises(ValueError, match="lite-x2: an exported model knows t = 1 only"):
        require_times("lite-x{scale}", 2)


def test_a_start_with_altered_weights_is_refused(tmp_path):
    """What nothing vouches for is not trained from either."""
    pytest.importorskip("onnx")
    import shutil

    from yonos_train.engine_weights import load_start

    shutil.copytree(Path(__file__).parents[1] / "yonos_trt" / "models" / "lite-x4", tmp_path / "mine")
    graph = tmp_path / "mine" / "step.onnx"
    raw = bytearray(graph.read_bytes())
    raw[len(raw) // 2] ^= 1
    graph.write_bytes(raw)
    with pytest.raises(ValueError, match=r"step\.onnx was altered"):
        load_start(tmp_path / "mine", 4)


@pytest.mark.parametrize("more", [{}, {"adversarial": "relativistic", "r1": 1.0, "r2": 0.5, "tiles": 10}])
def test_one_step_pixels_trains_all_three_networks_from_a_shipped_model(pictures, tmp_path, more):
    pytest.importorskip("onnx")
    from yonos_train.engine_weights import load_start

    stage = StageConfig(
        "pixels-x4",
        "one_step_pixels",
        4,
        steps=2,
        batch=2,
        crop_px=64,
        degradation={"bicubic": 0.5, "camera": 0.5},
        loss={"gan": 0.1, "disc_width": 4, **more},
    )
    loop = LoopConfig(precision="fp32", log_steps=1, sample_steps=0)
    config = RunConfig(name="tuned", start="lite-x{scale}", loop=loop, stages=(stage,))
    config = RunConfig.from_json(config.to_json())
    Run(config, tmp_path, data=str(pictures), weights={}).run()
    tuned, start = load_bundle(tmp_path / "bundles" / "tuned-x4"), load_start("lite-x4", 4)
    assert tuned.config.training["start"] == {"model": "lite-x4"}
    assert tuned.config.architecture == start.config.architecture
    for name in ("encoder", "unet", "decoder"):
        old, new = getattr(start, name).state_dict(), getattr(tuned, name).state_dict()
        moved = [k for k in old if "conv1.weight" in k and not torch.equal(old[k], new[k])]
        assert moved, name
    log = tmp_path / "pixels-x4" / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    for name in ("r1", "r2", "tiles"):
        assert all((row.get(name, 0) > 0) == (name in more) for row in rows), name


def one_step_pixels(loss, *, crop_px=128):
    from yonos_train.decoder_stage import OneStepPixelsStage

    torch.manual_seed(0)
    config = StageConfig("p", "one_step_pixels", 4, steps=1, batch=2, crop_px=crop_px, loss=loss)
    return OneStepPixelsStage(config, new_bundle(BundleConfig("tiny", 4, SMOKE.architecture)), weights={})


def test_tile_loss_measures_what_a_cut_changes_as_the_run_time_weights_it():
    stage = one_step_pixels({"tiles": 1})
    stage.latent = lambda x_l, _: x_l.repeat_interleave(4, -1).repeat_interleave(4, -2)
    rng = torch.Generator().manual_seed(0)
    x_l, noise = torch.rand(4, 3, 32, 32, generator=rng), torch.rand(4, 3, 128, 128, generator=rng)
    local = lambda z, noise: z + noise  # noqa: E731  (a picture that no cut changes)
    sides = lambda z, noise: z + noise + 0.01 * z.shape[-1] + 0.02 * z.shape[-2]  # noqa: E731
    ramp = (sum(((i + 0.5) / 64) ** 2 for i in range(64)) + 32) / 96
    seen = set()
    for _ in range(20):
        for decoded, cuts in ((local, (0.0,)), (sides, (0.32, 0.64))):
            stage._decoded = decoded
            stage._whole = (x_l, noise, decoded(stage.latent(x_l, None), noise))
            got = stage._tile_difference(rng).item()
            near = [cut for cut in cuts if got == pytest.approx(cut * ramp**0.5, abs=2e-5)]
            assert near, got
            seen.update(near)
    assert seen == {0.0, 0.32, 0.64}


def test_tile_loss_forgives_at_the_cut_alone():
    """A network that errs by 100 at every border: only the pixels at the cut differ, at the ramp's foot."""
    stage = one_step_pixels({"tiles": 1})
    stage.latent = lambda x_l, _: x_l.repeat_interleave(4, -1).repeat_interleave(4, -2)

    def decoded(z, noise):
        y = z + noise
        for axis in (-1, -2):
            for end in (0, y.shape[axis] - 1):
                y.narrow(axis, end, 1).add_(100)
        return y

    stage._decoded = decoded
    rng = torch.Generator().manual_seed(0)
    x_l, noise = torch.rand(4, 3, 32, 32, generator=rng), torch.rand(4, 3, 128, 128, generator=rng)
    for _ in range(20):
        stage._whole = (x_l, noise, decoded(stage.latent(x_l, None), noise))
        assert stage._tile_difference(rng).item() == pytest.approx(100 * 0.5 / 64 / 96**0.5, rel=1e-3)


@pytest.mark.parametrize("kind", ["hinge", "relativistic"])
def test_stage_plays_the_adversary_it_is_told_and_counts_the_penalties(pictures, kind):
    from yonos_train import adversarial

    loss = {"gan": 1, "disc_width": 4, "adversarial": kind, "r1": 2.0, "r2": 6.0, "shift": 1}
    stage = one_step_pixels(loss, crop_px=64)
    for module in (stage.discriminator, *stage.groups["generator"].values()):
        for weight_of in module.requires_grad_(True).parameters():
            torch.nn.init.normal_(weight_of, std=0.1)
    batch = Crops(ImageFolder(pictures, smallest_px=64), CropConfig(64), seed=3).batch(0, 2)
    real, (fake, _) = batch.x_h, stage._pictures(batch, generator(1))
    d, logs = stage.loss("discriminator", batch, generator(1), 0)
    of_real, of_fake = stage.discriminator(real), stage.discriminator(fake)
    expected = getattr(adversarial, f"{kind}_discriminator")(of_real, of_fake)
    assert logs["disc"] == pytest.approx(expected.item(), rel=1e-3)
    assert min(logs["r1"], logs["r2"]) > 1e-3 * logs["disc"]
    assert d.item() == pytest.approx(logs["disc"] + logs["r1"] + 3 * logs["r2"], rel=1e-4)
    _, logs = stage.loss("generator", batch, generator(1), 0)
    both = (of_real, of_fake) if kind == "relativistic" else (of_fake,)
    expected = getattr(adversarial, f"{kind}_generator")(*both)
    assert logs["gan"] == pytest.approx(expected.item(), rel=1e-3)


def test_tile_loss_reaches_the_networks_and_goes_with_a_discriminator(pictures):
    batch = Crops(ImageFolder(pictures, smallest_px=64), CropConfig(64), seed=3).batch(0, 2)
    made = {}
    for gan in (0, 0.1):
        for weight in (0, 3):
            stage = one_step_pixels({"tiles": weight, "gan": gan, "disc_width": 4}, crop_px=64)
            torch.manual_seed(1)
            for module in stage.groups["generator"].values():
                for weight_of in module.requires_grad_(True).parameters():  # as the trainer does
                    torch.nn.init.normal_(weight_of, std=0.1)  # new networks end in zeros
            loss, logs = stage.loss("generator", batch, generator(1), 0)
            loss.backward()
            made[gan, weight] = loss.item(), stage.encoder.conv_in.weight.grad.clone()
        difference = logs["tiles"]
        assert difference > 1e-3
        assert made[gan, 3][0] == pytest.approx(made[gan, 0][0] + 3 * difference, rel=1e-3)
        assert not torch.allclose(made[gan, 3][1], made[gan, 0][1], rtol=1e-2)


def test_discriminator_learns_alone_for_its_lead(pictures):
    batch = Crops(ImageFolder(pictures, smallest_px=64), CropConfig(64), seed=3).batch(0, 2)
    stage = one_step_pixels({"gan": 1, "disc_width": 4, "disc_start": 1, "disc_lead": 2}, crop_px=64)
    for step in range(5):
        learns = "disc" in stage.loss("discriminator", batch, generator(1), step)[1]
        counts = "gan" in stage.loss("generator", batch, generator(1), step)[1]
        assert (learns, counts) == (step >= 1, step >= 3)


@pytest.mark.parametrize("kind", ["decoder", "one_step_pixels"])
def test_truth_is_as_soft_as_asked_for_each_kind(pictures, kind):
    from yonos_train import decoder_stage
    from yonos_train.degrade import drawn_kind

    mix = {"lens": 0.4, "camera": 0.3, "bicubic": 0.3}
    batch = Crops(ImageFolder(pictures, smallest_px=64), CropConfig(64), seed=3).batch(0, 12)
    kinds = [drawn_kind(mix, seed) for seed in batch.seeds]
    assert set(kinds) == set(mix)
    stages = {"decoder": decoder_stage.DecoderStage, "one_step_pixels": decoder_stage.OneStepPixelsStage}
    asked = {"lens": 1.0, "camera": 0.6}
    truths, losses = [], []
    for more in ({}, {"truth_blur": asked}):
        torch.manual_seed(0)
        loss = {"gradient": 0, **more}
        config = StageConfig("p", kind, 4, steps=1, batch=12, crop_px=64, degradation=mix, loss=loss)
        stage = stages[kind](config, new_bundle(BundleConfig("tiny", 4, SMOKE.architecture)), weights={})
        made, truth = stage._pictures(batch, generator(1))
        truths.append(truth)
        losses.append(stage.loss(next(iter(stage.groups)), batch, generator(1), 0)[0].item())
        assert losses[-1] == pytest.approx((made - truth).abs().mean().item(), rel=1e-4)
    assert torch.equal(truths[0], batch.x_h)
    assert losses[0] != losses[1]
    for sharp, soft, drawn in zip(batch.x_h, truths[1], kinds, strict=True):
        if sigma := asked.get(drawn):
            expected = ndimage.gaussian_filter(sharp.numpy(), (0, sigma, sigma), radius=math.ceil(3 * sigma))
            np.testing.assert_allclose(soft.numpy(), expected, atol=1e-5)
            assert (soft - sharp).abs().max() > 0.02
        else:
            assert torch.equal(soft, sharp)


def test_stage_refuses_adversaries_and_crops_that_it_cannot_use():
    with pytest.raises(ValueError, match=r"adversarial got 'wgan', expected one of hinge, relativistic"):
        one_step_pixels({"gan": 0.1, "adversarial": "wgan"})
    with pytest.raises(ValueError, match=r"crop_px got 16; the loss tiles .* needs at least"):
        one_step_pixels({"tiles": 1}, crop_px=16)
    for wrong in ({"lense": 1.0}, {"mixed": 1.0}, {"lens": -1}, {"lens": math.nan}):
        with pytest.raises(ValueError, match=r"truth_blur got '\w+': \S+, expected a sigma .* lens, camera"):
            one_step_pixels({"truth_blur": wrong})
    from yonos_train.decoder_stage import SmallDecoderStage

    bundle = new_bundle(BundleConfig("tiny", 4, SMOKE.architecture))
    config = StageConfig("s", "small_decoder", 4, steps=1, crop_px=64, loss={"truth_blur": {"lens": 1.0}})
    with pytest.raises(ValueError, match=r"truth_blur got .* what the large decoder makes"):
        SmallDecoderStage(config, bundle, weights={})


def test_automatic_precision_is_bfloat16_only_where_it_is_computed(monkeypatch):
    from yonos_train.loop import fast_precision

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert fast_precision("cpu") == "fp32"
    assert fast_precision("cuda") == "bf16"
    for instructions in ("avx512_bf16", "amx_bf16"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda name=instructions: {name: True})
        assert fast_precision("cpu") == "bf16"


def test_gradients_of_many_parameters_are_averaged_in_few_reductions(monkeypatch):
    from types import SimpleNamespace

    from yonos_train import loop

    made = []

    def reduce(vector, reduction):
        made.append((vector.dtype, vector.numel()))
        return vector / 2

    shapes = [(3, 2, 3, 3), (3,), (4, 3, 1, 1), (4,), (50,), ()]
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    params += [torch.nn.Parameter(torch.zeros(5, dtype=torch.float64)), torch.nn.Parameter(torch.zeros(7))]
    for p in params[:-1]:  # the last has no gradient
        p.grad = torch.randn(p.shape, dtype=p.dtype)
    params[0].grad = params[0].grad.to(memory_format=torch.channels_last)
    before = [p.grad.clone() for p in params[:-1]]
    loop.average_gradients(params, SimpleNamespace(reduce=reduce))
    assert made == [(torch.float32, 54 + 3 + 12 + 4 + 50 + 1), (torch.float64, 5)]
    assert all(torch.equal(p.grad, old / 2) for p, old in zip(params[:-1], before, strict=True))
    assert params[0].grad.is_contiguous(memory_format=torch.channels_last)
    assert params[-1].grad is None
    made.clear()
    monkeypatch.setattr(loop, "_BUCKET", 60)  # whole gradients, one of 54 and one that is larger than it
    params[4] = torch.nn.Parameter(torch.zeros(100))
    params[4].grad = torch.ones(100)
    loop.average_gradients(params, SimpleNamespace(reduce=reduce))
    assert [size for _, size in made] == [57, 16, 100, 1, 5]
    assert torch.equal(params[4].grad, torch.full((100,), 0.5))
