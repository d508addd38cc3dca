"""Arithmetic of the peers per megapixel of output, counted from their graphs, not measured."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from benchmarks.ncnn_peer import MODELS, weights_stem
from benchmarks.peer_types import NotRun, Setting
from yonos_trt.bench.flops import count_flop

# Separable Keys bicubic: four taps in each direction, three channels, a multiplication and an addition each.
_BICUBIC_GFLOP_PER_MPX = 2 * (4 + 4) * 3 * 1e-3


def gflop_per_mpx(setting: Setting, names: Iterable[str]) -> dict[str, float]:
    """Return GFLOP per 10^6 output pixels of every named peer; overlaps of tiles are not counted."""
    found = {}
    for name in names:
        if name == "bicubic":
            found[name] = _BICUBIC_GFLOP_PER_MPX
        elif name in MODELS:
            try:
                found[name] = ncnn_gflop_per_mpx(weights_stem(MODELS[name]).with_suffix(".param"))
            except NotRun:
                continue
        else:
            found[name] = _ours(setting.engine_dir)
    return found


@cache
def _ours(engine_dir: Path) -> float:
    manifest = Setting(engine_dir).manifest
    model, side = manifest.model, manifest.tiles.default_px
    cut = model.scale if manifest.tiles.encoder_input == "lr" else 1
    latent = (1, model.latent_channels, side // model.latent_factor, side // model.latent_factor)
    shapes = {
        "encoder": {"image": (1, 3, side // cut, side // cut)},
        "step": {"noise": latent, "z_l": latent},
        "decoder": {"z_0": latent},
    }
    flop = 0
    for name, stage in manifest.stages.items():
        flop += count_flop(engine_dir / stage.find("onnx")[0].file, shapes[name])
    return flop / side**2 * 1e-3


def ncnn_gflop_per_mpx(param: Path) -> float:
    """Return the convolutions' GFLOP per 10^6 output pixels of a network in ncnn's text format.

    A line is: type, name, number of inputs and outputs, their names, then ``id=value`` pairs. A convolution's
    pair 6 is its number of weights; an enlargement's pairs 1 and 2 (or a pixel shuffle's 0) are its factors.
    """
    scale: dict[str, float] = {}
    flop = 0.0
    last = 1.0
    for line in param.read_text(encoding="ascii").splitlines()[2:]:
        kind, _, inputs, outputs, *rest = line.split()
        names, pairs = rest[: int(inputs) + int(outputs)], rest[int(inputs) + int(outputs) :]
        values = dict(pair.split("=", 1) for pair in pairs)
        last = max((scale[name] for name in names[: int(inputs)]), default=1.0)
        if kind == "Interp":
            last *= float(values["1"])
        elif kind == "PixelShuffle":
            last *= float(values["0"])
        elif kind == "Convolution":
            flop += 2.0 * int(values["6"]) * last**2
        scale |= dict.fromkeys(names[int(inputs) :], last)
    return flop / last**2 * 1e-3
