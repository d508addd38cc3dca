"""`yonos batch`: the same bytes as `yonos upscale`, whatever fails or dies on the way."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import make_engine_dir, picture
from PIL import Image

from yonos_trt.cli import batch
from yonos_trt.cli.main import cli
from yonos_trt.cli.progress import Silent
from yonos_trt.errors import ConfigError, InputError, MissingExtraError, YonosError
from yonos_trt.host import usable_cpus
from yonos_trt.ray_data import cluster, places, run, upscale
from yonos_trt.ray_data.cluster import connected, share_of
from yonos_trt.ray_data.planning import plan

# Ray warns of its own settings, and leaves sockets to the garbage collector. While it waits for a result it
# swallows what a signal's handler raises, so that only the end of the process ends a test that hangs.
pytestmark = [
    *(pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "ResourceWarning")),
    pytest.mark.timeout(600, method="thread"),
]

YONOS = [sys.executable, "-c", "from yonos_trt.console import yonos; yonos()"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_engine_dir(tmp_path_factory.mktemp("ray") / "engine"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of pictures of mixed sizes and formats."""
    top = tmp_path_factory.mktemp("photos")
    (top / "sub" / "more").mkdir(parents=True)
    for i in range(9):
        folder = (top, top / "sub", top / "sub" / "more")[i % 3]
        Image.fromarray(picture(20 + 3 * i, 30 - i)).save(folder / f"p{i}.{('png', 'jpg', 'webp')[i // 3]}")
    Image.fromarray(picture(16, 16)[..., 0]).save(top / "a grey # 100%.png")
    (top / "notes.txt").write_text("no picture")
    return top


@pytest.fixture(scope="module")
def expected(photos: Path, engine: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What `yonos upscale` makes of them."""
    out = tmp_path_factory.mktemp("expected")
    command = ["upscale", "-i", str(photos), "-o", str(out), "-m", engine, "--recursive"]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    return contents(out)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Ray on this machine, for all tests of this file that need no other."""
    pytest.importorskip("ray", reason="ray is not installed: pip install '.[ray]'")
    s3 = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_EC2_METADATA_DISABLED": "true"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.items():
            patch.setenv(name, value)  # workers have the environment that Ray started with
        with contextlib.ExitStack() as stack:
            try:
                module = stack.enter_context(connected(None))
            except YonosError as error:  # Ray gives its processes 30 s
                if "timed out" in str(error) and os.getloadavg()[0] > 4 * usable_cpus():
                    pytest.skip(f"this machine is too busy to start Ray, three times: {error}")
                raise
            yield module


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class Told(Silent):
    """Keeps what it is told; `on_finish` is called with the number of results and the worker's process."""

    def __init__(self, on_finish: Any = None) -> None:
        super().__init__(quiet=True)
        self.finished: list[str] = []
        self.failed: list[str] = []
        self.totals: dict[str, int] = {}
        self._on_finish = on_finish

    def finish(self, name: str, **facts: Any) -> None:
        self.finished.append(name)
        if self._on_finish is not None:
            self._on_finish(len(self.finished), int(facts["worker"].rpartition(":")[2]))

    def fail(self, name: str, error: BaseException) -> None:
        self.failed.append(name)

    def end(self, **totals: int) -> None:
        self.totals = totals


# ---------------------------------------------------------------------------------------------------------
# Without Ray


def test_without_the_extra_the_error_names_it(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"needs the package 'ray'.*'\.\[ray\]'"):
        upscale(str(photos), str(tmp_path))
    done = CliRunner().invoke(cli, ["batch", str(photos), str(tmp_path)])
    assert (done.exit_code, "'.[ray]'" in done.stderr) == (3, True)


def test_rays_client_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install '.[ray]'")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    for address in ("ray://head:10001", "auto"):  # Ray's own rule for "auto"
        with (
            pytest.raises(MissingExtraError, match=r"ray://head:10001 needs the package 'grpc'.*'\.\[ray\]'"),
            connected(address),
        ):
            pass


def test_an_address_of_something_else_or_of_nobody_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would import a module of that name, or wait a quarter of an hour."""
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install '.[ray]'")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was asked"))
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    none = r"is no address of Ray; expected auto, HOST:PORT or ray://HOST"
    for address in ("this://head:1", "auto", "local", "head", "head:port", "ray://head", ":6379"):
        with pytest.raises(ConfigError, match=none), connected(address):
            pass
    with socket.socket() as taken:  # and nobody listens
        taken.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{taken.getsockname()[1]}"
        for address in (nobody, f"ray://{nobody}", "127.0.0.1:99999", "name.invalid:6379"):
            with (
                pytest.raises(ConfigError, match=r"there is no Ray cluster at '.*; start one"),
                connected(address),
            ):
                pass


def test_a_client_whose_process_did_not_live_connects_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server forks one for each client while other threads of it hold gRPC."""
    pytest.importorskip("ray", reason="ray is not installed: pip install '.[ray]'")
    said = (
        "Initialization failure from server:\nTraceback (most recent call last):\n  File\nRuntimeError: died"
    )
    errors: list[Exception] = [ConnectionAbortedError(said)]

    class Ray:
        @staticmethod
        def init(**_: Any) -> None:
            if errors:
                raise errors.pop()

        @staticmethod
        def shutdown() -> None:
            pass

    cluster._start(Ray(), {"address": "ray://head:10001"})
    assert not errors
    errors[:] = [ConnectionAbortedError(said)] * 9
    with pytest.raises(
        YonosError,
        match=r"failure from server: RuntimeError: died\); start it with GRPC_ENABLE_FORK_SUPPORT=0",
    ):
        cluster._start(Ray(), {"address": "ray://head:10001"})
    assert len(errors) == 6
    errors[:] = [ConnectionError("ray client connection timeout")]
    with pytest.raises(ConfigError, match=r"there is no Ray cluster at 'ray://head:10001' \(ray client conn"):
        cluster._start(Ray(), {"address": "ray://head:10001"})


def test_the_dry_run_starts_nothing_and_leaves_out_what_is_there(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "p1_x4.png").write_bytes(b"")
    done = CliRunner().invoke(cli, ["batch", str(photos), str(tmp_path), "--recursive", "--dry-run"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["skipped"], len(told["jobs"])) == (1, 9)
    assert str(tmp_path / "sub" / "p1_x4.png") not in {job["target"] for job in told["jobs"]}


def test_blocks_get_smaller_and_hold_every_picture() -> None:
    for count, workers in ((1, 1), (7, 2), (1000, 3), (20_000, 100)):
        sizes = run.block_sizes(count, workers)
        assert (sum(sizes), sizes[-1]) == (count, 1)
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] <= max(32, 2 * workers)
    assert run.block_sizes(1_000_000, 100)[0] == 200  # each costs the driver some milliseconds
    assert [run.told_every_s(workers) for workers in (1, 25, 100)] == [0.5, 0.5, 2.0]


@pytest.mark.parametrize(("tell_s", "messages"), [(0.0, 6), (30.0, 1)])
def test_results_are_told_together_for_a_while(tell_s: float, messages: int) -> None:
    from yonos_trt.ray_data.worker import _grouped

    rows: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def work() -> None:
        for place in range(6):
            rows.put({"place": place})
            time.sleep(0.02)
        rows.put(None)

    thread = threading.Thread(target=work)
    thread.start()
    told = list(_grouped(rows, tell_s))
    thread.join()
    assert [row["place"] for group in told for row in group] == list(range(6))
    assert len(told) == messages if tell_s else len(told) > 1


def test_a_slow_picture_holds_back_few_others_and_none_at_the_end() -> None:
    """Every worker takes the next block when it has finished one; one picture takes as long as a hundred."""
    count, workers, slow_s = 1000, 4, 100
    ideal_s = (count - 1 + slow_s) / workers
    for slow in range(0, count, 7):
        free_s, first = [0] * workers, 0
        for size in run.block_sizes(count, workers):
            worker = free_s.index(min(free_s))
            free_s[worker] += size + (slow_s - 1) * (first <= slow < first + size)
            first += size
        late_s = max(free_s) - ideal_s
        assert late_s <= max(slow_s, 32), (slow, late_s)  # the picture itself, at the very end
        if slow < count // 2:
            assert late_s <= 2, (slow, late_s)


def test_workers_share_the_nodes_that_have_what_they_need() -> None:
    def node(name: str, *, alive: bool = True, **resources: float) -> dict[str, Any]:
        return {"NodeID": name, "Alive": alive, "Resources": resources}

    class Cluster:
        @staticmethod
        def nodes() -> list[dict[str, Any]]:
            gib = 1 << 30
            return [
                node("a", CPU=8, GPU=2, memory=20 * gib),
                node("b", CPU=16, GPU=2, memory=40 * gib),
                node("c", CPU=4, memory=10 * gib),
                node("d", alive=False, CPU=64, GPU=8, memory=gib),
            ]

    def shared(**asked: Any) -> Any:
        options = {"workers": None, "cpus": None, "gpus": None, "memory_mb": None, "on_gpu": True} | asked
        return share_of(Cluster(), **options)

    share = shared()  # one worker a GPU
    assert (share.workers, share.cpus, share.gpus, share.nodes) == (4, 4, 1.0, ("a", "b"))
    assert share.memory_bytes == int(20 * (1 << 30) / 2 * 0.9)
    assert (shared(gpus=0.5).workers, shared(gpus=0.5).cpus) == (8, 2)
    share = shared(on_gpu=False)  # one a node
    assert (share.workers, share.cpus, share.gpus, share.nodes) == (3, 4, 0.0, ("a", "b", "c"))
    share = shared(workers=2, cpus=3, memory_mb=100)
    assert (share.workers, share.cpus, share.memory_bytes) == (2, 3, 100 << 20)
    with pytest.raises(
        ConfigError, match=r"9 workers with 1 CPUs and 0.5 GPUs .* room for 8; lower --workers"
    ):
        shared(workers=9, gpus=0.5)
    with pytest.raises(
        ConfigError, match=r"4 GPUs fits no node of the cluster; ask for less with --threads or"
    ):
        shared(gpus=4)


def test_the_bar_counts_pictures_and_failures_stand_above_it(capsys: pytest.CaptureFixture[str]) -> None:
    bar = batch._progress("bar", quiet=False)
    for index in range(2):
        bar.start(f"p{index}", index, 2)
    bar.fail("p1", InputError("p1: truncated"))
    bar.end(done=1, failed=1)
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert "picture/s" in shown
    assert "p1: truncated" in shown


def test_the_command_ends_with_the_code_of_the_outcome(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = [{"name": "a.png", "reason": "truncated", "worker": ["x:1", "x:2"], "seconds": 0.1}]
    for outcome, code in ((run.BatchOutcome(done=1), 0), (run.BatchOutcome(done=1, failed=failed), 1)):
        monkeypatch.setattr(run, "upscale", lambda *_, outcome=outcome, **__: outcome)
        done = CliRunner().invoke(cli, ["batch", str(photos), str(tmp_path)])
        assert (done.exit_code, f"1 done, 0 skipped, {code} failed" in done.stderr) == (code, True)


def test_names_are_shown_without_secrets_and_survive_the_way_through_a_uri() -> None:
    top = "s3://key:secret@bucket/in?region=eu&endpoint_override=localhost"
    name = places.below(top, "sub/a b#1?%.png")
    assert places.shown(name) == "s3://bucket/in/sub/a b#1?%.png"
    assert name.endswith("/in/sub/a%20b%231%3F%25.png?region=eu&endpoint_override=localhost")
    assert places.local("file:///in/a%20b.png") == "/in/a b.png"
    with pytest.raises(InputError, match="names the machine 'elsewhere'"):
        places.local("file://elsewhere/in")
    assert places.below("hdfs:///in", "a.png") == "hdfs:///in/a.png"  # one slash would be a local path


def test_names_that_are_not_utf_8_are_sent_and_come_back() -> None:
    for name in ("/in/na\udcff\udcfeme #?%.png", "/in/ä 100%.png"):
        places.sendable(name).encode()
        assert places.local(places.sendable(name)) == name
    assert places.below("s3://bucket/in", "\udcff.png") == "s3://bucket/in/%FF.png"


def test_what_would_be_another_place_is_refused(tmp_path: Path) -> None:
    """What stands behind ``#`` is no part of the path; neither is ``?`` of a file."""
    pytest.importorskip("pyarrow")
    (tmp_path / "in").mkdir()
    here = f"file://{tmp_path}"
    for source, target, said in (
        (f"{here}/in#2", "out", "'#' is written %23"),
        (f"{here}/in?2", "out", r"'\?' is written %3F"),
        ("memory://batch/in#2", "out", r"^memory://batch/in#\.\.\.: '#' is written %23"),
        (f"{here}/none", "out", f"^{tmp_path}/none: not found"),
    ):
        with pytest.raises(InputError, match=said):
            plan(source, str(tmp_path / target), recursive=False, suffix="", label="4", format=None)


def test_keys_that_lead_out_of_the_target_are_told_of(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    pytest.importorskip("pyarrow")
    keys = ("p.png", "../q.png", "sub/../../r.png", "./s.png", "/t.png", "u//v.png")
    for key in keys:
        fsspec.filesystem("memory").pipe(f"/dots/in/{key}", b"")
    made = plan("memory://dots/in", str(tmp_path), recursive=True, suffix="_x{scale}", label="4", format=None)
    assert made.targets == [str(tmp_path / "p_x4.png")]
    assert len([name for name, reason, failed in made.passed_over if failed and "rename it" in reason]) == 5


def test_places_that_take_no_file_are_refused_before_ray_starts(
    photos: Path, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install '.[ray]'")
    monkeypatch.setattr(run, "connected", lambda address: pytest.fail("Ray was started"))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"file/out: cannot be made \(Not a directory\)"):
        upscale(str(photos), str(tmp_path / "file" / "out"), engine_dir=engine)
    report = str(tmp_path / "file" / "report")
    with pytest.raises(InputError, match=r"file: cannot be written to"):
        upscale(str(photos), str(tmp_path / "out"), engine_dir=engine, report=report)
    monkeypatch.setattr(os, "access", lambda *_, **__: False)  # nothing is refused to root
    with pytest.raises(InputError, match=r"out: cannot be written to; mend its rights"):
        upscale(str(photos), str(tmp_path / "out"), engine_dir=engine)


def test_a_file_system_of_fsspec_is_listed_read_and_written_whole(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    pytest.importorskip("pyarrow")
    memory = fsspec.filesystem("memory")
    for name in ("in/p.png", "in/sub/q.jpg", "in/big/p_x4.png", "in/notes.txt"):
        memory.pipe(f"/batch/{name}", name.encode())
    made = plan(
        "memory://batch/in",
        "memory://batch/in/big",
        recursive=True,
        suffix="_x{scale}",
        label="4",
        format=None,
    )
    assert [places.shown(s) for s in made.sources] == [
        "memory://batch/in/p.png",
        "memory://batch/in/sub/q.jpg",
    ]
    assert made.there == [0]
    assert [(name, reason) for name, reason, _ in made.passed_over] == [
        ("memory://batch/in/notes.txt", ".txt is no picture format that is read")
    ]
    places.fetch(made.sources[1], tmp_path / "q")
    places.put(tmp_path / "q", made.targets[1])
    assert memory.cat("/batch/in/big/sub/q_x4.jpg") == b"in/sub/q.jpg"
    assert memory.find("/batch/in/big") == ["/batch/in/big/p_x4.png", "/batch/in/big/sub/q_x4.jpg"]
    with pytest.raises(InputError, match=r"memory://batch/in/none\.png: not found"):
        places.fetch("memory://batch/in/none.png", tmp_path / "none")


def test_an_address_without_a_file_system_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(InputError, match=r"nothing://here/: no file system for this address"):
        plan("nothing://here/in", str(tmp_path), recursive=False, suffix="", label="4", format=None)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("hdfs://nowhere:8020/in", r"^hdfs://nowhere:8020/in: HDFS needs Java and .*libhdfs.*JAVA_HOME"),
        ("gs://bucket/in?retry_limit_seconds=0.2", r"^gs://bucket/in: access is refused.*GOOGLE_APPLICATION"),
        (
            "gs://anonymous@bucket/in?retry_limit_seconds=0.2&scheme=http&endpoint_override=127.0.0.1:9",
            r"^gs://bucket/in: the file system failed 3 times; say it again .*Could not connect",
        ),
    ],
    ids=["hdfs", "gs", "gs-unreachable"],
)
def test_file_systems_that_cannot_be_used_here_say_why(
    source: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(places, "_PAUSE_S", 0.001)
    for name in ("JAVA_HOME", "HADOOP_HOME", "ARROW_LIBHDFS_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "CLOUDSDK_CONFIG"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(InputError, match=said):
        plan(source, str(tmp_path / "out"), recursive=False, suffix="", label="4", format=None)


def test_two_pictures_with_one_target_are_refused(photos: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    pytest.importorskip("pyarrow")
    for name in ("a.bmp", "a.png"):
        fsspec.filesystem("memory").pipe(f"/twice/{name}", b"")
    with pytest.raises(ConfigError, match=r"twice/a.bmp and .*twice/a.png would both be written to"):
        plan("memory://twice", "memory://big", recursive=False, suffix="", label="4", format=None)


# ---------------------------------------------------------------------------------------------------------
# On a cluster of this machine


def test_results_are_those_of_upscale_and_a_second_run_does_nothing(
    ray: Any, photos: Path, engine: str, expected: dict[str, bytes], tmp_path: Path
) -> None:
    told = Told()
    done = upscale(
        str(photos), str(tmp_path), engine_dir=engine, recursive=True, workers=2, threads=1, progress=told
    )
    assert (done.done, done.failed, done.exit_code) == (10, [], 0)
    assert contents(tmp_path) == expected
    assert sorted(told.finished) == sorted(str(p) for p in photos.rglob("*.*") if p.suffix != ".txt")
    (tmp_path / "p0_x4.png").write_bytes(b"somebody's")
    again = upscale(f"file://{photos}", f"file://{tmp_path}", engine_dir=engine, recursive=True, workers=2)
    assert (again.done, again.skipped) == (0, 11)
    assert (tmp_path / "p0_x4.png").read_bytes() == b"somebody's"


def test_a_file_that_fails_is_tried_by_another_worker_and_reported(
    ray: Any, photos: Path, engine: str, tmp_path: Path
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    shutil.copy(photos / "p0.png", source)
    shutil.copy(photos / "p0.png", source / "not utf-8: \udcff.png")
    (source / "bad.png").write_bytes((photos / "p0.png").read_bytes()[:99])
    out.mkdir()
    (out / "p0_x4.png").write_bytes(b"old")
    told = Told()
    done = upscale(
        str(source), str(out), engine_dir=engine, overwrite=True, workers=2, threads=1, progress=told
    )
    assert (done.done, done.exit_code, told.totals) == (2, 1, {"done": 2, "skipped": 0, "failed": 1})
    assert told.failed == [str(source / "bad.png")]
    (line,) = [json.loads(x) for x in (out / "yonos-report.jsonl").read_text().splitlines()]
    assert line["name"] == str(source / "bad.png")
    assert "truncated" in line["reason"]
    assert len(set(line["worker"])) == 2  # not the same process twice
    assert line["seconds"] >= 0
    assert (out / "p0_x4.png").read_bytes() != b"old"
    shutil.copy(photos / "p0.png", source / "bad.png")
    assert upscale(str(source), str(out), engine_dir=engine, workers=1).exit_code == 0
    assert sorted(contents(out)) == ["bad_x4.png", "not utf-8: \udcff_x4.png", "p0_x4.png"]


def test_a_worker_on_another_disk_ends_the_run(photos: Path, engine: str, tmp_path: Path) -> None:
    """It would write results where nobody looks for them."""
    pytest.importorskip("ray", reason="ray is not installed: pip install '.[ray]'")
    block = {"index": [7], "source": [str(photos / "p0.png")], "target": [str(tmp_path / "out" / "p.png")]}
    worker = run.Teller(sight=[str(photos), str(tmp_path / "out")], engine_dir=engine)
    ((row,),) = [json.loads(told) for rows in worker(block) for told in rows["told"]]
    assert (row["index"], row["state"], row["error"]) == (7, "fatal", "InputError")
    assert row["reason"].startswith(f"{tmp_path}/out is not seen; folders lie on a disk that all nodes share")
    assert contents(tmp_path) == {}


def test_what_every_picture_would_meet_ends_the_run(
    ray: Any, photos: Path, engine: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"needs the whole picture.*\(in the worker"):
        upscale(str(photos), str(tmp_path), engine_dir=engine, rows="always", color_fix="adain", workers=1)
    with pytest.raises(ConfigError, match=r"999 workers .* lower --workers"):
        upscale(str(photos), str(tmp_path), engine_dir=engine, workers=999)
    with pytest.raises(ConfigError, match="scale is 9"):
        upscale(str(photos), str(tmp_path), engine_dir=engine, scale=9)
    assert contents(tmp_path) == {}


def test_upscaler_takes_arrays_with_the_threads_and_memory_of_its_worker(ray: Any, engine: str) -> None:
    from yonos_trt import SR
    from yonos_trt.ray_data import Upscaler

    class Spy(Upscaler):
        def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
            for made in super().__call__(batch):
                limit = self.sr.__getstate__()["memory_limit_mb"]
                facts = {"threads": [self.sr.threads], "limit": [limit], "node": [self.node]}
                yield made | facts | {"sr": [f"{self.worker} {id(self.sr)}"]}

    data = ray.data.from_items([{"image": picture(20, 24), "name": name} for name in "ab"])
    kwargs = {"engine_dir": engine}
    done = data.map_batches(
        Spy,
        batch_size=1,
        fn_constructor_kwargs=kwargs,
        num_cpus=1,
        memory=300 << 20,
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    row, other = sorted(done.take_all(), key=lambda row: str(row["name"]))
    with SR(engine) as sr:
        assert np.array_equal(row["image"], sr.upscale(picture(20, 24)))
    assert (row["name"], row["threads"], row["limit"]) == ("a", 1, 300)
    assert row["sr"] == other["sr"]  # one, opened once
    assert row["node"] == ray.nodes()[0]["NodeID"]


def test_a_worker_that_is_killed_costs_nothing(
    ray: Any, photos: Path, engine: str, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """Nor does what died keep its share of the cluster, for which the next pass, or run, would wait."""
    killed = []

    def kill(count: int, process: int) -> None:
        if count == 2:
            killed.append(process)
            os.kill(process, signal.SIGKILL)

    done = upscale(
        str(photos),
        str(tmp_path),
        engine_dir=engine,
        recursive=True,
        workers=2,
        threads=1,
        progress=Told(kill),
    )
    assert killed
    assert (done.done, done.failed) == (10, [])
    assert contents(tmp_path) == expected
    patience_s = time.monotonic() + 60
    while ray.available_resources().get("CPU", 0) < ray.cluster_resources()["CPU"]:
        assert time.monotonic() < patience_s, "workers still hold CPUs"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def client_address(ray: Any) -> str:
    """Where `ray`'s cluster takes clients; their server is started as ``ray start`` starts it."""
    node = ray._private.worker._global_node
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        node._ray_params.ray_client_server_port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:  # what that server forks would now and then not live
        patch.setenv("GRPC_ENABLE_FORK_SUPPORT", "0")
        node.start_ray_client_server()
    until = time.monotonic() + 60
    while True:  # on a busy machine its process listens seconds later
        try:
            socket.create_connection(("127.0.0.1", node._ray_params.ray_client_server_port), 1).close()
        except OSError:
            assert time.monotonic() < until, "Ray's client server does not listen"
            time.sleep(0.1)
        else:
            return f"ray://127.0.0.1:{node._ray_params.ray_client_server_port}"


def test_a_client_that_is_killed_is_said_again(
    client_address: str, photos: Path, engine: str, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """``--address ray://``: the same results and the same report, and nothing of the client's folder runs."""
    source, out, folder, sprung = (tmp_path / name for name in ("in", "out", "folder", "sprung"))
    shutil.copytree(photos, source)
    (source / "bad.png").write_bytes((photos / "p0.png").read_bytes()[:99])
    folder.mkdir()
    for name in ("numpy", "PIL", "yonos_trt", "pyarrow", "ray", "json"):
        (folder / f"{name}.py").write_text(f"open({str(sprung)!r}, 'a').write(__file__ + '\\n')\n")
    words = ["batch", source, out, "-m", engine, "--recursive", "--workers", "1", "--threads", "1", "-q"]
    command = [sys.executable, "-I", *YONOS[1:], *map(str, words), "--address", client_address]
    environment = os.environ | {"RAY_CLIENT_RECONNECT_GRACE_PERIOD": "1"}  # s; by itself 30
    driver = subprocess.Popen(command, cwd=folder, env=environment)
    while driver.poll() is None and not list(out.glob("*.png")):
        time.sleep(0.01)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL  # it was at work
    assert not (out / "yonos-report.jsonl").exists()
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, "bad.png" in done.stderr, sprung.exists()) == (1, True, False), done.stderr
    made = contents(out)
    (line,) = made.pop("yonos-report.jsonl").splitlines()
    assert made == expected
    told = json.loads(line)
    assert (told["name"], len(set(told["worker"]))) == (str(source / "bad.png"), 2)


def test_ray_reports_nothing_to_its_makers_and_leaves_nothing_behind(
    photos: Path, engine: str, tmp_path: Path
) -> None:
    """The command in an empty home, with Ray's place for reports led to a server here that counts."""
    pytest.importorskip("ray", reason="ray is not installed: pip install '.[ray]'")
    home, temporary = tmp_path / "home", Path(tempfile.mkdtemp(prefix="yr", dir="/tmp"))
    home.mkdir()
    reports: list[str] = []

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            reports.append(self.path)
            self.send_error(500)

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
            "HOME": str(home),
            "TMPDIR": str(temporary),
            "RAY_USAGE_STATS_REPORT_URL": f"http://127.0.0.1:{server.server_port}/",
            "RAY_USAGE_STATS_REPORT_INTERVAL_S": "1",
        }
        command = [*YONOS, "batch", str(photos), str(tmp_path / "out"), "-m", engine, "--progress", "json"]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=500, check=False
        )
        server.shutdown()
    left = [str(p) for folder in (home, temporary) for p in folder.rglob("*")]
    shutil.rmtree(temporary)
    assert done.returncode == 0, done.stderr
    assert (reports, left) == ([], [])
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert {e["event"] for e in events} == {"skip", "start", "finish", "end"}
    last = [e for e in events if e["event"] == "finish"][-1]
    assert last["pictures_per_s"] > 0
    assert [e for e in events if e["event"] == "start"][-1]["eta_s"] >= 0
    assert events[-1]["done"] == 4


def test_no_module_of_the_current_folder_is_imported(photos: Path, engine: str, tmp_path: Path) -> None:
    """Files there are named as modules are: neither the command nor Ray's processes run them."""
    pytest.importorskip("ray", reason="ray is not installed: pip install '.[ray]'")
    folder, sprung = tmp_path / "folder", tmp_path / "sprung"
    folder.mkdir()
    for name in ("numpy", "PIL", "yonos_trt", "pyarrow", "ray", "json", "click", "setproctitle"):
        (folder / f"{name}.py").write_text(f"open({str(sprung)!r}, 'a').write(__file__ + '\\n')\n")
    done = subprocess.run(
        [sys.executable, "-I", *YONOS[1:], "batch", str(photos), str(tmp_path / "out"), "-m", engine, "-q"],
        cwd=folder,  # isolated, as the console script, whose folder is its own; Ray's processes inherit this:
        env=os.environ | {"PYTHONPATH": os.pathsep.join(("", ".", os.environ.get("PYTHONPATH", "")))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert not sprung.exists(), sprung.read_text()
    assert done.returncode == 0, done.stderr
    assert len(contents(tmp_path / "out")) == 4


def test_ray_is_told_to_report_nothing(ray: Any) -> None:
    from ray._common.usage import usage_lib

    assert not usage_lib.usage_stats_enabled()

    @ray.remote
    def enabled() -> bool:
        return bool(usage_lib.usage_stats_enabled())

    assert not ray.get(enabled.remote())


def test_nodes_and_drivers_that_are_killed_cost_nothing() -> None:
    """Two of the trials of `benchmarks/studies/ray_kills.py`, on a cluster of two nodes."""
    pytest.importorskip("ray", reason="ray is not installed: pip install '.[ray]'")
    study = [sys.executable, "-m", "benchmarks.studies.ray_kills", "--trials=2", "--kinds=node,driver"]
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    root = Path(__file__).parents[1]
    done = subprocess.run(
        study, cwd=root, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "2 trials ({'node': 1, 'driver': 1}), 0 with other outputs" in done.stdout


# ---------------------------------------------------------------------------------------------------------
# S3: moto's server, and a proxy before it that fails as networks and busy stores do


class Store:
    """An S3 server with a bucket, reached through a proxy that can be made to fail."""

    def __init__(self, port: int) -> None:
        import boto3

        self.faults: dict[str, list[str]] = {"GET": [], "PUT": [], "HEAD": []}
        self.requests: list[str] = []
        self._port = port
        store = self

        class Proxy(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def pass_on(self) -> None:
                store.requests.append(f"{self.command} {self.path}")
                data = self.body()
                fault = store.faults[self.command].pop(0) if store.faults.get(self.command) else ""
                if fault == "slow":
                    body = b"<Error><Code>SlowDown</Code><Message>Please slow down.</Message></Error>"
                    self.answer(503, {"Content-Type": "application/xml"}, body)
                    return
                if fault == "cut" and data:
                    self.close_connection = True
                    self.connection.close()
                    return
                link = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                ours = {"transfer-encoding", "content-length", "expect", "connection"}
                headers = {k: v for k, v in self.headers.items() if k.lower() not in ours}
                link.request(self.command, self.path, data, headers)
                reply = link.getresponse()
                body = reply.read()
                link.close()
                self.answer(reply.status, dict(reply.getheaders()), body, cut=fault == "cut")

            def body(self) -> bytes:
                if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                data = b""
                while size := int(self.rfile.readline(), 16):
                    data += self.rfile.read(size)
                    self.rfile.readline()
                while self.rfile.readline().strip():
                    pass
                return data

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = pass_on

            def answer(self, status: int, headers: dict[str, str], body: bytes, *, cut: bool = False) -> None:
                self.send_response_only(status)
                kept = {
                    k: v for k, v in headers.items() if k.lower() not in ("connection", "transfer-encoding")
                }
                if self.command != "HEAD":
                    kept["Content-Length"] = str(len(body))
                for name, value in kept.items():
                    self.send_header(name, value)
                self.end_headers()
                if cut:
                    self.wfile.write(body[: len(body) // 2])
                    self.close_connection = True
                elif self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            region_name="us-east-1",
            aws_access_key_id="a",
            aws_secret_access_key="b",
        )
        self.client.create_bucket(Bucket="pictures")

    def uri(self, path: str) -> str:
        where = f"endpoint_override=127.0.0.1:{self._server.server_port}&scheme=http&region=us-east-1"
        return f"s3://{path}?{where}"

    def ask_for_keys(self, *, really: bool) -> None:
        """Let moto check credentials: it knows no users, so all are wrong."""
        link = http.client.HTTPConnection("127.0.0.1", self._port)
        link.request("POST", "/moto-api/reset-auth", b"0" if really else b"1000000")
        assert link.getresponse().status == 200
        link.close()

    def contents(self, prefix: str) -> dict[str, bytes]:
        found = self.client.list_objects_v2(Bucket="pictures", Prefix=prefix).get("Contents", [])
        read = lambda key: self.client.get_object(Bucket="pictures", Key=key)["Body"].read()  # noqa: E731
        return {item["Key"].removeprefix(prefix): read(item["Key"]) for item in found}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def store(ray: Any, photos: Path) -> Iterator[Store]:
    pytest.importorskip("moto")
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    made = Store(server.get_host_and_port()[1])
    for name, data in contents(photos).items():
        made.client.put_object(Bucket="pictures", Key=f"in/{name}", Body=data)
    yield made
    made.close()
    server.stop()


def test_a_bucket_gets_what_upscale_makes_by_one_listing_a_side(
    store: Store, engine: str, expected: dict[str, bytes]
) -> None:
    source, target = store.uri("pictures/in"), store.uri("pictures/out")
    done = upscale(source, target, engine_dir=engine, recursive=True, workers=2, threads=1)
    assert (done.done, done.failed) == (10, [])
    assert store.contents("out/") == expected
    store.requests.clear()
    again = upscale(source, target, engine_dir=engine, recursive=True)
    assert (again.done, again.skipped) == (0, 11)
    assert len(store.requests) < 10, store.requests  # ten pictures, and a report that is not there
    listings = [r for r in store.requests if "list-type=2" in r]
    assert len(listings) == 2, store.requests


def test_a_cut_connection_and_a_busy_store_are_tried_again(
    store: Store, photos: Path, engine: str, expected: dict[str, bytes], tmp_path: Path
) -> None:
    store.faults["GET"] += ["", "slow", "cut", "cut"]
    store.faults["PUT"] += ["cut", "slow", "cut"]
    for name in ("p0.png", "sub/p4.jpg"):
        copy, key = tmp_path / "copy", name.replace(".", "_x4.")
        places.fetch(store.uri(f"pictures/in/{name}"), copy)
        assert copy.read_bytes() == (photos / name).read_bytes()
        copy.write_bytes(expected[key])
        places.put(copy, store.uri(f"pictures/faults/{key}"))
        assert store.contents(f"faults/{key}") == {"": expected[key]}
    assert store.faults == {"GET": [], "PUT": [], "HEAD": []}


def test_what_no_patience_mends_is_one_clear_error(
    store: Store, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "_PAUSE_S", 0.001)
    options = {"engine_dir": engine, "workers": 1}
    good = store.uri("pictures/in")
    with pytest.raises(InputError, match=r"^s3://nowhere/in: "):
        upscale(store.uri("nowhere/in"), str(tmp_path), **options)
    with pytest.raises(InputError, match=r"^s3://nowhere/out: there is no bucket 'nowhere'; make it first"):
        upscale(good, store.uri("nowhere/out"), **options)
    store.ask_for_keys(really=True)
    try:
        with pytest.raises(InputError, match=r"^s3://pictures/in: access is refused; check the credentials"):
            upscale(good, str(tmp_path), **options)
    finally:
        store.ask_for_keys(really=False)
    store.faults["GET"] += ["slow"] * 10_000
    monkeypatch.setattr(places, "_TRIES", 1)
    try:
        with pytest.raises(
            InputError, match=r"^s3://pictures/in: the store took no request, 1 times; say it again"
        ):
            upscale(good, str(tmp_path), **options)
    finally:
        store.faults["GET"].clear()
    assert contents(tmp_path) == {}


# ---------------------------------------------------------------------------------------------------------
# Clips: `yonos video --ray`


SEGMENT = 4  # frames


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 frames at uneven times, with sound and subtitles: five segments."""
    pytest.importorskip("av")
    from video_clips import write_clip

    times = [512 * i + 40 * (i % 3) for i in range(18)]
    path = tmp_path_factory.mktemp("clip") / "in.mkv"
    return write_clip(path, size=(24, 32), times=times, audio=True, subtitles=("one", "two"))


def video(source: Path, target: Path, engine: str, *more: str) -> list[str]:
    words = [source, "-o", target, "-m", engine, "--segment-frames", SEGMENT, "--preset", "ultrafast", *more]
    return ["video", "-i", *map(str, words)]


@pytest.fixture(scope="module")
def one_machine(clip: Path, engine: str) -> Path:
    """What `yonos video` makes of the clip."""
    target = clip.with_name("here.mkv")
    done = CliRunner().invoke(cli, video(clip, target, engine))
    assert done.exit_code == 0, done.output
    return target


def assert_the_same(one: Path, other: Path) -> None:
    from video_clips import packets, shown

    assert shown(one) == shown(other)
    for kind in ("video", "audio", "subtitle"):  # times and bytes
        assert packets(one, kind) == packets(other, kind)
        assert packets(one, kind)


@pytest.mark.parametrize("stabilize", [False, True])
def test_segments_are_the_same_whoever_makes_them_in_whatever_order(
    clip: Path, tmp_path: Path, stabilize: bool
) -> None:
    if stabilize:
        pytest.importorskip("cv2")
    from video_clips import FAST, enlarge

    from yonos_trt.video import VideoOptions, upscale_video
    from yonos_trt.video.segment_make import SegmentMaker
    from yonos_trt.video.segments import read_segment, work_folder

    options = VideoOptions(encoder=FAST, segment_frames=SEGMENT, stabilize=stabilize)
    target, taken = tmp_path / "out.mkv", {}

    def keep(done: int, total: int | None) -> None:  # the last one is made later than its last frame
        for path in work_folder(target).glob("segment-?????[0-9]"):
            taken[path.name] = path.read_bytes()

    upscale_video(clip, target, enlarge(), scale=2, options=options, progress=keep)
    assert len(taken) >= 3
    with SegmentMaker(clip, enlarge(), scale=2, options=options) as maker:
        frames = [maker.make(tmp_path / f"segment-{i:06d}", i) for i in (3, 0, 1, 2, 4, 5)]
    assert frames == [4, 4, 4, 4, 2, 0]
    assert {name: (tmp_path / name).read_bytes() for name in taken} == taken
    segment = read_segment(tmp_path / "segment-000004")
    assert segment is not None
    assert segment.first_frame == 4 * SEGMENT
    assert sorted(p.name for p in tmp_path.iterdir() if "segment" in p.name) == [
        f"segment-{i:06d}" for i in range(5)
    ]


def test_options_of_ray_are_refused_where_they_mean_nothing(
    clip: Path, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.mkv"
    for words, said in (
        (video(clip, target, engine, "--workers", "2"), "are those of --ray"),
        (video(Path("-"), target, engine, "--ray"), "--ray takes files"),
        (video(clip, target, engine, "--ray", "--hwaccel", "cuda"), "leave it out with --ray"),
    ):
        done = CliRunner().invoke(cli, words)
        assert (done.exit_code, said in done.stderr) == (2, True), done.stderr
    monkeypatch.setitem(sys.modules, "ray", None)
    done = CliRunner().invoke(cli, video(clip, target, engine, "--ray"))
    assert (done.exit_code, "'.[ray]'" in done.stderr) == (3, True)
    assert contents(tmp_path) == {}


def test_a_worker_that_does_not_see_the_files_says_so(clip: Path, engine: str, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install '.[ray]'")
    from yonos_trt.ray_data.video import _Clip, _Worker
    from yonos_trt.video import VideoOptions

    def asked(source: Path, folder: Path) -> str:
        worker = _Worker(_Clip(str(source), 4, VideoOptions(), {"engine_dir": engine}))
        told = worker.make(str(folder), "a" * 32, 0)
        assert told["error"] == "InputError"
        return str(told["reason"])

    assert "none.mkv is not there on the node of the worker" in asked(tmp_path / "none.mkv", tmp_path)
    assert "a disk that all nodes share" in asked(clip, tmp_path)
    (tmp_path / "job.json").write_text(json.dumps({"job": "b" * 32}))
    assert f"{tmp_path} is another folder on the node" in asked(clip, tmp_path)


def test_workers_that_would_compute_other_bits_are_refused(engine: str) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install '.[ray]'")
    from yonos_trt.ray_data.video import _Clip, _Worker, _Workers
    from yonos_trt.video import VideoOptions

    def told(**model: Any) -> dict[str, Any]:
        return _Worker(_Clip("clip.mkv", 4, VideoOptions(), {"engine_dir": engine, **model})).upscaler_id()

    crew = _Workers(_Clip("clip.mkv", 4, VideoOptions(), {}), None, None, None)
    crew.first = told()
    crew.check(told())
    with pytest.raises(ConfigError, match="do not compute the same"):
        crew.check(told(seed=1))
    other = crew.first | {"runs": crew.first["runs"].replace("fp32", "fp16")}  # "auto" took others there
    assert other != crew.first
    with pytest.raises(ConfigError, match="do not compute the same"):
        crew.check(other)


def test_rays_share_of_memory_does_not_change_the_bits_of_a_clip(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install '.[ray]'")
    from yonos_trt.ray_data import worker
    from yonos_trt.ray_data.video import _Clip, _Worker
    from yonos_trt.video import VideoOptions

    monkeypatch.setattr(worker, "_given", lambda: {"threads": 1, "memory_limit_mb": 300, "node": "n"})

    def limit(**model: Any) -> Any:
        made = _Worker(_Clip("clip.mkv", 4, VideoOptions(), {"engine_dir": engine, **model}))
        return made._upscaler.options.get("memory_limit_mb")

    assert limit() is None
    assert limit(memory_limit_mb=400) == 400


@pytest.mark.parametrize(
    ("options", "gpu"),
    [
        ({}, True),
        ({"device": -1}, False),
        ({"runtime": "onnx"}, False),
        ({"runtime": "onnx", "providers": ["CPUExecutionProvider"]}, False),
        ({"runtime": "onnx", "providers": [("CUDAExecutionProvider", {})]}, True),
    ],
)
def test_which_options_take_a_gpu(options: dict[str, Any], gpu: bool) -> None:
    from yonos_trt.ray_data.cluster import may_use_gpus

    assert may_use_gpus(options) is gpu


def test_a_clip_is_that_of_one_machine_though_a_worker_is_killed(
    ray: Any, clip: Path, engine: str, one_machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from yonos_trt.ray_data import video as room

    killed: list[int] = []
    receive = room._Segments.receive

    def received(self: Any, number: int, told: dict[str, Any]) -> None:
        receive(self, number, told)
        if not killed:
            killed.append(int(told["worker"].rpartition(":")[2]))
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(room._Segments, "receive", received)
    words = ["--ray", "--workers", "2", "--threads", "1", "--progress", "json"]
    done = CliRunner().invoke(cli, video(clip, tmp_path / "out.mkv", engine, *words))
    assert done.exit_code == 0, done.output
    assert killed
    assert_the_same(tmp_path / "out.mkv", one_machine)
    assert sorted(contents(tmp_path)) == ["out.mkv"]
    events = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    finished = next(e for e in events if e["event"] == "finish")
    assert (finished["frames"], finished["frames_resumed"], finished["left_out"]) == (18, 0, [])


def test_a_driver_that_is_killed_is_resumed_by_another_with_what_is_there(
    ray: Any, clip: Path, engine: str, one_machine: Path, tmp_path: Path
) -> None:
    """The driver is a process of its own, at ``--address auto``."""
    from yonos_trt.video.segments import work_folder

    target = tmp_path / "out.mkv"
    words = video(clip, target, engine, "--ray", "--workers", "1", "--threads", "1")
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    driver = subprocess.Popen([*YONOS, *words, "--address", "auto"], env=environment)
    folder = work_folder(target)
    while driver.poll() is None and not (folder / "segment-000001").exists():
        time.sleep(0.01)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL  # it was at work
    (folder / "segment-000000").unlink()  # as where another worker was still at it
    kept = (folder / "segment-000001").stat().st_mtime_ns
    refused = CliRunner().invoke(cli, words)
    assert (refused.exit_code, "holds unfinished work; pass --resume" in refused.stderr) == (2, True)
    made: list[float] = []

    def watch(done: int, total: int | None) -> None:
        made.append((folder / "segment-000001").stat().st_mtime_ns)

    from video_clips import VideoOptions

    from yonos_trt.ray_data import upscale_video
    from yonos_trt.video.format import EncoderSettings

    encoder = EncoderSettings(preset="ultrafast")
    options = VideoOptions(encoder=encoder, segment_frames=SEGMENT, resume=True)
    report = upscale_video(clip, target, options=options, workers=1, progress=watch, **command_line(engine))
    assert set(made) == {kept}
    assert SEGMENT <= report.frames_resumed < report.frames == 18  # a kept one behind the missing one counts
    assert_the_same(target, one_machine)


def command_line(engine: str) -> dict[str, Any]:
    """What the command says of the model, with nothing chosen; resuming wants the same."""
    return {"engine_dir": engine, "threads": 1, "seed": 0}
