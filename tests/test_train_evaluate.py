"""Metrics by hand, protocols, reports, and the ``yonos-train eval`` command."""

# ruff: noqa: E402  (imports follow the skip for installations without torch)

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchmetrics")

from click.testing import CliRunner
from PIL import Image
from yonos_train.evaluate import EvaluationError, Pair, crop_pairs, evaluate, whole_pairs
from yonos_train.evaluate_command import evaluate_command
from yonos_train.metrics import MetricError, Metrics, luma, psnr_y, ssim_y
from yonos_train.model import BundleConfig, LiteConfig, new_bundle, save_bundle
from yonos_train.upscalers import BicubicUpscaler, BundleUpscaler


def picture(h: int, w: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(2, h // 8), max(2, w // 8), 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((w, h), Image.Resampling.BICUBIC))


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """One set with LR files, one with HR pictures only, one of them larger than the other."""
    for k in range(2):
        hr = picture(48, 64, k)
        for name, image in (("HR", hr), ("LR", np.asarray(Image.fromarray(hr).resize((16, 12))))):
            folder = tmp_path / "data" / "pairs" / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"p{k}.png")
    (tmp_path / "data" / "alone" / "HR").mkdir(parents=True)
    Image.fromarray(picture(97, 85, 5)).save(tmp_path / "data" / "alone" / "HR" / "big.png")
    Image.fromarray(picture(40, 40, 6)).save(tmp_path / "data" / "alone" / "HR" / "small.png")
    return tmp_path / "data"


def tiny_bundle(folder: Path, scale: int = 4) -> Path:
    torch.manual_seed(0)
    architecture = LiteConfig(latent_channels=4, unet_widths=(8, 16), unet_blocks=1, time_dim=16)
    return save_bundle(new_bundle(BundleConfig("tiny", scale, architecture)), folder)


# Metrics


def test_luma_is_matlabs() -> None:
    colours = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0]]], dtype=np.uint8)
    np.testing.assert_allclose(luma(colours)[0], [16, 235, 81])


def test_psnr_leaves_the_border_out() -> None:
    hr = picture(32, 32)
    sr = hr.copy()
    sr[:4] = 255 - sr[:4]
    assert psnr_y(sr, hr, 4) == 100.0
    grey_hr, grey_sr = np.full((9, 9, 3), 100, np.uint8), np.full((9, 9, 3), 110, np.uint8)
    step = 110 - 102  # 110 and 100 on the 16..235 scale, rounded
    assert psnr_y(grey_sr, grey_hr, 0) == pytest.approx(20 * np.log10(255 / step), abs=1e-6)


def test_ssim_equals_the_definition_at_one_window() -> None:
    """An 11 x 11 picture has one valid window: compare with the formula written out."""
    a, b = picture(11, 11, 1), picture(11, 11, 2)
    axis = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    w = np.outer(axis, axis) / axis.sum() ** 2
    x, y = luma(a), luma(b)
    mx, my = (w * x).sum(), (w * y).sum()
    vx, vy = (w * x * x).sum() - mx**2, (w * y * y).sum() - my**2
    cov = (w * x * y).sum() - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert ssim_y(a, b, 0) == pytest.approx(expected, rel=1e-4)
    assert ssim_y(a, a, 0) == pytest.approx(1.0)


@pytest.mark.data
def test_bicubic_on_set5_gives_the_published_figures(data_dir: Path) -> None:
    """28.42 dB and 0.8104 are the figures SR papers print for MATLAB bicubic x4 on Set5 (Y, border 4)."""
    if not (data_dir / "dev" / "set5_x4").is_dir():
        pytest.skip("Set5 is not there")
    report = evaluate(
        {"bicubic": BicubicUpscaler(4)},
        whole_pairs(data_dir / "dev" / "set5_x4", 4),
        Metrics(("psnr_y", "ssim_y"), {}),
    )
    assert report.means[0]["psnr_y"] == pytest.approx(28.42, abs=0.01)
    assert report.means[0]["ssim_y"] == pytest.approx(0.8104, abs=0.0005)


@pytest.mark.data
def test_niqe_of_baboon_is_the_published_value(data_dir: Path) -> None:
    """5.72957 by MATLAB's own code (as BasicSR's documentation gives it)."""
    path = data_dir / "dev" / "set14_x4" / "HR" / "img_001.png"
    metrics = Metrics(("niqe",), {"niqe": str(data_dir / "weights" / "niqe_pris_params.npz")})
    baboon = np.asarray(Image.open(path).convert("RGB"))
    found = metrics.pair(baboon, baboon, border_px=0)
    assert found["niqe"] == pytest.approx(5.72957, abs=1e-3)
    blurred = np.asarray(Image.fromarray(baboon).resize((125, 120)).resize((500, 480)))
    assert metrics.pair(blurred, baboon, border_px=0)["niqe"] > 1.2 * found["niqe"]
    with pytest.raises(MetricError, match="needs two blocks of 96 px, got a picture of 64 x 64 px"):
        metrics.pair(picture(64, 64), picture(64, 64), border_px=0)
    flat = np.full((192, 192, 3), 90, np.uint8)
    with pytest.raises(MetricError, match="the picture is flat"):
        metrics.pair(flat, flat, border_px=0)


def test_an_asymmetric_gaussian_is_fitted_back() -> None:
    from yonos_train.niqe import fit_asymmetric

    rng = np.random.default_rng(0)
    values = rng.standard_normal(200_000)
    shape, left, right = fit_asymmetric(values)
    assert shape == pytest.approx(2.0, abs=0.05)  # a normal density: exp(-(x / (sqrt(2) sigma))^2)
    assert left == pytest.approx(2**0.5, abs=0.03) == right
    _, left, right = fit_asymmetric(np.where(values < 0, values, 2 * values))
    assert right / left == pytest.approx(2.0, abs=0.05)
    assert np.isnan(fit_asymmetric(np.abs(values))[0])


def test_metrics_that_cannot_be_computed_are_refused(tmp_path: Path) -> None:
    for name, text in (
        ("lpips_alex", "--weights lpips_alex=FILE"),
        ("dists", "lpips_vgg"),
        ("fid", "fid_inception"),
        ("niqe", "--weights niqe=FILE"),
        ("beauty", "expected some of psnr_y"),
    ):
        with pytest.raises(MetricError, match=text):
            Metrics((name,), {})
    (tmp_path / "other.npz").write_bytes(b"nothing")
    for file in ("none.npz", "other.npz"):
        with pytest.raises(MetricError, match=f"{file}.*is not its pristine model"):
            Metrics(("niqe",), {"niqe": str(tmp_path / file)})
    with pytest.raises(ValueError, match="not a file"):
        Metrics(("lpips_alex",), {"lpips_alex": str(tmp_path / "none")})
    with pytest.raises(MetricError, match="one size"):
        Metrics(("psnr_y",), {}).pair(picture(8, 8), picture(8, 9), border_px=0)
    with pytest.raises(MetricError, match="too small"):
        psnr_y(picture(8, 8), picture(8, 8), 4)


@pytest.mark.filterwarnings("ignore:Metric `FrechetInceptionDistance` will save")
def test_fid_without_its_network_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MetricError, match=r"no file .*none.*expected torch-fidelity's weights-inception"):
        Metrics(("fid",), {"fid_inception": str(tmp_path / "none")})
    (tmp_path / "broken.pth").write_bytes(b"not a network")
    installed = importlib.util.find_spec("torch_fidelity") is not None
    text = "is not the Inception network" if installed else "pip install torch-fidelity"
    with pytest.raises(MetricError, match=text):
        Metrics(("fid",), {"fid_inception": str(tmp_path / "broken.pth")})


class _Means(torch.nn.Module):
    """Stands in for Inception: three channel means and three deviations as features."""

    num_features = 6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.double()
        return torch.cat([x.mean((2, 3)), x.std((2, 3))], dim=1)


@pytest.mark.filterwarnings("ignore:Metric `FrechetInceptionDistance` will save")
def test_fid_is_zero_for_the_same_set_and_grows_with_a_shift() -> None:
    metrics = Metrics(("fid",), {}, fid_features=_Means())
    pictures = [picture(16, 16, k) for k in range(8)]
    for p in pictures:
        metrics.add_to_set(p, p)
    assert metrics.finish_set()["fid"] == pytest.approx(0, abs=1e-2)
    for p in pictures:
        metrics.add_to_set((p // 2).astype(np.uint8), p)
    assert metrics.finish_set()["fid"] > 10
    with pytest.raises(MetricError, match="at least 2 pictures"):
        metrics.finish_set()


# Protocols


def test_whole_pairs_use_given_lr_where_it_fits_and_make_it_otherwise(sets: Path) -> None:
    four = whole_pairs(sets, 4)
    assert [(p.set, p.name, p.lr is not None) for p in four] == [
        ("alone", "big", False),
        ("alone", "small", False),
        ("pairs", "p0", True),
        ("pairs", "p1", True),
    ]
    lr, hr = four[0].load()
    assert (lr.shape, hr.shape) == ((24, 21, 3), (96, 84, 3))
    assert np.array_equal(four[2].load()[0], np.asarray(Image.open(sets / "pairs" / "LR" / "p0.png")))
    assert all(p.lr is None for p in whole_pairs(sets, 2, sets=["pairs"]))
    assert len(whole_pairs(sets / "pairs", 4)) == 2
    assert len(whole_pairs(sets, 4, limit=1)) == 2


def test_crops_are_seeded_inside_the_picture_and_skip_small_ones(sets: Path) -> None:
    pairs = crop_pairs(sets, 4, crops=3, hr_px=64, degradation="realesrgan", seed=3)
    assert [p.name for p in pairs] == ["big_00", "big_01", "big_02"]
    assert len({p.crop_px for p in pairs}) == 3
    again = crop_pairs(sets, 4, crops=3, hr_px=64, degradation="realesrgan", seed=3)
    assert pairs == again
    for p, q in zip(pairs, again, strict=True):
        (lr, hr), (lr2, _) = p.load(), q.load()
        assert lr.shape == (16, 16, 3)
        assert hr.shape == (64, 64, 3)
        assert np.array_equal(lr, lr2)
        top, left, _ = p.crop_px or (0, 0, 0)
        whole = np.asarray(Image.open(sets / "alone" / "HR" / "big.png"))
        assert np.array_equal(hr, whole[top : top + 64, left : left + 64])
    assert pairs != crop_pairs(sets, 4, crops=3, hr_px=64, seed=4)


def test_unusable_folders_are_refused(sets: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="not a folder"):
        whole_pairs(tmp_path / "none", 4)
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match="no pictures"):
        whole_pairs(tmp_path / "empty", 4)
    with pytest.raises(EvaluationError, match="no picture has 512 px"):
        crop_pairs(sets, 4)
    with pytest.raises(EvaluationError, match="no multiple"):
        crop_pairs(sets, 4, hr_px=63)
    wrong = Pair("s", "n", sets / "pairs" / "HR" / "p0.png", sets / "pairs" / "LR" / "p0.png", 2)
    with pytest.raises(EvaluationError, match="is not the HR size"):
        wrong.load()


# Evaluation


def test_report_holds_rows_means_and_ratios(sets: Path, tmp_path: Path) -> None:
    pairs = whole_pairs(sets, 4)

    def nearest(lr: Any) -> Any:
        return lr.repeat(4, axis=0).repeat(4, axis=1)

    metrics = Metrics(("psnr_y", "ssim_y"), {})
    report = evaluate(
        {"bicubic": BicubicUpscaler(4), "nearest": nearest}, pairs, metrics, save=tmp_path / "sr"
    )
    assert len(report.rows) == 8
    assert [(m["set"], m["method"], m["pictures"]) for m in report.means][-2:] == [
        ("all", "bicubic", 4),
        ("all", "nearest", 4),
    ]
    own = [row["psnr_y"] for row in report.rows if row["method"] == "bicubic"]
    assert report.means[-2]["psnr_y"] == pytest.approx(np.mean(own))
    saved = np.asarray(Image.open(tmp_path / "sr" / "nearest" / "pairs" / "p1.png"))
    assert np.array_equal(saved, nearest(pairs[3].load()[0]))

    # what was saved can be measured as another program's result
    again = evaluate({}, pairs, metrics, results={"files": tmp_path / "sr" / "nearest"})
    assert [r["psnr_y"] for r in again.rows] == [r["psnr_y"] for r in report.rows if r["method"] == "nearest"]
    paths = report.write(tmp_path / "out" / "table")
    assert json.loads(paths[0].read_text())["means"] == report.means
    assert "| all | 4 | nearest |" in paths[1].read_text()


def test_wrong_size_and_missing_results_are_refused(sets: Path, tmp_path: Path) -> None:
    pairs, metrics = whole_pairs(sets, 4, sets=["pairs"]), Metrics(("psnr_y",), {})
    with pytest.raises(EvaluationError, match="check that it upscales by 4"):
        evaluate({"x2": BicubicUpscaler(2)}, pairs, metrics)
    with pytest.raises(EvaluationError, match=r"no pairs/p0\.png"):
        evaluate({}, pairs, metrics, results={"other": tmp_path})
    with pytest.raises(EvaluationError, match="rename one"):
        evaluate({"a": BicubicUpscaler(4)}, pairs, metrics, results={"a": tmp_path})


def test_ratio_to_bicubic_is_printed_for_distances() -> None:
    from yonos_train.evaluate import Report

    means = [
        {"set": "s", "method": "bicubic", "pictures": 1, "seconds": 0.0, "lpips_alex": 0.5},
        {"set": "s", "method": "ours", "pictures": 1, "seconds": 1.0, "lpips_alex": 0.2},
    ]
    assert "| ours | 0.2000 (0.40) | 1.00 |" in Report(("lpips_alex",), [], means).to_markdown()


@pytest.mark.parametrize("size", [(7, 5), (16, 16), (33, 18)])
def test_bundle_upscaler_returns_the_exact_size_for_any_picture(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    from yonos_train.model import load_bundle

    bundle = load_bundle(tiny_bundle(tmp_path))
    lr = picture(*size)
    one = BundleUpscaler(bundle)(lr)
    assert one.shape == (4 * size[0], 4 * size[1], 3)
    assert np.array_equal(one, BundleUpscaler(bundle)(lr))
    with pytest.raises(ValueError, match="expected >= 1"):
        BundleUpscaler(bundle, steps=0)


def test_eval_command_writes_tables(sets: Path, tmp_path: Path) -> None:
    folder = tiny_bundle(tmp_path / "bundle")
    arguments = [
        "--data", str(sets), "--scale", "4", "--sets", "pairs", "--metrics", "psnr_y,ssim_y",
        "--model", f"tiny={folder}", "--steps", "1,2", "-o", str(tmp_path / "table"),
    ]  # fmt: skip
    result = CliRunner().invoke(evaluate_command, arguments)
    assert result.exit_code == 0, result.output
    methods = {row["method"] for row in json.loads((tmp_path / "table.json").read_text())["rows"]}
    assert methods == {"bicubic", "tiny", "tiny, 2 steps"}
    assert "| pairs | 2 | tiny, 2 steps |" in result.output


def test_eval_command_reports_errors_in_one_line(sets: Path, tmp_path: Path) -> None:
    base = ["--data", str(sets), "--scale", "4"]
    result = CliRunner().invoke(evaluate_command, base)
    assert result.exit_code == 1
    assert "--weights lpips_alex=FILE" in result.output
    result = CliRunner().invoke(
        evaluate_command,
        [*base, "--metrics", "psnr_y", "--model", f"a={tiny_bundle(tmp_path, scale=2)}"],
    )
    assert result.exit_code == 1
    assert "model for x2, expected x4" in result.output
    assert CliRunner().invoke(evaluate_command, [*base, "--steps", "0"]).exit_code == 2
    assert CliRunner().invoke(evaluate_command, [*base, "--model", "nameless"]).exit_code == 2
