"""Passes over an ``onnx_ir`` graph that make it small, constant-free and the same every time.

The dynamo exporter's optimiser leaves three things that matter here: operations on constants with several
outputs (``Split``), per-channel scales and shifts behind convolutions (the folded time modulation), and names
and metadata that carry the exporter's counters and source paths.
"""

from __future__ import annotations

import ast

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from yonos_trt.engine.manifest import Stage

_SCOPES = "pkg.torch.onnx.name_scopes"


def const_array(value: ir.Value | None) -> NDArray[np.generic] | None:
    """Return the array of an initialiser, None for anything that is computed or fed."""
    if value is None or value.producer() is not None or value.const_value is None:
        return None
    if value.is_graph_input():
        return None
    array: NDArray[np.generic] = value.const_value.numpy()
    return array


def add_const(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    """Register a new initialiser under a free name derived from `name`."""
    free, k = name, 1
    while free in graph.initializers:
        free, k = f"{name}_{k}", k + 1
    value = ir.Value(name=free, const_value=ir.tensor(np.asarray(array, order="C"), name=free))
    assert value.const_value is not None
    value.shape = ir.Shape(list(array.shape))
    value.dtype = value.const_value.dtype
    value.meta["base"] = name
    graph.register_initializer(value)
    return value


def replace_uses(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Let every consumer of `old`, the graph's outputs included, read `new`."""
    for use in list(old.uses()):
        use.node.replace_input_with(use.idx, new)
    for i, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[i] = new


# ---------------------------------------------------------------------------------------------------------
# Constants


def fold_constants(model: ir.Model) -> int:
    """Evaluate every node whose inputs are all constants, whatever its size; return how many were folded."""
    graph, folded = model.graph, 0
    opset = graph.opset_imports.get("", 20)
    for node in list(graph):
        arrays = [const_array(v) for v in node.inputs if v is not None]
        if node.domain or not arrays or any(a is None for a in arrays):
            continue
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            continue
        if any(o.is_graph_output() for o in node.outputs):
            continue
        proto = ir.serde.serialize_node(node)
        names = [n for n in proto.input if n]
        inputs = [onnx.helper.make_value_info(n, onnx.TypeProto()) for n in dict.fromkeys(names)]
        outputs = [onnx.helper.make_value_info(n, onnx.TypeProto()) for n in proto.output if n]
        single = onnx.helper.make_model(
            onnx.helper.make_graph([proto], "fold", inputs, outputs),
            opset_imports=[onnx.helper.make_opsetid("", opset)],
        )
        feed = dict(zip(names, arrays, strict=True))
        results = ReferenceEvaluator(single).run(None, feed)
        for output, array in zip([o for o in node.outputs if o.name], results, strict=True):
            replace_uses(graph, output, add_const(graph, str(output.name), np.asarray(array)))
        graph.remove(node, safe=True)
        folded += 1
    if folded:
        passes.RemoveUnusedNodesPass()(model)
    return folded


def base_name(value: ir.Value) -> str:
    """Name a constant had before a pass replaced it."""
    return str(value.meta.get("base", value.name))


def _per_channel(array: NDArray[np.generic] | None, channels: int) -> NDArray[np.float64] | None:
    """Return a constant as one float64 per channel of an NCHW tensor, None if it varies otherwise."""
    if array is None or array.dtype != np.float32 or array.ndim > 4:
        return None
    if array.size == 1:
        return np.full(channels, float(array.reshape(())), np.float64)
    shape = (1,) * (4 - array.ndim) + array.shape
    return array.reshape(-1).astype(np.float64) if shape == (1, channels, 1, 1) else None


def fold_affine(model: ir.Model) -> int:
    """Fold multiplications and additions of per-channel constants into the convolution before them.

    Exact in real arithmetic: the convolution is linear and its padding is not touched by what follows it.
    Computed in float64, rounded once. Returns how many nodes went away.
    """
    graph, folded = model.graph, 0
    for node in list(graph):
        if node.op_type not in ("Mul", "Div", "Add", "Sub") or node.domain:
            continue
        for k, x in enumerate(node.inputs):
            conv = x.producer() if x is not None else None
            if x is None or conv is None or conv.op_type != "Conv" or len(list(x.uses())) != 1:
                continue
            if x.is_graph_output():
                continue
            weight = const_array(conv.inputs[1])
            bias_value = conv.inputs[2] if len(conv.inputs) > 2 else None
            if weight is None or weight.dtype != np.float32 or weight.ndim != 4:
                continue
            constant = _per_channel(const_array(node.inputs[1 - k]), weight.shape[0])
            if constant is None or (node.op_type == "Div" and k == 1):
                continue
            bias = (
                const_array(bias_value) if bias_value is not None else np.zeros(weight.shape[0], np.float32)
            )
            if bias is None:
                continue
            gain, shift = np.ones_like(constant), np.zeros_like(constant)
            if node.op_type == "Mul":
                gain = constant
            elif node.op_type == "Div":
                gain = 1.0 / constant
            elif node.op_type == "Add":
                shift = constant
            elif k == 0:
                shift = -constant
            else:
                gain, shift = -gain, constant
            weight_value = conv.inputs[1]
            assert weight_value is not None
            name = base_name(weight_value)
            w = (weight.astype(np.float64) * gain[:, None, None, None]).astype(np.float32)
            b = (bias.astype(np.float64) * gain + shift).astype(np.float32)
            old_bias = base_name(bias_value) if bias_value is not None else f"{name}.bias"
            inputs = [conv.inputs[0], add_const(graph, name, w), add_const(graph, old_bias, b)]
            merged = ir.Node(
                "",
                "Conv",
                inputs,
                list(conv.attributes.values()),
                num_outputs=1,
                metadata_props=dict(conv.metadata_props),
            )
            merged.outputs[0].type = x.type
            merged.outputs[0].shape = node.outputs[0].shape
            merged.outputs[0].name = node.outputs[0].name
            graph.insert_before(node, merged)
            replace_uses(graph, node.outputs[0], merged.outputs[0])
            graph.remove(node, safe=True)
            graph.remove(conv, safe=True)
            folded += 1
            break
    if folded:
        passes.RemoveUnusedNodesPass()(model)
    return folded


# ---------------------------------------------------------------------------------------------------------
# Names


def _scope(node: ir.Node) -> str:
    """Module path the node was traced in, such as ``unet.mid_blocks.0.conv1``; empty if unknown."""
    raw = node.metadata_props.get(_SCOPES)
    if not raw:
        return ""
    scopes = ast.literal_eval(raw)
    # Shape arithmetic that torch adds for itself carries a scope that is not a module.
    return str(scopes[-2]) if len(scopes) > 1 and not str(scopes[-2]).startswith("_") else ""


def canonical_names(model: ir.Model, stage: Stage) -> None:
    """Name nodes by module path and operation, values by their node; drop all that is not maths.

    ``unet.conv_in/Conv`` computes the value of the same name; its weight keeps the parameter's name. Shapes
    of the graph's inputs and outputs are written with the stage's letters; shapes in between are left to
    whoever loads it.
    """
    graph = model.graph
    for value, tensor in zip(graph.inputs, stage.inputs, strict=True):
        value.name, value.shape = tensor.name, ir.Shape(list(tensor.shape))
    for i, tensor in enumerate(stage.outputs):
        if graph.outputs[i].producer() is None:  # an output that is an input: give it a node of its own
            identity = ir.Node("", "Identity", [graph.outputs[i]], num_outputs=1)
            identity.outputs[0].type = graph.outputs[i].type
            graph.append(identity)
            graph.outputs[i] = identity.outputs[0]
        graph.outputs[i].name, graph.outputs[i].shape = tensor.name, ir.Shape(list(tensor.shape))
    keep = {tensor.name for tensor in (*stage.inputs, *stage.outputs)}
    used: dict[str, int] = {}

    def unique(name: str) -> str:
        used[name] = used.get(name, 0) + 1
        return name if used[name] == 1 else f"{name}_{used[name]}"

    for value in list(graph.initializers.values()):
        if base_name(value) not in graph.initializers:
            value.name = base_name(value)
    parameters = {name for name in graph.initializers if "." in name and "/" not in name}
    # Two steps, so that a new name never meets an old one that is still in use.
    for k, value in enumerate(list(graph.initializers.values())):
        if value.name not in parameters:
            value.name = f"__const{k}"
    for k, node in enumerate(graph):
        node.name = f"__node{k}"
        for j, output in enumerate(node.outputs):
            if output.name not in keep:
                output.name = f"__value{k}_{j}"
    for node in graph:
        scope = _scope(node)
        node.name = unique(f"{scope}/{node.op_type}" if scope else node.op_type)
        for j, output in enumerate(node.outputs):
            if output.name not in keep:
                output.name = node.name if len(node.outputs) == 1 else f"{node.name}:{j}"
                output.shape = None
        for j, source in enumerate(node.inputs):
            if source is not None and str(source.name).startswith("__const"):
                source.name = f"{node.name}.in{j}"
    passes.ClearMetadataAndDocStringPass()(model)
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()
        value.meta.clear()
    model.metadata_props.clear()
    model.producer_name, model.producer_version = "yonos-export", ""
    graph.name = "yonos"
