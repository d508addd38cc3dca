"""A Stable-Diffusion-shaped U-Net and AutoencoderKL with everything constant folded into their weights.

What depends on time step and prompt alone is computed here, once: the time embedding with its projection in
every residual block, and keys and values of every cross-attention. The latent's scaling factor and the mode
of the posterior become part of the autoencoder's own convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from yonos_trt.errors import ConfigError

# ---------------------------------------------------------------------------------------------------------
# Constants in the U-Net


class Constant(nn.Module):
    """A layer whose input never changes: returns what it returned then, whatever it is given."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value: Tensor
        self.register_buffer("value", value.detach().clone())

    def forward(self, *ignored: Any) -> Tensor:
        return self.value


class ConstantContext:
    """Cross-attention to one prompt that never changes; its keys and values are ``(1, heads, L, D)``.

    In the form that TensorRT fuses into one kernel: scaled-dot-product attention, keys and values with the
    batch of the queries. Broadcast, they stay three products and a softmax with copies between them.
    """

    def __init__(self, key: Tensor, value: Tensor) -> None:
        self.key, self.value = key, value

    def __call__(self, attn: Any, hidden_states: Tensor, *ignored: Any, **also_ignored: Any) -> Tensor:
        batch, length, _ = hidden_states.shape
        head = self.key.shape[-1]
        q = attn.to_q(hidden_states).view(batch, length, attn.heads, head).transpose(1, 2)
        key, value = (one.expand(batch, -1, -1, -1) for one in (self.key, self.value))
        out = nn.functional.scaled_dot_product_attention(q, key, value)
        out = out.transpose(1, 2).reshape(batch, length, attn.heads * head)
        result: Tensor = attn.to_out[0](out)
        return result


class ConstantUNet(nn.Module):
    """``(concat(z_t, z_l), t) -> v`` with the time step and the prompt of construction; `t` is not looked at.

    Parameters
    ----------
    unet
        ``UNet2DConditionModel``; its layers are taken over and changed.
    context
        Prompt embedding ``(1, L, D)``.
    timestep
        As the network saw it in training.
    """

    def __init__(self, unet: Any, context: Tensor, timestep: float) -> None:
        super().__init__()
        unet = unet.eval().float().requires_grad_(False)
        config = unet.config
        for option in (
            "class_embed_type",
            "addition_embed_type",
            "encoder_hid_dim_type",
            "time_cond_proj_dim",
        ):
            if getattr(config, option, None) is not None:
                raise ConfigError(
                    f"unet: {option} = {getattr(config, option)!r} is not supported; expected None"
                )
        self.unet = unet
        self.context: Tensor
        self.register_buffer("context", context.float())
        with torch.no_grad():
            emb = unet.time_embedding(unet.time_proj(torch.tensor([timestep])).float())
            unet.time_embedding = Constant(emb)
            for module in unet.modules():
                if getattr(module, "time_emb_proj", None) is not None:
                    active = emb if module.skip_time_act else module.nonlinearity(emb)
                    module.time_emb_proj = Constant(module.time_emb_proj(active))
                elif getattr(module, "is_cross_attention", False):
                    self._fold_attention(module)

    def _fold_attention(self, attn: Any) -> None:
        """Replace keys and values of the prompt by constants."""
        plain = attn.spatial_norm is None and attn.group_norm is None and attn.norm_q is None
        if not plain or attn.residual_connection or attn.rescale_output_factor != 1 or attn.norm_cross:
            raise ConfigError("unet: only plain cross-attention (Stable Diffusion 1.x, 2.x) can be exported")
        key, value = attn.to_k(self.context), attn.to_v(self.context)
        shape = (1, self.context.shape[1], attn.heads, key.shape[-1] // attn.heads)
        attn.set_processor(
            ConstantContext(key.view(shape).transpose(1, 2), value.view(shape).transpose(1, 2))
        )
        attn.to_k, attn.to_v = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        v: Tensor = self.unet(x, t[0], encoder_hidden_states=self.context, return_dict=False)[0]
        return v


class Weighted(nn.Module):
    """``(x, t) -> sum of weight * unet(x, t)`` of one or more networks."""

    def __init__(self, networks: Sequence[tuple[nn.Module, float]]) -> None:
        super().__init__()
        self.networks = nn.ModuleList([network for network, _ in networks])
        self.weights = [weight for _, weight in networks]

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        parts = [network(x, t) * weight for network, weight in zip(self.networks, self.weights, strict=True)]
        total: Tensor = parts[0]
        for part in parts[1:]:
            total = total + part
        return total


# ---------------------------------------------------------------------------------------------------------
# Autoencoder with the scaling inside


def _scaled_conv(conv: nn.Conv2d, channels: int, gain: float, shift: float) -> nn.Conv2d:
    """Return the convolution's first `channels` outputs as ``(y - shift) * gain``."""
    new = nn.Conv2d(conv.in_channels, channels, conv.kernel_size, conv.stride, conv.padding)  # type: ignore[arg-type]
    with torch.no_grad():
        bias = conv.bias if conv.bias is not None else torch.zeros(conv.out_channels)
        new.weight.copy_(conv.weight[:channels] * gain)
        assert new.bias is not None
        new.bias.copy_((bias[:channels] - shift) * gain)
    return new


class KLEncoder(nn.Module):
    """``image (N, 3, H, W)`` -> ``scaling_factor (mode - shift_factor) (N, C, H/f, W/f)``."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        channels, gain = vae.config.latent_channels, vae.config.scaling_factor
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        self.encoder = vae.encoder
        self.quant_conv: nn.Module = nn.Identity()
        if getattr(vae, "quant_conv", None) is not None:
            self.quant_conv = _scaled_conv(vae.quant_conv, channels, gain, shift)
        else:
            self.encoder.conv_out = _scaled_conv(vae.encoder.conv_out, channels, gain, shift)

    def forward(self, image: Tensor) -> Tensor:
        z: Tensor = self.quant_conv(self.encoder(image))
        return z


class KLDecoder(nn.Module):
    """``z (N, C, h, w)``, scaled -> ``D(z / scaling_factor + shift_factor) (N, 3, f h, f w)``."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        scaling = vae.config.scaling_factor
        self.shift = float(getattr(vae.config, "shift_factor", None) or 0.0)
        self.decoder = vae.decoder
        self.post_quant_conv: nn.Module = nn.Identity()
        first = self.decoder.conv_in
        if getattr(vae, "post_quant_conv", None) is not None:
            self.post_quant_conv = first = vae.post_quant_conv
        with torch.no_grad():
            # The shift stays an addition: behind zero padding it cannot become part of a bias.
            first.weight.div_(scaling)
        self.shift *= scaling

    def forward(self, z_0: Tensor) -> Tensor:
        image: Tensor = self.decoder(self.post_quant_conv(z_0 + self.shift if self.shift else z_0))
        return image
