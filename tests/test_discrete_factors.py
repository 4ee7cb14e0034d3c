"""Factors of your own data that are kinds and not amounts: read as classes, matched as same or not, never by their numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from linear import LinearReadout, LinearVAE

import nnsight_vae as nv
from nnsight_vae import datasets
from nnsight_vae.datasets.distances import contrasts, coordinates, distance
from nnsight_vae.errors import DataError, NnsightVaeWarning

NAMES = ["kind", "level"]


def tables(n=400, seed=0):
    """Kind: which of three rows is lit, 0 is rare; level: how bright the fourth row is."""
    rng = np.random.default_rng(seed)
    kind, level = rng.choice(3, n, p=[0.1, 0.4, 0.5]), rng.random(n)
    images = np.zeros((n, 8, 8))
    images[np.arange(n), kind] = 1.0
    images[:, 3:] = level[:, None, None]
    return images, np.stack([kind, level], axis=1)


def data(**options):
    return datasets.from_arrays(*tables(), names=NAMES, **options)


# ------------------------------------------------------------------ readouts
def test_declared_kinds_are_read_as_classes():
    readout = data(discrete=["kind"]).readout()
    assert set(readout.accuracy) == {"kind"}
    assert readout.classes("kind").names == ("kind=0", "kind=1", "kind=2")
    images, factors = tables(seed=1)
    told = readout.classes("kind")(torch.from_numpy(images).float()[:, None]).argmax(1)
    assert (told.numpy() == factors[:, 0]).mean() > 0.98
    assert readout.heads.values[1] is None


def test_numbers_that_may_be_kinds_are_warned_of_where_nothing_is_said():
    with pytest.warns(NnsightVaeWarning, match=r"kind takes a few whole numbers .* discrete=\['kind'\]; if amounts, "):
        said_nothing = data().readout()
    assert said_nothing.accuracy == {}
    assert data(discrete=()).readout().accuracy == {}  # amounts: no warning, which the test run would raise


def test_what_is_no_factor_or_no_kind_is_refused_before_anything_is_fitted():
    with pytest.raises(DataError, match=r"from_arrays: discrete=\['colour'\]: no such factor; they are kind, level"):
        data(discrete=["colour"])
    with pytest.raises(DataError, match=r"from_arrays: 'level' takes 400 values, which is a continuous factor"):
        data(discrete=["kind", "level"])


def test_files_take_the_same_option(tmp_path):
    images, factors = tables(60)
    np.savez(tmp_path / "own.npz", images=images, factors=factors, names=np.array(NAMES))
    assert datasets.from_path(tmp_path / "own.npz", discrete=["kind"]).discrete == ("kind",)
    assert datasets.from_path(tmp_path / "own.npz").discrete == ()
    with pytest.raises(DataError, match=r"own\.npz: from_arrays: discrete=\['colour'\]"):
        datasets.from_path(tmp_path / "own.npz", discrete=["colour"])


def test_grids_take_it_too():
    table = np.stack(np.meshgrid([0.0, 1.0, 2.0], [5.0, 6.0], indexing="ij"), axis=-1).reshape(-1, 2)
    images = torch.zeros(6, 1, 2, 2, dtype=torch.uint8)
    assert datasets.Grid("tiny", images, table, ("shape", "size"), ["shape"]).discrete == ("shape",)
    assert datasets.Grid("tiny", images, table, ("shape", "size")).discrete == ()


def test_a_map_says_which_kinds_it_reads_as_numbers_and_how_to_read_their_probabilities():
    rows, small = torch.eye(64, dtype=torch.double)[[0, 40]], torch.eye(2, dtype=torch.double)
    vae = nv.VAE(LinearVAE(rows, small, small, rows.T, logvar=-8.0).float())
    read = LinearReadout(2 * rows.float(), ("kind", "level"))
    with pytest.warns(NnsightVaeWarning) as caught:
        nv.causal.map_factors(vae, data(discrete=["kind"]), n=40, readout=read)
    said = [str(each.message) for each in caught if "read as a number" in str(each.message)]
    assert said == [said[0]]
    assert said[0].startswith("kind (3 values): ")
    assert said[0].endswith("readout=data.readout().classes('kind').")
    nv.causal.map_factors(
        vae, data(discrete=()), n=40, readout=read
    )  # amounts: no warning, which the test run would raise
    classes = OfRows(data(discrete=["kind"]).readout().classes("kind"))
    found = nv.causal.map_factors(vae, data(discrete=["kind"]), n=40, readout=classes)
    assert found.factors == ("kind=0", "kind=1", "kind=2")
    with pytest.warns(NnsightVaeWarning, match="kind .* read as a number"):
        nv.causal.unit_verdicts(vae, data(discrete=["kind"]), ["latent.z"], side="decoder", n=40, readout=read)


class OfRows:
    """A readout of images, of a model that decodes them as rows of pixels."""

    def __init__(self, readout):
        self.readout, self.names = readout, readout.names

    def __call__(self, rows):
        return self.readout(rows.reshape(-1, 1, 8, 8))


# ------------------------------------------------------------------ pairs
def test_any_two_kinds_make_a_pair_however_near_their_numbers():
    """Kinds 0, 1 and 40, of which 40 is common: the numbers of 0 and 1 are a twentieth of a standard deviation apart."""
    rng = np.random.default_rng(0)
    factors = np.stack([rng.choice([0, 1, 40], 200, p=[0.25, 0.25, 0.5]), rng.random(200)], axis=1)
    images = rng.random((200, 8, 8))
    declared, not_declared = (
        datasets.from_arrays(images, factors, names=NAMES, discrete=d).pairs("kind", 60) for d in (["kind"], ())
    )
    together = {tuple(sorted(pair)) for pair in zip(*(_kinds(declared)), strict=True)}
    assert together == {(0, 1), (0, 40), (1, 40)}
    assert {tuple(sorted(pair)) for pair in zip(*_kinds(not_declared), strict=True)} == {(0, 40), (1, 40)}
    assert all(low < high for low, high in zip(*_kinds(declared), strict=True))


def _kinds(pairs):
    return pairs.base_factors[:, 0].tolist(), pairs.source_factors[:, 0].tolist()


def test_a_matched_kind_is_the_same_or_not():
    """Nothing agrees exactly with the first image. By its number, kind 2 is never the nearest to it; as a kind, it is no further than 1."""
    factors = np.array([[0, 0.0, 0.0], [1, 2.0, 0.3], [2, 2.0, 0.1], [0, 0.1, 5.0], [1, 0.1, 5.0], [2, 0.1, 5.0]])
    images = np.random.default_rng(0).random((6, 8, 8))
    names = ["kind", "own", "level"]
    found = {}
    for discrete in (["kind"], ()):
        own = datasets.from_arrays(images, factors, names=names, discrete=discrete)
        pairs = [_cautioned(own, seed) for seed in range(12)]
        found[len(discrete)] = {
            pair.source_factors[0, 0].item() for pair in pairs if pair.base_factors[0].tolist() == [0, 0, 0]
        }
    assert found == {1: {1.0, 2.0}, 0: {1.0}}


def _cautioned(own, seed):
    with pytest.warns(NnsightVaeWarning, match="pairs in 'own' differ"):
        return own.pairs("own", 1, seed=seed)


def test_too_few_images_of_another_kind_are_counted_in_kinds():
    factors = np.zeros((60, 1))
    factors[:3] = [[1], [2], [2]]
    own = datasets.from_arrays(np.zeros((60, 8, 8)), factors, names=["kind"], discrete=["kind"])
    with pytest.raises(DataError, match="only 3 pairs differ in kind in 'kind' without using an image twice"):
        own.pairs("kind", 10)


def test_the_quality_of_a_match_in_kinds_is_their_share_of_what_random_pairs_have():
    own = data(discrete=["kind"])
    pairs = own.pairs("level", 60)
    differ = (pairs.base_factors[:, 0] != pairs.source_factors[:, 0]).double().mean().item()
    shares = np.bincount(tables()[1][:, 0].astype(int)) / 400
    expected = np.sqrt(2 * differ / (1 - np.square(shares).sum()))
    assert own.match_quality(pairs)["kind"] == pytest.approx(expected)
    rng, column = np.random.default_rng(0), tables()[1][:, 0]
    assert distance(*rng.choice(column, (2, 100_000)), column, True) == pytest.approx(2**0.5, abs=0.01)


@given(seed=st.integers(0, 10_000), n_kinds=st.integers(2, 5))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_distances_do_not_depend_on_the_numbers_of_the_kinds_and_two_kinds_are_an_amount(seed, n_kinds):
    rng = np.random.default_rng(seed)
    kinds = np.concatenate([np.arange(n_kinds), rng.integers(n_kinds, size=20)])
    renamed = (rng.permutation(100)[:n_kinds] * 3.5 - 7)[kinds]
    one, other = rng.integers(len(kinds), size=(2, 30))
    apart = distance(kinds[one], kinds[other], kinds, True)
    assert distance(renamed[one], renamed[other], renamed, True) == pytest.approx(apart)
    places = coordinates(kinds.astype(float), True)
    assert np.sqrt(np.square(places[one] - places[other]).sum(1).mean()) == pytest.approx(apart)
    assert places.var(axis=0).sum() == pytest.approx(1)
    if n_kinds == 2:
        assert distance(kinds[one], kinds[other], kinds, False) == pytest.approx(apart)
    pairs = np.abs(np.subtract.outer(contrasts(renamed, True), contrasts(renamed, True)))
    assert ((pairs >= 1) == (renamed[:, None] != renamed)).all()


def test_a_factor_that_never_varies_is_at_one_place():
    still = np.full(5, 0.3)
    for discrete in (True, False):
        assert np.ptp(coordinates(still, discrete), axis=0).tolist() == [0]
        assert distance(still, still, still, discrete) == 0
