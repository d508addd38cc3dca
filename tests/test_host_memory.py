"""Available host memory, read from a made-up file system."""

from __future__ import annotations

from pathlib import Path

import pytest

from yonos_trt.host import available_bytes


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / {"meminfo": "proc/meminfo"}.get(name, f"sys/fs/cgroup/memory.{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_memory_available_without_a_control_group(tmp_path: Path) -> None:
    write(tmp_path, meminfo="MemTotal:  900 kB\nMemAvailable:     700 kB\n")
    assert available_bytes(tmp_path) == 700 << 10


def test_a_control_group_with_less_counts(tmp_path: Path) -> None:
    write(tmp_path, meminfo="MemAvailable: 700 kB\n", max="500000\n", current="400000\n")
    assert available_bytes(tmp_path) == 100_000
    write(tmp_path, stat="anon 5\ninactive_file 30000\n")
    assert available_bytes(tmp_path) == 130_000
    write(tmp_path, current="600000")
    assert available_bytes(tmp_path) == 0


@pytest.mark.parametrize("limit", ["max\n", ""])
def test_a_control_group_without_limit_does_not(tmp_path: Path, limit: str) -> None:
    write(tmp_path, meminfo="MemAvailable: 700 kB\n", max=limit, current="400000\n")
    assert available_bytes(tmp_path) == 700 << 10


def test_without_any_of_it_half_of_the_memory_is_assumed(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) > 1 << 20


def test_this_machine_has_memory() -> None:
    assert available_bytes() > 1 << 20


@pytest.mark.parametrize("where", ["own", "above"])
@pytest.mark.parametrize("version", [1, 2])
def test_limits_of_the_own_group_and_of_those_above_count(tmp_path: Path, version: int, where: str) -> None:
    write(tmp_path, meminfo="MemAvailable: 700 kB\n", max="max\n", current="400000\n")
    (tmp_path / "proc/self").mkdir()
    own, top, names = {
        1: ("4:cpu:/x\n7:memory:/job/part\n", "memory", ("limit_in_bytes", "usage_in_bytes")),
        2: ("0::/job/part\n", "", ("max", "current")),
    }[version]
    (tmp_path / "proc/self/cgroup").write_text(own)
    part = tmp_path / "sys/fs/cgroup" / top / "job/part"
    part.mkdir(parents=True)
    inner, outer = (500_000, 900_000) if where == "own" else (900_000, 500_000)
    for folder, limit in ((part, inner), (part.parent, outer)):
        for name, value in zip(names, (limit, 350_000), strict=True):
            (folder / f"memory.{name}").write_text(f"{value}\n")
        (folder / "memory.stat").write_text("inactive_file 10\ntotal_inactive_file 20\n")
    assert available_bytes(tmp_path) == 150_000 + (20 if version == 1 else 10)
