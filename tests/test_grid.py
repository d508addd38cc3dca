"""The grid measure finds a pattern of the given period and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.grid import grid_db


def texture(seed: int, side: int = 320) -> np.ndarray:
    """Noise with a falling spectrum, as textures have."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft2(rng.standard_normal((side, side)))
    fy, fx = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    luma = np.fft.irfft2(spectrum / (0.02 + np.hypot(fy, fx)), s=(side, side))
    return np.repeat(128 + 30 * (luma / luma.std())[..., None], 3, axis=2)


@pytest.mark.parametrize("period", [2, 4, 8])
def test_a_pattern_is_found_at_its_period_only(period: int) -> None:
    plain = texture(1)
    assert grid_db(plain, period) < 1.0
    striped = plain.copy()
    striped[:, ::period] += 4.0 * period
    found = grid_db(striped, period)
    assert found > 6.0
    assert grid_db(striped.transpose(1, 0, 2), period) == pytest.approx(found, abs=1e-9)
    other = plain.copy()
    other[:, ::3] += 8.0
    assert grid_db(other, period) < 1.0


def test_stronger_patterns_measure_stronger() -> None:
    plain = texture(2)
    levels = []
    for height in (0.0, 8.0, 16.0, 32.0):
        picture = plain.copy()
        picture[::4] += height
        levels.append(grid_db(picture, 4))
    assert levels == sorted(levels)
    assert levels[-1] - levels[0] > 5.0


def test_a_pattern_in_one_flat_corner_counts_like_one_in_a_busy_one() -> None:
    """Patches are weighed alike: a bright, busy part does not drown a grid in a quiet one."""
    picture = texture(3)
    picture[:, 160:] = picture[:, :160]
    picture[:, :160] = 128 + 0.05 * (picture[:, :160] - 128)
    quiet = picture.copy()
    quiet[:, :160:4] += 0.05 * 24
    assert grid_db(quiet, 4) > grid_db(picture, 4) + 3.0


@pytest.mark.parametrize(
    ("shape", "period", "message"),
    [
        ((200, 100, 3), 4, "at least 128 px a side"),
        ((200, 200), 4, "expected \\(H, W, 3\\)"),
        ((200, 200, 3), 3, "divisor of 128"),
        ((200, 200, 3), 1, "divisor of 128"),
    ],
)
def test_what_cannot_be_measured_is_refused(shape: tuple[int, ...], period: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grid_db(np.zeros(shape), period)
