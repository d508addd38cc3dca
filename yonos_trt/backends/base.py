"""What runs the stages: the `Backend` protocol, `RowFinish`, and the clock of a stage.

A back end does the work of one picture; `yonos_trt.pipeline` decides the order. What travels between its
methods (``Any`` below) belongs to the back end: NumPy arrays in `yonos_trt.backends.host`, which NumPy, ONNX
Runtime and OpenVINO share, handles of device buffers in `yonos_trt.trt.backend`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from yonos_trt.planning import WorkingBytes
from yonos_trt.tiles.plan import TileBatch, TilePlan

if TYPE_CHECKING:
    from yonos_trt.engine.schema import EngineManifest

Array = NDArray[Any]


class Backend(Protocol):
    """The work on one picture after the other. Shapes: N tiles of (h, w) canvas px.

    `run` is called from `lanes` threads at once, one thread per lane number; everything else from one thread
    only. A back end looks for NaN and infinity itself, and raises `NumericError` with stage and tile.
    """

    manifest: EngineManifest
    lanes: int
    """Tile batches that can be worked on at the same time."""
    any_tile: bool
    """Whether every legal tile runs at the same speed per pixel, so that plans may choose the size freely."""
    best_batch: int
    """Tiles a batch that run best where the caller names no number."""

    def working_bytes(self, plan: TilePlan, lanes: int, *, color_fix: str) -> WorkingBytes:
        """Predict the memory that `plan` takes on this many lanes, beside input and output picture."""

    def use_lanes(self, lanes: int) -> None:
        """Use only the first `lanes` from the next canvas on; the others may give back what they hold."""

    def upload(self, image: Any) -> Any:
        """Take an (H, W, 3) uint8, uint16 or float32 picture; keeps a reference at most."""

    def canvas(self, plan: TilePlan) -> Any:
        """Return a zeroed accumulator of O(tile height x padded width) for one run over `plan`."""

    def run(self, source: Any, plan: TilePlan, batch: TileBatch, seed: int, lane: int) -> Any:
        """Gather, encode, noise, step and decode one batch; returns tiles (N, 3, h, w) in [-1, 1]."""

    def blend(self, canvas: Any, tiles: Any, plan: TilePlan, batch: TileBatch) -> None:
        """Add a batch to the canvas; called in plan order, so the sum is the same for any number of lanes."""

    def finish(
        self,
        source: Any,
        canvas: Any,
        plan: TilePlan,
        *,
        color_fix: str,
        threads: int = 1,
        first_row_px: int = 0,
    ) -> RowFinish:
        """Return what takes final canvas rows from `first_row_px` on, fixes their colours and rounds them."""

    def close(self) -> None:
        """Release everything; may be called twice."""


class RowFinish(Protocol):
    """Turns final canvas rows into rows of the picture's dtype, from the top down."""

    block_rows: int
    """Rows to push at a time, at most."""
    lend: bool
    """Set it where rows are done with at the next call: they may lie in memory that is used again."""
    ahead: bool
    """Set it to let a push return before its rows are there; they come with the next one."""

    def push(self, y0_px: int, y1_px: int) -> Any:
        """Take the canvas rows [y0, y1), which follow the rows pushed before and are final.

        Returns the rows that are finished, (n, width_px, 3) with n >= 0, a sequence: a colour fix may hold
        some back, and with `ahead` a device those of this push, for which it does not wait. The caller owns
        them, unless `lend` is set.

        Raises
        ------
        RowsSpoilt
            Only with `ahead`: begin again at the first row that was not returned, without `ahead`.
        """

    def rest(self) -> Any:
        """Return further rows after the last push, as `push` does; None when there are no more."""


class RowsSpoilt(Exception):
    """Rows that were queued ahead have tiles with NaN or infinity, and the canvas has moved on meanwhile."""


# ---------------------------------------------------------------------------------------------------------
# Time

Clock = Callable[[str], AbstractContextManager[None]]
"""``with clock("download"): ...`` adds to the seconds of a stage."""

_clock: ContextVar[Clock] = ContextVar("clock", default=lambda stage: nullcontext())


def stage(name: str) -> AbstractContextManager[None]:
    """Count the body of the ``with`` as a stage of the picture that this thread works on."""
    return _clock.get()(name)


@contextmanager
def timed_by(clock: Clock) -> Iterator[None]:
    """Let `clock` count the stages of the body, on this thread."""
    token = _clock.set(clock)
    try:
        yield
    finally:
        _clock.reset(token)
