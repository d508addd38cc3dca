"""Time several things in turns and say how sure the ratio between two of them is.

A machine drifts: clocks, caches, other programs. Subjects that are timed one after the other differ by that
drift; subjects that take turns, A B C, C B A, A B C ..., share it. The ratio is taken within each round, and
its interval comes from resampling whole rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median with its bootstrap interval.

    Attributes
    ----------
    value : float
        Median over the rounds.
    low, high : float
        Ends of the interval that holds the median with the asked-for confidence.
    samples : int
        Rounds it rests on.
    """

    value: float
    low: float
    high: float
    samples: int

    def as_dict(self) -> dict[str, Any]:
        """Return the four fields, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def alternate(
    subjects: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warm_up: int = 1,
    budget_s: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
    on_round: Callable[[int], None] | None = None,
) -> dict[str, list[float]]:
    """Call all subjects once per round, forwards in even rounds and backwards in odd ones.

    Parameters
    ----------
    subjects
        Name -> the timed call; it has to wait for its own result.
    rounds
        Rounds that are timed.
    warm_up
        Untimed rounds before.
    budget_s
        Begin no further round after this many seconds; at least two rounds are run.
    clock
        Seconds, monotonic.
    on_round
        Called with the number of timed rounds done.

    Returns
    -------
    Name -> seconds, one entry per round; entry i of every list belongs to round i.

    Raises
    ------
    ValueError
        No subjects, or fewer than one round.
    """
    if not subjects or rounds < 1 or warm_up < 0:
        raise ValueError(
            f"got {len(subjects)} subjects, {rounds} rounds and {warm_up} warm-up rounds; expected at least "
            "one subject, one round and no negative warm-up"
        )
    forwards = list(subjects)
    for _ in range(warm_up):
        for name in forwards:
            subjects[name]()
    seconds: dict[str, list[float]] = {name: [] for name in forwards}
    began = clock()
    for index in range(rounds):
        if budget_s is not None and index >= 2 and clock() - began > budget_s:
            break
        for name in forwards if index % 2 == 0 else forwards[::-1]:
            start = clock()
            subjects[name]()
            seconds[name].append(clock() - start)
        if on_round is not None:
            on_round(index + 1)
    return seconds


def estimate(values: Sequence[float], *, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """Return the median of `values` and its percentile-bootstrap interval.

    Raises
    ------
    ValueError
        No values, or values that are not finite.
    """
    found = np.asarray(values, np.float64)
    if found.ndim != 1 or found.size == 0 or not np.isfinite(found).all():
        raise ValueError(f"got {list(values)!r}, expected a non-empty list of finite numbers")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}, expected a number between 0 and 1")
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, found.size, (_RESAMPLES, found.size))
    medians = np.median(found[picks], axis=1)
    low, high = np.quantile(medians, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(np.median(found)), float(low), float(high), int(found.size))


def ratio(
    numerator: Sequence[float], denominator: Sequence[float], *, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """Return the median of the per-round ratios; both lists come from one `alternate` call.

    Raises
    ------
    ValueError
        The lists differ in length, are empty, or hold a zero or a number that is not finite.
    """
    if len(numerator) != len(denominator):
        raise ValueError(
            f"got {len(numerator)} and {len(denominator)} rounds, expected as many of both: ratios are "
            "taken within a round"
        )
    if any(not value > 0 for value in (*numerator, *denominator)):
        raise ValueError("a time is not positive, expected seconds above 0")
    quotients = [a / b for a, b in zip(numerator, denominator, strict=True)]
    return estimate(quotients, confidence=confidence, seed=seed)
