"""What users pass by mistake to the experiments is refused in their own words, before any work."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from vaes import ConvVAE, images, seeded

import nnsight_vae as nv

MODEL = seeded(ConvVAE())
X, SOURCE = images(MODEL, 3), images(MODEL, 3, seed=1)
TOP = nv.readouts.Region({"top": (slice(0, 4), slice(0, 8))})
EXPERIMENTS = {
    "patch": lambda vae, pairs, readout: nv.patch_activations(vae, pairs, ["latent.z"], readout=readout),
    "mediate": lambda vae, pairs, readout: nv.mediate(vae, pairs, ["latent.z"], readout=readout),
    "score": lambda vae, pairs, readout: nv.score_edges(vae, pairs, readout),
    "extract": lambda vae, pairs, readout: nv.extract_circuit(vae, pairs, readout),
}


@pytest.fixture(scope="module")
def vae():
    return nv.VAE(seeded(ConvVAE()))


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_an_unwrapped_model_says_wrap_it(experiment):
    with pytest.raises(nv.AdapterError, match=r"nv\.VAE\(model\)"):
        experiment(MODEL, nv.Pairs(X, SOURCE), TOP)


@pytest.mark.parametrize("pairs", [(X, SOURCE), X, None])
@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_what_is_not_pairs_says_how_to_make_them(vae, experiment, pairs):
    with pytest.raises(nv.DataError, match=r"nv\.Pairs"):
        experiment(vae, pairs, TOP)


@pytest.mark.parametrize("readout", [lambda r: r, None, "angle", nv.readouts.Region])
@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_what_is_not_a_readout_says_what_one_is(vae, experiment, readout):
    with pytest.raises(nv.ReadoutError, match="names"):
        experiment(vae, nv.Pairs(X, SOURCE), readout)


def test_the_other_levels_too(vae):
    with pytest.raises(nv.DataError, match=r"nv\.Pairs"):
        nv.manipulate_inputs(vae, X)
    with pytest.raises(nv.ReadoutError, match="names"):
        nv.perturb_latents(vae, X, readout=torch.sum)
    with pytest.raises(nv.AdapterError, match=r"nv\.VAE"):
        nv.intervene(MODEL, X, {"latent.z": nv.Zero()})
    with pytest.raises(nv.InterventionError, match="mapping"):
        nv.intervene(vae, X, ["latent.z"])


def test_numpy_numbers_are_numbers():
    assert nv.Set(np.float32(2.0)) == nv.Set(2.0)
    assert repr(nv.Add(np.int64(2))) == "Add(2)"
    with pytest.raises(nv.InterventionError, match="ndarray"):
        nv.Mean(np.zeros((100, 100)))
