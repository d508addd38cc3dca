"""What becomes of the files of a run: `Outcome`, and which errors are one file's own."""

from __future__ import annotations

from dataclasses import dataclass, field

from yonos_trt.cli.jobs import Job, PassedOver
from yonos_trt.errors import (
    BuildError,
    ClosedError,
    ConfigError,
    CudaError,
    EngineDeviceError,
    EngineIntegrityError,
    EngineNotFoundError,
    EngineVersionError,
    InputError,
    ManifestError,
    MissingExtraError,
    OutOfMemoryError,
    YonosError,
)

_OF_THE_RUN = (
    KeyboardInterrupt,
    ConfigError,
    ManifestError,
    EngineNotFoundError,
    EngineIntegrityError,
    EngineVersionError,
    EngineDeviceError,
    BuildError,
    ClosedError,
    CudaError,
)
"""Errors of the engines, the device or the options; they would meet every other file as well."""

_EXIT_CODES = (((OutOfMemoryError, MemoryError), 5), ((MissingExtraError,), 3))


@dataclass(slots=True)
class Outcome:
    """What became of a run."""

    done: list[Job] = field(default_factory=list)
    skipped: list[Job] = field(default_factory=list)
    failed: list[tuple[Job, BaseException]] = field(default_factory=list)
    left_out: list[tuple[Job, tuple[str, ...]]] = field(default_factory=list)
    """Of files that are done: what of the source the result does not carry; files without such are absent."""

    passed_over: list[PassedOver] = field(default_factory=list)
    """What of the input folders was not done."""

    @property
    def totals(self) -> dict[str, int]:
        """How many are done, skipped (passed over ones too) and failed (unreadable folders too)."""
        unread = sum(p.failed for p in self.passed_over)
        return {
            "done": len(self.done),
            "skipped": len(self.skipped) + len(self.passed_over) - unread,
            "failed": len(self.failed) + unread,
        }

    @property
    def exit_code(self) -> int:
        """0 if nothing failed, 5 or 3 if memory or a missing package was the only reason, else 1."""
        if any(p.failed for p in self.passed_over):
            return 1
        if not self.failed:
            return 0
        for kinds, code in _EXIT_CODES:
            if all(isinstance(error, kinds) for _, error in self.failed):
                return code
        return 1


def is_of_one_file(error: BaseException) -> bool:
    """Tell whether the other files of a run may go on: whatever a library threw at this one, they may."""
    return isinstance(error, OutOfMemoryError) or not isinstance(error, _OF_THE_RUN)


def named(name: str, error: BaseException) -> BaseException:
    """Return an error whose text names the file, and the kind of error where that is not one of ours."""
    try:
        said = str(error)
    except Exception as unsaid:
        said = f"an error that cannot be told ({type(unsaid).__name__})"
    if isinstance(error, OSError) and not isinstance(error, YonosError) and error.strerror:
        said = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError):
        said = said or "memory ran out"
    elif not isinstance(error, (YonosError, OSError)) or not said:
        said = f"{type(error).__name__}: {said}" if said else type(error).__name__
    elif name in said and isinstance(error, YonosError):
        return error
    text = said if name in said else f"{name}: {said}"
    return YonosError(text) if not isinstance(error, InputError) else InputError(text)


def without_frames(error: BaseException) -> BaseException:
    """Cut the tracebacks off an error and its causes, in place: their frames hold the pictures."""
    chain = [error]
    for link in chain:
        link.__traceback__ = None
        chain += [x for x in (link.__cause__, link.__context__) if x is not None and x not in chain]
    return error
