"""Run jobs: read, upscale and write of neighbouring files overlap; one that fails does not stop the others.

Three passive stages and two look-aheads of one (`yonos_trt.prefetch`)::

    read  ->  prefetch  ->  upscale  ->  prefetch  ->  write (the caller's thread)

While the networks work on a file, the next one is read and the one before is written: one ahead, one behind.
Progress is told in the order of the files all the same: the events of a file wait until the file before it is
finished. A file waits for memory when it would not fit beside those in flight.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from yonos_trt.cli import claims
from yonos_trt.cli.job_outcome import Outcome, is_of_one_file, named, without_frames
from yonos_trt.cli.jobs import Job, PassedOver
from yonos_trt.cli.progress import Progress
from yonos_trt.errors import InputError
from yonos_trt.host import startable_threads
from yonos_trt.prefetch import stream

__all__ = ["Outcome", "Stages", "check_target", "run_jobs"]

_log = logging.getLogger(__name__)

_IN_FLIGHT = 2  # files taken from the reader and not yet with the writer; the one being written comes on top


class Stages(Protocol):
    """What is done with one file; `read`, `upscale` and `write` run at the same time, in a thread each."""

    def read(self, job: Job) -> Any:
        """Return the picture; refuse what `write` would refuse."""

    def needed_bytes(self, job: Job, picture: Any) -> int:
        """Return the memory the file takes until it is written; called from `upscale`'s thread."""

    def free_bytes(self) -> int:
        """Return the memory that may be taken; asked while no file is in flight."""

    def upscale(self, job: Job, picture: Any, on_tiles: Callable[[int, int], None], *, fits: bool) -> Any:
        """Return the result; where it does not fit into memory, write it row by row."""

    def write(self, job: Job, result: Any) -> tuple[str, ...]:
        """Write the result, all or nothing; called with what `upscale` returned. Return what of the source
        could not be carried."""


def run_jobs(
    jobs: Sequence[Job],
    stages: Stages,
    progress: Progress,
    *,
    existing: str = "refuse",
    overlap: bool = True,
    written: Callable[[Path], object] | None = None,
    passed_over: Sequence[PassedOver] = (),
) -> Outcome:
    """Take every job through the stages; a file that fails is recorded and the others go on.

    Parameters
    ----------
    jobs, stages
        What to do, and how.
    progress
        Is told about every job, one after the other, whatever overlaps. The "seconds" of a finished file are
        those its stages took, without waiting for one another.
    existing
        What to do where the target is there already: "refuse" (a failure), "overwrite" or "skip". With
        "skip" every file is claimed first (`yonos_trt.cli.claims`), and one that another process has at
        work is skipped as well: several processes share a folder.
    overlap
        False takes one file after the other, as is always done with a single one, where a file is the
        result of another one, and where the system starts no more threads.
    written
        Called with the path of every file that is complete, on the caller's thread; its errors end the run.
    passed_over
        What else lies in the input folders: told first, and counted.

    Raises
    ------
    YonosError
        Errors of the engines, the device or the options, which would meet every other file as well. Any other
        exception, of whatever class, is that file's alone.
    """
    run = _Run(jobs, stages, progress, existing, written)
    run.pass_over(passed_over)
    try:
        if overlap and len(jobs) > 1 and not _chained(jobs) and startable_threads(2) == 2:
            with stream(run.read_all(), run.upscale, max_in_flight=_IN_FLIGHT) as results:
                try:
                    for item in results:
                        run.finish(item)
                except BaseException:
                    run.stop()  # first, so that closing the stream does not wait for a whole picture
                    raise
        else:
            for item in run.read_all():
                run.finish(run.upscale(item))
    finally:
        run.release_all()
    progress.end(**run.outcome.totals)
    return run.outcome


def _chained(jobs: Sequence[Job]) -> bool:
    """Tell whether a file to read is one that has to be written first."""
    targets = {os.path.realpath(job.target) for job in jobs}
    return any(os.path.realpath(job.source) in targets for job in jobs)


class _StoppedError(Exception):
    """The run ends; raised in the threads of the stages and seen by nobody."""


@dataclass(slots=True)
class _Item:
    """A file on its way; `value` is its picture, then its result."""

    index: int
    job: Job
    value: Any = None
    needed_bytes: int = 0
    fits: bool = True
    skipped: str = ""  # why
    error: BaseException | None = None
    seconds: float = 0.0


class _Run:
    """The stages with everything around them; `read_all`, `upscale` and `finish` run in three threads."""

    def __init__(
        self,
        jobs: Sequence[Job],
        stages: Stages,
        progress: Progress,
        existing: str,
        written: Callable[[Path], object] | None,
    ) -> None:
        self._jobs, self._stages, self._progress = jobs, stages, progress
        self._existing, self._written = existing, written
        self._told = _InOrder()
        self._budget = _MemoryBudget(stages.free_bytes)
        self._stopped = threading.Event()
        self._claims: dict[int, claims.Claim] = {}
        self.outcome = Outcome()

    def pass_over(self, passed_over: Sequence[PassedOver]) -> None:
        """Tell and count what is not done."""
        for passed in passed_over:
            self.outcome.passed_over.append(passed)
            if passed.failed:
                self._progress.fail(str(passed.path), InputError(f"{passed.path}: {passed.reason}"))
            else:
                self._progress.pass_over(str(passed.path), passed.reason)

    def release_all(self) -> None:
        """Give up the claims of files that are not finished; no thread is at work any more."""
        while self._claims:
            self._claims.popitem()[1].release()

    def stop(self) -> None:
        """End the threads at their next step; nothing is told any more."""
        self._stopped.set()
        self._budget.stop()

    def read_all(self) -> Iterator[_Item]:
        """Read one file after the other, each when it is asked for."""
        for index, job in enumerate(self._jobs):
            item = _Item(index, job)
            if self._existing == "skip":
                self._attempt(item, self._claim)
            if not item.skipped:
                name, count = str(job.source), len(self._jobs)
                self._told.tell(index, partial(self._progress.start, name, index, count))
            if not item.skipped and item.error is None:
                self._attempt(item, self._read)
            yield item

    def _claim(self, item: _Item) -> None:
        """Take the file, or say in `item.skipped` why not."""
        target = item.job.target
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            claim = claims.take(target)
            if claim is None:
                item.skipped = f"another process is at work on {target}"
                return
            self._claims[item.index] = claim
        if target.exists():  # by now
            item.skipped = f"{target} exists"

    def _read(self, item: _Item) -> Any:
        check_target(item.job, self._existing)
        item.job.target.parent.mkdir(parents=True, exist_ok=True)
        return self._stages.read(item.job)

    def upscale(self, item: _Item) -> _Item:
        """Put the result in the picture's place."""
        if not item.skipped and item.error is None:
            self._attempt(item, self._measure)
        if not item.skipped and item.error is None:
            worked_s = item.seconds
            self._attempt(item, self._take_room)
            item.seconds = worked_s  # waiting is no work
        if not item.skipped and item.error is None:
            self._attempt(item, self._upscale)
        return item

    def _measure(self, item: _Item) -> Any:
        item.needed_bytes = self._stages.needed_bytes(item.job, item.value)
        return item.value

    def _take_room(self, item: _Item) -> Any:
        item.fits = self._budget.take(item.index, item.needed_bytes)
        return item.value

    def _upscale(self, item: _Item) -> Any:
        def on_tiles(done: int, total: int) -> None:
            if self._stopped.is_set():
                raise _StoppedError
            self._told.tell(item.index, lambda: self._progress.step(done, total))

        picture, item.value = item.value, None
        return self._stages.upscale(item.job, picture, on_tiles, fits=item.fits)

    def finish(self, item: _Item) -> None:
        """Write the result and tell what became of the file."""
        if not item.skipped and item.error is None:
            self._attempt(item, self._write)
        left_out, item.value = item.value, None
        self._budget.give_back(item.index)
        if claim := self._claims.pop(item.index, None):
            claim.release()
        job, name = item.job, str(item.job.source)
        if item.skipped:
            self.outcome.skipped.append(job)
            self._told.tell(item.index, lambda: self._progress.skip(name, item.skipped))
        elif (error := item.error) is not None:
            self.outcome.failed.append((job, error))
            self._told.tell(item.index, lambda: self._progress.fail(name, named(name, error)))
        else:
            self.outcome.done.append(job)
            if left_out:
                self.outcome.left_out.append((job, left_out))
            if self._written is not None:
                self._written(job.target)
            seconds = round(item.seconds, 3)
            self._told.tell(
                item.index,
                lambda: self._progress.finish(
                    name, target=str(job.target), seconds=seconds, left_out=list(left_out)
                ),
            )
        self._told.next()

    def _write(self, item: _Item) -> tuple[str, ...]:
        return self._stages.write(item.job, item.value)

    def _attempt(self, item: _Item, step: Callable[[_Item], Any]) -> None:
        start = time.perf_counter()
        try:
            item.value = step(item)
        except _StoppedError:
            raise
        except BaseException as error:
            if not is_of_one_file(error):
                raise
            _log.debug("%s", item.job.source, exc_info=True)
            item.value, item.error = None, without_frames(error)
        item.seconds += time.perf_counter() - start


class _InOrder:
    """Tell the events of the first unfinished file at once, and keep those of later ones for their turn."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current = 0
        self._waiting: dict[int, list[Callable[[], None]]] = {}

    def tell(self, index: int, event: Callable[[], None]) -> None:
        """Call `event` now, or when all files before `index` are finished."""
        with self._lock:
            if index == self._current:
                event()
            else:
                self._waiting.setdefault(index, []).append(event)

    def next(self) -> None:
        """The first unfinished file is finished."""
        with self._lock:
            self._current += 1
            for event in self._waiting.pop(self._current, []):
                event()


class _MemoryBudget:
    """Memory of the files in flight: one more gets its share when it fits beside them, or is alone."""

    def __init__(self, free_bytes: Callable[[], int]) -> None:
        self._free_bytes = free_bytes
        self._limit = 0
        self._held: dict[int, int] = {}
        self._stopped = False
        self._changed = threading.Condition()

    def take(self, index: int, count: int) -> bool:
        """Wait for `count` bytes; return whether they fit at all."""

        def may_go_on() -> bool:
            return self._stopped or not self._held or sum(self._held.values()) + count <= self._limit

        with self._changed:
            self._changed.wait_for(may_go_on)
            if self._stopped:
                raise _StoppedError
            if not self._held:
                self._limit = self._free_bytes()
            self._held[index] = count
            return count <= self._limit

    def give_back(self, index: int) -> None:
        """The file is written, or failed."""
        with self._changed:
            self._held.pop(index, None)
            self._changed.notify_all()

    def stop(self) -> None:
        """Wake who waits; `take` raises from now on."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


def check_target(job: Job, existing: str) -> None:
    """Refuse to write over a source, and over a result unless `existing` is "overwrite"."""
    if not job.target.exists():
        return
    if job.source.exists() and job.target.samefile(job.source):
        raise InputError(f"{job.source}: the result would replace its own source; name another output")
    if existing != "overwrite":
        raise InputError(
            f"{job.source}: {job.target} exists; replace it with --overwrite or leave it with --skip-existing"
        )
