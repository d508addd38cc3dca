"""Fixed inputs for the parity gate and the range check: tiles of real pictures, and one of extremes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yonos_export.model_info import ModelInfo
from yonos_trt.errors import InputError
from yonos_trt.tiles import kernels, noise

SIDE_PX = 256  # default tile: large enough for attention and borders, small enough for a CPU
SEED = 0
PICTURES = Path(__file__).parent / "pictures"

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Sample:
    """One tile: what the encoder reads, ``(1, 3, h, w)``, and the noise of the step, ``(1, C, h/f, w/f)``.

    A model that starts without noise has none.
    """

    name: str
    image: NDArray[np.float32]
    noise: NDArray[np.float32] | None


def extremes(side: int = 128) -> Picture:
    """Draw what photographs lack: black and white, full-range ramps, a one-pixel grid, saturated noise."""
    y, x = np.mgrid[:side, :side]
    half = side // 2
    picture = np.zeros((side, side, 3), np.uint8)
    picture[:half, :half] = (x[:half, :half] * 255 // (half - 1))[..., None]
    picture[:half, half:] = (((x + y)[:half, half:] % 2) * 255)[..., None]
    picture[half:, :half] = np.where((x // 8 + y // 8)[half:, :half, None] % 2, (255, 0, 0), (0, 255, 255))
    random = np.random.Generator(np.random.PCG64(SEED)).integers(0, 2, (side - half, side - half, 3))
    picture[half:, half:] = random * 255
    return picture


def read_pictures(paths: Sequence[Path]) -> dict[str, Picture]:
    """Return name -> RGB picture: the package's own two, the computed one, then those at `paths`."""
    from yonos_trt.images import read_rgb8

    pictures: dict[str, Picture] = {}
    for path in (*sorted(PICTURES.glob("*.png")), *paths):
        try:
            pictures[path.name] = read_rgb8(path)
        except (OSError, InputError) as error:
            raise InputError(f"verification picture {path} cannot be read: {error}") from error
    pictures["extremes"] = extremes()
    return pictures


def make_samples(info: ModelInfo, paths: Sequence[Path] = (), *, tile_px: int | None = None) -> list[Sample]:
    """Cut one tile out of the middle of each picture and take its noise from the field of seed 0."""
    side = info.legal_tile(tile_px or SIDE_PX)
    f = info.model.latent_factor
    samples = []
    for name, picture in read_pictures(paths).items():
        height, width = picture.shape[0] * info.model.scale, picture.shape[1] * info.model.scale
        # Origins are multiples of the tile grid, as in a plan; pictures smaller than the tile are reflected.
        y, x = (
            np.array([max(0, size - side) // 2 // info.tiles.multiple_px * info.tiles.multiple_px], np.int64)
            for size in (height, width)
        )
        gather = kernels.gather_lr if info.tiles.encoder_input == "lr" else kernels.gather
        image = gather(picture, y, x, tile_h_px=side, tile_w_px=side, scale=info.model.scale)
        field = (
            None
            if info.model.start == "latent"
            else noise.tiles(
                SEED, y // f, x // f, channels=info.model.latent_channels, h_lat=side // f, w_lat=side // f
            )
        )
        samples.append(Sample(name, image, field))
    return samples
