"""A loss against grids: power at the frequencies of the decoder's blocks that the truth does not have.

A decoder writes blocks of f x f px, and where it invents texture from a smooth latent it can only repeat
itself with that period. LPIPS hardly minds. This looks at the 2-D spectrum of luma at the points
``(k / f, l / f)``: the mean power at a point over that of the ring around it, as a logarithm. What it exceeds
the true picture's by is the loss.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

_LUMA: Final = (0.299, 0.587, 0.114)  # BT.601
# In bins: a Hann window spreads a line over 3 x 3; the ring begins after those.
_POINT: Final = 1
_RING: Final = (3, 6)


def grid_excess(x: Tensor, period_px: int) -> Tensor:
    """Return ``log(point / ring)`` ``(N, period_px^2 - 1)`` of pictures ``(N, 3, P, P)`` in [-1, 1], float32.

    Raises
    ------
    ValueError
        P is not a multiple of the period, or below 16 periods.
    """
    side = x.shape[-1]
    if x.ndim != 4 or x.shape[1] != 3 or x.shape[-2] != side or side % period_px or side < 16 * period_px:
        raise ValueError(
            f"grid: got pictures of shape {tuple(x.shape)}, expected (N, 3, P, P) with P a multiple of "
            f"{period_px} and at least {16 * period_px}"
        )
    with torch.autocast(x.device.type, enabled=False):
        luma = torch.einsum("nchw,c->nhw", x.float(), torch.tensor(_LUMA, device=x.device))
        window = torch.hann_window(side, device=x.device)
        luma = (luma - luma.mean((1, 2), keepdim=True)) * window[:, None] * window
        power = torch.fft.fft2(luma, norm="ortho").abs().square()
        points = [(k, m) for k in range(period_px) for m in range(period_px) if k or m]
        at = torch.tensor(points, device=x.device) * (side // period_px)
        near, far = _RING
        square = [(a, b) for a in range(-far, far + 1) for b in range(-far, far + 1)]
        point = _mean_power(power, at, [(a, b) for a, b in square if max(abs(a), abs(b)) <= _POINT])
        ring = _mean_power(power, at, [(a, b) for a, b in square if max(abs(a), abs(b)) >= near])
        floor = 1e-6  # far below the rounding noise of an 8-bit picture
        return ((point + floor) / (ring + floor)).log()


def _mean_power(power: Tensor, at: Tensor, offsets: list[tuple[int, int]]) -> Tensor:
    where = (at[:, None] + torch.tensor(offsets, device=at.device)) % power.shape[-1]
    return power[:, where[..., 0], where[..., 1]].mean(-1)


def grid_loss(y: Tensor, x: Tensor, period_px: int) -> Tensor:
    """Return the mean of ``relu(grid_excess(y) - grid_excess(x))``, a scalar; ``x`` is the true picture."""
    return (grid_excess(y, period_px) - grid_excess(x, period_px).detach()).relu().mean()
