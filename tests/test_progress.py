"""Reporters: what goes to stderr in each mode."""

from __future__ import annotations

import io
import json
import logging
import time
from typing import Any

import pytest

from yonos_trt.cli.progress import Bar, JsonLines, Silent, _spoken, make_progress, set_up_logging


@pytest.mark.parametrize(
    ("mode", "kind"), [("json", JsonLines), ("bar", Bar), ("none", Silent), ("auto", Silent)]
)
def test_modes(mode: str, kind: type) -> None:
    assert type(make_progress(mode)) is kind


def test_auto_draws_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", type("Tty", (io.StringIO,), {"isatty": lambda self: True})())
    assert type(make_progress("auto")) is Bar
    assert type(make_progress("auto", quiet=True)) is Silent
    assert type(make_progress("bar", quiet=True)) is Bar


def test_json_lines_are_whole_objects_with_their_fields() -> None:
    stream = io.StringIO()
    lines = JsonLines(stream)
    lines.start("a\nb", 0, 2)
    lines.step(1, 3)
    lines.finish("a\nb", target="c")
    lines.skip("d", "exists")
    lines.fail("e", ValueError("bad"))
    lines.end(done=1, failed=1)
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [e["event"] for e in events] == ["start", "step", "finish", "skip", "fail", "end"]
    assert events[0]["name"] == "a\nb"
    assert events[4]["error"] == "ValueError"
    assert all(e["elapsed_s"] >= 0 for e in events)


def test_all_lines_are_on_one_clock() -> None:
    """The log and the line that ends a command have writers of their own."""
    first, second = io.StringIO(), io.StringIO()
    early = JsonLines(first)
    time.sleep(0.02)
    early.write("step")
    JsonLines(second).write("interrupted")
    assert json.loads(second.getvalue())["elapsed_s"] >= json.loads(first.getvalue())["elapsed_s"]


def test_the_bar_may_go_back_and_leaves_nothing_but_errors(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar()
    bar.start("a", 0, 1)
    for done, total in ((1, 4), (2, 4), (1, 16), (16, 16)):
        bar.step(done, total)
    bar.finish("a")
    bar.start("b", 1, 2)
    bar.fail("b", ValueError("broken"))
    bar.skip("c", "exists")
    bar.end()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [x.strip() for x in captured.err.splitlines() if x.strip()][-2:] == [
        "error: broken",
        "skipped c: exists",
    ]


@pytest.mark.parametrize(
    ("mode", "quiet", "shown"), [("none", False, True), ("json", False, True), ("none", True, False)]
)
def test_warnings_of_the_package_are_shown_unless_quiet(
    capsys: pytest.CaptureFixture[str], mode: str, quiet: bool, shown: bool, request: Any
) -> None:
    logger = logging.getLogger("yonos_trt")
    before = (logger.handlers[:], logger.level, logger.propagate)

    def restore() -> None:
        logger.handlers[:], logger.propagate = before[0], before[2]
        logger.setLevel(before[1])

    request.addfinalizer(restore)
    set_up_logging(0, quiet=quiet, mode=mode)
    logging.getLogger("yonos_trt.sr").warning("careful")
    text = capsys.readouterr().err
    assert ("careful" in text) == shown
    if mode == "json":
        assert json.loads(text)["event"] == "log"


class Clock:
    """Stands in for ``time.monotonic``; moves when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)


def test_the_time_that_is_left_is_the_mean_of_what_was_worked_times_what_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, stream = Clock(monkeypatch), io.StringIO()
    lines = JsonLines(stream)
    for index, (takes_s, end) in enumerate([(10, "finish"), (0, "skip"), (20, "fail"), (6, "finish")]):
        lines.start(f"{index}", index, 6)
        clock.now_s += takes_s
        if end == "fail":
            lines.fail(f"{index}", ValueError("bad"))
        else:
            getattr(lines, end)(f"{index}", *(["exists"] if end == "skip" else []))
    lines.start("4", 4, 6)
    starts = [e for e in map(json.loads, stream.getvalue().splitlines()) if e["event"] == "start"]
    # nothing known; 10 s each for 5; the same for 4 (a skipped one took none); 15 s for 3; 12 s for 2
    assert [e["eta_s"] for e in starts] == [None, 50.0, 40.0, 45.0, 24.0]


def test_the_bar_says_the_time_that_all_items_still_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, bar = Clock(monkeypatch), Bar()
    labels = []
    for index, takes_s in enumerate([40, 20, 600]):
        bar.start("a.png", index, 4)
        labels.append(bar._bar.desc)
        clock.now_s += takes_s
        bar.finish("a.png")
    bar.start("a.png", 3, 4)
    labels.append(bar._bar.desc)
    bar.end()
    assert [label.partition("]")[0] for label in labels] == [
        "[1/4", "[2/4, 2 min left", "[3/4, 60 s left", "[4/4, 4 min left",
    ]  # fmt: skip
    assert [_spoken(s) for s in (0.4, 99.4, 99.6, 5969, 5971, 86400)] == [
        "0 s", "99 s", "2 min", "99 min", "1.7 h", "24.0 h",
    ]  # fmt: skip
