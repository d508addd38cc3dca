"""``yonos-train weights``: perceptual networks from what their authors publish."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from click.testing import CliRunner, Result  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from test_train_losses import pictures, random_lpips  # noqa: E402
from yonos_train.cli import main  # noqa: E402
from yonos_train.losses import Dists, Lpips  # noqa: E402

# torchvision: nn.Sequential "features", convolution, ReLU, pooling in their order.
ALEXNET = (0, 3, 6, 8, 10)
VGG16 = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files as torchvision and the two packages have them, random, and the networks themselves."""
    root = tmp_path_factory.mktemp("published")
    (root / "v0.1").mkdir()
    g = torch.Generator().manual_seed(0)
    for net, layers in (("alex", ALEXNET), ("vgg", VGG16)):
        tensors = random_lpips(net, g)
        save_file(tensors, root / f"{net}.safetensors")
        trunk = {
            f"features.{layer}.{part}": tensors[f"conv{i}.{part}"]
            for i, layer in enumerate(layers)
            for part in ("weight", "bias")
        }
        trunk["classifier.6.bias"] = torch.zeros(1000)
        torch.save(trunk, root / f"{net}.pth", _use_new_zipfile_serialization=net == "vgg")
        linear = {f"lin{k}.model.1.weight": tensors[f"lin{k}.weight"] for k in range(5)}
        torch.save(linear, root / "v0.1" / f"{net}.pth")
    moments = {name: torch.rand(1, 1475, 1, 1, generator=g) for name in ("alpha", "beta")}
    torch.save(moments, root / "weights.pt")
    return root


def weights(*args: Any) -> Result:
    return CliRunner().invoke(main, ["weights", *map(str, args)])


def test_the_files_give_the_networks_of_their_tensors(published: Path, tmp_path: Path) -> None:
    result = weights(
        "--alexnet", published / "alex.pth", "--vgg16", published / "vgg.pth",
        "--lpips", published / "v0.1", "--dists", published / "weights.pt", "-o", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    names = ["dists_alpha_beta.pt", "lpips_alex.safetensors", "lpips_vgg.safetensors"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert sorted(Path(line).name for line in result.output.split()) == names
    x, y = pictures()
    for net in ("alex", "vgg"):
        made = Lpips(net, tmp_path / "out" / f"lpips_{net}.safetensors")
        assert torch.equal(made(x, y), Lpips(net, published / f"{net}.safetensors")(x, y))
    made = Dists(tmp_path / "out" / "lpips_vgg.safetensors", tmp_path / "out" / "dists_alpha_beta.pt")
    assert torch.equal(made(x, y), Dists(published / "vgg.safetensors", published / "weights.pt")(x, y))


def test_each_file_is_made_from_its_own_parts_alone(published: Path, tmp_path: Path) -> None:
    parts = ("--alexnet", published / "alex.pth", "--lpips", published / "v0.1")
    assert weights(*parts, "-o", tmp_path / "a").exit_code == 0
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["lpips_alex.safetensors"]
    assert weights("--dists", published / "weights.pt", "-o", tmp_path / "d").exit_code == 0
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["dists_alpha_beta.pt"]


def test_parts_that_do_not_make_a_file_are_named(published: Path, tmp_path: Path) -> None:
    out = ("-o", tmp_path / "out")
    for args, code, text in (
        ((), 2, "nothing to make"),
        (("--alexnet", published / "alex.pth"), 2, "LPIPS needs --lpips and a trunk"),
        (("--lpips", published / "v0.1"), 2, "LPIPS needs --lpips and a trunk"),
        (
            ("--vgg16", published / "alex.pth", "--lpips", published / "v0.1"),
            1,
            "no tensor 'features.2.weight'",
        ),
        (
            ("--alexnet", published / "vgg.pth", "--lpips", published / "v0.1"),
            1,
            "no tensor 'features.3.weight'",
        ),
        (("--alexnet", published / "alex.pth", "--lpips", published), 1, "no tensor 'lin0.model.1.weight'"),
        (("--alexnet", published / "alex.pth", "--lpips", tmp_path), 1, "alex.pth"),
        (("--dists", published / "alex.pth"), 1, "holds no alpha"),
    ):
        result = weights(*args, *out)
        assert (result.exit_code, text in result.output) == (code, True), result.output
        assert not list(tmp_path.glob("out/*"))


def test_layers_of_other_shapes_are_refused(published: Path, tmp_path: Path) -> None:
    trunk = torch.load(published / "alex.pth", weights_only=True)
    torch.save({**trunk, "features.8.weight": trunk["features.10.weight"]}, tmp_path / "odd.pth")
    result = weights("--alexnet", tmp_path / "odd.pth", "--lpips", published / "v0.1", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "odd.pth: features.8.weight has shape (256, 256, 3, 3), expected (256, 384, 3, 3)" in result.output
    assert not list(tmp_path.glob("out/*"))


class _Runs:
    """Pickled, it would make a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_files_that_hold_code_are_refused_and_do_not_run_it(published: Path, tmp_path: Path) -> None:
    torch.save({"alpha": _Runs(tmp_path / "ran")}, tmp_path / "code.pt")
    result = weights("--dists", tmp_path / "code.pt", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "not a file of tensors" in result.output
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ValueError, match="is no file of tensors"):
        Dists(published / "vgg.safetensors", tmp_path / "code.pt")
    assert not (tmp_path / "ran").exists()
