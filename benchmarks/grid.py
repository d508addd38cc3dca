"""Measure whether pictures carry a grid: a pattern that repeats with the period of the network's blocks.

::

    python -m benchmarks.grid DEV --engine yonos_trt/models/lite-x4 --sets kodak,bsd100_x4

A latent of factor f is decoded to blocks of f x f px, and a decoder that is not trained against it leaves a
faint pattern of that period in textures, which PSNR and LPIPS hardly see. Here it is `grid_excess` of the
decoder's loss against grids, averaged over a picture's patches and given in dB: a photograph has about 0.
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import torch
from numpy.typing import NDArray
from yonos_train.grid_loss import grid_excess
from yonos_train.metrics import as_tensor

from benchmarks.machine import command_line, describe_model, header

__all__ = ["grid_db"]

PATCH_PX: Final = 128


def grid_db(picture: NDArray[Any], period_px: int) -> float:
    """Return the power at the grid's frequencies over that around them in dB.

    It is the mean over half-overlapping patches of 128 px and over the frequencies, each counted alike.

    Parameters
    ----------
    picture
        (H, W, 3) uint8; both sides at least 128 px.
    period_px
        The pattern's period, a divisor of 128 from 2 to 8.

    Raises
    ------
    ValueError
        The picture is too small, or the period does not divide 128 or is too long for it.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or min(picture.shape[:2]) < PATCH_PX:
        raise ValueError(
            f"picture: got shape {picture.shape}, expected (H, W, 3) of at least {PATCH_PX} px a side"
        )
    if period_px < 2:
        raise ValueError(f"period_px: got {period_px}, expected at least 2")
    corners = itertools.product(*(range(0, n - PATCH_PX + 1, PATCH_PX // 2) for n in picture.shape[:2]))
    patches = [as_tensor(picture[top : top + PATCH_PX, left : left + PATCH_PX]) for top, left in corners]
    excess = torch.stack([grid_excess(patch, period_px).mean() for patch in patches])  # patches count alike
    return float(excess.mean()) * 10 / math.log(10)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--engine", type=click.Path(path_type=Path, exists=True), required=True, help="Engine directory."
)
@click.option("--sets", default="", help="Comma-separated sets of FOLDER.")
@click.option("--limit", default=0, show_default=True, help="First N pictures of a set (0: all).")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file to write.")
def main(folder: Path, engine: Path, sets: str, limit: int, out: Path | None) -> None:
    """Print the grid of original, bicubic and upscaled pictures."""
    from PIL import Image

    from benchmarks.quality import pairs_of
    from yonos_trt import SR, load_manifest

    manifest = load_manifest(engine)
    scale, period_px = manifest.model.scale, manifest.model.latent_factor
    rows: list[dict[str, Any]] = []
    names = [name for name in sets.split(",") if name]
    with SR(engine) as sr:
        for pair in pairs_of(folder, scale, "bicubic", sets=names, limit=limit):
            lr, hr = pair.load()
            if min(hr.shape[:2]) < PATCH_PX:
                continue
            size = (hr.shape[1], hr.shape[0])
            shown = {
                "original": hr,
                "bicubic": np.asarray(Image.fromarray(lr).resize(size, Image.Resampling.BICUBIC)),
                "upscaled": sr.upscale(lr),
            }
            rows.append(
                {"set": pair.set, "name": pair.name}
                | {key: round(grid_db(np.asarray(value), period_px), 2) for key, value in shown.items()}
            )
    keys = ("original", "bicubic", "upscaled")
    click.echo(f"grid of period {period_px} px, dB: mean and largest over {len(rows)} pictures")
    for key in keys:
        values = [row[key] for row in rows]
        click.echo(f"{key:>10} {np.mean(values):6.2f} {np.max(values):6.2f}")
    if out is not None:
        document = {
            **header("grid", command_line("benchmarks.grid"), peaks=False),
            "model": describe_model(manifest),
            "period_px": period_px,
            "rows": rows,
        }
        out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
