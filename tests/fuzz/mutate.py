"""Property tests that mutate our own small valid files: the outcome is a right result or one of our errors.

60 seconds in all by default, with the same mutations every time; ``FUZZ_MINUTES=120`` searches as long as
that, from a seed of the clock, which is logged (``FUZZ_SEED=N`` says it again). The tests make their corpus.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

SHARES = 4  # test files that share the time

# Bytes that tend to matter: lengths, counts and signs at their ends.
_EDGES = (
    b"\x00",
    b"\x01",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x00",
    b"\x7f\xff\xff\xff",
)


@dataclass(frozen=True)
class Mutation:
    """One change: ``kind`` at the place ``at`` (share of the file), of ``length`` bytes, with ``value``."""

    kind: str
    at: float
    length: int
    value: bytes

    def __call__(self, raw: bytes) -> bytes:
        place = min(int(self.at * len(raw)), max(0, len(raw) - 1))
        if self.kind == "cut":
            return raw[:place]
        if self.kind == "delete":
            return raw[:place] + raw[place + self.length :]
        if self.kind == "repeat":
            return raw[: place + self.length] + raw[place:]
        if self.kind == "insert":
            return raw[:place] + self.value + raw[place:]
        if self.kind == "flip" and raw:
            return raw[:place] + bytes([raw[place] ^ (1 << self.length % 8)]) + raw[place + 1 :]
        return raw[:place] + self.value + raw[place + len(self.value) :]


def mutations(most: int = 4) -> st.SearchStrategy[list[Mutation]]:
    """Draw one to ``most`` mutations; half of them lie in the first tenth, where headers are."""
    places = st.one_of(st.floats(0, 0.1), st.floats(0, 1))
    one = st.builds(
        Mutation,
        st.sampled_from(["cut", "delete", "repeat", "insert", "flip", "write"]),
        places,
        st.integers(1, 64),
        st.one_of(st.sampled_from(_EDGES), st.binary(min_size=1, max_size=8)),
    )
    return st.lists(one, min_size=1, max_size=most)


def mutate(raw: bytes, changes: list[Mutation]) -> bytes:
    """Return ``raw`` with the changes made one after the other."""
    for change in changes:
        raw = change(raw)
    return raw


def fuzz(strategy: st.SearchStrategy[Any], check: Callable[[Any], None], *, share: float = 1.0) -> int:
    """Draw from ``strategy`` and ``check`` until the share of the time is used; return how many were tried.

    ``share`` is a test's part of its file's time. A failing example is shrunk and shown by hypothesis.
    """
    minutes = os.environ.get("FUZZ_MINUTES")
    budget_s = (60.0 if minutes is None else 60 * float(minutes)) / SHARES * share
    first = 0 if minutes is None else int(os.environ.get("FUZZ_SEED", time.time_ns() % 10**9))
    logging.getLogger(__name__).warning("FUZZ_SEED=%d", first)
    end, tried = time.monotonic() + budget_s, 0

    def counted(drawn: Any) -> None:
        nonlocal tried
        tried += 1
        check(drawn)

    run = first
    while tried == 0 or time.monotonic() < end:
        quiet = settings(
            max_examples=10,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=False,
        )
        seed(run)(quiet(given(strategy)(counted)))()
        run += 1
    return tried


def told(error: Exception) -> str:
    """Return an error's text, which a person must be able to read."""
    text = str(error)
    assert text
    assert len(text) < 4000
    return text
