"""print(effects): the largest means with their intervals, how many pairs they rest on, and in which unit they are."""

import numpy as np
import pytest
import torch

import nnsight_vae as nv
from nnsight_vae.models import MLPVAE
from nnsight_vae.results.effects import Effects


def make(means, n=40, sd=0.1, **fields):
    """Effects with about these means, [unit, target]."""
    means = np.asarray(means, dtype=float)[..., None]
    values = means + np.random.default_rng(0).normal(0, sd, (*means.shape[:2], n))
    units = tuple(f"fc[{i}]" for i in range(len(means)))
    return Effects(values, units, ("angle", "light")[: means.shape[1]], "PNIE (noising)", **fields)


def test_the_largest_come_first_with_the_intervals_of_ci():
    effects = make([[0.1, -2.0], [1.0, 0.3]], sd=1.0, groups=np.arange(40) // 8)
    with pytest.warns(nv.NnsightVaeWarning, match="5 independent"):
        low, high = effects.ci()
    rows = [line.split() for line in str(effects).splitlines()[2:]]
    assert [row[:2] for row in rows] == [["fc[0]", "light"], ["fc[1]", "angle"], ["fc[1]", "light"], ["fc[0]", "angle"]]
    assert rows[1][2:] == [f"{effects.mean()[1, 0]:+.2f}", f"[{low[1, 0]:+.2f},", f"{high[1, 0]:+.2f}]"]


def test_the_unit_and_the_numbers_of_pairs_and_clusters_are_said():
    effects = make([[1.0]], groups=np.arange(40) // 2, provenance={"unit": "factor sd"})
    assert str(effects).startswith(
        "PNIE (noising), in factor sd: means of 40 pairs with 95 % intervals over 20 clusters\n"
    )


def test_few_clusters_are_indicative_and_one_has_no_interval():
    assert "over 5 clusters, indicative with so few" in str(make([[1.0]], n=5))
    alone = str(make([[1.0]], n=1))
    assert "means of 1 pair without intervals" in alone
    assert "[" not in alone.splitlines()[-1].removeprefix("fc[0]")


def test_after_significant_only_what_passed_is_shown_beside_the_family_it_is_of():
    text = str(make([[1.0, 0.0], [0.0, 0.02]]).significant(q=0.1, min_effect=0.3))
    assert text.splitlines()[1] == "1 of 4 larger than 0.3 at false discovery rate 0.1"
    assert text.splitlines()[2].endswith("q")
    assert text.splitlines()[3].startswith("fc[0]  angle")
    assert len(text.splitlines()) == 4


def test_nothing_found_is_said_without_a_table():
    assert str(make([[0.0]]).significant(min_effect=1.0)).splitlines()[1:] == [
        "0 of 1 larger than 1 at false discovery rate 0.05"
    ]


@pytest.mark.parametrize(("scale", "shown"), [(1.0, "+1.00"), (1e-4, "+0.000100"), (300.0, "+300"), (0.0, "0.000")])
def test_three_digits_of_the_largest_are_shown(scale, shown):
    assert str(make([[scale]], sd=0.0)).splitlines()[2].split()[2] == shown


def test_what_is_left_out_is_counted():
    assert str(make(np.ones((8, 2)))).splitlines()[-1] == "... and 6 smaller: see to_frame()"


def test_effects_are_in_the_unit_of_their_readout():
    vae = nv.VAE(MLPVAE(image_shape=(1, 8, 8), latent=3))
    x = torch.rand(12, 1, 8, 8)
    pairs = nv.Pairs(x, x.flip(0))
    for readout, unit in [
        (nv.readouts.Pixels((1, 8, 8))["pixel[0,0,0]"], "intensity"),
        (nv.readouts.Latents(3), "latent units"),
    ]:
        assert nv.patch_activations(vae, pairs, ["encoder.1"], readout=readout).provenance["unit"] == unit


def test_what_rounds_to_0_has_no_sign():
    rows = str(make([[1.0], [-0.0001], [0.0001]], sd=0.0)).splitlines()[2:]
    assert [row.split()[2] for row in rows] == ["+1.00", "0.00", "0.00"]


def test_relative_effects_and_trends_do_not_claim_the_unit_of_their_readout():
    record = {"unit": "factor sd"}
    runs = [np.full((1, 12), 1.0 + i) for i in range(4)]
    asked = {"targets": ("angle",), "mediator": "fc[0]", "provenance": record}
    assert nv.Mediation.from_runs(*runs, **asked).te.provenance["unit"] == "factor sd"
    assert nv.Mediation.from_runs(*runs, scale="relative", **asked).te.provenance["unit"] == "shares of Y(base)"
    response = nv.DoseResponse(np.ones((1, 3, 12)), ("fc[0]",), np.arange(3.0), "angle", provenance=record)
    assert "unit" not in response.trend.provenance
    assert response.steps.provenance["unit"] == "factor sd"
