"""Importing is free: the standard library and NumPy only."""

from __future__ import annotations

import ast
import graphlib
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import yonos_trt
from yonos_trt import errors
from yonos_trt._moved import MOVED

# Modules of the data path that must not load anything else either.
LIGHT = [
    "yonos_trt",
    "yonos_trt.errors",
    "yonos_trt.tiles.plan",
    "yonos_trt.tiles.noise",
    "yonos_trt.tiles.color",
    "yonos_trt.backends.base",
    "yonos_trt.backends.numpy",
    "yonos_trt.pipeline",
]
ALLOWED = {"numpy", "yonos_trt", "_distutils_hack"}
# What an editable install or the test runner's path files put there before the first line runs is not ours.
PROBE = """
import json, sys
before = set(sys.modules)
sys.path[:0] = json.loads(sys.argv[1])
__import__(sys.argv[2])
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""


@pytest.mark.parametrize("module", LIGHT)
def test_import_loads_only_the_standard_library_and_numpy(module: str) -> None:
    root = str(Path(yonos_trt.__file__).parents[1])
    run = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps([root]), module], capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(run.stdout))
    assert "yonos_trt" in loaded
    foreign = loaded - ALLOWED - set(sys.stdlib_module_names)
    assert not foreign, f"import {module} loads {sorted(foreign)}"


def test_public_names_are_the_ones_listed() -> None:
    assert set(yonos_trt.__all__) <= set(dir(yonos_trt))
    assert yonos_trt.ConfigError is errors.ConfigError
    assert set(errors.__all__) <= set(yonos_trt.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = yonos_trt.nothing


@pytest.mark.parametrize("name", yonos_trt.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(yonos_trt, name) is not None


def imports(root: Path, package: str, *, run: bool = False) -> dict[str, set[str]]:
    """Module -> modules of the package that it imports anywhere, for type checking too; without packages.

    With `run`, without what is for type checking alone, and with sub-packages.
    """
    files = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (root / package).rglob("*.py")
        # a package's own module hands out names lazily, and so imports what imports it
        if path.name != "__init__.py" or (run and path.parent != root / package)
    }
    found: dict[str, set[str]] = {}
    for module, path in files.items():
        names: set[str] = set()
        tree = ast.parse(path.read_text())
        typing = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)]
        left_out = {inner for outer in typing if run for inner in ast.walk(outer)}
        for node in ast.walk(tree):
            if node in left_out:
                continue
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                above = module.split(".")[: -node.level] if node.level else []
                source = ".".join([*above, *([node.module] if node.module else [])])
                names.add(source)
                names.update(f"{source}.{alias.name}" for alias in node.names)
        found[module] = names & files.keys()
    return found


@pytest.mark.parametrize(
    "package", ["yonos_trt", "export/yonos_export", "train/yonos_train"], ids=lambda p: Path(p).name
)
def test_no_modules_import_each_other_in_a_circle(package: str) -> None:
    root = Path(__file__).resolve().parents[1] / Path(package).parent
    found = imports(root, Path(package).name)
    assert sum(map(len, found.values())) > 10
    graphlib.TopologicalSorter(found).prepare()  # a CycleError names the modules


def test_config_and_families_of_the_export_are_no_circle() -> None:
    """Sub-packages' own modules too; what is imported for type checkers alone does not run."""
    root = Path(__file__).resolve().parents[1] / "export"
    found = imports(root, "yonos_export", run=True)
    assert "yonos_export.families" in found["yonos_export.config"]
    graphlib.TopologicalSorter(found).prepare()


# What stands in one line may import what stands in the same line or above it.
FLOORS = """
    errors choices atomic code_cache host console _moved
    engine tiles images cuda
    planning prefetch sizing
    backends
    pipeline
    trt
    session
    video
    sr
    bench web triton
    cli ray_data
"""


def test_nothing_imports_upwards() -> None:
    floor = {room: i for i, line in enumerate(FLOORS.strip().splitlines()) for room in line.split()}

    def floor_of(module: str) -> int:
        return floor[module.split(".")[1]]  # a KeyError names a module that has no floor yet

    found = imports(Path(yonos_trt.__file__).parents[1], "yonos_trt")
    upwards = [
        f"{module} imports {other}"
        for module, others in sorted(found.items())
        for other in sorted(others)
        if floor_of(other) > floor_of(module)
    ]
    assert not upwards


@pytest.mark.parametrize("old", MOVED)
def test_import_paths_of_before_the_rooms_work_and_warn(old: str) -> None:
    for new in MOVED[old].split():
        module = importlib.import_module(f"yonos_trt.{new}")
        names = [name for name in vars(module) if not name.startswith("_")]
        sys.modules.pop(f"yonos_trt.{old}", None)
        with pytest.warns(DeprecationWarning, match=rf"^yonos_trt.{old} is now .*yonos_trt.{new}"):
            was = importlib.import_module(f"yonos_trt.{old}")
        assert names
        assert all(getattr(was, name) is getattr(module, name) for name in names)
        with pytest.raises(AttributeError, match="nothing"):
            _ = was.nothing


def test_version_is_that_of_the_project_file_and_the_changelog_knows_it() -> None:
    root = Path(__file__).resolve().parents[1]
    assert f'version = "{yonos_trt.__version__}"' in (root / "pyproject.toml").read_text()
    changelog = (root / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in changelog or f"## [{yonos_trt.__version__}]" in changelog


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "README.md", "docs/kernels.md", "docs/runtime.md"])
def test_files_that_a_page_names_are_there(page: str) -> None:
    root = Path(__file__).resolve().parents[1]
    named = set(re.findall(r"`([\w./]+\.(?:py|pyi|cpp|cu|h|md|toml|txt))`", (root / page).read_text()))
    below = ("", "yonos_trt", "yonos_trt/tiles", "csrc", "export/yonos_export", "docs")
    assert named
    assert not {n for n in named if not any((root / folder / n).exists() for folder in below)}
