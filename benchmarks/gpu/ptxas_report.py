"""Compile csrc/tiles.cu and report what came of each kernel: registers, spills, 16-byte accesses.

    python benchmarks/gpu/ptxas_report.py          # all architectures of the build, Markdown on stdout
    python benchmarks/gpu/ptxas_report.py --arch 80 86

Needs nvcc and c++filt, no GPU.  Exits with 1 when a kernel spills, keeps a stack frame, uses an atomic,
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
ARCHITECTURES = ("80", "86", "89", "90", "120")
TYPES = {
    "unsigned char": "u8",
    "unsigned short": "u16",
    "float": "f32",
    "yonos::Half": "f16",
    "yonos::grid::NoFix": "no fix",
    "yonos::grid::Wavelet": "wavelet",
    "yonos::grid::Adain": "adain",
    "yonos::grid::AlongX": "x",
    "yonos::grid::AlongY": "y",
}


@dataclass(frozen=True, slots=True)
class KernelReport:
    """What ptxas and the PTX say about one kernel on one architecture."""

    name: str
    """For example "gather u8 -> f16"."""
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
        # the file's hash in the name of the unnamed namespace may differ between the two compilations
        key = re.sub(r"_GLOBAL__N__[0-9a-f]+", "", symbol)
        body = next(
            body for name, body in bodies.items() if re.sub(r"_GLOBAL__N__[0-9a-f]+", "", name) == key
        )
        reports.append(
            KernelReport(
                readable(symbol),
                int(registers),
                int(stack),
                int(stores) + int(loads),
                len(re.findall(r"(?:ld|st)\.global(?:\.nc)?\.v4\.[bfsu]32", body)),
                len(re.findall(r"\b(?:atom|red)\.", body)),
                len(re.findall(r"\b(?:fma\.|(?:div|sqrt|rcp|rsqrt|sin|cos|lg2|ex2)\.(?:approx|full))", body)),
            )
        )
    return sorted(reports, key=lambda report: report.name)


def readable(symbol: str) -> str:
    """Turn a mangled kernel name into "gather u8 -> f16"."""
    text = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout
    found = re.search(r"run_grid<yonos::grid::(\w+)<([^>]*)>", text)
    if found is None:
        return symbol
    types = [TYPES.get(name.strip(), name.strip()) for name in found[2].split(",")]
    joint = ", " if found[1] == "finish" else " -> "
    return f"{found[1]} {joint.join(types)}".strip()


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
    for tool in (options.nvcc, "c++filt"):
        if shutil.which(tool) is None:
            print(f"{tool} is not on the PATH; install the CUDA toolkit and binutils", file=sys.stderr)
            return 2
    tables = {architecture: compile_report(architecture, options.nvcc) for architecture in options.arch}
    print(markdown(tables))
    return 0 if all(row.clean for rows in tables.values() for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
