"""`Upscaler`: what one worker of Ray does with its share, for ``map_batches`` of Ray Data."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from yonos_trt import errors
from yonos_trt.cli.file_stages import FileStages
from yonos_trt.cli.job_outcome import named
from yonos_trt.cli.job_run import run_jobs
from yonos_trt.cli.jobs import Job
from yonos_trt.cli.progress import Silent
from yonos_trt.errors import ConfigError, YonosError
from yonos_trt.ray_data import places
from yonos_trt.sr import SR

Row = dict[str, list[Any]]

TELL_S = 0.5


def for_workers(options: dict[str, Any]) -> tuple[SR, dict[str, Any]]:
    """Return an `SR` with these options, not opened, and the options that make the same on another node.

    Raises
    ------
    YonosError
        As `yonos_trt.SR`; so nobody waits for a cluster first.
    """
    options = {name: value for name, value in options.items() if value is not None}
    sr = SR(**options)
    if options.get("engine_dir") is not None:
        options["engine_dir"] = sr.__getstate__()["engine_dir"]
    return sr, options


class Upscaler:
    """Upscale batches of pictures in a worker of Ray: one `SR`, opened once, with the threads and memory Ray
    gave it.

    ::

        names = ray.data.from_items([{"source": "in/a.png", "target": "s3://bucket/a_x4.png"}, ...])
        done = names.map_batches(Upscaler, batch_size=16, num_cpus=2, compute=ActorPoolStrategy(size=4))

    Parameters
    ----------
    stages
        Keyword parameters of `yonos_trt.cli.file_stages.FileStages`: rows, alpha, format, options, sizing.
    tell_s
        Seconds in which results are gathered and yielded together.
    options
        Keyword parameters of `yonos_trt.SR`. `threads` and `memory_limit_mb` are, where not given, the CPUs
        and the ``memory`` that Ray reserved for this worker; all CPUs and no limit outside of Ray.

    Raises
    ------
    YonosError
        As `yonos_trt.SR`.
    """

    def __init__(
        self, stages: dict[str, Any] | None = None, *, tell_s: float = TELL_S, **options: Any
    ) -> None:
        given = _given()
        self.node = given.pop("node", "")
        self.worker = f"{socket.gethostname()}:{os.getpid()}"
        self.options = given | {k: v for k, v in options.items() if v is not None or k not in given}
        self._stages, self._tell_s = dict(stages or {}), tell_s
        self._sr: SR | None = None

    @property
    def sr(self) -> SR:
        """What upscales; opened at first use and kept."""
        if self._sr is None:
            self._sr = SR(**self.options).open()
        return self._sr

    def __call__(self, batch: dict[str, Any]) -> Iterator[Row]:
        """Upscale a batch; reading, networks and writing of neighbouring pictures overlap.

        Parameters
        ----------
        batch
            Columns ``source`` and ``target``: paths (absolute, of this node) or URIs; a target is replaced.
            Or a column ``image`` of arrays (H, W, C), any sizes: it is replaced by the results, the other
            columns stay.

        Yields
        ------
        dict of str to list
            For names, a row for each picture soon after it is finished: ``index`` (the batch's column of that
            name, else the place in the batch), ``source`` and ``target`` as given, ``state`` ("done",
            "failed" or "fatal", which every other picture would meet as well), ``error`` and ``reason``,
            ``left_out``, ``seconds``, ``worker`` ("host:pid") and ``node``.

        Raises
        ------
        ConfigError
            The batch has neither columns.
        """
        if "image" in batch:
            yield {**batch, "image": [self.sr.upscale(image) for image in batch["image"]]}
            return
        if not {"source", "target"} <= batch.keys():
            raise ConfigError(
                f"the batch has the columns {', '.join(batch)}, expected 'source' and 'target', or 'image'"
            )
        sources, targets = ([str(name) for name in batch[key]] for key in ("source", "target"))
        indices = [int(index) for index in batch.get("index", range(len(sources)))]
        rows: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        thread = threading.Thread(target=self._work, args=(sources, targets, rows.put), daemon=True)
        thread.start()
        for told in _grouped(rows, self._tell_s):
            for row in told:
                place = row.pop("place")
                row |= {"index": indices[place], "source": sources[place], "target": targets[place]}
            yield {key: [row[key] for row in told] for key in told[0]}
        thread.join()

    def _work(
        self, sources: list[str], targets: list[str], put: Callable[[dict[str, Any] | None], None]
    ) -> None:
        progress = _Rows(put, {"worker": self.worker, "node": self.node})
        try:
            with tempfile.TemporaryDirectory(prefix="yonos-", ignore_cleanup_errors=True) as folder:
                staged = _Staged(Path(folder), sources, targets)
                progress.told = staged.told
                staged.stages = FileStages(self.sr, **self._stages)
                run_jobs(staged.jobs, staged, progress, existing="overwrite")
        except BaseException as error:
            progress.tell("fatal", error=type(error).__name__, reason=str(named("", error)))
        finally:
            put(None)


_PLAIN = {
    *(errors.ConfigError, errors.InputError, errors.ManifestError, errors.EngineNotFoundError),
    *(errors.EngineIntegrityError, errors.EngineVersionError, errors.EngineDeviceError, errors.BuildError),
    *(errors.CudaError, errors.ProfileError),
}
"""Errors that are made of their text alone."""


def raised(told: dict[str, Any]) -> YonosError:
    """Return the error that a worker told of: ``error``, its class, ``reason`` and ``worker``."""
    kind = getattr(errors, told["error"], YonosError)
    return (kind if kind in _PLAIN else YonosError)(f"{told['reason']} (in the worker {told['worker']})")


def _grouped(rows: queue.SimpleQueue[dict[str, Any] | None], tell_s: float) -> Iterator[list[dict[str, Any]]]:
    """Yield what is told within `tell_s` together: each delivery costs the driver a turn of its loop."""
    told: list[dict[str, Any]] = []
    last_s = time.monotonic()
    row: dict[str, Any] | None = {}
    while row is not None:
        with contextlib.suppress(queue.Empty):
            row = rows.get(timeout=max(0.0, last_s + tell_s - time.monotonic()) if told else None)
            if row is not None:
                told.append(row)
        if told and (row is None or time.monotonic() - last_s >= tell_s):
            yield told
            told, last_s = [], time.monotonic()


def _given() -> dict[str, Any]:
    """Return what Ray gave this worker, as options of `SR`, and its node; nothing outside of Ray."""
    try:
        import ray
    except ImportError:
        return {}
    if not ray.is_initialized():
        return {}
    context: Any = ray.get_runtime_context()
    if context.worker.mode != ray.WORKER_MODE:  # the driver
        return {}
    resources = context.get_assigned_resources()
    given: dict[str, Any] = {"node": context.get_node_id()}
    if "CPU" in resources:
        given["threads"] = max(1, int(resources["CPU"]))
    if "memory" in resources:
        given["memory_limit_mb"] = max(1, int(resources["memory"]) >> 20)
    return given


class _Staged:
    """`FileStages` with a copy on this machine in front of and behind every picture that lies elsewhere."""

    stages: FileStages

    def __init__(self, folder: Path, sources: list[str], targets: list[str]) -> None:
        self._ways = {
            self._copies(folder / str(i), source, target): (source, target)
            for i, (source, target) in enumerate(zip(sources, targets, strict=True))
        }
        self.jobs = list(self._ways)

    @staticmethod
    def _copies(folder: Path, source: str, target: str) -> Job:
        def here(name: str, kind: str) -> Path:
            if not places.is_remote(name):
                return Path(places.local(name))
            return folder / kind / Path(places.shown(name)).name[-60:]  # keys may be longer than names here

        return Job(here(source, "in"), here(target, "out"))

    def told(self, text: str) -> str:
        """Put the names that the user knows in the place of those of the copies."""
        for job, names in self._ways.items():
            for copy, name in zip((job.source, job.target), names, strict=True):
                if places.is_remote(name):
                    text = text.replace(str(copy), places.shown(name))
        return text

    def read(self, job: Job) -> Any:
        """Fetch and decode."""
        source, _ = self._ways[job]
        if not places.is_remote(source):
            return self.stages.read(job)
        job.source.parent.mkdir(parents=True, exist_ok=True)
        try:
            places.fetch(source, job.source)
            return self.stages.read(job)
        finally:
            job.source.unlink(missing_ok=True)

    def needed_bytes(self, job: Job, picture: Any) -> int:
        """As `FileStages`."""
        return self.stages.needed_bytes(job, picture)

    def free_bytes(self) -> int:
        """As `FileStages`."""
        return self.stages.free_bytes()

    def upscale(self, job: Job, picture: Any, on_tiles: Callable[[int, int], None], *, fits: bool) -> Any:
        """As `FileStages`."""
        return self.stages.upscale(job, picture, on_tiles, fits=fits)

    def write(self, job: Job, result: Any) -> tuple[str, ...]:
        """Encode and put."""
        left_out = self.stages.write(job, result)
        _, target = self._ways[job]
        if places.is_remote(target):
            try:
                places.put(job.target, target)
            finally:
                job.target.unlink(missing_ok=True)
        return left_out


class _Rows(Silent):
    """Make a row of what becomes of every picture; they come in the order of the batch."""

    def __init__(self, put: Callable[[dict[str, Any] | None], None], facts: dict[str, str]) -> None:
        super().__init__(quiet=True)
        self._put, self._facts = put, facts
        self._place, self._began_s = 0, time.perf_counter()
        self.told: Callable[[str], str] = str

    def start(self, name: str, index: int, count: int) -> None:
        """Remember which picture it is."""
        self._place, self._began_s = index, time.perf_counter()

    def finish(self, name: str, **facts: Any) -> None:
        """Give the row of a result."""
        self.tell("done", seconds=facts["seconds"], left_out=list(facts["left_out"]))

    def fail(self, name: str, error: BaseException) -> None:
        """Give the row of a failure."""
        self.tell("failed", error=type(error).__name__, reason=self.told(str(error)))

    def tell(self, state: str, **facts: Any) -> None:
        """Give a row; every one has the same columns."""
        worked_s = round(time.perf_counter() - self._began_s, 3)
        row = {
            "place": self._place,
            "state": state,
            "error": "",
            "reason": "",
            "left_out": [""][:0],
            "seconds": worked_s,
        }
        self._put(row | self._facts | facts)
