"""The data path: upload -> gather -> encode -> step -> decode -> blend -> download.

Tile batches run on the backend's lanes, one thread each; blends happen in plan order on the caller's thread,
so the picture is the same bit for bit whatever the number of lanes. Rows that no later tile touches are
colour-fixed, rounded (`Backend.finish`) and handed out at once: memory is O(width)
beside the picture.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import closing, contextmanager
from typing import Any

import numpy as np

from yonos_trt.backends.adapter import adapted
from yonos_trt.backends.base import Array, Backend, RowsSpoilt, timed_by
from yonos_trt.cuda.arrays import DeviceView
from yonos_trt.errors import ConfigError, InputError
from yonos_trt.planning import from_row
from yonos_trt.tiles.color import finished_rows, first_canvas_row
from yonos_trt.tiles.plan import TileBatch, TilePlan, batches, rows_final_after_band

_log = logging.getLogger(__name__)

STAGES = ("upload", "gather", "encode", "noise", "step", "decode", "blend", "download", "color")


def upscale(
    image: Array | DeviceView,
    backend: Backend,
    *,
    plan: TilePlan,
    seed: int = 0,
    color_fix: str = "wavelet",
    lanes: int | None = None,
    threads: int = 1,
    first_row_px: int = 0,
    timings: Timings | None = None,
    on_tiles: Callable[[int, int], None] | None = None,
    cancel: threading.Event | None = None,
    lend: bool = False,
) -> Generator[Any, None, None]:
    """Upscale a picture and yield its finished rows from the top down.

    Parameters
    ----------
    image
        (H, W, 3) uint8 [0, 255], uint16 [0, 65535] or float32 [0, 1], RGB; or a view of device memory, with a
        back end that takes one (`yonos_trt.trt.device.OnDevice`).
    backend
        Runs the stages; its manifest gives the scale.
    plan
        From `yonos_trt.tiles.plan.plan_tiles` for the canvas (s H, s W).
    seed
        Names the noise field.
    color_fix
        "wavelet", "none", or "adain" (which holds the whole canvas back until it has seen every row).
    lanes
        How many of the backend's lanes to use; None: all.
    threads
        Threads of the colour fix and the final rounding.
    first_row_px
        Go on from this row of the result, where another run ended; only what it needs is worked on. Not with
        "adain", whose colours depend on every row.
    timings
        Adds up the seconds spent in every stage, over all lanes. A back end that fixes colours itself does so
        in "download".
    on_tiles
        Called with (tiles done, tiles in all) after every blend, on the caller's thread.
    cancel
        Set it from any thread to stop; closing the iterator does the same.
    lend
        Rows are done with when the next are asked for: a GPU's come without a copy, in page-locked memory.

    Yields
    ------
    (rows, s W, 3) arrays of the picture's dtype; the caller owns them, unless he lets them be lent.

    Raises
    ------
    InputError
        The picture's shape or dtype is not one of the above.
    ConfigError
        The plan belongs to a picture of another size.
    NumericError
        A stage produced NaN or infinity.
    CancelledError
        `cancel` was set (``concurrent.futures.CancelledError``).
    """
    _check(image, backend, plan)
    first_canvas_row(color_fix, first_row_px)  # refuses a row to begin at before anything is done
    clock = timings if timings is not None else Timings()
    if not hasattr(backend, "run"):
        backend = adapted(backend)
    lanes = min(lanes or backend.lanes, backend.lanes)
    backend.use_lanes(lanes)
    with clock("upload"):
        source = backend.upload(image)
    row = first_row_px
    options: dict[str, Any] = {
        "seed": seed, "color_fix": color_fix, "lanes": lanes, "threads": threads, "on_tiles": on_tiles,
        "cancel": cancel, "lend": lend,
    }  # fmt: skip
    for ahead in (True, False):
        try:
            with closing(_rows(source, backend, plan, row, clock, ahead=ahead, **options)) as blocks:
                for rows in blocks:
                    row += len(rows)
                    yield rows
            return
        except RowsSpoilt as error:
            _log.warning("%s: going on from row %d, waiting for every row of tiles", error, row)


def _rows(
    source: Any,
    backend: Backend,
    plan: TilePlan,
    first_row_px: int,
    clock: Timings,
    *,
    ahead: bool,
    seed: int,
    color_fix: str,
    lanes: int,
    threads: int,
    on_tiles: Callable[[int, int], None] | None,
    cancel: threading.Event | None,
    lend: bool,
) -> Generator[Any, None, None]:
    """Yield the rows of an uploaded picture; with `ahead` the back end may be a band ahead of them."""
    begin = first_canvas_row(color_fix, first_row_px)
    plan = from_row(plan, begin)

    def run_batch(batch: TileBatch, lane: int) -> Any:
        with timed_by(clock):
            return backend.run(source, plan, batch, seed, lane)

    with clock("upload"):
        canvas = backend.canvas(plan)
        finish = backend.finish(
            source, canvas, plan, color_fix=color_fix, threads=threads, first_row_px=begin
        )
    finish.lend, finish.ahead = lend, ahead
    todo = list(batches(plan))
    y0, at = begin, finished_rows(color_fix, plan.height_px, begin)

    def fresh(rows: Any) -> Any:
        nonlocal at
        first, at = max(0, first_row_px - at), at + len(rows)
        return rows[first:]

    with closing(_on_lanes(run_batch, todo, lanes, cancel)) as results:
        for batch, tiles in zip(todo, results, strict=True):
            with clock("blend"):
                backend.blend(canvas, tiles, plan, batch)
            done = batch.first + batch.live - plan.first_tile
            if on_tiles is not None:
                on_tiles(done, plan.tiles)
            if done < (batch.band + 1) * len(plan.xs):
                continue
            final = rows_final_after_band(plan, batch.band)
            while y0 < final:
                y1 = min(y0 + finish.block_rows, final)
                with timed_by(clock):
                    rows = fresh(finish.push(y0, y1))
                y0 = y1
                if len(rows):
                    yield rows
        while True:
            with timed_by(clock):
                rest = finish.rest()
            if rest is None:
                return
            if len(rows := fresh(rest)):
                yield rows


def upscale_array(image: Array, backend: Backend, *, plan: TilePlan, **options: Any) -> Array:
    """Upscale a picture in memory; arguments as `upscale`. Returns (s H, s W, 3) of its dtype."""
    out = np.empty((plan.height_px, plan.width_px, 3), image.dtype)
    y = 0
    with closing(upscale(image, backend, plan=plan, lend=True, **options)) as blocks:
        for rows in blocks:
            out[y : y + len(rows)] = rows
            y += len(rows)
    return out


class Timings:
    """Seconds per stage, added up over all lanes. ``with timings("step"): ...`` adds; thread-safe."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time the body of the ``with``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            with self._lock:
                self.seconds[stage] += elapsed


def _check(image: Array | DeviceView, backend: Backend, plan: TilePlan) -> None:
    if len(image.shape) != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(
            f"the picture has the shape {image.shape}, expected (height, width, 3), none of them 0"
        )
    if np.dtype(image.dtype) not in (np.uint8, np.uint16, np.float32):
        raise InputError(f"the picture is {image.dtype}, expected uint8, uint16 or float32 in [0, 1]")
    scale = backend.manifest.model.scale
    canvas = (image.shape[0] * scale, image.shape[1] * scale)
    if canvas != (plan.height_px, plan.width_px):
        raise ConfigError(
            f"the plan is for a canvas of {plan.height_px} x {plan.width_px} px, this picture needs "
            f"{canvas[0]} x {canvas[1]}; make the plan with plan_tiles for that size"
        )


# ---------------------------------------------------------------------------------------------------------
# Lanes


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def _on_lanes(
    run: Callable[[TileBatch, int], Any],
    todo: Sequence[TileBatch],
    lanes: int,
    cancel: threading.Event | None,
) -> Generator[Any, None, None]:
    """Run the batches on `lanes` threads and yield the results in order.

    A lane takes the next batch only while fewer than lanes + 1 results wait to be consumed, so memory is
    bounded. An error comes out at its place in the order, after the results before it. Closing the iterator
    ends the threads; each finishes the batch it is in.
    """
    changed = threading.Condition()
    finished: dict[int, Any] = {}
    taken = consumed = 0
    stopped = False

    def may_go_on() -> bool:
        return stopped or taken == len(todo) or taken - consumed <= lanes

    def lane_main(lane: int) -> None:
        nonlocal taken
        while True:
            with changed:
                changed.wait_for(may_go_on)
                if stopped or taken == len(todo):
                    return
                index, taken = taken, taken + 1
            try:
                result = run(todo[index], lane)
            except BaseException as error:
                result = _Failure(error)
            with changed:
                finished[index] = result
                changed.notify_all()

    threads = [
        threading.Thread(target=lane_main, args=(lane,), name=f"yonos-lane-{lane}")
        for lane in range(min(lanes, len(todo)))
    ]
    try:
        for thread in threads:
            thread.start()
        for index in range(len(todo)):
            with changed:
                while index not in finished:
                    changed.wait()
                result = finished.pop(index)
            if cancel is not None and cancel.is_set():
                raise CancelledError("cancelled by the caller")
            if isinstance(result, _Failure):
                raise result.error
            yield result
            with changed:
                consumed = index + 1
                changed.notify_all()
    finally:
        with changed:
            stopped = True
            changed.notify_all()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
