"""Temporal stabilisation: averages added detail along the motion, touches nothing it cannot trust."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("cv2")

from video_clips import FAST, enlarge, shown, write_clip

from yonos_trt.errors import MissingExtraError
from yonos_trt.video import VideoOptions, upscale_video
from yonos_trt.video.stabilize import Stabilizer

SCALE = 2


def scene(dx: int = 0, height: int = 64, width: int = 96) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    x = x + dx
    value = 128 + 45 * np.sin(x / 5) * np.cos(y / 6) + 40 * np.sin((x + 2 * y) / 11)
    return np.repeat(value.astype(np.uint8)[..., None], 3, axis=2)


def noisy(low: np.ndarray, seed: int, sigma: float = 6.0) -> np.ndarray:
    import cv2

    size = (low.shape[1] * SCALE, low.shape[0] * SCALE)
    big = cv2.resize(low.astype(np.float32), size, interpolation=cv2.INTER_CUBIC)
    big += np.random.default_rng(seed).normal(0, sigma, big.shape).astype(np.float32)
    return np.clip(np.rint(big), 0, 255).astype(np.uint8)


def clean(low: np.ndarray) -> np.ndarray:
    return noisy(low, 0, 0.0)


@pytest.mark.parametrize("step", [0, 1, 3])
def test_flicker_variance_is_halved_along_the_motion(step: int) -> None:
    stabilizer = Stabilizer(SCALE)
    errors = []
    for index in range(6):
        low = scene(step * index)
        result = stabilizer(low, noisy(low, index))
        errors.append((result.astype(float) - clean(low))[16:-16, 24:-24])
    assert np.var(errors[0]) == pytest.approx(36, rel=0.1)
    # (1 + 1) / 4 of the variance; interpolation at fractional motion averages further
    assert np.mean([np.var(e) for e in errors[1:]]) < 0.58 * 36


def test_the_first_frame_a_still_scene_and_a_cut_pass_untouched() -> None:
    stabilizer = Stabilizer(SCALE)
    low = scene()
    first = noisy(low, 1)
    np.testing.assert_array_equal(stabilizer(low, first), first)
    np.testing.assert_array_equal(stabilizer(low, first), first)
    other = np.random.default_rng(9).integers(0, 256, (8, 12, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    cut = noisy(other, 2)
    changed = (stabilizer(other, cut) != cut).any(axis=2).mean()
    assert changed < 0.05  # where two unrelated pictures happen to look alike
    small = scene(0, 40, 50)
    resized = noisy(small, 3)
    np.testing.assert_array_equal(stabilizer(small, resized), resized)


def test_deep_frames_stay_deep_and_inputs_are_not_changed() -> None:
    stabilizer = Stabilizer(SCALE)
    low = scene().astype(np.uint16) * 257
    results = [noisy(scene(), seed).astype(np.uint16) * 257 for seed in (1, 2)]
    copies = [r.copy() for r in results]
    stabilizer(low, results[0])
    out = stabilizer(low, results[1])
    assert out.dtype == np.uint16
    mean = (results[0].astype(float) + results[1]) / 2
    np.testing.assert_allclose(out, mean, atol=1.0)
    for result, copy in zip(results, copies, strict=True):
        np.testing.assert_array_equal(result, copy)


def test_a_resumed_job_is_primed_and_equal(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mkv", frames=14)

    def run(target: Path, stop: int | None, **options: Any) -> int:
        calls = 0

        def upscale(rgb: np.ndarray) -> np.ndarray:
            nonlocal calls
            calls += 1
            if calls == stop:
                raise RuntimeError("stop")
            grain = np.random.default_rng(int(rgb.sum())).integers(-9, 10, (96, 128, 3))
            return np.clip(enlarge(SCALE)(rgb) + grain, 0, 255).astype(np.uint8)

        chosen = VideoOptions(encoder=FAST, segment_frames=4, stabilize=True, **options)
        upscale_video(source, target, upscale, scale=SCALE, options=chosen)
        return calls

    run(tmp_path / "whole.mkv", None)
    with contextlib.suppress(RuntimeError):
        run(tmp_path / "out.mkv", 11)
    assert run(tmp_path / "out.mkv", None, resume=True) == 14 - 8 + 1
    assert shown(tmp_path / "out.mkv") == shown(tmp_path / "whole.mkv")


def test_without_opencv_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(MissingExtraError, match=r"--stabilize needs the package 'cv2'.*\[stabilize\]"):
        Stabilizer(2)
