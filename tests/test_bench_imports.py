"""The benchmarks' modules import one another in one direction only."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


def imports(folder: Path) -> dict[str, set[str]]:
    """Return module -> modules below the folder it imports anywhere, inside functions as well."""
    names = {path.stem for path in folder.rglob("*.py")}
    found: dict[str, set[str]] = {}
    for path in sorted(folder.rglob("*.py")):
        used: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                used |= {alias.name.rpartition(".")[2] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module == "benchmarks":
                used |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("benchmarks."):
                used.add((node.module or "").rpartition(".")[2])
        found[path.stem] = used & names - {path.stem}
    return found


def test_no_module_imports_one_that_imports_it() -> None:
    graph = imports(FOLDER)
    assert graph["peers"] >= {"peer_types", "ncnn_peer", "tile_loops", "torch_peer"}
    list(TopologicalSorter(graph).static_order())
    studies = {path.stem for path in (FOLDER / "studies").glob("*.py")}
    assert "grid" in studies
    assert not {name for name in graph.keys() - studies if graph[name] & studies}


def test_a_circle_would_be_found_even_inside_a_function(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("from benchmarks.b import x\n")
    (tmp_path / "b.py").write_text("def f():\n    from benchmarks import a\n    return a\n")
    with pytest.raises(CycleError):
        list(TopologicalSorter(imports(tmp_path)).static_order())
