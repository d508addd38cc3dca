"""A graph on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class GraphFile:
    """A graph on disk: the ``.onnx`` file and, for large ones, the file with its weights."""

    path: Path
    external: tuple[Path, ...] = ()

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(p.stat().st_size for p in (self.path, *self.external))
