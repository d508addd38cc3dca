"""Networks that only copy: they let the whole run time be checked on a GPU without TensorRT.

`CopyTensorRT` looks like the module ``tensorrt``. Its stages queue plain device copies on the stream they are
given, so they can be captured into graphs, overlap like real networks, and have an exact NumPy twin: the
picture that comes out must be that of `yonos_trt.backends.numpy.NumpyBackend` with `NUMPY`, bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from fake_tensorrt import FakeContext, FakeEngine, FakeRuntime, FakeTensorRT, encode, step

from yonos_trt.backends.numpy import NumpyBackend
from yonos_trt.engine.manifest import EngineManifest

HALF_BYTES = 2


def repeat(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Fill `shape` with the values, over and over."""
    return np.resize(values.reshape(-1), int(np.prod(shape))).reshape(shape)


def numpy_encode(tiles: np.ndarray) -> np.ndarray:
    n, _, h, w = tiles.shape
    return repeat(tiles, (n, 4, h // 4, w // 4))


def numpy_step(noise: np.ndarray, z_l: np.ndarray) -> np.ndarray:
    half = noise.size // 2
    mixed = np.concatenate((noise.reshape(-1)[:half], z_l.reshape(-1)[half:]))
    return mixed.reshape(noise.shape)


def numpy_decode(z_0: np.ndarray) -> np.ndarray:
    n, _, h, w = z_0.shape
    return repeat(z_0, (n, 3, 4 * h, 4 * w))


def numpy_backend(manifest: EngineManifest) -> NumpyBackend:
    """The same networks on the host, with float16 between the stages."""

    def rounded(x: np.ndarray) -> np.ndarray:
        return x.astype(np.float16).astype(np.float32)

    return NumpyBackend(
        manifest,
        encode=lambda t: numpy_encode(rounded(t)),
        step=lambda n, z: numpy_step(rounded(n), z),
        decode=numpy_decode,
    )


class CopyTensorRT(FakeTensorRT):
    """The module; `driver` is the one that the back end uses."""

    def __init__(self, driver: Any) -> None:
        super().__init__(driver, {"encoder": encode, "step": step, "decoder": numpy_decode})
        self.Runtime = lambda logger: CopyRuntime(self, logger)


class CopyRuntime(FakeRuntime):
    def deserialize_cuda_engine(self, raw: bytes) -> FakeEngine | None:
        engine = super().deserialize_cuda_engine(raw)
        if engine is not None:
            engine.create_execution_context = lambda how: CopyContext(engine)  # type: ignore[method-assign]
        return engine


class CopyContext(FakeContext):
    """Queues copies instead of a network."""

    def execute_async_v3(self, stream: int) -> bool:
        spec, driver = self.engine.spec, self.module.driver
        n, c, h, w = self.shapes[spec["inputs"][0]]
        given = [self.addresses[name] for name in spec["inputs"]]
        out = self.addresses[spec["outputs"][0]]
        size = n * c * h * w * HALF_BYTES
        if spec["stage"] == "step":
            driver.copy(out, given[0], size // 2, stream)
            driver.copy(out + size // 2, given[1] + size // 2, size - size // 2, stream)
            return True
        total = n * 4 * (h // 4) * (w // 4) * HALF_BYTES
        if spec["stage"] == "decoder":
            total = n * 3 * 16 * h * w * HALF_BYTES
        for start in range(0, total, size):
            driver.copy(out + start, given[0], min(size, total - start), stream)
        return True
