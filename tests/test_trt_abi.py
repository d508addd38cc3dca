"""The whole back end through its real C interfaces: NVIDIA's bindings, our launcher, addresses.

The driver calls go into the stand-in libcuda, whose device memory is host memory; the kernels are the CUDA
ones: the launcher reads the PTX of the package, and the stand-in runs their threads on the host. Only the
networks are NumPy functions.
"""

from __future__ import annotations

import ctypes
import logging
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compiled import emulated_kernels, kernel_launcher
from copy_networks import CopyTensorRT, numpy_backend
from fake_tensorrt import FakeTensorRT, write_engines
from helpers import load_script
from test_cuda import load_standin
from test_trt import picture, plan_for, reference, upscale

from yonos_trt import pipeline
from yonos_trt.cuda.driver import CudaDriver
from yonos_trt.cuda.kernels import CudaKernels, kernel_codes
from yonos_trt.cuda.launches import SIGNATURES, DevicePicture, Finish, Gather
from yonos_trt.errors import CudaError, MissingExtraError
from yonos_trt.tiles.color import MODES
from yonos_trt.tiles.plan import TilePlan
from yonos_trt.trt.backend import TrtBackend

SOURCES = Path(__file__).resolve().parents[1] / "csrc"


@pytest.fixture(scope="module")
def libraries() -> tuple[Any, Path]:
    return load_standin(), kernel_launcher()


class AtOnce:
    """What the fake networks need of a device, on host addresses: work is done when it is asked for."""

    def enqueue(self, name: str, stream: int, run: Callable[[], None], **_: Any) -> None:
        assert stream
        run()

    def bytes_at(self, address: int, nbytes: int) -> np.ndarray:
        return np.ctypeslib.as_array((ctypes.c_ubyte * nbytes).from_address(address))

    def array_at(self, address: int, shape: Sequence[int], dtype: Any) -> np.ndarray:
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.bytes_at(address, nbytes).view(dtype).reshape(shape)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_the_picture_through_ctypes_and_emulated_kernels_has_the_numpy_backends_bits(
    tmp_path: Path, libraries: tuple[Any, Path], dtype: Any, precision: Any
) -> None:
    standin, kernels = libraries
    write_engines(tmp_path, precisions=(precision,))
    before = standin.standin_live()
    backend = TrtBackend(
        tmp_path,
        driver=CudaDriver(),
        kernels=CudaKernels(kernels, driver=standin.path),
        module=FakeTensorRT(AtOnce()),  # type: ignore[arg-type]
        graphs=False,
    )
    for (height, width), fix in (((17, 29), "none"), ((40, 23), "wavelet"), ((19, 21), "adain")):
        image = picture(height, width, dtype)
        plan = plan_for(image, tile_px=48, batch=2)
        got = upscale(backend, image, plan, seed=2**40 + 3, color_fix=fix)
        half = precision == "fp16"
        assert np.array_equal(got, reference(image, plan, half=half, seed=2**40 + 3, color_fix=fix)), fix
        if fix == "wavelet":
            assert_a_band_is_queued_before_the_last_is_waited_for(standin, backend, image, plan)
    backend.close()
    assert standin.standin_live() == before


def assert_a_band_is_queued_before_the_last_is_waited_for(
    standin: Any, backend: TrtBackend, image: np.ndarray, plan: TilePlan
) -> None:
    """By the driver's own calls: rows and flags of band n + 1 go out before the wait for band n."""
    start = standin.standin_order_length()
    upscale(backend, image, plan, color_fix="none")
    calls = [standin.standin_order(i) for i in range(start, standin.standin_order_length())]
    found = [name for name in calls if name in (b"cuMemcpyDtoHAsync", b"cuEventSynchronize")]
    sent, waited = [b"cuMemcpyDtoHAsync"] * 2, [b"cuEventSynchronize"]
    assert plan.bands > 2
    assert found == sent + (sent + waited) * (plan.bands - 1) + waited


def test_the_declared_signatures_are_those_of_the_header() -> None:
    kinds = {
        "void*": "p",
        "char*": "s",
        "int64_t*": "p",
        "int32_t*": "p",
        "float*": "p",
        "double*": "p",
        "int": "i",
        "int64_t": "l",
    }
    kinds |= {"uint64_t": "u"}
    letters = {ctypes.c_void_p: "p", ctypes.c_int: "i", ctypes.c_int64: "l", ctypes.c_uint64: "u"}
    text = (SOURCES / "tiles_abi.h").read_text()
    declared = {}
    for part in text.split("YONOS_EXPORT int ")[1:]:
        name, arguments = part.split(";")[0].split("(", 1)
        words = [a.replace("const ", "").split() for a in arguments.rsplit(")", 1)[0].split(",")]
        declared[name] = "".join(kinds[w[0]] for w in words)
    assert declared.pop("yonos_open") == "spsi"
    assert declared == {name: "".join(letters[a] for a in args) for name, args in SIGNATURES.items()}


def test_sizes_out_of_range_are_an_error_that_names_the_call(libraries: tuple[Any, Path]) -> None:
    kernels = CudaKernels(libraries[1], driver=libraries[0].path)
    with pytest.raises(CudaError, match=r"yonos_gather with .*answered CUDA error 1"):
        kernels.launch(
            Gather(
                DevicePicture(0, 0, 0, "uint8", 0),
                origins=0,
                out=0,
                count=1,
                tile_h_px=1,
                tile_w_px=1,
                scale=1,
                lr=False,
                half=False,
            ),
            stream=1,
        )


def test_a_library_that_is_missing_or_foreign_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match="nvcc is not needed") as caught:
        CudaKernels(tmp_path / "libyonos_cuda.so")
    assert "libyonos_cuda.so" in str(caught.value)
    assert "--force-reinstall --no-deps" in str(caught.value)
    with pytest.raises(MissingExtraError, match="yonos_gather"):
        CudaKernels("libc.so.6")


# ---------------------------------------------------------------------------------------------------------
# The kernels' code


def test_native_code_for_other_gpus_is_passed_over_for_the_ptx(
    tmp_path: Path, libraries: tuple[Any, Path], caplog: pytest.LogCaptureFixture
) -> None:
    standin, launcher = libraries
    library = Path(shutil.copy(launcher, tmp_path))
    (tmp_path / "tiles.fatbin").write_bytes(b"\x50\xed\x55\xba" + bytes(60))
    assert [name for name, _ in kernel_codes(library)] == ["tiles.fatbin", "tiles.ptx"]
    with caplog.at_level(logging.DEBUG, logger="yonos_trt.cuda.kernels"):
        CudaKernels(library, driver=standin.path)
    assert "run from tiles.ptx" in caplog.text


def test_kernels_that_no_code_fits_say_what_the_driver_answered(libraries: tuple[Any, Path]) -> None:
    standin, library = libraries
    codes = [("one", b"\x50\xed\x55\xba" + bytes(60)), ("two", b"not PTX")]
    with pytest.raises(CudaError, match=r"one: error 209; two: error 218 \(no .target line\)\), expected"):
        CudaKernels(library, codes=codes, driver=standin.path)
    with pytest.raises(CudaError, match=r"tiles\.ptx: error 3"):
        CudaKernels(library, driver="libcuda-that-does-not-exist.so.1")
    with pytest.raises(CudaError, match=r"tiles\.ptx: error 500.*too old"):
        CudaKernels(library, driver="libc.so.6")
    CudaKernels(library, driver=standin.path)  # for the tests that follow


def test_the_ptx_is_for_compute_capability_7_5_and_cuda_12() -> None:
    text = ptx().TARGET.read_text()
    assert ".version 8.0\n.target sm_75\n" in text
    assert text.count(".visible .entry yonos_") == 38


def ptx() -> Any:
    return load_script(SOURCES / "ptx.py")


def test_the_ptx_was_made_from_these_sources() -> None:
    made_from = ptx().TARGET.read_text().split("\n", 1)[0]
    assert made_from == f"// sources {ptx().digest()}", "run: python csrc/ptx.py"


@pytest.mark.slow
def test_nvcc_makes_this_very_ptx() -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    said = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    if "release 13.0" not in said:
        pytest.skip("another nvcc than 13.0, whose PTX is in the package")
    assert ptx().compiled() == ptx().TARGET.read_text()


def test_finish_through_ctypes(libraries: tuple[Any, Path]) -> None:
    from yonos_trt.tiles.kernels import finalize

    kernels = CudaKernels(emulated_kernels())
    acc = np.random.default_rng(0).uniform(-1.5, 1.5, (3, 9, 3)).astype(np.float32)
    affine = np.array([[0.5, 1, 2], [0.1, 0, -0.25]], np.float32)
    for dtype in (np.uint8, np.uint16, np.float32):
        out = np.empty((3, 7, 3), dtype)
        for fix in (None, affine):
            kernels.launch(
                Finish(
                    acc.ctypes.data,
                    9,
                    out.ctypes.data,
                    dtype=np.dtype(dtype).name,
                    rows=3,
                    width_px=7,
                    affine=0 if fix is None else fix.ctypes.data,
                ),
                stream=0,
            )
            rows = acc[:, :7] if fix is None else acc[:, :7] * fix[0] + fix[1]
            assert np.array_equal(out, finalize(np.ascontiguousarray(rows), dtype))


# ---------------------------------------------------------------------------------------------------------
# Networks that only copy: the same check here on the stand-in and, with a GPU, on the real thing


def copy_backend(engine_dir: Path, driver: CudaDriver, kernels: CudaKernels, **options: Any) -> TrtBackend:
    return TrtBackend(engine_dir, driver=driver, kernels=kernels, module=CopyTensorRT(driver), **options)


def test_copying_networks_through_the_driver_give_the_numpy_backends_bits(
    tmp_path: Path, libraries: tuple[Any, Path]
) -> None:
    standin, kernels = libraries
    manifest = write_engines(tmp_path)
    image = picture(30, 41)
    plan = plan_for(image, batch=2)
    for lanes in (1, 3):
        backend = copy_backend(
            tmp_path,
            CudaDriver(),
            CudaKernels(kernels, driver=standin.path),
            lanes=lanes,
            graphs=False,
        )
        for fix in MODES:
            got = upscale(backend, image, plan, seed=3, color_fix=fix)
            twin = numpy_backend(manifest)
            expected = pipeline.upscale_array(image, twin, plan=plan, seed=3, color_fix=fix)
            assert np.array_equal(got, expected), fix
        backend.close()


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_on_a_gpu_lanes_and_graphs_change_no_bit(tmp_path: Path, lanes: int, graphs: bool) -> None:
    manifest = write_engines(tmp_path, capability=())
    image = picture(120, 333)
    plan = plan_for(image, tile_px=128, batch=2)
    backend = copy_backend(tmp_path, CudaDriver(), CudaKernels(), lanes=lanes, graphs=graphs)
    for fix in MODES:
        options: dict[str, Any] = {"plan": plan, "seed": 3, "color_fix": fix}
        expected = pipeline.upscale_array(image, numpy_backend(manifest), **options)
        for _ in range(4):
            assert np.array_equal(pipeline.upscale_array(image, backend, **options), expected), fix
    backend.close()
