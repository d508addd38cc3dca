"""Make the dial file of a graph: what a second training of the same networks changed in its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from yonos_export.graph_file import GraphFile
from yonos_trt.engine.restore import dial_file, turned
from yonos_trt.errors import BuildError, ConfigError


def make_dial(base: Path, other: Path, *, stage: str) -> bytes:
    """Return the dial file that turns the graph ``base`` (restore = 0) into ``other`` (1).

    Both are FP32 graphs without external data, exported alike. Differences are kept in half precision: at 1 a
    weight is off by at most 2^-11 of its difference.

    Raises
    ------
    ConfigError
        The two are not the same networks.
    BuildError
        The weights cannot be found in the file again.
    """
    import onnx
    from onnx import numpy_helper

    raw = base.read_bytes()
    graphs = [onnx.load_from_string(raw).graph, onnx.load(other).graph]
    shapes = [{t.name: (tuple(t.dims), t.data_type) for t in graph.initializer} for graph in graphs]
    kinds = [[(n.op_type, list(n.input), list(n.output)) for n in graph.node] for graph in graphs]
    if shapes[0] != shapes[1] or kinds[0] != kinds[1]:
        raise ConfigError(
            f"stage {stage}: the two models are not the same networks; a dial needs a second training that "
            f"started from the first one's weights, without changes of its architecture"
        )
    theirs = {t.name: numpy_helper.to_array(t) for t in graphs[1].initializer}
    places, changes, position = [], [], 0
    for tensor in graphs[0].initializer:
        ours = numpy_helper.to_array(tensor)
        if tensor.data_type != onnx.TensorProto.FLOAT or np.array_equal(ours, theirs[tensor.name]):
            if tensor.data_type != onnx.TensorProto.FLOAT and not np.array_equal(ours, theirs[tensor.name]):
                raise ConfigError(f"stage {stage}: constant {tensor.name} differs between the two models")
            continue
        found = raw.find(tensor.raw_data, position)
        if not tensor.raw_data or found < 0:
            raise BuildError(f"stage {stage}: weights {tensor.name} are not in one piece in {base.name}")
        position = found + len(tensor.raw_data)
        places.append((found, ours.size))
        changes.append((theirs[tensor.name] - ours).astype(np.float16).ravel())
    made = dial_file(
        np.array(places, np.int64).reshape(-1, 2),
        np.concatenate(changes) if changes else np.zeros(0, np.float16),
    )
    _prove(raw, made, theirs, stage)
    return made


def turned_graphs(
    graphs: dict[str, GraphFile], dials: dict[str, bytes], restore: float, work: Path
) -> dict[str, GraphFile]:
    """Write the FP32 graphs as they are where the dial stands at ``restore``."""
    folder = work / "turned"
    folder.mkdir()
    out = {}
    for stage, graph in graphs.items():
        path = folder / graph.path.name
        raw = graph.path.read_bytes()
        path.write_bytes(
            turned(raw, dials[stage], restore, name=f"{stage}'s dial") if stage in dials else raw
        )
        out[stage] = GraphFile(path, graph.external)
    return out


def _prove(raw: bytes, dial: bytes, theirs: dict[str, np.ndarray], stage: str) -> None:
    """Turn the dial to 1 and hold every tensor against the other model's."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_from_string(turned(raw, dial, 1.0, name=f"{stage}'s dial")).graph
    for tensor in graph.initializer:
        got, wanted = numpy_helper.to_array(tensor), theirs[tensor.name]
        if not np.allclose(got, wanted, rtol=0, atol=2e-3 * max(1e-3, float(np.abs(wanted).max(initial=0)))):
            raise BuildError(f"stage {stage}: the dial does not reach the other model's {tensor.name}")
