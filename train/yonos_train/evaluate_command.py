"""``yonos-train eval``: measure bundles, bicubic, and other programs' results."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from yonos_trt.cli.options import LocalPath

if TYPE_CHECKING:
    from .model import Bundle


INTERRUPTED = 130  # exit code


def named_paths(pairs: tuple[str, ...], option: str, *, known: Sequence[str] = ()) -> dict[str, str]:
    """Parse ``NAME=PATH`` pairs, each name once and, where ``known`` is given, one of those."""
    out: dict[str, str] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name or not value or name in out:
            raise click.BadParameter(f"got {pair!r}, expected NAME=PATH, each name once", param_hint=option)
        if known and name not in known:
            raise click.BadParameter(f"got {name!r}, expected one of {', '.join(known)}", param_hint=option)
        out[name] = value
    return out


def _steps(text: str) -> list[int]:
    try:
        steps = [int(part) for part in text.split(",")]
    except ValueError:
        steps = []
    if not steps or min(steps) < 1:
        raise click.BadParameter(f"got {text!r}, expected numbers >= 1, e.g. 1,2,4", param_hint="--steps")
    return steps


def _open(folder: str, scale: int) -> Bundle:
    """Load a lite bundle, or the diffusers folder of an ``sd`` run."""
    from .model import load_bundle

    path = Path(folder)
    if not (path / "unet").is_dir():
        return load_bundle(path)
    from .sd_folder import load_sd

    return load_sd(path, scale)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--data", required=True, type=LocalPath(text=True), help="Folder of sets, <set>/HR and <set>/LR."
)
@click.option("--scale", required=True, type=click.IntRange(min=1), help="Upscaling factor of the pairs.")
@click.option("--model", "models", multiple=True, metavar="NAME=FOLDER", help="A bundle folder.")
@click.option(
    "--results", multiple=True, metavar="NAME=FOLDER", help="Pictures made elsewhere, <set>/<name>.png."
)
@click.option("--sets", default="", help="Comma-separated sets (default: all).")
@click.option(
    "--metrics",
    "metric_names",
    default="psnr_y,ssim_y,lpips_alex,lpips_vgg,dists",
    show_default=True,
    help="Comma-separated metrics; also fid.",
)
@click.option("--weights", multiple=True, metavar="NAME=FILE", help="lpips_alex, lpips_vgg, dists, ...")
@click.option("--steps", default="1", show_default=True, help="Comma-separated numbers of DDIM steps.")
@click.option(
    "--protocol",
    type=click.Choice(["whole", "crops"]),
    default="whole",
    show_default=True,
    help="Whole pictures, or seeded random crops.",
)
@click.option("--crops", type=click.IntRange(min=1), default=30, show_default=True, help="Crops a picture.")
@click.option("--crop-px", type=click.IntRange(min=1), default=512, show_default=True, help="HR crop side.")
@click.option(
    "--degradation",
    default=None,
    help="Makes LR pictures where none are given (default: bicubic; realesrgan for crops).",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of crops, degradation and noise.")
@click.option("--limit", type=int, default=0, show_default=True, help="First N pictures a set (0: all).")
@click.option("--device", default="cpu", show_default=True, help="torch device.")
@click.option("--no-bicubic", is_flag=True, help="Leave bicubic out.")
@click.option("-o", "--output", type=LocalPath(text=True), help="Write OUTPUT.json and OUTPUT.md.")
@click.option("--save-images", type=LocalPath(text=True), help="Folder for the upscaled pictures.")
def evaluate_command(
    data: str,
    scale: int,
    models: tuple[str, ...],
    results: tuple[str, ...],
    sets: str,
    metric_names: str,
    weights: tuple[str, ...],
    steps: str,
    protocol: str,
    crops: int,
    crop_px: int,
    degradation: str | None,
    seed: int,
    limit: int,
    device: str,
    no_bicubic: bool,
    output: str | None,
    save_images: str | None,
) -> None:
    """Measure trained bundles against bicubic interpolation and other programs' results."""
    from tqdm import tqdm

    from .evaluate import Upscaler, crop_pairs, evaluate, whole_pairs
    from .metrics import Metrics
    from .preflight import check_writable
    from .upscalers import BicubicUpscaler, BundleUpscaler

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    wanted = [name for name in sets.split(",") if name]
    counts = _steps(steps)
    settings = {
        "protocol": protocol, "scale": scale, "seed": seed, "steps": counts, "degradation": degradation,
        "crops": crops if protocol == "crops" else None, "crop_px": crop_px if protocol == "crops" else None,
    }  # fmt: skip
    bundles, folders = named_paths(models, "--model"), named_paths(results, "--results")
    files = named_paths(weights, "--weights")
    try:
        for target in (output, save_images):
            if target:
                check_writable(Path(target).parent if target == output else Path(target))
        if protocol == "crops":
            pairs = crop_pairs(
                data, scale, crops=crops, hr_px=crop_px, sets=wanted, seed=seed, limit=limit,
                degradation=degradation or "realesrgan",
            )  # fmt: skip
        else:
            pairs = whole_pairs(
                data, scale, sets=wanted, seed=seed, limit=limit, degradation=degradation or "bicubic"
            )
        metrics = Metrics(metric_names.split(","), files, device=device)
        upscalers: dict[str, Upscaler] = {} if no_bicubic else {"bicubic": BicubicUpscaler(scale)}
        for name, folder in bundles.items():
            bundle = _open(folder, scale)
            if bundle.config.scale != scale:
                raise ValueError(f"{folder}: model for x{bundle.config.scale}, expected x{scale}")
            for count in counts:
                label = name if count == 1 else f"{name}, {count} steps"
                upscalers[label] = BundleUpscaler(bundle, steps=count, seed=seed, device=device)
        report = evaluate(
            upscalers,
            pairs,
            metrics,
            results={name: Path(folder) for name, folder in folders.items()},
            save=Path(save_images) if save_images else None,
            settings=settings,
            progress=lambda items: tqdm(items, unit="picture", mininterval=2),
        )
        if output:
            report.write(output)
    except (ValueError, OSError) as error:
        click.echo(f"yonos-train eval: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    click.echo(report.to_markdown(), nl=False)
