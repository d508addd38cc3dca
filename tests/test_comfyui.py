"""The node pack with ComfyUI's kinds of tensors; `integrations/comfyui/walk.py` runs it in ComfyUI itself."""

from __future__ import annotations

import importlib.util
import json
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers import picture

from yonos_trt import SR
from yonos_trt.errors import ConfigError, YonosError

torch = pytest.importorskip("torch", reason="needs torch: pip install '.[train]'")

PACK = Path(__file__).resolve().parents[1] / "integrations" / "comfyui"


@pytest.fixture(scope="module")
def nodes() -> Any:
    """Load the folder as ComfyUI does: by its path, under a name that is no identifier."""
    spec = importlib.util.spec_from_file_location(
        "custom_nodes.yonos-trt", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        for name in [n for n in sys.modules if n.startswith(spec.name)]:
            del sys.modules[name]


def images(count: int, channels: int = 3) -> Any:
    frames = [picture(9, 12, channels=channels, seed=n, dtype=np.float32) for n in range(count)]
    return torch.from_numpy(np.stack(frames))


def test_a_batch_is_upscaled_frame_by_frame_and_a_mask_grows_with_it(nodes: Any, engine_dir: Path) -> None:
    (model,) = nodes.NODE_CLASS_MAPPINGS["YonosLoad"]().load("lite-x4", engine_dir=str(engine_dir))
    batch, mask = images(3), torch.zeros((1, 64, 64))
    mask[:, :, 32:] = 1
    out, grown = nodes.NODE_CLASS_MAPPINGS["YonosUpscale"]().upscale(model, batch, mask=mask)
    assert (out.shape, out.dtype) == ((3, 36, 48, 3), torch.float32)
    for frame, made in zip(batch, out, strict=True):
        assert np.array_equal(made.numpy(), SR(engine_dir).upscale(frame.numpy()))
    assert grown.shape == (3, 36, 48)
    assert grown[:, :, :20].max() < 1e-4
    assert grown[:, :, 28:].min() > 1 - 1e-4


@pytest.mark.parametrize("channels", [3, 4])
def test_other_factors_devices_and_values_beyond_the_range(
    nodes: Any, engine_dir: Path, channels: int
) -> None:
    model = SR(engine_dir)
    wild = images(1, channels).double() * 1.4 - 0.2
    wild.requires_grad_(True)
    out, none = nodes.NODE_CLASS_MAPPINGS["YonosUpscale"]().upscale(model, wild, factor=2.5)
    assert out.shape == (1, 23, 30, channels)
    assert float(out.min()) >= 0 and float(out.max()) <= 1  # noqa: PT018
    assert none.shape == (1, 23, 30)
    assert not none.any()
    with pytest.raises(YonosError, match="enlarges by 4"):
        nodes.NODE_CLASS_MAPPINGS["YonosUpscale"]().upscale(model, images(1), factor=5)


def test_progress_is_told_and_cancel_ends_the_work(
    nodes: Any, engine_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []

    class Bar:
        def __init__(self, total: int) -> None:
            self.total = total

        def update_absolute(self, value: int, total: int) -> None:
            told.append((value, total))

    class InterruptedByUserError(Exception):
        pass

    def throw() -> None:
        if len(told) == 2:
            raise InterruptedByUserError

    comfy, utils, management = (ModuleType(n) for n in ("comfy", "comfy.utils", "comfy.model_management"))
    utils.ProgressBar = Bar  # type: ignore[attr-defined]
    management.throw_exception_if_processing_interrupted = throw  # type: ignore[attr-defined]
    for module in (comfy, utils, management):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(InterruptedByUserError):
        nodes.NODE_CLASS_MAPPINGS["YonosUpscale"]().upscale(SR(engine_dir), images(3))
    assert told == [(1000, 3000), (2000, 3000)]


def test_bad_widgets_are_our_errors(nodes: Any, tmp_path: Path, engine_dir: Path) -> None:
    load = nodes.NODE_CLASS_MAPPINGS["YonosLoad"]().load
    with pytest.raises(YonosError):
        load("lite-x4", engine_dir=str(tmp_path))
    with pytest.raises(ConfigError, match="restore"):
        load("lite-x4", engine_dir=str(engine_dir), restore=0.5)


def test_the_pack_describes_itself_as_the_registry_and_the_graph_want(nodes: Any) -> None:
    project = tomllib.loads((PACK / "pyproject.toml").read_text())
    assert {"name", "version", "description", "license", "dependencies"} <= set(project["project"])
    assert {"PublisherId", "DisplayName", "Icon"} <= set(project["tool"]["comfy"])
    assert set(nodes.NODE_CLASS_MAPPINGS) == set(nodes.NODE_DISPLAY_NAME_MAPPINGS)
    for node in json.loads((PACK / "workflow.json").read_text()).values():
        if (kind := nodes.NODE_CLASS_MAPPINGS.get(node["class_type"])) is not None:
            described = kind.INPUT_TYPES()
            assert set(described["required"]) <= set(node["inputs"])
            assert set(node["inputs"]) <= set(described["required"]) | set(described["optional"])
            assert hasattr(kind, kind.FUNCTION)
