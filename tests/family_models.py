"""Tiny checkpoints in the layouts that published one-step models are saved in, random weights."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

RANK = 4


def base_folder(
    folder: Path, *, prediction_type: str = "epsilon", width: int = 12, widths: tuple[int, ...] = (32, 64)
) -> Path:
    """Save a tiny Stable-Diffusion-shaped base: U-Net 4 -> 4, VAE with f = 8, scheduler; no text encoder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=widths,
        layers_per_block=1,
        cross_attention_dim=width,
        attention_head_dim=2,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D",) * (len(widths) - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (len(widths) - 1),
        use_linear_projection=True,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
    )
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        prediction_type=prediction_type,
    )  # fmt: skip
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    scheduler.save_pretrained(folder / "scheduler")
    return folder


def prompt_file(path: Path, width: int = 12) -> Path:
    """Save a random prompt embedding."""
    from safetensors.torch import save_file

    torch.manual_seed(1)
    save_file({"context": torch.randn(1, 7, width)}, path)
    return path


def text_parts(base: Path, width: int = 12) -> Path:
    """Add tokenizer and text encoder to a base folder, as Stable Diffusion's has them; needs transformers.

    The words are the letters (id 1 to 26; 27 to 52 where a word ends), ``!`` (0) pads; 53 begins, 54 ends.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    letters = [chr(c) for c in range(97, 123)]
    words = ["!", *letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    special = {"bos_token": words[-2], "eos_token": words[-1], "unk_token": words[-1], "pad_token": "!"}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 7, "do_lower_case": True, **special}
    (base / "tokenizer").mkdir()
    for name, document in (
        ("vocab", {word: i for i, word in enumerate(words)}),
        ("tokenizer_config", config),
        ("special_tokens_map", special),
    ):
        (base / "tokenizer" / f"{name}.json").write_text(json.dumps(document))
    (base / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    torch.manual_seed(6)
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words), hidden_size=width, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=7, bos_token_id=53, eos_token_id=54,
        )
    ).save_pretrained(base / "text_encoder")  # fmt: skip
    return base


_GREP = {
    "vae": ("conv1", "conv2", "conv_in", "conv_shortcut", "conv", "conv_out",
            "to_k", "to_q", "to_v", "to_out.0"),
    "unet": (
        "to_k", "to_q", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_in", "conv_shortcut", "conv_out",
        "proj_out", "proj_in", "ff.net.2", "ff.net.0.proj",
    ),
}  # fmt: skip


def adapted(network: nn.Module, part: str) -> dict[str, list[str]]:
    """Return adapter -> layers, by the rules of OSEDiff's published code."""
    adapters = ("encoder",) if part == "vae" else ("encoder", "decoder", "others")
    lists: dict[str, list[str]] = {name: [] for name in adapters}
    for name, layer in network.named_modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        hit = any(pattern in name for pattern in _GREP[part])
        if part == "vae":
            if (hit and "encoder" in name) or ("quant_conv" in name and "post_quant_conv" not in name):
                lists["encoder"].append(name)
        elif hit and ("down_blocks" in name or "conv_in" in name):
            lists["encoder"].append(name)
        elif hit and ("up_blocks" in name or "conv_out" in name):
            lists["decoder"].append(name)
        elif hit:
            lists["others"].append(name)
    return lists


def _lora(layer: nn.Module, rank: int) -> tuple[Tensor, Tensor]:
    weight = layer.get_parameter("weight")
    a = torch.randn(rank, *weight.shape[1:]) * 0.05
    b = torch.randn(weight.shape[0], rank, *([1] * (weight.ndim - 2))) * 0.05
    return a, b


def osediff_document(base: Path) -> dict[str, Any]:
    """Make what ``osediff.pkl`` holds, for a base folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import AutoencoderKL, UNet2DConditionModel
    torch.manual_seed(2)
    document: dict[str, Any] = {"rank_unet": RANK, "rank_vae": RANK}
    for part, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        network = kind.from_pretrained(base, subfolder=part)
        state = {}
        for adapter, names in adapted(network, part).items():
            document[f"{part}_lora_{adapter}_modules"] = names
            for name in names:
                a, b = _lora(network.get_submodule(name), RANK)
                state[f"{name}.lora_A.default_{adapter}.weight"] = a
                state[f"{name}.lora_B.default_{adapter}.weight"] = b
        if part == "unet":
            for kind_, value in network.conv_in.state_dict().items():
                state[f"conv_in.base_layer.{kind_}"] = value + 0.01
        document[f"state_dict_{part}"] = state
    return document


def pisasr_document(base: Path) -> dict[str, Any]:
    """Make what ``pisa_sr.pkl`` holds, for a base folder."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(4)
    network = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    state: dict[str, Tensor] = {}
    document: dict[str, Any] = {"lora_rank_unet_pix": RANK, "lora_rank_unet_sem": 2, "state_dict_unet": state}
    for kind in ("pix", "sem"):
        for adapter, names in adapted(network, "unet").items():
            document[f"unet_lora_{adapter}_modules_{kind}"] = names
            for name in names:
                a, b = _lora(network.get_submodule(name), document[f"lora_rank_unet_{kind}"])
                state[f"{name}.lora_A.default_{adapter}_{kind}.weight"] = a
                state[f"{name}.lora_B.default_{adapter}_{kind}.weight"] = b
    return document


def omgsr_folder(base: Path, folder: Path) -> Path:
    """Write the two adapters of OMGSR-S as PEFT does, for a base folder."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from safetensors.torch import save_file

    torch.manual_seed(5)
    names = [
        "conv1",
        "conv2",
        "conv_in",
        "conv_shortcut",
        "conv",
        "conv_out",
        "to_k",
        "to_q",
        "to_v",
        "to_out.0",
    ]
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    encoder = AutoencoderKL.from_pretrained(base, subfolder="vae").encoder
    for part, network in (("unet_lora_adapter", unet), ("vae_encoder_lora_adapter", encoder)):
        state = {}
        for name, layer in network.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and f".{name}".endswith(
                tuple(f".{n}" for n in names)
            ):
                a, b = _lora(layer, RANK)
                state[f"base_model.model.{name}.lora_A.weight"] = a
                state[f"base_model.model.{name}.lora_B.weight"] = b
        (folder / part).mkdir(parents=True)
        save_file(state, folder / part / "adapter_model.safetensors")
        facts = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": names, "bias": "none"}
        (folder / part / "adapter_config.json").write_text(json.dumps(facts))
    return folder


def osediff_files(folder: Path) -> tuple[Path, Path, Path]:
    """Write base folder, ``osediff.pkl`` and prompt embedding; return their paths."""
    base = base_folder(folder / "sd21-base")
    torch.save(osediff_document(base), folder / "osediff.pkl")
    return base, folder / "osediff.pkl", prompt_file(folder / "prompt.safetensors")


# ---------------------------------------------------------------------------------------------------------
# AdcSR


def adcsr_states(
    *, widths: tuple[int, int] = (24, 32), features: int = 32
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Make the tensors of ``net_params_200.pkl`` and of ``halfDecoder.ckpt``, tiny."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers.models.autoencoders.vae import Decoder
    torch.manual_seed(3)
    state: dict[str, Tensor] = {}

    def conv(name: str, into: int, out: int, size: int = 3) -> None:
        bound = (into * size * size) ** -0.5
        state[f"{name}.weight"] = (torch.rand(out, into, size, size) * 2 - 1) * bound
        state[f"{name}.bias"] = (torch.rand(out) * 2 - 1) * bound

    def linear(name: str, into: int, out: int, *, bias: bool = True) -> None:
        state[f"{name}.weight"] = (torch.rand(out, into) * 2 - 1) * into**-0.5
        if bias:
            state[f"{name}.bias"] = (torch.rand(out) * 2 - 1) * into**-0.5

    def norm(name: str, channels: int) -> None:
        state[f"{name}.weight"] = torch.rand(channels) + 0.5
        state[f"{name}.bias"] = torch.randn(channels) * 0.1

    def resnet(name: str, into: int, out: int) -> None:
        norm(f"{name}.norm1", into)
        conv(f"{name}.conv1", into, out)
        norm(f"{name}.norm2", out)
        conv(f"{name}.conv2", out, out)
        if into != out:
            conv(f"{name}.conv_shortcut", into, out, 1)

    def attention(name: str, c: int) -> None:
        norm(f"{name}.norm", c)
        linear(f"{name}.proj_in", c, c)
        block = f"{name}.transformer_blocks.0"
        norm(f"{block}.norm1", c)
        for k in "qkv":
            linear(f"{block}.attn1.to_{k}", c, c, bias=False)
        linear(f"{block}.attn1.to_out.0", c, c)
        norm(f"{block}.norm3", c)
        linear(f"{block}.ff.net.0.proj", c, 8 * c)
        linear(f"{block}.ff.net.2", 4 * c, c)
        linear(f"{name}.proj_out", c, c)

    first, last = widths
    conv("conv_in", 12, first)
    resnet("down_blocks.0.resnets.0", first, first)
    attention("down_blocks.0.attentions.0", first)
    resnet("down_blocks.1.resnets.0", first, last)
    conv("down_blocks.0.downsamplers.0.conv", first, first)
    resnet("mid_block.resnets.0", last, last)
    attention("mid_block.attentions.0", last)
    resnet("mid_block.resnets.1", last, last)
    for i, skip in enumerate((last, first)):
        resnet(f"up_blocks.0.resnets.{i}", last + skip, last)
    conv("up_blocks.0.upsamplers.0.conv", last, last)
    for i, into in enumerate((last + first, 2 * first)):
        resnet(f"up_blocks.1.resnets.{i}", into, first)
        attention(f"up_blocks.1.attentions.{i}", first)
    norm("conv_norm_out", first)
    conv("conv_out", first, features)
    decoder = Decoder(
        in_channels=4,
        out_channels=3,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 32, features),
        layers_per_block=1,
        norm_num_groups=32,
    ).state_dict()
    order = ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"]
    order += ["conv_norm_out", "conv_act", "conv_out"]
    net = {f"module.body.1.{key}": value for key, value in state.items()}
    for key, value in state.items():
        for k, place in enumerate(order):
            if key.startswith(place + "."):
                net[f"module.body.1.body.{k}.{key.removeprefix(place + '.')}"] = value
    for key, value in decoder.items():
        if key.startswith("mid_block."):
            net[f"module.body.2.{key.removeprefix('mid_block.')}"] = value + 0.01
    half = {f"decoder.{key}": value for key, value in decoder.items()}
    return net, {**half, "loss.logvar": torch.zeros(1)}


def adcsr_files(folder: Path) -> tuple[Path, Path, Path]:
    """Write ``net_params_200.pkl``, ``halfDecoder.ckpt`` and a base folder that tells the attention heads."""
    folder.mkdir(parents=True, exist_ok=True)
    net, half = adcsr_states()
    torch.save(net, folder / "net_params_200.pkl")
    torch.save({"epoch": 3, "state_dict": half}, folder / "halfDecoder.ckpt")
    (folder / "base" / "unet").mkdir(parents=True)
    (folder / "base" / "unet" / "config.json").write_text(
        json.dumps({"attention_head_dim": [2, 4], "block_out_channels": [32, 64]})
    )
    return folder / "net_params_200.pkl", folder / "halfDecoder.ckpt", folder / "base"
