"""Does the easier picture help? Truth against an x2 teacher as the target of the x4 U-Net, all else equal.

The paper's comparison is one of the last stage: both students start from the same trained x2 U-Net, take the
same steps on the same crops, times (uniform) and noise, and differ in the target alone:

    truth     v of the HR latent
    teacher   v that the frozen x2 U-Net predicts from the same z_t, fed the x2 view of the same crop

Encoder, decoder and the x2 U-Net's first weights are the shipped lite-x2's. That U-Net knows t = 1 alone, so
``--teacher-steps`` on the truth with uniform times make the teacher first. The rate stays constant after its
warm-up: a student after N steps is what a run of N steps gives. Measured are the running means of the
weights, in one step from t = 1. ``gradients``: the loss's gradient over further batches, its mean and its
variance. Seeded; finished parts are kept in ``--run``, an interrupted run goes on with the others.

    python -m benchmarks.studies.distillation --data photos/ --dev dev/ --run runs/distillation \
        --weights lpips_alex=lpips_alex.safetensors
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from yonos_train.data import CropConfig, Crops, ImageFolder, generator
from yonos_train.ema import Ema
from yonos_train.engine_weights import load_start
from yonos_train.evaluate import Pair, crop_pairs, evaluate
from yonos_train.folders import save_tensors
from yonos_train.loop import fast_precision
from yonos_train.metrics import Metrics, as_tensor
from yonos_train.model import Bundle
from yonos_train.objectives import STUDENT
from yonos_train.objectives.base import one_step
from yonos_train.stage import StageConfig, resize_like
from yonos_train.stages import DiffusionStage, frozen_copy
from yonos_train.upscalers import BundleUpscaler

from benchmarks.machine import command_line, header
from yonos_trt.atomic import write_file

log = logging.getLogger(__name__)

TARGETS: Final = ("truth", "teacher")
MARKS: Final = (0, 250, 500, 1000, 2000, 4000)
LATENT_ERROR: Final = "latent_mse"
Row = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all runs of the study share: samples a step, learning rate, its warm-up, and the degradation."""

    batch: int
    lr: float
    degradation: str
    warmup_steps: int = 50
    crop_px: int = 128
    ema: float = 0.99

    def stage(self, scale: int, target: str, steps: int) -> StageConfig:
        """Return the stage that trains for ``scale`` on ``target``, with uniform times."""
        return StageConfig(
            f"x{scale}-{target}",
            "diffusion",
            scale,
            objective="raw" if target == "truth" else "scale_distillation",
            steps=steps,
            batch=self.batch,
            crop_px=self.crop_px,
            lr=self.lr,
            degradation=self.degradation,  # type: ignore[arg-type]
            loss={"one_probability": 0.0},
        )


def make_stage(
    bundle: Bundle, start: nn.Module, teacher: nn.Module | None, config: StageConfig
) -> DiffusionStage:
    """Return the stage with a U-Net of its own that begins as ``start``."""
    own = copy.copy(bundle)
    own.unet = copy.deepcopy(start).requires_grad_(True).train()
    own.encoder = frozen_copy(bundle.encoder)
    guide = None if teacher is None else frozen_copy(teacher)
    return DiffusionStage(config, own, teacher=guide, teacher_scale=None if guide is None else 2)


def loss_of(stage: DiffusionStage, crops: Crops, step: int) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of batch ``step``; its crops, times and noise depend on seed and ``step`` alone."""
    rng = generator("distillation", crops.seed, step)
    with torch.autocast("cpu", torch.bfloat16, enabled=fast_precision("cpu") == "bf16"):
        return stage.loss(STUDENT, crops.batch(step, stage.config.batch), rng, step)


def train(
    stage: DiffusionStage,
    crops: Crops,
    settings: Settings,
    marks: Sequence[int],
    at_mark: Callable[[int, nn.Module], None],
) -> None:
    """Train the stage's U-Net up to the last mark; ``at_mark`` gets the running mean of its weights."""
    unet = stage.unet
    parameters = list(unet.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=stage.config.weight_decay)
    ema, averaged = Ema(unet, settings.ema), copy.deepcopy(unet)
    for step in range(max(marks) + 1):
        if step in marks:
            ema.copy_to(averaged)
            at_mark(step, averaged)
        if step == max(marks):
            return
        for group in optimiser.param_groups:
            group["lr"] = settings.lr * min(1.0, (step + 1) / settings.warmup_steps)
        optimiser.zero_grad(set_to_none=True)
        loss, _ = loss_of(stage, crops, step)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, stage.config.clip)
        optimiser.step()
        ema.update(unet, step)


def gradients(stage: DiffusionStage, crops: Crops, first: int, count: int) -> Row:
    """Return what ``count`` batches' gradients of the loss say, the U-Net standing still.

    ``signal`` is the squared norm of the mean gradient (less the bias that a mean of few has), ``variance``
    the summed variance of one batch's, ``ratio`` variance over signal: the larger, the more batches
    a step would have to average before it knows where to go. ``loss`` is their mean.
    """
    parameters = list(stage.unet.parameters())
    mean, squares, losses = [torch.zeros_like(p, dtype=torch.float64) for p in parameters], 0.0, []
    for step in range(first, first + count):
        loss, _ = loss_of(stage, crops, step)
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        for total, g in zip(mean, found, strict=True):
            if g is not None:
                total += g.double() / count
                squares += float(g.double().square().sum()) / count
        losses.append(float(loss.detach()))
    norm = sum(float(total.square().sum()) for total in mean)
    variance = (squares - norm) * count / (count - 1)
    signal = norm - variance / count
    return {
        "loss": float(np.mean(losses)),
        "signal": signal,
        "variance": variance,
        "ratio": variance / signal,
    }


# ----------------------------------------------------------------------------------------------------------
# Measuring


def latent_error(bundle: Bundle, unet: nn.Module, pairs: Sequence[Pair]) -> float:
    """Return the mean square error of the latent that the one step makes, against the HR picture's."""
    errors = []
    for index, pair in enumerate(pairs):
        x_l, x_h = map(as_tensor, pair.load())
        with torch.no_grad():
            z_h, z_l = bundle.encoder(x_h), bundle.encoder(resize_like(x_l, x_h))
            noise = torch.randn(z_h.shape, generator=generator("distillation-error", index))
            z_0 = one_step(unet, bundle.schedule, noise, z_l)
        errors.append(float((z_0 - z_h).square().mean()))
    return float(np.mean(errors))


def measure(bundle: Bundle, unet: nn.Module, pairs: Sequence[Pair], metrics: Metrics) -> Row:
    """Return the one-step quality of a U-Net with the bundle's encoder and decoder, and its latent error."""
    own = copy.copy(bundle)
    own.unet, own.config = unet.eval(), dataclasses.replace(bundle.config, scale=pairs[0].scale)
    means = evaluate({"it": BundleUpscaler(own)}, pairs, metrics).means[-1]
    return {LATENT_ERROR: latent_error(bundle, unet, pairs), **{name: means[name] for name in metrics.names}}


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """Return the JSON document at ``path``; what is missing is made and written, whole or not at all."""
    if not path.is_file():
        write_file(path, json.dumps(make(), indent=1) + "\n")
    return json.loads(path.read_text(encoding="utf-8"))


def study(
    *,
    data: str,
    dev: str,
    folder: Path,
    weights: Mapping[str, str],
    settings: Settings,
    teacher_steps: int,
    seeds: Sequence[int],
    marks: Sequence[int],
    sets: Sequence[str],
    hr_px: int,
    gradient_batches: int,
    command: Sequence[str] = (),
    limit: int = 0,
) -> dict[str, Any]:
    """Train teacher and students, measure, and write ``distillation.json`` and ``distillation.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    bundle = load_start("lite-x2")
    pictures = ImageFolder(data, smallest_px=settings.crop_px, limit=limit)
    metrics = Metrics(("psnr_y", *weights), weights)
    pairs = {
        scale: crop_pairs(dev, scale, crops=1, hr_px=hr_px, sets=sets, degradation=settings.degradation)
        for scale in (2, 4)
    }

    def crops(seed: int) -> Crops:
        return Crops(pictures, CropConfig(settings.crop_px), seed=seed)

    def make_teacher() -> Row:
        stage = make_stage(bundle, bundle.unet, None, settings.stage(2, "truth", max(1, teacher_steps)))

        def keep(_step: int, unet: nn.Module) -> None:
            save_tensors(dict(unet.state_dict()), folder / "teacher.safetensors")

        train(stage, crops(1), settings, (teacher_steps,), keep)
        teacher = copy.deepcopy(bundle.unet)
        teacher.load_state_dict(load_file(folder / "teacher.safetensors"))
        return {"steps": teacher_steps, **measure(bundle, teacher, pairs[2], metrics)}

    report: dict[str, Any] = {
        **header("distillation", command, peaks=False),
        "batch": settings.batch,
        "lr": settings.lr,
        "degradation": settings.degradation,
        "pairs": len(pairs[4]),
        "teacher": kept(folder / "teacher.json", make_teacher),
        "students": {},
        "gradients": {},
    }
    teacher = copy.deepcopy(bundle.unet)
    teacher.load_state_dict(load_file(folder / "teacher.safetensors"))

    def student(target: str, seed: int) -> dict[str, Any]:
        guide = teacher if target == "teacher" else None
        rows: dict[str, Row] = {}
        found: dict[str, Row] = {}
        stage = make_stage(bundle, teacher, guide, settings.stage(4, target, max(marks)))

        def at_mark(step: int, unet: nn.Module) -> None:
            rows[str(step)] = measure(bundle, unet, pairs[4], metrics)
            log.info("%s, seed %d, step %d: %s", target, seed, step, rows[str(step)])
            if gradient_batches and seed == seeds[0] and step in (min(marks), max(marks)):
                # both targets' gradients at this student's weights, on batches it has not seen
                for name in TARGETS:
                    other = teacher if name == "teacher" else None
                    at = make_stage(bundle, unet, other, settings.stage(4, name, 1))
                    found[f"at {target}'s step {step}, {name}"] = gradients(
                        at, crops(seed), 10**6, gradient_batches
                    )

        train(stage, crops(seed), settings, marks, at_mark)
        return {"rows": rows, "gradients": found}

    for seed in seeds:
        for target in TARGETS:
            path = folder / f"{target}-{seed}.json"
            done = kept(path, lambda target=target, seed=seed: student(target, seed))  # type: ignore[misc]
            report["students"].setdefault(target, {})[str(seed)] = done["rows"]
            report["gradients"].update(done["gradients"])
    write_file(folder / "distillation.json", json.dumps(report, indent=1) + "\n")
    write_file(folder / "distillation.md", markdown(report))
    return report


# ----------------------------------------------------------------------------------------------------------
# Telling


def markdown(report: Mapping[str, Any]) -> str:
    """Return the tables: quality by steps and target (mean, deviation over seeds), and the gradients."""
    students: Mapping[str, Mapping[str, Mapping[str, Row]]] = report["students"]
    first = next(iter(next(iter(students.values())).values()))
    steps, names = list(first), list(next(iter(first.values())))
    lines = ["| steps | target | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]

    def values(target: str, step: str, name: str) -> np.ndarray[Any, Any]:
        return np.array([rows[step][name] for rows in students[target].values()])

    def cell(found: np.ndarray[Any, Any], name: str, sign: str = "") -> str:
        digits = 3 if name == "psnr_y" else 4
        spread = f" ({found.std(ddof=1):.{digits}f})" if len(found) > 1 else ""
        return f"{found.mean():{sign}.{digits}f}{spread}"

    for step in steps:
        for target in students:
            lines.append(
                f"| {step} | {target} | " + " | ".join(cell(values(target, step, n), n) for n in names) + " |"
            )
        if set(TARGETS) <= set(students):
            apart = (cell(values("teacher", step, n) - values("truth", step, n), n, "+") for n in names)
            lines.append(f"| {step} | teacher - truth | " + " | ".join(apart) + " |")
    if report["gradients"]:
        lines += ["", "| gradient | loss | signal | variance | ratio |", "|---" * 5 + "|"]
        lines += [
            f"| {name} | {r['loss']:.4f} | {r['signal']:.3g} | {r['variance']:.3g} | {r['ratio']:.3g} |"
            for name, r in report["gradients"].items()
        ]
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--data", required=True, help="Training pictures.")
@click.option("--dev", required=True, help="Sets to measure on, <set>/HR.")
@click.option(
    "--run", "folder", required=True, type=click.Path(path_type=Path), help="Folder for parts and report."
)
@click.option(
    "--weights", multiple=True, metavar="NAME=FILE", help="lpips_alex, lpips_vgg, dists: further metrics."
)
@click.option("--teacher-steps", default=2000, show_default=True, help="Steps that make lite-x2 a teacher.")
@click.option("--seeds", default=3, show_default=True, help="Runs of each target.")
@click.option("--steps", default=MARKS[-1], show_default=True, help="Steps of a student.")
@click.option("--batch", default=8, show_default=True)
@click.option("--lr", default=3e-4, show_default=True, help="Learning rate, constant.")
@click.option("--degradation", default="average", show_default=True)
@click.option(
    "--sets",
    default="kodak,set14_x4,urban100_x4,bsd100_x4,cid22val",
    show_default=True,
    help="Sets of --dev.",
)
@click.option("--hr-px", default=256, show_default=True, help="Side of the measured crops, one a picture.")
@click.option(
    "--gradient-batches", default=64, show_default=True, help="Batches for the gradients' variance (0: none)."
)
@click.option("--limit", default=0, show_default=True, help="First N training pictures (0: all).")
def main(
    data: str,
    dev: str,
    folder: Path,
    weights: tuple[str, ...],
    teacher_steps: int,
    seeds: int,
    steps: int,
    batch: int,
    lr: float,
    degradation: str,
    sets: str,
    hr_px: int,
    gradient_batches: int,
    limit: int,
) -> None:
    """Run the study and print its tables."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    report = study(
        data=data,
        dev=dev,
        folder=folder,
        weights=dict(pair.partition("=")[::2] for pair in weights),
        settings=Settings(batch=batch, lr=lr, degradation=degradation),
        teacher_steps=teacher_steps,
        seeds=range(seeds),
        marks=sorted({mark for mark in MARKS if mark < steps} | {steps}),
        sets=[name for name in sets.split(",") if name],
        hr_px=hr_px,
        gradient_batches=gradient_batches,
        command=command_line("benchmarks.studies.distillation"),
        limit=limit,
    )
    click.echo(markdown(report))


if __name__ == "__main__":
    main()
