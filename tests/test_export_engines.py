"""Engines: really built by TensorRT-RTX where it is installed, and by a stand-in for what needs a GPU."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("filelock")

import helpers
import yonos_export.tensorrt_module as machine
from yonos_export import ExportConfig, export
from yonos_export.comparison import command
from yonos_export.config import Thresholds
from yonos_export.engine_from_onnx import build_engine
from yonos_export.engine_options import EngineOptions, profile_shapes
from yonos_export.lock import only_builder
from yonos_export.model_info import ModelInfo
from yonos_export.tensorrt_module import find_gpu

from yonos_trt.cuda.probe import Device, DriverFacts
from yonos_trt.engine.manifest import Artifact, EngineManifest, load_manifest, save_manifest
from yonos_trt.errors import (
    BuildError,
    ConfigError,
    EngineDeviceError,
    EngineIntegrityError,
    EngineVersionError,
    MissingExtraError,
)
from yonos_trt.trt.artifacts import pick_engines, read_engine, read_header

RTX = EngineOptions(runtime="tensorrt-rtx")


@pytest.fixture
def graphs(tmp_path: Path) -> Path:
    """A small engine directory with FP32 graphs."""
    return helpers.make_engine_dir(tmp_path / "source")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with graphs in FP32 and FP16 and with FP16 engines for two kinds of GPU."""
    pytest.importorskip("tensorrt_rtx")
    folder = helpers.make_engine_dir(tmp_path_factory.mktemp("engines") / "model")
    export(
        ExportConfig(
            source=folder,
            engine_dir=folder,
            precision="fp16",
            runtime="tensorrt-rtx",
            compute_capabilities=("8.6", "8.9"),
            batch=2,
            verify_tile_px=128,
        )
    )
    return folder


def _engines(manifest: EngineManifest) -> dict[str, Artifact]:
    return {name: stage.find("tensorrt-rtx", "fp16")[0] for name, stage in manifest.stages.items()}


def _shapes(folder: Path, stage: str) -> Any:
    info = ModelInfo.of(load_manifest(folder))
    return profile_shapes(info, ExportConfig(source=folder, engine_dir=folder, runtime="tensorrt-rtx"))[stage]


# ---------------------------------------------------------------------------------------------------------
# Built for real


def test_export_adds_fp16_graphs_and_engines_to_a_directory_that_loads(built: Path) -> None:
    manifest = load_manifest(built, verify=True)
    for name, stage in manifest.stages.items():
        kinds = [(a.runtime, a.precision) for a in stage.artifacts]
        assert kinds == [("onnx", "fp32"), ("onnx", "fp16"), ("tensorrt-rtx", "fp16")]
        figures = manifest.parity.stages[name]["fp16"]  # type: ignore[index]
        assert figures.cosine > 0.999
    assert manifest.parity.end_to_end_psnr_db["fp16"] is not None
    compared = [f"{s}.{kind}.json" for s in ("encoder", "step", "decoder") for kind in ("inputs", "outputs")]
    assert [r.file for r in manifest.files] == ["fp16.ranges.json", *compared]


def test_manifest_tells_what_each_engine_is_for(built: Path) -> None:
    manifest = load_manifest(built)
    for name, artifact in _engines(manifest).items():
        assert artifact.compute_capability == ("8.6", "8.9")
        assert artifact.gpu is None
        assert artifact.tensorrt_version is not None
        (profile,) = artifact.profiles
        for tensor, shapes in profile.inputs.items():
            stage_inputs = [t.name for t in getattr(manifest.stages, name).inputs]
            assert tensor in stage_inputs
            assert shapes.min[0] == 1
            assert shapes.opt[0] == shapes.max[0] == 2
            assert shapes.min[2] < shapes.opt[2] < shapes.max[2]
    step = _engines(manifest)["step"].profiles[0].inputs
    assert step["noise"] == step["z_l"]


def test_plan_header_agrees_with_the_manifest(built: Path) -> None:
    for artifact in _engines(load_manifest(built)).values():
        raw = read_engine(built, artifact)
        header = read_header(raw)
        assert header is not None
        assert ".".join(map(str, header.version)) == artifact.tensorrt_version
        assert header.length_bytes == len(raw)


@pytest.mark.parametrize("damage", ["altered", "truncated", "swapped"])
def test_damaged_engine_is_refused(built: Path, tmp_path: Path, damage: str) -> None:
    import shutil

    folder = Path(shutil.copytree(built, tmp_path / "copy"))
    engines = _engines(load_manifest(folder))
    path = folder / engines["decoder"].file
    raw = bytearray(path.read_bytes())
    if damage == "altered":
        raw[len(raw) // 2] ^= 1
    elif damage == "truncated":
        del raw[-100:]
    else:
        raw = bytearray((folder / engines["encoder"].file).read_bytes())
    path.write_bytes(raw)
    with pytest.raises(EngineIntegrityError, match="yonos-export"):
        read_engine(folder, engines["decoder"])
    with pytest.raises(EngineIntegrityError):
        load_manifest(folder, verify=True)


def test_engine_of_another_version_or_gpu_is_not_picked(built: Path) -> None:
    manifest = load_manifest(built)
    version = _engines(manifest)["step"].tensorrt_version or ""

    def pick(version: str, capability: tuple[int, int]) -> dict[str, Artifact]:
        return pick_engines(
            manifest, built, runtime="tensorrt-rtx", tensorrt_version=version, compute_capability=capability
        )

    assert pick(version, (8, 9)) == _engines(manifest)
    with pytest.raises(EngineDeviceError, match=r"8\.6, 8\.9.*has 12\.0.*yonos-export"):
        pick(version, (12, 0))
    with pytest.raises(EngineVersionError, match=r"installed is 1\.8\.0\.1.*yonos-export"):
        pick("1.8.0.1", (8, 9))


def test_plan_of_another_version_than_the_manifest_says_is_refused(built: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(built, tmp_path / "copy"))
    engine = _engines(load_manifest(folder))["step"]
    helpers.edit_manifest(
        folder,
        lambda document: document["stages"]["step"]["artifacts"][2].update(tensorrt_version="1.6.0.99"),
    )
    changed = _engines(load_manifest(folder))["step"]
    assert changed.file == engine.file
    with pytest.raises(EngineVersionError, match=r"1\.6\.0\.99"):
        read_engine(folder, changed)


def test_second_export_keeps_the_first_and_replaces_its_own(built: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(built, tmp_path / "copy"))
    before = load_manifest(folder)
    config = ExportConfig(
        source=folder, engine_dir=folder, runtime="tensorrt-rtx", verify=False, compute_capabilities=("12.0",)
    )
    export(config)
    once = load_manifest(folder, verify=True)
    export(config)
    twice = load_manifest(folder, verify=True)
    for name, stage in twice.stages.items():
        assert stage.artifacts[:3] == getattr(before.stages, name).artifacts
        assert len(stage.artifacts) == len(getattr(once.stages, name).artifacts) == 4
        assert (stage.artifacts[3].precision, stage.artifacts[3].compute_capability) == ("fp32", ("12.0",))
    assert twice.parity == before.parity


def test_progress_is_told_and_grows(graphs: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    seen: list[float] = []
    out = tmp_path / "step.engine"
    build_engine(graphs / "step.onnx", out, _shapes(graphs, "step"), RTX, stage="step", progress=seen.append)
    assert out.is_file()
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_cancelled_build_writes_nothing(graphs: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    stop = threading.Event()
    with pytest.raises(KeyboardInterrupt):
        build_engine(
            graphs / "step.onnx",
            tmp_path / "step.engine",
            _shapes(graphs, "step"),
            RTX,
            stage="step",
            stop=stop,
            progress=lambda done: stop.set(),
        )
    assert not list(tmp_path.glob("step.engine*"))


# In a process of its own, as `yonos-export` is: pytest's fault handler puts a small alternative stack under
# signal handlers, on which the kernel could not always lay the frame of this signal.
_INTERRUPTED = """
import json, os, pathlib, signal, sys
from yonos_export.comparison import command
from yonos_export.config import Thresholds
from yonos_export.engine_from_onnx import build_engine
from yonos_export.engine_options import EngineOptions

graph, engine = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
shapes = {name: [tuple(shape) for shape in three] for name, three in json.loads(sys.argv[3]).items()}
before = signal.getsignal(signal.SIGINT)
try:
    build_engine(graph, engine, shapes, EngineOptions(runtime="tensorrt-rtx"), stage="step",
                 progress=lambda done: os.kill(os.getpid(), signal.SIGINT))
except KeyboardInterrupt:
    assert signal.getsignal(signal.SIGINT) is before
    sys.exit(130)
"""


def test_ctrl_c_cancels_the_build(graphs: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    engine, shapes = tmp_path / "step.engine", json.dumps(_shapes(graphs, "step"))
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, str(graphs / "step.onnx"), str(engine), shapes],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert done.returncode == 130, done.stderr
    assert not list(tmp_path.glob("step.engine*"))


def test_shapes_that_do_not_fit_the_graph_are_explained(graphs: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    shapes = {name: [(1, 5, 8, 8)] * 3 for name in _shapes(graphs, "step")}
    with pytest.raises(BuildError, match=r"the shapes do not fit the graph; check --min-shape"):
        build_engine(graphs / "step.onnx", tmp_path / "e", shapes, RTX, stage="step")


def test_unknown_operation_is_named(graphs: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    import onnx

    model = onnx.load(graphs / "decoder.onnx")
    model.graph.node[0].op_type, model.graph.node[0].name = "Frobnicate", "decoder.first/Frobnicate"
    model.graph.node[0].domain = "made.up"
    model.opset_import.append(onnx.helper.make_opsetid("made.up", 1))
    onnx.save(model, tmp_path / "decoder.onnx")
    with pytest.raises(BuildError, match=r"decoder\.first/Frobnicate' \(Frobnicate\)"):
        build_engine(tmp_path / "decoder.onnx", tmp_path / "e", {}, RTX, stage="decoder")


def test_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    with pytest.raises(BuildError, match=r"bad\.onnx|the graph"):
        build_engine(tmp_path / "bad.onnx", tmp_path / "e", {}, RTX, stage="step")


def test_replaceable_weights_without_a_gpu_are_explained(graphs: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    from yonos_trt.cuda.probe import probe_driver

    if probe_driver().devices:
        pytest.skip("this machine has a GPU")
    options = dataclasses.replace(RTX, strip_weights=True)
    with pytest.raises(BuildError, match="need a GPU to be built"):
        build_engine(graphs / "step.onnx", tmp_path / "e", _shapes(graphs, "step"), options, stage="step")


def test_unknown_compute_capability_lists_the_known_ones(graphs: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    options = dataclasses.replace(RTX, compute_capabilities=("6.1",))
    with pytest.raises(ConfigError, match=r"'6\.1'.*it knows .*8\.6"):
        build_engine(graphs / "step.onnx", tmp_path / "e", _shapes(graphs, "step"), options, stage="step")


@pytest.mark.slow
def test_polygraphy_repeats_the_comparison_that_the_export_prints(built: Path, tmp_path: Path) -> None:
    """Its ONNX Runtime and its builder run here for real; on a GPU the same command runs the engine."""
    pytest.importorskip("polygraphy")
    manifest = load_manifest(built)
    said = command(manifest, built, "fp16", 60.0)
    assert said is not None
    assert said.startswith(f"(cd {built} && for stage in encoder step decoder; do polygraphy run ")
    program = [
        sys.executable,
        "-c",
        "from polygraphy.tools import main; raise SystemExit(main())",
    ]  # what its script runs
    here = said.replace("polygraphy run", f"{shlex.join(program)} run")
    here = here.replace("--trt --strongly-typed", "--onnxrt")
    for limit, code in (("60", 0), ("200", 1)):
        line = here.replace("--psnr-threshold 60", f"--psnr-threshold {limit}")
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == code, done.stdout + done.stderr
    build = [*program, "convert", "decoder.fp16.onnx", "--strongly-typed"]
    shapes = [
        f"--trt-{k}-shapes=z_0:[1,{manifest.model.channels('z_0')},16,16]" for k in ("min", "opt", "max")
    ]
    done = subprocess.run(
        [*build, "--convert-to", "trt", *shapes, "-o", str(tmp_path / "decoder.engine")],
        cwd=built,
        env={**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_header((tmp_path / "decoder.engine").read_bytes()) is not None


def test_a_users_quantised_graph_is_built_and_gated_like_any_other(graphs: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    manifest = load_manifest(graphs)

    class Latents(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            random = np.random.default_rng(0)
            shape = 1, model.channels("z_0"), 32, 32
            self.left = [random.standard_normal(shape).astype(np.float32) for _ in range(4)]

        def get_next(self) -> dict[str, Any] | None:
            return {"z_0": self.left.pop()} if self.left else None

    model, record = manifest.model, manifest.stages.decoder.find("onnx", "fp32")[0]
    quantize_static(
        graphs / record.file,
        tmp_path / "q.onnx",
        Latents(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        extra_options={"ActivationSymmetric": True},
    )
    raw = (tmp_path / "q.onnx").read_bytes()
    assert b"DequantizeLinear" in raw
    (graphs / record.file).write_bytes(raw)
    helpers.edit_manifest(
        graphs,
        lambda document: document["stages"]["decoder"]["artifacts"][0].update(
            sha256=hashlib.sha256(raw).hexdigest(), bytes=len(raw)
        ),
    )
    config = ExportConfig(
        source=graphs, engine_dir=tmp_path / "out", runtime="tensorrt-rtx", batch=1, verify_tile_px=64
    )
    export(config)
    engine = load_manifest(tmp_path / "out").stages.decoder.find("tensorrt-rtx", "fp32")[0]
    assert read_header(read_engine(tmp_path / "out", engine)) is not None
    # In FP16 values fall on the other side of a step here and there: measured, and refused if too far.
    half = dataclasses.replace(config, engine_dir=tmp_path / "half", precision="fp16", runtime="onnx")
    with pytest.raises(BuildError, match="decoder: PSNR"):
        export(dataclasses.replace(half, thresholds=Thresholds(0.999, 90.0, 30.0)))
    gated = export(dataclasses.replace(half, thresholds=Thresholds(0.999, 40.0, 30.0)))
    assert gated is not None
    assert gated.parity.stages["decoder"]["fp16"].psnr_db is not None


def test_the_real_builder_takes_every_setting() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    from yonos_export.engine_from_onnx import _configure

    config = trt.Builder(trt.Logger()).create_builder_config()
    assert not config.get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    _configure(trt, config, RTX)
    assert config.get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED
    resize = getattr(trt.PreviewFeature, "RUNTIME_ACTIVATION_RESIZE_10_10", None)
    assert resize is None or config.get_preview_feature(resize)


LITE_X4 = Path(__file__).resolve().parents[1] / "yonos_trt" / "models" / "lite-x4"


def test_fixed_filters_are_slices_and_sums_in_engines_and_convolutions_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: Any
) -> None:
    import onnx

    seen: dict[str, Any] = {}

    class Parser(fake.OnnxParser):  # type: ignore[misc]
        def parse_from_file(self, path: str) -> bool:
            seen[Path(path).name.partition(".")[0]] = onnx.load(path)
            return True

    monkeypatch.setattr(fake, "OnnxParser", Parser)
    monkeypatch.setattr(machine, "load_module", lambda runtime: fake)
    config = ExportConfig(
        source=LITE_X4, engine_dir=tmp_path / "out", runtime="tensorrt", precision="fp16", verify_tile_px=64
    )
    export(config)

    def filters(model: Any) -> list[int]:
        return [a.i for n in model.graph.node for a in n.attribute if a.name == "group" and a.i > 1]

    def count(kind: str) -> int:
        return sum(node.op_type == kind for node in seen["decoder"].graph.node)

    assert filters(seen["decoder"]) == []
    assert (count("Slice"), count("Mul")) == (2 * 2 * 5 + 8, 2 * 2 * 3 + 1)
    kept = load_manifest(tmp_path / "out").stages.decoder.find("onnx", "fp16")[0]
    assert filters(onnx.load(tmp_path / "out" / kept.file)) == [32, 3]
    # weights that are filled in later come from the kept graph, whose names they have
    export(dataclasses.replace(config, engine_dir=tmp_path / "s", strip_weights=True, verify=False))
    assert filters(seen["decoder"]) == [32, 3]


def kernels_in(plan: bytes) -> list[str]:
    """What an engine launches, in its order: a plan that is built as ours holds its program as text."""
    programs = re.findall(rb"\nmain \{\n(.*?)\n[a-z_]+ \{", plan, re.DOTALL)
    step = re.compile(rb'^  (?!shape_call)[a-z_0-9]+=\{ name="?([^\s"]+)', re.MULTILINE)
    # Parts of a large network have programs of their own, and after the last one come the weights.
    return [name.decode() for name in max(map(step.findall, programs), key=len)]


@pytest.mark.slow
def test_the_decoder_has_24_kernels_with_its_filters_as_sums_and_27_without(tmp_path: Path) -> None:
    """Pixel-shuffle, border and filter are one kernel, twice; docs/runtime.md has the list of all borders."""
    trt = pytest.importorskip("tensorrt_rtx")
    from yonos_export.fp16 import convert
    from yonos_export.islands import tail
    from yonos_export.onnx_from_torch import load_graph, save_graph
    from yonos_export.separable import separate_filters

    model = load_graph(LITE_X4 / "decoder.onnx")
    convert(model, "fp16", islands=tail(model))
    shapes = {"z_0": ((1, 16, 16, 16), (4, 16, 128, 128), (8, 16, 256, 256))}
    found = []
    for name in ("convolutions", "sums"):
        if name == "sums":
            assert separate_filters(model) == 2
        save_graph(model, tmp_path / f"{name}.onnx")
        engine = tmp_path / f"{name}.engine"
        build_engine(tmp_path / f"{name}.onnx", engine, shapes, RTX, stage="decoder", module=trt)
        found.append(kernels_in(engine.read_bytes()))
    assert [len(kernels) for kernels in found] == [27, 24]
    others = {
        "encoder": {"image": ((1, 3, 64, 64), (4, 3, 512, 512), (8, 3, 1024, 1024))},
        "step": dict.fromkeys(("noise", "z_l"), ((1, 16, 16, 16), (4, 16, 128, 128), (8, 16, 256, 256))),
    }
    counts = {}
    for stage, sizes in others.items():
        model = load_graph(LITE_X4 / f"{stage}.onnx")
        convert(model, "fp16", islands=tail(model))
        save_graph(model, tmp_path / f"{stage}.onnx")
        build_engine(
            tmp_path / f"{stage}.onnx", tmp_path / "built.engine", sizes, RTX, stage=stage, module=trt
        )
        counts[stage] = len(kernels_in((tmp_path / "built.engine").read_bytes()))
    assert counts == {"encoder": 10, "step": 32}
    assert found[1][0] == "__myl_CastMulAdd"  # the cast at the border is part of the first kernel
    assert "Slic" in found[1][-1]  # no cast, no transposition after the filter


@pytest.mark.parametrize("name", ["lite-x4", "lite-x8"])
def test_a_decoder_with_its_filters_as_sums_gives_the_same_picture(name: str, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    from yonos_export.onnx_from_torch import load_graph, save_graph
    from yonos_export.separable import separate_filters

    path = LITE_X4.with_name(name) / "decoder.onnx"
    model = load_graph(path)
    assert separate_filters(model) == 2
    assert separate_filters(model) == 0
    save_graph(model, tmp_path / "sums.onnx")
    right, sums = (ort.InferenceSession(str(p)) for p in (path, tmp_path / "sums.onnx"))
    for h, w in ((5, 9), (16, 12)):
        z = np.random.default_rng(h).standard_normal((2, 16, h, w)).astype(np.float32)
        assert np.abs(right.run(None, {"z_0": z})[0] - sums.run(None, {"z_0": z})[0]).max() < 1e-6


def test_only_a_column_times_a_row_alike_on_every_channel_is_taken_apart() -> None:
    ir = pytest.importorskip("onnx_ir")
    from yonos_export.separable import taps_of

    taps = np.array([-1, 4, 10, 4, -1]) / 16

    def node(weight: Any, **attributes: Any) -> Any:
        given = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT))
        value = ir.Value(name="w", const_value=ir.tensor(np.asarray(weight, np.float32)))
        return ir.node("Conv", [given, value], attributes={"group": 3, **attributes})

    kernel = np.broadcast_to(np.outer(taps, taps), (3, 1, 5, 5))
    assert np.allclose(taps_of(node(kernel)), taps)
    others = [node(kernel, pads=[2, 2, 2, 2]), node(kernel, strides=[2, 2]), node(kernel, group=1)]
    others += [node(kernel * np.array([1, 1, 2]).reshape(3, 1, 1, 1)), node(kernel + np.eye(5) / 99)]
    others += [node(np.broadcast_to(np.outer(taps, taps**2), (3, 1, 5, 5))), node(kernel[..., :4, :4])]
    assert [taps_of(other) for other in others] == [None] * len(others)


@pytest.mark.slow
def test_attention_to_a_constant_prompt_is_one_kernel(tmp_path: Path) -> None:
    """Of the size that Stable Diffusion 1.5 and 2.1 have first."""
    trt = pytest.importorskip("tensorrt_rtx")
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from yonos_export.diffusers_networks import ConstantContext

    class Attention(torch.nn.Module):  # type: ignore[misc, name-defined]
        heads = 5

        def __init__(self) -> None:
            super().__init__()
            self.to_q = torch.nn.Linear(320, 320, bias=False)
            self.to_out = torch.nn.ModuleList([torch.nn.Linear(320, 320)])
            self.context = ConstantContext(*torch.randn(2, 1, 5, 77, 64).half())

        def forward(self, x: Any) -> Any:
            return self.context(self, x)

    free = {0: torch.export.Dim("n", min=1, max=32), 1: torch.export.Dim("l", min=16, max=16384)}
    example = torch.randn(2, 64, 320).half()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Attention().half().eval(), (example,), dynamo=True, opset_version=20, dynamic_shapes=(free,)
        )
    program.save(tmp_path / "attention.onnx")
    shapes = {program.model.graph.inputs[0].name: ((1, 1024, 320), (4, 4096, 320), (8, 4096, 320))}
    options = EngineOptions(runtime="tensorrt-rtx")
    graph, engine = tmp_path / "attention.onnx", tmp_path / "attention.engine"
    build_engine(graph, engine, shapes, options, stage="step", module=trt)
    plan = engine.read_bytes()
    assert b"_gemm_mha_v2" in plan
    assert b"ExpSumDiv" not in plan  # a softmax of its own
    assert len(kernels_in(plan)) == 7


# ---------------------------------------------------------------------------------------------------------
# What needs no builder


def test_profile_takes_the_models_tiles_and_refuses_others(graphs: Path) -> None:
    info = ModelInfo.of(load_manifest(graphs))
    unit = info.tiles.multiple_px

    def shapes(**changes: Any) -> dict[str, Any]:
        return profile_shapes(info, ExportConfig(source=graphs, engine_dir=graphs, **changes))

    low, best, high = shapes(batch=3)["decoder"]["z_0"]
    c, f = info.model.latent_channels, info.model.latent_factor
    assert low == (1, c, info.tiles.smallest_px // f, info.tiles.smallest_px // f)
    assert best == (3, c, info.tiles.default_px // f, info.tiles.default_px // f)
    assert high == (3, c, info.tiles.largest_px // f, info.tiles.largest_px // f)
    default = [shape[0] for shape in shapes()["decoder"]["z_0"]]
    assert default == [1, 4, 8]
    tall = shapes(opt_shape=(10 * unit, 4 * unit))["encoder"]["image"][1]
    assert tall == (4, 3, 10 * unit, 4 * unit)
    with pytest.raises(ConfigError, match=f"opt_shape is .*multiples of {unit} px"):
        shapes(opt_shape=(10 * unit + 1, 4 * unit))
    with pytest.raises(ConfigError, match="min_shape <= opt_shape <= max_shape"):
        shapes(max_shape=(4 * unit, 4 * unit))


def test_two_exports_into_one_directory_do_not_meet(tmp_path: Path, graphs: Path) -> None:
    target = tmp_path / "out"
    with only_builder(target), pytest.raises(BuildError, match="another export is writing"):
        export(ExportConfig(source=graphs, engine_dir=target))
    assert not target.exists()
    export(ExportConfig(source=graphs, engine_dir=target))
    load_manifest(target)
    assert not list(tmp_path.glob(".*"))


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class FakeTensorRT:
    """As much of the module `tensorrt` as the builder uses; writes what it was asked for into the plan."""

    __version__ = "11.2.0.50"

    class ILogger:
        Severity = Severity

        def __init__(self) -> None:
            pass

    class IProgressMonitor:
        def __init__(self) -> None:
            pass

    class NetworkDefinitionCreationFlag(enum.IntEnum):
        STRONGLY_TYPED = 1

    class MemoryPoolType(enum.Enum):
        WORKSPACE = "workspace"

    class BuilderFlag(enum.Enum):
        VERSION_COMPATIBLE = "version"
        REFIT = "refit"
        REFIT_IDENTICAL = "identical"
        STRIP_PLAN = "strip"

    class ProfilingVerbosity(enum.Enum):
        DETAILED = "detailed"

    class PreviewFeature(enum.Enum):
        RUNTIME_ACTIVATION_RESIZE_10_10 = "resize"

    class HardwareCompatibilityLevel(enum.Enum):
        AMPERE_PLUS = "ampere"
        SAME_COMPUTE_CAPABILITY = "same"

    class Cache:
        def __init__(self, raw: bytes) -> None:
            self.raw = raw

        def serialize(self) -> bytes:
            return self.raw + b"+"

    class Profile:
        def __init__(self) -> None:
            self.shapes: dict[str, Any] = {}

        def set_shape(self, name: str, *shapes: Any) -> None:
            self.shapes[name] = shapes

    class Config:
        def __init__(self) -> None:
            self.said: list[Any] = []
            self.cache: Any = None
            self.progress_monitor: Any = None
            self.builder_optimization_level = 3
            self.hardware_compatibility_level: Any = None
            self.profiling_verbosity: Any = None
            self.features: dict[Any, bool] = {}

        def set_memory_pool_limit(self, pool: Any, size: int) -> None:
            self.said.append((pool, size))

        def set_preview_feature(self, feature: Any, enabled: bool) -> None:
            self.features[feature] = enabled

        def set_flag(self, flag: Any) -> None:
            self.said.append(flag)

        def add_optimization_profile(self, profile: Any) -> None:
            self.said.append(profile.shapes)

        def create_timing_cache(self, raw: bytes) -> Any:
            return FakeTensorRT.Cache(raw)

        def set_timing_cache(self, cache: Any, ignore: bool) -> bool:
            assert not ignore
            self.cache = cache
            return not cache.raw.startswith(b"foreign")

        def get_timing_cache(self) -> Any:
            return self.cache

    class OnnxParser:
        def __init__(self, network: Any, logger: Any) -> None:
            self.num_errors = 0

        def parse_from_file(self, path: str) -> bool:
            return Path(path).is_file()

    class Builder:
        errors: ClassVar[list[str]] = []
        configs: ClassVar[list[Any]] = []
        network_flags: ClassVar[list[int]] = []

        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def create_network(self, flags: int) -> Any:
            self.network_flags.append(flags)
            return object()

        def create_builder_config(self) -> Any:
            self.configs.append(FakeTensorRT.Config())
            return self.configs[-1]

        def create_optimization_profile(self) -> Any:
            return FakeTensorRT.Profile()

        def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
            for text in self.errors:
                self.logger.log(Severity.ERROR, text)
            return None if self.errors else b"a plan"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeTensorRT]:
    monkeypatch.setattr(FakeTensorRT.Builder, "errors", [])
    monkeypatch.setattr(FakeTensorRT.Builder, "configs", [])
    monkeypatch.setattr(FakeTensorRT.Builder, "network_flags", [])
    monkeypatch.setattr(machine, "find_gpu", lambda device: ("Stand-in 3000", ("8.6",)))
    monkeypatch.setattr(machine, "on_gpu", lambda device: nullcontext())
    return FakeTensorRT


SHAPES = {"z_0": ((1, 4, 8, 8), (2, 4, 64, 64), (2, 4, 128, 128))}


def _build(fake: Any, folder: Path, **options: Any) -> Any:
    (folder / "decoder.onnx").write_bytes(b"")
    return build_engine(
        folder / "decoder.onnx",
        folder / "decoder.engine",
        SHAPES,
        EngineOptions(runtime="tensorrt", **options),
        stage="decoder",
        module=fake,
    )


def test_tensorrt_is_told_every_option(fake: Any, tmp_path: Path) -> None:
    built = _build(
        fake,
        tmp_path,
        workspace_mb=512,
        builder_optimization_level=5,
        hardware_compatibility="ampere-plus",
        version_compatible=True,
        refit=True,
        strip_weights=True,
    )
    (config,) = fake.Builder.configs
    flags = fake.BuilderFlag
    assert fake.Builder.network_flags == [2]  # strongly typed
    assert config.said == [
        (fake.MemoryPoolType.WORKSPACE, 512 << 20),
        flags.VERSION_COMPATIBLE,
        flags.REFIT,
        flags.STRIP_PLAN,
        SHAPES,
    ]
    assert config.builder_optimization_level == 5
    assert config.profiling_verbosity is fake.ProfilingVerbosity.DETAILED
    assert config.features == {fake.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10: True}
    assert config.hardware_compatibility_level is fake.HardwareCompatibilityLevel.AMPERE_PLUS
    assert (built.gpu, built.compute_capability) == ("Stand-in 3000", ("8.6",))
    assert built.tensorrt_version == "11.2.0.50"
    assert built.path.read_bytes() == b"a plan"


def test_stripped_engine_is_built_for_the_same_weights_and_registered_so(
    graphs: Path, monkeypatch: pytest.MonkeyPatch, fake: Any
) -> None:
    monkeypatch.setattr(machine, "load_module", lambda runtime: fake)
    config = ExportConfig(
        source=graphs, engine_dir=graphs, runtime="tensorrt", strip_weights=True, verify=False
    )
    export(config)
    flags = fake.BuilderFlag
    assert fake.Builder.configs[0].said[:2] == [flags.STRIP_PLAN, flags.REFIT_IDENTICAL]
    assert load_manifest(graphs).stages.step.find("tensorrt")[0].stripped


def test_timing_cache_is_kept_per_gpu_and_version(fake: Any, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for _ in range(2):
        _build(fake, tmp_path, timing_cache=cache)
    file = cache / "tensorrt-11.2.0.50-sm8.6.timing"
    assert file.read_bytes() == b"++"
    file.write_bytes(b"foreign")
    _build(fake, tmp_path, timing_cache=cache)
    assert file.read_bytes() == b"+"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            "Could not find any implementation for node conv_7.",
            r"no kernel for the node 'conv_7'.*--workspace",
        ),
        ("Cuda Runtime (out of memory)", r"memory ran out.*smaller --max-shape"),
        ("CUDA initialization failure with error: 35", r"no GPU can be used.*tensorrt-rtx"),
        (
            "Unable to load library: libnvinfer_lean.so.1: nothing",
            r"libnvinfer_lean\.so\.1.*--version-compat",
        ),
        ("Internal fault in layer 12", r"the builder failed.*said: Internal fault in layer 12"),
    ],
)
def test_builder_failures_name_cause_and_fix(fake: Any, tmp_path: Path, said: str, expected: str) -> None:
    fake.Builder.errors.append(said)
    with pytest.raises(BuildError, match=expected):
        _build(fake, tmp_path, workspace_mb=64)
    assert not (tmp_path / "decoder.engine").exists()


@pytest.mark.parametrize("version", ["10.12.0.36", "12.0.1", "8.6.1"])
def test_tensorrt_of_an_unknown_version_is_refused(fake: Any, tmp_path: Path, version: str) -> None:
    class Other(fake):  # type: ignore[misc]
        __version__ = version

    with pytest.raises(BuildError, match=rf"tensorrt {version} is installed, expected at least 10\.13"):
        _build(Other, tmp_path)


def test_missing_tensorrt_names_the_pip_command(graphs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(machine.importlib, "import_module", missing)
    for runtime, extra in (("tensorrt", "tensorrt"), ("tensorrt-rtx", "rtx")):
        with pytest.raises(MissingExtraError, match=rf"'\.\[{extra}\]'"):
            export(ExportConfig(source=graphs, engine_dir=graphs, runtime=runtime))  # type: ignore[arg-type]


def test_tensorrt_without_a_gpu_is_refused_before_the_work(
    graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "find_gpu", lambda device: (None, ()))
    monkeypatch.setattr(machine, "load_module", lambda runtime: FakeTensorRT)
    with pytest.raises(EngineDeviceError, match="--runtime tensorrt-rtx, which builds anywhere"):
        export(ExportConfig(source=graphs, engine_dir=tmp_path / "out", runtime="tensorrt"))
    assert not (tmp_path / "out").exists()


class FakeUpscaler:
    """Moves every pixel by `error` grey levels."""

    def __init__(self, error: int) -> None:
        self.error = error

    def __enter__(self) -> FakeUpscaler:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def upscale(self, picture: Any) -> Any:
        change = np.uint8(self.error)
        return np.where(picture >= 128, picture - change, picture + change)


def test_engines_that_can_run_are_held_against_the_graphs(
    graphs: Path, monkeypatch: pytest.MonkeyPatch, fake: Any
) -> None:
    asked: list[tuple[Any, ...]] = []

    def opened(error: int) -> Any:
        def make(folder: Path, *, runtime: str, precision: str, device: int, seed: int) -> Any:
            load_manifest(folder, verify=True)
            asked.append((runtime, precision, device, seed))
            return FakeUpscaler(error if runtime == "tensorrt" else 0)

        return make

    monkeypatch.setattr(machine, "load_module", lambda runtime: fake)
    monkeypatch.setattr("yonos_export.verify_engines.gpu_is_here", lambda: True)
    before = {p.name: p.read_bytes() for p in graphs.iterdir()}
    config = ExportConfig(
        source=graphs, engine_dir=graphs, precision="fp16", runtime="tensorrt", verify_tile_px=64, device=1
    )
    monkeypatch.setattr("yonos_trt.sr.SR", opened(9))
    with pytest.raises(BuildError, match=r"PSNR 29\.0 dB, at least 45\.0 asked for"):
        export(config)
    assert {p.name: p.read_bytes() for p in graphs.iterdir()} == before
    monkeypatch.setattr("yonos_trt.sr.SR", opened(1))
    export(config)
    assert load_manifest(graphs).stages.step.find("tensorrt", "fp16")
    assert asked == [("onnx", "fp32", 0, 0), ("tensorrt", "fp16", 1, 0)] * 2


def test_the_gpu_that_is_named_is_the_one_that_is_built_on(
    graphs: Path, monkeypatch: pytest.MonkeyPatch, fake: Any
) -> None:
    gpus = (Device(0, "First", "8.6", 1 << 30), Device(1, "Second", "8.9", 1 << 30))
    monkeypatch.setattr("yonos_trt.cuda.probe.probe_driver", lambda: DriverFacts("13.0", gpus, ""))
    monkeypatch.setattr(machine, "find_gpu", find_gpu)
    monkeypatch.setattr(machine, "load_module", lambda runtime: fake)
    monkeypatch.setattr("yonos_export.verify_engines.gpu_is_here", lambda: False)
    current: list[int] = []

    @contextmanager
    def on_gpu(device: int) -> Iterator[None]:
        current.append(device)
        yield
        current.append(-1)

    monkeypatch.setattr(machine, "on_gpu", on_gpu)
    config = ExportConfig(source=graphs, engine_dir=graphs, runtime="tensorrt", device=1)
    export(config)
    artifact = load_manifest(graphs).stages.decoder.find("tensorrt")[0]
    assert (artifact.gpu, artifact.compute_capability) == ("Second", ("8.9",))
    assert current == [1, -1]
    with pytest.raises(EngineDeviceError, match=r"device is 2.* 1 \(Second\); choose another --device"):
        export(dataclasses.replace(config, device=2))
    with pytest.raises(ConfigError, match="device is -1"):
        dataclasses.replace(config, device=-1)


def test_failing_build_leaves_the_old_directory(
    graphs: Path, monkeypatch: pytest.MonkeyPatch, fake: Any
) -> None:
    before = {p.name: p.read_bytes() for p in graphs.iterdir()}
    fake.Builder.errors.append("out of memory")
    monkeypatch.setattr(machine, "load_module", lambda runtime: fake)
    with pytest.raises(BuildError, match="memory ran out"):
        export(ExportConfig(source=graphs, engine_dir=graphs, runtime="tensorrt"))
    assert {p.name: p.read_bytes() for p in graphs.iterdir()} == before
    assert [p.name for p in graphs.parent.iterdir()] == [graphs.name]


def test_tensorrt_engine_is_registered_with_its_gpu(
    graphs: Path, monkeypatch: pytest.MonkeyPatch, fake: Any
) -> None:
    monkeypatch.setattr(machine, "load_module", lambda runtime: fake)
    export(ExportConfig(source=graphs, engine_dir=graphs, runtime="tensorrt", version_compatible=True))
    artifact = load_manifest(graphs).stages.decoder.find("tensorrt")[0]
    assert artifact.file == "decoder.fp32.trt-sm86-11.2.0.50.engine"
    assert (artifact.gpu, artifact.compute_capability) == ("Stand-in 3000", ("8.6",))
    assert artifact.version_compatible
    save_manifest(graphs, load_manifest(graphs))
