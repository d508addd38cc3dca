"""The dial: weights between two models of the same networks."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_graphs

from yonos_trt.errors import ConfigError, EngineIntegrityError
from yonos_trt.restore import dial_file, turned

onnx = pytest.importorskip("onnx")
from onnx import numpy_helper  # noqa: E402
from yonos_export.dial import make_dial  # noqa: E402


def weights(raw: bytes) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load_from_string(raw).graph.initializer}


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
    ],
    ids=["empty", "text", "too long", "before", "left over", "shape"],
)
def test_a_dial_file_that_does_not_fit_is_refused(pair: tuple[bytes, bytes, bytes], dial: bytes) -> None:
    with pytest.raises(EngineIntegrityError, match="its dial"):
        turned(pair[0], dial, 0.5, name="its dial")


def test_a_dial_file_never_runs_a_pickle(pair: tuple[bytes, bytes, bytes]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, places=np.array([{"a": 1}], dtype=object), change=np.zeros(1, np.float16))
    with pytest.raises(EngineIntegrityError, match="not a dial file"):
        turned(pair[0], buffer.getvalue(), 0.5, name="its dial")
