"""Put yonos between two ffmpeg processes: anything ffmpeg can read, filter and write.

    python examples/video_ffmpeg_pipe.py in.mp4 out.mkv [ENGINE_DIR]

The same in a shell::

    ffmpeg -i in.mp4 -f yuv4mpegpipe -strict -1 - |
        yonos video -i - -o - |
        ffmpeg -i - -i in.mp4 -map 0:v -map 1:a? out.mkv

y4m has one frame rate, no timestamps and no colour matrix: for variable frame rates give `yonos video` the
file.
"""

from __future__ import annotations

import subprocess
import sys


def main(source: str, target: str, engine_dir: str | None = None) -> None:
    quiet = ["ffmpeg", "-hide_banner", "-loglevel", "error", "-nostdin"]
    read = [*quiet, "-i", source, "-f", "yuv4mpegpipe", "-strict", "-1", "-"]
    upscale = [sys.executable, "-m", "yonos_trt.cli", "video", "-i", "-", "-o", "-"]
    if engine_dir is not None:
        upscale += ["-m", engine_dir]
    write = [*quiet, "-y", "-i", "-", "-i", source, "-map", "0:v", "-map", "1:a?", "-c:a", "copy", target]
    first = subprocess.Popen(read, stdout=subprocess.PIPE)
    second = subprocess.Popen(upscale, stdin=first.stdout, stdout=subprocess.PIPE)
    third = subprocess.Popen(write, stdin=second.stdout)
    for pipe in (first.stdout, second.stdout):
        assert pipe is not None
        pipe.close()  # so that a process that ends is noticed by the one before it
    codes = [process.wait() for process in (first, second, third)]
    if any(codes):
        raise SystemExit(f"exit codes of ffmpeg, yonos, ffmpeg: {codes}")


if __name__ == "__main__":
    main(*sys.argv[1:])
