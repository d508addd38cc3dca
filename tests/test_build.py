"""What an installation asks for: requirements, compilers, and commands that work where they are told."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def test_no_message_and_no_page_installs_from_the_package_index() -> None:
    folders = ("yonos_trt", "export", "train", "benchmarks", "docs", "tests")
    files = [p for f in folders for p in (REPOSITORY / f).rglob("*") if p.suffix in (".py", ".md")]
    assert len(files) > 200
    dead = re.compile(r"pip install (?:--upgrade )?['\"]?yonos" + "-trt")
    found = [str(p) for p in [*files, REPOSITORY / "README.md"] if dead.search(p.read_text())]
    assert found == []


def test_every_extra_a_message_names_exists() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    named = set()
    for path in [p for f in ("yonos_trt", "export", "train") for p in (REPOSITORY / f).rglob("*.py")]:
        named |= set(re.findall(r"\bextra=\"(\w+)\"|install_command\(['\"](\w+)['\"]\)", path.read_text()))
    names = {name for pair in named for name in pair if name}
    assert {"video", "images", "export"} <= names
    assert names <= set(project["optional-dependencies"])


def test_ci_notices_files_in_the_home_folder(tmp_path: Path) -> None:
    def check() -> tuple[int, str]:
        command = ["bash", str(REPOSITORY / ".ci/run"), "--check-home", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    (tmp_path / ".cache/matplotlib").mkdir(parents=True)
    (tmp_path / ".cache/matplotlib/fontlist.json").touch()
    assert check() == (0, "")
    (tmp_path / ".cache/tracker-id").touch()
    code, said = check()
    assert code == 0
    assert said.splitlines()[1:] == [f"{tmp_path}/.cache/tracker-id"]
    (tmp_path / ".cache/yonos-trt").mkdir()
    (tmp_path / ".cache/yonos-trt/plan").touch()
    code, said = check()
    assert code == 1
    assert f"{tmp_path}/.cache/yonos-trt/plan" in said
    script = (REPOSITORY / ".ci/run").read_text(encoding="utf-8")
    assert 'check_home "$HOME"' in script.split("--inside ]; then")[1].split("\nfi\n")[0]


def test_the_makefile_installs_extras_that_exist() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r"^EXTRAS := (.*)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])


def test_a_compiler_without_shufflevector_is_refused_by_name(tmp_path: Path) -> None:
    beside = str(Path(sys.executable).parent)  # the environment's own CMake is newer than the system's
    path = os.pathsep.join([beside, os.environ.get("PATH", "")])
    cmake, compiler = shutil.which("cmake", path=path), shutil.which("g++")
    if cmake is None or compiler is None or shutil.which("ninja", path=path) is None:
        pytest.skip("needs cmake, ninja and g++")
    old = tmp_path / "old-g++"
    old.write_text(
        "#!/bin/sh\n"
        'for word; do case "$word" in *.cxx) grep -q __builtin_shufflevector "$word" && exit 1;; esac; done\n'
        f'exec {compiler} "$@"\n'
    )
    old.chmod(old.stat().st_mode | stat.S_IXUSR)
    command = [cmake, "-S", str(REPOSITORY), "-B", str(tmp_path / "build"), "-G", "Ninja"]
    done = subprocess.run(
        [*command, f"-DCMAKE_CXX_COMPILER={old}"],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PATH": path},
        check=False,
    )
    assert done.returncode != 0
    text = " ".join(done.stderr.split())
    for words in ("__builtin_shufflevector", "GCC 12, Clang 14", "old-g++", "CXX=g++-12", "NumPy kernels"):
        assert words in text
