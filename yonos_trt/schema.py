"""The fields of ``manifest.json`` as strict structs: unknown fields and wrong types are refused.

`yonos_trt.manifest` reads and writes them and is the module to import from.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

SCHEMA_VERSION = 1

Runtime = Literal["onnx", "tensorrt", "tensorrt-rtx"]
Precision = Literal["fp32", "fp16", "bf16"]
StageName = Literal["encoder", "step", "decoder"]
Dtype = Literal["float32", "float16", "bfloat16"]

# What every stage is called with and gives back: (inputs, outputs).
STAGE_TENSORS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "encoder": (("image",), ("z_l",)),
    "step": (("noise", "z_l"), ("z_0",)),
    "decoder": (("z_0",), ("image",)),
}


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
        if self.model.card is not None:
            yield self.model.card
        yield from self.files
