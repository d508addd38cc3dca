"""Weights for engines that were built without any (``yonos-export --strip-weights``).

Such a plan is small and holds the kernels only. Its weights come from the ONNX graph it was built from, which
lies beside it in the directory: the artifact with runtime "onnx" and the same precision.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yonos_trt.engine.manifest import Artifact, Stage
from yonos_trt.engine.onnx_graph import Graph, read_graph
from yonos_trt.errors import EngineDeviceError, EngineNotFoundError


def weights_of(engine_dir: Path, name: str, stage: Stage, artifact: Artifact) -> Graph | None:
    """Return the graph that holds the weights of a stripped engine; None if it is not one.

    Raises
    ------
    EngineNotFoundError
        The directory has no graph of the engine's precision.
    EngineIntegrityError
        The graph was altered.
    """
    if not artifact.stripped:
        return None
    found = stage.find("onnx", artifact.precision)
    if not found:
        raise EngineNotFoundError(
            f"{artifact.file} has no weights inside and {engine_dir} has no {artifact.precision} graph of "
            f"the stage {name} to take them from; export the model again without --strip-weights"
        )
    return read_graph(engine_dir, found[0])


def refit(module: Any, logger: Any, engine: Any, artifact: Artifact, graph: Graph) -> None:
    """Fill a stripped engine with the weights of its graph.

    Raises
    ------
    EngineDeviceError
        TensorRT does not take them.
    """
    refitter = module.Refitter(engine, logger)
    parser = module.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_bytes(graph.inlined()) or not refitter.refit_cuda_engine():
        count = int(parser.num_errors)
        reason = str(parser.get_error(0).desc()) if count else "it does not say why"
        raise EngineDeviceError(
            f"{artifact.file} cannot be filled with the weights of {graph.path.name}: {reason}; build it "
            "again, with the same TensorRT version and without --strip-weights"
        )
