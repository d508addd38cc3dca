"""Small clips made by PyAV, and measures of what came out, shared by the video tests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from helpers import Array

from yonos_trt.video import VideoOptions, VideoReport, upscale_video
from yonos_trt.video.encode import opening
from yonos_trt.video.format import EncoderSettings
from yonos_trt.video.info import frame_planes
from yonos_trt.video.layouts import layout_of

TIME_BASE = Fraction(1, 12800)
FAST = EncoderSettings(preset="ultrafast")


def enlarge(scale: int = 2) -> Callable[[Array], Array]:
    """An upscaler that is exact and fast: every pixel becomes scale x scale equal ones."""
    return lambda rgb: rgb.repeat(scale, axis=0).repeat(scale, axis=1)


def picture_planes(name: str, height: int, width: int, index: int) -> list[Array]:
    """A moving pattern in a pixel format's own samples, well inside the limited range."""
    layout = layout_of(name)
    unit = 1 << (layout.bits - 8)
    y, x = np.mgrid[0:height, 0:width]
    planes = [(60 + 100 * ((x + 3 * index) % 32 < 16) + 2 * (y % 20)) * unit]
    if layout.kind != "gray":
        cy, cx = y[:: layout.sub_h, :: layout.sub_w], x[:: layout.sub_h, :: layout.sub_w]
        planes += [(100 + (cx + index) % 50) * unit, (110 + (cy + 2 * index) % 40) * unit]
    return [p.astype(layout.dtype) for p in planes]


def write_clip(
    path: Path,
    *,
    frames: int = 12,
    size: tuple[int, int] = (48, 64),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    times: Sequence[int] | None = None,
    tags: tuple[int, int, int, int] | None = (1, 1, 1, 1),
    aspect: Fraction | None = None,
    rotation: int | None = None,
    options: dict[str, str] | None = None,
    audio: bool = False,
    audio_s: float = 0.512,
    audio_start_s: float = 0,
    subtitles: Sequence[str] = (),
    attachment: bytes | None = None,
    chapters: bool = False,
    metadata: dict[str, str] | None = None,
    interlaced: bool = False,
) -> Path:
    """Write a clip. ``times`` are in TIME_BASE; ``tags`` are range, primaries, transfer, matrix."""
    height, width = size
    times = list(times) if times is not None else [512 * i for i in range(frames)]
    defaults = {
        "libx264": {"preset": "ultrafast", "crf": "10", "bf": "2", "g": "6"},
        "libx265": {"x265-params": "log-level=none"},
    }
    with opening(), av.open(str(path), "w") as out:
        out.metadata.update(metadata or {})
        video = out.add_stream(codec, rate=25, options={**defaults.get(codec, {}), **(options or {})})
        video.width, video.height, video.pix_fmt = width, height, pix_fmt
        context = video.codec_context
        context.time_base = TIME_BASE
        if tags is not None:
            context.color_range, context.color_primaries, context.color_trc, context.colorspace = tags
        if aspect is not None:
            context.sample_aspect_ratio = aspect
        if rotation is not None:
            video.set_display_rotation(rotation)
        if interlaced:
            context.flags |= int(av.codec.context.Flags.interlaced_dct | av.codec.context.Flags.interlaced_me)
        sound = None
        if audio:
            sound = out.add_stream("flac" if path.suffix == ".mkv" else "aac", rate=8000)
            sound.metadata["language"] = "deu"
        text = out.add_mux_stream("subrip") if subtitles else None
        if text is not None:
            text.time_base = Fraction(1, 1000)
            text.metadata["language"] = "fra"
        if attachment is not None:
            out.add_attachment("font.ttf", "application/x-truetype-font", attachment)
        if chapters:
            milliseconds = Fraction(1, 1000)
            out.set_chapters(
                [
                    {"id": i + 1, "start": 200 * i, "end": 200 * i + 200}
                    | {"time_base": milliseconds, "metadata": {"title": title}}
                    for i, title in enumerate(("one", "two"))
                ]
            )
        for index, pts in enumerate(times):
            frame = av.VideoFrame(width, height, pix_fmt)
            for view, plane in zip(
                frame_planes(frame, layout_of(pix_fmt)),
                picture_planes(pix_fmt, height, width, index),
                strict=True,
            ):
                view[...] = plane
            frame.pts, frame.time_base = pts, TIME_BASE
            out.mux(video.encode(frame))
        out.mux(video.encode())
        if sound is not None:
            for block in range(round(audio_s * 8000 / 1024)):
                samples = (3000 * np.sin(np.arange(1024) / 9 + block)).astype(np.int16)
                chunk = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
                chunk.sample_rate, chunk.pts = 8000, round(audio_start_s * 8000) + 1024 * block
                chunk.time_base = Fraction(1, 8000)
                out.mux(sound.encode(chunk))
            out.mux(sound.encode())
        for index, line in enumerate(subtitles):
            packet = av.Packet(line.encode())
            packet.pts = packet.dts = 100 * index
            packet.duration, packet.time_base, packet.stream = 80, Fraction(1, 1000), text
            out.mux(packet)
    return path


def run(
    source: Any, target: Any, *, scale: int = 2, encoder: EncoderSettings = FAST, **options: Any
) -> VideoReport:
    """Upscale with the exact enlarger and a fast encoder."""
    return upscale_video(
        source, target, enlarge(scale), scale=scale, options=VideoOptions(encoder=encoder, **options)
    )


def shown(path: Path) -> list[tuple[float, str]]:
    """Every decoded frame of the largest video stream: (time in seconds, hash of its samples)."""
    result = []
    with av.open(str(path)) as clip:
        stream = max(clip.streams.video, key=lambda s: s.width * s.height)
        for frame in clip.decode(stream):
            digest = hashlib.sha256()
            for plane in frame_planes(frame, layout_of(frame.format.name)):
                digest.update(np.ascontiguousarray(plane))
            result.append((float(frame.pts * stream.time_base), digest.hexdigest()))
    return result


def packets(path: Path, kind: str) -> list[list[tuple[float, str]]]:
    """For every stream of a kind: (time in seconds, hash) of all packets."""
    with av.open(str(path)) as clip:
        found: dict[int, list[tuple[float, str]]] = {s.index: [] for s in clip.streams if s.type == kind}
        for packet in clip.demux():
            if packet.size and packet.stream.index in found:
                time_s = float((packet.pts or 0) * packet.time_base)
                found[packet.stream.index].append((time_s, hashlib.sha256(bytes(packet)).hexdigest()))
    return list(found.values())


def damage(source: Path, target: Path, index: int) -> float:
    """Copy a clip with the payload of one video packet overwritten; return that packet's time in seconds."""
    with av.open(str(source)) as before, av.open(str(target), "w") as after:
        streams = {s.index: after.add_stream_from_template(s, opaque=True) for s in before.streams}
        count, when = 0, 0.0
        for packet in before.demux():
            if not packet.size:
                continue
            if packet.stream.type == "video":
                if count == index:
                    broken = av.Packet(b"\xff" * packet.size)
                    broken.pts, broken.dts, broken.time_base = packet.pts, packet.dts, packet.time_base
                    broken.is_keyframe = packet.is_keyframe
                    when = float(packet.pts * packet.time_base)
                    broken.stream = packet.stream
                    packet = broken
                count += 1
            packet.stream = streams[packet.stream.index]
            after.mux(packet)
    return when
