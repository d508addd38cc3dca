"""What a video keeps: frames, times, tags, other streams, chapters, attachments, metadata."""

from __future__ import annotations

import hashlib
import io
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

av = pytest.importorskip("av")

from video_clips import enlarge, packets, picture_planes, run, shown, write_clip  # noqa: E402

from yonos_trt.errors import ConfigError, InputError  # noqa: E402
from yonos_trt.video.color import planes_to_rgb  # noqa: E402
from yonos_trt.video.format import EncoderSettings  # noqa: E402
from yonos_trt.video.layouts import layout_of  # noqa: E402
from yonos_trt.video.read import VideoReader  # noqa: E402

VFR = [0, 512, 1000, 1100, 3000, 3001, 3512, 6000, 6512, 9000, 9100, 12000]


def times(path: Path) -> list[float]:
    return [time_s for time_s, _ in shown(path)]


def test_streams_chapters_attachments_and_metadata_are_copied_bit_for_bit(tmp_path: Path) -> None:
    source = write_clip(
        tmp_path / "in.mkv",
        audio=True,
        subtitles=["bonjour", "adieu"],
        attachment=bytes(range(256)),
        chapters=True,
        metadata={"title": "A clip", "comment": "kept"},
    )
    target = tmp_path / "out.mkv"
    report = run(source, target)
    assert report.frames == 12
    for kind in ("audio", "subtitle"):
        assert packets(target, kind) == packets(source, kind)
        assert len(packets(target, kind)[0]) > 0
    assert all(stream.identical for stream in report.mux.copied)
    with av.open(str(source)) as before, av.open(str(target)) as after:
        assert [s.type for s in after.streams] == [s.type for s in before.streams]
        assert [s.language for s in after.streams] == [s.language for s in before.streams]
        assert [c["metadata"]["title"] for c in after.chapters()] == ["one", "two"]
        assert [(c["start"], c["end"]) for c in after.chapters()] == [
            (c["start"], c["end"]) for c in before.chapters()
        ]
        old, new = (next(s for s in c.streams if s.type == "attachment") for c in (before, after))
        assert (new.data, new.name, new.mimetype) == (old.data, old.name, old.mimetype)
        tags = {k.lower(): v for k, v in after.metadata.items()}
        assert (tags["title"], tags["comment"]) == ("A clip", "kept")


@pytest.mark.parametrize(("suffix", "unit_s"), [(".mp4", 0), (".mov", 0), (".mkv", 0.0005)])
def test_every_time_of_a_variable_frame_rate_is_kept(tmp_path: Path, suffix: str, unit_s: float) -> None:
    """Exactly where the container can; Matroska counts in milliseconds."""
    ticks = [t for t in VFR if t != 3001] if suffix == ".mkv" else VFR
    source = write_clip(tmp_path / "in.mp4", times=ticks)
    target = tmp_path / f"out{suffix}"
    report = run(source, target, segment_frames=5)
    assert report.frames == len(ticks)
    np.testing.assert_allclose(times(target), [t / 12800 for t in ticks], rtol=0, atol=unit_s + 1e-12)


def test_matroska_times_stay_exact_from_matroska_to_matroska(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mkv", times=[0, 512, 1024, 2048, 5000, 5400], audio=True)
    run(source, tmp_path / "out.mkv", segment_frames=2)
    assert times(tmp_path / "out.mkv") == times(source)


def test_a_late_start_is_kept_with_its_sound(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mkv", times=[6400 + 512 * i for i in range(8)], audio=True)
    run(source, tmp_path / "out.mkv")
    assert times(tmp_path / "out.mkv")[0] == times(source)[0] == 0.5
    assert packets(tmp_path / "out.mkv", "audio") == packets(source, "audio")


def test_times_below_zero_move_everything_by_one_constant_in_matroska(tmp_path: Path) -> None:
    """AAC starts a packet before zero in MP4; Matroska cannot say so, and sound must not slip."""
    source = write_clip(tmp_path / "in.mp4", audio=True)
    first_s = packets(source, "audio")[0][0][0]
    assert first_s < 0
    report = run(source, tmp_path / "out.mkv")
    assert report.mux.shift_s == pytest.approx(-first_s, abs=0.001)
    np.testing.assert_allclose(
        times(tmp_path / "out.mkv"), np.array(times(source)) + report.mux.shift_s, atol=0.0011
    )
    moved = [t for t, _ in packets(tmp_path / "out.mkv", "audio")[0]]
    original = [t for t, _ in packets(source, "audio")[0]]
    np.testing.assert_allclose(moved, np.array(original) + report.mux.shift_s, atol=0.0011)


FORMATS = [
    ("libx264", "yuv420p"),
    ("libx264", "yuv422p"),
    ("libx264", "yuv444p"),
    ("libx264", "yuv420p10le"),
    ("libx264", "yuv422p10le"),
    ("libx264", "yuv444p10le"),
    ("libx265", "yuv420p10le"),
    ("libvpx-vp9", "yuv420p"),
    ("prores_ks", "yuv422p10le"),
    ("ffv1", "yuv444p16le"),
    ("ffv1", "yuv420p12le"),
    ("ffv1", "gbrp10le"),
    ("ffv1", "gray"),
    ("ffv1", "gray10le"),
]


@pytest.mark.parametrize(("codec", "pix_fmt"), FORMATS)
def test_formats_go_in_and_come_out_with_the_same_pictures(tmp_path: Path, codec: str, pix_fmt: str) -> None:
    """Depth and subsampling stay, and a frame's colours are those of its source, enlarged (ffv1: no loss)."""
    tags = (2, 1, 1, 0) if pix_fmt.startswith("gbr") else (1, 1, 1, 1)
    source = write_clip(tmp_path / "in.mkv", frames=3, codec=codec, pix_fmt=pix_fmt, tags=tags)
    target = tmp_path / "out.mkv"
    run(source, target, encoder=EncoderSettings("ffv1"))
    with VideoReader(source) as before, VideoReader(target) as after:
        assert before.info.layout == after.info.layout == layout_of(pix_fmt)
        assert after.info.tags == before.info.tags
        pairs = list(zip(before.frames(), after.frames(), strict=True))
    assert len(pairs) == 3
    for old, new in pairs:
        peak = np.iinfo(old.rgb.dtype).max
        big = enlarge()(old.rgb).astype(np.float64) / peak
        # subsampled chroma spreads over its neighbours, so the comparison is of the mean
        assert np.abs(big - new.rgb / peak).mean() < 0.01


@pytest.mark.parametrize(
    ("tags", "aspect", "rotation"),
    [
        ((1, 1, 1, 1), Fraction(4, 3), 90),  # BT.709 limited
        ((2, 1, 13, 1), None, None),  # full range, sRGB transfer
        ((1, 6, 6, 6), Fraction(8, 9), 180),  # SMPTE 170M
        ((1, 5, 6, 5), None, -90),  # PAL
        ((1, 9, 14, 9), None, None),  # BT.2020, SDR
    ],
)
@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_colour_tags_aspect_and_rotation_are_kept(
    tmp_path: Path,
    suffix: str,
    tags: tuple[int, int, int, int],
    aspect: Fraction | None,
    rotation: int | None,
) -> None:
    source = write_clip(tmp_path / f"in{suffix}", frames=3, tags=tags, aspect=aspect, rotation=rotation)
    target = tmp_path / f"out{suffix}"
    run(source, target)
    with VideoReader(source) as before, VideoReader(target) as after:
        assert after.info.tags == before.info.tags
        assert (after.info.tags.color_range, after.info.tags.primaries) == tags[:2]
        assert after.info.sample_aspect_ratio == before.info.sample_aspect_ratio == aspect
        assert after.info.display_matrix == before.info.display_matrix
        assert (after.info.display_matrix is not None) == (rotation is not None)


def test_what_was_assumed_of_an_untagged_clip_is_said_in_the_output(tmp_path: Path) -> None:
    """48 lines are taken as BT.601; at twice the size a player might guess otherwise."""
    source = write_clip(tmp_path / "in.mkv", frames=2, tags=None)
    run(source, tmp_path / "out.mkv")
    with VideoReader(source) as before, VideoReader(tmp_path / "out.mkv") as after:
        assert before.info.tags.matrix == 2
        assert after.info.tags.matrix == before.info.coding.matrix == 6
        assert after.info.tags.primaries == 2


def test_hdr_is_passed_on_with_its_tags_and_its_mastering_data(tmp_path: Path) -> None:
    master = "G(8500,39850)B(6550,2300)R(35400,14600)WP(15635,16450)L(10000000,50)"
    source = write_clip(
        tmp_path / "in.mkv",
        frames=3,
        codec="libx265",
        pix_fmt="yuv420p10le",
        tags=(1, 9, 16, 9),
        options={"x265-params": f"log-level=none:master-display={master}:max-cll=1000,400"},
    )
    for vcodec, extra in (("libx265", (("x265-params", "log-level=none"),)), ("libx264", ())):
        target = tmp_path / f"{vcodec}.mkv"
        run(source, target, encoder=EncoderSettings(vcodec, preset="ultrafast", options=extra))
        with VideoReader(source) as before, VideoReader(target) as after:
            assert (after.info.tags.primaries, after.info.tags.transfer, after.info.tags.matrix) == (9, 16, 9)
            assert after.info.layout.bits == 10
            assert before.info.hdr is not None
            assert before.info.hdr.light == (1000, 400)
            assert after.info.hdr == before.info.hdr


def test_hdr_that_would_come_out_wrong_is_refused(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mkv", frames=2, pix_fmt="yuv420p10le", tags=(1, 9, 16, 9))
    with pytest.raises(InputError, match=r"is HDR .* needs 10 bits"):
        run(source, tmp_path / "out.mkv", encoder=EncoderSettings(pix_fmt="yuv420p"))
    assert not (tmp_path / "out.mkv").exists()


def test_interlaced_video_is_named_and_refused_unless_forced(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mkv", interlaced=True, frames=4)
    with pytest.raises(InputError, match=r"is interlaced \(at 0.000 s\).*--force"):
        run(source, tmp_path / "out.mkv")
    assert run(source, tmp_path / "out.mkv", force=True).frames == 4


def test_start_and_end_cut_frames_sound_and_chapters_alike(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mkv", frames=12, audio=True, chapters=True)
    target = tmp_path / "out.mkv"
    report = run(source, target, start_s=0.2, end_s=0.4)
    assert report.frames == 5
    np.testing.assert_allclose(times(target), [0, 0.04, 0.08, 0.12, 0.16], atol=0.0005)
    expected = [(t - 0.2, h) for t, h in packets(source, "audio")[0] if 0.2 <= t < 0.4]
    assert [h for _, h in packets(target, "audio")[0]] == [h for _, h in expected]
    np.testing.assert_allclose(
        [t for t, _ in packets(target, "audio")[0]], [t for t, _ in expected], atol=0.001
    )
    with av.open(str(target)) as clip:
        assert [(c["start"] * c["time_base"], c["metadata"]["title"]) for c in clip.chapters()] == [
            (0, "two")
        ]


def test_mp4_text_becomes_subrip_in_matroska_with_the_same_words(tmp_path: Path) -> None:
    source = tmp_path / "in.mp4"
    write_clip(tmp_path / "plain.mp4", audio=True)
    words = ["hello", "Grüße"]
    with av.open(str(tmp_path / "plain.mp4")) as clip, av.open(str(source), "w") as out:
        streams = {s.index: out.add_stream_from_template(s, opaque=True) for s in clip.streams}
        text = out.add_mux_stream("mov_text")
        text.time_base = Fraction(1, 1000)
        for packet in clip.demux():
            if packet.size:
                packet.stream = streams[packet.stream.index]
                out.mux(packet)
        for index, word in enumerate(words):
            raw = word.encode()
            packet = av.Packet(len(raw).to_bytes(2, "big") + raw)
            packet.pts = packet.dts = 200 * index
            packet.duration, packet.time_base, packet.stream = 100, Fraction(1, 1000), text
            out.mux(packet)
    run(source, tmp_path / "out.mkv")
    with av.open(str(tmp_path / "out.mkv")) as clip:
        got = [bytes(p).decode() for p in clip.demux(subtitles=0) if p.size]
    assert got == words
    run(source, tmp_path / "out.mp4")
    # muxers put empty samples (two zero bytes) between texts as they need them
    empty = hashlib.sha256(b"\0\0").hexdigest()
    got, had = (packets(p, "subtitle")[0] for p in (tmp_path / "out.mp4", source))
    assert [entry for entry in got if entry[1] != empty] == [entry for entry in had if entry[1] != empty]


def with_cover(folder: Path, suffix: str = ".mp4", *, video: bool = True) -> tuple[Path, bytes]:
    """Write 12 frames, sound and a cover picture, in Matroska with a free tag; return file and picture."""
    plain, source = write_clip(folder / "plain.mp4", audio=True), folder / f"in{suffix}"
    still = io.BytesIO()
    Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(still, "PNG")
    (folder / "cover.png").write_bytes(still.getvalue())
    with (
        av.open(str(plain)) as clip,
        av.open(str(folder / "cover.png")) as picture,
        av.open(str(source), "w") as out,
    ):
        taken = [s for s in clip.streams if video or s.type != "video"]
        streams = {s.index: out.add_stream_from_template(s, opaque=True) for s in taken}
        if suffix == ".mkv":
            out.add_attachment("cover.png", "image/png", still.getvalue())
            out.metadata["FREE"] = "word"
        else:
            cover = out.add_stream_from_template(picture.streams.video[0], opaque=True)
            cover.disposition = av.stream.Disposition.attached_pic
        for packet in picture.demux() if suffix != ".mkv" else ():
            if packet.size:
                packet.stream = cover
                out.mux(packet)
        for packet in clip.demux(taken):
            if packet.size:
                packet.stream = streams[packet.stream.index]
                out.mux(packet)
    return source, still.getvalue()


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize("before", [".mkv", ".mp4"])
def test_a_cover_picture_is_kept_and_costs_no_other_packet(tmp_path: Path, suffix: str, before: str) -> None:
    """In MP4 a cover is a video stream of one packet, in Matroska an attachment."""
    source, still = with_cover(tmp_path, before)
    target = tmp_path / f"out{suffix}"
    report = run(source, target)
    assert [h for _, h in packets(target, "audio")[0]] == [h for _, h in packets(source, "audio")[0]]
    with av.open(str(target)) as clip:
        assert [s.type for s in clip.streams] == ["video", "audio", "video"]
        kept = [bytes(p) for p in clip.demux(clip.streams[2]) if p.size]
    assert kept == [still]
    assert len(shown(target)) == 12
    # FFmpeg writes no cover beside named keys, which such a tag would need in MP4
    assert ("tag FREE=word" in report.mux.left_out) == (before == ".mkv" and suffix == ".mp4")


@pytest.mark.parametrize("before", [".mkv", ".mp4"])
def test_a_cover_picture_that_mov_does_not_take_is_named(tmp_path: Path, before: str) -> None:
    source, _ = with_cover(tmp_path, before)
    report = run(source, tmp_path / "out.mov")
    assert report.mux.left_out == ["stream 2 (video, png): mov cannot hold it"]
    assert len(shown(tmp_path / "out.mov")) == 12


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    source, _ = with_cover(tmp_path, video=False)
    with pytest.raises(InputError, match=r"no video stream \(found: a cover picture, audio\)"):
        run(source, tmp_path / "out.mkv")


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov"])
def test_sound_that_no_output_takes_is_refused_with_a_way_out(tmp_path: Path, suffix: str) -> None:
    with av.open(str(tmp_path / "in.wmv"), "w", format="asf") as out:
        video, sound = out.add_stream("wmv2", 25, width=32, height=32), out.add_stream("wmav2", 44100)
        video.bit_rate = sound.bit_rate = 64000
        video.pix_fmt, sound.layout = "yuv420p", "mono"
        for index in range(5):
            out.mux(video.encode(av.VideoFrame(32, 32, "yuv420p")))
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 44100, 2048 * index
            out.mux(sound.encode(frame))
        out.mux([*video.encode(None), *sound.encode(None)])
    words = r"stream 1 \(audio, wmav2\) cannot be stored in \w+; convert it first \(ffmpeg .*\) or leave"
    with pytest.raises(ConfigError, match=rf"{words} it out with --no-copy-audio$"):
        run(tmp_path / "in.wmv", tmp_path / f"out{suffix}")
    assert run(tmp_path / "in.wmv", tmp_path / f"out{suffix}", copy_audio=False).mux.frames == 5


def test_streams_can_be_left_out_and_what_does_not_fit_is_refused_before_any_work(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mkv", audio=True, subtitles=["x"], attachment=b"font")
    with pytest.raises(ConfigError, match=r"cannot be stored in mp4.*--no-copy-subtitles"):
        run(source, tmp_path / "out.mp4")
    with pytest.raises(ConfigError, match="attachment, which mp4 cannot hold"):
        run(source, tmp_path / "out.mp4", copy_subtitles=False)
    assert list(tmp_path.glob("out.mp4*")) == []
    report = run(source, tmp_path / "out.mp4", copy_subtitles=False, copy_audio=False, force=True)
    assert len(report.mux.left_out) == 3
    assert report.mux.copied == []


def test_an_existing_output_and_the_input_itself_are_not_overwritten(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mkv", frames=2)
    (tmp_path / "out.mkv").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="exists; pass --overwrite"):
        run(source, tmp_path / "out.mkv")
    assert (tmp_path / "out.mkv").read_bytes() == b"mine"
    with pytest.raises(ConfigError, match="is the input itself"):
        run(source, source, overwrite=True)
    run(source, tmp_path / "out.mkv", overwrite=True)
    assert len(shown(tmp_path / "out.mkv")) == 2
    with pytest.raises(ConfigError, match=r"suffix '.avi' is not one of"):
        run(source, tmp_path / "out.avi")


def test_encoder_options_are_passed_on_and_unknown_ones_refused(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mkv", frames=2)
    with pytest.raises(ConfigError, match="does not know the options nonsense"):
        run(source, tmp_path / "out.mkv", encoder=EncoderSettings(options=(("nonsense", "1"),)))
    with pytest.raises(ConfigError, match="encoder 'libx999' is not in this build"):
        run(source, tmp_path / "out.mkv", encoder=EncoderSettings("libx999"))
    with pytest.raises(ConfigError, match="has no pixel format pal8"):
        run(source, tmp_path / "out.mkv", encoder=EncoderSettings(pix_fmt="pal8"))
    with pytest.raises(ConfigError, match="has no presets"):
        run(source, tmp_path / "out.mkv", encoder=EncoderSettings("ffv1", preset="fast"))


@pytest.mark.parametrize("content", [b"", b"not a video at all", b"\0" * 4000])
def test_what_is_not_a_video_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "in.mp4").write_bytes(content)
    with pytest.raises(InputError, match=r"in.mp4 cannot be opened as video"):
        run(tmp_path / "in.mp4", tmp_path / "out.mkv")
    with pytest.raises(InputError, match=r"gone.mp4 cannot be opened"):
        run(tmp_path / "gone.mp4", tmp_path / "out.mkv")


def test_samples_of_the_source_are_read_as_they_were_written(tmp_path: Path) -> None:
    """ffv1 loses nothing, so the reader's RGB is exactly the conversion of what the clip was made from."""
    source = write_clip(
        tmp_path / "in.mkv", frames=3, codec="ffv1", pix_fmt="yuv422p10le", times=[0, 512, 1024]
    )
    with VideoReader(source) as reader:
        for frame in reader.frames():
            planes = picture_planes("yuv422p10le", 48, 64, frame.index)
            expected = planes_to_rgb(planes, reader.info.layout, reader.info.coding)
            np.testing.assert_array_equal(frame.rgb, expected)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "suffix", "seconds"),
    [
        ("bee.mp4", ".mkv", 0.1),
        ("bee.mp4", ".mp4", 0.1),
        ("nasa_13013.mp4", ".mkv", 1.5),
        ("nasa_13013.mp4", ".mp4", 1.5),
        ("bigbuckbunny.mp4", ".mkv", 0.1),
        ("cockatoo.mp4", ".mkv", 0.1),
        ("cockatoo.mp4", ".mp4", 0.1),
        ("bikes.mp4", ".mp4", 0.5),
        ("low_quality/002.mp4", ".mkv", 9.0),
    ],
)
def test_real_clips_keep_frames_times_sound_and_text(
    tmp_path: Path, data_dir: Path, name: str, suffix: str, seconds: float
) -> None:
    source, target = data_dir / "video" / name, tmp_path / f"out{suffix}"
    report = run(source, target, end_s=seconds)
    with VideoReader(source, end_s=seconds) as before, VideoReader(target) as after:
        old = [(f.pts * before.info.time_base, f.rgb.mean(axis=(0, 1))) for f in before.frames()]
        new = [(f.pts * after.info.time_base, f.rgb.mean(axis=(0, 1))) for f in after.frames()]
        assert (after.info.height_px, after.info.width_px) == (
            before.info.height_px * 2,
            before.info.width_px * 2,
        )
        assert after.info.layout == before.info.layout
    assert report.frames == len(new) == len(old)
    unit_s = 0.0011 if suffix == ".mkv" else 1e-9
    np.testing.assert_allclose(
        [float(t) for t, _ in new], [float(t) + report.mux.shift_s for t, _ in old], atol=unit_s
    )
    np.testing.assert_allclose([m for _, m in new], [m for _, m in old], atol=1.0)
    assert report.mux.left_out == []
    for kind in ("audio", "subtitle"):
        taken = [[(t, h) for t, h in stream if t < seconds] for stream in packets(source, kind)]
        got = packets(target, kind)
        assert len(got) == len(taken)
        if not (kind == "subtitle" and suffix == ".mkv"):
            assert [[h for _, h in stream] for stream in got] == [[h for _, h in stream] for stream in taken]
    assert all(stream.identical for stream in report.mux.copied)
