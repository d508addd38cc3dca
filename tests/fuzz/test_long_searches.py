"""`FUZZ_MINUTES=` for hours: pytest's own time limit does not end a search."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.mark.parametrize(("minutes", "ends"), [("1", False), (None, True)], ids=["search", "test"])
def test_a_search_may_take_longer_than_the_time_limit_of_a_test(minutes: str | None, ends: bool) -> None:
    """1.5 s in a pytest of its own, whose limit is one second."""
    if "YONOS_OWN_PROCESS" in os.environ:
        return time.sleep(1.5)
    name = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "timeout=1", name]
    environment = os.environ | {"YONOS_OWN_PROCESS": "1"}
    environment.pop("FUZZ_MINUTES", None)
    if minutes is not None:
        environment["FUZZ_MINUTES"] = minutes
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120)
    assert ("1 passed" in done.stdout, "Timeout" in done.stdout) == (not ends, ends), done.stdout
