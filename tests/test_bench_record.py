"""One command measures everything into one result file that the report can draw and `compare` can read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import make_engine_dir, picture
from PIL import Image

from benchmarks.compare import load_rows
from benchmarks.record import Step, main, steps
from benchmarks.report import build, flat_parts
from benchmarks.sweep_document import sweep_part


def row(name: str, **facts: Any) -> dict[str, Any]:
    machine = dict.fromkeys(
        ("processor", "cores", "instructions", "clock_mhz", "memory_gib", "system", "load_1min", "python",
         "versions", "gpu"), "x",
    )  # fmt: skip
    origin = {"commit": "0123", "model": {"name": "tiny-x4", "scale": 4, "weights_sha256": "ab"}}
    stats = {"median": 0.5, "min": 0.4, "max": 0.7}
    return {"name": name, "stats": stats, "extra_info": {**machine, **origin, **facts}}


def point(**options: Any) -> dict[str, Any]:
    facts = {"runtime": "onnx", "precision": "fp32", "height_lr_px": 64, "width_lr_px": 96, "tile_px": None,
             "tile_size_px": [256, 384], "batch": 1, "lanes": 1, "tiles": 1, "mpx_s": 0.2,
             "peak_rss_mib": 200.0, "device_memory": None}  # fmt: skip
    return row("bench_picture[x]", **(facts | options))


DOCUMENT = {
    "datetime": "2026-01-01T00:00:00+00:00",
    "machine_info": {"node": "name-of-the-host"},
    "benchmarks": [
        point(),
        point(tile_px=256, lanes=2),
        row("bench_cost_is_linear[onnx]", runtime="onnx", exponent=1.01,
            sizes={"64x64": {"seconds": {}, "mpx_s": 2.0}}),
        row("bench_folder", files=4, side_lr_px=8, seconds={}, over_one_by_one={},
            over_sum_of_parts={"value": 0.8, "low": 0.75, "high": 0.9, "samples": 5}),
        row("test_the_predicted_memory_is_an_upper_bound[1-1]"),
    ],
}  # fmt: skip


def test_sweep_becomes_a_document_without_the_hosts_name(tmp_path: Path) -> None:
    part = sweep_part(DOCUMENT, ["python"])
    text = json.dumps(part)
    assert "name-of-the-host" not in text
    assert [p["ms"]["value"] for p in part["points"]] == [500.0, 500.0]
    (tmp_path / "part.json").write_text(text)
    rows = load_rows(tmp_path / "part.json")
    found = rows["sweep/tiny-x4/onnx/64x96/tile default batch 1 lanes 1"]
    assert (found.value, found.low, found.high) == (500.0, 400.0, 700.0)
    assert rows["sweep/tiny-x4/onnx/64x96/tile 256 batch 1 lanes 2/peak memory"].unit == "MiB"
    assert rows["sweep/tiny-x4/folder over its parts"].high == 0.9
    assert len(rows) == 5


def test_sweep_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    part = sweep_part(DOCUMENT, ["python"]) | {"machine": MACHINE}
    page = build(list(flat_parts({"parts": [part]})))
    for text in ("1 of 256 x 384 px", "no GPU", "size<sup>1.01</sup>", "0.80 [0.75, 0.90] times the sum"):
        assert text in page


MACHINE = {
    "processor": "Example", "cores": 2, "instructions": [], "clock_mhz": 1.0, "memory_gib": 1.0, "gpu": None,
    "system": "Linux", "load_1min": 0.1, "python": "3.11", "versions": {},
}  # fmt: skip


def test_a_document_without_pictures_is_refused() -> None:
    with pytest.raises(ValueError, match="no whole pictures"):
        sweep_part({"benchmarks": [row("bench_folder")][:0]}, ["python"])


def test_steps_cover_every_model_and_name_their_documents(tmp_path: Path) -> None:
    engines = [tmp_path / "lite-x2", tmp_path / "lite-x4"]
    found = steps(
        engines, sweep=engines[1:], data=tmp_path, weights=["lpips_alex=w"], bundles=[tmp_path / "b"]
    )
    assert [step.name for step in found] == [
        "bench-lite-x2", "bench-lite-x4", "speed", "speed-large", "quality", "sweep-lite-x4",
    ]  # fmt: skip
    for step in found:
        words = step.command(tmp_path)
        assert any(word in (str(tmp_path / step.name), f"{tmp_path / step.name}.json") for word in words)
    assert "quality" not in [step.name for step in steps(engines)]
    assert dict(found[-1].environment)["YONOS_BENCH_ENGINE"] == str(engines[1])


@pytest.mark.slow
def test_everything_is_measured_into_one_file_and_a_second_call_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for needed in ("pytest_benchmark", "torch", "matplotlib"):
        pytest.importorskip(needed)
    data = tmp_path / "data"
    data.mkdir()
    Image.fromarray(picture(64, 72)).save(data / "a.png")
    engine_dir = make_engine_dir(tmp_path / "engine")
    out, work = tmp_path / "result.json", tmp_path / "work"
    arguments = [str(out), "--engine", str(engine_dir), "--data", str(data), "--sets", "", "--quick"]
    arguments += ["--work", str(work)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    document = json.loads(out.read_text())
    kinds = [part["kind"] for part in flat_parts(document)]
    assert kinds == ["yonos-bench", "speed", "speed", "quality", "quality", "sweep"]
    assert str(tmp_path) not in out.read_text()  # nothing of this machine's folders
    assert "Whole pictures by size" in build(list(flat_parts(document)))
    assert len(load_rows(out)) > 20
    monkeypatch.setattr("benchmarks.record.subprocess.run", None)
    assert CliRunner().invoke(main, arguments).exit_code == 0


def test_a_step_that_fails_ends_the_run_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Step("broken", "yonos_trt.cli", ("no-such-command", "{}.json"))
    monkeypatch.setattr("benchmarks.record.steps", lambda *_, **__: [broken])
    engine_dir = make_engine_dir(tmp_path / "engine")
    arguments = [str(tmp_path / "out.json"), "--engine", str(engine_dir), "--work", str(tmp_path / "work")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "broken failed with exit code 2" in result.output
    assert not (tmp_path / "out.json").exists()
    assert np.size(list((tmp_path / "work").iterdir())) == 0
