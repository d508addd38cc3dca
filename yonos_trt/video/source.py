"""What is read from: a file that can be opened again or a pipe, its video stream, its alpha channel."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from yonos_trt.errors import InputError
from yonos_trt.video.info import VideoInfo, frame_planes, require_av

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

PLANAR_ALPHA = ("yuva", "gbrap")  # formats whose fourth plane is alpha


def is_cover(stream: Any) -> bool:
    """Whether a stream is a picture that stands for the file, not a video."""
    return stream.type == "video" and bool(stream.disposition & require_av().stream.Disposition.attached_pic)


def main_video_stream(container: Any, name: str) -> VideoStream:
    """Return the largest video stream that is not a cover picture, the first of equals.

    A single picture comes behind a sequence of the same size (AVIF has both).
    """
    streams = [s for s in container.streams.video if not is_cover(s)]
    if not streams:
        kinds = sorted({"a cover picture" if is_cover(s) else s.type for s in container.streams})
        kinds = kinds or ["nothing"]
        raise InputError(f"{name} holds no video stream (found: {', '.join(kinds)}); expected at least one")
    known = [s for s in streams if s.codec_context is not None]
    if not known:
        raise InputError(
            f"{name}: the codec of its video stream is not one that this build of FFmpeg decodes; convert it "
            f"with a program that knows it, for example to FFV1 in Matroska"
        )
    best: VideoStream = max(known, key=lambda s: ((s.width or 0) * (s.height or 0), s.frames != 1))
    if len(known) == 1 and best.frames == 1 and container.metadata.get("major_brand") == "avis":
        raise InputError(
            f"{name} says that it is a sequence of pictures, and only a single one of them can be read: it "
            f"is damaged; get the file again, or take the one with yonos upscale"
        )
    return best


class CountedStream:
    """A binary stream that counts the bytes FFmpeg read from it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.bytes = 0

    def read(self, count: int = -1) -> bytes:
        data = self._stream.read(count)
        self.bytes += len(data)
        return data


def regular_file(source: str | Path) -> Path:
    """Refuse what cannot be opened again and read from its start, before any work."""
    path = Path(source)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        hint = ""
        if "://" in str(source):
            hint = "; addresses are not read: download the file first"
        elif "%" in path.name:
            hint = "; patterns of numbered pictures are not read: upscale their folder with yonos upscale"
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{source} cannot be opened as video: {reason}{hint}") from error
    if stat.S_ISDIR(mode):
        raise InputError(f"{path} is a folder; yonos video takes one video file, yonos upscale takes folders")
    if not stat.S_ISREG(mode):
        raise InputError(
            f"{path} is no regular file (a pipe or a device?), so its other streams could not be read after "
            f"its frames; save it to a file first, or send y4m to standard input: "
            f"ffmpeg -i IN -f yuv4mpegpipe -strict -1 - | yonos video -i - -o OUT.mkv"
        )
    return path


def check_opaque(frame: VideoFrame, info: VideoInfo) -> None:
    """Refuse a frame with transparent pixels, which no output here could keep."""
    if frame.format.name.startswith(PLANAR_ALPHA):
        alpha = frame_planes(frame, info.layout)[3]
        opaque = (1 << info.layout.bits) - 1
    else:
        high_depth = info.layout.bits > 8
        alpha = frame.reformat(format="rgba64le" if high_depth else "rgba").to_ndarray()[..., 3]
        opaque = 65535 if high_depth else 255
    if alpha.min() < opaque:
        pts = frame.pts if frame.pts is not None else 0
        raise InputError(
            f"{info.name} has transparent pixels (alpha channel, {frame.format.name}, at "
            f"{info.seconds(pts):.3f} s), which no output here could keep; put it on a background first, for "
            f"example: ffmpeg -i IN -pix_fmt yuv444p -c:v ffv1 OUT.mkv"
        )
