"""Export a model of Stable Diffusion 2.1's size with random weights, and write down seconds and gigabytes.

    python benchmarks/studies/full_size_export.py [--work FOLDER] [--no-verify] [--out FILE.json]
    python benchmarks/studies/full_size_export.py --family osediff   # or adcsr
    python benchmarks/studies/full_size_export.py --graphs FOLDER [--out FILE.json]  # engines only

An 866 M parameter U-Net (8 input channels; 4 and LoRA of rank 4 for osediff; pruned to 0.75 of its channels,
without time and prompt, for adcsr) and its autoencoder go the whole way: FP32 graphs, range check, FP16
graphs with parity, TensorRT-RTX engines (no GPU needed). Wants some 10 GB of memory and 25 GB of disk. All
phases run in one process; memory is its peak resident set in the phase, files that it has mapped included.
With ``--work`` model and FP32 graphs stay there, and the next run of the same family goes on from them.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import header
from yonos_export import ExportConfig, export

from yonos_trt.engine.manifest import load_manifest

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


def make_folder(folder: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Write the diffusers folder; return the config's fields and the parameters of each part."""
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
    return {"source": folder}, {
        "unet": sum(p.numel() for p in unet.parameters()),
        "autoencoder": sum(p.numel() for p in vae.parameters()),
    }


def make_osediff(folder: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Write a base of the real size and ``osediff.pkl``; return the config's fields and the parameters."""
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from safetensors.torch import save_file

    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    from family_models import osediff_document

    torch.manual_seed(0)
    base = folder / "base"
    unet, vae = UNet2DConditionModel(**UNET | {"in_channels": 4}), AutoencoderKL(**VAE)
    counts = {name: sum(p.numel() for p in n.parameters()) for name, n in (("unet", unet), ("vae", vae))}
    unet.save_pretrained(base / "unet")
    vae.save_pretrained(base / "vae")
    DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(
        base / "scheduler"
    )
    del unet, vae
    torch.save(osediff_document(base), folder / "osediff.pkl")
    save_file({"context": torch.randn(1, 77, UNET["cross_attention_dim"])}, folder / "prompt.safetensors")
    fields = {"source": folder / "osediff.pkl", "base": base, "prompt_embeds": folder / "prompt.safetensors"}
    return fields, counts


def make_adcsr(folder: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Write AdcSR's two files with the real shapes; return the config's fields and the parameters."""
    import torch
    from diffusers import UNet2DConditionModel
    from diffusers.models.autoencoders.vae import Decoder

    torch.manual_seed(0)
    with torch.device("meta"):
        whole = UNet2DConditionModel(**UNET | {"in_channels": 16, "out_channels": 342}).state_dict()
    gone = re.compile(r"time_emb|\.attn2\.|transformer_blocks\.\d+\.norm2\.")
    net = {}
    for key, tensor in whole.items():
        if not gone.search(key):
            shape = [int(n * 0.75) for n in tensor.shape[:2]] + list(tensor.shape[2:])
            fan_in = max(1, math.prod(shape[1:]))
            one = "norm" in key and key.endswith("weight")
            net[f"module.body.1.{key}"] = torch.ones(shape) if one else torch.randn(shape) * fan_in**-0.5
    decoder = Decoder(
        in_channels=4,
        out_channels=3,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(64, 128, 256, 256),
        layers_per_block=2,
    ).state_dict()
    middle = {k: v for k, v in decoder.items() if k.startswith("mid_block.")}
    net |= {f"module.body.2.{key.removeprefix('mid_block.')}": value for key, value in middle.items()}
    folder.mkdir(parents=True)
    torch.save(net, folder / "net_params_200.pkl")
    half = {f"decoder.{key}": value for key, value in decoder.items()}
    torch.save({"state_dict": half}, folder / "halfDecoder.ckpt")
    counts = {
        "unet": sum(v.numel() for k, v in net.items() if k.startswith("module.body.1.")),
        "decoder": sum(v.numel() for k, v in decoder.items() if not k.startswith("conv_in.")),
    }
    fields = {"source": folder / "net_params_200.pkl", "half_decoder": folder / "halfDecoder.ckpt"}
    return fields, counts


def made(folder: Path, family: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the config's fields and the parameters of the model in a folder, made if it is missing."""
    facts = folder / "made.json"
    if not facts.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        fields, counts = {"sd": make_folder, "osediff": make_osediff, "adcsr": make_adcsr}[family](folder)
        fields = {name: str(path.relative_to(folder)) for name, path in fields.items()}
        facts.write_text(json.dumps({"fields": fields, "parameters": counts}), encoding="utf-8")
    document = json.loads(facts.read_text(encoding="utf-8"))
    fields = {name: folder / path for name, path in document["fields"].items()}
    return fields | ({} if family == "sd" else {"family": family}), document["parameters"]


def kernels(engine: Path) -> int:
    """Count what an engine launches, in the text of its program."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    from test_export_engines import kernels_in

    return len(kernels_in(engine.read_bytes()))


def peak_gb() -> float:
    """Peak resident set of this process since the last call, in GB; where only Linux can tell, so far."""
    try:
        (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): begin anew with what is resident now
        return int(line) * 1024 / 1e9
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class Phases:
    """Progress callback that notes of each phase seconds by the clock, those of the CPUs, and memory."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._name, self._began = "", (time.perf_counter(), time.process_time())

    def __call__(self, what: str, done: float) -> None:
        if what == self._name:
            return
        now, peak = (time.perf_counter(), time.process_time()), peak_gb()
        if self._name:
            seconds, cpu_seconds = (b - a for a, b in zip(self._began, now, strict=True))
            row = {"phase": self._name, "seconds": seconds, "cpu_seconds": cpu_seconds, "peak_gb": peak}
            self.rows.append(row)
            print(f"{self._name:<40} {seconds:7.1f} s {cpu_seconds:7.1f} s CPU {peak:5.1f} GB", flush=True)
        self._name, self._began = what, now


# Tiles of the engines' profile in output px: smallest, best, largest; and the batch.
TILES, BATCH = ((256, 256), (512, 512), (1024, 1024)), 8


def build_from_graphs(graphs: Path) -> dict[str, Any]:
    """Build the three engines from ``STAGE.fp16.onnx``; return what each took, memory as the peak so far."""
    from yonos_export.engine_from_onnx import build_engine
    from yonos_export.engine_options import EngineOptions, profile_shapes
    from yonos_export.model_info import ModelInfo

    from yonos_trt.engine.schema import identity_manifest

    info = ModelInfo.of(identity_manifest(latent_factor=8, multiple_px=64))
    config = ExportConfig(
        source=graphs,
        engine_dir=graphs,
        min_shape=TILES[0],
        opt_shape=TILES[1],
        max_shape=TILES[2],
        batch=BATCH,
    )
    shapes, rows = profile_shapes(info, config), []
    for stage in shapes:
        with tempfile.TemporaryDirectory(dir=graphs) as scratch:
            built = build_engine(
                graphs / f"{stage}.fp16.onnx",
                Path(scratch) / f"{stage}.engine",
                shapes[stage],
                EngineOptions(runtime="tensorrt-rtx"),
                stage=stage,
            )
            graph_bytes = sum(p.stat().st_size for p in graphs.glob(f"{stage}.fp16.onnx*"))
            row = {
                "stage": stage,
                "seconds": built.seconds,
                "peak_gb": peak_gb(),
                "graph_bytes": graph_bytes,
                "engine_bytes": built.path.stat().st_size,
                "tensorrt_version": built.tensorrt_version,
            }
        print(json.dumps(row), flush=True)
        rows.append(row)
    return {"engines": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--work", type=Path, help="folder that keeps model and graphs (default: a temporary one)"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument(
        "--graphs", type=Path, help="folder with FP16 graphs: build their engines, nothing else"
    )
    parser.add_argument("--family", choices=["sd", "osediff", "adcsr"], default="sd")
    parser.add_argument("--no-verify", dest="verify", action="store_false", help="leave parity out")
    parser.add_argument("--verify-tile", type=int, default=256)
    options = parser.parse_args()
    if options.graphs is not None:
        finish(build_from_graphs(options.graphs), options.out)
        return
    kept = None if options.work is None else options.work / options.family
    work = kept or Path(tempfile.mkdtemp(prefix="full-size-"))
    try:
        source, target = work / "model", work / "engines"
        fields, parameters = made(source, options.family)
        phases = Phases()
        export(
            ExportConfig(
                **fields,
                engine_dir=target,
                onnx_dir=kept and kept / "graphs",
                force=True,
                precision="fp16",
                runtime="tensorrt-rtx",
                keep_fp32=False,
                min_shape=TILES[0],
                opt_shape=TILES[1],
                max_shape=TILES[2],
                batch=BATCH,
                verify=options.verify,
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
                **({} if artifact.runtime == "onnx" else {"kernels": kernels(target / artifact.file)}),
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
            "parameters": parameters,
            "phases": phases.rows,
            "artifacts": artifacts,
            "parity": parity,
            "end_to_end_psnr_db": dict(manifest.parity.end_to_end_psnr_db),
        }
        finish(document, options.out)
    finally:
        if kept is None:
            shutil.rmtree(work, ignore_errors=True)


def finish(document: dict[str, Any], out: Path | None) -> None:
    """Print the document with its origin, and write it."""
    command = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv]
    text = json.dumps({**header("full_size_export", command, peaks=False), **document}, indent=2)
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
