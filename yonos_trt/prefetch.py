"""Bounded look-ahead: run a passive iterator in its own thread, a few items ahead of its reader.

The video path is three passive stages, each a plain iterator that does nothing until asked::

    decode  ->  prefetch  ->  upscale  ->  prefetch  ->  encode (the caller's thread)

``prefetch`` is the only thing that joins them, so that is where every promise about threads lives:
order is kept, look-ahead is bounded, an error reaches the reader at the place of the item that failed
and carries that item's index, and closing early stops every stage and joins every thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from yonos_trt.choices import whole_number
from yonos_trt.errors import ClosedError, ConfigError

T = TypeVar("T")
R = TypeVar("R")

_INDEX_ATTRIBUTE = "frame_index"


def frame_index(error: BaseException) -> int | None:
    """Return the index (from 0) of the item whose production raised ``error``, or None if it has none."""
    value = getattr(error, _INDEX_ATTRIBUTE, None)
    return value if isinstance(value, int) else None


def _tag(error: BaseException, index: int) -> None:
    """Attach an index to an error that has none yet: as the attribute ``frame_index`` and as a note.

    The error keeps its type, so ``except InputError`` works on both sides of a thread.
    """
    if frame_index(error) is None:
        setattr(error, _INDEX_ATTRIBUTE, index)
        error.add_note(f"at frame {index}, counted from 0")


class _Channel(Generic[T]):
    """What reader and worker share. The worker holds this and never the `Prefetch`: a reader that is
    simply dropped is collected, and its finaliser stops the worker."""

    def __init__(self, ahead: int) -> None:
        self.ahead = ahead
        self.ready: deque[T] = deque()
        self.waiting = 0  # items taken from the source and not yet given to the reader
        self.stopped = False
        self.finished = False
        self.error: BaseException | None = None
        self.changed = threading.Condition()

    def put(self, item: T) -> None:
        with self.changed:
            if not self.stopped:
                self.ready.append(item)
                self.changed.notify_all()

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.ready.clear()
            self.changed.notify_all()


def _work(channel: _Channel[T], source: Iterator[T]) -> None:
    """Fill the channel until the source ends, fails or the reader stops; then close the source."""
    index = 0
    try:
        while True:
            with channel.changed:
                channel.changed.wait_for(lambda: channel.stopped or channel.waiting < channel.ahead)
                if channel.stopped:
                    return
                channel.waiting += 1
            item = next(source)
            index += 1
            channel.put(item)
            del item
    except StopIteration:
        pass
    except BaseException as error:  # handed to the reader, whatever it is
        _tag(error, index)
        with channel.changed:
            channel.error = error
    finally:
        close = getattr(source, "close", None)
        try:
            if close is not None:
                close()
        except BaseException as error:
            with channel.changed:
                channel.error = channel.error or error
        with channel.changed:
            channel.finished = True
            channel.changed.notify_all()


class Prefetch(Iterator[T]):
    """Iterator over ``items``, produced in a thread of its own. Made by `prefetch`.

    May be read from any thread, also from several at once (each item goes to one of them).
    The thread starts with the first ``next``. Use as a context manager, or call ``close``.
    """

    def __init__(self, items: Iterable[T], *, ahead: int, name: str) -> None:
        self._channel: _Channel[T] = _Channel(ahead)
        self._source = iter(items)
        self._thread = threading.Thread(
            target=_work, args=(self._channel, self._source), name=name, daemon=True
        )
        self._started = False
        self._closed = False

    def __iter__(self) -> Prefetch[T]:
        return self

    def __next__(self) -> T:
        channel = self._channel
        with channel.changed:
            if self._closed:
                raise ClosedError("this stream was closed; make a new one with prefetch() or SR.stream()")
            if not self._started:
                self._started = True
                self._thread.start()
            channel.changed.wait_for(lambda: bool(channel.ready) or channel.finished or channel.stopped)
            if channel.ready:
                item = channel.ready.popleft()
                channel.waiting -= 1
                channel.changed.notify_all()
                return item
            error, channel.error = channel.error, None
        if error is not None:
            raise error
        raise StopIteration

    def close(self) -> None:
        """Stop the worker, close the source and join the thread. Idempotent.

        Waits for the item in work, which is finished and thrown away; a source that blocks for ever
        (a silent pipe) is the caller's to unblock.
        """
        with self._channel.changed:
            first, self._closed = not self._closed, True
        self._channel.stop()
        if isinstance(self._source, Prefetch):
            self._source.close()
        if not self._started:
            close = getattr(self._source, "close", None)
            if first and close is not None:
                close()
        elif threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        channel = getattr(self, "_channel", None)
        if channel is not None:
            channel.stop()


def prefetch(items: Iterable[T], *, ahead: int = 2, name: str = "yonos-prefetch") -> Prefetch[T]:
    """Iterate over ``items`` in a thread, at most ``ahead`` items before the reader.

    Parameters
    ----------
    items
        Any iterable. It is advanced only by the worker thread; if it has ``close``, that is called once,
        at the end or when the reader closes.
    ahead
        Upper bound of items taken from ``items`` and not yet given out, the one in work included; >= 1.
        This bounds the memory.
    name
        Thread name, seen in debuggers and profilers.

    Raises
    ------
    ConfigError
        ``ahead`` is smaller than 1.
    """
    if ahead < 1:
        raise ConfigError(f"ahead must be at least 1, got {ahead}")
    return Prefetch(items, ahead=ahead, name=name)


class _Map(Iterator[R], Generic[T, R]):
    """Apply a function to each item. Not a generator: closing one that never ran must close its source."""

    def __init__(self, function: Callable[[T], R], items: Iterable[T]) -> None:
        self._function = function
        self._source = iter(items)

    def __next__(self) -> R:
        item = next(self._source)
        try:
            return self._function(item)
        except StopIteration as error:  # would end the stream here without a word
            raise RuntimeError("the function applied to the stream raised StopIteration") from error

    def close(self) -> None:
        close = getattr(self._source, "close", None)
        if close is not None:
            close()


def stream(frames: Iterable[T], upscale: Callable[[T], R], *, max_in_flight: int = 4) -> Prefetch[R]:
    """Upscale frames as they come: read in one thread, upscale in a second, hand out in the caller's.

    Parameters
    ----------
    frames
        Source of frames, advanced in a thread of its own (in the upscaling thread for ``max_in_flight=1``).
    upscale
        Called with one frame at a time, always from the same thread.
    max_in_flight
        Most frames taken from ``frames`` whose results were not handed out yet; >= 1.

    Returns
    -------
    Prefetch
        Results in the order of ``frames``. An error of the source or of ``upscale`` keeps its type, comes in
        place of the result that failed, and `frame_index` tells which. ``close()`` stops everything.

    Raises
    ------
    ConfigError
        ``max_in_flight`` is smaller than 1.
    """
    max_in_flight = whole_number("max_in_flight", max_in_flight)
    if max_in_flight < 1:
        raise ConfigError(f"max_in_flight must be at least 1, got {max_in_flight}")
    read_ahead = max_in_flight // 2
    source: Iterable[T] = prefetch(frames, ahead=read_ahead, name="yonos-read") if read_ahead else frames
    return prefetch(_Map(upscale, source), ahead=max_in_flight - read_ahead, name="yonos-upscale")
