"""Step 2: the CUDA tile kernels against their NumPy twins, bit for bit, and their speed."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import numpy as np
import steps

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
from yonos_trt.tiles import color, color_cells, kernels, noise
from yonos_trt.tiles.plan import TilePlan, plan_tiles
from yonos_trt.trt.memory import fold_counts


class Bench:
    """Device buffers, copies in and out, and timings around one kernel call."""

    def __init__(self, driver: Any, kernels: Any) -> None:
        from yonos_trt.cuda.device import Memory

        self.driver, self.kernels = driver, kernels
        self.stream, self.memory = driver.stream_create(), Memory(driver)

    def launch(self, call: Launch) -> None:
        """Queue a kernel."""
        self.kernels.launch(call, stream=self.stream)

    def put(self, name: str, array: np.ndarray) -> int:
        """Copy an array to the device."""
        array = np.ascontiguousarray(array)
        pinned = self.memory.pinned(name, array.nbytes)
        self.driver.host_view(pinned, array.nbytes)[:] = array.reshape(-1).view(np.uint8)
        address = self.memory.device(name, array.nbytes)
        self.driver.copy_in(address, pinned, array.nbytes, self.stream)
        return address

    def get(self, address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Wait, and copy an array back."""
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        pinned = self.memory.pinned("back", nbytes)
        self.driver.copy_out(pinned, address, nbytes, self.stream)
        event = self.driver.event_create()
        self.driver.event_record(event, self.stream)
        self.driver.event_synchronize(event)
        self.driver.event_destroy(event)
        return self.driver.host_view(pinned, nbytes).view(dtype).reshape(shape).copy()

    def time(self, call: Any, moved_bytes: int) -> dict[str, float]:
        """Median time of a call and the rate at which it moves its bytes."""
        times = steps.milliseconds(self.driver, self.stream, call, warmup=5, repeats=50)
        ms = steps.median(times)
        return {"median_ms": ms, "best_ms": min(times), "gbytes_s": moved_bytes / ms / 1e6}

    def close(self) -> None:
        """Free everything."""
        self.memory.free_all()
        self.driver.stream_destroy(self.stream)


def gather(bench: Bench, size: int, dtype: Any, half: bool, lr: bool) -> dict[str, Any]:
    """`size` px tiles, four of them, out of a picture of that size in LR px."""
    rng = np.random.default_rng(0)
    image = rng.random((size, size + 13, 3), np.float32)
    if dtype is not np.float32:
        image = (image * np.iinfo(dtype).max).astype(dtype)
    ys, xs = np.array([0, 16, 3 * size, 64], np.int64), np.array([0, 48, 128, 3 * size], np.int64)
    cut = kernels.gather_lr if lr else kernels.gather
    expected = cut(image, ys, xs, tile_h_px=size, tile_w_px=size, scale=4)
    expected = expected.astype(np.float16 if half else np.float32)
    place = bench.put("image", image)
    picture = DevicePicture(
        place, *image.shape[:2], np.dtype(dtype).name, image.shape[1] * 3 * image.itemsize
    )
    origins, out = bench.put("origins", np.stack((ys, xs))), bench.memory.device("out", expected.nbytes)

    def call() -> None:
        bench.launch(
            Gather(picture, origins, out, count=4, tile_h_px=size, tile_w_px=size, scale=4, lr=lr, half=half)
        )

    call()
    same = np.array_equal(bench.get(out, expected.shape, expected.dtype), expected)
    return {"equal": same, **bench.time(call, expected.nbytes)}


def field(bench: Bench, size: int, half: bool) -> dict[str, Any]:
    """Noise for four tiles of 8 channels."""
    ys, xs = np.array([0, 8, 80, 4], np.int64), np.array([0, 12, 4, 800], np.int64)
    expected = noise.tiles(2**40 + 1, ys // 4, xs // 4, channels=8, h_lat=size, w_lat=size)
    expected = expected.astype(np.float16 if half else np.float32)
    origins, out = bench.put("origins", np.stack((ys, xs))), bench.memory.device("out", expected.nbytes)

    def call() -> None:
        bench.launch(
            Noise(2**40 + 1, origins, out, count=4, channels=8, factor=4, h_lat=size, w_lat=size, half=half)
        )

    call()
    same = np.array_equal(bench.get(out, expected.shape, expected.dtype), expected)
    return {"equal": same, **bench.time(call, expected.nbytes)}


def blend(bench: Bench, size: int, half: bool) -> dict[str, Any]:
    """Four overlapping tiles onto a canvas; the second is left out."""
    rng = np.random.default_rng(1)
    tiles = rng.uniform(-1, 1, (4, 3, size, size)).astype(np.float16 if half else np.float32)
    columns = np.array([0, size // 2, size, size + size // 2], np.int64)
    width = 3 * size
    wy, wx = rng.random((4, size), np.float32), rng.random((4, size), np.float32)
    wy[:, : size // 8] = 0
    canvas = rng.random((size, width, 3), np.float32)
    expected = canvas.copy()
    for i in (0, 2, 3):
        part = tiles[i : i + 1].astype(np.float32)
        kernels.blend(expected, part, np.zeros(1, np.int64), columns[i : i + 1], wy[i : i + 1], wx[i : i + 1])
    places = [
        bench.put("canvas", canvas),
        bench.put("tiles", tiles),
        bench.put("rows", np.zeros(4, np.int64)),
    ]
    places += [bench.put("columns", columns), bench.put("wy", wy), bench.put("wx", wx)]
    places += [bench.put("skip", np.array([0, 1, 0, 0], np.int32))]

    def call() -> None:
        bench.launch(
            Blend(
                *places,
                count=4,
                tile_h_px=size,
                tile_w_px=size,
                canvas_h_px=size,
                canvas_w_px=width,
                first_px=0,
                span_px=width,
                half=half,
            )
        )

    call()
    same = np.array_equal(bench.get(places[0], canvas.shape, np.float32), expected)
    return {"equal": same, **bench.time(call, tiles.nbytes + 2 * canvas.nbytes)}


def finish(bench: Bench, size: int, dtype: Any, fix: str) -> dict[str, Any]:
    """A square of canvas into a picture, with all that the colour fix takes beside it."""
    rng = np.random.default_rng(2)
    lr = size // 4
    image = rng.random((lr, lr, 3), np.float32)
    if dtype is not np.float32:
        image = (image * np.iinfo(dtype).max).astype(dtype)
    acc = rng.uniform(-1.2, 1.2, (size, size, 3)).astype(np.float32)
    plan = plan_tiles(size, size, tile_px=size, overlap_px=0, multiple_px=16, smallest_px=16)
    fixed = color.RowColorFix(image, plan, 4, mode=fix).push(acc)
    expected = kernels.finalize(fixed, dtype)
    place, out = bench.put("acc", acc), bench.memory.device("out", expected.nbytes)
    kind = np.dtype(dtype).name
    source = DevicePicture(bench.put("image", image), lr, lr, kind, image.strides[0])
    steps_before, extra = color_fix_launches(bench, plan, source, place, fix)
    last = Finish(place, size, out, dtype=kind, rows=size, width_px=size, **extra)

    def call() -> None:
        for launch in (*steps_before, last):
            bench.launch(launch)

    call()
    same = np.array_equal(bench.get(out, expected.shape, dtype), expected)
    return {"equal": same, **bench.time(call, acc.nbytes * (1 if fix == "none" else 2) + expected.nbytes)}


def color_fix_launches(
    bench: Bench, plan: TilePlan, source: DevicePicture, acc: int, fix: str
) -> tuple[list[Launch], dict[str, int]]:
    """Return what runs before the last kernel, and the arguments that the last one gets of it."""
    size = plan.height_px
    if fix == "none":
        return [], {}
    if fix == "adain":
        counts = fold_counts(plan)
        ours, wanted = (bench.memory.device(name, 48 * sum(counts)) for name in ("ours", "wanted"))
        launches: list[Launch] = [Moments(acc, ours, size, size), BicubicMoments(source, wanted, 4)]
        for count in counts[:-1]:
            launches += [Fold(ours, ours + 48 * count, count), Fold(wanted, wanted + 48 * count, count)]
            ours, wanted = ours + 48 * count, wanted + 48 * count
        affine = bench.memory.device("affine", 24)
        return [*launches, Affine(wanted, ours, size * size, affine)], {"affine": affine}
    cells = -(-size // 8)
    taps = color_cells.cell_taps(size, size // 4, 4)
    tables = (bench.put("base", taps.base), bench.put("weight", taps.weight), taps.weight.shape[1])
    names = ("difference", "smooth", "grid")
    first, second, third = (bench.memory.device(name, 12 * cells * cells) for name in names)
    span = {"ring": cells, "first": 0, "last": cells}
    along_x = ColorBlur(first, second, along_y=False, rows=cells, columns=cells, **span)
    along_y = ColorBlur(second, third, along_y=True, rows=cells, columns=cells, **span)
    difference = ColorCells(acc, size, source, *tables, *tables, first, **span, height_px=size, width_px=size)
    return [difference, along_x, along_y], {"grid": third, "grid_rows": cells, "ring": cells}


def check(bench: Bench, size: int, half: bool) -> dict[str, Any]:
    """Flags of four tiles, two of them spoilt in their last and first number."""
    tiles = np.zeros((4, 3 * size * size), np.float16 if half else np.float32)
    tiles[1, -1], tiles[3, 0] = np.nan, np.inf
    place, flags = bench.put("tiles", tiles), bench.memory.device("flags", 16)

    def call() -> None:
        bench.launch(Check(place, flags, count=4, items=tiles.shape[1], half=half))

    call()
    same = bench.get(flags, (4,), np.int32).tolist() == [0, 1, 0, 1]
    return {"equal": same, **bench.time(call, tiles.nbytes)}


def measure(driver: Any, kernels: Any, size: int = 512) -> dict[str, Any]:
    """All kernels; raises if one differs from its twin."""
    bench = Bench(driver, kernels)
    results: dict[str, Any] = {}
    for half in (False, True):
        kind = "fp16" if half else "fp32"
        for dtype in (np.uint8, np.uint16, np.float32):
            for lr in (False, True):
                name = f"gather{'_lr' if lr else ''} {np.dtype(dtype).name} -> {kind}"
                results[name] = gather(bench, size, dtype, half, lr)
        results[f"noise {kind}"] = field(bench, size // 4, half)
        results[f"blend {kind}"] = blend(bench, size, half)
        results[f"check {kind}"] = check(bench, size, half)
    for fix in color.MODES:
        for dtype in (np.uint8, np.uint16, np.float32):
            results[f"finish {np.dtype(dtype).name}, {fix}"] = finish(bench, size, dtype, fix)
    bench.close()
    wrong = [name for name, result in results.items() if not result["equal"]]
    if wrong:
        raise AssertionError(f"these differ from their twins: {', '.join(wrong)}; all results: {results}")
    return results


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Compare the CUDA kernels, PTX and (where built) native code, with their twins and time them."""
    from yonos_trt.cuda.driver import CudaDriver
    from yonos_trt.cuda.kernels import CudaKernels, kernel_codes, kernel_library

    driver = CudaDriver()
    driver.activate()
    results: dict[str, Any] = {}
    for name, code in kernel_codes(kernel_library()):
        start = time.perf_counter()
        kernels = CudaKernels(codes=[(name, code)])
        results[name] = {"load_s": time.perf_counter() - start, **measure(driver, kernels)}
    return results


if __name__ == "__main__":
    sys.exit(steps.main("02_kernels", run))
