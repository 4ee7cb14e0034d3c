"""Steps of an analysis that intervene, factor by factor: in the data, at every unit, at the latent that carries it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np

from nnsight_vae.levels.inputs import manipulate_inputs
from nnsight_vae.levels.mediation import mediate
from nnsight_vae.levels.patching import patch_activations
from nnsight_vae.pairs import Pairs
from nnsight_vae.report.run import Run, Settings
from nnsight_vae.results.effects import Effects
from nnsight_vae.results.proportion import Proportion

_TOP = 5  # units shown per factor in the summary; the tables hold all


def change_inputs(run: Run) -> None:
    """Changing factors in the data."""
    _write_table(run, "effects_inputs.csv", {f: manipulate_inputs(run.vae, run.pairs(f)) for f in run.factors})


def patch_units(run: Run) -> None:
    """Patching every unit."""
    effects = {factor: _patched(run, factor) for factor in run.factors}
    q, least = run.settings.q, run.settings.min_effect
    tested = {factor: found.significant(q, min_effect=least) for factor, found in effects.items()}
    run.sections["patching"] = {f: _top(tested[f], len(effects[f].units), run.settings) for f in run.factors}
    _write_table(run, "effects_patching.csv", effects)
    for factor, found in effects.items():
        run.folder.figure(f"effects_{factor}.png", found.plot()[0])


def split_effects(run: Run) -> None:
    """Splitting total effects by mediator."""
    import pandas as pd

    run.sections["mediation"], frames = {}, []
    for factor in run.factors:
        unit = run.mapping.unit(factor) if factor in run.mapping.assignment else None
        if unit is None:
            continue
        m = mediate(run.vae, run.pairs(factor), [unit], readout=run.readout)
        frames.append(m.to_frame().assign(factor=factor))
        share = m.proportion[factor]
        run.sections["mediation"][factor] = {
            "mediator": m.mediator,
            "share": share.value,
            "low": share.low,
            "high": share.high,
            "text": _said(share, factor),
        }
    if frames:
        run.folder.table("mediation.csv", pd.concat(frames, ignore_index=True))


def _said(share: Proportion, factor: str) -> str:
    if share.value is None:
        return f"share of the effect on {factor} undefined: {share.reason}"
    return f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}] of its effect on the decoded {factor}"


def _patched(run: Run, factor: str) -> Effects:
    """Effects of every unit, those of an earlier run where it was asked the same."""
    pairs = run.pairs(factor)
    request = {"factor": factor, "pairs": _digest(pairs), "data": run.data.name, "model": run.vae.fingerprint}
    name = f"patching_{factor}"
    if (done := run.folder.finished(name, request)) is not None:
        return done
    found = patch_activations(run.vae, pairs, readout=run.data.readout([factor]))
    found = replace(found, provenance=found.provenance | {"request": request})
    run.folder.effects(name, found)
    return found


def _digest(pairs: Pairs) -> str:
    """Which images these pairs show: a name, a number and a seed would not tell that the data changed."""
    digest = hashlib.sha256()
    for images in (pairs.base, pairs.source):
        digest.update(str(tuple(images.shape)).encode())
        digest.update(images.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _top(tested: Effects, n_units: int, settings: Settings) -> dict[str, Any]:
    low, high = tested.ci() if tested.units else (np.zeros((0, 1)), np.zeros((0, 1)))
    mean = tested.mean()
    return {
        "units": n_units,
        "significant": len(tested.units),
        "pairs": settings.pairs,
        "q": settings.q,
        "min_effect": settings.min_effect,
        "top": [
            {"unit": unit, "effect": float(mean[i, 0]), "low": float(low[i, 0]), "high": float(high[i, 0])}
            for i, unit in enumerate(tested.units[:_TOP])
        ],
    }


def _write_table(run: Run, name: str, effects: dict[str, Effects]) -> None:
    import pandas as pd

    frames = [found.to_frame().assign(factor=factor) for factor, found in effects.items()]
    run.folder.table(name, pd.concat(frames, ignore_index=True))
