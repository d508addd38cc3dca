"""The distillation question: both targets see the same crops, times and noise; figures are what they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from export_models import small_bundle  # noqa: E402
from PIL import Image  # noqa: E402
from yonos_train.data import CropConfig, Crops, ImageFolder  # noqa: E402

from benchmarks.studies import distillation  # noqa: E402
from benchmarks.studies.distillation import (  # noqa: E402
    Settings,
    gradients,
    latent_error,
    loss_of,
    make_stage,
    markdown,
    study,
    train,
)

SETTINGS = Settings(batch=2, lr=1e-3, degradation="average", warmup_steps=1, crop_px=32, ema=0.5)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three smooth pictures, as training pictures and as a set to measure on."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for k in range(3):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        for place in ("train", "dev/own/HR"):
            (folder / place).mkdir(parents=True, exist_ok=True)
            small.resize((64, 64), Image.Resampling.BICUBIC).save(folder / place / f"{k}.png")
    return folder


@pytest.fixture
def crops(photos: Path) -> Crops:
    return Crops(ImageFolder(photos / "train", smallest_px=32), CropConfig(32), seed=3)


def seen_by(unet: torch.nn.Module, bundle: object, teacher: torch.nn.Module | None, crops: Crops) -> list:
    """Return what the student's U-Net is given in the first two steps of a target's run."""
    target = "truth" if teacher is None else "teacher"
    stage = make_stage(bundle, unet, teacher, SETTINGS.stage(4, target, 2))
    seen: list[tuple[torch.Tensor, ...]] = []
    stage.unet.register_forward_pre_hook(
        lambda _module, inputs: seen.append(tuple(x.clone() for x in inputs))
    )
    for step in range(2):
        loss_of(stage, crops, step)
    return seen


def test_the_targets_differ_in_nothing_that_the_student_sees(crops: Crops) -> None:
    bundle = small_bundle()
    truth, teacher = (seen_by(bundle.unet, bundle, guide, crops) for guide in (None, bundle.unet))
    assert len(truth) == len(teacher) == 2
    for ours, theirs in zip(truth, teacher, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    times = torch.cat([inputs[1] for inputs in truth])
    assert bool((times < 1).all())  # uniform, as in the paper
    assert len(set(times.tolist())) == len(times)


def test_a_student_that_is_the_teacher_errs_only_by_the_harder_view(crops: Crops) -> None:
    """At x2 both views are one: the loss against oneself is zero; at x4 it is not."""
    bundle = small_bundle()
    bundle.unet.conv_out.weight.data.normal_(0, 0.1)
    same = make_stage(bundle, bundle.unet, bundle.unet, SETTINGS.stage(2, "teacher", 1))
    harder = make_stage(bundle, bundle.unet, bundle.unet, SETTINGS.stage(4, "teacher", 1))
    assert loss_of(same, crops, 0)[0].item() < 1e-6
    assert loss_of(harder, crops, 0)[0].item() > 1e-6


def test_training_leaves_teacher_and_start_alone_and_ends_where_it_says(crops: Crops) -> None:
    bundle = small_bundle()
    before = {name: value.clone() for name, value in bundle.unet.state_dict().items()}
    stage = make_stage(bundle, bundle.unet, bundle.unet, SETTINGS.stage(4, "teacher", 4))
    at: dict[int, torch.Tensor] = {}
    train(
        stage, crops, SETTINGS, (0, 2, 4), lambda step, unet: at.update({step: unet.conv_in.weight.clone()})
    )
    assert list(at) == [0, 2, 4]
    torch.testing.assert_close(at[0], before["conv_in.weight"], rtol=0, atol=0)
    assert not torch.equal(at[2], at[4])
    for name, value in bundle.unet.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_gradient_variance_is_that_of_a_known_one(crops: Crops, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss whose gradient is 3 + N(0, 2^2) in each of 1 000 places: signal 9 000, variance 4 000."""
    draws = torch.randn(400, 1000, generator=torch.Generator().manual_seed(0))
    weight = torch.nn.Parameter(torch.zeros(1000))

    class Known:
        unet = torch.nn.Module()

    Known.unet.weight = weight
    monkeypatch.setattr(distillation, "loss_of", lambda _s, _c, k: ((weight * (3 + 2 * draws[k])).sum(), {}))
    row = gradients(Known(), crops, 0, 400)  # type: ignore[arg-type]
    assert row["signal"] == pytest.approx(9000, rel=0.02)
    assert row["variance"] == pytest.approx(4000, rel=0.02)
    assert row["ratio"] == pytest.approx(4 / 9, rel=0.04)


def test_study_writes_tables_and_goes_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = small_bundle()
    monkeypatch.setattr(distillation, "load_start", lambda _name: bundle)

    def run() -> dict:
        return study(
            data=str(photos / "train"), dev=str(photos / "dev"), folder=tmp_path / "run", weights={},
            settings=SETTINGS, teacher_steps=2, seeds=(0, 1), marks=(0, 3), sets=(), hr_px=64,
            gradient_batches=2,
        )  # fmt: skip

    report = run()
    assert set(report["students"]) == {"truth", "teacher"}
    for rows in report["students"].values():
        assert set(rows) == {"0", "1"}
        # every student starts from the same weights
        assert {row["0"]["latent_mse"] for row in rows.values()} == {rows["0"]["0"]["latent_mse"]}
        assert rows["0"]["3"] != rows["1"]["3"]
    assert len(report["gradients"]) == 8  # two weights of two students, two targets each
    table = markdown(report)
    assert "| 3 | teacher - truth |" in table
    assert table == (tmp_path / "run" / "distillation.md").read_text(encoding="utf-8")
    kept = json.loads((tmp_path / "run" / "distillation.json").read_text(encoding="utf-8"))
    assert kept["students"] == report["students"]
    monkeypatch.setattr(distillation, "train", lambda *_a: pytest.fail("trained again"))
    (tmp_path / "run" / "distillation.json").unlink()
    assert run()["students"] == report["students"]


def test_latent_error_of_the_truth_itself_is_zero(photos: Path) -> None:
    from yonos_train.evaluate import crop_pairs

    bundle = small_bundle()
    pairs = crop_pairs(photos / "dev", 4, crops=1, hr_px=64, degradation="average")
    truths = []
    for pair in pairs:
        hr = torch.from_numpy(pair.load()[1].copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            truths.append(bundle.encoder(hr))
    shown = iter(truths)

    class Oracle(torch.nn.Module):
        def forward(self, _x: torch.Tensor, _t: torch.Tensor) -> torch.Tensor:
            return -next(shown)

    assert latent_error(bundle, Oracle(), pairs) < 1e-10
