"""Interventions as data: they print as written, compare by value, survive JSON, and refuse what cannot be meant."""

from __future__ import annotations

import copy
import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as arrays

import nnsight_vae as nv

finite = st.floats(allow_nan=False, allow_infinity=False, width=64)
numbers = st.one_of(st.integers(-(10**9), 10**9), finite)
seeds = st.integers(0, 2**31)


@st.composite
def tensors(draw, min_dims=0):
    dtype = draw(st.sampled_from(["float32", "float64"]))
    shape = draw(arrays.array_shapes(min_dims=max(1, min_dims), max_dims=3, max_side=3))
    elements = st.floats(-1e6, 1e6, width=32)
    array = draw(arrays.arrays(dtype, shape if draw(st.booleans()) or min_dims else (), elements=elements))
    return torch.as_tensor(array)


batches = tensors(min_dims=2)
interventions = st.one_of(
    st.builds(nv.Set, st.one_of(numbers, tensors())),
    st.builds(nv.Add, st.one_of(numbers, tensors())),
    st.builds(nv.Scale, numbers),
    st.builds(nv.Zero),
    st.builds(nv.Mean, batches),
    st.builds(nv.Resample, batches, seeds),
    st.builds(nv.Noise, st.floats(0, 1e6), seeds),
    st.builds(nv.Swap, batches),
    st.builds(nv.Quantize, seeds),
)


@given(interventions)
def test_every_intervention_survives_json_and_copying(intervention):
    text = intervention.to_json()
    json.loads(text)
    back = nv.Intervention.from_json(text)
    assert type(back) is type(intervention)
    assert back == intervention
    assert hash(back) == hash(intervention)
    assert back.to_json() == text
    assert copy.deepcopy(intervention) == intervention


@given(interventions, interventions)
def test_equality_is_an_equivalence_that_hashing_respects(a, b):
    assert a == a
    assert (a == b) == (b == a)
    assert a != b or (type(a) is type(b) and hash(a) == hash(b))
    assert a.to_json() != b.to_json() or a == b
    assert a != a.to_json()


@given(numbers)
def test_numbers_print_as_they_are_written(value):
    for kind in (nv.Set, nv.Add, nv.Scale):
        assert repr(kind(value)) == f"{kind.__name__}({value!r})"
        assert eval(repr(kind(value)), vars(nv) | {kind.__name__: kind}) == kind(value)


def test_the_rest_prints_as_it_is_written():
    images = torch.zeros(2, 3, 4, 4)
    assert repr(nv.Zero()) == "Zero()"
    assert repr(nv.Noise(0.5)) == "Noise(0.5)"
    assert repr(nv.Noise(0.5, seed=3)) == "Noise(0.5, seed=3)"
    assert repr(nv.Quantize(4)) == "Quantize(4)"
    assert repr(nv.Swap(images)) == "Swap(<tensor 2x3x4x4>)"
    assert repr(nv.Resample(images, 7)) == "Resample(<tensor 2x3x4x4>, seed=7)"
    assert repr(nv.Set(torch.tensor(1.0))) == "Set(<tensor scalar>)"


def test_tensors_are_compared_by_value_and_dtype():
    assert nv.Set(torch.ones(2)) == nv.Set(torch.ones(2))
    assert nv.Set(torch.ones(2)) != nv.Set(torch.ones(2).double())
    assert nv.Set(torch.ones(2)) != nv.Set(torch.zeros(2))
    assert nv.Set(torch.ones(())) != nv.Set(1.0)
    assert nv.Set(1.0) != nv.Add(1.0)
    assert len({nv.Set(1.0), nv.Set(1.0), nv.Set(2.0)}) == 2
    assert len({nv.Set(1), nv.Set(1.0)}) == len({nv.Set(0.0), nv.Set(-0.0)}) == 1
    assert len({nv.Set(torch.zeros(2)), nv.Set(-torch.zeros(2))}) == 1


def test_interventions_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        nv.Set(1.0).value = 2.0


IMAGES = torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nv.Set(math.nan), "finite number for value .*, got nan"),
        (lambda: nv.Set(math.inf), "finite number for value .*, got inf"),
        (lambda: nv.Set("2"), "finite number for value .*, got '2'"),
        (lambda: nv.Set(True), "finite number for value .*, got True"),
        (lambda: nv.Set(None), "finite number for value .*, got None"),
        (lambda: nv.Set(torch.tensor([1, 2])), "finite floating-point value"),
        (lambda: nv.Set(torch.tensor([1.0, torch.nan])), "finite floating-point value"),
        (lambda: nv.Add([1.0]), "finite number for delta"),
        (lambda: nv.Scale(torch.ones(2)), "finite number for factor"),
        (lambda: nv.Scale(math.inf), "finite number for factor, got inf"),
        (lambda: nv.Noise(-1.0), "sd >= 0, got -1.0"),
        (lambda: nv.Noise(1.0, seed=0.5), "64-bit integer seed, got 0.5"),
        (lambda: nv.Resample(IMAGES, seed=True), "64-bit integer seed, got True"),
        (lambda: nv.Noise(1.0, seed=2**70), "64-bit integer seed, got 118"),
        (lambda: nv.Mean(torch.zeros(4)), "batch of inputs .*, got <tensor 4>"),
        (lambda: nv.Mean(torch.zeros(0, 4)), "batch of inputs .*, got <tensor 0x4>"),
        (lambda: nv.Mean(IMAGES.byte()), "batch of inputs .*float tensor"),
        (lambda: nv.Swap("source"), "batch of inputs .*, got 'source'"),
        (lambda: nv.Swap(torch.full((2, 4), torch.inf)), "NaN or infinite values in source"),
        (lambda: nv.Quantize(-1), "code >= 0, got -1"),
        (lambda: nv.Quantize(1.0), "integer code, got 1.0"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, message):
    with pytest.raises(nv.InterventionError, match=message):
        make()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not an intervention"),
        ("[1]", "not an intervention"),
        ("3", "not an intervention"),
        ('{"value": 1}', "not an intervention"),
        ('{"intervention": "Explode"}', "unknown intervention 'Explode'; known: Add, Mean"),
        ('{"intervention": ["Set"]}', "unknown intervention"),
        ('{"intervention": "Set"}', "does not fit"),
        ('{"intervention": "Set", "value": 1, "more": 2}', "does not fit"),
        ('{"intervention": "Set", "value": NaN}', "finite"),
        ('{"intervention": "Set", "value": {"tensor": [1.0], "dtype": "save"}}', "dtype"),
        ('{"intervention": "Set", "value": {"tensor": [1.0], "dtype": "nonsense"}}', "dtype"),
        (
            '{"intervention": "Set", "value": {"tensor": [[1.0], [1.0, 2.0]], "dtype": "float32"}}',
            "Set in JSON does not fit",
        ),
        ('{"intervention": "Set", "value": {"tensor": "abc", "dtype": "float32"}}', "Set in JSON does not fit"),
    ],
)
def test_json_that_is_no_intervention_is_refused(text, message):
    with pytest.raises(nv.InterventionError, match=message):
        nv.Intervention.from_json(text)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_of_every_float_type_survive_json_exactly(dtype):
    value = (torch.randn(3, 2, generator=torch.Generator().manual_seed(0)) / 3).to(dtype)
    back = nv.Intervention.from_json(nv.Set(value).to_json())
    assert back.value.dtype == dtype
    assert torch.equal(back.value, value)
