"""The tile kernels on the device: `TileKernels`, and `CudaKernels`, the launcher of csrc/tiles.cu.

What can be launched, and with which arguments, is in `yonos_trt.cuda.launches`. The kernels' maths is that of
`yonos_trt.tiles` (`kernels`, `noise`, `color_cells`). The library that emulates the grid on the
host has the same C functions.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from yonos_trt.cuda.launches import Launch, declare
from yonos_trt.errors import CudaError, MissingExtraError

DRIVER_LIBRARY = "libcuda.so.1"
"""Part of every NVIDIA driver."""

_log = logging.getLogger(__name__)


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


def kernel_codes(library: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of the kernels' code, the best first: native code beside `library`, then PTX."""
    for path in (library.with_name("tiles.fatbin"), Path(__file__).with_name("tiles.ptx")):
        if path.is_file():
            yield path.name, path.read_bytes()


class CudaKernels:
    """The compiled kernels, native code where it was built for this GPU, else PTX that the driver compiles.

    The driver keeps what it compiled of PTX (``CUDA_CACHE_PATH``), so only the first process waits for it.

    Parameters
    ----------
    library
        The shared library; by default the one in the package's folder, or ``YONOS_CUDA_KERNELS``.
    codes
        Name and bytes of kernels to try in turn; by default those of `kernel_codes`.
    driver
        Name or path of the driver's library.

    Raises
    ------
    MissingExtraError
        The library is not there, cannot be loaded, or comes from another version.
    CudaError
        The driver takes none of the codes.
    """

    def __init__(
        self,
        library: str | os.PathLike[str] | None = None,
        *,
        codes: Iterable[tuple[str, bytes]] | None = None,
        driver: str = DRIVER_LIBRARY,
    ) -> None:
        path = Path(library or os.environ.get("YONOS_CUDA_KERNELS") or kernel_library())
        try:
            self.library: Any = declare(ctypes.CDLL(str(path)))
        except (OSError, AttributeError) as error:
            raise MissingExtraError(
                "running on a GPU (whose kernels are launched by a library that the build makes with GCC 12, "
                "Clang 14 or newer; nvcc is not needed)",
                package=path.name,
                extra="rtx",
                reason=str(error),
                settings="--force-reinstall --no-deps",
            ) from error
        answers = []
        for name, code in kernel_codes(path) if codes is None else codes:
            log = ctypes.create_string_buffer(4096)
            status = self.library.yonos_open(os.fsencode(driver), code, log, len(log))
            if status == 0:
                _log.debug("the tile kernels run from %s", name)
                return
            said = log.value.decode(errors="replace").strip()
            answers.append(f"{name}: error {status}{f' ({said})' if said else ''}")
        raise CudaError(
            f"the driver loads none of the tile kernels ({'; '.join(answers) or 'there are none'}), expected "
            "is a driver for CUDA 12.0 (525) or newer and a GPU of compute capability 7.5 or more; 209, 222 "
            "and 500 mean that it is too old: update it"
        )

    def launch(self, call: Launch, *, stream: int) -> None:
        """See `TileKernels`."""
        status = getattr(self.library, f"yonos_{call.name}")(*call.arguments(), stream)
        if status:
            raise CudaError(
                f"yonos_{call.name} with {call} answered CUDA error {status}, expected 0; 1: a size is out "
                "of range, 201: no device is current in this thread, 209: there is no code for this GPU"
            )
