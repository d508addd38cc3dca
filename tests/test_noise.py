"""The noise field: known answers of Philox, statistics, and independence of tiles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yonos_trt.tiles import noise

# Known-answer vectors published with Random123 (kat_vectors, philox4x32 10): counter, key, answer.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_philox_gives_the_published_answers(
    counter: tuple[int, ...], key: tuple[int, int], answer: tuple[int, ...]
) -> None:
    a, b, c, d = (np.array([word], np.uint32) for word in counter)
    assert tuple(int(word[0]) for word in noise.philox((a, b, c, d), key)) == answer


def test_polynomials_agree_with_numpy() -> None:
    u = np.linspace(2.0**-25, 1, 200_001, dtype=np.float32)
    exact = u.astype(np.float64)
    np.testing.assert_allclose(noise.log(u), np.log(exact), rtol=3e-7, atol=0)
    cosine, sine = noise.cos_sin_turn(u)
    np.testing.assert_allclose(cosine, np.cos(2 * np.pi * exact), atol=1.5e-7, rtol=0)
    np.testing.assert_allclose(sine, np.sin(2 * np.pi * exact), atol=1.5e-7, rtol=0)


def test_field_is_standard_normal_and_uncorrelated() -> None:
    z = noise.field(3, channels=8, y0_lat=0, x0_lat=0, h_lat=256, w_lat=256).astype(np.float64)
    n = z.size
    assert abs(z.mean()) < 4 / np.sqrt(n)
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs((z**4).mean() - 3) < 4 * np.sqrt(96 / n)
    tails = np.array([(np.abs(z) > limit).mean() for limit in (1, 2, 3)])
    np.testing.assert_allclose(tails, [0.3173, 0.0455, 0.0027], rtol=0.05)
    for shifted in (np.roll(z, 1, axis=1), np.roll(z, 1, axis=2), np.roll(z, 1, axis=0)):
        assert abs((z * shifted).mean()) < 4 / np.sqrt(n)


@given(st.integers(0, noise.LARGEST_SEED), st.integers(0, 40), st.integers(0, 40), st.integers(1, 9))
def test_a_place_has_one_value_whatever_rectangle_asks(seed: int, y: int, x: int, channels: int) -> None:
    whole = noise.field(seed, channels=channels, y0_lat=0, x0_lat=0, h_lat=48, w_lat=50)
    part = noise.field(seed, channels=channels, y0_lat=y, x0_lat=x, h_lat=8, w_lat=10)
    assert np.array_equal(whole[:, y : y + 8, x : x + 10], part)


def test_overlapping_tiles_see_the_same_noise() -> None:
    tiles = noise.tiles(9, np.array([0, 4]), np.array([2, 6]), channels=4, h_lat=8, w_lat=8)
    assert np.array_equal(tiles[0, :, 4:, 4:], tiles[1, :, :4, :4])


def test_seeds_differ_in_both_halves_of_the_key() -> None:
    def draw(seed: int) -> np.ndarray:
        return noise.field(seed, channels=4, y0_lat=0, x0_lat=0, h_lat=16, w_lat=16)

    fields = [draw(seed) for seed in (0, 1, 2**32, 2**32 + 1)]
    for i, first in enumerate(fields):
        assert np.array_equal(first, draw((0, 1, 2**32, 2**32 + 1)[i]))
        for second in fields[i + 1 :]:
            assert abs((first * second).mean()) < 0.15


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seed": -1}, "seed must lie in"),
        ({"seed": 2**64}, "seed must lie in"),
        ({"channels": 0}, "at least 1"),
        ({"y0_lat": -1}, "latent rows"),
        ({"x0_lat": 2**32}, "latent columns"),
        ({"out": np.zeros((1, 1, 1), np.float32)}, "out must be float32"),
    ],
)
def test_values_out_of_range_are_refused(change: dict[str, object], text: str) -> None:
    arguments = {"seed": 1, "channels": 4, "y0_lat": 0, "x0_lat": 0, "h_lat": 4, "w_lat": 4} | change
    with pytest.raises(ValueError, match=text):
        noise.field(**arguments)
