"""Limits of the parity gate: what FP16, BF16 and engines must reach beside the FP32 reference."""

from __future__ import annotations

import math
from dataclasses import dataclass

from yonos_trt.errors import ConfigError


@dataclass(frozen=True)
class Thresholds:
    """What a candidate must reach against the FP32 reference; below it the export fails.

    Attributes
    ----------
    cosine
        Smallest cosine similarity per stage, each stage fed with the reference's own inputs.
    stage_psnr_db
        Smallest PSNR per stage, peak = range of the reference output.
    end_to_end_psnr_db
        Smallest PSNR of the finished tiles, clamped to [-1, 1], peak = 2.
    """

    cosine: float
    stage_psnr_db: float
    end_to_end_psnr_db: float

    def __post_init__(self) -> None:
        if not -1.0 <= self.cosine <= 1.0:
            raise ConfigError(f"thresholds.cosine is {self.cosine}, expected -1 to 1")
        for name in ("stage_psnr_db", "end_to_end_psnr_db"):
            if not getattr(self, name) < math.inf:  # nor is nan
                raise ConfigError(f"thresholds.{name} is {getattr(self, name)}, expected a number of dB")


# FP32 differs only in the order of additions. FP16 has 11 significant bits, BF16 has 8.
DEFAULT_THRESHOLDS: dict[str, Thresholds] = {
    "fp32": Thresholds(cosine=0.999999, stage_psnr_db=90.0, end_to_end_psnr_db=90.0),
    "fp16": Thresholds(cosine=0.9999, stage_psnr_db=60.0, end_to_end_psnr_db=50.0),
    "bf16": Thresholds(cosine=0.99, stage_psnr_db=30.0, end_to_end_psnr_db=30.0),
}
