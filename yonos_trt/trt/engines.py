"""One adapter for the modules `tensorrt` and `tensorrt_rtx`: engines, and a context per lane.

An `Engine` is deserialised once and holds the weights for all lanes. A `Context` belongs to one lane: its
shapes are set once per tile size, its input and output are addresses, and its activation memory is handed in
by the caller, who shares it between the three stages of the lane. Only the methods that both modules have are
used; the few that one of them lacks are asked for by name.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from yonos_trt.engine.manifest import Artifact, Stage
from yonos_trt.engine.onnx_graph import Graph
from yonos_trt.errors import (
    CudaError,
    EngineDeviceError,
    ManifestError,
    ProfileError,
)
from yonos_trt.trt.kernel_cache import KernelCache
from yonos_trt.trt.module import TensorRT
from yonos_trt.trt.refit import refit

_log = logging.getLogger(__name__)

_DTYPES = {"FLOAT": "float32", "HALF": "float16"}
"""Names of `DataType` -> what the tile kernels read and write."""

Shapes = Mapping[str, tuple[int, ...]]


class Engine:
    """One stage's engine.

    Parameters
    ----------
    tensorrt
        The opened module.
    name, stage, artifact
        Stage name, and what the manifest says about it.
    raw
        The plan, as `yonos_trt.trt.artifacts.read_engine` returned it.
    cache
        Keeps the kernels that TensorRT-RTX compiles; None keeps none.
    weights
        Graph to take the weights from, for an engine that was built without.

    Raises
    ------
    EngineDeviceError
        TensorRT refuses the plan on this machine, or the weights.
    ManifestError
        Its tensors are not those of the manifest.
    """

    def __init__(
        self,
        tensorrt: TensorRT,
        name: str,
        stage: Stage,
        artifact: Artifact,
        raw: bytes,
        *,
        cache: KernelCache | None = None,
        weights: Graph | None = None,
    ) -> None:
        self.name, self.artifact = name, artifact
        self.weights_bytes = len(raw)
        self._trt = tensorrt
        self._check_validity(raw)
        if artifact.version_compatible and hasattr(tensorrt.opened, "engine_host_code_allowed"):
            tensorrt.opened.engine_host_code_allowed = True  # such a plan brings its own run time along
        self._engine = tensorrt.opened.deserialize_cuda_engine(raw)
        if self._engine is None:
            raise EngineDeviceError(
                f"{tensorrt.runtime} {tensorrt.version} cannot load {artifact.file}: "
                f"{tensorrt.last_words()}; update the NVIDIA driver, or build the engine on this machine"
            )
        if weights is not None:
            self.weights_bytes += weights.nbytes
            refit(tensorrt.module, tensorrt.logger, self._engine, artifact, weights)
        self.dtypes: dict[str, str] = {}
        self._check_tensors(stage)
        self._cache_file = cache if tensorrt.is_rtx else None
        self._config = self._make_config() if tensorrt.is_rtx else None

    def _check_validity(self, raw: bytes) -> None:
        ask = getattr(self._trt.opened, "get_engine_validity", None)
        values = getattr(self._trt.module, "EngineValidity", None)
        if ask is None or values is None:
            return
        answer = ask(raw)
        validity = answer[0] if isinstance(answer, tuple) else answer
        if validity == values.INVALID:
            raise EngineDeviceError(
                f"{self._trt.runtime} {self._trt.version} says {self.artifact.file} cannot run here "
                f"(diagnostics {answer}): {self._trt.last_words()}; update the NVIDIA driver, or build the "
                "engine for this GPU and version with: yonos-export"
            )
        if validity == values.SUBOPTIMAL:
            _log.warning(
                "%s runs here, but was not built for this GPU: expect less speed", self.artifact.file
            )

    def _check_tensors(self, stage: Stage) -> None:
        engine, modes = self._engine, self._trt.module.TensorIOMode
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        for kind, mode, wanted in (
            ("inputs", modes.INPUT, stage.inputs),
            ("outputs", modes.OUTPUT, stage.outputs),
        ):
            found = sorted(n for n in names if engine.get_tensor_mode(n) == mode)
            if found != sorted(t.name for t in wanted):
                raise ManifestError(
                    f"{self.artifact.file} has the {kind} {found}, the manifest says "
                    f"{[t.name for t in wanted]}; build the engines again with: yonos-export"
                )
        for name in names:
            dtype = getattr(engine.get_tensor_dtype(name), "name", "unknown")
            if dtype not in _DTYPES:
                raise ManifestError(
                    f"{self.artifact.file}: the tensor {name} is {dtype}, expected FLOAT or HALF; build the "
                    "engines again with: yonos-export --fp16"
                )
            self.dtypes[name] = _DTYPES[dtype]

    # --- TensorRT-RTX: run-time configuration and kernel cache --------------------------------------------

    def _make_config(self) -> Any:
        module, config = self._trt.module, self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(
            module.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        # Shapes are fixed and the backend captures whole batches itself, so kernels are specialised before
        # the capture, and TensorRT-RTX's own graphs would only nest inside ours.
        config.dynamic_shapes_kernel_specialization_strategy = (
            module.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        config.cuda_graph_strategy = module.CudaGraphStrategy.DISABLED
        self._cache = config.create_runtime_cache()
        if self._cache_file is not None:
            self._cache_file.load(self._accept)
        config.set_runtime_cache(self._cache)
        return config

    def _accept(self, raw: bytes) -> None:
        if self._cache.deserialize(raw) is False:
            raise ValueError(self._trt.last_words())

    def save_cache(self) -> None:
        """Write the kernels that TensorRT-RTX compiled, so that the next start need not; never raises."""
        if self._config is not None and self._cache_file is not None:
            self._cache_file.save(lambda: bytes(self._cache.serialize()))

    @property
    def best_batch(self) -> int:
        """The batch that the first profile is tuned for."""
        names = (self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors))
        inputs = self._trt.module.TensorIOMode.INPUT
        name = next(n for n in names if self._engine.get_tensor_mode(n) == inputs)
        return int(self._engine.get_tensor_profile_shape(name, 0)[1][0])

    # --- contexts -----------------------------------------------------------------------------------------

    def profile_for(self, shapes: Shapes) -> int:
        """Return the first optimisation profile that holds the input shapes.

        Raises
        ------
        ProfileError
            None does; the message lists what the engine was built for.
        """
        ranges = []
        for index in range(self._engine.num_optimization_profiles):
            limits = {n: self._engine.get_tensor_profile_shape(n, index) for n in shapes}
            if all(
                all(lo <= d <= hi for lo, d, hi in zip(limits[n][0], shape, limits[n][2], strict=True))
                for n, shape in shapes.items()
            ):
                return index
            ranges.append({n: f"{tuple(x[0])} to {tuple(x[2])}" for n, x in limits.items()})
        raise ProfileError(
            f"the stage {self.name} gets {dict(shapes)}, {self.artifact.file} was built for {ranges}; choose "
            "another tile size or batch, or build with: yonos-export --min-shape / --max-shape"
        )

    def context(self) -> Context:
        """Make a context without memory of its own."""
        strategy = self._trt.module.ExecutionContextAllocationStrategy.USER_MANAGED
        made = self._engine.create_execution_context(self._config if self._config is not None else strategy)
        if made is None:
            raise CudaError(f"no execution context for the {self.name}: {self._trt.last_words()}")
        return Context(self, made, self._trt)


class Context:
    """One lane's use of an engine, in this order: `set_shapes`, `set_memory`, `bind`, `enqueue`."""

    def __init__(self, engine: Engine, context: Any, tensorrt: TensorRT) -> None:
        self._engine, self._context, self._trt = engine, context, tensorrt
        self._profile: int | None = None

    def set_shapes(self, shapes: Shapes, stream: int) -> int:
        """Fix the input shapes and return the bytes of activation memory that they need."""
        profile = self._engine.profile_for(shapes)
        if profile != self._profile:
            self._demand(self._context.set_optimization_profile_async(profile, stream), "choose a profile")
            self._profile = profile
        for name, shape in shapes.items():
            self._demand(self._context.set_input_shape(name, shape), f"take {name} as {shape}")
        return int(self._context.update_device_memory_size_for_shapes())

    def set_memory(self, address: int, nbytes: int) -> None:
        """Hand in the activation memory; several contexts may share it if they never run at once."""
        if nbytes:
            self._context.set_device_memory(address, nbytes)

    def bind(self, name: str, address: int) -> None:
        """Read an input from, or write an output to, this address."""
        self._demand(self._context.set_tensor_address(name, address), f"bind {name}")

    def enqueue(self, stream: int) -> None:
        """Queue one run; does not wait."""
        self._demand(self._context.execute_async_v3(stream), "run")

    def capturable(self, stream: int) -> bool:
        """Whether TensorRT says that a run can be captured into a CUDA graph."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return True if ask is None else bool(ask(stream))

    def _demand(self, done: Any, what: str) -> None:
        if done is False:
            raise CudaError(
                f"the {self._engine.name} ({self._engine.artifact.file}) could not {what}: "
                f"{self._trt.last_words()}"
            )


def check_dtypes(engines: Mapping[str, Engine]) -> None:
    """Refuse engines that do not fit together.

    Raises
    ------
    ManifestError
        A tensor leaves one stage in another type than the next one takes.
    """
    for first, second, tensor in (("encoder", "step", "z_l"), ("step", "decoder", "z_0")):
        out, taken = engines[first].dtypes[tensor], engines[second].dtypes[tensor]
        if out != taken:
            raise ManifestError(
                f"{tensor} leaves {engines[first].artifact.file} as {out}, but "
                f"{engines[second].artifact.file} takes {taken}; build the three together with: yonos-export"
            )
