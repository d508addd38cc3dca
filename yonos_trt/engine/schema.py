"""The fields of ``manifest.json`` as strict structs: unknown fields and wrong types are refused.

`yonos_trt.engine.manifest` reads and writes them and is the module to import from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import msgspec

from yonos_trt.choices import ArtifactRuntime, Precision
from yonos_trt.errors import ManifestError

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 1
LARGEST_TILE_PX = 1 << 15
LARGEST_LATENT_CHANNELS = 1 << 10
# How every message about a bad directory ends.
REBUILD = "export the model again (yonos-export writes a complete directory) or copy the directory anew"

Runtime = ArtifactRuntime
StageName = Literal["encoder", "step", "decoder"]
Dtype = Literal["float32", "float16", "bfloat16"]
Start = Literal["noise", "latent"]

_SHA256 = re.compile(r"[0-9a-f]{64}")

# What every stage is called with and gives back: (inputs, outputs).
STAGE_TENSORS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "encoder": (("image",), ("z_l",)),
    "step": (("noise", "z_l"), ("z_0",)),
    "decoder": (("z_0",), ("image",)),
}


def stage_tensors(start: Start) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return `STAGE_TENSORS` of a model; a step that starts from the latent takes no noise."""
    if start == "noise":
        return STAGE_TENSORS
    return STAGE_TENSORS | {"step": (("z_l",), ("z_0",))}


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Base of all parts of the manifest."""


class FileRecord(_Strict, frozen=True):
    """One file: path relative to the engine directory (``/`` between parts), SHA-256 and size."""

    file: str
    sha256: str
    bytes: int


class Licence(_Strict, frozen=True):
    """One link of the licence chain: what it covers, under which terms, where it comes from."""

    part: str  # "code", "data", "base model", ...
    licence: str  # SPDX identifier or the terms' name
    source: str = ""


class Origin(_Strict, frozen=True):
    """Where a model that was not trained here comes from: what `yonos-export` was given."""

    family: str  # as in ``--from``
    base: str = ""  # name of the base model's folder
    adapter: str = ""  # names of the files with the model's own weights, with their SHA-256
    prompt: str = ""  # the one prompt that is folded in
    command: str = ""  # what was typed, without the folders of that machine


class Model(_Strict, frozen=True):
    """What the network is. ``alpha_1`` and ``sigma_1`` are the schedule's values at the one step."""

    name: str
    scale: int
    latent_channels: int
    latent_factor: int  # canvas px per latent cell
    timestep: float  # as the U-Net saw it in training; folded into the step graph
    alpha_1: float
    sigma_1: float
    weights_sha256: str
    training: dict[str, Any] = {}  # free summary: stages, steps, data, figures
    licences: tuple[Licence, ...] = ()
    card: FileRecord | None = None
    restore: float | None = None  # default of the dial, 0 to 1; None: no dial (yonos_trt.engine.restore)
    start: Start = "noise"  # what the step begins with: noise beside z_l, or z_l itself
    output_channels: int | None = None  # channels of z_0 where they are not those of z_l
    color_fix: Literal["wavelet", "adain", "none"] | None = None  # what the model was made for; None: wavelet
    origin: Origin | None = None

    def channels(self, tensor: str) -> int:
        """Return the channels of ``image``, ``noise``, ``z_l`` or ``z_0``."""
        if tensor == "image":
            return 3
        own = self.output_channels if tensor == "z_0" else None
        return own or self.latent_channels

    def color_fix_or(self, chosen: str | None) -> str:
        """Return the colour fix that was chosen, else the model's own, else wavelet."""
        return chosen or self.color_fix or "wavelet"


class Tiles(_Strict, frozen=True):
    """Legal tile sizes, all in output px. Tile origins and sizes are multiples of ``multiple_px``."""

    smallest_px: int
    default_px: int
    largest_px: int
    multiple_px: int
    overlap_px: int  # default overlap of neighbouring tiles
    encoder_input: Literal["upsampled", "lr"]  # what the encoder reads: canvas tiles, or LR tiles


class Tensor(_Strict, frozen=True):
    """One input or output; dimensions are numbers or letters, for example ``["N", 3, "H", "W"]``."""

    name: str
    shape: tuple[int | str, ...]
    dtype: Dtype = "float32"


class ShapeRange(_Strict, frozen=True):
    """Smallest, best and largest shape of one input in a TensorRT profile."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


class Profile(_Strict, frozen=True):
    """One TensorRT optimisation profile: input name -> shapes."""

    inputs: dict[str, ShapeRange]


class Artifact(_Strict, frozen=True):
    """One way to run a stage: a graph or an engine built from it."""

    runtime: Runtime
    precision: Precision
    file: str
    sha256: str
    bytes: int
    external: tuple[FileRecord, ...] = ()  # external data files of an ONNX graph
    profiles: tuple[Profile, ...] = ()
    tensorrt_version: str | None = None
    compute_capability: tuple[str, ...] = ()  # ("8.6",), several for TensorRT-RTX; empty: any
    hardware_compatibility: str | None = None  # "ampere-plus", "same-compute-capability"
    version_compatible: bool = False
    gpu: str | None = None  # name of the GPU it was built on, if any
    stripped: bool = False  # no weights inside: they come from the graph of the same precision at load
    dial: FileRecord | None = None  # what `restore` moves this graph's weights by
    restore: float | None = None  # where the dial stood when this was made; None: at 0, or no dial


class Stage(_Strict, frozen=True):
    """Tensor names, shapes and artifacts of one of the three stages."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    artifacts: tuple[Artifact, ...]

    def find(self, runtime: Runtime, precision: Precision | None = None) -> tuple[Artifact, ...]:
        """List the artifacts for `runtime`, of `precision` where given, in the manifest's order."""
        return tuple(a for a in self.artifacts if a.runtime == runtime and precision in (None, a.precision))


class Stages(_Strict, frozen=True):
    """The three stages of the data path."""

    encoder: Stage
    step: Stage
    decoder: Stage

    def items(self) -> Iterator[tuple[str, Stage]]:
        """Yield ``(name, stage)`` in the order of the data path."""
        yield "encoder", self.encoder
        yield "step", self.step
        yield "decoder", self.decoder


class StageParity(_Strict, frozen=True):
    """Measured difference to the torch reference; `psnr_db` is None where the two are equal."""

    max_error: float
    psnr_db: float | None
    cosine: float


class Parity(_Strict, frozen=True):
    """What the export measured: stage -> precision -> figures, and precision -> whole-picture PSNR."""

    stages: dict[StageName, dict[Precision, StageParity]] = {}
    end_to_end_psnr_db: dict[Precision, float | None] = {}


class EngineManifest(_Strict, frozen=True):
    """Everything the SDK knows about an engine directory."""

    schema_version: int
    model: Model
    tiles: Tiles
    stages: Stages
    parity: Parity = Parity()
    files: tuple[FileRecord, ...] = ()  # other files that belong here, for example a licence text
    created_by: str = ""  # program and version that wrote the directory

    def records(self) -> Iterator[FileRecord]:
        """Yield every file the manifest names, artifacts first; a file named twice comes twice."""
        for _, stage in self.stages.items():
            for artifact in stage.artifacts:
                yield FileRecord(file=artifact.file, sha256=artifact.sha256, bytes=artifact.bytes)
                yield from artifact.external
                if artifact.dial is not None:
                    yield artifact.dial
        if self.model.card is not None:
            yield self.model.card
        yield from self.files


# ---------------------------------------------------------------------------------------------------------
# What the types cannot say


def check(manifest: EngineManifest, path: Path) -> None:
    """Check what the types cannot say."""

    def require(holds: bool, what: str) -> None:
        if not holds:
            raise ManifestError(f"{path}: {what}; {REBUILD}")

    model, tiles = manifest.model, manifest.tiles
    require(
        model.latent_channels <= LARGEST_LATENT_CHANNELS,
        f"model.latent_channels is {model.latent_channels}, expected at most {LARGEST_LATENT_CHANNELS}",
    )
    require(
        model.output_channels is None or 1 <= model.output_channels <= LARGEST_LATENT_CHANNELS,
        f"model.output_channels is {model.output_channels}, expected 1 to {LARGEST_LATENT_CHANNELS}",
    )
    require(
        tiles.largest_px <= LARGEST_TILE_PX,
        f"tiles.largest_px is {tiles.largest_px}, expected at most {LARGEST_TILE_PX}",
    )
    require(1 <= model.scale <= 16, f"model.scale is {model.scale}, expected 1 to 16")
    require(
        model.restore is None or 0.0 <= model.restore <= 1.0,
        f"model.restore is {model.restore}, expected 0 to 1",
    )
    require(model.latent_channels >= 1, f"model.latent_channels is {model.latent_channels}, expected >= 1")
    require(model.latent_factor >= 1, f"model.latent_factor is {model.latent_factor}, expected >= 1")
    require(bool(_SHA256.fullmatch(model.weights_sha256)), "model.weights_sha256 is not a SHA-256")
    multiple = tiles.multiple_px
    require(multiple >= 1, f"tiles.multiple_px is {multiple}, expected >= 1")
    for name, value in (("model.scale", model.scale), ("model.latent_factor", model.latent_factor)):
        require(multiple % value == 0, f"tiles.multiple_px {multiple} is not a multiple of {name} {value}")
    for name in ("smallest_px", "default_px", "largest_px"):
        size = getattr(tiles, name)
        require(size >= 1 and size % multiple == 0, f"tiles.{name} {size} is not a multiple of {multiple}")
    require(
        tiles.smallest_px <= tiles.default_px <= tiles.largest_px,
        f"tiles do not satisfy {tiles.smallest_px} <= {tiles.default_px} <= {tiles.largest_px} px",
    )
    require(
        0 <= 2 * tiles.overlap_px <= tiles.default_px,
        f"tiles.overlap_px is {tiles.overlap_px}, expected 0 to {tiles.default_px // 2}",
    )
    for name, stage in manifest.stages.items():
        wanted = stage_tensors(model.start)[name]
        for kind, tensors, names in (
            ("inputs", stage.inputs, wanted[0]),
            ("outputs", stage.outputs, wanted[1]),
        ):
            found = tuple(t.name for t in tensors)
            require(found == names, f"stages.{name}.{kind} are {found}, expected {names}")
            for tensor in tensors:
                where = f"stages.{name}.{tensor.name}"
                require(len(tensor.shape) == 4, f"{where} has {len(tensor.shape)} dimensions, expected 4")
                channels = model.channels(tensor.name)
                require(
                    isinstance(tensor.shape[1], str) or tensor.shape[1] == channels,
                    f"{where} has {tensor.shape[1]} channels, expected {channels}",
                )
        require(len(stage.artifacts) > 0, f"stages.{name} has no artifacts")
    seen: dict[str, FileRecord] = {}
    for record in manifest.records():
        require(bool(_SHA256.fullmatch(record.sha256)), f"the sha256 of {record.file!r} is not 64 hex digits")
        require(record.bytes >= 0, f"the size of {record.file!r} is {record.bytes}, expected >= 0")
        require(
            seen.setdefault(record.file, record) == record,
            f"{record.file!r} is named twice with different hash or size",
        )
        check_relative(record.file, path)


def check_relative(file: str, path: Path) -> None:
    """Refuse anything but a plain relative path below the engine directory."""
    parts = file.split("/")
    plain = file == PurePosixPath(file).as_posix() and not PurePosixPath(file).is_absolute()
    if (
        not plain
        or any(p in ("", "..") or p.startswith(".") for p in parts)
        or any(c in file for c in "\\:\0")
        or file == MANIFEST_NAME
    ):
        raise ManifestError(
            f"{path} names the file {file!r}; expected a relative path that stays inside the directory, "
            f"with '/' between parts and no part that begins with a dot; {REBUILD}"
        )


# ---------------------------------------------------------------------------------------------------------
# A model without weights


def identity_manifest(
    *,
    scale: int = 4,
    latent_factor: int = 4,
    latent_channels: int = 4,
    multiple_px: int = 16,
    smallest_px: int = 32,
    default_px: int = 512,
    largest_px: int = 4096,
    overlap_px: int = 64,
    encoder_input: str = "upsampled",
) -> EngineManifest:
    """Describe a model without weights or artifacts, for `NumpyBackend`."""

    def stage(name: str) -> Stage:
        def tensor(tensor_name: str) -> Tensor:
            channels = 3 if tensor_name == "image" else latent_channels
            return Tensor(name=tensor_name, shape=("N", channels, "H", "W"))

        inputs, outputs = STAGE_TENSORS[name]
        return Stage(inputs=tuple(map(tensor, inputs)), outputs=tuple(map(tensor, outputs)), artifacts=())

    return EngineManifest(
        schema_version=SCHEMA_VERSION,
        model=Model(
            name=f"identity-x{scale}",
            scale=scale,
            latent_channels=latent_channels,
            latent_factor=latent_factor,
            timestep=1.0,
            alpha_1=0.0,
            sigma_1=1.0,
            weights_sha256="0" * 64,
        ),
        tiles=Tiles(
            smallest_px=smallest_px,
            default_px=default_px,
            largest_px=largest_px,
            multiple_px=multiple_px,
            overlap_px=overlap_px,
            encoder_input="lr" if encoder_input == "lr" else "upsampled",
        ),
        stages=Stages(encoder=stage("encoder"), step=stage("step"), decoder=stage("decoder")),
    )
