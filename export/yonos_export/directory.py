"""The engine directory in the making."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec

import yonos_trt
from yonos_export.config import Precision
from yonos_export.graph_file import GraphFile
from yonos_export.source import CARD_NAME, Source
from yonos_export.verify import ParityReport
from yonos_trt.engine.manifest import (
    SCHEMA_VERSION,
    STAGE_TENSORS,
    Artifact,
    EngineManifest,
    FileRecord,
    Parity,
    Stages,
    file_record,
)
from yonos_trt.engine.schema import StageName

if TYPE_CHECKING:
    from yonos_export.engine_from_onnx import BuiltEngine
    from yonos_export.engine_options import EngineOptions


@dataclass
class Directory:
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
                beside = old.external if old.dial is None else (*old.external, old.dial)
                for name in (old.file, *(record.file for record in beside)):
                    self.files.pop(name, None)
        self.artifacts[stage] = [*kept, artifact]
        self.files.update(paths)

    def add_graph(
        self, stage: str, graph: GraphFile, precision: Precision, *, restore: float | None = None
    ) -> None:
        """Add an ONNX graph under its own file names; `restore` says where the dial stood for it."""
        record = file_record(graph.path)
        artifact = Artifact(
            runtime="onnx",
            precision=precision,
            file=record.file,
            sha256=record.sha256,
            bytes=record.bytes,
            external=tuple(file_record(path) for path in graph.external),
            restore=restore,
        )
        self.add(stage, artifact, {p.name: p for p in (graph.path, *graph.external)})

    def add_dial(self, stage: str, raw: bytes) -> None:
        """Give the stage's FP32 graph its dial."""
        record = _record_of(f"{stage}.dial.npz", raw)
        self.artifacts[stage] = [
            msgspec.structs.replace(a, dial=record) if (a.runtime, a.precision) == ("onnx", "fp32") else a
            for a in self.artifacts[stage]
        ]
        self.files[record.file] = raw

    def add_engine(
        self,
        stage: str,
        built: BuiltEngine,
        options: EngineOptions,
        precision: Precision,
        *,
        restore: float | None = None,
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
            restore=restore,
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
        info, card = source.info, None
        if info.card:
            raw = info.card.encode()
            self.files[CARD_NAME] = raw
            card = _record_of(CARD_NAME, raw)
        stages = {
            name: msgspec.structs.replace(info.stage(name), artifacts=tuple(self.artifacts[name]))
            for name in STAGE_TENSORS
        }
        return EngineManifest(
            schema_version=SCHEMA_VERSION,
            model=msgspec.structs.replace(info.model, card=card),
            tiles=info.tiles,
            stages=Stages(**stages),
            parity=self.parity,
            files=tuple(self.extra),
            created_by=f"yonos-export {yonos_trt.__version__}",
        )


def _decibel(report: ParityReport) -> float | None:
    return report.end_to_end.record().psnr_db


def _record_of(name: str, raw: bytes) -> FileRecord:
    return FileRecord(file=name, sha256=hashlib.sha256(raw).hexdigest(), bytes=len(raw))
