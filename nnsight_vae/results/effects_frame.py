"""The table of Effects: one row per unit and target."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from nnsight_vae.results.effects import Effects
from nnsight_vae.results.effects_names import site_and_index
from nnsight_vae.stats import intervals, significance


def frame(effects: Effects, *, level: float, n_boot: int, n_perm: int | None, seed: int) -> pd.DataFrame:
    """What `Effects.to_frame` returns."""
    low, high = intervals.mean_interval(
        effects.values, effects.groups, effects.source_groups, level=level, n_boot=n_boot, seed=seed
    )
    p = effects.test.p if effects.test else effects.pvalues(n_perm, seed)
    q = effects.test.q if effects.test else significance.benjamini_hochberg(p)
    sites, indices = zip(*map(site_and_index, effects.units), strict=True) if effects.units else ((), ())
    n_targets = len(effects.targets)
    columns: dict[str, Any] = {
        "unit": np.repeat(np.array(effects.units, dtype=object), n_targets),
        "site": np.repeat(np.array(sites, dtype=object), n_targets),
        "index": pd.array(indices, dtype="Int64").repeat(n_targets),
        "target": np.tile(np.array(effects.targets, dtype=object), len(effects.units)),
        "effect": effects.mean().ravel(),
        "ci_low": low.ravel(),
        "ci_high": high.ravel(),
        "p": p.ravel(),
        "q": q.ravel(),
    }
    table = pd.DataFrame(columns)
    return table[effects.test.passed.ravel()].reset_index(drop=True) if effects.test else table
