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
    assert torch.equal(reversed_.groups, pairs.groups)
    assert rows_of(reversed_.reversed()) == list(range(6))


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
