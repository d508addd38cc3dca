"""The CUDA driver through NVIDIA's bindings (`cuda.bindings.driver`), and nothing of it before it is used.

`CudaDriver` implements the protocol `yonos_trt.cuda.device.Driver`. Addresses, streams, events and graphs are
plain integers. The device's primary context is used, which is the one of PyTorch, TensorRT and everything
else built on the CUDA run time, so addresses can be exchanged. `cuda.core` would add 1 to 2 s of import for
objects around these integers.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from yonos_trt.cuda.device import DeviceInfo
from yonos_trt.errors import ClosedError, CudaError, EngineDeviceError, MissingExtraError, OutOfMemoryError


def _bindings() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise MissingExtraError(
            "running on a GPU", package="cuda.bindings", extra="rtx", reason=str(error)
        ) from error
    return driver


class CudaDriver:
    """One GPU's driver calls; all but the constructor need the device to be `current`.

    Parameters
    ----------
    device
        Index of the GPU.

    Raises
    ------
    EngineDeviceError
        There is no driver, or no such GPU.
    MissingExtraError
        The bindings are not installed.
    """

    def __init__(self, device: int = 0) -> None:
        self._cuda = cuda = _bindings()
        self._ok, self._context = cuda.CUresult.CUDA_SUCCESS, None
        try:
            (status,) = cuda.cuInit(0)
            status, count = cuda.cuDeviceGetCount() if status == self._ok else (status, 0)
        except RuntimeError as error:  # the library, or a function that the bindings know, is not there
            raise EngineDeviceError(
                f"no NVIDIA driver can be used ({error}); install or update it, or run on the CPU with "
                "runtime='onnx'"
            ) from error
        if status != self._ok or not count:
            raise EngineDeviceError(
                f"the NVIDIA driver answers {self._describe(status)} and sees {count} GPUs; install or "
                "update it, or run on the CPU with runtime='onnx'"
            )
        if not 0 <= device < count:
            raise EngineDeviceError(
                f"device {device} does not exist: this machine has {count} GPU(s), "
                f"numbered from 0; choose another -g / device"
            )
        self._device = self._call("cuDeviceGet", device)
        name = self._call("cuDeviceGetName", 256, self._device).partition(b"\0")[0]
        capability = (
            self._attribute("COMPUTE_CAPABILITY_MAJOR"),
            self._attribute("COMPUTE_CAPABILITY_MINOR"),
        )
        self._info = DeviceInfo(
            index=device,
            name=name.decode(errors="replace"),
            compute_capability=capability,
            total_bytes=int(self._call("cuDeviceTotalMem", self._device)),
            driver_version=divmod(self._call("cuDriverGetVersion") // 10, 100),
        )
        self._pool: Any = None
        self._pools = bool(self._attribute("MEMORY_POOLS_SUPPORTED"))
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
        self._users, self._lock = 1, threading.RLock()

    @property
    def info(self) -> DeviceInfo:
        """Name, compute capability and memory of the GPU."""
        return self._info

    def _attribute(self, name: str) -> int:
        attribute = getattr(self._cuda.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(self._call("cuDeviceGetAttribute", attribute, self._device))

    def _describe(self, status: Any) -> str:
        words = (self._cuda.cuGetErrorName(status)[1], self._cuda.cuGetErrorString(status)[1])
        said = ": ".join(word.decode(errors="replace") for word in words if word)
        return f"error {int(status)}" + (f" ({said})" if said else "")

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *values = getattr(self._cuda, name)(*arguments)
        if status != self._ok:
            raise CudaError(
                f"{name} answered {self._describe(status)} on device {self._device}; if it repeats, see the "
                "kernel log for Xid errors and restart the process"
            )
        return values[0] if values else None

    # --- the current device -------------------------------------------------------------------------------

    def activate(self) -> None:
        """See `Driver`."""
        self._call("cuCtxSetCurrent", self._open_context())

    @contextmanager
    def current(self) -> Iterator[None]:
        """See `Driver`."""
        self._call("cuCtxPushCurrent", self._open_context())
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent")

    def _open_context(self) -> Any:
        if self._context is None:
            raise ClosedError("this device was closed; open the engine directory again")
        return self._context

    def share(self) -> CudaDriver:
        """See `Driver`."""
        with self._lock:
            self._users += 1
        return self

    def close(self) -> None:
        """Release the primary context when the last user has closed; other libraries keep it."""
        with self._lock:
            self._users -= 1
            last = self._users <= 0 and self._context is not None
        if last:
            with self.current():
                if self._pool is not None:
                    self._call("cuMemPoolDestroy", self._pool)
            self._context = None
            self._call("cuDevicePrimaryCtxRelease", self._device)

    # --- memory -------------------------------------------------------------------------------------------

    def memory(self) -> tuple[int, int]:
        """See `Driver`."""
        status, free, total = self._cuda.cuMemGetInfo()
        if status != self._ok:
            raise CudaError(f"cuMemGetInfo answered {self._describe(status)}")
        return int(free), int(total)

    def device_of(self, address: int) -> int | None:
        """See `Driver`."""
        ordinal = self._cuda.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        status, index = self._cuda.cuPointerGetAttribute(ordinal, address)
        return int(index) if status == self._ok else None

    def allocate(self, nbytes: int) -> int:
        """See `Driver`. Raises `OutOfMemoryError` with the bytes asked for and free."""
        try:
            return self._allocated(nbytes, "cuMemAlloc", nbytes)
        except OutOfMemoryError:
            if self._pool is None:
                raise
            self._call("cuMemPoolTrimTo", self._pool, 0)  # what results have left
            return self._allocated(nbytes, "cuMemAlloc", nbytes)

    def _allocated(self, nbytes: int, name: str, *arguments: Any) -> int:
        status, address = getattr(self._cuda, name)(*arguments)
        if status == self._cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise OutOfMemoryError(
                f"{self._info.name} is out of memory", asked_bytes=nbytes, free_bytes=self.memory()[0]
            )
        if status != self._ok:
            raise CudaError(f"{name} of {nbytes} bytes answered {self._describe(status)}")
        return int(address)

    def free(self, address: int) -> None:
        """See `Driver`."""
        self._call("cuMemFree", address)

    def allocate_ordered(self, nbytes: int, stream: int) -> int:
        """See `Driver`. From a pool of this device's own, which keeps what is freed for the next time."""
        if not self._pools:
            return self.allocate(nbytes)
        if self._pool is None:
            self._pool = self._make_pool()
        try:
            return self._allocated(nbytes, "cuMemAllocFromPoolAsync", nbytes, self._pool, stream)
        except OutOfMemoryError:  # what the pool keeps may be in pieces that do not fit
            self._call("cuMemPoolTrimTo", self._pool, 0)
            return self._allocated(nbytes, "cuMemAllocFromPoolAsync", nbytes, self._pool, stream)

    def _make_pool(self) -> Any:
        cuda = self._cuda
        properties = cuda.CUmemPoolProps()
        properties.allocType = cuda.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        properties.location.type = cuda.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        properties.location.id = self._info.index
        pool = self._call("cuMemPoolCreate", properties)
        threshold = cuda.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
        self._call("cuMemPoolSetAttribute", pool, threshold, cuda.cuuint64_t(2**64 - 1))
        return pool

    def free_ordered(self, address: int, stream: int) -> None:
        """See `Driver`."""
        if self._pools:
            self._call("cuMemFreeAsync", address, stream)
        else:
            self.free(address)

    def is_capturing(self, stream: int) -> bool:
        """See `Driver`."""
        status, state = self._cuda.cuStreamIsCapturing(stream)
        # An error means that the stream cannot be used now: the default stream beside a capture.
        return bool(status != self._ok or int(state) != 0)

    def allocate_pinned(self, nbytes: int) -> int:
        """See `Driver`."""
        status, address = self._cuda.cuMemHostAlloc(nbytes, 0)
        if status == self._cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise OutOfMemoryError(
                "page-locked host memory ran out", asked_bytes=nbytes, hint="raise ulimit -l or free memory"
            )
        if status != self._ok or not address:
            raise CudaError(f"cuMemHostAlloc of {nbytes} bytes answered {self._describe(status)}")
        return int(address)

    def free_pinned(self, address: int) -> None:
        """See `Driver`."""
        self._call("cuMemFreeHost", address)

    def host_view(self, address: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """See `Driver`."""
        return np.ctypeslib.as_array((ctypes.c_ubyte * nbytes).from_address(address))

    def copy_in(self, to: int, pinned: int, nbytes: int, stream: int) -> None:
        """See `Driver`."""
        self._call("cuMemcpyHtoDAsync", to, pinned, nbytes, stream)

    def copy_out(self, pinned: int, source: int, nbytes: int, stream: int) -> None:
        """See `Driver`."""
        self._call("cuMemcpyDtoHAsync", pinned, source, nbytes, stream)

    def copy(self, to: int, source: int, nbytes: int, stream: int) -> None:
        """See `Driver`. The two ranges must not overlap."""
        self._call("cuMemcpyDtoDAsync", to, source, nbytes, stream)

    def copy_rows(
        self, to: int, to_pitch: int, source: int, source_pitch: int, row_bytes: int, rows: int, stream: int
    ) -> None:
        """See `Driver`."""
        copy = self._cuda.CUDA_MEMCPY2D()
        copy.srcMemoryType = copy.dstMemoryType = self._cuda.CUmemorytype.CU_MEMORYTYPE_DEVICE
        copy.srcDevice, copy.srcPitch = self._cuda.CUdeviceptr(source), source_pitch
        copy.dstDevice, copy.dstPitch = self._cuda.CUdeviceptr(to), to_pitch
        copy.WidthInBytes, copy.Height = row_bytes, rows
        self._call("cuMemcpy2DAsync", copy, stream)

    def fill(self, to: int, value: int, nbytes: int, stream: int) -> None:
        """See `Driver`."""
        self._call("cuMemsetD8Async", to, value, nbytes, stream)

    # --- streams and events -------------------------------------------------------------------------------

    def stream_create(self) -> int:
        """See `Driver`. Never synchronises with the default stream."""
        return int(self._call("cuStreamCreate", int(self._cuda.CUstream_flags.CU_STREAM_NON_BLOCKING)))

    def stream_destroy(self, stream: int) -> None:
        """See `Driver`."""
        self._call("cuStreamDestroy", stream)

    def stream_wait(self, stream: int, event: int) -> None:
        """See `Driver`."""
        self._call("cuStreamWaitEvent", stream, event, 0)

    def event_create(self, *, timing: bool = False) -> int:
        """See `Driver`. Waiting for it sleeps instead of spinning."""
        kinds = self._cuda.CUevent_flags
        plain = 0 if timing else int(kinds.CU_EVENT_DISABLE_TIMING)
        return int(self._call("cuEventCreate", int(kinds.CU_EVENT_BLOCKING_SYNC) | plain))

    def event_destroy(self, event: int) -> None:
        """See `Driver`."""
        self._call("cuEventDestroy", event)

    def event_record(self, event: int, stream: int) -> None:
        """See `Driver`."""
        self._call("cuEventRecord", event, stream)

    def event_query(self, event: int) -> bool:
        """See `Driver`."""
        (status,) = self._cuda.cuEventQuery(event)
        if status not in (self._ok, self._cuda.CUresult.CUDA_ERROR_NOT_READY):
            raise CudaError(f"earlier device work failed: {self._describe(status)}")
        return bool(status == self._ok)

    def event_synchronize(self, event: int) -> None:
        """See `Driver`."""
        self._call("cuEventSynchronize", event)

    def elapsed_ms(self, start: int, end: int) -> float:
        """Milliseconds between two events made with ``timing=True`` that have both been reached."""
        return float(self._call("cuEventElapsedTime", start, end))

    # --- graphs -------------------------------------------------------------------------------------------

    def capture_begin(self, stream: int) -> None:
        """See `Driver`."""
        mode = self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", stream, mode)

    def capture_end(self, stream: int) -> int:
        """See `Driver`."""
        graph = self._call("cuStreamEndCapture", stream)
        try:
            return int(self._call("cuGraphInstantiate", graph, 0))
        finally:
            self._call("cuGraphDestroy", graph)

    def capture_abort(self, stream: int) -> None:
        """See `Driver`."""
        _, graph = self._cuda.cuStreamEndCapture(stream)  # its error is the capture's, known already
        if graph is not None and int(graph):
            self._call("cuGraphDestroy", graph)

    def graph_launch(self, graph: int, stream: int) -> None:
        """See `Driver`."""
        self._call("cuGraphLaunch", graph, stream)

    def graph_destroy(self, graph: int) -> None:
        """See `Driver`."""
        self._call("cuGraphExecDestroy", graph)
