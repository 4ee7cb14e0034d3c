"""The networks at every size, and the models that come with the package: they load, fit and do what their record says."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import nnsight_vae.models as models
from nnsight_vae.datasets import load
from nnsight_vae.errors import DataError
from nnsight_vae.models import MLPVAE, ConvVAE, ResidualVAE, load_module, load_weights, read_record, zoo
from nnsight_vae.models.architectures import build
from nnsight_vae.models.bundle import ZOO
from nnsight_vae.models.networks import Residual
from nnsight_vae.models.objectives import gaussian_kl, reconstruction_loss

SHAPES = [(3, 64, 64), (1, 32, 32), (1, 28, 28), (1, 16, 16), (1, 8, 8), (3, 32, 64)]
BUNDLED = ("pendulum-beta-vae", "pendulum-labelled-vae")


def uniform(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("network", [ConvVAE, MLPVAE, ResidualVAE])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_image_size_goes_in_and_comes_out(network, shape):
    module = network(image_shape=shape, latent=5)
    x = uniform(2, *shape)
    reconstruction, mu, logvar = module(x)
    assert reconstruction.shape == x.shape
    assert mu.shape == logvar.shape == (2, 5)
    assert 0 < reconstruction.min() < reconstruction.max() < 1
    assert torch.equal(reconstruction, module.decode(module.encode(x)[0]))


@pytest.mark.parametrize("network", [ConvVAE, MLPVAE, ResidualVAE])
def test_noise_is_the_callers_and_a_plain_call_has_none(network):
    module = network(image_shape=(1, 8, 8), latent=3)
    x, eps = uniform(4, 1, 8, 8), uniform(4, 3)
    reconstruction, mu, logvar = module(x, eps)
    torch.testing.assert_close(reconstruction, module.decode(mu + eps * logvar.exp().sqrt()))
    assert not torch.equal(reconstruction, module(x)[0])
    assert torch.equal(module(x)[0], module(x)[0])


@pytest.mark.parametrize("network", [ConvVAE, MLPVAE, ResidualVAE])
def test_no_layer_overwrites_the_activation_before_it(network):
    module = network(image_shape=(1, 16, 16))
    kept = []
    for layer in module.modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda _, __, output: kept.append((output, output.clone())))
    module(uniform(2, 1, 16, 16))
    assert len(kept) > 8
    assert all(torch.equal(output, at_the_time) for output, at_the_time in kept)


def test_a_residual_block_adds_to_its_input():
    block, h = Residual(3), uniform(2, 3, 4, 4) - 0.5
    inner = torch.relu(nn.functional.conv2d(torch.relu(h), block.first.weight, block.first.bias, padding=1))
    added = nn.functional.conv2d(inner, block.second.weight, block.second.bias, padding=1)
    torch.testing.assert_close(block(h), h + added)
    blocks = [m for m in ResidualVAE(image_shape=(1, 16, 16)).modules() if isinstance(m, Residual)]
    assert len(blocks) == 4, "one at each of two sizes, on the way down and up"


def test_the_plain_modules_can_be_scripted_and_exported():
    module, x = ConvVAE(image_shape=(1, 8, 8)), uniform(2, 1, 8, 8)
    assert torch.equal(torch.jit.script(module)(x)[0], module(x)[0])
    assert torch.equal(torch.export.export(module, (x,)).module()(x)[0], module(x)[0])


def test_build_draws_torchs_default_distribution_from_the_given_generator():
    before = torch.get_rng_state()
    module = build("ConvVAE", {"latent": 4}, torch.Generator().manual_seed(0))
    assert torch.equal(before, torch.get_rng_state())
    for name, default in ConvVAE(latent=4).state_dict().items():
        ours = module.state_dict()[name]
        assert ours.shape == default.shape
        if ours.numel() > 100:
            assert float(ours.std() / default.std()) == pytest.approx(1, abs=0.2)
            assert float(ours.abs().max() / default.abs().max()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvVAE(image_shape=(3, 30, 30), channels=(8, 8)), "divisible by 4"),
        (lambda: ConvVAE(image_shape=(1, 7, 7)), "MLPVAE"),
        (lambda: ConvVAE(image_shape=(64, 64)), "channels, height, width"),
        (lambda: ConvVAE(image_shape=(0, 64, 64)), "positive"),
        (lambda: ConvVAE(channels=()), "channels"),
        (lambda: ConvVAE(latent=0), "latent"),
        (lambda: MLPVAE(hidden=()), "hidden"),
        (lambda: MLPVAE(hidden=(4, -1)), "hidden"),
        (lambda: build("GAN", {}, torch.Generator()), "Known: ConvVAE, MLPVAE, ResidualVAE, VQVAE"),
        (lambda: build("MLPVAE", {"channels": 3}, torch.Generator()), "channels"),
    ],
)
def test_a_network_that_cannot_be_is_refused(make, message):
    with pytest.raises(DataError, match=message):
        make()


def test_the_zoo_lists_its_models_with_a_line_each():
    assert tuple(zoo())[:2] == BUNDLED
    assert len(zoo()) == 2 + 6, "one of sprites for each objective, see test_zoo"
    assert str(zoo()).splitlines()[0].startswith("pendulum-beta-vae  ")
    assert all(zoo().values())


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_model_is_small_and_is_what_its_record_says(name):
    record, module = read_record(name), load_module(name)
    assert (ZOO / f"{name}.safetensors").stat().st_size < 2_000_000
    assert type(module).__name__ == record["architecture"]
    assert not module.training
    assert module.fc_mu.out_features == record["arguments"]["latent"]
    assert record["training"]["steps"] == record["history"][-1]["step"]
    assert (record["labels"] is None) == (name == "pendulum-beta-vae")


@pytest.mark.parametrize(
    ("name", "draw"),
    [
        ("pendulum-beta-vae", "observational"),
        ("pendulum-labelled-vae", "observational"),
        ("pendulum-labelled-vae", "independent"),
    ],
)
def test_a_bundled_model_reaches_its_recorded_losses_on_fresh_images(name, draw):
    data, held_out = load("pendulum"), read_record(name)["held_out"][draw]
    sample = data.sample if draw == "observational" else data.sample_independent
    batch = sample(400, seed=987)
    with torch.no_grad():
        reconstruction, mu, logvar = load_module(name)(batch.images)
    nats = reconstruction_loss(reconstruction, batch.images).mean()
    assert float(nats) == pytest.approx(held_out["reconstruction"], rel=0.02)
    assert float((reconstruction - batch.images).square().mean()) == pytest.approx(held_out["mse"], rel=0.1)
    kl = gaussian_kl(mu, logvar).mean(0)
    torch.testing.assert_close(kl, torch.tensor(held_out["kl_per_latent"]), rtol=0.15, atol=0.05)
    assert held_out["active"] == (kl > 0.1).nonzero().flatten().tolist()
    correlation = torch.corrcoef(torch.cat([mu.T, batch.factors.T]))[:8, 8:]
    torch.testing.assert_close(correlation, torch.tensor(held_out["correlation"]), rtol=0, atol=0.2)


def effects(name: str, images: torch.Tensor, readout) -> torch.Tensor:
    """|change of factor f, in its sd, per sd of z_k|: half of z_k one sd above minus one below, `[latent, factor]`."""
    module = load_module(name)
    rows = []
    with torch.no_grad():
        mu = module.encode(images)[0]
        for k in range(mu.shape[1]):
            low, high = mu.clone(), mu.clone()
            low[:, k], high[:, k] = mu[:, k].mean() - mu[:, k].std(), mu[:, k].mean() + mu[:, k].std()
            rows.append((readout(module.decode(high)) - readout(module.decode(low))).mean(0) / 2)
    return torch.stack(rows).abs()


def test_each_labelled_latent_moves_its_own_factor_and_hardly_another():
    data = load("pendulum")
    for batch in (data.sample(200, seed=654), data.sample_independent(200, seed=654)):
        tied = effects("pendulum-labelled-vae", batch.images, data.readout())[:4]
        assert tied.diagonal().min() > 0.8
        assert (tied - tied.diagonal().diag()).max() < 0.1


def test_unsupervised_latents_mix_factors():
    data = load("pendulum")
    found = effects("pendulum-beta-vae", data.sample(200, seed=654).images, data.readout())
    second = found.sort(1, descending=True).values[:, 1]
    assert (second > 0.25).sum() >= 2, "latents that move a second factor"
    assert found[:, 0].max() < 0.7, "no latent is the angle's own"


@pytest.fixture
def folder(tmp_path):
    """A bundled model as the output folder of a training."""
    shutil.copy(ZOO / "pendulum-beta-vae.safetensors", tmp_path / "model.safetensors")
    shutil.copy(ZOO / "pendulum-beta-vae.json", tmp_path / "config.json")
    return tmp_path


def test_a_folder_loads_like_a_bundled_name(folder):
    x = uniform(2, 3, 64, 64)
    assert torch.equal(load_module(folder)(x)[0], load_module("pendulum-beta-vae")(x)[0])
    assert torch.equal(load_module(str(folder))(x)[0], load_module("pendulum-beta-vae")(x)[0])


def test_weights_that_do_not_fit_are_named(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["extra.weight"] = torch.zeros(2)
    del tensors["fc_mu.bias"]
    tensors["encoder.0.bias"] = torch.zeros(3)
    save_file(tensors, path)
    with pytest.raises(DataError) as error:
        load_module(folder)
    for part in ("missing fc_mu.bias (8,)", "unexpected extra.weight (2,)", "encoder.0.bias is (3,), expected (16,)"):
        assert part in str(error.value)


def test_load_weights_changes_a_module_only_if_all_of_it_fits(tmp_path):
    source, target = MLPVAE(latent=2), MLPVAE(latent=2)
    save_file(source.state_dict(), tmp_path / "fits.safetensors")
    assert load_weights(target, tmp_path / "fits.safetensors") is target
    assert torch.equal(target.fc_mu.weight, source.fc_mu.weight)
    assert target.fc_mu.weight.requires_grad

    other = nn.Linear(3, 2)
    before = other.weight.clone()
    save_file({"weight": torch.zeros(2, 3), "bias": torch.zeros(5)}, tmp_path / "unfit.safetensors")
    with pytest.raises(DataError, match=r"bias is \(5,\), expected \(2,\)"):
        load_weights(other, tmp_path / "unfit.safetensors")
    assert torch.equal(other.weight, before)


def test_what_cannot_be_loaded_says_why(folder, tmp_path):
    with pytest.raises(DataError, match="Bundled: pendulum-beta-vae, pendulum-labelled-vae"):
        load_module("no-such-model")
    (folder / "model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(DataError, match="Pickled weights"):
        load_module(folder)
    (folder / "config.json").write_text("{not json")
    with pytest.raises(DataError, match=r"config\.json"):
        load_module(folder)
    (folder / "config.json").write_text(json.dumps({"architecture": "ConvVAE"}))
    with pytest.raises(DataError, match="arguments"):
        load_module(folder)
    (folder / "config.json").unlink()
    with pytest.raises(DataError, match=r"no config\.json"):
        load_module(folder)


def test_the_package_lists_what_it_exports_and_refuses_the_rest():
    assert {"ConvVAE", "MLPVAE", "train", "zoo", "load_module"} <= set(dir(models))
    assert all(getattr(models, name) is not None for name in models.__all__)
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = models.nothing_here
