"""One-step diffusion super-resolution over tiles, on TensorRT or on any CPU.

    import yonos_trt
    yonos_trt.SR().upscale("photo.jpg").save("photo_x4.png")

Importing this package loads the standard library and NumPy only; everything else loads when it is used.
"""

from __future__ import annotations

__version__ = "0.1.0"

from yonos_trt import _moved as _moved

TYPE_CHECKING = False  # typing's is the same, and takes longer to load than a key press
if TYPE_CHECKING:
    from typing import Any, Final

    from yonos_trt.engine.manifest import EngineManifest, load_manifest
    from yonos_trt.errors import (
        BuildError,
        ClosedError,
        ConfigError,
        CudaError,
        EngineDeviceError,
        EngineIntegrityError,
        EngineNotFoundError,
        EngineVersionError,
        InputError,
        ManifestError,
        MissingExtraError,
        NumericError,
        OutOfMemoryError,
        ProfileError,
        YonosError,
    )
    from yonos_trt.sr import SR

__all__ = [
    "SR",
    "BuildError",
    "ClosedError",
    "ConfigError",
    "CudaError",
    "EngineDeviceError",
    "EngineIntegrityError",
    "EngineManifest",
    "EngineNotFoundError",
    "EngineVersionError",
    "InputError",
    "ManifestError",
    "MissingExtraError",
    "NumericError",
    "OutOfMemoryError",
    "ProfileError",
    "YonosError",
    "__version__",
    "load_manifest",
]

_HOME: Final = {"SR": "sr", "EngineManifest": "engine.manifest", "load_manifest": "engine.manifest"}


def __getattr__(name: str) -> Any:
    """Load the public names on first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{_HOME.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
