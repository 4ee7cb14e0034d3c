"""Reading modules as VAEs: the forms encode and decode come in, `nv.adapt`, `verify`, and shape inference."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from nnsight_vae.adapters import reference
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent, Normal
from torch.nn import functional as F
from vaes import ConvVAE, images, seeded

import nnsight_vae as nv

Named = namedtuple("Named", "mu logvar")
Hat = namedtuple("Hat", "x_hat aux")


@dataclass
class Said:
    mean: Tensor
    scale: Tensor


class Attributes:
    """As diffusers' DiagonalGaussianDistribution: an object with attributes."""

    def __init__(self, mu, logvar):
        self.mean, self.logvar = mu, logvar


class Base(nn.Module):
    """8 inputs, 3 latents; `say` gives encode its form."""

    def __init__(self, say=None, answer=None):
        super().__init__()
        self.body, self.heads, self.out = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(3, 8)
        self.say, self.answer = say, answer

    def halves(self, x):
        return self.heads(torch.tanh(self.body(x))).chunk(2, 1)

    def encode(self, x):
        return self.say(*self.halves(x))

    def decode(self, z):
        out = torch.sigmoid(self.out(z))
        return out if self.answer is None else self.answer(out)


def soft(raw):
    return F.softplus(raw) + 1e-3


FORMS = {
    "tuple": (lambda mu, raw: (mu, raw), lambda raw: raw),
    "tuple with more": (lambda mu, raw: (mu, raw, torch.zeros(len(mu), 9)), lambda raw: raw),
    "named tuple": (Named, lambda raw: raw),
    "dict": (lambda mu, raw: {"z_mu": mu, "z_logvar": raw}, lambda raw: raw),
    "dict with a scale": (lambda mu, raw: {"loc": mu, "std": soft(raw)}, lambda raw: 2 * soft(raw).log()),
    "dict with a variance": (lambda mu, raw: {"mean": mu, "var": soft(raw)}, lambda raw: soft(raw).log()),
    "dataclass with a scale": (lambda mu, raw: Said(mu, soft(raw)), lambda raw: 2 * soft(raw).log()),
    "attributes": (Attributes, lambda raw: raw),
    "Normal": (lambda mu, raw: Normal(mu, soft(raw)), lambda raw: 2 * soft(raw).log()),
    "Independent": (lambda mu, raw: Independent(Independent(Normal(mu, soft(raw)), 0), 1), lambda raw: 2 * soft(raw).log()),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_posterior_is_read(form):
    say, logvar = FORMS[form]
    model = seeded(Base(say))
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    vae = nv.VAE(model)
    mu, raw = model.halves(x)
    posterior = vae.encode(x)
    assert torch.equal(posterior.mu, mu)
    torch.testing.assert_close(posterior.logvar, logvar(raw))
    eps = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(vae(x, eps=eps), model.decode(mu + torch.exp(0.5 * logvar(raw)) * eps))
    assert vae.sites["latent.mu"].n_units == 3


@dataclass
class Decoded:
    sample: Tensor


@pytest.mark.parametrize(
    "answer",
    [
        lambda out: (out, None),
        lambda out: {"recon_x": out, "extra": 1},
        Decoded,
        lambda out: Hat(out, 0),
        lambda out: Bernoulli(probs=out),
    ],
    ids=["tuple", "dict", "dataclass", "namedtuple", "distribution"],
)
def test_every_form_of_reconstruction_is_read(answer):
    model = seeded(Base(lambda mu, raw: (mu, raw), answer))
    x = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
    want = torch.sigmoid(model.out(model.halves(x)[0]))
    torch.testing.assert_close(nv.VAE(model)(x), want)


UNREADABLE = {
    "one tensor": (lambda mu, raw: mu, None, "plain autoencoder"),
    "odd shapes": (lambda mu, raw: (mu, raw[:, :1]), None, "equal shape"),
    "z first": (lambda mu, raw: (mu + 1, mu, raw), None, "3 tensors of mu's shape"),
    "a word": (lambda mu, raw: "posterior", None, "returned str"),
    "only a mean": (lambda mu, raw: {"mu": mu}, None, "returned dict"),
    "another law": (lambda mu, raw: Bernoulli(logits=mu), None, "Bernoulli posterior"),
    "no batch": (lambda mu, raw: (mu.mean(0), raw.mean(0)), None, "one row per example"),
    "words decoded": (lambda mu, raw: (mu, raw), lambda out: "image", "returned str"),
    "unknown fields": (lambda mu, raw: (mu, raw), lambda out: {"thing": out}, "expected one of"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_cannot_be_read_is_refused_when_it_is_wrapped(case):
    say, answer, message = UNREADABLE[case]
    model = seeded(Base(say, answer))
    with pytest.raises(nv.AdapterError, match=message):
        nv.VAE(model)
    assert "__nnsight__" not in model.body.__dict__


def test_modules_that_are_no_vae_are_refused():
    with pytest.raises(nv.AdapterError, match=r"Linear does not look like a VAE.*\n  none\n"):
        nv.VAE(nn.Linear(3, 3))

    class Conditional(Base):
        def encode(self, x, label):
            return self.halves(x)

    with pytest.raises(nv.AdapterError, match=r"label.*nv\.adapt.*given="):
        nv.VAE(seeded(Conditional()))


# ---------------------------------------------------------------------- nv.adapt
def test_adapt_in_all_its_forms():
    encoder, decoder = seeded(nn.Linear(8, 6)), seeded(nn.Linear(3, 8), 1)
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    mu = encoder(x).chunk(2, 1)[0]
    want = decoder(mu)
    both = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    makers = [
        lambda: nv.adapt(encoder=encoder, decoder=decoder, packed=True),
        lambda: nv.adapt(both, packed=True),
        lambda: nv.adapt(both, encoder=both["encoder"], decoder=lambda z: both["decoder"](z), packed=True),
        lambda: nv.adapt(both, encoder=lambda x: Normal(*both["encoder"](x).chunk(2, 1)[:1], 1.0), decoder=decoder),
        lambda: nv.adapt(both, packed=True, example=x),
    ]
    for make in makers:
        vae = make()
        torch.testing.assert_close(vae(x), want)
        assert {"encoder", "decoder", "latent.z"} <= set(vae.sites)
        with vae.trace(x):
            vae.encoder.output[:] = 0.0
            out = vae.output.save()
        torch.testing.assert_close(out, decoder(torch.zeros(4, 3)))
        vae.unwrap()
    unused = nv.adapt(both, packed=True, codebook=torch.zeros(2, 3))
    assert torch.equal(nv.intervene(unused, x, {"latent.z": nv.Quantize(1)}).z, torch.zeros(4, 3))


def test_adapt_refuses_what_it_cannot_hold():
    encoder, decoder, other = nn.Linear(8, 6), nn.Linear(3, 8), Base(lambda mu, raw: (mu, raw))
    for arguments, message in (
        ({"encoder": encoder}, "both encoder= and decoder="),
        ({"encoder": lambda x: x, "decoder": decoder}, "needs module="),
        ({}, "wraps a torch|needs module="),
        ({"module": other, "encoder": encoder, "decoder": other.decode}, "encoder runs a Linear that is not part"),
        ({"module": encoder, "encoder": encoder, "decoder": other.decode}, "decoder runs a Base that is not part"),
        ({"module": other, "encoder": 3, "decoder": other.decode}, "must be a callable"),
    ):
        with pytest.raises(nv.AdapterError, match=message):
            nv.adapt(**arguments)


# ---------------------------------------------------------------------- verify
class Sampling(Base):
    """forward samples, in every one of the ways torch offers, even in eval; and returns its input and the posterior too."""

    def __init__(self, draw):
        super().__init__(lambda mu, raw: (mu, raw))
        self.draw = draw

    def forward(self, x):
        mu, raw = self.encode(x)
        return [x, self.decode(self.draw(mu, torch.exp(0.5 * raw))), mu, raw]


DRAWS = {
    "randn_like": lambda mu, sd: mu + torch.randn_like(sd) * sd,
    "randn": lambda mu, sd: mu + torch.randn(mu.shape) * sd,
    "normal_": lambda mu, sd: mu + torch.empty_like(sd).normal_() * sd,
    "new normal_": lambda mu, sd: mu + sd.new_empty(sd.shape).normal_(0.0, 1.0) * sd,
    "torch.normal": lambda mu, sd: torch.normal(mu, sd),
    "rsample": lambda mu, sd: Normal(mu, sd).rsample(),
    "sample": lambda mu, sd: Normal(mu, sd).sample(),
}


@pytest.mark.parametrize("draw", DRAWS)
def test_verify_follows_a_forward_that_samples_with_its_noise_taken_out(draw):
    model = seeded(Sampling(DRAWS[draw]))
    x = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
    vae = nv.VAE(model)
    state = torch.get_rng_state()
    assert vae.verify(x) == 0.0
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        assert vae.adapter.reference(model, x)[1] == "forward(x) with its noise at zero"
        assert not torch.equal(model(x)[1], model(x)[1])


def test_verify_falls_back_to_the_mean_path_where_forward_cannot_be_compared():
    class Labels(Base):
        def forward(self, x, label):
            raise AssertionError

    class Gumbel(Base):
        def forward(self, x):
            return torch.rand_like(x)

    class Loss(Base):
        def forward(self, x):
            return x.mean()

    x = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
    for kind in (Labels, Gumbel, Loss, Base):
        vae = nv.VAE(seeded(kind(lambda mu, raw: (mu, raw))))
        assert vae.verify(x) == 0.0
        assert vae.adapter.reference(vae.module, x)[1] == "decode(encode(x).mu)"


def test_verify_fails_an_adapter_that_reads_wrongly():
    class Deterministic(Base):
        def forward(self, x):
            return self.decode(self.halves(x)[0])

    x = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
    swapped = seeded(Base(lambda mu, raw: (raw, mu)))
    assert nv.VAE(swapped).verify(x) == 0.0  # no forward of its own to be held against: documented
    for model, path in (
        (seeded(Deterministic(lambda mu, raw: (raw, mu))), r"forward\(x\) by"),
        (seeded(Sampling(DRAWS["randn_like"])), r"forward\(x\) with its noise at zero by"),
    ):
        vae = nv.adapt(model, encoder=lambda x, m=model: m.halves(x)[::-1], decoder=model.decode)
        with pytest.raises(nv.AdapterError, match=f"differs from the model's {path}"):
            vae.verify(x)
    model = seeded(Deterministic(lambda mu, raw: (mu, raw)))
    vae = nv.adapt(model, encoder=model.halves, decoder=lambda z: model.out(z)[:, :4], example=x)
    with pytest.raises(nv.AdapterError, match="reads the wrong output"):
        vae.verify(x)


def test_an_adapter_of_ones_own():
    class Mine(nv.adapters.Adapter):
        tolerance = 1e-3

        def encode(self, model, x):
            return nv.Posterior(*model.halves(x))

        def decode(self, model, z):
            return model.decode(z)

        def reference(self, model, x):
            return self.decode(model, self.encode(model, x).mu) + 5e-4, "a path of mine"

    vae = nv.VAE(seeded(Base()), Mine())
    x = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
    assert vae.verify(x) == pytest.approx(5e-4, rel=1e-3)
    vae.adapter.tolerance = 1e-4
    with pytest.raises(nv.AdapterError, match=r"a path of mine by 0\.0005"):
        vae.verify(x)


def test_registered_adapters_come_first_and_broken_ones_are_named(monkeypatch):
    from nnsight_vae.adapters import base

    class Theirs(nv.adapters.EncodeDecode):
        def matches(self, model):
            return isinstance(model, Base)

    class Entry:
        def __init__(self, value, found):
            self.value, self.found = value, found

        def load(self):
            if self.found is None:
                raise ImportError("gone")
            return self.found

    monkeypatch.setattr(base, "entry_points", lambda group: [Entry("a:B", None), Entry("c:D", Theirs)])
    with pytest.warns(nv.NnsightVaeWarning, match="'a:B' cannot be loaded.*gone"):
        vae = nv.VAE(seeded(Base(lambda mu, raw: (mu, raw))))
    assert type(vae.adapter) is Theirs


def test_no_noise_ends_with_its_block():
    with reference.Noise():
        assert torch.randn(3).abs().sum() == 0
    assert torch.randn(3, generator=torch.Generator().manual_seed(0)).abs().sum() > 0


# ---------------------------------------------------------------------- shape inference
def test_the_input_shape_is_inferred_or_asked_for():
    class Sized(ConvVAE):
        def __init__(self):
            super().__init__()
            self.image_shape = [3, 16, 16]

    assert nv.VAE(seeded(Sized())).sites["input"].shape == (3, 16, 16)
    assert nv.VAE(seeded(ConvVAE())).sites["input"].shape == (3, 16, 16)
    flattens_itself = nv.VAE(nv.models.MLPVAE(image_shape=(1, 8, 8), latent=3))
    assert flattens_itself.sites["input"].shape == flattens_itself.sites["output"].shape == (1, 8, 8)
    assert nv.VAE(seeded(Base(lambda mu, raw: (mu, raw)))).sites["input"].shape == (8,)

    class Odd(nn.Module):
        """12 by 12 is not among the sizes that are tried."""

        image = (1, 12, 12)

        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(nn.Conv2d(1, 2, 4, 2, 1), nn.Flatten(), nn.Linear(72, 4))
            self.decoder = nn.Sequential(nn.Linear(2, 144), nn.Unflatten(1, (1, 12, 12)))

    model = seeded(Odd())
    vae = nv.adapt(model, packed=True)
    assert not vae.probed
    assert "sites unknown" in repr(vae)
    with pytest.raises(nv.DataError, match="example=x"):
        vae.sites  # noqa: B018
    vae.encode(images(model, 2))
    assert "encoder.0" in vae.sites
    assert nv.adapt(model, packed=True, example=images(model, 1)).sites["latent.z"].shape == (2,)
    with pytest.raises(nv.DataError, match="cannot run x"):
        nv.adapt(model, packed=True, example=torch.zeros(2, 1, 16, 16))


def test_of_the_sizes_a_model_runs_the_one_it_gives_back_is_its_own():
    class Pooling(nn.Module):
        """Runs images of any size, and makes images of 32 pixels a side."""

        def __init__(self):
            super().__init__()
            self.conv, self.head, self.out = nn.Conv2d(1, 2, 3), nn.Linear(2, 4), nn.Linear(2, 32 * 32)

        def encode(self, x):
            return self.head(self.conv(x).mean((2, 3))).chunk(2, 1)

        def decode(self, z):
            return self.out(z).view(-1, 1, 32, 32)

    assert nv.VAE(seeded(Pooling())).sites["input"].shape == (1, 32, 32)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_scale_where_a_log_variance_belongs_is_warned_of_when_it_is_wrapped(mode):
    model = seeded(ConvVAE())
    encode = model.encode
    model.encode = lambda x: (encode(x)[0], encode(x)[1].exp())
    with mode(), pytest.warns(nv.NnsightVaeWarning, match="by position s is read as the log variance"):
        nv.VAE(model)


def test_features_read_by_two_heads_need_no_encode_method():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(nn.Conv2d(1, 4, 4, 2, 1), nn.ReLU())
            self.fc_mu, self.fc_var = nn.Linear(64, 3), nn.Linear(64, 3)
            self.decoder = nn.Sequential(nn.Linear(3, 64), nn.Unflatten(1, (1, 8, 8)))

        def forward(self, x):
            h = self.encoder(x).flatten(1)
            return self.decoder(self.fc_mu(h)), self.fc_mu(h), self.fc_var(h)

    model = Heads()
    vae, x = nv.VAE(model), torch.rand(3, 1, 8, 8)
    h = model.encoder(x).flatten(1)
    assert torch.equal(vae.encode(x).logvar, model.fc_var(h))
    assert vae.verify(x) == 0.0


def test_sites_inside_attention_layers_are_reached():
    """In eval mode without gradients PyTorch would run them fused, past their submodules."""

    class Attentive(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.heads, self.decoder = nn.Linear(32, 6), nn.Linear(3, 32)

        def encode(self, x):
            return self.heads(self.block(x.view(-1, 4, 8)).flatten(1)).chunk(2, 1)

        def decode(self, z):
            return self.decoder(z)

    vae, x = nv.VAE(Attentive(), example=torch.rand(2, 32)), torch.rand(5, 32)
    fused = torch.backends.mha.get_fastpath_enabled()
    out = nv.intervene(vae, x, {"block.linear1[3]": nv.Set(2.0)})
    assert not torch.equal(out.reconstruction, vae(x))
    with torch.no_grad(), vae.trace(x):
        vae.block.linear1.output[..., 3] = 2.0
        by_hand = vae.output.save()
    torch.testing.assert_close(out.reconstruction, by_hand)
    assert torch.backends.mha.get_fastpath_enabled() == fused
