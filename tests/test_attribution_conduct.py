"""Attribution classes under Captum's own tools, at operations that are no modules, and what they leave behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attributed import B, X, conv, explained, loose
from captum.attr import IntegratedGradients, NoiseTunnel, Saliency
from captum.metrics import infidelity, sensitivity_max
from torch import nn
from torch.nn import functional as F
from vaes import ConvVAE, all_vaes, images, seeded

import nnsight_vae as nv
from nnsight_vae.attribution import (
    DecoderIntegratedGradients,
    DecoderJacobian,
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
