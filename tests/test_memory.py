"""Prediction of device memory, and plans that shrink to fit: by a limit, and when memory runs out."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import SCRATCH_BYTES_PER_PX, FakeKernels, FakeTensorRT, write_engines
from hypothesis import given
from hypothesis import strategies as st
from simulated_device import SimulatedDriver
from test_trt import picture, plan_for, reference

from yonos_trt import session
from yonos_trt.engine.manifest import identity_manifest
from yonos_trt.errors import ConfigError, OutOfMemoryError
from yonos_trt.sr import SR
from yonos_trt.tiles.plan import TilePlan
from yonos_trt.trt.backend import TrtBackend
from yonos_trt.trt.memory import CONTEXT_BYTES, BatchShape, finish_layout, layout, tensor_shapes

HALF = dict.fromkeys(("image", "z_l", "noise", "z_0", "tiles"), "float16")
SINGLE = dict.fromkeys(HALF, "float32")


@pytest.mark.parametrize(("encoder_input", "image"), [("upsampled", (2, 3, 64, 48)), ("lr", (2, 3, 16, 12))])
def test_shapes_between_the_stages(encoder_input: str, image: tuple[int, ...]) -> None:
    shapes = tensor_shapes(identity_manifest(encoder_input=encoder_input), BatchShape(2, 64, 48))
    assert shapes["image"] == image
    assert shapes["z_l"] == shapes["noise"] == shapes["z_0"] == (2, 4, 16, 12)
    assert shapes["tiles"] == (2, 3, 64, 48)


def test_bytes_by_hand_for_one_plan() -> None:
    plan = TilePlan(128, 112, 128, 112, 64, 64, 16, (0, 48, 64), (0, 48), batch=2)
    sizes = layout(plan, identity_manifest(), scratch_bytes=1000, dtypes=HALF, picture_item_bytes=2)
    latents = 2 * 4 * 16 * 16 * 2
    image = 2 * 3 * 64 * 64 * 2
    assert sizes.lane == {
        "scratch": 1000, "image": image, "z_l": latents, "noise": latents, "z_0": latents, "origins": 32,
    }  # fmt: skip
    assert sizes.slot == {"tiles": image, "flags": 8}
    # 43 rows above the band: those that the colour fix holds back
    assert sizes.shared["canvas 0"] == sizes.shared["canvas 1"] == (43 + 64) * 112 * 12
    assert sizes.shared["windows y"] == 3 * 2 * 64 * 4
    assert sizes.shared["windows x"] == 1 * 2 * 64 * 4
    assert sizes.shared["origins"] == 3 * 2 * 2 * 8
    assert sizes.shared["picture"] == 32 * 28 * 3 * 2
    lane, slot, shared = (sum(x.values()) for x in (sizes.lane, sizes.slot, sizes.shared))
    assert sizes.total_bytes(3) == shared + 3 * lane + 6 * slot


def test_bytes_of_finished_rows_by_hand_for_one_plan() -> None:
    plan = TilePlan(1280, 112, 1280, 112, 64, 64, 16, (0, 48, 96), (0, 48), batch=2)
    rows = {"finished": (64 + 43) * 112 * 3}
    assert finish_layout(plan, 4, color_fix="none") == rows
    ring = 8 + 4 + 4 + 2  # cells of a band, four on each side for the blur, two for the lines between
    grid = ring * 14 * 12
    # a cell of 8 px covers 2 px of the input, and the bicubic kernel reads 2 more on each side
    taps = {"base y": 160 * 8, "weight y": 160 * 6 * 4, "base x": 14 * 8, "weight x": 14 * 6 * 4}
    wavelet = {**rows, "difference": grid, "smooth": grid, "grid": grid, **taps}
    assert finish_layout(plan, 4, color_fix="wavelet") == wavelet
    sums = (160 * 14 + 35 + 1) * 48  # per cell, folded by 64 twice
    adain = {"held": 1280 * 112 * 12, "ours": sums, "wanted": sums, "affine": 24}
    assert finish_layout(plan, 4, color_fix="adain", item_bytes=2) == {
        "finished": 2 * rows["finished"],
        **adain,
    }


@given(
    height=st.integers(1, 300), width=st.integers(1, 300), batch=st.integers(1, 4), lanes=st.integers(1, 4)
)
def test_more_of_anything_never_takes_less(height: int, width: int, batch: int, lanes: int) -> None:
    def total(h: int, w: int, n: int, j: int, dtypes: dict[str, str]) -> int:
        plan = plan_for(np.empty((h, w, 3), np.uint8), batch=n)
        return layout(plan, identity_manifest(), scratch_bytes=n * 1000, dtypes=dtypes).total_bytes(j)

    base = total(height, width, batch, lanes, HALF)
    assert total(height, width, batch, lanes + 1, HALF) > base
    assert total(height, width, batch + 1, lanes, HALF) > base
    assert total(height, width, batch, lanes, SINGLE) > base
    assert total(height, width + 64, batch, lanes, HALF) > base


# ---------------------------------------------------------------------------------------------------------
# SR on a simulated device


@pytest.fixture
def engine_dir(tmp_path: Path) -> Path:
    write_engines(
        tmp_path / "engines", manifest_changes={"default_px": 64, "largest_px": 64, "overlap_px": 16}
    )
    return tmp_path / "engines"


def make_sr(engine_dir: Path, driver: SimulatedDriver, monkeypatch: pytest.MonkeyPatch, **options: Any) -> SR:
    def open_fake(root: Path, manifest: Any, request: Any) -> TrtBackend:
        return TrtBackend(
            root,
            manifest,
            lanes=request.lanes or 2,
            driver=driver,
            module=FakeTensorRT(driver),
            kernels=FakeKernels(driver),
        )

    monkeypatch.setattr(session, "open_backend", open_fake)
    return SR(engine_dir, runtime="tensorrt", **{"color_fix": "none", **options})


def test_out_of_memory_halves_the_batch_then_the_tile_and_goes_on(
    engine_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image = picture(40, 60)
    driver = SimulatedDriver(total_bytes=700_000)
    with make_sr(engine_dir, driver, monkeypatch, batch=4) as sr, caplog.at_level(logging.WARNING):
        got = sr.upscale(image)
        again = sr.upscale(image)
    messages = [r.getMessage() for r in caplog.records if "going on" in r.getMessage()]
    assert [m.split("going on with tiles of at most ")[1] for m in messages] == [
        "64 px, batch 2, for this picture and later ones",
        "64 px, batch 1, for this picture and later ones",
        "32 px, batch 1, for this picture and later ones",
    ]  # and none of them for the second picture
    assert "asked for" in messages[0]
    assert np.array_equal(got, reference(image, plan_for(image, tile_px=32)))
    assert np.array_equal(got, again)
    assert driver.live == {"allocations": 0, "streams": 0, "events": 0, "graphs": 0}


def test_memory_that_suffices_for_nothing_is_an_error_with_the_numbers(
    engine_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = SimulatedDriver(total_bytes=50_000)
    with make_sr(engine_dir, driver, monkeypatch) as sr, pytest.raises(OutOfMemoryError) as caught:
        sr.upscale(picture(40, 60))
    assert caught.value.asked_bytes
    assert caught.value.free_bytes is not None
    assert driver.live["allocations"] == 0


def needed_mb(engine_dir: Path, plan: TilePlan, lanes: int) -> float:
    weights = sum(f.stat().st_size for f in engine_dir.glob("*.engine"))
    scratch = max(
        SCRATCH_BYTES_PER_PX["encoder"] * plan.batch * plan.tile_h_px * plan.tile_w_px,
        SCRATCH_BYTES_PER_PX["step"] * plan.batch * plan.tile_h_px * plan.tile_w_px // 16,
    )
    sizes = layout(plan, identity_manifest(), scratch_bytes=scratch, dtypes=HALF)
    finish = sum(finish_layout(plan, 4, color_fix="none").values())
    return (CONTEXT_BYTES + weights + sizes.total_bytes(lanes) + finish) / 2**20


def test_the_limit_is_kept_by_what_the_engines_say_and_lanes_go_before_the_tile(
    engine_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = picture(64, 600)
    whole = needed_mb(engine_dir, plan_for(image), 24)
    limit = int(whole)  # a little less than all lanes take
    assert needed_mb(engine_dir, plan_for(image), 1) < limit < whole
    driver = SimulatedDriver()
    with make_sr(engine_dir, driver, monkeypatch, lanes=24, device_memory_limit_mb=limit) as sr:
        planned = sr.plan(64, 600)
        assert planned.lanes < 24
        assert planned.tiles.tile_h_px == 64
        assert planned.device_bytes == round(needed_mb(engine_dir, planned.tiles, planned.lanes) * 2**20)
        got = sr.upscale(image)
        weights = sum(f.stat().st_size for f in engine_dir.glob("*.engine"))
        # Exactly as predicted, although more lanes are open: the others hold nothing.
        assert driver.peak_bytes == planned.device_bytes - CONTEXT_BYTES - weights
    assert np.array_equal(got, reference(image, plan_for(image)))


@pytest.mark.parametrize("fix", ["none", "wavelet", "adain"])
def test_the_plan_of_an_sr_counts_its_colour_fix(
    engine_dir: Path, monkeypatch: pytest.MonkeyPatch, fix: str
) -> None:
    image = picture(40, 60)
    driver = SimulatedDriver()
    with make_sr(engine_dir, driver, monkeypatch, color_fix=fix) as sr:
        planned = sr.plan(40, 60)
        got = sr.upscale(image)
    weights = sum(f.stat().st_size for f in engine_dir.glob("*.engine"))
    assert driver.peak_bytes == planned.device_bytes - CONTEXT_BYTES - weights
    assert np.array_equal(got, reference(image, planned.tiles, color_fix=fix))


def test_a_limit_that_nothing_fits_says_what_would(engine_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = SimulatedDriver()
    with (
        make_sr(engine_dir, driver, monkeypatch, device_memory_limit_mb=300) as sr,
        pytest.raises(ConfigError, match="the device memory limit is 300 MiB"),
    ):
        sr.upscale(picture(10, 10))
