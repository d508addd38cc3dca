"""What a video cannot keep is refused before the work, or named; nothing goes without a word."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, PngImagePlugin

av = pytest.importorskip("av")

from helpers import make_engine_dir  # noqa: E402
from video_clips import FAST, enlarge, run, write_clip  # noqa: E402

from yonos_trt.cli.main import cli  # noqa: E402
from yonos_trt.errors import ConfigError, InputError  # noqa: E402
from yonos_trt.video import VideoOptions, upscale_video  # noqa: E402
from yonos_trt.video.described import _of_boxes, left_out_descriptions  # noqa: E402
from yonos_trt.video.format import EncoderSettings  # noqa: E402
from yonos_trt.video.layers import left_out_layers  # noqa: E402
from yonos_trt.video.sidedata import StreamSideData, lost_frame_data  # noqa: E402
from yonos_trt.video.tags import needs_keys  # noqa: E402

PHONE = {
    "com.apple.quicktime.make": "Apple",
    "com.apple.quicktime.location.ISO6709": "+48.8584+002.2945+035.000/",
    "com.apple.quicktime.creationdate": "2024-05-03T12:11:12+0200",
    "title": "My trip",
}
ANDROID = {"com.android.version": "14", "com.android.capture.fps": "30.0", "artist": "me"}


def remux(
    source: Path,
    target: Path,
    *,
    tags: dict[str, str] | None = None,
    stream_tags: dict[str, str] | None = None,
    disposition: int | None = None,
    change: Callable[[Any], Any] = lambda packet: packet,
    **options: str,
) -> Path:
    """Copy a clip's packets, with tags, a disposition or changed packets."""
    with av.open(str(source)) as before, av.open(str(target), "w", container_options=options) as after:
        after.metadata.update(tags or {})
        streams = {s.index: after.add_stream_from_template(s, opaque=True) for s in before.streams}
        for old in before.streams:
            if old.type == "video":
                streams[old.index].codec_context.framerate = 25
            streams[old.index].metadata.update(old.metadata)
            streams[old.index].metadata.update(stream_tags or {})
            if disposition is not None:
                streams[old.index].disposition = disposition
        for packet in before.demux():
            if packet.size:
                new = change(packet)
                new.stream = streams[packet.stream.index]
                after.mux(new)
    return target


def never(rgb: Any) -> Any:
    raise AssertionError("a frame was upscaled before the refusal")


def refused(source: Path, target: Path, kind: type[Exception], message: str, **options: Any) -> None:
    """Check a refusal that comes before the first frame and leaves nothing behind."""
    before = sorted(source.parent.iterdir())
    with pytest.raises(kind, match=message):
        upscale_video(source, target, never, scale=2, options=VideoOptions(**options))
    assert sorted(source.parent.iterdir()) == before


# ---------------------------------------------------------------------------------------------------------
# Alpha


def with_alpha(source: Path, target: Path, *, tag: bool = True, addition: int = 1, first: int = 0) -> Path:
    """Give a clip's packets a block addition, as VP8 and VP9 have their alpha."""
    count = 0

    def change(packet: Any) -> Any:
        nonlocal count
        count += 1
        if addition and count > first:
            number = av.packet.packet_sidedata_type_from_literal("matroska_block_additional")
            side = av.packet.PacketSideData(number, 8 + packet.size)
            side.update(addition.to_bytes(8, "big") + bytes(packet))
            packet.set_sidedata(side)
        return packet

    return remux(source, target, stream_tags={"alpha_mode": "1"} if tag else None, change=change)


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
@pytest.mark.parametrize("suffix", [".webm", ".mkv"])
@pytest.mark.parametrize("first", [0, 7])
def test_alpha_beside_the_packets_is_refused(tmp_path: Path, codec: str, suffix: str, first: int) -> None:
    plain = write_clip(tmp_path / f"plain{suffix}", codec=codec)
    source = with_alpha(plain, tmp_path / f"in{suffix}", first=first)
    refused(source, tmp_path / "out.mkv", InputError, "has an alpha channel beside its vp. pictures")
    with pytest.raises(InputError, match="has an alpha channel"):
        upscale_video(source, io.BytesIO(), never, scale=2)


def test_an_alpha_tag_without_alpha_is_not_written_on(tmp_path: Path) -> None:
    plain = write_clip(tmp_path / "plain.webm", codec="libvpx-vp9")
    source = with_alpha(plain, tmp_path / "in.webm", addition=0)
    report = run(source, tmp_path / "out.mkv")
    assert report.left_out == ["tag alpha_mode, as no frame has an alpha channel"]
    with av.open(str(tmp_path / "out.mkv")) as clip:
        assert "alpha_mode" not in {key.lower() for key in clip.streams.video[0].metadata}


@pytest.mark.parametrize("addition", [4, 100])
def test_other_block_additions_are_no_alpha(tmp_path: Path, addition: int) -> None:
    plain = write_clip(tmp_path / "plain.webm", codec="libvpx-vp9")
    source = with_alpha(plain, tmp_path / "in.webm", tag=False, addition=addition)
    assert run(source, tmp_path / "out.mkv").frames == 12


def with_units(source: Path, target: Path, units: list[bytes]) -> Path:
    """Append NAL units to every packet of a stream whose units have four bytes of length before them."""

    def change(packet: Any) -> Any:
        extra = b"".join(len(unit).to_bytes(4, "big") + unit for unit in units)
        new = av.Packet(bytes(packet) + extra)
        new.pts, new.dts, new.time_base = packet.pts, packet.dts, packet.time_base
        new.duration, new.is_keyframe = packet.duration, packet.is_keyframe
        return new

    return remux(source, target, change=change)


def hevc_unit(kind: int, layer: int, payload: bytes) -> bytes:
    return bytes([kind << 1 | layer >> 5, (layer & 31) << 3 | 1]) + payload


ALPHA_SEI = hevc_unit(39, 0, bytes([165, 4, 0, 0, 255, 0, 128]))
SECOND = hevc_unit(1, 1, bytes([0x80, 1, 2, 3]))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_hevc_alpha_is_refused_and_a_second_view_named(tmp_path: Path, suffix: str) -> None:
    plain = write_clip(tmp_path / f"plain{suffix}", codec="libx265")
    source = with_units(plain, tmp_path / f"alpha{suffix}", [ALPHA_SEI, SECOND])
    refused(source, tmp_path / "out.mkv", InputError, "has an alpha channel beside its hevc pictures")
    source = with_units(plain, tmp_path / f"views{suffix}", [SECOND])
    assert left_out_layers(source) == ["further views or layers of the video (one view is upscaled)"]
    assert left_out_layers(plain) == []


def test_a_second_view_in_h264_is_named(tmp_path: Path) -> None:
    plain = write_clip(tmp_path / "plain.mp4")
    source = with_units(plain, tmp_path / "in.mp4", [bytes([0x74, 0x40, 0, 1, 2, 3, 4])])
    report = run(source, tmp_path / "out.mkv")
    assert report.left_out == ["further views or layers of the video (one view is upscaled)"]
    assert left_out_layers(plain) == []


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "suffix"),
    [
        ("prores_ks", "yuva444p10le", ".mov"),
        ("qtrle", "argb", ".mov"),
        ("png", "rgba", ".mov"),
        ("ffv1", "yuva420p", ".mkv"),
        ("ffv1", "bgra", ".mkv"),
        ("png", "ya8", ".mov"),
    ],
)
def test_alpha_in_the_picture_is_refused(tmp_path: Path, codec: str, pix_fmt: str, suffix: str) -> None:
    source = tmp_path / f"in{suffix}"
    with av.open(str(source), "w") as out:
        video = out.add_stream(codec, rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, pix_fmt
        for index in range(2):
            rgba = np.full((48, 64, 4), 90, np.uint8)
            frame = av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format=pix_fmt)
            frame.pts = index
            out.mux(video.encode(frame))
        out.mux(video.encode())
    refused(source, tmp_path / "out.mkv", InputError, "alpha channel")


# ---------------------------------------------------------------------------------------------------------
# Metadata


@pytest.mark.parametrize("tags", [PHONE, ANDROID, {"MY_TAG": "mine"}], ids=["phone", "android", "own"])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("to", [".mp4", ".mov", ".mkv"])
def test_every_tag_arrives(tmp_path: Path, tags: dict[str, str], suffix: str, to: str) -> None:
    plain = write_clip(tmp_path / "plain.mp4")
    flags = {"movflags": "use_metadata_tags"} if suffix != ".mkv" else {}
    source = remux(plain, tmp_path / f"in{suffix}", tags=tags, **flags)
    report = run(source, tmp_path / f"out{to}")
    with av.open(str(tmp_path / f"out{to}")) as clip:
        found = {key.lower(): value for key, value in clip.metadata.items()}
    assert {key: found.get(key.lower()) for key in tags} == tags
    assert report.left_out == []


def test_ordinary_tags_stay_in_the_atoms_that_most_programs_read() -> None:
    ordinary = {
        "title": "a",
        "artist": "b",
        "comment": "c",
        "date": "2020",
        "creation_time": "2024-05-03T10:11:12Z",
    }
    assert not needs_keys(ordinary, "mp4")
    assert needs_keys(ordinary | PHONE, "mp4")
    assert needs_keys(ordinary | PHONE, "mov")
    assert not needs_keys(ordinary | PHONE, "matroska")


@pytest.mark.parametrize("to", [".mkv", ".mp4", ".mov"])
def test_tags_and_dispositions_of_streams_arrive_or_are_named(tmp_path: Path, to: str) -> None:
    plain = write_clip(tmp_path / "plain.mp4", audio=True)
    flags = av.stream.Disposition
    source = remux(
        plain,
        tmp_path / "in.mkv",
        stream_tags={"title": "The title", "LENS": "50 mm", "language": "deu"},
        disposition=int(flags.default | flags.forced | flags.original),
    )
    report = run(source, tmp_path / f"out{to}")
    with av.open(str(tmp_path / f"out{to}")) as clip:
        for stream in clip.streams:
            there = {*stream.metadata.values(), *(flag.name for flag in flags if flag & stream.disposition)}
            label = f"stream {stream.index} ({stream.type})"
            for words, value in (
                ("tag title=The title", "The title"), ("tag LENS=50 mm", "50 mm"),
                ("disposition forced", "forced"), ("disposition original", "original"),
            ):  # fmt: skip
                assert (value in there) != (f"{label}: {words}" in report.left_out)
            assert stream.metadata["language"] in ("deu", "ger")
    assert report.left_out == [] if to == ".mkv" else len(report.left_out) > 0


def test_chapters_that_a_container_drops_are_named(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mkv", chapters=True, codec="libvpx-vp9")
    encoder = EncoderSettings("libvpx-vp9", options=(("cpu-used", "8"),))
    for to in (".mkv", ".mp4", ".mov", ".webm"):
        report = run(source, tmp_path / f"out{to}", encoder=FAST if to != ".webm" else encoder)
        with av.open(str(tmp_path / f"out{to}")) as clip:
            kept = [c["metadata"]["title"] for c in clip.chapters()] == ["one", "two"]
        assert kept != any("chapters" in entry for entry in report.left_out)


@pytest.mark.parametrize("to", [".mov", ".mp4", ".mkv"])
def test_a_chapter_track_that_is_made_again_is_no_loss(tmp_path: Path, to: str) -> None:
    source = write_clip(tmp_path / "in.mp4", chapters=True)
    with av.open(str(source)) as clip:
        assert [s.type for s in clip.streams] == ["video", "data"]
    assert run(source, tmp_path / f"out{to}").left_out == []
    with av.open(str(tmp_path / f"out{to}")) as clip:
        assert [c["metadata"]["title"] for c in clip.chapters()] == ["one", "two"]


@pytest.mark.parametrize(("code", "kept"), [("01:00:00:00", True), ("01:00:00;00", False)])
def test_a_time_code_that_does_not_fit_the_rate_is_left_out(tmp_path: Path, code: str, kept: bool) -> None:
    """MOV has drop-frame codes for 29.97 and 59.94 frames a second only; Matroska writes the words."""
    plain = write_clip(tmp_path / "plain.mkv")
    source = remux(plain, tmp_path / "in.mkv", stream_tags={"timecode": code})
    report = run(source, tmp_path / "out.mov")
    assert report.frames == 12
    assert report.left_out == ([] if kept else [f"stream 0 (video): tag TIMECODE={code}"])


@pytest.mark.parametrize("to", [".mov", ".mp4", ".mkv"])
def test_a_time_code_is_kept_and_not_given_to_a_part(tmp_path: Path, to: str) -> None:
    plain = write_clip(tmp_path / "plain.mov")
    source = remux(plain, tmp_path / "in.mov", stream_tags={"timecode": "01:00:00:00"})
    with av.open(str(source)) as clip:
        assert clip.streams.video[0].metadata["timecode"] == "01:00:00:00"
        assert len(clip.streams) == 2
    report = run(source, tmp_path / f"out{to}")
    with av.open(str(tmp_path / f"out{to}")) as clip:
        tags = {k.lower(): v for s in clip.streams for k, v in s.metadata.items()} | dict(clip.metadata)
        assert tags["timecode"] == "01:00:00:00"
    assert report.left_out == []
    report = run(source, tmp_path / f"part{to}", start_s=0.2)
    with av.open(str(tmp_path / f"part{to}")) as clip:
        assert "timecode" not in {k.lower() for s in clip.streams for k in s.metadata}
    assert any("timecode" in entry for entry in report.left_out)


# ---------------------------------------------------------------------------------------------------------
# Frames


def test_side_data_of_frames_is_named() -> None:
    none = StreamSideData()
    assert lost_frame_data(["DISPLAYMATRIX", "MOTION_VECTORS"], none, hdr_kept=False) == []
    assert lost_frame_data(["A53_CC", "DOVI_METADATA", "DOVI_RPU_BUFFER"], none, hdr_kept=False) == [
        "closed captions (CEA-608/708)",
        "Dolby Vision metadata",
    ]
    assert lost_frame_data(["SPHERICAL", "STEREO3D"], StreamSideData(None, b"x", 1), hdr_kept=False) == []
    assert len(lost_frame_data(["SPHERICAL", "STEREO3D"], none, hdr_kept=False)) == 2
    assert lost_frame_data(["CONTENT_LIGHT_LEVEL"], none, hdr_kept=True) == []
    assert lost_frame_data(["SOMETHING_NEW"], none, hdr_kept=True) == ["SOMETHING_NEW"]


def sei(kind: int, payload: bytes) -> bytes:
    """An H.264 SEI unit with emulation prevention left to payloads without zeros."""
    return bytes([6, kind, len(payload)]) + payload + b"\x80"


CAPTIONS = b"\xb5\x00\x31GA94\x03\xc1\xff" + b"\xfc\x94\x20" + b"\xff"
USER_DATA = bytes(range(1, 17)) + b"telemetry"


@pytest.mark.parametrize(
    ("unit", "words"),
    [
        (sei(4, CAPTIONS), "closed captions (CEA-608/708)"),
        (sei(5, USER_DATA), f"user data in the video stream (UUID {bytes(range(1, 17)).hex()})"),
    ],
)
def test_captions_and_user_data_in_the_stream_are_named(tmp_path: Path, unit: bytes, words: str) -> None:
    plain = write_clip(tmp_path / "plain.mp4", options={"x264-params": "no-info=1"})

    def change(packet: Any) -> Any:
        new = av.Packet(len(unit).to_bytes(4, "big") + unit + bytes(packet))
        new.pts, new.dts, new.time_base = packet.pts, packet.dts, packet.time_base
        new.duration, new.is_keyframe = packet.duration, packet.is_keyframe
        return new

    source = remux(plain, tmp_path / "in.mp4", change=change)
    assert run(source, tmp_path / "out.mkv").left_out == [words]


def test_what_x264_and_x265_write_about_themselves_is_no_loss(tmp_path: Path) -> None:
    for codec in ("libx264", "libx265"):
        source = write_clip(tmp_path / f"{codec}.mp4", codec=codec, audio=True)
        assert run(source, tmp_path / f"{codec}.mkv").left_out == []
        assert run(source, tmp_path / f"{codec}_x2.mp4").left_out == []


# ---------------------------------------------------------------------------------------------------------
# Pipes, events, refusals


def test_what_y4m_does_not_carry_is_named(tmp_path: Path) -> None:
    source = write_clip(
        tmp_path / "in.mkv",
        audio=True,
        subtitles=["hello"],
        chapters=True,
        metadata={"title": "A"},
        rotation=90,
    )
    sink = io.BytesIO()
    report = upscale_video(source, sink, enlarge(), scale=2)
    assert report.left_out == [
        "stream 1 (audio, flac)",
        "stream 2 (subtitle, srt)",
        "tags title",
        "chapters",
        "rotation",
        "colour tags (primaries 1, transfer 1, matrix 1)",
    ]


def test_the_finish_event_and_stderr_name_what_is_left_out(tmp_path: Path) -> None:
    engine = make_engine_dir(tmp_path / "engine")
    plain = write_clip(tmp_path / "plain.mkv", frames=2, audio=True)
    source = remux(plain, tmp_path / "in.mkv", stream_tags={"LENS": "50 mm"})
    command = [
        "video",
        "-m",
        str(engine),
        "-i",
        str(source),
        "-o",
        str(tmp_path / "out.mp4"),
        "--threads",
        "1",
    ]
    result = CliRunner().invoke(cli, [*command, "--no-copy-audio", "--progress", "json"])
    assert result.exit_code == 0, result.output
    events = [json.loads(line) for line in result.stderr.splitlines()]
    finish = next(event for event in events if event["event"] == "finish")
    assert finish["left_out"] == ["stream 1 (audio, flac): as asked", "stream 0 (video): tag LENS=50 mm"]
    result = CliRunner().invoke(cli, [*command, "--no-copy-audio", "--overwrite"])
    assert "left out: stream 1 (audio, flac): as asked" in result.stderr
    assert "left out: stream 0 (video): tag LENS=50 mm" in result.stderr


@pytest.mark.parametrize(
    ("encoder", "suffix", "message"),
    [
        (FAST, ".webm", "webm cannot hold what libx264 makes"),
        (EncoderSettings("prores_ks", pix_fmt="yuv422p10le"), ".mp4", "mp4 cannot hold what prores_ks makes"),
        (EncoderSettings("libx264", preset="no such"), ".mkv", "encoder libx264 does not open"),
    ],
)
def test_a_container_or_encoder_that_refuses_does_so_before_the_first_frame(
    tmp_path: Path, encoder: EncoderSettings, suffix: str, message: str
) -> None:
    source = write_clip(tmp_path / "in.mkv")
    refused(source, tmp_path / f"out{suffix}", ConfigError, message, encoder=encoder)


def test_a_full_disk_behind_a_y4m_stream_is_no_program_that_ended(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    source = write_clip(tmp_path / "in.mkv", frames=2)
    for size in (0, 1 << 30):  # noticed at the first write, or only when the stream is flushed
        full = open("/dev/full", "wb", buffering=size)  # noqa: SIM115 -- closing it fails as well
        with pytest.raises(InputError, match="No space left on device; free space"):
            upscale_video(source, full, enlarge(), scale=2)
        with contextlib.suppress(OSError):
            full.close()


def test_an_opaque_alpha_channel_is_dropped_by_name(tmp_path: Path) -> None:
    source = tmp_path / "in.mkv"
    with av.open(str(source), "w") as out:
        video = out.add_stream("ffv1", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuva420p"
        frame = av.VideoFrame.from_ndarray(np.full((48, 64, 4), 255, np.uint8), format="rgba")
        frame = frame.reformat(format="yuva420p")
        frame.pts = 0
        out.mux([*video.encode(frame), *video.encode()])
    assert run(source, tmp_path / "out.mkv").left_out == ["alpha channel, which is opaque in every pixel"]


# ---------------------------------------------------------------------------------------------------------
# What containers say of their pictures

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'
XMP_UUID = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")


def moving(path: Path, **options: Any) -> Path:
    """Write an animation of three opaque pictures."""
    frames = [Image.fromarray(np.full((32, 48, 3), 40 * i + 20, np.uint8)) for i in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, **options)
    return path


def exif() -> bytes:
    block = Image.Exif()
    block[0x0110] = "a camera"
    return block.tobytes()


def still(named: list[str]) -> list[str]:
    """Leave out what an animated AVIF always lacks: its own still picture."""
    return [entry for entry in named if "still picture" not in entry]


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
@pytest.mark.parametrize(("loop", "words"), [(0, "for ever"), (3, "3 times"), (None, None)])
def test_how_often_an_animation_plays_is_named(
    tmp_path: Path, suffix: str, loop: int | None, words: str | None
) -> None:
    if loop is None:
        saving = {} if suffix == ".gif" else {"loop": 1}  # plays once, as a video does
    else:
        saving = {"loop": loop - (suffix == ".gif" and loop > 0)}  # GIF counts the repetitions
    source = moving(tmp_path / f"a{suffix}", **saving)
    expected = [] if words is None else [f"loop count (plays {words})"]
    opaque = "alpha channel, which is opaque in every pixel"
    assert [e for e in run(source, tmp_path / "out.mkv").left_out if e != opaque] == expected
    options = VideoOptions(encoder=EncoderSettings(pix_fmt="yuv444p"))
    report = upscale_video(source, io.BytesIO(), enlarge(), scale=2, options=options)
    assert [e for e in report.left_out if "loop" in e] == expected


def test_text_xmp_and_exif_of_an_apng_are_named(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", "me")
    info.add_itxt("Title", "mine", zip=True)
    info.add_itxt("XML:com.adobe.xmp", XMP.decode())
    source = moving(tmp_path / "a.png", loop=1, pnginfo=info, exif=exif(), dpi=(72, 72))
    assert run(source, tmp_path / "out.mkv").left_out == [
        "EXIF metadata of frames", "XMP metadata", "text 'Author'", "text 'Title'", "resolution (pHYs)",
    ]  # fmt: skip


def test_exif_and_xmp_of_an_animated_avif_are_named(tmp_path: Path) -> None:
    source = moving(tmp_path / "a.avif", exif=exif(), xmp=XMP)
    named = still(run(source, tmp_path / "out.mkv").left_out)
    assert {"EXIF metadata", "XMP metadata"} < set(named)
    assert [entry for entry in named if "loop" in entry] == ["loop count (plays for ever)"]
    assert not {"EXIF metadata", "XMP metadata"} & set(left_out_descriptions(moving(tmp_path / "b.avif")))


def box(kind: bytes, body: bytes) -> bytes:
    return (8 + len(body)).to_bytes(4, "big") + kind + body


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_xmp_in_boxes_is_named(tmp_path: Path, suffix: str) -> None:
    source = write_clip(tmp_path / f"in{suffix}", metadata={"title": "A"})
    assert left_out_descriptions(source) == []
    data = source.read_bytes()
    source.write_bytes(data + box(b"uuid", XMP_UUID + XMP))
    assert run(source, tmp_path / "out.mkv").left_out == ["XMP metadata"]
    at = data.index(b"moov") - 4  # behind the samples, so places of samples stay
    size = int.from_bytes(data[at : at + 4], "big")
    assert at + size == len(data)
    added = box(b"udta", box(b"XMP_", XMP) + bytes(4))
    source.write_bytes(data[:at] + (size + len(added)).to_bytes(4, "big") + data[at + 4 :] + added)
    assert run(source, tmp_path / f"out2{suffix}").left_out == ["XMP metadata"]
    source.write_bytes(data + box(b"uuid", bytes.fromhex("d8fec3d61b0e483c92975828877ec481") + b"x"))
    assert left_out_descriptions(source) == ["content credentials (C2PA), signed for the old file"]
    nested = b""
    for _ in range(5000):
        nested = box(b"udta", nested)
    assert _of_boxes(nested) == []


@pytest.mark.parametrize("suffix", [".avi", ".mov", ".mkv"])
def test_xmp_and_iptc_of_motion_jpeg_frames_are_named(tmp_path: Path, suffix: str) -> None:
    plain = write_clip(tmp_path / f"plain{suffix}", codec="mjpeg", pix_fmt="yuvj420p", tags=None, frames=4)
    assert left_out_descriptions(plain) == []
    count = 0

    def change(packet: Any) -> Any:
        nonlocal count
        count += 1
        data, parts = bytes(packet), b""
        iptc = b"\x1c\x02\x78\x00\x05hello"
        caption = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0" + len(iptc).to_bytes(4, "big") + iptc
        bodies = [(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP), (0xED, caption), (0xFE, b"words")]
        for marker, body in bodies if count > 2 else ():
            parts += bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body
        new = av.Packet(data[:2] + parts + data[2:])
        new.pts, new.dts, new.time_base = packet.pts, packet.dts, packet.time_base
        new.duration, new.is_keyframe = packet.duration, packet.is_keyframe
        return new

    source = remux(plain, tmp_path / f"in{suffix}", change=change)
    named = ["XMP metadata of frames", "IPTC metadata of frames", "comments of frames"]
    assert run(source, tmp_path / "out.mkv").left_out == named


def test_xmp_of_an_avi_is_named(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.avi", codec="mpeg4", tags=None)
    data = source.read_bytes() + b"_PMX" + len(XMP).to_bytes(4, "little") + XMP + bytes(len(XMP) % 2)
    source.write_bytes(data[:4] + (len(data) - 8).to_bytes(4, "little") + data[8:])
    assert run(source, tmp_path / "out.mkv").left_out == ["XMP metadata"]


# ---------------------------------------------------------------------------------------------------------
# HDR metadata of single frames


def unit_before(source: Path, target: Path, unit: bytes) -> Path:
    """Put a NAL unit in front of every picture."""

    def change(packet: Any) -> Any:
        new = av.Packet(len(unit).to_bytes(4, "big") + unit + bytes(packet))
        new.pts, new.dts, new.time_base = packet.pts, packet.dts, packet.time_base
        new.duration, new.is_keyframe = packet.duration, packet.is_keyframe
        return new

    return remux(source, target, change=change)


def hdr10_plus() -> bytes:
    """An HEVC SEI unit with SMPTE ST 2094-40: one window, all else zero."""
    bits = "01" + "0" * 26 + "1" + "0" * 91  # num_windows, targeted luminance of 1, then maxscl and the rest
    payload = b"\xb5\x00\x3c\x00\x01\x04\x01" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    raw, zeros = bytearray(), 0
    for byte in bytes([4, len(payload)]) + payload + b"\x80":
        if zeros >= 2 and byte <= 3:  # emulation prevention
            raw.append(3)
            zeros = 0
        raw.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return hevc_unit(39, 0, bytes(raw))


def test_hdr10_plus_is_refused_unless_forced_and_then_named(tmp_path: Path) -> None:
    plain = write_clip(
        tmp_path / "plain.mp4", codec="libx265", pix_fmt="yuv420p10le", frames=4, tags=(1, 9, 16, 9)
    )
    source = unit_before(plain, tmp_path / "in.mp4", hdr10_plus())
    refused(source, tmp_path / "out.mkv", InputError, r"per-frame HDR metadata \(DYNAMIC_HDR_PLUS\).*--force")
    encoder = EncoderSettings("libx265", 20, "ultrafast")
    report = run(source, tmp_path / "out.mkv", encoder=encoder, force=True)
    assert report.left_out == ["HDR10+ metadata"]


def test_dolby_vision_is_refused_unless_forced_and_then_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its units are made by licensed encoders; what FFmpeg says of them stands in here."""
    source = write_clip(tmp_path / "in.mp4", frames=4)
    monkeypatch.setattr("yonos_trt.video.info._side_data", lambda frame: {"DOVI_METADATA": b""})
    monkeypatch.setattr("yonos_trt.video.read.frame_data_names", lambda frame: iter(["DOVI_METADATA"]))
    refused(source, tmp_path / "out.mkv", InputError, r"per-frame HDR metadata \(DOVI_METADATA\).*--force")
    assert run(source, tmp_path / "out.mkv", force=True).left_out == ["Dolby Vision metadata"]
