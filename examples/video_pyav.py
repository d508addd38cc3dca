"""Upscale a video with PyAV in your own loop: you decode and encode, yonos upscales frames as they come.

    python examples/video_pyav.py in.mp4 out.mkv [ENGINE_DIR]

For whole files, `yonos video` does more (sound, subtitles, resume); this is the pattern for pipelines of your
own: filters between decode and upscale, several outputs, a live source.
"""

from __future__ import annotations

import sys

import av

from yonos_trt import SR


def main(source: str, target: str, engine_dir: str | None = None) -> None:
    with av.open(source) as clip, av.open(target, "w") as out, SR(engine_dir) as sr:
        stream = clip.streams.video[0]
        big = out.add_stream("libx264", rate=stream.average_rate, options={"crf": "16"})
        big.width, big.height = stream.width * sr.scale, stream.height * sr.scale
        big.pix_fmt = stream.codec_context.pix_fmt
        big.codec_context.time_base = stream.time_base
        # decode, networks and encode overlap: stream() reads ahead and works in threads of its own
        with sr.stream(clip.decode(stream), max_in_flight=4) as frames:
            for frame in frames:  # a frame keeps its time, pixel format and colour tags
                out.mux(big.encode(frame))
        out.mux(big.encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
