"""How commands begin and end: signals from the first moment, closed and full streams, noise of libraries."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import picture
from PIL import Image

ENTRIES = {
    "yonos": "from yonos_trt.console import yonos; yonos()",
    "yonos-export": "from yonos_trt.console import yonos_export; yonos_export()",
    "yonos-train": "from yonos_trt.console import yonos_train; yonos_train()",
}
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and descriptors are POSIX's")


def command(entry: str, *arguments: Any) -> list[str]:
    return [sys.executable, "-c", ENTRIES[entry], *map(str, arguments)]


def with_default_signals() -> None:
    """A shell starts background jobs with SIGINT ignored, and children inherit that."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(arguments: list[str], **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        preexec_fn=with_default_signals,
        **options,
    )


def done(arguments: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=240, env=ENVIRONMENT, **options)


# ---------------------------------------------------------------------------------------------------------
# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("entry", "module", "arguments"),
    [
        ("yonos", "click", ["info"]),
        ("yonos", "yonos_trt.cli.main", ["doctor"]),
        ("yonos", "yonos_trt.sr", ["info"]),
        ("yonos", "yonos_trt.cli.doctor", ["doctor"]),
        ("yonos", "onnxruntime", ["doctor"]),
        ("yonos", "yonos_trt.cli.bench", ["bench", "--help"]),
        ("yonos-export", "yonos_export.cli", ["--help"]),
        ("yonos-train", "yonos_train.cli", ["--help"]),
        ("yonos-train", "click", ["--help"]),
    ],
)
def test_a_signal_among_the_imports_ends_with_130_and_no_traceback(
    entry: str, module: str, arguments: list[str], number: int
) -> None:
    code = f"""
import os, sys
class Signal:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), {int(number)})
sys.meta_path.insert(0, Signal())
{ENTRIES[entry]}
"""
    process = start([sys.executable, "-c", code, *arguments])
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "Aborted" not in err
    assert out == ""


def busy(engine_dir: Path, folder: Path, *options: str) -> tuple[list[str], Path]:
    Image.fromarray(picture(900, 900)).save(folder / "b.png")  # some 10 000 tiles
    arguments = ["upscale", "-m", engine_dir, "-i", folder / "b.png", "-o", folder / "out" / "b_x4.png"]
    (folder / "out").mkdir()
    return command(
        "yonos", *arguments, "--threads", 1, "-t", 40, "--progress", "json", *options
    ), folder / "out"


def until_at_work(process: subprocess.Popen[str], done: int = 100) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        event = json.loads(line)
        if event["event"] == "step" and event["done"] > done:
            return
    pytest.fail("the run ended by itself")


def signals_end_it_quietly(process: subprocess.Popen[str], number: int, pause_s: float) -> None:
    """Send a signal twice; the run ends with 130, and all that it says is JSON."""
    process.send_signal(number)
    time.sleep(pause_s)
    process.send_signal(number)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130, rest
    assert "terminate called" not in rest
    assert "Traceback" not in rest
    for line in rest.splitlines():
        json.loads(line)


@pytest.mark.parametrize(
    ("number", "pause_s", "stream"),
    [
        (signal.SIGINT, 0.0, "never"),
        (signal.SIGINT, 0.02, "always"),
        (signal.SIGINT, 0.35, "never"),
        (signal.SIGTERM, 0.0, "always"),
        (signal.SIGTERM, 0.35, "always"),
        (signal.SIGHUP, 0.35, "never"),
    ],
)
def test_a_second_signal_ends_quietly(
    engine_dir: Path, tmp_path: Path, number: int, pause_s: float, stream: str
) -> None:
    arguments, out = busy(engine_dir, tmp_path, "--stream", stream)
    process = start(arguments)
    until_at_work(process)
    signals_end_it_quietly(process, number, pause_s)
    left = [p.name for p in out.iterdir()]
    assert left == [] or (pause_s > 0.3 and all(name.endswith(".part") for name in left))


@pytest.mark.parametrize("pause_s", [0.0, 0.02, 0.35])
@pytest.mark.parametrize("kind", ["picture", "video"])
def test_a_second_ctrl_c_ends_quietly_with_all_threads_at_work(
    engine_dir: Path, tmp_path: Path, kind: str, pause_s: float
) -> None:
    """As many threads as there are CPUs; of a video also decoder, encoder and the segments' pool."""
    out = tmp_path / "out"
    out.mkdir()
    if kind == "picture":
        Image.fromarray(picture(900, 900)).save(tmp_path / "b.png")
        words = ["upscale", "-m", engine_dir, "-i", tmp_path / "b.png", "-o", out / "b.tif", "-t", 40]
    else:
        pytest.importorskip("av")
        from video_clips import write_clip

        write_clip(tmp_path / "b.mkv", frames=400)
        words = ["video", "-m", engine_dir, "-i", tmp_path / "b.mkv", "-o", out / "b.mkv", "-t", 40]
        words += ["--segment-frames", 2, "--preset", "ultrafast"]
    process = start(command("yonos", *words, "--progress", "json"))
    until_at_work(process, done=100 if kind == "picture" else 5)
    signals_end_it_quietly(process, signal.SIGINT, pause_s)
    assert all(name.startswith(".yonos-") for name in os.listdir(out))


def test_a_second_signal_while_the_first_is_at_work_ends_at_once() -> None:
    code = """
import sys, time
from yonos_trt import console
import types
def main(**options):
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("cleaning", flush=True)
        time.sleep(60)
module = types.ModuleType("slow"); module.command = types.SimpleNamespace(main=main)
sys.modules["slow"] = module
console.run("slow", "slow", "command")
"""
    process = start([sys.executable, "-c", code])
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "cleaning\n"
    process.send_signal(signal.SIGTERM)  # a moment later: the same one, sent twice
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (130, "")


def test_an_interrupt_that_a_library_turns_into_its_own_error_is_an_interrupt() -> None:
    """ONNX Runtime's extension module does: ImportError, initialization failed."""
    code = """
import os, signal, sys, types
from yonos_trt import console
def main(**options):
    try:
        if "SIGNAL" in os.environ:
            os.kill(os.getpid(), signal.SIGTERM)
    except KeyboardInterrupt:
        pass
    raise ImportError("initialization failed")
module = types.ModuleType("slow"); module.command = types.SimpleNamespace(main=main)
sys.modules["slow"] = module
console.run("slow", "slow", "command")
"""
    for more, code_, said in (({"SIGNAL": "1"}, 130, False), ({}, 1, True)):
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | more, capture_output=True, text=True, check=False
        )
        assert (done.returncode, "ImportError" in done.stderr) == (code_, said), done.stderr


def test_signals_that_were_ignored_from_outside_stay_ignored() -> None:
    code = """
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from yonos_trt import console
console.watch()
os.kill(os.getpid(), signal.SIGHUP)
sys.exit(7)
"""
    assert done([sys.executable, "-c", code]).returncode == 7


def test_what_a_killed_run_left_is_removed_by_the_next(engine_dir: Path, tmp_path: Path) -> None:
    arguments, out = busy(engine_dir, tmp_path, "--stream", "always")
    process = start(arguments)
    until_at_work(process)
    process.kill()
    process.communicate(timeout=60)
    assert [p.suffix for p in out.iterdir()] == [".part"]
    own = out / "b_x4.png.part"
    own.write_bytes(b"the user's own")
    Image.fromarray(picture(8, 8)).save(tmp_path / "b.png")
    assert done(arguments).returncode == 0
    assert sorted(p.name for p in out.iterdir()) == ["b_x4.png", own.name]
    assert own.read_bytes() == b"the user's own"


def test_two_processes_share_a_folder(engine_dir: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for index in range(12):
        Image.fromarray(picture(40, 40, seed=index)).save(folder / f"{index:02}.png")
    arguments = ["upscale", "-m", engine_dir, "-i", folder, "-o", out, "--threads", 1, "-t", 40]
    both = [start(command("yonos", *arguments, "--skip-existing", "--progress", "json")) for _ in range(2)]
    ends, finished = [], []
    for process in both:
        printed, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        events = [json.loads(line) for line in err.splitlines()]
        finished += [e["target"] for e in events if e["event"] == "finish"]
        ends.append(events[-1])
        assert len(printed.splitlines()) == ends[-1]["done"]
    assert sorted(finished) == [str(out / f"{index:02}_x4.png") for index in range(12)]  # none twice
    assert sum(e["done"] for e in ends) == 12
    assert sum(e["skipped"] for e in ends) == 12
    assert len(list(out.iterdir())) == 12


def test_memory_that_runs_out_in_any_command_is_exit_5() -> None:
    """What is above a command's own handlers: here torch's libraries, which do not fit."""
    resource = pytest.importorskip("resource")
    pytest.importorskip("torch")
    process = subprocess.run(
        command("yonos-train", "--preset", "smoke", "--dry-run"),
        env=ENVIRONMENT | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20)),
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert process.returncode == 5
    assert "yonos-train ran out of host memory" in process.stderr
    assert "Traceback" not in process.stderr


# ---------------------------------------------------------------------------------------------------------
# Standard streams


def closed(*descriptors: int) -> Callable[[], None]:
    def close() -> None:
        for descriptor in descriptors:
            os.close(descriptor)

    return close


@pytest.mark.parametrize("descriptors", [(2,), (1,), (0,), (1, 2), (0, 1, 2)])
def test_closed_streams_do_not_keep_a_picture_from_being_made(
    engine_dir: Path, tmp_path: Path, descriptors: tuple[int, ...]
) -> None:
    Image.fromarray(picture(20, 30)).save(tmp_path / "a.png")
    arguments = command("yonos", "upscale", "-m", engine_dir, "-i", tmp_path / "a.png", "-v")
    code = subprocess.run(
        arguments, env=ENVIRONMENT, preexec_fn=closed(*descriptors), timeout=120, check=False
    ).returncode
    assert code == 0
    with Image.open(tmp_path / "a_x4.png") as image:
        assert np.asarray(image).shape == (80, 120, 3)


@pytest.mark.parametrize("what", [["info"], ["doctor"], ["--help"], ["upscale", "--help"]])
def test_results_that_stdout_does_not_take_are_an_error(what: list[str], engine_dir: Path) -> None:
    with open("/dev/full", "w") as full:
        arguments = command("yonos", *what, *([engine_dir] if what == ["info"] else []))
        process = subprocess.run(
            arguments, stdout=full, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, timeout=120
        )
    assert process.returncode == 1
    assert "No space left on device" in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize("what", ["info", "picture", "video"])
def test_results_for_a_closed_stdout_are_an_error(what: str, engine_dir: Path, tmp_path: Path) -> None:
    source = tmp_path / "a.png"
    Image.fromarray(picture(8, 8)).save(source)
    arguments = {
        "info": ["info", engine_dir],
        "picture": ["upscale", "-m", engine_dir, "-i", source, "-o", "-"],
        "video": ["video", "-m", engine_dir, "-i", source, "-o", "-"],
    }[what]
    process = subprocess.run(
        command("yonos", *arguments), env=ENVIRONMENT, preexec_fn=closed(1), timeout=120, check=False,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.returncode == (1 if what == "info" else 2)
    assert ("Bad file descriptor" if what == "info" else "stdout is closed") in process.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_files_are_done_though_stdout_is_full(engine_dir: Path, tmp_path: Path) -> None:
    for name in "abc":
        Image.fromarray(picture(8, 8)).save(tmp_path / f"{name}.png")
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            command("yonos", "upscale", "-m", engine_dir, "-i", tmp_path, "-o", tmp_path / "out"),
            stdout=full, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, timeout=120,
        )  # fmt: skip
    assert process.returncode == 1
    assert process.stderr == "error: stdout: No space left on device; the files are written\n"
    assert len(list((tmp_path / "out").iterdir())) == 3


@pytest.mark.parametrize("progress", ["json", "bar", "none"])
def test_a_full_stderr_changes_nothing(engine_dir: Path, tmp_path: Path, progress: str) -> None:
    Image.fromarray(picture(8, 8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            command("yonos", "upscale", "-m", engine_dir, "-i", tmp_path, "-o", tmp_path / "out",
                    "--progress", progress, "-v"),
            stdout=subprocess.PIPE, stderr=full, text=True, env=ENVIRONMENT, timeout=120,
        )  # fmt: skip
    assert (process.returncode, process.stdout) == (1, f"{tmp_path / 'out' / 'a_x4.png'}\n")


@pytest.mark.parametrize("what", ["info", "upscale"])
def test_a_reader_that_goes_away_ends_a_command_quietly(engine_dir: Path, tmp_path: Path, what: str) -> None:
    Image.fromarray(picture(8, 8)).save(tmp_path / "a.png")
    arguments = [engine_dir] if what == "info" else ["-m", engine_dir, "-i", tmp_path / "a.png"]
    process = start(command("yonos", what, *arguments))
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
    assert (process.returncode, err) == (1, "")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_names_that_are_not_utf8_are_printed_as_the_bytes_they_are(
    engine_dir: Path, tmp_path: Path, encoding: str
) -> None:
    names = [b"a", b"m_caf\xe9", "写真".encode(), b"\xff\xfe", b"z"]
    for name in names:
        Image.fromarray(picture(8, 8)).save(os.path.join(os.fsencode(tmp_path), name + b".png"))
    process = subprocess.run(
        command("yonos", "upscale", "-m", engine_dir, "-i", tmp_path, "-o", tmp_path / "out", "-v"),
        capture_output=True,
        env=ENVIRONMENT | {"PYTHONIOENCODING": encoding},
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    wanted = sorted(os.fsencode(tmp_path / "out") + b"/" + name + b"_x4.png" for name in names)
    assert sorted(process.stdout.splitlines()) == wanted
    assert sorted(os.listdir(os.fsencode(tmp_path / "out"))) == sorted(n + b"_x4.png" for n in names)


# ---------------------------------------------------------------------------------------------------------
# What libraries say by themselves

NOISY = """
import os, sys, warnings
from yonos_trt import images
read = images.read_image
def noisy(path, **options):
    os.write(2, b"TIFFReadDirectory: Warning, odd.\\nTIFFReadDirectory: Warning, odd.\\n")
    warnings.warn("Corrupt EXIF data")
    return read(path, **options)
images.read_image = noisy
from yonos_trt.console import yonos
yonos()
"""


@pytest.mark.parametrize("progress", ["json", "none"])
@pytest.mark.parametrize("verbose", [True, False])
def test_what_libraries_write_to_stderr_is_logged(
    engine_dir: Path, tmp_path: Path, progress: str, verbose: bool
) -> None:
    Image.fromarray(picture(8, 8)).save(tmp_path / "a.png")
    options = ["-i", tmp_path / "a.png", "--progress", progress, *(["-v"] if verbose else [])]
    process = done([sys.executable, "-c", NOISY, "upscale", "-m", str(engine_dir), *map(str, options)])
    assert process.returncode == 0, process.stderr
    assert process.stderr.count("TIFFReadDirectory") == verbose
    assert ("Corrupt EXIF" in process.stderr) == verbose
    if progress == "json":
        for line in process.stderr.splitlines():
            json.loads(line)
    elif not verbose:
        assert process.stderr == ""


def test_a_video_whose_name_is_not_utf8_is_done_and_printed(engine_dir: Path, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 32
        frames = [av.VideoFrame.from_ndarray(np.full((32, 32, 3), 9 * i, np.uint8)) for i in range(2)]
        for frame in [*frames, None]:
            for packet in stream.encode(frame):
                container.mux(packet)
    name = os.path.join(os.fsencode(tmp_path), b"v_caf\xe9")
    os.rename(tmp_path / "a.mkv", name + b".mkv")
    process = subprocess.run(
        command("yonos", "video", "-m", engine_dir, "-i", os.fsdecode(name + b".mkv"), "--threads", 1),
        capture_output=True,
        env=ENVIRONMENT | {"PYTHONIOENCODING": "utf-8"},
        timeout=240,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout == name + b"_x4.mkv\n"
    assert os.path.exists(name + b"_x4.mkv")
