"""What an overlap buys for networks with GroupNorm and attention: tiles against the whole picture, and seams.

    python -m benchmarks.studies.overlaps   # a tiny random model of OSEDiff's classes
    python -m benchmarks.studies.overlaps --engine engines/osediff-x4   # any engine directory

One picture of ``--size`` output px is upscaled in one tile and in tiles of ``--tile``, with each overlap.
Printed are, per overlap, the tiles, how many times a large picture's arithmetic grows by it, PSNR against
the whole picture (peak 1, no colour fix), the largest difference, and the seam ratio of
tests/test_seams.py: gradient across all borders of tiles over that of the neighbouring lines. The random
model's last layer is scaled so that its output has a photograph's mean and deviation; what it computes is
no picture, and depends on its whole tile.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / part) for part in ("export", "train", "tests"))]

PHOTO = ROOT / "examples" / "chelsea.png"
DEVIATION = 0.4  # of a photograph's values in [-1, 1], about


def photograph(path: Path, side: int) -> np.ndarray:
    """Return the middle square of a picture, ``(side, side, 3)`` float32 in [0, 1]."""
    from PIL import Image, ImageOps

    from yonos_trt.images import read_rgb8

    square = ImageOps.fit(Image.fromarray(read_rgb8(path)), (side, side), Image.Resampling.BICUBIC)
    return np.asarray(square, np.float32) / 255


def tiny_engine(folder: Path) -> Path:
    """Export a tiny random model in OSEDiff's layout, its output scaled to a photograph's range."""
    import torch
    from family_models import osediff_files
    from safetensors.torch import load_file, save_file
    from yonos_export import ExportConfig, export
    from yonos_export.families import open_family
    from yonos_export.verify import functions_from_torch

    base, weights, prompt = osediff_files(folder)
    config = ExportConfig(
        source=weights, engine_dir=folder / "engine", family="osediff", base=base, prompt_embeds=prompt,
        runtime="onnx", verify=False,
    )  # fmt: skip
    source = open_family(config)
    assert source.stages is not None
    run = functions_from_torch(source.stages)
    picture = photograph(PHOTO, 512).transpose(2, 0, 1)[None] * 2 - 1
    image = run["decoder"]({"z_0": run["step"]({"z_l": run["encoder"]({"image": picture})})})
    mean, scale = image.mean((0, 2, 3)), DEVIATION / image.std()
    file = next((base / "vae").glob("*.safetensors"))
    tensors = load_file(file)
    last = "decoder.conv_out."
    tensors[f"{last}weight"] *= float(scale)
    tensors[f"{last}bias"] = (tensors[f"{last}bias"] - torch.from_numpy(mean)) * float(scale)
    save_file(tensors, file, metadata={"format": "pt"})
    export(config)
    return folder / "engine"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--engine", type=Path)
    parser.add_argument("--picture", type=Path, default=PHOTO)
    parser.add_argument("--size", type=int, default=1024, help="Side of the output; one tile must hold it.")
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--overlaps", default="64,128,256")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        engine = args.engine or tiny_engine(Path(folder))
        measure(engine, args.picture, args.size, args.tile, [int(x) for x in args.overlaps.split(",")])


def measure(engine: Path, picture: Path, size: int, tile: int, overlaps: list[int]) -> None:
    """Print the table for one engine directory."""
    from test_seams import border_and_neighbour_gradients

    from yonos_trt.engine.manifest import load_manifest
    from yonos_trt.sr import SR

    scale = load_manifest(engine, verify=False).model.scale
    image = photograph(picture, size // scale)

    def upscaled(**options: int) -> tuple[np.ndarray, object]:
        with SR(engine, color_fix="none", **options) as sr:
            return np.asarray(sr.upscale(image), np.float64), sr.plan(*image.shape[:2]).tiles

    whole, plan = upscaled(tile_px=size)
    if plan.tiles != 1:
        raise SystemExit(f"--size got {size}, but a tile of this model is at most {plan.tile_h_px} px")
    print(f"whole picture: mean {whole.mean():.3f}, deviation {whole.std():.3f}")
    print("| overlap px | tiles | arithmetic, large pictures | PSNR dB | largest error / 255 | seam ratio |")
    print("|---|---|---|---|---|---|")
    for overlap in overlaps:
        tiled, plan = upscaled(tile_px=tile, overlap_px=overlap)
        error = np.abs(tiled - whole)
        across, beside = border_and_neighbour_gradients(tiled, plan)
        work = (tile / (tile - overlap)) ** 2
        print(
            f"| {overlap} | {plan.tiles} | {work:.2f} | {-10 * np.log10(np.square(error).mean()):.1f} "
            f"| {255 * error.max():.0f} | {sum(across) / sum(beside):.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
