"""Matching rows of a table of factors, against literal twins and counts; what is made of it, on grids and on measured factors."""

from __future__ import annotations

import itertools
import time
import warnings

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from linear import random_linear_vae

import nnsight_vae as nv
from nnsight_vae.datasets.matching import cells, match_doses, match_pairs, rows_by_cell
from nnsight_vae.errors import DataError, NnsightVaeWarning
from nnsight_vae.provenance import pairs_record


def literal_pairs(value, rest, n, rng, anchors=None):
    """Exact partners first, then the nearest, one row after the other, without an index or an array operation."""
    order = rng.permutation(len(value)).tolist()
    queue = order if anchors is None else list(anchors)
    used, found = set(queue) if anchors is not None else set(), {}
    for exactly in (True, False):
        for row in queue:
            if len(found) == n or row in found or (anchors is None and row in used):
                continue
            best, distance = None, np.inf
            for other in order:
                apart = sum((a - b) ** 2 for a, b in zip(rest[row], rest[other], strict=True))
                differs = abs(value[row] - value[other]) >= 1 - 1e-9
                if other not in used and differs and (apart == 0 if exactly else True) and apart < distance:
                    best, distance = other, apart
            if best is not None:
                found[row] = best
                used |= {row, best}
    return [(row, found[row]) for row in (found if anchors is None else queue) if row in found]


@given(st.integers(0, 10_000), st.sampled_from(["grid", "continuous", "mixed", "nothing to match"]), st.booleans())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_pairs_are_those_of_the_literal_twin(seed, kind, anchored):
    rng = np.random.default_rng(seed)
    value = rng.integers(0, 4, 24) * 0.5 if kind != "continuous" else rng.normal(size=24)
    rest = rng.integers(0, 2, (24, 2)) * 1.0 if kind != "continuous" else rng.normal(size=(24, 2))
    if kind == "mixed":
        rest[::2] += rng.normal(size=(12, 2))
    if kind == "nothing to match":
        rest = rest[:, :0]
    n = int(rng.integers(1, 12))
    anchors = rng.permutation(24)[:n] if anchored else None
    one, other = match_pairs(value, rest, n, np.random.default_rng(seed), anchors)
    assert list(zip(one.tolist(), other.tolist(), strict=True)) == literal_pairs(
        value, rest, n, np.random.default_rng(seed), anchors
    )
    used = np.concatenate([one, other])
    assert len(set(used.tolist())) == len(used)
    assert (np.abs(value[one] - value[other]) >= 1 - 1e-9).all()


@given(st.integers(0, 10_000), st.integers(0, 4))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_cells_hold_the_rows_that_agree_in_every_column_and_no_others(seed, columns):
    rest = np.random.default_rng(seed).integers(-1, 2, (15, columns)) * 0.3
    numbers, members = cells(rest), rows_by_cell(rest)
    for i, j in itertools.product(range(15), repeat=2):
        assert (numbers[i] == numbers[j]) == (rest[i].tolist() == rest[j].tolist()) == (j in members[i])


def test_exact_partners_are_found_before_near_ones_can_take_them():
    """Rows 0 and 1 agree; row 2 is near both. Whatever the order, the exact pair comes first."""
    value, rest = np.array([0.0, 2.0, 2.0, 0.0]), np.array([[0.0], [0.0], [0.01], [9.0]])
    for seed in range(10):
        one, other = match_pairs(value, rest, 1, np.random.default_rng(seed))
        assert {int(one[0]), int(other[0])} == {0, 1}


def test_equally_near_partners_are_equally_likely_wherever_they_stand():
    """One row at 0 and ten at 2, all alike in the rest: each is the partner about as often as the others."""
    value, rest = np.array([0.0] + [2.0] * 10), np.zeros((11, 1))
    chosen = [max(int(x[0]) for x in match_pairs(value, rest, 1, np.random.default_rng(seed))) for seed in range(500)]
    counts = np.bincount(chosen, minlength=11)[1:]
    assert counts.min() >= 25  # 50 expected, sd 6.7
    assert counts.max() <= 75


def test_a_difference_of_exactly_one_standard_deviation_counts_whatever_the_rounding():
    value = np.array([0.6, 0.4, 0.4, 0.6]) / 0.2
    assert 0 < 1 - (value[0] - value[1]) < 1e-15
    assert len(match_pairs(value, np.zeros((4, 0)), 2, np.random.default_rng(0))[0]) == 2


def test_sets_of_doses_agree_in_the_rest_and_show_every_level_once():
    rng = np.random.default_rng(1)
    value, rest = rng.integers(0, 3, 80) * 1.0, rng.integers(0, 4, (80, 2)) * 0.1
    levels = np.array([0.0, 2.0])
    complete = [
        cell
        for cell in itertools.product(range(4), repeat=2)
        if all(((value == v) & (rest == np.array(cell) * 0.1).all(axis=1)).any() for v in levels)
    ]
    rows = match_doses(value, rest, levels, 99, np.random.default_rng(0))
    assert rows.shape == (2, len(complete))
    assert (value[rows] == levels[:, None]).all()
    assert (rest[rows[0]] == rest[rows[1]]).all()
    assert len({tuple(each) for each in rest[rows[0]].tolist()}) == len(complete)
    assert match_doses(value, rest, levels, 3, np.random.default_rng(0)).shape == (2, 3)
    assert match_doses(value, rest, np.array([0.0, 7.0]), 3, np.random.default_rng(0)).shape == (2, 0)
    seen = {tuple(match_doses(value, rest, levels, 1, np.random.default_rng(s)).ravel().tolist()) for s in range(60)}
    assert len(seen) > len(complete)  # cells, and rows within them, are chosen at random


def test_ten_thousand_images_with_six_factors_are_matched_in_seconds():
    table = np.random.default_rng(0).normal(size=(10_000, 6))
    began = time.perf_counter()
    one, _ = match_pairs(table[:, 0], table[:, 1:], 2000, np.random.default_rng(0))
    assert len(one) == 2000
    assert time.perf_counter() - began < 20  # about 1 s


# ---------------------------------------------------------------- data sets on a grid, like dSprites


def grid(shuffle: int | None = 0, constant: bool = True):
    """Shape x size x place, one image each, whose pixels are the factors, two of each; a fourth factor never varies."""
    table = np.array(list(itertools.product(range(3), range(5), range(6), [1])), dtype=float)
    if shuffle is not None:
        table = np.random.default_rng(shuffle).permutation(table)
    images = (table[:, :3, None, None] / 6).repeat(2, axis=3).astype(np.float32)
    names = ["shape", "size", "place", "constant"]
    return nv.datasets.from_arrays(images, table if constant else table[:, :3], names=names if constant else names[:3])


@pytest.mark.parametrize("shuffle", [None, 0])
@pytest.mark.parametrize("factor", ["shape", "size", "place"])
def test_on_a_grid_every_pair_matches_exactly_and_nothing_is_cautioned_against(factor, shuffle):
    data = grid(shuffle)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pairs = data.pairs(factor, n=30, seed=1)
    others = [j for j, name in enumerate(data.factors) if name != factor]
    assert torch.equal(pairs.base_factors[:, others], pairs.source_factors[:, others])
    assert {name: value for name, value in pairs.match.items() if name != factor} == {
        name: 0.0 for name in data.factors if name != factor
    }
    apart = (pairs.source_factors - pairs.base_factors)[:, data.factors.index(factor)]
    assert (apart > 0).all()
    assert apart.unique().numel() > 1 or factor == "shape"  # not always the first value that will do


@pytest.mark.parametrize("data", [grid(constant=False), nv.datasets.load("pendulum")], ids=["matched", "rendered"])
def test_results_say_which_data_set_their_pairs_are_from_and_with_which_seed(data):
    factor = data.factors[0]
    where = {"dataset": data.name, "drawn": 6, "seed": 3}
    pairs = data.pairs(factor, n=6, seed=3)
    drawn = data.pairs_by_factor(n=6, seed=3)
    assert all(each.record == where for each in (pairs, pairs[2:], pairs.reversed(), *drawn.values()))
    record = pairs_record(pairs[2:])
    assert {name: record[name] for name in (*where, "n", "factor")} == where | {"n": 4, "factor": factor}
    assert (
        pairs_record(nv.Pairs(pairs.base, pairs.source, record={"n": 0, "site": "lab"})).items()
        >= {"n": 6, "site": "lab"}.items()
    )
    assert "dataset" not in pairs_record(nv.Pairs(pairs.base, pairs.source))


def test_results_say_how_well_their_pairs_were_matched():
    data, vae = grid(), nv.VAE(random_linear_vae(0).float())
    found = nv.manipulate_inputs(vae, data.pairs("size", n=20), ["enc"])
    assert found.provenance["pairs"]["match"]["place"] == 0
    assert found.provenance["pairs"]["match"]["size"] >= 1
    with pytest.warns(NnsightVaeWarning, match=r"also in"):
        rough = data_of_noise().pairs("a", n=60)
    assert rough.match["b"] > 0.5
    assert rough[:5].match == rough.reversed().match == rough.match
    assert nv.datasets.load("pendulum").pairs("angle", 4).match is None


def data_of_noise(n=400):
    """a and b nearly equal: no image differs in one of them alone."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=n)
    table = np.stack([a, a + 0.1 * rng.normal(size=n)], axis=1)
    return nv.datasets.from_arrays(rng.random((n, 8, 8)), table, names=["a", "b"])


def test_pairs_in_a_constant_factor_are_refused():
    with pytest.raises(DataError, match="only 0 pairs differ by at least 1 standard deviation in 'constant'"):
        grid().pairs("constant", n=5)


def test_duplicated_images_are_used_once_each():
    table = np.repeat([[0.0, 0.0], [1.0, 0.0]], 10, axis=0)
    data = nv.datasets.from_arrays(np.arange(20)[:, None, None] * np.ones((8, 8)) / 20, table)
    pairs = data.pairs("factor_0", n=10)
    assert len(torch.unique(torch.cat([pairs.base, pairs.source]).flatten(1), dim=0)) == 20


def test_pairs_by_factor_are_of_the_same_images():
    data = grid(constant=False)
    by_factor = data.pairs_by_factor(n=30, seed=2)
    anchors = by_factor["shape"].groups
    assert len(anchors.unique()) == 30
    table = data._table[anchors.numpy()].astype(np.float32)  # groups are rows of the table
    for factor, pairs in by_factor.items():
        assert torch.equal(pairs.groups, anchors)
        column = data.factors.index(factor)
        assert (pairs.base_factors[:, column] < pairs.source_factors[:, column]).all()
        at_base, at_source = (
            (side.numpy() == table).all(axis=1) for side in (pairs.base_factors, pairs.source_factors)
        )
        assert (at_base ^ at_source).all()
        assert 0 < at_base.sum() < 30
        assert max(value for name, value in pairs.match.items() if name != factor) < 0.5
    vae = nv.VAE(random_linear_vae(0).float())
    assert nv.manipulate_inputs(vae, by_factor, ["enc"]).targets == data.factors


def test_pairs_by_factor_caution_and_refuse_as_pairs_do():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data_of_noise().pairs_by_factor(60)
    assert [str(each.message)[:20] for each in caught] == ["arrays: pairs in 'a'", "arrays: pairs in 'b'"]
    with pytest.raises(DataError, match=r"in 'constant'"):
        grid().pairs_by_factor(10)
    with pytest.raises(DataError, match="there are only 45"):
        grid().pairs_by_factor(46)


def test_on_a_grid_slopes_are_the_closed_form():
    data = grid()
    model = random_linear_vae(0).float()
    response = nv.dose_response(nv.VAE(model), data.doses("size", n=18), ["enc"])
    assert response.doses.tolist() == [0, 1, 2, 3, 4]
    weight = model.enc.weight.detach().numpy()[:, 2:4].sum(axis=1) / 6
    seen = data.sample(90).images.flatten(1).double() @ model.enc.weight.detach().double().T
    want = weight / seen.std(0, correction=0).numpy() * np.sqrt(2)  # the sd of 0..4
    np.testing.assert_allclose(response.trend.values[:, 0], np.repeat(want[:, None], 18, 1), rtol=1e-4)
    assert response.to_frame()["responds"].all()
    chosen = data.doses("size", n=5, values=[4.0, 1.0])
    assert chosen.values.tolist() == [1, 4]
    assert torch.equal(chosen.images[0, :, [0, 2]], chosen.images[1, :, [0, 2]])
    torch.testing.assert_close(chosen.images[:, :, 1].unique(), torch.tensor([1.0, 4.0]) / 6)


def test_a_table_that_is_no_grid_has_no_doses_and_says_what_to_do():
    with pytest.raises(DataError, match=r"0 sets of images agree .* use pairs\('a', n\) and manipulate_inputs"):
        data_of_noise().doses("a", n=10)
    with pytest.raises(DataError, match=r"18 sets.*Ask for fewer or for other values"):
        grid().doses("size", n=20)
    with pytest.raises(DataError, match=r"0 sets.*Ask for other values"):
        grid().doses("size", n=5, values=[0.0, 2.5])
    with pytest.raises(DataError, match="takes one value only"):
        grid().doses("constant", n=5)
    with pytest.raises(DataError, match="no factor 'colour'"):
        grid().doses("colour", n=5)


def test_with_a_graph_doses_leave_descendants_free_or_hold_them():
    rng = np.random.default_rng(0)
    a, alone = rng.integers(0, 2, (2, 200))
    b = 2 * a + rng.integers(0, 2, 200)
    graph = nx.DiGraph([("a", "b")])
    graph.add_node("alone")
    table = np.stack([a, b, alone], axis=1)
    data = nv.datasets.from_arrays(np.zeros((200, 8, 8)), table, graph, ["a", "b", "alone"])
    assert data.doses("a", n=2).propagate is True
    with pytest.raises(DataError, match="0 sets"):
        data.doses("a", n=2, propagate=False)  # no image has a changed and b not
    assert data.doses("b", n=1, values=[0.0, 1.0], propagate=False).propagate is False
