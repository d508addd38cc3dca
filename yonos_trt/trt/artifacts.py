"""Which TensorRT engines of a directory fit this machine, and the checks before one is deserialised.

An engine plan is executable code. `read_engine` hands out bytes only if they are the ones the manifest
vouches for (size and SHA-256 of the very bytes that will be deserialised) and if the plan's own header agrees
with the manifest on its length and TensorRT version. It is the hash that protects: the header check looks at
16 of 64 bytes (tag, length, version), and is there to name a wrong TensorRT version or a cut file before
TensorRT does so less clearly. Nothing here needs a GPU or TensorRT.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from yonos_trt.engine.manifest import (
    Artifact,
    EngineManifest,
    FileRecord,
    Precision,
    Runtime,
    Stage,
    read_file,
)
from yonos_trt.errors import (
    EngineDeviceError,
    EngineIntegrityError,
    EngineNotFoundError,
    EngineVersionError,
    YonosError,
)

PRECISIONS: tuple[Precision, ...] = ("fp16", "bf16", "fp32")
"""What ``precision=None`` tries, best first."""

# The first 64 bytes of a plan: a little-endian tag, "ftrt" for TensorRT, "vtrt" for TensorRT-RTX; major,
# minor, patch and build, one byte each, at 24 to 27. Plans of TensorRT-RTX 1.7 have their length as u64 at
# 16; whether TensorRT's own do has not been looked at.
_HEADER_BYTES = 64
_TAG_TENSORRT, _TAG_RTX = 0x74727466, 0x74727476


@dataclass(frozen=True, slots=True)
class PlanHeader:
    """What a plan says about itself."""

    length_bytes: int | None
    """None where this kind of header does not say."""
    version: tuple[int, int, int, int]


def read_header(raw: bytes) -> PlanHeader | None:
    """Read the header of a plan, None if this is not one."""
    if len(raw) < _HEADER_BYTES:
        return None
    tag = struct.unpack_from("<I", raw, 0)[0]
    if tag not in (_TAG_TENSORRT, _TAG_RTX):
        return None
    major, minor, patch, build = raw[24:28]
    length: int | None = struct.unpack_from("<Q", raw, 16)[0] if tag == _TAG_RTX else None
    return PlanHeader(length, (major, minor, patch, build))


def build_command(engine_dir: Path, runtime: str, precision: str | None = None) -> str:
    """The command that builds what is missing."""
    return f"yonos-export {engine_dir} --engine-dir {engine_dir} --{precision or 'fp16'} --runtime {runtime}"


# ---------------------------------------------------------------------------------------------------------
# Choice


def pick_engines(
    manifest: EngineManifest,
    engine_dir: Path,
    *,
    runtime: Runtime,
    tensorrt_version: str,
    compute_capability: tuple[int, int],
    gpu: str = "this GPU",
    precision: Precision | None = None,
) -> dict[str, Artifact]:
    """Choose one engine per stage, all of one precision.

    Parameters
    ----------
    runtime
        "tensorrt" or "tensorrt-rtx".
    tensorrt_version
        Version of the installed module.
    compute_capability, gpu
        Of the device it shall run on, and the device's name for messages.
    precision
        None takes the first of `PRECISIONS` for which all stages have a fitting engine.

    Raises
    ------
    EngineNotFoundError
        A stage has no engine of this runtime and precision at all.
    EngineVersionError
        There are engines, but built by other TensorRT versions.
    EngineDeviceError
        There are engines of this version, but for other GPUs.
    """
    problems: list[YonosError] = []
    for wanted in PRECISIONS if precision is None else (precision,):
        picked: dict[str, Artifact] = {}
        try:
            for name, stage in manifest.stages.items():
                picked[name] = _pick(
                    name, stage, engine_dir, runtime, wanted, tensorrt_version, compute_capability, gpu
                )
        except (EngineNotFoundError, EngineVersionError, EngineDeviceError) as error:
            problems.append(error)
        else:
            return picked
    # The most telling refusal: an engine for another GPU or version says more than one that was never built.
    order = (EngineDeviceError, EngineVersionError, EngineNotFoundError)
    raise min(problems, key=lambda error: order.index(type(error)))


def _pick(
    name: str,
    stage: Stage,
    engine_dir: Path,
    runtime: Runtime,
    precision: Precision,
    version: str,
    capability: tuple[int, int],
    gpu: str,
) -> Artifact:
    found = stage.find(runtime, precision)
    fix = f"build it here with: {build_command(engine_dir, runtime, precision)}"
    if not found:
        have = ", ".join(f"{a.runtime} {a.precision}" for a in stage.artifacts) or "nothing"
        raise EngineNotFoundError(
            f"{engine_dir} has no {runtime} engine in {precision} for the stage {name} "
            f"(it has: {have}); {fix}"
        )
    current = [a for a in found if _fits_version(a, version)]
    if not current:
        raise EngineVersionError(
            f"the {precision} engines of the stage {name} were built by {runtime} "
            f"{_list(a.tensorrt_version or 'of unknown version' for a in found)}, installed is {version}; "
            f"install that version, or {fix}"
        )
    fitting = [a for a in current if _fits_device(a, capability)]
    if not fitting:
        raise EngineDeviceError(
            f"the {precision} engines of the stage {name} were built for compute capability "
            f"{_list(c for a in current for c in a.compute_capability)}, {gpu} has "
            f"{capability[0]}.{capability[1]}; {fix}"
        )
    return min(fitting, key=lambda a: _generality(a, capability))


def _list(words: Iterable[str]) -> str:
    return ", ".join(sorted(set(words)))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _fits_version(artifact: Artifact, installed: str) -> bool:
    """Same major, minor and patch; a version-compatible plan also runs on newer ones of the same major."""
    if artifact.tensorrt_version is None:
        return False
    built, here = _numbers(artifact.tensorrt_version), _numbers(installed)
    if artifact.version_compatible:
        return built[:1] == here[:1] and built <= here
    return built[:3] == here[:3]


def _fits_device(artifact: Artifact, capability: tuple[int, int]) -> bool:
    if not artifact.compute_capability or f"{capability[0]}.{capability[1]}" in artifact.compute_capability:
        return True
    return artifact.hardware_compatibility == "ampere-plus" and capability >= (8, 0)


def _generality(artifact: Artifact, capability: tuple[int, int]) -> tuple[bool, int]:
    """Engines for exactly this GPU first, then those for few others."""
    exact = f"{capability[0]}.{capability[1]}" in artifact.compute_capability
    return not exact, len(artifact.compute_capability)


# ---------------------------------------------------------------------------------------------------------
# Bytes


def read_engine(engine_dir: Path, artifact: Artifact) -> bytes:
    """Return the bytes of an engine after every check that is possible without running it.

    Raises
    ------
    ManifestError
        The path leaves the directory.
    EngineIntegrityError
        The file is missing, unreadable, truncated, altered, or no engine plan.
    EngineVersionError
        The plan's header names another TensorRT version than the manifest.
    """
    fix = f"build it again with: {build_command(engine_dir, artifact.runtime, artifact.precision)}"
    path = engine_dir / artifact.file
    try:
        raw = read_file(
            engine_dir, FileRecord(file=artifact.file, sha256=artifact.sha256, bytes=artifact.bytes)
        )
    except EngineIntegrityError as error:
        raise EngineIntegrityError(f"{error}, or {fix}") from error
    header = read_header(raw)
    if header is None:
        raise EngineIntegrityError(f"{path} is not a TensorRT engine plan: its header lacks the tag; {fix}")
    if header.length_bytes not in (None, len(raw)):
        raise EngineIntegrityError(
            f"{path} has {len(raw)} bytes, its header says {header.length_bytes}: it was cut or joined "
            f"before it came into the manifest; {fix}"
        )
    said = _numbers(artifact.tensorrt_version or "")
    if header.version[: min(len(said), 4)] != said[:4]:
        found = ".".join(map(str, header.version))
        raise EngineVersionError(
            f"{path} was built by version {found} according to its header, the manifest says "
            f"{artifact.tensorrt_version}; {fix}"
        )
    return raw
