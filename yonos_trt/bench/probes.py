"""Time one library's own kernels on this CPU, in a process of its own (`main`).

The kernels are those the networks are made of: chains of 3 x 3 convolutions as wide as theirs, and square
matrix products. Every library gets the same work, in every precision it computes in on this CPU, with all
usable CPUs and with half of them. One JSON object goes to stdout; what the library loads leaves with the
process.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yonos_trt.backends.telemetry import import_onnxruntime, import_openvino

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Work:
    """A chain of equal operations.

    Attributes
    ----------
    kernel : str
        "convolution" (3 x 3, as many channels out as in, zero padding) or "matmul" (square).
    channels : int
        Of the convolution; sides of the matrices.
    side : int
        Height and width of the convolution's input; unused for a matrix product.
    length : int
        Operations in the chain; several, so that changing the memory layout on the way in and out costs
        little.
    """

    kernel: str
    channels: int
    side: int
    length: int

    @property
    def name(self) -> str:
        """What a reader is told."""
        if self.kernel == "matmul":
            return f"matrix product of {self.channels} x {self.channels}"
        return f"3x3 convolution, {self.channels} channels, {self.side} x {self.side}"

    @property
    def flop(self) -> int:
        """Operations of the chain, counted as `yonos_trt.bench.flops` counts them."""
        taps, places = (1, self.channels) if self.kernel == "matmul" else (9, self.side**2)
        return 2 * self.length * taps * places * self.channels**2

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the only input."""
        if self.kernel == "matmul":
            return (self.channels, self.channels)
        return (1, self.channels, self.side, self.side)

    def weight(self) -> Array:
        """Return the operations' common weight; it keeps the values' size along the chain."""
        square = (self.channels, self.channels)
        shape = square if self.kernel == "matmul" else (*square, 3, 3)
        drawn = np.random.default_rng(0).standard_normal(shape, np.float32)
        return drawn / np.float32(math.sqrt(math.prod(shape[1:])))


# 128 x 128 is the latent grid of a tile of 512 px at f = 4; the shipped networks have 64 to 128 channels.
WORK = (
    Work("convolution", 64, 128, 6),
    Work("convolution", 128, 128, 3),
    Work("convolution", 128, 64, 6),
    Work("matmul", 512, 0, 8),
    Work("matmul", 1024, 0, 2),
)


# ---------------------------------------------------------------------------------------------------------
# ONNX without the package onnx: the few fields of its protocol buffer that these graphs have


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, value: int | str | bytes) -> bytes:
    """Encode one field of a message: a number as a varint, text and bytes with their length before them."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    raw = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(raw)) + raw


def _tensor_type(name: str, shape: tuple[int, ...]) -> bytes:
    """Encode a ValueInfoProto: name = 1, type = 2 {tensor_type = 1 {elem_type = 1, shape = 2}}."""
    dims = b"".join(_field(1, _field(1, side)) for side in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, dims)))


def onnx_bytes(work: Work) -> bytes:
    """Return the chain as an ONNX model, float32, opset 17; input ``x``, output ``y``."""
    # AttributeProto: name = 1, ints = 8, type = 20 (7: INTS)
    pads = _field(1, "pads") + b"".join(_field(8, 1) for _ in range(4)) + _field(20, 7)
    kind, extra = ("MatMul", b"") if work.kernel == "matmul" else ("Conv", _field(5, pads))
    nodes = b""
    for i in range(work.length):
        before = "x" if i == 0 else f"v{i}"
        after = "y" if i == work.length - 1 else f"v{i + 1}"
        # NodeProto: input = 1, output = 2, op_type = 4, attribute = 5
        nodes += _field(1, _field(1, before) + _field(1, "w") + _field(2, after) + _field(4, kind) + extra)
    weight = work.weight()
    # TensorProto: dims = 1, data_type = 2 (1: float), name = 8, raw_data = 9
    tensor = b"".join(_field(1, n) for n in weight.shape) + _field(2, 1) + _field(8, "w")
    tensor += _field(9, weight.tobytes())
    # GraphProto: node = 1, name = 2, initializer = 5, input = 11, output = 12
    graph = nodes + _field(2, "probe") + _field(5, tensor)
    graph += _field(11, _tensor_type("x", work.input_shape)) + _field(12, _tensor_type("y", work.input_shape))
    # ModelProto: ir_version = 1, graph = 7, opset_import = 8 {domain = 1, version = 2}
    return _field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 17))


# ---------------------------------------------------------------------------------------------------------
# The libraries: (precision, work, threads, call) for everything they can run here

Case = tuple[str, Work, int, Callable[[Array], Any]]


def _onnxruntime(threads: int) -> Iterator[Case]:
    ort = import_onnxruntime()
    for work in WORK:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        session = ort.InferenceSession(onnx_bytes(work), options, providers=["CPUExecutionProvider"])
        yield "fp32", work, threads, partial(_call_session, session)


def _call_session(session: Any, x: Array) -> Any:
    return session.run(None, {"x": x})[0]


def _openvino(threads: int) -> Iterator[Case]:
    openvino = import_openvino()
    core = openvino.Core()
    able = [str(c) for c in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")]
    for precision, hint in (("fp32", "f32"), ("bf16", "bf16"), ("fp16", "f16")):
        for work in WORK if precision.upper() in able else ():
            compiled = core.compile_model(
                core.read_model(onnx_bytes(work)),
                "CPU",
                {
                    "INFERENCE_PRECISION_HINT": hint,
                    "INFERENCE_NUM_THREADS": threads,
                    "NUM_STREAMS": 1,
                    "ENABLE_CPU_PINNING": False,  # as `yonos_trt.backends.openvino` has it
                },
            )
            request = compiled.create_infer_request()
            yield precision, work, threads, partial(_call_request, request)


def _call_request(request: Any, x: Array) -> Any:
    return request.infer([x], share_inputs=True)[0]


def _torch(threads: int) -> Iterator[Case]:
    import torch

    torch.set_num_threads(threads)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        for work in WORK:
            weight = torch.from_numpy(work.weight()).to(dtype)
            if work.kernel == "convolution":
                weight = weight.contiguous(memory_format=torch.channels_last)
            yield precision, work, threads, partial(_call_torch, work, weight)


def _call_torch(work: Work, weight: Any, x: Array) -> Any:
    import torch

    with torch.inference_mode():
        value = torch.from_numpy(x).to(weight.dtype)
        if work.kernel == "convolution":
            value = value.contiguous(memory_format=torch.channels_last)
        for _ in range(work.length):
            if work.kernel == "matmul":
                value = value @ weight
            else:
                value = torch.nn.functional.conv2d(value, weight, padding=1)
        return value.float().numpy()


LIBRARIES: dict[str, Callable[[int], Iterator[Case]]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "torch": _torch,
}
"""Python package -> its probes."""


def best_seconds(call: Callable[[], object], seconds: float) -> float:
    """Return the shortest of the runs that fit into `seconds`, after one that is not counted."""
    call()
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        call()
        now = time.perf_counter()
        best = min(best, now - start)
        if now >= end:
            return best


def run(library: str, seconds: float, thread_counts: list[int]) -> dict[str, Any]:
    """Time one library; every result is compared with float64 arithmetic at one place."""
    found = []
    for threads in thread_counts:
        for precision, work, count, call in LIBRARIES[library](threads):
            x = np.random.default_rng(1).standard_normal(work.input_shape, np.float32)
            result = np.asarray(call(x))
            assert result.shape == work.input_shape
            assert 0.5 < float(result.std()) < 2  # the chain keeps the values' size
            elapsed = best_seconds(partial(call, x), seconds)
            found.append(
                {
                    "library": f"{library} {version(library)}",
                    "precision": precision,
                    "kernel": work.name,
                    "threads": count,
                    "gflops": work.flop / elapsed / 1e9,
                }
            )
    return {"probes": found}


def main() -> None:
    """Print what `run` finds for the library, seconds and thread counts in ``sys.argv``."""
    library, seconds, counts = sys.argv[1:]
    print(json.dumps(run(library, float(seconds), [int(n) for n in counts.split(",")])))  # noqa: T201
