"""docs/security.md: the tests that it names are there, and the versions are those that are installed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


def rows(head: str) -> list[list[str]]:
    """The cells of the table whose head begins so."""
    table = TEXT[TEXT.index(f"\n| {head} |") :].split("\n\n")[0].strip().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def test_every_promise_names_tests_and_code_that_exist() -> None:
    promises = rows("promise")
    assert len(promises) >= 15
    for promise, holder, tests in promises:
        named = re.findall(r"`((?:fuzz/)?test_\w+)`", tests)
        assert named, promise
        assert [name for name in named if not (ROOT / "tests" / f"{name}.py").is_file()] == [], promise
        files = re.findall(r"`([a-z_/]+\.py)`", holder)
        folders = [ROOT, ROOT / "yonos_trt", ROOT / "train" / "yonos_train"]
        assert [f for f in files if not any((folder / f).is_file() for folder in folders)] == [], promise


def test_versions_are_those_of_the_constraints() -> None:
    versions = rows("package")
    assert len(versions) >= 15
    for packages, version, file, _ in versions:
        if "not pinned" in version:
            continue
        files = ["constraints.txt", "constraints-web.txt"] if file == "both" else [file]
        for name in files:
            lines = (ROOT / name).read_text(encoding="utf-8").lower().splitlines()
            for package, number in zip(packages.split(", "), version.split(", "), strict=True):
                assert f"{package}=={number}" in lines, name


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-web.txt", "constraints-triton.txt"])
def test_every_file_of_versions_is_among_those_to_audit(name: str) -> None:
    command = TEXT[TEXT.index("```sh") :].split("```")[1]
    assert re.search(rf"(?<![-\w]){re.escape(name)}\b", command)
