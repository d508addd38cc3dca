"""Turn what pytest-benchmark wrote about `bench_pipeline` into a document like the others: `sweep_part`.

pytest-benchmark names the machine's host and repeats the machine with every row; here it is said once, and
every row keeps what was measured at its point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_POINT = (
    "runtime", "precision", "height_lr_px", "width_lr_px", "tile_px", "tile_size_px", "overlap_px", "batch",
    "lanes", "threads", "tiles", "tile_pixels_per_pixel", "mpx_s", "peak_rss_mib", "added_mib",
    "device_memory", "predicted_mib", "psnr_to_input_db",
)  # fmt: skip
_MACHINE = (
    "processor", "cores", "instructions", "clock_mhz", "memory_gib", "system", "load_1min", "python",
    "versions", "gpu",
)  # fmt: skip


def sweep_part(document: Mapping[str, Any], command: Sequence[str]) -> dict[str, Any]:
    """Return the part of kind "sweep": points, linear cost and folders, with rows for comparing.

    Raises
    ------
    ValueError
        The document holds no whole picture.
    """
    points, linear, folders, rows = [], [], [], []
    origin: Mapping[str, Any] | None = None
    for benchmark in document.get("benchmarks", []):
        facts, stats = benchmark["extra_info"], benchmark["stats"]
        name = benchmark["name"].partition("[")[0]
        if name not in ("bench_picture", "bench_cost_is_linear", "bench_folder"):
            continue
        origin = origin or facts
        model = facts["model"]["name"]
        if name == "bench_picture":
            size = f"{facts['height_lr_px']}x{facts['width_lr_px']}"
            tile = facts["tile_px"] or "default"
            key = f"sweep/{model}/{facts['runtime']}/{size}/tile {tile} batch {facts['batch']} "
            key += f"lanes {facts['lanes']}"
            ms = {k: 1e3 * stats[v] for k, v in (("value", "median"), ("low", "min"), ("high", "max"))}
            points.append({**{k: facts.get(k) for k in _POINT}, "ms": ms})
            rows.append({"key": key, **ms, "unit": "ms", "better": "lower"})
            memory = {"key": f"{key}/peak memory", "value": facts["peak_rss_mib"]}
            rows.append({**memory, "unit": "MiB", "better": "lower"})
        elif name == "bench_cost_is_linear":
            linear.append({k: facts[k] for k in ("runtime", "exponent", "sizes")})
        else:
            kept = ("files", "side_lr_px", "seconds", "over_sum_of_parts", "over_one_by_one")
            folders.append({k: facts[k] for k in kept})
            over = facts["over_sum_of_parts"]
            interval = {k: over[k] for k in ("value", "low", "high")}
            rows.append(
                {"key": f"sweep/{model}/folder over its parts", **interval, "unit": "x", "better": "lower"}
            )
    if origin is None or not points:
        raise ValueError("no whole pictures, expected the JSON of pytest-benchmark about bench_pipeline.py")
    return {
        "kind": "sweep",
        "created": document["datetime"],
        "command": list(command),
        "commit": origin["commit"],
        "machine": {name: origin[name] for name in _MACHINE},
        "model": origin["model"],
        "points": points,
        "linear": linear,
        "folders": folders,
        "rows": rows,
    }
