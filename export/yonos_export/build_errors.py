"""What a builder's last words mean: every failure becomes a `BuildError` with its cause and a fix."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yonos_export.engine_options import EngineOptions
from yonos_trt.errors import BuildError

_MEMORY = re.compile(
    r"out of memory|outofmemory|bad_alloc|cuda_error_out_of_memory|insufficient memory|cudaError 2\b", re.I
)
# TensorRT's wording when no kernel fits into the memory it may use.
_NO_KERNEL = re.compile(r"could not find any implementation for node (.+?)(?: due to|\.|$)", re.I)
_NO_GPU = re.compile(
    r"cudaError (?:35|100)\b|no CUDA-capable device|driver version is insufficient"
    r"|CUDA initialization failure|factory function returned nullptr",
    re.I,
)
_LIBRARY = re.compile(r"unable to load library: (\S+?):", re.I)
_PROFILE = re.compile(r"profile \d+|min(?:imum)? shape|optimization profile", re.I)
_JIT = re.compile(r"CHECK\(status == CUDA_SUCCESS\) failed", re.I)
_DISK = re.compile(r"no space left", re.I)


def explain(stage: str, words: Sequence[str], options: EngineOptions) -> BuildError:
    """Turn the errors a builder has logged into one error that says what to do."""
    text = "\n".join(words)
    last = words[-1] if words else "it said nothing"

    def error(cause: str, fix: str) -> BuildError:
        return BuildError(f"the {stage} engine was not built: {cause}; {fix}. {options.runtime} said: {last}")

    if _NO_GPU.search(text):
        return error(
            "no GPU can be used",
            "install the NVIDIA driver, build on the target machine, or use --runtime tensorrt-rtx without "
            "options that need one",
        )
    if match := _LIBRARY.search(text):
        return error(
            f"the library {match[1]} is not part of this installation",
            "leave --version-compatible out, or install the package that holds it",
        )
    if _JIT.search(text) and (options.refit or options.strip_weights):
        return error(
            "engines whose weights can be replaced need a GPU to be built",
            "leave --refit and --strip-weights out, or build on the target machine",
        )
    if _MEMORY.search(text):
        return error("memory ran out", _smaller(options))
    if match := _NO_KERNEL.search(text):
        return error(f"no kernel for the node {match[1]!r} fits into memory", _smaller(options))
    if _DISK.search(text):
        return error("the disk is full", "free some space or choose another --engine-dir")
    if _PROFILE.search(text):
        return error(
            "the shapes do not fit the graph",
            "check --min-shape, --opt-shape, --max-shape and --batch against the model's tiles",
        )
    return error("the builder failed", "run again with -v, and look for the node it names in the graph")


def _smaller(options: EngineOptions) -> str:
    limit = "" if options.workspace_mb is None else f"raise --workspace (now {options.workspace_mb} MiB), "
    return f"{limit}use a smaller --max-shape or --batch, or close other programs on the GPU"


def from_parser(stage: str, graph: Path, errors: Sequence[Any], words: Sequence[str]) -> BuildError:
    """Turn the parser's errors into one that names the first node it stopped at."""
    if not errors:
        last = words[-1] if words else "no reason given"
        return BuildError(
            f"the {stage} graph {graph.name} cannot be read: {last}; export it again, it may be damaged"
        )
    first = errors[0]
    node, operator = str(first.node_name()), str(first.node_operator())
    where = f"node {node!r} ({operator})" if node or operator else "the graph"
    more = f" and {len(errors) - 1} more" if len(errors) > 1 else ""
    return BuildError(
        f"the {stage} graph has something the parser does not take: {where}{more}: "
        f"{str(first.desc()).strip()}; "
        "replace the operation in the network, try another --opset, or use --runtime onnx"
    )
