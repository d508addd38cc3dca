"""What travels between the calls of the TensorRT back end: notes and handles, no pixels."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from yonos_trt.cuda.lanes import Slot
from yonos_trt.cuda.launches import DevicePicture
from yonos_trt.errors import ConfigError
from yonos_trt.tiles.plan import TileBatch, TilePlan

__all__ = ["Canvas", "Pending", "Source", "Tiles", "noted"]


@dataclass(frozen=True, slots=True)
class Source:
    """A picture on the device; `owner` keeps the memory alive that it is being copied from."""

    picture: DevicePicture
    number: int
    owner: Any = None


@dataclass(frozen=True, slots=True)
class Pending:
    """Notes of one batch on its way from gather to decode."""

    source: Source
    plan: TilePlan
    batch: TileBatch
    done: str
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Tiles:
    """A batch that has been queued."""

    slot: Slot
    source: Source
    batch: TileBatch
    seed: int


@dataclass(slots=True)
class Canvas:
    """State of one run's accumulator."""

    plan: TilePlan
    number: int
    band: int = 0
    front: int = 0
    blended: list[Tiles] = field(default_factory=list)
    """Batches blended since their flags were looked at last."""
    count: int = 0
    """Batches blended in all."""


def noted(pending: Pending, before: str, now: str) -> Pending:
    """Return the notes with `now` done, if `before` was the last thing done."""
    if not isinstance(pending, Pending) or pending.done != before:
        raise ConfigError(
            f"{now} got something else than the result of {before}; call gather, encode, step and decode in "
            "this order for every batch"
        )
    return replace(pending, done=now)
