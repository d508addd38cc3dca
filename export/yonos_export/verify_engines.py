"""Parity of engines where they can run: the same picture through the engines and through the FP32 graphs."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from yonos_export.samples import Picture
from yonos_export.thresholds import Thresholds
from yonos_trt.engine.manifest import Precision
from yonos_trt.errors import BuildError

log = logging.getLogger(__name__)

# (runtime, precision) -> object with upscale(picture) and close(), in a `with` block
Opener = Callable[[str, str], Any]


def gpu_is_here() -> bool:
    """Whether engines of this machine's TensorRT can be tried at all."""
    from yonos_trt.cuda.probe import probe_driver

    return bool(probe_driver().devices)


def compare_engines(
    folder: Path,
    runtime: str,
    precision: Precision,
    reference: Precision,
    pictures: dict[str, Picture],
    limits: Thresholds,
    *,
    device: int = 0,
    opener: Opener | None = None,
) -> float:
    """Upscale every picture with the engines and with the ONNX graphs; return the PSNR of all together, in
    dB.

    Parameters
    ----------
    folder
        Complete engine directory, not yet in its place.
    runtime, precision
        Of the engines.
    reference
        Precision of the graphs they are held against.
    pictures
        Name -> RGB picture.
    limits
        The end-to-end limit holds.
    device
        CUDA device number the engines run on.
    opener
        Makes the upscaler; `yonos_trt.SR` on `folder` when None.

    Raises
    ------
    BuildError
        The engines miss the limit.
    YonosError
        They cannot be loaded or run.
    """
    from yonos_trt.sr import SR

    def open_sr(kind: str, bits: str) -> SR:
        return SR(folder, runtime=kind, precision=bits, device=0 if kind == "onnx" else device, seed=0)  # type: ignore[arg-type]

    make = opener or open_sr
    squares = count = 0.0
    with make("onnx", reference) as expected, make(runtime, precision) as engines:
        for name, picture in pictures.items():
            difference = expected.upscale(picture).astype(np.float64) - engines.upscale(picture)
            squares, count = squares + float((difference**2).sum()), count + difference.size
            log.info("%s: largest difference %d of 255", name, int(np.abs(difference).max()))
    psnr_db = math.inf if squares == 0 else 10 * math.log10(255.0**2 * count / squares)
    log.info("%s %s engines: %.1f dB to the %s graphs", runtime, precision, psnr_db, reference)
    # Both are rounded to 8 bits, and one grey level everywhere is 48 dB already.
    limit = min(limits.end_to_end_psnr_db, 45.0)
    if not psnr_db >= limit:
        raise BuildError(
            f"the {runtime} {precision} engines do not agree with the {reference} graphs: PSNR "
            f"{psnr_db:.1f} dB, at "
            f"least {limit} asked for. Nothing was written. Build with --fp32 or --bf16, or keep the "
            "worst layers in FP32 with --fp32-islands"
        )
    return psnr_db
