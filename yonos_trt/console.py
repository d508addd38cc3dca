"""How the commands of this project begin and end: signals, standard streams, exit codes.

The console scripts start here, and signals are taken before anything else is imported. The first Ctrl-C,
SIGTERM or SIGHUP is a KeyboardInterrupt, so that whatever is unfinished is cleaned up; a second one, later
than a moment, ends the process at once. Both end with 130 and no traceback. What a second one leaves is
removed by the next run (`yonos_trt.atomic.remove_leftovers`).

Standard library only until the command is loaded.
"""

from __future__ import annotations

import os
import sys
import time

try:
    # `signal` itself loads enum, functools and collections: time enough for a Ctrl-C
    import _signal as signal  # type: ignore[import-not-found]
except ImportError:
    import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    import io
    from typing import Any, NoReturn

INTERRUPTED = 130
OUT_OF_MEMORY = 5
_SAME_S = 0.3  # `timeout` and a closing terminal send the same signal twice within milliseconds

stdout_closed = False
"""There was no standard output when the process began: what is written to it is an error."""

_first_s: float | None = None
_own_stderr = False  # `sys.stderr` is ours, and has a descriptor of its own


def yonos() -> NoReturn:
    """Run `yonos`."""
    run("yonos", "yonos_trt.cli.main", "cli")


def yonos_export() -> NoReturn:
    """Run `yonos-export`."""
    run("yonos-export", "yonos_export.cli", "main")


def yonos_train() -> NoReturn:
    """Run `yonos-train`."""
    run("yonos-train", "yonos_train.cli", "main")


def watch() -> None:
    """Take the signals that end a command, but for those that were ignored from outside (``nohup``)."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
            signal.signal(number, _stop)


def _stop(number: int, frame: object) -> None:
    global _first_s
    now_s = time.monotonic()
    if _first_s is None:
        _first_s = now_s
        raise KeyboardInterrupt
    if now_s - _first_s > _SAME_S:
        os._exit(INTERRUPTED)


def run(name: str, module: str, attribute: str) -> NoReturn:
    """Load a click command, run it, and end the process with its exit code."""
    try:
        watch()
        _mend_streams()
        code = _called(name, module, attribute)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception:
        if _first_s is None:
            raise
        code = INTERRUPTED  # an extension module whose import was interrupted says ImportError
    code = _flushed(code)
    if _first_s is not None:
        # Threads of libraries may still be at work: taking the interpreter apart under them aborts.
        os._exit(INTERRUPTED)
    sys.exit(code)


def _called(name: str, module: str, attribute: str) -> int:
    import importlib
    import logging

    import click

    from yonos_trt.errors import OutOfMemoryError, memory_that_runs_out

    logging.captureWarnings(True)
    logging.getLogger("py.warnings").addHandler(logging.NullHandler())
    try:
        with memory_that_runs_out(name):
            command: Any = getattr(importlib.import_module(module), attribute)
            value = command.main(prog_name=name, standalone_mode=False)
    except OutOfMemoryError as error:
        sys.stderr.write(f"error: {error}\n")
        return OUT_OF_MEMORY
    except click.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:
        return 1
    except OSError as error:
        about = "" if error.filename is None else f"{error.filename}: "
        sys.stderr.write(f"error: {about}{error.strerror or error}\n")
        return 1
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return value if isinstance(value, int) else 0


# ---------------------------------------------------------------------------------------------------------
# Standard streams


def _mend_streams() -> None:
    """Give closed streams somewhere to go, and let no character of a name and no full disk stop a command.

    A closed descriptor would be handed to the next file that is opened, and what libraries write to stderr
    would end in that. A message that cannot be delivered is dropped; results on stdout are not.
    """
    import io

    global _own_stderr, stdout_closed
    null = os.open(os.devnull, os.O_RDWR)
    while null <= 2:
        null = os.open(os.devnull, os.O_RDWR)
    os.close(null)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8")
    if sys.stdout is None:
        stdout_closed = True
        os.dup2(os.open(os.devnull, os.O_RDONLY), 1)  # taken, and yet nothing is lost without a word
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)), "utf-8")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(_patient(os.dup(2))),
        encoding=getattr(sys.stderr, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=True,
    )
    _own_stderr = True


def _patient(descriptor: int) -> io.RawIOBase:
    """Return a raw stream that writes to a descriptor, and drops what that does not take."""
    import io

    class Patient(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def fileno(self) -> int:
            return descriptor

        def isatty(self) -> bool:
            return os.isatty(descriptor)

        def write(self, data: Any) -> int:
            try:
                return os.write(descriptor, data)
            except OSError:
                return len(data)

    return Patient()


class quiet_libraries:
    """Keep what libraries write to descriptor 2 by themselves off stderr while the body runs.

    It is logged afterwards at level info, each line once. Does nothing where `run` did not give `sys.stderr`
    a descriptor of its own, and at level debug, where nobody wants to lose the last words of a crash.
    """

    def __enter__(self) -> None:
        import logging
        import tempfile

        self._kept: int | None = None
        if not _own_stderr or logging.getLogger("yonos_trt").isEnabledFor(logging.DEBUG):
            return
        self._kept = os.dup(2)
        self._file = tempfile.TemporaryFile()
        os.dup2(self._file.fileno(), 2)

    def __exit__(self, *_: object) -> None:
        import logging

        if self._kept is None:
            return
        os.dup2(self._kept, 2)
        os.close(self._kept)
        with self._file as file:
            file.seek(0)
            text = file.read(1 << 20).decode("utf-8", "replace")
        for line in dict.fromkeys(line.strip() for line in text.splitlines()):
            if line:
                logging.getLogger("yonos_trt.libraries").info("%s", line)


def _flushed(code: int) -> int:
    """Deliver what is still buffered; results that cannot be are an error."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter tries again
        if code == 0 and not isinstance(error, BrokenPipeError):
            sys.stderr.write(f"error: stdout: {getattr(error, 'strerror', None) or error}\n")
        code = code or 1
    sys.stderr.flush()
    return code
