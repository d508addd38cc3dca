"""One of two training processes, started by test_train_processes.py through torchrun: what it ends with."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from two_processes_config import CONFIG, STAGE, crops_of
from yonos_train.loop import Trainer, TrainingError
from yonos_train.run import Run


def train(run: Run, folder: Path, stage_config: Any, *, fail: bool = False) -> dict[str, Any]:
    torch.manual_seed(0)
    stage = run.build(stage_config)
    trainer = Trainer(stage, stage_config, crops_of(run), folder, run.config.loop)
    rank = trainer.accelerator.process_index
    if fail and rank == 1:
        inner = stage.loss

        def loss(*arguments: Any) -> Any:
            value, logs = inner(*arguments)
            return (value * float("nan") if arguments[-1] == 1 else value), logs

        stage.loss = loss  # type: ignore[method-assign]
    error = ""
    try:
        trainer.run(on_step=lambda step: time.sleep(0.05 * rank))
    except TrainingError as raised:
        error = str(raised)
    weights = {
        key: value.tolist() for key, value in trainer.stage.groups["unet"]["unet"].state_dict().items()
    }
    return {"rank": rank, "step": trainer.step, "error": error, "weights": weights}


def main(data: str, out: Path) -> None:
    run = Run(CONFIG, out / "run", data=data, weights={})
    minutes = dataclasses.replace(STAGE, steps=None, minutes=0.05)
    result = {
        "steps": train(run, out / "steps", STAGE),
        "minutes": train(run, out / "minutes", minutes),
        "failure": train(run, out / "failure", STAGE, fail=True),
    }
    (out / f"rank{result['steps']['rank']}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
