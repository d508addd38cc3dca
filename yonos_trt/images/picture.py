"""A decoded picture: RGB pixels, optional alpha, and what is needed to give back the same kind of picture.

Everything inside the SDK sees ``Picture.rgb``, always (H, W, 3); :class:`Kind` remembers what it was.
This module needs NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from yonos_trt.errors import InputError
from yonos_trt.images.alpha import fill_hidden
from yonos_trt.images.color_space import ColorSpace
from yonos_trt.tiles.bicubic import Pixels

__all__ = [
    "DTYPES",
    "FLOAT_TOLERANCE",
    "MODES",
    "Kind",
    "Picture",
    "Pixels",
    "from_array",
    "luma",
    "to_array",
    "to_depth",
]

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
DTYPES = ("uint8", "uint16", "float32")

# Float pixels may leave [0, 1] by this much (rounding of an earlier step); they are clipped. More is an
# error.
FLOAT_TOLERANCE = 1e-3

# ITU-R BT.601 luma, the weights behind Pillow's convert("L").
# G + B weights stay below 1, so the result lies between the smallest and the largest channel: no clipping
# needed.
_LUMA_G, _LUMA_B = np.float32(0.587), np.float32(0.114)

# Rows converted at once, so that temporaries stay small beside the picture.
_BLOCK_ROWS = 64


@dataclass(frozen=True, slots=True)
class Kind:
    """What a picture was before it became RGB, so that the result can become the same again.

    Parameters
    ----------
    mode
        One of ``MODES``, Pillow's words without the depth: a 16-bit grey picture is ``"L"`` with ``uint16``.
        A palette picture is ``"P"`` with or without alpha.
    dtype
        ``"uint8"``, ``"uint16"`` or ``"float32"`` (in [0, 1]).
    format
        ``"PNG"``, ``"JPEG"``, ... of the file it came from; None for arrays and new PIL images.
    source
        ``"array"``, ``"pil"`` or ``"file"``.
    ndim
        2 if a grey array had the shape (H, W), 3 if it had (H, W, 1). Only arrays use it.
    palette_alpha
        Of a palette picture: None, ``"binary"`` (only fully transparent or opaque) or ``"soft"``.
    color
        The colour space, where the file says it in numbers (PNG's cICP and gAMA, AVIF's nclx).
    """

    mode: str
    dtype: str = "uint8"
    format: str | None = None
    source: str = "file"
    ndim: int = 3
    palette_alpha: str | None = None
    color: ColorSpace | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES or self.dtype not in DTYPES:
            raise InputError(
                f"no picture kind has mode {self.mode!r} and dtype {self.dtype!r}; "
                f"modes: {MODES}; dtypes: {DTYPES}"
            )

    @property
    def is_grey(self) -> bool:
        """True if the result has one colour channel."""
        return self.mode in ("1", "L", "LA")

    @property
    def has_alpha(self) -> bool:
        """True if transparency belongs to it."""
        return self.mode in ("LA", "RGBA") or (self.mode == "P" and self.palette_alpha is not None)

    def without_alpha(self) -> Kind:
        """Return the opaque kind: RGBA -> RGB, LA -> L, palette without its transparent entries."""
        return replace(self, mode={"LA": "L", "RGBA": "RGB"}.get(self.mode, self.mode), palette_alpha=None)

    @property
    def bits(self) -> int:
        """Bits per sample: 1, 8, 16 or 32."""
        return 1 if self.mode == "1" else np.dtype(self.dtype).itemsize * 8


@dataclass(frozen=True, slots=True)
class Picture:
    """Pixels with all that has to survive an upscaling.

    Parameters
    ----------
    rgb
        (H, W, 3), C order, ``kind.dtype``, in the picture's own colour space (``icc``); for CMYK in sRGB.
        Upright: an EXIF orientation has been applied. May be the caller's own array: read, never written.
    alpha
        (H, W) of the same dtype, straight (not premultiplied), or None. Colour where alpha is 0 has been
        replaced by the colour next to it.
    kind
        What comes in and has to go out.
    icc, exif, xmp
        Raw bytes or None. In ``exif`` and ``xmp`` the orientation is already 1 (upright).
    dpi
        (x, y) dots per inch or None; kept as it is.
    text
        PNG text chunks, or ``{"comment": ...}`` of a JPEG.
    resources
        Photoshop's image resources (``8BIM``), IPTC among them, or None.
    chunks
        Further chunks of a PNG, (type, body), which a PNG gets again.
    source_px
        (height, width) for which places in ``exif`` and ``xmp`` are given; None: the size of ``rgb``.
    name
        The path, for messages.
    left_out
        What of the source could not be carried, in a few words each ("EXIF thumbnail, which shows the old
        picture"). Whoever reads adds to it; `write_image` returns it together with what the output format
        cannot hold.
    """

    rgb: Pixels
    alpha: Pixels | None
    kind: Kind
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    text: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    resources: bytes | None = None
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    source_px: tuple[int, int] | None = None
    name: str = "array"
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        rgb, alpha = self.rgb, self.alpha
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != self.kind.dtype or not rgb.size:
            raise InputError(
                f"{self.name}: rgb is {rgb.dtype} {rgb.shape}, "
                f"expected {self.kind.dtype} (H, W, 3) with H, W >= 1"
            )
        if alpha is not None and (alpha.shape != rgb.shape[:2] or alpha.dtype != rgb.dtype):
            raise InputError(
                f"{self.name}: alpha is {alpha.dtype} {alpha.shape}, expected {rgb.dtype} {rgb.shape[:2]}"
            )
        if (alpha is not None) != self.kind.has_alpha:
            given = "without" if alpha is None else "with"
            raise InputError(
                f"{self.name}: kind {self.kind.mode} {given} alpha; use with_pixels() to change it"
            )

    @property
    def height_px(self) -> int:
        """Rows."""
        return int(self.rgb.shape[0])

    @property
    def width_px(self) -> int:
        """Columns."""
        return int(self.rgb.shape[1])

    def with_pixels(self, rgb: Pixels, alpha: Pixels | None = None) -> Picture:
        """Return the same kind of picture with other pixels (any size): the way back after upscaling.

        Without ``alpha`` a picture that had one becomes opaque (``"RGBA"`` -> ``"RGB"``): the explicit drop.
        """
        kind = self.kind if alpha is not None else self.kind.without_alpha()
        source_px = self.source_px or (self.height_px, self.width_px)
        return replace(self, rgb=rgb, alpha=alpha, kind=kind, source_px=source_px)

    def without_alpha(self) -> Picture:
        """Return the picture with its alpha dropped; the colours stay as they are."""
        return self.with_pixels(self.rgb)


def luma(rgb: Pixels) -> Pixels:
    """(H, W, 3) -> (H, W): BT.601 luma in the same dtype; exact where the three channels are equal."""
    out = np.empty(rgb.shape[:2], rgb.dtype)
    for first in range(0, len(rgb), _BLOCK_ROWS):
        wide = rgb[first : first + _BLOCK_ROWS].astype(np.float32, copy=False)
        red = wide[..., 0]
        y = red + _LUMA_G * (wide[..., 1] - red) + _LUMA_B * (wide[..., 2] - red)
        out[first : first + _BLOCK_ROWS] = y if rgb.dtype == np.float32 else np.rint(y)
    return out


def to_depth(pixels: Pixels, dtype: str) -> Pixels:
    """Rescale pixels to another depth's full range, rounding half to even; the same object if it has it
    already.
    """
    if pixels.dtype == dtype:
        return pixels
    top_in = 1.0 if pixels.dtype == np.float32 else float(np.iinfo(pixels.dtype).max)
    top_out = 1.0 if dtype == "float32" else float(np.iinfo(dtype).max)
    out = np.empty(pixels.shape, dtype)
    for first in range(0, len(pixels), _BLOCK_ROWS):
        scaled = pixels[first : first + _BLOCK_ROWS].astype(np.float64) * (top_out / top_in)
        out[first : first + _BLOCK_ROWS] = scaled if dtype == "float32" else np.rint(scaled)
    return out


def checked_float(pixels: Pixels, name: str) -> Pixels:
    """Return float32 pixels clipped to [0, 1]; refuse NaN, infinity and values beyond the tolerance."""
    low, high = float(pixels.min()), float(pixels.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(pixels))[0])
        raise InputError(f"{name}: holds NaN or infinity, first at {where}; replace it before upscaling")
    if low < -FLOAT_TOLERANCE or high > 1 + FLOAT_TOLERANCE:
        raise InputError(
            f"{name}: float pixels span [{low:.6g}, {high:.6g}], expected [0, 1]; "
            "divide by the maximum or clip them"
        )
    return np.clip(pixels, np.float32(0), np.float32(1)) if low < 0 or high > 1 else pixels


def from_array(array: Pixels, *, name: str = "array") -> Picture:
    """Take an RGB(A) or grey(+alpha) array.

    Parameters
    ----------
    array
        (H, W), (H, W, 1) grey, (H, W, 2) grey + alpha, (H, W, 3) RGB, (H, W, 4) RGBA; uint8, uint16, or
        float32 in [0, 1]. Alpha is straight. A contiguous (H, W, 3) array is kept, not copied.

    Raises
    ------
    InputError
        Another type, rank, channel count or dtype, no pixels, NaN, infinity or floats outside [0, 1].
    """
    if not isinstance(array, np.ndarray):
        raise InputError(f"{name}: got {type(array).__name__}, expected a NumPy array")
    if isinstance(array, np.ma.MaskedArray):
        raise InputError(f"{name}: got a masked array; fill it first: array.filled(...)")
    array = np.asarray(array)  # np.matrix and other subclasses index in their own ways
    if array.dtype.newbyteorder("=").name not in DTYPES:
        raise InputError(
            f"{name}: dtype {array.dtype}, expected one of {', '.join(DTYPES)} (float32 in [0, 1])"
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)):
        raise InputError(f"{name}: shape {array.shape}, expected (H, W) or (H, W, 1|2|3|4), channels last")
    if array.size == 0:
        raise InputError(f"{name}: shape {array.shape} holds no pixels")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype == np.float32:
        array = checked_float(array, name)
    channels = 1 if array.ndim == 2 else array.shape[2]
    mode = ("L", "LA", "RGB", "RGBA")[channels - 1]
    kind = Kind(mode=mode, dtype=array.dtype.name, source="array", ndim=array.ndim)
    return picture_from_channels(array if array.ndim == 3 else array[..., None], kind, name=name)


def picture_from_channels(array: Pixels, kind: Kind, **fields: Any) -> Picture:
    """(H, W, 1|2|3|4) straight grey(+alpha) or RGB(A) -> Picture, with hidden colours filled."""
    channels = array.shape[2]
    alpha = np.ascontiguousarray(array[..., -1]) if channels in (2, 4) else None
    if channels <= 2:
        rgb = np.repeat(array[..., :1], 3, axis=2)
    else:
        rgb = np.ascontiguousarray(array[..., :3])
    if alpha is not None:
        rgb = fill_hidden(rgb, alpha)
    return Picture(rgb=rgb, alpha=alpha, kind=kind, **fields)


def to_array(picture: Picture) -> Pixels:
    """Return the pixels as one array of the kind that came in.

    Returns
    -------
    ndarray
        (H, W) or (H, W, 1) grey, (H, W, 2) grey + alpha, (H, W, 3) RGB, (H, W, 4) RGBA, dtype as it came in.
        Palette and CMYK pictures give RGB(A); 1-bit ones give grey 0 or 255.
    """
    kind = picture.kind
    colour = channels_of(picture.rgb, kind)
    if picture.alpha is not None:
        return np.concatenate([colour, picture.alpha[..., None]], axis=2)
    return colour[..., 0] if kind.is_grey and (kind.ndim == 2 or kind.source != "array") else colour


def channels_of(rgb: Pixels, kind: Kind) -> Pixels:
    """(rows, W, 3) -> (rows, W, 1) for grey and 1-bit kinds (thresholded at one half), else unchanged."""
    if not kind.is_grey:
        return rgb
    grey = luma(rgb)
    if kind.mode == "1":
        grey = np.where(grey >= 128, np.uint8(255), np.uint8(0))
    return np.asarray(grey)[..., None]
