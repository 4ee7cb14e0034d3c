"""VAEs whose circuit is known, and their edges patched one by one with plain hooks: shared by the tests of them."""

from __future__ import annotations

import copy
from functools import cache

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from nnsight_vae.circuits.known import KnownCircuit, glass_box

CHAIN = nx.DiGraph([("f0", "f1"), ("f1", "f2")])

# layer, the site of the nodes it makes, how many of its inputs and outputs a node has; written by hand
GLASS = [
    ("encoder.0", "encoder.0", 1, 1),
    ("encoder.2", "encoder.2", 1, 1),
    ("fc_mu", "latent.z", 4, 1),
    ("decoder.0", "decoder.0", 1, 1),
    ("decoder.2", "decoder.4", 1, 4),
    ("decoder.5", "decoder.5", 1, 1),
    ("decoder.7", "output", 1, 1),
]
MASKED = [
    ("encoder.0", "encoder.0", 1, 1),
    ("encoder.2", "encoder.2", 1, 1),
    ("encoder.5", "encoder.5", 4, 1),
    ("fc_mu", "latent.z", 1, 1),
    ("decoder.0", "decoder.0", 1, 1),
    ("decoder.2", "decoder.4", 1, 4),
    ("decoder.5", "decoder.5", 1, 1),
    ("decoder.7", "output", 1, 1),
]


@cache
def glass(**options: object) -> KnownCircuit:
    return glass_box(0, **options)


def effects_one_by_one(known: KnownCircuit, layers: list, factor: str, n: int = 12) -> dict:
    """The largest |effect| of each edge over pairs and for each target, both ways, by plain hooks in double precision."""
    pairs, module = known.pairs(factor, n, seed=7), copy.deepcopy(known.vae.module).double()
    modules, weights = dict(module.named_modules()), known.readout
    base, source = pairs.base.double(), pairs.source.double()

    def run(x: Tensor, hook=None, path: str = "") -> Tensor:
        handle = modules[path].register_forward_hook(hook) if hook else None
        with torch.no_grad():
            value = weights(module.decode(module.encode(x)[0]))
        if handle:
            handle.remove()
        return value

    def heard(x: Tensor, path: str) -> tuple[Tensor, Tensor]:
        kept = []
        run(x, lambda _, a, out: kept.append((a[0], out)), path)
        return kept[0]

    found, before = {}, "input"
    for path, site, ports, units in layers:
        (a, p), (b, q) = heard(base, path), heard(source, path)
        for u in range(a.shape[1] // ports):
            mixed = a.clone()
            mixed[:, u * ports : (u + 1) * ports] = b[:, u * ports : (u + 1) * ports]
            with torch.no_grad():
                carried = modules[path].forward(mixed) - p
            for v in range(p.shape[1] // units):
                only = torch.zeros_like(carried)
                only[:, v * units : (v + 1) * units] = carried[:, v * units : (v + 1) * units]
                if not only.any():
                    found[f"{before}[{u}]", f"{site}[{v}]"] = np.zeros(len(weights.names))
                    continue
                there = run(base, lambda *_, only=only, p=p: p + only, path) - run(base)
                back = run(source) - run(source, lambda *_, only=only, q=q: q - only, path)
                found[f"{before}[{u}]", f"{site}[{v}]"] = torch.stack([there, back]).abs().amax((0, 1)).numpy()
        before = site
    return found
