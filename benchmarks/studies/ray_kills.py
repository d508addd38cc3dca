"""Kill workers, nodes and drivers of `yonos batch` at random, and compare the outputs with `yonos upscale`'s.

::

    python -m benchmarks.studies.ray_kills --trials 20 --record runs/ray_kills.json

One Ray cluster of two nodes (one worker each) on this machine. A trial upscales a folder and kills, by
SIGKILL and after a random number of results: a worker's process, the second node's raylet (its worker
dies with it), or the driver, whose batch is then said again. After each trial the outputs are compared
byte for byte; whatever differs ends in exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from yonos_trt.cli.progress import Silent

KINDS = ("worker", "node", "driver")
MODEL = "lite-x2"
YONOS = [sys.executable, "-c", "from yonos_trt.console import yonos; yonos()"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--kinds", default=",".join(KINDS), help="of which kinds, in turn")
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1e9, help="start no trial after so many")
    parser.add_argument("--record", type=Path)
    asked = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"  # the processes of this file, and for its time, only
    with tempfile.TemporaryDirectory(prefix="yonos-kills-") as name:
        trials = run(Path(name), asked)
    wrong = [trial for trial in trials if not trial["same"]]
    counts = Counter(trial["kind"] for trial in trials)
    print(f"{len(trials)} trials ({dict(counts)}), {len(wrong)} with other outputs than yonos upscale")
    if asked.record is not None:
        asked.record.parent.mkdir(parents=True, exist_ok=True)
        asked.record.write_text(
            json.dumps({"seed": asked.seed, "pictures": asked.pictures, "trials": trials}, indent=1)
        )
    sys.exit(bool(wrong))


def run(folder: Path, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Do the trials and return a record of each."""
    source, expected = folder / "in", folder / "expected"
    source.mkdir()
    rng = np.random.default_rng(asked.seed)
    for i in range(asked.pictures):
        size = (*rng.integers(24, 64, 2), 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(source / f"p{i}.png")
    subprocess.run(
        [*YONOS, "upscale", "-i", source, "-o", expected, "-m", MODEL, "-q", "--progress", "none"], check=True
    )
    wanted = contents(expected)
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
            out = folder / f"out{number}"
            trial_s = time.monotonic()
            if kind == "driver":
                killed = kill_driver(source, out, after, cluster.address)
            else:
                killed = kill_while_working(source, out, after, node if kind == "node" else None)
            if kind == "node":
                cluster.remove_node(node, allow_graceful=False)
                node = cluster.add_node(num_cpus=1)
            same = contents(out) == wanted
            seconds = round(time.monotonic() - trial_s, 1)
            trials.append({"kind": kind, "after": after, "killed": killed, "same": same, "seconds": seconds})
            print(json.dumps(trials[-1]), flush=True)
    finally:
        ray.shutdown()
        cluster.shutdown()
    return trials


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder by name, those that are hidden too."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Killer(Silent):
    """Kills after so many results: the second node's raylet, or the worker that made the last one."""

    def __init__(self, after: int, node: Any) -> None:
        super().__init__(quiet=True)
        self.killed = False
        self._after, self._node, self._done = after, node, 0

    def finish(self, name: str, **facts: Any) -> None:
        """Count, and kill."""
        self._done += 1
        if self._done != self._after:
            return
        process = int(facts["worker"].rpartition(":")[2])
        if self._node is not None:
            process = self._node.all_processes["raylet"][0].process.pid
        os.kill(process, signal.SIGKILL)
        self.killed = True


def kill_while_working(source: Path, out: Path, after: int, node: Any) -> bool:
    """Run a batch in this process, and kill meanwhile."""
    from yonos_trt.ray_data import upscale

    killer = Killer(after, node)
    done = upscale(str(source), str(out), engine_dir=MODEL, workers=2, threads=1, progress=killer)
    assert not done.failed, done.failed
    return killer.killed


def kill_driver(source: Path, out: Path, after: int, address: str) -> bool:
    """Run a batch in a process, kill that when so many results are there, and say it again."""
    command = [
        *YONOS,
        "batch",
        source,
        out,
        "-m",
        MODEL,
        "--workers",
        "2",
        "--threads",
        "1",
        "--address",
        address,
    ]
    command = [str(word) for word in (*command, "--progress", "none", "-q")]
    driver = subprocess.Popen(command)
    while driver.poll() is None and len(list(out.glob("*.png"))) < after:
        time.sleep(0.02)
    killed = driver.poll() is None
    driver.kill()
    driver.wait()
    subprocess.run(command, check=True)
    return killed


if __name__ == "__main__":
    main()
