"""TensorRT engines from ONNX graphs: one builder for ``tensorrt`` (10.13 to 11) and ``tensorrt_rtx``.

The graph says which precision every node has; networks are always strongly typed, and no precision flag
exists. TensorRT-RTX builds without a GPU; TensorRT measures its kernels on the GPU the engine is for.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

import yonos_export.tensorrt_module as machine
from yonos_export.build_errors import explain, from_parser
from yonos_export.engine_options import EngineOptions
from yonos_export.tensorrt_module import OnBuild
from yonos_trt.atomic import atomic_file
from yonos_trt.engine.manifest import Profile, ShapeRange
from yonos_trt.errors import BuildError, ConfigError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuiltEngine:
    """An engine on disk and what the manifest says about it."""

    path: Path
    profile: Profile
    tensorrt_version: str
    compute_capability: tuple[str, ...]
    gpu: str | None
    seconds: float


# ---------------------------------------------------------------------------------------------------------
# The builder


def build_engine(
    graph: Path,
    engine: Path,
    shapes: Mapping[str, Sequence[tuple[int, ...]]],
    options: EngineOptions,
    *,
    stage: str,
    module: Any = None,
    stop: threading.Event | None = None,
    progress: OnBuild | None = None,
) -> BuiltEngine:
    """Build one engine.

    Parameters
    ----------
    graph
        ONNX graph; the engine computes every node in the precision it has there.
    engine
        File to write; it appears complete or not at all.
    shapes
        Input -> (min, opt, max) shape: one profile.
    options
        How to build.
    stage
        Name for messages.
    module
        TensorRT itself, instead of importing it.
    stop
        Cancels the build when set; Ctrl-C sets it too.
    progress
        Called with the fraction done, from the builder's threads.

    Raises
    ------
    BuildError
        The build fails; names the cause and the fix.
    MissingExtraError
        The module is not installed.
    KeyboardInterrupt
        The build was cancelled.
    """
    module = (
        machine.load_module(options.runtime)
        if module is None
        else machine.check_version(options.runtime, module)
    )
    stop, report = stop or threading.Event(), progress or (lambda done: None)
    said, started = machine.Log(module), time.perf_counter()
    gpu, capability = (None, ()) if options.runtime == "tensorrt-rtx" else machine.find_gpu(options.device)
    try:
        builder = module.Builder(said.logger)
    except (TypeError, RuntimeError) as error:  # pybind11 turns a null pointer into a TypeError
        raise explain(stage, [*said.errors(), str(error)], options) from error
    network = builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = module.OnnxParser(network, said.logger)
    if not parser.parse_from_file(str(graph)):
        raise from_parser(
            stage, graph, [parser.get_error(i) for i in range(parser.num_errors)], said.errors()
        )
    config = builder.create_builder_config()
    _configure(module, config, options)
    profile = builder.create_optimization_profile()
    for name, (low, best, high) in shapes.items():
        profile.set_shape(name, low, best, high)
    config.add_optimization_profile(profile)
    cache = _timing_cache_file(options, str(module.__version__), capability)
    with _timing_cache(module, config, cache):
        config.progress_monitor = machine.make_monitor(module, stop, report)
        with machine.interruptible(stop):
            plan = builder.build_serialized_network(network, config)
        if stop.is_set():
            raise KeyboardInterrupt
        if plan is None:
            raise explain(stage, said.errors(), options)
    report(1.0)
    with atomic_file(engine) as part:
        part.write_bytes(memoryview(plan))
    seconds = time.perf_counter() - started
    log.info("%s: %.1f MB in %.1f s", engine.name, engine.stat().st_size / 1e6, seconds)
    ranges = {name: ShapeRange(min=low, opt=best, max=high) for name, (low, best, high) in shapes.items()}
    return BuiltEngine(
        path=engine,
        profile=Profile(inputs=ranges),
        tensorrt_version=str(module.__version__),
        compute_capability=options.compute_capabilities or capability,
        gpu=gpu,
        seconds=seconds,
    )


def _configure(module: Any, config: Any, options: EngineOptions) -> None:
    """Apply the options; those of the other runtime were refused by `ExportConfig`."""
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED  # names in a profiler, kernels to count
    # The run time hands in all activation memory, of the size that the shapes at hand need.
    if hasattr(module.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        config.set_flag(module.BuilderFlag.REQUIRE_USER_ALLOCATION)
    resize = getattr(module.PreviewFeature, "RUNTIME_ACTIVATION_RESIZE_10_10", None)
    if resize is not None:
        config.set_preview_feature(resize, True)
    if options.workspace_mb is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    if options.builder_optimization_level is not None:
        config.builder_optimization_level = options.builder_optimization_level
    if options.version_compatible:
        config.set_flag(module.BuilderFlag.VERSION_COMPATIBLE)
    if options.refit:
        config.set_flag(module.BuilderFlag.REFIT)
    if options.strip_weights:
        config.set_flag(module.BuilderFlag.STRIP_PLAN)
        if not options.refit:  # the same weights come back, so kernels may be chosen for them
            config.set_flag(module.BuilderFlag.REFIT_IDENTICAL)
    if options.hardware_compatibility != "none":
        level = options.hardware_compatibility.replace("-", "_").upper()
        config.hardware_compatibility_level = getattr(module.HardwareCompatibilityLevel, level)
    if options.compute_capabilities:
        config.num_compute_capabilities = len(options.compute_capabilities)
        for k, text in enumerate(options.compute_capabilities):
            name = f"SM{text.replace('.', '')}"
            known = sorted(n for n in dir(module.ComputeCapability) if re.fullmatch(r"SM\d+", n))
            if name not in known:
                have = ", ".join(f"{n[2:-1]}.{n[-1]}" for n in known)
                raise ConfigError(
                    f"compute_capabilities: {text!r} is not one {options.runtime} {module.__version__} "
                    f"builds for; it knows {have}; without the option the engine runs on all of them"
                )
            if not config.set_compute_capability(getattr(module.ComputeCapability, name), k):
                raise BuildError(f"{options.runtime} refused the compute capability {text}")


# ---------------------------------------------------------------------------------------------------------
# Timing cache


def _timing_cache_file(options: EngineOptions, version: str, capability: tuple[str, ...]) -> Path | None:
    """Name the cache of this GPU and version; TensorRT-RTX measures nothing at build time and has none."""
    if options.timing_cache is None or options.runtime == "tensorrt-rtx":
        return None
    return options.timing_cache / f"tensorrt-{version}-sm{'+'.join(capability) or 'unknown'}.timing"


@contextmanager
def _timing_cache(module: Any, config: Any, path: Path | None) -> Iterator[None]:
    """Let the builder start from the cache file and write back what it has learnt; a bad file is left out."""
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(path.name + ".lock")):
        raw = path.read_bytes() if path.is_file() else b""
        cache = config.create_timing_cache(raw)
        if cache is None or not config.set_timing_cache(cache, False):
            log.warning("the timing cache %s is of another GPU or version; it is written anew", path)
            config.set_timing_cache(config.create_timing_cache(b""), False)
        yield
        learnt = config.get_timing_cache()
        if learnt is not None:
            with atomic_file(path) as part:
                part.write_bytes(memoryview(learnt.serialize()))
