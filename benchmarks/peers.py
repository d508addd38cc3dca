"""What is measured beside each other: our runtimes, loops over the same networks, and other upscalers.

Options of `SR` that are whole numbers are appended to one of our runtimes' names: ``onnx:tile_px=256:lanes=2``.

A peer opens into a function ``(h, w, 3) uint8 -> (s h, s w, 3) uint8``. What cannot run on this machine raises
`NotRun` with the reason, which ends up in every table: a peer is never left out silently.

| name | what it is |
|---|---|
| `bicubic` | Pillow's BICUBIC |
| `onnx`, `openvino`, `openvino-fp32`, `tensorrt`, `tensorrt-rtx` | this project's runtimes, through `SR` |
| `bare-loop` | ONNX Runtime's three calls per tile and nothing else: gathered tiles and noise are made before; the result is not a picture, so it counts for speed only |
| `bare-loop-quiet` | the same with threads that sleep when they have nothing to do, as ours do |
| `naive-loop` | the same graphs the way one-step SR repositories do it: the whole picture enlarged first, one fixed-size tile after the other, weights added up in a second buffer |
| `ort-openvino` | the bare loop on the OpenVINO plugin execution provider of ONNX Runtime; speed only |
| `ort-cuda`, `ort-tensorrt` | the bare loop on ONNX Runtime's CUDA and TensorRT providers; speed only |
| `torch-eager`, `torch-compile`, `torch-compile-bf16` | the checkpoint's torch modules in our data path |
| `realesrgan-x4plus`, `realesr-animevideov3` | Real-ESRGAN through ncnn on the CPU |
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from benchmarks import ncnn_peer, tile_loops, torch_peer
from benchmarks.peer_types import NotRun, Picture, Setting, Upscaler
from yonos_trt.backends.choose import RUNTIMES
from yonos_trt.errors import YonosError

# ---------------------------------------------------------------------------------------------------------
# Ours


def _bicubic(setting: Setting) -> Upscaler:
    from PIL import Image

    scale = setting.manifest.model.scale

    def run(lr: Picture) -> Picture:
        size = (lr.shape[1] * scale, lr.shape[0] * scale)
        return np.asarray(Image.fromarray(lr).resize(size, Image.Resampling.BICUBIC))

    return run


def _ours(runtime: str, **options: Any) -> Callable[[Setting], Upscaler]:
    def opened(setting: Setting) -> Upscaler:
        from yonos_trt.sr import SR

        given = {"threads": setting.threads, "tile_px": setting.tile_px, "seed": setting.seed, **options}
        sr = SR(setting.engine_dir, runtime=runtime, **given)
        sr.open()

        def run(lr: Picture) -> Picture:
            out: Picture = sr.upscale(lr)
            return out

        return run

    return opened


# ---------------------------------------------------------------------------------------------------------
# Others


def _loop(name: str) -> Callable[[Setting], Upscaler]:
    def opened(setting: Setting) -> Upscaler:
        return tile_loops.open_loop(name, setting)

    return opened


def _torch(*, compiled: bool = False, bf16: bool = False) -> Callable[[Setting], Upscaler]:
    def opened(setting: Setting) -> Upscaler:
        return torch_peer.open_torch(setting, compiled=compiled, bf16=bf16)

    return opened


def _ncnn(model: str) -> Callable[[Setting], Upscaler]:
    def opened(setting: Setting) -> Upscaler:
        if setting.manifest.model.scale != ncnn_peer.SCALE:
            raise NotRun(f"{model} enlarges by {ncnn_peer.SCALE}, this run by {setting.manifest.model.scale}")
        return ncnn_peer.open_ncnn(ncnn_peer.MODELS[model], threads=setting.threads)

    return opened


PEERS: dict[str, Callable[[Setting], Upscaler]] = {
    "bicubic": _bicubic,
    "onnx": _ours("onnx"),
    "openvino": _ours("openvino"),
    "openvino-fp32": _ours("openvino", precision="fp32"),
    "tensorrt": _ours("tensorrt"),
    "tensorrt-rtx": _ours("tensorrt-rtx"),
    "bare-loop": _loop("bare"),
    "bare-loop-quiet": _loop("quiet"),
    "naive-loop": _loop("naive"),
    "ort-openvino": _loop("openvino-plugin"),
    "ort-cuda": _loop("cuda"),
    "ort-tensorrt": _loop("tensorrt"),
    "torch-eager": _torch(),
    "torch-compile": _torch(compiled=True),
    "torch-compile-bf16": _torch(compiled=True, bf16=True),
    "realesrgan-x4plus": _ncnn("realesrgan-x4plus"),
    "realesr-animevideov3": _ncnn("realesr-animevideov3"),
}

SPEED_ONLY = frozenset({"bare-loop", "bare-loop-quiet", "ort-openvino", "ort-cuda", "ort-tensorrt"})


def open_peer(name: str, setting: Setting) -> Upscaler:
    """Open one peer.

    Raises
    ------
    NotRun
        It cannot run here.
    ValueError
        There is no peer of that name.
    """
    base, *options = name.split(":")
    if base not in PEERS or (options and base not in RUNTIMES):
        raise ValueError(
            f"no peer is called {name!r}, expected one of {', '.join(PEERS)}; options go with "
            f"{', '.join(RUNTIMES[1:])}"
        )
    try:
        if options:
            pairs = (option.split("=") for option in options)
            return _ours(base, **{key: int(value) for key, value in pairs})(setting)
        return PEERS[base](setting)
    except YonosError as error:
        text = str(error).replace(str(setting.engine_dir), setting.engine_dir.name)
        raise NotRun(text) from error
    except ImportError as error:
        raise NotRun(f"{error.name or error} is not installed") from error


def open_peers(names: Iterable[str], setting: Setting) -> tuple[dict[str, Upscaler], dict[str, str]]:
    """Open several: (name -> function, name -> why it was not run)."""
    opened: dict[str, Upscaler] = {}
    missing: dict[str, str] = {}
    for name in names:
        try:
            opened[name] = open_peer(name, setting)
        except NotRun as reason:
            missing[name] = str(reason)
    return opened, missing
