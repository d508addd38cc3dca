"""The CUDA kernels' grid: who computes what, bounds and strides, emulated on the host and, with a GPU, run
for real.

`csrc/tiles_emulated.cpp` runs the thread bodies of `csrc/tiles.cu` over the same grid on host memory. Outputs
lie between guard zones; odd sizes, odd addresses, padded rows and any order of threads must give the twins'
bits.
"""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compiled import emulated_kernels, kernel_launcher
from helpers import load_script
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from yonos_trt.cuda.kernels import CudaKernels
from yonos_trt.cuda.launches import SIGNATURES, declare
from yonos_trt.tiles import color_cells, kernels, noise
from yonos_trt.tiles.bicubic import upscale_bicubic

SOURCES = Path(__file__).resolve().parents[1] / "csrc"
KINDS = {np.uint8: 0, np.uint16: 1, np.float32: 2}
GUARD = 256
ZONE = 0x3C  # as float32 0.0115, as float16 1.06: adding to it shows
ORDERS = st.sampled_from([0, 1, 12345])
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


class Emulation:
    """The kernels' grid on host memory."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.inputs: list[np.ndarray] = []

    def memory(self, size: int) -> np.ndarray:
        """Return bytes that the kernels can reach."""
        return np.empty(size, np.uint8)

    def wait(self) -> None:
        """Wait for what was queued."""

    def release(self) -> None:
        """Free all memory given out."""

    def stream(self, order: int) -> ctypes.c_void_p:
        """Return the stream argument: here the order in which threads run."""
        return ctypes.c_void_p(order)

    def put(self, values: np.ndarray | None) -> ctypes.c_void_p | None:
        """Copy an input to where the kernels can read it; return its address."""
        if values is None:
            return None
        memory = self.memory(max(values.nbytes, 1))
        self.inputs.append(memory)  # kept alive until the output is checked
        memory[: values.nbytes] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        return address(memory)

    @contextmanager
    def output(self, shape: tuple[int, ...], dtype: Any, shift: int = 0) -> Iterator[np.ndarray]:
        """Yield an array of 0xFF bytes, `shift` elements off a 16-byte border, between guard zones."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = self.memory(size + 2 * GUARD + 64)
        memory[...] = ZONE
        start = GUARD + (-memory.ctypes.data - GUARD) % 16 + shift * np.dtype(dtype).itemsize
        memory[start : start + size] = 0xFF
        yield memory[start : start + size].view(dtype).reshape(shape)
        assert np.all(memory[:start] == ZONE), "written before the output"
        assert np.all(memory[start + size :] == ZONE), "written behind the output"
        del memory
        self.inputs.clear()
        self.release()

    def call(self, name: str, *arguments: Any) -> None:
        """Run a kernel and wait for it."""
        assert getattr(self.library, name)(*arguments) == 0
        self.wait()


class Device(Emulation):
    """The real kernels, on managed memory, which the host reaches too."""

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__(library)
        self.driver = ctypes.CDLL("libcuda.so.1")
        self.pointers: list[ctypes.c_void_p] = []
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.check(self.driver.cuInit(0))
        self.check(self.driver.cuDeviceGet(ctypes.byref(device), 0))
        self.check(self.driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device))
        self.check(self.driver.cuCtxSetCurrent(context))

    def check(self, status: int) -> None:
        assert status == 0, f"the driver answered {status}"

    def memory(self, size: int) -> np.ndarray:
        pointer = ctypes.c_void_p()
        self.check(self.driver.cuMemAllocManaged(ctypes.byref(pointer), ctypes.c_size_t(size), 1))
        self.pointers.append(pointer)
        assert pointer.value is not None
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer.value))

    def wait(self) -> None:
        self.check(self.driver.cuCtxSynchronize())

    def release(self) -> None:
        for pointer in self.pointers:
            self.check(self.driver.cuMemFree_v2(pointer))
        self.pointers.clear()

    def stream(self, order: int) -> ctypes.c_void_p:
        return ctypes.c_void_p(0)


def emulated_library() -> Any:
    """Build the emulation, once per test run; needs a C++ compiler."""
    return declare(ctypes.CDLL(str(emulated_kernels())))


@pytest.fixture(scope="session", params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def grid(request: pytest.FixtureRequest) -> Emulation:
    """The kernels' grid, emulated on the host or (with a GPU) real."""
    if request.param == "cuda":
        return Device(CudaKernels().library)
    return Emulation(emulated_library())


def address(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def picture(height: int, width: int, dtype: Any, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture whose rows are `pad` elements apart in memory, and that memory."""
    rng = np.random.default_rng(height * 997 + width)
    values = rng.random((height, width * 3 + pad), dtype=np.float32)
    memory = values if dtype is np.float32 else (values * np.iinfo(dtype).max).astype(dtype)
    return memory[:, : width * 3].reshape(height, width, 3), memory


def as_tiles(values: np.ndarray, half: bool) -> np.ndarray:
    return values.astype(np.float16) if half else values


@SHARED
@given(
    size=st.tuples(st.integers(1, 24), st.integers(1, 40)),
    tile=st.tuples(st.integers(1, 20), st.integers(1, 75)),
    scale=st.sampled_from([1, 2, 3, 4, 8]),
    places=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), min_size=1, max_size=3),
    dtype=st.sampled_from(list(KINDS)),
    lr=st.booleans(),
    half=st.booleans(),
    pad=st.integers(0, 5),
    shift=st.integers(0, 3),
    order=ORDERS,
)
def test_gather_on_the_grid_is_its_twin(
    grid: Emulation,
    size: tuple[int, int],
    tile: tuple[int, int],
    scale: int,
    places: list[tuple[int, int]],
    dtype: Any,
    lr: bool,
    half: bool,
    pad: int,
    shift: int,
    order: int,
) -> None:
    image, memory = picture(*size, dtype, pad)
    step = scale if lr else 1
    origins = np.array(places, np.int64).T.copy() * step
    sizes = {"tile_h_px": tile[0] * step, "tile_w_px": tile[1] * step, "scale": scale}
    twin = kernels.gather_lr if lr else kernels.gather
    expected = as_tiles(twin(image, *origins, **sizes), half)
    with grid.output(expected.shape, expected.dtype, shift) as out:
        grid.call(
            "yonos_gather",
            grid.put(memory),
            KINDS[dtype],
            *size,
            memory.strides[0],
            grid.put(origins),
            address(out),
            len(places),
            *(tile[0] * step, tile[1] * step, scale, int(lr), int(half)),
            grid.stream(order),
        )
        assert np.array_equal(out, expected)


@SHARED
@given(
    seed=st.integers(0, noise.LARGEST_SEED),
    places=st.lists(st.tuples(st.integers(0, 999), st.integers(0, 999)), min_size=1, max_size=3),
    size=st.tuples(st.integers(1, 9), st.integers(1, 70)),
    channels=st.integers(1, 9),
    factor=st.sampled_from([1, 4, 8]),
    half=st.booleans(),
    shift=st.integers(0, 3),
    order=ORDERS,
)
def test_noise_on_the_grid_is_its_twin(
    grid: Emulation,
    seed: int,
    places: list[tuple[int, int]],
    size: tuple[int, int],
    channels: int,
    factor: int,
    half: bool,
    shift: int,
    order: int,
) -> None:
    lat = np.array(places, np.int64).T.copy()
    expected = as_tiles(noise.tiles(seed, *lat, channels=channels, h_lat=size[0], w_lat=size[1]), half)
    origins = lat * factor
    with grid.output(expected.shape, expected.dtype, shift) as out:
        grid.call(
            "yonos_noise",
            seed,
            grid.put(origins),
            address(out),
            len(places),
            *(channels, factor, *size, int(half)),
            grid.stream(order),
        )
        assert np.array_equal(out, expected)


@SHARED
@given(
    canvas=st.tuples(st.integers(1, 30), st.integers(1, 90)),
    tile=st.tuples(st.integers(1, 30), st.integers(1, 90)),
    count=st.integers(1, 4),
    half=st.booleans(),
    skipping=st.booleans(),
    wide=st.booleans(),
    shift=st.integers(0, 3),
    order=ORDERS,
    seed=st.integers(0, 99),
)
def test_blend_on_the_grid_is_its_twin(
    grid: Emulation,
    canvas: tuple[int, int],
    tile: tuple[int, int],
    count: int,
    half: bool,
    skipping: bool,
    wide: bool,
    shift: int,
    order: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    h, w = min(tile[0], canvas[0]), min(tile[1], canvas[1])
    tiles = as_tiles(rng.standard_normal((count, 3, h, w), dtype=np.float32), half)
    rows, columns = rng.integers(0, canvas[0] - h + 1, count), rng.integers(0, canvas[1] - w + 1, count)
    wy, wx = rng.random((count, h), dtype=np.float32), rng.random((count, w), dtype=np.float32)
    wy[:, : h // 4], wx[:, : w // 4], wx[:, w - w // 5 :] = 0, 0, 0
    tiles[:, :, : h // 4], tiles[:, :, :, : w // 4] = np.nan, np.nan
    skip = rng.integers(0, 2, count, np.int32) if skipping else None
    start = rng.standard_normal((*canvas, 3), dtype=np.float32)
    expected = start.copy()
    shown = wy if skip is None else wy * (skip == 0)[:, None].astype(np.float32)
    kernels.blend(expected, tiles.astype(np.float32), rows, columns, shown, wx)
    first, last = (0, canvas[1]) if wide else (int(columns.min()), int(columns.max()) + w)
    with grid.output(start.shape, np.float32, shift) as out:
        out[...] = start
        grid.call(
            "yonos_blend",
            address(out),
            *(grid.put(array) for array in (tiles, rows, columns, wy, wx, skip)),
            *(count, h, w, *canvas, first, last - first, int(half)),
            grid.stream(order),
        )
        assert np.array_equal(out, expected)


def test_blend_on_the_grid_drops_what_lies_outside_the_canvas(grid: Emulation) -> None:
    tiles = np.ones((2, 3, 12, 80), np.float32)
    rows, columns = np.array([-3, 5]), np.array([-5, 8])
    wy, wx = np.ones((2, 12), np.float32), np.ones((2, 80), np.float32)
    with grid.output((6, 10, 3), np.float32) as out:
        out[...] = 0
        arrays = (grid.put(array) for array in (tiles, rows, columns, wy, wx))
        grid.call("yonos_blend", address(out), *arrays, None, 2, 12, 80, 6, 10, 0, 10, 0, None)
        assert np.all(out[5, 8:] == 2)
        out[5, 8:] = 1
        assert np.all(out == 1)


# ---------------------------------------------------------------------------------------------------------
# Finished rows


def ring_of(rows: np.ndarray, ring: int, first: int) -> np.ndarray:
    """Lay the last `ring` of these grid rows, which begin with row `first`, into a ring buffer."""
    out = np.full((ring, *rows.shape[1:]), np.nan, np.float32)
    for g in range(max(0, len(rows) - ring), len(rows)):
        out[(first + g) % ring] = rows[g]
    return out


@SHARED
@given(
    rows=st.integers(1, 30),
    width=st.integers(1, 90),
    extra=st.integers(0, 9),
    top=st.integers(0, 60),
    below=st.integers(0, 20),
    dtype=st.sampled_from(list(KINDS)),
    fix=st.sampled_from(["none", "wavelet", "adain"]),
    shift=st.integers(0, 3),
    order=ORDERS,
)
def test_finish_on_the_grid_is_its_twin(
    grid: Emulation,
    rows: int,
    width: int,
    extra: int,
    top: int,
    below: int,
    dtype: Any,
    fix: str,
    shift: int,
    order: int,
) -> None:
    rng = np.random.default_rng(rows * 91 + width)
    acc = rng.standard_normal((rows, width + extra, 3), dtype=np.float32)
    acc[0, 0] = (np.nan, np.inf, -np.inf)
    expected = acc[:, :width].copy()
    grid_height = -(-(top + rows + below) // 8)
    upper, lower, share = color_cells.grid_rows(top + np.arange(rows), grid_height)
    cells = affine = None
    ring = int(lower[-1] - upper[0]) + 1 + extra % 3
    if fix == "wavelet":
        whole = rng.standard_normal((grid_height, -(-width // 8), 3), dtype=np.float32)
        with np.errstate(invalid="ignore"):
            color_cells.add_grid(expected, whole, upper, lower, share)
        first = int(upper[0])
        cells = ring_of(whole[first : int(lower[-1]) + 1], ring, first)
    elif fix == "adain":
        affine = rng.standard_normal((2, 3), dtype=np.float32)
        expected = expected * affine[0] + affine[1]
    expected = kernels.finalize(expected, dtype)
    with grid.output(expected.shape, dtype, shift) as out:
        grid.call(
            "yonos_finish",
            grid.put(acc),
            width + extra,
            address(out),
            KINDS[dtype],
            *(rows, width, top),
            grid.put(cells),
            *(grid_height, ring),
            grid.put(affine),
            grid.stream(order),
        )
        assert np.array_equal(out, expected)


@SHARED
@given(
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    scale=st.sampled_from([1, 2, 3, 4, 8]),
    dtype=st.sampled_from(list(KINDS)),
    span=st.tuples(st.integers(0, 99), st.integers(0, 99)),
    extra=st.integers(0, 9),
    spare=st.integers(0, 3),
    pad=st.integers(0, 5),
    order=ORDERS,
)
def test_color_cells_on_the_grid_are_their_twins(
    grid: Emulation,
    size: tuple[int, int],
    scale: int,
    dtype: Any,
    span: tuple[int, int],
    extra: int,
    spare: int,
    pad: int,
    order: int,
) -> None:
    image, memory = picture(*size, dtype, pad)
    height, width = (scale * n for n in size)
    canvas = np.random.default_rng(1).standard_normal((height, width + extra, 3), dtype=np.float32)
    rows, columns = -(-height // 8), -(-width // 8)
    first = span[0] % rows
    last = first + 1 + span[1] % (rows - first)
    ring = last - first + spare
    taps = [color_cells.cell_taps(n * scale, n, scale) for n in size]
    wanted = color_cells.bicubic_means(image, *taps, first, last)
    expected = wanted - color_cells.block_means(canvas[8 * first : 8 * last, :width])
    with grid.output((ring, columns, 3), np.float32) as out:
        grid.call(
            "yonos_color_cells",
            grid.put(canvas[8 * first :]),
            width + extra,
            grid.put(memory),
            KINDS[dtype],
            *size,
            memory.strides[0],
            *(x for t in taps for x in (grid.put(t.base), grid.put(t.weight), t.weight.shape[1])),
            address(out),
            *(ring, first, last, height, width),
            grid.stream(order),
        )
        written = np.arange(first, last) % ring
        assert np.array_equal(out[written], expected)
        assert np.all(np.delete(out, written, axis=0).view(np.uint32) == 0xFFFFFFFF)


@SHARED
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 50),
    span=st.tuples(st.integers(0, 99), st.integers(0, 99)),
    spare=st.integers(0, 3),
    order=ORDERS,
)
def test_color_blur_on_the_grid_is_its_twin_along_both_axes(
    grid: Emulation, rows: int, columns: int, span: tuple[int, int], spare: int, order: int
) -> None:
    whole = np.random.default_rng(columns).standard_normal((rows, columns, 3), dtype=np.float32)
    first = span[0] % rows
    last = first + 1 + span[1] % (rows - first)
    low, high = max(first - 4, 0), min(last + 4, rows)
    ring = high - low + spare
    source = grid.put(ring_of(whole[low:high], ring, low))
    for along_y, expected in (
        (0, color_cells.blur_along_x(whole[first:last])),
        (1, color_cells.blur_along_y(whole[low:high], low, first, last, rows)),
    ):
        out = grid.put(np.zeros((ring, columns, 3), np.float32))
        place = np.ctypeslib.as_array((ctypes.c_float * (ring * columns * 3)).from_address(out.value))
        grid.call(
            "yonos_color_blur", source, out, along_y, ring, rows, columns, first, last, grid.stream(order)
        )
        got = place.reshape(ring, columns, 3)[np.arange(first, last) % ring]
        assert np.array_equal(got, expected)
    grid.inputs.clear()
    grid.release()


@SHARED
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    scale=st.sampled_from([1, 2, 3, 4]),
    dtype=st.sampled_from(list(KINDS)),
    pad=st.integers(0, 5),
    order=ORDERS,
)
def test_moments_on_the_grid_are_their_twins(
    grid: Emulation, size: tuple[int, int], scale: int, dtype: Any, pad: int, order: int
) -> None:
    image, memory = picture(*size, dtype, pad)
    large = upscale_bicubic(image, 0, size[0] * scale, scale=scale)
    ours = np.random.default_rng(5).standard_normal(large.shape, dtype=np.float32)
    for rows, bicubic in ((ours, False), (large, True)):
        expected = color_cells.cell_moments(rows)
        with grid.output(expected.shape, np.float64) as out:
            if bicubic:
                source = (grid.put(memory), KINDS[dtype], *size, memory.strides[0])
                grid.call("yonos_bicubic_moments", *source, address(out), scale, grid.stream(order))
            else:
                grid.call("yonos_moments", grid.put(rows), address(out), *rows.shape[:2], grid.stream(order))
            assert np.array_equal(out, expected)


@SHARED
@given(count=st.integers(1, 300), flat=st.booleans(), order=ORDERS)
def test_fold_and_affine_on_the_grid_are_their_twins(
    grid: Emulation, count: int, flat: bool, order: int
) -> None:
    rng = np.random.default_rng(count)
    values = [rng.standard_normal((count, 64, 3)) * scale + 0.3 for scale in (0.5, 0.0 if flat else 0.2)]
    totals = []
    for value in values:
        parts = np.concatenate((value.sum(axis=1), (value**2).sum(axis=1)), axis=1)
        rest = parts
        while len(rest) > 1:
            folded = -(-len(rest) // 64)
            with grid.output((folded, 6), np.float64) as out:
                grid.call("yonos_fold", grid.put(rest), address(out), len(rest), grid.stream(order))
                rest = out.copy()
        assert np.array_equal(rest[0], color_cells.fold_moments(parts))
        np.testing.assert_allclose(rest[0], parts.sum(axis=0), rtol=1e-12)
        totals.append(rest[0])
    expected = color_cells.affine(*totals, 64 * count)
    with grid.output((2, 3), np.float32) as out:
        grid.call("yonos_affine", grid.put(totals[0]), grid.put(totals[1]), 64 * count, address(out), None)
        assert np.array_equal(out, np.stack(expected))


@SHARED
@given(
    count=st.integers(1, 5),
    items=st.integers(1, 5000),
    half=st.booleans(),
    bad=st.sampled_from([np.nan, np.inf, -np.inf]),
    seed=st.integers(0, 99),
)
def test_check_on_the_grid_finds_each_tile_with_nan_or_infinity(
    grid: Emulation, count: int, items: int, half: bool, bad: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    tiles = as_tiles(rng.standard_normal((count, items), dtype=np.float32), half)
    broken = rng.integers(0, 2, count).astype(bool)
    tiles[broken, rng.integers(0, items)] = bad
    with grid.output((count,), np.int32) as flags:
        grid.call("yonos_check", grid.put(tiles), address(flags), count, items, int(half), None)
        assert flags.tolist() == broken.astype(int).tolist()


def test_half_precision_of_the_emulation_is_numpys() -> None:
    """Every half is read back; middles between neighbours, and the floats around them, round as NumPy's."""
    library = emulated_library()
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    values = np.empty(halves.size, np.float32)
    library.yonos_emulated_from_half(address(halves), address(values), ctypes.c_int64(halves.size))
    assert np.array_equal(values, halves.astype(np.float32), equal_nan=True)
    finite = np.sort(values[np.isfinite(values)])
    middles = (finite[:-1] + finite[1:]) / 2
    edges = np.array([65504, 65519.996, 65520, 65536, 1e30, np.inf, 2.0**-25, 2.0**-26, 1e-40], np.float32)
    floats = np.concatenate(
        [finite, middles, np.nextafter(middles, np.inf), np.nextafter(middles, -np.inf), edges, -edges]
    ).astype(np.float32)
    out = np.empty(floats.size, np.float16)
    library.yonos_emulated_to_half(address(floats), address(out), ctypes.c_int64(floats.size))
    with np.errstate(over="ignore"):
        expected = floats.astype(np.float16)
    assert np.array_equal(out.view(np.uint16), expected.view(np.uint16))
    library.yonos_emulated_to_half(address(np.array([np.nan], np.float32)), address(out), ctypes.c_int64(1))
    assert np.isnan(out[0])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("yonos_gather", (None, 3, 1, 1, 3, None, None, 1, 1, 1, 1, 0, 0, None)),
        ("yonos_gather", (None, 0, 0, 1, 3, None, None, 1, 1, 1, 1, 0, 0, None)),
        ("yonos_gather", (None, 0, 1, 1, 3, None, None, 1, 3, 3, 2, 1, 0, None)),
        ("yonos_gather", (None, 0, 1, 1, 3, None, None, 70000, 1, 1, 1, 0, 0, None)),
        ("yonos_noise", (0, None, None, 1, 0, 4, 1, 1, 0, None)),
        ("yonos_check", (None, None, 1, 0, 0, None)),
        ("yonos_blend", (None, None, None, None, None, None, None, 0, 1, 1, 1, 1, 0, 1, 0, None)),
        ("yonos_blend", (None, None, None, None, None, None, None, 1, 1, 1, 1, 8, 4, 5, 0, None)),
        (
            "yonos_color_cells",
            (None, 8, None, 0, 1, 1, 3, None, None, 1, None, None, 1, None, 1, 0, 2, 16, 8, None),
        ),
        (
            "yonos_color_cells",
            (None, 8, None, 7, 1, 1, 3, None, None, 1, None, None, 1, None, 1, 0, 1, 8, 8, None),
        ),
        ("yonos_color_blur", (None, None, 0, 1, 4, 1, 3, 5, None)),
        ("yonos_moments", (None, None, 0, 1, None)),
        ("yonos_bicubic_moments", (None, 3, 1, 1, 3, None, 1, None)),
        ("yonos_fold", (None, None, 0, None)),
        ("yonos_affine", (None, None, 0, None, None)),
        ("yonos_finish", (None, 1, None, 9, 1, 1, 0, None, 0, 0, None, None)),
        ("yonos_finish", (None, 1, None, 0, 1, 2, 0, None, 0, 0, None, None)),
        ("yonos_finish", (None, 1, None, 0, 1, 1, 0, 4096, 1, 1, 4096, None)),
    ],
)
def test_sizes_out_of_range_are_refused_before_anything_is_touched(
    grid: Emulation, name: str, arguments: tuple[Any, ...]
) -> None:
    assert getattr(grid.library, name)(*arguments) == 1


@pytest.mark.slow
def test_cuda_kernels_do_not_spill_and_use_no_atomics() -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc to compile csrc/tiles.cu with")
    reports = load_script(SOURCES.parent / "benchmarks" / "gpu" / "ptxas_report.py").compile_report("80")
    assert len(reports) == 38
    for report in reports:
        assert report.clean, report
        # the coarse grid has a 64th of the pixels; the adain fix is not the default
        small = report.name.startswith(("color_blur", "moments", "bicubic_moments", "fold", "affine"))
        assert (report.wide_accesses > 0) != small, report


def test_cuda_library_loads_without_a_driver_and_checks_sizes_first(tmp_path: Path) -> None:
    own = shutil.copy(kernel_launcher(), tmp_path)  # another test may have opened the kernels in this process
    library = declare(ctypes.CDLL(own))
    for name in SIGNATURES:
        assert getattr(library, name)
    assert library.yonos_fold(None, None, 0, None) == 1
    assert library.yonos_fold(None, None, 1, None) == 3  # CUDA_ERROR_NOT_INITIALIZED: nothing was opened
