"""FP16 and BF16 graphs: the graph itself is converted, TensorRT only does what it says.

Every floating-point node is either *low* (computes in FP16 or BF16) or an *island* (stays in FP32). Islands
are

- normalisation and reduction operations, whose sums of squares need the range and the bits,
- the end of the decoder: the last convolution and what follows it, where an error is seen directly,
- nodes that read or write a value which leaves FP16's range on real pictures (`yonos_export.ranges`),
- whatever the caller names.

Casts stand where the two meet, one per value and direction. Inputs and outputs of the graph stay FP32.
`emulate` writes the conversion's roundings into an FP32 graph: ONNX Runtime's CPU kernels compute FP16 graphs
in FP32 and skip the casts between them, so running the FP16 graph itself there would show no rounding and no
overflow.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from yonos_export.graph_passes import add_const, const_array
from yonos_export.islands import ISLAND_OPS
from yonos_trt.errors import ConfigError

log = logging.getLogger(__name__)

LowPrecision = Literal["fp16", "bf16"]

LOW_TYPES: dict[str, ir.DataType] = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
NUMPY_TYPES = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
# Largest finite magnitude: IEEE 754 binary16; bfloat16 has the range of binary32.
LARGEST = {"fp16": 65504.0, "bf16": float(np.finfo(np.float32).max)}
BF16_OPSET = 22  # the first in which Conv takes bfloat16

# Move values about and compute nothing: they take the precision of what they are given.
MOVING_OPS = frozenset(
    [
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Identity",
        "Slice",
        "Split",
        "Gather",
        "Expand",
        "Tile",
        "DepthToSpace",
        "SpaceToDepth",
        "Pad",
    ]
)


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes
    ----------
    precision
        ``fp16`` or ``bf16``.
    low, islands
        How many floating-point nodes compute in it, and the names of those that stay in FP32.
    casts
        How many casts were inserted.
    vanished
        How many weights became zero (too small for the type), of all converted ones.
    """

    precision: LowPrecision
    low: int
    islands: tuple[str, ...]
    casts: int
    vanished: int


# ---------------------------------------------------------------------------------------------------------
# The converter


class _Converter:
    """One pass over the graph in topological order."""

    def __init__(
        self, model: ir.Model, precision: LowPrecision, islands: Collection[str], unsafe: Collection[str]
    ) -> None:
        self.model, self.graph, self.precision = model, model.graph, precision
        self.low_type, self.low_numpy = LOW_TYPES[precision], NUMPY_TYPES[precision]
        self.islands, self.unsafe = set(islands), set(unsafe)
        self.floats = {
            id(v)
            for v in (
                *self.graph.inputs,
                *self.graph.initializers.values(),
                *(o for node in self.graph for o in node.outputs),
            )
            if v.dtype == ir.DataType.FLOAT
        }
        self.is_low: set[int] = set()
        self.cast: dict[tuple[int, bool], ir.Value] = {}
        self.casts = self.vanished = 0

    def is_float(self, value: ir.Value | None) -> bool:
        return value is not None and id(value) in self.floats

    def is_unsafe(self, value: ir.Value) -> bool:
        """Whether the value must not be cast: it left the range, or is a constant beyond it."""
        if value.name in self.unsafe:
            return True
        array = const_array(value)
        return array is not None and array.size > 0 and float(np.abs(array).max()) > LARGEST[self.precision]

    def stays(self, node: ir.Node, inputs: list[ir.Value], outputs: list[ir.Value]) -> bool:
        """Whether the node is an island."""
        if str(node.name) in self.islands or node.op_type in ISLAND_OPS or node.op_type == "Cast":
            return True
        if any(self.is_unsafe(v) for v in (*inputs, *outputs)):
            return True
        if node.op_type in MOVING_OPS:
            return id(inputs[0]) not in self.is_low
        return False

    def converted(self, value: ir.Value, *, low: bool, before: ir.Node | None) -> ir.Value:
        """Return the value in the wanted precision: itself, a cast of it, or a second constant."""
        if (id(value) in self.is_low) == low and (low or const_array(value) is None):
            return value
        key = (id(value), low)
        if key in self.cast:
            return self.cast[key]
        array = const_array(value)
        if array is not None:
            if not low:
                return value
            small = array.astype(self.low_numpy)
            self.vanished += int(((small == 0) & (array != 0)).sum())
            new = add_const(self.graph, f"{value.name}.{self.precision}", small)
        else:
            node = ir.Node(
                "",
                "Cast",
                [value],
                [ir.AttrInt64("to", int(self.low_type if low else ir.DataType.FLOAT))],
                num_outputs=1,
                name=f"{value.name}/{self.precision if low else 'fp32'}",
            )
            new = node.outputs[0]
            new.name, new.dtype, new.shape = (
                node.name,
                self.low_type if low else ir.DataType.FLOAT,
                value.shape,
            )
            if before is None:
                self.graph.append(node)
            else:
                self.graph.insert_before(before, node)
            self.casts += 1
        if low:
            self.is_low.add(id(new))
        self.cast[key] = new
        return new

    def run(self) -> Conversion:
        kept: list[str] = []
        low_nodes = 0
        for node in list(self.graph):
            inputs = [v for v in node.inputs if v is not None and self.is_float(v)]
            outputs = [v for v in node.outputs if self.is_float(v)]
            if not outputs and node.op_type in ("Shape", "Size"):
                continue
            if not inputs and not outputs:
                continue
            low = bool(inputs) and bool(outputs) and not self.stays(node, inputs, outputs)
            for k, value in enumerate(node.inputs):
                # Resize reads its scales, and its region, in FP32 whatever the picture's type is.
                fixed = node.op_type == "Resize" and k > 0
                if value is not None and self.is_float(value):
                    node.replace_input_with(k, self.converted(value, low=low and not fixed, before=node))
            if not low:
                if node.op_type not in MOVING_OPS:
                    kept.append(str(node.name))
                continue
            low_nodes += 1
            for value in outputs:
                value.dtype = self.low_type
                self.is_low.add(id(value))
        for k, value in enumerate(self.graph.outputs):
            if id(value) in self.is_low:
                name = str(value.name)
                value.name = f"{name}.{self.precision}"
                result = self.converted(value, low=False, before=None)
                result.name, result.shape = name, value.shape
                self.graph.outputs[k] = result
        passes.RemoveUnusedNodesPass()(self.model)
        return Conversion(self.precision, low_nodes, tuple(kept), self.casts, self.vanished)


def convert(
    model: ir.Model,
    precision: LowPrecision,
    *,
    islands: Collection[str] = (),
    unsafe: Collection[str] = (),
) -> Conversion:
    """Convert an FP32 graph in place.

    Parameters
    ----------
    model
        FP32 graph with typed values, as `onnx_from_torch` writes it.
    precision
        ``fp16`` or ``bf16``.
    islands
        Names of nodes that stay in FP32 beside the built-in ones.
    unsafe
        Names of values that must never be stored in the low precision.

    Raises
    ------
    ConfigError
        The graph has an operation whose meaning depends on the operator set that BF16 needs.
    """
    for value in [v for v in model.graph.initializers.values() if v.dtype is None]:
        assert value.const_value is not None
        value.dtype = value.const_value.dtype
    opset = model.graph.opset_imports.get("", 20)
    if precision == "bf16" and opset < BF16_OPSET:
        if any(node.op_type == "GroupNormalization" for node in model.graph) and opset < 21:
            raise ConfigError(f"bf16 needs opset {BF16_OPSET} for this model; add --opset {BF16_OPSET}")
        model.graph.opset_imports[""] = BF16_OPSET
    done = _Converter(model, precision, islands, unsafe).run()
    log.info(
        "%s: %d nodes low, %d in FP32, %d casts, %d weights vanished",
        precision,
        done.low,
        len(done.islands),
        done.casts,
        done.vanished,
    )
    return done
