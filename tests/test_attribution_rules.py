"""Rule-based methods of Captum are refused where they would be silently wrong, and run where they have rules."""

from __future__ import annotations

import pytest
import torch
from attributed import X
from captum.attr import (
    LRP,
    Deconvolution,
    DeepLift,
    GuidedBackprop,
    IntegratedGradients,
    LayerDeepLift,
    Saliency,
)
from torch import nn
from torch.nn import functional as F
from vaes import ConvVAE, images, seeded

import nnsight_vae as nv
from nnsight_vae.attribution import captum_forward, captum_layer, refuse_method

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor", "ignore:Setting forward", "ignore:Setting backward")


class Activated(nn.Module):
    """An MLP VAE whose one hidden non-linearity is given."""

    image = (6,)

    def __init__(self, hidden, *, act=None):
        super().__init__()
        self.first, self.second, self.decoder = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(4, 6)
        self.hidden = hidden
        self.act = act

    def encode(self, x):
        return self.second(self.hidden(self.first(x))).chunk(2, 1)

    def decode(self, z):
        return self.decoder(z)


SILENT = {
    "SiLU": (lambda: nn.SiLU(), "Silu"),
    "GroupNorm": (lambda: nn.GroupNorm(2, 8), "NativeGroupNorm"),
    "F.relu": (lambda: F.relu, "Relu as a function"),
    "torch.tanh": (lambda: torch.tanh, "Tanh as a function"),
    "gating": (lambda: lambda h: h * h, "Mul"),
    "exp": (lambda: torch.exp, "Exp"),
    "division": (lambda: lambda h: 1 / (2 + h), "Reciprocal"),
    "ratio": (lambda: lambda h: torch.ones_like(h) / (h + 9), "Div"),
    "an operation never heard of": (lambda: torch.sinc, "Sinc"),
}


def wrap(hidden):
    model = seeded(Activated(hidden))
    return nv.VAE(model, example=images(model, 1)), images(model, 3)


@pytest.mark.parametrize("name", SILENT)
@pytest.mark.parametrize("method", [DeepLift, GuidedBackprop, Deconvolution])
def test_rule_based_methods_refuse_non_linearities_they_would_silently_pass_over(method, name):
    make, named = SILENT[name]
    vae, x = wrap(make())
    if method is not DeepLift and name == "torch.tanh":
        named = "Tanh"  # not even as a module
    with pytest.raises(nv.NnsightVaeError, match=f"{method.__name__} has no rule for {named}.*IntegratedGradients"):
        method(captum_forward(vae)).attribute(x, target=0)


def test_layer_deep_lift_is_refused_too():
    vae, x = wrap(F.relu)
    with pytest.raises(nv.NnsightVaeError, match="Relu as a function"):
        LayerDeepLift(captum_forward(vae), captum_layer(vae, "first")).attribute(x, target=0)


class Rearranged(nn.Module):
    """Linear, by way of many operations."""

    def forward(self, h):
        h = torch.cat([h[:, :4] * 2.0, h[:, 4:].flip(1) / 3.0], 1).view(-1, 2, 4).transpose(1, 2).reshape(-1, 1, 8)
        h = F.pad(h.expand(-1, 3, -1).mean(1, keepdim=True), (1, 1)) @ torch.eye(10)
        return torch.stack(F.avg_pool1d(h, 3, 1).squeeze(1).unbind(1), 1)


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool = nn.MaxPool1d(2)

    def forward(self, h):
        return self.pool(h[:, None]).flatten(1).repeat(1, 2)


@pytest.mark.parametrize(
    "hidden",
    [
        Rearranged(),
        Pooled(),
        nn.ReLU(),
        nn.Tanh(),
        nn.Sigmoid(),
        nn.Softplus(),
        nn.ELU(),
        nn.LeakyReLU(),
        nn.Identity(),
    ],
)
def test_deep_lift_runs_and_is_complete_where_it_has_rules(hidden):
    vae, x = wrap(hidden)
    forward = captum_forward(vae)
    maps, delta = DeepLift(forward).attribute(x, target=0, return_convergence_delta=True)
    assert maps.abs().max() > 0
    assert delta.abs().max() < 1e-5


def test_guided_backprop_refuses_a_sigmoid_that_deep_lift_has_a_rule_for():
    vae, x = wrap(nn.Sigmoid())
    with pytest.raises(nv.NnsightVaeError, match="Sigmoid"):
        GuidedBackprop(captum_forward(vae)).attribute(x, target=0)


def test_only_what_lies_on_the_way_counts():
    vae = nv.VAE(seeded(ConvVAE()))  # a ReLU encoder; its KL has exp and a square, its decoder a sigmoid
    DeepLift(captum_forward(vae)).attribute(X, target=0)
    GuidedBackprop(captum_forward(vae)).attribute(X, target=0)
    with pytest.raises(nv.NnsightVaeError, match=r"Exp.*Pow.*between input and kl"):
        DeepLift(captum_forward(vae, "kl")).attribute(X, target=0)


def test_layerwise_relevance_points_to_zennit_and_other_methods_pass():
    vae = nv.VAE(seeded(ConvVAE()))
    with pytest.raises(nv.NnsightVaeError, match="zennit"):
        refuse_method(captum_forward(vae), LRP)
    with pytest.raises(nv.NnsightVaeError, match=r"LRP has rules for few layers.*zennit"):
        LRP(captum_forward(vae))
    for method in (IntegratedGradients, Saliency, DeepLift):
        refuse_method(captum_forward(vae), method)


def test_frozen_parameters_change_nothing_about_rules():
    vae, x = wrap(nn.SiLU())
    vae.module.requires_grad_(False)
    with pytest.raises(nv.NnsightVaeError, match="Silu"):
        DeepLift(captum_forward(vae)).attribute(x, target=0)
