"""Objectives: the v loss is the paper's weighted x0 loss; each objective trains, and only what it should."""

# ruff: noqa: E402  (imports follow the skip for installations without torch)

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from PIL import Image
from safetensors import safe_open
from yonos_train.model import LiteConfig, UNet
from yonos_train.objectives import OBJECTIVES, STUDENT, Latents, make_objective
from yonos_train.objectives.base import draw_t
from yonos_train.objectives.boot import Boot
from yonos_train.objectives.latent_gan import LatentDiscriminator, encoder_features
from yonos_train.objectives.sinsr import invert
from yonos_train.presets import PRESETS
from yonos_train.run import Run
from yonos_train.schedule import Schedule, add_noise, ddim, v_target, x0_from_v
from yonos_train.stages import StageConfig

CONFIG = LiteConfig(latent_channels=4, unet_widths=(8, 16), unet_blocks=1, time_dim=16)


def network(seed: int) -> UNet:
    torch.manual_seed(seed)
    net = UNet(CONFIG)
    with torch.no_grad():  # a fresh network answers 0; give it an opinion
        net.conv_out.weight.normal_(0, 0.05)
    return net


def latents(n: int = 4, seed: int = 0) -> Latents:
    g = torch.Generator().manual_seed(seed)
    z_h, z_l, z_p = (torch.randn(n, 4, 16, 16, generator=g) for _ in range(3))
    return Latents(z_h, z_l, z_p)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def options(name: str) -> dict[str, Any]:
    own = {name: {"teacher_steps": 2} for name in ("tad_sr", "sinsr", "sfddm", "flow_trajectory")}
    own["one_step"] = {"gan": 0.1}
    return dict(own.get(name, {}))


@pytest.mark.parametrize("kind", ["cosine", "scaled_linear"])
def test_v_error_is_the_papers_weighted_x0_error(kind: str) -> None:
    """``(1 + alpha^2 / sigma^2) |x0_a - x0_b|^2 = |v_a - v_b|^2`` at one z_t (float64)."""
    schedule, g = Schedule(kind), rng()
    t = torch.linspace(0.05, 1.0, 20, dtype=torch.float64)
    z, eps, v_a, v_b = (torch.randn(20, 4, 3, 3, generator=g, dtype=torch.float64) for _ in range(4))
    z_t = add_noise(schedule, z, eps, t)
    alpha, sigma = schedule.alpha_sigma(t)
    weight = 1 + alpha.square() / sigma.square()
    x0_error = (x0_from_v(schedule, z_t, v_a, t) - x0_from_v(schedule, z_t, v_b, t)).square().sum((1, 2, 3))
    v_error = (v_a - v_b).square().sum((1, 2, 3))
    torch.testing.assert_close(weight * x0_error, v_error, rtol=1e-9, atol=0)
    # and the true v gives the true x0
    torch.testing.assert_close(
        x0_from_v(schedule, z_t, v_target(schedule, z, eps, t), t), z, rtol=0, atol=1e-12
    )


def test_draw_t_has_the_asked_share_of_ones() -> None:
    t = draw_t(20000, rng(), one_probability=0.3)
    assert (t == 1).float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert t[t < 1].mean().item() == pytest.approx(0.5, abs=0.02)


def test_scale_distillation_with_a_perfect_student_is_zero() -> None:
    teacher = network(1)
    objective = make_objective("scale_distillation", Schedule(), channels=4, teacher=teacher)
    batch = latents()
    same_view = Latents(batch.z_h, batch.z_l, batch.z_l)
    loss, _ = objective.loss(teacher, same_view, rng())
    assert loss.item() == 0.0
    loss, _ = objective.loss(teacher, batch, rng())
    assert loss.item() > 1e-4


def test_scale_distillation_with_full_truth_equals_raw() -> None:
    student, batch = network(0), latents()
    raw = make_objective("raw", Schedule(), channels=4).loss(student, batch, rng(3))[0]
    mixed = make_objective("scale_distillation", Schedule(), channels=4, teacher=network(1), truth=1.0)
    torch.testing.assert_close(mixed.loss(student, batch, rng(3))[0], raw)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_objective_trains_the_student_and_never_the_teacher(name: str) -> None:
    teacher, student = network(1), network(2)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    objective = make_objective(name, Schedule(), channels=4, teacher=teacher, **options(name))
    optimisers = {STUDENT: torch.optim.Adam(student.parameters(), lr=2e-3)}
    for group, modules in objective.groups.items():
        params = [p for module in modules.values() for p in module.parameters()]
        assert params, f"group {group} trains nothing"
        optimisers[group] = torch.optim.Adam(params, lr=2e-3)
    first: float | None = None
    for step in range(21):
        for group in [*objective.groups, STUDENT]:
            g = rng(step % 2)
            optimisers[group].zero_grad()
            loss, logs = objective.loss(student, objective.prepare(latents(), g, group), g, group=group)
            loss.backward()
            optimisers[group].step()
            assert all(value == value or key == "v_mse_t1" for key, value in logs.items()), logs
            if group == STUDENT and first is None:
                first = loss.item()
    assert first is not None
    if name not in ("tad_sr", "add"):  # an adversarial game's loss need not fall
        assert loss.item() < first
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_objective_repeats_for_the_same_generator(name: str) -> None:
    objective = make_objective(name, Schedule(), channels=4, teacher=network(1), **options(name))

    def once() -> torch.Tensor:
        g = rng(5)
        return objective.loss(network(2), objective.prepare(latents(), g), g)[0]

    for modules in objective.groups.values():
        for module in modules.values():
            module.eval()  # spectral norm's power iteration would move on in training mode
    assert torch.equal(once(), once())


@pytest.mark.parametrize("part", ["reg", "hfsd", "gan"])
def test_tad_sr_parts_are_switchable(part: str) -> None:
    weights = {"reg": 0.0, "hfsd": 0.0, "gan": 0.0, part: 1.0}
    objective = make_objective(
        "tad_sr", Schedule(), channels=4, teacher=network(1), teacher_steps=2, **weights
    )
    g = rng()
    loss, logs = objective.loss(network(2), objective.prepare(latents(), g), g)
    assert set(logs) == {part}
    assert loss.item() == pytest.approx(logs[part], rel=1e-6)
    assert bool(objective.groups) == (part == "gan")


def test_hfsd_gradient_is_the_teachers_score_difference() -> None:
    """d L_hfsd / d s = g / count: nothing flows through the teacher."""
    teacher = network(1)
    objective = make_objective("tad_sr", Schedule(), channels=4, teacher=teacher, reg=0.0, gan=0.0, hfsd=1.0)
    student = network(2)
    g = rng()
    batch = objective.prepare(latents(), g)
    captured: list[torch.Tensor] = []
    original = objective.score_difference

    def spy(*args: Any) -> torch.Tensor:
        captured.append(original(*args))
        return captured[-1]

    objective.score_difference = spy
    v: list[torch.Tensor] = []

    def watched(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        out = student(x, t)
        out.retain_grad()
        v.append(out)
        return out

    loss, _ = objective.loss(watched, batch, g)
    loss.backward()
    expected = -captured[0] / captured[0].numel()  # s = -v at t = 1 with alpha_1 = 0
    torch.testing.assert_close(v[0].grad, expected)
    assert captured[0].abs().max() > 1e-4


def test_add_target_is_the_students_latent_for_a_teacher_that_denoises_perfectly() -> None:
    """A teacher whose x0 estimate is 0 leaves ``alpha_t |s|^2``; the times drawn set the weight."""
    schedule = Schedule()
    objective = make_objective("add", schedule, channels=4, teacher=network(1), gan=0.0, distillation=1.0)

    def zero_x0(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (value.view(-1, 1, 1, 1) for value in schedule.alpha_sigma(t))
        return x[:, :4] * alpha / sigma  # x0 = alpha z - sigma v = 0

    objective.teacher = zero_x0
    objective.times = torch.tensor([0.5])
    student, g = network(2), rng()
    batch = objective.prepare(latents(), g)
    assert batch.noise is not None
    s = ddim(student, schedule, batch.z_l, batch.noise)
    _, logs = objective.loss(student, batch, g)
    assert logs["distillation"] == pytest.approx(schedule.alpha(0.5) * s.square().mean().item(), rel=1e-4)


def test_sinsr_inverse_of_a_known_linear_network() -> None:
    """Of a network whose v is the input's noise half at t = 0, the inverse returns exactly that half."""

    def student(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert bool((t == 0).all())
        return x[:, :4] * 2

    z = torch.randn(2, 4, 8, 8, generator=rng())
    assert torch.equal(invert(student, z, z), z * 2)


def test_boot_state_update_is_a_ddim_step() -> None:
    """Following ``next_state`` from t = 1 to 0 gives the DDIM sampler's result."""
    teacher = network(1).double()
    schedule = Schedule()
    objective = Boot(schedule, teacher)

    def double(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        emb = t.float()  # the network embeds t in float32
        return UNet.forward(teacher, x.double(), emb)

    teacher.time_mlp.register_forward_pre_hook(lambda _m, inputs: (inputs[0].double(),))
    objective.teacher = double  # type: ignore[assignment]
    g = rng()
    eps, z_l = (torch.randn(2, 4, 16, 16, generator=g, dtype=torch.float64) for _ in range(2))
    steps = 5
    y = torch.zeros_like(eps)  # rho is 0 at t = 1, so the start does not matter
    for k in range(steps):
        t, u = (torch.full((2,), 1 - j / steps, dtype=torch.float64) for j in (k, k + 1))
        y = objective.next_state(y, eps, z_l, t, u)
    expected = ddim(double, schedule, z_l, eps, steps=steps)
    torch.testing.assert_close(y.float(), expected.float(), rtol=1e-4, atol=1e-4)


def test_latent_discriminator_reads_every_encoder_level_and_keeps_the_denoiser_out_of_its_state() -> None:
    teacher = network(1)
    discriminator = LatentDiscriminator(teacher, 4)
    z = torch.randn(2, 4, 16, 16, generator=rng())
    t = torch.tensor([0.2, 0.8])
    maps = encoder_features(teacher, z, z, t)
    logits = discriminator(z, z, t)
    assert [f.shape[1:] for f in maps] == [(8, 16, 16), (16, 8, 8)]
    assert [tuple(logit.shape) for logit in logits] == [(2, 1, 16, 16), (2, 1, 8, 8)]
    own = {p.data_ptr() for p in discriminator.parameters()}
    assert own.isdisjoint(p.data_ptr() for p in teacher.parameters())
    assert not any("denoiser" in key for key in discriminator.state_dict())


def test_tad_sr_stage_runs_with_its_discriminator(tmp_path: Path) -> None:
    """Through run and loop: a teacher of the same scale, two optimiser groups, both in the checkpoint."""
    (tmp_path / "images").mkdir()
    for k in range(2):
        pixels = (torch.rand(72, 72, 3, generator=rng(k)) * 255).byte().numpy()
        Image.fromarray(pixels).save(tmp_path / "images" / f"{k}.png")
    few: dict[str, Any] = {"batch": 2, "crop_px": 64, "degradation": "bicubic"}
    smoke = PRESETS["smoke"]

    def run(folder: str, steps: int) -> bytes:
        stages = (
            StageConfig("autoencoder", "autoencoder", steps=1, **few),
            StageConfig("x2", "diffusion", 2, steps=2, **few),
            StageConfig(
                "tad", "diffusion", 2, init="x2", teacher="x2", objective="tad_sr", steps=steps,
                loss={"teacher_steps": 2}, warmup_steps=1, **few,
            ),
        )  # fmt: skip
        loop = dataclasses.replace(smoke.loop, precision="fp32", sample_steps=0)
        config = dataclasses.replace(smoke, stages=stages, loop=loop)
        Run(config, tmp_path / folder, data=str(tmp_path / "images"), weights={}).run()
        return (tmp_path / folder / "tad" / "unet.safetensors").read_bytes()

    whole = run("a", 4)
    rows = [json.loads(row) for row in (tmp_path / "a" / "tad" / "metrics.jsonl").read_text().splitlines()]
    assert {"reg", "hfsd", "gan", "disc"} <= set(rows[0])
    assert whole != (tmp_path / "a" / "x2" / "unet.safetensors").read_bytes()
    newest = max((tmp_path / "a" / "tad").glob("checkpoint-*.safetensors"))
    with safe_open(newest, framework="pt") as handle:
        groups = {key.split("/")[0] for key in handle.keys()}  # noqa: SIM118
    assert groups == {"discriminator", "unet"}


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - {"raw", "one_step"}))
def test_missing_teacher_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="teacher"):
        make_objective(name, Schedule(), channels=4)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one of raw, scale_distillation"):
        make_objective("magic", Schedule(), channels=4)
    with pytest.raises(ValueError, match=r"no option \['temperature'\]"):
        make_objective("raw", Schedule(), channels=4, temperature=2)
    objective = make_objective("scale_distillation", Schedule(), channels=4, teacher=network(1))
    batch = latents()
    with pytest.raises(ValueError, match="z_l_previous"):
        objective.loss(network(2), Latents(batch.z_h, batch.z_l), rng())
