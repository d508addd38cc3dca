"""`yonos batch`: the same bytes as `yonos upscale`, whatever fails or dies on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import make_engine_dir, picture
from PIL import Image

from yonos_trt.cli.main import cli
from yonos_trt.cli.progress import Silent
from yonos_trt.errors import ConfigError, InputError, MissingExtraError
from yonos_trt.ray_data import places, run, upscale
from yonos_trt.ray_data.planning import plan

# Ray warns of its own settings, and leaves sockets to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "ResourceWarning")
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
    from yonos_trt.ray_data.cluster import connected

    with connected(None) as module:
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
        assert sizes[0] <= 16


def test_names_are_shown_without_secrets_and_survive_the_way_through_a_uri() -> None:
    top = "s3://key:secret@bucket/in?region=eu&endpoint_override=localhost"
    name = places.below(top, "sub/a b#1?%.png")
    assert places.shown(name) == "s3://bucket/in/sub/a b#1?%.png"
    assert name.endswith("/in/sub/a%20b%231%3F%25.png?region=eu&endpoint_override=localhost")
    assert places.local("file:///in/a%20b.png") == "/in/a b.png"
    with pytest.raises(InputError, match="names the machine 'elsewhere'"):
        places.local("file://elsewhere/in")


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
    again = upscale(str(photos), str(tmp_path), engine_dir=engine, recursive=True, workers=2)
    assert (again.done, again.skipped) == (0, 11)
    assert (tmp_path / "p0_x4.png").read_bytes() == b"somebody's"


def test_a_file_that_fails_is_tried_by_another_worker_and_reported(
    ray: Any, photos: Path, engine: str, tmp_path: Path
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    shutil.copy(photos / "p0.png", source)
    (source / "bad.png").write_bytes((photos / "p0.png").read_bytes()[:99])
    out.mkdir()
    (out / "p0_x4.png").write_bytes(b"old")
    told = Told()
    done = upscale(
        str(source), str(out), engine_dir=engine, overwrite=True, workers=2, threads=1, progress=told
    )
    assert (done.done, done.exit_code, told.totals) == (1, 1, {"done": 1, "skipped": 0, "failed": 1})
    assert told.failed == [str(source / "bad.png")]
    (line,) = [json.loads(x) for x in (out / "yonos-report.jsonl").read_text().splitlines()]
    assert line["name"] == str(source / "bad.png")
    assert "truncated" in line["reason"]
    assert len(set(line["worker"])) == 2  # not the same process twice
    assert line["seconds"] >= 0
    assert (out / "p0_x4.png").read_bytes() != b"old"
    shutil.copy(photos / "p0.png", source / "bad.png")
    assert upscale(str(source), str(out), engine_dir=engine, workers=1).exit_code == 0
    assert sorted(contents(out)) == ["bad_x4.png", "p0_x4.png"]


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
                yield made | {"threads": [self.sr.threads], "limit": [limit], "node": [self.node]}

    data = ray.data.from_items([{"image": picture(20, 24), "name": "a"}])
    kwargs = {"engine_dir": engine}
    done = data.map_batches(
        Spy,
        fn_constructor_kwargs=kwargs,
        num_cpus=1,
        memory=300 << 20,
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    (row,) = done.take_all()
    with SR(engine) as sr:
        assert np.array_equal(row["image"], sr.upscale(picture(20, 24)))
    assert (row["name"], row["threads"], row["limit"]) == ("a", 1, 300)
    assert row["node"] == ray.nodes()[0]["NodeID"]


def test_a_worker_that_is_killed_costs_nothing(
    ray: Any, photos: Path, engine: str, expected: dict[str, bytes], tmp_path: Path
) -> None:
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


def test_ray_reports_nothing_to_its_makers(ray: Any) -> None:
    from ray._common.usage import usage_lib

    assert not usage_lib.usage_stats_enabled()

    @ray.remote
    def enabled() -> bool:
        return bool(usage_lib.usage_stats_enabled())

    assert not ray.get(enabled.remote())
