"""Glass boxes against closed forms: their posterior, linear decoder, rotation, groups of routes and leaks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from known_models import CHAIN, glass
from torch import Tensor

import nnsight_vae as nv
from nnsight_vae.circuits.known import glass_blocks, glass_box
from nnsight_vae.circuits.known.benchmark import ALL, judged


@pytest.mark.parametrize("rotation", [False, True])
def test_no_factorised_posterior_has_a_higher_evidence_bound_than_the_encoder(rotation: bool) -> None:
    module = copy.deepcopy(glass_box(2, dag=CHAIN, rotation=rotation).vae.module).double()
    x = torch.rand(5, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mu, logvar = module.encode(x)
    slope = torch.autograd.functional.jacobian(lambda z: module.decode(z[None]).flatten(), torch.ones(3).double())
    mu.requires_grad_(), logvar.requires_grad_()
    misfit = (x - module.decode(mu)).square().flatten(1).sum(1) + (logvar.exp() * slope.square().sum(0)).sum(1)
    kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(1)
    (-misfit / (2 * glass_blocks.NOISE**2) - kl).sum().backward()
    torch.testing.assert_close(mu.grad, torch.zeros_like(mu), atol=1e-3, rtol=0)
    torch.testing.assert_close(logvar.grad, torch.zeros_like(mu), atol=1e-4, rtol=0)
    with torch.no_grad():  # so small against what a wrong posterior would give
        off = (x - module.decode(mu * 0.99)).square().flatten(1).sum(1) - (x - module.decode(mu)).square().flatten(
            1
        ).sum(1)
    assert off.abs().max() > 1e-4


def test_the_decoder_of_a_glass_box_is_linear_and_shows_factors_that_are_a_mixture_of_the_latents() -> None:
    known = glass(dag=CHAIN)
    z = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        shown = [known.readout(known.vae.module.decode(value)) for value in (z[0], z[1], z[0] + 2 * z[1], 0 * z[0])]
        mixing = known.readout(known.vae.module.decode(torch.eye(3))).T
    torch.testing.assert_close(shown[2], shown[0] + 2 * shown[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(shown[3], torch.zeros(6, 3), atol=1e-5, rtol=0)
    assert torch.allclose(mixing.diagonal(), torch.ones(3), atol=1e-5)
    assert torch.allclose(mixing.triu(1), torch.zeros(3, 3), atol=1e-5)
    assert mixing[1, 0].abs() > 0.3 < mixing[2, 1].abs()
    assert mixing[2, 0] == pytest.approx(float(mixing[1, 0] * mixing[2, 1]), abs=1e-4)


def test_rotation_leaves_the_pictures_and_their_posterior_as_they_are() -> None:
    plain, turned = glass(dag=CHAIN), glass(dag=CHAIN, rotation=True)
    x = plain.pairs("f0", 8).source
    # mixing and patterns are drawn before the rotation, so both models are of one world
    assert torch.equal(x, turned.pairs("f0", 8).source)
    with torch.no_grad():
        torch.testing.assert_close(plain.vae(x), turned.vae(x), atol=1e-5, rtol=0)
        (a, _), (b, _) = plain.vae.module.encode(x), turned.vae.module.encode(x)
    assert (a - b).abs().max() > 0.1
    torch.testing.assert_close(a.norm(dim=1), b.norm(dim=1))


def test_either_redundant_route_is_enough_and_cancelling_routes_do_nothing_together() -> None:
    known = glass(groups=True)
    pairs, module = known.pairs("f0", 32), known.vae.module
    crossing = (pairs.base_factors[:, 0] < -0.2) & (pairs.source_factors[:, 0] > 0.2)
    light = pairs.base_factors[:, 0] > 0.1  # both ends of the pair where the twins are on
    given = {}
    handle = module.decoder[0].register_forward_hook(lambda _, a, out: given.setdefault("out", out))
    outputs = []
    for x in (pairs.base, pairs.source):
        given.clear()
        with torch.no_grad():
            module(x)
        outputs.append(given["out"].clone())
    handle.remove()

    def effect(into: int, units: list[int], target: str, where: Tensor = crossing) -> Tensor:
        mixed = outputs[into].clone()
        mixed[:, units] = outputs[1 - into][:, units]
        with torch.no_grad():
            patched, plain = (known.readout(module.decoder[1:](p)) for p in (mixed, outputs[into]))
        return (patched - plain)[where, known.readout.names.index(target)].abs()

    units = {
        g.kind: [int(next(iter(e for e in r if e[1].startswith("decoder.0[")))[1][10:-1]) for r in g.routes]
        for g in known.groups
    }
    first, second = units["redundant"]
    assert torch.allclose(effect(0, [first], "switch"), torch.ones(()), atol=1e-4)  # noising: one turns it on
    assert torch.allclose(effect(0, [second], "switch"), torch.ones(()), atol=1e-4)
    assert effect(1, [first], "switch").max() < 1e-5 > effect(1, [second], "switch").max()  # denoising: one keeps it on
    assert torch.allclose(effect(1, [first, second], "switch"), torch.ones(()), atol=1e-4)
    one, other = units["cancelling"]
    assert min(crossing.sum(), light.sum()) > 3
    assert max(effect(i, [one, other], "f0", where).max() for i in range(2) for where in (crossing, light)) < 1e-4
    assert min(effect(0, [unit], "f0", light).min() for unit in (one, other)) > 0.02
    assert all(
        known.excluded[task] == frozenset().union(*(r for g in known.groups for r in g.routes)) for task in known.tasks
    )


def test_a_leak_gives_every_edge_an_effect_and_leaves_the_truth() -> None:
    tight, leaky = glass(), glass(leakage=0.1)
    assert {t: len(e) for t, e in leaky.truth.items()} == {t: len(e) for t, e in tight.truth.items()}
    values = [
        np.abs(nv.score_edges(k.vae, k.pairs("f2", 16), k.readout, method="ig").mean()[:, 2]) for k in (tight, leaky)
    ]
    assert (values[0] > 0).sum() == len(tight.truth["f2", "f2"]) < (values[1] > 0).sum()
    (leaked,) = [
        r for r in judged(leaky, nv.score_edges(leaky.vae, leaky.pairs("f2", 16), leaky.readout), "f2") if r.cut == ALL
    ]
    assert leaked.auroc > 0.8
    assert leaked.ap < 1
