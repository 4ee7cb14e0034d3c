"""Edges of a circuit one at a time, on an unwrapped copy of the model, with plain hooks and no code of the library's."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from vaes import images

from nnsight_vae.circuits.scoring.edges import EdgeScores
from nnsight_vae.pairs import Pairs
from nnsight_vae.readouts import Region

HALVES = Region({"top": (slice(0, 8), slice(None)), "left": (slice(None), slice(0, 5))})


def pairs_for(model: nn.Module, n: int = 5) -> Pairs:
    return Pairs(images(model, n), images(model, n, seed=1), factor="f")


def double(pairs: Pairs) -> Pairs:
    return replace(pairs, base=pairs.base.double(), source=pairs.source.double())


def conv_layers(norm: bool) -> list[tuple[str, str, int, int]]:
    """Each layer with the site of its nodes, ports per source node and units per target node, written by hand."""
    names = (
        ["encoder.0", "encoder.3", "encoder.7", "fc_mu", "decoder.0", "decoder.3", "decoder.6"]
        if norm
        else ["encoder.0", "encoder.2", "encoder.5", "fc_mu", "decoder.0", "decoder.3", "decoder.5"]
    )
    sites = [*names[:3], "latent.z", "decoder.2", names[5], "output"]
    ports, units = [1, 1, 16, 1, 1, 1, 1], [1, 1, 1, 1, 16, 1, 1]
    return list(zip(names, sites, ports, units, strict=True))


class SmoothVAE(nn.Module):
    image = (12,)

    def __init__(self, act: type[nn.Module] = nn.Tanh) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(12, 10), act(), nn.Linear(10, 8), act())
        self.fc_mu, self.fc_logvar = nn.Linear(8, 3), nn.Linear(8, 3)
        self.decoder = nn.Sequential(nn.Linear(3, 8), act(), nn.Linear(8, 12), nn.Sigmoid())

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encoder(x)
        return self.fc_mu(h), self.fc_logvar(h)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)


LOBATTO = {  # positions and weights on [0, 1]; Abramowitz and Stegun 1964, table 25.6
    2: ([0.0, 1.0], [1 / 2, 1 / 2]),
    3: ([0.0, 0.5, 1.0], [1 / 6, 4 / 6, 1 / 6]),
    4: ([0.0, (1 - 0.2**0.5) / 2, (1 + 0.2**0.5) / 2, 1.0], [1 / 12, 5 / 12, 5 / 12, 1 / 12]),
}


class Literal:
    """Edges one at a time on an unwrapped copy of the model, with plain hooks and no shared code."""

    def __init__(self, model: nn.Module, pairs: Pairs, readout) -> None:
        self.model, self.pairs, self.readout = copy.deepcopy(model).eval(), pairs, readout
        for module in self.model.modules():
            if hasattr(module, "inplace"):
                module.inplace = False
        self.modules = dict(self.model.named_modules())
        self.seen: dict[tuple[str, bool], tuple[Tensor, Tensor]] = {}

    def run(self, x: Tensor, path: str | None = None, replacement: Tensor | None = None) -> Tensor:
        hook = self.modules[path].register_forward_hook(lambda m, a, out: replacement) if path else None
        try:
            encoded = self.model.encode(x)
            mu = encoded["mu"] if isinstance(encoded, dict) else encoded[0]
            return self.readout(self.model.decode(mu))
        finally:
            if hook:
                hook.remove()

    def taken_and_given(self, x: Tensor, path: str) -> tuple[Tensor, Tensor]:
        """What a module takes in and gives; remembered for the pairs' own sides."""
        key = (path, x is self.pairs.source)
        if key in self.seen and (x is self.pairs.base or x is self.pairs.source):
            return self.seen[key]
        kept = []
        hook = self.modules[path].register_forward_hook(lambda m, a, out: kept.append((a[0].clone(), out.clone())))
        with torch.no_grad():
            self.run(x)
        hook.remove()
        if x is self.pairs.base or x is self.pairs.source:
            self.seen[key] = kept[0]
        return kept[0]

    def contribution(self, path: str, ports: slice, units: slice) -> Tensor:
        (base, given), (source, _) = (self.taken_and_given(x, path) for x in (self.pairs.base, self.pairs.source))
        swapped = base.clone()
        swapped[:, ports] = source[:, ports]
        with torch.no_grad():
            change = self.modules[path](swapped) - given
        only = torch.zeros_like(change)
        only[:, units] = change[:, units]
        return only

    def noised(self, path: str, ports: slice, units: slice) -> Tensor:
        _, given = self.taken_and_given(self.pairs.base, path)
        with torch.no_grad():
            patched = self.run(self.pairs.base, path, given + self.contribution(path, ports, units))
            return (patched - self.run(self.pairs.base)).T

    def integrated(self, path: str, ports: slice, units: slice, nodes: int) -> Tensor:
        (_, base), (_, source) = (self.taken_and_given(x, path) for x in (self.pairs.base, self.pairs.source))
        with torch.no_grad():
            total = self.run(self.pairs.source) - self.run(self.pairs.base)
        positions, weights = LOBATTO[nodes]
        contribution = self.contribution(path, ports, units)
        scores = []
        for t in range(total.shape[1]):
            along, worth = [], []
            for position in positions:
                point = (base + position * (source - base)).detach().requires_grad_()
                (gradient,) = torch.autograd.grad(self.run(self.pairs.base, path, point)[:, t].sum(), point)
                along.append((gradient * (source - base)).flatten(1).sum(1))
                worth.append((gradient * contribution).flatten(1).sum(1))
            a, b, w = torch.stack(along), torch.stack(worth), torch.tensor(weights, dtype=base.dtype)[:, None]
            slope = (total[:, t] - (w * a).sum(0)) / (w * a**2).sum(0)
            scores.append((w * (1 + slope * a) * b).sum(0))
        return torch.stack(scores)

    def denoised(self, path: str, ports: slice, units: slice) -> Tensor:
        _, given = self.taken_and_given(self.pairs.source, path)
        with torch.no_grad():
            patched = self.run(self.pairs.source, path, given - self.contribution(path, ports, units))
            return (self.run(self.pairs.source) - patched).T

    def sloped(self, path: str, ports: slice, units: slice, rule: list[tuple[float, float]]) -> Tensor:
        """Contribution times gradient, the latter at points of the straight path of the inputs."""
        base, source = self.pairs.base, self.pairs.source
        contribution, total = self.contribution(path, ports, units), 0.0
        for position, weight in rule:
            x = base + position * (source - base)
            point = self.taken_and_given(x, path)[1].detach().clone().requires_grad_()
            values = self.run(x, path, point)
            slopes = [torch.autograd.grad(v.sum(), point, retain_graph=True)[0] for v in values.T]
            total = total + weight * torch.stack([(g * contribution).flatten(1).sum(1) for g in slopes])
        return total


def by_edge(scores: EdgeScores) -> dict[tuple[str, str], np.ndarray]:
    return dict(zip(zip(scores.sources, scores.targets, strict=True), scores.values, strict=True))
