"""Upscale frames that are NumPy arrays, one by one, as an OpenCV loop has them.

    python examples/video_array_loop.py in.mp4 [ENGINE_DIR]

OpenCV's frames are BGR; yonos takes RGB: `rgb = bgr[..., ::-1]` and back. With cv2 the loop is::

    capture = cv2.VideoCapture("in.mp4")
    while (read := capture.read())[0]:
        big = sr.upscale(np.ascontiguousarray(read[1][..., ::-1]))[..., ::-1]
        cv2.imshow("x4", big)

Here PyAV stands in for the capture, so that the example runs without a display.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import av
import numpy as np
from numpy.typing import NDArray

from yonos_trt import SR


def capture(path: str) -> Iterator[NDArray[np.uint8]]:
    """Yield BGR frames, as cv2.VideoCapture does."""
    with av.open(path) as clip:
        for frame in clip.decode(video=0):
            yield frame.to_ndarray(format="bgr24").astype(np.uint8, copy=False)


def main(source: str, engine_dir: str | None = None) -> None:
    with SR(engine_dir) as sr:
        begin, count = time.perf_counter(), 0
        for bgr in capture(source):
            big = sr.upscale(np.ascontiguousarray(bgr[..., ::-1]))[..., ::-1]
            assert big.shape == (bgr.shape[0] * sr.scale, bgr.shape[1] * sr.scale, 3)
            count += 1
        print(f"{count} frames, {count / (time.perf_counter() - begin):.2f} frames a second")


if __name__ == "__main__":
    main(*sys.argv[1:])
