"""VAEs of several latents: what a write at one level means, what runs midway share, and what is refused."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
import vaes
from matrix import conforms, seeded
from torch import nn

import nnsight_vae as nv
from nnsight_vae.circuits.scoring.scores import score_edges
from nnsight_vae.levels.latent_values import posterior_draws
from nnsight_vae.testing import _Moments as Moments

PIXELS = nv.readouts.Pixels((1, 8, 8))


@pytest.fixture(scope="module")
def vae():
    return vaes.ladder()


@pytest.fixture(scope="module")
def model(vae):
    return vae.module


@pytest.fixture(scope="module")
def x(model):
    return vaes.images(model, 6)


@pytest.fixture(scope="module")
def eps(x):
    return torch.randn(6, 35, generator=seeded(3))


@pytest.fixture(scope="module")
def pairs(x, eps):
    return nv.Pairs(x, x.roll(1, 0), eps=eps)


def by_hand(model, x, eps, at=None):
    """The model itself, level by level: `at` is level -> function from its draw to what replaces it."""
    noise, drawn = {0: eps[:, :32].reshape(-1, 2, 4, 4), 1: eps[:, 32:]}, {}

    def draw(k, stated):
        mu, logvar = stated.values() if isinstance(stated, dict) else stated
        z = mu + torch.exp(0.5 * logvar) * noise[k]
        drawn[k] = z if at is None or k not in at else at[k](z)
        return drawn[k]

    with torch.no_grad():
        model.infer(x, draw)
        return model.decode(drawn[0], drawn[1]), drawn


def test_it_conforms_at_the_means_and_is_the_models_own_forward_to_the_bit(vae, x):
    assert vae.verify(x) == 0.0
    conforms(vae, x)


def test_a_run_with_noise_is_the_models_own(vae, model, x, eps):
    expected, drawn = by_hand(model, x, eps)
    torch.testing.assert_close(vae(x, eps=eps), expected)
    with torch.no_grad(), vae.trace(x, eps=eps):
        z1 = vae.latent.z1.output.save()
        z0 = vae.latent.z0.output.save()
        mu = vae.latent.mu.output.save()
        z = vae.latent.z.output.save()
    torch.testing.assert_close((z0, z1), (drawn[0], drawn[1]))
    assert torch.equal(z, torch.cat([z0.flatten(1), z1], 1))
    torch.testing.assert_close(vae.encode(x, eps=eps).mu, mu)
    torch.testing.assert_close(vae.encode(x, eps=eps).rsample(eps), z)
    torch.testing.assert_close(vae.decode(z), expected)
    assert not torch.allclose(vae.encode(x).mu[:, :32], mu[:, :32], atol=1e-3)  # z0 is inferred from the drawn z1


def test_a_fresh_draw_draws_every_level_and_its_inference_follows(vae, x):
    torch.manual_seed(0)
    first, second = vae(x, sample=True), vae(x, sample=True)
    assert not torch.allclose(first, second, atol=1e-3)
    torch.manual_seed(0)
    assert torch.equal(vae(x, sample=True), first)


def test_a_write_at_an_upper_level_moves_the_inference_below_and_at_the_whole_the_decoder_alone(vae, model, x, eps):
    def set_to_two(z):
        z = z.clone()
        z[:, 1] = 2.0
        return z

    at_level = nv.intervene(vae, x, {"latent.z1[1]": nv.Set(2.0)}, eps=eps)
    expected, drawn = by_hand(model, x, eps, {1: set_to_two})
    torch.testing.assert_close(at_level.reconstruction, expected)
    torch.testing.assert_close(at_level.z[:, :32], drawn[0].flatten(1))
    _, untouched = by_hand(model, x, eps)
    at_whole = nv.intervene(vae, x, {"latent.z[33]": nv.Set(2.0)}, eps=eps)  # level 0 has 32 numbers
    torch.testing.assert_close(at_whole.reconstruction, model.decode(untouched[0], set_to_two(untouched[1])))
    assert not torch.allclose(at_whole.reconstruction, at_level.reconstruction, atol=1e-3)


def test_a_write_at_the_whole_posterior_moves_what_is_decoded_by_as_much(vae, model, x, eps):
    moved = nv.intervene(vae, x, {"latent.mu[33]": nv.Add(0.5), "latent.logvar[0]": nv.Set(0.0)}, eps=eps)
    _, drawn = by_hand(model, x, eps)
    mu = vae.encode(x, eps=eps).mu.detach()
    z0, z1 = drawn[0].flatten(1).clone(), drawn[1].clone()
    z1[:, 1] += 0.5
    z0[:, 0] = mu[:, 0] + eps[:, 0]
    torch.testing.assert_close(moved.reconstruction, model.decode(z0.reshape(-1, 2, 4, 4), z1))


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize(
    "site", ["low", "q1", "latent.mu1", "latent.z1", "q0", "latent.eps0", "latent.z0", "latent.mu", "latent.z"]
)
def test_patching_any_site_midway_is_the_whole_run_with_its_activation_swapped(vae, pairs, site, noisy):
    eps = pairs.eps if noisy else None
    asked = nv.Pairs(pairs.base, pairs.source, eps=eps)
    patched = nv.patch_activations(vae, asked, [site], readout=PIXELS, per="site", direction="noising")
    swapped = nv.intervene(vae, pairs.base, {site: nv.Swap(pairs.source)}, eps=eps).reconstruction
    expected = (swapped - vae(pairs.base, eps=eps)).detach().numpy()
    np.testing.assert_allclose(patched.values[0].T, expected.reshape(6, -1), atol=1e-6)


@pytest.mark.parametrize("noisy", [False, True])
def test_one_level_is_no_cut_and_all_levels_are(vae, pairs, noisy):
    asked = nv.Pairs(pairs.base, pairs.source, eps=pairs.eps if noisy else None)
    direct = {}
    for levels in (("latent.z0",), ("latent.z1",), ("latent.z0", "latent.z1"), ("latent.z",)):
        found = nv.mediate(vae, asked, list(levels), readout=PIXELS)
        direct[levels] = float(np.abs(found.nde.values).max())
        if len(levels) == 2:
            whole = nv.mediate(vae, asked, ["latent.z"], readout=PIXELS)
            np.testing.assert_allclose(found.tnie.values, whole.tnie.values, atol=1e-6)
    assert direct["latent.z0",] > 0.01
    assert direct["latent.z1",] > 0.01
    assert direct["latent.z0", "latent.z1"] <= 1e-6
    assert direct["latent.z",] <= 1e-6


def test_latents_are_swept_as_the_decoder_takes_them(vae, model, x):
    swept = nv.perturb_latents(vae, x, [1.0], readout=PIXELS, units=["latent.z[34]"])
    z = vae.encode(x).mu.detach().clone()
    z[:, 34] = 1.0
    expected = (vae.decode(z) - vae(x)).detach().flatten(1).numpy()
    np.testing.assert_allclose(swept.values[0].T, expected, atol=1e-6)
    with pytest.raises(nv.NnsightVaeError, match=r"acts on latent\.z, got latent\.z1.*patch_activations"):
        nv.perturb_latents(vae, x, [1.0], readout=PIXELS, units=["latent.z1[0]"])


def test_posterior_means_are_read_in_runs_that_end_there_with_the_levels_above_drawn(vae, model, x, pairs, eps):
    read = nv.readouts.Latents(35)
    patched = nv.patch_activations(vae, pairs, ["low", "latent.z1"], readout=read, per="site", direction="noising")
    swapped = vae.encode(pairs.source, eps=eps).mu - vae.encode(pairs.base, eps=eps).mu
    np.testing.assert_allclose(patched.values[0].T, swapped.detach().numpy(), atol=1e-6)  # all passes low
    _, source = by_hand(model, pairs.source, eps)
    out = nv.intervene(vae, pairs.base, {"latent.z1": nv.Set(source[1])}, eps=eps)
    moved = (out.mu - vae.encode(pairs.base, eps=eps).mu).detach()
    np.testing.assert_allclose(patched.values[1].T, moved.numpy(), atol=1e-6)
    assert float(moved[:, :32].abs().max()) > 0.01
    assert float(moved[:, 32:].abs().max()) <= 1e-6


def test_draws_of_the_aggregate_posterior_follow_drawn_levels(vae, model, x):
    z = posterior_draws(vae, x, 12, seed=5)
    eps = torch.randn(12, 35, generator=seeded(5))
    _, drawn = by_hand(model, torch.cat([x, x]), eps)
    torch.testing.assert_close(z, torch.cat([drawn[0].flatten(1), drawn[1]], 1))


def test_the_code_under_noise_is_explained_as_it_was_drawn(vae, x, eps):
    with torch.no_grad(), vae.trace(x, eps=eps):
        z = vae.latent.z.output.save()
    torch.testing.assert_close(nv.attribution.captum_forward(vae, to="z", eps=eps)(x), z)


def test_attributions_are_of_the_run_that_they_are_about(vae, model, x, eps):
    with torch.enable_grad():
        given = x.clone().requires_grad_()
        slope = torch.autograd.grad(vae.encode(given).mu[:, 33].sum(), given)[0]
        own = x.clone().requires_grad_()
        drawn = {}

        def at_mean(k, stated):
            drawn[k] = stated["mu"] if isinstance(stated, dict) else stated[0]
            return drawn[k]

        model.infer(own, at_mean)
        expected = torch.autograd.grad(drawn[1][:, 1].sum(), own)[0]
    torch.testing.assert_close(slope, expected)
    found = nv.attribution.unit_attributions(
        vae, nv.Pairs(x, x.roll(1, 0), eps=eps), ["latent.z1", "latent.z0"], readout=PIXELS, n_steps=4
    )
    assert np.isfinite(found.values).all()


def test_circuits_know_which_latent_is_read_by_what_and_refuse_noise_by_name(vae, x, pairs):
    scores = score_edges(vae, nv.Pairs(x, x.roll(1, 0), factor="input"), Moments(), method="exact")
    assert "q1 -> down + grow" in scores.cuts
    assert "low + down -> latent.mu0" in scores.cuts
    assert "grow + latent.mu0 -> output" in scores.cuts
    with pytest.raises(nv.CircuitError, match=r"several latents.*pairs without eps"):
        score_edges(vae, nv.Pairs(x, x.roll(1, 0), factor="input", eps=pairs.eps), Moments(), method="eap")


def test_kl_is_refused_unless_every_level_is_said_to_have_the_standard_prior(vae, x):
    with pytest.raises(nv.PriorError, match="standard_prior=True"):
        vae.encode(x).kl()
    standard = vaes.ladder(standard_prior=True)
    q = standard.encode(x)
    assert torch.equal(q.kl(), nv.Posterior(*q).kl())
    assert len(nv.metrics.activity(standard, x).kl.values) == 35


def test_copies_go_on_alone(vae, x):
    expected = vae(x).detach()
    own = nv.VAE(vaes.seeded(vaes.LadderVAE()), Own())
    for twin in (copy.deepcopy(own), pickle.loads(pickle.dumps(own)), nv.VAE(own)):
        assert torch.equal(twin(x), expected)


class Own(nv.adapters.Ladder):
    """As the documentation has it."""

    levels = 2

    def infer(self, model, x, draw):
        model.infer(x, draw)

    def decode(self, model, z0, z1):
        return model.decode(z0, z1)


class Conditional(nn.Module):
    """Two latents, packed heads that alternate, and a label."""

    def __init__(self):
        super().__init__()
        self.q1, self.q0, self.out = nn.Linear(8, 4), nn.Linear(10, 6), nn.Linear(6, 7)

    def infer(self, x, draw, label):
        z1 = draw(1, self.q1(torch.cat([x, label], 1)))
        draw(0, self.q0(torch.cat([x, z1, label], 1)))

    def decode(self, z0, z1, label):
        return self.out(torch.cat([z0, z1, label], 1))


def test_conditions_and_packed_heads_reach_every_level():
    model, x = vaes.seeded(Conditional()), torch.randn(4, 7, generator=seeded())
    label, own = torch.rand(4, 1, generator=seeded(1)), torch.tensor([[0.3]])
    vae = nv.adapt(
        model, levels=2, encoder=model.infer, decoder=model.decode, packed="interleaved", given=own, example=x
    )
    for given, passed in ((label, (label,)), (own.expand(4, 1), ())):
        z1 = model.q1(torch.cat([x, given], 1))[:, 0::2]
        z0 = model.q0(torch.cat([x, z1, given], 1))[:, 0::2]
        torch.testing.assert_close(vae(x, *passed), model.decode(z0, z1, given))
        assert vae.verify(x, *passed) == 0.0


@pytest.mark.parametrize(
    ("infer", "message"),
    [
        (lambda m: lambda x, draw: draw(1, m.q1(m.high(m.low(x).flatten(1))).chunk(2, 1)), "never drew level 0"),
        (lambda m: lambda x, draw: [draw(1, (x.flatten(1), x.flatten(1))) for _ in range(2)], "drawn once"),
        (lambda m: lambda x, draw: draw(2, (x, x)), "levels 0 to 1"),
        (
            lambda m: (
                lambda x, draw: [
                    draw(k, torch.distributions.Laplace(x.flatten(1), torch.ones_like(x.flatten(1)))) for k in (1, 0)
                ]
            ),
            "Laplace posteriors.*standard_prior",
        ),
    ],
)
def test_an_encoder_that_does_not_draw_each_level_once_is_refused(infer, message):
    model = vaes.LadderVAE()
    with pytest.raises(nv.AdapterError, match=message):
        nv.adapt(model, levels=2, encoder=infer(model), decoder=model.decode, example=vaes.images(model, 2))


@pytest.mark.parametrize("levels", [0, 2.5, -1, "2"])
def test_a_number_of_levels_that_is_none_is_refused(levels):
    model = vaes.LadderVAE()
    with pytest.raises(nv.AdapterError, match="at least 2"):
        nv.adapt(model, levels=levels, encoder=model.infer, decoder=model.decode)


def test_several_latents_need_to_be_told():
    class Unsaid(nv.adapters.Ladder):
        pass

    with pytest.raises(nv.AdapterError, match=r"Unsaid.*set its `levels`"):
        nv.VAE(vaes.LadderVAE(), Unsaid())
    with pytest.raises(nv.AdapterError, match="draw"):
        nv.adapt(vaes.LadderVAE(), levels=2)
    vae = nv.adapt(m := vaes.LadderVAE(), levels=2, encoder=m.infer, decoder=m.decode)
    with pytest.raises(nv.DataError, match="latent"):
        vae.decode(torch.zeros(2, 7))
