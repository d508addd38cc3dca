"""``yonos upscale --watch``: a folder is kept done, nothing half-written goes in or comes out."""

from __future__ import annotations

import io
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import picture
from PIL import Image

from yonos_trt.cli.job_outcome import Outcome
from yonos_trt.cli.jobs import plan_jobs
from yonos_trt.cli.main import cli
from yonos_trt.cli.watch import BROKEN_S, SETTLED_S, _Folder
from yonos_trt.errors import InputError
from yonos_trt.images import inspection, read_image

WAIT_S = 120.0


def encoded(format: str, side: int = 20, seed: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.roll(picture(side, side), seed, 0)).save(file, format)
    return file.getvalue()


# ---------------------------------------------------------------------------------------------------------
# When a file is taken; the clock is ours


class Look:
    """Look at a folder at a time of our own; every file that is ready is done, but for broken ones."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.known, self.now_s = folder, _Folder(), 1000.0

    def __call__(self, seconds: float) -> list[str]:
        self.now_s += seconds
        plan = plan_jobs([self.folder], None, scale=4, recursive=True, watching=True)
        jobs, outcome = self.known.ready(plan, self.now_s), Outcome()
        for job in jobs:
            if b"broken" in job.source.read_bytes():
                outcome.failed.append((job, InputError("broken")))
            else:
                job.target.write_bytes(job.source.read_bytes())
                outcome.done.append(job)
        self.known.tried(outcome)
        return [job.source.name for job in jobs]


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "AVIF"])
def test_a_large_file_is_looked_at_by_its_ends(
    tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files on network drives are not read twice."""
    monkeypatch.setattr(inspection, "_LOOK_BYTES", 1 << 11)
    monkeypatch.setattr(inspection, "inspect", None)  # which looks at all of it
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a", format)
    data = (tmp_path / "a").read_bytes()
    assert len(data) > 1 << 12
    assert inspection.seems_whole(tmp_path / "a")
    for share in (0.6, 0.8, 0.99):
        (tmp_path / "a").write_bytes(data[: int(len(data) * share)])
        assert not inspection.seems_whole(tmp_path / "a")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "GIF"])
def test_a_picture_is_taken_when_it_is_whole_and_has_settled(tmp_path: Path, format: str) -> None:
    look, data = Look(tmp_path), encoded(format)
    path = tmp_path / f"a.{format.lower()}"
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(data[: int(len(data) * share)])
        assert look(1) == []
        assert look(SETTLED_S + 5) == []  # a pause of the writer is no end
    path.write_bytes(data)
    assert look(1) == []
    assert look(SETTLED_S) == [path.name]
    assert look(100) == []  # done


def test_a_broken_file_is_tried_once_and_again_when_it_changes(tmp_path: Path) -> None:
    look, path = Look(tmp_path), tmp_path / "a.png"
    path.write_bytes(b"broken")
    assert look(1) == []
    assert look(BROKEN_S - 1) == []
    assert look(1) == ["a.png"]
    assert look(1000) == []
    path.write_bytes(encoded("PNG"))
    assert (look(1), look(SETTLED_S)) == ([], ["a.png"])


def test_a_result_that_is_removed_is_made_again(tmp_path: Path) -> None:
    look = Look(tmp_path)
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    assert (look(1), look(SETTLED_S)) == ([], ["a.png"])
    (tmp_path / "a_x4.png").unlink()
    assert (look(1), look(SETTLED_S)) == ([], ["a.png"])


def test_a_result_is_never_an_input_even_when_its_source_is_gone(tmp_path: Path) -> None:
    look = Look(tmp_path)
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    assert (look(1), look(SETTLED_S)) == ([], ["a.png"])
    (tmp_path / "a.png").unlink()
    assert [look(10) for _ in range(3)] == [[], [], []]


def test_of_two_sources_of_one_target_the_first_is_done_and_the_other_told(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png"):
        (tmp_path / name).write_bytes(b"")
    plan = plan_jobs([tmp_path], None, scale=4, format="png", watching=True)
    assert [job.source.name for job in plan.jobs] == ["a.jpg"]
    assert [(p.path.name, p.failed) for p in plan.passed_over] == [("a.png", True)]
    known = _Folder()
    assert [len(known.untold(plan.passed_over)) for _ in range(3)] == [1, 0, 0]


# ---------------------------------------------------------------------------------------------------------
# The command


@contextmanager
def watching(engine_dir: Path, *arguments: Any) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """Start the command; gives the process and a function that waits for an event."""
    command = ["upscale", "-m", str(engine_dir), "--threads", "1", "--watch", "--progress", "json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "yonos_trt.cli", *command, *map(str, arguments)],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                lines.put(line)
        lines.put("")

    reader = threading.Thread(target=read)
    reader.start()

    def wait_for(kind: str, name: str = "") -> dict[str, Any]:
        end_s = time.monotonic() + WAIT_S
        while line := lines.get(timeout=end_s - time.monotonic()):
            event: dict[str, Any] = json.loads(line)
            if event["event"] == kind and event.get("name", "").endswith(name):
                return event
        raise AssertionError(f"the run ended without {kind} {name}")

    try:
        yield process, wait_for
    finally:
        process.kill()
        process.wait()
        reader.join()


def test_a_folder_is_kept_done_until_ctrl_c(engine_dir: Path, tmp_path: Path) -> None:
    photos, big = tmp_path / "photos", tmp_path / "big"
    photos.mkdir()
    with watching(engine_dir, "-i", photos, "-o", big, "-t", 64) as (process, wait_for):
        data = encoded("PNG")
        with open(photos / "slow.png", "wb") as file:  # half of it, a pause longer than settling, the rest
            file.write(data[: len(data) // 2])
            file.flush()
            (photos / "notes.txt").write_text("no picture")
            (photos / "first.jpg").write_bytes(encoded("JPEG"))
            assert wait_for("skip")["passed_over"]
            wait_for("finish", "first.jpg")
            time.sleep(SETTLED_S + 1)
            assert sorted(p.name for p in big.iterdir()) == ["first_x4.jpg"]
            file.write(data[len(data) // 2 :])
        wait_for("finish", "slow.png")
        (photos / "huge.png").write_bytes(encoded("PNG", side=700))  # many tiles
        wait_for("start", "huge.png")
        while wait_for("step")["done"] < 3:
            pass
        process.send_signal(signal.SIGINT)
        wait_for("interrupted")
        assert process.wait(WAIT_S) == 130
    assert sorted(p.name for p in big.iterdir()) == ["first_x4.jpg", "slow_x4.png"]
    assert read_image(big / "slow_x4.png").rgb.shape == (80, 80, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["-i", "a.png"], "name folders"), (["-i", "photos", "--overwrite"], "leave --overwrite out")],
)
def test_what_cannot_be_watched_is_a_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    result = CliRunner().invoke(cli, ["upscale", "--watch", *arguments])
    assert (result.exit_code, words in result.stderr) == (2, True), result.output
