"""What an exporter knows about a model: facts for shapes and for the manifest. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import msgspec

from yonos_trt.engine.manifest import (
    EngineManifest,
    Licence,
    Model,
    Origin,
    Stage,
    Tensor,
    Tiles,
    stage_tensors,
)

MAX_BATCH = 32  # of what is exported; diffusers takes another path from 64 pictures on


@dataclass(frozen=True)
class ModelInfo:
    """Facts for shapes and the manifest; units as in the manifest (tiles in output px).

    Attributes
    ----------
    name, scale, latent_channels, latent_factor
        As in ``manifest.json``: s = scale, C, f.
    timestep, alpha_1, sigma_1
        The one step, as the network saw it in training.
    smallest_px, default_px, largest_px, multiple_px, overlap_px
        Legal tiles.
    encoder_input
        ``"upsampled"`` or ``"lr"``.
    training, licence
        Free facts for the manifest: what was trained on what, under which terms.
    card
        Model card, Markdown; empty: none.
    restore
        Default of the model's dial; None: it has none.
    start
        ``"noise"``, or ``"latent"``: the step begins at z_l itself and takes no noise.
    output_channels
        Channels of z_0 where they are not those of z_l.
    color_fix
        What the model was made for; None: the run time's default.
    origin
        Where a model of others comes from.
    """

    name: str
    scale: int
    latent_channels: int
    latent_factor: int
    timestep: float
    alpha_1: float
    sigma_1: float
    smallest_px: int
    default_px: int
    largest_px: int
    multiple_px: int
    overlap_px: int
    encoder_input: Literal["upsampled", "lr"] = "upsampled"
    training: dict[str, Any] = field(default_factory=dict)
    licence: dict[str, Any] = field(default_factory=dict)
    card: str = ""
    restore: float | None = None
    start: Literal["noise", "latent"] = "noise"
    output_channels: int | None = None
    color_fix: Literal["wavelet", "adain", "none"] | None = None
    origin: Origin | None = None

    @property
    def stage_tensors(self) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
        """Stage -> names of its (inputs, outputs)."""
        return stage_tensors(self.start)

    def channels(self, tensor: str) -> int:
        """Return the channels of ``image``, ``noise``, ``z_l`` or ``z_0``."""
        return self.model("").channels(tensor)

    def shape(
        self, stage: str, tensor: str, *, batch: int, tile_px: tuple[int, int]
    ) -> tuple[int, int, int, int]:
        """Return the shape ``(N, channels, height, width)`` of a stage's tensor for a tile in output px."""
        if tensor != "image":
            divisor = self.latent_factor
        else:
            lr = stage == "encoder" and self.encoder_input == "lr"
            divisor = self.scale if lr else 1
        return batch, self.channels(tensor), tile_px[0] // divisor, tile_px[1] // divisor

    def letters(self, stage: str, tensor: str) -> tuple[int | str, ...]:
        """Return the same shape in letters: H, W are output px, h, w latent cells, lr the LR picture's."""
        if tensor != "image":
            return ("N", self.channels(tensor), "h", "w")
        if stage == "encoder" and self.encoder_input == "lr":
            return ("N", 3, "h_lr", "w_lr")
        return ("N", 3, "H", "W")

    def legal_tile(self, size_px: int) -> int:
        """Round a tile side to the nearest legal one at or below `size_px`, at least the smallest."""
        legal = size_px // self.multiple_px * self.multiple_px
        return min(max(legal, self.smallest_px), self.largest_px)

    def tiles(self) -> Tiles:
        """Return the manifest's tiles."""
        return Tiles(**{name: getattr(self, name) for name in Tiles.__struct_fields__})

    def model(self, weights_sha256: str) -> Model:
        """Return the manifest's model, without the card's file."""
        facts: dict[str, Any] = {name: getattr(self, name, None) for name in Model.__struct_fields__}
        facts |= {"weights_sha256": weights_sha256, "licences": licence_chain(self.licence), "card": None}
        return Model(**facts)

    def stage(self, name: str) -> Stage:
        """Return the manifest's stage without artifacts; its tensors are always float32."""
        inputs, outputs = self.stage_tensors[name]
        return Stage(
            inputs=tuple(Tensor(name=n, shape=self.letters(name, n)) for n in inputs),
            outputs=tuple(Tensor(name=n, shape=self.letters(name, n)) for n in outputs),
            artifacts=(),
        )


def licence_chain(facts: Mapping[str, Any]) -> tuple[Licence, ...]:
    """Turn a checkpoint's licence facts into the manifest's chain.

    A fact is ``part: terms`` or ``part: {"licence": terms, "source": where}``, or a list of either; whatever
    else is in there is kept as text, so that nothing a checkpoint says about its licences gets lost.
    """
    chain: list[Licence] = []
    for part, fact in facts.items():
        for item in fact if isinstance(fact, list | tuple) else [fact]:
            if isinstance(item, Mapping):
                rest = [f"{k}: {v}" for k, v in item.items() if k not in ("licence", "source")]
                source = "; ".join(str(x) for x in (item.get("source"), *rest) if x)
                chain.append(
                    Licence(part=str(part), licence=str(item.get("licence", "not stated")), source=source)
                )
            else:
                chain.append(Licence(part=str(part), licence=str(item)))
    return tuple(chain)


def info_from_manifest(manifest: EngineManifest, *, card: str = "") -> ModelInfo:
    """Read the facts back from an engine directory."""
    model, tiles = manifest.model, manifest.tiles
    licence: dict[str, Any] = {}
    for link in model.licences:
        licence.setdefault(link.part, []).append({"licence": link.licence, "source": link.source})
    facts = msgspec.structs.asdict(model) | msgspec.structs.asdict(tiles)
    return ModelInfo(
        **{field.name: facts[field.name] for field in fields(ModelInfo) if field.name in facts}
        | {"licence": licence, "card": card}
    )
