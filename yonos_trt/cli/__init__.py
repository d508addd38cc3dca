"""The `yonos` command: `main` is where it begins, and every command is a module of its own."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Hand out what `yonos_trt.cli` held while it was one module."""
    if name not in ("LAZY_COMMANDS", "cli", "exit_code"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from yonos_trt.cli import main

    return getattr(main, name)
