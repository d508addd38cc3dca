"""Plans under a memory limit, and the way down when memory runs out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yonos_trt.errors import ConfigError
from yonos_trt.manifest import identity_manifest
from yonos_trt.planning import host_peak_bytes, plan_picture, smaller

MANIFEST = identity_manifest(smallest_px=64, default_px=512, multiple_px=16, overlap_px=64)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(30, 2000), st.integers(1, 4))
def test_a_plan_never_exceeds_its_limit(h: int, w: int, limit_mb: int, lanes: int) -> None:
    try:
        planned = plan_picture(MANIFEST, h, w, lanes=lanes, limit_bytes=limit_mb << 20)
    except ConfigError:
        least = plan_picture(MANIFEST, h, w, tile_px=64)
        assert least.peak_bytes > limit_mb << 20
    else:
        assert planned.peak_bytes <= limit_mb << 20
        assert planned.peak_bytes == host_peak_bytes(planned.tiles, planned.lanes)
        assert 1 <= planned.lanes <= lanes
        assert (planned.tiles.height_px, planned.tiles.width_px) == (4 * h, 4 * w)


def test_without_a_limit_the_manifests_defaults_hold() -> None:
    planned = plan_picture(MANIFEST, 1000, 1000, lanes=3)
    assert (planned.tiles.tile_h_px, planned.tiles.overlap_px, planned.tiles.batch) == (512, 64, 1)
    assert planned.lanes == 3


def test_what_the_caller_names_is_kept() -> None:
    planned = plan_picture(MANIFEST, 1000, 1000, tile_px=256, overlap_px=32, batch=3, limit_bytes=1 << 31)
    assert (planned.tiles.tile_h_px, planned.tiles.overlap_px, planned.tiles.batch) == (256, 32, 3)


def test_a_backend_may_bring_its_own_figures() -> None:
    planned = plan_picture(
        MANIFEST, 500, 500, limit_bytes=100, peak_bytes=lambda tiles, lanes: tiles.tile_h_px * lanes - 412
    )
    assert (planned.tiles.tile_h_px, planned.peak_bytes) == (512, 100)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5)])
def test_a_picture_without_pixels_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="at least 1 x 1"):
        plan_picture(MANIFEST, *size)


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(1, 9))
def test_smaller_goes_down_to_the_smallest_tile_and_ends(h: int, w: int, batch: int) -> None:
    planned = plan_picture(MANIFEST, h, w, batch=batch)
    seen = [planned]
    while (after := smaller(seen[-1], MANIFEST)) is not None:
        assert (after.tiles.height_px, after.tiles.width_px) == (4 * h, 4 * w)
        assert after.tiles.batch * after.tiles.tile_h_px * after.tiles.tile_w_px < (
            seen[-1].tiles.batch * seen[-1].tiles.tile_h_px * seen[-1].tiles.tile_w_px
        )
        seen.append(after)
    assert seen[-1].tiles.batch == 1
    assert max(seen[-1].tiles.tile_h_px, seen[-1].tiles.tile_w_px) < 2 * MANIFEST.tiles.smallest_px


def test_level_tiles_are_chosen_unless_the_caller_names_a_size() -> None:
    assert plan_picture(MANIFEST, 160, 160, level=True).tiles.tile_h_px == 352
    assert plan_picture(MANIFEST, 160, 160, tile_px=512, level=True).tiles.tile_h_px == 512
