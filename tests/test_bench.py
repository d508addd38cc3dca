"""`yonos bench`: what is timed, counted and reported."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import make_engine_dir
from numpy.typing import NDArray

from yonos_trt.backends.numpy import NumpyBackend
from yonos_trt.bench import BenchConfig, measure
from yonos_trt.bench import machine as bench_machine
from yonos_trt.bench import peaks as bench_peaks
from yonos_trt.bench import run as bench_run
from yonos_trt.bench.flops import count_flop
from yonos_trt.bench.machine import DeviceMemory, PeakMemory
from yonos_trt.bench.peaks import Peaks, Probe, measure_peaks
from yonos_trt.bench.probes import LIBRARIES, WORK, Work, onnx_bytes
from yonos_trt.cli.bench import table
from yonos_trt.cli.main import cli
from yonos_trt.engine.schema import identity_manifest
from yonos_trt.errors import ConfigError, EngineNotFoundError

PEAKS = Peaks(
    copy_gbytes_s=10.0,
    probes=(
        Probe("numpy 2", "fp32", "matrix product of 512 x 512", 2, 60.0),
        Probe("library 1", "fp32", "3x3 convolution, 64 channels, 128 x 128", 2, 100.0),
        Probe("library 1", "bf16", "matrix product of 512 x 512", 2, 180.0),
    ),
    not_run={"torch": "not installed"},
)


@pytest.fixture
def quick_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_run, "measure_peaks", lambda: PEAKS)


@pytest.fixture
def engine_dir(tmp_path: Path) -> Path:
    return make_engine_dir(tmp_path / "engine")


def quick(engine_dir: Path, **options: Any) -> BenchConfig:
    given = {"size_lr_px": (64, 96), "warm_up": 0, "iterations": 2, "duration_s": 0.0} | options
    return BenchConfig(engine_dir, **given)


# ---------------------------------------------------------------------------------------------------------
# Arithmetic


def graph(path: Path, nodes: list[Any], inputs: list[str], weights: dict[str, tuple[int, ...]]) -> Path:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    made = helper.make_graph(
        nodes,
        "counted",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.mark.parametrize(
    ("kind", "attributes", "weight", "shape", "multiplications"),
    [
        # 8 outputs x 10 x 12 positions, each a sum over 6 x 3 x 3
        ("Conv", {"pads": [1, 1, 1, 1]}, (8, 6, 3, 3), (1, 6, 10, 12), 8 * 10 * 12 * 6 * 9),
        # two groups: half of the inputs each; stride 2
        ("Conv", {"group": 2, "strides": [2, 2]}, (8, 3, 2, 2), (3, 6, 10, 12), 3 * 8 * 5 * 6 * 3 * 4),
        # every one of 6 x 10 x 12 inputs is spread to 4 x 2 x 2
        ("ConvTranspose", {"strides": [2, 2]}, (6, 4, 2, 2), (1, 6, 10, 12), 6 * 10 * 12 * 4 * 4),
        ("MatMul", {}, (7, 5), (2, 3, 7), 2 * 3 * 7 * 5),
        ("Gemm", {"transA": 1}, (7, 5), (7, 3), 3 * 7 * 5),
        ("Gemm", {"transB": 1}, (5, 7), (3, 7), 3 * 7 * 5),
    ],
)
def test_arithmetic_is_counted_exactly(
    tmp_path: Path,
    kind: str,
    attributes: dict[str, Any],
    weight: tuple[int, ...],
    shape: tuple[int, ...],
    multiplications: int,
) -> None:
    from onnx import helper

    node = helper.make_node(kind, ["x", "w"], ["y"], **attributes)
    path = graph(tmp_path / "g.onnx", [node], ["x"], {"w": weight})
    assert count_flop(path, {"x": shape}) == 2 * multiplications


def test_other_nodes_count_nothing_and_no_profile_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnx import helper

    monkeypatch.chdir(tmp_path)
    path = graph(tmp_path / "g.onnx", [helper.make_node("LeakyRelu", ["x"], ["y"])], ["x"], {})
    assert count_flop(path, {"x": (2, 3)}) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["g.onnx"]


# ---------------------------------------------------------------------------------------------------------
# Machine


def test_a_peak_is_the_largest_of_its_own_precision_and_says_what_reached_it() -> None:
    document = json.loads(json.dumps(PEAKS.as_dict()))
    assert document["gflops"] == {"fp32": 100.0, "bf16": 180.0}
    assert document["probe"]["fp32"] == "library 1, 3x3 convolution, 64 channels, 128 x 128, 2 threads"
    assert document["matmul_gflops"] == 60.0  # NumPy's, which scales documents of two machines
    assert PEAKS.best("fp16") is None
    assert len(document["probes"]) == 3


def test_peaks_cover_the_networks_kernels_in_every_library_that_is_here() -> None:
    peaks = measure_peaks(
        seconds=0.0, libraries=("onnxruntime", "quantum"), matmul_size=256, copy_bytes=16 << 20
    )
    assert peaks.not_run == {"quantum": "not installed"}
    kernels = {p.kernel for p in peaks.probes if p.library.startswith("onnxruntime ")}
    assert kernels == {work.name for work in WORK}
    assert {work.kernel for work in WORK} == {"convolution", "matmul"}
    best = peaks.best("fp32")
    assert best is not None
    assert best.gflops == max(probe.gflops for probe in peaks.probes)
    assert all(0.1 < probe.gflops < 1e6 for probe in peaks.probes)
    assert 0.05 < peaks.copy_gbytes_s < 1e5


@pytest.mark.parametrize("work", WORK, ids=lambda work: work.name)
def test_probes_and_networks_count_their_arithmetic_alike(tmp_path: Path, work: Work) -> None:
    """Otherwise a share of the peak compares two different things."""
    import onnx

    (tmp_path / "probe.onnx").write_bytes(onnx_bytes(work))
    onnx.checker.check_model(str(tmp_path / "probe.onnx"), full_check=True)
    assert count_flop(tmp_path / "probe.onnx", {"x": work.input_shape}) == work.flop


@pytest.mark.parametrize("library", ["onnxruntime", "openvino", "torch"])
def test_every_library_computes_the_chain_it_is_timed_on(library: str) -> None:
    pytest.importorskip(library)
    small = (Work("convolution", 8, 6, 2), Work("matmul", 16, 0, 3))
    from yonos_trt.bench import probes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "WORK", small)
        for precision, work, threads, call in LIBRARIES[library](1):
            x = np.random.default_rng(2).standard_normal(work.input_shape, np.float32)
            expected = x.astype(np.float64)
            weight = work.weight().astype(np.float64)
            for _ in range(work.length):
                if work.kernel == "matmul":
                    expected = expected @ weight
                else:
                    padded = np.pad(expected[0], ((0, 0), (1, 1), (1, 1)))
                    shifted = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
                    expected = np.einsum("chwij,ocij->ohw", shifted, weight)[None]
            tolerance = 1e-4 if precision == "fp32" else 0.1
            assert threads == 1
            assert np.abs(np.asarray(call(x)) - expected).max() < tolerance * np.abs(expected).max()


def test_a_library_that_fails_is_reported_with_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_peaks, "_LIBRARY_TIMEOUT_S", 60)
    found = bench_peaks._library_probes("json", 0.0)  # installed, but nothing that can be probed
    assert found == "its probes failed: KeyError: 'json'"


def test_peak_memory_belongs_to_the_body_alone() -> None:
    with PeakMemory() as large:
        block = np.ones(200 << 20, np.uint8)
        del block
    with PeakMemory() as small:
        pass
    assert large.peak_bytes - large.before_bytes > 190 << 20
    if Path("/proc/self/clear_refs").exists():
        assert small.peak_bytes - small.before_bytes < 50 << 20


def fake_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, answers: str) -> None:
    """Put an nvidia-smi on the path that answers from a file."""
    (folder / "used").write_text(answers)
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat '{folder / 'used'}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def test_peak_of_the_gpus_memory_is_what_nvidia_smi_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_smi(tmp_path, monkeypatch, "500\n")
    with DeviceMemory() as memory:
        (tmp_path / "used").write_text("1700\n")
        deadline = time.monotonic() + 10
        while memory.peak_mib != 1700 and time.monotonic() < deadline:
            time.sleep(0.01)
        (tmp_path / "used").write_text("600\n")
    assert memory.as_dict() == {"peak_mib": 1700.0, "added_mib": 1200.0}


def test_without_nvidia_smi_there_is_no_device_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with DeviceMemory() as memory:
        pass
    assert memory.as_dict() is None


def test_machine_names_processor_cores_and_versions() -> None:
    machine = bench_machine.describe_machine()
    assert machine["cores"] >= 1
    assert machine["processor"]
    assert machine["versions"]["numpy"] == np.__version__
    json.dumps(machine)


# ---------------------------------------------------------------------------------------------------------
# Timing


def slow(seconds: float) -> Any:
    def decode(tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        time.sleep(seconds)
        return tiles

    return decode


@pytest.mark.usefixtures("quick_peaks")
def test_the_slow_stage_is_named_with_its_time(monkeypatch: pytest.MonkeyPatch, engine_dir: Path) -> None:
    manifest = identity_manifest(default_px=128, overlap_px=32)
    backend = NumpyBackend(manifest, decode=slow(0.02))
    monkeypatch.setattr(bench_run, "load_manifest", lambda *_, **__: manifest)
    monkeypatch.setattr(bench_run, "open_backend", lambda *_: backend)
    document = measure(quick(engine_dir, percentiles=(50.0, 75.0), gflop=False, iterations=3))
    (entry,) = document["entries"]
    stages = {stage["stage"]: stage for stage in entry["stages"]}
    assert stages["decode"]["samples"] == 3 * entry["tiles"]
    assert 20.0 <= stages["decode"]["p50_ms"] <= stages["decode"]["p75_ms"]
    assert stages["decode"]["median_low_ms"] <= stages["decode"]["median_ms"]
    assert max(stages, key=lambda name: stages[name]["share"]) == "decode"
    picture = entry["picture"]
    assert picture["with_transfers"]["p50_ms"] >= 20.0 * entry["tiles"]
    assert picture["without_transfers"]["mean_ms"] < picture["with_transfers"]["mean_ms"]
    assert picture["with_transfers"]["samples"] == entry["pictures"] == 3
    assert 0 < entry["overhead"] < 1


@pytest.mark.usefixtures("quick_peaks")
def test_every_combination_is_timed_and_rates_follow_from_the_counts(engine_dir: Path) -> None:
    document = measure(quick(engine_dir, runtimes=("onnx",), lanes=(1, 2), tiles_px=(48, 96)))
    entries = document["entries"]
    assert [(e["lanes"], e["tile_px"]) for e in entries] == [(1, 48), (1, 96), (2, 48), (2, 96)]
    small, large = ({s["stage"]: s for s in e["stages"]} for e in entries[:2])
    for name in ("encode", "step", "decode"):
        assert large[name]["gflop"] == pytest.approx(4 * small[name]["gflop"])
        expected = large[name]["gflop"] / (large[name]["median_ms"] / 1e3)
        assert large[name]["gflops"] == pytest.approx(expected)
        assert large[name]["of_peak"] == pytest.approx(expected / 100.0)  # the fastest fp32 probe
    assert large["blend"]["of_peak"] == pytest.approx(large["blend"]["gbytes_s"] / PEAKS.copy_gbytes_s)
    assert entries[0]["overhead"] is not None
    assert entries[2]["overhead"] is None  # lanes overlap: the sum of the stages is not the wall time
    assert len({row["key"] for row in document["rows"]}) == len(document["rows"])


@pytest.mark.usefixtures("quick_peaks")
@pytest.mark.parametrize(("precision", "peak"), [("fp32", 100.0), ("bf16", 180.0), ("fp16", None)])
def test_a_share_is_of_the_peak_of_its_own_precision(
    monkeypatch: pytest.MonkeyPatch, engine_dir: Path, precision: str, peak: float | None
) -> None:
    open_as_usual = bench_run.open_backend

    def opened(*arguments: Any) -> Any:
        backend: Any = open_as_usual(*arguments)
        backend.precision = precision
        return backend

    monkeypatch.setattr(bench_run, "open_backend", opened)
    document = measure(quick(engine_dir, runtimes=("onnx",)))
    (step,) = (stage for stage in document["entries"][0]["stages"] if stage["stage"] == "step")
    assert step["gflops"] > 0
    assert step.get("of_peak") == (None if peak is None else pytest.approx(step["gflops"] / peak))
    assert ("no share of a peak" in table(document)) == (peak is None)


@pytest.mark.usefixtures("quick_peaks")
def test_runtime_that_cannot_run_is_reported_not_hidden(engine_dir: Path) -> None:
    document = measure(quick(engine_dir, runtimes=("tensorrt", "onnx"), gflop=False))
    assert [entry["runtime"] for entry in document["entries"]] == ["onnx"]
    assert document["not_run"][0]["runtime"] == "tensorrt"
    assert "yonos-export" in document["not_run"][0]["reason"]
    with pytest.raises(EngineNotFoundError):
        measure(quick(engine_dir, runtimes=("tensorrt",)))


@pytest.mark.parametrize(
    "options", [{"iterations": 0}, {"percentiles": (0.0,)}, {"lanes": ()}, {"duration_s": -1.0}]
)
def test_options_out_of_range_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        BenchConfig(tmp_path, **options)


@pytest.mark.usefixtures("quick_peaks")
def test_command_prints_a_table_and_writes_json(engine_dir: Path, tmp_path: Path) -> None:
    target = tmp_path / "bench.json"
    arguments = [
        "bench",
        "-m",
        str(engine_dir),
        "--runtime",
        "onnx,tensorrt",
        "--size",
        "40x56",
        "--lanes",
        "1",
    ]
    arguments += ["--duration", "0", "--iterations", "1", "--percentile", "50,95", "--json", str(target)]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.stderr
    assert "100 GFLOP/s in fp32 (library 1, 3x3 convolution" in result.stdout
    assert "torch: not probed, not installed" in result.stdout
    for text in ("p95 ms", "decode", "GFLOP/s", "trtexec 10", "not run: tensorrt", "peak", "picture"):
        assert text in result.stdout
    document = json.loads(target.read_text())
    assert set(document["conventions"]) == {"with_transfers", "without_transfers"}
    assert str(tmp_path) not in target.read_text()  # nothing of this machine's folders
    other = CliRunner().invoke(cli, [*arguments[:-2], "--no-transfers"])
    assert "trtexec 11" in other.stdout


def test_a_json_file_that_cannot_be_written_is_refused_before_the_work(
    engine_dir: Path, tmp_path: Path
) -> None:
    target = tmp_path / "absent" / "bench.json"
    result = CliRunner().invoke(cli, ["bench", "-m", str(engine_dir), "--json", str(target)])
    assert result.exit_code == 2
    assert f"the folder {target.parent} does not exist" in result.stderr
    assert result.stdout == ""


def test_a_json_file_that_is_a_device_is_refused_before_the_work(engine_dir: Path) -> None:
    result = CliRunner().invoke(cli, ["bench", "-m", str(engine_dir), "--json", "/dev/full"])
    assert result.exit_code == 2
    assert "/dev/full cannot be written" in result.stderr
    assert result.stdout == ""


def test_command_refuses_bad_lists_and_unknown_runtimes(engine_dir: Path) -> None:
    for bad in (["--lanes", "1,x"], ["--size", "12"], ["--runtime", "quantum"]):
        assert CliRunner().invoke(cli, ["bench", "-m", str(engine_dir), *bad]).exit_code == 2
