"""``yonos-export`` from a trained checkpoint to a picture, and the command line itself."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
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

import yonos_trt
from yonos_trt.engine.manifest import file_record, load_manifest
from yonos_trt.errors import BuildError


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def graphs(tmp_path: Path) -> Path:
    return helpers.make_engine_dir(tmp_path / "source")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A checkpoint exported with ``--fp16 --runtime tensorrt-rtx``, as a user does it."""
    pytest.importorskip("torch")
    pytest.importorskip("tensorrt_rtx")
    from export_models import small_checkpoint

    folder = tmp_path_factory.mktemp("cli")
    checkpoint = small_checkpoint(folder / "checkpoint")
    result = _run(
        checkpoint,
        "--engine-dir",
        folder / "engines",
        "--fp16",
        "--runtime",
        "tensorrt-rtx",
        "--verify-tile",
        64,
    )
    return folder / "engines", result


def test_checkpoint_becomes_fp32_fp16_and_engines_with_parity(exported: tuple[Path, Result]) -> None:
    folder, result = exported
    assert result.exit_code == 0, result.output
    manifest = load_manifest(folder, verify=True)
    for name, stage in manifest.stages.items():
        kinds = [(a.runtime, a.precision) for a in stage.artifacts]
        assert kinds == [("onnx", "fp32"), ("onnx", "fp16"), ("tensorrt-rtx", "fp16")]
        parity = manifest.parity.stages[name]  # type: ignore[index]
        assert parity["fp32"].cosine > 0.999999
        assert parity["fp16"].cosine > 0.999
        assert parity["fp16"].max_error > parity["fp32"].max_error
    assert (manifest.parity.end_to_end_psnr_db["fp16"] or 999) > 45
    assert "end to end fp16" in result.output


def test_manifest_carries_training_licences_and_card(exported: tuple[Path, Result]) -> None:
    folder, _ = exported
    model = load_manifest(folder).model
    assert (model.name, model.scale, model.alpha_1, model.sigma_1) == ("small-x4", 4, 0.0, 1.0)
    assert model.training == {"steps": 3}
    assert [(x.part, x.licence, x.source) for x in model.licences] == [
        ("code", "Apache-2.0", ""),
        ("data", "CC0-1.0", "made up"),
    ]
    assert model.card is not None
    assert (folder / model.card.file).read_text() == "# small-x4\n"
    assert load_manifest(folder).created_by == f"yonos-export {yonos_trt.__version__}"


def test_range_report_lists_largest_values_and_islands(exported: tuple[Path, Result]) -> None:
    folder, _ = exported
    report = json.loads((folder / "fp16.ranges.json").read_text())
    assert set(report) == {"encoder", "step", "decoder"}
    assert report["decoder"]["fp32_islands"] == ["decoder.conv_out/Conv"]
    assert all(0 < v < 65504 / 4 for v in report["step"]["largest"].values())


def test_exported_directory_upscales_in_fp32_and_fp16(exported: tuple[Path, Result]) -> None:
    from yonos_trt import SR

    picture = helpers.picture(37, 23)
    with SR(exported[0], runtime="onnx", precision="fp32") as sr:
        fp32 = sr.upscale(picture)
    with SR(exported[0], runtime="onnx", precision="fp16") as sr:
        fp16 = sr.upscale(picture)
    assert fp32.shape == fp16.shape == (148, 92, 3)
    assert helpers.psnr_db(fp32, fp16) > 45
    assert int(np.abs(fp32.astype(int) - fp16).max()) <= 4


def test_every_field_of_the_config_has_an_option_and_reaches_it(tmp_path: Path, graphs: Path) -> None:
    result = _run(
        graphs, "-o", tmp_path / "o", "--bf16", "--runtime", "tensorrt-rtx", "--onnx-dir", "kept",
        "--no-keep-fp32", "--opset", "22", "--min-shape", "32x64", "--opt-shape", "64",
        "--max-shape", "96X128", "--batch", "3", "--workspace", "256", "--builder-optimization-level", "2",
        "--timing-cache", "times", "--compute-capability", "8.6", "--compute-capability", "12.0", "--refit",
        "--strip-weights",
        "--fp32-islands", "step:a*", "--no-auto-islands", "--no-verify", "--verify-images", "p.png",
        "--verify-tile", "64", "--min-psnr", "20", "--min-cosine", "0.9", "--force", "--dry-run",
    )  # fmt: skip
    if result.exit_code == 3:
        pytest.skip(f"tensorrt_rtx is not installed: {result.output}")
    assert result.exit_code == 0, result.output
    said = json.loads(result.output)
    assert set(said) == {f.name for f in dataclasses.fields(ExportConfig)}
    expected: dict[str, Any] = {
        "precision": "bf16", "runtime": "tensorrt-rtx", "onnx_dir": "kept", "keep_fp32": False, "opset": 22,
        "min_shape": [32, 64], "opt_shape": [64, 64], "max_shape": [96, 128], "batch": 3, "workspace_mb": 256,
        "builder_optimization_level": 2, "timing_cache": "times", "compute_capabilities": ["8.6", "12.0"],
        "refit": True, "strip_weights": True, "fp32_islands": ["step:a*"], "auto_islands": False,
        "verify": False, "verify_images": ["p.png"], "verify_tile_px": 64, "force": True, "dry_run": True,
        "thresholds": {"cosine": 0.9, "stage_psnr_db": 20.0, "end_to_end_psnr_db": 20.0},
    }  # fmt: skip
    assert {k: said[k] for k in expected} == expected
    assert not (tmp_path / "o").exists()
    told = _run(graphs, "-o", "x", "--hardware-compatibility", "ampere-plus", "--version-compatible")
    assert told.exit_code == 2
    assert "for runtime tensorrt only" in told.output or "belongs to engines" in told.output


def test_options_are_these(capsys: pytest.CaptureFixture[str]) -> None:
    found = sorted(set(re.findall(r"--[a-z0-9-]+", _run("--help").output)))
    assert found == sorted(
        [
            "--auto-islands", "--batch", "--bf16", "--builder-optimization-level", "--compute-capability",
            "--base", "--checkpoint", "--config", "--decoder", "--device", "--encoder", "--from",
            "--half-decoder", "--licence", "--pixel", "--prompt", "--prompt-embeds", "--scale", "--semantic",
            "--step",
            "--dry-run", "--engine-dir", "--force", "--fp16", "--fp32", "--fp32-islands",
            "--hardware-compatibility", "--help", "--keep-fp32", "--max-shape", "--min-cosine", "--min-psnr",
            "--min-shape", "--no-auto-islands", "--no-keep-fp32", "--no-verify", "--onnx-dir", "--onnx-only",
            "--opset", "--opt-shape", "--progress", "--quiet", "--refit", "--restore", "--restored",
            "--runtime", "--strip-weights",
            "--timing-cache", "--triton", "--verbose", "--verify", "--verify-images", "--verify-tile",
            "--version-compatible", "--workspace",
        ]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere", "-o", "out"], 2, "nowhere is not a directory"),
        (["SOURCE"], 2, "--engine-dir"),
        (["SOURCE", "-o", "out", "--opt-shape", "64by64"], 2, "write HEIGHTxWIDTH"),
        (["SOURCE", "-o", "out", "--opt-shape", "²"], 2, "write HEIGHTxWIDTH"),
        (["SOURCE", "-o", "out", "--verify-tile", "0"], 2, "verify_tile_px is 0, expected 1 to"),
        (["SOURCE", "-o", "out", "--fp16", "--min-psnr", "nan"], 2, "expected a number of dB"),
        (["SOURCE", "-o", "out", "--fp16", "--min-psnr", "inf"], 2, "expected a number of dB"),
        (["SOURCE", "-o", "out", "--onnx-only", "--runtime", "tensorrt"], 2, "contradict each other"),
        (["SOURCE", "-o", "SOURCE", "--fp16", "--min-psnr", "400"], 3, "does not agree with the reference"),
    ],
)
def test_mistakes_have_exit_codes_and_one_line(
    graphs: Path, tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    words = [str(graphs) if a == "SOURCE" else str(tmp_path / a) if a == "out" else a for a in arguments]
    result = _run(*words)
    assert result.exit_code == code
    assert said in result.output
    assert "Traceback" not in result.output


def test_model_of_the_package_goes_by_its_name(
    graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yonos_trt.backends.choose.shipped_models", lambda: {"tiny-x4": graphs})
    assert _run("tiny-x4", "-o", tmp_path / "out", "--onnx-only").exit_code == 0
    assert load_manifest(tmp_path / "out").model.name == "tiny-x4"


def test_interrupt_ends_with_130_and_writes_nothing(
    graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("yonos_export.low_precision.low_graphs", interrupted)
    result = _run(graphs, "-o", tmp_path / "out", "--fp16")
    assert result.exit_code == 130
    assert not (tmp_path / "out").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


# ---------------------------------------------------------------------------------------------------------
# What is built where nothing is said


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[ExportConfig]:
    """Keep the configs of exports that are made, in place of engines."""
    import yonos_export.cli as cli

    made: list[ExportConfig] = []

    def export(config: ExportConfig, **_: Any) -> None:
        made.append(config)

    monkeypatch.setattr(cli, "export", export)
    return made


def installed(monkeypatch: pytest.MonkeyPatch, *runtimes: str) -> None:
    monkeypatch.setattr("yonos_export.tensorrt_module.usable_runtimes", lambda device: list(runtimes))


def test_without_source_and_runtime_the_shipped_x4_model_is_built_for_every_tensorrt(
    built: list[ExportConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    installed(monkeypatch, "tensorrt", "tensorrt-rtx")
    assert _run("--fp16").exit_code == 0
    target = Path("engines/lite-x4")
    assert [(c.runtime, c.precision, c.engine_dir) for c in built] == [
        ("tensorrt", "fp16", target),
        ("tensorrt-rtx", "fp16", target),
    ]
    assert built[0].source.name == "lite-x4"
    assert (built[0].source / "manifest.json").is_file()
    assert built[1].source == target  # what the first wrote is added to


def test_without_any_tensorrt_graphs_are_written_and_a_line_says_so(
    built: list[ExportConfig], monkeypatch: pytest.MonkeyPatch, graphs: Path, tmp_path: Path
) -> None:
    installed(monkeypatch)
    result = _run(graphs, "-o", tmp_path / "out", "--fp16")
    assert result.exit_code == 0
    assert [c.runtime for c in built] == ["onnx"]
    assert "no TensorRT is installed that can build here, so graphs only" in result.stderr
    assert "pip install -c constraints.txt '.[rtx]'" in result.stderr
    built.clear()
    result = _run(graphs, "-o", tmp_path / "out", "--onnx-only")
    assert (result.exit_code, [c.runtime for c in built], result.stderr) == (0, ["onnx"], "")


def test_a_tensorrt_that_cannot_build_here_is_left_out_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from yonos_export import tensorrt_module

    from yonos_trt.errors import EngineDeviceError

    def no_gpu(runtime: str, device: int) -> None:
        if runtime == "tensorrt":
            raise EngineDeviceError("no GPU can be used here")

    monkeypatch.setattr(tensorrt_module.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(tensorrt_module, "load_module", lambda runtime: object())
    monkeypatch.setattr(tensorrt_module, "require_gpu", no_gpu)
    assert tensorrt_module.usable_runtimes() == ["tensorrt-rtx"]
    assert "no tensorrt engines: no GPU can be used here" in caplog.text


@pytest.mark.slow
def test_the_readmes_command_builds_the_shipped_model_without_torch(tmp_path: Path) -> None:
    """torch and all else that ``[rtx]`` does not bring are blocked."""
    pytest.importorskip("tensorrt_rtx")
    blocked = ["torch", "onnxscript", "diffusers", "safetensors", "accelerate", "transformers", "yonos_train"]
    code = (
        f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n"
        "from yonos_export.cli import main\nmain(['--fp16'])\n"
    )
    root = Path(__file__).parent.parent
    paths = os.pathsep.join(str(root / part) for part in (".", "export"))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    manifest = load_manifest(tmp_path / "engines" / "lite-x4", verify=True)
    for stage in (manifest.stages.encoder, manifest.stages.step, manifest.stages.decoder):
        assert stage.find("tensorrt-rtx", "fp16")
        assert stage.find("onnx", "fp32")


def test_the_readme_opens_what_its_command_writes() -> None:
    result = CliRunner().invoke(main, ["--fp16", "--onnx-only", "--dry-run"])
    assert result.exit_code == 0, result.output
    folder = json.loads(result.stdout)["engine_dir"]
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert f'yonos_trt.SR("{folder}").upscale(array)' in readme


def test_extras_that_build_engines_bring_no_torch() -> None:
    import tomllib

    text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    for extra in ("rtx", "tensorrt"):
        names = {re.split(r"[^a-zA-Z0-9_-]", line)[0].replace("-", "_") for line in extras[extra]}
        assert {"onnx", "onnx_ir", "ml_dtypes", "filelock"} < names
        assert not names & {"torch", "onnxscript", "diffusers", "safetensors"}


# ---------------------------------------------------------------------------------------------------------
# Harm


@pytest.mark.parametrize("kibibytes", [1, 2, 4])
def test_a_full_disk_is_one_line_and_leaves_nothing(graphs: Path, tmp_path: Path, kibibytes: int) -> None:
    """The limit on file sizes stands for the disk."""
    resource = pytest.importorskip("resource")
    limit = kibibytes * 1024
    done = subprocess.run(
        [sys.executable, "-m", "yonos_export.cli", graphs, "-o", tmp_path / "out", "--fp16", "--onnx-only"],
        preexec_fn=lambda: (
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        ),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("yonos-export: ")
    assert "File too large" in line
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_folder_that_cannot_be_written_is_refused_before_the_source_is_opened(
    graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: Any) -> None:
        raise AssertionError("work was done first")

    monkeypatch.setattr("yonos_export.exporter.open_source", opened)
    (tmp_path / "file").write_text("in the way")
    for target in (tmp_path / "file" / "out", Path("/proc/out")):
        result = _run(graphs, "-o", target, "--onnx-only")
        assert result.exit_code in (2, 3)
        assert not isinstance(result.exception, OSError | AssertionError)
        assert "was not written" in result.output


@pytest.mark.slow
def test_what_a_killed_export_leaves_is_removed_by_the_next(graphs: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "yonos_export.cli",
        graphs,
        "-o",
        tmp_path / "out",
        "--fp16",
        "--onnx-only",
    ]
    (tmp_path / ".yonos-mine").mkdir()  # the user's own
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and not list(tmp_path.glob(".yonos-*.parts/new/*")):
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert list(tmp_path.glob(".yonos-*.parts"))
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [".yonos-mine", "out", "source"]


@pytest.mark.parametrize("moment", ["first event", "third event", "writing"])
def test_sigterm_during_an_export_ends_with_130_and_a_whole_directory(
    graphs: Path, tmp_path: Path, moment: str
) -> None:
    """The command in a process of its own; what it would have replaced stays until the new one is whole."""
    out = tmp_path / "out"
    shutil.copytree(graphs, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    script = "from yonos_trt.console import yonos_export; yonos_export()"
    options = ["-o", str(out), "--force", "--fp16", "--onnx-only", "--progress", "json"]
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(graphs), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    events = [json.loads(process.stderr.readline()) for _ in range(1 if moment == "first event" else 3)]
    if moment == "writing":
        while process.poll() is None and not list(tmp_path.glob(".yonos-*.parts/new/*")):
            time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)
    assert process.returncode == 130, (events, said)
    assert "Traceback" not in said[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
    load_manifest(out, verify=True)
    if moment != "writing":  # there, the new one may have been whole by then
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("name", ["weights.data", ".weights", "sub/weights.data"])
def test_weights_that_nothing_vouches_for_are_not_exported(graphs: Path, tmp_path: Path, name: str) -> None:
    """An FP32 graph of the source that takes weights from a file which is not listed with it."""
    import onnx

    manifest = load_manifest(graphs)
    artifact = manifest.stages.step.find("onnx", "fp32")[0]
    model = onnx.load(graphs / artifact.file)
    tensor = onnx.helper.make_tensor("hidden", onnx.TensorProto.FLOAT, (4,), bytes(16), raw=True)
    model.graph.initializer.append(tensor)
    onnx.external_data_helper.set_external_data(model.graph.initializer[-1], location=name)
    model.graph.initializer[-1].ClearField("raw_data")
    (graphs / artifact.file).write_bytes(model.SerializeToString())
    (graphs / name).parent.mkdir(exist_ok=True)
    (graphs / name).write_bytes(bytes(16))
    record = file_record(graphs / artifact.file)
    document = json.loads((graphs / "manifest.json").read_text())
    document["stages"]["step"]["artifacts"][0].update(sha256=record.sha256, bytes=record.bytes)
    (graphs / "manifest.json").write_text(json.dumps(document))
    result = _run(graphs, "-o", tmp_path / "out", "--fp16", "--onnx-only")
    assert result.exit_code == 3
    assert not (tmp_path / "out").exists()
    assert re.search(r"does not list as external data|is not named in manifest\.json", result.output)


def test_progress_json_ends_at_one(graphs: Path, tmp_path: Path) -> None:
    result = _run(graphs, "-o", tmp_path / "out", "--onnx-only", "--progress", "json")
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    assert [line["done"] for line in lines] == sorted(line["done"] for line in lines)
    assert lines[-1] == {"what": "done", "done": 1.0}


def test_error_of_the_library_reaches_the_user(
    graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: Any, **options: Any) -> None:
        raise BuildError("the step engine was not built: because")

    monkeypatch.setattr("yonos_export.low_precision.low_graphs", failing)
    result = _run(graphs, "-o", tmp_path / "out", "--fp16")
    assert result.exit_code == 3
    assert result.output.strip() == "yonos-export: the step engine was not built: because"


def test_engine_directory_is_converted_without_torch(graphs: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from yonos_export.cli import main\n"
        f"main([{str(graphs)!r}, '-o', {str(tmp_path / 'out')!r}, '--fp16', '--onnx-only'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), check=False
    )
    assert done.returncode == 0, done.stderr
    assert load_manifest(tmp_path / "out").stages.step.find("onnx", "fp16")


def test_importing_the_package_loads_no_heavy_module() -> None:
    heavy = ["torch", "onnx", "onnx_ir", "onnxruntime", "tensorrt", "tensorrt_rtx", "diffusers", "PIL"]
    code = f"import sys, yonos_export; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), check=True
    )
    assert done.stdout.strip() == "[]"
