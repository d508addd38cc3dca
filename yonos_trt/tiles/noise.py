"""One Gaussian noise field per seed, indexed by place: overlapping tiles see the same noise.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") turns (seed, channel, y, x)
into 32-bit words and Box-Muller turns words into normals.  Nothing depends on tile size, order, batch or
number of lanes.

Logarithm, sine and cosine are short polynomials in float32, written out, so that this module, the native
kernel and the CUDA kernel (both compiled without contraction of a * b + c) give the same bits.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from yonos_trt.tiles.bicubic import Float

Word = NDArray[np.uint32]

# Salmon et al. 2011, section 4.3 and the Random123 distribution.
_MULTIPLIERS: Final = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL: Final = (0x9E3779B9, 0xBB67AE85)
_ROUNDS: Final = 10
_LOW: Final = np.uint64(0xFFFFFFFF)
_SHIFT: Final = np.uint64(32)

_LN_2: Final = np.float32(np.log(2.0))

LARGEST_SEED: Final = 2**64 - 1


def philox(counter: tuple[Word, Word, Word, Word], key: tuple[int, int]) -> tuple[Word, Word, Word, Word]:
    """Return the four words of Philox4x32-10 for each counter; the arrays of ``counter`` broadcast."""
    c0, c1, c2, c3 = (word.astype(np.uint64) for word in counter)
    k0, k1 = key
    for _ in range(_ROUNDS):
        first, second = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (second >> _SHIFT) ^ c1 ^ np.uint64(k0),
            second & _LOW,
            (first >> _SHIFT) ^ c3 ^ np.uint64(k1),
            first & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    a, b, c, d = (word.astype(np.uint32) for word in np.broadcast_arrays(c0, c1, c2, c3))
    return a, b, c, d


def uniform(words: Word) -> Float:
    """Return ((word >> 8) + 0.5) / 2^24 in (0, 1]."""
    return ((words >> np.uint32(8)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-24)


def log(u: Float) -> Float:
    """Return ln u for normal u > 0.

    u = m 2^e with m in [sqrt(1/2), sqrt(2)); ln m = 2 artanh((m - 1) / (m + 1)), five terms.
    """
    bits = u.view(np.uint32)
    offset = bits - np.uint32(0x3F3504F3)  # the bits of sqrt(1/2); wraps for u below it
    e = offset.view(np.int32) >> 23
    m = ((offset & np.uint32(0x007FFFFF)) + np.uint32(0x3F3504F3)).view(np.float32)
    s = (m - np.float32(1)) / (m + np.float32(1))
    z = s * s
    p: Float = np.full_like(z, 1 / 9)
    for term in (1 / 7, 1 / 5, 1 / 3):
        p = p * z + np.float32(term)
    ln_m = np.float32(2) * s + np.float32(2) * s * (z * p)
    return (e.astype(np.float32) * _LN_2 + ln_m).astype(np.float32, copy=False)


def cos_sin_turn(u: Float) -> tuple[Float, Float]:
    """Return cos and sin of 2 pi u for u in [0, 1]: reduced to an eighth of a turn, then Taylor series."""
    quarter = (u * np.float32(4) + np.float32(0.5)).astype(np.int32)
    x = (u - quarter.astype(np.float32) * np.float32(0.25)) * np.float32(2 * np.pi)
    z = x * x
    s: Float = np.full_like(z, 1 / 362880)
    c: Float = np.full_like(z, 1 / 40320)
    for term in (-1 / 5040, 1 / 120, -1 / 6):
        s = s * z + np.float32(term)
    for term in (-1 / 720, 1 / 24, -1 / 2):
        c = c * z + np.float32(term)
    s = x + x * (z * s)
    c = np.float32(1) + z * c
    odd = (quarter & 1) == 1
    cosine, sine = np.where(odd, s, c), np.where(odd, c, s)
    cosine = np.where(((quarter + 1) & 2) == 2, -cosine, cosine)
    sine = np.where((quarter & 2) == 2, -sine, sine)
    return cosine, sine


def field(
    seed: int,
    *,
    channels: int,
    y0_lat: int,
    x0_lat: int,
    h_lat: int,
    w_lat: int,
    out: Float | None = None,
) -> Float:
    """Return a rectangle of the seed's noise field, float32 (channels, h_lat, w_lat), mean 0, variance 1.

    Parameters
    ----------
    seed : in [0, 2^64).
    channels : latent channels; channels 4 j .. 4 j + 3 come from one Philox call.
    y0_lat, x0_lat : place on the canvas' latent grid, in [0, 2^32).
    out : filled and returned when given.

    Raises
    ------
    ValueError
        For a seed or a place outside its range, or an ``out`` of the wrong shape.
    """
    _check(seed, channels, h_lat, w_lat)
    for name, first, size in (("rows", y0_lat, h_lat), ("columns", x0_lat, w_lat)):
        if first < 0 or first + size > 2**32:
            raise ValueError(f"latent {name} must lie in [0, 2^32), got {first} .. {first + size}")
    shape = (channels, h_lat, w_lat)
    if out is None:
        out = np.empty(shape, np.float32)
    elif out.shape != shape or out.dtype != np.float32:
        raise ValueError(f"out must be float32 {shape}, got {out.dtype} {out.shape}")
    key = (seed & 0xFFFFFFFF, seed >> 32)
    y = np.arange(y0_lat, y0_lat + h_lat, dtype=np.uint32)[:, None]
    x = np.arange(x0_lat, x0_lat + w_lat, dtype=np.uint32)[None, :]
    zero = np.zeros((1, 1), np.uint32)
    for j in range(-(-channels // 4)):
        words = philox((x, y, zero + np.uint32(j), zero), key)
        for pair in range(2):
            radius = np.sqrt(np.float32(-2) * log(uniform(words[2 * pair])))
            for k, direction in enumerate(cos_sin_turn(uniform(words[2 * pair + 1]))):
                channel = 4 * j + 2 * pair + k
                if channel < channels:
                    out[channel] = radius * direction
    return out


def tiles(
    seed: int,
    ys_lat: NDArray[np.int64],
    xs_lat: NDArray[np.int64],
    *,
    channels: int,
    h_lat: int,
    w_lat: int,
    threads: int = 1,
    out: Float | None = None,
) -> Float:
    """Return the field under each tile, float32 (N, channels, h_lat, w_lat); ``threads`` is for the native
    twin.
    """
    _check(seed, channels, h_lat, w_lat)
    shape = (len(ys_lat), channels, h_lat, w_lat)
    if out is None:
        out = np.empty(shape, np.float32)
    elif out.shape != shape or out.dtype != np.float32:
        raise ValueError(f"out must be float32 {shape}, got {out.dtype} {out.shape}")
    for n, (y, x) in enumerate(zip(ys_lat, xs_lat, strict=True)):
        field(seed, channels=channels, y0_lat=int(y), x0_lat=int(x), h_lat=h_lat, w_lat=w_lat, out=out[n])
    return out


def _check(seed: int, channels: int, h_lat: int, w_lat: int) -> None:
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed must lie in [0, 2^64), got {seed}")
    if min(channels, h_lat, w_lat) < 1:
        raise ValueError(f"channels, h_lat and w_lat must be at least 1, got {channels}, {h_lat}, {w_lat}")
