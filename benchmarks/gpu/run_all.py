"""All steps that fit into one loan of a GPU machine, unattended, the most valuable first.

    python benchmarks/gpu/run_all.py --engine-dir engines/lite-x4 --seconds 660

Every step is a process with a time of its own: one that hangs or crashes takes no other with it. After
each, ``run_all.json`` says what has run, for how long and how it ended; the step's own JSON lies beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import steps

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Step:
    """A script of this folder and how long it may take."""

    script: str
    arguments: tuple[str, ...]
    seconds: float


def planned(engine_dir: Path | None, wheels: Path | None) -> list[Step]:
    """Return the steps in the order of what their answers are worth, 660 s in all."""
    ours = () if engine_dir is None else ("--engine-dir", str(engine_dir))
    rtx = () if wheels is None else ("--wheels", str(wheels))
    return [
        Step("step_02_kernels.py", (), 90),
        Step("step_03_lanes.py", (), 90),
        Step("step_01_tensorrt_rtx.py", rtx, 60),
        Step(
            "step_05_latency.py",
            (
                *("--models", "lite", "--batches", "1,4,8", "--tiles", "256,512,1024"),
                *("--providers", "CUDAExecutionProvider", *ours, *rtx),
            ),
            180,
        ),
        Step("step_03_lanes.py", (*ours, *rtx), 60),
        Step("step_05_latency.py", ("--models", "sd", "--batches", "1,4", "--repeats", "20"), 180),
    ]


def run_all(plan: list[Step], out: Path, seconds: float) -> list[dict[str, object]]:
    """Run the steps one after the other within `seconds`; returns and writes what became of each."""
    begun, done = time.perf_counter(), []
    for number, step in enumerate(plan):
        left = seconds - (time.perf_counter() - begun)
        limit = min(step.seconds, left)
        record: dict[str, object] = {
            "step": step.script,
            "arguments": list(step.arguments),
            "limit_s": round(limit, 1),
        }
        if limit < 10:
            record["not run"] = f"{left:.0f} s are left"
        else:
            folder = out / f"{number:02}_{Path(step.script).stem}"
            command = [sys.executable, str(HERE / step.script), "--out", str(folder), *step.arguments]
            start = time.perf_counter()
            try:
                ended = subprocess.run(
                    command, timeout=limit, stdin=subprocess.DEVNULL, capture_output=True, text=True
                )
                record["exit_code"], said = ended.returncode, ended.stderr
            except subprocess.TimeoutExpired as error:
                record["exit_code"], said = None, str(error.stderr or "")
            record |= {"seconds": round(time.perf_counter() - start, 1), "stderr": said[-2000:]}
        done.append(record)
        out.mkdir(parents=True, exist_ok=True)
        (out / "run_all.json").write_text(json.dumps(done, indent=2) + "\n")
        print(
            f"{step.script}: {record.get('exit_code', 'not run')}, {record.get('seconds', 0)} s", flush=True
        )
    return done


def main() -> int:
    """Run what fits; exit codes as those of a step."""
    from yonos_trt.cuda.probe import probe_driver

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=steps.RESULTS, help="folder of the JSON files")
    parser.add_argument("--engine-dir", type=Path, help="engine directory of the lite x4 model")
    parser.add_argument("--wheels", type=Path, help="folder of TensorRT-RTX wheels, as in step 1")
    parser.add_argument("--seconds", type=float, default=660.0, help="for all steps together")
    chosen = parser.parse_args()
    found = probe_driver()
    if not found.devices:
        print(f"run_all: not run, {found.problem}", file=sys.stderr)
        return steps.NO_GPU
    done = run_all(planned(chosen.engine_dir, chosen.wheels), chosen.out, chosen.seconds)
    return steps.OK if all(record.get("exit_code") == 0 for record in done) else steps.FAILED


if __name__ == "__main__":
    sys.exit(main())
