"""`yonos models`: what can be named with ``-n`` and ``-m``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from yonos_trt.cli import options
from yonos_trt.errors import ConfigError

_CLASSES = ((64 << 20, "light"), (1 << 30, "medium"))
_TIMED_PX = 256  # side of the result that --measure makes: one small tile


@click.command(short_help="List the models that can be named.")
@click.argument("folders", nargs=-1, type=options.LocalPath(), metavar="[FOLDER]...")
@click.option("--measure", is_flag=True, help="Time each one on this machine, on one small picture.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models(folders: tuple[Path, ...], measure: bool, as_json: bool) -> None:
    """List the shipped models, and the engine directories in FOLDER: name, factor, size, speed and look.

    The speed is a class by the size of the weights: light (below 64 MiB) runs on any CPU, medium (below
    1 GiB) wants many cores or a GPU, heavy wants a GPU. --measure replaces it by seconds per megapixel of
    the result. The look is what the model's manifest says about its training.
    """
    from yonos_trt.backends.choose import shipped_models
    from yonos_trt.sr import SR

    found = dict(shipped_models())
    for folder in folders:
        inside = {str(path.parent): path.parent for path in sorted(folder.glob("*/manifest.json"))}
        if (folder / "manifest.json").exists():
            inside[str(folder)] = folder
        if not inside:
            raise ConfigError(f"{folder} holds no engine directory; expected folders with a manifest.json")
        found |= inside
    facts = []
    for name, path in found.items():
        with SR(path).open() if measure else SR(path) as sr:
            facts.append(_facts(name, sr.info()) | ({"s_per_mpx": _measured(sr)} if measure else {}))
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    width = max(4, *(len(x["name"]) for x in facts)) if facts else 4
    click.echo(f"{'name':<{width}}  factor  {'size':>10}  {'speed':<10}  look")
    for x in facts:
        speed = f"{x['s_per_mpx']:.1f} s/Mpx" if measure else x["speed"]
        size = f"{x['bytes'] / 2**20:.1f} MiB"
        click.echo(f"{x['name']:<{width}}  {'x' + str(x['scale']):<6}  {size:>10}  {speed:<10}  {x['look']}")


def _facts(name: str, info: dict[str, Any]) -> dict[str, Any]:
    """Return what is told about a model; the bytes are those of one artifact a stage."""
    weights = sum(max((a["bytes"] for a in stage), default=0) for stage in info["artifacts"].values())
    speed = next((label for limit, label in _CLASSES if weights < limit), "heavy")
    return {"name": name, "scale": info["scale"], "bytes": weights, "speed": speed, "look": _look(info)}


def _look(info: dict[str, Any]) -> str:
    """Say in a few words what results look like, from what the manifest says about the training."""
    stages = info["training"].get("stages")
    stages = [s for s in stages.values() if isinstance(s, dict)] if isinstance(stages, dict) else []
    losses = {name for stage in stages if isinstance(stage.get("loss"), dict) for name in stage["loss"]}
    words = []
    if info["origin"] is not None:
        words.append(f"as {info['origin']['family']}")
    if "gan" in losses:
        words.append("crisp, with added texture")
    elif any(name.startswith(("lpips", "dists")) for name in losses):
        words.append("natural, little added texture")
    elif stages:
        words.append("smooth")
    if any(stage.get("degradation", "bicubic") != "bicubic" for stage in stages):
        words.append("trained on damaged pictures too")
    if info["restore"] is not None:
        words.append(f"dial --restore 0 to 1 (default {info['restore']:g})")
    return "; ".join(words) or "not said"


def _measured(sr: Any) -> float:
    """Return the seconds a megapixel of the result takes, on the second of two small pictures."""
    import numpy as np

    side = max(1, _TIMED_PX // sr.scale)
    image = np.zeros((side, side, 3), np.uint8)
    sr.upscale(image)
    began = time.perf_counter()
    sr.upscale(image)
    seconds = time.perf_counter() - began
    return float(round(seconds * 1e6 / (side * sr.scale) ** 2, 2))
