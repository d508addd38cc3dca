"""Side data of a whole stream: where chroma sits, projection, stereo layout, cropping."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from helpers import Array

av = pytest.importorskip("av")

from video_clips import enlarge, run, write_clip  # noqa: E402

from yonos_trt.video import VideoOptions, upscale_video  # noqa: E402
from yonos_trt.video.color import SITINGS  # noqa: E402
from yonos_trt.video.format import EncoderSettings  # noqa: E402
from yonos_trt.video.info import frame_planes  # noqa: E402
from yonos_trt.video.layouts import Layout, layout_of  # noqa: E402
from yonos_trt.video.read import VideoReader  # noqa: E402
from yonos_trt.video.sidedata import StreamSideData, read_side_data, with_side_data  # noqa: E402

HEIGHT, WIDTH = 64, 96
CENTRE = (30.0, 45.0)  # of the spot, in luma samples
FINE = EncoderSettings(crf=4, preset="ultrafast")


def spot(y: Array, x: Array) -> Array:
    return np.exp(-((y - CENTRE[0]) ** 2 + (x - CENTRE[1]) ** 2) / (2 * 8.0**2))


def chroma_grid(siting: str, layout: Layout, scale: int = 1) -> tuple[Array, Array]:
    """Positions of the chroma samples in luma samples of a picture ``scale`` times as large."""
    vertical, horizontal = SITINGS[siting]
    rows, columns = scale * HEIGHT // layout.sub_h, scale * WIDTH // layout.sub_w
    y = np.arange(rows) * layout.sub_h + (vertical / 2 if layout.sub_h == 2 else 0)
    x = np.arange(columns) * layout.sub_w + (horizontal / 2 if layout.sub_w == 2 else 0)
    return y[:, None], x[None, :]


def spot_planes(siting: str, layout: Layout) -> list[Array]:
    """A red spot whose chroma was sampled at the true places."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    colour = spot(*chroma_grid(siting, layout))
    unit = 1 << (layout.bits - 8)
    planes = [100 + 60 * spot(y, x), 128 - 30 * colour, 128 + 60 * colour]
    return [np.rint(plane * unit).astype(layout.dtype) for plane in planes]


def write_spot(
    path: Path, siting: str, *, codec: str = "libx264", pix_fmt: str = "yuv420p", said: str | None = None
) -> Path:
    layout = layout_of(pix_fmt)
    fine = {"libx264": {"crf": "4"}, "libx265": {"x265-params": "log-level=none:crf=4"}}
    options = {**fine, "libvpx-vp9": {"crf": "4", "b": "0", "cpu-used": "8"}}.get(codec, {})
    with av.open(str(path), "w") as out:
        video = out.add_stream(codec, rate=25, options={**options, "chroma_sample_location": said or siting})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, pix_fmt
        for index in range(3):
            frame = av.VideoFrame(WIDTH, HEIGHT, pix_fmt)
            for view, plane in zip(frame_planes(frame, layout), spot_planes(siting, layout), strict=True):
                view[...] = plane
            frame.pts = index
            out.mux(video.encode(frame))
        out.mux(video.encode())
    return path


def y4m_spot(siting: str, colour: str) -> bytes:
    data = f"YUV4MPEG2 W{WIDTH} H{HEIGHT} F25:1 Ip A1:1 C{colour} XCOLORRANGE=LIMITED\n".encode()
    frame = b"".join(plane.tobytes() for plane in spot_planes(siting, layout_of("yuv420p")))
    return data + 2 * (b"FRAME\n" + frame)


def centroid(plane: Array, y: Array, x: Array) -> Array:
    weight = np.abs(plane - float(np.median(plane)))
    weight[weight < 8] = 0
    result: Array = np.array([(weight * y).sum(), (weight * x).sum()]) / weight.sum()
    return result


def chroma_error(planes: list[Array], siting: str, layout: Layout, scale: int) -> float:
    """How far the spot's red is from its luma, in luma samples of the input."""
    y, x = np.mgrid[0 : scale * HEIGHT, 0 : scale * WIDTH]
    places = chroma_grid(siting, layout, scale)
    luma, red = centroid(planes[0], y, x), centroid(planes[2], *places)
    return float(np.abs(luma - red).max()) / scale


def error_in(path: Path, siting: str, scale: int = 2) -> float:
    with av.open(str(path)) as clip:
        frame = next(clip.decode(video=0))
        layout = layout_of(frame.format.name)
        unit = 1 << (layout.bits - 8)
        planes = [view.astype(float) / unit for view in frame_planes(frame, layout)]
    return chroma_error(planes, siting, layout, scale)


def siting_of(path: Path) -> str | None:
    with av.open(str(path)) as clip:
        return read_side_data(clip.streams.video[0]).siting


@pytest.mark.parametrize("siting", sorted(SITINGS))
@pytest.mark.parametrize(
    ("codec", "suffix", "encoder", "pix_fmt"),
    [
        ("libx264", ".mp4", FINE, "yuv420p"),
        ("libx264", ".mp4", EncoderSettings("libx265", 4, "ultrafast"), "yuv420p10le"),
        ("libx265", ".mkv", EncoderSettings("ffv1"), "yuv420p"),
        ("ffv1", ".mkv", FINE, "yuv422p"),
        ("libvpx-vp9", ".mkv", EncoderSettings("mpeg4", None, options=(("qmax", "2"),)), "yuv420p"),
    ],
)
def test_chroma_stays_on_its_luma_and_the_tag_is_kept(
    tmp_path: Path, codec: str, suffix: str, encoder: EncoderSettings, pix_fmt: str, siting: str
) -> None:
    source, target = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    write_spot(source, siting, codec=codec, pix_fmt=pix_fmt)
    assert siting_of(source) == siting
    run(source, target, encoder=encoder)
    assert siting_of(target) == siting
    assert error_in(target, siting) < 0.1


@pytest.mark.parametrize(
    ("colour", "siting"), [("420jpeg", "center"), ("420mpeg2", "left"), ("420paldv", "topleft")]
)
@pytest.mark.parametrize("scale", [2, 4])
def test_y4m_says_where_chroma_sits(tmp_path: Path, colour: str, siting: str, scale: int) -> None:
    sink = io.BytesIO()
    upscale_video(io.BytesIO(y4m_spot(siting, colour)), sink, enlarge(scale), scale=scale)
    header, _, rest = sink.getvalue().partition(b"\n")
    assert f" C{colour} ".encode() in header
    size = scale * scale * HEIGHT * WIDTH
    samples = np.frombuffer(rest, np.uint8, count=size * 3 // 2, offset=len(b"FRAME\n")).astype(float)
    small = (scale * HEIGHT // 2, scale * WIDTH // 2)
    planes = [samples[:size].reshape(scale * HEIGHT, -1)]
    planes += [samples[at : at + size // 4].reshape(small) for at in (size, size * 5 // 4)]
    assert chroma_error(planes, siting, layout_of("yuv420p"), scale) < 0.1
    run(io.BytesIO(y4m_spot(siting, colour)), tmp_path / "out.mkv", encoder=FINE)
    assert siting_of(tmp_path / "out.mkv") == siting
    assert error_in(tmp_path / "out.mkv", siting) < 0.1


def test_a_siting_that_y4m_has_no_word_for_becomes_one_it_has(tmp_path: Path) -> None:
    sink = io.BytesIO()
    upscale_video(write_spot(tmp_path / "in.mp4", "top"), sink, enlarge(2), scale=2)
    header, _, rest = sink.getvalue().partition(b"\n")
    assert b" C420mpeg2 " in header
    size = 4 * HEIGHT * WIDTH
    samples = np.frombuffer(rest, np.uint8, count=size * 3 // 2, offset=len(b"FRAME\n")).astype(float)
    planes = [samples[:size].reshape(2 * HEIGHT, -1)]
    planes += [samples[at : at + size // 4].reshape(HEIGHT, WIDTH) for at in (size, size * 5 // 4)]
    assert chroma_error(planes, "left", layout_of("yuv420p"), 2) < 0.1


def test_the_user_may_know_better_than_the_tag(tmp_path: Path) -> None:
    source, target = tmp_path / "in.mkv", tmp_path / "out.mkv"
    write_spot(source, "topleft", codec="ffv1", said="center")
    run(source, target, encoder=FINE, chroma_siting="topleft")
    assert siting_of(target) == "topleft"
    assert error_in(target, "topleft") < 0.1


def test_a_stream_that_says_nothing_is_read_as_before(tmp_path: Path) -> None:
    source = write_spot(tmp_path / "in.mkv", "left", codec="ffv1", said="unspecified")
    with VideoReader(source) as reader:
        assert reader.info.side.siting is None
        assert reader.info.coding.siting == "left"
    run(source, tmp_path / "out.mkv", encoder=EncoderSettings("ffv1"))
    assert siting_of(tmp_path / "out.mkv") is None


# ---------------------------------------------------------------------------------------------------------
# Panoramas, stereo, cropping


def number(element: int, value: bytes) -> bytes:
    raw = element.to_bytes((element.bit_length() + 7) // 8, "big")
    return raw + bytes([0x80 | len(value)]) + value


#: Matroska's Projection: type 1 equirectangular (with its private data), 2 cube map; pose in degrees
EQUIRECTANGULAR = number(0x7671, b"\1") + number(0x7672, bytes(20))
TURNED = EQUIRECTANGULAR + number(0x7673, struct.pack(">f", 30)) + number(0x7674, struct.pack(">f", -10))
CUBE_MAP = number(0x7671, b"\2") + number(0x7672, bytes(12))


def write_described(path: Path, side: StreamSideData, codec: str = "libx264") -> Path:
    """A clip with side data: written as Matroska, described, and remuxed to the container of ``path``."""
    plain = write_spot(path.with_name("plain.mkv"), "left", codec=codec)
    described = io.BytesIO(with_side_data(plain.read_bytes(), side))
    container = {".mkv": "matroska", ".webm": "webm"}.get(path.suffix, path.suffix[1:])
    loose = {"strict": "unofficial"}
    with av.open(described) as clip, av.open(str(path), "w", container, container_options=loose) as out:
        new = out.add_stream_from_template(clip.streams.video[0], opaque=True)
        for packet in clip.demux(video=0):
            if packet.size:
                packet.stream = new
                out.mux(packet)
    plain.unlink()
    return path


def side_of(path: Path) -> StreamSideData:
    with av.open(str(path)) as clip:
        return read_side_data(clip.streams.video[0])


@pytest.mark.parametrize("to", [".mkv", ".mp4", ".mov"])
@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize("projection", [EQUIRECTANGULAR, TURNED, CUBE_MAP], ids=["plain", "turned", "cube"])
@pytest.mark.parametrize("encoder", [FINE, EncoderSettings("libx265", 8, "ultrafast")], ids=["h264", "hevc"])
def test_a_panorama_stays_one(
    tmp_path: Path, suffix: str, to: str, projection: bytes, encoder: EncoderSettings
) -> None:
    source = write_described(tmp_path / f"in{suffix}", StreamSideData(projection=projection))
    before = side_of(source)
    assert before.projection
    report = run(source, tmp_path / f"out{to}", encoder=encoder)
    kept = side_of(tmp_path / f"out{to}").projection == before.projection
    assert report.left_out == ([] if kept else ["spherical projection (360 degree video)"])
    assert kept or to == ".mov"
    data = (tmp_path / f"out{to}").read_bytes()
    assert (b"sv3d" in data) == (to == ".mp4")  # Google's form
    if to == ".mov":  # Apple's, which has neither a direction nor cube maps
        plain = before.projection == EQUIRECTANGULAR
        assert (kept, b"prji" in data and b"vexu" in data) == (plain, projection != CUBE_MAP)
    with av.open(str(tmp_path / f"out{to}")) as clip:
        assert sum(1 for _ in clip.decode(video=0)) == 3


@pytest.mark.parametrize("mode", [1, 2, 3, 11])  # side by side, top over bottom; either eye first
@pytest.mark.parametrize("to", [".mkv", ".mp4", ".mov"])
@pytest.mark.parametrize("projection", [b"", EQUIRECTANGULAR], ids=["flat", "panorama"])
def test_stereo_is_kept_or_named(tmp_path: Path, mode: int, to: str, projection: bytes) -> None:
    source = write_described(tmp_path / "in.mkv", StreamSideData(None, projection, mode))
    assert side_of(source).stereo_mode == mode
    report = run(source, tmp_path / f"out{to}", encoder=FINE)
    kept = side_of(tmp_path / f"out{to}").stereo_mode == mode
    assert report.left_out == ([] if kept else [f"stereo layout (Matroska's StereoMode {mode})"])
    assert kept == (to == ".mkv" or (to == ".mp4" and mode in (1, 3)))
    assert side_of(tmp_path / f"out{to}").projection == projection


def test_panoramas_and_stereo_in_webm(tmp_path: Path) -> None:
    wanted = StreamSideData(None, EQUIRECTANGULAR, 3)
    source = write_described(tmp_path / "in.webm", wanted, codec="libvpx-vp9")
    encoder = EncoderSettings("libvpx-vp9", options=(("cpu-used", "8"),))
    report = run(source, tmp_path / "out.webm", encoder=encoder)
    assert report.left_out == []
    assert side_of(tmp_path / "out.webm") == side_of(source)


@pytest.mark.parametrize("to", [".mkv", ".mp4", ".mov"])
@pytest.mark.parametrize("scale", [2, 4])
def test_cropping_grows_with_the_picture_or_is_named(tmp_path: Path, to: str, scale: int) -> None:
    crop = (("top", 2), ("bottom", 4), ("left", 6), ("right", 8))
    source = write_described(tmp_path / "in.mkv", StreamSideData(crop_px=crop))
    assert dict(side_of(source).crop_px) == dict(crop)
    report = run(source, tmp_path / f"out{to}", scale=scale, encoder=FINE)
    grown = {side: scale * count for side, count in crop}
    kept = dict(side_of(tmp_path / f"out{to}").crop_px) == grown
    assert kept or "cropping of the picture" in report.left_out[0]
    assert kept or to != ".mkv"


def test_side_data_is_kept_over_a_resume(tmp_path: Path) -> None:
    source = write_described(tmp_path / "in.mkv", StreamSideData(None, EQUIRECTANGULAR, 1))
    target = tmp_path / "out.mp4"
    calls = 0

    def upscale(rgb: Array) -> Array:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError
        return enlarge()(rgb)

    options = VideoOptions(encoder=FINE, segment_frames=1)
    with pytest.raises(RuntimeError):
        upscale_video(source, target, upscale, scale=2, options=options)
    options = VideoOptions(encoder=FINE, segment_frames=1, resume=True)
    report = upscale_video(source, target, enlarge(), scale=2, options=options)
    assert (report.frames_resumed > 0, report.left_out) == (True, [])
    assert (side_of(target).projection, side_of(target).stereo_mode) == (EQUIRECTANGULAR, 1)


@pytest.mark.parametrize("mode", [4, 9, 13])
def test_a_stereo_layout_that_webm_lacks_is_named_and_stops_nothing(tmp_path: Path, mode: int) -> None:
    source = write_described(tmp_path / "in.mkv", StreamSideData(stereo_mode=mode))
    encoder = EncoderSettings("libvpx-vp9", options=(("cpu-used", "8"),))
    report = run(source, tmp_path / "out.webm", encoder=encoder)
    kept = side_of(tmp_path / "out.webm").stereo_mode == mode
    assert report.left_out == ([] if kept else [f"stereo layout (Matroska's StereoMode {mode})"])
    assert kept == (mode != 13)


def test_a_codec_without_a_header_has_its_panorama_in_mp4(tmp_path: Path) -> None:
    source = write_described(tmp_path / "in.mkv", StreamSideData(None, EQUIRECTANGULAR, 3))
    encoder = EncoderSettings("libvpx-vp9", options=(("cpu-used", "8"),))
    assert run(source, tmp_path / "out.mp4", encoder=encoder).left_out == []
    assert side_of(tmp_path / "out.mp4").projection == EQUIRECTANGULAR
    assert side_of(tmp_path / "out.mp4").stereo_mode == 3


def test_a_turned_flat_picture_is_no_panorama(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mp4", rotation=90)
    assert side_of(source).projection == b""
    assert run(source, tmp_path / "out.mp4").left_out == []
