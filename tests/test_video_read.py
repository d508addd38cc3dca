"""What `yonos video` reads: trimmed, joined and open-GOP clips, pictures in a row; what it refuses."""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from click.testing import CliRunner
from helpers import make_engine_dir
from PIL import Image, ImageCms
from video_clips import damage, packets, picture_planes, run, shown, write_clip

from yonos_trt.cli.main import cli
from yonos_trt.errors import ConfigError, InputError
from yonos_trt.images.reading import read_image
from yonos_trt.video import VideoOptions, upscale_video
from yonos_trt.video.read import VideoReader


def refused_before_work(source: Any, target: Path, **options: Any) -> str:
    """Return the refusal; no frame may have been upscaled."""

    def upscale(rgb: Any) -> Any:
        raise AssertionError("a frame was upscaled before the refusal")

    with pytest.raises(InputError) as caught:
        upscale_video(source, target, upscale, scale=2, options=VideoOptions(**options))
    assert not target.exists()
    return str(caught.value)


def times(path: Path) -> list[float]:
    return [round(t, 3) for t, _ in shown(path)]


# -- edit lists


def boxes(data: bytes, begin: int, end: int, *path: bytes) -> Iterator[int]:
    """Places of the boxes at the end of a path of an MP4."""
    while begin < end:
        size, name = struct.unpack_from(">I4s", data, begin)
        if name == path[0]:
            if len(path) == 1:
                yield begin
            else:
                yield from boxes(data, begin + 8, begin + size, *path[1:])
        begin += size


def trim_by_edit_list(source: Path, target: Path, start_s: float, duration_s: float) -> Path:
    """Hide all but a part of an MP4, as QuickTime's trim does: the edit lists say what is shown."""
    data = bytearray(source.read_bytes())
    header = next(boxes(data, 0, len(data), b"moov", b"mvhd"))
    scale = struct.unpack_from(">I", data, header + 20)[0]
    struct.pack_into(">I", data, header + 24, round(duration_s * scale))
    for track in boxes(data, 0, len(data), b"moov", b"trak"):
        end = track + struct.unpack_from(">I", data, track)[0]
        ticks = struct.unpack_from(">I", data, next(boxes(data, track + 8, end, b"mdia", b"mdhd")) + 20)[0]
        struct.pack_into(
            ">I", data, next(boxes(data, track + 8, end, b"tkhd")) + 28, round(duration_s * scale)
        )
        edits = next(boxes(data, track + 8, end, b"edts", b"elst"))
        assert struct.unpack_from(">I", data, edits + 12)[0] == 1
        old = struct.unpack_from(">i", data, edits + 20)[0]
        struct.pack_into(">Ii", data, edits + 16, round(duration_s * scale), old + round(start_s * ticks))
    target.write_bytes(data)
    return target


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize(
    ("start_s", "duration_s", "gop"), [(2.0, 1.0, "50"), (0.6, 0.4, "12"), (1.48, 1.2, "200")]
)
def test_what_an_edit_list_hides_is_neither_missed_nor_heard(
    tmp_path: Path, suffix: str, start_s: float, duration_s: float, gop: str
) -> None:
    whole = write_clip(tmp_path / "whole.mp4", frames=75, options={"g": gop}, audio=True, audio_s=3.0)
    source = trim_by_edit_list(whole, tmp_path / "trimmed.mp4", start_s, duration_s)
    target = tmp_path / f"out{suffix}"
    report = run(source, target)
    wanted = round(duration_s * 25)
    assert (report.frames, report.repeated_s, report.mux.shift_s) == (wanted, [], 0.0)
    assert times(target) == [round(i / 25, 3) for i in range(wanted)]
    (sound,) = packets(target, "audio")
    (heard,) = packets(whole, "audio")
    first = next(i for i, (time, _) in enumerate(heard) if time >= start_s - 0.001)
    assert 0 <= sound[0][0] < 0.13  # one packet lasts 0.128 s
    assert [h for _, h in sound][:3] == [h for _, h in heard[first : first + 3]]
    assert sound[-1][0] < duration_s + 0.13
    report = run(source, tmp_path / f"part{suffix}", start_s=0.2)
    assert report.frames == wanted - 5


def test_priming_of_an_ordinary_clip_is_kept(tmp_path: Path) -> None:
    """AAC begins with a packet before time 0 that no edit list trims away: every packet is copied."""
    source = write_clip(tmp_path / "in.mp4", frames=12, audio=True)
    run(source, tmp_path / "out.mp4")
    assert [h for _, h in packets(tmp_path / "out.mp4", "audio")[0]] == [
        h for _, h in packets(source, "audio")[0]
    ]


# -- cut at a key frame that is not the first


def cut_before(source: Path, target: Path, key: int) -> int:
    """Copy the video from the ``key``-th key frame on; return how many leading pictures come along."""
    with av.open(str(source)) as before, av.open(str(target), "w") as after:
        stream = before.streams.video[0]
        copy = after.add_stream_from_template(stream, opaque=True)
        keys, first, leading = -1, 0, 0
        for packet in before.demux(stream):
            if not packet.size:
                continue
            keys += packet.is_keyframe
            if keys < key:
                continue
            if packet.is_keyframe and keys == key:
                first = packet.pts
            leading += packet.pts < first
            packet.stream = copy
            after.mux(packet)
    return leading


OPEN_GOP = "open-gop=1:keyint=12:min-keyint=12:bframes=3:b-adapt=0"


@pytest.mark.parametrize(
    ("codec", "options", "suffix"),
    [
        ("libx265", {"x265-params": f"log-level=none:{OPEN_GOP}"}, ".mkv"),
        ("libx265", {"x265-params": f"log-level=none:{OPEN_GOP}"}, ".mp4"),
        ("libx265", {"x265-params": f"log-level=none:{OPEN_GOP}"}, ".ts"),
        ("libx264", {"x264-params": OPEN_GOP, "g": "12"}, ".mkv"),
        ("libx264", {"x264-params": OPEN_GOP, "g": "12"}, ".mp4"),
        ("libx264", {"x264-params": f"{OPEN_GOP}:b-pyramid=none", "g": "12"}, ".mp4"),
    ],
)
def test_leading_pictures_of_an_open_gop_are_skipped_as_players_do(
    tmp_path: Path, codec: str, options: dict[str, str], suffix: str
) -> None:
    whole = write_clip(
        tmp_path / f"whole{'.mkv' if suffix == '.mkv' else '.mp4'}", frames=48, codec=codec, options=options
    )
    source = tmp_path / f"cut{suffix}"
    leading = cut_before(whole, source, 1)
    assert leading > 0
    with av.open(str(source)) as clip:
        stored = sum(1 for packet in clip.demux(video=0) if packet.size)
    report = run(source, tmp_path / "out.mkv")
    assert (report.frames, report.repeated_s) == (stored - leading, [])
    steps = np.diff(times(tmp_path / "out.mkv"))
    assert np.abs(steps - 0.04).max() < 0.002


def test_a_frame_lost_behind_the_first_key_frame_is_still_an_error(tmp_path: Path) -> None:
    whole = write_clip(
        tmp_path / "whole.mkv",
        frames=36,
        codec="libx265",
        options={"x265-params": f"log-level=none:{OPEN_GOP}"},
    )
    cut_before(whole, tmp_path / "cut.mp4", 1)
    damage(tmp_path / "cut.mp4", tmp_path / "in.mp4", 12)
    with pytest.raises(InputError, match=r"the frame at .* s cannot be decoded"):
        run(tmp_path / "in.mp4", tmp_path / "out.mkv")


# -- joined recordings


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize(("audio", "shift_s"), [(False, 0), (True, 0), (True, 3600), (True, 0.3)])
def test_recordings_that_were_joined_run_on(tmp_path: Path, audio: bool, shift_s: float, suffix: str) -> None:
    begins = round(shift_s * 12800)
    first = write_clip(tmp_path / "1.ts", frames=25, audio=audio, audio_s=1.0)
    second = write_clip(
        tmp_path / "2.ts",
        times=[begins + 512 * i for i in range(25)],
        audio=audio,
        audio_s=1.0,
        audio_start_s=shift_s,
    )
    source = tmp_path / "joined.ts"
    source.write_bytes(first.read_bytes() + second.read_bytes() + first.read_bytes())
    report = run(source, tmp_path / f"out{suffix}")
    assert (report.frames, report.damage) == (75, [])
    steps = np.diff([t for t, _ in shown(tmp_path / f"out{suffix}")])
    assert np.abs(steps - 0.04).max() < 0.002
    if audio:
        (sound,) = packets(tmp_path / f"out{suffix}", "audio")
        alone = []
        for number, path in enumerate((first, second, first)):
            run(path, tmp_path / f"{number}{suffix}")
            alone += [h for _, h in packets(tmp_path / f"{number}{suffix}", "audio")[0]]
        assert [h for _, h in sound] == alone
        moments = [t for t, _ in sound]
        assert all(later > earlier for earlier, later in pairwise(moments))
        assert abs(moments[-1] - times(tmp_path / f"out{suffix}")[-1]) < 0.3


def test_a_part_of_joined_recordings_begins_and_ends_on_the_clock_that_runs_on(tmp_path: Path) -> None:
    first = write_clip(tmp_path / "1.ts", frames=25)
    source = tmp_path / "joined.ts"
    source.write_bytes(2 * first.read_bytes())
    assert run(source, tmp_path / "out.mkv", start_s=1.2, end_s=1.6).frames == 10


# -- frames with side data PyAV has no name for


def jpegs(count: int, exif: Image.Exif | None = None) -> list[bytes]:
    files = []
    for index in range(count):
        buffer = io.BytesIO()
        luma = np.clip(picture_planes("gray", 48, 64, index)[0], 0, 255).astype(np.uint8)
        Image.fromarray(luma).convert("RGB").save(buffer, "JPEG", **({"exif": exif} if exif else {}))
        files.append(buffer.getvalue())
    return files


def exif() -> Image.Exif:
    made = Image.Exif()
    made[0x010F] = "maker"
    return made


@pytest.mark.parametrize("suffix", [".avi", ".mov", ".mkv"])
def test_a_time_lapse_of_camera_pictures_with_exif_is_upscaled(tmp_path: Path, suffix: str) -> None:
    source = tmp_path / f"in{suffix}"
    with av.open(str(source), "w") as out:
        stream = out.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for index, data in enumerate(jpegs(6, exif())):
            packet = av.Packet(data)
            packet.pts = packet.dts = index
            packet.duration, packet.time_base, packet.is_keyframe = 1, Fraction(1, 10), True
            packet.stream = stream
            out.mux(packet)
    assert run(source, tmp_path / "out.mkv").frames == 6


# -- pictures in a row: GIF, APNG, AVIF, WebP


def pictures(mode: str = "RGB", *, alpha: int = 255) -> list[Image.Image]:
    result = []
    for index in range(5):
        grey = picture_planes("gray", 40, 56, index)[0].astype(np.uint8)
        rgba = np.dstack([grey, grey[::-1], 255 - grey, np.full_like(grey, 255)])
        rgba[5, 6, 3] = alpha
        result.append(Image.fromarray(rgba, "RGBA").convert(mode))
    return result


def save_all(path: Path, frames: list[Image.Image], **options: Any) -> Path:
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, **options)
    return path


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("a.gif", "P", {}),
        ("a.gif", "L", {"loop": 0}),
        ("a.png", "RGB", {"exif": exif()}),
        ("a.png", "RGBA", {}),
        ("a.png", "L", {}),
        ("a.avif", "RGB", {"exif": exif()}),
    ],
)
def test_animated_pictures_are_videos_too(
    tmp_path: Path, name: str, mode: str, options: dict[str, Any]
) -> None:
    source = save_all(tmp_path / name, pictures(mode), **options)
    report = run(source, tmp_path / "out.mkv")
    assert report.frames == 5
    assert times(tmp_path / "out.mkv") == [0, 0.1, 0.2, 0.3, 0.4]
    if name == "a.png":
        with VideoReader(source) as reader:
            for frame, picture in zip(reader.frames(), pictures("RGB"), strict=True):
                if mode != "L":
                    np.testing.assert_array_equal(frame.rgb, np.asarray(picture))


def test_the_still_of_an_animated_avif_does_not_stand_before_its_frames(tmp_path: Path) -> None:
    source = save_all(tmp_path / "a.avif", pictures())
    report = run(source, tmp_path / "out.mkv")
    assert any("still picture" in text for text in report.left_out)
    with av.open(str(tmp_path / "out.mkv")) as out:
        (stream,) = out.streams.video
        assert (stream.width, sum(1 for _ in out.decode(stream))) == (112, 5)


@pytest.mark.parametrize(("name", "mode"), [("a.gif", "RGBA"), ("a.png", "RGBA"), ("a.png", "LA")])
def test_transparent_pixels_are_refused_by_name_before_any_work(tmp_path: Path, name: str, mode: str) -> None:
    source = save_all(tmp_path / name, pictures(mode, alpha=0))
    message = refused_before_work(source, tmp_path / "out.mkv")
    assert re.search(r"transparent pixels \(alpha channel, .* at 0\.\d00 s\)", message)


def test_alpha_in_a_track_of_its_own_is_refused_or_named(tmp_path: Path) -> None:
    source = save_all(tmp_path / "clear.avif", pictures("RGBA", alpha=0), quality=95)
    assert "has an alpha channel beside" in refused_before_work(source, tmp_path / "clear.mkv")
    report = run(save_all(tmp_path / "opaque.avif", pictures("RGBA"), quality=95), tmp_path / "out.mkv")
    assert "alpha channel, which is opaque in every pixel" in report.left_out
    with av.open(str(tmp_path / "out.mkv")) as out:
        assert [stream.width for stream in out.streams] == [112]


@pytest.mark.parametrize("codec", ["ffv1", "prores_ks"])
def test_an_opaque_alpha_channel_of_a_video_is_no_obstacle(tmp_path: Path, codec: str) -> None:
    name = "yuva444p10le" if codec == "prores_ks" else "yuva420p"
    source = tmp_path / ("in.mov" if codec == "prores_ks" else "in.mkv")
    for opaque in (True, False):
        with av.open(str(source), "w") as out:
            stream = out.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, name
            for index in range(3):
                picture = np.full((48, 64, 4), 200, np.uint8)
                picture[..., 3] = 255 if opaque or index < 2 else 90
                frame = av.VideoFrame.from_ndarray(picture, "rgba").reformat(format=name)
                frame.pts = index
                out.mux(stream.encode(frame))
            out.mux(stream.encode())
        if opaque:
            assert run(source, tmp_path / "out.mkv").frames == 3
        else:
            assert "transparent pixels" in refused_before_work(source, tmp_path / "out2.mkv")


def test_animated_webp_keeps_its_frames_and_times(tmp_path: Path) -> None:
    frames = pictures()
    source = tmp_path / "a.webp"
    frames[0].save(
        source, save_all=True, append_images=frames[1:], duration=[40, 100, 20, 60, 80], lossless=True
    )
    report = run(source, tmp_path / "out.mkv")
    assert report.frames == 5
    assert times(tmp_path / "out.mkv") == [0, 0.04, 0.14, 0.16, 0.22]
    with VideoReader(source) as reader:
        for frame, picture in zip(reader.frames(), pictures("RGB"), strict=True):
            np.testing.assert_array_equal(frame.rgb, np.asarray(picture))
    data = source.read_bytes()
    for cut in (30, 200, len(data) // 2, len(data) - 1):
        source.write_bytes(data[:cut])
        assert "a.webp" in refused_before_work(source, tmp_path / "cut.mkv")


def test_parts_of_other_programs_in_an_animated_webp_are_no_damage(tmp_path: Path) -> None:
    source = save_all(tmp_path / "a.webp", pictures())
    data = source.read_bytes()

    def with_part(name: bytes, body: bytes) -> None:
        whole = data + name + len(body).to_bytes(4, "little") + body
        source.write_bytes(whole[:4] + (len(whole) - 8).to_bytes(4, "little") + whole[8:])

    with_part(b"mine", b"what another program keeps there")
    assert run(source, tmp_path / "out.mkv").frames == 5
    for name, body in ((b"ANMG", bytes(16) + b"VP8 " + bytes(12)), (b"\x01\x02\x03\x04", bytes(8))):
        with_part(name, body)
        assert "is no part of a WebP" in refused_before_work(source, tmp_path / "damaged.mkv")


def test_frames_with_a_named_colour_profile_do_not_crash_the_process(tmp_path: Path) -> None:
    """Their names are freed by FFmpeg, and PyAV would free them again when frames are collected."""
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = save_all(tmp_path / "a.png", pictures(), icc_profile=icc)
    code = (
        "import gc, sys; from yonos_trt.video.read import VideoReader\n"
        "with VideoReader(sys.argv[1]) as reader: print(len(list(reader.frames())), reader.frame_data)\n"
        "del reader; gc.collect()"
    )
    child = subprocess.run([sys.executable, "-c", code, str(source)], capture_output=True, text=True)
    assert (child.returncode, child.stdout) == (0, "5 {'ICC_PROFILE'}\n")


def test_what_an_animated_webp_says_of_its_pictures_is_named(tmp_path: Path) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'
    source = save_all(tmp_path / "a.webp", pictures(), icc_profile=b"profile", exif=exif(), xmp=xmp)
    report = run(source, tmp_path / "out.mkv")
    assert {"ICC colour profile", "EXIF metadata", "XMP metadata"} <= set(report.left_out)


@pytest.mark.parametrize("name", ["a b.gif", "a.webp", "a.png", "a.avif"])
def test_the_advice_for_pictures_with_several_frames_works(tmp_path: Path, name: str) -> None:
    source = save_all(tmp_path / name, pictures())
    with pytest.raises(InputError) as caught:
        read_image(source)
    advised = shlex.split(str(caught.value).split("yonos video -i ")[1])[0]
    assert run(Path(advised), tmp_path / "out.mkv").frames == 5


# -- what cannot be read again


def test_a_pipe_given_as_a_path_is_refused_before_any_work(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mkv", frames=3)
    fifo = tmp_path / "fifo.mkv"
    os.mkfifo(fifo)
    assert "is no regular file" in refused_before_work(fifo, tmp_path / "out.mkv")
    reading, writing = os.pipe()
    feeder = threading.Thread(target=lambda: (os.write(writing, clip.read_bytes()), os.close(writing)))
    feeder.start()
    assert "is no regular file" in refused_before_work(f"/dev/fd/{reading}", tmp_path / "out.mkv")
    feeder.join()
    os.close(reading)
    assert "is no regular file" in refused_before_work("/dev/zero", tmp_path / "out.mkv")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fifo.mkv", "in.mkv"]


FFMPEG = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg program on this machine")


def follow(advice: str, source: Path, folder: Path) -> Path:
    """Run a line that a message gives, with its IN and OUT replaced; return OUT."""
    yonos = f"{shlex.quote(sys.executable)} -m yonos_trt.cli video -s 2 -m {{engine}}"
    engine = make_engine_dir(folder / "engine", scale=2)
    target = folder / "advised.mkv"
    line = advice.replace(" IN ", f" {shlex.quote(str(source))} ").replace("OUT.mkv", str(target))
    line = line.replace("yonos video", yonos.format(engine=engine)).replace("ffmpeg -i", "ffmpeg -v error -i")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], check=True, env=environment)
    return target


@FFMPEG
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le", "yuv444p"])
def test_the_advice_for_pipes_works(tmp_path: Path, pix_fmt: str) -> None:
    clip = write_clip(tmp_path / "in.mkv", frames=3, codec="ffv1", pix_fmt=pix_fmt)
    os.mkfifo(tmp_path / "fifo.mkv")
    advice = "ffmpeg" + refused_before_work(tmp_path / "fifo.mkv", tmp_path / "out.mkv").split("ffmpeg")[1]
    assert times(follow(advice, clip, tmp_path)) == times(clip)


@FFMPEG
@pytest.mark.parametrize("name", ["a.png", "a.avif"])
def test_the_advice_for_transparent_pictures_works(tmp_path: Path, name: str) -> None:
    source = save_all(tmp_path / name, pictures("RGBA", alpha=0))
    message = refused_before_work(source, tmp_path / "out.mkv")
    flat = follow("ffmpeg" + message.split("ffmpeg")[1], source, tmp_path)
    assert run(flat, tmp_path / "out.mkv").frames == 5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("f%02d.png", "No such file.*upscale their folder with yonos upscale"),
        ("https://example.org/a.mkv", "addresses are not read"),
        ("a\0b.mkv", "null"),
        ("x" * 300 + ".mkv", "name too long"),
        (".", "is a folder"),
    ],
)
def test_names_of_nothing_are_refused_with_the_reason(tmp_path: Path, name: str, message: str) -> None:
    for index in range(2):
        Image.new("RGB", (64, 48)).save(tmp_path / f"f{index:02d}.png")
    found = refused_before_work(str(tmp_path / name) if "://" not in name else name, tmp_path / "out.mkv")
    assert re.search(message, found)


def test_a_colon_in_a_name_is_no_protocol(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mkv", frames=3, audio=True).rename(tmp_path / "data:12.mkv")
    assert run(source, tmp_path / "out.mkv").frames == 3


def test_a_codec_nobody_knows_is_named(tmp_path: Path) -> None:
    data = write_clip(tmp_path / "in.mp4", frames=3).read_bytes()
    (tmp_path / "in.mp4").write_bytes(data.replace(b"avc1", b"zzz1"))
    assert "codec of its video stream" in refused_before_work(tmp_path / "in.mp4", tmp_path / "out.mkv")


@pytest.mark.parametrize("time", [float("nan"), float("inf"), -1.0, 1e300])
def test_times_that_are_none_are_refused(tmp_path: Path, time: float) -> None:
    source = write_clip(tmp_path / "in.mkv", frames=3)
    with pytest.raises(ConfigError, match="--start"):
        VideoReader(source, start_s=time)
    with pytest.raises(ConfigError, match="--end"):
        VideoOptions(end_s=time)
    result = CliRunner().invoke(cli, ["video", "-i", str(source), "--start", str(time)])
    assert (result.exit_code, type(result.exception)) == (2, SystemExit)


def test_a_stop_at_damage_can_be_resumed_with_repeat(tmp_path: Path) -> None:
    good = write_clip(tmp_path / "good.mkv", frames=24, options={"g": "1"})
    source = tmp_path / "in.mkv"
    damage(good, source, 20)
    with pytest.raises(InputError, match="cannot be decoded"):
        run(source, tmp_path / "out.mkv", segment_frames=4)
    report = run(source, tmp_path / "out.mkv", segment_frames=4, resume=True, on_error="repeat")
    assert (report.frames, len(report.repeated_s)) == (24, 1)
    assert report.frames_resumed >= 16


@pytest.mark.parametrize("place", [26, 43])
def test_a_single_hidden_frame_in_the_middle_is_damage(tmp_path: Path, place: int) -> None:
    """One bit of a table of times hides a frame: an edit list never hides one alone."""
    source = write_clip(tmp_path / "in.mp4", frames=75)
    data = bytearray(source.read_bytes())
    table = next(boxes(data, 0, len(data), b"moov", b"trak", b"mdia", b"minf", b"stbl", b"ctts"))
    entries = struct.unpack_from(">I", data, table + 12)[0]
    assert entries > place
    data[table + 16 + 8 * place + 6] ^= 0x80  # 2.56 s later
    source.write_bytes(data)
    assert "a single frame in its middle is hidden" in refused_before_work(source, tmp_path / "out.mkv")
