"""Conditional VAEs: conditions passed with the input, or held fixed through an analysis."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from matrix import conforms, seeded
from torch import nn
from torch.nn import functional as F
from vaes import seeded as seeded_weights

import nnsight_vae as nv


class Conditional(nn.Module):
    """8 numbers, 3 latents, a label of 4, and a dose; forward as most are written."""

    def __init__(self):
        super().__init__()
        self.body, self.heads, self.out = nn.Linear(13, 6), nn.Linear(6, 6), nn.Linear(8, 8)

    def told(self, h, label, dose):
        return torch.cat([h, F.one_hot(label, 4).to(h), dose], 1)

    def encode(self, x, label, dose):
        return self.heads(torch.tanh(self.body(self.told(x, label, dose)))).chunk(2, 1)

    def decode(self, z, label, dose):
        return torch.sigmoid(self.out(self.told(z, label, dose)))

    def forward(self, x, label, dose):
        mu, _ = self.encode(x, label, dose)
        return self.decode(mu, label, dose)


LABEL, DOSE = torch.tensor([2]), torch.tensor([[0.5]])


@pytest.fixture
def model():
    return seeded_weights(Conditional())


@pytest.fixture
def vae(model):
    return nv.VAE(model, given=(LABEL, DOSE))


@pytest.fixture
def x():
    return torch.randn(5, 8, generator=seeded())


@pytest.fixture
def given():
    return torch.tensor([0, 1, 2, 3, 0]), torch.rand(5, 1, generator=seeded(1))


def expanded(n=5):
    return LABEL.expand(n), DOSE.expand(n, 1)


def test_conditions_are_those_of_the_run_or_else_those_it_is_wrapped_with(vae, model, x, given):
    assert torch.equal(vae(x, *given), model(x, *given))
    assert torch.equal(vae(x), model(x, *expanded()))
    assert not torch.allclose(vae(x), vae(x, *given))
    assert torch.equal(vae.encode(x, *given).logvar, model.encode(x, *given)[1])
    z = vae.encode(x).mu
    assert torch.equal(vae.decode(z, *given), model.decode(z, *given))
    eps = torch.randn(5, 3, generator=seeded(2))
    mu, logvar = model.encode(x, *given)
    torch.testing.assert_close(vae(x, *given, eps=eps), model.decode(mu + torch.exp(0.5 * logvar) * eps, *given))


def test_a_trace_takes_them_after_the_input(vae, model, x, given):
    with torch.no_grad(), vae.trace(x, *given):
        vae.latent.z.output[:, 1] = 2.0
        moved = vae.output.save()
    z = model.encode(x, *given)[0].clone()
    z[:, 1] = 2.0
    torch.testing.assert_close(moved, model.decode(z, *given))
    with torch.no_grad(), vae.trace(z, *given, fn="decode"):
        decoded = vae.output.save()
    torch.testing.assert_close(decoded, model.decode(z, *given))


def test_invokes_keep_their_own(vae, model, x, given):
    with torch.no_grad(), vae.trace() as tracer:
        with tracer.invoke(x, *given):
            first = vae.output.save()
        with tracer.invoke(x[:2], *expanded(2)):
            second = vae.output.save()
    torch.testing.assert_close(first, model(x, *given))
    torch.testing.assert_close(second, model(x[:2], *expanded(2)))


def test_analyses_hold_the_condition_fixed(vae, model, x):
    out = nv.intervene(vae, x, {"latent.z[0]": nv.Set(1.0)})
    z = model.encode(x, *expanded())[0].clone()
    z[:, 0] = 1.0
    torch.testing.assert_close(out.reconstruction, model.decode(z, *expanded()))
    conforms(vae, x)
    effects = nv.perturb_latents(vae, x, [0.0, 1.0], readout=nv.readouts.Pixels((8,)))
    assert effects.provenance["given"] == [2, [0.5]]
    assert (
        "given"
        not in nv.perturb_latents(
            nv.VAE(nv.models.MLPVAE(image_shape=(1, 4, 4), latent=2)),
            torch.rand(4, 1, 4, 4),
            [0.0],
            readout=nv.readouts.Pixels((1, 4, 4)),
        ).provenance
    )


def test_the_reference_is_the_models_forward_under_the_conditions(vae, model, x, given):
    assert vae.verify(x) == vae.verify(x, *given) == 0.0
    assert vae.adapter.reference(model, x, *given)[1] == "forward(x)"
    wrong = nv.adapt(
        model, encoder=model.encode, decoder=lambda z, label, dose: model.decode(z, label, 1 - dose), given=vae.given
    )
    with pytest.raises(nv.AdapterError, match="differs"):
        wrong.verify(x, given[0], torch.zeros(5, 1))


def test_adapt_passes_them_to_both_callables(model, x, given):
    vae = nv.adapt(model, encoder=model.encode, decoder=model.decode, given=[LABEL, DOSE])
    assert torch.equal(vae(x, *given), model(x, *given))
    assert torch.equal(nv.adapt(model, given=[LABEL, DOSE])(x), model(x, *expanded()))


def test_copies_and_rewrapping_keep_them(vae, x):
    expected = vae(x).detach()
    for twin in (copy.deepcopy(vae), pickle.loads(pickle.dumps(vae)), nv.VAE(vae)):
        assert torch.equal(twin(x), expected)
        assert torch.equal(twin.given[0], LABEL)
    other = nv.VAE(twin, given=(LABEL + 1, DOSE))
    assert not torch.allclose(other(x), expected)


def test_one_condition_need_not_be_put_in_a_tuple(x):
    class OfLabel(Conditional):
        def told(self, h, label, dose=None):
            return super().told(h, label, torch.zeros(len(h), 1))

        def encode(self, x, label):
            return super().encode(x, label, None)

        def decode(self, z, label):
            return super().decode(z, label, None)

    model = seeded_weights(OfLabel())
    vae = nv.VAE(model, given=LABEL)
    assert torch.equal(vae(x), model.decode(model.encode(x, LABEL.expand(5))[0], LABEL.expand(5)))


@pytest.mark.parametrize(
    ("passed", "message"),
    [
        (
            lambda label, dose: (label,),
            r"shapes \[\(5,\)\] were passed.*takes conditions of shapes \[\(5,\), \(5, 1\)\]",
        ),
        (lambda label, dose: (label[:4], dose[:4]), r"\[\(4,\), \(4, 1\)\] were passed"),
        (lambda label, dose: (label, dose[:, 0]), r"\(5,\), \(5,\)\] were passed"),
        (lambda label, dose: (label, dose, dose), "were passed"),
        (lambda label, dose: (label.float(), dose), r"dtype torch\.float32.*torch\.int64"),
        (lambda label, dose: (label, "high"), r"'str'\] were passed"),
    ],
)
def test_conditions_that_do_not_fit_are_refused_before_any_run(vae, x, given, passed, message):
    for run in (vae, vae.encode, lambda z, *c: vae.decode(z[:, :3], *c), vae.verify):
        with pytest.raises(nv.DataError, match=message):
            run(x, *passed(*given))
    with pytest.raises(nv.DataError, match=message), vae.trace(x, *passed(*given)):
        vae.output.save()


def test_what_is_no_condition_is_refused(model, x):
    for given in (torch.zeros(5, 1), (torch.zeros(()),), ("label",), 3):
        with pytest.raises(nv.DataError, match="one row each"):
            nv.VAE(model, given=given)
    plain = nv.VAE(nv.models.MLPVAE(image_shape=(1, 4, 4), latent=2))
    with pytest.raises(nv.DataError, match="takes no conditions"):
        plain(torch.rand(5, 1, 4, 4), torch.zeros(5))
    with pytest.raises(nv.AdapterError, match="given="):
        nv.VAE(model)
