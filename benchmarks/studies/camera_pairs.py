"""What made the LR pictures of camera pairs: the blur and the sharpening that explain each of them best.

::

    python -m benchmarks.studies.camera_pairs dev --sets realsr,drealsr      # half a minute
    python -m benchmarks.studies.camera_pairs dev --degradation lens         # the same of LR pictures we make

Every HR picture's luma is blurred (Gaussian), reduced (antialiased bicubic), sharpened (unsharp mask) and
fitted to the LR picture's by a gain and an offset; what is left is told in levels of 255. Lengths are LR
pixels. Beside it stands how much of each spatial frequency the LR picture kept, in dB: there a degradation
can be laid over the pairs. `yonos_train.degradation.LENS` draws from the range that comes out. `hr_db` is
how much the HR pictures have of each frequency per HR pixel: beside other sets' it tells how soft they are.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from yonos_train.evaluate import whole_pairs
from yonos_train.metrics import Picture

Plane = NDArray[np.float32]

SIGMA = (0.0, 0.15, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2)
AMOUNT = (0.3, 0.6, 1.0, 1.5)
RADIUS = (0.6, 1.0, 1.5)
BANDS = np.linspace(0.03, 0.5, 11)
"""Edges of the bands of :func:`kept_db`, cycles per LR pixel, and of :func:`spectrum_db`, per pixel."""

_BORDER_PX = 6
_BLOCK_PX = 64  # of the spectra: in LR pixels where two pictures are compared


class Fit(NamedTuple):
    """What explains an LR picture, and what it leaves unexplained."""

    rms: float
    sigma: float
    amount: float = 0.0
    radius: float = 0.0


def explained(hr: Plane, lr: Plane) -> Iterator[Fit]:
    """Yield every combination, luma (H, W) and (H / s, W / s)."""
    scale = hr.shape[0] // lr.shape[0]
    for sigma in SIGMA:
        blurred = ndimage.gaussian_filter(hr, sigma * scale) if sigma else hr
        reduced = np.asarray(Image.fromarray(blurred).resize(lr.shape[::-1], Image.Resampling.BICUBIC))
        yield Fit(_left(reduced, lr), sigma)
        for radius in RADIUS:
            detail = reduced - ndimage.gaussian_filter(reduced, radius)
            for amount in AMOUNT:
                yield Fit(_left(reduced + amount * detail, lr), sigma, amount, radius)


def _left(made: Plane, real: Plane) -> float:
    inside = (slice(_BORDER_PX, -_BORDER_PX),) * 2
    x, y = made[inside].ravel(), real[inside].ravel()
    terms = np.stack([x, np.ones_like(x)], 1)
    gain = np.linalg.lstsq(terms, y, rcond=None)[0]
    return round(float(np.sqrt(np.mean((terms @ gain - y) ** 2))), 3)


def kept_db(hr: Plane, lr: Plane) -> list[float]:
    """Return the power of ``lr`` (H / s, W / s) over that of ``hr`` (H, W) in each of ``BANDS``, dB, relative
    to the first. Noise and what an encoder adds count as kept."""
    scale = hr.shape[0] // lr.shape[0]
    return _from_first_db(_power(lr, _BLOCK_PX, 1) / _power(hr, _BLOCK_PX * scale, scale))


def spectrum_db(plane: Plane) -> list[float]:
    """Return the power of ``plane`` (H, W) in each of ``BANDS``, dB, relative to the first."""
    return _from_first_db(_power(plane, _BLOCK_PX, 1))


def _from_first_db(power: NDArray[np.float64]) -> list[float]:
    decibels = 10 * np.log10(power / power[0])
    return [round(float(value), 2) for value in decibels]


def _power(plane: Plane, side: int, scale: int) -> NDArray[np.float64]:
    """Mean power in each of ``BANDS`` over blocks of ``side`` px (at most the plane), Hann-windowed."""
    side = min(side, *plane.shape)
    window = np.outer(np.hanning(side), np.hanning(side))
    tops, lefts = (range(0, length - side + 1, side) for length in plane.shape)
    blocks = np.stack([plane[y : y + side, x : x + side] for y in tops for x in lefts]).astype(np.float64)
    spectrum = np.abs(np.fft.fft2((blocks - blocks.mean((1, 2), keepdims=True)) * window)) ** 2
    line = np.fft.fftfreq(side) * scale
    band = np.digitize(np.hypot(line[:, None], line), BANDS)
    return np.array([spectrum.mean(0)[band == k].mean() for k in range(1, len(BANDS))])


def _luma(picture: Picture) -> Plane:
    return np.asarray(Image.fromarray(picture).convert("L"), np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="of sets, <set>/HR and <set>/LR")
    parser.add_argument("--sets", default="realsr,drealsr")
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--degradation", help="make the LR pictures from the HR pictures, instead of theirs")
    asked = parser.parse_args()
    pairs = whole_pairs(asked.folder, asked.scale, sets=asked.sets.split(","))
    best: dict[str, list[Fit]] = {}
    kept: dict[str, list[list[float]]] = {}
    own: dict[str, list[list[float]]] = {}
    for pair in pairs:
        if asked.degradation:
            pair = replace(pair, lr=None, degradation=asked.degradation)
        elif pair.lr is None:
            parser.error(f"{pair.hr} has no LR picture beside it; name sets with camera pairs (--sets)")
        lr, hr = map(_luma, pair.load())
        fits = sorted(explained(hr, lr))
        plain = next(fit for fit in fits if not fit.amount)
        best.setdefault(pair.set, []).append(fits[0])
        kept.setdefault(pair.set, []).append(kept_db(hr, lr))
        own.setdefault(pair.set, []).append(spectrum_db(hr))
        row = {"set": pair.set, "name": pair.name, "blur_alone": plain[:2], "best": fits[0]._asdict()}
        print(json.dumps(row, default=float), flush=True)
    for name, fits in best.items():
        ranges = {
            field: [float(np.quantile([getattr(fit, field) for fit in fits], q)) for q in (0, 0.5, 1)]
            for field in Fit._fields
        }
        of_lr, of_hr = (np.median(rows[name], 0).round(1).tolist() for rows in (kept, own))
        row = {"set": name, "pictures": len(fits), "smallest, median, largest": ranges}
        print(json.dumps({**row, "kept_db": of_lr, "hr_db": of_hr}))


if __name__ == "__main__":
    main()
