"""PatchGAN (Isola et al. 2017): hinge (Lim & Ye 2017) with spectral norm (Miyato et al. 2018), or
relativistic (Jolicoeur-Martineau 2018) with zero-centred gradient penalties (R1: Mescheder et al. 2018)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

ADVERSARIES = ("hinge", "relativistic")


class PatchDiscriminator(nn.Module):
    """Judge overlapping patches: images (N, 3, H, W) -> logits (N, 1, h, w), larger = more real.

    Parameters
    ----------
    width
        Channels of the first layer; doubles with each layer, at most eightfold.
    layers
        Strided layers; 3 sees patches of 70 px.
    spectral
        Normalise every layer's weight by its largest singular value; off where a gradient penalty holds the
        discriminator instead.

    Notes
    -----
    No batch normalisation: a picture's verdict does not depend on its batch.
    """

    def __init__(self, width: int = 64, layers: int = 3, *, spectral: bool = True) -> None:
        super().__init__()
        if width < 1 or layers < 1:
            raise ValueError(f"PatchDiscriminator: width and layers must be >= 1; got {width}, {layers}.")
        sizes = [3, *(width * min(2**i, 8) for i in range(layers + 1)), 1]
        convolutions = [
            nn.Conv2d(sizes[i], sizes[i + 1], 4, stride=2 if i < layers else 1, padding=1)
            for i in range(layers + 2)
        ]
        self.convolutions = nn.ModuleList(map(spectral_norm, convolutions) if spectral else convolutions)

    @contextmanager
    def _normalised(self, device_type: str) -> Iterator[None]:
        """Hold one float32 evaluation of the spectral norms for a whole forward pass, also under autocast."""
        with parametrize.cached():
            with torch.autocast(device_type, enabled=False):
                for convolution in self.convolutions:
                    _ = convolution.weight
            yield

    def forward(self, x: Tensor) -> Tensor:
        with self._normalised(x.device.type):
            for convolution in self.convolutions[:-1]:
                x = functional.leaky_relu(convolution(x), 0.2)
            logits: Tensor = self.convolutions[-1](x)
        return logits


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Return ``(mean relu(1 - real) + mean relu(1 + fake)) / 2`` in float32."""
    return 0.5 * (functional.relu(1 - real.float()).mean() + functional.relu(1 + fake.float()).mean())


def hinge_generator(fake: Tensor) -> Tensor:
    """Return ``-mean(fake)`` in float32."""
    return -fake.float().mean()


def relativistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Return ``mean softplus(fake - real)`` in float32: each patch's truth should look more real than its
    picture. Both players' equilibrium is log 2."""
    return functional.softplus(fake.float() - real.float()).mean()


def relativistic_generator(real: Tensor, fake: Tensor) -> Tensor:
    """Return ``mean softplus(real - fake)`` in float32."""
    return functional.softplus(real.float() - fake.float()).mean()


def gradient_penalty(logits: Tensor, pictures: Tensor) -> Tensor:
    """Return ``||d logits / d pictures||^2`` per logit in float32, averaged over the pictures: R1 of real
    pictures, R2 of made ones. ``pictures`` must require gradients; the result can be differentiated."""
    (grad,) = torch.autograd.grad(logits.float().sum(), pictures, create_graph=True)
    return grad.float().square().sum() / logits.numel()


def adaptive_weight(
    reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor, *, largest: float = 1e4
) -> Tensor:
    """Return the factor that gives both losses equal gradient norms at ``last_layer``, at most ``largest``.

    ``||d reconstruction / d last_layer|| / (||d adversarial / d last_layer|| + 1e-4)``, detached: Esser et
    al. 2021 (VQGAN), eq. 7. Both losses must depend on ``last_layer``; their graphs are kept.
    """
    rec = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)[0]
    gan = torch.autograd.grad(adversarial, last_layer, retain_graph=True)[0]
    return gradient_ratio(rec, gan, largest=largest)


def gradient_ratio(rec: Tensor, gan: Tensor, *, largest: float = 1e4) -> Tensor:
    """Return ``||rec|| / (||gan|| + 1e-4)``, at most ``largest``, detached, of two gradients of any shape."""
    ratio: Tensor = rec.float().norm() / (gan.float().norm() + 1e-4)
    return ratio.clamp(0.0, largest).detach()
