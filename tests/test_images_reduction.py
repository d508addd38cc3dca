"""Reducing: exact on what is flat or unchanged, near Pillow's filter, the same bits in blocks of any size."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from helpers import traced_peak
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from yonos_trt.errors import ConfigError
from yonos_trt.images.reduction import reduce_rows, taps

sizes = st.integers(1, 40)


def reduced(picture: Any, height: int, width: int, cuts: tuple[int, ...] = ()) -> Any:
    edges = [0, *sorted(cuts), len(picture)]
    blocks = [picture[a:b] for a, b in pairwise(edges)]
    return np.concatenate(list(reduce_rows(blocks, picture.shape[:2], (height, width))))


@given(sizes, sizes, st.data())
def test_blocks_of_any_size_give_the_same_bits_and_the_size_is_exact(h: int, w: int, data: Any) -> None:
    out_h, out_w = data.draw(st.integers(1, h)), data.draw(st.integers(1, w))
    dtype = data.draw(st.sampled_from([np.uint8, np.uint16, np.float32]))
    rng = np.random.default_rng(h * 41 + w)
    picture = (
        rng.integers(0, 255, (h, w, 3)).astype(dtype)
        if dtype != np.float32
        else rng.random((h, w, 3), np.float32)
    )
    cuts = tuple(data.draw(st.lists(st.integers(0, h), max_size=5)))
    whole = reduced(picture, out_h, out_w)
    assert whole.shape == (out_h, out_w, 3)
    assert whole.dtype == dtype
    assert np.array_equal(whole, reduced(picture, out_h, out_w, cuts))
    grey = reduced(np.ascontiguousarray(picture[..., 1]), out_h, out_w, cuts)
    assert np.array_equal(grey, whole[..., 1])


@given(sizes, sizes, st.data())
def test_a_flat_picture_stays_as_it_is(h: int, w: int, data: Any) -> None:
    value = data.draw(st.integers(0, 65535))
    picture = np.full((h, w, 3), value, np.uint16)
    assert (reduced(picture, data.draw(st.integers(1, h)), data.draw(st.integers(1, w))) == value).all()


def test_the_same_size_is_the_picture_itself() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (17, 23, 3)).astype(np.uint8)
    assert np.array_equal(reduced(picture, 17, 23), picture)


@pytest.mark.parametrize(("height", "width"), [(75, 60), (64, 40), (99, 79), (100, 33), (7, 5)])
def test_it_is_the_antialiased_cubic_of_pillow(height: int, width: int) -> None:
    picture = np.random.default_rng(1).random((100, 80)).astype(np.float32)
    other = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
    assert np.abs(reduced(picture, height, width) - np.clip(other, 0, 1)).max() < 2e-5


def test_frequencies_that_the_smaller_picture_cannot_hold_are_gone() -> None:
    stripes = np.zeros((64, 96), np.uint8)
    stripes[:, ::2] = 255
    assert reduced(stripes, 64, 36)[:, 3:-3].std() < 8  # subsampling would give bands of 0 and 255


def test_memory_does_not_grow_with_the_height() -> None:
    def rows(height: int) -> Iterator[Any]:
        block = np.full((16, 2000, 3), 99, np.uint8)
        for _ in range(height // 16):
            yield block

    def reduce(height: int) -> None:
        for out in reduce_rows(rows(height), (height, 2000), (height * 5 // 8, 1250)):
            assert out[0, 0, 0] == 99

    taps.cache_clear()
    small, large = (traced_peak(lambda height=height: reduce(height)) for height in (320, 1280))
    assert large < 1.1 * small < 30 << 20


@pytest.mark.parametrize("count", [0, 11])
def test_enlarging_and_nothing_are_refused(count: int) -> None:
    with pytest.raises(ConfigError, match="cannot be reduced"):
        taps(10, count)
