"""The range check: run the FP32 graphs over real pictures and look how large every value gets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from yonos_export.fp16 import LARGEST, LowPrecision
from yonos_export.onnx_from_torch import load_graph
from yonos_trt.backends.telemetry import import_onnxruntime
from yonos_trt.errors import BuildError

# Other pictures reach further than the few that are measured: two bits are kept free.
HEADROOM = 4.0


@dataclass(frozen=True)
class Ranges:
    """Largest magnitude of every floating-point value of a stage's graph, in the graph's order.

    ``largest`` maps the value's name, which is its node's, to the magnitude; NaN counts as infinite.
    """

    stage: str
    largest: dict[str, float]

    def beyond(self, precision: LowPrecision, *, headroom: float = HEADROOM) -> dict[str, float]:
        """Return the values that a precision cannot hold with `headroom` to spare."""
        limit = LARGEST[precision] / headroom if precision == "fp16" else LARGEST[precision]
        return {name: value for name, value in self.largest.items() if not value <= limit}

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """Return the `count` largest, largest first."""
        return sorted(self.largest.items(), key=lambda item: -item[1])[:count]


def instrument(model: ir.Model) -> dict[str, str]:
    """Add a scalar output, the largest magnitude, for every float value; return output -> value."""
    graph = model.graph
    outputs: dict[str, str] = {}
    for node in list(graph):
        for value in node.outputs:
            if value.dtype != ir.DataType.FLOAT:
                continue
            absolute = ir.Node("", "Abs", [value], num_outputs=1, name=f"range/abs{len(outputs)}")
            reduce = ir.Node(
                "",
                "ReduceMax",
                [absolute.outputs[0]],
                [ir.AttrInt64("keepdims", 0)],
                num_outputs=1,
                name=f"range/max{len(outputs)}",
            )
            absolute.outputs[0].name, reduce.outputs[0].name = str(absolute.name), f"range{len(outputs)}"
            for output in (absolute.outputs[0], reduce.outputs[0]):
                output.dtype = ir.DataType.FLOAT
            reduce.outputs[0].shape = ir.Shape([])
            graph.insert_after(node, absolute)
            graph.insert_after(absolute, reduce)
            outputs[f"range{len(outputs)}"] = str(value.name)
            graph.outputs.append(reduce.outputs[0])
    return outputs


def measure_ranges(
    stage: str, graph: Path, feeds: Sequence[Mapping[str, NDArray[np.float32]]], work: Path
) -> Ranges:
    """Run one stage's FP32 graph on ONNX Runtime over all feeds.

    Parameters
    ----------
    stage
        Name for messages.
    graph
        FP32 graph.
    feeds
        Inputs of the stage, one mapping per picture.
    work
        Folder for the instrumented copy.

    Raises
    ------
    BuildError
        The FP32 graph itself produces NaN or infinity; names the first node.
    """
    from yonos_export.onnx_from_torch import save_graph

    ort = import_onnxruntime()
    model = load_graph(graph)
    outputs = instrument(model)
    copy = save_graph(model, work / f"{stage}.ranges.onnx", check=False)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(copy.path), options, providers=["CPUExecutionProvider"])
    largest = dict.fromkeys(outputs.values(), 0.0)
    for feed in feeds:
        for name, value in zip(outputs.values(), session.run(list(outputs), dict(feed)), strict=True):
            magnitude = float(value)
            largest[name] = max(largest[name], magnitude if math.isfinite(magnitude) else math.inf)
    for path in (copy.path, *copy.external):
        path.unlink()
    for name, magnitude in largest.items():
        if math.isinf(magnitude):
            raise BuildError(
                f"the {stage} graph produces NaN or infinity in FP32 already, first at node {name!r}; "
                "the checkpoint is damaged or was trained to diverge: look at its training log"
            )
    return Ranges(stage, largest)
