"""The tile kernels on the device: `TileKernels`, and `CudaKernels`, the library that csrc/tiles.cu becomes.

What can be launched, and with which arguments, is in `yonos_trt.cuda.launches`. The kernels' maths is that of
`yonos_trt.tiles` (`kernels`, `noise`, `color_cells`). The library that emulates the grid on the
host has the same C functions.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from pathlib import Path
from typing import Any, Protocol

from yonos_trt.cuda.launches import Launch, declare
from yonos_trt.errors import CudaError, MissingExtraError

__all__ = ["CudaKernels", "TileKernels", "kernel_library"]


class TileKernels(Protocol):
    """Everything that runs on the device beside the networks."""

    def launch(self, call: Launch, *, stream: int) -> None:
        """Queue a kernel on a stream and return at once; allocates and synchronises nothing."""


def kernel_library() -> Path:
    """Return where the build puts the library: in the package's folder, or beside the compiled CPU kernels.

    An editable install keeps the two apart.
    """
    here = Path(__file__).parents[1] / "libyonos_cuda.so"
    native = importlib.util.find_spec("yonos_trt._native")
    if here.exists() or native is None or native.origin is None:
        return here
    return Path(native.origin).with_name(here.name)


class CudaKernels:
    """The compiled kernels.

    Parameters
    ----------
    library
        The shared library; by default the one in the package's folder, or ``YONOS_CUDA_KERNELS``.

    Raises
    ------
    MissingExtraError
        It is not there, cannot be loaded, or comes from another version.
    """

    def __init__(self, library: str | os.PathLike[str] | None = None) -> None:
        path = Path(library or os.environ.get("YONOS_CUDA_KERNELS") or kernel_library())
        try:
            self._library: Any = declare(ctypes.CDLL(str(path)))
        except (OSError, AttributeError) as error:
            raise MissingExtraError(
                "running on a GPU (whose kernels are compiled where nvcc is, and only when asked for)",
                package=path.name,
                extra="tensorrt",
                reason=str(error),
                settings="-C cmake.define.YONOS_CUDA=ON",
            ) from error

    def launch(self, call: Launch, *, stream: int) -> None:
        """See `TileKernels`."""
        status = getattr(self._library, f"yonos_{call.name}")(*call.arguments(), stream)
        if status:
            raise CudaError(
                f"yonos_{call.name} with {call} answered CUDA error {status}, expected 0; 1: a size is out "
                "of range, 35: the driver is missing or too old, 209: the library has no code for this GPU "
                "(build it for its compute capability)"
            )
