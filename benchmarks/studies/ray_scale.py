"""What `yonos batch` costs beside the pictures: listing, scheduling, memory; and what a second worker brings.

::

    python -m benchmarks.studies.ray_scale --names 1000,10000,100000 --scheduled 20000 --pictures 30

Ratios within one run count, as other processes change the times. Names are hard links to one small
picture, and what is scheduled there is done by workers that do nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from yonos_trt.cli.file_stages import FileStages
from yonos_trt.cli.job_run import run_jobs
from yonos_trt.cli.jobs import plan_jobs
from yonos_trt.cli.progress import Silent
from yonos_trt.ray_data import run, upscale
from yonos_trt.ray_data.cluster import connected, share_of
from yonos_trt.ray_data.planning import BatchPlan, plan
from yonos_trt.sr import SR

MODEL = "lite-x4"


class Nothing:
    """Tells every picture done."""

    def __init__(self, **_: Any) -> None:
        pass

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, list[Any]]]:
        """Tell a whole block at once, as where pictures are fast."""
        fixed = {"state": "done", "error": "", "reason": "", "left_out": [], "seconds": 0.0, "worker": "x:0"}
        rows = [fixed | {"index": int(index), "node": ""} for index in batch["index"]]
        yield {"told": [json.dumps(rows)]}


class Clock(Silent):
    """Notes when each picture was finished."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.times: list[float] = []

    def finish(self, name: str, **facts: Any) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())

    @property
    def each_s(self) -> float:
        """Seconds a picture, from the first to the last result."""
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", default="1000,10000,100000", help="how many are listed")
    parser.add_argument(
        "--scheduled", type=int, default=20_000, help="how many go through workers that do nothing"
    )
    parser.add_argument("--pictures", type=int, default=30, help="of 128 x 128 px, in earnest; 0: none")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="yonos-scale-") as name:
        folder = Path(name)
        for count in map(int, filter(None, asked.names.split(","))):
            print(json.dumps(listed(folder / f"in{count}", count)), flush=True)
        with connected(None) as ray:
            if asked.scheduled:
                print(json.dumps(scheduled(ray, asked.scheduled)), flush=True)
            if asked.pictures:
                print(json.dumps(in_earnest(folder, asked.pictures)), flush=True)


def listed(source: Path, count: int) -> dict[str, Any]:
    """Time the plan of a folder whose outputs are not there yet, and of one where all are."""
    source.mkdir()
    one = source / "p0.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(one)
    os.chmod(source, 0o755)
    out = source.with_name(f"{source.name}-out")
    out.mkdir()
    for i in range(1, count):
        copy_of(one, source / f"p{i}.png", i)
    first_s, first = timed(source, out)
    for i, name in enumerate(first.targets):
        copy_of(one, Path(name), i)
    again_s, again = timed(source, out)
    assert (len(first.there), len(again.there)) == (0, count)
    return {"names": count, "plan_s": round(first_s, 3), "plan_where_all_exist_s": round(again_s, 3)}


def copy_of(one: Path, name: Path, number: int) -> None:
    """Make one more name: a link, and every so often a new file, as a file has a bounded number of links."""
    if number % 10_000 == 0:
        name.write_bytes(one.read_bytes())
    else:
        os.link(one.with_name(f"p{number // 10_000 * 10_000}.png"), name)


def timed(source: Path, out: Path) -> tuple[float, BatchPlan]:
    """Return the seconds and the plan."""
    began_s = time.perf_counter()
    made = plan(str(source), str(out), recursive=False, suffix="_x{scale}", label="4", format=None)
    return time.perf_counter() - began_s, made


def scheduled(ray: Any, count: int) -> dict[str, Any]:
    """Send names through workers that do nothing; note this process's memory on the way."""
    made = BatchPlan([f"/in/p{i}.png" for i in range(count)], [f"/out/p{i}_x4.png" for i in range(count)])
    clock = Clock()
    batch = run._Batch(made, clock)
    batch.leave_out(overwrite=True)
    share = share_of(ray, workers=2, cpus=1, gpus=0, memory_mb=None, on_gpu=False)
    run.Teller = Nothing  # type: ignore[misc]
    mib = [resident_mib()]
    sizes = run.block_sizes(count, share.workers)
    began_s = time.perf_counter()
    rows = run._results(ray, batch, list(range(count)), sizes, share, {}, [])
    for told, row in enumerate(rows, 1):
        batch.take(row)
        if told % max(1, count // 4) == 0:
            mib.append(resident_mib())
    seconds = time.perf_counter() - began_s
    assert batch.outcome.done == count
    run.Teller = REAL  # type: ignore[misc]
    return {
        "scheduled": count,
        "blocks": len(sizes),
        "seconds": round(seconds, 1),
        "names_per_s": round(1 / clock.each_s, 1),
        "driver_mib_at_quarters": mib,
    }


REAL = run.Teller


def resident_mib() -> int:
    """Return this process's memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() >> 20


def in_earnest(folder: Path, count: int) -> dict[str, Any]:
    """Upscale the same pictures without Ray, with one worker, and with two; one thread each."""
    source = folder / "photos"
    source.mkdir()
    rng = np.random.default_rng(1)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)).save(source / f"p{i:03}.png")
    found: dict[str, list[float]] = {"upscale": [], "one": [], "two": []}
    for turn in range(2):
        for kind in found:
            out, clock = folder / f"{kind}{turn}", Clock()
            if kind == "upscale":
                jobs = plan_jobs([source], str(out), scale=4).jobs
                with SR(MODEL, threads=1) as sr:
                    run_jobs(jobs, FileStages(sr), clock)
            else:
                workers = 1 if kind == "one" else 2
                upscale(str(source), str(out), engine_dir=MODEL, workers=workers, threads=1, progress=clock)
            found[kind].append(clock.each_s)
    best = {kind: min(times) for kind, times in found.items()}
    return {
        "pictures": count,
        "seconds_each": {kind: [round(t, 3) for t in times] for kind, times in found.items()},
        "one_worker_over_upscale": round(best["one"] / best["upscale"], 3),
        "one_worker_over_two": round(best["one"] / best["two"], 3),
    }


if __name__ == "__main__":
    main()
