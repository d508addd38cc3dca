"""Blur kernels of the degradation model, and blurring with them.

Kernels are those of Real-ESRGAN (Wang et al. 2021, sections 3.1 and 3.4): Gaussian, generalised Gaussian and
plateau shapes, isotropic or not, and the circular sinc low-pass filter that leaves ringing. All are (k, k)
float32, k odd, with sum 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import fft, special

Array = NDArray[np.float32]
Shape = Literal["gaussian", "generalised", "plateau"]
_SHAPES: Final[tuple[Shape, Shape, Shape]] = ("gaussian", "generalised", "plateau")


@dataclass(frozen=True, slots=True)
class BlurRanges:
    """What kernels are drawn from. All ranges are uniform; defaults are Real-ESRGAN's first stage.

    Attributes
    ----------
    probability
        Of blurring at all.
    sinc
        Probability that the kernel is a sinc filter.
    sigma_px
        Standard deviation of both axes.
    sizes_px
        Smallest and largest odd kernel side.
    shapes
        Probabilities of (isotropic, anisotropic) Gaussian, generalised Gaussian, plateau kernels, in order.
    beta_generalised, beta_plateau
        Shape exponents.
    """

    probability: float = 1.0
    sinc: float = 0.1
    sigma_px: tuple[float, float] = (0.2, 3.0)
    sizes_px: tuple[int, int] = (7, 21)
    shapes: tuple[float, float, float, float, float, float] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    beta_generalised: tuple[float, float] = (0.5, 4.0)
    beta_plateau: tuple[float, float] = (1.0, 2.0)


def _grid(size: int) -> NDArray[np.float64]:
    axis = np.arange(size, dtype=np.float64) - size // 2
    return np.stack(np.meshgrid(axis, axis, indexing="xy"), axis=-1)  # (k, k, 2) of (x, y)


def bell_kernel(
    size: int, sigma_x: float, sigma_y: float, angle: float, *, shape: Shape = "gaussian", beta: float = 1.0
) -> Array:
    """Return a bell-shaped kernel from the squared Mahalanobis distance q of each tap.

    Parameters
    ----------
    size
        Side k, odd.
    sigma_x, sigma_y
        Standard deviations in pixels along the axes before rotation, > 0.
    angle
        Rotation in radians.
    shape
        ``gaussian`` exp(-q / 2), ``generalised`` exp(-q**beta / 2), ``plateau`` 1 / (1 + q**beta).
    """
    if size % 2 == 0 or size < 1 or sigma_x <= 0 or sigma_y <= 0:
        raise ValueError(
            f"bell_kernel needs an odd size and sigmas > 0; got size {size}, sigmas {sigma_x}, {sigma_y}."
        )
    c, s = np.cos(angle), np.sin(angle)
    rotation = np.array([[c, -s], [s, c]])
    inverse = rotation @ np.diag([sigma_x**-2.0, sigma_y**-2.0]) @ rotation.T
    points = _grid(size)
    q = np.einsum("yxi,ij,yxj->yx", points, inverse, points).clip(0.0)
    if shape == "gaussian":
        kernel = np.exp(-0.5 * q)
    elif shape == "generalised":
        kernel = np.exp(-0.5 * q**beta)
    else:
        kernel = 1.0 / (1.0 + q**beta)
    normalised: Array = (kernel / kernel.sum()).astype(np.float32)
    return normalised


def sinc_kernel(size: int, cutoff: float) -> Array:
    """Return the circular low-pass kernel ``cutoff J1(cutoff r) / (2 pi r)``; cutoff in radians per pixel."""
    if size % 2 == 0 or size < 1 or not 0 < cutoff <= np.pi:
        raise ValueError(f"sinc_kernel needs an odd size and 0 < cutoff <= pi; got {size} and {cutoff}.")
    r = np.hypot(*np.moveaxis(_grid(size), -1, 0))
    r[size // 2, size // 2] = 1.0
    kernel = cutoff * special.j1(cutoff * r) / (2 * np.pi * r)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * np.pi)
    normalised: Array = (kernel / kernel.sum()).astype(np.float32)
    return normalised


def draw_sinc(rng: np.random.Generator, sizes_px: tuple[int, int]) -> Array:
    """Draw a sinc kernel; a small one gets no cut-off below pi / 3, which it could not represent."""
    size = _odd(rng, sizes_px)
    return sinc_kernel(size, float(rng.uniform(np.pi / (3 if size < 13 else 5), np.pi)))


def _odd(rng: np.random.Generator, sizes_px: tuple[int, int]) -> int:
    return 2 * int(rng.integers(sizes_px[0] // 2, sizes_px[1] // 2 + 1)) + 1


def draw_kernel(rng: np.random.Generator, ranges: BlurRanges) -> Array | None:
    """Draw one kernel, or None for no blur."""
    if rng.random() >= ranges.probability:
        return None
    if rng.random() < ranges.sinc:
        return draw_sinc(rng, ranges.sizes_px)
    size = _odd(rng, ranges.sizes_px)
    kind = int(rng.choice(6, p=np.asarray(ranges.shapes) / sum(ranges.shapes)))
    sigma_x, sigma_y = (float(v) for v in rng.uniform(*ranges.sigma_px, size=2))
    angle = float(rng.uniform(-np.pi, np.pi))
    if kind % 2 == 0:
        sigma_y, angle = sigma_x, 0.0
    shape: Shape = _SHAPES[kind // 2]
    beta = float(rng.uniform(*(ranges.beta_plateau if shape == "plateau" else ranges.beta_generalised)))
    return bell_kernel(size, sigma_x, sigma_y, angle, shape=shape, beta=beta)


def blur(image: Array, kernel: Array) -> Array:
    """Convolve ``image`` (3, H, W) with ``kernel`` (k, k) over symmetrically extended borders; same shape."""
    pad = kernel.shape[0] // 2
    h, w = image.shape[1:]
    extended = np.pad(image, ((0, 0), (pad, pad), (pad, pad)), mode="symmetric")
    size = tuple(fft.next_fast_len(n, real=True) for n in extended.shape[1:])
    product = fft.rfft2(extended, size) * fft.rfft2(kernel, size)
    result: Array = fft.irfft2(product, size)[:, 2 * pad : 2 * pad + h, 2 * pad : 2 * pad + w]
    return result
