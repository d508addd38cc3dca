"""The checkpoint's torch modules in our data path: what ONNX and its runtimes are worth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.peer_types import NotRun, Picture, Setting, Upscaler
from yonos_trt.backends.numpy import NumpyBackend
from yonos_trt.pipeline import upscale_array
from yonos_trt.planning import plan_picture


def open_torch(setting: Setting, *, compiled: bool, bf16: bool) -> Upscaler:
    """Open the three networks in torch on the CPU, in channels-last memory; `bf16` runs them under autocast.

    Raises
    ------
    NotRun
        No checkpoint was named, it has other weights than the engine directory, or it cannot be compiled.
    """
    if setting.bundle is None:
        raise NotRun("no checkpoint was named (--bundle)")
    import torch
    from yonos_export.source import load_stages

    torch.set_num_threads(setting.threads)
    stages = load_stages(setting.bundle)
    if stages.info.model.weights_sha256 != setting.manifest.model.weights_sha256:
        raise NotRun(f"the checkpoint {setting.bundle.name} has other weights than the engine directory")

    def stage(name: str) -> Callable[..., Any]:
        module: Any = stages.module(name).eval()
        module.to(memory_format=torch.channels_last)
        call: Callable[..., Any] = torch.compile(module, dynamic=False) if compiled else module

        def run(*arrays: Any) -> Any:
            tensors = [torch.from_numpy(a).contiguous(memory_format=torch.channels_last) for a in arrays]
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                return call(*tensors).float().contiguous().numpy()

        return run

    def opened() -> Upscaler:
        backend = NumpyBackend(
            setting.manifest,
            encode=stage("encoder"),
            step=stage("step"),
            decode=stage("decoder"),
            kernels="native",
            threads=setting.threads,
        )

        def upscale(lr: Picture) -> Picture:
            plan = plan_picture(setting.manifest, *lr.shape[:2], tile_px=setting.tile_px, shrink=True).tiles
            return upscale_array(lr, backend, plan=plan, seed=setting.seed, threads=setting.threads)

        return upscale

    if not compiled:
        return opened()
    side = setting.manifest.tiles.smallest_px // setting.manifest.model.scale
    try:
        upscale = opened()
        upscale(np.zeros((side, side, 3), np.uint8))
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise NotRun(f"torch.compile failed here: {lines[0]}") from error
    return upscale
