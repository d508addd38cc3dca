"""Compile csrc/tiles.cu and report what came of each kernel: registers, spills, 16-byte accesses.

    python benchmarks/gpu/ptxas_report.py          # all architectures of the build, Markdown on stdout
    python benchmarks/gpu/ptxas_report.py --arch 80 86

Needs nvcc, no GPU.  Exits with 1 when a kernel spills, keeps a stack frame, uses an atomic,
a fused multiply-add or an approximate division or root.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "csrc" / "tiles.cu"
ARCHITECTURES = ("75", "80", "86", "89", "90", "120")


@dataclass(frozen=True, slots=True)
class KernelReport:
    """What ptxas and the PTX say about one kernel on one architecture."""

    name: str
    """For example "gather_u8_f16"."""
    registers: int
    """Registers per thread."""
    stack_bytes: int
    spill_bytes: int
    """Stores and loads together."""
    wide_accesses: int
    """16-byte loads and stores of global memory in the PTX."""
    atomics: int
    loose: int
    """Fused multiply-adds, approximate divisions and roots in the PTX: other bits than NumPy's."""

    @property
    def clean(self) -> bool:
        """No spill, no stack frame, no atomic, nothing that rounds in another way than NumPy."""
        return self.stack_bytes == self.spill_bytes == self.atomics == self.loose == 0


def compile_report(architecture: str, nvcc: str = "nvcc") -> list[KernelReport]:
    """Compile for one architecture ("80", ...) and return a report per kernel, by name."""
    base = [nvcc, "-std=c++17", "-O3", "--fmad=false", f"-arch=sm_{architecture}", str(SOURCE), "-o"]
    done = subprocess.run(
        [*base, "/dev/null", "-cubin", "-Xptxas", "-v"], capture_output=True, text=True, check=True
    )
    ptx = subprocess.run([*base, "-", "-ptx"], capture_output=True, text=True, check=True).stdout
    bodies = {match[1]: match[2] for match in re.finditer(r"\.entry (\w+)\((.*?)\n}\n", ptx, re.DOTALL)}
    pattern = (
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers"
    )
    reports = []
    for symbol, stack, stores, loads, registers in re.findall(pattern, done.stderr, re.DOTALL):
        body = bodies[symbol]
        reports.append(
            KernelReport(
                symbol.removeprefix("yonos_"),
                int(registers),
                int(stack),
                int(stores) + int(loads),
                len(re.findall(r"(?:ld|st)\.global(?:\.nc)?\.v4\.[bfsu]32", body)),
                len(re.findall(r"\b(?:atom|red)\.", body)),
                len(re.findall(r"\b(?:fma\.|(?:div|sqrt|rcp|rsqrt|sin|cos|lg2|ex2)\.(?:approx|full))", body)),
            )
        )
    return sorted(reports, key=lambda report: report.name)


def markdown(tables: dict[str, list[KernelReport]]) -> str:
    """Return one table: a row per kernel, registers per architecture."""
    lines = [
        "| kernel | 16-byte accesses | spills, stack, atomics, loose rounding | "
        + " | ".join(f"sm_{architecture}" for architecture in tables)
        + " |",
        "|---" * (3 + len(tables)) + "|",
    ]
    for rows in zip(*tables.values(), strict=True):
        trouble = "none" if all(row.clean for row in rows) else "YES"
        registers = " | ".join(str(row.registers) for row in rows)
        lines.append(f"| {rows[0].name} | {rows[0].wide_accesses} | {trouble} | {registers} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--arch", nargs="+", default=ARCHITECTURES, help="compute capabilities, without the dot"
    )
    parser.add_argument("--nvcc", default="nvcc")
    options = parser.parse_args()
    if shutil.which(options.nvcc) is None:
        print(f"{options.nvcc} is not on the PATH; install the CUDA toolkit", file=sys.stderr)
        return 2
    tables = {architecture: compile_report(architecture, options.nvcc) for architecture in options.arch}
    print(markdown(tables))
    return 0 if all(row.clean for rows in tables.values() for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
