"""What `SR.upscale` returns for a path: a picture that knows how to save itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from yonos_trt.images.picture import Picture, to_array

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["UpscaledImage"]


class UpscaledImage:
    """A finished picture with the metadata of its source.

    Attributes
    ----------
    picture : Picture
        Pixels, alpha, ICC profile, EXIF and so on; owns its memory.
    left_out : tuple of str
        What of the source could not be carried; after `save`, together with what that file's format cannot
        hold.
    """

    def __init__(self, picture: Picture) -> None:
        self.picture = picture
        self.left_out = picture.left_out

    def __repr__(self) -> str:
        return f"UpscaledImage({self.width_px} x {self.height_px} px, {self.picture.kind.mode})"

    @property
    def height_px(self) -> int:
        """Rows."""
        return self.picture.height_px

    @property
    def width_px(self) -> int:
        """Columns."""
        return self.picture.width_px

    def to_array(self) -> NDArray[Any]:
        """Return the pixels, channels last, in the depth of the source."""
        return to_array(self.picture)

    def to_pil(self) -> Image.Image:
        """Return a PIL image."""
        from yonos_trt.images import to_pil

        return to_pil(self.picture)

    def save(self, path: str | os.PathLike[str], **options: Any) -> Path:
        """Write a file, all or nothing; options as `yonos_trt.images.write_image`."""
        from yonos_trt.images import write_image

        self.left_out = write_image(self.picture, path, **options)
        return Path(path)
