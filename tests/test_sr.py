"""`SR`: what comes in goes out, life cycle, choice of runtime, memory, files, and the shipped model."""

from __future__ import annotations

import io
import math
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import edit_manifest, make_engine_dir, picture, psnr_db
from PIL import Image

import yonos_trt
from yonos_trt.backends.ort import OrtBackend
from yonos_trt.cli.file_stages import FileStages
from yonos_trt.cli.jobs import Job
from yonos_trt.cuda.probe import Device, DriverFacts, probe_driver
from yonos_trt.engine.manifest import load_manifest
from yonos_trt.errors import (
    ClosedError,
    ConfigError,
    EngineDeviceError,
    EngineIntegrityError,
    EngineNotFoundError,
    InputError,
    MissingExtraError,
    NumericError,
    OutOfMemoryError,
)
from yonos_trt.host import usable_cpus
from yonos_trt.images import from_array, read_image
from yonos_trt.planning import WorkingBytes, plan_picture
from yonos_trt.sr import SR, UpscaledImage

# ---------------------------------------------------------------------------------------------------------
# What comes in goes out


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 1), (9, 7, 2), (9, 7, 3), (9, 7, 4)])
def test_arrays_come_back_with_their_shape_and_dtype(sr: SR, dtype: Any, shape: tuple[int, ...]) -> None:
    image = (
        picture(9, 7, dtype=dtype, channels=4)[..., : shape[2]]
        if len(shape) == 3
        else picture(9, 7, dtype=dtype)[..., 0]
    )
    out = sr.upscale(image)
    assert isinstance(out, np.ndarray)
    assert out.dtype == dtype
    assert out.shape == (36, 28, *shape[2:])
    assert out.flags.owndata or out.base.flags.owndata


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_pil_images_come_back_in_their_mode(sr: SR, mode: str) -> None:
    image = Image.fromarray(picture(20, 24, channels=4), "RGBA").convert("RGB").convert(mode)
    out = sr.upscale(image)
    assert isinstance(out, Image.Image)
    assert (out.mode, out.size) == (mode, (96, 80))


def test_torch_tensors_come_back_as_torch_tensors(sr: SR) -> None:
    torch = pytest.importorskip("torch")
    image = picture(10, 11)
    out = sr.upscale(torch.from_numpy(image))
    assert isinstance(out, torch.Tensor)
    assert out.dtype == torch.uint8
    np.testing.assert_array_equal(out.numpy(), sr.upscale(image))


def test_arrays_of_the_array_api_come_back_through_their_namespace(sr: SR) -> None:
    class Wrapped:
        def __init__(self, array: Any) -> None:
            self.array = np.asarray(array)

        def __dlpack__(self, **options: Any) -> Any:
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return self.array.__dlpack_device__()

        def __array_namespace__(self) -> Any:
            return SimpleNamespace(from_dlpack=lambda other: Wrapped(np.from_dlpack(other)))

    out = sr.upscale(Wrapped(picture(7, 6)))
    assert isinstance(out, Wrapped)
    np.testing.assert_array_equal(out.array, sr.upscale(picture(7, 6)))


def test_an_array_whose_library_cannot_be_found_is_refused(sr: SR) -> None:
    class Alone:
        def __dlpack__(self) -> Any:
            raise AssertionError("must not be read")

        def __dlpack_device__(self) -> tuple[int, int]:
            return (1, 0)

    with pytest.raises(InputError, match=r"no from_dlpack.*numpy\.from_dlpack"):
        sr.upscale(Alone())


def test_a_tensor_that_cannot_be_exported_is_an_input_error(sr: SR) -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(InputError, match="DLPack"):
        sr.upscale(torch.zeros(4, 4, 3, requires_grad=True))
    with pytest.raises(InputError, match="DLPack"):  # lies on no device that DLPack knows
        sr.upscale(torch.zeros(4, 4, 3, device="meta"))


def test_an_array_on_a_device_is_refused_with_the_remedy(sr: SR) -> None:
    class OnDevice:
        def __dlpack__(self) -> Any:
            raise AssertionError("must not be read")

        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 0)

    with pytest.raises(InputError, match=r"device type 2.*\.cpu\(\)"):
        sr.upscale(OnDevice())


def test_a_path_gives_a_picture_that_saves_itself(sr: SR, tmp_path: Path) -> None:
    image = Image.fromarray(picture(12, 10))
    image.save(tmp_path / "a.png", dpi=(72, 72))
    for source in (tmp_path / "a.png", str(tmp_path / "a.png")):
        out = sr.upscale(source)
        assert isinstance(out, UpscaledImage)
        assert (out.height_px, out.width_px) == (48, 40)
        assert "40 x 48" in repr(out)
    path = out.save(tmp_path / "b.png")
    np.testing.assert_array_equal(np.asarray(Image.open(path)), out.to_array())
    np.testing.assert_array_equal(np.asarray(out.to_pil()), out.to_array())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_a_picture_gives_the_same_as_its_pixels(sr: SR, tmp_path: Path) -> None:
    Image.fromarray(picture(12, 10)).save(tmp_path / "a.png")
    got = sr.upscale(read_image(tmp_path / "a.png"))
    np.testing.assert_array_equal(got.to_array(), sr.upscale(picture(12, 10)))


def test_the_result_owns_its_memory_and_the_input_is_left_alone(sr: SR) -> None:
    image = picture(16, 16)
    before = image.copy()
    first = sr.upscale(image)
    kept = first.copy()
    sr.upscale(picture(16, 16, seed=9))
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("thing", [None, 3, [[1, 2]], object()])
def test_other_things_are_refused_by_their_type(sr: SR, thing: Any) -> None:
    with pytest.raises(InputError, match=f"got {type(thing).__name__}, .* NumPy array"):
        sr.upscale(thing)


@pytest.mark.parametrize("thing", [None, np.zeros((4, 4, 3), np.uint8), Image.new("RGB", (4, 4))])
def test_a_file_is_made_of_what_the_message_lists(sr: SR, tmp_path: Path, thing: Any) -> None:
    with pytest.raises(InputError, match=f"got {type(thing).__name__}, .* file object, or a Picture$"):
        sr.upscale_file(thing, tmp_path / "out.png")


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((3, 4, 5), np.uint8),
        np.zeros((3,), np.uint8),
        np.zeros((2, 3, 4, 5), np.uint8),
        np.zeros((4, 4, 3), np.float64),
        np.full((4, 4, 3), np.nan, np.float32),
        np.full((4, 4, 3), 7.0, np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_bad_arrays_are_input_errors(sr: SR, image: Any) -> None:
    with pytest.raises(InputError):
        sr.upscale(image)


def test_bad_files_name_path_and_reason(sr: SR, tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.fromarray(picture(40, 40)).save(whole, "PNG")
    cases = {
        "empty.png": b"",
        "text.png": b"hello",
        "cut.png": whole.getvalue()[:400],
    }
    for name, raw in cases.items():
        (tmp_path / name).write_bytes(raw)
    (tmp_path / "folder.png").mkdir()
    for name in (*cases, "folder.png", "absent.png"):
        with pytest.raises(InputError, match=name):
            sr.upscale(tmp_path / name)


# -- Alpha


def _cutout(hidden: int) -> Any:
    image = np.zeros((24, 24, 4), np.uint8)
    image[..., :3] = hidden
    image[8:16, 8:16] = (200, 120, 40, 255)
    return image


def test_colour_under_transparency_does_not_bleed(sr: SR) -> None:
    black, white = sr.upscale(_cutout(0)), sr.upscale(_cutout(255))
    np.testing.assert_array_equal(black, white)


def test_alpha_modes(sr: SR) -> None:
    image = _cutout(0)
    bicubic = sr.upscale(image, alpha="bicubic")[..., 3]
    model = sr.upscale(image, alpha="model")[..., 3]
    assert psnr_db(bicubic, model) > 20
    assert (bicubic != model).any()
    assert sr.upscale(image, alpha="drop").shape == (96, 96, 3)
    with pytest.raises(ConfigError, match="bicubic, model, drop"):
        sr.upscale(image, alpha="keep")


# ---------------------------------------------------------------------------------------------------------
# Results do not depend on how the work is cut


def test_lanes_and_runs_are_bit_identical(engine_dir: Path) -> None:
    image = picture(50, 61)
    results = []
    for lanes in (1, 2, 5, 1):
        with SR(engine_dir, lanes=lanes, seed=4) as sr:
            results.append(sr.upscale(image))
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


def test_another_seed_another_picture(engine_dir: Path) -> None:
    image = picture(30, 30)
    assert (SR(engine_dir, seed=1).upscale(image) != SR(engine_dir, seed=2).upscale(image)).any()


def test_calls_from_several_threads_give_the_same_results(sr: SR) -> None:
    images = [picture(20 + k, 31, seed=k) for k in range(4)]
    alone = [sr.upscale(image) for image in images]
    together: list[Any] = [None] * 4

    def work(k: int) -> None:
        together[k] = sr.upscale(images[k])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)


# ---------------------------------------------------------------------------------------------------------
# Life cycle


def test_construction_reads_the_manifest_only(engine_dir: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(engine_dir, tmp_path / "engine"))
    raw = bytearray((directory / "step.onnx").read_bytes())
    raw[10] ^= 1
    (directory / "step.onnx").write_bytes(raw)
    sr = SR(directory)
    assert sr.info()["backend"] is None
    with pytest.raises(EngineIntegrityError, match="altered"):
        sr.open()


def test_close_may_be_called_twice_and_use_after_it_raises(engine_dir: Path) -> None:
    sr = SR(engine_dir)
    sr.upscale(picture(4, 4))
    assert sr.info()["backend"] == "OrtBackend"
    sr.close()
    sr.close()
    with pytest.raises(ClosedError, match="closed"):
        sr.upscale(picture(4, 4))
    with pytest.raises(ClosedError, match="closed"), sr:
        pass


def test_with_opens_and_closes(engine_dir: Path) -> None:
    with SR(engine_dir) as sr:
        assert sr.info()["backend"] == "OrtBackend"
    with pytest.raises(ClosedError):
        sr.upscale("a.png")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"runtime": "cuda"}, "auto, onnx, openvino, tensorrt, tensorrt-rtx"),
        ({"color_fix": "yes"}, "wavelet, adain, none"),
        ({"seed": -1}, "seed"),
        ({"lanes": 0}, "lanes is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"device": -1}, "device is -1"),
        ({"memory_limit_mb": 0}, "memory_limit_mb"),
        ({"device_memory_limit_mb": 0}, "device_memory_limit_mb"),
        ({"batch": 100_000_000}, "batch is 100000000, expected 1 to 1024"),
        ({"batch": 0}, "batch is 0"),
        ({"lanes": 65}, "lanes is 65, expected at most 64"),
        ({"precision": "int8"}, "fp32, fp16, bf16"),
        ({"tile_px": 65}, "multiple of 8 from 16 to 512"),
        ({"tile_px": 1024}, "multiple of 8 from 16 to 512"),
        ({"overlap_px": 40}, "at most half"),
        ({"batch": 0}, "batch"),
        ({"scale": 5}, "expected 1 to 4"),
        ({"scale": "2"}, "scale is '2', expected a number"),
        ({"scale": True}, "scale is True, expected a number"),
        ({"providers": "CPUExecutionProvider"}, r"\['CPUExecutionProvider'\]"),
        *(
            ({name: value}, f"{name} is {value!r}, expected a whole number")
            for name, value in (
                ("seed", 1.5), ("seed", "3"), ("seed", None), ("seed", math.nan), ("device", "cpu"),
                ("lanes", "2"), ("threads", 1.5), ("batch", "4"), ("tile_px", True), ("overlap_px", "8"),
                ("memory_limit_mb", math.nan), ("memory_limit_mb", 300.5), ("max_pixels", math.inf),
                ("device_memory_limit_mb", "1"),
            )
        ),
    ],
)  # fmt: skip
def test_bad_options_are_refused_at_construction(
    engine_dir: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        SR(engine_dir, **options)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.float64, float])
def test_whole_numbers_of_any_type_are_options_of_that_number(engine_dir: Path, kind: type) -> None:
    options = {"seed": 3, "lanes": 1, "threads": 1, "tile_px": 64, "overlap_px": 16, "batch": 2,
               "memory_limit_mb": 200, "max_pixels": 100, "device": 0}  # fmt: skip
    image = picture(12, 10)
    expected = SR(engine_dir, **options).upscale(image, size=(30, 20))
    with SR(engine_dir, **{name: kind(value) for name, value in options.items()}) as sr:
        np.testing.assert_array_equal(sr.upscale(image, size=(kind(30), kind(20))), expected)
        assert len(list(sr.stream([image], max_in_flight=kind(1)))) == 1
    with pytest.raises(ConfigError, match=r"max_in_flight is 1\.5, expected a whole number"):
        SR(engine_dir).stream([image], max_in_flight=1.5)  # type: ignore[arg-type]


def test_a_directory_that_is_no_engine_directory_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(EngineNotFoundError, match="yonos-export"):
        SR(tmp_path)


def test_a_scale_that_is_not_shipped_lists_what_is() -> None:
    with pytest.raises(EngineNotFoundError, match=r"no shipped model enlarges by 8\.5"):
        SR(scale=8.5)


# ---------------------------------------------------------------------------------------------------------
# Runtimes


def test_auto_takes_onnx_where_there_is_no_engine(sr: SR) -> None:
    assert sr.info()["backend"] == OrtBackend.__name__


def _with_engines(engine_dir: Path, target: Path) -> Path:
    directory = Path(shutil.copytree(engine_dir, target))

    def change(document: dict[str, Any]) -> None:
        for stage in document["stages"].values():
            stage["artifacts"].append(
                stage["artifacts"][0] | {"runtime": "tensorrt-rtx", "precision": "fp16"}
            )

    edit_manifest(directory, change)
    return directory


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_a_named_runtime_without_artifacts_names_the_command_that_builds_them(
    engine_dir: Path, runtime: str
) -> None:
    with pytest.raises(EngineNotFoundError) as caught:
        SR(engine_dir, runtime=runtime).upscale(picture(4, 4))
    assert f"yonos-export {engine_dir} --engine-dir {engine_dir} --fp16 --runtime {runtime}" in str(
        caught.value
    )


def _no_gpu() -> DriverFacts:
    return DriverFacts(None, (), "no driver library")


def test_a_named_runtime_without_gpu_is_refused_and_auto_goes_on(
    engine_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("yonos_trt.backends.choose.probe_driver", _no_gpu)
    directory = _with_engines(engine_dir, tmp_path / "engine")
    with pytest.raises(EngineDeviceError, match=r"needs an NVIDIA GPU.*no driver library.*runtime='onnx'"):
        SR(directory, runtime="tensorrt-rtx").open()
    with SR(directory) as sr:
        assert sr.info()["backend"] == "OrtBackend"


def test_a_gpu_without_the_library_names_the_extra(
    engine_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = DriverFacts("13.0", (Device(0, "Test GPU", "8.6", 1 << 30),), "")
    monkeypatch.setattr("yonos_trt.backends.choose.probe_driver", lambda: driver)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    directory = _with_engines(engine_dir, tmp_path / "engine")
    with pytest.raises(MissingExtraError, match=r"\.\[rtx\]"):
        SR(directory, runtime="tensorrt-rtx").open()


@pytest.mark.parametrize(("capability", "runtime"), [("8.6", "tensorrt-rtx"), ("9.0", "tensorrt")])
def test_auto_on_a_gpu_without_engines_says_what_to_build(
    engine_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capability: str,
    runtime: str,
) -> None:
    driver = DriverFacts("13.0", (Device(0, "Test GPU", capability, 1 << 30),), "")
    monkeypatch.setattr("yonos_trt.backends.choose.probe_driver", lambda: driver)
    SR(engine_dir).open().close()
    command = f"yonos-export {engine_dir} -o {engine_dir} --fp16 --runtime {runtime};"
    assert "GPU 0 (Test GPU) is not used" in caplog.text
    assert command in caplog.text
    caplog.clear()
    SR("lite-x2").open().close()  # not into the installed package
    assert "yonos-export lite-x2 -o engines/lite-x2 --fp16" in caplog.text
    caplog.clear()
    for options in ({"runtime": "onnx"}, {"providers": ["CPUExecutionProvider"]}):
        SR(engine_dir, **options).open().close()
    monkeypatch.setattr("yonos_trt.backends.choose.probe_driver", _no_gpu)
    SR(engine_dir).open().close()
    assert caplog.text == ""


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx", "openvino"])
def test_providers_belong_to_onnx_runtime(engine_dir: Path, runtime: Any) -> None:
    with pytest.raises(ConfigError, match=f"providers are ONNX Runtime's, but runtime is '{runtime}'"):
        SR(engine_dir, runtime=runtime, providers=["CPUExecutionProvider"])


def test_the_probe_of_the_driver_answers_on_any_machine() -> None:
    driver = probe_driver()
    assert bool(driver.devices) != bool(driver.problem)


# ---------------------------------------------------------------------------------------------------------
# Memory


def test_plan_says_tiles_and_memory(sr: SR) -> None:
    planned = sr.plan(100, 50)
    assert (planned.tiles.height_px, planned.tiles.width_px) == (400, 200)
    assert planned.host_bytes > 0


def test_the_memory_limit_shrinks_batch_then_lanes_then_tile(engine_dir: Path) -> None:
    manifest = load_manifest(engine_dir)

    def plan(limit: int | None, **options: Any) -> Any:
        return plan_picture(manifest, 300, 300, lanes=3, host_limit_bytes=limit, **options)

    plans = [plan(None)]
    for _ in range(4):
        plans.append(plan(plans[-1].host_bytes - 1))
        assert plans[-1].host_bytes < plans[-2].host_bytes
    shapes = [(p.tiles.tile_h_px, p.lanes) for p in plans]
    assert shapes == [(64, 3), (64, 2), (64, 1), (32, 1), (16, 1)]
    with pytest.raises(ConfigError, match="leave tile, overlap and batch to the planner"):
        plan(plans[2].host_bytes - 1, tile_px=64)
    with pytest.raises(ConfigError, match="the host memory limit is"):
        plan(plans[-1].host_bytes - 1)


def test_less_memory_gives_the_same_picture_in_smaller_tiles(engine_dir: Path) -> None:
    # The tiny model is exact 2 latent cells (4 px) away from a tile's border; the overlap is wider.
    image = picture(150, 150)
    whole = SR(engine_dir).upscale(image)
    lanes = SR(engine_dir, lanes=4).plan(150, 150)
    limit = -(-SR(engine_dir).plan(150, 150).host_bytes >> 20)
    assert lanes.host_bytes >> 20 >= limit
    limited = SR(engine_dir, lanes=4, memory_limit_mb=limit)
    assert limited.plan(150, 150).lanes < 4
    np.testing.assert_array_equal(limited.upscale(image), whole)


def test_tile_size_does_not_change_a_model_without_normalisation_visibly(engine_dir: Path) -> None:
    image = picture(80, 80)
    assert psnr_db(SR(engine_dir, tile_px=64).upscale(image), SR(engine_dir, tile_px=128).upscale(image)) > 55


def test_out_of_memory_halves_the_tile_and_goes_on(
    engine_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image = picture(90, 90)
    decode = OrtBackend.decode

    def short_of_memory(self: Any, z_0: Any, *, lane: int) -> Any:
        tiles = decode(self, z_0, lane=lane)
        if tiles.shape[0] * tiles.shape[2] > 32:
            raise OutOfMemoryError("decode", asked_bytes=tiles.nbytes)
        return tiles

    wanted = SR(engine_dir, tile_px=32).upscale(image)
    monkeypatch.setattr(OrtBackend, "decode", short_of_memory)
    with caplog.at_level("WARNING"):
        got = SR(engine_dir, batch=2).upscale(image)
    assert psnr_db(got, wanted) > 55
    assert [r.message.rsplit("tiles of at most ")[1] for r in caplog.records] == [
        "64 px, batch 1, for this picture and later ones",
        "32 px, batch 1, for this picture and later ones",
    ]
    monkeypatch.setattr(OrtBackend, "decode", lambda self, z, lane: 1 / 0 if z is None else _raise_oom())
    with pytest.raises(OutOfMemoryError):
        SR(engine_dir).upscale(image)


@pytest.mark.parametrize("color_fix", ["wavelet", "none", "adain"])
def test_after_memory_ran_out_the_finished_rows_stay_and_later_pictures_are_planned_smaller(
    engine_dir: Path, monkeypatch: pytest.MonkeyPatch, color_fix: str, caplog: pytest.LogCaptureFixture
) -> None:
    image = picture(150, 60)  # a canvas of 600 x 240: many rows of tiles
    decode, decoded = OrtBackend.decode, []

    def short_of_memory(self: Any, z_0: Any, *, lane: int) -> Any:
        tiles = decode(self, z_0, lane=lane)
        decoded.append(tiles.shape[2])
        if tiles.shape[2] > 32 and decoded.count(tiles.shape[2]) > 30:
            raise MemoryError if color_fix == "none" else OutOfMemoryError("decode")
        return tiles

    with SR(engine_dir, color_fix=color_fix, tile_px=64, threads=1) as sr:
        large = sr.upscale(image)
        small = SR(engine_dir, color_fix=color_fix, tile_px=32, threads=1).upscale(image)
        all_small = (tiles := SR(engine_dir, tile_px=32).plan(150, 60).tiles).bands * len(tiles.xs)
        monkeypatch.setattr(OrtBackend, "decode", short_of_memory)
        got = sr.upscale(image)
        ran = decoded.count(32)
        if color_fix == "adain":  # nothing is finished before the last row
            assert ran == all_small
            np.testing.assert_array_equal(got, small)
        else:
            other = np.flatnonzero((got != large).any(axis=(1, 2)))
            kept = int(other[0]) if len(other) else len(got)  # rows that are as before
            assert kept > 200
            np.testing.assert_array_equal(got[kept:], small[kept:])
            assert ran < 0.8 * all_small
        decoded.clear()
        caplog.clear()
        np.testing.assert_array_equal(sr.upscale(image), small)
        assert set(decoded) == {32}
        assert not caplog.records
        assert sr.plan(150, 60).tiles.tile_h_px == 32


def test_host_memory_that_numpy_cannot_get_is_our_error(
    engine_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SR(engine_dir) as sr:
        monkeypatch.setattr(OrtBackend, "gather", lambda *_, **__: np.empty((1 << 60,), np.uint8))
        with pytest.raises(OutOfMemoryError, match="Unable to allocate"):
            sr.upscale(picture(20, 20))
    with SR(engine_dir) as sr:
        huge = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (1 << 22, 1 << 22, 3))
        with pytest.raises(OutOfMemoryError, match="row by row") as caught:
            sr._array(huge, None, size_px=(1 << 24, 1 << 24))
        assert caught.value.asked_bytes == 3 * 16 << 44


def test_device_memory_is_not_compared_with_the_hosts(
    engine_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with SR(engine_dir) as sr:
        monkeypatch.setattr(sr.backend, "working_bytes", lambda *_, **__: WorkingBytes(1 << 20, 1 << 45))
        planned = sr.plan(40, 40)
        assert (planned.host_bytes, planned.device_bytes) == (1 << 20, 1 << 45)
        # the weights of large engines exceed what the host has free, the picture does not
        sr.upscale_file(from_array(picture(40, 40)), tmp_path / "small.jpg")
        stages = FileStages(sr)
        job = Job(tmp_path / "in.png", tmp_path / "out.jpg")
        assert stages.needed_bytes(job, from_array(picture(40, 40))) < stages.free_bytes()


def test_more_threads_than_cpus_are_lowered_with_a_warning(
    engine_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING"):
        sr = SR(engine_dir, threads=2000)
    assert sr.threads == usable_cpus()
    assert f"threads is 2000, lowered to the {usable_cpus()} CPUs" in caplog.text
    with sr:
        assert sr.backend.threads == usable_cpus()  # type: ignore[attr-defined]


def _raise_oom() -> Any:
    raise OutOfMemoryError("decode")


# ---------------------------------------------------------------------------------------------------------
# Files


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_a_streamed_file_holds_the_same_pixels(sr: SR, tmp_path: Path, channels: int, suffix: str) -> None:
    if suffix == ".tiff":
        pytest.importorskip("tifffile")
    pixels = picture(70, 45, channels=channels)
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(tmp_path / "a.png")
    sr.upscale_file(tmp_path / "a.png", tmp_path / f"whole{suffix}", rows="never")
    sr.upscale_file(tmp_path / "a.png", tmp_path / f"rows{suffix}", rows="always")
    a, b = read_image(tmp_path / f"whole{suffix}"), read_image(tmp_path / f"rows{suffix}")
    np.testing.assert_array_equal(a.rgb, b.rgb)
    with pytest.warns(DeprecationWarning, match=r"is now rows="):
        sr.upscale_file(tmp_path / "a.png", tmp_path / f"old{suffix}", stream="always")
    assert (tmp_path / f"old{suffix}").read_bytes() == (tmp_path / f"rows{suffix}").read_bytes()
    assert (a.alpha is None) == (b.alpha is None)
    if a.alpha is not None and b.alpha is not None:
        np.testing.assert_array_equal(a.alpha, b.alpha)


def test_a_result_that_does_not_fit_is_streamed_or_refused(
    sr: SR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(picture(40, 40)).save(tmp_path / "a.png")
    monkeypatch.setattr("yonos_trt.session.available_bytes", lambda: 1000)
    with pytest.raises(InputError, match=r"cannot be written row by row; formats that can: .*\.png"):
        sr.upscale_file(tmp_path / "a.png", tmp_path / "a.jpg")
    assert not (tmp_path / "a.jpg").exists()
    sr.upscale_file(tmp_path / "a.png", tmp_path / "b.png")
    monkeypatch.undo()
    np.testing.assert_array_equal(read_image(tmp_path / "b.png").rgb, sr.upscale(picture(40, 40)))


def test_streaming_refuses_what_needs_the_whole_picture(engine_dir: Path, tmp_path: Path) -> None:
    Image.fromarray(picture(20, 20, channels=4)).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="color_fix='adain' needs the whole picture"):
        SR(engine_dir, color_fix="adain").upscale_file(tmp_path / "a.png", tmp_path / "b.png", rows="always")
    with pytest.raises(ConfigError, match="alpha='model' needs the whole picture"):
        SR(engine_dir).upscale_file(tmp_path / "a.png", tmp_path / "b.png", rows="always", alpha="model")
    with pytest.raises(ConfigError, match="auto, always or never"):
        SR(engine_dir).upscale_file(tmp_path / "a.png", tmp_path / "b.png", rows="yes")  # type: ignore[arg-type]
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("stream", ["never", "always"])
def test_a_failing_file_leaves_the_old_one_and_no_part(tmp_path: Path, stream: Any) -> None:
    directory = make_engine_dir(tmp_path / "engine", nan_stage="decoder")
    Image.fromarray(picture(20, 20)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"old")
    with pytest.raises(NumericError):
        SR(directory).upscale_file(tmp_path / "a.png", tmp_path / "b.png", rows=stream)
    assert (tmp_path / "b.png").read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png", "engine"]


def test_a_target_that_cannot_be_written_is_refused_before_the_work(
    sr: SR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(picture(20, 20, channels=4)).save(tmp_path / "a.png")
    monkeypatch.setattr(OrtBackend, "encode", lambda *_, **__: pytest.fail("work was started"))
    for target in ("b.xyz", "b.jpg", "absent/b.png"):
        with pytest.raises(InputError):
            sr.upscale_file(tmp_path / "a.png", tmp_path / target)


def test_importing_the_package_and_naming_sr_needs_no_third_party_but_numpy_and_msgspec() -> None:
    assert yonos_trt.SR is SR
    assert "torch" not in vars(sys.modules["yonos_trt.sr"])
    assert os.fspath(SR.__module__) == "yonos_trt.sr"


# -- The limit of declared pixels -------------------------------------------------------------------------


def test_limit_of_pixels_is_refused_before_the_work_and_its_remedy_works(
    engine_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(path)
    with SR(engine_dir, max_pixels=599) as sr:
        for attempt in (lambda: sr.upscale(path), lambda: sr.upscale_file(path, tmp_path / "y.png")):
            with pytest.raises(
                InputError, match=r"declares 30 x 20 pixels, the limit is 599; .*raise max_pixels"
            ):
                attempt()
        assert sr.upscale(np.zeros((20, 30, 3), np.uint8)).shape[0] > 20  # arrays are there already
    for enough in (600, None):
        with SR(engine_dir, max_pixels=enough) as sr:
            sr.upscale_file(path, tmp_path / "y.png")
    with pytest.raises(ConfigError, match="max_pixels is 0"):
        SR(engine_dir, max_pixels=0)


# ---------------------------------------------------------------------------------------------------------
# MemoryError at every stage


def _memory_error(*_: Any, **__: Any) -> Any:
    raise MemoryError("of the test")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("yonos_trt.session", "open_backend"),
        ("yonos_trt.engine.onnx_graph", "read_file"),
        ("yonos_trt.images", "read_image"),
        ("yonos_trt.images", "check_output"),
        ("yonos_trt.images", "write_image"),
        ("yonos_trt.images", "upscale_alpha"),
        ("yonos_trt.sr", "from_array"),
        ("yonos_trt.sr", "to_array"),
        ("yonos_trt.pipeline", "batches"),
        ("yonos_trt.backends.host", "RowColorFix"),
        ("yonos_trt.backends.host", "HostCanvas"),
    ],
)
def test_a_memory_error_of_any_stage_is_ours(
    engine_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, name: str
) -> None:
    image = picture(20, 20, channels=4)
    Image.fromarray(image).save(tmp_path / "in.png")
    monkeypatch.setattr(sys.modules[module], name, _memory_error)
    calls = {
        "file": lambda sr: sr.upscale_file(tmp_path / "in.png", tmp_path / "out.png"),
        "save": lambda sr: sr.upscale(str(tmp_path / "in.png")).save(tmp_path / "out.png"),
        "array": lambda sr: sr.upscale(image),
    }
    messages = []
    for call in calls.values():
        (tmp_path / "out.png").unlink(missing_ok=True)
        try:
            call(SR(engine_dir, threads=1))
        except OutOfMemoryError as error:
            messages.append(str(error))
        else:
            continue
        assert not (tmp_path / "out.png").exists()
    assert messages
    assert all("of the test" in message for message in messages)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("limit_mib", [450, 700])
def test_many_threads_under_a_memory_limit_end(engine_dir: Path, limit_mib: int) -> None:
    program = """
import resource, sys
import numpy as np
import yonos_trt
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]) << 20,) * 2)
try:
    with yonos_trt.SR(sys.argv[1], threads=2000) as sr:
        print(sr.upscale(np.zeros((40, 40, 3), np.uint8)).shape)
except (yonos_trt.OutOfMemoryError, yonos_trt.ConfigError):  # too few threads, or too little memory
    print("ours")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(engine_dir), str(limit_mib)],
        capture_output=True, text=True, timeout=100, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.stdout.strip() in ("ours", "(160, 160, 3)"), done.stderr
