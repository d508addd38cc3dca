"""Options of an export, checked once, before anything heavy is loaded."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from yonos_export.families import FAMILIES, FILES
from yonos_export.model_info import MAX_BATCH
from yonos_export.thresholds import DEFAULT_THRESHOLDS as DEFAULT_THRESHOLDS
from yonos_export.thresholds import Thresholds as Thresholds
from yonos_trt.choices import ArtifactRuntime as Runtime
from yonos_trt.choices import Precision as Precision
from yonos_trt.engine.restore import check_restore
from yonos_trt.errors import ConfigError

Hardware = Literal["none", "ampere-plus", "same-compute-capability"]


# ---------------------------------------------------------------------------------------------------------
# The export itself


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How engines are built, whichever runtime they are for.

    Attributes
    ----------
    workspace_mb
        Scratch memory the engine builder may use, MiB. None: TensorRT's own limit (all of it).
    builder_optimization_level
        0 (fast build) to 5 (fast engine). None: TensorRT's default.
    device
        CUDA device number: the GPU that TensorRT measures its kernels on, and that finished engines are
        tried on.
    timing_cache
        Folder with measured kernel times, one file per GPU and version, read and updated. TensorRT-RTX
        measures nothing at build time and ignores it.
    hardware_compatibility
        ``tensorrt`` only: run on other GPUs than the one of the build.
    version_compatible
        ``tensorrt`` only: run on later TensorRT versions of the same major version.
    compute_capabilities
        ``tensorrt-rtx`` only: such as ``("8.6", "8.9")``; empty: any supported GPU, kernels chosen at load.
    refit
        Let the weights of the engine be replaced later.
    strip_weights
        Leave the weights out of the engine; they come from the graph beside it when the engine is loaded.
    """

    device: int = 0
    workspace_mb: int | None = None
    builder_optimization_level: int | None = None
    timing_cache: Path | None = None
    hardware_compatibility: Hardware = "none"
    version_compatible: bool = False
    compute_capabilities: tuple[str, ...] = ()
    refit: bool = False
    strip_weights: bool = False


@dataclass(frozen=True)
class ExportConfig(BuildOptions):
    """Everything `yonos_export.export` is told; one field, here or above, per option of ``yonos-export``.

    Attributes
    ----------
    source
        A checkpoint folder of ``yonos-train``, a local diffusers folder (``unet/`` and ``vae/``), or an
        engine directory whose FP32 graphs are taken as they are (then torch is not needed). With `family`:
        what that family starts from, such as ``osediff.pkl`` or ``model.json``.
    engine_dir
        The engine directory to write. May be `source` itself: what it holds is kept, the rest is added.
    restored
        A second checkpoint of the same networks, trained from the weights of `source`: makes the model's dial
        (``SR(restore=...)``), 0 being `source` and 1 this one.
    restore
        Where the dial stands in FP16 and BF16 graphs and in engines, 0 to 1; with `restored` also the
        model's default. None: the model's default, and 1 for a new dial.
    family
        Name of a row in `yonos_export.families.FAMILIES`; None: a folder, and which kind is seen.
    base
        Diffusers folder of the base model that the family's weights belong to; nothing is downloaded.
    half_decoder
        ``adcsr``: the file with its half-width decoder.
    prompt
        The one prompt, folded into the graphs; needs the base folder's tokenizer and text encoder, and the
        extra ``prompt`` (transformers). None: the empty prompt, where the family takes one.
    prompt_embeds
        Instead of `prompt`: a safetensors file with its embedding, the tensor ``context`` (1, L, D).
    encoder, step, decoder
        ``onnx``: the three graphs.
    scale
        Enlargement, where the family works at any; None: the family's own.
    pixel, semantic
        ``pisasr``: strengths of its two sets of LoRA weights, 0 to 4; None: 1, as published. Two that differ
        take two U-Net calls a tile, unless `semantic` is 0.
    licence
        Terms as ``PART=TERMS``, beside those that are known of the family or in place of them.
    command
        What was typed, for the manifest.
    precision
        ``fp32``, ``fp16`` or ``bf16``: the precision of the graph itself, with FP32 islands.
    runtime
        ``onnx`` writes graphs only, the others build engines from them as well.
    onnx_dir
        Folder that keeps the FP32 graphs for the next export of the same weights; None: nothing is kept.
    keep_fp32
        True keeps the FP32 graphs beside the others (the reference, and what a numeric error falls back to).
    opset
        ONNX operator set.
    min_shape, opt_shape, max_shape
        Tile (height, width) in output px of the engines' profile. None: the model's smallest, default and
        largest tile.
    batch
        Tiles per batch: best and largest of the profile; the smallest is 1. None: tuned for 4, up to 8; which
        it is then is the planner's choice, by picture and memory.
    fp32_islands
        Name patterns (``fnmatch``) of nodes that stay in FP32, such as ``step:unet.mid_blocks.*``; the
        part before the colon is the stage, ``*`` or nothing means all.
    auto_islands
        True keeps nodes in FP32 whose values leave the range of the precision on the verification pictures.
    verify
        True measures parity and fails the export below `thresholds`. False writes what it has built.
    verify_images
        Pictures for the parity gate and the range check, beside the three small ones of this package.
    verify_tile_px
        Side of the tiles they are cut into, output px. None: 256, rounded to what the model allows.
    thresholds
        Limits of the parity gate. None: those of `DEFAULT_THRESHOLDS` for the precision.
    force
        True replaces an existing engine directory.
    dry_run
        True checks the options and the source, and writes nothing.
    """

    source: Path
    engine_dir: Path
    restored: Path | None = None
    restore: float | None = None
    family: str | None = None
    base: Path | None = None
    half_decoder: Path | None = None
    prompt: str | None = None
    prompt_embeds: Path | None = None
    encoder: Path | None = None
    step: Path | None = None
    decoder: Path | None = None
    scale: int | None = None
    pixel: float | None = None
    semantic: float | None = None
    licence: tuple[str, ...] = ()
    command: str = ""
    precision: Precision = "fp32"
    runtime: Runtime = "onnx"
    onnx_dir: Path | None = None
    keep_fp32: bool = True
    opset: int = 20
    min_shape: tuple[int, int] | None = None
    opt_shape: tuple[int, int] | None = None
    max_shape: tuple[int, int] | None = None
    batch: int | None = None
    fp32_islands: tuple[str, ...] = ()
    auto_islands: bool = True
    verify: bool = True
    verify_images: tuple[Path, ...] = ()
    verify_tile_px: int | None = None
    thresholds: Thresholds | None = field(default=None)
    force: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", Path(self.source))
        object.__setattr__(self, "engine_dir", Path(self.engine_dir))
        for name, kind in (
            ("precision", Precision),
            ("runtime", Runtime),
            ("hardware_compatibility", Hardware),
        ):
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}, expected one of {', '.join(get_args(kind))}"
                )
        for name in ("restored", "base", "half_decoder", "prompt_embeds", "encoder", "step", "decoder"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)))
        self._check_family()
        if self.restore is not None:
            check_restore(self.restore)
        if not 18 <= self.opset <= 23:
            raise ConfigError(f"opset is {self.opset}, expected 18 to 23 (20 is what is tested)")
        if self.batch is not None and not 1 <= self.batch <= MAX_BATCH:
            raise ConfigError(f"batch is {self.batch}, expected 1 to {MAX_BATCH}")
        if self.device < 0:
            raise ConfigError(f"device is {self.device}, expected a CUDA device number from 0 up")
        if self.verify_tile_px is not None and not 1 <= self.verify_tile_px <= 65536:
            raise ConfigError(f"verify_tile_px is {self.verify_tile_px}, expected 1 to 65536 px")
        if self.workspace_mb is not None and self.workspace_mb < 1:
            raise ConfigError(f"workspace_mb is {self.workspace_mb}, expected at least 1 (MiB)")
        level = self.builder_optimization_level
        if level is not None and not 0 <= level <= 5:
            raise ConfigError(f"builder_optimization_level is {level}, expected 0 to 5")
        for name in ("min_shape", "opt_shape", "max_shape"):
            shape = getattr(self, name)
            if shape is not None and (len(shape) != 2 or min(shape) < 1):
                raise ConfigError(f"{name} is {shape}, expected a tile's (height, width) in output px")
        if self.runtime == "onnx":
            for name in (
                "timing_cache",
                "compute_capabilities",
                "refit",
                "strip_weights",
                "version_compatible",
            ):
                if getattr(self, name):
                    raise ConfigError(f"{name} belongs to engines; add --runtime tensorrt or tensorrt-rtx")
        if self.runtime != "tensorrt" and (self.version_compatible or self.hardware_compatibility != "none"):
            raise ConfigError(
                "version_compatible and hardware_compatibility exist for runtime tensorrt only; "
                "for tensorrt-rtx use compute_capabilities"
            )
        if self.runtime == "tensorrt" and self.compute_capabilities:
            raise ConfigError(
                "compute_capabilities exists for runtime tensorrt-rtx only; a tensorrt engine is built "
                "for the GPU of this machine (see hardware_compatibility)"
            )

    def _check_family(self) -> None:
        """Refuse a family that is not in the table, and options that no family was named for."""
        if self.family is not None and self.family not in FAMILIES:
            raise ConfigError(f"family is {self.family!r}, expected one of {', '.join(FAMILIES)}")
        given = [name for name in FILES if getattr(self, name) is not None]
        if self.family is None and given:
            known = ", ".join(FAMILIES)
            raise ConfigError(f"{', '.join(given)}: only for a family that is named with --from ({known})")
        if self.prompt is not None and self.prompt_embeds is not None:
            raise ConfigError("prompt and prompt_embeds both say what is folded in; leave one out")
        if self.scale is not None and not 1 <= self.scale <= 16:
            raise ConfigError(f"scale is {self.scale}, expected 1 to 16")
        for name in ("pixel", "semantic"):
            if (strength := getattr(self, name)) is not None and not 0 <= strength <= 4:
                raise ConfigError(f"{name} is {strength}, expected 0 to 4")
        for text in self.licence:
            part, _, terms = text.partition("=")
            if not part.strip() or not terms.strip():
                raise ConfigError(
                    f"licence is {text!r}, expected PART=TERMS, such as 'weights=research only'"
                )

    @property
    def batches(self) -> tuple[int, int, int]:
        """Smallest, best and largest batch of the profile."""
        return (1, *((4, 8) if self.batch is None else (self.batch, self.batch)))

    @property
    def limits(self) -> Thresholds:
        """The thresholds in force."""
        return self.thresholds or DEFAULT_THRESHOLDS[self.precision]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values; paths become text."""

        def plain(value: Any) -> Any:
            if isinstance(value, Path):
                return str(value)
            if isinstance(value, tuple):
                return [plain(v) for v in value]
            return value

        return {k: plain(v) for k, v in dataclasses.asdict(self).items()}
