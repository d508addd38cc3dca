"""ONNX Runtime: what opens, what is refused, and that its results do not depend on the schedule."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest
from helpers import edit_manifest, make_engine_dir, picture, psnr_db

from yonos_trt.backends import ort as ort_backend
from yonos_trt.backends import ort_providers
from yonos_trt.backends.ort import OrtBackend, pick_onnx
from yonos_trt.backends.ort_providers import DEVICE_MEMORY, Providers
from yonos_trt.cuda.probe import probe_driver
from yonos_trt.engine import manifest as m
from yonos_trt.errors import (
    ClosedError,
    ConfigError,
    EngineDeviceError,
    EngineIntegrityError,
    EngineNotFoundError,
    ManifestError,
    MissingExtraError,
    NumericError,
    OutOfMemoryError,
)
from yonos_trt.pipeline import Timings, upscale_array
from yonos_trt.planning import plan_picture
from yonos_trt.tiles.plan import batches


@pytest.fixture
def copy(engine_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(engine_dir, tmp_path / "engine"))


def run(engine_dir: Path, image: Any, *, batch: int = 1, seed: int = 0, **options: Any) -> Any:
    backend = OrtBackend(engine_dir, **options)
    plan = plan_picture(backend.manifest, *image.shape[:2], batch=batch)
    return upscale_array(image, backend, plan=plan.tiles, seed=seed)


@pytest.mark.parametrize("encoder_input", ["upsampled", "lr"])
@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 37), (41, 1), (2, 3), (13, 17), (53, 31)])
def test_any_size_gives_exactly_scale_times_the_size(
    tmp_path: Path, encoder_input: str, scale: int, size: tuple[int, int]
) -> None:
    directory = make_engine_dir(tmp_path / "engine", scale=scale, encoder_input=encoder_input)
    image = picture(*size)
    out = run(directory, image)
    assert out.shape == (scale * size[0], scale * size[1], 3)
    down = out.reshape(size[0], scale, size[1], scale, 3).mean(axis=(1, 3))
    assert np.abs(down - image).mean() < 12  # it is the picture, not something else


def test_the_result_is_the_same_for_any_lanes_and_runs(engine_dir: Path) -> None:
    image = picture(61, 67)
    results = [run(engine_dir, image, lanes=lanes, batch=2, threads=2) for lanes in (1, 2, 4, 2)]
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


def test_batch_sizes_agree_to_60_db(engine_dir: Path) -> None:
    image = picture(61, 67)
    one = run(engine_dir, image, batch=1)
    for batch in (2, 3, 8):
        assert psnr_db(one, run(engine_dir, image, batch=batch)) >= 60


def test_the_number_of_threads_does_not_change_the_picture_visibly(engine_dir: Path) -> None:
    image = picture(40, 40)
    assert psnr_db(run(engine_dir, image, threads=1), run(engine_dir, image, threads=2)) >= 60


def test_native_and_numpy_kernels_agree_to_60_db(engine_dir: Path) -> None:
    image = picture(40, 40)
    assert psnr_db(run(engine_dir, image, kernels="numpy"), run(engine_dir, image)) >= 60


def test_sessions_may_be_used_from_several_threads(engine_dir: Path) -> None:
    backend = OrtBackend(engine_dir, lanes=4)
    tiles = [np.full((1, 3, 32, 32), k / 10, np.float32) for k in range(8)]
    alone = [backend.encode(t, lane=0) for t in tiles]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda t: backend.encode(t, lane=1), tiles))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_closed_backend_says_so(engine_dir: Path) -> None:
    backend = OrtBackend(engine_dir)
    backend.close()
    backend.close()
    with pytest.raises(ClosedError, match="closed"):
        backend.encode(np.zeros((1, 3, 32, 32), np.float32), lane=0)


def test_an_unknown_provider_lists_what_there_is(engine_dir: Path) -> None:
    with pytest.raises(ConfigError, match="CPUExecutionProvider"):
        OrtBackend(engine_dir, providers=["NoSuchProvider"])


class _Recorded(dict[str, Any]):
    """The options that sessions were opened with, by provider."""


@pytest.fixture
def no_cuda_after_all(monkeypatch: pytest.MonkeyPatch) -> _Recorded:
    """An ONNX Runtime with the CUDA provider where CUDA itself is missing: sessions come up without it."""
    import onnxruntime

    opened, recorded = onnxruntime.InferenceSession, _Recorded()

    def without(model: Any, *, sess_options: Any, providers: Any) -> Any:
        recorded.update({p[0]: p[1] for p in providers if not isinstance(p, str)})
        return opened(model, sess_options=sess_options, providers=["CPUExecutionProvider"])

    known = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: known)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", without)
    return recorded


def test_a_provider_that_the_session_did_not_get_is_refused(
    engine_dir: Path, no_cuda_after_all: _Recorded
) -> None:
    with pytest.raises(EngineDeviceError, match=r"without CUDAExecutionProvider, on CPUExecutionProvider"):
        OrtBackend(engine_dir, providers=["CUDAExecutionProvider"], device=1)
    assert no_cuda_after_all == {"CUDAExecutionProvider": {"device_id": "1", "enable_cuda_graph": "1"}}
    given = {"device_id": "3", "enable_cuda_graph": "0"}
    with pytest.raises(EngineDeviceError, match="CUDAExecutionProvider"):
        OrtBackend(engine_dir, providers=[("CUDAExecutionProvider", given)])
    assert no_cuda_after_all == {"CUDAExecutionProvider": given}


def test_with_the_cpu_named_as_well_it_is_a_warning_and_the_log_says_what_runs(
    engine_dir: Path, no_cuda_after_all: _Recorded, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="yonos_trt.backends"):
        backend = OrtBackend(engine_dir, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warned) == 3
    assert "without CUDAExecutionProvider" in warned[0]
    (opened,) = (r.getMessage() for r in caplog.records if r.getMessage().startswith("opened "))
    assert "CUDA" not in opened
    assert backend.providers == ("CPUExecutionProvider",)
    image = picture(20, 20)
    plan = plan_picture(backend.manifest, 20, 20).tiles
    np.testing.assert_array_equal(upscale_array(image, backend, plan=plan), run(engine_dir, image))
    backend.close()


class _Known:
    """An ONNX Runtime with these providers, and what it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *known: str) -> None:
        import onnxruntime

        self.preloaded = 0
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(known))
        monkeypatch.setattr(onnxruntime, "preload_dlls", self._preload)

    def _preload(self) -> None:
        self.preloaded += 1


def test_the_libraries_of_cuda_wheels_are_loaded_before_a_cuda_session(
    engine_dir: Path, no_cuda_after_all: _Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = _Known(monkeypatch, "CUDAExecutionProvider", "CPUExecutionProvider")
    OrtBackend(engine_dir, providers=["CPUExecutionProvider"]).close()
    assert known.preloaded == 0
    OrtBackend(engine_dir, providers=["CUDAExecutionProvider", "CPUExecutionProvider"]).close()
    assert known.preloaded == 1


def test_on_a_device_latents_stay_there_and_the_bits_are_the_same(
    engine_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime's IO binding for real, the CPU's memory in the place of a GPU's."""
    image = picture(61, 67)
    expected = run(engine_dir, image, batch=2)
    monkeypatch.setitem(DEVICE_MEMORY, "CPUExecutionProvider", "cpu")
    called: list[str] = []
    for name in ("encode", "step", "decode"):
        monkeypatch.setattr(OrtBackend, name, lambda *_, name=name, **__: called.append(name))
    np.testing.assert_array_equal(run(engine_dir, image, batch=2), expected)
    assert called == []
    backend = OrtBackend(engine_dir)
    assert not backend.any_tile  # one shape for all pictures: kernels are chosen for it
    backend.close()


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """The CPU in the place of a provider with CUDA graphs; what sessions were asked for."""
    import onnxruntime

    seen: dict[str, list[Any]] = {"graphs": [], "threads": [], "made": [], "updated": []}
    opened, made = onnxruntime.InferenceSession, onnxruntime.OrtValue.ortvalue_from_numpy
    updated, graph = onnxruntime.OrtValue.update_inplace, ort_backend._Session._graph

    def open_without(model: Any, *, sess_options: Any, providers: Any) -> Any:
        return opened(model, sess_options=sess_options, providers=[p[0] for p in providers])

    def numbered(self: Any, number: int) -> Any:
        seen["graphs"].append((self._name, number))
        seen["threads"].append(threading.current_thread().name)
        return graph(self, number)

    def from_numpy(array: Any, *device: Any) -> Any:
        seen["made"].append(device)
        return made(array, *device)

    def update(self: Any, array: Any) -> None:
        seen["updated"].append(self.data_ptr())
        updated(self, array)

    monkeypatch.setitem(DEVICE_MEMORY, "CPUExecutionProvider", "cpu")
    monkeypatch.setitem(ort_providers.GRAPH_OPTIONS, "CPUExecutionProvider", "enable_cuda_graph")
    monkeypatch.setattr(onnxruntime, "InferenceSession", open_without)
    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", staticmethod(from_numpy))
    monkeypatch.setattr(onnxruntime.OrtValue, "update_inplace", update)
    monkeypatch.setattr(ort_backend._Session, "_graph", numbered)
    return seen


def test_graphs_are_captured_at_the_second_run_of_a_shape_and_addresses_stay(
    engine_dir: Path, captured: dict[str, list[Any]]
) -> None:
    pictures = picture(61, 67), picture(30, 40)
    backend = OrtBackend(engine_dir, lanes=2)
    plans = [
        plan_picture(backend.manifest, *array.shape[:2], batch=batch, tile_px=64).tiles
        for array, batch in zip(pictures, (2, 1), strict=True)
    ]
    plain = OrtBackend(engine_dir, providers=[("CPUExecutionProvider", {"enable_cuda_graph": "0"})])
    right = [upscale_array(array, plain, plan=plan) for array, plan in zip(pictures, plans, strict=True)]
    for found in captured.values():
        found.clear()
    for array, plan, wanted in zip(pictures * 2, plans * 2, right * 2, strict=True):
        np.testing.assert_array_equal(upscale_array(array, backend, plan=plan), wanted)
    backend.close()
    first, second = (len(list(batches(plan))) for plan in plans)
    assert min(first, second) > 2
    assert captured["made"] == [("cpu", 0)] * 4  # image and noise of each shape, once
    assert len(captured["updated"]) == 2 * 2 * (first + second) - 4
    assert len(set(captured["updated"])) == 4
    for name in ("encoder", "step", "decoder"):
        numbers = [number for stage, number in captured["graphs"] if stage == name]
        assert numbers == [-1] + [1] * (first - 1) + [-1] + [2] * (second - 1) + [1] * first + [2] * second
    assert set(captured["threads"]) == {"yonos-ort_0"}


def test_tiles_that_a_gpu_sent_are_not_copied_again(
    engine_dir: Path, captured: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    numpy, sent = onnxruntime.OrtValue.numpy, list[Any]()

    def fetch(self: Any) -> Any:
        sent.append(numpy(self).copy())
        return sent[-1]

    monkeypatch.setattr(onnxruntime.OrtValue, "numpy", fetch)
    image = picture(20, 20)
    backend = OrtBackend(engine_dir)
    plan = plan_picture(backend.manifest, 20, 20).tiles
    for device, same in (("cuda", True), ("cpu", False)):
        monkeypatch.setattr(onnxruntime.OrtValue, "device_name", lambda self, device=device: device)
        tiles = backend.run(backend.upload(image), plan, next(iter(batches(plan))), 0, 0)
        assert np.shares_memory(tiles, sent[-1]) == same
        np.testing.assert_array_equal(tiles, sent[-1])
    backend.close()


def test_without_graphs_where_they_cannot_be_captured(
    engine_dir: Path, captured: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    import onnxruntime

    opened = onnxruntime.InferenceSession

    def refuses(model: Any, *, sess_options: Any, providers: Any) -> Any:
        if providers[0][1]["enable_cuda_graph"] == "1":
            raise RuntimeError("This session cannot use the CUDA Graph feature as requested")
        return opened(model, sess_options=sess_options, providers=providers)

    expected = run(engine_dir, picture(20, 20))
    with monkeypatch.context() as patch, caplog.at_level("INFO", logger="yonos_trt.backends"):
        patch.setattr(onnxruntime, "InferenceSession", refuses)
        np.testing.assert_array_equal(run(engine_dir, picture(20, 20)), expected)
    assert "without CUDA graphs only" in caplog.text

    def no_memory(array: Any, *device: Any) -> Any:
        raise RuntimeError("Can't allocate memory on the device using this package")

    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", staticmethod(no_memory))
    captured["graphs"].clear()
    np.testing.assert_array_equal(run(engine_dir, picture(20, 20)), expected)
    assert {number for _, number in captured["graphs"]} == {-1}
    assert "the encoder runs without CUDA graphs" in caplog.text


@pytest.mark.parametrize("stage", ["encoder", "decoder"])
def test_one_network_without_graphs_leaves_nothing_on_the_device(
    engine_dir: Path, captured: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Its output has a new address in every batch, by which the next networks would keep their graphs."""
    replayed = ort_backend._Session._replayed

    def fails(self: Any, feed: Any) -> Any:
        if self._name == stage:
            raise RuntimeError("capture failed")
        return replayed(self, feed)

    monkeypatch.setattr(ort_backend._Session, "_replayed", fails)
    expected = run(engine_dir, picture(61, 67))
    backend = OrtBackend(engine_dir)
    plan = plan_picture(backend.manifest, 61, 67, tile_px=64).tiles
    for _ in range(3):
        upscale_array(picture(61, 67), backend, plan=plan)
    assert [len(backend._session(name)._places) for name in ("encoder", "step", "decoder")] == [0, 0, 0]
    assert expected.shape == (244, 268, 3)


def test_no_memory_for_a_graph_is_told_as_such(
    engine_dir: Path, captured: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Any, feed: Any) -> Any:
        raise RuntimeError("CUDA failure 2: out of memory")

    monkeypatch.setattr(ort_backend._Session, "_replayed", fails)
    with pytest.raises(OutOfMemoryError):
        run(engine_dir, picture(20, 20))


def test_stages_are_timed_on_the_thread_of_the_graphs(
    engine_dir: Path, captured: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = OrtBackend(engine_dir)
    monkeypatch.setattr(backend._session("step"), "gives", np.dtype(np.float16))  # so each runs on the host
    plan, timings = plan_picture(backend.manifest, 20, 20).tiles, Timings()
    upscale_array(picture(20, 20), backend, plan=plan, timings=timings)
    assert {"gather", "encode", "noise", "step", "decode"} <= {k for k, v in timings.seconds.items() if v}


def test_a_spoilt_latent_on_a_device_names_its_network(
    engine_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DEVICE_MEMORY, "CPUExecutionProvider", "cpu")
    noise = OrtBackend.noise
    monkeypatch.setattr(OrtBackend, "noise", lambda *a, **k: noise(*a, **k) * np.float32(np.nan))
    with pytest.raises(NumericError) as caught:
        run(engine_dir, picture(16, 16))
    assert caught.value.stage == "step"


def test_on_a_gpu_the_fp16_graphs_go_first(engine_dir: Path) -> None:
    manifest = m.load_manifest(engine_dir)

    def change(stage: Any) -> Any:
        (artifact,) = stage.artifacts
        half = msgspec.structs.replace(artifact, precision="fp16")
        return msgspec.structs.replace(stage, artifacts=(artifact, half))

    stages = m.Stages(**{name: change(stage) for name, stage in manifest.stages.items()})
    both = msgspec.structs.replace(manifest, stages=stages)
    for options, precision in (({}, "fp32"), ({"best": "fp16"}, "fp16"), ({"precision": "fp32"}, "fp32")):
        picked = pick_onnx(both, engine_dir, **options)  # type: ignore[arg-type]
        assert {a.precision for a in picked.values()} == {precision}


def test_the_rtx_plugin_is_registered_and_says_what_it_needs(engine_dir: Path) -> None:
    pytest.importorskip("onnxruntime_ep_nv_tensorrt_rtx", reason="needs the extra ort-rtx")
    if probe_driver().devices:
        pytest.skip("a GPU is here")
    with pytest.raises(EngineDeviceError, match=r"cannot load onnxruntime_ep_nv_tensorrt_rtx \(.*libcuda"):
        OrtBackend(engine_dir, providers=["NvTensorRTRTXExecutionProvider"])


def test_the_rtx_plugin_that_is_not_installed_names_its_extra(
    engine_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", None)
    with pytest.raises(MissingExtraError, match=r"'\.\[ort-rtx\]'"):
        OrtBackend(engine_dir, providers=["NvTensorRTRTXExecutionProvider"])


def test_a_plugins_device_options_and_what_it_compiled_reach_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import onnxruntime

    class Options:
        added: ClassVar[list[Any]] = []

        def __init__(self) -> None:
            self.compiled: bytes | None = None

        def add_provider_for_devices(self, devices: list[Any], settings: dict[str, str]) -> None:
            self.added.append((devices, settings))

    name = "NvTensorRTRTXExecutionProvider"
    devices = [SimpleNamespace(ep_name=name, number=i) for i in range(2)]
    monkeypatch.setitem(
        sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", SimpleNamespace(get_library_path=lambda: "plugin.so")
    )
    registered: list[Any] = []
    monkeypatch.setattr(ort_providers, "_registered", set())
    monkeypatch.setattr(
        onnxruntime, "register_execution_provider_library", lambda *a: registered.append(a), raising=False
    )
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: devices, raising=False)
    compiled: list[Any] = []

    class Compiler:
        def __init__(self, options: Any, model: bytes, *, embed_compiled_data_into_model: bool) -> None:
            assert embed_compiled_data_into_model
            assert options.added
            compiled.append(model)
            if model == b"refused":
                raise RuntimeError("cannot be compiled")

        def compile_to_bytes(self) -> bytes:
            return b"EPContext of " + compiled[-1]

    def session(model: bytes, *, sess_options: Any) -> bytes:
        if model.startswith(b"EPContext of stale"):
            raise RuntimeError("another driver")
        return model

    monkeypatch.setattr(onnxruntime, "ModelCompiler", Compiler, raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setenv("YONOS_CACHE_DIR", str(tmp_path))
    for _ in range(2):
        providers = Providers(onnxruntime, [(name, {"nv_max_workspace_size": 5})], device=1)
        assert providers.graphs
        assert providers.open(b"a", Options) == b"EPContext of a"
    assert registered == [(name, "plugin.so")]
    assert compiled == [b"a"]  # the second start finds it

    def folder_of(model: bytes, **settings: str) -> Path:
        settings |= {"enable_cuda_graph": "1"}
        digest = hashlib.sha256(model + repr(sorted(settings.items())).encode())
        return tmp_path / "ort-rtx" / digest.hexdigest()[:32]

    folder = folder_of(b"a", nv_max_workspace_size="5")
    settings = {
        "nv_runtime_cache_path": str(folder / "kernels"),
        "nv_max_workspace_size": "5",
        "enable_cuda_graph": "1",
    }
    assert Options.added == [([devices[1]], settings)] * 2
    (kept,) = folder.glob("context-*.onnx")
    assert kept.stat().st_mode & 0o777 == 0o600
    with caplog.at_level("WARNING"):
        assert providers.open(b"stale", Options) == b"stale"
        assert providers.open(b"refused", Options) == b"refused"
    assert "what was compiled is not used: another driver" in caplog.text
    assert "compiling ahead is left out: cannot be compiled" in caplog.text
    assert not list(folder_of(b"stale", nv_max_workspace_size="5").glob("context-*"))
    count = len(compiled)
    assert Providers(onnxruntime, [name], device=1).open(b"a", Options) == b"EPContext of a"
    assert len(compiled) == count + 1  # other options, another engine
    assert list(folder_of(b"a").glob("context-*"))
    assert providers.open(b"weights elsewhere", Options, compiled=False) == b"weights elsewhere"
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert providers.open(b"a", Options) == b"a"
    assert "it belongs to user" in caplog.text
    with pytest.raises(EngineDeviceError, match="offers 2 devices, asked for is number 2"):
        Providers(onnxruntime, [name], device=2).open(b"", Options)


def test_no_provider_at_all_is_refused(engine_dir: Path) -> None:
    with pytest.raises(ConfigError, match="providers is empty"):
        OrtBackend(engine_dir, providers=[])


def test_a_precision_that_is_not_there_names_the_export_command(engine_dir: Path) -> None:
    with pytest.raises(EngineNotFoundError, match=r"has: onnx fp32.*yonos-export .*--fp16 --onnx-only"):
        OrtBackend(engine_dir, precision="fp16")


def test_an_altered_graph_is_not_opened(copy: Path) -> None:
    path = copy / "decoder.onnx"
    raw = bytearray(path.read_bytes())
    raw[-20] ^= 1
    path.write_bytes(raw)
    with pytest.raises(EngineIntegrityError, match="altered"):
        OrtBackend(copy)


def _register(directory: Path, stage: str) -> None:
    """Make the manifest agree with the file that is there now."""

    def change(document: dict[str, Any]) -> None:
        record = m.file_record(directory / f"{stage}.onnx")
        document["stages"][stage]["artifacts"][0] |= {"sha256": record.sha256, "bytes": record.bytes}

    edit_manifest(directory, change)


def test_a_file_that_is_not_onnx_is_refused_even_with_the_right_hash(copy: Path) -> None:
    for raw, reason in (
        (b"this is no graph", r"step\.onnx is not an ONNX graph"),
        (b"", r"cannot open .*step\.onnx"),
        ((copy / "step.onnx").read_bytes().replace(b"Concat", b"Cancat"), r"cannot open .*step\.onnx"),
    ):
        (copy / "step.onnx").write_bytes(raw)
        _register(copy, "step")
        with pytest.raises(EngineIntegrityError, match=reason):
            OrtBackend(copy)


def test_a_graph_with_other_tensor_names_is_refused(tmp_path: Path) -> None:
    directory = make_engine_dir(tmp_path / "engine", names={"z_l": "latent"})
    with pytest.raises(ManifestError, match=r"\['latent'\], the manifest says \['z_l'\]"):
        OrtBackend(directory)


def test_a_graph_with_other_channels_is_refused(copy: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["model"]["latent_channels"] = 5
        for stage in document["stages"].values():
            for tensor in (*stage["inputs"], *stage["outputs"]):
                if tensor["name"] != "image":
                    tensor["shape"][1] = 5

    edit_manifest(copy, change)
    with pytest.raises(ManifestError, match=r"expected \(N, 5, h, w\)"):
        OrtBackend(copy)


def test_a_graph_that_yields_nan_names_its_stage(tmp_path: Path) -> None:
    for stage, word in (("encoder", "encode"), ("step", "step"), ("decoder", "decode")):
        directory = make_engine_dir(tmp_path / stage, nan_stage=stage)
        with pytest.raises(NumericError) as caught:
            run(directory, picture(20, 20))
        assert (caught.value.stage, caught.value.tile) == (word, 0)


def test_a_shape_the_graph_cannot_take_is_an_error_of_ours(engine_dir: Path) -> None:
    with pytest.raises(EngineIntegrityError, match=r"failed in the encoder on \[\(1, 3, 31, 31\)\]"):
        OrtBackend(engine_dir).encode(np.zeros((1, 3, 31, 31), np.float32), lane=0)
