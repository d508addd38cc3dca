"""Which nodes stay in FP32, beside those that leave the range: by kind, by place, by name."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import onnx_ir as ir

from yonos_trt.errors import ConfigError

# Sums of squares and exponentials need the range and the bits.
ISLAND_OPS = frozenset(
    [
        "InstanceNormalization",
        "GroupNormalization",
        "LayerNormalization",
        "RMSNormalization",
        "BatchNormalization",
        "MeanVarianceNormalization",
        "LpNormalization",
        "ReduceMean",
        "ReduceSum",
        "ReduceSumSquare",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSumExp",
        "ReduceProd",
        "CumSum",
        "Pow",
        "Exp",
        "Log",
        "Sqrt",
        "Reciprocal",
    ]
)


def matching(model: ir.Model, stage: str, patterns: Sequence[str]) -> set[str]:
    """Return the names of the nodes that ``[stage:]pattern`` names (``fnmatch``); empty for other stages.

    Raises
    ------
    ConfigError
        A pattern for this stage matches no node.
    """
    names = [str(node.name) for node in model.graph]
    found: set[str] = set()
    for pattern in patterns:
        where, _, what = pattern.rpartition(":")
        if not fnmatch.fnmatchcase(stage, where or "*"):
            continue
        hits = fnmatch.filter(names, what)
        if not hits and where == stage:
            raise ConfigError(
                f"fp32_islands: {pattern!r} matches no node of the {stage} graph; its nodes are named like "
                f"{', '.join(names[:: max(1, len(names) // 4)][:4])}"
            )
        found.update(hits)
    return found


def tail(model: ir.Model) -> set[str]:
    """Return the nodes from the last convolutions to the graph's outputs."""
    found: set[str] = set()
    pending = [v.producer() for v in model.graph.outputs]
    while pending:
        node = pending.pop()
        if node is None or str(node.name) in found:
            continue
        found.add(str(node.name))
        if node.op_type not in ("Conv", "ConvTranspose", "MatMul", "Gemm"):
            pending.extend(v.producer() for v in node.inputs if v is not None)
    return found
