"""Our attribution classes: closed forms on a linear VAE, Captum's own numbers, completeness, and what a target or baseline may be."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients, LayerAttribution, LayerConductance, LayerGradCam, NoiseTunnel, Saliency
from captum.metrics import infidelity, sensitivity_max
from hypothesis import given, settings, strategies as st
from linear import LinearReadout, random_linear_vae
from torch import nn
from torch.nn import functional as F
from vaes import ConvVAE, ResidualVAE, all_vaes, images, seeded

import nnsight_vae as nv
from nnsight_vae.attribution import (
    DecoderIntegratedGradients,
    DecoderJacobian,
    Direction,
    Distribution,
    LabelFree,
    LatentConductance,
    LatentGradCam,
    LatentIntegratedGradients,
    LatentShapley,
    LatentShift,
    SourceIntegratedGradients,
    captum_forward,
    captum_layer,
    record_of,
    unit_attributions,
)

X, B = images(ConvVAE, 4), images(ConvVAE, 4, seed=1)


def conv():
    return nv.VAE(seeded(ConvVAE()))


def linear_setup(seed):
    model = random_linear_vae(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    x, b = (torch.randn(4, 6, generator=generator, dtype=torch.double) for _ in range(2))
    z = torch.randn(4, 3, generator=generator, dtype=torch.double)
    read = LinearReadout(torch.randn(2, 6, generator=generator, dtype=torch.double))
    weights = [layer.weight.detach() for layer in (model.enc, model.mu, model.dec, model.out)]
    return nv.VAE(model), x, b, z, read, weights


# ---------------------------------------------------------------------- closed forms
@given(st.integers(0, 10_000))
@settings(max_examples=5, deadline=None, derandomize=True)
def test_every_class_equals_its_closed_form_on_a_linear_vae(seed):
    vae, x, b, z, read, (a1, a2, b1, b2) = linear_setup(seed)
    options = {"baselines": b, "target": None, "n_steps": 3, "return_convergence_delta": True}

    maps, delta = LatentIntegratedGradients(vae).attribute(x, **options)
    torch.testing.assert_close(maps, torch.einsum("ki,ni->nki", a2 @ a1, x - b), atol=1e-5, rtol=1e-5)
    assert delta.abs().max() < 1e-5

    units, delta = LatentConductance(vae, "enc").attribute(x, **options)
    torch.testing.assert_close(units, torch.einsum("ku,nu->nku", a2, (x - b) @ a1.T), atol=1e-9, rtol=1e-9)
    assert delta.abs().max() < 1e-9

    through, delta = LatentConductance(vae, "dec", read).attribute(x, **options)
    hidden = (x - b) @ (b1 @ a2 @ a1).T
    torch.testing.assert_close(through, torch.einsum("tu,nu->ntu", read.c @ b2, hidden), atol=1e-9, rtol=1e-9)

    parts, delta = DecoderIntegratedGradients(vae, read).attribute(
        z, target=None, n_steps=3, return_convergence_delta=True
    )
    torch.testing.assert_close(parts, torch.einsum("tk,nk->ntk", read.c @ b2 @ b1, z), atol=1e-5, rtol=1e-5)
    assert delta.abs().max() < 1e-5
    pixel = DecoderIntegratedGradients(vae).attribute(z, target=(2,), n_steps=3)
    torch.testing.assert_close(pixel, z * (b2 @ b1)[2], atol=1e-5, rtol=1e-5)

    code = x @ (a2 @ a1).T
    free = LabelFree(LatentIntegratedGradients(vae)).attribute(x, baselines=b, n_steps=3)
    torch.testing.assert_close(free, (code @ a2 @ a1) * (x - b), atol=1e-5, rtol=1e-5)


def test_a_constant_posterior_width_gets_zeros():
    vae, x, b, *_ = linear_setup(0)
    assert not LatentIntegratedGradients(vae, "logvar").attribute(x, baselines=b, target=None).any()


def test_kl_follows_its_own_curve():
    vae, x, b, _, _, (a1, a2, *_) = linear_setup(3)
    maps = LatentIntegratedGradients(vae, "kl").attribute(x, baselines=b, target=None, n_steps=3)
    w = a2 @ a1  # KL_k = mu_k^2 / 2 + const, whose gradient averaged over the path is the mean of mu at the two ends
    expected = torch.einsum("nk,ki,ni->nki", (x + b) @ w.T / 2, w, x - b)
    torch.testing.assert_close(maps, expected, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------------- against Captum
loose = pytest.mark.filterwarnings(
    "ignore::nnsight_vae.NnsightVaeWarning"
)  # few steps, and completeness is not the claim


def written(vae):
    return {"encoder.2[1]": nv.Set(0.7), "latent.mu[2]": nv.Scale(0.5)}


@loose
@pytest.mark.parametrize("to", ["mu", "logvar", "kl", "z"])
@pytest.mark.parametrize("intervened", [False, True])
def test_all_latents_at_once_are_captums_maps_one_by_one(to, intervened):
    vae = conv()
    options = {"interventions": written(vae) if intervened else None}
    eps = torch.randn(1, 5, generator=torch.Generator().manual_seed(0))
    method = LatentIntegratedGradients(vae, to, eps=eps, **options)
    maps, delta = method.attribute(X, baselines=B, target=None, n_steps=40, return_convergence_delta=True)
    assert (maps.shape, delta.shape, method.record.targets) == ((4, 5, 3, 16, 16), (4, 5), method.forward_func.names)
    captum = IntegratedGradients(captum_forward(vae, to, eps=eps, **options))
    for k in range(5):
        one, off = captum.attribute(X, baselines=B, target=k, n_steps=40, return_convergence_delta=True)
        torch.testing.assert_close(maps[:, k], one, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(delta[:, k], off, atol=1e-5, rtol=1e-4)
        alone, off = method.attribute(X, baselines=B, target=k, n_steps=40, return_convergence_delta=True)
        torch.testing.assert_close(maps[:, k], alone, atol=1e-6, rtol=1e-5)
        assert off.shape == (4,)


class CountingConv2d(nn.Conv2d):
    """A first layer that counts the rows it runs."""

    rows = 0

    def forward(self, x):
        CountingConv2d.rows += len(x)
        return super().forward(x)


class First(nn.Module):
    """One convolution and what is done around it."""

    image = (1, 6, 6)

    def __init__(self, before=lambda x: x, after=torch.tanh, beside=lambda x: 0.0):
        super().__init__()
        self.conv, self.head, self.decoder = CountingConv2d(1, 3, 3), nn.Linear(48, 4), nn.Linear(2, 36)
        self.before, self.after, self.beside = before, after, beside

    def encode(self, x):
        return (self.head(self.after(self.conv(self.before(x))).flatten(1)) + self.beside(x)).chunk(2, 1)

    def decode(self, z):
        return self.decoder(z).unflatten(1, (1, 6, 6))


ENTRIES = {  # what is done to a model -> whether its path may start after its first layer
    "plain": ({}, True),
    "normalised": ({"before": lambda x: (x - 0.5) / 0.25}, True),
    "rewritten in place": ({"after": lambda h: h.sub_(0.2).relu_()}, True),
    "curved before": ({"before": lambda x: x * x}, False),
    "gone past": ({"beside": lambda x: x.mean((1, 2, 3))[:, None]}, False),
}


@loose
@pytest.mark.parametrize("name", ENTRIES)
def test_a_path_starts_after_an_affine_first_layer_and_only_there(name):
    change, shared = ENTRIES[name]
    model = seeded(First(**change))
    vae, x, b = nv.VAE(model, example=images(model, 2)), images(model, 3), images(model, 3, seed=1)
    expected = IntegratedGradients(captum_forward(vae)).attribute(x, b, 1, n_steps=30)
    method = LatentIntegratedGradients(vae)
    CountingConv2d.rows = 0
    torch.testing.assert_close(method.attribute(x, b, 1, n_steps=30), expected, atol=1e-6, rtol=1e-4)
    assert (CountingConv2d.rows < 30 * 3) == shared, CountingConv2d.rows


@loose
def test_conductance_sees_what_a_layer_computes_not_what_later_code_makes_of_it():
    maps = []
    for after in (lambda h: (h - 0.2).relu(), lambda h: h.sub_(0.2).relu_()):
        model = seeded(First(after=after))
        vae, x, b = nv.VAE(model, example=images(model, 2)), images(model, 3), images(model, 3, seed=1)
        maps.append(LatentConductance(vae, "conv").attribute(x, b, 1))
    assert torch.equal(*maps)


class Rounded(nn.Module):
    """No gradient flows into it; out of it, one does."""

    def forward(self, h):
        return torch.round(4 * h).detach()


def test_a_layer_that_passes_no_gradient_on_still_has_its_own():
    rounded = Rounded()
    model = seeded(First(after=rounded))
    model.conv.requires_grad_(False)
    vae, x, b = nv.VAE(model, example=images(model, 2)), images(model, 3), images(model, 3, seed=1)
    units = LatentConductance(vae, "after").attribute(x, b, 1, n_steps=4)
    change = torch.round(4 * model.conv(x)) - torch.round(4 * model.conv(b))
    torch.testing.assert_close(units, change * model.head.weight[1].view(3, 4, 4))


@loose
def test_interventions_and_hooks_at_the_first_layer_are_kept():
    model = seeded(First())
    vae, x, b = nv.VAE(model, example=images(model, 2)), images(model, 3), images(model, 3, seed=1)
    plain = LatentIntegratedGradients(vae).attribute(x, b, 1)
    for site in ("conv[1]", "input"):
        held = {site: nv.Scale(0.5)}
        expected = IntegratedGradients(captum_forward(vae, interventions=held)).attribute(x, b, 1)
        maps = LatentIntegratedGradients(vae, interventions=held).attribute(x, b, 1)
        torch.testing.assert_close(maps, expected, atol=1e-6, rtol=1e-4)
        assert not torch.allclose(maps, plain)
    handle = model.conv.register_forward_hook(lambda module, args, output: 0.5 * output)
    expected = IntegratedGradients(captum_forward(vae)).attribute(x, b, 1)
    torch.testing.assert_close(LatentIntegratedGradients(vae).attribute(x, b, 1), expected, atol=1e-6, rtol=1e-4)
    handle.remove()


@loose
@pytest.mark.parametrize("method", ["riemann_trapezoid", "riemann_left", "riemann_middle"])
def test_captums_other_quadratures_are_captums(method):
    ours = LatentIntegratedGradients(conv()).attribute(X, baselines=B, target=1, n_steps=30, method=method)
    captum = IntegratedGradients(captum_forward(conv())).attribute(X, B, 1, n_steps=30, method=method)
    torch.testing.assert_close(ours, captum, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 4, 8, 17, 10_000])
def test_how_many_rows_run_at_a_time_changes_nothing(rows):
    vae = conv()
    for make in (LatentIntegratedGradients, lambda v: LatentConductance(v, "encoder.2")):
        whole = make(vae).attribute(X, baselines=B, target=None, n_steps=40)
        with np.testing.suppress_warnings() as quiet:
            quiet.filter(UserWarning)  # Captum's, below one row an example
            parts = make(vae).attribute(X, baselines=B, target=None, n_steps=40, internal_batch_size=rows)
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-5)


def literal_conductance(vae, layer, x, b, k, positions):
    """One example, one step at a time."""
    captured, forward = [], captum_forward(vae)
    handle = captum_layer(vae, layer).register_forward_hook(lambda m, a, out: captured.append(out))
    total, previous = 0, None
    for a in positions:
        mu = forward(b + a * (x - b))[:, k].sum()
        (gradient,) = torch.autograd.grad(mu, captured[-1])
        here = (captured[-1].detach(), gradient)
        if previous is not None:
            total = total + (here[0] - previous[0]) * (here[1] + previous[1]) / 2
        previous = here
    handle.remove()
    return total


@loose
def test_conductance_is_the_sum_over_steps_written_out():
    vae = conv()
    ours = LatentConductance(vae, "encoder.2").attribute(X, B, 1, n_steps=12, method="riemann_trapezoid")
    steps = torch.linspace(0, 1, 13).tolist()
    torch.testing.assert_close(ours, literal_conductance(vae, "encoder.2", X, B, 1, steps), atol=1e-6, rtol=1e-4)


def test_conductance_has_captums_limit_and_a_smaller_error():
    vae = nv.load("pendulum-beta-vae")
    x = nv.datasets.load("pendulum").sample(2, seed=0).images
    b, layer = x.mean(0, keepdim=True), "encoder.1"
    captum = LayerConductance(captum_forward(vae), captum_layer(vae, layer))
    ours = LatentConductance(vae, layer)
    change = captum_forward(vae)(x)[:, 2] - captum_forward(vae)(b)[:, 2]
    off = lambda maps: float((maps.flatten(1).sum(1) - change).abs().sum() / change.abs().sum())
    assert off(ours.attribute(x, b, 2, n_steps=50)) < 0.5 * off(captum.attribute(x, b, 2, n_steps=50).detach())
    near, far = ours.attribute(x, b, 2, n_steps=400), captum.attribute(x, b, 2, n_steps=400).detach()
    assert (near - far).abs().max() < 0.01 * far.abs().max()


@pytest.mark.parametrize("layer", ["encoder.0", "encoder.2", "encoder.3"])
@pytest.mark.parametrize("relu", [False, True])
def test_attention_maps_are_captums_one_by_one(layer, relu):
    vae = conv()
    maps = LatentGradCam(vae, layer).attribute(X, target=None, relu_attributions=relu)
    captum = LayerGradCam(captum_forward(vae), captum_layer(vae, layer))
    for k in range(5):
        one = captum.attribute(X, target=k, relu_attributions=relu)
        torch.testing.assert_close(maps[:, k], LayerAttribution.interpolate(one, (16, 16), "bilinear"))
        small = LatentGradCam(vae, layer).attribute(X, target=k, relu_attributions=relu, upsample=None)
        torch.testing.assert_close(small, one)
    assert maps.abs().max() > 0


def test_attention_needs_positions():
    with pytest.raises(nv.DataError, match="LatentConductance"):
        LatentGradCam(conv(), "fc_mu").attribute(X, target=0)


# ---------------------------------------------------------------------- completeness
@loose
def test_integrated_gradients_are_complete_on_the_bundled_vae_and_the_error_falls_with_the_steps():
    vae = nv.load("pendulum-beta-vae")
    x = nv.datasets.load("pendulum").sample(3, seed=0).images
    method = LatentIntegratedGradients(vae)
    used = vae.encode(x).kl().mean(0) > 0.1
    assert used.sum() >= 6
    errors = {}
    for n_steps in (25, 50, 100, 200):
        _, delta = method.attribute(x, target=None, n_steps=n_steps, return_convergence_delta=True)
        change = captum_forward(vae)(x) - captum_forward(vae)(x.mean(0, keepdim=True))
        errors[n_steps] = float((delta.abs().sum(0) / change.abs().sum(0))[used].max())
    assert errors[200] < 0.01
    slope = np.polyfit(np.log(list(errors)), np.log(list(errors.values())), 1)[0]
    assert -1.6 < slope < -0.6, errors  # about 1/n


def test_a_loose_sum_is_warned_about_by_name_and_recorded():
    vae = nv.load("pendulum-beta-vae")
    x = nv.datasets.load("pendulum").sample(4, seed=0).images
    method = LatentIntegratedGradients(vae)
    with pytest.warns(nv.NnsightVaeWarning, match=r"latent\.mu\[2\].*Raise n_steps") as caught:
        maps = method.attribute(x, target=2, n_steps=1)
    assert caught[0].filename == __file__
    assert "incomplete" in method.flags["latent.mu[2]"]
    change = captum_forward(vae)(x)[:, 2] - captum_forward(vae)(x.mean(0, keepdim=True))[:, 2]
    torch.testing.assert_close(method.record.delta, maps.flatten(1).sum(1) - change)
    torch.testing.assert_close(method.compute_convergence_delta(maps, None, x, target=2), method.record.delta)


# ---------------------------------------------------------------------- collapsed latents
class Collapsed(ConvVAE):
    """Latent 2 is the prior whatever the input; latent 4 is nearly."""

    def encode(self, x):
        mu, logvar = super().encode(x)
        scale = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.01])
        return mu * scale, logvar * scale


def test_collapsed_latents_get_zeros_and_a_flag_and_no_warning():
    vae = nv.VAE(seeded(Collapsed()))
    for method in (
        LatentIntegratedGradients(vae),
        LatentConductance(vae, "encoder.2"),
        LatentGradCam(vae, "encoder.2"),
    ):
        options = {} if isinstance(method, LatentGradCam) else {"baselines": B, "n_steps": 60}
        maps = method.attribute(X, target=None, **options)
        assert set(method.flags) == {"latent.mu[2]", "latent.mu[4]"}
        assert all("collapsed: KL to the prior is" in text for text in method.flags.values())
        assert not maps[:, [2, 4]].any()
        assert all(maps[:, k].any() for k in (0, 1, 3))
        assert not method.attribute(X, target=4, **options).any()
        method.attribute(X, target=0, **options)
        assert not method.flags


def test_a_latent_that_an_intervention_collapses_is_flagged():
    held = {"latent.mu[0]": nv.Set(0.0), "latent.logvar[0]": nv.Scale(0.01)}
    method = LatentIntegratedGradients(conv(), "kl", interventions=held)
    assert not method.attribute(X, baselines=B, target=0).any()
    assert "collapsed" in method.flags["kl[0]"]


# ---------------------------------------------------------------------- targets
def explained(target, vae=None, x=X, b=B):
    vae = vae or conv()
    return LatentIntegratedGradients(vae).attribute(x, baselines=b, target=target, n_steps=40)


def test_a_target_is_named_in_any_of_these_ways():
    every = explained(None)
    for target, expected in (
        (2, every[:, 2]),
        (-1, every[:, 4]),
        (np.int64(1), every[:, 1]),
        (torch.tensor(3), every[:, 3]),
        ((3,), every[:, 3]),
        ("latent.mu[3]", every[:, 3]),
        (slice(1, 3), every[:, 1:3].mean(1)),
        ([0, 1, 4, 1], every[range(4), [0, 1, 4, 1]]),
        (torch.tensor([0, 1, 4, 1]), every[range(4), [0, 1, 4, 1]]),
        (lambda mu: mu[:, 1] - mu[:, 0], every[:, 1] - every[:, 0]),
        (Direction(torch.tensor([0.0, 2.0, 0.0, -1.0, 0.0])), 2 * every[:, 1] - every[:, 3]),
        (Direction(torch.eye(5)[[0, 1, 4, 1]]), every[range(4), [0, 1, 4, 1]]),
    ):
        torch.testing.assert_close(explained(target), expected, atol=1e-6, rtol=1e-4)


def test_a_spatial_latent_is_named_by_channel_or_element():
    model = seeded(ResidualVAE())
    vae, x, b = nv.VAE(model), images(model, 3), images(model, 3, seed=1)
    element = lambda *index: explained(index, vae, x, b)
    grid = list(itertools.product(range(4), range(4)))
    pooled = torch.stack([element(1, i, j) for i, j in grid]).mean(0)
    for target, expected in (
        (1, pooled),
        (slice(1, 2), pooled),
        ("latent.mu[1]", pooled),
        ((1, 2, slice(0, 2)), (element(1, 2, 0) + element(1, 2, 1)) / 2),
        (
            [(0, 1, 2), (1, 0, 0), (1, 3, 3)],
            torch.stack([element(0, 1, 2)[0], element(1, 0, 0)[1], element(1, 3, 3)[2]]),
        ),
        (lambda mu: mu[:, 1, 2, 0], element(1, 2, 0)),
    ):
        torch.testing.assert_close(explained(target, vae, x, b), expected, atol=1e-6, rtol=1e-4)
    every = explained(None, vae, x, b)
    assert every.shape == (3, 2, 1, 8, 8)
    torch.testing.assert_close(every[:, 1], pooled, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (5, r"\[5\] is out of range.*\(5,\)"),
        (-6, "out of range"),
        (True, "int"),
        (1.0, "callable; got float"),
        ("angle", "has no target 'angle'.*latent.mu"),
        ((0, 0), "has 2 indices"),
        (slice(3, 3), "is empty"),
        ([0, 1], "one entry per example: got 2 for 4"),
        ([0, 1, 2, 5], "out of range"),
        (["a", "b", "c", "d"], "out of range"),
        (torch.tensor([0.0, 1.0, 2.0, 3.0]), "one integer"),
        (torch.zeros(4, 1, dtype=torch.long), "one integer"),
        (lambda mu: mu, "one number a row"),
        (Direction(torch.zeros(4)), r"a Direction has shape \(5,\)"),
    ],
)
def test_a_target_that_is_none_is_refused(target, message):
    with pytest.raises(nv.ReadoutError, match=message):
        explained(target)


def test_a_reconstruction_is_explained_pixel_by_pixel():
    vae = conv()
    z = vae.encode(X).mu
    with pytest.raises(nv.ReadoutError, match="has 768; pick one by index"):
        DecoderIntegratedGradients(vae).attribute(z, target=None)
    with pytest.raises(nv.ReadoutError, match="no named targets"):
        DecoderIntegratedGradients(vae).attribute(z, target="angle")
    moved = vae.decode(z) - vae.decode(0 * z)
    c, i, j = np.unravel_index(int(moved.abs().mean(0).argmax()), moved.shape[1:])
    parts = DecoderIntegratedGradients(vae).attribute(z, target=(c, i, j), n_steps=200)
    torch.testing.assert_close(parts.sum(1), moved[:, c, i, j], atol=1e-3, rtol=1e-2)


# ---------------------------------------------------------------------- baselines
def test_baselines_are_what_their_names_say():
    vae, reference = conv(), images(ConvVAE, 9, seed=3)
    for spec, value, name in (
        (None, X.mean(0, keepdim=True), "mean of the inputs"),
        ("mean", X.mean(0, keepdim=True), "mean of the inputs"),
        ("black", torch.zeros(1, 3, 16, 16), "black"),
        ("prior", vae.decode(torch.zeros(1, 5)), "prior mean, decoded"),
        (0.25, torch.full((1, 3, 16, 16), 0.25), "constant 0.25"),
        (B[0], B[:1], "given"),
        (B[:1], B[:1], "given"),
        (B, B, "given"),
        (nv.Pairs(X, B), B, "source of each pair"),
    ):
        method = LatentIntegratedGradients(vae)
        maps = method.attribute(X, baselines=spec, target=1, n_steps=60)
        expected = IntegratedGradients(captum_forward(vae)).attribute(X, value.detach(), 1, n_steps=60)
        torch.testing.assert_close(maps, expected, atol=1e-6, rtol=1e-4)
        assert method.record.baseline == name
    method = LatentIntegratedGradients(vae, reference=reference)
    expected = method.attribute(X, baselines=reference.mean(0), target=1, n_steps=60)
    torch.testing.assert_close(method.attribute(X, target=1, n_steps=60), expected)
    assert method.record.baseline == "mean of the reference"


def test_latents_start_at_the_prior_mean_or_at_the_code_of_the_source():
    vae = conv()
    z, region = vae.encode(X).mu.detach(), nv.readouts.Region({"top": (slice(0, 8), slice(0, 16))})
    method, eps = DecoderIntegratedGradients(vae, region), torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    for spec, value, name in (
        (None, torch.zeros(1, 5), "prior mean"),
        ("prior", torch.zeros(1, 5), "prior mean"),
        ("mean", z.mean(0, keepdim=True), "mean of the inputs"),
        (nv.Pairs(X, B), vae.encode(B).mu, "source of each pair"),
        (nv.Pairs(X, B, eps=eps), vae.encode(B).rsample(eps), "source of each pair"),
    ):
        captum = IntegratedGradients(captum_forward(vae, region, of="z"))
        expected = captum.attribute(z, value.detach(), 0, n_steps=60)
        torch.testing.assert_close(method.attribute(z, spec, "top", n_steps=60), expected, atol=1e-6, rtol=1e-4)
        assert method.record.baseline == name


@pytest.mark.parametrize("make", [LatentIntegratedGradients, lambda v: LatentConductance(v, "encoder.2")])
def test_a_distribution_of_baselines_is_their_mean(make):
    method = make(conv())
    maps, delta = method.attribute(X, Distribution(B), 1, n_steps=60, return_convergence_delta=True)
    each = [method.attribute(X, b, 1, n_steps=60, return_convergence_delta=True) for b in B]
    torch.testing.assert_close(maps, torch.stack([m for m, _ in each]).mean(0), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(delta, torch.stack([d for _, d in each]).mean(0), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        (B[:3], "3 rows for 4 examples.*Distribution"),
        (B[:, :2], "baselines: .*"),
        (B[:, :, :8], "baselines: .*"),
        (B.double(), "baselines: .*float64"),
        ((B * 255).byte(), "baselines: .*uint8"),
        (B * float("nan"), "baselines: .*NaN"),
        (float("inf"), "not finite"),
        ("white", "not known"),
        ("source", "baselines=pairs"),
        (nv.Pairs(X[:2], B[:2]), "2 pairs for 4 examples"),
        ([0.0], "got list"),
        ((B, B), "tuple of 2"),
    ],
)
def test_a_baseline_that_does_not_fit_is_refused(baseline, message):
    with pytest.raises(nv.DataError, match=message):
        LatentIntegratedGradients(conv()).attribute(X, baselines=baseline, target=0)


@pytest.mark.parametrize(
    ("baseline", "reference"),
    [(lambda x: x[..., :4], None), (lambda x: nv.Pairs(x[..., :4], x[..., :4]), None), (lambda x: "mean", 4)],
)
def test_a_convolutional_vae_refuses_a_baseline_of_another_size_and_keeps_its_own(baseline, reference):
    model = seeded(ResidualVAE())
    vae, x = nv.VAE(model), images(model, 4)
    method = LatentIntegratedGradients(vae, reference=None if reference is None else x[..., :reference])
    with pytest.raises(
        nv.DataError, match=r"baselines: shape \(4, 1, 8, 4\) does not fit inputs of shape \('n', 1, 8, 8\)"
    ):
        method.attribute(x, baselines=baseline(x), target=0)
    assert vae.sites["input"].shape == (1, 8, 8)


def test_the_mean_of_one_image_is_refused_rather_than_explained_as_nothing():
    with pytest.raises(nv.DataError, match="reference=images"):
        LatentIntegratedGradients(conv()).attribute(X[:1], target=0)


# ---------------------------------------------------------------------- Captum's own tools on our classes
def our_methods(vae):
    yield LatentIntegratedGradients(vae), {"baselines": B[:1]}
    yield LatentConductance(vae, "encoder.2"), {"baselines": B[:1]}
    yield LatentGradCam(vae, "encoder.2"), {}
    yield LabelFree(LatentIntegratedGradients(vae)), {"baselines": B[:1]}
    yield LabelFree(IntegratedGradients(captum_forward(vae))), {"baselines": B[:1]}


def test_noise_tunnel_without_noise_is_the_method_and_with_noise_smooths():
    vae = conv()
    for method, options in our_methods(vae):
        for target in (None,) if isinstance(method, LabelFree) else (None, 1, [0, 1, 2, 3]):
            asked = {} if isinstance(method, LabelFree) else {"target": target}
            plain = method.attribute(X, **asked, **options)
            still = NoiseTunnel(method).attribute(X, nt_samples=2, stdevs=0.0, **asked, **options)
            torch.testing.assert_close(still, plain, atol=1e-6, rtol=1e-4)
    torch.manual_seed(0)
    noisy = NoiseTunnel(LatentIntegratedGradients(vae)).attribute(
        X, nt_samples=3, stdevs=0.1, baselines=B[:1], target=1
    )
    assert 0 < (noisy - explained(1, vae, b=B[:1])).abs().max() < 1


def test_captums_metrics_run_on_our_classes_and_know_good_maps_from_bad():
    vae = conv()
    method = LatentIntegratedGradients(vae)
    maps = method.attribute(X, baselines=B[:1], target=1)

    def remove(inputs):
        kept = (torch.rand(inputs.shape, generator=generator) > 0.5).float()
        return (1 - kept) * (inputs - B[:1]), inputs * kept + B[:1] * (1 - kept)

    per_unit = maps / (X - B[:1])
    scores = []
    for candidate in (per_unit, per_unit.flip(0)):
        generator = torch.Generator().manual_seed(0)
        scores.append(
            float(infidelity(captum_forward(vae), remove, X, candidate, target=1, n_perturb_samples=4).mean())
        )
    assert scores[0] < 0.5 * scores[1]
    torch.manual_seed(0)
    change = sensitivity_max(method.attribute, X, n_perturb_samples=2, baselines=B[:1], target=1)
    assert change.shape == (4,)
    assert 0 < change.max() < 1


def test_a_tuple_in_is_a_tuple_out():
    (maps,) = LatentIntegratedGradients(conv()).attribute((X,), baselines=(B,), target=(1,), n_steps=40)
    torch.testing.assert_close(maps, explained(1))


def test_label_free_is_captums_on_the_function_written_out():
    vae = conv()
    forward = captum_forward(vae)
    code = forward(X).detach()
    expected = IntegratedGradients(lambda x, code: (forward(x) * code).sum(1)).attribute(
        X, B, additional_forward_args=code, n_steps=40
    )
    for method in (IntegratedGradients(forward), LatentIntegratedGradients(vae)):
        got = LabelFree(method).attribute(X, baselines=B, n_steps=40)
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-4)
        assert method.forward_func(X).shape == (4, 5)  # the method itself is as it was
    (gradient,) = torch.autograd.grad((forward(x := X.clone().requires_grad_()) * code).sum(), x)
    with pytest.warns(UserWarning, match="did not already require"):
        torch.testing.assert_close(LabelFree(Saliency(forward)).attribute(X.clone(), abs=False), gradient)


def test_label_free_refuses_what_would_not_be_label_free():
    vae = conv()
    with pytest.raises(nv.DataError, match="no target"):
        LabelFree(LatentIntegratedGradients(vae)).attribute(X, baselines=B, target=1)
    with pytest.raises(nv.DataError, match="NoiseTunnel\\(LabelFree"):
        LabelFree(NoiseTunnel(LatentIntegratedGradients(vae)))
    with pytest.raises(nv.DataError, match="an instance"):
        LabelFree(LatentIntegratedGradients)


# ---------------------------------------------------------------------- operations that are no modules
class FunctionalEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)
        self.act = nn.ReLU()

    def forward(self, x):
        h = F.relu(self.first(x))
        return self.second(h).chunk(2, 1)


class ModularEncoder(FunctionalEncoder):
    def forward(self, x):
        return self.second(self.act(self.first(x))).chunk(2, 1)


class Coded(nn.Module):
    image = (6,)

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.decoder = encoder, nn.Linear(2, 6)

    def encode(self, x):
        return self.encoder(x)

    def decode(self, z):
        return self.decoder(z)


def test_an_operation_is_attributed_like_the_module_it_could_have_been():
    from captum.attr import LayerIntegratedGradients

    model = seeded(Coded(FunctionalEncoder()))
    x, b = images(model, 4), images(model, 4, seed=1)
    vae = nv.VAE(model, example=x)
    twin = nv.VAE(seeded(Coded(ModularEncoder())), example=x)
    method = SourceIntegratedGradients(vae, "encoder", "F_relu_0")
    maps, delta = method.attribute(x, baselines=b, target=None, n_steps=5, return_convergence_delta=True)
    assert maps.shape == (4, 2, 8)
    assert delta.abs().max() < 1e-6  # linear from there on
    layer = LayerIntegratedGradients(captum_forward(twin), captum_layer(twin, "encoder.act"))
    for k in range(2):
        torch.testing.assert_close(maps[:, k], layer.attribute(x, b, k, n_steps=5), atol=1e-6, rtol=1e-5)
    assert method.record.of == "encoder.source.F_relu_0"
    region = nv.readouts.Pixels((6,))
    method = SourceIntegratedGradients(vae, "encoder", "F_relu_0", region)
    _, delta = method.attribute(x, baselines=b, target=None, n_steps=5, return_convergence_delta=True)
    assert delta.abs().max() < 1e-5
    assert vae.unwrap() is model
    assert "forward" not in model.encoder.__dict__


def test_an_operation_that_is_none_is_refused():
    model = seeded(Coded(FunctionalEncoder()))
    vae = nv.VAE(model, example=images(model, 2))
    for module, operation, message in (
        ("encoder", "relu", "no operation 'relu'; it has: .*F_relu_0"),
        ("nothing", "F_relu_0", "does not run"),
        ("encoder.first", "F_relu_0", "no operation"),
    ):
        with pytest.raises(nv.SiteError, match=message):
            SourceIntegratedGradients(vae, module, operation)

    class Twice(Coded):
        def encode(self, x):
            return self.encoder(x)[0], self.encoder(x)[1]

    twice = seeded(Twice(FunctionalEncoder()))
    with pytest.raises(nv.SiteError, match="runs 2 times"):
        SourceIntegratedGradients(nv.VAE(twice, example=images(twice, 2)), "encoder", "F_relu_0")
    with pytest.raises(nv.SiteError, match="returns tuple"):
        SourceIntegratedGradients(vae, "encoder", "chunk_0").attribute(images(model, 2), baselines="black")


# ---------------------------------------------------------------------- inputs, records, and what is left behind
@pytest.mark.parametrize(
    ("x", "message"),
    [
        ((X * 255).byte(), "uint8"),
        (X.long(), "int64"),
        (X.double(), "float64"),
        (X.half(), "float16"),
        (X[:0], "non-empty"),
        (X[:, :1], "cannot run|shape"),
        (X * float("nan"), "NaN"),
        (X.numpy(), "torch tensor"),
        ((X, X), "tuple of 2"),
    ],
)
@pytest.mark.parametrize("make", [LatentIntegratedGradients, lambda v: LatentGradCam(v, "encoder.2")])
def test_inputs_that_cannot_be_explained_are_refused(make, x, message):
    with pytest.raises(nv.DataError, match=message):
        make(conv()).attribute(x, target=0)


@pytest.mark.parametrize("make", [LatentIntegratedGradients, lambda v: LatentConductance(v, "encoder.2")])
@pytest.mark.parametrize(
    "path",
    [
        {"n_steps": 0},
        {"n_steps": 2.5},
        {"n_steps": True},
        {"n_steps": 1, "method": "riemann_trapezoid"},
        {"method": "x"},
        {"internal_batch_size": 0},
        {"internal_batch_size": "a"},
        {"internal_batch_size": True},
    ],
)
def test_a_path_that_is_none_is_refused(make, path):
    with pytest.raises(nv.DataError, match=r"(n_steps|method|internal_batch_size) must be"):
        make(conv()).attribute(X, baselines=B, target=0, **path)


TOP = nv.readouts.Region({"top": (slice(0, 8), slice(0, 16))})
METHODS = {
    "pixels": lambda vae, x, z: LatentIntegratedGradients(vae).attribute(x, B, target=0),
    "layer": lambda vae, x, z: LatentConductance(vae, "encoder.2").attribute(x, B, target=0),
    "attention": lambda vae, x, z: LatentGradCam(vae, "encoder.2").attribute(x, target=0),
    "label free": lambda vae, x, z: LabelFree(LatentIntegratedGradients(vae)).attribute(x, B),
    "latents": lambda vae, x, z: DecoderIntegratedGradients(vae, TOP).attribute(z, target=0),
    "jacobian": lambda vae, x, z: DecoderJacobian(vae).attribute(z),
    "shift": lambda vae, x, z: LatentShift(vae, TOP).attribute(z, target=0, amount=0.001),
    "units": lambda vae, x, z: unit_attributions(vae, nv.Pairs(x, B), ["encoder.2"], readout=TOP).values,
    "shapley": lambda vae, x, z: LatentShapley(vae, TOP).attribute(z),
}


@pytest.mark.parametrize("name", METHODS)
def test_inference_mode_is_refused_where_it_would_make_zeros_and_its_tensors_are_taken(name):
    vae, z, run = conv(), torch.randn(4, 5, generator=torch.Generator().manual_seed(0)), METHODS[name]
    expected = run(vae, X, z)
    assert (expected != 0).any()
    with torch.inference_mode():
        x, code = X.clone(), z.clone()
        if name == "shapley":  # takes no gradient
            assert torch.equal(run(vae, x, code), expected)
        else:
            with pytest.raises(nv.DataError, match="inference_mode"):
                run(vae, x, code)
    np.testing.assert_array_equal(run(vae, x, code), expected)


def test_latents_of_another_shape_are_refused():
    with pytest.raises(nv.DataError, match=r"z has shape \(2, 4\), expected \('n', 5\)"):
        DecoderIntegratedGradients(conv()).attribute(torch.zeros(2, 4), target=(0, 0, 0))


def test_layers_that_cannot_matter_are_refused():
    vae = conv()
    with pytest.raises(nv.SiteError, match=r"comes after 'latent\.mu'"):
        LatentConductance(vae, "decoder.2")
    with pytest.raises(nv.SiteError, match="not run when of='z'"):
        LatentConductance(vae, "encoder.2", "reconstruction", of="z")


def test_an_envoy_stands_for_its_module():
    vae = conv()
    by_name, by_envoy = (LatentConductance(vae, layer).attribute(X, B, 0) for layer in ("encoder.2", vae.encoder[2]))
    assert torch.equal(by_name, by_envoy)


def test_the_record_travels_with_the_tensor_and_no_further():
    method = LatentConductance(conv(), "encoder.2")
    maps = method.attribute(X, baselines=B, target=None, n_steps=60)
    record = record_of(maps)
    assert record is method.record
    assert (record.method, record.of, record.baseline) == ("LatentConductance", "encoder.2", "given")
    assert (record.targets, record.target_axis) == (tuple(f"latent.mu[{k}]" for k in range(5)), True)
    assert record.settings == {"n_steps": 60, "method": "gausslegendre"}
    assert type(maps) is torch.Tensor
    assert not maps.requires_grad
    assert record_of(maps * 1) is None


def test_nothing_is_left_of_a_call_that_fails():
    model = seeded(ConvVAE()).train()
    vae = nv.VAE(model)
    x = X.clone().requires_grad_()
    flags = [p.requires_grad for p in model.parameters()]
    modules = {m: (set(m.__dict__), len(m._forward_hooks)) for m in model.modules()}

    def fails(mu):
        raise ZeroDivisionError

    for method in (
        LatentIntegratedGradients(vae),
        LatentConductance(vae, "encoder.2"),
        LatentGradCam(vae, "encoder.2"),
    ):
        with pytest.raises(ZeroDivisionError):
            method.attribute(x, target=fails)
        assert not method.attribute(x, target=0).requires_grad
        assert method.record is not None
    assert {m: (set(m.__dict__), len(m._forward_hooks)) for m in model.modules()} == modules
    assert all(m.training for m in model.modules())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert x.requires_grad
    assert x.grad is None
    assert not X.requires_grad


def test_frozen_models_and_callers_without_gradients_are_explained_alike():
    vae = conv()
    expected = [m.attribute(X, **o) for m, o in our_methods(vae)]
    vae.module.requires_grad_(False)
    with torch.no_grad():
        found = [m.attribute(X, **o) for m, o in our_methods(vae)]
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other)


def test_per_example_noise_follows_its_example():
    vae, eps = conv(), torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    region = nv.readouts.Region({"top": (slice(0, 8), slice(0, 16))})
    together = LatentIntegratedGradients(vae, region, eps=eps).attribute(X, baselines=B, target=0)
    for i in range(4):
        alone = LatentIntegratedGradients(vae, region, eps=eps[i : i + 1])
        torch.testing.assert_close(alone.attribute(X[i : i + 1], B[i : i + 1], 0), together[i : i + 1])
    method = LatentIntegratedGradients(vae, region, eps=eps)
    picked = method.attribute(X[[3, 1]], B[[3, 1]], 0, torch.tensor([3, 1]))
    torch.testing.assert_close(picked, together[[3, 1]])
    with pytest.raises(nv.DataError, match="for 4 examples, inputs hold 2"):
        method.attribute(X[:2], B[:2], 0)
    with pytest.raises(nv.DataError, match="int64 numbers"):
        method.attribute(X, B, 0, eps)


@loose
@pytest.mark.parametrize("name", all_vaes())
def test_every_kind_of_vae_is_explained(name):
    model = all_vaes()[name]
    x, b = images(model, 3), images(model, 3, seed=1)
    vae = nv.VAE(model, example=x)
    maps = LatentIntegratedGradients(vae).attribute(x, baselines=b, target=None)
    n_latents = vae.sites["latent.mu"].n_units
    assert maps.shape == (3, n_latents, *model.image)
    z = vae.encode(x).mu
    parts = DecoderIntegratedGradients(vae).attribute(z, target=(0,) * len(model.image))
    assert parts.shape == z.shape


def test_the_stories_lines():
    vae, data = nv.load("pendulum-beta-vae"), nv.datasets.load("pendulum")
    images = data.sample(4, seed=0).images
    z = vae.encode(images).mu
    maps = nv.attribution.LatentIntegratedGradients(vae).attribute(images, target=None)
    assert maps.shape == (4, 8, 3, 64, 64)
    out = nv.attribution.DecoderIntegratedGradients(vae, data.readout()).attribute(z, target="angle")
    assert out.shape == (4, 8)
    angle = data.readout()["angle"]
    moved = (angle(vae.decode(z)) - angle(vae.decode(0 * z)))[:, 0]
    torch.testing.assert_close(out.sum(1), moved, atol=0.05, rtol=0.05)
