"""How a picture is cut and how much memory that takes, host and device apart: `plan_picture`.

The model, in bytes, for tiles of h x w px, n of them per batch and j lanes, beside the input picture and the
output picture that the caller holds::

    canvas      12 * h * padded width                     float32 RGB, one band of tiles
    networks    NETWORK_BYTES_PER_PX * j * n * h * w      what the sessions allocate at their peak
    in flight   12 * (j + 1) * n * h * w                  decoded tiles that wait for the blend
    rows        ROW_BLOCKS * max(4 MiB, 192 * width)      finished rows on their way out, colour fix included

Device memory is counted by `yonos_trt.trt.memory`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from yonos_trt.errors import ConfigError
from yonos_trt.tiles.plan import TilePlan, plan_tiles

if TYPE_CHECKING:
    from yonos_trt.engine.schema import EngineManifest

_log = logging.getLogger(__name__)

# Peak of ONNX Runtime's arena over one tile, measured on the lite x4 model (benchmarks/bench_pipeline.py).
NETWORK_BYTES_PER_PX = 600
_ROW_BLOCKS = 6
_BLOCK_BYTES = 4 << 20
_ROW_BLOCK_BYTES_PER_PX = 12 * 16


class WorkingBytes(NamedTuple):
    """Memory beside the input and the output picture."""

    host: int
    device: int = 0


@dataclass(frozen=True, slots=True)
class PicturePlan:
    """Tiles of one picture, lanes that work on them, and the memory both are predicted to take.

    Attributes
    ----------
    tiles : TilePlan
        Canvas, tile size, origins and batch.
    lanes : int
        Tile batches that are worked on at the same time.
    host_bytes : int
        Predicted working memory of the host, without the input and the output picture.
    device_bytes : int
        Predicted memory of the GPU, weights and context included; 0 on the CPU.
    """

    tiles: TilePlan
    lanes: int
    host_bytes: int
    device_bytes: int = 0


def plan_picture(
    manifest: EngineManifest,
    height_lr_px: int,
    width_lr_px: int,
    *,
    tile_px: int | None = None,
    overlap_px: int | None = None,
    batch: int | None = None,
    lanes: int = 1,
    host_limit_bytes: int | None = None,
    device_limit_bytes: int | None = None,
    working_bytes: Callable[[TilePlan, int], WorkingBytes] | None = None,
    best_batch: int = 1,
    shrink: bool = False,
    at_most: tuple[int, int] | None = None,
) -> PicturePlan:
    """Plan one picture.

    Parameters
    ----------
    manifest
        Scale and legal tile sizes.
    height_lr_px, width_lr_px
        Size of the input picture.
    tile_px, overlap_px, batch
        Wanted values; None takes the manifest's default (batch: as `best_batch` says) and lets the limits
        lower it. A value that was given is kept.
    lanes
        Lanes at most; the limits may lower them.
    host_limit_bytes, device_limit_bytes
        Upper bounds of the plan's `host_bytes` and `device_bytes`; the batch is halved first, then the lanes
        go, then the tile is halved.
    working_bytes
        ``(tiles, lanes) -> WorkingBytes``, a backend's own figures; None takes the model of this module.
    best_batch
        Tiles a batch that the backend runs best, for pictures that have as many side by side: a batch does
        not reach over the end of a row of tiles, so fewer are taken where they divide the row more evenly.
    shrink
        Shrink the tiles to what as many of them need to cover the picture; a given `tile_px` is kept.
    at_most
        Tile side and batch that are not exceeded, whatever was wanted: what memory was found to be enough
        for.

    Raises
    ------
    ConfigError
        A tile size, overlap or batch that is not legal, or a limit that nothing fits.
    """
    tiles, scale = manifest.tiles, manifest.model.scale
    if height_lr_px < 1 or width_lr_px < 1:
        raise ConfigError(
            f"a picture of {height_lr_px} x {width_lr_px} px has no pixels, expected at least 1 x 1"
        )
    if tile_px is not None and (
        tile_px % tiles.multiple_px or not tiles.smallest_px <= tile_px <= tiles.largest_px
    ):
        raise ConfigError(
            f"tile_px is {tile_px}, expected a multiple of {tiles.multiple_px} from {tiles.smallest_px} to "
            f"{tiles.largest_px} px of the output; the default of {manifest.model.name} is {tiles.default_px}"
        )

    def measured(cut: TilePlan, lanes: int) -> WorkingBytes:
        return (
            WorkingBytes(host_peak_bytes(cut, lanes)) if working_bytes is None else working_bytes(cut, lanes)
        )

    def cut_into(tile: int, batch: int) -> TilePlan:
        overlap = tiles.overlap_px if overlap_px is None else overlap_px
        if overlap_px is None or at_most is not None:
            overlap = min(overlap, tile // 2)
        try:
            return plan_tiles(
                height_lr_px * scale,
                width_lr_px * scale,
                tile_px=tile,
                overlap_px=overlap,
                multiple_px=tiles.multiple_px,
                smallest_px=tiles.smallest_px,
                batch=batch,
                shrink=shrink and tile_px is None,
            )
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def plan(tile: int, batch: int, lanes: int) -> PicturePlan:
        cut = cut_into(tile, batch)
        return PicturePlan(cut, lanes, *measured(cut, lanes))

    side = min(tile_px or tiles.default_px, sys.maxsize if at_most is None else at_most[0])
    wanted = batch
    if wanted is None:
        wanted = 1 if best_batch == 1 else _even(len(cut_into(side, 1).xs), best_batch)
    choice = (side, min(wanted, sys.maxsize if at_most is None else at_most[1]), lanes)
    while True:
        planned = plan(*choice)
        over = [
            (kind, limit, needed)
            for kind, limit, needed in (
                ("host", host_limit_bytes, planned.host_bytes),
                ("device", device_limit_bytes, planned.device_bytes),
            )
            if limit is not None and needed > limit
        ]
        if not over:
            return planned
        tile, count, lane_count = choice
        half = _half(tile, tiles.overlap_px if overlap_px is None else overlap_px, manifest)
        if batch is None and count > 1:
            choice = (tile, count // 2, lane_count)
        elif lane_count > 1:
            choice = (tile, count, lane_count - 1)
        elif tile_px is None and half is not None and (overlap_px or 0) * 2 <= half:
            choice = (half, count, lane_count)
        else:
            kind, limit, needed = over[0]
            raise ConfigError(
                f"the {kind} memory limit is {limit >> 20} MiB, {height_lr_px} x {width_lr_px} px "
                f"need {-(-needed >> 20)} MiB with tiles of {tile} px, batch {count} and "
                f"{lane_count} lane; raise the limit, or leave tile, overlap and batch to the planner"
            )


def host_peak_bytes(plan: TilePlan, lanes: int) -> int:
    """Return the model's bytes for a plan."""
    tile = plan.batch * plan.tile_h_px * plan.tile_w_px
    canvas = 12 * plan.tile_h_px * plan.padded_w_px
    rows = _ROW_BLOCKS * max(_BLOCK_BYTES, _ROW_BLOCK_BYTES_PER_PX * plan.width_px)
    return canvas + NETWORK_BYTES_PER_PX * lanes * tile + 12 * (lanes + 1) * tile + rows


def smaller(plan: TilePlan, manifest: EngineManifest) -> tuple[int, int] | None:
    """Return `at_most` after memory ran out: this tile and half the batch, or else half the tile; or None."""
    side = max(plan.tile_h_px, plan.tile_w_px)
    if plan.batch > 1:
        return side, plan.batch // 2
    half = _half(side, plan.overlap_px, manifest)
    return None if half is None else (half, 1)


def from_row(plan: TilePlan, first_px: int) -> TilePlan:
    """Return the plan without the rows of tiles that give nothing to the canvas rows from `first_px` on."""
    skipped = 0
    while plan.ys[skipped] + plan.tile_h_px <= first_px:
        skipped += 1
    return replace(plan, ys=plan.ys[skipped:], first_tile=plan.first_tile + skipped * len(plan.xs))


def _even(tiles: int, best: int) -> int:
    """Return the batch that cuts a row of tiles into as few equal parts as batches of `best` do."""
    return -(-tiles // -(-tiles // best))


def _half(tile_px: int, overlap_px: int, manifest: EngineManifest) -> int | None:
    """Return the next smaller tile side; None where it is not legal, or too small to overlap."""
    tiles = manifest.tiles
    half = tile_px // 2 // tiles.multiple_px * tiles.multiple_px
    overlaps = half >= 2 * tiles.multiple_px or overlap_px == 0
    return half if half >= tiles.smallest_px and overlaps else None
