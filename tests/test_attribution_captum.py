"""Captum on a wrapped VAE: the same numbers as on the raw model, refusals, and nothing left behind."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from attributed import B, X
from captum.attr import (
    LRP,
    DeepLift,
    FeatureAblation,
    IntegratedGradients,
    LayerConductance,
    LayerGradCam,
    LayerIntegratedGradients,
    NeuronGradient,
    NoiseTunnel,
    Occlusion,
    ShapleyValueSampling,
)
from torch import nn
from torch.nn import functional as F
from vaes import MLPVAE, ConvVAE, ResidualVAE, all_vaes, images, seeded

import nnsight_vae as nv
from nnsight_vae.attribution import captum_forward, captum_layer, guarded

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor", "ignore:Setting forward", "ignore:Setting backward")


class Encoder(nn.Module):
    """What a Captum user writes by hand: the posterior mean of the raw model."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model.encode(x)[0]


def raw_and_wrapped(interventions: bool):
    """The same VAE twice: raw, its interventions as a plain torch hook; and wrapped, with ours."""
    model = seeded(ConvVAE())
    raw = copy.deepcopy(model)
    vae = nv.VAE(model)
    if not interventions:
        return Encoder(raw), captum_forward(vae)

    def hook(module, args, output):
        output = output.clone()
        output[:, 1] = 0.7
        output[:, 3] = 2.0 * output[:, 3]
        return output

    raw.encoder[2].register_forward_hook(hook)
    written = {"encoder.2[1]": nv.Set(0.7), "encoder.2[3]": nv.Scale(2.0)}
    return Encoder(raw), captum_forward(vae, interventions=written)


PATCHES = (
    torch.arange(4).reshape(2, 2).repeat_interleave(8, 0).repeat_interleave(8, 1).expand(1, 3, 16, 16).contiguous()
)
METHODS = {
    "IntegratedGradients": lambda f, layer: IntegratedGradients(f).attribute(X, baselines=B, target=2, n_steps=8),
    "LayerConductance": lambda f, layer: LayerConductance(f, layer(3)).attribute(X, baselines=B, target=2, n_steps=8),
    "LayerConductance where written": lambda f, layer: LayerConductance(f, layer(2)).attribute(X, B, 2, n_steps=8),
    "LayerIntegratedGradients": lambda f, layer: LayerIntegratedGradients(f, layer(3)).attribute(X, B, 2, n_steps=8),
    "DeepLift": lambda f, layer: DeepLift(f).attribute(X, baselines=B, target=2),
    "LayerGradCam": lambda f, layer: LayerGradCam(f, layer(2)).attribute(X, target=2),
    "FeatureAblation": lambda f, layer: FeatureAblation(f).attribute(X, target=2, feature_mask=PATCHES),
    "ShapleyValueSampling": lambda f, layer: ShapleyValueSampling(f).attribute(
        X, target=2, feature_mask=PATCHES, n_samples=4
    ),
    "NeuronGradient": lambda f, layer: NeuronGradient(f, layer(2)).attribute(X, (2, 1, 1)),
}


@pytest.mark.parametrize("interventions", [False, True], ids=["clean", "intervened"])
@pytest.mark.parametrize("method", METHODS)
def test_captum_gives_the_same_bits_on_a_wrapped_vae_as_on_the_raw_model(method, interventions):
    raw, forward = raw_and_wrapped(interventions)
    results = []
    for function, layer in (
        (raw, lambda i: raw.model.encoder[i]),
        (forward, lambda i: captum_layer(forward.vae, f"encoder.{i}")),
    ):
        torch.manual_seed(0)
        results.append(METHODS[method](function, layer))
    assert torch.equal(*results)
    assert results[0].abs().max() > 0


def test_interventions_change_what_captum_attributes():
    clean, intervened = (raw_and_wrapped(i)[1] for i in (False, True))
    assert not torch.equal(*(METHODS["IntegratedGradients"](f, None) for f in (clean, intervened)))


@pytest.mark.parametrize("name", all_vaes())
def test_what_is_explained_is_what_the_vae_computes(name):
    model = all_vaes()[name]
    vae, x = nv.VAE(model, example=images(model, 1)), images(model, 3)
    q = vae.encode(x)
    eps = torch.randn(q.mu.shape, generator=torch.Generator().manual_seed(0))
    pixels = nv.readouts.Pixels(vae.sites["output"].shape)
    assert torch.equal(captum_forward(vae)(x), q.mu)
    assert torch.equal(captum_forward(vae, "logvar")(x), q.logvar)
    assert torch.equal(captum_forward(vae, "kl")(x), q.kl())
    assert torch.equal(captum_forward(vae, "z")(x), q.mu)
    assert torch.equal(captum_forward(vae, "z", eps=eps)(x), q.rsample(eps))
    assert torch.equal(captum_forward(vae, "reconstruction", eps=eps)(x), vae(x, eps=eps))
    assert torch.equal(captum_forward(vae, "reconstruction", eps=eps[:1])(x), vae(x, eps=eps[:1].expand_as(eps)))
    assert torch.equal(captum_forward(vae, pixels)(x), pixels(vae(x)))
    assert torch.equal(captum_forward(vae, pixels, of="z")(q.mu), pixels(vae.decode(q.mu)))


@pytest.mark.parametrize("to", ["mu", "logvar", "kl", "z", "reconstruction"])
def test_interventions_are_those_of_intervene(to):
    vae, x, donor = nv.VAE(seeded(ConvVAE())), images(ConvVAE, 3), images(ConvVAE, 3, seed=5)
    eps = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    written = {
        "encoder.2[0:2]": nv.Swap(donor),
        "encoder.3@1,2": nv.Mean(donor),
        "encoder.6[1]": nv.Add(torch.tensor([[0.5], [1.0], [2.0]])),
        "encoder.6[3:5]": nv.Set(torch.tensor([0.1, 0.2])),  # one value a unit, not one an example
        "latent.mu[2]": nv.Set(0.3),
    }
    out = nv.intervene(vae, x, written, eps=eps)
    forward = captum_forward(vae, to, eps=eps, interventions=written)
    expected = {"kl": nv.Posterior(out.mu, out.logvar).kl()} | out._asdict()
    assert torch.equal(forward(x), expected[to])
    torch.testing.assert_close(forward(x[[2, 0]], torch.tensor([2, 0])), expected[to][[2, 0]])
    with pytest.raises(nv.DataError, match="additional_forward_args"):
        forward(x[[2, 0]])
    with pytest.raises(nv.DataError, match="examples 0 to 3; there are 3"):
        forward(x[[2, 0]], torch.tensor([3, 0]))


def test_a_decoder_under_interventions_is_the_intervened_decoder():
    vae, x = nv.VAE(seeded(ConvVAE())), images(ConvVAE, 3)
    written = {"latent.z[1]": nv.Scale(0.5), "decoder.2[1]": nv.Zero()}
    forward = captum_forward(vae, "reconstruction", of="z", interventions=written)
    assert torch.equal(forward(vae.encode(x).mu), nv.intervene(vae, x, written).reconstruction)


def test_a_readout_of_any_site_is_explained():
    class Hidden:
        names, reads = ("a", "b"), "encoder.6"

        def __call__(self, h):
            return h[:, :2]

    vae, x = nv.VAE(seeded(ConvVAE())), images(ConvVAE, 3)
    forward = captum_forward(vae, Hidden())
    assert torch.equal(forward(x), vae.module.encoder(x)[:, :2].relu())
    assert IntegratedGradients(forward).attribute(x, target=1).abs().max() > 0


def test_per_example_noise_and_donors_follow_examples_through_captums_orders():
    vae, x, donor = nv.VAE(seeded(ConvVAE())), images(ConvVAE, 3), images(ConvVAE, 3, seed=5)
    eps, rows = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), torch.arange(3)
    region = nv.readouts.Region({"top": (slice(0, 8), slice(0, 16))})
    forward = captum_forward(vae, region, eps=eps, interventions={"encoder.2[1]": nv.Swap(donor)})
    one = []
    for i in range(3):
        alone = captum_forward(
            vae, region, eps=eps[i : i + 1], interventions={"encoder.2[1]": nv.Swap(donor[i : i + 1])}
        )
        one.append(IntegratedGradients(alone).attribute(x[i : i + 1], target=0, n_steps=6))
    path = IntegratedGradients(forward)
    together = path.attribute(x, target=0, n_steps=6, additional_forward_args=rows)
    torch.testing.assert_close(together, torch.cat(one))
    tunnel = NoiseTunnel(path).attribute(  # repeats each example in place, where the path repeats the batch
        x, target=0, n_steps=6, additional_forward_args=rows, stdevs=0.0, nt_samples=2
    )
    torch.testing.assert_close(tunnel, torch.cat(one))
    with pytest.raises(nv.DataError, match=r"torch.arange\(3\)"):
        path.attribute(x, target=0, n_steps=6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"to": "sigma"}, nv.ReadoutError, "'mu', 'logvar', 'kl'"),
        ({"to": "mu", "of": "x"}, nv.DataError, "'input' or 'z'"),
        ({"to": "mu", "of": "z"}, nv.ReadoutError, "not a function of z"),
        ({"to": "reconstruction", "of": "z", "eps": torch.zeros(1, 5)}, nv.DataError, "starts at the code"),
        ({"eps": torch.zeros(1, 4)}, nv.DataError, "eps must be noise of shape"),
        ({"eps": 0.3}, nv.DataError, "eps must be noise of shape"),
        ({"interventions": {"encoder.2": nv.Resample(X)}}, nv.InterventionError, r"nv.Swap\(reference"),
        ({"interventions": {"encoder.2": nv.Noise(1.0)}}, nv.InterventionError, r"nv.Add\(noise"),
        ({"interventions": {"decoder.2": nv.Zero()}}, nv.InterventionError, "comes after 'latent.mu'"),
        ({"to": "kl", "interventions": {"latent.z": nv.Zero()}}, nv.InterventionError, "comes after 'latent.logvar'"),
        (
            {"to": "reconstruction", "of": "z", "interventions": {"encoder.2": nv.Zero()}},
            nv.InterventionError,
            "not run when of='z'",
        ),
        ({"interventions": {"encoder.99": nv.Zero()}}, nv.SiteError, "not a site"),
        (
            {"eps": torch.zeros(3, 5), "interventions": {"encoder.2": nv.Swap(X)}},
            nv.DataError,
            r"different numbers of examples: \[3, 4\]",
        ),
    ],
)
def test_a_function_that_makes_no_sense_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        captum_forward(nv.VAE(seeded(ConvVAE())), **arguments)


def test_a_raw_model_is_told_to_be_wrapped():
    with pytest.raises(nv.AdapterError, match="wrap it first"):
        captum_forward(seeded(ConvVAE()))


def test_a_model_that_draws_in_eval_mode_is_refused_and_the_random_state_kept():
    class Random(ConvVAE):
        def encode(self, x):
            mu, logvar = super().encode(F.dropout(x, 0.5))
            return mu, logvar

    vae = nv.VAE(seeded(Random()))
    before = torch.get_rng_state()
    with pytest.raises(nv.NnsightVaeError, match="draws random numbers"):
        captum_forward(vae)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_left_in_train_mode_is_attributed_in_eval_mode_and_left_in_train_mode():
    model = seeded(ConvVAE(norm=True))
    expected = IntegratedGradients(Encoder(copy.deepcopy(model).eval())).attribute(X, target=1, n_steps=8)
    vae = nv.VAE(model.train())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.equal(IntegratedGradients(captum_forward(vae)).attribute(X, target=1, n_steps=8), expected)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ---------------------------------------------------------------------- nothing left behind
def state(vae):
    return [
        (set(m.__dict__), {k: dict(v) for k, v in m.__dict__.items() if k.endswith("hooks")})
        for m in vae.module.modules()
    ]


def test_a_failed_layerwise_relevance_leaves_nothing_behind():
    vae = nv.VAE(seeded(ConvVAE()))
    encoder, before = Encoder(vae.module), state(vae)
    with pytest.raises(TypeError, match=r"Flatten.* has no rule"), guarded(vae):
        LRP(encoder).attribute(X, target=0)
    assert state(vae) == before
    with pytest.raises(TypeError, match=r"Flatten.* has no rule"):
        LRP(encoder).attribute(X, target=0)
    assert state(vae) != before  # without the guard


def test_hooks_flags_and_mode_come_back_whatever_happens_inside():
    model = seeded(ConvVAE()).train()
    vae, x, seen = nv.VAE(model), images(ConvVAE, 2), []
    model.encoder[2].register_forward_hook(lambda *_: seen.append(1))
    model.fc_mu.weight.requires_grad_(False)
    before = state(vae)

    def spoil():
        assert not model.training
        model.encoder[2].register_forward_hook(lambda *_: seen.append("ours"))
        model.encoder[0].register_full_backward_hook(lambda *_: None)
        model.encoder[2]._forward_hooks.pop(next(iter(model.encoder[2]._forward_hooks)))
        model.encoder[0].rule = "left by LRP"
        model.fc_mu.weight.requires_grad_(True)
        x.requires_grad_()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), guarded(vae, x):
        spoil()
    assert state(vae) == before
    assert (model.training, x.requires_grad, model.fc_mu.weight.requires_grad) == (True, False, False)
    vae.encode(x)
    assert set(seen) == {1}


def test_captum_runs_inside_a_trace_of_the_same_vae():
    vae = nv.VAE(seeded(ConvVAE()))
    expected = IntegratedGradients(captum_forward(vae)).attribute(X, target=0, n_steps=4)
    kept = []
    with vae.trace(X):
        kept.append(IntegratedGradients(captum_forward(vae)).attribute(X, target=0, n_steps=4))
        mu = vae.latent.mu.output.save()
    assert torch.equal(kept[0], expected)
    assert torch.equal(mu, vae.encode(X).mu)


def test_the_stories_occlusion_line():
    vae, x = nv.load("pendulum-beta-vae"), nv.datasets.load("pendulum").sample(2, seed=0).images
    forward = captum_forward(vae, to="mu")
    maps = Occlusion(forward).attribute(x, target=3, sliding_window_shapes=(3, 8, 8), strides=(3, 8, 8))
    assert maps.shape == x.shape
    without = x.clone()
    without[:, :, 8:16, 24:32] = 0
    change = forward(x)[:, 3] - forward(without)[:, 3]
    torch.testing.assert_close(maps[:, :, 8:16, 24:32].mean((1, 2, 3)), change)


@pytest.mark.slow
def test_the_stories_occlusion_line_as_written():
    vae, images = nv.load("pendulum-beta-vae"), nv.datasets.load("pendulum").sample(2, seed=0).images
    maps = Occlusion(nv.attribution.captum_forward(vae, to="mu")).attribute(
        images, target=3, sliding_window_shapes=(3, 8, 8)
    )
    assert maps.shape == images.shape
    assert np.isfinite(maps.numpy()).all()


def test_spatial_latents_and_functional_models_run():
    for kind in (ResidualVAE, MLPVAE):
        model = seeded(kind())
        vae, x = nv.VAE(model, example=images(model, 1)), images(model, 2)
        forward = captum_forward(vae)
        target = (1,) + (0,) * (forward(x).ndim - 2)
        assert IntegratedGradients(forward).attribute(x, target=target).shape == x.shape
