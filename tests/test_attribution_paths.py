"""Our attribution classes: closed forms on a linear VAE, Captum's own numbers, completeness, and what a target or baseline may be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attributed import B, X, conv, loose
from captum.attr import IntegratedGradients, LayerAttribution, LayerConductance, LayerGradCam
from hypothesis import given, settings, strategies as st
from linear import LinearReadout, random_linear_vae
from torch import nn
from vaes import ConvVAE, images, seeded

import nnsight_vae as nv
from nnsight_vae.attribution import (
    DecoderIntegratedGradients,
    LabelFree,
    LatentConductance,
    LatentGradCam,
    LatentIntegratedGradients,
    captum_forward,
    captum_layer,
)


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
