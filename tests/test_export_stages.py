"""Graphs from torch: same numbers, any shape, constants folded, same bytes."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from export_models import (  # noqa: E402
    SD_FACTS,
    random_feed,
    sd_schedule,
    small_bundle,
    small_checkpoint,
    small_sd_folder,
    small_sd_parts,
)
from yonos_export.graph_file import GraphFile  # noqa: E402
from yonos_export.onnx_from_torch import (  # noqa: E402
    export_graphs,
    graph_from_stage,
    load_graph,
    save_graph,
)
from yonos_export.source import fp32_graphs, open_source  # noqa: E402
from yonos_export.stages import StageSet, stages_from_bundle  # noqa: E402
from yonos_export.verify import functions_from_onnx, functions_from_torch  # noqa: E402

from yonos_trt.engine.manifest import STAGE_TENSORS  # noqa: E402
from yonos_trt.errors import BuildError, ConfigError  # noqa: E402

Exported = tuple[StageSet, dict[str, GraphFile]]


@pytest.fixture(scope="module")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("lite")
    source = open_source(small_checkpoint(folder / "checkpoint"))
    assert source.stages is not None
    return source.stages, fp32_graphs(source, folder, opset=20, onnx_dir=None)


@pytest.fixture(scope="module")
def lite_lr(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    stages = stages_from_bundle(small_bundle(encoder_input="lr", schedule=sd_schedule()))
    return stages, export_graphs(stages, tmp_path_factory.mktemp("lite-lr"))


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("sd")
    source = open_source(small_sd_folder(folder / "sd"))
    assert source.stages is not None
    return source.stages, fp32_graphs(source, folder, opset=20, onnx_dir=None)


@pytest.fixture(params=["lite", "lite_lr", "sd"])
def exported(request: pytest.FixtureRequest) -> Exported:
    """Stages and their graphs, of each kind of model."""
    made: Exported = request.getfixturevalue(request.param)
    return made


def _nodes(graph: GraphFile) -> collections.Counter[str]:
    return collections.Counter(n.op_type for n in onnx.load(graph.path).graph.node)


@pytest.mark.parametrize(("batch", "tile_px"), [(1, (32, 32)), (2, (64, 48)), (3, (40, 96))])
def test_graphs_compute_what_torch_computes_at_any_shape(
    exported: Exported, batch: int, tile_px: tuple[int, int]
) -> None:
    stages, graphs = exported
    if any(side % stages.info.tiles.multiple_px for side in tile_px):
        tile_px = tile_px[0] // 16 * 16, tile_px[1] // 16 * 16
    reference = functions_from_torch(stages)
    candidate = functions_from_onnx({s: g.path for s, g in graphs.items()})
    for stage, (inputs, (output,)) in STAGE_TENSORS.items():
        feed = random_feed({n: stages.info.shape(stage, n, batch=batch, tile_px=tile_px) for n in inputs})
        expected, got = reference[stage](feed), candidate[stage](feed)
        assert got.shape == stages.info.shape(stage, output, batch=batch, tile_px=tile_px)
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * max(1.0, float(np.abs(expected).max())))


def test_graph_tensors_carry_the_manifest_names_and_letters(exported: Exported) -> None:
    stages, graphs = exported
    for stage, graph in graphs.items():
        model = onnx.load(graph.path)
        names = [v.name for v in model.graph.input], [v.name for v in model.graph.output]
        assert tuple(map(tuple, names)) == STAGE_TENSORS[stage]
        for value in (*model.graph.input, *model.graph.output):
            shape = tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)
            assert shape == stages.info.letters(stage, value.name)


def test_graphs_hold_no_machine_paths_and_no_metadata(exported: Exported) -> None:
    for graph in exported[1].values():
        raw = graph.path.read_bytes()
        assert b".py" not in raw
        assert b"site-packages" not in raw
        model = onnx.load(graph.path)
        assert not model.metadata_props
        assert not any(n.metadata_props or n.doc_string for n in model.graph.node)
        names = [n.name for n in model.graph.node]
        assert len(set(names)) == len(names)
        assert all(names)


def test_lite_step_holds_nothing_but_the_convolutions_of_the_trunk(lite: Exported) -> None:
    stages, graph = lite[0], lite[1]["step"]
    nodes = _nodes(graph)
    # 4 residual blocks with two convolutions each, down, up, merge, in and out; no time embedding (Sin, Cos,
    # MatMul), no modulation (Mul), no schedule (Sub): t, alpha_1 and sigma_1 are constants.
    assert nodes["Conv"] == 2 * 3 + 5
    assert set(nodes) == {"Conv", "LeakyRelu", "Add", "Concat", "DepthToSpace"}
    assert nodes["Add"] == 3
    weights = sum(int(np.prod(t.dims)) for t in onnx.load(graph.path).graph.initializer)
    unet = stages.step.unet
    time = sum(p.numel() for n, p in unet.named_parameters() if "time_mlp" in n or "film" in n)
    assert weights == sum(p.numel() for p in unet.parameters()) - time


def test_lite_encoder_packs_pixels_with_one_operation(lite: Exported) -> None:
    # Channel order and statistics are inside the convolutions; see the parity tests for the numbers.
    assert _nodes(lite[1]["encoder"]) == {"SpaceToDepth": 1, "Conv": 4, "LeakyRelu": 1, "Add": 1}


def test_latent_statistics_are_part_of_the_encoders_last_convolution(lite: Exported) -> None:
    last = onnx.load(lite[1]["encoder"].path).graph.node[-1]
    assert last.op_type == "Conv"
    assert list(last.output) == ["z_l"]


def test_sd_step_has_no_time_mlp_and_no_projection_of_the_prompt(sd: Exported) -> None:
    model = onnx.load(sd[1]["step"].path)
    names = [n.name for n in model.graph.node]
    assert not [n for n in names if "time_emb" in n or "time_proj" in n]
    assert not [n for n in names if "attn2.to_k" in n or "attn2.to_v" in n]
    # Per transformer block: q, k, v, out, two attention products; q, out, two products; two of the
    # feed-forward; and the projections into and out of the block.
    blocks = len({n.split(".attn1")[0] for n in names if ".attn1" in n})
    assert blocks == 3
    assert sum(n.op_type == "MatMul" for n in model.graph.node) == blocks * (6 + 4 + 2 + 2)
    assert not {"Sin", "Cos", "Exp"} & {n.op_type for n in model.graph.node}


def test_sd_stages_equal_the_plain_diffusers_computation() -> None:
    pytest.importorskip("diffusers")
    from yonos_export.families.sd import stages_from_diffusers

    unet, vae, scheduler, context = small_sd_parts()
    stages = functions_from_torch(stages_from_diffusers(*small_sd_parts(), SD_FACTS))
    image = torch.from_numpy(random_feed({"image": (2, 3, 32, 48)})["image"])
    noise = torch.from_numpy(random_feed({"noise": (2, 4, 16, 24)}, seed=1)["noise"])
    with torch.no_grad():
        z_l = vae.encode(image).latent_dist.mode() * vae.config.scaling_factor
        t = torch.tensor(999)
        v = unet(torch.cat([noise, z_l], 1), t, encoder_hidden_states=context.expand(2, -1, -1)).sample
        alpha2 = scheduler.alphas_cumprod[999]
        z_0 = alpha2.sqrt() * noise - (1 - alpha2).sqrt() * v
        decoded = vae.decode(z_0 / vae.config.scaling_factor).sample
    np.testing.assert_allclose(stages["encoder"]({"image": image.numpy()}), z_l.numpy(), atol=1e-6)
    got = stages["step"]({"noise": noise.numpy(), "z_l": z_l.numpy()})
    np.testing.assert_allclose(got, z_0.numpy(), atol=1e-5)
    np.testing.assert_allclose(stages["decoder"]({"z_0": z_0.numpy()}), decoded.numpy(), atol=1e-5)


def test_folder_that_the_trainer_writes_computes_what_the_trainer_trained(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from yonos_train.schedule import ddim
    from yonos_train.sd_folder import load_sd, save_sd

    base = small_sd_folder(tmp_path / "base")
    bundle = load_sd(base, 2, name="tuned")
    save_sd(bundle, base, tmp_path / "tuned")
    source = open_source(tmp_path / "tuned")
    assert source.stages is not None
    model = source.info.model
    assert (model.name, model.scale, model.timestep) == ("tuned", 2, 999.0)
    stages = functions_from_torch(source.stages)
    feed = random_feed({"noise": (2, 4, 16, 24), "image": (2, 3, 32, 48)})
    with torch.no_grad():
        z_l = bundle.encoder(torch.from_numpy(feed["image"]))
        z_0 = ddim(bundle.unet, bundle.schedule, z_l, torch.from_numpy(feed["noise"]))
        image = bundle.decoder(z_0)
    np.testing.assert_allclose(stages["encoder"]({"image": feed["image"]}), z_l.numpy(), atol=1e-5)
    got = stages["step"]({"noise": feed["noise"], "z_l": z_l.numpy()})
    np.testing.assert_allclose(got, z_0.numpy(), atol=1e-5)
    np.testing.assert_allclose(stages["decoder"]({"z_0": z_0.numpy()}), image.numpy(), atol=1e-5)


def test_step_of_a_schedule_that_keeps_signal_adds_alpha_times_noise() -> None:
    bundle = small_bundle(schedule=sd_schedule())
    stages = stages_from_bundle(bundle)
    assert 0.05 < stages.info.model.alpha_1 < 0.08
    feed = random_feed({"noise": (1, 4, 8, 8), "z_l": (1, 4, 8, 8)})
    noise, z_l = (torch.from_numpy(feed[n]) for n in ("noise", "z_l"))
    with torch.no_grad():
        v = bundle.unet(torch.cat([noise, z_l], 1), torch.ones(1))
        expected = stages.info.model.alpha_1 * noise - stages.info.model.sigma_1 * v
    np.testing.assert_allclose(functions_from_torch(stages)["step"](feed), expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("stage", ["step", "encoder"])
def test_same_weights_give_the_same_bytes_and_others_do_not(
    lite: Exported, stage: str, tmp_path: Path
) -> None:
    def again(seed: int) -> bytes:
        stages = stages_from_bundle(small_bundle(seed=seed))
        return save_graph(graph_from_stage(stages, stage), tmp_path / "again.onnx").path.read_bytes()

    assert again(0) == lite[1][stage].path.read_bytes()
    if stage == "encoder":
        assert again(1) != lite[1][stage].path.read_bytes()


def test_large_weights_go_to_a_file_beside_the_graph(lite: Exported, tmp_path: Path) -> None:
    inside = lite[1]["decoder"]
    model = load_graph(inside.path)
    outside = save_graph(model, tmp_path / "outside.onnx", external_above_bytes=1000)
    assert inside.external == ()
    assert [p.name for p in outside.external] == ["outside.onnx.data"]
    assert outside.path.stat().st_size < inside.path.stat().st_size / 2
    feed = random_feed({"z_0": (1, 4, 8, 8)})
    results = [functions_from_onnx({"decoder": g.path})["decoder"](feed) for g in (inside, outside)]
    np.testing.assert_array_equal(*results)


def test_module_that_fixes_its_shape_is_refused(tmp_path: Path) -> None:
    class Fixed(torch.nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            assert z.shape[-1] == 24
            return z[:, :3].repeat_interleave(4, 2).repeat_interleave(4, 3)

    bundle = small_bundle()
    bundle.decoder = Fixed()
    with pytest.raises(BuildError, match="decoder stage cannot be exported"):
        graph_from_stage(stages_from_bundle(bundle), "decoder")


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def test_folder_that_is_no_model_is_refused(empty: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a checkpoint folder of yonos-train"):
        open_source(empty)
    with pytest.raises(ConfigError, match="is not a directory"):
        open_source(empty / "nothing")
    (empty / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be loaded as a checkpoint"):
        open_source(empty)


def test_diffusers_folder_says_what_is_missing_or_does_not_fit(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from yonos_export.families.sd import stages_from_diffusers

    folder = small_sd_folder(tmp_path / "sd")
    (folder / "context.safetensors").rename(folder / "away")
    with pytest.raises(ConfigError, match="prompt embedding"):
        open_source(folder)
    (folder / "away").rename(folder / "context.safetensors")
    (folder / "yonos.json").write_text('{"scael": 4}')
    with pytest.raises(ConfigError, match="scael"):
        open_source(folder)
    unet, vae, scheduler, context = small_sd_parts()
    with pytest.raises(ConfigError, match="width 7, expected the U-Net's 12"):
        stages_from_diffusers(unet, vae, scheduler, torch.zeros(1, 5, 7), SD_FACTS)
    scheduler.register_to_config(prediction_type="epsilon")
    with pytest.raises(ConfigError, match="v_prediction"):
        stages_from_diffusers(unet, vae, scheduler, context, SD_FACTS)


def test_kept_graphs_are_used_again_only_for_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(stages: StageSet, folder: Path, *, opset: int) -> dict[str, GraphFile]:
        for stage in STAGE_TENSORS:
            (folder / f"{stage}.onnx").write_bytes(stages.info.model.weights_sha256.encode())
        return {stage: GraphFile(folder / f"{stage}.onnx") for stage in STAGE_TENSORS}

    monkeypatch.setattr("yonos_export.onnx_from_torch.export_graphs", write)
    kept = tmp_path / "kept"
    source = open_source(small_checkpoint(tmp_path / "a"))
    for name in ("w1", "w2", "w3", "w4"):
        (tmp_path / name).mkdir()
    first = fp32_graphs(source, tmp_path / "w1", opset=20, onnx_dir=kept)
    again = fp32_graphs(source, tmp_path / "w2", opset=20, onnx_dir=kept)
    assert first["step"].path.parent == tmp_path / "w1"
    assert again["step"].path.parent == kept
    other = open_source(small_checkpoint(tmp_path / "b", seed=1))
    assert fp32_graphs(other, tmp_path / "w3", opset=20, onnx_dir=kept)["step"].path.parent == tmp_path / "w3"
    damaged = kept / "step.onnx"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    assert fp32_graphs(other, tmp_path / "w4", opset=20, onnx_dir=kept)["step"].path.parent == tmp_path / "w4"
