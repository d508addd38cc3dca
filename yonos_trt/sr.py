"""`SR`: one object that upscales whatever it is given and returns the same kind.

::

    with yonos_trt.SR() as sr:                       # the lite x4 model that ships in the wheel
        sr.upscale("photo.jpg").save("photo_x4.jpg")
        image = sr.upscale(Image.open("photo.jpg"))  # PIL in, PIL out
        array = sr.upscale(array)                    # (H, W, 3) uint8 in, (4 H, 4 W, 3) uint8 out

Colours are RGB, channels last. Results own their memory. Conversion happens here, at the edge; the work is
done in `yonos_trt.pipeline`.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from yonos_trt.backends.base import Array
from yonos_trt.choices import ALPHA_MODES, AlphaMode
from yonos_trt.cuda.arrays import is_on_device
from yonos_trt.errors import ConfigError, InputError, memory_that_runs_out
from yonos_trt.images.dlpack import from_dlpack
from yonos_trt.images.picture import Picture, from_array, luma, to_array
from yonos_trt.images.upscaled import UpscaledImage
from yonos_trt.session import OnTiles, Session
from yonos_trt.sizing import Sizing, as_sizing

if TYPE_CHECKING:
    from PIL import Image

    from yonos_trt.images import SaveOptions
    from yonos_trt.prefetch import Prefetch

__all__ = ["SR", "AlphaMode", "UpscaledImage"]

Pixel = TypeVar("Pixel", np.uint8, np.uint16, np.float32)
_ALPHA_ROWS = 64


class SR(Session):
    """Upscale pictures with an engine directory.

    Parameters
    ----------
    engine_dir
        Engine directory, as `yonos-export` writes it, or the name of a model of the wheel, such as
        ``"lite-x2"`` (a path of that name goes first); None takes a model of the wheel by its scale.
    scale
        Enlargement of the results, 1 or more, 2.5 too (default: the model's own, 4 without `engine_dir`).
        Without `engine_dir` it picks the next larger shipped model; what is below the model's own factor is
        made by one antialiased reduction, and what is above it is refused.
    runtime
        "auto", "onnx", "openvino", "tensorrt" or "tensorrt-rtx".
    device
        CUDA device number, for the TensorRT runtimes and for ONNX Runtime's providers of NVIDIA GPUs.
    lanes
        Tile batches worked on at the same time, 1 to 64; None: 1 on the CPU, 2 on a GPU. Does not change the
        result.
    tile_px, overlap_px
        Tile size and overlap in output px; None: the model's own.
    batch
        Tiles per batch, 1 to 1024; None: 1, or what the planner chooses.
    color_fix
        "wavelet" keeps the colours of the input, "adain" matches mean and deviation of the whole picture,
        "none"; None: what the model was made for, "wavelet" where it does not say.
    seed
        Names the noise field, 0 to 2^64 - 1. Same seed, same result.
    memory_limit_mb
        Upper bound of the host's working memory in MiB, beside the pictures themselves: batch, lanes and tile
        are lowered to fit.
    device_memory_limit_mb
        The same for the memory of the GPU, weights and CUDA's own share included; unused on the CPU.
    threads
        Host threads; None: all usable CPUs. A larger number is lowered to that, with a warning.
    precision
        "fp32", "fp16" or "bf16" artifacts; None: the best that is there.
    providers
        Execution providers of ONNX Runtime, names or ``(name, options)``, for example
        ``["CUDAExecutionProvider"]``; None: the CPU's. One that does not load is refused when the engines are
        opened, or, with ``"CPUExecutionProvider"`` among them, warned of.
    restore
        The dial of a model that has one: 0 keeps every grain, 1 cleans and sharpens what cameras, compression
        and time did; None: the model's default (`yonos info` shows it).
    max_pixels
        Refuse files that declare more pixels, before anything is decoded: a few bytes can declare billions.
        None: no limit. Arrays, PIL images and `Picture` objects are there already and have none.

    Raises
    ------
    ConfigError
        An option is out of range.
    EngineNotFoundError, ManifestError, EngineIntegrityError
        The engine directory is not one, or is damaged.

    Notes
    -----
    Construction reads the manifest only; the first use, or ``with``, opens the engines. `close` may be called
    twice; any use after it raises `ClosedError`. Calls from several threads run one after the other.
    """

    @overload
    def upscale(
        self,
        image: str | os.PathLike[str] | bytes | BinaryIO | Picture,
        *,
        alpha: str = ...,
        on_tiles: OnTiles | None = ...,
        size: Sizing | tuple[int, int] | None = ...,
    ) -> UpscaledImage: ...

    @overload
    def upscale(
        self,
        image: NDArray[Pixel],
        *,
        alpha: str = ...,
        on_tiles: OnTiles | None = ...,
        size: Sizing | tuple[int, int] | None = ...,
    ) -> NDArray[Pixel]: ...

    @overload
    def upscale(
        self,
        image: Image.Image,
        *,
        alpha: str = ...,
        on_tiles: OnTiles | None = ...,
        size: Sizing | tuple[int, int] | None = ...,
    ) -> Image.Image: ...

    @overload
    def upscale(
        self,
        image: Any,
        *,
        alpha: str = ...,
        on_tiles: OnTiles | None = ...,
        stream: Any = ...,
        out: Any = ...,
        size: Sizing | tuple[int, int] | None = ...,
    ) -> Any: ...

    def upscale(
        self,
        image: Any,
        *,
        alpha: str = "bicubic",
        on_tiles: OnTiles | None = None,
        stream: Any = None,
        out: Any = None,
        size: Sizing | tuple[int, int] | None = None,
    ) -> Any:
        """Upscale one picture, or a batch of arrays, and return the same kind.

        Parameters
        ----------
        image
            Path, the bytes of a file, a binary file object (read from where it stands to its end), PIL image,
            `Picture`, NumPy array, or any array with ``__dlpack__`` (torch, JAX, CuPy). Arrays are (H, W),
            (H, W, 1) grey, (H, W, 2) grey + alpha, (H, W, 3) RGB or (H, W, 4) RGBA; uint8, uint16 or float32
            in [0, 1]. A batch is (N, H, W, C), C from 1 to 4. In device memory: (H, W, 3) only.
        alpha
            How an alpha channel grows: "bicubic", "model" (through the network) or "drop".
        on_tiles
            Called with (tiles done, tiles in all), for progress; of each picture of a batch.
        stream
            For arrays in device memory: the caller's CUDA stream (int, ``__cuda_stream__``, PyTorch's or
            CuPy's); see `yonos_trt.trt.device`.
        out
            For arrays in device memory: an array there to write the result into, (s H, s W, 3) of the input's
            dtype with packed rows, which is returned; nothing is allocated then.
        size
            (height, width) in px of the result, or a `yonos_trt.sizing.Sizing`; None: `scale` times the
            input's. Without an engine directory and a scale, the shipped model is the smallest that makes it.
            Not for arrays in device memory.

        Returns
        -------
        UpscaledImage for a path, bytes, a file object or a `Picture`, else the type that came in;
        (s H, s W) or `size`, same mode and depth.

        Raises
        ------
        InputError
            The picture cannot be used; the message names it and the reason.
        ConfigError
            An option that has no meaning for this kind: `stream` and `out` for anything that is not in device
            memory, `alpha` for what is.
        ClosedError
            This object is closed.
        NumericError
            The model produced NaN or infinity.
        OutOfMemoryError
            Memory ran out, with the smallest tiles as well.
        """
        _check_alpha(alpha)
        sizing = as_sizing(size)
        with memory_that_runs_out("upscaling a picture"):
            if not isinstance(image, (str, bytes, np.ndarray)) and is_on_device(image):
                return self._on_device(image, alpha, on_tiles, stream, out, sizing)
            if stream is not None:
                raise ConfigError(
                    f"stream was given with a {type(image).__name__}, but only arrays in device memory are "
                    "ordered by it; leave it out"
                )
            if out is not None:
                raise ConfigError(
                    f"out was given with a {type(image).__name__}, but only arrays in device memory have "
                    "their result written into the caller's memory; leave it out"
                )
            return self._on_host(image, alpha, on_tiles, sizing)

    def _on_host(self, image: Any, alpha: str, on_tiles: OnTiles | None, sizing: Sizing | None) -> Any:
        if isinstance(image, np.ndarray):
            return self._pixels(image, alpha, on_tiles, sizing)
        if isinstance(image, Picture):
            return UpscaledImage(self._picture(image, alpha, on_tiles, sizing))
        if _is_pil(image):
            from yonos_trt.images import from_pil, to_pil

            return to_pil(self._picture(from_pil(image), alpha, on_tiles, sizing))
        if hasattr(image, "__dlpack__"):
            array, back = from_dlpack(image)
            return back(self._pixels(array, alpha, on_tiles, sizing))
        self._opened()
        picture = _read(image, self.max_pixels, "a PIL image, a NumPy array or one with __dlpack__")
        return UpscaledImage(self._picture(picture, alpha, on_tiles, sizing))

    def _pixels(self, array: Array, alpha: str, on_tiles: OnTiles | None, sizing: Sizing | None) -> Array:
        """Upscale an array, or each of a batch; every result is checked to fit before the first runs."""
        if array.ndim != 4:
            return to_array(self._picture(from_array(array), alpha, on_tiles, sizing))
        if array.shape[3] not in (1, 2, 3, 4) or 0 in array.shape[1:]:
            raise InputError(
                f"the batch has the shape {array.shape}, expected (N, height, width, channels) with 1 to 4 "
                "channels last and no side of 0"
            )
        pictures = [from_array(one) for one in array]  # refuses what cannot be used before any work
        count, height, width, channels = array.shape
        channels -= alpha == "drop" and channels in (2, 4)
        out = np.empty((count, *self.size_of(height, width, sizing), channels), array.dtype)
        for result, picture in zip(out, pictures, strict=True):
            result[...] = to_array(self._picture(picture, alpha, on_tiles, sizing))
        return out

    def _on_device(
        self,
        image: Any,
        alpha: str,
        on_tiles: OnTiles | None,
        stream: Any,
        out: Any,
        sizing: Sizing | None,
    ) -> Any:
        from yonos_trt.trt.device import OnDevice, same_kind

        if sizing is not None or self.factor != self.scale:
            raise ConfigError(
                f"an array in device memory grows by the model's own factor, {self.scale}; leave size and "
                "scale out, or copy it to the host first"
            )

        if alpha != "bicubic":
            raise ConfigError(
                f"alpha={alpha!r} has no meaning for an array in device memory, which has three channels; "
                "leave it out, or copy an array with alpha to the host first"
            )
        with self._lock:
            ends = OnDevice(image, self._opened(), stream, out=out)
            with closing(self._rows(ends.view, on_tiles, backend=ends)) as blocks:
                for _ in blocks:
                    pass
            return ends.result() if out is not None else same_kind(ends.result(), image)

    def upscale_file(
        self,
        source: str | os.PathLike[str] | bytes | BinaryIO | Picture,
        target: str | os.PathLike[str],
        *,
        rows: Literal["auto", "always", "never"] = "auto",
        alpha: str = "bicubic",
        format: str | None = None,
        options: SaveOptions | None = None,
        on_tiles: OnTiles | None = None,
        on_left_out: Callable[[tuple[str, ...]], object] | None = None,
        stream: Literal["auto", "always", "never"] | None = None,
        size: Sizing | tuple[int, int] | None = None,
    ) -> Path:
        """Upscale a file into a file; what is at `target` is replaced when the new one is complete.

        Parameters
        ----------
        source
            Path, the bytes of a file, a binary file object, or a picture that was read.
        target
            Path.
        rows
            "auto" writes row by row when the result would not fit into free memory or into
            `memory_limit_mb`, "always" and "never" do as they say. Formats that cannot be written row by row
            are refused then.
        format
            Format of the target; None: as its suffix says.
        options
            Quality, and what may be lost in the target's format.
        alpha, on_tiles, size
            As `upscale`.
        on_left_out
            Called once the file is there, with what of the source it does not carry, in a few words each (an
            empty tuple: everything is there). The same is logged as a warning.
        stream
            The name of `rows` before, until 0.2 (DeprecationWarning).

        Raises
        ------
        InputError
            The source cannot be used, the target cannot be written, or the result does not fit into memory
            and the format cannot be streamed.
        ConfigError
            ``color_fix="adain"`` or ``alpha="model"``, which need the whole picture, together with streaming.
        """
        from yonos_trt.images import check_output, write_image

        _check_alpha(alpha)
        sizing = as_sizing(size)
        if stream is not None:
            warnings.warn("upscale_file(stream=...) is now rows=...", DeprecationWarning, stacklevel=2)
            rows = stream
        if rows not in ("auto", "always", "never"):
            raise ConfigError(f"rows is {rows!r}, expected auto, always or never")
        with memory_that_runs_out("upscaling a file"):
            target = Path(target)
            self._opened()
            picture = (
                source if isinstance(source, Picture) else _read(source, self.max_pixels, "or a Picture")
            )
            if alpha == "drop":
                picture = picture.without_alpha()
            height, width = self.size_of(picture.height_px, picture.width_px, sizing)
            check_output(picture.kind, height, width, target, format=format, options=options)
            fits = rows == "never" or (
                rows == "auto" and self._result_fits(picture, target, format, (height, width))
            )
            if not fits:
                left_out = self._in_rows(picture, target, alpha, format, options, on_tiles, sizing)
            else:
                result = self._picture(picture, alpha, on_tiles, sizing)
                left_out = write_image(result, target, format=format, options=options)
        if on_left_out is not None:
            on_left_out(left_out)
        return target

    def warm_up(self, sizes: Iterable[tuple[int, int]]) -> None:
        """Make ready what the first picture of a size has to wait for: engines, kernels, buffers and graphs.

        Parameters
        ----------
        sizes
            (height, width) of inputs to come, in LR px, 8 bits a channel. A black picture of each runs until
            every lane has had a batch of it twice, in each of its two slots (on a GPU the second time is the
            one that is captured); larger ones first: then no buffer moves.

        Raises
        ------
        ConfigError
            A side is below 1, or nothing fits the limits of memory.
        """
        wanted = sorted(set(sizes), key=lambda size: -size[0] * size[1])
        for height, width in wanted:
            self.plan(height, width)  # refuses before any work
        self._opened()
        for height, width in wanted:
            planned = self.plan(height, width)
            batches = planned.tiles.bands * planned.tiles.batches_per_band
            for _ in range(max(2, -(-4 * planned.lanes // batches))):
                full_px = (height * self.scale, width * self.scale)
                self._array(np.zeros((height, width, 3), np.uint8), None, size_px=full_px)

    def upscale_batch(self, images: Iterable[Any]) -> list[Any]:
        """Upscale several pictures of any sizes and kinds; results in the same order.

        Same-size pictures share plans, buffers and graphs. An error names the picture: see `stream`.

        Parameters
        ----------
        images
            Anything `upscale` takes, and PyAV frames.
        """
        with self.stream(images, max_in_flight=2) as results:
            return list(results)

    def stream(self, frames: Iterable[Any], *, max_in_flight: int = 4) -> Prefetch[Any]:
        """Upscale frames as they come; reading them, the networks and the caller's work overlap.

        Parameters
        ----------
        frames
            Anything `upscale` takes, of any sizes, and PyAV frames (see `yonos_trt.video.frames`);
            advanced in a thread of its own.
        max_in_flight
            Most frames taken from `frames` whose results were not handed out yet: the bound on memory.

        Returns
        -------
        Prefetch
            Iterator in the order of `frames`, also a context manager. ``close()``, or leaving ``with``, stops
            everything. An error keeps its type, comes in place of its frame's result, and
            `yonos_trt.prefetch.frame_index` tells which frame that was.

        Raises
        ------
        ConfigError
            `max_in_flight` is smaller than 1.
        """
        from yonos_trt.prefetch import stream
        from yonos_trt.video.frames import is_video_frame, upscale_frame

        def one(frame: Any) -> Any:
            return upscale_frame(frame, self.upscale) if is_video_frame(frame) else self.upscale(frame)

        return stream(frames, one, max_in_flight=max_in_flight)

    # -- Inside -------------------------------------------------------------------------------------------

    def size_of(
        self, height_px: int, width_px: int, size: Sizing | tuple[int, int] | None = None
    ) -> tuple[int, int]:
        """Return (height, width) of the result for an input of this size; see `upscale`."""
        sizing = as_sizing(size)
        if sizing is not None:
            return sizing.of(height_px, width_px)
        if self.factor == self.scale:
            return height_px * self.scale, width_px * self.scale
        return Sizing(factor=self.factor).of(height_px, width_px)

    def _model_for(self, picture: Picture, sizing: Sizing | None) -> SR:
        """Return what makes this picture that large: this object, or one with another shipped model."""
        if sizing is None:
            return self
        height, width = picture.height_px, picture.width_px
        needed = sizing.factor_of(height, width)
        if self._any_model:
            from yonos_trt.backends.choose import shipped_model
            from yonos_trt.errors import EngineNotFoundError

            try:
                other = shipped_model(needed)
            except EngineNotFoundError as error:
                raise InputError(f"{picture.name}: {width} x {height} px to {sizing}: {error}") from error
            if other != self.engine_dir:
                with self._lock:
                    if self._closed:
                        self._opened()  # which refuses
                    if other.name not in self._others:
                        self._others[other.name] = SR(**self._options | {"engine_dir": other})
                    return cast("SR", self._others[other.name])
        if needed > self.scale:
            raise InputError(
                f"{picture.name}: {width} x {height} px to {sizing} is {needed:.3g} times as large, but the "
                f"model in {self.engine_dir} enlarges by {self.scale}; ask for less, or take a model that "
                "enlarges more"
            )
        return self

    def _picture(
        self, picture: Picture, alpha: str, on_tiles: OnTiles | None, sizing: Sizing | None = None
    ) -> Picture:
        """Upscale in memory; the result carries the metadata of the input."""
        if alpha == "drop":
            picture = picture.without_alpha()
        model = self._model_for(picture, sizing)
        size_px = self.size_of(picture.height_px, picture.width_px, sizing)
        with model._lock:
            rgb = model._array(picture.rgb, on_tiles, size_px=size_px)
            if picture.alpha is None:
                return picture.with_pixels(rgb)
            if alpha == "model":
                grown = luma(model._array(_as_rgb(picture.alpha), None, size_px=size_px, color_fix="none"))
            else:
                grown = np.concatenate(list(_alpha_rows(picture.alpha, model.scale, size_px)))
        return picture.with_pixels(rgb, grown)

    def _result_fits(
        self, picture: Picture, target: Path, format: str | None, size_px: tuple[int, int]
    ) -> bool:
        from yonos_trt.images import estimate_output

        height, width = size_px
        needed = estimate_output(picture.kind, height, width, target, format=format).peak_bytes
        needed += self.plan(picture.height_px, picture.width_px).host_bytes
        return needed <= self.free_bytes()

    def _in_rows(
        self,
        picture: Picture,
        target: Path,
        alpha: str,
        format: str | None,
        options: SaveOptions | None,
        on_tiles: OnTiles | None,
        sizing: Sizing | None,
    ) -> tuple[str, ...]:
        from yonos_trt.images import open_row_writer

        for name, value, other in (("color_fix", self._color_fix, "wavelet"), ("alpha", alpha, "bicubic")):
            if value == "adain" or (value == "model" and picture.alpha is not None):
                raise ConfigError(
                    f"{name}={value!r} needs the whole picture in memory, but the result is written in rows "
                    f"(it would not fit, or rows='always' / --stream always was given); use {name}={other!r}"
                )
        model = self._model_for(picture, sizing)
        size_px = self.size_of(picture.height_px, picture.width_px, sizing)
        with (
            model._lock,
            open_row_writer(target, picture, *size_px, format=format, options=options) as writer,
            closing(model._sized_rows(picture.rgb, on_tiles, size_px=size_px)) as blocks,
        ):
            if picture.alpha is None:
                for rows in blocks:
                    writer.write_rows(rows)
            else:
                with closing(_alpha_rows(picture.alpha, model.scale, size_px)) as alphas:
                    for rows, grown in _side_by_side(blocks, alphas):
                        writer.write_rows(rows, grown)
        return writer.left_out


def _alpha_rows(alpha: Array, scale: int, size_px: tuple[int, int]) -> Generator[Array, None, None]:
    """Yield rows of the grown alpha channel, a block at a time."""
    from yonos_trt.images import upscale_alpha
    from yonos_trt.images.reduction import reduce_rows

    full_px = (alpha.shape[0] * scale, alpha.shape[1] * scale)
    blocks = (
        upscale_alpha(alpha, scale, y0_px=y, y1_px=min(full_px[0], y + _ALPHA_ROWS))
        for y in range(0, full_px[0], _ALPHA_ROWS)
    )
    yield from blocks if size_px == full_px else reduce_rows(blocks, full_px, size_px)


def _side_by_side(left: Iterable[Array], right: Iterable[Array]) -> Iterator[tuple[Array, Array]]:
    """Yield the rows of both, cut where either of them ends a block."""
    rights = iter(right)
    there = next(rights)
    for rows in left:
        while len(rows):
            if not len(there):
                there = next(rights)
            count = min(len(rows), len(there))
            yield rows[:count], there[:count]
            rows, there = rows[count:], there[count:]


def _read(source: Any, max_pixels: int | None, others: str) -> Picture:
    """Read a path, bytes or a binary file object; ``others`` are what the caller takes besides."""
    from yonos_trt.images import read_image

    if isinstance(source, (str, os.PathLike, bytes)):
        return read_image(source, max_pixels=max_pixels)
    if isinstance(source, (bytearray, memoryview)):
        return read_image(bytes(source), max_pixels=max_pixels)
    if not callable(getattr(source, "read", None)):
        raise InputError(
            f"got {type(source).__name__}, expected a path, the bytes of a file, a binary file object, "
            + others
        )
    data = source.read()
    if not isinstance(data, bytes):
        raise InputError(f"the file object gave {type(data).__name__}, expected bytes: open it in mode 'rb'")
    return read_image(data, max_pixels=max_pixels)


def _check_alpha(alpha: str) -> None:
    if alpha not in ALPHA_MODES:
        raise ConfigError(f"alpha is {alpha!r}, expected one of {', '.join(ALPHA_MODES)}")


def _is_pil(image: Any) -> bool:
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(image, module.Image)


def _as_rgb(grey: Array) -> Array:
    return np.repeat(grey[..., None], 3, axis=2)
