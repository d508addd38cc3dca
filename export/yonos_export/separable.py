"""Fixed filters that are a column times a row, as slices, products and sums: for TensorRT's graphs only.

A convolution that filters every channel alike with a small kernel (5 x 5: the decoder's anti-imaging filter)
does not fuse with its neighbours in an engine. Written as sums of shifted slices, down and then across, it is
elementwise work, which does, with 6 products a value in place of 25. ONNX Runtime on a CPU has a good kernel
for the convolution (the slices took 7 % longer for the whole decoder), so its graphs keep it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from numpy.typing import NDArray

from yonos_export.graph_passes import add_const, const_array, replace_uses

_LAST = np.iinfo(np.int64).max


def taps_of(node: ir.Node) -> NDArray[np.float64] | None:
    """Return the taps ``(k,)`` of a convolution with ``outer(taps, taps)`` on every channel; None for others.

    The taps are symmetric, k is odd, and the convolution neither pads nor steps.
    """
    weight = const_array(node.inputs[1]) if node.op_type == "Conv" and len(node.inputs) > 1 else None
    if weight is None or weight.ndim != 4 or weight.shape[1] != 1 or weight.shape[2] != weight.shape[3]:
        return None
    plain = all(set(node.attributes.get_ints(name, [default])) <= {default}
                for name, default in (("pads", 0), ("strides", 1), ("dilations", 1)))  # fmt: skip
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return None
    if not plain or node.attributes.get_int("group", 1) != weight.shape[0] or weight.shape[2] % 2 == 0:
        return None
    kernel = weight[0, 0].astype(np.float64)
    total = kernel.sum()
    if total <= 0 or not (weight == weight[0]).all():
        return None
    taps = kernel.sum(axis=1) / np.sqrt(total)
    exact = np.allclose(np.outer(taps, taps), kernel, rtol=0, atol=np.abs(kernel).max() * 2.0**-10)
    return taps if exact and np.array_equal(kernel, kernel.T) and np.array_equal(taps, taps[::-1]) else None


def separate_filters(model: ir.Model) -> int:
    """Write the graph's separable filters as slices, products and sums; return how many there were."""
    graph, found = model.graph, 0
    for node in list(graph):
        taps = taps_of(node)
        if taps is None:
            continue
        value = node.inputs[0]
        assert value is not None
        for axis in (2, 3):
            value = _along(graph, node, value, taps, axis)
        result = node.outputs[0]
        name = result.name
        replace_uses(graph, result, value)
        result.name, value.name = f"{name}/whole", name
        value.shape = result.shape
        found += 1
    if found:
        passes.RemoveUnusedNodesPass()(model)
    return found


def _along(graph: ir.Graph, at: ir.Node, value: ir.Value, taps: NDArray[np.float64], axis: int) -> ir.Value:
    """Return the sum of shifted slices along an axis, outer ones first, as nodes before `at`."""
    dtype, width = value.dtype or ir.DataType.FLOAT, len(taps)
    stem = f"{at.name}/{'yx'[axis - 2]}"

    def add(kind: str, inputs: list[ir.Value], tag: str) -> ir.Value:
        node = ir.Node("", kind, inputs, num_outputs=1, name=f"{stem}.{tag}")
        node.outputs[0].name, node.outputs[0].dtype = f"{stem}.{tag}", dtype
        graph.insert_before(at, node)
        return node.outputs[0]

    def integers(number: int, tag: str) -> ir.Value:
        return add_const(graph, f"{stem}.{tag}", np.array([number], np.int64))

    def shifted(k: int) -> ir.Value:
        end = _LAST if k == width - 1 else k + 1 - width
        ends = [integers(k, f"start{k}"), integers(end, f"end{k}"), integers(axis, f"axis{k}")]
        return add("Slice", [value, *ends], f"slice{k}")

    total: ir.Value | None = None
    for k in range(width // 2 + 1):
        both = shifted(k)
        if k < width // 2:
            both = add("Add", [both, shifted(width - 1 - k)], f"pair{k}")
        tap = add_const(graph, f"{stem}.tap{k}", np.asarray(taps[k], dtype.numpy()))
        part = add("Mul", [both, tap], f"part{k}")
        total = part if total is None else add("Add", [total, part], f"sum{k}")
    assert total is not None
    return total
