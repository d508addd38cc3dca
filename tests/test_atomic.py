"""What `yonos_trt.atomic` writes is there whole or not at all, whenever the process ends."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import make_engine_dir, picture
from kill_points import USERS_OWN, can_trace
from PIL import Image

from yonos_trt import atomic

HERE = Path(__file__).parent


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# ---------------------------------------------------------------------------------------------------------
# Killed at every system call


def stopped_everywhere(scenario: str, number: str, folder: Path) -> list[tuple[str, str, list[str], int]]:
    program = [sys.executable, str(HERE / "kill_points.py"), scenario, str(folder), number]
    done = subprocess.run(program, capture_output=True, text=True, timeout=280, cwd=HERE.parent, check=False)
    assert done.returncode == 0, done.stderr
    found: list[tuple[str, str, list[str], int]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("number", ["SIGKILL", "SIGINT"])
@pytest.mark.parametrize(
    "scenario",
    [
        "file-old",
        "file-new",
        "directory-old",
        "directory-new",
        "directory-renames",
        "engine-old",
        "manifest-old",
    ],
)
def test_a_process_that_ends_at_any_system_call_leaves_the_old_or_the_new_one(
    scenario: str, number: str
) -> None:
    if not can_trace():
        pytest.skip("this system does not let a process trace its child (ptrace)")
    shared_memory = Path("/dev/shm")  # no disk to wait for at each fsync
    with tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None) as folder:
        found = stopped_everywhere(scenario, number, Path(folder) / "case")
    start = "nothing" if scenario.endswith("new") else "old"
    assert {after for _, after, _, _ in found} == {start, "new"}
    # without an exchange there is one moment at which only the next run finds the old directory
    moved_aside = {"nothing"} if (scenario.endswith("renames") and number == "SIGKILL") else set()
    assert {before for before, _, _, _ in found} == {start, "new"} | moved_aside
    assert all(left == sorted(USERS_OWN) for _, _, left, _ in found), "a leftover, or a user's file is gone"
    assert sum(count for *_, count in found) > 40, "the work was stopped at too few calls to mean anything"


# ---------------------------------------------------------------------------------------------------------
# Files


def test_a_failing_block_keeps_the_old_file_and_its_own_error(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def write_half(error: BaseException) -> None:
        with atomic.atomic_file(target) as part:
            part.write_text("half")
            raise error

    for error in (ValueError("no"), KeyboardInterrupt(), OSError(5, "Input/output error", "elsewhere")):
        with pytest.raises(type(error)) as caught:
            write_half(error)
        assert caught.value is error
        assert getattr(error, "filename", None) in (None, "elsewhere")
    assert names(tmp_path) == ["a.txt"]
    assert target.read_text() == "old"


def test_permissions_are_those_of_the_old_file_or_of_the_umask(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("x")
    mask = os.umask(0o027)
    try:
        for mode in (0o600, 0o640, 0o444, 0o755, 0o4755):
            old.chmod(mode)
            with atomic.atomic_file(old) as part:
                assert stat.S_IMODE(part.stat().st_mode) == 0o600, "others can read it while it is written"
                part.write_text("y")
            assert stat.S_IMODE(old.stat().st_mode) == mode & 0o777  # other content does not run as its owner
        atomic.write_file(new, "z")
        with atomic.atomic_directory(tmp_path / "folder"):
            pass
        assert stat.S_IMODE(new.stat().st_mode) == 0o640
        assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750
        (tmp_path / "folder").chmod(0o700)
        with atomic.atomic_directory(tmp_path / "folder") as again:
            (again / "a").write_text("a")
        assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o700
    finally:
        os.umask(mask)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_the_owner_stays_when_root_writes(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_text("old")
    os.chown(target, 12345, 23456)
    target.chmod(0o600)
    atomic.write_file(target, "new")
    assert (target.stat().st_uid, target.stat().st_gid) == (12345, 23456)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_a_link_stays_a_link_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "file").write_text("old")
    (tmp_path / "link").symlink_to("far/file")
    atomic.write_file(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far" / "file").read_text() == "new"
    (tmp_path / "nowhere").symlink_to("far/made")
    atomic.write_file(tmp_path / "nowhere", "new")
    assert (tmp_path / "far" / "made").read_text() == "new"
    (tmp_path / "folder").symlink_to("far/folder")
    for text in ("one", "two"):
        with atomic.atomic_directory(tmp_path / "folder") as new:
            (new / "a").write_text(text)
    assert (tmp_path / "folder").is_symlink()
    assert (tmp_path / "far" / "folder" / "a").read_text() == "two"
    assert names(tmp_path / "far") == ["file", "folder", "made"]


def test_what_cannot_be_replaced_is_refused_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "circle", "pipe", "missing/a"):
        with pytest.raises(OSError) as caught:
            atomic.write_file(tmp_path / name, b"x")
        assert str(caught.value).endswith(f": {str(tmp_path / name)!r}")
    with pytest.raises(OSError, match="Not a regular file"):
        atomic.write_file("/dev/null", b"x")
    for name in ("pipe", "circle"):
        with pytest.raises(OSError) as caught, atomic.atomic_directory(tmp_path / name):
            pass
        assert caught.value.filename == str(tmp_path / name)
    assert names(tmp_path) == ["circle", "folder", "pipe"]
    assert Path("/dev/null").is_char_device()


def test_the_longest_names_can_be_written(tmp_path: Path) -> None:
    for name in ("n" * 255, "ü" * 127):
        atomic.write_file(tmp_path / name, "x")
        assert (tmp_path / name).read_text() == "x"


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount 256 KiB of memory as a disk; a skip where that may not be done."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if made.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_old_ones_and_names_the_target(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        atomic.write_file(disk / "file", "old")
        with atomic.atomic_directory(disk / "folder") as new:
            (new / "a").write_text("old")
        with pytest.raises(OSError, match="No space left") as caught:
            atomic.write_file(disk / "file", b"x" * 500_000)
        assert caught.value.filename == str(disk / "file")
        with (
            pytest.raises(OSError, match="No space left"),
            atomic.atomic_directory(disk / "folder") as new,
        ):
            (new / "a").write_bytes(b"x" * 500_000)
        assert names(disk) == ["file", "folder"]
        assert (disk / "file").read_text() == (disk / "folder" / "a").read_text() == "old"


def test_a_file_size_limit_is_an_error_and_not_half_a_file(tmp_path: Path) -> None:
    program = """
import resource, sys
from yonos_trt import atomic
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    atomic.write_file(sys.argv[1], b"x" * 2000)
except OSError as error:
    print(error.filename)
"""
    target = tmp_path / "a"
    target.write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", program, str(target)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == str(target), done.stderr
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a"]


# ---------------------------------------------------------------------------------------------------------
# Directories


@pytest.mark.parametrize("exchange", [True, False])
def test_a_directory_takes_the_place_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    target = tmp_path / "folder"
    for text in ("one", "two", "three"):
        with atomic.atomic_directory(target) as new:
            (new / text).write_text(text)
            assert names(target) != [text] if target.exists() else True
        assert names(target) == [text]
        assert names(tmp_path) == ["folder"]


def test_links_and_pipes_inside_do_not_stop_the_sync(tmp_path: Path) -> None:
    with atomic.atomic_directory(tmp_path / "folder") as new:
        (new / "dangling").symlink_to("nowhere")
        os.mkfifo(new / "pipe")
        (new / "locked").write_text("x")
        (new / "locked").chmod(0)
    assert names(tmp_path / "folder") == ["dangling", "locked", "pipe"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_failing_second_rename_brings_the_old_directory_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "a").write_text("old")
    rename, tries = os.rename, []

    def failing(source: Any, place: Any) -> None:
        if Path(place) == target and Path(source).name == "new":
            tries.append(source)
            if len(tries) == 2 or exchange:
                raise OSError(5, "Input/output error", str(source))
        rename(source, place)

    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="Input/output") as caught, atomic.atomic_directory(target):
        pass
    assert caught.value.filename == str(target)
    assert (target / "a").read_text() == "old"
    assert names(tmp_path) == ["folder"]


# ---------------------------------------------------------------------------------------------------------
# Leftovers


def leftovers(folder: Path) -> tuple[Path, Path]:
    """What a killed writer of a file and one of a directory leave."""
    part, parts = folder / f".yonos-{'0' * 16}.part", folder / f".yonos-{'1' * 16}.parts"
    part.write_text("half")
    (parts / "new").mkdir(parents=True)
    (parts / "new" / "a").write_text("half")
    return part, parts


def test_only_what_dead_processes_left_is_removed(tmp_path: Path) -> None:
    for name in USERS_OWN:
        (tmp_path / name).write_text("the user's")
    wrong_kinds = [tmp_path / f".yonos-{'2' * 16}.part", tmp_path / f".yonos-{'3' * 16}.parts"]
    wrong_kinds[0].mkdir()
    wrong_kinds[1].write_text("a file")
    (tmp_path / f".yonos-{'4' * 16}.part").symlink_to(USERS_OWN[0])
    before = names(tmp_path)
    left = leftovers(tmp_path)
    with atomic.atomic_file(tmp_path / "file"), atomic.atomic_directory(tmp_path / "sub" / "folder"):
        living = [name for name in names(tmp_path) if name not in before]
        assert atomic.remove_leftovers(tmp_path) == list(left)
        assert atomic.remove_leftovers(tmp_path / "sub") == []
        assert set(living) - {p.name for p in left} <= set(names(tmp_path))
    assert names(tmp_path) == sorted([*before, "file", "sub"])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_leftovers_of_other_users_stay(tmp_path: Path) -> None:
    left = leftovers(tmp_path)
    for path in left:
        os.chown(path, 12345, 12345)
    assert atomic.remove_leftovers(tmp_path) == []
    assert all(path.exists() for path in left)


def test_a_record_that_leads_elsewhere_moves_nothing(tmp_path: Path) -> None:
    _, parts = leftovers(tmp_path)
    (parts / "old").mkdir()
    (tmp_path / "inner").mkdir()
    parts = parts.rename(tmp_path / "inner" / parts.name)
    for record in ("../moved", "..", "", "a/b"):
        (parts / "target").write_text(record)
        assert atomic.remove_leftovers(tmp_path / "inner") == []
        assert (parts / "old").is_dir()
    assert not (tmp_path / "moved").exists()


def test_a_directory_moved_aside_is_kept_where_something_else_took_its_place(tmp_path: Path) -> None:
    _, parts = leftovers(tmp_path)
    (parts / "old").mkdir()
    (parts / "old" / "thesis").write_text("mine")
    (parts / "target").write_text("folder")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "other").write_text("other")
    atomic.remove_leftovers(tmp_path)
    assert (parts / "old" / "thesis").read_text() == "mine"
    (tmp_path / "folder" / "other").unlink()
    (tmp_path / "folder").rmdir()
    atomic.remove_leftovers(tmp_path)
    assert (tmp_path / "folder" / "thesis").read_text() == "mine"
    assert not parts.exists()


# ---------------------------------------------------------------------------------------------------------
# Several writers, other systems


@pytest.mark.parametrize("exchange", [True, False])
def test_concurrent_writers_and_cleaners_leave_one_whole_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    file, folder = tmp_path / "file", tmp_path / "folder"
    errors: list[BaseException] = []
    stop = threading.Event()

    def writer(letter: str) -> None:
        try:
            for _ in range(60):
                atomic.write_file(file, letter * 3000)
                with atomic.atomic_directory(folder) as new:
                    for name in ("a", "b"):
                        (new / name).write_text(letter)
        except BaseException as error:
            errors.append(error)

    def cleaner() -> None:
        while not stop.is_set():
            atomic.remove_leftovers(tmp_path)

    def reader() -> None:
        while not stop.is_set():
            if file.exists() and len(set(file.read_text())) != 1:
                errors.append(AssertionError("half a file"))

    writers = [threading.Thread(target=writer, args=(letter,)) for letter in "xyz"]
    others = [threading.Thread(target=cleaner), threading.Thread(target=reader)]
    for thread in (*others, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in others:
        thread.join()
    assert errors == []
    assert names(tmp_path) == ["file", "folder"]
    assert len({(folder / name).read_text() for name in ("a", "b")}) == 1
    assert len(file.read_text()) == 3000


def test_a_system_without_locks_writes_and_never_cleans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "fcntl", None)
    for text in ("one", "two"):
        atomic.write_file(tmp_path / "file", text)
        with atomic.atomic_directory(tmp_path / "folder") as new:
            (new / "a").write_text(text)
    assert names(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "a").read_text() == "two"
    left = leftovers(tmp_path)
    assert atomic.remove_leftovers(tmp_path) == []
    assert all(path.exists() for path in left)


def test_a_file_system_without_exchange_falls_back_to_two_renames(tmp_path: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("renameat2 is Linux's")
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    (one / "a").write_text("a")
    if atomic._exchange(one, other):
        assert names(other) == ["a"]
    with pytest.raises(FileNotFoundError):
        atomic._exchange(one, tmp_path / "missing")


# ---------------------------------------------------------------------------------------------------------
# Commands


def pictures(folder: Path) -> tuple[str, list[Path]]:
    """An engine directory, and two pictures of one size."""
    engine = make_engine_dir(folder / "engine")
    sources = []
    for number in range(2):
        sources.append(folder / f"{number}.png")
        Image.fromarray(np.roll(picture(90, 70), 40 * number, 0)).save(sources[-1])
    return str(engine), sources


def test_two_commands_with_one_output_leave_one_whole_file(tmp_path: Path) -> None:
    engine, sources = pictures(tmp_path)
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "a.png"
    command = [sys.executable, "-c", "from yonos_trt.console import yonos; yonos()", "upscale", "-m", engine]
    wanted = []
    for number, source in enumerate(sources):
        alone = tmp_path / f"alone{number}.png"
        subprocess.run([*command, "-i", source, "-o", alone, "-q"], check=True, timeout=120)
        wanted.append(alone.read_bytes())
    assert wanted[0] != wanted[1]
    both = [subprocess.Popen([*command, "-i", s, "-o", target, "-q", "--overwrite"]) for s in sources]
    assert [process.wait(120) for process in both] == [0, 0]
    assert target.read_bytes() in wanted
    assert names(target.parent) == ["a.png"]


AS_NOBODY = """
import os, sys
from click.testing import CliRunner
from yonos_trt.cli.main import cli
engine, source, own, others, warm = sys.argv[1:]
def upscale(target):
    done = CliRunner().invoke(cli, ["upscale", "-m", engine, "-i", source, "-o", target])
    print(done.exit_code, done.stderr.replace("\\n", " "))
upscale(warm)  # what is imported late may lie where only root reads
os.setgroups([]), os.setgid(65534), os.setuid(65534)
upscale(own)
upscale(others)
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="the other tests run as non-root")
def test_a_user_without_rights_gets_whole_files_or_one_error() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engine, sources = pictures(folder)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        for place, owner in (("own", 65534), ("others", 0)):
            (folder / place).mkdir(mode=0o755)
            os.chown(folder / place, owner, owner)
        targets = [str(folder / place / "a.png") for place in ("own", "others")]
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, engine, str(sources[0]), *targets, str(folder / "warm.png")],
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        warm, own, others = done.stdout.splitlines()
        assert (warm[0], own[0], others[0]) == ("0", "0", "1"), done.stdout
        assert f"{targets[1]}: " in others
        assert "is not writable" in others
        assert Path(targets[0]).read_bytes() == (folder / "warm.png").read_bytes()
        assert (names(folder / "own"), names(folder / "others")) == (["a.png"], [])
        assert Path(targets[0]).stat().st_uid == 65534
