"""Order the work of several device streams by events; knows nothing about CUDA.

One picture at a time flows through ``lanes`` streams. A lane runs one tile batch after another (gather,
noise, three networks) and leaves each result in one of its slots, an output buffer of its own. The canvas
stream adds the slots to the canvas in plan order, finishes rows and hands them to the host; one more copies
pictures in. Five edges keep safe what these streams share, two more order a caller's stream::

    copy    ..upload A........................upload B..........
                  |  "upload->gather"            ^  (B takes A's memory)
    lane 0        +->[batch 0]--+--[batch 2]---+-|  "gather->upload"
    lane 1        +->[batch 1]--|-+--[batch 3]-|-|+
                "decode->blend" v v            v |v
    canvas                     b0 b1 finish    b2 b3 finish
                                 |     |
                                 |     "finish->upload" (the colour fix reads A)
                                 "blend->decode" (batch 4 takes the slot of batch 0)

Blends, colour fix and downloads lie on one stream, so their order is that of the calls: the picture is the
same bit for bit whatever the number of lanes. Nothing here makes the host wait but the end of `downloading`,
and `arrived`, which waits for one of the two copies to the host that may be on their way (`sending`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from yonos_trt.errors import ClosedError, ConfigError

EDGES = (
    "caller->upload",
    "upload->gather",
    "gather->upload",
    "finish->upload",
    "decode->blend",
    "blend->decode",
    "canvas->caller",
)
"""Every pair of operations on different streams that an event orders, as ``"first->second"``."""


class StreamDriver(Protocol):
    """The six calls of a device that order its work; streams and events are plain handles."""

    def stream_create(self) -> int: ...

    def event_create(self) -> int: ...

    def event_record(self, event: int, stream: int) -> None:
        """Mark the point that `stream` has been given work up to; replaces the event's earlier mark."""

    def stream_wait(self, stream: int, event: int) -> None:
        """Let later work of `stream` start after the mark that `event` carries now; the host goes on."""

    def event_synchronize(self, event: int) -> None:
        """Block the host until the event's mark is reached."""

    def stream_destroy(self, stream: int) -> None: ...

    def event_destroy(self, event: int) -> None: ...


@dataclass(slots=True)
class PictureOrder:
    """Order of one picture's memory: when it is there, and who still reads it."""

    uploaded: int
    """Event on the copy stream."""
    finished: int
    """Event on the canvas stream after the last finished rows whose colour fix reads this picture."""
    gathered: dict[int, int] = field(default_factory=dict)
    """Lane -> event after the last batch of that lane which reads this picture."""


@dataclass(slots=True)
class Slot:
    """One output buffer of a lane. Whoever owns the memory keys it by ``(lane, index)``."""

    lane: int
    index: int
    ready: int
    """Event on the lane's stream: the tiles are written."""
    read: int
    """Event on the canvas stream: the tiles have been added to the canvas."""
    busy: bool = False
    """True from the start of its batch until the host has asked for the blend."""


@dataclass(slots=True)
class _Lane:
    stream: int
    slots: list[Slot]
    lock: threading.Lock = field(default_factory=threading.Lock)


class LaneScheduler:
    """Streams, events and slots of a device, and the order between them.

    Parameters
    ----------
    driver
        Makes streams and events.
    lanes
        Tile batches that may run at the same time, at least 1.
    slots
        Output buffers per lane to begin with. The host never waits for a slot: when a caller runs further
        ahead of the blends than that, the lane gets one more.

    Notes
    -----
    Threads: one thread per lane may call `batch`, beside one that calls everything else.
    """

    def __init__(self, driver: StreamDriver, lanes: int, *, slots: int = 2) -> None:
        if lanes < 1 or slots < 1:
            raise ConfigError(f"lanes={lanes}, slots={slots}: expected at least 1 of each")
        self._driver = driver
        self._slots = slots
        self._mutex = threading.Lock()
        self._streams: list[int] = []
        self._events: list[int] = []
        self._closed = False
        try:
            self._copy = self._new_stream()
            self._canvas = self._new_stream()
            self._downloaded = self._new_event()
            self._sent = (self._new_event(), self._new_event())
            self._handover = self._new_event()
            self._lanes = [_Lane(self._new_stream(), []) for _ in range(lanes)]
            for index in range(lanes):
                for _ in range(slots):
                    self._new_slot(index)
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------------------------------------------------
    # Resources

    @property
    def lanes(self) -> int:
        """Number of lanes."""
        return len(self._lanes)

    def lane_stream(self, lane: int) -> int:
        """The stream of a lane, for set-up that has to be in order with its batches."""
        return self._lanes[lane].stream

    @property
    def copy_stream(self) -> int:
        """The stream on which pictures come in."""
        return self._copy

    @property
    def canvas_stream(self) -> int:
        """The stream on which blends and downloads follow each other."""
        return self._canvas

    def slots(self, lane: int) -> tuple[Slot, ...]:
        """The slots of a lane as of now."""
        return tuple(self._lanes[lane].slots)

    def picture(self) -> PictureOrder:
        """Make the events of one picture buffer; they live until `close`."""
        events = {lane: self._new_event() for lane in range(len(self._lanes))}
        return PictureOrder(self._new_event(), self._new_event(), events)

    def close(self) -> None:
        """Give streams and events back. Does not wait for their work: synchronise first. Idempotent."""
        self._closed = True
        while self._events:
            self._driver.event_destroy(self._events.pop())
        while self._streams:
            self._driver.stream_destroy(self._streams.pop())

    def _new_stream(self) -> int:
        self._streams.append(self._driver.stream_create())
        return self._streams[-1]

    def _new_event(self) -> int:
        event = self._driver.event_create()
        with self._mutex:
            self._events.append(event)
        return event

    def _new_slot(self, lane: int) -> Slot:
        slots = self._lanes[lane].slots
        slots.append(Slot(lane, len(slots), self._new_event(), self._new_event()))
        return slots[-1]

    def _check(self) -> None:
        if self._closed:
            raise ClosedError("this lane scheduler was closed; open the backend again")

    # ------------------------------------------------------------------------------------------------------
    # Order

    def _record(self, event: int, stream: int) -> None:
        self._driver.event_record(event, stream)

    def _order(self, edge: str, stream: int, event: int) -> None:
        """Let `stream` wait for `event`; the one place where a stream waits, named by its edge."""
        assert edge in EDGES, edge
        self._driver.stream_wait(stream, event)

    @contextmanager
    def uploading(self, picture: PictureOrder, *, after: int | None = None) -> Iterator[int]:
        """Give the stream on which to fill a picture's memory.

        Waits (on the device) for all that reads what the memory held before, and for the work that the
        caller's stream `after` has been given so far.
        """
        self._check()
        for index, lane in enumerate(self._lanes):
            with lane.lock:
                self._order("gather->upload", self._copy, picture.gathered[index])
        self._order("finish->upload", self._copy, picture.finished)
        if after is not None:
            self._record(self._handover, after)
            self._order("caller->upload", self._copy, self._handover)
        try:
            yield self._copy
        finally:
            self._record(picture.uploaded, self._copy)

    @contextmanager
    def batch(self, lane: int, picture: PictureOrder, *, turn: int = 0) -> Iterator[tuple[int, Slot]]:
        """Give the stream and the slot for one tile batch that reads `picture`.

        A lane's slots take turns: who counts its batches in `turn` finds the same slot for the same batch,
        however fast anyone was, unless the blend of the batch that had it last is still to be asked for.

        All of the batch's device work is asked for inside the ``with`` block. If the block raises, the slot
        is free again at once, and what was asked for before still ends before anything reuses its memory.
        """
        self._check()
        own = self._lanes[lane]
        with own.lock:
            with self._mutex:
                first = turn % self._slots
                slot = next((s for s in (own.slots[first], *own.slots) if not s.busy), None)
            if slot is None:
                slot = self._new_slot(lane)
            slot.busy = True
            self._order("upload->gather", own.stream, picture.uploaded)
            self._order("blend->decode", own.stream, slot.read)
            try:
                yield own.stream, slot
            except BaseException:
                slot.busy = False
                raise
            finally:
                self._record(slot.ready, own.stream)
                self._record(picture.gathered[lane], own.stream)

    @contextmanager
    def blending(self, slot: Slot) -> Iterator[int]:
        """Give the canvas stream for adding one slot's tiles; the slot may be written again afterwards."""
        self._check()
        self._order("decode->blend", self._canvas, slot.ready)
        try:
            yield self._canvas
        finally:
            self._record(slot.read, self._canvas)
            with self._mutex:
                slot.busy = False

    @contextmanager
    def finishing(self, picture: PictureOrder) -> Iterator[int]:
        """Give the canvas stream for finishing rows, which may read `picture`. Does not wait."""
        self._check()
        try:
            yield self._canvas
        finally:
            self._record(picture.finished, self._canvas)

    @contextmanager
    def downloading(self) -> Iterator[int]:
        """Give the canvas stream for copies to the host; leaving the block waits until they are done."""
        self._check()
        yield self._canvas
        self._record(self._downloaded, self._canvas)
        self._driver.event_synchronize(self._downloaded)

    @contextmanager
    def sending(self, buffer: int) -> Iterator[int]:
        """Give the canvas stream for copies into one of the host's two buffers, 0 or 1. Does not wait."""
        self._check()
        yield self._canvas
        self._record(self._sent[buffer], self._canvas)

    def arrived(self, buffer: int) -> None:
        """Wait until the copies of the last `sending` into this buffer are done, not for what came after."""
        self._check()
        self._driver.event_synchronize(self._sent[buffer])

    @contextmanager
    def handing_over(self, caller: int) -> Iterator[int]:
        """Give the canvas stream; what the stream `caller` is given later starts after it. Does not wait."""
        self._check()
        yield self._canvas
        self._record(self._handover, self._canvas)
        self._order("canvas->caller", caller, self._handover)

    def abandon(self) -> None:
        """Free the slots whose blend will never be asked for (a picture that was given up)."""
        with self._mutex:
            for lane in self._lanes:
                for slot in lane.slots:
                    slot.busy = False

    def drain(self, then: Callable[[], object] | None = None) -> None:
        """Wait for all work of all streams, then call `then`; for `close`, never in the data path."""
        for stream in self._streams:
            self._driver.event_record(self._downloaded, stream)
            self._driver.event_synchronize(self._downloaded)
        if then is not None:
            then()
