"""`OpenVinoBackend`: the three stages compiled by OpenVINO for the CPU, the tile kernels on the host.

It reads the same ONNX artifacts as `yonos_trt.backends.ort`. OpenVINO converts the arithmetic itself: on a
CPU with bfloat16 instructions (AVX512-BF16, AMX) the convolutions run in bfloat16, which is what makes it
worth having; in float32 it is about as fast as ONNX Runtime. Inputs, outputs and the tile kernels stay
float32.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from yonos_trt.backends.base import Array
from yonos_trt.backends.host import HostBackend
from yonos_trt.backends.ort import pick_onnx
from yonos_trt.backends.telemetry import import_openvino
from yonos_trt.engine.manifest import EngineManifest, Precision, Stage, load_manifest
from yonos_trt.engine.onnx_graph import Graph, read_graph
from yonos_trt.engine.restore import dial_of
from yonos_trt.errors import (
    ConfigError,
    EngineIntegrityError,
    ManifestError,
    MissingExtraError,
    OutOfMemoryError,
)
from yonos_trt.host import usable_cpus

_log = logging.getLogger(__name__)

# Our names for precisions, OpenVINO's INFERENCE_PRECISION_HINT, and the capability that makes it native.
_HINTS: dict[str, tuple[str, str]] = {
    "fp32": ("f32", "FP32"),
    "fp16": ("f16", "FP16"),
    "bf16": ("bf16", "BF16"),
}
_MEMORY_WORDS = ("bad_alloc", "failed to allocate", "out of memory", "not enough memory")


class OpenVinoBackend(HostBackend):
    """Run an engine directory's ONNX graphs with OpenVINO on the CPU.

    Parameters
    ----------
    engine_dir, manifest
        The engine directory, and its manifest if it was loaded already.
    precision
        What the CPU computes in: "fp32", "bf16" or "fp16"; None takes bf16 where the CPU has instructions for
        it and fp32 elsewhere.
    threads
        Threads of OpenVINO and of the tile kernels; None takes all usable CPUs.
    lanes
        Tile batches inside OpenVINO at the same time; they share the threads.
    kernels
        "native" (falls back to NumPy where not built) or "numpy".

    Raises
    ------
    MissingExtraError
        OpenVINO is not installed.
    ConfigError
        The CPU has no instructions for the precision.
    EngineNotFoundError, EngineIntegrityError, ManifestError
        An artifact is not there, was altered, cannot be compiled, or has other tensors than the manifest.
    """

    def __init__(
        self,
        engine_dir: str | os.PathLike[str],
        manifest: EngineManifest | None = None,
        *,
        precision: Precision | None = None,
        threads: int | None = None,
        lanes: int = 1,
        kernels: str = "native",
        restore: float | None = None,
    ) -> None:
        try:
            openvino = import_openvino()
        except ImportError as error:
            raise MissingExtraError(
                "the runtime 'openvino'", package="openvino", extra="openvino", reason=str(error)
            ) from error
        root = Path(engine_dir)
        threads = threads or usable_cpus()
        super().__init__(
            manifest or load_manifest(root, verify=False), lanes=lanes, kernels=kernels, threads=threads
        )
        core = openvino.Core()
        capabilities = [str(c) for c in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")]
        self.precision: Precision = precision or ("bf16" if "BF16" in capabilities else "fp32")
        hint, needed = _HINTS[self.precision]
        if needed not in capabilities:
            able = [name for name, (_, capability) in _HINTS.items() if capability in capabilities]
            raise ConfigError(
                f"precision is {self.precision!r}, but OpenVINO on this CPU computes in {', '.join(able)}; "
                "leave the precision out, or choose one of these"
            )
        properties = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": min(lanes, threads),
            # pinned, the threads of every process would share the same first cores
            "ENABLE_CPU_PINNING": False,
        }
        self.restore = dial_of(self.manifest, restore)
        for name, artifact in pick_onnx(self.manifest, root, restore=self.restore).items():
            graph = read_graph(root, artifact, restore=self.restore)
            stage = getattr(self.manifest.stages, name)
            self.networks[name] = _Network(core, name, graph, stage, properties, lanes)
        _log.info(
            "opened %s with OpenVINO %s: %s, %d threads, %d lanes, %s kernels",
            self.manifest.model.name, openvino.__version__, self.precision, threads, lanes, self.kernels.name,
        )  # fmt: skip


class _Network:
    """One compiled graph with a request per lane, checked against the manifest."""

    def __init__(
        self, core: Any, name: str, graph: Graph, stage: Stage, properties: dict[str, Any], lanes: int
    ) -> None:
        path, model = graph.path, graph.inlined()
        try:
            compiled = core.compile_model(core.read_model(model), "CPU", properties)
        except Exception as error:
            if any(words in str(error).lower() for words in _MEMORY_WORDS):
                raise OutOfMemoryError(
                    f"OpenVINO ran out of memory when it compiled {path}", asked_bytes=graph.nbytes
                ) from error
            raise EngineIntegrityError(
                f"OpenVINO cannot compile {path}: {_first_line(error)}; export the model again with this "
                "yonos-export, or use runtime='onnx'"
            ) from error
        self._name = name
        ports = {"inputs": compiled.inputs, "outputs": compiled.outputs}
        for kind, wanted in (("inputs", stage.inputs), ("outputs", stage.outputs)):
            # a tensor has several names where OpenVINO dropped an operation that does nothing
            names = [port.get_names() for port in ports[kind]]
            if len(names) != len(wanted) or any(all(t.name not in n for n in names) for t in wanted):
                raise ManifestError(
                    f"{path} has the {kind} {[sorted(n) for n in names]}, the manifest says "
                    f"{[t.name for t in wanted]}; export the model again"
                )
        types = {n: p.get_element_type().to_dtype() for p in compiled.inputs for n in p.get_names()}
        self._inputs = [(tensor.name, types[tensor.name]) for tensor in stage.inputs]
        self._requests = [compiled.create_infer_request() for _ in range(lanes)]

    def __call__(self, lane: int, *arrays: Array) -> Array:
        feed = {
            name: np.ascontiguousarray(array, dtype)
            for (name, dtype), array in zip(self._inputs, arrays, strict=True)
        }
        try:
            # the inputs live until the call returns, the result is copied out of the request's memory
            results = self._requests[lane].infer(feed, share_inputs=True)
        except Exception as error:
            text = str(error).lower()
            shapes = [a.shape for a in feed.values()]
            if any(words in text for words in _MEMORY_WORDS):
                raise OutOfMemoryError(
                    f"the {self._name} ran out of memory on tiles of {shapes[0]}"
                ) from error
            raise EngineIntegrityError(
                f"OpenVINO failed in the {self._name} on {shapes}: {_first_line(error)}; choose a tile size "
                "between the manifest's smallest and largest, or export the model again"
            ) from error
        result: Array = results[0]
        return result.astype(np.float32, copy=False) if self._name == "decoder" else result


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
