"""Time limits of the fuzzing tests."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def no_timeout(request: pytest.FixtureRequest) -> None:
    """A long search outlives pytest's own time limit."""
    if "FUZZ_MINUTES" in os.environ:
        request.node.add_marker(pytest.mark.timeout(0))
