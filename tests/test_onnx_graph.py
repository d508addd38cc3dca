"""Every byte of a graph that runs was hashed: external data, races, and what hides behind other names."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from helpers import external_dir, make_engine_dir, picture, tiny_graphs, with_external
from onnx import TensorProto, helper, numpy_helper

import yonos_trt
from yonos_trt.backends import ort
from yonos_trt.backends.base import Backend
from yonos_trt.backends.choose import Request, open_backend
from yonos_trt.backends.ort import OrtBackend
from yonos_trt.engine import manifest as m
from yonos_trt.engine import onnx_graph
from yonos_trt.engine.onnx_graph import Graph, read_graph
from yonos_trt.errors import EngineIntegrityError, ManifestError

RUNTIMES = ("onnx", "openvino")


def opened(engine: Path, runtime: str) -> Backend:
    return open_backend(engine, m.load_manifest(engine, verify=False), Request(runtime=runtime, threads=1))


def answer(backend: Backend) -> Any:
    """Run the step on fixed numbers."""
    channels = backend.manifest.model.latent_channels
    noise, z_l = np.random.default_rng(0).normal(size=(2, 1, channels, 8, 8)).astype(np.float32)
    return backend.step(noise, z_l, lane=0).copy()


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    if request.param == "openvino":
        pytest.importorskip("openvino")
    return str(request.param)


def step_of(engine: Path) -> m.Artifact:
    return m.load_manifest(engine, verify=False).stages.step.artifacts[0]


# ---------------------------------------------------------------------------------------------------------
# External data


def test_a_graph_with_listed_external_data_gives_the_same_bits(tmp_path: Path, runtime: str) -> None:
    whole = opened(make_engine_dir(tmp_path / "whole"), runtime)
    parted = opened(external_dir(tmp_path / "parted"), runtime)
    assert np.array_equal(answer(whole), answer(parted))


def test_a_graph_beyond_one_message_is_handed_over_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = answer(opened(make_engine_dir(tmp_path / "whole"), "onnx"))
    engine = external_dir(tmp_path / "parted")
    monkeypatch.setattr(ort, "LARGEST_MODEL_BYTES", 1000)
    monkeypatch.setattr(onnx_graph, "LARGEST_MODEL_BYTES", 1000)
    monkeypatch.chdir(tmp_path)  # nothing of that name lies here
    assert np.array_equal(answer(opened(engine, "onnx")), wanted)
    with pytest.raises(EngineIntegrityError, match="use runtime='onnx', or export in fp16"):
        read_graph(engine, step_of(engine)).inlined()


@pytest.mark.parametrize("name", ["step.data", "sub/step.data"])
def test_the_names_of_a_graph_in_a_folder_start_there(tmp_path: Path, name: str) -> None:
    engine = external_dir(tmp_path / "engine")
    artifact = msgspec.structs.replace(step_of(engine), file="sub/step.onnx")
    folder = engine / "sub"
    folder.mkdir()
    (engine / "step.onnx").rename(folder / "step.onnx")
    (engine / "step.data").rename(engine / name)
    record = msgspec.structs.replace(artifact.external[0], file=name)
    if name == "sub/step.data":
        read_graph(engine, msgspec.structs.replace(artifact, external=(record,))).inlined()
    else:
        with pytest.raises(EngineIntegrityError, match=r"takes weights from 'step\.data'"):
            read_graph(engine, msgspec.structs.replace(artifact, external=(record,)))


@pytest.mark.parametrize(
    ("location", "listed"),
    [(".weights", "nowhere"), ("step.data", "files"), (".cache/weights", "nowhere")],
)
def test_external_data_that_is_not_listed_with_its_graph_never_runs(
    tmp_path: Path, runtime: str, location: str, listed: str
) -> None:
    if "/" in location:
        engine = external_dir(tmp_path / "engine", ".weights", listed=listed)
        (engine / ".cache").mkdir()
        raw, data = with_external(tiny_graphs()[0]["step.onnx"], location)
        (engine / location).write_bytes(data)
        (engine / "step.onnx").write_bytes(raw)
        manifest = m.load_manifest(make_engine_dir(tmp_path / "other"), verify=False)
        step = manifest.stages.step
        record = m.file_record(engine / "step.onnx")
        artifact = msgspec.structs.replace(step.artifacts[0], sha256=record.sha256, bytes=record.bytes)
        stages = msgspec.structs.replace(
            manifest.stages, step=msgspec.structs.replace(step, artifacts=(artifact,))
        )
        m.save_manifest(engine, msgspec.structs.replace(manifest, stages=stages))
    else:
        engine = external_dir(tmp_path / "engine", location, listed=listed)
    with pytest.raises(EngineIntegrityError, match="nothing vouches for them; export the model again"):
        opened(engine, runtime)
    with pytest.raises(EngineIntegrityError), yonos_trt.SR(engine, runtime=runtime) as sr:
        sr.upscale(picture(20, 20))


@pytest.mark.parametrize("how", ["bits", "short", "longer", "gone", "link out", "pipe"])
def test_altered_external_data_never_runs(tmp_path: Path, runtime: str, how: str) -> None:
    engine = external_dir(tmp_path / "engine")
    manifest = m.load_manifest(engine, verify=True)
    path = engine / "step.data"
    raw = path.read_bytes()
    if how in ("gone", "link out", "pipe"):
        path.unlink()
        if how == "link out":
            (tmp_path / "outside").write_bytes(raw)
            path.symlink_to(tmp_path / "outside")
        elif how == "pipe":
            os.mkfifo(path)
    else:
        path.write_bytes({"bits": raw[:-1] + b"\x55", "short": raw[:-1], "longer": raw + b"x"}[how])
    with pytest.raises((EngineIntegrityError, ManifestError)):
        open_backend(engine, manifest, Request(runtime=runtime, threads=1))


# ---------------------------------------------------------------------------------------------------------
# Races


def swapping(path: Path, contents: tuple[bytes, bytes], stop: threading.Event, *, in_place: bool) -> None:
    while not stop.is_set():
        for raw in contents:
            if in_place:
                with path.open("r+b") as stream:
                    stream.write(raw)
            else:
                part = path.with_name(".swap")
                part.write_bytes(raw)
                part.replace(path)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("file", ["step.onnx", "step.data"])
def test_no_race_with_somebody_who_swaps_the_file_runs_the_other_graph(
    tmp_path: Path, runtime: str, file: str, in_place: bool
) -> None:
    engine = (
        external_dir(tmp_path / "engine") if file == "step.data" else make_engine_dir(tmp_path / "engine")
    )
    wanted = answer(opened(engine, runtime))
    good = (engine / file).read_bytes()
    bad = bytearray(good)
    weights = np.frombuffer(onnx_weights(engine, file), np.float32)
    at = good.index(weights.tobytes())
    bad[at : at + weights.nbytes] = (weights * -3).tobytes()
    manifest = m.load_manifest(engine, verify=False)
    stop, ran, refused = threading.Event(), 0, 0
    thread = threading.Thread(
        target=swapping, args=(engine / file, (good, bytes(bad)), stop), kwargs={"in_place": in_place}
    )
    thread.start()
    try:
        for _ in range(200):
            if min(ran, refused) >= (6 if runtime == "onnx" else 2):
                break
            try:
                backend = open_backend(engine, manifest, Request(runtime=runtime, threads=1))
            except EngineIntegrityError:
                refused += 1
                continue
            ran += 1
            assert np.array_equal(answer(backend), wanted), "the altered graph ran"
            backend.close()
    finally:
        stop.set()
        thread.join()
    assert ran, "it was never whole when it was opened: nothing was tried"
    assert refused, "it was never another one when it was opened: nothing was tried"


def onnx_weights(engine: Path, file: str) -> bytes:
    if file == "step.data":
        return (engine / file).read_bytes()[64:]
    weights = [t for t in onnx.load(engine / file).graph.initializer if t.dims]
    return bytes(weights[0].raw_data)


def test_a_file_swapped_after_its_check_is_not_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    engine = external_dir(tmp_path / "engine")
    wanted = answer(opened(engine, "onnx"))
    session = onnxruntime.InferenceSession

    def swap_and_open(*arguments: Any, **options: Any) -> Any:
        for name in ("encoder.onnx", "step.onnx", "decoder.onnx", "step.data"):
            (engine / name).write_bytes(b"somebody else's")
        return session(*arguments, **options)

    backend = read_then(monkeypatch, onnxruntime, swap_and_open, engine)
    assert np.array_equal(answer(backend), wanted)


def read_then(
    monkeypatch: pytest.MonkeyPatch, module: Any, opening: Callable[..., Any], engine: Path
) -> OrtBackend:
    """Open `engine` with every file swapped between its check and its session."""
    read = ort.read_graph
    graphs = {a.file: read(engine, a) for a in ort.pick_onnx(m.load_manifest(engine), engine).values()}
    monkeypatch.setattr(ort, "read_graph", lambda root, artifact, **_: graphs[artifact.file])
    monkeypatch.setattr(module, "InferenceSession", opening)
    return OrtBackend(engine, threads=1)


# ---------------------------------------------------------------------------------------------------------
# Where tensors hide


def graph_of(model: onnx.ModelProto, tmp_path: Path) -> Graph:
    raw = model.SerializeToString()
    (tmp_path / "g.onnx").write_bytes(raw)
    (tmp_path / "w").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    record, weights = m.file_record(tmp_path / "g.onnx"), m.file_record(tmp_path / "w")
    artifact = m.Artifact(
        runtime="onnx",
        precision="fp32",
        file="g.onnx",
        sha256=record.sha256,
        bytes=record.bytes,
        external=(weights,),
    )
    return read_graph(tmp_path, artifact)


def external_tensor(location: str = "w", **entries: str) -> TensorProto:
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    for key, value in entries.items():
        tensor.external_data.add(key=key.lower(), value=value)
    return tensor


def hiding(place: str, tensor: TensorProto) -> onnx.ModelProto:
    """Make a model with `tensor` at a place where a tensor can be."""
    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor)], "inner", [], [])
    nodes: list[Any] = []
    model = helper.make_model(helper.make_graph([], "outer", [], []))
    if place == "initializer":
        model.graph.initializer.append(tensor)
    elif place == "attribute":
        nodes.append(helper.make_node("Constant", [], ["c"], value=tensor))
    elif place == "attribute list":
        attribute = helper.make_attribute("values", [tensor])
        nodes.append(helper.make_node("Constant", [], ["c"]))
        nodes[0].attribute.append(attribute)
    elif place == "subgraph":
        nodes.append(helper.make_node("If", ["b"], ["c"], then_branch=inner, else_branch=inner))
    elif place == "sparse":
        sparse = onnx.SparseTensorProto(dims=[4])
        sparse.values.CopyFrom(tensor)
        model.graph.sparse_initializer.append(sparse)
    elif place == "function":
        function = onnx.FunctionProto(name="f", domain="d")
        function.node.append(helper.make_node("Constant", [], ["c"], value=tensor))
        model.functions.append(function)
    elif place == "training":
        model.training_info.add().initialization.initializer.append(tensor)
    model.graph.node.extend(nodes)
    return model


PLACES = ("initializer", "attribute", "attribute list", "subgraph", "sparse", "function", "training")


@pytest.mark.parametrize("place", PLACES)
def test_external_tensors_are_found_wherever_they_are_and_come_inside(tmp_path: Path, place: str) -> None:
    graph = graph_of(hiding(place, external_tensor(offset="4", length="8")), tmp_path)
    assert graph.external == {"w": (tmp_path / "w").read_bytes()}
    inside = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[4])
    inside.raw_data = np.arange(1, 3, dtype=np.float32).tobytes()
    found = onnx.load_from_string(graph.inlined())
    assert found == onnx.load_from_string(hiding(place, inside).SerializeToString())
    with pytest.raises(EngineIntegrityError, match=r"takes weights from '\.hidden'"):
        graph_of(hiding(place, external_tensor(".hidden")), tmp_path)


@pytest.mark.parametrize("location", ["/etc/passwd", "../w", "a/../../w", "", "W", "."])
def test_locations_that_are_not_listed_are_refused(tmp_path: Path, location: str) -> None:
    with pytest.raises(EngineIntegrityError):
        graph_of(hiding("initializer", external_tensor(location)), tmp_path)


@pytest.mark.parametrize(
    "entries",
    [{"offset": "12", "length": "8"}, {"offset": "-4"}, {"offset": "99"}, {"length": "x"}, {"Location": "w"}],
)
def test_entries_that_make_no_sense_are_refused(tmp_path: Path, entries: dict[str, str]) -> None:
    with pytest.raises(EngineIntegrityError, match="not an ONNX graph that can be read"):
        graph_of(hiding("initializer", external_tensor(**entries)), tmp_path).inlined()


def test_files_that_only_an_execution_provider_would_open_are_refused(tmp_path: Path) -> None:
    node = helper.make_node("EPContext", [], ["c"], domain="com.microsoft", ep_cache_context="engine.bin")
    model = helper.make_model(helper.make_graph([node], "outer", [], []))
    with pytest.raises(EngineIntegrityError, match="EPContext"):
        graph_of(model, tmp_path)


def test_a_graph_without_external_data_is_handed_on_as_it_is(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "t")
    graph = graph_of(hiding("initializer", tensor), tmp_path)
    assert graph.external == {}
    assert graph.inlined() is graph.model


def test_cut_and_scrambled_graphs_are_an_integrity_error_or_read(tmp_path: Path) -> None:
    raw = hiding("subgraph", external_tensor()).SerializeToString()
    rng = np.random.default_rng(0)
    (tmp_path / "w").write_bytes(b"\0" * 16)
    weights = m.file_record(tmp_path / "w")
    refused = 0
    for trial in range(600):
        changed = bytearray(raw[: int(rng.integers(1, len(raw) + 1))] if trial % 2 else raw)
        for _ in range(int(rng.integers(0, 4))):
            changed[int(rng.integers(len(changed)))] = int(rng.integers(256))
        (tmp_path / "g.onnx").write_bytes(changed)
        record = m.file_record(tmp_path / "g.onnx")
        artifact = m.Artifact(
            runtime="onnx",
            precision="fp32",
            file="g.onnx",
            sha256=record.sha256,
            bytes=record.bytes,
            external=(weights,),
        )
        try:
            read_graph(tmp_path, artifact).inlined()
        except EngineIntegrityError:
            refused += 1
    assert refused > 100


def test_messages_inside_each_other_are_not_followed_without_end(tmp_path: Path) -> None:
    raw = b""
    for depth in range(3000):
        number = (6, 5, 1)[depth % 3]  # attribute.g, node.attribute, graph.node
        raw = onnx_graph._header(number, len(raw)) + raw
    raw = onnx_graph._header(7, len(raw)) + raw
    (tmp_path / "g.onnx").write_bytes(raw)
    record = m.file_record(tmp_path / "g.onnx")
    artifact = m.Artifact(
        runtime="onnx", precision="fp32", file="g.onnx", sha256=record.sha256, bytes=record.bytes
    )
    with pytest.raises(EngineIntegrityError, match="inside each other"):
        read_graph(tmp_path, artifact)
