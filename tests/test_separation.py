"""Where circuits split and merge, against counting all choices of ends."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from circuits_of_factors import RECORD, circuit, drawn_circuit

from nnsight_vae.circuits import separation


def test_separation_p_values_equal_counting_all_choices_of_ends():
    a = circuit({("latent.z[0]", f"decoder.0[{j}]"): 1.0 for j in (0, 1, 2)}, "a")
    b = circuit({("latent.z[0]", f"decoder.0[{j}]"): 1.0 for j in (2, 3, 4, 5)}, "b")
    row = separation({"a": a, "b": b}).rows[0]
    every = [len(set(mine) & set(theirs)) for mine in combinations(range(8), 3) for theirs in combinations(range(8), 4)]
    assert (row.unit, row.kind, row.only_a, row.only_b, row.shared) == ("latent.z[0]", "split", 2, 3, 1)
    assert row.p == pytest.approx(np.mean(np.array(every) <= 1))
    assert row.expected == pytest.approx(np.mean(every))


def test_planted_splits_and_merges_are_found():
    record = {"nodes": {"encoder.0": 40, "latent.z": 4, "decoder.0": 40}, "edges": {}}
    halves = range(20), range(20, 40)
    split = {
        name: circuit(
            {("encoder.0[0]", "latent.z[0]"): 1.0} | {("latent.z[0]", f"decoder.0[{j}]"): 1.0 for j in half},
            name,
            record=record,
        )
        for name, half in zip("ab", halves, strict=True)
    }
    merge = {
        name: circuit(
            {(f"encoder.0[{j}]", "latent.z[0]"): 1.0 for j in half} | {("latent.z[0]", "decoder.0[3]"): 1.0},
            name,
            record=record,
        )
        for name, half in zip("ab", halves, strict=True)
    }
    for circuits, kind in ((split, "split"), (merge, "merge")):
        found = separation(circuits)
        assert [(row.unit, row.kind, row.shared, row.through) for row in found.significant] == [
            ("latent.z[0]", kind, 0, 1)
        ]
        assert kind in str(found)
        assert len(found.to_frame()) == len(found.rows)


def test_a_unit_with_the_same_edges_in_both_circuits_separates_nothing():
    graph = drawn_circuit(0, "a", 0.6)
    found = separation({"a": graph, "b": graph})
    assert found.rows
    assert found.significant == ()
    assert all(row.only_a == row.only_b == 0 for row in found.rows)
    full = circuit({("latent.z[0]", f"decoder.0[{j}]"): 1.0 for j in range(8)}, "a")
    fixed = next(row for row in separation({"a": full, "b": full}).rows if row.kind == "split")
    assert (fixed.p, fixed.reason) == (None, "the number of shared edges is fixed")
    unknown = separation({"a": circuit(dict.fromkeys(full.edges, 1.0), "a", record=None), "b": full}).rows[-1]
    assert unknown.p is None
    assert "not known" in unknown.reason
    grouped = {**RECORD, "edges": {**RECORD["edges"], "encoder.0 -> latent.z": 12}}
    into = {(f"encoder.0[{i}]", "latent.z[0]"): 1.0 for i in range(3)} | {("latent.z[0]", "decoder.0[0]"): 1.0}
    rows = separation({name: circuit(into, name, record=grouped) for name in "ab"}).rows
    assert {row.kind: row.p is None for row in rows if row.unit == "latent.z[0]"} == {"split": False, "merge": True}
