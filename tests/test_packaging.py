"""What goes into source distribution, wheels and container image; `make wheel` builds and tries them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def tracked() -> set[str]:
    """Return the files of the checkout, with those that are new and not ignored."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a clone")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return {name for name in listed.split("\0") if name and (ROOT / name).is_file()}


def test_the_sdist_holds_what_git_tracks(tmp_path: Path) -> None:
    pytest.importorskip("scikit_build_core")
    files = tracked()
    code = "import sys; from scikit_build_core.build import build_sdist; print(build_sdist(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        held = {m.name.partition("/")[2] for m in archive if not m.isdir()}
    assert held - files == {"PKG-INFO"}
    assert files - held == set()


def test_the_summary_says_which_kernels_a_wheel_holds(project: dict[str, Any]) -> None:
    """Of a build with the compiled ones, and of the second try of one whose compiler did not fit."""
    pytest.importorskip("scikit_build_core")
    from scikit_build_core.build.metadata import get_standard_metadata
    from scikit_build_core.settings.skbuild_read_settings import SettingsReader

    said = {}
    for failed in (False, True):
        settings = SettingsReader(project, {}, state="wheel", retry=failed).settings
        assert settings.wheel.cmake != failed
        said[failed] = get_standard_metadata(project, settings).description or ""
    assert "(compiled tile kernels)" in said[False]
    assert "(NumPy tile kernels, slow: no fitting C++ compiler was found)" in said[True]
    try:
        summary = metadata.metadata("yonos-trt")["Summary"]
    except metadata.PackageNotFoundError:
        return
    assert summary in said.values()


def test_the_stable_abi_begins_where_nanobind_has_it(project: dict[str, Any]) -> None:
    overrides = project["tool"]["scikit-build"]["overrides"]
    tags = [(o["if"], o["wheel"]["py-api"]) for o in overrides if "py-api" in o.get("wheel", {})]
    # the later one goes first: without a compiler the wheel is for any Python
    assert tags == [({"python-version": ">=3.12"}, "cp312"), ({"failed": True}, "py3")]
    cmake = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    assert re.search(r"nanobind_add_module\(_native STABLE_ABI ", cmake)
    assert "${SKBUILD_SABI_COMPONENT}" in cmake


def test_wheels_are_built_for_each_python_that_is_named(project: dict[str, Any]) -> None:
    config, facts = project["tool"]["cibuildwheel"], project["project"]
    assert config["build"] == [f"cp3{minor}-*" for minor in range(11, 15)]
    assert config["linux"]["archs"] == ["x86_64", "aarch64"]
    assert {config[f"manylinux-{arch}-image"] for arch in config["linux"]["archs"]} == {"manylinux_2_28"}
    named = {c.rpartition(" ")[2] for c in facts["classifiers"] if re.fullmatch(r".*:: Python :: 3\.\d+", c)}
    built = {f"3.{b.removeprefix('cp3').removesuffix('-*')}" for b in config["build"]}
    assert facts["requires-python"] == ">=3.11"
    assert "3.11" in named
    assert named <= built
    for line in config["test-command"]:
        for path in re.findall(r"\{project\}/(\S+)", line):
            assert (ROOT / path).is_file()


def test_the_image_is_built_from_what_there_is(project: dict[str, Any]) -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    extras = set(project["project"]["optional-dependencies"])
    named = re.findall(r"EXTRAS=([a-z,-]+)", text)
    assert len(named) == 2
    assert all(set(group.split(",")) <= extras for group in named)
    assert re.findall(r"^ARG BASE=(\S+)", text, re.MULTILINE) == ["debian:bookworm-slim"]
    assert re.search(r"BASE=nvidia/cuda:13\.[\d.]+-base-ubuntu24\.04", text)
    assert re.search(r"^USER \d+$", text, re.MULTILINE), "the commands do not run as root"
    left_out = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    needed = {"pyproject.toml", "CMakeLists.txt", "csrc", "yonos_trt", "export", "train", "constraints.txt"}
    assert not needed & {line.strip("/") for line in left_out}
    assert {".git", "**/*.so"} <= set(left_out)


def test_the_image_passes_its_linter() -> None:
    beside = Path(sys.executable).with_name("hadolint")
    hadolint = str(beside) if beside.is_file() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("needs hadolint: pip install -c constraints.txt '.[wheel]'")
    done = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
