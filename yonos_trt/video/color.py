"""Frames to RGB and back, with every constant stated.

::

    planes (h, w) per component  --planes_to_rgb-->  (H, W, 3) uint8 or uint16  --rgb_to_planes-->  planes

The conversion is written out here and not left to a scaler's defaults, because three things go wrong
silently otherwise: the matrix (BT.601 against BT.709), the range (limited against full) and the place of
the chroma samples (a quarter of a pixel of colour shift at every conversion).

Equations (ITU-R BT.601, BT.709, BT.2020; n bits a sample)::

    Y' = Kr R' + Kg G' + Kb B'      Cb = (B' - Y') / (2 (1 - Kb))      Cr = (R' - Y') / (2 (1 - Kr))
    limited range: Y = (219 Y' + 16) 2^(n-8)    C = (224 C + 128) 2^(n-8)
    full range:    Y = (2^n - 1) Y'             C = (2^n - 1) C + 2^(n-1)

Chroma goes up by linear interpolation at the true sample positions; it comes down by (1, 2, 1) / 4 along an
axis where chroma sits on a luma sample and by (1, 1) / 2 where it sits between two. Values outside [0, 1]
after the matrix (super-white, out-of-gamut) are clipped: the network's pictures have no room for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yonos_trt.errors import ConfigError, InputError
from yonos_trt.video.layouts import Layout

Samples = NDArray[Any]  # uint8 or uint16
Values = NDArray[np.float32]

#: Kr, Kb by FFmpeg's / ITU-T H.273's MatrixCoefficients number.
MATRICES: dict[int, tuple[float, float]] = {
    1: (0.2126, 0.0722),  # BT.709
    4: (0.30, 0.11),  # FCC
    5: (0.299, 0.114),  # BT.470 BG, the same numbers as BT.601
    6: (0.299, 0.114),  # SMPTE 170M / BT.601
    7: (0.212, 0.087),  # SMPTE 240M
    9: (0.2627, 0.0593),  # BT.2020 non-constant luminance
}

#: (vertical, horizontal) offset of the first chroma sample from the first luma sample, in units of the
#: distance to "in the middle": 0 = on a luma sample, 1 = half-way between two.
SITINGS: dict[str, tuple[int, int]] = {"left": (1, 0), "center": (1, 1), "topleft": (0, 0), "top": (0, 1)}

BAND_ROWS = 64  # rows converted at once: a band of a 5120 px wide frame stays within a core's L2 cache


@dataclass(frozen=True, slots=True)
class Coding:
    """How a signal's numbers map to colour."""

    matrix: int = 1  # H.273 MatrixCoefficients, a key of MATRICES; unused for grey and RGB
    full_range: bool = False  # False: 16..235 / 16..240 in 8 bits
    siting: str = "left"  # a key of SITINGS; matters for 4:2:0 and 4:2:2

    def __post_init__(self) -> None:
        if self.matrix not in MATRICES:
            raise InputError(
                f"matrix coefficients {self.matrix} are not supported: expected one of {sorted(MATRICES)} "
                f"(H.273 numbers); convert the clip to BT.709 or BT.2020 non-constant luminance first"
            )
        if self.siting not in SITINGS:
            raise ConfigError(f"chroma siting {self.siting!r} is unknown: expected one of {sorted(SITINGS)}")


def _ranges(bits: int, *, full: bool) -> tuple[float, float, float, float]:
    """Return luma offset, luma span, chroma centre, chroma span for samples of ``bits`` bits."""
    unit = float(1 << (bits - 8))
    if full:
        top = float((1 << bits) - 1)
        return 0.0, top, 128 * unit, top
    return 16 * unit, 219 * unit, 128 * unit, 224 * unit


def _rgb_peak(bits: int) -> float:
    return 255.0 if bits == 8 else 65535.0


def _double(
    before: Values, here: Values, after: Values, size: int, middle: int, axis: int, xp: Any
) -> Values:
    """Interpolate 2:1 chroma linearly to ``size`` samples along ``axis``, from each and its neighbours."""
    shape = list(here.shape)
    shape[axis] = size
    out: Values = xp.empty(shape, np.float32)
    even, odd = [slice(None)] * 2, [slice(None)] * 2
    even[axis], odd[axis] = slice(0, None, 2), slice(1, None, 2)
    out[tuple(even)] = before + (here - before) * np.float32(0.75) if middle else here
    kept = [slice(None)] * 2
    kept[axis] = slice(0, size // 2)
    near, far = here[tuple(kept)], after[tuple(kept)]
    out[tuple(odd)] = near + (far - near) * np.float32(0.25 if middle else 0.5)
    return out


def _chroma_rows(
    plane: Samples, y0: int, y1: int, width: int, layout: Layout, coding: Coding, xp: Any
) -> Values:
    """Return rows [y0, y1) of a chroma plane on the luma grid, still in the plane's units; y0 is even."""
    vertical, horizontal = SITINGS[coding.siting]
    if layout.sub_h == 2:
        first, last = y0 // 2 - 1, (y1 + 1) // 2 + 1  # one row more on either side; the edge row is held
        rows = plane[max(0, first) : last]
        if first < 0:
            rows = xp.concatenate((rows[:1], rows))
        if last > len(plane):
            rows = xp.concatenate((rows, rows[-1:]))
    else:
        rows = plane[y0:y1]
    values: Values = rows.astype(np.float32)
    if layout.sub_w == 2:
        before = xp.concatenate((values[:, :1], values[:, :-1]), axis=1)
        after = xp.concatenate((values[:, 1:], values[:, -1:]), axis=1)
        values = _double(before, values, after, width, horizontal, 1, xp)
    if layout.sub_h == 2:
        values = _double(values[:-2], values[1:-1], values[2:], y1 - y0, vertical, 0, xp)
    return values


def planes_to_rgb(
    planes: list[Samples], layout: Layout, coding: Coding, *, xp: Any = np, band_rows: int = BAND_ROWS
) -> Samples:
    """Convert one frame's planes to RGB.

    Parameters
    ----------
    planes
        One (grey) or three arrays (Y, Cb, Cr, or G, B, R), each (rows, columns) of ``layout.dtype``.
    layout, coding
        What the samples are and what they mean.
    xp
        The library of the arrays: NumPy, or CuPy for arrays in device memory.
    band_rows
        Rows converted at once, an even number.

    Returns
    -------
    ndarray
        (H, W, 3), uint8 for 8-bit formats, otherwise uint16 using the whole range 0..65535; the caller's own.
    """
    height, width = planes[0].shape
    peak = _rgb_peak(layout.bits)
    out: Samples = xp.empty((height, width, 3), np.uint8 if layout.bits == 8 else np.uint16)
    luma_offset, luma_span, centre, chroma_span = _ranges(
        layout.bits, full=coding.full_range or layout.kind == "rgb"
    )
    if layout.kind == "rgb":
        for channel, plane in zip((1, 2, 0), planes, strict=True):
            out[..., channel] = plane if layout.bits == 8 else xp.rint(plane * np.float32(peak / luma_span))
        return out
    gain, chroma_gain = np.float32(peak / luma_span), np.float32(peak / chroma_span)
    kr, kb = MATRICES[coding.matrix]
    kg = 1 - kr - kb
    for y0 in range(0, height, band_rows):
        y1 = min(height, y0 + band_rows)
        luma = (planes[0][y0:y1].astype(np.float32) - np.float32(luma_offset)) * gain
        if layout.kind == "gray":
            out[y0:y1] = xp.clip(xp.rint(luma), 0, peak)[..., None]
            continue
        cb, cr = (
            (_chroma_rows(plane, y0, y1, width, layout, coding, xp) - np.float32(centre)) * chroma_gain
            for plane in planes[1:]
        )
        red = luma + cr * np.float32(2 * (1 - kr))
        blue = luma + cb * np.float32(2 * (1 - kb))
        green = luma - cr * np.float32(2 * kr * (1 - kr) / kg) - cb * np.float32(2 * kb * (1 - kb) / kg)
        for channel, values in enumerate((red, green, blue)):
            out[y0:y1, :, channel] = xp.clip(xp.rint(values, out=values), 0, peak, out=values)
    return out


def _halve_columns(values: Values, middle: int, xp: Any) -> Values:
    """Bring (rows, 2 n) to (rows, n): between two samples (1, 1) / 2, on a sample (1, 2, 1) / 4."""
    even, odd = values[:, 0::2], values[:, 1::2]
    if middle:
        return (even + odd) * np.float32(0.5)
    before: Values = xp.concatenate((even[:, :1], odd[:, :-1]), axis=1)
    return (before + odd) * np.float32(0.25) + even * np.float32(0.5)


def _store(plane: Samples, y0: int, values: Values, gain: float, offset: float, top: int, xp: Any) -> None:
    values = values * np.float32(gain) + np.float32(offset)
    plane[y0 : y0 + len(values)] = xp.clip(xp.rint(values, out=values), 0, top, out=values)


def rgb_to_planes(
    rgb: Samples,
    planes: list[Samples],
    layout: Layout,
    coding: Coding,
    *,
    xp: Any = np,
    band_rows: int = BAND_ROWS,
) -> None:
    """Convert RGB to one frame's planes, written in place.

    Parameters
    ----------
    rgb
        (H, W, 3) uint8 or uint16 (whole range). H and W must be multiples of the layout's subsampling.
    planes
        Arrays to fill, shapes and order as in `planes_to_rgb`; all three have their full extent.
    layout, coding
        What to store. Grey keeps the luma of ``coding.matrix``.
    xp, band_rows
        As in `planes_to_rgb`.

    Raises
    ------
    ConfigError
        The size does not fit the subsampling.
    """
    height, width, _ = rgb.shape
    if height % layout.sub_h or width % layout.sub_w:
        raise ConfigError(
            f"{layout.name} needs a height that is a multiple of {layout.sub_h} and a width that is a "
            f"multiple of {layout.sub_w}, got {height} x {width}; choose --pix-fmt yuv444p"
        )
    peak = 255.0 if rgb.dtype == np.uint8 else 65535.0
    top = (1 << layout.bits) - 1
    if layout.kind == "rgb":
        for channel, plane in zip((1, 2, 0), planes, strict=True):
            if layout.bits == 8 and rgb.dtype == np.uint8:
                plane[...] = rgb[..., channel]
            else:
                plane[...] = xp.rint(rgb[..., channel] * np.float32(top / peak))
        return
    luma_offset, luma_span, centre, chroma_span = _ranges(layout.bits, full=coding.full_range)
    kr, kb = MATRICES[coding.matrix]
    vertical, horizontal = SITINGS[coding.siting]
    halo = int(layout.sub_h == 2 and not vertical)  # the (1, 2, 1) filter reads one row above and one below
    for y0 in range(0, height, band_rows):
        y1 = min(height, y0 + band_rows)
        rows = xp.clip(xp.arange(y0 - halo, y1 + halo), 0, height - 1) if halo else slice(y0, y1)
        red, green, blue = (rgb[rows, :, c].astype(np.float32) for c in range(3))
        luma = red * np.float32(kr) + green * np.float32(1 - kr - kb) + blue * np.float32(kb)
        inner = luma[halo : len(luma) - halo]
        _store(planes[0], y0, inner, luma_span / peak, luma_offset, top, xp)
        if layout.kind == "gray":
            continue
        for plane, primary, k in ((planes[1], blue, kb), (planes[2], red, kr)):
            values = primary - luma
            if layout.sub_w == 2:
                values = _halve_columns(values, horizontal, xp)
            if halo:
                values = (values[:-2:2] + values[2::2]) * np.float32(0.25) + values[1:-1:2] * np.float32(0.5)
            elif layout.sub_h == 2:
                values = (values[0::2] + values[1::2]) * np.float32(0.5)
            _store(plane, y0 // layout.sub_h, values, chroma_span / (2 * (1 - k) * peak), centre, top, xp)
