"""`SR` inside somebody's program: bytes, file objects, batches, processes, types."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import picture
from PIL import Image

from yonos_trt.errors import ClosedError, ConfigError, InputError
from yonos_trt.sr import SR, UpscaledImage

REPOSITORY = Path(__file__).resolve().parents[1]


def png(array: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


# ---------------------------------------------------------------------------------------------------------
# Bytes and file objects


@pytest.mark.parametrize(
    "make", [bytes, bytearray, memoryview, io.BytesIO, lambda raw: io.BufferedReader(io.BytesIO(raw))]
)
def test_bytes_and_file_objects_are_files(sr: SR, make: Callable[[bytes], Any], tmp_path: Path) -> None:
    image = picture(20, 30)
    got = sr.upscale(make(png(image)))
    assert isinstance(got, UpscaledImage)
    np.testing.assert_array_equal(got.to_array(), sr.upscale(image))
    sr.upscale_file(make(png(image)), tmp_path / "out.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out.png")), got.to_array())


def test_a_file_object_is_read_from_where_it_stands_and_stays_open(sr: SR, tmp_path: Path) -> None:
    (tmp_path / "two").write_bytes(b"header" + png(picture(10, 10)))
    with (tmp_path / "two").open("rb") as stream:
        stream.seek(6)
        assert sr.upscale(stream).width_px == 40
        assert not stream.closed


@pytest.mark.parametrize(
    ("source", "match"),
    [
        (io.StringIO("text"), "mode 'rb'"),
        (b"", "bytes"),
        (b"no picture", "bytes"),
        (io.BytesIO(), "bytes"),
        (3, "got int, expected a path"),
        (None, "got NoneType"),
        ([b"x"], "got list"),
    ],
)
def test_what_is_no_picture_is_refused(sr: SR, source: Any, match: str, tmp_path: Path) -> None:
    for call in (lambda: sr.upscale(source), lambda: sr.upscale_file(source, tmp_path / "x.png")):
        with pytest.raises(InputError, match=match):
            call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["png", "JPEG", "webp", "tiff"])
def test_results_are_saved_to_file_objects(sr: SR, format: str, tmp_path: Path) -> None:
    result = sr.upscale(png(picture(20, 30)))
    stream = io.BytesIO(b"before")
    stream.seek(0, io.SEEK_END)
    assert result.save(stream, format=format) is stream
    result.save(tmp_path / f"x.{format}", format=format)
    assert stream.getvalue() == b"before" + (tmp_path / f"x.{format}").read_bytes()


def test_nothing_is_written_to_a_file_object_when_saving_fails(sr: SR) -> None:
    stream = io.BytesIO()
    rgba = sr.upscale(png(picture(20, 30, channels=4)))
    for options, match in (
        ({}, "name the format"),
        ({"format": "bmp3"}, "bmp3"),
        ({"format": "jpg"}, "alpha"),
    ):
        with pytest.raises(InputError, match=match) as caught:
            rgba.save(stream, **options)  # type: ignore[call-overload]
        assert "yonos-" not in str(caught.value)
    with pytest.raises(InputError, match="got int to save to"):
        rgba.save(3, format="png")  # type: ignore[call-overload]
    assert stream.getvalue() == b""


# ---------------------------------------------------------------------------------------------------------
# Batches


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_batch_is_its_pictures(sr: SR, dtype: Any, channels: int) -> None:
    batch = np.stack([picture(12, 18, dtype=dtype, seed=k, channels=channels) for k in range(3)])
    got = sr.upscale(batch)
    assert got.shape == (3, 48, 72, channels)
    assert got.dtype == batch.dtype
    for one, result in zip(batch, got, strict=True):
        np.testing.assert_array_equal(sr.upscale(one), result)
    if channels in (2, 4):
        dropped = sr.upscale(batch, alpha="drop")
        assert dropped.shape == (3, 48, 72, channels - 1)
        np.testing.assert_array_equal(dropped[1], sr.upscale(batch[1], alpha="drop"))


def test_batches_of_other_libraries_and_empty_ones(sr: SR) -> None:
    torch = pytest.importorskip("torch")
    batch = np.stack([picture(12, 18, seed=k) for k in range(2)])
    got = sr.upscale(torch.from_numpy(batch))
    assert isinstance(got, torch.Tensor)
    np.testing.assert_array_equal(got.numpy(), sr.upscale(batch))
    assert sr.upscale(batch[:0]).shape == (0, 48, 72, 3)
    assert sr.upscale(np.zeros((0, 5, 5, 4), np.uint8), alpha="drop").shape == (0, 20, 20, 3)


@pytest.mark.parametrize("shape", [(2, 3, 20, 30), (2, 20, 30, 5), (2, 0, 30, 3), (1, 2, 20, 30, 3), (7,)])
def test_shapes_that_are_no_batch_are_refused(sr: SR, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="shape"):
        sr.upscale(np.zeros(shape, np.uint8))


def test_a_stream_for_what_is_not_on_a_device_is_refused(sr: SR) -> None:
    for image in (picture(5, 5), png(picture(5, 5)), Image.fromarray(picture(5, 5))):
        with pytest.raises(ConfigError, match="only arrays in device memory"):
            sr.upscale(image, stream=1)


# ---------------------------------------------------------------------------------------------------------
# Life cycle, processes


def test_a_second_with_says_what_to_do(engine_dir: Path) -> None:
    sr = SR(engine_dir)
    with sr, pytest.raises(ClosedError, match="make a new one for each block"):
        sr.__enter__()
    for use in (sr.__enter__, sr.open, lambda: sr.upscale(picture(5, 5)), lambda: pickle.dumps(sr)):
        with pytest.raises(ClosedError, match="make a new one"):
            use()
    inner = SR(engine_dir)
    with inner:
        with pytest.raises(ClosedError), inner:
            pass
        inner.upscale(picture(5, 5))  # the refused block has closed nothing


def test_a_copy_has_the_options_and_engines_of_its_own(
    engine_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(engine_dir.parent)
    options = {
        "tile_px": 32,
        "overlap_px": 4,
        "seed": 7,
        "color_fix": "none",
        "threads": 1,
        "memory_limit_mb": 900,
    }
    image = picture(20, 20)
    with SR("engine", **options) as sr:
        wanted = sr.upscale(image)
        raw = pickle.dumps(sr)
        copies = [copy.copy(sr), copy.deepcopy(sr)]
        assert len(raw) < 2000
    monkeypatch.chdir("/")
    for other in (pickle.loads(raw), *copies):
        assert isinstance(other, SR)
        assert other.info() | {"engine_dir": ""} == SR(engine_dir, **options).info() | {"engine_dir": ""}
        np.testing.assert_array_equal(other.upscale(image), wanted)  # not closed with the first one
        other.close()


def test_a_shipped_model_travels_by_name() -> None:
    for sr in (SR(scale=2), SR("lite-x2")):
        state = sr.__getstate__()
        assert state["engine_dir"] in (None, "lite-x2")
        assert pickle.loads(pickle.dumps(sr)).scale == 2


def _upscaled(sr: SR, image: Any) -> Any:
    return sr.upscale(image)


def test_an_sr_goes_to_spawned_processes(sr: SR) -> None:
    image = picture(16, 16)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        got = pool.apply(_upscaled, (sr, image))
    np.testing.assert_array_equal(got, sr.upscale(image))


# ---------------------------------------------------------------------------------------------------------
# Types

SNIPPET = """
import io
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import yonos_trt
from yonos_trt.sr import UpscaledImage

sr = yonos_trt.SR()
a: NDArray[np.uint8] = sr.upscale(np.zeros((4, 4, 3), np.uint8))
b: NDArray[np.float32] = sr.upscale(np.zeros((2, 4, 4, 3), np.float32), alpha="drop")
c: UpscaledImage = sr.upscale("photo.jpg")
d: UpscaledImage = sr.upscale(Path("photo.jpg"))
e: UpscaledImage = sr.upscale(b"raw")
with open("photo.jpg", "rb") as f:
    g: UpscaledImage = sr.upscale(f)
h: Image.Image = sr.upscale(Image.new("RGB", (4, 4)))
p: Path = c.save("x.png")
s: io.BytesIO = c.save(io.BytesIO(), format="png")
reveal_type(sr.upscale(np.zeros((4, 4, 3), np.uint16)))
wrong: Path = sr.upscale("photo.jpg")
"""


def test_types_say_what_comes_out(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "snippet.py").write_text(SNIPPET)
    command = [
        sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir",
        str(REPOSITORY / ".mypy_cache" / "snippet"), "--config-file", str(REPOSITORY / "pyproject.toml"),
    ]  # fmt: skip
    done = subprocess.run(
        [*command, "snippet.py"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
        env={"PATH": str(Path(sys.executable).parent), "HOME": str(tmp_path), "MYPYPATH": str(REPOSITORY)},
    )  # fmt: skip
    lines = done.stdout.splitlines()
    revealed = [line for line in lines if "note: Revealed" in line]
    assert len(revealed) == 1, lines
    assert "_16Bit" in revealed[0]
    errors = [line for line in lines if ": error:" in line]
    assert len(errors) == 1, lines
    assert '"UpscaledImage", variable has type "Path"' in errors[0]


def test_all_three_packages_carry_their_types() -> None:
    for package in ("yonos_trt", "export/yonos_export", "train/yonos_train"):
        assert (REPOSITORY / package / "py.typed").is_file()
