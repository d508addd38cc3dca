"""What a camera and the web do to a picture on its way to the LR size: the degradation kind ``camera``.

    lens: blur, motion -> reduction -> sensor noise -> denoiser -> sharpening -> JPEG or WebP, once or twice

Blur and reduction may happen in linear light, by way of a still smaller picture that was enlarged again.
Noise is that of a sensor: its variance grows with the light, and demosaicing correlates it (Brooks et al.
2019, "Unprocessing Images for Learned Raw Denoising"). The ranges are ours. All settings are drawn before any
pixel is touched, so that two scales of one draw differ by the size they end at only.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch.nn import functional

from .blur import Array, bell_kernel, blur
from .degradation import CameraRanges

Random = np.random.Generator

_GAMMA = 2.2
_SUBSAMPLING = ("4:4:4", "4:2:2", "4:2:0")
# Bilinear demosaicing of one Bayer colour: weights of the nearest sites that have it.
_GREEN = np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]], np.float32) / 4
_RED_BLUE = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]], np.float32) / 4


@dataclass(frozen=True)
class _Encoder:
    webp: bool
    quality: int
    subsampling: int


def photograph(x: Array, scale: int, ranges: CameraRanges, draw: Random, noise: Random) -> Array:
    """Return the LR picture of ``x``.

    Parameters
    ----------
    x
        (3, H, W) float32 in [0, 1]; H and W multiples of ``scale``.
    scale
        s >= 1.
    draw, noise
        Generators of the settings and of the noise's values.

    Returns
    -------
    ndarray
        (3, H / s, W / s) float32 in [0, 1].
    """
    r = ranges
    kernel = _lens(scale, r, draw)
    motion = _motion(scale, r, draw)
    linear = draw.random() < r.linear
    enlarged, factor = draw.random() < r.enlarged, draw.uniform(*r.enlarged_factor)
    noisy, shot, read = draw.random() < r.noise, draw.uniform(0, r.shot), draw.uniform(0, r.read)
    mosaic, phase = draw.random() < r.mosaic, draw.integers(2, size=2)
    denoised, strength = draw.random() < r.denoise, draw.uniform(*r.denoise_strength)
    sharpened, amount = draw.random() < r.sharpen, draw.uniform(0, r.sharpen_amount)
    radius = draw.uniform(*r.sharpen_lr_px)
    encoders = _encoders(r, draw)

    size = (x.shape[1] // scale, x.shape[2] // scale)
    if linear:
        x = x ** np.float32(_GAMMA)
    for k in (kernel, motion):
        x = x if k is None else blur(x, k)
    if enlarged:  # to what was once shown smaller, and from there to the LR size
        x = _resize(x, (max(1, round(size[0] / factor)), max(1, round(size[1] / factor))))
    x = _resize(x, size).clip(0, 1)
    if linear:
        x = x ** np.float32(1 / _GAMMA)
    if noisy:
        grain = noise.standard_normal(x.shape, dtype=np.float32)
        grain = demosaiced(grain, int(phase[0]), int(phase[1])) if mosaic else grain
        sigma = np.sqrt(np.float32(shot) ** 2 * x + np.float32(read) ** 2) / np.float32(255)
        x = (x + sigma * grain).clip(0, 1)
    if noisy and denoised:
        x = _denoised(x, strength, np.hypot(shot, read) / 255)
    if sharpened:
        soft = ndimage.gaussian_filter(x, (0, radius, radius), mode="nearest")
        x = (x + np.float32(amount) * (x - soft)).clip(0, 1)
    for encoder in encoders:
        x = _encoded(x, encoder)
    return x


def demosaiced(grain: Array, top: int, left: int) -> Array:
    """Return white noise ``(3, h, w)`` as a Bayer sensor has it: one colour a site, the others interpolated.

    Parameters
    ----------
    top, left
        0 or 1: where the pattern begins.
    """
    _, h, w = grain.shape
    rows, columns = np.arange(h)[:, None] + top, np.arange(w)[None] + left
    sites = (
        (rows % 2 == 0) & (columns % 2 == 0),
        (rows + columns) % 2 == 1,
        (rows % 2 == 1) & (columns % 2 == 1),
    )
    planes = []
    for plane, site, kernel in zip(grain, sites, (_RED_BLUE, _GREEN, _RED_BLUE), strict=True):
        values = ndimage.convolve(np.where(site, plane, 0), kernel, mode="mirror")
        weights = ndimage.convolve(site.astype(np.float32), kernel, mode="mirror")
        planes.append(values / np.maximum(weights, np.float32(1e-6)))
    return np.stack(planes).astype(np.float32)


def disc_kernel(radius: float) -> Array:
    """Return a defocus disc, antialiased, ``(k, k)`` with sum 1; radius in pixels, > 0."""
    side = 2 * int(np.ceil(radius)) + 1
    y, x = np.mgrid[:side, :side] - side // 2
    kernel = np.clip(radius + 0.5 - np.hypot(y, x), 0, 1)
    normalised: Array = (kernel / kernel.sum()).astype(np.float32)
    return normalised


def motion_kernel(length: float, angle: float) -> Array:
    """Return a straight line of ``length`` pixels through the centre, ``(k, k)`` with sum 1."""
    side = 2 * int(np.ceil(length / 2)) + 3
    kernel, centre = np.zeros((side, side)), side // 2
    for t in np.linspace(-length / 2, length / 2, 4 * side):
        y, x = centre + t * np.sin(angle), centre + t * np.cos(angle)
        y0, x0 = int(np.floor(y)), int(np.floor(x))
        for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
            kernel[y0 + dy, x0 + dx] += (1 - abs(y - y0 - dy)) * (1 - abs(x - x0 - dx))
    normalised: Array = (kernel / kernel.sum()).astype(np.float32)
    return normalised


# ----------------------------------------------------------------------------------------------------------
# Pieces


def _lens(scale: int, r: CameraRanges, draw: Random) -> Array | None:
    blurred, u = draw.random() < r.blur, draw.random()
    disc, stretch, angle = draw.random() < r.disc, draw.uniform(0.5, 1.0), draw.uniform(-np.pi, np.pi)
    round_ = draw.random() < 0.5
    low, high = r.sigma_lr_px
    sigma = (low + (high - low) * u**r.blur_power) * scale
    if not blurred:
        return None
    if disc:  # a disc of radius R has the standard deviation R / 2 along each axis
        return disc_kernel(2 * sigma)
    return bell_kernel(
        2 * int(np.ceil(3 * sigma)) + 1, sigma, sigma * (1.0 if round_ else stretch), 0.0 if round_ else angle
    )


def _motion(scale: int, r: CameraRanges, draw: Random) -> Array | None:
    moved, length, angle = draw.random() < r.motion, draw.uniform(0.5, r.motion_lr_px), draw.uniform(0, np.pi)
    return motion_kernel(length * scale, angle) if moved else None


def _encoders(r: CameraRanges, draw: Random) -> list[_Encoder]:
    compressed, twice = draw.random() < r.jpeg, draw.random() < r.twice
    shares = np.asarray(r.subsampling) / sum(r.subsampling)
    both = [
        _Encoder(bool(draw.random() < r.webp), round(draw.uniform(*r.quality)), int(draw.choice(3, p=shares)))
        for _ in range(2)
    ]
    return both[: (1 + twice) if compressed else 0]


def _resize(x: Array, size: tuple[int, int]) -> Array:
    if size == x.shape[1:]:
        return x
    y: Array = functional.interpolate(
        torch.from_numpy(np.ascontiguousarray(x))[None], size=size, mode="bicubic", antialias=True
    )[0].numpy()
    return y


def _denoised(x: Array, strength: float, sigma: float) -> Array:
    """Take ``strength`` of what differs little from its neighbourhood: grain goes, edges stay."""
    soft = ndimage.gaussian_filter(x, (0, 1.0, 1.0), mode="nearest")
    detail = x - soft
    keep = detail**2 / (detail**2 + np.float32((2 * sigma) ** 2 + 1e-6))
    smoothed: Array = (soft + detail * (1 - np.float32(strength) * (1 - keep))).clip(0, 1)
    return smoothed


def _encoded(x: Array, encoder: _Encoder) -> Array:
    """Pass ``x`` (3, h, w) in [0, 1] through Pillow's encoder and back."""
    pixels = np.ascontiguousarray((x * 255).round().astype(np.uint8).transpose(1, 2, 0))
    buffer = io.BytesIO()
    if encoder.webp:
        Image.fromarray(pixels).save(buffer, "WEBP", quality=encoder.quality, method=0)
    else:
        subsampling = _SUBSAMPLING[encoder.subsampling]
        Image.fromarray(pixels).save(buffer, "JPEG", quality=encoder.quality, subsampling=subsampling)
    with Image.open(buffer) as decoded:
        back = np.asarray(decoded.convert("RGB"), dtype=np.float32)
    return np.ascontiguousarray(back.transpose(2, 0, 1)) / np.float32(255)
