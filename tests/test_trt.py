"""`TrtBackend` on a simulated device: the right picture in every interleaving, no hidden copies or waits."""

from __future__ import annotations

import gc
import logging
import random
import weakref
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import (
    FUNCTIONS,
    FakeKernels,
    FakeTensorRT,
    Function,
    decode,
    encode,
    starts,
    step,
    write_engines,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_device import Op, Race, SimulatedDriver, ThreadedDriver

from yonos_trt import pipeline
from yonos_trt.backends.numpy import NumpyBackend
from yonos_trt.cuda.lanes import EDGES, LaneScheduler
from yonos_trt.cuda.launches import Blend
from yonos_trt.engine.manifest import identity_manifest
from yonos_trt.errors import (
    ClosedError,
    ConfigError,
    CudaError,
    InputError,
    ManifestError,
    NumericError,
    OutOfMemoryError,
    ProfileError,
)
from yonos_trt.tiles.plan import TilePlan, batches, plan_tiles, rows_final_after_band
from yonos_trt.trt import resources
from yonos_trt.trt.backend import TrtBackend
from yonos_trt.trt.engines import Engine
from yonos_trt.trt.finish import DeviceFinish
from yonos_trt.trt.memory import CONTEXT_BYTES


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("engines")
    write_engines(root / "fp32", precisions=("fp32",))
    write_engines(root / "fp16", precisions=("fp16",))
    write_engines(root / "both", precisions=("fp16", "fp32"))
    write_engines(root / "lr", precisions=("fp16",), encoder_input="lr")
    write_engines(root / "rtx", precisions=("fp16",), runtime="tensorrt-rtx")
    write_engines(root / "latent", precisions=("fp16",), start="latent")
    write_engines(root / "small", precisions=("fp16",), largest=(2, 64))
    return {path.name: path for path in root.iterdir()}


def picture(h: int, w: int, dtype: Any = np.uint8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype) == np.float32:
        return rng.random((h, w, 3), np.float32)
    return rng.integers(0, np.iinfo(dtype).max + 1, (h, w, 3)).astype(dtype)


def plan_for(image: np.ndarray, *, tile_px: int = 64, batch: int = 1) -> TilePlan:
    return plan_tiles(
        image.shape[0] * 4,
        image.shape[1] * 4,
        tile_px=tile_px,
        overlap_px=tile_px // 4,
        multiple_px=16,
        smallest_px=32,
        batch=batch,
    )


def reference(
    image: np.ndarray,
    plan: TilePlan,
    *,
    half: bool = True,
    lr: bool = False,
    seed: int = 0,
    functions: Mapping[str, Function] = FUNCTIONS,
    color_fix: str = "none",
) -> np.ndarray:
    """The same functions and rounding in the backend that defines correct."""

    def rounded(x: np.ndarray) -> np.ndarray:
        return x.astype(np.float16).astype(np.float32) if half else x

    backend = NumpyBackend(
        identity_manifest(encoder_input="lr" if lr else "upsampled"),
        encode=lambda t: rounded(functions["encoder"](rounded(t))),
        step=lambda n, z: rounded(functions["step"](rounded(n), z)),
        decode=lambda z: rounded(functions["decoder"](z)),
    )
    return pipeline.upscale_array(image, backend, plan=plan, seed=seed, color_fix=color_fix)


def open_backend(
    engine_dir: Path,
    driver: SimulatedDriver,
    *,
    lanes: int = 2,
    graphs: bool = True,
    runtime: Any = "tensorrt",
    module: FakeTensorRT | None = None,
    **options: Any,
) -> TrtBackend:
    backend = TrtBackend(
        engine_dir,
        runtime=runtime,
        lanes=lanes,
        graphs=graphs,
        driver=driver,
        module=module or FakeTensorRT(driver, rtx=runtime == "tensorrt-rtx"),
        kernels=FakeKernels(driver),
        **options,
    )
    if _opened is not None:
        _opened.append((backend, driver))
    return backend


_opened: list[tuple[TrtBackend, SimulatedDriver]] | None = None


@pytest.fixture(autouse=True)
def everything_is_given_back() -> Iterator[None]:
    """Close what a test of this module opened: nothing may be left on the device."""
    global _opened
    _opened = []
    yield
    opened, _opened = _opened, None
    for backend, driver in opened:
        backend.close()
        assert driver.live == {"allocations": 0, "streams": 0, "events": 0, "graphs": 0}


def upscale(backend: TrtBackend, image: np.ndarray, plan: TilePlan, **options: Any) -> np.ndarray:
    return pipeline.upscale_array(image, backend, plan=plan, **{"color_fix": "none", **options})


# ---------------------------------------------------------------------------------------------------------
# The picture


@pytest.mark.parametrize(("lanes", "batch", "graphs"), [(1, 1, True), (2, 3, True), (3, 2, False)])
def test_a_step_that_starts_from_the_latent_takes_no_noise(
    engines: dict[str, Path], lanes: int, batch: int, graphs: bool
) -> None:
    def rounded(x: np.ndarray) -> np.ndarray:
        return x.astype(np.float16).astype(np.float32)

    functions = {**FUNCTIONS, "step": lambda z_l: z_l * np.float32(0.75) + np.float32(0.1)}
    driver = SimulatedDriver()
    module = FakeTensorRT(driver, functions)
    image = picture(33, 50)
    plan = plan_for(image, batch=batch)
    backend = open_backend(engines["latent"], driver, lanes=lanes, graphs=graphs, module=module)
    ours = [upscale(backend, image, plan, seed=seed) for seed in (0, 5)]
    wanted = pipeline.upscale_array(
        image,
        NumpyBackend(
            starts(identity_manifest(), "latent"),
            encode=lambda t: rounded(functions["encoder"](rounded(t))),
            step=lambda z: rounded(functions["step"](z)),
            decode=lambda z: rounded(functions["decoder"](z)),
        ),
        plan=plan,
        color_fix="none",
    )
    assert np.array_equal(ours[0], wanted)
    assert np.array_equal(ours[1], wanted)
    assert "gather" in driver.log
    assert "noise" not in driver.log


@settings(max_examples=25)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 60),
    tile=st.sampled_from([32, 48, 64]),
    batch=st.integers(1, 3),
    lanes=st.integers(1, 3),
    graphs=st.booleans(),
    seed=st.sampled_from([0, 1, 2**64 - 1]),
    fix=st.sampled_from(["none", "wavelet", "adain"]),
    eagerness=st.integers(0, 5),
    order=st.integers(0, 2**32),
)
def test_every_size_lane_count_and_interleaving_gives_the_picture_of_the_numpy_backend(
    engines: dict[str, Path],
    height: int,
    width: int,
    tile: int,
    batch: int,
    lanes: int,
    graphs: bool,
    seed: int,
    fix: str,
    eagerness: int,
    order: int,
) -> None:
    image = picture(height, width)
    plan = plan_for(image, tile_px=tile, batch=batch)
    driver = SimulatedDriver(random.Random(order).randrange, eagerness=eagerness)
    backend = open_backend(engines["fp16"], driver, lanes=lanes, graphs=graphs)
    got = upscale(backend, image, plan, seed=seed, color_fix=fix)
    again = upscale(backend, image, plan, seed=seed, color_fix=fix)
    assert np.array_equal(got, reference(image, plan, seed=seed, color_fix=fix))
    assert np.array_equal(got, again)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("kind", ["fp16", "fp32", "lr", "rtx"])
def test_all_depths_precisions_and_encoder_inputs(
    engines: dict[str, Path], kind: str, dtype: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YONOS_CACHE_DIR", str(tmp_path))
    image = picture(21, 37, dtype)
    plan = plan_for(image, batch=2)
    functions = {**FUNCTIONS, "encoder": partial(encode, scale=4)} if kind == "lr" else FUNCTIONS
    driver = SimulatedDriver(random.Random(1).randrange)
    runtime = "tensorrt-rtx" if kind == "rtx" else "tensorrt"
    module = FakeTensorRT(driver, functions, rtx=kind == "rtx")
    backend = open_backend(engines[kind], driver, runtime=runtime, module=module)
    got = upscale(backend, image, plan, seed=5, color_fix="wavelet")
    expected = reference(
        image,
        plan,
        half=kind != "fp32",
        lr=kind == "lr",
        seed=5,
        functions=functions,
        color_fix="wavelet",
    )
    assert got.dtype == dtype
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("seed", range(3))
def test_streams_that_are_threads_with_random_delays_give_the_same_picture(
    engines: dict[str, Path], seed: int
) -> None:
    driver = ThreadedDriver(seed, longest_ms=0.5)
    backend = open_backend(engines["fp16"], driver, lanes=3)
    image = picture(40, 60)
    plan = plan_for(image)
    for _ in range(3):
        assert np.array_equal(upscale(backend, image, plan), reference(image, plan))


def test_pictures_of_other_sizes_and_seeds_follow_each_other(engines: dict[str, Path]) -> None:
    driver = SimulatedDriver(random.Random(3).randrange)
    backend = open_backend(engines["fp16"], driver)
    for index, (h, w) in enumerate([(30, 40), (10, 10), (30, 40), (50, 7), (30, 40)]):
        image = picture(h, w, seed=index)
        plan = plan_for(image)
        got = upscale(backend, image, plan, seed=index)
        assert np.array_equal(got, reference(image, plan, seed=index))


def test_many_seeds_do_not_collect_graphs_without_end(engines: dict[str, Path]) -> None:
    driver = SimulatedDriver()
    backend = open_backend(engines["fp16"], driver, lanes=1)
    image = picture(8, 40)
    plan = plan_for(image, tile_px=32)
    for seed in range(20):
        got = upscale(backend, image, plan, seed=seed)
        assert np.array_equal(got, reference(image, plan, seed=seed))
        assert driver.live["graphs"] <= 18
    assert driver.live["graphs"] > 0


# ---------------------------------------------------------------------------------------------------------
# What is asked of the device


def by_hand(
    backend: TrtBackend, image: np.ndarray, plan: TilePlan, *, fix: str = "none", ahead: bool = True
) -> int:
    """The pipeline's calls from one thread, so that lanes and slots come in the same order."""
    source, canvas = backend.upload(image), backend.canvas(plan)
    finish = backend.finish(source, canvas, plan, color_fix=fix)
    finish.ahead = ahead
    y0 = blocks = 0
    for batch in batches(plan):
        backend.blend(canvas, backend.run(source, plan, batch, 0, 0), plan, batch)
        if (batch.first + batch.live) % len(plan.xs) == 0:
            y1 = rows_final_after_band(plan, batch.band)
            finish.push(y0, y1)
            y0, blocks = y1, blocks + 1
    while finish.rest() is not None:
        pass
    return blocks


def test_after_the_first_picture_nothing_is_allocated_copied_or_waited_for_without_need(
    engines: dict[str, Path],
) -> None:
    driver = SimulatedDriver(random.Random(0).randrange)
    backend = open_backend(engines["fp16"], driver)
    image = picture(40, 60)
    plan = plan_for(image, batch=2)
    for _ in range(3):
        by_hand(backend, image, plan, fix="wavelet")
    before, bytes_before = driver.calls.copy(), driver.bytes_out
    blocks = by_hand(backend, image, plan, fix="wavelet")
    calls = driver.calls - before
    todo = list(batches(plan))
    assert calls["allocate"] == calls["allocate_pinned"] == calls["free"] == 0
    assert calls["copy_in"] == 1  # the picture
    assert calls["copy_out"] == calls["finish"] + plan.bands  # rows, and the flags of each band
    # one byte per channel and no float ever goes to the host: the picture itself and a flag per tile slot
    assert driver.bytes_out - bytes_before == 3 * plan.height_px * plan.width_px + 4 * 2 * len(todo)
    assert calls["color_cells"] == calls["finish"] == blocks
    assert calls["event_synchronize"] == blocks
    assert calls["graph_launch"] == len(todo)
    assert calls["blend"] == len(todo)
    assert calls["gather"] == calls["encoder fp16"] == calls["capture_begin"] == 0  # all inside graphs
    assert calls["copy"] == 2 * len(todo) + plan.bands - 1  # origins in, flags out; canvas moved on


def test_a_size_that_comes_again_finds_its_buffers_and_graphs(engines: dict[str, Path]) -> None:
    driver = SimulatedDriver(random.Random(0).randrange)
    backend = open_backend(engines["fp16"], driver)
    images = [picture(40, 60), picture(24, 33), picture(40, 100)]
    plans = [plan_for(image, batch=batch) for image, batch in zip(images, (2, 1, 3), strict=True)]
    for _ in range(5):  # grown, run once, captured, on both lanes
        for image, plan in zip(images, plans, strict=True):
            by_hand(backend, image, plan, fix="wavelet")
    before = driver.calls.copy()
    for image, plan in zip(images, plans, strict=True):
        by_hand(backend, image, plan, fix="wavelet")
    calls = driver.calls - before
    assert calls["allocate"] == calls["free"] == calls["allocate_pinned"] == calls["free_pinned"] == 0
    assert calls["capture_begin"] == calls["gather"] == 0  # every batch is a graph that was there
    assert calls["graph_launch"] == sum(len(list(batches(plan))) for plan in plans)
    for image, plan in zip(images, plans, strict=True):
        right = reference(image, plan, color_fix="wavelet")
        assert np.array_equal(upscale(backend, image, plan, color_fix="wavelet"), right)


@pytest.mark.parametrize("fix", ["none", "wavelet"])
def test_a_row_of_tiles_is_queued_before_the_copy_of_the_one_above_is_waited_for(
    engines: dict[str, Path], fix: str
) -> None:
    driver = SimulatedDriver(lambda n: 0, eagerness=0)
    backend = open_backend(engines["fp16"], driver)
    image = picture(60, 40)
    plan = plan_for(image)
    assert plan.bands > 3
    upscale(backend, image, plan, color_fix=fix)  # makes the buffers, which waits

    def order(**options: Any) -> list[str]:
        driver.log.clear()
        by_hand(backend, image, plan, fix=fix, **options)
        return [name for name in driver.log if name in ("finish", "event_synchronize")]

    now = ["finish"] + ["finish", "event_synchronize"] * (plan.bands - 1) + ["event_synchronize"]
    assert order() == now
    assert order(ahead=False) == ["finish", "event_synchronize"] * plan.bands
    driver.log.clear()
    right = reference(image, plan, color_fix=fix)
    assert np.array_equal(upscale(backend, image, plan, color_fix=fix), right)
    assert [name for name in driver.log if name in ("finish", "event_synchronize")] == now
    assert [key for key in backend._pictures._pinned if key[0] == "rows"] == [("rows", 1), ("rows", 0)]


def test_a_blend_is_launched_over_the_columns_of_its_batch_only(engines: dict[str, Path]) -> None:
    driver = SimulatedDriver(random.Random(0).randrange)
    backend = open_backend(engines["fp16"], driver)
    image = picture(24, 200)
    plan = plan_for(image, batch=4)
    launched: list[Blend] = []
    launch = backend._kernels.launch

    def watched(call: Any, *, stream: int) -> None:
        launched.extend([call] if isinstance(call, Blend) else [])
        launch(call, stream=stream)

    backend._kernels.launch = watched  # type: ignore[method-assign]
    right = reference(image, plan)
    assert np.array_equal(upscale(backend, image, plan), right)
    todo = list(batches(plan))
    assert [(b.first_px, b.first_px + b.span_px) for b in launched] == [
        (batch.xs[0], batch.xs[batch.live - 1] + plan.tile_w_px) for batch in todo
    ]
    assert len(launched) == len(todo)  # one for up to four tiles
    assert 2 * sum(b.span_px for b in launched) < 1.2 * len(todo) * plan.padded_w_px


def test_the_device_has_a_row_of_tiles_to_do_when_the_host_waits(engines: dict[str, Path]) -> None:
    class Watched(SimulatedDriver):
        def event_synchronize(self, event: int) -> None:
            super().event_synchronize(event)
            waiting.append(sum(isinstance(item, Op) for queue in self._queues.values() for item in queue))

    waiting: list[int] = []
    driver = Watched(lambda n: 0, eagerness=0)
    backend = open_backend(engines["fp16"], driver)
    image = picture(60, 40)
    plan = plan_for(image)
    upscale(backend, image, plan)
    for ahead in (True, False):
        waiting.clear()
        by_hand(backend, image, plan, ahead=ahead)
        assert [bool(left) for left in waiting] == [ahead] * (plan.bands - 1) + [False]


@pytest.mark.parametrize("fix", ["none", "wavelet", "adain"])
def test_lent_rows_stay_as_they_are_while_the_device_goes_on(engines: dict[str, Path], fix: str) -> None:
    driver = SimulatedDriver(random.Random(4).randrange)
    backend = open_backend(engines["fp16"], driver)
    image = picture(60, 40)
    plan = plan_for(image)
    expected, y = reference(image, plan, color_fix=fix), 0
    for rows in pipeline.upscale(image, backend, plan=plan, color_fix=fix, lend=True):
        with driver.lock:
            while driver._step():
                pass
        assert np.array_equal(rows, expected[y : y + len(rows)])
        assert pinned_address(driver, rows)
        y += len(rows)
    assert y == plan.height_px


def test_rows_of_a_picture_that_was_given_up_are_not_freed_under_their_copy(
    engines: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next picture has the same plan and wider samples: its buffer takes the place of one in use."""
    driver = SimulatedDriver(lambda n: 0, eagerness=0)
    backend = open_backend(engines["fp16"], driver)
    image = picture(60, 40)
    plan = plan_for(image)
    freed = driver.free_pinned

    def free_at_once(address: int) -> None:
        assert driver.idle(), "work that is queued may write there"
        freed(address)

    rows = pipeline.upscale(image, backend, plan=plan, color_fix="none")
    next(rows)
    rows.close()
    monkeypatch.setattr(driver, "free_pinned", free_at_once)
    wide = image.astype(np.float32) / 255
    for _ in pipeline.upscale(wide, backend, plan=plan, color_fix="none"):
        pass


class ArrivalIsNotWaitedFor(LaneScheduler):
    def arrived(self, buffer: int) -> None:
        pass


def one_buffer(finish: DeviceFinish, buffer: int) -> int:
    return finish._pictures.pinned(("rows", 0), finish._block_bytes)


MUTANTS = {
    "does not wait": lambda patch: patch.setattr(resources, "LaneScheduler", ArrivalIsNotWaitedFor),
    "one buffer": lambda patch: patch.setattr(DeviceFinish, "_pinned", one_buffer),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_missing_wait_or_buffer_is_a_race_and_gives_a_wrong_picture(
    engines: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    MUTANTS[name](monkeypatch)
    image = picture(60, 40)
    plan = plan_for(image)
    right = reference(image, plan)

    def run(seed: int, **options: Any) -> bool:
        driver = SimulatedDriver(random.Random(seed).randrange, **options)
        try:
            return np.array_equal(upscale(open_backend(engines["fp16"], driver, lanes=1), image, plan), right)
        except NumericError:  # by flags that were not there
            return False

    for seed in range(3):
        with pytest.raises(Race):
            run(seed)
    assert not all(run(seed, detect_races=False, eagerness=seed) for seed in range(8))
    _opened.clear()  # after a race nothing can be closed


@pytest.mark.parametrize("fix", ["none", "wavelet"])
def test_rows_that_are_lent_are_not_copied_a_second_time(engines: dict[str, Path], fix: str) -> None:
    driver = SimulatedDriver(random.Random(0).randrange)
    backend = open_backend(engines["fp16"], driver)
    image = picture(50, 60)
    plan = plan_for(image, batch=2)
    expected, y, lent = reference(image, plan, color_fix=fix), 0, 0
    for rows in pipeline.upscale(image, backend, plan=plan, color_fix=fix, lend=True):
        assert np.array_equal(rows, expected[y : y + len(rows)])
        y, lent = y + len(rows), lent + (not rows.flags.owndata and pinned_address(driver, rows))
    assert y == plan.height_px
    assert lent == plan.bands
    for rows in pipeline.upscale(image, backend, plan=plan, color_fix=fix):
        assert not pinned_address(driver, rows)


def pinned_address(driver: SimulatedDriver, rows: np.ndarray) -> bool:
    pinned = (a.data for a in driver._allocations.values() if a.pinned)
    return any(np.shares_memory(rows, data) for data in pinned)


def test_nothing_waits_but_download(engines: dict[str, Path]) -> None:
    driver = SimulatedDriver(lambda n: 0, eagerness=0)
    backend = open_backend(engines["fp16"], driver, lanes=2)
    image = picture(16, 60)
    plan = plan_for(image)
    upscale(backend, image, plan)  # makes the buffers, which waits
    before = driver.calls["event_synchronize"]
    source, canvas = backend.upload(image), backend.canvas(plan)
    for batch in batches(plan):
        backend.blend(canvas, backend.run(source, plan, batch, 0, 0), plan, batch)
    assert driver.calls["event_synchronize"] == before
    assert not driver.idle()
    rows = backend.finish(source, canvas, plan, color_fix="none").push(0, plan.height_px)
    assert driver.calls["event_synchronize"] == before + 1
    assert rows.shape == (plan.height_px, plan.width_px, 3)


def test_graphs_are_captured_once_per_lane_and_slot_and_again_for_another_shape(
    engines: dict[str, Path],
) -> None:
    driver = SimulatedDriver()
    backend = open_backend(engines["fp16"], driver, lanes=2)
    image = picture(24, 200)
    plan = plan_for(image)
    for _ in range(3):
        upscale(backend, image, plan)
    first = driver.calls["capture_begin"]
    assert 2 <= first <= 2 * 3
    assert driver.live["graphs"] == first
    other = plan_for(image, tile_px=48)
    upscale(backend, image, other)
    assert driver.calls["capture_begin"] > first


def test_engines_that_cannot_be_captured_run_without_graphs(engines: dict[str, Path]) -> None:
    driver = SimulatedDriver()
    backend = open_backend(engines["fp16"], driver, module=FakeTensorRT(driver, capturable=False))
    image = picture(24, 50)
    plan = plan_for(image)
    assert np.array_equal(upscale(backend, image, plan), reference(image, plan))
    assert driver.calls["capture_begin"] == 0


def test_weights_are_loaded_once_and_contexts_made_per_lane(engines: dict[str, Path]) -> None:
    driver = SimulatedDriver()
    module = FakeTensorRT(driver)
    backend = open_backend(engines["fp16"], driver, lanes=3, module=module)
    assert (module.deserialized, module.contexts) == (3, 9)
    assert (backend.precision, backend.lanes) == ("fp16", 3)


def test_contexts_for_planning_are_not_kept(
    engines: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[Any]] = []
    make = Engine.context

    def context(self: Engine) -> Any:
        found = make(self)
        made.append(weakref.ref(found))
        return found

    driver = SimulatedDriver()
    backend = open_backend(engines["fp16"], driver, lanes=1)
    monkeypatch.setattr(Engine, "context", context)
    plan = plan_for(picture(40, 60), batch=2)
    first = backend.working_bytes(plan)
    gc.collect()
    assert len(made) == 3
    assert [ref() for ref in made] == [None] * 3
    assert backend.working_bytes(plan) == first
    assert len(made) == 3  # the answer is kept, by shape


def test_an_upload_while_the_copy_before_it_runs_takes_another_staging_buffer(
    engines: dict[str, Path],
) -> None:
    driver = SimulatedDriver(lambda n: 0, eagerness=0)
    backend = open_backend(engines["fp16"], driver)
    image = picture(16, 16)
    plan = plan_for(image)
    backend.upload(picture(16, 16, seed=9))
    assert np.array_equal(upscale(backend, image, plan), reference(image, plan))


def test_staging_buffers_grow_instead_of_piling_up(engines: dict[str, Path]) -> None:
    driver = SimulatedDriver()
    backend = open_backend(engines["fp16"], driver)
    sizes = []
    for side in (10, 20, 30, 40, 30, 20):
        image = picture(side, side)
        plan = plan_for(image)
        assert np.array_equal(upscale(backend, image, plan), reference(image, plan))
        sizes.append(
            sum(size for name, (_, size) in backend._pictures._pinned.items() if name[0] == "staging")
        )
    assert max(sizes) <= 2 * 40 * 40 * 3


def test_a_picture_given_up_in_the_middle_does_not_disturb_the_next(engines: dict[str, Path]) -> None:
    for seed in range(10):
        driver = SimulatedDriver(random.Random(seed).randrange)
        backend = open_backend(engines["fp16"], driver)
        image, other = picture(40, 40), picture(40, 40, seed=1)
        plan = plan_for(image)
        blocks = pipeline.upscale(other, backend, plan=plan, color_fix="none")
        next(blocks)
        blocks.close()
        assert np.array_equal(upscale(backend, image, plan), reference(image, plan))


@pytest.mark.parametrize("edge", [e for e in EDGES if "caller" not in e])
def test_a_scheduler_that_lacks_an_event_is_caught_on_the_whole_path(
    engines: dict[str, Path], edge: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mutant(LaneScheduler):
        def _order(self, name: str, stream: int, event: int) -> None:
            if name != edge:
                super()._order(name, stream, event)

    monkeypatch.setattr(resources, "LaneScheduler", Mutant)
    driver = SimulatedDriver(lambda n: 0, eagerness=0)
    backend = open_backend(engines["fp16"], driver)
    image = picture(16, 100)  # one band, so that it can be finished as a whole
    plan = plan_for(image)
    assert plan.bands == 1

    def run() -> None:
        source, canvas = backend.upload(image), backend.canvas(plan)
        for batch in batches(plan):
            backend.blend(canvas, backend.run(source, plan, batch, 0, 0), plan, batch)
        if edge == "finish->upload":  # comes after all gathers, and so would hide that their order is missing
            backend.finish(source, canvas, plan, color_fix="wavelet").take(0, plan.height_px)

    def run_thrice() -> None:
        for _ in range(3):
            run()

    with pytest.raises(Race):
        run_thrice()
    _opened.clear()  # after a race nothing can be closed


# ---------------------------------------------------------------------------------------------------------
# Memory


@pytest.mark.parametrize("fix", ["none", "wavelet", "adain"])
@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("batch", [1, 4])
def test_the_predicted_memory_is_what_gets_allocated(
    engines: dict[str, Path], lanes: int, batch: int, fix: str
) -> None:
    driver = SimulatedDriver()
    backend = open_backend(engines["fp16"], driver, lanes=lanes)
    image = picture(50, 70)
    plan = plan_for(image, batch=batch)
    weights = sum(f.stat().st_size for f in engines["fp16"].glob("*.engine"))
    predicted = backend.working_bytes(plan, color_fix=fix).device - CONTEXT_BYTES - weights
    assert driver.used_bytes == 0
    upscale(backend, image, plan, color_fix=fix)
    assert driver.peak_bytes == predicted


def test_out_of_memory_leaves_nothing_of_the_plan_and_a_smaller_one_runs(engines: dict[str, Path]) -> None:
    image = picture(40, 80)
    large, small = plan_for(image, tile_px=64, batch=4), plan_for(image, tile_px=32)
    driver = SimulatedDriver(total_bytes=1_200_000)
    backend = open_backend(engines["fp16"], driver)
    with pytest.raises(OutOfMemoryError) as caught:
        upscale(backend, image, large)
    assert caught.value.asked_bytes is not None
    assert driver.used_bytes == image.nbytes
    assert np.array_equal(upscale(backend, image, small), reference(image, small))


# ---------------------------------------------------------------------------------------------------------
# NaN and infinity


def poisoned(stage: str, value: float, *, where: float = 0.5) -> dict[str, Function]:
    """Functions of which one gives `value` for a tile that holds a white pixel at the encoder's samples."""

    def enc(image: np.ndarray) -> np.ndarray:
        out = encode(image)
        hot = (image > 0.999).any(axis=(1, 2, 3))
        out[:, 3] = 0
        out[hot, 3] = 1
        if stage == "encoder":
            out[hot, 0, 0, 0] = value
        return out

    def one(noise_field: np.ndarray, z_l: np.ndarray) -> np.ndarray:
        out = step(noise_field, z_l)
        out[:, 3] = z_l[:, 3]
        if stage == "step":
            out[z_l[:, 3, 0, 0] == 1, 1, 0, 0] = value
        return out

    def dec(z_0: np.ndarray) -> np.ndarray:
        out = decode(z_0)
        if stage == "decoder":
            out[z_0[:, 3, 0, 0] == 1, 2, -1, -1] = value
        return out

    return {"encoder": enc, "step": one, "decoder": dec}


def spotted() -> np.ndarray:
    """A dim picture with one white patch inside the third tile of the second band."""
    image = (picture(40, 60) // 2).astype(np.uint8)
    image[20:22, 30:32] = 255
    return image


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("stage", "word"), [("encoder", "encode"), ("step", "step"), ("decoder", "decode")])
def test_a_number_that_is_not_finite_is_an_error_naming_stage_and_tile(
    engines: dict[str, Path], stage: str, word: str, value: float
) -> None:
    image = spotted()
    plan = plan_for(image, batch=2)
    driver = SimulatedDriver(random.Random(2).randrange)
    module = FakeTensorRT(driver, poisoned(stage, value))
    backend = open_backend(engines["fp16"], driver, module=module)
    with np.errstate(invalid="ignore", over="ignore"), pytest.raises(NumericError, match="--fp32") as caught:
        upscale(backend, image, plan)
    assert caught.value.stage == word
    hot = {
        i
        for i, (y, x) in enumerate((y, x) for y in plan.ys for x in plan.xs)
        if y <= 4 * 21 < y + plan.tile_h_px and x <= 4 * 31 < x + plan.tile_w_px
    }
    assert caught.value.tile == min(hot)
    clean = picture(40, 60) // 2
    assert np.isfinite(upscale(backend, clean, plan_for(clean))).all()  # the back end is still usable


def test_tiles_that_are_not_finite_are_run_again_in_fp32(
    engines: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    image = spotted()
    plan = plan_for(image, batch=2)
    for seed in range(4):
        driver = SimulatedDriver(random.Random(seed).randrange)
        good = poisoned("nowhere", 0.0)
        module = FakeTensorRT(driver, poisoned("step", np.nan), fp32_functions=good)
        backend = open_backend(engines["both"], driver, module=module, lanes=2)
        with caplog.at_level(logging.WARNING), np.errstate(invalid="ignore"):
            got = upscale(backend, image, plan)
        expected = reference(image, plan, functions=good)
        # The repaired tiles are computed in fp32 and added last: equal up to fp16 rounding.
        assert np.abs(got.astype(int) - expected.astype(int)).max() <= 1
        assert "running them again in fp32" in caplog.text


@pytest.mark.parametrize("fix", ["wavelet", "adain"])
def test_the_colour_fix_sees_the_repaired_tiles(engines: dict[str, Path], fix: str) -> None:
    image = spotted()
    plan = plan_for(image, batch=2)
    driver = SimulatedDriver(random.Random(1).randrange)
    good = poisoned("nowhere", 0.0)
    module = FakeTensorRT(driver, poisoned("step", np.nan), fp32_functions=good)
    backend = open_backend(engines["both"], driver, module=module)
    with np.errstate(invalid="ignore"):
        got = upscale(backend, image, plan, color_fix=fix)
    expected = reference(image, plan, functions=good, color_fix=fix)
    assert np.abs(got.astype(int) - expected.astype(int)).max() <= 1


def test_spoilt_rows_that_were_queued_ahead_begin_again_once_and_come_out_once(
    engines: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    image = np.concatenate([spotted(), spotted()])
    plan = plan_for(image, batch=2)
    good = poisoned("nowhere", 0.0)
    driver = SimulatedDriver(random.Random(5).randrange)
    module = FakeTensorRT(driver, poisoned("step", np.nan), fp32_functions=good)
    backend = open_backend(engines["both"], driver, module=module, graphs=False)
    told: list[tuple[int, int]] = []
    with caplog.at_level(logging.WARNING), np.errstate(invalid="ignore"):
        options: dict[str, Any] = {"plan": plan, "color_fix": "wavelet", "lend": True}
        blocks = [
            rows.copy()
            for rows in pipeline.upscale(image, backend, on_tiles=lambda *n: told.append(n), **options)
        ]
    got = np.concatenate(blocks)
    expected = reference(image, plan, functions=good, color_fix="wavelet")
    assert got.shape == expected.shape
    assert np.abs(got.astype(int) - expected.astype(int)).max() <= 1
    assert caplog.text.count("waiting for every row of tiles") == 1
    assert caplog.text.count("running them again in fp32") >= 2  # both patches
    assert driver.calls["encoder fp16"] <= len(list(batches(plan))) + 4 * plan.batches_per_band
    assert told[-1][0] == told[-1][1] <= plan.tiles


def test_the_tile_of_an_error_is_counted_from_the_top_of_the_picture(engines: dict[str, Path]) -> None:
    image = np.concatenate([picture(60, 60) // 2, spotted()]).astype(np.uint8)
    plan = plan_for(image)
    driver = SimulatedDriver(random.Random(5).randrange)
    backend = open_backend(engines["fp16"], driver, module=FakeTensorRT(driver, poisoned("step", np.nan)))
    blocks = pipeline.upscale(image, backend, plan=plan, color_fix="none")
    rows: list[int] = []
    with np.errstate(invalid="ignore"), pytest.raises(NumericError, match="--fp32") as caught:
        rows.extend(map(len, blocks))
    hot = next(y for y in plan.ys if y <= 4 * 81 < y + plan.tile_h_px)
    assert plan.ys.index(hot) > 1
    assert caught.value.tile // len(plan.xs) == plan.ys.index(hot)
    assert f"origin y {hot}," in str(caught.value)
    assert sum(rows) >= hot - plan.tile_h_px  # what was right has come out


def test_a_band_that_nobody_downloaded_is_not_repaired_in_the_wrong_place(engines: dict[str, Path]) -> None:
    image = spotted()
    plan = plan_for(image)
    driver = SimulatedDriver()
    module = FakeTensorRT(driver, poisoned("step", np.nan), fp32_functions=poisoned("nowhere", 0.0))
    backend = open_backend(engines["both"], driver, module=module)
    source, canvas = backend.upload(image), backend.canvas(plan)
    for batch in batches(plan):
        backend.blend(canvas, backend.run(source, plan, batch, 0, 0), plan, batch)
    top = plan.ys[-1]
    with np.errstate(invalid="ignore"), pytest.raises(NumericError, match="'step'"):
        backend.finish(source, canvas, plan, color_fix="none").push(top, top + 10)


def test_fp32_that_is_not_finite_either_is_an_error(engines: dict[str, Path]) -> None:
    image = spotted()
    driver = SimulatedDriver()
    backend = open_backend(engines["both"], driver, module=FakeTensorRT(driver, poisoned("decoder", np.nan)))
    with np.errstate(invalid="ignore"), pytest.raises(NumericError, match="fp32 engines give no finite"):
        upscale(backend, image, plan_for(image))


# ---------------------------------------------------------------------------------------------------------
# Refusals and life cycle


def test_a_tile_outside_every_profile_is_refused_with_the_shapes(engines: dict[str, Path]) -> None:
    driver = SimulatedDriver()
    backend = open_backend(engines["small"], driver)
    image = picture(40, 40)
    assert upscale(backend, image, plan_for(image, tile_px=64)).shape == (160, 160, 3)
    with pytest.raises(ProfileError, match=r"--max-shape") as caught:
        upscale(backend, image, plan_for(image, tile_px=96))
    assert "(1, 3, 96, 96)" in str(caught.value)
    assert "(2, 3, 64, 64)" in str(caught.value)


def test_a_stage_that_does_not_run_repeats_what_tensorrt_says(engines: dict[str, Path]) -> None:
    driver = SimulatedDriver()
    module = FakeTensorRT(driver)
    backend = open_backend(engines["fp16"], driver, module=module)
    module.refuse_to_run = True
    image = picture(20, 20)
    with pytest.raises(CudaError, match=r"encoder .* could not run: the fake was told to fail"):
        upscale(backend, image, plan_for(image))


def test_engines_whose_tensors_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    driver = SimulatedDriver()
    write_engines(tmp_path / "bf16", precisions=("bf16",), io_dtype={"bf16": "BF16"})
    with pytest.raises(ManifestError, match="BF16, expected FLOAT or HALF"):
        open_backend(tmp_path / "bf16", driver)


def test_calls_out_of_order_are_refused(engines: dict[str, Path]) -> None:
    driver = SimulatedDriver()
    backend = open_backend(engines["fp16"], driver)
    image = picture(16, 60)
    plan = plan_for(image)
    source, canvas = backend.upload(image), backend.canvas(plan)
    first, second = list(batches(plan))[:2]
    tiles = backend.run(source, plan, second, 0, 0)
    with pytest.raises(ConfigError, match="plan order"):
        backend.blend(canvas, tiles, plan, second)
    newer = backend.upload(image)
    with pytest.raises(InputError, match="replaced by a later upload"):
        backend.run(source, plan, first, 0, 0)
    backend.run(newer, plan, first, 0, 0)
    backend.canvas(plan)
    with pytest.raises(ClosedError, match="replaced by a later run"):
        backend.blend(canvas, tiles, plan, second)


def test_close_is_idempotent_and_use_after_it_raises(engines: dict[str, Path]) -> None:
    driver = SimulatedDriver(lambda n: 0, eagerness=0)
    backend = open_backend(engines["fp16"], driver)
    image = picture(16, 16)
    backend.upload(image)
    backend.canvas(plan_for(image))
    backend.close()  # with work on its way
    backend.close()
    assert driver.live == {"allocations": 0, "streams": 0, "events": 0, "graphs": 0}
    for call in (
        lambda: backend.upload(image),
        lambda: backend.canvas(plan_for(image)),
        lambda: backend.working_bytes(plan_for(image)),
    ):
        with pytest.raises(ClosedError, match="closed"):
            call()


def test_out_of_memory_for_the_colour_fix_leaves_nothing_of_the_plan(engines: dict[str, Path]) -> None:
    image = picture(60, 60)
    plan = plan_for(image)
    sizing = open_backend(engines["fp16"], SimulatedDriver())
    without, held = (sizing.working_bytes(plan, color_fix=fix).device for fix in ("none", "adain"))
    weights = sum(f.stat().st_size for f in engines["fp16"].glob("*.engine"))
    driver = SimulatedDriver(total_bytes=without - weights - CONTEXT_BYTES + 1000)
    assert held > without + 12 * plan.height_px * plan.width_px
    backend = open_backend(engines["fp16"], driver)
    with pytest.raises(OutOfMemoryError):
        upscale(backend, image, plan, color_fix="adain")
    assert driver.used_bytes == image.nbytes
    assert np.array_equal(upscale(backend, image, plan), reference(image, plan))


def test_an_unknown_colour_fix_and_a_replaced_picture_are_refused(engines: dict[str, Path]) -> None:
    backend = open_backend(engines["fp16"], SimulatedDriver())
    image = picture(16, 16)
    plan = plan_for(image)
    source, canvas = backend.upload(image), backend.canvas(plan)
    with pytest.raises(ConfigError, match="wavelet, adain, none, got 'sepia'"):
        backend.finish(source, canvas, plan, color_fix="sepia")
    finish = backend.finish(source, canvas, plan, color_fix="wavelet")
    backend.upload(image)
    with pytest.raises(InputError, match="replaced by a later upload"):
        backend.finish(source, canvas, plan, color_fix="wavelet")
    backend.canvas(plan)
    with pytest.raises(ClosedError, match="replaced by a later run"):
        finish.push(0, plan.height_px)


def test_lanes_must_be_positive(engines: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="lanes is 0"):
        open_backend(engines["fp16"], SimulatedDriver(), lanes=0)


@pytest.mark.parametrize("fix", ["none", "wavelet"])
@pytest.mark.parametrize("row", [0, 1, 63, 64, 200, 377, 399])
def test_a_run_from_a_row_on_gives_the_same_rows(engines: dict[str, Path], fix: str, row: int) -> None:
    image = picture(100, 30)
    plan = plan_for(image)
    driver = SimulatedDriver()
    backend = open_backend(engines["fp16"], driver)
    whole = upscale(backend, image, plan, color_fix=fix)
    rest = np.concatenate(list(pipeline.upscale(image, backend, plan=plan, color_fix=fix, first_row_px=row)))
    assert np.array_equal(rest, whole[row:])
    assert np.array_equal(upscale(backend, image, plan, color_fix=fix), whole)
