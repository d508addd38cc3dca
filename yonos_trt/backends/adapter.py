"""Back ends written for 0.1, with four calls in place of `run`; they work until 0.2."""

from __future__ import annotations

import warnings
from typing import Any

from yonos_trt.backends.base import Backend, stage
from yonos_trt.backends.host import HostBackend
from yonos_trt.tiles.plan import TilePlan


def adapted(backend: Any) -> Backend:
    """Return what makes a back end of before `Backend.run` look like one of today."""
    name = type(backend).__name__
    warnings.warn(
        f"{name} has no run(source, plan, batch, seed, lane); let it inherit from "
        "yonos_trt.backends.host.HostBackend, which has one. From 0.2 on this is an error",
        DeprecationWarning,
        stacklevel=3,
    )
    return _Adapter(backend)


class _Adapter(HostBackend):
    """`HostBackend.run` over the calls of another object, whose arrays are its own."""

    def __init__(self, old: Any) -> None:
        super().__init__(old.manifest, lanes=old.lanes)
        self.any_tile = getattr(old, "any_tile", True)
        for name in ("gather", "encode", "noise", "step", "decode", "blend", "canvas", "download", "close"):
            setattr(self, name, getattr(old, name))
        for name in ("use_lanes", "working_bytes"):
            if hasattr(old, name):
                setattr(self, name, getattr(old, name))
        self._old = old

    def upload(self, image: Any) -> Any:
        self._image = image
        return self._old.upload(image)

    def finish(self, source: Any, canvas: Any, plan: TilePlan, **options: Any) -> Any:
        if not hasattr(self._old, "finish"):
            return super().finish(self._image, canvas, plan, **options)
        return _AdaptedFinish(self._old.finish(source, canvas, plan, color_fix=options["color_fix"]))


class _AdaptedFinish:
    lend = ahead = False

    def __init__(self, old: Any) -> None:
        self._old, self.block_rows = old, old.block_rows

    def push(self, y0_px: int, y1_px: int) -> Any:
        return self._old.push(y0_px, y1_px, stage)

    def rest(self) -> None:
        """Nothing is held back."""
