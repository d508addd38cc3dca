"""Every exception this package raises on purpose.

::

    YonosError
    |-- ConfigError (ValueError)           an option is out of range or does not fit another one
    |-- InputError (ValueError)            a picture, array or path cannot be used
    |-- MissingExtraError (ImportError)    an optional dependency is not installed
    |-- ManifestError                      manifest.json is not a manifest this version can use
    |-- EngineNotFoundError                no engine directory, or no artifact that fits the request
    |-- EngineIntegrityError               a file is missing, extra, truncated or altered
    |-- EngineVersionError                 built by another TensorRT version
    |-- EngineDeviceError                  built for another GPU, or there is no device
    |-- ProfileError                       a shape lies outside what the engine was built for
    |-- BuildError                         an engine build failed
    |-- NumericError                       a stage produced NaN or infinity
    |-- ClosedError                        used after close()
    `-- CudaError                          a CUDA call failed
        `-- OutOfMemoryError               device or host memory ran out

Each message says what happened, what was found, what was expected, and what to do about it.
"""

from __future__ import annotations

import collections
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "BuildError",
    "ClosedError",
    "ConfigError",
    "CudaError",
    "EngineDeviceError",
    "EngineIntegrityError",
    "EngineNotFoundError",
    "EngineVersionError",
    "InputError",
    "ManifestError",
    "MissingExtraError",
    "NumericError",
    "OutOfMemoryError",
    "ProfileError",
    "YonosError",
]


def install_command(extra: str | None = None, *, settings: str = "") -> str:
    """Return how to install this distribution again: it is not on the package index, so from its checkout.

    Parameters
    ----------
    extra
        What to install with it, for example ``"video"``.
    settings
        Further options of the build, for example ``"-C cmake.define.YONOS_CUDA=ON"``.
    """
    constraints = "constraints-web.txt" if extra == "web" else "constraints.txt"
    words = [f"pip install -c {constraints}", settings, f"'.[{extra}]'" if extra else "."]
    return f"{' '.join(filter(None, words))} (in the checkout of yonos-trt: the package index has none)"


class YonosError(Exception):
    """Base of all errors of this package: ``except YonosError`` catches every one of them."""


class ConfigError(YonosError, ValueError):
    """An option is out of range, or two options contradict each other."""


class InputError(YonosError, ValueError):
    """A picture, array or path cannot be used; names it and the reason."""


class MissingExtraError(YonosError, ImportError):
    """An optional dependency is missing.

    Parameters
    ----------
    what
        The thing that needs it, for example ``"reading 16-bit PNG"``.
    package
        The module that could not be imported.
    extra
        The extra of this distribution that installs it, for example ``"video"``.
    reason
        What the import said, if it is more than "no such module".
    settings
        Options of the build that make it, see `install_command`.
    """

    def __init__(
        self, what: str, *, package: str, extra: str, reason: str | None = None, settings: str = ""
    ) -> None:
        why = f" ({reason})" if reason else ""
        super().__init__(
            f"{what} needs the package {package!r}, which cannot be imported{why}; "
            f"install it with: {install_command(extra, settings=settings)}"
        )
        self.package = package
        self.extra = extra


class ManifestError(YonosError):
    """``manifest.json`` is missing a field, has a wrong one, or comes from a newer version."""


class EngineNotFoundError(YonosError):
    """There is no engine directory at the path, or it holds no artifact that fits the request."""


class EngineIntegrityError(YonosError):
    """A file of an engine directory is missing, not listed, truncated or altered."""


class EngineVersionError(YonosError):
    """An engine was built by a TensorRT version this machine does not have."""


class EngineDeviceError(YonosError):
    """An engine does not fit the GPU, or there is no usable device."""


class ProfileError(YonosError):
    """A tile or batch shape lies outside every profile of the engine."""


class BuildError(YonosError):
    """Building an engine failed; names the cause and the fix."""


class NumericError(YonosError):
    """A stage produced NaN or infinity.

    Attributes
    ----------
    stage : str
        ``"encode"``, ``"step"`` or ``"decode"``.
    tile : int
        Index of the tile in the plan's row-major order.
    """

    def __init__(self, message: str, *, stage: str, tile: int) -> None:
        super().__init__(message)
        self.stage = stage
        self.tile = tile


class ClosedError(YonosError):
    """An object was used after ``close()``."""


class CudaError(YonosError):
    """A CUDA call failed, or no driver could be reached."""


class OutOfMemoryError(CudaError):
    """Memory ran out.

    Attributes
    ----------
    asked_bytes, free_bytes : int or None
        How much was asked for and how much was free, where known.
    hint : str
        What to change.
    """

    def __init__(
        self, what: str, *, asked_bytes: int | None = None, free_bytes: int | None = None, hint: str = ""
    ) -> None:
        def mib(value: int | None) -> str:
            return "an unknown amount" if value is None else f"{value / 2**20:.0f} MiB"

        hint = hint or "use a smaller tile (-t / tile_px), batch=1, lanes=1 or a memory limit"
        super().__init__(f"{what}: asked for {mib(asked_bytes)}, {mib(free_bytes)} free; {hint}")
        self.asked_bytes = asked_bytes
        self.free_bytes = free_bytes
        self.hint = hint


@contextmanager
def memory_that_runs_out(what: str) -> Iterator[None]:
    """Turn what Python, NumPy and the system say when host memory runs out into `OutOfMemoryError`."""
    try:
        yield
    except (MemoryError, RuntimeError, ImportError, OSError) as error:
        if not is_of_memory(error):
            raise
        said = str(error) or "no size was named"
        raise OutOfMemoryError(f"{what} ran out of host memory ({said})") from error


def listed(words: Iterable[object], *, most: int = 20) -> str:
    """Join what a file holds into a line: at most ``most`` different words, each with its count."""
    counts = collections.Counter(str(word) for word in words)
    shown = [word if n == 1 else f"{n} x {word}" for word, n in counts.most_common(most)]
    return ", ".join(shown) + (f" and {len(counts) - most} more" if len(counts) > most else "")


def is_of_memory(error: BaseException) -> bool:
    """Tell whether an error of Python, a library or the system says that host memory ran out."""
    if isinstance(error, MemoryError):
        return True
    words = next((w for kind, w in _MEMORY_WORDS.items() if isinstance(error, kind)), ())
    return any(word in str(error) for word in words)


# How threads that cannot start, libraries that cannot be mapped and system calls say it.
_MEMORY_WORDS: dict[type[Exception], tuple[str, ...]] = {
    RuntimeError: (
        "can't start new thread",
        "Resource temporarily unavailable",
        "can't allocate memory",  # PyTorch
        "failed to map segment",  # OpenVINO, of its plugins
        "bad_alloc",
    ),
    ImportError: ("failed to map segment", "annot allocate memory"),
    OSError: ("annot allocate memory",),
}
