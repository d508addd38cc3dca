"""Networks, bundle folder and noise schedule of the trainer."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from yonos_train.folders import RunFileError  # noqa: E402
from yonos_train.model import (  # noqa: E402
    BundleConfig,
    LiteConfig,
    load_bundle,
    new_bundle,
    save_bundle,
    set_latent_stats,
    weights_sha256,
    with_decoder,
)
from yonos_train.networks import anti_image  # noqa: E402
from yonos_train.schedule import Schedule, add_noise, ddim, eps_from_v, v_target, x0_from_v  # noqa: E402

TINY = LiteConfig(4, 4, 8, 1, 8, 1, 8, 1, (8, 16), 1, 16)


def randomise(bundle):
    """Give every parameter a value: residual branches and the U-Net's output start at zero."""
    torch.manual_seed(1)
    for module in (bundle.encoder, bundle.unet, bundle.decoder):
        for p in module.parameters():
            torch.nn.init.normal_(p, std=0.2)
    return bundle


@pytest.mark.parametrize(("scale", "encoder_input"), [(4, "upsampled"), (2, "lr"), (4, "lr"), (8, "lr")])
def test_shapes_of_the_three_networks(scale, encoder_input):
    bundle = new_bundle(BundleConfig("tiny", scale, TINY, encoder_input=encoder_input))
    h, w = 48, 64
    size = (h // scale, w // scale) if encoder_input == "lr" else (h, w)
    z_l = bundle.encoder(torch.rand(2, 3, *size))
    assert z_l.shape == (2, 4, h // 4, w // 4)
    v = bundle.unet(torch.cat([torch.randn_like(z_l), z_l], 1), torch.ones(2))
    assert v.shape == z_l.shape
    assert bundle.decoder(z_l).shape == (2, 3, h, w)


def test_a_pixel_depends_on_nothing_outside_the_receptive_field():
    bundle = randomise(new_bundle(BundleConfig("tiny", 4, TINY)))

    def run(x):
        z = bundle.encoder(x)
        return bundle.decoder(ddim(bundle.unet, bundle.schedule, z, torch.zeros_like(z)))

    x = torch.rand(1, 3, 64, 512)
    changed = x.clone()
    changed[..., 256:] += 1.0
    a, b = run(x), run(changed)
    assert torch.equal(a[..., :128], b[..., :128])  # no statistics over the picture
    assert not torch.equal(a[..., 250:], b[..., 250:])


@pytest.mark.parametrize("factor", [2, 4])
def test_with_the_anti_imaging_filter_a_flat_latent_makes_a_flat_picture(factor):
    sizes = dataclasses.replace(TINY, latent_factor=factor)
    bundle = randomise(new_bundle(BundleConfig("tiny", 4, sizes)))
    filtered = with_decoder(bundle, {"decoder_anti_imaging": True})
    assert filtered.config.architecture == dataclasses.replace(sizes, decoder_anti_imaging=True)
    assert all(
        torch.equal(value, bundle.decoder.state_dict()[key])
        for key, value in filtered.decoder.state_dict().items()
    )
    z = torch.randn(1, 4, 1, 1).expand(1, 4, 40, 40).contiguous()
    inside = slice(12 * factor, 28 * factor)  # beyond the reach of the convolutions' zero borders
    plain, flat = (x.decoder(z)[..., inside, inside] for x in (bundle, filtered))
    assert plain.std((2, 3)).min() > 1e-3
    assert flat.std((2, 3)).max() < 1e-5 * flat.abs().max()


def test_the_anti_imaging_filter_has_the_response_it_states():
    assert torch.allclose(anti_image(torch.full((1, 2, 9, 7), 0.3)), torch.tensor(0.3))  # borders as well
    n = 64
    rows = torch.arange(n, dtype=torch.float64)
    for k in (0, 4, 8, 16, 24, 30, 32):  # cycles in n samples; n / 2: the Nyquist frequency
        omega = 2 * math.pi * k / n
        wave = torch.cos(omega * rows)[None, None, :, None].expand(1, 1, n, 5)
        gain = (3 - math.cos(omega)) * (1 + math.cos(omega)) / 4
        inside = slice(2, -2)
        assert torch.allclose(anti_image(wave)[..., inside, :], gain * wave[..., inside, :], atol=1e-12)
        assert torch.allclose(anti_image(wave.mT)[..., inside], gain * wave.mT[..., inside], atol=1e-12)


def test_the_anti_imaging_filter_compiled_is_the_same():
    x = torch.rand(1, 3, 12, 10)
    compiled = torch.compile(anti_image, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), anti_image(x))


def test_a_decoder_takes_only_changes_that_its_weights_fit():
    bundle = new_bundle(BundleConfig("tiny", 4, TINY))
    assert with_decoder(bundle, {}) is bundle
    with pytest.raises(ValueError, match="weights do not fit the changes"):
        with_decoder(bundle, {"decoder_width": 12})
    other = dataclasses.replace(bundle, decoder=torch.nn.Identity())
    with pytest.raises(ValueError, match="Identity, expected none"):
        with_decoder(other, {"decoder_anti_imaging": True})
    with pytest.raises(ValueError, match="latent_factor 8, expected 2 or 4"):
        LiteConfig(latent_factor=8, decoder_anti_imaging=True)


def test_bundle_survives_the_folder(tmp_path):
    bundle = randomise(new_bundle(BundleConfig("tiny-x2", 2, TINY, training={"steps": 3}, card="a card")))
    set_latent_stats(bundle.encoder, bundle.decoder, torch.arange(4.0), torch.arange(1.0, 5.0))
    again = load_bundle(save_bundle(bundle, tmp_path / "b"))
    assert again.config == bundle.config
    assert weights_sha256(again) == weights_sha256(bundle)
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(again.encoder(x), bundle.encoder(x))
    assert not list(tmp_path.rglob("*.part"))


def test_bundle_refuses_what_it_cannot_load(tmp_path):
    with pytest.raises(RunFileError, match=r"config\.json"):
        load_bundle(tmp_path)
    save_bundle(new_bundle(BundleConfig("tiny", 2, TINY)), tmp_path)
    text = json.loads((tmp_path / "config.json").read_text())
    wrong = dict(text, architecture=dict(text["architecture"], unet_widths=[8, 24]))
    (tmp_path / "config.json").write_text(json.dumps(wrong))
    with pytest.raises(ValueError, match="do not fit the architecture"):
        load_bundle(tmp_path)
    (tmp_path / "unet.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"unet\.safetensors: cannot be read"):
        load_bundle(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(dict(text, format=99)))
    with pytest.raises(ValueError, match="format: got 99"):
        load_bundle(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(text))
    (tmp_path / "unet.safetensors").unlink()
    with pytest.raises(RunFileError, match=r"unet\.safetensors"):
        load_bundle(tmp_path)


def test_latent_statistics_cancel_between_encoder_and_decoder():
    bundle = randomise(new_bundle(BundleConfig("tiny", 4, TINY)))
    x = torch.rand(1, 3, 32, 32)
    before, z = bundle.decoder(bundle.encoder(x)), bundle.encoder(x)
    set_latent_stats(bundle.encoder, bundle.decoder, z.mean((0, 2, 3)), z.std((0, 2, 3)))
    scaled = bundle.encoder(x)
    assert scaled.mean((0, 2, 3)).abs().max() < 1e-4
    torch.testing.assert_close(bundle.decoder(scaled), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["cosine", "scaled_linear"])
def test_v_parameterisation_round_trips(kind):
    schedule = Schedule(kind)
    g = torch.Generator().manual_seed(0)
    z, eps = (torch.randn(5, 2, 3, 3, generator=g, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t))
    assert torch.all(alpha[1:] < alpha[:-1])
    z_t, v = add_noise(schedule, z, eps, t), v_target(schedule, z, eps, t)
    torch.testing.assert_close(x0_from_v(schedule, z_t, v, t), z)
    torch.testing.assert_close(eps_from_v(schedule, z_t, v, t), eps)


def test_terminal_alpha_is_the_schedules_own():
    assert Schedule("cosine").alpha(1.0) == 0.0
    assert Schedule("scaled_linear").alpha(1.0) == pytest.approx(0.068, abs=1e-3)  # SD's model card schedule


def test_ddim_with_a_perfect_denoiser_returns_the_clean_latent_for_any_number_of_steps():
    schedule = Schedule("scaled_linear")
    g = torch.Generator().manual_seed(0)
    z = torch.randn(2, 4, 3, 3, generator=g)
    noise = torch.randn(2, 4, 3, 3, generator=g)

    def oracle(x, t):
        z_t = x[:, :4]
        alpha, sigma = (a.view(-1, 1, 1, 1) for a in schedule.alpha_sigma(t))
        return (alpha * z_t - z) / sigma  # the v whose x0 is z

    for steps in (1, 2, 7):
        torch.testing.assert_close(
            ddim(oracle, schedule, torch.zeros_like(z), noise, steps=steps), z, rtol=1e-4, atol=1e-4
        )
    with pytest.raises(ValueError, match="steps: got 0"):
        ddim(oracle, schedule, z, noise, steps=0)


def test_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="expected 'cosine'"):
        Schedule("linear")


def test_config_json_is_readable_by_hand(tmp_path):
    folder = save_bundle(new_bundle(BundleConfig("tiny", 8, TINY)), tmp_path)
    raw = json.loads(Path(folder, "config.json").read_text())
    assert raw["name"] == "tiny"
    assert raw["scale"] == 8
    assert raw["schedule"]["kind"] == "cosine"
