"""`export`: checkpoint -> graphs -> (engines) -> engine directory, all or nothing."""

from __future__ import annotations

import gc
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from yonos_export.comparison import comparison_files
from yonos_export.config import DEFAULT_THRESHOLDS, ExportConfig, Precision
from yonos_export.dial import make_dial, turned_graphs
from yonos_export.directory import Directory
from yonos_export.families import open_family, restrictive
from yonos_export.graph_file import GraphFile
from yonos_export.lock import only_builder
from yonos_export.model_info import ModelInfo, join_licences, licence_chain
from yonos_export.samples import Sample, make_samples, read_pictures
from yonos_export.source import Source, fp32_graphs, open_source
from yonos_export.verify import Chain, functions_from_onnx, gate, measure, run_chains
from yonos_trt.atomic import scratch_directory
from yonos_trt.engine.manifest import (
    MANIFEST_NAME,
    EngineManifest,
    artifact_path,
    read_file,
    write_engine_dir,
)
from yonos_trt.errors import BuildError, ConfigError, MissingExtraError

log = logging.getLogger(__name__)

# (what is being done, fraction done in 0 .. 1)
OnStage = Callable[[str, float], None]


# ---------------------------------------------------------------------------------------------------------
# The export


def export(config: ExportConfig, *, progress: OnStage | None = None) -> EngineManifest | None:
    """Export a model into an engine directory.

    Everything is made and measured in a folder beside the target; only a complete and verified directory
    takes its place. What the source directory holds already is kept when the source is an engine directory.

    Parameters
    ----------
    config
        What to do.
    progress
        Called with the name of the work and the fraction done.

    Returns
    -------
    EngineManifest or None
        The manifest as written; None for a dry run.

    Raises
    ------
    ConfigError
        The target exists (without ``force``), or the source cannot be used.
    BuildError
        A graph or an engine cannot be built, or parity fails. The old directory is untouched.
    MissingExtraError
        torch or TensorRT is needed and not installed.
    """
    report = progress or (lambda what, done: None)
    _require_packages(config)
    _check_target(config)
    if config.runtime != "onnx":
        _check_engines(config)
    with _disk_errors(config):
        if config.dry_run:
            _open(config)
            return None
        config.engine_dir.parent.mkdir(parents=True, exist_ok=True)
        with scratch_directory(config.engine_dir.parent) as work, only_builder(config.engine_dir):
            report("open", 0.0)
            return _export(config, _open(config), work, report)


def _open(config: ExportConfig) -> Source:
    """Open the source; its licences are said where they restrict, and those of ``--licence`` are added."""
    source = open_source(config.source) if config.family is None else open_family(config)
    if config.licence:
        said = dict(text.split("=", 1) for text in config.licence)
        terms = {part.strip(): term.strip() for part, term in said.items()}
        licences = join_licences(source.info.model.licences, licence_chain(terms))
        source = replace(source, info=_with(source.info, licences=licences))
    for link in source.info.model.licences:
        if config.family is not None and restrictive(link.licence):
            log.warning(
                "licence of the %s: %s%s", link.part, link.licence, f", {link.source}" if link.source else ""
            )
    return source


@contextmanager
def _disk_errors(config: ExportConfig) -> Iterator[None]:
    """Say in one of our errors what the disk refuses."""
    try:
        yield
    except OSError as error:
        where = error.filename or config.engine_dir
        raise BuildError(
            f"{where}: {error.strerror or error}; {config.engine_dir} was not written and what it held is as "
            "it was. Free space, or choose another --engine-dir"
        ) from error


def _export(config: ExportConfig, source: Source, work: Path, report: OnStage) -> EngineManifest:
    """Make everything in `work` and put it in place."""
    directory = Directory()
    if source.manifest is not None:
        _take_over(source, directory)
    report("graphs", 0.05)
    graphs = fp32_graphs(source, work, opset=config.opset, onnx_dir=config.onnx_dir)
    other = None if config.restored is None else open_source(config.restored)
    dials = _dials(config, source, other, graphs, work)
    if other is not None:
        source = replace(source, info=_with_dial(source.info, other, config.restore))
    stands = config.restore if config.restore is not None else source.info.model.restore
    samples: list[Sample] = []
    if config.verify or config.precision != "fp32":
        report("pictures", 0.15)
        samples = make_samples(source.info, config.verify_images, tile_px=config.verify_tile_px)
    expected = run_chains(source.reference(graphs), samples)
    if from_torch := source.stages is not None:
        source = replace(source, stages=None)
        gc.collect()  # torch's exporter leaves circles that hold the weights
    if source.manifest is None:
        if config.keep_fp32 or config.precision == "fp32":
            for stage, graph in graphs.items():
                directory.add_graph(stage, graph, "fp32")
        if config.verify and from_torch:
            report("parity fp32", 0.2)
            limits = config.limits if config.precision == "fp32" else DEFAULT_THRESHOLDS["fp32"]
            candidate = {stage: graph.path for stage, graph in graphs.items()}
            figures = measure(expected, functions_from_onnx(candidate), samples)
            gate(figures, limits, what="the FP32 graph")
            directory.add_parity("fp32", figures)
    for stage, dial in dials.items():
        directory.add_dial(stage, dial)
    if stands and (config.precision != "fp32" or config.runtime != "onnx"):
        graphs = turned_graphs(graphs, dials, stands, work)
        turned = functions_from_onnx({stage: graph.path for stage, graph in graphs.items()})
        expected = run_chains(turned, samples)
    if config.precision != "fp32":
        report(f"convert {config.precision}", 0.3)
        graphs = _low(config, graphs, samples, expected, directory, work, stands)
    if config.runtime != "onnx":
        written = _for_engines(config, graphs, expected, samples, work)
        _engines(config, source, written, directory, work, report, stands)
    manifest = directory.manifest(source)
    if config.runtime != "onnx" and config.verify:
        _try_engines(config, directory, manifest, work, report)
    report("write", 0.95)
    write_engine_dir(config.engine_dir, directory.files, manifest)
    report("done", 1.0)
    return manifest


def _with(info: ModelInfo, **changes: Any) -> ModelInfo:
    """Return the facts with some fields of the model changed."""
    return replace(info, model=msgspec.structs.replace(info.model, **changes))


def _with_dial(info: ModelInfo, other: Source, restore: float | None) -> ModelInfo:
    """Return the model's facts with those of its other end; the card is the other end's, which knows both."""
    model, theirs = info.model, other.info.model
    restored = {"weights_sha256": theirs.weights_sha256, **theirs.training}
    return _with(
        replace(info, card=other.info.card or info.card),
        restore=1.0 if restore is None else restore,
        training={**model.training, "restored": restored},
        licences=join_licences(model.licences, theirs.licences),
    )


def _dials(
    config: ExportConfig, source: Source, other: Source | None, graphs: dict[str, GraphFile], work: Path
) -> dict[str, bytes]:
    """Return the dial files by stage: made from `other`, or those of an engine directory; or none."""
    if other is not None:
        folder = work / "restored"
        folder.mkdir()
        theirs = fp32_graphs(other, folder, opset=config.opset, onnx_dir=None)
        return {name: make_dial(graph.path, theirs[name].path, stage=name) for name, graph in graphs.items()}
    if source.info.model.restore is None or source.manifest is None:
        if config.restore is not None:
            raise ConfigError(
                f"restore is {config.restore}, but {source.info.model.name} has no dial; leave it out, or "
                "make one with --restored CHECKPOINT"
            )
        return {}
    dials = {}
    for name, stage in source.manifest.stages.items():
        artifact = stage.find("onnx", "fp32")[0]
        if artifact.dial is not None:
            dials[name] = read_file(source.root, artifact.dial)
    return dials


def _low(
    config: ExportConfig,
    graphs: dict[str, GraphFile],
    samples: list[Sample],
    expected: list[Chain],
    directory: Directory,
    work: Path,
    restore: float | None,
) -> dict[str, GraphFile]:
    """Convert, measure and add the FP16 or BF16 graphs."""
    from yonos_export.low_precision import low_graphs, verify_low

    assert config.precision != "fp32"
    precision = config.precision
    low = low_graphs(
        graphs,
        precision,
        expected,
        work,
        islands=config.fp32_islands,
        auto_islands=config.auto_islands,
    )
    for stage, graph in low.graphs.items():
        directory.add_graph(stage, graph, precision, restore=restore)
    directory.add_file(f"{precision}.ranges.json", low.report())
    if config.verify:
        figures = verify_low(low.graphs, precision, expected, samples, config.limits, work)
        directory.add_parity(precision, figures)
        for name, raw in comparison_files(expected[0]).items():
            directory.add_file(name, raw)
    return low.graphs


def _for_engines(
    config: ExportConfig,
    graphs: dict[str, GraphFile],
    expected: list[Chain],
    samples: list[Sample],
    work: Path,
) -> dict[str, GraphFile]:
    """Return the graphs as engines are built from them; what was written anew passes the same gate.

    Engines whose weights come from the directory's graphs later are built from these as they are.
    """
    from yonos_export.low_precision import verify_low
    from yonos_export.onnx_from_torch import load_graph, save_graph
    from yonos_export.separable import separate_filters

    if config.refit or config.strip_weights:
        return graphs
    written = dict(graphs)
    for stage, graph in graphs.items():
        model = load_graph(graph.path)
        if count := separate_filters(model):
            written[stage] = save_graph(model, work / f"{stage}.{config.precision}.separated.onnx")
            log.info("%s: %d filters as slices, products and sums for the engine", stage, count)
    if not config.verify or written == graphs:
        return written
    if config.precision == "fp32":
        candidate = functions_from_onnx({stage: graph.path for stage, graph in written.items()})
        figures = measure(expected[:1], candidate, samples[:1])
        gate(figures, config.limits, what="the graph that the engines are built from")
    else:
        verify_low(written, config.precision, expected[:1], samples[:1], config.limits, work)
    return written


def _engines(
    config: ExportConfig,
    source: Source,
    graphs: dict[str, GraphFile],
    directory: Directory,
    work: Path,
    report: OnStage,
    restore: float | None,
) -> None:
    """Build and add one engine per stage."""
    from yonos_export.engine_from_onnx import build_engine
    from yonos_export.engine_options import options_from_config, profile_shapes
    from yonos_export.tensorrt_module import on_gpu

    options, shapes = options_from_config(config), profile_shapes(source.info, config)
    kind = {"tensorrt": "trt", "tensorrt-rtx": "rtx"}[options.runtime]
    with on_gpu(config.device) if config.runtime == "tensorrt" else nullcontext():
        for k, (stage, graph) in enumerate(graphs.items()):
            start, what = 0.4 + 0.18 * k, f"build {stage} ({config.runtime}, {config.precision})"
            report(what, start)
            where = "".join(f"-sm{c.replace('.', '')}" for c in options.compute_capabilities)
            built = build_engine(
                graph.path,
                work / f"{stage}.{config.precision}.{kind}{where}.engine",
                shapes[stage],
                options,
                stage=stage,
                progress=lambda done, start=start, what=what: report(what, start + 0.18 * done),  # type: ignore[misc]
            )
            directory.add_engine(stage, built, options, config.precision, restore=restore)


def _try_engines(
    config: ExportConfig, directory: Directory, manifest: EngineManifest, work: Path, report: OnStage
) -> None:
    """Run the engines where there is a GPU and hold them against the graphs; say so where there is none."""
    from yonos_export.verify_engines import compare_engines, gpu_is_here

    if not gpu_is_here():
        log.warning("the %s engines were built but not run: no GPU can be used here", config.runtime)
        return
    report("parity of the engines", 0.94)
    candidate = write_engine_dir(work / "candidate", directory.files, manifest)
    reference: Precision = "fp32" if manifest.stages.step.find("onnx", "fp32") else config.precision
    pictures = read_pictures(config.verify_images)
    compare_engines(
        candidate,
        config.runtime,
        config.precision,
        reference,
        pictures,
        config.limits,
        device=config.device,
    )


def _require_packages(config: ExportConfig) -> None:
    """Say at once which package is missing; an engine directory needs no torch, and `rtx` brings none."""
    extra = "rtx" if (config.source / MANIFEST_NAME).is_file() else "export"
    for package in ("onnx", "onnx_ir", "onnxruntime", "filelock", "ml_dtypes"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError("exporting a model", package=package, extra=extra)


def _check_engines(config: ExportConfig) -> None:
    """Refuse what cannot be built here before any work is done."""
    from yonos_export.engine_options import options_from_config
    from yonos_export.tensorrt_module import load_module, require_gpu

    options = options_from_config(config)
    load_module(options.runtime)
    require_gpu(options.runtime, options.device)


def _check_target(config: ExportConfig) -> None:
    """Refuse to replace anything but an engine directory, that without ``force``, and what the export reads.

    An engine directory may be its own source.
    """
    target, source = config.engine_dir, config.source
    own = target.exists() and source.exists() and target.samefile(source)
    read = [source, config.base, config.half_decoder, config.prompt_embeds, config.restored, config.onnx_dir]
    read += [config.timing_cache, config.encoder, config.step, config.decoder, *config.verify_images]
    for path in read[1 if own else 0 :]:
        if path is not None and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(target)):
            raise ConfigError(
                f"{path} lies in {target}, which is written anew as a whole; choose another --engine-dir"
            )
    if own:
        if not (target / MANIFEST_NAME).is_file():
            raise ConfigError(
                f"{target} is the checkpoint itself; choose another --engine-dir, such as {target}-engines"
            )
        return
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target} is a file; choose another --engine-dir")
    if target.is_dir() and any(target.iterdir()) and not config.force:
        raise ConfigError(f"{target} exists; choose another --engine-dir, or replace it with --force")
    if target.is_dir() and any(target.iterdir()) and not (target / MANIFEST_NAME).is_file():
        raise ConfigError(
            f"{target} is no engine directory (no {MANIFEST_NAME}), and --force replaces nothing else; "
            "choose another --engine-dir"
        )


def _take_over(source: Source, directory: Directory) -> None:
    """Keep all artifacts, other files and figures of an engine directory."""
    assert source.manifest is not None
    for name, stage in source.manifest.stages.items():
        directory.artifacts[name] = list(stage.artifacts)
    for record in source.manifest.records():
        directory.files[record.file] = artifact_path(source.root, record.file)
    directory.parity = source.manifest.parity
    directory.extra = list(source.manifest.files)
