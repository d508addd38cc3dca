"""NumPy twins and three functions as networks: what every other backend is compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from yonos_trt.backends.base import Array, HostCanvas
from yonos_trt.planning import WorkingBytes, host_peak_bytes
from yonos_trt.tiles.kernels import host_kernels
from yonos_trt.tiles.plan import TileBatch, TilePlan

if TYPE_CHECKING:
    from yonos_trt.engine.schema import EngineManifest

__all__ = ["NumpyBackend"]


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
        from yonos_trt.engine.schema import identity_manifest

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
