"""Measure strokes that cross a picture's own lines: `benchmarks.studies.grid` prints it as its second table.

Fine parallel lines (grass, hair, a roof) that an LR grid samples too coarsely come back in a second, mirrored
direction: aliasing, two gratings that cross. An upscaler may keep such a crosshatch of its input, sharpen it,
weaken it, or make one of its own; PSNR and LPIPS hardly tell, and a grid's measure does not either, as the
crosshatch has the period and direction of its lines and not of the network's blocks.

Here it is the power of luma's 2-D spectrum more than 45 degrees away from the lines' own frequency, over that
nearer to it, about the highest frequency of the LR grid, in the patches where the original has lines in one
direction. 0 dB is a texture without direction.
"""

from __future__ import annotations

import itertools
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_LUMA: Final = np.array((0.299, 0.587, 0.114))  # BT.601
PATCH_PX: Final = 64
_BAND: Final = (0.5, 1.5)  # times the LR grid's Nyquist frequency, where aliasing lies
# The mean direction's length: 0 is none, 1 is a single one. From this on at least three fifths of a patch's
# power lie within 45 degrees of one direction.
_COHERENCE: Final = 0.6
_POWER: Final = 1.0  # least mean power in the band, grey levels squared: rounding to 8 bits is 0.08


class Lines:
    """Where an original picture has lines in one direction, and which.

    Parameters
    ----------
    original
        (H, W, 3) uint8, both sides at least 64 px.
    scale
        How much larger than the LR picture: 2, 4, 8.

    Raises
    ------
    ValueError
        The picture is too small, or the scale is another one.
    """

    def __init__(self, original: NDArray[Any], scale: int) -> None:
        if scale not in (2, 4, 8):
            raise ValueError(f"scale: got {scale}, expected 2, 4 or 8")
        frequency = np.fft.fftfreq(PATCH_PX)
        down, across = np.meshgrid(frequency, frequency, indexing="ij")
        nyquist = 0.5 / scale
        radius = np.hypot(down, across)
        self._shape = original.shape
        self._band = (radius >= _BAND[0] * nyquist) & (radius <= _BAND[1] * nyquist)
        self._angle = np.arctan2(down, across)[self._band]
        power = self._power(original)
        # twice the angle: a frequency and its opposite are one direction
        mean = power @ np.exp(2j * self._angle) / np.maximum(power.sum(1), np.finfo(float).tiny)
        self._chosen = (np.abs(mean) >= _COHERENCE) & (power.mean(1) >= _POWER)
        self._direction = np.angle(mean[self._chosen])

    @property
    def patches(self) -> int:
        """How many patches of 64 px have lines in one direction."""
        return int(self._chosen.sum())

    def crosshatch_db(self, picture: NDArray[Any]) -> float:
        """Return the power across the original's lines over that along with them, in dB.

        Parameters
        ----------
        picture
            (H, W, 3) uint8, as large as the original: the original itself, or an enlargement.

        Returns
        -------
        float
            The mean over patches; not a number where the original has no lines.

        Raises
        ------
        ValueError
            The picture's size is not the original's.
        """
        if picture.shape != self._shape:
            raise ValueError(f"picture: got shape {picture.shape}, expected the original's {self._shape}")
        if not self.patches:
            return float("nan")
        power = self._power(picture)[self._chosen]
        own = np.cos(2 * self._angle - self._direction[:, None]) > 0
        along, across = (np.where(chosen, power, 0).mean(1) + np.finfo(float).tiny for chosen in (own, ~own))
        return float((10 * np.log10(across / along)).mean())

    def _power(self, picture: NDArray[Any]) -> NDArray[np.float64]:
        """Return the patches' power in the band: (patches, frequencies)."""
        return patch_power(picture, PATCH_PX, name="original")[:, self._band]


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
