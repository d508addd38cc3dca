"""NVIDIA's bindings on a stand-in libcuda that was compiled with cuda.h; memory and graph owners."""

from __future__ import annotations

import ctypes
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from compiled import standin_libcuda
from simulated_device import SimulatedDriver

from yonos_trt.cuda.arrays import LEGACY_STREAM
from yonos_trt.cuda.device import Graphs, Memory, Results
from yonos_trt.cuda.driver import CudaDriver
from yonos_trt.cuda.probe import probe_driver
from yonos_trt.errors import (
    ClosedError,
    CudaError,
    EngineDeviceError,
    MissingExtraError,
    OutOfMemoryError,
)


@cache
def load_standin() -> Any:
    """Load the stand-in and let NVIDIA's bindings find it; skips where it cannot be compiled."""
    pytest.importorskip("cuda.pathfinder", reason="needs cuda-bindings (extra rtx)")
    if probe_driver().devices:
        pytest.skip("a GPU is here, and one process has one libcuda")
    library = standin_libcuda()
    loaded = ctypes.CDLL(str(library))
    loaded.path = str(library)
    for name in ("standin_stream_flags", "standin_event_flags"):
        getattr(loaded, name).argtypes = [ctypes.c_void_p]
    loaded.standin_order.restype = ctypes.c_char_p
    found = SimpleNamespace(abs_path=loaded.path, _handle_uint=loaded._handle, found_via="test")
    from cuda.bindings import driver

    with pytest.MonkeyPatch.context() as patch:  # whoever imported the function before, or will now
        for module in [m for n, m in sys.modules.items() if n.startswith("cuda.")]:
            if hasattr(module, "load_nvidia_dynamic_lib"):
                patch.setattr(module, "load_nvidia_dynamic_lib", lambda name: found)
        assert driver.cuDriverGetVersion()[1] == 13020
    return loaded


@pytest.fixture(scope="session")
def standin() -> Any:
    return load_standin()


@pytest.fixture
def driver(standin: Any) -> Iterator[CudaDriver]:
    before = standin.standin_live()
    driver = CudaDriver(1)
    with driver.current():
        yield driver
    assert standin.standin_contexts() == 0
    driver.close()
    driver.close()
    assert standin.standin_live() == before


# ---------------------------------------------------------------------------------------------------------
# No driver, no GPU


class NoDriver:
    """What the bindings do where there is no libcuda, or where it answers with an error."""

    def __init__(self, bindings: Any, problem: str = "") -> None:
        self._bindings, self._problem = bindings, problem

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bindings, name)

    def cuInit(self, flags: int) -> Any:
        if self._problem:
            raise RuntimeError(self._problem)
        return (self._bindings.CUresult.CUDA_ERROR_NO_DEVICE,)


def test_no_driver_and_no_device_are_errors_that_say_what_to_do(
    standin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cuda.bindings import driver as bindings

    missing = NoDriver(bindings, '"cuda" is an NVIDIA driver library')
    monkeypatch.setattr("yonos_trt.cuda.driver._bindings", lambda: missing)
    with pytest.raises(EngineDeviceError, match=r"no NVIDIA driver.*driver library.*runtime='onnx'"):
        CudaDriver()
    monkeypatch.setattr("yonos_trt.cuda.driver._bindings", lambda: NoDriver(bindings))
    with pytest.raises(EngineDeviceError, match=r"answers error 100 \(.*sees 0 GPUs.*runtime='onnx'"):
        CudaDriver()


def test_bindings_that_are_not_installed_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda.bindings", "cuda.bindings.driver"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"cuda\.bindings.*'\.\[rtx\]'"):
        CudaDriver()


def test_the_bindings_are_not_imported_before_they_are_used() -> None:
    code = (
        "import sys, yonos_trt.cuda.driver, yonos_trt.cuda.kernels\n"
        "from yonos_trt.cuda.probe import probe_driver; probe_driver()\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('cuda', 'torch', 'tensorrt', 'tensorrt_rtx')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, env=with_path()
    )
    assert done.stdout.strip() == "[]"


def with_path() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


# ---------------------------------------------------------------------------------------------------------
# Calls, checked by a library whose compiler has seen cuda.h


def test_a_device_that_does_not_exist_is_refused(standin: Any) -> None:
    for index in (2, -1):
        with pytest.raises(EngineDeviceError, match=r"has 2 GPU\(s\)"):
            CudaDriver(index)


def test_info(driver: CudaDriver) -> None:
    info = driver.info
    assert (info.index, info.name) == (1, "Stand-in 41")
    assert info.compute_capability == (8, 6)
    assert info.total_bytes == 1 << 30
    assert info.driver_version == (13, 2)


def test_bytes_travel_in_on_and_out(driver: CudaDriver) -> None:
    nbytes = 1000
    stream = driver.stream_create()
    a, b = driver.allocate(nbytes), driver.allocate(nbytes)
    host, back = driver.allocate_pinned(nbytes), driver.allocate_pinned(nbytes)
    data = np.random.default_rng(0).integers(0, 256, nbytes, np.uint8)
    driver.host_view(host, nbytes)[:] = data
    driver.copy_in(a, host, nbytes, stream)
    driver.copy(b, a, nbytes, stream)
    driver.fill(b + 10, 7, 5, stream)
    driver.copy_out(back, b, nbytes, stream)
    data[10:15] = 7
    assert np.array_equal(driver.host_view(back, nbytes), data)
    assert driver.memory() == ((1 << 30) - 2 * nbytes, 1 << 30)
    driver.free(a)
    driver.free(b)
    driver.free_pinned(host)
    driver.free_pinned(back)
    driver.stream_destroy(stream)


def test_rows_are_copied_between_pitches(driver: CudaDriver) -> None:
    stream, a, b = driver.stream_create(), driver.allocate(100), driver.allocate(100)
    host = driver.allocate_pinned(100)
    driver.host_view(host, 100)[:] = np.arange(100)
    driver.copy_in(a, host, 100, stream)
    driver.fill(b, 255, 100, stream)
    driver.copy_rows(b + 1, 9, a + 20, 7, 5, 3, stream)
    driver.copy_out(host, b, 100, stream)
    expected = np.full(100, 255)
    for y in range(3):
        expected[1 + 9 * y : 6 + 9 * y] = 20 + 7 * y + np.arange(5)
    assert np.array_equal(driver.host_view(host, 100), expected)
    driver.free(a)
    driver.free(b)
    driver.free_pinned(host)
    driver.stream_destroy(stream)


def test_a_shared_driver_stays_open_until_its_last_user_closes(standin: Any) -> None:
    before = standin.standin_live()
    driver = CudaDriver()
    other = driver.share()
    driver.close()
    with other.current():
        other.free(other.allocate(10))
    other.close()
    assert standin.standin_live() == before


def test_streams_do_not_touch_the_default_stream_and_events_sleep(driver: CudaDriver, standin: Any) -> None:
    stream, plain, timed = driver.stream_create(), driver.event_create(), driver.event_create(timing=True)
    end = driver.event_create(timing=True)
    assert standin.standin_stream_flags(stream) == 1  # CU_STREAM_NON_BLOCKING
    assert standin.standin_event_flags(plain) == 3  # blocking sync, no timing
    assert standin.standin_event_flags(timed) == 1
    for event in (plain, timed, end):
        driver.event_record(event, stream)
    driver.stream_wait(stream, plain)
    assert driver.event_query(plain)
    driver.event_synchronize(plain)
    assert driver.elapsed_ms(timed, end) == 1.5
    for event in (plain, timed, end):
        driver.event_destroy(event)
    with pytest.raises(CudaError, match="cuMemsetD8Async"):  # the default stream does not even exist
        driver.fill(1, 0, 1, 0)
    driver.stream_destroy(stream)


def test_an_event_that_is_not_ready_is_no_error_but_a_failed_kernel_is(
    driver: CudaDriver, standin: Any
) -> None:
    event = driver.event_create()
    standin.standin_fail_next(b"cuEventQuery", 600)
    assert not driver.event_query(event)
    standin.standin_fail_next(b"cuEventQuery", 700)
    with pytest.raises(CudaError, match="earlier device work failed: error 700"):
        driver.event_query(event)
    driver.event_destroy(event)


def test_a_graph_replays_what_was_captured(driver: CudaDriver) -> None:
    stream, memory, host = driver.stream_create(), driver.allocate(4), driver.allocate_pinned(4)
    driver.fill(memory, 1, 4, stream)
    driver.capture_begin(stream)
    driver.fill(memory, 9, 4, stream)
    graph = driver.capture_end(stream)
    driver.copy_out(host, memory, 4, stream)
    assert driver.host_view(host, 4).tolist() == [1, 1, 1, 1]
    driver.graph_launch(graph, stream)
    driver.copy_out(host, memory, 4, stream)
    assert driver.host_view(host, 4).tolist() == [9, 9, 9, 9]
    driver.graph_destroy(graph)
    driver.capture_begin(stream)
    driver.capture_abort(stream)
    driver.free(memory)
    driver.free_pinned(host)
    driver.stream_destroy(stream)


def test_a_graph_that_cannot_be_instantiated_leaves_nothing_behind(driver: CudaDriver, standin: Any) -> None:
    stream = driver.stream_create()
    before = standin.standin_live()
    driver.capture_begin(stream)
    standin.standin_fail_next(b"cuGraphInstantiate", 1)
    with pytest.raises(CudaError, match="cuGraphInstantiate"):
        driver.capture_end(stream)
    assert standin.standin_live() == before
    driver.stream_destroy(stream)


def test_out_of_memory_says_what_was_asked_for_and_what_was_free(driver: CudaDriver) -> None:
    held = driver.allocate(1 << 20)
    with pytest.raises(OutOfMemoryError, match="Stand-in 41 is out of memory") as caught:
        driver.allocate(1 << 30)
    assert caught.value.asked_bytes == 1 << 30
    assert caught.value.free_bytes == (1 << 30) - (1 << 20)
    assert "batch" in caught.value.hint
    with pytest.raises(OutOfMemoryError, match="page-locked"):
        driver.allocate_pinned(1 << 40)
    driver.free(held)


def test_other_failures_name_the_call_and_the_drivers_words(driver: CudaDriver, standin: Any) -> None:
    standin.standin_fail_next(b"cuStreamCreate", 1)
    with pytest.raises(CudaError, match=r"cuStreamCreate answered error 1 \(.*words of the stand-in"):
        driver.stream_create()
    standin.standin_fail_next(b"cuMemAlloc", 719)
    with pytest.raises(CudaError, match="719") as caught:
        driver.allocate(1)
    assert not isinstance(caught.value, OutOfMemoryError)
    standin.standin_fail_next(b"cuMemHostAlloc", 719)
    with pytest.raises(CudaError, match="cuMemHostAlloc"):
        driver.allocate_pinned(1)


def test_what_was_current_before_is_current_again(standin: Any) -> None:
    """A program with several GPUs goes on with its own: also from threads that had none, and after errors."""
    driver = CudaDriver()
    assert standin.standin_contexts() == 0
    with pytest.raises(CudaError, match="cuMemGetInfo"):
        driver.memory()
    standin.standin_push_foreign()
    with driver.current():
        assert driver.memory()[1] == 1 << 30
        with suppress(ZeroDivisionError), driver.current():
            raise ZeroDivisionError
        assert driver.memory()[1] == 1 << 30
    assert standin.standin_foreign_is_current()
    driver.close()
    assert standin.standin_foreign_is_current()
    assert standin.standin_contexts() == 1
    standin.standin_detach()


def test_a_closed_device_raises(standin: Any) -> None:
    driver = CudaDriver()
    driver.close()
    for enter in (driver.activate, driver.current().__enter__):
        with pytest.raises(ClosedError, match="closed"):
            enter()


# ---------------------------------------------------------------------------------------------------------
# Results


def test_results_come_from_a_pool_and_go_back_in_the_order_of_their_stream(standin: Any) -> None:
    before, calls = standin.standin_live(), standin.standin_calls
    names = (b"cuMemAlloc", b"cuMemFree", b"cuMemAllocFromPoolAsync", b"cuMemFreeAsync", b"cuMemPoolCreate")
    counted = [calls(name) for name in names]
    driver = CudaDriver()
    results = Results(driver)
    with driver.current():
        stream = driver.stream_create()
        first, second = results.allocate(100, stream), results.allocate(200, stream)
    driver.close()  # the results keep the device
    results.free(first, stream)
    assert standin.standin_contexts() == 0
    with driver.current():
        driver.capture_begin(stream)
        results.free(second, stream)  # a collector runs in the middle of a capture
        assert [calls(n) - c for n, c in zip(names, counted, strict=True)] == [0, 0, 2, 1, 1]
        driver.graph_destroy(driver.capture_end(stream))
        third = results.allocate(50, stream)
        assert [calls(n) - c for n, c in zip(names, counted, strict=True)] == [0, 0, 3, 2, 1]
        results.free(third, LEGACY_STREAM)
        driver.stream_destroy(stream)
    assert standin.standin_live() == before


def test_a_gpu_without_pools_allocates_as_before(standin: Any) -> None:
    standin.standin_pools(0)
    driver = CudaDriver()
    standin.standin_pools(1)
    results = Results(driver)
    count = standin.standin_calls(b"cuMemAlloc")
    with driver.current():
        results.free(results.allocate(100, LEGACY_STREAM), LEGACY_STREAM)
    assert standin.standin_calls(b"cuMemAlloc") == count + 1
    driver.close()


def test_a_pool_in_pieces_is_emptied_before_memory_has_run_out(driver: CudaDriver, standin: Any) -> None:
    stream = driver.stream_create()
    driver.free_ordered(driver.allocate_ordered(10, stream), stream)
    standin.standin_fail_next(b"cuMemAllocFromPoolAsync", 2)
    trimmed = standin.standin_calls(b"cuMemPoolTrimTo")
    driver.free_ordered(driver.allocate_ordered(10, stream), stream)
    assert standin.standin_calls(b"cuMemPoolTrimTo") == trimmed + 1
    with pytest.raises(OutOfMemoryError, match="Stand-in 41 is out of memory"):
        driver.allocate_ordered(1 << 31, stream)
    driver.stream_destroy(stream)


# ---------------------------------------------------------------------------------------------------------
# Owners


def test_memory_grows_reuses_and_frees_all() -> None:
    driver = SimulatedDriver()
    memory = Memory(driver)
    first = memory.device("tiles", 100)
    assert memory.device("tiles", 60) == first
    assert memory.device("tiles", 200) != first
    memory.device(("slot", 0), 10)
    memory.pinned("rows", 50)
    assert memory.device_bytes == driver.used_bytes == 210
    assert driver.live["allocations"] == 3
    memory.free_all()
    memory.free_all()
    assert (driver.used_bytes, driver.pinned_bytes, driver.live["allocations"]) == (0, 0, 0)


def test_memory_that_cannot_grow_keeps_its_books() -> None:
    driver = SimulatedDriver(total_bytes=1000)
    memory = Memory(driver)
    memory.device("a", 400)
    with pytest.raises(OutOfMemoryError):
        memory.device("a", 4000)
    assert memory.device_bytes == driver.used_bytes == 0
    memory.free_all()


class Counting:
    """An operation on a simulated device that counts how often it was asked for and how often it ran."""

    def __init__(self, driver: SimulatedDriver) -> None:
        self.driver, self.stream = driver, driver.stream_create()
        self.asked = self.ran = 0

    def __call__(self) -> None:
        self.asked += 1
        self.driver.enqueue("work", self.stream, self.run)

    def run(self) -> None:
        self.ran += 1


def finish(driver: SimulatedDriver, stream: int) -> None:
    event = driver.event_create()
    driver.event_record(event, stream)
    driver.event_synchronize(event)
    driver.event_destroy(event)


def test_graphs_run_once_capture_once_and_launch_from_then_on() -> None:
    driver = SimulatedDriver()
    graphs, work = Graphs(driver), Counting(driver)
    for _ in range(5):
        graphs.run("key", work.stream, work)
    finish(driver, work.stream)
    assert (work.asked, work.ran) == (2, 5)
    assert (driver.calls["capture_begin"], driver.calls["graph_launch"]) == (1, 4)
    graphs.run("another shape", work.stream, work)
    graphs.run("another shape", work.stream, work)
    assert driver.calls["capture_begin"] == 2
    graphs.clear()
    graphs.clear()
    assert driver.live["graphs"] == 0


@pytest.mark.parametrize("where", ["capture_begin", "capture_end", "enqueue"])
def test_a_failed_capture_falls_back_to_plain_calls(where: str, caplog: pytest.LogCaptureFixture) -> None:
    class Refuses(SimulatedDriver):
        def capture_end(self, stream: int) -> int:
            graph = super().capture_end(stream)
            if where == "capture_end":
                self.graph_destroy(graph)
                raise CudaError("operation not permitted when stream is capturing")
            return graph

        def capture_begin(self, stream: int) -> None:
            if where == "capture_begin":
                raise CudaError("capture is not supported")
            super().capture_begin(stream)

    driver = Refuses()
    work = Counting(driver)
    graphs = Graphs(driver)

    def enqueue() -> None:
        if where == "enqueue" and driver.capturing():
            raise CudaError("the engine cannot be captured")
        work()

    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            graphs.run("key", work.stream, enqueue)
    finish(driver, work.stream)
    assert work.ran == 4
    assert not graphs.enabled
    assert len(caplog.records) == 1
    assert "CUDA graphs are switched off" in caplog.text


def test_other_errors_inside_a_capture_end_it_and_come_out() -> None:
    driver = SimulatedDriver()
    stream = driver.stream_create()
    graphs = Graphs(driver)
    graphs.run("key", stream, lambda: None)

    def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        graphs.run("key", stream, broken)
    assert not driver.capturing()


def test_graphs_can_be_switched_off() -> None:
    driver = SimulatedDriver()
    work = Counting(driver)
    graphs = Graphs(driver, enabled=False)
    for _ in range(3):
        graphs.run("key", work.stream, work)
    assert work.asked == 3
    assert driver.calls["capture_begin"] == 0


@pytest.mark.gpu
def test_the_real_driver_copies_fills_and_replays() -> None:
    driver = CudaDriver()
    driver.activate()
    stream, event, memory = driver.stream_create(), driver.event_create(), driver.allocate(1 << 16)
    host = driver.allocate_pinned(1 << 16)
    driver.fill(memory, 1, 1 << 16, stream)
    driver.capture_begin(stream)
    driver.fill(memory + 5, 9, 3, stream)
    graph = driver.capture_end(stream)
    driver.graph_launch(graph, stream)
    driver.copy_out(host, memory, 1 << 16, stream)
    driver.event_record(event, stream)
    driver.event_synchronize(event)
    assert driver.host_view(host, 16).tolist() == [1, 1, 1, 1, 1, 9, 9, 9, *([1] * 8)]
    driver.graph_destroy(graph)
    driver.free(memory)
    driver.free_pinned(host)
    driver.event_destroy(event)
    driver.stream_destroy(stream)
    driver.close()
