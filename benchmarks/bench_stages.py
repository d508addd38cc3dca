"""Encoder, step and decoder on every runtime that can run here, one tile of the default size.

    python -m pytest benchmarks/bench_stages.py

Uses the shipped x4 model; YONOS_BENCH_ENGINE names another engine directory. Every runtime is timed beside
ONNX Runtime in alternating rounds, its result is compared with ONNX Runtime's, and the ratio with its
interval goes into `extra_info`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.alternate import alternate, ratio
from benchmarks.machine import commit, describe_model
from yonos_trt.backends.choose import Request, open_backend, shipped_models
from yonos_trt.backends.host import HostBackend
from yonos_trt.bench.flops import count_flop
from yonos_trt.bench.machine import describe_machine
from yonos_trt.engine.manifest import EngineManifest, load_manifest
from yonos_trt.errors import YonosError

STAGES = ("encoder", "step", "decoder")
ROUNDS = 9
LEAST_PSNR_DB = 35.0
"""Peak signal to noise of a stage against ONNX Runtime's fp32 result; bfloat16 is what comes near it."""

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def engine_dir() -> Path:
    """The shipped x4 model, or the directory named by YONOS_BENCH_ENGINE."""
    named = os.environ.get("YONOS_BENCH_ENGINE")
    found = Path(named) if named else shipped_models().get("lite-x4")
    if found is None:
        pytest.skip("no shipped x4 model; name an engine directory with YONOS_BENCH_ENGINE")
    return found


@pytest.fixture(scope="module")
def backends(engine_dir: Path) -> dict[str, HostBackend]:
    """ONNX Runtime, and OpenVINO where it is installed."""
    manifest = load_manifest(engine_dir)
    opened: dict[str, HostBackend] = {}
    for name, request in (
        ("onnx", Request(runtime="onnx")),
        ("openvino", Request(runtime="openvino")),
        ("openvino-fp32", Request(runtime="openvino", precision="fp32")),
    ):
        try:
            backend = open_backend(engine_dir, manifest, request)
        except YonosError:
            continue
        assert isinstance(backend, HostBackend)
        opened[name] = backend
    return opened


def feeds(manifest: EngineManifest) -> dict[str, tuple[Array, ...]]:
    """Return random inputs of one tile for every stage."""
    side, model = manifest.tiles.default_px, manifest.model
    rng = np.random.default_rng(0)
    cut = side // model.scale if manifest.tiles.encoder_input == "lr" else side
    cells = side // model.latent_factor
    image = rng.uniform(-1, 1, (1, 3, cut, cut)).astype(np.float32)
    noise, latent = (
        rng.standard_normal((1, model.latent_channels, cells, cells), np.float32) for _ in range(2)
    )
    return {"encoder": (image,), "step": (noise, latent), "decoder": (latent,)}


def call(backend: HostBackend, stage: str, arrays: tuple[Array, ...]) -> Callable[[], Array]:
    """Return the stage's call on one lane."""
    run: dict[str, Callable[..., Array]] = {
        "encoder": backend.encode,
        "step": backend.step,
        "decoder": backend.decode,
    }
    return lambda: run[stage](*arrays, lane=0)


@pytest.mark.parametrize("runtime", ["onnx", "openvino", "openvino-fp32"])
@pytest.mark.parametrize("stage", STAGES)
def bench_stage(
    benchmark: Any,
    engine_dir: Path,
    backends: dict[str, HostBackend],
    stage: str,
    runtime: str,
) -> None:
    if runtime not in backends:
        pytest.skip(f"the runtime {runtime} cannot be opened here: pip install '.[openvino]'")
    manifest = backends["onnx"].manifest
    arrays = feeds(manifest)[stage]
    ours, reference = call(backends[runtime], stage, arrays), call(backends["onnx"], stage, arrays)
    expected = reference()
    seconds = alternate({"ours": ours, "onnx": reference}, rounds=ROUNDS)
    beside = ratio(seconds["onnx"], seconds["ours"])
    result = benchmark.pedantic(ours, rounds=ROUNDS, warmup_rounds=1)
    error = float(np.mean((result.astype(np.float64) - expected) ** 2))
    peak = float(np.abs(expected).max())
    psnr_db = float("inf") if error == 0 else 10 * np.log10(peak**2 / error)
    graph = getattr(manifest.stages, stage).find("onnx")[0]
    names = [tensor.name for tensor in getattr(manifest.stages, stage).inputs]
    shapes = {name: array.shape for name, array in zip(names, arrays, strict=True)}
    gflop = count_flop(engine_dir / graph.file, shapes) / 1e9
    benchmark.extra_info |= {
        **describe_machine(),
        "model": describe_model(manifest),
        "commit": commit(),
        "tile_px": manifest.tiles.default_px,
        "gflop": round(gflop, 2),
        "times_onnx": beside.as_dict(),
        "psnr_db": None if error == 0 else round(psnr_db, 1),
    }
    best = float(np.median(seconds["ours"]))
    print(
        f"\n{stage} on {runtime}: {1e3 * best:.1f} ms, {gflop / best:.0f} GFLOP/s, {beside} x ONNX Runtime, "
        f"{psnr_db:.1f} dB"
    )
    assert result.shape == expected.shape
    assert psnr_db >= LEAST_PSNR_DB
