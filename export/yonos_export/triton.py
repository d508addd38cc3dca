"""A model repository of NVIDIA's Triton Inference Server that works as it is: ``yonos-export --triton``.

::

    REPOSITORY/yonos/config.pbtxt              picture file in, picture file out
               yonos/1/model.py                two lines: the class is `yonos_trt.triton.PictureModel`
               yonos/1/engine/                 the engine directory, every hash checked
               yonos_tensor/...                the same for arrays: `yonos_trt.triton.TensorModel`

Needs nothing but the run time; Triton's own Python needs this package (docs/scale.md).
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from yonos_trt.atomic import atomic_directory
from yonos_trt.engine.manifest import MANIFEST_NAME, EngineManifest, load_manifest
from yonos_trt.errors import ConfigError

QUEUE = 64
"""Requests that wait at a model before the next one is refused."""

MODELS = {"yonos": "PictureModel", "yonos_tensor": "TensorModel"}
"""Name in the repository -> class of `yonos_trt.triton`."""

_PICTURE = """\
input [ { name: "IMAGE" data_type: TYPE_UINT8 dims: [ -1 ] } ]
output [
  { name: "IMAGE" data_type: TYPE_UINT8 dims: [ -1 ] },
  { name: "INFO" data_type: TYPE_UINT8 dims: [ -1 ] }
]
"""
_TENSOR = """\
input [
  { name: "IMAGE_UINT8" data_type: TYPE_UINT8 dims: [ -1, -1, -1, -1 ] optional: true },
  { name: "IMAGE_UINT16" data_type: TYPE_UINT16 dims: [ -1, -1, -1, -1 ] optional: true },
  { name: "IMAGE_FP32" data_type: TYPE_FP32 dims: [ -1, -1, -1, -1 ] optional: true }
]
output [
  { name: "IMAGE_UINT8" data_type: TYPE_UINT8 dims: [ -1, -1, -1, -1 ] },
  { name: "IMAGE_UINT16" data_type: TYPE_UINT16 dims: [ -1, -1, -1, -1 ] },
  { name: "IMAGE_FP32" data_type: TYPE_FP32 dims: [ -1, -1, -1, -1 ] }
]
"""
_CONFIG = """\
# %(says)s, by the model %(model)s, x%(scale)d.
# No name: the folder's is taken, so that it may be renamed.
backend: "python"
max_batch_size: 0
%(tensors)s
# Each is a process with its own copy of the networks. KIND_GPU: `count` on every GPU, or on gpus: [ 0, 1 ].
# KIND_CPU: they share the CPUs. KIND_AUTO: KIND_GPU where Triton sees one, KIND_CPU elsewhere.
instance_group [ { kind: %(kind)s count: 1 } ]

# Triton's batcher for its queue alone: requests are never merged. The one that finds the queue full is
# refused at once (HTTP 503, gRPC UNAVAILABLE).
dynamic_batching { default_queue_policy { max_queue_size: %(queue)d } }

# Options of yonos_trt.SR, a JSON object such as {"lanes": 2, "memory_limit_mb": 4096}.
parameters { key: "options" value { string_value: '{}' } }
"""
_MODEL = '''\
"""%(says)s: Triton's Python backend looks for this name; needs yonos-trt in Triton's Python."""

from yonos_trt.triton import %(kind)s as TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
_SAYS = {
    "yonos": "Picture file in, upscaled picture file out",
    "yonos_tensor": "Arrays in, upscaled arrays out",
}


def check_repository(target: Path, *, force: bool = False) -> None:
    """Refuse a path that `write_repository` would not write to.

    Raises
    ------
    ConfigError
        It is a file, or a folder with something in it (without `force`), or with something that is not ours.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise ConfigError(f"{target} is a file; name another folder for --triton")
    inside = {path.name for path in target.iterdir() if not path.name.startswith(".yonos-")}
    if other := sorted(inside - set(MODELS)):
        raise ConfigError(
            f"{target} holds {', '.join(other)}, expected nothing but {' and '.join(MODELS)}, which are "
            "written as one; name another folder for --triton: a server takes several repositories"
        )
    if inside and not force:
        raise ConfigError(f"{target} exists; name another folder for --triton, or replace it with --force")


def write_repository(engine_dir: Path, target: Path, *, force: bool = False) -> EngineManifest:
    """Write a repository with both models around an engine directory, all or nothing.

    The engine directory is copied once and hashed as a copy; the second model has hard links to the same
    files where the file system knows them. Where the directory has TensorRT engines, instances are
    ``KIND_AUTO``, one a GPU; else ``KIND_CPU``.

    Parameters
    ----------
    engine_dir
        Where the engine directory is.
    target
        Folder of the repository; what stands there stays until the new one is complete.
    force
        Replace a repository of ours.

    Returns
    -------
    EngineManifest
        Of the copy.

    Raises
    ------
    ConfigError
        See `check_repository`, or one of the two folders would lie inside the other.
    EngineNotFoundError, ManifestError, EngineIntegrityError
        The engine directory is none, or is damaged.
    OSError
        The folder cannot be written, or the disk is full.
    """
    check_repository(target, force=force)
    manifest = load_manifest(engine_dir, verify=False)
    here, there = engine_dir.resolve(), target.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise ConfigError(
            f"{target} and the engine directory {engine_dir} lie in each other; name another folder"
        )
    with atomic_directory(target) as new:
        first: Path | None = None
        for name, kind in MODELS.items():
            version = new / name / "1"
            version.mkdir(parents=True)
            (new / name / "config.pbtxt").write_text(_config(name, manifest), encoding="utf-8")
            says = {"says": _SAYS[name], "kind": kind}
            (version / "model.py").write_text(_MODEL % says, encoding="utf-8")
            _copy(manifest, first or engine_dir, version / "engine", link=first is not None)
            first = first or version / "engine"
        return load_manifest(first or engine_dir)


def _config(name: str, manifest: EngineManifest) -> str:
    engines = any(a.runtime != "onnx" for _, stage in manifest.stages.items() for a in stage.artifacts)
    return _CONFIG % {
        "says": _SAYS[name],
        "model": manifest.model.name,
        "scale": manifest.model.scale,
        "tensors": _PICTURE if name == "yonos" else _TENSOR,
        "kind": "KIND_AUTO" if engines else "KIND_CPU",
        "queue": QUEUE,
    }


def _copy(manifest: EngineManifest, source: Path, target: Path, *, link: bool) -> None:
    """Copy what the manifest names, and the manifest; nothing else that lies there."""
    for file in (MANIFEST_NAME, *dict.fromkeys(record.file for record in manifest.records())):
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        if link:
            try:
                os.link(source / file, target / file)
                continue
            except OSError as error:
                if error.errno not in (
                    errno.EPERM,
                    errno.EOPNOTSUPP,
                    errno.ENOSYS,
                    errno.EMLINK,
                    errno.EXDEV,
                ):
                    raise
        shutil.copyfile(source / file, target / file)
