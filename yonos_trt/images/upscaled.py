"""What `SR.upscale` returns for a path: a picture that knows how to save itself."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, overload

from numpy.typing import NDArray

from yonos_trt.errors import InputError, memory_that_runs_out
from yonos_trt.images.picture import Picture, to_array

if TYPE_CHECKING:
    from PIL import Image

Stream = TypeVar("Stream", bound=BinaryIO)


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

    @overload
    def save(self, target: str | os.PathLike[str], **options: Any) -> Path: ...

    @overload
    def save(self, target: Stream, *, format: str, **options: Any) -> Stream: ...

    def save(self, target: Any, **options: Any) -> Any:
        """Write a file, all or nothing, or into a binary file object; returns the path or the object.

        Parameters
        ----------
        target
            Path, whose suffix names the format, or an object with ``write`` (then `format` is needed, and the
            picture is encoded in a temporary file first: nothing is written if that fails).
        options
            As `yonos_trt.images.write_image`: ``format="png"``, ``quality=90``, ...

        Raises
        ------
        InputError
            The format cannot hold the picture, the path cannot be written, `format` is missing, or the object
            takes no bytes (text, closed, read-only).
        """
        from yonos_trt.images import write_image

        if isinstance(target, (str, os.PathLike)):
            with memory_that_runs_out(f"{os.fspath(target)}: writing"):
                self.left_out = write_image(self.picture, target, **options)
            return Path(target)
        if not callable(getattr(target, "write", None)):
            raise InputError(
                f"got {type(target).__name__} to save to, expected a path or a binary file object"
            )
        if not options.get("format"):
            raise InputError(
                "a file object has no suffix: name the format, for example save(f, format='png')"
            )
        with tempfile.TemporaryDirectory(prefix="yonos-") as folder:
            path = Path(folder) / f"picture.{str(options['format']).lower()}"
            try:
                with memory_that_runs_out("encoding a picture"):
                    self.left_out = write_image(self.picture, path, **options)
            except InputError as error:
                raise InputError(str(error).replace(str(path), "<file object>")) from error
            with path.open("rb") as stream:
                try:
                    shutil.copyfileobj(stream, target)
                except (TypeError, ValueError) as error:  # io.UnsupportedOperation is a ValueError
                    raise InputError(
                        f"the {type(target).__name__} takes no bytes: {error}; open it in mode 'wb'"
                    ) from error
        return target
