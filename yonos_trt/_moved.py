"""Import paths of 0.1 before the modules moved into rooms; they work until 0.2.

An old module hands out what the new ones hold, and importing it warns (DeprecationWarning).
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

MOVED = {
    "backend": "backends.base backends.host backends.numpy tiles.kernels tiles.plan",
    "bench.cli": "cli.bench",
    "bicubic": "tiles.bicubic",
    "child": "host",
    "claims": "cli.claims",
    "color": "tiles.color",
    "color_cells": "tiles.color_cells",
    "dlpack": "images.dlpack",
    "doctor": "cli.doctor",
    "file_stages": "cli.file_stages",
    "finish": "backends.base backends.host",
    "host_cpus": "host",
    "host_memory": "host",
    "job_outcome": "cli.job_outcome",
    "job_run": "cli.job_run",
    "jobs": "cli.jobs",
    "lanes": "cuda.lanes",
    "manifest": "engine.manifest",
    "memory": "trt.memory",
    "noise": "tiles.noise",
    "onnx_graph": "engine.onnx_graph",
    "options": "cli.options",
    "ort": "backends.ort",
    "ov": "backends.openvino",
    "progress": "cli.progress",
    "restore": "engine.restore",
    "runtimes": "backends.choose",
    "schema": "engine.schema",
    "telemetry": "backends.telemetry",
    "tile_batches": "tiles.plan",
    "tiling": "tiles.plan tiles.kernels tiles.bicubic",
    "upscaled": "images.upscaled",
    "video.cli": "cli.video",
    "video.nvcodec": "video.nvidia.nvcodec",
    "video.nvdec": "video.nvidia.nvdec",
    "video.nvenc": "video.nvidia.nvenc",
}
"""Old module -> the new ones, all below `yonos_trt`."""


class Finder:
    """Finds the old modules; asked after every other finder."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> Any:
        package, _, old = name.partition(".")
        loader: Any = Finder()
        return type(__spec__)(name, loader) if package == "yonos_trt" and old in MOVED else None

    def create_module(self, spec: Any) -> None:
        """Leave that to the import system."""

    def exec_module(self, module: ModuleType) -> None:
        """Look names up in the new modules."""
        import importlib
        import warnings

        old = module.__name__.partition(".")[2]
        homes = [f"yonos_trt.{new}" for new in MOVED[old].split()]
        warnings.warn(f"{module.__name__} is now {', '.join(homes)}", DeprecationWarning, stacklevel=2)

        def lookup(name: str) -> Any:
            if not name.startswith("__"):
                for home in homes:
                    if hasattr(found := importlib.import_module(home), name):
                        return getattr(found, name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        vars(module)["__getattr__"] = lookup


sys.meta_path.append(Finder)
