"""The sd profile on a tiny random folder that diffusers itself wrote."""

# ruff: noqa: E402  (imports follow the skip for installations without torch)

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from PIL import Image
from safetensors.torch import save_file
from yonos_train.data import Batch
from yonos_train.loop import LoopConfig
from yonos_train.objectives.latent_gan import LatentDiscriminator
from yonos_train.presets import PRESETS, RunConfig
from yonos_train.run import Run
from yonos_train.schedule import ddim
from yonos_train.sd import SdFolderError, SdUNet
from yonos_train.sd_folder import load_sd, read_part, save_sd
from yonos_train.stages import DecoderStage, DiffusionStage, StageConfig, frozen_copy

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def make_folder(folder: Path, *, prediction: str = "epsilon", in_channels: int = 4) -> Path:
    """Write a Stable-Diffusion-shaped folder: the true classes and layout, f = 8, a few thousand weights."""
    torch.manual_seed(0)
    diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=in_channels, out_channels=4, block_out_channels=(8, 16),
        layers_per_block=1, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=12,
        attention_head_dim=4, norm_num_groups=4,
    ).save_pretrained(folder / "unet")  # fmt: skip
    diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, norm_num_groups=4,
        latent_channels=4, sample_size=64,
    ).save_pretrained(folder / "vae")  # fmt: skip
    diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction
    ).save_pretrained(folder / "scheduler")
    g = torch.Generator().manual_seed(1)
    save_file({"context": torch.randn(1, 5, 12, generator=g)}, folder / "context.safetensors")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("sd") / "tiny-sd")


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rand(*shape: int, seed: int = 0) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_networks_have_the_trainers_shapes(folder: Path) -> None:
    bundle = load_sd(folder, 4)
    assert (bundle.config.latent_channels, bundle.config.latent_factor) == (4, 8)
    assert bundle.config.multiple_px == 16
    assert bundle.config.name == "tiny-sd"
    x = rand(2, 3, 64, 48).clamp(-1, 1)
    with torch.no_grad():
        z = bundle.encoder(x)
        v = bundle.unet(torch.cat([z, z], dim=1), torch.tensor([0.3, 1.0]))
        assert z.shape == v.shape == (2, 4, 8, 6)
        assert bundle.decoder(z).shape == x.shape


def test_grown_convolution_ignores_the_new_input_at_first(folder: Path) -> None:
    """With zero-initialised new weights the answer does not depend on z_l and equals the old network's."""
    old = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    unet = load_sd(folder, 4).unet
    assert isinstance(unet, SdUNet)
    assert unet.unet.conv_in.in_channels == unet.unet.config.in_channels == 8
    z_t, t = rand(2, 4, 8, 8), torch.tensor([0.2, 1.0])
    with torch.no_grad():
        expected = old(z_t, t * 999, encoder_hidden_states=unet.context.expand(2, -1, -1)).sample
        for seed in (1, 2):
            got = unet(torch.cat([z_t, rand(2, 4, 8, 8, seed=seed)], dim=1), t)
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_autoencoder_matches_diffusers_own(folder: Path) -> None:
    vae = diffusers.AutoencoderKL.from_pretrained(folder, subfolder="vae")
    bundle = load_sd(folder, 4)
    x = rand(1, 3, 32, 32)
    with torch.no_grad():
        z = vae.encode(x).latent_dist.mode() * vae.config.scaling_factor
        torch.testing.assert_close(bundle.encoder(x), z)
        torch.testing.assert_close(bundle.decoder(z), vae.decode(z / vae.config.scaling_factor).sample)


def test_schedule_is_the_schedulers(folder: Path) -> None:
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    schedule = load_sd(folder, 4).schedule
    for step in (0, 250, 999):
        assert schedule.alpha(step / 999) ** 2 == pytest.approx(
            scheduler.alphas_cumprod[step].item(), rel=1e-4
        )
    assert schedule.alpha(1.0) == pytest.approx(0.068, abs=1e-3)


def test_epsilon_teacher_answers_in_v(folder: Path) -> None:
    """x0 from the teacher's v equals x0 from its noise estimate; a loaded student predicts v instead."""
    teacher, student = load_sd(folder, 2, keep_epsilon=True), load_sd(folder, 2)
    assert teacher.unet.prediction == "epsilon"
    assert student.unet.prediction == "v_prediction"
    assert student.config.base_prediction == "epsilon"
    z, t = rand(1, 8, 8, 8), torch.tensor([0.5])
    with torch.no_grad():
        eps, v = student.unet(z, t), teacher.unet(z, t)  # the student's raw output is the old noise estimate
    alpha, sigma = teacher.schedule.alpha(0.5), teacher.schedule.sigma(0.5)
    z_t = z[:, :4]
    torch.testing.assert_close(alpha * z_t - sigma * v, (z_t - sigma * eps) / alpha, rtol=1e-4, atol=1e-4)


def test_stages_train_it_and_the_exporter_reads_it(folder: Path, tmp_path: Path) -> None:
    """From a 4-channel noise predictor to the folder yonos-export takes; its step equals ours."""
    bundle = load_sd(folder, 4, name="tiny-x4")
    stage = DiffusionStage(
        StageConfig("x4", "diffusion", scale=4, steps=1, degradation="bicubic"),
        bundle,
        teacher=None,
        teacher_scale=None,
    )
    batch = Batch(rand(2, 3, 64, 64).clamp(-1, 1), (1, 2))
    optimiser = torch.optim.SGD(bundle.unet.parameters(), lr=0.1)
    frozen = {key: value.clone() for key, value in bundle.encoder.state_dict().items()}
    for step in range(2):
        loss, logs = stage.loss("unet", batch, torch.Generator().manual_seed(step), step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert logs["v_mse"] > 0
    first_error = stage.loss("unet", batch, torch.Generator().manual_seed(1), 0)[1]["v_mse"]
    assert first_error < logs["v_mse"]
    new_weights = bundle.unet.unet.conv_in.weight[:, 4:]
    assert new_weights.abs().max() > 0, "the new input channels never learnt"
    assert all(torch.equal(value, frozen[key]) for key, value in bundle.encoder.state_dict().items())
    assert bundle.encoder.encoder.conv_in.weight.grad is None

    saved = save_sd(bundle, folder, tmp_path / "out")
    again = load_sd(saved, 4)
    noise, z_l = rand(1, 4, 8, 8), rand(1, 4, 8, 8, seed=3)
    with torch.no_grad():
        ours = ddim(bundle.unet, bundle.schedule, z_l, noise)
        torch.testing.assert_close(ddim(again.unet, again.schedule, z_l, noise), ours)
    assert again.config.base_prediction == "v_prediction"

    exporter = pytest.importorskip("yonos_export.families.sd")
    stages = exporter.load_diffusers_stages(saved)
    with torch.no_grad():
        torch.testing.assert_close(stages.step(noise, z_l), ours, rtol=1e-3, atol=1e-4)
    model = stages.info.model
    assert (model.name, model.scale, model.timestep) == ("tiny-x4", 4, 999)


def test_a_whole_run_goes_from_images_to_an_exportable_folder(folder: Path, tmp_path: Path) -> None:
    """Raw x2, scale-distilled x4 from it, decoder: the sd preset's order, two steps each."""
    (tmp_path / "images").mkdir()
    for k in range(2):
        pixels = (torch.rand(80, 72, 3, generator=torch.Generator().manual_seed(k)) * 255).byte().numpy()
        Image.fromarray(pixels).save(tmp_path / "images" / f"{k}.png")
    few: dict[str, Any] = {"steps": 2, "batch": 1, "crop_px": 64, "degradation": "bicubic"}
    config = RunConfig(
        name="tiny",
        base=str(folder),
        licence={"base": "none"},
        loop=LoopConfig(precision="fp32", log_steps=1, sample_steps=0),
        stages=(
            StageConfig("x2", "diffusion", 2, **few),
            StageConfig("x4", "diffusion", 4, init="x2", teacher="x2", **few),
            StageConfig("decoder-x4", "decoder", 4, loss={"l1": 1.0}, **few),
        ),
    )
    Run(config, tmp_path / "run", data=str(tmp_path / "images"), weights={}).run()
    saved = tmp_path / "run" / "bundles" / "tiny-x4"
    facts = json.loads((saved / "yonos.json").read_text())
    assert (facts["scale"], facts["licence"]) == (4, {"base": "none"})
    trained, start = load_sd(saved, 4), load_sd(folder, 4)
    assert not torch.equal(trained.unet.unet.conv_out.weight, start.unet.unet.conv_out.weight)
    assert not torch.equal(trained.decoder.decoder.conv_in.weight, start.decoder.decoder.conv_in.weight)
    assert torch.equal(trained.encoder.encoder.conv_in.weight, start.encoder.encoder.conv_in.weight)
    assert RunConfig.from_json(config.to_json()) == config


def test_sd_preset_needs_a_base_and_has_no_lite_stages() -> None:
    from click.testing import CliRunner
    from yonos_train.cli import main

    result = CliRunner().invoke(main, ["--preset", "sd", "--dry-run"])
    assert result.exit_code == 2
    assert "--base" in result.output
    result = CliRunner().invoke(main, ["--preset", "sd", "--base", "somewhere", "--dry-run"])
    assert json.loads(result.output)["base"] == "somewhere"
    assert {stage.kind for stage in PRESETS["sd"].stages} == {
        "diffusion",
        "decoder",
        "encoder",
        "small_decoder",
    }
    with pytest.raises(ValueError, match="has its autoencoder"):
        RunConfig(base="somewhere", stages=(StageConfig("a", "autoencoder", steps=1),))


def test_decoder_stage_leaves_encoder_and_unet_bytes_alone(folder: Path) -> None:
    bundle = load_sd(folder, 4)
    loss_weights = {"l1": 1.0, "gan": 0.5, "disc_width": 8}
    config = StageConfig("d", "decoder", scale=4, steps=1, degradation="bicubic", loss=loss_weights)
    stage = DecoderStage(config, bundle, weights={})
    before = [m.state_dict() for m in (bundle.encoder, bundle.unet)]
    before = [{key: value.clone() for key, value in state.items()} for state in before]
    batch = Batch(rand(1, 3, 64, 64).clamp(-1, 1), (1,))
    loss, logs = stage.loss("decoder", batch, torch.Generator().manual_seed(0), 0)
    assert logs["gan_weight"] > 0
    loss.backward()
    torch.optim.SGD([p for p in bundle.decoder.parameters() if p.requires_grad], lr=0.1).step()
    assert bundle.decoder.decoder.conv_in.weight.grad.abs().max() > 0
    for module, state in zip((bundle.encoder, bundle.unet), before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
        assert all(p.grad is None for p in module.parameters())


def test_context_can_be_learnt(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    (bare / "context.safetensors").unlink()
    with pytest.raises(SdFolderError, match="learn the context"):
        load_sd(bare, 4)
    bundle = load_sd(bare, 4, learn_context=True)
    assert dict(bundle.unet.named_parameters())["context"].shape == (1, 77, 12)
    bundle.unet(rand(1, 8, 8, 8), torch.ones(1)).square().mean().backward()
    assert bundle.unet.context.grad is not None


def test_latent_discriminator_reads_the_diffusers_encoder(folder: Path) -> None:
    unet = load_sd(folder, 4).unet
    maps = LatentDiscriminator(frozen_copy(unet), 4)(rand(1, 4, 8, 8), rand(1, 4, 8, 8), torch.tensor([0.4]))
    assert [tuple(m.shape[2:]) for m in maps] == [(4, 4), (4, 4), (4, 4)]


def test_half_precision_folders_load(folder: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(folder, half)
    shutil.rmtree(half / "unet")
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    unet.half().save_pretrained(half / "unet", variant="fp16")
    loaded = load_sd(half, 4).unet
    assert loaded.unet.dtype == torch.float32


def test_a_full_model_in_several_files_is_taken_before_a_half_one(tmp_path: Path) -> None:
    class Kind:
        @staticmethod
        def from_pretrained(folder: Path, **options: Any) -> Any:
            return options["variant"]

    (tmp_path / "unet").mkdir()
    for name in ("model.fp16.safetensors", "model-00001-of-00002.safetensors"):
        (tmp_path / "unet" / name).touch()
        assert read_part(Kind, tmp_path, "unet") == "fp16"
    (tmp_path / "unet" / "model.safetensors.index.json").touch()
    assert read_part(Kind, tmp_path, "unet") is None


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"beta_schedule": "linear"}, "expected 'scaled_linear'"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ({"prediction_type": "sample"}, "expected 'epsilon' or 'v_prediction'"),
    ],
)
def test_foreign_schedules_are_refused(folder: Path, tmp_path: Path, change: Any, text: str) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    edit_json(other / "scheduler" / "scheduler_config.json", **change)
    with pytest.raises(SdFolderError, match=text):
        load_sd(other, 4)


def test_incomplete_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SdFolderError, match="no unet/"):
        load_sd(tmp_path, 4)
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    for file in (other / "vae").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(SdFolderError, match="cannot be loaded as AutoencoderKL"):
        load_sd(other, 4)
    from safetensors.torch import load_file, save_file

    (file,) = (other / "unet").glob("*.safetensors")
    shutil.copytree(folder / "vae", other / "vae", dirs_exist_ok=True)
    save_file({k: v for k, v in load_file(file).items() if k != "conv_out.weight"}, file)
    with pytest.raises(SdFolderError, match=r"unet lacks conv_out\.weight, which the network of its config"):
        load_sd(other, 4)
    wide = make_folder(tmp_path / "wide", in_channels=9)
    with pytest.raises(SdFolderError, match="expected 4 or 8 -> 4"):
        load_sd(wide, 4)
    save = load_sd(folder, 4, keep_epsilon=True)
    with pytest.raises(SdFolderError, match="still predicts noise"):
        save_sd(save, folder, tmp_path / "never")
