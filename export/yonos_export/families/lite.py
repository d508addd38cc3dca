"""A checkpoint folder of ``yonos-train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from yonos_export.source import Source
from yonos_export.stages import stages_from_bundle
from yonos_trt.errors import ConfigError

if TYPE_CHECKING:
    from yonos_export.config import ExportConfig
    from yonos_export.families import Family


def open_family(family: Family, config: ExportConfig) -> Source:
    """Load the folder."""
    return open_folder(config.source)


def open_folder(folder: Path) -> Source:
    """Load a checkpoint folder.

    Raises
    ------
    ConfigError
        The folder is something else, or its files do not fit together.
    """
    from yonos_train.model import load_bundle

    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} has no config.json; expected a checkpoint folder of yonos-train")
    try:
        bundle = load_bundle(folder)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{folder} cannot be loaded as a checkpoint: {error}") from error
    return Source.of(stages_from_bundle(bundle), folder)
