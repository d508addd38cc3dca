"""The flicker measure itself: zero where nothing flickers, the injected variance where something does."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("cv2")

from benchmarks.studies import flicker


def texture(height: int, width: int, dy: int = 0, dx: int = 0) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    y, x = y + dy, x + dx
    value = 128 + 50 * np.sin(x / 7) * np.cos(y / 9) + 40 * np.sin((x + 2 * y) / 17)
    return np.repeat(value.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def test_a_moving_picture_has_no_warp_error_and_noise_has_twice_its_variance() -> None:
    first, second = texture(160, 200), texture(160, 200, 2, 3)  # content moves up by 2 and left by 3
    forward, backward = flicker.flow(first, second), flicker.flow(second, first)
    inner = np.s_[30:-30, 30:-30]
    np.testing.assert_allclose(forward[inner], np.broadcast_to([-3, -2], forward[inner].shape), atol=0.3)
    mask = flicker.visible(forward, backward)
    assert mask[inner].mean() > 0.95
    assert not mask[0, 0]  # moves out of the picture
    clean = flicker.warp_error(first, second, forward, mask)
    assert clean < 1e-3
    still = flicker.warp_error(first, first, np.zeros_like(forward), np.ones_like(mask))
    assert still == 0
    rng = np.random.default_rng(0)
    noisy = [np.clip(f + rng.normal(0, 5, f.shape), 0, 255).astype(np.uint8) for f in (first, first)]
    error = flicker.warp_error(noisy[0], noisy[1], np.zeros_like(forward), np.ones_like(mask))
    assert error == pytest.approx(3 * 2 * (5 / 255) ** 2, rel=0.1)  # three colours, two frames


def test_the_mask_hides_what_is_uncovered() -> None:
    background = texture(160, 200)
    frames = []
    for left in (60, 68):
        frame = background.copy()
        frame[60:110, left : left + 50] = 255 - texture(50, 50, 3, 5)
        frames.append(frame)
    forward, backward = flicker.flow(*frames), flicker.flow(*reversed(frames))
    mask = flicker.visible(forward, backward)
    assert mask[62:108, 111:117].mean() < 0.5  # covered in the second frame
    assert mask[10:50, 20:180].mean() > 0.95


def test_fresh_noise_is_told_from_fixed_noise() -> None:
    def run(frame: np.ndarray, seed: int) -> np.ndarray:
        big = flicker.bicubic(frame, 2).astype(np.float64)
        return np.clip(big + np.random.default_rng(seed).normal(0, 6, big.shape), 0, 255).astype(np.uint8)

    table, methods = flicker.measure_clip([texture(96, 128)] * 4, run, 2, True)
    assert table["reference"]["ewarp_1000"] == table["fixed noise"]["ewarp_1000"] == 0
    assert table["fresh noise"]["ewarp_1000"] == pytest.approx(1000 * 3 * 2 * (6 / 255) ** 2, rel=0.1)
    assert table["stabilized"]["ewarp_1000"] == 0  # nothing to do on a still scene with fixed noise
    assert all((a == b).all() for a, b in zip(methods["stabilized"], methods["fixed noise"], strict=True))


def test_still_and_moved_scenes() -> None:
    def run(frame: np.ndarray, seed: int) -> np.ndarray:
        return frame.repeat(2, axis=0).repeat(2, axis=1) + np.uint8(seed)

    facts = flicker.still_and_moved(texture(60, 70) // 2, run, 2, (1, 4))
    assert facts["still_fixed_noise_max"] == 0
    assert facts["still_fresh_noise_mean"] == 1.0
    assert facts["moved_by_lr_px"] == {s: {"mean": 0.0, "p99": 0.0, "max": 0} for s in ("1", "4")}
