"""Whole pictures by size, tile, batch and lanes: the points of the sweep, and how one is measured.

A point differs from the base in one respect, so that a row says what that respect costs. Its output is
checked against its input before its time counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.peer_types import Picture
from yonos_trt.bench.machine import DeviceMemory, PeakMemory
from yonos_trt.sr import SR

LEAST_PSNR_DB = 30.0
"""Of the result, reduced to the size of the input, against the input; measured are 45 and more."""


@dataclass(frozen=True, slots=True)
class Point:
    """One way of running a picture.

    Attributes
    ----------
    height_lr_px, width_lr_px : int
        Size of the input.
    runtime : str
        As in `SR`.
    tile_px : int or None
        Tile side in output px; None: the model's, levelled to the picture on the host.
    batch, lanes : int
        As in `SR`.
    """

    height_lr_px: int = 256
    width_lr_px: int = 256
    runtime: str = "onnx"
    tile_px: int | None = None
    batch: int = 1
    lanes: int = 1

    def __str__(self) -> str:
        tile = "default tile" if self.tile_px is None else f"tile {self.tile_px}"
        size = f"{self.height_lr_px}x{self.width_lr_px}"
        return f"{self.runtime} {size} {tile} batch {self.batch} lanes {self.lanes}"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        return asdict(self)


def _around(base: Point, sizes: Sequence[tuple[int, int]], **axes: Sequence[int]) -> list[Point]:
    points = [replace(base, height_lr_px=h, width_lr_px=w) for h, w in sizes]
    points += [replace(base, **{name: value}) for name, values in axes.items() for value in values]
    return list(dict.fromkeys(points))


QUICK = _around(Point(), [(64, 64), (128, 128), (256, 256)], tile_px=(256,), batch=(2,), lanes=(2,))
"""Some ten seconds on two CPUs."""

FULL = [
    point
    for runtime in ("onnx", "openvino")
    for point in _around(
        Point(runtime=runtime),
        [(64, 64), (128, 128), (256, 256), (512, 512), (1024, 1024), (128, 2048), (333, 517)],
        tile_px=(256, 384, 512, 768, 1024),
        batch=(1, 2, 4),
        lanes=(1, 2, 4),
    )
]
"""Some five minutes on two CPUs."""


def drawing(height: int, width: int) -> Picture:
    """Return a smooth random picture, (height, width, 3) uint8."""
    small = np.random.default_rng(0).integers(0, 256, (height // 25 + 1, width // 25 + 1, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def check(lr: Picture, out: Picture, scale: int) -> float:
    """Return the PSNR in dB of the result, averaged over scale x scale px, against the input.

    Raises
    ------
    AssertionError
        Wrong size or type, or `LEAST_PSNR_DB` is not reached: a black, shifted or torn picture.
    """
    height, width = lr.shape[:2]
    assert out.shape == (height * scale, width * scale, 3), f"got {out.shape} from {lr.shape}, scale {scale}"
    assert out.dtype == np.uint8
    reduced = out.reshape(height, scale, width, scale, 3).mean(axis=(1, 3))
    error = float(np.mean((reduced - lr) ** 2))
    psnr_db = float(10 * np.log10(255**2 / max(error, 1e-9)))
    assert psnr_db >= LEAST_PSNR_DB, f"{psnr_db:.1f} dB against the input, expected {LEAST_PSNR_DB}"
    return psnr_db


@contextmanager
def opened(engine_dir: Path, point: Point, *, threads: int) -> Iterator[SR]:
    """Open the model as the point says."""
    with SR(
        engine_dir,
        runtime=point.runtime,
        tile_px=point.tile_px,
        batch=point.batch,
        lanes=point.lanes,
        threads=threads,
    ) as sr:
        yield sr


@contextmanager
def measured_memory(found: dict[str, Any]) -> Iterator[None]:
    """Put the peak of the body's memory into `found`: of the process, and of the GPU where there is one."""
    with PeakMemory() as host, DeviceMemory() as device:
        yield
    found |= host.as_dict() | {"device_memory": device.as_dict()}


def exponent(pixels: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the power of the size that the time grows with: 1 is linear cost."""
    slope, _ = np.polyfit(np.log(pixels), np.log(seconds), 1)
    return float(slope)
