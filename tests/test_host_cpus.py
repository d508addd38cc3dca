"""CPUs this process may use: affinity, and quotas read from a made-up file system."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from yonos_trt.cli.doctor import examine
from yonos_trt.host import cpu_fields, has_bf16, scheduling_kept, usable_cpus
from yonos_trt.sr import SR


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def make(root: Path, membership: str, **files: str) -> Path:
    """Write ``/proc/self/cgroup``, and files under ``/sys/fs/cgroup`` ("__" for "/", "_" for "." once)."""
    cgroup = root / "proc/self/cgroup"
    cgroup.parent.mkdir(parents=True, exist_ok=True)
    cgroup.write_text(membership)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("cpu_", "cpu.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("50000 100000", 1),
        ("1000 100000", 1),
        ("9900000 100000", 8),
        ("100000 50000", 2),
        ("", 8),
        ("nonsense", 8),
        ("100000 0", 8),
    ],
)
def test_quota_of_version_2(tmp_path: Path, quota: str, cpus: int) -> None:
    assert usable_cpus(make(tmp_path, "0::/\n", cpu_max=quota + "\n")) == cpus


@pytest.mark.parametrize(("quota", "cpus"), [("-1", 8), ("300000", 3), ("250001", 3), ("10000", 1)])
@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_quota_of_version_1(tmp_path: Path, mount: str, quota: str, cpus: int) -> None:
    files = {f"{mount}__cpu_cfs_quota_us": f"{quota}\n", f"{mount}__cpu_cfs_period_us": "100000\n"}
    assert usable_cpus(make(tmp_path, f"9:memory:/\n4:{mount}:/\n0::/\n", **files)) == cpus


def test_the_smallest_quota_of_all_groups_above_holds(tmp_path: Path) -> None:
    files = {
        "cpu_max": "700000 100000",
        "a.slice__cpu_max": "300000 100000",
        "a.slice__b.scope__cpu_max": "max 100000",
        "other__cpu_max": "100000 100000",
    }
    assert usable_cpus(make(tmp_path, "0::/a.slice/b.scope\n", **files)) == 3


def test_a_path_of_the_host_that_the_container_does_not_see(tmp_path: Path) -> None:
    files = {"cpu__cpu_cfs_quota_us": "200000", "cpu__cpu_cfs_period_us": "100000"}
    assert usable_cpus(make(tmp_path, "3:cpu,cpuacct:/docker/0123abc\n", **files)) == 2


def test_a_path_that_leads_out_of_the_namespace(tmp_path: Path) -> None:
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cpu.max").write_text("100000 100000")
    assert usable_cpus(make(tmp_path, "0::/../elsewhere\n", cpu_max="400000 100000")) == 4


def test_without_control_groups_affinity_counts(tmp_path: Path) -> None:
    assert usable_cpus(tmp_path) == 8


def test_without_affinity_all_cpus_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert usable_cpus(tmp_path) == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cpus(tmp_path) == 1


def test_sr_and_doctor_count_the_same_cpus() -> None:
    assert SR().threads == examine()["cpus"]["usable"] == usable_cpus()


@pytest.fixture
def cpu_group() -> Iterator[Path]:
    """A control group of this machine's kernel in which CPUs can be limited."""
    for folder, file in (("sys/fs/cgroup/cpu", "cpu.cfs_quota_us"), ("sys/fs/cgroup", "cpu.max")):
        made = Path("/", folder, f"yonos-test-{os.getpid()}")
        with suppress(OSError):
            made.mkdir()
            if (made / file).exists():
                break
            made.rmdir()
    else:
        pytest.skip("no control groups with CPU quotas can be made here (needs root and a mounted hierarchy)")
    yield made
    made.rmdir()


def test_a_quota_of_the_kernel(cpu_group: Path) -> None:
    if (cpu_group / "cpu.max").exists():
        (cpu_group / "cpu.max").write_text("50000 100000")
    else:
        (cpu_group / "cpu.cfs_quota_us").write_text("50000")
    program = f"""
        import os, pathlib
        pathlib.Path({str(cpu_group / "cgroup.procs")!r}).write_text(str(os.getpid()))
        from yonos_trt.host import usable_cpus
        print(usable_cpus())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_a_machine_without_proc_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(path: str) -> list[str]:
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "listdir", gone)
    with scheduling_kept():
        pass
    assert cpu_fields(tmp_path) == {}
    assert not has_bf16(tmp_path)
