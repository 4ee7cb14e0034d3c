"""The latent level: what latents are set to, how far that is from the data, spatial and discrete latents, re-encoded latents."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from linear import LinearReadout, LinearVAE, random_linear_vae
from scipy.stats import chi2, norm
from vaes import all_vaes, images, vq_vae

import nnsight_vae as nv
from nnsight_vae.levels import manifold
from nnsight_vae.levels.codes import nearest_codes
from nnsight_vae.levels.latent_values import posterior_draws, posterior_quantiles
from nnsight_vae.levels.manifold import AggregatePosterior

MODELS = all_vaes()
# The latents of a random linear VAE are correlated, so that moving one alone leaves the data; that it is warned of is a test of its own.
pytestmark = pytest.mark.filterwarnings("ignore:.*aggregate posterior:nnsight_vae.NnsightVaeWarning")


def setup(seed: int = 0, n: int = 40):
    """A linear VAE, inputs, a readout; W with Y = W z, the posterior means, and the matrix of h(z) = mean of encode(decode(z))."""
    model = random_linear_vae(seed)
    generator = torch.Generator().manual_seed(seed + 100)
    x = torch.randn(n, 6, generator=generator, dtype=torch.double)
    read = LinearReadout(torch.randn(2, 6, generator=generator, dtype=torch.double))
    a1, a2, b1, b2 = (layer.weight.detach() for layer in (model.enc, model.mu, model.dec, model.out))
    return nv.VAE(model), x, read, read.c @ b2 @ b1, x @ (a2 @ a1).T, a2 @ a1 @ b2 @ b1


def uncorrelated():
    vae, x, read, *_ = setup()
    with torch.no_grad():
        vae.module.mu.weight.copy_(torch.linalg.pinv(vae.module.enc.weight)[:3])
    return vae, x, read


def decoded(vae: nv.VAE, z: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return vae.decode(z).flatten(1).double().numpy()


# ---------------------------------------------------------------- what latents are set to


def test_default_latent_values_stay_inside_the_aggregate_posterior():
    vae, x, read, _, mu, _ = setup(n=400)
    effects = nv.perturb_latents(vae, x, readout=read)
    low, high = (np.array(list(v.values())) for v in effects.provenance["values"].values())
    sd = (mu.var(0) + np.exp(-2.0)).sqrt().numpy()
    np.testing.assert_allclose(high - low, 2 * 1.645 * sd, rtol=0.2)
    assert (low > mu.min(0).values.numpy() - 1).all()


def test_the_values_of_each_unit_are_recorded_under_its_name():
    """Positions in a list would mean other units once some were selected."""
    vae, x, read, *_ = setup()
    few = nv.perturb_latents(
        vae, x, [0.5, nv.Add(1.0)], readout=read, units=["latent.z[2]", ("latent.z[0]", "latent.z[1]")]
    )
    joint = "latent.z[0] + latent.z[1]"
    assert few.select(joint).provenance["values"] == {
        "0.5": {"latent.z[2]": 0.5, joint: [0.5, 0.5]},
        "Add(1.0)": {"latent.z[2]": "Add(1.0)", joint: ["Add(1.0)", "Add(1.0)"]},
    }


def test_provenance_says_whether_codes_carry_noise():
    vae, x, read, *_ = setup()
    means, noisy = (
        nv.perturb_latents(vae, x, 0.5, readout=read, eps=eps) for eps in (None, torch.zeros(40, 3).double())
    )
    assert (means.provenance["noise"], noisy.provenance["noise"]) == ("posterior mean", "shared eps")
    np.testing.assert_allclose(noisy.values, means.values, atol=1e-12)


def test_few_examples_still_give_each_latent_its_posteriors_range():
    """One example: its posterior is the aggregate; N(mu, e^-2) has its 5 % and 95 % quantiles 2 * 1.645 * e^-1 apart."""
    vae, x, read, *_ = setup()
    record = nv.perturb_latents(vae, x[:1], readout=read).provenance["values"]
    low, high = (np.array(list(v.values())) for v in record.values())
    np.testing.assert_allclose(high - low, 2 * 1.645 * np.exp(-1), rtol=0.35)
    np.testing.assert_allclose((high + low) / 2, vae.encode(x[:1]).mu[0].detach(), atol=0.3)


def test_quantiles_of_a_spatial_latent_are_over_examples_and_positions():
    model = MODELS["residual"]
    x = images(model, 200)
    vae = nv.VAE(copy.deepcopy(model))
    posterior = vae.encode(x)
    z = posterior.rsample(torch.randn(posterior.mu.shape, generator=torch.Generator().manual_seed(9)))
    found = posterior_quantiles(vae, x, (0.25, 0.5))
    expected = torch.quantile(z.detach().transpose(0, 1).flatten(1), torch.tensor([0.25, 0.5]), dim=1)
    assert found.shape == (2, 2)
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0)


def test_prior_quantiles_are_those_of_a_standard_normal():
    vae, x, read, w, mu, _ = setup()
    effects = nv.perturb_latents(vae, x, "prior", quantiles=(0.1, 0.5, 0.975), readout=read)
    assert list(effects.parts) == ["q0.1", "q0.5", "q0.975"]
    for q, (name, part) in zip((0.1, 0.5, 0.975), effects.parts.items(), strict=True):
        expected = torch.einsum("nk,tk->ktn", norm.ppf(q) - mu, w)
        np.testing.assert_allclose(part.values, expected, atol=1e-9)
        assert effects.provenance["values"][name] == pytest.approx(dict.fromkeys(effects.units, norm.ppf(q)))
    slope = (norm.ppf(0.975) - norm.ppf(0.1)) * w.T[..., None]
    np.testing.assert_allclose(effects.values, np.broadcast_to(slope, effects.values.shape), atol=1e-9)


def test_posterior_quantiles_can_be_chosen_and_are_moved_through_in_order():
    vae, x, read, w, *_ = setup()
    effects = nv.perturb_latents(vae, x, "posterior", quantiles=(0.9, 0.2), readout=read)
    high, low = posterior_quantiles(vae, x, (0.9, 0.2))
    np.testing.assert_allclose(effects.values[:, :, 0], ((low - high) * w).T, atol=1e-9)
    assert effects.estimand == "do(z_k = q0.2) - do(z_k = q0.9)"


def test_values_are_one_list_for_all_latents():
    vae, x, read, *_ = setup()
    with pytest.raises(nv.InterventionError, match="same for every latent"):
        nv.perturb_latents(vae, x, values=[[1.0, 2.0], [3.0, 4.0]], readout=read)
    one = nv.perturb_latents(vae, x, values=torch.tensor([0.5]), readout=read)
    two = nv.perturb_latents(vae, x, values=[-1.0, 0.5], readout=read)
    np.testing.assert_array_equal(one.values, two.parts["0.5"].values)
    for alone in (0.5, np.float32(0.5), nv.Set(0.5)):
        np.testing.assert_array_equal(nv.perturb_latents(vae, x, alone, readout=read).values, one.values)


def test_values_that_print_alike_keep_their_own_names():
    vae, x, read, w, mu, _ = setup()
    values = [0.1 + 0.2, 0.3, 0.12345678, 0.12345679, 1e-9, 2.0, -0.0]
    effects = nv.perturb_latents(vae, x, values, readout=read)
    assert list(effects.parts) == ["0.30000000000000004", "0.3", "0.12345678", "0.12345679", "1e-09", "2", "0"]
    for value, part in zip(values, effects.parts.values(), strict=True):
        np.testing.assert_allclose(part.values, torch.einsum("nk,tk->ktn", value - mu, w), atol=1e-12)


def test_a_swap_gives_each_latent_the_value_it_has_for_another_input():
    vae, x, read, w, mu, _ = setup()
    eps = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    found = nv.perturb_latents(vae, x, nv.Swap(x.flip(0)), readout=read, eps=eps)
    # noise is shared: the swapped value is the other mean plus this example's own draw
    np.testing.assert_allclose(found.values, torch.einsum("nk,tk->ktn", mu.flip(0) - mu, w), atol=1e-9)
    assert found.estimand == "do(z_k = swap)"
    both = nv.perturb_latents(vae, x, [nv.Swap(x.flip(0)), nv.Swap(x.roll(1, 0)), nv.Add(0.5)], readout=read, eps=eps)
    assert list(both.parts) == ["swap", "swap (2)", "Add(0.5)"]
    np.testing.assert_array_equal(both.parts["swap"].values, found.values)
    np.testing.assert_allclose(both.parts["Add(0.5)"].values[..., 0], 0.5 * w.T, atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": []}, "finite numbers"),
        ({"values": [float("nan")]}, "finite"),
        ({"values": "uniform"}, "'posterior', 'prior', 'codes'"),
        ({"values": [1.0, 2.0, 1.0]}, r"repeats Set\(1.0\)"),
        ({"values": None, "quantiles": (0.5, 1.5)}, "between 0 and 1"),
        ({"values": None, "quantiles": ()}, "between 0 and 1"),
        ({"values": None, "quantiles": (0.5, 0.5)}, "repeat"),
        ({"values": None, "quantiles": 0.5}, "between 0 and 1"),
        ({"values": "prior", "quantiles": (0.0, 1.0)}, "between 0 and 1"),
        ({"values": "codes"}, "no codebook"),
        ({"values": nv.Quantize(1)}, "no codebook"),
        ({"values": 1.0, "units": ["latent.mu"]}, r"latent\.z"),
        ({"values": 1.0, "per": "pixel"}, "'unit', 'site' or 'position'"),
    ],
)
def test_bad_values_are_refused(arguments, message):
    vae, x, read, *_ = setup()
    with pytest.raises(nv.InterventionError, match=message):
        nv.perturb_latents(vae, x, readout=read, **arguments)


@given(st.integers(0, 1000), st.permutations(range(3)))
@settings(max_examples=4, deadline=None, derandomize=True)
def test_permuting_latents_permutes_their_effects(seed, order):
    vae, x, read, *_ = setup(seed)
    model = vae.module
    layers = model.enc.weight, model.mu.weight[list(order)], model.dec.weight[:, list(order)], model.out.weight
    permuted = nv.VAE(LinearVAE(*(weight.detach() for weight in layers)))
    plain, moved = (nv.perturb_latents(v, x, [-0.5, 0.5], readout=read) for v in (vae, permuted))
    np.testing.assert_allclose(moved.values, plain.values[list(order)], atol=1e-9)
    tails = [effects.provenance["manifold"]["tail"]["0.5"] for effects in (plain, moved)]
    np.testing.assert_allclose(list(tails[1].values()), np.array(list(tails[0].values()))[list(order)], atol=0.05)


def test_a_latent_the_decoder_ignores_has_exactly_no_effect():
    vae, x, read, *_ = setup()
    with torch.no_grad():
        vae.module.dec.weight[:, 1] = 0
    effects = nv.perturb_latents(vae, x, readout=read)
    assert np.abs(effects.values[1]).max() == 0
    assert np.abs(effects.values[0]).max() > 0.1


# ---------------------------------------------------------------- distance from the data


def test_distances_are_mahalanobis_distances_and_tails_those_of_chi_squared():
    """Gaussian codes: d^2 has a closed form, the share of clean codes that are further is that of chi squared."""
    vae, x, read, *_ = setup(n=4000)
    sd = torch.tensor([3.0, 0.3, 1.0, 1.0, 1.0, 1.0], dtype=torch.double)
    x = x * sd
    mu = vae.encode(x).mu.detach()
    covariance = torch.cov(mu.T, correction=0) + np.exp(-2.0) * torch.eye(3)
    inverse = torch.linalg.inv(covariance)
    value = float(2 * covariance[0, 0].sqrt())
    manifold = nv.perturb_latents(vae, x, value, readout=read).provenance["manifold"]
    for k in range(3):
        z = mu.clone()
        z[:, k] = value
        deviation = z - mu.mean(0)
        squared = torch.einsum("ni,ij,nj->n", deviation, inverse, deviation).numpy()
        name, move = f"latent.z[{k}]", f"{value:g}" if float(f"{value:g}") == value else repr(value)
        assert manifold["distance"][move][name] == pytest.approx(np.sqrt(squared).mean(), rel=1e-9)
        assert manifold["tail"][move][name] == pytest.approx(chi2.sf(squared, 3).mean(), abs=0.02)
        assert manifold["beyond"][move][name] == pytest.approx((squared > chi2.ppf(0.99, 3)).mean(), abs=0.03)
        assert manifold["clean_99"][name] == pytest.approx(np.sqrt(chi2.ppf(0.99, 3)), rel=0.05)


def test_distances_are_of_the_codes_with_their_noise():
    vae, x, read, _, mu, _ = setup()
    eps = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    z = mu + np.exp(-1.0) * eps
    z[:, 1] = 0.5
    inverse = torch.linalg.inv(torch.cov(mu.T, correction=0) + np.exp(-2.0) * torch.eye(3))
    squared = torch.einsum("ni,ij,nj->n", z - mu.mean(0), inverse, z - mu.mean(0))
    manifold = nv.perturb_latents(vae, x, 0.5, readout=read, eps=eps).provenance["manifold"]
    assert manifold["distance"]["0.5"]["latent.z[1]"] == pytest.approx(float(squared.sqrt().mean()), rel=1e-9)


def test_the_draws_of_each_example_have_its_own_mean_and_spread():
    vae = nv.VAE(MODELS["mlp"])
    x = 3 * images(MODELS["mlp"], 5)
    with torch.no_grad():
        mu, logvar = vae.module.encode(x).values()
    draws = posterior_draws(vae, x, 5 * 4000).unflatten(0, (4000, 5))
    assert logvar.exp().sqrt().std(0).max() > 0.3
    torch.testing.assert_close(draws.mean(0), mu, atol=0.08, rtol=0)
    torch.testing.assert_close(draws.std(0), torch.exp(0.5 * logvar), atol=0, rtol=0.05)


def test_moments_are_those_of_the_mixture_of_posteriors():
    vae, x, *_ = setup()
    found = AggregatePosterior.of(vae, x)
    draws = posterior_draws(vae, x, 200_000)
    torch.testing.assert_close(found.mean, draws.mean(0), atol=0.02, rtol=0)
    precision = found.whitening.T @ found.whitening
    torch.testing.assert_close(torch.linalg.inv(precision), torch.cov(draws.T), atol=0.05, rtol=0.02)


def test_distances_are_measured_on_the_device_of_the_codes():
    """Moments are kept on the CPU, and the engine reads on the model's device; "meta" stands for one that tests do not have."""
    vae, x, *_ = setup()
    assert AggregatePosterior.of(vae, x)(torch.zeros(4, 3, device="meta")).device.type == "meta"


def test_far_values_are_warned_of_and_near_ones_are_not():
    vae, x, read = uncorrelated()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        near = nv.perturb_latents(vae, x, readout=read).provenance["manifold"]
    assert max(near["beyond"]["q0.95"].values()) < 0.1
    with pytest.warns(nv.NnsightVaeWarning, match=r"3 of 6 interventions .* 100 % of examples") as record:
        far = nv.perturb_latents(vae, x, [0.0, 40.0], readout=read).provenance["manifold"]
    assert record[0].filename == __file__
    assert list(far["beyond"]["40"].values()) == [1.0] * 3
    assert list(far["tail"]["40"].values()) == [0.0] * 3


def test_correlated_latents_leave_the_data_where_each_alone_would_not():
    """mu_0 = mu_1: values that each latent takes, but never apart."""
    vae, x, read = uncorrelated()
    vae.module.logvar = -5.0
    with torch.no_grad():
        vae.module.mu.weight[1] = vae.module.mu.weight[0]
    with pytest.warns(nv.NnsightVaeWarning, match="aggregate posterior"):
        manifold = nv.perturb_latents(vae, x, readout=read).provenance["manifold"]
    assert manifold["beyond"]["q0.95"]["latent.z[0]"] > 0.5
    assert manifold["beyond"]["q0.95"]["latent.z[2]"] < 0.1
    together = nv.perturb_latents(vae, x, readout=read, units=[("latent.z[0]", "latent.z[1]")]).provenance["manifold"]
    assert together["beyond"]["q0.95"]["latent.z[0] + latent.z[1]"] < 0.1


def test_where_no_distance_is_defined_the_result_says_why():
    vae, x, read, *_ = setup()
    few = nv.perturb_latents(vae, x[:14], readout=read).provenance["manifold"]
    assert few["undefined"] == "14 codes of 3 channels are too few for a covariance; at least 15 are needed"
    assert "tail" not in few
    assert "tail" in nv.perturb_latents(vae, x[:15], readout=read).provenance["manifold"]
    with torch.no_grad():
        vae.module.mu.weight[1] = vae.module.mu.weight[0]
    vae.module.logvar = -60.0
    assert "functions of others" in nv.perturb_latents(vae, x, readout=read).provenance["manifold"]["undefined"]
    with torch.no_grad():
        vae.module.mu.weight[2] = 0
    vae.module.logvar = -2000.0
    assert nv.perturb_latents(vae, x, readout=read).provenance["manifold"]["undefined"] == "latent.z[2] never varies"


def test_the_scale_of_a_latent_does_not_matter_to_the_distance():
    vae, x, read, *_ = setup()
    vae.module.logvar = -40.0
    before = nv.perturb_latents(vae, x, readout=read).provenance["manifold"]["distance"]["q0.95"]
    with torch.no_grad():
        vae.module.mu.weight[1] *= 1e-5
    after = nv.perturb_latents(vae, x, readout=read).provenance["manifold"]["distance"]["q0.95"]
    np.testing.assert_allclose(list(after.values()), list(before.values()), rtol=1e-3)


def test_distances_do_not_depend_on_how_many_are_measured_at_once(monkeypatch):
    vae, x, read, *_ = setup()
    whole = nv.perturb_latents(vae, x, readout=read).provenance["manifold"]
    monkeypatch.setattr(manifold, "_BLOCK", 4 * len(x))  # four of the six
    assert nv.perturb_latents(vae, x, readout=read).provenance["manifold"] == whole


def test_the_record_of_distances_survives_saving(tmp_path):
    vae, x, read, *_ = setup()
    effects = nv.perturb_latents(vae, x, readout=read)
    effects.save(tmp_path / "effects.npz")
    assert nv.Effects.load(tmp_path / "effects.npz").provenance == effects.provenance


# ---------------------------------------------------------------- spatial latents


@pytest.fixture(scope="module")
def spatial():
    model = MODELS["residual"]
    vae, x = nv.VAE(copy.deepcopy(model)), images(model, 30)
    return vae, x, vae.encode(x).mu.detach(), nv.readouts.Pixels((1, 8, 8))


def test_a_channel_is_set_everywhere_a_position_in_all_channels_an_element_alone(spatial):
    vae, x, mu, read = spatial
    base = decoded(vae, mu)

    def literal(at, value):
        z = mu.clone()
        z[(slice(None), *at)] = value
        return (decoded(vae, z) - base).T

    channel = nv.perturb_latents(vae, x, 0.5, readout=read)
    assert channel.units == ("latent.z[0]", "latent.z[1]")
    np.testing.assert_allclose(channel.values[1], literal((1,), 0.5), atol=1e-4)
    position = nv.perturb_latents(vae, x, 0.5, readout=read, per="position")
    assert position.units[:5] == ("latent.z@0,0", "latent.z@0,1", "latent.z@0,2", "latent.z@0,3", "latent.z@1,0")
    assert len(position.units) == 16
    np.testing.assert_allclose(position.values[6], literal((slice(None), 1, 2), 0.5), atol=1e-4)
    keys = ["latent.z[1]@2,3", ("latent.z[0]@0,0", "latent.z[1]@3,3")]
    single = nv.perturb_latents(vae, x, 0.5, readout=read, units=keys)
    assert single.units == ("latent.z[1]@2,3", "latent.z[0]@0,0 + latent.z[1]@3,3")
    np.testing.assert_allclose(single.values[0], literal((1, 2, 3), 0.5), atol=1e-4)
    whole = nv.perturb_latents(vae, x, 0.5, readout=read, per="site")
    np.testing.assert_allclose(whole.values[0], literal((), 0.5), atol=1e-4)


def test_quantiles_are_over_what_is_set_together(spatial):
    """A channel everywhere: one value over positions; at a position: each channel's own value over examples there."""
    vae, x, mu, read = spatial
    draws = posterior_draws(vae, x, 100).double().numpy()
    for per, index, expected in (
        ("unit", 1, np.quantile(draws[:, 1], 0.9)),
        ("position", 6, np.quantile(draws[:, :, 1, 2], 0.9, axis=0)),
        ("site", 0, np.quantile(draws.swapaxes(0, 1).reshape(2, -1), 0.9, axis=1)),
    ):
        found = nv.perturb_latents(vae, x, "posterior", quantiles=[0.9], readout=read, per=per)
        np.testing.assert_allclose(found.provenance["values"]["q0.9"][found.units[index]], expected, rtol=1e-6)
    z = mu.clone()
    z[:, :, 1, 2] = torch.from_numpy(np.quantile(draws[:, :, 1, 2], 0.9, axis=0)).float()
    found = nv.perturb_latents(vae, x, "posterior", quantiles=[0.9], readout=read, per="position")
    np.testing.assert_allclose(found.values[6], (decoded(vae, z) - decoded(vae, mu)).T, atol=1e-4)


def test_the_distance_of_a_position_is_that_of_the_position(spatial):
    vae, x, mu, read = spatial
    posterior = vae.encode(x)
    vectors = mu.movedim(1, -1).flatten(0, -2).double()
    variances = posterior.logvar.detach().double().exp().mean((0, 2, 3))
    inverse = torch.linalg.inv(torch.cov(vectors.T, correction=0) + torch.diag(variances))
    deviation = torch.full((2,), 0.5, dtype=torch.double) - vectors.mean(0)
    expected = float((deviation @ inverse @ deviation).sqrt())
    manifold = nv.perturb_latents(vae, x, 0.5, readout=read, per="position").provenance["manifold"]
    np.testing.assert_allclose(list(manifold["distance"]["0.5"].values()), expected, rtol=1e-5)
    channel = nv.perturb_latents(vae, x, 0.5, readout=read).provenance["manifold"]
    z = mu.clone().double()
    z[:, 1] = 0.5
    deviation = z.movedim(1, -1) - vectors.mean(0)
    squared = torch.einsum("nhwi,ij,nhwj->nhw", deviation, inverse, deviation).mean((1, 2))
    assert channel["distance"]["0.5"]["latent.z[1]"] == pytest.approx(float(squared.sqrt().mean()), rel=1e-5)
    clean = posterior_draws(vae, x, 1000).double().movedim(1, -1) - vectors.mean(0)
    at = torch.einsum("ni,ij,nj->n", clean[:, 1, 2], inverse, clean[:, 1, 2]).sqrt()
    assert manifold["clean_99"]["latent.z@1,2"] == pytest.approx(float(np.quantile(at, 0.99)), rel=1e-5)
    assert manifold["tail"]["0.5"]["latent.z@1,2"] == pytest.approx(float((at >= expected).double().mean()), abs=2e-3)


# ---------------------------------------------------------------- discrete latents


@pytest.fixture(scope="module")
def discrete():
    model = vq_vae()
    vae = nv.adapt(model, codebook=model.codebook.weight)
    x = images(model, 30)
    with torch.no_grad():
        return vae, x, model.codes(model.encode(x)[0]), nv.readouts.Pixels((1, 12, 12))


def from_codes(vae: nv.VAE, codes: torch.Tensor) -> np.ndarray:
    return decoded(vae, vae.module.codebook.weight.detach()[codes].movedim(-1, 1))


def test_codes_are_swapped_position_by_position_and_averaged_as_they_are_used(discrete):
    vae, x, codes, read = discrete
    assert torch.equal(nearest_codes(vae, vae.encode(x).mu), codes)
    effects = nv.perturb_latents(vae, x, readout=read)
    assert list(effects.parts) == [f"code {c}" for c in range(6)]
    assert effects.units[5] == "latent.z@1,2"
    usage = np.bincount(codes.flatten(), minlength=6) / codes.numel()
    mean = np.zeros((144, 30))
    for c in range(6):
        swapped = codes.clone()
        swapped[:, 1, 2] = c
        change = (from_codes(vae, swapped) - from_codes(vae, codes)).T
        np.testing.assert_allclose(effects.parts[f"code {c}"].values[5], change, atol=1e-5)
        kept = (codes[:, 1, 2] == c).numpy()
        assert kept.any()
        assert np.abs(effects.parts[f"code {c}"].values[5][:, kept]).max() < 1e-5  # its own code is no change
        mean += usage[c] * change
    np.testing.assert_allclose(effects.values[5], mean, atol=1e-5)
    assert effects.provenance["manifold"]["usage"] == pytest.approx({f"code {c}": usage[c] for c in range(6)})
    np.testing.assert_array_equal(nv.perturb_latents(vae, x, "codes", readout=read).values, effects.values)


def test_the_code_of_another_input_is_a_swap_at_a_position(discrete):
    vae, x, codes, read = discrete
    found = nv.perturb_latents(vae, x, nv.Swap(x.flip(0)), readout=read, per="position")
    swapped = codes.clone()
    swapped[:, 0, 1] = codes.flip(0)[:, 0, 1]
    np.testing.assert_allclose(found.values[1], (from_codes(vae, swapped) - from_codes(vae, codes)).T, atol=1e-5)


def test_named_codes_are_contrasted_first_to_last(discrete):
    vae, x, codes, read = discrete
    found = nv.perturb_latents(vae, x, [nv.Quantize(4), nv.Quantize(1)], readout=read)
    last, first = codes.clone(), codes.clone()
    last[:, 2, 0], first[:, 2, 0] = 1, 4
    np.testing.assert_allclose(found.values[6], (from_codes(vae, last) - from_codes(vae, first)).T, atol=1e-5)
    one = nv.perturb_latents(vae, x, nv.Quantize(1), readout=read, units="latent.z@2,0")
    np.testing.assert_allclose(one.values[0], found.parts["code 1"].values[6], atol=1e-6)


def test_continuous_values_are_snapped_back_where_code_swaps_show(discrete):
    """Leaving 3 % of the effect at most: what seems a limit of effect strength for discrete latents is one of the intervention."""
    vae, x, _, _ = discrete
    by_codes = nv.metrics.causal_effect_strength(vae, x, form="normalised")
    channels = nv.metrics.causal_effect_strength(vae, x, values="posterior", form="normalised")
    shifts = nv.metrics.causal_effect_strength(vae, x, values=nv.Add(0.3), per="position", form="normalised")
    assert by_codes.units == tuple(f"latent.z@{i},{j}" for i in range(3) for j in range(3))
    assert min(by_codes.values) > 0.7
    assert max(channels.values) < 0.1
    assert max(shifts.values) < 1e-5
    assert by_codes.alive == tuple(range(9))
    assert shifts.alive == ()
    assert nv.latent_metrics(vae, x).effect_strength == by_codes


def test_effect_strength_by_codes_is_the_mean_displacement_by_a_code_drawn_anew(discrete):
    vae, x, codes, _ = discrete
    usage = np.bincount(codes.flatten(), minlength=6) / codes.numel()
    base, total = from_codes(vae, codes), 0.0
    for c in range(6):
        swapped = codes.clone()
        swapped[:, 1, 1] = c
        total += usage[c] * np.linalg.norm(from_codes(vae, swapped) - base, axis=1).mean()
    found = nv.metrics.causal_effect_strength(vae, x)
    assert found.values[4] == pytest.approx(total, rel=1e-4)
    spread = float(x.flatten(1).var(0, correction=0).sum().sqrt())
    normalised = nv.metrics.causal_effect_strength(vae, x, form="normalised")
    assert normalised.values[4] == pytest.approx(total / spread, rel=1e-4)


def test_many_codes_are_drawn_as_they_are_used(discrete, monkeypatch):
    vae, x, codes, read = discrete
    monkeypatch.setattr("nnsight_vae.levels.codes.CODES", 5)
    found = nv.perturb_latents(vae, x, readout=read)
    counts = np.random.default_rng(0).multinomial(5, np.bincount(codes.flatten(), minlength=6) / codes.numel())
    assert list(found.parts) == [f"code {c}" for c in np.flatnonzero(counts)]
    mean = sum(counts[c] / 5 * found.parts[f"code {c}"].values for c in np.flatnonzero(counts))
    np.testing.assert_allclose(found.values, mean, atol=1e-9)


def test_what_codes_cannot_do_is_refused_and_an_unused_code_is_warned_of(discrete):
    vae, x, codes, read = discrete
    with pytest.raises(nv.InterventionError, match="per='position'"):
        nv.perturb_latents(vae, x, "codes", readout=read, per="unit")
    with pytest.raises(nv.InterventionError, match="does not fit a codebook"):
        nv.perturb_latents(vae, x, nv.Quantize(6), readout=read)
    one = x[:1]
    unused = next(c for c in range(6) if c not in codes[0])
    with pytest.warns(nv.NnsightVaeWarning, match=f"code {unused}: never used"):
        nv.perturb_latents(vae, one, nv.Quantize(unused), readout=read)
    misfit = nv.adapt(vq_vae(), codebook=torch.zeros(6, 3))
    with pytest.raises(nv.InterventionError, match="16 latent channels"):
        nv.perturb_latents(misfit, x, readout=read)


def test_codes_of_a_latent_without_positions_are_swapped_whole():
    model = copy.deepcopy(MODELS["mlp"])
    codebook = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    vae = nv.adapt(model, codebook=codebook)
    x = images(model, 20)
    found = nv.perturb_latents(vae, x, nv.Quantize(2), readout=nv.readouts.Pixels((20,)), units="latent.z")
    assert found.units == ("latent.z",)
    base = decoded(vae, vae.encode(x).mu)
    np.testing.assert_allclose(found.values[0], (decoded(vae, codebook[2].expand(20, 4)) - base).T, atol=1e-6)


# ---------------------------------------------------------------- models that compute no numbers


@pytest.mark.parametrize(("layer", "unit"), [("encoder.2", 3), ("fc_mu", 4), ("fc_logvar", 0)])
def test_a_model_whose_posterior_is_nan_is_refused_by_the_first_unit_that_is(layer, unit):
    model = copy.deepcopy(MODELS["conv"])
    with torch.no_grad():
        model.get_submodule(layer).bias[unit] = float("nan")
    vae, x = nv.VAE(model), images(model, 30)
    with pytest.raises(nv.DataError, match=rf"^{layer}\[{unit}\] is NaN for 30 of 30 inputs, without any intervention"):
        nv.perturb_latents(vae, x, readout=nv.readouts.Pixels(model.image)["pixel[0,0,0]"])


# ---------------------------------------------------------------- re-encoded latents


def test_effects_on_reencoded_latents_have_a_closed_form():
    vae, x, _, _, mu, h = setup()
    found = nv.perturb_latents(vae, x, [-1.0, 1.0], readout=nv.readouts.Reencoded(vae))
    assert found.targets == ("latent.mu[0]", "latent.mu[1]", "latent.mu[2]")
    np.testing.assert_allclose(found.values, np.broadcast_to(2 * h.T[..., None], found.values.shape), atol=1e-9)
    np.testing.assert_allclose(found.parts["1"].values, torch.einsum("nk,tk->ktn", 1 - mu, h), atol=1e-9)
    some = nv.perturb_latents(vae, x, [-1.0, 1.0], readout=nv.readouts.Reencoded(vae)["latent.mu[2]"])
    np.testing.assert_allclose(some.values[:, 0], found.values[:, 2], atol=1e-12)


def test_reencoding_inside_a_trace_is_encoding_and_leaves_the_model_as_it_was():
    model = copy.deepcopy(MODELS["conv"]).train()
    vae, x = nv.VAE(model), images(model, 30)
    found = nv.perturb_latents(vae, x, readout=nv.readouts.Reencoded(vae))
    assert model.training
    z = vae.encode(x).mu.detach()
    base = vae.encode(vae.decode(z)).mu
    high = float(posterior_quantiles(vae, x)[1, 3])
    z[:, 3] = high
    change = vae.encode(vae.decode(z)).mu - base
    np.testing.assert_allclose(found.parts["q0.95"].values[3], change.detach().T, atol=1e-6)


def test_reencoded_latents_with_positions_are_named_by_position(spatial):
    vae, x, *_ = spatial
    read = nv.readouts.Reencoded(vae)
    assert read.names[:2] == ("latent.mu[0]@0,0", "latent.mu[0]@0,1")
    assert len(read.names) == 32
    with torch.no_grad():
        assert torch.equal(read(x)[:, read.names.index("latent.mu[1]@2,3")], vae.encode(x).mu[:, 1, 2, 3])


def test_a_model_that_is_not_wrapped_cannot_be_read():
    with pytest.raises(nv.AdapterError, match="wrap it first"):
        nv.readouts.Reencoded(MODELS["mlp"])


def test_an_output_that_is_no_input_cannot_be_reencoded():
    vae, x, *_ = setup()
    wide = nv.adapt(vae.module, encoder=vae.module.encode, decoder=lambda z: vae.module.decode(z)[:, :4], example=x)
    with pytest.raises(nv.DataError, match="cannot run"):
        nv.perturb_latents(wide, x, readout=nv.readouts.Reencoded(wide))
