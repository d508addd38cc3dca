"""Which engine is chosen, and that nothing is deserialised that the manifest does not vouch for."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import RTX_VERSION, VERSION, FakeRuntime, FakeTensorRT, fake_plan, write_engines
from simulated_device import SimulatedDriver

from yonos_trt import atomic
from yonos_trt.engine.manifest import Artifact, EngineManifest, load_manifest, save_manifest
from yonos_trt.errors import (
    EngineDeviceError,
    EngineIntegrityError,
    EngineNotFoundError,
    EngineVersionError,
    ManifestError,
    MissingExtraError,
)
from yonos_trt.trt.artifacts import pick_engines, read_engine, read_header
from yonos_trt.trt.backend import TrtBackend
from yonos_trt.trt.engines import Engine
from yonos_trt.trt.kernel_cache import KernelCache
from yonos_trt.trt.module import TensorRT


def pick(root: Path, **options: Any) -> dict[str, Artifact]:
    defaults: dict[str, Any] = {
        "runtime": "tensorrt",
        "tensorrt_version": VERSION,
        "compute_capability": (8, 6),
        "gpu": "RTX 3090",
    }
    return pick_engines(load_manifest(root), root, **{**defaults, **options})


def merged(root: Path, *parts: dict[str, Any]) -> Path:
    """One directory with the engines of several calls of `write_engines`."""
    stages: dict[str, list[Artifact]] = {"encoder": [], "step": [], "decoder": []}
    manifest: EngineManifest | None = None
    for index, options in enumerate(parts):
        manifest = write_engines(root, **options)
        for name, stage in manifest.stages.items():
            for artifact in stage.artifacts:
                file = f"{index}.{artifact.file}"
                (root / artifact.file).rename(root / file)
                fields = {f: getattr(artifact, f) for f in artifact.__struct_fields__}
                stages[name].append(Artifact(**{**fields, "file": file}))
    assert manifest is not None
    parts_of = {
        name: type(stage)(inputs=stage.inputs, outputs=stage.outputs, artifacts=tuple(stages[name]))
        for name, stage in manifest.stages.items()
    }
    fields = {f: getattr(manifest, f) for f in manifest.__struct_fields__}
    save_manifest(root, EngineManifest(**{**fields, "stages": type(manifest.stages)(**parts_of)}))
    return root


# ---------------------------------------------------------------------------------------------------------
# Choice


def test_fp16_is_taken_before_bf16_before_fp32_and_a_wish_is_honoured(tmp_path: Path) -> None:
    write_engines(tmp_path, precisions=("fp32", "bf16", "fp16"))
    assert {a.precision for a in pick(tmp_path).values()} == {"fp16"}
    assert {a.precision for a in pick(tmp_path, precision="bf16").values()} == {"bf16"}
    assert {a.precision for a in pick(tmp_path, precision="fp32").values()} == {"fp32"}


def test_a_precision_that_does_not_fit_here_gives_way_to_the_next(tmp_path: Path) -> None:
    root = merged(
        tmp_path,
        {"precisions": ("fp16",), "capability": ("12.0",)},
        {"precisions": ("fp32",), "capability": ("8.6",)},
    )
    assert {a.precision for a in pick(root).values()} == {"fp32"}


def test_an_engine_for_exactly_this_gpu_is_preferred(tmp_path: Path) -> None:
    root = merged(
        tmp_path,
        {"artifact_changes": {"compute_capability": (), "gpu": "any"}},
        {"capability": ("8.0", "8.6", "8.9")},
        {"capability": ("8.6",)},
        {"capability": ("8.9",)},
    )
    assert {a.file[0] for a in pick(root).values()} == {"2"}
    assert {a.file[0] for a in pick(root, compute_capability=(8, 0)).values()} == {"1"}
    assert {a.file[0] for a in pick(root, compute_capability=(9, 0)).values()} == {"0"}


@pytest.mark.parametrize(
    ("capability", "fits"), [((8, 0), True), ((8, 6), True), ((12, 0), True), ((7, 5), False)]
)
def test_ampere_plus_engines_run_from_8_0_on(tmp_path: Path, capability: tuple[int, int], fits: bool) -> None:
    write_engines(tmp_path, artifact_changes={"hardware_compatibility": "ampere-plus"})
    if fits:
        pick(tmp_path, compute_capability=capability)
    else:
        with pytest.raises(EngineDeviceError):
            pick(tmp_path, compute_capability=capability)


@pytest.mark.parametrize(
    ("installed", "compatible", "fits"),
    [
        (VERSION, False, True),
        ("10.13.2.99", False, True),
        ("10.13.3.1", False, False),
        ("10.14.0", False, False),
        ("11.0.0", False, False),
        ("10.14.0", True, True),
        ("10.12.0", True, False),
        ("11.0.0", True, False),
    ],
)
def test_versions(tmp_path: Path, installed: str, compatible: bool, fits: bool) -> None:
    write_engines(tmp_path, artifact_changes={"version_compatible": compatible})
    if fits:
        pick(tmp_path, tensorrt_version=installed)
    else:
        with pytest.raises(EngineVersionError, match=r"10\.13\.2\.6.*installed is") as caught:
            pick(tmp_path, tensorrt_version=installed)
        assert "yonos-export" in str(caught.value)


def test_each_refusal_names_got_expected_and_the_command(tmp_path: Path) -> None:
    write_engines(tmp_path)
    with pytest.raises(
        EngineNotFoundError, match=r"no tensorrt-rtx engine in fp16.*tensorrt fp16"
    ) as missing:
        pick(tmp_path, runtime="tensorrt-rtx")
    with pytest.raises(EngineDeviceError, match=r"capability 8\.6, RTX 3090 has 9\.0") as device:
        pick(tmp_path, compute_capability=(9, 0))
    for caught, runtime in ((missing, "tensorrt-rtx"), (device, "tensorrt")):
        assert f"yonos-export {tmp_path} --engine-dir {tmp_path} --" in str(caught.value)
        assert f"--runtime {runtime}" in str(caught.value)


def test_without_a_wish_the_most_telling_refusal_comes_out(tmp_path: Path) -> None:
    write_engines(tmp_path, capability=("12.0",))  # fp16 for another GPU; bf16 and fp32 were never built
    with pytest.raises(EngineDeviceError):
        pick(tmp_path)


def test_all_stages_must_be_there(tmp_path: Path) -> None:
    manifest = write_engines(tmp_path)
    stages = dict(manifest.stages.items())
    onnx = Artifact(runtime="onnx", precision="fp32", file="x.onnx", sha256="0" * 64, bytes=1)
    decoder = type(stages["decoder"])(
        inputs=stages["decoder"].inputs, outputs=stages["decoder"].outputs, artifacts=(onnx,)
    )
    broken = type(manifest.stages)(encoder=stages["encoder"], step=stages["step"], decoder=decoder)
    fields = {f: getattr(manifest, f) for f in manifest.__struct_fields__}
    with pytest.raises(EngineNotFoundError, match="stage decoder"):
        pick_engines(
            EngineManifest(**{**fields, "stages": broken}),
            tmp_path,
            runtime="tensorrt",
            tensorrt_version=VERSION,
            compute_capability=(8, 6),
        )


# ---------------------------------------------------------------------------------------------------------
# Bytes


def altered(raw: bytes, what: str) -> bytes:
    if what == "one bit":
        return raw[:100] + bytes([raw[100] ^ 1]) + raw[101:]
    return raw[:-10] if what == "truncated" else raw + b"more"


@pytest.mark.parametrize("what", ["one bit", "truncated", "too long"])
def test_an_altered_engine_is_not_deserialised(tmp_path: Path, what: str) -> None:
    manifest = write_engines(tmp_path)
    path = tmp_path / manifest.stages.step.artifacts[0].file
    path.write_bytes(altered(path.read_bytes(), what))
    driver = SimulatedDriver()
    module = FakeTensorRT(driver)
    match = "was altered" if what == "one bit" else what
    with pytest.raises(EngineIntegrityError, match=match) as caught:
        TrtBackend(tmp_path, manifest, driver=driver, module=module, kernels=object())  # type: ignore[arg-type]
    assert module.deserialized == 1  # the encoder, which is whole
    assert "yonos-export" in str(caught.value)


def test_an_engine_replaced_between_check_and_use_is_not_deserialised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is replaced, by a plan of the same size, the moment its hash was found right."""
    manifest = write_engines(tmp_path)
    artifacts = [stage.artifacts[0] for _, stage in manifest.stages.items()]
    paths = {artifact.sha256: tmp_path / artifact.file for artifact in artifacts}
    sha256, replaced, used = hashlib.sha256, [], []

    class Replacing:
        def __init__(self, *raw: bytes) -> None:
            self._digest = sha256(*raw)
            self.update = self._digest.update

        def hexdigest(self) -> str:
            found = self._digest.hexdigest()
            path = paths[found]
            path.write_bytes(path.read_bytes()[:-2] + b" }")
            replaced.append(found)
            return found

    def deserialize(self: FakeRuntime, raw: bytes) -> Any:
        used.append(sha256(raw).hexdigest())
        return deserialized(self, raw)

    deserialized = FakeRuntime.deserialize_cuda_engine
    monkeypatch.setattr(FakeRuntime, "deserialize_cuda_engine", deserialize)
    monkeypatch.setattr("yonos_trt.engine.manifest.hashlib.sha256", Replacing)
    driver = SimulatedDriver()
    TrtBackend(tmp_path, manifest, driver=driver, module=FakeTensorRT(driver), kernels=object()).close()  # type: ignore[arg-type]
    assert replaced == used == list(paths)
    assert not {sha256(path.read_bytes()).hexdigest() for path in paths.values()} & set(paths)


def vouched(root: Path, raw: bytes, version: str = VERSION) -> Artifact:
    (root / "x.engine").write_bytes(raw)
    return Artifact(
        runtime="tensorrt",
        precision="fp16",
        file="x.engine",
        sha256=hashlib.sha256(raw).hexdigest(),
        bytes=len(raw),
        tensorrt_version=version,
    )


@pytest.mark.parametrize("raw", [b"", b"short", b"\x7fELF" + bytes(200), bytes(range(90, 150))])
def test_a_file_that_is_no_plan_is_refused_although_its_hash_is_right(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(EngineIntegrityError, match="not a TensorRT engine plan"):
        read_engine(tmp_path, vouched(tmp_path, raw))


def test_a_header_of_another_version_than_the_manifest_says_is_refused(tmp_path: Path) -> None:
    plan = fake_plan({}, version="10.14.1.48")
    with pytest.raises(EngineVersionError, match=r"10\.14\.1\.48 according to its header.*10\.13\.2\.6"):
        read_engine(tmp_path, vouched(tmp_path, plan))
    assert read_engine(tmp_path, vouched(tmp_path, plan, "10.14.1")) == plan


def test_a_plan_cut_before_it_was_listed_is_refused(tmp_path: Path) -> None:
    plan = fake_plan({"filling": "x" * 100}, version=RTX_VERSION, rtx=True)
    with pytest.raises(EngineIntegrityError, match="its header says"):
        read_engine(tmp_path, vouched(tmp_path, plan[:-20], RTX_VERSION))


def test_missing_unreadable_and_escaping_files(tmp_path: Path) -> None:
    artifact = vouched(tmp_path, fake_plan({}))
    (tmp_path / "x.engine").unlink()
    with pytest.raises(EngineIntegrityError, match="missing"):
        read_engine(tmp_path, artifact)
    outside = tmp_path / "outside.engine"
    outside.write_bytes(b"x")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "x.engine").symlink_to(outside)
    with pytest.raises(ManifestError, match="leads out of the directory"):
        read_engine(inside, artifact)


# ---------------------------------------------------------------------------------------------------------
# The module


def test_a_module_that_cannot_be_imported_names_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    def refuse(name: str, *_: Any) -> Any:
        raise ImportError(f"libnvinfer.so.10 for {name}")

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(MissingExtraError, match=r"libnvinfer.*'\.\[tensorrt\]'"):
        TensorRT("tensorrt")


def test_a_gpu_is_asked_for_before_tensorrt_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a driver the answer is about the driver, and no CUDA library has been touched."""

    def no_driver(device: int) -> Any:
        raise EngineDeviceError("no NVIDIA driver")

    monkeypatch.setattr("yonos_trt.cuda.driver.CudaDriver", no_driver)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    manifest = write_engines(tmp_path)
    with pytest.raises(EngineDeviceError, match="no NVIDIA driver"):
        TrtBackend(tmp_path, manifest)


@pytest.mark.parametrize(("validity", "loads"), [("VALID", True), ("SUBOPTIMAL", True), ("INVALID", False)])
def test_rtx_is_asked_whether_an_engine_runs_here(
    tmp_path: Path, validity: str, loads: bool, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = write_engines(tmp_path, runtime="tensorrt-rtx")
    driver = SimulatedDriver()
    tensorrt = TensorRT("tensorrt-rtx", module=FakeTensorRT(driver, rtx=True, validity=validity))
    stage = manifest.stages.encoder
    raw = read_engine(tmp_path, stage.artifacts[0])
    if loads:
        Engine(tensorrt, "encoder", stage, stage.artifacts[0], raw)
    else:
        with pytest.raises(EngineDeviceError, match="cannot run here"):
            Engine(tensorrt, "encoder", stage, stage.artifacts[0], raw)
    assert ("not built for this GPU" in caplog.text) == (validity == "SUBOPTIMAL")


def test_an_engine_that_tensorrt_refuses_repeats_its_words(tmp_path: Path) -> None:
    manifest = write_engines(tmp_path)
    driver = SimulatedDriver()
    tensorrt = TensorRT("tensorrt", module=FakeTensorRT(driver))
    stage = manifest.stages.encoder
    with pytest.raises(EngineDeviceError, match="the fake cannot read this plan"):
        Engine(tensorrt, "encoder", stage, stage.artifacts[0], bytes(64) + b"not json")


def test_tensors_other_than_the_manifest_says_are_refused(tmp_path: Path) -> None:
    manifest = write_engines(tmp_path)
    tensorrt = TensorRT("tensorrt", module=FakeTensorRT(SimulatedDriver()))
    artifact = manifest.stages.encoder.artifacts[0]
    raw = read_engine(tmp_path, artifact)
    with pytest.raises(ManifestError, match=r"inputs \['image'\], the manifest says \['z_0'\]"):
        Engine(tensorrt, "decoder", manifest.stages.decoder, artifact, raw)


# ---------------------------------------------------------------------------------------------------------
# The kernel cache of TensorRT-RTX


@pytest.fixture
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache directory, not made yet."""
    monkeypatch.delenv("YONOS_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "yonos-trt" / "rtx"


def kernel_cache(root: Path, *, version: str = "1.7.1", gpu: str = "NVIDIA RTX/3090") -> KernelCache:
    """The cache of the encoder in `root`, where engines are written first if there are none."""
    manifest = write_engines(root, runtime="tensorrt-rtx")
    return KernelCache(root, manifest.stages.encoder.artifacts[0], version, gpu)


def rtx_engine(root: Path, cache: KernelCache) -> tuple[Engine, FakeTensorRT]:
    manifest = write_engines(root, runtime="tensorrt-rtx")
    module = FakeTensorRT(SimulatedDriver(), rtx=True)
    stage = manifest.stages.encoder
    raw = read_engine(root, stage.artifacts[0])
    tensorrt = TensorRT("tensorrt-rtx", module=module)
    return Engine(tensorrt, "encoder", stage, stage.artifacts[0], raw, cache=cache), module


def test_the_kernel_cache_lies_beside_its_engine_and_is_read_again(tmp_path: Path, user_cache: Path) -> None:
    root = tmp_path / "engine"
    cache = kernel_cache(root)
    engine, module = rtx_engine(root, cache)
    assert module.caches == []
    engine.save_cache()
    path = root / f".{engine.artifact.sha256[:32]}-1.7.1-NVIDIA-RTX-3090.cache"
    assert path.read_bytes() == b"kernels of this run"
    assert not list(root.glob("*.part"))
    assert not user_cache.exists()
    _, module = rtx_engine(root, cache)
    assert module.caches == [b"kernels of this run"]
    load_manifest(root)  # the directory is still valid
    for other in (kernel_cache(root, version="1.7.2"), kernel_cache(root, gpu="other")):
        _, module = rtx_engine(root, other)
        assert module.caches == []


def test_beside_a_read_only_engine_the_cache_goes_to_the_users_directory(
    tmp_path: Path, user_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "engine"
    cache = kernel_cache(root)
    make = atomic._new_part

    def refuse(folder: Path, mode: int) -> tuple[Path, int]:  # chmod would not stop root
        if folder == root:
            raise PermissionError(13, "Permission denied", str(folder))
        return make(folder, mode)

    engine, _ = rtx_engine(root, cache)
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "_new_part", refuse)
        engine.save_cache()
    assert list(root.glob(".*.cache")) == []
    assert [path.read_bytes() for path in user_cache.iterdir()] == [b"kernels of this run"]
    assert stat.S_IMODE(user_cache.stat().st_mode) == 0o700
    _, module = rtx_engine(root, cache)
    assert module.caches == [b"kernels of this run"]


def test_a_directory_that_everybody_may_write_to_holds_no_kernels(tmp_path: Path, user_cache: Path) -> None:
    root = tmp_path / "engine"
    beside = kernel_cache(root).places[0]
    beside.write_bytes(b"kernels of a stranger")
    root.chmod(0o777)
    cache = kernel_cache(root)
    engine, module = rtx_engine(root, cache)
    assert module.caches == []
    engine.save_cache()
    assert beside.read_bytes() == b"kernels of a stranger"
    assert len(list(user_cache.iterdir())) == 1


def test_kernels_of_another_user_are_not_loaded(
    tmp_path: Path, user_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = kernel_cache(tmp_path / "engine")
    beside = cache.places[0]
    beside.write_bytes(b"kernels of a stranger")
    if os.getuid():
        pytest.skip("only root can give a file away")
    os.chown(beside, 12345, 12345)
    _, module = rtx_engine(tmp_path / "engine", cache)
    assert module.caches == []
    assert "belongs to user 12345" in caplog.text


def test_a_broken_or_unwritable_cache_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("YONOS_CACHE_DIR", str(tmp_path / "mine"))
    cache = kernel_cache(tmp_path / "engine")
    (place,) = cache.places
    assert place.parent == tmp_path / "mine" / "rtx"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"garbage")
    _, module = rtx_engine(tmp_path / "engine", cache)
    assert module.caches == []
    assert "is not used" in caplog.text
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("YONOS_CACHE_DIR", str(tmp_path / "file"))
    engine, _ = rtx_engine(tmp_path / "engine", kernel_cache(tmp_path / "engine"))
    engine.save_cache()
    assert "was not written" in caplog.text


# ---------------------------------------------------------------------------------------------------------
# Real plans of TensorRT-RTX, whose builder needs no GPU


@pytest.fixture(scope="module")
def real_plan() -> tuple[bytes, str]:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx")

    class Logger(trt.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            pass

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    tensor = network.add_input("z_0", trt.float32, (-1, 4, -1, -1))
    weights = trt.Weights(np.ones((3, 4, 1, 1), np.float32))
    layer = network.add_convolution_nd(tensor, 3, (1, 1), weights, trt.Weights())
    layer.get_output(0).name = "image"
    network.mark_output(layer.get_output(0))
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("z_0", (1, 4, 8, 8), (1, 4, 16, 16), (2, 4, 32, 32))
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    return bytes(builder.build_serialized_network(network, config)), str(trt.__version__)


def test_the_header_of_a_real_plan(real_plan: tuple[bytes, str]) -> None:
    raw, version = real_plan
    header = read_header(raw)
    assert header is not None
    assert header.length_bytes == len(raw)
    assert ".".join(map(str, header.version)) == version
    assert struct.unpack_from("<I", raw)[0] == 0x74727476


def test_a_real_plan_is_vouched_for_and_a_cut_or_foreign_one_is_not(
    tmp_path: Path, real_plan: tuple[bytes, str]
) -> None:
    raw, version = real_plan
    assert read_engine(tmp_path, vouched(tmp_path, raw, version)) == raw
    with pytest.raises(EngineIntegrityError, match="its header says"):
        read_engine(tmp_path, vouched(tmp_path, raw[:-1], version))
    with pytest.raises(EngineVersionError):
        read_engine(tmp_path, vouched(tmp_path, raw, "1.6.0.1"))


def test_a_real_plan_without_a_driver_is_an_error_of_ours(
    tmp_path: Path, real_plan: tuple[bytes, str]
) -> None:
    from yonos_trt.cuda.probe import probe_driver

    if probe_driver().devices:
        pytest.skip("this machine has a GPU")
    raw, version = real_plan
    artifact = vouched(tmp_path, raw, version)
    stage = write_engines(tmp_path / "other").stages.decoder
    with pytest.raises(EngineDeviceError, match="update the NVIDIA driver"):
        Engine(TensorRT("tensorrt-rtx"), "decoder", stage, artifact, raw)


def test_the_adapter_uses_only_names_that_the_real_module_has() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx")
    wanted = {
        trt.Runtime: "deserialize_cuda_engine get_engine_validity",
        trt.ICudaEngine: "get_tensor_name num_io_tensors get_tensor_mode get_tensor_dtype "
        "get_tensor_profile_shape num_optimization_profiles create_execution_context create_runtime_config",
        trt.IExecutionContext: "set_optimization_profile_async set_input_shape set_device_memory "
        "update_device_memory_size_for_shapes set_tensor_address execute_async_v3 is_stream_capturable",
        trt.IRuntimeConfig: "set_execution_context_allocation_strategy create_runtime_cache "
        "set_runtime_cache dynamic_shapes_kernel_specialization_strategy cuda_graph_strategy",
        trt.IRuntimeCache: "serialize deserialize",
        trt.ExecutionContextAllocationStrategy: "USER_MANAGED",
        trt.DynamicShapesKernelSpecializationStrategy: "EAGER",
        trt.CudaGraphStrategy: "DISABLED",
        trt.EngineValidity: "VALID SUBOPTIMAL INVALID",
        trt.TensorIOMode: "INPUT OUTPUT",
        trt.DataType: "FLOAT HALF",
        trt.ILogger.Severity: "INTERNAL_ERROR ERROR WARNING INFO",
    }
    for owner, names in wanted.items():
        for name in names.split():
            assert hasattr(owner, name), f"{owner.__name__}.{name}"
