"""Convolutions that run another way than written: the same numbers, and only where the model and the user cannot tell."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from hooks import literal, record, unit_write
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from vaes import ConvVAE, all_vaes, images, seeded

import nnsight_vae as nv
from nnsight_vae import engine, runs
from nnsight_vae.formats import channels_last, is_channels_last
from nnsight_vae.kernels import Kernels, kernels
from nnsight_vae.subpixel import pays, transposed
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


FOUND = Kernels(("model.encoder.0",), ("model.decoder.3", "model.decoder.5"))


def found(vae: nv.VAE, x: Tensor) -> Kernels:
    with torch.no_grad():
        return kernels(vae, x)


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


def test_the_head_of_each_chain_gets_channels_last_the_rest_keep_it_and_small_transposed_ones_run_as_ordinary_ones():
    model = seeded(ConvVAE())
    vae, x = nv.VAE(copy.deepcopy(model)), images(model, 3)
    assert found(vae, x) == FOUND
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
    assert found(vae, images(model, 3)) == Kernels()
    check_units(model, vae, SITES)


def test_a_model_that_does_not_mind_is_not_taken_for_one_that_does():
    assert found(nv.VAE(seeded(Picky("nothing"))), images(ConvVAE(), 3)) == FOUND


def test_hooks_other_types_and_models_without_convolutions_keep_the_default_order():
    model = seeded(ConvVAE())
    x = images(model, 3)
    vae = nv.VAE(copy.deepcopy(model))
    assert kernels(vae, x) == FOUND  # gradients are on
    seen = []
    handle = vae.module.decoder[5].register_forward_hook(lambda module, args, output: seen.append(args[0].stride()))
    assert found(vae, x) == Kernels()
    engine.run_interventions(vae, x, [{"decoder.3[0]": nv.Add(1.0)}], Whole())
    assert seen
    assert all(stride[-1] == 1 for stride in seen)
    handle.remove()
    assert found(vae, x) == FOUND
    handle = vae.module.decoder[5].register_full_backward_hook(lambda module, into, out: None)
    assert kernels(vae, x) == Kernels()
    handle.remove()
    with torch.autocast("cpu", torch.bfloat16):
        assert found(vae, x) == Kernels()
    assert found(nv.VAE(copy.deepcopy(model).double(), example=x.double()), x.double()) == Kernels()
    mlp = all_vaes()["mlp"]
    assert found(nv.VAE(mlp), images(mlp, 2)) == Kernels()


def test_the_trial_leaves_no_hook_and_no_draw_behind_even_where_the_model_raises():
    for way in ("nothing", "view"):
        vae = nv.VAE(seeded(Picky(way)))
        x = images(vae.module, 3)
        torch.manual_seed(3)
        found(vae, x)
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


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
@torch.no_grad()
def test_a_transposed_convolution_is_an_ordinary_one_whose_channels_are_the_phases(data):
    def pair(least: int, most: int) -> tuple[int, int]:
        return data.draw(st.tuples(st.integers(least, most), st.integers(least, most)))

    groups, stride, dilation, kernel = data.draw(st.integers(1, 3)), pair(1, 3), pair(1, 3), pair(1, 5)
    size = pair(1, 6)
    spans = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(size, stride, dilation, kernel, strict=True)]
    padding = tuple(data.draw(st.integers(0, (span - 1) // 2)) for span in spans)
    extra = tuple(data.draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    inner, outer = (groups * data.draw(st.integers(1, 3)) for _ in range(2))
    torch.manual_seed(0)
    bias = data.draw(st.booleans())
    layer = nn.ConvTranspose2d(inner, outer, kernel, stride, padding, extra, groups, bias, dilation)
    x = torch.randn(2, inner, *size)
    got = transposed(layer, x)
    assert is_channels_last(got)
    torch.testing.assert_close(got, layer(x), atol=1e-5, rtol=1e-5)
    with torch.enable_grad():
        x.requires_grad_()
        gradients = [torch.autograd.grad(f(x).sin().sum(), x)[0] for f in (partial(transposed, layer), layer)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_gradients_of_a_transposed_convolution_can_be_differentiated_again():
    layer = nn.ConvTranspose2d(2, 1, 4, 2, 1).double()
    x = torch.rand(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: transposed(layer, x).square(), x)


def test_only_transposed_convolutions_of_few_channels_run_as_ordinary_ones():
    assert pays(nn.ConvTranspose2d(8, 1, 4, 2, 1))
    assert pays(nn.ConvTranspose2d(16, 8, 4, 2, 1))
    assert not pays(nn.ConvTranspose2d(64, 32, 4, 2, 1))
    assert not pays(nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=2))


class Larger(ConvVAE):
    """Asks the last layer for another size than it gives on its own."""

    def decode(self, z: Tensor) -> Tensor:
        for part in self.decoder[:-2]:
            z = part(z)
        return self.decoder[-1](self.decoder[-2](z, output_size=(17, 17)))[..., :16, :16]


def test_a_layer_that_is_asked_for_another_size_runs_as_it_is():
    model = seeded(Larger())
    vae, x = nv.VAE(copy.deepcopy(model)), images(model, 3)
    assert found(vae, x) == Kernels(("model.encoder.0", "model.decoder.3"))
    check_units(model, vae, ("decoder.3", "decoder.0"))


def test_weights_that_change_between_runs_are_the_ones_that_run():
    model = seeded(ConvVAE())
    vae, x = nv.VAE(copy.deepcopy(model)), images(model, 3)
    assert found(vae, x) == FOUND
    for module in (model, vae.module):
        with torch.no_grad():
            module.decoder[-2].weight.mul_(-2.0)
            module.decoder[-2].bias.add_(0.5)
    check_units(model, vae, ("decoder.3",))


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
