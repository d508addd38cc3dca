"""Which files a run over many takes, and where their results go: `plan_jobs`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from yonos_trt.errors import ConfigError
from yonos_trt.images import READABLE_SUFFIXES, SUPPORTED_SUFFIXES

__all__ = ["Job", "plan_jobs"]

DEFAULT_SUFFIX = "_x{scale}"
# Suffixes that are read but not written -> what is written instead; anything else becomes PNG.
_WRITTEN_AS = {".jpe": ".jpg", ".jfif": ".jpg", ".mpo": ".jpg", ".btf": ".tiff", ".tf8": ".tiff"}


@dataclass(frozen=True, slots=True)
class Job:
    """One file to read and one to write."""

    source: Path
    target: Path


def plan_jobs(
    inputs: Sequence[Path],
    output: str | None,
    *,
    scale: int,
    suffix: str = DEFAULT_SUFFIX,
    format: str | None = None,
    recursive: bool = False,
) -> list[Job]:
    """Decide source and target of every file.

    Parameters
    ----------
    inputs
        Files and folders. Of a folder, the files with a picture's suffix; of sub-folders too if `recursive`.
        Files that are the result of another one, from an earlier run, are left out.
    output
        A file for one input file; otherwise a folder, made if needed, in which the tree of a folder input is
        kept. None: beside each source.
    scale
        Stands for ``{scale}`` in `suffix`.
    suffix
        Added to the stem when the target's name is derived.
    format
        Format of the targets; None: as the source where that can be written, else PNG.

    Raises
    ------
    ConfigError
        No files, a file as output of many, two files with the same target, or a bad `suffix`.
    """
    try:
        addition = suffix.format(scale=scale)
    except (KeyError, IndexError, ValueError) as error:
        raise ConfigError(f"the suffix {suffix!r} cannot be filled in; only {{scale}} is replaced") from error
    if os.sep in addition:
        raise ConfigError(f"the suffix {suffix!r} contains {os.sep!r}, expected part of a file name")
    found = list(_find(inputs, recursive=recursive))
    if not found:
        raise ConfigError(
            f"no pictures in {', '.join(map(str, inputs))}; expected files with one of the suffixes "
            f"{' '.join(READABLE_SUFFIXES)}{'' if recursive else ' (sub-folders: --recursive)'}"
        )
    single = len(inputs) == 1 and not inputs[0].is_dir()
    jobs = []
    for source, relative in found:
        name = f"{source.stem}{addition}{_suffix_for(source, format)}"
        if output is None:
            target = source.with_name(name)
        elif single and not _is_folder(output):
            target = Path(output)
        else:
            target = Path(output) / relative.parent / name
        jobs.append(Job(source, target))
    if output is not None and not single and Path(output).is_file():
        raise ConfigError(f"the output {output} is a file, but there are several inputs; name a folder")
    results = {job.target for job in jobs}
    given = set(inputs)
    jobs = [job for job in jobs if job.source in given or job.source not in results]
    targets: dict[Path, Path] = {}
    for job in jobs:
        other = targets.setdefault(_place(job.target), job.source)
        if other != job.source:
            raise ConfigError(
                f"{other} and {job.source} would both be written to {job.target}; run them one by one, with "
                "another output folder or suffix for each"
            )
    return jobs


def _find(inputs: Sequence[Path], *, recursive: bool) -> Iterator[tuple[Path, Path]]:
    """Yield (path, path below its input folder), sorted within each folder, none twice."""
    seen: set[Path] = set()
    for given in inputs:
        if given.is_dir():
            files = given.rglob("*") if recursive else given.glob("*")
            paths = sorted(p for p in files if p.suffix.lower() in READABLE_SUFFIXES and not p.is_dir())
            pairs = [(p, p.relative_to(given)) for p in paths]
        else:
            pairs = [(given, Path(given.name))]
        for path, relative in pairs:
            if (place := _place(path)) not in seen:
                seen.add(place)
                yield path, relative


def _place(path: Path) -> Path:
    """Return the path by which a name in a folder is known however it was written: ``a``, ``../x/a``.

    A link keeps its own name: it is not the file it points at.
    """
    return path.parent.resolve() / path.name


def _suffix_for(source: Path, format: str | None) -> str:
    if format is not None:
        return f".{format.lower().lstrip('.')}"
    suffix = source.suffix.lower()
    return source.suffix if suffix in SUPPORTED_SUFFIXES else _WRITTEN_AS.get(suffix, ".png")


def _is_folder(output: str) -> bool:
    return output.endswith(os.sep) or Path(output).is_dir() or not Path(output).suffix
