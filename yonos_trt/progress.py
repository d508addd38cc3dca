"""How a command line tells what it is doing: a bar or one JSON object per line, always on stderr."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, Literal, Protocol, TextIO

__all__ = [
    "META_KEY",
    "Bar",
    "JsonLines",
    "Mode",
    "Progress",
    "Silent",
    "last_line",
    "make_progress",
    "set_up_logging",
]

Mode = Literal["auto", "bar", "json", "none"]

_START_S = time.monotonic()

META_KEY = "yonos_trt.progress"
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

    def fail(self, name: str, error: BaseException) -> None:
        """An item failed."""

    def end(self, **totals: int) -> None:
        """The run is over."""


class Silent:
    """Say nothing but failures."""

    def start(self, name: str, index: int, count: int) -> None:
        """Say nothing."""

    def step(self, done: int, total: int) -> None:
        """Say nothing."""

    def finish(self, name: str, **facts: Any) -> None:
        """Say nothing."""

    def skip(self, name: str, reason: str) -> None:
        """Say nothing."""

    def fail(self, name: str, error: BaseException) -> None:
        """Print the error."""
        sys.stderr.write(f"error: {error}\n")

    def end(self, **totals: int) -> None:
        """Say nothing."""


class Bar(Silent):
    """Draw one bar for the item at work."""

    def __init__(self, unit: str = "tile") -> None:
        self._unit = unit
        self._bar: Any = None

    def start(self, name: str, index: int, count: int) -> None:
        """Open a bar."""
        from tqdm import tqdm

        label = name if count == 1 else f"[{index + 1}/{count}] {name}"
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
        self._close()

    def skip(self, name: str, reason: str) -> None:
        """Say what was left out."""
        self._close()
        sys.stderr.write(f"skipped {name}: {reason}\n")

    def fail(self, name: str, error: BaseException) -> None:
        """Remove the bar and print the error."""
        self._close()
        super().fail(name, error)

    def end(self, **totals: int) -> None:
        """Remove the bar."""
        self._close()


class JsonLines:
    """Write one JSON object per line; "event" is start, step, finish, skip, fail, end or log.

    "elapsed_s" is on one clock for all writers: the reporter, the log, and the line that ends a command.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    def write(self, event: str, **fields: Any) -> None:
        """Write one line, flushed at once."""
        stream = self._stream or sys.stderr
        elapsed = round(time.monotonic() - _START_S, 3)
        stream.write(json.dumps({"event": event, "elapsed_s": elapsed} | fields) + "\n")
        stream.flush()

    def start(self, name: str, index: int, count: int) -> None:
        """Write a "start" line."""
        self.write("start", name=name, index=index, count=count)

    def step(self, done: int, total: int) -> None:
        """Write a "step" line."""
        self.write("step", done=done, total=total)

    def finish(self, name: str, **facts: Any) -> None:
        """Write a "finish" line."""
        self.write("finish", name=name, **facts)

    def skip(self, name: str, reason: str) -> None:
        """Write a "skip" line."""
        self.write("skip", name=name, reason=reason)

    def fail(self, name: str, error: BaseException) -> None:
        """Write a "fail" line."""
        self.write("fail", name=name, error=type(error).__name__, message=str(error))

    def end(self, **totals: int) -> None:
        """Write an "end" line."""
        self.write("end", **totals)


def make_progress(mode: str, *, unit: str = "tile", quiet: bool = False) -> Progress:
    """Return the reporter for a ``--progress`` value; "auto" draws a bar on a terminal, and none with -q."""
    if mode == "json":
        return JsonLines()
    if mode == "bar" or (mode == "auto" and not quiet and sys.stderr.isatty()):
        return Bar(unit)
    return Silent()


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
    """Send this package's log to stderr: warnings, with -v info, with -vv everything, with -q errors only."""
    level = logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    handler: logging.Handler = _JsonHandler() if mode == "json" else logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    for name in ("yonos_trt", "yonos_export"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False
