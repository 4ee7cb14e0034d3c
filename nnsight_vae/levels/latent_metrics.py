"""The seed paper's three metrics of a VAE: the runs they need, handed to the pure functions in `nnsight_vae.metrics`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.arguments import require
from nnsight_vae.engine import activations, baseline, checked_batch, run_interventions
from nnsight_vae.errors import PriorError, SiteError
from nnsight_vae.interventions import Set
from nnsight_vae.levels.latent_values import RANGE, Values
from nnsight_vae.levels.latents import latent_moves
from nnsight_vae.levels.units import Per, default_sites
from nnsight_vae.metrics.causal import (
    causal_effect_strength,
    circuit_modularity,
    intervention_specificity,
    output_spread,
)
from nnsight_vae.metrics.resampling import Form
from nnsight_vae.metrics.scores import LatentScores, Score
from nnsight_vae.reading import Readout, reads as reads_of
from nnsight_vae.sites import Key, Site, Unit
from nnsight_vae.vae import VAE

if TYPE_CHECKING:
    import pandas as pd

CLAMPS = tuple(np.linspace(-3.0, 3.0, 7).tolist())  # the values of the published estimator


class LatentMetrics(NamedTuple):
    """The three metrics of one VAE."""

    effect_strength: LatentScores
    specificity: LatentScores
    modularity: Score

    def __str__(self) -> str:
        return "\n".join(map(str, self))

    def __repr__(self) -> str:
        return str(self)

    def to_frame(self) -> pd.DataFrame:
        """One row per latent and metric, the whole model's modularity last: metric, form, unit, value, ci_low, ci_high, flag."""
        import pandas as pd

        tables = [
            scores.to_frame().drop(columns="latent").assign(metric=scores.metric, form=scores.form)
            for scores in (self.effect_strength, self.specificity)
        ]
        whole = self.modularity.to_frame().rename(columns={"note": "flag"})
        columns = ["metric", "form", "unit", "value", "ci_low", "ci_high", "flag"]
        return pd.concat([*tables, whole], ignore_index=True)[columns]


class Elements:
    """Every element at a site, one number each: pixels of the output, activations of a layer."""

    def __init__(self, shape: tuple[int, ...], reads: str = "output") -> None:
        self.names = tuple(map(str, range(int(torch.Size(shape).numel()))))
        self.reads = reads

    def __call__(self, values: Tensor) -> Tensor:
        """The elements, flattened."""
        return values.flatten(1)


def latent_metrics(
    vae: VAE,
    x: Float[Tensor, "n *image"],
    *,
    form: Form = "normalised",
    readout: Readout | None = None,
    site: str | None = None,
    seed: int = 0,
) -> LatentMetrics:
    """Causal effect strength and intervention specificity per latent, and circuit modularity of the decoder.

    Latents are clamped to 7 values from -3 to 3 (effect strength) or to 0 (specificity, modularity), at posterior means.
    Modularity compares root mean square changes of the units of one decoder site; in the normalised form in units of each
    unit's own standard deviation over inputs.

    Args:
        vae: the model.
        x: inputs `[n, *image]`; the published estimator uses up to 200.
        form: `"raw"` as published, or `"normalised"` (unit-free, dead latents left out). Normalised effect strength is in
            units of the spread of the data: a pixel form, or with a readout of factors a factor form, in standard deviations
            of the factors.
        readout: what effects are on; every pixel where not given.
        site: the decoder site whose units modularity is about; by default the middle layer of the decoder.
        seed: of the bootstrap.

    Returns: `LatentMetrics(effect_strength, specificity, modularity)`, each with 95 % intervals over inputs. A VAE with a
        codebook has its effect strength per position, under swaps of codes; for continuous values beside it:
        `nv.metrics.causal_effect_strength(vae, x, values=[...])`.

    Raises:
        SiteError: `site` is not a site of the decoder.
        DataError: x cannot be run.

    Source: Roy 2025, arXiv 2505.03530, as published by an independent re-implementation; see `nnsight_vae.metrics`.

    Example:
        >>> import nnsight_vae as nv
        >>> from nnsight_vae.models import MLPVAE
        >>> vae = nv.VAE(MLPVAE(image_shape=(1, 8, 8), latent=3))
        >>> len(latent_metrics(vae, torch.rand(12, 1, 8, 8)).effect_strength.values)
        3
    """
    return LatentRuns(vae, x, readout=readout, site=site).metrics(form, seed)


class LatentRuns:
    """The runs that the metrics are computed from, made when first asked for; most serve both forms.

    Args:
        vae: the model.
        x: inputs `[n, *image]`.
        values: what latents are set to for the effect strength, as for `nv.perturb_latents`; by default the published 7
            values from -3 to 3, for a VAE with a codebook the codes that x uses.
        readout: what effects are on; every element of the output where not given.
        units: keys at `latent.z` that the effect strength is of; by default all of it.
        per: `"unit"`, `"position"` or `"site"`, of the effect strength.
        quantiles: of `"posterior"` and `"prior"` values.
        site: the decoder site whose units modularity is about; by default the middle layer of the decoder.

    Raises:
        InterventionError, SiteError, DataError, ReadoutError: before any intervention.
    """

    def __init__(
        self,
        vae: VAE,
        x: Float[Tensor, "n *image"],
        values: Values | None = None,
        *,
        readout: Readout | None = None,
        units: Sequence[Key | tuple[Key, ...]] | Key | None = None,
        per: Per | None = None,
        quantiles: Sequence[float] = RANGE,
        site: str | None = None,
    ) -> None:
        self.vae = vae
        self.x, _ = checked_batch(vae, x, None)
        self.read = Elements(vae.layout(self.x).sites["output"].shape) if readout is None else readout
        require(vae, readout=self.read)
        self.site = None if site is None else vae.sites[_decoder_site(vae, site)]
        published = values is None and vae.adapter.codebook is None
        self.what, self.moved = latent_moves(vae, self.x, CLAMPS if published else values, units, per, quantiles)

    def metrics(self, form: Form = "normalised", seed: int = 0) -> LatentMetrics:
        """The three metrics in one form; see `latent_metrics`."""
        return LatentMetrics(
            self.effect_strength(form, seed), self.specificity(form, seed), self.modularity(form, seed)
        )

    def effect_strength(self, form: Form = "raw", seed: int = 0) -> LatentScores:
        """How far the output moves, on average over values, when a unit is set to them.

        CES_k = E_{n,v} || Y(do(z_k = v)) - Y(z) ||_2, at posterior means. Codes are weighted by how often x uses them: with
        discrete latents CES is the mean effect of a code drawn anew at one position. Continuous values are snapped back by
        the quantiser there, and show next to nothing.
        """
        alone = [joint[0].indices for joint in self.what.values() if len(joint) == 1 and joint[0].position is None]
        indices = [found[0] for found in alone if found is not None and len(found) == 1]
        return causal_effect_strength(
            self.displacement[:, None],
            form=form,
            base=self.data,
            kl=self.kl[indices]
            if self.kl is not None and len(indices) == len(self.what)
            else None,  # the KL of a latent, not of a part of one
            units=tuple(self.what),
            seed=seed,
        )

    def specificity(self, form: Form = "raw", seed: int = 0) -> LatentScores:
        """How few targets of the readout each latent moves when it is set to 0."""
        spread = output_spread(self.data)
        # Streamed: the changes of every output element under every latent need not fit in memory together.
        changes = (self._zeroed(k, self.read, self.base) for k in range(self.vae.sites["latent.z"].n_units))
        return intervention_specificity(changes, form=form, spread=spread, kl=self.kl, seed=seed)

    def modularity(self, form: Form = "raw", seed: int = 0) -> Score:
        """How separate the units of a decoder site are that latents act through when they are set to 0."""
        return circuit_modularity(self.unit_change, form=form, activations=self.activation, kl=self.kl, seed=seed)

    @cached_property
    def base(self) -> Float[Tensor, "example target"]:
        """The readout of the unperturbed reconstructions."""
        return baseline(self.vae, self.x, self.read)

    @cached_property
    def data(self) -> Float[np.ndarray, "example target"]:
        """The readout of the data, whose spread is the yardstick; of the reconstructions, where x cannot be read as an output."""
        alike = reads_of(self.read) == "output" and tuple(self.x.shape[1:]) == self.vae.sites["output"].shape
        with torch.no_grad():
            return (self.read(self.x) if alike else self.base).double().cpu().numpy()

    @cached_property
    def displacement(self) -> Float[np.ndarray, "unit example"]:
        """L2 distance of the readout from the unperturbed one, mean over values as they are weighted."""
        n_values = len(self.moved.names)
        weights = torch.tensor(self.moved.weights or (1 / n_values,) * n_values, dtype=torch.double)
        rows = []
        for k in range(len(self.what)):  # one unit at a time: the outputs of all together would not fit
            moved = run_interventions(self.vae, self.x, [joints[k] for joints in self.moved.joints], self.read)
            distances = torch.linalg.vector_norm(moved.sub_(self.base), dim=-1, dtype=torch.double)
            rows.append(weights @ distances.cpu())
        return torch.stack(rows).numpy()

    @cached_property
    def unit_change(self) -> Float[np.ndarray, "latent example unit"]:
        """Root mean square change, over positions, of each unit of the decoder site under do(z_k = 0)."""
        read, base = self._at_site
        # Root mean square: a feature that only moves leaves a channel's mean as it is.
        changes = (
            _units_first(self._zeroed(k, read, base), self._where) for k in range(self.vae.sites["latent.z"].n_units)
        )
        return np.stack([np.sqrt(np.square(change).mean(axis=2)) for change in changes])

    @cached_property
    def activation(self) -> Float[np.ndarray, "example unit position"]:
        """Activations of the decoder site without interventions."""
        return _units_first(self._at_site[1].double().cpu().numpy(), self._where)

    @cached_property
    def kl(self) -> Float[np.ndarray, " latent"] | None:
        """KL(q(z_k|x) || prior) in nats, summed over positions, mean over inputs; the prior is the posterior family's standard one.

        None where the posterior has no KL per latent.
        """
        acts = activations(self.vae, self.x, ["latent.mu", "latent.logvar"])
        try:
            nats = self.vae.law(acts["latent.mu"].double(), acts["latent.logvar"].double()).kl()
        except PriorError:
            return None
        return nats.reshape(*nats.shape[:2], -1).sum(dim=2).mean(dim=0).cpu().numpy()

    @property
    def _where(self) -> Site:
        return self.site or self.vae.sites[_decoder_site(self.vae, None)]

    @cached_property
    def _at_site(self) -> tuple[Elements, Float[Tensor, "example element"]]:
        read = Elements(self._where.shape, self._where.name)
        return read, baseline(self.vae, self.x, read)

    def _zeroed(self, k: int, read: Readout, base: Tensor) -> Float[np.ndarray, "example target"]:
        change = run_interventions(self.vae, self.x, [{Unit("latent.z", k): Set(0.0)}], read)[0] - base
        return change.double().cpu().numpy()


def _units_first(
    values: Float[np.ndarray, "example element"], site: Site
) -> Float[np.ndarray, "example unit position"]:
    units = np.moveaxis(values.reshape(len(values), *site.shape), site.axis, 1)
    return units.reshape(*units.shape[:2], -1)


def _decoder_site(vae: VAE, site: str | None) -> str:
    decoder = [name for name in default_sites(vae) if vae.sites[name].stage == "decoder"]
    if site is None and decoder:
        return decoder[len(decoder) // 2]
    if site is None or vae.sites[site].stage not in ("decoder", "output"):
        raise SiteError(
            f"modularity needs a site of the decoder, got {site!r}; this VAE has: {', '.join(decoder) or 'none'}."
        )
    return site
