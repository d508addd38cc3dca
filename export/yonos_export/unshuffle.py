"""``pixel_unshuffle`` as one operation: SpaceToDepth, its channel order moved into the next convolution.

torch's exporter writes it as two reshapes and a transposition in six dimensions, with the shapes computed by
a dozen nodes. SpaceToDepth does the same but for the order of the channels: it puts the place in the block
first and the colour last, ``(y r + x) C + c``, where torch has ``c r^2 + y r + x``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from yonos_export.graph_passes import add_const, base_name, const_array


def translation(opset: int) -> Any:
    """Return the function that the dynamo exporter calls for ``aten.pixel_unshuffle``."""
    import onnxscript

    op = getattr(onnxscript, f"opset{opset}")

    def pixel_unshuffle(self: Any, downscale_factor: int) -> Any:
        channels, cells = int(self.shape[1]), downscale_factor**2
        order = [k * channels + c for c in range(channels) for k in range(cells)]
        packed = op.SpaceToDepth(self, blocksize=downscale_factor)
        return op.Gather(packed, op.Constant(value=ir.tensor(np.array(order, np.int64))), axis=1)

    return pixel_unshuffle


def fold_channel_order(model: ir.Model) -> int:
    """Move permutations of channels (Gather on axis 1) into the convolution that reads them; count them."""
    graph, folded = model.graph, 0
    for node in list(graph):
        source = node.inputs[0].producer() if node.op_type == "Conv" and node.inputs[0] is not None else None
        if source is None or source.op_type != "Gather" or source.attributes.get_int("axis", 0) != 1:
            continue
        order, weight = const_array(source.inputs[1]), const_array(node.inputs[1])
        if order is None or weight is None or node.attributes.get_int("group", 1) != 1:
            continue
        channels = weight.shape[1]
        if order.shape != (channels,) or not np.array_equal(np.sort(order), np.arange(channels)):
            continue
        moved = np.empty_like(weight)
        moved[:, order.astype(np.int64)] = weight
        value = node.inputs[1]
        assert value is not None
        node.replace_input_with(0, source.inputs[0])
        node.replace_input_with(1, add_const(graph, base_name(value), moved))
        folded += 1
    if folded:
        passes.RemoveUnusedNodesPass()(model)
    return folded
