"""Arrays of other libraries, in and out, without a copy: the DLPack protocol."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from yonos_trt.errors import InputError
from yonos_trt.images.picture import Pixels

_HOST_DEVICES = (1, 3)  # kDLCPU and kDLCUDAHost of dlpack.h


def from_dlpack(image: Any) -> tuple[Pixels, Callable[[Pixels], Any]]:
    """Return a NumPy view of a host array, and the function that turns NumPy into the same kind."""
    device = int(image.__dlpack_device__()[0])
    kind = type(image)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if device not in _HOST_DEVICES:
        raise InputError(
            f"got a {name} on a device (DLPack device type {device}), expected "
            "host memory; copy it to the host first, for example with .cpu()"
        )
    if hasattr(image, "__array_namespace__"):  # the array API standard: JAX, CuPy, ...
        library = image.__array_namespace__()
    else:
        library = sys.modules.get(kind.__module__.partition(".")[0])
    back = getattr(library, "from_dlpack", None)
    if back is None:
        raise InputError(
            f"{name} has __dlpack__, but its package has no from_dlpack to return "
            "the same kind; pass numpy.from_dlpack(array) instead"
        )
    try:
        return np.from_dlpack(image), back
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"the {name} cannot be read through DLPack: {error}") from error
