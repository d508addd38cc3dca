"""What this package asks of a GPU, and the owners of what it gets; knows nothing about CUDA.

`Driver` is the protocol, `yonos_trt.cuda.driver.CudaDriver` the real thing; the tests have a simulated one.
Addresses, streams, events and graphs are plain integers.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from yonos_trt.cuda.lanes import StreamDriver
from yonos_trt.errors import CudaError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """One GPU."""

    index: int
    name: str
    compute_capability: tuple[int, int]
    total_bytes: int
    driver_version: tuple[int, int]


class Driver(StreamDriver, Protocol):
    """Everything this package asks of a GPU. Copies and fills are queued on their stream and do not wait."""

    @property
    def info(self) -> DeviceInfo: ...

    def current(self) -> AbstractContextManager[None]:
        """Make the device current in the calling thread within a ``with`` block, then what was before.

        Other libraries keep their device: nothing of ours stays current where a caller goes on.
        """

    def activate(self) -> None:
        """Make the device current in the calling thread for good: for scripts that own their thread."""

    def share(self) -> Driver:
        """Return this driver for one more user, who closes it as well."""

    def close(self) -> None:
        """Let go of the device; the last of its users really does."""

    def memory(self) -> tuple[int, int]:
        """Free and total device bytes."""

    def device_of(self, address: int) -> int | None:
        """Index of the GPU whose memory this is; None where the driver does not know the address."""

    def allocate(self, nbytes: int) -> int: ...

    def free(self, address: int) -> None: ...

    def allocate_ordered(self, nbytes: int, stream: int) -> int:
        """Memory that work queued on `stream` from now on may use; waits for nothing."""

    def free_ordered(self, address: int, stream: int) -> None:
        """Give memory of `allocate_ordered` back behind the work that `stream` has; waits for nothing."""

    def is_capturing(self, stream: int) -> bool:
        """Whether `stream` takes no free now, because it or (for the default stream) another one captures."""

    def allocate_pinned(self, nbytes: int) -> int: ...

    def free_pinned(self, address: int) -> None: ...

    def host_view(self, address: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """Show pinned memory as an array that does not own it."""

    def copy_in(self, to: int, pinned: int, nbytes: int, stream: int) -> None: ...

    def copy_out(self, pinned: int, source: int, nbytes: int, stream: int) -> None: ...

    def copy(self, to: int, source: int, nbytes: int, stream: int) -> None: ...

    def copy_rows(
        self, to: int, to_pitch: int, source: int, source_pitch: int, row_bytes: int, rows: int, stream: int
    ) -> None:
        """Copy rows on the device whose starts are pitches apart."""

    def fill(self, to: int, value: int, nbytes: int, stream: int) -> None: ...

    def event_query(self, event: int) -> bool:
        """Whether the event's mark has been reached."""

    def capture_begin(self, stream: int) -> None:
        """Record what `stream` is given from now on instead of running it (this thread only)."""

    def capture_end(self, stream: int) -> int:
        """Stop recording and return an executable graph."""

    def capture_abort(self, stream: int) -> None:
        """Stop recording and forget it; also after an error inside the capture."""

    def graph_launch(self, graph: int, stream: int) -> None: ...

    def graph_destroy(self, graph: int) -> None: ...


class Memory:
    """The one owner of a backend's device and pinned memory: named buffers that grow and are freed together.

    Asking for a name again with at most the bytes it has returns the same address. A larger request frees
    the old buffer first, so the caller makes sure that nothing is in flight on it.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._device: dict[Hashable, tuple[int, int]] = {}
        self._pinned: dict[Hashable, tuple[int, int]] = {}
        self.moves = 0
        """How often memory that was handed out has been given back: what kept its addresses looks here."""

    @property
    def device_bytes(self) -> int:
        """Bytes held on the device."""
        return sum(size for _, size in self._device.values())

    def device(self, name: Hashable, nbytes: int) -> int:
        """Return the address of the device buffer `name`, at least `nbytes` long, contents undefined."""
        return self._get(self._device, self._driver.allocate, self._driver.free, name, nbytes)

    def pinned(self, name: Hashable, nbytes: int) -> int:
        """Return the address of the page-locked host buffer `name`, at least `nbytes` long."""
        return self._get(self._pinned, self._driver.allocate_pinned, self._driver.free_pinned, name, nbytes)

    def outgrown(self, name: Hashable, nbytes: int) -> bool:
        """Tell whether the page-locked buffer `name` is there and shorter, so that `pinned` would free it."""
        return 0 < self._pinned.get(name, (0, 0))[1] < nbytes

    def _get(
        self,
        held: dict[Hashable, tuple[int, int]],
        allocate: Callable[[int], int],
        free: Callable[[int], None],
        name: Hashable,
        nbytes: int,
    ) -> int:
        address, size = held.get(name, (0, 0))
        if size >= nbytes > 0:
            return address
        if size:
            del held[name]
            self.moves += 1
            free(address)
        address = allocate(max(nbytes, 1))
        held[name] = (address, max(nbytes, 1))
        return address

    def free_device(self) -> None:
        """Give the device buffers back; the driver waits for work that still uses them. Idempotent."""
        self.moves += bool(self._device)
        while self._device:
            self._driver.free(self._device.popitem()[1][0])

    def free_all(self) -> None:
        """Give everything back, as `free_device`. Idempotent."""
        self.free_device()
        while self._pinned:
            self._driver.free_pinned(self._pinned.popitem()[1][0])


class Results:
    """Device memory of results, which outlive their picture: taken and given back in the order of streams.

    Neither waits for the device, as cuMemAlloc and cuMemFree do. What is given back while its stream captures
    a graph (a garbage collector asks nobody) goes with the next call instead of into the graph.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._waiting: list[tuple[int, int]] = []
        self._lock = threading.RLock()  # a collector may call `free` inside `free`

    def allocate(self, nbytes: int, stream: int) -> int:
        """Return memory that work queued on `stream` from now on may use; keeps the driver open."""
        self._driver.share()
        try:
            with self._driver.current():
                freed = self._free_waiting()
                address = self._driver.allocate_ordered(nbytes, stream)
            self._let_go(freed)
            return address
        except BaseException:
            self._driver.close()
            raise

    def free(self, address: int, stream: int) -> None:
        """Give memory back behind the work that `stream` has; from any thread, whatever its device."""
        with self._lock:
            self._waiting.append((address, stream))
        with self._driver.current():
            freed = self._free_waiting()
        self._let_go(freed)

    def _let_go(self, count: int) -> None:
        for _ in range(count):
            self._driver.close()

    def _free_waiting(self) -> int:
        freed = 0
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for address, stream in waiting:
            if self._driver.is_capturing(stream):
                with self._lock:
                    self._waiting.append((address, stream))
            else:
                self._driver.free_ordered(address, stream)
                freed += 1
        return freed


class Graphs:
    """CUDA graphs by key: run once as it is, captured the second time, launched from then on.

    The first run lets libraries do their lazy set-up, which a capture would refuse. Whatever a graph bakes in
    (addresses, shapes, scalars) belongs into its key. If a capture fails, that is logged once and everything
    runs without graphs from then on.
    """

    def __init__(self, driver: Driver, *, enabled: bool = True) -> None:
        self._driver = driver
        self._graphs: dict[Hashable, int | None] = {}
        self.enabled = enabled

    def __len__(self) -> int:
        return len(self._graphs)

    def run(self, key: Hashable, stream: int, enqueue: Callable[[], None]) -> None:
        """Do what `enqueue` asks of `stream`, which must be all it does, by graph where possible."""
        if not self.enabled:
            enqueue()
            return
        if key not in self._graphs:
            enqueue()
            self._graphs[key] = None
            return
        graph = self._graphs[key]
        if graph is None:
            graph = self._graphs[key] = self._capture(stream, enqueue)
        if graph is None:
            enqueue()
        else:
            self._driver.graph_launch(graph, stream)

    def _capture(self, stream: int, enqueue: Callable[[], None]) -> int | None:
        try:
            self._driver.capture_begin(stream)
        except CudaError as error:
            self._give_up(error)
            return None
        try:
            enqueue()
        except BaseException as error:
            self._driver.capture_abort(stream)
            if not isinstance(error, CudaError):
                raise
            self._give_up(error)
            return None
        try:
            return self._driver.capture_end(stream)
        except CudaError as error:
            self._give_up(error)
            return None

    def _give_up(self, error: Exception) -> None:
        _log.warning("CUDA graphs are switched off, the capture failed: %s", error)
        self.enabled = False

    def clear(self) -> None:
        """Destroy all graphs; nothing may be running from them. Idempotent."""
        while self._graphs:
            graph = self._graphs.popitem()[1]
            if graph is not None:
                self._driver.graph_destroy(graph)
