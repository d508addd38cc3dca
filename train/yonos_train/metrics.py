"""Picture quality of one upscaled picture against the truth, and of sets of pictures.

psnr_y      dB on BT.601 luma (16..235, as MATLAB's rgb2ycbcr), ``scale`` px cropped from each side
ssim_y      Wang et al. 2004 on the same luma: 11 x 11 Gaussian window, sigma 1.5, valid positions only
lpips_alex  LPIPS v0.1, the figure papers report          lower is better
lpips_vgg   the same with VGG16                           lower is better
dists       Ding et al. 2020                              lower is better
niqe        Mittal et al. 2013, of the picture alone      lower is better
fid         Heusel et al. 2017, over a whole set          lower is better
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .losses import Dists, Lpips

Picture = NDArray[np.uint8]  # (H, W, 3) RGB

PAIR_METRICS: Final = ("psnr_y", "ssim_y", "lpips_alex", "lpips_vgg", "dists")
BLIND_METRICS: Final = ("niqe",)  # of the upscaled picture alone
SET_METRICS: Final = ("fid",)
HIGHER_IS_BETTER: Final = frozenset({"psnr_y", "ssim_y"})
INCEPTION_FILE: Final = "weights-inception-2015-12-05-6726825d.pth"  # as its releases name it
LARGEST_PSNR_DB: Final = 100.0  # reported for identical pictures, so that means and JSON stay finite


class MetricError(ValueError):
    """A metric cannot be computed here; the message says what it lacks."""


def luma(rgb: Picture) -> NDArray[np.float64]:
    """Return BT.601 luma (H, W) in 16..235 of ``rgb`` (H, W, 3), rounded as MATLAB does for uint8."""
    weights = np.array([65.481, 128.553, 24.966]) / 255.0
    result: NDArray[np.float64] = np.floor(rgb.astype(np.float64) @ weights + 16.5)
    return result


def _cropped_luma(picture: Picture, border_px: int) -> NDArray[np.float64]:
    if min(picture.shape[:2]) <= 2 * border_px:
        raise MetricError(
            f"picture of {picture.shape[:2]} px is too small for a border of {border_px} px a side."
        )
    inside = slice(border_px, -border_px or None)
    return luma(picture)[inside, inside]


def psnr_y(sr: Picture, hr: Picture, border_px: int) -> float:
    """Return the luma PSNR in dB with peak 255, at most 100."""
    error = _cropped_luma(sr, border_px) - _cropped_luma(hr, border_px)
    mse = float(np.mean(np.square(error)))
    return LARGEST_PSNR_DB if mse == 0 else min(LARGEST_PSNR_DB, float(10 * np.log10(255.0**2 / mse)))


def ssim_y(sr: Picture, hr: Picture, border_px: int) -> float:
    """Return the luma SSIM (Wang et al. 2004, K = 0.01, 0.03, L = 255), mean over the valid positions."""
    x, y = _cropped_luma(sr, border_px), _cropped_luma(hr, border_px)
    if min(x.shape) < 11:
        raise MetricError(f"SSIM needs at least 11 px a side inside the border; got {x.shape}.")
    mean_x, mean_y = _window(x), _window(y)
    var_x, var_y = _window(x * x) - mean_x**2, _window(y * y) - mean_y**2
    covariance = _window(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return float(np.mean(luminance * structure))


def _window(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Gaussian means (sigma 1.5) of all 11 x 11 windows inside ``x``."""
    from scipy.ndimage import correlate1d

    kernel = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    kernel /= kernel.sum()
    means: NDArray[np.float64] = correlate1d(correlate1d(x, kernel, axis=0), kernel, axis=1)
    return means[5:-5, 5:-5]


def as_tensor(picture: Picture) -> Tensor:
    """Return (1, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1


class Metrics:
    """The wanted metrics, with their networks loaded once.

    Parameters
    ----------
    names
        Of ``PAIR_METRICS``, ``BLIND_METRICS`` and ``SET_METRICS``.
    weights
        Files by name: ``lpips_alex``, ``lpips_vgg``, ``dists``, ``niqe``, ``fid_inception``
        (torch-fidelity's file).
    device
        Where the networks run.
    fid_features
        Replaces the Inception network of ``fid``: uint8 (N, 3, H, W) -> (N, D).

    Raises
    ------
    MetricError
        For an unknown metric, or one whose weights were not given: nothing is left out silently.
    """

    def __init__(
        self,
        names: Sequence[str],
        weights: Mapping[str, str],
        *,
        device: str = "cpu",
        fid_features: nn.Module | None = None,
    ) -> None:
        self.names, self.device = tuple(names), device
        self._pair: dict[str, Callable[[Picture, Picture, int], float]] = {}
        self._fid: Any = None
        self._fid_counts: list[int] = []
        for name in self.names:
            if name == "psnr_y":
                self._pair[name] = psnr_y
            elif name == "ssim_y":
                self._pair[name] = ssim_y
            elif name in ("lpips_alex", "lpips_vgg"):
                network = Lpips(name.removeprefix("lpips_"), _path(weights, name, name))
                self._pair[name] = self._perceptual(network)
            elif name == "dists":
                paths = _path(weights, "lpips_vgg", name), _path(weights, "dists", name)
                self._pair[name] = self._perceptual(Dists(*paths))
            elif name == "fid":
                self._fid = _fid(weights, fid_features).to(device)
            elif name == "niqe":
                self._pair[name] = _niqe(_path(weights, name, name))
            else:
                known = ", ".join(PAIR_METRICS + BLIND_METRICS + SET_METRICS)
                raise MetricError(f"unknown metric {name!r}; expected some of {known}.")

    def _perceptual(self, network: Lpips | Dists) -> Callable[[Picture, Picture, int], float]:
        network.to(self.device).eval()
        truth: list[tuple[Picture, list[Tensor]]] = []  # of the last HR picture: several methods share it

        @torch.inference_mode()
        def measure(sr: Picture, hr: Picture, border_px: int) -> float:
            if not truth or truth[0][0] is not hr:
                truth[:] = [(hr, network.features(as_tensor(hr).to(self.device)))]
            return float(network.distance(network.features(as_tensor(sr).to(self.device)), truth[0][1]))

        return measure

    def pair(self, sr: Picture, hr: Picture, *, border_px: int) -> dict[str, float]:
        """Measure one picture; perceptual metrics see all of it, luma metrics leave out the border."""
        if sr.shape != hr.shape or sr.dtype != np.uint8 or hr.dtype != np.uint8:
            raise MetricError(
                f"expected two uint8 (H, W, 3) pictures of one size; got {sr.dtype} {sr.shape} and "
                f"{hr.dtype} {hr.shape}."
            )
        return {name: measure(sr, hr, border_px) for name, measure in self._pair.items()}

    def add_to_set(self, sr: Picture, hr: Picture) -> None:
        """Take a picture into the running set metrics."""
        if self._fid is not None:
            for picture, real in ((hr, True), (sr, False)):
                pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
                self._fid.update(pixels.to(self.device), real=real)
            self._fid_counts.append(1)

    def finish_set(self) -> dict[str, float]:
        """Return the set metrics of the pictures taken in since the last call, and forget those."""
        if self._fid is None:
            return {}
        count = len(self._fid_counts)
        if count < 2:
            raise MetricError(f"fid needs at least 2 pictures a set; got {count}.")
        value = float(self._fid.compute())
        self._fid.reset()
        self._fid_counts.clear()
        return {"fid": value}


def _path(weights: Mapping[str, str], key: str, metric: str) -> str:
    if not weights.get(key):
        raise MetricError(f"{metric} needs the weights file {key}; got none. Pass --weights {key}=FILE.")
    return weights[key]


def _niqe(path: str) -> Callable[[Picture, Picture, int], float]:
    from .niqe import Niqe

    try:
        model = Niqe(path)
    except ValueError as error:
        raise MetricError(str(error)) from error

    def measure(sr: Picture, hr: Picture, border_px: int) -> float:
        try:
            return model(_cropped_luma(sr, border_px))
        except ValueError as error:
            raise MetricError(str(error)) from error

    return measure


def _fid(weights: Mapping[str, str], features: nn.Module | None) -> Any:
    from torchmetrics.image.fid import FrechetInceptionDistance

    if features is not None:
        return FrechetInceptionDistance(feature=features)
    path = _path(weights, "fid_inception", "fid")
    if not Path(path).is_file():
        raise MetricError(f"fid: no file {path!r}; expected torch-fidelity's {INCEPTION_FILE}.")
    try:
        return FrechetInceptionDistance(feature=2048, feature_extractor_weights_path=path)
    except ImportError as error:  # torchmetrics takes the network itself from torch-fidelity
        raise MetricError(
            "fid needs the package torch-fidelity, got none; run `pip install torch-fidelity`."
        ) from error
    except (OSError, RuntimeError, KeyError, UnpicklingError) as error:
        raise MetricError(
            f"fid: {path!r} is not the Inception network ({error}); "
            f"expected torch-fidelity's {INCEPTION_FILE}."
        ) from error
