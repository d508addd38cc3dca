"""Measure how good the pictures are: ours at every runtime, bicubic, and the peers.

::

    python -m benchmarks.quality FOLDER [--engine DIR]... [--degradation bicubic,realesrgan] [--out STEM]

FOLDER has sets ``<set>/HR`` with, where there are any, ``<set>/LR``; or is one set; or is a folder of
pictures. LR pictures that are not there are made from the HR ones with a fixed seed, so every peer sees the
same pixels. The metrics are `yonos_train.evaluate`'s: PSNR and SSIM on luma, LPIPS and DISTS where their
weights are named. Every picture's row is kept.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from yonos_train.data import SUFFIXES
from yonos_train.evaluate import EvaluationError, Pair, Report, evaluate, whole_pairs
from yonos_train.metrics import HIGHER_IS_BETTER, PAIR_METRICS, MetricError, Metrics

from benchmarks.alternate import estimate
from benchmarks.flops import gflop_per_mpx
from benchmarks.machine import command_line, describe_model, header
from benchmarks.models import engines_or_shipped
from benchmarks.peer_types import Setting, Upscaler
from benchmarks.peers import SPEED_ONLY, open_peers
from yonos_trt.host import usable_cpus

_PEERS = ("bicubic", "onnx", "openvino", "realesrgan-x4plus", "realesr-animevideov3")
_UNITS = {"psnr_y": "dB"}


def pairs_of(
    folder: Path, scale: int, degradation: str, *, sets: Sequence[str] = (), limit: int = 0
) -> list[Pair]:
    """Return the pairs of a folder of sets, of one set, or of a folder of HR pictures.

    Raises
    ------
    EvaluationError
        There are no pictures.
    """
    plain = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not plain:
        pairs = whole_pairs(folder, scale, sets=sets, degradation=degradation, limit=limit)
        # given LR files stand for the bicubic degradation; another one is made from the HR pictures
        return pairs if degradation == "bicubic" else [_made(pair) for pair in pairs]
    return [
        Pair(folder.name, path.stem, path, None, scale, degradation=degradation, seed=(0, index))
        for index, path in enumerate(plain[: limit or None])
    ]


def _made(pair: Pair) -> Pair:
    return Pair(pair.set, pair.name, pair.hr, None, pair.scale, degradation=pair.degradation, seed=pair.seed)


def measure(
    upscalers: Mapping[str, Upscaler],
    pairs: Sequence[Pair],
    metrics: Metrics,
    *,
    save: Path | None = None,
    progress: Callable[[Iterable[Pair]], Iterable[Pair]] = iter,
) -> Report:
    """Run `yonos_train.evaluate` once; peers that are timed only are refused.

    Raises
    ------
    ValueError
        One of the peers makes no pictures.
    EvaluationError, MetricError
        As `evaluate` says.
    """
    if wrong := sorted(SPEED_ONLY & set(upscalers)):
        raise ValueError(f"{', '.join(wrong)} make no pictures; they are measured by benchmarks.speed")
    return evaluate(upscalers, pairs, metrics, save=save, progress=progress)


def part_of(report: Report, *, model: str, degradation: str) -> dict[str, Any]:
    """Return a report as a document part with rows for `benchmarks.compare`."""
    rows = []
    for mean in report.means:
        own = [r for r in report.rows if r["method"] == mean["method"] and mean["set"] in (r["set"], "all")]
        for metric in report.metrics:
            if metric not in own[0]:
                continue
            found = estimate([row[metric] for row in own])
            rows.append(
                {
                    "key": f"quality/{model}/{degradation}/{mean['set']}/{mean['method']}/{metric}",
                    "value": mean[metric],
                    # between two runs on the same pictures there is no sampling noise: rounding is all
                    "low": mean[metric] - 1e-4,
                    "high": mean[metric] + 1e-4,
                    "median": found.value,
                    "median_low": found.low,
                    "median_high": found.high,
                    "unit": _UNITS.get(metric, ""),
                    "better": "higher" if metric in HIGHER_IS_BETTER else "lower",
                }
            )
    return {
        "degradation": degradation,
        "metrics": list(report.metrics),
        "pictures": report.rows,
        "means": report.means,
        "rows": rows,
    }


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--engine",
    "engine_dirs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="May be repeated; default: every shipped model.",
)
@click.option("--scale", "scales", multiple=True, type=int, help="Shipped models; may be repeated.")
@click.option("--peers", default=",".join(_PEERS), show_default=True, help="Comma-separated.")
@click.option("--sets", default="", help="Comma-separated names of sets; default: all.")
@click.option("--degradation", "degradations", default="bicubic,realesrgan", show_default=True)
@click.option("--weights", multiple=True, metavar="NAME=FILE", help="lpips_alex, lpips_vgg, dists.")
@click.option("--limit", default=0, help="First so many pictures of each set; 0: all.")
@click.option("--threads", type=int, help="Default: all usable CPUs.")
@click.option("--out", "stem", type=click.Path(path_type=Path), help="Write STEM.json and STEM.md.")
@click.option("--save", type=click.Path(path_type=Path), help="Keep the pictures in this folder.")
@click.option("--note", default="", help="Said in the document.")
def main(
    folder: Path,
    engine_dirs: Sequence[Path],
    scales: Sequence[int],
    peers: str,
    sets: str,
    degradations: str,
    weights: Sequence[str],
    limit: int,
    threads: int | None,
    stem: Path | None,
    save: Path | None,
    note: str,
) -> None:
    """Measure upscalers on the pictures of FOLDER."""
    logging.basicConfig(level=logging.WARNING)
    named = dict(pair.split("=", 1) for pair in weights if "=" in pair)
    engines = engines_or_shipped(engine_dirs, scales)
    try:
        metrics = Metrics(_metrics(named), weights=named)
        parts, text = [], []
        for engine_dir in engines:
            setting = Setting(engine_dir, threads=threads or usable_cpus())
            manifest = setting.manifest  # once: the directory may be replaced while this runs
            model = manifest.model
            upscalers, missing = open_peers([p.strip() for p in peers.split(",")], setting)
            for degradation in degradations.split(","):
                pairs = pairs_of(
                    folder, model.scale, degradation, sets=[s for s in sets.split(",") if s], limit=limit
                )
                kept = save / model.name / degradation if save else None
                report = measure(upscalers, pairs, metrics, save=kept)
                part = {
                    **header("quality", command_line("benchmarks.quality"), peaks=False),
                    "model": describe_model(manifest),
                    "note": note,
                    "not_run": missing,
                    "gflop_per_mpx": gflop_per_mpx(setting, [*upscalers]),
                    **part_of(report, model=model.name, degradation=degradation),
                }
                parts.append(part)
                text.append(f"## {model.name}, degradation {degradation}\n\n{report.to_markdown()}")
                text += [f"{name}: not run, {reason}\n" for name, reason in missing.items()]
                click.echo("\n" + "\n".join(text[-1 - len(missing) :]))
    except (EvaluationError, MetricError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    if stem is not None:
        document = {"kind": "parts", "parts": parts}
        Path(f"{stem}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        Path(f"{stem}.md").write_text("\n".join(text), encoding="utf-8")


def _metrics(weights: Mapping[str, str]) -> tuple[str, ...]:
    """Return the metrics that need no weights, and those whose weights are there."""
    needs = {"lpips_alex": ("lpips_alex",), "lpips_vgg": ("lpips_vgg",), "dists": ("lpips_vgg", "dists")}
    return tuple(m for m in PAIR_METRICS if all(w in weights for w in needs.get(m, ())))


if __name__ == "__main__":
    main()
