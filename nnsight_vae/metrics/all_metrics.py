"""All metrics of codes against factors of a model at once: beside unrelated codes, and on independent factors where there are any."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
import torch

from nnsight_vae.arguments import require
from nnsight_vae.datasets.base import Batch, Dataset
from nnsight_vae.engine import activations
from nnsight_vae.errors import DataError, PriorError
from nnsight_vae.metrics.correlated import mcc, support_distance, total_correlation
from nnsight_vae.metrics.fronts import activity
from nnsight_vae.metrics.generative import causal_disentanglement, counterfactual_generativeness
from nnsight_vae.metrics.information import mig, modularity
from nnsight_vae.metrics.latent_activity import ACTIVE
from nnsight_vae.metrics.mec import infomec
from nnsight_vae.metrics.moved_latents import moved_latents
from nnsight_vae.metrics.predictive import dci, explicitness, sap
from nnsight_vae.metrics.robustness import irs, unconfoundedness
from nnsight_vae.metrics.tables import FactorScore, Table
from nnsight_vae.metrics.votes import beta_vae_score, factor_vae_score, grid_sampler
from nnsight_vae.progress import progress_bar
from nnsight_vae.readouts import Readout
from nnsight_vae.vae import VAE

if TYPE_CHECKING:
    import pandas as pd


def _votes(score: Callable[..., FactorScore]) -> Callable[..., FactorScore]:
    """A metric of votes whose batches share a value of a factor, or a class of one that is continuous."""

    def metric(codes: np.ndarray, factors: np.ndarray, *, seed: int = 0) -> FactorScore:
        table = Table.of(codes, factors)
        found = score(grid_sampler(table.codes, table.classes), table.classes.shape[1], seed=seed)
        shared = f"batches share one of ten equally frequent classes of factors {list(table.binned)}"
        return replace(found, note="; ".join(filter(None, (found.note, shared if table.binned else ""))))

    return metric


def _of_codes(
    metric: str, score: Callable[[np.ndarray], float], codes: np.ndarray, n_null: int, seed: int
) -> FactorScore:
    """A metric that needs no factors, beside its value where every latent is permuted on its own, and so independent."""
    rng = np.random.default_rng(seed)
    nulls = [score(rng.permuted(codes, axis=0)) for _ in range(n_null)]
    null, high = (float(np.mean(nulls)), max(nulls)) if nulls else (None, None)
    return FactorScore(metric, score(codes), null, high, note="of codes alone; low where they are independent")


def _support_distance(
    codes: np.ndarray, factors: np.ndarray, *, draws: int = 10_000, n_null: int = 5, seed: int = 0
) -> FactorScore:
    return _of_codes("IOSS", lambda c: support_distance(c, draws=draws, seed=seed), codes, n_null, seed)


def _total_correlation(codes: np.ndarray, factors: np.ndarray, *, n_null: int = 20, seed: int = 0) -> FactorScore:
    return _of_codes("total correlation (nats)", total_correlation, codes, n_null, seed)


METRICS: dict[str, Callable[..., FactorScore]] = {
    "mig": mig,
    "modularity": modularity,
    "sap": sap,
    "dci": dci,
    "explicitness": explicitness,
    "irs": irs,
    "unconfoundedness": unconfoundedness,
    "infomec": infomec,
    "mcc": mcc,
    "factor_vae_score": _votes(factor_vae_score),
    "beta_vae_score": _votes(beta_vae_score),
    "support_distance": _support_distance,
    "total_correlation": _total_correlation,
}
GENERATIVE: dict[str, Callable[..., FactorScore]] = {  # of the decoder too: what a readout sees when latents are moved
    "counterfactual_generativeness": counterfactual_generativeness,
    "causal_disentanglement": causal_disentanglement,
}


@dataclass(frozen=True, repr=False)
class Disentanglement:
    """Metrics of one model on one data set.

    Attributes:
        scores: (metric, "observational" or "independent") -> score.
        latents: the latents that were compared; inactive ones are left out.
        n_latents: how many there are in all.
        n: number of images.
    """

    scores: dict[tuple[str, str], FactorScore]
    latents: tuple[int, ...]
    n_latents: int
    n: int

    def to_frame(self) -> pd.DataFrame:
        """One row per metric and sampling: metric, factors, value, null, null_high, then the parts, and note."""
        import pandas as pd

        frames = [score.to_frame().assign(metric=name, factors=how) for (name, how), score in self.scores.items()]
        frame = pd.concat(frames, ignore_index=True)
        first = ["metric", "factors", "value", "null", "null_high"]
        rest = [column for column in frame.columns if column not in (*first, "note")]
        return frame[[*first, *rest, "note"]]

    def __str__(self) -> str:
        lines = [f"{len(self.latents)} active of {self.n_latents} latents, {self.n} images"]
        width = max(len(name) for name, _ in self.scores)
        lines += [f"{name:<{width}}  {how:<13}  {score}" for (name, how), score in self.scores.items()]
        return "\n".join(lines)

    __repr__ = __str__


def disentanglement(
    vae: VAE,
    data: Dataset,
    *,
    n: int = 2000,
    metrics: Sequence[str] = ("mig", "sap", "dci", "modularity", "explicitness", "irs", "mcc"),
    readout: Readout | None = None,
    seed: int = 0,
    progress: bool | None = None,
    **options: Any,
) -> Disentanglement:
    """Metrics of posterior means against a data set's factors, on observational and, where they can be drawn, independent factors.

    Correlated factors raise some metrics and lower others whatever the model does; on independent factors (`sample_independent`)
    they tell of the model. Latents without information (less than .01 nats) and hidden factors are left out.

    Args:
        vae: the model.
        data: images with factors.
        n: number of images of each kind.
        metrics: of codes and factors: mig, modularity, sap, dci, explicitness, irs, unconfoundedness, infomec, mcc,
            factor_vae_score, beta_vae_score; of codes alone: support_distance (IOSS), total_correlation; of the decoder, read by
            `readout`: counterfactual_generativeness, causal_disentanglement (CDM, where the causal graph is known).
        readout: of the factors, for the metrics of the decoder; `data.readout()` by default.
        seed: of images and metrics.
        progress: show a bar; by default on an interactive terminal.
        options: passed on to every metric that takes them, such as `n_null`.

    Returns: every score beside that of unrelated codes.

    Raises:
        DataError: an unknown metric or option, no causal graph for CDM, no active latent, spatial latents, or metrics' own reasons.

    Example:
        >>> import nnsight_vae as nv
        >>> vae, data = nv.load("pendulum-labelled-vae"), nv.datasets.load("pendulum")
        >>> table = disentanglement(vae, data, n=200, metrics=["mcc"])
        >>> table.scores["mcc", "independent"].value > 0.9
        True
    """
    require(vae)
    if not isinstance(data, Dataset):
        raise DataError(f"got a {type(data).__name__} where a data set belongs, such as nv.datasets.load('pendulum').")
    takes = _options(metrics, options)
    if "causal_disentanglement" in metrics and data.graph is None:
        raise DataError(f"causal_disentanglement asks for the causal graph, and that of {data.name} is not known.")
    batches = {"observational": data.sample(n, seed)}
    if hasattr(data, "sample_independent"):
        batches["independent"] = data.sample_independent(n, seed)
    latents = _active(vae, batches["observational"].images)
    means = {how: activations(vae, b.images, ["latent.mu"])["latent.mu"] for how, b in batches.items()}
    if any(mu.ndim != 2 for mu in means.values()):
        raise DataError(
            "spatial latents have no one number an image; give codes of your own to the metrics, such as their mean."
        )
    if not latents:
        raise DataError("no latent is active, so there are no codes to compare with factors.")
    scores: dict[tuple[str, str], FactorScore] = {}
    shown = [j for j, factor in enumerate(data.factors) if factor not in data.hidden]
    of_decoder = [name for name in metrics if name in GENERATIVE]
    if of_decoder and readout is None:
        readout = data.readout()
    with progress_bar("metrics", len(metrics) * len(batches), progress) as advance:
        for how, batch in batches.items():
            codes = means[how].double().cpu().numpy()[:, list(latents)]
            factors = batch.factors.double().numpy()[:, shown]
            decoder = _decoder_scores(vae, data, means[how], latents, batch, readout, of_decoder) if readout else {}
            for name in metrics:
                metric = decoder.get(name) or partial(METRICS[name], codes, factors)
                scores[name, how] = metric(seed=seed, **{o: options[o] for o in takes[name]})
                if advance is not None:
                    advance(1)
    ordered = {(name, how): scores[name, how] for name in metrics for how in batches}
    return Disentanglement(ordered, latents, next(iter(means.values())).shape[1], n)


def _active(vae: VAE, images: torch.Tensor) -> tuple[int, ...]:
    try:
        sizes = activity(vae, images).kl.values
    except PriorError:  # no KL of each latent alone: whether its mean moves, then
        mu = activations(vae, images, ["latent.mu"])["latent.mu"].double()
        sizes = tuple(mu.transpose(0, 1).flatten(1).var(dim=1).tolist())
    return tuple(k for k, size in enumerate(sizes) if size is not None and size > ACTIVE)


def _options(metrics: Sequence[str], options: dict[str, Any]) -> dict[str, list[str]]:
    """The options that each metric takes."""
    known: dict[str, Callable[..., FactorScore]] = {**METRICS, **GENERATIVE}
    if not metrics or any(name not in known for name in metrics):
        raise DataError(f"metrics={list(metrics)}: expected some of {', '.join(known)}.")
    takes = {name: [o for o in options if o in inspect.signature(known[name]).parameters] for name in metrics}
    unused = [o for o in options if not any(o in taken for taken in takes.values())]
    if unused:
        raise DataError(f"{', '.join(unused)}: no option of {', '.join(metrics)}.")
    return takes


def _decoder_scores(
    vae: VAE,
    data: Dataset,
    means: torch.Tensor,
    latents: tuple[int, ...],
    batch: Batch,
    readout: Readout,
    asked: Sequence[str],
) -> dict[str, Callable[..., FactorScore]]:
    """The metrics of the decoder, with their arrays filled in."""
    if not asked:
        return {}
    moved = moved_latents(vae, means, latents, readout)
    columns = [data.factors.index(name) for name in readout.names]
    robust = irs(means.double().cpu().numpy()[:, list(latents)], batch.factors.double().numpy()[:, columns], n_null=0)
    if robust.matrix is None or not (moved.reach > 0).all():
        raise DataError(
            "codes, or what the readout sees of the decoded images, never change, so nothing can be told of the decoder."
        )
    found: dict[str, Callable[..., FactorScore]] = {
        "counterfactual_generativeness": partial(
            counterfactual_generativeness,
            moved.alone,
            moved.others,
            np.nan_to_num(robust.matrix, nan=-1).argmax(axis=0),
            reach=moved.reach,
        )
    }
    if data.graph is not None:
        below = nx.to_numpy_array(nx.transitive_closure(data.graph), nodelist=list(readout.names)) > 0
        found["causal_disentanglement"] = partial(causal_disentanglement, moved.shares, below)
    return found
