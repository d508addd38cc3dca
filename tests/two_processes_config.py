"""What test_train_processes.py and the processes it starts have in common."""

from __future__ import annotations

import dataclasses

from yonos_train.data import Crops
from yonos_train.loop import LoopConfig
from yonos_train.presets import PRESETS
from yonos_train.run import Run
from yonos_train.stages import StageConfig

STAGE = StageConfig(
    "x2", "diffusion", 2, steps=3, batch=1, accumulate=2, crop_px=64, degradation="bicubic", warmup_steps=1
)
CONFIG = dataclasses.replace(
    PRESETS["smoke"], stages=(STAGE,), loop=LoopConfig(precision="fp32", log_steps=1, sample_steps=0)
)


def crops_of(run: Run) -> Crops:
    return Crops(run.images, dataclasses.replace(run.config.crops, crop_px=64), seed=run.config.loop.seed)
