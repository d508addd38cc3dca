"""The figures of `yonos_trt.bench`: spread of the latencies, rates, and rows to compare documents by."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from yonos_trt.bench.flops import count_flop
from yonos_trt.bench.peaks import Peaks
from yonos_trt.engine.manifest import EngineManifest, stage_tensors
from yonos_trt.pipeline import STAGES, Timings
from yonos_trt.tiles.plan import TilePlan

_log = logging.getLogger(__name__)

NETWORKS = {"encode": "encoder", "step": "step", "decode": "decoder"}
_NORMAL_95 = 1.96  # two-sided 95 % quantile of the normal distribution


class Samples(Timings):
    """Keep every single duration beside the sums."""

    def __init__(self) -> None:
        super().__init__()
        self.each: dict[str, list[float]] = {stage: [] for stage in STAGES}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time the body of the ``with``."""
        start = time.perf_counter()
        with super().__call__(stage):
            yield
        self.each[stage].append(time.perf_counter() - start)


def latency(seconds: Sequence[float], percentiles: Sequence[float], pixels: int) -> dict[str, Any]:
    """Return the spread of whole pictures and the rates that follow from their sum."""
    rate = len(seconds) / sum(seconds)
    return {**_spread(seconds, percentiles), "images_s": rate, "mpx_s": rate * pixels / 1e6}


def _spread(seconds: Sequence[float], percentiles: Sequence[float]) -> dict[str, Any]:
    """Return count, mean, minimum, percentiles and the distribution-free 95 % interval of the median."""
    ordered = np.sort(np.asarray(seconds)) * 1e3
    count = len(ordered)
    reach = _NORMAL_95 * count**0.5 / 2
    low, high = max(0, int(count / 2 - reach)), min(count - 1, int(np.ceil(count / 2 + reach)))
    return {
        "samples": count,
        "mean_ms": float(ordered.mean()),
        "min_ms": float(ordered[0]),
        **{f"p{p:g}_ms": float(np.percentile(ordered, p)) for p in percentiles},
        "median_ms": float(np.median(ordered)),
        "median_low_ms": float(ordered[low]),
        "median_high_ms": float(ordered[high]),
    }


def stage_table(
    samples: Samples,
    manifest: EngineManifest,
    plan: TilePlan,
    peaks: Peaks,
    percentiles: Sequence[float],
    *,
    precision: str,
    graphs: Path | None,
) -> list[dict[str, Any]]:
    """Return one entry per stage: latencies, share, and rates beside the machine's peaks.

    The networks' rate is their arithmetic over the median time, against the peak of the `precision` they
    compute in; that of gather, noise and blend is the bytes they have to move at least, against the large
    copy. Without a measured peak of that precision there is a rate and no share. `graphs` is the engine
    directory whose ONNX graphs say what the arithmetic is; None leaves it out.
    """
    flop = _flop(graphs, manifest, plan) if graphs is not None else {}
    moved = _moved_bytes(manifest, plan)
    total = sum(samples.seconds.values())
    peak = peaks.best(precision)
    found = []
    for stage in STAGES:
        seconds = samples.each[stage]
        if not seconds:
            continue
        entry = {
            "stage": stage,
            **_spread(seconds, percentiles),
            "share": samples.seconds[stage] / total,
            "batches_s": len(seconds) / sum(seconds),
        }
        median_s = entry["median_ms"] / 1e3
        if stage in flop and median_s:
            rate = flop[stage] / median_s / 1e9
            entry |= {"gflop": flop[stage] / 1e9, "gflops": rate}
            if peak is not None:
                entry["of_peak"] = rate / peak.gflops
        if stage in moved and median_s:
            rate = moved[stage] / median_s / 1e9
            entry |= {"gbytes": moved[stage] / 1e9, "gbytes_s": rate, "of_peak": rate / peaks.copy_gbytes_s}
        found.append(entry)
    return found


def _flop(engine_dir: Path, manifest: EngineManifest, plan: TilePlan) -> dict[str, int]:
    """Return the operations of one batch per network; empty where the directory has no ONNX graph."""
    model, n = manifest.model, plan.batch
    cut = model.scale if manifest.tiles.encoder_input == "lr" else 1
    image = (n, 3, plan.tile_h_px // cut, plan.tile_w_px // cut)
    h_lat, w_lat = plan.tile_h_px // model.latent_factor, plan.tile_w_px // model.latent_factor
    shapes = {
        "encode": {"image": image},
        "step": {
            name: (n, model.channels(name), h_lat, w_lat) for name in stage_tensors(model.start)["step"][0]
        },
        "decode": {"z_0": (n, model.channels("z_0"), h_lat, w_lat)},
    }
    counted = {}
    for stage, name in NETWORKS.items():
        graphs = getattr(manifest.stages, name).find("onnx")
        if not graphs:
            _log.warning("no ONNX graph for the stage %s: its arithmetic is not counted", name)
            continue
        counted[stage] = count_flop(engine_dir / graphs[0].file, shapes[stage])
    return counted


def _moved_bytes(manifest: EngineManifest, plan: TilePlan) -> dict[str, int]:
    """Return the bytes one call has to move at least: arrays read and written once, float32."""
    model = manifest.model
    tile = 12 * plan.batch * plan.tile_h_px * plan.tile_w_px
    cut = model.scale**2 if manifest.tiles.encoder_input == "lr" else 1
    noise_channels = model.latent_channels if model.start == "noise" else 0
    return {
        "gather": tile // cut + tile // 4 // model.scale**2,
        "noise": tile // 3 * noise_channels // model.latent_factor**2,
        "blend": 3 * tile,
    }


# ---------------------------------------------------------------------------------------------------------
# Rows for comparing two documents


def rows(model: str, entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what `benchmarks.compare` matches between two documents: medians and peak memory."""
    where = (
        f"bench/{model}/{entry['runtime']} {entry['precision']}/tile {entry['tile_px']} "
        f"batch {entry['batch']} lanes {entry['lanes']} threads {entry['threads']}"
    )
    named = [(stage["stage"], stage) for stage in entry["stages"]]
    for name, found in [*named, ("picture", entry["picture"]["with_transfers"])]:
        yield {
            "key": f"{where}/{name} p50",
            "value": found["median_ms"],
            "low": found["median_low_ms"],
            "high": found["median_high_ms"],
            "unit": "ms",
            "better": "lower",
        }
    yield {
        "key": f"{where}/peak memory",
        "value": entry["memory"]["peak_rss_mib"],
        "unit": "MiB",
        "better": "lower",
    }
