"""What an exporter knows about a model before its files are made. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from yonos_trt.engine.manifest import EngineManifest, Licence, Model, Stage, Tensor, Tiles, stage_tensors

MAX_BATCH = 32  # of what is exported; diffusers takes another path from 64 pictures on


@dataclass(frozen=True)
class ModelInfo:
    """The manifest's facts about a model, and the shapes that follow from them.

    Attributes
    ----------
    model, tiles
        As in ``manifest.json``; which file the card is in gets known when it is written.
    card
        Model card, Markdown; empty: none.
    """

    model: Model
    tiles: Tiles
    card: str = ""

    @classmethod
    def of(cls, manifest: EngineManifest, *, card: str = "") -> ModelInfo:
        """Take the facts of an engine directory."""
        return cls(manifest.model, manifest.tiles, card)

    @property
    def stage_tensors(self) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
        """Stage -> names of its (inputs, outputs)."""
        return stage_tensors(self.model.start)

    def shape(
        self, stage: str, tensor: str, *, batch: int, tile_px: tuple[int, int]
    ) -> tuple[int, int, int, int]:
        """Return the shape ``(N, channels, height, width)`` of a stage's tensor for a tile in output px."""
        if tensor != "image":
            divisor = self.model.latent_factor
        else:
            lr = stage == "encoder" and self.tiles.encoder_input == "lr"
            divisor = self.model.scale if lr else 1
        return batch, self.model.channels(tensor), tile_px[0] // divisor, tile_px[1] // divisor

    def letters(self, stage: str, tensor: str) -> tuple[int | str, ...]:
        """Return the same shape in letters: H, W are output px, h, w latent cells, lr the LR picture's."""
        if tensor != "image":
            return ("N", self.model.channels(tensor), "h", "w")
        if stage == "encoder" and self.tiles.encoder_input == "lr":
            return ("N", 3, "h_lr", "w_lr")
        return ("N", 3, "H", "W")

    def legal_tile(self, size_px: int) -> int:
        """Round a tile side to the nearest legal one at or below `size_px`, at least the smallest."""
        legal = size_px // self.tiles.multiple_px * self.tiles.multiple_px
        return min(max(legal, self.tiles.smallest_px), self.tiles.largest_px)

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


def join_licences(first: Iterable[Licence], then: Iterable[Licence]) -> tuple[Licence, ...]:
    """Put two chains together; what the second says of a part takes the place of what the first says."""
    parts: dict[str, list[Licence]] = {}
    for chain in (first, then):
        said: dict[str, list[Licence]] = {}
        for link in chain:
            said.setdefault(link.part, []).append(link)
        parts |= said
    return tuple(link for links in parts.values() for link in links)
