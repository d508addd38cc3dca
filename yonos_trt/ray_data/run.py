"""`upscale`: a folder or bucket of pictures through the workers of a Ray cluster, nothing lost and nothing
twice.

The names go to Ray Data in blocks that get smaller towards the end; every worker takes the next block when it
has finished one, and every picture is told as it is finished. A block whose worker died is left out by Ray
Data, and what of it was not told is done again in the next pass, as is, once and elsewhere, what failed.

Ray Data does not run through Ray's client (2.60): with ``ray://`` an actor on the cluster's head node runs it
and hands over what it is told. Everything else, listings and report too, is done by the caller.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yonos_trt.atomic import remove_leftovers, write_file
from yonos_trt.cli.jobs import DEFAULT_SUFFIX
from yonos_trt.cli.progress import Progress, Silent
from yonos_trt.errors import InputError, YonosError
from yonos_trt.images import SaveOptions
from yonos_trt.ray_data import places
from yonos_trt.ray_data.cluster import Share, connected, import_ray, may_use_gpus, one_line, share_of
from yonos_trt.ray_data.planning import BatchPlan, plan
from yonos_trt.ray_data.worker import TELL_S, Upscaler, for_workers, raised
from yonos_trt.sizing import Sizing

REPORT = "yonos-report.jsonl"
"""The report's name in the output folder."""

_LARGEST_BLOCK = 32  # pictures, of up to 16 workers
_MESSAGES_PER_S = 50  # that all workers send: the driver takes some 150 (benchmarks.studies.ray_scale)
_ROUNDS = 4  # a block is at most the remaining pictures, divided by the workers, so many times
_DEATHS = 3  # a picture whose worker died so often has failed


Block = dict[str, list[Any]]  # index, source, target


@dataclass(slots=True)
class BatchOutcome:
    """What became of a batch.

    Attributes
    ----------
    done, skipped : int
        Pictures upscaled, and left out (target there, or nothing that is read).
    failed : list of dict
        The report: ``name``, ``reason``, ``worker`` ("host:pid"; of both tries, last first), ``seconds``.
    seconds : float
        From the first picture's way to a worker to the last one's end, without starting Ray.
    """

    done: int = 0
    skipped: int = 0
    failed: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """0 if nothing failed, else 1."""
        return int(bool(self.failed))


def upscale(
    source: str,
    target: str,
    *,
    recursive: bool = False,
    overwrite: bool = False,
    suffix: str = DEFAULT_SUFFIX,
    format: str | None = None,
    alpha: str = "bicubic",
    rows: str = "auto",
    save: SaveOptions | None = None,
    size: Sizing | None = None,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    address: str | None = None,
    report: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> BatchOutcome:
    """Upscale the pictures of a folder, or below a URI, with a cluster's workers; results are those of `yonos
    upscale`.

    Parameters
    ----------
    source, target
        Folders, or URIs of pyarrow's or fsspec's file systems (``s3://bucket/folder``); see
        `yonos_trt.ray_data.places`. They are listed here; folders are the same ones on every node.
    recursive
        Go into sub-folders and keep the tree.
    overwrite
        Do what exists again; without it, that is left out, as one listing of `target` says.
    suffix, format, alpha, rows, save, size
        Names, formats and sizes as `yonos upscale` has them; `rows` is its ``--stream``.
    workers, gpus_per_worker
        How many, with how many GPUs (parts too) each; None: `yonos_trt.ray_data.cluster.share_of`.
    address
        The cluster, "auto", ``HOST:PORT`` or, from a machine that is no node of it, ``ray://HOST:PORT``; None
        starts Ray on this machine.
    report
        Path of this machine for the report of failures; None: ``yonos-report.jsonl`` in `target`. Without
        failures there is none.
    progress
        Is told of every picture when it is finished, in whatever order that is.
    options
        Of `yonos_trt.SR`; `threads` is the CPUs of each worker, which Ray reserves, `memory_limit_mb` its
        memory.

    Returns
    -------
    BatchOutcome

    Raises
    ------
    ConfigError, InputError
        An option, or a place that cannot be listed; or what a worker found that every picture would meet.
    MissingExtraError
        Ray is not installed.
    YonosError
        Ray does not start, or lost every worker; with ``ray://``, the head node or the connection is lost.
    """
    import_ray()  # before any listing
    todo, wanted = plan_batch(
        source, target, recursive=recursive, suffix=suffix, format=format, size=size, **options
    )
    progress = progress or Silent(quiet=True)
    batch = _Batch(todo, progress)
    batch.leave_out(overwrite=overwrite)
    place = report or (places.below(target, REPORT))
    if batch.left:
        _check_writable(todo, place)
        on_gpu = may_use_gpus(wanted)
        share_options = {
            "cpus": wanted.pop("threads", None),
            "memory_mb": wanted.pop("memory_limit_mb", None),
        }
        stages = {"rows": rows, "alpha": alpha, "format": format, "options": save, "sizing": size}
        sight = [str(folder) for folder in todo.top]
        if not places.is_remote(source):
            sight.append(os.path.abspath(places.local(source)))
        try:
            with connected(address) as ray:
                share = share_of(ray, workers=workers, gpus=gpus_per_worker, on_gpu=on_gpu, **share_options)
                began_s = time.perf_counter()
                _passes(ray, batch, share, {"sight": sight, "stages": stages, **wanted})
                batch.outcome.seconds = round(time.perf_counter() - began_s, 3)
        finally:
            for folder in todo.folders:  # workers that were stopped
                remove_leftovers(folder)
    _write_report(batch.outcome.failed, place)
    outcome = batch.outcome
    progress.end(done=outcome.done, skipped=outcome.skipped, failed=len(outcome.failed))
    return outcome


def _check_writable(todo: BatchPlan, report: str) -> None:
    """Refuse places of this machine that take no file, before anybody works for them.

    Raises
    ------
    InputError
        The output folder cannot be made; that, or the report's, cannot be written to.
    """
    folders = todo.top
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be made ({error.strerror}); name another output folder"
        ) from error
    if not places.is_remote(report):
        folders.append(Path(os.path.abspath(places.local(report))).parent)
    for folder in folders:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            raise InputError(f"{folder}: cannot be written to; mend its rights, or name another one")


def plan_batch(
    source: str,
    target: str,
    *,
    recursive: bool,
    suffix: str,
    format: str | None,
    size: Sizing | None,
    **options: Any,
) -> tuple[BatchPlan, dict[str, Any]]:
    """Return what there is to do, and the options of every worker's `SR`, checked before anybody waits."""
    sr, options = for_workers(options)
    if size is not None and suffix == DEFAULT_SUFFIX:
        suffix = "_{scale}"
    label = str(size or f"{sr.factor:g}")
    return plan(source, target, recursive=recursive, suffix=suffix, label=label, format=format), options


# ---------------------------------------------------------------------------------------------------------
# What is left, and what became of the rest


class _Batch:
    """The pictures by their places in the plan, and who is told about them."""

    def __init__(self, todo: BatchPlan, progress: Progress) -> None:
        self.plan, self.outcome = todo, BatchOutcome()
        self._progress = progress
        self.left: dict[int, None] = dict.fromkeys(range(len(todo.sources)))
        self.tried: dict[int, dict[str, Any]] = {}
        self._deaths: dict[int, int] = {}
        self._count = self._told = 0

    def leave_out(self, *, overwrite: bool) -> None:
        """Tell and count what is not done."""
        for name, reason, failed in self.plan.passed_over:
            if failed:
                self.outcome.failed.append({"name": name, "reason": reason, "worker": [], "seconds": 0.0})
                self._progress.fail(name, InputError(f"{name}: {reason}"))
            else:
                self.outcome.skipped += 1
                self._progress.pass_over(name, reason)
        for index in () if overwrite else self.plan.there:
            del self.left[index]
            self.outcome.skipped += 1
            self._progress.skip(self.name(index), f"{places.shown(self.plan.targets[index])} exists")
        self._count = len(self.left)

    def name(self, index: int) -> str:
        """What the user calls a picture."""
        return places.shown(self.plan.sources[index])

    def blocks(self, indices: Sequence[int], sizes: Sequence[int]) -> Iterator[Block]:
        """Yield blocks of so many pictures for `Upscaler`."""
        left = iter(indices)
        for size in sizes:
            taken = list(itertools.islice(left, size))
            yield {
                "index": taken,
                "source": [places.sendable(self.plan.sources[i]) for i in taken],
                "target": [places.sendable(self.plan.targets[i]) for i in taken],
            }

    def take(self, row: dict[str, Any]) -> None:
        """Note what became of a picture.

        Raises
        ------
        YonosError
            Every other picture would meet that too.
        """
        index, name = row["index"], self.name(row["index"])
        if row["state"] == "fatal":
            raise raised(row)
        if index not in self.left:  # told twice: a worker died after it was told
            return
        if row["state"] == "done":
            del self.left[index]
            self.outcome.done += 1
            self._start(name)
            target = places.shown(self.plan.targets[index])
            facts = {key: row[key] for key in ("seconds", "left_out", "worker")}
            self._progress.finish(name, target=target, **facts)
        elif index in self.tried:
            self._fail(index, row["reason"], [row["worker"], self.tried[index]["worker"]], row["seconds"])
        else:
            self.tried[index] = row

    def lost(self, indices: Sequence[int], told: set[int]) -> None:
        """Note those of a pass that nobody told about: their worker died."""
        for index in indices:
            if index not in self.left or index in told:
                continue
            self._deaths[index] = self._deaths.get(index, 0) + 1
            if self._deaths[index] == _DEATHS:
                died = f"the worker that had it died, {_DEATHS} times; its memory may have run out"
                self._fail(index, f"{self.name(index)}: {died}", [], 0.0)

    def failed_at(self, node_set: set[str]) -> list[int]:
        """Return the pictures that failed once, on these nodes."""
        return [i for i, row in self.tried.items() if i in self.left and row["node"] in node_set]

    def _fail(self, index: int, reason: str, workers: list[str], seconds: float) -> None:
        del self.left[index]
        name = self.name(index)
        self.outcome.failed.append({"name": name, "reason": reason, "worker": workers, "seconds": seconds})
        self._start(name)
        self._progress.fail(name, InputError(reason))

    def _start(self, name: str) -> None:
        self._progress.start(name, self._told, self._count)
        self._told += 1


def _write_report(failed: list[dict[str, Any]], place: str) -> None:
    """Write the report, or remove that of an earlier run."""
    text = "".join(json.dumps(line) + "\n" for line in failed)
    if not places.is_remote(place):
        path = Path(places.local(place))
        if text:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, text)
        else:
            path.unlink(missing_ok=True)
    elif text:
        with tempfile.TemporaryDirectory(prefix="yonos-") as folder:
            copy = Path(folder) / REPORT
            copy.write_text(text, encoding="utf-8")
            places.put(copy, place)
    else:
        places.remove(place)


# ---------------------------------------------------------------------------------------------------------
# Ray Data


def _passes(ray: Any, batch: _Batch, share: Share, options: dict[str, Any]) -> None:
    """Do what is left until nothing is."""
    results_of = _through_client if ray.util.client.ray.is_connected() else _results
    first = True
    while batch.left:
        before = len(batch.left)
        halves: list[tuple[list[int], list[str]]] = [(list(batch.left), [])]
        if not first:
            halves = _elsewhere(batch, share)
        for indices, nodes in halves:
            sizes = block_sizes(len(indices), share.workers) if first else [1] * len(indices)
            told, blocks = set(), batch.blocks(indices, sizes)
            with contextlib.closing(results_of(ray, blocks, share, options, nodes)) as results:
                for row in itertools.chain.from_iterable(results):
                    told.add(row["index"])
                    batch.take(row)
            batch.lost(indices, told)
        if first and before > _LARGEST_BLOCK and len(batch.left) == before and not batch.tried:
            raise YonosError(
                "no worker finished a picture before it died; its memory may be too small (--workers, "
                "--memory-limit), or yonos-trt does not run on the cluster's nodes"
            )
        first = False


def _elsewhere(batch: _Batch, share: Share) -> list[tuple[list[int], list[str]]]:
    """Send what failed on one half of the nodes to the other half; what was lost goes anywhere."""
    half = len(share.nodes) // 2
    if not half:
        return [(list(batch.left), [])]
    one, other = share.nodes[:half], share.nodes[half:]
    there, back = batch.failed_at(set(one)), batch.failed_at(set(other))
    rest = [i for i in batch.left if i not in {*there, *back}]
    parts = [(there, list(other)), (back, list(one)), (rest, [])]
    return [(indices, nodes) for indices, nodes in parts if indices]


def block_sizes(count: int, workers: int) -> list[int]:
    """Divide `count` pictures into blocks that get smaller, so that nobody waits long for the last one.

    Each costs the driver a turn of its loop, so they are larger where there are many workers.
    """
    sizes, largest = [], max(_LARGEST_BLOCK, 2 * workers)
    while count:
        sizes.append(max(1, min(largest, count // (_ROUNDS * workers))))
        count -= sizes[-1]
    return sizes


def told_every_s(workers: int) -> float:
    """Return the seconds in which a worker's results make one message."""
    return max(TELL_S, workers / _MESSAGES_PER_S)


def _results(
    ray: Any, blocks: Iterable[Block], share: Share, options: dict[str, Any], nodes: list[str]
) -> Generator[list[dict[str, Any]], None, None]:
    """Yield rows, one for every picture that a worker has finished, as they come."""
    import pyarrow

    names: list[str] = []
    tables = [pyarrow.table(block) for block in blocks]
    workers = min(share.workers, len(tables))
    data = ray.data.from_arrow(tables)
    del tables
    settle(data.context)
    results = data.map_batches(
        Teller,
        batch_size=None,
        batch_format="numpy",
        fn_constructor_kwargs={**options, "tell_s": told_every_s(share.workers)},
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=share.cpus,
        num_gpus=share.gpus or None,
        memory=share.memory_bytes or None,
        ray_remote_args_fn=_arguments(nodes, names),
    )
    try:
        for block in results.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
            for told in block["told"].to_pylist():
                yield json.loads(told)
    except ray.exceptions.RayError as error:
        said = str(error).strip().splitlines()
        raise YonosError(f"Ray could not go on: {said[-1] if said else type(error).__name__}") from error
    finally:
        # Ray Data only drops its workers, and where a block was lost the error may still hold them: the next
        # pass would wait for ever for the CPUs that they have.
        for name in names:
            with contextlib.suppress(ValueError, ray.exceptions.RayError):  # it has ended
                ray.kill(ray.get_actor(name), no_restart=True)


def _through_client(
    ray: Any, blocks: Iterable[Block], *others: Any
) -> Generator[list[dict[str, Any]], None, None]:
    """Do as `_results`, which runs in an actor; that ends with this generator, or with this process."""
    at_head = ray.remote(num_cpus=0, resources={"node:__internal_head__": 0.001})
    lead = at_head(_Lead).remote(list(blocks), *others)
    try:
        coming = lead.more.remote()
        while rows := ray.get(coming):
            coming = lead.more.remote()
            yield rows
    except (ray.exceptions.RayError, ConnectionError) as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, YonosError):
            raise cause from error
        raise YonosError(
            f"Ray could not go on ({one_line(error)}); is the cluster still there, and yonos-trt on its head "
            "node? What is written is whole: say it again"
        ) from error
    finally:
        with contextlib.suppress(Exception):  # what kills it where the connection is lost is Ray
            ray.kill(lead)


class _Lead:
    """What drives Ray Data in a process of the cluster."""

    def __init__(self, *what: Any) -> None:
        self._results = _results(import_ray(), *what)

    def more(self) -> list[dict[str, Any]]:
        """Return the next rows; none at the end."""
        return next(self._results, [])


class Teller(Upscaler):
    """`Upscaler` with what it yields at once in one row: Ray Data makes a block of each, which takes time.

    Where one of `sight`, paths that the caller has, is not there, its node's disk is another one.
    """

    def __init__(self, sight: Sequence[str], **others: Any) -> None:
        super().__init__(**others)
        self._sight = sight

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, list[Any]]]:
        """Yield JSON lists of rows."""
        for path in self._sight:
            if not os.path.exists(path):
                reason = (
                    f"{path} is not seen; folders lie on a disk that all nodes share, under the same name"
                )
                facts = {"error": "InputError", "reason": reason, "worker": self.worker}
                yield {"told": [json.dumps([{"index": int(batch["index"][0]), "state": "fatal", **facts}])]}
                return
        for rows in super().__call__(batch):
            told = [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]
            yield {"told": [json.dumps(told)]}


def settle(context: Any) -> None:
    """Set how a dataset is executed: every picture told at once, in any order, and lost blocks left out."""
    context.target_max_block_size = 1  # bytes: what a worker yields goes on its way
    context.max_errored_blocks = -1
    context.execution_options.preserve_order = False
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False


def _arguments(nodes: list[str], names: list[str]) -> Callable[[], dict[str, Any]]:
    """Return what makes the options of the next worker; its name is added to `names`.

    A worker that dies takes its blocks with it at once (no retries), so that none waits for a place where it
    can start again; itself it starts again where there is one.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    turn = itertools.cycle(nodes)

    def arguments() -> dict[str, Any]:
        names.append(f"yonos-{secrets.token_hex(8)}")
        found: dict[str, Any] = {"max_restarts": -1, "max_task_retries": 0, "name": names[-1]}
        if nodes:  # soft: where that node is gone, any other will do
            found["scheduling_strategy"] = NodeAffinitySchedulingStrategy(next(turn), soft=True)
        return found

    return arguments
