"""The stages up to the encoder, as every way through a clip joins them, and what their results depend on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from numpy.typing import NDArray

from yonos_trt.prefetch import Prefetch, stream
from yonos_trt.video.device import DevicePath
from yonos_trt.video.format import OutputFormat
from yonos_trt.video.options import VideoOptions
from yonos_trt.video.read import Frame, VideoReader
from yonos_trt.video.stabilize import Stabilizer

Upscale = Callable[..., NDArray[Any]]


class Stopwatch:
    """Adds up how long each stage works (not how long it waits for the others)."""

    def __init__(self) -> None:
        self.seconds = {"decode": 0.0, "upscale": 0.0, "encode": 0.0}
        self.begin = time.perf_counter()

    def each(self, stage: str, items: Iterator[Frame]) -> Iterator[Frame]:
        """Yield the items; what making them takes is the stage's."""
        while True:
            begin = time.perf_counter()
            item = next(items, None)
            self.seconds[stage] += time.perf_counter() - begin
            if item is None:
                return
            yield item


def open_reader(source: str | Path | BinaryIO, options: VideoOptions) -> VideoReader:
    """Open a clip as the options say."""
    return VideoReader(
        source,
        start_s=options.start_s,
        end_s=options.end_s,
        on_error=options.on_error,
        force=options.force,
        siting=options.chroma_siting,
    )


def upscaled(
    frames: Iterator[Frame],
    upscale: Upscale,
    scale: int,
    options: VideoOptions,
    path: DevicePath,
    watch: Stopwatch,
) -> Prefetch[Any]:
    """Return a stream of upscaled frames; those that come without a picture pass.

    With ``options.stabilize`` the first frame that has a picture is only the next one's state.
    """
    size = None if options.sizing is None else (path.form.height_px, path.form.width_px)
    stabilizer = Stabilizer(scale) if options.stabilize else None

    def one(frame: Frame) -> Frame:
        if frame.rgb is None:
            return frame
        begin = time.perf_counter()
        result = upscale(frame.rgb) if size is None else upscale(frame.rgb, size=size)
        if stabilizer is not None:
            result = stabilizer(frame.rgb, result)
        result = path.for_encoder(result)
        watch.seconds["upscale"] += time.perf_counter() - begin
        return replace(frame, rgb=result)

    return stream(frames, one, max_in_flight=options.max_in_flight)


# ---------------------------------------------------------------------------------------------------------
# What the bits of a segment depend on


def segments_identity(
    source: Path, form: OutputFormat, options: VideoOptions, path: DevicePath, upscaler_id: str
) -> dict[str, Any]:
    """Describe all that the segments' bits depend on (not ``on_error``: what "stop" let pass is the same)."""
    stat = source.stat()
    return {
        "input": [source.name, stat.st_size, stat.st_mtime_ns],
        "upscaler": upscaler_id,
        "encoder": [form.vcodec, form.pix_fmt, [list(o) for o in form.options]],
        "size": [form.height_px, form.width_px],
        "interval": [options.start_s, options.end_s],
        "decoding": [options.chroma_siting],
        "segment_frames": options.segment_frames,
        "stabilize": options.stabilize,
        **({"hwaccel": path.stages} if path.stages else {}),
    }


def upscaler_id(sr: Any, model: dict[str, Any]) -> str:
    """Name everything of an open `SR`, made with the options `model`, that changes its pixels; lanes, threads
    and batches do not."""
    changing = (
        "seed", "color_fix", "tile_px", "overlap_px", "precision", "runtime",
        "memory_limit_mb", "device_memory_limit_mb",
    )  # fmt: skip
    chosen = {k: model.get(k) for k in changing}
    chosen["runtime"] = chosen["runtime"] or "auto"
    if chosen["runtime"] == "auto" and type(sr.backend).__name__ == "OpenVinoBackend":
        chosen["runtime"] = "openvino"
    if sr.restore is not None:
        chosen["restore"] = sr.restore
    return json.dumps([sr.manifest.model.name, sr.manifest.model.weights_sha256, chosen])
