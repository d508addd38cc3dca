"""NIQE (Mittal, Soundararajan & Bovik 2013): how far a picture's statistics are from those of natural ones.

    luma -> local mean and contrast taken out -> per block of 96 px, at two scales, 18 shape numbers of
    generalised Gaussians (values, and products with four neighbours) -> one multivariate Gaussian over the
    blocks -> its distance to that of pristine photographs

Lower is better; no truth is needed. The pristine model is a file, NumPy's archive with ``mu_pris_param``
(1, 36), ``cov_pris_param`` (36, 36) and ``gaussian_window`` (7, 7).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, special
from torch.nn import functional

Array = NDArray[np.float64]

BLOCK_PX = 96  # the pristine model was fitted to blocks of this size
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))
_SHAPES = np.arange(0.2, 10.001, 0.001)
_RATIO = special.gamma(2 / _SHAPES) ** 2 / (special.gamma(1 / _SHAPES) * special.gamma(3 / _SHAPES))


class Niqe:
    """The metric with its pristine model.

    Raises
    ------
    ValueError
        The file is missing, or not such a model.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as file:
                self.mean, self.covariance = file["mu_pris_param"].ravel(), file["cov_pris_param"]
                self.window = file["gaussian_window"]
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"niqe: {str(path)!r} is not its pristine model ({error})") from error
        if (self.mean.shape, self.covariance.shape, self.window.shape) != ((36,), (36, 36), (7, 7)):
            raise ValueError(f"niqe: {str(path)!r} has shapes other than (36,), (36, 36) and (7, 7)")

    def __call__(self, luma: Array) -> float:
        """Return the score of ``luma`` (H, W) in 0..255, both sides at least two blocks.

        Raises
        ------
        ValueError
            The picture is too small, or so flat that no block has statistics.
        """
        rows, columns = (side // BLOCK_PX for side in luma.shape)
        if rows * columns < 2:
            raise ValueError(
                f"niqe needs two blocks of {BLOCK_PX} px, "
                f"got a picture of {luma.shape[1]} x {luma.shape[0]} px"
            )
        picture = luma[: rows * BLOCK_PX, : columns * BLOCK_PX].astype(np.float64)
        scales = []
        for scale in (1, 2):
            side = BLOCK_PX // scale
            contrast = self._normalised(picture)
            scales.append(
                [
                    _features(contrast[r * side : (r + 1) * side, c * side : (c + 1) * side])
                    for r in range(rows)
                    for c in range(columns)
                ]
            )
            picture = _half(picture)
        blocks = np.concatenate(scales, axis=1)
        blocks = blocks[np.isfinite(blocks).all(axis=1)]
        if len(blocks) < 2:
            raise ValueError("niqe: the picture is flat, fewer than two of its blocks have statistics")
        off = self.mean - blocks.mean(axis=0)
        pooled = np.linalg.pinv((self.covariance + np.cov(blocks, rowvar=False)) / 2)
        return float(np.sqrt(off @ pooled @ off))

    def _normalised(self, picture: Array) -> Array:
        mean = ndimage.correlate(picture, self.window, mode="nearest")
        square = ndimage.correlate(picture * picture, self.window, mode="nearest")
        result: Array = (picture - mean) / (np.sqrt(np.abs(square - mean * mean)) + 1)
        return result


def _half(picture: Array) -> Array:
    """Antialiased bicubic reduction by 2 over mirrored borders, as MATLAB's imresize; even sides."""
    border = 8
    x = torch.from_numpy(np.pad(picture, border, mode="symmetric"))[None, None]
    small = functional.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True)[0, 0].numpy()
    inside = slice(border // 2, -border // 2)
    result: Array = small[inside, inside]
    return result


def _features(block: Array) -> list[float]:
    """Return the 18 numbers of one block."""
    shape, left, right = fit_asymmetric(block)
    found = [shape, (left + right) / 2]
    for shift in _NEIGHBOURS:
        shape, left, right = fit_asymmetric(block * np.roll(block, shift, axis=(0, 1)))
        mean = (right - left) * special.gamma(2 / shape) / special.gamma(1 / shape)
        found += [shape, mean, left, right]
    return found


def fit_asymmetric(values: Array) -> tuple[float, float, float]:
    """Fit an asymmetric generalised Gaussian by its moments: (shape, scale left of 0, scale right of 0).

    Lasmar, Stitou & Berthoumieu 2009; not a number where one side is empty.
    """
    x = values.ravel()
    below, above = x[x < 0], x[x > 0]
    if not below.size or not above.size:
        return float("nan"), float("nan"), float("nan")
    left, right = np.sqrt(np.mean(below**2)), np.sqrt(np.mean(above**2))
    g = left / right
    ratio = np.mean(np.abs(x)) ** 2 / np.mean(x**2) * (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2
    shape = float(_SHAPES[np.argmin((_RATIO - ratio) ** 2)])
    unit = np.sqrt(special.gamma(1 / shape) / special.gamma(3 / shape))
    return shape, float(left * unit), float(right * unit)
