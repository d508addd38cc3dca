"""Native tile kernels beside their NumPy twins and Pillow, one thread each, in one run.

    python -m pytest benchmarks/bench_tiles.py

Each benchmark times the native kernel, its twin and (where one exists) Pillow's BICUBIC enlargement to the
same size, checks that the outputs agree, prints the ratios and fails when a ratio falls below what the
project promises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import best_of
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture

from yonos_trt.tiles import color, kernels, noise
from yonos_trt.tiles.bicubic import upscale_bicubic
from yonos_trt.tiles.plan import plan_tiles, rows_final_after_band

native = pytest.importorskip("yonos_trt._native", reason="native kernels are not built; run `make native`")

SCALE = 4
PLAN = plan_tiles(2048, 2048, tile_px=512, overlap_px=64, multiple_px=64, smallest_px=64, batch=4)
TWIN_RATIO = 4.0
"""Native kernels are at least this many times as fast as their twins."""


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """A smooth random picture, (512, 512, 3) uint8."""
    small = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((512, 512), Image.Resampling.BICUBIC))


def pillow_seconds(image: np.ndarray, height: int, width: int) -> float:
    """Return the time of Pillow's BICUBIC enlargement of an RGB picture."""
    picture = Image.fromarray(image)
    return best_of(lambda: picture.resize((width, height), Image.Resampling.BICUBIC), 7)


def run(
    benchmark: BenchmarkFixture,
    call: Callable[[], Any],
    *,
    twin_seconds: float,
    rival_seconds: float | None = None,
) -> None:
    """Time the native call; record and check the ratios."""
    benchmark.pedantic(call, rounds=15, warmup_rounds=2)
    seconds = benchmark.stats.stats.min
    ratio = twin_seconds / seconds
    benchmark.extra_info |= {"variant": native.variant(), "times_numpy": round(ratio, 2)}
    text = f"{benchmark.name}: {seconds * 1e3:.2f} ms, {ratio:.1f} x NumPy"
    if rival_seconds is not None:
        benchmark.extra_info["times_pillow"] = round(rival_seconds / seconds, 2)
        text += f", {rival_seconds / seconds:.2f} x Pillow BICUBIC"
    print(f"\n{text}")
    assert ratio >= TWIN_RATIO
    assert rival_seconds is None or seconds <= rival_seconds


def places() -> tuple[np.ndarray, np.ndarray]:
    """Return the origins of a band's first batch."""
    xs = np.array(PLAN.xs[: PLAN.batch])
    return np.full_like(xs, PLAN.ys[0]), xs


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def bench_gather(benchmark: BenchmarkFixture, image: np.ndarray, dtype: Any) -> None:
    source = image.astype(dtype)
    ys, xs = places()
    sizes = {"tile_h_px": PLAN.tile_h_px, "tile_w_px": PLAN.tile_w_px, "scale": SCALE}
    expected = kernels.gather(source, ys, xs, **sizes)
    out = np.empty_like(expected)
    pixels = len(ys) * PLAN.tile_h_px * PLAN.tile_w_px
    # Pillow makes as many pixels in one picture; it has no 16-bit or float RGB, so 8 bits stand for all
    rival = pillow_seconds(image[: PLAN.tile_h_px // SCALE], PLAN.tile_h_px, pixels // PLAN.tile_h_px)
    run(
        benchmark,
        lambda: native.gather(source, ys, xs, out=out, **sizes),
        twin_seconds=best_of(lambda: kernels.gather(source, ys, xs, out=expected, **sizes), 3),
        rival_seconds=rival,
    )
    assert np.array_equal(out, expected)


def bench_blend(benchmark: BenchmarkFixture, image: np.ndarray) -> None:
    ys, xs = places()
    tiles = kernels.gather(image, ys, xs, tile_h_px=PLAN.tile_h_px, tile_w_px=PLAN.tile_w_px, scale=SCALE)
    wy = np.stack([PLAN.window_y(0)] * len(ys))
    wx = np.stack([PLAN.window_x(column) for column in range(len(xs))])
    acc = np.zeros((PLAN.tile_h_px, PLAN.padded_w_px, 3), np.float32)
    expected, got = acc.copy(), acc.copy()
    kernels.blend(expected, tiles, ys, xs, wy, wx)
    native.blend(got, tiles, ys, xs, wy, wx)
    assert np.array_equal(got, expected)
    rival = pillow_seconds(image[: PLAN.tile_h_px // SCALE], *acc.shape[:2])
    run(
        benchmark,
        lambda: native.blend(got, tiles, ys, xs, wy, wx),
        twin_seconds=best_of(lambda: kernels.blend(expected, tiles, ys, xs, wy, wx), 5),
        rival_seconds=rival,
    )


@pytest.mark.parametrize("channels", [4, 8])
def bench_noise(benchmark: BenchmarkFixture, channels: int) -> None:
    ys, xs = (values // 4 for values in places())
    sizes = {"channels": channels, "h_lat": 128, "w_lat": 128}
    expected = noise.tiles(7, ys, xs, **sizes)
    out = np.empty_like(expected)
    run(
        benchmark,
        lambda: native.noise_tiles(7, ys, xs, out=out, **sizes),
        twin_seconds=best_of(lambda: noise.tiles(7, ys, xs, out=expected, **sizes), 3),
    )
    assert np.array_equal(out, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def bench_finalize(benchmark: BenchmarkFixture, image: np.ndarray, dtype: Any) -> None:
    rows = upscale_bicubic(image, 0, 512, scale=SCALE)
    expected = kernels.finalize(rows, dtype)
    out = np.empty_like(expected)
    run(
        benchmark,
        lambda: native.finalize(rows, dtype, out=out),
        twin_seconds=best_of(lambda: kernels.finalize(rows, dtype, out=expected), 3),
    )
    assert np.array_equal(out, expected)


@pytest.mark.parametrize("threads", [1, 2])
def bench_overhead_of_a_4096_px_picture(benchmark: BenchmarkFixture, threads: int) -> None:
    """Everything beside the networks on 16.8 Mpx: gather, noise, blend, colour fix and finalize of every
    tile.
    """
    lr = np.random.default_rng(1).integers(0, 256, (1024, 1024, 3), np.uint8)
    plan = plan_tiles(4096, 4096, tile_px=512, overlap_px=64, multiple_px=64, smallest_px=64, batch=4)
    out = np.empty((4096, 4096, 3), np.uint8)

    def overhead() -> None:
        fix = color.RowColorFix(lr, plan, SCALE, threads=threads)
        acc = np.zeros((plan.tile_h_px, plan.padded_w_px, 3), np.float32)
        weights_x = [plan.window_x(column) for column in range(len(plan.xs))]
        done = written = 0
        for band, y in enumerate(plan.ys):
            if band:
                step = y - plan.ys[band - 1]
                acc[:-step] = acc[step:].copy()
                acc[-step:] = 0
            for first in range(0, len(plan.xs), plan.batch):
                xs = np.array(plan.xs[first : first + plan.batch])
                ys = np.full_like(xs, y)
                tiles = native.gather(lr, ys, xs, tile_h_px=512, tile_w_px=512, scale=SCALE, threads=threads)
                native.noise_tiles(0, ys // 4, xs // 4, channels=8, h_lat=128, w_lat=128, threads=threads)
                wy = np.stack([plan.window_y(band)] * len(xs))
                wx = np.stack(weights_x[first : first + plan.batch])
                native.blend(acc, tiles, ys - y, xs, wy, wx, threads=threads)
            end = rows_final_after_band(plan, band)
            rows = fix.push(acc[done - y : end - y, : plan.width_px])
            native.finalize(rows, np.uint8, threads=threads, out=out[written : written + len(rows)])
            done, written = end, written + len(rows)
        assert written == 4096

    benchmark.pedantic(overhead, rounds=3, warmup_rounds=1)
    seconds = benchmark.stats.stats.min
    print(f"\n{benchmark.name}: {seconds:.3f} s")
    bicubic = kernels.finalize(upscale_bicubic(lr, 0, 256, scale=SCALE), np.uint8)
    assert np.abs(out[:256].astype(int) - bicubic).max() <= 1
