"""Batches, the rolling canvas and the choice of kernels."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest
from helpers import picture, traced_peak
from hypothesis import given
from hypothesis import strategies as st

from yonos_trt.backends.host import HostCanvas
from yonos_trt.backends.numpy import NumpyBackend
from yonos_trt.cli import doctor
from yonos_trt.engine.manifest import identity_manifest
from yonos_trt.tiles.kernels import HOW_TO_COMPILE, host_kernels
from yonos_trt.tiles.plan import TilePlan, batches, plan_tiles, rows_final_after_band


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installation without the compiled kernels."""
    monkeypatch.setitem(sys.modules, "yonos_trt._native", None)
    host_kernels.cache_clear()
    yield
    host_kernels.cache_clear()


def test_slow_kernels_are_named_once_with_what_to_do(
    uncompiled: None, caplog: pytest.LogCaptureFixture
) -> None:
    assert host_kernels("numpy").name == "numpy"  # asked for: nothing to say
    assert not caplog.records
    assert {host_kernels().name for _ in range(3)} == {"numpy"}
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    for words in (
        "NumPy",
        "slow",
        "_native",
        "GCC 12",
        "pip install",
        "--force-reinstall",
        "in the checkout",
    ):
        assert words in record.getMessage()


@pytest.fixture(autouse=True)
def _no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `yonos doctor` times has a test of its own (test_ov.py)."""
    speed = {"bf16": False, "auto": "onnx", "s_per_mpx": {}, "problem": "not asked"}
    monkeypatch.setattr(doctor, "_speed", lambda: speed)


def test_doctor_names_the_kernels_and_how_to_get_the_fast_ones(uncompiled: None) -> None:
    facts = doctor.examine()
    assert facts["kernels"] == "numpy"
    (line,) = (line for line in doctor.lines(facts) if line.startswith("tile kernels"))
    assert "numpy (slow)" in line
    assert HOW_TO_COMPILE in line


def plan(height: int, width: int, *, tile: int = 64, overlap: int = 16, batch: int = 1) -> TilePlan:
    return plan_tiles(
        height, width, tile_px=tile, overlap_px=overlap, multiple_px=16, smallest_px=32, batch=batch
    )


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 7))
def test_batches_hold_every_tile_once_in_order_and_never_straddle_a_band(h: int, w: int, n: int) -> None:
    p = plan(h, w, batch=n)
    seen = []
    for batch in batches(p):
        assert len(batch.ys) == len(batch.xs) == n
        assert 1 <= batch.live <= n
        assert batch.first == len(seen)
        seen += [
            (int(y), int(x)) for y, x in zip(batch.ys[: batch.live], batch.xs[: batch.live], strict=True)
        ]
        assert set(batch.ys) == {p.ys[batch.band]}
    assert seen == [(y, x) for y in p.ys for x in p.xs]


def test_padding_of_a_short_batch_has_weight_zero() -> None:
    p = plan(64, 150, batch=2)
    last = list(batches(p))[-1]
    assert last.live == 1
    wy, wx = last.weights(p)
    assert wy.shape == (2, p.tile_h_px)
    assert wx[0].any()
    assert not wy[1].any()
    assert not wx[1].any()


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 3))
def test_weights_of_all_batches_add_up_to_one(h: int, w: int, n: int) -> None:
    p = plan(h, w, batch=n)
    total = np.zeros((p.padded_h_px, p.padded_w_px))
    for batch in batches(p):
        wy, wx = batch.weights(p)
        for i in range(n):
            y, x = int(batch.ys[i]), int(batch.xs[i])
            total[y : y + p.tile_h_px, x : x + p.tile_w_px] += np.outer(wy[i], wx[i])
    np.testing.assert_allclose(total, 1.0, atol=1e-6)


def test_the_canvas_rolls_down_and_keeps_what_is_not_finished() -> None:
    p = plan(200, 64)
    canvas = HostCanvas(p)
    reference = np.zeros((p.padded_h_px, p.padded_w_px, 3), np.float32)
    got = []
    y0 = 0
    for band, y in enumerate(p.ys):
        weight = p.window_y(band)[:, None, None]
        canvas.rows_for_band(band)[...] += weight * (band + 1)
        reference[y : y + p.tile_h_px] += weight * (band + 1)
        y1 = rows_final_after_band(p, band)
        got.append(canvas.read(y0, y1).copy())
        y0 = y1
    np.testing.assert_array_equal(np.concatenate(got), reference[: p.height_px, : p.width_px])


def test_the_canvas_rolls_by_little_without_a_second_copy_of_itself() -> None:
    p = plan(16 * 17, 1000, tile=256, overlap=64)
    assert p.ys == (0, 16)  # the last band is shifted inside
    canvas = HostCanvas(p)
    canvas.rows_for_band(0)[...] = np.arange(256, dtype=np.float32)[:, None, None]
    peak, rows = traced_peak(lambda: canvas.rows_for_band(1)), canvas.rows_for_band(1)
    assert peak < rows.nbytes / 8
    np.testing.assert_array_equal(rows[:, 5, 1], [*range(16, 256), *[0] * 16])


def test_kernels_fall_back_to_numpy_and_both_give_the_same_tiles() -> None:
    numpy, best = host_kernels("numpy"), host_kernels()
    assert numpy.name == "numpy"
    assert best.name in ("native", "numpy")
    image = picture(19, 23)
    ys, xs = np.array([0, 32], np.int64), np.array([16, 0], np.int64)
    for name in ("gather", "gather_lr"):
        cut = [
            getattr(k, name)(image, ys, xs, tile_h_px=48, tile_w_px=64, scale=4, threads=2)
            for k in (numpy, best)
        ]
        np.testing.assert_allclose(cut[0], cut[1], atol=1e-6)


@pytest.mark.parametrize("encoder_input", ["upsampled", "lr"])
def test_the_encoder_gets_the_input_the_manifest_names(encoder_input: str) -> None:
    shapes = []
    backend = NumpyBackend(
        identity_manifest(encoder_input=encoder_input),
        encode=lambda tiles: shapes.append(tiles.shape) or tiles,
    )
    p = plan(100, 100)
    batch = next(batches(p))
    backend.encode(backend.gather(backend.upload(picture(25, 25)), p, batch, lane=0), lane=0)
    assert shapes == [(1, 3, 64, 64) if encoder_input == "upsampled" else (1, 3, 16, 16)]


def test_noise_tiles_cover_the_tile_on_the_latent_grid() -> None:
    backend = NumpyBackend(identity_manifest(latent_factor=4, latent_channels=5))
    p = plan(100, 100)
    noise = backend.noise(p, next(batches(p)), seed=3, lane=0)
    assert noise.shape == (1, 5, 16, 16)


def test_doctor_lists_only_providers_that_load(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    known = ["CUDAExecutionProvider", *onnxruntime.get_available_providers()]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: known)
    facts = doctor.examine()["onnxruntime"]
    assert "CPUExecutionProvider" in facts["providers"]
    assert "CUDAExecutionProvider" not in facts["providers"]
    assert facts["not_loading"].keys() == {"CUDAExecutionProvider"}
    text = "\n".join(doctor.lines(doctor.examine()))
    assert "CUDAExecutionProvider does not load: " in text


def test_doctor_finds_two_wheels_that_overwrite_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    known = doctor.metadata.version
    monkeypatch.setattr(
        doctor.metadata, "version", lambda name: "1.31.0" if "onnxruntime" in name else known(name)
    )
    monkeypatch.setattr(doctor, "_training", lambda: {"problem": "not asked"})
    facts = doctor.examine()
    assert "uninstall -y onnxruntime onnxruntime-gpu" in facts["onnxruntime"]["problem"]
    assert any("both installed" in line for line in doctor.lines(facts))
