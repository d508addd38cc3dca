"""What is checked before a run's first step: that it goes on with what it was, and has what all stages need.

Each stage's folder says in ``stage.json`` what it is trained with; a bundle's manifest states the same later.
So a finished stage goes on with all of it, a begun one with all but its budget and its optimiser's settings.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any, Final, Protocol

from .data import picture_files
from .folders import RunFileError
from .presets import RunConfig
from .stages import StageConfig


class Run(Protocol):
    """What is checked: a `yonos_train.run.Run`."""

    config: RunConfig
    folder: Path
    data: str
    limit: int

    def is_done(self, stage: StageConfig) -> bool:
        """Return whether the stage's result is there."""
        ...

    def rehearse(self, stages: list[StageConfig]) -> None:
        """Build every stage, without training it."""
        ...


RECORD: Final = "stage.json"
# What a begun stage may go on with another value of.
_FREE: Final = ("steps", "minutes", "lr", "warmup_steps", "weight_decay", "clip", "ema")
_PACKAGES: Final = ("accelerate", "matplotlib", "safetensors", "scipy")


# ----------------------------------------------------------------------------------------------------------
# What a stage is trained with


def stage_record(run: Run, stage: StageConfig) -> dict[str, Any]:
    """Return what `check_same` and `check_run` compare: settings and pictures, JSON-ready."""
    return {**_settings(run.config, stage), "data": _pictures(run)}


def _settings(config: RunConfig, stage: StageConfig) -> dict[str, Any]:
    crops = {key: value for key, value in dataclasses.asdict(config.crops).items() if key != "crop_px"}
    settings = {"stage": dataclasses.asdict(stage), "seed": config.loop.seed, "crops": crops}
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def _pictures(run: Run) -> dict[str, Any]:
    """Return how many files the data are, and a hash of their names in the folder and their sizes."""
    root = Path(run.data)
    digest, files = hashlib.sha256(), picture_files(root, limit=run.limit)
    for path in files:
        name = path.relative_to(root).as_posix()
        digest.update(f"{name}\0{path.stat().st_size}\n".encode("utf-8", "surrogateescape"))
    return {"folder": str(root.absolute()), "files": len(files), "sha256": digest.hexdigest()}


def _changes(old: dict[str, Any], new: dict[str, Any], where: str = "") -> list[tuple[str, Any, Any]]:
    """Return (field, old, new) of what differs, ``loss.lpips_alex`` and the like for what lies deeper."""
    found: list[tuple[str, Any, Any]] = []
    for key in dict.fromkeys((*old, *new)):
        was, now = old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            found += _changes(was, now, f"{where}{key}.")
        elif was != now or (key in old) != (key in new):
            found.append((f"{where}{key}", was, now))
    return found


def check_same(run: Run, old: RunConfig | None) -> None:
    """Refuse another config than that of the run folder's networks and of its finished or begun stages.

    Raises
    ------
    RunFileError
        Names the stage, the field, its value then and now.
    """
    if old is not None:
        for name in ("architecture", "schedule", "name", "base", "start", "learn_context"):
            if getattr(old, name) != getattr(run.config, name):
                raise RunFileError(
                    f"{run.folder / 'config.json'}: this run was started with {name} = "
                    f"{getattr(old, name)}, now {getattr(run.config, name)}; use another run folder"
                )
        starts = [c.training.get("start", {}).get("weights_sha256") for c in (old, run.config)]
        if None not in starts and starts[0] != starts[1]:
            raise RunFileError(
                f"{run.folder / 'config.json'}: this run was started from {old.start} with weights_sha256 "
                f"{starts[0]}, which now has {starts[1]}; use another run folder"
            )
    for stage in run.config.stages:
        before = _read_record(run, stage, old)
        if before is not None:
            now = _settings(run.config, stage)
            _refuse(run, stage, _changes({k: before[k] for k in now if k in before}, now))


def _read_record(run: Run, stage: StageConfig, old: RunConfig | None) -> dict[str, Any] | None:
    """Return what a stage was trained with: its own record, or the run's config of before; None: nothing."""
    file = run.folder / stage.name / RECORD
    if file.is_file():
        try:
            record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            known = {field.name: field.default for field in dataclasses.fields(StageConfig)}
            plain = {k: v for k, v in known.items() if v is not dataclasses.MISSING}
            record["stage"] = {**plain, **record["stage"]}  # fields that are younger than the record
            return record
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunFileError(
                f"{file}: cannot be read ({error!r}); remove {file.parent} to train the stage again"
            ) from error
    begun = [s for s in (old.stages if old is not None else ()) if s.name == stage.name]
    if old is not None and begun and (run.is_done(stage) or _checkpoints(run, stage)):
        return _settings(old, begun[0])
    return None


def _checkpoints(run: Run, stage: StageConfig) -> bool:
    return any((run.folder / stage.name).glob("checkpoint-*.safetensors"))


def _refuse(run: Run, stage: StageConfig, changes: list[tuple[str, Any, Any]]) -> None:
    """Raise for the changes that the stage's state forbids; without a checkpoint there are none."""
    done = run.is_done(stage)
    if not done and not _checkpoints(run, stage):
        return
    free = () if done else tuple(f"stage.{name}" for name in _FREE)
    wrong = [
        f"{field.removeprefix('stage.')} was {json.dumps(was)}, now {json.dumps(now)}"
        for field, was, now in changes
        if field not in free
    ]
    if wrong:
        raise RunFileError(
            f"{run.folder}: stage {stage.name} is {'finished' if done else 'begun'}, and its "
            f"{'; '.join(wrong)}. Give it what it was trained with (--set {stage.name}.FIELD=VALUE for this "
            f"stage alone), use another run folder, or remove {run.folder / stage.name} to train it again"
        )


# ----------------------------------------------------------------------------------------------------------
# What the machine gives


def training_speed(seconds: float = 1.0) -> dict[str, Any]:
    """Measure, for about ``seconds``, how fast this machine trains the lite U-Net at 128 px crops.

    Returns
    -------
    dict
        ``precision`` (what ``"auto"`` means here), ``threads``, and ``images_per_s`` of forward and backward
        on four crops' latents; a stage's own figure is lower, by its crops, losses and other networks.
    """
    import torch

    from .loop import fast_precision
    from .model import BundleConfig, new_bundle
    from .presets import PRESETS

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = fast_precision(device.type)
    arch = PRESETS["lite"].architecture
    unet = new_bundle(BundleConfig("speed", 4, arch)).unet.to(device).train()
    x = torch.randn(4, 2 * arch.latent_channels, 32, 32, device=device)
    start, done = math.inf, 0
    while done == 0 or time.monotonic() - start < seconds:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = unet(x, torch.ones(4, device=device)).float().square().mean()
        loss.backward()
        loss.item()
        if start == math.inf:
            start = time.monotonic()  # the first pass is the slow one
        else:
            done += len(x)
    rate = done / (time.monotonic() - start)
    return {"precision": precision, "threads": torch.get_num_threads(), "images_per_s": round(rate, 1)}


# ----------------------------------------------------------------------------------------------------------
# What the stages need


def check_run(run: Run, todo: list[StageConfig]) -> None:
    """Refuse now what would fail later: weights, pictures, folders, earlier stages, packages.

    Parameters
    ----------
    todo
        The stages that are to be trained.

    Raises
    ------
    ValueError
        Says what is missing, and for which stage.
    OSError
        A folder cannot be written.
    """
    pictures = _pictures(run)
    for stage in run.config.stages:
        before = _read_record(run, stage, None)
        if before is not None and (was := before.get("data", pictures))["sha256"] != pictures["sha256"]:
            old, new = (f"{data['files']} files of {data['folder']}" for data in (was, pictures))
            _refuse(run, stage, [("data", old, new)])
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"training needs the package {package!r}; install it with: pip install -c constraints.txt "
                "'.[train]' (in the checkout of yonos-trt: the package index has none)"
            )
    _check_order(run, todo)
    _check_folders(run, todo)
    run.rehearse(todo)


def _check_order(run: Run, todo: list[StageConfig]) -> None:
    """Refuse a stage that rests on one which is neither finished nor trained before it."""
    stages, there = run.config.stages, set[str]()
    for index, stage in enumerate(stages):
        if stage in todo:
            earlier = stages[:index]
            needed = [[name] for name in (stage.init, stage.teacher) if name is not None]
            needed.append([s.name for s in earlier if s.kind == "autoencoder"])
            if stage.kind != "diffusion":
                needed.append([s.name for s in earlier if s.kind == "diffusion" and s.scale == stage.scale])
            for names in needed:
                if names and not there.intersection(names):
                    raise ValueError(
                        f"stage {stage.name} rests on {' or '.join(names)}, which is not trained; add "
                        f"--stage {names[0]}, or leave --stage out"
                    )
        if stage in todo or run.is_done(stage):
            there.add(stage.name)


def _check_folders(run: Run, todo: list[StageConfig]) -> None:
    """Refuse folders, and files in them, that cannot be written."""
    folders = [run.folder, run.folder / "bundles"]
    for stage in todo:
        folder = run.folder / stage.name
        folders += [folder, folder / "samples"]
        metrics = folder / "metrics.jsonl"
        if metrics.exists() and not (metrics.is_file() and os.access(metrics, os.W_OK)):
            raise PermissionError(13, "cannot be written", str(metrics))
        if isinstance(kept := stage.loss.get("references"), str):
            folders.append(Path(kept))
    for folder in folders:
        check_writable(folder)


def check_writable(folder: Path) -> None:
    """Make a file in the folder, or in the nearest one above it that exists, and remove it.

    Raises
    ------
    OSError
        That cannot be done; names the folder.
    """
    nearest = folder.absolute()
    while not nearest.exists() and not nearest.is_symlink():
        nearest = nearest.parent
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(nearest)) from error
