"""Bounded look-ahead: order, bounds, errors, early close, no threads left behind."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yonos_trt.errors import ClosedError, ConfigError, InputError
from yonos_trt.prefetch import frame_index, prefetch, stream


def yonos_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("yonos")]


@pytest.fixture(autouse=True)
def no_leaked_threads() -> Iterator[None]:
    yield
    gc.collect()
    deadline = time.monotonic() + 5
    while yonos_threads() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert yonos_threads() == []


class Counted:
    """Source that knows how many items were taken and whether it was closed."""

    def __init__(self, count: int, fail_at: int | None = None) -> None:
        self.count, self.fail_at = count, fail_at
        self.taken = 0
        self.closed = 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        if self.taken == self.fail_at:
            raise InputError(f"source fails at {self.taken}")
        if self.taken >= self.count:
            raise StopIteration
        self.taken += 1
        return self.taken - 1

    def close(self) -> None:
        self.closed += 1


@settings(max_examples=60, deadline=None)
@given(count=st.integers(0, 40), in_flight=st.integers(1, 9))
def test_order_is_kept_and_look_ahead_is_bounded(count: int, in_flight: int) -> None:
    source = Counted(count)
    highest = 0
    results = []
    with stream(source, lambda i: i * 3, max_in_flight=in_flight) as out:
        for given_out, item in enumerate(out):
            highest = max(highest, source.taken - given_out)
            results.append(item)
    assert results == [i * 3 for i in range(count)]
    assert highest <= in_flight
    assert source.closed == 1


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 30), data=st.data())
def test_an_error_comes_in_its_place_with_its_index_and_type(count: int, data: st.DataObject) -> None:
    bad = data.draw(st.integers(0, count - 1))
    in_source = data.draw(st.booleans())
    in_flight = data.draw(st.integers(1, 6))

    def upscale(i: int) -> int:
        if i == bad:
            raise InputError("cannot")
        return i

    source = Counted(count, fail_at=bad if in_source else None)
    got: list[int] = []
    with stream(source, upscale, max_in_flight=in_flight) as out, pytest.raises(InputError) as caught:
        got.extend(out)
    assert got == list(range(bad))
    assert frame_index(caught.value) == bad
    assert caught.value.__notes__ == [f"at frame {bad}, counted from 0"]
    assert source.closed == 1


@settings(max_examples=40, deadline=None)
@given(count=st.integers(0, 20), read=st.integers(0, 20), in_flight=st.integers(1, 6))
def test_closing_early_stops_every_stage(count: int, read: int, in_flight: int) -> None:
    source = Counted(count)
    out = stream(source, lambda i: i, max_in_flight=in_flight)
    got = [next(out) for _ in range(min(read, count))]
    out.close()
    out.close()
    assert got == list(range(len(got)))
    assert yonos_threads() == []
    assert source.closed == 1
    assert source.taken <= len(got) + in_flight
    with pytest.raises(ClosedError, match="closed"):
        next(out)


def test_a_reader_that_is_dropped_stops_its_threads() -> None:
    for item in stream(Counted(1000), lambda i: i, max_in_flight=4):
        if item == 3:
            break
    # the fixture waits for the threads to end


def test_a_slow_reader_does_not_let_the_source_run_away() -> None:
    source = Counted(100)
    with stream(source, lambda i: i, max_in_flight=4) as out:
        next(out)
        time.sleep(0.05)
        assert source.taken <= 1 + 4


def test_stages_overlap_in_time() -> None:
    pause_s, count = 0.02, 12

    def read() -> Iterator[int]:
        for i in range(count):
            time.sleep(pause_s)
            yield i

    def upscale(i: int) -> int:
        time.sleep(pause_s)
        return i

    begin = time.perf_counter()
    with stream(read(), upscale, max_in_flight=4) as out:
        for _ in out:
            time.sleep(pause_s)
    wall_s = time.perf_counter() - begin
    assert wall_s < 2 * count * pause_s, f"three stages of {count * pause_s:.2f} s took {wall_s:.2f} s"


def test_items_are_let_go_once_given_out() -> None:
    """Constant memory: the stream keeps no reference to a frame it has handed over."""
    import weakref

    class Frame:
        pass

    alive: list[weakref.ref[Frame]] = []

    def upscale(_: int) -> Frame:
        frame = Frame()
        alive.append(weakref.ref(frame))
        return frame

    peak = 0
    with stream(range(50), upscale, max_in_flight=4) as out:
        for _frame in out:
            peak = max(peak, sum(ref() is not None for ref in alive))
    assert peak <= 4 + 2  # in flight, the reader's own, and the one being handed over


def test_one_stream_may_be_read_from_several_threads() -> None:
    got: list[int] = []
    lock = threading.Lock()
    with stream(range(200), lambda i: i, max_in_flight=4) as out:

        def read() -> None:
            for item in out:
                with lock:
                    got.append(item)

        readers = [threading.Thread(target=read) for _ in range(4)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
    assert sorted(got) == list(range(200))


def test_keyboard_interrupt_in_a_stage_reaches_the_reader() -> None:
    def upscale(_: int) -> int:
        raise KeyboardInterrupt

    with stream(range(3), upscale) as out, pytest.raises(KeyboardInterrupt):
        next(out)


@pytest.mark.parametrize("call", [lambda: prefetch([], ahead=0), lambda: stream([], str, max_in_flight=0)])
def test_a_bound_below_one_is_refused(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        call()


def test_a_function_cannot_end_the_stream_by_accident() -> None:
    def upscale(i: int) -> int:
        return next(iter([])) if i == 2 else i

    with stream(range(5), upscale) as out:
        assert [next(out), next(out)] == [0, 1]
        with pytest.raises(RuntimeError, match="StopIteration"):
            next(out)
