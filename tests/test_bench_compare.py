"""A/B timing core and the regression guard."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.alternate import alternate, estimate, ratio
from benchmarks.compare import compare, load_rows, main


class DriftingClock:
    """Every second read is `cost` later, and the machine slows down by a constant factor per call."""

    def __init__(self, drift: float) -> None:
        self.now, self.drift, self.speed = 0.0, drift, 1.0

    def __call__(self) -> float:
        return self.now

    def subject(self, cost: float, calls: list[str], name: str) -> Callable[[], None]:
        def run() -> None:
            calls.append(name)
            self.speed *= self.drift
            self.now += cost * self.speed

        return run


def test_rounds_alternate_their_order_after_untimed_warm_up() -> None:
    calls: list[str] = []
    clock = DriftingClock(1.0)
    subjects = {name: clock.subject(1.0, calls, name) for name in "abc"}
    seconds = alternate(subjects, rounds=3, warm_up=1, clock=clock)
    assert "".join(calls) == "abc" + "abc" + "cba" + "abc"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_drift_cancels_in_the_ratio_but_not_in_runs_one_after_the_other() -> None:
    clock = DriftingClock(1.05)
    calls: list[str] = []
    a, b = clock.subject(2.0, calls, "a"), clock.subject(1.0, calls, "b")
    seconds = alternate({"a": a, "b": b}, rounds=20, warm_up=0, clock=clock)
    fair = ratio(seconds["a"], seconds["b"])
    assert fair.low <= 2.0 <= fair.high
    assert fair.value == pytest.approx(2.0, rel=0.06)

    def one_after_the_other(subject: Callable[[], None]) -> float:
        start = clock()
        for _ in range(20):
            subject()
        return clock() - start

    first = one_after_the_other(a)
    assert first / one_after_the_other(b) < 1.0  # the drift alone turns 2.0 around


def test_budget_stops_after_two_rounds_at_the_earliest() -> None:
    clock = DriftingClock(1.0)
    calls: list[str] = []
    seconds = alternate({"a": clock.subject(10.0, calls, "a")}, rounds=9, budget_s=1.0, clock=clock)
    assert len(seconds["a"]) == 2


def test_interval_covers_the_true_ratio_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for seed in range(60):
        shared = rng.lognormal(0.0, 0.3, 25)  # drift of the round
        a = 1.5 * shared * rng.lognormal(0.0, 0.05, 25)
        b = shared * rng.lognormal(0.0, 0.05, 25)
        found = ratio(list(a), list(b), seed=seed)
        covered += found.low <= 1.5 <= found.high
    assert covered >= 52  # 95 % of 60 is 57


def test_interval_is_reproducible_and_shrinks_with_rounds() -> None:
    values = list(np.random.default_rng(0).lognormal(0.0, 0.2, 200))
    assert estimate(values) == estimate(values)
    few, many = estimate(values[:10]), estimate(values)
    assert many.high - many.low < few.high - few.low


@pytest.mark.parametrize("values", [[], [1.0, float("nan")]])
def test_estimate_refuses_what_has_no_median(values: list[float]) -> None:
    with pytest.raises(ValueError, match="non-empty list of finite"):
        estimate(values)


def test_ratio_refuses_lists_of_different_runs() -> None:
    with pytest.raises(ValueError, match="as many of both"):
        ratio([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="not positive"):
        ratio([1.0], [0.0])


def row(key: str, value: float, spread: float = 0.01, *, unit: str = "ms", better: str = "lower") -> Any:
    return {
        "key": key,
        "value": value,
        "low": value * (1 - spread),
        "high": value * (1 + spread),
        "unit": unit,
        "better": better,
    }


def write(path: Path, rows: list[Any], **more: Any) -> Path:
    path.write_text(json.dumps({"rows": rows, **more}))
    return path


def test_only_what_moved_beyond_threshold_and_noise_is_reported(tmp_path: Path) -> None:
    old = write(
        tmp_path / "old.json",
        [
            row("slower", 100.0),
            row("faster", 100.0),
            row("within threshold", 100.0, 0.001),
            row("within noise", 100.0, 0.2),
            row("psnr", 27.0, 0.001, unit="dB", better="higher"),
            row("gone", 1.0),
        ],
    )
    new = write(
        tmp_path / "new.json",
        [
            row("slower", 120.0),
            row("faster", 80.0),
            row("within threshold", 103.0, 0.001),
            row("within noise", 120.0, 0.2),
            row("psnr", 24.0, 0.001, unit="dB", better="higher"),
            row("fresh", 1.0),
        ],
    )
    verdicts = {c.key: c.verdict for c in compare(load_rows(old), load_rows(new))}
    assert verdicts == {
        "slower": "worse",
        "faster": "better",
        "within threshold": "same",
        "within noise": "same",
        "psnr": "worse",
        "fresh": "only new",
        "gone": "only old",
    }


def test_relative_cancels_a_faster_machine(tmp_path: Path) -> None:
    old = write(tmp_path / "old.json", [row("t", 100.0)], peaks={"matmul_gflops": 100.0})
    new = write(tmp_path / "new.json", [row("t", 50.0)], peaks={"matmul_gflops": 200.0})
    assert [c.verdict for c in compare(load_rows(old), load_rows(new))] == ["better"]
    relative = compare(load_rows(old, relative=True), load_rows(new, relative=True))
    assert [(c.verdict, c.ratio) for c in relative] == [("same", 1.0)]


def test_relative_takes_the_peak_of_the_file_a_part_is_in(tmp_path: Path) -> None:
    measured = {"rows": [row("t", 10.0)], "peaks": {"matmul_gflops": 100.0}}
    plain = {"rows": [row("u", 3.0), row("psnr", 27.0, unit="dB", better="higher")]}
    path = tmp_path / "merged.json"
    path.write_text(json.dumps({"parts": [plain, measured]}))
    rows = load_rows(path, relative=True)
    assert {key: found.value for key, found in rows.items()} == {"u": 300.0, "psnr": 27.0, "t": 1000.0}


def test_relative_without_times_needs_no_peak(tmp_path: Path) -> None:
    path = write(tmp_path / "quality.json", [row("psnr", 27.0, unit="dB", better="higher")])
    assert load_rows(path, relative=True)["psnr"].value == 27.0


def test_relative_needs_a_measured_peak(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no measured peak"):
        load_rows(write(tmp_path / "a.json", [row("t", 1.0)]), relative=True)


def test_merged_files_and_pytest_benchmark_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "merged.json"
    stats = {"median": 0.010, "q1": 0.009, "q3": 0.012}
    path.write_text(
        json.dumps(
            {
                "parts": [
                    {"rows": [row("a", 1.0)]},
                    {"benchmarks": [{"fullname": "bench_x.py::bench_y", "stats": stats}]},
                ]
            }
        )
    )
    rows = load_rows(path)
    assert rows["a"].value == 1.0
    assert rows["pytest/bench_x.py::bench_y"].value == pytest.approx(10.0)
    assert rows["pytest/bench_x.py::bench_y"].high == pytest.approx(12.0)


def test_command_fails_on_request_only(tmp_path: Path) -> None:
    old = write(tmp_path / "old.json", [row("decode", 100.0)])
    new = write(tmp_path / "new.json", [row("decode", 150.0)])
    result = CliRunner().invoke(main, [str(old), str(new)])
    assert result.exit_code == 0
    assert "worse" in result.stdout
    assert "1.500" in result.stdout
    assert CliRunner().invoke(main, [str(old), str(new), "--fail"]).exit_code == 1
    same = CliRunner().invoke(main, [str(old), str(old), "--fail"])
    assert same.exit_code == 0
    assert "nothing moved" in same.stdout


@pytest.mark.parametrize("text", ["", "[1, 2]", "{}", '{"rows": []}'])
def test_files_without_measurements_are_refused(tmp_path: Path, text: str) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text(text)
    result = CliRunner().invoke(main, [str(bad), str(bad)])
    assert result.exit_code == 1
    assert "bad.json" in result.stderr


def test_merged_documents_keep_rows_and_drop_raw_samples() -> None:
    from benchmarks.results import merge

    speed = {"kind": "speed", "rows": [row("a", 1.0)], "seconds": {"x": [1.0]}, "times": {}}
    bench = {"kind": "yonos-bench", "rows": [row("b", 2.0)]}
    merged = merge([{"kind": "parts", "parts": [speed]}, bench], label="here")
    assert [part["kind"] for part in merged["parts"]] == ["speed", "yonos-bench"]
    assert "seconds" not in merged["parts"][0]
    assert merged["label"] == "here"
    with pytest.raises(ValueError, match="measured twice: a"):
        merge([speed, speed], label="here")
    with pytest.raises(ValueError, match="no documents"):
        merge([{"kind": "other"}], label="here")


def test_hashes_of_two_commits_that_differ_or_lack_a_case_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.studies import bits

    before, same, after = (tmp_path / f"{name}.json" for name in ("before", "same", "after"))
    before.write_text('{"a": "1", "b": "2", "c": "3"}')
    same.write_text('{"c": "3", "b": "2", "a": "1", "new": "4"}')
    after.write_text('{"a": "1", "b": "x"}')
    assert bits.main(before, same) == 0
    assert bits.main(before, after) == 1
    assert capsys.readouterr().out.splitlines()[-2:] == ["  b", "  c"]
    names = [name for name, _ in bits.cases()]
    assert len(set(names)) == len(names) > 100
    assert bits.digest(bits.on_numpy((5, 9), "rgb8")) == bits.digest(bits.on_numpy((5, 9), "rgb8", lanes=2))
