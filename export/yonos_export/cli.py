"""``yonos-export``: one option per field of `yonos_export.ExportConfig`."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from yonos_export.comparison import command
from yonos_export.config import DEFAULT_THRESHOLDS, ExportConfig, Thresholds
from yonos_export.exporter import export
from yonos_export.families import FAMILIES, FILES, restrictive
from yonos_export.triton import MODELS, check_repository, write_repository
from yonos_trt.cli.options import LocalPath
from yonos_trt.engine.manifest import MANIFEST_NAME, EngineManifest, load_manifest
from yonos_trt.errors import BuildError, ConfigError, InputError, YonosError, install_command

EXIT_USAGE, EXIT_ENGINE, EXIT_INTERRUPTED = 2, 3, 130
DEFAULT_SCALE = 4  # of the shipped model that is exported where no source is named


class Shape(click.ParamType):  # type: ignore[type-arg]
    """``HEIGHTxWIDTH`` or one number for a square."""

    name = "HxW"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Parse the text."""
        parts = str(value).lower().split("x")
        if not 1 <= len(parts) <= 2 or not all(p.isdecimal() for p in parts):
            self.fail(
                f"{value!r} is not a tile size; write HEIGHTxWIDTH in output px, such as 512x512", param, ctx
            )
        return int(parts[0]), int(parts[-1])


_WITHOUT_EXPORT = ("source", "triton", "force", "dry_run", "progress", "verbose", "quiet")
_FOLDER = LocalPath(file_okay=False)
_FILE = LocalPath(dir_okay=False)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("source", type=LocalPath(), required=False)
@click.option(
    "--from",
    "family",
    type=click.Choice(list(FAMILIES)),
    help="Kind of model that SOURCE is (docs/models.md); without: a folder, whose kind is seen.",
)
@click.option("--base", type=_FOLDER, metavar="DIR", help="Diffusers folder of the base model, on this disk.")
@click.option("--checkpoint", "--config", "file", type=_FILE, help="The same as SOURCE, for --from.")
@click.option("--half-decoder", type=_FILE, metavar="FILE", help="adcsr: halfDecoder.ckpt.")
@click.option("--prompt", help="The one prompt, folded in; default: the empty one.")
@click.option("--prompt-embeds", type=_FILE, metavar="FILE", help="Instead: its embedding, safetensors.")
@click.option("--encoder", type=_FILE, metavar="ONNX", help="onnx: image -> z_l.")
@click.option("--step", type=_FILE, metavar="ONNX", help="onnx: noise, z_l (or z_l alone) -> z_0.")
@click.option("--decoder", type=_FILE, metavar="ONNX", help="onnx: z_0 -> image.")
@click.option("--scale", type=int, help="Enlargement, where the family works at any.")
@click.option("--pixel", type=float, help="pisasr: strength of its LoRA weights for pixels; default: 1.")
@click.option("--semantic", type=float, help="pisasr: strength of its LoRA weights for meaning; default: 1.")
@click.option(
    "--licence", multiple=True, metavar="PART=TERMS", help="Terms for the manifest; may be repeated."
)
@click.option(
    "-o", "--engine-dir", type=_FOLDER, help="Engine directory to write; needed where SOURCE is given."
)
@click.option(
    "--restored",
    type=LocalPath(),
    metavar="CHECKPOINT",
    help="Make the model's dial: 0 is SOURCE, 1 this second training of the same networks.",
)
@click.option(
    "--restore",
    type=click.FloatRange(0.0, 1.0),
    help="Where the dial stands in low-precision graphs and engines; with --restored the model's default.",
)
@click.option("--fp32", "precision", flag_value="fp32", default="fp32", help="FP32 graphs (the default).")
@click.option("--fp16", "precision", flag_value="fp16", help="FP16 graphs with FP32 islands.")
@click.option("--bf16", "precision", flag_value="bf16", help="BF16 graphs with FP32 islands.")
@click.option(
    "--runtime",
    type=click.Choice(["onnx", "tensorrt", "tensorrt-rtx"]),
    help="Build engines for this runtime beside the graphs; without: for every TensorRT that is installed.",
)
@click.option("--onnx-only", is_flag=True, help="Write graphs only; the same as --runtime onnx.")
@click.option("--onnx-dir", type=_FOLDER, help="Keep the FP32 graphs here and use them again next time.")
@click.option("--keep-fp32/--no-keep-fp32", default=True, help="Keep the FP32 graphs beside the others.")
@click.option("--opset", type=int, default=20, show_default=True, help="ONNX operator set.")
@click.option("--min-shape", type=Shape(), help="Smallest tile of the engines, output px.")
@click.option("--opt-shape", type=Shape(), help="Tile the engines are tuned for, output px.")
@click.option("--max-shape", type=Shape(), help="Largest tile of the engines, output px.")
@click.option(
    "--batch", type=int, metavar="N", help="Tiles per batch: best and largest; default: best 4, largest 8."
)
@click.option(
    "--device",
    type=click.IntRange(0),
    metavar="N",
    default=0,
    show_default=True,
    help="CUDA device number that TensorRT builds for and that finished engines are tried on.",
)
@click.option("--workspace", "workspace_mb", type=int, metavar="MIB", help="Scratch memory of the builder.")
@click.option("--builder-optimization-level", type=int, metavar="0-5", help="0 builds fast, 5 runs fast.")
@click.option("--timing-cache", type=_FOLDER, help="TensorRT: folder that keeps measured kernel times.")
@click.option(
    "--hardware-compatibility",
    type=click.Choice(["none", "ampere-plus", "same-compute-capability"]),
    default="none",
    show_default=True,
    help="TensorRT: GPUs the engine runs on beside this one.",
)
@click.option("--version-compatible", is_flag=True, help="TensorRT: run on later versions as well.")
@click.option(
    "--compute-capability",
    "compute_capabilities",
    multiple=True,
    metavar="X.Y",
    help="TensorRT-RTX: GPUs to build for, such as 8.6; may be repeated. Without: any.",
)
@click.option("--refit", is_flag=True, help="Let the weights of the engine be replaced later.")
@click.option("--strip-weights", is_flag=True, help="Leave the weights out of the engine.")
@click.option(
    "--fp32-islands",
    multiple=True,
    metavar="PATTERN",
    help="Nodes that stay in FP32, [STAGE:]NAME with * and ?.",
)
@click.option("--auto-islands/--no-auto-islands", default=True, help="Keep what would overflow in FP32.")
@click.option("--verify/--no-verify", default=True, help="Measure parity and fail below the thresholds.")
@click.option(
    "--verify-images",
    multiple=True,
    type=LocalPath(dir_okay=False),
    help="Picture for the parity gate; may be repeated.",
)
@click.option(
    "--verify-tile", "verify_tile_px", type=int, metavar="PX", help="Side of the tiles it is cut into."
)
@click.option("--min-psnr", type=float, metavar="DB", help="End-to-end PSNR the export must reach.")
@click.option("--min-cosine", type=float, help="Cosine similarity every stage must reach.")
@click.option(
    "--triton",
    type=_FOLDER,
    metavar="REPOSITORY",
    help="Also write a repository for NVIDIA's Triton server; an engine directory without -o: that alone.",
)
@click.option("--force", is_flag=True, help="Replace an existing engine directory or repository.")
@click.option("--dry-run", is_flag=True, help="Check options and source, print the config, write nothing.")
@click.option("--progress", type=click.Choice(["auto", "json", "none"]), default="auto", show_default=True)
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
@click.option("-q", "--quiet", is_flag=True, help="Log errors only.")
def main(**options: Any) -> None:
    """Export SOURCE into an engine directory.

    SOURCE is a checkpoint folder of yonos-train, a local diffusers folder (unet/ and vae/), or an engine
    directory whose FP32 graphs are converted and built: its path, or the name of a model that ships with
    the package, such as lite-x4. Published models: --from, and SOURCE is their file (--checkpoint or
    --config also name it). The same directory as --engine-dir: what it holds is kept. Without SOURCE:
    the shipped x4 model, into engines/lite-x4. With --triton a repository of NVIDIA's Triton server is
    written from the engine directory.
    """
    progress, verbose, quiet = options.pop("progress"), options.pop("verbose"), options.pop("quiet")
    logging.basicConfig(
        level=logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    report = _reporter("none" if quiet else progress)
    repository = options.pop("triton")
    try:
        if repository is not None:
            check_repository(repository, force=options["force"])
            if (there := _engine_dir(options)) is not None:
                _to_triton(there, repository, options, quiet=quiet)
                return
        configs = _configs(options)
        for index, config in enumerate(configs):
            manifest = export(config, progress=_share(report, index, len(configs)))
            if manifest is None:
                click.echo(json.dumps(config.to_dict(), indent=2))
        if repository is not None:
            _to_triton(config.engine_dir, repository, options, quiet=quiet)
    except (ConfigError, InputError) as error:
        _fail(error, EXIT_USAGE)
    except YonosError as error:
        _fail(error, EXIT_ENGINE)
    except KeyboardInterrupt:
        click.echo("yonos-export: interrupted; nothing was written", err=True)
        sys.exit(EXIT_INTERRUPTED)
    if manifest is not None and not quiet:
        click.echo(summary(manifest, config.engine_dir))
        limit = config.limits.stage_psnr_db
        if again := command(manifest, config.engine_dir, config.precision, limit):
            click.echo("  the same with TensorRT on a GPU (with POLYGRAPHY_USE_TENSORRT_RTX=1: RTX):")
            click.echo(f"  {again}")


def _engine_dir(options: dict[str, Any]) -> Path | None:
    """Return the engine directory that ``--triton`` takes as it is, or None: there is something to export."""
    if options["source"] is None or options["engine_dir"] is not None:
        return None
    from yonos_trt.backends.choose import find_model

    source = find_model(options["source"])
    if not (source / MANIFEST_NAME).is_file():
        return None
    context = click.get_current_context()
    names: dict[str, list[str]] = {}
    for parameter in context.command.params:
        names.setdefault(parameter.name or "", []).append(parameter.opts[0])
    for name, flags in names.items():
        if name not in _WITHOUT_EXPORT and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"{' / '.join(flags)} says how to export, but without --engine-dir --triton takes {source} "
                "as it is; add -o FOLDER, or leave the option out"
            )
    return source


def _to_triton(engine_dir: Path, repository: Path, options: dict[str, Any], *, quiet: bool) -> None:
    """Write the repository and say so; a dry run only looks at the engine directory, if there is one."""
    if options["dry_run"]:
        if engine_dir.exists():
            load_manifest(engine_dir)
        return
    try:
        write_repository(engine_dir, repository, force=options["force"])
    except OSError as error:
        raise BuildError(
            f"{error.filename or repository}: {error.strerror or error}; {repository} is as it was. "
            "Free space, or name another folder for --triton"
        ) from error
    if not quiet:
        click.echo(
            f"{repository}: {', '.join(MODELS)}; serve with: tritonserver --model-repository={repository}"
        )


def _configs(options: dict[str, Any]) -> list[ExportConfig]:
    """Return one config a runtime: the first starts from the source, the others add to what it wrote."""
    file = options.pop("file")
    if file is not None and options["source"] is not None:
        raise click.UsageError(
            f"SOURCE is {options['source']} and --checkpoint (or --config) is {file}; give one."
        )
    options["source"] = options["source"] or file
    if options["family"] is not None and options["source"] is None:
        raise click.UsageError(
            f"--from {options['family']} needs SOURCE: {FAMILIES[options['family']].source}."
        )
    options["command"] = _command_line()
    if options["source"] is None:
        from yonos_trt.backends.choose import shipped_model

        source = shipped_model(DEFAULT_SCALE)
        options = {
            **options, "source": source, "engine_dir": options["engine_dir"] or Path("engines") / source.name
        }  # fmt: skip
    if options["engine_dir"] is None:
        raise click.UsageError("Missing option '-o' / '--engine-dir'.")
    if options["runtime"] is not None or options["onnx_only"]:
        return [_config({**options, "runtime": options["runtime"] or "onnx"})]
    from yonos_export.tensorrt_module import usable_runtimes

    runtimes = usable_runtimes(options["device"])
    if not runtimes:
        click.echo(
            "yonos-export: no TensorRT is installed that can build here, so graphs only; engines need "
            f"TensorRT-RTX, which builds on any machine: {install_command('rtx')}",
            err=True,
        )
        return [_config({**options, "runtime": "onnx"})]
    first, *others = (_config({**options, "runtime": runtime}) for runtime in runtimes)
    return [first, *(_on_top(c) for c in others)]


def _on_top(config: ExportConfig) -> ExportConfig:
    """Return the config that adds to what the first export wrote."""
    alone = dict.fromkeys(("restored", "family", *FILES))
    return dataclasses.replace(config, source=config.engine_dir, licence=(), **alone)  # type: ignore[arg-type]


def _command_line() -> str:
    """Return what was typed, without the folders of this machine."""
    words = [re.sub(r"^(--[a-z-]+=)?/.*/(?=[^/])", r"\1", word) for word in sys.argv[1:]]
    return shlex.join(["yonos-export", *words])


def _share(report: Any, index: int, count: int) -> Any:
    """Return a progress callback for one of several exports."""
    if report is None:
        return None
    return lambda what, done: report(what, (index + done) / count)


def _config(options: dict[str, Any]) -> ExportConfig:
    """Turn command-line values into a config."""
    if options.pop("onnx_only"):
        if options["runtime"] != "onnx":
            raise ConfigError(f"--onnx-only and --runtime {options['runtime']} contradict each other")
        options["runtime"] = "onnx"
    from yonos_trt.backends.choose import find_model

    if options["family"] is None:
        options["source"] = find_model(options["source"])
    psnr, cosine = options.pop("min_psnr"), options.pop("min_cosine")
    if psnr is not None or cosine is not None:
        default = DEFAULT_THRESHOLDS[options["precision"]]
        options["thresholds"] = Thresholds(
            cosine=default.cosine if cosine is None else cosine,
            stage_psnr_db=default.stage_psnr_db if psnr is None else min(default.stage_psnr_db, psnr),
            end_to_end_psnr_db=default.end_to_end_psnr_db if psnr is None else psnr,
        )
    return ExportConfig(**options)


def _reporter(kind: str) -> Any:
    """Return a progress callback that writes to stderr, or None."""
    if kind == "none" or (kind == "auto" and not sys.stderr.isatty()):
        return None

    def show(what: str, done: float) -> None:
        if kind == "json":
            click.echo(json.dumps({"what": what, "done": round(done, 4)}), err=True)
        else:
            click.echo(f"\r{done:4.0%} {what:<60.60}", err=True, nl=done >= 1.0)

    return show


def summary(manifest: EngineManifest, engine_dir: Path) -> str:
    """Say what was written: artifacts, sizes, parity."""
    lines = [f"{engine_dir}: {manifest.model.name}, x{manifest.model.scale}"]
    for name, stage in manifest.stages.items():
        for artifact in stage.artifacts:
            size = artifact.bytes + sum(record.bytes for record in artifact.external)
            line = f"  {name:<8} {artifact.runtime:<12} {artifact.precision}"
            line += f"  {size / 1e6:8.1f} MB  {artifact.file}"
            figures = manifest.parity.stages.get(name, {}).get(artifact.precision)  # type: ignore[call-overload]
            if figures is not None and artifact.runtime == "onnx":
                psnr = "equal" if figures.psnr_db is None else f"{figures.psnr_db:.1f} dB"
                line += f"  error {figures.max_error:.2g}, {psnr}, cosine {figures.cosine:.7f}"
            lines.append(line)
    for precision, psnr_db in manifest.parity.end_to_end_psnr_db.items():
        lines.append(f"  end to end {precision}: {'equal' if psnr_db is None else f'{psnr_db:.1f} dB'}")
    lines += [
        f"  licence of the {link.part}: {link.licence}"
        for link in manifest.model.licences
        if restrictive(link.licence)
    ]
    return "\n".join(lines)


def _fail(error: BaseException, code: int) -> None:
    click.echo(f"yonos-export: {error}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
