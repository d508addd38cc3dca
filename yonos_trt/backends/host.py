"""Back ends that work in host memory: `HostBackend`, its canvas and its row finish."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from yonos_trt.backends.base import Array, Backend, stage
from yonos_trt.errors import ClosedError, NumericError
from yonos_trt.planning import WorkingBytes, host_peak_bytes
from yonos_trt.tiles.color import RowColorFix
from yonos_trt.tiles.kernels import host_kernels
from yonos_trt.tiles.plan import TileBatch, TilePlan

if TYPE_CHECKING:
    from yonos_trt.engine.schema import EngineManifest

# Rows are downloaded in blocks of about this size, so that no second canvas is needed.
_BLOCK_BYTES = 4 << 20
_BLOCK_ROWS = 16


class HostBackend:
    """`run` as five verbs on NumPy arrays; a subclass fills `networks`, or has verbs of its own.

    Parameters
    ----------
    manifest
        Scale, latent factor and channels, and the encoder's input kind.
    lanes
        How many threads the pipeline runs.
    kernels
        "native" for the compiled functions where they are built, "numpy" for their twins.
    threads
        Threads of the compiled functions; the twins take no notice.
    """

    any_tile = True
    best_batch = 1

    def __init__(
        self, manifest: EngineManifest, *, lanes: int = 1, kernels: str = "native", threads: int = 1
    ) -> None:
        self.manifest = manifest
        self.lanes = lanes
        self.threads = threads
        self.kernels = host_kernels(kernels)
        self.networks: dict[str, Callable[..., Array]] = {}
        """Stage ("encoder", "step", "decoder") -> ``(lane, *inputs) -> output``; called from all lanes."""

    def working_bytes(self, plan: TilePlan, lanes: int, *, color_fix: str) -> WorkingBytes:
        """Return the figures of `yonos_trt.planning`; nothing is on a device."""
        return WorkingBytes(host_peak_bytes(plan, lanes))

    def use_lanes(self, lanes: int) -> None:
        """Do nothing: a lane is a thread of the pipeline's."""

    def upload(self, image: Array) -> Any:
        """Keep a reference; nothing is copied unless the rows are not contiguous."""
        return np.ascontiguousarray(image)

    def canvas(self, plan: TilePlan) -> Any:
        """Return a zeroed accumulator."""
        return HostCanvas(plan)

    def run(self, source: Any, plan: TilePlan, batch: TileBatch, seed: int, lane: int) -> Any:
        """Gather, encode, noise, step and decode one batch; the result of every network is looked at."""
        with stage("gather"):
            tiles = self.gather(source, plan, batch, lane=lane)
        with stage("encode"):
            z_l = _finite("encode", self.encode(tiles, lane=lane), batch)
        with stage("noise"):
            noise = self.noise(plan, batch, seed=seed, lane=lane)
        with stage("step"):
            z_0 = _finite("step", self.step(noise, z_l, lane=lane), batch)
        with stage("decode"):
            return _finite("decode", self.decode(z_0, lane=lane), batch)

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
        """Tiles -> z_l, (N, C, h / f, w / f)."""
        return self._network("encoder")(lane, tiles)

    def noise(self, plan: TilePlan, batch: TileBatch, *, seed: int, lane: int) -> NDArray[np.float32]:
        """Return (N, C, h / f, w / f) of the global field; C = 0 for a model that starts without noise."""
        f = self.manifest.model.latent_factor
        if self.manifest.model.start == "latent":
            return np.empty((len(batch.ys), 0, plan.tile_h_px // f, plan.tile_w_px // f), np.float32)
        return self.kernels.noise_tiles(
            seed,
            batch.ys // f,
            batch.xs // f,
            channels=self.manifest.model.latent_channels,
            h_lat=plan.tile_h_px // f,
            w_lat=plan.tile_w_px // f,
        )

    def step(self, noise: Array, z_l: Array, *, lane: int) -> Array:
        """Noise, z_l (or z_l alone) -> z_0: the one step, with the timestep and the schedule folded in."""
        taken = (z_l,) if self.manifest.model.start == "latent" else (noise, z_l)
        return self._network("step")(lane, *taken)

    def decode(self, z_0: Array, *, lane: int) -> Array:
        """z_0 -> tiles (N, 3, h, w) in [-1, 1]."""
        return self._network("decoder")(lane, z_0)

    def _network(self, stage: str) -> Callable[..., Array]:
        if stage not in self.networks:
            raise ClosedError(f"the {type(self).__name__} is closed; open the engine directory again")
        return self.networks[stage]

    def blend(self, canvas: Any, tiles: Array, plan: TilePlan, batch: TileBatch) -> None:
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

    def download(self, canvas: Any, plan: TilePlan, y0_px: int, y1_px: int) -> NDArray[np.float32]:
        """Return finished canvas rows (y1 - y0, plan.width_px, 3) in [-1, 1], not copied."""
        rows: NDArray[np.float32] = canvas.read(y0_px, y1_px)
        return rows

    def finish(
        self,
        source: Any,
        canvas: Any,
        plan: TilePlan,
        *,
        color_fix: str,
        threads: int = 1,
        first_row_px: int = 0,
    ) -> HostFinish:
        """Return `HostFinish` for this picture."""
        return HostFinish(
            source,
            self,
            canvas,
            plan,
            color_fix=color_fix,
            threads=threads,
            first_row_px=first_row_px,
        )

    def close(self) -> None:
        """Let the networks go; a run in another thread ends first."""
        self.networks.clear()


def _finite(stage: str, value: Any, batch: TileBatch) -> Any:
    """Return `value`; NaN and infinity survive a sum, so one pass without a temporary finds them."""
    if not isinstance(value, np.ndarray):
        return value
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.sum(value, dtype=np.float32)
    if not np.isfinite(total):
        for i in range(batch.live):
            if not np.isfinite(value[i]).all():
                tile = batch.first + i
                raise NumericError(
                    f"the stage {stage!r} produced NaN or infinity in tile {tile} (origin y {batch.ys[i]}, "
                    f"x {batch.xs[i]} px of the output), expected finite numbers; run the fp32 artifact, or "
                    "check the model with: yonos-export --verify",
                    stage=stage,
                    tile=tile,
                )
    return value


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


class HostFinish:
    """Colour fix and rounding on the host, of the rows that `HostBackend.download` gives.

    Parameters
    ----------
    image
        The input, whose colours the fix takes.
    color_fix, threads, first_row_px
        As in `yonos_trt.pipeline.upscale`.
    """

    lend = ahead = False

    def __init__(
        self,
        image: Array,
        backend: HostBackend,
        canvas: Any,
        plan: TilePlan,
        *,
        color_fix: str,
        threads: int,
        first_row_px: int,
    ) -> None:
        scale = backend.manifest.model.scale
        self._fix = RowColorFix(
            image, plan, scale, mode=color_fix, threads=threads, first_row_px=first_row_px
        )
        self._backend, self._canvas, self._plan = backend, canvas, plan
        self._dtype, self._threads = image.dtype, threads
        self._kernels = host_kernels()
        self.block_rows = max(_BLOCK_ROWS, _BLOCK_BYTES // (12 * plan.width_px))

    def push(self, y0_px: int, y1_px: int) -> Array:
        """See `RowFinish`."""
        with stage("download"):
            rows = self._backend.download(self._canvas, self._plan, y0_px, y1_px)
        with stage("color"):
            fixed = self._fix.push(rows)
            if y1_px == self._plan.height_px:
                self._fix.flush()  # says so if rows are missing
            return self._kernels.finalize(fixed, self._dtype, threads=self._threads)

    def rest(self) -> None:
        """See `RowFinish`: every push waits for all of its rows."""


if TYPE_CHECKING:

    def _is_a_backend(backend: HostBackend) -> Backend:
        return backend
