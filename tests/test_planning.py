"""Plans under a memory limit, and the way down when memory runs out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yonos_trt.engine.manifest import identity_manifest
from yonos_trt.errors import ConfigError
from yonos_trt.planning import (
    PicturePlan,
    WorkingBytes,
    from_row,
    host_peak_bytes,
    plan_picture,
    smaller,
)
from yonos_trt.tiles.plan import TilePlan

MANIFEST = identity_manifest(smallest_px=64, default_px=512, multiple_px=16, overlap_px=64)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(30, 2000), st.integers(1, 4))
def test_a_plan_never_exceeds_its_limit(h: int, w: int, limit_mb: int, lanes: int) -> None:
    try:
        planned = plan_picture(MANIFEST, h, w, lanes=lanes, host_limit_bytes=limit_mb << 20)
    except ConfigError:
        least = plan_picture(MANIFEST, h, w, tile_px=64)
        assert least.host_bytes > limit_mb << 20
    else:
        assert planned.host_bytes <= limit_mb << 20
        assert planned.host_bytes == host_peak_bytes(planned.tiles, planned.lanes)
        assert 1 <= planned.lanes <= lanes
        assert (planned.tiles.height_px, planned.tiles.width_px) == (4 * h, 4 * w)


def test_without_a_limit_the_manifests_defaults_hold() -> None:
    planned = plan_picture(MANIFEST, 1000, 1000, lanes=3)
    assert (planned.tiles.tile_h_px, planned.tiles.overlap_px, planned.tiles.batch) == (512, 64, 1)
    assert planned.lanes == 3


def test_a_backend_that_likes_batches_gets_even_ones_of_the_tiles_side_by_side() -> None:
    def batch(width_lr_px: int, **options: int) -> int:
        return plan_picture(MANIFEST, 600, width_lr_px, best_batch=4, **options).tiles.batch

    columns = [len(plan_picture(MANIFEST, 600, w).tiles.xs) for w in (100, 300, 600, 900)]
    assert columns == [1, 3, 6, 8]
    assert [batch(w) for w in (100, 300, 600, 900)] == [1, 3, 3, 4]
    assert batch(900, batch=2) == 2  # what was named is kept
    assert batch(900, at_most=(512, 2)) == 2  # type: ignore[arg-type]
    few = plan_picture(MANIFEST, 600, 900, best_batch=4, lanes=2)
    less = plan_picture(MANIFEST, 600, 900, best_batch=4, lanes=2, host_limit_bytes=few.host_bytes - 1)
    assert (less.tiles.batch, less.lanes, less.tiles.tile_h_px) == (2, 2, 512)  # the batch goes first


def test_what_the_caller_names_is_kept() -> None:
    planned = plan_picture(
        MANIFEST, 1000, 1000, tile_px=256, overlap_px=32, batch=3, host_limit_bytes=1 << 31
    )
    assert (planned.tiles.tile_h_px, planned.tiles.overlap_px, planned.tiles.batch) == (256, 32, 3)


def test_a_backend_may_bring_its_own_figures() -> None:
    def figures(tiles: TilePlan, lanes: int) -> WorkingBytes:
        return WorkingBytes(7, tiles.tile_h_px * lanes - 412)

    def plan(host: int, device: int, tile_px: int | None = None) -> PicturePlan:
        return plan_picture(
            MANIFEST, 500, 500, host_limit_bytes=host << 20, device_limit_bytes=device << 20,
            tile_px=tile_px, working_bytes=lambda t, j: WorkingBytes(*(b << 20 for b in figures(t, j))),
        )  # fmt: skip

    planned = plan(7, 100)
    assert (planned.tiles.tile_h_px, planned.host_bytes, planned.device_bytes) == (512, 7 << 20, 100 << 20)
    with pytest.raises(ConfigError, match="the host memory limit is 6 MiB, 500 x 500 px need 7 MiB"):
        plan(6, 100)
    with pytest.raises(ConfigError, match="the device memory limit is 99 MiB, 500 x 500 px need 100 MiB"):
        plan(7, 99, tile_px=512)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5)])
def test_a_picture_without_pixels_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="at least 1 x 1"):
        plan_picture(MANIFEST, *size)


@given(
    st.integers(1, 2000),
    st.integers(1, 2000),
    st.integers(1, 9),
    st.sampled_from([(64, 16, 64), (16, 16, 64), (16, 16, 0), (32, 16, 16), (48, 48, 96)]),
    st.booleans(),
)
def test_smaller_goes_down_to_the_smallest_tile_and_ends(
    h: int, w: int, batch: int, sizes: tuple[int, int, int], shrink: bool
) -> None:
    smallest, multiple, overlap = sizes
    manifest = identity_manifest(
        smallest_px=smallest, default_px=480 // multiple * multiple, multiple_px=multiple, overlap_px=overlap
    )
    seen = [plan_picture(manifest, h, w, batch=batch, shrink=shrink)]
    while (at_most := smaller(seen[-1].tiles, manifest)) is not None:
        after = plan_picture(manifest, h, w, batch=batch, shrink=shrink, at_most=at_most)
        assert (after.tiles.height_px, after.tiles.width_px) == (4 * h, 4 * w)
        assert after.tiles.batch * after.tiles.tile_h_px * after.tiles.tile_w_px < (
            seen[-1].tiles.batch * seen[-1].tiles.tile_h_px * seen[-1].tiles.tile_w_px
        )
        assert max(after.tiles.tile_h_px, after.tiles.tile_w_px) <= max(at_most[0], smallest)
        seen.append(after)
    assert seen[-1].tiles.batch == 1
    assert max(seen[-1].tiles.tile_h_px, seen[-1].tiles.tile_w_px) < 2 * max(smallest, 2 * multiple)


def test_a_limit_below_the_smallest_tile_that_overlaps_is_the_limits_error() -> None:
    manifest = identity_manifest(smallest_px=16, default_px=512, multiple_px=16, overlap_px=64)
    with pytest.raises(ConfigError, match=r"the host memory limit is 1 MiB.* tiles of 32 px"):
        plan_picture(manifest, 1000, 1000, host_limit_bytes=1 << 20)


def test_at_most_holds_also_against_what_the_caller_named() -> None:
    planned = plan_picture(MANIFEST, 1000, 1000, tile_px=512, overlap_px=256, batch=8, at_most=(128, 2))
    assert (planned.tiles.tile_h_px, planned.tiles.overlap_px, planned.tiles.batch) == (128, 64, 2)


@given(st.integers(1, 900), st.integers(0, 3599), st.sampled_from([64, 128, 256]))
def test_a_plan_from_a_row_keeps_every_tile_that_gives_something_to_it(h: int, row: int, tile: int) -> None:
    plan = plan_picture(MANIFEST, h, 40, tile_px=tile).tiles
    row = min(row, plan.height_px - 1)
    rest = from_row(plan, row)
    weights = {
        name: sum(
            np.pad(cut.window_y(band), (y, cut.padded_h_px - y - cut.tile_h_px))
            for band, y in enumerate(cut.ys)
        )
        for name, cut in (("whole", plan), ("rest", rest))
    }
    assert np.array_equal(weights["whole"][row:], weights["rest"][row:])
    assert rest.ys[0] + rest.tile_h_px > row


def test_level_tiles_are_chosen_unless_the_caller_names_a_size() -> None:
    assert plan_picture(MANIFEST, 160, 160, shrink=True).tiles.tile_h_px == 352
    assert plan_picture(MANIFEST, 160, 160, tile_px=512, shrink=True).tiles.tile_h_px == 512
