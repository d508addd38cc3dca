"""Kill `yonos_trt.video` at random moments, resume, and compare with an uninterrupted run, frame by frame.

    python benchmarks/studies/video_resume.py --trials 20 --clip clip.mp4

Each trial kills one job (SIGKILL, the whole process) one or more times until it is allowed to end, and then
decodes the result. A trial passes if its frames and times are bit for bit those of the uninterrupted run, the
copied streams are equal, and nothing but the output is left in the folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yonos_trt.video import VideoOptions, upscale_video
from yonos_trt.video.format import EncoderSettings
from yonos_trt.video.info import frame_planes, open_input
from yonos_trt.video.layouts import layout_of
from yonos_trt.video.read import main_video_stream


def work(
    source: str, target: str, pause_s: float, segment_frames: int, end_s: float | None, resume: bool
) -> None:
    """Upscale x2 by repetition, slowly, so that a kill finds the job at work."""

    def enlarge(rgb: NDArray[np.generic]) -> NDArray[np.generic]:
        time.sleep(pause_s)
        return rgb.repeat(2, axis=0).repeat(2, axis=1)

    options = VideoOptions(
        encoder=EncoderSettings(preset="ultrafast"), segment_frames=segment_frames, end_s=end_s, resume=resume
    )
    upscale_video(source, target, enlarge, scale=2, options=options)


def fingerprint(path: Path) -> dict[str, list[str]]:
    """Return hashes with times: decoded frames of the main video, packets of every other stream."""
    found: dict[str, list[str]] = {"frames": []}
    with open_input(str(path), name=str(path)) as clip:
        main = main_video_stream(clip, str(path))
        for packet in clip.demux():
            if packet.stream.index != main.index:
                if packet.size:
                    key = f"{packet.stream.index} {packet.stream.type}"
                    found.setdefault(key, []).append(
                        f"{packet.pts} {hashlib.sha256(bytes(packet)).hexdigest()}"
                    )
                continue
            for frame in packet.decode():
                digest = hashlib.sha256()
                for plane in frame_planes(frame, layout_of(frame.format.name)):
                    digest.update(np.ascontiguousarray(plane))
                found["frames"].append(f"{frame.pts} {digest.hexdigest()}")
    return found


def trial(
    source: Path,
    target: Path,
    *,
    rng: random.Random,
    whole_s: float,
    arguments: list[str],
    most_kills: int = 4,
) -> int:
    """Run one job to its end through random kills; return how many kills it took."""
    kills = 0
    while True:
        command = [sys.executable, __file__, "--work", str(source), str(target), *arguments]
        process = subprocess.Popen([*command, "--resume"] if kills else command, stderr=subprocess.PIPE)
        try:
            _, message = process.communicate(
                timeout=None if kills >= most_kills else rng.uniform(0.05, whole_s)
            )
        except subprocess.TimeoutExpired:
            process.kill()  # SIGKILL: no handler, no clean-up
            process.communicate()
            kills += 1
            continue
        if process.returncode != 0:
            raise SystemExit(f"the job failed after {kills} kills: {message.decode()}")
        return kills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clip", type=Path)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--end", type=float, default=1.2, help="seconds of the clip")
    parser.add_argument("--pause", type=float, default=0.01, help="seconds a frame takes, besides the work")
    parser.add_argument("--segment-frames", type=int, default=5)
    parser.add_argument("--suffix", default=".mkv")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", nargs=2, metavar=("IN", "OUT"), help=argparse.SUPPRESS)
    parser.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.work:
        work(*chosen.work, chosen.pause, chosen.segment_frames, chosen.end, chosen.resume)
        return
    if chosen.clip is None:
        parser.error("--clip is needed")
    rng = random.Random(chosen.seed)
    arguments = [
        "--pause",
        str(chosen.pause),
        "--segment-frames",
        str(chosen.segment_frames),
        "--end",
        str(chosen.end),
    ]
    with tempfile.TemporaryDirectory() as folder:
        reference = Path(folder) / f"reference{chosen.suffix}"
        begin = time.perf_counter()
        trial(chosen.clip, reference, rng=rng, whole_s=0, arguments=arguments, most_kills=0)
        whole_s = time.perf_counter() - begin
        expected = fingerprint(reference)
        equal, kills = 0, []
        for number in range(chosen.trials):
            target = Path(folder) / f"trial{chosen.suffix}"
            kills.append(trial(chosen.clip, target, rng=rng, whole_s=whole_s, arguments=arguments))
            same = fingerprint(target) == expected
            left = sorted(p.name for p in Path(folder).iterdir() if p not in (reference, target))
            equal += same and not left
            verdict = "equal" if same else "DIFFERENT"
            print(f"trial {number + 1}: {kills[-1]} kills, {verdict}, left behind: {left or 'nothing'}")
            target.unlink()
    summary = {
        "clip": chosen.clip.name,
        "frames": len(expected["frames"]),
        "copied_streams": len(expected) - 1,
        "uninterrupted_s": round(whole_s, 2),
        "trials": chosen.trials,
        "kills": sum(kills),
        "equal": equal,
    }
    print(json.dumps(summary))
    if equal != chosen.trials:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
