"""A layer given to Captum is the user's module, however it is named."""

from __future__ import annotations

import pytest
from attributed import X
from captum.attr import (
    LayerConductance,
)
from torch import nn
from vaes import ConvVAE, seeded

import nnsight_vae as nv
from nnsight_vae.attribution import captum_forward, captum_layer


def test_a_layer_is_the_users_module_however_it_is_named():
    model = seeded(ConvVAE())
    vae = nv.VAE(model)
    for named in ("encoder.2", vae.sites["encoder.2"], vae.encoder[2], model.encoder[2]):
        assert captum_layer(vae, named) is model.encoder[2]
    assert captum_layer(vae, "latent.mu") is vae._module.latent.mu


def test_a_container_envoy_is_the_container_not_a_list_of_its_children():
    vae = nv.VAE(seeded(ConvVAE()))
    through = LayerConductance(captum_forward(vae), captum_layer(vae, vae.encoder)).attribute(X, target=0)
    assert through.shape == (4, 12)  # Captum alone: the activations of the children, one tensor each


def test_what_is_no_layer_is_refused():
    class Reused(ConvVAE):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()

        def encode(self, x):
            h = self.act(self.act(self.encoder(x)))
            return self.fc_mu(h), self.fc_logvar(h)

    vae = nv.VAE(seeded(Reused()))
    for named, message in (
        ("act", "fires 2 times"),
        (vae.act, "fires 2 times"),
        ("encoder.2[1]", "names single units"),
        ("encoder.2@1,1", "names single units"),
        (nn.ReLU(), "no module of the VAE"),
        ("encoder.77", "not a site"),
    ):
        with pytest.raises(nv.SiteError, match=message):
            captum_layer(vae, named)
