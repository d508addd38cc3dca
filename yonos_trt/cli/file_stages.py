"""Read, upscale and write files with an `SR`: the stages of `yonos_trt.cli.job_run`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from yonos_trt.cli.jobs import Job
from yonos_trt.errors import ConfigError, InputError

if TYPE_CHECKING:
    from yonos_trt.images import Picture, SaveOptions
    from yonos_trt.sizing import Sizing
    from yonos_trt.sr import SR


class FileStages:
    """`SR.upscale_file` in three steps, for overlapping them over many files; the files are the same.

    Parameters
    ----------
    sr
        Opened; only `upscale` uses it for more than planning.
    rows, alpha, format, options, sizing
        As `SR.upscale_file`, whose `size` is `sizing`.
    """

    def __init__(
        self,
        sr: SR,
        *,
        rows: Literal["auto", "always", "never"] = "auto",
        alpha: str = "bicubic",
        format: str | None = None,
        options: SaveOptions | None = None,
        sizing: Sizing | None = None,
    ) -> None:
        self._sr, self._rows, self._alpha = sr, rows, alpha
        self._format, self._options = format, options
        self._sizing = sizing

    def read(self, job: Job) -> Picture:
        """Decode the source; refuse what cannot be written to the target."""
        from yonos_trt.images import check_output, read_image

        picture = read_image(job.source, max_pixels=self._sr.max_pixels)
        if self._alpha == "drop":
            picture = picture.without_alpha()
        height, width = self._sr.size_of(picture.height_px, picture.width_px, self._sizing)
        check_output(picture.kind, height, width, job.target, format=self._format, options=self._options)
        return picture

    def needed_bytes(self, job: Job, picture: Picture) -> int:
        """Return the host bytes of the result, its encoder and the networks; the picture itself is there."""
        from yonos_trt.images import estimate_output

        height, width = self._sr.size_of(picture.height_px, picture.width_px, self._sizing)
        needed = estimate_output(picture.kind, height, width, job.target, format=self._format).peak_bytes
        try:
            return needed + self._sr.plan(picture.height_px, picture.width_px).host_bytes
        except ConfigError as error:  # `sr` found its options good: it is this picture that is too large
            raise InputError(f"{job.source}: {error}") from error

    def free_bytes(self) -> int:
        """Return what is free of the host's memory, within the limit `sr` was given."""
        return self._sr.free_bytes()

    def upscale(
        self, job: Job, picture: Picture, on_tiles: Callable[[int, int], None], *, fits: bool
    ) -> Picture | tuple[str, ...]:
        """Return the result; or write it row by row and return what could not be carried."""
        if self._rows == "never" or (self._rows == "auto" and fits):
            return self._sr.upscale(picture, alpha=self._alpha, on_tiles=on_tiles, size=self._sizing).picture
        left_out: list[str] = []
        try:
            self._sr.upscale_file(
                picture,
                job.target,
                rows="always",
                alpha=self._alpha,
                format=self._format,
                options=self._options,
                on_tiles=on_tiles,
                on_left_out=left_out.extend,
                size=self._sizing,
            )
        except ConfigError as error:
            if self._rows == "always":
                raise
            raise InputError(f"{job.source}: {error}") from error  # smaller ones may be done
        return tuple(left_out)

    def write(self, job: Job, result: Picture | tuple[str, ...]) -> tuple[str, ...]:
        """Write the result, if it is not there already; return what of the source it does not carry."""
        from yonos_trt.images import write_image

        if isinstance(result, tuple):
            return result
        return write_image(result, job.target, format=self._format, options=self._options)
