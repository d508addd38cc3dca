"""OpenVINO: agrees with ONNX Runtime, is deterministic over lanes, refuses what it cannot do."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import edit_manifest, make_engine_dir, picture, psnr_db

import yonos_trt
from yonos_trt import SR
from yonos_trt.backends import choose
from yonos_trt.backends.openvino import OpenVinoBackend
from yonos_trt.backends.ort import OrtBackend
from yonos_trt.cli import doctor, options
from yonos_trt.cli.main import cli
from yonos_trt.errors import (
    ClosedError,
    ConfigError,
    EngineIntegrityError,
    ManifestError,
    MissingExtraError,
    NumericError,
)
from yonos_trt.host import has_bf16, usable_cpus
from yonos_trt.pipeline import upscale_array
from yonos_trt.planning import plan_picture

openvino = pytest.importorskip("openvino", reason="openvino is not installed: pip install '.[openvino]'")


def capabilities() -> list[str]:
    return [str(c) for c in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")]


def run(backend: Any, image: Any, *, batch: int = 1) -> Any:
    plan = plan_picture(backend.manifest, *image.shape[:2], batch=batch)
    try:
        return upscale_array(image, backend, plan=plan.tiles, seed=3)
    finally:
        backend.close()


@pytest.mark.parametrize("encoder_input", ["upsampled", "lr"])
def test_fp32_agrees_with_onnx_runtime(tmp_path: Path, encoder_input: str) -> None:
    directory = make_engine_dir(tmp_path / "engine", encoder_input=encoder_input)
    image = picture(53, 71)
    ours = run(OpenVinoBackend(directory, precision="fp32", threads=1), image)
    theirs = run(OrtBackend(directory, threads=1), image)
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1
    assert psnr_db(ours, theirs) > 60


def test_a_step_without_noise_runs_in_lanes_as_in_onnx_runtime(tmp_path: Path) -> None:
    directory = make_engine_dir(tmp_path / "engine", start="latent")
    image = picture(53, 71)
    theirs = run(OrtBackend(directory, threads=1), image)
    for lanes, batch in ((1, 1), (3, 2)):
        backend = OpenVinoBackend(directory, precision="fp32", threads=2, lanes=lanes)
        assert psnr_db(run(backend, image, batch=batch), theirs) > 60


def test_bf16_stays_close_and_is_the_default_where_the_cpu_has_it(engine_dir: Path) -> None:
    image = picture(53, 71)
    backend = OpenVinoBackend(engine_dir, threads=1)
    assert backend.precision == ("bf16" if "BF16" in capabilities() else "fp32")
    assert psnr_db(run(backend, image), run(OrtBackend(engine_dir, threads=1), image)) > 40


def test_the_result_is_the_same_for_any_lanes_and_batch_padding(engine_dir: Path) -> None:
    image = picture(61, 67)
    results = [
        run(OpenVinoBackend(engine_dir, precision="fp32", threads=2, lanes=lanes), image, batch=2)
        for lanes in (1, 2, 3)
    ]
    for other in results[1:]:
        assert np.array_equal(results[0], other)


@pytest.mark.parametrize("runtime", ["openvino", "onnx"])
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are listed in Linux' /proc")
@pytest.mark.skipif(usable_cpus() < 2, reason="one CPU")
def test_no_thread_is_pinned_so_two_processes_share_the_cpus(engine_dir: Path, runtime: str) -> None:
    """Pinned to the first CPUs, two processes of one thread each took twice the time, on half the machine."""
    seen: set[frozenset[int]] = set()
    with SR(engine_dir, runtime=runtime, threads=1) as sr:
        work = threading.Thread(target=lambda: [sr.upscale(picture(40, 40)) for _ in range(8)])
        work.start()
        while work.is_alive():
            for task in Path("/proc/self/task").iterdir():
                with contextlib.suppress(ProcessLookupError):  # it has ended
                    seen.add(frozenset(os.sched_getaffinity(int(task.name))))
        work.join()
    assert seen == {frozenset(os.sched_getaffinity(0))}


def test_sr_runs_it_by_name(engine_dir: Path) -> None:
    image = picture(21, 33)
    with yonos_trt.SR(engine_dir, runtime="openvino") as sr:
        assert sr.info()["backend"] == "OpenVinoBackend"
        assert sr.upscale(image).shape == (84, 132, 3)


# ---------------------------------------------------------------------------------------------------------
# What "auto" takes


@pytest.fixture
def bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with bfloat16, and nothing pinned."""
    monkeypatch.delenv(choose.PINNED)
    monkeypatch.setattr(choose, "has_bf16", lambda: True)


def taken(engine_dir: Path, **options: Any) -> str:
    with yonos_trt.SR(engine_dir, **options) as sr:
        return str(sr.info()["backend"]).removesuffix("Backend")


def test_auto_is_openvino_where_the_cpu_has_bf16(
    engine_dir: Path, bf16: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        assert taken(engine_dir) == "OpenVino"
    assert "runtime auto is openvino" in caplog.text
    assert options.on_cpu({"device": -1, "runtime": "auto"})["runtime"] == "openvino"
    for others in ({"runtime": "onnx"}, {"precision": "fp32"}, {"providers": ["CPUExecutionProvider"]}):
        assert taken(engine_dir, **others) == "Ort", others
    assert options.on_cpu({"device": -1, "runtime": "auto", "precision": "fp32"})["runtime"] == "onnx"


def test_auto_is_onnx_runtime_without_bf16_without_the_package_and_where_it_fails(
    engine_dir: Path, bf16: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(choose, "has_bf16", lambda: False)
    assert taken(engine_dir) == "Ort"
    monkeypatch.setattr(choose, "has_bf16", lambda: True)
    with monkeypatch.context() as patched:
        patched.setattr(choose.importlib.util, "find_spec", lambda name: None)
        assert taken(engine_dir) == "Ort"

    def broken() -> Any:
        raise ImportError("a library is missing")

    monkeypatch.setattr("yonos_trt.backends.openvino.import_openvino", broken)
    assert taken(engine_dir) == "Ort"
    assert "OpenVINO is not used" in caplog.text


def test_auto_can_be_pinned(engine_dir: Path, bf16: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choose.PINNED, "onnx")
    assert taken(engine_dir) == "Ort"
    monkeypatch.setattr(choose, "has_bf16", lambda: False)
    monkeypatch.setenv(choose.PINNED, "openvino")
    assert taken(engine_dir) == "OpenVino"
    monkeypatch.setenv(choose.PINNED, "fast")
    with pytest.raises(ConfigError, match="expected onnx or openvino"):
        taken(engine_dir)


def test_info_says_what_runs_it(engine_dir: Path, bf16: None) -> None:
    said = CliRunner().invoke(cli, ["info", str(engine_dir)]).output
    precision = "bf16" if "BF16" in capabilities() else "fp32"
    assert f"runs on     OpenVinoBackend, {precision}, chosen by --runtime auto" in said


def test_doctor_measures_what_is_there_and_names_what_would_be_faster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured = doctor.runtime_speeds()
    assert set(measured) == {"onnx", "openvino"}
    assert all(x["s_per_mpx"] > 0 for x in measured.values())

    def said(speed: dict[str, Any], gpus: Sequence[dict[str, str]] = ()) -> str:
        facts = {"driver": {"gpus": list(gpus)}, "tensorrt": {"tensorrt": {"version": None}}, "speed": speed}
        return " / ".join(doctor._speed_lines(facts))

    slow, fast = {"precision": "fp32", "s_per_mpx": 4.0}, {"precision": "bf16", "s_per_mpx": 2.0}
    speed = {"bf16": True, "auto": "openvino", "s_per_mpx": {"onnx": slow, "openvino": fast}, "problem": ""}
    assert "openvino, 2.0 times as fast as onnx, is in use" in said(speed)
    assert "--runtime openvino is 2.0 times as fast as auto here" in said(speed | {"auto": "onnx"})
    alone = speed | {"auto": "onnx", "s_per_mpx": {"onnx": slow}}
    assert ".[openvino]" in said(alone)
    assert "no extra would make" in said(alone | {"bf16": False})
    assert ".[rtx]" in said(alone, [{"compute_capability": "8.9"}])
    assert ".[tensorrt]" in said(alone, [{"compute_capability": "9.0"}])
    assert "not measured: why" in said(alone | {"s_per_mpx": {}, "problem": "why"})


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu avx2", False), ("fpu avx512f avx512_bf16", True), ("fpu amx_bf16 amx_tile", True), (None, False)],
)
def test_bf16_is_read_from_the_cpus_flags(tmp_path: Path, flags: str | None, expected: bool) -> None:
    if flags is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n\n" * 2)
    assert has_bf16(tmp_path) == expected


def test_precision_the_cpu_lacks_is_refused(engine_dir: Path) -> None:
    able = capabilities()
    lacking = [ours for ours, theirs in (("fp16", "FP16"), ("bf16", "BF16")) if theirs not in able]
    for precision in lacking:
        with pytest.raises(ConfigError, match="computes in"):
            OpenVinoBackend(engine_dir, precision=precision)
    assert "FP32" in able


def test_missing_package_names_the_extra(engine_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    importlib.invalidate_caches()
    with pytest.raises(MissingExtraError, match=r"\.\[openvino\]"):
        OpenVinoBackend(engine_dir)


def test_closed_backend_says_so(engine_dir: Path) -> None:
    backend = OpenVinoBackend(engine_dir, threads=1)
    backend.close()
    backend.close()
    with pytest.raises(ClosedError):
        backend.encode(np.zeros((1, 3, 32, 32), np.float32), lane=0)


def test_damaged_graph_and_foreign_tensors_are_refused(engine_dir: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(engine_dir, tmp_path / "damaged"))
    raw = (copy / "step.onnx").read_bytes()
    (copy / "step.onnx").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(EngineIntegrityError):
        OpenVinoBackend(copy)
    foreign = make_engine_dir(tmp_path / "foreign", names={"z_0": "other"})
    with pytest.raises(ManifestError, match="other"):
        OpenVinoBackend(foreign)


def test_nonsense_graph_with_a_right_hash_cannot_be_compiled(engine_dir: Path, tmp_path: Path) -> None:
    import hashlib

    copy = Path(shutil.copytree(engine_dir, tmp_path / "nonsense"))
    raw = (copy / "decoder.onnx").read_bytes().replace(b"DepthToSpace", b"DeathToSpace")
    (copy / "decoder.onnx").write_bytes(raw)

    def change(document: dict[str, Any]) -> None:
        artifact = document["stages"]["decoder"]["artifacts"][0]
        artifact |= {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}

    edit_manifest(copy, change)
    with pytest.raises(EngineIntegrityError, match="cannot compile"):
        OpenVinoBackend(copy)


def test_an_operation_that_does_nothing_at_an_input_is_no_obstacle(tmp_path: Path) -> None:
    """OpenVINO drops it and gives the input a second name."""
    import hashlib

    import onnx
    from onnx import helper, numpy_helper

    directory = make_engine_dir(tmp_path / "engine")
    image = picture(20, 30)
    expected = run(OpenVinoBackend(directory, precision="fp32", threads=1), image)
    model = onnx.load(directory / "decoder.onnx")
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1, 1, 1), np.float32), "nothing"))
    model.graph.node[0].input[0] = "same"
    model.graph.node.insert(0, helper.make_node("Add", ["z_0", "nothing"], ["same"]))
    raw = model.SerializeToString()
    (directory / "decoder.onnx").write_bytes(raw)

    def change(document: dict[str, Any]) -> None:
        artifact = document["stages"]["decoder"]["artifacts"][0]
        artifact |= {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}

    edit_manifest(directory, change)
    got = run(OpenVinoBackend(directory, precision="fp32", threads=1), image)
    assert np.array_equal(got, expected)


def test_nan_is_found_with_stage_and_tile(tmp_path: Path) -> None:
    directory = make_engine_dir(tmp_path / "engine", nan_stage="step")
    with pytest.raises(NumericError, match="'step'"):
        run(OpenVinoBackend(directory, precision="fp32", threads=1), picture(16, 16))
