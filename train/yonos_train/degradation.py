"""What degradations draw from: the ranges of Real-ESRGAN's two stages and of a camera, and the kinds built on
them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, cast, get_args

from .blur import BlurRanges

Kind = Literal["bicubic", "average", "light", "mild", "realesrgan", "lens", "camera", "mixed"]
Shares = Mapping[Kind, float]


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
class CameraRanges:
    """What a picture from a camera, a telephone or the web went through on its way to the LR size.

    Ranges are uniform unless said otherwise. Lengths are LR pixels, levels 1/255.

    Attributes
    ----------
    blur
        Probability of lens blur; its kernel is a Gaussian (isotropic or not) or a defocus disc.
    sigma_lr_px
        Standard deviation of that kernel; drawn as ``low + (high - low) * u ** blur_power``.
    blur_power
        1: uniform; larger: weak blur more often.
    disc
        Share of defocus discs among the kernels.
    motion, motion_lr_px
        Probability, and largest length, of a straight motion blur after it.
    linear
        Probability that blur and reduction happen in linear light (gamma 2.2), as in a lens.
    enlarged, enlarged_factor
        Probability that the picture had been enlarged before, and the range of the factor.
    noise, shot, read
        Probability of sensor noise; largest standard deviations of its shot part at white, its read part.
    mosaic
        Probability that the noise is correlated as demosaicing of a Bayer pattern leaves it.
    denoise, denoise_strength
        Probability that a denoiser followed, and the range of the share of noise (and detail) that it took.
    sharpen, sharpen_amount, sharpen_lr_px
        Probability, largest amount and radius range of an unsharp mask, which leaves halos.
    jpeg, twice
        Probability of lossy compression, and that it happens twice.
    webp
        Share of WebP in it; the rest is JPEG.
    quality
        Of either encoder.
    subsampling
        Shares of 4:4:4, 4:2:2 and 4:2:0 among the JPEGs.
    """

    blur: float = 0.9
    sigma_lr_px: tuple[float, float] = (0.2, 2.0)
    blur_power: float = 2.0
    disc: float = 0.2
    motion: float = 0.1
    motion_lr_px: float = 2.0
    linear: float = 0.5
    enlarged: float = 0.1
    enlarged_factor: tuple[float, float] = (1.2, 2.0)
    noise: float = 0.6
    shot: float = 8.0
    read: float = 4.0
    mosaic: float = 0.6
    denoise: float = 0.5
    denoise_strength: tuple[float, float] = (0.3, 0.9)
    sharpen: float = 0.4
    sharpen_amount: float = 1.0
    sharpen_lr_px: tuple[float, float] = (0.5, 1.5)
    jpeg: float = 0.6
    twice: float = 0.25
    webp: float = 0.15
    quality: tuple[float, float] = (40.0, 95.0)
    subsampling: tuple[float, float, float] = (0.3, 0.2, 0.5)


# A good camera in good light. The LR pictures of all 20 camera pairs of the development sets are explained
# best by a blur of 0.6 to 1.2 LR px that was sharpened again by 0.3 to 1.5, mostly over 1.5 LR px, and what
# this keeps of each spatial frequency lies between what RealSR's and DRealSR's keep, or within 3 dB of it
# (benchmarks.studies.camera_pairs). A network that saw little sharpening draws halos around every edge.
LENS: Final = CameraRanges(
    blur=0.98,
    sigma_lr_px=(0.5, 1.3),
    blur_power=1.0,
    disc=0.1,
    motion=0.0,
    enlarged=0.0,
    noise=0.5,
    shot=4.0,
    read=2.0,
    sharpen=0.9,
    sharpen_amount=1.6,
    sharpen_lr_px=(0.8, 1.6),
    jpeg=0.3,
    twice=0.0,
    webp=0.0,
    quality=(80.0, 98.0),
)


@dataclass(frozen=True, slots=True)
class Degradation:
    """A way to make LR pictures.

    Attributes
    ----------
    kind
        ``bicubic``: antialiased, as MATLAB and Pillow do; ``average``: mean of s x s blocks;
        ``realesrgan``: the full two-stage model; ``mild``: the same at about half strength;
        ``light``: bicubic with a little blur, noise and JPEG; ``camera``: what lens, sensor, denoiser,
        sharpening and the web's encoders do (:class:`CameraRanges`); ``lens``: the same of a good camera in
        good light (``LENS``); ``mixed``: one of those named by ``mix`` for each sample.
    first, second
        The stages of ``realesrgan`` and ``mild``; None takes the preset of ``kind``.
    final_sinc
        Probability of the last sinc filter of the two-stage model.
    mix
        Kind -> share, for ``mixed``.
    light_blur
        Probability, and largest sigma in LR pixels, of the blur of ``light``.
    light_noise
        Probability, and largest sigma in units of 1/255, of its noise.
    light_jpeg
        Probability of its JPEG compression.
    light_quality
        Smallest and largest JPEG quality.
    camera
        Ranges of ``camera``.
    """

    kind: Kind = "mixed"
    first: StageRanges | None = None
    second: StageRanges | None = None
    final_sinc: float = 0.8
    mix: Shares = field(default_factory=lambda: {"bicubic": 0.5, "light": 0.35, "mild": 0.15})
    light_blur: tuple[float, float] = (0.6, 0.5)
    light_noise: tuple[float, float] = (0.4, 4.0)
    light_jpeg: float = 0.6
    light_quality: tuple[float, float] = (60.0, 95.0)
    camera: CameraRanges = field(default_factory=CameraRanges)

    @classmethod
    def of(cls, what: Degradation | str | Mapping[str, float]) -> Degradation:
        """Return a degradation from itself, its kind, or a mixture's shares ``{"bicubic": 0.3, ...}``."""
        if isinstance(what, Degradation):
            return what
        if isinstance(what, str):
            return cls(cast(Kind, what))
        return cls("mixed", mix=cast(Shares, dict(what)))

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"Degradation: kind must be one of {get_args(Kind)}; got {self.kind!r}.")
        if unknown := set(self.mix) - (set(get_args(Kind)) - {"mixed"}):
            raise ValueError(f"Degradation: mix got {sorted(unknown)}, expected kinds other than 'mixed'.")
        if not self.mix or min(self.mix.values()) < 0 or sum(self.mix.values()) <= 0:
            raise ValueError(f"Degradation: mix must be shares >= 0, not all 0; got {dict(self.mix)}.")

    def stages(self) -> tuple[StageRanges, StageRanges]:
        """Return the two stages, with the presets of ``kind`` filled in."""
        mild = self.kind == "mild"
        return (
            self.first or (_MILD_FIRST if mild else _FIRST),
            self.second or (_MILD_SECOND if mild else _SECOND),
        )
