"""What every benchmark document says about its origin: machine, source state, command."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from yonos_trt.bench.machine import describe_machine
from yonos_trt.bench.peaks import Peaks, measure_peaks
from yonos_trt.engine.manifest import EngineManifest

REPOSITORY = Path(__file__).resolve().parents[1]


def header(kind: str, command: Sequence[str], *, peaks: bool = True) -> dict[str, Any]:
    """Return the fields all documents begin with; `peaks` adds the machine's, measured once per process."""
    return {
        "kind": kind,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "commit": commit(),
        "machine": describe_machine(),
        **({"peaks": _peaks().as_dict()} if peaks else {}),
    }


@cache
def _peaks() -> Peaks:
    return measure_peaks()


def commit() -> str | None:
    """Return the checkout's commit, with ``+`` where files differ from it; None outside of a checkout."""
    try:
        named = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return named + ("+" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(REPOSITORY), *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def describe_model(manifest: EngineManifest) -> dict[str, Any]:
    """Return name, scale and hash of a model."""
    model = manifest.model
    return {"name": model.name, "scale": model.scale, "weights_sha256": model.weights_sha256}


def command_line(module: str) -> list[str]:
    """Return the command as a reader would type it; folders of this machine are shortened to their names."""
    shown = [re.sub(r"(^|=)/\S*/", r"\1", argument) for argument in sys.argv[1:]]
    return ["python", "-m", module, *shown]
