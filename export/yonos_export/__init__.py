"""Export of yonos-trt: checkpoint -> ONNX -> FP16 graphs -> TensorRT engines -> engine directory.

`export` does what the command ``yonos-export`` does; `ExportConfig` holds its options. torch, onnx and
TensorRT load when they are needed.
"""

from __future__ import annotations

from yonos_export.config import DEFAULT_THRESHOLDS, ExportConfig, Thresholds
from yonos_export.exporter import export

__all__ = ["DEFAULT_THRESHOLDS", "ExportConfig", "Thresholds", "export"]
