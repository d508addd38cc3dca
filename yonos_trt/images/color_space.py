"""The colour space of a picture whose file says it in numbers instead of an ICC profile.

PNG's cICP, sRGB, gAMA and cHRM chunks and the nclx colour of AVIF. In a format that has no such numbers they
become an equal ICC profile, or, where no profile can say it (PQ, HLG), a refusal. Standard library only.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from yonos_trt.images.icc import SRGB_CURVE, Curve, matrix_profile

# ITU-T H.273 table 2, colour primaries: x, y of red, green, blue, white.
_D65, _C = (0.3127, 0.3290), (0.310, 0.316)
_PRIMARIES: dict[int, tuple[tuple[float, float], ...]] = {
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), _D65),
    4: ((0.670, 0.330), (0.210, 0.710), (0.140, 0.080), _C),
    5: ((0.640, 0.330), (0.290, 0.600), (0.150, 0.060), _D65),
    6: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), _D65),
    7: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), _D65),
    8: ((0.681, 0.319), (0.243, 0.692), (0.145, 0.049), _C),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), _D65),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _D65),
    22: ((0.630, 0.340), (0.295, 0.605), (0.155, 0.077), _D65),
}
# Table 3, transfer characteristics, as ICC parametric curves from the sample to light; the others (PQ 16,
# HLG 18, logarithmic ...) are not a curve of an ICC matrix profile. 2 is "unspecified", shown as sRGB.
_BT709_CURVE: Curve = (1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081)
_CURVES: dict[int, Curve] = {
    1: _BT709_CURVE, 6: _BT709_CURVE, 14: _BT709_CURVE, 15: _BT709_CURVE, 2: SRGB_CURVE, 13: SRGB_CURVE,
    4: (2.2,), 5: (2.8,), 7: (1 / 0.45, 1 / 1.1115, 0.1115 / 1.1115, 0.25, 0.0912), 8: (1.0,),
}  # fmt: skip
_NAMES = {
    1: "BT.709",
    9: "BT.2020",
    11: "DCI-P3",
    12: "Display P3",
    13: "sRGB",
    16: "PQ",
    18: "HLG",
    8: "linear",
}
_UNSPECIFIED, _SRGB = 2, 13


@dataclass(frozen=True, slots=True)
class ColorSpace:
    """Numbers that say a colour space; at least one is given.

    Parameters
    ----------
    cicp
        (primaries, transfer, full range 0 or 1), code points of ITU-T H.273. They go before everything else,
        an ICC profile included.
    srgb_intent
        Rendering intent of a PNG's sRGB chunk.
    gamma
        Sample = light ** gamma, as PNG's gAMA says it.
    chromaticities
        x, y of white, red, green, blue, as PNG's cHRM has them.
    """

    cicp: tuple[int, int, int] | None = None
    srgb_intent: int | None = None
    gamma: float | None = None
    chromaticities: tuple[float, ...] | None = None

    @classmethod
    def from_png(cls, chunks: Mapping[bytes, bytes]) -> ColorSpace | None:
        """Read the bodies of a PNG's colour chunks; None without any.

        Raises
        ------
        struct.error
            A chunk has the wrong length.
        """
        cicp = srgb = gamma = chromaticities = None
        if b"cICP" in chunks:
            primaries, transfer, _, full = struct.unpack("4B", chunks[b"cICP"])
            cicp = (primaries, transfer, full)
        if b"sRGB" in chunks:
            (srgb,) = struct.unpack("B", chunks[b"sRGB"])
        if b"gAMA" in chunks:
            (number,) = struct.unpack(">I", chunks[b"gAMA"])
            gamma = number / 100_000 if number else None
        if b"cHRM" in chunks:
            chromaticities = tuple(value / 100_000 for value in struct.unpack(">8I", chunks[b"cHRM"]))
        if cicp is srgb is gamma is chromaticities is None:
            return None
        return cls(cicp, srgb, gamma, chromaticities)

    @classmethod
    def from_nclx(cls, primaries: int, transfer: int) -> ColorSpace | None:
        """Take an AVIF's code points; None where they say no more than sRGB, which is what no word means."""
        if max(primaries, transfer) > 255:  # reserved
            return None
        is_srgb = primaries in (1, _UNSPECIFIED) and transfer in (_SRGB, _UNSPECIFIED)
        return None if is_srgb else cls((primaries, transfer, 1))

    def possible(self) -> ColorSpace | None:
        """Return it without a gamma or primaries that no light has; None if nothing is left."""
        gamma = self.gamma if self.gamma is not None and 0.02 <= self.gamma <= 50 else None
        points = self.chromaticities
        points = points if points is not None and _are_real(points) else None
        if all(value is None for value in (self.cicp, self.srgb_intent, gamma, points)):
            return None
        return ColorSpace(self.cicp, self.srgb_intent, gamma, points)

    def __str__(self) -> str:
        if self.cicp is not None:
            primaries, transfer, full = self.cicp
            words = [
                _NAMES.get(primaries, f"primaries {primaries}"),
                _NAMES.get(transfer, f"transfer {transfer}"),
            ]
            return " ".join(words + ([] if full else ["in the narrow range"]))
        return f"gamma {self.gamma}" if self.gamma else "the PNG's own primaries"

    @property
    def fits_icc(self) -> bool:
        """True if an ICC profile can say the same."""
        if self.cicp is None:
            return True
        primaries, transfer, full = self.cicp
        return full == 1 and transfer in _CURVES and (primaries in _PRIMARIES or primaries == _UNSPECIFIED)

    @property
    def nclx(self) -> tuple[int, int] | None:
        """(primaries, transfer) for AVIF, or None if it is not said in code points of the full range."""
        return self.cicp[:2] if self.cicp is not None and self.cicp[2] == 1 else None

    def png_chunks(self) -> list[tuple[bytes, bytes]]:
        """Return (type, body) of the chunks that say this in a PNG."""
        chunks = []
        if self.cicp is not None:
            primaries, transfer, full = self.cicp
            chunks.append((b"cICP", bytes((primaries, transfer, 0, full))))
        if self.srgb_intent is not None:
            chunks.append((b"sRGB", bytes([self.srgb_intent])))
        if self.gamma is not None:
            chunks.append((b"gAMA", struct.pack(">I", round(self.gamma * 100_000))))
        if self.chromaticities is not None:
            values = (round(value * 100_000) for value in self.chromaticities)
            chunks.append((b"cHRM", struct.pack(">8I", *values)))
        return chunks

    def profile(self, icc: bytes | None, *, grey: bool) -> bytes | None:
        """Return the ICC profile that says the same; None where that is sRGB, which needs none.

        Parameters
        ----------
        icc
            The profile that stands beside these numbers in the file. Of a PNG, cICP goes before it, the
            others after it.
        grey
            The profile is for one channel.
        """
        if self.cicp is not None:
            primaries, transfer, _ = self.cicp
            corners = _PRIMARIES.get(primaries, _PRIMARIES[1])
            curve = _CURVES[transfer]
        elif icc is not None or self.srgb_intent is not None:
            return icc
        else:
            corners, curve = _PRIMARIES[1], SRGB_CURVE
            if self.chromaticities is not None:
                white, *rgb = zip(self.chromaticities[::2], self.chromaticities[1::2], strict=True)
                corners = (*rgb, white)
            if self.gamma is not None and abs(self.gamma - 1 / 2.2) > 0.003:  # 1 / 2.2 is how PNG spells sRGB
                curve = (1 / self.gamma,)
        return None if _is_srgb(corners, curve) else matrix_profile(str(self), corners, curve, grey=grey)


def _is_srgb(corners: tuple[tuple[float, float], ...], curve: Curve) -> bool:
    pairs = zip(corners, _PRIMARIES[1], strict=True)
    near = all(abs(a - b) < 0.002 for one, other in pairs for a, b in zip(one, other, strict=True))
    return near and curve == SRGB_CURVE


def _are_real(chromaticities: tuple[float, ...]) -> bool:
    """False for primaries on one line or a point without light, which no profile can hold."""
    (wx, wy), (rx, ry), (gx, gy), (bx, by) = zip(chromaticities[::2], chromaticities[1::2], strict=True)
    area = (gx - rx) * (by - ry) - (bx - rx) * (gy - ry)
    in_range = all(0 <= value <= 2 for value in chromaticities)
    return in_range and min(ry, gy, by) > 0 and min(wx, wy) > 0.05 and abs(area) > 1e-3
