"""A tiled TIFF written row by row through tifffile, in O(width) memory.

tifffile pulls tiles from an iterator; rows are pushed here. One thread runs tifffile and takes bands of tile
height from a queue of one, so that at most three bands are in memory.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from yonos_trt.errors import MissingExtraError
from yonos_trt.images.carried import Carried
from yonos_trt.images.files import SaveOptions
from yonos_trt.images.picture import Kind, Picture, Pixels
from yonos_trt.images.tiff_exif import add_tags, tiff_blocks

# Offsets of a classic TIFF have 32 bits; leave room for directories and incompressible data.
BIG_TIFF_BYTES = 4_000_000_000
TILE_PX = 256


class _AbortedError(Exception):
    """Ends tifffile's loop when the caller gave up."""


class TiffRows:
    """Write one tiled TIFF (BigTIFF from 4 GB of pixels on) to a path.

    Parameters
    ----------
    path
        Overwritten.
    like
        Its kind decides photometric interpretation and depth.
    height_px, width_px
        Size of the file.
    options
        ``compression`` 0 writes raw tiles, else deflate with the horizontal predictor.
    given
        Everything beside the pixels.

    Raises
    ------
    MissingExtraError
        tifffile is not installed.
    """

    def __init__(
        self,
        path: Path,
        like: Picture,
        height_px: int,
        width_px: int,
        options: SaveOptions,
        given: Carried,
    ) -> None:
        tifffile = import_tifffile()
        kind = like.kind
        self._path, self._given = path, given
        self._channels = file_channels(kind)
        self._shape = (height_px, width_px, self._channels)
        self._dtype = np.dtype(kind.dtype)
        self._band: Pixels | None = None
        self._filled = 0
        self._bands: queue.Queue[Pixels | None] = queue.Queue(maxsize=1)
        self._failure: BaseException | None = None
        raw_bytes = height_px * width_px * self._channels * self._dtype.itemsize
        arguments = {
            "shape": self._shape if self._channels > 1 else self._shape[:2],
            "dtype": self._dtype,
            "tile": (TILE_PX, TILE_PX),
            "metadata": None,
            "maxworkers": 1,
            **_tags(kind, options, given),
        }

        def run() -> None:
            try:
                with tifffile.TiffWriter(path, bigtiff=raw_bytes > BIG_TIFF_BYTES) as writer:
                    writer.write(self._tiles(), **arguments)
            except _AbortedError:
                pass
            except BaseException as error:  # handed to the caller's thread
                self._failure = error
                while self._bands.get() is not None:  # keep taking, or the caller would wait for room
                    pass

        self._thread = threading.Thread(target=run, name="yonos-tiff", daemon=True)
        self._thread.start()

    def __enter__(self) -> TiffRows:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _tiles(self) -> Iterator[Pixels]:
        """Runs in the writing thread: bands -> tiles, row by row of tiles."""
        height_px, width_px, _ = self._shape
        for _ in range(0, height_px, TILE_PX):
            band = self._bands.get()
            if band is None:
                raise _AbortedError
            for x in range(0, width_px, TILE_PX):
                tile = band[:, x : x + TILE_PX]
                missing = ((0, TILE_PX - tile.shape[0]), (0, TILE_PX - tile.shape[1]), (0, 0))
                tile = np.pad(tile, missing, mode="edge")
                yield tile if self._channels > 1 else tile[..., 0]

    def write(self, rows: Pixels) -> None:
        """Take (n, W, channels) rows, in order. Copies what it keeps."""
        start = 0
        while start < rows.shape[0]:
            if self._band is None:
                self._band = np.empty((TILE_PX, *self._shape[1:]), self._dtype)
            take = min(TILE_PX - self._filled, rows.shape[0] - start)
            self._band[self._filled : self._filled + take] = rows[start : start + take]
            self._filled += take
            start += take
            if self._filled == TILE_PX:
                self._push()

    def _push(self) -> None:
        self._raise()
        if self._band is not None:
            self._bands.put(self._band[: self._filled])
        self._band, self._filled = None, 0

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    def finish(self) -> None:
        """Write the last band and the directory, and wait for the file to be closed."""
        if self._filled:
            self._push()
        self._stop()
        self._raise()
        add_tags(self._path, self._given.exif, tiff_blocks(self._given))

    def abort(self) -> None:
        """Stop the thread; the unfinished file is left to the caller. No effect after ``finish``."""
        self._stop()

    def _stop(self) -> None:
        """Send the end mark and wait; safe to repeat, and whether or not the thread still listens."""
        while self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._bands.put(None, timeout=0.05)
            self._thread.join(timeout=0.05)


def import_tifffile() -> Any:
    """Return the module tifffile, or raise ``MissingExtraError``."""
    try:
        import tifffile
    except ImportError as error:
        raise MissingExtraError(
            "writing TIFF row by row, or with 16-bit or float colour",
            package="tifffile",
            extra="images",
            reason=str(error),
        ) from error
    return tifffile


def file_channels(kind: Kind) -> int:
    """Samples per pixel in a file of this kind."""
    return {"1": 1, "L": 1, "LA": 2, "P": 1, "RGBA": 4, "CMYK": 4}.get(kind.mode, 3)


def _tags(kind: Kind, options: SaveOptions, given: Carried) -> dict[str, Any]:
    tags: dict[str, Any] = {
        "photometric": "minisblack" if kind.is_grey else "separated" if kind.mode == "CMYK" else "rgb",
        "software": False,
    }
    if kind.has_alpha:
        tags["extrasamples"] = ["unassalpha"]
    if options.compression:
        tags["compression"] = "zlib"
        tags["compressionargs"] = {"level": options.compression}
        tags["predictor"] = kind.dtype != "float32"
    if given.icc:
        tags["iccprofile"] = given.icc
    if given.dpi:
        tags["resolution"], tags["resolutionunit"] = given.dpi, "inch"
    return tags
