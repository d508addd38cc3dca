"""Device memory of the tiled run time: one table of buffers, for predicting them and for allocating them.

In bytes, for N tiles of h x w px per batch, latents of C channels at 1/f, j lanes and two slots per lane::

    weights    once for all lanes                     size of the three plans
    lane       j * (scratch + image + z_l + noise + z_0 + origins)
               scratch: the largest activation memory of the three stages, which take turns
    slot       2 j * (tiles (N, 3, h, w) + a flag per tile)
    shared     two canvases of h x padded width x 12, windows, origins, flags, the picture itself

`yonos_trt.trt.backend` allocates exactly these buffers, so prediction and allocation cannot drift apart. What
the table does not know is the CUDA context and what libraries load lazily: `CONTEXT_BYTES` stands for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from yonos_trt.manifest import EngineManifest
from yonos_trt.tiling import TilePlan

__all__ = ["CONTEXT_BYTES", "SLOTS_PER_LANE", "BatchShape", "Layout", "layout", "tensor_shapes"]

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
    """Shapes of the tensors between the stages: image (encoder's input), z_l, noise, z_0, tiles."""
    model, n = manifest.model, shape.count
    s = model.scale if manifest.tiles.encoder_input == "lr" else 1
    latent = (
        n,
        model.latent_channels,
        shape.tile_h_px // model.latent_factor,
        shape.tile_w_px // model.latent_factor,
    )
    return {
        "image": (n, 3, shape.tile_h_px // s, shape.tile_w_px // s),
        "z_l": latent,
        "noise": latent,
        "z_0": latent,
        "tiles": (n, 3, shape.tile_h_px, shape.tile_w_px),
    }


@dataclass(frozen=True, slots=True)
class Layout:
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
) -> Layout:
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
    canvas = plan.tile_h_px * plan.padded_w_px * 3 * 4
    scale = manifest.model.scale
    return Layout(
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
