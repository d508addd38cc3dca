"""Decide the output's format from the input's and the user's choices, before any frame is touched."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from yonos_trt.errors import ConfigError, InputError
from yonos_trt.sizing import Sizing
from yonos_trt.video.color import Coding
from yonos_trt.video.info import (
    FULL,
    LIMITED,
    MATRIX_RGB,
    UNSPECIFIED,
    ColorTags,
    HdrMetadata,
    VideoInfo,
    require_av,
)
from yonos_trt.video.layouts import LAYOUTS, REPACKED, Layout, layout_of

HDR_ENCODERS = ("libx264", "libx265")  # are told mastering display and light level

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """What the user may choose about the encoder; None means "derive it"."""

    vcodec: str = "libx264"
    crf: float | None = 16  # constant rate factor; only passed to encoders that have it
    preset: str | None = None  # the encoder's own default
    pix_fmt: str | None = None  # the input's, or the nearest one that the encoder has
    options: tuple[tuple[str, str], ...] = ()  # passed on as they are

    def __post_init__(self) -> None:
        if self.crf is not None and not math.isfinite(self.crf):
            raise ConfigError(f"crf is {self.crf}, expected a finite number, for example 16")


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """Everything an encoder is opened with. Equal formats make equal bits."""

    vcodec: str
    height_px: int
    width_px: int
    pix_fmt: str
    layout: Layout
    coding: Coding
    tags: ColorTags
    sample_aspect_ratio: Fraction | None
    display_matrix: tuple[int, ...] | None
    rate: Fraction
    time_base: Fraction
    options: tuple[tuple[str, str], ...]
    nvenc: bool = False  # encoded in device memory by `yonos_trt.video.nvidia.nvenc`


def _codec(name: str) -> Any:
    av = require_av()
    try:
        codec = av.Codec(name, "w")
    except Exception as error:
        raise ConfigError(
            f"encoder {name!r} is not in this build of FFmpeg; expected for example libx264, libx265, "
            f"libsvtav1, "
            f"ffv1 or prores_ks"
        ) from error
    if codec.type != "video":
        raise ConfigError(
            f"encoder {name!r} is for {codec.type}; expected a video encoder, for example libx264"
        )
    return codec


def _choose_pix_fmt(names: list[str], layout: Layout, vcodec: str) -> str:
    """Pick the encoder's format nearest to the input's: same subsampling, then the nearest bit depth."""
    if not names:
        return layout.name
    known = [n for n in names if n in LAYOUTS or n in REPACKED]
    kinds = [layout.kind] if layout.kind == "yuv" else [layout.kind, "yuv"]
    for kind in kinds:
        best: tuple[tuple[bool, int, bool], str] | None = None
        for name in known:
            other = layout_of(name)
            wanted = (layout.sub_h, layout.sub_w) if layout.kind == kind == "yuv" else (1, 1)
            if other.kind != kind or (other.sub_h, other.sub_w) != wanted:
                continue
            rank = (other.bits < layout.bits, abs(other.bits - layout.bits), name in REPACKED)
            if best is None or rank < best[0]:
                best = (rank, name)
        if best is not None:
            if best[0][0]:
                log.warning(
                    "%s has no %d-bit format: %s becomes %s", vcodec, layout.bits, layout.name, best[1]
                )
            return best[1]
    raise ConfigError(
        f"encoder {vcodec} has no format like the input's {layout.name}; pass --pix-fmt (it takes "
        f"{', '.join(names)})"
    )


def _hdr_options(vcodec: str, hdr: HdrMetadata | None, *, force: bool) -> dict[str, str]:
    if hdr is None:
        return {}
    params = hdr.encoder_params()
    if vcodec == "libx265":
        return {"x265-params": ":".join(f"{k}={v}" for k, v in params.items())}
    if vcodec == "libx264":
        names = {"master-display": "mastering-display", "max-cll": "cll"}
        return {"x264-params": ":".join(f"{names[k]}={v}" for k, v in params.items())}
    if not force:
        raise ConfigError(
            f"the input carries HDR mastering metadata, which is not passed on to encoder {vcodec}; use "
            f"libx265 or "
            f"libx264, or pass --force to drop it"
        )
    log.warning("HDR mastering metadata is dropped: it is not passed on to %s", vcodec)
    return {}


def output_format(
    settings: EncoderSettings,
    info: VideoInfo,
    *,
    scale: int,
    force: bool = False,
    sizing: Sizing | None = None,
) -> OutputFormat:
    """Decide the output's format from the input's.

    Parameters
    ----------
    settings
        The user's choices.
    info
        The input.
    scale
        Upscaling factor.
    force
        Go on where something of the input would be lost.
    sizing
        The size of the output, rounded down to what the pixel format can hold; None: `scale` times the input.

    Raises
    ------
    ConfigError
        Encoder, pixel format or options do not fit each other or the input.
    InputError
        HDR that the output could not carry correctly.
    """
    codec = _codec(settings.vcodec)
    names = [f.name for f in codec.video_formats or ()]
    if settings.pix_fmt is not None:
        pix_fmt = settings.pix_fmt
        if names and pix_fmt not in names:
            raise ConfigError(
                f"encoder {settings.vcodec} has no pixel format {pix_fmt}: it takes {', '.join(names)}"
            )
        try:
            layout = layout_of(pix_fmt)
        except InputError as error:
            raise ConfigError(f"--pix-fmt: {error}") from error
    else:
        pix_fmt = _choose_pix_fmt(names, info.layout, settings.vcodec)
        layout = layout_of(pix_fmt)
    if info.tags.hdr and min(layout.bits, info.layout.bits) < 10 and not force:
        raise InputError(
            f"{info.name} is HDR (transfer {info.tags.transfer}), which needs 10 bits from end to end, but "
            f"input is "
            f"{info.pix_fmt} and output {pix_fmt}; choose a 10-bit --pix-fmt, tone-map first, or pass --force"
        )
    full = True if layout.kind == "rgb" else info.coding.full_range
    coding = Coding(info.coding.matrix, full, info.coding.siting)
    matrix = info.tags.matrix
    if layout.kind == "rgb":
        matrix = MATRIX_RGB
    elif matrix in (UNSPECIFIED, MATRIX_RGB, 3):
        matrix = coding.matrix  # say what was assumed: a player would guess by the new, larger size
    height_px, width_px = info.height_px * scale, info.width_px * scale
    if sizing is not None:
        height_px, width_px = sizing.of(info.height_px, info.width_px)
        height_px -= height_px % layout.sub_h if height_px > 1 else 0
        width_px -= width_px % layout.sub_w if width_px > 1 else 0
    if height_px % layout.sub_h or width_px % layout.sub_w:
        raise ConfigError(
            f"{pix_fmt} needs an even size, the output is {height_px} x {width_px}; choose --pix-fmt yuv444p"
        )
    options: dict[str, str] = {}
    available = {o.name for o in new_context(settings.vcodec).supported_options.private}
    if settings.crf is not None and "crf" in available:
        options["crf"] = f"{settings.crf:g}"
    if settings.preset is not None:
        if "preset" not in available:
            raise ConfigError(f"encoder {settings.vcodec} has no presets; leave --preset out")
        options["preset"] = settings.preset
    extra = _hdr_options(settings.vcodec, info.hdr, force=force)
    # H.264 and HEVC mean "left" where they say nothing
    said = coding.siting != "left" or (info.side.siting and settings.vcodec not in ("libx264", "libx265"))
    if said and layout.sub_w == 2:
        options["chroma_sample_location"] = coding.siting
    if settings.vcodec == "libx265":  # it writes to standard error by itself, each time it is opened
        extra["x265-params"] = ":".join(filter(None, ["log-level=error", extra.get("x265-params")]))
    for key, value in settings.options:
        joined = key in extra and key.endswith("-params")
        options[key] = f"{extra.pop(key)}:{value}" if joined else value
    options |= extra
    return OutputFormat(
        vcodec=settings.vcodec,
        height_px=height_px,
        width_px=width_px,
        pix_fmt=pix_fmt,
        layout=layout,
        coding=coding,
        tags=ColorTags(FULL if full else LIMITED, info.tags.primaries, info.tags.transfer, matrix),
        sample_aspect_ratio=info.sample_aspect_ratio,
        display_matrix=info.display_matrix,
        rate=info.rate,
        time_base=info.time_base,
        options=tuple(sorted(options.items())),
    )


def new_context(vcodec: str) -> Any:
    """Return an encoder context that is not open."""
    from av.codec.context import CodecContext

    return CodecContext.create(vcodec, "w")
