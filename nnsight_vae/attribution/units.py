"""Attribution patching at every unit: what gradients say patching it would do, in the shape of what patching does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.arguments import require
from nnsight_vae.circuits.wiring.pair_run import read
from nnsight_vae.circuits.wiring.quadrature import PathAverage, Rule, add_along, gauss_legendre
from nnsight_vae.engine import checked_batch, example_chunks
from nnsight_vae.errors import InterventionError, ReadoutError
from nnsight_vae.guards import require_gradients
from nnsight_vae.levels.units import Per, default_sites, experiments
from nnsight_vae.pairs import Pairs
from nnsight_vae.progress import progress_bar
from nnsight_vae.provenance import provenance
from nnsight_vae.reading import reads as reads_of
from nnsight_vae.readouts import Readout
from nnsight_vae.results.effects import Effects
from nnsight_vae.runs import CleanRun, clean_run, run_from
from nnsight_vae.sites import Key, Selection
from nnsight_vae.vae import VAE

Method = Literal["ig", "gradient x delta"]


def unit_attributions(
    vae: VAE,
    pairs: Pairs,
    sites: Sequence[Key | tuple[Key, ...]] | None = None,
    *,
    readout: Readout,
    method: Method = "ig",
    n_steps: int = 10,
    per: Per = "unit",
    progress: bool | None = None,
) -> Effects:
    """What the gradient attributes to each unit, from base to source: attribution patching, a few passes for all units of a site.

    With d = a(source) - a(base) at a site and Y the readout as a function of the activation there, in the base run:

    gradient x delta   noising: grad Y(a(base)) . d        denoising: grad Y(a(source)) . d
    ig                 mean of grad Y over the path a(base) + t d, t in [0, 1], . d

    each summed over a unit's positions. The first is the first-order estimate of what patching the unit does to the run that
    it is taken in; the second adds up, over a site that everything flows through, to Y(source) - Y(base), and is close to the
    mean of noising and denoising.

    Args:
        vae: the model.
        pairs: base and source inputs; noise is shared by the two runs of a pair.
        sites: as in `patch_activations`, and by default the same.
        readout: what is attributed, e.g. `data.readout()`.
        method: `"ig"` (integrated gradients) or `"gradient x delta"` (attribution patching).
        n_steps: Gauss-Legendre nodes of `"ig"`.
        per: `"unit"`, `"site"` or `"position"`, as in `patch_activations`. The attribution of a set is the sum of its members'.
        progress: show a bar; by default on an interactive terminal.

    Returns: `Effects` [unit, target, pair], in units of the readout. `"gradient x delta"` is the mean of its two ends, which
        are in the result's `parts`, as `"noising"` and `"denoising"`.

    Raises:
        SiteError, DataError, InterventionError: before any work.
        ReadoutError: the readout is not differentiable.

    Source: Sundararajan, Taly and Yan 2017, arXiv 1703.01365; Syed, Rager and Conmy 2023, arXiv 2310.10348.

    Example:
        >>> import nnsight_vae as nv
        >>> from nnsight_vae.models import MLPVAE
        >>> vae = nv.VAE(MLPVAE(image_shape=(1, 8, 8), latent=3))
        >>> pairs = nv.Pairs(torch.rand(12, 1, 8, 8), torch.rand(12, 1, 8, 8))
        >>> top = nv.readouts.Region({"top": (slice(0, 4), slice(0, 8))})
        >>> unit_attributions(vae, pairs, ["latent.z"], readout=top).units
        ('latent.z[0]', 'latent.z[1]', 'latent.z[2]')
    """
    require_gradients()
    rules = _rules(method, n_steps)
    require(vae, pairs, readout)
    base, eps = checked_batch(vae, pairs.base, pairs.eps)
    source, _ = checked_batch(vae, pairs.source, None)
    named = experiments(vae, sites if sites is not None else default_sites(vae), per)
    by_site = _by_site(vae, named, reads_of(readout))
    values = {name: np.zeros((len(named), len(readout.names), len(pairs))) for name in rules}
    with progress_bar("attributing", len(by_site) * len(pairs), progress) as advance:
        for rows in example_chunks(vae, base):
            with torch.no_grad():
                clean, other = (clean_run(vae, x[rows], None if eps is None else eps[rows]) for x in (base, source))
            for name, rule in rules.items():
                _refuse_flat(clean, other, readout, rule)
                for site, members in by_site.items():
                    for target, products in enumerate(_products(clean, other, site, readout, rule)):
                        for i, selection in members:
                            values[name][i, target, rows] += _share(products, selection)
            if advance is not None:
                advance(len(by_site) * len(clean))
    record = provenance(vae, pairs, readout, method=method, n_steps=n_steps if method == "ig" else None)
    return _effects(values, tuple(named), pairs, readout, record)


def _rules(method: Method, n_steps: int) -> dict[str, Rule]:
    """Where on the path gradients are taken, and with which weights; one rule, or one for each end."""
    if method == "ig":
        if isinstance(n_steps, bool) or not isinstance(n_steps, int) or n_steps < 1:
            raise InterventionError(f"n_steps must be a positive integer, got {n_steps!r}.")
        return {"ig": gauss_legendre(n_steps)}
    if method == "gradient x delta":
        return {"noising": ((0.0, 1.0),), "denoising": ((1.0, 1.0),)}
    raise InterventionError(f"method must be 'ig' or 'gradient x delta', got {method!r}.")


def _by_site(vae: VAE, named: dict[str, tuple[Selection, ...]], reads: str) -> dict[str, list[tuple[int, Selection]]]:
    """The experiments' selections, by the site they are at."""
    found: dict[str, list[tuple[int, Selection]]] = {}
    for i, selections in enumerate(named.values()):
        for selection in selections:
            if vae.sites.order(selection.site) > vae.sites.order(reads):
                raise InterventionError(
                    f"the readout reads {reads!r}, which comes before {selection.site!r}; nothing there can change it."
                )
            found.setdefault(selection.site, []).append((i, selection))
    return found


def _products(
    clean: CleanRun, other: CleanRun, site: str, readout: Readout, rule: Rule
) -> Iterator[Float[Tensor, "n unit *grid"]]:
    """Averaged gradient times change at a site, its units on axis 1, for each target."""
    layout = clean.vae.layout(clean.x)
    path, start = layout.paths[site], clean.at(site)
    change = other.at(site) - start

    def through(points: list[Tensor]) -> Tensor:
        return run_from(
            clean, path, None, {path: lambda _: points[0]}, lambda out: read(readout, out), reads_of(readout)
        )

    average = PathAverage([change], len(readout.names))
    add_along(average, [start], through, rule)
    for (gradient,) in average.plain:
        yield (gradient * change).movedim(layout.sites[site].axis, 1)


def _share(products: Float[Tensor, "n unit *grid"], selection: Selection) -> Float[np.ndarray, " n"]:
    """The sum over the selection's units and positions."""
    part = products if selection.indices is None else products[:, list(selection.indices)]
    if selection.position:
        at: tuple[slice | int, ...] = (slice(None), slice(None), *selection.position)
        part = part[at]
    return part.flatten(1).sum(1, dtype=torch.float64).cpu().numpy()


def _refuse_flat(clean: CleanRun, other: CleanRun, readout: Readout, rule: Rule) -> None:
    """Refuse a readout that changes between the runs though its gradient is exactly 0: every attribution would be 0."""
    start, end = (run.at(reads_of(readout)) for run in (clean, other))
    average = PathAverage([end - start], len(readout.names))
    add_along(average, [start], lambda points: read(readout, points[0]), rule)
    with torch.no_grad():
        changes = (read(readout, end) - read(readout, start)).T
    for name, (gradient,), change in zip(readout.names, average.plain, changes, strict=True):
        if bool(change.any()) and not bool(gradient.any()):
            raise ReadoutError(
                f"readout target {name!r} changes between base and source, but its gradient is exactly 0 where it was taken, so "
                "every attribution would be 0. A threshold, an argmax or a detached tensor cannot be attributed: use "
                "patch_activations. A distance to the base is flat there: use method='ig', or a signed readout."
            )


def _effects(
    values: dict[str, np.ndarray], units: tuple[str, ...], pairs: Pairs, readout: Readout, record: dict[str, object]
) -> Effects:
    groups, source_groups = pairs.cluster_ids
    estimands = {
        "ig": f"integrated gradients ({record['n_steps']} steps)",
        "noising": "gradient at base x delta",
        "denoising": "gradient at source x delta",
    }
    made = {
        name: Effects(v, units, tuple(readout.names), estimands[name], groups, record, source_groups=source_groups)
        for name, v in values.items()
    }
    if len(made) == 1:
        return made["ig"]
    mean = (values["noising"] + values["denoising"]) / 2
    return replace(made["noising"], values=mean, estimand="gradient x delta (both ends)", parts=made)
