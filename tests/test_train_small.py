"""Small networks: a decoder distilled in either profile, both kinds in a diffusers autoencoder's place."""

# ruff: noqa: E402  (imports follow the skip for installations without torch)

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("diffusers")

from click.testing import CliRunner
from export_models import small_sd_folder
from helpers import write_training_pictures
from safetensors.torch import save_file
from torch import nn
from yonos_train.cli import main
from yonos_train.data import Batch, generator
from yonos_train.decoder_stage import last_layer
from yonos_train.loop import LoopConfig
from yonos_train.losses import lpips_shapes
from yonos_train.model import Bundle, BundleConfig, Decoder, Encoder, load_bundle, new_bundle
from yonos_train.presets import PRESETS, RunConfig
from yonos_train.run import Run
from yonos_train.schedule import ddim
from yonos_train.sd import SdDecoder, SdEncoder, SdFolderError
from yonos_train.sd_folder import load_sd
from yonos_train.small import save_small, with_small
from yonos_train.stage import Logs
from yonos_train.stages import DecoderStage, EncoderStage, SmallDecoderStage, Stage, StageConfig

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SMOKE = PRESETS["smoke"]
FEW: dict[str, Any] = {"steps": 2, "batch": 1, "crop_px": 64, "degradation": "bicubic"}
SIZES = {"decoder_width": 6, "decoder_blocks": 2, "decoder_fine_width": 4, "decoder_fine_blocks": 1}
SMALL = StageConfig("small", "small_decoder", 4, network=SIZES, **FEW)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_sd_folder(tmp_path_factory.mktemp("sd") / "tiny-sd")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_training_pictures(tmp_path_factory.mktemp("pictures"), 2)


@pytest.fixture(scope="module")
def run_folder(base: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    config = RunConfig(
        name="tiny",
        base=str(base),
        loop=LoopConfig(precision="fp32", log_steps=1, sample_steps=2),
        stages=(
            StageConfig("x4", "diffusion", 4, **FEW),
            StageConfig("decoder-x4", "decoder", 4, loss={"l1": 1.0}, **FEW),
            StageConfig("encoder-x4", "encoder", 4, network={"encoder_width": 12}, **FEW),
            SMALL,
        ),
    )
    assert RunConfig.from_json(config.to_json()) == config
    Run(config, folder, data=str(pictures), weights={}).run()
    return folder


def batch() -> Batch:
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 8, 8, generator=g) * 2 - 1
    return Batch(nn.functional.interpolate(coarse, size=64, mode="bicubic").clamp(-1, 1), (1, 2))


def fit(stage: Stage, group: str, *, steps: int) -> tuple[Logs, Logs]:
    """Train `group` on one batch; return what the first and the last step logged."""
    parameters = [p for module in stage.groups[group].values() for p in module.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=1e-2)
    seen = []
    for _ in range(steps):
        loss, logs = stage.loss(group, batch(), generator(1), 0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        seen.append(logs)
    return seen[0], seen[-1]


def bundles(profile: str, base: Path) -> Bundle:
    if profile == "sd":
        return load_sd(base, 4)
    torch.manual_seed(0)
    bundle = new_bundle(BundleConfig("tiny", 4, SMOKE.architecture))
    for module in (bundle.encoder, bundle.unet, bundle.decoder):
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.1)
    return bundle


@pytest.mark.parametrize("profile", ["lite", "sd"])
def test_the_small_decoder_alone_learns_what_the_large_one_makes(profile: str, base: Path) -> None:
    bundle = bundles(profile, base)
    frozen = [v.clone() for m in (bundle.encoder, bundle.unet, bundle.decoder) for v in m.parameters()]
    stage = SmallDecoderStage(SMALL, bundle, weights={})
    assert isinstance(stage.decoder, Decoder)
    assert len(stage.decoder.blocks) == 2
    z_0, _ = stage.one_step(batch(), generator(1))
    with torch.no_grad():
        truth = bundle.decoder(z_0).clamp(-1, 1)
        _, logs = stage.loss("decoder", batch(), generator(1), 0)
        assert logs["l1"] == pytest.approx((stage.decoder(z_0) - truth).abs().mean().item(), rel=1e-4)
    first, last = fit(stage, "decoder", steps=40)
    assert last["l1"] < 0.75 * first["l1"]
    now = [p for m in (bundle.encoder, bundle.unet, bundle.decoder) for p in m.parameters()]
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(frozen, now, strict=True))


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_an_lr_encoder_learns_a_diffusers_autoencoders_latents(scale: int, base: Path) -> None:
    bundle = load_sd(base, scale)
    config = StageConfig("e", "encoder", scale, network={"encoder_width": 24}, loss={"step": 0.0}, **FEW)
    stage = EncoderStage(config, bundle)
    first, last = fit(stage, "encoder", steps=60)
    assert list(last) == ["latent"]  # without the weight the U-Net is not run
    assert last["latent"] < 0.3 * first["latent"]


def test_an_sd_run_leaves_the_whole_folder_and_one_with_small_networks(run_folder: Path) -> None:
    names = sorted(path.name for path in (run_folder / "bundles").iterdir())
    assert names == ["tiny-x4", "tiny-x4-lr", "tiny-x4-lr-small"]
    plain, small = (load_sd(run_folder / "bundles" / name, 4) for name in (names[0], names[2]))
    assert isinstance(plain.encoder, SdEncoder)
    assert isinstance(plain.decoder, SdDecoder)
    assert isinstance(small.encoder, Encoder)
    assert isinstance(small.decoder, Decoder)
    assert (plain.config.encoder_input, small.config.encoder_input) == ("upsampled", "lr")
    assert small.config.name == "tiny-x4-lr-small"
    facts = small.config.training["stages"]
    assert list(facts) == ["x4", "decoder-x4", "encoder-x4", "small"]
    assert facts["small"]["network"] == SIZES
    assert list(plain.config.training["stages"]) == ["x4", "decoder-x4"]
    theirs = small.unet.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in plain.unet.state_dict().items())
    # A later run starts from the autoencoder itself, which is there in full.
    whole = load_sd(run_folder / "bundles" / names[2], 4, small=False)
    decoder = whole.decoder.state_dict()
    assert all(torch.equal(v, decoder[k]) for k, v in plain.decoder.state_dict().items())


def test_variants_of_an_sd_run_store_the_same_weights_once(run_folder: Path) -> None:
    plain, *variants = (run_folder / "bundles" / f"tiny-x4{suffix}" for suffix in ("", "-lr", "-lr-small"))
    for variant in variants:
        for part in ("unet", "vae"):
            weights = f"{part}/diffusion_pytorch_model.safetensors"
            assert (variant / weights).samefile(plain / weights)
        assert not (variant / "yonos.json").samefile(plain / "yonos.json")


def test_the_exporter_takes_the_small_networks(run_folder: Path) -> None:
    exporter = pytest.importorskip("yonos_export.families.sd")
    folder = run_folder / "bundles" / "tiny-x4-lr-small"
    bundle, stages = load_sd(folder, 4), exporter.load_diffusers_stages(folder)
    assert stages.info.tiles.encoder_input == "lr"
    other = exporter.load_diffusers_stages(run_folder / "bundles/tiny-x4")
    assert stages.info.model.weights_sha256 != other.info.model.weights_sha256
    x_l = torch.rand(1, 3, 32, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        z_l = bundle.encoder(x_l)
        noise = torch.randn(z_l.shape, generator=torch.Generator().manual_seed(1))
        z_0 = ddim(bundle.unet, bundle.schedule, z_l, noise)
        torch.testing.assert_close(stages.encoder(x_l), z_l)
        torch.testing.assert_close(stages.step(noise, z_l), z_0, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(stages.decoder(z_0), bundle.decoder(z_0))


def test_sdk_and_evaluation_agree_on_the_exported_small_networks(run_folder: Path, tmp_path: Path) -> None:
    """What `yonos-train eval` measures of the folder is what the product computes from it."""
    pytest.importorskip("onnxruntime")
    from yonos_export import ExportConfig
    from yonos_export.exporter import export
    from yonos_train.metrics import as_tensor

    import yonos_trt
    from yonos_trt.tiles import noise

    folder = shutil.copytree(run_folder / "bundles" / "tiny-x4-lr-small", tmp_path / "model")
    facts = json.loads((folder / "yonos.json").read_text())
    facts.update(smallest_tile_px=64, tile_px=64, largest_tile_px=128, overlap_px=16)
    (folder / "yonos.json").write_text(json.dumps(facts))
    assert export(ExportConfig(folder, tmp_path / "engines")) is not None
    lr = np.random.default_rng(2).integers(0, 255, (16, 16, 3), np.uint8)  # one tile
    with yonos_trt.SR(tmp_path / "engines", color_fix="none", seed=5) as sr:
        ours = sr.upscale(lr)
    assert ours.shape == (64, 64, 3)
    (tmp_path / "dev" / "set" / "HR").mkdir(parents=True)
    Image.fromarray(ours).save(tmp_path / "dev" / "set" / "HR" / "a.png")
    words = ["eval", "--data", str(tmp_path / "dev"), "--scale", "4", "--metrics", "psnr_y", "--no-bicubic"]
    result = CliRunner().invoke(main, [*words, "--model", f"m={folder}", "-o", str(tmp_path / "r")])
    assert result.exit_code == 0, result.output
    assert np.isfinite(json.loads((tmp_path / "r.json").read_text())["rows"][0]["psnr_y"])
    bundle = load_sd(folder, 4)
    with torch.no_grad():
        z_l = bundle.encoder(as_tensor(lr))
        field = noise.field(5, channels=4, y0_lat=0, x0_lat=0, h_lat=z_l.shape[2], w_lat=z_l.shape[3])
        z_0 = ddim(bundle.unet, bundle.schedule, z_l, torch.from_numpy(field)[None])
        picture = bundle.decoder(z_0)
    expected = ((picture[0].clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert np.abs(expected - ours).max() <= 1


def test_a_lite_run_makes_a_bundle_with_a_smaller_decoder(pictures: Path, tmp_path: Path) -> None:
    stages = (
        StageConfig("autoencoder", "autoencoder", **FEW),
        StageConfig("x4", "diffusion", 4, **FEW),
        StageConfig("decoder-x4", "decoder", 4, loss={"l1": 1.0}, **FEW),
        SMALL,
        StageConfig("encoder-x4", "encoder", 4, **FEW),
    )
    loop = dataclasses.replace(SMOKE.loop, precision="fp32", sample_steps=0)
    config = dataclasses.replace(SMOKE, stages=stages, loop=loop)
    run = Run(config, tmp_path, data=str(pictures), weights={})
    run.run()
    small = load_bundle(tmp_path / "bundles" / "smoke-x4-small")
    both = load_bundle(tmp_path / "bundles" / "smoke-x4-lr-small")
    assert (small.config.encoder_input, both.config.encoder_input) == ("upsampled", "lr")
    for bundle in (small, both):
        assert bundle.config.architecture.decoder_width == 6
        state = run.small_bundle(4).decoder.state_dict()
        assert all(torch.equal(v, state[k]) for k, v in bundle.decoder.state_dict().items())
    assert load_bundle(tmp_path / "bundles" / "smoke-x4").config.architecture == SMOKE.architecture


def test_networks_for_another_scale_or_damaged_ones_are_refused(
    run_folder: Path, base: Path, tmp_path: Path
) -> None:
    folder = run_folder / "bundles" / "tiny-x4-lr-small"
    with pytest.raises(SdFolderError, match=r"made for scale, latent channels and factor \(4, 4, \d\)"):
        load_sd(folder, 2)
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "small" / "decoder.safetensors").write_bytes(b"nothing")
    with pytest.raises(SdFolderError, match=r"small cannot be read: .*Train it again, or remove it"):
        load_sd(copy, 4)
    shutil.rmtree(copy / "small")
    assert isinstance(load_sd(copy, 4).decoder, SdDecoder)
    bundle = load_sd(base, 4)
    save_small(with_small("encoder", bundle, Encoder(SMOKE.architecture), {}), tmp_path / "half")
    assert json.loads((tmp_path / "half" / "small" / "config.json").read_text())["parts"] == ["encoder"]


def test_sizes_that_a_stage_cannot_set_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"network got latent_channels, expected decoder_width, decoder_blocks"
    ):
        StageConfig("s", "small_decoder", 4, steps=1, network={"latent_channels": 8})
    with pytest.raises(ValueError, match=r"network got encoder_width, expected decoder_anti_imaging"):
        StageConfig("d", "decoder", 4, steps=1, network={"encoder_width": 8})
    with pytest.raises(ValueError, match=r"network got unet_blocks, expected nothing for this kind"):
        StageConfig("u", "diffusion", 4, steps=1, network={"unet_blocks": 1})
    lpips = dataclasses.replace(SMALL, loss={"lpips_vgg": 1.0})
    bundle = new_bundle(BundleConfig("tiny", 4, SMOKE.architecture))
    with pytest.raises(ValueError, match=r"lpips_vgg: the stage's loss uses this network but no weights"):
        SmallDecoderStage(lpips, bundle, weights={})


def test_dists_is_a_loss_of_the_decoder(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(1)
    tensors = {k: torch.randn(shape, generator=g) / 20 for k, shape in lpips_shapes("vgg").items()}
    save_file(tensors, tmp_path / "vgg.safetensors")
    moments = {name: torch.rand(1, 1475, 1, 1, generator=g) for name in ("alpha", "beta")}
    torch.save(moments, tmp_path / "dists.pt")
    files = {"lpips_vgg": str(tmp_path / "vgg.safetensors"), "dists": str(tmp_path / "dists.pt")}
    loss = {"l1": 0.0, "gradient": 0.0, "dists": 2.0, "vgg_share": 0.5}
    config = StageConfig("d", "decoder", 4, steps=1, batch=2, crop_px=64, loss=loss)
    bundle = new_bundle(BundleConfig("tiny", 4, SMOKE.architecture))
    with torch.no_grad():
        for parameter in bundle.unet.parameters():  # a fresh U-Net answers 0
            parameter.add_(torch.randn(parameter.shape, generator=g) / 20)
    stage = DecoderStage(config, bundle, weights=files)
    batch = Batch(torch.rand(2, 3, 64, 64, generator=g) * 2 - 1, [(0, 0), (0, 1)])
    value, logs = stage.loss("decoder", batch, generator(0), 0)
    assert value.item() == pytest.approx(2 * logs["dists"], rel=1e-5)
    assert 0 < logs["dists"] < 2
    value.backward()
    gradient = last_layer(stage.decoder).grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    for missing in files:
        with pytest.raises(
            ValueError, match=rf"{missing}: the stage's loss uses this network but no weights"
        ):
            DecoderStage(config, bundle, weights={k: v for k, v in files.items() if k != missing})
