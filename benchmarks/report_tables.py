"""Tables and figures of the report as HTML: everything that comes from the documents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

OURS = ("onnx", "openvino", "openvino-fp32", "tensorrt", "tensorrt-rtx")
_DIGITS = {"psnr_y": 2, "fid": 2}


def _table(
    header: Sequence[str], rows: Iterable[tuple[bool, Sequence[str]]], *, label: str, extra: str = ""
) -> str:
    """Return a table in a box that scrolls sideways by itself and can be reached by keyboard."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(
        ('<tr class="ours">' if ours else "<tr>") + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        for ours, cells in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}{extra}</tbody></table></div>"
    )


def not_run_rows(missing: Mapping[str, str], columns: int) -> str:
    """Return one row per peer that was not run, with the reason."""
    return "".join(
        f'<tr class="missing"><td>{escape(name)}</td><td class="text" colspan="{columns - 1}">not run: '
        f"{escape(reason)}</td></tr>"
        for name, reason in missing.items()
    )


def speed_table(part: Mapping[str, Any]) -> str:
    """Return times, output rates and ratios of one speed run."""
    pixels = part["size_lr_px"][0] * part["size_lr_px"][1] * part["model"]["scale"] ** 2
    bases = list(dict.fromkeys(r["to"] for r in part["ratios"]))
    found = {(r["peer"], r["to"]): r for r in part["ratios"]}
    header = ["", "ms", "95 % interval", "Mpx/s", *(f"time / {base}" for base in bases)]
    rows = []
    for name, time in sorted(part["times"].items(), key=lambda item: item[1]["value"]):
        cells = [
            escape(name),
            f"{time['value']:.1f}",
            f"{time['low']:.1f} to {time['high']:.1f}",
            f"{pixels / time['value'] / 1e3:.2f}",
        ]
        for base in bases:
            ratio = found.get((name, base))
            cells.append(
                "1" if ratio is None else f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
            )
        rows.append((name in OURS, cells))
    extra = not_run_rows(part["not_run"], len(header))
    return _table(header, rows, label="Times and ratios", extra=extra)


def stage_tables(part: Mapping[str, Any]) -> str:
    """Return one table per timed combination of a `yonos bench` document."""
    percentiles = [f"p{p:g}" for p in part["options"]["percentiles"]]
    found = []
    for entry in part["entries"]:
        tile_h, tile_w = entry["tile_size_px"]
        title = (
            f"{entry['runtime']} {entry['precision']}, {entry['tiles']} tiles of {tile_h} x {tile_w} px, "
            f"batch {entry['batch']}, {entry['lanes']} lanes, {entry['threads']} threads"
        )
        header = ["", *(f"{p} ms" for p in percentiles), "share", "GFLOP", "GFLOP/s", "GB/s", "of peak"]
        rows: list[tuple[bool, list[str]]] = [
            (
                False,
                [
                    escape(stage["stage"]),
                    *(f"{stage[p + '_ms']:.2f}" for p in percentiles),
                    f"{stage['share']:.1%}",
                    *(
                        f"{stage[k]:.{d}f}" if k in stage else ""
                        for k, d in (("gflop", 2), ("gflops", 0), ("gbytes_s", 1))
                    ),
                    f"{stage['of_peak']:.0%}" if "of_peak" in stage else "",
                ],
            )
            for stage in entry["stages"]
        ]
        for kind, convention in part["conventions"].items():
            latency = entry["picture"][kind]
            if latency is not None:
                cells = [
                    "picture, " + convention.partition(":")[0],
                    *(f"{latency[p + '_ms']:.1f}" for p in percentiles),
                ]
                rows.append((True, [*cells, "", "", "", "", ""]))
        memory = entry["memory"]
        found.append(
            f"<h3>{escape(title)}</h3>"
            + _table(header, rows, label=title)
            + f"<p>Peak memory {memory['peak_rss_mib']:.0f} MiB, "
            + f"{memory['added_mib']:.0f} MiB of it while running."
            + (
                f" Beside the networks: {entry['overhead']:.1%} of the time."
                if entry["overhead"] is not None
                else ""
            )
            + "</p>"
        )
    missing = {m["runtime"]: m["reason"] for m in part["not_run"]}
    if missing:
        found.append(_table(["", "reason"], [], label="Not run", extra=not_run_rows(missing, 2)))
    return "".join(found)


def sweep_table(part: Mapping[str, Any]) -> str:
    """Return one row per point of the sweep over whole pictures."""
    header = ["", "input, px", "tiles", "batch", "lanes", "ms", "fastest to slowest", "Mpx/s", "peak MiB"]
    header += ["device MiB"]
    rows = []
    for point in part["points"]:
        ms, device = point["ms"], point["device_memory"]
        cells = [
            escape(f"{point['runtime']} {point['precision']}"),
            f"{point['height_lr_px']} x {point['width_lr_px']}",
            "{} of {} x {} px".format(point["tiles"], *point["tile_size_px"]),
            f"{point['batch']}",
            f"{point['lanes']}",
            f"{ms['value']:.1f}",
            f"{ms['low']:.1f} to {ms['high']:.1f}",
            f"{point['mpx_s']:.2f}",
            f"{point['peak_rss_mib']:.0f}",
            f"{device['peak_mib']:.0f}" if device is not None else "no GPU",
        ]
        rows.append((False, cells))
    return _table(header, rows, label="Whole pictures")


def quality_table(part: Mapping[str, Any]) -> str:
    """Return the means of one quality run, and GFLOP per output megapixel."""
    metrics = part["metrics"]
    header = ["", "set", "pictures", *metrics, "s / picture", "GFLOP / Mpx"]
    rows = []
    for mean in part["means"]:
        flop = part["gflop_per_mpx"].get(mean["method"])
        cells = [
            escape(mean["method"]),
            escape(mean["set"]),
            f"{mean['pictures']}",
            *(f"{mean[m]:.{_DIGITS.get(m, 4)}f}" if m in mean else "" for m in metrics),
            f"{mean['seconds']:.2f}",
            f"{flop:.3g}" if flop is not None else "",
        ]
        rows.append((mean["method"] in OURS, cells))
    return _table(header, rows, label="Quality", extra=not_run_rows(part["not_run"], len(header)))


def picture_table(part: Mapping[str, Any]) -> str:
    """Return one row per picture and method."""
    metrics = part["metrics"]
    rows = [
        (
            row["method"] in OURS,
            [
                escape(row["method"]),
                f"{escape(row['set'])}/{escape(row['name'])}",
                *(f"{row[m]:.{_DIGITS.get(m, 4)}f}" if m in row else "" for m in metrics),
            ],
        )
        for row in part["pictures"]
    ]
    return _table(["", "picture", *metrics], rows, label="Every picture")


def machine_list(part: Mapping[str, Any]) -> str:
    """Return the machine, versions and peaks of a document as a list."""
    machine, peaks = part["machine"], part.get("peaks")
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}",
        f"instructions: {', '.join(machine['instructions'])}",
        f"GPU: {machine['gpu'] or 'none'}",
        f"{versions}, Python {machine['python']}",
        f"load before the run: {machine['load_1min']}",
    ]
    if peaks:
        probes = peaks.get("probe", {"fp32": "NumPy's matrix product"})
        rates = peaks.get("gflops", {"fp32": peaks.get("matmul_gflops", 0.0)})
        lines += [
            f"measured peak in {precision}: {rate:.0f} GFLOP/s ({probes[precision]})"
            for precision, rate in rates.items()
        ]
        lines.append(f"measured peak of copying: {peaks['copy_gbytes_s']:.1f} GB/s")
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"
