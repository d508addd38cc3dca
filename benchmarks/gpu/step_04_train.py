"""Step 4: train the lite preset on the GPU for a while; the JSON says how fast and where it got to."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import steps


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help="picture folder; required")
    parser.add_argument(
        "--run", type=Path, default=Path("runs") / "gpu-lite", help="run folder, resumed if there"
    )
    parser.add_argument("--minutes", type=float, default=2.0, help="minutes of every stage")
    parser.add_argument("--preset", default="lite")
    parser.add_argument(
        "--weights", action="append", default=[], metavar="NAME=FILE", help="as for yonos-train"
    )
    parser.add_argument("--largest-seconds", type=float, default=3000.0, help="stop the trainer after that")


def rates(run: Path) -> dict[str, Any]:
    """Summarise every metrics.jsonl below the run folder: steps, last loss, images per second."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("metrics.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        if lines:
            last = lines[-1]
            found[str(path.parent.relative_to(run))] = {
                "lines": len(lines),
                **{key: value for key, value in last.items() if isinstance(value, (int, float, str))},
            }
    return found


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Run yonos-train as a user would, then read what it wrote."""
    if chosen.data is None or not chosen.data.is_dir():
        raise FileNotFoundError(f"--data is {chosen.data}, expected a folder of pictures")
    words = [sys.executable, "-m", "yonos_train.cli", "--preset", chosen.preset, "--data", str(chosen.data)]
    words += ["--run", str(chosen.run), "--minutes", str(chosen.minutes)]
    for weight in chosen.weights:
        words += ["--weights", weight]
    paths = [str(steps.REPOSITORY), str(steps.REPOSITORY / "train"), str(steps.REPOSITORY / "export")]
    start = time.perf_counter()
    done = subprocess.run(
        words,
        env={**os.environ, "PYTHONPATH": ":".join(paths)},
        capture_output=True,
        text=True,
        timeout=chosen.largest_seconds,
        check=False,
    )
    result = {
        "trainer": " ".join(words),
        "exit_code": done.returncode,
        "seconds": time.perf_counter() - start,
        "stages": rates(chosen.run),
        "last_lines": done.stderr.splitlines()[-20:],
    }
    if done.returncode:
        raise RuntimeError(f"yonos-train ended with {done.returncode}: {result}")
    return result


if __name__ == "__main__":
    sys.exit(steps.main("04_train", run, options))
