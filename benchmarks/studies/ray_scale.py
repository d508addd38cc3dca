"""What `yonos batch` costs beside the pictures: listing, scheduling, memory; and what a second worker brings.

::

    python -m benchmarks.studies.ray_scale --record runs/ray_scale.json      # two quiet cores: ten minutes

Each part is a line of JSON. Names are hard links to one small picture, and what is scheduled there is done
by workers that do nothing. Pictures in earnest are counted from the moment when every worker has told its
first result, so without the start of Ray and of the workers, which the parts tell apart. Wall time means
something on a quiet machine only; CPU seconds are those of this process and of all that Ray started, and
hold on a busy one too.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
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
_NOTED_S = 0.5


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
    """Notes when each picture was finished, and the CPU seconds until then."""

    def __init__(self, workers: int = 1) -> None:
        super().__init__(quiet=True)
        self.began_s = time.perf_counter()
        self._workers, self._seen = workers, set[str]()
        self._times: list[float] = []
        self._spent: list[tuple[int, Counter[str]]] = []  # noted now and then: it takes milliseconds

    def finish(self, name: str, **facts: Any) -> None:
        """Note the time."""
        self._seen.add(facts.get("worker", ""))
        if len(self._seen) == self._workers:
            self._times.append(time.perf_counter())
            if not self._spent or self._times[-1] - self._times[self._spent[-1][0]] > _NOTED_S:
                self._spent.append((len(self._times) - 1, cpu_seconds()))

    @property
    def start_s(self) -> float:
        """Seconds to the first result, by when every worker had told one."""
        return self._times[0] - self.began_s

    @property
    def each_s(self) -> float:
        """Seconds a picture, from the first to the last result."""
        return (self._times[-1] - self._times[0]) / (len(self._times) - 1)

    @property
    def each_cpu_s(self) -> dict[str, float]:
        """CPU seconds a picture, by who spent them, as `cpu_seconds`."""
        (first, before), (last, after) = self._spent[0], self._spent[-1]
        spent = after - before
        return {name: spent[name] / (last - first) for name in spent}


def cpu_seconds() -> Counter[str]:
    """Return the CPU seconds of this process ("driver"), of the workers, and of all else that Ray started."""
    me = psutil.Process()
    total: Counter[str] = Counter()
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.Error, IndexError):
            kind = "driver" if process == me else "ray"
            if "MapWorker" in process.cmdline()[0]:
                kind = "worker"
            total[kind] += sum(process.cpu_times()[:4])  # user, system, and those of its children that ended
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", default="1000,10000,100000", help="how many are listed")
    parser.add_argument(
        "--scheduled", type=int, default=20_000, help="how many go through workers that do nothing; 0: none"
    )
    parser.add_argument("--pictures", type=int, default=40, help="in earnest; 0: none")
    parser.add_argument("--side", type=int, default=128, help="of each, in pixels")
    parser.add_argument("--turns", type=int, default=2, help="of those in earnest")
    parser.add_argument("--record", type=Path)
    asked = parser.parse_args()
    parts: list[dict[str, Any]] = []

    def told(part: dict[str, Any]) -> None:
        parts.append(part | {"load": os.getloadavg()[0]})
        print(json.dumps(parts[-1]), flush=True)

    began_s = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="yonos-scale-") as name:
        folder = Path(name)
        for count in map(int, filter(None, asked.names.split(","))):
            told(listed(folder / f"in{count}", count))
        start_s, start_cpu_s = time.perf_counter(), cpu_seconds()
        with connected(None) as ray:
            spent = (cpu_seconds() - start_cpu_s).total()
            seconds = {"seconds": time.perf_counter() - start_s, "cpu_seconds": spent}
            told({"start_of_ray": {name: round(s, 1) for name, s in seconds.items()}})
            if asked.scheduled:
                for size in (0, 200):  # 200: as a hundred workers get them
                    told(scheduled(ray, asked.scheduled, size))
            if asked.pictures:
                told(in_earnest(folder, asked.pictures, asked.side, asked.turns))
    print(json.dumps({"minutes": round((time.perf_counter() - began_s) / 60, 1)}))
    if asked.record is not None:
        asked.record.parent.mkdir(parents=True, exist_ok=True)
        asked.record.write_text(json.dumps(parts, indent=1))


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


def scheduled(ray: Any, count: int, size: int = 0) -> dict[str, Any]:
    """Send names through workers that do nothing, in blocks of `size` or (0) as two workers get them; note
    this process's memory on the way."""
    made = BatchPlan([f"/in/p{i}.png" for i in range(count)], [f"/out/p{i}_x4.png" for i in range(count)])
    clock = Clock()
    batch = run._Batch(made, clock)
    batch.leave_out(overwrite=True)
    share = share_of(ray, workers=2, cpus=1, gpus=0, memory_mb=None, on_gpu=False)
    run.Teller = Nothing  # type: ignore[misc]
    mib = [resident_mib()]
    sizes = [size] * (count // size) if size else run.block_sizes(count, share.workers)
    began_s = time.perf_counter()
    rows = run._results(ray, batch.blocks(range(count), sizes), share, {}, [])
    for told, row in enumerate(itertools.chain.from_iterable(rows), 1):
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
        "start_s": round(clock.start_s, 1),
        "cpu_ms_a_name": {kind: round(s * 1e3, 2) for kind, s in clock.each_cpu_s.items()},
        "driver_mib_at_quarters": mib,
    }


REAL = run.Teller


def resident_mib() -> int:
    """Return this process's memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() >> 20


def in_earnest(folder: Path, count: int, side: int, turns: int) -> dict[str, Any]:
    """Upscale the same pictures without Ray, with one worker, and with two; one thread each."""
    source = folder / "photos"
    source.mkdir()
    rng = np.random.default_rng(1)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(source / f"p{i:03}.png")
    found: dict[str, list[Clock]] = {"upscale": [], "one": [], "two": []}
    for turn in range(turns):
        for kind in found:
            out, clock = folder / f"{kind}{turn}", Clock(2 if kind == "two" else 1)
            if kind == "upscale":
                jobs = plan_jobs([source], str(out), scale=4).jobs
                with SR(MODEL, threads=1) as sr:
                    run_jobs(jobs, FileStages(sr), clock)
            else:
                workers = 1 if kind == "one" else 2
                upscale(str(source), str(out), engine_dir=MODEL, workers=workers, threads=1, progress=clock)
            found[kind].append(clock)
            if kind != "upscale":
                assert all(
                    path.read_bytes() == (folder / f"upscale{turn}" / path.name).read_bytes()
                    for path in out.iterdir()
                )
    wall = {kind: [clock.each_s for clock in clocks] for kind, clocks in found.items()}
    cpu = {kind: [clock.each_cpu_s for clock in clocks] for kind, clocks in found.items()}
    best = {kind: min(times) for kind, times in wall.items()}
    least = {kind: min(sum(spent.values()) for spent in times) for kind, times in cpu.items()}
    worker = min(spent.get("worker", 0.0) for spent in cpu["one"])
    return {
        "pictures": count,
        "side_px": side,
        "start_s": {kind: [round(clock.start_s, 1) for clock in clocks] for kind, clocks in found.items()},
        "seconds_each": {kind: [round(t, 3) for t in times] for kind, times in wall.items()},
        "cpu_seconds_each": {
            kind: [{who: round(s, 3) for who, s in spent.items()} for spent in times]
            for kind, times in cpu.items()
        },
        "one_worker_over_upscale": round(best["one"] / best["upscale"], 3),
        "one_worker_over_upscale_cpu": round(least["one"] / least["upscale"], 3),
        "the_same_in_the_worker_alone": round(worker / least["upscale"], 3),
        "one_worker_over_two": round(best["one"] / best["two"], 3),
    }


if __name__ == "__main__":
    main()
