"""Step 5: latency of the stages and of whole pictures: PyTorch eager, compiled, as a CUDA graph, and ours.

Everything in FP16 on one tile of 512 x 512 output px and on batches. Weights are random: latency does not
depend on them. `lite` is this project's architecture; `sd` has the size of Stable Diffusion 2.1 (U-Net with 8
input channels, AutoencoderKL) and needs diffusers. Ours needs an engine directory built beforehand.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import steps

TILE_PX = 512


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", default="lite,sd", help="comma-separated: lite, sd")
    parser.add_argument("--batches", default="1,4", help="comma-separated")
    parser.add_argument("--tiles", default=str(TILE_PX), help="tile sides in output px, comma-separated")
    parser.add_argument("--providers", default="", help="of ONNX Runtime, for whole pictures")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--engine-dir", type=Path, action="append", default=[], help="ours; may be repeated")
    parser.add_argument("--runtime", default="tensorrt-rtx", choices=("tensorrt", "tensorrt-rtx"))
    parser.add_argument("--wheels", type=Path, help="folder of TensorRT-RTX wheels, as in step 1")


# ---------------------------------------------------------------------------------------------------------
# The networks in PyTorch


def lite_stages(torch: Any) -> tuple[dict[str, Any], int, int]:
    """The stages of a lite x4 model, latent channels and factor."""
    from yonos_export.stages import stages_from_bundle
    from yonos_train.model import BundleConfig, new_bundle

    config = BundleConfig(name="lite-x4", scale=4)
    made = stages_from_bundle(new_bundle(config))
    stages = {name: made.module(name) for name in ("encoder", "step", "decoder")}
    return stages, config.latent_channels, config.latent_factor


def sd_stages(torch: Any) -> tuple[dict[str, Any], int, int]:
    """The stages at the size of Stable Diffusion 2.1."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=64,
        in_channels=8,
        out_channels=4,
        cross_attention_dim=1024,
        attention_head_dim=(5, 10, 20, 20),
        use_linear_projection=True,
        block_out_channels=(320, 640, 1280, 1280),
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
    )
    context = torch.zeros(1, 77, 1024)

    class Encoder(torch.nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.vae = vae

        def forward(self, image: Any) -> Any:
            return self.vae.encode(image).latent_dist.mode() * 0.18215

    class Step(torch.nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.unet = unet
            self.register_buffer("context", context)

        def forward(self, noise: Any, z_l: Any) -> Any:
            words = self.context.expand(len(noise), -1, -1)
            v = self.unet(torch.cat((noise, z_l), 1), 999, encoder_hidden_states=words).sample
            return 0.068 * noise - 0.9977 * v

    class Decoder(torch.nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.vae = vae

        def forward(self, z_0: Any) -> Any:
            return self.vae.decode(z_0 / 0.18215).sample

    return {"encoder": Encoder(), "step": Step(), "decoder": Decoder()}, 4, 8


def as_graph(torch: Any, module: Any, inputs: list[Any]) -> Callable[..., Any]:
    """Capture a module into a CUDA graph; the result replays it on the inputs' memory."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            module(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        module(*inputs)
    return lambda *_: graph.replay()


def time_torch(torch: Any, call: Callable[..., Any], inputs: list[Any], repeats: int) -> dict[str, float]:
    """Time a call on the current stream by events."""
    times = []
    for index in range(10 + repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call(*inputs)
        end.record()
        end.synchronize()
        if index >= 10:
            times.append(start.elapsed_time(end))
    return {"median_ms": steps.median(times), "best_ms": min(times), "repeats": repeats}


def torch_latency(model: str, batches: list[int], tiles: list[int], repeats: int) -> dict[str, Any]:
    """All stages of one model, in the three ways of PyTorch."""
    import torch

    torch.backends.cudnn.benchmark = True
    modules, channels, factor = {"lite": lite_stages, "sd": sd_stages}[model](torch)
    results: dict[str, Any] = {}
    with torch.inference_mode():
        for name, module in modules.items():
            module = module.eval().cuda().half()
            for n, tile in ((n, tile) for tile in tiles for n in batches):
                image = torch.rand(n, 3, tile, tile, device="cuda", dtype=torch.float16) * 2 - 1
                side = tile // factor
                latent = torch.randn(n, channels, side, side, device="cuda", dtype=torch.float16)
                inputs = {"encoder": [image], "step": [latent, latent.clone()], "decoder": [latent]}[name]
                ways: dict[str, Callable[[], Callable[..., Any]]] = {
                    "eager": lambda m=module: m,
                    "compiled": lambda m=module: torch.compile(m, mode="max-autotune-no-cudagraphs"),
                    "graph": lambda m=module, i=inputs: as_graph(torch, m, i),
                }
                for way, make in ways.items():
                    try:
                        timed: dict[str, Any] = time_torch(torch, make(), inputs, repeats)
                    except Exception as error:
                        timed = {"failed": f"{type(error).__name__}: {error}"[:500]}
                    results[f"{name}, tile {tile}, batch {n}, {way}"] = timed
            module.cpu()
    results["peak_mib"] = torch.cuda.max_memory_allocated() >> 20
    return results


# ---------------------------------------------------------------------------------------------------------
# Ours


def our_stages(
    engine_dir: Path, runtime: str, batches: list[int], tiles: list[int], repeats: int
) -> dict[str, Any]:
    """Each engine alone on one stream."""
    from yonos_trt.tiles.plan import plan_tiles
    from yonos_trt.trt.backend import TrtBackend
    from yonos_trt.trt.memory import BatchShape, layout

    backend = TrtBackend(engine_dir, runtime=runtime, lanes=1, graphs=False)  # type: ignore[arg-type]
    driver, networks, manifest = backend.driver, backend._networks[0], backend.manifest
    driver.activate()
    stream = backend._scheduler.lane_stream(0)
    results: dict[str, Any] = {}
    for n, tile in ((n, tile) for tile in tiles for n in batches):
        side = min(tile, manifest.tiles.largest_px)
        plan = plan_tiles(
            side,
            side,
            tile_px=side,
            overlap_px=0,
            multiple_px=manifest.tiles.multiple_px,
            smallest_px=manifest.tiles.smallest_px,
            batch=n,
        )
        try:
            scratch = networks.set_shapes(BatchShape.of(plan), stream)
        except Exception as error:
            results[f"tile {side}, batch {n}"] = {"failed": f"{type(error).__name__}: {error}"[:500]}
            continue
        memory = backend._buffers.memory
        memory.free_all()
        sizes = layout(plan, manifest, scratch_bytes=scratch, dtypes=networks.dtypes)
        networks.allocate(memory, sizes)
        networks.contexts["decoder"].bind("image", memory.device("tiles", sizes.slot["tiles"]))
        for name in ("image", "z_l", "noise", "z_0"):
            driver.fill(networks.buffers[name], 0, sizes.lane[name], stream)
        for name, context in networks.contexts.items():
            times = steps.milliseconds(
                driver, stream, lambda c=context: c.enqueue(stream), warmup=10, repeats=repeats
            )
            results[f"{name}, tile {side}, batch {n}"] = {
                "median_ms": steps.median(times),
                "best_ms": min(times),
                "repeats": repeats,
                "tile_px": side,
            }
    backend.close()
    return results


def our_pictures(engine_dir: Path, runtime: str, providers: list[Any] | None = None) -> dict[str, Any]:
    """Whole pictures through SR, host to host, after warming up."""
    from yonos_trt.sr import SR

    results: dict[str, Any] = {}
    for side in (256, 512):
        image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
        for lanes in (1, 2, 4):
            for color_fix in ("none", "wavelet"):
                wanted: dict[str, Any] = {"lanes": lanes, "color_fix": color_fix, "providers": providers}
                with SR(engine_dir, runtime=runtime, **wanted) as sr:
                    times = []
                    for index in range(13):
                        start = time.perf_counter()
                        sr.upscale(image)
                        if index >= 3:
                            times.append(1e3 * (time.perf_counter() - start))
                results[f"{side} x {side}, lanes {lanes}, colour fix {color_fix}"] = {
                    "median_ms": steps.median(times),
                    "best_ms": min(times),
                }
    return results


def attempt(way: Callable[[], Any]) -> Any:
    """Return what `way` measures, or why it does not run."""
    try:
        return way()
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"[:500]}


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Time PyTorch's ways and ours on this GPU."""
    batches = [int(n) for n in chosen.batches.split(",")]
    tiles = [int(side) for side in chosen.tiles.split(",")]
    providers = list(filter(None, chosen.providers.split(",")))
    plain = [(name, {"enable_cuda_graph": "0"}) for name in providers]
    result: dict[str, Any] = {
        "convention": "stages: device time by CUDA events; pictures: wall time, host to host",
        "tiles_px": tiles,
        "torch": {},
        "ours": {},
    }
    for model in filter(None, chosen.models.split(",")):
        try:
            result["torch"][model] = torch_latency(model, batches, tiles, chosen.repeats)
        except ImportError as error:
            result["torch"][model] = {"not run": str(error)}
    if chosen.wheels:
        from step_01_tensorrt_rtx import install

        install(chosen.wheels)
    for engine_dir in chosen.engine_dir:
        # On a GPU that TensorRT-RTX refuses (Hopper is not on its list) the others still answer.
        ways: dict[str, Callable[[], Any]] = {
            "stages": lambda d=engine_dir: our_stages(d, chosen.runtime, batches, tiles, chosen.repeats),
            "pictures": lambda d=engine_dir: our_pictures(d, chosen.runtime),
        }
        if providers:
            ways["pictures, ONNX Runtime"] = lambda d=engine_dir: our_pictures(d, "onnx", providers)
            ways["pictures, ONNX Runtime without graphs"] = lambda d=engine_dir: our_pictures(
                d, "onnx", plain
            )
        result["ours"][engine_dir.name] = {name: attempt(way) for name, way in ways.items()}
    if not chosen.engine_dir:
        result["ours"] = {"not run": "no --engine-dir was given"}
    return result


if __name__ == "__main__":
    sys.exit(steps.main("05_latency", run, options))
