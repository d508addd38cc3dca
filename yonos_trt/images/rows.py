"""Write a picture row by row: memory O(width), for results that are larger than memory."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from yonos_trt.errors import ClosedError, InputError
from yonos_trt.images.carried import carried
from yonos_trt.images.files import SaveOptions, atomic_path, cannot_write, chosen, format_of, tell_left_out
from yonos_trt.images.modes import cmyk_from_rgb
from yonos_trt.images.picture import Kind, Picture, Pixels
from yonos_trt.images.png_rows import PngRows
from yonos_trt.images.tiff_rows import TiffRows, file_channels
from yonos_trt.images.writing import as_kind, fit_kind, stacked

STREAMING_SUFFIXES = (".png", ".tif", ".tiff")

# Memory an encoder takes beside the picture, as multiples of the pixels' bytes in the file. Measured on a
# photograph of 3840 x 3072 px with Pillow 13.0 (1.3, 1.3, 1.3, 5.5, 14.0) and rounded up.
_ENCODER_COPIES = {"PNG": 1.5, "JPEG": 1.5, "TIFF": 1.5, "WEBP": 6.0, "AVIF": 15.0}


class RowWriter:
    """Context manager returned by :func:`open_row_writer`; commits on a clean exit with all rows, else
    removes.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        like: Picture,
        height_px: int,
        width_px: int,
        format: str | None,
        options: SaveOptions,
    ) -> None:
        target = format_of(path, format)
        self._name = os.fspath(path)
        if not target.streams:
            raise InputError(
                f"{self._name}: {target.name} cannot be written row by row; formats that can: "
                f"{', '.join(STREAMING_SUFFIXES)}"
            )
        if like.kind.mode == "P" and options.palette != "rgb":
            raise InputError(
                f"{self._name}: a palette needs the whole picture and cannot be written row by row; "
                'write it as RGB with palette="rgb"'
            )
        kind = fit_kind(like.kind, height_px, width_px, target, options, self._name)
        if target.name == "TIFF" and kind.mode == "1":
            raise InputError(f"{self._name}: 1-bit TIFF cannot be written row by row; write .png")
        self._source_kind = like.kind
        self._like = as_kind(like, kind)
        self._given = carried(self._like, target.name, height_px, width_px)
        self._height_px, self._width_px = height_px, width_px
        self._rows = 0
        self._stack = contextlib.ExitStack()
        self._open = True
        self._writer: PngRows | TiffRows
        try:
            part = self._stack.enter_context(atomic_path(path))
            if target.name == "PNG":
                file = self._stack.enter_context(part.open("wb"))
                self._writer = PngRows(
                    file, height_px, width_px, channels=file_channels(kind), bits=kind.bits,
                    compression=options.compression, given=self._given,
                )  # fmt: skip
            else:
                self._writer = self._stack.enter_context(
                    TiffRows(part, self._like, height_px, width_px, options, self._given)
                )
        except BaseException as error:
            self._open = False
            if not self._stack.__exit__(type(error), error, error.__traceback__):
                raise

    @property
    def rows_written(self) -> int:
        """Rows taken so far."""
        return self._rows

    @property
    def left_out(self) -> tuple[str, ...]:
        """What of the source the file does not carry, as ``write_image`` returns it."""
        return self._given.left_out

    def write_rows(self, rgb: Pixels, alpha: Pixels | None = None) -> None:
        """Take the next rows.

        Parameters
        ----------
        rgb
            (n, W, 3) of the picture's dtype; grey, depth and CMYK conversion happen here.
        alpha
            (n, W), needed exactly when the picture has alpha.
        """
        if not self._open:
            raise ClosedError(f"{self._name}: rows were given after the writer was closed")
        like = self._like
        if self._rows + rgb.shape[0] > self._height_px or rgb.shape[1:] != (self._width_px, 3):
            raise InputError(
                f"{self._name}: got rows {rgb.shape} after {self._rows} rows, "
                f"expected (n, {self._width_px}, 3) up to {self._height_px} rows"
            )
        if alpha is None and like.kind.has_alpha:
            raise InputError(f"{self._name}: the picture has alpha, its rows were given without")
        piece = Picture(
            rgb=rgb,
            alpha=alpha if self._source_kind.has_alpha else None,
            kind=self._source_kind,
            name=self._name,
        )
        piece = as_kind(piece, like.kind)
        if like.kind.mode == "CMYK":
            rows: Pixels = np.asarray(cmyk_from_rgb(piece.rgb, like.icc))
        else:
            rows = stacked(piece.rgb, piece.alpha, like.kind)
        try:
            self._writer.write(rows)
        except OSError as error:
            raise cannot_write(self._name, error) from error
        self._rows += rgb.shape[0]

    def abort(self) -> None:
        """Give up and remove the unfinished file; no effect after a commit."""
        if self._open:
            self._open = False
            stop = _AbortError()
            with contextlib.suppress(_AbortError):
                self._stack.__exit__(_AbortError, stop, None)

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None or not self._open:
            self.abort()
            return
        try:
            if self._rows != self._height_px:
                raise InputError(f"{self._name}: {self._rows} of {self._height_px} rows were written")
            self._writer.finish()
        except OSError as failure:
            self.abort()
            raise cannot_write(self._name, failure) from failure
        except BaseException:
            self.abort()
            raise
        self._open = False
        self._stack.close()
        tell_left_out(self._like.name, self.left_out)


class _AbortError(Exception):
    """Tells the context managers inside to clean up."""


def open_row_writer(
    path: str | os.PathLike[str],
    like: Picture,
    height_px: int,
    width_px: int,
    *,
    format: str | None = None,
    options: SaveOptions | None = None,
    **choices: Any,
) -> RowWriter:
    """Open a file for rows from top to bottom.

    Parameters
    ----------
    path
        ``.png`` (base install) or ``.tif``/``.tiff`` (tiled; extra ``images``).
    like
        The picture that is upscaled: its kind and metadata go out (its pixels are not looked at).
        ``like.without_alpha()`` to write without alpha.
    height_px, width_px
        Size of the file.
    format, options, choices
        As for ``write_image``.

    Returns
    -------
    RowWriter
        Context manager. Leaving it normally with all rows written renames the file into place; an exception,
        KeyboardInterrupt, a missing row or ``abort()`` removes it.

    Raises
    ------
    InputError
        The format cannot stream (says which can), or cannot hold the picture.
    MissingExtraError
        TIFF without tifffile.
    """
    return RowWriter(path, like, height_px, width_px, format, chosen(options, choices))


@dataclass(frozen=True, slots=True)
class OutputEstimate:
    """What an output costs.

    Parameters
    ----------
    array_bytes
        The result as one array, alpha included.
    peak_bytes
        Memory for holding the result and encoding it whole.
    file_bytes_max
        File size if nothing compresses.
    can_stream
        ``open_row_writer`` accepts this picture and suffix.
    """

    array_bytes: int
    peak_bytes: int
    file_bytes_max: int
    can_stream: bool


def estimate_output(
    kind: Kind,
    height_px: int,
    width_px: int,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    options: SaveOptions | None = None,
    **choices: Any,
) -> OutputEstimate:
    """Return what writing ``kind`` at this size to ``path`` takes, so that a caller can decide to stream."""
    options = chosen(options, choices)
    target = format_of(path, format)
    itemsize = np.dtype(kind.dtype).itemsize
    array_bytes = height_px * width_px * (4 if kind.has_alpha else 3) * itemsize
    raw = height_px * -(-width_px * file_channels(kind) * kind.bits // 8)
    stream_kind = kind.mode != "P" or options.palette == "rgb"
    return OutputEstimate(
        array_bytes=array_bytes,
        peak_bytes=array_bytes
        + int((array_bytes if kind.mode == "P" else raw) * _ENCODER_COPIES[target.name]),
        file_bytes_max=raw + raw // 100 + (1 << 20),
        can_stream=target.streams and stream_kind and not (target.name == "TIFF" and kind.mode == "1"),
    )
