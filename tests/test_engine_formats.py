"""Convolutions with channels last in memory: the same numbers, and only where the model and the user cannot tell."""

from __future__ import annotations

import copy

import pytest
import torch
from test_engine import literal, record, unit_write
from torch import Tensor, nn
from vaes import ConvVAE, all_vaes, images, seeded

import nnsight_vae as nv
from nnsight_vae import engine, runs
from nnsight_vae.formats import channels_last, is_channels_last, relaid
from nnsight_vae.updates import add_response

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN: formats stay as they are")


class Whole:
    """Every pixel, by `view`, which needs the default order."""

    names = tuple(map(str, range(3 * 16 * 16)))

    def __call__(self, reconstruction: Tensor) -> Tensor:
        return reconstruction.view(len(reconstruction), -1)


class Picky(ConvVAE):
    """Code between the convolutions that minds how the activation lies in memory."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, act, second, *rest = self.encoder
        h = act(first(x))
        torch.rand(1)  # a draw that nothing depends on
        match self.way:
            case "view":
                h = h.view(len(h), -1).view_as(h)
            case "memory":  # reads numbers in the order they lie in
                h = h.as_strided(h.shape, (256, 64, 8, 1))
            case "in place":  # a copy in the default order, the activation itself in the other
                h.permute(0, 2, 3, 1).contiguous().mul_(0.5)
        h = second(h)
        for part in rest:
            h = part(h)
        return self.fc_mu(h), self.fc_logvar(h)


def heads(vae: nv.VAE, x: Tensor) -> list[str]:
    with torch.no_grad():
        return [firing.path for firing in relaid(vae, x)]


def check_units(model: nn.Module, vae: nv.VAE, sites: tuple[str, ...]) -> None:
    x, source = images(model, 3), images(model, 3, seed=1)
    for site in sites:
        donor = record(model, source, site)
        units = vae.sites[site].units[:3]
        got = engine.run_interventions(vae, x, [{unit: nv.Swap(source)} for unit in units], Whole())
        for row, unit in zip(got, units, strict=True):
            want = literal(model, x, {site: unit_write(unit.index, lambda v, u=unit.index: donor[:, u])})
            torch.testing.assert_close(row, want.flatten(1), atol=1e-5, rtol=0)


SITES = ("encoder.0", "encoder.2", "encoder.6", "decoder.0", "decoder.3", "decoder.5")


def test_the_convolution_at_the_head_of_each_chain_gets_channels_last_and_the_rest_keep_it():
    model = seeded(ConvVAE())
    vae, x = nv.VAE(copy.deepcopy(model)), images(model, 3)
    assert heads(vae, x) == ["model.encoder.0", "model.decoder.3"]
    seen = {}

    def watch(path: str) -> runs.Write:
        return lambda value: seen.setdefault(path, value)

    with torch.no_grad():
        clean = runs.clean_run(vae, x)
        rows = torch.tensor([0, 1, 1, 2])
        suffix = {f"model.decoder.{i}": watch(f"model.decoder.{i}") for i in (3, 4, 5)}
        runs.run_from(clean, "model.encoder.0", rows, {"model.encoder.2": watch("model.encoder.2"), **suffix}, Whole())
    assert is_channels_last(runs.taken(clean.outputs["model.encoder.0"], rows))
    assert len(seen) == 4
    assert all(is_channels_last(value) for value in seen.values())
    check_units(model, vae, SITES)


@pytest.mark.parametrize("way", ["view", "memory", "in place"])
def test_a_model_that_minds_runs_in_the_default_order(way):
    model = seeded(Picky(way))
    vae = nv.VAE(copy.deepcopy(model))
    assert heads(vae, images(model, 3)) == []
    check_units(model, vae, SITES)


def test_a_model_that_does_not_mind_is_not_taken_for_one_that_does():
    assert heads(nv.VAE(seeded(Picky("nothing"))), images(ConvVAE(), 3)) == ["model.encoder.0", "model.decoder.3"]


def test_hooks_gradients_other_types_and_models_without_convolutions_keep_the_default_order():
    model = seeded(ConvVAE())
    x = images(model, 3)
    vae = nv.VAE(copy.deepcopy(model))
    assert relaid(vae, x) == []  # gradients are on
    seen = []
    handle = vae.module.decoder[5].register_forward_hook(lambda module, args, output: seen.append(args[0].stride()))
    assert heads(vae, x) == []
    engine.run_interventions(vae, x, [{"decoder.3[0]": nv.Add(1.0)}], Whole())
    assert seen
    assert all(stride[-1] == 1 for stride in seen)
    handle.remove()
    assert heads(vae, x) != []
    with torch.autocast("cpu", torch.bfloat16):
        assert heads(vae, x) == []
    assert heads(nv.VAE(copy.deepcopy(model).double(), example=x.double()), x.double()) == []
    mlp = all_vaes()["mlp"]
    assert heads(nv.VAE(mlp), images(mlp, 2)) == []


def test_the_trial_leaves_no_hook_and_no_draw_behind_even_where_the_model_raises():
    for way in ("nothing", "view"):
        vae = nv.VAE(seeded(Picky(way)))
        x = images(vae.module, 3)
        torch.manual_seed(3)
        heads(vae, x)
        drawn = torch.rand(1)
        torch.manual_seed(3)
        assert torch.equal(drawn, torch.rand(1))
        parts = list(vae.module.modules())
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in parts)


def test_what_the_user_gets_is_in_the_default_order():
    model = seeded(ConvVAE())
    vae, x = nv.VAE(model), images(model, 3)
    assert engine.activations(vae, x, ["encoder.0"])["encoder.0"].is_contiguous()
    assert engine.baseline(vae, x, Whole()).shape == (3, 768)
    assert engine.intervene(vae, x, {"latent.z[0]": nv.Add(1.0)}).reconstruction.is_contiguous()


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(3, 4, 3, 2, 1), nn.ConvTranspose2d(3, 4, 4, 2, 1)], ids=["conv", "transposed"]
)
@torch.no_grad()
def test_a_response_is_added_in_the_format_of_the_output(layer):
    generator = torch.Generator().manual_seed(0)
    x, delta = (torch.randn(5, channels, 6, 6, generator=generator) for channels in (3, 1))
    first = torch.tensor([0, 0, 2, 1, 1])
    want = add_response(layer, layer(x), first, delta)
    got = add_response(layer, channels_last(layer(x)), first, delta)
    assert is_channels_last(got)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


class Means:
    names = tuple(map(str, range(5)))
    reads = "latent.mu"

    def __call__(self, means: Tensor) -> Tensor:
        return means


def test_a_run_that_ends_before_a_convolution_does_not_wait_for_it():
    model = seeded(ConvVAE())
    vae, x = nv.VAE(copy.deepcopy(model)), images(model, 3)
    got = engine.run_interventions(vae, x, [{"encoder.0[0]": nv.Add(1.0)}], Means())
    change = torch.eye(4)[0].view(-1, 1, 1)
    model.encoder[0].register_forward_hook(lambda module, args, output: output + change)
    with torch.no_grad():
        torch.testing.assert_close(got[0], model.encode(x)[0], atol=1e-5, rtol=0)
