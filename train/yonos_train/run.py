"""A whole training run: the preset's stages in order, each resumable, and a bundle folder a scale at the end.

<run>/config.json                          what was run
<run>/<stage>/stage.json                   what it is trained with
<run>/<stage>/checkpoint-*.safetensors     to resume from
<run>/<stage>/{metrics.jsonl, samples/, curves.png}
<run>/<stage>/<module>.safetensors         the stage's result (EMA weights); its presence means: done
<run>/bundles/<name>-x<scale>/             what yonos-export takes, after a decoder stage
<run>/bundles/<name>-x<scale>-lr/          the same with an encoder for LR pictures, after an encoder stage;
                                           ``-small`` with a small decoder, ``-lr-small`` with both
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from yonos_trt.atomic import atomic_directory, remove_leftovers, write_file

from .checkpoints import Checkpoints
from .data import Crops, ImageFolder
from .engine_weights import load_start, require_times
from .folders import save_tensors, share_equal_files
from .loop import Trainer, TrainingError
from .model import Bundle, new_bundle, save_bundle, weights_sha256, with_decoder
from .preflight import RECORD, check_run, check_same, stage_record
from .presets import RunConfig
from .small import PARTS, SIZES, SUFFIXES, make_small, save_small, with_small
from .stages import (
    AutoencoderStage,
    DecoderStage,
    DiffusionStage,
    EncoderStage,
    OneStepPixelsStage,
    SmallDecoderStage,
    Stage,
    StageConfig,
    frozen_copy,
)

log = logging.getLogger(__name__)


class Run:
    """A run folder and its config.

    Parameters
    ----------
    config
        The run's config. Where the folder has a run already: the same networks, and for every finished
        stage the same settings; what is begun may change its budget and its optimiser's settings.
    folder
        Created when missing.
    data
        Image folder.
    weights
        Paths of perceptual networks by name: ``lpips_alex``, ``lpips_vgg``.
    limit
        Use only so many images (0: all).
    """

    def __init__(
        self,
        config: RunConfig,
        folder: str | os.PathLike[str],
        *,
        data: str,
        weights: dict[str, str],
        limit: int = 0,
    ) -> None:
        self.config, self.folder, self.data = config, Path(folder), data
        self.weights, self.limit = weights, limit
        self._images: ImageFolder | None = None
        self._rehearsal: dict[int, Bundle] | None = None
        known = self.folder / "config.json"
        old = RunConfig.load(known) if known.is_file() else None
        check_same(self, old)
        self.folder.mkdir(parents=True, exist_ok=True)
        if old != config:
            write_file(known, config.to_json())

    @property
    def images(self) -> ImageFolder:
        """The training pictures, decoded at first use."""
        if self._images is None:
            crop = max(stage.crop_px for stage in self.config.stages)
            self._images = ImageFolder(self.data, smallest_px=crop, limit=self.limit)
            log.info("%s: %d pictures, %d skipped", self.data, len(self._images), len(self._images.skipped))
        return self._images

    def result(self, stage: str, module: str) -> Path:
        """Return the path of a stage's trained module."""
        return self.folder / stage / f"{module}.safetensors"

    def is_done(self, stage: StageConfig) -> bool:
        """Return whether the stage's result is there."""
        return all(self.result(stage.name, name).is_file() for name in _RESULTS[stage.kind])

    def _load(self, stage: str, name: str, into: nn.Module) -> nn.Module:
        """Load a stage's result; `rehearse` leaves it out."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if self._rehearsal is not None:
            return into
        path = self.result(stage, name)
        try:
            into.load_state_dict(load_file(path))
        except FileNotFoundError as error:
            raise TrainingError(f"{path}: not found; train the stage {stage} first") from error
        except (SafetensorError, RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())
            raise TrainingError(
                f"{path} cannot be used: {reason}. Remove it to finish the stage {stage} again from its last "
                f"checkpoint"
            ) from error
        return into

    def _named(self, name: str) -> StageConfig:
        return next(stage for stage in self.config.stages if stage.name == name)

    def fresh(self, scale: int) -> Bundle:
        """Return the networks for ``scale`` as a run starts: random, or those of ``start`` or ``base``."""
        run = self.config
        if run.start is not None and scale:
            bundle = load_start(run.start, scale)
            own = run.bundle_config(scale)
            kept = ("architecture", "schedule", "encoder_input", "smallest_tile_px", "largest_tile_px")
            own = dataclasses.replace(
                own,
                **{name: getattr(bundle.config, name) for name in kept},
                training={"start": {"model": bundle.config.name}, **run.training},
            )
            return dataclasses.replace(bundle, config=own)
        if run.base is None:
            return new_bundle(run.bundle_config(scale))
        if self._rehearsal is not None and scale in self._rehearsal:
            return dataclasses.replace(self._rehearsal[scale])
        from .sd_folder import load_sd

        bundle = load_sd(
            run.base, scale, small=False, name=f"{run.name}-x{scale}", learn_context=run.learn_context
        )
        if self._rehearsal is not None:
            self._rehearsal = {scale: bundle}  # one at a time: they are large
        facts = {key: getattr(run, key) for key in ("training", "licence", "card") if getattr(run, key)}
        bundle.config = dataclasses.replace(bundle.config, **facts)
        return bundle

    def bundle(self, scale: int) -> Bundle:
        """Return the networks for ``scale`` as far as finished stages have them; later results win."""
        bundle = self.fresh(scale)
        for stage in self.config.stages:
            if self.is_done(stage) and stage.scale in (0, scale) and stage.kind not in SIZES:
                if stage.kind == "decoder":
                    bundle = with_decoder(bundle, stage.network)
                for name in _RESULTS[stage.kind]:
                    self._load(stage.name, name, getattr(bundle, name))
        return bundle

    def small_bundle(self, scale: int) -> Bundle:
        """Return :meth:`bundle` with the finished small networks in their places."""
        bundle = self.bundle(scale)
        for kind, stage in self._small_stages(scale).items():
            small = make_small(kind, bundle, stage.network)
            self._load(stage.name, PARTS[kind], small)
            bundle = with_small(kind, bundle, small, stage.network)
        return bundle

    def _small_stages(self, scale: int) -> dict[str, StageConfig]:
        """Return the last finished stage of each kind that trains small networks."""
        done = [stage for stage in self.config.stages if stage.scale == scale and self.is_done(stage)]
        last = {stage.kind: stage for stage in done}
        return {kind: last[kind] for kind in SIZES if kind in last}

    def build(self, config: StageConfig) -> Stage:
        """Make the stage's modules from the earlier stages' results."""
        bundle = self.bundle(config.scale)
        if config.init is not None:
            for name in _RESULTS[self._named(config.init).kind]:
                self._load(config.init, name, getattr(bundle, name))
        if config.kind == "autoencoder":
            return AutoencoderStage(config, bundle)
        if config.kind == "diffusion":
            if self.config.start is not None:
                require_times(self.config.start, config.scale)
            teacher, scale = None, None
            if config.teacher is not None:
                scale = self._named(config.teacher).scale
                teacher = frozen_copy(self._load(config.teacher, "unet", self.fresh(config.scale).unet))
            return DiffusionStage(config, bundle, teacher=teacher, teacher_scale=scale)
        if config.kind == "decoder":
            return DecoderStage(config, with_decoder(bundle, config.network), weights=self.weights)
        if config.kind == "one_step_pixels":
            return OneStepPixelsStage(config, bundle, weights=self.weights)
        if config.kind == "small_decoder":
            return SmallDecoderStage(config, bundle, weights=self.weights)
        return EncoderStage(config, bundle)

    def rehearse(self, stages: list[StageConfig]) -> None:
        """Make every stage's modules without the earlier ones' results: what they lack shows now.

        Raises
        ------
        ValueError
            A stage cannot be made; the message says what it lacks.
        """
        self._rehearsal = {}
        try:
            for config in sorted(stages, key=lambda stage: stage.scale):
                try:
                    self.build(config)
                except TypeError as error:
                    raise ValueError(f"stage {config.name}: {error}") from error
        finally:
            self._rehearsal = None

    def run_stage(self, config: StageConfig) -> dict[str, float]:
        """Train one stage, write its result and the scale's bundles that it changes."""
        import torch

        torch.manual_seed(self.config.loop.seed)  # initial weights of fresh modules
        stage = self.build(config)
        crops = Crops(
            self.images,
            dataclasses.replace(self.config.crops, crop_px=config.crop_px),
            seed=self.config.loop.seed,
        )
        folder = self.folder / config.name
        trainer = Trainer(stage, config, crops, folder, self.config.loop)
        if trainer.accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)
            write_file(folder / RECORD, json.dumps(stage_record(self, config), indent=2) + "\n")
        metrics = trainer.run()
        if trainer.accelerator.is_main_process:
            trained = {n: m for modules in stage.groups.values() for n, m in modules.items()}
            for name in _RESULTS[config.kind]:
                tensors = {k: v.float() for k, v in trained[name].state_dict().items()}
                save_tensors(tensors, self.result(config.name, name))
            self._write_bundles(config)
        trainer.accelerator.wait_for_everyone()
        return metrics

    def _write_bundles(self, stage: StageConfig, *, missing: bool = False) -> None:
        """Write the bundles that a finished stage changes, or those of them that do not name it yet."""
        ships = self.config.ships(stage)
        variants = [False] if ships else []
        if (ships or stage.kind in SIZES) and self._small_stages(stage.scale):
            variants.append(True)
        for small in variants:
            folder = self._bundle_folder(stage.scale, small=small)
            if not (missing and self._is_current(folder, stage)):
                self.write_bundle(stage.scale, small=small)

    def _is_current(self, bundle: Path, stage: StageConfig) -> bool:
        """Return whether a written bundle names the stage, and says what the config says of its origins.

        One whose weights are missing or cut is not.
        """
        from safetensors import SafetensorError, safe_open

        from .sd_folder import FACTS_FILE

        own = [bundle / f"{part}.safetensors" for part in ("encoder", "unet", "decoder")]

        file = bundle / ("config.json" if self.config.base is None else FACTS_FILE)
        try:
            facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            given = {key: value for key in ("licence", "card") if (value := getattr(self.config, key))}
            same = all(facts[key] == value for key, value in given.items())
            for path in own if self.config.base is None else bundle.rglob("*.safetensors"):
                if not path.is_file():
                    return False
                with safe_open(path, framework="pt"):
                    pass  # it compares the length of the file with what it declares
            return same and stage.name in facts["training"]["stages"]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            return False

    def _bundle_folder(self, scale: int, *, small: bool) -> Path:
        """Return where a bundle lies; its name is the one that `with_small` gives its config."""
        kinds = self._small_stages(scale) if small else {}
        suffix = "".join(SUFFIXES[kind] for kind in SUFFIXES if kind in kinds)
        return self.folder / "bundles" / f"{self.config.name}-x{scale}{suffix}"

    def write_bundle(self, scale: int, *, small: bool = False) -> Path:
        """Write ``bundles/<name>-x<scale>``, or the variant with the finished small networks, whole."""
        bundle = self.bundle(scale)
        variant = self.small_bundle(scale) if small else bundle
        facts = {**bundle.config.training, **self.training_facts(scale, small=small)}
        variant.config = dataclasses.replace(variant.config, training=facts)
        target = self._bundle_folder(scale, small=small)
        with atomic_directory(target) as folder:
            if self.config.base is None:
                save_bundle(variant, folder)
                log.info("%s: weights_sha256 %s", target.name, weights_sha256(variant))
            else:
                from .sd_folder import save_sd

                bundle.config = variant.config  # the whole autoencoder, and small networks beside it
                save_sd(bundle, self.config.base, folder)
                if small:
                    save_small(variant, folder)
                    share_equal_files(folder, self._bundle_folder(scale, small=False))
        return target

    def lineage(self, scale: int, *, small: bool = False) -> list[StageConfig]:
        """Return the finished stages that the bundle for ``scale`` rests on, in order."""
        named = {stage.name: stage for stage in self.config.stages}
        wanted = {
            stage.name
            for stage in self.config.stages
            if stage.scale in (0, scale) and (small or stage.kind not in SIZES)
        }
        for stage in reversed(self.config.stages):
            if stage.name in wanted:
                wanted |= {name for name in (stage.init, stage.teacher) if name is not None}
        return [named[name] for name in named if name in wanted and self.is_done(named[name])]

    def training_facts(self, scale: int, *, small: bool = False) -> dict[str, Any]:
        """Return what the manifest says of the training: pictures, and per stage steps, minutes, settings."""
        stages = {}
        for stage in self.lineage(scale, small=small):
            step, elapsed_s = Checkpoints(self.folder / stage.name).progress()
            stages[stage.name] = {
                "kind": stage.kind,
                "steps": step,
                "minutes": round(elapsed_s / 60, 1),
                "batch": stage.batch * stage.accumulate,
                "crop_px": stage.crop_px,
                **({"degradation": stage.degradation} if stage.scale else {}),
                **({"loss": stage.loss} if stage.loss else {}),
                **({"network": stage.network} if stage.network else {}),
            }
        return {"pictures": len(self.images), "seed": self.config.loop.seed, "stages": stages}

    def run(self, only: tuple[str, ...] = ()) -> None:
        """Run all stages that are not done (or just those named ``only``).

        Raises
        ------
        ValueError
            A stage lacks something; said before the first step of the first one.
        TrainingError
            The disk is full or the loss diverged; what is done stays.
        """
        unknown = set(only) - {stage.name for stage in self.config.stages}
        if unknown:
            names = ", ".join(stage.name for stage in self.config.stages)
            raise ValueError(f"stage: got {', '.join(sorted(unknown))}, expected one of {names}")
        chosen = [stage for stage in self.config.stages if not only or stage.name in only]
        with self._disk_errors():
            check_run(self, [stage for stage in chosen if not self.is_done(stage)])
            remove_leftovers(self.folder)
            self._run(chosen)

    def _run(self, chosen: list[StageConfig]) -> None:
        from accelerate import Accelerator

        for config in chosen:
            if self.is_done(config):
                log.info("%s: done already", config.name)
                if Accelerator().is_main_process:  # it may have been stopped before its bundles were written
                    self._write_bundles(config, missing=True)
                continue
            metrics: dict[str, Any] = self.run_stage(config)
            log.info("%s: %s", config.name, ", ".join(f"{k} {v:.4g}" for k, v in metrics.items()))

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Turn what the disk refuses into a `TrainingError`."""
        from safetensors import SafetensorError

        try:
            yield
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise TrainingError(
                f"{getattr(error, 'filename', None) or self.folder}: {reason}. What is done stays: once that "
                f"is mended, the same command goes on from the last checkpoint"
            ) from error


_RESULTS: dict[str, tuple[str, ...]] = {
    "autoencoder": ("encoder", "decoder"),
    "diffusion": ("unet",),
    "decoder": ("decoder",),
    "one_step_pixels": ("encoder", "unet", "decoder"),
    "encoder": ("encoder",),
    "small_decoder": ("decoder",),
}
