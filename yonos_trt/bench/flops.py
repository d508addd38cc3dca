"""Count a graph's arithmetic at given input shapes: `count_flop`.

The graph runs once in ONNX Runtime with its optimisations off and its profiler on; the profile names every
node that ran with the shapes of its inputs and outputs, so dynamic shapes, folded constants and loops need no
inference of ours. One multiplication and one addition are two operations. Convolutions, transposed
convolutions and matrix products count; everything else is a small part of the networks here.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yonos_trt.backends.telemetry import import_onnxruntime

Shape = Sequence[int]


def count_flop(graph: Path, shapes: Mapping[str, Shape]) -> int:
    """Return the floating-point operations of one run.

    Parameters
    ----------
    graph
        ONNX file; its external data, if any, beside it.
    shapes
        Input name -> shape; the inputs are filled with zeros.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.enable_profiling = True
    # a weight that was repacked is missing from the profile's list of inputs
    options.add_session_config_entry("session.disable_prepacking", "1")
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(graph), sess_options=options, providers=["CPUExecutionProvider"])
        types = {
            i.name: np.float16 if i.type == "tensor(float16)" else np.float32 for i in session.get_inputs()
        }
        session.run(None, {name: np.zeros(shape, types[name]) for name, shape in shapes.items()})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return sum(_flop(event["args"]) for event in events if _is_kernel(event))


def _is_kernel(event: Mapping[str, Any]) -> bool:
    return event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time")


def _flop(args: Mapping[str, Any]) -> int:
    inputs: list[list[int]] = [next(iter(i.values())) for i in args["input_type_shape"]]
    outputs: list[list[int]] = [next(iter(o.values())) for o in args["output_type_shape"]]
    kind = args["op_name"]
    if kind in ("Conv", "FusedConv"):
        # every output value is a sum over the weights of its channel: (C_in / groups, k_h, k_w)
        return 2 * math.prod(outputs[0]) * math.prod(inputs[1][1:])
    if kind == "ConvTranspose":
        # every input value is spread by the weights of its channel: (C_out / groups, k_h, k_w)
        return 2 * math.prod(inputs[0]) * math.prod(inputs[1][1:])
    if kind in ("MatMul", "FusedMatMul"):
        return 2 * math.prod(outputs[0]) * int(inputs[0][-1])
    if kind == "Gemm":
        inner = math.prod(inputs[0]) // outputs[0][0]
        return 2 * math.prod(outputs[0]) * inner
    return 0
