"""Arrays in device memory, without copies: the caller's in, ours out.

`view_of` reads ``__cuda_array_interface__`` or ``__dlpack__`` of what the caller has (PyTorch, CuPy, JAX,
Numba); `DeviceArray` owns its memory and offers both. `stream_handle` understands an int, ``__cuda_stream__``
and the stream objects of PyTorch and CuPy. Nothing here loads a CUDA library.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from yonos_trt.errors import InputError

# dlpack.h: DLDeviceType and DLDataTypeCode.
KDL_CUDA = 2
_CODES = {(1, 8): "uint8", (1, 16): "uint16", (2, 32): "float32"}
_TYPESTRS = {"|u1": "uint8", "<u2": "uint16", "<f4": "float32"}

LEGACY_STREAM = 1
"""The handle by which the driver knows the default stream."""


@dataclass(frozen=True, slots=True)
class Stream:
    """One of our streams, for libraries that know NVIDIA's protocol: ``torch.cuda`` by way of its handle,
    ``cuda.core`` and CuPy by ``__cuda_stream__``."""

    handle: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle


@dataclass(frozen=True, slots=True)
class DeviceView:
    """Somebody else's (H, W, 3) picture in device memory."""

    address: int
    height: int
    width: int
    dtype: str
    pitch_bytes: int
    stream: int | None
    """Stream on which it is being written, None if its owner has seen to that."""
    owner: Any
    """Keeps the memory alive."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, 3)."""
        return self.height, self.width, 3


def is_on_device(array: Any) -> bool:
    """Whether this is an array in CUDA memory.

    Raises
    ------
    InputError
        It lies nowhere that DLPack knows.
    """
    if hasattr(array, "__dlpack_device__"):
        try:
            return int(array.__dlpack_device__()[0]) == KDL_CUDA
        except (BufferError, RuntimeError, TypeError, ValueError) as error:  # a torch tensor of "meta" ...
            raise InputError(f"the {type(array).__name__} cannot be read through DLPack: {error}") from error
    return hasattr(array, "__cuda_array_interface__")


def stream_handle(stream: Any) -> int | None:
    """Return the driver's handle of a stream: an int, ``__cuda_stream__``, PyTorch's or CuPy's object, None.

    Raises
    ------
    InputError
        It is none of these.
    """
    if stream is None:
        return None
    if hasattr(stream, "__cuda_stream__"):
        version, handle = stream.__cuda_stream__()
        if version != 0:
            raise InputError(
                f"stream is a {type(stream).__name__} that speaks version {version} of __cuda_stream__, "
                "expected 0; pass its handle as an int"
            )
    elif hasattr(stream, "cuda_stream"):
        handle = stream.cuda_stream
    else:
        handle = getattr(stream, "ptr", stream)
    if isinstance(handle, bool) or not isinstance(handle, int) or handle < 0:
        raise InputError(
            f"stream is a {type(stream).__name__}, expected an int, an object with __cuda_stream__, or a "
            "stream of PyTorch or CuPy"
        )
    return handle or LEGACY_STREAM


def device_index(array: Any) -> int | None:
    """Return the GPU that an array says it lies on; None where it does not say."""
    if hasattr(array, "__dlpack_device__"):
        return int(array.__dlpack_device__()[1])
    device = getattr(array, "device", None)  # CuPy: .id, PyTorch: .index
    index = getattr(device, "id", getattr(device, "index", None))
    return index if isinstance(index, int) else None


def view_of(array: Any, *, consumer: int) -> DeviceView:
    """Look at a picture in device memory; asks ``__dlpack__`` once.

    Parameters
    ----------
    array
        (H, W, 3) uint8, uint16 or float32; pixels packed, rows may be further apart.
    consumer
        Our stream, which owners that speak DLPack make wait for their own work.

    Raises
    ------
    InputError
        Another shape, type or layout. Nothing is copied to make it fit.
    """
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is not None:
        dtype = _TYPESTRS.get(interface["typestr"], interface["typestr"])
        strides = interface.get("strides")
        return _checked(
            interface["data"][0],
            tuple(interface["shape"]),
            dtype,
            None if strides is None else tuple(strides),
            stream_handle(interface.get("stream") or _stream_of_library(array)),
            array,
        )
    capsule = array.__dlpack__(stream=consumer)
    tensor = ctypes.cast(_capsule_pointer(capsule, b"dltensor"), ctypes.POINTER(_DLTensor)).contents
    kind = (int(tensor.code), int(tensor.bits))
    shape = tuple(int(tensor.shape[i]) for i in range(tensor.ndim))
    strides = (
        tuple(int(tensor.strides[i]) * kind[1] // 8 for i in range(tensor.ndim)) if tensor.strides else None
    )
    dtype = _CODES.get(kind, f"DLPack type {kind}")
    # The capsule is not renamed to "used_dltensor": it goes back to its owner when the view does.
    return _checked(int(tensor.data or 0) + int(tensor.byte_offset), shape, dtype, strides, None, capsule)


def _stream_of_library(array: Any) -> Any:
    """PyTorch's interface does not name the stream its tensors are written on: it is the current one."""
    if type(array).__module__.partition(".")[0] == "torch":
        import torch

        return torch.cuda.current_stream(array.device)
    return None


def _checked(
    address: int,
    shape: tuple[int, ...],
    dtype: str,
    strides: tuple[int, ...] | None,
    stream: int | None,
    owner: Any,
) -> DeviceView:
    if len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise InputError(
            f"the array on the device has the shape {shape}, expected (height, width, 3); grey, alpha and "
            "batches are done in host memory: copy it there first, for example with .cpu()"
        )
    if dtype not in _CODES.values():
        raise InputError(f"the array on the device is {dtype}, expected uint8, uint16 or float32 in [0, 1]")
    item = np.dtype(dtype).itemsize
    packed = (shape[1] * 3 * item, 3 * item, item)
    strides = strides or packed
    if strides[1:] != packed[1:] or strides[0] < packed[0]:
        raise InputError(
            f"the array on the device has the strides {strides} bytes, expected packed pixels as in "
            f"{packed}; make it contiguous first (nothing is copied here unasked)"
        )
    return DeviceView(address, shape[0], shape[1], dtype, strides[0], stream, owner)


# ---------------------------------------------------------------------------------------------------------
# Ours


class DeviceArray:
    """A packed (H, W, 3) array in device memory that frees itself.

    Parameters
    ----------
    address, shape, dtype
        Where it lies and what it is.
    device
        Index of the GPU.
    free
        Called once with the address when nobody refers to the array any more, DLPack consumers included.
    """

    def __init__(
        self, address: int, shape: tuple[int, int, int], dtype: str, device: int, free: Callable[[int], None]
    ) -> None:
        self.address, self.shape, self.dtype, self.device = address, shape, dtype, device
        self._free = free

    def __del__(self) -> None:
        address, self.address = getattr(self, "address", 0), 0
        if address:
            self._free(address)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": np.dtype(self.dtype).str,
            "data": (self.address, False),
            "strides": None,
            "stream": None,  # ordered after our work on the caller's stream already
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return KDL_CUDA, self.device

    def __dlpack__(self, *, stream: Any = None, **_: Any) -> Any:
        """Return a capsule; `stream` is not needed, the work was ordered when the array was made."""
        return make_capsule(self, self.__dlpack_device__())


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _DLManagedTensor(ctypes.Structure):
    _fields_ = (("tensor", _DLTensor), ("manager", ctypes.c_void_p), ("deleter", _DELETER))


_exported: dict[int, tuple[Any, ...]] = {}
"""Address of a managed tensor -> everything that has to live as long as a consumer uses it."""


def _forget(managed: int) -> None:
    _exported.pop(managed, None)


def _forget_capsule(capsule: int) -> None:
    if ctypes.pythonapi.PyCapsule_IsValid(ctypes.c_void_p(capsule), b"dltensor"):  # nobody consumed it
        _exported.pop(ctypes.pythonapi.PyCapsule_GetPointer(ctypes.c_void_p(capsule), b"dltensor"), None)


_delete = _DELETER(_forget)
_capsule_dies = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(_forget_capsule)

ctypes.pythonapi.PyCapsule_New.restype = ctypes.py_object
ctypes.pythonapi.PyCapsule_New.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
ctypes.pythonapi.PyCapsule_IsValid.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
ctypes.pythonapi.PyCapsule_GetPointer.restype = ctypes.c_void_p
ctypes.pythonapi.PyCapsule_GetPointer.argtypes = (ctypes.c_void_p, ctypes.c_char_p)


def _capsule_pointer(capsule: Any, name: bytes) -> int:
    return int(ctypes.pythonapi.PyCapsule_GetPointer(ctypes.c_void_p(id(capsule)), name))


def make_capsule(array: DeviceArray, device: tuple[int, int]) -> Any:
    """Wrap an array's memory into a "dltensor" capsule that keeps the array alive."""
    code, bits = next(kind for kind, name in _CODES.items() if name == array.dtype)
    shape = (ctypes.c_int64 * 3)(*array.shape)
    managed = _DLManagedTensor(
        _DLTensor(array.address, *device, 3, code, bits, 1, shape, None, 0), None, _delete
    )
    place = ctypes.addressof(managed)
    _exported[place] = (managed, shape, array)
    return ctypes.pythonapi.PyCapsule_New(place, b"dltensor", ctypes.cast(_capsule_dies, ctypes.c_void_p))
