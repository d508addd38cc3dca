"""Perceptual losses against an independent NumPy/SciPy computation, and the adversarial pieces."""

# ruff: noqa: E402  (imports follow the skip for installations without torch)

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from safetensors.torch import save_file
from yonos_train.adversarial import (
    PatchDiscriminator,
    adaptive_weight,
    gradient_penalty,
    hinge_discriminator,
    hinge_generator,
    relativistic_discriminator,
    relativistic_generator,
)
from yonos_train.losses import Dists, Lpips, WeightsError, gradient_l1

ALEX = ((64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3))
VGG_OUT = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
LINS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}


def shapes(net: str) -> list[tuple[int, int, int]]:
    if net == "alex":
        return list(ALEX)
    return [(out, (3, *VGG_OUT)[i], 3) for i, out in enumerate(VGG_OUT)]


def random_lpips(net: str, g: Any) -> dict[str, Any]:
    """Return the tensors of a random LPIPS network of the true shapes."""
    tensors = {}
    for i, (out, into, size) in enumerate(shapes(net)):
        scale = (2 / (into * size * size)) ** 0.5
        tensors[f"conv{i}.weight"] = torch.randn(out, into, size, size, generator=g) * scale
        tensors[f"conv{i}.bias"] = torch.randn(out, generator=g) * 0.05
    for k, channels in enumerate(LINS[net]):
        tensors[f"lin{k}.weight"] = torch.rand(1, channels, 1, 1, generator=g) / channels
    return tensors


@pytest.fixture(scope="module")
def weight_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random networks of the true shapes: every formula is exercised without downloads."""
    folder, g = tmp_path_factory.mktemp("weights"), torch.Generator().manual_seed(0)
    files = {}
    for net in ("alex", "vgg"):
        files[net] = folder / f"{net}.safetensors"
        save_file(random_lpips(net, g), files[net])
    files["dists"] = folder / "dists.pt"
    torch.save({"alpha": torch.rand(1, 1475, 1, 1), "beta": torch.rand(1, 1475, 1, 1)}, files["dists"])
    return files


def pictures(n: int = 2, h: int = 40, w: int = 36, seed: int = 1) -> tuple[Any, Any]:
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, h, w, generator=g) * 2 - 1
    return x, (x + 0.4 * torch.randn(x.shape, generator=g)).clamp(-1, 1)


def convolve(x: Any, weight: Any, bias: Any, stride: int, pad: int) -> Any:
    """One picture (C, H, W) in float64 through patches and a matrix product."""
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    size = weight.shape[-1]
    patches = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("oiyx,ihwyx->ohw", weight, patches, optimize=True) + bias[:, None, None]


def max_pool(x: Any, size: int) -> Any:
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))[:, ::2, ::2]
    return windows.max(axis=(3, 4))


def l2_pool(x: Any) -> Any:
    tap = np.array([0.25, 0.5, 0.25])
    padded = np.pad(x**2, ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::2, ::2]
    return np.sqrt(np.einsum("chwyx,y,x->chw", windows, tap, tap) + 1e-12)


def reference_maps(net: str, path: Path, x: Any, pool: Any = None) -> list[Any]:
    from safetensors.numpy import load_file

    weights = {key: value.astype(np.float64) for key, value in load_file(path).items()}
    if net == "alex":
        pools, taps, geometry = {1: 3, 2: 3}, range(5), ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))
    else:
        pools, taps, geometry = dict.fromkeys((2, 4, 7, 10), 2), (1, 3, 6, 9, 12), ((1, 1),) * 13
    maps = []
    for i in range(len(shapes(net))):
        if i in pools:
            x = pool(x) if pool else max_pool(x, pools[i])
        x = convolve(x, weights[f"conv{i}.weight"], weights[f"conv{i}.bias"], *geometry[i]).clip(0)
        if i in taps:
            maps.append(x)
    return maps


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_equals_the_papers_formula(net: str, weight_files: dict[str, Path]) -> None:
    from safetensors.numpy import load_file

    x, y = pictures()
    measured = Lpips(net, weight_files[net])(x, y)
    shift = np.array([-0.030, -0.088, -0.188])[:, None, None]
    scale = np.array([0.458, 0.448, 0.450])[:, None, None]
    lins = load_file(weight_files[net])
    for n in range(2):
        expected = 0.0
        sides = [
            reference_maps(net, weight_files[net], (p[n].double().numpy() - shift) / scale) for p in (x, y)
        ]
        for k, (a, b) in enumerate(zip(*sides, strict=True)):
            unit = [f / (np.sqrt((f**2).sum(0, keepdims=True)) + 1e-10) for f in (a, b)]
            weighted = lins[f"lin{k}.weight"][0].astype(np.float64) * (unit[0] - unit[1]) ** 2
            expected += weighted.sum(0).mean()
        assert measured[n].item() == pytest.approx(expected, rel=2e-4)


def test_dists_equals_the_papers_formula(weight_files: dict[str, Path]) -> None:
    x, y = pictures()
    measured = Dists(weight_files["vgg"], weight_files["dists"])(x, y)
    mean, std = (np.array(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    learnt = {k: v.double().flatten().numpy() for k, v in torch.load(weight_files["dists"]).items()}
    total = learnt["alpha"].sum() + learnt["beta"].sum()
    for n in range(2):
        sides = []
        for p in (x, y):
            image = (p[n].double().numpy() + 1) / 2
            sides.append([image, *reference_maps("vgg", weight_files["vgg"], (image - mean) / std, l2_pool)])
        similarity, at = 0.0, 0
        for a, b in zip(*sides, strict=True):
            for c in range(len(a)):
                cov = np.cov(a[c].ravel(), b[c].ravel(), bias=True)
                light = (2 * a[c].mean() * b[c].mean() + 1e-6) / (a[c].mean() ** 2 + b[c].mean() ** 2 + 1e-6)
                texture = (2 * cov[0, 1] + 1e-6) / (cov[0, 0] + cov[1, 1] + 1e-6)
                similarity += learnt["alpha"][at] * light + learnt["beta"][at] * texture
                at += 1
        assert measured[n].item() == pytest.approx(1 - similarity / total, rel=1e-3)


@pytest.mark.data
@pytest.mark.parametrize(("net", "file"), [("alex", "lpips_alex"), ("vgg", "lpips_vgg_fp16")])
def test_lpips_reproduces_the_lpips_packages_values(net: str, file: str, data_dir: Path) -> None:
    """Values of the reference package (lpips 0.1.4, same weights) for this picture pair, computed once."""
    g = torch.Generator().manual_seed(7)
    coarse = torch.rand(1, 3, 8, 8, generator=g)
    x = torch.nn.functional.interpolate(coarse, 64, mode="bilinear") * 2 - 1
    y = (x + 0.2 * torch.randn(x.shape, generator=g)).clamp(-1, 1)
    path = data_dir / "weights" / f"{file}.safetensors"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    expected = {"alex": 0.3346685, "vgg": 0.3346477}[net]
    assert Lpips(net, path)(x, y).item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_gradient_is_finite_also_where_features_vanish(net: str, weight_files: dict[str, Path]) -> None:
    network = Lpips(net, weight_files[net])
    for i in range(len(shapes(net))):
        network.trunk.get_buffer(f"bias{i}").fill_(-5.0)  # almost every feature is 0
    x, y = pictures(1)
    x.requires_grad_()
    network(x, y).sum().backward()
    assert bool(x.grad.isfinite().all())


def test_lpips_is_zero_for_equal_pictures_and_frozen(weight_files: dict[str, Path]) -> None:
    network = Lpips("alex", weight_files["alex"])
    x, y = pictures()
    assert network(x, x).tolist() == [0.0, 0.0]
    assert list(network.parameters()) == []
    assert network.state_dict() == {}
    with torch.autocast("cpu", torch.bfloat16):
        low = network(x, y)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, network(x, y), rtol=0.05, atol=1e-4)


def test_missing_and_foreign_weights_are_refused(weight_files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not a file"):
        Lpips("vgg", tmp_path / "none.safetensors")
    with pytest.raises(WeightsError, match="conv5"):
        Lpips("vgg", weight_files["alex"])
    with pytest.raises(WeightsError, match=r"conv0\.weight"):
        Lpips("alex", weight_files["vgg"])
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x08")
    with pytest.raises(WeightsError, match="readable"):
        Lpips("alex", broken)
    with pytest.raises(WeightsError, match="alpha and beta"):
        Dists(weight_files["vgg"], tmp_path / "none.pt")
    with pytest.raises(ValueError, match="at least 31 px"):
        Lpips("alex", weight_files["alex"])(*pictures(1, 16, 16))
    with pytest.raises(ValueError, match="one shape"):
        Lpips("alex", weight_files["alex"])(pictures()[0], pictures(1)[0])


def test_gradient_l1_ignores_brightness_and_sees_edges() -> None:
    x, _ = pictures()
    assert gradient_l1(x, x + 0.3).item() == pytest.approx(0, abs=1e-6)
    ramp = torch.arange(5.0).expand(1, 3, 4, 5)
    assert gradient_l1(ramp, torch.zeros_like(ramp)).item() == 1.0


def test_hinge_losses_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 0.5])
    assert hinge_discriminator(real, fake).item() == pytest.approx(0.5 * (0.5 + 0.75))
    assert hinge_generator(fake).item() == pytest.approx(0.75)


def test_relativistic_losses_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 0.0])
    of_judge = 0.5 * (np.log1p(np.exp(-3.0)) + np.log(2))
    assert relativistic_discriminator(real, fake).item() == pytest.approx(of_judge)
    assert relativistic_generator(real, fake).item() == pytest.approx(of_judge + 0.5 * 3)
    raised = relativistic_discriminator(real + 5, fake + 5)  # only the difference of a pair counts
    assert raised.item() == pytest.approx(of_judge)


def test_gradient_penalty_by_hand_and_its_own_gradient() -> None:
    """Logits ``w x^2 / 2``, one a pixel: the gradient is ``w x``, the penalty ``w^2 mean x^2``."""
    x, w = (
        torch.tensor([[[[1.0, 2.0]]], [[[0.0, 3.0]]]], requires_grad=True),
        torch.nn.Parameter(torch.tensor(0.5)),
    )
    penalty = gradient_penalty(w * x.square() / 2, x)
    assert penalty.item() == pytest.approx(0.25 * 14 / 4)
    penalty.backward()
    assert w.grad is not None
    assert w.grad.item() == pytest.approx(2 * 0.5 * 14 / 4)


def test_penalised_discriminator_learns_without_spectral_norm_and_stays_smooth() -> None:
    real, fake = torch.zeros(4, 3, 32, 32), pictures(4, 32, 32)[0]
    slopes = []
    for factor in (0.0, 10.0):
        torch.manual_seed(0)
        net = PatchDiscriminator(width=8, layers=2, spectral=False)
        optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(30):
            x = fake.clone().requires_grad_(True)
            of_fake = net(x)
            penalty = gradient_penalty(of_fake, x)
            loss = relativistic_discriminator(net(real), of_fake) + factor / 2 * penalty
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        assert net(real).mean() > net(fake).mean() + 0.1
        slopes.append(penalty.item())
    assert slopes[1] < 0.5 * slopes[0], slopes


def test_discriminator_is_lipschitz_normalised_and_independent_of_its_batch() -> None:
    torch.manual_seed(0)
    net = PatchDiscriminator(width=8, layers=2)
    x, _ = pictures(4, 32, 32)
    for _ in range(30):
        net(x)  # power iterations
    for convolution in net.convolutions:
        top = torch.linalg.matrix_norm(convolution.weight.detach().flatten(1), 2).item()
        assert top == pytest.approx(1.0, abs=0.05)
    net.eval()
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]), rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        low = net(x)
    torch.testing.assert_close(low.float(), net(x), rtol=0.1, atol=0.02)


def test_discriminator_learns_to_tell_noise_from_flat() -> None:
    torch.manual_seed(0)
    net = PatchDiscriminator(width=8, layers=2)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    real, fake = torch.zeros(4, 3, 32, 32), pictures(4, 32, 32)[0]
    for _ in range(30):
        loss = hinge_discriminator(net(real), net(fake))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert net(real).mean() > net(fake).mean() + 0.1


def test_adaptive_weight_equalises_gradient_norms() -> None:
    layer = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    out = layer * torch.tensor([3.0, 4.0])
    weight = adaptive_weight(10 * out.sum(), 0.5 * out.sum(), layer)
    assert weight.item() == pytest.approx(20.0, rel=1e-3)
    assert not weight.requires_grad
    assert adaptive_weight(out.sum(), 0 * out.sum(), layer).item() == 1e4  # bounded
