"""Which pictures a batch takes, and where their results go, as `yonos upscale` has it; URIs as well."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from yonos_trt.atomic import remove_leftovers
from yonos_trt.cli.jobs import PassedOver, filled_suffix, find_pictures, plan_jobs, target_name, why_not
from yonos_trt.errors import ConfigError, InputError
from yonos_trt.images import READABLE_SUFFIXES
from yonos_trt.ray_data import places


@dataclass(slots=True)
class BatchPlan:
    """What a batch does; a picture is its place in `sources`, the same in `targets`."""

    sources: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    there: list[int] = field(default_factory=list)
    """Whose target exists."""

    passed_over: list[tuple[str, str, bool]] = field(default_factory=list)
    """Name, reason, and whether it should have been done (a folder that cannot be read)."""

    @property
    def folders(self) -> set[Path]:
        """Folders of this machine that results go to."""
        return {Path(target).parent for target in self.targets if not places.is_remote(target)}

    @property
    def top(self) -> list[Path]:
        """One of `folders`, with the fewest parts; none where they are not of this machine."""
        return sorted(self.folders, key=lambda folder: len(folder.parts))[:1]


def plan(
    source: str, target: str, *, recursive: bool, suffix: str, label: str, format: str | None
) -> BatchPlan:
    """List both sides once each and decide every target.

    Parameters
    ----------
    source, target
        Folder or URI of one; `source` may be one file of this machine.
    recursive, suffix, label, format
        As `yonos_trt.cli.jobs.plan_jobs`, whose `scale` is `label`.

    Raises
    ------
    ConfigError
        As `plan_jobs`.
    InputError
        A place is not there, or cannot be listed.
    """
    if not source or not target:
        raise ConfigError("an empty name was given; expected SRC and DST, each a folder or a URI")
    if not places.is_remote(source) and not os.path.exists(places.local(source)):
        raise InputError(f"{places.shown(source)}: not found; mend the name")
    if places.is_remote(source) or places.is_remote(target):
        made = _with_uris(
            source, target, recursive=recursive, addition=filled_suffix(suffix, label), format=format
        )
        if places.is_remote(target):
            known = places.exists_below(target)
            found = {places.below(target, name) for name in known}
            made.there = [i for i, name in enumerate(made.targets) if name in found]
            return made
    else:
        paths = [Path(places.local(source))]
        jobs = plan_jobs(
            paths, places.local(target), scale=label, suffix=suffix, format=format, recursive=recursive
        )
        made = BatchPlan(
            [
                os.path.abspath(job.source) for job in jobs.jobs
            ],  # workers have a working directory of their own
            [os.path.abspath(job.target) for job in jobs.jobs],
            passed_over=_named(jobs.passed_over),
        )
    for folder in made.folders:
        remove_leftovers(folder)
    there = {folder: _names(folder) for folder in made.folders}
    made.there = [
        i for i, name in enumerate(made.targets) if os.path.basename(name) in there[Path(name).parent]
    ]
    return made


def _named(passed_over: list[PassedOver]) -> list[tuple[str, str, bool]]:
    return [(str(p.path), p.reason, p.failed) for p in passed_over]


def _names(folder: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except OSError:  # not there yet, or it cannot be listed: then writing says why
        return frozenset()


def _with_uris(source: str, target: str, *, recursive: bool, addition: str, format: str | None) -> BatchPlan:
    made = BatchPlan()
    pictures: list[tuple[str, str]] = []  # name, relative to the source
    if places.is_remote(source):
        inside = _relative_to(target, source)
        for name in places.list_below(source, recursive=recursive):
            path = places.shown(places.below(source, name))
            if name.endswith("/"):
                if not recursive and name != f"{inside}/":
                    made.passed_over.append((path, "a folder; --recursive goes into it", False))
            elif inside is not None and name.startswith(f"{inside}/"):
                continue  # results of an earlier run, or of this one
            elif reason := why_not(name):
                made.passed_over.append((path, reason, False))
            elif {"", ".", ".."} & set(name.split("/")):  # it could lead out of the target
                made.passed_over.append((path, "an empty part, '.' or '..' in its name; rename it", True))
            else:
                pictures.append((places.below(source, name), name))
    else:
        found, passed_over = find_pictures([Path(places.local(source))], None, recursive=recursive)
        made.passed_over = _named(passed_over)
        pictures = [(os.path.abspath(path), relative.as_posix()) for path, relative in found]
    taken: dict[str, str] = {}
    for name, relative in pictures:
        at = PurePosixPath(relative)
        result = places.below(target, str(at.parent / target_name(at, addition, format)))
        other = taken.setdefault(result, name)
        if other != name:
            raise ConfigError(
                f"{places.shown(other)} and {places.shown(name)} would both be written to "
                f"{places.shown(result)}; run them one by one, with another output folder or suffix for each"
            )
        if not places.is_remote(result):
            result = os.path.abspath(result)
        made.sources.append(name)
        made.targets.append(result)
    results = set(made.targets)
    kept = [i for i, name in enumerate(made.sources) if name not in results]
    made.sources, made.targets = [made.sources[i] for i in kept], [made.targets[i] for i in kept]
    if not made.sources and not any(failed for *_, failed in made.passed_over):
        raise ConfigError(
            f"no pictures in {places.shown(source)}; expected files with one of the suffixes "
            f"{' '.join(READABLE_SUFFIXES)}{'' if recursive else ' (sub-folders: --recursive)'}"
        )
    return made


def _relative_to(target: str, source: str) -> str | None:
    """Return where ``target`` lies inside ``source``; None where it does not."""
    inner, outer = places.shown(target).rstrip("/"), places.shown(source).rstrip("/")
    return inner[len(outer) + 1 :] if inner.startswith(f"{outer}/") else None
