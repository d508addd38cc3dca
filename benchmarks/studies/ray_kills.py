"""Kill workers, nodes and drivers of `yonos batch` or `yonos video --ray` at random; compare what comes out.

::

    python -m benchmarks.studies.ray_kills --trials 20 --record runs/ray_kills.json
    python -m benchmarks.studies.ray_kills --video --trials 6

One Ray cluster of two nodes (one worker each) on this machine. A trial upscales a folder, or a clip, and
kills, by SIGKILL and after a random number of results (pictures, segments): a worker's process, the second
node's raylet (its worker dies with it), or the driver, whose run is then said again. After each trial the
outputs are compared byte for byte with those of `yonos upscale`, a clip's packets and their times with those
of `yonos video`; whatever differs ends in exit code 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from yonos_trt.cli.progress import Silent

KINDS = ("worker", "node", "driver")
MODEL = "lite-x2"
SEGMENT = 4  # frames
YONOS = [sys.executable, "-c", "from yonos_trt.console import yonos; yonos()"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--video", action="store_true", help="clips in place of folders")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--kinds", default=",".join(KINDS), help="of which kinds, in turn")
    parser.add_argument("--pictures", type=int, default=24, help="or segments of the clip")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1e9, help="start no trial after so many")
    parser.add_argument("--record", type=Path)
    asked = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"  # the processes of this file, and for its time, only
    with tempfile.TemporaryDirectory(prefix="yonos-kills-") as name:
        trials = run((Clip if asked.video else Pictures)(Path(name), asked), asked)
    wrong = [trial for trial in trials if not trial["same"]]
    counts = Counter(trial["kind"] for trial in trials)
    command = "video" if asked.video else "upscale"
    print(f"{len(trials)} trials ({dict(counts)}), {len(wrong)} with other outputs than yonos {command}")
    if asked.record is not None:
        asked.record.parent.mkdir(parents=True, exist_ok=True)
        facts = {key: value for key, value in vars(asked).items() if key != "record"}
        asked.record.write_text(json.dumps(facts | {"trials": trials}, indent=1))
    sys.exit(bool(wrong))


def run(work: Pictures | Clip, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Do the trials and return a record of each."""
    chance = random.Random(asked.seed)
    kinds, trials = asked.kinds.split(","), []
    began_s = time.monotonic()
    from yonos_trt.ray_data.cluster import import_ray

    ray = import_ray()
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        node = cluster.add_node(num_cpus=1)
        for number in range(asked.trials):
            if time.monotonic() - began_s > asked.seconds:
                break
            kind, after = kinds[number % len(kinds)], chance.randrange(1, asked.pictures - 4)
            out = work.folder / f"out{number}"
            out.mkdir()
            trial_s = time.monotonic()
            if kind == "driver":
                killed = kill_driver(work, out, after, cluster.address)
            else:
                killer = Killer(after, node if kind == "node" else None)
                work.run(out, killer)
                killed = killer.killed
            same = work.contents(out) == work.wanted
            seconds = round(time.monotonic() - trial_s, 1)
            trials.append({"kind": kind, "after": after, "killed": killed, "same": same, "seconds": seconds})
            print(json.dumps(trials[-1]), flush=True)
            if kind == "node" and number + 1 < asked.trials:
                cluster.remove_node(node, allow_graceful=False)
                node = cluster.add_node(num_cpus=1)
    finally:
        ray.shutdown()
        cluster.shutdown()
    return trials


# ---------------------------------------------------------------------------------------------------------
# What is done


class Pictures:
    """A folder of pictures; a result is a file."""

    resume: tuple[str, ...] = ()

    def __init__(self, folder: Path, asked: argparse.Namespace) -> None:
        self.folder, self._source = folder, folder / "in"
        self._source.mkdir()
        rng = np.random.default_rng(asked.seed)
        for i in range(asked.pictures):
            size = (*rng.integers(24, 64, 2), 3)
            Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(self._source / f"p{i}.png")
        expected = folder / "expected"
        words = ["upscale", "-i", self._source, "-o", expected, "-m", MODEL, "-q", "--progress", "none"]
        subprocess.run([*YONOS, *words], check=True)
        self.wanted = self.contents(expected)

    def contents(self, folder: Path) -> dict[str, bytes]:
        """Return the files of a folder by name, those that are hidden too."""
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    def words(self, out: Path) -> list[Any]:
        """Return the command, without what is said of workers."""
        return ["batch", self._source, out, "-m", MODEL, "-q", "--progress", "none"]

    def done(self, out: Path) -> int:
        """Return how many results are there."""
        return len(list(out.glob("*.png")))

    def run(self, out: Path, killer: Killer) -> None:
        """Run in this process; `killer` is told of every result."""
        from yonos_trt.ray_data import upscale

        done = upscale(
            str(self._source), str(out), engine_dir=MODEL, workers=2, threads=1, progress=Told(killer)
        )
        assert not done.failed, done.failed


class Told(Silent):
    """Tells a `Killer` which worker made a result."""

    def __init__(self, killer: Killer) -> None:
        super().__init__(quiet=True)
        self._killer = killer

    def finish(self, name: str, **facts: Any) -> None:
        """Tell."""
        self._killer.count(facts["worker"])


class Clip(logging.Handler):
    """A clip; a result is a segment, of which `yonos_trt.ray_data.video` logs which worker made it."""

    resume = ("--resume",)

    def __init__(self, folder: Path, asked: argparse.Namespace) -> None:
        super().__init__()
        import av

        self.folder, self._source = folder, folder / "in.mkv"
        rng = np.random.default_rng(asked.seed)
        with av.open(str(self._source), "w") as file:
            stream = file.add_stream("libx264", rate=25, options={"crf": "10"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for _ in range(asked.pictures * SEGMENT):
                pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
                file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
            file.mux(stream.encode())
        expected = folder / "expected"
        expected.mkdir()
        subprocess.run([*YONOS, *map(str, self._common(expected))], check=True)
        self.wanted = self.contents(expected)
        self._killer: Killer | None = None
        self._chance = random.Random(asked.seed)
        log = logging.getLogger("yonos_trt.ray_data.video")
        log.setLevel(logging.INFO)
        log.addHandler(self)

    def contents(self, folder: Path) -> dict[str, list[str]]:
        """Return a clip's packets with their times; what else is in the folder, as a name alone."""
        import av

        found: dict[str, list[str]] = {path.name: [] for path in folder.iterdir()}
        with av.open(str(folder / "out.mkv")) as file:
            for packet in file.demux():
                fact = f"{packet.stream.index} {packet.pts} {packet.dts}"
                found["out.mkv"].append(f"{fact} {hashlib.sha256(bytes(packet)).hexdigest()}")
        return found

    def _common(self, out: Path) -> list[Any]:
        words = ["video", "-i", self._source, "-o", out / "out.mkv", "-m", MODEL, "-q", "--progress", "none"]
        return [*words, "--threads", "1", "--segment-frames", SEGMENT]

    def words(self, out: Path) -> list[Any]:
        """As `Pictures`."""
        return [*self._common(out), "--ray"]

    def done(self, out: Path) -> int:
        """As `Pictures`."""
        from yonos_trt.video.segments import work_folder

        return len(list(work_folder(out / "out.mkv").glob("segment-??????")))

    def run(self, out: Path, killer: Killer) -> None:
        """As `Pictures`."""
        from yonos_trt.ray_data import upscale_video
        from yonos_trt.video import VideoOptions

        self._killer = killer
        options = VideoOptions(segment_frames=SEGMENT)
        upscale_video(
            self._source, out / "out.mkv", options=options, engine_dir=MODEL, workers=2, threads=1, seed=0
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Tell of a segment: its number, the worker, seconds."""
        if record.msg.startswith("segment") and self._killer is not None:
            assert isinstance(record.args, tuple)
            # a little later, as by now this worker waits for its next segment
            self._killer.count(
                str(record.args[1]), later_s=self._chance.random() * float(str(record.args[2]))
            )


# ---------------------------------------------------------------------------------------------------------
# What kills


class Killer:
    """Kills after so many results: the second node's raylet, or the worker that made the last one."""

    def __init__(self, after: int, node: Any) -> None:
        self.killed = False
        self._after, self._node, self._done = after, node, 0

    def count(self, worker: str, later_s: float = 0.0) -> None:
        """Count a result, which ``worker`` ("host:pid") made, and kill."""
        self._done += 1
        if self._done == self._after:
            process = int(worker.rpartition(":")[2])
            if self._node is not None:
                process = self._node.all_processes["raylet"][0].process.pid
            threading.Timer(later_s, self._kill, (process,)).start()

    def _kill(self, process: int) -> None:
        os.kill(process, signal.SIGKILL)
        self.killed = True


def kill_driver(work: Pictures | Clip, out: Path, after: int, address: str) -> bool:
    """Run in a process, kill that when so many results are there, and say it again."""
    words = [*work.words(out), "--workers", 2, "--threads", 1, "--address", address]
    command = [*YONOS, *map(str, words)]
    driver = subprocess.Popen(command)
    while driver.poll() is None and work.done(out) < after:
        time.sleep(0.02)
    killed = driver.poll() is None
    driver.kill()
    driver.wait()
    subprocess.run([*command, *work.resume], check=True)
    return killed


if __name__ == "__main__":
    main()
