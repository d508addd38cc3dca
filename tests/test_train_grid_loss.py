"""The loss against grids sees a pattern of the blocks' period that the truth does not have."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from yonos_train.grid_loss import grid_excess, grid_loss  # noqa: E402


def textures(count: int, side: int = 128) -> torch.Tensor:
    """Noise with a falling spectrum, grey, about [-1, 1]."""
    g = torch.Generator().manual_seed(0)
    spectrum = torch.fft.rfft2(torch.randn(count, side, side, generator=g))
    frequency = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None])
    x = torch.fft.irfft2(spectrum / (0.02 + frequency), s=(side, side))
    return (0.3 * x / x.std()).unsqueeze(1).expand(-1, 3, -1, -1).contiguous()


def test_pictures_without_a_grid_have_no_excess() -> None:
    excess = grid_excess(textures(16), 4)
    assert excess.shape == (16, 15)
    assert abs(float(excess.mean())) < 0.25


@pytest.mark.parametrize("period", [2, 4, 8])
def test_a_checked_pattern_of_the_period_costs_and_others_do_not(period: int) -> None:
    x = textures(8)
    y, other = x.clone(), x.clone()
    y[..., ::period, ::period] += 0.3
    other[..., ::3, ::3] += 0.3
    assert grid_loss(x, x, period) == 0
    assert grid_loss(y, x, period) > 0.5
    assert grid_loss(other, x, period) < 0.25 * grid_loss(y, x, period)
    assert grid_loss(x, y, period) == pytest.approx(0, abs=0.1)  # a grid in the truth may be missed


def test_descending_takes_the_pattern_away() -> None:
    x = textures(4)
    pattern = torch.zeros_like(x)
    pattern[..., ::4, ::4] = 0.3
    strength = torch.tensor(1.0, requires_grad=True)
    optimiser = torch.optim.Adam([strength], lr=0.1)
    for _ in range(60):
        optimiser.zero_grad()
        grid_loss(x + strength * pattern, x, 4).backward()
        optimiser.step()
    assert abs(float(strength.detach())) < 0.3


@pytest.mark.parametrize("shape", [(1, 3, 60, 60), (1, 3, 128, 64), (1, 1, 128, 128), (1, 3, 66, 66)])
def test_pictures_it_cannot_judge_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiple of 4 and at least 64"):
        grid_excess(torch.zeros(shape), 4)
