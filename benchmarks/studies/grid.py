"""Measure whether pictures carry a grid: a pattern that repeats with the period of the network's blocks.

::

    python -m benchmarks.studies.grid DEV --engine yonos_trt/models/lite-x4 --sets kodak,bsd100_x4

A decoder writes blocks of f x f px, and where it invents texture from a smooth latent it can only repeat
itself with that period: a faint pattern that PSNR and LPIPS hardly see. Here it is the power of luma's 2-D
spectrum at the points ``(k / f, l / f)`` over that of the ring around each, mean over points and patches, in
dB: a photograph has about 0. (It is no loss: a pattern that changes its sign from place to place escapes it.)

The second table is that of `crosshatch`: strokes across the original's own lines, which come from an LR
picture's aliasing. Compare with bicubic, which only shows what the LR picture has.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import command_line, describe_model, header
from benchmarks.studies.crosshatch import Lines, patch_power

PATCH_PX: Final = 128
# In bins: a Hann window spreads a line over 3 x 3; the ring begins after those.
_POINT: Final = 1
_RING: Final = (3, 6)
_SHOWN: Final = ("original", "bicubic", "upscaled")
_FLOOR: Final = 1e-2  # of power in grey levels squared, far below the rounding noise of an 8-bit picture


def grid_db(picture: NDArray[Any], period_px: int) -> float:
    """Return the power at the grid's frequencies over that around them in dB.

    It is the mean of :func:`grid_spectrum_db` over the frequencies, each counted alike.
    """
    return float(np.nanmean(grid_spectrum_db(picture, period_px)))


def grid_spectrum_db(picture: NDArray[Any], period_px: int) -> NDArray[np.float64]:
    """Return the power at each of the grid's frequencies over that around it in dB.

    It is the mean over half-overlapping patches of 128 px.

    Parameters
    ----------
    picture
        (H, W, 3) uint8; both sides at least 128 px.
    period_px
        The pattern's period: 2, 4 or 8.

    Returns
    -------
    ndarray
        (P, P) float64 for period P: ``k / P`` cycles per px down and ``l / P`` across at ``[k, l]``; not a
        number at ``[0, 0]``.

    Raises
    ------
    ValueError
        The picture is too small, or the period is another one.
    """
    if period_px not in (2, 4, 8):
        raise ValueError(f"period_px: got {period_px}, expected 2, 4 or 8")
    power = patch_power(picture, PATCH_PX)
    steps = range(period_px)
    points = np.array([(k, m) for k in steps for m in steps if k or m]) * (PATCH_PX // period_px)
    near, far = _RING
    around = np.stack(np.meshgrid(*2 * [np.arange(-far, far + 1)], indexing="ij"), -1).reshape(-1, 2)
    distance = np.abs(around).max(1)
    point, ring = (
        _mean_power(power, points, around[chosen]) for chosen in (distance <= _POINT, distance >= near)
    )
    found = 10 * np.log10((point + _FLOOR) / (ring + _FLOOR)).mean(0)
    return np.append(np.nan, found).reshape(period_px, period_px)


def _mean_power(
    power: NDArray[np.float64], points: NDArray[np.int64], offsets: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the mean of ``power (N, P, P)`` at every point's offsets, periodically: (N, points)."""
    where = (points[:, None] + offsets) % PATCH_PX
    mean: NDArray[np.float64] = power[:, where[..., 0], where[..., 1]].mean(-1)
    return mean


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--engine",
    type=click.Path(path_type=Path),
    required=True,
    help="Engine directory, or a shipped model's name.",
)
@click.option("--sets", default="", help="Comma-separated sets of FOLDER.")
@click.option(
    "--degradation",
    type=click.Choice(("bicubic", "average")),
    default="bicubic",
    show_default=True,
    help="How LR pictures are made where none are given: average is the mean of s x s blocks, which aliases.",
)
@click.option("--limit", default=0, show_default=True, help="First N pictures of a set (0: all).")
@click.option("--frequencies", is_flag=True, help="Print the mean at every frequency, too.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    folder: Path, engine: Path, sets: str, degradation: str, limit: int, frequencies: bool, out: Path | None
) -> None:
    """Print the grid and the crosshatch of original, bicubic and upscaled pictures."""
    from benchmarks.quality import pairs_of
    from yonos_trt import SR

    rows: list[dict[str, Any]] = []
    small: list[str] = []
    spectra: dict[str, list[NDArray[np.float64]]] = {key: [] for key in _SHOWN}
    names = [name for name in sets.split(",") if name]
    with SR(engine) as sr:
        scale, period_px = sr.scale, sr.manifest.model.latent_factor
        for pair in pairs_of(folder, scale, degradation, sets=names, limit=limit):
            lr, hr = pair.load()
            if min(hr.shape[:2]) < PATCH_PX:
                small.append(f"{pair.set}/{pair.name}")
                continue
            shown = dict(zip(_SHOWN, (hr, _bicubic(lr, hr), np.asarray(sr.upscale(lr))), strict=True))
            for key, value in shown.items():
                spectra[key].append(grid_spectrum_db(value, period_px))
            means = {key: round(float(np.nanmean(found[-1])), 2) for key, found in spectra.items()}
            lines = Lines(hr, scale)
            across = {key: round(lines.crosshatch_db(value), 2) for key, value in shown.items()}
            rows.append(
                {"set": pair.set, "name": pair.name}
                | means
                | {"line_patches": lines.patches, "across_lines": across if lines.patches else None}
            )
        model = describe_model(sr.manifest)
    if small:
        click.echo(f"left out, smaller than {PATCH_PX} px: {', '.join(small)}", err=True)
    if not rows:
        raise click.ClickException(f"{folder} has no picture of at least {PATCH_PX} px a side")
    _print(rows, spectra if frequencies else {}, period_px)
    if out is not None:
        document = {
            **header("grid", command_line("benchmarks.studies.grid"), peaks=False),
            "model": model,
            "degradation": degradation,
            "period_px": period_px,
            "rows": rows,
        }
        out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _bicubic(lr: NDArray[Any], hr: NDArray[Any]) -> NDArray[np.uint8]:
    from PIL import Image

    return np.asarray(Image.fromarray(lr).resize((hr.shape[1], hr.shape[0]), Image.Resampling.BICUBIC))


def _print(rows: list[dict[str, Any]], spectra: dict[str, list[NDArray[np.float64]]], period_px: int) -> None:
    click.echo(f"grid of period {period_px} px, dB: mean and largest over {len(rows)} pictures")
    for key in _SHOWN:
        values = [row[key] for row in rows]
        click.echo(f"{key:>10} {np.mean(values):6.2f} {np.max(values):6.2f}")
    lined = [row for row in rows if row["line_patches"]]
    patches = sum(row["line_patches"] for row in lined)
    click.echo(
        "power across the original's lines over that along them, dB: "
        f"{patches} patches of {len(lined)} pictures, mean over patches, and largest picture"
    )
    for key in _SHOWN if lined else ():
        values = [row["across_lines"][key] for row in lined]
        mean = np.average(values, weights=[row["line_patches"] for row in lined])
        click.echo(f"{key:>10} {mean:6.2f} {np.max(values):6.2f}")
    for key, found in spectra.items():
        click.echo(
            f"{key}: k / {period_px} cycles per px down, l / {period_px} across; the rest mirrors these"
        )
        for line in np.mean(found, 0)[: period_px // 2 + 1]:
            click.echo(" ".join(f"{value:6.1f}" for value in line))


if __name__ == "__main__":
    main()
