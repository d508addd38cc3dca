"""What options may be: each list stands here once, for the API and for help texts. Loads nothing."""

from __future__ import annotations

from typing import Final, Literal, get_args

ArtifactRuntime = Literal["onnx", "tensorrt", "tensorrt-rtx"]
"""What an artifact of an engine directory is made for."""
EngineRuntime = Literal["tensorrt", "tensorrt-rtx"]
RuntimeName = Literal["auto", "onnx", "openvino", "tensorrt", "tensorrt-rtx"]
RUNTIMES: Final[tuple[str, ...]] = get_args(RuntimeName)
TENSORRT_MODULES: Final[dict[str, tuple[str, str]]] = {
    "tensorrt": ("tensorrt", "tensorrt"),
    "tensorrt-rtx": ("tensorrt_rtx", "rtx"),
}
"""Runtime -> the Python module to import, and the extra that installs it."""

Precision = Literal["fp32", "fp16", "bf16"]
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)

ColorFix = Literal["wavelet", "adain", "none"]
COLOR_FIXES: Final[tuple[str, ...]] = get_args(ColorFix)
AlphaMode = Literal["bicubic", "model", "drop"]
ALPHA_MODES: Final[tuple[str, ...]] = get_args(AlphaMode)
HardwareCodecs = Literal["none", "auto", "cuda"]
HWACCELS: Final[tuple[str, ...]] = get_args(HardwareCodecs)

LARGEST_LANES: Final = 64
MAX_PIXELS: Final = 1 << 28
"""Largest picture read without asking, 16 384 x 16 384: a few bytes can declare 65 535 x 65 535."""
