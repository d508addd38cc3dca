"""`export`: checkpoint -> graphs -> (engines) -> engine directory, all or nothing."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec

import yonos_trt
from yonos_export.config import DEFAULT_THRESHOLDS, ExportConfig, Precision
from yonos_export.graph_file import GraphFile
from yonos_export.lock import only_builder
from yonos_export.samples import Sample, make_samples, read_pictures
from yonos_export.source import CARD_NAME, Source, fp32_graphs, open_source
from yonos_export.verify import Chain, ParityReport, functions_from_onnx, gate, measure, run_chain
from yonos_trt.errors import ConfigError, MissingExtraError
from yonos_trt.manifest import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    STAGE_TENSORS,
    Artifact,
    EngineManifest,
    FileRecord,
    Parity,
    Stages,
    artifact_path,
    file_record,
    write_engine_dir,
)
from yonos_trt.schema import StageName

if TYPE_CHECKING:
    from yonos_export.engine_from_onnx import BuiltEngine, EngineOptions

log = logging.getLogger(__name__)

# (what is being done, fraction done in 0 .. 1)
Progress = Callable[[str, float], None]


@dataclass
class _Directory:
    """The engine directory in the making: files by name, artifacts by stage, figures."""

    files: dict[str, Path | bytes] = field(default_factory=dict)
    artifacts: dict[str, list[Artifact]] = field(default_factory=lambda: {s: [] for s in STAGE_TENSORS})
    parity: Parity = field(default_factory=Parity)
    extra: list[FileRecord] = field(default_factory=list)

    def add(self, stage: str, artifact: Artifact, paths: dict[str, Path]) -> None:
        """Add an artifact; one with the same identity is replaced."""

        def identity(a: Artifact) -> tuple[object, ...]:
            return a.runtime, a.precision, a.tensorrt_version, a.compute_capability, a.hardware_compatibility

        kept = [a for a in self.artifacts[stage] if identity(a) != identity(artifact)]
        for old in self.artifacts[stage]:
            if old not in kept:
                for name in (old.file, *(record.file for record in old.external)):
                    self.files.pop(name, None)
        self.artifacts[stage] = [*kept, artifact]
        self.files.update(paths)

    def add_graph(self, stage: str, graph: GraphFile, precision: Precision) -> None:
        """Add an ONNX graph under its own file names."""
        record = file_record(graph.path)
        artifact = Artifact(
            runtime="onnx",
            precision=precision,
            file=record.file,
            sha256=record.sha256,
            bytes=record.bytes,
            external=tuple(file_record(path) for path in graph.external),
        )
        self.add(stage, artifact, {p.name: p for p in (graph.path, *graph.external)})

    def add_engine(
        self, stage: str, built: BuiltEngine, options: EngineOptions, precision: Precision
    ) -> None:
        """Add an engine; its file name tells it from its neighbours, its identity is in the manifest."""
        name = built.path.name
        if built.compute_capability and not options.compute_capabilities:
            name = name.replace(".engine", f"-sm{built.compute_capability[0].replace('.', '')}.engine")
        name = name.replace(".engine", f"-{built.tensorrt_version}.engine")
        record = file_record(built.path, file=name)
        hardware = options.hardware_compatibility
        artifact = Artifact(
            runtime=options.runtime,
            precision=precision,
            file=name,
            sha256=record.sha256,
            bytes=record.bytes,
            profiles=(built.profile,),
            tensorrt_version=built.tensorrt_version,
            compute_capability=built.compute_capability,
            hardware_compatibility=None if hardware == "none" else hardware,
            version_compatible=options.version_compatible,
            gpu=built.gpu,
            stripped=options.strip_weights,
        )
        self.add(stage, artifact, {name: built.path})

    def add_file(self, name: str, raw: bytes) -> None:
        """Add a file that is no artifact."""
        self.extra = [record for record in self.extra if record.file != name]
        self.extra.append(_record_of(name, raw))
        self.files[name] = raw

    def add_parity(self, precision: Precision, report: ParityReport) -> None:
        """Record what was measured for one precision."""
        stages = {k: dict(v) for k, v in self.parity.stages.items()}
        for stage, figures in report.stages.items():
            stages.setdefault(cast(StageName, stage), {})[precision] = figures.record()
        whole = {**self.parity.end_to_end_psnr_db, precision: _decibel(report)}
        self.parity = Parity(stages=stages, end_to_end_psnr_db=whole)

    def manifest(self, source: Source) -> EngineManifest:
        """Put the manifest together; the model card goes in as a file of its own."""
        model = source.info.model(source.weights_sha256)
        if source.info.card:
            raw = source.info.card.encode()
            self.files[CARD_NAME] = raw
            model = msgspec.structs.replace(model, card=_record_of(CARD_NAME, raw))
        stages = {
            name: msgspec.structs.replace(source.info.stage(name), artifacts=tuple(self.artifacts[name]))
            for name in STAGE_TENSORS
        }
        return EngineManifest(
            schema_version=SCHEMA_VERSION,
            model=model,
            tiles=source.info.tiles(),
            stages=Stages(**stages),
            parity=self.parity,
            files=tuple(self.extra),
            created_by=f"yonos-export {yonos_trt.__version__}",
        )


def _decibel(report: ParityReport) -> float | None:
    return report.end_to_end.record().psnr_db


def _record_of(name: str, raw: bytes) -> FileRecord:
    return FileRecord(file=name, sha256=hashlib.sha256(raw).hexdigest(), bytes=len(raw))


# ---------------------------------------------------------------------------------------------------------
# The export


def export(config: ExportConfig, *, progress: Progress | None = None) -> EngineManifest | None:
    """Export a model into an engine directory.

    Everything is made and measured in a folder beside the target; only a complete and verified directory
    takes its place. What the source directory holds already is kept when the source is an engine directory.

    Parameters
    ----------
    config
        What to do.
    progress
        Called with the name of the work and the fraction done.

    Returns
    -------
    EngineManifest or None
        The manifest as written; None for a dry run.

    Raises
    ------
    ConfigError
        The target exists (without ``force``), or the source cannot be used.
    BuildError
        A graph or an engine cannot be built, or parity fails. The old directory is untouched.
    MissingExtraError
        torch or TensorRT is needed and not installed.
    """
    report = progress or (lambda what, done: None)
    _require_packages()
    _check_target(config)
    if config.runtime != "onnx":
        _check_engines(config)
    report("open", 0.0)
    source = open_source(config.source)
    if config.dry_run:
        return None
    config.engine_dir.parent.mkdir(parents=True, exist_ok=True)
    with only_builder(config.engine_dir):
        work = Path(tempfile.mkdtemp(prefix=f".{config.engine_dir.name}.work-", dir=config.engine_dir.parent))
        try:
            return _export(config, source, work, report)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _export(config: ExportConfig, source: Source, work: Path, report: Progress) -> EngineManifest:
    """Make everything in `work` and put it in place."""
    directory = _Directory()
    if source.manifest is not None:
        _take_over(source, directory)
    report("graphs", 0.05)
    graphs = fp32_graphs(source, work, opset=config.opset, onnx_dir=config.onnx_dir)
    samples: list[Sample] = []
    if config.verify or config.precision != "fp32":
        report("pictures", 0.15)
        samples = make_samples(source.info, config.verify_images, tile_px=config.verify_tile_px)
    reference = source.reference(graphs) if samples else {}
    expected = [run_chain(reference, sample) for sample in samples]
    if source.stages is not None:
        if config.keep_fp32 or config.precision == "fp32":
            for stage, graph in graphs.items():
                directory.add_graph(stage, graph, "fp32")
        if config.verify:
            report("parity fp32", 0.2)
            limits = config.limits if config.precision == "fp32" else DEFAULT_THRESHOLDS["fp32"]
            candidate = functions_from_onnx({s: g.path for s, g in graphs.items()})
            figures = measure(expected, candidate, samples)
            gate(figures, limits, what="the FP32 graph")
            directory.add_parity("fp32", figures)
    if config.precision != "fp32":
        report(f"convert {config.precision}", 0.3)
        graphs = _low(config, graphs, samples, expected, directory, work)
    if config.runtime != "onnx":
        _engines(config, source, graphs, directory, work, report)
    manifest = directory.manifest(source)
    if config.runtime != "onnx" and config.verify:
        _try_engines(config, directory, manifest, work, report)
    report("write", 0.95)
    write_engine_dir(config.engine_dir, directory.files, manifest)
    report("done", 1.0)
    return manifest


def _low(
    config: ExportConfig,
    graphs: dict[str, GraphFile],
    samples: list[Sample],
    expected: list[Chain],
    directory: _Directory,
    work: Path,
) -> dict[str, GraphFile]:
    """Convert, measure and add the FP16 or BF16 graphs."""
    from yonos_export.low_precision import low_graphs, verify_low

    assert config.precision != "fp32"
    precision = config.precision
    low = low_graphs(
        graphs,
        precision,
        expected,
        work,
        islands=config.fp32_islands,
        auto_islands=config.auto_islands,
    )
    for stage, graph in low.graphs.items():
        directory.add_graph(stage, graph, precision)
    directory.add_file(f"{precision}.ranges.json", low.report())
    if config.verify:
        figures = verify_low(low.graphs, precision, expected, samples, config.limits, work)
        directory.add_parity(precision, figures)
    return low.graphs


def _engines(
    config: ExportConfig,
    source: Source,
    graphs: dict[str, GraphFile],
    directory: _Directory,
    work: Path,
    report: Progress,
) -> None:
    """Build and add one engine per stage."""
    from yonos_export.engine_from_onnx import build_engine, options_from_config, profile_shapes

    options, shapes = options_from_config(config), profile_shapes(source.info, config)
    kind = {"tensorrt": "trt", "tensorrt-rtx": "rtx"}[options.runtime]
    for k, (stage, graph) in enumerate(graphs.items()):
        start, what = 0.4 + 0.18 * k, f"build {stage} ({config.runtime}, {config.precision})"
        report(what, start)
        where = "".join(f"-sm{c.replace('.', '')}" for c in options.compute_capabilities)
        built = build_engine(
            graph.path,
            work / f"{stage}.{config.precision}.{kind}{where}.engine",
            shapes[stage],
            options,
            stage=stage,
            progress=lambda done, start=start, what=what: report(what, start + 0.18 * done),  # type: ignore[misc]
        )
        directory.add_engine(stage, built, options, config.precision)


def _try_engines(
    config: ExportConfig, directory: _Directory, manifest: EngineManifest, work: Path, report: Progress
) -> None:
    """Run the engines where there is a GPU and hold them against the graphs; say so where there is none."""
    from yonos_export.verify_engines import compare_engines, gpu_is_here

    if not gpu_is_here():
        log.warning("the %s engines were built but not run: no GPU can be used here", config.runtime)
        return
    report("parity of the engines", 0.94)
    candidate = write_engine_dir(work / "candidate", directory.files, manifest)
    reference: Precision = "fp32" if manifest.stages.step.find("onnx", "fp32") else config.precision
    pictures = read_pictures(config.verify_images)
    compare_engines(candidate, config.runtime, config.precision, reference, pictures, config.limits)


def _require_packages() -> None:
    """Say at once which package of the extra is missing."""
    for package in ("onnx", "onnx_ir", "onnxruntime", "filelock"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError("exporting a model", package=package, extra="export")


def _check_engines(config: ExportConfig) -> None:
    """Refuse what cannot be built here before any work is done."""
    from yonos_export.engine_from_onnx import load_module, options_from_config, require_gpu

    options = options_from_config(config)
    load_module(options.runtime)
    require_gpu(options.runtime)


def _check_target(config: ExportConfig) -> None:
    """Refuse to replace something without ``force``; an engine directory may be its own source."""
    target = config.engine_dir
    if target.exists() and config.source.exists() and target.samefile(config.source):
        if not (target / MANIFEST_NAME).is_file():
            raise ConfigError(
                f"{target} is the checkpoint itself; choose another --engine-dir, such as {target}-engines"
            )
        return
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target} is a file; choose another --engine-dir")
    if target.is_dir() and any(target.iterdir()) and not config.force:
        raise ConfigError(f"{target} exists; choose another --engine-dir, or replace it with --force")


def _take_over(source: Source, directory: _Directory) -> None:
    """Keep all artifacts, other files and figures of an engine directory."""
    assert source.manifest is not None
    for name, stage in source.manifest.stages.items():
        directory.artifacts[name] = list(stage.artifacts)
    for record in source.manifest.records():
        directory.files[record.file] = artifact_path(source.root, record.file)
    directory.parity = source.manifest.parity
    directory.extra = list(source.manifest.files)
