"""Time limits of the fuzzing tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lift the limit for a long search, which a fixture would do too late; a hang still ends."""
    minutes = os.environ.get("FUZZ_MINUTES")
    if minutes is None:
        return
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(600 + 60 * float(minutes)))
