"""Libraries that tests compile, once per run: the CUDA kernels' grid on the host, a stand-in libcuda, a
recorder of what reaches for the network."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest
from helpers import skip_or_fail

REPOSITORY = Path(__file__).resolve().parents[1]


@cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="yonos-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _compiler() -> str:
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")
    if compiler is None:
        skip_or_fail("YONOS_REQUIRE_NATIVE", "there is no C++ compiler")
    return compiler


@cache
def _compile(source: Path, library: str, *flags: str) -> Path:
    target = _folder() / library
    command = [_compiler(), "-shared", "-fPIC", *flags, str(source), "-o", str(target)]
    subprocess.run(command, check=True)
    return target


def emulated_kernels() -> Path:
    """Compile csrc/tiles_emulated.cpp; skips without a compiler."""
    flags = ("-std=c++17", "-O2", "-ffp-contract=off")
    return _compile(REPOSITORY / "csrc" / "tiles_emulated.cpp", "libyonos_emulated.so", *flags)


def kernel_launcher() -> Path:
    """Compile csrc/tiles_driver.cpp, which becomes libyonos_cuda.so; skips without a compiler."""
    return _compile(
        REPOSITORY / "csrc" / "tiles_driver.cpp", "libyonos_cuda.so", "-std=c++17", "-O1", "-Wall"
    )


def cuda_include() -> Path | None:
    """Find the folder of cuda.h."""
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    if nvcc := shutil.which("nvcc"):
        roots.append(str(Path(nvcc).resolve().parents[1]))
    roots += [str(p) for p in sorted(Path("/usr/local").glob("cuda*"))]
    found = (Path(r) / "include" for r in roots if r)
    return next((p for p in found if (p / "cuda.h").is_file()), None)


def standin_libcuda() -> Path:
    """Compile tests/standin_libcuda.cpp; skips without a compiler or cuda.h."""
    include = cuda_include()
    if include is None:
        pytest.skip("no cuda.h to build the stand-in for libcuda.so.1 with")
    flags = ("-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wno-psabi", "-Werror", f"-isystem{include}")
    return _compile(REPOSITORY / "tests" / "standin_libcuda.cpp", "libcuda.so.1", *flags)


def network_recorder() -> Path:
    """Compile tests/record_network.cpp; skips without a compiler, and where libraries cannot be preloaded."""
    if not sys.platform.startswith("linux"):
        pytest.skip("recording the network preloads a library, which is done on Linux")
    return _compile(REPOSITORY / "tests" / "record_network.cpp", "librecord.so", "-std=c++17", "-O1", "-Wall")
