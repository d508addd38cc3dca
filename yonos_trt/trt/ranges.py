"""NVTX ranges: names on the time line of Nsight Systems, where the package ``nvtx`` is installed.

A range covers the time in which the host queues a stage. Names are ``decode tiles 4-7``; a captured batch is
one range, ``batch tiles 4-7``, because its stages are queued by one call. ``YONOS_NVTX=0`` switches them off.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from yonos_trt.tiles.plan import TileBatch

Ranges = Callable[[str], AbstractContextManager[Any]]
"""``with ranges("step"): ...`` marks a stage of one batch."""

_DOMAIN = "yonos-trt"


def no_ranges(stage: str) -> AbstractContextManager[None]:
    """Mark nothing."""
    return nullcontext()


class Nvtx:
    """Makes ranges.

    Parameters
    ----------
    module
        Stands in for the package ``nvtx``; None imports it if it is there.
    """

    def __init__(self, module: Any = None) -> None:
        if module is None and os.environ.get("YONOS_NVTX", "1") != "0":
            try:
                module = importlib.import_module("nvtx")
            except ImportError:
                module = None
        self._module = module

    def range(self, name: str) -> AbstractContextManager[Any]:
        """Mark what the ``with`` block asks of the device."""
        if self._module is None:
            return nullcontext()
        marked: AbstractContextManager[Any] = self._module.annotate(message=name, domain=_DOMAIN)
        return marked

    def of(self, batch: TileBatch) -> Ranges:
        """Return ranges whose names end in the batch's tiles."""
        if self._module is None:
            return no_ranges
        last = batch.first + batch.live - 1
        tiles = f"tiles {batch.first}-{last}" if last > batch.first else f"tile {batch.first}"
        return lambda stage: self.range(f"{stage} {tiles}")
