"""Degradations: reproducible per sample, kernels with their defining properties, pairs of one draw."""

# ruff: noqa: E402  (imports follow the skip for installations without torch)

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")

from PIL import Image
from scipy import ndimage
from yonos_train.blur import BlurRanges, bell_kernel, blur, draw_kernel, sinc_kernel
from yonos_train.degrade import Degradation, StageRanges, degrade, degrade_pair, drawn_kind

KINDS = ["bicubic", "average", "light", "mild", "realesrgan", "lens", "camera", "mixed"]


def batch(n: int = 4, side: int = 48) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 3, 12, 12, generator=g)
    x = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)
    return (x * 255).round() / 127.5 - 1


# Kernels


@pytest.mark.parametrize("shape", ["gaussian", "generalised", "plateau"])
def test_isotropic_kernels_sum_to_one_and_are_symmetric(shape: str) -> None:
    k = bell_kernel(13, 1.7, 1.7, 0.0, shape=shape, beta=1.4)  # type: ignore[arg-type]
    assert k.sum() == pytest.approx(1, abs=1e-6)
    for turned in (k.T, k[::-1], k[:, ::-1]):
        np.testing.assert_allclose(k, turned, atol=1e-8)
    assert k[6, 6] == k.max()


def test_gaussian_kernel_has_the_asked_covariance() -> None:
    """Second moments of the sampled kernel give back sigma and rotation."""
    angle, sx, sy = 0.5, 3.0, 1.2
    k = bell_kernel(41, sx, sy, angle).astype(np.float64)
    axis = np.arange(41) - 20
    xx, yy = np.meshgrid(axis, axis, indexing="xy")
    measured = np.array(
        [[(k * xx * xx).sum(), (k * xx * yy).sum()], [(k * xx * yy).sum(), (k * yy * yy).sum()]]
    )
    c, s = np.cos(angle), np.sin(angle)
    rotation = np.array([[c, -s], [s, c]])
    np.testing.assert_allclose(measured, rotation @ np.diag([sx**2, sy**2]) @ rotation.T, rtol=1e-3)


def test_exponent_one_makes_the_generalised_kernel_gaussian() -> None:
    np.testing.assert_allclose(
        bell_kernel(9, 2.0, 1.0, 0.3, shape="generalised", beta=1.0), bell_kernel(9, 2.0, 1.0, 0.3)
    )


def test_plateau_is_flatter_on_top_than_the_gaussian() -> None:
    plateau, gauss = (bell_kernel(15, 3.0, 3.0, 0.0, shape=s, beta=2.0)[7] for s in ("plateau", "gaussian"))
    assert plateau[9] / plateau[7] > gauss[9] / gauss[7]


def test_sinc_kernel_passes_low_and_stops_high_frequencies() -> None:
    k = sinc_kernel(21, np.pi / 2)
    response = np.abs(np.fft.fft2(np.pad(k, ((0, 43), (0, 43)))))
    assert response[0, 4] == pytest.approx(1, abs=0.1)  # pi / 8
    assert response[0, 28] < 0.1  # 7 pi / 8
    assert k.min() < 0  # it rings


def test_blur_equals_direct_convolution_and_keeps_flat_pictures() -> None:
    rng = np.random.default_rng(0)
    image = rng.random((3, 17, 11), dtype=np.float32)
    kernel = rng.random((5, 5), dtype=np.float32)
    kernel /= kernel.sum()
    padded = np.pad(image, ((0, 0), (2, 2), (2, 2)), mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))
    expected = np.einsum("chwyx,yx->chw", windows, kernel[::-1, ::-1])
    np.testing.assert_allclose(blur(image, kernel), expected, atol=1e-5)
    flat = np.full((3, 4, 4), 0.25, np.float32)  # smaller than the kernel
    np.testing.assert_allclose(blur(flat, sinc_kernel(21, 2.0)), flat, atol=1e-5)


def test_drawn_kernels_have_their_frequencies() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_kernel(rng, BlurRanges(probability=0.75, sinc=0.4)) for _ in range(800)]
    kernels = [k for k in drawn if k is not None]
    assert len(kernels) / 800 == pytest.approx(0.75, abs=0.05)
    assert np.mean([k.min() < 0 for k in kernels]) == pytest.approx(0.4, abs=0.06)
    assert {k.shape[0] for k in kernels} == set(range(7, 22, 2))


def test_bad_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="odd size"):
        bell_kernel(4, 1.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="cutoff"):
        sinc_kernel(7, 4.0)


# Degradations


def test_bicubic_is_pillows_bicubic() -> None:
    x = batch(1)
    pixels = ((x[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    expected = np.asarray(Image.fromarray(pixels).resize((12, 12), Image.Resampling.BICUBIC), dtype=np.int16)
    ours = ((degrade(x, 4, "bicubic", [0])[0] + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert np.abs(ours - expected).max() <= 1  # Pillow rounds once per direction


def test_average_is_the_block_mean() -> None:
    x = batch(1)
    expected = x.reshape(1, 3, 12, 4, 12, 4).mean((3, 5))
    assert (degrade(x, 4, "average", [0]) - expected).abs().max() <= 0.5 / 127.5 + 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_result_depends_on_the_samples_seed_only(kind: str, scale: int) -> None:
    x, seeds = batch(), [(5, i) for i in range(4)]
    whole = degrade(x, scale, kind, seeds)
    assert whole.shape == (4, 3, 48 // scale, 48 // scale)
    assert whole.dtype == torch.float32
    assert torch.equal(whole, degrade(x, scale, kind, seeds))
    for i in (3, 0):
        assert torch.equal(degrade(x[i : i + 1], scale, kind, seeds[i : i + 1])[0], whole[i])
    levels = (whole + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)
    assert whole.abs().max() <= 1


@pytest.mark.parametrize("kind", ["light", "mild", "realesrgan"])
def test_other_seeds_give_other_pictures(kind: str) -> None:
    x = batch(1).expand(6, -1, -1, -1)
    views = degrade(x, 2, kind, list(range(6)))
    assert len({view.numpy().tobytes() for view in views}) >= 5


@pytest.mark.parametrize("kind", KINDS)
def test_pair_holds_the_single_view_and_a_less_degraded_one(kind: str) -> None:
    x = batch(8)
    seeds = [(1, i) for i in range(8)]
    low, high = degrade_pair(x, 8, 4, kind, seeds)
    assert torch.equal(low, degrade(x, 8, kind, seeds))
    assert high.shape[-1] == 2 * low.shape[-1]

    def error(view: torch.Tensor) -> float:
        up = torch.nn.functional.interpolate(view, size=48, mode="bicubic", antialias=True)
        return (up - x).square().mean().item()

    assert error(high) < error(low)


def test_pair_shares_the_draw() -> None:
    """With noise only in the first stage, both views show the same noise field, sampled differently."""
    quiet = StageRanges(blur=BlurRanges(probability=0), resize=(0, 0, 1), noise=0, jpeg=0)
    noisy = StageRanges(
        blur=BlurRanges(probability=0), resize=(0, 0, 1), gaussian=1, gaussian_sigma=(40, 40), jpeg=0
    )
    config = Degradation("realesrgan", first=noisy, second=quiet, final_sinc=0)
    x = torch.zeros(6, 3, 48, 48)
    four, two = degrade_pair(x, 4, 2, config, list(range(6)))
    a, b = four.flatten(), torch.nn.functional.avg_pool2d(two, 2).flatten()
    assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.25
    other = torch.nn.functional.avg_pool2d(degrade(x, 2, config, list(range(6, 12))), 2).flatten()
    assert abs(torch.corrcoef(torch.stack([a, other]))[0, 1]) < 0.1


def test_jpeg_leaves_its_block_grid() -> None:
    """The first stage's real JPEG at quality 30 makes 8 px block borders rougher than block insides."""
    off = StageRanges(blur=BlurRanges(probability=0), resize=(0, 0, 1), noise=0, jpeg=0)
    jpeg = StageRanges(
        blur=BlurRanges(probability=0), resize=(0, 0, 1), noise=0, jpeg=1, jpeg_quality=(20, 20)
    )
    config = Degradation("realesrgan", first=jpeg, second=off, final_sinc=0)
    ramp = torch.linspace(-0.5, 0.5, 64).expand(1, 3, 64, 64) + 0.1 * torch.rand(1, 1, 64, 64)
    steps = degrade(ramp, 1, config, [0]).diff(dim=3).abs().mean((0, 1, 2))
    borders = steps[7::8].mean()
    insides = steps[torch.arange(63) % 8 != 7].mean()
    assert borders > 1.5 * insides


def test_noise_levels_are_as_asked() -> None:
    off = StageRanges(blur=BlurRanges(probability=0), resize=(0, 0, 1), noise=0, jpeg=0)
    grey = StageRanges(
        blur=BlurRanges(probability=0), resize=(0, 0, 1), gaussian=1, gaussian_sigma=(20, 20), grey=1, jpeg=0
    )
    config = Degradation("realesrgan", first=grey, second=off, final_sinc=0)
    noise = degrade(torch.zeros(1, 3, 64, 64), 1, config, [0])[0]
    assert noise.std().item() * 127.5 == pytest.approx(20, rel=0.05)
    assert torch.equal(noise[0], noise[1])
    shot = StageRanges(
        blur=BlurRanges(probability=0), resize=(0, 0, 1), gaussian=0, poisson_scale=(1, 1), grey=0, jpeg=0
    )
    config = Degradation("realesrgan", first=shot, second=off, final_sinc=0)
    noise = degrade(torch.zeros(1, 3, 64, 64), 1, config, [0])[0] / 2
    assert noise.var().item() == pytest.approx(0.5 / 64, rel=0.1)  # flat grey: 64 quanta, mean 1/2
    assert not torch.equal(noise[0], noise[1])


def test_mixed_keeps_its_shares() -> None:
    x = batch(1, 16).expand(200, -1, -1, -1)
    clean = degrade(x[:1], 2, "bicubic", [0])
    views = degrade(
        x, 2, Degradation(mix={"bicubic": 0.5, "light": 0.5}, light_blur=(1.0, 0.5)), list(range(200))
    )
    assert (views == clean).flatten(1).all(1).float().mean().item() == pytest.approx(0.5, abs=0.12)


def test_small_and_odd_pictures_survive_the_full_model() -> None:
    for h, w in ((8, 8), (8, 24), (40, 16)):
        out = degrade(torch.zeros(3, 3, h, w), 8, "realesrgan", [1, 2, 3])
        assert out.shape == (3, 3, h // 8, w // 8)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="kind must be one of"):
        degrade(batch(1), 2, "blurry", [0])
    with pytest.raises(ValueError, match="multiples of the scale"):
        degrade(batch(1, 50), 4, "bicubic", [0])
    with pytest.raises(ValueError, match="one seed per sample"):
        degrade(batch(2), 2, "light", [0])
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\)"):
        degrade(batch(1)[0], 2, "light", [0])
    with pytest.raises(ValueError, match="mix"):
        Degradation(mix={"light": 0.0})


# Camera


def test_a_mixture_by_name_is_drawn_in_its_shares_and_unknown_kinds_are_refused() -> None:
    x = batch(1).expand(200, -1, -1, -1)
    views = degrade(x, 2, {"bicubic": 0.25, "average": 0.75}, list(range(200)))
    sharp = degrade(x[:1], 2, "bicubic", [0])
    share = sum(torch.equal(view, sharp[0]) for view in views) / 200
    assert 0.15 < share < 0.35
    with pytest.raises(ValueError, match="expected kinds other than 'mixed'"):
        degrade(x[:1], 2, {"fog": 1.0}, [0])


def test_the_drawn_kind_is_the_one_a_sample_gets() -> None:
    x, mix = batch(1), {"bicubic": 0.5, "average": 0.5}
    kinds = {seed: drawn_kind(mix, seed) for seed in range(20)}
    assert set(kinds.values()) == set(mix)
    for seed, kind in kinds.items():
        assert torch.equal(degrade(x, 4, mix, [seed]), degrade(x, 4, kind, [seed]))
    assert drawn_kind("camera", 3) == "camera"


def test_kernels_of_lens_and_motion_have_their_size() -> None:
    from yonos_train.camera import disc_kernel, motion_kernel

    disc = disc_kernel(6.0).astype(np.float64)
    axis = np.arange(len(disc)) - len(disc) // 2
    assert disc.sum() == pytest.approx(1, abs=1e-6)
    assert np.sqrt((disc.sum(0) * axis**2).sum()) == pytest.approx(3.0, rel=0.06)  # R / 2 along an axis
    line = motion_kernel(8.0, 0.0).astype(np.float64)
    axis = np.arange(len(line)) - len(line) // 2
    assert line.sum() == pytest.approx(1, abs=1e-6)
    assert np.sqrt((line.sum(0) * axis**2).sum()) == pytest.approx(8 / np.sqrt(12), rel=0.06)
    assert np.sqrt((line.sum(1) * axis**2).sum()) < 0.01  # no width


def test_demosaiced_noise_is_correlated_between_neighbours_and_keeps_the_sensors_sites() -> None:
    from yonos_train.camera import demosaiced

    grain = np.random.default_rng(0).standard_normal((3, 128, 128)).astype(np.float32)
    left = demosaiced(grain, 0, 0)
    np.testing.assert_allclose(left[0, ::2, ::2], grain[0, ::2, ::2], atol=1e-6)  # red sites
    np.testing.assert_allclose(left[1, ::2, 1::2], grain[1, ::2, 1::2], atol=1e-6)  # green ones
    np.testing.assert_allclose(left[2, 1::2, 1::2], grain[2, 1::2, 1::2], atol=1e-6)
    for plane, white in zip(left, grain, strict=True):
        beside = np.corrcoef(plane[:, 1:].ravel(), plane[:, :-1].ravel())[0, 1]
        assert beside > 0.25
        assert abs(np.corrcoef(white[:, 1:].ravel(), white[:, :-1].ravel())[0, 1]) < 0.03


def test_every_range_of_the_camera_changes_the_picture() -> None:
    """Each step switched on alone differs from none; with none, the picture is the bicubic one."""
    from yonos_train.degradation import CameraRanges

    off = {"blur": 0, "motion": 0, "linear": 0, "enlarged": 0, "noise": 0, "sharpen": 0, "jpeg": 0}
    x = batch(1)

    def view(**on: object) -> torch.Tensor:
        camera = CameraRanges(**{**off, **on})  # type: ignore[arg-type]
        return degrade(x, 2, Degradation("camera", camera=camera), [5])

    plain = view()
    assert (plain - degrade(x, 2, "bicubic", [5])).abs().max() <= 2 / 127.5
    for name in off:
        assert not torch.equal(view(**{name: 1}), plain), name
    assert not torch.equal(view(noise=1, denoise=1), view(noise=1, denoise=0))
    assert not torch.equal(view(noise=1, mosaic=1), view(noise=1, mosaic=0))
    assert not torch.equal(view(jpeg=1, webp=1), view(jpeg=1, webp=0))
    assert not torch.equal(view(jpeg=1, webp=0, twice=1), view(jpeg=1, webp=0, twice=0))
    assert not torch.equal(view(blur=1, disc=1), view(blur=1, disc=0))


def test_a_stronger_lens_takes_more_detail() -> None:
    from yonos_train.degradation import CameraRanges

    x = batch(2, 96)
    still = {"motion": 0, "enlarged": 0, "noise": 0, "sharpen": 0, "jpeg": 0, "blur": 1, "linear": 0}
    detail = []
    for sigma in (0.3, 1.0, 2.0):
        camera = CameraRanges(**still, sigma_lr_px=(sigma, sigma))  # type: ignore[arg-type]
        view = degrade(x, 2, Degradation("camera", camera=camera), [1, 2])
        detail.append(float(view.diff(dim=-1).abs().mean()))
    assert detail[0] > 1.1 * detail[1] > 1.2 * detail[2]


def test_the_study_of_camera_pairs_measures_what_a_blur_keeps_of_each_frequency() -> None:
    from benchmarks.studies.camera_pairs import BANDS, kept_db

    sigma = 0.8  # LR pixels
    hr = np.random.default_rng(3).uniform(0, 255, (512, 512)).astype(np.float32)
    sharp, soft = (
        np.asarray(Image.fromarray(x).resize((128, 128), Image.Resampling.BICUBIC))
        for x in (hr, ndimage.gaussian_filter(hr, 4 * sigma, mode="wrap"))
    )
    middles = (BANDS[1:] + BANDS[:-1]) / 2
    gaussian = -20 * np.log10(np.e) * 2 * (np.pi * sigma) ** 2 * middles**2
    blurred = np.subtract(kept_db(hr, soft), kept_db(hr, sharp))
    np.testing.assert_allclose(blurred, gaussian - gaussian[0], atol=0.7)


def test_the_study_of_camera_pairs_tells_how_soft_a_picture_is() -> None:
    from benchmarks.studies.camera_pairs import BANDS, spectrum_db

    sharp = np.random.default_rng(3).uniform(0, 255, (512, 512)).astype(np.float32)
    soft = ndimage.gaussian_filter(sharp, 0.7, mode="wrap", truncate=6)
    middles = (BANDS[1:] + BANDS[:-1]) / 2
    gaussian = -20 * np.log10(np.e) * 2 * (np.pi * 0.7) ** 2 * middles**2
    blurred = np.subtract(spectrum_db(soft), spectrum_db(sharp))
    np.testing.assert_allclose(blurred[:7], (gaussian - gaussian[0])[:7], atol=0.5)  # sampled, it aliases


def test_the_study_of_camera_pairs_finds_the_blur_and_the_sharpening() -> None:
    from benchmarks.studies.camera_pairs import Fit, explained

    rng = np.random.default_rng(3)
    hr = ndimage.gaussian_filter(rng.uniform(0, 255, (128, 96)).astype(np.float32), 1.5) * 3
    blurred = Image.fromarray(ndimage.gaussian_filter(hr, 0.8 * 4))
    reduced = np.asarray(blurred.resize((24, 32), Image.Resampling.BICUBIC))
    lr = reduced + 1.0 * (reduced - ndimage.gaussian_filter(reduced, 1.5))
    assert min(explained(hr, 0.9 * lr + 4)) == Fit(0.0, 0.8, 1.0, 1.5)
