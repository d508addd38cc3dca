"""SR.stream and SR.upscale_batch: kinds of frames, order, errors, on a real (tiny) engine directory."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

av = pytest.importorskip("av")

from helpers import picture  # noqa: E402
from video_clips import picture_planes  # noqa: E402

from yonos_trt.errors import ConfigError, InputError  # noqa: E402
from yonos_trt.prefetch import frame_index  # noqa: E402
from yonos_trt.sr import SR  # noqa: E402
from yonos_trt.video.color import Coding, planes_to_rgb, rgb_to_planes  # noqa: E402
from yonos_trt.video.frames import upscale_frame  # noqa: E402
from yonos_trt.video.info import frame_planes  # noqa: E402
from yonos_trt.video.layouts import layout_of  # noqa: E402


def test_a_stream_gives_what_upscale_gives_in_order_for_mixed_sizes(sr: SR) -> None:
    frames = [picture(20 + 3 * (i % 3), 24 + i % 2, seed=i) for i in range(6)]
    with sr.stream(iter(frames), max_in_flight=3) as results:
        for frame, result in zip(frames, results, strict=True):
            np.testing.assert_array_equal(result, sr.upscale(frame))
    batch = sr.upscale_batch(frames[:3])
    assert [r.shape for r in batch] == [(f.shape[0] * sr.scale, f.shape[1] * sr.scale, 3) for f in frames[:3]]
    np.testing.assert_array_equal(batch[2], sr.upscale(frames[2]))


def test_a_frame_of_every_kind_comes_back_as_its_kind(sr: SR) -> None:
    from PIL import Image

    array = picture(16, 20)
    video = av.VideoFrame.from_ndarray(array, format="rgb24")
    video.pts, video.time_base = 7, Fraction(1, 25)
    kinds = [array, array.astype(np.uint16) * 257, Image.fromarray(array), video]
    results = sr.upscale_batch(kinds)
    assert [type(r) for r in results] == [type(k) for k in kinds]
    assert results[1].dtype == np.uint16
    expected = sr.upscale(array)
    np.testing.assert_array_equal(np.asarray(results[2]), expected)
    np.testing.assert_array_equal(results[3].to_ndarray(format="rgb24"), expected)
    assert (results[3].pts, results[3].time_base) == (7, Fraction(1, 25))


def test_torch_tensors_come_back_as_tensors(sr: SR) -> None:
    torch = pytest.importorskip("torch")
    frame = torch.from_numpy(picture(16, 20))
    (result,) = sr.upscale_batch([frame])
    assert isinstance(result, torch.Tensor)
    np.testing.assert_array_equal(result.numpy(), sr.upscale(frame.numpy()))


def test_a_bad_frame_is_named_by_its_index(sr: SR) -> None:
    frames = [picture(16, 16), picture(16, 16, seed=1), "no such file.png", picture(16, 16)]
    with sr.stream(frames) as results:
        next(results)
        next(results)
        with pytest.raises(InputError) as caught:
            next(results)
    assert frame_index(caught.value) == 2
    with pytest.raises(ConfigError, match="max_in_flight must be at least 1"):
        sr.stream([], max_in_flight=0)


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "nv12", "yuv422p10le", "yuv444p", "gray", "gbrp", "p010le"])
def test_a_video_frame_keeps_format_times_and_tags(pix_fmt: str) -> None:
    layout = layout_of(pix_fmt)
    frame = av.VideoFrame(32, 16, layout.name)
    for view, plane in zip(frame_planes(frame, layout), picture_planes(layout.name, 16, 32, 0), strict=True):
        view[...] = plane
    original = [p.copy() for p in frame_planes(frame, layout)]
    if pix_fmt != layout.name:
        frame = frame.reformat(format=pix_fmt)
    frame.pts, frame.time_base = 1234, Fraction(1, 90000)
    frame.color_range, frame.colorspace = 1, 1
    frame.color_primaries, frame.color_trc = 9, 14
    result = upscale_frame(frame, lambda rgb: rgb.repeat(2, 0).repeat(2, 1))
    assert (result.format.name, result.width, result.height) == (pix_fmt, 64, 32)
    assert (result.pts, result.time_base) == (1234, Fraction(1, 90000))
    assert (result.color_range, result.colorspace, result.color_primaries, result.color_trc) == (1, 1, 9, 14)
    planar = result.reformat(format=layout.name) if pix_fmt != layout.name else result
    rgb = planes_to_rgb(original, layout, Coding(1, layout.kind == "rgb")).repeat(2, 0).repeat(2, 1)
    expected = [np.zeros_like(p) for p in frame_planes(planar, layout)]
    rgb_to_planes(rgb, expected, layout, Coding(1, layout.kind == "rgb"))
    for got, wanted in zip(frame_planes(planar, layout), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_an_upscaler_that_gives_another_size_is_refused() -> None:
    frame = av.VideoFrame(32, 16, "yuv420p")
    with pytest.raises(ConfigError, match="turned 16 x 32 into 17 x 32"):
        upscale_frame(frame, lambda rgb: np.zeros((17, 32, 3), np.uint8))
