"""Choose what runs an engine directory, and open it.

``"auto"`` takes TensorRT engines where there are a GPU, the library and a fitting artifact, and otherwise
what is fastest on the CPU (`cpu_runtime`): OpenVINO in bfloat16 where the CPU has instructions for it and the
package is installed, ONNX Runtime elsewhere. "onnx" is the same program in float32 on all of them. A runtime
that is named is taken or refused, never replaced silently.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from yonos_trt.backends.base import Backend
from yonos_trt.choices import LARGEST_LANES, PRECISIONS, RUNTIMES, TENSORRT_MODULES, RuntimeName
from yonos_trt.cuda.probe import probe_driver
from yonos_trt.engine.manifest import EngineManifest, Precision, Runtime
from yonos_trt.engine.restore import check_restore, dial_of
from yonos_trt.errors import (
    ConfigError,
    EngineDeviceError,
    EngineIntegrityError,
    EngineNotFoundError,
    EngineVersionError,
    MissingExtraError,
)
from yonos_trt.host import has_bf16, startable_threads, usable_cpus

if TYPE_CHECKING:
    from yonos_trt.backends.ort_providers import Provider

__all__ = [
    "PINNED",
    "RTX",
    "RUNTIMES",
    "Request",
    "RuntimeName",
    "cpu_runtime",
    "find_model",
    "models_dir",
    "open_backend",
    "shipped_model",
    "shipped_models",
]

_log = logging.getLogger(__name__)

RTX = ("7.5", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities for which TensorRT-RTX is made; data-centre GPUs (8.0, 9.0, 10.0) have TensorRT."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the caller asked for.

    Attributes
    ----------
    runtime : str
        One of `RUNTIMES`.
    device : int
        CUDA device number; only TensorRT uses it.
    lanes : int or None
        Tile batches worked on at once, at most `LARGEST_LANES`; None: 1 on the CPU, 2 on a GPU.
    threads : int or None
        Host threads; None: all usable CPUs. More than there are would only wait for each other, and each
        takes memory: it is lowered to that many, with a warning.
    precision : str or None
        "fp32", "fp16", "bf16"; None: fp32 first with ONNX Runtime on the CPU, fp16 first with TensorRT, bf16
        with OpenVINO where the CPU has it.
    providers : sequence of str or (str, options), or None
        Execution providers of ONNX Runtime, the first one that can goes first; with them "auto" is "onnx".
        None: the CPU's.
    restore : float or None
        Where the model's dial stands, 0 to 1; None: the model's default.
    """

    runtime: str = "auto"
    device: int = 0
    lanes: int | None = None
    threads: int | None = None
    precision: Precision | None = None
    providers: Sequence[Provider] | None = None
    restore: float | None = None

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise ConfigError(f"runtime is {self.runtime!r}, expected one of {', '.join(RUNTIMES)}")
        if self.precision not in (None, *PRECISIONS):
            raise ConfigError(f"precision is {self.precision!r}, expected one of {', '.join(PRECISIONS)}")
        for name in ("lanes", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}, expected at least 1")
        if self.lanes is not None and self.lanes > LARGEST_LANES:
            raise ConfigError(f"lanes is {self.lanes}, expected at most {LARGEST_LANES}")
        if self.threads is not None and self.threads > (usable := usable_cpus()):
            _log.warning("threads is %d, lowered to the %d CPUs this process may use", self.threads, usable)
            object.__setattr__(self, "threads", usable)
        if self.restore is not None:
            check_restore(self.restore)
        if self.providers is not None:
            if self.runtime not in ("auto", "onnx"):
                raise ConfigError(
                    f"providers are ONNX Runtime's, but runtime is {self.runtime!r}; leave one of them out"
                )
            object.__setattr__(self, "runtime", "onnx")
        if self.device < 0:
            raise ConfigError(f"device is {self.device}, expected a CUDA device number from 0 up")


def open_backend(engine_dir: Path, manifest: EngineManifest, request: Request) -> Backend:
    """Open the artifacts that fit `request`.

    Raises
    ------
    EngineNotFoundError
        The directory has no artifact for the runtime; the message names the command that builds it.
    EngineDeviceError
        A TensorRT runtime was asked for and there is no usable GPU.
    MissingExtraError
        A TensorRT runtime was asked for and its Python package is not installed.
    """
    request = replace(request, restore=dial_of(manifest, request.restore))
    if request.device > 0:
        _check_device(request.device)
    if request.runtime == "onnx":
        return _open_onnx(engine_dir, manifest, request)
    if request.runtime == "openvino":
        return _open_openvino(engine_dir, manifest, request)
    if request.runtime != "auto":
        return _open_tensorrt(engine_dir, manifest, request, request.runtime)
    for runtime in ("tensorrt", "tensorrt-rtx"):
        if not _has_all(manifest, runtime, request.precision):
            continue
        if (stands := _other_dial(manifest, runtime, request)) is not None:
            _log.warning("the %s engines of %s are not used: %s", runtime, engine_dir, stands)
            continue
        if not probe_driver().devices:
            _log.warning(
                "no GPU (%s): the %s engines of %s are not used, its ONNX graphs run on the CPU",
                probe_driver().problem, runtime, engine_dir,
            )  # fmt: skip
            continue
        try:
            return _open_tensorrt(engine_dir, manifest, request, runtime)
        except (EngineDeviceError, EngineNotFoundError, EngineVersionError, MissingExtraError) as error:
            _log.warning("the %s engines of %s are not used: %s", runtime, engine_dir, error)
    if not any(_has_all(manifest, runtime, request.precision) for runtime in TENSORRT_MODULES):
        _say_what_to_build(engine_dir, request)
    return _open_on_cpu(engine_dir, manifest, request)


PINNED = "YONOS_CPU_RUNTIME"
"""Variable of the environment: "onnx" or "openvino" is what "auto" takes on a CPU, whatever CPU that is."""


def cpu_runtime(precision: str | None = None) -> Literal["onnx", "openvino"]:
    """Return what "auto" takes on this CPU, of what is installed.

    Raises
    ------
    ConfigError
        The variable `PINNED` is set to something else.
    """
    pinned = os.environ.get(PINNED) or None
    if pinned is not None:
        if pinned not in ("onnx", "openvino"):
            raise ConfigError(f"{PINNED} is {pinned!r}, expected onnx or openvino; or unset it")
        return "onnx" if pinned == "onnx" else "openvino"
    if precision in (None, "bf16") and has_bf16() and importlib.util.find_spec("openvino") is not None:
        return "openvino"
    return "onnx"


def _open_on_cpu(engine_dir: Path, manifest: EngineManifest, request: Request) -> Backend:
    if cpu_runtime(request.precision) == "openvino":
        try:
            backend = _open_openvino(engine_dir, manifest, request)
        except (MissingExtraError, ConfigError, EngineIntegrityError) as error:
            _log.warning("OpenVINO is not used, ONNX Runtime runs the networks: %s", error)
        else:
            _log.info(
                "runtime auto is openvino: this CPU computes in bfloat16; "
                "runtime onnx computes in float32 on every CPU"
            )
            return backend
    return _open_onnx(engine_dir, manifest, request)


def _say_what_to_build(engine_dir: Path, request: Request) -> None:
    """Nobody with a GPU should wait for the CPU and not know why."""
    devices = {device.index: device for device in probe_driver().devices}
    if (gpu := devices.get(request.device)) is None:
        return
    runtime = "tensorrt-rtx" if gpu.compute_capability in RTX else "tensorrt"
    inside = engine_dir.resolve().is_relative_to(models_dir())
    target = Path("engines") / engine_dir.name if inside else engine_dir
    _log.warning(
        "%s has no TensorRT engines: GPU %d (%s) is not used, the networks run on the CPU; build some with: "
        "yonos-export %s -o %s --%s --runtime %s%s; or choose the CPU with -g -1 / runtime='onnx'",
        engine_dir, gpu.index, gpu.name, engine_dir.name if inside else engine_dir, target,
        request.precision or "fp16", runtime, f", then name them with -m {target}" if inside else "",
    )  # fmt: skip


def _check_device(number: int) -> None:
    """Refuse a device that was named and is not there, whatever would run the networks."""
    driver = probe_driver()
    if number not in [device.index for device in driver.devices]:
        have = ", ".join(str(device.index) for device in driver.devices) or f"none ({driver.problem})"
        raise EngineDeviceError(
            f"device is {number}, but this machine's GPUs are: {have}; leave it out (-g / device), or run on "
            "the CPU with -g -1 / runtime='onnx'"
        )


def _open_onnx(engine_dir: Path, manifest: EngineManifest, request: Request) -> Backend:
    from yonos_trt.backends.ort import CPU_PROVIDER, OrtBackend

    _check_threads(request)
    return OrtBackend(
        engine_dir,
        manifest,
        precision=request.precision,
        providers=request.providers or (CPU_PROVIDER,),
        threads=request.threads,
        lanes=request.lanes or 1,
        restore=request.restore,
        device=request.device,
    )


def _check_threads(request: Request) -> None:
    """Refuse more threads than the system starts: ONNX Runtime waits for them for ever."""
    count = request.threads or usable_cpus()
    wanted = 3 * count + (request.lanes or 1)  # each of the three networks has a pool of its own
    if (started := startable_threads(wanted)) < wanted:
        raise ConfigError(
            f"{count} threads take {wanted} in all, but the system starts {started} (a limit of memory or of "
            f"processes); use --threads {max(1, (started - (request.lanes or 1)) // 4)} / threads, or raise "
            "the limit"
        )


def _open_openvino(engine_dir: Path, manifest: EngineManifest, request: Request) -> Backend:
    from yonos_trt.backends.openvino import OpenVinoBackend

    _check_threads(request)
    return OpenVinoBackend(
        engine_dir,
        manifest,
        precision=request.precision,
        threads=request.threads,
        lanes=request.lanes or 1,
        restore=request.restore,
    )


def _open_tensorrt(engine_dir: Path, manifest: EngineManifest, request: Request, runtime: str) -> Backend:
    if not _has_all(manifest, runtime, request.precision):
        have = sorted({f"{a.runtime} {a.precision}" for _, s in manifest.stages.items() for a in s.artifacts})
        raise EngineNotFoundError(
            f"{engine_dir} has no {runtime} {request.precision or 'engine'} for all three stages, it has "
            f"{', '.join(have) or 'nothing'}; build it with: yonos-export {engine_dir} --engine-dir "
            f"{engine_dir} --{request.precision or 'fp16'} --runtime {runtime}"
        )
    if (stands := _other_dial(manifest, runtime, request)) is not None:
        raise EngineNotFoundError(
            f"{stands}; build others with: yonos-export {engine_dir} --engine-dir {engine_dir} "
            f"--{request.precision or 'fp16'} --runtime {runtime} --restore {request.restore}"
        )
    driver = probe_driver()
    if not driver.devices:
        raise EngineDeviceError(
            f"the runtime {runtime!r} needs an NVIDIA GPU, found none ({driver.problem}); "
            "use runtime='onnx' to run on the CPU"
        )
    module, extra = TENSORRT_MODULES[runtime]
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(f"the runtime {runtime!r}", package=module, extra=extra)
    backend: Any = importlib.import_module("yonos_trt.trt.backend").TrtBackend
    opened: Backend = backend(
        engine_dir,
        manifest,
        runtime=runtime,
        precision=request.precision,
        device=request.device,
        lanes=request.lanes or 2,
    )
    return opened


def _other_dial(manifest: EngineManifest, runtime: str, request: Request) -> str | None:
    """Say where the dial of the runtime's engines stands, if it is not where the request wants it."""
    if request.restore is None:
        return None
    kind: Runtime = "tensorrt" if runtime == "tensorrt" else "tensorrt-rtx"
    for name, stage in manifest.stages.items():
        found = stage.find(kind, request.precision)
        stand = sorted({a.restore or 0.0 for a in found})
        if found and request.restore not in stand:
            return (
                f"the {runtime} engine of the stage {name} was built with restore = "
                f"{', '.join(map(str, stand))}, wanted is {request.restore}"
            )
    return None


def _has_all(manifest: EngineManifest, runtime: str, precision: Precision | None) -> bool:
    kind: Runtime = "tensorrt" if runtime == "tensorrt" else "tensorrt-rtx"
    return all(stage.find(kind, precision) for _, stage in manifest.stages.items())


# ---------------------------------------------------------------------------------------------------------
# Models in the wheel


def models_dir() -> Path:
    """Return the folder of the engine directories that ship with the package."""
    return Path(__file__).parents[1] / "models"


def shipped_models() -> dict[str, Path]:
    """Return name -> engine directory of every model in the wheel, sorted by name."""
    return {path.parent.name: path.parent for path in sorted(models_dir().glob("*/manifest.json"))}


def find_model(named: Path) -> Path:
    """Return what a user named: a path, or else the model of the wheel of that name."""
    return named if named.exists() else shipped_models().get(str(named), named)


def shipped_model(scale: float) -> Path:
    """Return the engine directory of the wheel's smallest model that enlarges by ``scale`` or more."""
    models = shipped_models()
    scales = sorted(int(name.removeprefix("lite-x")) for name in models if re.fullmatch(r"lite-x\d+", name))
    for larger in scales:
        if larger >= scale:
            return models[f"lite-x{larger}"]
    raise EngineNotFoundError(
        f"no shipped model enlarges by {scale:g} (in {models_dir()}: {', '.join(models) or 'none'}); name an "
        "engine directory: SR(engine_dir), or -m on the command line"
    )
