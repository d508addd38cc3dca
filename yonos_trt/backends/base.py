"""Where the stages run: the `Backend` protocol and the NumPy backend that defines the correct answer.

A backend does the steps of the data path for one batch of tiles; `yonos_trt.pipeline` decides the order.
Arrays that travel between the methods (``Any`` below) belong to the backend: NumPy arrays here and in
`yonos_trt.backends.ort`, device buffers elsewhere. Only `Backend.download` has to return host memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from yonos_trt.planning import WorkingBytes
from yonos_trt.tiles.plan import TileBatch, TilePlan

if TYPE_CHECKING:
    from yonos_trt.engine.schema import EngineManifest

__all__ = ["Array", "Backend", "HostCanvas"]

Array = NDArray[Any]


# ---------------------------------------------------------------------------------------------------------
# The protocol


class Backend(Protocol):
    """The steps of the data path. Shapes: N tiles of (h, w) canvas px, latents (N, C, h / f, w / f).

    `gather` to `decode` are called from `lanes` threads at once, one thread per lane number; `upload`,
    `canvas`, `blend` and `download` from one thread only. A backend checks its own device tensors for NaN
    and infinity; NumPy arrays are checked by the pipeline. A backend that fixes colours and rounds by itself
    has one method more, ``finish``, which takes the place of `download`: see `yonos_trt.backends.finish`.
    """

    lanes: int
    manifest: EngineManifest
    any_tile: bool
    """Whether every legal tile runs at the same speed per pixel, so that plans may choose the size freely."""

    def working_bytes(self, plan: TilePlan, lanes: int, *, color_fix: str) -> WorkingBytes:
        """Predict the memory that `plan` takes on this many lanes, beside input and output picture."""

    def upload(self, image: Array) -> Any:
        """Take an (H, W, 3) uint8, uint16 or float32 picture; keeps a reference at most."""

    def canvas(self, plan: TilePlan) -> Any:
        """Return a zeroed accumulator of O(tile height x padded width) for one run over `plan`."""

    def gather(self, source: Any, plan: TilePlan, batch: TileBatch, *, lane: int) -> Any:
        """Cut a batch's tiles, in [-1, 1]: (N, 3, h, w), or LR tiles if the encoder reads LR."""

    def encode(self, tiles: Any, *, lane: int) -> Any:
        """Tiles -> z_l."""

    def noise(self, plan: TilePlan, batch: TileBatch, *, seed: int, lane: int) -> Any:
        """Return the part of the global noise field that lies under each tile."""

    def step(self, noise: Any, z_l: Any, *, lane: int) -> Any:
        """Noise, z_l -> z_0: the one step, with the timestep and the schedule folded in."""

    def decode(self, z_0: Any, *, lane: int) -> Any:
        """z_0 -> tiles (N, 3, h, w) in [-1, 1]."""

    def blend(self, canvas: Any, tiles: Any, plan: TilePlan, batch: TileBatch) -> None:
        """Add a batch to the canvas; called in plan order, so the sum is the same for any number of lanes."""

    def download(self, canvas: Any, plan: TilePlan, y0_px: int, y1_px: int) -> NDArray[np.float32]:
        """Return finished canvas rows (y1 - y0, plan.width_px, 3) in [-1, 1]; the only call that waits.

        The result is valid until the next `blend`. Rows are asked for once, from the top down, before a tile
        of the next band is blended.
        """

    def close(self) -> None:
        """Release everything; may be called twice."""


# ---------------------------------------------------------------------------------------------------------
# Host canvas


class HostCanvas:
    """The rows that tiles of the current band can touch: float32 (tile_h_px, padded_w_px, 3).

    Moving on to the next band drops the finished rows at the top and clears as many at the bottom.
    """

    def __init__(self, plan: TilePlan) -> None:
        self._plan = plan
        self._band = 0
        self._rows = np.zeros((plan.tile_h_px, plan.padded_w_px, 3), np.float32)

    def rows_for_band(self, band: int) -> NDArray[np.float32]:
        """Return the accumulator with its first row at the origin of `band`, which never goes back."""
        ys = self._plan.ys
        if band != self._band:
            shift = ys[band] - ys[self._band]
            keep = max(0, self._plan.tile_h_px - shift)
            for y in range(0, keep, shift):  # blocks that do not overlap: NumPy would copy the rows first
                n = min(shift, keep - y)
                self._rows[y : y + n] = self._rows[y + shift : y + shift + n]
            self._rows[keep:] = 0.0
            self._band = band
        return self._rows

    def read(self, y0_px: int, y1_px: int) -> NDArray[np.float32]:
        """Return a view of the canvas rows [y0, y1), cropped to the picture."""
        top = self._plan.ys[self._band]
        return self._rows[y0_px - top : y1_px - top, : self._plan.width_px]
