"""An FP32 graph with the roundings of a converted one.

ONNX Runtime's CPU kernels compute FP16 graphs in FP32 and skip the casts between them, so running such a
graph there shows no rounding and no overflow. Here they are written into the graph, where nothing can skip
them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from yonos_export.fp16 import LOW_TYPES, MOVING_OPS, LowPrecision
from yonos_export.graph_passes import const_array


def emulate(model: ir.Model, precision: LowPrecision) -> None:
    """Turn a converted graph in place into an FP32 graph with the same roundings.

    Every result of a low node is rounded once (cast there and back); sums inside a node are FP32, as on
    tensor cores. Infinities appear where the real graph would have them.
    """
    graph, low = model.graph, LOW_TYPES[precision]
    for value in list(graph.initializers.values()):
        if value.dtype == low:
            array = const_array(value)
            assert array is not None
            assert value.name is not None
            value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
            value.dtype = ir.DataType.FLOAT
    for node in list(graph):
        if node.op_type == "Cast" and node.outputs[0].dtype == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
            continue
        for value in node.outputs:
            if value.dtype != low:
                continue
            value.dtype = ir.DataType.FLOAT
            if node.op_type in MOVING_OPS:
                continue
            uses = list(value.uses())
            if node.op_type == "Cast":
                node.attributes["to"] = ir.AttrInt64("to", int(low))
                value.dtype, rounded = low, value
            else:
                down = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(low))], num_outputs=1)
                down.name = f"{value.name}/round"
                down.outputs[0].name, down.outputs[0].dtype = down.name, low
                graph.insert_after(node, down)
                rounded = down.outputs[0]
            producer = rounded.producer()
            assert producer is not None
            up = ir.Node("", "Cast", [rounded], [ir.AttrInt64("to", int(ir.DataType.FLOAT))], num_outputs=1)
            up.name = f"{value.name}/back"
            up.outputs[0].name, up.outputs[0].dtype = up.name, ir.DataType.FLOAT
            graph.insert_after(producer, up)
            for use in uses:
                use.node.replace_input_with(use.idx, up.outputs[0])
