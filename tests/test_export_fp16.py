"""FP16 and BF16 graphs: who stays in FP32, what the range check sees, what the roundings do."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
ort = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from yonos_export.emulation import emulate  # noqa: E402
from yonos_export.fp16 import convert  # noqa: E402
from yonos_export.graph_file import GraphFile  # noqa: E402
from yonos_export.islands import matching, tail  # noqa: E402
from yonos_export.onnx_from_torch import load_graph, save_graph  # noqa: E402
from yonos_export.ranges import measure_ranges  # noqa: E402

from yonos_trt.errors import BuildError, ConfigError  # noqa: E402

Node = Any


def _graph(
    path: Path, nodes: list[Node], weights: dict[str, Any] | None = None, *, shape: tuple[Any, ...] = ("N",)
) -> GraphFile:
    """Write a graph x -> y with typed values in between."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = helper.make_graph(
        nodes,
        "g",
        values[:1],
        values[1:],
        [numpy_helper.from_array(np.asarray(a, np.float32), n) for n, a in (weights or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return GraphFile(path)


def _run(path: Path, x: Any, *, optimise: bool = False) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: np.asarray(x, np.float32)})[0]


def _types(path: Path) -> dict[str, int]:
    """Value -> element type, as the checker infers it."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
    return {
        v.name: v.type.tensor_type.elem_type
        for v in (*model.graph.value_info, *model.graph.input, *model.graph.output)
    }


def _node(kind: str, inputs: list[str], output: str, **attributes: Any) -> Node:
    return helper.make_node(kind, inputs, [output], name=f"n/{output}", **attributes)


# ---------------------------------------------------------------------------------------------------------
# The converter


def test_graph_computes_in_fp16_with_fp32_inputs_and_outputs(tmp_path: Path) -> None:
    graph = _graph(
        tmp_path / "g.onnx", [_node("Mul", ["x", "c"], "a"), _node("Add", ["a", "c"], "y")], {"c": 0.1}
    )
    model = load_graph(graph.path)
    done = convert(model, "fp16")
    out = save_graph(model, tmp_path / "low.onnx")
    types = _types(out.path)
    assert (done.low, done.islands, done.casts) == (2, (), 2)
    assert (types["x"], types["a"], types["y"]) == (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.FLOAT)
    (weight,) = onnx.load(out.path).graph.initializer
    assert weight.data_type == TensorProto.FLOAT16


def test_emulation_shows_the_rounding_and_the_overflow_that_onnx_runtime_hides(tmp_path: Path) -> None:
    graph = _graph(
        tmp_path / "g.onnx", [_node("Add", ["x", "x"], "a"), _node("Mul", ["a", "c"], "y")], {"c": 0.25}
    )
    model = load_graph(graph.path)
    convert(model, "fp16")
    real = save_graph(model, tmp_path / "low.onnx")
    x = [40000.0, 1.00025, -3e-8, 0.0]
    hidden = _run(real.path, x)
    assert np.isfinite(hidden).all()  # why `emulate` exists
    model = load_graph(real.path)
    emulate(model, "fp16")
    shown = save_graph(model, tmp_path / "emulated.onnx")
    with np.errstate(over="ignore"):
        low = np.asarray(x, np.float16)
        expected = ((low + low) * np.float16(0.25)).astype(np.float32)
    assert np.isinf(expected[0])
    for optimise in (False, True):
        np.testing.assert_array_equal(_run(shown.path, x, optimise=optimise), expected)


def test_bf16_rounds_to_eight_bits_and_does_not_overflow(tmp_path: Path) -> None:
    import ml_dtypes

    graph = _graph(tmp_path / "g.onnx", [_node("Add", ["x", "x"], "a"), _node("Mul", ["a", "a"], "y")])
    model = load_graph(graph.path)
    convert(model, "bf16")
    real = save_graph(model, tmp_path / "low.onnx")
    assert _types(real.path)["a"] == TensorProto.BFLOAT16
    model = load_graph(real.path)
    emulate(model, "bf16")
    shown = save_graph(model, tmp_path / "emulated.onnx")
    x = np.array([40000.0, 1.01], np.float32)
    low = x.astype(ml_dtypes.bfloat16)
    expected = ((low + low) * (low + low)).astype(np.float32)
    np.testing.assert_array_equal(_run(shown.path, x), expected)


def test_normalisation_and_named_nodes_stay_in_fp32(tmp_path: Path) -> None:
    nodes = [
        _node("Mul", ["x", "c"], "a"),
        _node("LayerNormalization", ["a", "g"], "b"),
        _node("Mul", ["b", "c"], "d"),
        _node("Add", ["d", "c"], "y"),
    ]
    graph = _graph(tmp_path / "g.onnx", nodes, {"c": 2.0, "g": np.ones(4)}, shape=("N", 4))
    model = load_graph(graph.path)
    done = convert(model, "fp16", islands={"n/d"})
    types = _types(save_graph(model, tmp_path / "low.onnx").path)
    assert done.islands == ("n/b", "n/d")
    assert types["a"] == TensorProto.FLOAT16
    assert types["b"] == types["d"] == TensorProto.FLOAT
    # c is used on both sides, and a crosses over once: x in, a up, d down, y up.
    assert done.casts == 4


def test_value_beyond_the_range_is_never_cast_down(tmp_path: Path) -> None:
    nodes = [
        _node("Mul", ["x", "big"], "a"),
        _node("Reshape", ["a", "shape"], "b"),
        _node("Mul", ["b", "small"], "c"),
        _node("Add", ["c", "c"], "y"),
    ]
    graph = _graph(tmp_path / "g.onnx", nodes, {"big": 3e4, "small": 1e-4})
    raw = onnx.load(graph.path)
    raw.graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), "shape"))
    onnx.save(onnx.shape_inference.infer_shapes(raw), graph.path)
    model = load_graph(graph.path)
    done = convert(model, "fp16", unsafe={"a", "b"})
    out = save_graph(model, tmp_path / "low.onnx")
    assert done.islands == ("n/a", "n/c")
    types = _types(out.path)
    assert types["a"] == types["b"] == TensorProto.FLOAT
    model = load_graph(out.path)
    emulate(model, "fp16")
    shown = save_graph(model, tmp_path / "emulated.onnx")
    np.testing.assert_allclose(_run(shown.path, [4.0, -7.0]), [24.0, -42.0], rtol=2e-3)


def test_constant_beyond_the_range_keeps_its_node_in_fp32(tmp_path: Path) -> None:
    graph = _graph(tmp_path / "g.onnx", [_node("Mul", ["x", "c"], "y")], {"c": 1e6})
    model = load_graph(graph.path)
    assert convert(model, "fp16").islands == ("n/y",)
    assert _run(save_graph(model, tmp_path / "low.onnx").path, [2.0]) == 2e6


def test_vanished_weights_are_counted(tmp_path: Path) -> None:
    graph = _graph(tmp_path / "g.onnx", [_node("Mul", ["x", "c"], "y")], {"c": [1e-9, 1.0, 0.0]}, shape=(3,))
    assert convert(load_graph(graph.path), "fp16").vanished == 1


def test_resize_reads_its_scales_in_fp32(tmp_path: Path) -> None:
    nodes = [helper.make_node("Resize", ["x", "", "s"], ["r"], name="r", mode="nearest")]
    nodes.append(_node("Mul", ["r", "c"], "y"))
    kind = TensorProto.FLOAT
    values = [helper.make_tensor_value_info(n, kind, [1, 1, k, k]) for n, k in (("x", 2), ("y", 4))]
    weights = [
        numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "s"),
        numpy_helper.from_array(np.array(3, np.float32), "c"),
    ]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", values[:1], values[1:], weights),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.save(onnx.shape_inference.infer_shapes(proto), tmp_path / "g.onnx")
    model = load_graph(tmp_path / "g.onnx")
    assert convert(model, "fp16").low == 2
    out = save_graph(model, tmp_path / "low.onnx")
    assert _run(out.path, np.ones((1, 1, 2, 2))).shape == (1, 1, 4, 4)


def test_tail_is_the_last_convolution_and_what_follows(tmp_path: Path) -> None:
    nodes = [
        _node("Conv", ["x", "w"], "a"),
        _node("Conv", ["a", "w"], "b"),
        _node("Tanh", ["b"], "y"),
    ]
    graph = _graph(tmp_path / "g.onnx", nodes, {"w": np.ones((1, 1, 1, 1))}, shape=("N", 1, "H", "W"))
    assert tail(load_graph(graph.path)) == {"n/b", "n/y"}


def test_island_patterns_name_stage_and_node(tmp_path: Path) -> None:
    graph = _graph(tmp_path / "g.onnx", [_node("Mul", ["x", "x"], "a"), _node("Add", ["a", "a"], "y")])
    model = load_graph(graph.path)
    assert matching(model, "step", ["n/*"]) == {"n/a", "n/y"}
    assert matching(model, "step", ["step:*a", "decoder:*"]) == {"n/a"}
    assert matching(model, "step", ["nothing*"]) == set()
    with pytest.raises(ConfigError, match=r"'step:nothing' matches no node .* n/a"):
        matching(model, "step", ["step:nothing"])


# ---------------------------------------------------------------------------------------------------------
# The range check


def test_range_check_measures_every_value_and_names_the_node(tmp_path: Path) -> None:
    nodes = [_node("Mul", ["x", "c"], "a"), _node("Abs", ["a"], "b"), _node("Mul", ["b", "d"], "y")]
    graph = _graph(tmp_path / "g.onnx", nodes, {"c": -1e5, "d": 1e-5})
    ranges = measure_ranges("step", graph.path, [{"x": np.array([0.5, -2.0], np.float32)}], tmp_path)
    assert ranges.largest == pytest.approx({"a": 2e5, "b": 2e5, "y": 2.0})
    assert set(ranges.beyond("fp16")) == {"a", "b"}
    assert ranges.beyond("bf16") == {}
    assert ranges.top(1)[0][0] == "a"


def test_range_check_keeps_headroom(tmp_path: Path) -> None:
    graph = _graph(tmp_path / "g.onnx", [_node("Add", ["x", "x"], "y")])
    ranges = measure_ranges("step", graph.path, [{"x": np.array([9000.0], np.float32)}], tmp_path)
    assert set(ranges.beyond("fp16")) == {"y"}  # 18000 fits FP16, but twice is not enough to spare
    assert ranges.beyond("fp16", headroom=1.0) == {}


def test_graph_that_breaks_in_fp32_is_refused_with_its_first_node(tmp_path: Path) -> None:
    nodes = [_node("Log", ["x"], "a"), _node("Add", ["a", "a"], "y")]
    graph = _graph(tmp_path / "g.onnx", nodes)
    with pytest.raises(BuildError, match="in FP32 already, first at node 'a'"):
        measure_ranges("step", graph.path, [{"x": np.array([-1.0], np.float32)}], tmp_path)


# ---------------------------------------------------------------------------------------------------------
# A decoder that overflows


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> GraphFile:
    """An AutoencoderKL decoder whose residual stream leaves FP16's range, as Stable Diffusion XL's does.

    GroupNorm hides a scaled stream from everything behind it, so the picture is an ordinary one.
    """
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from export_models import small_sd_parts
    from yonos_export.diffusers_networks import KLDecoder, KLEncoder
    from yonos_export.model_info import ModelInfo
    from yonos_export.onnx_from_torch import graph_from_stage
    from yonos_export.stages import make_stages

    from yonos_trt.engine.schema import identity_manifest

    _, vae, _, _ = small_sd_parts()
    with torch.no_grad():
        vae.decoder.conv_in.weight.mul_(3e5)
        for name, module in vae.decoder.named_modules():
            if name.endswith(("conv2", "conv_shortcut", "to_out.0", "upsamplers.0.conv")):
                module.weight.mul_(1e5 if not name.endswith("upsamplers.0.conv") else 1.0)
    info = ModelInfo.of(identity_manifest(latent_factor=2, multiple_px=8))
    stages = make_stages(KLEncoder(vae), torch.nn.Identity(), KLDecoder(vae), info)
    folder = tmp_path_factory.mktemp("loud")
    return save_graph(graph_from_stage(stages, "decoder"), folder / "decoder.onnx")


def test_overflowing_decoder_is_kept_finite_by_automatic_islands(loud: GraphFile, tmp_path: Path) -> None:
    z_0 = np.random.default_rng(0).standard_normal((1, 4, 16, 16)).astype(np.float32)
    expected = _run(loud.path, z_0)
    ranges = measure_ranges("decoder", loud.path, [{"z_0": z_0}], tmp_path)
    beyond = ranges.beyond("fp16")
    assert max(ranges.largest.values()) > 2 * 65504

    def fp16(name: str, unsafe: Any) -> tuple[Any, collections.Counter[str]]:
        model = load_graph(loud.path)
        convert(model, "fp16", islands=tail(model), unsafe=unsafe)
        low = save_graph(model, tmp_path / f"{name}.onnx")
        types = _types(low.path)
        kinds = collections.Counter(
            "low" if types.get(n.output[0]) == TensorProto.FLOAT16 else "fp32"
            for n in onnx.load(low.path).graph.node
            if n.op_type == "Conv"
        )
        model = load_graph(low.path)
        emulate(model, "fp16")
        return _run(save_graph(model, tmp_path / f"{name}.e.onnx").path, z_0), kinds

    plain, _ = fp16("plain", ())
    assert not np.isfinite(plain).all()
    safe, kinds = fp16("safe", beyond)
    assert np.isfinite(safe).all()
    error = safe - expected
    psnr = 10 * np.log10((expected.max() - expected.min()) ** 2 / np.mean(error**2))
    assert psnr > 50
    assert kinds["low"] >= 4  # the convolutions inside the residual blocks still compute in FP16
