"""The CUDA driver behind some thirty calls, and nothing of it before it is used.

`CudaDriver` implements the protocol `yonos_trt.cuda.device.Driver` by calls into `yonos_trt.cuda.libcuda`.
Addresses, streams, events and graphs are plain integers. The device's primary context is used, which is the
one of PyTorch, TensorRT and everything else built on the CUDA run time, so addresses can be exchanged.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from yonos_trt.cuda.device import DeviceInfo
from yonos_trt.cuda.libcuda import DRIVER_LIBRARY, Copy2D, describe, load, probe
from yonos_trt.errors import ClosedError, CudaError, EngineDeviceError, OutOfMemoryError

__all__ = ["CudaDriver"]

# Values of cuda.h: enumerations CUresult, CUdevice_attribute, CUstream_flags, CUevent_flags,
# CUstreamCaptureMode, CUmemorytype.
_OUT_OF_MEMORY = 2
_DEVICE_ORDINAL = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
_MAJOR, _MINOR = 75, 76
_STREAM_NON_BLOCKING = 1
_EVENT_BLOCKING_SYNC, _EVENT_DISABLE_TIMING = 1, 2
_NOT_READY = 600
_CAPTURE_THREAD_LOCAL = 1
_MEMORY_DEVICE = 2

_int, _size, _float = ctypes.c_int, ctypes.c_size_t, ctypes.c_float
_handle, _address = ctypes.c_void_p, ctypes.c_uint64


class CudaDriver:
    """One GPU's driver calls. Makes the primary context current in the thread that constructs it.

    Parameters
    ----------
    device
        Index of the GPU.
    library
        Path of the driver library.

    Raises
    ------
    EngineDeviceError
        There is no driver, or no such GPU.
    """

    def __init__(self, device: int = 0, *, library: str = DRIVER_LIBRARY) -> None:
        found = probe(library)
        if not found.devices:
            raise EngineDeviceError(
                f"{found.reason}; install an NVIDIA driver, or run on the CPU with runtime='onnx'"
            )
        if not 0 <= device < found.devices:
            raise EngineDeviceError(
                f"device {device} does not exist: this machine has {found.devices} GPU(s), "
                f"numbered from 0; choose another -g / device"
            )
        self._cuda = load(library)
        self._device = self._out(_int, "cuDeviceGet", device)
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name, 256, self._device)
        self._info = DeviceInfo(
            index=device,
            name=name.value.decode(errors="replace"),
            compute_capability=(
                self._out(_int, "cuDeviceGetAttribute", _MAJOR, self._device),
                self._out(_int, "cuDeviceGetAttribute", _MINOR, self._device),
            ),
            total_bytes=self._out(_size, "cuDeviceTotalMem_v2", self._device),
            driver_version=found.driver_version,
        )
        self._context: int | None = self._out(_handle, "cuDevicePrimaryCtxRetain", self._device)
        self._users = 1
        self.activate()

    @property
    def info(self) -> DeviceInfo:
        """Name, compute capability and memory of the GPU."""
        return self._info

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._cuda, name)(*arguments)
        if status:
            raise CudaError(
                f"{name} answered {describe(self._cuda, status)} on device {self._device}; if it repeats, "
                "see the kernel log for Xid errors and restart the process"
            )

    def _out(self, kind: Any, name: str, *arguments: Any) -> Any:
        value = kind()
        self._call(name, ctypes.byref(value), *arguments)
        return value.value

    def activate(self) -> None:
        """See `Driver`."""
        if self._context is None:
            raise ClosedError("this device was closed; open the engine directory again")
        self._call("cuCtxSetCurrent", self._context)

    def share(self) -> CudaDriver:
        """See `Driver`."""
        self._users += 1
        return self

    def close(self) -> None:
        """Release the primary context when the last user has closed; other libraries keep it."""
        self._users -= 1
        if self._users <= 0 and self._context is not None:
            self._context = None
            self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    # --- memory -------------------------------------------------------------------------------------------

    def memory(self) -> tuple[int, int]:
        """See `Driver`."""
        free, total = _size(), _size()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def device_of(self, address: int) -> int | None:
        """See `Driver`."""
        index = ctypes.c_int()
        status = self._cuda.cuPointerGetAttribute(ctypes.byref(index), _DEVICE_ORDINAL, address)
        return None if status else index.value

    def allocate(self, nbytes: int) -> int:
        """See `Driver`. Raises `OutOfMemoryError` with the bytes asked for and free."""
        address = _address()
        status = self._cuda.cuMemAlloc_v2(ctypes.byref(address), nbytes)
        if status == _OUT_OF_MEMORY:
            raise OutOfMemoryError(
                f"{self._info.name} is out of memory", asked_bytes=nbytes, free_bytes=self.memory()[0]
            )
        if status:
            raise CudaError(f"cuMemAlloc of {nbytes} bytes answered {describe(self._cuda, status)}")
        return int(address.value)

    def free(self, address: int) -> None:
        """See `Driver`."""
        self._call("cuMemFree_v2", address)

    def allocate_pinned(self, nbytes: int) -> int:
        """See `Driver`."""
        address = _handle()
        status = self._cuda.cuMemHostAlloc(ctypes.byref(address), nbytes, 0)
        if status == _OUT_OF_MEMORY:
            raise OutOfMemoryError(
                "page-locked host memory ran out", asked_bytes=nbytes, hint="raise ulimit -l or free memory"
            )
        if status or not address.value:
            raise CudaError(f"cuMemHostAlloc of {nbytes} bytes answered {describe(self._cuda, status)}")
        return address.value

    def free_pinned(self, address: int) -> None:
        """See `Driver`."""
        self._call("cuMemFreeHost", address)

    def host_view(self, address: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """See `Driver`."""
        return np.ctypeslib.as_array((ctypes.c_ubyte * nbytes).from_address(address))

    def copy_in(self, to: int, pinned: int, nbytes: int, stream: int) -> None:
        """See `Driver`."""
        self._call("cuMemcpyHtoDAsync_v2", to, pinned, nbytes, stream)

    def copy_out(self, pinned: int, source: int, nbytes: int, stream: int) -> None:
        """See `Driver`."""
        self._call("cuMemcpyDtoHAsync_v2", pinned, source, nbytes, stream)

    def copy(self, to: int, source: int, nbytes: int, stream: int) -> None:
        """See `Driver`. The two ranges must not overlap."""
        self._call("cuMemcpyDtoDAsync_v2", to, source, nbytes, stream)

    def copy_rows(
        self, to: int, to_pitch: int, source: int, source_pitch: int, row_bytes: int, rows: int, stream: int
    ) -> None:
        """See `Driver`."""
        copy = Copy2D(
            source_type=_MEMORY_DEVICE,
            source_device=source,
            source_pitch=source_pitch,
            to_type=_MEMORY_DEVICE,
            to_device=to,
            to_pitch=to_pitch,
            row_bytes=row_bytes,
            rows=rows,
        )
        self._call("cuMemcpy2DAsync_v2", ctypes.byref(copy), stream)

    def fill(self, to: int, value: int, nbytes: int, stream: int) -> None:
        """See `Driver`."""
        self._call("cuMemsetD8Async", to, value, nbytes, stream)

    # --- streams and events -------------------------------------------------------------------------------

    def stream_create(self) -> int:
        """See `Driver`. Never synchronises with the default stream."""
        return int(self._out(_handle, "cuStreamCreate", _STREAM_NON_BLOCKING))

    def stream_destroy(self, stream: int) -> None:
        """See `Driver`."""
        self._call("cuStreamDestroy_v2", stream)

    def stream_wait(self, stream: int, event: int) -> None:
        """See `Driver`."""
        self._call("cuStreamWaitEvent", stream, event, 0)

    def event_create(self, *, timing: bool = False) -> int:
        """See `Driver`. Waiting for it sleeps instead of spinning."""
        flags = _EVENT_BLOCKING_SYNC | (0 if timing else _EVENT_DISABLE_TIMING)
        return int(self._out(_handle, "cuEventCreate", flags))

    def event_destroy(self, event: int) -> None:
        """See `Driver`."""
        self._call("cuEventDestroy_v2", event)

    def event_record(self, event: int, stream: int) -> None:
        """See `Driver`."""
        self._call("cuEventRecord", event, stream)

    def event_query(self, event: int) -> bool:
        """See `Driver`."""
        status = self._cuda.cuEventQuery(event)
        if status not in (0, _NOT_READY):
            raise CudaError(f"earlier device work failed: {describe(self._cuda, status)}")
        return bool(status == 0)

    def event_synchronize(self, event: int) -> None:
        """See `Driver`."""
        self._call("cuEventSynchronize", event)

    def elapsed_ms(self, start: int, end: int) -> float:
        """Milliseconds between two events made with ``timing=True`` that have both been reached."""
        return float(self._out(_float, "cuEventElapsedTime", start, end))

    # --- graphs -------------------------------------------------------------------------------------------

    def capture_begin(self, stream: int) -> None:
        """See `Driver`."""
        self._call("cuStreamBeginCapture_v2", stream, _CAPTURE_THREAD_LOCAL)

    def capture_end(self, stream: int) -> int:
        """See `Driver`."""
        graph = _handle()
        self._call("cuStreamEndCapture", stream, ctypes.byref(graph))
        try:
            return int(self._out(_handle, "cuGraphInstantiateWithFlags", graph, 0))
        finally:
            self._call("cuGraphDestroy", graph)

    def capture_abort(self, stream: int) -> None:
        """See `Driver`."""
        graph = _handle()
        self._cuda.cuStreamEndCapture(
            stream, ctypes.byref(graph)
        )  # its error is the capture's, known already
        if graph.value:
            self._call("cuGraphDestroy", graph.value)

    def graph_launch(self, graph: int, stream: int) -> None:
        """See `Driver`."""
        self._call("cuGraphLaunch", graph, stream)

    def graph_destroy(self, graph: int) -> None:
        """See `Driver`."""
        self._call("cuGraphExecDestroy", graph)
