"""Which files a folder run takes, where the results go, and what is passed over by name."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from yonos_trt.cli.jobs import Plan, plan_jobs
from yonos_trt.errors import ConfigError


def photos(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def plan(inputs: Path | str, output: Path | str | None, *, recursive: bool = True, scale: int = 2) -> Plan:
    output = None if output is None else str(output)
    return plan_jobs([Path(inputs)], output, scale=scale, recursive=recursive)


def run(done: Plan) -> list[str]:
    """Make the results, and return the sources' names."""
    for job in done.jobs:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        job.target.write_bytes(b"")
    return [job.source.name for job in done.jobs]


# ---------------------------------------------------------------------------------------------------------
# A second run: results are no inputs, however both folders are written

MIXES: dict[str, Callable[[Path], tuple[str, str]]] = {
    "both relative": lambda top: (".", "big"),
    "both absolute": lambda top: (str(top), str(top / "big")),
    "absolute, relative": lambda top: (str(top), "big"),
    "relative, absolute": lambda top: (".", str(top / "big")),
    "upwards, relative": lambda top: (f"../{top.name}", "big"),
    "relative, upwards": lambda top: (".", f"../{top.name}/big"),
    "dotted": lambda top: ("./", "./big/../big/"),
    "input through a link": lambda top: (str(top.parent / "link"), "big"),
    "output through a link": lambda top: (".", str(top.parent / "link" / "big")),
    "both through a link": lambda top: ("../link", str(top.parent / "link" / "big")),
    "output is a link inside": lambda top: (".", "shortcut"),
    "deep": lambda top: (str(top), "sub/deep/big"),
    "a suffix of a picture": lambda top: (str(top), "big.png/"),
}


@pytest.mark.parametrize("mix", MIXES)
def test_three_runs_take_the_same_pictures(tmp_path: Path, mix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    top = photos(tmp_path / "photos", "p.png", "sub/q.jpg")
    (tmp_path / "link").symlink_to(top)
    (top / "shortcut").symlink_to("big")
    (top / "big").mkdir()
    monkeypatch.chdir(top)
    inputs, output = MIXES[mix](top)
    first = run(plan(inputs, output))
    assert first == ["p.png", "q.jpg"]
    before = sorted(top.rglob("*"))
    for scale in (2, 4, 2):  # another scale, and so other names
        again = plan(inputs, output, scale=scale)
        assert run(again) == first
        if scale == 2:
            known = {"shortcut"}
            assert {p.path.name for p in again.passed_over} - known <= {"p_x4.png", "q_x4.jpg"}
    assert [p for p in sorted(top.rglob("*")) if "_x4" not in p.name] == before


def test_results_beside_their_sources_are_no_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = photos(tmp_path / "photos", "p.png", "sub/q.jpg")
    monkeypatch.chdir(top)
    for inputs in (".", str(top), "../photos"):
        done = plan(inputs, None)
        assert (run(done), done.passed_over) == (["p.png", "q.jpg"], [])


def test_the_users_own_pictures_in_the_output_folder_are_passed_over_by_name(tmp_path: Path) -> None:
    top = photos(tmp_path, "p.png", "big/mine.png")
    found = plan(top, top / "big")
    assert [job.source.name for job in found.jobs] == ["p.png"]
    assert [(p.path, p.failed) for p in found.passed_over] == [(top / "big" / "mine.png", False)]
    both = plan_jobs([top, top / "big" / "mine.png"], str(top / "big"), scale=2, recursive=True)
    assert [job.source.name for job in both.jobs] == ["p.png", "mine.png"]
    assert both.passed_over == []


def test_an_output_that_is_the_input_takes_its_pictures(tmp_path: Path) -> None:
    top = photos(tmp_path, "p.png", "sub/q.png")
    for _ in range(2):
        assert run(plan(top, top)) == ["p.png", "q.png"]


# ---------------------------------------------------------------------------------------------------------
# What is passed over


def test_everything_that_is_not_done_is_named(tmp_path: Path) -> None:
    top = photos(tmp_path / "in", "ok.png", "phone.HEIX", "raw.CR2", "notes.txt", "Makefile", "sub/b.png")
    photos(tmp_path / "elsewhere", "linked.png")
    (top / "album").symlink_to("../elsewhere")
    (top / "loop").symlink_to(".")
    (top / "circle.png").symlink_to("circle.png")
    (top / "gone.png").symlink_to("nowhere.png")
    (top / "one.png").symlink_to("../elsewhere/linked.png")
    os.mkfifo(top / "pipe.png")
    (top / ".yonos-0123456789abcdef.part").write_bytes(b"")
    found = plan(top, tmp_path / "out")
    taken = [job.source.relative_to(top).as_posix() for job in found.jobs]
    assert taken == ["circle.png", "gone.png", "ok.png", "one.png", "sub/b.png"]  # two of them fail by name
    told = {p.path.name: p.reason for p in found.passed_over}
    assert sorted(told) == ["Makefile", "album", "loop", "notes.txt", "phone.HEIX", "pipe.png", "raw.CR2"]
    assert "link" in told["album"]
    assert "name it as an input" in told["album"]
    assert ".CR2" in told["raw.CR2"]
    assert told["pipe.png"] == "not a file"
    assert not any(p.failed for p in found.passed_over)
    flat = plan(top, tmp_path / "out", recursive=False)
    assert {p.path.name: p.reason for p in flat.passed_over}["sub"] == "a folder; --recursive goes into it"


def test_a_folder_that_cannot_be_read_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = photos(tmp_path / "in", "ok.png", "locked/x.png", "open/y.png")
    scandir = os.scandir

    def refuse(path: str | os.PathLike[str]) -> object:
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = plan(top, tmp_path / "out")
    assert [job.source.name for job in found.jobs] == ["ok.png", "y.png"]
    ((path, reason, failed),) = [(p.path, p.reason, p.failed) for p in found.passed_over]
    assert (path, reason, failed) == (top / "locked", "cannot be read: Permission denied", True)
    alone = plan(top / "locked", tmp_path / "out")
    assert (alone.jobs, [p.failed for p in alone.passed_over]) == ([], [True])


def test_a_folder_without_pictures_says_what_it_holds(tmp_path: Path) -> None:
    top = photos(tmp_path / "in", "a.CR2", "b.CR2")
    with pytest.raises(ConfigError, match=r"a\.CR2: \.CR2 is no picture format that is read and 1 more"):
        plan(top, tmp_path / "out")


def test_a_socket_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos(tmp_path, "ok.png")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.png")
        assert [p.path.name for p in plan(".", "out").passed_over] == ["s.png"]


# ---------------------------------------------------------------------------------------------------------
# Outputs that are none


@pytest.mark.parametrize("output", ["s3://bucket/key", "gs://b", "https://x.org/a.png", "file:///x", ""])
def test_an_address_is_no_output(tmp_path: Path, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos(tmp_path, "p.png"))
    with pytest.raises(ConfigError, match=r"no path of this machine|cannot be the name"):
        plan("p.png", output)
    assert os.listdir() == ["p.png"]


def test_names_may_hold_colons_and_dashes(tmp_path: Path) -> None:
    top = photos(tmp_path, "p.png")
    target = top / "a:b" / "-"
    assert plan(top / "p.png", target).jobs[0].target == target / "p_x2.png"


@pytest.mark.parametrize("output", ["/dev/full", "result", "result/"])
def test_an_output_that_can_be_neither_folder_nor_picture_is_refused(tmp_path: Path, output: str) -> None:
    (tmp_path / "p.png").touch()
    (tmp_path / "result").touch()
    with pytest.raises(ConfigError, match="is no folder"):
        plan_jobs([tmp_path / "p.png"], os.path.join(tmp_path, output), scale=2)


@pytest.mark.parametrize("suffix", ["a/b", "a\0b", "{x}", "{scale.y}", "{0}", "{", "{scale:>1000000000}"])
def test_a_suffix_that_is_no_part_of_a_name_is_refused(tmp_path: Path, suffix: str) -> None:
    top = photos(tmp_path, "p.png")
    with pytest.raises(ConfigError, match="suffix"):
        plan_jobs([top / "p.png"], None, scale=2, suffix=suffix)
