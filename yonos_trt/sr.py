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

import logging
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import numpy as np

from yonos_trt import pipeline
from yonos_trt.backend import Array, Backend
from yonos_trt.dlpack import from_dlpack
from yonos_trt.errors import ClosedError, ConfigError, EngineNotFoundError, InputError, OutOfMemoryError
from yonos_trt.manifest import EngineManifest, Precision, load_manifest
from yonos_trt.noise import LARGEST_SEED
from yonos_trt.picture import Picture, from_array, luma, to_array
from yonos_trt.planning import PicturePlan, plan_picture, smaller
from yonos_trt.runtimes import Request, models_dir, open_backend, shipped_models
from yonos_trt.upscaled import UpscaledImage

if TYPE_CHECKING:
    from yonos_trt.images import SaveOptions
    from yonos_trt.prefetch import Prefetch

__all__ = ["SR", "AlphaMode", "UpscaledImage"]

_log = logging.getLogger(__name__)

AlphaMode = Literal["bicubic", "model", "drop"]
_ALPHA_MODES = ("bicubic", "model", "drop")
_COLOR_FIXES = ("wavelet", "adain", "none")
_DEFAULT_SCALE = 4

OnTiles = Callable[[int, int], None]
"""Called with (tiles done, tiles in all)."""


class SR:
    """Upscale pictures with an engine directory.

    Parameters
    ----------
    engine_dir
        Engine directory, as `yonos-export` writes it; None takes a model of the wheel.
    scale
        Without `engine_dir`: which shipped model, ``lite-x<scale>`` (default 4). With it: refused if the
        engine directory has another scale.
    runtime
        "auto", "onnx", "openvino", "tensorrt" or "tensorrt-rtx".
    device
        CUDA device number, for the TensorRT runtimes.
    lanes
        Tile batches worked on at the same time; None: 1 on the CPU, 2 on a GPU. Does not change the result.
    tile_px, overlap_px
        Tile size and overlap in output px; None: the model's own.
    batch
        Tiles per batch; None: 1, or what the planner chooses.
    color_fix
        "wavelet" keeps the colours of the input, "adain" matches mean and deviation of the whole picture,
        "none".
    seed
        Names the noise field, 0 to 2^64 - 1. Same seed, same result.
    memory_limit_mb
        Upper bound of the working memory in MiB, beside the pictures themselves (host memory on the CPU,
        device memory on a GPU): batch, lanes and tile are lowered to fit.
    threads
        Host threads; None: all usable CPUs.
    precision
        "fp32", "fp16" or "bf16" artifacts; None: the best that is there.
    providers
        Execution providers of ONNX Runtime.

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

    def __init__(
        self,
        engine_dir: str | os.PathLike[str] | None = None,
        *,
        scale: int | None = None,
        runtime: str = "auto",
        device: int = 0,
        lanes: int | None = None,
        tile_px: int | None = None,
        overlap_px: int | None = None,
        batch: int | None = None,
        color_fix: str = "wavelet",
        seed: int = 0,
        memory_limit_mb: int | None = None,
        threads: int | None = None,
        precision: Precision | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        if color_fix not in _COLOR_FIXES:
            raise ConfigError(f"color_fix is {color_fix!r}, expected one of {', '.join(_COLOR_FIXES)}")
        if not 0 <= seed <= LARGEST_SEED:
            raise ConfigError(f"seed is {seed}, expected 0 to 2^64 - 1")
        if memory_limit_mb is not None and memory_limit_mb < 1:
            raise ConfigError(f"memory_limit_mb is {memory_limit_mb}, expected at least 1")
        self._limit_bytes = None if memory_limit_mb is None else memory_limit_mb << 20
        self._request = Request(
            runtime=runtime,
            device=device,
            lanes=lanes,
            threads=threads,
            precision=precision,
            providers=tuple(providers),
            memory_limit_bytes=self._limit_bytes,
        )
        self.threads = threads or len(os.sched_getaffinity(0))
        self._wanted = {"tile_px": tile_px, "overlap_px": overlap_px, "batch": batch}
        self._color_fix = color_fix
        self._seed = seed
        self.engine_dir = Path(engine_dir) if engine_dir is not None else _shipped(scale or _DEFAULT_SCALE)
        self.manifest: EngineManifest = load_manifest(self.engine_dir, verify=False)
        if scale not in (None, self.scale):
            raise ConfigError(
                f"scale is {scale}, but the model in {self.engine_dir} enlarges by {self.scale}; leave the "
                "scale out, or name the engine directory of another model"
            )
        self._backend: Backend | None = None
        self._closed = False
        self._lock = threading.RLock()
        self.plan(1, 1)  # refuses a tile, overlap or batch that is not legal

    # -- Life cycle ---------------------------------------------------------------------------------------

    @property
    def scale(self) -> int:
        """Enlargement in both directions."""
        return self.manifest.model.scale

    @property
    def backend(self) -> Backend:
        """The opened backend, for callers of `yonos_trt.pipeline`; opens it if need be."""
        return self._opened()

    def open(self) -> Self:
        """Open the engines now rather than at first use."""
        self._opened()
        return self

    def close(self) -> None:
        """Release the engines; waits for a call that is running in another thread."""
        with self._lock:
            self._closed = True
            if self._backend is not None:
                self._backend.close()
                self._backend = None

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _opened(self) -> Backend:
        with self._lock:
            if self._closed:
                raise ClosedError("this SR is closed; make a new one: SR(engine_dir)")
            if self._backend is None:
                self._backend = open_backend(self.engine_dir, self.manifest, self._request)
            return self._backend

    # -- What it will do ----------------------------------------------------------------------------------

    def plan(self, height_lr_px: int, width_lr_px: int) -> PicturePlan:
        """Return tiles, lanes and predicted working memory for an input of this size; opens nothing.

        Once TensorRT engines are open, the prediction is of device memory and comes from their own figures.

        Raises
        ------
        ConfigError
            Nothing fits `memory_limit_mb`.
        """
        backend = self._backend
        return plan_picture(
            self.manifest,
            height_lr_px,
            width_lr_px,
            lanes=backend.lanes if backend is not None else self._request.lanes or 1,
            limit_bytes=self._limit_bytes,
            peak_bytes=getattr(backend, "peak_bytes", None),
            **self._wanted,
        )

    def info(self) -> dict[str, Any]:
        """Describe the model, its licence chain, the artifacts and the options; opens nothing."""
        model, tiles = self.manifest.model, self.manifest.tiles
        return {
            "engine_dir": str(self.engine_dir),
            "model": model.name,
            "scale": model.scale,
            "latent": {"channels": model.latent_channels, "factor": model.latent_factor},
            "timestep": model.timestep,
            "weights_sha256": model.weights_sha256,
            "training": model.training,
            "licences": [{"part": x.part, "licence": x.licence, "source": x.source} for x in model.licences],
            "tiles": {name: getattr(tiles, name) for name in tiles.__struct_fields__},
            "artifacts": {
                name: [
                    {"runtime": a.runtime, "precision": a.precision, "file": a.file, "bytes": a.bytes,
                     "compute_capability": list(a.compute_capability), "tensorrt_version": a.tensorrt_version}
                    for a in stage.artifacts
                ]
                for name, stage in self.manifest.stages.items()
            },
            "end_to_end_psnr_db": dict(self.manifest.parity.end_to_end_psnr_db),
            "runtime": self._request.runtime,
            "backend": type(self._backend).__name__ if self._backend is not None else None,
            "color_fix": self._color_fix,
            "seed": self._seed,
            "threads": self.threads,
        }  # fmt: skip

    # -- Upscaling ----------------------------------------------------------------------------------------

    @overload
    def upscale(
        self, image: str | os.PathLike[str] | Picture, *, alpha: str = ..., on_tiles: OnTiles | None = ...
    ) -> UpscaledImage: ...

    @overload
    def upscale(self, image: Any, *, alpha: str = ..., on_tiles: OnTiles | None = ...) -> Any: ...

    def upscale(self, image: Any, *, alpha: str = "bicubic", on_tiles: OnTiles | None = None) -> Any:
        """Upscale one picture and return the same kind.

        Parameters
        ----------
        image
            Path, PIL image, `Picture`, NumPy array, or any array on the host with ``__dlpack__`` (torch,
            JAX, CuPy's host arrays). Arrays are (H, W), (H, W, 1) grey, (H, W, 2) grey + alpha, (H, W, 3)
            RGB or (H, W, 4) RGBA; uint8, uint16 or float32 in [0, 1].
        alpha
            How an alpha channel grows: "bicubic", "model" (through the network) or "drop".
        on_tiles
            Called with (tiles done, tiles in all), for progress.

        Returns
        -------
        UpscaledImage for a path or a `Picture`, else the type that came in; (s H, s W), same mode and depth.

        Raises
        ------
        InputError
            The picture cannot be used; the message names it and the reason.
        ClosedError
            This object is closed.
        NumericError
            The model produced NaN or infinity.
        """
        _check_alpha(alpha)
        if isinstance(image, (str, os.PathLike)):
            from yonos_trt.images import read_image

            self._opened()
            return UpscaledImage(self._picture(read_image(image), alpha, on_tiles))
        if isinstance(image, Picture):
            return UpscaledImage(self._picture(image, alpha, on_tiles))
        if isinstance(image, np.ndarray):
            return to_array(self._picture(from_array(image), alpha, on_tiles))
        if _is_pil(image):
            from yonos_trt.images import from_pil, to_pil

            return to_pil(self._picture(from_pil(image), alpha, on_tiles))
        if hasattr(image, "__dlpack__"):
            array, back = from_dlpack(image)
            return back(to_array(self._picture(from_array(array), alpha, on_tiles)))
        raise InputError(
            f"got {type(image).__name__}, expected a path, a PIL image, a NumPy array or one with __dlpack__"
        )

    def upscale_file(
        self,
        source: str | os.PathLike[str],
        target: str | os.PathLike[str],
        *,
        stream: Literal["auto", "always", "never"] = "auto",
        alpha: str = "bicubic",
        format: str | None = None,
        options: SaveOptions | None = None,
        on_tiles: OnTiles | None = None,
    ) -> Path:
        """Upscale a file into a file; what is at `target` is replaced when the new one is complete.

        Parameters
        ----------
        source, target
            Paths.
        stream
            "auto" writes row by row when the result would not fit into memory, "always" and "never" do as
            they say. Formats that cannot be written row by row are refused then.
        format
            Format of the target; None: as its suffix says.
        options
            Quality, and what may be lost in the target's format.
        alpha, on_tiles
            As `upscale`.

        Raises
        ------
        InputError
            The source cannot be used, the target cannot be written, or the result does not fit into memory
            and the format cannot be streamed.
        ConfigError
            ``color_fix="adain"`` or ``alpha="model"``, which need the whole picture, together with streaming.
        """
        from yonos_trt.images import check_output, read_image, write_image

        _check_alpha(alpha)
        if stream not in ("auto", "always", "never"):
            raise ConfigError(f"stream is {stream!r}, expected auto, always or never")
        target = Path(target)
        self._opened()
        picture = read_image(source)
        if alpha == "drop":
            picture = picture.without_alpha()
        height, width = picture.height_px * self.scale, picture.width_px * self.scale
        check_output(picture.kind, height, width, target, format=format, options=options)
        if stream == "always" or (stream == "auto" and not self._result_fits(picture, target, format)):
            self._stream(picture, target, alpha, format, options, on_tiles)
        else:
            write_image(self._picture(picture, alpha, on_tiles), target, format=format, options=options)
        return target

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
            Anything `upscale` takes, of any sizes, and PyAV frames (see `yonos_trt.video_frames`);
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
        from yonos_trt.video_frames import is_video_frame, upscale_frame

        def one(frame: Any) -> Any:
            return upscale_frame(frame, self.upscale) if is_video_frame(frame) else self.upscale(frame)

        return stream(frames, one, max_in_flight=max_in_flight)

    # -- Inside -------------------------------------------------------------------------------------------

    def _picture(self, picture: Picture, alpha: str, on_tiles: OnTiles | None) -> Picture:
        """Upscale in memory; the result carries the metadata of the input."""
        if alpha == "drop":
            picture = picture.without_alpha()
        with self._lock:
            rgb = self._array(picture.rgb, on_tiles)
            if picture.alpha is None:
                return picture.with_pixels(rgb)
            if alpha == "model":
                grown = luma(self._array(_as_rgb(picture.alpha), None, color_fix="none"))
            else:
                from yonos_trt.images import upscale_alpha

                grown = upscale_alpha(picture.alpha, self.scale)
        return picture.with_pixels(rgb, grown)

    def _array(self, rgb: Array, on_tiles: OnTiles | None, *, color_fix: str | None = None) -> Array:
        out = np.empty((rgb.shape[0] * self.scale, rgb.shape[1] * self.scale, 3), rgb.dtype)
        y = 0
        with closing(self._rows(rgb, on_tiles, color_fix=color_fix)) as blocks:
            for rows in blocks:
                out[y : y + len(rows)] = rows
                y += len(rows)
        return out

    def _rows(
        self, rgb: Array, on_tiles: OnTiles | None, *, color_fix: str | None = None
    ) -> Generator[Array, None, None]:
        """Yield finished rows; when memory runs out, go on from the same row with a smaller plan."""
        backend = self._opened()
        planned: PicturePlan | None = self.plan(*rgb.shape[:2])
        emitted = 0
        while planned is not None:
            y = 0
            try:
                with closing(
                    pipeline.upscale(
                        rgb,
                        backend,
                        plan=planned.tiles,
                        seed=self._seed,
                        color_fix=color_fix or self._color_fix,
                        lanes=planned.lanes,
                        threads=self.threads,
                        on_tiles=on_tiles,
                    )
                ) as blocks:
                    for rows in blocks:
                        fresh = rows[max(0, emitted - y) :]
                        y += len(rows)
                        if len(fresh):
                            emitted = y
                            yield fresh
                return
            except OutOfMemoryError as error:
                next_plan = smaller(planned, self.manifest)
                if next_plan is None:
                    raise
                _log.warning(
                    "%s; going on with tiles of %d x %d px, batch %d",
                    error, next_plan.tiles.tile_h_px, next_plan.tiles.tile_w_px, next_plan.tiles.batch,
                )  # fmt: skip
                planned = next_plan

    def _result_fits(self, picture: Picture, target: Path, format: str | None) -> bool:
        from yonos_trt.images import estimate_output

        height, width = picture.height_px * self.scale, picture.width_px * self.scale
        needed = estimate_output(picture.kind, height, width, target, format=format).peak_bytes
        needed += self.plan(picture.height_px, picture.width_px).peak_bytes
        return needed <= min(_available_bytes(), self._limit_bytes or sys.maxsize)

    def _stream(
        self,
        picture: Picture,
        target: Path,
        alpha: str,
        format: str | None,
        options: SaveOptions | None,
        on_tiles: OnTiles | None,
    ) -> None:
        from yonos_trt.images import open_row_writer, upscale_alpha

        for name, value, other in (("color_fix", self._color_fix, "wavelet"), ("alpha", alpha, "bicubic")):
            if value == "adain" or (value == "model" and picture.alpha is not None):
                raise ConfigError(
                    f"{name}={value!r} needs the whole picture in memory, but the result is written in rows "
                    f"(it would not fit, or stream='always' was given); use {name}={other!r}"
                )
        height, width = picture.height_px * self.scale, picture.width_px * self.scale
        with (
            self._lock,
            open_row_writer(target, picture, height, width, format=format, options=options) as writer,
            closing(self._rows(picture.rgb, on_tiles)) as blocks,
        ):
            y = 0
            for rows in blocks:
                end = y + len(rows)
                if picture.alpha is None:
                    writer.write_rows(rows)
                else:
                    writer.write_rows(rows, upscale_alpha(picture.alpha, self.scale, y0_px=y, y1_px=end))
                y = end


def _shipped(scale: int) -> Path:
    path = models_dir() / f"lite-x{scale}"
    if not (path / "manifest.json").is_file():
        have = ", ".join(shipped_models()) or "none"
        raise EngineNotFoundError(
            f"no shipped model enlarges by {scale} (expected {path}; shipped: {have}); name an engine "
            "directory: SR(engine_dir), or -m on the command line"
        )
    return path


def _check_alpha(alpha: str) -> None:
    if alpha not in _ALPHA_MODES:
        raise ConfigError(f"alpha is {alpha!r}, expected one of {', '.join(_ALPHA_MODES)}")


def _is_pil(image: Any) -> bool:
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(image, module.Image)


def _as_rgb(grey: Array) -> Array:
    return np.repeat(grey[..., None], 3, axis=2)


def _available_bytes() -> int:
    """Return memory that can be used without swapping; where the system does not say, half of all memory."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) << 10
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
