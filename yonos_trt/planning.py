"""How a picture is cut and how much host memory that takes: `plan_picture`.

The model, in bytes, for tiles of h x w px, n of them per batch and j lanes, beside the input picture and the
output picture that the caller holds::

    canvas      12 * h * padded width                     float32 RGB, one band of tiles
    networks    NETWORK_BYTES_PER_PX * j * n * h * w      what the sessions allocate at their peak
    in flight   12 * (j + 1) * n * h * w                  decoded tiles that wait for the blend
    rows        ROW_BLOCKS * max(4 MiB, 192 * width)      finished rows on their way out, colour fix included
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from yonos_trt.errors import ConfigError
from yonos_trt.tiling import TilePlan, plan_tiles

if TYPE_CHECKING:
    from yonos_trt.schema import EngineManifest

__all__ = ["NETWORK_BYTES_PER_PX", "PicturePlan", "host_peak_bytes", "plan_picture", "smaller"]

_log = logging.getLogger(__name__)

# Peak of ONNX Runtime's arena over one tile, measured on the lite x4 model (benchmarks/bench_pipeline.py).
NETWORK_BYTES_PER_PX = 600
_ROW_BLOCKS = 6
_BLOCK_BYTES = 4 << 20
_ROW_BLOCK_BYTES_PER_PX = 12 * 16


@dataclass(frozen=True, slots=True)
class PicturePlan:
    """Tiles of one picture, lanes that work on them, and the memory both are predicted to take.

    Attributes
    ----------
    tiles : TilePlan
        Canvas, tile size, origins and batch.
    lanes : int
        Tile batches that are worked on at the same time.
    peak_bytes : int
        Predicted working memory, without the input and the output picture.
    """

    tiles: TilePlan
    lanes: int
    peak_bytes: int


def plan_picture(
    manifest: EngineManifest,
    height_lr_px: int,
    width_lr_px: int,
    *,
    tile_px: int | None = None,
    overlap_px: int | None = None,
    batch: int | None = None,
    lanes: int = 1,
    limit_bytes: int | None = None,
    peak_bytes: Callable[[TilePlan, int], int] | None = None,
    level: bool = False,
) -> PicturePlan:
    """Plan one picture.

    Parameters
    ----------
    manifest
        Scale and legal tile sizes.
    height_lr_px, width_lr_px
        Size of the input picture.
    tile_px, overlap_px, batch
        Wanted values; None takes the manifest's default (batch: 1) and lets `limit_bytes` lower it. A value
        that was given is kept.
    lanes
        Lanes at most; `limit_bytes` may lower them.
    limit_bytes
        Upper bound of the plan's `peak_bytes`; the batch is halved first, then the lanes go, then the tile
        is halved.
    peak_bytes
        ``(tiles, lanes) -> bytes``, a backend's own figures; None takes the model of this module.
    level
        Shrink the tiles to what as many of them need to cover the picture; a given `tile_px` is kept.

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

    def plan(tile: int, batch: int, lanes: int) -> PicturePlan:
        overlap = min(tiles.overlap_px, tile // 2) if overlap_px is None else overlap_px
        try:
            cut = plan_tiles(
                height_lr_px * scale,
                width_lr_px * scale,
                tile_px=tile,
                overlap_px=overlap,
                multiple_px=tiles.multiple_px,
                smallest_px=tiles.smallest_px,
                batch=batch,
                level=level and tile_px is None,
            )
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return PicturePlan(cut, lanes, (peak_bytes or host_peak_bytes)(cut, lanes))

    choice = (tile_px or tiles.default_px, batch if batch is not None else 1, lanes)
    while True:
        planned = plan(*choice)
        if limit_bytes is None or planned.peak_bytes <= limit_bytes:
            return planned
        tile, count, lane_count = choice
        half = tile // 2 // tiles.multiple_px * tiles.multiple_px
        if batch is None and count > 1:
            choice = (tile, count // 2, lane_count)
        elif lane_count > 1:
            choice = (tile, count, lane_count - 1)
        elif tile_px is None and half >= tiles.smallest_px and (overlap_px or 0) * 2 <= half:
            choice = (half, count, lane_count)
        else:
            raise ConfigError(
                f"the memory limit is {limit_bytes >> 20} MiB, {height_lr_px} x {width_lr_px} px "
                f"need {-(-planned.peak_bytes >> 20)} MiB with tiles of {tile} px, batch {count} and "
                f"{lane_count} lane; raise the limit, or leave tile, overlap and batch to the planner"
            )


def host_peak_bytes(plan: TilePlan, lanes: int) -> int:
    """Return the model's bytes for a plan."""
    tile = plan.batch * plan.tile_h_px * plan.tile_w_px
    canvas = 12 * plan.tile_h_px * plan.padded_w_px
    rows = _ROW_BLOCKS * max(_BLOCK_BYTES, _ROW_BLOCK_BYTES_PER_PX * plan.width_px)
    return canvas + NETWORK_BYTES_PER_PX * lanes * tile + 12 * (lanes + 1) * tile + rows


def smaller(plan: PicturePlan, manifest: EngineManifest) -> PicturePlan | None:
    """Return the next smaller plan after memory ran out: half the batch, then half the tile, else None."""
    tiles, old = manifest.tiles, plan.tiles
    side = max(old.tile_h_px, old.tile_w_px)
    half = side // 2 // tiles.multiple_px * tiles.multiple_px
    if old.batch > 1:
        tile, batch = side, old.batch // 2
    elif half >= tiles.smallest_px:
        tile, batch = half, 1
    else:
        return None
    cut = plan_tiles(
        old.height_px,
        old.width_px,
        tile_px=tile,
        overlap_px=min(old.overlap_px, tile // 2),
        multiple_px=tiles.multiple_px,
        smallest_px=tiles.smallest_px,
        batch=batch,
    )
    return PicturePlan(cut, plan.lanes, host_peak_bytes(cut, plan.lanes))
