"""Steps of an analysis about the model as a whole and its latents: is it read rightly, and which latent carries what."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from nnsight_vae.causal.mapping import FactorMap, map_factors
from nnsight_vae.engine import activations
from nnsight_vae.levels.latent_metrics import LatentRuns
from nnsight_vae.levels.latent_values import posterior_quantiles
from nnsight_vae.metrics.resampling import Form
from nnsight_vae.plots import plot_traversals
from nnsight_vae.provenance import provenance
from nnsight_vae.report.run import Run
from nnsight_vae.vae import VAE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STEPS = 9  # images of a traversal
_FORMS: tuple[Form, Form] = ("normalised", "raw")
_RELIABLE = 0.8  # R2 of a factor's readout on reconstructions, below which effects are on a weak signal


def describe(run: Run) -> None:
    """Checking the model and the readout."""
    x = run.batch.images
    with torch.no_grad():
        reconstruction = activations(run.vae, x, ["output"])["output"]
    columns = [run.data.factors.index(name) for name in run.readout.names]
    r2 = run.readout.reliability_on(reconstruction.clamp(0, 1), run.batch.factors[:, columns])
    weak = [name for name, value in r2.items() if value is None or value < _RELIABLE]
    if weak:
        run.summary.cautions.append(
            f"the readout of {', '.join(weak)} reads this model's reconstructions poorly (R2 below {_RELIABLE:g}): the model does not "
            "reconstruct these factors well, and effects on them are effects on a weak signal."
        )
    run.sections["data"] = {
        "name": run.data.name,
        "factors": list(run.readout.names),
        "images": len(x),
        "readout_r2_on_reconstructions": r2,
        "mse": float((reconstruction - x).square().mean()),
    }
    run.sections["settings"] = asdict(run.settings)
    run.sections["provenance"] = provenance(run.vae, None, run.readout)
    run.sections["model"] = {
        "name": run.name,
        "fingerprint": run.vae.fingerprint,
        "verify": run.vae.verify(x[:16]),
    }


def map_latents(run: Run) -> None:
    """Mapping latents to factors."""
    found = map_factors(run.vae, run.data, n=len(run.batch), seed=run.settings.seed, readout=run.readout)
    run.mapping = found
    run.folder.table("factor_map.csv", found.to_frame())
    run.folder.table("effects_latents.csv", found.effects.to_frame())
    run.folder.figure("latents.png", found.plot()[0])
    run.folder.effects("latents", found.effects)
    run.sections["model"] |= {
        "latents": len(found.verdicts),
        "kl": None if found.kl is None else found.kl.round(4).tolist(),
    }
    run.sections["factor_map"] = {
        "verdicts": list(found.verdicts),
        "level": found.level,
        "min_effect": found.min_effect,
        "assignment": {factor: match(found, factor) for factor in found.factors},
    }
    shape = run.vae.sites["output"].shape
    # Codes lie on no scale to move along.
    if len(shape) == 3 and shape[0] in (1, 3) and run.vae.adapter.codebook is None:
        run.folder.figure("traversals.png", _traversals(run.vae, run.batch.images, found))


def measure(run: Run) -> None:
    """Measuring effect strength, specificity and modularity."""
    import pandas as pd

    runs = LatentRuns(run.vae, run.batch.images[:200])
    best, raw = (runs.metrics(form, run.settings.seed) for form in _FORMS)
    frames = [scores.to_frame() for found in (best, raw) for scores in (found.effect_strength, found.specificity)]
    run.folder.table("metrics.csv", pd.concat(frames, ignore_index=True))
    run.sections["metrics"] = {
        "effect_strength": list(best.effect_strength.values),
        "specificity": list(best.specificity.values),
        "modularity": "undefined" if best.modularity.value is None else f"{best.modularity.value:.2g}",
        "modularity_ci": best.modularity.ci,
    }


def match(found: FactorMap, factor: str) -> dict[str, Any] | None:
    """The latent assigned to a factor, how strongly it moves it, and what else it moves; None where there is none."""
    latent, j = found.assignment[factor], found.factors.index(factor)
    if latent is None:
        return None
    others = [f for i, f in enumerate(found.factors) if i != j and found.low[latent, i] > found.min_effect]
    return {
        "latent": latent,
        "unit": found.effects.units[latent],
        "size": float(found.size[latent, j]),
        "low": float(found.low[latent, j]),
        "high": float(found.high[latent, j]),
        "verdict": found.verdicts[latent],
        "also": others,
    }


def _traversals(vae: VAE, x: torch.Tensor, found: FactorMap) -> Figure:
    """Each latent of the first image moved across its aggregate posterior."""
    low, high = posterior_quantiles(vae, x, (0.02, 0.98))
    z = vae.encode(x[:1]).mu.detach()
    rows = []
    for k in range(len(low)):
        steps = z.repeat(_STEPS, *([1] * (z.ndim - 1)))
        ramp = torch.linspace(float(low[k]), float(high[k]), _STEPS, device=z.device, dtype=z.dtype)
        steps[:, k] = ramp.view(-1, *([1] * (z.ndim - 2)))
        rows.append(vae.decode(steps).detach())
    figure, _ = plot_traversals(torch.stack(rows).cpu().clamp(0, 1), [f"z[{k}]" for k in range(len(low))], found.kl)
    return figure
