"""The parity gate: fixed inputs, figures, and a failing gate that leaves everything as it was."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("filelock")

import helpers
from yonos_export import ExportConfig, Thresholds, export
from yonos_export.config import DEFAULT_THRESHOLDS
from yonos_export.model_info import ModelInfo, licence_chain
from yonos_export.samples import extremes, make_samples, read_pictures
from yonos_export.verify import (
    Figures,
    ParityReport,
    compare,
    functions_from_onnx,
    gate,
    measure,
    run_chains,
)

from yonos_trt.engine.manifest import STAGE_TENSORS, load_manifest
from yonos_trt.engine.schema import Licence
from yonos_trt.errors import BuildError, ConfigError, InputError


@pytest.fixture
def graphs(tmp_path: Path) -> Path:
    return helpers.make_engine_dir(tmp_path / "source")


def _functions(folder: Path) -> dict[str, Any]:
    return functions_from_onnx({stage: folder / f"{stage}.onnx" for stage in STAGE_TENSORS})


# ---------------------------------------------------------------------------------------------------------
# Inputs


@pytest.mark.parametrize("encoder_input", ["upsampled", "lr"])
def test_samples_are_the_same_every_time_and_have_the_models_shapes(
    tmp_path: Path, encoder_input: str
) -> None:
    folder = helpers.make_engine_dir(tmp_path / "m", encoder_input=encoder_input)
    info = ModelInfo.of(load_manifest(folder))
    first, second = make_samples(info, tile_px=128), make_samples(info, tile_px=128)
    assert [s.name for s in first] == ["chelsea.png", "coffee.png", "extremes"]
    side = info.legal_tile(128)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.noise, b.noise)
        assert a.image.shape == info.shape("encoder", "image", batch=1, tile_px=(side, side))
        assert a.noise.shape == info.shape("step", "noise", batch=1, tile_px=(side, side))
        assert -1.6 < a.image.min() < a.image.max() < 1.6  # bicubic overshoots at edges
    assert abs(float(first[0].noise.std()) - 1) < 0.1


def test_computed_picture_holds_black_white_and_a_fine_grid() -> None:
    picture = extremes()
    assert picture.min() == 0
    assert picture.max() == 255
    grid = picture[:64, 64:, 0]
    assert set(np.unique(grid)) == {0, 255}
    assert (np.diff(grid.astype(int), axis=1) != 0).all()


def test_pictures_of_the_caller_are_added_and_bad_ones_named(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("L", (9, 5), 128).save(tmp_path / "mine.png")
    mine = read_pictures([tmp_path / "mine.png"])["mine.png"]
    assert mine.shape == (5, 9, 3)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"bad\.png cannot be read"):
        read_pictures([tmp_path / "bad.png"])


# ---------------------------------------------------------------------------------------------------------
# Figures


def test_compare_reports_error_psnr_and_cosine() -> None:
    a = np.array([0.0, 1.0, -1.0, 1.0], np.float32)
    b = a + np.array([0, 0, 0, 0.1], np.float32)
    figures = compare([(a, b)])
    assert figures.max_error == pytest.approx(0.1, abs=1e-6)
    assert figures.psnr_db == pytest.approx(10 * math.log10(4 / (0.01 / 4)), abs=1e-4)
    assert figures.cosine == pytest.approx(3.1 / math.sqrt(3 * 3.21), abs=1e-6)
    assert compare([(a, b)], peak=1.0).psnr_db == pytest.approx(figures.psnr_db - 6.0206, abs=1e-3)
    assert compare([(a, a)]) == Figures(0.0, math.inf, pytest.approx(1.0))
    assert compare([(a, a)]).record().psnr_db is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_never_pass(bad: float) -> None:
    a = np.ones(4, np.float32)
    b = a.copy()
    b[2] = bad
    figures = compare([(a, a), (a, b)])
    report = ParityReport({"step": figures}, figures)
    assert len(report.failures(Thresholds(-1.0, -math.inf, -1e9))) >= 1


def test_gate_lists_every_figure_that_misses() -> None:
    good, bad = Figures(0.0, 90.0, 1.0), Figures(1.0, 20.0, 0.9)
    limits = DEFAULT_THRESHOLDS["fp16"]
    gate(ParityReport({"encoder": good, "step": good}, good), limits, what="it")
    with pytest.raises(BuildError) as caught:
        gate(ParityReport({"encoder": good, "step": bad}, bad), limits, what="the FP16 graph")
    text = str(caught.value)
    assert "encoder" not in text
    for part in ("step: cosine 0.900000", "step: PSNR 20.0 dB", "end to end: PSNR 20.0 dB", "--fp32-islands"):
        assert part in text


def test_stage_answers_for_itself_only(tmp_path: Path) -> None:
    right = helpers.make_engine_dir(tmp_path / "a")
    other = helpers.make_engine_dir(tmp_path / "b", seed=2)
    samples = make_samples(ModelInfo.of(load_manifest(right)), tile_px=64)
    reference = _functions(right)
    mixed = {**reference, "step": _functions(other)["step"]}
    report = measure(run_chains(reference, samples), mixed, samples)
    assert math.isinf(report.stages["encoder"].psnr_db)
    assert math.isinf(report.stages["decoder"].psnr_db)
    assert report.stages["step"].psnr_db < 60
    assert not math.isinf(report.end_to_end.psnr_db)


# ---------------------------------------------------------------------------------------------------------
# The gate inside an export


def test_failing_parity_fails_the_export_and_touches_nothing(graphs: Path) -> None:
    before = {p.name: p.read_bytes() for p in graphs.iterdir()}
    impossible = Thresholds(cosine=1.0, stage_psnr_db=300.0, end_to_end_psnr_db=300.0)
    config = ExportConfig(
        source=graphs, engine_dir=graphs, precision="fp16", thresholds=impossible, verify_tile_px=64
    )
    with pytest.raises(BuildError, match="the FP16 graph does not agree with the reference"):
        export(config)
    assert {p.name: p.read_bytes() for p in graphs.iterdir()} == before
    assert not [p for p in graphs.parent.iterdir() if ".work-" in p.name or ".new-" in p.name]


def test_overflow_without_automatic_islands_is_an_error_that_names_the_node(
    graphs: Path, tmp_path: Path
) -> None:
    import hashlib

    import onnx
    from onnx import numpy_helper

    model = onnx.load(graphs / "decoder.onnx")
    conv = next(n for n in model.graph.node if n.op_type == "Conv")
    conv.name = "decoder.loud/Conv"
    for tensor in model.graph.initializer:
        if tensor.name == conv.input[1]:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1e6, tensor.name))
    raw = model.SerializeToString()
    (graphs / "decoder.onnx").write_bytes(raw)
    helpers.edit_manifest(
        graphs,
        lambda d: d["stages"]["decoder"]["artifacts"][0].update(
            sha256=hashlib.sha256(raw).hexdigest(), bytes=len(raw)
        ),
    )
    options: dict[str, Any] = {
        "source": graphs,
        "engine_dir": tmp_path / "out",
        "precision": "fp16",
        "verify_tile_px": 64,
        "verify": False,
    }
    with pytest.raises(BuildError, match=r"leaves the range of fp16 at the node .*--fp32-islands 'decoder:"):
        export(ExportConfig(**options, auto_islands=False))
    assert not (tmp_path / "out").exists()
    export(ExportConfig(**options))
    assert load_manifest(tmp_path / "out").stages.decoder.find("onnx", "fp16")


def test_existing_directory_is_replaced_only_when_forced(graphs: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    config = ExportConfig(source=graphs, engine_dir=target)
    export(config)
    with pytest.raises(ConfigError, match="--force"):
        export(config)
    (target / "decoder.onnx").unlink()
    export(ExportConfig(source=graphs, engine_dir=target, force=True))
    load_manifest(target, verify=True)


def test_force_replaces_an_engine_directory_and_nothing_else(graphs: Path, tmp_path: Path) -> None:
    """``-o . --force`` beside the weights once removed them."""
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "me.jpg").write_bytes(b"x")
    config = ExportConfig(source=graphs, engine_dir=photos, force=True)
    with pytest.raises(ConfigError, match=r"is no engine directory \(no manifest\.json\)"):
        export(config)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"source lies in .*, which is written anew as a whole"):
        export(dataclasses.replace(config, engine_dir=tmp_path))
    picture = Path(shutil.copy(photos / "me.jpg", graphs))
    for more in ({"verify_images": (picture,)}, {"onnx_dir": graphs}):
        with pytest.raises(ConfigError, match="which is written anew as a whole"):
            export(dataclasses.replace(config, engine_dir=graphs, **more))  # type: ignore[arg-type]
    assert (photos / "me.jpg").read_bytes() == b"x"
    assert picture.is_file()


def test_dry_run_writes_nothing(graphs: Path, tmp_path: Path) -> None:
    assert export(ExportConfig(source=graphs, engine_dir=tmp_path / "out", dry_run=True)) is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def test_file_and_checkpoint_are_not_overwritten(graphs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="is a file"):
        export(ExportConfig(source=graphs, engine_dir=tmp_path / "file", force=True))
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="is the checkpoint itself"):
        export(ExportConfig(source=tmp_path / "checkpoint", engine_dir=tmp_path / "checkpoint", force=True))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"precision": "fp8"}, "precision is 'fp8', expected one of fp32, fp16, bf16"),
        ({"runtime": "coreml"}, "runtime is 'coreml'"),
        ({"opset": 11}, "opset is 11, expected 18 to 23"),
        ({"batch": 0}, "batch is 0"),
        ({"builder_optimization_level": 9}, "expected 0 to 5"),
        ({"strip_weights": True}, "strip_weights belongs to engines"),
        ({"runtime": "tensorrt-rtx", "version_compatible": True}, "for runtime tensorrt only"),
        ({"runtime": "tensorrt", "compute_capabilities": ("8.6",)}, "for runtime tensorrt-rtx only"),
        ({"min_shape": (0, 64)}, r"min_shape is \(0, 64\)"),
        ({"workspace_mb": 0}, "workspace_mb is 0"),
    ],
)
def test_contradicting_options_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        ExportConfig(source=Path("a"), engine_dir=Path("b"), **changes)


def test_licence_facts_become_a_chain_without_losing_any() -> None:
    facts = {
        "code": "Apache-2.0",
        "data": [{"licence": "CC0-1.0", "source": "here", "files": 3}, "CC-BY-4.0"],
    }
    chain = licence_chain(facts)
    assert chain == (
        Licence(part="code", licence="Apache-2.0"),
        Licence(part="data", licence="CC0-1.0", source="here; files: 3"),
        Licence(part="data", licence="CC-BY-4.0"),
    )
