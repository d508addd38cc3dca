"""The receptive-field test: how far into a tile is felt what lies beyond its edge?

The same tile twice, the second time with its right half replaced by another picture. What the output's left
half changes by, column by column, says what a tile's overlap has to cover.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from yonos_export.model_info import ModelInfo
from yonos_export.samples import make_samples
from yonos_export.verify import StageFunction, run_chains

log = logging.getLogger(__name__)

_GREY = 2 / 255  # one grey level in [-1, 1]


@dataclass(frozen=True)
class Reach:
    """What was measured on one tile.

    Attributes
    ----------
    tile_px
        Its side.
    reach_px
        Distance beyond which nothing changes by half a grey level; None: everything in the tile does.
    beyond_grey
        Largest change, in grey levels of 255, farther away than the default overlap, or than all of the half.
    """

    tile_px: int
    reach_px: int | None
    beyond_grey: float


def measure_reach(stages: Mapping[str, StageFunction], info: ModelInfo) -> Reach:
    """Measure and log; a reach that the model's overlap does not cover is a warning."""
    tiles, overlap = info.tiles, info.tiles.overlap_px
    side = info.legal_tile(min(tiles.default_px, max(tiles.smallest_px, 4 * overlap, 256)))
    first, other = make_samples(info, tile_px=side)[:2]
    changed = first.image.copy()
    half = changed.shape[3] // 2
    changed[..., half:] = other.image[..., half:]
    pair = [first, type(first)(first.name, changed, first.noise)]
    outputs = [np.clip(chain["decoder"][1], -1, 1) for chain in run_chains(stages, pair)]
    step = side // 2
    columns = np.abs(outputs[0] - outputs[1]).max(axis=(0, 1, 2))[:step][::-1]  # from the edge on
    felt = np.flatnonzero(columns >= _GREY / 2)
    reach = 0 if not felt.size else int(felt[-1]) + 1
    far = columns[min(overlap, step - 1) :]
    found = Reach(side, None if reach >= step else reach, float(far.max()) / _GREY)
    if found.reach_px is None or found.reach_px > overlap:
        log.warning(
            "receptive field: %s in a tile of %d px; the overlap is %d px, and beyond it a pixel changes by "
            "up to %.1f of 255 with what lies outside of its tile: larger tiles or a larger overlap_px make "
            "seams smaller",
            "a change is felt everywhere" if found.reach_px is None else f"{found.reach_px} px",
            side, overlap, found.beyond_grey,
        )  # fmt: skip
    else:
        log.info("receptive field: %d px, inside the overlap of %d px", reach, overlap)
    return found
