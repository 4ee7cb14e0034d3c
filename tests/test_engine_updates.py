"""Following one unit by hand into the next linear layer, against the layer itself and against hooks."""

from __future__ import annotations

import copy

import pytest
import torch
from hooks import Everything, literal, record, unit_write
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from vaes import all_vaes, images, seeded

import nnsight_vae as nv
from nnsight_vae import engine
from nnsight_vae.routes import route_for
from nnsight_vae.updates import add_response, fits

MODELS = all_vaes()


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A small linear layer of any kind, and an input of it."""
    dims = draw(st.integers(0, 3))
    groups = draw(st.sampled_from([1, 2, 3]))
    inside, outside = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    if dims == 0:
        positions = draw(st.sampled_from([(), (3,)]))
        return nn.Linear(inside, outside), torch.randn(2, *positions, inside, generator=generator)

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    kernel, stride, padding, dilation = each(1, 3), each(1, 3), each(0, 3), each(1, 2)
    size = each(3, 5)
    if draw(st.booleans()):
        extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
        kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
        layer = kind(inside, outside, kernel, stride, padding, extra, groups, dilation=dilation)
        grown = [
            (n - 1) * s - 2 * p + d * (k - 1) + e + 1
            for n, s, p, d, k, e in zip(size, stride, padding, dilation, kernel, extra, strict=True)
        ]
        if min(grown) < 1:
            layer.padding = (0,) * dims
    else:
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
        padding = tuple(min(p, 2) for p in padding)  # no more than the input has to reflect
        kernel = tuple(
            min(k, (n + 2 * p - 1) // d + 1) for k, n, p, d in zip(kernel, size, padding, dilation, strict=True)
        )
        layer = kind(inside, outside, kernel, stride, padding, dilation, groups, padding_mode=mode)
    return layer, torch.randn(2, inside, *size, generator=generator)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(layers(), st.integers(0, 8), st.integers(1, 3))
@torch.no_grad()
def test_a_layers_output_and_the_response_to_a_change_are_its_output_after_the_change(case, port, width):
    layer, x = seeded(case[0].double()), case[1].double()
    axis = x.ndim - 1 if isinstance(layer, nn.Linear) else 1
    first = torch.tensor([port % x.shape[axis], (port + 1) % x.shape[axis]])
    if not fits(layer, first, width):
        return
    delta = torch.randn(2, width, *x.movedim(axis, 1).shape[2:], dtype=torch.float64)
    changed = x.clone()
    for row in range(2):
        changed.movedim(axis, 1)[row, first[row] : first[row] + width] += delta[row]
    torch.testing.assert_close(add_response(layer, layer(x), first, delta), layer(changed), atol=1e-10, rtol=0)


def test_a_block_of_ports_must_lie_in_one_group():
    layer = nn.Conv2d(6, 4, 3, groups=2)
    assert fits(layer, torch.tensor([0, 1, 3, 4]), 2)
    assert not fits(layer, torch.tensor([0, 2]), 2)
    assert not fits(layer, torch.tensor([5]), 2)
    assert fits(nn.Linear(6, 4), torch.tensor([0, 4]), 2)
    assert not fits(nn.Linear(6, 4), torch.tensor([5]), 2)


class Chain(nn.Module):
    """A VAE whose encoder begins with the layers under test; the rest is one linear layer each way."""

    image = (3, 9, 9)

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.Sequential(*parts)
        width = self.parts.eval()(torch.zeros(2, *self.image)).flatten(1).shape[1]
        self.heads, self.out = nn.Linear(width, 4), nn.Linear(2, 9)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.heads(self.parts(x).flatten(1)).chunk(2, 1)

    def decode(self, z: Tensor) -> Tensor:
        return self.out(z)


class Whole:
    names = tuple(map(str, range(9)))

    def __call__(self, reconstruction: Tensor) -> Tensor:
        return reconstruction.flatten(1)


CHAINS = {
    "stride": ([nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 5, 2, 2)], 2),
    "padding": ([nn.Conv2d(3, 4, 3), nn.LeakyReLU(), nn.Conv2d(4, 5, 3, 1, 2)], 2),
    "dilation": ([nn.Conv2d(3, 4, 3), nn.ELU(), nn.Conv2d(4, 5, 3, 1, 1, 2)], 2),
    "groups": ([nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 6, 3, groups=2)], 2),
    "depthwise": ([nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 8, 3, groups=4)], 2),
    "reflect": ([nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 5, 3, 1, 1, padding_mode="reflect")], 2),
    "batch norm": ([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3)], 3),
    "batch norm without weights": ([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 5, 3)], 2),
    "a slope a channel": ([nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.Conv2d(4, 5, 3)], 2),
    "one slope": ([nn.Conv2d(3, 4, 3), nn.PReLU(), nn.Conv2d(4, 5, 3)], 2),
    "dropout": ([nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.Softplus(), nn.Dropout2d(0.5), nn.Conv2d(4, 5, 3)], 4),
    "flatten": ([nn.Conv2d(3, 4, 3, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5)], 4),
    "activation after flatten": ([nn.Conv2d(3, 4, 3, 3), nn.Flatten(), nn.PReLU(36), nn.Linear(36, 5)], 3),
    "unflatten a layer's neurons": ([nn.Flatten(), nn.Linear(243, 24), nn.ReLU(), nn.Unflatten(1, (6, 2, 2)), nn.Conv2d(6, 3, 2)], 4),
    "transposed": ([nn.Conv2d(3, 4, 3, 3), nn.ReLU(), nn.ConvTranspose2d(4, 5, 4, 2, 1)], 2),
    "transposed, cut and extended": ([nn.Conv2d(3, 4, 3, 3), nn.ConvTranspose2d(4, 6, 3, 3, 2, 1, groups=2, dilation=2)], 1),
    "over the last axis": ([nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 4)], None),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_units_followed_into_the_next_layer_equal_hooks(name, dtype):
    parts, reader = CHAINS[name]
    model = seeded(Chain(*copy.deepcopy(parts))).to(dtype)
    site = f"parts.{1 if isinstance(parts[0], nn.Flatten) else 0}"
    x, source = images(model, 3).to(dtype), images(model, 3, seed=1).to(dtype)
    vae = nv.VAE(copy.deepcopy(model), example=x)
    route = route_for(vae, x, None, site)
    if reader is not None:
        assert route.layer is not None
        assert route.layer.path == f"model.parts.{reader}"
    check_every_unit(model, vae, site, x, source, 1e-5 if dtype == torch.float32 else 1e-10)


def check_every_unit(model: nn.Module, vae: nv.VAE, site: str, x: Tensor, source: Tensor, atol: float) -> None:
    axis, donor, read = vae.sites[site].axis, record(model, source, site), Everything(vae.sites["output"].shape)
    units = vae.sites[site].units
    got = engine.run_interventions(vae, x, [{unit: nv.Swap(source)} for unit in units], read)
    for row, unit in zip(got, units, strict=True):

        def write(value: Tensor, u: int = unit.index) -> Tensor:
            value = value.clone()
            value.movedim(axis, 1)[:, u] = donor.movedim(axis, 1)[:, u]
            return value

        want = literal(model, x, {site: write})
        torch.testing.assert_close(row, want, atol=atol * max(1.0, float(want.abs().max())), rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_every_unit_of_every_site_equals_hooks_in_double_precision(name):
    model = copy.deepcopy(MODELS[name]).double()
    x, source = (images(model, 2, seed=seed).double() for seed in (0, 1))
    vae = nv.VAE(copy.deepcopy(model), example=x)
    for site in vae.sites:
        if site != "input" and site in dict(model.named_modules()) and vae.sites[site].n_units <= 16:
            check_every_unit(model, vae, site, x, source, 1e-10)


class Branching(Chain):
    """What a chain of modules does not show: functions in between, and other readers of the site."""

    def __init__(self, way: str) -> None:
        super().__init__(nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1))
        self.way = way

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, act, second = self.parts
        h = first(x)
        match self.way:
            case "function before":
                out = second(act(h.sin()))
            case "function in place":
                out = second(act(h.mul_(2)))
            case "skip":
                out = second(act(h)) + 0.1 * h
            case "skip of some channels":
                out = second(act(h)) + F.pad(h[:, 3:], (0, 0, 0, 0, 3, 0))
            case "activation read twice":
                out = act(h)
                out = second(out) * out.sigmoid()
            case "transposed in memory":
                out = second(act(h.transpose(2, 3)))
            case "clamped":
                out = second(act(h).clamp(max=0.5))
        return self.heads(out.flatten(1)).chunk(2, 1)


@pytest.mark.parametrize(
    "way",
    ["function before", "function in place", "skip", "skip of some channels", "activation read twice", "transposed in memory", "clamped"],
)  # fmt: skip
def test_a_model_that_is_no_chain_there_is_run_and_not_followed(way):
    model = seeded(Branching(way))
    x, source = images(model, 3), images(model, 3, seed=1)
    vae = nv.VAE(copy.deepcopy(model), example=x)
    assert route_for(vae, x, None, "parts.0").layer is None
    check_every_unit(model, vae, "parts.0", x, source, 1e-5)
    check_every_unit(model, vae, "parts.1", x, source, 1e-5)


def test_an_activation_that_two_layers_read_is_where_the_run_starts():
    model = MODELS["residual"]
    x = images(model, 2)
    route = route_for(nv.VAE(copy.deepcopy(model), example=x), x, None, "block.first")
    assert ([step.path for step in route.steps], route.layer) == (["model.block.act"], None)


def test_a_layer_with_a_hook_or_a_parametrisation_is_run():
    model = seeded(Chain(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3)))
    x, source = images(model, 3), images(model, 3, seed=1)
    vae = nv.VAE(copy.deepcopy(model), example=x)
    assert route_for(vae, x, None, "parts.0").layer is not None
    handle = vae.module.parts[1].register_forward_hook(lambda module, args, output: 2 * output)
    assert route_for(vae, x, None, "parts.0").layer is None
    doubled = copy.deepcopy(model)
    with torch.no_grad():
        doubled.parts[2].weight.mul_(2)
    check_every_unit(doubled, vae, "parts.0", x, source, 1e-5)
    handle.remove()
    assert route_for(vae, x, None, "parts.0").layer is not None
    for part in ("parts.0", "parts.2", "parts"):
        handle = vae.module.get_submodule(part).register_forward_hook(lambda module, args, output: output)
        assert route_for(vae, x, None, "parts.0").layer is None
        handle.remove()
    torch.nn.utils.parametrizations.weight_norm(model.parts[2])
    vae = nv.VAE(copy.deepcopy(model), example=x)
    assert route_for(vae, x, None, "parts.0").layer is None
    check_every_unit(model, vae, "parts.0", x, source, 1e-5)


def test_weights_changed_after_the_trial_are_the_ones_used():
    model = seeded(Chain(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3)))
    x, source = images(model, 3), images(model, 3, seed=1)
    vae = nv.VAE(copy.deepcopy(model), example=x)
    check_every_unit(model, vae, "parts.0", x, source, 1e-5)
    changed = seeded(copy.deepcopy(model), seed=5)
    vae.module.load_state_dict(changed.state_dict())
    check_every_unit(changed, vae, "parts.0", x, source, 1e-5)


def test_positions_are_followed_too():
    model = seeded(Chain(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3, 2)))
    x, source = images(model, 3), images(model, 3, seed=1)
    vae = nv.VAE(copy.deepcopy(model), example=x)
    donor = record(model, source, "parts.0")
    plan = [{"parts.0[2]@3,4": nv.Swap(source)}, {"parts.0[1]": nv.Swap(source)}, {"parts.0[0]@0,6": nv.Add(2.0)}]
    got = engine.run_interventions(vae, x, plan, Whole())

    def at(value: Tensor) -> Tensor:
        value = value.clone()
        value[:, 2, 3, 4] = donor[:, 2, 3, 4]
        return value

    def added(value: Tensor) -> Tensor:
        value = value.clone()
        value[:, 0, 0, 6] += 2
        return value

    writes = (at, unit_write(1, lambda v: donor[:, 1]), added)
    for row, write in zip(got, writes, strict=True):
        torch.testing.assert_close(row, literal(model, x, {"parts.0": write}), atol=1e-5, rtol=0)


def test_half_precision_and_autocast_are_run_and_not_followed():
    model = seeded(Chain(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3)))
    x = images(model, 3)
    vae = nv.VAE(copy.deepcopy(model), example=x)
    with torch.autocast("cpu", torch.bfloat16):
        assert route_for(vae, x, None, "parts.0").layer is None
    half = nv.VAE(copy.deepcopy(model).bfloat16(), example=x.bfloat16())
    assert route_for(half, x.bfloat16(), None, "parts.0").layer is None
    assert route_for(vae, x, None, "parts.0").layer is not None


class Sloped(nn.Module):
    """The log-variance is a function of the mean, so that noise shows a second way from the head to the output."""

    image = (3, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.head, self.out = nn.Linear(48, 2), nn.Linear(2, 5)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu = self.head(x.flatten(1))
        return mu, -mu.abs()

    def decode(self, z: Tensor) -> Tensor:
        return self.out(z)


def test_a_route_that_holds_at_the_mean_is_not_taken_under_noise():
    model = seeded(Sloped())
    x, source = images(model, 3), images(model, 3, seed=1)
    vae = nv.VAE(copy.deepcopy(model), example=x)
    eps = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    donor = record(model, source, "head")
    for noise in (None, eps):
        got = engine.run_interventions(vae, x, [{"head[1]": nv.Swap(source)}], Everything((5,)), eps=noise)
        want = literal(model, x, {"head": unit_write(1, lambda v: donor[:, 1])}, noise)
        torch.testing.assert_close(got[0], want, atol=1e-5, rtol=0)
