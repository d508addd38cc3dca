"""Power spectra of a picture's patches, for what is measured by frequency."""

from __future__ import annotations

import itertools
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["patch_power"]

_LUMA: Final = np.array((0.299, 0.587, 0.114))  # BT.601


def patch_power(picture: NDArray[Any], patch_px: int, *, name: str = "picture") -> NDArray[np.float64]:
    """Return the power of luma in half-overlapping square patches, without their means.

    Parameters
    ----------
    picture
        (H, W, 3) uint8; both sides at least ``patch_px``.
    patch_px
        A patch's side P in px; even.
    name
        What a message calls the picture.

    Returns
    -------
    ndarray
        (N, P, P) float64, grey levels squared, row-major patches, frequencies in `numpy.fft.fft2`'s order.
        Under a Hann window: a line spreads over 3 x 3 frequencies.

    Raises
    ------
    ValueError
        The picture has another shape.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or min(picture.shape[:2]) < patch_px:
        raise ValueError(
            f"{name}: got shape {picture.shape}, expected (H, W, 3) of at least {patch_px} px a side"
        )
    luma = picture @ _LUMA
    corners = itertools.product(*(range(0, n - patch_px + 1, patch_px // 2) for n in luma.shape))
    patches = np.stack([luma[top : top + patch_px, left : left + patch_px] for top, left in corners])
    window = np.hanning(patch_px + 1)[:-1]
    patches = (patches - patches.mean((1, 2), keepdims=True)) * np.outer(window, window)
    power: NDArray[np.float64] = np.abs(np.fft.fft2(patches, norm="ortho")) ** 2
    return power
