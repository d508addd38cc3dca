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
