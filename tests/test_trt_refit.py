"""Engines without weights get them from the graph beside them, after its hash was checked."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from fake_tensorrt import FakeTensorRT, write_engines
from helpers import tiny_graphs
from simulated_device import SimulatedDriver

from yonos_trt.engine.manifest import Artifact, Stage, file_record
from yonos_trt.errors import EngineDeviceError, EngineIntegrityError, EngineNotFoundError
from yonos_trt.trt.artifacts import read_engine
from yonos_trt.trt.engines import Engine
from yonos_trt.trt.module import TensorRT
from yonos_trt.trt.refit import weights_of

GRAPH = tiny_graphs()[0]["encoder.onnx"]


class Refittable(FakeTensorRT):
    """Takes the weights of any graph but an empty one."""

    refitted: list[tuple[Any, bytes]]

    def __init__(self, driver: SimulatedDriver) -> None:
        super().__init__(driver)
        self.refitted = []

        class Refitter:
            def __init__(self, engine: Any, logger: Any) -> None:
                self.engine, self.graph = engine, b""

            def refit_cuda_engine(self) -> bool:
                module.refitted.append((self.engine, self.graph))
                return True

        class Parser:
            def __init__(self, refitter: Refitter, logger: Any) -> None:
                self.refitter, self.num_errors = refitter, 0

            def refit_from_bytes(self, graph: bytes) -> bool:
                self.refitter.graph = graph
                self.num_errors = int(not graph)
                return not self.num_errors

            def get_error(self, index: int) -> Any:
                return SimpleNamespace(desc=lambda: "missing weights of conv_1")

        module, self.Refitter, self.OnnxParserRefitter = self, Refitter, Parser


def stripped(root: Path, graph: bytes) -> tuple[Stage, Artifact]:
    """Return an encoder stage whose engine has no weights and whose graph is `graph`."""
    stage = write_engines(root).stages.encoder
    (root / "encoder.fp16.onnx").write_bytes(graph)
    record = file_record(root / "encoder.fp16.onnx")
    onnx = Artifact(
        runtime="onnx", precision="fp16", file=record.file, sha256=record.sha256, bytes=record.bytes
    )
    engine = msgspec.structs.replace(stage.artifacts[0], stripped=True)
    return msgspec.structs.replace(stage, artifacts=(onnx, engine)), engine


def open_engine(root: Path, stage: Stage, artifact: Artifact) -> tuple[Engine, Refittable]:
    module = Refittable(SimulatedDriver())
    weights = weights_of(root, "encoder", stage, artifact)
    tensorrt = TensorRT("tensorrt", module=module)
    return Engine(tensorrt, "encoder", stage, artifact, read_engine(root, artifact), weights=weights), module


def test_stripped_engine_is_filled_from_the_graph_of_its_precision(tmp_path: Path) -> None:
    stage, artifact = stripped(tmp_path, GRAPH)
    engine, module = open_engine(tmp_path, stage, artifact)
    assert [graph for _, graph in module.refitted] == [GRAPH]
    assert engine.weights_bytes == artifact.bytes + len(GRAPH)


def test_engine_with_its_weights_is_left_alone(tmp_path: Path) -> None:
    stage, artifact = stripped(tmp_path, GRAPH)
    whole = msgspec.structs.replace(artifact, stripped=False)
    _, module = open_engine(tmp_path, stage, whole)
    assert module.refitted == []


def test_altered_graph_is_not_taken(tmp_path: Path) -> None:
    stage, artifact = stripped(tmp_path, GRAPH)
    (tmp_path / "encoder.fp16.onnx").write_bytes(GRAPH[::-1])
    with pytest.raises(EngineIntegrityError, match="was altered"):
        open_engine(tmp_path, stage, artifact)


def test_missing_graph_is_named(tmp_path: Path) -> None:
    stage, artifact = stripped(tmp_path, GRAPH)
    alone = msgspec.structs.replace(stage, artifacts=(artifact,))
    with pytest.raises(EngineNotFoundError, match=r"no fp16 graph of the stage encoder.*--strip-weights"):
        weights_of(tmp_path, "encoder", alone, artifact)


def test_refused_weights_repeat_the_reason(tmp_path: Path) -> None:
    stage, artifact = stripped(tmp_path, b"")
    with pytest.raises(EngineDeviceError, match="missing weights of conv_1"):
        open_engine(tmp_path, stage, artifact)
