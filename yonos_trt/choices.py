"""What options may be: each list stands here once, for the API and for help texts. Loads nothing."""

from __future__ import annotations

import re
from numbers import Real
from typing import Any, Final, Literal, get_args

from yonos_trt.errors import ConfigError

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

ADDRESS: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
"""How s3://bucket/key, sftp://..., file:///... begin."""


def whole_number(name: str, value: Any, expected: str = "a whole number") -> int:
    """Return an option as an int; NumPy's whole numbers are some, and so is 4.0.

    Raises
    ------
    ConfigError
        It is none; names the option and what was ``expected``.
    """
    if is_number(value) and value == value // 1:
        return int(value)
    raise ConfigError(f"{name} is {value!r}, expected {expected}")


def is_number(value: object) -> bool:
    """Whether this is a real number, of Python or of NumPy; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def no_path(name: str) -> str | None:
    """Say why what was typed names no file or folder of this machine; None where it does.

    As a path, ``s3://bucket/key`` would be a folder ``s3:`` in the current one, and ``-`` a folder too.
    """
    if not name or "\0" in name:
        return f"{name!r} cannot be the name of a file or folder"
    if name == "-":
        return "'-' would be stdin or stdout, which is not taken here; name a file or folder (./- is one)"
    if ADDRESS.match(name):
        return f"{name!r} is no path of this machine; name a local file or folder, and copy from or to it"
    return None
