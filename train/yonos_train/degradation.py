"""What degradations draw from: the ranges of Real-ESRGAN's two stages, and the kinds built on them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from .blur import BlurRanges

Kind = Literal["bicubic", "average", "light", "mild", "realesrgan", "mixed"]


@dataclass(frozen=True, slots=True)
class StageRanges:
    """What one stage draws from; defaults are Real-ESRGAN's first stage (Wang et al. 2021, section 4.1).

    Attributes
    ----------
    blur
        Kernels.
    resize
        Probabilities of (enlarging, shrinking, keeping).
    resize_factor
        Smallest and largest factor.
    noise
        Probability of any noise.
    gaussian
        Share of Gaussian noise, the rest is Poisson.
    gaussian_sigma
        Standard deviation in units of 1/255.
    poisson_scale
        Factor on the Poisson noise.
    grey
        Probability that all channels get the same noise.
    jpeg
        Probability of JPEG compression.
    jpeg_quality
        Smallest and largest quality of Pillow's encoder.
    """

    blur: BlurRanges = field(default_factory=BlurRanges)
    resize: tuple[float, float, float] = (0.2, 0.7, 0.1)
    resize_factor: tuple[float, float] = (0.15, 1.5)
    noise: float = 1.0
    gaussian: float = 0.5
    gaussian_sigma: tuple[float, float] = (1.0, 30.0)
    poisson_scale: tuple[float, float] = (0.05, 3.0)
    grey: float = 0.4
    jpeg: float = 1.0
    jpeg_quality: tuple[float, float] = (30.0, 95.0)


_FIRST: Final = StageRanges()
_SECOND: Final = StageRanges(
    blur=BlurRanges(probability=0.8, sigma_px=(0.2, 1.5)),
    resize=(0.3, 0.4, 0.3),
    resize_factor=(0.3, 1.2),
    gaussian_sigma=(1.0, 25.0),
    poisson_scale=(0.05, 2.5),
)
# About half the strength of the paper's: a compressed web picture rather than a ruined one.
_MILD_FIRST: Final = StageRanges(
    blur=BlurRanges(probability=0.8, sinc=0.05, sigma_px=(0.2, 1.8)),
    resize=(0.2, 0.5, 0.3),
    resize_factor=(0.5, 1.3),
    noise=0.7,
    gaussian_sigma=(1.0, 12.0),
    poisson_scale=(0.05, 1.2),
    jpeg=0.7,
    jpeg_quality=(50.0, 95.0),
)
_MILD_SECOND: Final = StageRanges(
    blur=BlurRanges(probability=0.5, sinc=0.05, sigma_px=(0.2, 1.0)),
    resize=(0.2, 0.3, 0.5),
    resize_factor=(0.6, 1.2),
    noise=0.5,
    gaussian_sigma=(1.0, 8.0),
    poisson_scale=(0.05, 0.8),
    jpeg=0.8,
    jpeg_quality=(50.0, 95.0),
)


@dataclass(frozen=True, slots=True)
class Degradation:
    """A way to make LR pictures.

    Attributes
    ----------
    kind
        ``bicubic``: antialiased, as MATLAB and Pillow do; ``average``: mean of s x s blocks;
        ``realesrgan``: the full two-stage model; ``mild``: the same at about half strength;
        ``light``: bicubic with a little blur, noise and JPEG; ``mixed``: one of the three named by ``mix``
        for each sample.
    first, second
        The stages of ``realesrgan`` and ``mild``; None takes the preset of ``kind``.
    final_sinc
        Probability of the last sinc filter of the two-stage model.
    mix
        Shares of bicubic, light and mild in ``mixed``.
    light_blur
        Probability, and largest sigma in LR pixels, of the blur of ``light``.
    light_noise
        Probability, and largest sigma in units of 1/255, of its noise.
    light_jpeg
        Probability of its JPEG compression.
    light_quality
        Smallest and largest JPEG quality.
    """

    kind: Kind = "mixed"
    first: StageRanges | None = None
    second: StageRanges | None = None
    final_sinc: float = 0.8
    mix: tuple[float, float, float] = (0.5, 0.35, 0.15)
    light_blur: tuple[float, float] = (0.6, 0.5)
    light_noise: tuple[float, float] = (0.4, 4.0)
    light_jpeg: float = 0.6
    light_quality: tuple[float, float] = (60.0, 95.0)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"Degradation: kind must be one of {get_args(Kind)}; got {self.kind!r}.")
        if min(self.mix) < 0 or sum(self.mix) <= 0:
            raise ValueError(f"Degradation: mix must be three shares >= 0, not all 0; got {self.mix}.")

    def stages(self) -> tuple[StageRanges, StageRanges]:
        """Return the two stages, with the presets of ``kind`` filled in."""
        mild = self.kind == "mild"
        return (
            self.first or (_MILD_FIRST if mild else _FIRST),
            self.second or (_MILD_SECOND if mild else _SECOND),
        )
