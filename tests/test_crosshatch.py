"""Strokes across a picture's own lines are measured, in the patches that have lines, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import strokes

from benchmarks.studies.crosshatch import Lines


def crossed(angle_deg: float, amplitude: float) -> np.ndarray:
    """Strokes with weaker ones at right angles."""
    own, other = strokes(angle_deg, 8.0).astype(float), strokes(angle_deg + 90, 8.0).astype(float)
    return (own + amplitude * (other - 128)).round().clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("angle_deg", [0, 30, 45, 90, 160])
def test_power_across_the_lines_is_that_of_the_strokes_added(angle_deg: float) -> None:
    original = strokes(angle_deg, 8.0)
    lines = Lines(original, 4)
    assert lines.patches == 7 * 7  # of 256 px
    plain, weak, strong = (lines.crosshatch_db(crossed(angle_deg, level)) for level in (0, 0.1, 0.5))
    assert lines.crosshatch_db(original) == plain < -30
    assert weak == pytest.approx(-20, abs=0.5)
    assert strong == pytest.approx(20 * np.log10(0.5), abs=0.5)


def test_contrast_of_the_whole_does_not_matter() -> None:
    lines = Lines(strokes(30, 8.0), 4)
    picture = crossed(30, 0.5)
    softer = (128 + 0.5 * (picture.astype(float) - 128)).round().astype(np.uint8)
    assert lines.crosshatch_db(softer) == pytest.approx(lines.crosshatch_db(picture), abs=0.1)


def test_lines_too_fine_for_the_lr_grid_come_back_across_themselves() -> None:
    original = strokes(30, 6.5)  # at s = 4, 0.53 cycles per LR px to the right: folds to 0.47 to the left
    lines = Lines(original, 4)
    every_fourth = np.repeat(np.repeat(original[::4, ::4], 4, axis=0), 4, axis=1)
    assert lines.crosshatch_db(every_fourth) > lines.crosshatch_db(original) + 20


def test_patches_without_lines_of_one_direction_are_left_out() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (128, 128, 1)).repeat(3, axis=2).astype(np.uint8)
    flat = np.full((128, 128, 3), 90, np.uint8)
    for picture in (noise, flat):
        lines = Lines(picture, 4)
        assert lines.patches == 0
        assert np.isnan(lines.crosshatch_db(picture))
    half = np.concatenate([strokes(0, 8.0, 128), noise], axis=1)
    assert 0 < Lines(half, 4).patches < Lines(strokes(0, 8.0, 256)[:128], 4).patches


@pytest.mark.parametrize(
    ("shape", "scale", "message"),
    [
        ((63, 200, 3), 4, "original: got shape"),
        ((200, 200), 4, r"expected \(H, W, 3\)"),
        ((64, 64, 3), 3, "scale: got 3"),
    ],
)
def test_what_cannot_be_measured_is_refused(shape: tuple[int, ...], scale: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Lines(np.zeros(shape, np.uint8), scale)


def test_a_picture_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="expected the original's"):
        Lines(strokes(0, 8.0), 4).crosshatch_db(np.zeros((64, 64, 3), np.uint8))
