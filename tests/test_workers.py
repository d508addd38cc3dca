"""``-g 0,1``: a worker for each device on one folder; every file is done once and told once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner, Result
from helpers import make_engine_dir, picture
from PIL import Image

from yonos_trt.cli.main import cli
from yonos_trt.cli.progress import JsonLines
from yonos_trt.cli.workers import Workers, check_devices
from yonos_trt.cuda.probe import Device, DriverFacts
from yonos_trt.errors import EngineDeviceError

NAMES = [f"{letter}.png" for letter in "abcdef"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (folder := tmp_path / "photos").mkdir()
    for index, name in enumerate(NAMES):
        Image.fromarray(picture(20 + index, 30)).save(folder / name)
    return folder


def upscale(engine_dir: Path, *arguments: Any) -> Result:
    return CliRunner().invoke(cli, ["upscale", "-m", str(engine_dir), "-g", "-1,-1", *map(str, arguments)])


def events(result: Result, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in result.stderr.splitlines()]
    return [event for event in found if event["event"] == kind]


def test_two_workers_do_a_folder_and_each_file_is_done_and_told_once(
    engine_dir: Path, photos: Path, tmp_path: Path
) -> None:
    (photos / "broken.png").write_bytes(b"not a picture")
    (photos / "notes.txt").write_text("none")
    big = tmp_path / "big"
    Image.fromarray(picture(8, 8)).save(photos / "z.png")
    big.mkdir()
    (big / "z_x4.png").write_bytes(b"there")
    arguments = ("-i", photos, "-o", big, "-t", 100, "--progress", "json")
    result = upscale(engine_dir, *arguments)
    assert result.exit_code == 1
    assert sorted(Path(e["name"]).name for e in events(result, "finish")) == NAMES
    failed = {Path(e["name"]).name: e["message"] for e in events(result, "fail")}
    assert set(failed) == {"broken.png", "z.png"}
    assert len(events(result, "fail")) == 2
    assert "exists" in failed["z.png"]
    assert [Path(e["name"]).name for e in events(result, "skip")] == ["notes.txt"]
    assert len([e for e in events(result, "log") if "-t 100" in e["message"]]) == 1
    (end,) = events(result, "end")
    assert (end["done"], end["skipped"], end["failed"]) == (6, 1, 2)
    assert sorted(Path(line).name for line in result.stdout.splitlines()) == [f"{n[0]}_x4.png" for n in NAMES]
    assert not [p for p in big.iterdir() if p.name.startswith(".")]  # no claim is left
    again = upscale(engine_dir, *arguments, "--skip-existing")
    assert again.exit_code == 1  # broken.png
    assert len(events(again, "skip")) == 8
    assert (big / "z_x4.png").read_bytes() == b"there"


def test_results_are_those_of_one_process(engine_dir: Path, photos: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    plain = ["upscale", "-m", str(engine_dir), "-i", str(photos), "-s", "2.5", "--seed", "7", "--recursive"]
    assert CliRunner().invoke(cli, [*plain, "-o", str(one)]).exit_code == 0
    result = CliRunner().invoke(cli, [*plain, "-o", str(two), "-g", "-1,-1"])
    assert (result.exit_code, result.stderr) == (0, "")
    assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in two.iterdir()}


def test_what_a_killed_worker_had_at_work_is_named(
    engine_dir: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "yonos_trt.cli.workers._COMMAND", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    )
    result = upscale(engine_dir, "-i", photos, "-o", tmp_path / "big")
    assert result.exit_code == 1
    assert result.stderr.count("ended by signal 9") == 2
    assert result.stderr.count("not done, its worker ended early") == len(NAMES)


def test_a_worker_that_cannot_begin_ends_with_its_code_and_the_files_are_named(
    engine_dir: Path, photos: Path, tmp_path: Path
) -> None:
    for file in (broken := make_engine_dir(tmp_path / "engine")).glob("step*.onnx"):
        file.write_bytes(b"x" * file.stat().st_size)
    result = upscale(broken, "-i", photos, "-o", tmp_path / "big")
    assert result.exit_code == 3
    assert "error: worker on the CPU: " in result.stderr
    assert "6 of 6 failed" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--overwrite"], "leave --overwrite out"), (["-o", "-"], "one device does")],
)
def test_what_workers_cannot_do_is_a_usage_error(photos: Path, arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(cli, ["upscale", "-g", "-1,-1", "-i", str(photos / "a.png"), *arguments])
    assert result.exit_code == 2
    assert words in result.stderr or "stdout is" in result.stderr


def test_every_device_of_a_list_has_to_be_there(
    engine_dir: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = DriverFacts("13.0", (Device(0, "GPU", "8.6", 1 << 30),), "")
    monkeypatch.setattr("yonos_trt.cuda.probe.probe_driver", lambda: facts)
    check_devices((0, -1))
    with pytest.raises(EngineDeviceError, match="names the devices 1, but this machine's GPUs are: 0"):
        check_devices((0, 1))
    result = CliRunner().invoke(cli, ["upscale", "-g", "0,1", "-i", str(photos)])
    assert result.exit_code == 4


def test_each_gpu_has_a_worker_and_cpus_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yonos_trt.cli.workers.usable_cpus", lambda: 8)
    commands = [c[-11:] for c in Workers(["-i", "x"], (0, 1, -1, -1), JsonLines())._commands]
    assert [c[c.index("--gpu") + 1] for c in commands] == ["0", "1", "-1", "-1"]
    assert [c[c.index("--threads") + 1] if "--threads" in c else None for c in commands] == [
        None,
        None,
        "4",
        "4",
    ]
    assert all("--skip-existing" in c for c in commands)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent_and_leave_nothing_half_written(
    engine_dir: Path, tmp_path: Path, how: signal.Signals
) -> None:
    (photos := tmp_path / "photos").mkdir()
    for name in "ab":
        Image.fromarray(picture(700, 700)).save(photos / f"{name}.png")
    command = ["upscale", "-m", str(engine_dir), "-g", "-1,-1", "-t", "64", "--progress", "json", "--watch"]
    process = subprocess.Popen(
        [sys.executable, "-m", "yonos_trt.cli", *command, "-i", str(photos), "-o", str(tmp_path / "big")],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stderr is not None
    started = set()
    for line in process.stderr:
        event = json.loads(line)
        if event["event"] == "start":
            started.add(event["name"])
        if event["event"] == "step" and len(started) == 2:
            break
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 2
    process.send_signal(how)
    rest = process.communicate(timeout=120)[1]
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    if how is signal.SIGKILL:
        assert process.returncode == -9
    else:
        assert process.returncode == 130, rest
        assert json.loads(rest.splitlines()[-1])["event"] == "interrupted"
    assert [p.name for p in (tmp_path / "big").iterdir() if not p.name.startswith(".")] == []
