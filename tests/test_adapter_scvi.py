"""scVI on a small table of counts: expected counts of a cell of one size in one batch, against scvi-tools' own calls."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from matrix import conforms
from nnsight_vae.adapters.reference import Noise
from nnsight_vae.adapters.scvi import SCVI

import nnsight_vae as nv

scvi = pytest.importorskip("scvi", reason="scvi-tools is not installed (pip install 'nnsight-vae[scvi]')")
anndata = pytest.importorskip("anndata")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

CELLS, GENES, LATENT = 40, 12, 4


def table() -> anndata.AnnData:
    rng = np.random.default_rng(0)
    rates = rng.gamma(2.0, 2.0, size=(CELLS, GENES))
    names = {"batch": ["a", "b"], "donor": ["u", "v", "w", "x"], "kind": ["p", "q"]}
    obs = pd.DataFrame(
        {name: np.resize(values, CELLS) for name, values in names.items()} | {"age": rng.normal(size=CELLS)},
        index=[f"cell {i}" for i in range(CELLS)],
    )
    return anndata.AnnData(rng.poisson(rates).astype("float32"), obs=obs)


def model_of(setup: dict | None = None, **options):
    """An untrained model whose BatchNorms have seen data, and the counts."""
    data = table()
    scvi.model.SCVI.setup_anndata(data, **({"batch_key": "batch"} if setup is None else setup))
    torch.manual_seed(0)
    model = scvi.model.SCVI(data, n_latent=LATENT, n_hidden=8, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, buffer in model.module.named_buffers():
            if "running_var" in name:
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    model.module.eval()
    model.is_trained_ = True
    return model, torch.from_numpy(np.asarray(data.X))


CASES = {
    "one batch": ({}, {}, SCVI()),
    "the encoder sees the batch": (
        {"batch_key": "batch"},
        {"encode_covariates": True, "gene_likelihood": "nb"},
        SCVI(1),
    ),
    "covariates": (
        {"batch_key": "batch", "categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["age"]},
        {"gene_likelihood": "poisson", "latent_distribution": "ln"},
        SCVI(1, library=500.0, categorical=[2], continuous=[0.3]),
    ),
    "dispersion by label": (
        {"batch_key": "batch", "labels_key": "kind"},
        {"dispersion": "gene-label", "gene_likelihood": "normal"},
        SCVI(label=1),
    ),
    "a learned library, embedded batches": (
        {"batch_key": "batch", "categorical_covariate_keys": ["donor"]},
        {"use_observed_lib_size": False, "encode_covariates": True, "batch_representation": "embedding"},
        SCVI(1),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_reconstruction_is_the_modules_own_expression_times_the_library(case):
    setup, options, adapter = CASES[case]
    model, x = model_of(setup, **options)
    vae = nv.VAE(model.module, adapter)
    assert vae.sites["input"].shape == (GENES,)
    assert vae.verify(x) == 0.0
    assert vae.sites["latent.z"].shape == (LATENT,)
    sums = vae(x).detach().sum(1)
    torch.testing.assert_close(sums, torch.full_like(sums, adapter.library), rtol=1e-4, atol=0)  # shares add up to 1


def test_it_is_found_and_is_what_scvi_calls_normalised_expression():
    model, x = model_of(encode_covariates=True)
    vae = nv.VAE(model.module)
    assert type(vae.adapter) is SCVI
    in_batch_a = np.arange(CELLS) % 2 == 0
    mean = model.get_latent_representation()  # of each cell in its own batch
    np.testing.assert_allclose(vae.encode(x).mu.detach()[in_batch_a], mean[in_batch_a], rtol=1e-5, atol=1e-6)
    with Noise():  # it draws cells' states; here each is at its mean
        own = model.get_normalized_expression(library_size=1e4, transform_batch="a", return_numpy=True)
    np.testing.assert_allclose(vae(x).detach()[in_batch_a], own[in_batch_a], rtol=1e-5)


def test_batch_and_library_are_those_of_the_adapter():
    model, x = model_of()
    first, second, small = (nv.VAE(model.module, a)(x).detach() for a in (SCVI(0), SCVI(1), SCVI(0, library=100.0)))
    assert not torch.allclose(first, second)
    torch.testing.assert_close(small * 100, first)
    with pytest.raises(nv.AdapterError, match="positive number"):
        SCVI(library=0)


@pytest.mark.parametrize("case", ["one batch", "covariates"])
def test_every_level_runs_on_it(case):
    setup, options, adapter = CASES[case]
    model, x = model_of(setup, **options)
    conforms(nv.VAE(model.module, adapter), x[:8])


def test_it_draws_nothing_from_the_global_random_state():
    model, x = model_of()
    vae = nv.VAE(model.module)
    state = torch.get_rng_state()
    vae(x), vae.encode(x), vae.verify(x)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_parts_that_no_reconstruction_needs_are_named():
    model, _ = model_of()
    found = nv.VAE(model.module).self_check
    assert found.never == ("l_encoder", "decoder.px_r_decoder")
    assert set(found.other) == {"z_encoder", "decoder"}
    assert "z_encoder.encoder.fc_layers.Layer 0.0" in nv.VAE(model.module).sites
