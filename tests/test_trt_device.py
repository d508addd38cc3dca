"""Pictures that stay on the device: no pixel visits the host, the caller's stream is kept in order."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import FakeTensorRT, write_engines
from simulated_device import DeviceFault, SimulatedDriver
from test_trt import open_backend, picture, plan_for, poisoned, reference, spotted

from yonos_trt import session
from yonos_trt import sr as sr_module
from yonos_trt.backends.numpy import NumpyBackend
from yonos_trt.cuda import arrays
from yonos_trt.cuda.arrays import DeviceArray, Stream, is_on_device, stream_handle, view_of
from yonos_trt.errors import ConfigError, InputError, NumericError, OutOfMemoryError
from yonos_trt.trt.backend import TrtBackend
from yonos_trt.trt.device import OnDevice, upscale_on_device


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("engines")
    write_engines(root)
    return root


class Tensor:
    """A caller's array: in the simulated device's memory, being written on his own stream."""

    def __init__(
        self, driver: SimulatedDriver, image: np.ndarray, *, pitch: int = 0, named: bool = True
    ) -> None:
        self.driver, self.stream = driver, driver.make_caller_stream()
        self.shape, self.dtype = image.shape, image.dtype
        row_bytes = image.shape[1] * 3 * image.itemsize
        self.pitch = pitch or row_bytes
        self.address = driver.allocate(self.pitch * image.shape[0])
        pinned = driver.allocate_pinned(image.nbytes)
        driver.host_view(pinned, image.nbytes)[:] = image.reshape(-1).view(np.uint8)
        for y in range(image.shape[0]):
            driver.copy_in(self.address + y * self.pitch, pinned + y * row_bytes, row_bytes, self.stream)
        self.named = named

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, True),
            "strides": (self.pitch, 3 * self.dtype.itemsize, self.dtype.itemsize),
            **({"stream": self.stream} if self.named else {}),
        }


def fetch(driver: SimulatedDriver, array: DeviceArray, stream: int) -> np.ndarray:
    """What the caller sees when he copies the result on his stream."""
    pinned = driver.allocate_pinned(array.nbytes)
    driver.copy_out(pinned, array.address, array.nbytes, stream)
    event = driver.event_create()
    driver.event_record(event, stream)
    driver.event_synchronize(event)
    return driver.host_view(pinned, array.nbytes).view(array.dtype).reshape(array.shape).copy()


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("fix", ["none", "wavelet", "adain"])
def test_the_result_is_the_pipelines_and_no_pixel_visits_the_host(
    engine_dir: Path, dtype: Any, check: bool, fix: str
) -> None:
    for seed in range(3):
        driver = SimulatedDriver(random.Random(seed).randrange, eagerness=seed)
        backend = open_backend(engine_dir, driver)
        image = picture(33, 45, dtype)  # 180 px wide: padded to 192, so rows are packed
        plan = plan_for(image, batch=2)
        tensor = Tensor(driver, image, pitch=64 * 3 * 4)
        before = driver.calls.copy()
        out = upscale_on_device(tensor, backend, plan=plan, seed=7, color_fix=fix, check=check)
        calls = driver.calls - before
        # windows, origins, the wavelet fix's taps; no picture
        assert calls["copy_in"] == 3 + 1 + (4 if fix == "wavelet" else 0)
        assert calls["copy_out"] == (plan.bands if check else 0)  # flags
        assert out.dtype == np.dtype(dtype).name
        assert np.array_equal(
            fetch(driver, out, tensor.stream), reference(image, plan, seed=7, color_fix=fix)
        )
        backend.close()


def test_without_the_check_the_host_never_waits(engine_dir: Path) -> None:
    driver = SimulatedDriver(lambda n: 0, eagerness=0)
    backend = open_backend(engine_dir, driver)
    image = picture(16, 48)
    plan = plan_for(image)
    upscale_on_device(Tensor(driver, image), backend, plan=plan)  # makes the buffers, which waits
    tensor = Tensor(driver, image)
    before = driver.calls["event_synchronize"]
    out = upscale_on_device(tensor, backend, plan=plan, check=False)
    assert driver.calls["event_synchronize"] == before
    assert not driver.idle()
    assert np.array_equal(fetch(driver, out, tensor.stream), reference(image, plan, color_fix="wavelet"))
    backend.close()


def test_the_caller_may_write_his_picture_again_on_his_stream_right_away(engine_dir: Path) -> None:
    for seed in range(10):
        driver = SimulatedDriver(random.Random(seed).randrange)
        backend = open_backend(engine_dir, driver)
        image = picture(20, 48)
        plan = plan_for(image)
        tensor = Tensor(driver, image)
        out = upscale_on_device(tensor, backend, plan=plan, check=False)
        driver.fill(tensor.address, 0, image.nbytes, tensor.stream)  # a race if we were still reading
        assert np.array_equal(fetch(driver, out, tensor.stream), reference(image, plan, color_fix="wavelet"))
        backend.close()


def test_a_stream_that_is_given_is_used(engine_dir: Path) -> None:
    driver = SimulatedDriver(random.Random(0).randrange)
    backend = open_backend(engine_dir, driver)
    image = picture(20, 48)
    plan = plan_for(image)
    tensor = Tensor(driver, image, named=False)
    with pytest.raises(ConfigError, match="without a stream"):
        upscale_on_device(tensor, backend, plan=plan, check=False)
    out = upscale_on_device(tensor, backend, plan=plan, stream=tensor.stream, check=False)
    assert np.array_equal(fetch(driver, out, tensor.stream), reference(image, plan, color_fix="wavelet"))
    backend.close()


def test_outputs_own_their_memory_and_survive_the_back_end(engine_dir: Path) -> None:
    driver = SimulatedDriver()
    backend = open_backend(engine_dir, driver)
    image = picture(20, 48)
    plan = plan_for(image)
    tensor = Tensor(driver, image)
    out = upscale_on_device(tensor, backend, plan=plan)
    other = upscale_on_device(tensor, backend, plan=plan, seed=1)
    backend.close()
    assert np.array_equal(fetch(driver, out, tensor.stream), reference(image, plan, color_fix="wavelet"))
    assert np.array_equal(
        fetch(driver, other, tensor.stream), reference(image, plan, seed=1, color_fix="wavelet")
    )
    used = driver.used_bytes
    size = out.nbytes
    del out
    gc.collect()
    fetch(driver, other, tensor.stream)  # it goes back when the caller's stream has come that far
    assert driver.used_bytes == used - size


def test_results_wait_for_nothing_and_go_back_on_the_callers_stream(engine_dir: Path) -> None:
    driver = SimulatedDriver(lambda n: 0, eagerness=0)
    backend = open_backend(engine_dir, driver)
    image = picture(20, 48)
    plan = plan_for(image)
    tensor = Tensor(driver, image)
    first = upscale_on_device(tensor, backend, plan=plan)  # makes the buffers
    before = driver.calls.copy()
    out = upscale_on_device(tensor, backend, plan=plan, stream=tensor.stream, check=False)
    pinned = driver.allocate_pinned(out.nbytes)
    nbytes = out.nbytes
    driver.copy_out(pinned, out.address, nbytes, tensor.stream)
    del out  # while the copy has not begun: a race if it went back at once, or on another stream
    gc.collect()
    calls = driver.calls - before
    assert (calls["allocate"], calls["free"], calls["event_synchronize"]) == (0, 0, 0)
    assert (calls["allocate_ordered"], calls["free_ordered"]) == (1, 1)
    event = driver.event_create()
    driver.event_record(event, tensor.stream)
    driver.event_synchronize(event)
    got = driver.host_view(pinned, nbytes)
    assert np.array_equal(got, reference(image, plan, color_fix="wavelet").reshape(-1))
    assert np.array_equal(fetch(driver, first, tensor.stream), reference(image, plan, color_fix="wavelet"))
    backend.close()


def test_a_result_that_dies_inside_a_capture_is_given_back_after_it(engine_dir: Path) -> None:
    driver = SimulatedDriver()
    backend = open_backend(engine_dir, driver)
    image = picture(20, 48)
    plan = plan_for(image)
    tensor = Tensor(driver, image)
    out = upscale_on_device(tensor, backend, plan=plan, stream=tensor.stream)
    used = driver.used_bytes
    driver.capture_begin(tensor.stream)
    del out
    gc.collect()
    driver.graph_destroy(driver.capture_end(tensor.stream))
    assert driver.used_bytes == used
    kept = upscale_on_device(tensor, backend, plan=plan, stream=tensor.stream)
    fetch(driver, kept, tensor.stream)
    assert driver.used_bytes == used
    backend.close()


def test_memory_of_the_callers_is_written_in_place(engine_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = SimulatedDriver(random.Random(1).randrange)
    image = picture(20, 48)
    tensor, mine = Tensor(driver, image), Tensor(driver, np.zeros((80, 192, 3), np.uint8))
    event = driver.event_create()
    driver.event_record(event, mine.stream)
    driver.stream_wait(tensor.stream, event)
    mine.stream = tensor.stream
    with open_sr(engine_dir, driver, monkeypatch) as sr:
        sr.upscale(tensor)
        gc.collect()
        before = driver.calls.copy()
        driver.fill(mine.address, 7, 80 * 192 * 3, tensor.stream)  # comes before the result, on that stream
        assert sr.upscale(tensor, stream=tensor.stream, out=mine) is mine
        calls = driver.calls - before
        assert (calls["allocate"], calls["allocate_ordered"]) == (0, 0)
        view = DeviceArray(mine.address, (80, 192, 3), "uint8", 0, lambda address: None)
        assert np.array_equal(fetch(driver, view, tensor.stream), reference(image, plan_for(image)))
        for wrong in (np.zeros((80, 191, 3), np.uint8), np.zeros((80, 192, 3), np.uint16)):
            with pytest.raises(InputError, match=r"expected \(80, 192, 3\) uint8, rows 576 bytes apart"):
                sr.upscale(tensor, out=Tensor(driver, wrong))
        with pytest.raises(InputError, match="rows 600 bytes apart"):
            sr.upscale(tensor, out=Tensor(driver, np.zeros((80, 192, 3), np.uint8), pitch=600))
        with pytest.raises(ConfigError, match="out was given with a ndarray"):
            sr.upscale(image, out=image)


def test_numbers_that_are_not_finite_are_found(engine_dir: Path) -> None:
    driver = SimulatedDriver()
    backend = open_backend(engine_dir, driver, module=FakeTensorRT(driver, poisoned("step", np.nan)))
    image = spotted()
    with np.errstate(invalid="ignore"), pytest.raises(NumericError) as caught:
        upscale_on_device(Tensor(driver, image), backend, plan=plan_for(image))
    assert caught.value.stage == "step"
    backend.close()


def test_the_check_of_a_row_of_tiles_is_waited_for_when_the_next_is_queued(engine_dir: Path) -> None:
    driver = SimulatedDriver(lambda n: 0, eagerness=0)
    backend = open_backend(engine_dir, driver)
    image = picture(60, 48)
    plan = plan_for(image)
    assert plan.bands > 3
    upscale_on_device(Tensor(driver, image), backend, plan=plan, color_fix="none")  # makes the buffers
    tensor = Tensor(driver, image)
    driver.log.clear()
    out = upscale_on_device(tensor, backend, plan=plan, color_fix="none")
    order = [name for name in driver.log if name in ("finish", "event_synchronize")]
    assert order == ["finish"] + ["finish", "event_synchronize"] * (plan.bands - 1) + ["event_synchronize"]
    assert np.array_equal(fetch(driver, out, tensor.stream), reference(image, plan))
    backend.close()


@pytest.mark.parametrize("fix", ["none", "wavelet", "adain"])
def test_spoilt_rows_on_the_device_are_written_again(tmp_path: Path, fix: str) -> None:
    write_engines(tmp_path, precisions=("fp16", "fp32"))
    image = np.concatenate([picture(40, 60) // 2, spotted()]).astype(np.uint8)
    plan, good = plan_for(image, batch=2), poisoned("nowhere", 0.0)
    driver = SimulatedDriver(random.Random(3).randrange)
    module = FakeTensorRT(driver, poisoned("step", np.nan), fp32_functions=good)
    backend = open_backend(tmp_path, driver, module=module)
    tensor = Tensor(driver, image)
    with np.errstate(invalid="ignore"):
        out = upscale_on_device(tensor, backend, plan=plan, color_fix=fix)
        got = fetch(driver, out, tensor.stream)
    expected = reference(image, plan, functions=good, color_fix=fix)
    assert np.abs(got.astype(int) - expected.astype(int)).max() <= 1
    backend.close()


def test_a_plan_for_another_size_is_refused(engine_dir: Path) -> None:
    driver = SimulatedDriver()
    backend = open_backend(engine_dir, driver)
    with pytest.raises(ConfigError, match="80 x 192"):
        upscale_on_device(Tensor(driver, picture(20, 48)), backend, plan=plan_for(picture(20, 49)))
    backend.close()


def test_sr_takes_and_returns_device_memory(engine_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = SimulatedDriver()
    monkeypatch.setattr(
        session,
        "open_backend",
        lambda root, manifest, request: open_backend(root, driver, lanes=request.lanes or 2),
    )
    image = picture(20, 48)
    tensor = Tensor(driver, image)
    with sr_module.SR(engine_dir, runtime="tensorrt", tile_px=64, overlap_px=16, color_fix="none") as sr:
        out = sr.upscale(tensor)
        assert isinstance(out, DeviceArray)
        assert np.array_equal(fetch(driver, out, tensor.stream), reference(image, plan_for(image)))
        again = sr.upscale(tensor, stream=tensor.stream)
        assert np.array_equal(fetch(driver, again, tensor.stream), reference(image, plan_for(image)))
    with sr_module.SR(engine_dir, runtime="tensorrt", tile_px=64, overlap_px=16) as sr:
        fixed = fetch(driver, sr.upscale(tensor), tensor.stream)
        assert np.array_equal(fixed, reference(image, plan_for(image), color_fix="wavelet"))


def test_the_planner_takes_the_batch_that_the_engines_are_tuned_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_engines(tmp_path, best=4, largest=(8, 4096))
    driver = SimulatedDriver()
    image = picture(20, 60)  # 240 px: five tiles side by side
    with open_sr(tmp_path, driver, monkeypatch) as sr:
        planned = sr.plan(20, 60)
        assert (len(planned.tiles.xs), planned.tiles.batch) == (5, 3)
        assert np.array_equal(sr.upscale(image), reference(image, planned.tiles))
    with open_sr(tmp_path, SimulatedDriver(), monkeypatch, device_memory_limit_mb=401) as sr:
        assert sr.plan(20, 60).tiles.batch < 3  # by memory
    with open_sr(tmp_path, SimulatedDriver(), monkeypatch, batch=8) as sr:
        assert sr.plan(20, 60).tiles.batch == 8
        assert np.array_equal(sr.upscale(image), reference(image, plan_for(image, batch=8)))


@pytest.mark.parametrize("slow", [("run", "blend"), ("blend", "run")], ids="-then-".join)
@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_after_a_warm_up_the_first_pictures_find_everything_there(
    engine_dir: Path, monkeypatch: pytest.MonkeyPatch, lanes: int, slow: tuple[str, str]
) -> None:
    """Whether the lanes or the blends are the slower ones then, and afterwards the others."""
    delays_s: dict[str, float] = dict.fromkeys(slow, 0.0)

    def delayed(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            time.sleep(delays_s[name])
            return method(*args, **kwargs)

        return call

    for name in slow:
        monkeypatch.setattr(TrtBackend, name, delayed(name, getattr(TrtBackend, name)))
    driver = SimulatedDriver()
    sizes = [(20, 48), (40, 60)]
    with open_sr(engine_dir, driver, monkeypatch, lanes=lanes) as sr:
        with pytest.raises(ConfigError, match="0 x 5 px has no pixels"):
            sr.warm_up([(20, 48), (0, 5)])
        assert driver.calls["upload"] == driver.calls["copy_in"] == 0
        delays_s[slow[0]] = 0.005
        sr.warm_up(sizes)
        delays_s = {slow[0]: 0.0, slow[1]: 0.005}
        before = driver.calls.copy()
        for height, width in sizes:
            image = picture(height, width)
            assert np.array_equal(sr.upscale(image), reference(image, plan_for(image)))
        calls = driver.calls - before
        found = {name: calls[name] for name in ("allocate", "allocate_pinned", "capture_begin", "gather")}
        assert not any(found.values()), found


def test_a_back_end_on_the_host_refuses_device_memory() -> None:
    with pytest.raises(InputError, match=r"NumpyBackend reads host memory.*\.cpu\(\)"):
        OnDevice(Interface(), NumpyBackend())


def open_sr(
    engine_dir: Path, driver: SimulatedDriver, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> sr_module.SR:
    monkeypatch.setattr(
        session,
        "open_backend",
        lambda root, manifest, request: open_backend(root, driver, lanes=request.lanes or 2),
    )
    options = {"tile_px": 64, "overlap_px": 16, "color_fix": "none", **options}
    return sr_module.SR(engine_dir, runtime="tensorrt", **options)


def test_progress_is_told_and_alpha_is_refused_rather_than_ignored(
    engine_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = SimulatedDriver()
    image = picture(40, 48)
    tensor = Tensor(driver, image)
    told: list[tuple[int, int]] = []
    with open_sr(engine_dir, driver, monkeypatch) as sr:
        out = sr.upscale(tensor, on_tiles=lambda *n: told.append(n))
        assert np.array_equal(fetch(driver, out, tensor.stream), reference(image, plan_for(image)))
        count = plan_for(image).tiles
        assert told == [(n, count) for n in range(1, count + 1)]
        for alpha in ("model", "drop"):
            with pytest.raises(ConfigError, match=f"alpha='{alpha}' has no meaning"):
                sr.upscale(tensor, alpha=alpha)


class Packed:
    """A caller's array that speaks DLPack only, and counts how often it is asked."""

    def __init__(self, driver: SimulatedDriver, image: np.ndarray, device: int = 0) -> None:
        self.tensor, self.device, self.asked = Tensor(driver, image), device, 0

    def __dlpack_device__(self) -> tuple[int, int]:
        return arrays.KDL_CUDA, self.device

    def __dlpack__(self, *, stream: Any = None) -> Any:
        self.asked += 1
        driver, event = self.tensor.driver, self.tensor.driver.event_create()
        driver.event_record(event, self.tensor.stream)
        driver.stream_wait(stream, event)
        height, width, _ = self.tensor.shape
        array = DeviceArray(
            self.tensor.address, (height, width, 3), self.tensor.dtype.name, 0, lambda address: None
        )
        return arrays.make_capsule(array, (arrays.KDL_CUDA, self.device))


def test_dlpack_is_asked_once(engine_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = SimulatedDriver()
    image = picture(20, 48)
    packed = Packed(driver, image)
    with open_sr(engine_dir, driver, monkeypatch) as sr:
        out = sr.upscale(packed)
        assert np.array_equal(fetch(driver, out, packed.tensor.stream), reference(image, plan_for(image)))
    assert packed.asked == 1


def test_arrays_of_another_gpu_are_refused_before_anything_is_read(
    engine_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = SimulatedDriver()
    image = picture(20, 48)
    packed = Packed(driver, image, device=1)
    silent = Tensor(driver, image)  # its interface does not say where it lies: the driver is asked
    driver.foreign[silent.address] = 3
    named = Tensor(driver, image)
    named.device = SimpleNamespace(id=2)  # type: ignore[attr-defined]  # as CuPy says it
    with open_sr(engine_dir, driver, monkeypatch) as sr:
        sr.open()
        before = driver.calls.copy()
        for array, index in ((packed, 1), (silent, 3), (named, 2)):
            with pytest.raises(InputError, match=rf"lies on GPU {index}, the engines run on GPU 0.*device="):
                sr.upscale(array)
        assert not {"copy", "copy_rows", "copy_in"} & set(driver.calls - before)
    assert packed.asked == 0


def test_a_device_array_that_ran_out_of_memory_begins_again_with_less(
    engine_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    driver = SimulatedDriver(total_bytes=900_000)
    image = picture(40, 60)
    tensor = Tensor(driver, image)
    with open_sr(engine_dir, driver, monkeypatch, batch=4) as sr:
        out = sr.upscale(tensor)
        plan = sr.plan(40, 60).tiles
        assert "for this picture and later ones" in caplog.text
        got = fetch(driver, out, tensor.stream)
        assert np.array_equal(got, reference(image, plan))
        del out
        caplog.clear()
        again = sr.upscale(tensor)
        assert not caplog.records
        assert np.array_equal(fetch(driver, again, tensor.stream), got)


@pytest.mark.parametrize("color_fix", ["none", "wavelet"])
def test_after_memory_ran_out_it_goes_on_at_the_finished_row(
    engine_dir: Path, monkeypatch: pytest.MonkeyPatch, color_fix: str
) -> None:
    driver = SimulatedDriver()
    image = picture(150, 30)
    tensor = Tensor(driver, image)
    run, sides = TrtBackend.run, []

    def short_of_memory(self: Any, source: Any, plan: Any, *call: Any) -> Any:
        sides.append(plan.tile_h_px)
        if plan.tile_h_px > 32 and sides.count(plan.tile_h_px) > 20:
            raise OutOfMemoryError("arena")
        return run(self, source, plan, *call)

    with open_sr(engine_dir, driver, monkeypatch, color_fix=color_fix, tile_px=None) as sr:
        at_most = [(64, 1), (32, 1)]
        sr._at_most = at_most[0]
        large = reference(image, sr.plan(150, 30).tiles, color_fix=color_fix)
        monkeypatch.setattr(TrtBackend, "run", short_of_memory)
        told: list[tuple[int, int]] = []
        got = fetch(driver, sr.upscale(tensor, on_tiles=lambda *n: told.append(n)), tensor.stream)
        plan = sr.plan(150, 30).tiles
        assert sr._at_most == at_most[1]
        small = reference(image, plan, color_fix=color_fix)
        other = np.flatnonzero((got != large).any(axis=(1, 2)))
        kept = int(other[0]) if len(other) else len(got)
        assert kept > 100
        assert np.array_equal(got[kept:], small[kept:])
        assert sides.count(32) < 0.9 * plan.tiles
        assert told[-1][0] == told[-1][1]


def test_the_limit_of_device_memory_holds_for_pictures_that_are_there(
    engine_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = SimulatedDriver()
    image = picture(40, 60)
    tensor = Tensor(driver, image)
    with (
        open_sr(engine_dir, driver, monkeypatch, device_memory_limit_mb=1) as sr,
        pytest.raises(ConfigError, match="the device memory limit is 1 MiB"),
    ):
        sr.upscale(tensor)


# ---------------------------------------------------------------------------------------------------------
# Views and streams


class Interface:
    def __init__(self, **changes: Any) -> None:
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": (4, 5, 3),
            "typestr": "|u1",
            "data": (4096, False),
            "strides": None,
            **changes,
        }


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"shape": (4, 5)}, r"shape \(4, 5\)"),
        ({"shape": (4, 5, 4)}, r"expected \(height, width, 3\)"),
        ({"shape": (0, 5, 3)}, "shape"),
        ({"typestr": "<f8"}, "<f8, expected uint8"),
        ({"strides": (15, 1, 5)}, "contiguous"),
        ({"strides": (10, 3, 1)}, "contiguous"),
        ({"strides": (-15, 3, 1)}, "contiguous"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_and_not_copied(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        view_of(Interface(**changes), consumer=5)


def test_an_interface_is_read() -> None:
    view = view_of(Interface(strides=(32, 3, 1), stream=9), consumer=5)
    assert (view.address, view.height, view.width, view.dtype) == (4096, 4, 5, "uint8")
    assert (view.pitch_bytes, view.stream) == (32, 9)
    assert view_of(Interface(stream=None), consumer=5).stream is None


def test_a_dlpack_tensor_is_read_with_our_stream_as_consumer() -> None:
    torch = pytest.importorskip("torch")
    whole = torch.arange(6 * 8 * 3, dtype=torch.float32).reshape(6, 8, 3)
    part = whole[1:5, :4]
    asked: list[Any] = []

    class OnDevice:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

        def __dlpack__(self, *, stream: Any) -> Any:
            asked.append(stream)
            return part.__dlpack__()

    view = view_of(OnDevice(), consumer=77)
    assert asked == [77]
    assert is_on_device(OnDevice())
    assert not is_on_device(whole)
    assert view.address == part.data_ptr()
    assert (view.height, view.width, view.dtype, view.pitch_bytes) == (4, 4, "float32", 96)


def test_streams_of_every_kind() -> None:
    class Standard:
        def __cuda_stream__(self) -> tuple[int, int]:
            return 0, 1234

    class Torch:
        cuda_stream = 0

    class CuPy:
        ptr = 99

    class Newer:
        def __cuda_stream__(self) -> tuple[int, int]:
            return 1, 1234

    assert stream_handle(None) is None
    assert stream_handle(5) == 5
    assert stream_handle(Stream(77)) == 77  # ours speaks the protocol as well
    assert Stream(77).__cuda_stream__() == (0, 77)
    with pytest.raises(InputError, match="version 1 of __cuda_stream__, expected 0"):
        stream_handle(Newer())
    assert stream_handle(Standard()) == 1234
    assert stream_handle(Torch()) == 1  # the default stream has the handle 1
    assert stream_handle(CuPy()) == 99
    for wrong in ("5", -1, True, 1.0):
        with pytest.raises(InputError, match="__cuda_stream__"):
            stream_handle(wrong)


class OnHost(DeviceArray):
    """The same array, said to be in host memory, so that a real consumer can read it."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_real_consumers_read_our_dlpack_and_free_it(library: str, dtype: Any) -> None:
    consumer = pytest.importorskip(library)
    memory = picture(4, 5, dtype)
    freed: list[int] = []
    array = OnHost(memory.ctypes.data, (4, 5, 3), np.dtype(dtype).name, 0, freed.append)
    taken = consumer.from_dlpack(array)
    assert np.array_equal(np.asarray(taken), memory)
    del array
    gc.collect()
    assert freed == []  # the consumer still has it
    del taken
    gc.collect()
    assert freed == [memory.ctypes.data]
    assert arrays._exported == {}


def test_a_capsule_that_nobody_takes_frees_the_array() -> None:
    freed: list[int] = []
    array = DeviceArray(64, (1, 1, 3), "uint8", 0, freed.append)
    assert array.__dlpack_device__() == (2, 0)
    interface = array.__cuda_array_interface__
    assert (interface["data"], interface["typestr"], interface["stream"]) == ((64, False), "|u1", None)
    capsule = array.__dlpack__(stream=1, max_version=(1, 0))
    del array
    gc.collect()
    assert freed == []
    del capsule
    gc.collect()
    assert freed == [64]


def test_the_caller_cannot_be_raced_unnoticed(engine_dir: Path) -> None:
    """The judge works: a caller who overwrites his picture on an unordered stream is caught."""
    driver = SimulatedDriver(lambda n: 0, eagerness=0)
    backend: TrtBackend = open_backend(engine_dir, driver)
    image = picture(20, 48)
    tensor = Tensor(driver, image)
    for _ in range(2):  # the first run makes the buffers, for which the host waits
        upscale_on_device(tensor, backend, plan=plan_for(image), check=False)
    with pytest.raises(DeviceFault):
        driver.fill(tensor.address, 0, image.nbytes, driver.make_caller_stream())
