"""Interrupted work goes on where it was; damaged input and full disks end in clear errors with work kept."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

av = pytest.importorskip("av")

from helpers import make_engine_dir  # noqa: E402
from video_clips import FAST, damage, enlarge, packets, run, shown, write_clip  # noqa: E402

from yonos_trt.cli.main import cli  # noqa: E402
from yonos_trt.errors import ConfigError, InputError  # noqa: E402
from yonos_trt.sr import SR  # noqa: E402
from yonos_trt.video import VideoOptions, upscale_video  # noqa: E402
from yonos_trt.video.format import EncoderSettings  # noqa: E402
from yonos_trt.video.ledger import read_stamp  # noqa: E402
from yonos_trt.video.segments import SegmentFolder, going_on, read_segment, work_folder  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[1]


LOSSLESS = EncoderSettings("ffv1")


class Stop(Exception):
    pass


def run_until(source: Path, target: Path, frames: int, **options: Any) -> None:
    """Run and fail in the upscaler at its ``frames``-th call."""
    calls = 0

    def upscale(rgb: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls > frames:
            raise Stop
        return enlarge()(rgb)

    upscale_video(
        source, target, upscale, scale=2, options=VideoOptions(encoder=FAST, segment_frames=4, **options)
    )


def clip(tmp_path: Path, **options: Any) -> Path:
    return write_clip(tmp_path / "in.mkv", frames=18, audio=True, **options)


@pytest.mark.parametrize("stops", [[0], [3], [4], [11], [17], [2, 5, 1], [9, 9, 9]])
def test_a_resumed_job_equals_an_uninterrupted_one(tmp_path: Path, stops: list[int]) -> None:
    source, whole, target = clip(tmp_path), tmp_path / "whole.mkv", tmp_path / "out.mkv"
    assert run(source, whole, segment_frames=4).frames_resumed == 0
    for number, stop in enumerate(stops):
        with contextlib.suppress(Stop):
            run_until(source, target, stop, resume=number > 0)
    report = run(source, target, segment_frames=4, resume=True)
    assert report.frames == 18
    assert shown(target) == shown(whole)
    assert packets(target, "audio") == packets(source, "audio")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mkv", "out.mkv", "whole.mkv"]


def test_a_resume_works_only_on_what_is_missing(tmp_path: Path) -> None:
    source, target = clip(tmp_path), tmp_path / "out.mkv"
    with pytest.raises(Stop):
        run_until(source, target, 10)
    calls = 0

    def upscale(rgb: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        return enlarge()(rgb)

    options = VideoOptions(encoder=FAST, segment_frames=4, resume=True)
    report = upscale_video(source, target, upscale, scale=2, options=options)
    assert report.frames_resumed == 8
    assert calls == 10


def test_segments_start_with_a_key_frame_and_damage_is_noticed_and_made_again(tmp_path: Path) -> None:
    source, whole, target = clip(tmp_path), tmp_path / "whole.mkv", tmp_path / "out.mkv"
    run(source, whole, segment_frames=4)
    with pytest.raises(Stop):
        run_until(source, target, 17)
    folder = work_folder(target)
    segments = sorted(folder.glob("segment-*"))
    assert len(segments) == 4
    for path in segments:
        segment = read_segment(path)
        assert segment is not None
        assert segment.packets[0].key
        assert segment.frames == 4
    data = bytearray(segments[1].read_bytes())
    data[len(data) // 3] ^= 1
    segments[1].write_bytes(data)
    segments[3].write_bytes(segments[3].read_bytes()[:-5])
    assert read_segment(segments[1]) is None
    assert read_segment(segments[3]) is None
    report = run(source, target, segment_frames=4, resume=True)
    assert report.frames_resumed == 4
    assert shown(target) == shown(whole)


def test_unfinished_work_is_neither_lost_nor_mixed_with_other_options(tmp_path: Path) -> None:
    source, target = clip(tmp_path), tmp_path / "out.mkv"
    with pytest.raises(Stop):
        run_until(source, target, 10)
    with pytest.raises(ConfigError, match="holds unfinished work; pass --resume"):
        run(source, target, segment_frames=4)
    with pytest.raises(ConfigError, match="was begun with another segment_frames"):
        run(source, target, segment_frames=5, resume=True)
    options = VideoOptions(encoder=FAST, segment_frames=4, resume=True)
    with pytest.raises(ConfigError, match="was begun with another upscaler"):
        upscale_video(source, target, enlarge(), scale=2, upscaler_id="other", options=options)
    report = run(source, target, segment_frames=5, overwrite=True)
    assert report.frames_resumed == 0
    with open(os.devnull, "rb") as pipe, pytest.raises(ConfigError, match="needs an input file"):
        run(pipe, target, resume=True, overwrite=True)


def test_two_processes_do_not_share_one_output(tmp_path: Path) -> None:
    source, target = clip(tmp_path), tmp_path / "out.mkv"

    def upscale(rgb: np.ndarray) -> np.ndarray:
        with pytest.raises(ConfigError, match="is in use by another process"):
            run(source, target)
        return enlarge()(rgb)

    upscale_video(source, target, upscale, scale=2, options=VideoOptions(encoder=FAST))


def test_resuming_a_finished_job_does_nothing(tmp_path: Path) -> None:
    source, target = clip(tmp_path), tmp_path / "out.mkv"
    run(source, target)
    before = target.read_bytes()
    assert run(source, target, resume=True).frames == 18
    assert target.read_bytes() == before


def test_an_interrupted_overwrite_is_not_finished_because_the_old_file_is_there(tmp_path: Path) -> None:
    source, target, whole = clip(tmp_path), tmp_path / "out.mkv", tmp_path / "whole.mkv"
    run(source, whole, segment_frames=4)
    old = write_clip(target, frames=3).read_bytes()
    with pytest.raises(Stop):
        run_until(source, target, 10, overwrite=True)
    assert target.read_bytes() == old
    report = run(source, target, segment_frames=4, resume=True)
    assert (report.frames, report.frames_resumed) == (18, 8)
    assert shown(target) == shown(whole)
    assert not work_folder(target).exists()


@pytest.mark.parametrize("stop", [0, 10])
def test_the_result_of_an_earlier_job_of_the_same_kind_is_replaced_by_the_one_begun(
    tmp_path: Path, stop: int
) -> None:
    source, target = clip(tmp_path), tmp_path / "out.mkv"
    run(source, target, segment_frames=4)
    first = read_stamp(target, "matroska")
    with pytest.raises(Stop):
        run_until(source, target, stop, overwrite=True)
    run(source, target, segment_frames=4, resume=True)
    second = read_stamp(target, "matroska")
    assert first is not None
    assert second is not None
    assert first.identity == second.identity
    assert first.job != second.job


@pytest.mark.parametrize("harm", ["unrelated", "other options", "cut", "changed", "longer", "empty"])
def test_a_file_that_is_not_this_commands_result_never_counts_as_finished(tmp_path: Path, harm: str) -> None:
    source, target = clip(tmp_path), tmp_path / "out.mkv"
    run(source, target, segment_frames=5 if harm == "other options" else 4)
    data = bytearray(target.read_bytes())
    if harm == "unrelated":
        data = bytearray(write_clip(tmp_path / "other.mkv").read_bytes())
    elif harm == "cut":
        data = data[:-1]
    elif harm == "changed":
        data[len(data) // 2] ^= 1
    elif harm == "longer":
        data += b"x"
    elif harm == "empty":
        data.clear()
    target.write_bytes(data)
    with pytest.raises(ConfigError, match=r"exists and is not the finished result.*--overwrite"):
        run(source, target, segment_frames=4, resume=True)
    assert target.read_bytes() == data
    assert run(source, target, segment_frames=4, resume=True, overwrite=True).frames == 18
    assert run(source, target, segment_frames=4, resume=True).frames_resumed == 18


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    source, target = clip(tmp_path), tmp_path / "out.mkv"

    def upscale(rgb: np.ndarray) -> np.ndarray:
        target.write_bytes(b"somebody else's")
        return enlarge()(rgb)

    options = VideoOptions(encoder=FAST, segment_frames=4)
    with pytest.raises(ConfigError, match="exists and is not the finished result"):
        upscale_video(source, target, upscale, scale=2, options=options)
    assert target.read_bytes() == b"somebody else's"
    target.unlink()
    assert run(source, target, segment_frames=4, resume=True).frames_resumed == 18


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov", ".webm"])
def test_a_finished_file_is_known_in_every_container(tmp_path: Path, suffix: str) -> None:
    source, target = write_clip(tmp_path / "in.mkv"), tmp_path / f"out{suffix}"
    encoder = EncoderSettings("libvpx-vp9", options=(("cpu-used", "8"),)) if suffix == ".webm" else FAST
    run(source, target, encoder=encoder)
    with av.open(str(target)) as made:
        assert sum(1 for _ in made.decode(video=0)) == 12
    assert run(source, target, encoder=encoder, resume=True).frames_resumed == 12


def test_names_of_the_users_are_left_alone(tmp_path: Path) -> None:
    source, target = clip(tmp_path), tmp_path / "mine.mkv"
    thesis = tmp_path / "mine.mkv.parts" / "thesis.txt"
    thesis.parent.mkdir()
    theirs = {thesis: b"years of work", tmp_path / "mine.mkv.part": b"theirs"}
    theirs |= {thesis.with_name("segment-000000"): b"theirs", thesis.with_name("job.json"): b"{}"}
    for path, data in theirs.items():
        path.write_bytes(data)
    with pytest.raises(Stop):
        run_until(source, target, 10)
    run(source, target, segment_frames=4, resume=True)
    run(source, target, segment_frames=4, overwrite=True)
    assert {path: path.read_bytes() for path in theirs} == theirs
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "in.mkv", "mine.mkv", "mine.mkv.part", "mine.mkv.parts"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["thesis.txt", "segment-000000", "job.json", "lock/x"])
def test_a_folder_without_our_mark_is_refused_and_not_touched(tmp_path: Path, name: str) -> None:
    source, target = clip(tmp_path), tmp_path / "out.mkv"
    theirs = work_folder(target) / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text('{"made_by": "me"}')
    with pytest.raises(ConfigError, match=r"was not made by this program.*move it away"):
        run(source, target, overwrite=True)
    assert theirs.read_text() == '{"made_by": "me"}'
    assert not target.exists()


def test_a_link_in_place_of_our_folder_is_not_followed(tmp_path: Path) -> None:
    source, target = clip(tmp_path), tmp_path / "out.mkv"
    with pytest.raises(Stop):
        run_until(source, tmp_path / "other.mkv", 10)
    work_folder(target).symlink_to(work_folder(tmp_path / "other.mkv"))
    with pytest.raises(ConfigError, match="was not made by this program"):
        run(source, target, overwrite=True)
    assert len(list(work_folder(tmp_path / "other.mkv").glob("segment-*"))) == 2


def test_what_others_put_into_our_folder_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, target = clip(tmp_path), tmp_path / "out.mkv"
    with pytest.raises(Stop):
        run_until(source, target, 10)
    thesis = work_folder(target) / "thesis.txt"
    thesis.write_text("years of work")
    run(source, target, segment_frames=4, resume=True)
    assert thesis.read_text() == "years of work"
    assert list(thesis.parent.iterdir()) == [thesis]
    assert "is no longer needed and stays" in caplog.text


def test_the_folder_of_a_long_name_and_of_a_link_can_be_made(tmp_path: Path) -> None:
    source, target = clip(tmp_path), tmp_path / ("long" * 62 + ".mkv")
    assert len(target.name) == 252
    run(source, target)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = tmp_path / "link.mkv"
    link.symlink_to(elsewhere / "real.mkv")
    run(source, link)
    assert link.is_symlink()
    assert shown(elsewhere / "real.mkv") == shown(target)
    assert [p.name for p in elsewhere.iterdir()] == ["real.mkv"]


def test_a_job_killed_before_it_described_itself_is_taken_over(tmp_path: Path) -> None:
    source, target = clip(tmp_path), tmp_path / "out.mkv"
    work_folder(target).mkdir()
    (work_folder(target) / "lock").touch()
    (work_folder(target) / ".yonos-0123456789abcdef.part").touch()
    run(source, target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mkv", "out.mkv"]


def test_parts_of_dead_processes_are_removed_and_of_living_ones_not(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    source, target = clip(tmp_path), tmp_path / "out.mkv"
    dead, living = (tmp_path / f".yonos-{digit * 16}.part" for digit in "ab")
    dead.write_bytes(b"half a file")
    with living.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        run(source, target)
        assert living.exists()
    assert not dead.exists()


def test_a_job_says_what_it_is(tmp_path: Path) -> None:
    job = SegmentFolder(tmp_path / "out.mkv", {"input": 1}, resume=False, overwrite=False)
    assert json.loads((job.folder / "job.json").read_text())["made_by"] == "yonos video"
    job.close()
    assert not job.folder.exists()


WORKER = textwrap.dedent(
    """
    import resource, sys, time
    from yonos_trt.errors import YonosError
    from yonos_trt.video import VideoOptions, upscale_video
    from yonos_trt.video.format import EncoderSettings
    source, target, resume, pause_s, limit = sys.argv[1:]
    if int(limit):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    def enlarge(rgb):
        time.sleep(float(pause_s))
        return rgb.repeat(2, axis=0).repeat(2, axis=1)
    encoder = EncoderSettings(preset="ultrafast")
    options = VideoOptions(encoder=encoder, segment_frames=4, resume=resume == "1")
    try:
        upscale_video(source, target, enlarge, scale=2, options=options)
    except YonosError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    """
)


def start(
    source: Path, target: Path, *, resume: bool, pause_s: float = 0.0, limit: int = 0
) -> subprocess.Popen[bytes]:
    arguments = [str(source), str(target), str(int(resume)), str(pause_s), str(limit)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, *arguments], stderr=subprocess.PIPE, env=environment
    )


def test_kills_at_random_moments_do_not_show(tmp_path: Path) -> None:
    """The benchmark script does 20 of these; one is enough to see the whole path work in a real process."""
    source, whole, target = clip(tmp_path), tmp_path / "whole.mkv", tmp_path / "out.mkv"
    run(source, whole, segment_frames=4)
    rng = random.Random(1)
    for number in range(3):
        process = start(source, target, resume=number > 0, pause_s=0.1)
        try:
            process.communicate(timeout=0.6 + rng.random())
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    process = start(source, target, resume=True)
    _, message = process.communicate()
    assert process.returncode == 0, message.decode()
    assert shown(target) == shown(whole)


def test_a_full_disk_is_named_and_the_work_is_kept(tmp_path: Path) -> None:
    source, whole, target = clip(tmp_path), tmp_path / "whole.mkv", tmp_path / "out.mkv"
    run(source, whole, segment_frames=4)
    sizes = []
    with pytest.raises(Stop):
        run_until(source, tmp_path / "probe.mkv", 17)
    sizes = [p.stat().st_size for p in sorted(work_folder(tmp_path / "probe.mkv").glob("segment-*"))]
    # a limit that lets each segment through and not the whole file
    process = start(source, target, resume=False, limit=max(sizes) + 100)
    _, message = process.communicate()
    assert process.returncode == 1
    assert b"InputError" in message
    assert b"out.mkv cannot be written: File too large; " in message
    assert b"(ulimit -f) allows no larger file" in message
    assert b"free space" not in message
    assert b"run the same command with --resume (finished segments are kept)" in message
    assert not target.exists()
    assert not list(tmp_path.glob(".yonos-*.part"))
    # a limit that lets no segment through
    other = tmp_path / "other.mkv"
    process = start(source, other, resume=False, limit=min(sizes) // 2)
    _, message = process.communicate()
    assert process.returncode == 1
    assert b"writing a segment failed: File too large" in message
    assert b"run the same command again (no segment was finished)" in message
    assert b"--resume" not in message
    assert not work_folder(other).exists()
    report = run(source, target, segment_frames=4, resume=True)
    assert report.frames_resumed == 18
    assert shown(target) == shown(whole)


@pytest.mark.parametrize("index", [0, 5, 17])
def test_a_frame_that_cannot_be_decoded_is_an_error_with_its_time_or_a_counted_repetition(
    tmp_path: Path, index: int
) -> None:
    """ffv1 has key frames only, so one damaged packet is exactly one lost frame."""
    good = write_clip(tmp_path / "good.mkv", frames=18, codec="ffv1", options={"g": "1"}, audio=True)
    source, target = tmp_path / "in.mkv", tmp_path / "out.mkv"
    when = damage(good, source, index)
    with pytest.raises(InputError, match=rf"the frame at {when:.3f} s cannot be decoded.*--on-error repeat"):
        run(source, target, segment_frames=4)
    report = run(source, target, segment_frames=4, on_error="repeat", overwrite=True)
    assert report.repeated_s == [pytest.approx(when)]
    assert report.frames == 18
    frames = shown(target)
    assert [t for t, _ in frames] == [t for t, _ in shown(good)]
    neighbour = index - 1 if index else 1
    reference = run(good, tmp_path / "reference.mkv", segment_frames=18, encoder=LOSSLESS)
    assert reference.frames == 18
    run(source, tmp_path / "lossless.mkv", segment_frames=18, on_error="repeat", encoder=LOSSLESS)
    got, wanted = shown(tmp_path / "lossless.mkv"), shown(tmp_path / "reference.mkv")
    assert got[index][1] == wanted[neighbour][1]
    assert [h for i, (_, h) in enumerate(got) if i != index] == [
        h for i, (_, h) in enumerate(wanted) if i != index
    ]


def test_damage_in_h264_with_b_frames_loses_no_frame_and_no_time(tmp_path: Path) -> None:
    good = write_clip(tmp_path / "good.mkv", frames=30)
    damage(good, tmp_path / "in.mkv", 8)
    with pytest.raises(InputError, match="cannot be decoded"):
        run(tmp_path / "in.mkv", tmp_path / "out.mkv")
    report = run(tmp_path / "in.mkv", tmp_path / "out.mkv", on_error="repeat", overwrite=True)
    assert report.frames == 30
    assert len(report.repeated_s) >= 1
    assert [t for t, _ in shown(tmp_path / "out.mkv")] == [t for t, _ in shown(good)]


def test_a_file_that_ends_early_is_an_error_unless_asked(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mov", frames=18, options={"g": "1"})
    # put the index in front, then cut the data
    with av.open(str(source)) as before, av.open(
        str(tmp_path / "front.mov"), "w", options={"movflags": "faststart"}
    ) as after:  # fmt: skip
        stream = after.add_stream_from_template(before.streams.video[0], opaque=True)
        for packet in before.demux():
            if packet.size:
                packet.stream = stream
                after.mux(packet)
    data = (tmp_path / "front.mov").read_bytes()
    (tmp_path / "cut.mov").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(InputError, match=r"cut.mov"):
        run(tmp_path / "cut.mov", tmp_path / "out.mkv")
    report = run(tmp_path / "cut.mov", tmp_path / "out.mkv", on_error="repeat", overwrite=True)
    assert 0 < report.frames < 18


def test_an_input_that_vanishes_is_named_and_the_frames_are_kept(tmp_path: Path) -> None:
    source, whole, target = clip(tmp_path), tmp_path / "whole.mkv", tmp_path / "out.mkv"
    run(source, whole, segment_frames=4)
    away = tmp_path / "away.mkv"

    def upscale(rgb: np.ndarray) -> np.ndarray:
        if source.exists():
            source.rename(away)
        return enlarge()(rgb)

    with pytest.raises(InputError, match=r"in.mkv cannot be opened as video: No such file"):
        upscale_video(source, target, upscale, scale=2, options=VideoOptions(encoder=FAST, segment_frames=4))
    away.rename(source)
    report = run(source, target, segment_frames=4, resume=True)
    assert report.frames_resumed == 18
    assert shown(target) == shown(whole)


def test_the_interval_outside_the_clip_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    source = clip(tmp_path)
    with pytest.raises(InputError, match=r"has no frame from 60(\.0)? s to its end"):
        run(source, tmp_path / "out.mkv", start_s=60.0)
    with pytest.raises(ConfigError, match=r"--end must lie after --start"):
        run(source, tmp_path / "out.mkv", start_s=2, end_s=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mkv"]


def test_what_came_from_a_pipe_is_not_said_to_be_kept(tmp_path: Path) -> None:
    """--resume needs a file to read again."""
    reader = io.BytesIO()
    upscale_video(clip(tmp_path), reader, lambda rgb: rgb, scale=1)
    target = tmp_path / "out.mkv"
    made = 0

    def upscale(rgb: np.ndarray) -> np.ndarray:
        nonlocal made
        made += 1
        if made > 15:
            raise Stop
        return enlarge()(rgb)

    options = VideoOptions(encoder=FAST, segment_frames=4, max_in_flight=1)
    with pytest.raises(Stop):
        upscale_video(io.BytesIO(reader.getvalue()), target, upscale, scale=2, options=options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mkv"]
    folder = work_folder(target)
    job = SegmentFolder(target, {"input": None}, resume=False, overwrite=False, anew=True)
    job.path_of(0).touch()
    assert going_on(folder) == "run the same command again (what came from a pipe is not kept)"
    job.close()
    assert not folder.exists()


@pytest.mark.parametrize(("frames", "kept"), [(2, False), (15, True)])
def test_an_interrupt_promises_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: int, kept: bool
) -> None:
    source, target, made = clip(tmp_path), tmp_path / "out.mkv", 0
    engine = make_engine_dir(tmp_path / "engine")

    def upscale(self: object, rgb: np.ndarray, **_: object) -> np.ndarray:
        nonlocal made
        made += 1
        if made > frames:
            raise KeyboardInterrupt
        return rgb.repeat(4, axis=0).repeat(4, axis=1)

    monkeypatch.setattr(SR, "upscale", upscale)
    command = ["video", "-m", str(engine), "-i", str(source), "-o", str(target), "--segment-frames", "4"]
    command += ["--preset", "ultrafast", "--max-in-flight", "1"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 130, result.output
    assert ("--resume" in result.stderr) == kept, result.stderr
    assert work_folder(target).exists() == kept
    monkeypatch.undo()
    again = CliRunner().invoke(cli, [*command, *(["--resume"] if kept else [])])
    assert again.exit_code == 0, again.output
    assert len(shown(target)) == 18


def test_segments_are_written_by_the_atomic_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of it never has a segment's name, and what a killed process left goes with the next run."""
    target = tmp_path / "out.mkv"
    job = SegmentFolder(target, {"input": 1}, resume=False, overwrite=False)
    writer = job.begin(0, 0)
    writer.add(0, True, b"payload")
    (part,) = (p.name for p in job.folder.iterdir() if p.name not in ("lock", "job.json"))
    assert re.fullmatch(r"\.yonos-[0-9a-f]{16}\.part", part)
    writer.abort()
    writer.abort()
    assert {p.name for p in job.folder.iterdir()} == {"lock", "job.json"}
    writer = job.begin(0, 0)
    writer.add(0, True, b"payload")
    job.segments.append(writer.finish(extradata=b"", last_duration=1, repeated_s=[]))
    (job.folder / ".yonos-0123456789abcdef.part").write_bytes(b"half")
    job.close()
    again = SegmentFolder(target, {"input": 1}, resume=True, overwrite=False)
    assert again.frames == 1
    assert {p.name for p in again.folder.iterdir()} == {"lock", "job.json", "segment-000000"}
    again.remove()
