"""A device on the host whose streams run late and in any order that the events allow.

`SimulatedDriver` has the calls of `yonos_trt.cuda.device.Driver`. Work that is asked for goes into queues;
memory changes only when a queue's head is executed, and ``choose`` decides which queue that is: a test hands
in a random or a hypothesis-drawn choice and so walks through the interleavings.

Independently of the interleaving, vector clocks check every access: two operations on the same bytes, one of
them a write, that no chain of events orders are a `Race`, even if they happened to run in a harmless order.
Accesses outside an allocation, to freed memory, waits inside a capture and leaks are errors as well.
"""

from __future__ import annotations

import random
import threading
import time
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from yonos_trt.cuda.arrays import LEGACY_STREAM
from yonos_trt.cuda.device import DeviceInfo
from yonos_trt.errors import OutOfMemoryError

Span = tuple[int, int]
"""Address and number of bytes."""


class DeviceFault(AssertionError):
    """The device was used in a way that a real one answers with an error or with garbage."""


class Race(DeviceFault):
    """Two operations on the same bytes are not ordered by events."""


@dataclass
class Op:
    name: str
    stream: int
    run: Callable[[], None]
    reads: tuple[Span, ...]
    writes: tuple[Span, ...]


@dataclass
class _Record:
    event: int
    mark: int


@dataclass
class _Wait:
    event: int
    mark: int


@dataclass
class _Access:
    start: int
    end: int
    actor: int
    time: int
    write: bool
    name: str


@dataclass
class _Allocation:
    data: npt.NDArray[np.uint8]
    pinned: bool
    alive: bool = True
    accesses: list[_Access] = field(default_factory=list)


HOST = 0
_ALIGN = 512


class SimulatedDriver:
    """See the module's text.

    Parameters
    ----------
    choose
        ``choose(n)`` returns a number below ``n``: which of the runnable streams goes next.
    eagerness
        How many queued operations run, at most, between two calls of the host (drawn by ``choose``).
    total_bytes
        Device memory; more is answered with `OutOfMemoryError`.
    detect_races
        False leaves only the picture to tell that an order is missing.
    """

    def __init__(
        self,
        choose: Callable[[int], int] | None = None,
        *,
        eagerness: int = 2,
        total_bytes: int = 1 << 34,
        detect_races: bool = True,
    ) -> None:
        self.choose = choose or random.Random(0).randrange
        self.eagerness = eagerness
        self.total_bytes = total_bytes
        self.detect_races = detect_races
        self.calls: Counter[str] = Counter()
        self.log: list[str] = []
        """Names of the calls, in their order."""
        self.used_bytes = 0
        self.peak_bytes = 0
        self.foreign: dict[int, int] = {}  # address -> another GPU that it is said to belong to
        self.pinned_bytes = 0
        self.bytes_out = 0
        self.lock = threading.RLock()
        self._next = 1
        self._next_address = 1 << 20
        self._bases: list[int] = []
        self._allocations: dict[int, _Allocation] = {}
        self._queues: dict[int, deque[Op | _Record | _Wait]] = {}
        self._clocks: dict[int, Counter[int]] = {HOST: Counter()}
        self._asked: dict[int, int] = {}
        self._reached: dict[int, int] = {}
        self._event_clocks: dict[int, Counter[int]] = {}
        self._captures: dict[int, tuple[int, list[Op]]] = {}
        self._graphs: dict[int, list[Op]] = {}

    # --- what tests look at -------------------------------------------------------------------------------

    @property
    def live(self) -> dict[str, int]:
        """Counts of what has been made and not given back."""
        return {
            "allocations": sum(a.alive for a in self._allocations.values()),
            "streams": len(self._queues),
            "events": len(self._asked),
            "graphs": len(self._graphs),
        }

    def idle(self) -> bool:
        return not any(self._queues.values())

    def make_caller_stream(self) -> int:
        """A stream that belongs to someone else."""
        return self.stream_create()

    # --- execution ----------------------------------------------------------------------------------------

    def _runnable(self) -> list[int]:
        def ready(item: Op | _Record | _Wait) -> bool:
            return not isinstance(item, _Wait) or self._reached.get(item.event, 0) >= item.mark

        return [stream for stream, queue in self._queues.items() if queue and ready(queue[0])]

    def _step(self) -> bool:
        streams = self._runnable()
        if not streams:
            return False
        item = self._queues[streams[self.choose(len(streams))]].popleft()
        if isinstance(item, Op):
            item.run()
        elif isinstance(item, _Record):
            self._reached[item.event] = max(self._reached.get(item.event, 0), item.mark)
        return True

    def _advance(self) -> None:
        for _ in range(self.choose(self.eagerness + 1)):
            if not self._step():
                return

    def _called(self, name: str, *, capturable: bool = True) -> None:
        self.calls[name] += 1
        self.log.append(name)
        if not capturable and threading.get_ident() in (thread for thread, _ in self._captures.values()):
            raise DeviceFault(f"{name} inside a capture")
        self._advance()

    def enqueue(
        self,
        name: str,
        stream: int,
        run: Callable[[], None],
        *,
        reads: Sequence[Span] = (),
        writes: Sequence[Span] = (),
    ) -> None:
        """Queue an operation; kernels and networks of the tests come in here too."""
        with self.lock:
            self._called(name)
            if stream == 0:
                raise DeviceFault(f"{name} on the default stream")
            op = Op(name, stream, run, tuple(reads), tuple(writes))
            if stream in self._captures:
                self._captures[stream][1].append(op)
            else:
                self._queue(op)

    def _queue(self, op: Op) -> None:
        if op.stream not in self._queues:
            raise DeviceFault(f"{op.name} on stream {op.stream}, which does not exist")
        clock = self._clocks[op.stream]
        clock |= self._clocks[HOST]
        clock[op.stream] += 1
        for spans, write in ((op.reads, False), (op.writes, True)):
            for address, nbytes in spans:
                self._access(address, nbytes, op.stream, clock, write, op.name)
        self._queues[op.stream].append(op)

    def _access(
        self, address: int, nbytes: int, actor: int, clock: Counter[int], write: bool, name: str
    ) -> None:
        allocation, offset = self._locate(address, nbytes, name)
        if not self.detect_races:
            return
        start, end = offset, offset + nbytes
        kept = []
        for a in allocation.accesses:
            overlap = a.start < end and start < a.end
            ordered = clock[a.actor] >= a.time
            if overlap and (write or a.write) and not ordered:
                raise Race(f"{name} ({'write' if write else 'read'}) is not ordered after {a.name}")
            covered = start <= a.start and a.end <= end
            if not (covered and ordered and (write or not a.write)):
                kept.append(a)
        kept.append(_Access(start, end, actor, clock[actor], write, name))
        allocation.accesses = kept

    # --- memory -------------------------------------------------------------------------------------------

    def _locate(self, address: int, nbytes: int, name: str) -> tuple[_Allocation, int]:
        index = bisect_right(self._bases, address) - 1
        if index >= 0:
            base = self._bases[index]
            allocation = self._allocations[base]
            if address + nbytes <= base + allocation.data.size:
                if not allocation.alive:
                    raise DeviceFault(f"{name} uses freed memory")
                return allocation, address - base
        raise DeviceFault(f"{name} reaches outside its allocation: {nbytes} bytes at {address:#x}")

    def bytes_at(self, address: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """The memory itself, for operations while they execute."""
        allocation, offset = self._locate(address, nbytes, "access")
        return allocation.data[offset : offset + nbytes]

    def array_at(self, address: int, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[np.generic]:
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.bytes_at(address, nbytes).view(dtype).reshape(shape)

    def _allocate(self, nbytes: int, pinned: bool) -> int:
        if nbytes <= 0:
            raise DeviceFault(f"allocation of {nbytes} bytes")
        address = self._next_address
        self._next_address = address + (nbytes // _ALIGN + 2) * _ALIGN
        data = np.full(nbytes, 0xA5, np.uint8)  # what was never written shows
        self._bases.append(address)
        self._allocations[address] = _Allocation(data, pinned)
        return address

    def allocate(self, nbytes: int) -> int:
        with self.lock:
            self._called("allocate", capturable=False)
            while self.used_bytes + nbytes > self.total_bytes and self._step():
                pass  # what streams are to give back is waited for before memory has run out
            if self.used_bytes + nbytes > self.total_bytes:
                raise OutOfMemoryError(
                    "device memory", asked_bytes=nbytes, free_bytes=self.total_bytes - self.used_bytes
                )
            self.used_bytes += nbytes
            self.peak_bytes = max(self.peak_bytes, self.used_bytes)
            return self._allocate(nbytes, pinned=False)

    def allocate_ordered(self, nbytes: int, stream: int) -> int:
        self.calls["allocate_ordered"] += 1
        self.calls["allocate"] -= 1
        return self.allocate(nbytes)

    def free_ordered(self, address: int, stream: int) -> None:
        with self.lock:
            self._called("free_ordered", capturable=False)
            allocation = self._allocations[address]
            if not allocation.alive:
                raise DeviceFault(f"free of {address:#x}, which is free already")
            nbytes = allocation.data.size
            if stream == LEGACY_STREAM:  # comes after what the other streams have
                self.used_bytes -= self._free(address, pinned=False)
                return

            def run() -> None:
                allocation.alive = False
                self.used_bytes -= nbytes

            self.enqueue("release", stream, run, writes=[(address, nbytes)])

    def is_capturing(self, stream: int) -> bool:
        return self.capturing()

    def allocate_pinned(self, nbytes: int) -> int:
        with self.lock:
            self._called("allocate_pinned", capturable=False)
            self.pinned_bytes += nbytes
            return self._allocate(nbytes, pinned=True)

    def _free(self, address: int, pinned: bool) -> int:
        allocation = self._allocations.get(address)
        if allocation is None or not allocation.alive or allocation.pinned != pinned:
            raise DeviceFault(f"free of {address:#x}, which is not such an allocation")
        while self._step():  # like cuMemFree, wait for the device
            pass
        allocation.alive = False
        return allocation.data.size

    def free(self, address: int) -> None:
        with self.lock:
            self._called("free", capturable=False)
            self.used_bytes -= self._free(address, pinned=False)

    def free_pinned(self, address: int) -> None:
        with self.lock:
            self._called("free_pinned", capturable=False)
            self.pinned_bytes -= self._free(address, pinned=True)

    def host_view(self, address: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """Pinned memory as the host sees it; the call counts as the host's access."""
        with self.lock:
            allocation, offset = self._locate(address, nbytes, "host_view")
            if not allocation.pinned:
                raise DeviceFault("the host touches device memory")
            clock = self._clocks[HOST]
            clock[HOST] += 1
            self._access(address, nbytes, HOST, clock, True, "host_view")
            return allocation.data[offset : offset + nbytes]

    def device_of(self, address: int) -> int | None:
        return self.foreign.get(address, self.info.index)

    def memory(self) -> tuple[int, int]:
        return self.total_bytes - self.used_bytes, self.total_bytes

    # --- copies -------------------------------------------------------------------------------------------

    def _copy(
        self, name: str, to: int, source: int, nbytes: int, stream: int, pinned: tuple[bool, bool]
    ) -> None:
        for address, is_pinned in zip((to, source), pinned, strict=True):
            if self._locate(address, nbytes, name)[0].pinned != is_pinned:
                raise DeviceFault(f"{name}: {address:#x} is on the wrong side")

        def run() -> None:
            self.bytes_at(to, nbytes)[:] = self.bytes_at(source, nbytes)

        self.enqueue(name, stream, run, reads=[(source, nbytes)], writes=[(to, nbytes)])

    def copy_in(self, to: int, pinned: int, nbytes: int, stream: int) -> None:
        self._copy("copy_in", to, pinned, nbytes, stream, (False, True))

    def copy_out(self, pinned: int, source: int, nbytes: int, stream: int) -> None:
        self.bytes_out += nbytes
        self._copy("copy_out", pinned, source, nbytes, stream, (True, False))

    def copy(self, to: int, source: int, nbytes: int, stream: int) -> None:
        self._copy("copy", to, source, nbytes, stream, (False, False))

    def copy_rows(
        self, to: int, to_pitch: int, source: int, source_pitch: int, row_bytes: int, rows: int, stream: int
    ) -> None:
        def run() -> None:
            for y in range(rows):
                row = self.bytes_at(source + y * source_pitch, row_bytes)
                self.bytes_at(to + y * to_pitch, row_bytes)[:] = row

        reads = [(source, (rows - 1) * source_pitch + row_bytes)]
        writes = [(to, (rows - 1) * to_pitch + row_bytes)]
        self.enqueue("copy_rows", stream, run, reads=reads, writes=writes)

    def fill(self, to: int, value: int, nbytes: int, stream: int) -> None:
        def run() -> None:
            self.bytes_at(to, nbytes)[:] = value

        self.enqueue("fill", stream, run, writes=[(to, nbytes)])

    # --- streams and events -------------------------------------------------------------------------------

    info = DeviceInfo(0, "Simulated", (8, 6), 1 << 34, (13, 0))

    def activate(self) -> None:
        """Nothing to do: there is one context."""

    @contextmanager
    def current(self) -> Iterator[None]:
        """Nothing to do: there is one context."""
        yield

    def share(self) -> SimulatedDriver:
        return self

    def close(self) -> None:
        """Nothing to do."""

    def stream_create(self) -> int:
        with self.lock:
            self._called("stream_create", capturable=False)
            self._next += 1
            self._queues[self._next] = deque()
            self._clocks[self._next] = Counter()
            return self._next

    def stream_destroy(self, stream: int) -> None:
        with self.lock:
            if self._queues.pop(stream):
                raise DeviceFault("a stream with work left is destroyed")

    def event_create(self, *, timing: bool = False) -> int:
        with self.lock:
            self._called("event_create", capturable=False)
            self._next += 1
            self._asked[self._next] = 0
            return self._next

    def event_destroy(self, event: int) -> None:
        with self.lock:
            del self._asked[event]

    def event_record(self, event: int, stream: int) -> None:
        with self.lock:
            self._called("event_record", capturable=False)
            self._asked[event] += 1
            self._event_clocks[event] = Counter(self._clocks[stream])
            self._queues[stream].append(_Record(event, self._asked[event]))

    def stream_wait(self, stream: int, event: int) -> None:
        with self.lock:
            self._called("stream_wait", capturable=False)
            if self._asked[event]:  # an event that was never recorded orders nothing, as on the device
                self._clocks[stream] |= self._event_clocks[event]
                self._queues[stream].append(_Wait(event, self._asked[event]))

    def event_query(self, event: int) -> bool:
        with self.lock:
            self._called("event_query")
            reached = self._reached.get(event, 0) >= self._asked[event]
            if reached and event in self._event_clocks:
                self._clocks[HOST] |= self._event_clocks[event]
            return reached

    def event_synchronize(self, event: int) -> None:
        with self.lock:
            self._called("event_synchronize", capturable=False)
            while self._reached.get(event, 0) < self._asked[event]:
                if not self._step():
                    raise DeviceFault("deadlock: no stream can go on")
            if event in self._event_clocks:
                self._clocks[HOST] |= self._event_clocks[event]

    def elapsed_ms(self, start: int, end: int) -> float:
        return 1.0

    # --- graphs -------------------------------------------------------------------------------------------

    def capturing(self) -> bool:
        return bool(self._captures)

    def capture_begin(self, stream: int) -> None:
        with self.lock:
            self._called("capture_begin", capturable=False)
            self._captures[stream] = (threading.get_ident(), [])

    def capture_end(self, stream: int) -> int:
        with self.lock:
            self.calls["capture_end"] += 1
            if stream not in self._captures:
                raise DeviceFault("capture_end without capture_begin")
            self._next += 1
            self._graphs[self._next] = self._captures.pop(stream)[1]
            return self._next

    def capture_abort(self, stream: int) -> None:
        with self.lock:
            self._captures.pop(stream, None)

    def graph_launch(self, graph: int, stream: int) -> None:
        with self.lock:
            self._called("graph_launch", capturable=False)
            for op in self._graphs[graph]:
                self._queue(Op(op.name, stream, op.run, op.reads, op.writes))

    def graph_destroy(self, graph: int) -> None:
        with self.lock:
            del self._graphs[graph]


class ThreadedDriver(SimulatedDriver):
    """The same device with one thread per stream, each sleeping at random before it executes."""

    def __init__(self, seed: int, *, longest_ms: float = 1.0) -> None:
        super().__init__(detect_races=False)
        self._random = random.Random(seed)
        self._longest_s = longest_ms / 1e3
        self._changed = threading.Condition(self.lock)
        self._workers: list[threading.Thread] = []

    def _advance(self) -> None:
        self._changed.notify_all()

    def _step(self) -> bool:
        return False

    def stream_create(self) -> int:
        stream = super().stream_create()
        worker = threading.Thread(target=self._work, args=(stream,), daemon=True)
        self._workers.append(worker)
        worker.start()
        return stream

    def _work(self, stream: int) -> None:
        while True:
            with self._changed:
                while stream in self._queues and stream not in self._runnable():
                    self._changed.wait()
                if stream not in self._queues:
                    return
                item = self._queues[stream].popleft()
                delay_s = self._random.random() * self._longest_s
            time.sleep(delay_s)
            with self._changed:
                if isinstance(item, Op):
                    item.run()
                elif isinstance(item, _Record):
                    self._reached[item.event] = max(self._reached.get(item.event, 0), item.mark)
                self._changed.notify_all()

    def event_synchronize(self, event: int) -> None:
        with self._changed:
            self.calls["event_synchronize"] += 1
            mark = self._asked[event]
            self._changed.notify_all()
            while self._reached.get(event, 0) < mark:
                self._changed.wait(timeout=5)

    def stream_destroy(self, stream: int) -> None:
        with self._changed:
            del self._queues[stream]
            self._changed.notify_all()
