"""`yonos bench`: latency per stage, throughput, and the machine's own peaks, measured in one run."""

from __future__ import annotations

from yonos_trt.bench.run import CONVENTIONS, BenchConfig, measure

__all__ = ["CONVENTIONS", "BenchConfig", "measure"]
