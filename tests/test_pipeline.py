"""The data path: exact sizes, one result for any tiling order, bounded memory, errors and the end."""

from __future__ import annotations

import gc
import threading
import time
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import picture, psnr_db, traced_peak
from hypothesis import given, settings
from hypothesis import strategies as st

from yonos_trt.backends.base import Array
from yonos_trt.backends.host import HostBackend
from yonos_trt.backends.numpy import NumpyBackend
from yonos_trt.engine.manifest import identity_manifest
from yonos_trt.errors import ConfigError, InputError, NumericError
from yonos_trt.images import from_array, open_row_writer
from yonos_trt.pipeline import STAGES, Timings, upscale, upscale_array
from yonos_trt.tiles import noise
from yonos_trt.tiles.bicubic import upscale_bicubic
from yonos_trt.tiles.kernels import finalize
from yonos_trt.tiles.plan import TilePlan, plan_tiles


def plan_for(
    image: Array, scale: int = 4, *, tile: int = 64, overlap: int = 16, batch: int = 1, multiple: int = 16
) -> TilePlan:
    return plan_tiles(
        image.shape[0] * scale,
        image.shape[1] * scale,
        tile_px=tile,
        overlap_px=overlap,
        multiple_px=multiple,
        smallest_px=32,
        batch=batch,
    )


def bicubic(image: Array, scale: int = 4) -> Array:
    return finalize(upscale_bicubic(image, 0, image.shape[0] * scale, scale=scale), image.dtype)


# ---------------------------------------------------------------------------------------------------------
# The identity backend returns the bicubic image


@settings(max_examples=40)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from([32, 48, 64, 128]),
    st.integers(0, 32),
    st.integers(1, 3),
    st.sampled_from([np.uint8, np.uint16, np.float32]),
    st.sampled_from([2, 4, 8]),
    st.sampled_from(["numpy", "native"]),
)
def test_identity_gives_the_bicubic_image_for_any_size_tile_and_overlap(
    h: int, w: int, tile: int, overlap: int, batch: int, dtype: Any, scale: int, kernels: str
) -> None:
    image = picture(h, w, dtype=dtype)
    overlap = min(overlap, tile // 2)
    plan = plan_for(image, scale, tile=tile, overlap=overlap, batch=batch)
    backend = NumpyBackend(identity_manifest(scale=scale, latent_factor=4), lanes=2, kernels=kernels)
    out = upscale_array(image, backend, plan=plan, color_fix="none")
    assert out.shape == (h * scale, w * scale, 3)
    assert out.dtype == dtype
    step = 2e-6 if dtype == np.float32 else 1  # one rounding of the weighted sum
    assert np.abs(out.astype(np.float64) - bicubic(image, scale)).max() <= step


@pytest.mark.parametrize("color_fix", ["wavelet", "adain"])
def test_the_colour_fix_leaves_the_bicubic_image_alone(color_fix: str) -> None:
    image = picture(50, 61)
    out = upscale_array(image, NumpyBackend(), plan=plan_for(image), color_fix=color_fix)
    assert np.abs(out.astype(int) - bicubic(image)).max() <= 1


def test_the_colour_fix_takes_a_colour_cast_out_of_the_stitched_picture() -> None:
    image = picture(60, 60, dtype=np.float32) * np.float32(0.5) + np.float32(0.25)
    backend = NumpyBackend(decode=lambda z: z + np.float32([0.2, -0.1, 0.05])[:, None, None])
    plan = plan_for(image)
    cast = upscale_array(image, backend, plan=plan, color_fix="none")
    fixed = upscale_array(image, backend, plan=plan, color_fix="wavelet")
    assert np.abs(cast - bicubic(image)).mean() > 0.04
    assert np.abs(fixed - bicubic(image)).mean() < 1e-3


# ---------------------------------------------------------------------------------------------------------
# One result


def _uneven(value: Array) -> Array:
    """Take a different time for every tile, so that lanes overtake each other."""
    time.sleep(0.003 * (abs(hash(value.tobytes())) % 4))
    return value


def _noisy(noise: Array, z_l: Array) -> Array:
    up = noise.repeat(4, axis=2).repeat(4, axis=3)
    return z_l + np.float32(0.1) * up[:, :3]


def test_the_result_is_the_same_bit_for_bit_for_any_number_of_lanes_and_in_every_run() -> None:
    image = picture(70, 75)
    results = [
        upscale_array(
            image,
            NumpyBackend(encode=_uneven, step=_noisy, lanes=lanes),
            plan=plan_for(image, batch=2),
            seed=5,
        )
        for lanes in (1, 2, 3, 7, 2)
    ]
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


def test_another_seed_gives_another_picture() -> None:
    image = picture(30, 30)
    a, b = (
        upscale_array(image, NumpyBackend(step=_noisy), plan=plan_for(image), seed=seed) for seed in (0, 1)
    )
    assert psnr_db(a, b) < 40


@settings(max_examples=15)
@given(st.sampled_from([32, 48, 64, 96]), st.integers(0, 16), st.integers(1, 4), st.integers(1, 3))
def test_the_noise_a_pixel_sees_does_not_depend_on_tile_size_batch_or_lanes(
    tile: int, overlap: int, batch: int, lanes: int
) -> None:
    image = np.full((37, 53, 3), 0.5, np.float32)
    plan = plan_for(image, tile=tile, overlap=overlap, batch=batch)
    backend = NumpyBackend(step=_noisy, encode=_uneven, lanes=lanes)
    out = upscale_array(image, backend, plan=plan, seed=9, color_fix="none")
    field = noise.field(9, channels=3, y0_lat=0, x0_lat=0, h_lat=37, w_lat=53)
    wanted = (np.float32(0.1) * field.repeat(4, axis=1).repeat(4, axis=2).transpose(1, 2, 0) + 1) / 2
    np.testing.assert_allclose(out, np.clip(wanted, 0, 1), atol=1e-6)


def test_rows_come_from_the_top_in_blocks_of_the_pictures_dtype() -> None:
    image = picture(100, 20, dtype=np.uint16)
    backend, plan = NumpyBackend(), plan_for(image)
    blocks = list(upscale(image, backend, plan=plan))
    assert len(blocks) > 3
    assert all(b.dtype == np.uint16 and b.shape[1:] == (80, 3) and len(b) for b in blocks)
    np.testing.assert_array_equal(np.concatenate(blocks), upscale_array(image, backend, plan=plan))


def test_blocks_belong_to_the_caller() -> None:
    image = picture(60, 20)
    plan = plan_for(image)
    wanted = upscale_array(image, NumpyBackend(), plan=plan)
    kept = []
    for rows in upscale(image, NumpyBackend(), plan=plan):
        kept.append(rows.copy())
        rows[...] = 0  # must not reach into later blocks
    np.testing.assert_array_equal(np.concatenate(kept), wanted)


def test_the_input_is_read_and_not_written() -> None:
    image = picture(40, 40)
    before = image.copy()
    image.setflags(write=False)
    upscale_array(image[::-1, ::-1], NumpyBackend(), plan=plan_for(image))
    np.testing.assert_array_equal(image, before)


# ---------------------------------------------------------------------------------------------------------
# Memory


def _peak_bytes(height: int) -> int:
    image = np.zeros((height, 50, 3), np.uint8)
    plan = plan_for(image)
    backend = NumpyBackend(kernels="native")
    for rows in upscale(image[:40], backend, plan=plan_for(image[:40])):
        del rows  # fills the caches
    gc.collect()

    def run() -> None:
        for rows in upscale(image, backend, plan=plan):
            del rows

    return traced_peak(run)


def test_memory_does_not_grow_with_the_height() -> None:
    # 108 and 708: the last band is shifted inside by a part of a tile.
    for short, tall in ((100, 700), (108, 708)):
        # The smallest of three: threads of other tests that still end allocate a little, too.
        grown = min(_peak_bytes(tall) for _ in range(3)) - min(_peak_bytes(short) for _ in range(3))
        assert grown / (4 * (tall - short)) < 120  # bytes per row: origins and taps; a finished row has 600


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_a_file_is_written_without_holding_the_picture(tmp_path: Path, suffix: str) -> None:
    if suffix == ".tiff":
        pytest.importorskip("tifffile")
    image = np.zeros((2000, 30, 3), np.uint8)
    like, plan, backend = from_array(image), plan_for(image, tile=128), NumpyBackend(kernels="native")
    with open_row_writer(tmp_path / f"warm{suffix}", from_array(image[:50]), 200, 120) as writer:
        for rows in upscale(image[:50], backend, plan=plan_for(image[:50])):
            writer.write_rows(rows)

    def write() -> None:
        with open_row_writer(tmp_path / f"out{suffix}", like, 8000, 120) as writer:
            for rows in upscale(image, backend, plan=plan):
                writer.write_rows(rows)

    assert traced_peak(write) < 0.9 * 8000 * 120 * 3  # less than the result in uint8


def test_no_more_than_lanes_plus_one_batches_wait_for_the_blend() -> None:
    image = picture(120, 120)
    lock, waiting, most = threading.Lock(), 0, 0

    class Counting(NumpyBackend):
        def gather(self, *args: Any, **kwargs: Any) -> Any:
            nonlocal waiting, most
            with lock:
                waiting += 1
                most = max(most, waiting)
            return super().gather(*args, **kwargs)

        def blend(self, *args: Any, **kwargs: Any) -> None:
            nonlocal waiting
            time.sleep(0.004)
            super().blend(*args, **kwargs)
            with lock:
                waiting -= 1

    upscale_array(image, Counting(lanes=3), plan=plan_for(image))
    assert 2 <= most <= 4


# ---------------------------------------------------------------------------------------------------------
# Errors and the end


@pytest.mark.parametrize("stage", ["encode", "step", "decode"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_name_the_stage_and_the_tile(stage: str, value: float) -> None:
    image = picture(40, 52)
    calls = {"n": 0}

    def spoil(z: Array) -> Array:
        calls["n"] += 1
        if calls["n"] == 3:  # third batch of two tiles, second tile of it
            z = z.copy()
            z[1, 0, 3, 3] = value
        return z

    functions: dict[str, Any] = {stage: (lambda n, z: spoil(z)) if stage == "step" else spoil}
    plan = plan_for(image, batch=2)
    assert len(plan.xs) == 4
    with pytest.raises(NumericError, match=f"'{stage}'.*tile 5") as caught:
        upscale_array(image, NumpyBackend(**functions), plan=plan)
    assert (caught.value.stage, caught.value.tile) == (stage, 5)


def test_large_finite_values_are_not_taken_for_infinity() -> None:
    image = picture(40, 40)
    out = upscale_array(
        image, NumpyBackend(decode=lambda z: np.full_like(z, 3e38)), plan=plan_for(image), color_fix="none"
    )
    assert (out == 255).all()


def _lane_threads() -> int:
    return sum(t.name.startswith("yonos-lane") for t in threading.enumerate())


def test_an_error_in_a_lane_reaches_the_caller_and_ends_the_lanes() -> None:
    image = picture(80, 80)

    def broken(z: Array) -> Array:
        raise RuntimeError("lane broke")

    with pytest.raises(RuntimeError, match="lane broke"):
        upscale_array(image, NumpyBackend(decode=broken, lanes=3), plan=plan_for(image))
    assert _lane_threads() == 0


def test_closing_the_iterator_ends_the_lanes() -> None:
    image = picture(100, 100)
    rows = upscale(image, NumpyBackend(encode=_uneven, lanes=3), plan=plan_for(image))
    next(rows)
    assert _lane_threads() > 0
    rows.close()
    assert _lane_threads() == 0


def test_cancel_stops_from_another_thread() -> None:
    image = picture(100, 100)
    cancel = threading.Event()
    done: list[int] = []

    def on_tiles(count: int, total: int) -> None:
        done.append(count)
        if count == 2:
            threading.Thread(target=cancel.set).start()
            time.sleep(0.05)

    with pytest.raises(CancelledError):
        upscale_array(image, NumpyBackend(lanes=2), plan=plan_for(image), cancel=cancel, on_tiles=on_tiles)
    assert done[-1] < 10
    assert _lane_threads() == 0


def test_tiles_are_counted_up_to_the_plans_number() -> None:
    image = picture(50, 50)
    plan = plan_for(image, batch=3)
    seen: list[tuple[int, int]] = []
    upscale_array(image, NumpyBackend(), plan=plan, on_tiles=lambda a, b: seen.append((a, b)))
    assert seen[-1] == (plan.tiles, plan.tiles)
    assert [a for a, _ in seen] == sorted({a for a, _ in seen})


def test_every_stage_is_timed() -> None:
    image = picture(50, 50)
    timings = Timings()
    upscale_array(image, NumpyBackend(lanes=2), plan=plan_for(image), timings=timings)
    assert tuple(timings.seconds) == STAGES
    assert all(seconds > 0 for seconds in timings.seconds.values())


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.float64),
        np.zeros((4, 4, 3), np.int32),
    ],
)
def test_other_arrays_are_refused(image: Array) -> None:
    with pytest.raises(InputError, match="expected"):
        upscale_array(image, NumpyBackend(), plan=plan_for(picture(4, 4)))


def test_a_plan_for_another_size_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"80 x 80 px, this picture needs 84 x 80"):
        upscale_array(picture(21, 20), NumpyBackend(), plan=plan_for(picture(20, 20)))


# ---------------------------------------------------------------------------------------------------------
# Going on at a row


@settings(max_examples=40)
@given(
    st.integers(1, 120),
    st.integers(1, 30),
    st.floats(0, 1),
    st.sampled_from([32, 64, 96]),
    st.sampled_from(["wavelet", "none"]),
    st.sampled_from([np.uint8, np.uint16, np.float32]),
    st.sampled_from([2, 4, 8]),
)
def test_a_run_from_a_row_on_gives_the_same_rows(
    height: int, width: int, share: float, tile: int, fix: str, dtype: Any, scale: int
) -> None:
    image = picture(height, width, dtype=dtype)
    backend = NumpyBackend(
        identity_manifest(scale=scale), decode=lambda z: (z * 0.9 + 0.05).astype(np.float32)
    )
    plan = plan_for(image, scale, tile=tile, overlap=16)
    whole = upscale_array(image, backend, plan=plan, color_fix=fix)
    row = min(int(share * plan.height_px), plan.height_px - 1)
    rest = np.concatenate(list(upscale(image, backend, plan=plan, color_fix=fix, first_row_px=row)))
    np.testing.assert_array_equal(rest, whole[row:])


def test_a_run_from_a_row_on_works_on_what_that_needs_only() -> None:
    image = picture(400, 20)
    counts = []
    for row in (0, 1200):
        seen: list[tuple[int, int]] = []
        told = partial(lambda to, *n: to.append(n), seen)
        rows = upscale(image, NumpyBackend(), plan=plan_for(image), first_row_px=row, on_tiles=told)
        assert sum(map(len, rows)) == 1600 - row
        counts.append(len(seen))
        assert seen[-1][0] == seen[-1][1] == len(seen)
    assert counts[1] < counts[0] * 0.35


def test_adain_cannot_begin_in_the_middle() -> None:
    image = picture(100, 20)
    with pytest.raises(ConfigError, match="whole picture"):
        list(upscale(image, NumpyBackend(), plan=plan_for(image), color_fix="adain", first_row_px=8))


# ---------------------------------------------------------------------------------------------------------
# Back ends of users


class Before:
    """A back end written for 0.1: no `run`, nothing declared that it need not have; inherits nothing."""

    lanes = 2

    def __init__(self, inner: NumpyBackend) -> None:
        self.manifest = inner.manifest
        for name in ("upload", "canvas", "gather", "encode", "noise", "step", "decode", "blend", "close"):
            setattr(self, name, getattr(inner, name))
        self.download = inner.download


class BeforeWithFinish(Before):
    """... that rounds by itself."""

    def finish(self, source: Any, canvas: Any, plan: TilePlan, *, color_fix: str) -> Any:
        outer = self

        class Finish:
            block_rows = 7

            def push(self, y0_px: int, y1_px: int, clock: Any) -> Any:
                with clock("download"):
                    rows = outer.download(canvas, plan, y0_px, y1_px)
                return np.rint((np.clip(rows, -1, 1) + 1) * np.float32(127.5)).astype(np.uint8)

        return Finish()


@pytest.mark.parametrize("kind", [Before, BeforeWithFinish])
def test_a_back_end_without_run_works_and_is_told(kind: type[Before]) -> None:
    image = picture(40, 52)
    inner = NumpyBackend(step=lambda noise, z_l: z_l * np.float32(0.5))
    plan = plan_for(image)
    timings = Timings()
    with pytest.warns(DeprecationWarning, match=f"{kind.__name__} has no run.*HostBackend"):
        got = upscale_array(image, kind(inner), plan=plan, color_fix="none", timings=timings)
    assert np.array_equal(got, upscale_array(image, inner, plan=plan, color_fix="none"))
    assert all(timings.seconds[stage] > 0 for stage in ("gather", "encode", "step", "decode", "download"))


def test_a_back_end_needs_three_methods_beside_those_of_the_host() -> None:
    class Mine(HostBackend):
        def encode(self, tiles: Array, *, lane: int) -> Array:
            return tiles

        def step(self, noise: Array, z_l: Array, *, lane: int) -> Array:
            return z_l

        def decode(self, z_0: Array, *, lane: int) -> Array:
            return z_0

    image = picture(20, 20)
    plan = plan_for(image)
    mine = upscale_array(image, Mine(identity_manifest()), plan=plan)
    twin = upscale_array(image, NumpyBackend(kernels="native"), plan=plan)
    assert np.array_equal(mine, twin)
