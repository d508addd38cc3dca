"""Presets: each is one table of stages. The run's config is the preset with what the command line changed."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .data import CropConfig
from .folders import RunFileError
from .loop import LoopConfig
from .model import BundleConfig, LiteConfig
from .schedule import Schedule
from .stages import StageConfig

# Kinds of stages after which a bundle is complete.
SHIPPING = ("decoder", "one_step_pixels")


@dataclass(frozen=True)
class RunConfig:
    """A whole run: networks, data, stages. Saved as ``config.json`` in the run folder.

    Attributes
    ----------
    name
        Base name of the models; one bundle ``<name>-x<scale>`` a scale.
    architecture, schedule
        Networks and noise schedule.
    crops, loop
        Data and loop settings (``crops.crop_px`` is each stage's own).
    stages
        In the order they run.
    tile_px, overlap_px
        Written into the bundles: default tile and overlap at inference, output pixels.
    training, licence, card
        Written into the bundles for the manifests.
    base
        Local diffusers folder to start from (``sd``); None: the lite networks of ``architecture``.
    learn_context
        Train the constant prompt embedding too (``sd``).
    start
        Bundle, engine directory or shipped model (``"lite-x{scale}"``) whose networks the run starts from, in
        place of random ones; no ``autoencoder`` stages then, and ``diffusion`` only from a bundle: a shipped
        model or engine directory knows t = 1 alone. Schedule and what the encoder reads are the start's.
    """

    name: str = "lite"
    architecture: LiteConfig = field(default_factory=LiteConfig)
    schedule: Schedule = field(default_factory=Schedule)
    crops: CropConfig = field(default_factory=CropConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    stages: tuple[StageConfig, ...] = ()
    tile_px: int = 512
    overlap_px: int = 64
    training: dict[str, Any] = field(default_factory=dict)
    licence: dict[str, Any] = field(default_factory=dict)
    card: str = ""
    base: str | None = None
    learn_context: bool = False
    start: str | None = None

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if self.start is not None and self.base is not None:
            raise ValueError(f"start got {self.start!r} and base {self.base!r}, expected one of them")
        if len(set(names)) != len(names):
            raise ValueError(f"stages: got names {names}, expected each once")
        for stage in self.stages:
            if self.start is not None and stage.kind == "autoencoder":
                raise ValueError(
                    f"stage {stage.name}: kind got {stage.kind!r} in a run that starts from {self.start!r}, "
                    f"which has its autoencoder; expected one_step_pixels, diffusion, decoder, encoder or "
                    f"small_decoder"
                )
            if self.base is not None and stage.kind == "autoencoder":
                raise ValueError(
                    f"stage {stage.name}: a run from a diffusers folder has its autoencoder; expected "
                    f"diffusion, decoder, encoder and small_decoder stages"
                )
            if stage.kind == "decoder" and stage.network:
                if self.base is not None:
                    raise ValueError(
                        f"stage {stage.name}: network got {', '.join(stage.network)}, expected nothing; a "
                        f"diffusers folder's decoder stays as it is"
                    )
                dataclasses.replace(self.architecture, **stage.network)  # refuses what does not go together
        for index, stage in enumerate(self.stages):
            for needed in (stage.init, stage.teacher):
                if needed is not None and needed not in names[:index]:
                    raise ValueError(f"stage {stage.name}: needs {needed!r}, which is not an earlier stage")
            if stage.crop_px % self.architecture.multiple_px or (stage.scale and stage.crop_px % stage.scale):
                raise ValueError(
                    f"stage {stage.name}: crop_px got {stage.crop_px}, expected a multiple of "
                    f"{self.architecture.multiple_px} and of the scale"
                )

    def ships(self, stage: StageConfig) -> bool:
        """Return whether the stage ends with a bundle: a U-Net does where the start has the rest."""
        return stage.kind in SHIPPING or (self.start is not None and stage.kind == "diffusion")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> RunConfig:
        raw = json.loads(text)
        arch = raw.pop("architecture")
        arch["unet_widths"] = tuple(arch["unet_widths"])
        return cls(
            architecture=LiteConfig(**arch),
            schedule=Schedule(**raw.pop("schedule")),
            crops=CropConfig(**raw.pop("crops")),
            loop=LoopConfig(**raw.pop("loop")),
            stages=tuple(StageConfig(**stage) for stage in raw.pop("stages")),
            **raw,
        )

    @classmethod
    def load(cls, path: Path) -> RunConfig:
        """Read a run's ``config.json``.

        Raises
        ------
        RunFileError
            It is none, or of another version; the message names the file.
        """
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunFileError(
                f"{path}: not a run's config ({error!r}); expected what `yonos-train --dry-run` prints"
            ) from error

    def bundle_config(self, scale: int) -> BundleConfig:
        """Return the config of the bundle for ``scale``."""
        return BundleConfig(
            name=f"{self.name}-x{scale}",
            scale=scale,
            architecture=self.architecture,
            schedule=self.schedule,
            tile_px=self.tile_px,
            overlap_px=self.overlap_px,
            training=self.training,
            licence=self.licence,
            card=self.card,
        )


# Mixed perceptual networks: a loss on one of them alone games that one's score and leaves a repeated texture.
_PERCEPTUAL = {"l1": 1.0, "gradient": 0.3, "lpips_alex": 0.25, "lpips_vgg": 0.25, "vgg_share": 0.375}
ADVERSARIAL = {**_PERCEPTUAL, "gan": 0.1, "disc_start": 1000}
_FROM_TUNED = {**ADVERSARIAL, "disc_start": 0}  # a decoder that starts from the x4 one
# Where a decoder invents texture (x4, x8): without the filter it leaves stripes of 2 px in skies and water.
_ANTI_IMAGING = {"decoder_anti_imaging": True}


def _lite(steps: dict[str, int]) -> tuple[StageConfig, ...]:
    def decoder(name: str, scale: int, loss: dict[str, Any], **more: Any) -> StageConfig:
        settings = {"batch": 8, "lr": 4e-4, **more, "network": dict(more.get("network", {}))}
        return StageConfig(name, "decoder", scale, steps=steps[name], loss=dict(loss), **settings)

    return (
        StageConfig("autoencoder", "autoencoder", steps=steps["autoencoder"], lr=1e-3),
        StageConfig("x2", "diffusion", 2, steps=steps["x2"], lr=1e-3),
        StageConfig("x4", "diffusion", 4, init="x2", teacher="x2", steps=steps["x4"], lr=7e-4),
        StageConfig("x8", "diffusion", 8, init="x4", teacher="x4", steps=steps["x8"], lr=7e-4),
        # The U-Nets that the models ship. As teachers the ones above are good enough; these go on from them,
        # on the one step that the product makes.
        *(
            StageConfig(
                f"x{scale}-final",
                "diffusion",
                scale,
                init=f"x{scale}",
                steps=steps[f"x{scale}-final"],
                lr=7e-4,
                loss={"one_probability": 1.0},
            )
            for scale in (2, 4, 8)
        ),
        decoder("decoder-x4", 4, ADVERSARIAL, lr=5e-4, network=_ANTI_IMAGING),
        # With a new discriminator: against an old one the decoder keeps the patterns that it got through.
        decoder("decoder-x4-final", 4, _FROM_TUNED, init="decoder-x4", network=_ANTI_IMAGING),
        # At x2 nearly everything is in the latents: a decoder that starts from the x4 one, which has learnt
        # to invent, stays worse in every metric than one from the autoencoder's. No discriminator.
        decoder("decoder-x2", 2, _PERCEPTUAL),
        decoder("decoder-x8", 8, _FROM_TUNED, init="decoder-x4", network=_ANTI_IMAGING),
        *(
            StageConfig(f"encoder-x{scale}", "encoder", scale, steps=steps[f"encoder-x{scale}"], lr=1e-3)
            for scale in (2, 4, 8)
        ),
    )


# As the shipped models were trained. Steps, not minutes: the learning rate then does not follow the clock,
# and a busy machine trains as much as an idle one.
_LITE_STEPS: dict[str, int] = {
    "autoencoder": 4500,
    "x2": 2500,
    "x4": 2500,
    "x8": 2000,
    "x2-final": 6000,
    "x4-final": 5000,
    "x8-final": 3000,
    "decoder-x4": 3500,
    "decoder-x4-final": 600,
    "decoder-x2": 2000,
    "decoder-x8": 1500,
    "encoder-x2": 1000,
    "encoder-x4": 1000,
    "encoder-x8": 1000,
}

_SD: dict[str, Any] = {"batch": 4, "accumulate": 16, "crop_px": 512, "lr": 5e-5, "warmup_steps": 500}
_SD_STAGES = (
    StageConfig("x2", "diffusion", 2, steps=10_000, degradation="realesrgan", **_SD),
    StageConfig("x4", "diffusion", 4, init="x2", teacher="x2", steps=10_000, degradation="realesrgan", **_SD),
    StageConfig("x8", "diffusion", 8, init="x4", teacher="x4", steps=10_000, degradation="average", **_SD),
    *(
        StageConfig(
            f"decoder-x{s}",
            "decoder",
            s,
            steps=20_000,
            degradation="average" if s == 8 else "realesrgan",
            loss={"l1": 1.0, "gradient": 0.0, "lpips_vgg": 1.0, "gan": 0.5, "disc_start": 5_000},
            **_SD,
        )
        for s in (2, 4, 8)
    ),
    # In the autoencoder's place: its arithmetic is four times that of the one U-Net call (docs/training.md).
    *(
        StageConfig(f"encoder-x{s}", "encoder", s, steps=20_000, network={"encoder_blocks": 6}, **_SD)
        for s in (2, 4, 8)
    ),
    *(
        StageConfig(
            f"small-decoder-x{s}",
            "small_decoder",
            s,
            steps=20_000,
            loss={"l1": 1.0, "gradient": 0.3, "lpips_vgg": 0.5},
            network={"decoder_width": 96, "decoder_blocks": 8},
            **_SD,
        )
        for s in (2, 4, 8)
    ),
)

PRESETS: dict[str, RunConfig] = {
    "lite": RunConfig(stages=_lite(_LITE_STEPS)),
    # Stable Diffusion 1.x / 2.x; --base names the local diffusers folder. Needs a GPU; not run by us yet.
    "sd": RunConfig(name="sd", stages=_SD_STAGES, tile_px=512, overlap_px=64),
    # Two steps of every stage on tiny networks: proves that a run goes through, in seconds.
    "smoke": RunConfig(
        name="smoke",
        architecture=LiteConfig(4, 4, 8, 1, 8, 1, 8, 1, (8, 16), 1, 16),
        loop=LoopConfig(log_steps=1, sample_steps=2),
        stages=(
            StageConfig("autoencoder", "autoencoder", steps=2, batch=2, crop_px=64),
            StageConfig("x2", "diffusion", 2, steps=2, batch=2, crop_px=64),
            StageConfig("x4", "diffusion", 4, init="x2", teacher="x2", steps=2, batch=2, crop_px=64),
            StageConfig("x8", "diffusion", 8, init="x4", teacher="x4", steps=2, batch=2, crop_px=64),
            *(
                StageConfig(f"{kind}-x{s}", kind, s, steps=2, batch=2, crop_px=64)
                for kind in ("decoder", "encoder")
                for s in (2, 4, 8)
            ),
        ),
    ),
}
