"""`Pairs`: slicing, reversing, and what is refused where the pairs are made."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from nnsight_vae.errors import DataError
from nnsight_vae.pairs import Pairs


def full_pairs(n=6):
    rows = torch.arange(n, dtype=torch.float32)
    return Pairs(
        rows.reshape(n, 1, 1, 1).expand(n, 3, 4, 4),
        rows.reshape(n, 1, 1, 1).expand(n, 3, 4, 4) + 100,
        factor="angle",
        eps=rows[:, None] + 200,
        groups=torch.arange(n) + 300,
        source_groups=torch.arange(n) + 600,
        base_factors=rows[:, None] + 400,
        source_factors=rows[:, None] + 500,
        factor_names=("angle",),
        propagate=True,
    )


def rows_of(pairs):
    """Which original rows a `full_pairs` selection holds, checked in every field."""
    rows = pairs.base[:, 0, 0, 0]
    assert torch.equal(pairs.source[:, 0, 0, 0], rows + 100)
    assert torch.equal(pairs.eps[:, 0], rows + 200)
    assert torch.equal(pairs.groups, rows.long() + 300)
    assert torch.equal(pairs.source_groups, rows.long() + 600)
    assert torch.equal(pairs.base_factors[:, 0], rows + 400)
    assert torch.equal(pairs.source_factors[:, 0], rows + 500)
    assert (pairs.factor, pairs.factor_names, pairs.propagate) == ("angle", ("angle",), True)
    return rows.long().tolist()


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (slice(2, 4), [2, 3]),
        (slice(None, None, 2), [0, 2, 4]),
        (3, [3]),
        (-1, [5]),
        ([4, 0], [4, 0]),
        (np.array([1, 1]), [1, 1]),
        (torch.tensor([5, 2]), [5, 2]),
        (torch.tensor([True, False, False, True, False, False]), [0, 3]),
    ],
)
def test_indexing_takes_the_same_rows_of_every_field(index, expected):
    assert rows_of(full_pairs()[index]) == expected


@given(st.slices(6))
def test_slicing_pairs_is_slicing_rows_and_an_empty_slice_is_refused(index):
    expected = list(range(6))[index]
    if (index.step or 1) < 0:
        return  # torch has no negative steps; its own error says so
    if expected:
        assert rows_of(full_pairs()[index]) == expected
    else:
        with pytest.raises(DataError, match="0 pairs"):
            full_pairs()[index]


def test_iterating_gives_one_pair_at_a_time():
    assert [rows_of(pair) for pair in full_pairs(3)] == [[0], [1], [2]]


@pytest.mark.parametrize("index", [6, -7])
def test_an_index_out_of_range_is_refused(index):
    with pytest.raises(IndexError, match="out of range for 6 pairs"):
        full_pairs()[index]


def test_reversing_exchanges_base_and_source_and_twice_is_the_identity():
    pairs = full_pairs()
    reversed_ = pairs.reversed()
    assert torch.equal(reversed_.base, pairs.source)
    assert torch.equal(reversed_.source, pairs.base)
    assert torch.equal(reversed_.base_factors, pairs.source_factors)
    assert torch.equal(reversed_.groups, pairs.source_groups)
    assert torch.equal(reversed_.source_groups, pairs.groups)
    assert rows_of(reversed_.reversed()) == list(range(6))


def test_reversing_pairs_whose_sources_are_not_reused_keeps_their_clusters():
    reversed_ = Pairs(torch.zeros(4, 5), torch.ones(4, 5), groups=torch.tensor([0, 0, 1, 1])).reversed()
    assert reversed_.groups.tolist() == [0, 0, 1, 1]
    assert reversed_.source_groups is None


def test_ids_come_as_arrays_for_the_results():
    groups, source_groups = full_pairs(3).cluster_ids
    assert isinstance(groups, np.ndarray)
    assert (groups.tolist(), source_groups.tolist()) == ([300, 301, 302], [600, 601, 602])
    assert Pairs(torch.zeros(2, 5), torch.ones(2, 5)).cluster_ids == (None, None)


# ---------------------------------------------------------------- every base with every source


def images(n, seed):
    return torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_crossed_pairs_are_a_literal_double_loop():
    bases, sources, rows = images(3, 0), images(4, 1), torch.arange(4.0)[:, None]
    pairs = Pairs.crossed(
        bases,
        sources,
        factor="angle",
        eps=rows[:3] + 10,
        base_factors=rows[:3] + 20,
        source_factors=rows + 30,
        factor_names=("angle",),
        propagate=False,
    )
    assert len(pairs) == 12
    for n, (i, j) in enumerate((i, j) for i in range(3) for j in range(4)):
        assert torch.equal(pairs.base[n], bases[i])
        assert torch.equal(pairs.source[n], sources[j])
        assert (pairs.groups[n], pairs.source_groups[n]) == (i, j)
        assert (pairs.eps[n], pairs.base_factors[n], pairs.source_factors[n]) == (10 + i, 20 + i, 30 + j)
    assert (pairs.factor, pairs.factor_names, pairs.propagate) == ("angle", ("angle",), False)


def test_crossing_reversed_is_crossing_the_other_way_round():
    bases, sources = images(3, 0), images(2, 1)
    ours, theirs = Pairs.crossed(bases, sources).reversed(), Pairs.crossed(sources, bases)
    keyed = {(int(g), int(s)): (b, x) for b, x, g, s in zip(ours.base, ours.source, *ours.cluster_ids, strict=True)}
    for b, x, g, s in zip(theirs.base, theirs.source, *theirs.cluster_ids, strict=True):
        assert torch.equal(keyed[g, s][0], b)
        assert torch.equal(keyed[g, s][1], x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_image_that_is_base_and_source_is_refused(dtype):
    bases, sources = images(3, 0).to(dtype), images(4, 1).to(dtype)
    sources[3] = bases[1]
    with pytest.raises(DataError, match="base 1 and source 3 are the same image"):
        Pairs.crossed(bases, sources)
    assert len(Pairs.crossed(bases, sources[:3])) == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bases": torch.zeros(0, 1, 4, 4)}, "0 pairs"),
        ({"sources": torch.zeros(2, 1, 4, 5)}, "equal shape"),
        ({"sources": torch.zeros(2, 1, 4, 4).byte()}, "source is torch.uint8"),
        ({"eps": torch.zeros(2, 5)}, "eps has 2 rows for 3 images"),
        ({"base_factors": torch.zeros(2, 1)}, "base_factors has 2 rows for 3 images"),
        ({"source_factors": torch.zeros(3, 1)}, "source_factors has 3 rows for 2 images"),
    ],
)
def test_ill_formed_crossings_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        Pairs.crossed(**({"bases": images(3, 0), "sources": images(2, 1)} | change))


def test_base_and_source_alone_are_pairs():
    pairs = Pairs(torch.zeros(2, 5), torch.ones(2, 5))
    assert len(pairs) == 2
    assert pairs.eps is None
    assert pairs.groups is None


def test_printing_says_how_many_of_what():
    assert repr(full_pairs()) == "Pairs(6 pairs of shape (3, 4, 4), do(angle), propagate=True)"


IMAGES = torch.zeros(4, 1, 8, 8)


@pytest.mark.parametrize(
    ("base", "source", "message"),
    [
        (IMAGES, torch.zeros(3, 1, 8, 8), r"shape \(4, 1, 8, 8\) and source has \(3, 1, 8, 8\)"),
        (IMAGES, torch.zeros(4, 1, 8, 9), "equal shape"),
        (IMAGES, IMAGES.double(), "equal dtype"),
        (IMAGES.byte(), IMAGES.byte(), "base is torch.uint8.*Divide images by 255"),
        (IMAGES, IMAGES.byte(), "source is torch.uint8"),
        (IMAGES.long(), IMAGES.long(), "floating point"),
        (IMAGES.numpy(), IMAGES.numpy(), "base is a ndarray"),
        (IMAGES[:0], IMAGES[:0], "0 pairs"),
        (torch.zeros(4), torch.zeros(4), r"expected \[n, \.\.\.\]"),
    ],
)
def test_ill_formed_inputs_are_refused(base, source, message):
    with pytest.raises(DataError, match=message):
        Pairs(base, source)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["base", "source"])
def test_inputs_that_are_not_finite_are_refused_and_the_row_is_named(bad, side):
    images = {"base": IMAGES.clone(), "source": IMAGES.clone()}
    images[side][2, 0, 3, 3] = bad
    with pytest.raises(DataError, match=f"{side} holds NaN or infinite values in 1 rows, first in row 2"):
        Pairs(**images)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"groups": torch.arange(3)}, "groups has shape"),
        ({"groups": torch.zeros(4)}, "one integer cluster id per pair"),
        ({"groups": torch.zeros(4, 1, dtype=torch.long)}, "one integer cluster id per pair"),
        ({"groups": [0, 1, 2, 3]}, "groups is a list"),
        ({"groups": torch.arange(4), "source_groups": torch.zeros(4)}, "source_groups is torch.float32"),
        ({"groups": torch.arange(4), "source_groups": torch.arange(3)}, "source_groups has shape"),
        ({"source_groups": torch.arange(4)}, "source_groups without groups"),
        ({"eps": torch.zeros(3, 2)}, "eps has shape"),
        ({"eps": torch.tensor(0.0)}, "eps has shape"),
        ({"eps": torch.full((4, 2), float("nan"))}, "eps holds NaN"),
        ({"base_factors": torch.zeros(4, 1), "factor_names": ("a",)}, "together, or neither"),
        ({"base_factors": torch.zeros(4, 2), "source_factors": torch.zeros(4, 2)}, "one column per name"),
        (
            {
                "base_factors": torch.zeros(4, 1),
                "source_factors": torch.zeros(4, 1),
                "factor_names": ("a",),
                "factor": "b",
            },
            "'b' is not one of",
        ),
    ],
)
def test_fields_that_do_not_fit_the_pairs_are_refused(fields, message):
    with pytest.raises(DataError, match=message):
        Pairs(IMAGES, IMAGES, **fields)
