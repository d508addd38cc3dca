"""Export a model of Stable Diffusion 2.1's size with random weights, and write down seconds and gigabytes.

    python benchmarks/full_size_export.py [--work FOLDER] [--out benchmarks/results/full_size_export.json]

An 866 M parameter U-Net (8 input channels) and AutoencoderKL go the whole way: FP32 graphs, range check, FP16
graphs with parity, TensorRT-RTX engines (no GPU needed). Wants about 12 GB of memory and 25 GB of disk. Each
phase runs in the one process of the export; memory is its peak resident set up to the end of the phase.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from machine import header
from yonos_export import ExportConfig, export

from yonos_trt.manifest import load_manifest

# Sizes from the config files of stabilityai/stable-diffusion-2-1; the U-Net reads noise and the LR latent.
UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 8,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}


def make_folder(folder: Path) -> dict[str, int]:
    """Write the diffusers folder; return the parameters of each part."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from safetensors.torch import save_file

    torch.manual_seed(0)
    unet, vae = UNet2DConditionModel(**UNET), AutoencoderKL(**VAE)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction"
    )
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    scheduler.save_pretrained(folder / "scheduler")
    save_file({"context": torch.randn(1, 77, UNET["cross_attention_dim"])}, folder / "context.safetensors")
    return {
        "unet": sum(p.numel() for p in unet.parameters()),
        "autoencoder": sum(p.numel() for p in vae.parameters()),
    }


def peak_gb() -> float:
    """Peak resident set of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class Phases:
    """Progress callback that notes when each phase began and how much memory was used by its end."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._name, self._began = "", time.perf_counter()

    def __call__(self, what: str, done: float) -> None:
        if what == self._name:
            return
        now = time.perf_counter()
        if self._name:
            self.rows.append({"phase": self._name, "seconds": now - self._began, "peak_gb": peak_gb()})
            print(f"{self._name:<40} {now - self._began:7.1f} s  {peak_gb():5.1f} GB", flush=True)
        self._name, self._began = what, now


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, help="scratch folder (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--verify-tile", type=int, default=256)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="full-size-", dir=options.work))
    try:
        source, target = work / "model", work / "engines"
        parameters = make_folder(source)
        phases = Phases()
        export(
            ExportConfig(
                source=source,
                engine_dir=target,
                precision="fp16",
                runtime="tensorrt-rtx",
                keep_fp32=False,
                min_shape=(256, 256),
                opt_shape=(512, 512),
                max_shape=(1024, 1024),
                batch=8,
                verify_tile_px=options.verify_tile,
            ),
            progress=phases,
        )
        manifest = load_manifest(target, verify=False)
        artifacts = [
            {
                "stage": name,
                "runtime": artifact.runtime,
                "precision": artifact.precision,
                "bytes": artifact.bytes + sum(record.bytes for record in artifact.external),
            }
            for name, stage in manifest.stages.items()
            for artifact in stage.artifacts
        ]
        parity = {
            stage: {
                precision: {"max_error": f.max_error, "psnr_db": f.psnr_db, "cosine": f.cosine}
                for precision, f in figures.items()
            }
            for stage, figures in manifest.parity.stages.items()
        }
        document = {
            **header("full_size_export", sys.argv, peaks=False),
            "parameters": parameters,
            "phases": phases.rows,
            "artifacts": artifacts,
            "parity": parity,
            "end_to_end_psnr_db": dict(manifest.parity.end_to_end_psnr_db),
        }
        text = json.dumps(document, indent=2)
        print(text)
        if options.out is not None:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(text + "\n", encoding="utf-8")
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
