"""Any three ONNX graphs: what somebody else exported, with a ``model.json`` that says what they are.

::

    encoder   image (N, 3, H, W) in [-1, 1], or the LR tile  -> z_l (N, C, H/f, W/f)
    step      noise, z_l (or z_l alone: start = latent)      -> z_0 (N, C', H/f, W/f)
    decoder   z_0                                            -> image (N, 3, H, W), about [-1, 1]

All float32, with dynamic N, H and W, and only ONNX's own operations. Nothing in them is trusted: weights lie
in the graph's folder, names, shapes, factor and scale are tried out, and every output must be finite.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

from yonos_export.graph_file import GraphFile
from yonos_export.model_info import ModelInfo, licence_chain
from yonos_export.reach import measure_reach
from yonos_export.samples import make_samples
from yonos_export.source import Source, digest_of, digests_of
from yonos_export.verify import StageFunction, functions_from_onnx, run_chains
from yonos_trt.engine.manifest import STAGE_TENSORS, Model, Origin, Tiles, stage_tensors
from yonos_trt.errors import BuildError, ConfigError

if TYPE_CHECKING:
    from yonos_export.config import ExportConfig
    from yonos_export.families import Family

OPSETS = range(13, 24)
LARGEST_JSON_BYTES = 1 << 20


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``model.json``. Tiles are in output px; C, C' and the start come from the graphs."""

    name: str
    scale: int
    latent_factor: int
    licence: dict[str, Any]  # part -> terms, or {"licence": terms, "source": where}
    encoder_input: Literal["upsampled", "lr"] = "upsampled"
    multiple_px: int = 64
    smallest_tile_px: int = 256
    tile_px: int = 512
    largest_tile_px: int = 1024
    overlap_px: int = 128
    timestep: float = 0.0
    alpha_1: float = 0.0
    sigma_1: float = 1.0
    color_fix: Literal["wavelet", "adain", "none"] = "wavelet"
    training: dict[str, Any] = {}
    card: str = ""
    tensors: dict[Literal["encoder", "step", "decoder"], dict[str, str]] = {}  # the file's name -> ours


def open_family(family: Family, config: ExportConfig) -> Source:
    """Read ``model.json`` and look at the graphs; they are run when they are first used.

    Raises
    ------
    ConfigError
        A file is not what it should be; names the tensor or the field.
    """
    facts = read_facts(config.source)
    files = {name: getattr(config, name) for name in STAGE_TENSORS}
    models = {name: _open(name, path, facts) for name, path in files.items()}
    inputs = {v.name for v in models["step"].graph.inputs}
    start: Literal["noise", "latent"] = "noise" if "noise" in inputs else "latent"
    for name, model in models.items():
        _check_tensors(name, files[name], model, stage_tensors(start)[name])
    z_l, z_0 = _channels(models["encoder"].graph.outputs[0]), _channels(models["step"].graph.outputs[0])
    if z_l is None or z_0 is None:
        raise ConfigError("z_l or z_0 has no fixed number of channels in the graphs; expected (N, C, h, w)")
    ours = Model(
        name=facts.name,
        scale=facts.scale,
        latent_channels=z_l,
        output_channels=None if z_0 == z_l else z_0,
        latent_factor=facts.latent_factor,
        timestep=facts.timestep,
        alpha_1=facts.alpha_1,
        sigma_1=facts.sigma_1,
        weights_sha256=hashlib.sha256(b"".join(_content(path) for path in files.values())).hexdigest(),
        training=facts.training,
        licences=licence_chain(facts.licence),
        start=start,
        color_fix=facts.color_fix,
        origin=Origin(family=family.name, adapter=digests_of(files.values()), command=config.command),
    )
    tiles = Tiles(
        smallest_px=facts.smallest_tile_px,
        default_px=facts.tile_px,
        largest_px=facts.largest_tile_px,
        multiple_px=facts.multiple_px,
        overlap_px=facts.overlap_px,
        encoder_input=facts.encoder_input,
    )
    info = ModelInfo(ours, tiles, facts.card)
    _check_info(info, config.source)
    for name, model in models.items():
        for value in (*model.graph.inputs, *model.graph.outputs):
            channels, wanted = _channels(value), ours.channels(str(value.name))
            if channels not in (None, wanted):
                raise ConfigError(f"{files[name]}: {value.name} has {channels} channels, expected {wanted}")

    def graphs(work: Path) -> dict[str, GraphFile]:
        made = {name: _write(name, files[name], facts, info, work) for name in STAGE_TENSORS}
        _try(dict(functions_from_onnx({name: graph.path for name, graph in made.items()})), info)
        return made

    return Source(info=info, root=config.source, graphs=graphs)


def read_facts(path: Path) -> Facts:
    """Read ``model.json``.

    Raises
    ------
    ConfigError
        It is no JSON, or has fields that are unknown, missing or of another type.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(LARGEST_JSON_BYTES + 1)
        if len(raw) > LARGEST_JSON_BYTES:
            raise ConfigError(
                f"{path} has more than {LARGEST_JSON_BYTES >> 20} MiB, which no model.json needs"
            )
        return msgspec.json.decode(raw, type=Facts)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OSError) as error:
        fields = ", ".join(Facts.__struct_fields__)
        raise ConfigError(f"{path} is no model.json: {error}; its fields are {fields}") from error


def _check_info(info: ModelInfo, path: Path) -> None:
    """Hold the facts against what every manifest has to fulfil."""
    from yonos_trt.engine.manifest import EngineManifest, Stages
    from yonos_trt.engine.schema import SCHEMA_VERSION, Artifact, check
    from yonos_trt.errors import ManifestError

    nothing = Artifact(runtime="onnx", precision="fp32", file="x", sha256="0" * 64, bytes=0)
    stages = {n: msgspec.structs.replace(info.stage(n), artifacts=(nothing,)) for n in STAGE_TENSORS}
    manifest = EngineManifest(
        schema_version=SCHEMA_VERSION, model=info.model, tiles=info.tiles, stages=Stages(**stages)
    )
    try:
        check(manifest, path)
    except ManifestError as error:
        raise ConfigError(str(error).rpartition("; ")[0]) from error
    if not all(math.isfinite(x) for x in (info.model.timestep, info.model.alpha_1, info.model.sigma_1)):
        raise ConfigError(f"{path}: timestep, alpha_1 and sigma_1 must be finite numbers")


# ---------------------------------------------------------------------------------------------------------
# The files


def _external(path: Path) -> list[Path]:
    """Return the files that hold the graph's weights; all of them lie in its folder."""
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, _get_all_tensors, uses_external_data

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors share no base class with anything
        raise ConfigError(f"{path} is no ONNX graph: {error}") from error
    folder, found = path.parent.resolve(), []
    for tensor in _get_all_tensors(model):
        if not uses_external_data(tensor):
            continue
        location = str(ExternalDataInfo(tensor).location)
        file = path.parent / location
        plain = os.path.basename(location) == location and location not in ("", ".", "..")
        if plain and not file.exists():
            raise ConfigError(
                f"{path} takes weights from {location!r}, which is missing; expected it beside the graph"
            )
        if not plain or file.resolve().parent != folder or not file.is_file():
            raise ConfigError(
                f"{path} takes weights from {location!r}; expected a file beside the graph, not elsewhere"
            )
        if file not in found:
            found.append(file)
    return found


def _content(path: Path) -> bytes:
    return "".join(digest_of(file) for file in (path, *_external(path))).encode()


def _open(stage: str, path: Path, facts: Facts) -> Any:
    """Load one graph, weights mapped from disk, and give its tensors our names."""
    from yonos_export.onnx_from_torch import load_graph

    _external(path)
    try:
        model = load_graph(path)
        for value in model.graph.initializers.values():
            if value.const_value is not None:
                value.const_value.numpy()  # maps what lies beside the graph: is all of it there?
    except Exception as error:  # of protobuf, onnx_ir and shape inference alike
        raise ConfigError(f"{path} is no ONNX graph that can be read: {error}") from error
    foreign = sorted({node.domain for node in model.graph.all_nodes()} - {"", "ai.onnx"})
    if foreign:
        raise ConfigError(f"{path} has operations of {', '.join(foreign)}; expected ONNX's own alone")
    opset = model.graph.opset_imports.get("", 0)
    if opset not in OPSETS:
        raise ConfigError(f"{path} has opset {opset}, expected {OPSETS[0]} to {OPSETS[-1]}")
    names = facts.tensors.get(stage, {})  # type: ignore[call-overload]
    values = {v.name: v for v in (*model.graph.inputs, *model.graph.outputs)}
    for theirs, ours in names.items():
        if theirs not in values:
            raise ConfigError(
                f"tensors.{stage} names {theirs!r}, but {path} has {', '.join(map(repr, values))}"
            )
        values[theirs].name = ours
    return model


def _check_tensors(
    stage: str, path: Path, model: Any, wanted: tuple[tuple[str, ...], tuple[str, ...]]
) -> None:
    """Check names, types and dimensions of a graph's inputs and outputs; put the inputs in our order."""
    import onnx_ir as ir

    graph = model.graph
    for kind, values, names in (("inputs", graph.inputs, wanted[0]), ("outputs", graph.outputs, wanted[1])):
        found = [value.name for value in values]
        if sorted(map(str, found)) != sorted(names):
            theirs, ours = [n for n in found if n not in names], [n for n in names if n not in found]
            say = f'"tensors": {{"{stage}": {{"{theirs[0]}": "{ours[0]}"}}}}' if theirs and ours else ""
            raise ConfigError(
                f"{path}: the {stage}'s {kind} are {found}, expected {list(names)}"
                + (f"; model.json can say which is which: {say}" if say else "")
            )
        for value in values:
            if value.dtype != ir.DataType.FLOAT:
                raise ConfigError(f"{path}: {value.name} is {value.dtype}, expected FLOAT: export it in FP32")
            shape = value.shape
            if shape is None or len(shape) != 4:
                raise ConfigError(
                    f"{path}: {value.name} has the shape {shape}, expected (N, C, height, width)"
                )
            if kind == "inputs" and any(isinstance(shape[axis], int) for axis in (0, 2, 3)):
                raise ConfigError(
                    f"{path}: {value.name} is fixed to {shape}; expected free N, height and width: "
                    "export it with dynamic axes 0, 2 and 3"
                )
    ordered = sorted(graph.inputs, key=lambda value: wanted[0].index(value.name))
    graph.inputs[:] = ordered


def _channels(value: Any) -> int | None:
    return value.shape[1] if value.shape is not None and isinstance(value.shape[1], int) else None


def _write(stage: str, path: Path, facts: Facts, info: ModelInfo, work: Path) -> GraphFile:
    """Write our copy of a graph: our names and letters, nothing in it but maths."""
    from yonos_export.graph_passes import canonical_names
    from yonos_export.onnx_from_torch import save_graph

    model = _open(stage, path, facts)
    _check_tensors(stage, path, model, info.stage_tensors[stage])
    canonical_names(model, info.stage(stage))
    return save_graph(model, work / f"{stage}.onnx")


# ---------------------------------------------------------------------------------------------------------
# Trying them out


def _try(stages: Mapping[str, StageFunction], info: ModelInfo) -> None:
    """Run the three at two sizes; then measure how far a pixel's influence reaches.

    Raises
    ------
    BuildError
        An output has another size than factor and scale say, or NaN or infinity.
    """
    n, tiles = 2, info.tiles
    small = tiles.smallest_px
    for tile in ((small, small), (small, min(small + tiles.multiple_px, tiles.largest_px))):
        for stage, (inputs, (output,)) in info.stage_tensors.items():
            feed = {
                name: np.random.default_rng(0)
                .standard_normal(info.shape(stage, name, batch=n, tile_px=tile))
                .astype(np.float32)
                for name in inputs
            }
            if stage == "encoder":
                feed = {name: np.clip(value / 3, -1, 1) for name, value in feed.items()}
            try:
                got = stages[stage](feed)
            except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
                raise BuildError(f"the {stage} graph fails on tiles of {tile} px: {error}") from error
            wanted = info.shape(stage, output, batch=n, tile_px=tile)
            if got.shape != wanted:
                raise BuildError(
                    f"the {stage} graph makes {output} {got.shape} of tiles of {tile} px, expected {wanted}: "
                    f"scale {info.model.scale}, latent_factor {info.model.latent_factor} or encoder_input "
                    f"{tiles.encoder_input!r} is not the model's"
                )
            _finite(got, stage, output)
    samples = make_samples(info, tile_px=small)
    for sample, chain in zip(samples, run_chains(stages, samples), strict=True):
        for stage, (_, made) in chain.items():
            _finite(made, stage, f"its output on the picture {sample.name}")
    measure_reach(stages, info)


def _finite(array: Any, stage: str, what: str) -> None:
    if not np.isfinite(array).all():
        raise BuildError(f"the {stage} graph: {what} has NaN or infinity; the model is damaged")
