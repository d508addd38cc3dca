"""``yonos-train weights``: the perceptual networks' files, made from what their authors publish."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from yonos_trt.cli.options import LocalPath

from .evaluate_command import INTERRUPTED

if TYPE_CHECKING:
    from torch import Tensor

    from .losses import Network

# Where torchvision's state dicts keep the convolutions, ``features.<n>.weight`` and ``.bias``.
_LAYERS: Final[Mapping[Network, tuple[int, ...]]] = {
    "alex": (0, 3, 6, 8, 10),
    "vgg": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
}


def _read(path: Path) -> dict[str, Tensor]:
    """Read a file of tensors without running any code that it may hold."""
    import torch

    from .losses import WeightsError

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle raises what it likes on other files
        raise WeightsError(f"{path}: not a file of tensors ({type(error).__name__}: {error})") from error
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise WeightsError(f"{path}: got a {type(found).__name__}, expected tensors by name")
    return found


def lpips_tensors(net: Network, trunk: Path, linear: Path) -> dict[str, Tensor]:
    """Return an LPIPS network's tensors under the names that `Lpips` reads.

    Parameters
    ----------
    trunk
        torchvision's state dict of AlexNet or VGG16, ``features.<n>.weight`` and ``.bias``.
    linear
        The ``lpips`` package's v0.1 file, ``lin<k>.model.1.weight``.

    Raises
    ------
    WeightsError
        A file is no file of tensors, lacks one, or has one of another shape; names the file and the tensor.
    """
    from .losses import WeightsError, lpips_shapes

    names = {
        trunk: {
            f"features.{layer}.{part}": f"conv{i}.{part}"
            for i, layer in enumerate(_LAYERS[net])
            for part in ("weight", "bias")
        },
        linear: {f"lin{k}.model.1.weight": f"lin{k}.weight" for k in range(5)},
    }
    tensors: dict[str, Tensor] = {}
    for path, wanted in names.items():
        found = _read(path)
        if missing := [name for name in wanted if name not in found]:
            raise WeightsError(f"{path}: no tensor {missing[0]!r} in it; expected the {net} network's file")
        for name, own in wanted.items():
            if tuple(found[name].shape) != (shape := lpips_shapes(net)[own]):
                raise WeightsError(f"{path}: {name} has shape {tuple(found[name].shape)}, expected {shape}")
            tensors[own] = found[name].float().clone()
    return tensors


def write_dists(source: Path, target: Path) -> None:
    """Write the learnt ``alpha`` and ``beta`` of DISTS, each (1, 1475, 1, 1)."""
    import torch

    from yonos_trt.atomic import atomic_file

    from .losses import WeightsError

    found = _read(source)
    for name in ("alpha", "beta"):
        if name not in found or tuple(found[name].shape) != (1, 1475, 1, 1):
            raise WeightsError(f"{source}: holds no {name} of shape (1, 1475, 1, 1)")
    with atomic_file(target) as part:
        torch.save({name: found[name].float() for name in ("alpha", "beta")}, part)


_FILE = LocalPath(exists=True, dir_okay=False)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--alexnet", type=_FILE, help="torchvision's AlexNet, alexnet-owt-7be5be79.pth.")
@click.option("--vgg16", type=_FILE, help="torchvision's VGG16, vgg16-397923af.pth.")
@click.option(
    "--lpips",
    type=LocalPath(exists=True, file_okay=False),
    help="The lpips package's weights/v0.1 with alex.pth and vgg.pth.",
)
@click.option("--dists", type=_FILE, help="The dists-pytorch package's weights.pt.")
@click.option("-o", "--output", type=LocalPath(file_okay=False), required=True, help="Folder to write.")
def weights_command(
    alexnet: Path | None, vgg16: Path | None, lpips: Path | None, dists: Path | None, output: Path
) -> None:
    """Make lpips_alex.safetensors, lpips_vgg.safetensors and dists_alpha_beta.pt for --weights.

    Each of the first two needs its trunk and --lpips. Nothing is downloaded; docs/training.md says where the
    files come from, and under which licences.
    """
    trunks: dict[Network, Path] = {}
    if alexnet is not None:
        trunks["alex"] = alexnet
    if vgg16 is not None:
        trunks["vgg"] = vgg16
    if bool(trunks) != (lpips is not None):
        raise click.UsageError("LPIPS needs --lpips and a trunk: --alexnet, --vgg16 or both")
    if not trunks and dists is None:
        raise click.UsageError("nothing to make: give --lpips with --alexnet or --vgg16, or --dists")
    from .folders import save_tensors
    from .losses import WeightsError

    try:
        output.mkdir(parents=True, exist_ok=True)
        for net, trunk in trunks.items():
            assert lpips is not None
            target = output / f"lpips_{net}.safetensors"
            save_tensors(lpips_tensors(net, trunk, lpips / f"{net}.pth"), target)
            click.echo(target)
        if dists is not None:
            write_dists(dists, output / "dists_alpha_beta.pt")
            click.echo(output / "dists_alpha_beta.pt")
    except (WeightsError, OSError) as error:
        click.echo(f"yonos-train weights: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
