"""LoRA weights as PEFT lays them out in a state dictionary, merged into the layers they belong to.

``NAME.lora_A.ADAPTER.weight`` and ``NAME.lora_B.ADAPTER.weight`` change the layer NAME by
``alpha / rank * B A``; a layer that was also trained itself is there as ``NAME.base_layer.weight``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from yonos_export.families.files import require_keys
from yonos_trt.errors import ConfigError

ALPHA = 8  # PEFT's default, which the published models' code leaves as it is
_KEY = re.compile(r"(?P<layer>.+)\.lora_(?P<side>[AB])\.(?P<adapter>[^.]+)\.weight")


@dataclass(frozen=True)
class Lora:
    """One adapter's share of one layer: A ``(rank, ...)``, B ``(out, rank, ...)``."""

    a: Tensor
    b: Tensor

    def change(self, shape: torch.Size, strength: float) -> Tensor:
        """Return ``strength * B A`` in the layer's shape."""
        return strength * (self.b.flatten(1) @ self.a.flatten(1)).reshape(shape)


def split(tensors: Mapping[str, Tensor], where: str) -> tuple[dict[str, dict[str, Lora]], dict[str, Tensor]]:
    """Return adapter -> layer -> `Lora`, and all other tensors under their layers' own names.

    Raises
    ------
    ConfigError
        One of a pair is missing, or has fewer than two dimensions.
    """
    halves: dict[tuple[str, str], dict[str, Tensor]] = {}
    others = {}
    for key, tensor in tensors.items():
        if match := _KEY.fullmatch(key):
            halves.setdefault((match["adapter"], match["layer"]), {})[match["side"]] = tensor
        else:
            others[key.replace(".base_layer.", ".")] = tensor
    found: dict[str, dict[str, Lora]] = {}
    for (adapter, layer), sides in halves.items():
        require_keys(sides, "AB", f"{where}: {layer} ({adapter})", "lora_A and lora_B")
        if flat := [tuple(side.shape) for side in sides.values() if side.ndim < 2]:
            raise ConfigError(
                f"{where}: a LoRA weight of {layer} is {flat[0]}, expected at least two dimensions"
            )
        found.setdefault(adapter, {})[layer] = Lora(sides["A"], sides["B"])
    return found, others


def check_layers(found: Mapping[str, Lora], listed: object, network: nn.Module, where: str) -> None:
    """Hold the layers that have LoRA weights against those that the file says it adapted.

    PEFT takes a name in the list for every layer that is called so, or ends with a dot and it.

    Raises
    ------
    ConfigError
        The list is none, or layers are missing or too many.
    """
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise ConfigError(f"{where}: the list of adapted layers is {type(listed).__name__}, expected names")
    names, suffixes = set(listed), tuple("." + name for name in listed)
    expected = [
        name
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and (name in names or name.endswith(suffixes or ("\0",)))
    ]
    unknown = [name for name in names if not any(e == name or e.endswith("." + name) for e in expected)]
    if unknown:
        require_keys(
            unknown, (), f"{where}: the base model", "the layers that the file adapts: another base?"
        )
    require_keys(found, expected, where, "LoRA weights of exactly the layers that the file lists")


def read_adapters(
    tensors: Mapping[str, Tensor], network: nn.Module, adapters: Mapping[str, tuple[object, int]], where: str
) -> tuple[dict[str, dict[str, Lora]], dict[str, Tensor]]:
    """Return what `split` does, once every adapter is what its file says of it.

    Parameters
    ----------
    adapters
        Name -> (the list of layers, the rank), from the file.

    Raises
    ------
    ConfigError
        Adapters or layers are missing or too many, or have another rank.
    """
    loras, others = split(tensors, where)
    require_keys(loras, adapters, where, "the adapters of its authors' code")
    for name, (listed, rank) in adapters.items():
        check_layers(loras[name], listed, network, f"{where} ({name})")
        for layer, lora in loras[name].items():
            if lora.a.shape[0] != rank:
                raise ConfigError(f"{where}: {layer} has rank {lora.a.shape[0]}, the file says {rank}")
    return loras, others


def rank_of(document: Mapping[str, object], key: str, where: str) -> int:
    """Return an adapter's rank, which is a whole number from 1 up, or refuse it."""
    rank = document[key]
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= 4096:
        raise ConfigError(f"{where}: {key} is {rank!r}, expected a whole number from 1 to 4096")
    return rank


def merge(
    network: nn.Module,
    loras: Iterable[tuple[Mapping[str, Lora], float]],
    others: Mapping[str, Tensor],
    where: str,
) -> None:
    """Put trained layers into the network, then add every adapter's change; the network itself is changed.

    Parameters
    ----------
    loras
        ``(layer -> weights, strength)``: strength is ``alpha / rank`` times what the caller wants.
    others
        Tensors that replace the network's own.

    Raises
    ------
    ConfigError
        A layer is not there or has another shape: the weights belong to another base model.
    """
    own = dict(network.named_parameters())
    with torch.no_grad():
        for name, tensor in others.items():
            if name not in own:
                raise ConfigError(f"{where}: the base model has no {name}; is it the base of these weights?")
            if own[name].shape != tensor.shape:
                raise ConfigError(
                    f"{where}: {name} is {tuple(tensor.shape)}, the base model's is {tuple(own[name].shape)}"
                    "; is it the base of these weights?"
                )
            own[name].copy_(tensor)
        for adapter, strength in loras:
            for layer, lora in adapter.items():
                weight = own.get(f"{layer}.weight")
                if weight is None:
                    raise ConfigError(f"{where}: the base model has no layer {layer}; is it the right base?")
                inner = (lora.b.shape[0], lora.b.shape[1], *lora.a.shape[1:])
                wanted = (weight.shape[0], lora.a.shape[0], *weight.shape[1:])
                if inner != wanted or lora.b[0, 0].numel() != 1:
                    raise ConfigError(
                        f"{where}: the LoRA weights of {layer}, {tuple(lora.b.shape)} and "
                        f"{tuple(lora.a.shape)}, are not for a layer of shape {tuple(weight.shape)}, which "
                        "the base model has; is it the base of these weights?"
                    )
                weight.add_(lora.change(weight.shape, strength))
