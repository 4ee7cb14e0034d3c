"""Fixed images with factors: digits as they are, pairs by matching, and arrays that do not fit."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch

import nnsight_vae.datasets as datasets
from nnsight_vae.datasets.digits import FACTORS, measure
from nnsight_vae.errors import DataError, NnsightVaeWarning, ReadoutError


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits")


def test_digits_are_the_real_images_with_every_factor_readable(digits):
    from sklearn.datasets import load_digits

    assert (digits.n_images, digits.image_shape, digits.graph) == (1797, (1, 8, 8), None)
    original = torch.from_numpy(load_digits().images / 16).float()
    everything = digits.sample(1797).images[:, 0]
    assert torch.equal(everything.flatten(1).sum(1).sort().values, original.flatten(1).sum(1).sort().values)
    readout = digits.readout()
    assert readout.names == FACTORS
    assert min(readout.reliability.values()) > 0.95


def test_a_readout_is_fitted_once_and_selects(digits):
    assert digits.readout("slant").names == ("slant",)
    digits.readout(progress=lambda done, total: pytest.fail("fitted again"))
    with pytest.raises(ReadoutError, match="no target 'colour'"):
        digits.readout("colour")


def test_moments_measure_a_drawn_stroke():
    y, x = np.mgrid[31:-1:-1, 0:32] - 15.5
    for slant, width, height, cx, cy in (
        (20, 1.5, 6.0, 2.0, -1.0),
        (-30, 2.0, 4.0, 0.0, 0.0),
        (0, 1.0, 3.0, -3.0, 2.0),
    ):
        shear = np.tan(np.radians(slant))
        image = np.exp(-0.5 * (((x - cx) - shear * (y - cy)) / width) ** 2 - 0.5 * ((y - cy) / height) ** 2)
        measured = dict(zip(FACTORS, measure(image[None])[0], strict=True))
        assert measured["slant"] == pytest.approx(slant, abs=1)
        assert measured["width"] == pytest.approx(width, rel=0.03)
        assert measured["height"] == pytest.approx(height, rel=0.05)
        assert (measured["center_x"], measured["center_y"]) == pytest.approx((cx, cy), abs=0.15)
        assert measured["ink"] == pytest.approx(image.mean())


def test_matched_pairs_differ_in_their_factor_and_nearly_agree_in_the_others(digits):
    for factor in digits.factors:
        pairs = digits.pairs(factor, n=256, seed=1)
        quality = digits.match_quality(pairs)
        own = quality.pop(factor)
        assert own >= 1
        assert max(quality.values()) < own / 2
        column = digits.factors.index(factor)
        assert (pairs.base_factors[:, column] < pairs.source_factors[:, column]).all()
        assert pairs.propagate is None


def test_matching_is_far_better_than_pairing_at_random(digits):
    matched = digits.match_quality(digits.pairs("ink", n=256))
    assert all(matched[name] < 0.5 * 2**0.5 for name in digits.factors if name != "ink")


def test_no_image_is_used_in_two_pairs(digits):
    pairs = digits.pairs("width", n=300)
    images = torch.cat([pairs.base, pairs.source]).flatten(1)
    assert len(torch.unique(images, dim=0)) == 600
    assert len(pairs.groups.unique()) == 300


def test_matched_factors_are_those_of_the_images(digits):
    pairs = digits.pairs("slant", n=10)
    measured = measure(pairs.base[:, 0].double().numpy())
    np.testing.assert_allclose(pairs.base_factors.numpy(), measured, rtol=1e-4, atol=1e-4)


def test_without_an_scm_interventions_are_refused_with_what_to_do(digits):
    batch = digits.sample(3)
    assert batch.noise is None
    for call in (lambda: digits.do(n=3, ink=0.2), lambda: digits.counterfactual(batch, ink=0.2)):
        with pytest.raises(DataError, match=r"no structural causal model .* Use pairs"):
            call()


def test_more_images_or_pairs_than_there_are_are_refused(digits):
    with pytest.raises(DataError, match="n = 1798, but there are only 1797"):
        digits.sample(1798)
    with pytest.raises(DataError, match="only 898"):
        digits.pairs("ink", 899)


def chain_data(n=400, **more):
    """Three factors, a -> b and a third alone, on random images."""
    rng = np.random.default_rng(0)
    a, alone = rng.normal(size=(2, n))
    b = a + 0.1 * rng.normal(size=n)
    graph = nx.DiGraph([("a", "b")])
    graph.add_node("alone")
    return datasets.from_arrays(
        rng.random((n, 8, 8)), np.stack([a, b, alone], axis=1), names=["a", "b", "alone"], **more
    ), graph


def test_with_a_graph_descendants_are_left_to_follow_unless_propagation_is_off():
    _, graph = chain_data()
    data, _ = chain_data(graph=graph)
    following = data.pairs("a", n=60)
    assert following.propagate is True
    quality = data.match_quality(following)
    assert quality["alone"] < 0.2
    assert quality["b"] > 1
    with pytest.warns(NnsightVaeWarning, match=r"also in b"):
        held = data.pairs("a", n=60, propagate=False)
    assert held.propagate is False


def test_pairs_that_cannot_be_matched_are_given_with_a_caution():
    data, _ = chain_data()
    with pytest.warns(NnsightVaeWarning, match=r"pairs in 'a' differ by .* but also in b .* not this factor's alone"):
        data.pairs("a", n=60)


def test_too_few_contrasting_images_are_refused():
    factors = np.zeros((100, 1))
    factors[:3] = 1
    data = datasets.from_arrays(np.random.default_rng(0).random((100, 8, 8)), factors)
    with pytest.raises(DataError, match="only 3 pairs differ by at least 1 standard deviation in 'factor_0'"):
        data.pairs("factor_0", n=10)


def test_match_quality_of_other_pairs_is_refused(digits):
    pendulum = datasets.load("pendulum")
    with pytest.raises(DataError, match="the pairs carry factors"):
        digits.match_quality(pendulum.pairs("angle", 4))


def test_a_factor_that_cannot_be_read_is_left_out_with_a_warning_or_refused_by_name():
    rng = np.random.default_rng(0)
    seen = rng.random(300)
    images = np.tile(seen[:, None, None], (1, 8, 8))
    data = datasets.from_arrays(images, np.stack([seen, rng.random(300)], axis=1), names=["seen", "unseen"])
    with pytest.warns(NnsightVaeWarning, match=r"leaves out unseen"):
        assert data.readout().names == ("seen",)
    with pytest.raises(ReadoutError, match=r"unseen .* cannot be read reliably.*Factors.fit\(.*allow_unreliable=True"):
        data.readout("unseen")
    nothing = datasets.from_arrays(images, rng.random((300, 1)), names=["unseen"])
    with pytest.raises(ReadoutError, match=r"no factor can be read.*larger images.*allow_unreliable=True"):
        nothing.readout()


def test_layouts_and_types_of_images_mean_the_same():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, (60, 3, 8, 10), np.uint8)
    factors = rng.normal(size=(60, 2))
    expected = datasets.from_arrays(first, factors).sample(60)
    for images in (first.transpose(0, 2, 3, 1), torch.from_numpy(first), first / 255, (first / 255).astype(np.float32)):
        batch = datasets.from_arrays(images, torch.from_numpy(factors)).sample(60)
        torch.testing.assert_close(batch.images, expected.images)
        assert torch.equal(batch.factors, expected.factors)
    floats = datasets.from_arrays(first / 255, factors)
    assert torch.equal(floats.images_u8(60), datasets.from_arrays(first, factors).images_u8(60))
    assert datasets.from_arrays(first[:, 0], factors).image_shape == (1, 8, 10)


GOOD = np.zeros((60, 8, 8), np.uint8)
TABLE = np.random.default_rng(0).normal(size=(60, 2))


@pytest.mark.parametrize(
    ("images", "factors", "more", "message"),
    [
        (GOOD.astype(int), TABLE, {}, "images are int64"),
        (GOOD[0], TABLE, {}, r"shape \(8, 8\)"),
        (np.zeros((60, 5, 8, 8), np.uint8), TABLE, {}, "neither end"),
        (np.zeros((60, 3, 8, 3), np.uint8), TABLE, {}, "both ends"),
        (GOOD[:, :0], TABLE, {}, "nothing in them"),
        (GOOD[:0], TABLE[:0], {}, "nothing in them"),
        (GOOD + 0.5 * np.nan, TABLE, {}, "images hold NaN"),
        (GOOD + 1.5, TABLE, {}, r"span \[1.5, 1.5\], expected \[0, 1\]"),
        (GOOD - 0.1, TABLE, {}, r"span \[-0.1"),
        (GOOD, TABLE[:-1], {}, r"expected \(60, f\)"),
        (GOOD, TABLE[:, 0], {}, r"expected \(60, f\)"),
        (GOOD, TABLE[:, :0], {}, r"expected \(60, f\)"),
        (GOOD, TABLE * np.nan, {}, "factors hold NaN"),
        (GOOD, TABLE.astype(str), {}, "Code categories as integers"),
        (GOOD, TABLE, {"names": ["a"]}, "2 different names"),
        (GOOD, TABLE, {"names": ["a", "a"]}, "2 different names"),
        (GOOD, TABLE, {"names": ["a", "b"], "graph": nx.DiGraph([("a", "c")])}, "graph's nodes are"),
        (GOOD, TABLE, {"names": ["a", "b"], "graph": nx.DiGraph([("a", "b"), ("b", "a")])}, "acyclic"),
        (GOOD, TABLE, {"names": ["a", "b"], "graph": nx.Graph([("a", "b")])}, "directed"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(images, factors, more, message):
    with pytest.raises(DataError, match=message):
        datasets.from_arrays(images, factors, **more)
