"""``libcuda.so.1``: its entry points as ctypes sees them, and whether there is a GPU behind it.

That library is part of every NVIDIA driver, the entry points below have kept their signatures since CUDA
11.4, no further package is needed, and the tests make the same calls into a stand-in library whose compiler
has seen cuda.h. (``cuda.core.Device()`` hangs on a machine without a driver; `probe` answers at once.)
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

__all__ = ["DRIVER_LIBRARY", "SIGNATURES", "Copy2D", "LibraryFacts", "describe", "load", "probe"]

DRIVER_LIBRARY = "libcuda.so.1"

_int, _uint, _size, _float = ctypes.c_int, ctypes.c_uint, ctypes.c_size_t, ctypes.c_float
_handle, _address, _u64 = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_ulonglong
_P = ctypes.POINTER


class Copy2D(ctypes.Structure):
    """CUDA_MEMCPY2D."""

    _fields_ = (
        ("source_x", _size), ("source_y", _size), ("source_type", _int), ("source_host", _handle),
        ("source_device", _address), ("source_array", _handle), ("source_pitch", _size),
        ("to_x", _size), ("to_y", _size), ("to_type", _int), ("to_host", _handle),
        ("to_device", _address), ("to_array", _handle), ("to_pitch", _size),
        ("row_bytes", _size), ("rows", _size),
    )  # fmt: skip


# Name of the entry point -> argument types, as declared in cuda.h (its macros lead to these names).
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (_uint,),
    "cuDriverGetVersion": (_P(_int),),
    "cuGetErrorName": (_int, _P(ctypes.c_char_p)),
    "cuGetErrorString": (_int, _P(ctypes.c_char_p)),
    "cuDeviceGetCount": (_P(_int),),
    "cuDeviceGet": (_P(_int), _int),
    "cuDeviceGetName": (ctypes.c_char_p, _int, _int),
    "cuDeviceGetAttribute": (_P(_int), _int, _int),
    "cuDeviceTotalMem_v2": (_P(_size), _int),
    "cuDevicePrimaryCtxRetain": (_P(_handle), _int),
    "cuDevicePrimaryCtxRelease_v2": (_int,),
    "cuCtxSetCurrent": (_handle,),
    "cuPointerGetAttribute": (_handle, _int, _address),
    "cuMemGetInfo_v2": (_P(_size), _P(_size)),
    "cuMemAlloc_v2": (_P(_address), _size),
    "cuMemFree_v2": (_address,),
    "cuMemHostAlloc": (_P(_handle), _size, _uint),
    "cuMemFreeHost": (_handle,),
    "cuMemcpyHtoDAsync_v2": (_address, _handle, _size, _handle),
    "cuMemcpyDtoHAsync_v2": (_handle, _address, _size, _handle),
    "cuMemcpyDtoDAsync_v2": (_address, _address, _size, _handle),
    "cuMemcpy2DAsync_v2": (_P(Copy2D), _handle),
    "cuMemsetD8Async": (_address, ctypes.c_ubyte, _size, _handle),
    "cuStreamCreate": (_P(_handle), _uint),
    "cuStreamDestroy_v2": (_handle,),
    "cuStreamWaitEvent": (_handle, _handle, _uint),
    "cuEventCreate": (_P(_handle), _uint),
    "cuEventDestroy_v2": (_handle,),
    "cuEventRecord": (_handle, _handle),
    "cuEventQuery": (_handle,),
    "cuEventSynchronize": (_handle,),
    "cuEventElapsedTime": (_P(_float), _handle, _handle),
    "cuStreamBeginCapture_v2": (_handle, _int),
    "cuStreamEndCapture": (_handle, _P(_handle)),
    "cuGraphInstantiateWithFlags": (_P(_handle), _handle, _u64),
    "cuGraphDestroy": (_handle,),
    "cuGraphLaunch": (_handle, _handle),
    "cuGraphExecDestroy": (_handle,),
}


# ---------------------------------------------------------------------------------------------------------
# Is there a GPU?


@dataclass(frozen=True, slots=True)
class LibraryFacts:
    """What a look at the driver found."""

    devices: int
    """Number of GPUs, 0 without a driver."""
    driver_version: tuple[int, int]
    """Newest CUDA the driver can run, (0, 0) without one."""
    reason: str
    """Why there is no GPU, empty if there is one."""


def probe(library: str = DRIVER_LIBRARY) -> LibraryFacts:
    """Look for a driver and a GPU; never raises, never hangs, makes no context."""
    try:
        cuda = load(library)
    except OSError as error:
        return LibraryFacts(0, (0, 0), f"no NVIDIA driver: {library} cannot be loaded ({error})")
    except AttributeError as error:
        return LibraryFacts(0, (0, 0), f"the NVIDIA driver is too old: {error}; update it")
    count, version = _int(), _int()
    status = cuda.cuInit(0)
    if status == 0:
        cuda.cuDriverGetVersion(ctypes.byref(version))
        status = cuda.cuDeviceGetCount(ctypes.byref(count))
    if status:
        return LibraryFacts(0, (0, 0), f"the NVIDIA driver answers {describe(cuda, status)}")
    found = (version.value // 1000, version.value % 1000 // 10)
    return LibraryFacts(count.value, found, "" if count.value else "the NVIDIA driver sees no GPU")


def load(library: str) -> Any:
    cuda = ctypes.CDLL(library)
    for name, arguments in SIGNATURES.items():
        function = getattr(cuda, name)
        function.argtypes, function.restype = arguments, _int
    return cuda


def describe(cuda: Any, status: int) -> str:
    words = []
    for function in (cuda.cuGetErrorName, cuda.cuGetErrorString):
        text = ctypes.c_char_p()
        if function(status, ctypes.byref(text)) == 0 and text.value:
            words.append(text.value.decode(errors="replace"))
    return f"error {status}" + (f" ({': '.join(words)})" if words else "")
