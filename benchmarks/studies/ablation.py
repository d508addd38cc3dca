"""The paper's ablation at small scale: Table 4's four cells at x4 and x8, Figure 3, and TAD-SR part by part.

    with       x2 raw (1 unit) -> x4 distilled (1) -> x8 distilled (1)
    without    x4 raw (2 units), x8 raw (3 units)               the same U-Net budget per scale
    both       the same autoencoder, and a decoder fine-tuned for 1 unit per scale
    TAD-SR     from the x4 model of "with", 1 unit each: L_reg, + HFSD, + discriminator; one step on data

A unit is ``--unit-steps`` steps. Everything is seeded; an interrupted run goes on where it stopped.

    python -m benchmarks.studies.ablation --data photos/ --dev dev/ --run runs/ablation --unit-steps 2000 \
        --weights lpips_alex=lpips_alex.safetensors --weights lpips_vgg=lpips_vgg_fp16.safetensors
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
from safetensors.torch import load_file
from yonos_train.evaluate import Pair, Upscaler, crop_pairs, evaluate
from yonos_train.metrics import Metrics
from yonos_train.model import Bundle, new_bundle
from yonos_train.presets import PRESETS, RunConfig
from yonos_train.run import Run
from yonos_train.stages import StageConfig
from yonos_train.upscalers import BicubicUpscaler, BundleUpscaler

from benchmarks.machine import command_line, header
from benchmarks.studies.ablation_report import CELLS, markdown, orders, plot_steps

log = logging.getLogger(__name__)

PARTS: Final = ("table4", "figure3", "tad_sr")
STEPS: Final = (1, 2, 4, 8, 16, 32, 64)
TAD: Final[dict[str, dict[str, Any]]] = {
    "tad-reg": {"objective": "tad_sr", "loss": {"reg": 1.0, "hfsd": 0.0, "gan": 0.0}},
    "tad-reg-hfsd": {"objective": "tad_sr", "loss": {"reg": 1.0, "hfsd": 1.0, "gan": 0.0}},
    "tad-reg-hfsd-gan": {"objective": "tad_sr", "loss": {"reg": 1.0, "hfsd": 1.0, "gan": 0.02}},
    "one-step": {"objective": "one_step", "loss": {}},
}


# ----------------------------------------------------------------------------------------------------------
# Training


def configs(
    base: RunConfig,
    unit_steps: int,
    degradation: str,
    batch: int,
    crop_px: int,
    *,
    perceptual: bool = True,
    one_probability: float = 0.5,
    parts: Sequence[str] = PARTS,
) -> dict[str, RunConfig]:
    """Return the two runs with the stages that ``parts`` need; stage names say what they train."""
    common: dict[str, Any] = {"batch": batch, "crop_px": crop_px, "degradation": degradation}

    def stage(name: str, kind: str, scale: int, units: int, **more: Any) -> StageConfig:
        rate = {"autoencoder": 1e-3, "diffusion": 7e-4, "decoder": 4e-4, "encoder": 7e-4}[kind]
        settings = {"lr": rate, "steps": units * unit_steps, **common, **more}
        return StageConfig(name, kind, scale, **settings)

    loss = {"l1": 1.0, "gradient": 0.3}
    if perceptual:
        loss |= {"lpips_alex": 0.2, "lpips_vgg": 0.2, "vgg_share": 0.5}
    autoencoder = stage("autoencoder", "autoencoder", 0, 2)
    decoders = [stage(f"decoder-x{s}", "decoder", s, 1, loss=loss) for s in (4, 8)]
    tad = [
        stage(name, "diffusion", 4, 1, init="x4", teacher="x4", **{"lr": 2e-4, **more})
        for name, more in TAD.items()
    ]
    times = {"loss": {"one_probability": one_probability}}
    chain = [
        autoencoder,
        stage("x2", "diffusion", 2, 1, **times),
        stage("x4", "diffusion", 4, 1, init="x2", teacher="x2", **times),
    ]
    without = [autoencoder, stage("x4", "diffusion", 4, 2, **times)]
    if "table4" in parts:
        chain += [stage("x8", "diffusion", 8, 1, init="x4", teacher="x4", **times), *decoders]
        without += [stage("x8", "diffusion", 8, 3, **times), *decoders]
    if "tad_sr" in parts:
        chain += tad
    return {
        "with": dataclasses.replace(base, name="ablation-with", stages=tuple(chain)),
        "without": dataclasses.replace(base, name="ablation-without", stages=tuple(without)),
    }


def train(runs: Mapping[str, Run]) -> None:
    """Train both runs, with one autoencoder for both.

    A run puts the newest result of every finished stage into a later stage's networks, so the decoders are
    trained before the TAD-SR stages, and the TAD-SR stages start from the x4 stage by name.
    """
    runs["with"].run()
    copy_autoencoder(runs["with"].folder / "autoencoder", runs["without"].folder / "autoencoder")
    runs["without"].run()


def copy_autoencoder(source: Path, target: Path) -> None:
    """Copy a finished autoencoder stage's networks where there are none yet."""
    names = ("encoder.safetensors", "decoder.safetensors")
    for name in names:
        if not (source / name).is_file():
            raise FileNotFoundError(
                f"autoencoder: {source} has no {name}; give the autoencoder folder of a run that finished it"
            )
    for name in names:
        if not (target / name).is_file():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name)


def assemble(run: Run, scale: int, unet: str, *, tuned: bool) -> Bundle:
    """Return the networks with the U-Net of stage ``unet``, and the original or the tuned decoder."""
    bundle = new_bundle(run.config.bundle_config(scale))
    decoder = f"decoder-x{scale}" if tuned else "autoencoder"
    for module, stage in (("encoder", "autoencoder"), ("unet", unet), ("decoder", decoder)):
        getattr(bundle, module).load_state_dict(load_file(run.result(stage, module)))
    return bundle


# ----------------------------------------------------------------------------------------------------------
# Measuring


def table4(runs: Mapping[str, Run], pairs: Mapping[int, Sequence[Pair]], metrics: Metrics) -> dict[str, Any]:
    """Return the four cells at each scale, and for every comparison whether its order is the paper's."""
    result: dict[str, Any] = {}
    for scale, own in pairs.items():
        upscalers: dict[str, Upscaler] = {"bicubic": BicubicUpscaler(scale)}
        for decoder, run in CELLS:
            bundle = assemble(runs[run], scale, f"x{scale}", tuned=decoder.startswith("tuned"))
            upscalers[f"{decoder}, {run}"] = BundleUpscaler(bundle)
        report = evaluate(upscalers, own, metrics)
        values = {
            method: {
                name: [row[name] for row in report.rows if row["method"] == method] for name in metrics.names
            }
            for method in upscalers
        }
        result[f"x{scale}"] = {"cells": _overall(report.means), "orders": orders(values, scale)}
    return result


def _overall(means: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    last = "all" if any(row["set"] == "all" for row in means) else means[0]["set"]
    return {
        row["method"]: {k: v for k, v in row.items() if k not in ("set", "method")}
        for row in means
        if row["set"] == last
    }


def figure3(runs: Mapping[str, Run], pairs: Sequence[Pair], metrics: Metrics) -> dict[str, Any]:
    """Return quality against DDIM steps at x4, original decoder, with and without distillation."""
    curves: dict[str, Any] = {}
    for name, run in runs.items():
        bundle = assemble(run, 4, "x4", tuned=False)
        upscalers: dict[str, Upscaler] = {str(n): BundleUpscaler(bundle, steps=n) for n in STEPS}
        curves[name] = _overall(evaluate(upscalers, pairs, metrics).means)
    return curves


def tad_rows(run: Run, pairs: Sequence[Pair], metrics: Metrics) -> dict[str, dict[str, float]]:
    """Return the x4 model before, and after each further objective; original decoder, one step."""
    upscalers: dict[str, Upscaler] = {
        stage: BundleUpscaler(assemble(run, 4, stage, tuned=False)) for stage in ("x4", *TAD)
    }
    return _overall(evaluate(upscalers, pairs, metrics).means)


# ----------------------------------------------------------------------------------------------------------
# The whole


def ablation(
    base: RunConfig,
    *,
    data: str,
    dev: str,
    folder: Path,
    weights: Mapping[str, str],
    unit_steps: int,
    degradation: str = "average",
    perceptual: bool = True,
    batch: int = 16,
    crop_px: int = 128,
    metric_names: Sequence[str] = ("psnr_y", "lpips_alex", "lpips_vgg"),
    crops: int = 2,
    hr_px: int = 256,
    sets: Sequence[str] = (),
    device: str = "cpu",
    command: Sequence[str] = (),
    limit: int = 0,
    autoencoder: Path | None = None,
    one_probability: float = 0.5,
    parts: Sequence[str] = PARTS,
) -> dict[str, Any]:
    """Train, measure and write ``ablation.json``, ``ablation.md`` and ``steps.png`` into ``folder``.

    ``autoencoder`` is the folder of a finished autoencoder stage to use instead of training one,
    ``one_probability`` the share of training samples at t = 1 (0: uniform times, as in the paper).
    """
    check_parts(parts)
    if autoencoder is not None:
        copy_autoencoder(autoencoder, folder / "with" / "autoencoder")
    made = configs(
        base,
        unit_steps,
        degradation,
        batch,
        crop_px,
        perceptual=perceptual,
        one_probability=one_probability,
        parts=parts,
    )
    runs = {
        name: Run(config, folder / name, data=data, weights=dict(weights), limit=limit)
        for name, config in made.items()
    }
    train(runs)
    metrics = Metrics(metric_names, weights, device=device)
    pairs = {
        scale: crop_pairs(dev, scale, crops=crops, hr_px=hr_px, sets=sets, degradation=degradation)
        for scale in (4, 8)
    }
    measure: dict[str, Callable[[], dict[str, Any]]] = {
        "table4": lambda: table4(runs, pairs, metrics),
        "figure3": lambda: figure3(runs, pairs[4], metrics),
        "tad_sr": lambda: tad_rows(runs["with"], pairs[4], metrics),
    }
    report = {
        **header("ablation", command, peaks=False),
        "unit_steps": unit_steps,
        "autoencoder": "given" if autoencoder is not None else f"{2 * unit_steps} steps",
        "degradation": degradation,
        "one_probability": one_probability,
        "sets": sorted({pair.set for pair in pairs[4]}),
        "pairs": {f"x{scale}": len(own) for scale, own in pairs.items()},
        **{part: measure[part]() for part in PARTS if part in parts},
    }
    (folder / "ablation.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (folder / "ablation.md").write_text(markdown(report), encoding="utf-8")
    if "figure3" in report:
        plot_steps(report["figure3"], folder / "steps.png")
    return report


def check_parts(parts: Sequence[str]) -> None:
    """Refuse names that are no parts, and none at all."""
    if not parts or set(parts) - set(PARTS):
        raise ValueError(f"parts: got {', '.join(parts) or 'none'}, expected some of {', '.join(PARTS)}")


def _parts(_context: click.Context, _option: click.Parameter, value: str) -> list[str]:
    parts = [part for part in value.split(",") if part]
    try:
        check_parts(parts)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return parts


@click.command()
@click.option("--data", required=True, help="Training pictures.")
@click.option("--dev", required=True, help="Sets to measure on, <set>/HR.")
@click.option("--run", "folder", required=True, type=click.Path(path_type=Path), help="Run folder.")
@click.option("--weights", multiple=True, metavar="NAME=FILE", help="lpips_alex, lpips_vgg, dists.")
@click.option("--unit-steps", default=2000, show_default=True, help="Steps of one unit.")
@click.option("--degradation", default="average", show_default=True)
@click.option("--no-perceptual", is_flag=True, help="Fine-tune decoders without LPIPS.")
@click.option(
    "--preset", default="lite", show_default=True, type=click.Choice(("lite", "smoke")), help="Networks."
)
@click.option("--batch", default=16, show_default=True)
@click.option("--crop-px", default=128, show_default=True)
@click.option("--crops", default=2, show_default=True, help="Measured crops a picture.")
@click.option("--hr-px", default=256, show_default=True, help="Their side.")
@click.option("--sets", default="", help="Comma-separated sets of --dev.")
@click.option(
    "--autoencoder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A finished autoencoder stage's folder, instead of training one.",
)
@click.option("--limit", default=0, show_default=True, help="First N training pictures (0: all).")
@click.option(
    "--one-probability", default=0.5, show_default=True, help="Share of samples at t = 1 (the paper: 0)."
)
@click.option(
    "--parts",
    default=",".join(PARTS),
    show_default=True,
    callback=_parts,
    help="What to train for and measure.",
)
@click.option("--device", default="cpu", show_default=True, help="Where models are measured.")
def main(
    data: str,
    dev: str,
    folder: Path,
    weights: tuple[str, ...],
    unit_steps: int,
    degradation: str,
    no_perceptual: bool,
    preset: str,
    batch: int,
    crop_px: int,
    crops: int,
    hr_px: int,
    sets: str,
    limit: int,
    device: str,
    autoencoder: Path | None,
    one_probability: float,
    parts: list[str],
) -> None:
    """Run the ablation and print its tables."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    report = ablation(
        PRESETS[preset],
        data=data,
        dev=dev,
        folder=folder,
        weights=dict(pair.partition("=")[::2] for pair in weights),
        unit_steps=unit_steps,
        degradation=degradation,
        perceptual=not no_perceptual,
        batch=batch,
        crop_px=crop_px,
        crops=crops,
        hr_px=hr_px,
        sets=[name for name in sets.split(",") if name],
        device=device,
        command=command_line("benchmarks.studies.ablation"),
        limit=limit,
        autoencoder=autoencoder,
        one_probability=one_probability,
        parts=parts,
    )
    click.echo(markdown(report))


if __name__ == "__main__":
    main()
