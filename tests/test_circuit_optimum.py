"""Searches of the running model against the best circuit there is, found by trying every set of whole paths of a tiny model."""

from __future__ import annotations

import itertools

import networkx as nx
import numpy as np
import pytest
import torch
from torch import nn

import nnsight_vae as nv
from nnsight_vae.circuits import Greedy, Prune
from nnsight_vae.circuits.evaluation.edge_sets import EdgeSets
from nnsight_vae.readouts import Pixels

READOUT = Pixels((2,))["pixel[0]"]


class Tiny(nn.Module):
    """Two inputs, two latents, a ReLU, two outputs, of which one is read: eight paths."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.fc_mu, self.fc_logvar, self.out = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.fc_mu(x), self.fc_logvar(x)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(z))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pruning_finds_the_smallest_circuit_there_is_and_no_search_deviates_more_than_it_says(seed: int) -> None:
    vae, generator = nv.VAE(Tiny(seed)), torch.Generator().manual_seed(seed)
    base = torch.rand(24, 2, generator=generator)
    pairs = nv.Pairs(base, base + 1 + 0.2 * torch.rand(24, 2, generator=generator), factor="f")
    sets = EdgeSets.of(vae, pairs, READOUT)
    routes = nx.all_simple_edge_paths(nx.DiGraph(sets.edges), "factor:f", "readout:pixel[0]")
    masks = [sets.set_of(path) for path in routes]
    unions = {tuple(np.any(chosen, axis=0)) for n in range(1, 9) for chosen in itertools.combinations(masks, n)}
    every = np.array(sorted(unions))
    readings = sets.read(list(every))

    def deviation(values: np.ndarray) -> np.ndarray:
        return np.abs(values - readings.whole[0]).mean(axis=-1) / np.abs(readings.total[0]).mean()

    of_every = deviation(readings.sets[:, 0])
    for allowed in (0.05, 0.2, 0.4):
        smallest = every[of_every <= allowed].sum(axis=1).min()
        pruned = nv.extract_circuit(vae, pairs, READOUT, select=Prune(deviation=allowed))
        greedy = nv.extract_circuit(vae, pairs, READOUT, select=Greedy(tau=allowed / 5))
        assert pruned.number_of_edges() == smallest
        assert (
            greedy.number_of_edges() >= smallest
            or greedy.graph["selection"]["targets"]["pixel[0]"]["deviation"] > allowed
        )
        for circuit in (pruned, greedy):
            own = sets.read([sets.set_of(circuit.edges)]).sets[0, 0]
            assert circuit.graph["selection"]["targets"]["pixel[0]"]["deviation"] == pytest.approx(
                deviation(own), abs=1e-6
            )
