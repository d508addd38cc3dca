"""`yonos video` and y4m pipes, with a real (tiny) engine directory."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

av = pytest.importorskip("av")

from video_clips import damage, enlarge, packets, picture_planes, run, shown, write_clip  # noqa: E402

from yonos_trt.cli.main import cli  # noqa: E402
from yonos_trt.errors import ConfigError, InputError  # noqa: E402
from yonos_trt.sr import SR  # noqa: E402
from yonos_trt.video import VideoOptions, upscale_video  # noqa: E402
from yonos_trt.video.color import planes_to_rgb  # noqa: E402
from yonos_trt.video.format import EncoderSettings  # noqa: E402
from yonos_trt.video.layouts import layout_of  # noqa: E402
from yonos_trt.video.read import VideoReader  # noqa: E402
from yonos_trt.video.segments import work_folder  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden" / "video.txt"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["video", *map(str, arguments)])


def quick(engine_dir: Path, *arguments: object) -> Result:
    return call("-m", engine_dir, "--preset", "ultrafast", "--threads", 1, *arguments)


def test_help_is_frozen() -> None:
    """The options are what scripts rely on: a change shows here (YONOS_UPDATE_GOLDEN=1 accepts it)."""
    output = call("--help").output
    if os.environ.get("YONOS_UPDATE_GOLDEN") == "1":
        GOLDEN.write_text(output)
    assert output == GOLDEN.read_text()


def test_a_clip_goes_through_the_networks_and_keeps_its_sound(tmp_path: Path, engine_dir: Path) -> None:
    source = write_clip(tmp_path / "in.mkv", frames=4, audio=True, codec="ffv1", pix_fmt="yuv444p")
    result = call("-m", engine_dir, "-i", source, "-c", "ffv1", "--threads", 1, "--progress", "json")
    assert result.exit_code == 0, result.output
    target = tmp_path / "in_x4.mkv"
    assert result.stdout.strip() == str(target)
    events = [json.loads(line) for line in result.stderr.splitlines()]
    assert [e["event"] for e in events] == ["start", "step", "step", "step", "step", "finish", "end"]
    assert events[-2]["frames"] == 4
    assert events[-2]["mux"]["copied"][0]["identical"] is True
    assert packets(target, "audio") == packets(source, "audio")
    with SR(engine_dir) as sr, VideoReader(source) as before, VideoReader(target) as after:
        for old, new in zip(before.frames(), after.frames(), strict=True):
            # ffv1 4:4:4 keeps what the network gave, up to one rounding to 8-bit YUV and back
            expected = sr.upscale(old.rgb).astype(int)
            assert np.abs(expected - new.rgb.astype(int)).max() <= 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--end", "x"], "'x' is not a time"),
        (["-e", "tune"], "'tune' is not KEY=VALUE"),
        (["--start", "2", "--end", "1"], "--end must lie after --start"),
        (["-o", "out.avi"], "suffix '.avi' is not one of"),
        (["-c", "no_such_codec"], "encoder 'no_such_codec' is not in this build"),
        (["-s", "5"], "scale is 5"),
    ],
)
def test_usage_errors_exit_with_2(
    tmp_path: Path, engine_dir: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = write_clip(tmp_path / "in.mkv", frames=2)
    result = quick(engine_dir, "-i", source, *arguments)
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr


def test_input_and_engine_errors_have_their_exit_codes(tmp_path: Path, engine_dir: Path) -> None:
    assert quick(engine_dir, "-i", tmp_path / "gone.mp4").exit_code == 1
    source = write_clip(tmp_path / "in.mkv", frames=2)
    assert call("-m", tmp_path / "no-engine", "-i", source).exit_code == 3


def test_times_may_be_written_as_clock_times(tmp_path: Path, engine_dir: Path) -> None:
    source = write_clip(tmp_path / "in.mkv", frames=6)
    result = quick(
        engine_dir, "-i", source, "--start", "0:00.08", "--end", "00:00:00.2", "--progress", "json"
    )
    assert result.exit_code == 0
    events = [json.loads(line) for line in result.stderr.splitlines()]
    assert [(e["done"], e["total"]) for e in events if e["event"] == "step"] == [(1, 3), (2, 3), (3, 3)]
    assert len(shown(tmp_path / "in_x4.mkv")) == 3


def test_repeated_frames_are_counted_and_listed(tmp_path: Path, engine_dir: Path) -> None:
    good = write_clip(tmp_path / "good.mkv", frames=6, codec="ffv1", options={"g": "1"})
    damage(good, tmp_path / "in.mkv", 2)
    result = quick(engine_dir, "-i", tmp_path / "in.mkv")
    assert result.exit_code == 1
    assert "the frame at 0.080 s cannot be decoded" in result.stderr
    result = quick(engine_dir, "-i", tmp_path / "in.mkv", "--on-error", "repeat")
    assert result.exit_code == 0
    assert "1 frames repeat a neighbour, at (s): 0.080" in result.stderr


def test_dry_run_prints_the_options_and_does_nothing(tmp_path: Path, engine_dir: Path) -> None:
    result = quick(engine_dir, "-i", "clip.mp4", "-e", "tune=film", "--no-copy-audio", "--dry-run")
    document = json.loads(result.stdout)
    assert document["target"] == "clip_x4.mkv"
    assert document["options"]["encoder"]["options"] == [["tune", "film"]]
    assert document["options"]["copy_audio"] is False
    assert document["options"]["copy_subtitles"] is True


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_an_interrupted_command_says_how_to_go_on_and_can(
    tmp_path: Path, engine_dir: Path, name: str
) -> None:
    source = write_clip(tmp_path / "in.mkv", frames=200, size=(128, 160))
    command = [
        sys.executable,
        "-m",
        "yonos_trt.cli",
        "video",
        "-m",
        engine_dir,
        "-i",
        source,
        "--preset",
        "ultrafast",
    ]
    command += ["--segment-frames", "5", "--threads", "1", "--progress", "json"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    parts = work_folder(tmp_path / "in_x4.mkv")
    deadline = time.monotonic() + 60
    while not (parts / "segment-000000").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(getattr(signal, name))
    _, message = process.communicate()
    assert process.returncode == 130, message.decode()
    events = [json.loads(line) for line in message.splitlines()]  # nothing but JSON, this time too
    assert events[-1]["event"] == "interrupted"
    assert "run the same command with --resume" in events[-1]["message"]
    assert (parts / "segment-000000").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [parts.name, "in.mkv"]


# ---------------------------------------------------------------------------------------------------------
# y4m


def y4m(pix_fmt: str, *, frames: int = 3, full: bool = False) -> bytes:
    """A y4m stream of a pattern, put together by hand."""
    colour = {
        "yuv420p": "420mpeg2",
        "yuv444p": "444",
        "yuv420p10le": "420p10",
        "yuv422p": "422",
        "gray": "mono",
    }
    said = "FULL" if full else "LIMITED"
    head = f"YUV4MPEG2 W64 H48 F30000:1001 Ip A4:3 C{colour[pix_fmt]} XCOLORRANGE={said}\n"
    data = head.encode()
    for index in range(frames):
        data += b"FRAME\n" + b"".join(p.tobytes() for p in picture_planes(pix_fmt, 48, 64, index))
    return data


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "yuv420p10le", "yuv422p", "gray"])
@pytest.mark.parametrize("full", [False, True])
def test_y4m_goes_in_and_comes_out_with_rate_aspect_range_and_depth(pix_fmt: str, full: bool) -> None:
    source, sink = io.BytesIO(y4m(pix_fmt, full=full)), io.BytesIO()
    report = run(source, sink)
    assert report.frames == 3
    sink.seek(0)
    with VideoReader(sink) as reader:
        info = reader.info
        assert (info.height_px, info.width_px, info.layout) == (96, 128, layout_of(pix_fmt))
        assert (info.rate, info.sample_aspect_ratio) == (Fraction(30000, 1001), Fraction(4, 3))
        assert info.coding.full_range == full
        for frame in reader.frames():
            planes = picture_planes(pix_fmt, 48, 64, frame.index)
            big = enlarge()(planes_to_rgb(planes, info.layout, info.coding))
            assert np.abs(big.astype(float) - frame.rgb).mean() < 0.01 * np.iinfo(big.dtype).max


def test_a_pipe_can_end_in_a_file_and_a_file_in_a_pipe(tmp_path: Path) -> None:
    report = run(io.BytesIO(y4m("yuv420p")), tmp_path / "out.mkv")
    assert report.frames == len(shown(tmp_path / "out.mkv")) == 3
    sink = io.BytesIO()
    run(tmp_path / "out.mkv", sink)
    assert sink.getvalue().startswith(
        b"YUV4MPEG2 W256 H192 F30000:1001 Ip A4:3 C420mpeg2 XCOLORRANGE=LIMITED\n"
    )
    assert sink.getvalue().count(b"FRAME\n") == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.mkv"]


def test_a_variable_rate_is_said_to_be_lost_in_a_pipe(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_clip(tmp_path / "in.mkv", times=[0, 512, 1024, 5120, 5632])
    run(source, io.BytesIO())
    assert "frame rate varies" in caplog.text


def test_a_pipe_whose_reader_is_gone_or_that_cannot_resume_is_an_error(tmp_path: Path) -> None:
    class Gone(io.RawIOBase):
        def write(self, data: object) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    source = write_clip(tmp_path / "in.mkv", frames=2)
    with pytest.raises(InputError, match="the output pipe broke: Broken pipe"):
        upscale_video(source, Gone(), enlarge(), scale=2)
    with pytest.raises(ConfigError, match="a pipe cannot be resumed"):
        run(source, io.BytesIO(), resume=True)
    with pytest.raises(ConfigError, match="y4m cannot hold gbrp"):
        upscale_video(
            source, io.BytesIO(), enlarge(), scale=2, options=VideoOptions(EncoderSettings(pix_fmt="gbrp"))
        )


def process(engine_dir: Path, *arguments: object, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "yonos_trt.cli", "video", "-m", str(engine_dir), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, input=data, capture_output=True, env=environment, check=False)


def test_json_is_all_that_stands_on_stderr_also_where_an_encoder_speaks(
    engine_dir: Path, tmp_path: Path
) -> None:
    source = write_clip(tmp_path / "in.mkv")
    options = ("-i", source, "--preset", "nope", "--progress", "json")
    done = process(engine_dir, *options)
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert (done.returncode, [e["event"] for e in events]) == (2, ["start", "end", "error"])
    told = [json.loads(line) for line in process(engine_dir, *options, "-v").stderr.splitlines()]
    assert [e["message"] for e in told if e.get("logger") == "yonos_trt.libraries"] == [
        "x264 [error]: invalid preset 'nope'"
    ]


def test_what_is_no_y4m_in_a_pipe_is_told_how_to_become_it(engine_dir: Path, tmp_path: Path) -> None:
    data = write_clip(tmp_path / "in.mkv").read_bytes()
    done = process(engine_dir, "-i", "-", "-o", tmp_path / "out.mkv", data=data)
    assert done.returncode == 1
    assert b"standard input cannot be opened as video" in done.stderr
    assert b"expected y4m: ffmpeg -i IN -f yuv4mpegpipe" in done.stderr


def test_the_command_works_between_two_pipes(engine_dir: Path) -> None:
    done = process(engine_dir, "-i", "-", "-o", "-", data=y4m("yuv420p", frames=2))
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.startswith(b"YUV4MPEG2 W256 H192 ")
    assert len(done.stdout) == done.stdout.index(b"\n") + 1 + 2 * (6 + 256 * 192 * 3 // 2)


def test_the_recipe_for_vapoursynth_runs(engine_dir: Path, tmp_path: Path) -> None:
    if (vspipe := shutil.which("vspipe")) is None:
        pytest.skip("vspipe is not there: VapourSynth (docs/video.md) needs Python 3.12")
    text = (REPOSITORY / "docs/video.md").read_text(encoding="utf-8").split("## VapourSynth")[1]
    script = text.split("```python\n")[1].split("```")[0]
    blank = "vs.core.std.BlankClip(width=64, height=52, format=vs.YUV444P8, length=3, color=[120, 90, 150])"
    script, count = re.subn(r"vs\.core\.bs\.VideoSource\(.*?\)", blank, script)
    assert count == 1
    (tmp_path / "clean.vpy").write_text(script)
    first, second = text.split("```sh\n")[1].splitlines()[0].split(" | ")
    assert first.split() == ["vspipe", "-c", "y4m", "clean.vpy", "-"]
    assert second.split()[:2] == ["yonos", "video"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen([vspipe, *first.split()[1:]], cwd=tmp_path, stdout=subprocess.PIPE) as pipe:
        command = [sys.executable, "-m", "yonos_trt.cli", *second.split()[1:], "-m", str(engine_dir)]
        done = subprocess.run(command, cwd=tmp_path, stdin=pipe.stdout, env=environment, check=False)
    assert (pipe.returncode, done.returncode) == (0, 0)
    with VideoReader(tmp_path / "big.mkv") as reader:
        assert (reader.info.height_px, reader.info.width_px) == (192, 256)
        assert reader.info.coding.siting == "left"
        assert len(list(reader.frames())) == 3


ENCODERS = ("libx264", "libx265", "libsvtav1", "libvpx-vp9", "ffv1")


@pytest.mark.parametrize("codec", ENCODERS)
def test_an_encoder_leaves_stderr_and_our_threads_alone(
    tmp_path: Path, codec: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """SVT-AV1 prints its settings and, as root, makes the process a real-time one."""
    if codec not in av.codecs_available:
        pytest.skip(f"{codec} is not in this build of FFmpeg")
    source = write_clip(tmp_path / "in.mkv", frames=3, size=(48, 64))
    before = os.sched_getscheduler(0), os.sched_getparam(0).sched_priority
    while_open = set()

    def look(frames: int, total: int | None) -> None:  # in the thread that opens encoders: never beside that
        while_open.update(_policies())

    options = VideoOptions(encoder=EncoderSettings(codec))
    upscale_video(source, tmp_path / "out.mkv", enlarge(2), scale=2, options=options, progress=look)
    assert len(shown(tmp_path / "out.mkv")) == 3
    assert (os.sched_getscheduler(0), os.sched_getparam(0).sched_priority) == before
    assert while_open == {before[0]}
    assert capfd.readouterr() == ("", "")


def _policies() -> set[int]:
    found = set()
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):
            found.add(os.sched_getscheduler(int(thread)))
    return found
