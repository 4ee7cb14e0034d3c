"""The decoder's Jacobian: closed form, reverse mode, finite differences; dead latents; what cannot be said is not said."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from linear import LinearReadout, random_linear_vae
from torch import nn
from vaes import MLPVAE, ConvVAE, ResidualVAE, all_vaes, images, seeded

import nnsight_vae as nv
from nnsight_vae.attribution import DecoderJacobian, Jacobian, captum_forward, jacobian, record_of
from nnsight_vae.attribution.jacobian import forward_columns


@pytest.fixture(autouse=True)
def _same_codes_every_time():
    torch.manual_seed(0)


def reverse_mode(vae, z):
    """[n, latent, *image], row by row of the reconstruction."""
    whole = torch.autograd.functional.jacobian(lambda z: vae.decode(z).sum(0), z)  # [*image, n, *latent]
    image_axes = whole.ndim - z.ndim
    return whole.flatten(image_axes + 1).movedim(image_axes, 0).movedim(-1, 1)


@pytest.mark.parametrize("seed", range(3))
def test_of_a_linear_decoder_it_is_the_product_of_the_weights(seed):
    model = random_linear_vae(seed)
    vae = nv.VAE(model, example=torch.zeros(1, 6, dtype=torch.double))
    weight = (model.out.weight @ model.dec.weight).detach()
    z = torch.randn(4, 3, dtype=torch.double)
    columns = DecoderJacobian(vae).attribute(z)
    assert torch.allclose(columns, weight.T.expand(4, 3, 6), atol=1e-12)
    readout = LinearReadout(torch.randn(2, 6, dtype=torch.double))
    assert torch.allclose(DecoderJacobian(vae, readout).attribute(z), (readout.c @ weight).expand(4, 2, 3), atol=1e-12)


@pytest.mark.parametrize("name", sorted(all_vaes()))
def test_forward_mode_is_reverse_mode(name):
    model = all_vaes()[name]
    vae = nv.VAE(model, example=images(model, 1))
    with torch.no_grad():
        z = vae.encode(images(model, 3)).mu
    assert torch.allclose(DecoderJacobian(vae).attribute(z), reverse_mode(vae, z), atol=1e-6)


def test_numbers_do_not_depend_on_how_the_work_is_cut(monkeypatch):
    vae = nv.VAE(seeded(ConvVAE()))
    z = torch.randn(3, 5)
    whole = DecoderJacobian(vae).attribute(z)
    monkeypatch.setattr(jacobian, "rows_per_pass", lambda vae: 2)
    assert torch.allclose(DecoderJacobian(vae).attribute(z), whole, atol=1e-7)


def test_of_a_readout_one_target_is_a_row_of_all():
    vae = nv.VAE(seeded(ConvVAE()))
    halves = nv.readouts.Region({"top": (slice(0, 8), slice(0, 16)), "bottom": (slice(8, 16), slice(0, 16))})
    z = torch.randn(3, 5)
    method = DecoderJacobian(vae, halves)
    everything, columns = method.attribute(z), method.at(z).columns
    assert everything.shape == (3, 2, 5)
    assert torch.allclose(everything, columns.transpose(1, 2), atol=1e-7)
    assert torch.allclose(method.attribute(z, "bottom"), everything[:, 1], atol=1e-7)
    assert (record_of(everything).of, record_of(everything).baseline) == ("latent.z", None)
    pixel = DecoderJacobian(vae).attribute(z, (0, 3, 4))
    assert torch.allclose(pixel, DecoderJacobian(vae).attribute(z)[:, :, 0, 3, 4], atol=1e-7)
    assert repr(method.at(z)) == "Jacobian(of 2 readout targets in 5 latents at 3 codes)"


def test_a_spatial_latent_has_a_column_for_each_element():
    vae = nv.VAE(seeded(ResidualVAE()), example=torch.zeros(1, 1, 8, 8))
    corner = nv.readouts.Region({"corner": (slice(0, 3), slice(0, 3))})
    z = torch.randn(2, 2, 4, 4)
    found = DecoderJacobian(vae).at(z)
    assert found.columns.shape == (2, 32, 1, 8, 8)
    assert (found.names[0], found.names[5], found.names[-1]) == (
        "latent.z[0]@0,0",
        "latent.z[0]@1,1",
        "latent.z[1]@3,3",
    )
    slopes = DecoderJacobian(vae, corner).attribute(z, "corner")
    at = z.requires_grad_()
    (expected,) = torch.autograd.grad(corner(vae.decode(at)).sum(), at)
    assert torch.allclose(slopes, expected, atol=1e-6)


def test_singular_steps_rebuild_the_jacobian():
    vae = nv.VAE(seeded(MLPVAE()), example=images(MLPVAE, 1))
    found = DecoderJacobian(vae).at(torch.randn(3, 4))
    values, steps, outputs = found.singular()
    rebuilt = torch.einsum("nr,nrk,nro->nko", values, steps, outputs)
    assert torch.allclose(rebuilt, found.columns, atol=1e-6)
    assert bool((values.diff(dim=1) <= 0).all())
    largest = steps.gather(2, steps.abs().argmax(2, keepdim=True))
    assert bool((largest > 0).all())
    identity = torch.eye(4).expand(3, 4, 4)
    assert torch.allclose(steps @ steps.transpose(1, 2), identity, atol=1e-5)
    assert torch.allclose(outputs @ outputs.transpose(1, 2), identity, atol=1e-5)


def test_norms_and_cosines_are_those_of_the_columns():
    columns = torch.tensor([[[3.0, 4.0], [4.0, -3.0], [-6.0, -8.0]]])
    found = Jacobian(columns, ("a", "b", "c"))
    assert found.norms.tolist() == [[5.0, 5.0, 10.0]]
    expected = np.array([[1, 0, -1], [0, 1, 0], [-1, 0, 1]], dtype=float)
    assert np.allclose(found.cosines()[0], expected, atol=1e-6)
    assert not np.ma.getmaskarray(found.cosines()).any()


def test_a_latent_that_moves_next_to_nothing_is_dead_and_has_no_cosines():
    columns = torch.tensor([[[1.0, 0.0], [0.0, 0.04], [0.0, 0.06]], [[1.0, 0.0], [0.0, 0.04], [0.0, 0.06]]])
    found = Jacobian(columns, ("a", "b", "c"))
    assert found.dead.tolist() == [False, True, False]
    assert np.ma.getmaskarray(found.cosines())[0].tolist() == [[False, True, False], [True] * 3, [False, True, False]]
    assert repr(found).endswith("; dead: b)")


def test_a_column_that_is_zero_at_one_code_has_no_cosine_there():
    columns = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [1.0, 1.0]]])
    found = Jacobian(columns, ("a", "b"))
    assert not found.dead.any()
    mask = np.ma.getmaskarray(found.cosines())
    assert mask[0].tolist() == [[False, True], [True, True]]
    assert not mask[1].any()
    assert np.isclose(found.cosines()[1, 0, 1], 0.5**0.5)


def test_the_bundled_models_dead_latents_are_flagged():
    vae, data = nv.load("pendulum-beta-vae"), nv.datasets.load("pendulum")
    with torch.no_grad():
        posterior = vae.encode(data.sample(8).images)
    found = DecoderJacobian(vae).at(posterior.mu)
    assert found.dead.tolist() == (posterior.kl().mean(0) < 0.1).tolist()
    assert int(found.dead.sum()) == 2


def test_interventions_that_differ_by_example_follow_their_example():
    vae = nv.VAE(seeded(ConvVAE()))
    z = torch.randn(2, 5)
    values = torch.tensor([[0.0], [3.0]])[:, :, None, None].expand(2, 1, 4, 4)
    together = DecoderJacobian(vae, interventions={"decoder.2[1]": nv.Set(values)}).attribute(z)
    for i in range(2):
        alone = DecoderJacobian(vae, interventions={"decoder.2[1]": nv.Set(values[i : i + 1])})
        assert torch.allclose(together[i : i + 1], alone.attribute(z[i : i + 1]), atol=1e-6)
    assert not torch.allclose(together, DecoderJacobian(vae).attribute(z), atol=1e-4)


def test_what_does_not_depend_on_z_has_a_zero_column():
    constant = lambda z, places: torch.ones(len(z), 3)
    assert forward_columns(constant, torch.randn(2, 4), rows=8).tolist() == torch.zeros(2, 4, 3).tolist()


def test_an_operation_without_forward_mode_is_named():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x**3

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.enc, self.dec = nn.Linear(6, 4), nn.Linear(2, 6)

        def encode(self, x):
            return self.enc(x).chunk(2, 1)

        def decode(self, z):
            return Cube.apply(self.dec(z))

    vae = nv.VAE(Odd(), example=torch.zeros(1, 6))
    with pytest.raises(nv.NnsightVaeError, match=r"no forward-mode derivative.*Saliency"):
        DecoderJacobian(vae).attribute(torch.randn(2, 2))


def test_model_and_codes_are_as_before():
    vae = nv.VAE(seeded(ConvVAE(norm=True)).train())
    z = torch.randn(2, 5)
    before = {k: v.clone() for k, v in vae.module.state_dict().items()}
    columns = DecoderJacobian(vae).attribute(z)
    assert vae.module.training
    assert all(torch.equal(v, vae.module.state_dict()[k]) for k, v in before.items())
    assert not columns.requires_grad
    assert captum_forward(vae, "reconstruction", of="z")(z).shape == (2, 3, 16, 16)  # no dual level left open
