"""Make ICC profiles from primaries and a curve, for formats that take a colour space in no other form.

ICC.1:2010 (version 4): a display profile with three primaries and parametric curves, or with one curve for
grey. Standard library only; the same numbers give the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

Curve = tuple[float, ...]
"""ICC parametric curve, sample -> light: (g,) is sample ** g; (g, a, b, c, d) is (a x + b) ** g from d on and
c x below it."""

SRGB_CURVE: Curve = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
# Adobe RGB (1998), which Exif calls R03: red, green, blue, white; gamma 563 / 256.
ADOBE_RGB = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), (0.3127, 0.3290))
_D50 = (0.9642, 1.0, 0.8249)
_BRADFORD = ((0.8951, 0.2664, -0.1614), (-0.7502, 1.7135, 0.0367), (0.0389, -0.0685, 1.0296))

Matrix = tuple[tuple[float, ...], ...]


def _times(one: Matrix, other: Matrix) -> Matrix:
    columns = list(zip(*other, strict=True))
    return tuple(tuple(sum(a * b for a, b in zip(row, c, strict=True)) for c in columns) for row in one)


def _inverse(m: Matrix) -> Matrix:
    (a, b, c), (d, e, f), (g, h, i) = m
    cofactors = ((e * i - f * h, c * h - b * i, b * f - c * e),
                 (f * g - d * i, a * i - c * g, c * d - a * f),
                 (d * h - e * g, b * g - a * h, a * e - b * d))  # fmt: skip
    determinant = a * cofactors[0][0] + b * cofactors[1][0] + c * cofactors[2][0]
    return tuple(tuple(value / determinant for value in row) for row in cofactors)


def _xyz(xy: Sequence[float]) -> tuple[float, float, float]:
    x, y = xy
    return x / y, 1.0, (1 - x - y) / y


def _column(values: Sequence[float]) -> Matrix:
    return tuple((value,) for value in values)


def _adaptation(white: Sequence[float]) -> Matrix:
    """Bradford's matrix from a white point to D50."""
    here, there = (_times(_BRADFORD, _column(w)) for w in (_xyz(white), _D50))
    gains = [b[0] / a[0] for a, b in zip(here, there, strict=True)]
    diagonal = tuple(tuple(gains[i] if i == j else 0.0 for j in range(3)) for i in range(3))
    return _times(_inverse(_BRADFORD), _times(diagonal, _BRADFORD))


def _fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def _text(text: str) -> bytes:
    raw = text.encode("utf-16-be")
    return b"mluc" + struct.pack(">IIIHHII", 0, 1, 12, 0x656E, 0x5553, len(raw), 28) + raw  # en, US


def matrix_profile(
    description: str, corners: Sequence[Sequence[float]], curve: Curve, *, grey: bool = False
) -> bytes:
    """Return a version 4 profile.

    Parameters
    ----------
    description
        Shown to people.
    corners
        x, y of red, green, blue and white.
    curve
        From sample to light, the same for all channels.
    grey
        For pictures with one channel: white and curve only.
    """
    red, green, blue, white = corners
    adaptation = _adaptation(white)
    tags = {
        b"desc": _text(description),
        b"cprt": _text("No copyright, use freely"),
        b"wtpt": b"XYZ \0\0\0\0" + _fixed(*_D50),
        b"chad": b"sf32\0\0\0\0" + _fixed(*(value for row in adaptation for value in row)),
    }
    transfer = b"para\0\0\0\0" + struct.pack(">HH", 0 if len(curve) == 1 else 3, 0) + _fixed(*curve)
    if grey:
        tags[b"kTRC"] = transfer
    else:
        points: Matrix = tuple(zip(*map(_xyz, (red, green, blue)), strict=True))
        light = _times(_inverse(points), _column(_xyz(white)))
        scaled = tuple(tuple(value * s[0] for value, s in zip(row, light, strict=True)) for row in points)
        for name, column in zip(
            (b"rXYZ", b"gXYZ", b"bXYZ"), zip(*_times(adaptation, scaled), strict=True), strict=True
        ):
            tags[name] = b"XYZ \0\0\0\0" + _fixed(*column)
        tags |= {b"rTRC": transfer, b"gTRC": transfer, b"bTRC": transfer}
    at, table, body, places = 128 + 4 + 12 * len(tags), b"", b"", {}
    for name, data in tags.items():
        if data not in places:  # the three curves are one
            places[data] = at + len(body)
            body += data + bytes(-len(data) % 4)
        table += name + struct.pack(">II", places[data], len(data))
    size = at + len(body)
    head = struct.pack(
        ">I4sI4s4s4s", size, b"\0\0\0\0", 0x04300000, b"mntr", b"GRAY" if grey else b"RGB ", b"XYZ "
    )
    head += struct.pack(">6H4s", 2010, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + _fixed(*_D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def adobe_rgb_profile() -> bytes:
    """Return a profile of Adobe RGB (1998)."""
    return matrix_profile("Compatible with Adobe RGB (1998)", ADOBE_RGB, (563 / 256,))
