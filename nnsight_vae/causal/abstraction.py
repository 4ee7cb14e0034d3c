"""Causal abstraction: do swapped latents do what the world's SCM says swapped factors would?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.arguments import require, require_readout
from nnsight_vae.causal.carriers import Carrier, Swaps, UnitSet, others, shared
from nnsight_vae.causal.interchange_result import InterchangeAccuracy, InterchangeRow
from nnsight_vae.causal.mapping import FactorMap
from nnsight_vae.causal.rotation_result import Rotation
from nnsight_vae.causal.swapped_worlds import true_change
from nnsight_vae.datasets.base import Batch, Dataset
from nnsight_vae.engine import baseline, run_interventions
from nnsight_vae.errors import DataError
from nnsight_vae.progress import progress_bar
from nnsight_vae.readouts import Readout
from nnsight_vae.sites import Key
from nnsight_vae.stats.intervals import bootstrap_ratio_interval
from nnsight_vae.vae import VAE

Mapped = FactorMap | Rotation | Mapping[str, "int | Key | Sequence[int | Key] | None"]

_CONTROLS = 16  # other sets, or random subspaces, that a swap is held against: their mean is then known to a quarter of their spread


def interchange_accuracy(
    vae: VAE,
    data: Dataset,
    mapping: Mapped,
    *,
    swaps: Iterable[str | Sequence[str]] | None = None,
    n: int = 256,
    seed: int = 0,
    readout: Readout | None = None,
    progress: bool | None = None,
) -> InterchangeAccuracy:
    """Swap what carries a factor between two images and compare with the world's own counterfactual.

    Base image with factors g, source with g'. Predicted change: readout of the base's reconstruction with the factor's units as
    in the source's run, minus the readout without. True change: readout of the image rendered with g_i := g'_i, minus readout of
    the base image; once with nothing else changed, once with the descendants of i following the SCM. High on the first and low
    on the second: the model has independent knobs. The other way round: it has learned the mechanism (or the correlation).

    In a joint swap every factor comes from a source image of its own, so that it is no reconstruction of any one image.

    Args:
        vae: the model.
        data: a dataset with an SCM.
        mapping: what carries each factor: `map_factors(vae, data)`; or `learn_rotation(vae, data)`, for subspaces that were learned
            (on other pairs than any that are drawn here); or factor -> index of a latent, a key such as `"decoder.2[0:8]"`, or a
            sequence of either that is one set, of any sites. None: nothing carries it.
        swaps: which factors to swap: names, and sequences of names to swap at once. None: each factor that something carries, and
            all of these at once.
        n: number of pairs of images.
        seed: of the images and of the controls; results of one seed are over the same pairs, whatever the mapping, and can be
            subtracted (`result.minus(other)`).
        readout: a readout of the factors; `data.readout()` by default.
        progress: show a bar; by default on an interactive terminal.

    Returns: `InterchangeAccuracy`; print it for a table. A score is None, with the reason, where nothing that the readout reads
        changes, and where factors to be swapped at once share a unit.

    Raises:
        DataError: the dataset has no counterfactuals, fewer than 20 pairs are asked for, or the mapping or `swaps` name a factor or
            latent that does not exist.
        SiteError: the mapping names a unit that does not exist.

    Source: interchange interventions, Geiger et al. 2021, arXiv 2106.02997, with a continuous score; several sources as in Geiger
        et al. 2024, arXiv 2303.02536.

    Example:
        >>> import nnsight_vae as nv
        >>> vae, data = nv.load("pendulum-labelled-vae"), nv.datasets.load("pendulum")
        >>> result = interchange_accuracy(vae, data, {"angle": 0}, n=32)
        >>> [(row.factor, row.propagate) for row in result.rows]
        [('angle', False), ('angle', True)]
    """
    require(vae, data=data)
    if n < 20:
        raise DataError(f"interchange_accuracy got n={n}; at least 20 pairs of images are needed for intervals.")
    base = data.sample(n, seed=seed)
    vae.layout(vae.checked(base.images))
    mapped = _carriers(vae, data, mapping)
    carriers = {factor: carrier for factor, carrier in mapped.items() if carrier is not None}
    carried = tuple(factor for factor in data.factors if factor in carriers)  # in this order whatever the mapping's
    chosen = _chosen(carried, swaps)
    readout = data.readout() if readout is None else readout
    require_readout(readout)
    sources = [data.sample(n, seed=seed + 1 + j) for j in range(max(map(len, chosen), default=0))]
    trial = _Trial(vae, data, base, sources, readout, seed)
    rows: list[InterchangeRow] = []
    with progress_bar("interchange", len(chosen), progress) as advance:
        for factors in chosen:
            rows += trial.rows({factor: carriers[factor] for factor in factors})
            if advance is not None:
                advance(1)
    unmatched = tuple(factor for factor in mapped if factor not in carriers)
    return InterchangeAccuracy(tuple(rows), unmatched, data.name, n, trial.errors, trial.sizes)


def _carriers(vae: VAE, data: Dataset, mapping: Mapped) -> dict[str, Carrier | None]:
    """What carries each factor, checked against model and data."""
    if isinstance(mapping, Rotation):
        found: dict[str, Carrier | None] = dict(mapping.subspaces())
        units = vae.sites[mapping.site].n_units
        if any(each.basis.shape[1] != units for each in mapping.subspaces().values()):
            raise DataError(f"this rotation is of another model: {mapping.site} has {units} units here.")
    elif isinstance(mapping, FactorMap):
        found = {
            factor: None if k is None else UnitSet((vae.sites.select(mapping.effects.units[k]),))
            for factor, k in mapping.assignment.items()
        }
    elif isinstance(mapping, Mapping):
        found = {factor: _unit_set(vae, units) for factor, units in mapping.items()}
    else:
        raise DataError(
            f"got a {type(mapping).__name__} where a mapping belongs; expected map_factors(...), learn_rotation(...) or a dict such "
            "as {'angle': 'latent.z[0]'}."
        )
    if unknown := [factor for factor in found if factor not in data.factors]:
        raise DataError(f"{data.name} has no factors {unknown}; it has {', '.join(data.factors)}.")
    return found


def _unit_set(vae: VAE, units: int | Key | Sequence[int | Key] | None) -> UnitSet | None:
    if units is None:
        return None
    keys = list(units) if isinstance(units, Sequence) and not isinstance(units, str) else [units]
    if not keys:
        raise DataError("the mapping has an empty set of units; write None where nothing carries a factor.")
    return UnitSet.of(vae, [vae.sites.select(_latent(vae, key)) for key in keys])


def _latent(vae: VAE, key: int | Key) -> Key:
    """A number is short for a latent."""
    if not isinstance(key, int | np.integer):
        return key
    if isinstance(key, bool):
        raise DataError(f"the mapping asks for {key}; expected the index of a latent, a key, or several.")
    n_latents = vae.sites["latent.z"].n_units
    if not 0 <= key < n_latents:
        raise DataError(f"this VAE has latents 0-{n_latents - 1}; the mapping asks for {key}.")
    return f"latent.z[{key}]"


def _chosen(carried: tuple[str, ...], swaps: Iterable[str | Sequence[str]] | None) -> list[tuple[str, ...]]:
    """The factors of each swap; the first of them is taken from the first source, and so on."""
    if swaps is None:
        return [*((factor,) for factor in carried), *([carried] if len(carried) > 1 else [])]
    chosen = [(swap,) if isinstance(swap, str) else tuple(swap) for swap in swaps]
    for swap in chosen:
        if not swap or len(set(swap)) < len(swap) or not set(swap) <= set(carried):
            raise DataError(
                f"cannot swap {swap!r}: expected factors that something carries ({', '.join(carried) or 'there is none'}), each once."
            )
    return chosen


class _Trial:
    """Swaps on one batch of pairs; what the first source makes of a carrier is run once, whichever factor asks."""

    def __init__(
        self, vae: VAE, data: Dataset, base: Batch, sources: Sequence[Batch], readout: Readout, seed: int
    ) -> None:
        self.vae, self.data, self.base, self.sources, self.readout, self.seed = vae, data, base, sources, readout, seed
        self.swaps = Swaps(vae, base.images)
        self.before = baseline(vae, base.images, readout)
        self.errors: dict[tuple[str, bool], Float[np.ndarray, " pair"]] = {}
        self.sizes: dict[tuple[str, bool], Float[np.ndarray, " pair"]] = {}
        self._known: dict[tuple[Carrier, ...], Float[np.ndarray, "pair target"]] = {}

    def rows(self, carriers: Mapping[str, Carrier]) -> list[InterchangeRow]:
        """The two rows of swapping these factors at once."""
        parts = tuple(carriers.values())
        named = (" + ".join(carriers), len(parts) > 1, "; ".join(map(str, parts)))
        selections = [each for part in parts if isinstance(part, UnitSet) for each in part.selections]
        if in_common := shared(self.vae, selections):
            return [InterchangeRow(*named, propagate, None, reason=in_common) for propagate in (False, True)]
        beside = others(self.vae, parts, _CONTROLS, self.seed)
        whole = [] if len(parts) > 1 else [(parts[0].whole(),)]
        changes = self._changes([parts, *whole, *beside])
        sources = dict(zip(carriers, self.sources, strict=False))
        rows = []
        for propagate in (False, True):
            truth = _array(true_change(self.data, self.base, sources, self.readout, propagate))
            if not truth.any():
                why = f"nothing that the readout reads changes in the world when {named[0]} is swapped"
                rows.append(InterchangeRow(*named, propagate, None, reason=why))
                continue
            errors, size = np.square(changes - truth).sum(axis=-1), np.square(truth).sum(axis=-1)
            self.errors[named[0], propagate], self.sizes[named[0], propagate] = errors[0], size
            score, low, high, *more = _scores(errors, size, self.seed)
            controls = more[len(whole) :]
            rows.append(
                InterchangeRow(
                    *named,
                    propagate,
                    score,
                    low,
                    high,
                    control=float(np.mean(controls)) if controls else None,
                    best_control=max(controls, default=None),
                    everything=more[0] if whole else None,
                    reason=None if controls else "there is no other set of as many units",
                )
            )
        return rows

    def _changes(self, swaps: Sequence[tuple[Carrier, ...]]) -> Float[np.ndarray, "swap pair target"]:
        """What each swap does to the readout of the reconstruction."""
        new = [swap for swap in dict.fromkeys(swaps) if swap not in self._known]
        plan = [
            self.swaps.joint([(part, source.images) for part, source in zip(swap, self.sources, strict=False)])
            for swap in new
        ]
        moved = run_interventions(self.vae, self.base.images, plan, self.readout) - self.before
        self._known |= dict(zip(new, _array(moved), strict=True))
        return np.stack([self._known[swap] for swap in swaps])


def _scores(errors: Float[np.ndarray, "swap pair"], size: Float[np.ndarray, " pair"], seed: int) -> list[float]:
    """Score of the first swap and its interval, then the scores of the others."""
    first, *rest = (1 - errors.mean(axis=1) / size.mean()).tolist()
    least, most = bootstrap_ratio_interval(errors[0], size, seed=seed)
    return [first, 1 - float(most), 1 - float(least), *rest]


def _array(values: Tensor) -> np.ndarray:
    return values.detach().double().cpu().numpy()
