"""NumPy twins and three functions as networks: what every other backend is compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from yonos_trt.backends.base import Array
from yonos_trt.backends.host import HostBackend

if TYPE_CHECKING:
    from yonos_trt.engine.schema import EngineManifest


def _pass(value: Array) -> Array:
    return value


def _pass_z_l(*taken: Array) -> Array:
    return taken[-1]


class NumpyBackend(HostBackend):
    """NumPy twins and three functions as networks: what every other backend is compared with.

    With the default functions the picture passes through unchanged, so the pipeline's output is the bicubic
    image. Nothing but NumPy is needed.

    Parameters
    ----------
    manifest
        Scale, latent factor and channels, and the encoder's input kind; by default `identity_manifest`.
    encode, step, decode
        ``tiles -> z_l``, ``(noise, z_l) -> z_0`` (``z_l -> z_0`` for a model without noise),
        ``z_0 -> tiles (N, 3, h, w)``; called from all lanes.
    lanes, kernels, threads
        As in `HostBackend`; the twins by default.
    """

    def __init__(
        self,
        manifest: EngineManifest | None = None,
        *,
        encode: Callable[[Array], Array] = _pass,
        step: Callable[..., Array] = _pass_z_l,
        decode: Callable[[Array], Array] = _pass,
        lanes: int = 1,
        kernels: str = "numpy",
        threads: int = 1,
    ) -> None:
        from yonos_trt.engine.schema import identity_manifest

        super().__init__(manifest or identity_manifest(), lanes=lanes, kernels=kernels, threads=threads)
        self.networks = {
            "encoder": lambda lane, tiles: encode(tiles),
            "step": lambda lane, *taken: step(*taken),
            "decoder": lambda lane, z_0: decode(z_0),
        }

    def close(self) -> None:
        """Do nothing: there is nothing to release."""
