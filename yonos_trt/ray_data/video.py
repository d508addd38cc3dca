"""`upscale_video`: the segments of a clip through the workers of a Ray cluster, joined here.

The driver decodes the clip without making pictures of it: so it knows every segment's frames and times, hands
the next one to whoever is free, and compares what comes back. Segments travel by the disk: workers write them
into the folder that a resume goes on from, beside the output.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections import Counter, deque
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from yonos_trt.errors import ConfigError, InputError, YonosError
from yonos_trt.ray_data.cluster import connected, import_ray, may_use_gpus, one_line, share_of
from yonos_trt.ray_data.worker import Upscaler, for_workers, raised
from yonos_trt.sizing import Sizing
from yonos_trt.sr import SR
from yonos_trt.video import OnFrames, VideoOptions, VideoReport
from yonos_trt.video.read import Frame
from yonos_trt.video.segment_make import SegmentMaker
from yonos_trt.video.segments import Segment, going_on, read_segment, segment_path
from yonos_trt.video.stages import upscaler_id
from yonos_trt.video.upscale import Work, check_same, expected_frames, to_file

log = logging.getLogger(__name__)

_DEATHS = 3  # of workers that had the same segment
_SLOW_S = 60  # after which a worker that does not start is told of
_SEEN_S = 20  # a disk that is shared shows a new file to other machines after a while


def upscale_video(
    source: str | Path,
    target: str | Path,
    *,
    options: VideoOptions | None = None,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    address: str | None = None,
    progress: OnFrames | None = None,
    **model: Any,
) -> VideoReport:
    """Upscale a video with a cluster's workers; the result is that of `yonos video`.

    Parameters
    ----------
    source, target
        Files, on a disk that every node has under the same name.
    options
        As `yonos_trt.video.upscale_video`; ``segment_frames`` is what a worker takes at once, and ``hwaccel``
        has no effect here.
    workers, gpus_per_worker, address
        As `yonos_trt.ray_data.upscale`; the address may be ``ray://HOST:PORT`` too.
    progress
        Called after every segment, from the calling thread.
    model
        Options of `yonos_trt.SR`; `threads` is the CPUs of each worker, which Ray reserves, `memory_limit_mb`
        its memory.

    Returns
    -------
    VideoReport
        ``seconds`` has what was done here: "decode", "mux" and "wall".

    Raises
    ------
    ConfigError, InputError
        As `yonos_trt.video.upscale_video`; or a worker does not see the files, or would compute other bits
        than another one. Finished segments are kept.
    MissingExtraError
        Ray is not installed.
    YonosError
        Ray does not start, or a segment's worker died again and again.
    """
    import_ray()
    options = options or VideoOptions()
    if options.hwaccel == "cuda":
        raise ConfigError("--hwaccel cuda decodes on one machine's GPU; leave it out with --ray")
    options = replace(options, hwaccel="none")
    sr, model = for_workers(model)
    if options.sizing is None and sr.factor != sr.scale:
        options = replace(options, sizing=Sizing(factor=sr.factor))
    clip = _Clip(os.path.abspath(source), sr.scale, options, model)
    with _Workers(clip, workers, gpus_per_worker, address) as crew:
        return to_file(
            clip.source,
            Path(os.path.abspath(target)),
            partial(_distribute, crew=crew),
            scale=sr.scale,
            upscaler_id=crew.upscaler_id,
            options=options,
            progress=progress,
        )


# ---------------------------------------------------------------------------------------------------------
# In a worker


@dataclass(frozen=True, slots=True)
class _Clip:
    """What every worker is told."""

    source: str
    scale: int
    options: VideoOptions
    model: dict[str, Any]


class _Worker:
    """Makes segments of one clip with one `SR`; errors are returned, so that they arrive as they are."""

    def __init__(self, clip: _Clip) -> None:
        self._clip = clip
        self._upscaler = Upscaler(**clip.model)
        if "memory_limit_mb" not in clip.model:  # Ray's share would lower the tile, and so change the bits
            self._upscaler.options.pop("memory_limit_mb", None)
        self._maker: SegmentMaker | None = None

    def upscaler_id(self) -> dict[str, Any]:
        """Open the `SR`; return what its bits depend on."""
        return self._answer(lambda: _identity(self._upscaler.sr, self._clip.model))

    def make(self, folder: str, job: str, number: int) -> dict[str, Any]:
        """Write segment `number` into the folder of the work `job`."""

        def made() -> dict[str, Any]:
            began_s = time.perf_counter()
            self._check_sight(Path(folder), job)
            clip = self._clip
            if self._maker is None:
                upscale = self._upscaler.sr.upscale
                self._maker = SegmentMaker(Path(clip.source), upscale, scale=clip.scale, options=clip.options)
            frames = self._maker.make(segment_path(Path(folder), number), number)
            return {"frames": frames, "seconds": round(time.perf_counter() - began_s, 3)}

        return self._answer(made)

    def _check_sight(self, folder: Path, job: str) -> None:
        for path in (Path(self._clip.source), folder / "job.json"):
            if not path.is_file():
                raise _unseen(path, f"is not there on the node of the worker {self._upscaler.worker}")
        if job not in (folder / "job.json").read_text(encoding="utf-8"):
            raise _unseen(folder, f"is another folder on the node of the worker {self._upscaler.worker}")

    def _answer(self, call: Any) -> dict[str, Any]:
        try:
            told: dict[str, Any] = call()
        except Exception as error:
            told = {"error": type(error).__name__, "reason": str(error) or repr(error)}
        return told | {"worker": self._upscaler.worker}


def _identity(sr: SR, model: dict[str, Any]) -> dict[str, Any]:
    """Return what names the work of an open `SR`, and what runs it here."""
    runs = [type(sr.backend).__name__, getattr(sr.backend, "precision", None), model.get("providers")]
    return {"id": upscaler_id(sr, model), "runs": json.dumps(runs)}


def _unseen(path: Path, what: str) -> InputError:
    return InputError(
        f"{path} {what}; with --ray the input and the output's folder lie on a disk that all nodes share, "
        "under the same names"
    )


# ---------------------------------------------------------------------------------------------------------
# In the driver


class _Workers(contextlib.ExitStack):
    """The actors; Ray starts when they are first wanted."""

    def __init__(self, clip: _Clip, workers: int | None, gpus: float | None, address: str | None) -> None:
        super().__init__()
        self._clip, self._wanted, self._gpus, self._address = clip, workers, gpus, address
        self.first: dict[str, Any] = {}  # identity of the first worker
        self._kind: Any = None
        self.count = 0
        self.ray: Any = None
        self.actors: list[Any] = []

    def start(self, count: int) -> list[Any]:
        """Start workers until there are `count`, or as many as may be; return the new ones."""
        before = len(self.actors)
        while len(self.actors) < min(count, self.count):
            self.actors.append(self._kind.remote(self._clip))
            self.callback(self.ray.kill, self.actors[-1])
        return self.actors[before:]

    def upscaler_id(self) -> str:
        """Start Ray and the first worker; return what names its bits."""
        model = self._clip.model
        self.ray = self.enter_context(connected(self._address))
        share = share_of(
            self.ray,
            workers=self._wanted,
            cpus=model.get("threads"),
            gpus=self._gpus,
            memory_mb=model.get("memory_limit_mb"),
            on_gpu=may_use_gpus(model),
        )
        self._kind = self.ray.remote(
            num_cpus=share.cpus,
            num_gpus=share.gpus or None,
            memory=share.memory_bytes or None,
            max_restarts=-1,
            max_task_retries=0,
        )(_Worker)
        self.count = share.workers
        (first,) = self.start(1)
        try:
            opening = self.opening(first, _DEATHS)
            while not self.ray.wait([opening], timeout=_SLOW_S)[0]:
                log.warning(
                    "still waiting for a worker's %d CPUs and %g GPUs; other work may hold them",
                    share.cpus,
                    share.gpus,
                )
            self.first = self.ask(opening)
        except self.ray.exceptions.RayActorError as error:
            raise _none_starts(error) from error
        name: str = self.first["id"]
        return name

    def opening(self, actor: Any, tries: int = 0) -> Any:
        """Have a worker open its `SR`; so often again where it dies, or is about to start again."""
        return actor.upscaler_id.options(max_task_retries=tries).remote()

    def check(self, told: dict[str, Any]) -> None:
        """Refuse a worker that would compute other bits than the first one."""
        for key in ("id", "runs"):
            if told[key] != self.first[key]:
                raise ConfigError(
                    f"the nodes do not compute the same: the worker {told['worker']} has {told[key]}, the "
                    f"first one {self.first[key]}; name what all of them run with --runtime and --precision"
                )

    def ask(self, reference: Any) -> dict[str, Any]:
        """Return an answer; a worker's error is raised here, and its death as Ray tells it."""
        try:
            told: dict[str, Any] = self.ray.get(reference)
        except self.ray.exceptions.RayActorError:
            raise
        except self.ray.exceptions.RayError as error:
            raise YonosError(
                f"Ray could not go on ({one_line(error)}); is the cluster still there?"
            ) from error
        if "error" in told:
            raise raised(told)
        return told


class _Segments:
    """The segments of a clip in their order: which are to be made, and which are there."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._frames = work.watch.each("decode", work.reader.frames(wanted=lambda index: False))
        self._times: dict[int, list[int]] = {}  # of segments that are not there yet
        self._decoded = self._frames_made = 0
        self.frames_found = 0  # in segments that were there
        self._found = dict(enumerate(work.job.segments))  # whose times were not compared yet
        self.made: dict[int, Segment] = {}
        self.todo: deque[int] = deque()
        self.ended = False
        self.error: InputError | None = None

    def decode(self, ahead: int) -> None:
        """Decode on until `ahead` segments are to be made, or to the end of the clip."""
        job, count = self._work.job, self._work.options.segment_frames
        while not self.ended and len(self.todo) < ahead:
            try:
                frames = list(islice(self._frames, count))
            except InputError as error:  # what is before it is made and kept
                self.error, frames = error, []
            if frames:
                number, times = self._decoded, [frame.pts for frame in frames]
                self._decoded += 1
                self._take(number, times, frames)
            self.ended = len(frames) < count
        if self.ended and self.error is None and len(job.segments) > self._decoded:
            raise InputError(
                f"{self._work.reader.name} has lost frames since the segments were made; start again"
            )

    def _take(self, number: int, times: list[int], frames: list[Frame]) -> None:
        if (found := self._found.pop(number, None)) is not None:
            for frame, expected in zip(frames, found.times, strict=False):
                check_same(self._work.reader, frame.index, frame.pts, expected)
        else:  # another driver may have left it behind one that is missing
            found = read_segment(self._work.job.path_of(number))
        if found is not None and found.times == times and found.first_frame == frames[0].index:
            self._add(number, found)
            self.frames_found += found.frames
        else:
            self._times[number] = times
            self.todo.append(number)

    def _add(self, number: int, segment: Segment) -> None:
        self.made[number] = segment
        self._frames_made += segment.frames

    def receive(self, number: int, told: dict[str, Any]) -> None:
        """Take a segment that a worker has made.

        Raises
        ------
        InputError
            It is not there, or shows other times than the clip.
        """
        path, times = self._work.job.path_of(number), self._times.pop(number)
        if told["frames"] != len(times):
            raise self._other_frames(told)
        patience_s = time.monotonic() + _SEEN_S
        while (segment := read_segment(path)) is None:
            if time.monotonic() > patience_s:
                raise _unseen(
                    path, f"was written by the worker {told['worker']}, and is not there, or damaged,"
                )
            time.sleep(0.1)
        if segment.times != times:
            raise self._other_frames(told)
        self._add(number, segment)
        log.info("segment %d: %s, %.1f s", number, told["worker"], told["seconds"])
        if self._work.progress is not None:
            expected = expected_frames(self._work.reader.info, self._work.options)
            self._work.progress(self._frames_made, expected)

    def _other_frames(self, told: dict[str, Any]) -> InputError:
        return InputError(f"{self._work.reader.name} has other frames for the worker {told['worker']}")


def _distribute(work: Work, *, crew: _Workers) -> int:
    """Have the segments made that are missing, and give all to the job in order; return the frames found."""
    segments = _Segments(work)
    starting: dict[Any, Any] = {}  # reference -> actor
    running: dict[Any, tuple[Any, int]] = {}  # reference -> actor, segment
    idle = list(crew.actors)
    deaths: Counter[int] = Counter()
    again: set[Any] = set()  # actors that died
    failed: YonosError | None = None
    if expected := expected_frames(work.reader.info, work.options):  # they start while the clip is decoded
        missing = -(-expected // work.options.segment_frames) - len(work.job.segments)
        starting = {crew.opening(actor): actor for actor in crew.start(missing)}
    while failed is None or running:
        if failed is None:
            segments.decode(max(1, len(idle)))
            while idle and segments.todo:
                actor, number = idle.pop(), segments.todo.popleft()
                running[actor.make.remote(str(work.job.folder), work.job.id, number)] = (actor, number)
            segments.decode(crew.count - len(running))
            for actor in crew.start(len(running) + len(segments.todo)):
                starting[crew.opening(actor)] = actor
            if not running and not segments.todo and segments.ended:
                break
        done, _ = crew.ray.wait([*starting, *running], timeout=1)
        for reference in done:
            actor, segment = starting.pop(reference, None), None
            if actor is None:
                actor, segment = running.pop(reference)
            try:
                told = crew.ask(reference)
                if segment is None:
                    crew.check(told)
                else:
                    segments.receive(segment, told)
                idle.append(actor)
            except crew.ray.exceptions.RayActorError as error:
                log.warning("a worker died (%s)", one_line(error))
                if segment is not None or actor not in again:
                    again.add(actor)
                    starting[crew.opening(actor, _DEATHS)] = actor
                elif not (running or starting or idle):  # one that does not start is left out
                    failed = failed or _none_starts(error)
                if segment is not None:
                    segments.todo.appendleft(segment)
                    deaths[segment] += 1
                    if deaths[segment] == _DEATHS:
                        failed = failed or _lost(work, segment)
            except YonosError as error:  # the others' segments are kept
                failed = failed or error
    failed = failed or segments.error
    if failed is not None:
        raise failed
    work.job.segments[:] = [segments.made[number] for number in sorted(segments.made)]
    return segments.frames_found


def _none_starts(error: Exception) -> YonosError:
    return YonosError(f"every worker dies as it starts, several times ({one_line(error)})")


def _lost(work: Work, segment: int) -> YonosError:
    first = segment * work.options.segment_frames
    return YonosError(
        f"{work.reader.name}: the worker that had the frames from {first} on died, {_DEATHS} times; its "
        f"memory may have run out (--workers, --memory-limit); {going_on(work.job.folder)}"
    )
