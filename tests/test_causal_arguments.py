"""Causal questions refuse what is no model or no data set by name, before any work."""

import pytest
import torch

import nnsight_vae as nv
from nnsight_vae.models import MLPVAE

QUESTIONS = {
    "map_factors": lambda vae, data: nv.causal.map_factors(vae, data),
    "unit_verdicts": lambda vae, data: nv.causal.unit_verdicts(vae, data, ["encoder.1"]),
    "factor_graph": lambda vae, data: nv.causal.factor_graph(vae, data),
    "interchange_accuracy": lambda vae, data: nv.causal.interchange_accuracy(vae, data, {"angle": 0}),
    "learn_rotation": lambda vae, data: nv.causal.learn_rotation(vae, data),
    "discovered_graph": lambda vae, data: nv.causal.discovered_graph(vae, data),
    "factor_circuits": lambda vae, data: nv.causal.factor_circuits(vae, data),
}


@pytest.mark.parametrize("ask", QUESTIONS.values(), ids=QUESTIONS)
def test_a_model_that_is_not_wrapped_is_refused_with_how_to_wrap_it(ask):
    with pytest.raises(nv.AdapterError, match=r"got a MLPVAE where a VAE belongs; wrap it first: vae = nv\.VAE"):
        ask(MLPVAE(image_shape=(1, 8, 8), latent=3), nv.datasets.load("pendulum"))


@pytest.mark.parametrize("ask", QUESTIONS.values(), ids=QUESTIONS)
def test_images_are_no_data_set(ask):
    with pytest.raises(nv.DataError, match="got a Tensor where a data set belongs"):
        ask(nv.VAE(MLPVAE(image_shape=(1, 8, 8), latent=3)), torch.rand(4, 1, 8, 8))


def test_graphs_are_compared_with_a_graph_and_not_with_the_data_set_that_has_one():
    data = nv.datasets.load("pendulum")
    with pytest.raises(nv.CircuitError, match=r"truth must be a networkx\.DiGraph, got Procedural; pass its \.graph"):
        nv.causal.compare(data.graph, data)
