"""Masked models: what the mask forbids is exactly 0, in weights and in pictures."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from torch import nn

from nnsight_vae.circuits.known import masked
from nnsight_vae.circuits.known.dags import one_edge, reached

DEEPEST = nx.DiGraph([(f"f{i}", f"f{i + 1}") for i in range(4)])  # each layer of the decoder has one edge to cross in


@pytest.mark.parametrize(
    ("seed", "dag"), [(0, None), (1, None), (2, None), (3, DEEPEST)], ids=["0", "1", "2", "deepest"]
)
def test_a_factor_reaches_the_pictures_of_what_it_causes_and_no_other_to_the_last_bit(
    seed: int, dag: nx.DiGraph | None
) -> None:
    known = masked(seed, factors=4, edge_probability=0.6, depth=3, dag=dag)
    module, n = known.vae.module, len(known.factors)
    for factor, caused in reached(known.dag).items():
        pairs = known.pairs(factor, 16)
        with torch.no_grad():
            change = (module(pairs.source)[0] - module(pairs.base)[0]).abs().amax((0, 2, 3)).view(n, 2).amax(1)
        assert {name for name, moved in zip(known.factors, change.tolist(), strict=True) if moved} == set(caused)
        assert min(c for name, c in zip(known.factors, change, strict=True) if name in caused) > 1e-3
        moved = (pairs.source != pairs.base).flatten(2).any(2).any(0).view(n, 2).any(1)
        assert {name for name, m in zip(known.factors, moved, strict=True) if m} == {factor}


def test_what_the_mask_forbids_is_exactly_zero() -> None:
    known = masked(0, dag=one_edge(3), hidden=False)
    weights = {path: layer.weight for path, layer in known.vae.module.named_modules() if hasattr(layer, "weight")}
    crossings = 0
    for path, weight in weights.items():
        if path == "fc_logvar":
            assert not weight.any()
            continue
        rows = (
            weight.transpose(0, 1) if isinstance(known.vae.module.get_submodule(path), nn.ConvTranspose2d) else weight
        )
        blocks = rows.reshape(3, rows.shape[0] // 3, 3, rows.shape[1] // 3, -1)
        present = blocks.ne(0).flatten(3).any(3).any(1)
        assert present.diagonal().all()
        extra = present & ~torch.eye(3, dtype=torch.bool)
        crossings += int(extra.sum())
        assert not extra.any() or (path.startswith("decoder") and extra.nonzero().tolist() == [[1, 0]])
        assert (blocks.ne(0) == present[:, None, :, None, None]).all()
    assert crossings == 1
