"""Device memory of the tiled run time: one table of buffers, for predicting them and for allocating them.

In bytes, for N tiles of h x w px per batch, latents of C channels at 1/f, j lanes and two slots per lane::

    weights    once for all lanes                     size of the three plans
    lane       j * (scratch + image + z_l + noise + z_0 + origins)
               scratch: the largest activation memory of the three stages, which take turns
    slot       2 j * (tiles (N, 3, h, w) + a flag per tile)
    shared     two canvases of (h + HALO_ROWS_PX) x padded width x 12, windows, origins, flags, the picture
    finish     rows of the picture's dtype on their way out, and what the colour fix needs:
               wavelet: three bands of the coarse grid, taps;  adain: the whole canvas and sums per cell

`yonos_trt.trt.backend` allocates exactly these buffers, so prediction and allocation cannot drift apart. What
the table does not know is the CUDA context and what libraries load lazily: `CONTEXT_BYTES` stands for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from yonos_trt.engine.manifest import EngineManifest
from yonos_trt.tiles.color_cells import BLOCK_PX, FOLD, HALO_ROWS_PX, REACH, cell_taps
from yonos_trt.tiles.plan import TilePlan

SLOTS_PER_LANE = 2
"""The pipeline has at most lanes + 1 batches on their way, and lanes take turns."""

CONTEXT_BYTES = 400 << 20
"""Allowance for the CUDA context, TensorRT and its kernels. An estimate; not measured yet."""

_ITEM_BYTES = {"float32": 4, "float16": 2}


@dataclass(frozen=True, slots=True)
class BatchShape:
    """What a lane's shapes, memory and graphs depend on."""

    count: int
    tile_h_px: int
    tile_w_px: int

    @classmethod
    def of(cls, plan: TilePlan) -> BatchShape:
        """The shape of a plan's batches."""
        return cls(plan.batch, plan.tile_h_px, plan.tile_w_px)


def tensor_shapes(manifest: EngineManifest, shape: BatchShape) -> dict[str, tuple[int, int, int, int]]:
    """Shapes of the tensors between the stages: image (encoder's input), z_l, noise, z_0, tiles.

    The noise of a model that starts without it has no channels.
    """
    model, n = manifest.model, shape.count
    s = model.scale if manifest.tiles.encoder_input == "lr" else 1
    h_lat, w_lat = shape.tile_h_px // model.latent_factor, shape.tile_w_px // model.latent_factor
    return {
        "image": (n, 3, shape.tile_h_px // s, shape.tile_w_px // s),
        "z_l": (n, model.channels("z_l"), h_lat, w_lat),
        "noise": (n, model.channels("noise") if model.start == "noise" else 0, h_lat, w_lat),
        "z_0": (n, model.channels("z_0"), h_lat, w_lat),
        "tiles": (n, 3, shape.tile_h_px, shape.tile_w_px),
    }


@dataclass(frozen=True, slots=True)
class BufferLayout:
    """Names and bytes of the device buffers."""

    lane: dict[str, int]
    slot: dict[str, int]
    shared: dict[str, int]

    def total_bytes(self, lanes: int, *, slots: int = SLOTS_PER_LANE) -> int:
        """All buffers together, without weights and context."""
        return sum(self.shared.values()) + lanes * (sum(self.lane.values()) + slots * sum(self.slot.values()))


def layout(
    plan: TilePlan,
    manifest: EngineManifest,
    *,
    scratch_bytes: int,
    dtypes: dict[str, str],
    picture_item_bytes: int = 1,
) -> BufferLayout:
    """Lay out the device buffers for a plan.

    Parameters
    ----------
    plan, manifest
        Tiles; scale, latent factor and channels.
    scratch_bytes
        Largest activation memory of the three stages for this batch shape, as the engines say.
    dtypes
        ``image``, ``z_l``, ``noise``, ``z_0``, ``tiles`` -> "float32" or "float16".
    picture_item_bytes
        Bytes per channel of the input picture.
    """
    n, h, w = plan.batch, plan.tile_h_px, plan.tile_w_px

    def nbytes(name: str) -> int:
        a, b, c, d = tensor_shapes(manifest, BatchShape.of(plan))[name]
        return a * b * c * d * _ITEM_BYTES[dtypes[name]]

    batches = plan.bands * plan.batches_per_band
    canvas = (HALO_ROWS_PX + plan.tile_h_px) * plan.padded_w_px * 3 * 4
    scale = manifest.model.scale
    return BufferLayout(
        lane={
            "scratch": scratch_bytes,
            **{name: nbytes(name) for name in ("image", "z_l", "noise", "z_0")},
            "origins": n * 2 * 8,
        },
        slot={"tiles": nbytes("tiles"), "flags": n * 4},
        shared={
            "canvas 0": canvas,
            "canvas 1": canvas,
            "windows y": plan.bands * n * h * 4,
            "windows x": plan.batches_per_band * n * w * 4,
            "origins": batches * n * 2 * 8,
            "rows": n * 8,
            "flags": batches * n * 4,
            "redo": n * 4,
            "picture": (plan.height_px // scale) * (plan.width_px // scale) * 3 * picture_item_bytes,
        },
    )


# ---------------------------------------------------------------------------------------------------------
# Finished rows


def grid_shape(plan: TilePlan) -> tuple[int, int, int]:
    """Return rows and columns of the colour fix's coarse grid, and how many rows its ring buffers hold.

    A band brings at most tile_h_px canvas rows at a time; beside its cells the blur reads REACH rows to each
    side, and the lines between the cells one more.
    """
    rows, columns = -(-plan.height_px // BLOCK_PX), -(-plan.width_px // BLOCK_PX)
    return rows, columns, min(rows, -(-plan.tile_h_px // BLOCK_PX) + 2 * REACH + 2)


def fold_counts(plan: TilePlan) -> tuple[int, ...]:
    """Return how many partial sums there are before each `fold` of the adain fix, down to 1."""
    rows, columns, _ = grid_shape(plan)
    counts = [rows * columns]
    while counts[-1] > 1:
        counts.append(-(-counts[-1] // FOLD))
    return tuple(counts)


def finish_layout(plan: TilePlan, scale: int, *, color_fix: str, item_bytes: int = 1) -> dict[str, int]:
    """Lay out the device buffers between the canvas and the finished rows; name -> bytes.

    Parameters
    ----------
    color_fix
        "wavelet", "adain" or "none".
    item_bytes
        Bytes per channel of the picture.
    """
    _, columns, ring = grid_shape(plan)
    finished = min(plan.height_px, plan.tile_h_px + HALO_ROWS_PX)
    sizes = {"finished": finished * plan.width_px * 3 * item_bytes}
    if color_fix == "wavelet":
        sizes |= dict.fromkeys(("difference", "smooth", "grid"), ring * columns * 3 * 4)
        for axis, size in (("y", plan.height_px), ("x", plan.width_px)):
            taps = cell_taps(size, size // scale, scale)
            sizes |= {f"base {axis}": taps.base.nbytes, f"weight {axis}": taps.weight.nbytes}
    elif color_fix == "adain":
        sums = sum(fold_counts(plan)) * 6 * 8
        sizes |= {
            "held": plan.height_px * plan.width_px * 3 * 4,
            "ours": sums,
            "wanted": sums,
            "affine": 6 * 4,
        }
    return sizes
