"""Cut and damaged videos are refused with what is missing, or read on by request; whole ones never are."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from video_clips import Array, damage, enlarge, run, shown, write_clip

from yonos_trt.errors import InputError
from yonos_trt.video import VideoOptions, upscale_video
from yonos_trt.video.format import EncoderSettings
from yonos_trt.video.read import VideoReader

KINDS: dict[str, dict[str, Any]] = {
    "a.mkv": {"audio": True, "audio_s": 1.0},
    "hevc.mkv": {"codec": "libx265"},
    "ffv1.mkv": {"codec": "ffv1", "options": {"level": "3", "slicecrc": "1", "g": "1"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "a.mp4": {"audio": True, "audio_s": 1.0},
    "mjpeg.mov": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "a.flv": {},
    "a.ts": {"audio": True, "audio_s": 1.0},
    "vp8.ogv": {"codec": "libvpx", "options": {"deadline": "realtime"}},
    "a.y4m": {},
    "a.gif": {},
    "a.png": {},
    "a.nut": {},
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    made = {}
    for name, options in KINDS.items():
        path = folder / name
        if name == "a.y4m":
            path.write_bytes(y4m(10))
        elif path.suffix in (".gif", ".png"):
            pictures = [Image.fromarray(np.roll(ramp(), 5 * i, 1)) for i in range(8)]
            pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100)
        else:
            write_clip(path, frames=24, **options)
        made[name] = path
    return made


def ramp() -> Array:
    rows, columns = np.mgrid[0:48, 0:64]
    return np.dstack([4 * columns, 5 * rows, 3 * columns + rows]).astype(np.uint8)


def y4m(frames: int) -> bytes:
    head = b"YUV4MPEG2 W64 H48 F25:1 Ip A1:1 C420jpeg\n"
    return head + b"".join(b"FRAME\n" + bytes([60 + i]) * (64 * 48 * 3 // 2) for i in range(frames))


def times(source: Any, **options: Any) -> tuple[list[int], VideoReader]:
    with VideoReader(source, **options) as reader:
        return [frame.pts for frame in reader.frames()], reader


@pytest.mark.parametrize("name", KINDS)
def test_a_whole_file_raises_no_alarm(clips: dict[str, Path], name: str) -> None:
    found, reader = times(clips[name])
    assert reader.damage == reader.survey.damage == []
    assert len(found) == {"a.y4m": 10, "a.gif": 8, "a.png": 8}.get(name, 24)


def test_live_streams_without_declared_lengths_raise_no_alarm(tmp_path: Path) -> None:
    """What is written to a pipe cannot say how long it becomes."""
    for name, form in (("a.mkv", "matroska"), ("a.webm", "webm"), ("a.flv", "flv"), ("a.mp4", "mp4")):
        codec = "libvpx-vp9" if form == "webm" else "libx264"
        source = write_clip(tmp_path / f"in{Path(name).suffix}", frames=24, codec=codec)
        sink = io.BytesIO()

        class Pipe:
            def __init__(self, sink: io.BytesIO) -> None:
                self.write = sink.write

        options = {"movflags": "frag_keyframe+empty_moov"} if form == "mp4" else {}
        with (
            av.open(str(source)) as before,
            av.open(Pipe(sink), "w", format=form, options=options) as after,
        ):
            stream = after.add_stream_from_template(before.streams.video[0], opaque=True)
            for packet in before.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    after.mux(packet)
        (tmp_path / name).write_bytes(sink.getvalue())
        found, reader = times(tmp_path / name)
        assert (len(found), reader.damage) == (24, []), name


#: where nothing in the file says that there was more
SILENT_ENDS = {"a.ts", "a.nut"}


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_cut_file_is_refused_before_any_work_and_read_on_by_request(
    tmp_path: Path, clips: dict[str, Path], name: str
) -> None:
    data = clips[name].read_bytes()
    whole, _ = times(clips[name])
    rng = random.Random(name)
    source = tmp_path / name
    places = [len(data) - 1, len(data) // 2, *(rng.randrange(100, len(data)) for _ in range(10))]
    for place in places:
        source.write_bytes(data[:place])
        try:
            found, _ = times(source)
        except InputError:
            pass
        else:
            # MPEG-TS says nothing of its end: a cut between two frames cannot be seen
            assert name in SILENT_ENDS, f"{name} cut at {place} of {len(data)} was accepted"
            assert found == whole[: len(found)]
        try:
            found, reader = times(source, on_error="repeat")
        except InputError:
            continue  # nothing in it can be shown
        assert len(found) <= len(whole)
        assert reader.damage or reader.repeated_s or name in SILENT_ENDS
    if name == "a.mkv":
        source.write_bytes(data[: len(data) * 6 // 10])

        def upscale(rgb: Array) -> Array:
            raise AssertionError("a frame was upscaled before the refusal")

        with pytest.raises(InputError, match=r"is not whole: \d+ bytes are missing at its end"):
            upscale_video(source, tmp_path / "out.mkv", upscale, scale=2)
        report = run(source, tmp_path / "out.mkv", on_error="repeat")
        assert 0 < report.frames < 24
        assert "bytes are missing" in report.damage[0]


@pytest.mark.parametrize("name", ["a.mkv", "vp9.webm", "a.flv", "mpeg4.avi", "vp8.ogv", "a.png"])
def test_bytes_taken_out_of_the_middle_are_noticed(tmp_path: Path, clips: dict[str, Path], name: str) -> None:
    data = clips[name].read_bytes()
    rng = random.Random(name)
    for _ in range(10):
        place, count = rng.randrange(300, len(data) - 700), rng.randrange(1, 600)
        (tmp_path / name).write_bytes(data[:place] + data[place + count :])
        with pytest.raises(InputError):
            times(tmp_path / name)


def test_damage_that_ffv1_decoders_hide_is_found_by_its_checksums(
    tmp_path: Path, clips: dict[str, Path]
) -> None:
    data = clips["ffv1.mkv"].read_bytes()
    with av.open(str(clips["ffv1.mkv"])) as clip:
        places = [(p.pos, p.size) for p in clip.demux(video=0) if p.size]
    place, size = places[7]
    source = tmp_path / "in.mkv"
    source.write_bytes(
        data[: place + size // 2] + bytes([data[place + size // 2] ^ 1]) + data[place + size // 2 + 1 :]
    )
    with pytest.raises(InputError, match=r"the frame at 0\.280 s cannot be decoded \(its checksum"):
        times(source)
    found, reader = times(source, on_error="repeat")
    assert (len(found), reader.repeated_s) == (24, [0.28])
    assert len(times(source, start_s=0.32)[0]) == 16
    assert len(times(source, end_s=0.28)[0]) == 7


@pytest.mark.parametrize("name", ["a.mkv", "a.ts", "mpeg4.avi", "vp9.webm", "a.mp4", "a.flv", "mjpeg.mov"])
def test_no_damage_makes_more_frames_than_there_were_or_another_exception(
    tmp_path: Path, clips: dict[str, Path], name: str
) -> None:
    data = clips[name].read_bytes()
    whole, _ = times(clips[name])
    rng = random.Random(name)
    source = tmp_path / name
    for _ in range(25):
        changed = bytearray(data)
        place = rng.randrange(len(changed))
        for at in range(place, min(len(changed), place + rng.choice([1, 1, 50, 300]))):
            changed[at] = rng.randrange(256)
        source.write_bytes(changed)
        for mode in ("stop", "repeat"):
            try:
                found, _ = times(source, on_error=mode)
            except InputError:
                continue
            assert len(found) <= len(whole), f"{mode}, byte {place}"
            assert found == sorted(set(found))


def test_frames_that_come_after_their_time_was_filled_are_not_shown_twice(tmp_path: Path) -> None:
    """A frame whose time jumps ahead makes all after it late; none may be there twice."""
    good = write_clip(tmp_path / "good.mkv", frames=24, options={"bf": "0"})
    source = tmp_path / "in.mkv"
    with av.open(str(good)) as before, av.open(str(source), "w") as after:
        stream = after.add_stream_from_template(before.streams.video[0], opaque=True)
        for number, packet in enumerate(before.demux(video=0)):
            if packet.size:
                if number == 10:  # presented late, in the file's order
                    packet.pts += 400
                packet.stream = stream
                after.mux(packet)
    report = run(source, tmp_path / "out.mkv", on_error="repeat")
    assert report.frames <= 24


@pytest.mark.parametrize("cut", [1, 6, 1000, 4608])
def test_a_y4m_pipe_that_ends_inside_a_frame_is_an_error_or_said(cut: int) -> None:
    stream = y4m(5)
    raw = EncoderSettings(crf=None)
    whole, sink = io.BytesIO(), io.BytesIO()
    options = VideoOptions(encoder=raw)
    upscale_video(io.BytesIO(stream), whole, enlarge(), scale=2, options=options)
    with pytest.raises(InputError, match=r"standard input ends inside a frame: \d+ bytes follow"):
        upscale_video(io.BytesIO(stream[:-cut]), sink, enlarge(), scale=2, options=options)
    sink = io.BytesIO()
    report = upscale_video(
        io.BytesIO(stream[:-cut]),
        sink,
        enlarge(),
        scale=2,
        options=VideoOptions(encoder=raw, on_error="repeat"),
    )
    assert report.frames == 4
    assert "ends inside a frame" in report.damage[0]
    assert whole.getvalue().startswith(sink.getvalue())


@pytest.mark.parametrize("turn", [0xA7, 0xAB, 0xAF])
def test_a_block_whose_name_changed_is_noticed(tmp_path: Path, clips: dict[str, Path], turn: int) -> None:
    """One or two bits turn a block into a cluster's position, size or encrypted block, of that length."""
    data = bytearray(clips["a.mkv"].read_bytes())
    with av.open(str(clips["a.mkv"])) as clip:
        place = [p.pos for p in clip.demux(video=0) if p.size][7]
    place = data.rindex(0xA3, 0, place)  # in front of the block's length
    data[place] = turn
    (tmp_path / "in.mkv").write_bytes(data)
    with pytest.raises(InputError, match="its structure is damaged"):
        times(tmp_path / "in.mkv")


@pytest.mark.parametrize("box", ["stts", "ctts", "stsz", "stsc", "stco", "mdhd", "elst"])
def test_no_bit_of_an_index_loses_a_frame_without_a_word(
    tmp_path: Path, clips: dict[str, Path], box: str
) -> None:
    """The three highest bytes of every number: what is left are times within a frame (docs/video.md)."""
    data = clips["a.mp4"].read_bytes()
    whole, _ = times(clips["a.mp4"])
    at = data.index(box.encode())
    begin, end = at + 4, at - 4 + int.from_bytes(data[at - 4 : at])
    if box == "elst":
        end -= 4  # the speed
    places = [p for p in range(begin, end) if (p - begin) % 4 != 3]
    for place in random.Random(box).sample(places, min(12, len(places))):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        (tmp_path / "in.mp4").write_bytes(changed)
        try:
            found, _ = times(tmp_path / "in.mp4")
        except InputError:
            continue
        assert found == whole, f"bit {place % 8} of byte {place - begin}"


def test_damage_outside_the_interval_is_no_obstacle(tmp_path: Path) -> None:
    good = write_clip(tmp_path / "good.mkv", frames=24, codec="ffv1", options={"g": "1"})
    damage(good, tmp_path / "in.mkv", 3)
    assert run(tmp_path / "in.mkv", tmp_path / "after.mkv", start_s=0.2).frames == 19
    assert run(tmp_path / "in.mkv", tmp_path / "before.mkv", end_s=0.1).frames == 3
    assert [t for t, _ in shown(tmp_path / "before.mkv")] == [0.0, 0.04, 0.08]
