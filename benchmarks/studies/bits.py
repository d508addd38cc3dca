"""Do two commits give the same bits? Hash what `SR` and the pipeline return, and compare two such documents.

::

    python benchmarks/studies/bits.py before.json          # on one commit
    python benchmarks/studies/bits.py after.json           # on the other, same machine
    python benchmarks/studies/bits.py before.json after.json
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from yonos_trt import SR, pipeline
from yonos_trt.planning import plan_picture

try:
    from yonos_trt.backends.numpy import NumpyBackend
except ImportError:  # commits before the rooms
    from yonos_trt.backend import NumpyBackend

SIZES = ((1, 1), (5, 9), (40, 33), (97, 150))
KINDS = {
    "grey8": ((), np.uint8),
    "grey16": ((), np.uint16),
    "greya8": ((2,), np.uint8),
    "rgb8": ((3,), np.uint8),
    "rgb16": ((3,), np.uint16),
    "rgbf": ((3,), np.float32),
    "rgba8": ((4,), np.uint8),
    "rgba16": ((4,), np.uint16),
}


def picture(size: tuple[int, int], kind: str) -> np.ndarray:
    """A smooth pattern with noise, the same on every machine."""
    channels, dtype = KINDS[kind]
    shape = (*size, *channels)
    y, x = np.mgrid[: size[0], : size[1]].reshape(2, *size, *(1 for _ in channels))
    waves = 0.5 + 0.4 * np.sin(x / 3.0 + np.arange(shape[2] if channels else 1)[0]) * np.cos(y / 5.0)
    noise = np.random.default_rng(7).random(shape)
    value = np.clip(0.8 * waves + 0.2 * noise, 0, 1)
    return value.astype(dtype) if dtype == np.float32 else np.rint(value * np.iinfo(dtype).max).astype(dtype)


def digest(value: Any) -> str:
    array = np.ascontiguousarray(value)
    head = f"{array.dtype} {array.shape}".encode()
    return hashlib.sha256(head + array.tobytes()).hexdigest()[:24]


def cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Name -> call whose result is hashed."""
    runtimes = ["onnx", *(["openvino"] if find_spec("openvino") else [])]
    for size, kind in product(SIZES, KINDS):
        yield f"numpy {kind} {size}", lambda size=size, kind=kind: on_numpy(size, kind)
    for runtime, size, kind in product(runtimes, SIZES, KINDS):
        yield (
            f"{runtime} {kind} {size}",
            lambda r=runtime, s=size, k=kind: opened(runtime=r).upscale(picture(s, k)),
        )
    cut = {"tile_px": 128, "overlap_px": 32}
    big = picture((97, 150), "rgb8")
    for lanes, batch, overlap in product((1, 3), (1, 2, 5), (0, 16, 32)):
        options = {**cut, "lanes": lanes, "batch": batch, "overlap_px": overlap}
        yield f"onnx {options}", lambda o=options: opened(**o).upscale(big)
        yield f"numpy {options}", lambda o=options: on_numpy((97, 150), "rgb8", **o)
    for color_fix, seed in product(("wavelet", "adain", "none"), (0, 2**40 + 3)):
        yield (
            f"onnx {color_fix} seed {seed}",
            lambda c=color_fix, s=seed: opened(color_fix=c, seed=s, **cut).upscale(big),
        )
    for alpha, kind in product(("bicubic", "model", "drop"), ("greya8", "rgba8", "rgba16")):
        yield (
            f"alpha {alpha} {kind}",
            lambda a=alpha, k=kind: opened().upscale(picture((40, 33), k), alpha=a),
        )
    for scale in (2, 8):
        yield f"scale {scale}", lambda s=scale: opened(scale=s).upscale(picture((40, 33), "rgb8"))
    yield "threads", lambda: opened(threads=1, **cut).upscale(big)
    yield "limit", lambda: opened(memory_limit_mb=100).upscale(big)
    yield "batch array", lambda: opened().upscale(np.stack([picture((40, 33), "rgb8")] * 2))
    yield (
        "pil palette",
        lambda: np.asarray(opened().upscale(Image.fromarray(big).convert("P")).convert("RGB")),
    )
    yield "upscale_batch", lambda: np.stack(opened().upscale_batch([big, big[::-1]]))
    yield "stream", lambda: np.stack(list(opened().stream([big, big[:, ::-1]])))
    word = "rows" if "rows" in SR.upscale_file.__kwdefaults__ else "stream"
    for suffix, rows, kind in product(("png", "tif"), ("always", "never"), ("rgb8", "rgba16", "grey8")):
        yield (
            f"file {suffix} {rows} {kind}",
            lambda s=suffix, r=rows, k=kind: in_file(s, k, {word: r}),
        )
    yield "rows resumed", lambda: resumed(big)


_open: dict[str, SR] = {}


def opened(**options: Any) -> SR:
    key = json.dumps(options, sort_keys=True)
    if key not in _open:
        while _open:
            _open.popitem()[1].close()
        _open[key] = SR(**options)
    return _open[key]


def on_numpy(size: tuple[int, int], kind: str, *, lanes: int = 1, **options: Any) -> np.ndarray:
    image = picture(size, kind)
    if image.ndim != 3 or image.shape[2] != 3:
        image = np.repeat(image.reshape(*size, -1)[..., :1], 3, 2)
    backend = NumpyBackend(lanes=lanes)
    plan = plan_picture(backend.manifest, *size, **options).tiles
    return pipeline.upscale_array(image, backend, plan=plan)


def in_file(suffix: str, kind: str, options: dict[str, str]) -> np.ndarray:
    from yonos_trt.images import read_image, to_array

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.png", Path(folder) / f"out.{suffix}"
        from yonos_trt.images import from_array, write_image

        write_image(from_array(picture((97, 150), kind)), source)
        opened(tile_px=128, overlap_px=32).upscale_file(source, target, **options)
        return to_array(read_image(target))


def resumed(image: np.ndarray) -> np.ndarray:
    """The second half of a picture, as after memory ran out."""
    sr = opened(tile_px=128, overlap_px=32)
    plan = sr.plan(*image.shape[:2]).tiles
    return np.concatenate(list(pipeline.upscale(image, sr.backend, plan=plan, first_row_px=201)))


def main(first: Path, second: Path | None) -> int:
    if second is None:
        found = {name: digest(call()) for name, call in cases()}
        first.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{len(found)} results hashed into {first}")
        return 0
    before, after = json.loads(first.read_text()), json.loads(second.read_text())
    other = [name for name in before if before[name] != after.get(name)]
    print(f"{len(before)} before, {len(after)} after, {len(other)} differ or are missing", *other, sep="\n  ")
    return int(bool(other) or not before)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None))
