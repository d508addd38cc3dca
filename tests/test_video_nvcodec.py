"""`--hwaccel`: NVDEC and NVENC through PyNvVideoCodec, on stand-ins that compute with FFmpeg.

What these tests cannot say is that the real codecs behave like the stand-ins; the `gpu` test at the end does.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

av = pytest.importorskip("av")

from fake_nvcodec import Array, Faults, install, make_cupy  # noqa: E402
from helpers import make_engine_dir  # noqa: E402
from video_clips import damage, enlarge, packets, run, shown, write_clip  # noqa: E402

from yonos_trt.cli.main import cli  # noqa: E402
from yonos_trt.cuda.probe import Device, DriverFacts  # noqa: E402
from yonos_trt.errors import ConfigError, EngineDeviceError, InputError, MissingExtraError  # noqa: E402
from yonos_trt.video import VideoOptions, VideoReport, upscale_video  # noqa: E402
from yonos_trt.video.format import EncoderSettings  # noqa: E402
from yonos_trt.video.nvidia import nvcodec as nvcodec_module  # noqa: E402
from yonos_trt.video.read import VideoReader  # noqa: E402
from yonos_trt.video.segments import work_folder  # noqa: E402

LOSSLESS = EncoderSettings("ffv1", None)
H264 = EncoderSettings("h264_nvenc", 0)  # a constant quantiser of 0 is lossless in the stand-in
HEVC = EncoderSettings("hevc_nvenc", 0)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    """A machine with two GPUs and both packages, which work until told otherwise."""
    return install(monkeypatch)


def on_gpu(
    source: Path, target: Path, encoder: EncoderSettings = H264, *, hwaccel: str = "cuda", **options: Any
) -> VideoReport:
    """Upscale with an exact enlarger that takes arrays of the device only."""

    def upscale(rgb: Any) -> Any:
        assert type(rgb) is (np.ndarray if hwaccel == "none" else Array)
        return enlarge()(rgb)

    progress = options.pop("progress", None)
    job = VideoOptions(encoder=encoder, hwaccel=hwaccel, **options)
    return upscale_video(source, target, upscale, scale=2, options=job, progress=progress)


# ---------------------------------------------------------------------------------------------------------
# What is kept


CLIPS: dict[str, dict[str, Any]] = {
    "h264": {},
    "full range, aspect": {"tags": (2, 9, 14, 9), "aspect": Fraction(4, 3)},
    "hevc 10 bit": {"codec": "libx265", "pix_fmt": "yuv420p10le", "tags": (1, 9, 16, 9)},
}


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_frames_times_tags_and_sound_come_through_the_device(
    tmp_path: Path, faults: Faults, clip: str, suffix: str
) -> None:
    """B frames in and out, irregular times, codecs that hold frames back, surfaces that are used again."""
    times = [0, 512, 900, 1500, 2048, 2560, 3333, 4000, 4608, 5120, 6000]
    source = write_clip(tmp_path / f"in{suffix}", times=times, audio=True, rotation=90, **CLIPS[clip])
    encoder = HEVC if "hevc" in clip else H264
    report = on_gpu(source, tmp_path / f"gpu{suffix}", encoder, segment_frames=4)
    assert report.on_device == ["decode", "encode"]
    assert report.frames == faults.decoded == len(times)
    assert packets(tmp_path / f"gpu{suffix}", "audio") == packets(source, "audio")
    # the same samples as the host's path with a lossless encoder
    reference = tmp_path / "host.mkv"
    on_gpu(source, reference, LOSSLESS, hwaccel="none")
    assert [h for _, h in shown(tmp_path / f"gpu{suffix}")] == [h for _, h in shown(reference)]
    assert [t for t, _ in shown(tmp_path / f"gpu{suffix}")] == [t for t, _ in shown(source)]
    with VideoReader(source) as before, VideoReader(tmp_path / f"gpu{suffix}") as after:
        assert after.info.tags == before.info.tags
        assert after.info.sample_aspect_ratio == before.info.sample_aspect_ratio
        assert after.info.display_matrix == before.info.display_matrix
        assert after.info.layout == before.info.layout
        assert after.info.codec == ("hevc" if "hevc" in clip else "h264")


def test_av1_comes_through_the_device(tmp_path: Path, faults: Faults) -> None:
    """Its header stands apart from the packets in the file, and its quantisers go to 255."""
    source = write_clip(
        tmp_path / "in.mp4",
        frames=9,
        size=(64, 96),
        codec="libsvtav1",
        pix_fmt="yuv420p10le",
        tags=(1, 9, 16, 9),
        options={"preset": "10", "crf": "20"},
    )
    on_gpu(source, tmp_path / "decoded.mkv", LOSSLESS)
    on_gpu(source, tmp_path / "host.mkv", LOSSLESS, hwaccel="none")
    assert shown(tmp_path / "decoded.mkv") == shown(tmp_path / "host.mkv")
    on_gpu(source, tmp_path / "out.mp4", EncoderSettings("av1_nvenc", 2), segment_frames=4)
    assert faults.opened[0]["constqp"] == "10"
    assert times(tmp_path / "out.mp4") == times(source)
    with VideoReader(tmp_path / "out.mp4") as after, VideoReader(tmp_path / "host.mkv") as host:
        assert after.info.tags == host.info.tags
        for one, other in zip(after.frames(), host.frames(), strict=True):
            assert one.rgb is not None
            assert other.rgb is not None
            assert np.abs(one.rgb.astype(float) - other.rgb).mean() / 65535 < 0.02


@pytest.mark.parametrize("siting", ["left", "center", "topleft"])
def test_chroma_siting_is_that_of_the_host_and_is_written(
    tmp_path: Path, faults: Faults, siting: str
) -> None:
    source = write_clip(tmp_path / "in.mkv", frames=3)
    on_gpu(source, tmp_path / "gpu.mkv", chroma_siting=siting)
    on_gpu(source, tmp_path / "host.mkv", LOSSLESS, hwaccel="none", chroma_siting=siting)
    assert shown(tmp_path / "gpu.mkv") == shown(tmp_path / "host.mkv")
    with av.open(str(tmp_path / "gpu.mkv")) as clip:
        frame = next(clip.decode(video=0))
        # AVChromaLocation: 0 unspecified (which means left), 2 center, 3 top left
        written = int(getattr(frame, "chroma_location", {"left": 0, "center": 2, "topleft": 3}[siting]))
    assert written in {"left": (0, 1), "center": (2,), "topleft": (3,)}[siting]


def test_what_was_assumed_of_an_untagged_clip_is_said_in_the_output(tmp_path: Path, faults: Faults) -> None:
    source = write_clip(tmp_path / "in.mkv", frames=2, tags=None)
    on_gpu(source, tmp_path / "out.mkv")
    with VideoReader(tmp_path / "out.mkv") as after:
        assert (after.info.tags.matrix, after.info.tags.primaries, after.info.tags.color_range) == (6, 2, 1)


def test_decoding_on_the_device_goes_with_any_encoder_of_the_host(tmp_path: Path, faults: Faults) -> None:
    source = write_clip(tmp_path / "in.mkv", frames=7)
    report = on_gpu(source, tmp_path / "gpu.mkv", LOSSLESS)
    assert report.on_device == ["decode"]
    assert not faults.opened
    on_gpu(source, tmp_path / "host.mkv", LOSSLESS, hwaccel="none")
    assert shown(tmp_path / "gpu.mkv") == shown(tmp_path / "host.mkv")


def test_a_part_of_a_clip_begins_and_ends_at_the_same_frames(tmp_path: Path, faults: Faults) -> None:
    source = write_clip(tmp_path / "in.mkv", frames=30)
    for name, hwaccel in (("gpu.mkv", "cuda"), ("host.mkv", "none")):
        on_gpu(source, tmp_path / name, LOSSLESS, hwaccel=hwaccel, start_s=0.5, end_s=0.9)
    assert shown(tmp_path / "gpu.mkv") == shown(tmp_path / "host.mkv")
    assert len(shown(tmp_path / "gpu.mkv")) == 10


def test_the_chosen_gpu_does_the_work(tmp_path: Path, faults: Faults) -> None:
    faults.device = 1
    source = write_clip(tmp_path / "in.mkv", frames=3)
    on_gpu(source, tmp_path / "out.mkv", hwaccel_device=1)
    assert set(sys.modules["cupy"].used) == {1}  # type: ignore[attr-defined]
    assert {entry["gpu_id"] for entry in faults.opened} == {1}


def test_a_pipe_of_y4m_can_be_fed_from_the_device(tmp_path: Path, faults: Faults) -> None:
    source = write_clip(tmp_path / "in.mkv", frames=4)
    for name, hwaccel in (("gpu.y4m", "cuda"), ("host.y4m", "none")):
        with (tmp_path / name).open("wb") as sink:
            job = VideoOptions(hwaccel=hwaccel)
            upscale_video(source, sink, enlarge(), scale=2, options=job)
    assert (tmp_path / "gpu.y4m").read_bytes() == (tmp_path / "host.y4m").read_bytes()


# ---------------------------------------------------------------------------------------------------------
# The encoder's options


def test_crf_is_the_constant_quantiser_unless_another_rate_control_is_chosen(
    tmp_path: Path, faults: Faults
) -> None:
    source = write_clip(tmp_path / "in.mkv", frames=2)
    on_gpu(source, tmp_path / "a.mkv", EncoderSettings("h264_nvenc", 16, preset="p6"))
    chosen = (("rc", "vbr"), ("bitrate", "4000000"))
    on_gpu(source, tmp_path / "b.mkv", EncoderSettings("h264_nvenc", 16, options=chosen))
    first, second = faults.opened[0], faults.opened[-1]
    assert (first["rc"], first["constqp"], first["preset"], first["codec"]) == ("constqp", "16", "P6", "h264")
    assert (second["rc"], second["bitrate"], second["preset"]) == ("vbr", "4000000", "P4")
    assert "constqp" not in second


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (EncoderSettings("h264_nvenc", 16, preset="medium"), "medium is not one of NVENC's: p1, p2"),
        (EncoderSettings("h264_nvenc", 16, options=(("tune", "film"),)), "does not know the options tune"),
    ],
)
def test_options_nvenc_does_not_have_are_refused(
    tmp_path: Path, faults: Faults, settings: EncoderSettings, message: str
) -> None:
    source = write_clip(tmp_path / "in.mkv", frames=2)
    with pytest.raises(ConfigError, match=message):
        on_gpu(source, tmp_path / "out.mkv", settings)
    assert not (tmp_path / "out.mkv").exists()


# ---------------------------------------------------------------------------------------------------------
# What does not fit: refused by name, or by way of the host


OBSTACLES: dict[str, tuple[dict[str, Any], EncoderSettings, dict[str, Any], str]] = {
    "codec": ({"codec": "ffv1"}, LOSSLESS, {}, "ffv1 is not among the codecs"),
    "4:4:4": ({"pix_fmt": "yuv444p"}, LOSSLESS, {}, "yuv444p is not among the formats"),
    "4:2:2": ({"pix_fmt": "yuv422p"}, LOSSLESS, {}, "yuv422p is not among the formats"),
    "interlaced": ({"interlaced": True}, LOSSLESS, {"force": True}, "interlaced"),
    "stabilize": ({}, LOSSLESS, {"stabilize": True}, "--stabilize looks at pictures in host memory"),
    "nvenc format": ({}, EncoderSettings("h264_nvenc", 0, pix_fmt="yuv444p"), {}, "h264 in yuv444p"),
    "10-bit h264": ({"pix_fmt": "yuv420p10le"}, H264, {}, "h264 in yuv420p10le is not among the formats"),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_the_device_cannot_do_is_refused_by_name(tmp_path: Path, faults: Faults, name: str) -> None:
    clip, encoder, options, message = OBSTACLES[name]
    source = write_clip(tmp_path / "in.mkv", frames=4, **clip)
    with pytest.raises(ConfigError, match=message):
        on_gpu(source, tmp_path / "out.mkv", encoder, **options)
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("name", ["codec", "4:4:4", "4:2:2", "interlaced"])
def test_auto_takes_the_way_through_the_host_and_says_why(
    tmp_path: Path, faults: Faults, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    clip, encoder, options, message = OBSTACLES[name]
    source = write_clip(tmp_path / "in.mkv", frames=4, **clip)
    job = VideoOptions(encoder=encoder, hwaccel="auto", **options)
    with caplog.at_level(logging.WARNING):
        report = upscale_video(source, tmp_path / "out.mkv", enlarge(), scale=2, options=job)
    assert report.on_device == []
    assert report.frames == 4
    assert f"goes through host memory: {source}" in caplog.text or message in caplog.text
    run(source, tmp_path / "host.mkv", encoder=encoder, **options)
    assert shown(tmp_path / "out.mkv") == shown(tmp_path / "host.mkv")


@pytest.mark.parametrize(
    ("kind", "caps", "message"),
    [
        ("decoder_caps", {"width_max": 32}, "NVDEC of GPU 0 takes h264 of 16 x 48 to 4096 x 32, not 48 x 64"),
        ("decoder_caps", {"width_max": 0}, "NVDEC of GPU 0 has no h264"),
        ("encoder_caps", {"height_max": 90}, "NVENC of GPU 0 takes h264 of .*, not 96 x 128"),
        ("encoder_caps", {"width_max": 0, "height_max": 0}, "NVENC of GPU 0 has no h264"),
    ],
)
def test_the_gpu_is_asked_what_it_can_do(
    tmp_path: Path, faults: Faults, kind: str, caps: dict[str, int], message: str
) -> None:
    setattr(faults, kind, caps)
    source = write_clip(tmp_path / "in.mkv", frames=2)
    with pytest.raises(ConfigError, match=message):
        on_gpu(source, tmp_path / "out.mkv")
    assert not (tmp_path / "out.mkv").exists()


def on_gpu_if_possible(source: Path, target: Path) -> VideoReport:
    job = VideoOptions(encoder=LOSSLESS, hwaccel="auto")
    return upscale_video(source, target, enlarge(), scale=2, options=job)


def test_auto_uses_the_device_where_it_can(tmp_path: Path, faults: Faults) -> None:
    source = write_clip(tmp_path / "in.mkv", frames=2)
    assert on_gpu_if_possible(source, tmp_path / "a.mkv").on_device == ["decode"]
    faults.decoder_caps = {"height_max": 0}
    assert on_gpu_if_possible(source, tmp_path / "b.mkv").on_device == []
    assert shown(tmp_path / "a.mkv") == shown(tmp_path / "b.mkv")


def test_a_gpu_without_10_bit_says_so(tmp_path: Path, faults: Faults) -> None:
    faults.encoder_caps = {"support_10bit_encode": 0}
    source = write_clip(tmp_path / "in.mkv", frames=8, codec="libx265", pix_fmt="yuv420p10le")
    with pytest.raises(ConfigError, match="NVENC of GPU 0 has no 10-bit hevc"):
        on_gpu(source, tmp_path / "out.mkv", HEVC)


def test_mastering_data_is_not_dropped_silently(tmp_path: Path, faults: Faults) -> None:
    master = "G(8500,39850)B(6550,2300)R(35400,14600)WP(15635,16450)L(10000000,50)"
    params = f"log-level=none:master-display={master}:max-cll=1000,400:hdr10=1"
    source = write_clip(
        tmp_path / "in.mkv",
        frames=8,
        codec="libx265",
        pix_fmt="yuv420p10le",
        tags=(1, 9, 16, 9),
        options={"x265-params": params},
    )
    with pytest.raises(ConfigError, match="mastering metadata"):
        on_gpu(source, tmp_path / "out.mkv", HEVC)
    assert on_gpu(source, tmp_path / "out.mkv", HEVC, force=True).frames == 8


def test_a_pipe_cannot_be_decoded_on_the_device(tmp_path: Path, faults: Faults) -> None:
    source = write_clip(tmp_path / "in.mkv", frames=2)
    with (tmp_path / "in.y4m").open("wb") as sink:
        run(source, sink, scale=2)
    with (tmp_path / "in.y4m").open("rb") as pipe, pytest.raises(ConfigError, match="the input is a pipe"):
        upscale_video(pipe, tmp_path / "o.mkv", enlarge(), scale=2, options=VideoOptions(hwaccel="cuda"))


# ---------------------------------------------------------------------------------------------------------
# Packages and GPUs that are not there


@pytest.mark.parametrize("package", ["PyNvVideoCodec", "cupy"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    tmp_path: Path, faults: Faults, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.delitem(sys.modules, package)
    monkeypatch.setattr(nvcodec_module.importlib.util, "find_spec", lambda name: None)
    source = write_clip(tmp_path / "in.mkv", frames=2)
    with pytest.raises(MissingExtraError, match=rf"'{package}'.*'\.\[nvcodec\]'"):
        on_gpu(source, tmp_path / "out.mkv")
    assert on_gpu_if_possible(source, tmp_path / "out.mkv").on_device == []


def test_a_package_that_does_not_load_gives_its_reason(
    tmp_path: Path, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the real one does in a container that was started without the driver's video part."""
    (tmp_path / "PyNvVideoCodec.py").write_text(
        'raise RuntimeError("libnvidia-encode.so.1: cannot open shared object file\\n\\n=== STEPS ===")'
    )
    monkeypatch.delitem(sys.modules, "PyNvVideoCodec")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match=r"\(libnvidia-encode.so.1: cannot open .* file\)"):
        nvcodec_module.open_nvidia(0)


@pytest.mark.parametrize(
    ("driver", "message"),
    [
        (DriverFacts(None, (), "no driver library: libcuda.so.1"), "needs GPU 0, found: no driver library"),
        (DriverFacts("13.0", (Device(1, "x", "9.0", 1),), ""), "needs GPU 0, found: devices 1"),
    ],
)
def test_a_machine_without_that_gpu_says_so(
    tmp_path: Path, faults: Faults, monkeypatch: pytest.MonkeyPatch, driver: DriverFacts, message: str
) -> None:
    monkeypatch.setattr(nvcodec_module, "probe_driver", lambda: driver)
    source = write_clip(tmp_path / "in.mkv", frames=2)
    with pytest.raises(EngineDeviceError, match=message):
        on_gpu(source, tmp_path / "out.mkv")
    assert on_gpu_if_possible(source, tmp_path / "out.mkv").frames == 2


def test_the_command_needs_networks_that_run_on_the_device(tmp_path: Path, faults: Faults) -> None:
    engine_dir = make_engine_dir(tmp_path / "engine")
    source = write_clip(tmp_path / "in.mkv", frames=2)

    def call(*arguments: object) -> Any:
        command = ["video", "-i", source, "-m", engine_dir, "--threads", 1, *arguments]
        return CliRunner().invoke(cli, [str(part) for part in command])

    refused = call("--hwaccel", "cuda")
    assert refused.exit_code == 2
    assert "OrtBackend runs the networks and reads host memory" in refused.output
    assert "--runtime tensorrt" in refused.output
    auto = call("--hwaccel", "auto", "--progress", "json", "--preset", "ultrafast")
    assert auto.exit_code == 0, auto.output
    finish = next(e for e in map(json.loads, auto.stderr.splitlines()) if e["event"] == "finish")
    assert (finish["frames"], finish["on_device"]) == (2, [])


# ---------------------------------------------------------------------------------------------------------
# Trouble on the way


def times(path: Path) -> list[float]:
    return [when for when, _ in shown(path)]


def test_an_error_of_the_decoder_names_the_time_and_keeps_what_is_done(
    tmp_path: Path, faults: Faults
) -> None:
    source = write_clip(tmp_path / "in.mkv", frames=20, options={"bf": "0"})
    faults.decode_error_at = 11
    with pytest.raises(InputError, match=r"the frame at 0\.\d+ s cannot be decoded \(cuvidParseVideoData"):
        on_gpu(source, tmp_path / "out.mkv", segment_frames=4)
    assert not (tmp_path / "out.mkv").exists()
    assert (work_folder(tmp_path / "out.mkv") / "segment-000000").exists()
    faults.decode_error_at = None
    report = on_gpu(source, tmp_path / "out.mkv", segment_frames=4, resume=True)
    assert report.frames == 20
    assert report.frames_resumed >= 4


def test_a_frame_that_nvdec_does_not_deliver_is_an_error_or_a_counted_repetition(
    tmp_path: Path, faults: Faults
) -> None:
    source = write_clip(tmp_path / "in.mkv", frames=9)
    faults.lost_frames = {round(0.2 * 1000)}  # Matroska counts milliseconds
    with pytest.raises(InputError, match=r"the frame at 0\.200 s cannot be decoded"):
        on_gpu(source, tmp_path / "out.mkv")
    report = on_gpu(source, tmp_path / "out.mkv", on_error="repeat", overwrite=True)
    assert report.repeated_s == [0.2]
    assert report.frames == 9
    assert times(tmp_path / "out.mkv") == times(source)
    hashes = [h for _, h in shown(tmp_path / "out.mkv")]
    assert hashes[5] == hashes[4]


def test_a_damaged_packet_is_never_a_silent_loss(tmp_path: Path, faults: Faults) -> None:
    source = write_clip(tmp_path / "whole.mkv", frames=9, options={"bf": "0"})
    when = damage(source, tmp_path / "in.mkv", 4)
    report = on_gpu(tmp_path / "in.mkv", tmp_path / "out.mkv", on_error="repeat")
    assert report.frames == 9
    assert times(tmp_path / "out.mkv") == times(source)
    assert report.repeated_s == [] or report.repeated_s[0] == when


def test_a_surface_that_cannot_be_read_is_named(tmp_path: Path, faults: Faults) -> None:
    faults.surface_error = True
    source = write_clip(tmp_path / "in.mkv", frames=3)
    with pytest.raises(InputError, match=r"the surface for yuv420p cannot be read.*--hwaccel none"):
        on_gpu(source, tmp_path / "out.mkv")


def test_an_encoder_that_fails_keeps_the_finished_segments(tmp_path: Path, faults: Faults) -> None:
    source = write_clip(tmp_path / "in.mkv", frames=12)
    faults.encode_error_at = 7
    with pytest.raises(InputError, match=r"NVENC failed after 3 frames of a segment.*--resume"):
        on_gpu(source, tmp_path / "out.mkv", segment_frames=4)
    assert not (tmp_path / "out.mkv").exists()
    assert [p.name for p in work_folder(tmp_path / "out.mkv").glob("segment-*")] == ["segment-000000"]
    faults.encode_error_at = None
    assert on_gpu(source, tmp_path / "out.mkv", segment_frames=4, resume=True).frames_resumed == 4


def test_a_packet_that_nvenc_keeps_back_is_noticed(tmp_path: Path, faults: Faults) -> None:
    source = write_clip(tmp_path / "in.mkv", frames=6)
    faults.lost_packets = 1
    with pytest.raises(InputError, match="NVENC gave 5 packets for 6 frames"):
        on_gpu(source, tmp_path / "out.mkv")
    assert [p.name for p in tmp_path.iterdir()] == ["in.mkv"]


def stopping_after(count: int) -> Any:
    def progress(done: int, total: int | None) -> None:
        if done >= count:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("stops", [[3], [5, 9], [1, 2, 13]])
def test_a_resumed_job_equals_an_uninterrupted_one(tmp_path: Path, faults: Faults, stops: list[int]) -> None:
    source = write_clip(tmp_path / "in.mkv", frames=14, audio=True)
    on_gpu(source, tmp_path / "whole.mkv", segment_frames=4)
    target = tmp_path / "parts.mkv"
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            on_gpu(source, target, segment_frames=4, resume=True, progress=stopping_after(stop))
        assert not target.exists()
    report = on_gpu(source, target, segment_frames=4, resume=True)
    assert report.frames == 14
    assert report.frames_resumed in (stops[-1] // 4 * 4, stops[-1] // 4 * 4 - 4)  # one may be on its way
    assert shown(target) == shown(tmp_path / "whole.mkv")
    assert packets(target, "video") == packets(tmp_path / "whole.mkv", "video")


KILLED = """
import os, signal, sys
import pytest
from fake_nvcodec import install
from yonos_trt.video import VideoOptions, upscale_video
from yonos_trt.video.format import EncoderSettings
source, target, frames = sys.argv[1:]
install(pytest.MonkeyPatch())
seen = 0
def enlarge(rgb):
    global seen
    seen += 1
    if seen == int(frames):
        os.kill(os.getpid(), signal.SIGKILL)
    return rgb.repeat(2, axis=0).repeat(2, axis=1)
job = VideoOptions(encoder=EncoderSettings("h264_nvenc", 0), hwaccel="cuda", segment_frames=4, resume=True)
upscale_video(source, target, enlarge, scale=2, options=job)
"""


def test_a_killed_process_is_resumed_with_the_same_bits(tmp_path: Path, faults: Faults) -> None:
    """SIGKILL while segment 2 is open: finished segments are there, and no file with the output's name."""
    source = write_clip(tmp_path / "in.mkv", frames=14)
    on_gpu(source, tmp_path / "whole.mkv", segment_frames=4)
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests), str(tests.parent)])
    command = [sys.executable, "-c", KILLED, str(source), str(tmp_path / "out.mkv"), "12"]
    killed = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "out.mkv").exists()
    report = on_gpu(source, tmp_path / "out.mkv", segment_frames=4, resume=True)
    assert report.frames_resumed in (4, 8)
    assert shown(tmp_path / "out.mkv") == shown(tmp_path / "whole.mkv")
    assert packets(tmp_path / "out.mkv", "video") == packets(tmp_path / "whole.mkv", "video")


def test_a_job_of_the_device_is_not_resumed_on_the_host(tmp_path: Path, faults: Faults) -> None:
    """Two decoders may round differently: a file is made by one."""
    source = write_clip(tmp_path / "in.mkv", frames=14)
    with pytest.raises(KeyboardInterrupt):
        on_gpu(source, tmp_path / "o.mkv", LOSSLESS, segment_frames=4, progress=stopping_after(9))
    with pytest.raises(ConfigError, match="begun with another hwaccel"):
        on_gpu(source, tmp_path / "o.mkv", LOSSLESS, segment_frames=4, resume=True, hwaccel="none")


def test_an_early_end_stops_every_thread(tmp_path: Path, faults: Faults) -> None:
    source = write_clip(tmp_path / "in.mkv", frames=30)
    with pytest.raises(KeyboardInterrupt):
        on_gpu(source, tmp_path / "out.mkv", progress=stopping_after(2))
    assert not [t.name for t in threading.enumerate() if t.name.startswith("yonos")]
    assert faults.decoded < 30
    assert not (tmp_path / "out.mkv").exists()


# ---------------------------------------------------------------------------------------------------------
# The real packages


NAMES = """
import importlib.util, json, os, sys
sys.setdlopenflags(os.RTLD_LAZY)
spec = importlib.util.spec_from_file_location("_PyNvVideoCodec", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
packet = module.PacketData()
for name in ("bsl_data", "bsl", "pts", "dts", "duration", "key"):
    setattr(packet, name, 7)
    assert getattr(packet, name) == 7, name
packet.pts = -5
assert packet.pts == -5
params = module.NV_ENC_PIC_PARAMS()
params.inputTimeStamp = 3
assert params.inputTimeStamp == 3
for name in ("H264", "HEVC", "AV1"):
    assert name in module.cudaVideoCodec.__members__
assert "420" in module.cudaVideoChromaFormat.__members__
assert issubclass(module.PyNvVCException, Exception)
assert issubclass(module.PyNvVCExceptionUnsupported, Exception)
for owner, name in (
    (module.DecodedFrame, "getPTS"), (module.DecodedFrame, "__dlpack__"),
    (module.DecodedFrame, "__dlpack_device__"), (module.PyNvDecoder, "Decode"),
    (module.PyNvEncoder, "Encode"), (module.PyNvEncoder, "EndEncode"),
    (module.PyNvEncoder, "GetSequenceParams"),
):
    assert callable(getattr(owner, name)), name
documents = [module.CreateDecoder.__doc__, module.PyNvEncoder.Encode.__doc__, module.GetDecoderCaps.__doc__,
             module.GetEncoderCaps.__doc__, module.PyNvEncoder.__init__.__doc__]
print(json.dumps(documents))
"""


def test_the_names_are_those_of_the_real_package(tmp_path: Path) -> None:
    """Its extension module loads without a GPU where an empty libcuda.so.1 stands for the driver."""
    found = find_spec("PyNvVideoCodec")
    compiler = shutil.which("gcc")
    if found is None or found.origin is None or compiler is None:
        pytest.skip("PyNvVideoCodec is not installed, or there is no compiler")
    extension = max(Path(found.origin).parent.glob("PyNvVideoCodec_*.so"))
    (tmp_path / "none.c").write_text("int cuInit(unsigned flags) { (void)flags; return 100; }\n")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", "libcuda.so.1", "none.c"],
        cwd=tmp_path,
        check=True,
    )
    done = subprocess.run(
        [sys.executable, "-c", NAMES, str(extension)],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    decoder, encode, decoder_caps, encoder_caps, encoder = json.loads(done.stdout)
    for name in ("gpuid: int", "codec: ", "usedevicememory: bool"):
        assert name in decoder
    assert "frame: object, picParams: " in encode
    for key in ("'data'", "'timestamp'", "'picture_type'"):
        assert key in encode
    for name in ("gpuid: int", "codec: ", "chromaformat: ", "bitdepth: int"):
        assert name in decoder_caps
    assert "gpuid: int" in encoder_caps
    assert "codec: str" in encoder_caps
    # width, height, format, CUDA context, CUDA stream, host input, options
    assert (
        "arg0: int, arg1: int, arg2: str, arg3: int, arg4: int, arg5: bool, arg6: Dict[str, str]" in encoder
    )


def test_the_array_library_has_the_functions_that_are_called() -> None:
    """CuPy imports without a GPU; in a process of its own, as it looks for CUDA's libraries."""
    if find_spec("cupy") is None:
        pytest.skip("CuPy is not installed")
    stand_in = make_cupy()
    wanted = sorted(set(vars(stand_in)) - {"cuda", "used"}) + [f"cuda.{n}" for n in vars(stand_in.cuda)]
    code = "import sys, cupy, operator\nfor name in sys.argv[1:]: operator.attrgetter(name)(cupy)"
    done = subprocess.run([sys.executable, "-c", code, *wanted], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("clip", "encoder"),
    [({}, "h264_nvenc"), ({"codec": "libx265", "pix_fmt": "yuv420p10le"}, "hevc_nvenc")],
)
def test_a_clip_goes_through_the_real_codecs(tmp_path: Path, clip: dict[str, Any], encoder: str) -> None:
    cupy = pytest.importorskip("cupy")
    pytest.importorskip("PyNvVideoCodec", exc_type=(ImportError, RuntimeError))  # type: ignore[arg-type]
    source = write_clip(tmp_path / "in.mkv", frames=14, size=(192, 256), **clip)
    kinds: list[SimpleNamespace] = []

    def upscale(rgb: Any) -> Any:
        kinds.append(SimpleNamespace(device=isinstance(rgb, cupy.ndarray)))
        return cupy.ascontiguousarray(rgb.repeat(2, axis=0).repeat(2, axis=1))

    job = VideoOptions(encoder=EncoderSettings(encoder, 4), hwaccel="cuda", segment_frames=5)
    report = upscale_video(source, tmp_path / "gpu.mkv", upscale, scale=2, options=job)
    assert report.on_device == ["decode", "encode"]
    assert all(kind.device for kind in kinds)
    assert times(tmp_path / "gpu.mkv") == times(source)
    run(source, tmp_path / "host.mkv", encoder=LOSSLESS)
    with VideoReader(tmp_path / "gpu.mkv") as gpu, VideoReader(tmp_path / "host.mkv") as host:
        assert gpu.info.tags == host.info.tags
        peak = 255 if gpu.info.layout.bits == 8 else 65535
        for one, other in zip(gpu.frames(), host.frames(), strict=True):
            assert one.rgb is not None
            assert other.rgb is not None
            difference = np.abs(one.rgb.astype(float) - other.rgb) / peak
            assert difference.mean() < 0.01
