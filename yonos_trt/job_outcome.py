"""What becomes of the files of a run: `Outcome`, and which errors are one file's own."""

from __future__ import annotations

from dataclasses import dataclass, field

from yonos_trt.errors import (
    InputError,
    MissingExtraError,
    NumericError,
    OutOfMemoryError,
    ProfileError,
    YonosError,
)
from yonos_trt.jobs import Job

__all__ = ["OF_ONE_FILE", "Outcome", "named", "without_frames"]

OF_ONE_FILE = (
    InputError,
    MissingExtraError,  # which this file's format needs
    NumericError,
    ProfileError,
    OutOfMemoryError,
    MemoryError,
    OSError,
)
"""What one file may fail with; everything else would meet the other files as well."""

_EXIT_CODES = (((OutOfMemoryError, MemoryError), 5), ((MissingExtraError,), 3))


@dataclass(slots=True)
class Outcome:
    """What became of a run."""

    done: list[Job] = field(default_factory=list)
    skipped: list[Job] = field(default_factory=list)
    failed: list[tuple[Job, BaseException]] = field(default_factory=list)
    left_out: list[tuple[Job, tuple[str, ...]]] = field(default_factory=list)
    """Of files that are done: what of the source the result does not carry; files without such are absent."""

    @property
    def exit_code(self) -> int:
        """0 if nothing failed, 5 or 3 if memory or a missing package was the only reason, else 1."""
        if not self.failed:
            return 0
        for kinds, code in _EXIT_CODES:
            if all(isinstance(error, kinds) for _, error in self.failed):
                return code
        return 1


def named(name: str, error: BaseException) -> BaseException:
    """Return an error whose text names the file."""
    if name in str(error):
        return error
    text = f"{name}: {str(error) or type(error).__name__}"
    return YonosError(text) if not isinstance(error, InputError) else InputError(text)


def without_frames(error: BaseException) -> BaseException:
    """Cut the tracebacks off an error and its causes, in place: their frames hold the pictures."""
    chain = [error]
    for link in chain:
        link.__traceback__ = None
        chain += [x for x in (link.__cause__, link.__context__) if x is not None and x not in chain]
    return error
