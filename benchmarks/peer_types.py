"""What every peer has in common: its signature, its setting, and the reason why it cannot run here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yonos_trt.engine.manifest import EngineManifest, load_manifest
from yonos_trt.host import usable_cpus

Picture = NDArray[np.uint8]
Upscaler = Callable[[Picture], Picture]


class NotRun(Exception):
    """A peer cannot run here; the text says what it lacks."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all peers of one run share.

    Attributes
    ----------
    engine_dir : Path
        Engine directory of our model.
    bundle : Path or None
        The checkpoint it was exported from, for the torch peers.
    threads : int
        Threads of every peer.
    tile_px : int or None
        Tile side of all peers that cut tiles; None: the model's default.
    seed : int
        Of the noise.
    """

    engine_dir: Path
    bundle: Path | None = None
    threads: int = field(default_factory=usable_cpus)
    tile_px: int | None = None
    seed: int = 0

    @property
    def manifest(self) -> EngineManifest:
        """The engine directory's manifest."""
        return load_manifest(self.engine_dir, verify=False)
