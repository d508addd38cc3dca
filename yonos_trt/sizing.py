"""How large a result is to be: any factor, a longest side, or a size, of a picture of any size.

A model enlarges by its own whole factor; what lies below that is made by one antialiased reduction
(`yonos_trt.images.reduction`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from yonos_trt.choices import whole_number
from yonos_trt.errors import ConfigError

Fit = Literal["inside", "outside", "exact"]
FITS: tuple[str, ...] = get_args(Fit)

LARGEST_SIDE = 1 << 20
"""Longer sides are a slip of the finger."""


@dataclass(frozen=True, slots=True)
class Sizing:
    """One of three wishes; the other two are None.

    Parameters
    ----------
    factor
        Times as high and as wide, 1 or more; sides are rounded to the nearest px, half up.
    long_edge
        The longer side in px; the other one keeps the proportions.
    size
        (height, width) in px, see `fit`.
    fit
        Of `size`: "inside" keeps the proportions and is nowhere larger, "outside" keeps them and is nowhere
        smaller, "exact" takes both sides as they are.

    Raises
    ------
    ConfigError
        None or several wishes, or one out of range.
    """

    factor: float | None = None
    long_edge: int | None = None
    size: tuple[int, int] | None = None
    fit: Fit = "inside"

    def __post_init__(self) -> None:
        if sum(x is not None for x in (self.factor, self.long_edge, self.size)) != 1:
            raise ConfigError("a size is one of: a factor, a longest side, or height and width; name one")
        if self.fit not in FITS:
            raise ConfigError(f"fit is {self.fit!r}, expected one of {', '.join(FITS)}")
        if self.factor is not None and not (math.isfinite(self.factor) and self.factor >= 1):
            raise ConfigError(f"the factor is {self.factor}, expected 1 or more")
        expected = f"whole px from 1 to {LARGEST_SIDE}"
        if self.long_edge is not None:
            object.__setattr__(self, "long_edge", whole_number("the longest side", self.long_edge, expected))
            if not 1 <= (self.long_edge or 0) <= LARGEST_SIDE:
                raise ConfigError(f"the longest side is {self.long_edge}, expected {expected}")
        if self.size is not None:
            if not isinstance(self.size, tuple | list) or len(self.size) != 2:
                raise ConfigError(f"the size is {self.size!r}, expected (height, width)")
            sides = tuple(whole_number("a side of the size", x, expected) for x in self.size)
            if not all(1 <= x <= LARGEST_SIDE for x in sides):
                raise ConfigError(f"the size is {sides}, expected {expected}")
            object.__setattr__(self, "size", sides)

    def of(self, height_px: int, width_px: int) -> tuple[int, int]:
        """Return (height, width) in px of the result for a picture of this size."""
        if self.size is not None and self.fit == "exact":
            return self.size
        if self.factor is not None:
            return _rounded(height_px * self.factor), _rounded(width_px * self.factor)
        if self.size is None:
            height, width = self.long_edge or 0, self.long_edge or 0
            by_height = height_px >= width_px
        else:
            height, width = self.size
            lower = height * width_px <= width * height_px  # height / height_px <= width / width_px
            by_height = lower if self.fit == "inside" else not lower
        if by_height:
            return height, _rounded(width_px * height / height_px)
        return _rounded(height_px * width / width_px), width

    def factor_of(self, height_px: int, width_px: int) -> float:
        """Return how many times larger a model has to make it, at least."""
        height, width = self.of(height_px, width_px)
        if self.factor is not None:
            return self.factor  # rounding up a side by half a px asks for no larger model
        return max(height / height_px, width / width_px)

    def __str__(self) -> str:
        if self.factor is not None:
            return f"x{self.factor:g}"
        if self.long_edge is not None:
            return f"{self.long_edge}px"
        height, width = self.size or (0, 0)
        return f"{width}x{height}"


def as_sizing(wish: Sizing | tuple[int, int] | None) -> Sizing | None:
    """Return a wish as `Sizing`; (height, width) means exactly that size.

    Raises
    ------
    ConfigError
        It is something else, or out of range.
    """
    if wish is None or isinstance(wish, Sizing):
        return wish
    if not isinstance(wish, tuple | list) or len(wish) != 2:
        raise ConfigError(f"size is {wish!r}, expected (height, width) in px, or a yonos_trt.sizing.Sizing")
    return Sizing(size=(wish[0], wish[1]), fit="exact")


def _rounded(side: float) -> int:
    return max(1, math.floor(side + 0.5))
