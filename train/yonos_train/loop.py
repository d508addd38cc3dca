"""The training loop of one stage: AdamW, warm-up and cosine, EMA, clipping, accumulation, exact resume.

Everything random in step n derives from (seed, stage, n), so a run that was cut off and resumed with a step
budget
gives the same bytes as one that was not. A checkpoint is one safetensors file (trained weights, EMA,
optimiser moments)
written beside its place and renamed; the two newest are kept.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .data import Batch, Crops, generator
from .stage import Stage, StageConfig

log = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """Training cannot go on; the message says where it stopped and which checkpoint is good."""


@dataclass(frozen=True)
class LoopConfig:
    """What all stages of a run share.

    Attributes
    ----------
    seed
        Seed of everything.
    precision
        ``"bf16"`` (autocast) or ``"fp32"``.
    checkpoint_minutes, checkpoint_steps
        A checkpoint is due after this time or this many steps, whichever is first.
    sample_steps
        A grid of samples is written every so many steps (0: only at the end).
    log_steps
        Metrics are averaged over and written every so many steps.
    """

    seed: int = 0
    precision: str = "bf16"
    checkpoint_minutes: float = 3.0
    checkpoint_steps: int = 2000
    sample_steps: int = 1000
    log_steps: int = 50

    def __post_init__(self) -> None:
        if self.precision not in ("bf16", "fp32"):
            raise ValueError(f"precision: got {self.precision!r}, expected 'bf16' or 'fp32'")


class Ema:
    """Exponential moving average of a module's parameters, with the usual warm-up ``min(decay, (1 + n) / (10
    + n))``."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        params = [p.detach() for _, p in module.named_parameters()]
        torch._foreach_lerp_(list(self.values.values()), params, weight)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        for name, p in module.named_parameters():
            p.copy_(self.values[name])


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

    def _tensors(self) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for group, modules in self.stage.groups.items():
            for name, module in modules.items():
                for key, value in module.state_dict().items():
                    out[f"{group}/{name}/weight/{key}"] = value
                for key, value in self.emas[group][name].values.items():
                    out[f"{group}/{name}/ema/{key}"] = value
            state = self.optimisers[group].state_dict()["state"]
            for index, entry in state.items():
                for key, value in entry.items():
                    out[f"{group}/optimiser/{index}/{key}"] = torch.as_tensor(value)
        return out

    def save(self) -> Path:
        """Write ``checkpoint-<step>.safetensors`` (temporary file, fsync, rename) and drop all but the two
        newest."""
        from safetensors.torch import save_file

        path = self.folder / f"checkpoint-{self.step:08d}.safetensors"
        part = path.with_suffix(".part")
        meta = {"step": str(self.step), "elapsed_s": repr(self.elapsed_s)}
        save_file(
            {k: v.detach().cpu().contiguous().clone() for k, v in self._tensors().items()},
            part,
            metadata=meta,
        )
        with open(part, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(part, path)
        for old in self.checkpoints()[:-2]:
            old.unlink()
        return path

    def checkpoints(self) -> list[Path]:
        """Return the stage's checkpoints, oldest first."""
        return sorted(self.folder.glob("checkpoint-*.safetensors"))

    def resume(self) -> bool:
        """Load the newest checkpoint that can be read; return whether there was one."""
        from safetensors import SafetensorError, safe_open

        for path in reversed(self.checkpoints()):
            try:
                with safe_open(path, framework="pt") as handle:
                    tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
                    meta = handle.metadata()
            except (SafetensorError, OSError) as error:
                log.warning("%s cannot be read (%s); trying the one before", path, error)
                continue
            self._restore(tensors)
            self.step, self.elapsed_s = int(meta["step"]), float(meta["elapsed_s"])
            log.info("%s: resumed at step %d from %s", self.config.name, self.step, path.name)
            return True
        return False

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        for group, modules in self.stage.groups.items():
            for name, module in modules.items():
                prefix = f"{group}/{name}/weight/"
                module.load_state_dict(
                    {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
                )
                for key, value in self.emas[group][name].values.items():
                    value.copy_(tensors[f"{group}/{name}/ema/{key}"])
            optimiser = self.optimisers[group]
            state: dict[int, dict[str, Tensor]] = {}
            prefix = f"{group}/optimiser/"
            for key, value in tensors.items():
                if key.startswith(prefix):
                    index, field = key[len(prefix) :].split("/", 1)
                    state.setdefault(int(index), {})[field] = value
            full = optimiser.state_dict()
            full["state"] = state
            optimiser.load_state_dict(full)

    # --------------------------------------------------------------------------------------------------------
    # The loop

    def autocast(self) -> torch.autocast:
        """Return the precision's context. Not accelerate's: its precision is one for the whole process."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.loop.precision == "bf16")

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
        acc, cfg = self.accelerator, self.config
        sums: dict[str, list[float]] = {}
        last: dict[str, float] = {}
        tick = time.monotonic()
        saved = tick
        bar = tqdm(
            total=cfg.steps, initial=self.step, desc=cfg.name, disable=not acc.is_main_process, mininterval=5
        )
        metrics = open(self.folder / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 (closed below)
        try:
            while self.progress() < 1.0:
                rate = learning_rate(cfg, self.step, self.progress())
                logs = self._one_step(rate)
                self.step += 1
                now = time.monotonic()
                self.elapsed_s, tick = self.elapsed_s + now - tick, now
                for key, value in logs.items():
                    if math.isfinite(value):
                        sums.setdefault(key, []).append(value)
                if self.step % self.loop.log_steps == 0:
                    last = {key: sum(values) / len(values) for key, values in sums.items()}
                    sums.clear()
                    per_s = (
                        self.step * cfg.batch * cfg.accumulate * acc.num_processes / max(1e-9, self.elapsed_s)
                    )
                    row = {
                        "step": self.step,
                        "elapsed_s": round(self.elapsed_s, 1),
                        "lr": rate,
                        "images_per_s": round(per_s, 1),
                    }
                    if acc.is_main_process:
                        metrics.write(json.dumps({**row, **last}) + "\n")
                        metrics.flush()
                    left_s = self.elapsed_s * (1 / max(1e-6, self.progress()) - 1)
                    bar.set_postfix_str(
                        f"loss {last['loss']:.4f}, {per_s:.0f} images/s, {left_s / 60:.1f} min left"
                    )
                bar.update(1)
                if self.loop.sample_steps and self.step % self.loop.sample_steps == 0 and acc.is_main_process:
                    self.write_samples()
                due = (
                    now - saved > 60 * self.loop.checkpoint_minutes
                    or self.step % self.loop.checkpoint_steps == 0
                )
                if due and acc.is_main_process:
                    self.save()
                    saved = now
                if on_step is not None:
                    on_step(self.step)
        finally:
            bar.close()
            metrics.close()
        if acc.is_main_process:
            self.save()
        for group, modules in self.stage.groups.items():
            for name, module in modules.items():
                self.emas[group][name].copy_to(module)
                module.eval()
        self.stage.finish(lambda index: self.batch(10**7 + index))
        if acc.is_main_process:
            self.write_samples()
            write_curves(self.folder / "metrics.jsonl", self.folder / "curves.png", title=cfg.name)
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
                value = loss.item()
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

    def _diverged(self, what: str) -> str:
        good = self.checkpoints()
        kept = f"the last good checkpoint is {good[-1]}" if good else "there is no checkpoint yet"
        return (
            f"stage {self.config.name}, step {self.step}: {what}; stopped, {kept}. "
            f"Lower the stage's lr (now {self.config.lr}) or clip (now {self.config.clip}), "
            f"or set precision to fp32"
        )

    @torch.no_grad()
    def write_samples(self) -> Path:
        """Write ``samples/step-<n>.png``: eight fixed crops, one a row, the stage's pictures side by side."""
        import numpy as np
        from PIL import Image

        probe = self.crops.batch(2**40, 8)
        batch = Batch(probe.x_h.to(self.device), probe.seeds)
        with self.autocast():
            columns = self.stage.samples(batch, generator(self.loop.seed, "samples"))
        rows = torch.cat([c.float().cpu() for c in columns], dim=3)
        pixels = ((rows.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        path = self.folder / "samples" / f"step-{self.step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.concatenate(list(pixels), axis=0)).save(path)
        return path


def average_gradients(params: list[nn.Parameter], accelerator: Any) -> None:
    """Average the gradients over all processes: one all-reduce a step, after accumulation."""
    for p in params:
        if p.grad is not None:
            p.grad = accelerator.reduce(p.grad, reduction="mean")


def write_curves(metrics: Path, target: Path, *, title: str) -> None:
    """Plot every metric of a ``metrics.jsonl`` over steps into one PNG; does nothing where no row was
    logged."""
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines() if line.strip()]
    keys = sorted({key for row in rows for key in row} - {"step", "elapsed_s", "images_per_s"})
    if not rows:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        math.ceil(len(keys) / 3), 3, figsize=(12, 2.6 * math.ceil(len(keys) / 3)), squeeze=False
    )
    for axis, key in zip(axes.flat, keys, strict=False):
        points = [(row["step"], row[key]) for row in rows if key in row]
        axis.plot(*zip(*points, strict=True), linewidth=1)
        axis.set_title(key, fontsize=9)
    for axis in list(axes.flat)[len(keys) :]:
        axis.axis("off")
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(target, dpi=100)
    plt.close(figure)
