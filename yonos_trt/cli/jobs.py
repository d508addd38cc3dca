"""Which files a run over many takes, and where their results go: `plan_jobs`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from yonos_trt.choices import ADDRESS, no_path
from yonos_trt.errors import ConfigError
from yonos_trt.images import READABLE_SUFFIXES, SUPPORTED_SUFFIXES

__all__ = [
    "ADDRESS",
    "DEFAULT_SUFFIX",
    "Job",
    "PassedOver",
    "Plan",
    "filled_suffix",
    "find_pictures",
    "plan_jobs",
    "target_name",
    "why_not",
]

DEFAULT_SUFFIX = "_x{scale}"
# Suffixes that are read but not written -> what is written instead; anything else becomes PNG.
_WRITTEN_AS = {".jpe": ".jpg", ".jfif": ".jpg", ".mpo": ".jpg", ".btf": ".tiff", ".tf8": ".tiff"}


_OWN = re.compile(r"\.yonos-[0-9a-f]{16}\.parts?")  # unfinished files of `yonos_trt.atomic`, and claims


@dataclass(frozen=True, slots=True)
class Job:
    """One file to read and one to write."""

    source: Path
    target: Path


@dataclass(frozen=True, slots=True)
class PassedOver:
    """Something in an input folder that is not done.

    Attributes
    ----------
    path : Path
        What.
    reason : str
        Why, in a few words.
    failed : bool
        It should have been done: a folder that cannot be read.
    """

    path: Path
    reason: str
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does, and what of its input folders it does not."""

    jobs: list[Job]
    passed_over: list[PassedOver]


def plan_jobs(
    inputs: Sequence[Path],
    output: str | None,
    *,
    scale: int | str,
    suffix: str = DEFAULT_SUFFIX,
    format: str | None = None,
    recursive: bool = False,
    watching: bool = False,
) -> Plan:
    """Decide source and target of every file.

    Parameters
    ----------
    inputs
        Files and folders. Of a folder, the files with a picture's suffix; of sub-folders too if `recursive`.
        Everything else in it is passed over by name, but for results of these files from an earlier run. So
        is what lies in the output folder, where that is inside an input folder.
    output
        A file for one input file; otherwise a folder, made if needed, in which the tree of a folder input is
        kept. None: beside each source.
    scale
        Stands for ``{scale}`` in `suffix`.
    suffix
        Added to the stem when the target's name is derived.
    format
        Format of the targets; None: as the source where that can be written, else PNG.
    watching
        No files are no error, and of two files with the same target the later one is passed over.

    Raises
    ------
    ConfigError
        No files, a file or a picture's name as output of many, an address as output, an output whose suffix
        is another format than `format`, two files with the same target, or a bad `suffix`.
    """
    addition = filled_suffix(suffix, scale)
    if output is not None and (problem := no_path(output)):
        buckets = ", or see `yonos batch`" if ADDRESS.match(output) else ""
        raise ConfigError(f"the output {problem}{buckets}")
    single = len(inputs) == 1 and not inputs[0].is_dir()
    found, passed_over = find_pictures(inputs, None if single else output, recursive=recursive)
    if not found and not watching and not any(p.failed for p in passed_over):
        others = f" (it holds {_some(passed_over)})" if passed_over else ""
        raise ConfigError(
            f"no pictures in {', '.join(map(str, inputs))}{others}; expected files with one of the suffixes "
            f"{' '.join(READABLE_SUFFIXES)}{'' if recursive else ' (sub-folders: --recursive)'}"
        )
    jobs = []
    for source, relative in found:
        name = target_name(source, addition, format)
        if output is None:
            target = source.with_name(name)
        elif single and not _is_folder(output):
            target = Path(output)
        else:
            target = Path(output) / relative.parent / name
        jobs.append(Job(source, target))
    if output is not None and not single and Path(output).is_file():
        raise ConfigError(f"the output {output} is a file, but there are several inputs; name a folder")
    written = None if output is None or _is_folder(output) else _named(Path(output).suffix)
    if written and not single:
        raise ConfigError(
            f"the output {output} has the name of a picture, but there are several inputs; name a folder "
            f"({output}{os.sep} is one)"
        )
    if written and format is not None and _named(format) != written:
        raise ConfigError(
            f"the output {output} is {written} by its name, but the format asked for is {format}; leave "
            "the format out, or name the output by it"
        )
    if output is not None and _is_folder(output) and Path(output).exists() and not Path(output).is_dir():
        raise ConfigError(
            f"the output {output} is no folder, and its name has no suffix of a picture; name a folder, or a "
            "file with one"
        )
    place_of = _places()
    results = {place_of(job.target) for job in jobs}
    given = {place_of(path) for path in inputs}
    jobs = [job for job in jobs if (place := place_of(job.source)) in given or place not in results]
    passed_over = [p for p in passed_over if place_of(p.path) not in results]
    targets: dict[str, Path] = {}
    for job in list(jobs):
        other = targets.setdefault(place_of(job.target), job.source)
        if other != job.source and watching:
            jobs.remove(job)
            passed_over.append(
                PassedOver(job.source, f"{other} is written to the same {job.target}", failed=True)
            )
        elif other != job.source:
            raise ConfigError(
                f"{other} and {job.source} would both be written to {job.target}; run them one by one, with "
                "another output folder or suffix for each"
            )
    return Plan(jobs, passed_over)


def filled_suffix(suffix: str, scale: int | str) -> str:
    """Return what is added to the stem of a target's name.

    Raises
    ------
    ConfigError
        Braces are left, or it is no part of a file name.
    """
    addition = suffix.replace("{scale}", str(scale))
    if "{" in addition or "}" in addition:  # a width in a format field would be memory to take
        raise ConfigError(f"the suffix {suffix!r} cannot be filled in; only {{scale}} is replaced")
    if os.sep in addition or "\0" in addition:
        raise ConfigError(f"the suffix {suffix!r} contains {os.sep!r}, expected part of a file name")
    return addition


def target_name(source: PurePath, addition: str, format: str | None) -> str:
    """Return the name of a target: the source's stem with `filled_suffix`'s word and the format's suffix."""
    return f"{source.stem}{addition}{_suffix_for(source, format)}"


def why_not(name: str) -> str | None:
    """Say why a file of this name in an input folder is passed over; None for a picture's name."""
    suffix = os.path.splitext(name)[1]
    if suffix.lower() not in READABLE_SUFFIXES:
        return f"{suffix or 'a name without suffix'} is no picture format that is read"
    return None


def find_pictures(
    inputs: Sequence[Path], output: str | None, *, recursive: bool
) -> tuple[list[tuple[Path, Path]], list[PassedOver]]:
    """Return (path, path below its input folder), sorted within each input, none twice; and the rest."""
    place_of = _places()
    found: dict[str, tuple[Path, Path]] = {}
    passed_over: dict[str, PassedOver] = {}
    own = None if output is None else os.path.realpath(output)
    for given in inputs:
        if not given.is_dir():
            found.setdefault(place_of(given), (given, Path(given.name)))
            continue
        for path, passed in sorted(_walk(given, own, recursive=recursive), key=lambda pair: pair[0]):
            if passed is not None:
                passed_over.setdefault(place_of(path), passed)
            else:
                found.setdefault(place_of(path), (path, path.relative_to(given)))
    return list(found.values()), [p for place, p in passed_over.items() if place not in found]


def _walk(top: Path, output: str | None, *, recursive: bool) -> Iterator[tuple[Path, PassedOver | None]]:
    """Yield every file of a folder, and why it is passed over; ``output`` is where results go."""
    folders = [(top, False)]
    while folders:
        folder, is_output = folders.pop()
        is_output = is_output or (folder != top and os.path.realpath(folder) == output)
        try:
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            yield folder, PassedOver(folder, f"cannot be read: {error.strerror}", failed=True)
            continue
        for entry in listed:
            path = folder / entry.name
            if _OWN.fullmatch(entry.name):
                continue
            if _is_dir(entry, follow=False):
                if recursive:
                    folders.append((path, is_output))
                elif os.path.realpath(path) != output:
                    yield path, PassedOver(path, "a folder; --recursive goes into it")
            elif reason := _reason(entry):
                yield path, PassedOver(path, reason)
            elif is_output:
                yield path, PassedOver(path, "lies in the output folder; name it as an input to take it")
            else:
                yield path, None


def _reason(entry: os.DirEntry[str]) -> str | None:
    """Say why something that is no folder is passed over; None for a picture."""
    if _is_dir(entry, follow=True):
        return "a link to a folder; name it as an input to take it"
    if reason := why_not(entry.name):
        return reason
    try:
        special = not entry.is_file() and entry.stat() is not None  # a broken link raises: reading it fails
    except OSError:
        return None
    return "not a file" if special else None


def _is_dir(entry: os.DirEntry[str], *, follow: bool) -> bool:
    try:
        return entry.is_dir(follow_symlinks=follow)
    except OSError:
        return False


def _some(passed_over: Sequence[PassedOver]) -> str:
    first = passed_over[0]
    more = f" and {len(passed_over) - 1} more" if len(passed_over) > 1 else ""
    return f"{first.path.name}: {first.reason}{more}"


def _places() -> Callable[[Path], str]:
    """Return what makes of a path the one by which it is known however it was written: ``a``, ``../x/a``.

    A link keeps its own name: it is not the file it points at. Each folder is looked at once.
    """
    folders: dict[str, str] = {}

    def place(path: Path) -> str:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        return os.path.join(folders[folder], name)

    return place


def _suffix_for(source: PurePath, format: str | None) -> str:
    if format is not None:
        return f".{format.lower().lstrip('.')}"
    suffix = source.suffix.lower()
    return source.suffix if suffix in SUPPORTED_SUFFIXES else _WRITTEN_AS.get(suffix, ".png")


def _named(word: str) -> str | None:
    """Return the format of a suffix or a format's word that can be written."""
    return SUPPORTED_SUFFIXES.get(f".{word.lower().lstrip('.')}")


def _is_folder(output: str) -> bool:
    return output.endswith(os.sep) or Path(output).is_dir() or not Path(output).suffix
