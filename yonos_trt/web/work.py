"""Orders of the page: pictures and a video, within limits, telling their progress, stopped when asked.

Every order is a generator of `Step`; what it returns is the result. Closing it, or setting its event, stops
the work at the next tile or frame. Nothing here knows Gradio.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import secrets
import shutil
import stat
import threading
import time
import zipfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from yonos_trt.errors import InputError, YonosError

if TYPE_CHECKING:
    from yonos_trt.images import Picture

T = TypeVar("T")
Tell = Callable[[str, float], None]

#: what browsers show by themselves, by the format that was read or written
_SHOWN = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "AVIF": ".avif"}
_SHOWN_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif")
_SHOWN_PIXELS = 64_000_000
"""Larger results are not decoded again to be shown."""


class StoppedError(Exception):
    """The order was cancelled, or its time is up; the message says which."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one order may ask for.

    Attributes
    ----------
    files : int
        Pictures.
    file_mb : int
        MiB of one uploaded file.
    pixels : int
        Of one picture, as its file declares them.
    result_pixels : int
        Of one result, or of one frame of a video.
    seconds : float
        Of the whole order.
    waiting : int
        Orders in the queue, over all visitors.
    keep_s : float
        Seconds after which uploads and results are removed.
    """

    files: int = 20
    file_mb: int = 200
    pixels: int = 1 << 25
    result_pixels: int = 1 << 29
    seconds: float = 3600.0
    waiting: int = 8
    keep_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class Wish:
    """How pictures are to be enlarged and written; `factor` and `restore` None: the model's own."""

    model: str
    factor: float | None = None
    restore: float | None = None
    format: str | None = None
    quality: int = 95
    metadata: bool = True


@dataclass(frozen=True, slots=True)
class Step:
    """How far an order is: a few words, and the part that is done, 0 to 1."""

    words: str
    done: float


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one file.

    Attributes
    ----------
    name : str
        The source's.
    target : Path or None
        The result; None: it failed.
    before, after : Path or None
        What a browser can show of it.
    size_px : (int, int)
        (height, width) of the result.
    left_out : tuple of str
        What of the source the result does not carry.
    error : str
        Why it failed.
    """

    name: str
    target: Path | None = None
    before: Path | None = None
    after: Path | None = None
    size_px: tuple[int, int] = (0, 0)
    left_out: tuple[str, ...] = field(default=())
    error: str = ""


class Workshop:
    """Does orders in a folder of its own, and empties it.

    Parameters
    ----------
    folder
        Where uploads and results lie; everything in it is removed after `Limits.keep_s`.
    models
        Name -> engine directory of what may be chosen.
    limits
        See `Limits`.
    machine
        Options of `yonos_trt.SR` for every order: ``runtime``, ``threads`` and so on.
    """

    def __init__(
        self, folder: Path, models: dict[str, Path], limits: Limits, machine: dict[str, Any] | None = None
    ) -> None:
        self.folder, self.models, self.limits = folder, models, limits
        self._machine = machine or {}
        self._first_seen_s: dict[tuple[Path, int, int], float] = {}

    def dial(self, model: str) -> float | None:
        """Return where the dial of this model stands by itself; None: it has none."""
        restore: float | None = self._sr(model).restore
        return restore

    def sweep(self) -> None:
        """Remove what has not changed for `Limits.keep_s`, and folders that are empty by then.

        That time is counted here, from the first look on: file times and the machine's clock may jump.
        """
        now_s = time.monotonic()
        there: dict[tuple[Path, int, int], float] = {}
        for path in sorted(self.folder.rglob("*"), reverse=True):  # what is inside a folder first
            with contextlib.suppress(OSError):
                facts = path.lstat()
                is_folder = stat.S_ISDIR(facts.st_mode)
                known = path, facts.st_ino, 0 if is_folder else facts.st_mtime_ns
                there[known] = self._first_seen_s.get(known, now_s)
                if now_s - there[known] >= self.limits.keep_s:
                    if is_folder:
                        path.rmdir()  # refuses one that is not empty
                    else:
                        path.unlink()
        self._first_seen_s = there

    def pictures(
        self, sources: Sequence[Path], wish: Wish, stop: threading.Event
    ) -> Generator[Step, None, tuple[list[Result], Path | None]]:
        """Enlarge pictures one after the other; one that fails does not end the order.

        Returns
        -------
        (list of Result, Path or None)
            In the order of `sources`; and a zip of the results, if there are several.

        Raises
        ------
        StoppedError
            `stop` was set, or the time is up; the folder of the order is removed.
        YonosError
            Nothing can be done at all: no pictures, too many, no such model.
        """
        if not sources:
            raise InputError("no pictures; drop one on the page first")
        if len(sources) > self.limits.files:
            raise InputError(f"{len(sources)} pictures, expected at most {self.limits.files} at once")
        until = time.monotonic() + self.limits.seconds
        folder = self._new_folder()
        results: list[Result] = []
        try:
            with self._sr(wish.model, wish.restore, wish.factor) as sr:
                for index, source in enumerate(sources):
                    count = f"{index + 1} of {len(sources)}: " if len(sources) > 1 else ""
                    words, part = f"{count}{source.name}", 1 / len(sources)

                    def one(tell: Tell, source: Path = source, index: int = index) -> Result:
                        place = folder / str(index + 1)
                        place.mkdir()
                        return self._picture(sr, source, place, wish, tell)

                    try:
                        for step in (steps := _Told(one, stop, until)):
                            yield Step(f"{words}, {step.words}", (index + step.done) * part)
                        results.append(steps.result)
                    except YonosError as error:
                        results.append(
                            Result(source.name, error=str(error).replace(str(source), source.name))
                        )
            return results, _zipped(results, folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def video(
        self, source: Path, wish: Wish, crf: float, container: str, stop: threading.Event
    ) -> Generator[Step, None, Result]:
        """Enlarge a video; see `yonos_trt.video`.

        Raises
        ------
        StoppedError
            As `pictures`.
        YonosError
            The video cannot be used.
        """
        from yonos_trt.sizing import Sizing
        from yonos_trt.video import VideoOptions, upscale_video
        from yonos_trt.video.format import EncoderSettings

        until = time.monotonic() + self.limits.seconds
        folder = self._new_folder()
        try:
            with self._sr(wish.model, wish.restore, wish.factor) as sr:
                target = folder / f"{source.stem}_x{sr.factor:g}{container}"

                def whole(tell: Tell) -> Result:
                    def told(done: int, total: int | None) -> None:
                        tell(
                            f"frame {done}" + (f" of {total}" if total else ""), done / total if total else 0
                        )

                    def enlarge(frame: Any, size: tuple[int, int] | None = None) -> Any:
                        height, width = size or sr.size_of(*frame.shape[:2])
                        self._check_result(source.name, height, width)
                        return sr.upscale(frame, on_tiles=lambda *_: tell("", -1), size=size)

                    sizing = None if sr.factor == sr.scale else Sizing(factor=sr.factor)
                    options = VideoOptions(encoder=EncoderSettings(crf=crf), sizing=sizing)
                    report = upscale_video(
                        source, target, enlarge, scale=sr.scale, options=options, progress=told
                    )
                    return Result(source.name, target, left_out=tuple(report.left_out))

                for step in (steps := _Told(whole, stop, until)):
                    yield Step(f"{source.name}, {step.words}", step.done)
                result: Result = steps.result
                return result
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    # -- Inside -------------------------------------------------------------------------------------------

    def _sr(self, model: str, restore: float | None = None, factor: float | None = None) -> Any:
        from yonos_trt.sr import SR

        if model not in self.models:
            raise InputError(f"model {model!r} is not offered here, expected one of {', '.join(self.models)}")
        return SR(
            self.models[model],
            scale=factor,
            restore=restore,
            max_pixels=self.limits.pixels,
            **self._machine,
        )

    def _new_folder(self) -> Path:
        self.sweep()
        folder = self.folder / f"order-{secrets.token_hex(16)}"
        folder.mkdir()
        return folder

    def _check_result(self, name: str, height: int, width: int) -> None:
        if height * width > self.limits.result_pixels:
            raise InputError(
                f"{name}: the result would have {width} x {height} px, which is more than "
                f"the {self.limits.result_pixels} pixels this server makes; take a smaller picture or factor"
            )

    def _picture(self, sr: Any, source: Path, folder: Path, wish: Wish, tell: Tell) -> Result:
        from yonos_trt.images import SUPPORTED_SUFFIXES, SaveOptions, read_image

        tell("reading", 0)
        picture = read_image(source, max_pixels=self.limits.pixels)
        size = sr.size_of(picture.height_px, picture.width_px)
        self._check_result(source.name, *size)
        if not wish.metadata:
            picture = dataclasses.replace(
                picture, exif=None, xmp=None, text={}, resources=None, chunks=(), left_out=()
            )
        suffix = source.suffix if source.suffix.lower() in SUPPORTED_SUFFIXES else ".png"
        if wish.format is not None:
            suffix = f".{wish.format}"
        target = folder / f"{source.stem}_x{sr.factor:g}{suffix}"
        left_out: list[str] = []
        sr.upscale_file(
            picture,
            target,
            format=wish.format,
            options=SaveOptions(quality=wish.quality, drop_alpha=False, drop_depth=wish.format is not None),
            on_tiles=lambda done, total: tell(f"tile {done} of {total}", done / total),
            on_left_out=left_out.extend,
        )
        return Result(
            source.name,
            target,
            before=_shown_source(picture, source, folder / "before.png"),
            after=_shown_result(target, size, folder / "after.png"),
            size_px=size,
            left_out=tuple(left_out),
        )


class _Told:
    """Run a function in a thread; iterating gives what it tells, and `result` what it returned."""

    def __init__(self, work: Callable[[Tell], T], stop: threading.Event, until: float) -> None:
        self._work, self._stop, self._until = work, stop, until
        self._told: queue.SimpleQueue[Step | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self.result: Any = None

    def _tell(self, words: str, done: float) -> None:
        """Called by the work; raises where it has to stop."""
        if self._stop.is_set():
            raise StoppedError("cancelled")
        if time.monotonic() > self._until:
            raise StoppedError("the time for one order is up")
        if done >= 0:
            self._told.put(Step(words, done))

    def _run(self) -> None:
        try:
            self.result = self._work(self._tell)
        except BaseException as error:
            self._error = error
        finally:
            self._told.put(None)

    def __iter__(self) -> Generator[Step, None, None]:
        thread = threading.Thread(target=self._run, name="yonos-web-order", daemon=True)
        thread.start()
        try:
            while (step := self._told.get()) is not None:
                yield step
        finally:
            if thread.is_alive():  # whoever listened went away
                self._stop.set()
            thread.join()
        if self._error is not None:
            raise self._error


def _shown_source(picture: Picture, source: Path, otherwise: Path) -> Path:
    """Return what a browser can show of a source: the file itself, or its pixels in 8 bits."""
    if picture.kind.format in _SHOWN and picture.kind.mode != "CMYK":
        shown = otherwise.with_suffix(_SHOWN[picture.kind.format])
        shutil.copyfile(source, shown)
        return shown
    return _as_png(picture, otherwise)


def _shown_result(target: Path, size_px: tuple[int, int], otherwise: Path) -> Path | None:
    from yonos_trt.images import read_image

    if target.suffix.lower() in _SHOWN_SUFFIXES:
        return target
    if size_px[0] * size_px[1] > _SHOWN_PIXELS:
        return None
    return _as_png(read_image(target, max_pixels=None), otherwise)


def _as_png(picture: Picture, target: Path) -> Path:
    from PIL import Image

    from yonos_trt.images.picture import to_depth

    image = Image.fromarray(to_depth(picture.rgb, "uint8"))
    if picture.alpha is not None:
        image.putalpha(Image.fromarray(to_depth(picture.alpha, "uint8")))
    image.save(target, compress_level=1)
    return target


def _zipped(results: Sequence[Result], folder: Path) -> Path | None:
    """Put the results into one archive, uncompressed, as pictures are; names that meet are numbered."""
    targets = [result.target for result in results if result.target is not None]
    if len(targets) < 2:
        return None
    path = folder / "yonos.zip"
    names: set[str] = set()
    with zipfile.ZipFile(path, "w") as archive:
        for target in targets:
            name, number = target.name, 1
            while name in names:
                number += 1
                name = f"{target.stem}-{number}{target.suffix}"
            names.add(name)
            archive.write(target, name)
    return path
