"""The encoder stage: from a run to a second bundle, to an engine directory, to a picture."""

# ruff: noqa: E402  (imports follow the skip for installations without torch)

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from click.testing import CliRunner
from torch import nn
from yonos_train.cli import main
from yonos_train.data import Crops, ImageFolder, generator
from yonos_train.model import Bundle, BundleConfig, load_bundle, new_bundle, save_bundle
from yonos_train.presets import PRESETS, RunConfig
from yonos_train.run import Run
from yonos_train.schedule import ddim
from yonos_train.stages import EncoderStage, StageConfig
from yonos_train.upscalers import BundleUpscaler

SMOKE = PRESETS["smoke"]
FEW: dict[str, Any] = {"steps": 2, "batch": 2, "crop_px": 64, "degradation": "bicubic"}
AUTOENCODER, X4, DECODER, ENCODER = (
    StageConfig("autoencoder", "autoencoder", **FEW),
    StageConfig("x4", "diffusion", 4, **FEW),
    StageConfig("decoder-x4", "decoder", 4, **FEW),
    StageConfig("encoder-x4", "encoder", 4, **FEW),
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for index in range(2):
        noise = rng.uniform(0, 255, (12, 10, 3)).astype(np.uint8)
        Image.fromarray(noise).resize((100, 120), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return folder


def config(*stages: StageConfig) -> RunConfig:
    loop = dataclasses.replace(SMOKE.loop, precision="fp32", sample_steps=0)
    return dataclasses.replace(SMOKE, stages=stages, loop=loop)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def run_folder(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run = Run(config(AUTOENCODER, X4, DECODER, ENCODER), folder, data=str(pictures), weights={})
    run.run(("autoencoder", "x4", "decoder-x4"))
    before = files(folder / "bundles" / "smoke-x4")
    assert not (folder / "bundles" / "smoke-x4-lr").exists()
    run.run()
    assert files(folder / "bundles" / "smoke-x4") == before
    return folder


def opinionated(bundle: Bundle) -> Bundle:
    """Two steps leave most layers at their initial zero; give every one something to do."""
    torch.manual_seed(1)
    for module in (bundle.encoder, bundle.unet, bundle.decoder):
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.1)
    return bundle


def test_an_encoder_stage_writes_a_second_bundle(run_folder: Path) -> None:
    plain, lr = (load_bundle(run_folder / "bundles" / name) for name in ("smoke-x4", "smoke-x4-lr"))
    assert (plain.config.name, plain.config.encoder_input) == ("smoke-x4", "upsampled")
    assert (lr.config.name, lr.config.encoder_input) == ("smoke-x4-lr", "lr")
    assert "encoder-x4" not in plain.config.training["stages"]
    assert list(lr.config.training["stages"]) == ["autoencoder", "x4", "decoder-x4", "encoder-x4"]
    for name in ("unet", "decoder"):
        ours, theirs = getattr(plain, name).state_dict(), getattr(lr, name).state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    x_l = torch.rand(1, 3, 16, 24)
    assert lr.encoder(x_l).shape == plain.encoder(torch.rand(1, 3, 64, 96)).shape


def test_a_decoder_stage_after_an_encoder_stage_renews_both_bundles(pictures: Path, tmp_path: Path) -> None:
    """The decoder is trained on the canvas encoder's latents, not on those of the LR encoder."""
    run = Run(config(AUTOENCODER, X4, ENCODER, DECODER), tmp_path, data=str(pictures), weights={})
    run.run()
    plain, lr = (load_bundle(tmp_path / "bundles" / name) for name in ("smoke-x4", "smoke-x4-lr"))
    trained = run.bundle(4).decoder.state_dict()
    for bundle in (plain, lr):
        assert all(torch.equal(value, trained[key]) for key, value in bundle.decoder.state_dict().items())


def test_a_decoder_stage_sets_the_filter_for_every_bundle_of_its_scale(
    pictures: Path, tmp_path: Path
) -> None:
    filtered = dataclasses.replace(DECODER, network={"decoder_anti_imaging": True})
    again = dataclasses.replace(filtered, name="decoder-x8", scale=8, init="decoder-x4", network={})
    run = Run(config(AUTOENCODER, X4, filtered, ENCODER, again), tmp_path, data=str(pictures), weights={})
    run.run()
    for name, expected in (("smoke-x4", True), ("smoke-x4-lr", True), ("smoke-x8", False)):
        bundle = load_bundle(tmp_path / "bundles" / name)
        assert bundle.config.architecture.decoder_anti_imaging is expected
        assert bundle.decoder.anti_imaging is expected
    stages = load_bundle(tmp_path / "bundles" / "smoke-x4").config.training["stages"]
    assert stages["decoder-x4"]["network"] == {"decoder_anti_imaging": True}


def test_a_filter_that_cannot_be_is_refused_before_anything_is_trained() -> None:
    filtered = dataclasses.replace(DECODER, network={"decoder_anti_imaging": True})
    with pytest.raises(
        ValueError, match="stage decoder-x4: network got decoder_anti_imaging, expected nothing"
    ):
        dataclasses.replace(SMOKE, base="folder", stages=(X4, filtered))
    coarse = dataclasses.replace(SMOKE.architecture, latent_factor=8)
    with pytest.raises(ValueError, match="latent_factor 8, expected 2 or 4"):
        dataclasses.replace(SMOKE, architecture=coarse, stages=(AUTOENCODER, X4, filtered))


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_only_the_lr_encoder_learns_and_it_learns_its_target(pictures: Path, scale: int) -> None:
    torch.manual_seed(0)
    bundle = opinionated(new_bundle(BundleConfig("tiny", scale, SMOKE.architecture)))
    frozen = [v.clone() for m in (bundle.encoder, bundle.unet, bundle.decoder) for v in m.parameters()]
    stage = EncoderStage(dataclasses.replace(ENCODER, scale=scale, loss={"step": 0.5}), bundle)
    known = bundle.encoder.get_submodule("blocks").state_dict()
    started = stage.lr_encoder.get_submodule("blocks").state_dict()
    assert all(torch.equal(started[key], value) for key, value in known.items())
    batch = Crops(ImageFolder(pictures, smallest_px=64), dataclasses.replace(SMOKE.crops, crop_px=64), seed=3)
    optimiser = torch.optim.Adam(stage.lr_encoder.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss, logs = stage.loss("encoder", batch.batch(0, 2), generator(1), 0)
        assert loss.item() == pytest.approx(logs["latent"] + 0.5 * logs["after_step"], rel=1e-5)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    now = [p for m in (bundle.encoder, bundle.unet, bundle.decoder) for p in m.parameters()]
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(frozen, now, strict=True))


def test_evaluation_accepts_the_lr_bundle(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "set" / "HR").mkdir(parents=True)
    picture = np.random.default_rng(1).integers(0, 255, (60, 52, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "set" / "HR" / "a.png")
    words = [
        "eval",
        "--data",
        str(tmp_path),
        "--scale",
        "4",
        "--metrics",
        "psnr_y",
        "-o",
        str(tmp_path / "r"),
    ]
    result = CliRunner().invoke(main, [*words, "--model", f"lr={run_folder / 'bundles' / 'smoke-x4-lr'}"])
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {"bicubic", "lr"}
    assert all(np.isfinite(row["psnr_y"]) for row in rows)


def test_the_sdk_upscales_with_the_exported_lr_bundle_as_torch_does(run_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from yonos_export import ExportConfig
    from yonos_export.exporter import export

    import yonos_trt
    from yonos_trt.tiles import noise

    bundle = opinionated(load_bundle(run_folder / "bundles" / "smoke-x4-lr"))
    save_bundle(bundle, tmp_path / "bundle")
    manifest = export(ExportConfig(tmp_path / "bundle", tmp_path / "engines"))
    assert manifest is not None
    assert manifest.tiles.encoder_input == "lr"

    lr = np.random.default_rng(2).integers(0, 255, (13, 18, 3), np.uint8)
    with yonos_trt.SR(tmp_path / "engines", color_fix="none", seed=5) as sr:
        ours = sr.upscale(lr)
    padded = np.pad(lr, ((0, 3), (0, 0), (0, 0)), mode="symmetric")  # to the smallest tile, 64 px
    with torch.inference_mode():
        x_l = torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 127.5 - 1
        z_l = bundle.encoder(x_l)
        field = noise.field(5, channels=4, y0_lat=0, x0_lat=0, h_lat=z_l.shape[2], w_lat=z_l.shape[3])
        z_0 = ddim(bundle.unet, bundle.schedule, z_l, torch.from_numpy(field)[None])
        expected = ((bundle.decoder(z_0)[0].clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).numpy()[:52, :72]
    assert ours.shape == (52, 72, 3)
    assert expected.std() > 5
    assert np.abs(ours.astype(np.float32) - expected).max() < 0.6


def test_an_encoder_stage_takes_no_init() -> None:
    with pytest.raises(
        ValueError, match=r"init got 'x4'.*encoder stages start from the networks they distil"
    ):
        dataclasses.replace(ENCODER, init="x4")


def test_the_upscaler_makes_its_step_at_the_bundles_time(run_folder: Path) -> None:
    """``timestep`` is where a network with a dial is asked; time and coefficients follow it."""
    bundle = opinionated(load_bundle(run_folder / "bundles" / "smoke-x4"))
    lr = np.random.default_rng(2).integers(0, 255, (16, 16, 3), np.uint8)
    at_one = BundleUpscaler(bundle, seed=3)(lr)
    bundle.config = dataclasses.replace(bundle.config, timestep=0.6)
    dialled = BundleUpscaler(bundle, seed=3)(lr)
    with torch.inference_mode():
        x_l = torch.from_numpy(lr).permute(2, 0, 1)[None].float() / 127.5 - 1
        z_l = bundle.encoder(nn.functional.interpolate(x_l, scale_factor=4, mode="bicubic", antialias=True))
        z_1 = torch.randn(z_l.shape, generator=torch.Generator().manual_seed(3))
        v = bundle.unet(torch.cat([z_1, z_l], 1), torch.tensor([0.6]))
        image = bundle.decoder(bundle.schedule.alpha(0.6) * z_1 - bundle.schedule.sigma(0.6) * v)
    expected = ((image[0].clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).numpy()
    assert np.abs(dialled.astype(np.float32) - expected).max() < 0.6
    assert np.abs(dialled.astype(np.float32) - at_one).max() > 2
