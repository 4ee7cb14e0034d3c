"""The families in the training loop: each loss is the sum of its terms, each step that of its paper, resumed or not."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from training_runs import IMAGES, assert_same, blobs, die, run, stop_at
from typer.testing import CliRunner

import nnsight_vae as nv
from nnsight_vae import cli
from nnsight_vae.errors import DataError, NnsightVaeError
from nnsight_vae.models import (
    BetaTCObjective,
    DIPObjective,
    FactorObjective,
    Objective,
    VQObjective,
    load_module,
    summed_beta,
)
from nnsight_vae.models.adversary import Adversary, Discriminator
from nnsight_vae.models.architectures import NETWORKS, build, draw_weights
from nnsight_vae.models.families import OBJECTIVES
from nnsight_vae.models.files import read_tensors
from nnsight_vae.models.labels import Labels
from nnsight_vae.models.penalties import dip_terms, kl_decomposition, permute_latents

SMALL = {
    "factor-vae": FactorObjective(gamma=3.0, hidden=(8, 8), likelihood="gaussian", sd=0.3),
    "beta-tc-vae": BetaTCObjective(beta=3.0, likelihood="gaussian", sd=0.3),
    "dip-vae-ii": DIPObjective(lambda_od=2.0, lambda_d=3.0, likelihood="gaussian", sd=0.3),
    "vq-vae": VQObjective(likelihood="gaussian", sd=0.3),
}
VQ = {"architecture": "VQVAE", "arguments": {"latent": 2, "codes": 5, "channels": (4,)}}


def small(name: str, out=None, **changes):
    return run(out, objective=SMALL[name], **((VQ if name == "vq-vae" else {}) | changes))


def test_the_six_families_are_known_by_name():
    assert {name: objective.name for name, objective in OBJECTIVES.items()} == {name: name for name in OBJECTIVES}
    assert set(OBJECTIVES) == {"vae", "beta-vae", *SMALL}


@pytest.mark.parametrize("name", SMALL)
def test_killed_between_checkpoints_and_run_again_equals_uninterrupted(tmp_path, monkeypatch, name):
    with monkeypatch.context() as patch:
        stop_at(patch, 13, die)
        with pytest.raises(RuntimeError, match="killed"):
            small(name, tmp_path)
    stop_at(monkeypatch, 9, die)  # a restart from scratch would die here
    resumed = small(name, tmp_path)
    monkeypatch.undo()
    uninterrupted = small(name, tmp_path / "other")
    assert_same(resumed, uninterrupted)
    last, other = (read_tensors(folder / "checkpoint.safetensors")[0] for folder in (tmp_path, tmp_path / "other"))
    assert last.keys() == other.keys()
    assert all(torch.equal(last[key], other[key]) for key in last)


def test_a_checkpoint_holds_the_discriminator_and_its_moments_and_the_model_neither(tmp_path):
    small("factor-vae", tmp_path)
    kept = read_tensors(tmp_path / "checkpoint.safetensors")[0]
    assert {"adversary.0.weight", "adversary_adam.0.exp_avg", "adam.0.exp_avg"} <= kept.keys()
    assert not any("adversary" in name for name in read_tensors(tmp_path / "model.safetensors")[0])


@pytest.mark.parametrize("name", SMALL)
def test_the_same_seed_gives_the_same_bits_without_the_global_random_state(name):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = small(name)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert_same(small(name), first)
    weights = [tensor for key, tensor in small(name, seed=1).module.state_dict().items() if "weight" in key]
    assert not torch.equal(weights[0], next(t for k, t in first.module.state_dict().items() if "weight" in k))


@pytest.mark.parametrize("name", SMALL)
def test_the_logged_loss_is_the_sum_of_the_logged_terms(tmp_path, name):
    trained = small(name, tmp_path)
    (row,) = trained.config["history"]
    expected = {
        "factor-vae": lambda r: r["kl"] + 3 * r["total_correlation"],
        "beta-tc-vae": lambda r: r["kl"] + 2 * r["total_correlation"],
        "dip-vae-ii": lambda r: r["kl"] + 2 * r["off_diagonal"] + 3 * r["diagonal"],
        "vq-vae": lambda r: 0.25 * r["commitment"],
    }[name](row)
    assert row["loss"] == pytest.approx(row["reconstruction"] + expected, rel=1e-5)
    assert abs(expected) > 1e-3
    with (tmp_path / "losses.csv").open() as file:
        assert [{key: float(value) for key, value in line.items()} for line in csv.DictReader(file)] == [row]
    recorded = trained.config["objective"]
    assert recorded["name"] == name
    assert (
        type(SMALL[name])(**{k: tuple(v) if isinstance(v, list) else v for k, v in recorded.items() if k != "name"})
        == (SMALL[name])
    )


def literal(steps: int, step) -> torch.nn.Module:
    """A training as `run` makes it, with the step written out: same draws, learning rates and optimiser."""
    generator = torch.Generator().manual_seed(0)
    module = build("MLPVAE", {"image_shape": (1, 8, 8), "latent": 3, "hidden": (16,)}, generator)
    adam = torch.optim.Adam(module.parameters(), lr=1e-3)
    state = {}
    for index in range(steps):
        adam.param_groups[0]["lr"] = 1e-3 * (0.02 + 0.98 * (1 + math.cos(math.pi * index / steps)) / 2)
        step(module, adam, generator, state)
    return module


def encoded(module, generator):
    x = IMAGES[torch.randint(64, (8,), generator=generator)]
    mu, logvar = module.encode(x)
    return x, mu, logvar, mu + (logvar / 2).exp() * torch.randn(8, 3, generator=generator)


def elbo(module, x, mu, logvar, z):
    squares = ((module.decode(z) - x) ** 2).flatten(1).sum(1).mean() / (2 * 0.3**2)
    return squares + 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1).mean()


def assert_weights_close(one, two):
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(tensor, two.state_dict()[name], rtol=1e-4, atol=1e-5, msg=name)


def test_factor_vae_trains_as_algorithm_2_says():
    def step(module, adam, generator, state):
        x, mu, logvar, z = encoded(module, generator)
        d = state["d"]
        ratio = torch.log(torch.sigmoid(d(z)) / (1 - torch.sigmoid(d(z)))).mean()
        adam.zero_grad()
        (elbo(module, x, mu, logvar, z) + 3.0 * ratio).backward()
        adam.step()
        _, _, _, others = encoded(module, generator)  # another minibatch, through the encoder as it is now
        permuted = permute_latents(others, generator).detach()
        state["adam"].zero_grad()
        loss = -(torch.log(torch.sigmoid(d(z.detach()))).mean() + torch.log(1 - torch.sigmoid(d(permuted))).mean()) / 2
        loss.backward()
        state["adam"].step()
        losses.append(loss.item())

    losses: list[float] = []
    generator = torch.Generator().manual_seed(0)
    build("MLPVAE", {"image_shape": (1, 8, 8), "latent": 3, "hidden": (16,)}, generator)
    discriminator = Discriminator(3, (8, 8))
    draw_weights(discriminator, generator)
    own = {"d": discriminator, "adam": torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.9))}

    def seeded_step(module, adam, rng, state):
        if not state:
            rng.set_state(generator.get_state())  # the discriminator was drawn after the module
            state |= own
        step(module, adam, rng, state)

    trained = small("factor-vae", steps=12)
    assert_weights_close(trained.module, literal(12, seeded_step))
    (row,) = trained.config["history"]
    assert row["discriminator"] == pytest.approx(sum(losses) / 12, rel=1e-6)


@pytest.mark.parametrize("name", ["beta-tc-vae", "dip-vae-ii"])
def test_beta_tc_and_dip_vaes_train_on_the_elbo_and_their_terms(name):
    def step(module, adam, generator, state):
        x, mu, logvar, z = encoded(module, generator)
        loss = elbo(module, x, mu, logvar, z)
        if name == "beta-tc-vae":
            loss = loss + 2.0 * kl_decomposition(z, mu, logvar, 64).total_correlation
        else:
            terms = dip_terms(mu, logvar)
            loss = loss + 2.0 * terms.off_diagonal + 3.0 * terms.diagonal
        adam.zero_grad()
        loss.backward()
        adam.step()

    assert_weights_close(small(name, steps=12).module, literal(12, step))


def test_vq_vae_trains_the_networks_by_adam_and_the_codebook_by_averages():
    generator = torch.Generator().manual_seed(0)
    module = build("VQVAE", {"image_shape": (1, 8, 8), **VQ["arguments"]}, generator)
    adam = torch.optim.Adam(module.parameters(), lr=1e-3)
    for index in range(12):
        adam.param_groups[0]["lr"] = 1e-3 * (0.02 + 0.98 * (1 + math.cos(math.pi * index / 12)) / 2)
        x = IMAGES[torch.randint(64, (8,), generator=generator)]
        h = module.encoder(x)
        q = module.codebook[torch.cdist(h.movedim(1, -1).flatten(0, 2), module.codebook).argmin(1)]
        q = q.view(8, 4, 4, 2).movedim(-1, 1)
        squares = ((module.decoder(h + (q - h).detach()) - x) ** 2).flatten(1).sum(1).mean() / (2 * 0.3**2)
        adam.zero_grad()
        (squares + 0.25 * ((h - q) ** 2).flatten(1).sum(1).mean()).backward()
        adam.step()
        module.quantizer.update(h.detach(), generator)
    assert_weights_close(small("vq-vae", steps=12).module, module)


def test_without_weight_a_penalty_changes_no_bit():
    plain = run(objective=Objective(likelihood="gaussian", sd=0.3)).module.state_dict()
    for objective in (
        replace(SMALL["beta-tc-vae"], beta=1.0),
        replace(SMALL["dip-vae-ii"], lambda_od=0.0, lambda_d=0.0),
    ):
        found = run(objective=objective).module.state_dict()
        assert all(torch.equal(tensor, found[name]) for name, tensor in plain.items())


def test_labels_go_with_the_penalties():
    images, centres = blobs(32, seed=1)
    labels = Labels(images, centres, ("row", "column"))
    trained = run(objective=replace(SMALL["dip-vae-ii"], label_weight=5.0), labels=labels)
    (row,) = trained.config["history"]
    penalties = 2 * row["off_diagonal"] + 3 * row["diagonal"]
    assert row["loss"] == pytest.approx(row["reconstruction"] + row["kl"] + penalties + 5 * row["labels"], rel=1e-5)
    assert row["labels"] > 0.1


def gaussian_total_correlation(objective: Objective) -> float:
    """Of the latents of a trained model, from their covariance: half of what log variances sum to beyond log det."""
    images, _ = blobs(512, seed=2)
    trained = run(images=images, objective=objective, steps=600, batch_size=64, lr=3e-3)
    assert trained.config["history"][-1]["kl"] > 1  # not by carrying nothing
    with torch.no_grad():
        mu, logvar = trained.module.encode(images)
    z = mu + (logvar / 2).exp() * torch.randn(mu.shape, generator=torch.Generator().manual_seed(0))
    covariance = np.cov(z.numpy().T)
    return 0.5 * (np.log(covariance.diagonal()).sum() - np.linalg.slogdet(covariance)[1])


@pytest.mark.slow
def test_three_families_have_less_correlated_latents_than_a_vae():
    plain = gaussian_total_correlation(OBJECTIVES["vae"])
    assert plain > 1
    for objective in (
        OBJECTIVES["factor-vae"],
        replace(OBJECTIVES["beta-tc-vae"], beta=10.0),
        OBJECTIVES["dip-vae-ii"],
    ):
        assert gaussian_total_correlation(objective) < 0.4 * plain, objective.name


def test_vq_vae_learns_and_uses_its_codes(tmp_path):
    images, _ = blobs(256, seed=2)
    trained = small("vq-vae", tmp_path, images=images, steps=300, batch_size=32, lr=3e-3)
    history = trained.config["history"]
    assert history[-1]["reconstruction"] < 0.6 * history[0]["reconstruction"]
    assert history[-1]["perplexity"] > 2
    vae = nv.load(tmp_path)
    assert torch.equal(vae.adapter.codebook, trained.module.codebook)
    assert vae.sites["latent.z"].shape == (2, 4, 4)
    assert torch.equal(vae(images[:4]), trained.module(images[:4])[0])
    loaded = load_module(tmp_path)
    assert all(torch.equal(t, loaded.state_dict()[name]) for name, t in trained.module.state_dict().items())


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
@pytest.mark.parametrize("name", ["factor-vae", "vq-vae"])
def test_divergence_is_an_error_and_the_checkpoint_before_it_stays(tmp_path, monkeypatch, name, likelihood):
    def overflow(state):
        module = state.module.encoder if name == "vq-vae" else state.adversary.module
        next(module.parameters()).data.fill_(float("inf"))

    options = {"objective": replace(SMALL[name], likelihood=likelihood)} | (VQ if name == "vq-vae" else {})
    with monkeypatch.context() as patch:
        stop_at(patch, 9, overflow)
        with pytest.raises(NnsightVaeError, match="diverged"):
            run(tmp_path, **options)
    assert_same(run(tmp_path, **options), run(**options))


def test_a_step_of_the_vae_moves_no_discriminator_and_a_step_of_the_discriminator_no_vae(monkeypatch):
    frozen = replace(SMALL["factor-vae"], discriminator_lr=1e-30)
    seen = []
    original = Adversary.update

    def update(self, z, others, generator):
        seen.append([p.clone() for p in self.module.parameters()])
        assert not others.requires_grad
        return original(self, z, others, generator)

    monkeypatch.setattr(Adversary, "update", update)
    run(objective=frozen, steps=5)
    assert len(seen) == 5
    assert all(torch.equal(first, last) for first, last in zip(seen[0], seen[-1], strict=True))


def test_beta_of_a_loss_that_averages_is_the_beta_of_ours():
    """3 x 64 x 64 pixels and 6 latents: what a library reports as 0.30465 and 0.001011 are 3743.5 and 0.006068 nats."""
    assert summed_beta(1.0, 3 * 64 * 64, 6) == 2048
    averaged = 0.30465 + 1.0 * 0.001011
    assert averaged * 3 * 64 * 64 == pytest.approx(3743.5 + summed_beta(1.0, 3 * 64 * 64, 6) * 0.006068, rel=1e-3)
    assert summed_beta(4.0) == 4
    assert summed_beta(4.0, latents=8) == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FactorObjective(gamma=-1.0), "FactorObjective: gamma=-1.0"),
        (lambda: FactorObjective(beta=math.nan), "beta=nan"),
        (lambda: FactorObjective(hidden=()), "at least one"),
        (lambda: FactorObjective(hidden=(8, 0)), "positive"),
        (lambda: FactorObjective(discriminator_lr=0.0), "positive learning rate"),
        (lambda: FactorObjective(discriminator_lr=-1.0), "discriminator_lr=-1.0"),
        (lambda: BetaTCObjective(beta=-0.1), "BetaTCObjective: beta=-0.1"),
        (lambda: DIPObjective(lambda_od=math.inf), "lambda_od=inf"),
        (lambda: DIPObjective(lambda_d=-1.0), "lambda_d=-1.0"),
        (lambda: VQObjective(label_weight=1.0), "label_weight=1.0"),
        (lambda: VQObjective(beta=-1.0), "beta=-1.0"),
        (lambda: run(objective=VQObjective()), "vq-vae does not train MLPVAE, expected VQVAE"),
        (lambda: run(**VQ), "vae does not train VQVAE, expected ConvVAE or MLPVAE or ResidualVAE"),
        (lambda: small("vq-vae", arguments={"latent": 2, "codes": -3}), "latent and codes"),
    ],
)
def test_what_does_not_go_together_is_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()


@pytest.mark.parametrize(
    ("words", "architecture", "changed"),
    [
        (["factor-vae", "--network", "mlp"], "MLPVAE", {"gamma": 10.0}),
        (["beta-tc-vae", "--beta", "7", "--network", "residual"], "ResidualVAE", {"beta": 7.0}),
        (["dip-vae-ii", "--network", "mlp"], "MLPVAE", {"lambda_od": 10.0}),
        (["vq-vae", "--beta", "0.5"], "VQVAE", {"beta": 0.5}),
    ],
)
def test_the_command_line_trains_every_family(tmp_path, words, architecture, changed):
    np.savez(tmp_path / "blobs.npz", images=(IMAGES[:, 0] * 255).byte().numpy(), factors=np.zeros((64, 1)))
    call = ["train", "--data", tmp_path / "blobs.npz", "--steps", 2, "--latent", 2, "--out", tmp_path / "out"]
    result = CliRunner().invoke(cli.app, [*map(str, call), "--objective", *words])
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architecture"] == architecture
    assert config["objective"]["name"] == words[0]
    assert changed.items() <= config["objective"].items()


def test_the_large_network_has_the_widths_of_disentanglement_lib_and_lends_them_to_codes(tmp_path):
    architecture, arguments = NETWORKS["conv-large"]
    layers = [layer for layer in build(architecture, arguments, torch.Generator()).encoder if hasattr(layer, "weight")]
    assert [len(layer.weight) for layer in layers] == [32, 32, 64, 64, 256]
    np.savez(tmp_path / "grey.npz", images=np.zeros((4, 64, 64), np.uint8), factors=np.zeros((4, 1)))
    for objective, expected in (("vae", arguments), ("vq-vae", {"channels": arguments["channels"]})):
        call = [
            "train",
            "--data",
            tmp_path / "grey.npz",
            "--steps",
            1,
            "--network",
            "conv-large",
            "--objective",
            objective,
        ]
        result = CliRunner().invoke(cli.app, [*map(str, call), "--out", str(tmp_path / objective)])
        assert result.exit_code == 0, result.output
        recorded = json.loads((tmp_path / objective / "config.json").read_text())["arguments"]
        assert {k: tuple(v) if isinstance(v, list) else v for k, v in recorded.items()}.items() >= expected.items()


def test_the_command_line_refuses_codes_without_maps(tmp_path):
    np.savez(tmp_path / "blobs.npz", images=(IMAGES[:, 0] * 255).byte().numpy(), factors=np.zeros((64, 1)))
    call = ["train", "--data", str(tmp_path / "blobs.npz"), "--out", str(tmp_path / "out"), "--objective", "vq-vae"]
    result = CliRunner().invoke(cli.app, [*call, "--network", "mlp"])
    assert result.exit_code == 2
    assert "vq-vae does not train MLPVAE" in result.output
