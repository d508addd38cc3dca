"""Do decoding, upscaling and encoding overlap? Wall time of `upscale_video` against its slowest stage alone.

    pytest benchmarks/bench_video.py                       (a device that computes while the host is free)
    python benchmarks/bench_video.py --clip clip.mp4 --engine-dir DIR      (your model on your machine)

The aim is wall <= 1.1 x the slowest stage. In the first form the upscaler waits as long as a GPU would work,
which leaves both host cores to decoder and encoder: the case the design is for. A model that runs on the same
cores as the encoder cannot reach that, as the stages then share what they run on; the sum of the three stages
is given for comparison.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from yonos_trt.sr import SR
from yonos_trt.video import VideoOptions, upscale_video
from yonos_trt.video.format import EncoderSettings, output_format
from yonos_trt.video.read import VideoReader
from yonos_trt.video.segment_encode import SegmentedEncoder
from yonos_trt.video.segments import Job

Array = NDArray[Any]
AIM = 1.1


def make_clip(path: Path, frames: int, height: int, width: int) -> Path:
    """Write a clip with motion and detail, so that decoder and encoder have something to do."""
    import av

    rng = np.random.default_rng(0)
    wide = rng.integers(0, 256, (height // 4 + 64, width // 4 + 64), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"preset": "veryfast", "crf": "20"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 25)
        for index in range(frames):
            shift = 2 * index % 128
            view = wide[shift : shift + height, shift : shift + width]
            frame = av.VideoFrame.from_ndarray(np.repeat(view[..., None], 3, axis=2), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def stages_alone(
    clip: Path, upscale: Callable[[Array], Array], scale: int, options: VideoOptions
) -> dict[str, float]:
    """Return seconds of each stage run by itself on the whole clip."""
    seconds = {}
    begin = time.perf_counter()
    with VideoReader(clip, end_s=options.end_s) as reader:
        info = reader.info
        frames = list(reader.frames())
    seconds["decode"] = time.perf_counter() - begin
    begin = time.perf_counter()
    results = []
    for frame in frames:
        assert frame.rgb is not None
        result = upscale(frame.rgb)
        if len(results) < 8:  # a few different ones are enough to encode, and fit into memory
            results.append(result)
    seconds["upscale"] = time.perf_counter() - begin
    form = output_format(options.encoder, info, scale=scale)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(Path(folder) / "out.mkv", {}, resume=False, overwrite=True)
        begin = time.perf_counter()
        with SegmentedEncoder(job, form, options.segment_frames) as encoder:
            for index, frame in enumerate(frames):
                # there and back through the kept results: neighbours stay neighbours
                at = index % (2 * len(results))
                picture = results[min(at, 2 * len(results) - 1 - at)]
                encoder.encode(type(frame)(frame.index, frame.pts, picture), 0.0)
            encoder.finish()
        seconds["encode"] = time.perf_counter() - begin
        job.close()
    return seconds


def overlap(
    clip: Path, upscale: Callable[[Array], Array], scale: int, options: VideoOptions
) -> dict[str, float | int]:
    """Return the stages' seconds, the wall time of all together, and its ratio to the slowest."""
    alone = stages_alone(clip, upscale, scale, options)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        report = upscale_video(clip, Path(folder) / "out.mkv", upscale, scale=scale, options=options)
        wall = time.perf_counter() - begin
    return {
        "frames": report.frames,
        **{f"{name}_s": round(value, 3) for name, value in alone.items()},
        "sum_s": round(sum(alone.values()), 3),
        "wall_s": round(wall, 3),
        "ratio_to_slowest": round(wall / max(alone.values()), 3),
    }


def device(pause_s: float, scale: int) -> Callable[[Array], Array]:
    """Return an upscaler that takes ``pause_s`` of somebody else's time and little of the host's."""
    kept: dict[bytes, Array] = {}

    def upscale(rgb: Array) -> Array:
        begin = time.perf_counter()
        key = rgb[:: max(1, rgb.shape[0] // 4)].tobytes()[:4096]
        if len(kept) < 8 and key not in kept:
            kept[key] = rgb.repeat(scale, axis=0).repeat(scale, axis=1)
        result = kept.get(key) if key in kept else next(iter(kept.values()))
        assert result is not None
        time.sleep(max(0.0, pause_s - (time.perf_counter() - begin)))
        return result

    return upscale


@pytest.mark.parametrize(("preset", "share"), [("ultrafast", 2.0), ("medium", 4 / 3)])
def test_wall_time_is_that_of_the_slowest_stage(
    preset: str, share: float, tmp_path: Path, record_property: Any
) -> None:
    """The upscaler takes ``share`` times as long as the next stage: the slowest, as a network on a GPU is."""
    clip = make_clip(tmp_path / "clip.mkv", 96, 180, 320)
    options = VideoOptions(encoder=EncoderSettings(preset=preset))
    probe = stages_alone(clip, device(0.0, 4), 4, options)
    pause_s = share * max(probe["encode"], probe["decode"]) / 96
    runs = [overlap(clip, device(pause_s, 4), 4, options) for _ in range(3)]
    best = min(runs, key=lambda run: run["ratio_to_slowest"])
    record_property("overlap", best)
    print(f"\n{preset}: {json.dumps(best)}")
    assert best["frames"] == 96
    assert best["ratio_to_slowest"] <= AIM, runs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clip", type=Path, required=True)
    parser.add_argument("--engine-dir", type=Path)
    parser.add_argument("--end", type=float, default=1.0, help="seconds of the clip")
    parser.add_argument("--preset", default="medium")
    chosen = parser.parse_args()
    options = VideoOptions(encoder=EncoderSettings(preset=chosen.preset), end_s=chosen.end)
    with SR(chosen.engine_dir) as sr:
        print(json.dumps(overlap(chosen.clip, sr.upscale, sr.scale, options)))


if __name__ == "__main__":
    main()
