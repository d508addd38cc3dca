"""Keep folders done: `watch` runs whatever is new, again and again, until it is interrupted.

A file is taken when it has not changed for `SETTLED_S` and is whole; one that stays broken is tried, and so
told, after `BROKEN_S`. Folders are read every `PAUSE_S`: network drives tell nobody about changes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from yonos_trt.cli.job_outcome import Outcome
from yonos_trt.cli.jobs import Job, PassedOver, Plan
from yonos_trt.images.inspection import seems_whole

PAUSE_S = 1.0
SETTLED_S = 2.0
BROKEN_S = 30.0

Mark = tuple[int, int, int]


@dataclass(slots=True)
class _Source:
    """What is known of a file that has no result yet."""

    mark: Mark
    since_s: float
    whole: bool | None = None  # None: nobody has looked since it changed
    failed: bool = False


class _Folder:
    """Which files are ready, from one look to the next."""

    def __init__(self) -> None:
        self._waiting: dict[Path, _Source] = {}
        self._targets: set[Path] = set()  # never inputs, also when what they were made from is gone
        self._told: set[tuple[Path, str]] = set()

    def ready(self, plan: Plan, now_s: float) -> list[Job]:
        """Return the jobs whose sources have settled."""
        self._targets |= {job.target.absolute() for job in plan.jobs}
        jobs = [
            job
            for job in plan.jobs
            if not job.target.exists()
            and job.source.absolute() not in self._targets
            and self._settled(job.source, now_s)
        ]
        there = {job.source for job in plan.jobs}
        self._waiting = {path: known for path, known in self._waiting.items() if path in there}
        return jobs

    def _settled(self, path: Path, now_s: float) -> bool:
        if (mark := _mark(path)) is None:
            return False
        known = self._waiting.get(path)
        if known is None or known.mark != mark:
            self._waiting[path] = _Source(mark, now_s)
            return False
        quiet_s = now_s - known.since_s
        if known.failed or quiet_s < SETTLED_S:
            return False
        if known.whole is None:
            known.whole = seems_whole(path)
        return known.whole or quiet_s >= BROKEN_S

    def tried(self, outcome: Outcome) -> None:
        """Leave what failed until it changes; forget what is done: a result that goes is made again."""
        for job in outcome.done:
            self._waiting.pop(job.source, None)
        for job, _ in outcome.failed:
            if job.source in self._waiting:
                self._waiting[job.source].failed = True

    def untold(self, passed_over: list[PassedOver]) -> list[PassedOver]:
        """Return what was not told before."""
        new = [p for p in passed_over if (p.path, p.reason) not in self._told]
        self._told |= {(p.path, p.reason) for p in new}
        return new


def watch(plan: Callable[[], Plan], run: Callable[[list[Job], list[PassedOver]], Outcome]) -> None:
    """Run what becomes ready; returns only by an exception, such as KeyboardInterrupt.

    Parameters
    ----------
    plan
        Looks at the folders.
    run
        Does files, and tells what was passed over.
    """
    folder = _Folder()
    while True:
        found = plan()
        jobs, passed_over = folder.ready(found, time.monotonic()), folder.untold(found.passed_over)
        if jobs or passed_over:
            folder.tried(run(jobs, passed_over))
        time.sleep(PAUSE_S)


def _mark(path: Path) -> Mark | None:
    """Return what changes when a file is written; None where it is gone."""
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return facts.st_size, facts.st_mtime_ns, facts.st_ino
