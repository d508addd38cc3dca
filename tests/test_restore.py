"""The dial: weights between two models of the same networks."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny_graphs

from yonos_trt.engine.restore import dial_file, turned
from yonos_trt.errors import ConfigError, EngineIntegrityError

onnx = pytest.importorskip("onnx")
from onnx import numpy_helper  # noqa: E402
from yonos_export.dial import make_dial  # noqa: E402


def weights(raw: bytes) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load_from_string(raw).graph.initializer}


GOOD_DIAL = dial_file(np.array([[0, 4]], np.int64), np.zeros(4, np.float16))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes, bytes]:
    """The step graph of two models, and the dial file between them."""
    folder = tmp_path_factory.mktemp("dial")
    for seed in (1, 2):
        (folder / f"{seed}.onnx").write_bytes(tiny_graphs(seed=seed)[0]["step.onnx"])
    dial = make_dial(folder / "1.onnx", folder / "2.onnx", stage="step")
    return (folder / "1.onnx").read_bytes(), (folder / "2.onnx").read_bytes(), dial


def test_zero_is_the_graph_itself_and_one_the_other_model(pair: tuple[bytes, bytes, bytes]) -> None:
    base, other, dial = pair
    assert turned(base, dial, 0.0, name="dial") is base
    reached, wanted = weights(turned(base, dial, 1.0, name="dial")), weights(other)
    assert any(not np.array_equal(weights(base)[name], wanted[name]) for name in wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(reached[name], value, atol=2e-3)


@pytest.mark.parametrize("restore", [0.25, 0.5, 0.9])
def test_between_the_ends_weights_lie_on_the_line(pair: tuple[bytes, bytes, bytes], restore: float) -> None:
    base, other, dial = pair
    got, zero, one = weights(turned(base, dial, restore, name="dial")), weights(base), weights(other)
    for name in got:
        line = (1 - restore) * zero[name] + restore * one[name]
        np.testing.assert_allclose(got[name], line, atol=2e-3)
        assert got[name].dtype == zero[name].dtype


def test_the_same_models_give_the_same_file(pair: tuple[bytes, bytes, bytes], tmp_path: Path) -> None:
    base, other, dial = pair
    (tmp_path / "a.onnx").write_bytes(base)
    (tmp_path / "b.onnx").write_bytes(other)
    assert make_dial(tmp_path / "a.onnx", tmp_path / "b.onnx", stage="step") == dial


def test_models_of_other_networks_have_no_dial(tmp_path: Path) -> None:
    graphs = tiny_graphs()[0]
    for name in ("encoder.onnx", "step.onnx"):
        (tmp_path / name).write_bytes(graphs[name])
    with pytest.raises(ConfigError, match="not the same networks"):
        make_dial(tmp_path / "encoder.onnx", tmp_path / "step.onnx", stage="step")


@pytest.mark.parametrize("restore", [-0.1, 1.01, float("nan"), float("inf"), True, "1", None])
def test_a_dial_goes_from_zero_to_one(pair: tuple[bytes, bytes, bytes], restore: object) -> None:
    with pytest.raises(ConfigError, match="expected a number from 0"):
        turned(pair[0], pair[2], restore, name="dial")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "dial",
    [
        b"",
        b"nothing",
        dial_file(np.array([[0, 10**9]], np.int64), np.zeros(4, np.float16)),
        dial_file(np.array([[-8, 4]], np.int64), np.zeros(4, np.float16)),
        dial_file(np.array([[0, 2]], np.int64), np.zeros(4, np.float16)),
        dial_file(np.zeros((1, 3), np.int64), np.zeros(4, np.float16)),
        dial_file(np.array([[0, 4]], np.int64), np.zeros(4, np.complex64)),
        dial_file(np.array([[0, 4]], np.int64), np.zeros(4, "S4")),
        GOOD_DIAL.replace(b"\x08\x00", b"\x63\x00"),
        GOOD_DIAL[: GOOD_DIAL.index(b"places.npy") + 40] + b"\xff" * 9 + GOOD_DIAL[79:],
    ],
    ids=["empty", "text", "too long", "before", "left over", "shape", "complex", "bytes", "method", "bits"],
)
def test_a_dial_file_that_does_not_fit_is_refused(pair: tuple[bytes, bytes, bytes], dial: bytes) -> None:
    with pytest.raises(EngineIntegrityError, match="its dial"):
        turned(pair[0], dial, 0.5, name="its dial")


class Sprung:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_dial_file_never_runs_a_pickle(pair: tuple[bytes, bytes, bytes], tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, places=np.array([Sprung(tmp_path / "ran")], object), change=np.zeros(1, np.float16))
    with pytest.raises(EngineIntegrityError, match="not a dial file"):
        turned(pair[0], buffer.getvalue(), 0.5, name="its dial")
    assert not (tmp_path / "ran").exists()


# Through exporter, engine directory and SDK


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Engine directories of two models ("0", "1"), and one with the dial between them."""
    pytest.importorskip("torch")
    import torch
    from export_models import small_bundle, small_checkpoint
    from yonos_export import ExportConfig, export
    from yonos_train.model import save_bundle

    folder = tmp_path_factory.mktemp("models")
    small_checkpoint(folder / "a")
    other = small_bundle(card="# restored\n")
    torch.manual_seed(1)
    with torch.no_grad():
        for module in (other.encoder, other.unet, other.decoder):
            for parameter in module.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    save_bundle(other, folder / "b")
    export(ExportConfig(source=folder / "a", engine_dir=folder / "0", verify=False))
    export(ExportConfig(source=folder / "b", engine_dir=folder / "1", verify=False))
    export(ExportConfig(source=folder / "a", restored=folder / "b", engine_dir=folder / "dial", restore=0.5))
    return {name: folder / name for name in ("a", "b", "0", "1", "dial")}


@pytest.fixture
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)


def upscaled(directory: Path, photo: np.ndarray, **options: object) -> np.ndarray:
    import yonos_trt

    with yonos_trt.SR(directory, color_fix="none", **options) as sr:  # type: ignore[arg-type]
        return np.asarray(sr.upscale(photo))


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_the_ends_of_the_dial_are_the_two_models(
    directories: dict[str, Path], photo: np.ndarray, runtime: str
) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    options = {"runtime": runtime, "precision": "fp32"}
    zero, one = (upscaled(directories[end], photo, **options) for end in "01")
    at = {r: upscaled(directories["dial"], photo, restore=r, **options) for r in (0.0, 0.5, 1.0)}
    np.testing.assert_array_equal(at[0.0], zero)
    off = np.abs(at[1.0].astype(int) - one)  # differences are kept in half precision
    assert off.max() <= 3
    assert off.mean() < 0.05 * np.abs(one.astype(int) - zero).mean()
    between = np.abs(at[0.5].astype(int) - zero).mean()
    assert 0 < between < np.abs(one.astype(int) - zero).mean()
    np.testing.assert_array_equal(upscaled(directories["dial"], photo, **options), at[0.5])  # the default


def test_the_dial_is_described_and_guarded(directories: dict[str, Path], photo: np.ndarray) -> None:
    from click.testing import CliRunner

    import yonos_trt
    from yonos_trt.cli.main import cli
    from yonos_trt.errors import ConfigError as Refused

    info = CliRunner().invoke(cli, ["info", str(directories["dial"])])
    assert info.exit_code == 0, info.output
    assert "--restore 0 (every grain) to 1 (clean, sharp), default 0.5" in info.output
    sr = yonos_trt.SR(directories["dial"], restore=0.2)
    assert sr.restore == 0.2
    assert sr.info()["restore"] == 0.2
    manifest = sr.manifest.model
    assert manifest.training["restored"]["steps"] == 3
    with pytest.raises(Refused, match="has no dial"):
        yonos_trt.SR(directories["0"], restore=0.5)
    with pytest.raises(Refused, match="expected a number from 0"):
        yonos_trt.SR(directories["dial"], restore=1.5)


def test_an_altered_dial_is_not_used(directories: dict[str, Path], photo: np.ndarray, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(directories["dial"], tmp_path / "copy")
    file = tmp_path / "copy" / "step.dial.npz"
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    np.testing.assert_array_equal(
        upscaled(tmp_path / "copy", photo, restore=0.0), upscaled(directories["0"], photo)
    )  # at 0 the dial is not read
    with pytest.raises(EngineIntegrityError, match=r"step\.dial\.npz was altered"):
        upscaled(tmp_path / "copy", photo, restore=0.5)


def test_low_precision_is_made_where_the_dial_stands(
    directories: dict[str, Path], photo: np.ndarray, tmp_path: Path
) -> None:
    from yonos_export import ExportConfig, export

    from yonos_trt.errors import EngineNotFoundError

    export(
        ExportConfig(source=directories["dial"], engine_dir=tmp_path / "half", precision="fp16", restore=0.25)
    )
    half = upscaled(tmp_path / "half", photo, precision="fp16", restore=0.25)
    full = upscaled(directories["dial"], photo, restore=0.25)
    assert np.abs(half.astype(int) - full).max() <= 3
    with pytest.raises(EngineNotFoundError, match=r"made with restore = 0\.25.*--restore 0\.75"):
        upscaled(tmp_path / "half", photo, precision="fp16", restore=0.75)
    np.testing.assert_array_equal(
        upscaled(tmp_path / "half", photo, restore=0.75), upscaled(directories["dial"], photo, restore=0.75)
    )


def test_pictures_and_videos_take_the_dial_from_the_command_line(
    directories: dict[str, Path], photo: np.ndarray, tmp_path: Path
) -> None:
    from click.testing import CliRunner
    from PIL import Image

    from yonos_trt.cli.main import cli

    Image.fromarray(photo).save(tmp_path / "in.png")
    outputs = {}
    for restore in ("0", "1"):
        args = ["upscale", str(tmp_path / "in.png"), "-m", str(directories["dial"]), "-o"]
        out = tmp_path / f"{restore}.png"
        result = CliRunner().invoke(cli, [*args, str(out), "--restore", restore, "--color-fix", "none"])
        assert result.exit_code == 0, result.output
        outputs[restore] = np.asarray(Image.open(out))
    np.testing.assert_array_equal(outputs["0"], upscaled(directories["0"], photo))
    assert not np.array_equal(outputs["0"], outputs["1"])
    for command in ("upscale", "video"):
        result = CliRunner().invoke(cli, [command, "--restore", "2", "-i", "x"])
        assert result.exit_code == 2
        assert "--restore" in result.output
