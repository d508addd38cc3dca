"""The tile kernels on the device: `TileKernels`, and `CudaKernels`, the library that csrc/tiles.cu becomes.

All pointers are device addresses, all calls queue work on a stream and return at once. The kernels' maths is
that of `yonos_trt.tiling` and `yonos_trt.noise`. The library's C functions stand in csrc/tiles_abi.h; the one
that emulates its grid on the host has the same.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from yonos_trt.errors import CudaError, MissingExtraError

__all__ = ["CudaKernels", "DevicePicture", "TileKernels", "kernel_library"]

KINDS = {"uint8": 0, "uint16": 1, "float32": 2}

_int, _i64, _pointer = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p

# Function -> argument types, as declared in csrc/tiles_abi.h.
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "yonos_gather": (_pointer, _int, _int, _int, _i64, _pointer, _pointer, *(_int,) * 6, _pointer),
    "yonos_noise": (ctypes.c_uint64, _pointer, _pointer, *(_int,) * 6, _pointer),
    "yonos_check": (_pointer, _pointer, _int, _i64, _int, _pointer),
    "yonos_blend": (*(_pointer,) * 7, *(_int,) * 6, _pointer),
    "yonos_finalize": (_pointer, _pointer, _pointer, _int, _i64, _pointer),
}


@dataclass(frozen=True, slots=True)
class DevicePicture:
    """An (H, W, 3) picture in device memory that somebody else owns."""

    address: int
    height: int
    width: int
    dtype: str
    """uint8, uint16 or float32."""
    pitch_bytes: int
    """From one row to the next."""


class TileKernels(Protocol):
    """Everything that runs on the device beside the networks."""

    def gather(
        self,
        picture: DevicePicture,
        origins: int,
        out: int,
        *,
        count: int,
        tile_h_px: int,
        tile_w_px: int,
        scale: int,
        lr: bool,
        half: bool,
        stream: int,
    ) -> None:
        """Cut `count` tiles; `origins` are int64 ys (count,) followed by xs (count,), in canvas px.

        Writes (count, 3, tile_h_px, tile_w_px), or the tiles on the LR grid with `lr`.
        """

    def noise(
        self,
        seed: int,
        origins: int,
        out: int,
        *,
        count: int,
        channels: int,
        factor: int,
        h_lat: int,
        w_lat: int,
        half: bool,
        stream: int,
    ) -> None:
        """Write the global noise field under the tiles, (count, channels, h_lat, w_lat)."""

    def check(self, tiles: int, flags: int, *, count: int, items: int, half: bool, stream: int) -> None:
        """Set flags (count,) int32 to 1 where a tile of `items` numbers has NaN or infinity, else to 0."""

    def blend(
        self,
        canvas: int,
        tiles: int,
        rows: int,
        columns: int,
        weights_y: int,
        weights_x: int,
        skip: int,
        *,
        count: int,
        tile_h_px: int,
        tile_w_px: int,
        canvas_h_px: int,
        canvas_w_px: int,
        half: bool,
        stream: int,
    ) -> None:
        """Add `count` tiles to the float32 canvas (canvas_h_px, canvas_w_px, 3) in index order.

        rows, columns (count,) int64 are the tiles' places on the canvas, weights (count, tile_h_px) and
        (count, tile_w_px) float32. A tile whose int32 flag in `skip` is not 0 is left out.
        """

    def finalize(self, acc: int, delta: int, out: int, *, dtype: str, values: int, stream: int) -> None:
        """Turn `values` float32 numbers in [-1, 1] into `dtype`; `delta` is added first unless it is 0."""


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
            self._library: Any = ctypes.CDLL(str(path))
            for name, arguments in SIGNATURES.items():
                function = getattr(self._library, name)
                function.argtypes, function.restype = arguments, _int
        except (OSError, AttributeError) as error:
            raise MissingExtraError(
                "running on a GPU (build yonos-trt on a machine with nvcc to get its kernels)",
                package=path.name,
                extra="tensorrt",
                reason=str(error),
            ) from error

    def _call(self, name: str, *arguments: int | None) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise CudaError(
                f"{name}{arguments} answered CUDA error {status}, expected 0; 1: a size is out of range, 35: "
                "the driver is missing or too old, 209: the library has no code for this GPU (build it for "
                "its compute capability)"
            )

    def gather(
        self,
        picture: DevicePicture,
        origins: int,
        out: int,
        *,
        count: int,
        tile_h_px: int,
        tile_w_px: int,
        scale: int,
        lr: bool,
        half: bool,
        stream: int,
    ) -> None:
        """See `TileKernels`."""
        self._call(
            "yonos_gather", picture.address, KINDS[picture.dtype], picture.height, picture.width,
            picture.pitch_bytes, origins, out, count, tile_h_px, tile_w_px, scale, lr, half, stream,
        )  # fmt: skip

    def noise(
        self,
        seed: int,
        origins: int,
        out: int,
        *,
        count: int,
        channels: int,
        factor: int,
        h_lat: int,
        w_lat: int,
        half: bool,
        stream: int,
    ) -> None:
        """See `TileKernels`."""
        self._call("yonos_noise", seed, origins, out, count, channels, factor, h_lat, w_lat, half, stream)

    def check(self, tiles: int, flags: int, *, count: int, items: int, half: bool, stream: int) -> None:
        """See `TileKernels`."""
        self._call("yonos_check", tiles, flags, count, items, half, stream)

    def blend(
        self,
        canvas: int,
        tiles: int,
        rows: int,
        columns: int,
        weights_y: int,
        weights_x: int,
        skip: int,
        *,
        count: int,
        tile_h_px: int,
        tile_w_px: int,
        canvas_h_px: int,
        canvas_w_px: int,
        half: bool,
        stream: int,
    ) -> None:
        """See `TileKernels`."""
        self._call(
            "yonos_blend", canvas, tiles, rows, columns, weights_y, weights_x, skip, count, tile_h_px,
            tile_w_px, canvas_h_px, canvas_w_px, half, stream,
        )  # fmt: skip

    def finalize(self, acc: int, delta: int, out: int, *, dtype: str, values: int, stream: int) -> None:
        """See `TileKernels`."""
        self._call("yonos_finalize", acc, delta or None, out, KINDS[dtype], values, stream)
