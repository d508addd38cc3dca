"""Our stages of published one-step models beside their authors' own code, on random weights.

    git clone https://github.com/cswry/OSEDiff        # commit fcc4f09c7ed66a9bc0ba9433940d76b343142426
    git clone https://github.com/Guaishou74851/AdcSR  # commit d0b2871e3de9f877e4aebb9bfaf23227b22ac25d
    git clone https://github.com/csslc/PiSA-SR        # commit 9c76e12e261d1980148738a0cff41e5e27d18c9f
    git clone https://github.com/wuer5/OMGSR          # commit 8996613b95ffeba8653a214f2ca0c04abe10b74a
    export MINE=benchmarks.studies.families_beside_their_code
    python -m $MINE osediff --code OSEDiff --their-python VENV/bin/python
    python -m $MINE adcsr --code AdcSR --their-python VENV/bin/python
    python -m $MINE pisasr --code PiSA-SR --their-python VENV/bin/python
    python -m $MINE pisasr-strengths --code PiSA-SR --their-python VENV/bin/python  # 0.8 and 1.3: two calls
    python -m $MINE omgsr-s --code OMGSR --their-python VENV/bin/python

Nothing of their code is copied: a child process with their interpreter (diffusers 0.25.0 with peft 0.9.0 for
OSEDiff and PiSA-SR, 0.32.2 for AdcSR, 0.34.0 with peft 0.17.0 for OMGSR-S) makes a small random model of the
real classes, saves it with their own saving code and runs their own inference on the CPU. Two things are
held still on their side: the mode of the posterior instead of a sample, and no tiling (pictures below their
tile size). This process opens the same files as `yonos-export` does and prints, per stage and end to end and
for two sizes, PSNR (peak: the range of theirs) and the largest difference.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

COMMITS = {
    "osediff": "fcc4f09c7ed66a9bc0ba9433940d76b343142426",
    "adcsr": "d0b2871e3de9f877e4aebb9bfaf23227b22ac25d",
    "pisasr": "9c76e12e261d1980148738a0cff41e5e27d18c9f",
    "pisasr-strengths": "9c76e12e261d1980148738a0cff41e5e27d18c9f",
    "omgsr-s": "8996613b95ffeba8653a214f2ca0c04abe10b74a",
}
STRENGTHS = {"pixel": 0.8, "semantic": 1.3}
SIZES_PX = ((256, 256), (256, 384))
LOWEST_DB = 60.0
PROMPT = "a small cat"


# ---------------------------------------------------------------------------------------------------------
# Their side, in their interpreter


def _on_cpu(torch: Any) -> None:
    """Let code that says "cuda" run on the CPU."""
    plain_tensor = torch.tensor

    def cpu(value: Any) -> Any:
        return "cpu" if str(value).startswith("cuda") else value

    for kind in (torch.nn.Module, torch.Tensor):
        kind.to = _moved(kind.to, cpu)
    torch.cuda.synchronize = lambda *a, **k: None
    torch.nn.Module.cuda = lambda self, *a, **k: self
    torch.Tensor.cuda = lambda self, *a, **k: self
    torch.tensor = lambda *a, **k: plain_tensor(*a, **{n: cpu(v) for n, v in k.items()})


def _moved(plain: Any, cpu: Any) -> Any:
    return lambda self, *a, **k: plain(self, *map(cpu, a), **{n: cpu(v) for n, v in k.items()})


def _tiny_text_encoder(folder: Path) -> None:
    """Save a CLIP text encoder and a tokenizer of 26 letters, random."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [chr(c) for c in range(97, 123)]
    words = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    source = folder / "tokenizer-source"
    source.mkdir(parents=True)
    (source / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (source / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(source / "vocab.json", source / "merges.txt", model_max_length=16)
    tokenizer.save_pretrained(folder / "tokenizer")
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16, bos_token_id=len(words) - 2, eos_token_id=len(words) - 1,
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")


def _base(folder: Path, unet: Any, vae: Any) -> Path:
    """Save a small random base of these classes; from here on a posterior's sample is its mode."""
    from diffusers import DDPMScheduler
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    DiagonalGaussianDistribution.sample = lambda self, generator=None: self.mode()
    base = folder / "base"
    unet(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(32, 64, 64, 64),
        layers_per_block=2, cross_attention_dim=32, attention_head_dim=(2, 4, 4, 4), norm_num_groups=32,
        use_linear_projection=True,
    ).save_pretrained(base / "unet")  # fmt: skip
    vae(
        block_out_channels=(32, 32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, layers_per_block=2, sample_size=64,
    ).save_pretrained(base / "vae")  # fmt: skip
    DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        steps_offset=1, prediction_type="epsilon",
    ).save_pretrained(base / "scheduler")  # fmt: skip
    _tiny_text_encoder(base)
    return base


def _embed(model: Any, folder: Path) -> None:
    """Save what their text encoder makes of the prompt."""
    import torch
    from safetensors.torch import save_file

    with torch.no_grad():
        save_file({"context": model.encode_prompt([PROMPT]).contiguous()}, folder / "prompt.safetensors")


def _shake(torch: Any, *networks: Any) -> None:
    """Give new LoRA weights something to do: their B is zero."""
    with torch.no_grad():
        for network in networks:
            for name, parameter in network.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05)


def _watch(model: Any, scaling: float) -> dict[str, Any]:
    """Keep what goes into their U-Net as z_l and into their decoder as z_0."""
    seen: dict[str, Any] = {}
    unet, decode = model.unet.forward, model.vae.decode

    def called(z_l: Any, *arguments: Any, **named: Any) -> Any:
        seen["z_l"] = z_l
        return unet(z_l, *arguments, **named)

    def decoded(z: Any, *arguments: Any, **named: Any) -> Any:
        seen["z_0"] = z * scaling
        return decode(z, *arguments, **named)

    model.unet.forward, model.vae.decode = called, decoded
    return seen


def their_pisasr(code: Path, folder: Path, strengths: dict[str, float] | None = None) -> None:
    """Make a base of the real classes and a checkpoint with their saving code, and run their inference."""
    import torch

    _on_cpu(torch)
    sys.path.insert(0, str(code))
    torch.manual_seed(0)
    from pisasr import PiSASR, PiSASR_eval
    from src.models.autoencoder_kl import AutoencoderKL
    from src.models.unet_2d_condition import UNet2DConditionModel

    base = _base(folder, UNet2DConditionModel, AutoencoderKL)
    options = argparse.Namespace(
        pretrained_model_path=str(base), resume_ckpt=None, lora_rank_unet_pix=4, lora_rank_unet_sem=4,
        timesteps1=1, pretrained_path=str(folder / "pisa_sr.pkl"), mixed_precision="fp32",
        vae_encoder_tiled_size=1024, vae_decoder_tiled_size=224, latent_tiled_size=96,
        latent_tiled_overlap=32, default=strengths is None,
        lambda_pix=(strengths or {}).get("pixel", 1.0), lambda_sem=(strengths or {}).get("semantic", 1.0),
    )  # fmt: skip
    trained = PiSASR(options)
    _shake(torch, trained.unet)
    trained.save_model(options.pretrained_path)
    model = PiSASR_eval(options)
    model.set_eval()
    _embed(model, folder)
    seen = _watch(model, model.vae.config.scaling_factor)
    _save(folder, {"image": (3, 1)}, lambda image: (seen, model(options.default, image, PROMPT)[1]), torch)


def their_omgsr(code: Path, folder: Path) -> None:
    """Make a base, adapters as their training makes and saves them, and run their inference."""
    import torch

    _on_cpu(torch)
    sys.path.insert(0, str(code))
    torch.manual_seed(0)
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from infer.omgsr_s_infer_model import OMGSR_S_Infer
    from peft import LoraConfig, PeftModel
    from safetensors.torch import save_file

    base = str(_base(folder, UNet2DConditionModel, AutoencoderKL))  # PEFT writes the name into its card
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    encoder = AutoencoderKL.from_pretrained(base, subfolder="vae").encoder
    # As set_unet_lora and set_vae_encoder_lora of train/train_omgsr_s.py, which cannot be imported alone.
    layers = ["conv1", "conv2", "conv_in", "conv_shortcut", "conv", "conv_out", "to_k", "to_q", "to_v"]
    for name, network, rank in (("unet", unet, 32), ("vae_encoder", encoder, 16)):
        config = LoraConfig(
            r=rank, lora_alpha=rank, target_modules=[*layers, "to_out.0"], init_lora_weights="gaussian"
        )
        adapted = PeftModel(model=network, peft_config=config, adapter_name=f"{name}_lora_adapter")
        _shake(torch, adapted)
        adapted.save_pretrained(folder / "adapter")
    model = OMGSR_S_Infer(base, str(folder / "adapter"), 273, "cpu", torch.float32)
    context = torch.randn(1, 16, 32)
    save_file({"context": context}, folder / "prompt.safetensors")
    seen = _watch(model, model.vae.config.scaling_factor)
    _save(folder, {"image": (3, 1)}, lambda image: (seen, model(image, context, 64, 32)[0]), torch)


def their_osediff(code: Path, folder: Path) -> None:
    """Make a base of the real classes and a checkpoint with their saving code, and run their inference."""
    import torch

    _on_cpu(torch)
    sys.path.insert(0, str(code))
    torch.manual_seed(0)
    from models.autoencoder_kl import AutoencoderKL
    from models.unet_2d_condition import UNet2DConditionModel

    base = _base(folder, UNet2DConditionModel, AutoencoderKL)
    import osediff

    options = argparse.Namespace(
        pretrained_model_name_or_path=str(base), lora_rank=4, vae_encoder_tiled_size=1024,
        vae_decoder_tiled_size=224, latent_tiled_size=96, latent_tiled_overlap=32, mixed_precision="fp32",
        osediff_path=str(folder / "osediff.pkl"), merge_and_unload_lora=False,
    )  # fmt: skip
    trained = osediff.OSEDiff_gen(options)
    _shake(torch, trained.unet, trained.vae)
    with torch.no_grad():
        trained.unet.conv_in.weight.add_(0.01)
    trained.save_model(str(folder / "osediff.pkl"))
    model = osediff.OSEDiff_test(options).eval()
    _embed(model, folder)
    seen = _watch(model, model.vae.config.scaling_factor)
    _save(folder, {"image": (3, 1)}, lambda image: (seen, model(image, PROMPT)), torch)


def their_adcsr(code: Path, folder: Path) -> None:
    """Make a U-Net with the real first width, save as their training and run their test's model."""
    import copy

    import torch

    _on_cpu(torch)
    sys.path.insert(0, str(code))
    torch.manual_seed(0)
    from diffusers import UNet2DConditionModel
    from diffusers.models.autoencoders.vae import Decoder
    from model import Net

    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(320, 64, 128, 128),
        layers_per_block=2,
        cross_attention_dim=32, attention_head_dim=(5, 2, 4, 4), norm_num_groups=32,
        use_linear_projection=True,
    )  # fmt: skip
    unet.save_config(folder / "base" / "unet")
    decoder = Decoder(
        in_channels=4, out_channels=3, up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[64, 128, 256, 256], layers_per_block=2, norm_num_groups=32, act_fn="silu",
        norm_type="group", mid_block_add_attention=True,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    state = {f"decoder.{key}": value for key, value in decoder.state_dict().items()}
    torch.save({"state_dict": {**state, "quant_conv.weight": torch.zeros(1)}}, folder / "halfDecoder.ckpt")
    net = torch.nn.DataParallel(Net(unet, copy.deepcopy(decoder)))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    torch.save(net.state_dict(), folder / "net_params_200.pkl")
    tail = [*decoder.up_blocks, decoder.conv_norm_out, decoder.conv_act, decoder.conv_out]
    model = torch.nn.Sequential(net.module, *tail).eval()
    body = net.module.body

    def run(image: Any) -> Any:
        seen = {"z_l": body[0](image)}
        seen["z_0"] = body[1](seen["z_l"])
        return seen, model(image)

    _save(folder, {"image": (3, 4)}, run, torch)


def _save(folder: Path, what: dict[str, tuple[int, int]], run: Any, torch: Any) -> None:
    """Run their model on a random smooth picture of every size and keep what was seen."""
    channels, divisor = what["image"]
    for index, (height, width) in enumerate(SIZES_PX):
        coarse = torch.rand(1, channels, height // divisor // 8, width // divisor // 8) * 2 - 1
        image = torch.nn.functional.interpolate(
            coarse, size=(height // divisor, width // divisor), mode="bicubic"
        )
        with torch.no_grad():
            seen, result = run(image.clamp(-1, 1))
        arrays = {"in": image.clamp(-1, 1), **seen, "out": result}
        np.savez(folder / f"theirs-{index}.npz", **{k: v.float().numpy() for k, v in arrays.items()})


# ---------------------------------------------------------------------------------------------------------
# Ours


def ours(family: str, folder: Path) -> Any:
    """Open their files as `yonos-export` does."""
    from yonos_export import ExportConfig
    from yonos_export.families import open_family

    if family == "adcsr":
        files: dict[str, Any] = {
            "source": folder / "net_params_200.pkl",
            "half_decoder": folder / "halfDecoder.ckpt",
        }
    else:
        names = {"osediff": "osediff.pkl", "omgsr-s": "adapter"}
        files = {
            "source": folder / names.get(family, "pisa_sr.pkl"),
            "prompt_embeds": folder / "prompt.safetensors",
            **(STRENGTHS if family == "pisasr-strengths" else {}),
        }
    name = family.removesuffix("-strengths")
    config = ExportConfig(engine_dir=folder / "none", family=name, base=folder / "base", **files)
    return open_family(config)


def psnr_db(theirs: np.ndarray, mine: np.ndarray) -> float:
    """PSNR in dB, peak: the range of theirs."""
    error = float(((theirs.astype(np.float64) - mine) ** 2).mean())
    return float("inf") if error == 0 else 20 * np.log10(float(np.ptp(theirs))) - 10 * np.log10(error)


def compare(family: str, folder: Path) -> list[dict[str, Any]]:
    """Compare stage by stage, each fed with theirs, and from picture to picture."""
    from yonos_export.verify import functions_from_torch

    stages = functions_from_torch(ours(family, folder).stages)
    rows = []
    for index, size in enumerate(SIZES_PX):
        seen = np.load(folder / f"theirs-{index}.npz")
        clamp = (lambda x: x) if family == "adcsr" else (lambda x: np.clip(x, -1, 1))
        z_l = stages["encoder"]({"image": seen["in"]})
        pairs = {
            "encoder": (seen["z_l"], z_l),
            "step": (seen["z_0"], stages["step"]({"z_l": seen["z_l"]})),
            "decoder": (seen["out"], clamp(stages["decoder"]({"z_0": seen["z_0"]}))),
            "end to end": (seen["out"], clamp(stages["decoder"]({"z_0": stages["step"]({"z_l": z_l})}))),
        }
        for stage, (theirs, mine) in pairs.items():
            rows.append(
                {
                    "size_px": list(size),
                    "stage": stage,
                    "psnr_db": round(psnr_db(theirs, mine), 1),
                    "largest": float(f"{np.abs(theirs - mine).max():.3g}"),
                    "range": float(f"{np.ptp(theirs):.3g}"),
                }
            )
    return rows


def main() -> int:
    """Run both sides; 1 where a figure is below the limit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("family", choices=COMMITS)
    parser.add_argument("--code", type=Path, required=True, help="checkout of the authors' code")
    parser.add_argument("--their-python", default=sys.executable, help="interpreter with their dependencies")
    parser.add_argument("--folder", type=Path, help="keep the files here")
    parser.add_argument("--theirs", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.theirs:
        theirs: dict[str, Any] = {
            "osediff": their_osediff, "adcsr": their_adcsr, "pisasr": their_pisasr, "omgsr-s": their_omgsr,
            "pisasr-strengths": lambda code, folder: their_pisasr(code, folder, STRENGTHS),
        }  # fmt: skip
        theirs[options.family](options.code, options.folder)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        command = [
            options.their_python,
            __file__,
            options.family,
            "--theirs",
            "--code",
            str(options.code.resolve()),
        ]
        subprocess.run([*command, "--folder", str(folder.resolve())], check=True, cwd=options.code)
        rows = compare(options.family, folder)
    for row in rows:
        print(json.dumps(row))
    return int(any(row["psnr_db"] < LOWEST_DB for row in rows))


if __name__ == "__main__":
    sys.exit(main())
