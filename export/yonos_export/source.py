"""Where an export starts: a checkpoint with torch modules, or an engine directory with FP32 graphs."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from yonos_export.graph_file import GraphFile
from yonos_export.model_info import ModelInfo
from yonos_export.verify import StageFunction, functions_from_onnx, functions_from_torch
from yonos_trt.atomic import atomic_file, write_file
from yonos_trt.engine.manifest import (
    MANIFEST_NAME,
    STAGE_TENSORS,
    EngineManifest,
    artifact_path,
    load_manifest,
)
from yonos_trt.engine.onnx_graph import read_graph
from yonos_trt.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from yonos_export.stages import StageSet

log = logging.getLogger(__name__)

CARD_NAME = "MODEL_CARD.md"
_KEY_NAME = "graphs.json"


@dataclass(frozen=True)
class Source:
    """What is exported.

    Attributes
    ----------
    info
        Facts about the model.
    stages
        The torch stages; None when the source is an engine directory.
    manifest
        The source's manifest; None when the source is a checkpoint.
    graphs
        Writes the FP32 graphs that were given as files into a folder, checked; None: they are
        made from `stages`, or lie in the directory.
    root
        Its path.
    """

    info: ModelInfo
    root: Path
    stages: StageSet | None = None
    manifest: EngineManifest | None = None
    graphs: Callable[[Path], dict[str, GraphFile]] | None = None

    @classmethod
    def of(cls, stages: StageSet, root: Path) -> Source:
        """Make the source of torch stages."""
        return cls(info=stages.info, root=root, stages=stages)

    def reference(self, graphs: dict[str, GraphFile]) -> Mapping[str, StageFunction]:
        """Return the FP32 reference: torch where there is a checkpoint, else the FP32 graphs."""
        if self.stages is not None:
            return functions_from_torch(self.stages)
        return functions_from_onnx({stage: graph.path for stage, graph in graphs.items()})


def open_source(path: Path) -> Source:
    """Open a checkpoint folder, a diffusers folder or an engine directory.

    Raises
    ------
    ConfigError
        It is none of them.
    MissingExtraError
        A checkpoint needs torch, which is not installed.
    ManifestError, EngineIntegrityError
        The engine directory is damaged.
    """
    if not path.is_dir():
        raise ConfigError(
            f"{path} is not a directory; expected a checkpoint folder of yonos-train, a diffusers folder, an "
            "engine directory or the name of a model of the package; files of published models need --from"
        )
    if (path / MANIFEST_NAME).is_file():
        manifest = load_manifest(path)
        card = ""
        if manifest.model.card is not None:
            card = artifact_path(path, manifest.model.card.file).read_text(encoding="utf-8")
        return Source(info=ModelInfo.of(manifest, card=card), root=path, manifest=manifest)
    try:
        return _open_folder(path)
    except ImportError as error:
        raise MissingExtraError(
            f"exporting the checkpoint {path}", package=str(error.name), extra="export", reason=str(error)
        ) from error


def _open_folder(path: Path) -> Source:
    """Tell the two kinds of folders apart: a diffusers folder, a checkpoint folder of ``yonos-train``."""
    if (path / "unet").is_dir() and (path / "vae").is_dir():
        kind = "sd"
    elif (path / "config.json").is_file():
        kind = "lite"
    else:
        raise ConfigError(
            f"{path} is not something to export: expected a checkpoint folder of yonos-train "
            "(config.json), a diffusers folder (unet/ and vae/) or an engine directory (manifest.json); the "
            "files of published models need --from"
        )
    source: Source = importlib.import_module(f"yonos_export.families.{kind}").open_folder(path)
    return source


def load_stages(path: Path) -> StageSet:
    """Load the torch stages of a checkpoint folder of ``yonos-train`` or a local diffusers folder.

    Raises
    ------
    ConfigError
        `path` is neither, or its files do not fit together.
    """
    stages = open_source(path).stages
    if stages is None:
        raise ConfigError(f"{path} is an engine directory, which has no torch stages; expected a checkpoint")
    return stages


# ---------------------------------------------------------------------------------------------------------
# FP32 graphs


def fp32_graphs(source: Source, work: Path, *, opset: int, onnx_dir: Path | None) -> dict[str, GraphFile]:
    """Return the three FP32 graphs: the source's own, those kept in `onnx_dir`, or freshly exported ones.

    Raises
    ------
    ConfigError
        The engine directory has no FP32 graphs, or `onnx_dir` is in use for something else.
    BuildError
        The export fails.
    """
    if source.manifest is not None:
        return _graphs_of_directory(source, work / "source")
    if source.graphs is not None:
        return source.graphs(work)
    assert source.stages is not None
    from yonos_export.onnx_from_torch import export_graphs

    if onnx_dir is None:
        return export_graphs(source.stages, work, opset=opset)
    key = _key(source, opset)
    if (kept := _kept(onnx_dir, key)) is not None:
        log.info("%s holds the graphs of these weights; they are used again", onnx_dir)
        return kept
    graphs = export_graphs(source.stages, work, opset=opset)
    _keep(graphs, onnx_dir, key)
    return graphs


def _graphs_of_directory(source: Source, copies: Path) -> dict[str, GraphFile]:
    """Copy the FP32 graphs out of an engine directory: what is converted are the bytes that were hashed."""
    assert source.manifest is not None
    graphs = {}
    for name, stage in source.manifest.stages.items():
        found = stage.find("onnx", "fp32")
        if not found:
            raise ConfigError(
                f"{source.root} has no FP32 graph of the stage {name} to start from; export the "
                "checkpoint instead"
            )
        graph = read_graph(source.root, found[0])
        path = copies / found[0].file
        external = [(path.parent / own, raw) for own, raw in graph.external.items()]
        for target, raw in ((path, graph.model), *external):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(raw)
        graphs[name] = GraphFile(path, tuple(target for target, _ in external))
    return graphs


def _key(source: Source, opset: int) -> dict[str, object]:
    """What the bytes of the graphs depend on."""
    packages, model = ("torch", "onnx", "onnxscript", "onnx-ir"), source.info.model
    return {
        "weights_sha256": model.weights_sha256,
        "facts": repr((model.alpha_1, model.sigma_1, model.timestep, source.info.tiles.multiple_px)),
        "opset": opset,
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def _files(graph: GraphFile) -> tuple[Path, ...]:
    return (graph.path, *graph.external)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digests_of(paths: Iterable[Path]) -> str:
    """Return names and SHA-256 of files as the manifest's origin has them."""
    return "; ".join(f"{path.name}, SHA-256 {digest_of(path)}" for path in paths)


def _keep(graphs: dict[str, GraphFile], folder: Path, key: dict[str, object]) -> None:
    """Copy graphs into the folder; the key is written last, so half a copy is never taken for a whole one."""
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / _KEY_NAME
    index.unlink(missing_ok=True)
    files: dict[str, dict[str, str]] = {}
    for stage, graph in graphs.items():
        files[stage] = {}
        for path in _files(graph):
            with atomic_file(folder / path.name) as part:
                shutil.copyfile(path, part)
            files[stage][path.name] = digest_of(path)
    write_file(index, json.dumps({"key": key, "files": files}, indent=2) + "\n")


def _kept(folder: Path, key: dict[str, object]) -> dict[str, GraphFile] | None:
    """Return the folder's graphs if they are whole and of this key."""
    index = folder / _KEY_NAME
    if not index.is_file():
        return None
    try:
        document = json.loads(index.read_text(encoding="utf-8"))
        if document["key"] != key or set(document["files"]) != set(STAGE_TENSORS):
            return None
        graphs = {}
        for stage, files in document["files"].items():
            paths = [folder / name for name in files]
            if any(digest_of(path) != files[path.name] for path in paths):
                return None
            main = [path for path in paths if path.suffix == ".onnx"]
            graphs[stage] = GraphFile(main[0], tuple(path for path in paths if path not in main))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None
    return graphs
