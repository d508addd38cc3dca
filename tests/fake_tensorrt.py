"""Stand-ins for the TensorRT modules and the tile kernels that work on a `SimulatedDriver`'s memory.

An engine "plan" of the fake is a real header followed by JSON. What its stages compute is given as NumPy
functions, so the same functions in a `NumpyBackend` tell what the picture has to be, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import msgspec
import numpy as np
from simulated_device import SimulatedDriver, Span

from yonos_trt.cuda.launches import (
    Affine,
    BicubicMoments,
    Blend,
    Check,
    ColorBlur,
    ColorCells,
    DevicePicture,
    Finish,
    Fold,
    Gather,
    Launch,
    Moments,
    Noise,
)
from yonos_trt.engine.manifest import (
    Artifact,
    EngineManifest,
    Precision,
    Profile,
    Runtime,
    ShapeRange,
    Stage,
    Stages,
    Tensor,
    identity_manifest,
    save_manifest,
    stage_tensors,
)
from yonos_trt.tiles import color_cells, kernels, noise
from yonos_trt.tiles.bicubic import upscale_bicubic

VERSION = "10.13.2.6"
RTX_VERSION = "1.7.1.116"
SCRATCH_BYTES_PER_PX = {"encoder": 3, "step": 40, "decoder": 7}

Function = Callable[..., np.ndarray]
Work = tuple[Callable[[], None], list[Span], list[Span]]
"""What a kernel does, the bytes it reads, the bytes it writes."""


# ---------------------------------------------------------------------------------------------------------
# Networks: small functions of the right shapes whose every output depends on its inputs


def encode(image: np.ndarray, *, factor: int = 4, channels: int = 4, scale: int = 1) -> np.ndarray:
    f = factor // scale
    _, _, h, w = image.shape
    pooled = image[:, :, : h // f * f : f, : w // f * f : f] if f else image
    mix = np.arange(1, channels * 3 + 1, dtype=np.float32).reshape(channels, 3) / np.float32(17)
    out = mix[:, 0, None, None] * pooled[:, None, 0]
    for c in (1, 2):
        out = out + mix[:, c, None, None] * pooled[:, None, c]
    return out.astype(np.float32)


def step(noise_field: np.ndarray, z_l: np.ndarray) -> np.ndarray:
    return (z_l * np.float32(0.75) + noise_field * np.float32(0.125)).astype(np.float32)


def decode(z_0: np.ndarray, *, factor: int = 4) -> np.ndarray:
    grown = z_0[:, :3].repeat(factor, axis=2).repeat(factor, axis=3)
    return (grown * np.float32(0.5) + grown[:, ::-1] * np.float32(0.25)).astype(np.float32)


FUNCTIONS: dict[str, Function] = {"encoder": encode, "step": step, "decoder": decode}


# ---------------------------------------------------------------------------------------------------------
# Engine directories


def fake_plan(spec: Mapping[str, Any], *, version: str = VERSION, rtx: bool = False) -> bytes:
    body = json.dumps(spec).encode()
    header = bytearray(64)
    struct.pack_into("<I", header, 0, 0x74727476 if rtx else 0x74727466)
    struct.pack_into("<Q", header, 16, 64 + len(body))
    header[24:28] = bytes(int(x) for x in version.split("."))
    return bytes(header) + body


def starts(manifest: EngineManifest, start: Literal["noise", "latent"]) -> EngineManifest:
    """Return the manifest of a model whose step starts there."""
    replace = msgspec.structs.replace
    return replace(manifest, model=replace(manifest.model, start=start))


def write_engines(
    root: Path,
    *,
    precisions: tuple[Precision, ...] = ("fp16",),
    runtime: Runtime = "tensorrt",
    version: str | None = None,
    capability: tuple[str, ...] = ("8.6",),
    largest: tuple[int, int] = (4, 4096),
    best: int = 1,
    encoder_input: str = "upsampled",
    start: Literal["noise", "latent"] = "noise",
    io_dtype: Mapping[str, str] | None = None,
    manifest_changes: Mapping[str, Any] | None = None,
    artifact_changes: Mapping[str, Any] | None = None,
) -> EngineManifest:
    """Write a directory whose engines only `FakeTensorRT` can load; returns its manifest."""
    root.mkdir(parents=True, exist_ok=True)
    version = version or (RTX_VERSION if runtime == "tensorrt-rtx" else VERSION)
    manifest = starts(identity_manifest(encoder_input=encoder_input, **(manifest_changes or {})), start)
    batch, px = largest
    stages = {}
    for name, (inputs, outputs) in stage_tensors(start).items():
        artifacts = []
        for precision in precisions:
            dtype = (io_dtype or {"fp16": "HALF", "bf16": "HALF", "fp32": "FLOAT"})[precision]
            ranges = {
                tensor: ShapeRange(
                    min=(1, 3 if tensor == "image" else 4, 1, 1),
                    opt=(best, 3 if tensor == "image" else 4, 64, 64),
                    max=(batch, 3 if tensor == "image" else 4, px, px),
                )
                for tensor in inputs
            }
            spec = {
                "stage": name,
                "precision": precision,
                "dtypes": dict.fromkeys((*inputs, *outputs), dtype),
                "inputs": inputs,
                "outputs": outputs,
                "profiles": [{k: [list(v.min), list(v.opt), list(v.max)] for k, v in ranges.items()}],
            }
            raw = fake_plan(spec, version=version, rtx=runtime == "tensorrt-rtx")
            file = f"{name}.{precision}.{runtime}.engine"
            (root / file).write_bytes(raw)
            fields: dict[str, Any] = {
                "runtime": runtime,
                "precision": precision,
                "file": file,
                "sha256": hashlib.sha256(raw).hexdigest(),
                "bytes": len(raw),
                "profiles": (Profile(inputs=ranges),),
                "tensorrt_version": version,
                "compute_capability": capability,
                **(artifact_changes or {}),
            }
            artifacts.append(Artifact(**fields))

        def tensor(tensor_name: str) -> Tensor:
            return Tensor(name=tensor_name, shape=("N", 3 if tensor_name == "image" else 4, "H", "W"))

        stages[name] = Stage(
            inputs=tuple(map(tensor, inputs)),
            outputs=tuple(map(tensor, outputs)),
            artifacts=tuple(artifacts),
        )
    manifest = EngineManifest(
        schema_version=manifest.schema_version,
        model=manifest.model,
        tiles=manifest.tiles,
        stages=Stages(**stages),
    )
    save_manifest(root, manifest)
    return manifest


# ---------------------------------------------------------------------------------------------------------
# The module


class _Enum:
    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


def _enum(*names: str) -> SimpleNamespace:
    return SimpleNamespace(**{name: _Enum(name) for name in names})


class FakeTensorRT:
    """What `yonos_trt.trt.engines` takes for the module ``tensorrt`` (or ``tensorrt_rtx``)."""

    TensorIOMode = _enum("INPUT", "OUTPUT")
    DataType = _enum("FLOAT", "HALF", "BF16")
    ExecutionContextAllocationStrategy = _enum("STATIC", "USER_MANAGED")
    DynamicShapesKernelSpecializationStrategy = _enum("LAZY", "EAGER", "NONE")
    CudaGraphStrategy = _enum("DISABLED", "WHOLE_GRAPH_CAPTURE")
    EngineValidity = _enum("VALID", "SUBOPTIMAL", "INVALID")

    class ILogger:
        Severity = _enum("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")

    def __init__(
        self,
        driver: SimulatedDriver,
        functions: Mapping[str, Function] = FUNCTIONS,
        *,
        fp32_functions: Mapping[str, Function] | None = None,
        version: str | None = None,
        rtx: bool = False,
        capturable: bool = True,
        validity: str = "VALID",
    ) -> None:
        self.driver, self.rtx = driver, rtx
        self.functions = {"fp16": functions, "bf16": functions, "fp32": fp32_functions or functions}
        self.__version__ = version or (RTX_VERSION if rtx else VERSION)
        self.capturable, self.validity = capturable, validity
        self.contexts = 0
        self.deserialized = 0
        self.caches: list[bytes] = []
        self.refuse_to_run = False
        self.Runtime = lambda logger: FakeRuntime(self, logger)


class FakeRuntime:
    def __init__(self, module: FakeTensorRT, logger: Any) -> None:
        self.module, self.logger = module, logger
        if module.rtx:
            self.get_engine_validity = lambda raw: (getattr(module.EngineValidity, module.validity), 7)
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, raw: bytes) -> FakeEngine | None:
        self.module.deserialized += 1
        try:
            spec = json.loads(raw[64:])
        except ValueError:
            self.logger.log(self.logger.Severity.ERROR, "the fake cannot read this plan")
            return None
        return FakeEngine(self.module, spec, self.logger)


class FakeEngine:
    def __init__(self, module: FakeTensorRT, spec: dict[str, Any], logger: Any) -> None:
        self.module, self.spec, self.logger = module, spec, logger
        self.names = [*spec["inputs"], *spec["outputs"]]
        self.num_io_tensors = len(self.names)
        self.num_optimization_profiles = len(spec["profiles"])
        if module.rtx:
            self.create_runtime_config = lambda: FakeConfig(module)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> _Enum:
        modes = self.module.TensorIOMode
        return modes.INPUT if name in self.spec["inputs"] else modes.OUTPUT

    def get_tensor_dtype(self, name: str) -> _Enum:
        return getattr(self.module.DataType, self.spec["dtypes"][name])

    def get_tensor_profile_shape(self, name: str, index: int) -> list[list[int]]:
        return self.spec["profiles"][index][name]

    def create_execution_context(self, how: Any) -> FakeContext:
        if self.module.rtx:
            assert isinstance(how, FakeConfig)
            assert how.strategy is self.module.ExecutionContextAllocationStrategy.USER_MANAGED
        else:
            assert how is self.module.ExecutionContextAllocationStrategy.USER_MANAGED
        self.module.contexts += 1
        return FakeContext(self)


class FakeConfig:
    def __init__(self, module: FakeTensorRT) -> None:
        self.module = module
        self.strategy: Any = None
        self.cache: Any = None
        self.dynamic_shapes_kernel_specialization_strategy: Any = None
        self.cuda_graph_strategy: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> Any:
        def take(raw: bytes) -> None:
            if not raw.startswith(b"kernels"):
                raise RuntimeError("not a cache")
            self.module.caches.append(raw)

        return SimpleNamespace(deserialize=take, serialize=lambda: b"kernels of this run")

    def set_runtime_cache(self, cache: Any) -> None:
        self.cache = cache


class FakeContext:
    """Checks that everything a run needs was set, then queues it on the simulated device."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.module = engine, engine.module
        self.profile: int | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch: tuple[int, int] = (0, 0)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream
        self.profile = index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return True

    def _needed(self) -> int:
        spec = self.engine.spec
        n, _, h, w = self.shapes[spec["inputs"][0]]
        return SCRATCH_BYTES_PER_PX[spec["stage"]] * n * h * w

    def update_device_memory_size_for_shapes(self) -> int:
        assert self.profile is not None
        assert set(self.shapes) == set(self.engine.spec["inputs"])
        return self._needed()

    def set_device_memory(self, address: int, nbytes: int) -> None:
        self.scratch = (address, nbytes)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.engine.names

    def is_stream_capturable(self, stream: int) -> bool:
        return self.module.capturable

    def execute_async_v3(self, stream: int) -> bool:
        spec, driver = self.engine.spec, self.module.driver
        if self.module.refuse_to_run:
            logger = self.engine.logger
            logger.log(logger.Severity.ERROR, "the fake was told to fail")
            return False
        assert self.scratch[1] >= self._needed(), "too little activation memory"
        stage, precision = spec["stage"], spec["precision"]
        function = self.module.functions[precision][stage]
        dtypes = {n: np.dtype({"HALF": "f2", "FLOAT": "f4"}[d]) for n, d in spec["dtypes"].items()}
        addresses, shapes, scratch = dict(self.addresses), dict(self.shapes), self.scratch
        inputs = [(n, addresses[n], shapes[n]) for n in spec["inputs"]]
        output = spec["outputs"][0]
        # One dry run on zeros tells the shape of the output.
        shape = function(*(np.zeros(s, np.float32) for _, _, s in inputs)).shape

        def run() -> None:
            given = [driver.array_at(a, s, dtypes[n]).astype(np.float32) for n, a, s in inputs]
            driver.bytes_at(*scratch)[:] = 0x5A
            result = function(*given)
            driver.array_at(addresses[output], shape, dtypes[output])[:] = result.astype(dtypes[output])

        def span(address: int, size: tuple[int, ...], name: str) -> Span:
            return address, int(np.prod(size)) * dtypes[name].itemsize

        driver.enqueue(
            f"{stage} {precision}",
            stream,
            run,
            reads=[span(a, s, n) for n, a, s in inputs],
            writes=[span(addresses[output], shape, output), scratch],
        )
        return True


# ---------------------------------------------------------------------------------------------------------
# The tile kernels


class FakeKernels:
    """`yonos_trt.cuda.kernels.TileKernels` by the NumPy twins: one method per kernel, which tells what it
    reads and writes and does it when the device gets there."""

    def __init__(self, driver: SimulatedDriver) -> None:
        self.driver, self.at = driver, driver.array_at

    def launch(self, call: Launch, *, stream: int) -> None:
        run, reads, writes = getattr(self, call.name)(call)
        self.driver.enqueue(call.name, stream, run, reads=reads, writes=writes)

    def _origins(self, origins: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        both = self.at(origins, (2, count), np.int64)
        return both[0], both[1]

    def _image(self, picture: DevicePicture) -> np.ndarray:
        dtype = np.dtype(picture.dtype)
        raw = self.driver.bytes_at(*_picture_span(picture))
        rows = raw.reshape(picture.height, picture.pitch_bytes)[:, : picture.width * 3 * dtype.itemsize]
        return np.ascontiguousarray(rows).view(dtype).reshape(picture.height, picture.width, 3)

    def gather(self, c: Gather) -> Work:
        s = c.scale if c.lr else 1
        shape = (c.count, 3, c.tile_h_px // s, c.tile_w_px // s)
        target = np.dtype("f2" if c.half else "f4")

        def run() -> None:
            cut = kernels.gather_lr if c.lr else kernels.gather
            sizes = {"tile_h_px": c.tile_h_px, "tile_w_px": c.tile_w_px, "scale": c.scale}
            tiles = cut(self._image(c.picture), *self._origins(c.origins, c.count), **sizes)
            self.at(c.out, shape, target)[:] = tiles.astype(target)

        reads = [_picture_span(c.picture), (c.origins, 16 * c.count)]
        return run, reads, [(c.out, int(np.prod(shape)) * target.itemsize)]

    def noise(self, c: Noise) -> Work:
        target = np.dtype("f2" if c.half else "f4")
        shape = (c.count, c.channels, c.h_lat, c.w_lat)

        def run() -> None:
            ys, xs = self._origins(c.origins, c.count)
            sizes = {"channels": c.channels, "h_lat": c.h_lat, "w_lat": c.w_lat}
            tiles = noise.tiles(c.seed, ys // c.factor, xs // c.factor, **sizes)
            self.at(c.out, shape, target)[:] = tiles.astype(target)

        return run, [(c.origins, 16 * c.count)], [(c.out, int(np.prod(shape)) * target.itemsize)]

    def check(self, c: Check) -> Work:
        dtype = np.dtype("f2" if c.half else "f4")

        def run() -> None:
            values = self.at(c.tiles, (c.count, c.items), dtype)
            self.at(c.flags, (c.count,), np.int32)[:] = ~np.isfinite(values).all(axis=1)

        return run, [(c.tiles, c.count * c.items * dtype.itemsize)], [(c.flags, 4 * c.count)]

    def blend(self, c: Blend) -> Work:
        dtype = np.dtype("f2" if c.half else "f4")
        shape, canvas_shape = (c.count, 3, c.tile_h_px, c.tile_w_px), (c.canvas_h_px, c.canvas_w_px, 3)

        def run() -> None:
            at = self.at
            acc = at(c.canvas, canvas_shape, np.float32)
            beside = np.r_[: c.first_px, c.first_px + c.span_px : c.canvas_w_px]
            kept = acc[:, beside].copy()
            for i in np.flatnonzero(at(c.skip, (c.count,), np.int32) == 0):
                kernels.blend(
                    acc,
                    at(c.tiles, shape, dtype)[i : i + 1].astype(np.float32),
                    at(c.rows, (c.count,), np.int64)[i : i + 1],
                    at(c.columns, (c.count,), np.int64)[i : i + 1],
                    at(c.weights_y, (c.count, c.tile_h_px), np.float32)[i : i + 1],
                    at(c.weights_x, (c.count, c.tile_w_px), np.float32)[i : i + 1],
                )
            acc[:, beside] = kept

        assert 0 <= c.first_px < c.first_px + c.span_px <= c.canvas_w_px
        nbytes = int(np.prod(canvas_shape)) * 4
        reads = [
            (c.canvas, nbytes),
            (c.tiles, int(np.prod(shape)) * dtype.itemsize),
            (c.rows, 8 * c.count),
            (c.columns, 8 * c.count),
            (c.weights_y, 4 * c.count * c.tile_h_px),
            (c.weights_x, 4 * c.count * c.tile_w_px),
            (c.skip, 4 * c.count),
        ]
        return run, reads, [(c.canvas, nbytes)]

    # The colour fix

    def color_cells(self, c: ColorCells) -> Work:
        rows, columns = -(-c.height_px // 8), -(-c.width_px // 8)
        height = min(c.height_px, 8 * c.last) - 8 * c.first
        taps = [
            (c.base_y, c.weight_y, rows, c.taps_y),
            (c.base_x, c.weight_x, columns, c.taps_x),
        ]

        def run() -> None:
            tables = [
                color_cells.CellTaps(
                    self.at(base, (cells,), np.int64), self.at(weight, (cells, count), np.float32)
                )
                for base, weight, cells, count in taps
            ]
            ours = self.at(c.canvas, (height, c.canvas_w_px, 3), np.float32)[:, : c.width_px]
            wanted = color_cells.bicubic_means(self._image(c.picture), *tables, c.first, c.last)
            out = self.at(c.out, (c.ring, columns, 3), np.float32)
            out[np.arange(c.first, c.last) % c.ring] = wanted - color_cells.block_means(ours)

        reads = [(c.canvas, 12 * height * c.canvas_w_px), _picture_span(c.picture)]
        for base, weight, cells, count in taps:
            reads += [(base, 8 * cells), (weight, 4 * cells * count)]
        return run, reads, _ring_spans(c.out, c.ring, columns, c.first, c.last)

    def color_blur(self, c: ColorBlur) -> Work:
        low, high = (max(c.first - 4, 0), min(c.last + 4, c.rows)) if c.along_y else (c.first, c.last)

        def run() -> None:
            shape = (c.ring, c.columns, 3)
            known = self.at(c.source, shape, np.float32)[np.arange(low, high) % c.ring]
            if c.along_y:
                known = color_cells.blur_along_y(known, low, c.first, c.last, c.rows)
            else:
                known = color_cells.blur_along_x(known)
            self.at(c.out, shape, np.float32)[np.arange(c.first, c.last) % c.ring] = known

        reads = _ring_spans(c.source, c.ring, c.columns, low, high)
        return run, reads, _ring_spans(c.out, c.ring, c.columns, c.first, c.last)

    def _moments_out(self, out: int, height_px: int, width_px: int) -> Span:
        return out, 48 * -(-height_px // 8) * -(-width_px // 8)

    def moments(self, c: Moments) -> Work:
        def run() -> None:
            sums = color_cells.cell_moments(self.at(c.rows, (c.height_px, c.width_px, 3), np.float32))
            self.at(c.out, sums.shape, np.float64)[:] = sums

        reads = [(c.rows, 12 * c.height_px * c.width_px)]
        return run, reads, [self._moments_out(c.out, c.height_px, c.width_px)]

    def bicubic_moments(self, c: BicubicMoments) -> Work:
        height_px, width_px = c.picture.height * c.scale, c.picture.width * c.scale

        def run() -> None:
            large = upscale_bicubic(self._image(c.picture), 0, height_px, scale=c.scale)
            sums = color_cells.cell_moments(large)
            self.at(c.out, sums.shape, np.float64)[:] = sums

        return run, [_picture_span(c.picture)], [self._moments_out(c.out, height_px, width_px)]

    def fold(self, c: Fold) -> Work:
        folded = -(-c.count // 64)

        def run() -> None:
            parts = self.at(c.parts, (c.count, 6), np.float64)
            out = self.at(c.out, (folded, 6), np.float64)
            for i in range(folded):
                out[i] = color_cells.fold_moments(parts[64 * i : 64 * i + 64].copy())

        return run, [(c.parts, 48 * c.count)], [(c.out, 48 * folded)]

    def affine(self, c: Affine) -> Work:
        def run() -> None:
            sums = (self.at(place, (6,), np.float64) for place in (c.wanted, c.ours))
            self.at(c.out, (2, 3), np.float32)[:] = color_cells.affine(*sums, c.count)

        return run, [(c.wanted, 48), (c.ours, 48)], [(c.out, 24)]

    def finish(self, c: Finish) -> Work:
        kind, columns = np.dtype(c.dtype), -(-c.width_px // 8)

        def run() -> None:
            rows = self.at(c.acc, (c.rows, c.acc_w_px, 3), np.float32)[:, : c.width_px].copy()
            if c.grid:
                grid = self.at(c.grid, (c.ring, columns, 3), np.float32)
                upper, lower, share = color_cells.grid_rows(c.y0_px + np.arange(c.rows), c.grid_rows)
                color_cells.add_grid(rows, grid, upper % c.ring, lower % c.ring, share)
            elif c.affine:
                gain, offset = self.at(c.affine, (2, 3), np.float32)
                rows = rows * gain + offset
            self.at(c.out, rows.shape, kind)[:] = kernels.finalize(rows, kind)

        reads = [(c.acc, 12 * ((c.rows - 1) * c.acc_w_px + c.width_px))]
        if c.grid:
            lines = color_cells.grid_rows(np.array([c.y0_px, c.y0_px + c.rows - 1]), c.grid_rows)
            first, last = int(lines[0][0]), int(lines[1][1])
            reads += _ring_spans(c.grid, c.ring, columns, first, last + 1)
        elif c.affine:
            reads.append((c.affine, 24))
        return run, reads, [(c.out, c.rows * c.width_px * 3 * kind.itemsize)]


def _picture_span(picture: DevicePicture) -> Span:
    return picture.address, picture.height * picture.pitch_bytes


def _ring_spans(address: int, ring: int, columns: int, first: int, last: int) -> list[Span]:
    """Where grid rows [first, last) of a ring lie."""
    assert last - first <= ring
    return [(address + 12 * columns * (g % ring), 12 * columns) for g in range(first, last)]
