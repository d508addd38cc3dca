"""Before-and-after pairs of the report: a photograph reduced, and enlarged again by bicubic and a model."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.photos import Photo
from yonos_trt.images import read_rgb8
from yonos_trt.sr import SR

_LARGEST_PX = (600, 900)  # height and width of what is shown, at 100 %
_QUALITY = 90  # of the embedded WebP files


@dataclass(frozen=True, slots=True)
class Pair:
    """Two pictures of one size.

    Attributes
    ----------
    name, caption, credit : str
        Title, the sentence below, and whose photograph it is.
    before, after : str
        What the two sides are.
    before_uri, after_uri : str
        WebP as data URIs.
    height_px, width_px : int
        Size of both.
    """

    name: str
    caption: str
    credit: str
    before: str
    after: str
    before_uri: str
    after_uri: str
    height_px: int
    width_px: int


def make_pair(
    photo: Photo, sr: SR, *, reduce: bool = True, largest_px: tuple[int, int] = _LARGEST_PX
) -> Pair:
    """Enlarge the middle of a photograph by bicubic and by the model.

    With `reduce` the photograph is first made smaller by the model's scale, so that the result has its size;
    without, the photograph itself is the input.

    Raises
    ------
    ValueError
        The photograph is smaller than one pixel of the reduced picture.
    """
    image = Image.fromarray(read_rgb8(photo.path))
    scale = sr.scale
    grow = 1 if reduce else scale
    sides = zip((image.height * grow, image.width * grow), largest_px, strict=True)
    height, width = (min(side, limit) // scale * scale for side, limit in sides)
    if not height or not width:
        raise ValueError(
            f"{photo.path} is {image.height} x {image.width} px, expected at least {scale} x {scale}"
        )
    cut_h, cut_w = height // grow, width // grow
    top, left = (image.height - cut_h) // 2, (image.width - cut_w) // 2
    lr = image.crop((left, top, left + cut_w, top + cut_h))
    if reduce:
        lr = lr.resize((width // scale, height // scale), Image.Resampling.BICUBIC)
    before = np.asarray(lr.resize((width, height), Image.Resampling.BICUBIC))
    after: NDArray[np.uint8] = sr.upscale(np.asarray(lr))
    origin = f"the input is the photograph reduced by {scale} with a bicubic filter."
    if not reduce:
        origin = "the input is the photograph itself, so there is no larger original to compare with."
    return Pair(
        name=f"{photo.title}, x{scale}",
        caption=f"{height // scale} x {width // scale} px enlarged to {height} x {width} px; {origin}",
        credit=photo.credit,
        before="bicubic",
        after=sr.manifest.model.name,
        before_uri=_uri(before),
        after_uri=_uri(after),
        height_px=height,
        width_px=width,
    )


def _uri(pixels: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=_QUALITY, method=6)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
