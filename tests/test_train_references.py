"""References kept on disk: the same training as on the fly, computed once, never stale."""

# ruff: noqa: E402  (imports follow the skip for installations without torch)

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from torch import Tensor
from yonos_train.model import LiteConfig, UNet
from yonos_train.objectives import Latents, make_objective, references
from yonos_train.objectives.references import References, StaleReferencesError
from yonos_train.presets import PRESETS
from yonos_train.run import Run
from yonos_train.schedule import Schedule, ddim
from yonos_train.stages import StageConfig

SMOKE = PRESETS["smoke"]
STEPS = 4


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry, the number of DDIM steps, for every reference batch that is really computed."""
    calls: list[int] = []

    def counted(*args: Any, steps: int) -> Tensor:
        calls.append(steps)
        return ddim(*args, steps=steps)

    monkeypatch.setattr(references, "ddim", counted)
    return calls


@pytest.fixture(scope="module")
def base_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, and a run whose autoencoder and teacher are finished."""
    folder = tmp_path_factory.mktemp("references")
    (folder / "images").mkdir()
    for k in range(2):
        pixels = np.random.default_rng(k).integers(0, 255, (72, 72, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{k}.png")
    run(folder, folder / "base", only=("autoencoder", "x2"))
    return folder


def run(root: Path, folder: Path, *, only: tuple[str, ...] = (), **changes: Any) -> Run:
    few: dict[str, Any] = {"batch": 2, "crop_px": 64, "degradation": "bicubic"}
    loss = {"teacher_steps": 2, **changes.pop("loss", {})}
    tad = StageConfig(
        "tad", "diffusion", 2, init="x2", teacher="x2", objective="tad_sr", warmup_steps=1,
        **{"steps": STEPS, "loss": loss, **few, **changes},
    )  # fmt: skip
    stages = (
        StageConfig("autoencoder", "autoencoder", steps=1, **few),
        StageConfig("x2", "diffusion", 2, steps=2, **few),
        tad,
    )
    loop = dataclasses.replace(SMOKE.loop, precision="fp32", sample_steps=0, checkpoint_steps=1)
    config = dataclasses.replace(SMOKE, stages=stages, loop=loop)
    made = Run(config, folder, data=str(root / "images"), weights={})
    made.run(only)
    return made


@pytest.fixture
def fork(base_run: Path, tmp_path: Path) -> Any:
    """``fork(name, **stage)`` trains ``tad`` from the finished teacher and returns its weights' bytes."""

    def train(name: str, **changes: Any) -> bytes:
        for stage in ("autoencoder", "x2"):
            target = tmp_path / name / stage
            target.mkdir(parents=True, exist_ok=True)
            for file in (base_run / "base" / stage).glob("[!c]*.safetensors"):
                (target / file.name).write_bytes(file.read_bytes())
        run(base_run, tmp_path / name, **changes)
        return (tmp_path / name / "tad" / "unet.safetensors").read_bytes()

    return train


def shards(folder: Path) -> list[Path]:
    assert not list(folder.glob("*.part"))
    return sorted(folder.glob("*.safetensors"))


def test_kept_references_give_the_same_weights_as_those_on_the_fly(
    fork: Any, tmp_path: Path, computed: list[int]
) -> None:
    kept = {"references": str(tmp_path / "kept")}
    on_the_fly = fork("fly")
    assert computed == [2] * STEPS
    cold = fork("cold", loss=kept)
    assert computed == [2] * 2 * STEPS
    assert len(shards(tmp_path / "kept")) == STEPS
    warm = fork("warm", loss=kept)
    assert computed == [2] * 2 * STEPS  # nothing new
    assert on_the_fly == cold == warm
    # another part of the ablation shares them: the key is the crops', not the stage's options
    assert fork("reg", loss={**kept, "gan": 0.0, "hfsd": 0.0}) != warm
    assert computed == [2] * 2 * STEPS


def test_a_second_run_computes_only_what_is_missing(fork: Any, tmp_path: Path, computed: list[int]) -> None:
    kept = {"references": str(tmp_path / "kept")}
    fork("short", steps=2, loss=kept)
    assert len(computed) == 2
    whole = fork("whole", loss=kept)
    assert len(computed) == STEPS
    assert whole == fork("fly")


def test_repeated_batches_need_one_reference_each(fork: Any, tmp_path: Path, computed: list[int]) -> None:
    kept = {"references": str(tmp_path / "kept")}
    weights = fork("few", repeat=2, loss=kept)
    assert len(computed) == len(shards(tmp_path / "kept")) == 2
    assert weights == fork("fly", repeat=2)
    assert weights != fork("all", loss=kept)


# ----------------------------------------------------------------------------------------------------------
# One file


def teacher(seed: int = 0) -> UNet:
    torch.manual_seed(seed)
    net = UNet(LiteConfig(latent_channels=4, unet_widths=(8,), unet_blocks=1, time_dim=8))
    with torch.no_grad():
        net.conv_out.weight.normal_(0, 0.05)
    return net


def inputs(seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    noise, z_l = (torch.randn(2, 4, 8, 8, generator=g) for _ in range(2))
    return noise, z_l


def test_a_stale_file_is_refused_and_says_what_changed(tmp_path: Path) -> None:
    noise, z_l = inputs()
    sample = References(teacher(), Schedule(), 2, tmp_path).sample
    made = sample(noise, z_l, 7)
    assert torch.equal(sample(noise, z_l, 7), made)
    (path,) = shards(tmp_path)
    assert path.name == "0000000000000007.safetensors"
    cases = {
        "steps 2, now 3": References(teacher(), Schedule(), 3, tmp_path),
        "teacher [0-9a-f]{64}, now [0-9a-f]{64}": References(teacher(1), Schedule(), 2, tmp_path),
        "schedule .*cosine.*, now .*scaled_linear": References(
            teacher(), Schedule("scaled_linear"), 2, tmp_path
        ),
    }
    for what, other in cases.items():
        with pytest.raises(StaleReferencesError, match=f"{what}.*Name another folder"):
            other.sample(noise, z_l, 7)
    with pytest.raises(StaleReferencesError, match="other LR pictures"):
        sample(noise, inputs(1)[1], 7)
    with pytest.raises(StaleReferencesError, match="noise "):
        sample(inputs(1)[0], z_l, 7)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(StaleReferencesError, match=r"precision torch.float32, now torch.bfloat16"),
    ):
        sample(noise, z_l, 7)
    # what another machine's arithmetic does to z_l is no other picture
    assert torch.equal(sample(noise, z_l + 0.01 * torch.randn(z_l.shape), 7), made)


def test_a_broken_or_unfinished_file_is_computed_again(
    tmp_path: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    noise, z_l = inputs()
    sample = References(teacher(), Schedule(), 2, tmp_path).sample
    made = sample(noise, z_l, 7)
    (path,) = shards(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(sample(noise, z_l, 7), made)
    assert len(computed) == 2
    path.unlink()

    def power_cut(source: Any, target: Any) -> None:
        raise OSError("power cut")

    with monkeypatch.context() as patched:
        patched.setattr(references.os, "replace", power_cut)
        with pytest.raises(OSError, match="power cut"):
            sample(noise, z_l, 7)
    assert not path.exists()
    assert torch.equal(sample(noise, z_l, 7), made)
    assert len(computed) == 4


@pytest.mark.parametrize("name", ["tad_sr", "sinsr"])
def test_objectives_keep_their_references(name: str, tmp_path: Path, computed: list[int]) -> None:
    net, (z_h, z_l) = teacher(), inputs()
    objective = make_objective(
        name, Schedule(), channels=4, teacher=net, teacher_steps=3, references=str(tmp_path)
    )
    first, again = (objective.prepare(Latents(z_h, z_l), torch.Generator().manual_seed(11)) for _ in range(2))
    assert computed == [3]
    assert torch.equal(first.reference, again.reference)
    torch.testing.assert_close(
        first.reference, ddim(net, Schedule(), z_l, first.noise, steps=3), rtol=0, atol=0
    )


def test_negative_repeat_is_refused() -> None:
    with pytest.raises(ValueError, match="repeat got -1"):
        StageConfig("x", "autoencoder", steps=1, repeat=-1)
