"""Nothing is sent: what the libraries look up, connect to and leave in the home folder is recorded."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from compiled import network_recorder
from helpers import make_engine_dir, picture
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
ELSEWHERE = "http://198.41.0.4/photo.png"  # a public address; the recorder refuses the connection
LOUD = {"onnxruntime", "openvino", "openvino_telemetry"}


@pytest.fixture
def quiet(tmp_path: Path) -> Quiet:
    return Quiet(tmp_path)


class Quiet:
    """Runs Python in an empty home, with every call that reaches for the network recorded and refused."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        self.record = folder / "record.txt"

    def environment(self, home: Path | None = None) -> dict[str, str]:
        private = (
            "ORT_DISABLE_",
            "XDG_CACHE_HOME",
            "XDG_CONFIG_HOME",
            "MPLCONFIGDIR",
            "CI",
            "GRADIO_",
            "RAY_",
        )
        return {key: value for key, value in os.environ.items() if not key.startswith(private)} | {
            "HOME": str(home or self.home),
            "LD_PRELOAD": str(network_recorder()),
            "YONOS_RECORD": str(self.record),
            "PYTHONPATH": os.pathsep.join(sys.path),
        }

    def run(
        self, code: str, *arguments: str, home: Path | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        environment = self.environment(home) | variables
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            env=environment,
            timeout=300,
        )

    def reached(self) -> list[str]:
        return self.record.read_text().splitlines() if self.record.exists() else []

    def left(self) -> list[str]:
        return sorted(str(path.relative_to(self.home)) for path in self.home.rglob("*"))


YONOS = "import sys; from yonos_trt.cli.main import cli; sys.exit(cli())"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(picture(24, 32)).save(path)
    return path


def test_the_recorder_sees_look_ups_and_connections(quiet: Quiet) -> None:
    code = """
        import socket, sys
        for call in (
            lambda: socket.getaddrinfo("example.org", 443),
            lambda: socket.socket().connect(("192.0.2.1", 80)),
            lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53)),
        ):
            try:
                call()
            except OSError:
                pass
            else:
                sys.exit("not refused")
    """
    done = quiet.run("if True:" + code)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in quiet.reached()] == ["getaddrinfo", "connect", "sendto"]


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_upscaling_sends_nothing_and_leaves_nothing_at_home(quiet: Quiet, photo: Path, runtime: str) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino", reason="openvino is not installed: pip install '.[openvino]'")
    out = photo.with_name("out.png")
    done = quiet.run(YONOS, "upscale", "-i", str(photo), "-o", str(out), "--runtime", runtime)
    assert done.returncode == 0, done.stderr
    assert out.exists()
    assert (quiet.reached(), quiet.left()) == ([], [])


@pytest.mark.parametrize(
    "command",
    [
        "doctor --json",
        "info lite-x4 --json",
        "models",
    ],
)
def test_other_commands_send_nothing_either(quiet: Quiet, command: str) -> None:
    done = quiet.run(YONOS, *command.split())
    assert done.returncode == 0, done.stderr
    assert (quiet.reached(), quiet.left()) == ([], [])


def test_a_benchmark_sends_nothing(quiet: Quiet, tmp_path: Path) -> None:
    """With the shortest of its probes of what the machine can do."""
    code = """
        import functools
        from yonos_trt.bench import run
        few = {"seconds": 0.001, "matmul_size": 64, "copy_bytes": 4096, "libraries": ()}
        run.measure_peaks = functools.partial(run.measure_peaks, **few)
    """
    command = ["bench", "-m", str(make_engine_dir(tmp_path / "engine")), "--size", "32x32", "-t", "128"]
    short = ["-j", "1", "--iterations", "1", "--warm-up", "0", "--duration", "0", "--no-gflop"]
    done = quiet.run(f"if True:{code}\n{YONOS}", *command, *short)
    assert done.returncode == 0, done.stderr
    assert "onnx" in done.stdout
    assert (quiet.reached(), quiet.left()) == ([], [])


def test_a_video_sends_nothing(quiet: Quiet, tmp_path: Path) -> None:
    pytest.importorskip("av")
    from video_clips import write_clip

    clip, engine = write_clip(tmp_path / "a.mkv", frames=3), make_engine_dir(tmp_path / "engine")
    done = quiet.run(YONOS, "video", "-i", str(clip), "-o", str(tmp_path / "out.mkv"), "-m", str(engine))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.mkv").exists()
    assert (quiet.reached(), quiet.left()) == ([], [])


def test_an_export_sends_nothing(quiet: Quiet, tmp_path: Path) -> None:
    for package in ("onnx", "filelock"):
        pytest.importorskip(package)
    engine = make_engine_dir(tmp_path / "engine")
    code = "import sys; from yonos_export.cli import main; sys.exit(main())"
    done = quiet.run(code, str(engine), "-o", str(tmp_path / "out"), "--fp16", "--onnx-only")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "manifest.json").exists()
    assert (quiet.reached(), quiet.left()) == ([], [])


@pytest.mark.slow
def test_a_batch_on_ray_stays_on_this_machine(quiet: Quiet, photo: Path, tmp_path: Path) -> None:
    """Its own processes talk over the loopback.

    Which of the machine's addresses leads outside it asks the system, by a socket that sends nothing.
    """
    pytest.importorskip("ray", reason="ray is not installed: pip install '.[ray]'")
    engine, out = make_engine_dir(tmp_path / "engine"), tmp_path / "out"
    (tmp_path / "in").mkdir()
    photo.rename(tmp_path / "in" / "photo.png")
    command = ["batch", str(tmp_path / "in"), str(out), "-m", str(engine)]
    done = quiet.run(YONOS, *command, YONOS_LOOPBACK="1")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in out.iterdir()] == ["photo_x4.png"]
    routes = {"connect AF_INET 8.8.8.8", "connect AF_INET6 2001:4860:4860::8888"}
    assert (set(quiet.reached()) - routes, quiet.left()) == (set(), [])


@pytest.mark.slow
def test_the_page_sends_nothing_but_to_its_visitor(quiet: Quiet, photo: Path, tmp_path: Path) -> None:
    python = REPOSITORY / ".venv-web" / "bin" / "python"
    if not python.exists():
        pytest.skip("Gradio is not installed: make .venv-web/.ready")
    code = "import sys; from yonos_trt.console import yonos; sys.argv[0] = 'yonos'; yonos()"
    temporary = {"TMPDIR": str(tmp_path), "YONOS_LOOPBACK": "1", "PYTHONUNBUFFERED": "1"}
    environment = quiet.environment() | temporary | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    process = subprocess.Popen(
        [str(python), "-c", code, "web", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    answers = []
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        page = urllib.request.urlopen(address, timeout=60).read().decode()
        for named in ({"path": ELSEWHERE}, {"path": ELSEWHERE, "url": ELSEWHERE}):
            order = [{**named, "meta": {"_type": "gradio.FileData"}}]
            asked = json.dumps({"data": [order, "lite-x2", 0, 0.0, "PNG", 95, True]}).encode()
            call = f"{address.rstrip('/')}/gradio_api/call/upscale"
            headers = {"Content-Type": "application/json"}
            with urllib.request.urlopen(urllib.request.Request(call, asked, headers), timeout=60) as got:
                event = json.load(got)["event_id"]
            with urllib.request.urlopen(f"{call}/{event}", timeout=60) as got:
                answers.append(got.read().decode())
        time.sleep(2)  # what reports home does so from a thread, after the start
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert "gradio" in page
    assert ["fetches nothing" in answer for answer in answers] == [True, True]
    assert (quiet.reached(), quiet.left()) == ([], [])


def test_progress_stays_json_where_the_home_folder_cannot_be_written(quiet: Quiet, photo: Path) -> None:
    out = photo.with_name("out.png")
    command = ["upscale", "-i", str(photo), "-o", str(out), "--progress", "json"]
    done = quiet.run(YONOS, *command, home=Path("/proc/self/nowhere"))
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert events[-1]["event"] == "end"


@pytest.mark.slow
def test_training_and_exporting_libraries_send_nothing(quiet: Quiet, tmp_path: Path) -> None:
    for package in ("diffusers", "accelerate", "onnxscript"):
        pytest.importorskip(package)
    code = """
        import sys, torch
        from accelerate import Accelerator
        from diffusers import AutoencoderKL
        import yonos_export.cli, yonos_export.verify, yonos_train.cli, yonos_train.stages, yonos_train.metrics
        Accelerator(cpu=True)
        AutoencoderKL(block_out_channels=(32,), norm_num_groups=8).save_pretrained(sys.argv[1])
        AutoencoderKL.from_pretrained(sys.argv[1], local_files_only=True, use_safetensors=True)
        layer = torch.nn.Conv2d(3, 3, 3).eval()
        images = (torch.zeros(1, 3, 8, 8),)
        torch.onnx.export(layer, images, sys.argv[1] + ".onnx", dynamo=True, verbose=False)
    """
    done = quiet.run("if True:" + code, str(tmp_path / "vae"))
    assert done.returncode == 0, done.stderr
    assert quiet.reached() == []
    # torchmetrics brings matplotlib, which keeps its list of fonts
    assert [p for p in quiet.left() if (quiet.home / p).is_file() and "matplotlib" not in p] == []


def test_a_library_that_was_loaded_before_is_told_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from yonos_trt.backends.telemetry import import_onnxruntime

    told = []
    monkeypatch.setattr(onnxruntime, "disable_telemetry_events", lambda: told.append(True))
    assert import_onnxruntime() is onnxruntime
    assert told == [True]
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports when it runs; what only type checkers read does not count."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def test_only_one_module_imports_the_libraries_that_report_home() -> None:
    folders = ("yonos_trt", "export", "train", "benchmarks", "examples")
    files = [path for folder in folders for path in (REPOSITORY / folder).rglob("*.py")]
    assert len(files) > 100
    assert [str(p) for p in files if imported(p) & LOUD] == []
