"""VAEs as other people write them: each either is read and verified, or is told exactly what to write."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from capabilities import Images, Moments
from nnsight_vae.adapters.reference import Noise
from torch import Tensor, distributions, nn
from torch.nn import functional as F
from vaes import FlowVAE, WithFlow, seeded

import nnsight_vae as nv
from nnsight_vae.testing import check_adapter

X = torch.rand(5, 8, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------------- everything in forward
class Functional(nn.Module):
    """No halves: layers, functions and the draw in one forward, which returns a dict."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc21, self.fc22, self.fc3, self.fc4 = (
            nn.Linear(*sizes) for sizes in ((8, 6), (6, 3), (6, 3), (3, 6), (6, 8))
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = F.relu(self.fc1(x))
        mu, logvar = self.fc21(h), self.fc22(h)
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        return {"mu": mu, "logvar": logvar, "recon": torch.sigmoid(self.fc4(F.relu(self.fc3(z))))}


def test_a_vae_that_is_all_forward_is_told_which_of_its_lines_to_copy():
    with pytest.raises(nv.AdapterError) as refusal:
        nv.VAE(Functional())
    for part in (
        "fc21: Linear",
        "its lines up to mu and logvar, and those after z",
        "class MyFunctional",
        "check_adapter",
    ):
        assert part in str(refusal.value)

    class MyFunctional(nv.adapters.Adapter):
        def encode(self, model, x):
            h = F.relu(model.fc1(x))
            return nv.Posterior(model.fc21(h), model.fc22(h))

        def decode(self, model, z):
            return torch.sigmoid(model.fc4(F.relu(model.fc3(z))))

    vae = nv.VAE(seeded(Functional()), MyFunctional())
    assert vae.verify(X) == 0.0
    assert vae.adapter.reference(vae.module, X)[1] == "forward(x) with its noise at zero"


# ---------------------------------------------------------------------- what the second value is
class Spread(nn.Module):
    """encode gives mu and s; forward draws with whatever standard deviation it makes of s."""

    def __init__(self, say, sd, scale=1.0):
        super().__init__()
        self.body, self.heads, self.out = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(3, 8)
        self.say, self.sd, self.scale = say, sd, scale

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, raw = self.heads(torch.tanh(self.body(x))).chunk(2, 1)
        return mu, self.say(raw)

    def decode(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.out(z))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, s = self.encode(x)
        return self.decode(mu + self.scale * self.sd(s) * torch.randn_like(mu)), mu, s


CONVENTIONS = {
    "softplus": (F.softplus, lambda s: s, "a standard deviation", '{"mu": mu, "scale": s}'),
    "elu + 1": (lambda raw: F.elu(raw) + 1, lambda s: s, "a standard deviation", '{"mu": mu, "scale": s}'),
    "a variance": (lambda raw: raw.square() + 0.1, lambda s: s.sqrt(), "a variance", '{"mu": mu, "variance": s}'),
    "a log sd": (lambda raw: raw, torch.exp, "the log of a standard deviation", "(mu, 2 * s)"),
}


@pytest.mark.filterwarnings("ignore:.*by position s is read as the log variance")
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_verify_tells_a_spread_of_another_convention_by_the_models_own_draw(convention):
    """The reconstruction at the mean is right whatever the second value is."""
    say, sd, what, instead = CONVENTIONS[convention]
    model = seeded(Spread(say, sd))
    with pytest.raises(nv.AdapterError) as refusal:
        nv.VAE(model).verify(X)
    assert f"Spread's own forward draws with s as {what}: let encode return {instead}" in str(refusal.value)
    named = {
        "a standard deviation": lambda x: dict(zip(("mu", "scale"), model.encode(x), strict=True)),
        "a variance": lambda x: dict(zip(("mu", "variance"), model.encode(x), strict=True)),
        "the log of a standard deviation": lambda x: (model.encode(x)[0], 2 * model.encode(x)[1]),
    }[what]
    vae = nv.adapt(model, encoder=named, decoder=model.decode)
    assert vae.verify(X) == 0.0
    with Noise(at=1.0), torch.no_grad():
        torch.testing.assert_close(vae(X, eps=torch.ones(5, 3)), model(X)[0])


def test_a_log_variance_is_taken_as_one_and_a_draw_of_another_kind_is_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert nv.VAE(seeded(Spread(lambda raw: raw, lambda s: torch.exp(0.5 * s)))).verify(X) == 0.0
    cooled = nv.VAE(seeded(Spread(lambda raw: raw, lambda s: torch.exp(0.5 * s), scale=0.7)))
    with pytest.warns(nv.NnsightVaeWarning, match="otherwise than mu \\+ exp"):
        assert cooled.verify(X) == 0.0


def test_noise_that_is_not_the_latents_says_nothing_about_its_spread():
    class Dithered(Spread):
        def forward(self, x):
            return self.decode(self.encode(x)[0]) + 0.1 * torch.randn_like(x)

    class Averaged(Spread):
        def forward(self, x):
            mu, s = self.encode(x)
            return sum(self.decode(mu + s.exp() * torch.randn_like(mu)) for _ in range(2)) / 2

    class Unstable(Spread):
        def forward(self, x):
            mu, s = self.encode(x)
            eps = torch.randn_like(mu)
            return self.decode(mu + s.exp() * eps * (1 + torch.rand_like(mu)))

    for kind in (Dithered, Averaged, Unstable):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert nv.VAE(seeded(kind(lambda raw: raw, None))).verify(X) == 0.0


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.empty(3).normal_(),
        lambda: torch.randn(3),
        lambda: torch.normal(torch.zeros(3), torch.ones(3)),
        lambda: torch.normal(torch.zeros(3)),
        lambda: torch.normal(0.0, 1.0, (3,)),
        lambda: (torch.empty(3).normal_(5.0, 2.0) - 5) / 2,
        lambda: (torch.empty(3).normal_(5.0, std=2.0) - 5) / 2,
        lambda: (torch.normal(torch.full((3,), 5.0), 2.0) - 5) / 2,
        lambda: (torch.normal(5.0, torch.full((3,), 2.0)) - 5) / 2,
        lambda: distributions.Normal(torch.zeros(3), torch.ones(3)).rsample(),
        lambda: (distributions.Normal(torch.zeros(3), torch.full((3,), 2.0)).sample()) / 2,
    ],
)
def test_every_kind_of_normal_draw_is_put_where_it_is_asked_for(draw):
    for at in (0.0, 1.0, -2.0):
        with Noise(at) as noise:
            torch.testing.assert_close(draw(), torch.full((3,), at))
        assert noise.shapes == [(3,)]


def test_heads_that_are_convolutions_read_the_encoders_map_as_it_is():
    class Spatial(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(nn.Conv2d(1, 4, 4, 4), nn.ReLU())
            self.to_mu, self.to_logvar = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)
            self.decoder = nn.ConvTranspose2d(2, 1, 4, 4)

        def forward(self, x):
            h = self.encoder(x)
            mu, logvar = self.to_mu(h), self.to_logvar(h)
            return self.decoder(mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)), mu, logvar

    vae, x = nv.VAE(seeded(Spatial())), torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert vae.verify(x) == 0.0
    assert vae.encode(x).mu.shape == (3, 2, 2, 2)


# ---------------------------------------------------------------------- decoders that return a law
class Laws(nn.Module):
    """encoder and decoder submodule-like methods that return distributions; the encoder's scale is a bare softplus."""

    def __init__(self, of):
        super().__init__()
        self.q, self.p, self.of = nn.Linear(8, 6), nn.Linear(3, 8), of

    def encoder(self, x: Tensor) -> distributions.Normal:
        mu, raw = self.q(x).chunk(2, 1)
        return distributions.Normal(mu, F.softplus(raw))

    def decoder(self, z: Tensor):
        return self.of(self.p(z))

    def forward(self, x: Tensor):
        posterior = self.encoder(x)
        return posterior, self.decoder(posterior.rsample())


@pytest.mark.parametrize(
    ("of", "mean"),
    [
        (lambda raw: distributions.Bernoulli(logits=raw), torch.sigmoid),
        (lambda raw: distributions.Independent(distributions.Laplace(raw, 1.0), 1), lambda raw: raw),
        (lambda raw: {"mean": raw, "scale": raw.exp()}, lambda raw: raw),
        (lambda raw: {"logits": raw, "probs": raw.sigmoid()}, torch.sigmoid),
        (lambda raw: (raw, torch.ones_like(raw)), lambda raw: raw),
    ],
    ids=["Bernoulli", "Independent Laplace", "mean and scale", "probabilities rather than logits", "pair"],
)
def test_the_mean_of_a_decoders_law_is_the_reconstruction(of, mean):
    model = seeded(Laws(of))
    vae = nv.VAE(model)
    assert vae.verify(X) == 0.0
    with torch.no_grad():
        torch.testing.assert_close(vae(X), mean(model.p(model.q(X)[:, :3])))


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (
            lambda raw: distributions.Categorical(logits=raw.unflatten(1, (4, 2))),
            r"a Categorical, which has no mean.*\.probs",
        ),
        (
            lambda raw: distributions.TransformedDistribution(
                distributions.Normal(raw, 1.0), [distributions.SigmoidTransform()]
            ),
            "a TransformedDistribution, which has no mean",
        ),
        (lambda raw: {"x_logits": raw}, r"fields x_logits; .*module\.decoder\(z\)\['x_logits'\]"),
    ],
)
def test_a_decoders_answer_without_a_mean_is_refused_with_what_to_write(of, message):
    with pytest.raises(nv.AdapterError, match=message):
        nv.VAE(seeded(Laws(of)))


def test_edges_are_scored_though_the_encoder_refuses_a_scale_of_zero():
    """Probes put values in place of the model's own for which softplus gives 0, which a Normal that validates refuses."""
    before = distributions.Distribution._validate_args
    lawful = seeded(Laws(lambda raw: raw))
    plain = seeded(Laws(lambda raw: raw))

    def named(x):
        mu, raw = plain.q(x).chunk(2, 1)
        return {"mu": mu, "scale": F.softplus(raw)}

    by_name = nv.adapt(plain, encoder=named, decoder=plain.p)
    pairs = nv.Pairs(X, X.roll(1, 0), factor="input", eps=torch.ones(5, 3))
    readout = nv.readouts.Pixels((8,))
    one, other = (nv.score_edges(vae, pairs, readout, method="exact") for vae in (nv.VAE(lawful), by_name))
    assert one.values.shape == other.values.shape
    torch.testing.assert_close(torch.from_numpy(one.values), torch.from_numpy(other.values), equal_nan=True)
    assert distributions.Distribution._validate_args is before
    with pytest.raises(ValueError, match="constraint"):
        distributions.Normal(0.0, torch.tensor(0.0))


# ---------------------------------------------------------------------- conditions
class Conditioned(nn.Module):
    """Only the decoder is told the class."""

    def __init__(self):
        super().__init__()
        self.q, self.p = nn.Linear(8, 6), nn.Linear(3 + 4, 8)

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.q(x).chunk(2, 1)

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        return self.p(torch.cat([z, F.one_hot(y, 4).float()], 1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        mu, logvar = self.encode(x)
        return self.decode(mu + torch.exp(0.5 * logvar) * torch.randn_like(mu), y)


def test_a_condition_of_one_half_is_said_with_a_lambda():
    model, y = seeded(Conditioned()), torch.tensor([2])
    for attempt in (lambda: nv.VAE(model), lambda: nv.VAE(model, given=y)):
        with pytest.raises(
            nv.AdapterError, match=r"encoder=lambda x, y: module\.encode\(x\), decoder=module\.decode, given=y"
        ):
            attempt()
    vae = nv.adapt(model, encoder=lambda x, y: model.encode(x), decoder=model.decode, given=y)
    assert vae.verify(X) == 0.0
    assert vae.verify(X, torch.arange(4).repeat(2)[:5]) == 0.0


# ---------------------------------------------------------------------- normalising flows
def test_a_flow_left_out_of_decoding_is_found_by_verify_and_part_of_it_is_verified():
    model, x = seeded(FlowVAE()), torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(nv.AdapterError, match=r"differs from the model's forward\(x\) with its noise at zero"):
        nv.VAE(model).verify(x)
    vae = nv.VAE(model, WithFlow())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert vae.verify(x) == 0.0
    with Noise(at=1.0), torch.no_grad():
        torch.testing.assert_close(vae(x, eps=torch.ones(5, 3)), model(x)[0])


def test_the_kl_of_what_enters_a_flow_is_not_known_and_nowhere_made_up():
    vae = nv.VAE(seeded(FlowVAE()), WithFlow())
    x = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(nv.PriorError, match="that of what enters a flow on the flow"):
        vae.encode(x).kl()
    found = nv.causal.map_factors(vae, Images(x), n=20, readout=Moments())
    assert found.kl is None
    assert found.to_frame()["kl"].isna().all()
    assert found.order.tolist() == np.argsort(-found.size.max(1)).tolist()
    lines = str(found).splitlines()
    shown = [line for line in lines if line.startswith("latent.z[")]
    assert [line.split()[1] for line in shown] == ["-", "-", "-"]
    assert [line.split()[0] for line in shown] == [f"latent.z[{k}]" for k in found.order]
    labels = [label.get_text() for label in found.plot()[1].get_yticklabels()]
    assert labels == [f"latent.z[{k}]\n{found.verdicts[k]}" for k in found.order]


def test_a_flow_that_the_input_steers_reaches_the_decoder_beside_the_latent_and_is_refused():
    class Steered(FlowVAE):
        """Flow parameters made by the encoder (Rezende and Mohamed 2015, section 4.2), kept from encode to decode."""

        def __init__(self):
            super().__init__()
            self.steer = nn.Linear(64, 3)

        def encode(self, x):
            self.context = self.steer(x.flatten(1))
            return super().encode(x)

        def flow(self, z):
            return super().flow(z) + torch.tanh(self.context) * z

    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(
        nv.AdapterError, match="decode depends on what was encoded last; something reaches the decoder beside"
    ):
        check_adapter(nv.VAE(seeded(Steered()), WithFlow()), x)
