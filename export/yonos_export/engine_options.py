"""What the engine builder is asked for: its options, and the shapes of each stage's profile."""

from __future__ import annotations

from dataclasses import dataclass, fields

from yonos_export.config import BuildOptions, ExportConfig
from yonos_export.model_info import ModelInfo
from yonos_export.tensorrt_module import EngineRuntime
from yonos_trt.errors import ConfigError

Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


@dataclass(frozen=True, kw_only=True)
class EngineOptions(BuildOptions):
    """How to build, and for which runtime."""

    runtime: EngineRuntime


def options_from_config(config: ExportConfig) -> EngineOptions:
    """Pick the builder's options out of an export config."""
    if config.runtime == "onnx":
        raise ConfigError("runtime is 'onnx', which has no engines; expected 'tensorrt' or 'tensorrt-rtx'")
    return EngineOptions(**{field.name: getattr(config, field.name) for field in fields(EngineOptions)})


def profile_shapes(info: ModelInfo, config: ExportConfig) -> dict[str, Shapes]:
    """Return stage -> input -> (min, opt, max) shape for the tiles and batches of a config.

    Raises
    ------
    ConfigError
        A tile is not a multiple of what the model takes, or min, opt and max are not in order.
    """
    tiles = {
        "min_shape": config.min_shape or (info.tiles.smallest_px,) * 2,
        "opt_shape": config.opt_shape or (info.tiles.default_px,) * 2,
        "max_shape": config.max_shape or (info.tiles.largest_px,) * 2,
    }
    for name, tile in tiles.items():
        if any(side % info.tiles.multiple_px or side < info.tiles.smallest_px for side in tile):
            raise ConfigError(
                f"{name} is {tile[0]}x{tile[1]}; this model takes tile sides that are multiples of "
                f"{info.tiles.multiple_px} px, from {info.tiles.smallest_px} px on"
            )
    low, best, high = tiles.values()
    smallest, wanted, largest = config.batches
    if not all(a <= b <= c for a, b, c in zip(low, best, high, strict=True)):
        words = " <= ".join(f"{h}x{w}" for h, w in tiles.values())
        raise ConfigError(f"min_shape <= opt_shape <= max_shape does not hold: {words}")
    return {
        stage: {
            name: (
                info.shape(stage, name, batch=smallest, tile_px=low),
                info.shape(stage, name, batch=wanted, tile_px=best),
                info.shape(stage, name, batch=largest, tile_px=high),
            )
            for name in inputs
        }
        for stage, (inputs, _) in info.stage_tensors.items()
    }
