"""Step 2: the CUDA tile kernels against their NumPy twins, bit for bit, and their speed."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import steps

from yonos_trt import noise, tiling

LIBRARY = steps.REPOSITORY / "yonos_trt" / "libyonos_cuda.so"


def build(capability: tuple[int, int], target: Path) -> Path:
    """Compile csrc/tiles.cu for this GPU if no library is there yet."""
    if target.is_file():
        return target
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    arch = "{}{}".format(*capability)
    command = [nvcc, "-O3", "-std=c++20", "--fmad=false", "-shared", "-Xcompiler", "-fPIC"]
    command += [f"-gencode=arch=compute_{arch},code=sm_{arch}", str(steps.REPOSITORY / "csrc" / "tiles.cu")]
    subprocess.run([*command, "-o", str(target)], check=True)
    return target


class Bench:
    """Device buffers, copies in and out, and timings around one kernel call."""

    def __init__(self, driver: Any, kernels: Any) -> None:
        from yonos_trt.cuda.device import Memory

        self.driver, self.kernels = driver, kernels
        self.stream, self.memory = driver.stream_create(), Memory(driver)

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
    from yonos_trt.cuda.kernels import DevicePicture

    rng = np.random.default_rng(0)
    image = rng.random((size, size + 13, 3), np.float32)
    if dtype is not np.float32:
        image = (image * np.iinfo(dtype).max).astype(dtype)
    ys, xs = np.array([0, 16, 3 * size, 64], np.int64), np.array([0, 48, 128, 3 * size], np.int64)
    cut = tiling.gather_lr if lr else tiling.gather
    expected = cut(image, ys, xs, tile_h_px=size, tile_w_px=size, scale=4)
    expected = expected.astype(np.float16 if half else np.float32)
    place = bench.put("image", image)
    picture = DevicePicture(
        place, *image.shape[:2], np.dtype(dtype).name, image.shape[1] * 3 * image.itemsize
    )
    origins, out = bench.put("origins", np.stack((ys, xs))), bench.memory.device("out", expected.nbytes)

    def call() -> None:
        bench.kernels.gather(
            picture,
            origins,
            out,
            count=4,
            tile_h_px=size,
            tile_w_px=size,
            scale=4,
            lr=lr,
            half=half,
            stream=bench.stream,
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
        bench.kernels.noise(
            2**40 + 1,
            origins,
            out,
            count=4,
            channels=8,
            factor=4,
            h_lat=size,
            w_lat=size,
            half=half,
            stream=bench.stream,
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
        tiling.blend(expected, part, np.zeros(1, np.int64), columns[i : i + 1], wy[i : i + 1], wx[i : i + 1])
    places = [
        bench.put("canvas", canvas),
        bench.put("tiles", tiles),
        bench.put("rows", np.zeros(4, np.int64)),
    ]
    places += [bench.put("columns", columns), bench.put("wy", wy), bench.put("wx", wx)]
    places += [bench.put("skip", np.array([0, 1, 0, 0], np.int32))]

    def call() -> None:
        bench.kernels.blend(
            *places,
            count=4,
            tile_h_px=size,
            tile_w_px=size,
            canvas_h_px=size,
            canvas_w_px=width,
            half=half,
            stream=bench.stream,
        )

    call()
    same = np.array_equal(bench.get(places[0], canvas.shape, np.float32), expected)
    return {"equal": same, **bench.time(call, tiles.nbytes + 2 * canvas.nbytes)}


def finalize(bench: Bench, size: int, dtype: Any) -> dict[str, Any]:
    """A square of canvas into a picture."""
    acc = np.random.default_rng(2).uniform(-1.2, 1.2, (size, size, 3)).astype(np.float32)
    expected = tiling.finalize(acc, dtype)
    place, out = bench.put("acc", acc), bench.memory.device("out", expected.nbytes)

    def call() -> None:
        bench.kernels.finalize(
            place, 0, out, dtype=np.dtype(dtype).name, values=acc.size, stream=bench.stream
        )

    call()
    same = np.array_equal(bench.get(out, expected.shape, dtype), expected)
    return {"equal": same, **bench.time(call, acc.nbytes + expected.nbytes)}


def check(bench: Bench, size: int, half: bool) -> dict[str, Any]:
    """Flags of four tiles, two of them spoilt in their last and first number."""
    tiles = np.zeros((4, 3 * size * size), np.float16 if half else np.float32)
    tiles[1, -1], tiles[3, 0] = np.nan, np.inf
    place, flags = bench.put("tiles", tiles), bench.memory.device("flags", 16)

    def call() -> None:
        bench.kernels.check(place, flags, count=4, items=tiles.shape[1], half=half, stream=bench.stream)

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
    for dtype in (np.uint8, np.uint16, np.float32):
        results[f"finalize {np.dtype(dtype).name}"] = finalize(bench, size, dtype)
    bench.close()
    wrong = [name for name, result in results.items() if not result["equal"]]
    if wrong:
        raise AssertionError(f"these differ from their twins: {', '.join(wrong)}; all results: {results}")
    return results


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Compare the CUDA kernels with their twins and time them."""
    from yonos_trt.cuda.driver import CudaDriver
    from yonos_trt.cuda.kernels import CudaKernels

    driver = CudaDriver()
    library = build(driver.info.compute_capability, LIBRARY)
    return measure(driver, CudaKernels(library))


if __name__ == "__main__":
    sys.exit(steps.main("02_kernels", run))
