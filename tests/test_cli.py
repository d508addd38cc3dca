"""The `yonos` command line: names, exit codes, runs over folders, interruption."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from helpers import picture
from PIL import Image, PngImagePlugin

from yonos_trt import errors
from yonos_trt.cli.main import LAZY_COMMANDS, cli, exit_code
from yonos_trt.cli.upscale import upscale as upscale_command
from yonos_trt.images import MAX_PIXELS, read_image
from yonos_trt.sr import SR

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    Image.fromarray(picture(20, 30)).save(folder / "a.png")
    Image.fromarray(picture(11, 13)).save(folder / "sub" / "b.jpg")
    (folder / "notes.txt").write_text("not a picture")
    return folder


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def upscale(engine_dir: Path, *arguments: Any) -> Result:
    return run("upscale", "-m", engine_dir, "--threads", 1, *arguments)


def tree(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


# ---------------------------------------------------------------------------------------------------------
# Names and codes


@pytest.mark.parametrize("command", ["upscale", "info", "doctor"])
def test_help_is_what_was_agreed(command: str) -> None:
    result = CliRunner().invoke(cli, [command, "--help"], terminal_width=100)
    assert result.exit_code == 0
    golden = GOLDEN / f"{command}.txt"
    if os.environ.get("YONOS_UPDATE_GOLDEN") == "1":
        golden.write_text(result.output)
    assert result.output == golden.read_text()


def test_the_commands_are_these() -> None:
    result = run("--help")
    names = [line.split()[0] for line in result.output.split("Commands:")[1].splitlines() if line.strip()]
    assert set(names) - set(LAZY_COMMANDS) == {"info", "doctor"}


def test_a_lazy_command_that_is_not_there_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAZY_COMMANDS, "video", "yonos_trt.no_such_module")
    assert "video" not in run("--help").output.split("Commands:")[1]
    assert run("video").exit_code == 2


def test_upscale_options_are_fields_of_sr() -> None:
    import inspect

    options = {p.name for p in upscale_command.params}
    assert {"engine_dir", *inspect.signature(SR).parameters} <= options


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InputError("x"), 1),
        (errors.ConfigError("x"), 2),
        (errors.ManifestError("x"), 3),
        (errors.EngineNotFoundError("x"), 3),
        (errors.EngineIntegrityError("x"), 3),
        (errors.EngineVersionError("x"), 3),
        (errors.MissingExtraError("x", package="p", extra="e"), 3),
        (errors.EngineDeviceError("x"), 4),
        (errors.CudaError("x"), 4),
        (errors.OutOfMemoryError("x"), 5),
        (MemoryError(), 5),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(error: BaseException, code: int) -> None:
    assert exit_code(error) == code


# ---------------------------------------------------------------------------------------------------------
# yonos upscale


def test_one_file_into_one_file(engine_dir: Path, photos: Path, tmp_path: Path) -> None:
    result = upscale(engine_dir, "-i", photos / "a.png", "-o", tmp_path / "big.png")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{tmp_path / 'big.png'}\n", "")
    with SR(engine_dir) as sr:
        wanted = sr.upscale(picture(20, 30))
    np.testing.assert_array_equal(read_image(tmp_path / "big.png").rgb, wanted)


def test_without_output_the_result_lies_beside_the_source(engine_dir: Path, photos: Path) -> None:
    assert upscale(engine_dir, "-i", photos / "a.png", "-q").exit_code == 0
    assert upscale(engine_dir, photos / "a.png", "--suffix", "_big{scale}", "-f", "webp").exit_code == 0
    assert tree(photos) == ["a.png", "a_big4.webp", "a_x4.png", "notes.txt", "sub/b.jpg"]


def test_providers_are_named_in_order_and_a_foreign_one_is_refused(
    engine_dir: Path, photos: Path, tmp_path: Path
) -> None:
    named = ("-i", photos / "a.png", "-o", tmp_path / "out.png")
    result = upscale(engine_dir, *named, "--providers", "CUDAExecutionProvider, CPUExecutionProvider")
    assert result.exit_code == 2
    assert "no execution provider 'CUDAExecutionProvider', it has" in result.output
    assert upscale(engine_dir, *named, "--providers", "CPUExecutionProvider").exit_code == 0


def test_a_list_of_files_goes_into_a_folder(engine_dir: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert upscale(engine_dir, photos / "a.png", photos / "sub" / "b.jpg", "-o", out).exit_code == 0
    assert tree(out) == ["a_x4.png", "b_x4.jpg"]


def test_a_folder_takes_pictures_only_and_recursive_keeps_the_tree(
    engine_dir: Path, photos: Path, tmp_path: Path
) -> None:
    assert upscale(engine_dir, "-i", photos, "-o", tmp_path / "flat").exit_code == 0
    assert tree(tmp_path / "flat") == ["a_x4.png"]
    assert upscale(engine_dir, "-i", photos, "-o", tmp_path / "deep", "--recursive").exit_code == 0
    assert tree(tmp_path / "deep") == ["a_x4.png", "sub/b_x4.jpg"]


def test_bad_files_are_listed_and_the_others_done(engine_dir: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "0empty.png").write_bytes(b"")
    (photos / "text.jpg").write_text("hello")
    (photos / "cut.png").write_bytes((photos / "a.png").read_bytes()[:300])
    (photos / "folder.png").mkdir()
    result = upscale(engine_dir, "-i", photos, "-o", tmp_path / "out", "--recursive")
    assert result.exit_code == 1
    assert tree(tmp_path / "out") == ["a_x4.png", "sub/b_x4.jpg"]
    for name in ("0empty.png", "text.jpg", "cut.png"):
        assert f"error: {photos / name}: " in result.stderr
    assert result.stderr.splitlines()[-4:] == [
        "3 of 5 failed:",
        *(f"  {photos / name}" for name in ("0empty.png", "cut.png", "text.jpg")),
    ]


def test_an_existing_result_is_refused_skipped_or_replaced_as_asked(engine_dir: Path, photos: Path) -> None:
    target = photos / "a_x4.png"
    target.write_bytes(b"old")
    refused = upscale(engine_dir, "-i", photos / "a.png")
    assert refused.exit_code == 1
    assert "--overwrite" in refused.stderr
    assert "--skip-existing" in refused.stderr
    assert upscale(engine_dir, "-i", photos / "a.png", "--skip-existing").exit_code == 0
    assert target.read_bytes() == b"old"
    assert upscale(engine_dir, "-i", photos / "a.png", "--overwrite").exit_code == 0
    assert read_image(target).rgb.shape == (80, 120, 3)


def test_results_of_an_earlier_run_are_not_upscaled_again(engine_dir: Path, photos: Path) -> None:
    for _ in range(2):
        assert upscale(engine_dir, "-i", photos, "--recursive", "--skip-existing").exit_code == 0
        assert tree(photos) == ["a.png", "a_x4.png", "notes.txt", "sub/b.jpg", "sub/b_x4.jpg"]
    inside = photos / "out"
    for _ in range(2):
        assert upscale(engine_dir, "-i", photos, "-o", inside, "--recursive", "--overwrite").exit_code == 0
    assert upscale(engine_dir, photos / "a_x4.png", "-q").exit_code == 0  # asked for by name
    assert (photos / "a_x4_x4.png").exists()


def test_a_source_is_never_replaced_by_its_result(engine_dir: Path, photos: Path) -> None:
    before = (photos / "a.png").read_bytes()
    result = upscale(engine_dir, "-i", photos / "a.png", "-o", photos / "a.png", "--overwrite")
    assert result.exit_code == 1
    assert "its own source" in result.stderr
    assert (photos / "a.png").read_bytes() == before


def test_a_file_that_is_named_twice_is_done_once(engine_dir: Path, photos: Path, tmp_path: Path) -> None:
    again = photos / "sub" / ".." / "a.png"
    result = upscale(engine_dir, photos / "a.png", again, photos / "sub" / "b.jpg", "-o", tmp_path / "out/")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [str(tmp_path / "out" / n) for n in ("a_x4.png", "b_x4.jpg")]


def test_two_names_of_one_folder_are_one_target(engine_dir: Path, photos: Path) -> None:
    Image.fromarray(picture(8, 8)).save(photos / "a.jpg")
    result = upscale(engine_dir, "-i", photos / "a.png", photos / "sub" / ".." / "a.jpg", "-f", "png")
    assert result.exit_code == 2
    assert "would both be written" in result.stderr


def test_two_sources_of_one_target_are_refused(engine_dir: Path, photos: Path) -> None:
    Image.fromarray(picture(8, 8)).save(photos / "a.jpg")
    result = upscale(engine_dir, "-i", photos, "-f", "png")
    assert result.exit_code == 2
    assert "would both be written" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "no input"),
        (("-i", "{empty}"), 2, "no pictures in"),
        (("-i", "{a}", "-o", "x.xyz"), 1, "cannot write suffix '.xyz'"),
        (("-i", "{a}", "-s", "5"), 2, "expected 1 to 4"),
        (("-i", "{a}", "--suffix", "{name}"), 2, "only {scale} is replaced"),
        (("-i", "{a}", "--seed", "-1"), 2, "seed is -1"),
        (("-i", "{a}", "--runtime", "tensorrt"), 3, "yonos-export"),
        (("-i", "{a}", "--precision", "fp16", "--runtime", "onnx"), 3, "--fp16"),
        (("-i", "{absent}"), 1, "No such file"),
        (("-i", "{a}", "--memory-limit", "1"), 2, "memory limit"),
        (("-i", "{a}", "-o", "out.png", "-f", "jpg"), 2, "out.png is PNG by its name"),
        (("{a}", "out.JPEG", "-f", "tiff"), 2, "out.JPEG is JPEG by its name"),
        (("-i", "{a}", "-i", "{sub}", "-o", "out.png"), 2, "out.png/ is one"),
        (("-i", "{sub}", "-o", "out.png"), 2, "has the name of a picture, but there are several inputs"),
        (("-", "-o", "out.png"), 2, "'-' would be stdin"),
        (("-", "out.png"), 2, "'-' would be stdin"),
        (("{a}", "-", "{a}"), 2, "'-' would be stdin"),
    ],
)
def test_wrong_use_says_what_and_how(
    engine_dir: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    places = {"a": photos / "a.png", "sub": photos / "sub", "empty": tmp_path / "empty"}
    places["absent"] = photos / "absent.png"
    filled = [a.format(**places) if a.strip("{}") in places else a for a in arguments]
    result = upscale(engine_dir, *filled)
    assert result.exit_code == code, result.output
    assert words in result.stderr
    assert "Traceback" not in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "photos"]


def test_an_output_may_say_its_format_twice(engine_dir: Path, photos: Path, tmp_path: Path) -> None:
    for name, format in (("b.jpeg", "jpg"), ("b.TIF", "tiff"), ("b.v2", "png"), ("c.png/", "png")):
        result = upscale(engine_dir, "-i", photos / "a.png", "-o", f"{tmp_path}/{name}", "-f", format)
        assert result.exit_code == 0, result.output
    assert upscale(engine_dir, "-i", photos / "sub", "-o", f"{tmp_path}/d.png/").exit_code == 0


def test_a_damaged_engine_directory_ends_with_code_3(engine_dir: Path, photos: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(engine_dir, tmp_path / "engine"))
    (directory / "step.onnx").write_bytes(b"x")
    result = upscale(directory, "-i", photos, "-o", tmp_path / "out")
    assert result.exit_code == 3
    assert "truncated" in result.stderr
    assert not (tmp_path / "out").exists()


def test_progress_json_writes_one_object_per_line_and_nothing_else(
    engine_dir: Path, photos: Path, tmp_path: Path
) -> None:
    (photos / "bad.png").write_text("x")
    result = upscale(engine_dir, "-i", photos, "-o", tmp_path / "out", "--progress", "json", "-v")
    events = [json.loads(line) for line in result.stderr.splitlines()]
    kinds = [e["event"] for e in events if e["event"] != "log"]
    tiles = ["step"] * kinds.count("step")
    assert kinds == ["skip", "skip", "start", *tiles, "finish", "start", "fail", "end"]
    assert [Path(e["name"]).name for e in events if e["event"] == "skip"] == ["notes.txt", "sub"]
    steps = [e for e in events if e["event"] == "step"]
    assert steps[-1]["done"] == steps[-1]["total"] == len(steps)
    end = {"event": "end", "elapsed_s": 0, "done": 1, "skipped": 2, "failed": 1}
    assert events[-1] | {"elapsed_s": 0} == end
    assert [e for e in events if e["event"] == "log"]  # -v


def test_what_is_left_out_is_said_on_stderr_and_in_the_finish_event(engine_dir: Path, tmp_path: Path) -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff garbage"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", exif=exif)
    text = PngImagePlugin.PngInfo()
    text.add_text("icc_profile", "hello")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png", pnginfo=text)
    source = [part for name in ("a.png", "b.png") for part in ("-i", tmp_path / name)]
    result = upscale(engine_dir, *source, "-o", tmp_path / "json", "--progress", "json")
    assert result.exit_code == 0
    events = [json.loads(line) for line in result.stderr.splitlines()]
    left_out = [e["left_out"] for e in events if e["event"] == "finish"]
    assert left_out == [["EXIF, which cannot be read (its directory is damaged)"], []]
    plain = upscale(engine_dir, *source, "-o", tmp_path / "plain")
    assert plain.stderr.count("left out") == 1
    assert "a.png: left out: EXIF" in plain.stderr
    assert "warn" not in plain.stderr.lower().replace("warning yonos_trt", "")  # Python's own


def test_progress_json_reports_engine_errors_as_json_too(engine_dir: Path, photos: Path) -> None:
    result = upscale(engine_dir, "-i", photos, "--progress", "json", "--runtime", "tensorrt")
    assert result.exit_code == 3
    last = json.loads(result.stderr.splitlines()[-1])
    assert last["event"] == "error"
    assert "yonos-export" in last["message"]


def test_the_bar_goes_to_stderr(engine_dir: Path, photos: Path, tmp_path: Path) -> None:
    result = upscale(engine_dir, "-i", photos, "-o", tmp_path / "out", "--progress", "bar")
    assert result.exit_code == 0
    assert result.stdout == f"{tmp_path / 'out' / 'a_x4.png'}\n"


def test_dry_run_prints_the_plan_and_writes_nothing(engine_dir: Path, photos: Path, tmp_path: Path) -> None:
    result = upscale(engine_dir, "-i", photos, "-o", tmp_path / "out", "--recursive", "-j", 3, "--dry-run")
    document = json.loads(result.stdout)
    assert result.exit_code == 0
    assert document["options"]["lanes"] == 3
    assert [j["target"] for j in document["jobs"]] == [
        str(tmp_path / "out" / "a_x4.png"),
        str(tmp_path / "out" / "sub" / "b_x4.jpg"),
    ]
    assert not (tmp_path / "out").exists()


def test_alpha_into_a_format_without_it_is_refused_unless_dropped(engine_dir: Path, tmp_path: Path) -> None:
    Image.fromarray(picture(8, 8, channels=4)).save(tmp_path / "a.png")
    refused = upscale(engine_dir, "-i", tmp_path / "a.png", "-f", "jpg")
    assert refused.exit_code == 1
    assert "--alpha drop" in refused.stderr
    assert upscale(engine_dir, "-i", tmp_path / "a.png", "-f", "jpg", "--alpha", "drop").exit_code == 0
    assert read_image(tmp_path / "a_x4.jpg").kind.mode == "RGB"


def test_the_cpu_may_be_named_as_gpu_minus_one(engine_dir: Path, photos: Path) -> None:
    result = upscale(engine_dir, "-i", photos / "a.png", "-g", -1, "--dry-run")
    assert json.loads(result.stdout)["options"]["runtime"] == "onnx"


@pytest.mark.parametrize(
    ("number", "stream"), [(signal.SIGINT, "never"), (signal.SIGINT, "always"), (signal.SIGTERM, "always")]
)
def test_an_interrupted_run_leaves_no_unfinished_file(
    engine_dir: Path, tmp_path: Path, number: signal.Signals, stream: str
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    Image.fromarray(picture(12, 12)).save(folder / "a.png")
    Image.fromarray(picture(900, 900)).save(folder / "b.png")  # some 10 000 tiles
    options = f"--threads 1 -t 40 --progress json --stream {stream}".split()
    command = ["upscale", "-m", str(engine_dir), "-i", str(folder), "-o", str(out), *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "yonos_trt.cli", *command],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        # A shell starts background jobs with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        event = json.loads(line)
        if event["event"] == "step" and 100 < event["done"] < event["total"]:
            break
    else:
        pytest.fail("the run ended by itself: " + "".join(lines[-5:]))
    process.send_signal(number)
    start = time.monotonic()
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130, rest
    assert time.monotonic() - start < 20
    assert json.loads(rest.splitlines()[-1])["event"] == "interrupted"
    assert "Traceback" not in rest
    assert tree(out) == ["a_x4.png"]
    assert read_image(out / "a_x4.png").rgb.shape == (48, 48, 3)


# ---------------------------------------------------------------------------------------------------------
# yonos info, yonos doctor


def test_info_describes_the_directory(engine_dir: Path) -> None:
    text = run("info", engine_dir)
    assert text.exit_code == 0
    for words in ("tiny-x4, x4", "onnx fp32  step.onnx", "code: Apache-2.0", "all hashes right"):
        assert words in text.output
    assert json.loads(run("info", engine_dir, "--json").output)["scale"] == 4


def test_info_warms_up(engine_dir: Path) -> None:
    """What it keeps on disk has a test of its own: here it runs, and says on what."""
    arguments = ("info", engine_dir, "--warm-up", "24x16", "--warm-up", "8x8")
    assert re.search(r"warm-up     2 sizes in [\d.]+ s on \w+Backend", run(*arguments).output)
    assert json.loads(run(*arguments, "--json").output)["warm_up_s"] > 0
    assert "warm_up_s" not in json.loads(run("info", engine_dir, "--json").output)
    assert run("info", engine_dir, "--warm-up", "24").exit_code == 2


def test_info_describes_what_does_not_run_here_too(engine_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> Any:
        raise errors.EngineDeviceError("no GPU for these engines")

    assert re.search(r"runs on     OrtBackend, fp32", run("info", engine_dir).output)
    monkeypatch.setattr("yonos_trt.session.open_backend", refused)
    result = run("info", engine_dir)
    assert (result.exit_code, "nothing that is here: no GPU" in result.output) == (0, True)
    assert "tiny-x4" in result.output
    assert run("info", engine_dir, "--warm-up", "8x8").exit_code == 4


def test_info_finds_an_altered_file(engine_dir: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(engine_dir, tmp_path / "engine"))
    raw = bytearray((directory / "step.onnx").read_bytes())
    raw[5] ^= 1
    (directory / "step.onnx").write_bytes(raw)
    assert run("info", directory).exit_code == 3
    assert run("info", directory, "--no-verify").exit_code == 0


def test_doctor_reports_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("doctor")
    assert result.exit_code == 0
    for words in (
        "yonos-trt",
        "CPUs",
        "tile kernels",
        "CPUExecutionProvider",
        "NVIDIA driver",
        "models",
    ):
        assert words in result.output
    facts = json.loads(run("doctor", "--json").output)
    assert facts["cpus"]["usable"] >= 1
    assert facts["kernels"] in ("native", "numpy")
    training = facts["training"]
    if training["problem"]:
        line = next(x for x in result.output.splitlines() if x.startswith("training"))
        assert "pip install" in line or "idle machine" in line
    else:
        assert training["precision"] in ("fp32", "bf16")
        assert training["images_per_s"] > 0
        assert re.search(rf"training +{training['precision']}, [\d.]+ images/s", result.output)


def test_doctor_gives_up_on_a_driver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    from yonos_trt.cuda import probe as driver

    monkeypatch.setattr(driver, "_PROBE", "import time; time.sleep(60)")
    monkeypatch.setattr(driver, "_TIMEOUT_S", 0.3)
    found = driver.probe_driver.__wrapped__()
    assert found.devices == ()
    assert "did not answer" in found.problem
    monkeypatch.setattr(driver, "_PROBE", "raise SystemExit(7)")
    monkeypatch.setattr(driver, "_TIMEOUT_S", 20.0)
    assert "failed" in driver.probe_driver.__wrapped__().problem


# ---------------------------------------------------------------------------------------------------------
# Devices and threads


def test_a_gpu_that_is_not_there_is_refused(
    engine_dir: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from yonos_trt.backends import choose as runtimes
    from yonos_trt.cuda.probe import Device, DriverFacts

    none = DriverFacts("", (), "no driver library")
    one = DriverFacts("13.0", (Device(0, "GPU", "9.0", 1 << 30),), "")
    for driver, words in ((none, "none (no driver library)"), (one, "GPUs are: 0;")):
        monkeypatch.setattr(runtimes, "probe_driver", lambda driver=driver: driver)
        for runtime in ("auto", "onnx"):
            result = upscale(engine_dir, "-i", photos / "a.png", "-g", 3, "--runtime", runtime)
            assert result.exit_code == 4
            assert words in result.stderr
            assert "-g -1" in result.stderr
    assert upscale(engine_dir, "-i", photos / "a.png", "-g", -1).exit_code == 0


def test_engines_without_a_driver_run_on_the_cpu_with_a_warning(
    engine_dir: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from yonos_trt.backends import choose as runtimes
    from yonos_trt.cuda.probe import DriverFacts

    monkeypatch.setattr(runtimes, "probe_driver", lambda: DriverFacts("", (), "no driver library"))
    monkeypatch.setattr(runtimes, "_has_all", lambda manifest, runtime, precision: runtime == "tensorrt")
    result = upscale(engine_dir, "-i", photos / "a.png")
    assert result.exit_code == 0
    assert (
        "WARNING yonos_trt.backends.choose: no GPU (no driver library): the tensorrt engines of"
        in result.stderr
    )
    assert "run on the CPU" in result.stderr


def test_more_threads_than_the_system_starts_are_refused(
    engine_dir: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from yonos_trt.backends import choose as runtimes

    monkeypatch.setattr(runtimes, "usable_cpus", lambda: 64)
    monkeypatch.setattr(runtimes, "startable_threads", lambda count: min(count, 100))
    result = upscale(engine_dir, "-i", photos / "a.png", "--threads", 64)
    assert result.exit_code == 2
    assert "the system starts 100" in result.stderr
    assert upscale(engine_dir, "-i", photos / "a.png", "--threads", 24).exit_code == 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of address space")
@pytest.mark.parametrize(("threads", "code"), [(900, 0), (2000, 2)])
def test_a_limit_of_memory_does_not_hang_a_run_of_many_threads(
    engine_dir: Path, photos: Path, threads: int, code: int
) -> None:
    arguments = ["upscale", "-m", str(engine_dir), "-i", str(photos / "a.png"), "--threads", str(threads)]
    shell = f'ulimit -v 4000000; exec "{sys.executable}" -m yonos_trt.cli "$@"'
    process = subprocess.run(
        ["bash", "-c", shell, "yonos", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.returncode == code, process.stderr
    assert "threads" in process.stderr


def test_one_picture_goes_to_stdout(engine_dir: Path, photos: Path, tmp_path: Path) -> None:
    result = upscale(engine_dir, "-i", photos / "a.png", "-o", tmp_path / "big.png", "-q")
    piped = upscale(engine_dir, "-i", photos / "a.png", "-o", "-")
    assert (result.exit_code, piped.exit_code, piped.stderr) == (0, 0, "")
    assert piped.stdout_bytes == (tmp_path / "big.png").read_bytes()
    jpeg = upscale(engine_dir, "-i", photos / "a.png", "-o", "-", "-f", "jpg")
    assert jpeg.stdout_bytes.startswith(b"\xff\xd8\xff")
    folder = upscale(engine_dir, "-i", photos, "-o", "-")
    assert (folder.exit_code, folder.stdout) == (2, "")
    (photos / "bad.png").write_text("x")
    bad = upscale(engine_dir, "-i", photos / "bad.png", "-o", "-")
    assert (bad.exit_code, bad.stdout) == (1, "")
    assert not Path("-").exists()


def test_a_picture_with_a_text_named_icc_profile_does_not_end_a_run(
    engine_dir: Path, photos: Path, tmp_path: Path
) -> None:
    from PIL import PngImagePlugin

    text = PngImagePlugin.PngInfo()
    text.add_text("icc_profile", "not a profile")
    Image.fromarray(picture(8, 8)).save(photos / "0.png", pnginfo=text)
    result = upscale(engine_dir, "-i", photos, "-o", tmp_path / "out")
    assert "Traceback" not in result.output
    assert {"0_x4.png", "a_x4.png"} <= set(tree(tmp_path / "out"))
    assert "0.png" not in result.stderr
    assert result.exit_code == 0, result.stderr


def test_limit_of_pixels_can_be_raised_as_its_message_says(engine_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(path)
    result = run("upscale", "-i", path, "-m", engine_dir, "--max-pixels", 599)
    assert result.exit_code == 1
    assert "raise max_pixels (--max-pixels)" in result.stderr
    assert run("upscale", "-i", path, "-m", engine_dir, "--max-pixels", 600).exit_code == 0
    (option,) = (p for p in upscale_command.params if p.name == "max_pixels")
    assert option.default == MAX_PIXELS


def test_a_fault_of_the_program_is_one_line(
    engine_dir: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise TypeError("no")

    monkeypatch.setattr("yonos_trt.cli.job_run.run_jobs", broken)
    result = upscale(engine_dir, "-i", photos / "a.png")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: not expected: TypeError: no (at test_cli.py:")
    assert "Traceback" in upscale(engine_dir, "-i", photos / "a.png", "-vv").stderr


@pytest.mark.parametrize(
    "error", [MemoryError(), ImportError("libtiff.so.6: failed to map segment from shared object")]
)
def test_memory_that_runs_out_while_a_picture_is_read_is_exit_5(
    engine_dir: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def short(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", short)
    result = upscale(engine_dir, "-i", photos / "a.png")
    assert result.exit_code == 5
    assert "a.png: memory ran out while the picture was read" in result.stderr
    assert "damaged" not in result.stderr


def test_heic_in_a_folder_is_named_with_the_extra_it_needs_and_the_others_are_done(
    engine_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    folder = tmp_path / "phone"
    folder.mkdir()
    Image.fromarray(picture(20, 30)).save(folder / "a.png")
    (folder / "b.heic").write_bytes(
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0\0\0\x0cmeta\0\0\0\0" + b"\0\0\0\x10mdat" + bytes(8)
    )
    result = upscale(engine_dir, "-i", folder, "-o", tmp_path / "out")
    assert result.exit_code == 3, result.stderr
    assert "b.heic: reading HEIC needs the package 'pillow_heif'" in result.stderr
    assert ".[heic]" in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"a_x{SR(engine_dir).scale}.png"]
