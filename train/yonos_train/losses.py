"""Losses of the decoder stage: LPIPS, DISTS and gradient L1 (adversarial ones: ``adversarial``).

The perceptual networks read their weights from a path that the caller names; nothing is downloaded, and a
missing file is an error, never a skipped term. They own no trainable parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Final, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

Network = Literal["alex", "vgg"]

# AlexNet (Krizhevsky 2014): (stride, padding) per convolution. VGG16 (Simonyan & Zisserman 2014): (1, 1).
_ALEX_POOL_BEFORE: Final = frozenset({1, 2})
_ALEX_GEOMETRY: Final = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))
_ALEX_TAPS: Final = (0, 1, 2, 3, 4)
_VGG_POOL_BEFORE: Final = frozenset({2, 4, 7, 10})
_VGG_TAPS: Final = (1, 3, 6, 9, 12)  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
_VGG_WIDTHS: Final = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
# Shapes (out, in, height, width) of the convolutions, and the channels that LPIPS weights, per tap.
CONVOLUTIONS: Final[Mapping[Network, tuple[tuple[int, int, int, int], ...]]] = {
    "alex": ((64, 3, 11, 11), (192, 64, 5, 5), (384, 192, 3, 3), (256, 384, 3, 3), (256, 256, 3, 3)),
    "vgg": tuple((out, into, 3, 3) for into, out in pairwise((3, *_VGG_WIDTHS))),
}
_TAPPED: Final[Mapping[Network, tuple[int, ...]]] = {
    "alex": tuple(CONVOLUTIONS["alex"][i][0] for i in _ALEX_TAPS),
    "vgg": tuple(CONVOLUTIONS["vgg"][i][0] for i in _VGG_TAPS),
}

# LPIPS' input normalisation for images in [-1, 1] (Zhang et al. 2018): ImageNet statistics in that range.
_LPIPS_SHIFT: Final = (-0.030, -0.088, -0.188)
_LPIPS_SCALE: Final = (0.458, 0.448, 0.450)
_IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
_IMAGENET_STD: Final = (0.229, 0.224, 0.225)


class WeightsError(ValueError):
    """A perceptual network's weights file is missing or is not what the network needs."""


def _load(path: str | Path, what: str) -> dict[str, Tensor]:
    file = Path(path)
    if not file.is_file():
        raise WeightsError(
            f"{what} needs its weights; got {str(path)!r}, which is not a file. "
            "Name a .safetensors file with tensors conv{i}.weight, conv{i}.bias and lin{i}.weight "
            "(`yonos-train weights` makes it), or give this loss the weight 0."
        )
    try:
        return {name: value.float() for name, value in load_file(file).items()}
    except Exception as error:
        raise WeightsError(f"{what}: {str(path)!r} is not a readable safetensors file ({error}).") from error


def lpips_shapes(net: Network) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that `Lpips` reads, by name; `Dists` reads the convolutions alone."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i, shape in enumerate(CONVOLUTIONS[net]):
        shapes |= {f"conv{i}.weight": shape, f"conv{i}.bias": shape[:1]}
    return shapes | {f"lin{k}.weight": (1, channels, 1, 1) for k, channels in enumerate(_TAPPED[net])}


def _check_tensors(
    weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], net: Network, path: str | Path
) -> None:
    """Refuse a file that lacks a tensor or has one of another shape."""
    missing = [f"{name} is missing" for name in shapes if name not in weights]
    wrong = missing or [
        f"{name} has shape {tuple(weights[name].shape)}, expected {shape}"
        for name, shape in shapes.items()
        if tuple(weights[name].shape) != shape
    ]
    if wrong:
        raise WeightsError(
            f"{net}: tensor {wrong[0]} in {str(path)!r}. Name the file that belongs to this network; "
            "`yonos-train weights` makes it."
        )


def _channels(values: tuple[float, float, float]) -> Tensor:
    return torch.tensor(values).view(1, 3, 1, 1)


def _check_pair(x: Tensor, y: Tensor, what: str) -> None:
    if x.ndim != 4 or x.shape[1] != 3 or x.shape != y.shape:
        raise ValueError(
            f"{what} needs two (N, 3, H, W) tensors of one shape; got {tuple(x.shape)}, {tuple(y.shape)}."
        )


class _Trunk(nn.Module):
    """Frozen convolutions of AlexNet or VGG16; returns the feature maps that LPIPS and DISTS compare."""

    def __init__(self, net: Network, weights: dict[str, Tensor], path: str | Path) -> None:
        super().__init__()
        self.net = net
        self.taps = _ALEX_TAPS if net == "alex" else _VGG_TAPS
        self.pool_before = _ALEX_POOL_BEFORE if net == "alex" else _VGG_POOL_BEFORE
        shapes = {name: shape for name, shape in lpips_shapes(net).items() if name.startswith("conv")}
        _check_tensors(weights, shapes, net, path)
        for i in range(len(CONVOLUTIONS[net])):
            for part in ("weight", "bias"):
                self.register_buffer(f"{part}{i}", weights[f"conv{i}.{part}"], persistent=False)

    def pool(self, x: Tensor) -> Tensor:
        return functional.max_pool2d(x, 3, 2) if self.net == "alex" else functional.max_pool2d(x, 2, 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for i in range(self.taps[-1] + 1):
            if i in self.pool_before:
                x = self.pool(x)
            stride, padding = _ALEX_GEOMETRY[i] if self.net == "alex" else (1, 1)
            x = functional.conv2d(
                x, self.get_buffer(f"weight{i}"), self.get_buffer(f"bias{i}"), stride=stride, padding=padding
            ).relu()
            if i in self.taps:
                maps.append(x)
        return maps


def _unit(x: Tensor) -> Tensor:
    """Scale each position's channel vector to length 1, float32; the floor keeps the gradient at 0 finite."""
    x = x.float()
    return x * torch.rsqrt(x.square().sum(1, keepdim=True) + 1e-10)


# ----------------------------------------------------------------------------------------------------------
# LPIPS v0.1 (Zhang et al. 2018, eq. 1):  d(x, y) = sum_l mean_hw  w_l . (unit(f_l(x)) - unit(f_l(y)))^2


class Lpips(nn.Module):
    """Learned perceptual distance of two batches of images.

    Parameters
    ----------
    net
        "alex" is the metric that papers report, "vgg" the loss of the LDM autoencoder.
    weights_path
        Safetensors file with ``conv{i}.weight/bias`` and ``lin{i}.weight``; half precision is accepted.

    Raises
    ------
    WeightsError
        If the file is missing or belongs to another network.
    """

    def __init__(self, net: Network | str, weights_path: str | Path) -> None:
        super().__init__()
        if net not in ("alex", "vgg"):
            raise ValueError(f"Lpips: net must be 'alex' or 'vgg'; got {net!r}.")
        weights = _load(weights_path, f"LPIPS ({net})")
        self.trunk = _Trunk(net, weights, weights_path)
        _check_tensors(weights, lpips_shapes(net), net, weights_path)
        for k in range(5):
            self.register_buffer(f"lin{k}", weights[f"lin{k}.weight"], persistent=False)
        self.register_buffer("shift", _channels(_LPIPS_SHIFT), persistent=False)
        self.register_buffer("scale", _channels(_LPIPS_SCALE), persistent=False)

    @property
    def smallest_px(self) -> int:
        """The smallest side of a picture that every layer still has a position in."""
        return 31 if self.trunk.net == "alex" else 16

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the five unit-length feature maps of ``x`` (N, 3, H, W) in [-1, 1], float32."""
        if min(x.shape[-2:]) < self.smallest_px:
            raise ValueError(
                f"LPIPS ({self.trunk.net}) needs at least {self.smallest_px} px a side; "
                f"got {tuple(x.shape[-2:])}."
            )
        x = (x - self.get_buffer("shift")) / self.get_buffer("scale")
        return [_unit(f) for f in self.trunk(x)]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distance (N,), float32, of ``x`` and ``y`` (N, 3, H, W) in [-1, 1].

        Gradients flow to both; a side that needs none costs no memory.
        """
        _check_pair(x, y, "LPIPS")
        return self.distance(self.features(x), self.features(y))

    def distance(self, of_x: list[Tensor], of_y: list[Tensor]) -> Tensor:
        """Return the distance (N,), float32, of two pictures' ``features``."""
        total = torch.zeros(of_x[0].shape[0], device=of_x[0].device)
        for k, (a, b) in enumerate(zip(of_x, of_y, strict=True)):
            weight = self.get_buffer(f"lin{k}").float()
            total = total + ((a - b).square() * weight).sum(1).mean((1, 2))
        return total


# ----------------------------------------------------------------------------------------------------------
# DISTS (Ding et al. 2020):  d = 1 - sum_ij (alpha_ij l_ij + beta_ij s_ij) over the image and five VGG maps


class _L2PoolTrunk(_Trunk):
    """VGG16 whose pooling is the root of a Hanning-weighted mean of squares (Hénaff & Simoncelli 2016)."""

    def __init__(self, weights: dict[str, Tensor], path: str | Path) -> None:
        super().__init__("vgg", weights, path)
        window = torch.hann_window(5, periodic=False)[1:-1]  # [0.5, 1, 0.5]
        kernel = torch.outer(window, window)
        self.register_buffer("kernel", (kernel / kernel.sum()).view(1, 1, 3, 3), persistent=False)

    def pool(self, x: Tensor) -> Tensor:
        x = x.float()
        kernel = self.get_buffer("kernel").expand(x.shape[1], 1, 3, 3)
        return (functional.conv2d(x.square(), kernel, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()


class Dists(nn.Module):
    """Structure and texture distance of two batches of images.

    Parameters
    ----------
    vgg_path
        The safetensors file of ``Lpips("vgg", ...)``; its convolutions are plain VGG16.
    weights_path
        Torch file with the learnt ``alpha`` and ``beta``, each (1, 1475, 1, 1).
    """

    def __init__(self, vgg_path: str | Path, weights_path: str | Path) -> None:
        super().__init__()
        self.trunk = _L2PoolTrunk(_load(vgg_path, "DISTS (VGG16)"), vgg_path)
        if not Path(weights_path).is_file():
            raise WeightsError(f"DISTS needs alpha and beta; got {str(weights_path)!r}, which is not a file.")
        try:
            learnt = torch.load(weights_path, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle raises what it likes on other files
            raise WeightsError(
                f"DISTS: {str(weights_path)!r} is no file of tensors ({type(error).__name__}: {error})."
            ) from error
        for name in ("alpha", "beta"):
            if name not in learnt or tuple(learnt[name].shape) != (1, 1475, 1, 1):
                raise WeightsError(f"DISTS: {str(weights_path)!r} holds no {name} of shape (1, 1475, 1, 1).")
        total = learnt["alpha"].sum() + learnt["beta"].sum()
        self.register_buffer("alpha", (learnt["alpha"] / total).flatten(), persistent=False)
        self.register_buffer("beta", (learnt["beta"] / total).flatten(), persistent=False)
        self.register_buffer("mean", _channels(_IMAGENET_MEAN), persistent=False)
        self.register_buffer("std", _channels(_IMAGENET_STD), persistent=False)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the image in [0, 1] and its five VGG maps, float32, for ``x`` (N, 3, H, W) in [-1, 1]."""
        x = (x.float() + 1) / 2
        return [x, *(f.float() for f in self.trunk((x - self.get_buffer("mean")) / self.get_buffer("std")))]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distance (N,), float32, of ``x`` and ``y`` (N, 3, H, W) in [-1, 1]."""
        _check_pair(x, y, "DISTS")
        return self.distance(self.features(x), self.features(y))

    def distance(self, of_x: list[Tensor], of_y: list[Tensor]) -> Tensor:
        """Return the distance (N,), float32, of two pictures' ``features``."""
        means, structures = [], []
        for a, b in zip(of_x, of_y, strict=True):
            mean_a, mean_b = a.mean((2, 3)), b.mean((2, 3))
            var_a, var_b = a.var((2, 3), correction=0), b.var((2, 3), correction=0)
            covariance = (a * b).mean((2, 3)) - mean_a * mean_b
            means.append((2 * mean_a * mean_b + 1e-6) / (mean_a.square() + mean_b.square() + 1e-6))
            structures.append((2 * covariance + 1e-6) / (var_a + var_b + 1e-6))
        luminance = torch.cat(means, 1) * self.get_buffer("alpha")
        structure = torch.cat(structures, 1) * self.get_buffer("beta")
        return 1 - (luminance + structure).sum(1)


def gradient_l1(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean absolute difference of the horizontal and vertical first differences, a scalar."""
    dx = (x.diff(dim=-1) - y.diff(dim=-1)).abs().mean()
    dy = (x.diff(dim=-2) - y.diff(dim=-2)).abs().mean()
    return dx + dy
