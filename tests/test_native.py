"""The native kernels against their NumPy twins: bit for bit, over odd sizes, strides, threads and instruction
sets.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yonos_trt.tiles import color_cells, kernels, noise
from yonos_trt.tiles.bicubic import upscale_bicubic

if os.environ.get("YONOS_REQUIRE_NATIVE") == "1":
    from yonos_trt import _native as native
else:
    native = pytest.importorskip(
        "yonos_trt._native", reason="native kernels are not built; run `make native`"
    )

THREADS = [1, 2, 3, 7]
DTYPES = st.sampled_from([np.uint8, np.uint16, np.float32])


def picture(height: int, width: int, dtype: Any, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).random((height, width, 3), dtype=np.float32)
    if dtype is np.float32:
        return values
    return (values * np.iinfo(dtype).max).astype(dtype)


def strided(image: np.ndarray, how: str) -> np.ndarray:
    """Return a view that is laid out differently."""
    if how == "rows reversed":
        return image[::-1]
    if how == "columns reversed, BGR":
        return image[:, ::-1, ::-1]
    if how == "part of RGBA":
        return np.concatenate([image, image[..., :1]], axis=2)[..., :3]
    if how == "every other":
        return np.repeat(np.repeat(image, 2, axis=0), 2, axis=1)[::2, ::2]
    if how == "planes":
        return np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0)
    return image


LAYOUTS = st.sampled_from(
    ["packed", "rows reversed", "columns reversed, BGR", "part of RGBA", "every other", "planes"]
)


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 60)),
    tile=st.tuples(st.integers(1, 50), st.integers(1, 70)),
    scale=st.sampled_from([1, 2, 3, 4, 5, 8]),
    places=st.lists(st.tuples(st.integers(-90, 400), st.integers(-90, 400)), min_size=1, max_size=3),
    dtype=DTYPES,
    layout=LAYOUTS,
    threads=st.sampled_from(THREADS),
)
def test_gather_is_its_twin(
    size: tuple[int, int],
    tile: tuple[int, int],
    scale: int,
    places: list[tuple[int, int]],
    dtype: Any,
    layout: str,
    threads: int,
) -> None:
    image = strided(picture(*size, dtype), layout)
    ys, xs = np.array(places, np.int64).T.copy()
    sizes = {"tile_h_px": tile[0], "tile_w_px": tile[1], "scale": scale}
    expected = kernels.gather(image, ys, xs, **sizes)
    got = native.gather(image, ys, xs, threads=threads, **sizes)
    assert got.dtype == np.float32
    assert np.array_equal(got, expected)


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 60)),
    tile=st.tuples(st.integers(1, 50), st.integers(1, 70)),
    scale=st.sampled_from([1, 2, 3, 4, 8]),
    places=st.lists(st.tuples(st.integers(-90, 400), st.integers(-90, 400)), min_size=1, max_size=3),
    dtype=DTYPES,
    layout=LAYOUTS,
    threads=st.sampled_from(THREADS),
)
def test_gather_lr_is_its_twin(
    size: tuple[int, int],
    tile: tuple[int, int],
    scale: int,
    places: list[tuple[int, int]],
    dtype: Any,
    layout: str,
    threads: int,
) -> None:
    image = strided(picture(*size, dtype), layout)
    ys, xs = (np.array(places, np.int64) * scale).T.copy()
    sizes = {"tile_h_px": tile[0] * scale, "tile_w_px": tile[1] * scale, "scale": scale}
    expected = kernels.gather_lr(image, ys, xs, **sizes)
    assert np.array_equal(native.gather_lr(image, ys, xs, threads=threads, **sizes), expected)


@given(
    size=st.tuples(st.integers(1, 30), st.integers(1, 60)),
    scale=st.sampled_from([1, 2, 3, 4, 8]),
    dtype=DTYPES,
    layout=LAYOUTS,
    threads=st.sampled_from(THREADS),
    data=st.data(),
)
def test_upscale_bicubic_is_its_twin(
    size: tuple[int, int], scale: int, dtype: Any, layout: str, threads: int, data: st.DataObject
) -> None:
    image = strided(picture(*size, dtype), layout)
    y0 = data.draw(st.integers(0, size[0] * scale))
    y1 = data.draw(st.integers(y0, size[0] * scale))
    expected = upscale_bicubic(image, y0, y1, scale=scale)
    assert np.array_equal(native.upscale_bicubic(image, y0, y1, scale=scale, threads=threads), expected)


@given(
    rows=st.integers(1, 40),
    width=st.integers(1, 90),
    tile=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    count=st.integers(1, 4),
    threads=st.sampled_from(THREADS),
    seed=st.integers(0, 99),
)
def test_blend_is_its_twin(
    rows: int, width: int, tile: tuple[int, int], count: int, threads: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    h, w = min(tile[0], rows), min(tile[1], width)
    tiles = rng.standard_normal((count, 3, h, w), dtype=np.float32)
    ys, xs = rng.integers(0, rows - h + 1, count), rng.integers(0, width - w + 1, count)
    wy = np.maximum(rng.standard_normal((count, h), dtype=np.float32), 0)
    wx = np.maximum(rng.standard_normal((count, w), dtype=np.float32), 0)
    wy[rng.integers(0, count)] = 0
    expected = rng.standard_normal((rows, width, 3), dtype=np.float32)
    got = expected.copy()
    kernels.blend(expected, tiles, ys, xs, wy, wx)
    native.blend(got, tiles, ys, xs, wy, wx, threads=threads)
    assert np.array_equal(got, expected)


@given(
    size=st.tuples(st.integers(1, 20), st.integers(1, 50)),
    dtype=DTYPES,
    with_delta=st.booleans(),
    threads=st.sampled_from(THREADS),
)
def test_finalize_is_its_twin(size: tuple[int, int], dtype: Any, with_delta: bool, threads: int) -> None:
    rng = np.random.default_rng(size[1])
    acc = rng.standard_normal((*size, 3), dtype=np.float32)
    acc.flat[:3] = (np.nan, np.inf, -np.inf)
    delta = rng.standard_normal((*size, 3), dtype=np.float32) if with_delta else None
    expected = kernels.finalize(acc, dtype, delta=delta)
    got = native.finalize(acc, dtype, delta=delta, threads=threads)
    assert got.dtype == expected.dtype
    assert np.array_equal(got, expected)


def test_finalize_rounds_every_tie_like_its_twin() -> None:
    ties = (np.arange(0, 255, dtype=np.float32) + np.float32(0.5)) / np.float32(127.5) - np.float32(1)
    acc = np.ascontiguousarray(np.repeat(ties[None, :, None], 3, axis=2))
    assert np.array_equal(native.finalize(acc, np.uint8), kernels.finalize(acc, np.uint8))


@given(
    seed=st.integers(0, noise.LARGEST_SEED),
    places=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 2**20)), min_size=1, max_size=3),
    size=st.tuples(st.integers(1, 9), st.integers(1, 150)),
    channels=st.integers(1, 9),
    threads=st.sampled_from(THREADS),
)
def test_noise_is_its_twin(
    seed: int, places: list[tuple[int, int]], size: tuple[int, int], channels: int, threads: int
) -> None:
    ys, xs = np.array(places, np.int64).T.copy()
    sizes = {"channels": channels, "h_lat": size[0], "w_lat": size[1]}
    expected = noise.tiles(seed, ys, xs, **sizes)
    assert np.array_equal(native.noise_tiles(seed, ys, xs, threads=threads, **sizes), expected)


@given(st.tuples(*[st.integers(0, 2**32 - 1)] * 6))
def test_philox_words_are_its_twins(words: tuple[int, ...]) -> None:
    a, b, c, d = (np.array([word], np.uint32) for word in words[:4])
    expected = tuple(int(word[0]) for word in noise.philox((a, b, c, d), (words[4], words[5])))
    assert native.philox(list(words[:4]), list(words[4:])) == expected


@given(size=st.tuples(st.integers(1, 40), st.integers(1, 70)), threads=st.sampled_from(THREADS))
def test_colour_grid_kernels_are_their_twins(size: tuple[int, int], threads: int) -> None:
    rng = np.random.default_rng(size[0] * 100 + size[1])
    rows = rng.standard_normal((*size, 3), dtype=np.float32)
    grid = color_cells.block_means(rows)
    assert np.array_equal(native.block_means(rows, threads=threads), grid)
    upper, lower, weight = color_cells.grid_rows(np.arange(size[0]), grid.shape[0])
    expected, got = rows.copy(), rows.copy()
    color_cells.add_grid(expected, grid, upper, lower, weight)
    native.add_grid(got, grid, upper, lower, weight, threads=threads)
    assert np.array_equal(got, expected)


def test_outputs_given_are_filled_and_returned() -> None:
    image = picture(5, 6, np.uint8)
    place = np.array([0])
    out = np.full((1, 3, 8, 8), np.nan, np.float32)
    got = native.gather(image, place, place, tile_h_px=8, tile_w_px=8, scale=2, out=out)
    assert got is out
    assert np.array_equal(out, kernels.gather(image, place, place, tile_h_px=8, tile_w_px=8, scale=2))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda i, p: native.gather(i[..., 0], p, p, tile_h_px=4, tile_w_px=4, scale=1), r"\(H, W, 3\)"),
        (lambda i, p: native.gather(i * 1.0, p, p, tile_h_px=4, tile_w_px=4, scale=1), "uint8, uint16"),
        (lambda i, p: native.gather(i, p, p, tile_h_px=4, tile_w_px=4, scale=0), "scale must be at least 1"),
        (lambda i, p: native.gather(i, p, p, tile_h_px=0, tile_w_px=4, scale=1), "tile height"),
        (lambda i, p: native.gather(i, p.astype("i4"), p, tile_h_px=4, tile_w_px=4, scale=1), "ys must be"),
        (lambda i, p: native.gather(i, p, p[:0], tile_h_px=4, tile_w_px=4, scale=1), "xs must be int64"),
        (lambda i, p: native.gather(i, p + 2**40, p, tile_h_px=4, tile_w_px=4, scale=1), "tile origin"),
        (lambda i, p: native.gather_lr(i, p + 1, p, tile_h_px=4, tile_w_px=4, scale=4), "multiples of the"),
        (
            lambda i, p: native.gather(
                i, p, p, tile_h_px=4, tile_w_px=4, scale=1, out=np.zeros((1, 3, 4, 5), np.float32)
            ),
            "out must be float32",
        ),
        (lambda i, p: native.upscale_bicubic(i, 3, 99, scale=2), "rows must satisfy"),
        (lambda i, p: native.noise_tiles(-1, p, p, channels=4, h_lat=2, w_lat=2), "seed must lie"),
        (lambda i, p: native.noise_tiles(2**64, p, p, channels=4, h_lat=2, w_lat=2), "seed must lie"),
        (lambda i, p: native.finalize(np.zeros((2, 2, 3), np.float32), "int8"), "got int8"),
        (lambda i, p: native.finalize(np.zeros((2, 4, 3), np.float32)[:, ::2], "uint8"), "C-contiguous"),
    ],
)
def test_wrong_arguments_are_refused(call: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call(picture(6, 6, np.uint8), np.array([0]))


def test_blend_refuses_a_tile_outside_the_accumulator() -> None:
    acc = np.zeros((4, 4, 3), np.float32)
    one = np.ones((1, 4), np.float32)
    with pytest.raises(ValueError, match="leaves the accumulator of 4 x 4 px"):
        native.blend(acc, np.ones((1, 3, 4, 4), np.float32), np.array([1]), np.array([0]), one, one)


def digest_of_all_kernels() -> str:
    """Hash what every kernel gives for one input that reaches its vector loops and its edges."""
    image = picture(37, 53, np.uint8)
    places = np.array([0, 24]), np.array([0, 40])
    parts = []
    for scale in (1, 2, 3, 4, 8):
        parts.append(native.gather(image, *places, tile_h_px=96, tile_w_px=104, scale=scale))
    parts.append(native.gather_lr(image, *places, tile_h_px=96, tile_w_px=104, scale=4))
    rows = native.upscale_bicubic(image, 3, 90, scale=4)
    weight = np.linspace(0, 1, 104, dtype=np.float32)[None].repeat(2, axis=0)
    tiles = np.ascontiguousarray(parts[3][:, :, :40])
    native.blend(rows, tiles, np.array([0, 7]), np.array([3, 60]), weight[:, :40].copy(), weight)
    parts.append(rows)
    parts.extend(native.finalize(rows, dtype) for dtype in (np.uint8, np.uint16, np.float32))
    parts.append(native.noise_tiles(12, *places, channels=8, h_lat=9, w_lat=131))
    grid = native.block_means(rows)
    native.add_grid(rows, grid, *color_cells.grid_rows(np.arange(rows.shape[0]), grid.shape[0]))
    parts.extend([grid, rows])
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


@pytest.mark.parametrize("name", ["baseline", "avx2", "avx512"])
def test_instruction_sets_agree_bit_for_bit(name: str) -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; import test_native as t; "
        "print(t.native.variant(), t.digest_of_all_kernels())"
    )
    paths = [os.path.dirname(__file__), *(path for path in sys.path if path)]
    run = subprocess.run(
        [sys.executable, "-c", code, *paths],
        env=os.environ | {"YONOS_NATIVE_VARIANT": name},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    used, digest = run.stdout.split()
    if used != name:
        pytest.skip(f"this processor has no {name}")
    assert digest == digest_of_all_kernels()
