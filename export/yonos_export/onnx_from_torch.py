"""ONNX graphs from the torch stages: dynamic batch, height, width; same weights, same bytes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yonos_export.graph_file import GraphFile
from yonos_export.graph_passes import canonical_names, fold_affine, fold_constants
from yonos_export.model_info import MAX_BATCH
from yonos_export.unshuffle import fold_channel_order, translation
from yonos_trt.engine.manifest import STAGE_TENSORS
from yonos_trt.errors import BuildError, MissingExtraError

if TYPE_CHECKING:
    import onnx_ir as ir

    from yonos_export.stages import StageSet

log = logging.getLogger(__name__)

EXTERNAL_ABOVE_BYTES = 1 << 30  # protobuf's own limit is 2 GiB
_NOISY = ("torch.onnx", "onnxscript", "onnx_ir")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's chatter (deprecations of its own dependencies, folding notes) off the terminal."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def graph_from_stage(stages: StageSet, stage: str, *, opset: int = 20) -> ir.Model:
    """Export one stage and optimise the graph.

    Parameters
    ----------
    stages
        The torch stages.
    stage
        ``"encoder"``, ``"step"`` or ``"decoder"``.
    opset
        ONNX operator set.

    Returns
    -------
    ir.Model
        FP32, inputs and outputs named as `STAGE_TENSORS` says, with letters for dynamic dimensions.

    Raises
    ------
    BuildError
        torch cannot express the module as a graph.
    MissingExtraError
        torch, onnx or onnxscript is not installed.
    """
    try:
        import onnxscript
        import torch
        from torch.export import Dim
    except ImportError as error:
        raise MissingExtraError(
            "exporting a checkpoint", package=str(error.name), extra="export", reason=str(error)
        ) from error

    log.debug("onnxscript %s", onnxscript.__version__)
    info = stages.info
    inputs, outputs = info.stage_tensors[stage]
    unit = (info.tiles.multiple_px, info.tiles.multiple_px)
    # A trace of size 1 would be taken for a constant, so each dimension is at least two units.
    sample = {
        name: torch.zeros(info.shape(stage, name, batch=2, tile_px=(2 * unit[0], 3 * unit[1])))
        for name in inputs
    }
    batch, rows, columns = Dim("n", min=1, max=MAX_BATCH), Dim("rows", min=1), Dim("columns", min=1)
    dynamic: dict[str, Any] = {}
    for name in inputs:
        _, _, height, width = info.shape(stage, name, batch=1, tile_px=unit)
        dynamic[name] = {
            0: batch,
            2: rows if height == 1 else height * rows,
            3: columns if width == 1 else width * columns,
        }
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                stages.module(stage),
                tuple(sample.values()),
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=dynamic,
                input_names=list(inputs),
                output_names=list(outputs),
                optimize=False,
                verbose=False,
                custom_translation_table={torch.ops.aten.pixel_unshuffle.default: translation(opset)},
            )
            assert program is not None
            model: ir.Model = program.model
            optimise(model)
    except (RuntimeError, torch.onnx.OnnxExporterError) as error:
        reason = str(error).strip().splitlines()
        raise BuildError(
            f"the {stage} stage cannot be exported to ONNX opset {opset}: "
            f"{reason[0] if reason else error!r}; "
            "every operation of the network has to work for any batch, height and width"
        ) from error
    canonical_names(model, info.stage(stage))
    return model


def optimise(model: ir.Model) -> None:
    """Fold constants of any size, fold per-channel maths into convolutions, and drop what nobody reads."""
    import onnx_ir.passes.common as common
    from onnxscript import optimizer

    limit = 1 << 40
    with _quiet():
        for _ in range(4):
            optimizer.optimize(model, input_size_limit=limit, output_size_limit=limit)
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
            if fold_constants(model) + fold_affine(model) + fold_channel_order(model) == 0:
                break
        for step in (
            common.CommonSubexpressionEliminationPass(),
            common.IdentityEliminationPass(),
            common.RemoveUnusedNodesPass(),
            common.RemoveUnusedOpsetsPass(),
            common.TopologicalSortPass(),
        ):
            step(model)


def save_graph(
    model: ir.Model, path: Path, *, external_above_bytes: int = EXTERNAL_ABOVE_BYTES, check: bool = True
) -> GraphFile:
    """Write a graph and let the ONNX checker look at it; large weights go to ``<name>.data`` beside it.

    Raises
    ------
    BuildError
        The ONNX checker refuses the graph.
    """
    import onnx
    import onnx_ir as ir

    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    data = path.with_name(path.name + ".data")
    if size > external_above_bytes:
        ir.save(model, path, external_data=data.name)
        written = GraphFile(path, (data,))
    else:
        ir.external_data.load_to_model(model)  # what was read from another graph's file of weights
        path.write_bytes(ir.serde.serialize_model(model).SerializeToString(deterministic=True))
        written = GraphFile(path)
    if not check:
        return written
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise BuildError(f"the exported graph {path.name} is not valid ONNX: {error}") from error
    log.info("%s: %d nodes, %.1f MB", path.name, len(list(model.graph)), written.bytes / 1e6)
    return written


def load_graph(path: Path) -> ir.Model:
    """Read a graph; external weights are mapped from disk, not loaded. Missing types are inferred."""
    import onnx_ir as ir
    import onnx_ir.passes.common as common

    model = ir.load(path)
    if any(value.dtype is None for node in model.graph for value in node.outputs):
        with _quiet():
            common.ShapeInferencePass()(model)
    return model


def export_graphs(stages: StageSet, folder: Path, *, opset: int = 20) -> dict[str, GraphFile]:
    """Export all three stages into `folder` as ``encoder.onnx``, ``step.onnx``, ``decoder.onnx``."""
    return {
        stage: save_graph(graph_from_stage(stages, stage, opset=opset), folder / f"{stage}.onnx")
        for stage in STAGE_TENSORS
    }
