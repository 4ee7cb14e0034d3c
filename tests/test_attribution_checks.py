"""Checks of attributions: that each finds what it is there to find, and passes what has nothing wrong."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from attributed import HALVES, vae
from captum.attr import DeepLift, FeatureAblation, InputXGradient, IntegratedGradients, KernelShap, Saliency
from captum.metrics import sensitivity_max
from linear import random_linear_vae
from torch import nn
from torch.nn import functional as F
from vaes import ConvVAE, images, seeded

import nnsight_vae as nv
from nnsight_vae.attribution import (
    Distribution,
    LatentConductance,
    LatentIntegratedGradients,
    LatentShapley,
    captum_forward,
    completeness,
    implementation_invariance,
    infidelity,
    model_randomisation,
    sensitivity,
)
from nnsight_vae.attribution.fidelity import _removed

__all__ = ["vae"]  # fixtures

pytestmark = pytest.mark.filterwarnings(
    "ignore:Input Tensor", "ignore:Setting forward", "ignore::nnsight_vae.NnsightVaeWarning"
)
X = images(ConvVAE, 6)


@pytest.fixture(scope="module")
def linear():
    return nv.VAE(random_linear_vae(0), example=torch.zeros(1, 6, dtype=torch.double))


def points(n=5, seed=0):
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


class Wrong(LatentIntegratedGradients):
    """Integrated gradients, times two."""

    def attribute(self, inputs, baselines=None, target=None, additional_forward_args=None, **settings):
        answer = super().attribute(inputs, baselines, target, additional_forward_args, **settings)
        return (2 * answer[0],) if isinstance(answer, tuple) else 2 * answer


# ---------------------------------------------------------------------- completeness
def test_of_a_linear_model_integrated_gradients_are_complete_and_twice_them_are_not(linear):
    right, wrong = (completeness(m(linear), points(), target=1) for m in (LatentIntegratedGradients, Wrong))
    assert right.score.value < 1e-8
    assert wrong.score.value == pytest.approx(1.0)
    assert torch.allclose(wrong.delta, wrong.change)
    assert wrong.score.ci == pytest.approx((1.0, 1.0))


def test_the_error_falls_with_steps_and_is_the_methods_own_delta(vae):
    method = LatentIntegratedGradients(vae)
    few, many = (completeness(method, X, target="latent.mu[2]", baselines="black", n_steps=n) for n in (5, 100))
    assert many.score.value < 0.2 * few.score.value
    _, delta = method.attribute(X, "black", 2, n_steps=5, return_convergence_delta=True)
    assert torch.allclose(few.delta, delta, atol=1e-5)
    assert few.score.value == pytest.approx(float(few.delta.abs().sum() / few.change.abs().sum()), rel=1e-4)
    assert few.score.ci[0] < few.score.value < few.score.ci[1]


def test_captums_methods_and_layers_are_checked_too(vae):
    forward = captum_forward(vae)
    captums = completeness(IntegratedGradients(forward), X, target="latent.mu[2]", baselines="black", n_steps=50)
    ours = completeness(LatentIntegratedGradients(vae), X, target=2, baselines="black", n_steps=50)
    assert captums.score.value == pytest.approx(ours.score.value, rel=1e-2)
    assert completeness(DeepLift(forward), X, target=2, baselines="black").score.value < 1e-4
    assert completeness(LatentConductance(vae, "encoder.3"), X, target=2, baselines="black").score.value < 0.05


def test_where_nothing_changes_completeness_is_undefined(vae):
    same = completeness(LatentIntegratedGradients(vae), X, target=0, baselines=X)
    assert same.score.value is None
    assert "the same at the inputs" in same.score.note


# ---------------------------------------------------------------------- sensitivity
def test_a_linear_models_gradient_does_not_move_and_its_map_moves_with_the_input(linear):
    forward = captum_forward(linear)
    assert sensitivity(Saliency(forward), points(), target=0, abs=False).score.value < 1e-12
    found = sensitivity(InputXGradient(forward), points(), target=0, radius=0.1, n_perturbations=8)
    assert 0 < found.score.value < 1
    assert sensitivity(
        InputXGradient(forward), points(), target=0, radius=0.2, n_perturbations=8
    ).score.value == pytest.approx(2 * found.score.value)


def test_sensitivity_is_captums_and_seeded(vae):
    method = LatentIntegratedGradients(vae)
    ask = lambda seed: sensitivity(
        method, X, target=1, baselines="black", radius=0.05, n_perturbations=2, seed=seed, n_steps=5
    )
    found = ask(0)
    state = torch.random.get_rng_state()
    assert torch.equal(found.values, ask(0).values)
    assert torch.equal(state, torch.random.get_rng_state())
    assert not torch.equal(found.values, ask(1).values)
    torch.manual_seed(0)
    captums = sensitivity_max(
        lambda x, **more: method.attribute(x, **more),
        X,
        perturb_radius=0.05,
        n_perturb_samples=50,
        target=1,
        baselines=torch.zeros_like(X),
        n_steps=5,
    )
    many = sensitivity(method, X, target=1, baselines="black", radius=0.05, n_perturbations=50, n_steps=5)
    assert torch.allclose(many.values, captums, rtol=0.25)
    assert found.score.value == pytest.approx(float(found.values.mean()), rel=1e-6)


def test_the_default_baseline_is_that_of_the_inputs_and_not_of_their_noise(vae):
    seen = []

    class Spy(LatentIntegratedGradients):
        def attribute(self, inputs, baselines=None, target=None, additional_forward_args=None, **settings):
            seen.append(baselines)
            return super().attribute(inputs, baselines, target, additional_forward_args, **settings)

    sensitivity(Spy(vae), X, target=1, n_perturbations=2, n_steps=2)
    mean = X.mean(0)
    assert all(
        torch.allclose(row, mean)
        for baselines in seen
        for row in (baselines[0] if isinstance(baselines, tuple) else baselines)
    )


# ---------------------------------------------------------------------- infidelity
@pytest.mark.parametrize("name", ["ig", "ablation", "kernel", "saliency", "shapley"])
def test_of_a_linear_function_right_attributions_predict_exactly_and_shuffled_ones_do_not(linear, name):
    forward = captum_forward(linear)
    method, how, kind = {
        "ig": (LatentIntegratedGradients(linear), {"baselines": points(seed=1)}, "removal"),
        "ablation": (FeatureAblation(forward), {"baselines": points(seed=1)}, "removal"),
        "kernel": (KernelShap(forward), {"baselines": points(seed=1), "n_samples": 60}, "removal"),
        "saliency": (Saliency(forward), {"abs": False}, "noise"),
        "shapley": (LatentShapley(linear, lambda_readout()), {}, "removal"),
    }[name]
    x = points() if name != "shapley" else points()[:, :3]
    found = infidelity(method, x, target=0, **how)
    assert found.perturbation == kind
    assert found.score.value < (1e-3 if name == "kernel" else 1e-10)
    assert found.shuffled.value > 0.05
    assert infidelity(method, x, target=0, seed=1, **how).shuffled.value != found.shuffled.value


def lambda_readout():
    from linear import LinearReadout

    return LinearReadout(torch.randn(2, 6, generator=torch.Generator().manual_seed(3), dtype=torch.double))


def test_twice_the_right_attributions_have_the_error_of_none(linear):
    found = infidelity(Wrong(linear), points(), target=0)
    assert found.score.value == pytest.approx(1.0)
    assert found.score.ci == pytest.approx((1.0, 1.0))


def test_input_times_gradient_is_against_zero(linear):
    model = linear.module
    found = infidelity(InputXGradient(captum_forward(linear)), points(), target=0, n_perturbations=30)
    assert found.score.value < 1e-10
    assert model.training == linear.module.training


def test_a_mismatched_perturbation_is_refused(vae):
    with pytest.raises(nv.DataError, match=r"differences from a baseline.*perturbation='removal'"):
        infidelity(LatentIntegratedGradients(vae), X, target=0, perturbation="noise")
    with pytest.raises(nv.DataError, match=r"are gradients.*perturbation='noise'"):
        infidelity(Saliency(captum_forward(vae)), X, target=0, perturbation="removal")
    with pytest.raises(nv.DataError, match="attributions to them alone"):
        infidelity(LatentConductance(vae, "encoder.3"), X, target=0)


def test_what_is_removed_is_one_rectangle_through_all_channels():
    mask = _removed(torch.Size((200, 3, 6, 8)), torch.Generator().manual_seed(0)).expand(200, 3, 6, 8)
    for each in mask:
        rows, columns = each[0].any(1).nonzero()[:, 0], each[0].any(0).nonzero()[:, 0]
        assert int(each[0].sum()) == len(rows) * len(columns) > 0
        assert int(rows[-1] - rows[0]) == len(rows) - 1
        assert torch.equal(each[0], each[2])
    assert mask[:, 0].float().mean((0, 1, 2)).shape == ()
    assert bool(mask[:, 0, 0].any() & mask[:, 0, -1].any() & mask[:, 0, :, -1].any())
    shares = _removed(torch.Size((500, 40)), torch.Generator().manual_seed(0)).float().mean(1)
    assert 0.4 < float(shares.mean()) < 0.6
    assert float(shares.std()) > 0.2  # subsets of all sizes


def test_on_the_bundled_model_integrated_gradients_beat_shuffled_ones():
    vae, x = nv.load("pendulum-beta-vae"), nv.datasets.load("pendulum").sample(8, seed=0).images
    found = infidelity(LatentIntegratedGradients(vae), x, target=3, n_perturbations=20, n_steps=20)
    assert found.score.value < 0.1 < 0.3 < found.shuffled.value
    assert "removal" in str(found)


# ---------------------------------------------------------------------- what all three ask for
@pytest.mark.parametrize("check", [completeness, sensitivity, infidelity])
def test_questions_that_cannot_be_answered_are_refused(vae, check):
    method = LatentIntegratedGradients(vae)
    with pytest.raises(nv.DataError, match=r"one target; name it.*latent.mu\[0\]"):
        check(method, X, target=None)
    with pytest.raises(nv.DataError, match="expected an attribution method on a VAE"):
        check(IntegratedGradients(lambda x: x), X, target=0)
    with pytest.raises(nv.DataError, match="not a Distribution"):
        check(method, X, target=0, baselines=Distribution(X))


def test_settings_that_make_no_sense_are_refused(vae):
    with pytest.raises(nv.DataError, match="no baseline"):
        completeness(Saliency(captum_forward(vae)), X, target=0)
    for more in ({"radius": -1.0}, {"n_perturbations": 0}):
        with pytest.raises(nv.DataError, match="positive radius"):
            sensitivity(Saliency(captum_forward(vae)), X, target=0, **more)
    for more in ({"scale": 0.0}, {"n_perturbations": 0}):
        with pytest.raises(nv.DataError, match="positive standard deviation"):
            infidelity(Saliency(captum_forward(vae)), X, target=0, **more)


def test_noise_that_differs_by_example_follows_its_example(vae):
    eps = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    method = LatentIntegratedGradients(vae, "z", eps=eps)
    assert completeness(method, X, target=1, baselines="black", n_steps=50).score.value < 0.05
    whole = infidelity(method, X, target=1, baselines="black", n_perturbations=4, n_steps=5)
    assert whole.values.shape == (6,)
    assert sensitivity(method, X, target=1, baselines="black", n_perturbations=2, n_steps=5).score.value < 1


def test_one_example_has_a_value_without_an_interval(vae):
    for check in (completeness, sensitivity, infidelity):
        score = check(LatentIntegratedGradients(vae), X[:1], target=1, baselines="black", n_steps=5).score
        assert score.value is not None
        assert score.ci is None
        assert "one example" in score.note


# ---------------------------------------------------------------------- does it depend on the model, and on nothing else
def gradients(target=1):
    return lambda vae: Saliency(captum_forward(vae)).attribute(X.clone(), target=target, abs=False)


def test_randomised_layers_make_other_attributions_and_the_input_alone_does_not(vae):
    found = model_randomisation(vae, gradients())
    assert found.layers == ("fc_logvar", "fc_mu", "encoder.5", "encoder.2", "encoder.0")
    assert found.signed[0].value == found.absolute[0].value == pytest.approx(1.0)  # logvar is not on the way to mu
    assert abs(found.signed[-1].value) < 0.3
    assert found.signed[1].value < 0.9
    stubborn = model_randomisation(vae, lambda vae: X)
    assert [score.value for score in (*stubborn.signed, *stubborn.absolute)] == pytest.approx([1.0] * 10)
    assert "down to encoder.0" in str(found)


def test_randomisation_is_seeded_cascades_and_leaves_the_model_alone(vae):
    before = {k: v.clone() for k, v in vae.module.state_dict().items()}
    seen = []

    def watch(vae):
        seen.append({k: v.clone() for k, v in vae.module.state_dict().items()})
        return gradients()(vae)

    first, again = model_randomisation(vae, watch), model_randomisation(vae, gradients())
    assert first.signed[-1].value == again.signed[-1].value
    assert model_randomisation(vae, gradients(), seed=1).signed[-1].value != first.signed[-1].value
    assert all(torch.equal(v, before[k]) for k, v in vae.module.state_dict().items())
    changed = [{k.rsplit(".", 1)[0] for k in s if not torch.equal(s[k], before[k])} for s in seen]
    assert changed[0] == set()
    assert changed[2] == {"fc_logvar", "fc_mu"}
    assert changed[-1] == set(first.layers)
    last = seen[-1]["encoder.0.weight"]
    assert torch.equal(last.flatten().sort().values, before["encoder.0.weight"].flatten().sort().values)


def test_turned_signs_are_seen_in_the_signed_similarity_alone(vae):
    found = model_randomisation(vae, lambda model: (X - 0.5) * (1 if model is vae else -1))
    assert found.signed[0].value == pytest.approx(-1.0)
    assert found.absolute[0].value == pytest.approx(1.0)


def test_the_decoder_is_randomised_for_what_it_makes(vae):
    z = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    attribute = lambda vae: LatentShapley(vae, HALVES).attribute(z, target=0)
    found = model_randomisation(vae, attribute, stage="decoder")
    assert found.layers == ("decoder.5", "decoder.3", "decoder.0")
    assert found.signed[-1].value < 0.7


def test_constant_attributions_have_no_similarity_and_nonsense_is_refused(vae):
    flat = model_randomisation(vae, lambda vae: torch.zeros(3, 4))
    assert flat.signed[0].value is None
    assert "the same everywhere" in str(flat)
    for attribute, message in (
        (lambda vae: 3.0, "got float"),
        (lambda vae: torch.full((2, 2), np.nan), "finite attributions"),
    ):
        with pytest.raises(nv.DataError, match=message):
            model_randomisation(vae, attribute)
    with pytest.raises(nv.DataError, match="'encoder' or 'decoder'"):
        model_randomisation(vae, gradients(), stage="latent")


class Functional(ConvVAE):
    """ConvVAE with the same weights and F.relu for its modules."""

    def encode(self, x):
        h = F.relu(self.encoder[2](F.relu(self.encoder[0](x))))
        h = F.relu(self.encoder[5](h.flatten(1)))
        return self.fc_mu(h), self.fc_logvar(h)


def test_gradient_methods_do_not_see_how_a_model_is_written(vae):
    other = nv.VAE(seeded(Functional()), example=X)
    attribute = lambda vae: LatentIntegratedGradients(vae).attribute(X, "black", 1, n_steps=10)
    found = implementation_invariance(vae, other, attribute, X)
    assert found.difference < 1e-4
    assert found.outputs < 1e-5
    by_modules = lambda vae: torch.full(
        (2, 2), float(sum(isinstance(m, nn.ReLU) for m in vae.module.modules()) + len(type(vae.module).__name__))
    )
    assert implementation_invariance(vae, other, by_modules, X).difference > 0.1


def test_models_that_compute_something_else_are_no_test_of_invariance(vae):
    other = copy.deepcopy(vae)
    with torch.no_grad():
        other.module.fc_mu.bias += 0.01
    with pytest.raises(nv.DataError, match=r"differ by 0\.01"):
        implementation_invariance(vae, other, gradients(), X)
