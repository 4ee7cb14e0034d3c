"""What cannot be scored by edges is refused, and what scores badly is warned of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from literal_edges import SmoothVAE, pairs_for
from torch import Tensor, nn
from vaes import images, seeded
from wired import WiredVAE, wired, wired_pairs

import nnsight_vae as nv
from nnsight_vae.circuits import score_edges
from nnsight_vae.errors import CircuitError, DataError, NnsightVaeWarning, ReadoutError
from nnsight_vae.pairs import Pairs
from nnsight_vae.readouts import Pixels

__all__ = ["wired"]  # fixtures


class SquaredError:
    names = ("error",)

    def __init__(self, to: Tensor) -> None:
        self.to = to

    def __call__(self, reconstruction: Tensor) -> Tensor:
        return (reconstruction - self.to).square().mean(1, keepdim=True)


class Threshold:
    names = ("bright",)

    def __init__(self, level: float) -> None:
        self.level = level

    def __call__(self, reconstruction: Tensor) -> Tensor:
        return (reconstruction.mean(1, keepdim=True) > self.level).float()


def pairs_of_one_base(model: nn.Module, n: int = 5) -> Pairs:
    return Pairs(images(model, 1).expand(n, -1).clone(), images(model, n, seed=1), factor="f")


@pytest.mark.parametrize(("at", "other"), [("base", "source"), ("source", "base")])
def test_a_distance_is_refused_where_it_is_flat_and_scored_where_it_is_not(at: str, other: str) -> None:
    model = seeded(SmoothVAE())
    vae, pairs = nv.VAE(model), pairs_of_one_base(model)
    if at == "source":
        pairs = pairs.reversed()
    with torch.no_grad():
        readout = SquaredError(vae(getattr(pairs, at)[:1]))
    with pytest.raises(ReadoutError, match=rf"'error'.*gradient is 0 at the {at} run.*method='ig' or at='{other}'"):
        score_edges(vae, pairs, readout, method="eap", at=at)
    for options in (
        {"nodes": 6},
        {"method": "eap-ig"},
        {"method": "eap", "at": other},
        {"method": "eap", "at": "average"},
    ):
        assert score_edges(vae, pairs, readout, **options).values.any()
    assert max(row.error for row in score_edges(vae, pairs, readout, nodes=6).completeness) < 1e-4


def test_a_readout_that_is_flat_in_some_pairs_is_told_with_their_number() -> None:
    model = seeded(SmoothVAE())
    vae, one, two = nv.VAE(model), pairs_of_one_base(model, 3), pairs_for(model, 4)
    pairs = Pairs(torch.cat([one.base, two.base[1:]]), torch.cat([one.source, two.source[1:]]), factor="f")
    with torch.no_grad():
        readout = SquaredError(vae(one.base[:1]))
    with pytest.warns(NnsightVaeWarning, match="at the base run.*in 3 of the 6 pairs.*method='ig'"):
        scores = score_edges(vae, pairs, readout, method="eap")
    sizes = np.abs(scores.values).max(axis=(0, 1))
    assert sizes[:3].max() < 1e-5 * sizes[3:].min()
    score_edges(vae, pairs, readout)  # no warning is an error here


def test_a_readout_without_gradient_is_refused_for_every_gradient() -> None:
    model = seeded(SmoothVAE())
    vae = nv.VAE(model)
    pairs = pairs_for(model, 4)
    with torch.no_grad():
        level = float((vae(pairs.base).mean(1) + vae(pairs.source).mean(1))[0] / 2)
    for options in ({"method": "ig"}, {"method": "eap-ig"}, {"method": "eap", "at": "average"}):
        with pytest.raises(ReadoutError, match=r"not differentiable.*method='exact'"):
            score_edges(vae, pairs, Threshold(level), **options)
    exact = score_edges(vae, pairs, Threshold(level), method="exact")
    assert abs(exact.total[0, 0]) == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "method='magic' is unknown"),
        ({"nodes": 1}, "nodes=1: expected 2 or more"),
        ({"method": "eap-ig", "nodes": 0}, "nodes=0: expected 1 or more"),
        ({"at": "top"}, "at='top'"),
        ({"edges": []}, "got none"),
        ({"edges": ["input[0]"]}, r"pairs such as .*got 'input\[0\]'"),
        ({"edges": [("input[0]", "dec[0]")]}, r"'input\[0\]' -> 'dec\[0\]'"),
        ({"direction": "up"}, "direction='up'"),
    ],
)
def test_unknown_options_are_refused_before_any_work(wired, options: dict, message: str) -> None:
    with pytest.raises(CircuitError, match=message):
        score_edges(*wired, **options)


def test_pairs_that_cancel_are_warned_of() -> None:
    pairs = wired_pairs(40)
    flip = torch.arange(40) % 2 == 0
    mixed = replace(
        pairs,
        base=torch.where(flip[:, None], pairs.source, pairs.base),
        source=torch.where(flip[:, None], pairs.base, pairs.source),
    )
    vae, readout = nv.VAE(WiredVAE(), example=pairs.base), Pixels((4,))["pixel[0]"]
    with pytest.warns(NnsightVaeWarning, match="no clear direction.*Orient the pairs"):
        score_edges(vae, mixed, readout)
    score_edges(vae, mixed, readout, method="weight")  # looks at no effect
    score_edges(vae, mixed[:9], readout)  # too few to say
    score_edges(vae, pairs, readout)


class Curved:
    """x -> (x - c)^2 of one number: noising and denoising of c - d -> c + d are of opposite sign."""

    names = ("curve",)

    def __call__(self, reconstruction: Tensor) -> Tensor:
        return (reconstruction[:, :1] - 0.5).square() + 1e-3 * reconstruction[:, :1]


def test_noising_and_denoising_of_opposite_sign_are_warned_of() -> None:
    vae = nv.VAE(WiredVAE(), example=torch.zeros(2, 4))
    change = 0.3 + 0.05 * torch.rand(20, 4, generator=torch.Generator().manual_seed(0))
    middle = torch.full((20, 4), 0.5)
    middle[:, 0] = 0.5 / (1.4 * 0.72)
    pairs = Pairs(middle - change, middle + change, factor="f")
    with pytest.warns(NnsightVaeWarning, match="opposite sign"):
        score_edges(vae, pairs, Curved(), method="exact", direction="both")


class Broken:
    names = ("broken",)

    def __call__(self, reconstruction: Tensor) -> Tensor:
        return torch.sqrt(reconstruction[:, :1] - 0.45)


@pytest.mark.parametrize(
    "options", [{"method": "exact", "direction": "denoising"}, {"method": "eap"}, {"method": "weight"}]
)
def test_a_readout_that_is_not_finite_is_refused_with_the_pair(wired, options: dict) -> None:
    vae, pairs, _ = wired
    with torch.no_grad():
        totals = [Broken()(vae(x)) for x in (pairs.source, pairs.base)]
    pair = int((~torch.isfinite(totals[0] - totals[1])).flatten().nonzero()[0])
    with pytest.raises(ReadoutError, match=rf"'broken' is NaN or infinite in a clean run of pair {pair} "):
        score_edges(vae, pairs, Broken(), **options)


class RootAtZero:
    """Finite everywhere, with an infinite slope where the pixel is its value in the base run."""

    names = ("root",)

    def __init__(self, base: Tensor) -> None:
        self.base = base

    def __call__(self, reconstruction: Tensor) -> Tensor:
        return torch.sqrt((reconstruction[:, :1] - self.base[0, 0]).abs())


def test_a_gradient_that_is_not_finite_is_told_from_a_readout_that_is_not(wired) -> None:
    vae, pairs, _ = wired
    with torch.no_grad():
        readout = RootAtZero(vae(pairs.base))
    with pytest.raises(
        ReadoutError,
        match=r"when '.*' -> '.*' is scored on pair .*has no finite gradient there .*: method='exact' needs none",
    ):
        score_edges(vae, pairs, readout, method="eap")
    with pytest.raises(ReadoutError, match="read something that stays finite"):
        score_edges(vae, pairs, Broken(), method="exact", direction="denoising")


@pytest.mark.parametrize("method", ["ig", "eap", "eap-act", "eap-ig"])
def test_inference_mode_in_which_gradients_are_0_is_refused(wired, method: str) -> None:
    expected = score_edges(*wired, method="exact").values
    with torch.inference_mode():
        with pytest.raises(DataError, match="inference_mode"):
            score_edges(*wired, method=method)
        np.testing.assert_array_equal(score_edges(*wired, method="exact").values, expected)
