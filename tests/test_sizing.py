"""Any factor and any size: exact sizes, the next larger model, streamed as whole, alpha and depth kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import picture, traced_peak
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from yonos_trt.backends.choose import shipped_model
from yonos_trt.cli.main import cli
from yonos_trt.errors import ConfigError, InputError
from yonos_trt.images import Picture, read_image
from yonos_trt.images.reduction import reduce_rows
from yonos_trt.sizing import Sizing
from yonos_trt.sr import SR

sides = st.integers(1, 5000)


# ---------------------------------------------------------------------------------------------------------
# The size


@given(sides, sides, sides, sides)
def test_inside_is_nowhere_larger_and_outside_nowhere_smaller(h: int, w: int, box_h: int, box_w: int) -> None:
    inside = Sizing(size=(box_h, box_w)).of(h, w)
    outside = Sizing(size=(box_h, box_w), fit="outside").of(h, w)
    assert inside[0] <= box_h and inside[1] <= box_w and (inside[0] == box_h or inside[1] == box_w)  # noqa: PT018
    assert outside[0] >= box_h and outside[1] >= box_w and (outside[0] == box_h or outside[1] == box_w)  # noqa: PT018
    assert Sizing(size=(box_h, box_w), fit="exact").of(h, w) == (box_h, box_w)
    for got_h, got_w in (inside, outside):  # proportions are kept to half a px
        assert abs(got_h * w - got_w * h) <= max(h, w) / 2 or 1 in (got_h, got_w)


@given(sides, sides, sides)
def test_the_longer_side_is_as_long_as_asked(h: int, w: int, edge: int) -> None:
    got = Sizing(long_edge=edge).of(h, w)
    assert max(got) == edge
    assert got[h < w] >= 1


@pytest.mark.parametrize(
    "wish",
    [
        {},
        {"factor": 2, "long_edge": 3},
        {"factor": 0.5},
        {"factor": float("nan")},
        {"long_edge": 0},
        {"size": (0, 3)},
        {"size": (3, 1 << 21)},
        {"size": (3, 4), "fit": "cover"},
    ],
)
def test_wishes_that_say_nothing_are_refused(wish: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Sizing(**wish)


# ---------------------------------------------------------------------------------------------------------
# SR


@pytest.mark.parametrize(("scale", "model"), [(1, 2), (1.5, 2), (2, 2), (3, 4), (2.5, 4), (4, 4), (5, 8)])
def test_a_factor_picks_the_next_larger_model(scale: float, model: int) -> None:
    sr = SR(scale=scale)
    assert (sr.scale, sr.factor) == (model, scale)
    assert sr.size_of(10, 7) == (round(10 * scale + 1e-9), round(7 * scale + 1e-9))


@settings(max_examples=25)
@given(h=st.integers(1, 24), w=st.integers(1, 24), scale=st.floats(1, 4))
def test_any_factor_gives_its_exact_size_and_is_the_reduced_model(
    engine_dir: Path, h: int, w: int, scale: float
) -> None:
    image = picture(h, w)
    with SR(engine_dir, scale=scale, threads=1) as sr:
        out = sr.upscale(image)
    size = (max(1, int(h * scale + 0.5)), max(1, int(w * scale + 0.5)))
    assert out.shape == (*size, 3)
    with SR(engine_dir, threads=1) as sr:
        full = sr.upscale(image)
        assert np.array_equal(sr.upscale(image, size=size), out)
    if size != full.shape[:2]:
        full = np.concatenate(list(reduce_rows([full], full.shape[:2], size)))
    assert np.array_equal(out, full)


def test_the_models_own_factor_has_the_same_bits_as_ever(engine_dir: Path) -> None:
    image = picture(33, 21)
    with SR(engine_dir, threads=1) as sr, SR(engine_dir, scale=4, threads=1) as same:
        expected = sr.upscale(image)
        assert np.array_equal(same.upscale(image), expected)
        assert np.array_equal(sr.upscale(image, size=(132, 84)), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_kind_depth_and_alpha_are_kept(engine_dir: Path, dtype: Any, channels: int) -> None:
    image = picture(20, 30, channels=channels, dtype=dtype)
    with SR(engine_dir, threads=1) as sr:
        out = sr.upscale(image, size=Sizing(long_edge=77))
        batch = sr.upscale(np.stack([image.reshape(20, 30, -1)] * 2), size=(51, 77))
    assert (out.shape[:2], out.dtype) == ((51, 77), dtype)
    assert np.array_equal(batch[1], out.reshape(51, 77, -1))


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize(("channels", "dtype"), [(3, np.uint8), (4, np.uint16), (1, np.uint16)])
def test_streamed_is_the_whole_bit_for_bit(
    engine_dir: Path, tmp_path: Path, suffix: str, channels: int, dtype: Any
) -> None:
    pytest.importorskip("tifffile", reason="needs '.[images]'")
    source = read_image_of(picture(70, 41, channels=channels, dtype=dtype))
    with SR(engine_dir, scale=2.7, threads=1, tile_px=64) as sr:
        for stream in ("always", "never"):
            sr.upscale_file(source, tmp_path / f"{stream}{suffix}", rows=stream)
    always, never = (read_image(tmp_path / f"{s}{suffix}") for s in ("always", "never"))
    assert always.rgb.shape == (189, 111, 3)
    assert np.array_equal(always.rgb, never.rgb)
    assert (always.alpha is None) == (channels != 4)
    if always.alpha is not None:
        assert np.array_equal(always.alpha, never.alpha)


def read_image_of(array: Any) -> Picture:
    from yonos_trt.images import from_array

    return from_array(array[..., 0] if array.shape[2:] == (1,) else array)


def test_streaming_to_a_size_needs_no_more_memory_for_a_taller_picture(
    engine_dir: Path, tmp_path: Path
) -> None:
    width = 96

    def peak(height: int) -> int:
        source = read_image_of(picture(height, width))
        with SR(engine_dir, threads=1, tile_px=128) as sr:
            sr.upscale_file(source, tmp_path / "warm.png", rows="always", size=(9, 9))
            size = height * 3, width * 3
            return traced_peak(
                lambda: sr.upscale_file(source, tmp_path / "out.png", rows="always", size=size)
            )

    grown = (1024 - 256) * 3 * width * 3 * 3  # bytes of the result
    assert peak(1024) - peak(256) < 0.4 * grown  # an index a row, and the source's own sums


def test_a_size_takes_the_smallest_shipped_model_that_makes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with SR(threads=1) as sr:
        image = picture(8, 8)
        assert sr.upscale(image, size=(16, 15)).shape == (16, 15, 3)
        assert list(sr._others) == ["lite-x2"]
        assert sr.upscale(image, size=(33, 20)).shape == (33, 20, 3)
        assert list(sr._others) == ["lite-x2", "lite-x8"]
        assert sr.upscale(image, size=(3, 2)).shape == (3, 2, 3)
        with pytest.raises(InputError, match="8 x 8 px to 65x65"):
            sr.upscale(image, size=(65, 65))
        others = list(sr._others.values())
    assert all(other._closed for other in others)
    with SR(scale=4, threads=1) as fixed, pytest.raises(InputError, match="enlarges by 4"):
        fixed.upscale(image, size=(33, 33))
    assert shipped_model(2.01).name == "lite-x4"


def test_what_is_larger_than_the_model_makes_is_refused(engine_dir: Path) -> None:
    with pytest.raises(ConfigError, match="expected 1 to 4"):
        SR(engine_dir, scale=4.5)
    with pytest.raises(ConfigError, match="expected 1 to 4"):
        SR(engine_dir, scale=0.5)


def test_a_copy_in_another_process_keeps_the_factor(engine_dir: Path) -> None:
    import pickle

    assert pickle.loads(pickle.dumps(SR(scale=2.5))).factor == 2.5


# ---------------------------------------------------------------------------------------------------------
# The command line


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli, ["upscale", "--threads", "1", *map(str, arguments)])


@pytest.mark.parametrize(
    ("options", "name", "size"),
    [
        (("-s", "3"), "a_x3.png", (90, 60)),
        (("-s", "2.5"), "a_x2.5.png", (75, 50)),
        (("--outscale", "3.5"), "a_x3.5.png", (105, 70)),
        (("-s", "4.0"), "a_x4.png", (120, 80)),
        (("--long-edge", "100"), "a_100px.png", (100, 67)),
        (("--size", "100x50"), "a_100x50.png", (75, 50)),
        (("--size", "100x50", "--fit", "outside"), "a_100x50.png", (100, 67)),
        (("--size", "100X50", "--fit", "exact"), "a_100x50.png", (100, 50)),
    ],
)
def test_the_command_line_makes_any_size(
    engine_dir: Path, tmp_path: Path, options: tuple[str, ...], name: str, size: tuple[int, int]
) -> None:
    Image.fromarray(picture(20, 30, channels=4)).save(tmp_path / "a.png", dpi=(300, 300))
    result = run("-m", engine_dir, "-i", tmp_path / "a.png", *options)
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / name) as made:
        assert (made.size, made.mode) == (size, "RGBA")
        assert round(made.info["dpi"][0]) == 300


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (("-s", "2", "--long-edge", "9"), 2, "-s and --long-edge name different sizes"),
        (("--size", "100"), 2, "expected WIDTHxHEIGHT"),
        (("-s", "0.5"), 2, "0.5 is not in the range"),
        (("-s", "nan"), 2, "no number to count with"),
        (("-s", "5"), 2, "expected 1 to 4"),
        (("--long-edge", "121"), 1, "30 x 20 px to 121px is 4.05 times as large"),
    ],
)
def test_sizes_that_cannot_be_made_are_refused_and_nothing_is_left(
    engine_dir: Path, tmp_path: Path, options: tuple[str, ...], code: int, text: str
) -> None:
    Image.fromarray(picture(20, 30)).save(tmp_path / "a.png")
    result = run("-m", engine_dir, "-i", tmp_path / "a.png", *options)
    assert result.exit_code == code, result.output
    assert text in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


# ---------------------------------------------------------------------------------------------------------
# Video


@pytest.mark.parametrize(
    ("options", "name", "size"),
    [
        (("-s", "2.5"), "clip_x2.5.mkv", (160, 120)),
        (("--long-edge", "101"), "clip_101px.mkv", (100, 76)),  # 101 x 76 made even, nowhere larger
        (("--size", "99x99", "--fit", "exact", "--pix-fmt", "yuv444p"), "clip_99x99.mkv", (99, 99)),
    ],
)
def test_videos_are_made_any_size_even_where_the_codec_wants_it(
    engine_dir: Path, tmp_path: Path, options: tuple[str, ...], name: str, size: tuple[int, int]
) -> None:
    av = pytest.importorskip("av", reason="needs PyAV: pip install '.[video]'")
    from video_clips import write_clip

    write_clip(tmp_path / "clip.mkv", frames=2)
    arguments = ["video", "-m", str(engine_dir), "--threads", "1", "-i", str(tmp_path / "clip.mkv"), *options]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    with av.open(str(tmp_path / name)) as made:
        stream = made.streams.video[0]
        assert (stream.width, stream.height) == size
        assert len(list(made.decode(stream))) == 2


def test_stabilising_and_a_size_are_refused_together(engine_dir: Path, tmp_path: Path) -> None:
    arguments = ["video", "-m", str(engine_dir), "-i", str(tmp_path / "a.mkv"), "--stabilize", "-s", "3"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert "--stabilize needs the model's own factor" in result.stderr
