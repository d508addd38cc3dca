"""Pictures that stay on the GPU: the caller's device memory in, a device array out, ordered on his stream."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from yonos_trt import pipeline
from yonos_trt.backends.base import Backend
from yonos_trt.cuda.arrays import LEGACY_STREAM, DeviceArray, DeviceView, stream_handle
from yonos_trt.cuda.device import Results
from yonos_trt.errors import ConfigError, InputError, OutOfMemoryError
from yonos_trt.tiles.plan import TilePlan
from yonos_trt.trt.backend import TrtBackend
from yonos_trt.trt.buffers import Canvas, Source
from yonos_trt.trt.finish import DeviceFinish, Target


def upscale_on_device(
    image: Any,
    backend: TrtBackend,
    *,
    plan: TilePlan,
    seed: int = 0,
    color_fix: str = "wavelet",
    stream: Any = None,
    check: bool = True,
    on_tiles: Callable[[int, int], None] | None = None,
    out: Any = None,
) -> Any:
    """Upscale a picture in device memory; no pixel visits the host.

    Parameters
    ----------
    image
        (H, W, 3) uint8, uint16 or float32 in [0, 1] with ``__cuda_array_interface__`` or ``__dlpack__``, or
        what `TrtBackend.look_at` returned for it. One copy is made of it, on the device.
    backend, plan
        As in `yonos_trt.pipeline.upscale`.
    seed
        Names the noise field.
    color_fix
        "wavelet", "adain" (which holds the whole canvas) or "none".
    stream
        The caller's stream: work he gave it before is waited for (on the device), and what he gives it later
        comes after the result. An int, ``__cuda_stream__``, a stream of PyTorch or CuPy, or None, where the
        array itself says which stream it belongs to.
    check
        True looks for NaN and infinity, for which the host waits after each row of tiles. False never waits:
        the result is complete on `stream`, which is then required.
    on_tiles
        Called with (tiles queued, tiles in all) after every blend was queued; with `check` they are done
        after each row of tiles.

    out
        (s H, s W, 3) of the input's dtype in device memory of the same GPU, packed rows: written and returned
        instead of memory of ours. What `stream` has of it before is waited for.

    Returns
    -------
    DeviceArray
        (s H, s W, 3) of the input's dtype; owns its memory, also after the back end is closed. It is given
        back in the order of the caller's stream, which has to live as long (as an object it is kept).

    Raises
    ------
    InputError
        Another shape, type or layout; nothing is copied to make it fit.
    ConfigError
        The plan belongs to another size, or ``check=False`` without a stream.
    NumericError, OutOfMemoryError
        As in the pipeline.
    """
    ends = OnDevice(image, backend, stream, check=check, out=out)
    for _ in pipeline.upscale(ends.view, ends, plan=plan, seed=seed, color_fix=color_fix, on_tiles=on_tiles):
        pass
    return ends.result()


class OnDevice:
    """`TrtBackend` with both ends of the data path in the caller's memory: a `Backend` for one picture.

    What its finish hands out are not rows but their numbers: the rows lie in `result`. A run that goes on
    where another ended leaves alone what that has written.

    Parameters
    ----------
    image, backend, stream, check, out
        As in `upscale_on_device`.

    Raises
    ------
    InputError
        The back end does not run on a GPU, or on another one; or the picture has another shape or type.
    """

    def __init__(
        self, image: Any, backend: Backend, stream: Any = None, *, check: bool = True, out: Any = None
    ) -> None:
        if not isinstance(backend, TrtBackend):
            name = f"{type(image).__module__}.{type(image).__qualname__}"
            raise InputError(
                f"got a {name} in device memory (DLPack device type 2), but {type(backend).__name__} reads "
                "host memory; copy it to the host first, for example with .cpu(), or use runtime='tensorrt'"
            )
        self.view = image if isinstance(image, DeviceView) else backend.look_at(image)
        self._caller = stream_handle(stream) or self.view.stream
        if self._caller is None and not check:
            raise ConfigError("check=False without a stream: nothing would say when the result is complete")
        self._backend, self._check, self._stream = backend, check, stream
        self._given = out
        self._target: Target | None = None
        self.manifest, self.lanes, self.any_tile = backend.manifest, backend.lanes, backend.any_tile
        self.best_batch = backend.best_batch
        self.working_bytes, self.use_lanes, self.canvas = (
            backend.working_bytes,
            backend.use_lanes,
            backend.canvas,
        )
        self.run, self.blend, self.close = backend.run, backend.blend, backend.close
        if out is not None:
            self._target = Target(self._writable(out), check)

    def upload(self, image: Any) -> Source:
        """Copy the picture on the device, after the caller's work."""
        return self._backend.adopt(self.view, after=self._caller)

    def finish(
        self,
        source: Source,
        canvas: Canvas,
        plan: TilePlan,
        *,
        color_fix: str,
        threads: int = 1,
        first_row_px: int = 0,
    ) -> DeviceFinish:
        """Return the back end's own, whose rows go to `result`."""
        finish = self._backend.finish(source, canvas, plan, color_fix=color_fix)
        if self._target is None:
            try:
                self._target = Target(self._allocate((plan.height_px, plan.width_px, 3)), self._check)
            except OutOfMemoryError:
                self._backend.give_back()  # for the smaller plan that comes next
                raise
        finish.into(self._target)
        return finish

    def result(self) -> Any:
        """Order the caller's later work after ours; return his `out`, or a `DeviceArray`."""
        assert self._target is not None
        self._backend.hand_over(self._caller)
        return self._target.array if self._given is None else self._given

    def _allocate(self, shape: tuple[int, int, int]) -> DeviceArray:
        results, dtype = self._backend.results, self.view.dtype
        address = results.allocate(math.prod(shape) * np.dtype(dtype).itemsize, self._backend.stream.handle)
        # Without a stream of the caller's, behind all that the usual streams of other libraries have.
        stream = LEGACY_STREAM if self._caller is None else self._caller
        free = partial(_free, results, self._stream, stream)
        return DeviceArray(address, shape, dtype, self._backend.driver.info.index, free)

    def _writable(self, out: Any) -> DeviceArray:
        """Return the caller's `out` as an array that frees nothing."""
        view, scale = self._backend.look_at(out), self.manifest.model.scale
        shape = (self.view.height * scale, self.view.width * scale, 3)
        row_bytes = 3 * shape[1] * np.dtype(self.view.dtype).itemsize
        found = (view.height, view.width, 3)
        if (found, view.dtype, view.pitch_bytes) != (shape, self.view.dtype, row_bytes):
            raise InputError(
                f"out is {found} {view.dtype} with rows {view.pitch_bytes} bytes apart, expected {shape} "
                f"{self.view.dtype}, rows {row_bytes} bytes apart"
            )
        return DeviceArray(view.address, shape, view.dtype, self._backend.driver.info.index, _keep)


def same_kind(array: Any, image: Any) -> Any:
    """Return `array` as the library of `image` (PyTorch, CuPy, JAX) has it, or as it is."""
    library = sys.modules.get(type(image).__module__.partition(".")[0])
    back = getattr(library, "from_dlpack", None)
    return array if back is None else back(array)


def _free(results: Results, _kept: Any, stream: int, address: int) -> None:
    results.free(address, stream)


def _keep(_address: int) -> None:
    """The caller's memory stays his."""
