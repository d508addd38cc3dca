"""The grid measure finds a pattern of the given period and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import make_engine_dir, strokes
from PIL import Image

pytest.importorskip("torch")  # pairs of pictures are the trainer's

from benchmarks.studies.grid import grid_db, grid_spectrum_db, main
from yonos_trt.engine.manifest import load_manifest


def texture(seed: int, side: int = 320) -> np.ndarray:
    """Noise with a falling spectrum, as textures have, uint8."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft2(rng.standard_normal((side, side)))
    fy, fx = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    luma = np.fft.irfft2(spectrum / (0.02 + np.hypot(fy, fx)), s=(side, side))
    return np.repeat((128 + 25 * (luma / luma.std())).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def dotted(picture: np.ndarray, height: int, period: int) -> np.ndarray:
    """Every period-th pixel of every period-th row brighter."""
    out = picture.astype(int)
    out[::period, ::period] += height
    return out.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("period", [2, 4, 8])
def test_a_pattern_is_found_at_its_period_only(period: int) -> None:
    plain = texture(1)
    assert grid_db(plain, period) < 1.0
    assert grid_db(dotted(plain, 48, period), period) > 3.0
    assert grid_db(dotted(plain, 48, 3), period) < 1.0


def test_stripes_are_found_at_their_own_frequency() -> None:
    striped = texture(1).astype(int)
    striped[::2] += 8
    found = grid_spectrum_db(striped.clip(0, 255).astype(np.uint8), 4)
    assert found.shape == (4, 4)
    assert np.isnan(found[0, 0])
    assert np.unravel_index(np.nanargmax(found), found.shape) == (
        2,
        0,
    )  # 1 / 2 cycle per px down, none across
    others = np.delete(found.ravel(), [0, 8])
    assert found[2, 0] > 10 + others.max()


def test_stronger_patterns_measure_stronger() -> None:
    levels = [grid_db(dotted(texture(2), height, 4), 4) for height in (0, 8, 16, 32)]
    assert levels == sorted(levels)
    assert levels[-1] - levels[0] > 3.0


def test_a_pattern_in_a_quiet_half_is_not_drowned_by_a_busy_one() -> None:
    picture = texture(3).astype(float)
    picture[:, :160] = 128 + 0.1 * (picture[:, :160] - 128)
    plain = picture.round().astype(np.uint8)
    quiet = plain.copy()
    quiet[:, :160] = dotted(plain[:, :160], 6, 4)
    assert grid_db(quiet, 4) > grid_db(plain, 4) + 2.0


@pytest.mark.parametrize(
    ("shape", "period", "message"),
    [
        ((200, 100, 3), 4, "at least 128 px a side"),
        ((200, 200), 4, r"expected \(H, W, 3\)"),
        ((200, 200, 3), 3, "period_px: got 3"),
        ((200, 200, 3), 1, "period_px: got 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(shape: tuple[int, ...], period: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grid_db(np.zeros(shape, np.uint8), period)


def test_command_measures_what_is_large_enough_and_names_the_rest(tmp_path: Path) -> None:
    engine = make_engine_dir(tmp_path / "engine")
    pictures = tmp_path / "dev" / "one" / "HR"
    pictures.mkdir(parents=True)
    Image.fromarray(texture(1, 160)[:64]).save(pictures / "small.png")
    arguments = [str(tmp_path / "dev"), "--engine", str(engine), "--out", str(tmp_path / "grid.json")]
    nothing = CliRunner().invoke(main, arguments)
    assert nothing.exit_code == 1
    assert "no picture of at least 128 px" in nothing.output
    assert not (tmp_path / "grid.json").exists()
    Image.fromarray(texture(2, 160)).save(pictures / "large.png")
    done = CliRunner().invoke(main, [*arguments, "--frequencies"])
    assert done.exit_code == 0, done.output
    assert "one/small" in done.output
    period = load_manifest(engine).model.latent_factor
    for key in ("original", "bicubic", "upscaled"):
        _, table = done.output.split(f"{key}: k / {period} cycles per px down")
        lines = table.splitlines()[1 : period // 2 + 2]
        assert np.shape([[float(word) for word in line.split()] for line in lines]) == (
            period // 2 + 1,
            period,
        )
    assert [row["name"] for row in json.loads((tmp_path / "grid.json").read_text())["rows"]] == ["large"]


def test_command_takes_a_shipped_models_name_and_makes_the_named_lr_pictures(tmp_path: Path) -> None:
    Image.fromarray(strokes(30, 6.5)).save(tmp_path / "lines.png")
    found = {}
    for degradation in ("bicubic", "average"):
        out = tmp_path / f"{degradation}.json"
        arguments = [str(tmp_path), "--engine", "lite-x4", "--degradation", degradation, "--out", str(out)]
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.output
        document = json.loads(out.read_text())
        assert document["degradation"] == degradation
        (row,) = document["rows"]
        assert row["line_patches"] > 20
        assert f"{row['line_patches']} patches of 1 pictures" in done.output
        found[degradation] = row["across_lines"]
    assert found["average"]["original"] == found["bicubic"]["original"]
    assert found["average"]["bicubic"] != found["bicubic"]["bicubic"]
