"""The file in which TensorRT-RTX's compiled kernels outlive the process.

It lies beside its engine where that directory can be written, so that whoever shares the engines shares the
kernels; else in the user's cache directory. Kernels are executable code that no manifest vouches for. Beside
the engine they deserve the trust that the directory has, whose owner could as well replace engine and
manifest: so a cache file is taken from that owner or from ourselves only, and a directory open to all is not
used.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path

from yonos_trt import code_cache
from yonos_trt.engine.manifest import Artifact

_log = logging.getLogger(__name__)


class KernelCache:
    """Where the kernels of one engine, for one version and GPU, are kept.

    Parameters
    ----------
    root
        The engine directory.
    artifact
        The engine.
    version, gpu
        TensorRT-RTX's version and the GPU's name.

    Notes
    -----
    ``YONOS_CACHE_DIR`` wins over the engine directory.
    """

    def __init__(self, root: Path, artifact: Artifact, version: str, gpu: str) -> None:
        device = "".join(c if c.isalnum() else "-" for c in gpu)
        name = f"{artifact.sha256[:32]}-{version}-{device}.cache"
        # Hidden: other files that the manifest does not name make an engine directory invalid.
        beside = (root / artifact.file).with_name(f".{name}")
        own = code_cache.folder("rtx") / name
        alone = os.environ.get("YONOS_CACHE_DIR") or _open_to_all(root)
        self.places: tuple[Path, ...] = (own,) if alone else (beside, own)

    def load(self, accept: Callable[[bytes], None]) -> None:
        """Hand over the kernels of the first place that has any; never raises."""
        for place in self.places:
            try:
                if place.is_file():
                    accept(code_cache.read(place, place.parent.stat().st_uid))
                    return
            except Exception as error:
                _log.warning("the kernel cache %s is not used: %s", place, error)

    def save(self, serialize: Callable[[], bytes]) -> None:
        """Write the kernels to the first place that takes them; never raises."""
        try:
            raw = serialize()
        except Exception as error:
            _log.warning("the kernel cache was not written: %s", error)
            return
        reasons = []
        for place in self.places:
            try:
                code_cache.write(place, raw, mode=0o644)
                return
            except OSError as error:
                reasons.append(f"{place}: {error}")
        _log.warning("the kernel cache was not written: %s", "; ".join(reasons))


def _open_to_all(folder: Path) -> bool:
    try:
        return bool(folder.stat().st_mode & stat.S_IWOTH)
    except OSError:
        return True
