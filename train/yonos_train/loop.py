"""The training loop of one stage: AdamW, warm-up and cosine, EMA, clipping, accumulation, exact resume.

Everything random in step n derives from (seed, stage, n), so a run that was cut off and resumed with a step
budget gives the same bytes as one that was not. A checkpoint holds weights, EMA and optimiser moments.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .checkpoints import Checkpoints, TrainingError, TrainingState
from .data import Batch, Crops, generator
from .ema import Ema
from .records import MetricsLog, write_curves, write_grid
from .stage import Stage, StageConfig

__all__ = ["LoopConfig", "Trainer", "TrainingError", "average_gradients", "learning_rate"]

log = logging.getLogger(__name__)

_BUCKET = 1 << 25  # elements of an all-reduce: 128 MiB of float32


@dataclass(frozen=True)
class LoopConfig:
    """What all stages of a run share.

    Attributes
    ----------
    seed
        Seed of everything.
    precision
        ``"bf16"`` (autocast), ``"fp32"``, or ``"auto"``: bf16 on a GPU and on CPUs with instructions for it
        (AVX512-BF16, AMX); elsewhere it is emulated, several times slower than fp32.
    checkpoint_minutes, checkpoint_steps
        A checkpoint is due after this time or this many steps, whichever is first.
    sample_steps
        A grid of samples is written every so many steps (0: only at the end).
    log_steps
        Metrics are averaged over and written every so many steps.
    """

    seed: int = 0
    precision: str = "auto"
    checkpoint_minutes: float = 3.0
    checkpoint_steps: int = 2000
    sample_steps: int = 1000
    log_steps: int = 50

    def __post_init__(self) -> None:
        if self.precision not in ("auto", "bf16", "fp32"):
            raise ValueError(f"precision: got {self.precision!r}, expected 'auto', 'bf16' or 'fp32'")
        for name, least in (("seed", 0), ("checkpoint_steps", 1), ("sample_steps", 0), ("log_steps", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**63:
                raise ValueError(f"loop.{name}: got {value!r}, expected a whole number, {least} to 2^63 - 1")
        minutes = self.checkpoint_minutes
        if not isinstance(minutes, int | float) or isinstance(minutes, bool) or not minutes >= 0:
            raise ValueError(f"loop.checkpoint_minutes: got {minutes!r}, expected a number from 0 up")


def fast_precision(device_type: str) -> str:
    """Return what ``precision="auto"`` means on this machine: ``"bf16"`` or ``"fp32"``."""
    if device_type != "cpu":
        return "bf16"
    has = torch.cpu.get_capabilities()
    return "bf16" if has.get("avx512_bf16") or has.get("amx_bf16") or has.get("bf16") else "fp32"


def learning_rate(config: StageConfig, step: int, progress: float) -> float:
    """Return the rate at ``step``: linear warm-up, then cosine from ``lr`` to 2 % of it over ``progress`` in
    [0, 1]."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


class Trainer:
    """Run one :class:`Stage` to the end of its budget.

    Parameters
    ----------
    stage, config
        What is trained and how.
    crops
        Source of batches.
    folder
        Where checkpoints, ``metrics.jsonl``, samples and curves go.
    loop
        Shared settings.
    accelerator
        ``accelerate.Accelerator``; ``None`` makes one (several processes when started by ``accelerate
        launch``).
    """

    def __init__(
        self,
        stage: Stage,
        config: StageConfig,
        crops: Crops,
        folder: Path,
        loop: LoopConfig,
        *,
        accelerator: Any = None,
    ) -> None:
        from accelerate import Accelerator

        self.stage, self.config, self.crops, self.folder, self.loop = stage, config, crops, folder, loop
        self.accelerator = accelerator or Accelerator()
        self.device = self.accelerator.device
        self.precision = fast_precision(self.device.type) if loop.precision == "auto" else loop.precision
        log.info("%s: computing in %s on %s", config.name, self.precision, self.device)
        self.checkpoints = Checkpoints(folder)
        self.step, self.elapsed_s = 0, 0.0
        for module in vars(stage).values():
            if isinstance(module, nn.Module):
                module.to(self.device)
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimisers: dict[str, torch.optim.Optimizer] = {}
        self.emas: dict[str, dict[str, Ema]] = {}
        for group, modules in stage.groups.items():
            for name, module in modules.items():
                module.train()
                module.requires_grad_(True)
                log.info(
                    "%s: training %s, %d parameters",
                    config.name,
                    name,
                    sum(p.numel() for p in module.parameters()),
                )
            params = [p for module in modules.values() for p in module.parameters()]
            self.optimisers[group] = torch.optim.AdamW(
                params, lr=config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay
            )
            self.emas[group] = {name: Ema(module, config.ema) for name, module in modules.items()}

    # --------------------------------------------------------------------------------------------------------
    # Checkpoints

    def _state(self) -> TrainingState:
        return TrainingState(self.stage.groups, self.optimisers, self.emas)

    def save(self) -> Path:
        """Write a checkpoint of this step."""
        return self.checkpoints.write(self._state().tensors(), self.step, self.elapsed_s)

    def resume(self) -> bool:
        """Load the newest checkpoint that can be read; return whether there was one."""
        found = self.checkpoints.read(self._state().misfit)
        if found is None:
            return False
        self._state().restore(found.tensors)
        self.step, self.elapsed_s = found.step, found.elapsed_s
        log.info("%s: resumed at step %d from %s", self.config.name, self.step, found.path.name)
        return True

    # --------------------------------------------------------------------------------------------------------
    # The loop

    def autocast(self) -> torch.autocast:
        """Return the precision's context. Not accelerate's: its precision is one for the whole process."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def progress(self) -> float:
        """Return the share of the budget that is used, in [0, 1]."""
        shares = [0.0]
        if self.config.steps is not None:
            shares.append(self.step / max(1, self.config.steps))
        if self.config.minutes is not None:
            shares.append(self.elapsed_s / (60 * self.config.minutes))
        return min(1.0, max(shares))

    def batch(self, index: int) -> Batch:
        acc, repeat = self.accelerator, self.config.repeat
        index = index % repeat if repeat else index
        made = self.crops.batch(index, self.config.batch, rank=acc.process_index, world=acc.num_processes)
        x_h = made.x_h.to(self.device, memory_format=torch.channels_last)
        return Batch(x_h, made.seeds)

    def run(self, *, on_step: Callable[[int], None] | None = None) -> dict[str, float]:
        """Train to the end of the budget and leave the EMA weights in the modules; return the last averaged
        metrics.

        Raises
        ------
        TrainingError
            The loss or a gradient is not finite. The last checkpoint is from before that step.
        """
        from tqdm import tqdm

        self.folder.mkdir(parents=True, exist_ok=True)
        self.resume()
        cfg, loop, main = self.config, self.loop, self.accelerator.is_main_process
        last: dict[str, float] = {}
        tick = time.monotonic()
        saved = tick
        bar = tqdm(total=cfg.steps, initial=self.step, desc=cfg.name, disable=not main, mininterval=5)
        metrics = MetricsLog(self.folder / "metrics.jsonl" if main else None)
        try:
            while self.progress() < 1.0:
                rate = learning_rate(cfg, self.step, self.progress())
                metrics.add(self._one_step(rate))
                self.step += 1
                now = time.monotonic()
                self.elapsed_s, tick = self._mean(self.elapsed_s + now - tick), now
                if self.step % loop.log_steps == 0:
                    last = self._log(metrics, rate, bar)
                bar.update(1)
                if loop.sample_steps and self.step % loop.sample_steps == 0 and main:
                    self.write_samples()
                due = now - saved > 60 * loop.checkpoint_minutes or self.step % loop.checkpoint_steps == 0
                if due and main:
                    self.save()
                    saved = now
                if on_step is not None:
                    on_step(self.step)
        finally:
            bar.close()
            metrics.close()
        if main:
            self.save()
        for group, modules in self.stage.groups.items():
            for name, module in modules.items():
                self.emas[group][name].copy_to(module)
                module.eval()
        self.stage.finish(lambda index: self.batch(10**7 + index))
        if main:
            self.write_samples()
            write_curves(self.folder / "metrics.jsonl", self.folder / "curves.png", title=cfg.name)
        return last

    def _log(self, metrics: MetricsLog, rate: float, bar: Any) -> dict[str, float]:
        """Write a row of averaged metrics and show it; return the averages."""
        images = self.step * self.config.batch * self.config.accumulate * self.accelerator.num_processes
        per_s = images / max(1e-9, self.elapsed_s)
        head = {"step": self.step, "elapsed_s": round(self.elapsed_s, 1), "lr": rate}
        last = metrics.row({**head, "images_per_s": round(per_s, 1)})
        left_s = self.elapsed_s * (1 / max(1e-6, self.progress()) - 1)
        bar.set_postfix_str(f"loss {last['loss']:.4f}, {per_s:.0f} images/s, {left_s / 60:.1f} min left")
        return last

    def _one_step(self, rate: float) -> dict[str, float]:
        cfg, acc = self.config, self.accelerator
        logs: dict[str, float] = {}
        for group, optimiser in self.optimisers.items():
            for entry in optimiser.param_groups:
                entry["lr"] = rate
            optimiser.zero_grad(set_to_none=True)
            for micro in range(cfg.accumulate):
                index = self.step * cfg.accumulate + micro
                rng = generator(self.loop.seed, cfg.name, group, index, acc.process_index)
                with self.autocast():
                    loss, more = self.stage.loss(group, self.batch(index), rng, self.step)
                value = self._mean(loss.item())
                if not math.isfinite(value):
                    raise TrainingError(self._diverged(f"loss of {group} is {value}"))
                acc.backward(loss / cfg.accumulate)
                logs.update(more)
                logs["loss" if group != "discriminator" else "loss_discriminator"] = value
            params = [p for entry in optimiser.param_groups for p in entry["params"]]
            if acc.num_processes > 1:
                average_gradients(params, acc)
            norm = float(torch.nn.utils.clip_grad_norm_(params, cfg.clip))
            if not math.isfinite(norm):
                raise TrainingError(self._diverged(f"gradient norm of {group} is {norm}"))
            optimiser.step()
            logs["gradient_norm" if group != "discriminator" else "gradient_norm_discriminator"] = norm
            for name, module in self.stage.groups[group].items():
                self.emas[group][name].update(module, self.step)
        return logs

    def _mean(self, value: float) -> float:
        """Return the mean over all processes: they then end, or fail, at the same step."""
        if self.accelerator.num_processes == 1:
            return value
        own = torch.tensor(value, dtype=torch.float64, device=self.device)  # seconds add up for days
        return float(self.accelerator.reduce(own, reduction="mean"))

    def _diverged(self, what: str) -> str:
        good = self.checkpoints.paths()
        kept = f"the last good checkpoint is {good[-1]}" if good else "there is no checkpoint yet"
        return (
            f"stage {self.config.name}, step {self.step}: {what}; stopped, {kept}. "
            f"Lower the stage's lr (now {self.config.lr}) or clip (now {self.config.clip}), "
            f"or set precision to fp32"
        )

    @torch.no_grad()
    def write_samples(self) -> Path:
        """Write ``samples/step-<n>.png``: eight fixed crops, one a row, the stage's pictures side by side."""
        probe = self.crops.batch(2**40, 8)
        batch = Batch(probe.x_h.to(self.device), probe.seeds)
        with self.autocast():
            columns = self.stage.samples(batch, generator(self.loop.seed, "samples"))
        return write_grid(columns, self.folder / "samples" / f"step-{self.step:08d}.png")


def average_gradients(params: list[nn.Parameter], accelerator: Any) -> None:
    """Average the gradients over all processes, after accumulation; they are written back in place.

    They travel in vectors of up to `_BUCKET` elements of one dtype: one all-reduce for the lite networks, a
    few dozen for Stable Diffusion's. Every process has gradients of the same parameters: which ones a stage's
    loss reaches does not depend on the batch.
    """
    buckets: list[list[torch.Tensor]] = []
    room = 0
    for grad in (p.grad for p in params if p.grad is not None):
        if grad.numel() > room or buckets[-1][0].dtype != grad.dtype:
            buckets.append([])
            room = _BUCKET
        buckets[-1].append(grad)
        room -= grad.numel()
    for grads in buckets:
        mean = accelerator.reduce(torch.cat([grad.reshape(-1) for grad in grads]), reduction="mean")
        for grad, part in zip(grads, mean.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.view(grad.shape))
