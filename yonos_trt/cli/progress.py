"""How a command line tells what it is doing: a bar or one JSON object per line, always on stderr."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, Literal, Protocol, TextIO

Mode = Literal["auto", "bar", "json", "none"]

_START_S = time.monotonic()

META_KEY = "yonos_trt.cli.progress"
"""Where a command leaves its --progress value in ``click.Context.meta``, for errors that end it."""


class Progress(Protocol):
    """Is told about every step of a run; `name` is what the user calls the item, usually its path."""

    def start(self, name: str, index: int, count: int) -> None:
        """Item `index` of `count` begins."""

    def step(self, done: int, total: int) -> None:
        """`done` of `total` units (tiles, frames) of the current item are finished."""

    def finish(self, name: str, **facts: Any) -> None:
        """The current item is complete."""

    def skip(self, name: str, reason: str) -> None:
        """An item is left out."""

    def pass_over(self, name: str, reason: str) -> None:
        """Something among the inputs is not an item, and nobody asked to skip it."""

    def fail(self, name: str, error: BaseException) -> None:
        """An item failed."""

    def end(self, **totals: int) -> None:
        """The run is over."""


class Silent:
    """Say nothing but failures and, unless `quiet`, what is passed over."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet

    def start(self, name: str, index: int, count: int) -> None:
        """Say nothing."""

    def step(self, done: int, total: int) -> None:
        """Say nothing."""

    def finish(self, name: str, **facts: Any) -> None:
        """Say nothing."""

    def skip(self, name: str, reason: str) -> None:
        """Say nothing."""

    def pass_over(self, name: str, reason: str) -> None:
        """Say what is passed over."""
        if not self._quiet:
            sys.stderr.write(f"skipped {name}: {reason}\n")

    def fail(self, name: str, error: BaseException) -> None:
        """Print the error."""
        sys.stderr.write(f"error: {error}\n")

    def end(self, **totals: int) -> None:
        """Say nothing."""


class Pace:
    """How long a run over many items still takes, from those that are done."""

    def __init__(self) -> None:
        self._begin_s = time.monotonic()
        self._worked = 0
        self._left = 0

    def start(self, index: int, count: int) -> None:
        """Item `index` of `count` begins."""
        self._left = count - index

    def worked(self) -> None:
        """An item took its time; skipped ones took none."""
        self._worked += self._left > 0

    def left_s(self) -> float | None:
        """Seconds from the start of the current item to the end of the run; None before the first is done."""
        if not self._worked:
            return None
        return (time.monotonic() - self._begin_s) / self._worked * self._left


def _spoken(seconds: float) -> str:
    """Say a duration in one or two words: 45 s, 12 min, 3.5 h."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"


class Bar(Silent):
    """Draw one bar for the item at work; of many items, with the time that all of them still take."""

    def __init__(self, unit: str = "tile", *, quiet: bool = False) -> None:
        super().__init__(quiet=quiet)
        self._unit = unit
        self._bar: Any = None
        self._pace = Pace()

    def start(self, name: str, index: int, count: int) -> None:
        """Open a bar."""
        from tqdm import tqdm

        self._pace.start(index, count)
        left_s = self._pace.left_s()
        left = "" if left_s is None else f", {_spoken(left_s)} left"
        label = name if count == 1 else f"[{index + 1}/{count}{left}] {name}"
        self._bar = tqdm(desc=label, total=None, unit=self._unit, file=sys.stderr, leave=False, delay=0.5)

    def step(self, done: int, total: int) -> None:
        """Move the bar; a smaller `done` than before (a restart with smaller tiles) moves it back."""
        if self._bar is not None:
            self._bar.total = total
            self._bar.update(done - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def finish(self, name: str, **facts: Any) -> None:
        """Remove the bar."""
        self._pace.worked()
        self._close()

    def skip(self, name: str, reason: str) -> None:
        """Say what was left out."""
        self._close()
        sys.stderr.write(f"skipped {name}: {reason}\n")

    def fail(self, name: str, error: BaseException) -> None:
        """Remove the bar and print the error."""
        self._pace.worked()
        self._close()
        super().fail(name, error)

    def end(self, **totals: int) -> None:
        """Remove the bar."""
        self._close()


class JsonLines:
    """Write one JSON object per line; "event" is start, step, finish, skip, fail, end or log.

    "elapsed_s" is on one clock for all writers: the reporter, the log, and the line that ends a command.
    "start" has "eta_s", the seconds that this item and those after it still take; null before one is done.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._pace = Pace()

    def write(self, event: str, **fields: Any) -> None:
        """Write one line, flushed at once."""
        stream = self._stream or sys.stderr
        elapsed = round(time.monotonic() - _START_S, 3)
        stream.write(json.dumps({"event": event, "elapsed_s": elapsed} | fields) + "\n")
        stream.flush()

    def start(self, name: str, index: int, count: int) -> None:
        """Write a "start" line."""
        self._pace.start(index, count)
        left_s = self._pace.left_s()
        eta_s = None if left_s is None else round(left_s, 1)
        self.write("start", name=name, index=index, count=count, eta_s=eta_s)

    def step(self, done: int, total: int) -> None:
        """Write a "step" line."""
        self.write("step", done=done, total=total)

    def finish(self, name: str, **facts: Any) -> None:
        """Write a "finish" line."""
        self._pace.worked()
        self.write("finish", name=name, **facts)

    def skip(self, name: str, reason: str) -> None:
        """Write a "skip" line."""
        self.write("skip", name=name, reason=reason)

    def pass_over(self, name: str, reason: str) -> None:
        """Write a "skip" line that says so."""
        self.write("skip", name=name, reason=reason, passed_over=True)

    def fail(self, name: str, error: BaseException) -> None:
        """Write a "fail" line."""
        self._pace.worked()
        self.write("fail", name=name, error=type(error).__name__, message=str(error))

    def end(self, **totals: int) -> None:
        """Write an "end" line."""
        self.write("end", **totals)


def make_progress(mode: str, *, unit: str = "tile", quiet: bool = False) -> Progress:
    """Return the reporter for a ``--progress`` value; "auto" draws a bar on a terminal, and none with -q."""
    if mode == "json":
        return JsonLines()
    if mode == "bar" or (mode == "auto" and not quiet and sys.stderr.isatty()):
        return Bar(unit, quiet=quiet)
    return Silent(quiet=quiet)


def last_line(mode: str | None, event: str, message: str) -> None:
    """Write the line that ends a command early; as JSON where ``--progress json`` promised nothing else."""
    if mode == "json":
        JsonLines().write(event, message=message)
    else:
        sys.stderr.write(f"{event}: {message}\n")


class _JsonHandler(logging.Handler):
    """Log records as JSON lines, so that stderr stays one object per line."""

    def emit(self, record: logging.LogRecord) -> None:
        JsonLines().write(
            "log", level=record.levelname.lower(), logger=record.name, message=record.getMessage()
        )


def set_up_logging(verbose: int, *, quiet: bool, mode: str) -> None:
    """Send this package's log to stderr: warnings, with -v info, with -vv everything, with -q errors only.

    Python's own warnings, of libraries, are shown with -v.
    """
    level = logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    handler: logging.Handler = _JsonHandler() if mode == "json" else logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    for name in ("yonos_trt", "yonos_export", "py.warnings"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level if name != "py.warnings" or verbose else logging.ERROR)
        logger.propagate = False
