"""A conv VAE of which each layer keeps only some edges, by plain hooks."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from literal_edges import conv_layers, pairs_for
from torch import nn
from vaes import ConvVAE, seeded

import nnsight_vae as nv
from nnsight_vae.circuits.evaluation.edge_sets import EdgeSets
from nnsight_vae.pairs import Pairs


class Masked:
    """A conv VAE of which each layer keeps only some edges, by plain hooks; the rest comes from activations given."""

    def __init__(self, model: nn.Module, pairs: Pairs) -> None:
        self.model, self.pairs = copy.deepcopy(model).eval(), pairs
        for module in self.model.modules():
            if hasattr(module, "inplace"):
                module.inplace = False
        self.modules, self.layers = dict(self.model.named_modules()), conv_layers(norm=False)

    @torch.no_grad()
    def activations(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        kept: dict[str, torch.Tensor] = {"input": x}
        hooks = [
            self.modules[path].register_forward_hook(lambda m, a, out, path=path: kept.__setitem__(path, a[0].clone()))
            for path, *_ in self.layers
        ]
        kept["output"] = self.model.decode(self.model.encode(x)[0])
        for hook in hooks:
            hook.remove()
        return kept

    def resting(self, ablation: str, reference: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        found = self.activations(self.pairs.base if reference is None else reference)
        if ablation == "mean":
            return {
                name: value.mean(0, keepdim=True).expand(len(self.pairs), *value.shape[1:])
                for name, value in found.items()
            }
        return {name: value * (ablation == "base") for name, value in found.items()}

    @torch.no_grad()
    def run(self, edges: set[tuple[str, str]], rest: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        x, hooks, before = rest["input"].clone(), [], "input"
        for c in range(x.shape[1]):
            if ("factor:f", f"input[{c}]") in edges:
                x[:, c] = self.pairs.source[:, c]
        for path, site, ports, units in self.layers:

            def mix(module, args, out, path=path, before=before, site=site, ports=ports, units=units):
                taken, at_rest = args[0], rest[path]
                total = out.clone()
                for v in range(out.shape[1] // units):
                    own = slice(v * units, (v + 1) * units)
                    inputs = at_rest.clone()  # each target sees its own mixture of live and resting sources
                    for u in range(taken.shape[1] // ports):
                        if (f"{before}[{u}]", f"{site}[{v}]") in edges:
                            inputs[:, u * ports : (u + 1) * ports] = taken[:, u * ports : (u + 1) * ports]
                    total[:, own] = type(module).forward(module, inputs)[:, own]
                return total

            hooks.append(self.modules[path].register_forward_hook(mix))
            before = site
        mu = self.model.encode(x)[0]
        image = self.model.decode(mu)
        for hook in hooks:
            hook.remove()
        return {"mu": mu, "output": image}

    def reads(self, edges: set[tuple[str, str]], rest: dict[str, torch.Tensor], readout) -> np.ndarray:
        reached = self.run(edges, rest)["output"]
        columns = []
        for t, name in enumerate(readout.names):
            seen = rest["output"].clone()
            for c in range(seen.shape[1]):
                if (f"output[{c}]", f"readout:{name}") in edges:
                    seen[:, c] = reached[:, c]
            columns.append(readout(seen)[:, t])
        return torch.stack(columns).numpy()


@pytest.fixture(scope="module")
def conv() -> tuple[nv.VAE, Pairs, Masked]:
    model = seeded(ConvVAE(), 6).double()
    pairs = pairs_for(model, 4)
    pairs = replace(pairs, base=pairs.base.double(), source=pairs.source.double())
    return nv.VAE(model), pairs, Masked(model, pairs)


def some_edges(sets: EdgeSets, share: float = 0.7, seed: int = 0) -> tuple[np.ndarray, set[tuple[str, str]]]:
    mask = np.random.default_rng(seed).random(len(sets.edges)) < share
    mask[sets.edges.index(("factor:f", "input[1]"))] = False
    mask[sets.edges.index(("output[0]", "readout:left"))] = False
    return mask, {edge for edge, kept in zip(sets.edges, mask, strict=True) if kept}
