"""The engine directory: ``manifest.json`` and the artifacts it names.

Identity is data in the manifest, never parsed from a file name. Paths are relative to the directory,
none may leave it (also not through a symbolic link), and each comes with SHA-256 and size: an engine plan
is executable code, so nothing is loaded whose hash is not written down here. Names that begin with a dot
(``.cache/``, ``.DS_Store``) are not part of the directory and are never loaded by way of the manifest.
What is loaded is read once, by `read_file`: the bytes that were hashed are the bytes that run.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import msgspec

from yonos_trt.atomic import atomic_directory, remove_leftovers, write_file
from yonos_trt.choices import Precision
from yonos_trt.engine.schema import (
    MANIFEST_NAME,
    REBUILD,
    SCHEMA_VERSION,
    STAGE_TENSORS,
    Artifact,
    EngineManifest,
    FileRecord,
    Licence,
    Model,
    Origin,
    Parity,
    Profile,
    Runtime,
    ShapeRange,
    Stage,
    StageParity,
    Stages,
    Tensor,
    Tiles,
    check,
    check_relative,
    identity_manifest,
    stage_tensors,
)
from yonos_trt.errors import (
    ConfigError,
    EngineIntegrityError,
    EngineNotFoundError,
    ManifestError,
    install_command,
)

__all__ = [
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "STAGE_TENSORS",
    "Artifact",
    "EngineManifest",
    "FileRecord",
    "Licence",
    "Model",
    "Origin",
    "Parity",
    "Precision",
    "Profile",
    "Runtime",
    "ShapeRange",
    "Stage",
    "StageParity",
    "Stages",
    "Tensor",
    "Tiles",
    "artifact_path",
    "file_record",
    "identity_manifest",
    "load_manifest",
    "read_file",
    "save_manifest",
    "stage_tensors",
    "write_engine_dir",
]


_CHUNK_BYTES = 1 << 20
_LARGEST_MANIFEST_BYTES = 16 << 20


# ---------------------------------------------------------------------------------------------------------
# Reading


def load_manifest(directory: str | os.PathLike[str], *, verify: bool = True) -> EngineManifest:
    """Read and check the manifest of an engine directory.

    Parameters
    ----------
    directory
        The engine directory.
    verify
        True hashes every file. False checks only that exactly the named files are there with the named
        sizes; whoever loads one of them then takes its bytes from `read_file`.

    Raises
    ------
    EngineNotFoundError
        There is no directory, or no ``manifest.json`` in it.
    ManifestError
        The manifest is not JSON, newer than this version, or inconsistent.
    EngineIntegrityError
        A file is missing, not listed, of another size or with another hash.
    """
    root = Path(directory)
    path = root / MANIFEST_NAME
    if not root.is_dir():
        raise EngineNotFoundError(
            f"engine directory {str(root)!r} does not exist or is not a directory; "
            f"build one with: yonos-export CHECKPOINT --engine-dir {root}"
        )
    try:
        with _opened(path) as stream:
            raw = stream.read(_LARGEST_MANIFEST_BYTES + 1)
    except FileNotFoundError:
        raise EngineNotFoundError(
            f"{str(root)!r} has no {MANIFEST_NAME}, so it is not an engine directory; "
            f"build one with: yonos-export CHECKPOINT --engine-dir {root}"
        ) from None
    except OSError as error:
        raise ManifestError(
            f"{path} cannot be read: {error.strerror}; check its type and permissions"
        ) from error
    if len(raw) > _LARGEST_MANIFEST_BYTES:
        raise ManifestError(
            f"{path} has more than {_LARGEST_MANIFEST_BYTES >> 20} MiB, which no manifest needs; {REBUILD}"
        )
    manifest = _decode(raw, path)
    check(manifest, path)
    _check_files(manifest, root, verify=verify)
    return manifest


def _decode(raw: bytes, path: Path) -> EngineManifest:
    """Parse the bytes of a manifest; the version is looked at before anything else."""
    try:
        document = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(f"{path} is not JSON ({error}); {REBUILD}") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ManifestError(f"{path} has no schema_version, expected a whole number from 1 up; {REBUILD}")
    if version > SCHEMA_VERSION:
        raise ManifestError(
            f"{path} has schema_version {version}, this yonos-trt reads up to {SCHEMA_VERSION}; "
            f"update the checkout (git pull), then: {install_command()}"
        )
    try:
        return msgspec.convert(document, EngineManifest)
    except (msgspec.ValidationError, RecursionError) as error:
        raise ManifestError(f"{path} does not fit the manifest schema: {error}; {REBUILD}") from error


def artifact_path(directory: str | os.PathLike[str], file: str) -> Path:
    """Resolve a file of the manifest, following symbolic links.

    Raises
    ------
    ManifestError
        The path leaves the directory.
    EngineIntegrityError
        There is no such file.
    """
    root = Path(directory).resolve()
    check_relative(file, root / MANIFEST_NAME)
    path = (root / file).resolve()
    if not path.is_relative_to(root):
        raise ManifestError(
            f"{root / MANIFEST_NAME} names {file!r}, which is a link that leads out of the directory; "
            "put the file itself there"
        )
    if not path.exists():
        raise EngineIntegrityError(f"{root / file} is named in {MANIFEST_NAME} but missing; {REBUILD}")
    if not path.is_file():
        raise EngineIntegrityError(f"{root / file} is not a regular file; {REBUILD}")
    return path


def _check_files(manifest: EngineManifest, root: Path, *, verify: bool) -> None:
    named: set[str] = set()
    for record in manifest.records():
        if record.file not in named:
            named.add(record.file)
            _checked(root, record, hashes=verify)
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for file in sorted(files):
            relative = (Path(folder) / file).relative_to(root).as_posix()
            if not file.startswith(".") and relative != MANIFEST_NAME and relative not in named:
                raise EngineIntegrityError(
                    f"{root / relative} is not named in {MANIFEST_NAME}; remove it, or {REBUILD}"
                )


def read_file(directory: str | os.PathLike[str], record: FileRecord) -> bytes:
    """Return the bytes of a file of the directory; what is returned is what was hashed.

    Raises
    ------
    ManifestError
        The path leaves the directory.
    EngineIntegrityError
        The file is missing, no regular file, unreadable, of another size or with another hash.
    """
    return b"".join(_checked(Path(directory), record, hashes=True, keep=True))


def _checked(root: Path, record: FileRecord, *, hashes: bool, keep: bool = False) -> list[bytes]:
    """Check a file; return its bytes if they shall be kept. It is opened once."""
    path = artifact_path(root, record.file)
    chunks, digest = [], hashlib.sha256()
    try:
        with _opened(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size != record.bytes:
                kind = "truncated" if size < record.bytes else "too long"
                raise EngineIntegrityError(
                    f"{path} is {kind}: {size} bytes, {MANIFEST_NAME} says {record.bytes}; {REBUILD}"
                )
            if not hashes:
                return []
            # one byte more than there should be: it may grow meanwhile
            chunk = stream.read(size + 1 if keep else _CHUNK_BYTES)
            while chunk:
                digest.update(chunk)
                if keep:
                    chunks.append(chunk)
                chunk = stream.read(_CHUNK_BYTES)
    except OSError as error:
        raise EngineIntegrityError(
            f"{path} cannot be read: {error.strerror}; check its type and permissions"
        ) from error
    if digest.hexdigest() != record.sha256:
        raise EngineIntegrityError(
            f"{path} was altered: its SHA-256 is {digest.hexdigest()}, {MANIFEST_NAME} says {record.sha256}; "
            f"nothing of it is loaded; {REBUILD}"
        )
    return chunks


def _opened(path: Path) -> BinaryIO:
    """Open a regular file; a pipe, which would wait for its other end, or a device is an OSError."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------
# Writing


def file_record(path: str | os.PathLike[str], *, file: str | None = None) -> FileRecord:
    """Hash a file; `file` is the name it will have in the engine directory (default: its base name)."""
    path = Path(path)
    return FileRecord(file=file or path.name, sha256=_sha256(path), bytes=path.stat().st_size)


def save_manifest(directory: str | os.PathLike[str], manifest: EngineManifest) -> Path:
    """Check a manifest and write it by way of `yonos_trt.atomic`; return its path.

    The files it names are not looked at.

    Raises
    ------
    ManifestError
        The manifest would not load again.
    OSError
        The directory cannot be written, or the disk is full; the old manifest stays.
    """
    root = Path(directory)
    path = root / MANIFEST_NAME
    raw = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    check(_decode(raw, path), path)
    remove_leftovers(root)
    write_file(path, raw)
    return path


def write_engine_dir(
    target: str | os.PathLike[str],
    files: Mapping[str, str | os.PathLike[str] | bytes],
    manifest: EngineManifest,
) -> Path:
    """Write a complete engine directory, all or nothing.

    Everything is written into a directory beside `target`, loaded once with all hashes and fsynced; then it
    takes the place of `target` (`yonos_trt.atomic`). An old directory is kept until that moment, so a killed
    or failing export leaves either the old or the new one, never a half.

    Parameters
    ----------
    target
        The directory to create or to replace. Something else than an engine directory is not replaced.
    files
        Name in the directory -> path to copy from, or the bytes.
    manifest
        Names exactly these files.

    Raises
    ------
    ConfigError
        `target` exists and is not an engine directory.
    ManifestError, EngineIntegrityError
        The manifest does not fit the files.
    OSError
        The parent cannot be written, or the disk is full.
    """
    target = Path(target)
    remove_leftovers(target.parent)  # it may bring back what a killed run had moved aside
    if target.exists() and not (
        target.is_dir() and ((target / MANIFEST_NAME).is_file() or not any(target.iterdir()))
    ):
        raise ConfigError(
            f"{target} exists and is not an engine directory, so it is not replaced; choose another path"
        )
    with atomic_directory(target) as new:
        for name, source in files.items():
            check_relative(name, target / MANIFEST_NAME)
            destination = new / name
            destination.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(source, bytes):
                destination.write_bytes(source)
            else:
                shutil.copyfile(source, destination)
        save_manifest(new, manifest)
        load_manifest(new, verify=True)
    return target
