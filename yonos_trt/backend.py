"""Where the stages run: the `Backend` protocol and the NumPy backend that defines the correct answer.

A backend does the steps of the data path for one batch of tiles; `yonos_trt.pipeline` decides the order.
Arrays that travel between the methods (``Any`` below) belong to the backend: NumPy arrays here and in
`yonos_trt.ort`, device buffers elsewhere. Only `Backend.download` has to return host memory.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from yonos_trt import noise, tiling
from yonos_trt.errors import install_command
from yonos_trt.planning import WorkingBytes, host_peak_bytes
from yonos_trt.tile_batches import TileBatch, batches
from yonos_trt.tiling import TilePlan

if TYPE_CHECKING:
    from yonos_trt.schema import EngineManifest

__all__ = [
    "HOW_TO_COMPILE",
    "Backend",
    "HostCanvas",
    "Kernels",
    "NumpyBackend",
    "TileBatch",
    "batches",
    "host_kernels",
]

Array = NDArray[Any]


# ---------------------------------------------------------------------------------------------------------
# The protocol


class Backend(Protocol):
    """The steps of the data path. Shapes: N tiles of (h, w) canvas px, latents (N, C, h / f, w / f).

    `gather` to `decode` are called from `lanes` threads at once, one thread per lane number; `upload`,
    `canvas`, `blend` and `download` from one thread only. A backend checks its own device tensors for NaN
    and infinity; NumPy arrays are checked by the pipeline. A backend that fixes colours and rounds by itself
    has one method more, ``finish``, which takes the place of `download`: see `yonos_trt.finish`.
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
# Host kernels

_log = logging.getLogger(__name__)

HOW_TO_COMPILE: Final = (
    f"with GCC 12, Clang 14 or newer: {install_command(settings='--force-reinstall --no-deps')}"
)
"""How to get the compiled kernels where the package was installed without them."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """The tile functions of the host, compiled or NumPy; signatures as in `yonos_trt.tiling` and `noise`."""

    name: str  # "native" or "numpy"
    gather: Callable[..., NDArray[np.float32]]
    gather_lr: Callable[..., NDArray[np.float32]]
    blend: Callable[..., None]
    finalize: Callable[..., Array]
    noise_tiles: Callable[..., NDArray[np.float32]]


@cache
def host_kernels(prefer: str = "native") -> Kernels:
    """Return the compiled kernels where they are built, else (or with ``prefer="numpy"``) their twins.

    That the twins stand in is logged as a warning, once a process.
    """
    if prefer == "native":
        try:
            native: Any = importlib.import_module("yonos_trt._native")
        except ImportError as error:
            _log.warning(
                "NumPy computes the tiles, some 20 to 40 times as slow as the compiled kernels would (%s); "
                "to get those, %s",
                error,
                HOW_TO_COMPILE,
            )
        else:
            return Kernels(
                "native", native.gather, native.gather_lr, native.blend, native.finalize, native.noise_tiles
            )
    return Kernels("numpy", tiling.gather, tiling.gather_lr, tiling.blend, tiling.finalize, noise.tiles)


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


# ---------------------------------------------------------------------------------------------------------
# The NumPy backend


def _pass(value: Array) -> Array:
    return value


def _pass_z_l(noise: Array, z_l: Array) -> Array:
    return z_l


class NumpyBackend:
    """NumPy twins and three functions as networks: what every other backend is compared with.

    With the default functions the picture passes through unchanged, so the pipeline's output is the bicubic
    image. Nothing but NumPy is needed.

    Parameters
    ----------
    manifest
        Scale, latent factor and channels, and the encoder's input kind; by default `identity_manifest`.
    encode, step, decode
        ``tiles -> z_l``, ``(noise, z_l) -> z_0``, ``z_0 -> tiles (N, 3, h, w)``; called from all lanes.
    lanes
        How many threads the pipeline runs.
    kernels
        "numpy" for the twins (default), "native" for the compiled functions where they are built.
    threads
        Threads of the compiled functions; the twins take no notice.
    """

    any_tile = True

    def __init__(
        self,
        manifest: EngineManifest | None = None,
        *,
        encode: Callable[[Array], Array] = _pass,
        step: Callable[[Array, Array], Array] = _pass_z_l,
        decode: Callable[[Array], Array] = _pass,
        lanes: int = 1,
        kernels: str = "numpy",
        threads: int = 1,
    ) -> None:
        from yonos_trt.schema import identity_manifest

        self.manifest = identity_manifest() if manifest is None else manifest
        self.lanes = lanes
        self.threads = threads
        self.kernels = host_kernels(kernels)
        self._encode, self._step, self._decode = encode, step, decode

    def working_bytes(self, plan: TilePlan, lanes: int, *, color_fix: str) -> WorkingBytes:
        """Return the figures of `yonos_trt.planning`; nothing is on a device."""
        return WorkingBytes(host_peak_bytes(plan, lanes))

    def upload(self, image: Array) -> Array:
        """Keep a reference; nothing is copied unless the rows are not contiguous."""
        return np.ascontiguousarray(image)

    def canvas(self, plan: TilePlan) -> HostCanvas:
        """Return a zeroed accumulator."""
        return HostCanvas(plan)

    def gather(self, source: Array, plan: TilePlan, batch: TileBatch, *, lane: int) -> NDArray[np.float32]:
        """Cut the batch's tiles from the picture."""
        lr = self.manifest.tiles.encoder_input == "lr"
        cut = self.kernels.gather_lr if lr else self.kernels.gather
        return cut(
            source,
            batch.ys,
            batch.xs,
            tile_h_px=plan.tile_h_px,
            tile_w_px=plan.tile_w_px,
            scale=self.manifest.model.scale,
            threads=self.threads,
        )

    def encode(self, tiles: Array, *, lane: int) -> Array:
        """Call the encoder."""
        return self._encode(tiles)

    def noise(self, plan: TilePlan, batch: TileBatch, *, seed: int, lane: int) -> NDArray[np.float32]:
        """Return (N, C, h / f, w / f) of the global field."""
        f = self.manifest.model.latent_factor
        return self.kernels.noise_tiles(
            seed,
            batch.ys // f,
            batch.xs // f,
            channels=self.manifest.model.latent_channels,
            h_lat=plan.tile_h_px // f,
            w_lat=plan.tile_w_px // f,
        )

    def step(self, noise: Array, z_l: Array, *, lane: int) -> Array:
        """Call the U-Net."""
        return self._step(noise, z_l)

    def decode(self, z_0: Array, *, lane: int) -> Array:
        """Call the decoder."""
        return self._decode(z_0)

    def blend(self, canvas: HostCanvas, tiles: Array, plan: TilePlan, batch: TileBatch) -> None:
        """Add the live tiles of a batch, weighted, in order."""
        rows = canvas.rows_for_band(batch.band)
        wy, wx = batch.weights(plan)
        live = batch.live
        self.kernels.blend(
            rows,
            tiles[:live],
            batch.ys[:live] - plan.ys[batch.band],
            batch.xs[:live],
            wy[:live],
            wx[:live],
            threads=self.threads,
        )

    def download(self, canvas: HostCanvas, plan: TilePlan, y0_px: int, y1_px: int) -> NDArray[np.float32]:
        """Return finished rows, not copied."""
        return canvas.read(y0_px, y1_px)

    def close(self) -> None:
        """Do nothing: there is nothing to release."""
