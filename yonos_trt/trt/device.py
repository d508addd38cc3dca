"""Pictures that stay on the GPU: the caller's device memory in, a device array out, ordered on his stream."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from yonos_trt.cuda.arrays import DeviceArray, DeviceView, stream_handle
from yonos_trt.cuda.device import Driver
from yonos_trt.errors import ConfigError, InputError, OutOfMemoryError
from yonos_trt.planning import PicturePlan
from yonos_trt.tiles.plan import TilePlan, batches, rows_final_after_band
from yonos_trt.trt.backend import TrtBackend

__all__ = ["upscale_on_device", "upscale_same_kind"]


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
) -> DeviceArray:
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

    Returns
    -------
    DeviceArray
        (s H, s W, 3) of the input's dtype; owns its memory, also after the back end is closed.

    Raises
    ------
    InputError
        Another shape, type or layout; nothing is copied to make it fit.
    ConfigError
        The plan belongs to another size, or ``check=False`` without a stream.
    NumericError, OutOfMemoryError
        As in the pipeline.
    """
    view = image if isinstance(image, DeviceView) else backend.look_at(image)
    caller = stream_handle(stream) or view.stream
    if caller is None and not check:
        raise ConfigError("check=False without a stream: nothing would say when the result is complete")
    scale = backend.manifest.model.scale
    if (view.height * scale, view.width * scale) != (plan.height_px, plan.width_px):
        raise ConfigError(
            f"the plan is for a canvas of {plan.height_px} x {plan.width_px} px, this picture needs "
            f"{view.height * scale} x {view.width * scale}; make the plan with plan_tiles for that size"
        )
    source = backend.adopt(view, after=caller)
    canvas = backend.canvas(plan)
    finish = backend.finish(source, canvas, plan, color_fix=color_fix)
    out = _allocate(backend.driver, plan, view.dtype)
    row_bytes = 3 * plan.width_px * np.dtype(view.dtype).itemsize
    y0 = 0
    for batch in batches(plan):
        tiles = backend.gather(source, plan, batch, lane=0)
        noise = backend.noise(plan, batch, seed=seed, lane=0)
        z_0 = backend.step(noise, backend.encode(tiles, lane=0), lane=0)
        backend.blend(canvas, backend.decode(z_0, lane=0), plan, batch)
        if on_tiles is not None:
            on_tiles(batch.first + batch.live, plan.tiles)
        if (batch.first + batch.live) % len(plan.xs) == 0:
            y1 = rows_final_after_band(plan, batch.band)
            if y1 > y0:
                if check:
                    backend.check(canvas)
                finish.take(y0, y1)
                first, last = finish.finished(y0), finish.finished(y1)
                if last > first:
                    finish.write(first, last, out.address + first * row_bytes)
            y0 = y1
    backend.hand_over(caller)
    return out


def upscale_same_kind(
    image: Any,
    backend: Any,
    plan: Callable[[int, int], PicturePlan],
    shrink: Callable[[PicturePlan, OutOfMemoryError], None],
    *,
    seed: int,
    color_fix: str,
    stream: Any = None,
    on_tiles: Callable[[int, int], None] | None = None,
) -> Any:
    """Upscale an array in device memory; returns the same kind (PyTorch, CuPy, JAX) or a `DeviceArray`.

    Parameters
    ----------
    plan
        ``(height_lr_px, width_lr_px) -> PicturePlan``.
    shrink
        Called when memory ran out, before the picture is begun again: lets `plan` give less, or raises.

    Raises
    ------
    InputError
        The back end does not run on a GPU, or on another one.
    """
    name = f"{type(image).__module__}.{type(image).__qualname__}"
    if not isinstance(backend, TrtBackend):
        raise InputError(
            f"got a {name} in device memory (DLPack device type 2), but {type(backend).__name__} reads host "
            "memory; copy it to the host first, for example with .cpu(), or use runtime='tensorrt'"
        )
    view = backend.look_at(image)
    while True:
        planned = plan(view.height, view.width)
        backend.use_lanes(planned.lanes)
        try:
            out = upscale_on_device(
                view,
                backend,
                plan=planned.tiles,
                seed=seed,
                color_fix=color_fix,
                stream=stream,
                on_tiles=on_tiles,
            )
            break
        except OutOfMemoryError as error:
            shrink(planned, error)
    library = sys.modules.get(type(image).__module__.partition(".")[0])
    back = getattr(library, "from_dlpack", None)
    return out if back is None else back(out)


def _allocate(driver: Driver, plan: TilePlan, dtype: str) -> DeviceArray:
    shape = (plan.height_px, plan.width_px, 3)
    address = driver.allocate(int(np.prod(shape)) * np.dtype(dtype).itemsize)
    return DeviceArray(address, shape, dtype, driver.info.index, partial(_free, driver.share()))


def _free(driver: Driver, address: int) -> None:
    driver.activate()
    driver.free(address)
    driver.close()
