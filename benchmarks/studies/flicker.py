"""Measure flicker: warp error with the noise field fixed (as shipped) against fresh noise for every frame.

    python benchmarks/studies/flicker.py --clips FOLDER/bee.mp4 FOLDER/nasa_13013.mp4 --frames 12
    python benchmarks/studies/flicker.py --clips FOLDER/bee.mp4 --stabilize --save OUT_FOLDER

A clip's frames are the HR reference (cropped to whole multiples, `--crop` at most); they are reduced by the
model's scale with an area filter and enlarged again, by each method, frame by frame. Reported per method,
mean over frame pairs:

- E*warp, times 1000 (lower is steadier; Lai et al. 2018, as DOVE and others report it): the mean over visible
  pixels of the squared difference of frame t and frame t+1 brought back along the motion, values in [0, 1],
  summed over the colours. Motion is the optical flow of the HR reference (OpenCV's DIS, medium preset);
  pixels are visible where forward and backward flow agree and the motion has no edge (the two conditions of
  Ruder, Dosovitskiy and Brox 2016).
- PSNR against the HR reference, so that steadiness bought with blur shows.

The reference's own E*warp is what motion estimation and real change leave; a method at that level adds
nothing. Two tests of the model alone follow: a still scene (the same frame twice), and a frame moved by whole
LR pixels, whose output must move with it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yonos_trt import pipeline
from yonos_trt.sr import SR
from yonos_trt.video.read import VideoReader
from yonos_trt.video.stabilize import Stabilizer

Array = NDArray[Any]


def flow(first: Array, second: Array) -> Array:
    """Return the motion (H, W, 2) in px, x then y, from ``first`` to ``second``, both (H, W, 3) uint8."""
    import cv2

    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (first, second)]
    method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    result: Array = method.calc(grey[0], grey[1], None)
    return result


def warp_back(frame: Array, motion: Array) -> Array:
    """Bring ``frame`` back along ``motion``: result[y, x] = frame[y + v, x + u], linear, edges held."""
    import cv2

    height, width = motion.shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    result: Array = cv2.remap(
        frame, x + motion[..., 0], y + motion[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return result


def visible(forward: Array, backward: Array) -> Array:
    """Return where a pixel of the first frame is seen in the second one too, (H, W) bool."""
    height, width = forward.shape[:2]
    back = warp_back(backward, forward)
    squared = (forward**2).sum(axis=2) + (back**2).sum(axis=2)
    consistent = ((forward + back) ** 2).sum(axis=2) <= 0.01 * squared + 0.5
    slope = sum(np.square(part).sum(axis=2) for part in np.gradient(forward, axis=(0, 1)))
    smooth = slope <= 0.01 * (forward**2).sum(axis=2) + 0.002
    y, x = np.mgrid[0:height, 0:width]
    ahead_x, ahead_y = x + forward[..., 0], y + forward[..., 1]
    inside = (ahead_x >= 0) & (ahead_x <= width - 1) & (ahead_y >= 0) & (ahead_y <= height - 1)
    result: Array = consistent & smooth & inside
    return result


def warp_error(first: Array, second: Array, motion: Array, mask: Array) -> float:
    """Return E*warp of two uint8 frames (not yet times 1000)."""
    moved = warp_back(second.astype(np.float32) / 255, motion)
    difference = ((first.astype(np.float32) / 255 - moved) ** 2).sum(axis=2)
    return float(difference[mask].mean()) if mask.any() else 0.0


def psnr_db(a: Array, b: Array) -> float:
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return 99.0 if error == 0 else 10 * np.log10(255.0**2 / error)


def read(path: Path, frames: int, start_s: float, step: int, crop: tuple[int, int]) -> list[Array]:
    """Return frames of a clip from ``start_s`` on, every ``step``-th, cropped in the middle."""
    taken: list[Array] = []
    with VideoReader(path, start_s=start_s) as reader:
        for frame in reader.frames():
            if frame.index % step:
                continue
            assert frame.rgb is not None
            rgb = frame.rgb if frame.rgb.dtype == np.uint8 else (frame.rgb >> 8).astype(np.uint8)
            height, width = min(crop[0], rgb.shape[0]), min(crop[1], rgb.shape[1])
            y, x = (rgb.shape[0] - height) // 2, (rgb.shape[1] - width) // 2
            taken.append(np.ascontiguousarray(rgb[y : y + height, x : x + width]))
            if len(taken) == frames:
                break
    return taken


def reduce(frame: Array, scale: int) -> Array:
    import cv2

    result: Array = cv2.resize(
        frame, (frame.shape[1] // scale, frame.shape[0] // scale), interpolation=cv2.INTER_AREA
    )
    return result


def bicubic(frame: Array, scale: int) -> Array:
    from PIL import Image

    size = (frame.shape[1] * scale, frame.shape[0] * scale)
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))


def network(sr: SR) -> Callable[[Array, int], Array]:
    """Return a function of (LR frame, noise seed)."""

    def run(frame: Array, seed: int) -> Array:
        planned = sr.plan(*frame.shape[:2])
        return pipeline.upscale_array(frame, sr.backend, plan=planned.tiles, seed=seed, threads=sr.threads)

    return run


def measure_clip(
    reference: list[Array], run: Callable[[Array, int], Array], scale: int, stabilize: bool
) -> tuple[dict[str, dict[str, float]], dict[str, list[Array]]]:
    """Return {method: {ewarp_1000, psnr_db}} of one clip, and the frames of each method."""
    low = [reduce(frame, scale) for frame in reference]
    methods: dict[str, list[Array]] = {"reference": reference, "bicubic": [bicubic(f, scale) for f in low]}
    seconds: dict[str, float] = {}
    begin = time.perf_counter()
    methods["fixed noise"] = [run(frame, 0) for frame in low]
    seconds["fixed noise"] = (time.perf_counter() - begin) / len(low)
    methods["fresh noise"] = [run(frame, index) for index, frame in enumerate(low)]
    if stabilize:
        begin = time.perf_counter()
        stabilizer = Stabilizer(scale)
        methods["stabilized"] = [stabilizer(f, g) for f, g in zip(low, methods["fixed noise"], strict=True)]
        seconds["stabilizing"] = (time.perf_counter() - begin) / len(low)
    pairs = []
    for first, second in pairwise(reference):
        forward, backward = flow(first, second), flow(second, first)
        pairs.append((forward, visible(forward, backward)))
    table: dict[str, dict[str, float]] = {}
    for name, frames in methods.items():
        errors = [warp_error(a, b, *pair) for a, b, pair in zip(frames, frames[1:], pairs, strict=False)]
        quality = [psnr_db(a, b) for a, b in zip(frames, reference, strict=True)]
        table[name] = {"ewarp_1000": 1000 * float(np.mean(errors)), "psnr_db": float(np.mean(quality))}
    table["reference"]["visible"] = float(np.mean([mask.mean() for _, mask in pairs]))
    for name, value in seconds.items():
        table.setdefault(name, {})["seconds_a_frame"] = value
    return table, methods


def still_and_moved(
    frame: Array, run: Callable[[Array, int], Array], scale: int, shifts: tuple[int, ...]
) -> dict[str, Any]:
    """Return how much the output of an unchanged and of a moved scene changes, in grey levels of 255."""
    first, again, fresh = run(frame, 0), run(frame, 0), run(frame, 1)
    height, width = frame.shape[0] - max(shifts), frame.shape[1] - max(shifts)
    base = run(frame[:height, :width], 0).astype(np.int16)
    margin = 8 * scale  # the picture's own border moves too
    moved = {}
    for shift in shifts:
        other = run(np.ascontiguousarray(frame[shift : shift + height, shift : shift + width]), 0).astype(
            np.int16
        )
        px = shift * scale
        inner = np.abs(base[px:, px:] - other[: -px or None, : -px or None])[margin:-margin, margin:-margin]
        moved[str(shift)] = {
            "mean": float(inner.mean()),
            "p99": float(np.percentile(inner, 99)),
            "max": int(inner.max()),
        }
    return {
        "still_fixed_noise_max": int(np.abs(first.astype(np.int16) - again).max()),
        "still_fresh_noise_mean": float(np.abs(first.astype(np.int16) - fresh).mean()),
        "moved_by_lr_px": moved,
    }


def save(folder: Path, clip: str, methods: dict[str, list[Array]]) -> Iterator[Path]:
    """Write the frames of each method as PNG, to look at."""
    from PIL import Image

    for name, frames in methods.items():
        for index, frame in enumerate(frames):
            path = folder / clip / name.replace(" ", "-").replace(",", "") / f"{index:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame).save(path)
            yield path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=Path, nargs="+", required=True)
    parser.add_argument("--engine-dir", type=Path, help="default: the shipped x4 model")
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--start", type=float, default=0.0, help="seconds into each clip")
    parser.add_argument("--step", type=int, default=1, help="take every n-th frame")
    parser.add_argument("--crop", type=int, nargs=2, default=(384, 512), metavar=("H", "W"), help="HR px")
    parser.add_argument("--shifts", type=int, nargs="+", default=(1, 2, 4, 8), help="LR px")
    parser.add_argument("--stabilize", action="store_true", help="also `yonos video --stabilize`")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="keep the frames, to look at")
    parser.add_argument("--json", type=Path, metavar="FILE")
    chosen = parser.parse_args()
    report: dict[str, Any] = {}
    with SR(chosen.engine_dir) as sr:
        scale, run = sr.scale, network(sr)
        crop = tuple(size // scale * scale for size in chosen.crop)
        for path in chosen.clips:
            reference = read(path, chosen.frames, chosen.start, chosen.step, (crop[0], crop[1]))
            height, width = (size // scale * scale for size in reference[0].shape[:2])
            reference = [np.ascontiguousarray(frame[:height, :width]) for frame in reference]
            table, methods = measure_clip(reference, run, scale, chosen.stabilize)
            tests = still_and_moved(reduce(reference[0], scale), run, scale, tuple(chosen.shifts))
            report[path.name] = {"frames": len(reference), "size": [height, width], "methods": table, **tests}
            print(f"{path.name}: {len(reference)} frames of {height} x {width}, x{scale}")
            for name, row in table.items():
                print("  " + f"{name:24}" + "  ".join(f"{key} {value:.3f}" for key, value in row.items()))
            print(f"  {json.dumps(tests)}")
            if chosen.save is not None:
                count = sum(1 for _ in save(chosen.save, path.stem, methods))
                print(f"  {count} pictures in {chosen.save / path.stem}")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
