"""Published one-step models: the table, the files, three graphs of anybody, and pictures from them."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import shutil
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("filelock")

import helpers
from click.testing import CliRunner, Result
from yonos_export import ExportConfig
from yonos_export.cli import main
from yonos_export.families import FAMILIES, restrictive

from yonos_trt import SR
from yonos_trt.engine.manifest import load_manifest
from yonos_trt.errors import ConfigError


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def _open(**fields: Any) -> Any:
    from yonos_export.families import open_family

    return open_family(ExportConfig(engine_dir=Path("never"), **fields))


# ---------------------------------------------------------------------------------------------------------
# The table


def test_every_family_names_what_it_needs() -> None:
    assert set(FAMILIES) == {"lite", "sd", "osediff", "pisasr", "omgsr-s", "adcsr", "onnx"}
    fields = {f.name for f in dataclasses.fields(ExportConfig)}
    for family in FAMILIES.values():
        assert set(family.needs) | set(family.takes) <= fields


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"family": "stablesr"}, "expected one of lite, sd, osediff"),
        ({"base": "x"}, "only for a family that is named with --from"),
        ({"family": "osediff", "prompt": "a", "prompt_embeds": "b"}, "leave one out"),
        ({"family": "osediff", "scale": 17}, "expected 1 to 16"),
        ({"family": "pisasr", "pixel": float("nan")}, "pixel is nan, expected 0 to 4"),
        ({"family": "pisasr", "semantic": 5.0}, "semantic is 5.0, expected 0 to 4"),
        ({"licence": ("MIT",)}, "expected PART=TERMS"),
    ],
)
def test_config_refuses_what_no_family_takes(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ExportConfig(source=Path("a"), engine_dir=Path("b"), **fields)


def test_files_that_are_missing_or_of_another_family_are_named(tmp_path: Path) -> None:
    here = tmp_path / "osediff.pkl"
    with pytest.raises(ConfigError, match=r"does not exist; --from osediff starts from osediff\.pkl"):
        _open(source=here, family="osediff")
    here.write_bytes(b"x")
    with pytest.raises(ConfigError, match="--from osediff needs --base"):
        _open(source=here, family="osediff")
    with pytest.raises(ConfigError, match=r"base is .*nowhere, which does not exist"):
        _open(source=here, family="osediff", base=tmp_path / "nowhere")
    with pytest.raises(
        ConfigError, match=r"half_decoder .* does not belong to --from osediff, only to adcsr"
    ):
        _open(source=here, family="osediff", base=tmp_path, half_decoder=here)


def test_words_that_restrict_are_seen() -> None:
    assert all(map(restrictive, ["CC BY-NC-SA 4.0", "research only", "OpenRAIL++-M", "non-commercial"]))
    assert not any(map(restrictive, ["Apache-2.0", "MIT", "CC0-1.0"]))


# ---------------------------------------------------------------------------------------------------------
# Any three graphs


def _graphs(folder: Path, *, facts: dict[str, Any] | None = None, **options: Any) -> list[object]:
    """Write three graphs and model.json; return the command line that exports them."""
    folder.mkdir(parents=True, exist_ok=True)
    files, factor, _ = helpers.tiny_graphs(**options)
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    document = {
        "name": "theirs", "scale": 4, "latent_factor": factor, "multiple_px": 8, "smallest_tile_px": 16,
        "tile_px": 64, "largest_tile_px": 128, "overlap_px": 16, "licence": {"weights": "research only"},
    } | (facts or {})  # fmt: skip
    (folder / "model.json").write_text(json.dumps({k: v for k, v in document.items() if v is not None}))
    return [
        "--from", "onnx", "--config", folder / "model.json", "--encoder", folder / "encoder.onnx",
        "--step", folder / "step.onnx", "--decoder", folder / "decoder.onnx", "--engine-dir", folder / "out",
    ]  # fmt: skip


def test_three_graphs_become_an_engine_directory_that_upscales(tmp_path: Path) -> None:
    result = _run(*_graphs(tmp_path), "--fp16", "--onnx-only", "--verify-tile", 64)
    assert result.exit_code == 0, result.output
    assert "licence of the weights: research only" in result.output
    manifest = load_manifest(tmp_path / "out", verify=True)
    assert manifest.model.name == "theirs"
    assert [(x.part, x.licence) for x in manifest.model.licences] == [("weights", "research only")]
    assert manifest.model.origin is not None
    assert manifest.model.origin.family == "onnx"
    assert (manifest.parity.end_to_end_psnr_db["fp16"] or 999) > 45
    picture = helpers.picture(21, 30)
    direct = helpers.make_engine_dir(tmp_path / "direct")
    for precision in ("fp32", "fp16"):
        with SR(tmp_path / "out", runtime="onnx", precision=precision, tile_px=64, overlap_px=16) as sr:  # type: ignore[arg-type]
            ours = sr.upscale(picture)
        with SR(direct, runtime="onnx", tile_px=64, overlap_px=16) as sr:
            theirs = sr.upscale(picture)
        assert ours.shape == (84, 120, 3)
        assert helpers.psnr_db(ours, theirs) > 50


def test_three_graphs_whose_step_takes_no_noise_become_engines(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    result = _run(
        *_graphs(tmp_path, start="latent"), "--fp16", "--runtime", "tensorrt-rtx", "--verify-tile", 64
    )
    assert result.exit_code == 0, result.output
    manifest = load_manifest(tmp_path / "out", verify=True)
    assert manifest.model.start == "latent"
    for name, stage in manifest.stages.items():
        (engine,) = stage.find("tensorrt-rtx", "fp16")
        assert set(engine.profiles[0].inputs) == {t.name for t in stage.inputs}, name
    assert [t.name for t in manifest.stages.step.inputs] == ["z_l"]
    with SR(tmp_path / "out", runtime="onnx", precision="fp16") as sr:
        ours = sr.upscale(helpers.picture(21, 30))
    with SR(helpers.make_engine_dir(tmp_path / "direct", start="latent"), runtime="onnx") as sr:
        assert helpers.psnr_db(ours, sr.upscale(helpers.picture(21, 30))) > 50


@pytest.mark.parametrize(
    ("facts", "options", "said"),
    [
        ({"scael": 4}, {}, "scael"),
        ({"licence": None}, {}, "licence"),
        ({"scale": "4"}, {}, "scale"),
        ({"overlap_px": 60}, {}, "overlap_px is 60, expected 0 to 32"),
        ({"latent_factor": 3}, {}, "not a multiple of model.latent_factor"),
        ({"tile_px": 60}, {}, "tiles.default_px 60 is not a multiple of 8"),
        ({"latent_factor": 8}, {}, "latent_factor 8 .* is not the model's"),
        ({"encoder_input": "lr"}, {}, "is not the model's"),
        ({}, {"names": {"z_l": "latent"}}, r"the encoder's outputs are \['latent'\], expected \['z_l'\]"),
        ({}, {"nan_stage": "step"}, "step graph.* NaN or infinity"),
        ({"tensors": {"encoder": {"x": "image"}}}, {}, "names 'x', but"),
    ],
)
def test_graphs_that_are_not_what_the_config_says_are_refused(
    tmp_path: Path, facts: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    result = _run(*_graphs(tmp_path, facts=facts, **options), "--onnx-only")
    assert result.exit_code in (2, 3), result.output
    assert isinstance(result.exception, SystemExit)
    assert re.search(said, result.output), result.output
    assert not (tmp_path / "out").exists()


def _alter(path: Path, change: Callable[[Any], None]) -> None:
    import onnx

    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())


def test_tensors_of_other_names_are_mapped_by_the_config(tmp_path: Path) -> None:
    facts = {"tensors": {"encoder": {"latent": "z_l"}, "step": {"latent": "z_l"}}}
    result = _run(*_graphs(tmp_path, facts=facts, names={"z_l": "latent"}), "--onnx-only")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 10), "FLOAT16, expected FLOAT"),
        (
            lambda m: m.graph.input[0].type.tensor_type.shape.dim[2].__setattr__("dim_value", 64),
            "is fixed to",
        ),
        (lambda m: m.graph.input[0].type.tensor_type.shape.dim.pop(), "expected .N, C, height, width."),
        (lambda m: setattr(m.graph.node[0], "domain", "com.evil"), "has operations of com.evil"),
        (lambda m: setattr(m.opset_import[0], "version", 9), "has opset 9, expected 13 to 23"),
    ],
)
def test_graph_with_foreign_types_shapes_or_operations_is_refused(
    tmp_path: Path, change: Callable[[Any], None], said: str
) -> None:
    command = _graphs(tmp_path)
    _alter(tmp_path / "encoder.onnx", change)
    result = _run(*command, "--onnx-only")
    assert result.exit_code == 2, result.output
    assert re.search(said, result.output), result.output


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "no/such"])
def test_graph_that_reads_weights_elsewhere_is_refused(tmp_path: Path, location: str) -> None:
    import onnx
    from onnx.external_data_helper import set_external_data

    command = _graphs(tmp_path / "in")
    (tmp_path / "secret.bin").write_bytes(b"\0" * 4096)

    def point(model: Any) -> None:
        tensor = model.graph.initializer[0]
        set_external_data(tensor, location, offset=0, length=len(tensor.raw_data))
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL

    _alter(tmp_path / "in" / "encoder.onnx", point)
    result = _run(*command, "--onnx-only")
    assert result.exit_code == 2, result.output
    assert "expected a file beside the graph" in result.output


def _outside(folder: Path, stage: str) -> Path:
    """Write a graph again with all its weights beside it, as torch does by default."""
    import onnx

    path = folder / f"{stage}.onnx"
    onnx.save(onnx.load(path), path, save_as_external_data=True, location=f"{stage}.data", size_threshold=0)
    return folder / f"{stage}.data"


def test_weights_beside_the_graphs_end_in_the_engine_directory(tmp_path: Path) -> None:
    """Graphs of up to 1 GiB are written in one file, whatever file their weights came from."""
    import onnx
    from onnx.external_data_helper import uses_external_data

    command = _graphs(tmp_path)
    data = [_outside(tmp_path, stage) for stage in ("encoder", "step", "decoder")]
    result = _run(*command, "--fp16", "--onnx-only", "--verify-tile", 64)
    assert result.exit_code == 0, result.output
    for path in data:
        path.unlink()
    for path in (tmp_path / "out").glob("*.onnx"):
        graph = onnx.load(path, load_external_data=False).graph
        assert not any(map(uses_external_data, graph.initializer)), path.name
    for precision in ("fp32", "fp16"):
        with SR(tmp_path / "out", runtime="onnx", precision=precision) as sr:  # type: ignore[arg-type]
            assert sr.upscale(helpers.picture(8, 8)).shape == (32, 32, 3)


def test_weights_beside_a_graph_that_are_cut_or_missing_are_named(tmp_path: Path) -> None:
    command = _graphs(tmp_path)
    data = _outside(tmp_path, "step")
    data.write_bytes(data.read_bytes()[:-64])
    result = _run(*command, "--onnx-only", "--dry-run")
    assert result.exit_code == 2, result.output
    assert "step.onnx is no ONNX graph that can be read" in result.output
    data.unlink()
    result = _run(*command, "--onnx-only", "--dry-run")
    assert result.exit_code == 2, result.output
    assert "takes weights from 'step.data', which is missing" in result.output


def test_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    command = _graphs(tmp_path)
    raw = (tmp_path / "step.onnx").read_bytes()
    for damage in (raw[: len(raw) // 2], b"", b"\xff" * 200):
        (tmp_path / "step.onnx").write_bytes(damage)
        result = _run(*command, "--onnx-only")
        assert result.exit_code == 2, result.output
        assert "step.onnx" in result.output


def test_reach_of_small_convolutions_is_found_and_global_networks_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from yonos_export.reach import measure_reach
    from yonos_export.verify import functions_from_onnx

    source = _open(
        source=Path(str(_graphs(tmp_path)[3])), family="onnx",
        **{s: tmp_path / f"{s}.onnx" for s in ("encoder", "step", "decoder")},
    )  # fmt: skip
    (tmp_path / "w").mkdir()
    stages = functions_from_onnx({s: g.path for s, g in source.graphs(tmp_path / "w").items()})
    found = measure_reach(stages, source.info)
    assert found.reach_px is not None
    assert 0 < found.reach_px <= 16
    assert found.beyond_grey < 0.5

    def normalised(feed: Any) -> Any:
        out = stages["decoder"](feed)
        return out / np.abs(out).mean(axis=(1, 2, 3), keepdims=True)

    caplog.clear()
    found = measure_reach({**stages, "decoder": normalised}, source.info)
    assert found.reach_px is None
    assert "felt everywhere" in caplog.text


# ---------------------------------------------------------------------------------------------------------
# OSEDiff


@pytest.fixture(scope="module")
def osediff(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Base folder, osediff.pkl and prompt embedding, tiny."""
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from family_models import osediff_files

    return osediff_files(tmp_path_factory.mktemp("osediff"))


def _osediff(files: tuple[Path, Path, Path], document: dict[str, Any], folder: Path) -> Any:
    import torch

    torch.save(document, folder / "changed.pkl")
    return _open(source=folder / "changed.pkl", family="osediff", base=files[0], prompt_embeds=files[2])


def test_osediff_merges_adapters_and_takes_one_step_at_999(osediff: tuple[Path, Path, Path]) -> None:
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from safetensors.torch import load_file
    from torch import nn
    from yonos_export.verify import functions_from_torch

    base, pkl, prompt = osediff
    source = _open(source=pkl, family="osediff", base=base, prompt_embeds=prompt)
    model = source.info.model
    assert (model.start, model.timestep, model.color_fix) == ("latent", 999.0, "adain")
    document = torch.load(pkl, weights_only=True)
    unet, vae = (
        kind.from_pretrained(base, subfolder=part)
        for kind, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"))
    )

    def hook(a: torch.Tensor, b: torch.Tensor) -> Callable[[nn.Module, Any, torch.Tensor], torch.Tensor]:
        def add(layer: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            x = inputs[0]
            if isinstance(layer, nn.Conv2d):
                down = torch.nn.functional.conv2d(x, a, None, layer.stride, layer.padding)
                return output + 8 / 4 * torch.nn.functional.conv2d(down, b)
            return output + 8 / 4 * (x @ a.T @ b.T)

        return add

    for part, network in (("unet", unet), ("vae", vae)):
        state = document[f"state_dict_{part}"]
        if part == "unet":
            network.conv_in.load_state_dict({k: state[f"conv_in.base_layer.{k}"] for k in ("weight", "bias")})
        for key in [k for k in state if ".lora_A." in k]:
            layer = network.get_submodule(key.partition(".lora_A.")[0])
            layer.register_forward_hook(hook(state[key], state[key.replace("lora_A", "lora_B")]))
    scheduler = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
    image = torch.rand(1, 3, 64, 128) * 2 - 1
    context = load_file(prompt)["context"]
    with torch.no_grad():
        z_l = vae.encode(image).latent_dist.mode() * vae.config.scaling_factor
        eps = unet(z_l, torch.tensor(999), encoder_hidden_states=context).sample
        alpha2 = scheduler.alphas_cumprod[999]
        z_0 = (z_l - (1 - alpha2).sqrt() * eps) / alpha2.sqrt()
        decoded = vae.decode(z_0 / vae.config.scaling_factor).sample
    stages = functions_from_torch(source.stages)
    np.testing.assert_allclose(stages["encoder"]({"image": image.numpy()}), z_l.numpy(), atol=2e-5)
    got = stages["step"]({"z_l": z_l.numpy()})
    np.testing.assert_allclose(got, z_0.numpy(), atol=2e-5 * float(z_0.abs().max()))
    np.testing.assert_allclose(stages["decoder"]({"z_0": z_0.numpy()}), decoded.numpy(), atol=2e-4)


def _without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda d: d.pop(key)


def _layer(document: dict[str, Any]) -> str:
    return str(next(k for k in document["state_dict_unet"] if "attn2.to_k.lora_A" in k))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without("rank_vae"), "lacks rank_vae"),
        (lambda d: d.update(extra=1), "has unknown extra"),
        (lambda d: d.update(rank_unet=8), "has rank 4, the file says 8"),
        (lambda d: d.update(rank_unet="4"), "expected a whole number"),
        (lambda d: d["state_dict_unet"].pop(_layer(d)), "lacks A; expected lora_A and lora_B"),
        (lambda d: d["state_dict_unet"].update(odd=d["state_dict_unet"][_layer(d)]), "has unknown odd"),
        (lambda d: d["unet_lora_others_modules"].append("mid_block.nothing"), "another base"),
        (lambda d: d["unet_lora_decoder_modules"].pop(), "has unknown"),
        (lambda d: d["state_dict_unet"].pop("conv_in.base_layer.bias"), "lacks conv_in.bias"),
        (lambda d: d["state_dict_unet"][_layer(d)].mul_(float("nan")), "has NaN or infinity"),
        (lambda d: d.update(state_dict_vae=[1]), "state_dict_vae is list"),
        *(
            (
                lambda d, s=side: d["state_dict_unet"].update(
                    {_layer(d).replace("_A", s): d["state_dict_unet"][_layer(d)][0, 0]}
                ),
                r"a LoRA weight of .*attn2\.to_k is \(\), expected at least two dimensions",
            )
            for side in ("_A", "_B")
        ),
        (
            lambda d: d["state_dict_unet"].update({_layer(d): d["state_dict_unet"][_layer(d)][:, :5]}),
            "are not for a layer of shape",
        ),
    ],
)
def test_osediff_file_that_does_not_fit_is_named(
    osediff: tuple[Path, Path, Path], tmp_path: Path, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    import torch

    document = torch.load(osediff[1], weights_only=True)
    change(document)
    with pytest.raises(ConfigError, match=said):
        _osediff(osediff, document, tmp_path)


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("/nonexistent/evil").write_text, ("x",))


def test_pickle_that_runs_code_is_refused_and_damage_is_named(
    osediff: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    import torch

    with pytest.raises(ConfigError, match="more than tensors and plain values"):
        _osediff(osediff, {"rank_unet": _Evil()}, tmp_path)
    raw, path = osediff[1].read_bytes(), tmp_path / "damaged.pkl"
    for damage in (raw[: len(raw) // 2], b"", b"PK\3\4" + b"\0" * 50, pickle.dumps([1, 2]), b"\x80\x02" * 9):
        path.write_bytes(damage)
        with pytest.raises(ConfigError, match=r"damaged\.pkl"):
            _open(source=path, family="osediff", base=osediff[0], prompt_embeds=osediff[2])
    for start, said in (
        (b"<!DOCTYPE html>404", r"is no torch file, it begins with b'<!DOCTYPE html>4'"),
        (b"version https://git-lfs.github.com/spec/v1", "is a pointer of Git LFS, not the file"),
    ):
        path.write_bytes(start)
        with pytest.raises(ConfigError, match=said):
            _open(source=path, family="osediff", base=osediff[0], prompt_embeds=osediff[2])
    torch.save([1], path)
    with pytest.raises(ConfigError, match="holds list, expected a dictionary"):
        _open(source=path, family="osediff", base=osediff[0], prompt_embeds=osediff[2])


def test_another_base_is_refused_with_what_was_expected(
    osediff: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    from family_models import base_folder, prompt_file

    _, pkl, prompt = osediff
    v = base_folder(tmp_path / "v", prediction_type="v_prediction")
    with pytest.raises(ConfigError, match=r"v_prediction.*2\.1-base"):
        _open(source=pkl, family="osediff", base=v, prompt_embeds=prompt)
    wide = base_folder(tmp_path / "wide", width=20)
    with pytest.raises(ConfigError, match="are not for a layer of shape"):
        _open(source=pkl, family="osediff", base=wide, prompt_embeds=prompt)
    with pytest.raises(ConfigError, match=r"20 wide, the U-Net of .* expects 12"):
        _open(
            source=pkl, family="osediff", base=osediff[0],
            prompt_embeds=prompt_file(tmp_path / "p.safetensors", 20),
        )  # fmt: skip
    with pytest.raises(ConfigError, match="has no tokenizer and no text_encoder"):
        _open(source=pkl, family="osediff", base=osediff[0], prompt="a cat")
    with pytest.raises(ConfigError, match="has no unet/ and no vae/ and no scheduler/"):
        _open(source=pkl, family="osediff", base=tmp_path, prompt_embeds=prompt)


def test_weights_of_a_base_that_lack_tensors_or_are_damaged_are_refused(
    osediff: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """diffusers puts random numbers where tensors are missing."""
    from safetensors.torch import load_file, save_file

    base, pkl, prompt = osediff
    key = "decoder.conv_out.weight"
    for number, (change, said) in enumerate(
        (
            (lambda d: d.pop(key), rf"vae lacks {re.escape(key)}; expected the weights of the network"),
            (
                lambda d: d[key].fill_(float("nan")),
                r"the decoder's decoder\..*conv_out\.weight has NaN or inf",
            ),
        )
    ):
        folder = shutil.copytree(base, tmp_path / str(number))
        file = folder / "vae" / "diffusion_pytorch_model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)
        with pytest.raises(ConfigError, match=said):
            _open(source=pkl, family="osediff", base=folder, prompt_embeds=prompt)


def test_osediff_becomes_fp16_graphs_engines_and_pictures(
    osediff: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    base, pkl, prompt = osediff
    result = _run(
        "--from", "osediff", pkl, "--base", base, "--prompt-embeds", prompt, "-o", tmp_path / "out", "--fp16",
        "--runtime", "tensorrt-rtx", "--licence", "adapter=Apache-2.0",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "licence of the base model: CreativeML Open RAIL" in result.output
    manifest = load_manifest(tmp_path / "out", verify=True)
    model = manifest.model
    assert (model.name, model.start, model.channels("z_0")) == ("osediff-x4", "latent", 4)
    assert [t.name for t in manifest.stages.step.inputs] == ["z_l"]
    assert manifest.stages.step.find("tensorrt-rtx", "fp16")
    assert {x.part: x.licence for x in model.licences}["adapter"] == "Apache-2.0"
    with SR(tmp_path / "out", runtime="onnx", precision="fp16") as sr:
        whole = sr.upscale(helpers.picture(40, 100))
        facts = sr.info()
    assert whole.shape == (160, 400, 3)
    assert (manifest.tiles.default_px, manifest.tiles.overlap_px) == (512, 128)
    with SR(tmp_path / "out", runtime="onnx", precision="fp16", tile_px=256) as sr:
        tiled = sr.upscale(helpers.picture(40, 100))
    # GroupNorm and attention see a tile alone: never the same, always close (benchmarks/studies/overlaps.py).
    assert 15 < helpers.psnr_db(tiled, whole) < 60
    assert facts["color_fix"] == "adain"
    assert facts["origin"]["base"] == "sd21-base"
    assert "SHA-256" in facts["origin"]["adapter"]
    from yonos_trt.cli.main import cli

    told = CliRunner().invoke(cli, ["info", str(tmp_path / "out")]).output
    assert "the step starts from the picture, without noise" in told
    for line in (
        "family      osediff",
        "base        sd21-base",
        "adapter     osediff.pkl, SHA-256 ",
        "prompt      embedding of prompt.safetensors",
        "command     yonos-export",
        "parity      fp16: ",
        "licence     adapter: Apache-2.0",
        "licence     base model: CreativeML Open RAIL++-M",
    ):
        assert line in told, line


# ---------------------------------------------------------------------------------------------------------
# The prompt


def test_a_prompt_is_what_the_bases_own_text_encoder_makes_of_it(
    osediff: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="--prompt needs the extra prompt")
    import torch
    from family_models import text_parts
    from yonos_export.families.prompt import read_prompt

    base = text_parts(shutil.copytree(osediff[0], tmp_path / "base"))
    encoder = transformers.CLIPTextModel.from_pretrained(base / "text_encoder").eval()
    for prompt, ids in (("a Cat", [53, 27, 3, 1, 46, 54, 0]), (None, [53, 54, 0, 0, 0, 0, 0])):
        with torch.no_grad():
            wanted = encoder(torch.tensor([ids]))[0]
        torch.testing.assert_close(read_prompt(base, prompt, None), wanted)
    sources = [_open(source=osediff[1], family="osediff", base=base, prompt=p) for p in ("a cat", None)]
    assert [s.info.model.origin.prompt for s in sources] == ["a cat", "(empty)"]
    assert sources[0].info.model.weights_sha256 != sources[1].info.model.weights_sha256
    (base / "text_encoder" / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"the text encoder of .*base cannot be loaded"):
        read_prompt(base, None, None)


def test_an_embedding_from_a_file_needs_no_package_and_a_prompt_names_it(
    osediff: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import load_file, save_file
    from yonos_export.families.prompt import read_prompt

    monkeypatch.setitem(sys.modules, "transformers", None)
    base, pkl, prompt = osediff
    assert torch.equal(read_prompt(base, None, prompt), load_file(prompt)["context"])
    source = _open(source=pkl, family="osediff", base=base, prompt_embeds=prompt)
    assert source.info.model.origin.prompt == "embedding of prompt.safetensors"
    whole = tmp_path / "base"
    for part in ("tokenizer", "text_encoder"):
        (whole / part).mkdir(parents=True)
    with pytest.raises(
        ConfigError, match=r"pip install -c constraints.txt '\.\[prompt\]'.*--prompt-embeds FILE"
    ):
        read_prompt(whole, "a cat", None)
    for tensors, said in (
        ({"other": torch.zeros(1, 7, 12)}, "context is None"),
        ({"context": torch.zeros(2, 7, 12)}, r"context is \(2, 7, 12\)"),
        ({"context": torch.zeros(1, 0, 12)}, r"context is \(1, 0, 12\)"),
        ({"context": torch.zeros(1, 7, 12, dtype=torch.int32)}, "expected floating point"),
        ({"context": torch.full((1, 7, 12), float("nan"))}, "has NaN or infinity"),
    ):
        save_file(tensors, tmp_path / "wrong.safetensors")
        with pytest.raises(ConfigError, match=said):
            read_prompt(base, None, tmp_path / "wrong.safetensors")
    with pytest.raises(ConfigError, match=r"expected a \.safetensors file"):
        read_prompt(base, None, pkl)


# ---------------------------------------------------------------------------------------------------------
# PiSA-SR and OMGSR-S: the same base, other files


@pytest.fixture(scope="module")
def pisasr(osediff: tuple[Path, Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from family_models import pisasr_document

    path = tmp_path_factory.mktemp("pisasr") / "pisa_sr.pkl"
    torch.save(pisasr_document(osediff[0]), path)
    return path


def _merged(base: Path, part: str, state: dict[str, Any], scales: dict[str, float]) -> Any:
    """Load a part of the base and add B A times a factor by adapter, with plain matrix products."""
    import diffusers
    import torch

    kind = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}[part]
    network = kind.from_pretrained(base, subfolder=part)
    own = dict(network.named_parameters())
    with torch.no_grad():
        for key in [k for k in state if ".lora_A." in k]:
            layer, _, adapter = key.removesuffix(".weight").partition(".lora_A.")
            if adapter in scales:
                a, b = state[key], state[key.replace("lora_A", "lora_B")]
                weight = own[f"{layer}.weight"]
                weight += scales[adapter] * (b.flatten(1) @ a.flatten(1)).view(weight.shape)
    return network


@pytest.mark.parametrize(("pixel", "semantic"), [(None, None), (1.5, 0.0), (0.8, 1.3)])
def test_pisasr_weighs_what_its_two_sets_predict(
    osediff: tuple[Path, Path, Path], pisasr: Path, pixel: float | None, semantic: float | None
) -> None:
    import torch
    from safetensors.torch import load_file
    from yonos_export.verify import functions_from_torch

    base, _, prompt = osediff
    source = _open(
        source=pisasr, family="pisasr", base=base, prompt_embeds=prompt, pixel=pixel, semantic=semantic
    )
    document = torch.load(pisasr, weights_only=True)
    names = [k.removeprefix("unet_lora_").replace("_modules_", "_") for k in document if "modules" in k]
    scales = {f"default_{n}": 8 / document[f"lora_rank_unet_{n[-3:]}"] for n in names}
    pix, both = (
        _merged(base, "unet", document["state_dict_unet"], {k: v for k, v in scales.items() if kind in k})
        for kind in ("pix", "default")
    )
    z_l, context = torch.randn(1, 4, 8, 16), load_file(prompt)["context"]
    with torch.no_grad():
        eps_pix, eps_both = (
            u(z_l, torch.tensor(1), encoder_hidden_states=context).sample for u in (pix, both)
        )
    p, s = (1.0 if x is None else x for x in (pixel, semantic))
    wanted = z_l - (p * eps_pix + s * (eps_both - eps_pix))
    got = functions_from_torch(source.stages)["step"]({"z_l": z_l.numpy()})
    np.testing.assert_allclose(got, wanted.numpy(), atol=1e-4)
    assert f"pixel {p:g}, semantic {s:g}" in source.info.model.origin.adapter
    assert len(getattr(source.stages.step.unet, "networks", [1])) == (2 if p != s and s else 1)


def test_strengths_are_part_of_the_weights_hash(osediff: tuple[Path, Path, Path], pisasr: Path) -> None:
    base, _, prompt = osediff
    sources = [
        _open(source=pisasr, family="pisasr", base=base, prompt_embeds=prompt, **more)
        for more in ({}, {"pixel": 1.0}, {"pixel": 0.5, "semantic": 0.5}, {"semantic": 0.0})
    ]
    assert len({source.info.model.weights_sha256 for source in sources}) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without("lora_rank_unet_sem"), "lacks lora_rank_unet_sem"),
        (lambda d: d.update(lora_rank_unet_sem=4), "has rank 2, the file says 4"),
        (lambda d: d["unet_lora_encoder_modules_sem"].pop(), "has unknown"),
        (lambda d: d["state_dict_unet"].update({"conv_in.base_layer.bias": d["state_dict_unet"][_layer(d)]}),
         "has unknown conv_in.bias; expected LoRA weights alone"),
    ],
)  # fmt: skip
def test_pisasr_file_that_does_not_fit_is_named(
    osediff: tuple[Path, Path, Path],
    pisasr: Path,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], Any],
    said: str,
) -> None:
    import torch

    document = torch.load(pisasr, weights_only=True)
    change(document)
    torch.save(document, tmp_path / "changed.pkl")
    with pytest.raises(ConfigError, match=said):
        _open(source=tmp_path / "changed.pkl", family="pisasr", base=osediff[0], prompt_embeds=osediff[2])


def test_omgsr_takes_its_step_at_273(osediff: tuple[Path, Path, Path], tmp_path: Path) -> None:
    import torch
    from diffusers import DDPMScheduler
    from family_models import omgsr_folder
    from safetensors.torch import load_file
    from yonos_export.verify import functions_from_torch

    base, _, prompt = osediff
    folder = omgsr_folder(base, tmp_path / "adapter")
    options: dict[str, Any] = {"family": "omgsr-s", "base": base, "prompt_embeds": prompt}
    source = _open(source=folder, **options)
    states = [
        {
            prefix + k.removeprefix("base_model.model.").replace(".weight", ".x.weight"): v
            for k, v in load_file(folder / part / "adapter_model.safetensors").items()
        }
        for part, prefix in (("unet_lora_adapter", ""), ("vae_encoder_lora_adapter", "encoder."))
    ]
    unet, vae = (
        _merged(base, part, state, {"x": 1.0}) for part, state in zip(("unet", "vae"), states, strict=True)
    )
    image, context = torch.rand(1, 3, 64, 128) * 2 - 1, load_file(prompt)["context"]
    alpha2 = DDPMScheduler.from_pretrained(base, subfolder="scheduler").alphas_cumprod[273]
    with torch.no_grad():
        z_l = vae.encode(image).latent_dist.mode() * vae.config.scaling_factor
        eps = unet(z_l, torch.tensor(273), encoder_hidden_states=context).sample
        z_0 = (z_l - (1 - alpha2).sqrt() * eps) / alpha2.sqrt()
    stages = functions_from_torch(source.stages)
    np.testing.assert_allclose(stages["encoder"]({"image": image.numpy()}), z_l.numpy(), atol=2e-5)
    np.testing.assert_allclose(stages["step"]({"z_l": z_l.numpy()}), z_0.numpy(), atol=1e-4)
    assert restrictive({x.part: x.licence for x in source.info.model.licences}["adapter"])
    config = folder / "unet_lora_adapter" / "adapter_config.json"
    facts = json.loads(config.read_text())
    for change, said in (
        ({"use_dora": True}, "use_dora is True, expected False: plain LoRA weights"),
        ({"r": 8}, "has rank 4, the file says 8"),
        ({"target_modules": ["to_k"]}, "has unknown"),
        ({"lora_alpha": None}, "is no adapter_config.json of PEFT"),
    ):
        config.write_text(json.dumps({**facts, **change}))
        with pytest.raises(ConfigError, match=said):
            _open(source=folder, **options)
    config.unlink()
    with pytest.raises(ConfigError, match="expected OMGSR-S's folder with unet_lora_adapter"):
        _open(source=folder, **options)


# ---------------------------------------------------------------------------------------------------------
# AdcSR


@pytest.fixture(scope="module")
def adcsr(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """net_params_200.pkl, halfDecoder.ckpt and a base folder with the number of heads, tiny."""
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from family_models import adcsr_files

    return adcsr_files(tmp_path_factory.mktemp("adcsr"))


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Watch an export from torch; the stages whose graphs were opened, never with another network in memory.

    Of 866 M parameters every copy more is gigabytes.
    """
    from yonos_export import exporter, verify

    refs: list[weakref.ref[Any]] = []
    opened: list[str] = []
    open_source, function = exporter._open, verify._function

    def source(config: ExportConfig) -> Any:
        found = open_source(config)
        refs.extend(weakref.ref(found.stages.module(stage)) for stage in ("encoder", "step", "decoder"))
        return found

    def one(stage: str, path: Path, **options: Any) -> Any:
        assert all(ref() is None for ref in refs), stage
        made = function(stage, path, **options)
        refs.append(weakref.ref(made))
        opened.append(stage)
        return made

    monkeypatch.setattr(exporter, "_open", source)
    monkeypatch.setattr(verify, "_function", one)
    return opened


def test_adcsr_becomes_graphs_with_other_channels_in_than_out(
    adcsr: tuple[Path, Path, Path], tmp_path: Path, networks: list[str]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    net, half, base = adcsr
    result = _run(
        "--from", "adcsr", net, "--half-decoder", half, "--base", base, "-o", tmp_path / "out", "--fp16",
        "--runtime", "tensorrt-rtx",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert networks[:9] == ["encoder", "step", "decoder"] * 3  # FP32, FP16 emulated, FP16
    manifest = load_manifest(tmp_path / "out", verify=True)
    model = manifest.model
    assert (model.latent_channels, model.channels("z_0"), manifest.tiles.encoder_input) == (12, 32, "lr")
    assert all(stage.find("tensorrt-rtx", "fp16") for _, stage in manifest.stages.items())
    with SR(tmp_path / "out", runtime="onnx", precision="fp16") as sr:
        assert sr.upscale(helpers.picture(33, 90)).shape == (132, 360, 3)


def test_the_shapes_of_adcsrs_real_size_make_its_456_million_parameters() -> None:
    """On the meta device: Stable Diffusion 2.1's U-Net, 3/4 as wide, without time and cross-attention."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from diffusers import UNet2DConditionModel
    from diffusers.models.autoencoders.vae import Decoder
    from yonos_export.families.adcsr import HEADS, HalfDecoder, PrunedUNet

    gone = re.compile(r"time_emb|\.attn2\.|transformer_blocks\.\d+\.norm2\.")
    with torch.device("meta"):
        whole = UNet2DConditionModel(
            in_channels=16, out_channels=342, block_out_channels=(320, 640, 1280, 1280),
            attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024, use_linear_projection=True,
        ).state_dict()  # fmt: skip
        state = {
            key: torch.empty([int(n * 0.75) for n in value.shape[:2]] + list(value.shape[2:]))
            for key, value in whole.items()
            if not gone.search(key)
        }
        half = Decoder(
            in_channels=4, out_channels=3, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(64, 128, 256, 256), layers_per_block=2,
        ).state_dict()  # fmt: skip
        half = {key: value for key, value in half.items() if not key.startswith("conv_in.")}
        networks = ((PrunedUNet(state, HEADS), state), (HalfDecoder(half), half))
    for network, wanted in networks:
        own = {key: value.shape for key, value in network.state_dict().items()}
        assert own == {key: value.shape for key, value in wanted.items()}
    assert sum(p.numel() for network, _ in networks for p in network.parameters()) == 456_073_683
    assert networks[1][0].width == state["conv_out.weight"].shape[0] == 256


_ALIAS = "module.body.1.body.2.resnets.0.conv1.bias"


def _narrow(net: dict[str, Any]) -> None:
    """Let a convolution read fewer channels than there are, as nothing but running it shows."""
    for key in [k for k in net if re.search(r"(up_blocks\.1|body\.4)\.resnets\.1\.conv1\.weight", k)]:
        net[key] = net[key][:, :40]


def _net(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any], dict[str, Any]], Any]:
    return lambda net, half: change(net)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            _net(lambda d: d.pop("module.body.1.mid_block.resnets.1.conv2.bias")),
            "is not the layer that stands",
        ),
        (
            _net(lambda d: d.update({"module.body.1.odd.weight": d["module.body.1.conv_in.bias"]})),
            "has unknown",
        ),
        (_net(lambda d: d.update({"module.body.3.x": d["module.body.1.conv_in.bias"]})), "has unknown"),
        (
            _net(lambda d: d.update({_ALIAS: d[_ALIAS] + 1})),
            "is not the layer that stands",
        ),
        (_net(lambda d: d.pop("module.body.1.conv_in.weight")), "network: it has no conv_in.weight"),
        (
            _net(lambda d: d.update({"module.body.1.conv_in.weight": d["module.body.1.conv_in.bias"]})),
            r"conv_in\.weight is \(24,\), expected 4 dimensions",
        ),
        (_net(_narrow), "does not make AdcSR's network: .*channel"),
        (lambda net, half: net.update(half), r"has unknown decoder\."),
        (
            _net(
                lambda d: d.update({"module.body.1.conv_in.weight": d["module.body.1.conv_in.weight"][:, :8]})
            ),
            "conv_in reads 8 channels, expected 12",
        ),
        (lambda net, half: half.pop("decoder.conv_out.bias"), "lacks conv_out.bias"),
        (lambda net, half: half.clear(), "no tensor of its state_dict is called decoder"),
    ],
)
def test_adcsr_files_that_do_not_fit_are_named(
    adcsr: tuple[Path, Path, Path],
    tmp_path: Path,
    change: Callable[[dict[str, Any], dict[str, Any]], Any],
    said: str,
) -> None:
    import torch

    net, half = (torch.load(path, weights_only=True) for path in adcsr[:2])
    change(net, half["state_dict"])
    for name, document in (("net.pkl", net), ("half.ckpt", half)):
        torch.save(document, tmp_path / name)
    with pytest.raises(ConfigError, match=said):
        _open(source=tmp_path / "net.pkl", family="adcsr", half_decoder=tmp_path / "half.ckpt", base=adcsr[2])


def test_adcsr_with_the_wrong_number_of_heads_is_refused(
    adcsr: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="attention heads for 4"):
        _open(source=adcsr[0], family="adcsr", half_decoder=adcsr[1])
    shutil.copytree(adcsr[2], tmp_path / "base")
    for text, said in (
        ('{"attention_head_dim": [5, 4], "block_out_channels": [1, 1]}', "24 channels in 5 heads"),
        ("{", "does not say how many attention heads"),
        ('{"attention_head_dim": [5], "block_out_channels": [1, 1]}', "expected 2 numbers"),
    ):
        (tmp_path / "base" / "unet" / "config.json").write_text(text)
        with pytest.raises(ConfigError, match=said):
            _open(source=adcsr[0], family="adcsr", half_decoder=adcsr[1], base=tmp_path / "base")
