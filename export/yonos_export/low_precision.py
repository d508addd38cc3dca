"""FP16 and BF16 graphs of all three stages: range check, conversion, parity."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from yonos_export.emulation import emulate
from yonos_export.fp16 import Conversion, LowPrecision, convert
from yonos_export.graph_file import GraphFile
from yonos_export.islands import matching, tail
from yonos_export.onnx_from_torch import load_graph, save_graph
from yonos_export.ranges import Ranges, measure_ranges
from yonos_export.samples import Sample
from yonos_export.thresholds import Thresholds
from yonos_export.verify import (
    Chain,
    ParityReport,
    functions_from_onnx,
    gate,
    measure,
)
from yonos_trt.errors import BuildError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LowGraphs:
    """What came out.

    Attributes
    ----------
    graphs
        Stage -> converted graph.
    ranges, conversions
        What the range check measured and the converter did, per stage.
    """

    graphs: dict[str, GraphFile]
    ranges: dict[str, Ranges]
    conversions: dict[str, Conversion]

    def report(self) -> bytes:
        """Return largest magnitudes and islands as JSON, for the engine directory."""
        document = {
            stage: {
                "largest": {name: float(f"{value:.4g}") for name, value in ranges.largest.items()},
                "fp32_islands": list(self.conversions[stage].islands),
                "vanished_weights": self.conversions[stage].vanished,
            }
            for stage, ranges in self.ranges.items()
        }
        return (json.dumps(document, indent=1) + "\n").encode()


def low_graphs(
    graphs: Mapping[str, GraphFile],
    precision: LowPrecision,
    expected: Sequence[Chain],
    work: Path,
    *,
    islands: Sequence[str] = (),
    auto_islands: bool = True,
) -> LowGraphs:
    """Convert the FP32 graphs of all stages into `work`.

    Parameters
    ----------
    graphs
        Stage -> FP32 graph.
    precision
        ``fp16`` or ``bf16``.
    expected
        What the FP32 reference made of the pictures: the inputs of the range check.
    work
        Folder for the results.
    islands
        Patterns of nodes that stay in FP32, ``[stage:]name``.
    auto_islands
        True keeps what leaves the range in FP32, False makes it an error.

    Raises
    ------
    BuildError
        A value leaves the range and `auto_islands` is off; names the node.
    ConfigError
        A pattern matches nothing.
    """
    converted, ranges, done = {}, {}, {}
    for stage, graph in graphs.items():
        feeds = [chain[stage][0] for chain in expected]
        ranges[stage] = measure_ranges(stage, graph.path, feeds, work)
        for name, magnitude in ranges[stage].top(3):
            log.info("%s: largest values %.4g at %s", stage, magnitude, name)
        beyond = ranges[stage].beyond(precision)
        for name, magnitude in beyond.items():
            log.warning("%s: %s reaches %.4g, too much for %s", stage, name, magnitude, precision)
        if beyond and not auto_islands:
            name, magnitude = next(iter(beyond.items()))
            raise BuildError(
                f"the {stage} graph leaves the range of {precision} at the node {name!r} (magnitude "
                f"{magnitude:.4g} on the verification pictures; {len(beyond)} such nodes); keep it in "
                f"FP32 with --fp32-islands '{stage}:{name}', or leave --no-auto-islands out"
            )
        model = load_graph(graph.path)
        named = matching(model, stage, islands) | (tail(model) if stage == "decoder" else set())
        done[stage] = convert(model, precision, islands=named, unsafe=beyond)
        converted[stage] = save_graph(model, work / f"{stage}.{precision}.onnx")
    return LowGraphs(converted, ranges, done)


def verify_low(
    low: Mapping[str, GraphFile],
    precision: LowPrecision,
    expected: Sequence[Chain],
    samples: Sequence[Sample],
    limits: Thresholds,
    work: Path,
) -> ParityReport:
    """Measure the parity of converted graphs, with their roundings, and hold it against the limits.

    The graphs themselves are opened and run as well, where ONNX Runtime's CPU has the kernels: FP16.

    Raises
    ------
    BuildError
        A limit is missed.
    """
    emulated = {}
    for stage, graph in low.items():
        model = load_graph(graph.path)
        emulate(model, precision)
        emulated[stage] = save_graph(model, work / f"{stage}.{precision}.emulated.onnx", check=False)
    files = {stage: graph.path for stage, graph in emulated.items()}
    report = measure(expected, functions_from_onnx(files, optimise=False), samples)
    for graph in emulated.values():
        for path in (graph.path, *graph.external):
            path.unlink()
    gate(report, limits, what=f"the {precision.upper()} graph")
    if precision == "fp16":
        files = {stage: graph.path for stage, graph in low.items()}
        gate(
            measure(expected[:1], functions_from_onnx(files), samples[:1]),
            limits,
            what="the FP16 graph as ONNX Runtime runs it",
        )
    return report
