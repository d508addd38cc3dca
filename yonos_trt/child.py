"""Commands that run Python code in a process of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["python_command"]


def python_command(code: str, *arguments: str, package: bool = False) -> list[str]:
    """Return the command that runs `code` in this interpreter, isolated, with this process's import path.

    Isolated (``-I``): the current directory is not on the import path, so that a file that happens to lie
    there cannot take a module's place, and no ``PYTHON*`` variable has a say. What this process imports from,
    ``PYTHONPATH`` and the user's own site-packages among it, is handed over without the current directory.

    Parameters
    ----------
    code
        Python source.
    arguments
        Its ``sys.argv[1:]``.
    package
        Whether `code` imports this package: the folder it lies in then comes last on the path, also when
        that is the current directory.
    """
    path = _import_path()
    if package:
        root = str(Path(__file__).resolve().parents[1])
        path = [*(entry for entry in path if entry != root), root]
    return [sys.executable, "-I", "-c", f"import sys; sys.path[:] = {path!a}\n{code}", *arguments]


def _import_path() -> list[str]:
    """Return ``sys.path`` with absolute entries, without the current directory."""
    try:
        here = os.path.realpath(os.getcwd())
    except OSError:  # it was removed
        return [entry for entry in sys.path if os.path.isabs(entry)]
    entries = (os.path.abspath(entry) for entry in sys.path if entry)
    return [entry for entry in entries if os.path.realpath(entry) != here]
