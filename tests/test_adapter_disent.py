"""disent's frameworks against their own calls."""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from matrix import conforms, seeded
from torch import nn

import nnsight_vae as nv

pytest.importorskip("lightning", reason="disent needs lightning")
IMAGE, LATENT = (1, 8, 8), 4
_TORCHVISION = ("", ".datasets", ".models", ".transforms", ".transforms.functional")


class Absent(ModuleType):
    """Stands for torchvision while disent is imported: what is used here needs nothing of it, but its __init__ files import it."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def imported():
    """disent, whether torchvision is installed or not (no release of it fits the CPU build of torch that we test with)."""
    stubs = {f"torchvision{name}": Absent(f"torchvision{name}") for name in _TORCHVISION}
    for name, stub in stubs.items():
        stub.__path__, stub.__spec__ = [], ModuleSpec(name, None)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(stubs[parent], child, stub)
    try:
        importlib.import_module("torchmetrics")  # looks for torchvision too, and should not find a stub
        importlib.import_module("torchvision")
        stubs = {}
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules.update(stubs)
    try:
        importlib.import_module("disent.frameworks.ae")
        importlib.import_module("disent.frameworks.vae")
        return importlib.import_module("disent.model")
    except (ImportError, SyntaxError) as error:
        pytest.skip(f"disent cannot be imported here: {error}")
    finally:
        for name in stubs:
            del sys.modules[name]


@pytest.fixture(scope="module")
def disent():
    return imported()


@pytest.fixture
def x():
    return torch.rand(5, *IMAGE, generator=seeded())


def autoencoder(disent, multiplier=2):
    """Small networks in the form of disent's own, whose layers have 1200 units."""

    class Encoder(disent.DisentEncoder):
        def __init__(self):
            super().__init__(x_shape=IMAGE, z_size=LATENT, z_multiplier=multiplier)
            self.model = nn.Sequential(
                nn.Flatten(), nn.Linear(64, 8), nn.ReLU(inplace=True), nn.Linear(8, self.z_total)
            )

        def encode(self, x):
            return self.model(x)

    class Decoder(disent.DisentDecoder):
        def __init__(self):
            super().__init__(x_shape=IMAGE, z_size=LATENT)
            self.model = nn.Sequential(
                nn.Linear(LATENT, 8), nn.ReLU(inplace=True), nn.Linear(8, 64), nn.Unflatten(1, IMAGE)
            )

        def decode(self, z):
            return self.model(z)

    torch.manual_seed(0)
    return disent.AutoEncoder(Encoder(), Decoder())


def framework(disent, name, **options):
    kind = getattr(importlib.import_module(f"disent.frameworks.{'ae' if name == 'Ae' else 'vae'}"), name)
    return kind(model=autoencoder(disent, 1 if name == "Ae" else 2), cfg=kind.cfg(**options)).eval()


@pytest.mark.parametrize("name", ["Vae", "BetaVae", "BetaTcVae", "DipVae", "InfoVae", "AdaVae", "Ae"])
def test_a_wrapped_framework_gives_its_own_reconstruction(disent, name, x):
    model = framework(disent, name)
    vae = nv.VAE(model)
    assert vae.sites["input"].shape == IMAGE  # inferred: disent refuses any other
    assert vae.verify(x) <= 1e-6
    torch.testing.assert_close(vae(x), model(x), rtol=0, atol=1e-6)
    assert torch.equal(vae.encode(x).mu, model.encode(x))
    assert {"_model._encoder.model.1", "_model._decoder.model.0"} <= set(vae.sites)
    if name != "Ae":
        assert torch.equal(vae.encode(x).sd, model.encode_dists(x)[0].scale)


def test_the_frameworks_output_activation_is_part_of_decoding(disent, x):
    model = framework(disent, "BetaVae", recon_loss="bce")
    vae = nv.VAE(model)
    assert vae.verify(x) <= 1e-6
    torch.testing.assert_close(vae(x), torch.sigmoid(model._model.decode(model.encode(x))))
    assert 0 < vae(x).min() < vae(x).max() < 1


def test_its_own_networks_are_read(disent):
    networks = importlib.import_module("disent.model.ae")
    encoder = networks.EncoderConv64(x_shape=(1, 64, 64), z_size=LATENT, z_multiplier=2)
    model = disent.AutoEncoder(encoder, networks.DecoderConv64(x_shape=(1, 64, 64), z_size=LATENT))
    vae = nv.VAE(importlib.import_module("disent.frameworks.vae").BetaVae(model=model))
    assert vae.verify(torch.rand(2, 1, 64, 64, generator=seeded())) <= 1e-6
    assert vae.sites["_model._encoder.model.6"].shape == (64, 5, 5)


def test_every_level_runs_on_it(disent, x):
    conforms(nv.VAE(framework(disent, "BetaVae")), x)


def test_a_laplace_posterior_stays_one(disent, x):
    model = framework(disent, "Vae", latent_distribution="laplace")
    vae = nv.VAE(model)
    own = model.encode_dists(x)[0]
    eps = torch.tensor([-1.5, -0.2, 0.0, 2.5]).expand(5, -1)
    quantiles = torch.distributions.Normal(0.0, 1.0).cdf(eps)
    torch.testing.assert_close(vae(x, eps=eps), model.decode(own.icdf(quantiles)), rtol=1e-4, atol=1e-5)
    prior = torch.distributions.Laplace(0.0, 1.0)
    torch.testing.assert_close(vae.encode(x).kl(), torch.distributions.kl_divergence(own, prior), rtol=1e-4, atol=1e-6)
    conforms(vae, x)


@pytest.mark.parametrize("multiplier", [1, 2])
def test_a_bare_autoencoder_is_read_without_the_frameworks_activation(disent, multiplier, x):
    model = autoencoder(disent, multiplier).eval()
    vae = nv.VAE(model)
    stated = model.encode(x)
    assert torch.equal(vae.encode(x).mu, stated[:, :LATENT])
    torch.testing.assert_close(vae(x), model.decode(stated[:, :LATENT]), rtol=0, atol=1e-6)
    if multiplier == 2:
        assert torch.equal(vae.encode(x).logvar, stated[:, LATENT:])


def test_a_saved_activation_is_its_sites_though_what_follows_works_in_place(disent, x):
    model = framework(disent, "BetaVae")
    vae = nv.VAE(model)
    with torch.no_grad(), vae.trace(x):
        saved = vae.envoy("_model._encoder.model.1").output.save()
    assert saved.min() < 0
    assert any(getattr(m, "inplace", False) for m in vae.unwrap().modules())
