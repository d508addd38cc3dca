"""ONNX Runtime's execution providers: what is asked for, how it is opened, and what a session really got.

The providers of a wheel (`onnxruntime-gpu` has CUDA and TensorRT) are named to a session; a plugin
(`onnxruntime-ep-nv-tensorrt-rtx`, beside the base wheel) is a library that is registered once a process, and
then offers devices. Either may be missing its libraries, its driver or its GPU, and a session then comes up
on the CPU without an error: `check` asks it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from yonos_trt import code_cache
from yonos_trt.errors import ConfigError, EngineDeviceError, MissingExtraError

_log = logging.getLogger(__name__)

Provider = str | tuple[str, Mapping[str, Any]]

CPU_PROVIDER = "CPUExecutionProvider"
RTX_PROVIDER = "NvTensorRTRTXExecutionProvider"
DEVICE_MEMORY = dict.fromkeys(("CUDAExecutionProvider", "TensorrtExecutionProvider", RTX_PROVIDER), "cuda")
"""Providers that keep arrays in memory of their own, and ONNX Runtime's name of that."""
GRAPH_OPTIONS = dict.fromkeys(("CUDAExecutionProvider", RTX_PROVIDER), "enable_cuda_graph")
"""Providers that keep one CUDA graph per number and session, and the option that asks for them."""
LARGEST_CONTEXT_BYTES = 1 << 30
"""A compiled graph is one message, of which 2 GB at most can be read."""
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
        option = GRAPH_OPTIONS.get(self.names[0]) if self.names else None
        self.graphs = option is not None and self.wanted[0][1].get(option) in ("1", "True", "true")
        """Whether sessions capture CUDA graphs: inputs and outputs have to stay where they are then."""
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

    def open(self, model: bytes, options: Callable[[], Any], *, compiled: bool = True) -> Any:
        """Return a session, whatever it got; see `check`.

        `options` makes the session's options. What the RTX plugin compiled is kept for the next start
        (`compiled`: only graphs that hold their weights), beside the kernels that it made for this GPU. A
        graph that cannot be captured is opened without, and so are those after it.
        """
        try:
            return self._open(model, options(), compiled)
        except EngineDeviceError:
            raise
        except Exception as error:
            if not self.graphs:
                raise
            _log.info("ONNX Runtime opens this graph without CUDA graphs only: %s", error)
            self.graphs = False
            self.wanted = [
                (name, {k: "0" if k == GRAPH_OPTIONS.get(name) else v for k, v in settings.items()})
                for name, settings in self.wanted
            ]
            return self._open(model, options(), compiled)

    def _open(self, model: bytes, options: Any, keep: bool) -> Any:
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
            digest = hashlib.sha256(model + repr(sorted(settings.items())).encode())
            folder = code_cache.folder("ort-rtx") / digest.hexdigest()[:32]  # files in it have plain names
            settings = {"nv_runtime_cache_path": str(folder / "kernels"), **settings}
            options.add_provider_for_devices([found[self.device]], settings)
        compiled = self._compiled(model, options, folder) if keep else None
        if compiled is not None:
            try:
                return self._ort.InferenceSession(compiled, sess_options=options)
            except Exception as error:
                _log.warning("%s: what was compiled is not used: %s", folder, " ".join(str(error).split()))
                (folder / _context_name(self._ort)).unlink(missing_ok=True)
        return self._ort.InferenceSession(model, sess_options=options)

    def _compiled(self, model: bytes, options: Any, folder: Path) -> bytes | None:
        """Return the graph with its engine inside (EP context), compiled now or before; None where it fails.

        Only a file of this user's own is taken.
        """
        if not hasattr(self._ort, "ModelCompiler") or len(model) > LARGEST_CONTEXT_BYTES:
            return None
        place = folder / _context_name(self._ort)
        try:
            if place.is_file():
                return code_cache.read(place)
            compiler = self._ort.ModelCompiler(options, model, embed_compiled_data_into_model=True)
            compiled: bytes = compiler.compile_to_bytes()
            code_cache.write(place, compiled, mode=0o600)
            return compiled
        except Exception as error:
            _log.warning("%s: compiling ahead is left out: %s", place, " ".join(str(error).split()))
            return None


def _with_options(provider: Provider, device: int) -> tuple[str, dict[str, str]]:
    name, given = (provider, {}) if isinstance(provider, str) else provider
    settings: dict[str, str] = {}
    if name in DEVICE_MEMORY and name not in _PLUGINS:  # a plugin's device is named by itself
        settings["device_id"] = str(device)
    if name in GRAPH_OPTIONS:
        settings[GRAPH_OPTIONS[name]] = "1"
    return name, settings | {key: str(value) for key, value in given.items()}


def _context_name(ort: Any) -> str:
    """Name the compiled graph of an ONNX Runtime and plugin: others compile anew."""
    try:
        plugin = importlib.metadata.version("onnxruntime-ep-nv-tensorrt-rtx")
    except importlib.metadata.PackageNotFoundError:
        plugin = "unknown"
    return f"context-{ort.__version__}-{plugin}.onnx"


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
