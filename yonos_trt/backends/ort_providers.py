"""ONNX Runtime's execution providers: what is asked for, how it is opened, and what a session really got.

The providers of a wheel (`onnxruntime-gpu` has CUDA and TensorRT) are named to a session; a plugin
(`onnxruntime-ep-nv-tensorrt-rtx`, beside the base wheel) is a library that is registered once a process, and
then offers devices. Either may be missing its libraries, its driver or its GPU, and a session then comes up
on the CPU without an error: `check` asks it.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yonos_trt.errors import ConfigError, EngineDeviceError, MissingExtraError

__all__ = ["CPU_PROVIDER", "DEVICE_MEMORY", "Provider", "Providers", "check"]

_log = logging.getLogger(__name__)

Provider = str | tuple[str, Mapping[str, Any]]

CPU_PROVIDER = "CPUExecutionProvider"
RTX_PROVIDER = "NvTensorRTRTXExecutionProvider"
DEVICE_MEMORY = dict.fromkeys(("CUDAExecutionProvider", "TensorrtExecutionProvider", RTX_PROVIDER), "cuda")
"""Providers that keep arrays in memory of their own, and ONNX Runtime's name of that."""
_PLUGINS = {RTX_PROVIDER: ("onnxruntime_ep_nv_tensorrt_rtx", "ort-rtx")}
_registered: set[str] = set()


class Providers:
    """The providers that sessions are opened with.

    Parameters
    ----------
    ort
        The module onnxruntime.
    wanted
        Names or ``(name, options)``, best first.
    device
        CUDA device number, where the options do not say another one.

    Raises
    ------
    ConfigError
        None is named, or one that this ONNX Runtime does not know.
    MissingExtraError
        A plugin is not installed.
    EngineDeviceError
        A plugin cannot be loaded, or offers no such device.
    """

    def __init__(self, ort: Any, wanted: Sequence[Provider], *, device: int = 0) -> None:
        self._ort, self.device = ort, device
        self.wanted = [_with_options(provider, device) for provider in wanted]
        self.names = [name for name, _ in self.wanted]
        self.memory = DEVICE_MEMORY.get(self.names[0]) if self.names else None
        known = ort.get_available_providers()
        if not self.names:
            raise ConfigError(f"providers is empty, expected at least one of {', '.join(known)}")
        for name in self.names:
            if name in _PLUGINS and name not in known:
                _register(ort, name)
            elif name not in known:
                raise ConfigError(
                    f"this ONNX Runtime has no execution provider {name!r}, it has {', '.join(known)}; "
                    "install the onnxruntime package that brings it, or name another one"
                )
            elif name in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
                ort.preload_dlls()  # CUDA and cuDNN of the wheels that onnxruntime-gpu[cuda,cudnn] brings

    def open(self, model: bytes, options: Any) -> Any:
        """Return a session, whatever it got; see `check`."""
        plugins = [(name, settings) for name, settings in self.wanted if name in _registered]
        if not plugins:
            named = [(name, settings) if settings else name for name, settings in self.wanted]
            return self._ort.InferenceSession(model, sess_options=options, providers=named)
        for name, settings in plugins:
            found = [d for d in self._ort.get_ep_devices() if d.ep_name == name]
            if self.device >= len(found):
                raise EngineDeviceError(
                    f"{name} offers {len(found)} devices, asked for is number {self.device}; choose another "
                    "-g / device"
                )
            options.add_provider_for_devices([found[self.device]], settings)
        return self._ort.InferenceSession(model, sess_options=options)


def _with_options(provider: Provider, device: int) -> tuple[str, dict[str, str]]:
    name, given = (provider, {}) if isinstance(provider, str) else provider
    settings: dict[str, str] = {}
    if name in DEVICE_MEMORY and name not in _PLUGINS:  # a plugin's device is named by itself
        settings["device_id"] = str(device)
    if name == RTX_PROVIDER:  # kernels that it compiles for this GPU are kept for the next start
        settings["nv_runtime_cache_path"] = str(_cache_folder())
    return name, settings | {key: str(value) for key, value in given.items()}


def _cache_folder() -> Path:
    named = os.environ.get("YONOS_CACHE_DIR")
    if named:
        return Path(named) / "ort-rtx"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "yonos-trt" / "ort-rtx"


def _register(ort: Any, name: str) -> None:
    """Load a plugin's library into ONNX Runtime, once a process."""
    if name in _registered:
        return
    module, extra = _PLUGINS[name]
    try:
        plugin = importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"the execution provider {name}", package=module, extra=extra, reason=str(error)
        ) from error
    try:
        ort.register_execution_provider_library(name, plugin.get_library_path())
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise EngineDeviceError(
            f"ONNX Runtime cannot load {module} ({' '.join(str(error).split())}); it needs an NVIDIA driver "
            f"and a GPU of the RTX 30 series or later; without them name {CPU_PROVIDER}"
        ) from error
    _registered.add(name)


def check(path: Path, asked: list[str], got: list[str]) -> None:
    """Refuse, or with the CPU among those asked for, warn of providers that a session came up without.

    Raises
    ------
    EngineDeviceError
        ONNX Runtime would run on the CPU what was asked to run elsewhere.
    """
    missing = [name for name in asked if name not in got]
    if not missing:
        return
    text = (
        f"ONNX Runtime opened {path} without {', '.join(missing)}, on {', '.join(got)}: the provider's own "
        "libraries, the driver or a GPU are missing (`yonos doctor` says what loads)"
    )
    if CPU_PROVIDER not in asked:
        raise EngineDeviceError(f"{text}; name {CPU_PROVIDER} as well to run on the CPU where that is so")
    _log.warning("%s", text)
