"""The lane scheduler on a simulated device: all interleavings give one picture, every missing event shows."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_device import DeviceFault, Race, SimulatedDriver, ThreadedDriver

from yonos_trt.cuda.lanes import EDGES, LaneScheduler, PictureOrder, Slot
from yonos_trt.errors import ClosedError, ConfigError

# A toy data path with the shape of the real one. A picture has WIDTH cells; batch k reads two of them, works
# in lane memory, leaves TILE cells in a slot; the blend acc = acc * 31 + tile does not commute, and
# neighbouring tiles overlap, so a wrong order of anything gives other numbers.
WIDTH, TILE = 16, 4
CELL = 4


def expected(picture: np.ndarray, batches: int) -> np.ndarray:
    canvas = np.zeros(WIDTH, np.uint32)
    for k in range(batches):
        at = position(k)
        tile = picture[at : at + TILE] * np.uint32(7) + np.uint32(k)
        canvas[at : at + TILE] = canvas[at : at + TILE] * np.uint32(31) + tile
    return canvas


def position(k: int) -> int:
    return (3 * k) % (WIDTH - TILE + 1)


class ToyBackend:
    """Memory and kernels of the toy data path; all order comes from the scheduler."""

    def __init__(self, driver: SimulatedDriver, scheduler: LaneScheduler) -> None:
        self.driver, self.scheduler = driver, scheduler
        self.staging = driver.allocate_pinned(WIDTH * CELL)
        self.source = driver.allocate(WIDTH * CELL)
        self.canvas = driver.allocate(WIDTH * CELL)
        self.rows = driver.allocate_pinned(WIDTH * CELL)
        self.work = [driver.allocate(TILE * CELL) for _ in range(scheduler.lanes)]
        self.outputs: dict[tuple[int, int], int] = {}
        self.picture = scheduler.picture()

    def upload(self, cells: np.ndarray, staging: int | None = None, after: int | None = None) -> None:
        staging = self.staging if staging is None else staging
        self.driver.host_view(staging, WIDTH * CELL).view(np.uint32)[:] = cells
        with self.scheduler.uploading(self.picture, after=after) as stream:
            self.driver.copy_in(self.source, staging, WIDTH * CELL, stream)

    def clear(self) -> None:
        self.driver.fill(self.canvas, 0, WIDTH * CELL, self.scheduler.canvas_stream)

    def run(self, k: int, lane: int, *, fail: bool = False) -> Slot:
        driver, work, nbytes = self.driver, self.work[lane], TILE * CELL
        with self.scheduler.batch(lane, self.picture) as (stream, slot):
            output = self.outputs.setdefault((lane, slot.index), 0) or driver.allocate(nbytes)
            self.outputs[lane, slot.index] = output
            source = self.source + position(k) * CELL

            def gather() -> None:
                driver.bytes_at(work, nbytes)[:] = driver.bytes_at(source, nbytes)

            def network() -> None:
                tile = driver.array_at(work, (TILE,), np.uint32)
                driver.array_at(output, (TILE,), np.uint32)[:] = tile * np.uint32(7) + np.uint32(k)

            driver.enqueue("gather", stream, gather, reads=[(source, nbytes)], writes=[(work, nbytes)])
            if fail:
                raise RuntimeError("the network could not be enqueued")
            driver.enqueue("network", stream, network, reads=[(work, nbytes)], writes=[(output, nbytes)])
            return slot

    def blend(self, k: int, slot: Slot) -> None:
        driver, output, nbytes = self.driver, self.outputs[slot.lane, slot.index], TILE * CELL
        target = self.canvas + position(k) * CELL

        def add() -> None:
            canvas = driver.array_at(target, (TILE,), np.uint32)
            canvas[:] = canvas * np.uint32(31) + driver.array_at(output, (TILE,), np.uint32)

        with self.scheduler.blending(slot) as stream:
            driver.enqueue(
                "blend", stream, add, reads=[(output, nbytes), (target, nbytes)], writes=[(target, nbytes)]
            )

    def finish(self) -> None:
        """Mix the picture into the canvas, as the colour fix does."""
        driver, nbytes = self.driver, WIDTH * CELL
        source, target = self.source, self.canvas

        def mix() -> None:
            canvas = driver.array_at(target, (WIDTH,), np.uint32)
            canvas[:] = canvas * np.uint32(3) + driver.array_at(source, (WIDTH,), np.uint32)

        with self.scheduler.finishing(self.picture) as stream:
            reads = [(source, nbytes), (target, nbytes)]
            driver.enqueue("finish", stream, mix, reads=reads, writes=[(target, nbytes)])

    def download(self) -> np.ndarray:
        with self.scheduler.downloading() as stream:
            self.driver.copy_out(self.rows, self.canvas, WIDTH * CELL, stream)
        return self.driver.host_view(self.rows, WIDTH * CELL).view(np.uint32).copy()

    def close(self) -> None:
        self.scheduler.drain()
        self.scheduler.close()
        for address in (self.source, self.canvas, *self.work, *self.outputs.values()):
            self.driver.free(address)
        for address in (self.staging, self.rows):
            self.driver.free_pinned(address)


def pictures(count: int) -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, 2**32, WIDTH, np.uint32) for i in range(count)]


def play(
    driver: SimulatedDriver,
    *,
    lanes: int,
    batches: int,
    slots: int = 2,
    ahead: int = 0,
    count: int = 3,
    given_up: bool = True,
    colored: bool = True,
    scheduler_class: type[LaneScheduler] = LaneScheduler,
) -> list[np.ndarray]:
    """Run pictures one after another, each uploaded before the one before is downloaded.

    `given_up` begins with a picture that is never blended or waited for; `colored` lets the canvas stream
    read each picture after its last blend.
    """
    toy = ToyBackend(driver, scheduler_class(driver, lanes, slots=slots))
    staging = [driver.allocate_pinned(WIDTH * CELL) for _ in range(3)]
    todo = pictures(count)
    if given_up:
        toy.upload(np.full(WIDTH, 0xDEAD, np.uint32), staging[2])
        for k in range(lanes):
            toy.run(k, k)
        toy.scheduler.abandon()
    results = []
    toy.upload(todo[0], staging[0])
    for index in range(count):
        toy.clear()
        waiting: list[tuple[int, Slot]] = []
        for k in range(batches):
            waiting.append((k, toy.run(k, k % lanes)))
            while len(waiting) > ahead:
                toy.blend(*waiting.pop(0))
        for item in waiting:
            toy.blend(*item)
        if colored:
            toy.finish()
        if index + 1 < count:
            toy.upload(todo[index + 1], staging[(index + 1) % 2])
        results.append(toy.download())
    toy.scheduler.drain()
    for address in staging:
        driver.free_pinned(address)
    toy.close()
    return results


def correct(results: list[np.ndarray], batches: int, *, colored: bool = True) -> bool:
    return all(
        np.array_equal(
            got, expected(cells, batches) * np.uint32(3) + cells if colored else expected(cells, batches)
        )
        for got, cells in zip(results, pictures(len(results)), strict=True)
    )


@settings(max_examples=150, deadline=None)
@given(
    lanes=st.integers(1, 4),
    slots=st.integers(1, 2),
    batches=st.integers(1, 9),
    ahead=st.integers(0, 6),
    eagerness=st.integers(0, 6),
    colored=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_every_interleaving_gives_the_bit_identical_picture_without_races(
    lanes: int, slots: int, batches: int, ahead: int, eagerness: int, colored: bool, order: random.Random
) -> None:
    driver = SimulatedDriver(order.randrange, eagerness=eagerness)
    results = play(driver, lanes=lanes, batches=batches, slots=slots, ahead=ahead, colored=colored)
    assert correct(results, batches, colored=colored)
    assert driver.live == {"allocations": 0, "streams": 0, "events": 0, "graphs": 0}


def test_only_download_makes_the_host_wait() -> None:
    driver = SimulatedDriver(lambda n: 0, eagerness=0)  # nothing runs unless someone waits
    toy = ToyBackend(driver, LaneScheduler(driver, 3))
    toy.upload(pictures(1)[0])
    toy.clear()
    for k in range(9):
        toy.blend(k, toy.run(k, k % 3))
    assert driver.calls["event_synchronize"] == 0
    assert not driver.idle()
    assert np.array_equal(toy.download(), expected(pictures(1)[0], 9))
    assert driver.calls["event_synchronize"] == 1
    toy.close()


@pytest.mark.parametrize("seed", range(4))
def test_streams_as_threads_with_random_delays_give_the_same_picture(seed: int) -> None:
    driver = ThreadedDriver(seed)
    toy = ToyBackend(driver, LaneScheduler(driver, 3))
    for cells in pictures(2):
        toy.upload(cells)
        toy.clear()
        for k in range(9):
            toy.blend(k, toy.run(k, k % 3))
        assert np.array_equal(toy.download(), expected(cells, 9))
    toy.close()


@pytest.mark.parametrize("seed", range(4))
def test_lanes_driven_by_one_host_thread_each_give_the_same_picture(seed: int) -> None:
    driver = SimulatedDriver(random.Random(seed).randrange, eagerness=3)
    lanes, batches, cells = 3, 12, pictures(1)[0]
    toy = ToyBackend(driver, LaneScheduler(driver, lanes))
    toy.upload(cells)
    toy.clear()
    results: dict[int, Slot] = {}
    arrived = threading.Condition()

    def work(lane: int) -> None:
        for k in range(lane, batches, lanes):
            slot = toy.run(k, lane)
            with arrived:
                results[k] = slot
                arrived.notify_all()

    threads = [threading.Thread(target=work, args=(lane,)) for lane in range(lanes)]
    for thread in threads:
        thread.start()
    for k in range(batches):
        with arrived:
            assert arrived.wait_for(lambda k=k: k in results, timeout=30)
        toy.blend(k, results[k])
    for thread in threads:
        thread.join()
    assert np.array_equal(toy.download(), expected(cells, batches))
    toy.close()


# ---------------------------------------------------------------------------------------------------------
# Mutations: a scheduler that lacks one of its events must be caught


def without(edge: str) -> type[LaneScheduler]:
    class Mutant(LaneScheduler):
        def _order(self, name: str, stream: int, event: int) -> None:
            if name != edge:
                super()._order(name, stream, event)

    return Mutant


class BlendsOnLaneStreams(LaneScheduler):
    """Adds each slot on its own lane's stream, as if the order of the calls were enough."""

    @contextmanager
    def blending(self, slot: Slot) -> Iterator[int]:
        with super().blending(slot):
            yield self.lane_stream(slot.lane)


class DownloadDoesNotWait(LaneScheduler):
    @contextmanager
    def downloading(self) -> Iterator[int]:
        yield self.canvas_stream


MUTANTS = {
    **{edge: without(edge) for edge in EDGES if "caller" not in edge},
    "blends on lane streams": BlendsOnLaneStreams,
    "download does not wait": DownloadDoesNotWait,
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_missing_event_is_a_race_in_every_interleaving(name: str) -> None:
    for seed in range(20):
        driver = SimulatedDriver(random.Random(seed).randrange)
        with pytest.raises(Race):
            play(driver, lanes=2, batches=6, slots=1, scheduler_class=MUTANTS[name])


@pytest.mark.parametrize("name", MUTANTS)
def test_a_missing_event_gives_a_wrong_picture_in_some_interleaving(name: str) -> None:
    def wrong(seed: int) -> bool:
        driver = SimulatedDriver(random.Random(seed).randrange, eagerness=seed % 4, detect_races=False)
        colored = (
            seed % 8 < 4
        )  # a colour fix comes after all gathers and so hides that their order is missing
        results = play(driver, lanes=2, batches=6, slots=1, colored=colored, scheduler_class=MUTANTS[name])
        return not correct(results, 6, colored=colored)

    assert any(wrong(seed) for seed in range(300))


class BlendsInsideBatches(ToyBackend):
    """A batch and its blend as one unit of work on the lane, as they would be in one CUDA graph.

    The blends are kept in plan order by an event from each to the next. That alone is correct.
    """

    def __init__(self, driver: SimulatedDriver, scheduler: LaneScheduler) -> None:
        super().__init__(driver, scheduler)
        self.blended = driver.event_create()

    def run(self, k: int, lane: int, *, fail: bool = False) -> Slot:
        slot = super().run(k, lane, fail=fail)
        stream, canvas = self.scheduler.lane_stream(lane), self.scheduler.canvas_stream
        self.driver.stream_wait(stream, self.blended)
        super().blend(k, slot)  # on `stream`, see BlendsOnLaneStreams
        self.driver.event_record(self.blended, stream)
        self.driver.stream_wait(canvas, self.blended)
        return slot

    def blend(self, k: int, slot: Slot) -> None:
        """Nothing is left to do."""


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("ahead", [0, 2])
def test_a_batch_may_be_queued_before_earlier_rows_are_finished_only_if_its_blend_is_not_part_of_it(
    inside: bool, ahead: int
) -> None:
    """Why the blend is not captured into the batch's graph: lanes queue it before its place in the order."""
    cells = pictures(1)[0]
    for seed in range(20):
        driver = SimulatedDriver(random.Random(seed).randrange)
        kind, order = (BlendsInsideBatches, BlendsOnLaneStreams) if inside else (ToyBackend, LaneScheduler)
        toy = kind(driver, order(driver, 2))
        toy.upload(cells)
        toy.clear()
        if inside:  # the first blend comes after the canvas was cleared
            driver.event_record(toy.blended, toy.scheduler.canvas_stream)  # type: ignore[attr-defined]
        slots = [toy.run(k, k % 2) for k in range(2 + ahead)]  # a lane's thread does not know about rows
        for k in range(2):
            toy.blend(k, slots[k])
        first_rows = toy.download()
        for k in range(2, 2 + ahead):
            toy.blend(k, slots[k])
        assert np.array_equal(toy.download(), expected(cells, 2 + ahead))
        assert np.array_equal(first_rows, expected(cells, 2)) == (not inside or ahead == 0)
        toy.close()


@pytest.mark.parametrize("mutant", [None, "caller->upload", "canvas->caller"])
def test_the_callers_stream_is_ordered_before_and_after(mutant: str | None) -> None:
    """The caller fills device memory on his stream, we read it, he reads the canvas: no host in between."""

    def run() -> np.ndarray:
        driver = SimulatedDriver(lambda n: n - 1, eagerness=0)
        caller = driver.make_caller_stream()
        toy = ToyBackend(driver, (LaneScheduler if mutant is None else without(mutant))(driver, 2))
        theirs, mine = driver.allocate(WIDTH * CELL), driver.allocate_pinned(WIDTH * CELL)
        cells, nbytes = pictures(1)[0], WIDTH * CELL
        driver.host_view(mine, nbytes).view(np.uint32)[:] = cells
        driver.copy_in(theirs, mine, nbytes, caller)
        with toy.scheduler.uploading(toy.picture, after=caller) as stream:
            driver.copy(toy.source, theirs, nbytes, stream)
        toy.clear()
        for k in range(6):
            toy.blend(k, toy.run(k, k % 2))
        with toy.scheduler.handing_over(caller):
            pass
        driver.copy(theirs, toy.canvas, nbytes, caller)
        assert driver.calls["event_synchronize"] == 0
        result = driver.allocate_pinned(nbytes)
        driver.copy_out(result, theirs, nbytes, caller)
        done = driver.event_create()
        driver.event_record(done, caller)
        driver.event_synchronize(done)
        return driver.host_view(result, nbytes).view(np.uint32).copy()

    if mutant is None:
        assert np.array_equal(run(), expected(pictures(1)[0], 6))
    else:
        with pytest.raises(Race):
            run()


# ---------------------------------------------------------------------------------------------------------
# Slots, errors, life cycle


def test_a_caller_ahead_of_the_blends_gets_one_more_slot_instead_of_waiting() -> None:
    driver = SimulatedDriver()
    toy = ToyBackend(driver, LaneScheduler(driver, 1, slots=1))
    toy.upload(pictures(1)[0])
    toy.clear()
    slots = [toy.run(k, 0) for k in range(4)]
    assert [slot.index for slot in slots] == [0, 1, 2, 3]
    for k, slot in enumerate(slots):
        toy.blend(k, slot)
    assert np.array_equal(toy.download(), expected(pictures(1)[0], 4))
    assert toy.run(0, 0).index == 0
    assert len(toy.scheduler.slots(0)) == 4
    toy.close()


def test_slots_take_turns_whether_or_not_the_last_batch_was_blended() -> None:
    driver = SimulatedDriver()
    scheduler = LaneScheduler(driver, 1, slots=2)
    picture = scheduler.picture()

    def run(turn: int) -> Slot:
        with scheduler.batch(0, picture, turn=turn) as (_, slot):
            return slot

    for turn in range(4):
        slot = run(turn)
        assert slot.index == turn % 2
        with scheduler.blending(slot):
            pass
    first = run(5)
    assert (first.index, run(7).index) == (1, 0)  # its slot is taken: the other
    assert run(9).index == 2
    with scheduler.blending(first):
        pass
    assert run(11).index == 1
    scheduler.drain()
    scheduler.close()


def test_a_batch_that_raises_frees_its_slot_and_does_not_disturb_the_next() -> None:
    driver = SimulatedDriver(lambda n: n - 1)
    toy = ToyBackend(driver, LaneScheduler(driver, 2, slots=1))
    spare = driver.allocate_pinned(WIDTH * CELL)
    toy.upload(pictures(2)[0])
    toy.clear()
    with pytest.raises(RuntimeError, match="could not be enqueued"):
        toy.run(0, 0, fail=True)
    toy.upload(pictures(2)[1], spare)  # ordered after the gather of the failed batch
    for k in range(4):
        toy.blend(k, toy.run(k, k % 2))
    assert np.array_equal(toy.download(), expected(pictures(2)[1], 4))
    assert len(toy.scheduler.slots(0)) == 1
    driver.free_pinned(spare)
    toy.close()


def test_use_after_close_raises_and_close_is_idempotent() -> None:
    driver = SimulatedDriver()
    scheduler = LaneScheduler(driver, 2)
    picture: PictureOrder = scheduler.picture()
    slot = scheduler.slots(0)[0]
    scheduler.close()
    scheduler.close()
    assert driver.live["streams"] == driver.live["events"] == 0
    for call in (
        scheduler.uploading(picture),
        scheduler.batch(0, picture),
        scheduler.blending(slot),
        scheduler.finishing(picture),
        scheduler.downloading(),
        scheduler.handing_over(99),
    ):
        with pytest.raises(ClosedError, match="closed"), call:
            pass


def test_streams_made_before_a_failure_are_given_back() -> None:
    class Short(SimulatedDriver):
        def event_create(self, *, timing: bool = False) -> int:
            if self.live["events"] == 5:
                raise RuntimeError("no more events")
            return super().event_create(timing=timing)

    driver = Short()
    with pytest.raises(RuntimeError, match="no more events"):
        LaneScheduler(driver, 3)
    assert driver.live["streams"] == driver.live["events"] == 0


@pytest.mark.parametrize(("lanes", "slots"), [(0, 1), (1, 0), (-1, 2)])
def test_lanes_and_slots_must_be_positive(lanes: int, slots: int) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        LaneScheduler(SimulatedDriver(), lanes, slots=slots)


# ---------------------------------------------------------------------------------------------------------
# The simulated device itself: the proof is only as good as its judge


def test_the_simulation_finds_a_race_and_accepts_an_order() -> None:
    driver = SimulatedDriver()
    a, b = driver.stream_create(), driver.stream_create()
    memory, event = driver.allocate(64), driver.event_create()
    driver.fill(memory, 1, 64, a)
    with pytest.raises(Race):
        driver.fill(memory + 63, 2, 1, b)
    driver.event_record(event, a)
    driver.stream_wait(b, event)
    driver.fill(memory, 2, 64, b)


@pytest.mark.parametrize(
    ("name", "match"),
    [("outside", "outside its allocation"), ("freed", "freed memory"), ("default", "default stream")],
)
def test_the_simulation_finds_faults(name: str, match: str) -> None:
    driver = SimulatedDriver()
    stream, memory = driver.stream_create(), driver.allocate(64)
    if name == "freed":
        driver.free(memory)
    with pytest.raises(DeviceFault, match=match):
        driver.fill(memory + (name == "outside"), 0, 64, 0 if name == "default" else stream)


def test_the_simulation_runs_nothing_before_it_must() -> None:
    driver = SimulatedDriver(lambda n: 0, eagerness=0)
    stream, memory, event = driver.stream_create(), driver.allocate(8), driver.event_create()
    driver.fill(memory, 7, 8, stream)
    driver.event_record(event, stream)
    assert not driver.event_query(event)
    assert driver.bytes_at(memory, 8)[0] == 0xA5
    driver.event_synchronize(event)
    assert driver.bytes_at(memory, 8)[0] == 7
