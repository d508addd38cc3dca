"""LR inputs from HR pictures: bicubic, averaging, the two-stage Real-ESRGAN model, and a camera's.

Every sample is degraded by its own random generator: the result depends on its seed and its pixels only, not
on the batch it is in, on threads, or on the device. Output is on the 8-bit grid, as real inputs are.

    blur -> resize -> noise -> JPEG   (first stage, on the HR grid, the same for every scale)
    blur -> resize -> noise -> JPEG   (second stage, ends on the LR grid; a sinc filter before or after JPEG)
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from .blur import Array, bell_kernel, blur, draw_kernel, draw_sinc
from .camera import photograph
from .degradation import LENS, Degradation, Kind, StageRanges

__all__ = ["Degradation", "Kind", "StageRanges", "degrade", "degrade_pair", "drawn_kind"]

Seed = int | Sequence[int]
Random = np.random.Generator
Size = tuple[int, int]

_LUMA: Final = (0.299, 0.587, 0.114)  # BT.601


# ----------------------------------------------------------------------------------------------------------
# The doors

What = Degradation | str | Mapping[str, float]


def degrade(x_h: Tensor, scale: int, degradation: What, seeds: Sequence[Seed]) -> Tensor:
    """Return the LR pictures of a batch.

    Parameters
    ----------
    x_h
        (N, 3, H, W) in [-1, 1]; H and W multiples of ``scale``.
    scale
        s >= 1.
    degradation
        A ``Degradation``, the name of one with default ranges, or a mixture's shares by name.
    seeds
        One seed per sample, an integer >= 0 or a sequence of them, e.g. ``(run_seed, sample_index)``.

    Returns
    -------
    Tensor
        (N, 3, H / s, W / s) float32 in [-1, 1] on the 8-bit grid, on ``x_h``'s device.
    """
    return _degrade(x_h, (scale,), degradation, seeds)[0]


def degrade_pair(
    x_h: Tensor, scale: int, scale_prev: int, degradation: What, seeds: Sequence[Seed]
) -> tuple[Tensor, Tensor]:
    """Return the LR pictures for ``scale`` and, of the same draw, the less degraded view for ``scale_prev``.

    The first result equals ``degrade(x_h, scale, ...)``. Both views share the first stage, the kernels, the
    noise levels and the JPEG qualities; they differ by the size they end at.
    """
    x_l, x_l_prev = _degrade(x_h, (scale, scale_prev), degradation, seeds)
    return x_l, x_l_prev


def drawn_kind(degradation: What, seed: Seed) -> Kind:
    """Return the kind that :func:`degrade` draws for a sample with this seed; never ``mixed``."""
    return _kind(Degradation.of(degradation), np.random.default_rng(seed))


def _degrade(x_h: Tensor, scales: tuple[int, ...], degradation: What, seeds: Sequence[Seed]) -> list[Tensor]:
    config = Degradation.of(degradation)
    if x_h.ndim != 4 or x_h.shape[1] != 3:
        raise ValueError(f"degrade takes (N, 3, H, W); got {tuple(x_h.shape)}.")
    if len(seeds) != x_h.shape[0]:
        raise ValueError(f"degrade needs one seed per sample; got {len(seeds)} for {x_h.shape[0]} samples.")
    for scale in scales:
        if scale < 1 or x_h.shape[2] % scale or x_h.shape[3] % scale:
            raise ValueError(
                f"degrade: sides must be multiples of the scale; got {tuple(x_h.shape[2:])} and {scale}. "
                "Crop the picture first."
            )
    if config.kind in ("bicubic", "average"):
        x = x_h.detach().float()
        return [_quantise(_shrink(x, scale, average=config.kind == "average")) for scale in scales]
    samples = x_h.detach().float().cpu().numpy()
    views = [_one(sample, scales, config, seed) for sample, seed in zip(samples, seeds, strict=True)]
    return [_quantise(torch.from_numpy(np.stack(v)).to(x_h.device)) for v in zip(*views, strict=True)]


# ----------------------------------------------------------------------------------------------------------
# One sample: (3, H, W) float32 in [-1, 1] at the edges, in [0, 1] inside the stages


def _one(x: Array, scales: tuple[int, ...], config: Degradation, seed: Seed) -> list[Array]:
    rng = np.random.default_rng(seed)
    kind = _kind(config, rng)
    config = replace(config, kind=kind)
    if kind in ("bicubic", "average"):
        small = [_shrink(torch.from_numpy(x)[None], scale, average=kind == "average") for scale in scales]
        return [view[0].numpy() for view in small]
    first, second = config.stages()
    hr_size = x.shape[1:]
    x = (x + np.float32(1)) / np.float32(2)
    if kind not in ("light", "lens", "camera"):
        draw, noise = rng.spawn(2)
        x = _jpeg_maybe(_blur_resize_noise(x, hr_size, first, draw, noise), first, draw)
    draw, noise = rng.spawn(2)
    states = draw.bit_generator.state, noise.bit_generator.state
    views = []
    for scale in scales:  # every scale starts from the same states: one draw, several views
        draw.bit_generator.state, noise.bit_generator.state = states
        if kind == "light":
            view = _light(x, scale, config, draw, noise)
        elif kind in ("lens", "camera"):
            view = photograph(x, scale, config.camera if kind == "camera" else LENS, draw, noise)
        else:
            view = _second(
                x, (hr_size[0] // scale, hr_size[1] // scale), second, config.final_sinc, draw, noise
            )
        views.append(view * 2 - 1)
    return views


def _kind(config: Degradation, rng: Random) -> Kind:
    if config.kind != "mixed":
        return config.kind
    kinds, weights = list(config.mix), np.asarray(list(config.mix.values()))
    return kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]


def _light(x: Array, scale: int, config: Degradation, draw: Random, noise: Random) -> Array:
    blurred, sigma_lr_px = draw.random() < config.light_blur[0], draw.uniform(0.1, config.light_blur[1])
    stretch, angle = draw.uniform(0.7, 1.0), draw.uniform(-np.pi, np.pi)
    noisy, level = draw.random() < config.light_noise[0], draw.uniform(0.0, config.light_noise[1])
    grey = draw.random() < 0.4
    compressed, quality = draw.random() < config.light_jpeg, draw.uniform(*config.light_quality)
    if blurred:
        sigma_px = sigma_lr_px * scale
        x = blur(x, bell_kernel(2 * int(np.ceil(3 * sigma_px)) + 1, sigma_px, sigma_px * stretch, angle))
    x = _shrink_array(x, scale)
    if noisy:
        x = x + _gaussian(x, level, grey, noise)
    x = x.clip(0, 1)
    return _jpeg(x, quality) if compressed else x


def _blur_resize_noise(x: Array, base: Size, ranges: StageRanges, draw: Random, noise: Random) -> Array:
    """Blur, resize to ``base`` times a drawn factor, add noise, clip."""
    kernel = draw_kernel(draw, ranges.blur)
    if kernel is not None:
        x = blur(x, kernel)
    direction = int(draw.choice(3, p=np.asarray(ranges.resize) / sum(ranges.resize)))
    low, high = ranges.resize_factor
    factor = (draw.uniform(1.0, max(high, 1.0)), draw.uniform(min(low, 1.0), 1.0), 1.0)[direction]
    size = (max(1, round(base[0] * factor)), max(1, round(base[1] * factor)))
    x = _resize(x, size, draw)
    noisy, gaussian = draw.random() < ranges.noise, draw.random() < ranges.gaussian
    grey, sigma = draw.random() < ranges.grey, draw.uniform(*ranges.gaussian_sigma)
    strength = draw.uniform(*ranges.poisson_scale)
    if noisy:
        x = x + (_gaussian(x, sigma, grey, noise) if gaussian else _poisson(x, strength, grey, noise))
    return x.clip(0, 1)


def _second(
    x: Array, size: Size, ranges: StageRanges, final_sinc: float, draw: Random, noise: Random
) -> Array:
    """Run the second stage to ``size``; a fair coin puts the last resize and sinc before or after JPEG."""
    x = _blur_resize_noise(x, size, ranges, draw, noise)
    sinc = draw_sinc(draw, ranges.blur.sizes_px) if draw.random() < final_sinc else None
    compress_last = draw.random() < 0.5
    if not compress_last:
        x = _jpeg_maybe(x, ranges, draw)
    x = _resize(x, size, draw)
    if sinc is not None:
        x = blur(x, sinc)
    x = x.clip(0, 1)
    return _jpeg_maybe(x, ranges, draw) if compress_last else x


# ----------------------------------------------------------------------------------------------------------
# Operations


def _shrink(x: Tensor, scale: int, *, average: bool = False) -> Tensor:
    if scale == 1:
        return x
    if average:
        return functional.avg_pool2d(x, scale)
    size = (x.shape[-2] // scale, x.shape[-1] // scale)
    return functional.interpolate(x, size=size, mode="bicubic", antialias=True, align_corners=False)


def _shrink_array(x: Array, scale: int) -> Array:
    small: Array = _shrink(torch.from_numpy(np.ascontiguousarray(x))[None], scale)[0].numpy()
    return small


def _resize(x: Array, size: Size, draw: Random) -> Array:
    """Resize by a drawn one of area, bilinear and bicubic; not antialiased, as in the paper."""
    mode = ("area", "bilinear", "bicubic")[int(draw.integers(3))]
    if size == x.shape[1:]:
        return x
    align = None if mode == "area" else False
    y: Array = functional.interpolate(
        torch.from_numpy(np.ascontiguousarray(x))[None], size=size, mode=mode, align_corners=align
    )[0].numpy()
    return y


def _gaussian(x: Array, sigma: float, grey: bool, noise: Random) -> Array:
    shape = (1, *x.shape[1:]) if grey else x.shape
    values: Array = noise.standard_normal(shape, dtype=np.float32) * np.float32(sigma / 255)
    return values


def _poisson(x: Array, strength: float, grey: bool, noise: Random) -> Array:
    """Return ``strength`` times shot noise of a sensor that counts as many quanta as the picture has levels.

    At least 64 quanta: otherwise a flat picture, with its few levels, would drown.
    """
    clean = (x.clip(0, 1) * 255).round() / 255
    if grey:
        clean = np.tensordot(np.asarray(_LUMA, np.float32), clean, 1)[None]
    levels = np.count_nonzero(np.bincount((clean * 255).round().astype(np.uint8).ravel(), minlength=256))
    quanta = max(64.0, 2.0 ** float(np.ceil(np.log2(levels))))
    shot = noise.poisson(clean * quanta).astype(np.float32) / np.float32(quanta)
    values: Array = np.float32(strength) * (shot - clean)
    return values


def _jpeg_maybe(x: Array, ranges: StageRanges, draw: Random) -> Array:
    compressed, quality = draw.random() < ranges.jpeg, draw.uniform(*ranges.jpeg_quality)
    return _jpeg(x, quality) if compressed else x


def _jpeg(x: Array, quality: float) -> Array:
    """Pass ``x`` (3, H, W) in [0, 1] through Pillow's JPEG encoder (4:2:0) and back."""
    pixels = np.ascontiguousarray((x * 255).round().astype(np.uint8).transpose(1, 2, 0))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=round(quality))
    with Image.open(buffer) as decoded:
        back = np.asarray(decoded, dtype=np.float32)
    return np.ascontiguousarray(back.transpose(2, 0, 1)) / np.float32(255)


def _quantise(x: Tensor) -> Tensor:
    """Move [-1, 1] onto the 8-bit grid, rounding half to even."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
