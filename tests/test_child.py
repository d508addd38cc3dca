"""Child interpreters: isolated from the current directory and from ``PYTHON*`` variables."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from yonos_trt import host as child
from yonos_trt.cli import doctor
from yonos_trt.host import python_command

REPOSITORY = Path(__file__).resolve().parents[1]
# Modules that children import, and some that every interpreter does
BAIT = ("tensorrt", "tensorrt_rtx", "numpy", "onnxruntime", "openvino", "json", "site", "sitecustomize")


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory full of modules that leave a mark when they run."""
    folder = tmp_path / "current"
    folder.mkdir()
    for name in BAIT:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'a').write({name!r})\n")
    monkeypatch.chdir(folder)
    return tmp_path / "sprung"


def test_doctor_runs_nothing_of_the_current_directory(trap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_is_there", lambda _: True)
    for entry in ("", ".", os.getcwd(), os.path.join(os.getcwd(), ".")):
        monkeypatch.setattr(sys, "path", [entry, *sys.path])
        found = {name: doctor._imports(name) for name in ("tensorrt", "tensorrt_rtx")}
        assert not trap.exists()
        assert all(f["version"] or "No module named" in f["problem"] for f in found.values()), found


@pytest.mark.parametrize("variable", ["PYTHONPATH", "PYTHONSTARTUP", "PYTHONHOME"])
def test_python_variables_have_no_say(trap: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, os.getcwd() if variable != "PYTHONSTARTUP" else "json.py")
    done = subprocess.run(python_command("import json, numpy; print(json.dumps(1))"), capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"1\n")
    assert not trap.exists()


def test_the_doctor_command_in_such_a_directory(trap: Path) -> None:
    code = "import sys; sys.path.pop(0); from yonos_trt.cli.main import cli; cli()"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", code, "doctor", "--json"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["yonos_trt"]
    assert not trap.exists()


def test_the_bench_probes_of_a_library_in_such_a_directory(trap: Path) -> None:
    from yonos_trt.bench import peaks

    done = subprocess.run(
        python_command("import yonos_trt.bench.probes, numpy; print(numpy.__name__)", package=True),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "numpy\n"), done.stderr
    assert peaks.python_command is python_command
    assert not trap.exists()


def test_the_parents_own_path_is_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / 'it\'s a plåce "x"'
    place.mkdir()
    (place / "only_here.py").write_text("value = 7\n")
    monkeypatch.syspath_prepend(str(place))
    done = subprocess.run(python_command("import only_here; print(only_here.value)"), capture_output=True)
    assert done.stdout == b"7\n", done.stderr


def test_arguments_reach_the_code() -> None:
    done = subprocess.run(python_command("print(sys.argv[1:])", "a b", "-x"), capture_output=True, text=True)
    assert done.stdout == "['a b', '-x']\n"


def test_the_package_is_found_from_its_own_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(child.__file__).resolve().parents[1]
    monkeypatch.chdir(root)
    command = python_command("import yonos_trt; print(yonos_trt.__file__)", package=True)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip() == str(root / "yonos_trt" / "__init__.py"), done.stderr


def test_a_current_directory_that_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    done = subprocess.run(python_command("import numpy; print(1)"), capture_output=True, cwd=tmp_path)
    assert done.stdout == b"1\n", done.stderr


@pytest.mark.parametrize("package", ["yonos_trt", "export/yonos_export", "train/yonos_train"])
def test_every_child_interpreter_is_isolated(package: str) -> None:
    """``sys.executable`` stands in two places: `host` and the probe of the driver, which has ``-I`` too."""
    for path in (REPOSITORY / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.List) and any(ast.unparse(e) == "sys.executable" for e in node.elts):
                assert "'-I'" in ast.unparse(node), f"{path}:{node.lineno}"
            elif isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.executable":
                assert path.name in ("host.py", "probe.py"), f"{path}:{node.lineno}"
