"""Runs over many files: what overlaps, what is told in which order, and what a failure or Ctrl-C leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import in_own_process, picture
from PIL import Image, PngImagePlugin

from yonos_trt.atomic import remove_leftovers
from yonos_trt.cli import claims
from yonos_trt.cli.file_stages import FileStages
from yonos_trt.cli.job_run import Outcome, run_jobs
from yonos_trt.cli.jobs import Job, PassedOver
from yonos_trt.cli.progress import Silent
from yonos_trt.errors import EngineIntegrityError, InputError, MissingExtraError, OutOfMemoryError
from yonos_trt.images import read_image
from yonos_trt.sr import SR

WAIT_S = 20.0


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert [t.name for t in threading.enumerate() if t not in before] == []


class Told(Silent):
    """Keep every event."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def start(self, name: str, index: int, count: int) -> None:
        self.events.append(("start", Path(name).stem, index, count))

    def step(self, done: int, total: int) -> None:
        self.events.append(("step", done, total))

    def finish(self, name: str, **facts: Any) -> None:
        self.events.append(("finish", Path(name).stem, Path(facts["target"]).name))

    def skip(self, name: str, reason: str) -> None:
        self.events.append(("skip", Path(name).stem))

    def pass_over(self, name: str, reason: str) -> None:
        self.events.append(("pass over", Path(name).name, reason))

    def fail(self, name: str, error: BaseException) -> None:
        self.events.append(("fail", Path(name).stem, str(error)))

    def end(self, **totals: int) -> None:
        self.events.append(("end", totals))


class Fake:
    """Stages that pass the name on, with something to do at chosen places: ("upscale", "b") -> call."""

    def __init__(self, at: dict[tuple[str, str], Callable[[], object]] | None = None, **options: int) -> None:
        self.at = at or {}
        self.calls: list[tuple[str, str]] = []
        self.needed, self.free = options.get("needed", 1), options.get("free", 1 << 30)
        self.fits: dict[str, bool] = {}
        self.left_out: dict[str, tuple[str, ...]] = {}

    def _call(self, stage: str, name: str) -> None:
        self.calls.append((stage, name))
        self.at.get((stage, name), lambda: None)()
        self.calls.append((f"{stage} done", name))

    def read(self, job: Job) -> str:
        self._call("read", job.source.stem)
        return f"picture {job.source.stem}"

    def needed_bytes(self, job: Job, picture: str) -> int:
        return self.needed

    def free_bytes(self) -> int:
        return self.free

    def upscale(self, job: Job, picture: str, on_tiles: Callable[[int, int], None], *, fits: bool) -> str:
        assert picture == f"picture {job.source.stem}"
        self.fits[job.source.stem] = fits
        for tile in range(3):
            on_tiles(tile + 1, 3)
            if tile == 1:
                self._call("upscale", job.source.stem)
        return f"result {job.source.stem}"

    def write(self, job: Job, result: str) -> tuple[str, ...]:
        assert result == f"result {job.source.stem}"
        self._call("write", job.source.stem)
        job.target.write_text(result)
        return self.left_out.get(job.source.stem, ())


def jobs_of(folder: Path, names: str = "abc") -> list[Job]:
    return [Job(folder / f"{name}.png", folder / "out" / f"{name}_x4.png") for name in names]


def meeting(parties: int) -> Callable[[], object]:
    """Return a call that ends when `parties` threads are inside it at the same time, and fails otherwise."""
    barrier = threading.Barrier(parties)
    return lambda: barrier.wait(WAIT_S)


# ---------------------------------------------------------------------------------------------------------
# Overlap


def test_the_next_is_read_and_the_last_is_written_while_the_networks_work(tmp_path: Path) -> None:
    meet = meeting(3)
    fake = Fake({("write", "a"): meet, ("upscale", "b"): meet, ("read", "c"): meet})
    outcome = run_jobs(jobs_of(tmp_path), fake, Told())
    assert [job.source.stem for job in outcome.done] == ["a", "b", "c"]
    assert outcome.exit_code == 0


def test_what_a_file_does_not_carry_is_in_its_event_and_in_the_outcome(tmp_path: Path) -> None:
    told: dict[str, list[str]] = {}

    class Noting(Told):
        def finish(self, name: str, **facts: Any) -> None:
            told[Path(name).stem] = facts["left_out"]

    fake = Fake()
    fake.left_out = {"b": ("a thumbnail", "a comment")}
    outcome = run_jobs(jobs_of(tmp_path), fake, Noting())
    assert told == {"a": [], "b": ["a thumbnail", "a comment"], "c": []}
    assert [(job.source.stem, entries) for job, entries in outcome.left_out] == [
        ("b", ("a thumbnail", "a comment"))
    ]


def test_at_most_one_is_ahead_and_one_behind(tmp_path: Path) -> None:
    reached, go = threading.Event(), threading.Event()

    def hold() -> None:
        reached.set()
        assert go.wait(WAIT_S)

    fake = Fake({("write", "a"): hold})
    thread = threading.Thread(target=run_jobs, args=(jobs_of(tmp_path, "abcdefg"), fake, Told()))
    thread.start()
    assert reached.wait(WAIT_S)
    deadline = time.monotonic() + WAIT_S
    while ("read done", "c") not in fake.calls and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.15)  # enough for a reader without a bound to read them all
    held = [name for stage, name in fake.calls if stage == "read"]
    go.set()
    thread.join(WAIT_S)
    assert held == ["a", "b", "c"]
    assert ("write done", "g") in fake.calls


def test_one_file_alone_is_done_in_the_callers_thread(tmp_path: Path) -> None:
    threads = set()

    def note() -> None:
        threads.add(threading.current_thread())

    run_jobs(jobs_of(tmp_path, "a"), Fake({(s, "a"): note for s in ("read", "upscale", "write")}), Told())
    assert threads == {threading.main_thread()}


def test_a_file_that_is_the_result_of_another_is_read_after_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    first, second = jobs_of(tmp_path, "ab")
    second = Job(first.target, second.target)
    fake = Fake()
    run_jobs([first, second, *jobs_of(tmp_path, "c")], fake, Told(), existing="overwrite")
    assert fake.calls.index(("write done", "a")) < fake.calls.index(("read", "a_x4"))


# ---------------------------------------------------------------------------------------------------------
# Memory


def test_files_that_do_not_fit_beside_each_other_are_done_one_by_one(tmp_path: Path) -> None:
    fake = Fake(needed=60, free=100)
    run_jobs(jobs_of(tmp_path, "abcd"), fake, Told())
    order = [call for call in fake.calls if call[0] in ("upscale", "write done")]
    assert order == [(stage, name) for name in "abcd" for stage in ("upscale", "write done")]
    assert all(fake.fits.values())


def test_files_that_fit_beside_each_other_overlap_within_the_same_limit(tmp_path: Path) -> None:
    meet = meeting(2)
    fake = Fake({("write", "a"): meet, ("upscale", "b"): meet}, needed=50, free=100)
    run_jobs(jobs_of(tmp_path, "abcd"), fake, Told())
    assert all(fake.fits.values())


def test_a_file_that_does_not_fit_at_all_is_told_so_and_is_alone(tmp_path: Path) -> None:
    fake = Fake(needed=101, free=100)
    run_jobs(jobs_of(tmp_path), fake, Told())
    assert fake.fits == dict.fromkeys("abc", False)
    assert fake.calls.index(("write done", "a")) < fake.calls.index(("upscale", "b"))


def test_memory_is_asked_for_by_the_thread_of_the_networks(tmp_path: Path) -> None:
    """A back end answers from its engines' contexts, which are not for two threads at once."""
    threads: dict[str, set[str]] = {"upscale": set(), "needed": set()}

    class Asked(Fake):
        def needed_bytes(self, job: Job, picture: str) -> int:
            threads["needed"].add(threading.current_thread().name)
            return super().needed_bytes(job, picture)

        def upscale(self, job: Job, picture: str, on_tiles: Callable[[int, int], None], *, fits: bool) -> str:
            threads["upscale"].add(threading.current_thread().name)
            return super().upscale(job, picture, on_tiles, fits=fits)

    run_jobs(jobs_of(tmp_path), Asked(), Told())
    assert len(threads["upscale"]) == 1
    assert threads["needed"] == threads["upscale"]


@pytest.mark.parametrize("stage", ["read", "upscale", "write"])
def test_a_failure_keeps_no_picture(tmp_path: Path, stage: str) -> None:
    """The traceback of an error holds the frames it went through, and they the picture."""
    pictures: list[weakref.ref[np.ndarray[Any, Any]]] = []

    class Failing(Fake):
        def _call(self, called: str, name: str) -> None:
            if called == stage:
                held = np.zeros(1000)
                pictures.append(weakref.ref(held))
                try:
                    raise ValueError(f"{held.size} values")
                except ValueError as cause:
                    raise InputError("bad") from cause

    outcome = run_jobs(jobs_of(tmp_path), Failing(), Told())
    assert len(outcome.failed) == len(pictures) == 3
    assert [ref() is None for ref in pictures] == [True] * 3


# ---------------------------------------------------------------------------------------------------------
# What is told


def failing(error: BaseException) -> Callable[[], object]:
    def call() -> None:
        raise error

    return call


def test_events_are_those_of_a_run_one_after_the_other(tmp_path: Path) -> None:
    def run(folder: Path, *, overlap: bool) -> list[tuple[Any, ...]]:
        (folder / "out").mkdir(parents=True)
        (folder / "out" / "d_x4.png").write_text("there already")
        at: dict[tuple[str, str], Callable[[], object]] = {
            ("read", "b"): failing(InputError("b is damaged")),
            ("upscale", "e"): failing(OutOfMemoryError("no room")),
            ("write", "f"): failing(OSError("disk full")),
        }
        if overlap:  # c starts before a is finished, and g's tiles are done before f is told about
            meet, again = meeting(2), meeting(2)
            at |= {("write", "a"): meet, ("read", "c"): meet, ("upscale", "g"): again}
            at["write", "f"] = lambda: (again(), failing(OSError("disk full"))())
        told = Told()
        run_jobs(jobs_of(folder, "abcdefg"), Fake(at), told, existing="skip", overlap=overlap)
        return [tuple(str(x).replace(str(folder), "") for x in event) for event in told.events]

    events = run(tmp_path / "overlapped", overlap=True)
    assert events == run(tmp_path / "plain", overlap=False)
    assert [e[:2] for e in events if e[0] != "step"] == [
        ("start", "a"), ("finish", "a"), ("start", "b"), ("fail", "b"), ("start", "c"), ("finish", "c"),
        ("skip", "d"), ("start", "e"), ("fail", "e"), ("start", "f"), ("fail", "f"), ("start", "g"),
        ("finish", "g"), ("end", "{'done': 3, 'skipped': 1, 'failed': 3}"),
    ]  # fmt: skip


@pytest.mark.parametrize("stage", ["read", "upscale", "write"])
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("bad"), 1),
        (OSError("gone"), 1),
        (MissingExtraError("reading 16-bit TIFF", package="tifffile", extra="images"), 3),
        (MemoryError(), 5),
        (OutOfMemoryError("full"), 5),
    ],
    ids=["input", "os", "package", "memory", "device memory"],
)
def test_a_file_that_fails_is_named_and_the_others_go_on(
    tmp_path: Path, stage: str, error: BaseException, code: int
) -> None:
    told = Told()
    outcome = run_jobs(jobs_of(tmp_path), Fake({(stage, "b"): failing(error)}), told)
    assert [job.source.stem for job in outcome.done] == ["a", "c"]
    assert [(job.source.stem, found) for job, found in outcome.failed] == [("b", error)]
    assert outcome.exit_code == code
    (failed,) = (event for event in told.events if event[0] == "fail")
    assert str(tmp_path / "b.png") in failed[2]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a_x4.png", "c_x4.png"]


@pytest.mark.parametrize("stage", ["read", "upscale", "write"])
def test_an_error_of_the_engine_ends_the_run_after_the_files_before_it(tmp_path: Path, stage: str) -> None:
    told = Told()
    fake = Fake({(stage, "c"): failing(EngineIntegrityError("altered"))})
    with pytest.raises(EngineIntegrityError, match="altered"):
        run_jobs(jobs_of(tmp_path, "abcdef"), fake, told)
    assert [e[1] for e in told.events if e[0] == "finish"] == ["a", "b"]
    assert told.events[-1][0] != "end"
    assert ("write", "d") not in fake.calls


def test_an_output_that_nobody_reads_ends_the_run_and_is_no_failure_of_a_file(tmp_path: Path) -> None:
    told = Told()
    with pytest.raises(BrokenPipeError):
        run_jobs(jobs_of(tmp_path), Fake(), told, written=lambda path: failing(BrokenPipeError())())
    assert not [event for event in told.events if event[0] in ("fail", "end")]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a_x4.png"]


def test_seconds_are_those_of_the_work_without_the_waiting(tmp_path: Path) -> None:
    facts: dict[str, float] = {}

    class Seconds(Silent):
        def finish(self, name: str, **given: Any) -> None:
            facts[Path(name).stem] = given["seconds"]

    fake = Fake({("write", "a"): lambda: time.sleep(0.3)})
    run_jobs(jobs_of(tmp_path), fake, Seconds())
    assert facts["a"] >= 0.3
    assert facts["b"] < 0.2  # it waited for a to be written


def test_outcome_of_mixed_failures_is_1() -> None:
    job = Job(Path("a"), Path("b"))
    assert Outcome(failed=[(job, MemoryError()), (job, OSError())]).exit_code == 1


# ---------------------------------------------------------------------------------------------------------
# Interruption


@pytest.mark.parametrize("stage", ["write", "upscale"])
@in_own_process
def test_interruption_stops_the_networks_at_the_next_tile(tmp_path: Path, stage: str) -> None:
    working, stopped = threading.Event(), threading.Event()

    class Endless(Fake):
        def upscale(self, job: Job, picture: str, on_tiles: Callable[[int, int], None], *, fits: bool) -> str:
            if job.source.stem != "b":
                return super().upscale(job, picture, on_tiles, fits=fits)
            if stage == "upscale":  # the caller waits for b; Ctrl-C reaches it there
                main = threading.main_thread().ident
                threading.Timer(0.05, signal.pthread_kill, [main, signal.SIGINT]).start()
            try:
                while True:
                    working.set()
                    on_tiles(1, 2)
                    time.sleep(0.001)
            finally:
                stopped.set()

    def interrupted() -> None:
        assert working.wait(WAIT_S)
        signal.raise_signal(signal.SIGINT)

    fake = Endless({("write", "a"): interrupted} if stage == "write" else {})
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_jobs(jobs_of(tmp_path), fake, Told())
    finally:
        signal.signal(signal.SIGINT, old)
    assert stopped.is_set()
    assert ("write", "b") not in fake.calls
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == (
        ["a_x4.png"] if stage == "upscale" else []
    )


def test_interruption_wakes_a_file_that_waits_for_memory(tmp_path: Path) -> None:
    fake = Fake({("write", "a"): lambda: (time.sleep(0.1), failing(KeyboardInterrupt())())}, needed=9, free=9)
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs_of(tmp_path), fake, Told())
    assert ("upscale", "b") not in fake.calls


# ---------------------------------------------------------------------------------------------------------
# With real files


@pytest.fixture
def real(tmp_path: Path) -> list[Job]:
    for index, name in enumerate("abc"):
        Image.fromarray(picture(20 + index, 30, seed=index)).save(tmp_path / f"{name}.png")
    return jobs_of(tmp_path)


@pytest.mark.parametrize(
    ("stream", "free"), [("auto", None), ("always", None), ("auto", 1000), ("never", 1000)]
)
def test_files_are_those_of_upscale_file(
    engine_dir: Path,
    real: list[Job],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stream: Any,
    free: int | None,
) -> None:
    with SR(engine_dir, threads=1) as sr:
        if free is not None:
            monkeypatch.setattr(sr, "free_bytes", lambda: free)
        written: list[str] = []
        stages = FileStages(sr, rows=stream)
        outcome = run_jobs(real, stages, Told(), written=lambda path: written.append(path.name))
        assert [job.target.name for job in outcome.done] == written == ["a_x4.png", "b_x4.png", "c_x4.png"]
        for job in real:
            alone = sr.upscale_file(job.source, tmp_path / "alone.png", rows=stream)
            assert alone.read_bytes() == job.target.read_bytes()


@pytest.mark.parametrize("stream", ["always", "never"])
def test_what_is_left_out_is_told_by_every_way_of_writing(
    engine_dir: Path, tmp_path: Path, stream: Any
) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "one")
    text.add(b"prVt", b"private")
    Image.fromarray(picture(20, 30)).save(tmp_path / "a.png", pnginfo=text)
    expected = (
        "PNG chunk prVt (unknown to this program)",
        "text (Title), which TIFF cannot hold",
    )
    with SR(engine_dir, threads=1) as sr:
        told: list[tuple[str, ...]] = []
        sr.upscale_file(tmp_path / "a.png", tmp_path / "b.tif", rows=stream, on_left_out=told.append)
        assert told == [expected]
        jobs = [Job(tmp_path / "a.png", tmp_path / "c.tif")]
        assert run_jobs(jobs, FileStages(sr, rows=stream), Told()).left_out == [(jobs[0], expected)]
        result = sr.upscale(tmp_path / "a.png")
        assert result.left_out == expected[:1]
        result.save(tmp_path / "d.tif")
        assert result.left_out == expected


def test_a_format_without_rows_fails_where_the_result_does_not_fit(
    engine_dir: Path, real: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    jpeg = [Job(job.source, job.target.with_suffix(".jpg")) for job in real]
    with SR(engine_dir, threads=1) as sr:
        monkeypatch.setattr(sr, "free_bytes", lambda: 1000)
        outcome = run_jobs(jpeg, FileStages(sr), Told())
    assert len(outcome.failed) == 3
    assert "cannot be written row by row" in str(outcome.failed[0][1])


@pytest.mark.parametrize("stream", ["auto", "always"])
def test_a_source_is_read_once_however_it_is_written(
    engine_dir: Path, real: list[Job], monkeypatch: pytest.MonkeyPatch, stream: Any
) -> None:
    read: list[Path] = []

    def counted(path: Path, **options: Any) -> Any:
        read.append(path)
        return read_image(path, **options)

    monkeypatch.setattr("yonos_trt.images.read_image", counted)
    with SR(engine_dir, threads=1) as sr:
        monkeypatch.setattr(sr, "free_bytes", lambda: 1000)
        outcome = run_jobs(real, FileStages(sr, rows=stream), Told())
    assert len(outcome.done) == 3
    assert read == [job.source for job in real]


def test_a_picture_beyond_the_memory_limit_does_not_stop_the_others(
    engine_dir: Path, real: list[Job]
) -> None:
    Image.fromarray(np.zeros((2, 60_000, 3), np.uint8)).save(real[1].source)
    with SR(engine_dir, threads=1, memory_limit_mb=60) as sr:
        outcome = run_jobs(real, FileStages(sr), Told())
    assert outcome.done == [real[0], real[2]]
    ((job, error),) = outcome.failed
    assert job is real[1]
    assert "memory limit" in str(error)


def test_a_picture_too_large_for_the_colour_fix_does_not_stop_the_others(
    engine_dir: Path, real: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(picture(200, 200)).save(real[1].source)
    with SR(engine_dir, threads=1, color_fix="adain") as sr:
        small = FileStages(sr).needed_bytes(real[2], read_image(real[2].source))
        monkeypatch.setattr(sr, "free_bytes", lambda: small)
        outcome = run_jobs(real, FileStages(sr), Told())
    assert outcome.done == [real[0], real[2]]
    assert [job for job, _ in outcome.failed] == [real[1]]
    assert "needs the whole picture" in str(outcome.failed[0][1])


def test_what_cannot_be_written_is_refused_before_the_networks_run(engine_dir: Path, tmp_path: Path) -> None:
    Image.fromarray(picture(8, 8, channels=4)).save(tmp_path / "a.png")
    Image.fromarray(picture(8, 8)).save(tmp_path / "b.png")
    jobs = [Job(tmp_path / f"{name}.png", tmp_path / f"{name}_x4.jpg") for name in "ab"]
    told = Told()
    with SR(engine_dir, threads=1) as sr:
        outcome = run_jobs(jobs, FileStages(sr), told)
    assert [job.source.stem for job, _ in outcome.failed] == ["a"]
    assert "transparency" in str(outcome.failed[0][1])
    events = [event[0] for event in told.events]
    assert events[:2] == ["start", "fail"]  # no step between


@in_own_process
def test_ctrl_c_while_a_file_is_written_leaves_none_of_it(
    engine_dir: Path, real: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Image.Image.save
    saved: list[object] = []

    def half(self: Image.Image, target: Any, *arguments: Any, **options: Any) -> None:
        save(self, target, *arguments, **options)
        saved.append(target)
        if len(saved) == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Image.Image, "save", half)
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with SR(engine_dir, threads=1) as sr, pytest.raises(KeyboardInterrupt):
            run_jobs(real, FileStages(sr), Told())
    finally:
        signal.signal(signal.SIGINT, old)
    assert [p.name for p in real[0].target.parent.iterdir()] == ["a_x4.png"]
    assert np.array_equal(read_image(real[0].target).rgb.shape, (80, 120, 3))


# ---------------------------------------------------------------------------------------------------------
# Whatever a library throws at one picture


class _Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


def _every_exception() -> list[BaseException]:
    """One of every exception class of Python, and of the libraries that read and write pictures."""
    import binascii
    import builtins
    import lzma
    import struct
    import zlib

    from PIL import UnidentifiedImageError
    from PIL.Image import DecompressionBombError, DecompressionBombWarning

    classes = [v for v in vars(builtins).values() if isinstance(v, type) and issubclass(v, BaseException)]
    classes = [c for c in dict.fromkeys(classes) if c is not KeyboardInterrupt]
    classes += [struct.error, zlib.error, binascii.Error, lzma.LZMAError, _Unspeakable]
    classes += [UnidentifiedImageError, DecompressionBombError, DecompressionBombWarning]
    made: list[BaseException] = [OSError(28, "No space left on device"), UnicodeError("half a character")]
    for kind in classes:
        if issubclass(kind, BaseExceptionGroup):
            made.append(kind("several", [ValueError("one")]))
        elif kind is UnicodeDecodeError:
            made.append(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"))
        elif kind is UnicodeEncodeError:
            made.append(UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogate"))
        elif kind is UnicodeTranslateError:
            made.append(UnicodeTranslateError("x", 0, 1, "no"))
        else:
            made.append(kind())
    return made


@pytest.mark.parametrize("stage", ["read", "needed_bytes", "free_bytes", "upscale", "write"])
@pytest.mark.parametrize("overlap", [True, False], ids=["overlapped", "plain"])
def test_no_exception_of_one_picture_ends_a_run(tmp_path: Path, stage: str, overlap: bool) -> None:
    thrown = _every_exception()
    assert len(thrown) > 60

    class Throwing(Fake):
        job: Job

        def _throw(self, where: str, job: Job) -> None:
            if where == stage and job.source.stem.startswith("bad"):
                raise thrown[int(job.source.stem[3:])]

        def read(self, job: Job) -> str:
            self._throw("read", job)
            return super().read(job)

        def needed_bytes(self, job: Job, picture: str) -> int:
            self.job = job
            self._throw("needed_bytes", job)
            return 1 << 30  # alone: each asks for the free bytes

        def free_bytes(self) -> int:
            self._throw("free_bytes", self.job)
            return 1 << 30

        def upscale(self, job: Job, picture: str, on_tiles: Callable[[int, int], None], *, fits: bool) -> str:
            self._throw("upscale", job)
            return super().upscale(job, picture, on_tiles, fits=fits)

        def write(self, job: Job, result: str) -> tuple[str, ...]:
            self._throw("write", job)
            super().write(job, result)
            return ()

    names = [name for index in range(len(thrown)) for name in (f"bad{index}", f"good{index}")]
    jobs = [Job(tmp_path / f"{name}.png", tmp_path / "out" / f"{name}_x4.png") for name in names]
    told = Told()
    outcome = run_jobs(jobs, Throwing(), told, overlap=overlap)
    assert [job.source.stem for job in outcome.done] == [name for name in names if name.startswith("good")]
    assert [error for _, error in outcome.failed] == thrown
    failed = [event for event in told.events if event[0] == "fail"]
    for (_, name, text), error in zip(failed, thrown, strict=True):
        assert f"{name}.png" in text
        known = isinstance(error, (OSError, MemoryError)) and str(error)
        assert known or type(error).__name__ in text or "memory" in text, text
    assert outcome.exit_code == 1


@pytest.mark.parametrize(
    ("stage", "overlap"),
    [("read", True), ("read", False), ("needed_bytes", True), ("upscale", True), ("write", True)],
)
def test_whatever_a_library_throws_inside_the_real_stages_is_one_pictures_failure(
    engine_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, overlap: bool
) -> None:
    """Pillow, the planner and the networks' caller throw while real files go through `FileStages`."""
    thrown = _every_exception()
    now = threading.local()

    class Noting(FileStages):
        def read(self, job: Job) -> Any:
            now.stem = job.source.stem
            return super().read(job)

        def needed_bytes(self, job: Job, picture: Any) -> int:
            now.stem = job.source.stem
            return super().needed_bytes(job, picture)

        def upscale(self, job: Job, *arguments: Any, **options: Any) -> Any:
            now.stem = job.source.stem
            return super().upscale(job, *arguments, **options)

        def write(self, job: Job, result: Any) -> tuple[str, ...]:
            now.stem = job.source.stem
            return super().write(job, result)

    owner, name = {
        "read": (PngImagePlugin.PngImageFile, "load"),
        "needed_bytes": (SR, "plan"),
        "upscale": (SR, "upscale"),
        "write": (Image.Image, "save"),
    }[stage]
    real = getattr(owner, name)

    def throwing(*arguments: Any, **options: Any) -> Any:
        if getattr(now, "stem", "").startswith("bad"):
            raise thrown[int(now.stem[3:])]
        return real(*arguments, **options)

    names = [f"bad{index}" for index in range(len(thrown))]
    for index in range(0, len(names) + 10, 10):
        names.insert(index, f"good{index}")
    source = tmp_path / "source.png"
    Image.fromarray(picture(8, 8)).save(source)
    for stem in names:
        os.link(source, tmp_path / f"{stem}.png")
    monkeypatch.setattr(owner, name, throwing)
    jobs = [Job(tmp_path / f"{stem}.png", tmp_path / "out" / f"{stem}_x4.png") for stem in names]
    told = Told()
    with SR(engine_dir, threads=1) as sr:
        outcome = run_jobs(jobs, Noting(sr), told, overlap=overlap)
    good = [stem for stem in names if stem.startswith("good")]
    assert [job.source.stem for job in outcome.done] == good
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(f"{g}_x4.png" for g in good)
    failed = [event for event in told.events if event[0] == "fail"]
    assert [event[1] for event in failed] == [f"bad{index}" for index in range(len(thrown))]
    assert all(f"{stem}.png" in text for _, stem, text in failed)
    assert outcome.exit_code == 1


def test_what_is_passed_over_is_told_first_and_counted(tmp_path: Path) -> None:
    told = Told()
    passed = [PassedOver(tmp_path / "x.heic", "why"), PassedOver(tmp_path / "locked", "no", failed=True)]
    outcome = run_jobs(jobs_of(tmp_path, "a"), Fake(), told, passed_over=passed)
    assert told.events[0] == ("pass over", "x.heic", "why")
    assert told.events[1] == ("fail", "locked", f"{tmp_path / 'locked'}: no")
    assert told.events[-1] == ("end", {"done": 1, "skipped": 1, "failed": 1})
    assert outcome.exit_code == 1


# ---------------------------------------------------------------------------------------------------------
# Several processes


def test_a_file_that_another_process_has_at_work_is_skipped_and_claims_go_away(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path)
    jobs[0].target.parent.mkdir()
    claim = claims.take(jobs[1].target)
    assert claim is not None
    assert claims.take(jobs[1].target) is None  # flock is per open file: as from another process
    told = Told()
    fake = Fake({("write", "c"): failing(OSError("full"))})
    outcome = run_jobs(jobs, fake, told, existing="skip")
    assert [job.source.stem for job in outcome.done] == ["a"]
    assert [job.source.stem for job in outcome.skipped] == ["b"]
    claim.release()
    claim.release()
    assert [p.name for p in jobs[0].target.parent.iterdir()] == ["a_x4.png"]
    assert len(run_jobs(jobs, Fake(), told, existing="skip").done) == 2


def test_a_claim_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    target = tmp_path / "a_x4.png"
    code = "import os, pathlib, sys; from yonos_trt import claims; claims.take(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", f"{code}; os._exit(9)", str(target)], check=False, timeout=60)
    (left,) = tmp_path.iterdir()
    claim = claims.take(target)
    assert claim is not None
    assert remove_leftovers(tmp_path) == []  # ours, and alive
    claim.release()
    assert not left.exists()


def test_without_a_writable_folder_a_claim_holds_nothing(tmp_path: Path) -> None:
    claim = claims.take(tmp_path / "missing" / "a.png")
    assert claim is not None
    claim.release()


def test_without_threads_files_are_done_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yonos_trt.cli.job_run.startable_threads", lambda count: 0)
    threads = set()
    fake = Fake({("read", name): lambda: threads.add(threading.current_thread()) for name in "abc"})
    assert len(run_jobs(jobs_of(tmp_path), fake, Told()).done) == 3
    assert threads == {threading.main_thread()}


def test_errors_of_the_system_are_told_in_its_words(tmp_path: Path) -> None:
    told = Told()
    run_jobs(jobs_of(tmp_path, "a"), Fake({("read", "a"): failing(OSError(13, "Denied", "x/y"))}), told)
    (failed,) = (event for event in told.events if event[0] == "fail")
    assert failed[2] == f"{tmp_path / 'a.png'}: x/y: Denied"


# ---------------------------------------------------------------------------------------------------------
# Files that change, and disks that are full, while a run goes on


def test_sources_and_folders_that_go_away_fail_by_name(engine_dir: Path, real: list[Job]) -> None:
    """b is cut and c is gone after the plan was made; a's folder is gone when its result is written."""
    with SR(engine_dir, threads=1) as sr:

        class Changing(FileStages):
            def upscale(self, job: Job, picture: Any, on_tiles: Any, *, fits: bool) -> Any:
                if job.source.stem == "a":
                    job.target.parent.rmdir()
                return super().upscale(job, picture, on_tiles, fits=fits)

        real[1].source.write_bytes(real[1].source.read_bytes()[:200])
        real[2].source.unlink()
        outcome = run_jobs(real, Changing(sr), Told(), overlap=False)
    assert [job.source.stem for job, _ in outcome.failed] == ["a", "b", "c"]
    texts = [str(error) for _, error in outcome.failed]
    assert "No such file or directory" in texts[0]
    assert "truncated" in texts[1]
    assert "No such file or directory" in texts[2]


def test_two_writers_of_one_output_leave_one_whole_file(engine_dir: Path, real: list[Job]) -> None:
    target = real[0].target
    target.parent.mkdir()
    codes: list[int] = []

    def write(job: Job) -> None:
        with SR(engine_dir, threads=1) as sr:
            for _ in range(4):
                codes.append(
                    run_jobs(
                        [Job(job.source, target)], FileStages(sr), Silent(), existing="overwrite"
                    ).exit_code
                )

    threads = [threading.Thread(target=write, args=(job,)) for job in real]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert codes == [0] * 12
    assert read_image(target).rgb.shape[1] == 120
    assert [p.name for p in target.parent.iterdir()] == [target.name]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts a small disk: needs root")
@pytest.mark.parametrize("limit", ["size=28k", "nr_inodes=3"])
def test_a_disk_that_fills_up_fails_by_name_and_leaves_no_part(
    engine_dir: Path, real: list[Job], tmp_path: Path, limit: str
) -> None:
    disk = tmp_path / "out"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", limit, "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine mounts nothing")
    try:
        with SR(engine_dir, threads=1) as sr:
            outcome = run_jobs(real, FileStages(sr), Told())
        assert outcome.done
        assert outcome.failed
        for job, error in outcome.failed:
            assert str(error) == f"{job.target}: cannot be written: No space left on device"
        assert sorted(p.name for p in disk.iterdir()) == [job.target.name for job in outcome.done]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
