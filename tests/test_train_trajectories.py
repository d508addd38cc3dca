"""Objectives that follow a teacher's trajectory, against closed forms and formulas written out in NumPy.

For latents ``N(mean, std^2)`` the best denoiser is linear, and the deterministic flow from noise has a closed
form: ``z_t = alpha_t mean + sqrt(alpha_t^2 std^2 + sigma_t^2) xi`` with xi fixed by the noise.
"""

# ruff: noqa: E402  (imports follow the skip for installations without torch)

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor
from yonos_train.objectives import Latents, make_objective
from yonos_train.objectives.base import one_step
from yonos_train.objectives.oftsr import Oftsr
from yonos_train.schedule import Schedule, add_noise, ddim, ddim_step, eps_from_v, x0_from_v

C, MEAN, STD = 2, 0.4, 0.7
Network = Callable[[Tensor, Tensor], Tensor]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(n: int = 4, seed: int = 0) -> Latents:
    g = rng(seed)
    return Latents(*(torch.randn(n, C, 4, 6, generator=g) for _ in range(2)))


def wide(value: Tensor) -> Tensor:
    return value.view(-1, 1, 1, 1)


def gaussian_teacher(schedule: Schedule) -> Network:
    def teacher(x: Tensor, t: Tensor) -> Tensor:
        z = x[:, :C].double()
        alpha, sigma = (wide(value) for value in schedule.alpha_sigma(t.double()))
        off = (z - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        x0, eps = MEAN + alpha * STD**2 * off, sigma * off
        return alpha * eps - sigma * x0

    return teacher


def bent(gain: float) -> tuple[Network, Callable[..., Any]]:
    """A network without structure, in torch, and the same in NumPy float64."""

    def in_torch(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(gain * x[:, :C]) * (1 + wide(t)) + 0.3 * x[:, C:]

    def in_numpy(z: Any, z_l: Any, t: float) -> Any:
        return np.tanh(gain * z) * (1 + t) + 0.3 * z_l

    return in_torch, in_numpy


def with_teacher(name: str, schedule: Schedule, teacher: Network, **options: Any) -> Any:
    objective = make_objective(name, schedule, channels=C, teacher=torch.nn.Identity(), **options)
    objective.teacher = teacher  # type: ignore[assignment]
    return objective


def numpy_ddim(v_of: Callable[..., Any], z: Any, z_l: Any, times: list[float], schedule: Schedule) -> Any:
    """DDIM over ``times``; 0 stands for the clean latent."""
    for t, u in itertools.pairwise(times):
        a, s = schedule.alpha(t), schedule.sigma(t)
        v = v_of(z, z_l, t)
        x0, eps = a * z - s * v, s * z + a * v
        z = x0 if u == 0 else schedule.alpha(u) * x0 + schedule.sigma(u) * eps
    return z


# ----------------------------------------------------------------------------------------------------------
# The sampler's step


def test_ddim_is_its_steps_and_ends_at_the_clean_latent() -> None:
    """Many steps reach the closed form; SD's schedule, which leaves noise at t = 0, too."""
    z_1, z_l = batch().z_h, batch().z_l
    for schedule in (Schedule(), Schedule("scaled_linear")):
        alpha, sigma = schedule.alpha(1.0), schedule.sigma(1.0)
        xi = (z_1 - alpha * MEAN) / math.sqrt(alpha**2 * STD**2 + sigma**2)
        end = ddim(gaussian_teacher(schedule), schedule, z_l, z_1, steps=400)
        torch.testing.assert_close(end.float(), MEAN + STD * xi, atol=0.02, rtol=0)
    t, u = torch.tensor([1.0, 0.5, 0.5, 0.1]), torch.tensor([0.5, 0.0, 0.2, 0.0])
    teacher = gaussian_teacher(schedule)
    moved = ddim_step(teacher, schedule, z_l, z_1, t, u)
    v = teacher(z_1, t)
    clean, noise = x0_from_v(schedule, z_1, v, t), eps_from_v(schedule, z_1, v, t)
    expected = torch.where(wide(u) == 0, clean, add_noise(schedule, clean, noise, u))
    assert torch.equal(moved, expected)


# ----------------------------------------------------------------------------------------------------------
# OFTSR


def exact_student(schedule: Schedule, low: float, *, stuck: bool = False) -> Network:
    """The mean velocity of the closed-form flow; ``stuck`` at the start, that is at full fidelity."""

    def student(x: Tensor, k: Tensor) -> Tensor:
        z_1, t = x[:, :C].double(), (1 - (k.double() - low) / (1 - low)).clamp(0, 1)
        one = torch.ones_like(t)
        alpha, sigma = (wide(value) for value in schedule.alpha_sigma(t))
        alpha, sigma = torch.where(wide(t) <= 0, 1.0, alpha), torch.where(wide(t) <= 0, 0.0, sigma)
        alpha_1, sigma_1 = (wide(value) for value in schedule.alpha_sigma(one))
        xi = (z_1 - alpha_1 * MEAN) / (alpha_1**2 * STD**2 + sigma_1**2).sqrt()
        z_t = alpha * MEAN + (alpha**2 * STD**2 + sigma**2).sqrt() * xi
        tau, tau_1 = sigma / (alpha + sigma), sigma_1 / (alpha_1 + sigma_1)
        start, point = z_1 / (alpha_1 + sigma_1), z_t / (alpha + sigma)
        mean_velocity = (point - start) / torch.where(wide(t) >= 1, 1.0, tau - tau_1)
        first = x0_from_v(schedule, z_1, gaussian_teacher(schedule)(x, one), one)
        y = torch.where(wide(t) >= 1, first, start - tau_1 * mean_velocity)
        y = first if stuck else y
        alpha_k, sigma_k = (wide(value) for value in schedule.alpha_sigma(k.double()))
        return (alpha_k * z_1 - y) / sigma_k

    return student


@pytest.mark.parametrize("kind", ["cosine", "scaled_linear"])
def test_oftsr_is_solved_by_the_mean_velocity_of_the_exact_flow(kind: str) -> None:
    """The closed form's loss is the teacher's discretisation error, of fourth order in the step."""
    schedule = Schedule(kind)

    def loss(step: float, *, stuck: bool = False) -> dict[str, float]:
        objective = with_teacher("oftsr", schedule, gaussian_teacher(schedule), step=step, low=0.6)
        latents, g = objective.prepare(batch(512), rng(1)), rng(2)
        _, logs = objective.loss(exact_student(schedule, 0.6, stuck=stuck), latents, g)
        return dict(logs)

    coarse, fine = loss(0.1), loss(0.05)
    assert coarse["fidelity"] < 1e-10
    assert fine["trajectory"] < 1e-4 < 5e-4 < loss(0.05, stuck=True)["trajectory"]
    assert fine["trajectory"] < coarse["trajectory"] / 8


def test_oftsr_loss_is_the_displacement_formula() -> None:
    """``U(u) = ((tau_1 - tau_t) U(t) + (tau_t - tau_u) u(x_t)) / (tau_1 - tau_u)``, U the mean velocity."""
    schedule, low, step = Schedule("scaled_linear"), 0.5, 0.2
    (student, student64), (teacher, teacher64) = bent(0.8), bent(0.5)
    objective = with_teacher("oftsr", schedule, teacher, step=step, low=low, fidelity=0.5)
    latents = objective.prepare(batch(), rng(1))
    total, logs = objective.loss(student, latents, rng(7))

    z_1, z_l = latents.noise.double().numpy(), latents.z_l.double().numpy()
    drawn = torch.rand(4, generator=rng(7)).clamp_min(step)
    times = list(zip(drawn.tolist(), (drawn - step).tolist(), strict=True))
    assert {0.0} < {u for _, u in times}  # the exact end is among them
    norm = lambda t: schedule.alpha(t) + schedule.sigma(t)  # noqa: E731
    tau = lambda t: 0.0 if t <= 0 else schedule.sigma(t) / norm(t)  # noqa: E731

    def mean_velocity(z: Any, c: Any, t: float) -> Any:
        k = low + (1 - low) * (1 - t)
        y = schedule.alpha(k) * z - schedule.sigma(k) * student64(z, c, k)
        return (z / norm(1.0) - y) / tau(1.0)

    trajectory, fidelity = [], []
    for z, c, (t, u) in zip(z_1, z_l, times, strict=True):
        x_t = z / norm(1.0) + (tau(t) - tau(1.0)) * mean_velocity(z, c, t)
        z_t = x_t * norm(t)
        v = teacher64(z_t, c, t)
        a, s = schedule.alpha(t), schedule.sigma(t)
        velocity = (s * z_t + a * v) - (a * z_t - s * v)
        target = (tau(1.0) - tau(t)) * mean_velocity(z, c, t) + (tau(t) - tau(u)) * velocity
        target /= tau(1.0) - tau(u)
        trajectory.append(np.mean((tau(1.0) * (mean_velocity(z, c, u) - target)) ** 2))
        first = schedule.alpha(1.0) * z - schedule.sigma(1.0) * teacher64(z, c, 1.0)
        fidelity.append(np.mean((z / norm(1.0) - tau(1.0) * mean_velocity(z, c, 1.0) - first) ** 2))
    assert logs["trajectory"] == pytest.approx(np.mean(trajectory), rel=1e-4)
    assert logs["fidelity"] == pytest.approx(np.mean(fidelity), rel=1e-4)
    assert total.item() == pytest.approx(np.mean(trajectory) + 0.5 * np.mean(fidelity), rel=1e-4)


def test_oftsr_dial_goes_from_the_teachers_first_estimate_to_its_sample() -> None:
    """A bundle's ``timestep`` is the dial: the product's step at k is the student's answer there."""
    schedule, low = Schedule(), 0.6
    teacher = gaussian_teacher(schedule)
    objective = with_teacher("oftsr", schedule, teacher, low=low)
    assert isinstance(objective, Oftsr)
    student, z_1, z_l = exact_student(schedule, low), batch().z_h, batch().z_l
    faithful, real = (ddim(student, schedule, z_l, z_1, start=k).float() for k in (low, 1.0))
    torch.testing.assert_close(faithful, one_step(teacher, schedule, z_1, z_l))
    torch.testing.assert_close(real, MEAN + STD * z_1)
    between = ddim(student, schedule, z_l, z_1, start=0.8).float()
    half = torch.full((len(z_1),), 0.5)
    torch.testing.assert_close(between, objective.answer(student, z_1, z_l, half).float())
    assert real.std() > between.std() > faithful.std()


# ----------------------------------------------------------------------------------------------------------
# SFDDM


@pytest.mark.parametrize(("steps", "teacher_steps"), [(1, 8), (2, 8), (4, 4), (3, 9)])
@pytest.mark.parametrize("kind", ["cosine", "scaled_linear"])
def test_sfddm_is_solved_by_a_student_whose_few_steps_are_the_teachers_many(
    kind: str, steps: int, teacher_steps: int
) -> None:
    schedule = Schedule(kind)
    teacher = bent(0.5)[0]
    objective = with_teacher("sfddm", schedule, teacher, steps=steps, teacher_steps=teacher_steps)

    def student(x: Tensor, t: Tensor) -> Tensor:
        target: Tensor = objective.target(x[:, :C], x[:, C:], t)
        return target

    z_1, z_l = batch().z_h, batch().z_l
    many = ddim(teacher, schedule, z_l, z_1, steps=teacher_steps)
    torch.testing.assert_close(ddim(student, schedule, z_l, z_1, steps=steps), many, atol=2e-5, rtol=1e-5)
    assert objective.loss(student, batch(), rng())[0].item() == 0.0
    if steps == teacher_steps:
        torch.testing.assert_close(student(torch.cat([z_1, z_l], 1), torch.ones(4)), teacher(
            torch.cat([z_1, z_l], 1), torch.ones(4)
        ), atol=1e-5, rtol=1e-5)  # fmt: skip


def test_sfddm_loss_is_the_error_against_the_teachers_walk() -> None:
    schedule, steps, fold = Schedule(), 2, 3
    (student, student64), (teacher, teacher64) = bent(0.8), bent(0.5)
    objective = with_teacher("sfddm", schedule, teacher, steps=steps, teacher_steps=steps * fold)
    latents = batch()
    total, _ = objective.loss(student, latents, rng(3))
    g = rng(3)
    noise = torch.randn(latents.z_h.shape, generator=g).double().numpy()
    times = (torch.randint(1, steps + 1, (4,), generator=g) / steps).tolist()
    assert set(times) == {0.5, 1.0}
    errors = []
    for z_h, c, eps, t in zip(
        latents.z_h.double().numpy(), latents.z_l.double().numpy(), noise, times, strict=True
    ):
        u = t - 0.5
        a, s, a_u, s_u = schedule.alpha(t), schedule.sigma(t), schedule.alpha(u), schedule.sigma(u)
        z_t = a * z_h + s * eps
        z_u = numpy_ddim(teacher64, z_t, c, [t, t - 1 / 6, t - 2 / 6, u], schedule)
        # the clean latent and noise that explain both ends of the student's one step
        x0, e = np.linalg.solve(np.array([[a, s], [a_u, s_u]]), np.stack([z_t.ravel(), z_u.ravel()]))
        v = (a * e - s * x0).reshape(z_t.shape)
        errors.append(np.mean((student64(z_t, c, t) - v) ** 2))
    assert total.item() == pytest.approx(np.mean(errors), rel=1e-4)


def test_sfddm_refuses_steps_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="got 8 and 3"):
        make_objective("sfddm", Schedule(), channels=C, teacher=torch.nn.Identity(), steps=3)


# ----------------------------------------------------------------------------------------------------------
# Flow trajectory


@pytest.mark.parametrize("kind", ["cosine", "scaled_linear"])
def test_flow_trajectory_loss_is_its_formula(kind: str) -> None:
    schedule, steps = Schedule(kind), 4
    (student, student64), (teacher, teacher64) = bent(0.8), bent(0.5)
    objective = with_teacher(
        "flow_trajectory", schedule, teacher, trajectory=0.7, variation=0.2, teacher_steps=steps
    )
    latents = objective.prepare(batch(), rng(3))
    total, logs = objective.loss(student, latents, rng())
    times = [1 - k / steps for k in range(steps + 1)]
    seen, start, along, variation = set(), [], [], []
    z_l = latents.z_l.double().numpy()
    for z, c, point, t in zip(
        latents.noise.double().numpy(), z_l, latents.point.numpy(), latents.time.tolist(), strict=True
    ):
        r = numpy_ddim(teacher64, z, c, times, schedule)
        z_t = numpy_ddim(teacher64, z, c, times[: times.index(t) + 1], schedule)
        np.testing.assert_allclose(point, z_t, atol=1e-5)
        seen.add(t)
        for where, at, into in ((z, 1.0, start), (z_t, t, along)):
            straight = (schedule.alpha(at) * where - r) / schedule.sigma(at)
            into.append(np.mean((student64(where, c, at) - straight) ** 2))
        wrong = schedule.alpha(1.0) * z - schedule.sigma(1.0) * student64(z, c, 1.0) - r
        variation.append(np.abs(np.diff(wrong, axis=1)).mean() + np.abs(np.diff(wrong, axis=2)).mean())
    assert len(seen) > 1
    parts = {"start": start, "trajectory": along, "variation": variation}
    assert logs == pytest.approx({name: float(np.mean(values)) for name, values in parts.items()}, rel=1e-4)
    expected = np.mean(start) + 0.7 * np.mean(along) + 0.2 * np.mean(variation)
    assert total.item() == pytest.approx(expected, rel=1e-4)


def test_flow_trajectory_is_solved_by_going_straight_to_the_teachers_end() -> None:
    """A student that knows the end has no loss, and its one step is the teacher's many."""
    schedule = Schedule("scaled_linear")
    teacher = bent(0.5)[0]
    objective = with_teacher("flow_trajectory", schedule, teacher, teacher_steps=5)
    latents = objective.prepare(batch(), rng(3))
    end = ddim(teacher, schedule, latents.z_l, latents.noise, steps=5)

    def student(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (wide(value) for value in schedule.alpha_sigma(t))
        return (alpha * x[:, :C] - end) / sigma

    total, logs = objective.loss(student, latents, rng())
    assert total.item() < 1e-5
    assert set(logs) == {"start", "trajectory", "variation"}
    torch.testing.assert_close(one_step(student, schedule, latents.noise, latents.z_l), end)
