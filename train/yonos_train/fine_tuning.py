"""``yonos-train --from``: the config of a run that goes on from a trained model."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from .engine_weights import find_start, load_start
from .model import weights_sha256
from .presets import ADVERSARIAL, RunConfig
from .stages import StageConfig

log = logging.getLogger(__name__)

NAME: Final = "tuned"
# A tenth of the rate that the networks were first trained with: they are to move, not to start again.
STEPS, LR, BATCH = 1000, 1e-4, 8


def fine_tuning(
    start: str | os.PathLike[str], *, weights: Collection[str] = (), config: RunConfig | None = None
) -> RunConfig:
    """Return the config that trains a shipped model, bundle or engine directory further.

    One stage at the model's own scale, ``pixels-x<scale>`` of kind ``one_step_pixels``: encoder, U-Net and
    decoder through the one step at t = 1, which is all that an engine directory knows. Its losses are L1,
    gradient L1 and the discriminator, and LPIPS for each network in ``weights``; without them it trains too.

    Parameters
    ----------
    start
        Bundle folder, engine directory of the lite profile, or name of a shipped model.
    weights
        Names of the perceptual networks that are there: ``lpips_alex``, ``lpips_vgg``.
    config
        Train this config's stages instead; its own ``start`` gives way.

    Raises
    ------
    FileNotFoundError
        There is no such folder or model.
    ValueError
        Not a model of the lite profile, or a stage that needs other times than t = 1.
    """
    name = os.fspath(start)
    folder = find_start(name)
    bundle = load_start(folder)
    named = str(folder.absolute()) if Path(name).exists() else name
    origin = {
        "model": bundle.config.name,
        "weights_sha256": _sha256(folder) or weights_sha256(bundle),
        "training": bundle.config.training,
    }
    licence = {f"{bundle.config.name}: {part}": terms for part, terms in bundle.config.licence.items()}
    if config is None:
        config = RunConfig(
            name=NAME,
            architecture=bundle.config.architecture,
            schedule=bundle.config.schedule,
            stages=(_stage(bundle.config.scale, weights),),
            tile_px=bundle.config.tile_px,
            overlap_px=bundle.config.overlap_px,
        )
    return dataclasses.replace(
        config,
        start=named,
        training={**config.training, "start": origin},
        licence={**licence, **config.licence},
    )


def _stage(scale: int, weights: Collection[str]) -> StageConfig:
    """Return the one stage of the plan, its losses as far as their networks are there."""
    loss: dict[str, Any] = {**ADVERSARIAL, "disc_start": 0}
    missing = [name for name in loss if name.startswith("lpips_") and name not in weights]
    for name in missing:
        del loss[name]
    if "lpips_vgg" in missing:
        del loss["vgg_share"]
    if missing:
        log.info(
            "losses without %s: no weights were given (--weights; `yonos-train weights` makes them)",
            " and ".join(missing),
        )
    return StageConfig(
        f"pixels-x{scale}", "one_step_pixels", scale, steps=STEPS, batch=BATCH, lr=LR, loss=loss
    )


def _sha256(folder: Path) -> str | None:
    """Return what the manifest of an engine directory says of its weights; None: a bundle."""
    from yonos_trt.engine.manifest import load_manifest

    if (folder / "config.json").is_file():
        return None
    return load_manifest(folder, verify=False).model.weights_sha256
