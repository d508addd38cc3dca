"""Two training processes compute what one would on their crops together, and stop together."""

# ruff: noqa: E402  (imports follow the skip for installations without torch)

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from helpers import write_training_pictures
from two_processes_config import CONFIG, STAGE, crops_of
from yonos_train.data import generator
from yonos_train.ema import Ema
from yonos_train.loop import learning_rate
from yonos_train.run import Run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_training_pictures(tmp_path_factory.mktemp("pictures"), 3)


@pytest.fixture(scope="module")
def ranks(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("two")
    root = Path(__file__).parent.parent
    paths = os.pathsep.join(str(root / part) for part in (".", "export", "train"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(Path(__file__).parent / "two_processes.py"), str(data), str(out)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def one_process(data: Path, folder: Path) -> dict[str, Any]:
    """Do both processes' work in this one: their crops and noise, the mean of their gradients."""
    run = Run(CONFIG, folder, data=str(data), weights={})
    torch.manual_seed(0)
    stage = run.build(STAGE)
    unet, crops = stage.groups["unet"]["unet"].train().requires_grad_(True), crops_of(run)
    unet.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(unet.parameters(), betas=(0.9, 0.99), weight_decay=STAGE.weight_decay)
    ema = Ema(unet, STAGE.ema)
    for step in range(3):
        for entry in optimiser.param_groups:
            entry["lr"] = learning_rate(STAGE, step, step / 3)
        optimiser.zero_grad()
        for rank in (0, 1):
            for micro in (0, 1):
                index = 2 * step + micro
                batch = crops.batch(index, 1, rank=rank, world=2)
                loss, _ = stage.loss("unet", batch, generator(0, "x2", "unet", index, rank), step)
                (loss / 4).backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), STAGE.clip)
        optimiser.step()
        ema.update(unet, step)
    ema.copy_to(unet)
    return {key: value.tolist() for key, value in unet.state_dict().items()}


def test_two_processes_compute_what_one_would(
    ranks: list[dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    first, second = (rank["steps"] for rank in ranks)
    assert (first["rank"], second["rank"], first["step"], second["step"]) == (0, 1, 3, 3)
    assert first["weights"] == second["weights"]
    expected = one_process(data, tmp_path)
    moved = 0.0
    torch.manual_seed(0)
    start = Run(CONFIG, tmp_path / "start", data=str(data), weights={}).build(STAGE).groups["unet"]["unet"]
    for key, value in start.state_dict().items():
        torch.testing.assert_close(
            torch.tensor(first["weights"][key]), torch.tensor(expected[key]), rtol=1e-4, atol=1e-5
        )
        moved = max(moved, float((torch.tensor(expected[key]) - value).abs().max()))
    assert moved > 1e-3


def test_a_budget_in_minutes_ends_at_one_step_though_one_process_is_slower(
    ranks: list[dict[str, Any]],
) -> None:
    first, second = (rank["minutes"] for rank in ranks)
    assert first["step"] == second["step"] >= 2
    assert first["weights"] == second["weights"]


def test_a_loss_that_is_not_a_number_in_one_process_stops_both(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert "stage x2, step 1: loss of unet is nan" in rank["failure"]["error"]
        assert rank["failure"]["step"] == 1
