"""Measure whether pictures carry a grid: a pattern that repeats with the period of the network's blocks.

::

    python -m benchmarks.grid DEV --engine yonos_trt/models/lite-x4 --sets kodak,bsd100_x4

A latent of factor f is decoded to blocks of f x f px, and a decoder that is not trained against it leaves a
faint pattern of that period in textures, which PSNR and LPIPS hardly see. Here it is the power of luma at
the frequencies k / period beside the power at their neighbours, per axis, averaged over Hann-windowed
patches: near 0 dB for a photograph, and some decibels where the pattern can be seen.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import command_line, describe_model, header

__all__ = ["grid_db"]

PATCH_PX: Final = 128
# A Hann window spreads a line over its bin and the two beside it; the neighbours begin after those.
_LINE_BINS: Final = 1
_NEIGHBOUR_BINS: Final = (3, 7)
_LUMA: Final = np.array((0.299, 0.587, 0.114))  # BT.601


def grid_db(picture: NDArray[Any], period_px: int) -> float:
    """Return the grid's power over its surroundings in dB, the larger of both axes and all multiples.

    Parameters
    ----------
    picture
        (H, W, 3), any number type; both sides at least 128 px.
    period_px
        The pattern's period, a divisor of 128 above 1.

    Raises
    ------
    ValueError
        The picture is too small, or the period does not divide 128.
    """
    if period_px < 2 or PATCH_PX % period_px:
        raise ValueError(f"period_px: got {period_px}, expected a divisor of {PATCH_PX} above 1")
    if picture.ndim != 3 or picture.shape[2] != 3 or min(picture.shape[:2]) < PATCH_PX:
        raise ValueError(
            f"picture: got shape {picture.shape}, expected (H, W, 3) of at least {PATCH_PX} px a side"
        )
    luma = picture.astype(np.float64) @ _LUMA
    window = np.hanning(PATCH_PX + 1)[:-1]
    step = PATCH_PX // 2
    rows = np.zeros(PATCH_PX // 2 + 1)
    columns = np.zeros_like(rows)
    for top in range(0, luma.shape[0] - PATCH_PX + 1, step):
        for left in range(0, luma.shape[1] - PATCH_PX + 1, step):
            patch = luma[top : top + PATCH_PX, left : left + PATCH_PX]
            patch = (patch - patch.mean()) * np.outer(window, window)
            power = np.abs(np.fft.rfft(patch, axis=0)) ** 2
            rows += power.mean(1) / (power.sum() + 1e-9)  # every patch counts alike
            power = np.abs(np.fft.rfft(patch, axis=1)) ** 2
            columns += power.mean(0) / (power.sum() + 1e-9)
    return max(
        _line_db(spectrum, multiple * PATCH_PX // period_px)
        for spectrum in (rows, columns)
        for multiple in range(1, period_px // 2 + 1)
    )


def _line_db(spectrum: NDArray[np.float64], at: int) -> float:
    """Return the power at bin ``at`` over that of its neighbours on both sides (of one at the last bin)."""
    nearest, farthest = _NEIGHBOUR_BINS
    bins = [at + side * k for side in (-1, 1) for k in range(nearest, farthest + 1)]
    around = [spectrum[k] for k in bins if 0 <= k < len(spectrum)]
    line = spectrum[max(0, at - _LINE_BINS) : at + _LINE_BINS + 1].max()
    return float(10 * np.log10((line + 1e-12) / (np.exp(np.mean(np.log(np.array(around) + 1e-12))))))


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
