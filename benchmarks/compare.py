"""Say what moved between two result files, beyond their noise.

::

    python -m benchmarks.compare old.json new.json [--threshold 0.05] [--relative] [--fail]

Result files are what `yonos bench --json`, `benchmarks.speed`, `benchmarks.quality`, `benchmarks.results`
and pytest-benchmark write. A row has moved when its value changed by more than the threshold and the two
intervals do not overlap. Times of two different machines, or of one machine on two days, differ for reasons
that are not in the code: ``--relative`` multiplies every time by the machine's own peak (large matrix
product), as measured in the same run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click


@dataclass(frozen=True, slots=True)
class Row:
    """One measured value.

    Attributes
    ----------
    key : str
        What was measured, the same in every file: ``"bench/onnx/tile 512/lanes 1/decode p50"``.
    value, low, high : float
        The value and its interval; low = high = value where the file holds no interval.
    unit : str
        "ms", "dB", ...
    better : str
        "lower" or "higher".
    """

    key: str
    value: float
    low: float
    high: float
    unit: str
    better: str


@dataclass(frozen=True, slots=True)
class Change:
    """One key in two files; `old` or `new` is None where the file lacks it."""

    key: str
    old: Row | None
    new: Row | None
    ratio: float | None
    verdict: str  # "better", "worse", "same", "only old", "only new"


def load_rows(path: Path, *, relative: bool = False) -> dict[str, Row]:
    """Read the rows of a result file.

    Raises
    ------
    ValueError
        The file is not JSON, holds no rows, or `relative` was asked for and it has no measured peak.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); expected a result file") from error
    rows = {row.key: row for row in _rows(document, relative, path)}
    if not rows:
        raise ValueError(
            f"{path} holds no measurements; expected the JSON of yonos bench, benchmarks.speed, "
            "benchmarks.quality, benchmarks.results or pytest-benchmark"
        )
    return rows


def _rows(document: Any, relative: bool, path: Path, peak: float | None = None) -> Iterator[Row]:
    """Yield the rows; `peak` is that of the document around this one, of the same machine."""
    if not isinstance(document, dict):
        return
    parts = document.get("parts", [])
    peak = next((p for p in map(_peak, (document, *parts)) if p is not None), peak)
    for part in parts:
        yield from _rows(part, relative, path, peak)
    timed = "benchmarks" in document or any(r["unit"] in ("ms", "s") for r in document.get("rows", []))
    if relative and timed and peak is None:
        raise ValueError(f"{path} has no measured peak; compare it without --relative")
    factor = peak if relative and peak is not None else 1.0
    for raw in document.get("rows", []):
        scale = factor if relative and raw["unit"] in ("ms", "s") else 1.0
        value = float(raw["value"])
        low, high = float(raw.get("low", value)), float(raw.get("high", value))
        yield Row(raw["key"], value * scale, low * scale, high * scale, raw["unit"], raw["better"])
    for raw in document.get("benchmarks", []):  # pytest-benchmark: the interquartile range is the noise
        stats = raw["stats"]
        value, low, high = (1e3 * factor * float(stats[name]) for name in ("median", "q1", "q3"))
        yield Row(f"pytest/{raw['fullname']}", value, low, high, "ms", "lower")


def _peak(document: Any) -> float | None:
    """Return NumPy's matrix product, the probe that documents of all dates have."""
    if not isinstance(document, dict):
        return None
    found = document.get("peaks", {}).get("matmul_gflops")
    return None if found is None else float(found)


def compare(old: dict[str, Row], new: dict[str, Row], *, threshold: float = 0.05) -> list[Change]:
    """Match rows by key, in the new file's order, then those that only the old file has."""
    changes = []
    for key, b in new.items():
        a = old.get(key)
        if a is None:
            changes.append(Change(key, None, b, None, "only new"))
            continue
        quotient = b.value / a.value if a.value else None
        moved = abs(b.value - a.value) > threshold * abs(a.value)
        apart = b.low > a.high or b.high < a.low
        verdict = "same"
        if moved and apart:
            verdict = "better" if (b.value < a.value) == (b.better == "lower") else "worse"
        changes.append(Change(key, a, b, quotient, verdict))
    changes += [Change(key, a, None, None, "only old") for key, a in old.items() if key not in new]
    return changes


def table(changes: Iterable[Change], *, everything: bool = False) -> str:
    """Lay the changes out as text; without `everything`, only what moved, appeared or disappeared."""
    lines = []
    for change in changes:
        if change.verdict == "same" and not everything:
            continue
        row = change.new or change.old
        assert row is not None
        values = [f"{r.value:12.4g}" if r else " " * 12 for r in (change.old, change.new)]
        quotient = f"{change.ratio:7.3f}" if change.ratio is not None else " " * 7
        lines.append(
            f"{change.verdict:9} {values[0]} {values[1]} {row.unit:8} {quotient}  {change.key}".rstrip()
        )
    header = f"{'verdict':9} {'old':>12} {'new':>12} {'unit':8} {'new/old':>7}  what"
    return "\n".join([header, *lines]) if lines else "nothing moved beyond noise"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("old", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("new", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--threshold", default=0.05, show_default=True, help="Smallest change that counts, as a share.")
@click.option("--relative", is_flag=True, help="Multiply times by the machine's measured peak.")
@click.option("--all", "everything", is_flag=True, help="Print the rows that did not move as well.")
@click.option("--fail", is_flag=True, help="Exit with 1 when something became worse.")
def main(old: Path, new: Path, threshold: float, relative: bool, everything: bool, fail: bool) -> None:
    """Print what moved from OLD to NEW beyond noise."""
    try:
        changes = compare(
            load_rows(old, relative=relative), load_rows(new, relative=relative), threshold=threshold
        )
    except (ValueError, KeyError, TypeError) as error:
        raise click.ClickException(f"{error}") from error
    click.echo(table(changes, everything=everything))
    counts = _count(change.verdict for change in changes)
    click.echo(", ".join(f"{count} {verdict}" for verdict, count in counts.items()), err=True)
    if fail and counts.get("worse"):
        sys.exit(1)


def _count(verdicts: Iterable[str]) -> dict[str, int]:
    found: Sequence[str] = list(verdicts)
    return {verdict: found.count(verdict) for verdict in dict.fromkeys(found)}


if __name__ == "__main__":
    main()
