"""Which models a benchmark takes: named engine directories, or those that ship."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from yonos_trt.backends.choose import find_model, shipped_models
from yonos_trt.engine.manifest import load_manifest


def engine_or_shipped(engine_dir: Path | None, scale: int) -> Path:
    """Return the engine directory or shipped model that was named, or the shipped model of that scale."""
    found = find_model(engine_dir) if engine_dir else shipped_models().get(f"lite-x{scale}")
    if found is None:
        raise click.ClickException(f"no shipped model enlarges by {scale}; name one with --engine DIR")
    return found


def engines_or_shipped(engine_dirs: Sequence[Path], scales: Sequence[int]) -> list[Path]:
    """Return what was named, in that order; every shipped model by rising scale if nothing was."""
    named = [*map(find_model, engine_dirs), *(engine_or_shipped(None, scale) for scale in scales)]
    if named:
        return named
    shipped = {load_manifest(path, verify=False).model.scale: path for path in shipped_models().values()}
    if not shipped:
        raise click.ClickException("no model ships with this package; name one with --engine DIR")
    return [shipped[scale] for scale in sorted(shipped)]


def bundle_for(bundles: Iterable[Path], scale: int) -> Path | None:
    """Return the first checkpoint of that scale, or the first that does not say its scale."""
    unknown = None
    for bundle in bundles:
        try:
            says = json.loads((bundle / "config.json").read_text(encoding="utf-8")).get("scale")
        except (OSError, ValueError):
            says = None
        if says == scale:
            return bundle
        unknown = unknown or (bundle if says is None else None)
    return unknown
