"""NVTX ranges: what a profiler sees of a picture, with a stand-in for the package ``nvtx``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from fake_tensorrt import write_engines
from simulated_device import SimulatedDriver
from test_trt import by_hand, open_backend, picture, plan_for, reference, upscale

from yonos_trt.tiles.plan import batches
from yonos_trt.trt.ranges import Nvtx, no_ranges

STAGES = ["gather", "encode", "noise", "step", "decode"]


class FakeNvtx(ModuleType):
    """Writes down every range when it opens, indented by how deep it lies."""

    def __init__(self) -> None:
        super().__init__("nvtx")
        self.seen: list[str] = []
        self.depth = 0

    @contextmanager
    def annotate(self, *, message: str, domain: str) -> Iterator[None]:
        assert domain == "yonos-trt"
        self.seen.append("  " * self.depth + message)
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1


@pytest.fixture
def nvtx(monkeypatch: pytest.MonkeyPatch) -> FakeNvtx:
    module = FakeNvtx()
    monkeypatch.setitem(sys.modules, "nvtx", module)
    monkeypatch.delenv("YONOS_NVTX", raising=False)
    return module


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("engines")
    write_engines(root)
    return root


def test_every_stage_of_every_batch_is_a_range_and_a_captured_batch_is_one(
    engines: Path, nvtx: FakeNvtx
) -> None:
    driver = SimulatedDriver()
    backend = open_backend(engines, driver, lanes=1)
    image = picture(16, 44)
    plan = plan_for(image, batch=2)
    assert [(b.first, b.live) for b in batches(plan)] == [(0, 2), (2, 2)]
    by_hand(backend, image, plan, fix="wavelet")
    expected = ["upload"]
    for tiles in ("tiles 0-1", "tiles 2-3"):
        expected += [f"batch {tiles}", *(f"  {stage} {tiles}" for stage in STAGES), f"blend {tiles}"]
    assert nvtx.seen == [*expected, "download rows 0-64"]
    by_hand(backend, image, plan, fix="wavelet")  # slots are still free in turn: this run captures
    nvtx.seen.clear()
    by_hand(backend, image, plan, fix="wavelet")
    assert nvtx.seen == [
        "upload",
        *("batch tiles 0-1", "blend tiles 0-1", "batch tiles 2-3", "blend tiles 2-3"),
        "download rows 0-64",
    ]
    assert nvtx.depth == 0
    backend.close()


def test_a_single_tile_is_named_alone(nvtx: FakeNvtx) -> None:
    plan = plan_for(picture(16, 44), batch=3)
    with Nvtx().of(list(batches(plan))[1])("decode"):
        pass
    assert nvtx.seen == ["decode tile 3"]


def test_ranges_are_off_without_the_package_or_when_switched_off(
    nvtx: FakeNvtx, engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = next(iter(batches(plan_for(picture(16, 44)))))
    monkeypatch.setenv("YONOS_NVTX", "0")
    assert Nvtx().of(batch) is no_ranges
    monkeypatch.delenv("YONOS_NVTX")
    monkeypatch.setitem(sys.modules, "nvtx", None)  # importing it raises ImportError
    assert Nvtx().of(batch) is no_ranges
    backend = open_backend(engines, SimulatedDriver())
    image = picture(16, 44)
    by_hand(backend, image, plan_for(image))
    backend.close()
    assert nvtx.seen == []


def test_the_picture_does_not_depend_on_ranges(
    engines: Path, nvtx: FakeNvtx, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = picture(20, 30)
    plan = plan_for(image)
    backend = open_backend(engines, SimulatedDriver())
    assert np.array_equal(upscale(backend, image, plan), reference(image, plan))
    assert nvtx.seen
    backend.close()
