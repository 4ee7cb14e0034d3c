"""Warnings of results that mislead: each is given where it should be, and nowhere else."""

import warnings

import numpy as np
import pytest
import torch

from nnsight_vae import guards, readouts
from nnsight_vae.errors import NnsightVaeWarning
from nnsight_vae.results.effects import Effects
from nnsight_vae.stats.clusters import Design


def silent(call, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(*args, **options)


# ---------------------------------------------------------------- few clusters


@pytest.mark.parametrize(("n_bases", "n_sources"), [(9, 12), (12, 9), (9, 9)])
def test_few_bases_or_few_sources_warn_whichever_are_fewer(n_bases, n_sources):
    ids = np.repeat(np.arange(n_bases), n_sources), np.tile(np.arange(n_sources), n_bases)
    with pytest.warns(NnsightVaeWarning, match=f"{n_bases} bases and {n_sources} sources") as caught:
        guards.warn_if_few(Design.of(n_bases * n_sources, *ids), stacklevel=2)
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_ten_bases_and_ten_sources_do_not_warn():
    silent(guards.warn_if_few, Design.of(100, np.repeat(np.arange(10), 10), np.tile(np.arange(10), 10)))
    silent(guards.warn_if_few, Design.of(10))


@pytest.mark.parametrize("ask", ["ci", "to_frame"])
def test_one_call_warns_once_at_the_line_of_the_call(ask):
    effects = Effects(np.random.default_rng(0).normal(size=(3, 2, 8)), ("a", "b", "c"), ("t", "u"), "PNIE")
    with pytest.warns(NnsightVaeWarning) as caught:
        getattr(effects, ask)()
    assert [warning.filename for warning in caught] == [__file__]


def test_tests_do_not_warn_of_few_clusters():
    effects = Effects(np.random.default_rng(1).normal(5.0, 1.0, (1, 1, 8)), ("a",), ("t",), "PNIE")
    silent(effects.pvalues)
    silent(effects.significant)


# ---------------------------------------------------------------- noising and denoising disagree


def both_directions(rng, oriented, noise=0.05, n_pairs=400, n_units=6):
    """Unit a and the rest of the network r show the same factor g, and the readout is a r: N = da r(b), D = da r(s)."""
    base, source = rng.uniform(0.2, 1.0, (2, n_pairs))
    if oriented:
        base, source = np.minimum(base, source), np.maximum(base, source)
    weights = rng.uniform(0.5, 2.0, (n_units, 1, 1))
    noising, denoising = (weights * (source - base) * rest for rest in (base, source))
    return (each + noise * rng.normal(size=each.shape) for each in (noising, denoising))


def test_pairs_that_are_not_oriented_warn_that_noising_and_denoising_cancel():
    noising, denoising = both_directions(np.random.default_rng(2), oriented=False)
    with pytest.warns(NnsightVaeWarning, match="opposite sign in 6 of the 6 effects.*orient them") as caught:
        guards.warn_if_directions_oppose(noising, denoising, stacklevel=2)
    assert caught[0].filename == __file__
    silent(guards.warn_if_directions_oppose, noising, -denoising)


def test_oriented_pairs_do_not_warn():
    silent(guards.warn_if_directions_oppose, *both_directions(np.random.default_rng(3), oriented=True))


def test_a_minority_of_opposite_effects_does_not_warn():
    """An interaction may turn the sign of some effects in well-oriented pairs."""
    noising, denoising = both_directions(np.random.default_rng(4), oriented=True)
    denoising[:3] *= -1
    silent(guards.warn_if_directions_oppose, noising, denoising)
    denoising[3] *= -1
    with pytest.warns(NnsightVaeWarning, match="4 of the 6"):
        guards.warn_if_directions_oppose(noising, denoising)


def test_directions_that_are_not_clear_do_not_warn():
    """Of 200 null experiments with random signs, clustered one way and both, none may be taken for a disagreement."""
    rng = np.random.default_rng(5)
    ids = np.repeat(np.arange(8), 8), np.tile(np.arange(8), 8)
    for _ in range(100):
        silent(guards.warn_if_directions_oppose, *rng.normal(size=(2, 5, 2, 64)))
        shared = rng.normal(size=(2, 5, 2, 8))[..., ids[0]] + rng.normal(size=(2, 5, 2, 8))[..., ids[1]]
        silent(guards.warn_if_directions_oppose, *(shared + rng.normal(size=(2, 5, 2, 64))), *ids)


def test_directions_that_are_clear_for_these_sources_only_do_not_warn():
    i, j = np.divmod(np.arange(64), 8)
    effect = 0.5 + np.resize([-1.0, 1.0], 8)[j] + 0.01 * np.resize([-1.0, 1.0, 2.0], 64)
    noising, denoising = effect[None, None], -effect[None, None]
    with pytest.warns(NnsightVaeWarning, match="1 of the 1"):
        guards.warn_if_directions_oppose(noising, denoising, i)
    silent(guards.warn_if_directions_oppose, noising, denoising, i, j)


def test_directions_of_a_single_pair_or_of_no_unit_do_not_warn():
    silent(guards.warn_if_directions_oppose, np.ones((2, 1, 1)), -np.ones((2, 1, 1)))
    silent(guards.warn_if_directions_oppose, np.ones((0, 1, 5)), np.ones((0, 1, 5)))
    with pytest.warns(NnsightVaeWarning):
        guards.warn_if_directions_oppose(np.ones((2, 1, 2)), -np.ones((2, 1, 2)))


# ---------------------------------------------------------------- a readout that is flat at the base


class Distance:
    """Squared distance to a reference image, and the brightness beside it."""

    names = ("distance", "brightness")
    reads = "output"

    def __init__(self, reference):
        self.reference = reference

    def __call__(self, images):
        return torch.stack([(images - self.reference).square().flatten(1).sum(1), images.flatten(1).mean(1)], dim=1)


BASE, SOURCE = torch.rand(2, 6, 1, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rounding", [0.0, 1e-7])
def test_a_squared_distance_to_the_bases_own_output_warns(rounding):
    with pytest.warns(NnsightVaeWarning, match=r"no gradient at the base run for: distance\. ") as caught:
        guards.warn_if_flat(Distance(BASE + rounding), BASE, SOURCE, stacklevel=2)
    assert caught[0].filename == __file__
    assert not BASE.requires_grad


def test_a_distance_to_anything_else_a_region_or_a_pixel_does_not_warn():
    silent(guards.warn_if_flat, Distance(SOURCE), BASE, SOURCE)  # flat at the source, not at the base
    silent(guards.warn_if_flat, Distance(BASE.mean(0)), BASE, SOURCE)
    silent(guards.warn_if_flat, readouts.Pixels((1, 4, 4)), BASE, SOURCE)
    silent(guards.warn_if_flat, readouts.Region({"top": (slice(0, 2), slice(None))}), BASE, SOURCE)


def test_a_readout_flat_for_one_pair_or_flat_everywhere_does_not_warn():
    silent(guards.warn_if_flat, Distance(torch.cat([BASE[:1], SOURCE[:1].expand(5, -1, -1, -1)])), BASE, SOURCE)

    class Constant:
        names = ("one",)

        def __call__(self, images):
            return torch.ones(len(images), 1) + 0 * images.flatten(1).sum(1, keepdim=True)

    silent(guards.warn_if_flat, Constant(), BASE, SOURCE)


def test_flatness_is_found_under_no_grad_and_leaves_it_as_it_was():
    with torch.no_grad():
        with pytest.warns(NnsightVaeWarning, match="no gradient"):
            guards.warn_if_flat(Distance(BASE), BASE, SOURCE)
        assert not torch.is_grad_enabled()
